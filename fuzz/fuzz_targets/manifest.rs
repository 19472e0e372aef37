//! Manifests: what is accepted survives being printed and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taper_model::Manifest;

fuzz_target!(|text: &str| {
    let Ok(all) = Manifest::parse_all(text) else { return };
    for manifest in all {
        let _ = manifest.spec.validate();
        let printed = serde_json::to_string(&manifest).expect("a manifest can be printed");
        assert_eq!(serde_json::from_str::<Manifest>(&printed).expect("and read again"), manifest);
    }
});
