//! Hosts and paths that lead to functions: in manifests, on the command line, and in calls.

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::platform::{Answer, Platform};

/// A function that answers with its word, the path it sees and the parameter `id`.
fn echo(platform: &Platform, name: &str) {
    platform.file(
        &format!("{name}.py"),
        &format!(
            "def handle(event, context):\n    h = event.headers\n    return '{name} ' + event.path + ' ' + h.get('x-taper-param-id', '-')\n"
        ),
    );
}

fn function(name: &str, more: &str) -> String {
    format!(
        "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {{name: {name}}}\nspec:\n  source: {name}.py\n{more}"
    )
}

fn route(name: &str, spec: &str) -> String {
    format!("apiVersion: taper.dev/v1alpha1\nkind: Route\nmetadata: {{name: {name}}}\nspec:\n{spec}")
}

fn call(platform: &Platform, method: &str, host: &str, path: &str) -> Answer {
    platform.request(method, path, &[("host", host)], b"")
}

const SHOP: &str = "  host: shop.example.com\n  rules:\n  - {path: '/users/{id}', methods: [GET], function: users}\n  - {path: /*, function: front}\n";

#[test]
fn one_file_has_functions_and_the_routes_to_them() {
    let platform = Platform::start();
    echo(&platform, "users");
    echo(&platform, "front");
    // The route stands first, and leads to what only comes after it.
    let own = "  route: {host: front.example.com, path: /only/*, strip: true}\n";
    let text = [route("shop", SHOP), function("users", ""), function("front", own)].join("---\n");
    let file = platform.file("all.yaml", &text);
    let said = platform.ok(&["deploy", "-f", &file]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[0].ends_with("/function/users") && lines[2] == "route shop.default applied", "{said}");

    assert_eq!(call(&platform, "GET", "shop.example.com", "/users/7").text(), "users /users/7 7");
    assert_eq!(call(&platform, "POST", "SHOP.example.com:80", "/x").text(), "front /x -");
    assert_eq!(call(&platform, "GET", "front.example.com", "/only/y").text(), "front /y -");
    assert_eq!(call(&platform, "GET", "front.example.com", "/other").status, 404);
    assert_eq!(call(&platform, "GET", "users.default.localhost", "/function/front").text(), "users /function/front -");
    assert_eq!(platform.call("users", b"").status, 200, "the path of the platform's own is there as well");

    let shown = platform.ok(&["list", "routes"]);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(
        lines[0].starts_with("NAME  HOST") && lines[1].starts_with("shop  shop.example.com  /users/{id}  GET"),
        "{shown}"
    );
    assert!(lines[2].trim_start().starts_with("shop.example.com  /*") && lines[2].ends_with("front"), "{shown}");
    let shown = platform.ok(&["describe", "route/shop"]);
    assert!(shown.contains("/users/{id}") && shown.contains("users"), "{shown}");
    let shown = platform.ok(&["describe", "front"]);
    assert!(
        shown.contains("front.example.com/only/*\n") && shown.contains("shop.example.com/*  (route shop)"),
        "{shown}"
    );

    // What was shown can be sent again.
    let shown = platform.ok(&["describe", "route", "shop", "-o", "yaml"]);
    platform.ok(&["deploy", "-f", &platform.file("shown.yaml", &shown)]);
    assert_eq!(platform.ok(&["deploy", "-f", &file, "--filter", "sh*"]), "route shop.default applied\n");
    assert_eq!(platform.ok(&["delete", "route", "shop"]), "route shop.default deleted\n");
    assert_ne!(call(&platform, "GET", "shop.example.com", "/users/7").status, 200);
    assert!(platform.fails(&["delete", "route/shop"]).contains("shop"));
    assert!(platform.ok(&["list"]).contains("front"), "what a route leads to stays");
    // The file again, and what it names goes, the route before what it leads to.
    platform.ok(&["deploy", "-f", &file]);
    let said = platform.ok(&["delete", "-f", &file]);
    assert_eq!(said, "route shop.default deleted\nusers.default deleted\nfront.default deleted\n");
    assert_eq!(platform.ok(&["list", "-o", "json"]).trim(), "[]");
    assert_ne!(call(&platform, "GET", "front.example.com", "/only/y").status, 200);
    let said = platform.fails(&["delete", "-f", &file]);
    assert!(said.lines().count() == 3 && said.contains("route shop.default") && said.contains("front"), "{said}");
}

#[test]
fn whoever_looks_or_deletes_is_told_what_belongs_to_it() {
    let platform = Platform::start();
    echo(&platform, "users");
    let spec = "  host: shop.example.com\n  https: redirect\n  rules:\n  - {path: /a/*, function: users, strip: true}\n  - {path: /b, function: users, cors: {origins: ['*']}, https: allow}\n";
    let trigger = "apiVersion: taper.dev/v1alpha1\nkind: Trigger\nmetadata: {name: nightly}\nspec: {function: users, schedule: '@yearly'}\n";
    let text = [trigger.to_owned(), route("shop", spec), function("users", "")].join("---\n");
    let said = platform.ok(&["deploy", "-f", &platform.file("all.yaml", &text)]);
    assert!(said.ends_with("route shop.default applied\ntrigger nightly.default applied\n"), "{said}");
    let shown = platform.ok(&["describe", "route", "shop"]);
    let with: Vec<&str> = shown.lines().filter_map(|line| line.split_once("users  ")).map(|(_, with)| with).collect();
    assert_eq!(with, ["   strip, https redirect", "   cors *, https allow"], "{shown}");
    for (arguments, words) in [
        (&["describe", "route"][..], "if a route is meant, say which: `route NAME`"),
        (&["delete", "trigger"], "if a trigger is meant, say which: `trigger NAME`"),
        (&["describe", "route/shpo"], "did you mean `shop`?"),
        (&["trigger", "delete", "nigthly"], "did you mean `nightly`?"),
        (&["delete", "user"], "did you mean `users`?"),
    ] {
        let said = platform.fails(arguments);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    let out = platform.taper(&["delete", "users"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    assert!(out.status.success() && lines.len() == 2, "{said}");
    assert!(lines[0].starts_with("route shop still leads to users, which is gone"), "{said}");
    assert!(lines[1].starts_with("trigger nightly still calls users, which is gone"), "{said}");
}

#[test]
fn a_file_that_is_wrong_changes_nothing() {
    let platform = Platform::start();
    echo(&platform, "users");
    echo(&platform, "front");
    for (from, to, words) in [
        ("kind: Route", "kind: Ruote", "kind: `Ruote` is not known here; write `Function`, `Route` or `Trigger`"),
        ("methods: [GET]", "method: [GET]", "unknown field `method`"),
        ("function: users}", "tag: blue}", "spec.rules[0].function: the rule leads nowhere"),
        ("kind: Function", "knid: Function", "unknown field `knid`"),
        ("source: users.py", "source: nowhere.py", "nowhere.py"),
        ("path: '/users/{id}'", "path: 'users'", "spec.rules[0].path"),
        ("function: front}", "function: frnt}", "spec.rules[1].function: function frnt.default does not exist"),
        ("{name: shop}", "{name: shop, labels: {a: b}}", "a route has no labels"),
    ] {
        let text = [function("users", ""), function("front", ""), route("shop", SHOP)].join("---\n").replace(from, to);
        let said = platform.fails(&["deploy", "-f", &platform.file("all.yaml", &text)]);
        assert!(said.contains(words), "{to}: {said}");
        if said.contains("known") {
            let line = 1 + text.lines().position(|line| line.contains(to)).unwrap();
            assert!(said.contains(&format!("line {line}")), "{to}: {said}");
        }
    }
    assert_eq!(platform.ok(&["list", "-o", "json"]).trim(), "[]");
    let said = platform.fails(&["deploy", "-f", &platform.file("route.yaml", &route("shop", SHOP))]);
    assert!(said.contains("spec.rules[0].function: function users.default does not exist"), "{said}");
    // The platform says the same to whoever asks it.
    let mut body =
        serde_json::json!({"apiVersion": "taper.dev/v1alpha1", "kind": "Route", "metadata": {"name": "shop"}});
    body["spec"] = serde_json::json!({"rules": [{"path": "/x", "function": "users"}]});
    let password = std::fs::read_to_string(platform.data().join("admin-password")).unwrap();
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("admin:{}", password.trim())));
    let path = "/v1/namespaces/default/routes/shop";
    let answer = platform.request("PUT", path, &[("authorization", &basic)], body.to_string().as_bytes());
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("there is no function users.default"), "{}", answer.text());
}

#[test]
fn two_rules_between_which_nothing_can_choose_are_refused_and_both_are_named() {
    let platform = Platform::start();
    echo(&platform, "users");
    echo(&platform, "front");
    platform.ok(&["deploy", &platform.dir.path().join("front.py").display().to_string()]);
    let own = "  route: {host: shop.example.com, path: '/users/{name}'}\n";
    platform.ok(&["deploy", "-f", &platform.file("users.yaml", &function("users", own))]);
    let said = platform.fails(&[
        "deploy",
        "-f",
        &platform.file("shop.yaml", &route("shop", SHOP.replace(", methods: [GET]", "").as_str())),
    ]);
    for words in ["/users/{name}` of function users.default", "/users/{id}` of route shop.default", "change the path"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(platform.ok(&["list", "routes", "-o", "json"]).trim(), "[]");
    assert_eq!(call(&platform, "GET", "shop.example.com", "/users/7").text(), "users /users/7 -");
}

#[test]
fn a_host_belongs_to_one_namespace() {
    let platform = Platform::start();
    platform.ok(&["namespace", "create", "rival"]);
    echo(&platform, "users");
    echo(&platform, "front");
    let own = "  route: {host: shop.example.com, path: /a}\n";
    platform.ok(&["deploy", "-f", &platform.file("users.yaml", &function("users", own))]);
    let theirs = "  route: {host: SHOP.example.com, path: /b}\n";
    let said =
        platform.fails(&["deploy", "-n", "rival", "-f", &platform.file("front.yaml", &function("front", theirs))]);
    assert!(said.contains("shop.example.com") && said.contains("default"), "{said}");
    let said = platform.fails(&["describe", "front.rival"]);
    assert!(said.contains("does not exist"), "nothing was changed: {said}");
    // In the same namespace it is no trouble, and once it is free, for nobody.
    platform.ok(&["deploy", "-f", &platform.file("front.yaml", &function("front", theirs))]);
    platform.ok(&["delete", "users", "front"]);
    platform.ok(&["deploy", "-n", "rival", "-f", &platform.file("front.yaml", &function("front", theirs))]);
    assert_eq!(call(&platform, "GET", "shop.example.com", "/b").text(), "front /b -");
}
