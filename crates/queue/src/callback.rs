//! Delivers what became of a call to the address that its caller gave, as OpenFaaS does: a POST of the function's answer. Never to an
//! address inside the host or its network unless the operator allows that, and over TLS never to somebody whose certificate is not trusted.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rand::RngExt;
use taper_model::{Cause, Fault, FunctionName, Retry, Stage, clock, name::DEFAULT_NAMESPACE};
use taper_trust::Trust;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    sync::OnceCell,
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};

use crate::{Config, Delivery, Details, Error, Outcome, Policy, Verdict};

/// Longest time that a delivery may take.
const LONGEST: Duration = Duration::from_secs(60);
/// Most bytes of the receiver's answer that are read: it is of no interest.
const ANSWER: usize = 64 << 10;

/// Whoever delivers.
pub(crate) struct Courier {
    /// Whether addresses inside the host and its network may be connected to.
    private: bool,
    trust: Trust,
    /// How to speak TLS: made when it is needed first, because it reads all that the system trusts.
    tls: OnceCell<Arc<ClientConfig>>,
}

impl Courier {
    /// Reads whom to trust beside those whom the system trusts.
    ///
    /// # Errors
    /// When that file is of no use.
    pub(crate) fn build(config: &Config) -> Result<Self, Error> {
        let trust = Trust::read(config.callback_ca.as_deref()).map_err(|e| Error::CallbackCa(e.to_string()))?;
        Ok(Self { private: config.private_callbacks, trust, tls: OnceCell::new() })
    }

    /// Tries to deliver; says after how long it is to be tried again, if it is.
    pub(crate) async fn deliver(&self, delivery: &Delivery) -> Option<Duration> {
        let Details { invocation, entry, .. } = &delivery.details;
        let uri = entry.callback.as_ref()?;
        let sent = timeout(LONGEST, self.send(uri, &delivery.details)).await;
        let sent = sent.unwrap_or_else(|_| Err(unreached("it took longer than 60 s", Retry::Never)));
        let status = match &sent {
            Ok(status) if status.is_success() => return None,
            Ok(status) => *status,
            Err(fault) if fault.cause == Cause::Forbidden => StatusCode::FORBIDDEN,
            Err(_) => StatusCode::BAD_GATEWAY,
        };
        let age = Duration::from_millis(clock::unix_ms().saturating_sub(invocation.ended_ms.unwrap_or_default()));
        let outcome = Outcome { status, fault: sent.as_ref().err(), retry_after: None };
        let verdict = Policy::default().decide(outcome, delivery.tries, delivery.tries, age, rand::rng().random());
        let why = sent.as_ref().map_or_else(|fault| fault.message.clone(), |status| format!("it answered {status}"));
        match verdict {
            Verdict::Again { after, .. } => {
                tracing::debug!(call = %invocation.id, why, "a callback could not be delivered; it is tried again");
                Some(after)
            }
            Verdict::Done | Verdict::Bury(_) => {
                // Without the address: it may hold a key.
                tracing::warn!(call = %invocation.id, function = %invocation.function, why, "a callback was given up");
                None
            }
        }
    }

    async fn send(&self, uri: &Uri, details: &Details) -> Result<StatusCode, Fault> {
        let authority = uri.authority().ok_or_else(|| unreached("no host", Retry::Never))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let secure = uri.scheme_str() == Some("https");
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let safe = |e: std::io::Error| unreached(e, Retry::Safe);
        let found: Vec<SocketAddr> = lookup_host((host, port)).await.map_err(safe)?.collect();
        // What is looked at is what is connected to: a name cannot mean something else a moment later.
        let allowed: Vec<SocketAddr> =
            found.into_iter().filter(|address| self.private || is_public(address.ip())).collect();
        if allowed.is_empty() {
            let text = "its address is inside this host or its network; set queue.privateCallbacks to allow that";
            return Err(Fault::new(Stage::Respond, Cause::Forbidden, text));
        }
        let request = request(uri, authority.as_str(), details)?;
        let stream = TcpStream::connect(&allowed[..]).await.map_err(safe)?;
        if !secure {
            return exchange(stream, request).await;
        }
        // The certificate is to be of the host that the caller named, at whichever address it is.
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| unreached("its name is none that a certificate could have", Retry::Never))?;
        // Nothing of the request was sent yet, and certificates are mended.
        let agreed = TlsConnector::from(self.tls().await?).connect(name, stream).await;
        let stream = agreed.map_err(|e| match taper_trust::in_words(&e, "queue.callbackCa") {
            Some(words) => unreached(words, Retry::Safe),
            None => safe(e),
        })?;
        exchange(stream, request).await
    }

    async fn tls(&self) -> Result<Arc<ClientConfig>, Fault> {
        let make = || async {
            let trust = self.trust.clone();
            let made = spawn_blocking(move || trust.client(&[])).await.map_err(|e| unreached(e, Retry::Safe))?;
            made.map_err(|e| unreached(e, Retry::Safe))
        };
        self.tls.get_or_try_init(make).await.cloned()
    }
}

fn unreached(why: impl std::fmt::Display, retry: Retry) -> Fault {
    let mut fault = Fault::new(Stage::Respond, Cause::Died, format!("the callback's host was not reached: {why}"));
    fault.retry = retry;
    fault
}

/// One request, and what is said to it.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<bytes::Bytes>>,
) -> Result<StatusCode, Fault> {
    let broke = |e: hyper::Error| unreached(e, Retry::Never);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(broke)?;
        let status = answer.status();
        // Read, so that the receiver is not cut off; how that ends changes nothing.
        drop(Limited::new(answer.into_body(), ANSWER).collect().await);
        Ok(status)
    };
    tokio::pin!(connection, exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection has ended: what there was of an answer is there.
        _ = &mut connection => exchange.await,
    }
}

/// The function's answer, with its headers, and what OpenFaaS says beside them.
fn request(uri: &Uri, host: &str, details: &Details) -> Result<Request<Full<bytes::Bytes>>, Fault> {
    let Details { invocation, entry, attempts, answer } = details;
    let mut headers = answer.as_ref().map(|answer| answer.headers.clone()).unwrap_or_default();
    for hop in [CONNECTION, UPGRADE, TE, TRAILER, TRANSFER_ENCODING] {
        headers.remove(hop);
    }
    let body = match (answer, &invocation.reason) {
        (Some(answer), _) => answer.body.clone(),
        (None, reason) => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            reason.clone().unwrap_or_default().into()
        }
    };
    let took = attempts.last().map_or(0, |attempt| attempt.took_ms);
    let call = entry.correlation.as_deref().unwrap_or(invocation.id.as_str());
    let status = invocation.status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE.as_u16());
    say(&mut headers, HOST, host);
    say(&mut headers, CONTENT_LENGTH, &body.len().to_string());
    say(&mut headers, HeaderName::from_static("x-call-id"), call);
    say(
        &mut headers,
        HeaderName::from_static("x-duration-seconds"),
        &format!("{:.6}", Duration::from_millis(took).as_secs_f64()),
    );
    say(&mut headers, HeaderName::from_static("x-function-name"), &name(&invocation.function));
    say(&mut headers, HeaderName::from_static("x-function-status"), &status.to_string());
    // The same each time it is tried.
    say(&mut headers, HeaderName::from_static("x-taper-delivery"), invocation.id.as_str());
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = target.parse().map_err(|_| unreached("no such path", Retry::Never))?;
    *request.headers_mut() = headers;
    Ok(request)
}

fn say(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

fn name(function: &FunctionName) -> String {
    match function.namespace.as_str() {
        DEFAULT_NAMESPACE => function.name.to_string(),
        _ => function.to_string(),
    }
}

/// Whether an address is out in the world (RFC 6890): not this host's, not its network's.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            // This network, shared address space, protocol assignments, benchmarking, reserved.
            let special = a == 0
                || (a == 100 && b & 0xc0 == 64)
                || (a, b, c) == (192, 0, 0)
                || (a == 198 && b & 0xfe == 18)
                || a >= 240;
            !(special
                || ip.is_loopback()
                || ip.is_private()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_documentation())
        }
        IpAddr::V6(ip) => match embedded(ip) {
            Some(ip) => is_public(ip),
            // Global unicast, without what is for documentation.
            None => ip.segments()[0] & 0xe000 == 0x2000 && ip.segments()[..2] != [0x2001, 0xdb8],
        },
    }
}

/// The older address that one stands for: mapped, translated (RFC 6052), or in a tunnel (RFC 3056).
fn embedded(ip: Ipv6Addr) -> Option<IpAddr> {
    let s = ip.segments();
    let v4 = |high: u16, low: u16| IpAddr::from([(high >> 8) as u8, high as u8, (low >> 8) as u8, low as u8]);
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_out_in_the_world() {
        for text in
            ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1", "2002:808:808::1", "64:ff9b::808:808"]
        {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "2001:db8::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }
}
