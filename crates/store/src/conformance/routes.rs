//! The promises about hosts, paths and whose they are.

use taper_model::route::{Found, Route, RouteSpec, Rule};

use super::*;
use crate::{MAX_ROUTE, tables};

pub(super) async fn run(make: &impl Fn() -> Arc<dyn Store>) {
    routes_are_kept_changed_and_removed(&*make()).await;
    tables_follow_from_functions_and_routes(&*make()).await;
    ambiguous_rules_are_refused(&*make()).await;
    a_host_belongs_to_one_namespace(&*make()).await;
    a_wildcard_has_what_is_under_it(&*make()).await;
    a_route_holds_its_namespace(&*make()).await;
    routes_that_cannot_be_kept_are_refused(&*make()).await;
}

fn rule(host: &str, path: &str) -> Rule {
    let host = Some(host).filter(|h| !h.is_empty()).map(str::to_owned);
    Rule { host, path: Some(path.into()), ..Rule::default() }
}

/// `NAME.NAMESPACE` with rules that all lead to `function`.
fn route(of: &str, function: &str, rules: &[(&str, &str)]) -> Route {
    let FunctionName { namespace, name: own } = named(of);
    let lead = |(host, path): &(&str, &str)| Rule { function: Some(name(function)), ..rule(host, path) };
    let spec = RouteSpec { rules: rules.iter().map(lead).collect(), ..RouteSpec::default() };
    Route { namespace, name: own, spec, created_ms: 7 }
}

fn inline(function: &str, rules: &[(&str, &str)]) -> Deploy {
    let route = rules.iter().map(|(host, path)| rule(host, path)).collect();
    Deploy { routing: Routing { route, ..Routing::default() }, ..deploy(function, "1") }
}

/// The namespaces `team` and `default`, each with the functions `a` and `b`.
async fn peopled(store: &dyn Store) {
    store.put_namespace(bare(&name("team")), Put::Create).await.expect("create");
    for function in ["a", "b", "a.team", "b.team"] {
        published(store, deploy(function, "1")).await;
    }
}

/// Who is asked, as `OWNER -> FUNCTION`. Also holds what was changed step by step against what all of it makes.
fn asked(store: &dyn Store, host: &str, path: &str) -> String {
    let snapshot = now(store);
    assert_eq!(snapshot.tables, tables::all(&snapshot.functions, &snapshot.routes), "the tables follow");
    assert!(snapshot.tables.values().all(|table| !table.rules().is_empty()), "no table of nothing");
    match snapshot.tables.get(&host.to_owned()).map(|table| table.find("GET", path)) {
        Some(Found::Rule(rule)) => format!("{} -> {}", rule.owner, rule.function),
        _ => "nobody".into(),
    }
}

/// Refused, naming each of these; and nothing was changed.
async fn taken(store: &dyn Store, before: &Snapshot, result: Result<(), Error>, parts: &[&str]) {
    let text = match result {
        Err(e @ Error::Taken(_)) => e.to_string(),
        other => panic!("{parts:?} are taken: {other:?}"),
    };
    assert!(parts.iter().all(|part| text.contains(part)), "{parts:?}: {text}");
    assert_eq!(*now(store), *before, "what is refused changes nothing");
}

async fn routes_are_kept_changed_and_removed(store: &dyn Store) {
    peopled(store).await;
    let shop = route("shop", "a", &[("shop.example.com", "/x")]);
    let mut watch = store.snapshot();
    store.put_route(shop.clone()).await.expect("put");
    assert!(watch.has_changed().expect("the store lives"));
    watch.mark_unchanged();
    store.put_route(Route { created_ms: 9, ..shop.clone() }).await.expect("put");
    assert!(!watch.has_changed().expect("the store lives"), "the same again");
    assert_eq!(now(store).route(&shop.namespace, &shop.name).map(|r| (**r).clone()), Some(shop.clone()));
    let other = route("shop.team", "b", &[("team.example.com", "/x")]);
    store.put_route(other.clone()).await.expect("each namespace has its own");
    assert_eq!(now(store).routes.len(), 2);
    let changed =
        Route { created_ms: 9, ..route("shop", "b", &[("shop.example.com", "/y"), ("new.example.com", "/*")]) };
    store.put_route(changed.clone()).await.expect("put");
    let kept = now(store).route(&shop.namespace, &shop.name).map(|r| (**r).clone());
    assert_eq!(kept, Some(Route { created_ms: 7, ..changed }), "it was made when it was made");
    for (host, path, expect) in [
        ("shop.example.com", "/x", "nobody"),
        ("shop.example.com", "/y", "route shop.default -> b.default"),
        ("new.example.com", "/z", "route shop.default -> b.default"),
        ("team.example.com", "/x", "route shop.team -> b.team"),
    ] {
        assert_eq!(asked(store, host, path), expect, "{host}{path}");
    }
    store.delete_route(&shop.namespace, &shop.name).await.expect("delete");
    let again = store.delete_route(&shop.namespace, &shop.name).await;
    assert!(matches!(again, Err(Error::NotFound(_))), "{again:?}");
    assert_eq!(asked(store, "shop.example.com", "/y"), "nobody");
    assert_eq!((now(store).routes.len(), now(store).tables.len()), (1, 1));
}

async fn tables_follow_from_functions_and_routes(store: &dyn Store) {
    peopled(store).await;
    published(store, inline("a", &[("Shop.Example.COM", "/"), ("", "/a/*")])).await;
    published(store, inline("b", &[("", "/b/{x}")])).await;
    store.put_route(route("r", "a", &[("shop.example.com", "/r"), ("", "/r")])).await.expect("put");
    let all = [
        ("shop.example.com", "/", "function a.default -> a.default"),
        ("", "/a/1", "function a.default -> a.default"),
        ("", "/b/1", "function b.default -> b.default"),
        ("shop.example.com", "/r", "route r.default -> a.default"),
        ("", "/r", "route r.default -> a.default"),
    ];
    for (host, path, expect) in all {
        assert_eq!(asked(store, host, path), expect, "{host}{path}");
    }
    let before = now(store);
    let table = |snapshot: &Snapshot, host: &str| Arc::clone(snapshot.tables.get(&host.to_owned()).expect("a table"));
    published(
        store,
        Deploy { routing: inline("a", &[("Shop.Example.COM", "/"), ("", "/a/*")]).routing, ..deploy("a", "2") },
    )
    .await;
    published(store, inline("b", &[("", "/b/{x}"), ("b.example.com", "/")])).await;
    let after = now(store);
    for host in ["", "shop.example.com"] {
        assert!(Arc::ptr_eq(&table(&before, host), &table(&after, host)), "`{host}` was not touched");
    }
    store.delete(&named("a")).await.expect("delete");
    for (host, path, expect) in all {
        let expect = if expect.starts_with("function a") { "nobody" } else { expect };
        assert_eq!(asked(store, host, path), expect, "{host}{path} without a: its own rules go, the route stays");
    }
    published(store, deploy("b", "1")).await;
    assert_eq!(asked(store, "", "/b/1"), "nobody", "a deploy without rules has none");
    store.delete_route(&name("default"), &name("r")).await.expect("delete");
    assert!(now(store).tables.is_empty());
}

async fn ambiguous_rules_are_refused(store: &dyn Store) {
    peopled(store).await;
    published(store, inline("a", &[("", "/users/{id}"), ("shop.example.com", "/x")])).await;
    store.put_route(route("r", "b", &[("", "/r")])).await.expect("put");
    let before = now(store);
    let parts = ["/users/{id}", "/users/{name}", "function a.default"];
    let one = store.publish(inline("b", &[("", "/users/{name}")])).await.map(drop);
    taken(store, &before, one, &[&parts[..], &["function b.default"]].concat()).await;
    let one = store.publish(inline("new", &[("", "/users/{name}")])).await.map(drop);
    taken(store, &before, one, &[&parts[..], &["function new.default"]].concat()).await;
    let one = store.put_route(route("other", "b", &[("", "/users/{name}")])).await;
    taken(store, &before, one, &[&parts[..], &["route other.default"]].concat()).await;
    let one = store.put_route(route("r", "b", &[("", "/users/{name}"), ("", "/r")])).await;
    taken(store, &before, one, &[&parts[..], &["route r.default"]].concat()).await;
    let one = store.put_route(route("same.team", "b", &[("", "/t"), ("", "/t")])).await;
    taken(store, &before, one, &["/t", "route same.team"]).await;
    published(store, inline("a", &[("", "/other")])).await;
    store.put_route(route("r", "b", &[("", "/users/{name}")])).await.expect("it is free now");
    assert_eq!(asked(store, "", "/users/7"), "route r.default -> b.default");
}

async fn a_host_belongs_to_one_namespace(store: &dyn Store) {
    peopled(store).await;
    published(store, inline("a", &[("shop.example.com", "/a"), ("alone", "/")])).await;
    store.put_route(route("r", "b", &[("shop.example.com", "/b")])).await.expect("the same namespace");
    let before = now(store);
    for host in ["shop.example.com", "SHOP.example.com", "alone"] {
        let lower = host.to_ascii_lowercase();
        let parts = [&*lower, "namespace `default`", "function a.default"];
        let one = store.put_route(route("r.team", "a", &[("free.example.com", "/"), (host, "/t")])).await;
        taken(store, &before, one, &parts).await;
        let one = store.publish(inline("a.team", &[(host, "/t")])).await.map(drop);
        taken(store, &before, one, &parts).await;
    }
    store.put_route(route("r.team", "a", &[("", "/team"), ("other.example.com", "/t")])).await.expect("nobody's");
    store.delete(&named("a")).await.expect("delete");
    let before = now(store);
    let one = store.put_route(route("r.team", "a", &[("shop.example.com", "/t")])).await;
    taken(store, &before, one, &["shop.example.com", "route r.default"]).await;
    store.delete_route(&name("default"), &name("r")).await.expect("delete");
    store.put_route(route("r.team", "a", &[("shop.example.com", "/t")])).await.expect("nobody has it any more");
    let before = now(store);
    let one = store.publish(inline("b", &[("shop.example.com", "/b")])).await.map(drop);
    taken(store, &before, one, &["shop.example.com", "namespace `team`", "route r.team"]).await;
}

async fn a_wildcard_has_what_is_under_it(store: &dyn Store) {
    peopled(store).await;
    store.put_route(route("w", "a", &[("*.example.com", "/*")])).await.expect("put");
    store
        .put_route(route("free.team", "a", &[("example.com", "/"), ("a.b.example.com", "/"), ("a.example.org", "/")]))
        .await
        .expect("a wildcard is for one name");
    let before = now(store);
    for host in ["a.example.com", "*.example.com", "A.EXAMPLE.com"] {
        let one = store.publish(inline("a.team", &[(host, "/t")])).await.map(drop);
        taken(
            store,
            &before,
            one,
            &[&host.to_ascii_lowercase(), "namespace `default`", "*.example.com", "route w.default"],
        )
        .await;
    }
    let one = store.put_route(route("w", "a", &[("*.example.com", "/*"), ("*.example.org", "/*")])).await;
    taken(store, &before, one, &["*.example.org", "namespace `team`", "a.example.org", "route free.team"]).await;
    store.put_route(route("w", "a", &[("*.example.com", "/*"), ("b.example.com", "/b")])).await.expect("its own");
    store.put_route(route("w", "a", &[("b.example.com", "/b")])).await.expect("put");
    store.put_route(route("t.team", "a", &[("a.example.com", "/")])).await.expect("the wildcard is gone");
    let before = now(store);
    let one = store.put_route(route("w", "a", &[("*.example.com", "/*"), ("b.example.com", "/b")])).await;
    taken(store, &before, one, &["*.example.com", "a.example.com", "route t.team"]).await;
}

async fn a_route_holds_its_namespace(store: &dyn Store) {
    let (team, default) = (name("team"), name("default"));
    let missing = store.put_route(route("r.team", "a", &[("", "/")])).await;
    assert!(matches!(&missing, Err(Error::NotFound(what)) if what.contains("namespace `team`")), "{missing:?}");
    peopled(store).await;
    let missing = store.put_route(route("r.team", "nobody", &[("", "/")])).await;
    assert!(matches!(&missing, Err(Error::NotFound(what)) if what.contains("nobody.team")), "{missing:?}");
    store.put_route(route("r.team", "a", &[("", "/")])).await.expect("put");
    for function in ["a.team", "b.team"] {
        store.delete(&named(function)).await.expect("delete");
    }
    let held = store.delete_namespace(&team).await;
    assert!(matches!(&held, Err(Error::InUse(text)) if text.contains("the route `r`")), "{held:?}");
    assert!(now(store).route(&default, &name("r")).is_none());
    store.delete_route(&team, &name("r")).await.expect("delete");
    store.delete_namespace(&team).await.expect("it is empty now");
}

async fn routes_that_cannot_be_kept_are_refused(store: &dyn Store) {
    peopled(store).await;
    let before = now(store);
    let large = store.put_route(route("r", "a", &[("", &"/x".repeat(MAX_ROUTE))])).await;
    assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    let mut nowhere = route("r", "a", &[("", "/x"), ("", "/y")]);
    nowhere.spec.rules[1].function = None;
    let nowhere = store.put_route(nowhere).await;
    assert!(matches!(&nowhere, Err(Error::Refused(text)) if text.contains("rule 1")), "{nowhere:?}");
    assert_eq!(now(store), before);
}
