//! Keeps a task for each trigger that a source runs: started, ended and begun anew as the snapshot and errors say. Knows no source.

use std::{
    collections::{HashMap, HashSet},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use taper_model::{
    Name,
    trigger::{Trigger, TriggerState, TriggerStatus},
};
use taper_store::Snapshot;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    Error, Push, Source,
    annotation::{Found, desired},
    push::{Shared, cursor},
};

/// First wait after an error; it doubles.
const FIRST: Duration = Duration::from_secs(1);
/// Longest wait after an error. Whoever has run for as long is forgiven what was before.
const LONGEST: Duration = Duration::from_secs(60);

type Key = (Name, Name);

/// The tasks.
pub(crate) struct Supervisor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) sources: Vec<Arc<dyn Source>>,
    pub(crate) running: HashMap<Key, Running>,
}

/// A trigger that is there. Suspended ones have no task.
pub(crate) struct Running {
    trigger: Arc<Trigger>,
    source: Arc<dyn Source>,
    task: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Follows the snapshot until `shutdown`; when this returns every task has ended.
    pub(crate) async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        let mut snapshots = self.shared.snapshot.clone();
        let mut seen = Arc::new(Snapshot::default());
        let mut shutdown = pin!(shutdown);
        loop {
            let now = snapshots.borrow_and_update().clone();
            self.adapt(&seen, &now).await;
            seen = now;
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                changed = snapshots.changed() => if changed.is_err() {
                    // The store has gone; what is known stays.
                    shutdown.await;
                    break;
                }
            }
        }
        let tasks: Vec<_> = self.running.into_values().filter_map(|running| running.task).collect();
        end(tasks).await;
    }

    /// Makes what runs what there should be. What has not changed is not looked at.
    async fn adapt(&mut self, before: &Snapshot, now: &Snapshot) {
        let same_trigger = |a: &Arc<Trigger>, b: &Arc<Trigger>| Arc::ptr_eq(a, b);
        let mut changed: HashSet<Key> = now.triggers.differences(&before.triggers, same_trigger).cloned().collect();
        let functions = now.functions.differences(&before.functions, Arc::ptr_eq);
        changed.extend(functions.map(|name| (name.namespace.clone(), name.name.clone())));
        let (mut ending, mut forgotten, mut starting) = (Vec::new(), Vec::new(), Vec::new());
        for key in changed {
            let found = match desired(now, &key) {
                Some(Ok(found)) => Some(found),
                Some(Err(why)) => {
                    tracing::warn!(function = %key.1, namespace = %key.0, %why, "a schedule in annotations has no effect");
                    None
                }
                None => None,
            };
            let same = |running: &Running| found.as_ref().is_some_and(|found| found.trigger == running.trigger);
            if self.running.get(&key).is_some_and(same) {
                continue;
            }
            let source = found
                .as_ref()
                .and_then(|found| self.sources.iter().find(|source| source.owns(&found.trigger.spec)).map(Arc::clone));
            if let Some(old) = self.running.remove(&key) {
                ending.extend(old.task);
                let goes_on = found.as_ref().zip(source.as_ref()).is_some_and(|(found, source)| {
                    found.trigger.created_ms == old.trigger.created_ms && Arc::ptr_eq(source, &old.source)
                });
                if !goes_on {
                    forgotten.extend(old.source.cursors().iter().map(|name| cursor(&old.trigger, name)));
                }
            }
            match (found, source) {
                (Some(found), Some(source)) => starting.push((key, found, source)),
                (None, _) => self.shared.board.forget(&key),
                (Some(_), None) => {}
            }
        }
        // Nobody writes a cursor any more that is forgotten then.
        end(ending).await;
        let queue = &self.shared.queue;
        for done in join_all(forgotten.iter().map(|name| queue.set_cursor(name, None))).await {
            if let Err(error) = done {
                tracing::warn!(%error, "how far a deleted trigger was could not be forgotten; some bytes of the queue stay");
            }
        }
        for (key, Found { trigger, since_ms }, source) in starting {
            let task = (!trigger.spec.suspend).then(|| {
                let (shared, state) = (Arc::clone(&self.shared), self.shared.board.of(&trigger));
                state.note(|status| {
                    *status = TriggerStatus {
                        state: TriggerState::Active,
                        error: None,
                        next_tick_ms: None,
                        ..status.clone()
                    };
                });
                let push = Push { trigger: Arc::clone(&trigger), since_ms, shared, state };
                tokio::spawn(keep(Arc::clone(&source), push))
            });
            self.running.insert(key, Running { trigger, source, task });
        }
    }
}

async fn end(tasks: Vec<JoinHandle<()>>) {
    tasks.iter().for_each(JoinHandle::abort);
    for ended in join_all(tasks).await {
        drop(ended);
    }
}

/// Runs a trigger, and begins anew when that failed.
async fn keep(source: Arc<dyn Source>, push: Push) {
    let mut wait = FIRST;
    loop {
        let begun = Instant::now();
        let error = match AssertUnwindSafe(source.run(push.clone())).catch_unwind().await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => Error::Source("the source failed in a way that nobody had thought of; the log says where".into()),
        };
        push.failed(&error);
        let broken = matches!(error, Error::Invalid(_));
        push.note(|status| {
            status.next_tick_ms = None;
            status.state = if broken { TriggerState::Broken } else { TriggerState::Active };
        });
        let (trigger, namespace, kind) = (&push.trigger().name, &push.trigger().namespace, source.kind());
        if let Error::Invalid(why) = &error {
            tracing::warn!(%trigger, %namespace, kind, why, "a trigger makes no calls");
            return;
        }
        if begun.elapsed() > LONGEST {
            wait = FIRST;
        }
        tracing::warn!(%trigger, %namespace, kind, %error, again_in = ?wait, "a trigger could not go on");
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST);
    }
}
