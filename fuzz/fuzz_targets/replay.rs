//! The autoscaler's replay: any lines give answers or an error that names the line.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut output = Vec::new();
    if let Err(error) = taper_autoscaler::replay(data, &mut output) {
        assert!(error.to_string().contains("line"), "{error}");
    }
});
