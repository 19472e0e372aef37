//! The suite that every store passes. Each function here is one promise of [`Store`], named by what it asserts, and begins
//! with an empty store of its own. Nothing here sleeps or reads a clock.

mod routes;
mod traffic;
mod triggers;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use taper_model::{
    Digest, Function, FunctionName, FunctionSpec, Name, Namespace, Revision, RevisionId, RevisionState,
    function::Source,
    quantity::Cpu,
    traffic::{Limits, Routing},
};

use crate::{Deploy, Direct, Error, MAX_NAMESPACE, MAX_REASON, MAX_REVISION, MAX_SECRET, Put, Snapshot, Store};

/// Runs every promise, one after another. `make` gives an empty store with the default [`Config`](crate::Config) each time.
///
/// # Panics
/// At the first promise that does not hold, naming it.
pub async fn run(make: impl Fn() -> Arc<dyn Store>) {
    begins_empty(&*make()).await;
    numbers_revisions_from_one(&*make()).await;
    the_same_again_changes_nothing(&*make()).await;
    every_other_change_makes_a_revision(&*make()).await;
    traffic::run(&make).await;
    routes::run(&make).await;
    triggers::run(&make).await;
    a_failed_deploy_can_be_tried_again(&*make()).await;
    the_source_is_the_artifact(&*make()).await;
    the_first_verdict_holds(&*make()).await;
    what_scale_asked_for_ends_with_a_deploy(&*make()).await;
    a_deleted_function_begins_anew(&*make()).await;
    what_serves_is_never_pruned(&*make()).await;
    what_is_not_there_is_named(&*make()).await;
    what_cannot_be_kept_is_refused(&*make()).await;
    a_snapshot_is_whole_and_counts(&*make()).await;
    what_changes_nothing_wakes_nobody(&*make()).await;
    commands_at_once_lose_nothing(make()).await;
    a_command_whose_caller_left_is_whole(&*make()).await;
    namespaces_are_made_changed_and_removed(&*make()).await;
    nothing_is_without_its_namespace(&*make()).await;
    a_namespace_goes_empty_or_stays(make()).await;
    secrets_are_kept_by_namespace(&*make()).await;
    secrets_are_created_and_updated_as_asked(&*make()).await;
    every_change_of_a_secret_has_its_own_version(&*make()).await;
    a_new_key_changes_nothing_else(&*make()).await;
    a_new_key_and_commands_at_once(make()).await;
    errors_hold_no_secret(&*make()).await;
}

/// A deploy of `function` (`NAME` or `NAME.NAMESPACE`) whose spec differs from others by `text`.
fn deploy(function: &str, text: &str) -> Deploy {
    let spec = FunctionSpec {
        command: vec!["cat".into()],
        env: BTreeMap::from([("TEXT".into(), text.into())]),
        ..FunctionSpec::default()
    };
    Deploy {
        function: named(function),
        spec,
        artifact: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        routing: Routing::default(),
        by: String::new(),
    }
}

fn named(function: &str) -> FunctionName {
    FunctionName::parse(function).expect("a name")
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn bare(name: &Name) -> Namespace {
    Namespace { name: name.clone(), labels: BTreeMap::new(), annotations: BTreeMap::new(), limits: Limits::default() }
}

async fn value_of(store: &dyn Store, namespace: &Name, name: &Name) -> Bytes {
    store.secret(namespace, name).await.expect("secret").value
}

async fn published(store: &dyn Store, deploy: Deploy) -> (Arc<Revision>, bool) {
    let published = store.publish(deploy).await.expect("publish");
    (published.revision, published.changed)
}

fn now(store: &dyn Store) -> Arc<Snapshot> {
    Arc::clone(&store.snapshot().borrow())
}

fn function(store: &dyn Store, name: &str) -> Arc<Function> {
    Arc::clone(now(store).function(&named(name)).expect("the function is in the snapshot"))
}

fn numbers(function: &Function) -> Vec<u32> {
    function.revisions.iter().map(|e| e.revision.id.number()).collect()
}

fn failed() -> RevisionState {
    RevisionState::Failed("ImportError: no module named x".into())
}

async fn begins_empty(store: &dyn Store) {
    let snapshot = now(store);
    assert!(snapshot.functions.is_empty() && snapshot.version == 0, "a new store is empty: {snapshot:?}");
    assert!(snapshot.secrets.is_empty() && snapshot.namespaces.keys().eq([&name("default")]), "{snapshot:?}");
    assert_eq!(store.secrets(&name("default")).await.expect("secrets"), []);
}

async fn numbers_revisions_from_one(store: &dyn Store) {
    for number in 1..=3 {
        let mut wanted = deploy("hello", &number.to_string());
        wanted.artifact = Some(Digest::of(b"code"));
        wanted.labels.insert("l".into(), "1".into());
        wanted.annotations.insert("a".into(), "2".into());
        wanted.by = format!("ada {number}");
        let (revision, changed) = published(store, wanted.clone()).await;
        assert!(changed, "revision {number} is new");
        assert_eq!(revision.id, RevisionId::new(named("hello"), number));
        assert_eq!(
            (&revision.labels, &revision.annotations, revision.artifact, &revision.by),
            (&wanted.labels, &wanted.annotations, wanted.artifact, &wanted.by)
        );
        assert_eq!(revision.spec.env, wanted.spec.env);
        let kept = function(store, "hello");
        assert_eq!(kept.latest().revision, revision, "the snapshot shows what was acknowledged");
        assert_eq!(kept.latest().state, RevisionState::Pending, "a new revision is pending");
        assert_eq!(numbers(&kept), (1..=number).collect::<Vec<_>>(), "oldest first");
    }
    store.put_namespace(bare(&name("elsewhere")), Put::Create).await.expect("create");
    let (other, _) = published(store, deploy("hello.elsewhere", "1")).await;
    assert_eq!(other.id.number(), 1, "each function counts for itself");
    assert_eq!(now(store).functions.len(), 2);
}

async fn the_same_again_changes_nothing(store: &dyn Store) {
    let mut first = deploy("hello", "1");
    first.artifact = Some(Digest::of(b"code"));
    first.spec.scale.target = Some(0.1 + 0.2);
    let (made, _) = published(store, first.clone()).await;
    let before = now(store);
    let mut source = first.clone();
    source.spec.source = Some(Source::Path("./hello.py".into()));
    let mut by = first.clone();
    by.by = "somebody else".into();
    for (what, again) in [("the same", first), ("another source", source), ("by another", by)] {
        let (revision, changed) = published(store, again).await;
        assert!(!changed && revision == made, "{what} is no new revision: {revision:?}");
    }
    assert_eq!(now(store), before);
}

async fn every_other_change_makes_a_revision(store: &dyn Store) {
    let base = || deploy("hello", "1");
    published(store, base()).await;
    let mut artifact = base();
    artifact.artifact = Some(Digest::of(b"code"));
    let mut label = base();
    label.labels.insert("team".into(), "a".into());
    let mut annotation = base();
    annotation.annotations.insert("autoscaling.knative.dev/target".into(), "5".into());
    let mut spec = base();
    spec.spec.concurrency = Some(3);
    // Not an array: it would lie in the future of this, and of all who wait for it.
    for (number, (what, next)) in (2..).zip(vec![
        ("artifact", artifact),
        ("label", label),
        ("annotation", annotation),
        ("spec", spec),
        ("the first one", base()),
    ]) {
        let (revision, changed) = published(store, next).await;
        assert!(changed && revision.id.number() == number, "another {what} makes revision {number}: {revision:?}");
    }
}

async fn a_failed_deploy_can_be_tried_again(store: &dyn Store) {
    let (first, _) = published(store, deploy("hello", "1")).await;
    store.settle(&first.id, failed()).await.expect("settle");
    let (second, changed) = published(store, deploy("hello", "1")).await;
    assert!(changed && second.id.number() == 2, "the same again after a failure is a new revision");
    assert_eq!(function(store, "hello").entry(1).map(|e| e.state.clone()), Some(failed()));
}

async fn the_source_is_the_artifact(store: &dyn Store) {
    let mut packed = deploy("hello", "1");
    packed.spec.source = Some(Source::Path("./hello.py".into()));
    packed.artifact = Some(Digest::of(b"code"));
    let (revision, _) = published(store, packed).await;
    assert_eq!(revision.spec.source, Some(Source::Digest { digest: Digest::of(b"code") }));
    let mut bare = deploy("bare", "1");
    bare.spec.source = Some(Source::Path("./hello.py".into()));
    assert_eq!(published(store, bare).await.0.spec.source, None, "no artifact, no source");
}

async fn the_first_verdict_holds(store: &dyn Store) {
    let (good, _) = published(store, deploy("hello", "1")).await;
    let (bad, _) = published(store, deploy("hello", "2")).await;
    assert_eq!(function(store, "hello").latest_ready(), None);
    for _again in 0..2 {
        store.settle(&good.id, RevisionState::Ready).await.expect("ready, and ready again");
        store.settle(&bad.id, failed()).await.expect("failed, and failed again");
    }
    for (id, other) in [(&good.id, failed()), (&good.id, RevisionState::Pending), (&bad.id, RevisionState::Ready)] {
        let refused = store.settle(id, other.clone()).await;
        assert!(matches!(refused, Err(Error::Settled { .. })), "{id} does not become {other:?}: {refused:?}");
    }
    let kept = function(store, "hello");
    assert_eq!(kept.latest_ready(), Some(&good), "the failed deploy leaves the old revision serving");
    assert_eq!(kept.latest().state, failed());
    let (long, _) = published(store, deploy("hello", "3")).await;
    let words = "ä".repeat(MAX_REASON);
    store.settle(&long.id, RevisionState::Failed(words.clone())).await.expect("a long reason");
    match &function(store, "hello").latest().state {
        RevisionState::Failed(why) => assert!(why.len() <= MAX_REASON && words.starts_with(why) && !why.is_empty()),
        other => panic!("a long reason is a failure: {other:?}"),
    }
}

async fn what_scale_asked_for_ends_with_a_deploy(store: &dyn Store) {
    let hello = named("hello");
    published(store, deploy("hello", "1")).await;
    for wanted in [Some(3), Some(0), Some(u32::MAX), None, Some(2)] {
        store.scale(&hello, wanted).await.expect("scale");
        assert_eq!(function(store, "hello").scale, wanted);
    }
    let (_, changed) = published(store, deploy("hello", "1")).await;
    assert_eq!((changed, function(store, "hello").scale), (false, None), "a deploy of the same ends it as well");
    store.scale(&hello, Some(2)).await.expect("scale");
    published(store, deploy("hello", "2")).await;
    assert_eq!(function(store, "hello").scale, None);
}

async fn a_deleted_function_begins_anew(store: &dyn Store) {
    for text in ["1", "2", "3"] {
        published(store, deploy("hello", text)).await;
    }
    store.put_namespace(bare(&name("elsewhere")), Put::Create).await.expect("create");
    published(store, deploy("hello.elsewhere", "1")).await;
    let gone = store.delete(&named("hello")).await.expect("delete");
    assert_eq!(gone, (1..=3).map(|n| RevisionId::new(named("hello"), n)).collect::<Vec<_>>());
    let left: Vec<_> = now(store).functions.keys().cloned().collect();
    assert_eq!(left, [named("hello.elsewhere")], "only the function that was named goes");
    let (again, changed) = published(store, deploy("hello", "3")).await;
    assert!(changed && again.id.number() == 1, "numbers begin again: {again:?}");
}

async fn what_serves_is_never_pruned(store: &dyn Store) {
    for number in 1..=30 {
        let (revision, _) = published(store, deploy("hello", &number.to_string())).await;
        assert_eq!(revision.id.number(), number, "numbers go on after the oldest went");
        match number {
            2 | 4 => store.settle(&revision.id, RevisionState::Ready).await.expect("ready"),
            n if n % 2 == 0 => {}
            _ => store.settle(&revision.id, failed()).await.expect("failed"),
        }
    }
    let kept = numbers(&function(store, "hello"));
    let expect: Vec<u32> = [2, 4].into_iter().chain(13..=30).collect();
    assert_eq!(kept, expect, "the oldest that never served went first; what serves and the one before it stay");
}

async fn what_is_not_there_is_named(store: &dyn Store) {
    let (default, hello) = (name("default"), named("hello"));
    let absent = RevisionId::new(hello.clone(), 7);
    let check = |result: Result<(), Error>, what: &str| match result {
        Err(e @ Error::NotFound(_)) => assert!(e.to_string().contains(what), "{e}"),
        other => panic!("{what} is not found: {other:?}"),
    };
    for _first_without_then_with_the_function in 0..2 {
        check(store.settle(&absent, RevisionState::Ready).await, "hello-00007.default");
        check(store.scale(&named("nobody"), Some(1)).await, "nobody.default");
        check(store.delete(&named("nobody")).await.map(drop), "nobody.default");
        check(store.direct(&named("nobody"), Direct::Hold(None)).await, "nobody.default");
        check(store.delete_route(&default, &name("shop")).await, "route `shop` in namespace `default`");
        check(store.secret(&default, &name("key")).await.map(drop), "key");
        check(store.delete_secret(&default, &name("key")).await, "key");
        published(store, deploy("hello", "1")).await;
    }
}

async fn what_cannot_be_kept_is_refused(store: &dyn Store) {
    let large = deploy("hello", &"x".repeat(MAX_REVISION));
    let refused = store.publish(large).await;
    assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
    let mut unreadable = deploy("hello", "1");
    unreadable.spec.resources.cpu = Some(Cpu(0));
    let refused = store.publish(unreadable).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    assert!(now(store).functions.is_empty(), "nothing was changed");
    let fits = deploy("hello", &"x".repeat(MAX_REVISION - 1000));
    assert_eq!(published(store, fits.clone()).await.0.spec.env, fits.spec.env);
}

async fn a_snapshot_is_whole_and_counts(store: &dyn Store) {
    published(store, deploy("hello", "1")).await;
    let held = now(store);
    let (second, _) = published(store, deploy("hello", "2")).await;
    store.settle(&second.id, RevisionState::Ready).await.expect("settle");
    published(store, deploy("other", "1")).await;
    assert_eq!((held.version, held.functions.len()), (1, 1), "a held snapshot stays as it was");
    assert_eq!(numbers(held.function(&named("hello")).expect("hello")), [1]);
    let last = now(store);
    assert_eq!((last.version, last.functions.len()), (4, 2), "every change counts once");
    store.delete(&named("hello")).await.expect("delete");
    assert_eq!((now(store).version, now(store).functions.len()), (5, 1));
}

async fn what_changes_nothing_wakes_nobody(store: &dyn Store) {
    let mut watch = store.snapshot();
    let seen = |watch: &tokio::sync::watch::Receiver<_>| watch.has_changed().expect("the store lives");
    assert!(!seen(&watch), "the current snapshot counts as seen");
    let (first, _) = published(store, deploy("hello", "1")).await;
    assert!(seen(&watch), "a change is told");
    store.settle(&first.id, RevisionState::Ready).await.expect("settle");
    watch.mark_unchanged();
    published(store, deploy("hello", "1")).await;
    store.settle(&first.id, RevisionState::Ready).await.expect("settle");
    store.scale(&named("hello"), None).await.expect("scale");
    store.direct(&named("hello"), Direct::Hold(None)).await.expect("direct");
    store.direct(&named("hello"), Direct::Shift { to: 1, percent: 50 }).await.expect("direct");
    let nothing = Direct::Traffic { traffic: Vec::new(), sticky: None };
    store.direct(&named("hello"), nothing).await.expect("direct");
    assert_eq!(store.collect().await.expect("collect"), 0);
    store.delete(&named("nobody")).await.expect_err("not found");
    store.put_namespace(bare(&name("default")), Put::Either).await.expect("put");
    store.rotate_key().await.expect("rotate");
    assert!(!seen(&watch) && !seen(&store.snapshot()), "no change, no snapshot");
}

async fn commands_at_once_lose_nothing(store: Arc<dyn Store>) {
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..60 {
        let store = Arc::clone(&store);
        let wanted = deploy(["a", "b", "c"][i % 3], &i.to_string());
        tasks.spawn(async move { published(&*store, wanted).await.0.id.clone() });
    }
    let mut ids = tasks.join_all().await;
    ids.sort();
    let expect = ["a", "b", "c"].into_iter().flat_map(|f| (1..=20).map(move |n| RevisionId::new(named(f), n)));
    assert_eq!(ids, expect.collect::<Vec<_>>(), "each number was given once");
    assert!(now(&*store).functions.values().all(|f| f.revisions.len() == 20));
}

async fn a_command_whose_caller_left_is_whole(store: &dyn Store) {
    for i in 0..20 {
        let mut leaving = store.publish(deploy("hello", &i.to_string()));
        // Polled once, so that it is on its way, and dropped.
        std::future::poll_fn(|cx| {
            let _under_way = leaving.as_mut().poll(cx);
            std::task::Poll::Ready(())
        })
        .await;
    }
    let (last, _) = published(store, deploy("hello", "last")).await;
    let kept = function(store, "hello");
    assert_eq!(kept.latest().revision, last, "what is asked later comes later");
    assert_eq!(numbers(&kept).last(), Some(&last.id.number()));
    for pair in kept.revisions.windows(2) {
        let text = |i: usize| pair[i].revision.spec.env["TEXT"].parse::<u32>().unwrap_or(u32::MAX);
        assert!(text(0) < text(1), "in the order they were asked");
    }
}

async fn namespaces_are_made_changed_and_removed(store: &dyn Store) {
    let (team, default) = (name("team"), name("default"));
    let labelled = |of: &Name, text: &str| Namespace {
        labels: BTreeMap::from([("l".into(), text.into())]),
        annotations: BTreeMap::from([("a".into(), "\"\\\0ä".into())]),
        limits: Limits { rate: Some(0.1 + 0.2), concurrency: Some(7), ..Limits::default() },
        ..bare(of)
    };
    assert!(matches!(store.put_namespace(bare(&team), Put::Update).await, Err(Error::NotFound(_))));
    store.put_namespace(bare(&team), Put::Create).await.expect("create");
    assert!(matches!(store.put_namespace(labelled(&team, "0"), Put::Create).await, Err(Error::Exists(_))));
    assert!(matches!(store.put_namespace(bare(&default), Put::Create).await, Err(Error::Exists(_))));
    assert_eq!(*now(store).namespaces[&team], bare(&team), "what is refused changes nothing");
    for (of, put) in [(&team, Put::Update), (&default, Put::Update), (&default, Put::Either)] {
        store.put_namespace(labelled(of, "1"), put).await.expect("put");
        assert_eq!(*now(store).namespaces[of], labelled(of, "1"));
    }
    let large = store.put_namespace(labelled(&team, &"x".repeat(MAX_NAMESPACE)), Put::Either).await;
    assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    assert_eq!(now(store).namespaces.keys().collect::<Vec<_>>(), [&default, &team]);
    store.delete_namespace(&team).await.expect("delete");
    assert!(matches!(store.delete_namespace(&team).await, Err(Error::NotFound(_))));
    assert!(matches!(store.delete_namespace(&default).await, Err(Error::Refused(_))), "the default one stays");
    assert_eq!(now(store).namespaces.keys().collect::<Vec<_>>(), [&default]);
}

async fn nothing_is_without_its_namespace(store: &dyn Store) {
    let (team, key) = (name("team"), name("key"));
    let refused = [
        store.publish(deploy("hello.team", "1")).await.map(drop),
        store.put_secret(&team, &key, Bytes::new(), Put::Either).await,
        store.put_secret(&team, &key, Bytes::new(), Put::Create).await,
    ];
    for refused in refused {
        let text = match refused {
            Err(e @ Error::NotFound(_)) => e.to_string(),
            other => panic!("there is no such namespace: {other:?}"),
        };
        assert!(text.contains("namespace `team`") && text.contains("taper namespace create team"), "{text}");
    }
    assert_eq!(now(store).version, 0, "nothing was changed");
    store.put_namespace(bare(&team), Put::Create).await.expect("create");
    for i in 0..7 {
        published(store, deploy(&format!("f{i}.team"), "1")).await;
    }
    store.put_secret(&team, &key, Bytes::new(), Put::Create).await.expect("put");
    let held = |result| match result {
        Err(e @ Error::InUse(_)) => e.to_string(),
        other => panic!("the namespace is in use: {other:?}"),
    };
    let text = held(store.delete_namespace(&team).await);
    assert!(["`team`", "`f0`", "`f4` and 2 more", "`key`"].iter().all(|part| text.contains(part)), "{text}");
    for i in 0..7 {
        store.delete(&named(&format!("f{i}.team"))).await.expect("delete");
    }
    let text = held(store.delete_namespace(&team).await);
    assert!(text.contains("`key`") && !text.contains("function"), "{text}");
    store.delete_secret(&team, &key).await.expect("delete");
    store.delete_namespace(&team).await.expect("it is empty now");
}

/// A namespace goes while others come into it: in the end nothing is in a namespace that is not there.
async fn a_namespace_goes_empty_or_stays(store: Arc<dyn Store>) {
    let team = name("team");
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..40 {
        let (store, team) = (Arc::clone(&store), team.clone());
        tasks.spawn(async move {
            let function = named(&format!("f{}.team", i % 4));
            let done = match i % 5 {
                0 => store.put_namespace(bare(&team), Put::Either).await,
                1 => store.delete_namespace(&team).await,
                2 => store.publish(Deploy { function, ..deploy("x", "1") }).await.map(drop),
                3 => store.delete(&function).await.map(drop),
                _ => store.put_secret(&team, &name("key"), Bytes::new(), Put::Either).await,
            };
            assert!(matches!(done, Ok(()) | Err(Error::NotFound(_) | Error::InUse(_))), "{done:?}");
            let seen = now(&*store);
            let used = seen.functions.keys().map(|f| &f.namespace).chain(seen.secrets.keys().map(|(ns, _)| ns));
            assert!(used.into_iter().all(|ns| seen.namespaces.contains_key(ns)), "{seen:?}");
        });
    }
    tasks.join_all().await;
}

async fn secrets_are_kept_by_namespace(store: &dyn Store) {
    let (here, there) = (name("default"), name("elsewhere"));
    store.put_namespace(bare(&there), Put::Create).await.expect("create");
    let all = Bytes::from_iter(0..=255);
    let most = Bytes::from(vec![7; MAX_SECRET]);
    for (namespace, key, value) in
        [(&here, "b", &all), (&here, "a", &Bytes::new()), (&there, "b", &most), (&there, "c", &all)]
    {
        store.put_secret(namespace, &name(key), value.clone(), Put::Either).await.expect("put");
        assert_eq!(value_of(store, namespace, &name(key)).await, value);
    }
    assert_eq!(store.secrets(&here).await.expect("secrets"), [name("a"), name("b")], "sorted");
    assert_eq!(store.secrets(&name("nowhere")).await.expect("secrets"), []);
    store.delete_secret(&here, &name("b")).await.expect("delete");
    assert_eq!(store.secrets(&here).await.expect("secrets"), [name("a")]);
    assert_eq!(value_of(store, &there, &name("b")).await, most, "the other namespace's stays");
    store.secret(&here, &name("b")).await.expect_err("it is gone");
}

async fn secrets_are_created_and_updated_as_asked(store: &dyn Store) {
    let (default, key) = (name("default"), name("key"));
    let put = |value: &'static str, put| store.put_secret(&default, &key, Bytes::from_static(value.as_bytes()), put);
    assert!(matches!(put("1", Put::Update).await, Err(Error::NotFound(_))));
    put("2", Put::Create).await.expect("create");
    assert!(matches!(put("3", Put::Create).await, Err(Error::Exists(_))));
    assert_eq!(value_of(store, &default, &key).await, "2", "a refused put changes nothing");
    put("4", Put::Update).await.expect("update");
    assert_eq!(value_of(store, &default, &key).await, "4");
    put("5", Put::Either).await.expect("either");
    assert_eq!(value_of(store, &default, &key).await, "5");
    let large = store.put_secret(&default, &key, Bytes::from(vec![0; MAX_SECRET + 1]), Put::Either).await;
    assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    assert_eq!(value_of(store, &default, &key).await, "5");
}

async fn every_change_of_a_secret_has_its_own_version(store: &dyn Store) {
    let default = name("default");
    let mut versions = Vec::new();
    let mut watch = store.snapshot();
    for (key, value) in [("a", "1"), ("b", "1"), ("a", "2"), ("a", "1"), ("b", ""), ("c", "")] {
        let key = name(key);
        store.put_secret(&default, &key, Bytes::from_static(value.as_bytes()), Put::Either).await.expect("put");
        assert!(watch.has_changed().expect("the store lives"), "a changed secret is told");
        watch.mark_unchanged();
        let secret = store.secret(&default, &key).await.expect("secret");
        assert_eq!(now(store).secret_version(&default, &key), Some(secret.version));
        versions.push(secret.version);
        store.put_secret(&default, &key, secret.value, Put::Either).await.expect("the same again");
        assert!(!watch.has_changed().expect("the store lives"), "the same value is no change");
    }
    let held = now(store);
    store.delete_secret(&default, &name("c")).await.expect("delete");
    assert!(watch.has_changed().expect("the store lives"));
    assert_eq!(now(store).secret_version(&default, &name("c")), None);
    assert_eq!(held.secret_version(&default, &name("c")), versions.last().copied(), "a held snapshot stays");
    store.put_secret(&default, &name("c"), Bytes::new(), Put::Create).await.expect("create");
    versions.extend(now(store).secret_version(&default, &name("c")));
    assert!(versions.is_sorted_by(|a, b| a < b) && versions.len() == 7, "never the same twice: {versions:?}");
    assert_eq!(held.secret_version(&name("elsewhere"), &name("a")), None);
}

async fn a_new_key_changes_nothing_else(store: &dyn Store) {
    let default = name("default");
    store.rotate_key().await.expect("without secrets");
    for i in 0..20 {
        let value = Bytes::from(vec![i; usize::from(i) * 997]);
        store.put_secret(&default, &name(&format!("s{i}")), value, Put::Create).await.expect("put");
    }
    let before = now(store);
    for _again in 0..3 {
        let count = store.rotate_key().await.expect("rotate");
        assert!(count == 20 || count == 0, "all, or there is no key: {count}");
        assert_eq!(now(store), before, "neither a version nor a snapshot");
        for i in 0..20 {
            let value = value_of(store, &default, &name(&format!("s{i}"))).await;
            assert_eq!(value, vec![i; usize::from(i) * 997]);
        }
    }
}

async fn a_new_key_and_commands_at_once(store: Arc<dyn Store>) {
    let default = name("default");
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..8_u8 {
        let (store, default, key) = (Arc::clone(&store), default.clone(), name(&format!("s{i}")));
        tasks.spawn(async move {
            for round in 0..20 {
                let value = Bytes::from(vec![i ^ round; 100]);
                store.put_secret(&default, &key, value.clone(), Put::Either).await.expect("put");
                let read = store.secret(&default, &key).await.expect("secret");
                assert_eq!(read.value, value);
                assert!(now(&*store).secret_version(&default, &key) == Some(read.version));
            }
        });
    }
    let rotating = Arc::clone(&store);
    tasks.spawn(async move {
        for _again in 0..10 {
            rotating.rotate_key().await.expect("rotate");
        }
    });
    tasks.join_all().await;
}

async fn errors_hold_no_secret(store: &dyn Store) {
    let (default, key) = (name("default"), name("key"));
    let value = "hunter2-hunter2-";
    let put = |namespace, times, put| {
        let value = Bytes::from(value.repeat(times));
        store.put_secret(namespace, &key, value, put)
    };
    put(&default, 1, Put::Create).await.expect("create");
    let nowhere = name("nowhere");
    for result in [
        put(&default, 1, Put::Create).await,
        put(&default, 1 << 20, Put::Either).await,
        put(&nowhere, 1, Put::Either).await,
    ] {
        let error = result.expect_err("refused");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
    let shown = format!("{:?} {:?}", now(store), store.secret(&default, &key).await);
    assert!(!shown.contains("hunter2"), "{shown}");
}
