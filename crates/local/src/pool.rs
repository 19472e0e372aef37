//! Owns the sandboxes that are kept ready, so that a start need not wait for one to be made: complete ones, with the
//! network and the language runtime that their next tenant needs, and nothing of any tenant. It never claims one, and
//! nothing that was taken comes back.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use taper_model::{Pooled, Runtime, Shelf, call::Start};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

use crate::{
    config,
    host::Host,
    network::{Lease, Policy},
    sandbox::{NetworkSpace, ParkSpec, Parked},
};

/// How long nothing is made after a sandbox could not be.
const REST: Duration = Duration::from_secs(1);
/// How long a runtime may load. It gets what is left of the processors.
const LOAD: Duration = Duration::from_secs(60);
/// Sandboxes that are made at a time, beside what callers wait for.
const MAKERS: usize = 2;
/// Claims within this time are one burst …
const BURST: Duration = Duration::from_secs(2);
/// … and the largest burst of this time is what the pool is ready for.
const RECENT: Duration = Duration::from_secs(300);

/// What a claim cannot change any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) network: NetworkSpace,
    pub(crate) policy: Policy,
    pub(crate) temporary: u64,
    /// The language runtime that waits in it, and how it is started.
    pub(crate) ahead: Option<(Runtime, Vec<String>)>,
}

impl Kind {
    /// `python3`, `node`, or `bare` where no runtime waits.
    fn name(&self) -> &'static str {
        self.ahead.as_ref().map_or("bare", |(runtime, _)| runtime.as_str())
    }

    /// What one takes before one has been measured.
    fn guess(&self) -> u64 {
        match &self.ahead {
            Some((Runtime::Node, _)) => 48 << 20,
            Some(_) => 16 << 20,
            None => 2 << 20,
        }
    }

    /// Whether its runtime can be a fork.
    fn forks(&self) -> bool {
        let forks = self.ahead.as_ref().is_some_and(|(runtime, _)| taper_runtimes::forks(*runtime));
        forks && self.network == NetworkSpace::Own
    }
}

/// A sandbox with its place on the network.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) parked: Parked,
    pub(crate) lease: Lease,
}

impl Sandbox {
    fn memory(&self) -> Option<u64> {
        self.parked.life.memory()
    }

    fn is_alive(&self) -> bool {
        self.parked.life.gone().now_or_never().is_none()
    }
}

/// Sandboxes of the kinds that are in use.
pub(crate) struct Pool {
    config: config::Pool,
    budget: u64,
    makers: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// The kind that was wanted last comes first.
    stocks: Vec<Stock>,
    counts: BTreeMap<&'static str, (u64, u64)>,
}

/// What there is of one kind.
struct Stock {
    kind: Kind,
    /// The oldest first.
    ready: VecDeque<Sandbox>,
    making: usize,
    wanted: usize,
    claims: Claims,
    /// Claims that are expected and have not come, and since when.
    due: usize,
    asked: Instant,
    used: Instant,
    /// What one takes.
    cost: u64,
}

/// Recent claims, as bursts: when each began, and how many there were.
#[derive(Default)]
struct Claims(VecDeque<(Instant, usize)>);

impl Claims {
    fn add(&mut self, now: Instant, count: usize) {
        match self.0.back_mut() {
            Some((begun, all)) if now < *begun + BURST => *all += count,
            _ => self.0.push_back((now, count)),
        }
    }

    /// The largest burst that is not too long ago.
    fn largest(&mut self, now: Instant) -> usize {
        while self.0.front().is_some_and(|(begun, _)| *begun + RECENT < now) {
            self.0.pop_front();
        }
        self.0.iter().map(|(_, count)| *count).max().unwrap_or(0)
    }
}

/// How many of a kind a burst leaves to others' first starts, where there are at least so many.
fn spare(floor: usize) -> usize {
    usize::from(floor > 1)
}

/// How many of each stock there are to be, from what each would have, what one costs, and the bounds on all together.
/// The kinds in use first get what each must have, the one used last first; what is left goes by the same order.
fn share(stocks: &[(usize, u64)], floor: usize, ceiling: usize, budget: u64) -> Vec<usize> {
    let (mut left, mut memory) = (ceiling, budget);
    let mut given = vec![0; stocks.len()];
    for most in [floor, usize::MAX] {
        for (given, (want, cost)) in given.iter_mut().zip(stocks) {
            let affordable = usize::try_from(memory / (*cost).max(1)).unwrap_or(usize::MAX);
            let more = (*want).min(most).saturating_sub(*given).min(left).min(affordable);
            *given += more;
            left -= more;
            memory -= more as u64 * *cost;
        }
    }
    given
}

impl Pool {
    pub(crate) fn new(config: config::Pool) -> Self {
        let budget = config.memory.map_or_else(tenth_of_memory, |memory| memory.0);
        Self { config, budget, makers: Semaphore::new(MAKERS), state: Mutex::default() }
    }

    /// Notes that so many of this kind will be taken as soon as they can be: what comes together is one burst, however
    /// long the starts then wait for each other.
    pub(crate) fn expect(&self, kind: &Kind, count: usize) {
        let mut state = self.lock();
        if !state.closed {
            let now = Instant::now();
            let stock = state.stock(kind);
            // What was expected so long ago and did not come was called off.
            let before = if stock.asked + BURST < now { 0 } else { stock.due };
            (stock.due, stock.asked) = (before + count, now);
            stock.claims.add(now, count);
        }
    }

    /// A sandbox of this kind, or failing that one in which no runtime waits, if there is one. Where there are not enough for all that
    /// are expected, the last one is left to the first start of a revision: one function's burst is not another's cold start.
    pub(crate) fn take(&self, kind: &Kind, first: bool) -> Option<(Sandbox, Start)> {
        let left = if first { 0 } else { spare(self.config.floor) };
        let mut state = self.lock();
        let short = state.due(kind);
        let taken = state.take(kind, if short { left } else { 0 });
        let (hits, misses) = state.counts.entry(kind.name()).or_default();
        *(if taken.is_some() { hits } else { misses }) += 1;
        let bare = || Kind { ahead: None, ..kind.clone() };
        let taken = taken.or_else(|| if kind.ahead.is_some() { state.take(&bare(), left) } else { None });
        taken.map(|sandbox| (sandbox, Start::Pool))
    }

    /// Notes that this kind is in use, and begins to make, beside everything else, what is missing of it.
    pub(crate) fn want(&self, host: &Arc<Host>, kind: &Kind) {
        if self.config.ceiling == 0 {
            return;
        }
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.stock(kind);
        self.balance(&mut state, host);
    }

    /// Lets go of what has not been in use for long, and of what is more than recent claims ask for. To be called now and
    /// then.
    pub(crate) fn tend(&self, host: &Arc<Host>) {
        let mut state = self.lock();
        let now = Instant::now();
        state.stocks.retain(|stock| stock.used + self.config.idle.0 > now);
        self.balance(&mut state, host);
    }

    /// How long until it is worth while to [`tend`](Self::tend) it.
    pub(crate) fn pause(&self) -> Duration {
        (self.config.idle.0 / 4).clamp(Duration::from_millis(20), Duration::from_secs(30))
    }

    /// Ends what is in it; nothing is kept any more.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let stocks = std::mem::take(&mut state.stocks);
        drop(state);
        drop(stocks);
    }

    /// What it has and has been good for.
    pub(crate) fn told(&self) -> Pooled {
        let state = self.lock();
        let mut kinds: BTreeMap<_, Shelf> = BTreeMap::new();
        for (name, (hits, misses)) in &state.counts {
            kinds.insert((*name).to_owned(), Shelf { hits: *hits, misses: *misses, ..Shelf::default() });
        }
        for stock in &state.stocks {
            let shelf = kinds.entry(stock.kind.name().to_owned()).or_default();
            shelf.ready += stock.ready.len() as u64;
            shelf.making += stock.making as u64;
            shelf.wanted += stock.wanted as u64;
            shelf.memory += stock.ready.iter().map(|sandbox| sandbox.memory().unwrap_or(stock.cost)).sum::<u64>();
        }
        Pooled { kinds, budget: self.budget }
    }

    /// Brings each stock towards what it should be.
    fn balance(&self, state: &mut State, host: &Arc<Host>) {
        let now = Instant::now();
        let floor = self.config.floor;
        let wants: Vec<_> = state.stocks.iter_mut().map(|stock| stock.look(now, floor)).collect();
        let shares = share(&wants, floor, self.config.ceiling, self.budget);
        for (stock, wanted) in state.stocks.iter_mut().zip(shares) {
            stock.wanted = wanted;
            // The youngest go: they have cost the least.
            stock.ready.truncate(wanted);
            let forks = self.config.forks && stock.kind.forks();
            while stock.ready.len() + stock.making < wanted {
                stock.making += 1;
                host.runtime.spawn(make(host.clone(), stock.kind.clone(), forks));
            }
        }
    }

    /// Takes in what was made, or takes note that it was not.
    fn made(&self, kind: &Kind, sandbox: Option<Sandbox>) {
        let mut state = self.lock();
        let Some(stock) = state.stocks.iter_mut().find(|stock| stock.kind == *kind) else { return };
        stock.making = stock.making.saturating_sub(1);
        if stock.ready.len() < stock.wanted {
            stock.ready.extend(sandbox);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The stock of a kind that is in use now, made when there is none, as the first of all.
    fn stock(&mut self, kind: &Kind) -> &mut Stock {
        let found = self.stocks.iter().position(|stock| stock.kind == *kind).map(|at| self.stocks.remove(at));
        let stock = found.unwrap_or_else(|| Stock::new(kind.clone()));
        self.stocks.insert(0, Stock { used: Instant::now(), ..stock });
        &mut self.stocks[0]
    }

    /// Whether those of this kind that are being made are still wanted.
    fn needs(&self, kind: &Kind) -> bool {
        let stock = self.stocks.iter().find(|stock| stock.kind == *kind);
        stock.is_some_and(|stock| stock.ready.len() + stock.making <= stock.wanted)
    }

    /// One of those that are expected comes: whether there are not enough for all of them.
    fn due(&mut self, kind: &Kind) -> bool {
        let Some(stock) = self.stocks.iter_mut().find(|stock| stock.kind == *kind) else { return false };
        let short = stock.due > stock.ready.len();
        stock.due = stock.due.saturating_sub(1);
        short
    }

    /// The oldest of this kind, when more than `left` are there.
    fn take(&mut self, kind: &Kind, left: usize) -> Option<Sandbox> {
        let stock = self.stocks.iter_mut().find(|stock| stock.kind == *kind)?;
        // One that died in the meantime is dropped here.
        std::iter::from_fn(|| if stock.ready.len() > left { stock.ready.pop_front() } else { None })
            .find(Sandbox::is_alive)
    }
}

impl Stock {
    fn new(kind: Kind) -> Self {
        let cost = kind.guess();
        let (ready, claims) = (VecDeque::new(), Claims::default());
        let now = Instant::now();
        Self { kind, ready, making: 0, wanted: 0, claims, due: 0, asked: now, used: now, cost }
    }

    /// How many it would have, and what one costs. Forgets those that have died.
    fn look(&mut self, now: Instant, floor: usize) -> (usize, u64) {
        self.ready.retain(Sandbox::is_alive);
        if let Some(memory) = self.ready.front().and_then(Sandbox::memory) {
            self.cost = memory.max(1 << 20);
        }
        ((self.claims.largest(now) + spare(floor)).max(floor), self.cost)
    }
}

async fn make(host: Arc<Host>, kind: Kind, forked: bool) {
    // It is never closed.
    let turn = host.pool().makers.acquire().await;
    if !host.pool().lock().needs(&kind) {
        return host.pool().made(&kind, None);
    }
    let ahead = kind.ahead.as_ref().map(|(_, command)| command.clone());
    let (network, temporary) = (kind.network, kind.temporary);
    let spec = ParkSpec { network, temporary, ahead, forked, waits: true, ..ParkSpec::default() };
    let made = timeout(LOAD, host.empty(&spec, kind.policy)).await;
    let made = made.unwrap_or_else(|_| Err(crate::Error::Park(format!("its runtime was not loaded within {LOAD:?}"))));
    let sandbox = match made {
        Ok(sandbox) => Some(sandbox),
        Err(e) => {
            // Whoever takes the pool down takes this one with it.
            if !host.pool().lock().closed {
                tracing::warn!(error = %e, "a sandbox could not be made ahead");
            }
            sleep(REST).await;
            None
        }
    };
    host.pool().made(&kind, sandbox);
    drop(turn);
}

fn tenth_of_memory() -> u64 {
    let host = rustix::system::sysinfo();
    // The type of the fields differs from one C library to another.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "see above")]
    let total = (host.totalram as u64).saturating_mul(u64::from(host.mem_unit));
    total / 10
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_there_is_shared_by_use_and_bounded() {
        let share = |stocks: &[_], ceiling, budget| share(stocks, 2, ceiling, budget);
        assert_eq!(share(&[(2, MIB), (2, MIB)], 64, 100 * MIB), [2, 2]);
        assert_eq!(share(&[(30, MIB), (2, MIB)], 64, 100 * MIB), [30, 2]);
        assert_eq!(share(&[(30, MIB), (50, MIB)], 64, 100 * MIB), [30, 34], "the one used last first");
        assert_eq!(share(&[(60, MIB), (60, MIB)], 64, 1000 * MIB), [60, 4], "but each gets the floor");
        assert_eq!(share(&[(64, 48 * MIB), (2, 2 * MIB)], 64, 200 * MIB), [4, 2], "memory bounds it");
        assert_eq!(share(&[(2, 48 * MIB), (2, 48 * MIB)], 64, 100 * MIB), [2, 0]);
        assert_eq!(share(&[(2, 48 * MIB)], 0, 100 * MIB), [0]);
        assert_eq!(share(&[], 5, 0), [0; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_burst_of_late_counts() {
        let mut claims = Claims::default();
        assert_eq!(claims.largest(Instant::now()), 0);
        for count in [1, 4, 2] {
            claims.add(Instant::now(), count);
        }
        sleep(BURST).await;
        claims.add(Instant::now(), 1);
        assert_eq!((claims.largest(Instant::now()), claims.0.len()), (7, 2));
        sleep(RECENT - BURST).await;
        assert_eq!(claims.largest(Instant::now()), 7);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(claims.largest(Instant::now()), 1, "the first one is too long ago");
        sleep(RECENT).await;
        assert_eq!(claims.largest(Instant::now()), 0);
    }
}
