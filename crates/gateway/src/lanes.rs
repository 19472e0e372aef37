//! The threads that carry calls, each with a runtime of its own: a connection, its calls and their connections to instances stay on
//! one thread, so that nothing on a call's way wakes another processor or is locked against one. Never accepts and never looks at a
//! request.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// All lanes. Dropping them ends their threads, with whatever still runs there.
pub(crate) struct Lanes {
    lanes: Vec<Lane>,
    end: CancellationToken,
}

struct Lane {
    runtime: Handle,
    /// Connections that are open on it.
    load: Arc<AtomicUsize>,
}

/// A connection's place on its lane.
pub(crate) struct Place {
    /// The lane's number, from 0.
    pub(crate) lane: usize,
    load: Arc<AtomicUsize>,
}

impl Lanes {
    /// Starts so many lanes; with 0, one for each processor that this process may use.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left for one.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        let count = if count > 0 { count } else { thread::available_parallelism().map_or(1, usize::from) };
        // Made first, so that lanes that were started end when a later one cannot be.
        let mut all = Self { lanes: Vec::with_capacity(count), end: CancellationToken::new() };
        for number in 0..count {
            let (tell, told) = mpsc::sync_channel(1);
            let end = all.end.clone();
            thread::Builder::new().name(format!("lane-{number}")).spawn(move || live(&tell, &end))?;
            let runtime = told.recv().map_err(io::Error::other)??;
            all.lanes.push(Lane { runtime, load: Arc::default() });
        }
        Ok(all)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.lanes.len()
    }

    /// The lane with the fewest connections, and a place on it.
    pub(crate) fn place(&self) -> (&Handle, Place) {
        let all = self.lanes.iter().enumerate();
        let (number, lane) = all.min_by_key(|(_, lane)| lane.load.load(Ordering::Relaxed)).expect("there is a lane");
        lane.load.fetch_add(1, Ordering::Relaxed);
        (&lane.runtime, Place { lane: number, load: Arc::clone(&lane.load) })
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A lane's thread.
fn live(tell: &mpsc::SyncSender<io::Result<Handle>>, end: &CancellationToken) {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = tell.send(Err(error));
            return;
        }
    };
    let _ = tell.send(Ok(runtime.handle().clone()));
    runtime.block_on(end.cancelled());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_where_the_fewest_are() {
        let lanes = Lanes::start(3).unwrap();
        let mut places: Vec<_> = (0..6).map(|_| lanes.place().1).collect();
        let loads = || lanes.lanes.iter().map(|l| l.load.load(Ordering::Relaxed)).collect::<Vec<_>>();
        assert_eq!(loads(), [2, 2, 2]);
        places.remove(1);
        assert_eq!(loads(), [2, 1, 2]);
        places.push(lanes.place().1);
        assert_eq!(loads(), [2, 2, 2]);
        drop(places);
        assert_eq!(loads(), [0, 0, 0]);
    }

    #[test]
    fn each_is_a_thread_of_its_own_and_ends_with_all() {
        let lanes = Lanes::start(2).unwrap();
        let threads: std::collections::HashSet<_> = [lanes.place(), lanes.place()]
            .iter()
            .map(|(runtime, _)| {
                let (tell, told) = mpsc::channel();
                runtime.spawn(async move { tell.send(thread::current().id()).unwrap() });
                told.recv().unwrap()
            })
            .collect();
        assert_eq!(threads.len(), 2);
        let (ended, end) = mpsc::channel::<()>();
        lanes.place().0.spawn(async move {
            let _held = ended;
            std::future::pending::<()>().await;
        });
        drop(lanes);
        end.recv().unwrap_err();
    }
}
