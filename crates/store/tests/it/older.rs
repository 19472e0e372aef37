//! Databases of older versions come forward with what they said.

use std::path::Path;

use rusqlite::Connection;
use taper_model::{
    FunctionSpec, Name, RevisionState,
    traffic::Traffic,
    trigger::{Trigger, TriggerSpec},
};
use taper_store::{Config, Disk, Error, Put, Store};

use crate::support::{deploy, function, open};

/// Takes a database of today back to version 4, with this as the traffic of each revision of `hello`, oldest first.
fn set_back(dir: &Path, traffic: &[Option<&str>]) {
    let db = Connection::open(dir.join("taper.db")).unwrap();
    db.execute_batch(
        "DELETE FROM schema WHERE version > 4; DROP TABLE route; DROP TABLE trigger;
         ALTER TABLE function DROP COLUMN routing; ALTER TABLE function DROP COLUMN held;
         ALTER TABLE function DROP COLUMN shift;
         UPDATE revision SET record = json_remove(record, '$.by');",
    )
    .unwrap();
    for (number, traffic) in (1..).zip(traffic) {
        let Some(traffic) = traffic else { continue };
        let text = "UPDATE revision SET record = json_set(record, '$.spec.traffic', json(?2))
                    WHERE name = 'hello' AND number = ?1";
        assert_eq!(db.execute(text, rusqlite::params![number, traffic]).unwrap(), 1);
    }
}

fn latest(tag: Option<&str>) -> Traffic {
    Traffic { latest: true, percent: Some(100), tag: tag.map(|t| Name::new(t).unwrap()), ..Traffic::default() }
}

#[tokio::test]
async fn the_newest_revisions_traffic_is_the_functions() {
    let tagged = r#"{"latest":true,"tag":"now"}"#;
    for (old, expect) in [
        (&[None, None, None][..], vec![]),
        (&[None, None, Some("[]")], vec![]),
        (&[Some("[]"), None, Some(r#"[{"latest":true}]"#)], vec![latest(None)]),
        (&[Some(r#"[{"latest":true}]"#), None, None], vec![]),
        (&[None, Some(r#"[{"latest":true}]"#), Some(&format!("[{tagged}]"))], vec![latest(Some("now"))]),
        (
            &[
                None,
                None,
                Some(&format!(
                    r#"[{{"revision":"hello-00001","percent":90}},{{"latest":true,"percent":10}},{tagged}]"#
                )),
            ],
            vec![
                Traffic { revision: Some("hello-00001".into()), percent: Some(90), ..Traffic::default() },
                Traffic { percent: Some(10), ..latest(None) },
                Traffic { percent: None, ..latest(Some("now")) },
            ],
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let mut odd = deploy("hello", "ä\"\0\u{2028}");
        odd.spec.scale.target = Some(0.1 + 0.2);
        for spec in [deploy("hello", "1").spec, deploy("hello", "2").spec, odd.spec.clone()] {
            let made = store.publish(taper_store::Deploy { spec, ..deploy("hello", "") }).await.unwrap().revision;
            store.settle(&made.id, RevisionState::Ready).await.unwrap();
        }
        store.publish(deploy("other", "1")).await.unwrap();
        store.scale(&function("other"), Some(3)).await.unwrap();
        store
            .put_secret(&Name::default_namespace(), &Name::new("key").unwrap(), "x".into(), Put::Create)
            .await
            .unwrap();
        let before = store.snapshot().borrow().functions.clone();
        drop(store);
        set_back(dir.path(), old);

        let refused = Disk::peek(dir.path(), &Config::default()).map(drop).unwrap_err();
        assert!(matches!(refused, Error::Older { found: 4, .. }), "{refused}");
        for _again in 0..2 {
            let store = open(dir.path());
            let snapshot = store.snapshot().borrow().clone();
            let hello = snapshot.function(&function("hello")).unwrap();
            assert_eq!(hello.routing.traffic, expect, "{old:?}");
            assert_eq!(hello.revisions, before.get(&function("hello")).unwrap().revisions, "without it");
            assert_eq!(snapshot.functions.get(&function("other")), before.get(&function("other")));
            assert_eq!(hello.targets().shares.iter().map(|s| s.weight).sum::<u32>(), taper_model::traffic::WHOLE);
            let same = taper_store::Deploy { spec: FunctionSpec { ..odd.spec.clone() }, ..deploy("hello", "") };
            assert!(!store.publish(same).await.unwrap().changed, "the same again is still the same");
        }
    }
}

#[tokio::test]
async fn a_database_without_triggers_takes_them_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.publish(deploy("hello", "1")).await.unwrap();
    let before = store.snapshot().borrow().functions.clone();
    drop(store);
    let db = Connection::open(dir.path().join("taper.db")).unwrap();
    db.execute_batch("DELETE FROM schema WHERE version > 5; DROP TABLE trigger").unwrap();
    drop(db);
    let refused = Disk::peek(dir.path(), &Config::default()).map(drop).unwrap_err();
    assert!(matches!(refused, Error::Older { found: 5, .. }), "{refused}");
    let function = Some(function("hello").name);
    let (namespace, name) = (Name::default_namespace(), Name::new("nightly").unwrap());
    let spec = TriggerSpec { function, schedule: Some("@daily".into()), ..TriggerSpec::default() };
    let trigger = Trigger { namespace, name, spec, created_ms: 7 };
    let store = open(dir.path());
    assert_eq!(store.snapshot().borrow().functions, before);
    assert!(store.snapshot().borrow().triggers.is_empty());
    store.put_trigger(trigger.clone()).await.unwrap();
    drop(store);
    let kept = open(dir.path()).snapshot().borrow().trigger(&trigger.namespace, &trigger.name).cloned();
    assert_eq!(kept.as_deref(), Some(&trigger));
}
