//! Wrong passwords: a flood of them, who is slowed by it and who is not, and the one line it leaves; and a password that changes.

use std::{net::SocketAddr, sync::LazyLock, time::Duration};

use http::Request;
use taper_gateway::{Config, Credentials};
use taper_model::{Reply, call};
use tokio::{net::TcpSocket, task::JoinSet, time::Instant};

use crate::harness::*;

const WRONG: &str = "Basic YWRtaW46d3Jvbmc=";

async fn platform() -> Platform {
    let api = axum::Router::new().route("/system/functions", axum::routing::get(|| async { "list" }));
    Platform::with(Config::default(), api, |_| Box::pin(async { Ok(Reply::new(call::full("function"))) })).await
}

/// What the platform logs, in all tests together.
static LOG: LazyLock<Lines> = LazyLock::new(|| {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).expect("nobody else listens");
    lines
});

/// A request with a wrong password from this address, on a connection of its own: the answer, and how long it took.
async fn guess(from: [u8; 4], address: SocketAddr) -> (String, Duration) {
    let begun = Instant::now();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let mut raw = Raw::on(socket.connect(address).await.unwrap());
    let head =
        format!("GET /system/functions HTTP/1.1\r\nhost: x\r\nauthorization: {WRONG}\r\nconnection: close\r\n\r\n");
    let (answer, _) = raw.write(head).await.rest().await;
    (answer, begun.elapsed())
}

#[tokio::test]
async fn a_flood_is_slowed_and_nobody_else_is() {
    // The addresses of the loopback are many; this one is nobody else's in these tests.
    let from = [127, 9, 9, 9];
    let log = LOG.clone();
    let platform = platform().await;
    let mut guesses = JoinSet::new();
    for _ in 0..100 {
        guesses.spawn(guess(from, platform.address));
        // The right password, and calls of functions, are answered between two of them.
        let begun = Instant::now();
        assert_eq!(platform.admin("/system/functions").await.text(), "list");
        assert_eq!(platform.post("/function/hello", "x").await.text(), "function");
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    let mut slow = 0;
    while let Some(done) = guesses.join_next().await {
        let (answer, took) = done.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401 ") && answer.ends_with("\r\n\r\ninvalid credentials"), "{answer}");
        assert!(answer.contains("www-authenticate: Basic realm=\"Restricted\"\r\n"), "{answer}");
        slow += usize::from(took >= Duration::from_secs(2));
    }
    assert!(slow >= 90, "{slow} of 100 had to wait for two seconds");
    let (answer, _) = guess([127, 0, 0, 1], platform.address).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert_eq!(platform.get("/system/functions").await.status, 401, "who says nothing guesses nothing");
    platform.end().await;
    let said = log.text();
    let told: Vec<&str> = said.lines().filter(|l| l.contains("from=127.9.9.9")).collect();
    assert_eq!(told.len(), 1, "{said}");
    assert!(told[0].contains("WARN") && told[0].contains("attempts=100"), "{said}");
    assert!(!said.contains("YWRtaW46"), "{said}");
}

#[tokio::test]
async fn more_than_may_wait_are_turned_away_and_the_end_waits_for_none() {
    let platform = platform().await;
    let mut kept = Vec::new();
    for _ in 0..300 {
        let mut raw = platform.raw().await;
        raw.write(format!("GET /system/x HTTP/1.1\r\nhost: x\r\nauthorization: {WRONG}\r\n\r\n")).await;
        kept.push(raw);
    }
    // Three are answered at once, 256 wait at a time, and the others lose their connections.
    let mut away = 0;
    while away < 41 {
        let answers = kept.iter_mut().map(|raw| Box::pin(raw.until("\r\n\r\n")));
        let (answer, at, _) = futures_util::future::select_all(answers).await;
        drop(kept.swap_remove(at));
        if answer.starts_with("HTTP/1.1 429 ") {
            assert!(answer.contains("connection: close\r\n") && answer.contains("retry-after: 1\r\n"), "{answer}");
            away += 1;
        }
    }
    assert_eq!(platform.admin("/system/functions").await.text(), "list", "the right one is let in all the same");
    let begun = Instant::now();
    assert_eq!(platform.end().await.cut, 0);
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_password_that_changes_holds_at_once() {
    let platform = platform().await;
    assert_eq!(platform.admin("/system/functions").await.status, 200);
    platform.credentials.send_replace(Credentials { user: "operator".into(), password: "other".into() });
    assert_eq!(platform.admin("/system/functions").await.status, 401, "the former one");
    let request = |value: &'static str, path: &'static str| {
        Request::get(path).header("authorization", value).body(call::empty()).unwrap()
    };
    assert_eq!(platform.send(request("Basic b3BlcmF0b3I6b3RoZXI=", "/system/functions")).await.status, 200);
}
