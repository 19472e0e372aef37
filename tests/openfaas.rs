//! What OpenFaaS's own CLI says on the wire, command by command, byte for byte, and what it must hear. No client library stands between:
//! these are the requests as Go writes them.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::platform::{PATIENCE, Platform, text};

const PROXY: &str = "faas-cli/0.18.12";
const INVOKE: &str = "faas-cli/0.18.12 (openfaas; linux; amd64)";
const SDK: &str = "openfaas-go-sdk";
const LOGIN: &str = "Go-http-client/1.1";

/// One who speaks to a platform as the CLI does.
struct Cli<'a> {
    platform: &'a Platform,
    login: String,
}

/// What it heard.
struct Heard {
    status: u16,
    head: String,
    body: String,
}

impl Heard {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    #[track_caller]
    fn is(&self, status: u16, body: &str) {
        assert_eq!((self.status, self.body.as_str()), (status, body));
    }

    #[track_caller]
    fn refuses(&self, status: u16, words: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        assert!(self.body.contains(words), "{}", self.body);
        assert!(!self.body.starts_with('{') && self.head.contains("content-type: text/plain"), "{}", self.head);
    }
}

impl<'a> Cli<'a> {
    fn new(platform: &'a Platform) -> Self {
        let password = std::fs::read_to_string(platform.data().join("admin-password")).unwrap();
        Self::with(platform, password.trim())
    }

    fn with(platform: &'a Platform, password: &str) -> Self {
        Self { platform, login: BASE64_STANDARD.encode(format!("admin:{password}")) }
    }

    /// A request's head, with the headers that Go's client adds in its order.
    fn head(&self, agent: &str, method: &str, path: &str, body: Option<usize>) -> String {
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {agent}\r\n", self.platform.address());
        if let Some(length) = body {
            head += &format!("Content-Length: {length}\r\n");
        }
        head += &if agent == INVOKE {
            "Content-Type: text/plain\r\n".to_owned()
        } else {
            format!("Authorization: Basic {}\r\n", self.login)
        };
        if body.is_some() && agent != INVOKE {
            head += "Content-Type: application/json\r\n";
        }
        head + "Accept-Encoding: gzip\r\n\r\n"
    }

    fn open(&self) -> TcpStream {
        let stream = TcpStream::connect(self.platform.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn say(&self, agent: &str, method: &str, path: &str, body: Option<&str>) -> Heard {
        let mut stream = self.open();
        let head = self.head(agent, method, path, body.map(str::len));
        stream.write_all(format!("{head}{}", body.unwrap_or_default()).as_bytes()).unwrap();
        heard(&mut BufReader::new(stream))
    }

    fn get(&self, path: &str) -> Heard {
        self.say(PROXY, "GET", path, None)
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Heard {
        self.say(PROXY, method, path, Some(body))
    }

    /// `faas-cli ready NAME`.
    fn ready(&self, query: &str) {
        self.platform.until("the function becomes ready", || {
            let seen = self.get(&format!("/system/function/{query}"));
            seen.status == 200 && seen.json()["availableReplicas"].as_u64().is_some_and(|n| n > 0)
        });
    }
}

/// Reads one answer, whichever way its length is told.
fn heard(from: &mut impl BufRead) -> Heard {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(from.read_line(&mut head).unwrap(), 0, "the answer broke off: {head}");
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let head = head.to_lowercase();
    let mut body = Vec::new();
    if let Some(length) = head.lines().find_map(|l| l.strip_prefix("content-length: ")) {
        body.resize(length.parse().unwrap(), 0);
        from.read_exact(&mut body).unwrap();
    } else if head.contains("transfer-encoding: chunked") {
        while let Some(mut chunk) = chunk(from) {
            body.append(&mut chunk);
        }
    }
    Heard { status, head, body: text(&body) }
}

/// The next chunk of a body; none at its end.
fn chunk(from: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    let mut chunk = vec![0; usize::from_str_radix(line.trim(), 16).unwrap() + 2];
    from.read_exact(&mut chunk).unwrap();
    chunk.truncate(chunk.len() - 2);
    Some(chunk).filter(|c| !c.is_empty())
}

/// The body that `faas-cli deploy` sends for a function of a stack file with everything.
const FULL: &str = r#"{"service":"shout","image":"ghcr.io/openfaas/alpine:latest","envProcess":"tr a-z A-Z","envVars":{"LEVEL":"debug"},"constraints":["lowmem=true"],"secrets":["api-key"],"labels":{"com.openfaas.scale.max":"4","com.openfaas.scale.min":"2"},"annotations":{"topic":"orders"},"limits":{"memory":"64Mi","cpu":"100m"},"requests":{"memory":"16Mi"},"readOnlyRootFilesystem":true}"#;
/// The same of `faas-cli deploy --image --name` without more.
const BARE: &str =
    r#"{"service":"cat","image":"ghcr.io/openfaas/alpine:latest","envProcess":"cat","labels":{},"annotations":{}}"#;

#[test]
fn login_deploy_invoke_and_remove() {
    let platform = Platform::start();
    let cli = Cli::new(&platform);

    // login, version, ready without a name
    cli.say(LOGIN, "GET", "/system/functions", None).is(200, "[]");
    let wrong = Cli::with(&platform, "nope").say(LOGIN, "GET", "/system/functions", None);
    wrong.is(401, "invalid credentials");
    assert!(wrong.head.contains("www-authenticate: basic realm=\"restricted\""), "{}", wrong.head);
    let info = cli.get("/system/info").json();
    assert!(info["provider"]["provider"].is_string() && info["provider"]["orchestration"].is_string(), "{info}");
    assert!(info["version"]["release"].is_string() && info["arch"].is_string(), "{info}");
    cli.get("/healthz").is(200, "");

    // deploy: PUT, and on 404 POST
    cli.send("POST", "/system/secrets", r#"{"name":"api-key","value":"s3cret"}"#).is(202, "");
    assert_eq!(cli.send("PUT", "/system/functions", FULL).status, 404);
    cli.send("POST", "/system/functions", FULL).is(202, "");
    cli.ready("shout?usage=1");
    platform.until("both instances are there", || cli.get("/system/function/shout").json()["availableReplicas"] == 2);

    // list
    let list = cli.get("/system/functions").json();
    let mut expected: Value = serde_json::from_str(FULL).unwrap();
    let map = expected.as_object_mut().unwrap();
    let name = map.remove("service").unwrap();
    map.insert("name".into(), name);
    map.insert("createdAt".into(), list[0]["createdAt"].clone());
    expected["namespace"] = json!("openfaas-fn");
    (expected["replicas"], expected["availableReplicas"]) = (json!(2), json!(2));
    expected["labels"]["faas_function"] = json!("shout");
    assert_eq!(list, json!([expected]), "what is absent stays absent");
    assert!(list[0]["createdAt"].as_str().unwrap().ends_with('Z'));

    // invoke, whatever the function is called
    for name in ["shout.openfaas-fn", "shout", "shout.default"] {
        let mut stream = cli.open();
        let head = cli.head(INVOKE, "POST", &format!("/function/{name}"), Some(5));
        stream.write_all(format!("{head}hello").as_bytes()).unwrap();
        let answer = heard(&mut BufReader::new(stream));
        answer.is(200, "HELLO");
        assert!(answer.head.contains("x-call-id: "), "{}", answer.head);
    }

    // describe
    let shown = cli.get("/system/function/shout?usage=1").json();
    assert_eq!((&shown["invocationCount"], &shown["image"]), (&json!(3), &json!("ghcr.io/openfaas/alpine:latest")));
    assert!(shown["usage"]["totalMemoryBytes"].as_u64().unwrap() > 0, "{shown}");
    cli.get("/system/function/nobody?usage=1").is(404, "");

    // deploy again, and deploy --replace
    cli.send("PUT", "/system/functions", &FULL.replace("debug", "info")).is(202, "");
    assert_eq!(cli.get("/system/function/shout").json()["envVars"], json!({"LEVEL": "info"}));
    cli.send("DELETE", "/system/functions", r#"{"functionName":"shout"}"#).is(202, "");
    cli.send("POST", "/system/functions", FULL).is(202, "");
    cli.send("POST", "/system/functions", FULL).refuses(400, "exists already");

    // remove
    cli.send("DELETE", "/system/functions", r#"{"functionName":"shout"}"#).is(202, "");
    assert_eq!(cli.send("DELETE", "/system/functions", r#"{"functionName":"shout"}"#).status, 404);
    cli.say(LOGIN, "GET", "/system/functions", None).is(200, "[]");
}

#[test]
fn logs_last_until_the_reader_leaves() {
    let platform = Platform::start();
    let cli = Cli::new(&platform);
    cli.send("POST", "/system/functions", BARE).is(202, "");
    cli.ready("cat?usage=1");
    cli.say(INVOKE, "POST", "/function/cat.openfaas-fn", Some("one")).is(200, "one");

    // logs NAME
    let mut stream = cli.open();
    let head = cli.head(PROXY, "GET", "/system/logs?follow=true&name=cat&tail=-1", None);
    stream.write_all(head.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        lines.read_line(&mut head).unwrap();
    }
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("application/x-ndjson"), "{head}");
    // Each line comes as it is written: the second call is made when the lines of the first have been read.
    for (words, bytes) in [("Wrote 3 Bytes", None), ("Wrote 5 Bytes", Some("three"))] {
        if let Some(body) = bytes {
            cli.say(INVOKE, "POST", "/function/cat.openfaas-fn", Some(body)).is(200, body);
        }
        loop {
            let line: Value = serde_json::from_slice(&chunk(&mut lines).expect("it goes on")).unwrap();
            assert_eq!((&line["name"], &line["namespace"]), (&json!("cat"), &json!("openfaas-fn")));
            let fields: Vec<&String> = line.as_object().unwrap().keys().collect();
            assert_eq!(fields, ["instance", "name", "namespace", "text", "timestamp"]);
            if line["text"].as_str().unwrap().contains(words) {
                break;
            }
        }
    }
    drop(lines);

    // logs NAME --tail=false, and --since
    let all = cli.get("/system/logs?follow=false&name=cat&tail=-1");
    assert_eq!(all.body.lines().count(), 4, "{}", all.body);
    assert_eq!(cli.get("/system/logs?follow=false&name=cat&tail=1").body.lines().count(), 1);
    let later = "/system/logs?follow=false&name=cat&since=2999-01-01T00%3A00%3A00Z&tail=-1";
    cli.get(later).is(200, "");
    cli.get("/system/logs?follow=true&name=nobody&tail=-1").refuses(404, "nobody");
    cli.get("/system/logs?follow=true&name=cat&namespace=none&tail=-1").refuses(404, "none");
    cli.get("/system/logs").refuses(400, "name");
}

#[test]
fn secrets_and_namespaces() {
    let platform = Platform::start();
    let cli = Cli::new(&platform);

    // secret create, update, list, remove
    cli.send("POST", "/system/secrets", r#"{"name":"api-key","value":"one"}"#).is(202, "");
    assert_eq!(cli.send("POST", "/system/secrets", r#"{"name":"api-key","value":"two"}"#).status, 409);
    cli.send("PUT", "/system/secrets", r#"{"name":"api-key","value":"three"}"#).is(202, "");
    assert_eq!(cli.send("PUT", "/system/secrets", r#"{"name":"nobody","value":"x"}"#).status, 404);
    assert_eq!(cli.get("/system/secrets").json(), json!([{"name": "api-key", "namespace": "openfaas-fn"}]));
    let reads = BARE.replace("\"cat\"", "\"reads\"").replace(
        r#""envProcess":"reads""#,
        r#""envProcess":"cat /var/openfaas/secrets/api-key","secrets":["api-key"]"#,
    );
    cli.send("POST", "/system/functions", &reads).is(202, "");
    cli.ready("reads?usage=1");
    cli.say(INVOKE, "POST", "/function/reads.openfaas-fn", Some("")).is(200, "three");
    cli.send("DELETE", "/system/secrets", r#"{"name":"api-key"}"#).is(202, "");
    assert_eq!(cli.send("DELETE", "/system/secrets", r#"{"name":"api-key"}"#).status, 404);
    cli.get("/system/secrets").is(200, "[]");

    // namespace create, get, list, update, delete
    let dev = r#"{"name":"dev","annotations":{"openfaas":"1"},"labels":{"openfaas":"1"}}"#;
    let sdk = |method: &str, path: &str, body: Option<&str>| cli.say(SDK, method, path, body);
    sdk("POST", "/system/namespace/", Some(dev)).is(201, "");
    assert_eq!(sdk("POST", "/system/namespace/", Some(dev)).status, 409);
    sdk("GET", "/system/namespaces", None).is(200, r#"["dev","openfaas-fn"]"#);
    assert_eq!(
        sdk("GET", "/system/namespace/dev", None).body,
        r#"{"annotations":{"openfaas":"1"},"labels":{"openfaas":"1"},"name":"dev"}"#
    );
    sdk("PUT", "/system/namespace/dev", Some(r#"{"name":"dev","labels":{"openfaas":"1","team":"a"}}"#)).is(202, "");
    assert_eq!(sdk("GET", "/system/namespace/dev", None).json()["labels"], json!({"openfaas": "1", "team": "a"}));

    // What is in it is another's: -n dev
    let far = BARE.replace("\"image\"", "\"namespace\":\"dev\",\"image\"");
    assert_eq!(cli.send("PUT", "/system/functions", &far).status, 404);
    cli.send("POST", "/system/functions", &far).is(202, "");
    cli.ready("cat?usage=1&namespace=dev");
    cli.say(INVOKE, "POST", "/function/cat.dev", Some("far")).is(200, "far");
    assert_eq!(cli.say(INVOKE, "POST", "/function/cat.openfaas-fn", Some("far")).status, 404);
    let names = |query: &str| -> Vec<String> {
        let list = cli.get(&format!("/system/functions{query}")).json();
        list.as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((names("?namespace=dev"), names("")), (vec!["cat".to_owned()], vec!["reads".to_owned()]));
    cli.send("POST", "/system/scale-function/cat", r#"{"serviceName":"cat","replicas":2,"namespace":"dev"}"#)
        .is(202, "");
    assert_eq!(cli.get("/system/function/cat?namespace=dev").json()["replicas"], 2);
    sdk("DELETE", "/system/namespace/dev", Some(r#"{"name":"dev","labels":{"openfaas":"1"}}"#)).refuses(409, "cat");
    cli.send("DELETE", "/system/functions", r#"{"functionName":"cat","namespace":"dev"}"#).is(202, "");
    sdk("DELETE", "/system/namespace/dev", Some(r#"{"name":"dev","labels":{"openfaas":"1"}}"#)).is(202, "");
    sdk("GET", "/system/namespace/dev", None).is(404, "");
}

#[test]
fn the_store_s_functions_run_by_what_they_name() {
    let platform = Platform::start();
    let cli = Cli::new(&platform);
    for (name, process, expected) in [
        ("env", "env", "Http_Method=POST"),
        ("sum", "sha512sum", "ee26b0dd4af7e749aa1a8ee3c10ae9923f618980772e473f8819a5d4940e0db2"),
    ] {
        let body = format!(
            r#"{{"service":"{name}","image":"ghcr.io/openfaas/alpine:latest","envProcess":"{process}","envVars":{{}},"labels":{{}},"annotations":{{}}}}"#
        );
        assert_eq!(cli.send("PUT", "/system/functions", &body).status, 404);
        cli.send("POST", "/system/functions", &body).is(202, "");
        cli.ready(&format!("{name}?usage=1"));
        let answer = cli.say(INVOKE, "POST", &format!("/function/{name}.openfaas-fn"), Some("test"));
        assert!(answer.status == 200 && answer.body.contains(expected), "{}", answer.body);
    }
}

#[test]
fn labels_alone_scale_to_zero_and_back_and_under_load() {
    let platform = Platform::start();
    let cli = Cli::new(&platform);
    let replicas = |name: &str| cli.get(&format!("/system/function/{name}")).json()["availableReplicas"].as_u64();

    let labels = r#""labels":{"com.openfaas.scale.zero":"true","com.openfaas.scale.zero-duration":"1s"}"#;
    cli.send("POST", "/system/functions", &BARE.replace(r#""labels":{}"#, labels)).is(202, "");
    cli.ready("cat?usage=1");
    platform.until("it goes to zero", || replicas("cat").is_none());
    cli.say(INVOKE, "POST", "/function/cat.openfaas-fn", Some("again")).is(200, "again");

    let labels = r#""labels":{"com.openfaas.scale.min":"2","com.openfaas.scale.max":"4","com.openfaas.scale.type":"capacity","com.openfaas.scale.target":"1"}"#;
    let busy = BARE.replace(r#""labels":{}"#, labels).replace(r#""service":"cat""#, r#""service":"busy""#);
    cli.send("POST", "/system/functions", &busy.replace(r#""envProcess":"cat""#, r#""envProcess":"sleep 1""#))
        .is(202, "");
    platform.until("the fewest are there", || replicas("busy") == Some(2));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while replicas("busy") < Some(4) {
                    cli.say(INVOKE, "POST", "/function/busy.openfaas-fn", Some("")).is(200, "");
                }
            });
        }
        platform.until("the most are there", || replicas("busy") == Some(4));
    });
}

#[test]
fn a_server_is_found_where_the_watchdog_would_look() {
    let platform = Platform::start();
    let cli = Cli::new(&platform);
    let annotations = r#""annotations":{"com.openfaas.ready.http.path":"/","com.openfaas.health.http.path":"/","com.openfaas.health.http.periodSeconds":"1"}"#;
    let body = BARE
        .replace(
            r#""envProcess":"cat""#,
            r#""envProcess":"python3 -m http.server --directory /usr/share/zoneinfo 5000""#,
        )
        .replace(r#""labels":{}"#, r#""envVars":{"mode":"http","upstream_url":"http://127.0.0.1:5000"},"labels":{}"#)
        .replace(r#""annotations":{}"#, annotations);
    cli.send("POST", "/system/functions", &body).is(202, "");
    cli.ready("cat?usage=1");
    let answer = cli.say(INVOKE, "GET", "/function/cat.openfaas-fn/", None);
    assert!(answer.status == 200 && answer.head.contains("server: simplehttp"), "{}\n{}", answer.head, answer.body);
}

/// `faas-cli invoke --async`: the answer means that the call is on disk; it runs whatever happens in between.
#[test]
fn accepted_calls_run_even_when_the_platform_was_killed() {
    let mut platform = Platform::start();
    let tee = r#"{"service":"tee","image":"i","envProcess":"tee /dev/stderr","envVars":{"combine_output":"false"},"labels":{},"annotations":{}}"#;
    let zero = r#"{"service":"zero","image":"i","envProcess":"tee /dev/stderr","envVars":{"combine_output":"false"},"labels":{"com.openfaas.scale.zero":"true"},"annotations":{}}"#;
    let later = |cli: &Cli<'_>, name: &str, body: &str| {
        cli.say(INVOKE, "POST", &format!("/async-function/{name}.openfaas-fn"), Some(body))
    };
    let ran = |cli: &Cli<'_>, name: &str, words: &str| {
        cli.get(&format!("/system/logs?follow=false&name={name}&tail=-1")).body.contains(words)
    };
    let cli = Cli::new(&platform);
    cli.send("POST", "/system/functions", tee).is(202, "");
    cli.send("POST", "/system/functions", zero).is(202, "");
    cli.ready("tee?usage=1");
    let answer = later(&cli, "tee", "at once");
    answer.is(202, "");
    assert!(answer.head.contains("x-call-id: ") && answer.head.contains("location: /v1/"), "{}", answer.head);
    platform.until("it ran", || ran(&cli, "tee", "at once"));
    assert_eq!(later(&cli, "none", "x").status, 404, "nothing is accepted that nobody could run");
    assert_eq!(cli.say(INVOKE, "GET", "/async-function/tee", None).status, 405);
    let words: Vec<String> = (0..50).map(|n| format!("kept-{n}.")).collect();
    for text in &words {
        assert_eq!(later(&cli, "zero", text).status, 202);
    }
    platform.kill();
    platform.up();
    let cli = Cli::new(&platform);
    platform.until("each one ran", || {
        let lines = cli.get("/system/logs?follow=false&name=zero&tail=-1").body;
        words.iter().all(|text| lines.contains(text))
    });
}

#[test]
fn what_cannot_be_meant_is_refused_in_plain_words() {
    let platform = Platform::start();
    let cli = Cli::new(&platform);
    let send = |method: &str, path: &str, body: &str| cli.send(method, path, body);
    send("POST", "/system/functions", "{").refuses(400, "Error unmarshalling request body");
    send("POST", "/system/functions", r#"{"service":"a/b","image":"i","envProcess":"cat"}"#).refuses(400, "a/b");
    send("POST", "/system/functions", r#"{"service":"a","image":"i","namespace":"x/y"}"#).refuses(400, "x/y");
    send("POST", "/system/functions", r#"{"service":"a","image":"reg.lan/a:1"}"#).refuses(400, "--fprocess");
    send("POST", "/system/functions", r#"{"service":"a","image":"i","envProcess":"cat","secrets":["absent"]}"#)
        .refuses(400, "absent");
    send("POST", "/system/functions", r#"{"service":"a","image":"i","envProcess":"cat","namespace":"none"}"#)
        .refuses(400, "none");
    send("POST", "/system/secrets", r#"{"name":"../../etc/passwd","value":"x"}"#).refuses(400, "../../etc/passwd");
    send("DELETE", "/system/secrets", r#"{"name":"../admin-password"}"#).refuses(400, "../admin-password");
    send("POST", "/system/namespace/", r#"{"name":"a/b"}"#).refuses(400, "a/b");
    send("POST", "/system/namespace/", r#"{"name":"kube-system"}"#).refuses(400, "kube-system");
    send("POST", "/system/alert", "firing").refuses(400, "Unable to parse alert, bad format.");
    send("POST", "/system/scale-function/nobody", r#"{"serviceName":"nobody","replicas":1}"#).refuses(404, "nobody");
    cli.get("/system/telemetry").is(404, "404 page not found\n");
    cli.send("PATCH", "/system/functions", "").is(405, "");
    cli.say(LOGIN, "GET", "/system/functions", None).is(200, "[]");

    // 300 MB: refused long before they have arrived, and not kept.
    let mut stream = cli.open();
    let size = 300 << 20;
    let mut sink = stream.try_clone().unwrap();
    let head = cli.head(PROXY, "POST", "/system/functions", Some(size));
    let before = peak(&platform);
    let sender = std::thread::spawn(move || {
        let piece = vec![b'x'; 1 << 20];
        let sent =
            sink.write_all(head.as_bytes()).and_then(|()| (0..size >> 20).try_for_each(|_| sink.write_all(&piece)));
        sent.is_ok()
    });
    let mut answer = [0; 512];
    let n = stream.read(&mut answer).unwrap();
    assert!(text(&answer[..n]).starts_with("HTTP/1.1 413"), "{}", text(&answer[..n]));
    drop(stream);
    sender.join().unwrap();
    assert!(peak(&platform) - before < 64 << 10, "a body that is refused is not held");
    cli.send("POST", "/system/functions", BARE).is(202, "");
}

/// The most memory that the platform ever had, in KiB.
fn peak(platform: &Platform) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", platform.pid())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
