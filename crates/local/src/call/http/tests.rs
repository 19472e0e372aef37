//! Calls against stand-in servers over real Unix sockets: hyper's own, and bytes by hand where a server misbehaves.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use ::http::{HeaderMap, Response, Version};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use taper_model::{BoxFuture, CallId, FunctionName, Invoke, RevisionId, quantity::Memory};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::super::{Processes, Run, Way};
use super::*;

mod hostile;

type Serve = Arc<dyn Fn(UnixStream) -> BoxFuture<'static, ()> + Send + Sync>;
type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

struct Bench {
    run: Run,
    fate: Arc<Fate>,
    slots: Arc<Semaphore>,
    accepted: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

fn raw_bench(serve: Serve) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    let listener = UnixListener::bind(&path).unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(stream));
        }
    });
    let fate = Arc::new(Fate::new(Memory(64 << 20), Processes::Shared, || 0));
    let connect: Connect = Arc::new(move || {
        let path = path.clone();
        Box::pin(async move { Ok(UnixStream::connect(path).await?.into_std()?.into()) })
    });
    let slots = Arc::new(Semaphore::new(4));
    let run = Run { way: Way::Http(Http::new(connect, fate.clone())), slots: slots.clone() };
    Bench { run, fate, slots, accepted, _dir: dir }
}

fn bench<F>(handler: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Bench
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
    raw_bench(Arc::new(move |stream| {
        let handler = handler.clone();
        Box::pin(async move {
            let service = service_fn(move |request| {
                let handler = handler.clone();
                async move { Ok::<_, std::convert::Infallible>(handler(request).await) }
            });
            let mut first = [0; 3];
            // Prior knowledge: an HTTP/2 client begins with its preface.
            while stream.readable().await.is_ok() && peek(&stream, &mut first) < 3 {}
            if &first == b"PRI" {
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            } else {
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            }
        })
    }))
}

/// How many of the first three bytes are there; three as well when none will come.
fn peek(stream: &UnixStream, buffer: &mut [u8; 3]) -> usize {
    let look = || Ok(rustix::net::recv(stream, buffer, rustix::net::RecvFlags::PEEK)?.0);
    stream.try_io(tokio::io::Interest::READABLE, look).map_or(0, |n| if n == 0 { 3 } else { n })
}

/// Answers with `answer` to the first request of each connection, whatever it is, and then does `after`.
fn by_hand(answer: &'static [u8], keep: bool) -> Bench {
    raw_bench(Arc::new(move |mut stream| {
        Box::pin(async move {
            let mut seen = Vec::new();
            while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
                if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            stream.write_all(answer).await.unwrap();
            if keep {
                let _ = stream.read_to_end(&mut seen).await;
            }
        })
    }))
}

fn request(method: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri("/p?q").header("host", "hello.example").body(body).unwrap()
}

impl Bench {
    async fn invoke(&self, request: Request<Body>) -> Result<Reply, Fault> {
        self.within(Duration::from_secs(30), request).await
    }

    async fn within(&self, time: Duration, request: Request<Body>) -> Result<Reply, Fault> {
        let revision = RevisionId::new(FunctionName::parse("hello").unwrap(), 1);
        let deadline = Instant::now() + time;
        self.run.invoke(Call { terms: Default::default(), id: CallId::random(), revision, deadline, request }).await
    }

    async fn rested(&self) {
        drop(timeout(Duration::from_secs(20), self.slots.acquire_many(4)).await.unwrap().unwrap());
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

async fn bytes(reply: Reply) -> Bytes {
    reply.into_body().collect().await.unwrap().to_bytes()
}

fn channel() -> (mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>, Body) {
    let (tx, rx) = mpsc::unbounded_channel();
    let frames = futures_util::stream::unfold(rx, |mut rx| async { Some((rx.recv().await?, rx)) });
    (tx, Body::new(StreamBody::new(frames)))
}

async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut reply = Response::new(Body::new(body.map_err(BoxError::from)));
    for name in ["host", "connection", "te", "x-hop", "content-type"] {
        if let Some(value) = parts.headers.get(name) {
            reply.headers_mut().insert(::http::HeaderName::try_from(format!("got-{name}")).unwrap(), value.clone());
        }
    }
    reply.headers_mut().insert("got-uri", parts.uri.to_string().parse().unwrap());
    reply
}

#[tokio::test]
async fn bodies_of_every_size_over_one_connection() {
    let bench = bench(echo);
    for size in [0, 1, 65_536, 1 << 20, 10_000_000] {
        let sent: Bytes = (0..size).map(|n| (n * 31 % 251) as u8).collect::<Vec<u8>>().into();
        let reply = bench.invoke(request("POST", call::full(sent.clone()))).await.unwrap();
        assert_eq!(reply.headers()["got-host"], "hello.example");
        assert_eq!(reply.headers()["got-uri"], "/p?q");
        assert!(bytes(reply).await == sent, "{size} bytes");
        bench.rested().await;
    }
    assert_eq!(bench.accepted(), 1, "one connection for all");
}

#[tokio::test]
async fn hop_by_hop_headers_end_here() {
    let bench = bench(|request| async move {
        let mut reply = echo(request).await;
        reply.headers_mut().insert("connection", "x-private".parse().unwrap());
        reply.headers_mut().insert("x-private", "1".parse().unwrap());
        reply
    });
    let mut sent = request("GET", call::empty());
    for (name, value) in
        [("connection", "X-Hop, keep-alive"), ("x-hop", "1"), ("te", "gzip"), ("expect", "100-continue")]
    {
        sent.headers_mut().insert(name, value.parse().unwrap());
    }
    let reply = bench.invoke(sent).await.unwrap();
    let mut names: Vec<_> = reply.headers().keys().map(::http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "date", "got-host", "got-uri"]);
}

#[tokio::test]
async fn both_directions_stream_with_trailers() {
    let bench = bench(|request| async move {
        let mut reply = Response::new(Body::new(request.into_body().map_err(BoxError::from)));
        reply.headers_mut().insert("trailer", "x-sum".parse().unwrap());
        reply
    });
    let (tx, body) = channel();
    let mut sent = request("POST", body);
    sent.headers_mut().insert("trailer", "x-sum".parse().unwrap());
    sent.headers_mut().insert("te", "trailers".parse().unwrap());
    tx.send(Ok(Frame::data("one".into()))).unwrap();
    let mut reply = bench.invoke(sent).await.unwrap().into_body();
    assert_eq!(reply.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    assert_eq!(bench.slots.available_permits(), 3, "the slot is held while the body runs");
    tx.send(Ok(Frame::data("two".into()))).unwrap();
    assert_eq!(reply.frame().await.unwrap().unwrap().into_data().unwrap(), "two");
    let mut sum = HeaderMap::new();
    sum.insert("x-sum", "6".parse().unwrap());
    tx.send(Ok(Frame::trailers(sum))).unwrap();
    drop(tx);
    assert_eq!(reply.frame().await.unwrap().unwrap().into_trailers().unwrap()["x-sum"], "6");
    assert!(reply.frame().await.is_none());
    bench.rested().await;
}

#[tokio::test]
async fn upgrades_become_tunnels() {
    let bench = bench(|mut request| async move {
        assert_eq!(request.headers()["connection"], "upgrade");
        let mut reply = Response::new(call::empty());
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        reply.headers_mut().insert("connection", "upgrade".parse().unwrap());
        reply.headers_mut().insert("upgrade", request.headers()["upgrade"].clone());
        tokio::spawn(async move {
            let mut io = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = io.read(&mut buffer).await {
                io.write_all(&buffer[..n]).await.unwrap();
            }
        });
        reply
    });
    let mut sent = request("GET", call::empty());
    sent.headers_mut().insert("connection", "keep-alive, Upgrade".parse().unwrap());
    sent.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    let reply = bench.invoke(sent).await.unwrap();
    assert_eq!(reply.status(), 101);
    assert_eq!(reply.headers()["upgrade"], "websocket");
    let mut io = reply.extensions().get::<call::Upgraded>().and_then(call::Upgraded::take).unwrap();
    for message in ["ping", "pong"] {
        io.write_all(message.as_bytes()).await.unwrap();
        let mut back = [0; 4];
        io.read_exact(&mut back).await.unwrap();
        assert_eq!(back, message.as_bytes());
    }
    assert_eq!(bench.slots.available_permits(), 3, "the tunnel is in flight");
    drop((io, reply));
    bench.rested().await;
}

#[tokio::test]
async fn grpc_goes_over_one_http2_connection() {
    let bench = bench(|request| async move {
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.headers()["te"], "trailers");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut status = HeaderMap::new();
        status.insert("grpc-status", "0".parse().unwrap());
        let frames = [Ok(Frame::data(body)), Ok(Frame::trailers(status))];
        Response::new(Body::new(StreamBody::new(futures_util::stream::iter(frames))))
    });
    let grpc = || {
        let mut sent = request("POST", call::full("message"));
        *sent.version_mut() = Version::HTTP_2;
        sent.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
        sent.headers_mut().insert("te", "trailers".parse().unwrap());
        sent
    };
    let (a, b) = tokio::join!(bench.invoke(grpc()), bench.invoke(grpc()));
    for reply in [a.unwrap(), b.unwrap()] {
        let whole = reply.into_body().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(whole.to_bytes(), "message");
    }
    assert_eq!(bench.accepted(), 1);
    bench.rested().await;
}

#[tokio::test]
async fn connections_end_when_the_server_says_so() {
    for (answer, connections) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"[..], 3),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 3),
        (b"HTTP/1.0 200 OK\r\n\r\nok", 3),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=1\r\n\r\nok", 3),
    ] {
        let bench = by_hand(answer, false);
        for _ in 0..3 {
            let reply = bench.invoke(request("POST", call::full(""))).await.unwrap();
            assert!(!reply.headers().contains_key("connection") && !reply.headers().contains_key("keep-alive"));
            assert_eq!(bytes(reply).await, "ok");
            bench.rested().await;
        }
        assert_eq!(bench.accepted(), connections, "{}", String::from_utf8_lossy(answer));
    }
}

#[tokio::test]
async fn a_server_that_closes_without_a_word_costs_no_call() {
    // It says nothing of closing, and closes all the same: sometimes seen before the next request, sometimes after.
    let bench = by_hand(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false);
    for _ in 0..50 {
        assert_eq!(bytes(bench.invoke(request("GET", call::empty())).await.unwrap()).await, "ok");
    }
    assert_eq!(bench.accepted(), 50);
}

#[tokio::test]
async fn broken_answers_are_faults() {
    for (answer, keep, words) in [
        (&b"SSH-2.0-OpenSSH_9.2\r\n\r\n"[..], true, "did not answer in HTTP"),
        (b"", false, "closed the connection before it answered"),
        (b"HTTP/1.1 200 OK\r\nContent-", false, "closed the connection before it answered"),
    ] {
        let bench = by_hand(answer, keep);
        let fault = bench.invoke(request("POST", call::full("x"))).await.unwrap_err();
        assert_eq!((fault.stage, fault.cause), (Stage::Invoke, Cause::Died));
        assert!(fault.message.contains(words), "{fault}");
        assert!(fault.unsent.is_none());
    }
    let bench = by_hand(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", false);
    let reply = bench.invoke(request("POST", call::full("x"))).await.unwrap();
    assert!(reply.into_body().collect().await.is_err());
    bench.rested().await;
}

#[tokio::test]
async fn the_deadline_and_a_caller_that_leaves_close_the_connection() {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let bench = raw_bench(Arc::new(move |mut stream| {
        let tx = tx.clone();
        Box::pin(async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
            tx.send(()).unwrap();
        })
    }));
    let fault = bench.within(Duration::from_millis(50), request("POST", call::full("x"))).await.unwrap_err();
    assert_eq!((fault.stage, fault.cause), (Stage::Invoke, Cause::Deadline));
    timeout(Duration::from_secs(20), rx.recv()).await.unwrap();
    let left = timeout(Duration::from_millis(50), bench.invoke(request("POST", call::full("x")))).await;
    assert!(left.is_err());
    timeout(Duration::from_secs(20), rx.recv()).await.unwrap();
    bench.rested().await;
}

/// A connection keeps its alarm from call to call: one that rings early ends nothing, and one that would ring late is set anew.
#[tokio::test]
async fn calls_of_one_connection_keep_to_their_own_deadlines() {
    let answer = Arc::new(Semaphore::new(1));
    let gate = answer.clone();
    let bench = bench(move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            Response::new(call::full("ok"))
        }
    });
    let short = Duration::from_millis(50);
    assert_eq!(bytes(bench.within(short, request("GET", call::empty())).await.unwrap()).await, "ok");
    let late = async {
        tokio::time::sleep(2 * short).await;
        answer.add_permits(1);
    };
    let (second, ()) = tokio::join!(bench.invoke(request("GET", call::empty())), late);
    assert_eq!(bytes(second.unwrap()).await, "ok", "the first call's deadline is not the second's");
    assert_eq!(bench.accepted(), 1, "all over one connection");
    let third = timeout(Duration::from_secs(20), bench.within(short, request("GET", call::empty()))).await;
    assert_eq!(third.unwrap().unwrap_err().cause, Cause::Deadline, "nor the second's the third's");
    bench.rested().await;
}

#[tokio::test]
async fn what_nobody_uses_is_closed() {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let bench = raw_bench(Arc::new(move |mut stream| {
        let tx = tx.clone();
        Box::pin(async move {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") && stream.read_buf(&mut seen).await.unwrap() > 0 {}
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            tx.send(stream.read(&mut [0; 16]).await.unwrap()).unwrap();
        })
    }));
    assert_eq!(bytes(bench.invoke(request("GET", call::empty())).await.unwrap()).await, "ok");
    let left = timeout(Duration::from_secs(20), rx.recv()).await.expect("closed though no call came");
    assert_eq!(left, Some(0));
}

#[tokio::test]
async fn a_request_that_breaks_is_the_callers_doing() {
    let bench = bench(|request| async move {
        let _ = request.into_body().collect().await;
        Response::new(call::empty())
    });
    let (tx, body) = channel();
    tx.send(Ok(Frame::data("some".into()))).unwrap();
    tx.send(Err("the client is gone".into())).unwrap();
    let fault = bench.invoke(request("POST", body)).await.unwrap_err();
    assert_eq!(fault.cause, Cause::CallerLeft);
    bench.rested().await;
}

#[tokio::test]
async fn a_server_that_is_gone_gives_the_call_back_and_is_condemned() {
    let bench = bench(echo);
    let refused: Connect = Arc::new(|| Box::pin(async { Err(io::Error::new(io::ErrorKind::ConnectionRefused, "no")) }));
    let run = Run { way: Way::Http(Http::new(refused, bench.fate.clone())), slots: bench.slots.clone() };
    let bench = Bench { run, ..bench };
    let fault = bench.invoke(request("POST", call::full("precious"))).await.unwrap_err();
    let back = fault.unsent.unwrap().request;
    assert_eq!(back.into_body().collect().await.unwrap().to_bytes(), "precious");
    assert!(bench.fate.condemned().await.contains("accepts no connections"));
}

/// What is allocated for every call: the allocator's short way ends at 1 KiB.
#[tokio::test]
async fn a_call_is_small() {
    let bench = bench(echo);
    let revision = RevisionId::new(FunctionName::parse("hello").unwrap(), 1);
    let call = Call {
        terms: Default::default(),
        id: CallId::random(),
        revision,
        deadline: Instant::now(),
        request: request("GET", call::empty()),
    };
    let Way::Http(http) = &bench.run.way else { unreachable!() };
    let permit = bench.slots.clone().try_acquire_owned().unwrap();
    let size = size_of_val(&http.invoke(call, Slot { _permit: permit }));
    assert!(size < 1000, "{size} bytes");
}

/// Reads one request of each connection, says this, and closes.
fn breaks_off(saying: &'static [u8]) -> Bench {
    raw_bench(Arc::new(move |mut stream| {
        Box::pin(async move {
            let mut seen = Vec::new();
            // The last byte of any body that is sent here.
            while !(seen.ends_with(b"\r\n\r\n") || seen.ends_with(b"!")) {
                if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let _ = stream.write_all(saying).await;
        })
    }))
}

#[tokio::test]
async fn what_may_be_sent_twice_comes_back_whole_when_no_byte_of_an_answer_came() {
    let bench = breaks_off(b"");
    let keyed = |body| {
        let mut request = request("POST", body);
        request.headers_mut().insert("idempotency-key", "k1".parse().unwrap());
        request
    };
    for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
        let fault = bench.invoke(request(method, call::empty())).await.unwrap_err();
        let call = fault.unsent.expect("it may be sent twice");
        assert!(call.terms.repeated && fault.cause == Cause::Died, "{}", fault.message);
        assert_eq!((call.request.method().as_str(), call.request.uri().path()), (method, "/p"));
        // The second time is the last.
        assert!(bench.run.invoke(*call).await.unwrap_err().unsent.is_none());
    }
    let fault = bench.invoke(keyed(call::full("whole!"))).await.unwrap_err();
    let back = fault.unsent.expect("its caller says that it may").request;
    assert_eq!(back.into_body().collect().await.unwrap().to_bytes(), "whole!");

    // Not without the key, whatever the method promises.
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        assert!(bench.invoke(request(method, call::full("whole!"))).await.unwrap_err().unsent.is_none(), "{method}");
    }
    // Not when some of the body is gone.
    let (tx, body) = channel();
    let call = tokio::spawn(async move { (bench.invoke(keyed(body)).await, bench) });
    for piece in ["one ", "two ", "three!"] {
        tx.send(Ok(Frame::data(piece.into()))).unwrap();
    }
    drop(tx);
    let (outcome, _bench) = call.await.unwrap();
    let fault = outcome.unwrap_err();
    assert!(fault.unsent.is_none(), "some of it is gone");

    // Nor when it had begun to answer.
    let bench = breaks_off(b"HTTP/1.1 2");
    let fault = bench.invoke(request("GET", call::empty())).await.unwrap_err();
    assert!(fault.unsent.is_none() && fault.cause == Cause::Died, "{fault}");
}

#[tokio::test]
async fn a_request_that_went_to_a_closing_connection_first_counts_as_sent() {
    // The first connection serves one call and then breaks off in the second; so does every other at once.
    let connections = AtomicUsize::new(0);
    let bench = raw_bench(Arc::new(move |mut stream| {
        let first = connections.fetch_add(1, Ordering::Relaxed) == 0;
        Box::pin(async move {
            let mut seen = Vec::new();
            for n in 0..2 {
                seen.clear();
                while !seen.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                if !first || n == 1 {
                    return;
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        })
    }));
    assert_eq!(bytes(bench.invoke(request("GET", call::empty())).await.unwrap()).await, "ok");
    let fault = bench.invoke(request("GET", call::empty())).await.unwrap_err();
    assert_eq!((bench.accepted(), fault.unsent.is_none()), (2, true), "sent twice, and no more");
}
