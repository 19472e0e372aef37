//! Sends one request to an address that somebody gave: a POST, to what the name means at this moment. Never to an address inside the host or
//! its network unless the operator allows that, and over TLS never to somebody whose certificate is not trusted.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri,
    header::{CONTENT_LENGTH, HOST},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use taper_model::{FunctionName, clock, invocation::is_public};
use taper_trust::Trust;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OnceCell,
    task::spawn_blocking,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};

use crate::{Config, Error, courier::Missed, names::Names, service::retry_after};

/// Most bytes of the receiver's answer that are read: it is of no interest.
const ANSWER: usize = 64 << 10;

/// Whoever sends.
pub(crate) struct Post {
    /// Whether addresses inside the host and its network may be connected to.
    private: bool,
    names: Names,
    trust: Trust,
    /// How to speak TLS: made when it is needed first, because it reads all that the system trusts.
    tls: OnceCell<Arc<ClientConfig>>,
}

impl Post {
    /// Reads whom to trust beside those whom the system trusts.
    ///
    /// # Errors
    /// When that file is of no use.
    pub(crate) fn build(config: &Config) -> Result<Self, Error> {
        let trust = Trust::read(config.callback_ca.as_deref()).map_err(|e| Error::CallbackCa(e.to_string()))?;
        Ok(Self { private: config.private_callbacks, names: Names::new(), trust, tls: OnceCell::new() })
    }

    /// Sends it, for a call of this function; done when the receiver has answered with 2xx.
    ///
    /// # Errors
    /// Whether trying again can help.
    pub(crate) async fn send(
        &self,
        function: &FunctionName,
        uri: &Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(), Missed> {
        let authority = uri.authority().ok_or_else(|| Missed::never("its address names no host"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let secure = uri.scheme_str() == Some("https");
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let found = self.names.find(function, host, port).await.map_err(unreached)?;
        // What is looked at is what is connected to: a name cannot mean something else a moment later.
        let allowed: Vec<SocketAddr> =
            found.into_iter().filter(|address| self.private || is_public(address.ip())).collect();
        if allowed.is_empty() {
            return Err(Missed::never(
                "its address is inside this host or its network; `taper up --allow-private-callbacks` allows that",
            ));
        }
        let request = request(uri, authority.as_str(), headers, body)?;
        let stream = TcpStream::connect(&allowed[..]).await.map_err(unreached)?;
        if !secure {
            return exchange(stream, request).await;
        }
        // The certificate is to be of the host that was named, at whichever address it is.
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Missed::never("its name is none that a certificate could have"))?;
        let agreed = TlsConnector::from(self.tls().await?).connect(name, stream).await;
        let stream = agreed.map_err(|e| match taper_trust::in_words(&e, "queue.callbackCa") {
            // Certificates are mended.
            Some(words) => unreached(words),
            None => unreached(e),
        })?;
        exchange(stream, request).await
    }

    async fn tls(&self) -> Result<Arc<ClientConfig>, Missed> {
        let make = || async {
            let trust = self.trust.clone();
            let made = spawn_blocking(move || trust.client(&[])).await.map_err(unreached)?;
            made.map_err(unreached)
        };
        self.tls.get_or_try_init(make).await.cloned()
    }
}

fn unreached(why: impl std::fmt::Display) -> Missed {
    Missed::later(format!("the receiver was not reached: {why}"), None)
}

/// One request, and what is said to it.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(), Missed> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(unreached)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(unreached)?;
        let (status, after) = (answer.status(), retry_after(answer.headers(), clock::unix_ms()));
        // Read, so that the receiver is not cut off; how that ends changes nothing.
        drop(Limited::new(answer.into_body(), ANSWER).collect().await);
        answered(status, after)
    };
    tokio::pin!(connection, exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection has ended: what there was of an answer is there.
        _ = &mut connection => exchange.await,
    }
}

fn answered(status: StatusCode, after: Option<Duration>) -> Result<(), Missed> {
    let why = format!("the receiver answered {}", status.as_u16());
    match status.as_u16() {
        200..=299 => Ok(()),
        408 | 429 | 500.. => Err(Missed::later(why, after)),
        _ => Err(Missed::never(why)),
    }
}

fn request(uri: &Uri, host: &str, mut headers: HeaderMap, body: Bytes) -> Result<Request<Full<Bytes>>, Missed> {
    say(&mut headers, HOST, host);
    headers.insert(CONTENT_LENGTH, (body.len() as u64).into());
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() =
        target.parse().map_err(|_| Missed::never("its address has no path that could be asked for"))?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Sets a header, if that can be said in one.
pub(crate) fn say(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_receiver_says_decides() {
        for status in [200, 201, 204, 299] {
            assert_eq!(answered(StatusCode::from_u16(status).unwrap(), None), Ok(()));
        }
        let after = Some(Duration::from_secs(5));
        for status in [408, 429, 500, 503, 599] {
            let missed = answered(StatusCode::from_u16(status).unwrap(), after).unwrap_err();
            assert_eq!(missed, Missed::later(format!("the receiver answered {status}"), after));
        }
        for status in [301, 307, 400, 401, 404, 410] {
            let missed = answered(StatusCode::from_u16(status).unwrap(), after).unwrap_err();
            assert_eq!(missed, Missed::never(format!("the receiver answered {status}")));
        }
    }
}
