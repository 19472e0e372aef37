//! Any commands give the same answers and the same functions in memory and on disk, and after a reopen.

use proptest::prelude::*;
use taper_model::RevisionState;
use taper_store::{Config, Disk, Memory, Put, Snapshot, Store};

use crate::support::{Op, Spread, seen};

const NAMES: [&str; 2] = ["a", "b"];
const HOSTS: [&str; 5] = ["", "a.example.com", "B.example.com", "*.example.com", "c"];

fn op() -> impl Strategy<Value = Op> {
    let name = || prop::sample::select(&NAMES[..]).prop_map(str::to_owned);
    // A namespace that is there at times.
    let place = || prop_oneof![5 => name(), 1 => name().prop_map(|name| format!("{name}.b"))];
    let state = prop_oneof![
        3 => Just(RevisionState::Ready),
        2 => "\\PC{0,40}".prop_map(RevisionState::Failed),
        1 => Just(RevisionState::Pending),
    ];
    let hosts = || prop::collection::vec(prop::sample::select(&HOSTS[..]).prop_map(str::to_owned), 0..3);
    let pinned = || prop::option::weighted(0.2, (1..5u32, 0..=100u8, any::<bool>()));
    let spread = move || {
        (pinned(), any::<bool>(), any::<bool>(), hosts()).prop_map(|(pinned, sticky, rollout, hosts)| Spread {
            pinned,
            sticky,
            rollout,
            hosts,
        })
    };
    let path = || prop::sample::select(&["/x", "/{a}", "/{b}/*", "/*"][..]).prop_map(str::to_owned);
    let put = || prop::sample::select(&[Put::Create, Put::Update, Put::Either][..]);
    prop_oneof![
        9 => (place(), "[ab\"\\\\\0\u{2028}]{0,2}", any::<bool>(), 0..2u8, spread())
            .prop_map(|(function, text, artifact, label, spread)| Op::Publish { function, text, artifact, label, spread }),
        2 => (name(), spread()).prop_map(|(function, spread)| Op::Traffic { function, spread }),
        2 => (name(), prop::option::weighted(0.8, 0..5u32)).prop_map(|(function, number)| Op::Hold { function, number }),
        2 => (name(), 0..5u32, 0..=110u8).prop_map(|(function, to, percent)| Op::Shift { function, to, percent }),
        3 => (place(), name(), hosts(), path())
            .prop_map(|(name, function, hosts, path)| Op::PutRoute { name, function, hosts, path }),
        1 => place().prop_map(|name| Op::DeleteRoute { name }),
        2 => (place(), name(), "[ab\"\\\\\0\u{2028}]{0,2}")
            .prop_map(|(name, function, text)| Op::PutTrigger { name, function, text }),
        1 => place().prop_map(|name| Op::DeleteTrigger { name }),
        1 => Just(Op::Collect),
        9 => (name(), 0..6u32, state).prop_map(|(function, number, state)| Op::Settle { function, number, state }),
        1 => (name(), any::<Option<u32>>()).prop_map(|(function, wanted)| Op::Scale { function, wanted }),
        1 => place().prop_map(|function| Op::Delete { function }),
        2 => (name(), any::<Vec<u8>>(), put()).prop_map(|(name, value, put)| Op::PutSecret { name, value, put }),
        1 => name().prop_map(|name| Op::DeleteSecret { name }),
        1 => (name(), 0..3u8, put()).prop_map(|(name, label, put)| Op::PutNamespace { name, label, put }),
        1 => name().prop_map(|name| Op::DeleteNamespace { name }),
        1 => Just(Op::RotateKey),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_and_disk_agree(ops in prop::collection::vec(op(), 1..100), keep in 0..6usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let config = Config { revisions: keep, ..Config::default() };
            let dir = tempfile::tempdir().unwrap();
            let memory = Memory::new(config.clone());
            let mut disk = Disk::open(dir.path(), config.clone()).unwrap();
            for op in &ops {
                prop_assert_eq!(op.run(&memory).await, op.run(&disk).await, "{:?}", op);
            }
            let versions = (memory.snapshot().borrow().version, disk.snapshot().borrow().version);
            prop_assert_eq!(versions.0, versions.1);
            for reopened in [false, true] {
                if reopened {
                    let before = Snapshot::clone(&disk.snapshot().borrow());
                    drop(disk);
                    disk = Disk::open(dir.path(), config.clone()).unwrap();
                    let after = Snapshot::clone(&disk.snapshot().borrow());
                    prop_assert_eq!(Snapshot { version: 0, ..before }, after, "times too");
                }
                let [ours, theirs] = [disk.snapshot(), memory.snapshot()].map(|s| Snapshot::clone(&s.borrow()));
                prop_assert_eq!(ours.functions.len(), theirs.functions.len());
                prop_assert_eq!((ours.namespaces, ours.secrets), (theirs.namespaces, theirs.secrets));
                prop_assert_eq!((ours.routes, ours.tables), (theirs.routes, theirs.tables));
                prop_assert_eq!(ours.triggers, theirs.triggers);
                for name in NAMES {
                    prop_assert_eq!(seen(&memory, name).await, seen(&disk, name).await, "reopened: {}", reopened);
                }
            }
            Ok(())
        })?;
    }
}
