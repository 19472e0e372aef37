//! What the gateway changes in the headers of a call and of its reply. What belongs to one connection stays on it; all else
//! passes, and a function learns from ours who called. Never decides a status: `reply` does.

use std::{fmt::Write, net::SocketAddr};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{self, Entry},
    request, response,
};

use taper_model::{Name, clock};

use crate::{record::Record, trace};

pub(crate) use taper_queue::MADE;

/// The call's identity, in both directions.
pub(crate) const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");
/// When the call came, in nanoseconds since the Unix epoch; in both directions.
pub(crate) const START_TIME: HeaderName = HeaderName::from_static("x-start-time");
/// Seconds that the function took until its response began.
pub(crate) const DURATION: HeaderName = HeaderName::from_static("x-duration-seconds");
/// The gateway's name and version.
pub(crate) const SERVED_BY: HeaderName = HeaderName::from_static("x-served-by");
/// The stage at which the platform stopped the call.
pub(crate) const FAULT: HeaderName = HeaderName::from_static("x-taper-fault");
/// How the function itself failed.
pub(crate) const FUNCTION_ERROR: HeaderName = HeaderName::from_static("x-taper-function-error");
/// How the instance came to be there.
pub(crate) const START: HeaderName = HeaderName::from_static("x-taper-start");
/// The revision that the call was for.
pub(crate) const REVISION: HeaderName = HeaderName::from_static("x-taper-revision");
/// The tag of the revision that a caller wants.
pub(crate) const TAG: HeaderName = HeaderName::from_static("x-taper-tag");
/// The same in Knative's words; towards the function also the tag that the call's address names.
pub(crate) const KNATIVE_TAG: HeaderName = HeaderName::from_static("knative-serving-tag");
/// `true`, towards the function: the caller wants a tag that there is not.
pub(crate) const DEFAULT_ROUTE: HeaderName = HeaderName::from_static("knative-serving-default-route");
/// `true`, towards the function: a copy of a call, whose answer nobody reads.
pub(crate) const MIRROR: HeaderName = HeaderName::from_static("x-taper-mirror");
/// Of calls in the queue: the tag that the call's address named.
pub(crate) const PIN: HeaderName = HeaderName::from_static("x-taper-pin");
/// How often the call was sent to an instance, where that was more than once.
pub(crate) const ATTEMPTS: HeaderName = HeaderName::from_static("x-taper-attempts");
/// OpenFaaS's mark on errors of its own parts.
pub(crate) const OPENFAAS_INTERNAL: HeaderName = HeaderName::from_static("x-openfaas-internal");
/// `true`: the call was accepted before, and is named again.
pub(crate) const REPEATED: HeaderName = HeaderName::from_static("x-taper-repeated");
/// `true`: the caller does not wait.
pub(crate) const ASYNC: HeaderName = HeaderName::from_static("x-taper-async");
/// Where a call's time went (W3C Server Timing).
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What concerns one connection only (RFC 9110, section 7.6.1), the proxy's own credentials, and `Expect`, which is between the
/// client and us.
fn is_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "expect"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "keep-alive"
            | "proxy-connection"
            | "http2-settings"
    )
}

/// What the names of headers with the parameters of a path begin with.
pub(crate) const PARAMETER: &str = "x-taper-param-";

/// What only the platform says of a call, to its caller.
fn is_ours(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "x-taper-fault" | "x-taper-function-error" | "x-taper-start" | "x-taper-revision" | "x-taper-attempts"
    )
}

/// The same, to a function.
fn is_ours_inward(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(
        name,
        "x-taper-mirror"
            | "x-taper-pin"
            | "x-taper-made"
            | "x-taper-trigger"
            | "x-taper-tick"
            | "x-taper-delivery"
            | "knative-serving-default-route"
    ) || name.starts_with(PARAMETER)
}

/// Whether some servers would take a name for one of ours: CGI and what came after it knows no difference between `-` and `_`.
fn is_like_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.contains('_') && name.len() >= 8 && name.replace('_', "-").starts_with("x-taper-")
}

/// The header of a tag, whichever of its names it has.
fn is_tag(name: &HeaderName) -> bool {
    matches!(name.as_str(), "x-taper-tag" | "knative-serving-tag")
}

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Which headers there are of those that something is done about; mostly none. They are looked through once, for to look each up
/// costs more.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// What concerns one connection only.
    hops: bool,
    /// What only the platform says to a function.
    ours: bool,
    /// A tag.
    tag: bool,
    /// An identity.
    pub(crate) id: bool,
    /// A word on whether the caller waits.
    pub(crate) later: bool,
    /// A trace context, or a part of one.
    trace: bool,
}

impl Seen {
    pub(crate) fn among(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in headers.keys() {
            seen.hops |= is_hop(name);
            // Of most that come, the first letter says that they are none of the others.
            if matches!(name.as_str().as_bytes(), [b'x' | b'k' | b't', ..]) {
                seen.ours |= is_ours_inward(name) || is_like_ours(name);
                seen.tag |= is_tag(name);
                seen.id |= *name == CALL_ID;
                seen.later |= *name == ASYNC;
                seen.trace |= trace::is_part(name);
            }
        }
        seen
    }
}

/// Makes a caller's headers a function's, whose calls have this `Host`. Says whether they ask for a tag.
pub(crate) fn inward(head: &mut request::Parts, record: &Record, own: HeaderValue) -> bool {
    let Seen { hops, ours, tag, trace, .. } = record.seen();
    // What asks for a tunnel or for trailers concerns one connection only.
    let tunnel = hops && wants_tunnel(head);
    let trailers = hops && tokens(&head.headers, &header::TE).any(|t| t.eq_ignore_ascii_case("trailers"));
    let host = host(&head.uri, &head.headers);
    let headers = &mut head.headers;
    if hops {
        strip(headers);
    }
    if ours {
        remove(headers, |name| is_ours_inward(name) || is_like_ours(name));
    }
    headers.reserve(10);
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
    let link = record.link();
    append(headers, FORWARDED_FOR, link.forwarded_for.clone());
    append(headers, header::FORWARDED, link.forwarded(host.as_ref()));
    if let (Entry::Vacant(place), Some(host)) = (headers.entry(FORWARDED_HOST), host) {
        place.insert(host);
    }
    let proto = HeaderValue::from_static(if link.is_secure() { "https" } else { "http" });
    headers.entry(FORWARDED_PROTO).or_insert(proto);
    headers.insert(header::HOST, own);
    headers.insert(CALL_ID, value(record.id().as_str()));
    headers.insert(START_TIME, record.start_time());
    trace::pass_on(headers, trace);
    if let Some(found) = record.found() {
        found.tell(head.uri.path(), headers);
    }
    tag
}

/// Makes the headers of a call that came by no connection of its own a function's, whose calls have this `Host`.
pub(crate) fn foreign(headers: &mut HeaderMap, own: HeaderValue) {
    strip(headers);
    remove(headers, |name| is_ours_inward(name) || is_like_ours(name));
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::HOST, own);
    let now = u64::try_from(clock::unix().as_nanos()).unwrap_or(u64::MAX);
    headers.insert(START_TIME, now.into());
}

/// Tells a function how its call was chosen by a tag: the one that its address names, or that what was asked for is not there.
pub(crate) fn tell(headers: &mut HeaderMap, address: Option<&Name>, missed: bool) {
    if let Some(value) = address.and_then(|tag| HeaderValue::from_str(tag.as_str()).ok()) {
        headers.insert(KNATIVE_TAG, value);
    }
    if missed {
        headers.insert(DEFAULT_ROUTE, HeaderValue::from_static("true"));
    }
}

/// The value of `Forwarded` for calls of this client to this host.
pub(crate) fn forwarded(peer: SocketAddr, secure: bool, host: Option<&HeaderValue>) -> HeaderValue {
    let mut text = format!("for=\"{peer}\";proto=http{}", if secure { "s" } else { "" });
    if let Some(host) = host.and_then(|h| h.to_str().ok()) {
        let _ = write!(text, ";host=\"{host}\"");
    }
    value(&text)
}

/// Makes a function's reply headers a caller's: what only the platform may say is removed, and a length that cannot be
/// true is, too. `length` is the body's, where it is known.
pub(crate) fn outward(head: &mut response::Parts, method: &Method, length: Option<u64>) {
    let headers = &mut head.headers;
    strip(headers);
    remove(headers, is_ours);
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
pub(crate) fn host(uri: &Uri, headers: &HeaderMap) -> Option<HeaderValue> {
    match uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => headers.get(header::HOST).cloned(),
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
    if !headers.keys().any(is_hop) {
        return;
    }
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION).filter_map(|t| t.parse().ok()).collect();
        for name in named {
            // The length frames the body: nobody may take it away.
            if name != header::CONTENT_LENGTH {
                headers.remove(name);
            }
        }
    }
    remove(headers, is_hop);
}

/// Removes what is one of these. Names are looked at once, and mostly there is nothing to remove.
fn remove(headers: &mut HeaderMap, is: fn(&HeaderName) -> bool) {
    while let Some(name) = headers.keys().find(|name| is(name)).cloned() {
        headers.remove(name);
    }
}

/// Adds an element to a header that is a list.
fn append(headers: &mut HeaderMap, name: HeaderName, element: HeaderValue) {
    if headers.append(&name, element) {
        join(headers, name, ", ");
    }
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
                ("x-taper-revision", "other-00001"),
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
