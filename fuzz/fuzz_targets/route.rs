//! Paths of calls: whatever is accepted names a function, and what the function sees begins with a slash and is the path's own end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taper_gateway::route::parse;

fuzz_target!(|path: &str| {
    if let Ok(target) = parse(path) {
        assert!(target.path.starts_with('/'));
        assert!(path.ends_with(target.path) || target.path == "/");
    }
});
