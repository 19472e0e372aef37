//! Tables by example, and against the plainest matcher and the plainest comparison of two rules.

use proptest::prelude::*;

use super::*;
use crate::{
    FunctionName,
    route::{Owner, Rule},
};

fn bound(methods: &[&str], path: &str) -> Arc<Bound> {
    let rule =
        Rule { path: Some(path.into()), methods: methods.iter().map(ToString::to_string).collect(), ..Rule::default() };
    rule.validate("rule").unwrap_or_else(|e| panic!("{e}"));
    let function = FunctionName::parse("hello").unwrap();
    Arc::new(rule.bind(&Owner::Function(function.clone()), function, None))
}

/// `GET,POST /a/*` for each rule; no methods: any.
fn table(rules: &[&str]) -> Table {
    let rules = rules.iter().map(|text| {
        let (methods, path) = text.split_once(' ').unwrap_or(("", text));
        let methods: Vec<&str> = methods.split(',').filter(|m| !m.is_empty()).collect();
        bound(&methods, path)
    });
    Table::build(rules.collect()).unwrap_or_else(|e| panic!("{e}"))
}

/// `PATH name=value`, `405 GET`, or `-`.
fn seen(table: &Table, method: &str, path: &str) -> String {
    match table.find(method, path) {
        Found::Rule(rule) => {
            let mut text = rule.path.clone();
            for (name, value) in rule.parameters(path) {
                text += &format!(" {name}={value}");
            }
            text
        }
        Found::Method(allowed) => format!("405 {}", allowed.join(",")),
        Found::Nothing => "-".into(),
    }
}

#[test]
fn the_most_exact_rule() {
    let t = table(&[
        "/*",
        "/api",
        "/api/*",
        "/users/{id}",
        "/users/*",
        "/users/me",
        "/users/{id}/orders/{order}",
        "/users/{user}/orders",
        "/{a}/b/c",
        "/x/{y}/z",
        "/dir/",
    ]);
    for (path, rule) in [
        ("/", "/*"),
        ("/nothing", "/*"),
        ("//", "/*"),
        ("/api", "/api"),
        ("/api/", "/api/*"),
        ("/api/x/y", "/api/*"),
        ("/apis", "/*"),
        ("/users", "/users/*"),
        ("/users/", "/users/*"),
        ("/users/me", "/users/me"),
        ("/users/7", "/users/{id} id=7"),
        ("/users/a%2Fb", "/users/{id} id=a%2Fb"),
        ("/users/7/", "/users/*"),
        ("/users/7/orders", "/users/{user}/orders user=7"),
        ("/users/me/orders", "/users/{user}/orders user=me"),
        ("/users/7/orders/9", "/users/{id}/orders/{order} id=7 order=9"),
        ("/users/7/orders//", "/users/*"),
        ("/x/b/c", "/{a}/b/c a=x"),
        ("/x/b/z", "/x/{y}/z y=b"),
        ("/api/b/c", "/api/*"),
        ("/dir/", "/dir/"),
        ("/dir", "/*"),
        ("", "-"),
        ("*", "-"),
        ("users/me", "-"),
    ] {
        assert_eq!(seen(&t, "GET", path), rule, "{path}");
    }
    assert_eq!(seen(&Table::default(), "GET", "/"), "-");
}

#[test]
fn methods_decide_between_equals_and_pass_on_what_is_not_theirs() {
    let t = table(&[
        "GET /a/{id}",
        "POST,PUT /a/{id}",
        "/a/*",
        "GET /b",
        "POST /b",
        "HEAD,DELETE /b",
        "GET /c/x",
        "PUT /c/{x}",
        "/d",
        "GET /d",
    ]);
    for (method, path, rule) in [
        ("GET", "/a/1", "/a/{id} id=1"),
        ("HEAD", "/a/1", "/a/{id} id=1"),
        ("PUT", "/a/1", "/a/{id} id=1"),
        ("DELETE", "/a/1", "/a/*"),
        ("PATCH", "/b", "405 DELETE,GET,HEAD,POST"),
        ("PATCH", "/c/x", "405 GET,HEAD,PUT"),
        ("PUT", "/c/x", "/c/{x} x=x"),
        ("PATCH", "/c/y", "405 PUT"),
        ("get", "/b", "405 DELETE,GET,HEAD,POST"),
        ("GET", "/e", "-"),
    ] {
        assert_eq!(seen(&t, method, path), rule, "{method} {path}");
    }
    let methods = |method| match t.find(method, "/b") {
        Found::Rule(rule) => rule.methods.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(methods("HEAD"), ["HEAD", "DELETE"], "its own rule before that of GET");
    let Found::Rule(rule) = t.find("GET", "/d") else { panic!("nothing for /d") };
    assert_eq!(rule.methods, ["GET"], "the one that names it");
}

#[test]
fn ambiguous_pairs_are_named() {
    for (one, other) in [
        ("/a", "/a"),
        ("/a/{x}", "/a/{y}"),
        ("/a/{x}/*", "/a/{y}/*"),
        ("GET /a", "POST,GET /a"),
        ("/", "/"),
        ("/*", "/*"),
    ] {
        let split = |text: &str| {
            let (methods, path) = text.split_once(' ').unwrap_or(("", text));
            bound(&methods.split(',').filter(|m| !m.is_empty()).collect::<Vec<_>>(), path)
        };
        let (one, other) = (split(one), split(other));
        let conflict = Table::build(vec![bound(&[], "/else"), one.clone(), other.clone()]).unwrap_err();
        assert_eq!((&conflict.one, &conflict.other), (&one, &other));
        let text = conflict.to_string();
        assert!(text.contains(&one.to_string()) && text.contains(&other.to_string()), "{text}");
    }
    table(&["/a", "/a/", "/a/*", "/a/{x}", "GET /a", "POST /a", "/{x}", "/*", "/"]);
}

#[test]
fn tables_are_equal_when_their_rules_are() {
    let rules = [bound(&[], "/a"), bound(&["GET"], "/b"), bound(&["POST"], "/b")];
    let build = |order: &[usize]| Table::build(order.iter().map(|i| rules[*i].clone()).collect()).unwrap();
    assert_eq!(build(&[0, 1, 2]), build(&[2, 0, 1]));
    assert_ne!(build(&[0, 1]), build(&[0, 2]));
    assert_ne!(build(&[0]), build(&[]));
}

#[test]
fn what_the_function_sees() {
    for (rule, path, seen) in [
        ("/api/*", "/api/x/y", "/x/y"),
        ("/api/*", "/api/", "/"),
        ("/api/*", "/api", "/"),
        ("/api", "/api", "/"),
        ("/api/users/{id}", "/api/users/7", "/7"),
        ("/{a}/x", "/7/x", "/7/x"),
        ("/*", "//x", "//x"),
        ("/api/*", "/api//x", "//x"),
        ("/a/", "/a/", "/"),
    ] {
        let mut bound = Bound::clone(&bound(&[], rule));
        assert_eq!(bound.seen(path), path);
        bound.strip = true;
        assert_eq!(bound.seen(path), seen, "{rule} {path}");
    }
}

/// How exactly a segment of a rule meets a segment of a path: the less, the more exact.
fn meets(rule: &[&str], path: &[&str]) -> Option<Vec<u8>> {
    match (rule, path) {
        ([], []) => Some(vec![]),
        (["*"], _) => Some(vec![2]),
        ([], _) | (_, []) => None,
        ([r, rule @ ..], [p, path @ ..]) => {
            let this = if r.starts_with('{') { (!p.is_empty()).then_some(1)? } else { (r == p).then_some(0)? };
            let mut all = vec![this];
            all.extend(meets(rule, path)?);
            Some(all)
        }
    }
}

/// The rules of a table again, in the plainest words: all that meet the path, the most exact first.
fn naive<'a>(rules: &'a [Arc<Bound>], method: &str, path: &str) -> Found<'a> {
    fn pieces(text: &str) -> Vec<&str> {
        text.split('/').skip(1).collect()
    }
    let by_method = |rule: &Bound| match () {
        () if rule.methods.iter().any(|m| m == method) => Some(0),
        () if method == "HEAD" && rule.methods.iter().any(|m| m == "GET") => Some(1),
        () if rule.methods.is_empty() => Some(2),
        () => None,
    };
    let mut met: Vec<(Vec<u8>, &'a Arc<Bound>)> =
        rules.iter().filter_map(|r| Some((meets(&pieces(&r.path), &pieces(path))?, r))).collect();
    if !path.starts_with('/') {
        met.clear();
    }
    let best = met.iter().filter_map(|(how, r)| Some((how, by_method(r)?, r))).min_by_key(|(how, by, _)| (*how, *by));
    if let Some((_, _, rule)) = best {
        return Found::Rule(rule);
    }
    let mut allowed: Vec<&str> = met.iter().flat_map(|(_, r)| &r.methods).map(String::as_str).collect();
    if allowed.contains(&"GET") {
        allowed.push("HEAD");
    }
    allowed.sort_unstable();
    allowed.dedup();
    if met.is_empty() { Found::Nothing } else { Found::Method(allowed) }
}

/// Whether two rules are ambiguous, in the plainest words.
fn ambiguous(one: &Bound, other: &Bound) -> bool {
    let shape = |rule: &Bound| {
        let segments = rule.path.split('/').map(|s| if s.starts_with('{') { "{}" } else { s });
        segments.collect::<Vec<_>>().join("/")
    };
    let methods = if one.methods.is_empty() || other.methods.is_empty() {
        one.methods.is_empty() && other.methods.is_empty()
    } else {
        one.methods.iter().any(|m| other.methods.contains(m))
    };
    shape(one) == shape(other) && methods
}

fn rules() -> impl Strategy<Value = Vec<Arc<Bound>>> {
    let segment = prop_oneof![3 => "[ab]", 1 => Just("{}".to_owned())];
    let end = prop_oneof![3 => Just(""), 1 => Just("/"), 2 => Just("/*")];
    let methods = prop_oneof![2 => Just(vec![]), 3 => prop::sample::subsequence(vec!["GET", "POST", "HEAD"], 1..=2)];
    let rule = (prop::collection::vec(segment, 0..4), end, methods, any::<bool>()).prop_map(
        |(segments, end, methods, odd)| {
            let mut path = String::new();
            for (at, segment) in segments.iter().enumerate() {
                let name = format!("{{{}{at}}}", if odd { "x" } else { "y" });
                path += "/";
                path += if segment == "{}" { &name } else { segment };
            }
            path += end;
            bound(&methods, if path.is_empty() { "/" } else { &path })
        },
    );
    prop::collection::vec(rule, 0..14)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn as_the_naive_matcher(rules in rules(), method in "GET|POST|HEAD|PUT", path in "(/[abc]?){0,5}") {
        let mut kept: Vec<Arc<Bound>> = Vec::new();
        for rule in rules {
            if !kept.iter().any(|k| ambiguous(k, &rule)) {
                kept.push(rule);
            }
        }
        let table = Table::build(kept.clone()).unwrap();
        let found = table.find(&method, &path);
        prop_assert_eq!(&found, &naive(&kept, &method, &path));
        if let Found::Rule(rule) = found {
            let both = rule.path.split('/').zip(path.split('/'));
            let named: Vec<(&str, &str)> = both.filter(|(r, _)| r.starts_with('{')).map(|(r, p)| (r.trim_matches(['{', '}']), p)).collect();
            prop_assert_eq!(rule.parameters(&path).collect::<Vec<_>>(), named);
            let (first, rest) = rule.parted(&path);
            prop_assert_eq!([first, rest].concat(), path);
        }
    }

    #[test]
    fn refuses_what_is_ambiguous_and_nothing_else(rules in rules()) {
        let expected = rules.iter().enumerate().find_map(|(at, other)| {
            rules[..at].iter().find(|one| ambiguous(one, other)).map(|one| (one.clone(), other.clone()))
        });
        let refused = Table::build(rules).err().map(|conflict| (conflict.one, conflict.other));
        prop_assert_eq!(refused, expected);
    }

    #[test]
    fn a_rule_that_is_valid_can_be_built_and_found(path in "/([a-z.%*{}/~0-9]|\\{[a-z]\\}/?|\\PC){0,12}") {
        let rule = Rule { path: Some(path.clone()), ..Rule::default() };
        if rule.validate("rule").is_ok() {
            let table = Table::build(vec![bound(&[], &path)]).unwrap();
            let asked = path.replace(['{', '}'], "").replace("/*", "/x/y");
            prop_assert!(matches!(table.find("GET", &asked), Found::Rule(_)), "{} {}", path, asked);
        }
    }
}
