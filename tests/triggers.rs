//! Schedules and events: one call for each tick whatever is killed, and each event to those who want it, in every form of HTTP.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::platform::{Answer, Platform};

/// How often the platform is killed while it ticks, and how many ticks it makes between two kills.
const KILLS: usize = 3;
const TICKS: usize = 3;

/// Answers with the tick that it was called for.
const TICKED: &str = "def handle(event, context):\n    return event.headers['x-taper-tick']\n";

/// One request to the resource API, with the password.
fn api(platform: &Platform, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let password = std::fs::read_to_string(platform.data().join("admin-password")).expect("the password");
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("admin:{}", password.trim())));
    let headers = [&[("authorization", basic.as_str())], headers].concat();
    platform.request(method, &format!("/v1/namespaces/default/{path}"), &headers, body.as_bytes())
}

fn get(platform: &Platform, path: &str) -> Value {
    let answer = api(platform, "GET", path, &[], "");
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    serde_json::from_slice(&answer.body).expect("JSON")
}

/// The ids of a trigger's calls that have ended well.
fn done(platform: &Platform, trigger: &str) -> Vec<String> {
    let page = get(platform, &format!("invocations?trigger={trigger}&status=done&limit=1000"));
    page["items"].as_array().expect("items").iter().map(|call| call["id"].as_str().unwrap().to_owned()).collect()
}

fn count(platform: &Platform, query: &str) -> usize {
    get(platform, &format!("invocations?limit=1000&{query}"))["items"].as_array().expect("items").len()
}

/// What the call's function answered.
fn result(platform: &Platform, id: &str) -> String {
    let answer = api(platform, "GET", &format!("invocations/{id}/result"), &[], "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

/// A handler `name` that does this.
fn deploy(platform: &Platform, name: &str, code: &str) {
    let file = platform.file(&format!("{name}.py"), code);
    platform.ok(&["deploy", &file]);
}

fn manifest(name: &str, spec: &str) -> String {
    format!("apiVersion: taper.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

/// Applies a trigger with this spec.
fn apply(platform: &Platform, name: &str, spec: &str) {
    let file = platform.file(&format!("{name}.yaml"), &manifest(name, spec));
    platform.ok(&["deploy", "-f", &file]);
}

/// Milliseconds since the Unix epoch of `2026-01-02T03:04:05.678Z`, of one day: the tests take less than one.
fn of_day(text: &str) -> u64 {
    let part = |from: usize, to: usize| text[from..to].parse::<u64>().unwrap_or_else(|e| panic!("{text}: {e}"));
    ((part(11, 13) * 60 + part(14, 16)) * 60 + part(17, 19)) * 1000 + part(20, 23)
}

/// No two calls are for one tick, and from the first to the last one none is missing; `apart` in milliseconds.
fn every_tick_once(platform: &Platform, trigger: &str, apart: u64) {
    let mut ticks: BTreeMap<String, usize> = BTreeMap::new();
    for id in done(platform, trigger) {
        *ticks.entry(result(platform, &id)).or_default() += 1;
    }
    assert!(ticks.values().all(|calls| *calls == 1), "{ticks:?}");
    let ticks: Vec<&String> = ticks.keys().collect();
    for pair in ticks.windows(2) {
        let (one, next) = (of_day(pair[0]), of_day(pair[1]));
        assert_eq!((next + 86_400_000 - one) % 86_400_000, apart, "between {} and {}: {ticks:?}", pair[0], pair[1]);
    }
}

#[test]
fn every_tick_makes_one_call_through_kills_and_an_upgrade() {
    let mut platform = Platform::start();
    deploy(&platform, "ticked", TICKED);
    apply(&platform, "every-second", r#"{function: ticked, schedule: "@every 1s", missed: all}"#);
    for round in 0..=KILLS {
        let before = done(&platform, "every-second").len();
        platform.until("it ticks", || done(&platform, "every-second").len() >= before + TICKS);
        if round < KILLS {
            platform.kill();
            platform.up();
        }
    }
    platform.upgrade();
    let before = done(&platform, "every-second").len();
    platform.until("it ticks on", || done(&platform, "every-second").len() >= before + TICKS);
    // Suspended it rests, and all that was pushed ends.
    apply(&platform, "every-second", r#"{function: ticked, schedule: "@every 1s", missed: all, suspend: true}"#);
    platform.until("all have ended", || {
        count(&platform, "trigger=every-second&status=waiting")
            + count(&platform, "trigger=every-second&status=running")
            == 0
    });
    let status = &get(&platform, "triggers/every-second")["status"];
    assert_eq!(status["state"], "suspended", "{status}");
    every_tick_once(&platform, "every-second", 1000);
    let all = done(&platform, "every-second").len();
    assert_eq!(all, count(&platform, "trigger=every-second"), "no call is in limbo");
    assert!(all >= TICKS * (KILLS + 2));
}

/// Longer than some ticks are apart.
const SLOW: &str = "import time\n\ndef handle(req):\n    time.sleep(7)\n    return 'slept'\n";

#[test]
fn no_tick_is_missed_while_an_upgrade_waits_for_a_call() {
    let mut platform = Platform::start();
    deploy(&platform, "ticked", TICKED);
    deploy(&platform, "slow", SLOW);
    apply(&platform, "often", r#"{function: ticked, schedule: "@every 2s", missed: skip}"#);
    platform.until("it ticks", || !done(&platform, "often").is_empty());
    assert_eq!(platform.request("POST", "/async-function/slow", &[], b"").status, 202);
    platform.until("the slow one runs", || count(&platform, "function=slow&status=running") == 1);
    let before = count(&platform, "trigger=often");
    platform.upgrade();
    let slow = get(&platform, "invocations?function=slow");
    assert_eq!(
        (&slow["items"][0]["status"], &slow["items"][0]["tries"]),
        (&json!("done"), &json!(1)),
        "it was waited for"
    );
    platform.until("it ticks on", || done(&platform, "often").len() >= before + 4);
    every_tick_once(&platform, "often", 2000);
}

#[test]
fn a_schedule_in_openfaas_s_annotations() {
    let platform = Platform::start();
    let file = platform.file("ticked.py", TICKED);
    let annotated = |schedule: &str| {
        platform.ok(&[
            "deploy",
            &file,
            "--annotation",
            "topic=cron-function",
            "--annotation",
            &format!("schedule={schedule}"),
        ]);
    };
    annotated("* * * * * *");
    platform.until("it ticks", || done(&platform, "ticked").len() >= 2);
    // Nonsense stops the schedule and nothing else.
    annotated("sometimes");
    platform.until("it is shown", || {
        get(&platform, "functions/ticked")["status"]["schedule"]["error"]
            .as_str()
            .is_some_and(|why| why.contains("`sometimes` has 1 fields"))
    });
    assert_eq!(platform.request("GET", "/readyz", &[], b"").status, 200);
    every_tick_once(&platform, "ticked", 1000);
}

/// Answers an order with an event of its own, and anything else with nothing.
const SHOP: &str = "def handle(event, context):
    if event.headers.get('ce-type') != 'order.placed':
        return ''
    return {'statusCode': 200, 'body': 'thanks for ' + event.body.decode(), 'headers': {
        'ce-specversion': '1.0', 'ce-id': 'reply-' + event.headers['ce-id'], 'ce-source': '/shop', 'ce-type': 'order.thanked',
        'content-type': 'text/plain'}}
";
/// Answers with what it was called with.
const SHOWN: &str = "import json

def handle(event, context):
    got = {name: event.headers[name] for name in ('ce-id', 'ce-type', 'ce-source', 'ce-note', 'content-type') if event.headers.get(name)}
    return json.dumps(got | {'body': event.body.decode()})
";

fn event(id: &str, kind: &str, amount: u32) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/till", "type": kind, "amount": amount, "data": {"n": id}})
}

/// What `function`'s calls of a trigger were called with, by the events' ids.
fn seen(platform: &Platform, trigger: &str) -> BTreeMap<String, Value> {
    let all = done(platform, trigger).into_iter().map(|id| {
        let shown: Value = serde_json::from_str(&result(platform, &id)).expect("JSON");
        (shown["ce-id"].as_str().expect("an id").to_owned(), shown)
    });
    all.collect()
}

#[test]
fn events_in_each_mode_reach_those_who_want_them() {
    let platform = Platform::start();
    deploy(&platform, "shop", SHOP);
    deploy(&platform, "shown", SHOWN);
    apply(
        &platform,
        "orders",
        "{function: shop, events: {topic: till, reply: answers}, filters: [{prefix: {type: order.}}]}",
    );
    apply(&platform, "big", "{function: shown, events: {topic: till}, filters: [{cesql: \"amount > 100\"}]}");
    apply(&platform, "thanks", "{function: shown, events: {topic: answers}, filters: [{exact: {source: /shop}}]}");
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "b1"),
        ("ce-source", "/till"),
        ("ce-type", "order.placed"),
        ("ce-amount", "200"),
        ("ce-note", "100%25%20%E2%82%AC"),
        ("content-type", "text/plain"),
    ];
    let send = |headers: &[(&str, &str)], body: &str| {
        let answer = api(&platform, "POST", "events/till", headers, body);
        let said: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(answer.status, 202, "{said}");
        said
    };
    let triggers = |said: &Value| -> Vec<String> {
        said["calls"]
            .as_array()
            .expect("calls")
            .iter()
            .map(|call| call["trigger"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = send(&binary, "a book");
    assert_eq!(triggers(&first), ["big", "orders"]);
    assert_eq!(first, send(&binary, "a book"), "the same event again is the same calls");
    let structured = ("content-type", "application/cloudevents+json");
    assert_eq!(triggers(&send(&[structured], &event("s1", "order.placed", 5).to_string())), ["orders"]);
    let batched = ("content-type", "application/cloudevents-batch+json");
    let batch = json!([event("x1", "stock.low", 1), event("x2", "order.paid", 101), event("x3", "stock.low", 500)]);
    let said = send(&[batched], &batch.to_string());
    let of: Vec<_> = said.as_array().expect("a list").iter().map(triggers).collect();
    assert_eq!(of, [vec![], vec!["big".to_owned(), "orders".to_owned()], vec!["big".to_owned()]]);
    // What the shop answered reached whoever wants answers.
    platform.until("replies arrive", || done(&platform, "thanks").len() == 2);
    let thanks = seen(&platform, "thanks");
    assert_eq!(thanks.keys().collect::<Vec<_>>(), ["reply-b1", "reply-s1"]);
    assert_eq!(thanks["reply-b1"]["body"], "thanks for a book");
    platform.until("all have run", || done(&platform, "big").len() == 3 && done(&platform, "orders").len() == 3);
    let big = seen(&platform, "big");
    assert_eq!(
        big.keys().collect::<BTreeSet<_>>(),
        BTreeSet::from([&"b1".to_owned(), &"x2".to_owned(), &"x3".to_owned()])
    );
    assert_eq!(
        big["b1"],
        json!({"ce-id": "b1", "ce-type": "order.placed", "ce-source": "/till", "ce-note": "100%25%20%E2%82%AC", "content-type": "text/plain", "body": "a book"})
    );
    assert_eq!((&big["x3"]["body"], &big["x3"]["content-type"]), (&json!(r#"{"n":"x3"}"#), &json!("application/json")));
    // Counted, and shown.
    let metrics = platform.request("GET", "/metrics", &[], b"").text();
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().expect("a number")
    };
    assert_eq!((value("taper_trigger_calls_total"), value("taper_trigger_events_total")), (8.0, 8.0));
    assert_eq!(get(&platform, "triggers/big")["status"]["matched"], 4);
    // What is malformed is named, and makes nothing.
    let before = count(&platform, "");
    for (path, headers, body, status, expect) in [
        ("events/till", vec![], "{}", 400, "ce-specversion"),
        ("events/till", vec![("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s")], "", 400, "type"),
        ("events/till", [&binary[..6], &[("ce-x", "%zz")]].concat(), "", 400, "ce-x"),
        ("events/till", vec![structured], r#"{"specversion":"#, 400, "JSON"),
        (
            "events/till",
            vec![batched],
            r#"[{"specversion":"1.0","id":"1","source":"s","type":"t"},{}]"#,
            400,
            "event 2 of 2",
        ),
        ("events/No", binary.to_vec(), "", 400, "topic"),
    ] {
        let answer = api(&platform, "POST", path, &headers, body);
        assert!(
            answer.status == status && answer.text().contains(expect),
            "{headers:?}: {} {}",
            answer.status,
            answer.text()
        );
    }
    let nobody = platform.request("POST", "/v1/namespaces/default/events", &binary, b"");
    assert_eq!(nobody.status, 401, "it wants the password");
    let gone = platform.request("POST", "/v1/namespaces/default/events/till", &[("authorization", "Basic eDp4")], b"");
    assert_eq!(gone.status, 401);
    assert_eq!(count(&platform, ""), before);
}

#[test]
fn what_makes_no_sense_is_refused_where_it_is_said() {
    let platform = Platform::start();
    deploy(&platform, "ticked", TICKED);
    for (spec, expect) in [
        (
            r#"{function: ticked, schedule: "61 * * * *"}"#,
            "spec.schedule: `61 * * * *`: the minute is `61`; allowed are *, 0-59",
        ),
        (r#"{function: ticked, schedule: "0 0 30 2 *"}"#, "never comes"),
        (
            r#"{function: ticked, schedule: "@daily", timeZone: Europe/Viena}"#,
            "spec.timeZone: there is no `Europe/Viena`; did you mean `Europe/Vienna`",
        ),
        (r#"{function: nobody, schedule: "@daily"}"#, "nobody"),
        (r#"{function: ticked, events: {}, filters: [{cesql: "a = "}]}"#, "filters"),
        (r#"{function: ticked}"#, "no source of calls"),
    ] {
        let file = platform.file("wrong.yaml", &manifest("wrong", spec));
        let said = platform.fails(&["deploy", "-f", &file]);
        assert!(said.contains(expect), "{spec}: {said}");
    }
    assert_eq!(get(&platform, "triggers"), json!([]));
}
