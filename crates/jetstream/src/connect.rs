//! The connection: to whichever of the servers is there, as whom, and in what encryption. It comes back by itself for as long as it is
//! wanted. Asks nothing of a server.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{
    ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError,
    rustls::{
        ClientConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        sign::{CertifiedKey, SingleCertAndKey},
    },
};
use taper_trust::Trust;
use tokio::sync::watch;

use crate::{
    Error,
    address::{Address, Login},
    api::Link,
};

/// How often the server is asked whether it is there; twice in vain and it is not.
const PING: Duration = Duration::from_secs(5);
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest pause before the next server is tried.
const PAUSE: Duration = Duration::from_millis(500);

pub(crate) async fn connect(address: &Address) -> Result<Link, Error> {
    let (breaks, broke) = watch::channel(0_u64);
    let denied = Arc::new(Mutex::new(None));
    let deny = Arc::clone(&denied);
    let mut options = ConnectOptions::new()
        .name("taper")
        .connection_timeout(CONNECT)
        .ping_interval(PING)
        .reconnect_delay_callback(|tries| {
            PAUSE.min(Duration::from_millis(10) * u32::try_from(tries).unwrap_or(u32::MAX))
        })
        .require_tls(address.tls)
        .event_callback(move |event| {
            match event {
                Event::Disconnected => breaks.send_modify(|count| *count += 1),
                Event::ServerError(ServerError::Other(said))
                    if said.to_lowercase().contains("permissions violation") =>
                {
                    *deny.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
                }
                _ => {}
            }
            std::future::ready(())
        });
    options = match &address.login {
        Login::Nobody => options,
        Login::Token(token) => options.token(token.clone()),
        Login::User(user, password) => options.user_and_password(user.clone(), password.clone()),
    };
    if address.tls {
        options = options.tls_client_config(encryption(address)?);
    }
    let client = options.connect(&address.servers[..]).await.map_err(|error| refused(address, &error))?;
    Ok(Link { client, stream: address.stream.clone(), servers: address.to_string(), several: false, broke, denied })
}

/// Whom we believe, and by what we are known.
fn encryption(address: &Address) -> Result<ClientConfig, Error> {
    let trust = Trust::read(address.ca.as_deref()).and_then(|trust| trust.client(&[]));
    let mut config = (*trust.map_err(|e| Error::Trust(Arc::new(e)))?).clone();
    if let Some((cert, key)) = &address.own {
        let wrong = |what, file: &Path, why: String| Error::Own { what, file: PathBuf::from(file), why };
        let odd = |what, file| {
            move |why| wrong(what, file, format!("{why}; it has to be a PEM file that this user can read"))
        };
        let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|e| odd("cert", cert)(e.to_string()))?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| odd("key", key)(e.to_string()))?;
        let own = CertifiedKey::from_der(chain, secret, &ring::default_provider());
        let own = own.map_err(|e| wrong("key", key, format!("{e}; it has to be the key of {}", cert.display())))?;
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(own));
    }
    Ok(config)
}

fn refused(address: &Address, error: &ConnectError) -> Error {
    let (servers, why) = (address.to_string(), error.to_string());
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            let what = match (&address.login, &address.own) {
                (Login::Token(_), _) => "this token",
                (Login::User(..), _) => "this user or password",
                (Login::Nobody, Some(_)) => "whom this certificate names",
                (Login::Nobody, None) => "whoever does not say who he is",
            };
            Error::Login { servers, what }
        }
        // As the alert is called.
        _ if why.contains("CertificateRequired") || why.contains("BadCertificate") => {
            let what = match address.own {
                Some(_) => {
                    "it does not accept this platform's certificate; name one that an authority of its has signed"
                }
                None => "it wants a certificate of this platform's; name one in the address: ?cert=FILE&key=FILE",
            };
            Error::Server { servers, what: what.into() }
        }
        // As what is no TLS is called.
        _ if address.tls && why.contains("InvalidContentType") => {
            let what =
                "it does not speak TLS: switch that on in its configuration, or write nats:// without ca, cert and key";
            Error::Server { servers, what: what.into() }
        }
        _ => Error::Unreachable { servers, why },
    }
}
