//! What this client makes of a server's bytes, beside what hyper's makes of the same: whatever hyper takes for a whole reply, and
//! is not refused here for having two meanings, is the same reply.

use std::{future::poll_fn, pin::Pin};

use ::http::{Method, Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

/// Status, headers and body.
type Whole = (u16, Vec<(String, Vec<u8>)>, Vec<u8>);

/// What we read of these pieces, when they hold a whole reply.
fn ours(pieces: &[&[u8]], method: &Method) -> Option<Whole> {
    let (head, body) = super::read(pieces, method)?;
    Some(whole(&head, body))
}

/// What hyper reads of them.
async fn theirs(pieces: &[&[u8]], method: &Method) -> Option<Whole> {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(method).uri("/").header("host", "h").body(Empty::<Bytes>::new()).unwrap();
    let mut response = Box::pin(sender.send_request(request));
    // hyper closes on a server that speaks first.
    poll_fn(|cx| {
        assert!(Pin::new(&mut response).poll(cx).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    let mut seen = [0; 1024];
    tokio::io::AsyncReadExt::read(&mut far, &mut seen).await.unwrap();
    for piece in pieces {
        if far.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    drop(far);
    let read = async {
        let (head, body) = response.await.ok()?.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        Some(whole(&Response::from_parts(head, ()), body.into()))
    };
    let whole = read.await;
    connection.abort();
    whole
}

/// Hop-by-hop headers aside, which end here.
fn whole<T>(response: &Response<T>, body: Vec<u8>) -> Whole {
    let ours = |name: &str| !matches!(name, "connection" | "keep-alive" | "transfer-encoding" | "te" | "x-named");
    let headers = response.headers().iter().filter(|(name, _)| ours(name.as_str()));
    let mut headers: Vec<_> = headers.map(|(k, v)| (k.as_str().to_owned(), v.as_bytes().to_vec())).collect();
    headers.sort();
    headers.dedup();
    (response.status().as_u16(), headers, body)
}

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[A-Za-z-]{1,12}: [ -~]{0,20}",
        3 => (0..40_u32).prop_map(|n| format!("Content-Length: {n}")),
        3 => Just("Transfer-Encoding: chunked".to_owned()),
        1 => Just("Connection: close".to_owned()),
        1 => Just("Connection: x-named".to_owned()),
        1 => Just("X-Named: 1".to_owned()),
        1 => "[ -~]{0,20}",
        1 => Just(" folded: line".to_owned()),
    ]
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let chunk = (prop::collection::vec(any::<u8>(), 1..30), "(;[a-z=]{0,6})?");
    let chunks = prop::collection::vec(chunk, 0..4).prop_map(|chunks| {
        let mut body = Vec::new();
        for (data, extension) in chunks {
            body.extend_from_slice(format!("{:X}{extension}\r\n", data.len()).as_bytes());
            body.extend_from_slice(&data);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n\r\n");
        body
    });
    prop_oneof![4 => chunks, 4 => prop::collection::vec(any::<u8>(), 0..40), 1 => Just(Vec::new())]
}

fn reply() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        6 => Just("HTTP/1.1 200 OK"),
        1 => Just("HTTP/1.0 200 OK"),
        1 => Just("HTTP/1.1 204 No Content"),
        1 => Just("HTTP/1.1 304 Not Modified"),
        1 => Just("HTTP/1.1 404 Not Here"),
        1 => Just("HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK"),
        1 => Just("HTTP/1.1 500 "),
        1 => Just("HTTP/1.1 600"),
    ];
    (first, prop::collection::vec(field(), 0..5), body()).prop_map(|(first, fields, body)| {
        let mut text = first.as_bytes().to_vec();
        for field in fields {
            text.extend_from_slice(b"\r\n");
            text.extend_from_slice(field.as_bytes());
        }
        text.extend_from_slice(b"\r\n\r\n");
        text.extend_from_slice(&body);
        text
    })
}

#[tokio::test]
async fn what_servers_usually_say() {
    for (text, method, body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Method::GET, "ok"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\n\r\n", Method::GET, "ok"),
        ("HTTP/1.0 200 OK\r\n\r\nok", Method::GET, "ok"),
        ("HTTP/1.1 103 Early\r\nlink: a\r\n\r\nHTTP/1.1 404 Gone\r\nX: y\r\n\r\nok", Method::GET, "ok"),
        ("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", Method::GET, ""),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", Method::HEAD, ""),
    ] {
        for size in [1, 7, text.len()] {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            let ours = ours(&pieces, &method).expect("a whole reply");
            assert_eq!(ours.2, body.as_bytes());
            assert_eq!(Some(ours), theirs(&pieces, &method).await, "{text:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_reply_is_what_hyper_takes_it_for(
        text in reply(),
        cuts in prop::collection::vec(1..60_usize, 1..10),
        head in prop::bool::weighted(0.1),
    ) {
        let method = if head { Method::HEAD } else { Method::GET };
        let (mut rest, mut pieces, mut cuts) = (&text[..], Vec::new(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let theirs = runtime.block_on(theirs(&pieces, &method));
        let ours = ours(&pieces, &method);
        prop_assert_eq!(&ours, &self::ours(&[&text], &method), "the pieces make no difference");
        if let Some(ours) = ours {
            prop_assert_eq!(Some(ours), theirs);
        }
    }
}
