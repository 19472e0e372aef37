//! OpenFaaS's stack files: deployed by our CLI, called, and shown to OpenFaaS's clients as they were written.

use serde_json::{Value, json};

use crate::platform::{Platform, text};

/// A function as OpenFaaS's clients see it.
fn shown(platform: &Platform, name: &str) -> Value {
    let password = std::fs::read_to_string(platform.data().join("admin-password")).unwrap();
    let login = format!(
        "Basic {}",
        base64::Engine::encode(&base64::prelude::BASE64_STANDARD, format!("admin:{}", password.trim()))
    );
    let answer = platform.request("GET", &format!("/system/function/{name}"), &[("authorization", &login)], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

/// A function's spec as the platform has it.
fn spec(platform: &Platform, name: &str) -> Value {
    let shown: Value = serde_json::from_str(&platform.ok(&["describe", name, "-o", "json"])).unwrap();
    shown["spec"].clone()
}

#[test]
fn the_example_does_what_it_says() {
    let platform = Platform::start();
    let file = format!("{}/../../examples/openfaas/stack.yml", env!("CARGO_MANIFEST_DIR"));
    let urls = platform.ok(&["deploy", "-f", &file]);
    let expected: String = ["greet", "total", "count"].map(|n| format!("{}/function/{n}\n", platform.url)).concat();
    assert_eq!(urls, expected, "in the file's order");

    assert_eq!(platform.call("greet", b"Ada").text(), "Hello, Ada!");
    let answer = platform.call("greet?name=Bob", b"");
    assert_eq!((answer.text().as_str(), answer.header("content-type")), ("Hello, Bob!", "text/plain"));
    assert!(answer.header("x-served-from").starts_with("greet-00001"), "{}", answer.header("x-served-from"));

    let order = br#"{"items": [{"price": 2.5, "count": 2}, {"price": 1, "count": 1}]}"#;
    let answer = platform.request("POST", "/function/total", &[("content-type", "application/json")], order);
    assert_eq!((answer.status, answer.text().as_str()), (201, r#"{"total":6}"#));
    let answer = platform.call("total", b"words");
    assert_eq!((answer.status, answer.text().as_str()), (422, "`items` is not a list"));

    assert_eq!(platform.call("count", b"one two three").text().trim(), "3");

    // Labels, limits and annotations are acted on as when faas-cli sends them.
    assert_eq!(spec(&platform, "greet")["scale"], json!({"min": 0, "zeroAfter": "5m"}));
    assert_eq!(spec(&platform, "count")["scale"], json!({"min": 1, "max": 2}));
    assert_eq!(spec(&platform, "total")["scale"]["min"], 1, "as through OpenFaaS's face");
    assert_eq!(spec(&platform, "greet")["resources"]["memory"], "128Mi");
    // And shown to its clients as they were written, without what was only between us and the platform.
    let greet = shown(&platform, "greet");
    assert_eq!(
        (&greet["image"], &greet["limits"]),
        (&json!("docker.io/library/greet:latest"), &json!({"memory": "128Mi"}))
    );
    assert_eq!(greet["envVars"], json!({"greeting": "Hello", "ending": "!"}));
    assert_eq!(greet["labels"]["com.openfaas.scale.zero-duration"], "5m");
    assert!(!greet.to_string().contains("taper.dev/"), "{greet}");
    assert_eq!(shown(&platform, "total")["annotations"]["topic"], "orders.created");
    assert!(platform.ok(&["deploy", "-f", &file, "--filter", "co*"]).ends_with("/function/count\n"));
    assert_eq!(platform.call("count", b"again").text().trim(), "1");
}

#[test]
fn variables_files_secrets_and_flags() {
    let platform = Platform::start();
    platform.file("env.yml", "environment: {B: env-file, C: env-file, D: env-file}\n");
    platform.file(
        "show/handler.py",
        "import os\ndef handle(req):\n    return [os.environ.get(k) for k in 'ABCDE'] + [open('/var/openfaas/secrets/api-key').read()]\n",
    );
    // The harness sets this one.
    let stack = platform.file(
        "stack.yml",
        "provider: {name: openfaas, gateway: 'http://127.0.0.1:1'}
functions:
  show:
    lang: python3
    handler: show
    image: ${XDG_CONFIG_HOME}/show:${TAG:-1.0}
    environment: {A: '${NO_SUCH_THING:-default}', B: stack, E: '$${LITERAL}'}
    environment_file: [env.yml]
    secrets: [api-key]
",
    );
    let refused = platform.fails(&["deploy", "-f", &stack]);
    assert!(
        refused.contains("show.default was not deployed") && refused.contains("taper secret create api-key"),
        "{refused}"
    );
    platform.ok(&["secret", "create", "api-key", "--from-literal", "s3cret"]);
    platform.ok(&["deploy", "-f", &stack, "-e", "D=flag", "--label", "l=flag", "--annotation", "a=flag"]);
    assert_eq!(platform.call("show", b"").text(), r#"["default","env-file","env-file","flag","${LITERAL}","s3cret"]"#);
    let seen = shown(&platform, "show");
    assert_eq!(seen["image"], format!("{}/show:1.0", platform.dir.path().join("config").display()));
    assert_eq!((&seen["labels"]["l"], &seen["annotations"]["a"]), (&json!("flag"), &json!("flag")));
    platform.ok(&["deploy", "-f", &stack, "--envsubst=false"]);
    assert_eq!(shown(&platform, "show")["image"], "${XDG_CONFIG_HOME}/show:${TAG:-1.0}");
}

#[test]
fn one_that_fails_does_not_keep_the_others() {
    let platform = Platform::start();
    platform.file("broken/handler.py", "def handle(req):\n    return 1\nraise ValueError('no such city')\n");
    let stack = platform.file(
        "stack.yml",
        "functions:
  image-alone: {image: example.com/nothing:1}
  broken: {lang: python3, handler: broken}
  upper: {image: alpine, fprocess: tr a-z A-Z, typo: 1}
",
    );
    let out = platform.taper(&["deploy", "-f", &stack]);
    let stderr = text(&out.stderr);
    let expected = (Some(1), format!("{}/function/upper\n", platform.url));
    assert_eq!((out.status.code(), text(&out.stdout)), expected, "{stderr}");
    for part in [
        "`functions.upper.typo` is not known here",
        "image-alone.default was not deployed",
        "broken.default was not deployed",
        "no such city",
        "2 of 3 functions of",
        "were not deployed: image-alone.default, broken.default",
    ] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    assert_eq!(platform.call("upper", b"abc").text(), "ABC");
    assert_eq!(shown(&platform, "upper")["envProcess"], "tr a-z A-Z");
}

#[test]
fn dockerfiles_run_without_being_built() {
    let platform = Platform::start();
    platform.file(
        "server/index.py",
        "from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length'])).upper()
        self.send_response(201)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
HTTPServer(('127.0.0.1', 5000), Handler).serve_forever()
",
    );
    platform.file(
        "server/Dockerfile",
        "FROM ghcr.io/openfaas/of-watchdog:0.11.6 AS watchdog
FROM python:3
COPY --from=watchdog /fwatchdog /usr/bin/fwatchdog
WORKDIR /home/app/
COPY index.py .
ENV fprocess=\"python3 /home/app/index.py\" \\
    mode=\"http\" upstream_url=\"http://127.0.0.1:5000\"
CMD [\"fwatchdog\"]
",
    );
    platform.file(
        "both/Dockerfile",
        "FROM ghcr.io/openfaas/classic-watchdog:0.3.9 as watchdog\nFROM alpine\nCOPY run.sh /home/app/\nENV fprocess=\"/home/app/run.sh a\"\n",
    );
    platform.file("both/run.sh", "#!/bin/sh\necho \"out $1 $X\"\necho err >&2\n");
    platform.file(
        "built/Dockerfile",
        "FROM golang AS b\nRUN go build -o /app .\nFROM alpine\nCOPY --from=b /app /app\nENV fprocess=/app\n",
    );
    let stack = platform.file(
        "stack.yml",
        "functions:
  server: {lang: dockerfile, handler: ./server}
  both: {lang: Dockerfile, handler: ./both, environment: {X: stack}}
",
    );
    platform.ok(&["deploy", "-f", &stack]);
    let answer = platform.call("server", b"abc");
    assert_eq!((answer.status, answer.text().as_str()), (201, "ABC"));
    let mut lines: Vec<_> = platform.call("both", b"").text().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["err", "out a stack"], "the first watchdog answers with both");
    let stack = platform.file("built.yml", "functions:\n  built: {lang: dockerfile, handler: ./built}\n");
    let refused = platform.fails(&["deploy", "-f", &stack]);
    assert!(
        refused.contains("line 2: functions.built.handler") && refused.contains("nothing is built here"),
        "{refused}"
    );
}

#[test]
fn bad_stacks_are_refused_with_file_and_line() {
    let platform = Platform::start();
    platform.file("two/a.py", "");
    platform.file("two/b.py", "");
    let bomb: String = ('b'..='k')
        .map(|c| format!("{c}: &{c} [{}]\n", vec![format!("*{}", char::from(c as u8 - 1)); 10].join(",")))
        .collect();
    let long = format!("functions:\n  a: {{image: x}}\n{}", "# and more\n".repeat(1 << 20));
    for (stack, parts) in [
        ("functions:\n  a: {lang: cobol, handler: two}\n", vec!["line 2: functions.a.lang: `cobol`", "a.py, b.py"]),
        (
            "functions:\n  a:\n    lang: python3\n    handler: ./gone\n",
            vec!["line 4: functions.a.handler", "there is no folder"],
        ),
        ("functions:\n\ta: {image: x}\n", vec!["line 2", "tab"]),
        ("a: &a [*a]\nfunctions: *a\n", vec!["line 1"]),
        (
            &format!("a: &a [x]\n{bomb}functions: {{a: {{image: x, constraints: *k}}}}\n"),
            vec!["line ", "aliases written out"],
        ),
        (&long, vec!["larger than 1 MiB"]),
        ("provider: {name: openfaas}\nfunctions:\n  a: {image: '${x'}\n", vec!["line 3: `${x", "${NAME:-default}"]),
        ("functions: {a: {image: [x]}}\n", vec!["line 1"]),
    ] {
        let file = platform.file("stack.yml", stack);
        let refused = platform.fails(&["deploy", "-f", &file]);
        assert!(refused.contains("stack.yml"), "{refused}");
        assert!(parts.iter().all(|part| refused.contains(part)), "{parts:?}: {refused}");
    }
    assert_eq!(platform.ok(&["list", "-o", "json"]).trim(), "[]", "nothing of them was deployed");
    assert!(platform.fails(&["deploy", &platform.file("stack.yml", "")]).contains("taper deploy -f "));
    let out = platform.taper_in(
        platform.dir.path(),
        &["deploy", "-f", "-"],
        b"functions:\n  cat: {image: alpine, fprocess: cat}\n",
    );
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(platform.call("cat", b"from standard input").text(), "from standard input");
}
