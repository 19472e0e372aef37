//! Calls against a stand-in runtime that speaks the watchdog's frames over a real Unix socket.

use std::{
    pin::pin,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use http_body_util::{BodyExt, StreamBody};
use taper_model::{BoxFuture, CallId, FunctionName, Invoke, RevisionId, call, quantity::Memory};
use taper_watchdog::wire::{FrameReader, FrameWriter, Kind};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use super::super::{End, Processes, Run, Way};
use super::*;

/// What the stand-in does with a connection.
type Serve = Arc<dyn Fn(UnixStream) -> BoxFuture<'static, ()> + Send + Sync>;

struct Bench {
    run: Run,
    fate: Arc<Fate>,
    slots: Arc<Semaphore>,
    accepted: Arc<AtomicUsize>,
    kills: Arc<AtomicU64>,
    server: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

fn bench<F>(slots: usize, serve: impl Fn(FrameReader, FrameWriter) -> F + Send + Sync + 'static) -> Bench
where
    F: Future<Output = ()> + Send + 'static,
{
    raw_bench(
        slots,
        Arc::new(move |stream| {
            let (reader, writer) = wire::split(stream);
            Box::pin(serve(reader, writer))
        }),
    )
}

fn raw_bench(slots: usize, serve: Serve) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("calls");
    let listener = UnixListener::bind(&path).unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(stream));
        }
    });
    let kills = Arc::new(AtomicU64::new(0));
    let witness = kills.clone();
    let fate = Arc::new(Fate::new(Memory(128 << 20), Processes::PerCall, move || witness.load(Ordering::Relaxed)));
    let connect: Connect = Arc::new(move || {
        let path = path.clone();
        Box::pin(async move { Ok(UnixStream::connect(path).await?.into_std()?.into()) })
    });
    let slots = Arc::new(Semaphore::new(slots));
    let framed = Framed::new(connect, fate.clone(), Handle::current());
    let run = Run { way: Way::Framed(framed), slots: slots.clone() };
    Bench { run, fate, slots, accepted, kills, server, dir }
}

fn call_of(body: Body) -> Call {
    call_within(Duration::from_secs(30), body)
}

fn call_within(time: Duration, body: Body) -> Call {
    Call {
        terms: Default::default(),
        id: CallId::given("call-1").unwrap(),
        revision: RevisionId::new(FunctionName::parse("hello").unwrap(), 7),
        deadline: Instant::now() + time,
        request: ::http::Request::post("/a%20b?x=1").header("X-Many", "1").header("X-Many", "2").body(body).unwrap(),
    }
}

impl Bench {
    async fn call(&self, body: impl Into<Bytes>) -> Result<Reply, Fault> {
        self.run.invoke(call_of(call::full(body))).await
    }

    /// Waits until every slot is free.
    async fn rested(&self, slots: u32) {
        drop(timeout(Duration::from_secs(20), self.slots.acquire_many(slots)).await.unwrap().unwrap());
    }
}

async fn bytes(reply: Reply) -> Bytes {
    reply.into_body().collect().await.unwrap().to_bytes()
}

/// The request's whole body, or nothing when it was cancelled. A CANCEL between calls crossed the end of the last one.
async fn read(reader: &mut FrameReader) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while reader.next().await.ok()??.kind != Kind::Head {}
    loop {
        let frame = reader.next().await.ok()??;
        match frame.kind {
            Kind::Head | Kind::Whole => unreachable!("one call at a time"),
            Kind::Data => body.extend_from_slice(&frame.payload),
            Kind::End => return Some(body),
            Kind::Cancel | Kind::Fault => return None,
        }
    }
}

fn ok(length: Option<u64>) -> wire::Reply {
    wire::Reply { status: 200, length, headers: [("X-From", "runtime")].into_iter().collect() }
}

fn failure(what: FaultKind, message: &str) -> wire::Fault {
    wire::Fault { what, message: message.into(), detail: Some("Traceback".into()), exit: None }
}

/// Answers every call with its body.
async fn echo(mut reader: FrameReader, mut writer: FrameWriter) {
    while let Some(body) = read(&mut reader).await {
        writer.reply(&ok(None)).unwrap();
        writer.data(&body.into());
        writer.end();
        if writer.flush().await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn bodies_of_every_size_over_one_connection() {
    let bench = bench(1, echo);
    for size in [0, 1, 4095, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 10_000_000] {
        let sent: Bytes = (0..size).map(|n| (n * 31 % 251) as u8).collect::<Vec<u8>>().into();
        let reply = bench.call(sent.clone()).await.unwrap();
        assert_eq!(reply.status(), 200);
        assert_eq!(reply.headers()["x-from"], "runtime");
        let got = bytes(reply).await;
        assert!(got == sent, "{size} bytes");
        bench.rested(1).await;
    }
    assert_eq!(bench.accepted.load(Ordering::Relaxed), 1, "one connection for all");
}

#[tokio::test]
async fn a_small_reply_is_whole_at_once() {
    let bench = bench(1, echo);
    let reply = bench.call("small").await.unwrap();
    let hint = reply.body().size_hint().exact();
    // Only when both writes of the stand-in came as one, as they do here, where it writes once.
    assert_eq!(hint, Some(5), "the length is known without being said");
    assert_eq!(bench.slots.available_permits(), 1, "the slot is free before the body was read");
    assert_eq!(bytes(reply).await, "small");
}

#[tokio::test]
async fn the_head_says_it_all() {
    let (tx, rx) = oneshot::channel();
    let tx = Arc::new(Mutex::new(Some(tx)));
    let bench = bench(1, move |mut reader, mut writer| {
        let tx = tx.clone();
        async move {
            let head = reader.next().await.unwrap().unwrap();
            tx.lock().unwrap().take().unwrap().send(head.payload).unwrap();
            writer.reply(&ok(None)).unwrap();
            writer.end();
            writer.flush().await.unwrap();
        }
    });
    let mut call = call_of(call::full("abc"));
    let headers = call.request.headers_mut();
    for (name, value) in
        [("connection", "close, x-hop"), ("x-hop", "1"), ("te", "trailers"), ("transfer-encoding", "chunked")]
    {
        headers.insert(name, value.parse().unwrap());
    }
    headers.insert("x-latin", HeaderValue::from_bytes(b"caf\xe9").unwrap());
    bench.run.invoke(call).await.unwrap();
    let head = rx.await.unwrap();
    let head = wire::Call::decode(&head).unwrap();
    assert_eq!((&*head.method, &*head.path, &*head.query), ("POST", "/a%20b", "x=1"));
    assert_eq!((&*head.function, &*head.namespace, &*head.revision), ("hello", "default", "hello-00007"));
    assert_eq!((&*head.id, head.content_length), ("call-1", Some(3)));
    assert!((29_000..=30_000).contains(&head.deadline_ms), "{}", head.deadline_ms);
    let mut headers: Vec<(&str, &str)> = head.headers.iter().map(|(k, v)| (&**k, &**v)).collect();
    headers.sort_unstable();
    assert_eq!(headers, [("x-latin", "café"), ("x-many", "1"), ("x-many", "2")]);
}

#[tokio::test]
async fn faults_of_the_runtime() {
    let bench = bench(1, |mut reader, mut writer| async move {
        while let Some(body) = read(&mut reader).await {
            let mut fault = match &body[..] {
                b"exit" => failure(FaultKind::Exit, "exit status 3"),
                b"killed" => failure(FaultKind::Exit, "killed by signal 9"),
                b"large" => failure(FaultKind::TooLarge, "too large"),
                _ => failure(FaultKind::Exception, "ValueError: no"),
            };
            fault.exit = (body == b"exit").then_some(3);
            writer.fault(&fault).unwrap();
            writer.flush().await.unwrap();
        }
    });
    let fault = bench.call("x").await.unwrap_err();
    assert_eq!((fault.stage, fault.cause, &*fault.message), (Stage::Invoke, Cause::Exception, "ValueError: no"));
    assert_eq!(fault.detail.as_deref(), Some("Traceback"));
    assert!(fault.unsent.is_none());
    assert_eq!(bench.call("exit").await.unwrap_err().cause, Cause::Exit(3));
    assert_eq!(bench.call("large").await.unwrap_err().cause, Cause::BodyTooLarge);
    assert_eq!(bench.call("killed").await.unwrap_err().cause, Cause::Exit(-1));
    bench.kills.fetch_add(1, Ordering::Relaxed);
    let fault = bench.call("killed").await.unwrap_err();
    assert_eq!((fault.cause, &*fault.message), (Cause::OutOfMemory, "out of memory (limit 128Mi)"));
    assert_eq!(bench.call("exit").await.unwrap_err().cause, Cause::Exit(3), "what exits by itself was not killed");
    assert_eq!(bench.accepted.load(Ordering::Relaxed), 1, "a failed call leaves its connection usable");
}

#[tokio::test]
async fn a_caller_that_leaves_holds_its_slot_until_the_runtime_rests() {
    let (cancelled, mut was_cancelled) = mpsc::unbounded_channel();
    let (go, gone) = tokio::sync::watch::channel(false);
    let bench = bench(1, move |mut reader, mut writer| {
        let (cancelled, mut gone) = (cancelled.clone(), gone.clone());
        async move {
            while let Some(body) = read(&mut reader).await {
                if body == b"stream" {
                    writer.reply(&ok(None)).unwrap();
                    writer.data(&"first".into());
                    writer.flush().await.unwrap();
                }
                if body != b"quick" {
                    assert_eq!(reader.next().await.unwrap().unwrap().kind, Kind::Cancel);
                    cancelled.send(()).unwrap();
                    gone.wait_for(|go| *go).await.unwrap();
                    writer.fault(&failure(FaultKind::Cancelled, "cancelled")).unwrap();
                } else {
                    writer.reply(&ok(Some(0))).unwrap();
                    writer.end();
                }
                writer.flush().await.unwrap();
            }
        }
    });
    // The future is dropped while the function works.
    {
        let mut left = pin!(bench.call("slow"));
        while bench.accepted.load(Ordering::Relaxed) == 0 {
            assert!(futures_util::poll!(left.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            assert!(futures_util::poll!(left.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
    }
    was_cancelled.recv().await.unwrap();
    assert_eq!(bench.slots.available_permits(), 0, "the runtime still works on it");
    // A place is kept for it, and one only.
    let place = Arc::new(());
    assert_eq!(bench.run.lingers(), 1);
    bench.run.keep(Box::new(place.clone()));
    bench.run.keep(Box::new(place.clone()));
    assert_eq!((bench.run.lingers(), Arc::strong_count(&place)), (0, 2));
    // The next call waits for the slot, and no longer than its own deadline.
    let fault = bench.run.invoke(call_within(Duration::from_millis(50), call::full("quick"))).await.unwrap_err();
    assert_eq!((fault.stage, fault.cause), (Stage::Queue, Cause::Deadline));
    let mut next = pin!(bench.call("quick"));
    assert!(futures_util::poll!(next.as_mut()).is_pending());
    go.send(true).unwrap();
    assert_eq!(next.await.unwrap().status(), 200);
    bench.run.keep(Box::new(place.clone()));
    assert_eq!((bench.run.lingers(), Arc::strong_count(&place)), (0, 1));
    // The reply's body is dropped half way.
    let mut reply = bench.call("stream").await.unwrap();
    assert_eq!(reply.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    drop(reply);
    was_cancelled.recv().await.unwrap();
    bench.rested(1).await;
    assert_eq!(bench.call("quick").await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_body_dropped_at_its_last_byte_is_no_cancel() {
    let bench = bench(1, |mut reader, mut writer| async move {
        while let Some(body) = read(&mut reader).await {
            writer.reply(&ok(Some(body.len() as u64))).unwrap();
            writer.data(&body.into());
            writer.flush().await.unwrap();
            // The end mark comes late; a server that counts bytes does not wait for it.
            tokio::task::yield_now().await;
            assert!(reader.is_empty());
            writer.end();
            writer.flush().await.unwrap();
        }
    });
    for _ in 0..20 {
        let mut reply = bench.call("12345").await.unwrap();
        assert_eq!(reply.body().size_hint().exact(), Some(5));
        assert_eq!(reply.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "12345");
        drop(reply);
        bench.rested(1).await;
    }
    assert_eq!(bench.accepted.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_passes_and_the_instance_is_condemned() {
    let bench = bench(1, |mut reader, _writer| async move {
        read(&mut reader).await;
        let _ = reader.next().await;
        std::future::pending::<()>().await;
    });
    let began = Instant::now();
    let call = call_within(Duration::from_millis(300), call::full("x"));
    let fault = bench.run.invoke(call).await.unwrap_err();
    assert_eq!((fault.stage, fault.cause), (Stage::Invoke, Cause::Deadline));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let why = bench.fate.condemned().await;
    assert!(why.contains("still running 2 s after its deadline"), "{why}");
    assert!(began.elapsed() >= Duration::from_millis(2300));
}

#[tokio::test]
async fn stale_connections_are_replaced() {
    let bench = bench(1, |mut reader, mut writer| async move {
        let body = read(&mut reader).await.unwrap();
        writer.reply(&ok(None)).unwrap();
        writer.data(&body.into());
        writer.end();
        writer.flush().await.unwrap();
        // And closes, as a worker does that was replaced.
    });
    for n in 0..10 {
        assert_eq!(bytes(bench.call(format!("{n}")).await.unwrap()).await, format!("{n}"));
        bench.rested(1).await;
    }
    assert_eq!(bench.accepted.load(Ordering::Relaxed), 10);
}

#[tokio::test]
async fn an_unreachable_instance_gives_the_call_back() {
    let bench = bench(1, echo);
    bench.server.abort();
    std::fs::remove_file(bench.dir.path().join("calls")).unwrap();
    let fault = bench.call("precious").await.unwrap_err();
    assert_eq!((fault.cause, fault.retry), (Cause::Died, taper_model::Retry::Safe));
    let call = fault.unsent.unwrap();
    assert_eq!(call.request.uri(), "/a%20b?x=1");
    assert_eq!(call.request.into_body().collect().await.unwrap().to_bytes(), "precious");
    bench.slots.close();
    let fault = bench.call("precious").await.unwrap_err();
    assert!(fault.unsent.is_some(), "a stopping instance gives the call back too");
}

#[tokio::test]
async fn a_death_is_told_with_its_reason() {
    let bench = Arc::new(bench(4, |mut reader, _writer| async move {
        read(&mut reader).await;
    }));
    let fault = bench.call("x").await.unwrap_err();
    assert_eq!((fault.cause, &*fault.message), (Cause::Died, "the process that ran the call ended"));
    assert!(fault.unsent.is_none(), "it may have had effects");
    bench.kills.fetch_add(1, Ordering::Relaxed);
    assert_eq!(bench.call("x").await.unwrap_err().cause, Cause::OutOfMemory, "a worker alone was killed");
    bench.fate.ended(End { why: "exit status 4".into(), out_of_memory: false });
    assert_eq!(bench.call("x").await.unwrap_err().message, "the instance died during the call: exit status 4");
}

#[tokio::test]
async fn replies_that_break_half_way() {
    let bench = bench(1, |mut reader, mut writer| async move {
        while let Some(body) = read(&mut reader).await {
            let length = if body.is_empty() { None } else { Some(5) };
            writer.reply(&ok(length)).unwrap();
            writer.data(&"123".into());
            writer.flush().await.unwrap();
            match &body[..] {
                b"long" => writer.data(&"45678".into()),
                b"short" => {}
                b"gone" => return,
                _ => {
                    writer.fault(&failure(FaultKind::Exception, "late")).unwrap();
                    writer.flush().await.unwrap();
                    continue;
                }
            }
            writer.end();
            let _ = writer.flush().await;
        }
    });
    for (body, words) in
        [("", "in the middle of its reply: late"), ("long", "longer"), ("short", "shorter"), ("gone", "broke off")]
    {
        let reply = bench.call(body).await.unwrap();
        let error = reply.into_body().collect().await.unwrap_err();
        assert!(error.to_string().contains(words), "{body}: {error}");
        bench.rested(1).await;
    }
}

#[tokio::test]
async fn headers_that_cannot_be_are_the_functions_fault() {
    let bench = bench(1, |mut reader, mut writer| async move {
        while let Some(body) = read(&mut reader).await {
            let name = String::from_utf8(body).unwrap();
            let headers = match name.as_str() {
                "many" => (0..40_000).map(|n| (format!("x{n}"), String::new())).collect(),
                _ => [(name, "a\rb".to_owned())].into_iter().collect(),
            };
            writer.reply(&wire::Reply { status: 200, length: None, headers }).unwrap();
            writer.end();
            let _ = writer.flush().await;
        }
    });
    for name in ["x", "not a name", "", "many"] {
        let fault = bench.call(name).await.unwrap_err();
        assert_eq!(fault.cause, Cause::Exception, "{fault}");
        assert!(fault.message.contains("the function's reply has"), "{fault}");
        bench.rested(1).await;
    }
}

#[tokio::test]
async fn trailers_and_hop_by_hop_headers() {
    let bench = raw_bench(
        1,
        Arc::new(|mut stream| {
            Box::pin(async move {
                let text = b"Connection\nclose\nKeep\nme\nTransfer-Encoding\nchunked";
                let mut head = [201_u32.to_be_bytes(), [0xff; 4], [0xff; 4]].concat();
                head.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                head.extend(text);
                let mut raw = bytes::BytesMut::new();
                wire::encode(Kind::Head, &head, &mut raw).unwrap();
                wire::encode(Kind::Data, b"body", &mut raw).unwrap();
                wire::encode(Kind::End, b"x-sum\n42", &mut raw).unwrap();
                stream.write_all(&raw).await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            })
        }),
    );
    let reply = bench.call("x").await.unwrap();
    assert_eq!(reply.status(), 201);
    assert_eq!(reply.headers().iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>(), ["keep"]);
    let whole = reply.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["x-sum"], "42");
    assert_eq!(whole.to_bytes(), "body");
}

#[tokio::test]
async fn a_request_that_breaks_cancels_the_call() {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let bench = bench(1, move |mut reader, mut writer| {
        let tx = tx.clone();
        async move {
            assert!(read(&mut reader).await.is_none(), "cancelled");
            tx.send(()).unwrap();
            writer.fault(&failure(FaultKind::Cancelled, "cancelled")).unwrap();
            writer.flush().await.unwrap();
            let _ = reader.next().await;
        }
    });
    let pieces: [Result<Frame<Bytes>, BoxError>; 2] =
        [Ok(Frame::data("some".into())), Err("the client is gone".into())];
    let body = Body::new(StreamBody::new(futures_util::stream::iter(pieces)));
    let fault = bench.run.invoke(call_of(body)).await.unwrap_err();
    assert_eq!(fault.cause, Cause::CallerLeft);
    assert_eq!(fault.source.unwrap().to_string(), "the client is gone");
    rx.recv().await.unwrap();
    bench.rested(1).await;
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_request() {
    let bench = bench(1, |mut reader, mut writer| async move {
        reader.next().await.unwrap();
        writer.reply(&ok(None)).unwrap();
        writer.data(&"no need".into());
        writer.end();
        writer.flush().await.unwrap();
        while let Ok(Some(_)) = reader.next().await {}
    });
    let (tx, rx) = mpsc::unbounded_channel::<Result<Frame<Bytes>, BoxError>>();
    let body =
        Body::new(StreamBody::new(futures_util::stream::unfold(rx, |mut rx| async { Some((rx.recv().await?, rx)) })));
    tx.send(Ok(Frame::data("begun".into()))).unwrap();
    assert_eq!(bytes(bench.run.invoke(call_of(body)).await.unwrap()).await, "no need");
    drop(tx);
    bench.rested(1).await;
}

#[tokio::test]
async fn what_may_be_sent_twice_comes_back_whole_when_its_process_ends() {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    let bench = bench(4, move |mut reader, _writer| {
        let seen = seen.clone();
        async move {
            if read(&mut reader).await.is_some() {
                seen.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let of = |method: &str, key: bool, body: &Bytes| {
        let mut call = call_of(if body.is_empty() { call::empty() } else { call::full(body.clone()) });
        *call.request.method_mut() = method.parse().unwrap();
        if key {
            call.request.headers_mut().insert("idempotency-key", "k1".parse().unwrap());
        }
        call
    };
    let (none, some, much) = (Bytes::new(), Bytes::from_static(b"whole"), Bytes::from(vec![7; 300 << 10]));
    for (method, key, body, comes_back) in [
        ("GET", false, &none, true),
        ("OPTIONS", false, &none, true),
        ("GET", false, &some, true),
        ("POST", true, &some, true),
        ("POST", true, &much, false),
        ("POST", false, &some, false),
        ("DELETE", false, &none, false),
    ] {
        let began = Instant::now();
        let before = calls.load(Ordering::Relaxed);
        let fault = bench.run.invoke(of(method, key, body)).await.unwrap_err();
        assert_eq!((fault.cause, calls.load(Ordering::Relaxed)), (Cause::Died, before + 1), "{fault}");
        match fault.unsent {
            Some(call) => {
                assert!(comes_back && call.terms.repeated, "{method}");
                assert!(began.elapsed() < super::super::REASON, "nobody waits for the reason");
                let mut last = of(method, key, body);
                last.terms = call.terms;
                assert!(bench.run.invoke(last).await.unwrap_err().unsent.is_none(), "the second time is the last");
                assert_eq!(call.request.into_body().collect().await.unwrap().to_bytes(), body);
            }
            None => assert!(!comes_back, "{method}"),
        }
    }
    bench.rested(4).await;
}
