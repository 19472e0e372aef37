//! HTTP/2 without TLS: from the caller to the platform for every mode, and on to the function for gRPC.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::{SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};

use super::deploy;
use crate::platform::{PATIENCE, Platform, text};

type Body = BoxBody<Bytes, std::convert::Infallible>;

/// A client of HTTP/2 that knows beforehand that the platform speaks it.
struct Client {
    sender: SendRequest<Body>,
    address: String,
}

impl Client {
    async fn connect(platform: &Platform) -> Self {
        let address = platform.address().to_owned();
        let stream = TcpStream::connect(&address).await.expect("a connection");
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(connection);
        Self { sender, address }
    }

    async fn send(&self, path: &str, headers: &[(&str, &str)], body: Body) -> Response<Incoming> {
        let mut request = Request::post(format!("http://{}/function/{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut sender = self.sender.clone();
        let response = timeout(PATIENCE, sender.send_request(request.body(body).expect("a request"))).await;
        response.expect("an answer in time").expect("an answer")
    }

    async fn call(&self, path: &str) -> Response<Incoming> {
        self.send(path, &[], Full::default().boxed()).await
    }
}

/// The next piece of a body.
async fn piece(body: &mut Incoming) -> Bytes {
    let frame = timeout(PATIENCE, body.frame()).await.expect("a piece in time");
    frame.expect("a piece").expect("it does not break").into_data().expect("data")
}

/// The rest of a body, and its trailers.
async fn rest(body: Incoming) -> (String, HeaderMap) {
    let all = timeout(PATIENCE, body.collect()).await.expect("its end in time").expect("it does not break");
    let trailers = all.trailers().cloned().unwrap_or_default();
    (text(&all.to_bytes()), trailers)
}

/// A body that a test feeds piece by piece.
fn fed() -> (mpsc::UnboundedSender<Frame<Bytes>>, Body) {
    let (feed, mut fed) = mpsc::unbounded_channel::<Frame<Bytes>>();
    let body = StreamBody::new(futures_util::stream::poll_fn(move |cx| fed.poll_recv(cx).map(|f| f.map(Ok))));
    (feed, BodyExt::boxed(body))
}

fn trailer(name: &'static str, value: &'static str) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert(name, value.parse().expect("a value"));
    Frame::trailers(trailers)
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test);
}

#[test]
fn calls_share_a_connection_and_none_waits_for_another() {
    let platform = Platform::start();
    deploy(&platform, &[]);
    run(async {
        let client = Client::connect(&platform).await;
        let mut held = Vec::new();
        for n in 0..20 {
            let response = client.call(&format!("s/hold/{n}")).await;
            assert_eq!((response.version(), response.status().as_u16()), (Version::HTTP_2, 200));
            let mut body = response.into_body();
            assert_eq!(piece(&mut body).await, "data: first\n\n");
            held.push(body);
        }
        for (n, body) in held.into_iter().enumerate().rev() {
            let (said, _) = rest(client.call(&format!("s/go/{n}")).await.into_body()).await;
            assert!(said.starts_with(&format!("go {n} ")), "{said}");
            assert_eq!(rest(body).await.0, "data: rest\n\n");
        }
        // A stream that its caller resets ends the function's work; the connection goes on.
        let mut left = client.call("s/hold/left").await.into_body();
        piece(&mut left).await;
        drop(left);
        assert_eq!(client.call("s/await/left-left").await.status(), 200);
        assert_eq!(client.call("nobody").await.status(), 404);
    });
}

#[test]
fn both_bodies_stream_at_once_and_trailers_pass() {
    let platform = Platform::start();
    deploy(&platform, &[]);
    run(async {
        let client = Client::connect(&platform).await;
        let (feed, body) = fed();
        let mut echo = client.send("s/echo", &[], body).await.into_body();
        for word in ["one", "two", "three"] {
            feed.send(Frame::data(word.into())).expect("it is read");
            assert_eq!(piece(&mut echo).await, word);
        }
        drop(feed);
        assert_eq!(rest(echo).await.0, "");

        let (feed, body) = fed();
        feed.send(Frame::data("hello".into())).expect("it is read");
        feed.send(trailer("x-sent", "by the caller")).expect("it is read");
        drop(feed);
        let answer = client.send("s/trailers", &[("te", "trailers"), ("trailer", "x-sent")], body).await;
        let (body, trailers) = rest(answer.into_body()).await;
        assert_eq!(body, "body");
        assert_eq!(
            (&trailers["x-length"], &trailers["x-sent"]),
            (&"5".parse().unwrap(), &"by the caller".parse().unwrap())
        );
    });
}

#[test]
fn handlers_and_processes_are_called_so_too() {
    let platform = Platform::start();
    let file = platform.file("up.py", "def handle(req):\n    return req.upper()\n");
    platform.ok(&["deploy", &file]);
    platform.ok(&["deploy", "--name", "cat", "--command", "cat"]);
    run(async {
        let client = Client::connect(&platform).await;
        for (name, expected) in [("up", "HELLO"), ("cat", "hello")] {
            let (feed, body) = fed();
            feed.send(Frame::data("hel".into())).expect("it is read");
            feed.send(Frame::data("lo".into())).expect("it is read");
            drop(feed);
            assert_eq!(rest(client.send(name, &[], body).await.into_body()).await.0, expected);
        }
    });
}

/// A gRPC server in all but the messages: HTTP/2 only, both bodies at once, the status in trailers.
const GRPC: &str = r#"
const http2 = require("http2");
const server = http2.createServer();
let leave, left = new Promise((done) => { leave = done; });
server.on("stream", (stream, headers) => {
  stream.on("aborted", leave);
  if (headers[":path"] === "/echo.Echo/Missing") {
    stream.respond({ ":status": 200, "content-type": "application/grpc", "grpc-status": "12" }, { endStream: true });
    return;
  } else if (headers[":path"] === "/echo.Echo/Left") {
    left.then(() => stream.respond({ ":status": 200, "content-type": "application/grpc", "grpc-status": "0" }, { endStream: true }));
    return;
  }
  stream.respond({ ":status": 200, "content-type": "application/grpc", "x-te": headers.te, "x-host": headers[":authority"] }, { waitForTrailers: true });
  stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0", "grpc-message": "fine" }));
  stream.on("error", () => {});
  stream.pipe(stream);
});
server.listen(process.env.PORT, "127.0.0.1");
"#;

#[test]
fn grpc_reaches_a_server_that_speaks_only_http2() {
    let platform = Platform::start();
    platform.file("g/server.js", GRPC);
    let dir = platform.dir.path().join("g").display().to_string();
    platform.ok(&["deploy", &dir, "--mode", "http", "--command", "node server.js", "--max", "1"]);
    run(async {
        let client = Client::connect(&platform).await;
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        let mut calls = Vec::new();
        for _ in 0..10 {
            let (feed, body) = fed();
            let answer = client.send("g/echo.Echo/Both", &headers, body).await;
            assert_eq!((answer.status().as_u16(), &answer.headers()["x-te"]), (200, &"trailers".parse().unwrap()));
            assert_eq!(answer.headers()["x-host"], "g.default");
            calls.push((feed, answer.into_body()));
        }
        for (n, (feed, mut body)) in calls.into_iter().enumerate() {
            for word in ["\0\0\0\0\u{1}a", "\0\0\0\0\u{1}b"] {
                feed.send(Frame::data(format!("{word}{n}").into())).expect("it is read");
                assert_eq!(piece(&mut body).await, format!("{word}{n}"));
            }
            drop(feed);
            let (nothing, trailers) = rest(body).await;
            assert_eq!(
                (nothing.as_str(), &trailers["grpc-status"], &trailers["grpc-message"]),
                ("", &"0".parse().unwrap(), &"fine".parse().unwrap())
            );
        }
        let missing = client.send("g/echo.Echo/Missing", &headers, Full::default().boxed()).await;
        assert_eq!(missing.headers()["grpc-status"], "12");
        let (feed, body) = fed();
        drop(client.send("g/echo.Echo/Both", &headers, body).await);
        drop(feed);
        let left = client.send("g/echo.Echo/Left", &headers, Full::default().boxed()).await;
        assert_eq!(left.headers()["grpc-status"], "0", "the server hears that a caller left");
    });
}
