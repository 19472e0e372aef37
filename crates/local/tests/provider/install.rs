//! Dependencies: installed once, from a wheel and a package that the artifact brings along, without a network.

use std::io::Write;

use taper_model::Runtime;
use taper_provider::{Error, Progress, Provider};

use crate::world::{World, python, text, works};

const PIP: &[&str] = &["python3", "-m", "pip", "--version"];

/// A wheel with one module: a zip archive of stored files.
fn wheel(name: &str, module: &str) -> Vec<u8> {
    let info = format!("{name}-1.0.dist-info");
    let files = [
        (format!("{name}.py"), module.to_owned()),
        (format!("{info}/METADATA"), format!("Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")),
        (
            format!("{info}/WHEEL"),
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_owned(),
        ),
        (format!("{info}/RECORD"), format!("{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")),
    ];
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (path, content) in &files {
        let offset = out.len() as u32;
        let mut crc = flate2::Crc::new();
        crc.update(content.as_bytes());
        let size = (content.len() as u32).to_le_bytes();
        // Version, flags, method, time, date; then the checksum, both sizes, and the lengths of name and extra field.
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 33, 0];
        common.extend(crc.sum().to_le_bytes());
        common.extend([size, size].concat());
        common.extend((path.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        out.write_all(&[b"PK\x03\x04", &common[..], path.as_bytes(), content.as_bytes()].concat()).unwrap();
        let rest = [&[0; 10][..], &offset.to_le_bytes()].concat();
        directory.write_all(&[b"PK\x01\x02\x14\x00", &common[..], &rest, path.as_bytes()].concat()).unwrap();
    }
    let count = (files.len() as u16).to_le_bytes();
    let (size, offset) = ((directory.len() as u32).to_le_bytes(), (out.len() as u32).to_le_bytes());
    out.extend(directory);
    out.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count, &size, &offset, &[0, 0]].concat());
    out
}

async fn lines(mut rx: tokio::sync::mpsc::Receiver<String>) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(line) = rx.recv().await {
        all.push(line);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wheel_is_installed_once_and_found() {
    if !works("a_wheel_is_installed_once_and_found", PIP) {
        return;
    }
    let world = World::start().await;
    let requirements = b"--no-index\n--find-links ./wheels\ngreeting\n";
    let wheel = wheel("greeting", "def greet(name):\n    return 'hello ' + name\n");
    let code = "import greeting\ndef handle(text):\n    return greeting.greet(text)\n";
    let files: [(&str, &[u8]); 3] = [
        ("handler.py", code.as_bytes()),
        ("requirements.txt", requirements),
        ("wheels/greeting-1.0-py3-none-any.whl", &wheel),
    ];
    let revision = world.revision("greets", python(), &files);
    let (progress, rx) = Progress::channel();
    world.local.prepare(&revision, progress).await.unwrap();
    let said = lines(rx).await;
    assert!(said.iter().any(|line| line.contains("Successfully installed greeting-1.0")), "{said:?}");
    assert_eq!(text(&world.one(&revision).await, "world").await, "hello world");

    // The wheel is a part of the artifact, so another artifact is installed anew; the same one is not.
    let (progress, rx) = Progress::channel();
    world.local.prepare(&revision, progress).await.unwrap();
    assert_eq!(lines(rx).await, [""; 0]);
    let wheel = self::wheel("greeting", "def greet(name):\n    return 'goodbye ' + name\n");
    let files = [files[0], files[1], (files[2].0, &wheel)];
    let next = world.revision("greets", python(), &files);
    world.local.prepare(&next, Progress::silent()).await.unwrap();
    assert_eq!(text(&world.one(&next).await, "world").await, "goodbye world");
    world.end().await;
}

/// Says whether what was compiled from a module is there and is what it was compiled from.
const COMPILED: &str = "
import importlib, os, struct
def handle(text):
    module = importlib.import_module(text)
    with open(module.__cached__, 'rb') as file:
        flags, time, size = struct.unpack('<III', file.read(16)[4:])
    found = os.stat(module.__file__)
    return 'unchecked' if flags == 1 else str((time, size) == (int(found.st_mtime), found.st_size))
";

#[tokio::test(flavor = "multi_thread")]
async fn no_start_compiles_what_was_compiled() {
    if !works("no_start_compiles_what_was_compiled", PIP) {
        return;
    }
    let world = World::start().await;
    let large = "def f(a):\n    return a + 1\n\n".repeat(2000);
    let wheel = wheel("greeting", "def greet(name):\n    return 'hello ' + name\n");
    let revision = world.revision(
        "compiled",
        python(),
        &[
            ("handler.py", COMPILED.as_bytes()),
            ("large.py", large.as_bytes()),
            ("inner/deep.py", b"x = 1\n"),
            ("broken.py", b"def handle(:\n"),
            ("requirements.txt", b"--no-index\n--find-links ./wheels\ngreeting\n"),
            ("wheels/greeting-1.0-py3-none-any.whl", &wheel),
        ],
    );
    let instance = world.one(&revision).await;
    assert_eq!(text(&instance, "large").await, "unchecked");
    assert_eq!(text(&instance, "inner.deep").await, "unchecked");
    assert_eq!(text(&instance, "greeting").await, "True");
    // A little code is compiled before anybody notices.
    let small = world.one(&world.python("small", COMPILED)).await;
    let fault = crate::world::invoke(&small, "handler").await.unwrap_err();
    assert!(fault.message.contains("No such file"), "{fault}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_installation_says_why_and_leaves_nothing() {
    if !works("a_failed_installation_says_why_and_leaves_nothing", PIP) {
        return;
    }
    let world = World::start().await;
    let code = b"def handle(text):\n    return text\n";
    let revision = world.revision(
        "fails",
        python(),
        &[("handler.py", code), ("requirements.txt", b"--no-index\nno-such-package-here\n")],
    );
    for _ in 0..2 {
        let Err(Error::Prepare(why)) = world.local.prepare(&revision, Progress::silent()).await else {
            panic!("it is not there")
        };
        assert!(why.contains("No matching distribution found for no-such-package-here"), "{why}");
        assert!(!why.contains("[install]") && !why.contains("fprocess"), "{why}");
    }
    assert_eq!(world.left(), 0);
    let cached: Vec<_> =
        std::fs::read_dir(world.dir.path().join("local/deps")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(cached, ["boot"], "nothing half made is kept");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_called_off_leaves_nothing() {
    if !works("a_build_that_is_called_off_leaves_nothing", PIP) {
        return;
    }
    let world = World::start().await;
    let build = b"[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n";
    let files: [(&str, &[u8]); 4] = [
        ("handler.py", b"def handle(text):\n    return text\n"),
        ("requirements.txt", b"--no-index\n./package\n"),
        ("package/pyproject.toml", build),
        ("package/backend.py", b"import time\ntime.sleep(600)\n"),
    ];
    let revision = world.revision("slow", python(), &files);
    let (progress, mut rx) = Progress::channel();
    let (local, held) = (world.local.clone(), revision.clone());
    let build = tokio::spawn(async move { local.prepare(&held, progress).await });
    while !rx.recv().await.unwrap().contains("Processing") {}
    build.abort();
    assert!(build.await.is_err());
    while world.left() > 0 {
        tokio::task::yield_now().await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_package_is_installed_and_found() {
    if !works("a_node_package_is_installed_and_found", &["npm", "--version"]) {
        return;
    }
    let world = World::start().await;
    let package = br#"{"name": "f", "version": "1.0.0", "dependencies": {"greeting": "file:./greeting-1.0.0.tgz"}}"#;
    let inner = crate::world::pack(&[
        ("package/package.json", br#"{"name": "greeting", "version": "1.0.0", "main": "index.js"}"#),
        ("package/index.js", b"module.exports = (name) => 'hello ' + name;\n"),
    ]);
    let code = b"const greet = require('greeting');\nexports.handle = async (text) => greet(text);\n";
    let spec = taper_model::FunctionSpec {
        runtime: Some(Runtime::Node),
        handler: Some("handler".into()),
        ..Default::default()
    };
    let files: [(&str, &[u8]); 3] = [("handler.js", code), ("package.json", package), ("greeting-1.0.0.tgz", &inner)];
    let revision = world.revision("node", spec, &files);
    world.local.prepare(&revision, Progress::silent()).await.unwrap();
    assert_eq!(text(&world.one(&revision).await, "world").await, "hello world");
    world.end().await;
}
