//! TLS: which certificate is shown to whom, files that change, handshakes that come to nothing, and a hand-over.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ProtocolVersion, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    version,
};
use taper_gateway::{Config, Drained, Least, Pem, Tls};
use taper_model::{Body, BoxFuture, Call, Fault, Reply, call};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{beside::refused, harness::*, traffic};

/// A certificate for these names in two files of a folder.
fn written(folder: &TempDir, file: &str, names: &[&str]) -> Pem {
    let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let at = |kind: &str| folder.path().join(format!("{file}.{kind}"));
    let pem = Pem { cert: at("crt"), key: at("key") };
    fs::write(&pem.cert, made.cert.pem()).unwrap();
    fs::write(&pem.key, made.signing_key.serialize_pem()).unwrap();
    pem
}

fn is_of(pem: &Pem) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(&pem.cert).unwrap()
}

fn speaking(certificates: Vec<Pem>) -> Config {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let tls = Tls { listen, certificates, ..Tls::default() };
    Config { threads: 2, tls: Some(tls), ..Config::default() }
}

/// A function that tells what the gateway says of the connection.
fn tells(call: Call) -> BoxFuture<'static, Result<Reply, Fault>> {
    let (head, _) = call.request.into_parts();
    let header = |name: &str| head.headers.get(name).map_or("-", |v| v.to_str().unwrap()).to_owned();
    let text = format!("{} {}", header("x-forwarded-proto"), header("forwarded"));
    Box::pin(async move { Ok(Reply::new(call::full(text))) })
}

/// Believes everybody: which certificate is shown is looked at by hand.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn client(versions: &[&'static rustls::SupportedProtocolVersion], alpn: &[&str]) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    config
}

pub(crate) async fn agreed(address: SocketAddr, name: &str, alpn: &[&str]) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    let config = client(rustls::ALL_VERSIONS, alpn);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap()
}

/// The certificate that is shown to who asks for this name.
pub(crate) async fn shown(address: SocketAddr, name: &str) -> CertificateDer<'static> {
    agreed(address, name, &[]).await.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

fn get(uri: String) -> Request<Body> {
    Request::get(uri).header("host", "shop.test").body(call::empty()).unwrap()
}

#[tokio::test]
async fn calls_inside_tls_say_so_over_both_kinds_of_http() {
    let folder = TempDir::new().unwrap();
    let platform =
        Platform::with(speaking(vec![written(&folder, "a", &["shop.test"])]), axum::Router::new(), tells).await;
    let secure = platform.secure_address.unwrap();
    let stream = agreed(secure, "shop.test", &["http/1.1"]).await;
    let from = stream.get_ref().0.local_addr().unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (mut one, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        within(one.ready()).await.unwrap();
        let answer = Answer::of(within(one.send_request(get("/function/hello".into()))).await.unwrap()).await;
        assert_eq!(answer.text(), format!("https for=\"{from}\";proto=https;host=\"shop.test\""));
    }
    let stream = agreed(secure, "shop.test", &["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let (mut two, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let calls = (0..20).map(|_| two.send_request(get("https://shop.test/function/hello".into())));
    for answer in futures_util::future::join_all(calls).await {
        assert!(Answer::of(answer.unwrap()).await.text().starts_with("https "));
    }
    assert!(platform.get("/function/hello").await.text().starts_with("http for="), "and the others do not");
}

/// What a caller is known by is told to nobody outside TLS, once it was given inside.
#[tokio::test]
async fn a_cookie_that_is_given_inside_tls() {
    let folder = TempDir::new().unwrap();
    let config = speaking(vec![written(&folder, "a", &["shop.test"])]);
    let platform = Platform::with(config, axum::Router::new(), traffic::named).await;
    let routing = r#"{"sticky": {"cookie": "seen"},
        "traffic": [{"latest": true, "percent": 50}, {"revision": "split-00001", "percent": 50}]}"#;
    platform.publish.send_replace(traffic::of(2, traffic::split(routing)));
    let stream = agreed(platform.secure_address.unwrap(), "shop.test", &["http/1.1"]).await;
    let (mut one, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = Answer::of(within(one.send_request(get("/function/split/x".into()))).await.unwrap()).await;
    let set = answer.header("set-cookie");
    assert!(set.ends_with("; Path=/function/split; HttpOnly; SameSite=Lax; Secure"), "{set}");
    let answer = platform.get("/function/split/x").await;
    assert!(answer.header("set-cookie").ends_with("; SameSite=Lax"), "{answer:?}");
}

#[tokio::test]
async fn the_certificate_is_the_one_that_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let all = [("a", "one.test"), ("b", "*.shop.test"), ("c", "a.shop.test")].map(|(f, n)| written(&folder, f, &[n]));
    let platform = Platform::with(speaking(all.to_vec()), axum::Router::new(), tells).await;
    let secure = platform.secure_address.unwrap();
    for (name, pem) in [
        ("one.test", &all[0]),
        ("a.shop.test", &all[2]),
        ("b.shop.test", &all[1]),
        ("else.test", &all[0]),
        ("127.0.0.1", &all[0]),
    ] {
        assert_eq!(shown(secure, name).await, is_of(pem), "{name}");
    }
}

#[tokio::test]
async fn files_that_change_are_followed() {
    let folder = TempDir::new().unwrap();
    let pem = written(&folder, "a", &["one.test"]);
    let platform = Platform::with(speaking(vec![pem.clone()]), axum::Router::new(), tells).await;
    let secure = platform.secure_address.unwrap();
    let first = shown(secure, "one.test").await;
    let mut kept = agreed(secure, "one.test", &[]).await;
    // A key that does not fit, and then a certificate that fits it.
    let next = written(&folder, "b", &["one.test"]);
    fs::rename(&next.key, &pem.key).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        assert_eq!(shown(secure, "one.test").await, first, "the old one holds");
        tokio::time::sleep(SHORT).await;
    }
    let expected = is_of(&next);
    fs::rename(&next.cert, &pem.cert).unwrap();
    within(async { while shown(secure, "one.test").await != expected {} }).await;
    kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut text = [0; 12];
    within(kept.read_exact(&mut text)).await.unwrap();
    assert_eq!(&text, b"HTTP/1.1 200", "connections that are open go on");
}

#[tokio::test]
async fn what_cannot_be_shown_ends_the_start() {
    let folder = TempDir::new().unwrap();
    let (one, other) = (written(&folder, "a", &["a.test"]), written(&folder, "b", &["b.test"]));
    let refused = |pem: Pem| async move { refused(speaking(vec![pem])).await };
    let said = refused(Pem { cert: one.cert.clone(), key: other.key.clone() }).await;
    assert!(said.contains("b.key") && said.contains("not the key of the certificate"), "{said}");
    let said = refused(Pem { cert: folder.path().join("none.crt"), key: one.key.clone() }).await;
    assert!(said.contains("none.crt") && said.contains("cannot be read"), "{said}");
    let said = refused(Pem { cert: one.cert.clone(), key: PathBuf::from("/") }).await;
    assert!(said.starts_with("/: ") && said.contains("cannot be read"), "{said}");
    let said = refused(Pem { cert: one.key.clone(), key: one.key.clone() }).await;
    assert!(said.contains("a.key") && said.contains("no certificate"), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = speaking(vec![one]);
    config.tls.as_mut().unwrap().listen = taken.local_addr().unwrap();
    let said = crate::beside::refused(config).await;
    assert!(said.contains("for TLS") && said.contains("gateway.tls.listen"), "{said}");
}

#[tokio::test]
async fn only_versions_that_are_wanted() {
    let folder = TempDir::new().unwrap();
    let mut config = speaking(vec![written(&folder, "a", &["a.test"])]);
    let old = Platform::with(config.clone(), axum::Router::new(), tells).await;
    config.tls.as_mut().unwrap().min_version = Least::Tls13;
    let new = Platform::with(config, axum::Router::new(), tells).await;
    for (platform, served) in [(&old, true), (&new, false)] {
        let stream = TcpStream::connect(platform.secure_address.unwrap()).await.unwrap();
        let connector = TlsConnector::from(Arc::new(client(&[&version::TLS12], &[])));
        let agreed = within(connector.connect(ServerName::try_from("a.test").unwrap(), stream)).await;
        assert_eq!(agreed.is_ok(), served);
    }
}

/// Clients that say nothing, the half of a greeting, or something else: they are dropped in time, and nobody waits for them.
#[tokio::test]
async fn handshakes_that_come_to_nothing() {
    let folder = TempDir::new().unwrap();
    let config =
        Config { max_connections: 8, header_timeout: 4 * SHORT, ..speaking(vec![written(&folder, "a", &["a.test"])]) };
    let platform = Platform::with(config, axum::Router::new(), tells).await;
    let secure = platform.secure_address.unwrap();
    let mut slow = Vec::new();
    for n in 0..6 {
        let mut raw = Raw::to(secure).await;
        // A record that announces more than it brings.
        if n % 2 == 0 {
            raw.write(b"\x16\x03\x01\x02\x00\x01\x00").await;
        }
        slow.push(raw);
    }
    let begun = Instant::now();
    for _ in 0..10 {
        assert_eq!(platform.get("/function/hello").await.status, 200, "calls do not wait for handshakes");
    }
    assert!(begun.elapsed() < 4 * SHORT, "{:?}", begun.elapsed());
    assert!(shown(secure, "a.test").await == is_of(&Pem { cert: folder.path().join("a.crt"), key: PathBuf::new() }));
    for mut raw in slow {
        let _ = raw.rest().await;
    }
    let mut plain = Raw::to(secure).await;
    plain.write("GET /function/hello HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(!plain.rest().await.0.contains("HTTP"), "what is not TLS hears nothing of HTTP");
}

#[tokio::test]
async fn connections_inside_tls_count_as_others_do() {
    let folder = TempDir::new().unwrap();
    let config = Config { max_connections: 2, ..speaking(vec![written(&folder, "a", &["a.test"])]) };
    let platform = Platform::with(config, axum::Router::new(), tells).await;
    let (one, _two) = (
        agreed(platform.secure_address.unwrap(), "a.test", &[]).await,
        agreed(platform.secure_address.unwrap(), "a.test", &[]).await,
    );
    let mut third = platform.raw().await;
    third.write("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(tokio::time::timeout(SHORT, third.stream.readable()).await.is_err(), "it waits for a place");
    drop(one);
    assert!(third.until("\r\n\r\n").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_successor_takes_over() {
    let folder = TempDir::new().unwrap();
    let config = speaking(vec![written(&folder, "a", &["a.test"])]);
    let old = Platform::with(config.clone(), axum::Router::new(), tells).await;
    let secure = old.secure_address.unwrap();
    let mut stays = agreed(secure, "a.test", &["http/1.1"]).await;
    let ask = b"GET /function/hello HTTP/1.1\r\nhost: a.test\r\n\r\n";
    let mut seen = vec![0; 4096];
    stays.write_all(ask).await.unwrap();
    let n = within(stays.read(&mut seen)).await.unwrap();
    assert!(!String::from_utf8_lossy(&seen[..n]).contains("connection: close"));
    let new = old.heir(config, tells).await;
    assert_eq!(new.secure_address, Some(secure));
    old.hand_over(&new);
    let gone = async {
        while old.adopt.listeners().unwrap().https.is_some() {
            tokio::task::yield_now().await;
        }
    };
    within(gone).await;
    // It is asked until it has noticed; each answer comes, and the last one says so.
    let mut text = String::new();
    while !text.contains("connection: close") {
        stays.write_all(ask).await.unwrap();
        let n = within(stays.read(&mut seen)).await.unwrap();
        text = String::from_utf8_lossy(&seen[..n]).into_owned();
        assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    }
    assert_eq!(within(stays.read(&mut seen)).await.unwrap(), 0);
    assert_eq!(old.end().await, Drained { cut: 0 });
    assert_eq!(shown(secure, "a.test").await, CertificateDer::from_pem_file(folder.path().join("a.crt")).unwrap());
}
