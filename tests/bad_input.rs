//! Bad input of every kind: each has its clear answer, and the platform serves its neighbours all the while.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::platform::{PATIENCE, Platform, TAPER, now, text};

/// A platform with a neighbour that must go on answering.
fn with_neighbour() -> Platform {
    let platform = Platform::start();
    let file = platform.file("neighbour.py", "def handle(req):\n    return 'fine ' + req\n");
    platform.ok(&["deploy", &file]);
    platform
}

fn neighbour_is_fine(platform: &Platform) {
    let answer = platform.call("neighbour", b"x");
    assert_eq!((answer.status, answer.text().as_str()), (200, "fine x"), "{}", platform.said());
}

#[test]
fn names_and_manifests() {
    let platform = with_neighbour();
    let good = platform.file("good.py", "def handle(req):\n    return req\n");
    let said = platform.fails(&["deploy", &good, "--name", "Hello"]);
    assert!(said.contains("'H'") && said.contains("hello"), "{said}");
    let said = platform.fails(&["deploy", &good, "--name", &"x".repeat(300)]);
    assert!(said.contains("300 characters") && said.contains("63"), "{said}");
    let manifest = platform.file(
        "bad.yaml",
        "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {name: bad}\nspec:\n  source: good.py\n  timeuot: 3s\n",
    );
    let said = platform.fails(&["deploy", "-f", &manifest]);
    assert!(said.contains("timeuot") && said.contains('6') && said.contains("bad.yaml"), "{said}");
    let said = platform.fails(&["deploy", &platform.dir.path().join("absent.py").display().to_string()]);
    assert!(said.contains("absent.py"), "{said}");
    let said = platform.fails(&["deploy", &good, "--secret", "nobody"]);
    assert!(said.contains("nobody"), "{said}");
    assert_eq!(platform.taper(&["deploy", &good, "--memory", "lots"]).status.code(), Some(2));
    assert!(platform.fails(&["scale", "neighbour", "1000"]).contains("100"), "above max is refused");
    assert_eq!(platform.call("good", b"").status, 404, "nothing of it was deployed");
    neighbour_is_fine(&platform);
}

#[test]
fn what_the_command_line_cannot_mean() {
    let platform = Platform::start();
    for (arguments, words) in [
        (&["list", "--url", "http://"][..], "http://HOST:PORT"),
        (&["deploy", "--name", "x", "--command", " "], "names nothing to run"),
        (&["deploy", "--name", "x", "--command", "echo 'x"], "not closed"),
        (&["invoke", "nobody"], "404"),
    ] {
        let said = platform.fails(arguments);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    assert!(!platform.fails(&["invoke", "nobody"]).contains("logs"), "what was never called has no log");
    let windows = platform.file("windows", "#!/bin/sh\r\necho hi\r\n");
    std::fs::set_permissions(&windows, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(platform.fails(&["deploy", &windows]).contains("Unix line ends"));
}

#[test]
fn code_that_cannot_start_fails_the_deploy_in_its_own_words() {
    let platform = with_neighbour();
    for (name, code, words) in [
        ("syntax", "def handle(req)\n    return req\n", "SyntaxError"),
        ("imports", "import nothing_of_that_name\ndef handle(req):\n    return req\n", "nothing_of_that_name"),
        ("nohandler", "def hande(req):\n    return req\n", "hande"),
        ("raises", "raise RuntimeError('no luck today')\n", "no luck today"),
        ("exits", "import os\nos._exit(7)\n", "7"),
    ] {
        let file = platform.file(&format!("{name}.py"), code);
        let said = platform.fails(&["deploy", &file]);
        assert!(said.contains(words), "{name}: {said}");
        assert_ne!(platform.call(name, b"").status, 200);
    }
    let said = platform.fails(&["deploy", "--name", "ghost", "--command", "no-such-command-here", "--mode", "http"]);
    assert!(said.contains("no-such-command-here"), "{said}");
    neighbour_is_fine(&platform);
}

#[test]
fn a_failed_deploy_leaves_the_old_revision_serving() {
    let platform = Platform::start();
    let file = platform.file("steady.py", "def handle(req):\n    return 'one'\n");
    platform.ok(&["deploy", &file]);
    platform.file("steady.py", "import broken_thing\n");
    let said = platform.fails(&["deploy", &file]);
    assert!(said.contains("broken_thing"), "{said}");
    assert_eq!(platform.call("steady", b"").text(), "one");
    let shown = platform.ok(&["describe", "steady"]);
    assert!(shown.contains("steady-00001") && shown.contains("broken_thing"), "{shown}");
    platform.file("steady.py", "def handle(req):\n    return 'two'\n");
    platform.ok(&["deploy", &file]);
    assert_eq!(platform.call("steady", b"").text(), "two");
}

#[test]
fn handlers_that_misbehave() {
    let platform = with_neighbour();
    let deploy = |name: &str, code: &str, more: &[&str]| {
        let file = platform.file(&format!("{name}.py"), code);
        platform.ok(&[&["deploy", &file], more].concat());
    };
    deploy("throws", "def handle(req):\n    raise ValueError('secret detail')\n", &[]);
    let answer = platform.call("throws", b"");
    assert_eq!((answer.status, answer.header("x-taper-function-error")), (500, "exception"));
    assert_eq!(answer.header("x-taper-fault"), "", "the function's own failure is not the platform's");
    assert!(
        !answer.text().contains("Traceback") && answer.text().contains(answer.header("x-call-id")),
        "{}",
        answer.text()
    );
    platform.until("the traceback is in the log", || platform.ok(&["logs", "throws"]).contains("secret detail"));

    deploy("forever", "def handle(req):\n    while True: pass\n", &["--timeout", "1s"]);
    let answer = platform.call("forever", b"");
    assert_eq!((answer.status, answer.header("x-taper-fault")), (504, "invoke"));
    deploy(
        "naps",
        "import time\ndef handle(req):\n    if req: time.sleep(30)\n    return 'awake'\n",
        &["--timeout", "1s"],
    );
    assert_eq!(platform.call("naps", b"x").status, 504);
    platform.until("naps works again", || platform.call("naps", b"").text() == "awake");

    deploy("quits", "import os\ndef handle(req):\n    if req: os._exit(3)\n    return 'here'\n", &[]);
    let answer = platform.call("quits", b"x");
    assert_eq!((answer.status, answer.header("x-taper-fault")), (502, "invoke"), "{}", answer.text());
    platform.until("quits works again", || platform.call("quits", b"").text() == "here");

    deploy(
        "hungry",
        "def handle(req):\n    if req: x = bytearray(512 << 20)\n    return 'fed'\n",
        &["--memory", "64Mi"],
    );
    let answer = platform.call("hungry", b"x");
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.text().contains("out of memory"), "{}", answer.text());
    platform.until("hungry works again", || platform.call("hungry", b"").text() == "fed");

    deploy(
        "forks",
        "import os\ndef handle(req):\n    n = 0\n    try:\n        while True:\n            if os.fork() == 0:\n                import time; time.sleep(60)\n            n += 1\n    except OSError as e:\n        return f'{n} then {e.strerror}'\n",
        &[],
    );
    let answer = platform.call("forks", b"");
    assert!(answer.status == 200 && answer.text().contains("then"), "{}", answer.text());
    neighbour_is_fine(&platform);
}

#[test]
fn a_gigabyte_on_stdout() {
    let platform = with_neighbour();
    platform.ok(&["deploy", "--name", "flood", "--command", "head -c 1073741824 /dev/zero"]);
    let answer = platform.open("POST", "/function/flood", &[], b"");
    assert_eq!(answer.status(), 200);
    let (mut body, mut total, mut buffer) = (answer.into_body().into_reader(), 0u64, vec![0; 1 << 16]);
    loop {
        match body.read(&mut buffer).expect("a whole reply") {
            0 => break,
            n => total += n as u64,
        }
    }
    assert_eq!(total, 1 << 30);
    platform.ok(&["deploy", "--name", "chatty", "--command", "sh -c 'head -c 200000000 /dev/zero >&2; echo done'"]);
    assert_eq!(platform.call("chatty", b"").text(), "done\n");
    neighbour_is_fine(&platform);
    let resident = resident_kib(platform.pid());
    assert!(resident < 200 << 10, "the platform grew to {resident} KiB");
}

/// Resident memory of a process in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

#[test]
fn a_process_that_fails() {
    let platform = with_neighbour();
    platform.ok(&["deploy", "--name", "three", "--command", "sh -c 'echo out; echo whoops >&2; exit 3'"]);
    let answer = platform.call("three", b"");
    assert_eq!((answer.status, answer.header("x-taper-function-error")), (500, "exit"));
    platform.until("stderr is in the log", || platform.ok(&["logs", "three"]).contains("whoops"));
    platform.ok(&["deploy", "--name", "sleepy", "--timeout", "1s", "--command", "sh -c 'sleep 30 & sleep 30'"]);
    let begun = now();
    assert_eq!(platform.call("sleepy", b"").status, 504);
    assert!(begun.elapsed() < Duration::from_secs(10), "the whole process group ends at the deadline");
    neighbour_is_fine(&platform);
}

#[test]
fn a_server_that_closes_early() {
    let platform = with_neighbour();
    let code = "import os, socket\ns = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))\nwhile True:\n    c, _ = s.accept()\n    c.recv(65536)\n    c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 100\\r\\n\\r\\nshort' if os.environ['HALF'] == '1' else b'')\n    c.close()\n";
    platform.file("early/s.py", code);
    let dir = platform.dir.path().join("early").display().to_string();
    platform.ok(&["deploy", &dir, "--name", "early", "--mode", "http", "--command", "python3 s.py", "--env", "HALF=0"]);
    let answer = platform.call("early", b"");
    assert_eq!((answer.status, answer.header("x-taper-fault")), (502, "invoke"), "{}", answer.text());
    platform.ok(&["deploy", &dir, "--name", "half", "--mode", "http", "--command", "python3 s.py", "--env", "HALF=1"]);
    let mut body = platform.open("POST", "/function/half", &[], b"").into_body().into_reader();
    let mut got = Vec::new();
    assert!(body.read_to_end(&mut got).is_err(), "a reply that breaks half way is not mistaken for a whole one");
    neighbour_is_fine(&platform);
}

#[test]
fn bodies_over_the_limit_and_bodies_that_stop() {
    let platform = with_neighbour();
    let address = platform.url.strip_prefix("http://").unwrap().to_owned();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "POST /function/neighbour HTTP/1.1\r\nHost: x\r\nContent-Length: 200000000\r\n\r\n").unwrap();
    let mut head = [0; 512];
    let n = stream.read(&mut head).unwrap();
    assert!(text(&head[..n]).starts_with("HTTP/1.1 413"), "{}", text(&head[..n]));

    let file = platform.file("slow.py", "def handle(req):\n    return req\n");
    platform.ok(&["deploy", &file, "--timeout", "1s"]);
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "POST /function/slow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel").unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    assert!(
        reply.is_empty() || text(&reply).starts_with("HTTP/1.1 504") || text(&reply).starts_with("HTTP/1.1 408"),
        "{}",
        text(&reply)
    );
    let answer = platform.request("POST", "/function/neighbour", &[("x-big", &"y".repeat(70_000))], b"");
    assert_eq!(answer.status, 431);
    neighbour_is_fine(&platform);
}

#[test]
fn a_thousand_idle_connections() {
    let platform = with_neighbour();
    let address = platform.url.strip_prefix("http://").unwrap().to_owned();
    let idle: Vec<TcpStream> = (0..1000).map(|_| TcpStream::connect(&address).expect("a connection")).collect();
    neighbour_is_fine(&platform);
    drop(idle);
    neighbour_is_fine(&platform);
}

#[test]
fn a_data_directory_that_cannot_be_used() {
    let platform = Platform::start();
    let up = |data: &std::path::Path| {
        std::process::Command::new(TAPER)
            .args(["up", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .env("XDG_CONFIG_HOME", platform.dir.path().join("other"))
            .output()
            .expect("taper starts")
    };
    let second = up(&platform.data());
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text(&second.stderr).contains("in use") || text(&second.stderr).contains("used by"),
        "{}",
        text(&second.stderr)
    );
    let file = platform.dir.path().join("a-file");
    std::fs::write(&file, "x").unwrap();
    let onfile = up(&file);
    assert_eq!(onfile.status.code(), Some(1));
    assert!(text(&onfile.stderr).contains("a-file"), "{}", text(&onfile.stderr));
    let readonly = up(std::path::Path::new("/proc/taper"));
    assert_eq!(readonly.status.code(), Some(1));
    assert!(text(&readonly.stderr).contains("/proc/taper"), "{}", text(&readonly.stderr));
}
