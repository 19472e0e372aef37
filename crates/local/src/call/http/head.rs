//! Owns the heads of HTTP/1.1 messages: a request's as the function's server gets it, and a reply's as it comes. Pure: bytes in,
//! bytes out. What a server says is taken in one meaning only; what has two (RFC 9112, section 6.3) is refused, because a
//! connection on which a reply's end is in doubt could give one caller the reply of another.

use std::{io::Write, mem::MaybeUninit, ops::Range, time::Duration};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use bytes::{Buf, Bytes, BytesMut};
use httparse::{ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use super::framing::Framing;
use crate::call::{is_hop, named_hops};

/// The most bytes of a reply's heads, those of interim replies included.
pub(super) const HEAD: usize = 64 << 10;
/// The most headers of a reply, and the most trailers.
pub(super) const HEADERS: usize = 100;
/// How many headers the platform adds to a reply, so that there is room for them.
const OURS: usize = 6;
/// How long an idle connection is used again when the server does not say. Servers close theirs after 2 s and more.
const IDLE: Duration = Duration::from_millis(1500);
/// How much earlier than the server says: a request must not cross its goodbye on the way.
const EARLY: Duration = Duration::from_secs(1);

/// What a server said that is not HTTP, or is so in more than one way.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(super) &'static str);

/// How much body a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// So many bytes.
    Known(u64),
    /// Chunks, until the last.
    Chunked,
}

/// Writes a request's head.
pub(super) fn write<B>(request: &Request<B>, length: Length, out: &mut Vec<u8>) {
    let (method, headers) = (request.method(), request.headers());
    out.reserve(1 << 10);
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    if !target.starts_with(['/', '*']) {
        out.push(b'/');
    }
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let named = if headers.contains_key(header::CONNECTION) { named_hops(headers) } else { Vec::new() };
    let (mut host, mut said, mut trailers) = (false, false, false);
    for (name, value) in headers {
        match name.as_str() {
            "host" => host = true,
            "content-length" => {
                said = true;
                continue;
            }
            "te" => {
                trailers |= value.to_str().is_ok_and(|te| te.contains("trailers"));
                continue;
            }
            _ if is_hop(name) || named.contains(name) => continue,
            _ => {}
        }
        line(name.as_str(), value.as_bytes(), out);
    }
    if !host {
        let host = request.uri().authority().map_or("localhost", |authority| authority.as_str());
        line("host", host.as_bytes(), out);
    }
    let upgrade = headers.get(header::UPGRADE).filter(|_| named.contains(&header::UPGRADE));
    if let Some(upgrade) = upgrade {
        line("upgrade", upgrade.as_bytes(), out);
    }
    if trailers {
        line("te", b"trailers", out);
    }
    match (upgrade.is_some(), trailers) {
        (true, false) => line("connection", b"upgrade", out),
        (true, true) => line("connection", b"upgrade, te", out),
        (false, true) => line("connection", b"te", out),
        (false, false) => {}
    }
    match length {
        Length::Chunked => line("transfer-encoding", b"chunked", out),
        // Where a method says nothing of a body, neither do we (RFC 9110, section 8.6).
        Length::Known(0) if !said && !matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {}
        Length::Known(n) => {
            let _ = write!(out, "content-length: {n}\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes one header.
pub(super) fn line(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// A reply's head.
#[derive(Debug)]
pub(super) struct Head {
    /// Without hop-by-hop headers, except where the server switches protocols.
    pub(super) response: Response<()>,
    pub(super) framing: Framing,
    /// How long the connection may be idle before it is not used again; none where it must not be.
    pub(super) keep: Option<Duration>,
}

/// How far a head that is not whole has been looked at.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// Bytes of interim replies, which are gone.
    before: usize,
    /// Bytes of this one that do not hold its end.
    here: usize,
    /// Where its fields are; kept for its room.
    spans: Vec<Span>,
}

impl Looked {
    /// Before the next head.
    pub(super) fn again(&mut self) {
        (self.before, self.here) = (0, 0);
    }

    /// Takes the head of the final reply off what has arrived; none while it is not whole. Interim replies (100, 103) go nowhere.
    pub(super) fn take(&mut self, input: &mut BytesMut, method: &Method) -> Result<Option<Head>, Malformed> {
        loop {
            let came = input.len();
            // A server that sends byte by byte must not have each of them read a hundred times.
            let new = &input[self.here.saturating_sub(3).min(came)..];
            if came == self.here || (self.here > 0 && !ends(new)) {
                self.here = came;
                return self.within(came).map(|()| None);
            }
            let mut fields = [const { MaybeUninit::uninit() }; HEADERS];
            let mut parsed = httparse::Response::new(&mut []);
            let status = ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, input, &mut fields);
            let length = match status.map_err(refused)? {
                Status::Complete(length) => length,
                Status::Partial => {
                    self.here = came;
                    return self.within(came).map(|()| None);
                }
            };
            self.within(length)?;
            self.here = 0;
            let code = parsed.code.unwrap_or_default();
            if (100..200).contains(&code) && code != 101 {
                self.before += length;
                input.advance(length);
                continue;
            }
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(code).map_err(|_| Malformed("its status is none"))?;
            if parsed.version == Some(0) {
                *response.version_mut() = Version::HTTP_10;
            }
            let reason = parsed.reason.unwrap_or_default();
            if !reason.is_empty() && response.status().canonical_reason() != Some(reason) {
                let reason =
                    ReasonPhrase::try_from(reason.as_bytes()).map_err(|_| Malformed("its reason is no text"))?;
                response.extensions_mut().insert(reason);
            }
            // Where the fields are, so that their bytes can be shared once the head is cut off.
            let start = input.as_ptr().addr();
            self.spans.clear();
            self.spans.extend(parsed.headers.iter().map(|field| {
                let at = |part: &[u8]| {
                    let begin = (part.as_ptr().addr() - start) as u32;
                    (begin, begin + part.len() as u32)
                };
                Span { name: at(field.name.as_bytes()), value: at(field.value) }
            }));
            let bytes = input.split_to(length).freeze();
            return gather(response, &bytes, &self.spans, method).map(Some);
        }
    }

    fn within(&self, length: usize) -> Result<(), Malformed> {
        if self.before + length > HEAD { Err(Malformed("its head is over 64 KiB")) } else { Ok(()) }
    }
}

/// Whether a head's end is among these bytes.
fn ends(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|two| two == b"\n\n") || bytes.windows(3).any(|three| three == b"\n\r\n")
}

fn refused(e: httparse::Error) -> Malformed {
    Malformed(match e {
        httparse::Error::HeaderName => "a header's name has bytes that none may have",
        httparse::Error::HeaderValue => "a header's value has bytes that none may have",
        httparse::Error::NewLine => "a line does not end as lines do",
        httparse::Error::Status => "it has no status",
        httparse::Error::TooManyHeaders => "it has over 100 headers",
        httparse::Error::Version => "its version is neither HTTP/1.1 nor HTTP/1.0",
        httparse::Error::Token => "it has bytes where none may be",
    })
}

/// Where a field is in its head, which [`HEAD`] bounds.
#[derive(Debug, Clone, Copy)]
struct Span {
    name: (u32, u32),
    value: (u32, u32),
}

impl Span {
    fn of((begin, end): (u32, u32)) -> Range<usize> {
        begin as usize..end as usize
    }
}

/// What a head's fields say: of the reply, of where its body ends, and of the connection.
fn gather(mut response: Response<()>, bytes: &Bytes, spans: &[Span], method: &Method) -> Result<Head, Malformed> {
    let (status, old) = (response.status(), response.version() == Version::HTTP_10);
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    let (mut length, mut chunked, mut keep, mut named) = (None, false, (!old).then_some(IDLE), Vec::new());
    let mut headers = HeaderMap::with_capacity(spans.len() + OURS);
    for span in spans {
        let name = HeaderName::from_bytes(&bytes[Span::of(span.name)])
            .map_err(|_| Malformed("a header's name is too long"))?;
        let value = HeaderValue::from_maybe_shared(bytes.slice(Span::of(span.value)));
        let value = value.map_err(|_| Malformed("a header's value has bytes that none may have"))?;
        match name.as_str() {
            "content-length" => {
                let again = length.is_some();
                for one in value.as_bytes().split(|byte| *byte == b',') {
                    let said = number(one.trim_ascii()).ok_or(Malformed("its Content-Length is no number"))?;
                    if length.replace(said).is_some_and(|before| before != said) {
                        return Err(Malformed("it has several lengths"));
                    }
                }
                if again {
                    continue;
                }
            }
            "transfer-encoding" => {
                if old || chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed("its Transfer-Encoding is not `chunked`, which is all that was asked for"));
                }
                chunked = true;
            }
            "connection" => {
                for word in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    if word.eq_ignore_ascii_case(b"close") {
                        keep = None;
                    } else if let Ok(name) = HeaderName::from_bytes(word) {
                        named.push(name);
                    }
                }
            }
            "keep-alive" => {
                let hint = seconds(&value).map_or(IDLE, |hint| hint.saturating_sub(EARLY));
                keep = keep.map(|_| hint).filter(|hint| !hint.is_zero());
            }
            _ => {}
        }
        if switches || !is_hop(&name) {
            headers.append(name, value);
        }
    }
    // The length frames the body: nobody may take it away.
    for name in named.iter().filter(|name| !switches && **name != header::CONTENT_LENGTH) {
        headers.remove(name);
    }
    let framing = match length {
        Some(_) if chunked => return Err(Malformed("it has both a Content-Length and a Transfer-Encoding")),
        _ if switches || method == Method::HEAD => Framing::Ended,
        _ if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) => Framing::Ended,
        Some(0) => Framing::Ended,
        Some(length) => Framing::Length(length),
        None if chunked => Framing::chunked(),
        None => Framing::Close,
    };
    *response.headers_mut() = headers;
    Ok(Head { response, keep: keep.filter(|_| !switches && framing != Framing::Close), framing })
}

/// Digits and nothing else.
fn number(text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

/// `Keep-Alive: timeout=SECONDS`.
fn seconds(value: &HeaderValue) -> Option<Duration> {
    let mut parts = value.to_str().ok()?.split(',');
    let seconds = parts.find_map(|part| part.trim().strip_prefix("timeout="))?;
    Some(Duration::from_secs(seconds.parse::<u32>().ok()?.into()))
}

#[cfg(test)]
mod tests {
    use taper_model::call;

    use super::*;

    fn take(text: &str, method: &Method) -> Result<Option<Head>, Malformed> {
        Looked::default().take(&mut BytesMut::from(text), method)
    }

    fn get(text: &str) -> Head {
        take(text, &Method::GET).unwrap().unwrap()
    }

    /// A reply with these lines of headers.
    fn with(lines: &[&str]) -> Result<Option<Head>, Malformed> {
        take(&format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", lines.join("\r\n")), &Method::GET)
    }

    #[test]
    fn where_a_body_ends() {
        let framing = |lines: &[&str]| with(lines).unwrap().unwrap().framing;
        assert_eq!(framing(&["content-length: 5"]), Framing::Length(5));
        assert_eq!(framing(&["content-length: 5", "Content-Length: 5"]), Framing::Length(5));
        assert_eq!(framing(&["content-length: 5, 5"]), Framing::Length(5));
        assert_eq!(framing(&["content-length: 0"]), Framing::Ended);
        assert_eq!(framing(&["content-length: 18446744073709551615"]), Framing::Length(u64::MAX));
        assert_eq!(framing(&["transfer-encoding: Chunked"]), Framing::chunked());
        assert_eq!(framing(&["x: y"]), Framing::Close);
        for status in ["204 No Content", "304 Not Modified"] {
            for length in ["content-length: 5", "transfer-encoding: chunked", "x: y"] {
                assert_eq!(get(&format!("HTTP/1.1 {status}\r\n{length}\r\n\r\n")).framing, Framing::Ended);
            }
        }
        let head = take("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", &Method::HEAD).unwrap().unwrap();
        assert_eq!((head.framing, &head.response.headers()["content-length"]), (Framing::Ended, &"5".parse().unwrap()));
    }

    #[test]
    fn what_has_two_meanings_is_refused() {
        for lines in [
            &["content-length: 5", "transfer-encoding: chunked"][..],
            &["content-length: 5", "content-length: 6"],
            &["content-length: 5, 6"],
            &["content-length: +5"],
            &["content-length: -5"],
            &["content-length: 5 5"],
            &["content-length: "],
            &["content-length: 0x5"],
            &["content-length: 18446744073709551616"],
            &["transfer-encoding: gzip, chunked"],
            &["transfer-encoding: chunked, identity"],
            &["transfer-encoding: identity"],
            &["transfer-encoding: chunked", "transfer-encoding: chunked"],
            &["transfer-encoding : chunked"],
            &["content-length : 5"],
            &["x: folded", " line"],
            &["x: bare\rcr"],
            &["x: nul\0"],
            &["x y: z"],
        ] {
            assert!(with(lines).is_err(), "{lines:?}");
        }
        for text in [
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 099 No\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
        ] {
            assert!(take(text, &Method::GET).is_err(), "{text:?}");
        }
    }

    #[test]
    fn heads_have_a_bound() {
        let long = "y".repeat(HEAD);
        assert!(take(&format!("HTTP/1.1 200 OK\r\nx: {long}\r\n\r\n"), &Method::GET).is_err());
        assert!(take(&format!("HTTP/1.1 200 OK\r\nx: {long}"), &Method::GET).is_err(), "before its end comes");
        assert!(
            take(&"HTTP/1.1 100 Continue\r\n\r\n".repeat(HEAD / 20), &Method::GET).is_err(),
            "interim replies, too"
        );
        let many = "x: y\r\n".repeat(HEADERS);
        assert!(take(&format!("HTTP/1.1 200 OK\r\n{many}\r\n"), &Method::GET).is_ok());
        assert!(take(&format!("HTTP/1.1 200 OK\r\n{many}x: y\r\n\r\n"), &Method::GET).is_err());
    }

    #[test]
    fn interim_replies_go_nowhere() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        let mut input = BytesMut::from(&*format!("{interim}HTTP/1.1 201 Made\r\nx: 1\r\n\r\nrest"));
        let head = Looked::default().take(&mut input, &Method::GET).unwrap().unwrap();
        assert_eq!((head.response.status().as_u16(), &input[..]), (201, &b"rest"[..]));
        assert!(!head.response.headers().contains_key("link"));
        assert_eq!(head.response.extensions().get::<ReasonPhrase>().unwrap().as_bytes(), b"Made");
    }

    #[test]
    fn a_head_in_any_pieces_is_the_same() {
        let whole = "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\ncontent-length: 3\r\n\r\n";
        for ends in ["\r\n", "\n"] {
            let text = whole.replace("\r\n", ends);
            for size in 1..text.len() {
                let (mut looked, mut input, mut found) = (Looked::default(), BytesMut::new(), None);
                for piece in text.as_bytes().chunks(size) {
                    assert!(found.is_none(), "before its end");
                    input.extend_from_slice(piece);
                    found = looked.take(&mut input, &Method::GET).unwrap();
                }
                let head = found.expect("whole");
                assert_eq!((head.framing, &head.response.headers()["a"]), (Framing::Length(3), &"b".parse().unwrap()));
            }
        }
    }

    #[test]
    fn how_long_a_connection_is_kept() {
        let keep = |version: &str, lines: &str| {
            get(&format!("HTTP/{version} 200 OK\r\ncontent-length: 1\r\n{lines}\r\n")).keep
        };
        let seconds = |s: f64| Some(Duration::from_secs_f64(s));
        assert_eq!(keep("1.1", ""), seconds(1.5));
        assert_eq!(keep("1.1", "keep-alive: max=9, timeout=5\r\n"), seconds(4.0));
        assert_eq!(keep("1.1", "keep-alive: timeout=soon\r\n"), seconds(1.5));
        assert_eq!(keep("1.1", "keep-alive: timeout=1\r\n"), None);
        assert_eq!(keep("1.1", "connection: Close\r\n"), None);
        assert_eq!(keep("1.1", "connection: x, Close\r\nkeep-alive: timeout=5\r\n"), None);
        assert_eq!(keep("1.0", "connection: keep-alive\r\n"), None);
        assert_eq!(with(&["x: y"]).unwrap().unwrap().keep, None, "its body ends with the connection");
    }

    #[test]
    fn hop_by_hop_headers_end_here() {
        let head =
            with(&["connection: x-private, content-length", "x-private: 1", "content-length: 3", "te: x", "x: y"]);
        let head = head.unwrap().unwrap();
        let mut names: Vec<&str> = head.response.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!((names, head.framing), (vec!["content-length", "x"], Framing::Length(3)));
        let head = get("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
        assert_eq!((&head.response.headers()["upgrade"], head.keep), (&"websocket".parse().unwrap(), None));
    }

    #[test]
    fn requests_as_servers_get_them() {
        let written = |method: &str, uri: &str, headers: &[(&str, &str)], length| {
            let mut request = Request::builder().method(method).uri(uri);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let mut out = Vec::new();
            write(&request.body(call::empty()).unwrap(), length, &mut out);
            String::from_utf8(out).unwrap()
        };
        let none = Length::Known(0);
        assert_eq!(written("GET", "/a?b", &[("host", "h")], none), "GET /a?b HTTP/1.1\r\nhost: h\r\n\r\n");
        assert_eq!(written("GET", "http://h:1", &[], none), "GET / HTTP/1.1\r\nhost: h:1\r\n\r\n");
        assert_eq!(written("GET", "http://h?q", &[], none), "GET /?q HTTP/1.1\r\nhost: h\r\n\r\n");
        assert_eq!(written("OPTIONS", "*", &[], none), "OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n");
        assert_eq!(
            written("POST", "/", &[("host", "h"), ("content-length", "7")], Length::Known(3)),
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n",
            "the body's own length, whatever was said"
        );
        let posted = written("POST", "/", &[("host", "h")], none);
        assert_eq!(posted, "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(
            written(
                "PUT",
                "/",
                &[("host", "h"), ("transfer-encoding", "gzip"), ("te", "trailers, x")],
                Length::Chunked
            ),
            "PUT / HTTP/1.1\r\nhost: h\r\nte: trailers\r\nconnection: te\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        let upgrade = [("host", "h"), ("connection", "x-hop, Upgrade"), ("upgrade", "websocket"), ("x-hop", "1")];
        assert_eq!(
            written("GET", "/", &upgrade, none),
            "GET / HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
        );
        assert_eq!(
            written("GET", "/", &[("host", "h"), ("upgrade", "h2c")], none),
            "GET / HTTP/1.1\r\nhost: h\r\n\r\n"
        );
    }
}
