//! Functions, routes, triggers and namespaces as rows. Decides nothing: writes down the difference between a function before and after, and reads
//! back what was written.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use rusqlite::{Connection, Row, params};
use serde::{Serialize, de::DeserializeOwned};
use taper_model::{
    Function, FunctionName, Name, Namespace, RevisionId, RevisionState, revision::Entry, route::Route,
    traffic::Routing, trigger::Trigger,
};

use super::secrets;
use crate::{
    Error, Functions, Routes, Snapshot, Triggers,
    change::{self, Attached, Record},
    tables,
};

/// Everything there is. What is written meanwhile is not seen in part when this is in a transaction.
pub(super) fn snapshot(db: &Connection, path: &Path) -> Result<Snapshot, Error> {
    let (functions, routes) = (functions(db, path)?, routes(db, path)?);
    Ok(Snapshot {
        version: 0,
        tables: tables::all(&functions, &routes),
        functions,
        routes,
        triggers: triggers(db, path)?,
        namespaces: Arc::new(namespaces(db, path)?),
        secrets: secrets::versions(db, path)?,
    })
}

/// Every function.
fn functions(db: &Connection, path: &Path) -> Result<Functions, Error> {
    let sql = Error::sql(path);
    let mut statement = db
        .prepare(
            "SELECT f.namespace, f.name, f.scale, f.created_ms, r.number, r.state, r.why, r.record,
                    f.routing, f.held, f.shift
             FROM function f LEFT JOIN revision r USING (namespace, name)
             ORDER BY f.namespace, f.name, r.number",
        )
        .map_err(&sql)?;
    let mut rows = statement.query(()).map_err(&sql)?;
    let mut functions = Functions::default();
    let mut current: Option<Function> = None;
    while let Some(row) = rows.next().map_err(&sql)? {
        let (namespace, name) = (text(row, 0, path)?, text(row, 1, path)?);
        let corrupt =
            |detail: String| Error::corrupt(path, format!("function `{name}` in namespace `{namespace}`: {detail}"));
        let same = |f: &Function| f.name.name.as_str() == name && f.name.namespace.as_str() == namespace;
        if !current.as_ref().is_some_and(same) {
            keep(&mut functions, current.take());
        }
        let function = match &mut current {
            Some(function) => function,
            None => current.insert(function(row, namespace, name).map_err(corrupt)?),
        };
        let entry = entry(row, &function.name).map_err(corrupt)?;
        function.revisions.push(entry);
    }
    keep(&mut functions, current);
    Ok(functions)
}

/// Writes down what became of a function.
pub(super) fn write(
    db: &Connection,
    path: &Path,
    name: &FunctionName,
    before: Option<&Function>,
    after: Option<&Function>,
) -> Result<(), Error> {
    let sql = Error::sql(path);
    let (ns, name) = (name.namespace.as_str(), name.name.as_str());
    let run = |text: &str, values: &[&dyn rusqlite::ToSql]| {
        db.prepare_cached(text).and_then(|mut s| s.execute(values)).map(drop).map_err(&sql)
    };
    let Some(after) = after else {
        return run("DELETE FROM function WHERE namespace = ?1 AND name = ?2", params![ns, name]);
    };
    let beside = |f: &Function| (f.scale, Arc::clone(&f.routing), f.held.clone(), f.shift.clone());
    if before.map(beside) != Some(beside(after)) {
        let refuse = |e: serde_json::Error| Error::Refused(format!("function {}: {e}", after.name));
        let routing = serde_json::to_string(&*after.routing).map_err(refuse)?;
        let (held, shift) = (json(after.held.as_ref()).map_err(refuse)?, json(after.shift.as_ref()).map_err(refuse)?);
        let text = "INSERT INTO function (namespace, name, scale, created_ms, routing, held, shift)
                    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                    ON CONFLICT (namespace, name) DO UPDATE SET
                    scale = excluded.scale, routing = excluded.routing, held = excluded.held, shift = excluded.shift";
        run(text, params![ns, name, after.scale, time(after.created_ms), routing, held, shift])?;
    }
    for gone in before.into_iter().flat_map(|b| &b.revisions).map(number).filter(|n| after.entry(*n).is_none()) {
        let text = "DELETE FROM revision WHERE namespace = ?1 AND name = ?2 AND number = ?3";
        run(text, params![ns, name, gone])?;
    }
    for entry in &after.revisions {
        let (state, why) = state_columns(&entry.state);
        let key = number(entry);
        match before.and_then(|b| b.entry(key)) {
            None => {
                let record = Record::write(&entry.revision);
                let record = record.map_err(|e| Error::Refused(format!("revision {}: {e}", entry.revision.id)))?;
                let text = "INSERT INTO revision (namespace, name, number, state, why, record)
                            VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
                run(text, params![ns, name, key, state, why, record])?;
            }
            Some(old) if old.state != entry.state => {
                let text = "UPDATE revision SET state = ?4, why = ?5
                            WHERE namespace = ?1 AND name = ?2 AND number = ?3";
                run(text, params![ns, name, key, state, why])?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Every route.
fn routes(db: &Connection, path: &Path) -> Result<Routes, Error> {
    let mut routes = Routes::default();
    resources(db, path, "route", |namespace, name, created_ms, spec| {
        let route = Route { namespace: namespace.clone(), name: name.clone(), spec, created_ms };
        routes.insert((namespace, name), Arc::new(route));
    })?;
    Ok(routes)
}

/// Keeps a route, instead of what it was before.
pub(super) fn put_route(db: &Connection, path: &Path, route: &Route) -> Result<(), Error> {
    put_resource(db, path, "route", [&route.namespace, &route.name], route.created_ms, &change::route_text(route)?)
}

/// Removes a route.
pub(super) fn delete_route(db: &Connection, path: &Path, key: &(Name, Name)) -> Result<(), Error> {
    delete_resource(db, path, "route", key)
}

/// Every trigger.
fn triggers(db: &Connection, path: &Path) -> Result<Triggers, Error> {
    let mut triggers = Triggers::default();
    resources(db, path, "trigger", |namespace, name, created_ms, spec| {
        let trigger = Trigger { namespace: namespace.clone(), name: name.clone(), spec, created_ms };
        triggers.insert((namespace, name), Arc::new(trigger));
    })?;
    Ok(triggers)
}

/// Keeps a trigger, instead of what it was before.
pub(super) fn put_trigger(db: &Connection, path: &Path, trigger: &Trigger) -> Result<(), Error> {
    let record = change::trigger_text(trigger)?;
    put_resource(db, path, "trigger", [&trigger.namespace, &trigger.name], trigger.created_ms, &record)
}

/// Removes a trigger.
pub(super) fn delete_trigger(db: &Connection, path: &Path, key: &(Name, Name)) -> Result<(), Error> {
    delete_resource(db, path, "trigger", key)
}

/// Hands over each row of a table of resources: the two names, when it was made, and its spec.
fn resources<S: DeserializeOwned>(
    db: &Connection,
    path: &Path,
    table: &str,
    mut each: impl FnMut(Name, Name, u64, S),
) -> Result<(), Error> {
    let sql = Error::sql(path);
    let query = format!("SELECT namespace, name, created_ms, record FROM {table}");
    let mut statement = db.prepare(&query).map_err(&sql)?;
    let mut rows = statement.query(()).map_err(&sql)?;
    while let Some(row) = rows.next().map_err(&sql)? {
        let (namespace, name, record) = (text(row, 0, path)?, text(row, 1, path)?, text(row, 3, path)?);
        let corrupt = |e: String| Error::corrupt(path, format!("{table} `{name}` in namespace `{namespace}`: {e}"));
        let word = |text: &str| Name::new(text).map_err(|e| corrupt(e.to_string()));
        let spec = serde_json::from_str(record).map_err(|e| corrupt(e.to_string()))?;
        let created_ms = u64::try_from(row.get::<_, i64>(2).map_err(&sql)?).unwrap_or(0);
        each(word(namespace)?, word(name)?, created_ms, spec);
    }
    Ok(())
}

fn put_resource(
    db: &Connection,
    path: &Path,
    table: &str,
    [namespace, name]: [&Name; 2],
    created_ms: u64,
    record: &str,
) -> Result<(), Error> {
    let text = format!(
        "INSERT INTO {table} (namespace, name, created_ms, record) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (namespace, name) DO UPDATE SET record = excluded.record"
    );
    let values = params![namespace.as_str(), name.as_str(), time(created_ms), record];
    db.execute(&text, values).map(drop).map_err(Error::sql(path))
}

fn delete_resource(db: &Connection, path: &Path, table: &str, key: &(Name, Name)) -> Result<(), Error> {
    let text = format!("DELETE FROM {table} WHERE namespace = ?1 AND name = ?2");
    db.execute(&text, [key.0.as_str(), key.1.as_str()]).map(drop).map_err(Error::sql(path))
}

/// Every namespace, with the default one, whatever the table says.
fn namespaces(db: &Connection, path: &Path) -> Result<BTreeMap<Name, Arc<Namespace>>, Error> {
    let sql = Error::sql(path);
    let mut statement = db.prepare("SELECT name, record FROM namespace").map_err(&sql)?;
    let mut rows = statement.query(()).map_err(&sql)?;
    let mut namespaces = BTreeMap::clone(&Snapshot::default().namespaces);
    while let Some(row) = rows.next().map_err(&sql)? {
        let (name, record) = (text(row, 0, path)?, text(row, 1, path)?);
        let corrupt = |e: String| Error::corrupt(path, format!("namespace `{name}`: {e}"));
        let name = Name::new(name).map_err(|e| corrupt(e.to_string()))?;
        let namespace = Attached::read(name.clone(), record).map_err(|e| corrupt(e.to_string()))?;
        namespaces.insert(name, Arc::new(namespace));
    }
    Ok(namespaces)
}

/// Keeps a namespace, instead of what it was before.
pub(super) fn put_namespace(db: &Connection, path: &Path, namespace: &Namespace) -> Result<(), Error> {
    let record =
        Attached::write(namespace).map_err(|e| Error::Refused(format!("namespace `{}`: {e}", namespace.name)))?;
    let text = "INSERT INTO namespace (name, record) VALUES (?1, ?2)
                ON CONFLICT (name) DO UPDATE SET record = excluded.record";
    db.execute(text, [namespace.name.as_str(), &record]).map(drop).map_err(Error::sql(path))
}

/// Removes a namespace.
pub(super) fn delete_namespace(db: &Connection, path: &Path, name: &Name) -> Result<(), Error> {
    db.execute("DELETE FROM namespace WHERE name = ?1", [name.as_str()]).map(drop).map_err(Error::sql(path))
}

fn keep(functions: &mut Functions, function: Option<Function>) {
    if let Some(function) = function {
        functions.insert(function.name.clone(), Arc::new(function));
    }
}

fn function(row: &Row<'_>, namespace: &str, name: &str) -> Result<Function, String> {
    let word = |text: &str| Name::new(text).map_err(|e| e.to_string());
    let column = |e: rusqlite::Error| e.to_string();
    let created: i64 = row.get(3).map_err(column)?;
    Ok(Function {
        name: FunctionName::new(word(namespace)?, word(name)?),
        revisions: Vec::new(),
        scale: row.get(2).map_err(column)?,
        created_ms: u64::try_from(created).unwrap_or(0),
        routing: routing(row)?,
        held: part(row, 9, "what is held")?,
        shift: part(row, 10, "its rollout")?,
    })
}

/// Most functions say nothing, and share it.
fn routing(row: &Row<'_>) -> Result<Arc<Routing>, String> {
    let routing: Option<Routing> = part(row, 8, "its routing")?;
    let routing = routing.ok_or("it has no routing")?;
    Ok(if routing == Routing::default() { Arc::default() } else { Arc::new(routing) })
}

/// A column that holds JSON or nothing.
fn part<T: DeserializeOwned>(row: &Row<'_>, column: usize, what: &str) -> Result<Option<T>, String> {
    let value = row.get_ref(column).map_err(|e| e.to_string())?;
    let text = value.as_str_or_null().map_err(|e| format!("{what}: {e}"))?;
    text.map(serde_json::from_str).transpose().map_err(|e| format!("{what}: {e}"))
}

fn json<T: Serialize>(part: Option<&T>) -> Result<Option<String>, serde_json::Error> {
    part.map(serde_json::to_string).transpose()
}

fn time(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn entry(row: &Row<'_>, name: &FunctionName) -> Result<Entry, String> {
    let column = |e: rusqlite::Error| e.to_string();
    let number: Option<u32> = row.get(4).map_err(column)?;
    let number = number.filter(|n| *n > 0).ok_or("it has no revision")?;
    let id = RevisionId::new(name.clone(), number);
    let state: String = row.get(5).map_err(column)?;
    let why: Option<String> = row.get(6).map_err(column)?;
    let state = match (state.as_str(), why) {
        ("pending", None) => RevisionState::Pending,
        ("ready", None) => RevisionState::Ready,
        ("failed", Some(why)) => RevisionState::Failed(why),
        (other, _) => return Err(format!("revision {number} has the state `{other}`")),
    };
    let record = row.get_ref(7).map_err(column)?.as_str().map_err(|e| e.to_string())?;
    let revision = Record::read(id, record).map_err(|e| format!("revision {number}: {e}"))?;
    Ok(Entry { revision: Arc::new(revision), state })
}

pub(super) fn text<'row>(row: &'row Row<'_>, column: usize, path: &Path) -> Result<&'row str, Error> {
    let value = row.get_ref(column).map_err(Error::sql(path))?;
    value.as_str().map_err(|e| Error::corrupt(path, format!("a name: {e}")))
}

fn number(entry: &Entry) -> u32 {
    entry.revision.id.number()
}

fn state_columns(state: &RevisionState) -> (&'static str, Option<&str>) {
    match state {
        RevisionState::Pending => ("pending", None),
        RevisionState::Ready => ("ready", None),
        RevisionState::Failed(why) => ("failed", Some(why)),
    }
}
