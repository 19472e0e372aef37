//! Uploaded code: an archive of any bytes unpacks into its folder or is refused; nothing outside is touched.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| taper_local::fuzz_unpack(data));
