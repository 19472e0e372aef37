//! The platform's own log: standard error, as text or JSON lines. Functions' logs are the provider's.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, log_filter};

/// Starts logging; what `TAPER_LOG` says, else `info` of ours and warnings of others.
pub(crate) fn start(format: LogFormat) {
    let filter = log_filter().unwrap_or_else(|| {
        "warn,taper_server=info,taper_control=info,taper_local=info,taper_gateway=info,taper_dispatch=info,taper_store=info".into()
    });
    let base = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter)).with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first one's log.
    let _ = match format {
        LogFormat::Text => base.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => base.json().flatten_event(true).try_init(),
    };
}
