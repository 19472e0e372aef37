//! What was acknowledged is there after a reopen; who may read the files; one process at a time.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use bytes::Bytes;
use taper_medium::Error::Locked;
use taper_model::{
    Name, Namespace, RevisionState,
    event::Filter,
    route::{Cors, Https, Route, RouteSpec, Rule},
    traffic::{Held, Limits, Rollout, Routing, Sticky, Traffic},
    trigger::{Events, Trigger, TriggerSpec},
};
use taper_store::{Artifacts, Config, Deploy, Direct, Disk, Error, Put, Store};

use crate::support::{deploy, function, open};

#[tokio::test]
async fn everything_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let (namespace, key) = (Name::default_namespace(), Name::new("key").unwrap());
    let store = open(dir.path());
    let team = Namespace {
        limits: Limits { rate: Some(0.1 + 0.2), burst: Some(3), ..Limits::default() },
        name: Name::new("team").unwrap(),
        labels: BTreeMap::from([("a".into(), "ä\"\0".into())]),
        annotations: BTreeMap::new(),
    };
    store.put_namespace(team, Put::Create).await.unwrap();
    let mut full = deploy("hello.team", "ä\"\0");
    full.spec.scale.target = Some(0.1 + 0.2);
    full.spec.scale.utilization = Some(1.0 / 3.0);
    full.annotations.insert("a/b".into(), "".into());
    full.by = "ada, with a browser \"".into();
    let rollout = || Some(Rollout { duration: "90s".parse().unwrap(), errors: 1.0 / 3.0, calls: 7 });
    full.routing = Routing {
        sticky: Some(Sticky { header: Some("X-User".into()), cookie: None }),
        rollout: rollout(),
        route: vec![Rule { path: Some("/users/{id}".into()), methods: vec!["GET".into()], ..Rule::default() }],
        limits: Limits { queue: Some(9), ..Limits::default() },
        ..Routing::default()
    };
    let first = store.publish(full.clone()).await.unwrap().revision;
    store.settle(&first.id, RevisionState::Ready).await.unwrap();
    let second = Deploy { routing: full.routing.clone(), ..deploy("hello.team", "2") };
    let second = store.publish(second).await.unwrap().revision;
    store.settle(&second.id, RevisionState::Failed("why\n".into())).await.unwrap();
    store.publish(deploy("gone", "1")).await.unwrap();
    store.delete(&function("gone")).await.unwrap();
    store.publish(deploy("other", "1")).await.unwrap();
    store.scale(&function("other"), Some(0)).await.unwrap();
    // A rollout under way, something held, and a route.
    for text in ["1", "2"] {
        let rolling =
            Deploy { routing: Routing { rollout: rollout(), ..Routing::default() }, ..deploy("rolling", text) };
        let made = store.publish(rolling).await.unwrap().revision;
        store.settle(&made.id, RevisionState::Ready).await.unwrap();
        let made = store.publish(deploy("back", text)).await.unwrap().revision;
        store.settle(&made.id, RevisionState::Ready).await.unwrap();
    }
    store.direct(&function("rolling"), Direct::Shift { to: 2, percent: 37 }).await.unwrap();
    let why = "the new one fails\n\"ä\"".to_owned();
    store.direct(&function("back"), Direct::Hold(Some(Held { revision: 1, why, at_ms: 5 }))).await.unwrap();
    let rule = Rule {
        host: Some("*.Example.com".into()),
        function: Some(Name::new("hello").unwrap()),
        cors: Some(Cors { origins: vec!["*".into()], ..Cors::default() }),
        ..Rule::default()
    };
    let spec = RouteSpec { rules: vec![rule], https: Some(Https::Redirect), ..RouteSpec::default() };
    let shop = Route { namespace: Name::new("team").unwrap(), name: Name::new("shop").unwrap(), spec, created_ms: 77 };
    store.put_route(shop.clone()).await.unwrap();
    let gone = Route { name: Name::new("gone").unwrap(), ..shop.clone() };
    let spec = RouteSpec {
        host: Some("gone.example.org".into()),
        rules: gone.spec.rules.iter().map(|r| Rule { host: None, ..r.clone() }).collect(),
        ..RouteSpec::default()
    };
    store.put_route(Route { spec, ..gone.clone() }).await.unwrap();
    store.delete_route(&gone.namespace, &gone.name).await.unwrap();
    let spec = TriggerSpec {
        function: Some(Name::new("hello").unwrap()),
        events: Some(Events { topic: Some(Name::new("orders").unwrap()), reply: None }),
        filters: vec![Filter::Exact(BTreeMap::from([("type".into(), "ä\"\0".into())]))],
        ..TriggerSpec::default()
    };
    let orders = Trigger { namespace: shop.namespace.clone(), name: shop.name.clone(), spec, created_ms: 78 };
    store.put_trigger(orders.clone()).await.unwrap();
    let gone = Trigger { name: gone.name, ..orders.clone() };
    store.put_trigger(gone.clone()).await.unwrap();
    store.delete_trigger(&gone.namespace, &gone.name).await.unwrap();
    store.put_secret(&namespace, &key, Bytes::from_static(b"\0\xff"), Put::Create).await.unwrap();
    let before = Arc::clone(&store.snapshot().borrow());
    drop(store);

    let store = open(dir.path());
    let after = Arc::clone(&store.snapshot().borrow());
    assert_eq!((&after.functions, &after.namespaces), (&before.functions, &before.namespaces));
    assert_eq!(after.secrets, before.secrets);
    assert_eq!((&after.routes, &after.tables), (&before.routes, &before.tables));
    assert_eq!(after.triggers, before.triggers);
    assert_eq!(after.triggers.values().map(AsRef::as_ref).collect::<Vec<_>>(), [&orders]);
    assert_eq!((after.functions.len(), after.routes.len(), after.tables.len()), (4, 1, 2));
    let rolling = after.function(&function("rolling")).unwrap().shift.as_ref().map(|s| (s.from, s.to, s.percent));
    assert_eq!(rolling, Some((1, 2, 37)));
    assert_eq!(after.function(&function("back")).unwrap().serving().unwrap().id.number(), 1);
    assert!(after.tables.get(&"*.example.com".to_owned()).unwrap().rules()[0].redirect);
    assert_eq!(after.function(&function("hello.team")).unwrap().revisions[0].revision.by, full.by);
    assert_eq!(store.secret(&namespace, &key).await.unwrap().value, &b"\0\xff"[..]);
    let third = store.publish(full).await.unwrap();
    assert_eq!((third.changed, third.revision.id.number()), (true, 3));
    assert!(!store.publish(deploy("other", "1")).await.unwrap().changed, "the same again, as before the reopen");
}

/// The operator keeps less from now on: what is too much goes without a deploy, in one command, and stays away.
#[tokio::test]
async fn what_is_too_much_by_now_is_collected() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for name in ["a", "b", "c"] {
        for text in 1..=if name == "c" { 3 } else { 10 } {
            let made = store.publish(deploy(name, &text.to_string())).await.unwrap().revision;
            store.settle(&made.id, RevisionState::Ready).await.unwrap();
        }
    }
    let tagged = Traffic { revision: Some("2".into()), tag: Some(Name::new("old").unwrap()), ..Traffic::default() };
    let latest = Traffic { latest: true, percent: Some(100), ..Traffic::default() };
    let traffic = vec![latest, tagged];
    store.direct(&function("b"), Direct::Traffic { traffic, sticky: None }).await.unwrap();
    drop(store);
    let less = || Config { revisions: 3, ..Config::default() };
    for (removed, versions) in [(14, 1), (0, 0)] {
        let store = Disk::open(dir.path(), less()).unwrap();
        assert_eq!(store.collect().await.unwrap(), removed);
        let snapshot = Arc::clone(&store.snapshot().borrow());
        assert_eq!(snapshot.version, versions, "one change, however many functions");
        for (name, kept) in [("a", [8, 9, 10]), ("b", [2, 9, 10]), ("c", [1, 2, 3])] {
            let there = &snapshot.function(&function(name)).unwrap().revisions;
            assert!(there.iter().map(|e| e.revision.id.number()).eq(kept), "{name}");
        }
    }
}

#[tokio::test]
async fn a_redeploy_of_odd_fractions_is_the_same_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let mut odd = deploy("hello", "1");
    odd.spec.scale.target = Some(2.225_073_858_507_201_1e-3);
    odd.spec.scale.utilization = Some(70.000_000_000_000_01);
    for expect in [true, false, false] {
        assert_eq!(open(dir.path()).publish(odd.clone()).await.unwrap().changed, expect);
    }
}

#[tokio::test]
async fn what_was_accepted_before_the_drop_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for i in 0..10 {
        let mut leaving = store.publish(deploy("hello", &i.to_string()));
        std::future::poll_fn(|cx| {
            let _under_way = leaving.as_mut().poll(cx);
            std::task::Poll::Ready(())
        })
        .await;
    }
    drop(store);
    assert_eq!(open(dir.path()).snapshot().borrow().functions.get(&function("hello")).unwrap().revisions.len(), 10);
}

#[tokio::test]
async fn only_the_owner_may_read() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a/b");
    let store = open(&dir);
    store.publish(deploy("hello", "1")).await.unwrap();
    let artifacts = Artifacts::open(&dir).unwrap();
    let mut upload = artifacts.begin(10).await.unwrap();
    upload.write(b"code").await.unwrap();
    let unfinished = artifacts.begin(10).await.unwrap();
    upload.finish(None).await.unwrap();
    let mut seen = 0;
    let mut look = vec![dir.clone()];
    while let Some(path) = look.pop() {
        let meta = fs::metadata(&path).unwrap();
        let mode = meta.permissions().mode() & 0o777;
        assert_eq!(mode, if meta.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        seen += 1;
        if meta.is_dir() {
            look.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    assert_eq!(seen, 10, "three directories, lock, key, database, -wal, -shm, an artifact and an upload");
    drop(unfinished);

    drop(store);
    fs::set_permissions(dir.join("taper.db"), fs::Permissions::from_mode(0o644)).unwrap();
    let _store = open(&dir);
    assert_eq!(fs::metadata(dir.join("taper.db")).unwrap().permissions().mode() & 0o777, 0o600, "closed again");
}

#[test]
fn a_directory_that_was_there_keeps_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let _store = open(dir.path());
    assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn a_second_one_is_refused_and_told_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |dir: &Path| Disk::open(dir, Config::default()).map(drop).unwrap_err();
    let first = open(dir.path());
    let error = refused(dir.path());
    assert!(
        matches!(&error, Error::Medium(Locked { dir: d, pid }) if d == dir.path() && *pid == Some(std::process::id()))
    );
    let text = error.to_string();
    assert!(text.contains(dir.path().to_str().unwrap()) && text.contains("another --data"), "{text}");
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    fs::write(dir.path().join("lock"), "x").unwrap();
    assert!(matches!(refused(dir.path()), Error::Medium(Locked { pid: None, .. })), "an unreadable pid is left out");
    drop(first);
    open(dir.path());
}

#[test]
fn debug_output_shows_no_function_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{:?}", open(dir.path()));
    assert!(text.contains("taper.db") && !text.contains("Connection"), "{text}");
}

/// A child has a copy of every open file, and with it of the lock, between its fork and its exec.
#[test]
fn children_that_are_being_started_do_not_hold_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(Command::new("true").status().unwrap().success());
            }
        });
        for _ in 0..300 {
            match Disk::open(dir.path(), Config::default()) {
                Ok(store) => drop(store),
                Err(e) => {
                    done.store(true, Ordering::Relaxed);
                    panic!("{e}");
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// What a killed one could not sync may be in the system's memory only: nothing that is acknowledged later stands behind it.
#[tokio::test]
async fn what_a_kill_left_in_the_log_is_brought_into_the_database() {
    let (dir, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path());
    store.publish(deploy("hello", "1")).await.unwrap();
    for file in ["taper.db", "taper.db-wal", "secret-key"] {
        fs::copy(dir.path().join(file), left.path().join(file)).unwrap();
    }
    let log = left.path().join("taper.db-wal");
    assert!(fs::metadata(&log).unwrap().len() > 0);
    let next = open(left.path());
    assert_eq!(fs::metadata(&log).unwrap().len(), 0);
    assert!(next.snapshot().borrow().functions.get(&function("hello")).is_some());
}
