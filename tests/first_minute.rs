//! The first minute, as the README tells it, and every command by hand.

use crate::platform::{Platform, text};

fn example(name: &str) -> String {
    format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn up_deploys_what_it_is_given_and_answers() {
    let platform = Platform::start_with(&[&example("hello.py")]);
    platform.until("hello is deployed", || platform.call("hello", b"world").status == 200);
    let answer = platform.call("hello", b"world");
    assert_eq!(answer.text(), "Hello, world!\n");
    assert_eq!(answer.header("x-taper-start"), "warm");
    assert!(!answer.header("x-call-id").is_empty() && answer.header("server-timing").contains("invoke"));
    assert!(platform.said().contains("the CLI is "), "{}", platform.said());
}

#[test]
fn every_example_runs_as_its_text_says() {
    let platform = Platform::start();
    for (file, name) in [("hello.py", "hello"), ("greet.mjs", "greet"), ("words.py", "words"), ("count.sh", "count")] {
        let url = platform.ok(&["deploy", &example(file)]);
        assert_eq!(url.trim_end().lines().last().unwrap(), format!("{}/function/{name}", platform.url), "{file}");
    }
    assert_eq!(platform.call("hello", b"").text(), "Hello, stranger!\n");
    let greeting = platform.request("GET", "/function/greet?name=Ada", &[], b"");
    assert_eq!((greeting.status, greeting.header("content-type")), (200, "application/json"));
    assert!(greeting.text().contains(r#""hello":"Ada""#), "{}", greeting.text());
    assert_eq!(platform.call("words", b"abc def").text(), "cba\nfed\n");
    assert_eq!(platform.call("count", b"one two three").text().trim(), "3 words by POST");

    platform.ok(&["deploy", "-f", &example("functions.yaml")]);
    assert_eq!(platform.call("reverse", b"live").text(), "evil\n");
    assert_eq!(platform.call("upper", b"quiet").text(), "QUIET");
    let clock = platform.request("GET", "/function/clock", &[], b"");
    assert_eq!(clock.header("content-type"), "text/event-stream");
    assert_eq!(clock.text(), "data: tick 0\n\ndata: tick 1\n\ndata: tick 2\n\n");
}

#[test]
fn the_commands_by_hand() {
    let platform = Platform::start();
    platform.ok(&["deploy", &example("hello.py"), "--label", "team=a", "--env", "X=1"]);
    assert_eq!(platform.ok(&["invoke", "hello", "-d", "Ada"]), "Hello, Ada!\n");
    assert!(platform.ok(&["list"]).contains("hello"));
    let list: serde_json::Value = serde_json::from_str(&platform.ok(&["list", "-o", "json"])).unwrap();
    assert_eq!(list[0]["metadata"]["name"], "hello");
    assert_eq!(list[0]["status"]["latestReadyRevision"], "hello-00001");
    let shown = platform.ok(&["describe", "hello"]);
    assert!(shown.contains("hello-00001") && shown.contains("python3 (handler)"), "{shown}");
    let yaml = platform.ok(&["describe", "hello", "-o", "yaml"]);
    assert!(yaml.contains("kind: Function"), "{yaml}");
    let list = platform.ok(&["list", "-o", "yaml"]);
    for (name, shown) in [("one.yaml", yaml), ("all.yaml", list)] {
        platform.ok(&["deploy", "-f", &platform.file(name, &shown)]);
    }
    assert!(platform.ok(&["describe", "hello"]).contains("hello-00001"), "what was shown says nothing new");
    platform.ok(&["scale", "hello", "2"]);
    platform.until("two instances", || platform.instances("hello") == 2);
    platform.ok(&["scale", "hello", "0"]);
    platform.until("none", || platform.instances("hello") == 0);
    assert_eq!(platform.ok(&["invoke", "hello", "-d", "again"]), "Hello, again!\n", "the next call starts it again");
    assert!(platform.ok(&["version"]).contains("platform"));
    let versions: serde_json::Value = serde_json::from_str(&platform.ok(&["version", "-o", "json"])).unwrap();
    assert_eq!(versions["version"], versions["platform"]["version"]);
    assert!(platform.ok(&["completions", "bash"]).contains("taper"));
    assert!(platform.ok(&["doctor"]).contains("cgroup"));
    assert!(platform.fails(&["delete", "nobody", "hello"]).contains("nobody"), "and hello is deleted all the same");
    assert!(platform.fails(&["describe", "hello"]).contains("hello"));
    assert_eq!(platform.call("hello", b"").status, 404);

    let typo = platform.taper(&["lsit"]);
    assert_eq!(typo.status.code(), Some(2));
    assert!(text(&typo.stderr).contains("list"), "{}", text(&typo.stderr));
}

#[test]
fn logs_show_what_a_function_wrote() {
    let platform = Platform::start();
    let file = platform.file("noisy.py", "import sys\ndef handle(req):\n    print('out', req)\n    print('err', req, file=sys.stderr)\n    return 'ok'\n");
    platform.ok(&["deploy", &file]);
    for n in 0..3 {
        assert_eq!(platform.call("noisy", n.to_string().as_bytes()).text(), "ok");
    }
    platform.until("the lines arrive", || platform.ok(&["logs", "noisy"]).matches("err 2").count() == 1);
    let logs = platform.ok(&["logs", "noisy"]);
    for n in 0..3 {
        assert!(logs.contains(&format!("out {n}")) && logs.contains(&format!("err {n}")), "{logs}");
    }
    assert_eq!(platform.ok(&["logs", "noisy", "--tail", "1"]).lines().count(), 1);
    assert!(platform.ok(&["logs", "noisy", "--since", "1h"]).contains("out 0"));
    assert!(platform.fails(&["logs", "noisy", "--since", "yesterday"]).contains("`2h`"));
}

#[test]
fn secrets_are_files_in_the_instance_and_never_shown() {
    let platform = Platform::start();
    let file = platform.file(
        "peek.py",
        "def handle(req):\n    return open('/var/openfaas/secrets/api-key').read() + open('/run/secrets/api-key').read()\n",
    );
    assert!(platform.fails(&["deploy", &file, "--secret", "api-key"]).contains("api-key"), "a secret must exist first");
    platform.ok(&["secret", "create", "api-key", "--from-literal", "s3cr3t"]);
    platform.ok(&["deploy", &file, "--secret", "api-key"]);
    assert_eq!(platform.call("peek", b"").text(), "s3cr3ts3cr3t");
    assert!(platform.ok(&["secret", "list"]).contains("api-key"));
    for arguments in
        [&["describe", "peek", "-o", "json"][..], &["list", "-o", "yaml"], &["secret", "list", "-o", "json"]]
    {
        assert!(!platform.ok(arguments).contains("s3cr3t"), "{arguments:?}");
    }
    assert!(!platform.said().contains("s3cr3t"));
}

#[test]
fn an_ordinary_user_has_a_platform_too() {
    let mut platform = Platform::start_as_ordinary_user();
    let file = platform.file("who.py", "import os\ndef handle(req):\n    try:\n        os.listdir('/root')\n        return 'saw the host'\n    except OSError:\n        return 'user ' + str(os.getuid() != 0)\n");
    platform.ok(&["deploy", &file]);
    assert_eq!(platform.call("who", b"").text(), "user True");
    platform.ok(&["deploy", &example("greet.mjs")]);
    platform.ok(&["deploy", "--name", "upper", "--command", "tr a-z A-Z"]);
    assert_eq!(platform.call("upper", b"quiet").text(), "QUIET");
    platform.ok(&["scale", "who", "0"]);
    platform.until("zero", || platform.instances("who") == 0);
    assert_eq!(platform.call("who", b"").text(), "user True");
    assert!(platform.stop().0.success());
    assert!(crate::crash::processes_of(&platform).is_empty());
}
