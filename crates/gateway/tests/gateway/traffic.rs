//! Which revision a call goes to: shares, callers that stay, tags, and what the function and its caller hear of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use taper_gateway::Config;
use taper_model::{
    Call, Cause, Fault, Function, FunctionName, FunctionSpec, Reply, Revision, RevisionId, RevisionState, Stage, call,
    revision::Entry,
    traffic::{Held, Routing, Shift},
};
use taper_store::Snapshot;

use crate::harness::*;

/// `split` with revisions 1 to 3, all of them ready, and this routing, as JSON.
pub(crate) fn split(routing: &str) -> Function {
    let name = FunctionName::parse("split").unwrap();
    let revisions = (1..=3).map(|number| {
        let revision = Revision::bare(RevisionId::new(name.clone(), number), FunctionSpec::default());
        Entry { revision: Arc::new(revision), state: RevisionState::Ready }
    });
    let routing: Routing = serde_json::from_str(routing).unwrap();
    taper_model::traffic::validate(&routing, &name, None).unwrap_or_else(|e| {
        assert!(e.0.contains("does not exist"), "{e}");
    });
    Function {
        name: name.clone(),
        revisions: revisions.collect(),
        scale: None,
        created_ms: 0,
        routing: Arc::new(routing),
        held: None,
        shift: None,
    }
}

/// A snapshot with this function.
pub(crate) fn of(version: u64, function: Function) -> Arc<Snapshot> {
    let functions = [(function.name.clone(), Arc::new(function))].into_iter().collect();
    Arc::new(Snapshot { version, functions, ..Snapshot::default() })
}

/// Answers with the name of the revision.
pub(crate) fn named(call: Call) -> taper_model::BoxFuture<'static, Result<Reply, Fault>> {
    Box::pin(async move {
        let name = call.revision.name();
        let _ = call.request.into_body().collect().await;
        Ok(Reply::new(call::full(name)))
    })
}

async fn platform(routing: &str) -> Platform {
    let platform = Platform::start(named).await;
    platform.publish.send_replace(of(2, split(routing)));
    platform
}

async fn with(platform: &Platform, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get("/function/split/x").body(call::empty()).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    let answer = platform.send(request).await;
    if answer.status == 200 {
        assert_eq!(answer.text(), answer.header("x-taper-revision"), "who answered is who is said to");
    }
    answer
}

/// Calls over kept-alive connections, and how many each revision got.
async fn count(platform: &Platform, calls: usize) -> HashMap<String, usize> {
    let mut seen = HashMap::new();
    let mut raw = platform.raw().await;
    for _ in 0..calls / 100 {
        raw.write("GET /function/split HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100)).await;
        for _ in 0..100 {
            let head = raw.until("\r\n\r\n").await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            *seen.entry(raw.exactly("split-00001".len()).await).or_default() += 1;
        }
    }
    seen
}

/// How many standard deviations that many calls are from a share of so many percent.
fn off(seen: Option<&usize>, calls: usize, percent: usize) -> f64 {
    let (seen, calls, part) = (seen.copied().unwrap_or(0) as f64, calls as f64, percent as f64 / 100.0);
    (seen - calls * part).abs() / (calls * part * (1.0 - part)).sqrt()
}

/// Chance alone exceeds this bound once in a million.
fn about(seen: Option<&usize>, calls: usize, percent: usize) {
    assert!(off(seen, calls, percent) <= 5.0, "{seen:?} of {calls} are not {percent} %");
}

/// Within three standard deviations, which chance exceeds in one of 370 rounds: hardly in two of three.
#[tokio::test]
async fn ten_thousand_calls_at_ninety_and_ten() {
    let platform =
        platform(r#"{"traffic": [{"latest": true, "percent": 10}, {"revision": "split-00001", "percent": 90}]}"#).await;
    let (mut within, mut all) = (0, HashMap::<String, usize>::new());
    for _ in 0..3 {
        let seen = count(&platform, 10_000).await;
        assert_eq!(seen.len(), 2, "{seen:?}");
        within += usize::from(off(seen.get("split-00001"), 10_000, 90) <= 3.0);
        seen.into_iter().for_each(|(name, calls)| *all.entry(name).or_default() += calls);
    }
    assert!(within >= 2, "{all:?}");
    for (revision, calls) in all {
        let line = format!(
            r#"taper_revision_calls_total{{function_name="split.openfaas-fn",revision="{revision}",outcome="ok"}} {calls}"#
        );
        platform.counts(&line).await;
    }
}

#[tokio::test]
async fn what_is_held_and_what_takes_over() {
    let platform = Platform::start(named).await;
    let only = |function: Function, name: &'static str| {
        platform.publish.send_modify(|now| *now = of(now.version + 1, function));
        async { assert_eq!(count(&platform, 200).await, HashMap::from([(name.to_owned(), 200)])) }
    };
    only(split("{}"), "split-00003").await;
    let held = Held { revision: 2, why: "a rollback".into(), at_ms: 0 };
    only(Function { held: Some(held.clone()), ..split("{}") }, "split-00002").await;
    let shift = |percent| Some(Shift { from: 2, to: 3, percent, since_ms: 0 });
    only(Function { shift: shift(0), ..split("{}") }, "split-00002").await;
    only(Function { shift: shift(100), ..split("{}") }, "split-00003").await;
    only(Function { shift: shift(50), held: Some(held), ..split("{}") }, "split-00002").await;
    let half = r#"{"traffic": [{"latest": true, "percent": 50}, {"revision": "split-00001", "percent": 50}]}"#;
    platform.publish.send_replace(of(90, Function { shift: shift(20), ..split(half) }));
    let seen = count(&platform, 4000).await;
    for (name, percent) in [("split-00001", 50), ("split-00002", 40), ("split-00003", 10)] {
        about(seen.get(name), 4000, percent);
    }
}

const STICKY: &str = r#"{"sticky": {"header": "X-User"},
    "traffic": [{"latest": true, "percent": 20}, {"revision": "split-00001", "percent": 80}]}"#;

#[tokio::test]
async fn callers_with_a_header_never_move() {
    let platform = platform(STICKY).await;
    let lanes = [platform.raw().await, platform.raw().await, platform.raw().await];
    let lanes = lanes.map(tokio::sync::Mutex::new);
    let ask = async |lane: usize, user: usize| {
        let mut raw = lanes[lane % lanes.len()].lock().await;
        raw.write(format!("GET /function/split HTTP/1.1\r\nhost: x\r\nx-user: u{user}\r\n\r\n")).await;
        raw.until("\r\n\r\n").await;
        raw.exactly("split-00001".len()).await
    };
    let mut first = Vec::new();
    for user in 0..400 {
        first.push(ask(0, user).await);
    }
    let new = |seen: &[String]| seen.iter().filter(|name| *name == "split-00003").count();
    about(Some(&new(&first)), 400, 20);
    for (user, name) in first.iter().enumerate() {
        assert_eq!(ask(user, user).await, *name, "on whatever lane");
    }
    // Another gateway, as after a restart.
    let other = self::platform(STICKY).await;
    assert_eq!(with(&other, &[("x-user", "u7")]).await.text(), first[7]);
    // More for the new one: whoever is there stays, and some come.
    let more = STICKY.replace("20", "60").replace("80", "40");
    platform.publish.send_replace(of(3, split(&more)));
    let mut after = Vec::new();
    for (user, before) in first.iter().enumerate() {
        let name = ask(user, user).await;
        assert!(name == *before || name == "split-00003", "{user} went back");
        after.push(name);
    }
    about(Some(&new(&after)), 400, 60);
    // Who says nothing is anybody.
    let mut seen = std::collections::HashSet::new();
    while seen.len() < 2 {
        seen.insert(with(&platform, &[]).await.text());
    }
}

#[tokio::test]
async fn callers_with_a_cookie_never_move() {
    let routing = STICKY.replace(r#"{"header": "X-User"}"#, r#"{"cookie": "taper"}"#);
    let platform = platform(&routing).await;
    let mut cookies = Vec::new();
    for _ in 0..40 {
        let answer = with(&platform, &[]).await;
        let set = answer.header("set-cookie").to_owned();
        let (pair, rest) = set.split_once(';').expect("a cookie with attributes");
        assert_eq!(rest, " Path=/function/split; HttpOnly; SameSite=Lax");
        let value = pair.strip_prefix("taper=").expect("its name");
        assert!(value.len() == 32 && value.bytes().all(|b| b.is_ascii_hexdigit()), "{value}");
        cookies.push((pair.to_owned(), answer.text()));
    }
    let mut values: Vec<_> = cookies.iter().map(|(pair, _)| pair).collect();
    values.sort();
    values.dedup();
    assert_eq!(values.len(), 40, "each caller is one of its own");
    for (pair, name) in &cookies {
        let answer = with(&platform, &[("cookie", "a=b"), ("cookie", &format!("c=d; {pair}; e=f"))]).await;
        assert_eq!((answer.text().as_str(), answer.header("set-cookie")), (name.as_str(), ""));
    }
    let more = routing.replace("20", "60").replace("80", "40");
    platform.publish.send_replace(of(3, split(&more)));
    for (pair, name) in &cookies {
        let now = with(&platform, &[("cookie", pair)]).await.text();
        assert!(now == *name || now == "split-00003");
    }
    // Where there is nothing to choose there is nothing to remember.
    platform.publish.send_replace(of(4, split(r#"{"sticky": {"cookie": "taper"}}"#)));
    assert_eq!(with(&platform, &[]).await.header("set-cookie"), "");
}

/// What a function gets of the headers that decide.
async fn heard(routing: &str, given: &[(&str, &str)]) -> (Answer, HeaderMap) {
    let seen = Arc::new(Mutex::new(HeaderMap::new()));
    let inside = Arc::clone(&seen);
    let platform = Platform::start(move |call| {
        *inside.lock().unwrap() = call.request.headers().clone();
        named(call)
    })
    .await;
    platform.publish.send_replace(of(2, split(routing)));
    let answer = with(&platform, given).await;
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (answer, seen)
}

#[tokio::test]
async fn a_tag_reaches_its_revision_only() {
    const TAGGED: &str = r#"{"traffic": [{"latest": true, "percent": 100}, {"revision": "split-00001", "tag": "old"},
        {"revision": "split-00002", "tag": "middle"}]}"#;
    for (header, tag, name) in [
        ("X-Taper-Tag", "old", "split-00001"),
        ("Knative-Serving-Tag", "old", "split-00001"),
        ("x-taper-tag", "middle", "split-00002"),
        ("x-taper-tag", "", "split-00003"),
    ] {
        let (answer, seen) = heard(TAGGED, &[(header, tag)]).await;
        assert_eq!(answer.text(), name);
        assert_eq!(seen.get("knative-serving-default-route").is_some(), tag.is_empty(), "{tag}");
    }
    for unknown in ["gone", "OLD", "old, middle", "split-00001"] {
        let (answer, seen) = heard(TAGGED, &[("knative-serving-tag", unknown)]).await;
        assert_eq!(answer.text(), "split-00003");
        assert_eq!(seen["knative-serving-default-route"], "true", "{unknown}");
    }
    // Also where the function has no tags at all.
    let (_, seen) = heard("{}", &[("x-taper-tag", "gone")]).await;
    assert_eq!(seen["knative-serving-default-route"], "true");
    // Nobody but the platform says so, or that a call is a copy, or that a trigger or a delivery made it.
    let forged = [
        ("knative-serving-default-route", "true"),
        ("x-taper-mirror", "true"),
        ("x-taper-pin", "old"),
        ("x-taper-trigger", "nightly"),
        ("x-taper-tick", "2026-01-02T03:00:00.000Z"),
        ("x-taper-delivery", "5e1f"),
    ];
    let (answer, seen) = heard(TAGGED, &forged).await;
    assert_eq!(answer.text(), "split-00003");
    assert!(forged.iter().all(|(name, _)| !seen.contains_key(*name)), "{seen:?}");
    let platform = platform(TAGGED).await;
    for _ in 0..50 {
        assert_eq!(with(&platform, &[("x-taper-tag", "middle")]).await.text(), "split-00002");
        assert_eq!(with(&platform, &[]).await.text(), "split-00003");
    }
}

/// The tag of a host: nothing else decides there, and one that is not there is nowhere.
#[tokio::test]
async fn a_host_with_a_tag() {
    let seen = Arc::new(Mutex::new(HeaderMap::new()));
    let inside = Arc::clone(&seen);
    let platform = Platform::start(move |call| {
        *inside.lock().unwrap() = call.request.headers().clone();
        named(call)
    })
    .await;
    let routing = r#"{"sticky": {"cookie": "taper"}, "traffic": [{"latest": true, "percent": 50},
        {"revision": "split-00002", "percent": 50}, {"revision": "split-00001", "tag": "old"}]}"#;
    platform.publish.send_replace(of(2, split(routing)));
    let ask = async |host: &str| {
        let request =
            Request::get("/a").header("host", host).header("x-taper-tag", "gone").body(call::empty()).unwrap();
        platform.send(request).await
    };
    let answer = ask("old-split.default.localhost").await;
    assert_eq!((answer.text().as_str(), answer.header("set-cookie")), ("split-00001", ""));
    let headers = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(headers["knative-serving-tag"], "old");
    assert!(!headers.contains_key("knative-serving-default-route"));
    let answer = ask("new-split.default.localhost").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (404, "route"));
    assert!(seen.lock().unwrap().is_empty(), "nobody was called");
    let answer = ask("split.default.localhost").await;
    assert!(answer.header("set-cookie").ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{answer:?}");
}

/// A revision that cannot start has its share all the same: its calls go nowhere else.
#[tokio::test]
async fn no_call_is_moved_elsewhere() {
    let platform = Platform::start(|call| {
        Box::pin(async move {
            match call.revision.number() {
                1 => Err(Fault::new(Stage::Activate, Cause::CannotStart, "ModuleNotFoundError")),
                _ => Ok(Reply::new(call::full("well"))),
            }
        })
    })
    .await;
    let routing = r#"{"traffic": [{"latest": true, "percent": 50}, {"revision": "split-00001", "percent": 50}]}"#;
    platform.publish.send_replace(of(2, split(routing)));
    let mut failed = 0;
    for _ in 0..200 {
        let answer = platform.get("/function/split").await;
        let well = answer.header("x-taper-revision") == "split-00003";
        assert_eq!(answer.status.as_u16(), if well { 200 } else { 502 }, "{answer:?}");
        failed += usize::from(!well);
    }
    about(Some(&failed), 200, 50);
    let line = |revision: &str, outcome: &str, n: usize| {
        format!(
            r#"taper_revision_calls_total{{function_name="split.openfaas-fn",revision="{revision}",outcome="{outcome}"}} {n}"#
        )
    };
    platform.counts(&line("split-00001", "failed", failed)).await;
    platform.counts(&line("split-00001", "ok", 0)).await;
    platform.counts(&line("split-00003", "ok", 200 - failed)).await;
}

#[tokio::test]
async fn how_calls_of_a_revision_end() {
    let (feed, body) = fed();
    let slot = Mutex::new(Some(body));
    let platform = Platform::with(Config::default(), axum::Router::new(), move |call| {
        let body = slot.lock().unwrap().take_if(|_| call.request.uri().path() == "/broken");
        Box::pin(async move {
            let status = call.request.uri().path().trim_start_matches('/').parse().unwrap_or(200);
            Ok(http::Response::builder().status(status).body(body.unwrap_or_else(call::empty)).unwrap())
        })
    })
    .await;
    platform.publish.send_replace(of(2, split("{}")));
    for status in [200, 204, 404, 429, 499, 500, 503] {
        assert_eq!(platform.get(&format!("/function/split/{status}")).await.status.as_u16(), status);
    }
    let mut raw = platform.raw().await;
    raw.write("GET /function/split/broken HTTP/1.1\r\nhost: x\r\n\r\n").await;
    feed.data("begin").await;
    raw.until("begin").await;
    feed.broken().await;
    let _ = raw.rest().await;
    let line = |outcome: &str, n: usize| {
        format!(
            r#"taper_revision_calls_total{{function_name="split.openfaas-fn",revision="split-00003",outcome="{outcome}"}} {n}"#
        )
    };
    platform.counts(&line("failed", 3)).await;
    platform.counts(&line("ok", 5)).await;
    // A revision that is gone leaves nothing.
    let mut gone = split("{}");
    gone.revisions.truncate(2);
    let mut newer = gone.clone();
    let four = Revision { id: RevisionId::new(gone.name.clone(), 4), ..Revision::clone(&gone.revisions[0].revision) };
    newer.revisions.push(Entry { revision: Arc::new(four), state: RevisionState::Ready });
    platform.publish.send_replace(of(3, newer));
    let text = platform.metrics().await;
    assert!(!text.contains("split-00003"), "{text}");
}
