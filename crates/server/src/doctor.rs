//! What this machine can isolate, for the platform that this configuration means.

use taper_local::probe::{self, Report};

use crate::Config;

/// Looks at this machine; changes nothing.
pub fn doctor(config: &Config) -> Report {
    let instances = config.instances();
    probe::host(&instances.dir, &instances.search)
}
