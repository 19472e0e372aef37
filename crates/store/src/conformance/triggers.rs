//! The promises about triggers.

use taper_model::trigger::{Events, Trigger, TriggerSpec};

use super::*;
use crate::MAX_TRIGGER;

pub(super) async fn run(make: &impl Fn() -> Arc<dyn Store>) {
    triggers_are_kept_changed_and_removed(&*make()).await;
    a_trigger_stays_when_its_function_goes(&*make()).await;
    triggers_that_cannot_be_kept_are_refused(&*make()).await;
}

/// `NAME.NAMESPACE`, which calls `function` every so often.
fn trigger(of: &str, function: &str, schedule: &str) -> Trigger {
    let FunctionName { namespace, name: own } = named(of);
    let spec = TriggerSpec {
        function: Some(name(function)),
        schedule: Some(schedule.into()),
        jitter: Some("1500ms".parse().expect("a duration")),
        ..TriggerSpec::default()
    };
    Trigger { namespace, name: own, spec, created_ms: 7 }
}

/// The namespaces `team` and `default`, each with the functions `a` and `b`.
async fn peopled(store: &dyn Store) {
    store.put_namespace(bare(&name("team")), Put::Create).await.expect("create");
    for function in ["a", "b", "a.team", "b.team"] {
        published(store, deploy(function, "1")).await;
    }
}

fn kept(store: &dyn Store, of: &str) -> Option<Trigger> {
    let of = named(of);
    now(store).trigger(&of.namespace, &of.name).map(|t| (**t).clone())
}

async fn triggers_are_kept_changed_and_removed(store: &dyn Store) {
    peopled(store).await;
    let nightly = trigger("nightly", "a", "0 3 * * *");
    let held = now(store);
    let mut watch = store.snapshot();
    store.put_trigger(nightly.clone()).await.expect("put");
    assert!(watch.has_changed().expect("the store lives"));
    watch.mark_unchanged();
    assert!(held.triggers.is_empty(), "a held snapshot stays");
    assert_eq!(now(store).version, held.version + 1);
    store.put_trigger(Trigger { created_ms: 9, ..nightly.clone() }).await.expect("put");
    assert!(!watch.has_changed().expect("the store lives"), "the same again");
    assert_eq!(kept(store, "nightly"), Some(nightly.clone()));
    let other = trigger("nightly.team", "b", "@hourly");
    store.put_trigger(other.clone()).await.expect("each namespace has its own");
    assert_eq!((now(store).triggers.len(), kept(store, "nightly.team")), (2, Some(other)));
    let mut events = Trigger { created_ms: 9, ..trigger("nightly", "b", "") };
    events.spec = TriggerSpec {
        function: Some(name("b")),
        suspend: true,
        events: Some(Events { topic: Some(name("orders")), reply: None }),
        ..TriggerSpec::default()
    };
    store.put_trigger(events.clone()).await.expect("put");
    assert_eq!(kept(store, "nightly"), Some(Trigger { created_ms: 7, ..events }), "it was made when it was made");
    store.delete_trigger(&nightly.namespace, &nightly.name).await.expect("delete");
    let again = store.delete_trigger(&nightly.namespace, &nightly.name).await;
    assert!(matches!(&again, Err(Error::NotFound(what)) if what.contains("trigger `nightly`")), "{again:?}");
    assert_eq!((now(store).triggers.len(), kept(store, "nightly")), (1, None));
    store.put_trigger(Trigger { created_ms: 11, ..nightly }).await.expect("put");
    assert_eq!(kept(store, "nightly").map(|t| t.created_ms), Some(11), "another one of the same name");
}

async fn a_trigger_stays_when_its_function_goes(store: &dyn Store) {
    let team = name("team");
    let missing = store.put_trigger(trigger("t.team", "a", "@daily")).await;
    assert!(matches!(&missing, Err(Error::NotFound(what)) if what.contains("namespace `team`")), "{missing:?}");
    peopled(store).await;
    let before = now(store);
    let missing = store.put_trigger(trigger("t.team", "nobody", "@daily")).await;
    assert!(matches!(&missing, Err(Error::NotFound(what)) if what.contains("nobody.team")), "{missing:?}");
    assert_eq!(now(store), before, "what is refused changes nothing");
    store.put_trigger(trigger("t.team", "a", "@daily")).await.expect("put");
    for function in ["a.team", "b.team"] {
        store.delete(&named(function)).await.expect("delete");
    }
    assert_eq!(kept(store, "t.team"), Some(trigger("t.team", "a", "@daily")));
    let held = store.delete_namespace(&team).await;
    assert!(matches!(&held, Err(Error::InUse(text)) if text.contains("the trigger `t`")), "{held:?}");
    published(store, deploy("a.team", "2")).await;
    store.put_trigger(trigger("u.team", "a", "@daily")).await.expect("the function is there again");
    store.delete(&named("a.team")).await.expect("delete");
    for left in ["t", "u"] {
        store.delete_trigger(&team, &name(left)).await.expect("delete");
    }
    store.delete_namespace(&team).await.expect("it is empty now");
}

async fn triggers_that_cannot_be_kept_are_refused(store: &dyn Store) {
    peopled(store).await;
    let before = now(store);
    let large = store.put_trigger(trigger("t", "a", &"*".repeat(MAX_TRIGGER))).await;
    assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    let mut nobody = trigger("t", "a", "@daily");
    nobody.spec.function = None;
    let nobody = store.put_trigger(nobody).await;
    assert!(matches!(&nobody, Err(Error::Refused(text)) if text.contains("names no function")), "{nobody:?}");
    assert_eq!(now(store), before);
}
