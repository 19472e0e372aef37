//! HTTP in and out: listen, authenticate, route, forward, reply.
