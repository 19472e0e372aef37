//! Any commands give the same answers and the same functions in memory and on disk, and after a reopen.

use proptest::prelude::*;
use taper_model::RevisionState;
use taper_store::{Config, Disk, Memory, Put, Store};

use crate::support::{Op, seen};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn op() -> impl Strategy<Value = Op> {
    let name = || prop::sample::select(&NAMES[..]).prop_map(str::to_owned);
    let state = prop_oneof![
        3 => Just(RevisionState::Ready),
        2 => "\\PC{0,40}".prop_map(RevisionState::Failed),
        1 => Just(RevisionState::Pending),
    ];
    let put = prop::sample::select(&[Put::Create, Put::Update, Put::Either][..]);
    prop_oneof![
        6 => (name(), "[ab\"\\\\\0\u{2028}]{0,2}", any::<bool>(), 0..2u8)
            .prop_map(|(function, text, artifact, label)| Op::Publish { function, text, artifact, label }),
        4 => (name(), 0..8u32, state).prop_map(|(function, number, state)| Op::Settle { function, number, state }),
        1 => (name(), any::<Option<u32>>()).prop_map(|(function, wanted)| Op::Scale { function, wanted }),
        1 => name().prop_map(|function| Op::Delete { function }),
        2 => (name(), any::<Vec<u8>>(), put).prop_map(|(name, value, put)| Op::PutSecret { name, value, put }),
        1 => name().prop_map(|name| Op::DeleteSecret { name }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_and_disk_agree(ops in prop::collection::vec(op(), 1..60), keep in 0..6usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let config = Config { revisions: keep };
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
                    let before = disk.snapshot().borrow().functions.clone();
                    drop(disk);
                    disk = Disk::open(dir.path(), config.clone()).unwrap();
                    let after = disk.snapshot().borrow().functions.clone();
                    prop_assert_eq!(before, after, "times too");
                }
                prop_assert_eq!(disk.snapshot().borrow().functions.len(), memory.snapshot().borrow().functions.len());
                for name in NAMES {
                    prop_assert_eq!(seen(&memory, name).await, seen(&disk, name).await, "reopened: {}", reopened);
                }
            }
            Ok(())
        })?;
    }
}
