//! A look at a directory that somebody else has: in this process, in another one that writes as fast as it can, and after that was
//! killed. It is whole, changes nothing, and goes on without what it cannot read.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use rusqlite::Connection;
use taper_medium::Error::{Corrupt, Newer, NotWritable};
use taper_model::{FunctionName, Name, RevisionState, route::Rule};
use taper_store::{Config, Disk, Error, Peek, Put, Snapshot, Store};

use crate::{
    crash::{Child, NAMES},
    support::{deploy, open},
};

fn peek(dir: &Path) -> Peek {
    Disk::peek(dir, &Config::default()).unwrap()
}

fn refused(dir: &Path) -> Error {
    Disk::peek(dir, &Config::default()).map(drop).unwrap_err()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Every file with what is in it, but for the memory that connections share.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
    let files = files.map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(p).unwrap()));
    files.filter(|(name, _)| !name.ends_with("-shm")).collect()
}

#[tokio::test]
async fn it_sees_what_a_store_in_this_process_shows_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (default, key) = (Name::default_namespace(), name("key"));
    for text in ["1", "2"] {
        let mut wanted = deploy("hello", text);
        wanted.routing.route = vec![Rule { host: Some("shop.example.com".into()), ..Rule::default() }];
        let made = store.publish(wanted).await.unwrap().revision;
        store.settle(&made.id, RevisionState::Ready).await.unwrap();
    }
    store.put_secret(&default, &key, "hunter2".into(), Put::Create).await.unwrap();
    let before = files(dir.path());
    let seen = peek(dir.path());
    let shown = || Snapshot { version: 0, ..Snapshot::clone(&store.snapshot().borrow()) };
    assert_eq!(**seen.snapshot(), shown());
    assert_eq!(seen.secret(&default, &key).await.unwrap(), store.secret(&default, &key).await.unwrap());
    let missing = seen.secret(&default, &name("nobody")).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound(_)), "{missing}");
    assert_eq!(files(dir.path()), before, "nothing was written");

    // What comes later is in no snapshot that was taken; a secret is as it is now, under whatever key.
    let held = shown();
    store.publish(deploy("other", "1")).await.unwrap();
    store.put_secret(&default, &key, "hunter3".into(), Put::Update).await.unwrap();
    assert_eq!(store.rotate_key().await.unwrap(), 1, "whoever looks holds up no rotation");
    assert_eq!(**seen.snapshot(), held);
    assert_eq!(seen.secret(&default, &key).await.unwrap(), store.secret(&default, &key).await.unwrap());
    assert_eq!(**peek(dir.path()).snapshot(), shown());
    assert!(!format!("{seen:?}").contains("hunter"), "{seen:?}");

    // It keeps nobody from the directory, and can still be asked then.
    drop(store);
    let next = open(dir.path());
    next.put_secret(&default, &key, "hunter4".into(), Put::Update).await.unwrap();
    next.rotate_key().await.unwrap();
    assert_eq!(seen.secret(&default, &key).await.unwrap().value, "hunter4");
    let another = Connection::open(dir.path().join("taper.db")).unwrap();
    another.execute_batch("SELECT count(*) FROM function").unwrap();
    drop((another, seen));
    next.publish(deploy("last", "1")).await.unwrap();
    drop(next);
    assert_eq!(open(dir.path()).snapshot().borrow().functions.len(), 3);
}

#[tokio::test]
async fn what_it_cannot_read_it_leaves_alone() {
    let dir = tempfile::tempdir().unwrap();
    for missing in [dir.path().join("nowhere"), dir.path().to_owned()] {
        let error = refused(&missing);
        assert!(matches!(error, Error::Medium(NotWritable { .. })), "{error:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
    for (sql, older) in [("DELETE FROM schema WHERE version > 3", true), ("INSERT INTO schema VALUES (99, 0)", false)] {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).publish(deploy("hello", "1")).await.unwrap();
        let db = Connection::open(dir.path().join("taper.db")).unwrap();
        db.execute_batch(sql).unwrap();
        let before = files(dir.path());
        match refused(dir.path()) {
            e @ Error::Older { found: 3, .. } => assert!(older && e.to_string().contains("older taper"), "{e}"),
            Error::Medium(Newer { found: 99, .. }) => assert!(!older),
            other => panic!("{sql}: {other}"),
        }
        assert_eq!(files(dir.path()), before);
    }
    fs::write(dir.path().join("taper.db"), "no database\n".repeat(1000)).unwrap();
    assert!(matches!(refused(dir.path()), Error::Medium(Corrupt { .. })));
}

/// Another process deploys, routes, settles, and changes the key all the time.
#[tokio::test(flavor = "multi_thread")]
async fn it_is_whole_beside_another_process_that_writes() {
    let dir = tempfile::tempdir().unwrap();
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let (default, always) = (Name::default_namespace(), name("always"));
    open(dir.path()).put_secret(&default, &always, "hunter2".into(), Put::Create).await.unwrap();
    let child = Child::start(dir.path(), seed, [0; 4], 0);
    child.acknowledged(20);
    let mut highest = BTreeMap::<FunctionName, u64>::new();
    let mut different = 0;
    let mut last: Option<Peek> = None;
    for round in 0..60 {
        child.acknowledged(5);
        let seen = peek(dir.path());
        let snapshot = seen.snapshot();
        for function in snapshot.functions.values() {
            let created = function.created_ms;
            let before = highest.insert(function.name.clone(), created);
            assert!(before.is_none_or(|b| b <= created), "seed {seed}, round {round}: it went back");
            assert!(!function.revisions.is_empty(), "seed {seed}, round {round}");
            for rule in &function.routing.route {
                let host = rule.host.clone().unwrap_or_default();
                let there =
                    snapshot.tables.get(&host).is_some_and(|t| t.rules().iter().any(|r| r.function == function.name));
                assert!(there, "seed {seed}, round {round}: {host} of {}", function.name);
            }
        }
        let secret = seen.secret(&default, &always).await;
        assert!(secret.as_ref().is_ok_and(|s| s.value == "hunter2"), "seed {seed}, round {round}: {secret:?}");
        let same = |other: &Peek| Arc::clone(other.snapshot()) == *snapshot;
        different += usize::from(!last.as_ref().is_some_and(same));
        last = Some(seen);
    }
    let heard = child.kill();
    let rotations = heard.iter().filter(|(task, ..)| *task == NAMES.len() + 1).count();
    println!("{} acknowledged, {rotations} of them rotations; {different} of 60 looks saw something new", heard.len());
    assert!(different > 5 && rotations > 3, "seed {seed}: {different} {rotations}");
    // What a process that was killed has left is seen, too, and as the next one will open it: the last command may have been written and
    // not yet shown to those who looked before.
    drop(last);
    let seen = peek(dir.path());
    let snapshot = Arc::clone(seen.snapshot());
    drop(seen);
    let opened = Snapshot::clone(&open(dir.path()).snapshot().borrow());
    assert!(opened == *snapshot, "seed {seed}: it is opened as something else than it looked");
}
