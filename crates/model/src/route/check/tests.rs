//! What a rule may say, and how what it may not say is refused.

use super::*;

fn rule(json: &str) -> Rule {
    serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}"))
}

fn said(json: &str) -> String {
    rule(json).validate("spec.route[0]").expect_err(json).to_string()
}

#[test]
fn hosts() {
    for good in [
        "shop.example.com",
        "Shop.Example.COM",
        "*.example.com",
        "*.localhost",
        "xn--bcher-kva.example",
        "a.b",
        "1.com",
    ] {
        assert_eq!(host("host", good), Ok(()), "{good}");
    }
    let long = format!("{}.com", ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join("."));
    let label = format!("{}.com", "a".repeat(64));
    for (bad, why) in [
        ("", "is not a host"),
        (".", "is not a host"),
        ("localhost", "has no dot"),
        ("shop.example.com.", "leave it out"),
        ("shop.example.com:8080", "has a port"),
        ("https://shop.example.com", "has a port"),
        ("[::1]", "has a port"),
        ("bücher.example", "xn--"),
        ("*.*.example.com", "whole first label"),
        ("*shop.example.com", "whole first label"),
        ("shop.*", "whole first label"),
        ("*", "whole first label"),
        ("*.", "leave it out"),
        ("a..b", "is not a host"),
        ("-a.b", "is not a host"),
        ("a-.b", "is not a host"),
        ("a_b.c", "is not a host"),
        ("a b.c", "is not a host"),
        ("a.b/c", "is not a host"),
        ("127.0.0.1", "is an address"),
        ("*.0.0.1", "is an address"),
        ("10.0x7F", "is an address"),
        ("a.0x", "is an address"),
        (&label, "is not a host"),
        (&long, "at most 253"),
    ] {
        let said = host("spec.host", bad).expect_err(bad).to_string();
        assert!(said.contains(why) && said.starts_with("spec.host"), "{bad}: {said}");
    }
}

#[test]
fn paths() {
    let deep = "/a".repeat(SEGMENTS);
    for good in [
        "/",
        "/*",
        "/api",
        "/api/",
        "/api/*",
        "/users/{id}",
        "/users/{id}/orders/{order_2}",
        "/{a}/{b}/*",
        "/v1/~x/a-b_c.d/!$&'()+,;=:@",
        "/caf%C3%A9/a%20b%25",
        "/pkg.Service/Method",
        "/...",
        &deep,
    ] {
        assert_eq!(path("path", good), Ok(()), "{good}");
    }
    let too_deep = "/a".repeat(SEGMENTS + 1);
    let too_long = format!("/{}", "a".repeat(LONGEST_PATH));
    let name = format!("/{{{}}}", "a".repeat(LONGEST_PARAMETER + 1));
    for (bad, why) in [
        ("", "does not begin"),
        ("api", "does not begin"),
        ("*", "does not begin"),
        ("//", "empty segment"),
        ("/a//b", "empty segment"),
        ("/a/*/b", "before its end"),
        ("/*/", "before its end"),
        ("/a*", "or at the end `*`"),
        ("/{id}x", "a segment is literal"),
        ("/x{id}", "a segment is literal"),
        ("/{id", "a segment is literal"),
        ("/id}", "a segment is literal"),
        ("/{*rest}", "a parameter `{*rest}`"),
        ("/{}", "a parameter `{}`"),
        ("/{Id}", "a letter of a-z"),
        ("/{1}", "a letter of a-z"),
        ("/{a-b}", "a letter of a-z"),
        ("/{a}/x/{a}", "twice"),
        ("/a/../b", "segment `..`"),
        ("/.", "segment `.`"),
        ("/a%2fb", "no request with it"),
        ("/a%5Cb", "no request with it"),
        ("/%00", "no request with it"),
        ("/%7f", "no request with it"),
        ("/%61dmin", "write `a`"),
        ("/%2e%2e", "write `.`"),
        ("/100%", "two hexadecimal digits"),
        ("/%zz", "two hexadecimal digits"),
        ("/%é", "two hexadecimal digits"),
        ("/a b", "percent-encoded"),
        ("/a?b", "percent-encoded"),
        ("/a#b", "percent-encoded"),
        ("/café", "percent-encoded"),
        ("/a\\b", "percent-encoded"),
        ("/a\nb", "percent-encoded"),
        (&too_deep, "at most 32 are allowed"),
        (&too_long, "at most 1024 are allowed"),
        (&name, "a letter of a-z"),
    ] {
        let said = path("spec.path", bad).expect_err(bad).to_string();
        assert!(said.contains(why) && said.starts_with("spec.path"), "{bad}: {said}");
    }
}

#[test]
fn what_is_the_platforms_own() {
    for own in [
        "/function",
        "/function/x",
        "/system/",
        "/v1/functions",
        "/metrics",
        "/.well-known/acme-challenge",
        "/.well-known/acme-challenge/x",
    ] {
        assert!(reserved(own), "{own}");
        let text = said(&format!(r#"{{"path": "{own}"}}"#));
        assert!(text.contains("the platform's own") && text.starts_with("spec.route[0].path"), "{text}");
        assert_eq!(rule(&format!(r#"{{"path": "{own}", "host": "a.example.com"}}"#)).validate("x"), Ok(()));
    }
    for free in
        ["/", "/*", "/functions", "/{v1}", "/V1", "/.well-known/x", "/.well-known/acme-challenges", "/a/v1", "//v1"]
    {
        assert!(!reserved(free), "{free}");
    }
    let inherited = |json: &str| serde_json::from_str::<RouteSpec>(json).unwrap().validate();
    let rules = r#""rules": [{"path": "/v1/*", "function": "f"}]"#;
    assert_eq!(inherited(&format!(r#"{{"host": "a.example.com", {rules}}}"#)), Ok(()));
    assert!(inherited(&format!("{{{rules}}}")).unwrap_err().to_string().starts_with("spec.rules[0].path: `/v1/*`"));
    assert!(inherited("{}").unwrap_err().to_string().contains("no rules"));
    assert!(inherited(r#"{"rules": [{}]}"#).unwrap_err().to_string().contains("leads nowhere"));
    assert!(inherited(&format!(r#"{{"host": "a", {rules}}}"#)).unwrap_err().to_string().starts_with("spec.host"));
    assert!(
        inherited(&format!(r#"{{"cors": {{}}, {rules}}}"#)).unwrap_err().to_string().starts_with("spec.cors.origins")
    );
}

#[test]
fn methods_are_those_of_functions() {
    assert_eq!(rule(r#"{"methods": ["GET", "POST", "HEAD"]}"#).validate("x"), Ok(()));
    for bad in ["get", "CONNECT", "TRACE", "", "GET ", "*"] {
        let text = said(&format!(r#"{{"methods": ["{bad}"]}}"#));
        assert!(text.starts_with("spec.route[0].methods: `") && text.contains("GET, POST"), "{text}");
    }
    assert!(said(r#"{"methods": ["GET", "GET"]}"#).contains("twice"));
}

#[test]
fn cors_does_not_contradict_itself() {
    for good in [
        r#"{"origins": ["*"]}"#,
        r#"{"origins": ["https://app.example.com", "http://localhost:3000", "http://[::1]:8080", "app://x"], "credentials": true,
            "methods": ["GET"], "headers": ["X-One", "content-type"], "expose": ["ETag"], "maxAge": "24h"}"#,
    ] {
        assert_eq!(rule(&format!(r#"{{"cors": {good}}}"#)).validate("x"), Ok(()), "{good}");
    }
    let many = format!(r#"{{"origins": [{}]}}"#, vec![r#""*""#; ENTRIES + 1].join(","));
    for (bad, why) in [
        ("{}", "cors.origins: nobody"),
        (r#"{"origins": ["https://app.example.com/"]}"#, "is no origin"),
        (r#"{"origins": ["https://App.example.com"]}"#, "is no origin"),
        (r#"{"origins": ["https://*.example.com"]}"#, "is no origin"),
        (r#"{"origins": ["app.example.com"]}"#, "is no origin"),
        (r#"{"origins": ["null"]}"#, "is no origin"),
        (r#"{"origins": ["https://"]}"#, "is no origin"),
        (r#"{"origins": ["https://a:0"]}"#, "is no origin"),
        (r#"{"origins": ["https://a:x"]}"#, "is no origin"),
        (r#"{"origins": ["https://a:+1"]}"#, "is no origin"),
        (r#"{"origins": ["https://[x]"]}"#, "is no origin"),
        (r#"{"origins": ["https://a b"]}"#, "is no origin"),
        (r#"{"origins": ["*"], "credentials": true}"#, "cors.credentials: with the origin `*`"),
        (r#"{"origins": ["https://a"], "credentials": true, "expose": ["*"]}"#, "cors.expose: `*` means nothing"),
        (r#"{"origins": ["*"], "headers": ["a b"]}"#, "cors.headers: `a b`"),
        (r#"{"origins": ["*"], "methods": ["get"]}"#, "cors.methods: `get`"),
        (r#"{"origins": ["*"], "maxAge": "25h"}"#, "cors.maxAge: 25h"),
        (&many, "at most 64"),
    ] {
        let text = said(&format!(r#"{{"cors": {bad}}}"#));
        assert!(text.contains(why), "{bad}: {text}");
    }
}
