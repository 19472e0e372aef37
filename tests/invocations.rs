//! Calls whose callers do not wait, as their owner sees them: asked for, listed, shown, waited for, cancelled, run again, forgotten, and
//! watched while the platform is replaced.

use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
    sync::mpsc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    platform::{Answer, PATIENCE, Platform, text},
    streams::{Raw, deploy as deploy_server},
};

/// Says what it was asked, and shouts it.
const SHOUT: &str = "def handle(req):\n    print('asked for ' + req)\n    return req.upper()\n";
/// Fails.
const FAILS: &str = "def handle(req):\n    raise ValueError('not ' + req)\n";

/// Deploys a file's text as a function whose calls are tried so often.
fn deploy(platform: &Platform, name: &str, source: &str, attempts: u32) {
    platform.file(&format!("{name}/handler.py"), source);
    let manifest = platform.file(
        &format!("{name}.yaml"),
        &format!(
            "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {{name: {name}}}\nspec:\n  source: ./{name}\n  runtime: python3\n  \
             concurrency: 1\n  async: {{retry: {{attempts: {attempts}, minWait: 1ms, maxWait: 2ms}}}}\n"
        ),
    );
    platform.ok(&["deploy", "-f", &manifest]);
}

/// Hands a call over, and gives its id.
fn hand_over(platform: &Platform, arguments: &[&str]) -> String {
    platform.ok(&[&["invoke", "--async"], arguments].concat()).trim_end().to_owned()
}

fn shown(platform: &Platform, id: &str) -> Value {
    serde_json::from_str(&platform.ok(&["invocations", "show", id, "--wait", "60s", "-o", "json"])).unwrap()
}

fn listed(platform: &Platform, arguments: &[&str]) -> Vec<String> {
    let arguments = [&["invocations", "list", "-o", "json"], arguments].concat();
    let page: Value = serde_json::from_str(&platform.ok(&arguments)).unwrap();
    page.as_array().unwrap().iter().map(|call| call["id"].as_str().unwrap().to_owned()).collect()
}

/// A request to the API with the platform's password.
fn api(platform: &Platform, method: &str, path: &str, body: &Value) -> Answer {
    let password = std::fs::read_to_string(platform.data().join("admin-password")).unwrap();
    let login = format!("Basic {}", BASE64_STANDARD.encode(format!("admin:{}", password.trim())));
    let body = if body.is_null() { String::new() } else { body.to_string() };
    platform.request(method, path, &[("authorization", &login)], body.as_bytes())
}

fn said(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{e}: {}", answer.text()))
}

// long because: it is one call's story
#[test]
fn a_call_is_handed_over_found_shown_and_answered() {
    let platform = Platform::start();
    deploy(&platform, "shout", SHOUT, 1);
    let out = platform.taper(&["invoke", "shout", "--async", "-d", "hey", "-H", "X-Call-Id: order-4711"]);
    let (id, note) = (text(&out.stdout).trim_end().to_owned(), text(&out.stderr));
    assert!(out.status.success() && id.len() == 36, "{id} {note}");
    assert!(note.contains(&format!("taper invocations show {id}")), "{note}");
    let call = shown(&platform, &id);
    assert_eq!((&call["status"], &call["result"]["body"]), (&json!("done"), &json!("HEY")), "{call:#}");
    assert_eq!((&call["correlation"], &call["request"].get("body")), (&json!("order-4711"), &None));
    let attempt = &call["attempts"][0];
    assert_eq!((&attempt["status"], &attempt["revision"]), (&json!(200), &json!("shout-00001")), "{call:#}");
    assert!(attempt["instance"].as_str().unwrap().starts_with("shout-00001-"), "{call:#}");
    assert!(matches!(attempt["start"].as_str(), Some("pool" | "cold" | "warm")), "{call:#}");

    let page = platform.ok(&["invocations", "show", &id, "--logs"]);
    for part in [
        "Function   shout.default",
        "Status     done",
        "Known as   order-4711",
        "Result     200, 3 bytes",
        "ATTEMPT",
        "HEY",
        "LINES of attempt 1, which ended with 200",
    ] {
        assert!(page.contains(part), "no `{part}` in {page}");
    }
    assert!(page.contains("asked for hey"), "{page}");
    assert_eq!(platform.ok(&["invocations", "show", &id, "--result"]), "HEY");
    assert_eq!(listed(&platform, &["--function", "shout", "--status", "done", "--since", "1h"]), [id.as_str()]);
    let table = platform.ok(&["inv", "ls"]);
    assert!(table.starts_with("ID ") && table.contains(&id) && table.contains(" done "), "{table}");

    // Where `Location` leads, and the same call once more.
    let headers = [("idempotency-key", "k"), ("x-taper-order-key", "o")];
    let answer = platform.request("PATCH", "/async-function/shout/a/b?c=d", &headers, b"one");
    assert_eq!((answer.status, answer.header("x-taper-repeated")), (202, ""), "{}", answer.text());
    let location = answer.header("location").to_owned();
    let record = api(&platform, "GET", &format!("{location}?wait=60s"), &Value::Null);
    let record = said(&record);
    assert_eq!(record["id"], answer.header("x-call-id"));
    assert_eq!(
        (&record["status"], &record["method"], &record["path"]),
        (&json!("done"), &json!("PATCH"), &json!("/a/b?c=d"))
    );
    assert_eq!((&record["request"]["orderKey"], &record["request"]["idempotencyKey"]), (&json!("o"), &json!("k")));
    let again = platform.request("PATCH", "/async-function/shout/a/b?c=d", &headers, b"one");
    assert_eq!((again.status, again.header("x-taper-repeated"), again.header("location")), (202, "true", &*location));
    assert_eq!(again.header("x-call-id"), answer.header("x-call-id"));
    assert_eq!(platform.request("GET", &location, &[], b"").status, 401, "a record is not for everybody");
    let result = api(&platform, "GET", &format!("{location}/result"), &Value::Null);
    assert_eq!((result.text().as_str(), result.header("x-taper-result-status")), ("ONE", "200"));

    let wanted = json!({"function": "shout", "body": "two", "delay": "1h"});
    let answer = api(&platform, "POST", "/v1/namespaces/default/invocations", &wanted);
    assert_eq!((answer.status, said(&answer)["status"].as_str()), (202, Some("waiting")), "{}", answer.text());
    let location = answer.header("location");
    assert_eq!(api(&platform, "POST", &format!("{location}/retry"), &Value::Null).status, 200, "it runs now");
    let record = said(&api(&platform, "GET", &format!("{location}?wait=60s"), &Value::Null));
    assert_eq!(record["result"]["body"], "TWO", "{record:#}");
    let metrics = platform.request("GET", "/metrics", &[], b"").text();
    let waits = "taper_async_wait_seconds_count{function_name=\"shout.openfaas-fn\"} 3";
    for line in ["taper_async_accepted_total 3", "taper_async_done_total 3", "taper_async_depth 0", waits] {
        assert!(metrics.lines().any(|l| l == line), "no `{line}` in {metrics}");
    }
}

#[test]
fn who_hands_a_call_over_may_wait_for_it_all_the_same() {
    let platform = Platform::start();
    deploy(&platform, "shout", SHOUT, 1);
    deploy(&platform, "fails", FAILS, 2);
    assert_eq!(platform.ok(&["invoke", "shout", "--async", "--wait", "-d", "hey"]), "HEY");
    // For programs it is the record, also where nobody waits.
    let read = |text: String| serde_json::from_str::<Value>(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let put = ["invoke", "shout/a", "--async", "-X", "PUT", "-d", "hey", "-o", "json"];
    let call = read(platform.ok(&put));
    assert_eq!((&call["method"], &call["path"]), (&json!("PUT"), &json!("/a")), "{call:#}");
    let call = read(platform.ok(&[&put[..], &["--wait"]].concat()));
    assert_eq!((&call["status"], &call["result"]["body"]), (&json!("done"), &json!("HEY")), "{call:#}");
    let out = platform.taper(&["invoke", "shout", "--async", "-X", "GET"]);
    assert!(!out.status.success() && text(&out.stderr).contains("POST, PUT and PATCH"), "{}", text(&out.stderr));
    let out = platform.taper(&["invoke", "fails", "--async", "--wait", "-d", "that"]);
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("fails.default") && stderr.contains("taper invocations show "), "{stderr}");
    let id = &listed(&platform, &["--status", "dead"])[0];
    let call = shown(&platform, id);
    assert_eq!((&call["tries"], call["attempts"].as_array().unwrap().len()), (&json!(2), 2), "{call:#}");
    assert_eq!(
        platform.taper(&["invoke", "shout", "--wait"]).status.code(),
        Some(2),
        "who waits anyway need not say so"
    );
}

#[test]
fn calls_are_cancelled_while_they_wait_and_while_they_run() {
    let platform = Platform::start();
    deploy_server(&platform, &[]);
    let later = platform.request("POST", "/async-function/s/echo", &[("x-taper-delay", "1h")], b"never");
    let waiting = later.header("x-call-id").to_owned();
    let held = platform.request("GET", "/function/s/hold/a", &[("x-taper-async", "true")], b"");
    assert_eq!(held.status, 202, "{}", held.text());
    let running = held.header("x-call-id").to_owned();
    platform.until("it runs", || listed(&platform, &["--status", "running"]) == [running.as_str()]);
    let said = platform.fails(&["invocations", "retry", &running]);
    assert!(said.contains("is running"), "what runs is not run beside itself: {said}");
    let out = platform.ok(&["invocations", "cancel", &waiting, &running]);
    assert_eq!(out, format!("{waiting} cancelled\n{running} cancelled\n"));
    for id in [&waiting, &running] {
        assert_eq!(shown(&platform, id)["status"], "cancelled");
        for verb in ["cancel", "retry"] {
            let said = platform.fails(&["invocations", verb, id]);
            assert!(said.contains(&format!("call {id} is cancelled")), "{said}");
        }
    }
    let attempts = |id| shown(&platform, id)["attempts"].clone();
    let cut_off = attempts(&running);
    assert_eq!(attempts(&waiting), json!([]), "it was not begun");
    assert_eq!((cut_off[0]["stage"].as_str(), cut_off[0]["status"].as_u64()), (Some("invoke"), None), "{cut_off:#}");
    assert!(cut_off[0]["instance"].is_string() && cut_off[0]["revision"] == "s-00001", "{cut_off:#}");
    let out = platform.ok(&["invocations", "show", &running]);
    assert!(out.contains("- (invoke)") && out.contains("cancelled by an administrator"), "{out}");
    platform.until("its request has ended", || {
        let metrics = platform.request("GET", "/metrics", &[], b"").text();
        metrics.lines().any(|line| line == "taper_async_running 0")
    });
    assert_eq!(platform.call("s/plain/x", b"").status, 200);
}

#[test]
fn dead_letters_run_again_once_the_function_is_mended() {
    let platform = Platform::start();
    deploy(&platform, "job", FAILS, 1);
    let ids: Vec<String> = ["a", "b", "c"].iter().map(|word| hand_over(&platform, &["job", "-d", word])).collect();
    for id in &ids {
        let call = shown(&platform, id);
        assert_eq!((&call["status"], &call["lastStatus"]), (&json!("dead"), &json!(500)), "{call:#}");
        assert!(call["reason"].is_string() && call["request"]["body"]["bytes"] == 1, "{call:#}");
    }
    deploy(&platform, "job", SHOUT, 1);
    assert_eq!(platform.ok(&["invocations", "retry", &ids[0]]), format!("{} runs again\n", ids[0]));
    assert_eq!(shown(&platform, &ids[0])["result"]["body"], "A");
    assert!(
        platform.fails(&["invocations", "redrive", "--function", "other"]).contains("other.default does not exist")
    );
    let none = ["invocations", "redrive", "--function", "job", "--before", "1h"];
    assert_eq!(platform.ok(&none), "0 calls run again\n");
    assert_eq!(platform.ok(&["invocations", "redrive", "--function", "job", "--since", "1h"]), "2 calls run again\n");
    for (id, word) in ids.iter().zip(["A", "B", "C"]) {
        let call = shown(&platform, id);
        assert_eq!((&call["status"], &call["result"]["body"]), (&json!("done"), &json!(word)), "{call:#}");
        let attempts = call["attempts"].as_array().unwrap();
        assert_eq!((&attempts[0]["status"], &attempts[1]["status"]), (&json!(500), &json!(200)), "{call:#}");
        assert_eq!(attempts[1]["revision"], "job-00002");
        assert!(platform.fails(&["invocations", "retry", id]).contains("is done"));
    }
    let page = platform.ok(&["invocations", "show", &ids[1]]);
    assert!(page.contains("500") && page.contains("200") && page.contains("job-00002-"), "{page}");
    let note = text(&platform.taper(&["invocations", "list", "--limit", "2"]).stderr);
    let mark = note.split("--after ").nth(1).and_then(|rest| rest.split(' ').next()).expect(&note);
    assert_eq!(listed(&platform, &["--limit", "2", "--after", mark]), [ids[0].as_str()]);
    assert_eq!(platform.ok(&["invocations", "purge", "--function", "job", "--status", "dead"]), "0 calls forgotten\n");
    assert_eq!(platform.ok(&["invocations", "purge", "--all"]), "3 calls forgotten\n");
    assert!(platform.fails(&["invocations", "show", &ids[0]]).contains("there is no call"));
    let out = platform.taper(&["invocations", "list"]);
    assert!(out.stdout.is_empty() && text(&out.stderr).contains("no such calls"), "{out:?}");
}

#[test]
fn what_is_asked_wrongly_has_a_clear_answer_and_changes_nothing() {
    let platform = Platform::start();
    deploy(&platform, "shout", SHOUT, 1);
    let id = hand_over(&platform, &["shout", "-d", "x"]);
    shown(&platform, &id);
    for (arguments, status, expect) in [
        (&["show", "0000-0000"][..], 1, "there is no call 0000-0000 in namespace default"),
        (&["show", "../../functions/shout"], 1, "is no call's id"),
        (&["show", &id, "-n", "other"], 1, "there is no call"),
        (&["show", &id, "--wait", "soon"], 1, "--wait: `soon` is not a duration"),
        (&["cancel", &id], 1, "is done and cannot be cancelled"),
        (&["cancel"], 2, "ID"),
        (&["redrive"], 2, "--all"),
        (&["purge"], 2, "--all"),
        (&["purge", "--status", "waiting", "--all"], 2, "cancelled"),
        (&["list", "--status", "ded"], 2, "dead"),
        (&["list", "--limit", "0"], 2, "1..=1000"),
        (&["list", "--since", "soon"], 1, "--since: `soon` is not a duration"),
        (&["list", "--before", "999999999h"], 1, "--before: `999999999h` is too long"),
        (&["list", "--after", "x"], 1, "--after x: it is no mark"),
        (&["list", "--trigger", "nope"], 1, "trigger nope.default does not exist"),
        (&["redrive", "--trigger", "nope"], 1, "trigger nope.default does not exist"),
        (&["purge", "--function", "shuot"], 1, "function shuot.default does not exist"),
        (&["list", "--function", "Shout"], 1, "try `shout`"),
        (&["list", "--function", "shuot"], 1, "function shuot.default does not exist"),
        (&["list", "-n", "typo"], 1, "there is no namespace `typo`"),
        (&["list", "-w", "-n", "typo"], 1, "there is no namespace `typo`"),
        (&["redrive", "--all", "-n", "typo"], 1, "there is no namespace `typo`"),
        (&["purge", "--all", "-n", "typo"], 1, "there is no namespace `typo`"),
        (&["lits"], 2, "list"),
    ] {
        let out = platform.taper(&[&["invocations"], arguments].concat());
        let said = text(&out.stderr);
        assert!(out.status.code() == Some(status) && said.contains(expect), "{arguments:?}: {said}");
    }
    // A body that stops half way is not there.
    let before = listed(&platform, &[]);
    let mut raw = Raw::connect(&platform);
    raw.send("POST /async-function/shout HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf");
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
    raw.rest();
    let calls = "/v1/namespaces/default/invocations";
    for (body, status, expect) in [
        (json!({"function": "nobody"}), 404, "nobody.default"),
        (json!({"function": "shout", "callback": "gopher://x"}), 400, "callback: "),
        (json!({"function": "shout", "body": "x".repeat(7 << 20)}), 413, "6291456"),
    ] {
        let answer = api(&platform, "POST", calls, &body);
        assert!(answer.status == status && answer.text().contains(expect), "{}", answer.text());
    }
    for (method, path, status) in [
        ("GET", format!("{calls}/{}", "x".repeat(200)), 400),
        ("GET", format!("{calls}/a%2fb"), 404),
        ("GET", format!("{calls}?after=%00"), 400),
        ("DELETE", calls.to_owned(), 400),
        ("POST", format!("{calls}/redrive"), 400),
        ("PUT", calls.to_owned(), 405),
    ] {
        let answer = api(&platform, method, &path, &Value::Null);
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert!(said(&answer)["message"].is_string());
    }
    assert_eq!(listed(&platform, &[]), before);
}

#[test]
fn what_is_cut_what_is_owed_and_what_comes_first_is_said() {
    let platform = Platform::start_configured("queue: {resultBody: 4, privateCallbacks: true}\n");
    deploy(&platform, "shout", SHOUT, 1);
    deploy(&platform, "job", FAILS, 1);
    let wrong = "com.openfaas.retry.attempts=lots";
    let out = platform.taper(&["deploy", "--name", "bare", "--command", "cat", "--annotation", wrong]);
    let expect =
        "bare.default: annotation com.openfaas.retry.attempts: `lots` is no number; the annotation has no effect";
    assert!(out.status.success() && text(&out.stderr).contains(expect), "{}", text(&out.stderr));
    let long = hand_over(&platform, &["shout", "-d", "hello"]);
    shown(&platform, &long);
    let out = platform.taper(&["invocations", "show", &long, "--result"]);
    let (kept, note) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.code() == Some(1) && kept == "HELL" && note.contains("its first 4 bytes"), "{kept}: {note}");
    let later = hand_over(&platform, &["shout", "-d", "x", "-H", "X-Taper-Delay: 1d"]);
    let note = platform.fails(&["invocations", "show", &later, "--result"]);
    assert!(note.contains("is waiting and has no result yet; --wait 30s waits for it"), "{note}");

    let failed = hand_over(&platform, &["job", "-d", "x", "-H", "X-Taper-Order-Key: user-7"]);
    assert_eq!(shown(&platform, &failed)["status"], "dead");
    let expect = format!("{failed} runs again, after those before it with the order key `user-7`\n");
    assert_eq!(platform.ok(&["invocations", "retry", &failed]), expect);
    assert_eq!(platform.ok(&["invocations", "retry", &later]), format!("{later} runs now\n"));

    // Nobody answers there.
    let receiver = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let callback = format!("X-Callback-Url: http://{}/", receiver.local_addr().unwrap());
    let owing = hand_over(&platform, &["shout", "-d", "hello", "-H", &callback]);
    for id in [&owing, &later] {
        assert_eq!(shown(&platform, id)["status"], "done");
    }
    let out = platform.taper(&["invocations", "purge", "--function", "shout"]);
    assert_eq!((out.status.success(), text(&out.stdout).as_str()), (true, "2 calls forgotten\n"));
    assert!(text(&out.stderr).contains("1 call that ended stays, for its callback or record"), "{}", text(&out.stderr));
    assert_eq!(listed(&platform, &["--function", "shout"]), [owing]);
    let (mut told, mut said) = (receiver.accept().unwrap().0, Vec::new());
    while !said.ends_with(b"\r\n\r\nHELL") {
        let mut piece = [0; 4096];
        let read = told.read(&mut piece).unwrap();
        assert!(read > 0, "{}", text(&said));
        said.extend_from_slice(&piece[..read]);
    }
    assert!(text(&said).contains("\r\nx-taper-result-cut: true\r\n"), "{}", text(&said));
}

#[test]
fn whoever_watches_sees_every_change_over_an_upgrade() {
    let mut platform = Platform::start();
    deploy(&platform, "shout", SHOUT, 1);
    let first = hand_over(&platform, &["shout", "-d", "one"]);
    shown(&platform, &first);
    let mut child = platform
        .command()
        .env("TAPER_URL", &platform.url)
        .args(["invocations", "list", "-w", "-o", "json", "--function", "shout"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let (tx, rx) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let call: Value = serde_json::from_str(&line).unwrap();
            let _ = tx.send((call["id"].as_str().unwrap().to_owned(), call["status"].as_str().unwrap().to_owned()));
        }
    });
    let next = |id: &str, status: &str| {
        let seen = rx.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{id} {status}: {e}"));
        assert_eq!(seen, (id.to_owned(), status.to_owned()));
    };
    next(&first, "done");
    let second = hand_over(&platform, &["shout", "-d", "two"]);
    for status in ["waiting", "running", "done"] {
        next(&second, status);
    }
    // One who waits for a call is answered by whoever serves by then.
    let later = hand_over(&platform, &["shout", "-d", "three", "-H", "X-Taper-Delay: 1h"]);
    next(&later, "waiting");
    let waits = std::thread::scope(|scope| {
        let waits = platform
            .command()
            .env("TAPER_URL", &platform.url)
            .args(["invocations", "show", &later])
            .args(["--wait", "60s", "-o", "json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let waits = scope.spawn(move || waits.wait_with_output().unwrap());
        platform.upgrade();
        assert_eq!(platform.ok(&["invocations", "retry", &later]), format!("{later} runs now\n"));
        waits.join().unwrap()
    });
    let call: Value = serde_json::from_slice(&waits.stdout).unwrap();
    assert_eq!(call["result"]["body"], "THREE", "{call:#}");
    // What happened while nobody could watch is shown as it is then.
    let third = hand_over(&platform, &["shout", "-d", "four"]);
    let mut seen = Vec::new();
    while !(seen.contains(&(later.clone(), "done".to_owned())) && seen.contains(&(third.clone(), "done".to_owned()))) {
        seen.push(rx.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{e}: {seen:?}")));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
}
