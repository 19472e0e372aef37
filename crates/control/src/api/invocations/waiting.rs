//! Who waits for a call's end. One reader of the queue's changes serves them all, as long as there are any: a change costs a look into a
//! table, however many wait for other calls. Never asks the queue itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use taper_model::CallId;
use taper_queue::{Invocation, Queue};
use tokio::sync::{
    broadcast::{Receiver, error::RecvError},
    watch,
};
use tokio_util::task::AbortOnDropHandle;

use super::shown;

/// Those who wait.
#[derive(Default)]
pub(crate) struct Ends(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// Those whose ends are waited for, and by how many.
    calls: HashMap<CallId, (watch::Sender<()>, usize)>,
    reader: Option<AbortOnDropHandle<()>>,
}

/// Somebody who waits; dropping it ends that.
pub(super) struct Waiter {
    all: Arc<Ends>,
    id: CallId,
    ended: watch::Receiver<()>,
}

impl Ends {
    /// Begins to listen: every end of this call from now on is heard of.
    pub(super) fn wait(self: &Arc<Self>, queue: &dyn Queue, id: &CallId) -> Waiter {
        let mut waiting = self.lock();
        if waiting.reader.is_none() {
            let reading = tokio::spawn(read(queue.changes(), Arc::downgrade(self)));
            waiting.reader = Some(AbortOnDropHandle::new(reading));
        }
        self.listen(&mut waiting, id.clone())
    }

    fn listen(self: &Arc<Self>, waiting: &mut Waiting, id: CallId) -> Waiter {
        let (ended, waiters) = waiting.calls.entry(id.clone()).or_default();
        *waiters += 1;
        Waiter { all: Arc::clone(self), id, ended: ended.subscribe() }
    }

    /// Whoever waits looks again; with an id, only those who wait for that call.
    fn tell(&self, id: Option<&CallId>) {
        let waiting = self.lock();
        match id {
            Some(id) => waiting.calls.get(id).into_iter().for_each(|(ended, _)| ended.send_replace(())),
            None => waiting.calls.values().for_each(|(ended, _)| ended.send_replace(())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// When there is something to look for: the call has ended since this was asked last, or may have.
    pub(super) async fn ended(&mut self) {
        // Its sender is there as long as somebody waits.
        let _ = self.ended.changed().await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.all.lock();
        if let Some((_, waiters)) = waiting.calls.get_mut(&self.id) {
            *waiters -= 1;
            if *waiters == 0 {
                waiting.calls.remove(&self.id);
            }
        }
        if waiting.calls.is_empty() {
            waiting.reader = None;
        }
    }
}

async fn read(mut changes: Receiver<Arc<Invocation>>, ends: Weak<Ends>) {
    loop {
        let change = changes.recv().await;
        let Some(ends) = ends.upgrade() else { return };
        match change {
            Ok(call) if shown::has_ended(call.state) => ends.tell(Some(&call.id)),
            Ok(_) => {}
            // What was missed may have been any of them.
            Err(RecvError::Lagged(_)) => ends.tell(None),
            Err(RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use taper_model::FunctionName;
    use taper_queue::State;
    use tokio::{sync::broadcast, time::timeout};

    use super::*;

    fn change(id: &str, state: State) -> Arc<Invocation> {
        Arc::new(Invocation {
            id: CallId::given(id).unwrap(),
            function: FunctionName::parse("hello").unwrap(),
            trigger: None,
            state,
            accepted_ms: 1,
            due_ms: None,
            ended_ms: None,
            attempts: 0,
            status: None,
            reason: None,
        })
    }

    async fn is_told(waiter: &mut Waiter) -> bool {
        timeout(Duration::from_secs(1), waiter.ended()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_end_is_told_and_only_to_those_who_wait_for_it() {
        let ends = Arc::new(Ends::default());
        let (to, from) = broadcast::channel(4);
        let reader = tokio::spawn(read(from, Arc::downgrade(&ends)));
        let wait = |id: &str| ends.listen(&mut ends.lock(), CallId::given(id).unwrap());
        let (mut a, mut also_a, mut b) = (wait("a"), wait("a"), wait("b"));
        let send = |id: &str, state| drop(to.send(change(id, state)));
        send("a", State::Dead);
        assert!(is_told(&mut a).await && is_told(&mut also_a).await, "however late they listen");
        send("b", State::Running);
        assert!(!is_told(&mut b).await && !is_told(&mut a).await);
        drop(a);
        send("a", State::Done);
        assert!(is_told(&mut also_a).await, "one who left took nothing with him");
        (0..9).for_each(|_| send("c", State::Waiting));
        assert!(is_told(&mut b).await, "who may have missed it looks again");
        drop((also_a, b));
        assert!(ends.lock().calls.is_empty());
        drop(ends);
        send("a", State::Done);
        reader.await.unwrap();
    }
}
