//! Who may pass: one layer over the whole router. It knows the few doors that are open and closes everything else,
//! whether or not something is behind it; so a route that somebody adds is closed before it exists.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    task::{Context, Poll},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::Either;
use http::{HeaderMap, HeaderValue, header};
use subtle::ConstantTimeEq;
use taper_model::{Cause, Fault, Stage};
use tower::Service;

use crate::{
    accept::{Request, Response},
    reply,
    route::Door,
};

/// The name and the password that open the control plane.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl Credentials {
    /// Whether these headers carry the credentials.
    fn admit(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else { return false };
        self.are(value)
    }

    /// Takes the credentials out of a call: a browser or a script that knows them sends them along, and the function must not
    /// learn what opens the platform. What else a caller says there is between the two.
    fn withhold(&self, headers: &mut HeaderMap) {
        if headers.get_all(header::AUTHORIZATION).iter().any(|value| self.are(value)) {
            headers.remove(header::AUTHORIZATION);
        }
    }

    /// Whether this value is the credentials, as HTTP basic authentication (RFC 7617) writes them. Takes the same time for
    /// every wrong password of one length.
    fn are(&self, value: &HeaderValue) -> bool {
        let Some((scheme, token)) = value.to_str().ok().and_then(|v| v.split_once(' ')) else { return false };
        let Ok(pair) = STANDARD.decode(token.trim()) else { return false };
        let wanted = format!("{}:{}", self.user, self.password);
        scheme.eq_ignore_ascii_case("basic") & bool::from(pair.ct_eq(wanted.as_bytes()))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The router behind the check.
#[derive(Clone)]
pub(crate) struct Authenticate<S> {
    credentials: Credentials,
    router: S,
}

impl<S> Authenticate<S> {
    pub(crate) fn new(credentials: Credentials, router: S) -> Self {
        Self { credentials, router }
    }

    fn passes(&self, request: &Request) -> bool {
        match Door::of(request.uri().path()) {
            Door::Function | Door::Async | Door::Health | Door::Ready => true,
            Door::Metrics => local(request) || self.credentials.admit(request.headers()),
            Door::System | Door::Other => self.credentials.admit(request.headers()),
        }
    }
}

/// Whether a request comes from this machine and nobody passed it on.
fn local(request: &Request) -> bool {
    let relayed = [header::FORWARDED.as_str(), "x-forwarded-for"].iter().any(|h| request.headers().contains_key(*h));
    request.body().record.peer().ip().to_canonical().is_loopback() && !relayed
}

impl<S> Service<Request> for Authenticate<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.router.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        if self.passes(&request) {
            if matches!(Door::of(request.uri().path()), Door::Function | Door::Async) {
                self.credentials.withhold(request.headers_mut());
            }
            return Either::Left(self.router.call(request));
        }
        const MEND: &str = "this wants the administrator's password: user `admin`, and what `admin-password` in the data directory holds";
        let fault = Fault::new(Stage::Accept, Cause::Unauthenticated, MEND);
        Either::Right(ready(Ok(reply::refuse(request, &fault))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|v| (header::AUTHORIZATION, HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn only_the_one_pair_is_admitted() {
        let credentials = Credentials { user: "admin".into(), password: "s3cret:x".into() };
        let good = format!("Basic {}", STANDARD.encode("admin:s3cret:x"));
        assert!(credentials.admit(&headers(&[&good])));
        assert!(credentials.admit(&headers(&[&good.replace("Basic", "bAsIc")])));
        for bad in ["admin:s3cret", "admin:", ":s3cret:x", "admin:s3cret:xx", "Admin:s3cret:x", "admin", ""] {
            assert!(!credentials.admit(&headers(&[&format!("Basic {}", STANDARD.encode(bad))])), "{bad}");
        }
        for bad in ["", "Basic", "Basic ", "Basic %%%", &good.replace("Basic", "Bearer"), "admin:s3cret:x"] {
            assert!(!credentials.admit(&headers(&[bad])), "{bad}");
        }
        assert!(!credentials.admit(&HeaderMap::new()));
        assert!(!credentials.admit(&headers(&[&good, &good])), "two answers are none");
    }

    #[test]
    fn the_password_is_not_printed() {
        let credentials = Credentials { user: "admin".into(), password: "s3cret".into() };
        assert!(!format!("{credentials:?}").contains("s3cret"));
    }
}
