//! The address for metrics alone: what is there, what is not, and that whoever is there stands in nobody's way. And floods that
//! come to either address.

use std::{net::SocketAddr, time::Duration};

use axum::{body::Bytes, extract::DefaultBodyLimit, routing::post};
use taper_gateway::Config;
use taper_model::{Pooled, Reply};
use tokio::net::TcpStream;

use crate::harness::*;

fn config() -> Config {
    Config { metrics_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..Config::default() }
}

async fn platform(config: Config) -> (Platform, SocketAddr) {
    let api = axum::Router::new()
        .route("/system/functions", post(|body: Bytes| async move { body.len().to_string() }))
        .layer(DefaultBodyLimit::max(1 << 20));
    let platform =
        Platform::with(config, api, |call| Box::pin(async move { Ok(Reply::new(call.request.into_body())) })).await;
    let address = platform.metrics_address.unwrap();
    (platform, address)
}

async fn ask(address: SocketAddr, head: &str) -> String {
    let mut raw = Raw::to(address).await;
    raw.write(format!("{head}\r\nhost: x\r\nconnection: close\r\n\r\n")).await.rest().await.0
}

#[tokio::test]
async fn metrics_and_health_and_nothing_else() {
    let (platform, beside) = platform(config()).await;
    platform.post("/function/hello", "x").await;
    platform.counts(r#"gateway_function_invocation_total{function_name="hello.openfaas-fn",code="200"} 1"#).await;
    let metrics = ask(beside, "GET /metrics HTTP/1.1\r\nx-forwarded-for: 203.0.113.9").await;
    for line in [
        r#"gateway_function_invocation_total{function_name="hello.openfaas-fn",code="200"} 1"#,
        r#"gateway_service_count{function_name="hello.openfaas-fn"} 3"#,
        r#"gateway_service_ready_count{function_name="hello.openfaas-fn"} 2"#,
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    assert!(ask(beside, "GET /healthz HTTP/1.1").await.starts_with("HTTP/1.1 200 "));
    assert!(ask(beside, "POST /metrics HTTP/1.1").await.starts_with("HTTP/1.1 405 "));
    for path in
        ["/", "/readyz", "/function/hello", "/system/functions", "/v1/functions", "/metrics/", "/async-function/hello"]
    {
        let head = format!("GET {path} HTTP/1.1\r\nauthorization: {BASIC}");
        let answer = ask(beside, &head).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    assert_eq!(platform.end().await.cut, 0);
    assert!(TcpStream::connect(beside).await.is_err(), "it ends with the rest");
}

#[tokio::test]
async fn an_address_that_is_taken_is_said() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config { listen, metrics_listen: Some(address), ..Config::default() };
    let said = refused(config).await;
    assert!(said.contains(&address.to_string()) && said.contains("gateway.metricsListen"), "{said}");
}

/// Why a gateway with this configuration cannot begin.
pub(crate) async fn refused(config: Config) -> String {
    let (_, snapshot) = tokio::sync::watch::channel(std::sync::Arc::new(snapshot()));
    let credentials = taper_gateway::Credentials { user: "admin".into(), password: "secret".into() };
    let parts = taper_gateway::Parts {
        snapshot,
        invoke: std::sync::Arc::new(Nobody),
        queue: None,
        api: axum::Router::new(),
        credentials: tokio::sync::watch::channel(credentials).1,
        gauges: Box::new(Vec::new),
        pool: Box::new(Pooled::default),
        figures: Box::new(Vec::new),
        ready: Box::new(|| true),
        log: Box::new(std::io::sink()),
    };
    let config = Config { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..config };
    let begun = taper_gateway::Gateway::bind(config, parts, taper_gateway::Listeners::default()).await;
    begun.err().expect("it cannot begin").to_string()
}

struct Nobody;

impl taper_model::Invoke for Nobody {
    fn invoke(&self, _: taper_model::Call) -> taper_model::BoxFuture<'_, Result<Reply, taper_model::Fault>> {
        Box::pin(std::future::pending())
    }
}

/// Connections that say nothing, or half of a head, to both addresses: neither those who call nor those who scrape wait for them.
#[tokio::test]
async fn half_open_connections_stand_in_nobodys_way() {
    let config = Config { header_timeout: SHORT, ..config() };
    let (platform, beside) = platform(config).await;
    let mut half = Vec::new();
    for n in 0..250 {
        for address in [platform.address, beside] {
            let mut raw = Raw::to(address).await;
            if n % 2 == 0 {
                raw.write("GET /metrics HTTP/1.1\r\nhost: x\r\nx-half: ").await;
            }
            half.push(raw);
        }
    }
    assert_eq!(platform.post("/function/hello", "works").await.text(), "works");
    assert!(ask(beside, "GET /healthz HTTP/1.1").await.starts_with("HTTP/1.1 200 "));
    for raw in &mut half {
        assert_eq!(raw.rest().await.0, "", "cut without an answer");
    }
}

/// Names and values without end, on both addresses: refused when the bound is passed, not read on.
#[tokio::test]
async fn heads_without_end_are_refused() {
    let (platform, beside) = platform(config()).await;
    for address in [platform.address, beside] {
        for line in [format!("x: {}\r\n", "y".repeat(1000)), "a: b\r\n".to_owned()] {
            let mut raw = Raw::to(address).await;
            raw.write("GET /metrics HTTP/1.1\r\nhost: x\r\n").await;
            let flood = line.repeat((4 << 20) / line.len());
            // It may be cut off while it still writes.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut raw.stream, flood.as_bytes()).await;
            let answer = raw.until("\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        }
    }
    assert_eq!(platform.post("/function/hello", "works").await.text(), "works");
}

/// 300 MB for the control plane: answered when the bound is passed, and before anything is read for who has no password.
#[tokio::test]
async fn a_body_that_is_far_too_large_is_not_waited_for() {
    let (platform, _) = platform(config()).await;
    let head = |more: &str| {
        format!("POST /system/functions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n{more}\r\n", 300 << 20)
    };
    let mut raw = platform.raw().await;
    let answer = raw.write(head("")).await.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let mut raw = platform.raw().await;
    raw.write(head(&format!("authorization: {BASIC}\r\n"))).await.write(vec![b'x'; 2 << 20]).await;
    let answer = raw.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // Who goes on sending all the same is listened to for a while, so that the answer gets through, and then cut.
    let sending = async {
        while tokio::io::AsyncWriteExt::write_all(&mut raw.stream, &[b'x'; 4096]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    within(sending).await;
    assert_eq!(platform.post("/function/hello", "x").await.text(), "x");
}
