//! Commands beside deploying and calling: logging in, logs on a terminal, namespaces, keys, and calls that are handed over. What the platform
//! does with them is in other modules; here is what is asked of it and what is said.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    thread::JoinHandle,
};

use crate::platform::{Platform, text};

#[test]
fn passwords_are_checked_before_they_are_remembered() {
    let platform = Platform::start();
    let password = std::fs::read(platform.data().join("admin-password")).unwrap();
    let login = |arguments: &[&str], password: &[u8]| {
        let out = platform.taper_in(platform.dir.path(), &[&["login"], arguments].concat(), password);
        (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
    };
    let remembered = platform.dir.path().join("config/taper/credentials.json");
    std::fs::remove_file(&remembered).unwrap();
    assert!(platform.fails(&["list"]).contains("taper login --password-stdin http://"));
    let (status, _, stderr) = login(&["--password-stdin"], b"wrong\n");
    assert!(status == 1 && stderr.contains("does not know this user and password"), "{stderr}");
    assert!(login(&["-u", "root", &platform.url], &password).2.contains("does not know"));
    assert!(login(&[], b"").2.contains("no password"));
    assert!(!remembered.exists());
    let (status, stdout, stderr) = login(&["--password-stdin"], &password);
    assert!(status == 0 && stdout.contains("logged in to http://"), "{stderr}");
    assert_eq!(std::fs::metadata(&remembered).unwrap().permissions().mode() & 0o777, 0o600);
    platform.ok(&["list"]);
}

#[test]
fn a_terminal_is_shown_where_a_line_comes_from_and_obeys_none() {
    let platform = Platform::start();
    let file = platform.file("esc.py", "def handle(req):\n    print('\\x1b[31mred\\x1b[0m')\n    return ''\n");
    platform.ok(&["deploy", &file]);
    platform.call("esc", b"");
    platform.until("the line arrives", || platform.ok(&["logs", "esc"]) == "\u{1b}[31mred\u{1b}[0m\n");
    let (success, seen) = platform.taper_on_a_terminal(&["logs", "esc"]);
    assert!(success && seen.contains("Z 00001-") && seen.contains(r"\u{1b}[31mred\u{1b}[0m"), "{seen}");
    let instance = seen.split_whitespace().nth(1).unwrap();
    assert!(platform.ok(&["logs", "esc", "--instance", instance]).contains("red"));
    assert_eq!(platform.ok(&["logs", "esc", "--instance", "00001-other"]), "");
    assert!(platform.fails(&["logs", "esc", "--instance", "a b&c"]).contains("no instance's name"));
}

/// A platform that gives these answers, one a connection, and hands over what it was asked.
fn answering(answers: &'static [(&'static str, &'static str)]) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serve = move |(head, body): &(&str, &str)| {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        let (mut asked, mut size) = (String::new(), 0);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let lower = line.to_ascii_lowercase();
            size = lower.strip_prefix("content-length: ").map_or(size, |n| n.trim().parse().unwrap());
            if lower.starts_with("transfer-encoding: chunked") {
                size = usize::MAX;
            }
            match line.trim() {
                "" => break,
                line if asked.is_empty() => asked.push_str(line.trim_end_matches(" HTTP/1.1")),
                _ => {}
            }
        }
        let mut body_in = String::new();
        if size == usize::MAX {
            // Chunks end with an empty one; what they hold is all that is wanted here.
            for line in stream.by_ref().lines().map(Result::unwrap) {
                match line.as_str() {
                    "0" => break,
                    line if usize::from_str_radix(line, 16).is_err() => body_in.push_str(line),
                    _ => {}
                }
            }
        } else {
            stream.by_ref().take(size as u64).read_to_string(&mut body_in).unwrap();
        }
        let length = body.len();
        let reply = format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
        stream.get_mut().write_all(reply.as_bytes()).unwrap();
        format!("{asked} {body_in}").trim().to_owned()
    };
    (url, std::thread::spawn(move || answers.iter().map(serve).collect()))
}

#[test]
fn namespaces_keys_and_calls_handed_over() {
    let platform = Platform::start();
    let (url, asked) = answering(&[
        ("201 Created", "{}"),
        (
            "200 OK",
            r#"[{"name":"default","labels":{},"annotations":{}},{"name":"team","labels":{"b":"2","owner":"web"},"annotations":{}}]"#,
        ),
        ("200 OK", r#"{"name":"team","labels":{"owner":"web"},"annotations":{"budget":"small"}}"#),
        ("200 OK", r#"{"name":"team","labels":{"owner":"web"},"annotations":{},"limits":{"rate":9.0,"burst":20}}"#),
        ("200 OK", "{}"),
        ("200 OK", r#"{"name":"team","labels":{"owner":"web"},"annotations":{},"limits":{"rate":9.0,"burst":20}}"#),
        ("200 OK", "{}"),
        ("409 Conflict", r#"{"error":"in_use","message":"namespace `team` still has 2 functions"}"#),
        ("200 OK", r#"{"secrets":3}"#),
        ("202 Accepted\r\nx-call-id: order-4711\r\nlocation: /v1/namespaces/team/invocations/0198-af", ""),
        ("202 Accepted\r\nx-call-id: order-4712", ""),
    ]);
    let run = |arguments: &[&str]| {
        let out = platform.taper(&[&["--url", &url], arguments].concat());
        (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
    };
    let (status, stdout, _) = run(&["namespace", "create", "team", "--label", "owner=web", "--label", "b=2"]);
    assert_eq!((status, stdout.as_str()), (0, "namespace team created\n"));
    let (_, stdout, _) = run(&["ns", "ls"]);
    assert_eq!(
        stdout,
        "NAME     LABELS         ANNOTATIONS  LIMITS\ndefault  -              -            -\nteam     b=2,owner=web  -            -\n"
    );
    let (_, stdout, _) = run(&["namespace", "describe", "team"]);
    assert_eq!(stdout, "Name         team\nLabels       owner=web\nAnnotations  budget=small\nLimits       -\n");
    assert_eq!(run(&["namespace", "update", "team", "--annotation", "budget=small"]).1, "namespace team updated\n");
    assert_eq!(run(&["namespace", "update", "team", "--burst", "30"]).1, "namespace team updated\n");
    let (status, _, stderr) = run(&["namespace", "delete", "team"]);
    assert_eq!((status, stderr.as_str()), (1, "taper: namespace `team` still has 2 functions\n"));
    assert_eq!(run(&["secret", "rotate-key"]).1, "3 secrets are sealed with a new key\n");
    let (status, stdout, stderr) = run(&["invoke", "bill/eu", "--async", "-d", "x", "-n", "team"]);
    assert_eq!((status, stdout.as_str()), (0, "0198-af\n"), "the id alone");
    assert!(stderr.contains("`taper invocations show 0198-af -n team`"), "{stderr}");
    assert_eq!(run(&["invoke", "bill.team", "--async", "-d", "x"]).1, "order-4712\n", "of one who keeps no records");
    assert_eq!(
        asked.join().unwrap(),
        [
            r#"POST /v1/namespaces {"annotations":{},"labels":{"b":"2","owner":"web"},"name":"team"}"#,
            "GET /v1/namespaces",
            "GET /v1/namespaces/team",
            "GET /v1/namespaces/team",
            r#"PUT /v1/namespaces/team {"annotations":{"budget":"small"},"labels":{},"limits":{"burst":20,"rate":9.0},"name":"team"}"#,
            "GET /v1/namespaces/team",
            r#"PUT /v1/namespaces/team {"annotations":{},"labels":{"owner":"web"},"limits":{"burst":30,"rate":9.0},"name":"team"}"#,
            "DELETE /v1/namespaces/team",
            "POST /v1/secrets/rotate-key",
            "POST /async-function/bill.team/eu x",
            "POST /async-function/bill.team x",
        ]
    );
    // What is typed wrongly never gets that far.
    assert_eq!(run(&["namespace", "crate", "x"]).0, 2);
    assert!(run(&["namespace", "create", "Team"]).2.contains("try `team`"));
    assert!(run(&["namespace", "create", "x", "--label", "y"]).2.contains("--label y: write NAME=VALUE"));
}
