//! Two platforms over one folder for a while, as when one replaces the other: neither touches what is the other's, whichever of
//! them ends first and however, and then nothing is left.

use std::{fs, sync::Arc};

use futures_util::StreamExt;
use serde_json::json;
use taper_local::Local;
use taper_model::Revision;
use taper_provider::{Instance, LogQuery, Provider};
use tokio::time::timeout;

use crate::{
    held::{Held, functions, told},
    world::{PATIENCE, Watch, World, bytes, invoke, kept, one},
};

/// One instance of each function.
async fn all(local: &Arc<Local>, revisions: &[Arc<Revision>]) -> Vec<Instance> {
    let mut instances = Vec::new();
    for revision in revisions {
        instances.push(one(local, revision).await);
    }
    instances
}

async fn answer(instances: &[Instance]) -> Vec<String> {
    let mut answers = Vec::new();
    for instance in instances {
        let reply = invoke(instance, "held").await.unwrap_or_else(|fault| panic!("{}: {fault:?}", instance.id));
        answers.push(String::from_utf8(bytes(reply).await.to_vec()).unwrap());
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn either_may_stop_first() {
    for first_stops_first in [true, false] {
        let world = World::with(|config| config.pool = kept(1)).await;
        let revisions = functions(&world);
        let mine = all(&world.local, &revisions).await;
        let mine_said = answer(&mine).await;
        let other = world.another().await;
        let theirs = all(&other, &revisions).await;
        let theirs_said = answer(&theirs).await;
        assert!(mine_said.iter().zip(&theirs_said).all(|(mine, theirs)| mine != theirs), "{mine_said:?}");
        assert_eq!(answer(&mine).await, mine_said, "the same instances as before the other came");

        // Each has a packet filter and addresses of its own.
        if let Some(blocks) = world.blocks() {
            assert!(blocks.len() == 2 && blocks[0] != blocks[1], "{blocks:?}");
        }

        // Both write to one log, and a reader of either sees both.
        for local in [&world.local, &other] {
            let follow = LogQuery { follow: true, ..LogQuery::default() };
            let lines = local
                .logs(revisions[0].id.function(), follow)
                .filter(|line| std::future::ready(line.text == "began"))
                .take(2);
            let writers = timeout(PATIENCE, lines.map(|line| line.instance).collect::<Vec<_>>()).await;
            assert_eq!(writers.expect("both are there"), [mine[0].id.as_str(), theirs[0].id.as_str()]);
        }

        let ((goes, gone), (stays, said)) = if first_stops_first {
            ((&world.local, &mine), ((&other, &theirs), theirs_said))
        } else {
            ((&other, &theirs), ((&world.local, &mine), mine_said))
        };
        let mut watch = Watch::open(goes).await;
        timeout(PATIENCE, goes.stop()).await.expect("it stops in time");
        watch.gone(&gone[0].id).await;
        assert_eq!(answer(stays.1).await, said);
        // It also goes on making new ones.
        stays.0.apply(&revisions[0], 2, &[]).await.unwrap();
        let mut watch = Watch::open(stays.0).await;
        let third = timeout(PATIENCE, watch.ready()).await.unwrap();
        assert!(!said.contains(&answer(&[third]).await[0]));
        stays.0.stop().await;
        world.assert_nothing_left();
        assert!(!world.dir.path().join("local/run").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_may_be_killed_first() {
    for first_is_killed in [true, false] {
        let world = World::with(|_| ()).await;
        world.local.stop().await;
        let told = told(&functions(&world), &json!({ "adopt": "0s" }));
        let (mut one, mut two) = (Held::start(&world, &told), Held::start(&world, &told));
        let said = [one.hear(), two.hear()];
        let (mut goes, mut stays, said) = if first_is_killed { (one, two, &said[1]) } else { (two, one, &said[0]) };
        goes.kill();
        assert_eq!(stays.ask(), *said, "the other's are as they were");
        // A third one removes what the killed one left, and nothing else.
        let mut third = Held::start(&world, &told);
        third.hear();
        let lives = fs::read_dir(world.dir.path().join("local/run")).unwrap().count();
        assert_eq!(lives, 2);
        assert_eq!(stays.ask(), *said);
        third.end();
        assert_eq!(stays.ask(), *said);
        stays.end();
        world.assert_nothing_left();
        assert!(!world.dir.path().join("local/run").exists());
    }
}
