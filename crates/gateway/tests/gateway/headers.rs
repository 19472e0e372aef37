//! What a function sees of a caller, and a caller of a function.

use std::time::Duration;

use http::{Request, StatusCode};
use taper_model::{
    Call, CallId, Reply,
    call::{self, Phases, Served, Start, Timing},
    clock,
};

use crate::harness::*;

/// The call as lines of text, answered with our own marks.
fn show(call: &Call) -> String {
    let mut text = format!("{} {} {:?}\n", call.request.method(), call.request.uri(), call.request.version());
    for (name, value) in call.request.headers() {
        text += &format!("{name}: {}\n", value.to_str().unwrap());
    }
    text + &format!("revision {} id {}\n", call.revision, call.id)
}

async fn showing() -> Platform {
    Platform::start(|call| Box::pin(async move { Ok(Reply::new(call::full(show(&call)))) })).await
}

fn line<'a>(shown: &'a str, name: &str) -> &'a str {
    let mut values = shown.lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
    let value = values.next().unwrap_or_else(|| panic!("no {name} in\n{shown}"));
    assert_eq!(values.next(), None, "{name} is there twice in\n{shown}");
    value
}

#[tokio::test]
async fn a_function_never_sees_the_administrators_password() {
    let platform = showing().await;
    let shown = platform.admin("/function/hello").await.text();
    assert!(shown.starts_with("GET / HTTP/1.1\n") && !shown.contains("authorization"), "{shown}");
    let request = Request::get("/function/hello").header("authorization", "Basic eDp5").body(call::empty()).unwrap();
    let shown = platform.send(request).await.text();
    assert_eq!(line(&shown, "authorization"), "Basic eDp5", "what others say is between them and the function");
}

#[tokio::test]
async fn what_a_function_sees() {
    let platform = showing().await;
    let before = clock::unix().as_nanos();
    let request = Request::post("/function/hello.openfaas-fn/a/b%20c/../%2e?x=1&y=%20")
        .header("host", "faas.example.com:8080")
        .header("x-forwarded-for", "203.0.113.9")
        .header("x-forwarded-for", "198.51.100.7:4711")
        .header("forwarded", "for=203.0.113.9")
        .header("connection", "keep-alive, x-hop")
        .header("x-hop", "1")
        .header("keep-alive", "5")
        .header("te", "gzip, trailers")
        .header("proxy-authorization", "Basic x")
        .header("upgrade", "h2c")
        .header("http2-settings", "AAMAAABkAAQAAP__")
        .header("authorization", "Bearer token")
        .header("x-call-id", "my-call.1")
        .header("x-start-time", "1")
        .header("x-custom", "kept")
        .body(call::full("abc"))
        .unwrap();
    let shown = platform.send(request).await.text();
    assert!(shown.starts_with("POST /a/b%20c/../%2e?x=1&y=%20 HTTP/1.1\n"), "{shown}");
    assert!(shown.ends_with("revision hello-00001.default id my-call.1\n"), "{shown}");
    assert_eq!(line(&shown, "host"), "hello.default");
    assert_eq!(line(&shown, "x-forwarded-host"), "faas.example.com:8080");
    assert_eq!(line(&shown, "x-forwarded-proto"), "http");
    let chain = line(&shown, "x-forwarded-for");
    let peer = chain.strip_prefix("203.0.113.9, 198.51.100.7:4711, 127.0.0.1:").expect(chain);
    assert!(peer.parse::<u16>().is_ok(), "{chain}");
    assert_eq!(
        line(&shown, "forwarded"),
        format!("for=203.0.113.9, for=\"127.0.0.1:{peer}\";proto=http;host=\"faas.example.com:8080\"")
    );
    assert_eq!(line(&shown, "x-call-id"), "my-call.1");
    let start: u128 = line(&shown, "x-start-time").parse().unwrap();
    assert!((before - 1_000_000_000..=clock::unix().as_nanos()).contains(&start), "{start}");
    assert_eq!((line(&shown, "content-length"), line(&shown, "te")), ("3", "trailers"));
    assert_eq!((line(&shown, "authorization"), line(&shown, "x-custom")), ("Bearer token", "kept"));
    assert_eq!(line(&shown, "traceparent").len(), 55);
    for gone in ["connection", "x-hop", "keep-alive", "proxy-authorization", "upgrade", "http2-settings"] {
        assert!(!shown.contains(&format!("\n{gone}:")), "{gone} in\n{shown}");
    }
}

#[tokio::test]
async fn ids_traces_and_chains() {
    let platform = showing().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = Request::get("/function/hello")
        .header("traceparent", trace)
        .header("tracestate", "a=1")
        .header("x-forwarded-host", "outer.example.com")
        .header("x-forwarded-proto", "https")
        .header("x-call-id", "not sane")
        .body(call::empty())
        .unwrap();
    let answer = platform.send(request).await;
    let shown = answer.text();
    assert_eq!((line(&shown, "traceparent"), line(&shown, "tracestate")), (trace, "a=1"));
    assert_eq!((line(&shown, "x-forwarded-host"), line(&shown, "x-forwarded-proto")), ("outer.example.com", "https"));
    assert_eq!(line(&shown, "x-call-id").len(), 36, "a sane id in the place of another");
    assert_eq!(answer.header("x-call-id"), line(&shown, "x-call-id"));
    assert!(shown.starts_with("GET / HTTP/1.1\n"), "{shown}");
    let twice = Request::get("/function/hello").header("x-call-id", "a").header("x-call-id", "b");
    let answer = platform.send(twice.body(call::empty()).unwrap()).await;
    let shown = answer.text();
    assert_eq!((shown.matches("\nx-call-id:").count(), line(&shown, "x-call-id").len()), (1, 36), "{shown}");
    assert_eq!(answer.header("x-call-id"), line(&shown, "x-call-id"), "of two names none counts");
    assert!(platform.get("/function/hello?a=b").await.text().starts_with("GET /?a=b "));
    assert!(platform.get("/function/hello/?").await.text().starts_with("GET /?"));
    assert!(platform.get("/function/hello.dev//x").await.text().starts_with("GET //x "));
    assert!(CallId::given(platform.get("/function/hello").await.header("x-call-id")).is_ok());
}

#[tokio::test]
async fn what_a_caller_sees() {
    let platform = Platform::start(|_| {
        Box::pin(async {
            let mut reply = http::Response::builder()
                .status(201)
                .header("x-own", "1")
                .header("x-call-id", "forged")
                .header("x-taper-fault", "queue")
                .header("server-timing", "db;dur=5")
                .header("connection", "close, x-hop")
                .header("x-hop", "1")
                .body(call::full("made"))
                .unwrap();
            let timing = Timing {
                queue: Duration::from_micros(1500),
                activate: Duration::from_millis(20),
                invoke: Duration::from_micros(250),
            };
            let ms = Duration::from_millis;
            let phases = Some(Phases { claim: ms(1), bind: ms(2), load: Duration::from_micros(16_500) });
            reply.extensions_mut().insert(Served { start: Start::Pool, timing, phases, repeated: false });
            Ok(reply)
        })
    })
    .await;
    let request = Request::post("/function/hello")
        .header("x-call-id", "mine")
        .header("content-type", "application/json")
        .body(call::full("{}"))
        .unwrap();
    let answer = platform.send(request).await;
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::CREATED, "made"));
    assert_eq!((answer.header("x-call-id"), answer.header("x-own")), ("mine", "1"));
    assert_eq!(answer.header("x-served-by"), concat!("taper/", env!("CARGO_PKG_VERSION")));
    assert_eq!(answer.header("x-taper-start"), "pool");
    let timing: Vec<&str> = answer.headers.get_all("server-timing").iter().map(|v| v.to_str().unwrap()).collect();
    let ours =
        "queue;dur=1.500, activate;dur=20.000, claim;dur=1.000, bind;dur=2.000, load;dur=16.500, invoke;dur=0.250";
    assert_eq!(timing, ["db;dur=5", ours]);
    assert!(answer.header("x-start-time").parse::<u128>().is_ok());
    assert_eq!(answer.header("x-duration-seconds"), "0.000250", "the function's own time");
    assert_eq!(answer.header("content-type"), "application/json", "the request's, as the function said none");
    assert_eq!((answer.header("x-taper-fault"), answer.header("x-hop")), ("", ""));
    platform.counts(r#"taper_cold_starts_total{function_name="hello.openfaas-fn",start="pool"} 1"#).await;
    platform.counts(r#"taper_cold_start_phase_seconds_bucket{le="0.025",phase="load",start="pool"} 1"#).await;
    platform.counts(r#"taper_stage_seconds_bucket{le="0.05",stage="activate"} 1"#).await;
}

#[tokio::test]
async fn an_answer_of_the_platform_says_how_long_it_took() {
    let answer = showing().await.get("/function/nobody").await;
    let seconds = answer.header("x-duration-seconds");
    assert!(seconds.parse::<f64>().is_ok() && seconds.split_once('.').is_some_and(|(_, f)| f.len() == 6), "{seconds}");
}

#[tokio::test]
async fn content_types_and_redirects() {
    let platform = Platform::start(|call| {
        let path = call.request.uri().path().to_owned();
        Box::pin(async move {
            Ok(match path.as_str() {
                "/redirect" => http::Response::builder()
                    .status(302)
                    .header("location", "http://elsewhere/")
                    .body(call::empty())
                    .unwrap(),
                "/none" => http::Response::builder().status(204).body(call::empty()).unwrap(),
                "/html" => {
                    http::Response::builder().header("content-type", "text/html").body(call::full("<p>")).unwrap()
                }
                _ => Reply::new(call::full("x")),
            })
        })
    })
    .await;
    assert_eq!(platform.get("/function/hello").await.header("content-type"), "text/plain");
    assert_eq!(platform.get("/function/hello/html").await.header("content-type"), "text/html");
    let none = platform.get("/function/hello/none").await;
    assert_eq!((none.header("content-type"), none.header("content-length")), ("", ""));
    let away = platform.get("/function/hello/redirect").await;
    assert_eq!((away.status.as_u16(), away.header("location")), (302, "http://elsewhere/"));
}

#[tokio::test]
async fn head_and_lengths() {
    let platform = Platform::start(|call| {
        let head = call.request.method() == http::Method::HEAD;
        Box::pin(async move {
            let body = if head { call::empty() } else { call::full("12345") };
            Ok(http::Response::builder().header("content-length", if head { "5" } else { "77" }).body(body).unwrap())
        })
    })
    .await;
    let head = platform.send(Request::head("/function/hello").body(call::empty()).unwrap()).await;
    assert_eq!((head.header("content-length"), head.body.len()), ("5", 0));
    let get = platform.get("/function/hello").await;
    assert_eq!(
        (get.header("content-length"), get.text().as_str()),
        ("5", "12345"),
        "a length that is not true does not pass"
    );
    platform.counts(r#"gateway_function_invocation_total{function_name="hello.openfaas-fn",code="200"} 2"#).await;
}

#[tokio::test]
async fn a_caller_of_http2() {
    let platform = showing().await;
    let mut sender = platform.http2().await;
    let request = Request::post(format!("http://{}/function/hello/p?q=1", platform.address))
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(call::full("abc"))
        .unwrap();
    let answer = Answer::of(within(sender.send_request(request)).await.unwrap()).await;
    let shown = answer.text();
    assert!(shown.starts_with("POST /p?q=1 HTTP/2.0\n"), "who carries the call must know, for gRPC: {shown}");
    assert_eq!((line(&shown, "cookie"), line(&shown, "host")), ("a=1; b=2", "hello.default"));
    assert_eq!(line(&shown, "x-forwarded-host"), platform.address.to_string());
    assert_eq!(answer.header("x-call-id"), line(&shown, "x-call-id"));
}

#[tokio::test]
async fn http_1_0() {
    let platform = showing().await;
    let mut raw = platform.raw().await;
    let (answer, ended) = raw.write("GET /function/hello HTTP/1.0\r\n\r\n").await.rest().await;
    ended.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.contains("host: hello.default"), "{answer}");
    assert!(!answer.contains("x-forwarded-host"), "nobody said where it was sent to");
}
