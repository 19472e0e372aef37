//! Uploaded code: an archive of any bytes unpacks into its folder or is refused; nothing beside the folder is made.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let outer = tempfile::tempdir().expect("a folder");
    let inner = outer.path().join("code");
    std::fs::create_dir(&inner).expect("a folder");
    let _ = taper_local::unpack_for_fuzzing(data, &inner);
    assert_eq!(std::fs::read_dir(outer.path()).expect("a folder").count(), 1, "something was made outside");
});
