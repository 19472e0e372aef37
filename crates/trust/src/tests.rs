//! Real handshakes, in memory, with certificates of every kind.

use std::{fs, io};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::{
    ClientConnection, ServerConfig, ServerConnection,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tempfile::TempDir;

use super::*;

fn named(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>()).unwrap()
}

/// A server's certificate, and its key.
type Shown = (CertificateDer<'static>, Vec<u8>);

fn alone(params: &CertificateParams) -> Shown {
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().der().clone(), key.serialize_der())
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = named(&[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "The authority");
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn vouched(params: &CertificateParams, by: &CertifiedIssuer<'_, KeyPair>) -> Shown {
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, by).unwrap().der().clone(), key.serialize_der())
}

fn trusting(certificates: &[&CertificateDer<'_>]) -> Trust {
    Trust { given: certificates.iter().map(|&c| c.clone().into_owned()).collect() }
}

/// Speaks TLS with a server that shows this, and calls it by that name.
fn agree(trust: &Trust, shown: &Shown, name: &str) -> io::Result<Option<Vec<u8>>> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(shown.1.clone()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![shown.0.clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    let client = trust.client(&["h2"]).unwrap();
    let mut client = ClientConnection::new(client, ServerName::try_from(name.to_owned()).unwrap()).unwrap();
    while client.is_handshaking() {
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent)?;
        }
        server.read_tls(&mut &sent[..])?;
        server.process_new_packets().unwrap();
        let mut sent = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut sent)?;
        }
        let mut rest = &sent[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest)?;
            client.process_new_packets().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        }
    }
    Ok(client.alpn_protocol().map(<[u8]>::to_vec))
}

fn refused(trust: &Trust, shown: &Shown, name: &str) -> Refused {
    let error = agree(trust, shown, name).unwrap_err();
    // As it comes from a stream over a stream.
    let error = io::Error::other(error);
    let words = in_words(&error, "--ca").unwrap();
    let refused = why(&error).unwrap_or_else(|| panic!("{error}")).clone();
    assert!(words.starts_with(&format!("{refused}; ")), "{words}");
    refused
}

#[test]
fn who_is_vouched_for_is_believed() {
    let (another, authority) = (authority(), authority());
    let trust = trusting(&[authority.der()]);
    let shop = vouched(&named(&["shop.test", "127.0.0.1"]), &authority);
    for name in ["shop.test", "127.0.0.1"] {
        assert_eq!(agree(&trust, &shop, name).unwrap().as_deref(), Some(&b"h2"[..]));
    }
    assert_eq!(refused(&Trust::default(), &shop, "shop.test"), Refused::Unknown);
    assert_eq!(refused(&trusting(&[another.der()]), &shop, "shop.test"), Refused::Unknown);
    let other = Refused::Name { wanted: "other.test".into(), presented: "shop.test, 127.0.0.1".into() };
    assert_eq!(refused(&trust, &shop, "other.test"), other);
    assert_eq!(other.to_string(), "its certificate is for shop.test, 127.0.0.1, not for other.test");
    assert!(matches!(refused(&trust, &shop, "127.0.0.2"), Refused::Name { .. }));
}

#[test]
fn a_server_s_own_certificate_is_believed_once_it_is_given() {
    let plain = named(&["shop.test"]);
    // As `openssl req -x509` makes them.
    let mut ca = named(&["shop.test"]);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    for params in [plain, ca] {
        let shown = alone(&params);
        assert_eq!(refused(&Trust::default(), &shown, "shop.test"), Refused::SelfSigned);
        assert_eq!(refused(&trusting(&[&alone(&params).0]), &shown, "shop.test"), Refused::SelfSigned, "another key");
        let trust = trusting(&[&shown.0]);
        agree(&trust, &shown, "shop.test").unwrap();
        let Refused::Name { wanted, .. } = refused(&trust, &shown, "other.test") else { panic!("another name") };
        assert_eq!(wanted, "other.test");
    }
}

#[test]
fn only_for_as_long_as_it_holds() {
    let authority = authority();
    for is_ca in [false, true] {
        let mut params = named(&["shop.test"]);
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2001, 2, 1);
        let shown = if is_ca { alone(&params) } else { vouched(&params, &authority) };
        let trust = trusting(&[authority.der(), &shown.0]);
        let past = refused(&trust, &shown, "shop.test");
        assert!(matches!(past, Refused::Expired(Some(_))), "{past}");
        assert!(past.to_string().ends_with(" days ago"), "{past}");
        params.not_before = date_time_ymd(3001, 1, 1);
        params.not_after = date_time_ymd(3001, 2, 1);
        let shown = if is_ca { alone(&params) } else { vouched(&params, &authority) };
        let trust = trusting(&[authority.der(), &shown.0]);
        assert_eq!(refused(&trust, &shown, "shop.test"), Refused::Early);
    }
}

#[test]
fn an_authority_s_certificate_is_no_server_s() {
    let (root, mut params) = (authority(), named(&["shop.test"]));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let shown = vouched(&params, &root);
    let odd = refused(&trusting(&[root.der()]), &shown, "shop.test");
    assert!(matches!(&odd, Refused::Odd(why) if why.contains("authority's own")), "{odd}");
}

#[test]
fn files_of_certificates() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("ca.pem");
    assert!(Trust::read(Some(&file)).unwrap_err().to_string().contains("ca.pem"));
    for bad in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        fs::write(&file, bad).unwrap();
        let said = Trust::read(Some(&file)).unwrap_err().to_string();
        assert!(said.contains("there is no certificate in it"), "{bad}: {said}");
    }
    fs::write(&file, "-----BEGIN CERTIFICATE-----\n").unwrap();
    assert!(matches!(Trust::read(Some(&file)), Err(Error::Unreadable { .. })));
    let (one, two) = (authority(), authority());
    fs::write(&file, one.pem() + &two.pem()).unwrap();
    assert_eq!(Trust::read(Some(&file)).unwrap().given.len(), 2);
}

#[test]
fn who_does_not_speak_tls() {
    let error = io::Error::new(
        io::ErrorKind::InvalidData,
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType),
    );
    assert!(in_words(&error, "--ca").unwrap().contains("does not speak TLS"));
    assert!(why(&error).is_none() && in_words(&io::Error::other("x"), "--ca").is_none());
}
