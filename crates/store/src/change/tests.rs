//! What commands decide, as tables.

use taper_model::traffic::{Held, Rollout, Routing, Shift, Traffic};

use super::*;
use crate::{Config, Direct};

fn deploy(env: &str) -> Deploy {
    let spec = FunctionSpec {
        command: vec!["cat".into()],
        env: BTreeMap::from([("V".into(), env.into())]),
        ..FunctionSpec::default()
    };
    let function = FunctionName::parse("hello").unwrap();
    Deploy {
        function,
        spec,
        artifact: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        routing: Routing::default(),
        by: String::new(),
    }
}

fn keep(count: usize, age_ms: Option<u64>) -> Keep {
    let span = |ms| taper_model::quantity::Span(std::time::Duration::from_millis(ms));
    Keep::of(&Config { revisions: count, revision_age: age_ms.map(span), ..Config::default() })
}

/// Publishes, which must change the function.
fn published(before: Option<&Function>, deploy: Deploy, keep: Keep, now_ms: u64) -> Function {
    match publish(&Snapshot::default(), before, deploy, keep, now_ms) {
        Ok((Change::Put(after), _)) => after,
        Ok(_) => panic!("the publish changes the function"),
        Err(e) => panic!("{e}"),
    }
}

/// A function with revisions in these states (`p`, `r`, `f`), the first made at 1 ms, the next at 2.
fn made(states: &str) -> Option<Function> {
    let mut function: Option<Function> = None;
    for (i, state) in states.chars().enumerate() {
        let mut after = published(function.as_ref(), deploy(&i.to_string()), keep(usize::MAX, None), 1 + i as u64);
        after.revisions[i].state = match state {
            'r' => RevisionState::Ready,
            'f' => RevisionState::Failed("no".into()),
            _ => RevisionState::Pending,
        };
        function = Some(after);
    }
    function
}

fn shown(function: &Function) -> String {
    let show = |e: &Entry| format!("{}{}", e.revision.id.number(), &crate::error::word(&e.state)[..1]);
    function.revisions.iter().map(show).collect::<Vec<_>>().join(" ")
}

fn held(revision: u32) -> Held {
    Held { revision, why: "rolled back".into(), at_ms: 0 }
}

fn directed(function: &Function, change: Direct) -> Function {
    match direct(Some(function), &function.name, change) {
        Ok((Change::Put(after), ())) => after,
        _ => panic!("it changes the function"),
    }
}

#[test]
fn so_many_are_kept() {
    for (states, count, expect) in [
        ("rrr", 4, "1r 2r 3r 4p"),
        ("rrr", 3, "2r 3r 4p"),
        ("rrr", 1, "2r 3r 4p"),
        ("rfrp", 4, "1r 3r 4p 5p"),
        ("rfrp", 3, "1r 3r 5p"),
        ("rfrp", 2, "1r 3r 5p"),
        ("rfff", 2, "1r 5p"),
        ("rfff", 1, "1r 5p"),
        ("rfff", 0, "1r 5p"),
        ("ffff", 1, "5p"),
        ("", 0, "1p"),
    ] {
        let after = published(made(states).as_ref(), deploy("last"), keep(count, None), 100);
        assert_eq!(shown(&after), expect, "{states} {count}");
    }
}

#[test]
fn so_long_they_are_kept() {
    // The first was made at 1 ms, the sixth is made at 10 ms.
    for (age, expect) in [
        (100, "1r 2f 3r 4r 5r 6p"),
        (9, "1r 2f 3r 4r 5r 6p"),
        (8, "2f 3r 4r 5r 6p"),
        (7, "3r 4r 5r 6p"),
        (0, "4r 5r 6p"),
    ] {
        let after = published(made("rfrrr").as_ref(), deploy("last"), keep(20, Some(age)), 10);
        assert_eq!(shown(&after), expect, "{age}");
    }
    let after = published(made("rfrrr").as_ref(), deploy("last"), keep(20, Some(8)), 0);
    assert_eq!(shown(&after), "1r 2f 3r 4r 5r 6p", "a clock that was set back removes nothing");
}

#[test]
fn what_is_named_is_kept() {
    let function = made("rrrrrrr").unwrap();
    let target = |revision: &str, percent| Traffic {
        revision: Some(revision.into()),
        percent: Some(percent),
        tag: Some(Name::new(if percent == 0 { "old" } else { "main" }).unwrap()),
        ..Traffic::default()
    };
    let traffic = vec![target("hello-00002", 100), target("hello-00004", 0)];
    let pinned = directed(&function, Direct::Traffic { traffic, sticky: None });
    let after = published(Some(&pinned), deploy("last"), keep(1, Some(0)), 1000);
    assert_eq!(shown(&after), "2r 4r 6r 7r 8p", "share, tag, what is before the serving one, it, the newest");
    let back = directed(&function, Direct::Hold(Some(held(3))));
    let after = published(Some(&back), deploy("last"), keep(1, Some(0)), 1000);
    assert_eq!(shown(&after), "2r 3r 7r 8p", "what is held is what serves, and may be let go");
    let moving = Function { shift: Some(Shift { from: 1, to: 7, percent: 3, since_ms: 0 }), ..function };
    let after = published(Some(&moving), deploy("last"), keep(1, Some(0)), 1000);
    assert_eq!(shown(&after), "1r 6r 7r 8p", "both of a rollout");
}

#[test]
fn numbers_end() {
    let mut function = made("p").unwrap();
    let last = Revision {
        id: RevisionId::new(function.name.clone(), u32::MAX),
        ..Revision::clone(&function.latest().revision)
    };
    function.revisions[0].revision = Arc::new(last);
    let all = Snapshot::default();
    let refused = publish(&all, Some(&function), deploy("b"), keep(20, None), 0).map(drop).unwrap_err();
    assert!(matches!(refused, Error::Exhausted(_)), "{refused}");
}

/// Neither ties nor steps of the clock decide which came first, a hold or a deploy.
#[test]
fn what_is_held_ends_with_deploys_that_came_after_it() {
    for (deployed, went_back, fixed) in [(5, 6, 7), (5, 5, 5), (9, 5, 1), (5, 900, 6)] {
        let ready = |function: &Function, number| {
            let id = RevisionId::new(function.name.clone(), number);
            match settle(Some(function), &id, RevisionState::Ready, 1000) {
                Ok((Change::Put(after), ())) => after,
                _ => panic!("it becomes ready"),
            }
        };
        // The third is deployed, and before it is ready somebody goes back to the first.
        let function = published(made("rr").as_ref(), deploy("third"), keep(20, None), deployed);
        let function = directed(&function, Direct::Hold(Some(Held { at_ms: went_back, ..held(1) })));
        let function = ready(&function, 3);
        assert_eq!(function.serving().unwrap().id.number(), 1, "{deployed} {went_back}: it was deployed before");
        let function = published(Some(&function), deploy("fourth"), keep(20, None), fixed);
        assert_eq!(function.serving().unwrap().id.number(), 1, "as long as the new one is not ready");
        let function = ready(&function, 4);
        assert_eq!((function.serving().unwrap().id.number(), &function.held), (4, &None));
    }
}

#[test]
fn a_rollout_that_meets_another_goes_on_from_the_one_with_most_calls() {
    for (percent, from) in [(0, 1), (49, 1), (50, 2), (99, 2)] {
        let mut function = made("rr").unwrap();
        let duration = "1m".parse().unwrap();
        function.routing =
            Arc::new(Routing { rollout: Some(Rollout { duration, errors: 5.0, calls: 20 }), ..Routing::default() });
        function.shift = Some(Shift { from: 1, to: 2, percent, since_ms: 0 });
        let mut next = deploy("third");
        next.routing = Routing::clone(&function.routing);
        let after = published(Some(&function), next, keep(20, None), 5);
        assert_eq!(after.shift, function.shift, "it goes on until there is something to move to");
        let id = RevisionId::new(function.name.clone(), 3);
        let Ok((Change::Put(after), ())) = settle(Some(&after), &id, RevisionState::Ready, 7) else { panic!("ready") };
        assert_eq!(after.shift, Some(Shift { from, to: 3, percent: 1, since_ms: 7 }), "{percent}");
    }
}
