//! The only place that names concrete parts: configuration, build, run, drain.
