//! Manifests: what is accepted survives being printed and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taper_model::{
    Manifest,
    manifest::{Resource, line_of},
    route::RouteSpec,
    trigger::TriggerSpec,
};

fuzz_target!(|text: &str| {
    let Ok(all) = Resource::parse_all(text) else { return };
    for (at, resource) in all.into_iter().enumerate() {
        match resource {
            Resource::Function(manifest) => {
                // JSON has no word for what is no number; nor is such a limit or target accepted.
                if manifest.spec.validate().is_err() {
                    continue;
                }
                let printed = serde_json::to_string(&manifest).expect("a manifest can be printed");
                assert_eq!(serde_json::from_str::<Manifest>(&printed).expect("and read again"), *manifest);
            }
            Resource::Route(manifest) => {
                let _ = manifest.spec.validate();
                let printed = serde_json::to_string(&manifest).expect("a manifest can be printed");
                assert_eq!(serde_json::from_str::<Manifest<RouteSpec>>(&printed).expect("and read again"), *manifest);
            }
            Resource::Trigger(manifest) => {
                if let Ok(name) = manifest.function_name()
                    && let Err(why) = manifest.spec.validate(&name.namespace)
                {
                    let _ = line_of(text, at, &why);
                }
                let printed = serde_json::to_string(&manifest).expect("a manifest can be printed");
                assert_eq!(serde_json::from_str::<Manifest<TriggerSpec>>(&printed).expect("and read again"), *manifest);
            }
        }
    }
});
