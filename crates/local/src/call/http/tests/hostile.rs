//! Servers that answer when they like, say more than they should, or stop listening; and callers that do the like.

use http_body::Body as _;

use super::*;

/// Serves the first connection by hand.
fn once<F>(serve: impl Fn(UnixStream) -> F + Send + Sync + 'static) -> Bench
where
    F: Future<Output = ()> + Send + 'static,
{
    raw_bench(Arc::new(move |stream| Box::pin(serve(stream))))
}

/// Reads until these bytes have come; the rest of what has come with them.
async fn until(stream: &mut UnixStream, end: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    loop {
        if let Some(at) = seen.windows(end.len()).position(|window| window == end) {
            return seen.split_off(at + end.len());
        }
        assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
}

const END: &[u8] = b"\r\n\r\n";

#[tokio::test]
async fn an_answer_that_comes_early_is_the_answer() {
    let bench = once(async |mut stream| {
        until(&mut stream, END).await;
        stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    });
    // It fills the socket, and the server closes with bytes unread.
    for _ in 0..20 {
        let reply = bench.invoke(request("POST", call::full(vec![0; 10_000_000]))).await.unwrap();
        assert_eq!(reply.status(), 413);
        assert_eq!(bytes(reply).await, "no");
        bench.rested().await;
    }
}

#[tokio::test]
async fn a_request_goes_on_though_nobody_reads_the_reply() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let bench = once(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut got = until(&mut stream, END).await.len();
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").await.unwrap();
            while got < 10_000_000 {
                got += stream.read_buf(&mut Vec::with_capacity(1 << 16)).await.unwrap();
            }
            tell.send(got).unwrap();
            stream.write_all(b"0\r\n\r\n").await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let reply = bench.invoke(request("POST", call::full(vec![0; 10_000_000]))).await.unwrap();
    assert_eq!(timeout(Duration::from_secs(20), told.recv()).await.unwrap(), Some(10_000_000));
    assert_eq!(bytes(reply).await, "ok");
    bench.rested().await;
}

#[tokio::test]
async fn a_server_that_answers_first_still_gets_the_request() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let bench = once(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut got = until(&mut stream, END).await;
            stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            stream.read_to_end(&mut got).await.unwrap();
            tell.send(got).unwrap();
        }
    });
    let (tx, body) = channel();
    let reply = bench.invoke(request("POST", body)).await.unwrap();
    assert_eq!((reply.status().as_u16(), bytes(reply).await), (202, Bytes::new()));
    bench.rested().await;
    tx.send(Ok(Frame::data("late".into()))).unwrap();
    drop(tx);
    let got = timeout(Duration::from_secs(20), told.recv()).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&got), "4\r\nlate\r\n0\r\n\r\n");
}

#[tokio::test]
async fn a_reader_that_leaves_ends_what_is_still_sent() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let bench = once(move |mut stream| {
        let tell = tell.clone();
        async move {
            until(&mut stream, END).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            tell.send(rest).unwrap();
        }
    });
    let (tx, body) = channel();
    drop(bench.invoke(request("POST", body)).await.unwrap());
    let rest = timeout(Duration::from_secs(20), told.recv()).await.unwrap().unwrap();
    assert!(rest.is_empty(), "no end of the body that never ended");
    bench.rested().await;
    timeout(Duration::from_secs(20), tx.closed()).await.expect("the request's body is let go");
}

#[tokio::test]
async fn a_request_that_breaks_breaks_the_reply_that_has_begun() {
    let bench = once(async |mut stream| {
        until(&mut stream, END).await;
        // Its body ends with the connection: the end that the break makes must not be taken for its own.
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\npart").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let (tx, body) = channel();
    let mut reply = bench.invoke(request("POST", body)).await.unwrap().into_body();
    assert_eq!(reply.frame().await.unwrap().unwrap().into_data().unwrap(), "part");
    tx.send(Err("the client is gone".into())).unwrap();
    let error = reply.frame().await.unwrap().unwrap_err();
    assert!(error.to_string().contains("request's body ended early"), "{error}");
    assert!(reply.frame().await.is_none());
    bench.rested().await;
}

#[tokio::test]
async fn who_says_more_than_his_reply_is_not_asked_again() {
    for (method, answer) in [
        (
            "GET",
            &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"[..],
        ),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n!"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\nbody"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"),
    ] {
        let bench = by_hand(answer, true);
        for calls in 1..4 {
            let reply = bench.invoke(request(method, call::empty())).await.unwrap();
            let body = if answer.ends_with(b"body") { "" } else { "ok" };
            assert_eq!(bytes(reply).await, body);
            bench.rested().await;
            assert_eq!(bench.accepted(), calls, "{}", String::from_utf8_lossy(answer));
        }
    }
}

#[tokio::test]
async fn who_speaks_unasked_is_not_asked_again() {
    let (speak, mut spoken) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let asked = gate.clone();
    let bench = once(move |mut stream| {
        let (speak, asked) = (speak.clone(), asked.clone());
        async move {
            until(&mut stream, END).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            asked.acquire().await.unwrap().forget();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong").await.unwrap();
            speak.send(()).unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    assert_eq!(bytes(bench.invoke(request("POST", call::full("x"))).await.unwrap()).await, "ok");
    gate.add_permits(1);
    spoken.recv().await.unwrap();
    // The event loop has turned since.
    tokio::time::sleep(Duration::from_millis(1)).await;
    gate.add_permits(1);
    assert_eq!(bytes(bench.invoke(request("POST", call::full("x"))).await.unwrap()).await, "ok");
    assert_eq!(bench.accepted(), 2);
}

#[tokio::test]
async fn a_reply_that_is_there_whole_frees_its_slot_at_once() {
    let bench =
        by_hand(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true);
    let reply = bench.invoke(request("GET", call::empty())).await.unwrap();
    assert_eq!(bench.slots.available_permits(), 4, "the instance is at rest");
    assert_eq!(reply.body().size_hint().exact(), Some(2));
    assert!(!reply.headers().contains_key("link"));
    assert_eq!(bytes(reply).await, "ok");
}

#[tokio::test]
async fn head_and_body_go_out_together() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let bench = once(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut first = vec![0; 1 << 16];
            let n = stream.read(&mut first).await.unwrap();
            tell.send(String::from_utf8_lossy(&first[..n]).into_owned()).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    });
    // There at once, there a turn later, and not there at all.
    bench.invoke(request("POST", call::full("whole"))).await.unwrap();
    assert!(told.recv().await.unwrap().ends_with("content-length: 5\r\n\r\nwhole"));
    let (tx, body) = channel();
    let late = async {
        tx.send(Ok(Frame::data("turn".into()))).unwrap();
    };
    let (reply, ()) = tokio::join!(bench.invoke(request("POST", body)), late);
    reply.unwrap();
    assert!(told.recv().await.unwrap().ends_with("transfer-encoding: chunked\r\n\r\n4\r\nturn\r\n"));
    let (_tx, body) = channel();
    bench.invoke(request("POST", body)).await.unwrap();
    assert!(told.recv().await.unwrap().ends_with("transfer-encoding: chunked\r\n\r\n"));
}

/// No byte more than a request's head says goes out, whatever its body makes of itself.
#[tokio::test]
async fn a_body_that_is_not_as_long_as_it_said_is_no_second_request() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let bench = once(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            tell.send(String::from_utf8_lossy(&all).into_owned()).unwrap();
        }
    });
    for (pieces, seen) in [(&["abc", "GET /x HTTP/1.1\r\n\r\n"][..], "\r\n\r\nabc"), (&["ab"], "\r\n\r\nab")] {
        let (tx, body) = channel();
        let mut sent = request("POST", body);
        sent.headers_mut().insert("content-length", "3".parse().unwrap());
        for piece in pieces {
            tx.send(Ok(Frame::data((*piece).into()))).unwrap();
        }
        drop(tx);
        let fault = bench.invoke(sent).await.unwrap_err();
        assert_eq!(fault.cause, Cause::CallerLeft);
        let all = told.recv().await.unwrap();
        assert!(all.ends_with(seen) && all.contains("content-length: 3"), "{all}");
    }
}

#[tokio::test]
async fn what_is_not_http_in_one_meaning_is_a_fault() {
    for lines in
        ["Content-Length: 2\r\nContent-Length: 3", "Content-Length: 2\r\nTransfer-Encoding: chunked", "X: y\r\n z"]
    {
        let bench = once(move |mut stream| async move {
            until(&mut stream, END).await;
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\nok").as_bytes()).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let fault = bench.invoke(request("GET", call::empty())).await.unwrap_err();
        assert_eq!((fault.stage, fault.cause), (Stage::Invoke, Cause::Died));
        assert!(fault.message.contains("did not answer in HTTP"), "{fault}");
        bench.rested().await;
    }
    for chunks in ["2\r\nokay\r\n0\r\n\r\n", "ok", "ffffffffffffffffff\r\n"] {
        let bench = once(move |mut stream| async move {
            until(&mut stream, END).await;
            let text = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
            stream.write_all(text.as_bytes()).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let reply = bench.invoke(request("GET", call::empty())).await.unwrap();
        assert!(reply.into_body().collect().await.is_err());
        bench.rested().await;
    }
}
