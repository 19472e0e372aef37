//! A small certificate authority that speaks ACME (RFC 8555) over TLS: nonces that hold once, accounts, orders, proofs that are really
//! fetched, and certificates that are really signed. For tests: it believes who signs a request.

use std::{
    collections::HashSet,
    convert::Infallible,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData, SignatureAlgorithm};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use crate::harness::Raw;

/// The authority. It ends with the test.
pub(crate) struct Authority {
    pub(crate) directory: String,
    /// The root of its own server's certificate.
    pub(crate) root: PathBuf,
    books: Arc<Books>,
}

struct Books {
    base: String,
    issuer: Issuer<'static, KeyPair>,
    chain: String,
    /// Where it looks for proofs, whatever the host: the world's DNS, as it were.
    world: watch::Sender<Option<SocketAddr>>,
    /// From when certificates hold, in days before now, and for how many.
    days: Mutex<(i64, i64)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    nonces: HashSet<String>,
    counter: u64,
    /// Their keys' thumbprints.
    accounts: Vec<String>,
    orders: Vec<Order>,
}

struct Order {
    host: String,
    token: String,
    thumbprint: String,
    status: &'static str,
    problem: Option<String>,
    certificate: Option<String>,
}

/// A public key out of a request for a certificate.
struct Asked(Vec<u8>);

impl PublicKeyData for Asked {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl Authority {
    pub(crate) async fn open(folder: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::new(vec![]).unwrap();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = root.self_signed(&key).unwrap();
        let file = folder.join("root.pem");
        fs::write(&file, certificate.pem()).unwrap();
        let issuer = Issuer::new(root, key);
        let own = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&own, &issuer).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![server.der().clone()], PrivateKeyDer::try_from(own.serialize_der()).unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("https://{}", listener.local_addr().unwrap());
        let books = Arc::new(Books {
            base: base.clone(),
            issuer,
            chain: certificate.pem(),
            world: watch::Sender::new(None),
            days: Mutex::new((0, 90)),
            state: Mutex::default(),
        });
        let (acceptor, own) = (TlsAcceptor::from(Arc::new(config)), books.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, books) = (acceptor.clone(), own.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = service_fn(move |request| {
                        let books = books.clone();
                        async move { Ok::<_, Infallible>(books.answer(request).await) }
                    });
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { directory: format!("{base}/directory"), root: file, books }
    }

    /// From now on all hosts are found there.
    pub(crate) fn finds(&self, address: SocketAddr) {
        self.books.world.send_replace(Some(address));
    }

    /// What it gives from now on holds from so many days ago, for so many.
    pub(crate) fn gives(&self, since: i64, days: i64) {
        *self.books.days.lock().unwrap() = (since, days);
    }

    /// The hosts of all orders so far.
    pub(crate) fn orders(&self) -> Vec<String> {
        self.books.state.lock().unwrap().orders.iter().map(|order| order.host.clone()).collect()
    }

    pub(crate) fn accounts(&self) -> usize {
        self.books.state.lock().unwrap().accounts.len()
    }
}

impl Books {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let body = body.collect().await.unwrap().to_bytes();
        let at = |kind: &str| format!("{}/{kind}", self.base);
        if path == "/directory" {
            let all = json!({"newNonce": at("nonce"), "newAccount": at("account"), "newOrder": at("order"),
                             "revokeCert": at("revoke"), "keyChange": at("key")});
            return self.say(StatusCode::OK, all.to_string(), None);
        }
        if path == "/nonce" {
            assert_eq!(head.method, Method::HEAD);
            return self.say(StatusCode::OK, String::new(), None);
        }
        assert_eq!(
            (&head.method, head.headers["content-type"].as_bytes()),
            (&Method::POST, &b"application/jose+json"[..])
        );
        let said: Value = serde_json::from_slice(&body).unwrap();
        let part = |name: &str| BASE64.decode(said[name].as_str().unwrap()).unwrap();
        let protected: Value = serde_json::from_slice(&part("protected")).unwrap();
        assert_eq!(protected["url"], at(&path[1..]).as_str());
        assert_eq!((part("signature").len(), &protected["alg"]), (64, &json!("ES256")));
        let payload = part("payload");
        if !self.state.lock().unwrap().nonces.remove(protected["nonce"].as_str().unwrap()) {
            let problem = json!({"type": "urn:ietf:params:acme:error:badNonce", "detail": "once"});
            return self.say(StatusCode::BAD_REQUEST, problem.to_string(), None);
        }
        if path == "/account" {
            let jwk = &protected["jwk"];
            // RFC 7638: the required members in their order.
            let text = format!(r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#, jwk["crv"], jwk["kty"], jwk["x"], jwk["y"]);
            let asked: Value = serde_json::from_slice(&payload).unwrap();
            assert_eq!(asked["termsOfServiceAgreed"], true);
            let mut state = self.state.lock().unwrap();
            state.accounts.push(BASE64.encode(Sha256::digest(text)));
            let place = at(&format!("account/{}", state.accounts.len() - 1));
            drop(state);
            return self.say(
                StatusCode::CREATED,
                json!({"status": "valid", "contact": asked["contact"]}).to_string(),
                Some(place),
            );
        }
        let account: usize = protected["kid"].as_str().unwrap().rsplit('/').next().unwrap().parse().unwrap();
        if path == "/order" {
            return self.order(account, &serde_json::from_slice(&payload).unwrap());
        }
        let (kind, number) = path[1..].split_once('/').unwrap();
        let number: usize = number.parse().unwrap();
        match kind {
            "challenge" => self.prove(number).await,
            "finalize" => self.sign(number, &serde_json::from_slice(&payload).unwrap()),
            _ => assert!(payload.is_empty(), "it is only read"),
        }
        let text = {
            let state = self.state.lock().unwrap();
            let order = &state.orders[number];
            match kind {
                "certificate" => order.certificate.clone().unwrap(),
                "challenge" => self.challenge(number, order).to_string(),
                "authorization" => {
                    let status =
                        if order.status == "valid" || order.status == "ready" { "valid" } else { order.status };
                    json!({"identifier": {"type": "dns", "value": order.host}, "status": status,
                           "challenges": [{"type": "dns-01", "url": at("none"), "token": "x", "status": "pending"},
                                          self.challenge(number, order)]})
                    .to_string()
                }
                _ => self.shown(number, order).to_string(),
            }
        };
        self.say(StatusCode::OK, text, None)
    }

    fn challenge(&self, number: usize, order: &Order) -> Value {
        let status = if order.status == "ready" { "valid" } else { order.status };
        let mut all = json!({"type": "http-01", "url": format!("{}/challenge/{number}", self.base), "token": order.token, "status": status});
        if let Some(problem) = &order.problem {
            all["error"] = json!({"type": "urn:ietf:params:acme:error:unauthorized", "detail": problem});
        }
        all
    }

    fn shown(&self, number: usize, order: &Order) -> Value {
        let at = |kind: &str| format!("{}/{kind}/{number}", self.base);
        let mut all = json!({"status": order.status, "identifiers": [{"type": "dns", "value": order.host}],
                             "authorizations": [at("authorization")], "finalize": at("finalize")});
        if order.certificate.is_some() {
            all["certificate"] = json!(at("certificate"));
        }
        all
    }

    fn order(&self, account: usize, asked: &Value) -> Response<Full<Bytes>> {
        let mut state = self.state.lock().unwrap();
        let number = state.orders.len();
        let order = Order {
            host: asked["identifiers"][0]["value"].as_str().unwrap().to_owned(),
            token: BASE64.encode(Sha256::digest(number.to_string())),
            thumbprint: state.accounts[account].clone(),
            status: "pending",
            problem: None,
            certificate: None,
        };
        let text = self.shown(number, &order).to_string();
        state.orders.push(order);
        drop(state);
        self.say(StatusCode::CREATED, text, Some(format!("{}/order/{number}", self.base)))
    }

    /// Looks for the proof where the world says that the host is.
    async fn prove(&self, number: usize) {
        let (host, token, expected) = {
            let state = self.state.lock().unwrap();
            let order = &state.orders[number];
            (order.host.clone(), order.token.clone(), format!("{}.{}", order.token, order.thumbprint))
        };
        let mut world = self.world.subscribe();
        let address = world.wait_for(Option::is_some).await.unwrap().unwrap();
        let mut raw = Raw::on(TcpStream::connect(address).await.unwrap());
        let ask =
            format!("GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let (answer, _) = raw.write(ask).await.rest().await;
        let proved = answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&format!("\r\n\r\n{expected}"));
        let order = &mut self.state.lock().unwrap().orders[number];
        order.status = if proved { "ready" } else { "invalid" };
        order.problem = (!proved).then(|| format!("{host} said something else"));
    }

    fn sign(&self, number: usize, asked: &Value) {
        let csr = BASE64.decode(asked["csr"].as_str().unwrap()).unwrap();
        // RFC 2986: of the first element, the third is the key, and its second is the bits.
        let key = yasna::parse_der(&csr, |csr| {
            csr.read_sequence(|parts| {
                let key = parts.next().read_sequence(|info| {
                    info.next().read_der()?;
                    info.next().read_der()?;
                    let key = info.next().read_sequence(|key| {
                        key.next().read_der()?;
                        Ok(key.next().read_bitvec_bytes()?.0)
                    })?;
                    info.next().read_der()?;
                    Ok(key)
                })?;
                parts.next().read_der()?;
                parts.next().read_der()?;
                Ok(key)
            })
        })
        .unwrap();
        let mut state = self.state.lock().unwrap();
        let order = &mut state.orders[number];
        assert_eq!(order.status, "ready");
        let mut says = CertificateParams::new(vec![order.host.clone()]).unwrap();
        let (since, days) = *self.days.lock().unwrap();
        let now = i64::try_from(taper_model::clock::unix().as_secs()).unwrap();
        let at = |days: i64| {
            rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs((now + days * 86_400).unsigned_abs())
        };
        (says.not_before, says.not_after) = (at(-since), at(days - since));
        let signed = says.signed_by(&Asked(key), &self.issuer).unwrap();
        order.certificate = Some(format!("{}{}", signed.pem(), self.chain));
        order.status = "valid";
    }

    fn say(&self, status: StatusCode, text: String, place: Option<String>) -> Response<Full<Bytes>> {
        let mut state = self.state.lock().unwrap();
        state.counter += 1;
        let nonce = format!("nonce-{}", state.counter);
        state.nonces.insert(nonce.clone());
        let mut response = Response::builder().status(status).header("replay-nonce", nonce);
        if let Some(place) = place {
            response = response.header("location", place);
        }
        response.body(Full::new(text.into())).unwrap()
    }
}
