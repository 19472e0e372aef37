//! What cannot be opened says why and what helps; what is damaged, or taken away, is told from what is not.

use std::{net::TcpListener, path::Path, time::Duration};

use taper_jetstream::{Address, Error, JetStream};
use taper_queue::{
    Config, Error as Refused, Queue, State, Verdict,
    conformance::{entry, settled, unlimited},
};

use crate::{
    open, run_all,
    server::{Server, is_installed},
};

async fn refused(address: &str, dir: &Path) -> Error {
    let address: Address = address.parse().unwrap();
    JetStream::open(&address, dir, Config::default(), unlimited()).await.map(drop).expect_err("it cannot be opened")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_opened_says_why() {
    if !is_installed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = refused(&format!("nats://me:secret@127.0.0.1:{free}"), dir.path()).await;
    let text = nobody.to_string();
    assert!(matches!(nobody, Error::Unreachable { .. }) && text.contains(&free.to_string()), "{text}");
    assert!(!text.contains("secret"), "{text}");

    let plain = Server::with(&[]);
    let error = refused(&plain.at(""), dir.path()).await;
    assert!(matches!(error, Error::Disabled { .. }) && error.to_string().contains("nats-server -js"), "{error}");

    let server = Server::start();
    let client = async_nats::connect(server.at("")).await.unwrap();
    let theirs = r#"{"name":"THEIRS","subjects":["THEIRS.>"],"storage":"memory"}"#;
    client.request("$JS.API.STREAM.CREATE.THEIRS", theirs.into()).await.unwrap();
    let error = refused(&server.at("?stream=THEIRS"), dir.path()).await;
    assert!(matches!(error, Error::Stream { .. }) && error.to_string().contains("?stream="), "{error}");
    let error = refused(&server.at("?replicas=3"), dir.path()).await;
    assert!(matches!(error, Error::Server { .. }) && error.to_string().contains("replicas"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_the_platform_says_it_is_has_to_be_right() {
    if !is_installed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let users = Server::with(&["-js", "--user", "me", "--pass", "sec ret@"]);
    let tokens = Server::with(&["-js", "--auth", "sec/ret"]);
    for (server, login, what) in [
        (&users, "", "whoever does not say"),
        (&users, "me:wrong-secret@", "user or password"),
        (&users, "you:sec%20ret%40@", "user or password"),
        (&users, "secret-token@", "this token"),
        (&tokens, "", "whoever does not say"),
        (&tokens, "wrong-secret@", "this token"),
    ] {
        let error = refused(&format!("nats://{login}127.0.0.1:{}", server.port), dir.path()).await;
        let text = error.to_string();
        assert!(matches!(error, Error::Login { .. }) && text.contains(what), "{login}: {text}");
        assert!(!text.contains("sec") && text.contains("nats://user:password@host"), "{text}");
    }
    for (server, login) in [(&users, "me:sec%20ret%40"), (&tokens, "sec%2Fret")] {
        let address: Address = format!("nats://{login}@127.0.0.1:{}", server.port).parse().unwrap();
        let queue = open(&address, dir.path()).await;
        queue.push(entry("f", b"x")).await.unwrap();
        queue.close().await;
    }
    // Known, and not allowed to do what a queue does: that is told from a server that does not answer.
    let small = Server::configured(
        r#"jetstream { }
        authorization { users: [
            { user: me, password: secret, permissions: { publish: ["MINE.>"], subscribe: ["_INBOX.>"] } }
        ] }"#,
    );
    let error = refused(&format!("nats://me:secret@127.0.0.1:{}", small.port), dir.path()).await;
    let text = error.to_string();
    assert!(matches!(error, Error::Server { .. }) && text.contains("publish to TAPER.> and $JS.API.>"), "{text}");
    assert!(text.to_lowercase().contains("permissions violation") && !text.contains("secret"), "{text}");
    let enough = Server::configured(
        r#"jetstream { }
        authorization { users: [
            { user: me, password: secret, permissions: { publish: ["TAPER.>", "$JS.API.>"], subscribe: ["_INBOX.>"] } }
        ] }"#,
    );
    let queue = open(&format!("nats://me:secret@127.0.0.1:{}", enough.port).parse().unwrap(), dir.path()).await;
    for n in 0..3 {
        queue.push(entry("f", &[n])).await.unwrap();
    }
    assert_eq!(run_all(&queue).await.len(), 3);
    queue.purge(taper_queue::Filter::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_a_login_too() {
    if !is_installed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let made = |name: &str, names: Vec<String>, common: &str| {
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, common);
        let pair = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&pair).unwrap();
        (write(&format!("{name}.pem"), cert.pem()), write(&format!("{name}.key"), pair.serialize_pem()))
    };
    let (cert, key) = made("server", vec!["127.0.0.1".into()], "server");
    let (ours, secret) = made("ours", vec!["platform".into()], "platform");
    let (theirs, other) = made("theirs", vec!["stranger".into()], "stranger");
    let server = Server::configured(&format!(
        r#"jetstream {{ }}
        tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{ours}", verify_and_map: true }}
        authorization {{ users: [ {{ user: "platform" }} ] }}"#
    ));
    let at = |query: &str| format!("tls://127.0.0.1:{}?ca={cert}{query}", server.port);
    let error = refused(&at(""), dir.path()).await;
    assert!(matches!(error, Error::Server { .. }) && error.to_string().contains("?cert=FILE&key=FILE"), "{error}");
    let error = refused(&at(&format!("&cert={theirs}&key={other}")), dir.path()).await;
    assert!(matches!(error, Error::Server { .. }) && error.to_string().contains("does not accept"), "{error}");
    let error = refused(&at(&format!("&cert={ours}&key={other}")), dir.path()).await;
    assert!(matches!(error, Error::Own { what: "key", .. }) && error.to_string().contains("ours.pem"), "{error}");
    for (what, query) in [("cert", format!("&cert=/no/such&key={secret}")), ("key", format!("&cert={ours}&key={ours}"))]
    {
        let error = refused(&at(&query), dir.path()).await;
        assert!(
            matches!(&error, Error::Own { what: is, .. } if *is == what) && error.to_string().contains("PEM"),
            "{error}"
        );
    }
    let queue = open(&at(&format!("&cert={ours}&key={secret}")).parse().unwrap(), dir.path()).await;
    queue.push(entry("f", b"x")).await.unwrap();
    assert_eq!(run_all(&queue).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_a_dead_letter_and_holds_up_nothing() {
    if !is_installed() {
        return;
    }
    let server = Server::start();
    let queue = open(&server.address(), &server.home("home")).await;
    let (first, second) = (entry("f", b"1"), entry("f", b"2"));
    queue.push(first.clone()).await.unwrap();
    let client = async_nats::connect(server.at("")).await.unwrap();
    let ask = async |what: String, with: String| {
        let answer = client.request(what, with.into()).await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&answer.payload).unwrap()
    };
    // Somebody else writes into the stream: over a call, which is none the worse, and where nothing of ours is.
    let subject = |id: &taper_model::CallId| format!("TAPER.call.{}", id.as_str().replace('-', ""));
    let last =
        async |id| ask("$JS.API.STREAM.MSG.GET.TAPER".into(), format!(r#"{{"last_by_subj":"{}"}}"#, subject(id))).await;
    let seq = last(&first.id).await["message"]["seq"].as_u64().unwrap();
    let third = entry("f", b"3");
    queue.push(third.clone()).await.unwrap();
    for at in [subject(&third.id), "TAPER.call.nonsense".into(), "TAPER.what.is.this".into()] {
        assert!(ask(at, "\0nonsense".into()).await["seq"].is_u64());
    }
    // And removes one.
    assert_eq!(ask("$JS.API.STREAM.MSG.DELETE.TAPER".into(), format!(r#"{{"seq":{seq}}}"#)).await["success"], true);
    queue.push(second.clone()).await.unwrap();
    assert_eq!(run_all(&queue).await, [third.id.to_string(), second.id.to_string()]);
    assert!(matches!(queue.get(&first.id).await, Err(Refused::Damaged { .. })));
    let dead = queue
        .list(taper_queue::Filter { state: Some(State::Dead), ..Default::default() }, Default::default())
        .await
        .unwrap();
    assert!(dead.invocations[0].id == first.id && dead.invocations[0].reason.as_ref().unwrap().contains("damaged"));
    queue.close().await;
    let queue = open(&server.address(), &server.home("home")).await;
    assert_eq!(queue.get(&second.id).await.unwrap().unwrap().invocation.state, State::Done);
    assert!(queue.get(&first.id).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_taken_away_ends_the_queue_and_says_so() {
    if !is_installed() {
        return;
    }
    let server = Server::start();
    let queue = open(&server.address(), &server.home("home")).await;
    queue.push(entry("f", b"x")).await.unwrap();
    queue.push(entry("f", b"x")).await.unwrap();
    let lease = queue.lease().await.unwrap();
    let client = async_nats::connect(server.at("")).await.unwrap();
    client.request("$JS.API.STREAM.DELETE.TAPER", "".into()).await.unwrap();
    let end =
        tokio::time::timeout(Duration::from_secs(30), queue.settle(&lease, settled(Verdict::Done, 200, b""))).await;
    let error = end.expect("it does not wait for ever").expect_err("it cannot be written");
    assert!(matches!(&error, Refused::Lost(text) if text.contains("TAPER") && text.contains("gone")), "{error}");
    assert!(matches!(queue.push(entry("f", b"x")).await, Err(Refused::Lost(_))));
    assert!(matches!(queue.lease().await, Err(Refused::Stopped | Refused::Lost(_))));
    queue.close().await;
    drop((lease, queue));
    let queue = open(&server.address(), &server.home("home")).await;
    assert_eq!(queue.stats().depth, 0);
    queue.push(entry("f", b"x")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_with_whom_the_certificates_name() {
    if !is_installed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let server = Server::with(&["-js", "--tls", "--tlscert", cert, "--tlskey", key]);
    let at = format!("tls://127.0.0.1:{}", server.port);
    let error = refused(&at, dir.path()).await;
    assert!(matches!(error, Error::Unreachable { .. }) && error.to_string().contains("certificate"), "{error}");
    let queue = open(&format!("{at}?ca={cert}").parse().unwrap(), dir.path()).await;
    queue.push(entry("f", b"x")).await.unwrap();
    queue.close().await;
    // Without encryption there is none of it.
    let plain = Server::start();
    let error = refused(&format!("tls://127.0.0.1:{}?ca={cert}", plain.port), dir.path()).await;
    assert!(matches!(error, Error::Server { .. }) && error.to_string().contains("does not speak TLS"), "{error}");
    let error = refused(&format!("{at}?ca=/no/such/file"), dir.path()).await;
    assert!(matches!(error, Error::Trust(_)) && error.to_string().contains("/no/such/file"), "{error}");
}
