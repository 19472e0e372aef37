//! Secrets at rest: no file ever holds one in clear, every one is read back whatever happens to the process, and a key or a row
//! that is not as it was has its clear answer.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rusqlite::Connection;
use taper_model::{Name, function::Probe};
use taper_store::{Config, Disk, Error, KeyRing, Put, Store};

use crate::support::{function, open};

/// What must be nowhere.
const CLEAR: &str = "correct-horse-battery-staple";
const KEYS: [&str; 3] = ["a", "b", "c"];

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

async fn put(store: &Disk, key: &str, value: impl Into<Bytes>) {
    store.put_secret(&name("default"), &name(key), value.into(), Put::Either).await.unwrap();
}

async fn get(store: &Disk, key: &str) -> Result<Bytes, Error> {
    store.secret(&name("default"), &name(key)).await.map(|s| s.value)
}

/// The value of a key: recognisable in clear, and of several pages.
fn value(key: &str) -> Bytes {
    Bytes::from(format!("{CLEAR}-{key}-").repeat(300))
}

/// A store with a secret for each of [`KEYS`].
async fn filled(dir: &Path) -> Disk {
    let store = open(dir);
    for key in KEYS {
        put(&store, key, value(key)).await;
    }
    store
}

async fn readable(store: &Disk) {
    for key in KEYS {
        assert_eq!(get(store, key).await.unwrap(), value(key), "{key}");
    }
}

fn refused(dir: &Path, config: Config) -> String {
    match Disk::open(dir, config) {
        Err(e @ Error::Key(_)) => e.to_string(),
        other => panic!("the key is refused: {other:?}"),
    }
}

/// The files in which the words are, at whatever depth.
fn files_with(dir: &Path, words: &[u8]) -> Vec<PathBuf> {
    let (mut found, mut look) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(path) = look.pop() {
        if path.is_dir() {
            look.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if fs::read(&path).unwrap().windows(words.len()).any(|w| w == words) {
            found.push(path);
        }
    }
    found
}

fn key_file(dir: &Path) -> String {
    fs::read_to_string(dir.join("secret-key")).unwrap()
}

fn a_key() -> String {
    (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect()
}

#[tokio::test]
async fn no_file_holds_a_value_or_a_key_that_went() {
    let dir = tempfile::tempdir().unwrap();
    let none = |when: &str| {
        let found = files_with(dir.path(), CLEAR.as_bytes());
        assert!(found.is_empty(), "{when}: {found:?}");
    };
    let store = filled(dir.path()).await;
    none("after they were put");
    put(&store, "a", value("other")).await;
    none("after an update");
    store.delete_secret(&name("default"), &name("b")).await.unwrap();
    none("after a delete");
    let before = key_file(dir.path());
    assert_eq!(store.rotate_key().await.unwrap(), 2);
    none("after a rotation");
    assert_ne!(key_file(dir.path()), before);
    assert!(files_with(dir.path(), before.trim().as_bytes()).is_empty(), "the old key is gone");
    drop(store);
    none("after the end");
    let store = open(dir.path());
    none("when it is open again");
    assert_eq!(get(&store, "a").await.unwrap(), value("other"));
    put(&store, "b", value("b")).await;
    assert_eq!(get(&store, "b").await.unwrap(), value("b"));
    let again =
        format!("{store:?} {:?}", Config { secret_keys: Some(KeyRing::parse(&before).unwrap()), ..Config::default() });
    assert!(!again.contains(&before[..16]), "{again}");
}

#[tokio::test]
async fn what_a_rotation_replaced_is_not_in_the_log_either() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let sealed: Vec<u8> = {
        let db = Connection::open(dir.path().join("taper.db")).unwrap();
        db.query_row("SELECT value FROM secret WHERE name = 'a'", (), |row| row.get(0)).unwrap()
    };
    assert!(!files_with(dir.path(), &sealed[..64]).is_empty());
    store.rotate_key().await.unwrap();
    assert!(files_with(dir.path(), &sealed[..64]).is_empty(), "who has the old key finds nothing for it");
    readable(&store).await;
}

#[tokio::test]
async fn the_key_is_made_once_closed_to_others_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret-key");
    drop(filled(dir.path()).await);
    let made = key_file(dir.path());
    assert!(made.len() == 65 && made.trim_end().bytes().all(|b| b.is_ascii_hexdigit()), "one line: {}", made.len());
    // What a process that was killed may have left, and what somebody else did.
    fs::write(dir.path().join("secret-key.new"), a_key()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    readable(&open(dir.path())).await;
    assert_eq!(key_file(dir.path()), made);
    assert!(!dir.path().join("secret-key.new").exists());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "closed again");
}

#[tokio::test]
async fn without_its_key_nothing_starts_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret-key");
    drop(filled(dir.path()).await);
    let key = fs::read(&path).unwrap();
    let before = fs::read(dir.path().join("taper.db")).unwrap();
    let wrong = a_key();
    for (content, expect) in [
        (None, "restore it from its backup"),
        (Some(wrong.clone()), "add that key"),
        (Some(String::new()), "no key"),
        (Some("hunter2\n".into()), "key 1 is not 64"),
        (Some(format!("{wrong}\n{}\n", &wrong[1..])), "key 2 is not 64"),
        (Some("0".repeat(1 << 20)), "too large"),
    ] {
        match &content {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let said = refused(dir.path(), Config::default());
        assert!(said.contains(expect) && said.contains(path.to_str().unwrap()), "{said}");
        assert!(!said.contains("hunter2") && !said.contains(&wrong[..16]), "{said}");
        assert_eq!(path.exists(), content.is_some(), "no other key is made");
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(refused(dir.path(), Config::default()).contains("no file"));
    fs::remove_dir(&path).unwrap();
    assert_eq!(fs::read(dir.path().join("taper.db")).unwrap(), before);
    fs::write(&path, key).unwrap();
    readable(&open(dir.path())).await;
}

#[tokio::test]
async fn without_secrets_any_key_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    for key in KEYS {
        store.delete_secret(&name("default"), &name(key)).await.unwrap();
    }
    drop(store);
    fs::write(dir.path().join("secret-key"), a_key()).unwrap();
    drop(open(dir.path()));
    fs::remove_file(dir.path().join("secret-key")).unwrap();
    drop(filled(dir.path()).await);
    readable(&open(dir.path())).await;
}

#[tokio::test]
async fn the_operators_keys_go_before_our_own_file() {
    let (dir, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = there.path().join("keys");
    let named = || Config { secret_key_file: Some(file.clone()), ..Config::default() };
    let given = |text: &str| Config { secret_keys: Some(KeyRing::parse(text).unwrap()), ..named() };
    assert!(refused(dir.path(), named()).contains(file.to_str().unwrap()), "the operator's file is never made");
    drop(filled(dir.path()).await);
    let (own, first, second) = (key_file(dir.path()), a_key(), a_key());

    // From our own file to the operator's.
    fs::write(&file, &first).unwrap();
    let said = refused(dir.path(), named());
    assert!(said.contains(file.to_str().unwrap()) && said.contains("further line"), "{said}");
    fs::write(&file, format!("{first}\n{own}")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    let link = there.path().join("link");
    symlink(&file, &link).unwrap();
    let store = Disk::open(dir.path(), Config { secret_key_file: Some(link), ..Config::default() }).unwrap();
    readable(&store).await;
    assert_eq!(store.rotate_key().await.unwrap(), 3);
    readable(&store).await;
    drop(store);
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{first}\n{own}"), "only read");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o444);
    fs::write(&file, &first).unwrap_or_else(|_| panic!("root may"));
    readable(&Disk::open(dir.path(), named()).unwrap()).await;

    // A new first line counts at the next rotation, without a restart; one that forgets the key in use is refused.
    let store = Disk::open(dir.path(), named()).unwrap();
    fs::write(&file, &second).unwrap();
    assert!(matches!(store.rotate_key().await, Err(Error::Key(_))));
    fs::remove_file(&file).unwrap();
    assert!(matches!(store.rotate_key().await, Err(Error::Key(_))));
    readable(&store).await;
    fs::write(&file, format!("{second}\n{first}")).unwrap();
    assert_eq!(store.rotate_key().await.unwrap(), 3);
    drop(store);
    fs::write(&file, &second).unwrap();
    readable(&Disk::open(dir.path(), named()).unwrap()).await;

    // And from there to the environment.
    let said = refused(dir.path(), given(&first));
    assert!(said.contains("TAPER_SECRET_KEY"), "{said}");
    let store = Disk::open(dir.path(), given(&format!("{first} {second}"))).unwrap();
    assert_eq!(store.rotate_key().await.unwrap(), 3);
    drop(store);
    readable(&Disk::open(dir.path(), given(&first)).unwrap()).await;
    assert_eq!(key_file(dir.path()), own, "our own file was left alone");
}

#[tokio::test]
async fn a_row_that_somebody_changed_is_named_and_the_others_are_read() {
    let flip = |at: &str| {
        format!("UPDATE secret SET value = CAST(substr(value, 1, {at}) || x'00' || substr(value, {at} + 2) AS BLOB)")
    };
    for (sql, why) in [
        (flip("0"), "not what was written"),
        (flip("30"), "not what was written"),
        (flip("length(value) - 1"), "not what was written"),
        ("UPDATE secret SET value = x''".into(), "cut off"),
        ("UPDATE secret SET value = substr(value, 1, 23)".into(), "cut off"),
        ("UPDATE secret SET value = substr(value, 1, 24)".into(), "not what was written"),
        ("UPDATE secret SET value = (SELECT value FROM secret WHERE name = 'a')".into(), "not what was written"),
        ("UPDATE secret SET version = version + 1".into(), "not what was written"),
        ("UPDATE secret SET version = -9223372036854775808".into(), "not what was written"),
        ("PRAGMA foreign_keys = OFF; UPDATE secret SET key = 77".into(), "key is not known"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        drop(filled(dir.path()).await);
        let db = Connection::open(dir.path().join("taper.db")).unwrap();
        db.execute_batch(&format!("{sql} WHERE name = 'b'")).unwrap();
        drop(db);
        let store = open(dir.path());
        for key in ["a", "c"] {
            assert_eq!(get(&store, key).await.unwrap(), value(key), "{sql}");
        }
        let key = key_file(dir.path());
        for error in [get(&store, "b").await.unwrap_err(), store.rotate_key().await.unwrap_err()] {
            let text = error.to_string();
            assert!(
                matches!(error, Error::Sealed { .. }) && text.contains("`b`") && text.contains(why),
                "{sql}: {text}"
            );
        }
        assert_eq!(key_file(dir.path()), key, "{sql}: a rotation that failed leaves the key");
        // Set again it is as any other.
        put(&store, "b", value("b")).await;
        readable(&store).await;
        assert_eq!(store.rotate_key().await.unwrap(), 3, "{sql}");
    }
}

#[tokio::test]
async fn a_row_under_another_name_is_not_that_secret() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()).await);
    let db = Connection::open(dir.path().join("taper.db")).unwrap();
    db.execute_batch("UPDATE secret SET name = CASE name WHEN 'a' THEN 'x' WHEN 'b' THEN 'a' END WHERE name < 'c'")
        .unwrap();
    db.execute_batch("UPDATE secret SET name = 'b' WHERE name = 'x'").unwrap();
    drop(db);
    let store = open(dir.path());
    for key in ["a", "b"] {
        assert!(matches!(get(&store, key).await, Err(Error::Sealed { .. })), "{key}");
        store.delete_secret(&name("default"), &name(key)).await.unwrap();
    }
    assert_eq!(get(&store, "c").await.unwrap(), value("c"));
    assert_eq!(store.rotate_key().await.unwrap(), 1);
}

/// Readers that never stop see the right value at every moment of many rotations.
#[tokio::test(flavor = "multi_thread")]
async fn rotations_are_invisible_to_readers() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(filled(dir.path()).await);
    let (mut reading, rotating) = (tokio::task::JoinSet::new(), Arc::clone(&store));
    let rotations = tokio::spawn(async move {
        for _again in 0..30 {
            assert_eq!(rotating.rotate_key().await.unwrap(), 3);
        }
    });
    let done = rotations.abort_handle();
    for key in KEYS {
        let (store, done) = (Arc::clone(&store), done.clone());
        reading.spawn(async move {
            let mut count = 0;
            while !done.is_finished() {
                assert_eq!(get(&store, key).await.unwrap(), value(key));
                count += 1;
            }
            count
        });
    }
    rotations.await.unwrap();
    assert!(reading.join_all().await.iter().sum::<u32>() > 0);
    assert_eq!(key_file(dir.path()).lines().count(), 1);
}

/// A database as the first version made it, with `count` secrets, each of several pages, in the log and in unused parts as well.
fn first_version(dir: &Path, count: usize) {
    fs::create_dir_all(dir).unwrap();
    let db = Connection::open(dir.join("taper.db")).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA secure_delete = OFF;
         CREATE TABLE schema (version INTEGER PRIMARY KEY, applied_ms INTEGER NOT NULL) STRICT;
         INSERT INTO schema VALUES (1, 0);
         CREATE TABLE function (
             namespace TEXT NOT NULL, name TEXT NOT NULL, scale INTEGER, created_ms INTEGER NOT NULL,
             PRIMARY KEY (namespace, name)
         ) STRICT, WITHOUT ROWID;
         CREATE TABLE revision (
             namespace TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL,
             state TEXT NOT NULL CHECK (state IN ('pending', 'ready', 'failed')),
             why TEXT CHECK ((why IS NOT NULL) = (state = 'failed')), record TEXT NOT NULL,
             PRIMARY KEY (namespace, name, number),
             FOREIGN KEY (namespace, name) REFERENCES function ON DELETE CASCADE
         ) STRICT, WITHOUT ROWID;
         CREATE TABLE secret (
             namespace TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (namespace, name)
         ) STRICT;",
    )
    .unwrap();
    let spec = |more: &str| {
        let odd = r#""scale":{"target":0.30000000000000004},"env":{"A":"\u0000\u2028ä\"\\"},"traffic":[]"#;
        format!(
            r#"{{"spec":{{{odd}{more}}},"artifact":null,"labels":{{"readyPath":"/x"}},"annotations":{{}},"createdMs":7}}"#
        )
    };
    let revisions = [
        ("default", "plain", spec("")),
        ("team", "asked", spec(r#","readyPath":"/odd \" \\ ä/ready""#)),
        ("team", "new", spec(r#","readyPath":"/new","startTimeout":"5s""#)),
    ];
    for (namespace, name, record) in &revisions {
        db.execute("INSERT INTO function VALUES (?1, ?2, NULL, 7)", [namespace, name]).unwrap();
        db.execute("INSERT INTO revision VALUES (?1, ?2, 1, 'ready', NULL, ?3)", [*namespace, *name, record]).unwrap();
    }
    db.execute_batch("BEGIN").unwrap();
    for i in 0..count {
        let key = format!("s{i}");
        let insert = "INSERT INTO secret VALUES (?1, ?2, ?3), (?1, 'gone-' || ?2, ?3)";
        db.execute(insert, rusqlite::params!["safe", key, &value(&key)[..]]).unwrap();
    }
    db.execute_batch("COMMIT; PRAGMA wal_checkpoint; DELETE FROM secret WHERE name LIKE 'gone-%'").unwrap();
    // As a killed process leaves it: the log is still there.
    for file in ["taper.db", "taper.db-wal"] {
        fs::copy(dir.join(file), dir.join(format!("{file}.kept"))).unwrap();
    }
    drop(db);
    for file in ["taper.db", "taper.db-wal"] {
        fs::rename(dir.join(format!("{file}.kept")), dir.join(file)).unwrap();
    }
}

/// What a database of the first version has become.
async fn came_forward(dir: &Path, count: usize) {
    let store = open(dir);
    let snapshot = Arc::clone(&store.snapshot().borrow());
    let spec = |name: &str| snapshot.function(&function(name)).unwrap().latest().revision.spec.clone();
    for (function, path) in [("plain", None), ("asked.team", Some("/odd \" \\ ä/ready")), ("new.team", Some("/new"))] {
        let spec = spec(function);
        assert_eq!(spec.readiness, path.map(|p| Probe { path: Some(p.into()), ..Probe::default() }), "{function}");
        assert_eq!((spec.scale.target, &*spec.env["A"]), (Some(0.1 + 0.2), "\0\u{2028}ä\"\\"));
    }
    let plain = snapshot.function(&function("plain")).unwrap();
    assert_eq!(plain.latest().revision.labels, BTreeMap::from([("readyPath".into(), "/x".into())]));
    assert_eq!(snapshot.namespaces.keys().map(Name::as_str).collect::<Vec<_>>(), ["default", "safe", "team"]);
    assert_eq!(snapshot.secrets.len(), count);
    for i in 0..count {
        let key = format!("s{i}");
        let secret = store.secret(&name("safe"), &name(&key)).await.unwrap();
        assert_eq!(secret.value, value(&key), "{key}");
        assert_eq!(snapshot.secret_version(&name("safe"), &name(&key)), Some(secret.version));
    }
    let clear = files_with(dir, CLEAR.as_bytes());
    assert!(clear.is_empty(), "in clear, while it is open: {clear:?}");
    store.put_secret(&name("safe"), &name("s0"), value("x"), Put::Update).await.unwrap();
    let next = store.snapshot().borrow().secret_version(&name("safe"), &name("s0"));
    assert!(snapshot.secrets.values().all(|v| Some(*v) < next), "{next:?}");
    drop(store);
    let clear = files_with(dir, CLEAR.as_bytes());
    assert!(clear.is_empty(), "in clear, after the end: {clear:?}");
}

#[tokio::test]
async fn an_older_database_is_encrypted_and_keeps_nothing_in_clear() {
    for count in [1, 50] {
        let dir = tempfile::tempdir().unwrap();
        first_version(dir.path(), count);
        assert_eq!(files_with(dir.path(), CLEAR.as_bytes()).len(), 2, "in clear in the database and in its log");
        came_forward(dir.path(), count).await;
    }
}

#[tokio::test]
async fn an_older_database_survives_kill_9_on_its_way() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let old = tempfile::tempdir().unwrap();
    first_version(old.path(), 60);
    let copy = || {
        let dir = tempfile::tempdir().unwrap();
        for file in ["taper.db", "taper.db-wal"] {
            fs::copy(old.path().join(file), dir.path().join(file)).unwrap();
        }
        dir
    };
    // Most moments are before the end, however fast this machine is at the moment.
    let (mut within, mut cut_off) = (Duration::from_millis(50), 0);
    for _kill in 0..20 {
        let dir = copy();
        for _again in 0..2 {
            let finished = one_opening(dir.path(), within.mul_f64(rng.random_range(0.0..1.0)));
            cut_off += usize::from(!finished);
            within = within.mul_f64(if finished { 0.7 } else { 1.2 });
        }
        came_forward(dir.path(), 60).await;
    }
    println!("{cut_off} of 40 openings were cut off; in the end within {within:?}");
    assert!(cut_off > 5, "seed {seed}: only {cut_off} openings were cut off");
}

/// Has a child open the store and kills it so long after it began; whether it had come to an end.
fn one_opening(dir: &Path, after: Duration) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "secrets::opening_child", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", dir.display()).unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("begins") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the child works");
    }
    // The moment is what is random here; nothing is waited for.
    thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    rest.contains("opened")
}

#[test]
#[ignore = "started and killed by an_older_database_survives_kill_9_on_its_way"]
fn opening_child() {
    let mut dir = String::new();
    std::io::stdin().read_line(&mut dir).unwrap();
    if dir.is_empty() {
        return; // started by hand
    }
    println!("\nbegins");
    let store = open(Path::new(dir.trim_end()));
    println!("opened");
    // Until it is killed, or the parent is gone.
    std::io::stdin().read_to_end(&mut Vec::new()).ok();
    drop(store);
}
