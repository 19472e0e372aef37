//! Provider of sandboxed processes on this host.
