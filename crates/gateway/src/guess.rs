//! Wrong passwords: how long each one waits for its answer, and the one line that the log gets for a burst of them. Never sees a
//! password, and never stands in the way of a right one: that is answered at once, wherever it comes from.
//!
//! An answer waits longer with every wrong password from its source, up to a bound, and only so many wait at a time. What
//! comes beyond is turned away at once and loses its connection, so that a flood costs its sender more than it costs us.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// So many wrong passwords of one source are answered at once: people mistype.
const FREE: u32 = 3;
/// The first wait, doubled with every further wrong password.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Answers of one source that wait at a time.
const WAITING_OF_SOURCE: usize = 256;
/// Answers that wait at a time.
const WAITING: usize = 1024;
/// Sources that are remembered at a time.
const SOURCES: usize = 1024;
/// A source is forgotten after this long without a wrong password.
const MEMORY: Duration = Duration::from_secs(60);
/// A burst is over after this long without a wrong password.
const QUIET: Duration = Duration::from_secs(5);
/// A burst that goes on is told about as often.
const REMINDER: Duration = Duration::from_secs(60);
/// How often we look whether a burst is over.
const LOOK: Duration = Duration::from_secs(1);

/// Whoever counts as one: an IPv4 address, or the 64 bits of an IPv6 network, all of whose addresses one machine can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Source(IpAddr);

impl Source {
    fn of(peer: IpAddr) -> Self {
        Self(match peer.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
            v4 => v4,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0, if self.0.is_ipv6() { "/64" } else { "" })
    }
}

/// Those who guess.
#[derive(Clone)]
pub(crate) struct Guesses {
    table: Arc<Mutex<Table>>,
    /// Waits are cut short, and the last lines are written.
    drain: CancellationToken,
    tasks: TaskTracker,
}

impl Guesses {
    pub(crate) fn new(drain: CancellationToken, tasks: TaskTracker) -> Self {
        Self { table: Arc::default(), drain, tasks }
    }

    /// A wrong password came: waits as long as its answer has to. False when too many wait already.
    pub(crate) async fn wrong(&self, peer: IpAddr) -> bool {
        let source = Source::of(peer);
        let (wait, unwatched) = {
            let mut table = self.lock();
            (table.wrong(source, Instant::now()), !std::mem::replace(&mut table.watched, true))
        };
        if unwatched {
            self.tasks.spawn(watch(self.clone()));
        }
        let Some(wait) = wait else { return false };
        let place = Place { guesses: self, source };
        if !wait.is_zero() {
            tokio::select! {
                () = sleep(wait) => {}
                () = self.drain.cancelled() => {}
            }
        }
        drop(place);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("counting does not panic")
    }
}

/// An answer that waits; its caller may leave at any time.
struct Place<'a> {
    guesses: &'a Guesses,
    source: Source,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.guesses.lock().answered(self.source);
    }
}

/// Tells the log of bursts, and forgets, until there is nobody left to watch.
async fn watch(guesses: Guesses) {
    loop {
        tokio::select! {
            () = sleep(LOOK) => {}
            () = guesses.drain.cancelled() => {}
        }
        let (ending, now) = (guesses.drain.is_cancelled(), Instant::now());
        let (told, done) = {
            let mut table = guesses.lock();
            let told = table.settle(now, ending);
            let done = ending || (table.sources.is_empty() && table.others == 0);
            table.watched = !done;
            (told, done)
        };
        for Burst { from, attempts, lasted } in told {
            let seconds = lasted.as_secs();
            tracing::warn!(%from, attempts, seconds, "wrong passwords for the control plane");
        }
        if done {
            return;
        }
    }
}

/// What the log is told.
#[derive(Debug, PartialEq, Eq)]
struct Burst {
    from: String,
    attempts: u64,
    lasted: Duration,
}

#[derive(Default)]
struct Table {
    sources: HashMap<Source, Guesser>,
    /// Answers that wait, of all sources.
    waiting: usize,
    /// Wrong passwords that the log has not been told of, from sources that had to be forgotten.
    others: u64,
    /// Somebody tells the log.
    watched: bool,
}

struct Guesser {
    /// Wrong passwords since it was remembered.
    failures: u32,
    waiting: usize,
    /// When the burst began.
    since: Instant,
    last: Instant,
    /// Wrong passwords that the log has not been told of.
    untold: u64,
}

impl Table {
    /// How long the answer to a wrong password waits. None when too many do already. Whoever is told to wait says when it is over.
    fn wrong(&mut self, source: Source, now: Instant) -> Option<Duration> {
        if !self.sources.contains_key(&source) && self.sources.len() >= SOURCES && !self.forget_one() {
            self.others += 1;
            return None;
        }
        let new = Guesser { failures: 0, waiting: 0, since: now, last: now, untold: 0 };
        let guesser = self.sources.entry(source).or_insert(new);
        if guesser.untold == 0 {
            guesser.since = now;
        }
        guesser.last = now;
        guesser.untold += 1;
        guesser.failures = guesser.failures.saturating_add(1);
        if guesser.waiting >= WAITING_OF_SOURCE || self.waiting >= WAITING {
            return None;
        }
        guesser.waiting += 1;
        self.waiting += 1;
        let doublings = guesser.failures.checked_sub(FREE + 1);
        Some(doublings.map_or(Duration::ZERO, |n| LONGEST_WAIT.min(FIRST_WAIT * (1 << n.min(10)))))
    }

    /// An answer waits no more.
    fn answered(&mut self, source: Source) {
        self.waiting -= 1;
        if let Some(guesser) = self.sources.get_mut(&source) {
            guesser.waiting -= 1;
        }
    }

    /// Makes room: the one that was heard of the longest time ago goes, if there is one of which no answer waits.
    fn forget_one(&mut self) -> bool {
        let idle = self.sources.iter().filter(|(_, g)| g.waiting == 0);
        let Some(oldest) = idle.min_by_key(|(_, g)| g.last).map(|(source, _)| *source) else { return false };
        self.others += self.sources.remove(&oldest).map_or(0, |g| g.untold);
        true
    }

    /// The bursts that are over, or are worth a reminder; all of them at the end.
    fn settle(&mut self, now: Instant, ending: bool) -> Vec<Burst> {
        let mut told = Vec::new();
        for (source, guesser) in &mut self.sources {
            let over = now - guesser.last >= QUIET || now - guesser.since >= REMINDER || ending;
            if over && guesser.untold > 0 {
                let (attempts, lasted) = (std::mem::take(&mut guesser.untold), guesser.last - guesser.since);
                told.push(Burst { from: source.to_string(), attempts, lasted });
            }
        }
        if self.others > 0 {
            let from = format!("more than {SOURCES} addresses");
            told.push(Burst { from, attempts: std::mem::take(&mut self.others), lasted: LOOK });
        }
        self.sources.retain(|_, g| g.waiting > 0 || now - g.last < MEMORY);
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u32) -> Source {
        Source::of(IpAddr::from(n.to_be_bytes()))
    }

    #[test]
    fn waits_grow_to_a_bound_for_each_source_alone() {
        let (mut table, now) = (Table::default(), Instant::now());
        let waits: Vec<u128> = (0..12)
            .map(|_| {
                let wait = table.wrong(source(1), now).unwrap().as_millis();
                table.answered(source(1));
                wait
            })
            .collect();
        assert_eq!(waits, [0, 0, 0, 100, 200, 400, 800, 1600, 2000, 2000, 2000, 2000]);
        assert_eq!(table.wrong(source(2), now), Some(Duration::ZERO));
        assert_eq!(table.waiting, 1);
    }

    #[test]
    fn only_so_many_wait() {
        let (mut table, now) = (Table::default(), Instant::now());
        let taken = (0..1000).filter(|_| table.wrong(source(1), now).is_some()).count();
        assert_eq!(taken, WAITING_OF_SOURCE);
        let all = (2..2000).filter(|n| table.wrong(source(*n), now).is_some()).count();
        assert_eq!((taken + all, table.waiting), (WAITING, WAITING));
        for _ in 0..taken {
            table.answered(source(1));
        }
        assert!(table.wrong(source(1), now).is_some(), "there is room again");
    }

    #[test]
    fn only_so_many_sources_are_remembered() {
        let (mut table, now) = (Table::default(), Instant::now());
        for n in 0..5000 {
            table.wrong(source(n), now + Duration::from_millis(n.into())).unwrap();
            table.answered(source(n));
        }
        assert_eq!((table.sources.len(), table.others), (SOURCES, 5000 - SOURCES as u64));
        assert!(table.sources.contains_key(&source(4999)) && !table.sources.contains_key(&source(0)));
        let later = now + Duration::from_secs(5) + MEMORY;
        assert_eq!(table.settle(later, false).iter().map(|b| b.attempts).sum::<u64>(), 5000);
        assert!(table.sources.is_empty());
    }

    #[test]
    fn a_burst_is_told_once() {
        let (mut table, start) = (Table::default(), Instant::now());
        for n in 0..100 {
            table.wrong(source(1), start + Duration::from_millis(10 * n)).unwrap();
            table.answered(source(1));
        }
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(table.settle(at(3), false), []);
        let burst = Burst { from: "0.0.0.1".into(), attempts: 100, lasted: Duration::from_millis(990) };
        assert_eq!(table.settle(at(6), false), [burst]);
        assert_eq!(table.settle(at(7), false), []);
        // One that does not end is told of now and then, and at the end.
        for n in 10..80 {
            table.wrong(source(1), at(n));
            table.answered(source(1));
        }
        assert_eq!(table.settle(at(80), false).iter().map(|b| b.attempts).collect::<Vec<_>>(), [70]);
        table.wrong(source(1), at(80));
        assert_eq!(table.settle(at(80), true)[0].attempts, 1);
    }

    #[test]
    fn a_network_is_one_source() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_eq!(
            (of("2001:db8::1").to_string(), of("192.0.2.1").to_string()),
            ("2001:db8::/64".into(), "192.0.2.1".into())
        );
    }
}
