//! Rules and requests: the first line asks (method, host, path), each other one is a rule (methods, host, path; `-` for none). What a
//! table finds is what the plainest matcher finds, in the table of the host that was asked for and nowhere else; two rules are refused when
//! that matcher could not choose; and whatever is read of a host, the template and the rules see one and the same.
#![no_main]

use std::{collections::BTreeMap, sync::Arc};

use libfuzzer_sys::fuzz_target;
use taper_gateway::host::{Templates, read};
use taper_model::{
    FunctionName,
    route::{Bound, Found, Owner, Rule, Table},
};

fuzz_target!(|text: &str| {
    let mut lines = text.lines().map(|line| line.splitn(3, ' ').collect::<Vec<_>>());
    let Some([method, host, path]) = lines.next().as_deref().and_then(|l| <[&str; 3]>::try_from(l).ok()) else {
        return;
    };
    let mut tables: BTreeMap<String, Vec<Arc<Bound>>> = BTreeMap::new();
    for line in lines.take(24) {
        let [methods, host, path] = line[..] else { continue };
        let given = |word: &str| (word != "-").then(|| word.to_owned());
        let methods = given(methods).map(|m| m.split(',').map(str::to_owned).collect()).unwrap_or_default();
        let rule = Rule { host: given(host), path: given(path), methods, ..Rule::default() };
        if rule.validate("rule").is_err() {
            continue;
        }
        let function = FunctionName::parse("hello").expect("a name");
        let bound = Arc::new(rule.bind(&Owner::Function(function.clone()), function, None));
        let table = tables.entry(bound.host.clone()).or_default();
        let ambiguous = table.iter().any(|known| ambiguous(known, &bound));
        let mut all = table.clone();
        all.push(bound);
        match Table::build(all.clone()) {
            Ok(_) => assert!(!ambiguous, "nothing could choose between {all:?}"),
            Err(conflict) => assert!(ambiguous, "{conflict}"),
        }
        if !ambiguous {
            *table = all;
        }
    }
    let Ok(host) = read(host) else { return };
    let templates = Templates::new("localhost", "{name}.{namespace}.{domain}", "{tag}-{name}").expect("the defaults");
    if let Some(named) = templates.function(&host) {
        assert_eq!(*host, format!("{}.{}.localhost", named.label, named.namespace));
        assert!(templates.tagged(named.label).all(|(tag, name)| format!("{tag}-{name}") == named.label));
    }
    // What was read of a host reads as itself, but for the dots that still end it.
    assert!(host.ends_with('.') || read(&host).is_ok_and(|again| again == host));
    let Some(rules) = tables.get(&*host) else { return };
    let table = Table::build(rules.clone()).expect("it was built before");
    match (table.find(method, path), naive(rules, method, path)) {
        (Found::Rule(found), Some(Ok(rule))) => {
            assert!(Arc::ptr_eq(found, rule) && found.host == *host, "{found} and not {rule}");
            assert!(found.parameters(path).all(|(name, value)| !name.is_empty() && !value.contains('/')));
            assert!(path.ends_with(found.seen(path)) || found.seen(path) == "/");
        }
        (Found::Method(allowed), Some(Err(()))) => assert!(!allowed.contains(&method)),
        (Found::Nothing, None) => {}
        (found, naive) => panic!("{found:?} and not {naive:?} for {method} {path}"),
    }
});

fn pieces(path: &str) -> Vec<&str> {
    path.split('/').skip(1).collect()
}

/// How exactly a rule meets a path: the less, the more exact.
fn meets(rule: &[&str], path: &[&str]) -> Option<Vec<u8>> {
    match (rule, path) {
        ([], []) => Some(vec![]),
        (["*"], _) => Some(vec![2]),
        ([], _) | (_, []) => None,
        ([r, rule @ ..], [p, path @ ..]) => {
            let this = match r.starts_with('{') {
                true if p.is_empty() => return None,
                true => 1,
                false if r != p => return None,
                false => 0,
            };
            Some([vec![this], meets(rule, path)?].concat())
        }
    }
}

/// The most exact rule that meets the path and is for the method; an error when some are for other methods only.
fn naive<'a>(rules: &'a [Arc<Bound>], method: &str, path: &str) -> Option<Result<&'a Arc<Bound>, ()>> {
    if !path.starts_with('/') {
        return None;
    }
    let by_method = |rule: &Bound| match () {
        () if rule.methods.iter().any(|m| m == method) => Some(0),
        () if method == "HEAD" && rule.methods.iter().any(|m| m == "GET") => Some(1),
        () if rule.methods.is_empty() => Some(2),
        () => None,
    };
    let met: Vec<_> = rules.iter().filter_map(|r| Some((meets(&pieces(&r.path), &pieces(path))?, r))).collect();
    let best = met.iter().filter_map(|(how, r)| Some(((how, by_method(r)?), *r))).min_by_key(|(how, _)| *how);
    match best {
        Some((_, rule)) => Some(Ok(rule)),
        None => (!met.is_empty()).then_some(Err(())),
    }
}

/// Whether nothing could choose between two rules.
fn ambiguous(one: &Bound, other: &Bound) -> bool {
    let shape = |rule: &Bound| {
        rule.path.split('/').map(|s| if s.starts_with('{') { "{}".into() } else { s.to_owned() }).collect::<Vec<_>>()
    };
    let overlap = match (one.methods.is_empty(), other.methods.is_empty()) {
        (true, true) => true,
        (false, false) => one.methods.iter().any(|m| other.methods.contains(m)),
        _ => false,
    };
    shape(one) == shape(other) && overlap
}
