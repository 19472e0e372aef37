//! The platform replaced by a newer program while it is used: whoever calls notices nothing, what fails changes nothing, and nothing of
//! the old one is left.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    crash::{processes_of, traces_of},
    platform::{Platform, now},
    streams::Raw,
};

/// A function that says which process it is.
const WHO: &str = "import os\ndef handle(req):\n    return req + ' ' + os.environ['TAPER_INSTANCE']\n";

#[test]
fn callers_with_open_connections_notice_nothing() {
    let mut platform = Platform::start();
    let file = platform.file("who.py", WHO);
    platform.ok(&["deploy", &file, "--concurrency", "4"]);
    let (stop, calls, wrong) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut raw = Raw::connect(&platform);
            let (stop, calls, wrong) = (&stop, &calls, &wrong);
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    // One connection for all of them: it passes from process to process.
                    raw.send("POST /function/who HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nme");
                    let head = raw.until("\r\n\r\n");
                    let length = head
                        .lines()
                        .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
                    let body = raw.exactly(length.unwrap_or_default());
                    if !head.starts_with("HTTP/1.1 200") || !body.starts_with(b"me ") {
                        wrong.lock().unwrap().push(head);
                    }
                    calls.fetch_add(1, Relaxed);
                }
            });
        }
        for _ in 0..5 {
            let before = calls.load(Relaxed);
            platform.upgrade();
            platform.until("calls after an upgrade", || calls.load(Relaxed) > before + 20);
        }
        stop.store(true, Relaxed);
    });
    assert_eq!(wrong.into_inner().unwrap(), [""; 0], "of {} calls", calls.load(Relaxed));
}

#[test]
fn the_new_one_is_as_warm_as_the_old_one_and_knows_all_that_it_knew() {
    let mut platform = Platform::start();
    let file = platform.file("who.py", WHO);
    platform.ok(&["deploy", &file]);
    platform.ok(&["secret", "create", "key", "--from-literal", "s3cret"]);
    let reads = platform.file("reads.py", "def handle(req):\n    return open('/var/openfaas/secrets/key').read()\n");
    platform.ok(&["deploy", &reads, "--secret", "key", "--min", "2"]);
    let before = platform.call("who", b"a").text();
    assert_eq!(platform.call("reads", b"").text(), "s3cret");
    let old = platform.pid();
    platform.upgrade();
    assert_ne!(platform.pid(), old);
    for name in ["who", "reads"] {
        let answer = platform.call(name, b"a");
        assert_eq!((answer.status, answer.header("x-taper-start")), (200, "warm"), "{name}: {}", platform.said());
    }
    assert_ne!(platform.call("who", b"a").text(), before, "instances are made anew");
    assert_eq!(platform.call("reads", b"").text(), "s3cret");
    assert_eq!(platform.instances("reads"), 2);
    platform.until("the old process's end", || {
        std::fs::read_to_string(format!("/proc/{old}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
    let file = platform.file("who.py", &WHO.replace("req + ' '", "req + ' anew '"));
    platform.ok(&["deploy", &file]);
    assert!(platform.call("who", b"a").text().starts_with("a anew "));
    platform.stop();
    assert_eq!(processes_of(&platform), [""; 0]);
    assert_eq!(traces_of(&platform), "none", "of either");
}

#[test]
fn what_fails_changes_nothing() {
    let platform = Platform::start_configured("control: {tick: 2s}\n");
    let file = platform.file("who.py", WHO);
    platform.ok(&["deploy", &file]);
    let before = platform.call("who", b"a").text();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    for (settings, expect) in [
        ("control: {tikc: 2s}\n".to_owned(), "tikc"),
        (format!("gateway: {{metricsListen: '{address}'}}\n"), "cannot listen on"),
        (
            "gateway: {tls: {listen: '127.0.0.1:0', certificates: [{cert: /no/such, key: /no/such}]}}\n".into(),
            "/no/such",
        ),
        ("store: {secretKeyFile: /no/such}\n".into(), "/no/such"),
        ("secretMountPath: /no/such\n".into(), "/no/such"),
    ] {
        platform.file("settings.yaml", &settings);
        let said = platform.fails(&["upgrade"]);
        assert!(said.contains("goes on as before") && said.contains(expect), "{settings}: {said}");
    }
    assert_eq!(platform.call("who", b"a").text(), before, "the same instance answers");
    platform.ok(&["deploy", &file, "--name", "other"]);
    platform.file("settings.yaml", "control: {tick: 3s}\n");
    let mut platform = platform;
    platform.upgrade();
    assert_eq!(platform.call("other", b"a").status, 200);
}

#[test]
fn accepted_calls_run_whichever_process_took_them() {
    let mut platform = Platform::start();
    platform.ok(&["deploy", "--name", "slow", "--command", "sh -c 'sleep 0.05; cat'"]);
    let file = platform.file("keep.py", "def handle(req):\n    print('ran ' + req)\n    return 'ok'\n");
    platform.ok(&["deploy", &file]);
    let (stop, accepted) = (AtomicBool::new(false), Mutex::new(BTreeSet::new()));
    std::thread::scope(|scope| {
        let (platform_url, stop, accepted) = (platform.address().to_owned(), &stop, &accepted);
        scope.spawn(move || {
            let mut n = 0;
            while !stop.load(Relaxed) {
                n += 1;
                let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
                let sent = agent.post(format!("http://{platform_url}/async-function/keep")).send(format!("call-{n}."));
                if sent.expect("an answer").status() == 202 {
                    accepted.lock().unwrap().insert(format!("ran call-{n}."));
                }
                std::thread::park_timeout(Duration::from_millis(10));
            }
        });
        for _ in 0..3 {
            platform.upgrade();
        }
        stop.store(true, Relaxed);
    });
    let accepted = accepted.into_inner().unwrap();
    assert!(accepted.len() > 5, "{}", accepted.len());
    platform.until("all accepted calls", || {
        let said = platform.ok(&["logs", "keep"]);
        accepted.iter().all(|line| said.contains(line.as_str()))
    });
}

#[test]
fn a_signal_does_it_as_well() {
    let mut platform = Platform::start();
    let old = platform.pid();
    let begun = now();
    platform.signal(rustix::process::Signal::USR2);
    let pid = loop {
        let said = platform.said();
        let served = said
            .lines()
            .find(|l| l.contains("the new process serves"))
            .and_then(|l| l.split("pid=").nth(1)?.trim().parse().ok());
        match served {
            Some(pid) => break pid,
            None => assert!(begun.elapsed() < Duration::from_secs(60), "{said}"),
        }
        std::thread::park_timeout(Duration::from_millis(20));
    };
    platform.succeeded_by(pid);
    assert_ne!(platform.pid(), old);
    assert_eq!(platform.request("GET", "/readyz", &[], b"").status, 200);
}

#[test]
fn whoever_follows_logs_goes_on_with_the_new_one() {
    let mut platform = Platform::start();
    let file = platform.file("says.py", "def handle(req):\n    print('said ' + req)\n    return 'ok'\n");
    platform.ok(&["deploy", &file]);
    let mut follower = platform
        .command()
        .env("TAPER_URL", &platform.url)
        .args(["logs", "says", "-f"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(follower.stdout.take().expect("a pipe")).lines();
    let mut next = || lines.by_ref().map_while(Result::ok).find(|line| line.starts_with("said "));
    for n in 0..4 {
        let word = format!("said {n}");
        assert_eq!(platform.call("says", n.to_string().as_bytes()).text(), "ok");
        assert_eq!(next(), Some(word), "each once, in its order");
        platform.upgrade();
    }
    follower.kill().expect("it follows still");
    follower.wait().expect("it ends");
}
