//! The source that docs/triggers.md shows, run and killed: each line makes one call. That it is the same one is checked as well.

#![allow(clippy::unwrap_used, reason = "a test that finds nothing has failed")]

use std::{path::PathBuf, sync::Arc, time::Duration};

use taper_model::{BoxFuture, Function, FunctionName, FunctionSpec, Name, Revision, RevisionId, RevisionState};
use taper_model::{
    revision::Entry as Kept,
    trigger::{Trigger, TriggerSpec},
};
use taper_queue::{Config as QueueConfig, Filter, Journal, Page, Queue, conformance::unlimited};
use taper_store::Snapshot;
use taper_trigger::{Clock, Config, Error, Parts, Push, Service, Source};
use tokio::{sync::watch, time::timeout};

// from here …

/// Calls the functions of all triggers that have neither a schedule nor events with each line of a file.
struct Lines(PathBuf);

impl Source for Lines {
    fn kind(&self) -> &'static str {
        "lines"
    }

    fn owns(&self, spec: &TriggerSpec) -> bool {
        spec.schedule.is_none() && spec.events.is_none()
    }

    fn cursors(&self) -> &'static [&'static str] {
        &["line"]
    }

    fn run(&self, push: Push) -> BoxFuture<'static, Result<(), Error>> {
        let file = self.0.clone();
        Box::pin(async move {
            let mut next = push.cursor("line").await?.unwrap_or(0);
            loop {
                let text = std::fs::read_to_string(&file)
                    .map_err(|e| Error::Source(format!("{}: {e}; is it there?", file.display())))?;
                for line in text.split_inclusive('\n').skip(next as usize).filter(|line| line.ends_with('\n')) {
                    // The line's number is what happened. Killed after this, the same number makes no other call.
                    let mut entry = push.entry(&[&next.to_string()])?;
                    entry.body = line.trim_end().to_owned().into();
                    push.push(entry).await?;
                    next += 1;
                    push.set_cursor("line", next).await?;
                }
                push.clock().until(push.clock().now_ms() + 1000).await;
            }
        })
    }
}

// … to here it is the document's.

fn snapshot() -> Arc<Snapshot> {
    let hello = FunctionName::parse("hello").unwrap();
    let revision = Revision::bare(RevisionId::new(hello.clone(), 1), FunctionSpec::default());
    let function = Function {
        name: hello.clone(),
        revisions: vec![Kept { revision: Arc::new(revision), state: RevisionState::Ready }],
        scale: None,
        created_ms: 0,
        routing: Arc::default(),
        held: None,
        shift: None,
    };
    let spec = TriggerSpec { function: Some(hello.name.clone()), ..TriggerSpec::default() };
    let name = Name::new("lines").unwrap();
    let trigger = Trigger { namespace: hello.namespace.clone(), name: name.clone(), spec, created_ms: 1 };
    Arc::new(Snapshot {
        version: 1,
        functions: [(hello.clone(), Arc::new(function))].into_iter().collect(),
        triggers: [((hello.namespace, name), Arc::new(trigger))].into_iter().collect(),
        ..Snapshot::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_makes_one_call_whatever_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines");
    let (_keep, snapshots) = watch::channel(snapshot());
    let mut text = String::new();
    for life in 0..8_usize {
        text.push_str(&format!("line {life}\nhalf a, and "));
        std::fs::write(&file, &text).unwrap();
        let journal = Arc::new(Journal::open(&dir.path().join("queue"), QueueConfig::default(), unlimited()).unwrap());
        let parts = Parts {
            snapshot: snapshots.clone(),
            queue: Arc::clone(&journal) as _,
            clock: Clock::host(),
            sources: vec![Arc::new(Lines(file.clone()))],
        };
        let (service, _handle) = Service::build(Config::default(), parts);
        let task = tokio::spawn(service.run(std::future::pending()));
        // Every other life ends wherever it is; the last one sees to it that all is there.
        if life % 2 == 1 {
            let all = async {
                while journal.list(Filter::default(), Page::default()).await.unwrap().invocations.len() <= life {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            timeout(Duration::from_secs(60), all).await.unwrap();
        }
        task.abort();
        drop(task.await);
        if life == 7 {
            let calls = journal.list(Filter::default(), Page::default()).await.unwrap().invocations;
            let mut bodies = Vec::new();
            for call in calls {
                let body = journal.get(&call.id).await.unwrap().unwrap().entry.body;
                bodies.push(String::from_utf8(body.to_vec()).unwrap());
            }
            bodies.sort();
            let rest = (1..8).map(|n| format!("half a, and line {n}"));
            let mut expect: Vec<String> = std::iter::once("line 0".into()).chain(rest).collect();
            expect.sort();
            assert_eq!(bodies, expect);
        }
        journal.close();
    }
}

#[test]
fn the_document_shows_this_source() {
    let document = include_str!("../../../docs/triggers.md");
    let shown = document.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a source");
    let shown = shown.split_once("\n\n").expect("what it uses").1.split_once("\n\n").expect("the source").1;
    let here = include_str!("lines.rs").split_once("// from here …").expect("a source").1;
    let here = here.split_once("// … to here").expect("its end").0;
    assert!(here.contains(shown.trim_end()), "docs/triggers.md shows another source:\n{shown}");
}
