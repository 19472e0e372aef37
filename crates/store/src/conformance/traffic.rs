//! The promises about how a function's calls are spread.

use taper_model::traffic::{Held, Rollout, Shift, Sticky, Traffic};

use super::*;

pub(super) async fn run(make: &impl Fn() -> Arc<dyn Store>) {
    a_deploy_says_how_calls_are_spread(&*make()).await;
    only_what_is_ready_is_named(&*make()).await;
    what_is_held_stays_until_a_later_deploy_is_ready(&*make()).await;
    the_same_deploy_takes_the_calls_again(&*make()).await;
    a_new_revision_rolls_out(&*make()).await;
    a_rollout_that_is_stopped_stays_with_what_served(&*make()).await;
    without_a_rollout_it_has_all_at_once(&*make()).await;
    what_calls_need_is_never_pruned(&*make()).await;
    routing_that_cannot_be_kept_is_refused(&*make()).await;
}

fn latest(percent: u8) -> Traffic {
    Traffic { latest: true, percent: Some(percent), ..Traffic::default() }
}

fn pinned(revision: &str, percent: u8) -> Traffic {
    Traffic { revision: Some(revision.into()), percent: Some(percent), ..Traffic::default() }
}

fn tagged(revision: &str, tag: &str) -> Traffic {
    Traffic { revision: Some(revision.into()), tag: Some(name(tag)), ..Traffic::default() }
}

fn rollout() -> Option<Rollout> {
    Some(Rollout { duration: "90s".parse().expect("a span"), errors: 0.1 + 0.2, calls: 7 })
}

fn held(revision: u32) -> Direct {
    Direct::Hold(Some(Held { revision, why: "rolled back by ada".into(), at_ms: 0 }))
}

fn spread(traffic: Vec<Traffic>) -> Direct {
    Direct::Traffic { traffic, sticky: None }
}

/// A new revision of `hello`, ready.
async fn ready(store: &dyn Store, text: &str, routing: Routing) -> u32 {
    let (revision, changed) = published(store, Deploy { routing, ..deploy("hello", text) }).await;
    assert!(changed, "another text is another revision");
    store.settle(&revision.id, RevisionState::Ready).await.expect("ready");
    revision.id.number()
}

async fn direct(store: &dyn Store, change: Direct) {
    store.direct(&named("hello"), change).await.expect("direct");
}

fn serving(store: &dyn Store) -> u32 {
    function(store, "hello").serving().map_or(0, |r| r.id.number())
}

/// Number and weight of each revision that takes a share.
fn shares(store: &dyn Store) -> Vec<(u32, u32)> {
    function(store, "hello").targets().shares.iter().map(|s| (s.revision.id.number(), s.weight)).collect()
}

/// Of the rollout under way: from, to and percent.
fn shift(store: &dyn Store) -> Option<(u32, u32, u8)> {
    function(store, "hello").shift.as_ref().map(|s: &Shift| (s.from, s.to, s.percent))
}

async fn a_deploy_says_how_calls_are_spread(store: &dyn Store) {
    let first = Routing {
        sticky: Some(Sticky { header: None, cookie: Some("c".into()) }),
        rollout: rollout(),
        limits: Limits { rate: Some(1.0 / 3.0), burst: Some(2), concurrency: Some(3), queue: Some(4) },
        ..Routing::default()
    };
    ready(store, "1", first.clone()).await;
    assert_eq!(*function(store, "hello").routing, first);
    let mut watch = store.snapshot();
    let full = Routing {
        traffic: vec![latest(90), pinned("hello-00001", 10), tagged("hello-00001", "old")],
        sticky: Some(Sticky { header: Some("X-User".into()), cookie: None }),
        ..Routing::default()
    };
    let empty = Routing::default();
    let limited = Routing { limits: first.limits.clone(), ..Routing::default() };
    let other = Routing { sticky: first.sticky.clone(), ..Routing::default() };
    for (what, given, expect) in [
        ("given", &full, full.clone()),
        ("empty traffic leaves traffic and stickiness", &empty, full.clone()),
        ("the rest is replaced", &limited, Routing { limits: first.limits.clone(), ..full.clone() }),
        (
            "and goes again; a stickiness of its own counts",
            &other,
            Routing { sticky: other.sticky.clone(), ..full.clone() },
        ),
    ] {
        let before = now(store);
        let (revision, changed) = published(store, Deploy { routing: given.clone(), ..deploy("hello", "1") }).await;
        assert_eq!((changed, revision.id.number()), (false, 1), "{what}: it makes no revision");
        assert_eq!(*function(store, "hello").routing, expect, "{what}");
        let told = watch.has_changed().expect("the store lives");
        assert_eq!(told, *before.function(&named("hello")).expect("hello").routing != expect, "{what}");
        watch.mark_unchanged();
    }
    let mut inside = deploy("hello", "1");
    inside.spec.traffic = vec![latest(100)];
    let (revision, changed) = published(store, inside).await;
    assert!(!changed && revision.spec.traffic.is_empty(), "what the spec says of it is no part of a revision");
    ready(store, "2", Routing::default()).await;
    assert_eq!(function(store, "hello").routing.traffic, full.traffic, "a new revision leaves the traffic");
    assert_eq!(shares(store), [(2, 9000), (1, 1000)]);
    direct(store, Direct::Traffic { traffic: vec![pinned("2", 100)], sticky: full.sticky.clone() }).await;
    assert_eq!(shares(store), [(2, 10_000)]);
    assert_eq!(function(store, "hello").routing.sticky, full.sticky);
    direct(store, spread(Vec::new())).await;
    assert_eq!((&*function(store, "hello").routing, shares(store)), (&Routing::default(), vec![(2, 10_000)]));
}

async fn only_what_is_ready_is_named(store: &dyn Store) {
    ready(store, "1", Routing::default()).await;
    published(store, deploy("hello", "2")).await;
    let (third, _) = published(store, deploy("hello", "3")).await;
    store.settle(&third.id, failed()).await.expect("failed");
    let before = now(store);
    for (text, number, expect) in [
        ("hello-00007", 7, Some("hello-00007")),
        ("other-00001", 0, Some("hello")),
        ("hello-00002", 2, None),
        ("hello-00003", 3, None),
    ] {
        let traffic = vec![latest(100), tagged(text, "t")];
        let routing = Routing { traffic: traffic.clone(), ..Routing::default() };
        let published = store.publish(Deploy { routing: routing.clone(), ..deploy("hello", "4") }).await;
        for refused in [
            published.map(drop),
            store.direct(&named("hello"), spread(traffic)).await,
            store.direct(&named("hello"), held(number)).await,
        ] {
            match (refused, expect) {
                (Err(e @ Error::NotFound(_)), Some(part)) => assert!(e.to_string().contains(part), "{e}"),
                (Err(e @ Error::Refused(_)), None) => assert!(e.to_string().contains(text), "{e}"),
                (other, _) => panic!("{text} cannot serve: {other:?}"),
            }
        }
        let new = store.publish(Deploy { routing, ..deploy("new", "1") }).await;
        assert!(matches!(new, Err(Error::NotFound(_))), "a new function has no revisions: {new:?}");
    }
    assert_eq!(now(store), before, "nothing was changed");
}

async fn what_is_held_stays_until_a_later_deploy_is_ready(store: &dyn Store) {
    for text in ["1", "2"] {
        ready(store, text, Routing::default()).await;
    }
    let (third, _) = published(store, deploy("hello", "3")).await;
    direct(store, held(1)).await;
    assert_eq!((serving(store), shares(store)), (1, vec![(1, 10_000)]));
    store.settle(&third.id, RevisionState::Ready).await.expect("ready");
    assert_eq!(serving(store), 1, "what was deployed before somebody went back does not end it");
    let (fourth, _) = published(store, deploy("hello", "4")).await;
    store.settle(&fourth.id, failed()).await.expect("failed");
    assert_eq!(serving(store), 1, "a deploy that fails leaves everything as it was");
    let (fifth, _) = published(store, deploy("hello", "5")).await;
    assert_eq!(serving(store), 1, "what somebody went back from does not come again while the new one starts");
    store.settle(&fifth.id, RevisionState::Ready).await.expect("ready");
    assert_eq!((serving(store), function(store, "hello").held.clone()), (5, None));
    for (change, expect) in [(held(2), 2), (held(3), 3), (Direct::Hold(None), 5), (held(1), 1), (spread(Vec::new()), 5)]
    {
        direct(store, change.clone()).await;
        assert_eq!(serving(store), expect, "{change:?}");
    }
    direct(store, held(1)).await;
    let latest = Traffic { latest: true, percent: Some(100), ..Traffic::default() };
    for (traffic, expect) in [
        (vec![latest.clone(), tagged("hello-00005", "look")], 1),
        (vec![Traffic { percent: Some(50), ..latest.clone() }, pinned("2", 50), tagged("hello-00005", "look")], 5),
    ] {
        direct(store, spread(traffic.clone())).await;
        assert_eq!(serving(store), expect, "only other shares end it: {traffic:?}");
    }
}

async fn the_same_deploy_takes_the_calls_again(store: &dyn Store) {
    for text in ["1", "2"] {
        ready(store, text, Routing::default()).await;
    }
    direct(store, held(1)).await;
    let mut watch = store.snapshot();
    let (revision, changed) = published(store, deploy("hello", "2")).await;
    assert_eq!((changed, revision.id.number(), serving(store)), (false, 2, 2));
    assert!(watch.has_changed().expect("the store lives"), "it is told");
    watch.mark_unchanged();
    published(store, deploy("hello", "2")).await;
    assert!(!watch.has_changed().expect("the store lives"), "once");
    // While the newest is not ready, the same deploy again takes them when it is.
    let (third, _) = published(store, deploy("hello", "3")).await;
    direct(store, held(1)).await;
    published(store, deploy("hello", "3")).await;
    assert_eq!(serving(store), 1);
    store.settle(&third.id, RevisionState::Ready).await.expect("ready");
    assert_eq!(serving(store), 3);
    // With a rollout it takes them step by step.
    direct(store, held(1)).await;
    published(store, Deploy { routing: Routing { rollout: rollout(), ..Routing::default() }, ..deploy("hello", "3") })
        .await;
    assert_eq!(shift(store), Some((1, 3, 1)));
    published(store, deploy("hello", "3")).await;
    assert_eq!((shift(store), serving(store)), (None, 3), "and all at once when the rollout is taken away");
}

async fn a_new_revision_rolls_out(store: &dyn Store) {
    let routing = || Routing { rollout: rollout(), ..Routing::default() };
    ready(store, "1", routing()).await;
    assert_eq!(shift(store), None, "nothing served before the first");
    ready(store, "2", routing()).await;
    assert_eq!((shift(store), shares(store)), (Some((1, 2, 1)), vec![(2, 100), (1, 9900)]), "never all at once");
    let since = function(store, "hello").shift.as_ref().map(|s| s.since_ms);
    for (to, percent, expect) in [(2, 30, 30), (1, 90, 30), (7, 100, 30), (2, 30, 30), (2, 0, 0), (2, 40, 40)] {
        direct(store, Direct::Shift { to, percent }).await;
        assert_eq!(shift(store), Some((1, 2, expect)), "{to} {percent}");
    }
    assert_eq!(function(store, "hello").shift.as_ref().map(|s| s.since_ms), since);
    let (third, _) = published(store, Deploy { routing: routing(), ..deploy("hello", "3") }).await;
    assert_eq!(shift(store), Some((1, 2, 40)), "it goes on while another starts");
    published(store, Deploy { routing: routing(), ..deploy("hello", "3") }).await;
    store.settle(&third.id, RevisionState::Ready).await.expect("ready");
    assert_eq!(shift(store), Some((1, 3, 1)), "from the one that had most");
    direct(store, Direct::Shift { to: 3, percent: 100 }).await;
    assert_eq!((shift(store), shares(store)), (None, vec![(3, 10_000)]), "it has come to its end");
    ready(store, "4", routing()).await;
    direct(store, held(3)).await;
    assert_eq!((shift(store), serving(store)), (None, 3), "stopped");
    let (fifth, _) = published(store, Deploy { routing: routing(), ..deploy("hello", "5") }).await;
    assert_eq!((shift(store), serving(store)), (None, 3), "the bad one does not come again");
    store.settle(&fifth.id, RevisionState::Ready).await.expect("ready");
    assert_eq!((shift(store), shares(store)), (Some((3, 5, 1)), vec![(5, 100), (3, 9900)]));
    direct(store, spread(Vec::new())).await;
    assert_eq!(shift(store), None, "whoever spreads calls by hand ends it");
    // Only the share of `latest` moves.
    direct(store, spread(vec![latest(10), pinned("hello-00001", 90)])).await;
    ready(store, "6", routing()).await;
    assert_eq!(shares(store), [(6, 10), (5, 990), (1, 9000)]);
    direct(store, spread(vec![pinned("hello-00001", 100)])).await;
    ready(store, "7", routing()).await;
    assert_eq!((shift(store), shares(store)), (None, vec![(1, 10_000)]), "there is no share that it could take");
}

async fn a_rollout_that_is_stopped_stays_with_what_served(store: &dyn Store) {
    let routing = || Routing { rollout: rollout(), ..Routing::default() };
    ready(store, "1", routing()).await;
    ready(store, "2", routing()).await;
    let stop = |to| Direct::Stop { to, why: "it fails".into(), at_ms: 0 };
    let version = now(store).version;
    for to in [1, 3] {
        direct(store, stop(to)).await;
    }
    assert_eq!((now(store).version, shift(store)), (version, Some((1, 2, 1))), "it is not the one under way");
    direct(store, stop(2)).await;
    assert_eq!((shift(store), serving(store), shares(store)), (None, 1, vec![(1, 10_000)]));
    assert_eq!(function(store, "hello").held.as_ref().map(|h| h.why.as_str()), Some("it fails"));
    let version = now(store).version;
    direct(store, stop(2)).await;
    assert_eq!(now(store).version, version, "it is over");
    ready(store, "3", routing()).await;
    assert_eq!((function(store, "hello").held.clone(), shift(store)), (None, Some((1, 3, 1))), "from what serves");
}

async fn without_a_rollout_it_has_all_at_once(store: &dyn Store) {
    let routing = Routing { rollout: rollout(), ..Routing::default() };
    ready(store, "1", routing.clone()).await;
    ready(store, "2", routing.clone()).await;
    assert_eq!(shift(store), Some((1, 2, 1)));
    let (third, _) = published(store, deploy("hello", "3")).await;
    assert_eq!(shift(store), Some((1, 2, 1)), "until there is something to move to");
    store.settle(&third.id, RevisionState::Ready).await.expect("ready");
    assert_eq!((shift(store), shares(store)), (None, vec![(3, 10_000)]));
    // One that is ready after a newer one takes nothing.
    let (fourth, _) = published(store, Deploy { routing: routing.clone(), ..deploy("hello", "4") }).await;
    ready(store, "5", routing).await;
    store.settle(&fourth.id, RevisionState::Ready).await.expect("ready");
    assert_eq!(shift(store), Some((3, 5, 1)));
}

async fn what_calls_need_is_never_pruned(store: &dyn Store) {
    for number in 1..=6 {
        ready(store, &number.to_string(), Routing::default()).await;
    }
    let traffic = vec![latest(99), pinned("hello-00002", 1), tagged("hello-00004", "t")];
    let mirror = Traffic { revision: Some("5".into()), mirror: Some(10), ..Traffic::default() };
    direct(store, spread(traffic.into_iter().chain([mirror]).collect())).await;
    for number in 7..=40 {
        ready(store, &number.to_string(), Routing::default()).await;
    }
    let kept: Vec<u32> = [2, 4, 5].into_iter().chain(24..=40).collect();
    assert_eq!(numbers(&function(store, "hello")), kept, "20, and among them what a share, a tag and a mirror name");
    assert_eq!(shares(store), [(40, 9900), (2, 100)]);
    assert_eq!(store.collect().await.expect("collect"), 0, "a deploy has done it already");
}

async fn routing_that_cannot_be_kept_is_refused(store: &dyn Store) {
    let large =
        Routing { sticky: Some(Sticky { header: Some("x".repeat(MAX_REVISION)), cookie: None }), ..Routing::default() };
    let odd = Rollout { errors: f64::NAN, ..rollout().expect("a rollout") };
    let unreadable = Routing { rollout: Some(odd), ..Routing::default() };
    for (routing, is_large) in [(large, true), (unreadable, false)] {
        let refused = store.publish(Deploy { routing, ..deploy("hello", "1") }).await;
        let right = match &refused {
            Err(Error::TooLarge { .. }) => is_large,
            Err(Error::Refused(_)) => !is_large,
            _ => false,
        };
        assert!(right, "{refused:?}");
    }
    assert!(now(store).functions.is_empty(), "nothing was changed");
}
