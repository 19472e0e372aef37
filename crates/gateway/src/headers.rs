//! What the gateway changes in the headers of a call and of its reply. What belongs to one connection stays on it; all else
//! passes, and a function learns from ours who called. Never decides a status: `reply` does.

use std::fmt::Write;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{self, Entry},
    request, response,
};
use taper_model::FunctionName;

use crate::{record::Record, trace};

/// The call's identity, in both directions.
pub(crate) const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");
/// When the call came, in nanoseconds since the Unix epoch; in both directions.
pub(crate) const START_TIME: HeaderName = HeaderName::from_static("x-start-time");
/// Seconds until the response began.
pub(crate) const DURATION: HeaderName = HeaderName::from_static("x-duration-seconds");
/// The gateway's name and version.
pub(crate) const SERVED_BY: HeaderName = HeaderName::from_static("x-served-by");
/// The stage at which the platform stopped the call.
pub(crate) const FAULT: HeaderName = HeaderName::from_static("x-taper-fault");
/// How the function itself failed.
pub(crate) const FUNCTION_ERROR: HeaderName = HeaderName::from_static("x-taper-function-error");
/// How the instance came to be there.
pub(crate) const START: HeaderName = HeaderName::from_static("x-taper-start");
/// OpenFaaS's mark on errors of its own parts.
pub(crate) const OPENFAAS_INTERNAL: HeaderName = HeaderName::from_static("x-openfaas-internal");
/// Where a call's time went (W3C Server Timing).
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What concerns one connection only (RFC 9110, section 7.6.1), the proxy's own credentials, and `Expect`, which is between the
/// client and us.
const HOP: [HeaderName; 10] = [
    header::CONNECTION,
    header::EXPECT,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    HTTP2_SETTINGS,
];
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Makes a caller's headers a function's.
pub(crate) fn inward(head: &mut request::Parts, record: &Record, function: &FunctionName) {
    let tunnel = wants_tunnel(head);
    let trailers = tokens(&head.headers, &header::TE).any(|t| t.eq_ignore_ascii_case("trailers"));
    let host = host(head);
    let headers = &mut head.headers;
    strip(headers);
    if tunnel {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, WEBSOCKET);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if head.version == Version::HTTP_2 {
        // HTTP/2 clients may split it (RFC 9113, section 8.2.3); HTTP/1 functions may not understand that.
        join(headers, header::COOKIE, "; ");
    }
    let peer = record.peer();
    append(headers, FORWARDED_FOR, &peer.to_string());
    let mut forwarded = format!("for=\"{peer}\";proto=http");
    if let Some(host) = host.as_ref().and_then(|h| h.to_str().ok()) {
        let _ = write!(forwarded, ";host=\"{host}\"");
    }
    append(headers, header::FORWARDED, &forwarded);
    if let (Entry::Vacant(place), Some(host)) = (headers.entry(FORWARDED_HOST), host) {
        place.insert(host);
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    headers.insert(header::HOST, value(&function.to_string()));
    headers.insert(CALL_ID, value(record.id().as_str()));
    headers.insert(START_TIME, value(&record.unix_nanos().to_string()));
    trace::pass_on(headers);
}

/// Makes a function's reply headers a caller's: what only the platform may say is removed, and a length that cannot be
/// true is, too. `length` is the body's, where it is known.
pub(crate) fn outward(head: &mut response::Parts, method: &Method, length: Option<u64>) {
    let headers = &mut head.headers;
    strip(headers);
    for ours in [FAULT, FUNCTION_ERROR, START] {
        headers.remove(ours);
    }
    let mut given = headers.get_all(header::CONTENT_LENGTH).iter();
    let believable = match (given.next(), given.next()) {
        (None, _) => true,
        (Some(one), None) => {
            let digits = one.to_str().ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
            let said: Option<u64> = digits.and_then(|t| t.parse().ok());
            said.is_some() && (method == Method::HEAD || length.is_none() || length == said)
        }
        (Some(_), Some(_)) => false,
    };
    if !believable || head.status == StatusCode::NO_CONTENT {
        headers.remove(header::CONTENT_LENGTH);
    }
}

/// Whether a request asks for a WebSocket. No other protocol is let through: an upgrade to HTTP/2 would carry requests past
/// every check.
pub(crate) fn wants_tunnel(head: &request::Parts) -> bool {
    head.version == Version::HTTP_11
        && head.method == Method::GET
        && tokens(&head.headers, &header::CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade"))
        && tokens(&head.headers, &header::UPGRADE).any(|t| t.eq_ignore_ascii_case("websocket"))
}

/// The host a request was sent to: that of its target where it has one, else that of its header.
pub(crate) fn host(head: &request::Parts) -> Option<HeaderValue> {
    match head.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => head.headers.get(header::HOST).cloned(),
    }
}

/// A header's value from text of our own making.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("the gateway's own words are visible ASCII")
}

/// The elements of a header that is a list.
pub(crate) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim)
}

fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION).filter_map(|t| t.parse().ok()).collect();
        for name in named {
            // The length frames the body: nobody may take it away.
            if name != header::CONTENT_LENGTH {
                headers.remove(name);
            }
        }
    }
    for name in &HOP {
        headers.remove(name);
    }
}

/// Adds an element to a header that is a list.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &str) {
    headers.append(&name, value(element));
    join(headers, name, ", ");
}

/// Makes one line of a header's lines.
fn join(headers: &mut HeaderMap, name: HeaderName, separator: &str) {
    let lines: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    if lines.len() > 1 {
        let joined = lines.join(separator.as_bytes());
        headers.insert(name, HeaderValue::from_bytes(&joined).expect("joined values are a value"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, headers: &[(&'static str, &'static str)]) -> response::Parts {
        let mut builder = http::Response::builder().status(status);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn length(status: u16, method: &Method, known: Option<u64>, values: &[&'static str]) -> Option<String> {
        let pairs: Vec<(&str, &str)> = values.iter().map(|v| ("content-length", *v)).collect();
        let mut head = response(status, &pairs);
        outward(&mut head, method, known);
        head.headers.get(header::CONTENT_LENGTH).map(|v| v.to_str().unwrap().to_owned())
    }

    #[test]
    fn only_a_length_that_can_be_true_passes() {
        let get = &Method::GET;
        assert_eq!(length(200, get, Some(5), &["5"]).as_deref(), Some("5"));
        assert_eq!(length(200, get, None, &["5"]).as_deref(), Some("5"));
        assert_eq!(length(200, &Method::HEAD, Some(0), &["5"]).as_deref(), Some("5"));
        for bad in
            [&["6"][..], &["5", "6"], &["5", "5"], &["-5"], &["+5"], &["5, 5"], &["x"], &["99999999999999999999"]]
        {
            assert_eq!(length(200, get, Some(5), bad), None, "{bad:?}");
        }
        assert_eq!(length(204, get, Some(0), &["0"]), None);
    }

    #[test]
    fn functions_cannot_speak_for_the_platform() {
        let mut head = response(
            200,
            &[
                ("x-taper-fault", "queue"),
                ("x-taper-start", "warm"),
                ("x-taper-function-error", "exit"),
                ("connection", "x-private, content-length, close"),
                ("x-private", "1"),
                ("content-length", "3"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("x-kept", "1"),
                ("x-openfaas-internal", "of-watchdog"),
            ],
        );
        outward(&mut head, &Method::GET, None);
        let mut left: Vec<&str> = head.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "x-kept", "x-openfaas-internal"]);
    }

    #[test]
    fn only_websockets_are_tunnels() {
        let wants = |version: Version, method: &str, connection: &str, upgrade: &str| {
            let request = http::Request::builder()
                .version(version)
                .method(method)
                .header("connection", connection)
                .header("upgrade", upgrade)
                .body(())
                .unwrap();
            wants_tunnel(&request.into_parts().0)
        };
        assert!(wants(Version::HTTP_11, "GET", "keep-alive, Upgrade", "WebSocket"));
        assert!(!wants(Version::HTTP_11, "GET", "Upgrade, HTTP2-Settings", "h2c"));
        assert!(!wants(Version::HTTP_11, "GET", "keep-alive", "websocket"));
        assert!(!wants(Version::HTTP_11, "POST", "upgrade", "websocket"));
        assert!(!wants(Version::HTTP_10, "GET", "upgrade", "websocket"));
    }
}
