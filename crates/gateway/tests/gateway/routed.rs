//! Hosts, paths and methods: which function gets a request, what it is told, and what is refused before one could get it.

use std::sync::Arc;

use axum::{Router, routing::get};
use http::{HeaderMap, Request};
use taper_gateway::Config;
use taper_model::{
    FunctionSpec, Name, Reply, RevisionState, call,
    quantity::Span,
    traffic::{Routing, Traffic},
};
use taper_store::Snapshot;

use crate::harness::*;

/// Says which function was called, with which address, and with which parameters.
async fn platform(snapshot: Snapshot) -> Platform {
    with(Config::default(), snapshot).await
}

async fn with(config: Config, snapshot: Snapshot) -> Platform {
    let greedy = || async { "control plane" };
    let api = Router::new().route("/", get(greedy)).route("/{*rest}", get(greedy).post(greedy));
    let platform = Platform::with(config, api, |call| {
        Box::pin(async move {
            let mut text = format!("{} {}", call.revision.function(), call.request.uri());
            for (name, value) in call.request.headers() {
                if name == "authorization" {
                    text += " authorized";
                }
                // Some servers know no difference between `-` and `_`.
                if let Some(name) = name.as_str().replace('_', "-").strip_prefix("x-taper-param-") {
                    text += &format!(" {name}={}", String::from_utf8_lossy(value.as_bytes()));
                }
            }
            let mut reply = Reply::new(call::full(text));
            reply.headers_mut().insert("access-control-allow-origin", "https://the.function".parse().unwrap());
            Ok(reply)
        })
    })
    .await;
    platform.publish.send_replace(Arc::new(snapshot));
    platform
}

async fn ask(platform: &Platform, host: &str, method: &str, path: &str) -> Answer {
    asked(platform, host, method, path, &[]).await
}

async fn asked(platform: &Platform, host: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    platform.send(request.body(call::empty()).unwrap()).await
}

/// The answer's body, or its status with the error's code and stage.
fn short(answer: &Answer) -> String {
    if answer.status == 200 {
        return answer.text();
    }
    let error = answer.error();
    format!("{} {} {}", answer.status.as_u16(), error["error"].as_str().unwrap(), error["stage"].as_str().unwrap())
}

#[tokio::test]
async fn functions_have_hosts() {
    let platform = platform(snapshot()).await;
    for (host, path, seen) in [
        ("hello.default.localhost", "/", "hello.default /"),
        ("hello.default.localhost:8080", "/a/b?c=d", "hello.default /a/b?c=d"),
        ("Hello.DEFAULT.localhost.:8080", "/", "hello.default /"),
        ("hello.dev.localhost", "/x", "hello.dev /x"),
        ("hello.openfaas-fn.localhost", "/x", "hello.default /x"),
        // Every path is the function's.
        ("hello.default.localhost", "/system/functions", "hello.default /system/functions"),
        ("hello.default.localhost", "/v1/functions", "hello.default /v1/functions"),
        ("hello.default.localhost", "/function/quick", "hello.default /function/quick"),
        ("hello.default.localhost", "/async-function/quick", "hello.default /async-function/quick"),
        ("hello.default.localhost", "/healthz", "hello.default /healthz"),
        ("hello.default.localhost", "/metrics", "hello.default /metrics"),
        ("nobody.default.localhost", "/system/functions", "404 not_found route"),
        ("hello.nowhere.localhost", "/", "404 not_found route"),
        ("a_b.default.localhost", "/", "404 not_found route"),
        ("hello..localhost", "/", "404 not_found route"),
        // These are the platform's.
        ("localhost", "/system/functions", "401"),
        ("default.localhost", "/v1/functions", "401"),
        ("x.hello.default.localhost", "/v1/functions", "401"),
        ("hello.default.example.com", "/", "401"),
        ("127.0.0.1:8080", "/function/hello/x", "hello.default /x"),
        ("[::1]:8080", "/function/hello/x", "hello.default /x"),
        ("hello.default.example.com", "/function/hello/x", "hello.default /x"),
    ] {
        let answer = ask(&platform, host, "GET", path).await;
        match seen {
            "401" => assert_eq!(
                (answer.status.as_u16(), answer.text().contains("control plane")),
                (401, false),
                "{host}{path}"
            ),
            seen => assert_eq!(short(&answer), seen, "{host}{path}"),
        }
    }
    let missing = ask(&platform, "nobody.default.localhost", "GET", "/").await.error();
    assert!(missing["message"].as_str().unwrap().contains("nobody.default is not deployed"), "{missing}");
    // What opens the control plane is not told to a function at its host, and opens nothing there.
    let answer = asked(&platform, "hello.default.localhost", "GET", "/v1/functions", &[("authorization", BASIC)]).await;
    assert_eq!(answer.text(), "hello.default /v1/functions");
    let answer = asked(&platform, "hello.default.localhost", "GET", "/", &[("authorization", "Bearer own")]).await;
    assert_eq!(answer.text(), "hello.default / authorized", "what else is said there is the function's");
    // It comes and goes with the function.
    platform.publish.send_replace(Arc::new(Snapshot::default()));
    assert_eq!(short(&ask(&platform, "hello.default.localhost", "GET", "/").await), "404 not_found route");
}

#[tokio::test]
async fn the_template_is_the_operators() {
    let config = Config {
        domain: "faas.example.com".into(),
        host_template: "{namespace}.{name}.{domain}".into(),
        ..Config::default()
    };
    let taken = r#"{"host": "faas.example.com", "function": "hello"}"#;
    let there = with(config, routed(&[("default", taken)])).await;
    assert_eq!(ask(&there, "faas.example.com", "GET", "/v1").await.status, 401, "the domain itself is the platform's");
    assert_eq!(ask(&there, "dev.hello.faas.example.com", "GET", "/").await.text(), "hello.dev /");
    assert_eq!(ask(&there, "hello.dev.faas.example.com", "GET", "/").await.status, 404);
    assert_eq!(ask(&there, "hello.default.localhost", "GET", "/").await.status, 401, "no longer a function's");
    let nowhere = with(Config { domain: String::new(), ..Config::default() }, snapshot()).await;
    assert_eq!(ask(&nowhere, "hello.default.localhost", "GET", "/").await.status, 401);
}

#[tokio::test]
async fn tags_have_hosts() {
    let (name, function) = function("hello", FunctionSpec::default(), RevisionState::Ready);
    let mut function = Arc::unwrap_or_clone(function);
    let target = |percent, tag| Traffic { latest: true, percent, tag, ..Traffic::default() };
    let traffic = vec![target(Some(100), None), target(None, Some(Name::new("canary").unwrap()))];
    function.routing = Arc::new(Routing { traffic, ..Routing::default() });
    let functions = snapshot().functions.values().cloned().map(|f| (f.name.clone(), f)).collect::<Vec<_>>();
    let functions = functions.into_iter().filter(|(n, _)| *n != name).chain([(name.clone(), Arc::new(function))]);
    let platform = platform(Snapshot { functions: functions.collect(), ..Snapshot::default() }).await;
    assert_eq!(ask(&platform, "canary-hello.default.localhost", "GET", "/x").await.text(), "hello.default /x");
    assert_eq!(ask(&platform, "hello.default.localhost", "GET", "/x").await.text(), "hello.default /x");
    for host in ["stable-hello.default.localhost", "canary-hello.dev.localhost", "canary-.default.localhost"] {
        assert_eq!(ask(&platform, host, "GET", "/").await.status, 404, "{host}");
    }
}

#[tokio::test]
async fn hosts_decide_before_paths() {
    let platform = platform(routed(&[
        ("default", r#"{"host": "shop.example.com", "path": "/api/*", "function": "hello"}"#),
        ("default", r#"{"host": "shop.example.com", "path": "/users/{id}", "function": "quick", "methods": ["GET"]}"#),
        ("dev", r#"{"host": "*.example.com", "function": "hello"}"#),
        ("default", r#"{"host": "other.default.localhost", "function": "hello"}"#),
        ("dev", r#"{"host": "hello.default.localhost", "function": "hello"}"#),
        ("dev", r#"{"host": "*.default.localhost", "function": "hello"}"#),
        ("default", r#"{"path": "/open/*", "function": "hello"}"#),
        ("dev", r#"{"path": "/{who}/greet", "function": "hello"}"#),
        ("default", r#"{"host": "gone.example.com", "function": "gone"}"#),
    ]))
    .await;
    for (host, path, seen) in [
        ("shop.example.com", "/api/x", "hello.default /api/x"),
        ("SHOP.example.com.:443", "/api", "hello.default /api"),
        ("shop.example.com", "/users/7", "quick.default /users/7 id=7"),
        // Nothing else is there: neither the rules of others, nor the platform.
        ("shop.example.com", "/", "404 not_found route"),
        ("shop.example.com", "/open/x", "404 not_found route"),
        ("shop.example.com", "/function/hello", "404 not_found route"),
        ("shop.example.com", "/healthz", "404 not_found route"),
        ("shop.example.com", "/v1/functions", "404 not_found route"),
        ("www.example.com", "/v1/functions", "hello.dev /v1/functions"),
        ("a.www.example.com", "/open/x", "hello.default /open/x"),
        // A namespace's host by template is no other namespace's.
        ("hello.default.localhost", "/", "hello.default /"),
        ("other.default.localhost", "/", "hello.default /"),
        ("third.default.localhost", "/", "404 not_found route"),
        ("gone.example.com", "/", "404 not_found route"),
        // Rules without a host, on hosts that are nobody's.
        ("localhost", "/open", "hello.default /open"),
        ("127.0.0.1", "/open/x?y", "hello.default /open/x?y"),
        ("nobody.org", "/you/greet", "hello.dev /you/greet who=you"),
        ("localhost", "/function/greet", "404 not_found route"),
    ] {
        assert_eq!(short(&ask(&platform, host, "GET", path).await), seen, "{host}{path}");
    }
    for path in ["/v1/greet", "/system/greet", "/ui/greet", "/2015-03-31/greet", "/else", "//open/x"] {
        assert_eq!(ask(&platform, "localhost", "GET", path).await.status, 401, "{path} is the platform's");
    }
    let answer = ask(&platform, "shop.example.com", "POST", "/users/7").await;
    assert_eq!((short(&answer).as_str(), answer.header("allow")), ("405 method_not_allowed route", "GET, HEAD"));
    let answer = ask(&platform, "shop.example.com", "BREW", "/api").await;
    assert!(answer.status == 405 && answer.header("allow").contains("PATCH"), "{answer:?}");
}

#[tokio::test]
async fn no_path_is_read_in_two_ways() {
    let platform = platform(routed(&[
        ("default", r#"{"host": "shop.example.com", "function": "hello"}"#),
        ("default", r#"{"path": "/open/*", "function": "hello"}"#),
    ]))
    .await;
    for (path, why) in [
        ("/../x", "`.` or `..`"),
        ("/a/..", "`.` or `..`"),
        ("/./x", "`.` or `..`"),
        ("/a/%2e%2E/x", "`.` or `..`"),
        ("/a/.%2e", "`.` or `..`"),
        ("/%2e", "`.` or `..`"),
        ("/a%2fb", "`%2f`"),
        ("/a%2Fb", "`%2f`"),
        ("/a%5cb", "`%5c`"),
        ("/a\\b", "backslash"),
        ("/a%00b", "control character"),
        ("/a%7F", "control character"),
        ("/a%0d%0ab", "control character"),
    ] {
        for (host, path) in [
            ("shop.example.com", path.to_owned()),
            ("hello.default.localhost", path.to_owned()),
            ("localhost", format!("/open{path}")),
        ] {
            let mut raw = platform.raw().await;
            let text = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            let (answer, _) = raw.write(text).await.rest().await;
            assert!(
                answer.starts_with("HTTP/1.1 400") && answer.contains("x-taper-fault: accept"),
                "{host}{path}: {answer}"
            );
            // What is no target at all, the parser has refused.
            assert!(answer.contains(why) || answer.contains("is not HTTP"), "{host}{path}: {answer}");
        }
    }
    for path in ["/...", "/a..b/.c", "/a%20b", "/%", "/%zz", "/a/", "/a;b=c", "/caf%C3%A9", "/?x=../..%2f"] {
        let answer = ask(&platform, "shop.example.com", "GET", path).await;
        assert_eq!(answer.text(), format!("hello.default {path}"));
    }
    for (host, path) in [("shop.example.com", "/a//b"), ("shop.example.com", "//"), ("localhost", "/open//x")] {
        let answer = ask(&platform, host, "GET", path).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (400, "accept"), "{host}{path}");
    }
    assert_eq!(
        ask(&platform, "hello.default.localhost", "GET", "//a").await.text(),
        "hello.default //a",
        "there is one way only"
    );
    // Behind a name it is the function's own affair.
    let answer = ask(&platform, "localhost", "GET", "/function/hello/../a%2fb").await;
    assert_eq!(answer.text(), "hello.default /../a%2fb");
}

#[tokio::test]
async fn hosts_that_are_none() {
    let platform = platform(routed(&[("default", r#"{"host": "shop.example.com", "function": "hello"}"#)])).await;
    let long = format!("{}.example.com", "a".repeat(10 << 10));
    for host in
        [&*long, "shop.example.com:x", "shop.example.com:80:80", "shop.example.com:99999", "[::1", "shop.example.com/x"]
    {
        for path in ["/", "/function/hello", "/healthz", "/system/functions"] {
            let answer = ask(&platform, host, "GET", path).await;
            assert_eq!((answer.status.as_u16(), answer.header("x-taper-fault")), (400, "accept"), "{path}");
        }
    }
    let said = ask(&platform, &long, "GET", "/").await.error();
    assert!(said["message"].as_str().unwrap().contains("at most 253"), "{said}");
    // Two hosts.
    let mut raw = platform.raw().await;
    let two = "GET / HTTP/1.1\r\nhost: shop.example.com\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let (answer, _) = raw.write(two).await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    // The target's own is one, too, and the header says the same.
    for (target, host, seen) in [
        ("http://shop.example.com/x", "shop.example.com", "hello.default /x"),
        ("http://Shop.Example.com:80/x", "shop.example.com:80", "hello.default /x"),
        ("http://localhost/v1/x", "localhost", "401"),
        ("http://hello.dev.localhost/v1/x", "hello.dev.localhost", "hello.dev /v1/x"),
        ("http://shop.example.com/x", "localhost", "400 Bad Request"),
        ("http://localhost/v1/x", "shop.example.com", "400 Bad Request"),
    ] {
        let mut raw = platform.raw().await;
        let text = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let (answer, _) = raw.write(text).await.rest().await;
        assert!(answer.contains(seen), "{target}: {answer}");
    }
    // HTTP/1.0 without any.
    let mut raw = platform.raw().await;
    let (answer, _) = raw.write("GET /function/hello HTTP/1.0\r\n\r\n").await.rest().await;
    assert!(answer.contains("hello.default /"), "{answer}");
}

#[tokio::test]
async fn http_2_names_hosts_by_authority() {
    let platform = platform(routed(&[("default", r#"{"host": "shop.example.com", "function": "hello"}"#)])).await;
    let mut sender = platform.http2().await;
    let long = format!("http://{}.example.com/", "a".repeat(10 << 10));
    for (uri, host, seen) in [
        (&*long, None, "400"),
        ("http://shop.example.com/x", None, "200"),
        ("http://shop.example.com/x", Some("shop.example.com"), "200"),
        ("http://shop.example.com/x", Some("localhost"), "400"),
        ("http://localhost/v1/functions", Some("shop.example.com"), "400"),
        ("http://localhost/v1/functions", None, "401"),
        ("http://quick.default.localhost/system", None, "200"),
    ] {
        let mut request = Request::get(uri).version(http::Version::HTTP_2);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let response = within(sender.send_request(request.body(call::empty()).unwrap())).await.unwrap();
        assert_eq!(response.status().as_str(), seen, "{uri} {host:?}");
    }
}

#[tokio::test]
async fn parameters_are_the_gateways_word() {
    let platform = platform(routed(&[
        ("default", r#"{"host": "shop.example.com", "path": "/users/{id}/{what}/*", "function": "hello"}"#),
        ("default", r#"{"host": "shop.example.com", "path": "/v1/items/{item}", "strip": true, "function": "hello"}"#),
        ("default", r#"{"host": "shop.example.com", "path": "/static/*", "strip": true, "function": "hello"}"#),
    ]))
    .await;
    let forged = [
        ("x-taper-param-id", "root"),
        ("X-Taper-Param-Admin", "1"),
        ("X_Taper-Param_Id", "root"),
        ("x-taper-param-", "x"),
    ];
    for (host, path, seen) in [
        (
            "shop.example.com",
            "/users/a%20b/caf%C3%A9/x?q",
            "hello.default /users/a%20b/caf%C3%A9/x?q id=a%20b what=caf%C3%A9",
        ),
        ("shop.example.com", "/v1/items/7?q", "hello.default /7?q item=7"),
        ("shop.example.com", "/static/a/b", "hello.default /a/b"),
        ("shop.example.com", "/static", "hello.default /"),
        ("shop.example.com", "/static?q", "hello.default /?q"),
        ("localhost", "/function/hello/users/7", "hello.default /users/7"),
        ("hello.default.localhost", "/users/7", "hello.default /users/7"),
    ] {
        let answer = asked(&platform, host, "GET", path, &forged).await;
        assert_eq!(answer.text(), seen);
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect()
}

#[tokio::test]
async fn cors_is_spoken_for_the_function() {
    let platform = platform(routed(&[
        ("default", r#"{"host": "a.example.com", "path": "/named", "function": "hello", "methods": ["GET", "PUT"],
            "cors": {"origins": ["https://one.example", "https://two.example"], "credentials": true, "expose": ["ETag", "X-Y"], "maxAge": "1h"}}"#),
        ("default", r#"{"host": "a.example.com", "path": "/open", "function": "hello", "cors": {"origins": ["*"], "headers": ["X-One"]}}"#),
        ("default", r#"{"host": "a.example.com", "path": "/own", "function": "hello"}"#),
        ("default", r#"{"host": "a.example.com", "path": "/pending", "function": "pending", "cors": {"origins": ["*"]}}"#),
    ]))
    .await;
    let preflight = async |path: &str, origin: &str, method: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", method),
            ("access-control-request-headers", "x-a, x-b"),
        ];
        asked(&platform, "a.example.com", "OPTIONS", path, &headers).await
    };
    let answer = preflight("/named", "https://two.example", "PUT").await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
    for (name, value) in [
        ("access-control-allow-origin", "https://two.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "GET, PUT"),
        ("access-control-allow-headers", "x-a, x-b"),
        ("access-control-max-age", "3600"),
        ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    // Others hear nothing, and that nothing is not for caches to give to everybody.
    let refused = preflight("/named", "https://three.example", "PUT").await;
    assert_eq!((refused.status.as_u16(), header(&refused.headers, "access-control-allow-origin")), (204, vec![]));
    assert!(
        refused.header("vary").contains("Origin")
            && header(&refused.headers, "access-control-allow-methods").is_empty()
    );
    // A method that is not served here is not allowed either.
    assert_eq!(preflight("/named", "https://one.example", "DELETE").await.status, 405);
    let open = preflight("/open", "https://anybody.example", "DELETE").await;
    assert_eq!(open.header("access-control-allow-origin"), "*");
    assert_eq!(open.header("access-control-allow-methods"), "DELETE");
    assert_eq!((open.header("access-control-allow-headers"), open.header("access-control-max-age")), ("X-One", "600"));
    assert_eq!(open.header("access-control-allow-credentials"), "");
    // Without a word in the rule it is the function's own affair, preflights and all.
    let own = preflight("/own", "https://one.example", "PUT").await;
    assert_eq!(
        (own.text().as_str(), own.header("access-control-allow-origin")),
        ("hello.default /own", "https://the.function")
    );
    // So is OPTIONS that asks for nothing.
    let plain = asked(&platform, "a.example.com", "OPTIONS", "/open", &[("origin", "https://one.example")]).await;
    assert_eq!(plain.text(), "hello.default /open");

    let get = async |path: &str, origin: &[(&str, &str)]| asked(&platform, "a.example.com", "GET", path, origin).await;
    let answer = get("/named", &[("origin", "https://one.example")]).await;
    assert_eq!(answer.text(), "hello.default /named");
    assert_eq!(header(&answer.headers, "access-control-allow-origin"), ["https://one.example"]);
    assert_eq!(header(&answer.headers, "access-control-expose-headers"), ["ETag, X-Y"]);
    assert_eq!((answer.header("vary"), answer.header("access-control-allow-credentials")), ("Origin", "true"));
    for origin in [&[("origin", "https://three.example")][..], &[]] {
        let answer = get("/named", origin).await;
        assert_eq!(answer.text(), "hello.default /named", "whoever asks is served");
        assert_eq!(header(&answer.headers, "access-control-allow-origin"), [] as [&str; 0]);
        assert_eq!(answer.header("vary"), "Origin");
    }
    let open = get("/open", &[("origin", "https://x.example")]).await;
    assert_eq!((open.header("access-control-allow-origin"), open.header("vary")), ("*", ""));
    // A fault can be read, too.
    let fault = get("/pending", &[("origin", "https://x.example")]).await;
    assert_eq!((fault.status.as_u16(), fault.header("access-control-allow-origin")), (502, "*"));
}

/// The Fetch standard's words: a method is a token in its own case, names of headers come in any number of lines, an origin is one.
#[tokio::test]
async fn preflights_by_the_letter() {
    let platform = platform(routed(&[
        ("default", r#"{"host": "a.example.com", "path": "/some", "function": "hello", "methods": ["GET", "PATCH"], "cors": {"origins": ["https://one.example"], "credentials": true}}"#),
        ("default", r#"{"host": "a.example.com", "path": "/any", "function": "hello", "cors": {"origins": ["*"]}}"#),
    ]))
    .await;
    let one = ("origin", "https://one.example");
    let method = |name| ("access-control-request-method", name);
    let wants = |names| ("access-control-request-headers", names);
    let options =
        async |path: &str, headers: &[(&str, &str)]| asked(&platform, "a.example.com", "OPTIONS", path, headers).await;
    let allowed = |answer: &Answer| {
        let one = |name: &str| header(&answer.headers, name).join(" | ");
        (answer.status.as_u16(), one("access-control-allow-methods"), one("access-control-allow-headers"))
    };
    let said = |methods: &str, headers: &str| (204, methods.to_owned(), headers.to_owned());

    // A method is what it is, in its own case: browsers write `patch` where a page does.
    for name in ["PATCH", "patch", "PROPFIND", "X-odd!", "*"] {
        assert_eq!(allowed(&options("/any", &[one, method(name)]).await), said(name, ""), "{name}");
    }
    assert_eq!(allowed(&options("/some", &[one, method("PATCH")]).await), said("GET, PATCH", ""));
    for name in ["patch", "PROPFIND", "*"] {
        let refused = options("/some", &[one, method(name)]).await;
        assert_eq!((refused.status.as_u16(), refused.header("allow")), (405, "GET, HEAD, PATCH"), "{name}");
    }
    // What is no method, or two, or has no origin or two, is no preflight: the function's own affair, where it has OPTIONS.
    let two = ("origin", "https://two.example");
    for (path, headers) in [
        ("/any", &[one, method("GET, PUT")][..]),
        ("/any", &[one, method("GE T")]),
        ("/any", &[one, method("")]),
        ("/any", &[one, method("\"PUT\"")]),
        ("/any", &[one, method("GET"), method("PUT")]),
        ("/any", &[one, two, method("PUT")]),
        ("/any", &[method("PUT")]),
        ("/any", &[one, wants("x-a")]),
    ] {
        let answer = options(path, headers).await;
        assert_eq!(answer.text(), "hello.default /any", "{headers:?}");
        assert_eq!(allowed(&answer), (200, String::new(), String::new()), "{headers:?}");
        assert_eq!(options("/some", headers).await.status, 405, "{headers:?}");
    }
    // Names of headers: of every line, without what stands between them, and all or none.
    for (lines, seen) in [
        (&["x-a", "X-B,, x-c ,"][..], "x-a, X-B, x-c"),
        (&["authorization"], "authorization"),
        (&["*"], "*"),
        (&["", ","], ""),
        (&["x-a, x b"], ""),
        (&["x-a", "x:b"], ""),
        (&["x-a\tx-b"], ""),
    ] {
        let headers: Vec<_> = [one, method("PUT")].into_iter().chain(lines.iter().map(|line| wants(*line))).collect();
        assert_eq!(allowed(&options("/any", &headers).await), said("PUT", seen), "{lines:?}");
    }
    // Pages without an origin of their own have the one called `null`: let in with everybody, and not by a list.
    let null = ("origin", "null");
    let open = options("/any", &[null, method("PUT")]).await;
    assert_eq!(open.header("access-control-allow-origin"), "*");
    for origin in
        ["null", "https://one.example:443", "http://one.example", "https://ONE.example", "https://one.example.org", "*"]
    {
        let closed = options("/some", &[("origin", origin), method("PATCH")]).await;
        assert_eq!(header(&closed.headers, "access-control-allow-origin"), [] as [&str; 0], "{origin}");
        assert_eq!(header(&closed.headers, "access-control-allow-credentials"), [] as [&str; 0], "{origin}");
        assert_eq!(allowed(&closed), said("", ""), "{origin}");
    }
    // With credentials there is no `*` in the answer, and caches tell origins apart, let in or not.
    let named = asked(&platform, "a.example.com", "GET", "/some", &[one]).await;
    assert_eq!(header(&named.headers, "access-control-allow-origin"), ["https://one.example"]);
    let twice = asked(&platform, "a.example.com", "GET", "/some", &[one, two]).await;
    assert_eq!((twice.text().as_str(), twice.header("vary")), ("hello.default /some", "Origin"));
    assert_eq!(header(&twice.headers, "access-control-allow-origin"), [] as [&str; 0]);
}

#[tokio::test]
async fn requests_without_tls_are_sent_to_where_it_is() {
    let rule = r#"{"host": "a.example.com", "path": "/x/*", "https": "redirect", "function": "hello"}"#;
    let open = r#"{"path": "/x/*", "https": "redirect", "function": "hello"}"#;
    let platform = platform(routed(&[("default", rule), ("default", open)])).await;
    for (host, location) in [
        ("a.example.com", "https://a.example.com/x/y?z=1"),
        ("A.example.com:8080", "https://a.example.com/x/y?z=1"),
        ("[::1]:8080", "https://[::1]/x/y?z=1"),
    ] {
        let answer = ask(&platform, host, "POST", "/x/y?z=1").await;
        assert_eq!((answer.status.as_u16(), answer.header("location")), (308, location));
    }
    let behind = asked(&platform, "a.example.com", "GET", "/x/y", &[("x-forwarded-proto", "https")]).await;
    assert_eq!(behind.text(), "hello.default /x/y", "a proxy before us has spoken TLS");
    assert_eq!(ask(&platform, "a.example.com", "GET", "/y").await.status, 404);
}

#[tokio::test]
async fn a_change_of_the_rules_holds_for_the_next_request() {
    let rule = |function: &str| format!(r#"{{"host": "a.example.com", "path": "/{{x}}", "function": "{function}"}}"#);
    let platform = platform(routed(&[("default", &rule("hello"))])).await;
    for round in 0..20 {
        for function in ["hello", "quick"] {
            platform
                .publish
                .send_replace(Arc::new(Snapshot { version: round, ..routed(&[("default", &rule(function))]) }));
            let text = format!("{function}.default /7 x=7");
            assert_eq!(ask(&platform, "a.example.com", "GET", "/7").await.text(), text);
        }
    }
    platform.publish.send_replace(Arc::new(snapshot()));
    assert_eq!(ask(&platform, "a.example.com", "GET", "/7").await.status, 401, "the host is nobody's again");
    // The rule stays, and its function goes; and so for rules without a host.
    for (host, json) in
        [("a.example.com", rule("hello")), ("localhost", r#"{"path": "/{x}", "function": "hello"}"#.into())]
    {
        let with = routed(&[("default", &json)]);
        let without = Snapshot { functions: Snapshot::default().functions, version: 9, ..with.clone() };
        for (snapshot, status) in
            [(&with, 200), (&without, 404), (&with, 200), (&Snapshot::default(), 401), (&with, 200)]
        {
            platform.publish.send_replace(Arc::new(snapshot.clone()));
            assert_eq!(ask(&platform, host, "GET", "/7").await.status, status);
        }
    }
}

/// More hosts and names than are remembered: all are found all the same.
#[tokio::test]
async fn many_hosts() {
    let spec = || FunctionSpec { timeout: Some(Span(PATIENCE)), ..FunctionSpec::default() };
    let functions = (0..1500).map(|n| function(&format!("f{n}"), spec(), RevisionState::Ready));
    let platform = platform(Snapshot { functions: functions.collect(), ..Snapshot::default() }).await;
    let mut sender = platform.http2().await;
    for n in 0..1500 {
        let request = Request::get(format!("http://f{n}.default.localhost/")).body(call::empty()).unwrap();
        let answer = Answer::of(within(sender.send_request(request)).await.unwrap()).await;
        assert_eq!(answer.text(), format!("f{n}.default /"));
    }
}
