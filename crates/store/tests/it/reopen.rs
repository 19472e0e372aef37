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
use taper_model::{Name, Namespace, RevisionState};
use taper_store::{Artifacts, Config, Disk, Error, Put, Store};

use crate::support::{deploy, function, open};

#[tokio::test]
async fn everything_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let (namespace, key) = (Name::default_namespace(), Name::new("key").unwrap());
    let store = open(dir.path());
    let team = Namespace {
        name: Name::new("team").unwrap(),
        labels: BTreeMap::from([("a".into(), "ä\"\0".into())]),
        annotations: BTreeMap::new(),
    };
    store.put_namespace(team, Put::Create).await.unwrap();
    let mut full = deploy("hello.team", "ä\"\0");
    full.spec.scale.target = Some(0.1 + 0.2);
    full.spec.scale.utilization = Some(1.0 / 3.0);
    full.annotations.insert("a/b".into(), "".into());
    let first = store.publish(full.clone()).await.unwrap().revision;
    store.settle(&first.id, RevisionState::Ready).await.unwrap();
    let second = store.publish(deploy("hello.team", "2")).await.unwrap().revision;
    store.settle(&second.id, RevisionState::Failed("why\n".into())).await.unwrap();
    store.publish(deploy("gone", "1")).await.unwrap();
    store.delete(&function("gone")).await.unwrap();
    store.publish(deploy("other", "1")).await.unwrap();
    store.scale(&function("other"), Some(0)).await.unwrap();
    store.put_secret(&namespace, &key, Bytes::from_static(b"\0\xff"), Put::Create).await.unwrap();
    let before = Arc::clone(&store.snapshot().borrow());
    drop(store);

    let store = open(dir.path());
    let after = Arc::clone(&store.snapshot().borrow());
    assert_eq!((&after.functions, &after.namespaces), (&before.functions, &before.namespaces));
    assert_eq!(after.secrets, before.secrets);
    assert_eq!(after.functions.len(), 2);
    assert_eq!(store.secret(&namespace, &key).await.unwrap().value, &b"\0\xff"[..]);
    let third = store.publish(full).await.unwrap();
    assert_eq!((third.changed, third.revision.id.number()), (true, 3));
    assert!(!store.publish(deploy("other", "1")).await.unwrap().changed, "the same again, as before the reopen");
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
