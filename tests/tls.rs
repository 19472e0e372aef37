//! The platform over TLS, as its users have it: every command over https, certificates that are not believed, certificates that change
//! while calls run, redirects, and callbacks.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::{
    ClientConnection, ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use taper_trust::Trust;
use tempfile::TempDir;

use crate::platform::{Platform, TAPER, text};

const ECHO: &str = "def handle(req):\n    print('got', req)\n    return req\n";

/// An authority, and the files of a platform that it vouches for.
struct Files {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Files {
    /// With a certificate for these names.
    fn new(names: &[&str]) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "The authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let files = Self { dir: tempfile::tempdir().unwrap(), issuer };
        std::fs::write(files.path("root.pem"), files.issuer.pem()).unwrap();
        files.vouch(names, |_| {});
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn root(&self) -> String {
        self.path("root.pem").display().to_string()
    }

    /// Another certificate takes the place of the one that is there.
    fn vouch(&self, names: &[&str], change: impl Fn(&mut CertificateParams)) {
        let mut params = named(names);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        self.put(&params.signed_by(&key, &self.issuer).unwrap().pem(), &key);
    }

    /// The same with one that nobody but itself vouches for.
    fn alone(&self, names: &[&str], is_ca: bool) -> String {
        let mut params = named(names);
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        self.put(&pem, &key);
        pem
    }

    fn put(&self, certificate: &str, key: &KeyPair) {
        for (name, content) in [("own.crt", certificate), ("own.key", &key.serialize_pem())] {
            // Renamed into its place, so that nobody reads half of it.
            std::fs::write(self.path("new"), content).unwrap();
            std::fs::rename(self.path("new"), self.path(name)).unwrap();
        }
    }

    fn settings(&self) -> String {
        let (cert, key) = (self.path("own.crt"), self.path("own.key"));
        let pair = format!("{{cert: {}, key: {}}}", cert.display(), key.display());
        format!("gateway:\n  tls:\n    listen: 127.0.0.1:0\n    certificates: [{pair}]\n")
    }

    fn start(&self) -> (Platform, String) {
        let platform = Platform::start_configured(&self.settings());
        let url = secure_url(&platform);
        (platform, url)
    }
}

fn named(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>()).unwrap()
}

/// Where the platform speaks TLS: it has remembered its password for that.
fn secure_url(platform: &Platform) -> String {
    let known = std::fs::read(platform.dir.path().join("config/taper/credentials.json")).unwrap();
    let known: Value = serde_json::from_slice(&known).unwrap();
    let url = known.as_object().unwrap().keys().find(|url| url.starts_with("https://localhost:"));
    url.unwrap_or_else(|| panic!("no https URL in {known}")).clone()
}

/// The CLI over TLS, trusting this file.
fn taper(platform: &Platform, url: &str, ca: &str, arguments: &[&str]) -> Output {
    platform.taper(&[&["--url", url, "--ca", ca], arguments].concat())
}

fn fails(platform: &Platform, url: &str, ca: &str, arguments: &[&str]) -> String {
    let out = taper(platform, url, ca, arguments);
    assert_eq!(out.status.code(), Some(1), "{arguments:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stderr)
}

fn agreed(url: &str, root: &str) -> StreamOwned<ClientConnection, TcpStream> {
    let authority = url.strip_prefix("https://").unwrap();
    let (host, _) = authority.rsplit_once(':').unwrap();
    let config = Trust::read(Some(Path::new(root))).unwrap().client(&["http/1.1"]).unwrap();
    let mut tls = ClientConnection::new(config, ServerName::try_from(host.to_owned()).unwrap()).unwrap();
    let mut stream = TcpStream::connect(authority).unwrap();
    tls.complete_io(&mut stream).unwrap();
    StreamOwned::new(tls, stream)
}

/// The certificate that is shown now.
fn shown(url: &str, root: &str) -> Vec<u8> {
    agreed(url, root).conn.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn the_first_minute_over_https() {
    let files = Files::new(&["localhost"]);
    let (platform, url) = files.start();
    let root = files.root();
    let ok = |arguments: &[&str]| {
        let out = taper(&platform, &url, &root, arguments);
        assert!(out.status.success(), "taper {arguments:?}: {}\n{}", text(&out.stderr), platform.said());
        text(&out.stdout)
    };
    assert!(ok(&["version"]).contains("platform"));
    ok(&["secret", "create", "key", "--from-literal", "v"]);
    assert!(ok(&["secret", "list"]).contains("key"));
    let deployed = ok(&["deploy", &platform.file("echo.py", ECHO), "--secret", "key"]);
    assert!(deployed.contains("/function/echo"), "{deployed}");
    assert_eq!(ok(&["invoke", "echo", "-d", "hello"]), "hello");
    let large = "x".repeat(3 << 20);
    assert!(ok(&["invoke", "echo", "--file", &platform.file("large", &large)]) == large, "both ways, in many pieces");
    assert!(ok(&["list"]).contains("echo") && ok(&["describe", "echo"]).contains("echo-00001"));
    ok(&["deploy", &platform.file("echo.py", &ECHO.replace("got", "had")), "--secret", "key"]);
    assert!(ok(&["revisions", "echo"]).contains("echo-00002"));
    ok(&["rollback", "echo"]);
    assert!(ok(&["traffic", "echo"]).contains("echo-00001"));
    ok(&["namespace", "create", "staging"]);
    ok(&["scale", "echo", "1"]);

    let found: Value =
        serde_json::from_str(&ok(&["bench", "echo", "-n", "60", "-c", "3", "-d", "b", "-o", "json"])).unwrap();
    assert_eq!((&found["calls"], &found["failed"], &found["http"]), (&60.into(), &0.into(), &"2".into()), "{found}");
    assert!(ok(&["bench", "echo", "--cold", "-n", "2"]).contains(&format!("POST {url}/function/echo over HTTP/2\n")));

    // What is written while somebody looks is seen at once.
    let mut follow = platform.command();
    follow.args(["--url", &url, "logs", "-f", "echo", "--tail", "1"]).env("TAPER_CA", &root);
    let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines.next().expect("the last line of those before");
    assert_eq!(ok(&["invoke", "echo", "-d", "seen"]), "seen");
    assert!(lines.any(|line| line.contains("got seen")));
    follow.kill().unwrap();
    follow.wait().unwrap();

    ok(&["delete", "echo"]);
    assert!(fails(&platform, &url, &root, &["invoke", "echo"]).contains("echo"));
}

#[test]
fn where_http_2_is_not_offered_http_1_1_is_measured() {
    let files = Files::new(&["localhost"]);
    let (chain, key) = (CertificateDer::pem_file_iter(files.path("own.crt")), files.path("own.key"));
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.unwrap().flatten().collect(), PrivateKeyDer::from_pem_file(key).unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let serving = std::thread::spawn(move || {
        let tls = ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = StreamOwned::new(tls, listener.accept().unwrap().0);
        let mut heads = String::new();
        let mut part = [0; 4096];
        while let Ok(1..) = stream.read(&mut part).inspect(|&n| heads += &String::from_utf8_lossy(&part[..n])) {
            if heads.ends_with("\r\n\r\n") {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
            }
        }
        heads
    });
    let mut bench = std::process::Command::new(TAPER);
    bench.args(["--url", &url, "--ca", &files.root(), "bench", "echo", "-X", "GET", "-n", "3", "-o", "json"]);
    let out = bench.stdin(Stdio::null()).output().unwrap();
    let found: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", text(&out.stderr)));
    assert_eq!((&found["statuses"]["200"], &found["http"]), (&3.into(), &"1.1".into()), "{found}");
    assert_eq!(serving.join().unwrap().matches("GET /function/echo HTTP/1.1\r\n").count(), 3, "one connection");
}

#[test]
fn a_password_is_remembered_for_an_https_address() {
    let files = Files::new(&["localhost"]);
    let (platform, url) = files.start();
    let password = std::fs::read(platform.data().join("admin-password")).unwrap();
    let elsewhere = platform.dir.path().join("elsewhere");
    let run = |arguments: &[&str], stdin: &[u8]| {
        let mut command = platform.command();
        command.env("XDG_CONFIG_HOME", &elsewhere).env("HOME", &elsewhere).env("TAPER_URL", &url);
        // What the system trusts is enough.
        command.env("SSL_CERT_FILE", files.path("root.pem")).env_remove("SSL_CERT_DIR").args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        child.wait_with_output().unwrap()
    };
    let stranger = run(&["list"], b"");
    assert!(text(&stranger.stderr).contains(&format!("taper login --password-stdin {url}")), "{stranger:?}");
    assert!(!run(&["login", "--password-stdin"], b"wrong").status.success());
    let known = run(&["login", "--password-stdin", &url], &password);
    assert!(known.status.success(), "{}", text(&known.stderr));
    assert!(run(&["list"], b"").status.success());
}

#[test]
fn who_is_not_believed_is_told_why_and_the_mend() {
    let files = Files::new(&["localhost"]);
    let (platform, url) = files.start();
    let (root, stranger) = (files.root(), Files::new(&["localhost"]).issuer.pem());
    let stranger = platform.file("stranger.pem", &stranger);
    platform.ok(&["deploy", &platform.file("echo.py", ECHO)]);
    let address = url.replace("localhost", "127.0.0.1");
    let calls: [&[&str]; 3] = [&["invoke", "echo", "-d", "x"], &["bench", "echo", "-n", "1"], &["list"]];
    for arguments in calls {
        let said = fails(&platform, &url, &stranger, arguments);
        assert!(said.contains("an authority that is not trusted; name that authority's root with --ca FILE"), "{said}");
        let said = fails(&platform, &address, &root, arguments);
        assert!(said.contains("for localhost, not for 127.0.0.1; call it by a name"), "{said}");
        let said = fails(&platform, &platform.url.replace("http:", "https:"), &root, arguments);
        assert!(said.contains("does not speak TLS; is it an http address?"), "{said}");
    }
    let said = platform.fails(&["--url", &url.replace("https:", "http:"), "list"]);
    assert!(said.contains("is it an https address?"), "{said}");
    // Without a file it is as if the file had nobody who matters.
    let said = platform.fails(&["--url", &url, "list"]);
    assert!(said.contains("--ca FILE") || said.contains("trusts no certificate authority"), "{said}");
    let empty = platform.file("empty.pem", "nothing");
    for (file, why) in [(empty.as_str(), "there is no certificate in it"), ("/nowhere.pem", "cannot be read")] {
        let said = fails(&platform, &url, file, &["list"]);
        assert!(said.contains(file) && said.contains(why), "{said}");
    }
    assert!(!platform.said().contains("got"), "nothing was said to the function");

    let until = |ca: &str, words: &str| {
        platform.until(words, || text(&taper(&platform, &url, ca, &["list"]).stderr).contains(words));
    };
    files.vouch(&["localhost"], |params| params.not_after = date_time_ymd(2020, 1, 2));
    until(&root, "its certificate has expired");
    files.vouch(&["localhost"], |params| params.not_before = date_time_ymd(3020, 1, 2));
    until(&root, "does not hold yet; is this machine's clock wrong?");
    for is_ca in [false, true] {
        let own = platform.file("own.pem", &files.alone(&["localhost"], is_ca));
        platform.until("it is believed once it is given", || {
            text(&taper(&platform, &url, &own, &["invoke", "echo", "-d", "own"]).stdout) == "own"
        });
        until(&root, "its certificate is self-signed");
    }
}

#[test]
fn a_certificate_that_is_replaced_costs_no_call() {
    let files = Files::new(&["localhost"]);
    let (platform, url) = files.start();
    let root = files.root();
    platform.ok(&["deploy", &platform.file("echo.py", ECHO)]);
    let mut bench = platform.command();
    bench.args(["--url", &url, "--ca", &root, "bench", "echo", "-c", "4", "--duration", "5s", "-o", "json"]);
    let bench = bench.stdout(Stdio::piped()).spawn().unwrap();
    let mut former = shown(&url, &root);
    for _ in 0..2 {
        files.vouch(&["localhost"], |_| {});
        platform.until("the new certificate is shown", || {
            // A new connection each time.
            let out = taper(&platform, &url, &root, &["invoke", "echo", "-d", "x"]);
            assert_eq!(text(&out.stdout), "x", "{}", text(&out.stderr));
            shown(&url, &root) != former
        });
        former = shown(&url, &root);
    }
    // A key that is not the certificate's changes nothing.
    let key = std::fs::read(files.path("own.key")).unwrap();
    std::fs::write(files.path("own.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    platform.until("the log says why", || platform.said().contains("the former certificate still holds"));
    assert!(shown(&url, &root) == former);
    std::fs::write(files.path("own.key"), key).unwrap();
    let found: Value = serde_json::from_slice(&bench.wait_with_output().unwrap().stdout).unwrap();
    assert!(found["failed"] == 0 && found["calls"].as_u64() > Some(10), "{found}");
}

#[test]
fn a_route_sends_to_https() {
    let files = Files::new(&["localhost", "127.0.0.1"]);
    let (platform, url) = files.start();
    platform.file("echo.py", "def handle(event, context):\n    return event.headers['x-forwarded-proto']\n");
    let function = "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {name: echo}\nspec:\n  source: echo.py\n  route: [{path: /pages/*, https: redirect}]\n";
    platform.ok(&["deploy", "-f", &platform.file("echo.yaml", function)]);
    let answer = platform.request("POST", "/pages/a?b=c", &[], b"");
    let there = url.replace("localhost", "127.0.0.1");
    assert_eq!((answer.status, answer.header("location")), (308, format!("{there}/pages/a?b=c").as_str()));
    let mut stream = agreed(&there, &files.root());
    stream
        .write_all(b"POST /pages/a?b=c HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("https"), "{answer}");
}

#[test]
fn callbacks_go_to_who_has_a_certificate() {
    let files = Files::new(&["localhost"]);
    let queue = format!("queue: {{privateCallbacks: true, callbackCa: {}}}\n", files.root());
    let platform = Platform::start_configured(&(files.settings() + &queue));
    let url = secure_url(&platform);
    platform.ok(&["deploy", &platform.file("echo.py", ECHO)]);
    platform.ok(&["deploy", &platform.file("echo.py", ECHO), "--name", "keep"]);
    let back = format!("{url}/function/keep");
    let answer = platform.request("POST", "/async-function/echo", &[("x-callback-url", &back)], b"outcome");
    assert_eq!(answer.status, 202, "{}", answer.text());
    platform.until("it is delivered", || platform.ok(&["logs", "keep"]).contains("got outcome"));
}

#[test]
fn what_does_not_fit_is_refused_at_the_start() {
    let files = Files::new(&["localhost"]);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let refused = |settings: &str, why: &str| {
        let file = dir.path().join("settings.yaml");
        std::fs::write(&file, settings).unwrap();
        let mut up = std::process::Command::new(TAPER);
        up.args(["up", "--listen", "127.0.0.1:0", "--config"]).arg(file).arg("--data").arg(dir.path().join("data"));
        let out = up.env("XDG_CONFIG_HOME", dir.path()).stdin(Stdio::null()).output().unwrap();
        let said = text(&out.stderr);
        assert!(!out.status.success() && out.stdout.is_empty() && said.contains(why), "{said}");
    };
    let fits = files.settings();
    refused(&(fits.clone() + "queue: {callbackCa: /nowhere.pem}\n"), "queue.callbackCa: /nowhere.pem");
    std::fs::write(files.path("own.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    refused(&fits, "this is not the key of the certificate");
    std::fs::remove_file(files.path("own.key")).unwrap();
    refused(&fits, "own.key");
}
