//! Folders that declare dependencies: installed at the deploy, in a sandbox, in sight of whoever deploys, once per content; and
//! found by the code. Everything that is installed here lies in the folder itself: no registry is asked.

use std::{path::Path, process::Command};

use crate::platform::{Platform, text};

/// A wheel with one module of one function, `greeting.greet`, that says this word.
fn wheel(folder: &Path, word: &str) {
    let program = "
import sys, zipfile
info = 'greeting-1.0.dist-info/'
files = {
    'greeting.py': f'def greet(name):\\n    return \"{sys.argv[2]} \" + name\\n',
    info + 'METADATA': 'Metadata-Version: 2.1\\nName: greeting\\nVersion: 1.0\\n',
    info + 'WHEEL': 'Wheel-Version: 1.0\\nGenerator: hand\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n',
}
files[info + 'RECORD'] = ''.join(f'{name},,\\n' for name in [*files, info + 'RECORD'])
with zipfile.ZipFile(sys.argv[1] + '/greeting-1.0-py3-none-any.whl', 'w') as wheel:
    for name, content in files.items():
        wheel.writestr(name, content)
";
    std::fs::create_dir_all(folder).unwrap();
    let made = Command::new("python3").args(["-c", program]).arg(folder).arg(word).status().unwrap();
    assert!(made.success());
}

/// Deploys a folder on a terminal, and gives what was to be seen there.
fn deploy(platform: &Platform, arguments: &[&str]) -> String {
    let (success, seen) = platform.taper_on_a_terminal(&[&["deploy"], arguments].concat());
    assert!(success, "{seen}\n{}", platform.said());
    seen
}

const INSTALLS: &str = "installing dependencies";

#[test]
fn a_wheel_in_the_folder_is_installed_in_sight_and_once() {
    let platform = Platform::start();
    let dir = platform.dir.path().join("greets");
    let place = dir.display().to_string();
    let code = |mark: &str| {
        platform.file(
            "greets/handler.py",
            &format!("import greeting\ndef handle(req):\n    return greeting.greet(req) + '{mark}'\n"),
        );
    };
    code("!");
    platform.file("greets/requirements.txt", "--no-index\n--find-links ./wheels\ngreeting==1.0\n");
    wheel(&dir.join("wheels"), "hello");
    let seen = deploy(&platform, &[&place]);
    assert!(seen.contains(INSTALLS) && seen.contains("Successfully installed greeting-1.0"), "{seen}");
    assert_eq!(platform.call("greets", b"Ada").text(), "hello Ada!");
    // The same folder again, as another revision.
    let seen = deploy(&platform, &[&place, "--env", "X=1"]);
    assert!(seen.contains("greets-00002") && !seen.contains(INSTALLS), "{seen}");
    assert_eq!(platform.call("greets", b"Bob").text(), "hello Bob!");
    // The requirements name files of the folder, so other files may mean another result.
    wheel(&dir.join("wheels"), "goodbye");
    code("?");
    assert!(deploy(&platform, &[&place]).contains(INSTALLS));
    assert_eq!(platform.call("greets", b"Cy").text(), "goodbye Cy?");
    // In a pipe it is quiet: the URL alone.
    platform.file("greets/requirements.txt", "--no-index\n--find-links wheels\ngreeting\n");
    let out = platform.taper(&["deploy", &place]);
    assert_eq!(text(&out.stdout), format!("{}/function/greets\n", platform.url));
    assert!(!text(&out.stderr).contains(INSTALLS), "{}", text(&out.stderr));
}

#[test]
fn changed_code_with_the_same_requirements_installs_nothing() {
    let mut platform = Platform::start();
    let place = platform.dir.path().join("marker").display().to_string();
    // One that is for another Python: the tool runs, and asks nobody.
    platform.file("marker/requirements.txt", "nothing-for-us; python_version < '3'\n");
    let deploy_it = |platform: &Platform, word: &str| {
        platform.file("marker/handler.py", &format!("def handle(req):\n    return '{word}'\n"));
        let seen = deploy(platform, &[&place]);
        assert_eq!(platform.call("marker", b"").text(), word);
        seen
    };
    let seen = deploy_it(&platform, "one");
    assert!(seen.contains(INSTALLS) && seen.contains("Ignoring nothing-for-us"), "{seen}");
    assert!(!deploy_it(&platform, "two").contains(INSTALLS));
    // Not after a restart either.
    platform.stop();
    platform.up();
    assert!(!deploy_it(&platform, "three").contains(INSTALLS));
    platform.file("marker/requirements.txt", "nothing-for-us; python_version < '3.1'\n");
    assert!(deploy_it(&platform, "four").contains(INSTALLS));
}

#[test]
fn a_requirement_that_does_not_exist_fails_the_deploy_in_the_tool_s_words() {
    let platform = Platform::start();
    let place = platform.dir.path().join("fails").display().to_string();
    platform.file("fails/handler.py", "def handle(req):\n    return 'one'\n");
    deploy(&platform, &[&place]);
    platform.file("fails/handler.py", "def handle(req):\n    return 'two'\n");
    platform.file("fails/requirements.txt", "--no-index\nno-such-wheel==2.7\n");
    for _ in 0..2 {
        let said = platform.fails(&["deploy", &place]);
        assert!(said.contains("No matching distribution found for no-such-wheel==2.7"), "{said}");
    }
    assert_eq!(platform.call("fails", b"").text(), "one", "what served before serves on");
    let shown = platform.ok(&["describe", "fails"]);
    assert!(shown.contains("no-such-wheel"), "{shown}");
    platform.file("fails/requirements.txt", "# none after all\n");
    deploy(&platform, &[&place]);
    assert_eq!(platform.call("fails", b"").text(), "two");

    platform.file("missing/handler.js", "exports.handle = () => 'x';\n");
    platform.file(
        "missing/package.json",
        r#"{"name": "missing", "version": "1.0.0", "dependencies": {"absent": "file:./absent.tgz"}}"#,
    );
    let said = platform.fails(&["deploy", &platform.dir.path().join("missing").display().to_string()]);
    assert!(said.contains("npm") && said.contains("absent.tgz"), "{said}");
}

/// A folder with a package of its own, as `npm install ./lib` leaves it, and two functions that use it.
fn node_folder(platform: &Platform) -> String {
    for (name, content) in [
        (
            "package.json",
            r#"{"name": "uses", "version": "1.0.0", "main": "handler.cjs", "dependencies": {"greeting": "file:lib"}}"#,
        ),
        (
            "package-lock.json",
            r#"{"name": "uses", "version": "1.0.0", "lockfileVersion": 3, "requires": true, "packages": {
                "": {"name": "uses", "version": "1.0.0", "dependencies": {"greeting": "file:lib"}},
                "lib": {"name": "greeting", "version": "1.0.0"},
                "node_modules/greeting": {"resolved": "lib", "link": true}}}"#,
        ),
        ("lib/package.json", r#"{"name": "greeting", "version": "1.0.0", "main": "index.cjs"}"#),
        ("lib/index.cjs", "module.exports = (name) => 'hello ' + name;\n"),
        ("handler.cjs", "const greet = require('greeting');\nexports.handle = (name) => greet(name);\n"),
        ("modern.mjs", "import greet from 'greeting';\nexport const handle = (name) => greet(name);\n"),
        (
            "server.cjs",
            "const greet = require('greeting');\nrequire('http').createServer((q, a) => a.end(greet(q.url))).listen(process.env.PORT, '127.0.0.1');\n",
        ),
    ] {
        platform.file(&format!("uses/{name}"), content);
    }
    platform.dir.path().join("uses").display().to_string()
}

/// Deploys the folder as three functions and calls each.
fn require_and_import_work(platform: &Platform) {
    let place = node_folder(platform);
    let seen = deploy(platform, &[&place]);
    assert!(seen.contains(INSTALLS) && seen.contains("added 1 package"), "{seen}");
    assert_eq!(platform.call("uses", b"Ada").text(), "hello Ada");
    let seen = deploy(platform, &[&place, "--name", "modern", "--handler", "modern.handle"]);
    assert!(!seen.contains(INSTALLS), "another function of the same folder: {seen}");
    assert_eq!(platform.call("modern", b"Bob").text(), "hello Bob");
    deploy(
        platform,
        &[&place, "--name", "server", "--runtime", "node", "--mode", "http", "--command", "node server.cjs"],
    );
    assert_eq!(platform.call("server/Cy", b"").text(), "hello /Cy");
}

#[test]
fn packages_of_node_are_found_by_require_and_import() {
    require_and_import_work(&Platform::start());
}

#[test]
fn packages_of_node_are_found_without_isolation() {
    require_and_import_work(&Platform::start_with(&["--isolation", "none"]));
}

#[test]
fn an_ordinary_user_s_functions_have_dependencies_too() {
    let platform = Platform::start_as_ordinary_user();
    require_and_import_work(&platform);
    let dir = platform.dir.path().join("greets");
    platform.file("greets/handler.py", "import greeting\ndef handle(req):\n    return greeting.greet(req)\n");
    platform.file("greets/requirements.txt", "--no-index\n--find-links ./wheels\ngreeting\n");
    wheel(&dir.join("wheels"), "hello");
    deploy(&platform, &[&dir.display().to_string()]);
    assert_eq!(platform.call("greets", b"Ada").text(), "hello Ada");
    platform.file("greets/server.py", "import greeting, http.server, os\nclass H(http.server.BaseHTTPRequestHandler):\n    def do_POST(self):\n        self.send_response(200)\n        self.end_headers()\n        self.wfile.write(greeting.greet(self.path).encode())\nhttp.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n");
    deploy(
        &platform,
        &[
            &dir.display().to_string(),
            "--name",
            "server",
            "--runtime",
            "python3",
            "--mode",
            "http",
            "--command",
            "python3 server.py",
        ],
    );
    assert_eq!(platform.call("server/Bob", b"").text(), "hello /Bob");
}
