//! Calls that wait: for a slot, for an instance, for a function that does not start, for a platform that goes down; what each of
//! them is told, and that those who wait behind them are served.

use std::{net::TcpStream, time::Duration};

use serde_json::Value;

use crate::{
    crash::processes_of,
    platform::{Answer, PATIENCE, Platform, now},
    streams::{Raw, deploy, websocket},
};

/// Takes one of the server's slots and keeps it, past any timeout, for as long as the value lives.
fn occupy(platform: &Platform) -> Raw {
    let mut raw = Raw::ask(platform, "GET", "/function/s/events/never", "");
    raw.until("data: first\n\n");
    raw
}

/// A call of which only the end is waited for.
fn call_in_the_background(platform: &Platform, name: &str) -> Raw {
    Raw::ask(platform, "GET", &format!("/function/s/plain/{name}"), "Connection: close\r\n")
}

fn until_waiting(platform: &Platform, count: usize) {
    let line = format!("taper_queue_depth{{function_name=\"s.openfaas-fn\"}} {count}");
    platform.until(&format!("{count} calls wait"), || {
        platform.request("GET", "/metrics", &[], b"").text().lines().any(|l| l == line)
    });
}

fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").parse().unwrap_or_else(|_| panic!("no Retry-After with {}", answer.text()))
}

#[test]
fn a_full_queue_refuses_the_next_call_and_serves_those_in_it() {
    let platform = Platform::start_configured("dispatch: {queue: 2}\n");
    deploy(&platform, &["--concurrency", "1"]);
    let running = occupy(&platform);
    let mut waiting = [call_in_the_background(&platform, "a"), call_in_the_background(&platform, "b")];
    until_waiting(&platform, 2);
    let answer = platform.call("s/plain/c", b"");
    assert_eq!((answer.status, answer.header("x-taper-fault")), (503, "queue"), "{}", answer.text());
    assert!(retry_after(&answer) >= 1);
    let said: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((&said["error"], &said["stage"]), (&"queue_full".into(), &"queue".into()));
    assert_eq!(said["callId"], answer.header("x-call-id"));
    assert!(said["message"].as_str().unwrap().contains("scale.max"), "{said}");
    drop(running);
    for (raw, name) in waiting.iter_mut().zip(["a", "b"]) {
        raw.until(&format!("plain {name} "));
    }
}

#[test]
fn a_caller_that_leaves_the_queue_makes_room() {
    let platform = Platform::start_configured("dispatch: {queue: 2}\n");
    deploy(&platform, &["--concurrency", "1"]);
    let running = occupy(&platform);
    let left = call_in_the_background(&platform, "left");
    let mut stays = call_in_the_background(&platform, "stays");
    until_waiting(&platform, 2);
    drop(left);
    until_waiting(&platform, 1);
    let mut late = call_in_the_background(&platform, "late");
    until_waiting(&platform, 2);
    drop(running);
    stays.until("plain stays ");
    late.until("plain late ");
    let asked = platform.call("s/asked", b"").text();
    assert!(
        asked.contains("/plain/stays") && !asked.contains("/plain/left"),
        "nobody ran for one who had left: {asked}"
    );
}

#[test]
fn the_hundred_and_first_call_waits_for_a_slot() {
    let platform = Platform::start();
    deploy(&platform, &[]);
    let mut running: Vec<Raw> = (0..100).map(|_| occupy(&platform)).collect();
    let mut waiting = call_in_the_background(&platform, "next");
    until_waiting(&platform, 1);
    running.pop();
    waiting.until("plain next ");
    until_waiting(&platform, 0);
}

#[test]
fn the_deadline_passes_in_the_queue() {
    let platform = Platform::start();
    deploy(&platform, &["--concurrency", "1", "--timeout", "1s"]);
    let running = occupy(&platform);
    let begun = now();
    let answer = platform.call("s/plain/x", b"");
    assert_eq!((answer.status, answer.header("x-taper-fault")), (504, "queue"), "{}", answer.text());
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    assert!(answer.text().contains("free slot") && answer.text().contains("scale.max"), "{}", answer.text());
    drop(running);
    platform.until("the slot is free", || platform.call("s/plain/x", b"").status == 200);
}

/// Deploys the server with a secret that says what it does when it starts; then to zero, and another mood.
fn with_a_mood(platform: &Platform, mood: &str, lines: &str) {
    platform.ok(&["secret", "create", "mood", "--from-literal", "listen"]);
    platform.file("s/server.py", include_str!("server.py"));
    let manifest = platform.file(
        "s.yaml",
        &format!(
            "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {{name: s}}\nspec:\n  source: ./s\n  mode: http\n  \
             command: [python3, server.py]\n  secrets: [mood]\n  scale: {{max: 1}}\n{lines}"
        ),
    );
    platform.ok(&["deploy", "-f", &manifest]);
    assert_eq!(platform.call("s/plain/x", b"").status, 200);
    platform.ok(&["scale", "s", "0"]);
    platform.until("zero", || platform.instances("s") == 0);
    platform.ok(&["secret", "update", "mood", "--from-literal", mood]);
}

#[test]
fn the_deadline_passes_while_the_function_starts() {
    let platform = Platform::start();
    with_a_mood(&platform, "wait", "  timeout: 1s\n  startTimeout: 3s\n");
    let begun = now();
    let answer = platform.call("s/plain/x", b"");
    assert_eq!((answer.status, answer.header("x-taper-fault")), (504, "activate"), "{}", answer.text());
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    // The start fails later, and says so to whoever asks then.
    platform.until("the start has failed", || platform.ok(&["describe", "s"]).contains("did not listen within 3"));
    platform.ok(&["secret", "update", "mood", "--from-literal", "listen"]);
    platform.until("it starts again", || platform.call("s/plain/x", b"").status == 200);
}

/// What a call and `describe` say of a function that cannot start.
fn cannot_start(platform: &Platform, why: &str) -> Answer {
    let answer = platform.call("s/plain/x", b"");
    assert_eq!((answer.status, answer.header("x-taper-fault")), (502, "activate"), "{}", answer.text());
    let said: Value = serde_json::from_slice(&answer.body).unwrap();
    let message = said["message"].as_str().unwrap();
    assert!(message.contains(why) && message.contains("next try in "), "{message}");
    assert!((1..=300).contains(&retry_after(&answer)), "{:?}", answer.headers);
    answer
}

#[test]
fn a_function_that_worked_once_and_cannot_start_any_more_says_why_and_when_it_is_tried_again() {
    let platform = Platform::start();
    with_a_mood(&platform, "die", "");
    cannot_start(&platform, "today is no day to listen");
    let shown = platform.ok(&["describe", "s"]);
    assert!(shown.contains("today is no day to listen") && shown.contains("next try in "), "{shown}");
    let shown: Value = serde_json::from_str(&platform.ok(&["describe", "s", "-o", "json"])).unwrap();
    assert_eq!(shown["status"]["latestReadyRevision"], "s-00001", "it is not the deploy that failed");
    // Until then calls are refused at once.
    cannot_start(&platform, "today is no day to listen");
    // Try after try fails, ever more slowly.
    platform.until("the third failure", || {
        let answer = platform.call("s/plain/x", b"");
        assert_eq!((answer.status, answer.header("x-taper-fault")), (502, "activate"), "{}", answer.text());
        answer.text().contains("3 failures in a row")
    });
    assert!(retry_after(&cannot_start(&platform, "3 failures in a row")) >= 2);
    // Another reason, in the platform's own words.
    platform.ok(&["secret", "delete", "mood"]);
    platform.until("the secret is missed", || {
        let answer = platform.call("s/plain/x", b"");
        assert_eq!((answer.status, answer.header("x-taper-fault")), (502, "activate"), "{}", answer.text());
        answer.text().contains("secret `mood` is not in namespace")
            && answer.text().contains("taper secret create mood")
    });
    platform.ok(&["secret", "create", "mood", "--from-literal", "listen"]);
    platform.until("it works again", || platform.call("s/plain/x", b"").status == 200);
    let shown = platform.ok(&["describe", "s"]);
    assert!(!shown.contains("next try in "), "{shown}");
}

#[test]
fn min_instances_come_back_after_one_crashed() {
    let platform = Platform::start();
    platform.file("s/server.py", include_str!("server.py"));
    let dir = platform.dir.path().join("s").display().to_string();
    platform.ok(&[
        "deploy",
        &dir,
        "--mode",
        "http",
        "--command",
        "python3 server.py",
        "--concurrency",
        "1",
        "--min",
        "2",
        "--max",
        "2",
    ]);
    for _ in 0..2 {
        platform.until("two", || platform.instances("s") == 2);
        let answer = platform.call("s/die", b"");
        assert_eq!((answer.status, answer.header("x-taper-fault")), (502, "invoke"), "{}", answer.text());
        assert!(answer.text().contains("exit status 7"), "{}", answer.text());
        platform.until("its end is in the log", || platform.ok(&["logs", "s"]).contains("exit status 7"));
        // Two with one slot each: nobody called, and both are there.
        platform.until("two again", || platform.instances("s") == 2);
        let _one = occupy(&platform);
        let other = platform.call("s/plain/x", b"");
        assert_eq!((other.status, other.header("x-taper-start")), (200, "warm"));
    }
}

#[test]
fn a_platform_that_goes_down_refuses_new_calls_and_ends_those_that_run() {
    let mut platform = Platform::start();
    deploy(&platform, &[]);
    let mut running = Raw::ask(&platform, "POST", "/function/s/echo", "Transfer-Encoding: chunked\r\n");
    running.send("3\r\none\r\n").until("one");
    // Heads that were begun before and end after; the platform has read most of them when the later calls are answered.
    let half = "GET /function/s/plain/half HTTP/1.1\r\nHost: x\r\n";
    let mut begun: Vec<Raw> = (0..20).map(|_| Raw::connect(&platform)).collect();
    for raw in &mut begun {
        raw.send(half);
    }
    for n in 0..20 {
        assert_eq!(platform.call(&format!("s/plain/{n}"), b"").status, 200);
    }
    platform.terminate();
    platform.until("nobody is let in any more", || TcpStream::connect(platform.address()).is_err());
    let mut refused = 0;
    for raw in &mut begun {
        // One that was not read yet is closed.
        if raw.try_send("\r\n") {
            let answer = raw.rest().to_lowercase();
            assert!(answer.is_empty() || answer.starts_with("http/1.1 503 "), "{answer}");
            if !answer.is_empty() {
                assert!(answer.contains("retry-after: ") && answer.contains("x-taper-fault: accept"), "{answer}");
                assert!(answer.contains("connection: close") && answer.contains("shutting down"), "{answer}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "connections that were open were not answered");
    running.send("3\r\ntwo\r\n").until("two");
    running.send("0\r\n\r\n").until("\r\n0\r\n\r\n");
    let (status, _) = platform.wait();
    assert!(status.success(), "{}", platform.said());
}

#[test]
fn what_does_not_end_is_cut_when_the_drain_is_over() {
    let mut platform = Platform::start_with(&["--drain", "1s"]);
    deploy(&platform, &[]);
    let (mut stream, mut socket) = (occupy(&platform), websocket(&platform, "open"));
    platform.terminate();
    let (status, took) = platform.wait();
    assert!(status.success(), "{}", platform.said());
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(20), "{took:?}");
    assert!(!stream.rest().contains("0\r\n\r\n"), "cut off is not ended");
    assert_eq!(socket.rest(), "");
    assert!(platform.said().contains("were cut"), "{}", platform.said());
    assert!(processes_of(&platform).is_empty());
}

#[test]
fn a_second_signal_ends_the_platform_at_once() {
    let mut platform = Platform::start_with(&["--drain", "1h"]);
    deploy(&platform, &[]);
    let mut stream = occupy(&platform);
    platform.terminate();
    platform.until("nobody is let in any more", || TcpStream::connect(platform.address()).is_err());
    platform.terminate();
    let (_, took) = platform.wait();
    assert!(took < Duration::from_secs(20), "{took:?}\n{}", platform.said());
    assert!(!stream.rest().contains("0\r\n\r\n"), "cut off is not ended");
    assert!(processes_of(&platform).is_empty());
    let told = platform.ok(&["doctor", "--data", platform.data().to_str().unwrap()]);
    let line = told.lines().find(|line| line.contains("changes to this host")).unwrap();
    assert!(line.ends_with("none"), "{line}");
}

#[test]
fn a_call_that_waits_for_a_deleted_function_is_told() {
    let platform = Platform::start();
    with_a_mood(&platform, "wait", "");
    let mut waiting = call_in_the_background(&platform, "x");
    until_waiting(&platform, 1);
    platform.ok(&["delete", "s"]);
    let answer = waiting.rest();
    assert!(
        answer.starts_with("HTTP/1.1 404 ") && answer.contains("x-taper-fault: route") && answer.contains("deleted"),
        "{answer}"
    );
}

/// Calls asynchronously, and gives the call's id.
fn later(platform: &Platform, path: &str) -> String {
    let answer = platform.request("POST", &format!("/async-function/{path}"), &[], b"");
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.header("location").rsplit('/').next().expect("an id").to_owned()
}

fn cancel(platform: &Platform, id: &str) {
    let answer = platform.request("DELETE", &format!("/async-function/{id}"), &[], b"");
    assert_eq!(answer.status, 202, "{}", answer.text());
    // There is nothing left to be cancelled.
    let again = platform.request("DELETE", &format!("/async-function/{id}"), &[], b"");
    assert_eq!(again.status, 409, "{}", again.text());
}

/// Whether a process of this command line runs anywhere on this host.
fn runs(line: &str) -> bool {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .any(|words| String::from_utf8_lossy(&words).trim_end_matches('\0').replace('\0', " ") == line)
}

#[test]
fn a_running_call_that_is_cancelled_ends_with_every_process_it_started() {
    let platform = Platform::start();
    let seconds = format!("{}", 1_000_000 + platform.pid());
    let sleep = format!("sleep {seconds}");
    // The sleep is a grandchild of what the platform starts for the call, and nobody waits for it.
    let command =
        format!("sh -c 'read mood; if [ \"$mood\" = quick ]; then echo here; else sh -c \"{sleep} & wait\"; fi'");
    platform.ok(&["deploy", "--name", "naps", "--mode", "classic", "--timeout", "30m", "--command", &command]);
    let id = later(&platform, "naps");
    platform.until("its grandchild runs", || runs(&sleep));
    cancel(&platform, &id);
    platform.until("its grandchild is gone", || !runs(&sleep));
    // The instance is none the worse.
    let answer = platform.call("naps", b"quick\n");
    assert_eq!((answer.text().as_str(), answer.header("x-taper-start")), ("here\n", "warm"));
}

#[test]
fn a_running_call_that_is_cancelled_is_cut_off_from_its_server() {
    let platform = Platform::start();
    deploy(&platform, &["--concurrency", "2", "--timeout", "30m"]);
    let id = later(&platform, "s/hold/later");
    platform.until("it runs", || platform.call("s/asked", b"").text().contains("/hold/later"));
    cancel(&platform, &id);
    // The server sees the end of that connection.
    assert_eq!(platform.call("s/await/left-later", b"").status, 200);
}

/// Sleeps for an hour when it is asked nothing.
const NAPS: &str = "import time\n\ndef handle(req):\n    print('begun', flush=True)\n    time.sleep(0 if req else 3600)\n    return 'here'\n";

/// Python cannot be stopped from outside: the call is cancelled at once, and what it does goes on until the function's timeout, when the kernel ends
/// that worker. The next call waits for that.
#[test]
fn a_python_handler_whose_call_is_cancelled_works_on_until_its_time_is_up() {
    let platform = Platform::start();
    let file = platform.file("naps.py", NAPS);
    platform.ok(&["deploy", &file, "--timeout", "4s", "--max", "1"]);
    let begun = now();
    let id = later(&platform, "naps");
    platform.until("it runs", || platform.ok(&["logs", "naps"]).contains("begun"));
    cancel(&platform, &id);
    let mut answer = platform.call("naps", b"x");
    // Its own time may be up first.
    while answer.status == 504 {
        answer = platform.call("naps", b"x");
    }
    assert_eq!((answer.status, answer.text().as_str()), (200, "here"), "{}", platform.said());
    assert!(begun.elapsed() >= Duration::from_secs(3), "it was stopped after {:?}", begun.elapsed());
}

#[test]
fn a_python_handler_that_works_on_keeps_nobody_waiting_where_another_instance_may_start() {
    let platform = Platform::start();
    let file = platform.file("naps.py", NAPS);
    platform.ok(&["deploy", &file, "--timeout", "20s", "--max", "2"]);
    let id = later(&platform, "naps");
    platform.until("it runs", || platform.ok(&["logs", "naps"]).contains("begun"));
    cancel(&platform, &id);
    let answer = platform.call("naps", b"x");
    assert_eq!((answer.status, answer.text().as_str()), (200, "here"), "{}", platform.said());
    assert_ne!(answer.header("x-taper-start"), "warm", "the instance that works on has no place for it");
}

/// The instance that had the call outlives the platform, and is still at it.
#[test]
fn a_call_whose_platform_was_killed_does_not_wait_behind_itself() {
    let mut platform = Platform::start();
    platform.file("naps.py", "import time\n\ndef handle(req):\n    print('begun', flush=True)\n    time.sleep(2)\n");
    let manifest = "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {name: naps}\nspec:\n  source: ./naps.py\n  \
                    timeout: 3s\n  scale: {max: 1}\n  async: {retry: {attempts: 1}}\n";
    let file = platform.file("naps.yaml", manifest);
    platform.ok(&["deploy", "-f", &file]);
    let id = later(&platform, "naps");
    platform.until("it runs", || platform.ok(&["logs", "naps"]).contains("begun"));
    platform.kill();
    platform.up();
    let shown = platform.ok(&["invocations", "show", &id, "--wait", "30s", "-o", "json"]);
    let call: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!((call["status"].as_str(), call["tries"].as_u64()), (Some("done"), Some(1)), "{call}");
}

/// The ids of such calls can be told from that of the call that made them, which its caller has.
#[test]
fn a_call_that_another_made_is_cancelled_with_the_password_only() {
    let platform = Platform::start();
    let manifest = |name: &str, asynchronous: &str| {
        format!(
            "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {{name: {name}}}\nspec:\n  mode: classic\n  command: [cat]\n  async: {asynchronous}\n"
        )
    };
    for (name, asynchronous) in [("audit", "{concurrency: 0}"), ("made", "{onSuccess: {function: audit}}")] {
        let file = platform.file(&format!("{name}.yaml"), &manifest(name, asynchronous));
        platform.ok(&["deploy", "-f", &file]);
    }
    later(&platform, "made");
    let waiting = || -> Value {
        let all = platform.ok(&["invocations", "list", "--function", "audit", "-o", "json"]);
        serde_json::from_str(&all).expect("JSON")
    };
    platform.until("its record waits", || waiting()[0]["status"] == "waiting");
    let id = waiting()[0]["id"].as_str().expect("an id").to_owned();
    let answer = platform.request("DELETE", &format!("/async-function/{id}"), &[], b"");
    assert_eq!(answer.status, 404, "{}", answer.text());
    assert_eq!(waiting()[0]["status"], "waiting");
    platform.ok(&["invocations", "cancel", &id]);
    assert_eq!(waiting()[0]["status"], "cancelled");
}

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn a_call_keeps_its_id_and_its_trace() {
    let platform = Platform::start();
    deploy(&platform, &[]);
    let headers = [("x-call-id", "order-4711"), ("traceparent", TRACE), ("tracestate", "vendor=1")];
    let answer = platform.request("GET", "/function/s/headers", &headers, b"");
    let seen: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(answer.header("x-call-id"), "order-4711");
    for (name, value) in headers {
        assert_eq!(seen[name], value);
    }
    // Whoever brings none gets one, the function and its caller the same.
    let answer =
        platform.request("GET", "/function/s/headers", &[("traceparent", "nonsense"), ("tracestate", "vendor=1")], b"");
    let seen: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(seen["x-call-id"], answer.header("x-call-id"));
    assert_eq!(answer.header("x-call-id").len(), 36);
    assert_eq!(seen["traceparent"].as_str().unwrap().len(), TRACE.len());
    assert!(seen["tracestate"].is_null(), "it belongs to the other: {seen}");
    // The id is kept where the platform itself answers, and in what is logged.
    assert_eq!(platform.request("GET", "/function/nobody", &headers, b"").header("x-call-id"), "order-4711");
    platform.ok(&["deploy", "--name", "env", "--command", "sh -c 'echo seen >&2; echo $Http_X_Call_Id'"]);
    assert_eq!(platform.request("POST", "/function/env", &headers, b"").text(), "order-4711\n");
    platform.until("its log names it", || platform.ok(&["logs", "env", "--timestamps"]).contains("[order-4711] seen"));
    let file = platform.file("id.py", "def handle(event, context):\n    raise ValueError(context.call_id)\n");
    platform.ok(&["deploy", &file]);
    assert_eq!(platform.request("POST", "/function/id", &headers, b"").status, 500);
    platform.until("its traceback names it", || {
        platform.ok(&["logs", "id", "--timestamps"]).contains("[order-4711] ValueError: order-4711")
    });
}

#[test]
fn two_platforms_beside_each_other_know_nothing_of_each_other() {
    let (mut one, mut two) = (Platform::start(), Platform::start());
    for (platform, word) in [(&one, "one"), (&two, "two")] {
        let file = platform.file("same.py", &format!("def handle(req):\n    return '{word}'\n"));
        platform.ok(&["deploy", &file, "--min", "1"]);
        platform.ok(&["secret", "create", word, "--from-literal", word]);
    }
    assert_eq!((one.call("same", b"").text(), two.call("same", b"").text()), ("one".into(), "two".into()));
    assert!(!one.ok(&["secret", "list"]).contains("two"));
    // A password of the one is none of the other.
    let said = String::from_utf8(one.taper(&["list", "--url", &two.url]).stderr).unwrap();
    assert!(said.contains("password"), "{said}");
    one.kill();
    assert_eq!(two.call("same", b"").text(), "two");
    // Sweeping up after the one that was killed takes nothing of the other.
    one.up();
    let warm = two.call("same", b"");
    assert_eq!((warm.text().as_str(), warm.header("x-taper-start")), ("two", "warm"));
    assert_eq!(one.call("same", b"").text(), "one");
    assert!(two.stop().0.success());
    assert_eq!(one.call("same", b"").text(), "one");
    assert!(one.stop().1 < PATIENCE);
}

#[test]
fn a_backlog_does_not_cut_its_own_calls() {
    let platform = Platform::start();
    let file = platform.file("nap.py", "import time\ndef handle(text):\n    time.sleep(0.5)\n    return 'rested'\n");
    platform.ok(&["deploy", &file, "--concurrency", "1", "--max", "2", "--timeout", "2s"]);
    // Two at a time: the last of them begin long after the first one's time is over.
    for _ in 0..20 {
        assert_eq!(platform.request("POST", "/async-function/nap", &[], b"").status, 202);
    }
    let listed =
        || -> Value { serde_json::from_str(&platform.ok(&["invocations", "list", "-o", "json"])).expect("JSON") };
    let ended = |call: &Value| matches!(call["status"].as_str(), Some("done" | "dead"));
    platform.until("all have ended", || {
        listed().as_array().expect("a list").iter().filter(|call| ended(call)).count() == 20
    });
    for call in listed().as_array().expect("a list") {
        assert_eq!((call["status"].as_str(), call["tries"].as_u64()), (Some("done"), Some(1)), "{call}");
    }
}

/// What a call waits for an instance is not its attempt's time.
#[test]
fn an_attempt_begins_when_an_instance_has_it() {
    let platform = Platform::start();
    let file = platform.file("nap.py", "import time\ndef handle(text):\n    time.sleep(1)\n");
    platform.ok(&["deploy", &file, "--concurrency", "1", "--max", "1"]);
    let ids: Vec<_> = (0..3).map(|_| later(&platform, "nap")).collect();
    let took = |id: &String| {
        let shown = platform.ok(&["invocations", "show", id, "--wait", "60s", "-o", "json"]);
        let call: Value = serde_json::from_str(&shown).expect("JSON");
        call["attempts"][0]["tookMs"].as_u64().unwrap_or_else(|| panic!("{call}"))
    };
    let took: Vec<u64> = ids.iter().map(took).collect();
    assert!(took.iter().all(|took| *took >= 1000), "{took:?}");
    // One behind another they end after 1, 2 and 3 seconds.
    assert!(took.iter().sum::<u64>() < 5000, "{took:?}");
}
