//! Callbacks: what arrives, what is tried again, what is never sent, and that a restart forgets none.

use std::{sync::Arc, time::Duration};

use http::Uri;
use taper_model::{
    BoxFuture, Fault, Reply,
    call::{self, Place},
};
use taper_queue::{Config, Entry, Journal, Parcel, Queue, Run, Settled, Tried, Verdict, conformance};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::service::{Tools, is_idle, serve, until};

/// A receiver that gives these answers, one after another, and tells what it was sent.
pub(crate) async fn receiver(answers: &'static [&'static str]) -> (Uri, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = request(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
            tell.send(request).unwrap();
        }
    });
    (format!("http://{address}/back?x=1").parse().unwrap(), told)
}

/// What comes on a connection, up to the end that every body here has.
async fn request(stream: &mut TcpStream) -> String {
    let mut request = String::new();
    while !request.ends_with("|end") {
        let mut part = [0; 4096];
        let n = stream.read(&mut part).await.unwrap();
        request.push_str(std::str::from_utf8(&part[..n]).unwrap());
    }
    request
}

pub(crate) struct Answers(pub(crate) u16);

impl Run for Answers {
    fn run<'a>(&'a self, _: &'a Entry, _: u32, _: &'a Place) -> BoxFuture<'a, Result<Reply, Fault>> {
        let reply = http::Response::builder().status(self.0).header("x-made", "here").header("connection", "close");
        Box::pin(async move { Ok(reply.body(call::full("answer|end")).unwrap()) })
    }
}

/// Addresses inside the host may be sent to: where else would a test listen.
pub(crate) fn allowed() -> Config {
    Config { private_callbacks: true, ..Config::default() }
}

pub(crate) fn open(dir: &tempfile::TempDir) -> Arc<Journal> {
    Arc::new(Journal::open(&dir.path().join("queue"), allowed(), conformance::unlimited()).unwrap())
}

fn tools(status: u16) -> Tools {
    Tools { config: allowed(), ..Tools::of(Answers(status)) }
}

pub(crate) fn entry(callback: &Uri) -> Entry {
    let correlation = Some("mine".into());
    Entry { callback: Some(callback.clone()), correlation, ..conformance::entry("f", b"x") }
}

#[tokio::test]
async fn the_answer_is_delivered_as_openfaas_does() {
    let (uri, mut told) = receiver(&["202 Accepted"]).await;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    let id = queue.push(entry(&uri)).await.unwrap().id;
    let mut request = String::new();
    serve(Arc::clone(&queue) as _, tools(201), async { request = told.recv().await.unwrap() }).await;
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "answer|end");
    assert!(head.starts_with("POST /back?x=1 HTTP/1.1\r\n"), "{head}");
    for line in [
        "x-made: here",
        "x-call-id: mine",
        "x-function-name: f",
        "x-function-status: 201",
        "content-length: 10",
        &format!("x-taper-delivery: {id}"),
        &format!("host: {}", uri.authority().unwrap()),
    ] {
        assert!(head.lines().any(|l| l == line), "{line}: {head}");
    }
    let took = head.lines().find_map(|l| l.strip_prefix("x-duration-seconds: ")).unwrap();
    assert!(took.parse::<f64>().unwrap() >= 0.0);
    assert!(!head.contains("connection"), "{head}");
}

/// The receiver fails, then the platform ends, then it is delivered; a dead letter's too.
#[tokio::test]
async fn what_was_not_delivered_is_tried_again_also_after_a_restart() {
    let (uri, mut told) = receiver(&["500 No", "503 No", "200 OK"]).await;
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    let id = queue.push(entry(&uri)).await.unwrap().id;
    let mut first = String::new();
    serve(Arc::clone(&queue) as _, tools(502), async { first = told.recv().await.unwrap() }).await;
    assert!(first.contains("x-function-status: 502"), "{first}");
    assert!(is_idle(&queue));
    drop(queue);
    let queue = open(&dir);
    let (mut second, mut third) = (String::new(), String::new());
    let both = async {
        second = told.recv().await.unwrap();
        third = told.recv().await.unwrap();
    };
    serve(Arc::clone(&queue) as _, tools(200), both).await;
    for again in [second, third] {
        let delivery = format!("x-taper-delivery: {id}");
        assert!(again.contains(&delivery) && again.contains("x-function-status: 502"), "{again}");
    }
}

/// And a delivery is in one pair of hands at a time, and over when that was said.
#[tokio::test]
async fn what_is_inside_the_host_is_never_sent_to() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    queue.push(entry(&format!("http://{gone}/").parse().unwrap())).await.unwrap();
    let lease = queue.lease().await.unwrap();
    let ended = conformance::settled(Verdict::Done, 200, b"answer|end");
    queue.settle(&lease, Settled { parcels: vec![Parcel::Callback], ..ended }).await.unwrap();
    drop(lease);
    let delivery = queue.outbox().await.unwrap();
    assert_eq!((delivery.tries, delivery.details.answer.as_ref().unwrap().body.len()), (0, 10));
    // Dropped, it is due as it was; tried, it comes again and counts.
    drop(delivery);
    queue
        .delivered(
            &mut queue.outbox().await.unwrap(),
            Tried::Again { after: Duration::from_millis(5), why: "busy".into() },
        )
        .await
        .unwrap();
    let mut delivery = queue.outbox().await.unwrap();
    assert_eq!(delivery.tries, 1);
    queue.delivered(&mut delivery, Tried::Delivered).await.unwrap();
    drop(queue);
    let queue = open(&dir);
    assert!(futures_util::poll!(queue.outbox()).is_pending(), "it is over");

    // Inside the host, and not allowed: never connected to, whatever name it goes by.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for there in ["http://127.0.0.1", "https://127.0.0.1", "http://localhost", "https://localhost"] {
        queue.push(entry(&format!("{there}:{port}/").parse().unwrap())).await.unwrap();
    }
    let refused = Tools::of(Answers(200));
    assert!(!refused.config.private_callbacks);
    let over = until(|| queue.stats().done == 4 && queue.stats().parcels == 0);
    serve(Arc::clone(&queue) as _, refused, over).await;
    assert!(futures_util::poll!(Box::pin(listener.accept())).is_pending());
}

/// The receiver has the callback when the shutdown begins, and answers after that.
#[tokio::test]
async fn a_callback_that_is_under_way_at_a_shutdown_is_not_sent_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri: Uri = format!("http://{}/back", listener.local_addr().unwrap()).parse().unwrap();
    let (tell, told) = tokio::sync::oneshot::channel();
    let (answer, may_answer) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        tell.send(()).unwrap();
        may_answer.await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    });
    let dir = tempfile::tempdir().unwrap();
    let queue = open(&dir);
    queue.push(entry(&uri)).await.unwrap();
    let shutdown = async {
        told.await.unwrap();
        // The answer comes when the service has seen the shutdown.
        tokio::spawn(async move { answer.send(()).unwrap() });
    };
    serve(Arc::clone(&queue) as _, tools(200), shutdown).await;
    assert_eq!(queue.stats().parcels, 0);
}
