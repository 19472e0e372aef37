//! A full, a read-only, a damaged, a foreign and a newer data directory: each has its clear answer, and nothing is left half done.

use std::{
    fs,
    io::{BufRead, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use rusqlite::Connection;
use taper_medium::Error::{Corrupt, Full, NotWritable};
use taper_model::Digest;
use taper_store::{Artifacts, Config, Disk, Error, Functions, Store};

use crate::support::{deploy, function, open};

fn refused(dir: &Path) -> Error {
    Disk::open(dir, Config::default()).map(drop).unwrap_err()
}

fn functions(store: &dyn Store) -> Functions {
    store.snapshot().borrow().functions.clone()
}

/// A closed store with some functions, edited by SQL.
async fn edited(sql: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for name in ["a", "b", "c"] {
        store.publish(deploy(name, &name.repeat(3000))).await.unwrap();
    }
    drop(store);
    let db = Connection::open(dir.path().join("taper.db")).unwrap();
    db.execute_batch(sql).unwrap();
    dir
}

#[tokio::test]
async fn damaged_rows_are_named() {
    for (sql, expect) in [
        ("UPDATE revision SET record = 'x' WHERE name = 'b'", "function `b` in namespace `default`: revision 1"),
        ("UPDATE revision SET record = replace(record, '\"TEXT\"', '7') WHERE name = 'b'", "function `b`"),
        ("UPDATE revision SET number = 0 WHERE name = 'b'", "function `b`"),
        ("UPDATE revision SET number = 1 << 40 WHERE name = 'b'", "function `b`"),
        ("DELETE FROM revision WHERE name = 'b'", "function `b` in namespace `default`: it has no revision"),
        ("PRAGMA foreign_keys = OFF; UPDATE function SET name = 'B_' WHERE name = 'b'", "B_"),
        ("PRAGMA ignore_check_constraints = ON; UPDATE revision SET state = 'odd' WHERE name = 'b'", "the state `odd`"),
        ("UPDATE function SET routing = 'x' WHERE name = 'b'", "function `b` in namespace `default`: its routing"),
        ("UPDATE function SET routing = '{\"odd\":1}' WHERE name = 'b'", "its routing: unknown field `odd`"),
        ("UPDATE function SET held = '{}' WHERE name = 'b'", "function `b` in namespace `default`: what is held"),
        ("UPDATE function SET shift = '7' WHERE name = 'b'", "function `b` in namespace `default`: its rollout"),
        ("INSERT INTO route VALUES ('default', 'r', 0, '{\"rules\":7}')", "route `r` in namespace `default`"),
        ("INSERT INTO route VALUES ('default', 'R_', 0, '{\"rules\":[]}')", "route `R_`"),
        ("INSERT INTO trigger VALUES ('default', 't', 0, '{\"schedule\":7}')", "trigger `t` in namespace `default`"),
        ("INSERT INTO trigger VALUES ('default', 'T_', 0, '{}')", "trigger `T_`"),
        ("DELETE FROM schema", "no version"),
        ("DROP TABLE schema", "some other program"),
    ] {
        let dir = edited(sql).await;
        let error = refused(dir.path());
        let text = error.to_string();
        assert!(matches!(error, Error::Medium(Corrupt { .. })) && text.contains(expect), "{sql}: {text}");
        assert!(text.contains(dir.path().join("taper.db").to_str().unwrap()) && text.contains("backup"), "{text}");
    }
}

/// Rules that no command would have let in beside each other, and numbers of revisions that are not there: a platform starts all the same.
#[tokio::test]
async fn what_a_hand_made_ambiguous_is_left_out() {
    let rule = |host: &str| format!(r#"{{"rules":[{{"host":"{host}","path":"/x","function":"a"}}]}}"#);
    let dir = edited(&format!(
        "INSERT INTO route VALUES ('default', 'r', 0, '{one}'), ('default', 's', 0, '{one}'), ('default', 't', 0, '{two}');
         UPDATE function SET routing = '{{\"traffic\":[{{\"revision\":\"7\",\"percent\":100}}]}}',
             held = '{{\"revision\":8,\"why\":\"\",\"atMs\":0}}',
             shift = '{{\"from\":9,\"to\":0,\"percent\":200,\"sinceMs\":0}}'",
        one = rule("one.example.com"),
        two = rule("two.example.com"),
    ))
    .await;
    let store = open(dir.path());
    let snapshot = Arc::clone(&store.snapshot().borrow());
    let rules = |host: &str| snapshot.tables.get(&host.to_owned()).map_or(0, |table| table.rules().len());
    assert_eq!((rules("one.example.com"), rules("two.example.com"), snapshot.routes.len()), (1, 1, 3));
    let made = store.publish(deploy("a", "2")).await.map(drop).unwrap_err();
    assert!(matches!(made, Error::NotFound(_)), "the traffic must be mended first: {made}");
    let mend = taper_store::Direct::Traffic { traffic: Vec::new(), sticky: None };
    store.direct(&function("a"), mend).await.unwrap();
    let made = store.publish(deploy("a", "2")).await.unwrap().revision;
    store.settle(&made.id, taper_model::RevisionState::Ready).await.unwrap();
    let default = taper_model::Name::default_namespace();
    for route in ["r", "s", "t"] {
        store.delete_route(&default, &taper_model::Name::new(route).unwrap()).await.unwrap();
    }
    assert!(store.snapshot().borrow().tables.is_empty());
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let dir = edited("INSERT INTO schema VALUES (99, 0)").await;
    let before = fs::read(dir.path().join("taper.db")).unwrap();
    let text = refused(dir.path()).to_string();
    assert!(text.contains("made by a newer taper (its schema is 99") && text.contains("another --data"), "{text}");
    assert_eq!(fs::read(dir.path().join("taper.db")).unwrap(), before);
}

#[tokio::test]
async fn damaged_bytes_never_panic() {
    let (seed, whole) = (rand::random::<u64>(), edited("").await);
    let bytes = fs::read(whole.path().join("taper.db")).unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut found = 0;
    for round in 0..150 {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = bytes.clone();
        match round % 3 {
            0 => bytes.truncate(rng.random_range(1..bytes.len())),
            1 => rng.fill_bytes(&mut bytes[4096..]),
            _ => (0..20).for_each(|_| {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }),
        }
        fs::write(dir.path().join("taper.db"), bytes).unwrap();
        match Disk::open(dir.path(), Config::default()) {
            // What was hit may be an unused part of a page, or a letter of a text.
            Ok(store) => assert!(functions(&store).values().all(|f| !f.revisions.is_empty())),
            Err(e) => {
                assert!(e.to_string().contains("taper.db"), "seed {seed}, round {round}: {e}");
                found += usize::from(matches!(e, Error::Medium(Corrupt { .. })));
            }
        }
    }
    assert!(found >= 50, "seed {seed}: damage was called so only {found} times");
}

#[test]
fn what_is_no_database_and_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("taper.db"), "no database\n".repeat(1000)).unwrap();
    assert!(matches!(refused(dir.path()), Error::Medium(Corrupt { .. })));
    assert_eq!(fs::read(dir.path().join("taper.db")).unwrap(), "no database\n".repeat(1000).as_bytes(), "left alone");
    let error = refused(&dir.path().join("taper.db/x"));
    assert!(error.to_string().contains("taper.db/x"), "{error}");
    let error = refused(&dir.path().join("taper.db"));
    assert!(error.to_string().contains("taper.db"), "{error}");
    fs::create_dir_all(dir.path().join("y/taper.db")).unwrap();
    let error = refused(&dir.path().join("y"));
    assert!(error.to_string().contains("y/taper.db"), "{error}");
}

#[test]
fn a_directory_without_write_permission() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(dir.path().join("probe"), "").is_ok() {
        return; // root may write anywhere; `on_small_and_read_only_media` shows the same for root
    }
    let error = refused(dir.path());
    assert!(matches!(error, Error::Medium(NotWritable { .. })), "{error}");
    assert!(matches!(Artifacts::open(dir.path()), Err(Error::Medium(NotWritable { .. }))));
}

/// Runs [`small_and_read_only_media`] with a file system of 3 MB of its own, in a mount namespace that ends with it.
#[test]
fn on_small_and_read_only_media() {
    let unshare = |command: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "--"]).args(command);
        unshare
    };
    if !unshare(&["true"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
        eprintln!("not run: this machine gives no mount namespace");
        return;
    }
    let (dir, program) = (tempfile::tempdir().unwrap(), std::env::current_exe().unwrap());
    let test = "hostile::small_and_read_only_media";
    let script = r#"mount -t tmpfs -o size=3m none "$1" && exec "$2" --ignored --exact "$3" --nocapture"#;
    let [dir_text, program] = [dir.path(), &program].map(|p| p.to_str().unwrap());
    let mut child = unshare(&["sh", "-c", script, "sh", dir_text, program, test])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{dir_text}").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("saw it all"), "{text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "it all happened in the namespace");
}

#[tokio::test]
#[ignore = "started by on_small_and_read_only_media, which gives it a small file system"]
async fn small_and_read_only_media() {
    let mut dir = String::new();
    std::io::stdin().lock().read_line(&mut dir).unwrap();
    if dir.is_empty() {
        return; // started by hand
    }
    let dir = PathBuf::from(dir.trim_end());
    let ballast = dir.join("ballast");
    fs::write(&ballast, vec![0; 600 << 10]).unwrap();
    let store = open(&dir);
    let artifacts = Artifacts::open(&dir).unwrap();
    let (default, key) = (taper_model::Name::default_namespace(), taper_model::Name::new("key").unwrap());
    store.put_secret(&default, &key, vec![7; 200_000].into(), taper_store::Put::Create).await.unwrap();
    let mut kept = Functions::default();
    let full = loop {
        match store.publish(deploy(&format!("f{}", kept.len()), &"x".repeat(100_000))).await {
            Ok(_) => kept = functions(&store),
            Err(e) => break e,
        }
    };
    assert!(matches!(full, Error::Medium(Full { .. })), "{full:?}");
    assert!(full.to_string().contains(dir.to_str().unwrap()) && full.to_string().contains("free some"), "{full}");
    assert!(kept.len() > 5 && functions(&store) == kept, "the one that did not fit is not shown");

    let before = fs::read(dir.join("secret-key")).unwrap();
    let full = store.rotate_key().await.unwrap_err();
    assert!(matches!(full, Error::Medium(Full { .. })), "{full:?}");
    assert_eq!(fs::read(dir.join("secret-key")).unwrap(), before);
    assert_eq!(store.secret(&default, &key).await.unwrap().value, vec![7; 200_000]);

    let mut upload = artifacts.begin(1 << 30).await.unwrap();
    let full = loop {
        if let Err(e) = upload.write(&[1; 100_000]).await {
            break e;
        }
    };
    assert!(matches!(full, Error::Medium(Full { .. })), "{full:?}");
    assert!(matches!(upload.finish(None).await, Err(Error::Ended)));
    assert_eq!(fs::read_dir(dir.join("artifacts/sha256")).unwrap().count(), 0, "the upload left nothing");

    fs::remove_file(&ballast).unwrap();
    store.publish(deploy("after", "1")).await.unwrap();
    // There may be no room left for the log in the database; then the old key stays beside the new one.
    let rotated = store.rotate_key().await;
    assert!(matches!(rotated, Ok(1) | Err(Error::Medium(Full { .. }))), "{rotated:?}");
    kept = functions(&store);
    drop(store);
    let store = open(&dir);
    assert_eq!(store.secret(&default, &key).await.unwrap().value, vec![7; 200_000]);
    assert_eq!(functions(&store), kept, "what was acknowledged, and nothing else");
    drop(store);

    // Without room for a new database. The old one goes: its log did not fit into it, so it fills everything.
    for file in ["taper.db", "taper.db-wal", "taper.db-shm"] {
        fs::remove_file(dir.join(file)).ok();
    }
    let full = fs::write(&ballast, vec![0; 4 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let error = refused(&dir.join("other"));
    assert!(matches!(error, Error::Medium(Full { .. })), "{error:?}");
    fs::remove_file(&ballast).unwrap();
    drop(open(&dir.join("other")));

    let remount = Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&dir).status().unwrap();
    assert!(remount.success());
    for dir in [dir.clone(), dir.join("new")] {
        let error = refused(&dir);
        let text = error.to_string();
        assert!(matches!(error, Error::Medium(NotWritable { .. })) && text.contains(dir.to_str().unwrap()), "{text}");
        assert!(text.contains("another --data"), "{text}");
    }
    let digest = Digest::of(b"x");
    assert!(!artifacts.renew(&digest).await.unwrap());
    assert!(matches!(artifacts.begin(1).await, Err(Error::Medium(NotWritable { .. }))));
    println!("saw it all");
}

#[tokio::test]
async fn damage_that_comes_later_is_told_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()));
    store.publish(deploy("a", "1")).await.unwrap();
    let before = functions(&*store);
    // Another program drops our tables under us.
    let db = Connection::open(dir.path().join("taper.db")).unwrap();
    db.execute_batch("PRAGMA foreign_keys = OFF; DROP TABLE revision; DROP TABLE secret").unwrap();
    let error = store.publish(deploy("a", "2")).await.unwrap_err();
    assert!(error.to_string().contains("taper.db"), "{error}");
    assert_eq!(functions(&*store), before);
    let key = taper_model::Name::new("key").unwrap();
    let error = store.put_secret(&key, &key, "hunter2".into(), taper_store::Put::Either).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    assert_eq!(store.snapshot().borrow().function(&function("a")).unwrap().revisions.len(), 1);
}

#[tokio::test]
async fn a_torn_log_ends_at_the_last_whole_command() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for i in 0..10 {
        store.publish(deploy("a", &i.to_string().repeat(2000))).await.unwrap();
    }
    // What a machine that lost its power may leave: the files as they were, the log torn anywhere.
    let [db, log] = ["taper.db", "taper.db-wal"].map(|f| fs::read(dir.path().join(f)).unwrap());
    drop(store);
    let (mut last, seed) = (0, rand::random::<u64>());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cuts: Vec<usize> = (0..40).map(|_| rng.random_range(0..log.len())).collect();
    cuts.extend([0, log.len()]);
    cuts.sort_unstable();
    for cut in cuts {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("taper.db"), &db).unwrap();
        fs::write(dir.path().join("taper.db-wal"), &log).unwrap();
        // Garbage where the sectors did not arrive.
        let torn = fs::OpenOptions::new().write(true).open(dir.path().join("taper.db-wal")).unwrap();
        let mut garbage = vec![0; log.len() - cut];
        rng.fill_bytes(&mut garbage);
        torn.write_all_at(&garbage, cut as u64).unwrap();
        let store = open(dir.path());
        let snapshot = Arc::clone(&store.snapshot().borrow());
        let revisions = snapshot.function(&function("a")).map_or(&[][..], |f| &f.revisions);
        for (i, entry) in revisions.iter().enumerate() {
            assert_eq!(entry.revision.spec.env["TEXT"], i.to_string().repeat(2000), "seed {seed}, cut at {cut}");
        }
        assert!(revisions.len() >= last, "seed {seed}: more of the log, fewer revisions");
        last = revisions.len();
    }
    assert_eq!(last, 10, "the whole log has them all");
}
