//! Who may pass: one layer over the whole router. It knows the few doors that are open and closes everything else,
//! whether or not something is behind it; so a route that somebody adds is closed before it exists.

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::Either;
use http::{HeaderMap, HeaderValue, Version, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use taper_model::{BoxFuture, Cause, Fault, Stage};
use tokio::sync::watch;
use tower::Service;

use crate::{
    accept::{Request, Response},
    guess::Guesses,
    reply,
    route::Door,
    routes,
};

/// The name and the password that open the control plane.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// The password.
    pub password: String,
}

/// What a request says of who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// Nothing.
    Nothing,
    /// What is not the credentials.
    Wrong,
    /// The credentials.
    Right,
}

impl Credentials {
    /// What these headers say.
    fn said(&self, headers: &HeaderMap) -> Said {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        match (given.next(), given.next()) {
            (None, _) => Said::Nothing,
            (Some(value), None) if self.are(value) => Said::Right,
            _ => Said::Wrong,
        }
    }

    /// Takes the credentials out of a call: a browser or a script that knows them sends them along, and the function must not
    /// learn what opens the platform. What else a caller says there is between the two.
    fn withhold(&self, headers: &mut HeaderMap) {
        if headers.get_all(header::AUTHORIZATION).iter().any(|value| self.are(value)) {
            headers.remove(header::AUTHORIZATION);
        }
    }

    /// Whether this value is the credentials, as HTTP basic authentication (RFC 7617) writes them. Digests are compared, so that
    /// the time it takes tells nothing of the password, nor of its length.
    fn are(&self, value: &HeaderValue) -> bool {
        let Some((scheme, token)) = value.to_str().ok().and_then(|v| v.split_once(' ')) else { return false };
        if !scheme.eq_ignore_ascii_case("basic") {
            return false;
        }
        let Ok(pair) = STANDARD.decode(token.trim()) else { return false };
        let wanted = Sha256::new().chain_update(&self.user).chain_update(":").chain_update(&self.password).finalize();
        Sha256::digest(pair).as_slice().ct_eq(wanted.as_slice()).into()
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
    gate: Arc<Gate>,
    router: S,
}

struct Gate {
    credentials: watch::Receiver<Credentials>,
    guesses: Guesses,
}

impl<S> Authenticate<S> {
    pub(crate) fn new(credentials: watch::Receiver<Credentials>, guesses: Guesses, router: S) -> Self {
        Self { gate: Arc::new(Gate { credentials, guesses }), router }
    }
}

impl Gate {
    /// Whether this request may pass, and if not, what it said.
    fn check(&self, request: &Request) -> Result<(), Said> {
        let open = match request.body().record.door() {
            Door::Function | Door::Async | Door::Routed | Door::Health | Door::Ready => true,
            Door::Metrics => local(request),
            Door::System | Door::Other => false,
        };
        if open {
            return Ok(());
        }
        match self.credentials.borrow().said(request.headers()) {
            Said::Right => Ok(()),
            said => Err(said),
        }
    }

    /// Answers what may not pass. A wrong password waits for its answer; a request without one guesses nothing.
    async fn refuse(self: Arc<Self>, request: Request, said: Said) -> Response {
        let peer = request.body().record.peer().ip();
        if said == Said::Wrong && !self.guesses.wrong(peer).await {
            const FLOOD: &str = "too many wrong passwords come from there; the right one is let in all the same";
            let close = request.version() != Version::HTTP_2;
            let mut response = reply::refuse(request, &Fault::new(Stage::Accept, Cause::Limited, FLOOD));
            if close {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            return response;
        }
        const MEND: &str = "this wants the administrator's name and password: unless other ones were set, `admin` and what `admin-password` in the data directory holds";
        reply::refuse(request, &Fault::new(Stage::Accept, Cause::Unauthenticated, MEND))
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
    type Future = Either<S::Future, BoxFuture<'static, Result<Response, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.router.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        if let Err(refusal) = routes::decide(&mut request) {
            return Either::Right(Box::pin(std::future::ready(Ok(refusal.answer(request)))));
        }
        if let Err(said) = self.gate.check(&request) {
            let gate = self.gate.clone();
            return Either::Right(Box::pin(async move { Ok(gate.refuse(request, said).await) }));
        }
        let calls = matches!(request.body().record.door(), Door::Function | Door::Async | Door::Routed);
        if calls && request.headers().contains_key(header::AUTHORIZATION) {
            self.gate.credentials.borrow().withhold(request.headers_mut());
        }
        Either::Left(self.router.call(request))
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
        assert!(credentials.said(&headers(&[&good])) == Said::Right);
        assert_eq!(credentials.said(&headers(&[&good.replace("Basic", "bAsIc")])), Said::Right);
        for bad in ["admin:s3cret", "admin:", ":s3cret:x", "admin:s3cret:xx", "Admin:s3cret:x", "admin", ""] {
            let bad = format!("Basic {}", STANDARD.encode(bad));
            assert_eq!(credentials.said(&headers(&[&bad])), Said::Wrong, "{bad}");
        }
        for bad in ["", "Basic", "Basic ", "Basic %%%", &good.replace("Basic", "Bearer"), "admin:s3cret:x"] {
            assert_eq!(credentials.said(&headers(&[bad])), Said::Wrong, "{bad}");
        }
        assert_eq!(credentials.said(&HeaderMap::new()), Said::Nothing);
        assert_eq!(credentials.said(&headers(&[&good, &good])), Said::Wrong, "two answers are none");
    }

    #[test]
    fn the_password_is_not_printed() {
        let credentials = Credentials { user: "admin".into(), password: "s3cret".into() };
        assert!(!format!("{credentials:?}").contains("s3cret"));
    }
}
