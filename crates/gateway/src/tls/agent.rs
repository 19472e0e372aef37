//! The HTTP client that speaks with a certificate authority: a connection for each of its few requests. Trusts whom the system trusts, and
//! the roots that it was given.

use std::{path::Path, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::{ClientConfig, pki_types::ServerName};
use taper_model::BoxError;
use taper_trust::Trust;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::Unusable;

/// Where roots are given.
const CA: &str = "gateway.tls.acme.ca";
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// No answer of an authority is longer.
const LARGEST: usize = 1 << 20;

/// The client.
#[derive(Clone)]
pub(super) struct Agent(Arc<ClientConfig>);

impl Agent {
    /// Reads whom to trust.
    ///
    /// # Errors
    /// When that is nobody, or the file is of no use.
    pub(super) fn build(ca: Option<&Path>) -> Result<Self, Unusable> {
        let trusted = Trust::read(ca).and_then(|trust| trust.client(&[]));
        trusted.map(Self).map_err(|error| Unusable { file: CA.into(), why: error.to_string() })
    }

    async fn ask(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, BoxError> {
        let uri = request.uri();
        let host = uri.host().ok_or("the authority named an address without a host")?;
        let name = host.trim_matches(['[', ']']).to_owned();
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((name.as_str(), port)).await?;
        if secure {
            let agreed = TlsConnector::from(self.0).connect(ServerName::try_from(name)?, stream).await;
            let stream = agreed.map_err(|error| match taper_trust::in_words(&error, CA) {
                Some(words) => BoxError::from(words),
                None => error.into(),
            })?;
            return exchange(stream, request).await;
        }
        exchange(stream, request).await
    }
}

impl HttpClient for Agent {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (agent, uri) = (self.clone(), request.uri().clone());
        Box::pin(async move {
            let failed = |e: BoxError| Error::Other(format!("{uri}: {e}").into());
            match timeout(PATIENCE, agent.ask(request)).await {
                Ok(answer) => answer.map_err(failed),
                Err(_) => Err(failed(format!("no answer within {PATIENCE:?}").into())),
            }
        })
    }
}

/// One request and its whole answer.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut request: Request<BodyWrapper<Bytes>>,
) -> Result<BytesResponse, BoxError> {
    let authority = request.uri().authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
    request.headers_mut().insert(header::HOST, authority.try_into()?);
    *request.uri_mut() = Uri::from(request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, LARGEST).collect().await?.to_bytes();
        Ok(BytesResponse::from(http::Response::from_parts(head, Full::new(body))))
    };
    // The connection ends with its answer.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => { ended?; answer.await }
    }
}
