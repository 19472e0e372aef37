//! What a rule lets the gateway answer in the function's place: redirects to TLS, and what pages of other origins may do, by the Fetch
//! standard's CORS protocol, preflights and all; what the function says of it is replaced. A request of an origin that is not let in
//! is served all the same: what its page may see of the answer, the browser decides.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use taper_model::route::{Bound, Cors};

use crate::{
    accept::{Request, Response},
    headers, host, reply,
};

/// How long a browser may remember a preflight, in seconds, where the rule does not say.
const MAX_AGE: u64 = 600;

/// What the protocol says in answers, preflights' and others'.
const SAID: [HeaderName; 6] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
];

/// The method that a preflight asks for, if the request is one: it has one origin, and asks for one method, in its own case. Anything else
/// is an `OPTIONS` as any other.
pub(crate) fn preflight<'a>(method: &Method, headers: &'a HeaderMap) -> Option<&'a str> {
    if method != Method::OPTIONS {
        return None;
    }
    origin(headers)?;
    let asked = only(headers, &header::ACCESS_CONTROL_REQUEST_METHOD)?.to_str().ok()?;
    Method::from_bytes(asked.as_bytes()).is_ok().then_some(asked)
}

/// Whose page asks. Two origins are none.
pub(crate) fn origin(headers: &HeaderMap) -> Option<&HeaderValue> {
    only(headers, &header::ORIGIN)
}

/// A header that is no list, where it is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut all = headers.get_all(name).iter();
    all.next().filter(|_| all.next().is_none())
}

/// The request headers that a preflight asks for, of all its lines. None where there are none, or one of them cannot be one.
fn wanted(headers: &HeaderMap) -> Option<HeaderValue> {
    let names = headers::tokens(headers, &header::ACCESS_CONTROL_REQUEST_HEADERS).filter(|name| !name.is_empty());
    let names: Vec<&str> = names.collect();
    if names.is_empty() || names.iter().any(|name| HeaderName::from_bytes(name.as_bytes()).is_err()) {
        return None;
    }
    HeaderValue::try_from(names.join(", ")).ok()
}

/// Answers a request where its rule says how, or gives it back.
pub(crate) fn first(rule: &Bound, request: Request) -> Result<Request, Box<Response>> {
    let record = &request.body().record;
    if rule.redirect && !record.link().is_secure() && !relayed(request.headers()) {
        let Some(location) = secured(&request, record.context().secure_port()) else { return Ok(request) };
        return Err(Box::new(reply::elsewhere(request.into_body().record, location)));
    }
    match &rule.cors {
        Some(cors) => {
            let Some(asked) = preflight(request.method(), request.headers()) else { return Ok(request) };
            let mut headers = HeaderMap::new();
            answer(rule, cors, asked, request.headers(), &mut headers);
            Err(Box::new(reply::nothing(request.into_body().record, headers)))
        }
        None => Ok(request),
    }
}

/// The address of a request with `https`, where TLS is listened for at this port.
fn secured(request: &Request, port: u16) -> Option<HeaderValue> {
    let named = headers::host(request.uri(), request.headers())?;
    let host = host::read(named.to_str().ok()?).ok()?;
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    HeaderValue::try_from(format!("https://{host}{port}{path}")).ok()
}

/// Whether a proxy before us says that the request came to it by TLS.
pub(crate) fn relayed(headers: &HeaderMap) -> bool {
    headers.get("x-forwarded-proto").is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
}

/// The headers of the answer to a preflight for a method. An origin that is not let in hears nothing.
fn answer(rule: &Bound, cors: &Cors, asked: &str, request: &HeaderMap, response: &mut HeaderMap) {
    response.insert(
        header::VARY,
        HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    );
    if !admit(cors, origin(request), response) {
        return;
    }
    let listed = |list: &[String]| HeaderValue::try_from(list.join(", ")).ok();
    let methods = match (&cors.methods[..], &rule.methods[..]) {
        ([], []) => HeaderValue::from_str(asked).ok(),
        ([], list) | (list, _) => listed(list),
    };
    let allowed = if cors.headers.is_empty() { wanted(request) } else { listed(&cors.headers) };
    for (name, value) in
        [(header::ACCESS_CONTROL_ALLOW_METHODS, methods), (header::ACCESS_CONTROL_ALLOW_HEADERS, allowed)]
    {
        if let Some(value) = value {
            response.insert(name, value);
        }
    }
    let age = cors.max_age.map_or(MAX_AGE, |age| age.0.as_secs());
    response.insert(header::ACCESS_CONTROL_MAX_AGE, age.into());
}

/// Puts the rule's word in the place of the function's.
pub(crate) fn mark(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    for gone in &SAID {
        headers.remove(gone);
    }
    if !is_open(cors) && !headers::tokens(headers, &header::VARY).any(|t| t == "*" || t.eq_ignore_ascii_case("origin"))
    {
        // Also where the origin is refused or there is none: a cache must not give that answer to another.
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    if admit(cors, origin, headers)
        && !cors.expose.is_empty()
        && let Ok(list) = HeaderValue::try_from(cors.expose.join(", "))
    {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, list);
    }
}

fn is_open(cors: &Cors) -> bool {
    cors.origins.iter().any(|o| o == "*")
}

/// Says who is let in, if this origin is.
fn admit(cors: &Cors, origin: Option<&HeaderValue>, response: &mut HeaderMap) -> bool {
    let Some(origin) = origin else { return false };
    let allowed = match is_open(cors) {
        true => HeaderValue::from_static("*"),
        false if cors.origins.iter().any(|o| o.as_bytes() == origin.as_bytes()) => origin.clone(),
        false => return false,
    };
    response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    if cors.credentials {
        response.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    true
}
