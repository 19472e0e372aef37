//! The house's walls: which crate may use which, read from `cargo metadata`. See ARCHITECTURE.md.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// Every crate with the crates of ours that it may use. What is not listed is not allowed.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("runtimes", &["model"]),
    ("autoscaler", &["model"]),
    ("medium", &["model"]),
    ("trust", &[]),
    ("store", &["model", "medium"]),
    ("provider", &["model"]),
    ("queue", &["model", "medium", "trust"]),
    ("watchdog", &["model"]),
    ("local", &["model", "provider", "watchdog", "runtimes"]),
    ("dispatch", &["model", "provider"]),
    ("jetstream", &["model", "medium", "queue", "trust"]),
    ("control", &["model", "store", "provider", "autoscaler", "queue"]),
    ("trigger", &["model", "store", "queue"]),
    ("gateway", &["model", "store", "dispatch", "queue", "trust"]),
    (
        "server",
        &[
            "model",
            "store",
            "provider",
            "watchdog",
            "local",
            "dispatch",
            "queue",
            "jetstream",
            "control",
            "trigger",
            "gateway",
            "autoscaler",
        ],
    ),
    ("cli", &["model", "server", "runtimes", "autoscaler", "trust"]),
    ("bench", &["autoscaler", "model", "store"]),
];

fn metadata() -> Value {
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let out = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("cargo metadata is JSON")
}

#[test]
fn no_arrow_runs_where_it_must_not() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() >= 12, "the workspace has its rooms");
    for package in packages {
        let name = package["name"].as_str().unwrap().strip_prefix("taper-").expect("every crate is called taper-…");
        let may =
            allowed.get(name).unwrap_or_else(|| panic!("crate `{name}` is new: say in tests/house.rs what it may use"));
        for dependency in package["dependencies"].as_array().unwrap() {
            // Tests may look at more than the code they test; what ships may not.
            if dependency["kind"] == "dev" {
                continue;
            }
            if let Some(target) = dependency["name"].as_str().unwrap().strip_prefix("taper-") {
                assert!(may.contains(&target), "`{name}` must not use `{target}`; ARCHITECTURE.md says why");
            }
        }
    }
}

#[test]
fn every_dependency_is_declared_once() {
    for package in metadata()["packages"].as_array().unwrap() {
        let manifest = std::fs::read_to_string(package["manifest_path"].as_str().unwrap()).unwrap();
        let mut inside = false;
        for line in manifest.lines() {
            if line.starts_with('[') {
                inside = line.contains("dependencies");
            } else if inside && line.contains('=') {
                assert!(
                    line.contains("workspace = true"),
                    "{}: `{line}` is declared outside [workspace.dependencies]",
                    package["name"]
                );
            }
        }
    }
}

#[test]
fn the_pure_rooms_stay_pure() {
    for (name, banned) in [
        ("taper-autoscaler", &["tokio", "hyper", "rusqlite", "libc", "rustix"][..]),
        ("taper-model", &["hyper", "rusqlite", "libc", "rustix", "tokio-util"][..]),
        ("taper-runtimes", &["tokio", "libc", "rustix"][..]),
    ] {
        let metadata = metadata();
        let package =
            metadata["packages"].as_array().unwrap().iter().find(|p| p["name"] == name).expect("the room exists");
        for dependency in package["dependencies"].as_array().unwrap() {
            let dep = dependency["name"].as_str().unwrap();
            assert!(dependency["kind"] == "dev" || !banned.contains(&dep), "{name} does no I/O: it must not use {dep}");
        }
    }
}

#[test]
fn no_file_outgrows_its_room() {
    fn walk(dir: &std::path::Path, out: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let mut files = Vec::new();
    for room in ["crates", "runtimes", "tests", "bench"] {
        walk(&std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(room), &mut files);
    }
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().count();
        assert!(lines <= 800, "{} has {lines} lines; 800 is the limit", file.display());
        assert!(text.starts_with("//!") || text.starts_with("#!"), "{} does not say what it owns", file.display());
    }
}
