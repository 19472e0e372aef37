//! Callbacks over TLS: to whom they are delivered, and to whom nothing is said.

use std::{path::PathBuf, sync::Arc};

use http::Uri;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use taper_queue::{Config, Error, Queue};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};

use crate::{
    callback::{Answers, entry, open},
    service::{Tools, build, serve, until},
};

/// An authority, and its root in a file.
struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "The authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("root.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("root.pem")
    }

    fn vouches_for(&self, names: &[&str]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>()).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// What a receiver saw of one connection.
#[derive(Debug, PartialEq)]
enum Seen {
    /// There was no TLS: the other side did not believe the certificate.
    Nothing,
    /// The name that was asked for, and the request.
    Request(Option<String>, String),
}

/// A receiver that takes whatever it is sent.
async fn receiver(acceptor: TlsAcceptor) -> (u16, mpsc::UnboundedReceiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else {
                if tell.send(Seen::Nothing).is_err() {
                    return;
                }
                continue;
            };
            let name = stream.get_ref().1.server_name().map(str::to_owned);
            let mut request = String::new();
            let mut part = [0; 4096];
            while !request.ends_with("|end") {
                match stream.read(&mut part).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => request.push_str(std::str::from_utf8(&part[..n]).unwrap()),
                }
            }
            if request.is_empty() {
                // With TLS 1.3 a client says that it does not believe us when we are done.
                tell.send(Seen::Nothing).unwrap();
                continue;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            tell.send(Seen::Request(name, request)).unwrap();
        }
    });
    (port, told)
}

fn trusting(file: Option<PathBuf>) -> Tools {
    let config = Config { private_callbacks: true, callback_ca: file, ..Config::default() };
    Tools { config, ..Tools::of(Answers(201)) }
}

fn to(address: &str) -> Uri {
    address.parse().unwrap()
}

#[tokio::test]
async fn delivered_to_who_has_a_certificate_that_is_trusted() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let (port, mut told) = receiver(authority.vouches_for(&["localhost", "127.0.0.1"])).await;
    let queue = open(&dir);
    for (host, named) in [("localhost", Some("localhost")), ("127.0.0.1", None)] {
        queue.push(entry(&to(&format!("https://{host}:{port}/back?x=1")))).await.unwrap();
        let mut seen = Seen::Nothing;
        serve(Arc::clone(&queue) as _, trusting(Some(authority.file())), async {
            seen = told.recv().await.unwrap();
            until(|| queue.stats().parcels == 0).await;
        })
        .await;
        let Seen::Request(name, request) = seen else { panic!("{host} was not believed") };
        assert_eq!(name.as_deref(), named, "the name is the host's, whichever address is connected to");
        assert!(request.starts_with("POST /back?x=1 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("host: {host}:{port}\r\n")), "{request}");
        assert!(request.contains("x-function-status: 201\r\n") && request.ends_with("answer|end"), "{request}");
    }
}

/// It waits until it is trusted.
#[tokio::test]
async fn nothing_is_said_to_who_is_not_trusted() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let (port, mut told) = receiver(authority.vouches_for(&["localhost"])).await;
    let queue = open(&dir);
    queue.push(entry(&to(&format!("https://localhost:{port}/")))).await.unwrap();
    for unknown in [None, Some(stranger.file())] {
        let mut seen = Seen::Request(None, String::new());
        serve(Arc::clone(&queue) as _, trusting(unknown), async { seen = told.recv().await.unwrap() }).await;
        assert_eq!(seen, Seen::Nothing);
    }
    let known = async { while told.recv().await.unwrap() == Seen::Nothing {} };
    serve(Arc::clone(&queue) as _, trusting(Some(authority.file())), known).await;
}

#[tokio::test]
async fn nor_to_somebody_else_at_that_address() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let (port, mut told) = receiver(authority.vouches_for(&["other.test"])).await;
    let queue = open(&dir);
    for host in ["localhost", "127.0.0.1"] {
        queue.push(entry(&to(&format!("https://{host}:{port}/")))).await.unwrap();
    }
    let mut seen = Vec::new();
    let both = async {
        for _ in 0..2 {
            seen.push(told.recv().await.unwrap());
        }
    };
    serve(Arc::clone(&queue) as _, trusting(Some(authority.file())), both).await;
    assert_eq!(seen, [Seen::Nothing, Seen::Nothing]);
    assert_eq!(queue.stats().parcels, 2, "both are tried again");
}

#[tokio::test]
async fn a_file_without_certificates_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("empty.pem");
    std::fs::write(&file, "nothing").unwrap();
    let Err(error) = build(open(&dir), trusting(Some(file))) else { panic!("it was taken") };
    assert!(matches!(error, Error::CallbackCa(_)));
    let said = error.to_string();
    assert!(said.starts_with("queue.callbackCa: ") && said.contains("empty.pem"), "{said}");
}
