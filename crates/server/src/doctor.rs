//! What this machine can isolate, for the platform that this configuration means.

use taper_local::probe::{self, Report};

use crate::Config;

/// Looks at this machine; changes nothing.
pub fn doctor(config: &Config) -> Report {
    probe::host(&config.data, &config.local.search)
}
