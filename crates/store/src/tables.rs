//! Which rules each host has, as commands change it: only the hosts that a command touches are built anew. Also whose a host is.
//! Pure, and shared by both stores.
//!
//! A host belongs to the namespace whose rules are there; so does, with `*.example.com`, every `NAME.example.com`. No order of arrival
//! has to be remembered for that: a second namespace is refused as long as the first one has a rule. Rules without a host are for what
//! is nobody's, and everybody may have some.

use std::{collections::BTreeMap, sync::Arc};

use taper_model::{
    Function, FunctionName, Name,
    route::{Bound, Owner, Route, Rule, Table},
};

use crate::{Error, Functions, Routes, Tables};

/// The tables when a function is another from now on, or gone.
pub(crate) fn with_function(
    tables: &Tables,
    name: &FunctionName,
    before: Option<&Function>,
    after: Option<&Function>,
) -> Result<Tables, Error> {
    let said =
        |function: Option<&Function>| -> Vec<Rule> { function.map_or_else(Vec::new, |f| f.routing.route.clone()) };
    let same = match (before, after) {
        (Some(before), Some(after)) => {
            Arc::ptr_eq(&before.routing, &after.routing) || before.routing.route == after.routing.route
        }
        (one, other) => one.or(other).is_none_or(|f| f.routing.route.is_empty()),
    };
    if same {
        return Ok(tables.clone());
    }
    let owner = Owner::Function(name.clone());
    let bound = |rules: Vec<Rule>| rules.iter().map(|r| r.bind(&owner, name.clone(), None)).collect();
    changed(tables, &owner, bound(said(before)), bound(said(after)))
}

/// The tables when a route is another from now on, or gone.
pub(crate) fn with_route(
    tables: &Tables,
    key: &(Name, Name),
    before: Option<&Route>,
    after: Option<&Route>,
) -> Result<Tables, Error> {
    let owner = Owner::Route(key.0.clone(), key.1.clone());
    let bound = |route: Option<&Route>| route.map_or_else(Vec::new, of_route);
    changed(tables, &owner, bound(before), bound(after))
}

/// The tables of everything. Rules that could not be there beside others, which nothing but a hand in the database can have brought,
/// are left out and named in the log: the others go on.
pub(crate) fn all(functions: &Functions, routes: &Routes) -> Tables {
    let mut hosts = BTreeMap::<String, Vec<Arc<Bound>>>::new();
    let inline = functions.values().flat_map(|function| {
        let owner = Owner::Function(function.name.clone());
        let bind = move |rule: &Rule| rule.bind(&owner, function.name.clone(), None);
        function.routing.route.iter().map(bind)
    });
    for rule in inline.chain(routes.values().flat_map(|route| of_route(route))) {
        hosts.entry(rule.host.clone()).or_default().push(Arc::new(rule));
    }
    let whole = |mut rules: Vec<Arc<Bound>>| loop {
        match Table::build(rules.clone()) {
            Ok(table) => return Arc::new(table),
            Err(conflict) => {
                tracing::warn!("{conflict}; until then only the first is served");
                rules.retain(|rule| !Arc::ptr_eq(rule, &conflict.other));
            }
        }
    };
    hosts.into_iter().map(|(host, rules)| (host, whole(rules))).collect()
}

fn of_route(route: &Route) -> Vec<Bound> {
    let owner = Owner::Route(route.namespace.clone(), route.name.clone());
    let bind = |rule: &Rule| {
        let function = FunctionName::new(route.namespace.clone(), rule.function.clone()?);
        Some(rule.bind(&owner, function, Some(&route.spec)))
    };
    route.spec.rules.iter().filter_map(bind).collect()
}

/// One owner's rules were these and are those from now on.
fn changed(tables: &Tables, owner: &Owner, before: Vec<Bound>, after: Vec<Bound>) -> Result<Tables, Error> {
    // In their order, so that of several refusals the same one is given each time.
    let mut hosts = BTreeMap::<String, [Vec<Bound>; 2]>::new();
    for (side, rules) in [before, after].into_iter().enumerate() {
        for rule in rules {
            hosts.entry(rule.host.clone()).or_default()[side].push(rule);
        }
    }
    let mut next = tables.clone();
    for (host, [before, after]) in hosts.into_iter().filter(|(_, [before, after])| before != after) {
        if let Some(rule) = after.first().filter(|_| before.is_empty()) {
            free(tables, &host, rule.namespace())?;
        }
        let there = tables.get(&host).map_or(&[][..], |table| table.rules());
        let others = there.iter().filter(|rule| rule.owner != *owner).cloned();
        let rules: Vec<_> = others.chain(after.into_iter().map(Arc::new)).collect();
        if rules.is_empty() {
            next.remove(&host);
        } else {
            let table = Table::build(rules).map_err(|conflict| Error::Taken(conflict.to_string()))?;
            next.insert(host, Arc::new(table));
        }
    }
    Ok(next)
}

/// Refuses a host that another namespace has.
fn free(tables: &Tables, host: &str, namespace: &Name) -> Result<(), Error> {
    let Some((first, rest)) = host.split_once('.') else {
        let alone = tables.get(&host.to_owned()).filter(|_| !host.is_empty());
        return alone.map_or(Ok(()), |table| mine(table, host, namespace));
    };
    if let Some(table) = tables.get(&host.to_owned()) {
        return mine(table, host, namespace);
    }
    if first != "*" {
        let wildcard = tables.get(&format!("*.{rest}"));
        return wildcard.map_or(Ok(()), |table| mine(table, host, namespace));
    }
    // Only when a wildcard comes that was not there.
    let under = tables.iter().filter(|(other, _)| other.split_once('.').is_some_and(|(_, parent)| parent == rest));
    // The same answer whatever came before.
    let mut under: Vec<_> = under.collect();
    under.sort_unstable_by_key(|(other, _)| *other);
    under.into_iter().try_for_each(|(_, table)| mine(table, host, namespace))
}

/// Refuses a table of another namespace. All rules of one host are of one.
fn mine(table: &Table, host: &str, namespace: &Name) -> Result<(), Error> {
    let Some(rule) = table.rules().iter().find(|rule| rule.namespace() != namespace) else { return Ok(()) };
    Err(Error::Taken(format!(
        "the host `{host}` belongs to namespace `{}`, which has {rule}; choose another host, or have that removed first",
        rule.namespace()
    )))
}
