//! Who may pass where: every door with no, wrong and right credentials; and what stands behind the open ones.

use std::net::SocketAddr;

use axum::{
    Router,
    extract::{ConnectInfo, Extension},
    routing::{get, post},
};
use http::Request;
use taper_gateway::Config;
use taper_model::{CallId, Reply, call};

use crate::harness::*;

/// A control plane that answers everywhere it can, even where the gateway's own doors are.
fn api() -> Router {
    let greedy = || async { "control plane" };
    Router::new()
        .route("/system/functions", get(greedy))
        .route("/v1/functions", post(greedy))
        .route("/function/{*rest}", get(greedy).post(greedy))
        .route("/metrics", get(greedy))
        .route("/healthz", get(greedy))
        .route("/{*rest}", get(greedy))
        .route("/", get(greedy))
}

async fn platform() -> Platform {
    Platform::with(Config::default(), api(), |_| Box::pin(async { Ok(Reply::new(call::full("function"))) })).await
}

const BEHIND: [&str; 24] = [
    "/",
    "/system",
    "/system/",
    "/system/functions",
    "/system/unknown",
    "/systems",
    "/v1/functions",
    "/v1",
    "/v1/unknown",
    "/ui/",
    "/2015-03-31/functions",
    "/unknown",
    "/favicon.ico",
    "//system/functions",
    "//function/hello",
    "/./function/hello",
    "/%66unction/hello",
    "/Function/hello",
    "/functions",
    "/function%2fhello",
    "/healthz/",
    "/healthz/../system/functions",
    "/metrics/",
    "/%68ealthz",
];

#[tokio::test]
async fn nothing_behind_the_check_is_reached_without_it() {
    let platform = platform().await;
    let closed = async |method: &str, path: &str, credentials: Option<&str>| {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(credentials) = credentials {
            request = request.header("authorization", credentials);
        }
        let answer = platform.send(request.body(call::empty()).unwrap()).await;
        assert_eq!(answer.status, 401, "{method} {path} with {credentials:?}");
        assert_eq!(answer.header("www-authenticate"), "Basic realm=\"Restricted\"");
        assert_eq!(answer.header("x-taper-fault"), "accept");
        assert!(!answer.text().contains("control plane"));
    };
    let methods = ["GET", "POST", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"];
    for path in BEHIND {
        for method in methods {
            closed(method, path, None).await;
        }
    }
    // Wrong ones wait for their answers, so they are asked at the same time.
    let wrong = ["Basic YWRtaW46d3Jvbmc=", "Bearer secret", "Basic !", ""];
    let all = wrong.iter().flat_map(|wrong| {
        let closed = &closed;
        BEHIND.iter().enumerate().map(move |(n, path)| closed(methods[n % methods.len()], path, Some(wrong)))
    });
    futures_util::future::join_all(all).await;
}

/// Targets that are no paths, as raw bytes: they lead to no open door either.
#[tokio::test]
async fn odd_targets_are_closed() {
    let platform = platform().await;
    let address = platform.address;
    for line in [
        "OPTIONS *".to_owned(),
        format!("CONNECT {address}"),
        format!("GET http://{address}/system/functions"),
        format!("GET http://{address}"),
        "GET /system/functions?/function/hello".to_owned(),
        "GET /system/functions#/function/hello".to_owned(),
    ] {
        let mut raw = platform.raw().await;
        let text = format!("{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        let (answer, _) = raw.write(text).await.rest().await;
        let status = &answer[..answer.len().min(12)];
        assert!(["HTTP/1.1 401", "HTTP/1.1 400"].contains(&status), "{line}: {answer}");
    }
    let mut sender = platform.http2().await;
    let request = Request::get(format!("http://{address}/system/functions")).body(call::empty()).unwrap();
    assert_eq!(within(sender.send_request(request)).await.unwrap().status(), 401);
}

#[tokio::test]
async fn errors_have_the_shape_of_their_surface() {
    let platform = platform().await;
    let system = platform.get("/system/functions").await;
    assert_eq!(
        (system.text().as_str(), system.header("content-type")),
        ("invalid credentials", "text/plain; charset=utf-8")
    );
    assert_eq!(platform.get("/v1/functions").await.error()["error"], "unauthenticated");
    // With credentials, a control plane that serves two addresses only.
    let api = Router::new()
        .route("/system/functions", get(|| async { "list" }))
        .route("/v1/functions", get(|| async { "list" }));
    let platform = Platform::with(Config::default(), api, |_| Box::pin(async { Ok(Reply::new(call::empty())) })).await;
    let missing = platform.admin("/system/nothing").await;
    assert_eq!((missing.status.as_u16(), missing.text().as_str()), (404, "404 page not found\n"));
    let missing = platform.admin("/v1/nothing").await;
    assert_eq!((missing.status.as_u16(), &missing.error()["stage"]), (404, &"route".into()));
    assert_eq!(platform.admin("/").await.error()["error"], "not_found");
    for (path, text) in [("/system/functions", true), ("/v1/functions", false)] {
        let request = Request::delete(path).header("authorization", BASIC).body(call::empty()).unwrap();
        let answer = platform.send(request).await;
        assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "GET,HEAD"), "{path}");
        assert_eq!(answer.body.is_empty(), text, "{path}: {answer:?}");
    }
    assert_eq!(platform.admin("/v1/functions").await.text(), "list");
}

#[tokio::test]
async fn the_open_doors_are_the_gateways_own() {
    let platform = platform().await;
    assert_eq!(platform.get("/function/hello").await.text(), "function", "no route can shadow a function");
    assert_eq!(platform.post("/function/hello/system/functions", "x").await.text(), "function");
    let health = platform.get("/healthz").await;
    assert_eq!((health.status.as_u16(), health.body.len()), (200, 0));
    assert_eq!(platform.get("/readyz").await.status, 200);
    for path in ["/healthz", "/readyz", "/metrics"] {
        let head = platform.send(Request::head(path).body(call::empty()).unwrap()).await;
        assert_eq!((head.status.as_u16(), head.body.len()), (200, 0), "HEAD {path}");
        let post = platform.post(path, "x").await;
        assert_eq!((post.status.as_u16(), post.header("allow")), (405, "GET, HEAD"), "POST {path}");
    }
}

#[tokio::test]
async fn metrics_are_for_this_machine() {
    let platform = platform().await;
    let here = platform.get("/metrics").await;
    assert_eq!(here.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(here.text().ends_with("# EOF\n"));
    for relayed in ["x-forwarded-for", "forwarded"] {
        let request = |with: Option<&str>| {
            let mut request = Request::get("/metrics").header(relayed, "203.0.113.9");
            if let Some(with) = with {
                request = request.header("authorization", with);
            }
            request.body(call::empty()).unwrap()
        };
        assert_eq!(platform.send(request(None)).await.status, 401, "a proxy on this machine passed it on");
        assert_eq!(platform.send(request(Some(BASIC))).await.status, 200);
    }
}

#[tokio::test]
async fn metrics_tell_of_calls() {
    let platform = platform().await;
    platform.post("/function/hello.openfaas-fn", "x").await;
    platform.post("/function/hello.dev", "x").await;
    platform.post("/function/nobody", "x").await;
    platform.post("/function/nobody.else", "x").await;
    for line in [
        r#"gateway_function_invocation_total{function_name="hello.openfaas-fn",code="200"} 1"#,
        r#"gateway_function_invocation_total{function_name="hello.dev",code="200"} 1"#,
        r#"gateway_function_invocation_started{function_name="hello.dev"} 1"#,
        r#"gateway_functions_seconds_count{function_name="hello.dev",code="200"} 1"#,
        r#"gateway_service_count{function_name="hello.openfaas-fn"} 3"#,
        r#"gateway_service_count{function_name="hello.dev"} 0"#,
        r#"taper_queue_depth{function_name="hello.openfaas-fn"} 7"#,
        r#"taper_instances{function_name="hello.openfaas-fn",state="starting"} 1"#,
        r#"taper_faults_total{stage="route"} 2"#,
        r#"taper_stage_seconds_count{stage="route"} 2"#,
    ] {
        platform.counts(line).await;
    }
    assert!(!platform.metrics().await.contains("nobody"), "what a caller thinks up is no label");
}

#[tokio::test]
async fn a_deleted_function_is_gone_at_once() {
    let platform = platform().await;
    assert_eq!(platform.get("/function/hello").await.status, 200);
    platform.publish.send_modify(|s| *s = std::sync::Arc::new(taper_store::Snapshot::default()));
    assert_eq!(platform.get("/function/hello").await.status, 404);
    assert!(!platform.metrics().await.contains("hello.openfaas-fn\",code"));
}

#[tokio::test]
async fn the_control_plane_knows_who_asks() {
    let who = |ConnectInfo(peer): ConnectInfo<SocketAddr>, Extension(id): Extension<CallId>| async move {
        format!("{} {id}", peer.ip())
    };
    let api = Router::new().route("/v1/who", get(who));
    let platform = Platform::with(Config::default(), api, |_| Box::pin(async { Ok(Reply::new(call::empty())) })).await;
    let answer = platform.admin("/v1/who").await;
    assert_eq!(answer.text(), format!("127.0.0.1 {}", answer.header("x-call-id")));
}
