//! How much is let in: so many calls per second and so many at a time, of a function and of a namespace, over all lanes and ways.
//! What is over a limit is refused at once, with the time after which it would not be. Never holds a call: queues do.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use taper_model::{Cause, Fault, Function, FunctionName, Name, Retry, Stage, traffic};
use taper_store::Snapshot;
use tokio::time::Instant;

/// What is counted for the limits of all functions and namespaces that have any.
pub(crate) struct Limits {
    /// The moments are counted from here.
    made: Instant,
    functions: Mutex<HashMap<FunctionName, Kept>>,
    namespaces: Mutex<HashMap<Name, Kept>>,
}

/// The limits of a function or a namespace, as they were last.
struct Kept {
    /// Of the snapshot that they were read from.
    version: u64,
    limits: traffic::Limits,
    limiter: Arc<Limiter>,
}

/// One function's or one namespace's limits.
struct Limiter {
    rate: Option<Rate>,
    most: Option<u32>,
    /// Calls in the system. They outlive a change of the limits.
    running: Arc<AtomicU32>,
}

/// So many calls per second, as the generic cell rate algorithm counts them: one number says all. It is the moment at which there
/// would be room again for a whole burst, and each call puts it off by the time that belongs to it.
struct Rate {
    per_second: f64,
    /// Nanoseconds that belong to each call.
    each: u64,
    /// How far the moment may lie ahead.
    ahead: u64,
    moment: AtomicU64,
}

/// The limits that a call of one function must keep to; none at all is no gate.
pub(crate) struct Gate {
    made: Instant,
    function: FunctionName,
    own: Option<Arc<Limiter>>,
    namespace: Option<Arc<Limiter>>,
}

/// A call is in the system, for the limits on calls at a time. Its drop says that it has left.
pub(crate) struct Inside {
    _own: Option<Place>,
    _namespace: Option<Place>,
}

struct Place(Arc<AtomicU32>);

impl Limits {
    pub(crate) fn new() -> Self {
        Self { made: Instant::now(), functions: Mutex::default(), namespaces: Mutex::default() }
    }

    /// What calls of this function must keep to, as this snapshot says.
    pub(crate) fn of(&self, function: &Function, snapshot: &Snapshot) -> Option<Gate> {
        let name = &function.name;
        let alive = |name: &FunctionName| snapshot.function(name).is_some();
        let own = find(&self.functions, name, &function.routing.limits, snapshot.version, alive);
        let namespace = snapshot.namespaces.get(&name.namespace).and_then(|namespace| {
            let alive = |name: &Name| snapshot.namespaces.contains_key(name);
            find(&self.namespaces, &name.namespace, &namespace.limits, snapshot.version, alive)
        });
        let limited = own.is_some() || namespace.is_some();
        limited.then(|| Gate { made: self.made, function: name.clone(), own, namespace })
    }
}

/// The limiter for these limits: the one that there is, unless they have changed. A snapshot that is older than the last one that
/// was asked with says nothing.
fn find<K: Clone + Eq + Hash>(
    all: &Mutex<HashMap<K, Kept>>,
    key: &K,
    limits: &traffic::Limits,
    version: u64,
    alive: impl Fn(&K) -> bool,
) -> Option<Arc<Limiter>> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = all.get_mut(key) {
        if version >= kept.version {
            kept.version = version;
            if !same(&kept.limits, limits) {
                kept.limiter = Arc::new(Limiter::new(limits, kept.limiter.running.clone()));
                kept.limits = limits.clone();
            }
        }
        return kept.limiter.limits().then(|| kept.limiter.clone());
    }
    let limiter = Arc::new(Limiter::new(limits, Arc::default()));
    limiter.limits().then(|| {
        // Functions and namespaces that come and go leave nothing behind.
        all.retain(|key, kept| kept.version > version || alive(key));
        all.insert(key.clone(), Kept { version, limits: limits.clone(), limiter: limiter.clone() });
        limiter
    })
}

/// Whether two say the same of what is limited here; how many may wait is not.
fn same(one: &traffic::Limits, other: &traffic::Limits) -> bool {
    (one.rate, one.burst, one.concurrency) == (other.rate, other.burst, other.concurrency)
}

impl Gate {
    /// Lets a call in whose caller waits.
    ///
    /// # Errors
    /// A fault of the stage `queue` that says when to try again.
    pub(crate) fn enter(&self) -> Result<Inside, Fault> {
        let place = |limiter: &Option<Arc<Limiter>>, whose| match limiter.as_deref() {
            Some(Limiter { most: Some(most), running, .. }) => {
                Place::take(running, *most).map(Some).ok_or_else(|| self.crowded(whose, *most))
            }
            _ => Ok(None),
        };
        let inside =
            Inside { _own: place(&self.own, Whose::Function)?, _namespace: place(&self.namespace, Whose::Namespace)? };
        self.accept().map(|()| inside)
    }

    /// Counts a call for the rates alone: one that runs later.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub(crate) fn accept(&self) -> Result<(), Fault> {
        let now = u64::try_from(self.made.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let own = self.own.as_deref().and_then(|limiter| limiter.rate.as_ref());
        let namespace = self.namespace.as_deref().and_then(|limiter| limiter.rate.as_ref());
        if let Some(rate) = own {
            rate.take(now).map_err(|wait| self.fast(Whose::Function, rate.per_second, wait))?;
        }
        if let Some(rate) = namespace {
            rate.take(now).map_err(|wait| {
                // It did not come in: it is not counted elsewhere, either.
                own.inspect(|own| own.give_back());
                self.fast(Whose::Namespace, rate.per_second, wait)
            })?;
        }
        Ok(())
    }

    fn crowded(&self, whose: Whose, most: u32) -> Fault {
        let calls = if most == 1 { "call" } else { "calls" };
        let text = format!("{} takes {most} {calls} at a time; try again", self.named(whose));
        Fault::new(Stage::Queue, Cause::Limited, text)
    }

    fn fast(&self, whose: Whose, per_second: f64, wait: Duration) -> Fault {
        let text = format!("{} takes {per_second} calls a second; try again in {wait:.3?}", self.named(whose));
        Fault { retry: Retry::After(wait), ..Fault::new(Stage::Queue, Cause::Limited, text) }
    }

    fn named(&self, whose: Whose) -> String {
        match whose {
            Whose::Function => format!("function {}", self.function),
            Whose::Namespace => format!("namespace {}", self.function.namespace),
        }
    }
}

/// Whose limit it is.
#[derive(Clone, Copy)]
enum Whose {
    Function,
    Namespace,
}

impl Limiter {
    fn new(limits: &traffic::Limits, running: Arc<AtomicU32>) -> Self {
        let rate = limits.rate.map(|rate| Rate::new(rate, limits.burst));
        Self { rate, most: limits.concurrency, running }
    }

    /// Whether anything is limited at all.
    fn limits(&self) -> bool {
        self.rate.is_some() || self.most.is_some()
    }
}

impl Rate {
    fn new(per_second: f64, burst: Option<u32>) -> Self {
        let each = ((1e9 / per_second).round() as u64).max(1);
        let burst = burst.map_or(per_second.ceil().max(1.0) as u64, u64::from);
        Self { per_second, each, ahead: each.saturating_mul(burst), moment: AtomicU64::new(0) }
    }

    /// Takes what belongs to a call, or says how long it would have to wait.
    fn take(&self, now: u64) -> Result<(), Duration> {
        let next = |moment: u64| moment.max(now).saturating_add(self.each);
        let fits = |moment| Some(next(moment)).filter(|next| next - now <= self.ahead);
        match self.moment.fetch_update(Relaxed, Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(moment) => Err(Duration::from_nanos(next(moment) - now - self.ahead)),
        }
    }

    /// Gives it back.
    fn give_back(&self) {
        self.moment.fetch_sub(self.each, Relaxed);
    }
}

impl Place {
    fn take(running: &Arc<AtomicU32>, most: u32) -> Option<Self> {
        let taken = running.fetch_update(Relaxed, Relaxed, |n| (n < most).then_some(n + 1));
        taken.is_ok().then(|| Self(running.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, thread};

    use taper_model::{
        FunctionSpec, Namespace, Revision, RevisionId, RevisionState, revision::Entry, traffic::Routing,
    };
    use tokio::time::advance;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A snapshot with `hello` and `other` of these limits in a namespace of those.
    fn snapshot(version: u64, own: &traffic::Limits, namespace: &traffic::Limits) -> Snapshot {
        let function = |name: &str| {
            let name = FunctionName::parse(name).unwrap();
            let revision = Revision::bare(RevisionId::new(name.clone(), 1), FunctionSpec::default());
            let revisions = vec![Entry { revision: Arc::new(revision), state: RevisionState::Ready }];
            let routing = Arc::new(Routing { limits: own.clone(), ..Routing::default() });
            let function = Function {
                name: name.clone(),
                revisions,
                scale: None,
                created_ms: 0,
                routing,
                held: None,
                shift: None,
            };
            (name, Arc::new(function))
        };
        let name = Name::default_namespace();
        let namespace = Namespace {
            name: name.clone(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            limits: namespace.clone(),
        };
        Snapshot {
            version,
            functions: ["hello", "other"].map(function).into_iter().collect(),
            namespaces: Arc::new(BTreeMap::from([(name, Arc::new(namespace))])),
            ..Snapshot::default()
        }
    }

    fn rate(rate: f64, burst: u32) -> traffic::Limits {
        traffic::Limits { rate: Some(rate), burst: Some(burst), ..traffic::Limits::default() }
    }

    fn at_a_time(concurrency: u32) -> traffic::Limits {
        traffic::Limits { concurrency: Some(concurrency), ..traffic::Limits::default() }
    }

    fn none() -> traffic::Limits {
        traffic::Limits::default()
    }

    fn gate(limits: &Limits, name: &str, snapshot: &Snapshot) -> Option<Gate> {
        limits.of(snapshot.function(&FunctionName::parse(name).unwrap()).unwrap(), snapshot)
    }

    /// How long one is told to wait.
    fn wait(gate: &Gate) -> Option<Duration> {
        let fault = gate.enter().err()?;
        assert_eq!((fault.stage, fault.cause), (Stage::Queue, Cause::Limited));
        match fault.retry {
            Retry::After(wait) => Some(wait),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_with_its_burst_and_the_exact_wait() {
        let limits = Limits::new();
        let gate = gate(&limits, "hello", &snapshot(1, &rate(10.0, 3), &none())).unwrap();
        assert_eq!([(); 4].map(|()| wait(&gate)), [None, None, None, Some(100 * MS)]);
        advance(99 * MS).await;
        assert_eq!(wait(&gate), Some(MS), "what was refused has cost nothing");
        advance(MS).await;
        assert_eq!([wait(&gate), wait(&gate)], [None, Some(100 * MS)]);
        advance(Duration::from_secs(3600)).await;
        assert_eq!(
            [(); 4].map(|()| wait(&gate)),
            [None, None, None, Some(100 * MS)],
            "an hour saves no more than a burst"
        );
        assert!(gate.enter().err().unwrap().message.contains("function hello.default takes 10 calls a second"));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_burst_what_comes_in_a_second() {
        let limits = Limits::new();
        for (per_second, burst) in [(0.5, 1), (2.5, 3), (100.0, 100)] {
            let own = traffic::Limits { rate: Some(per_second), ..none() };
            let gate = gate(&limits, "hello", &snapshot(per_second as u64, &own, &none())).unwrap();
            assert_eq!((0..1000).take_while(|_| wait(&gate).is_none()).count(), burst, "{per_second}");
        }
        // The slowest and the fastest that are allowed, with the greatest burst.
        for per_second in [0.001, 1e9] {
            let gate = gate(&limits, "hello", &snapshot(200, &rate(per_second, u32::MAX), &none())).unwrap();
            assert_eq!(wait(&gate), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_counts_all_of_its_functions() {
        let limits = Limits::new();
        let snapshot = snapshot(1, &rate(10.0, 3), &rate(10.0, 4));
        let [hello, other] = ["hello", "other"].map(|name| gate(&limits, name, &snapshot).unwrap());
        assert_eq!([wait(&hello), wait(&hello), wait(&other), wait(&other)], [None; 4]);
        for _ in 0..5 {
            let fault = other.enter().err().unwrap();
            assert!(fault.message.starts_with("namespace default takes 10 calls a second"), "{}", fault.message);
        }
        advance(100 * MS).await;
        assert_eq!([wait(&other), wait(&other)], [None, Some(100 * MS)], "its own has not paid for what was refused");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_at_a_time() {
        let limits = Limits::new();
        let snapshot = snapshot(1, &at_a_time(2), &at_a_time(3));
        let [hello, other] = ["hello", "other"].map(|name| gate(&limits, name, &snapshot).unwrap());
        let inside = [hello.enter().ok().unwrap(), hello.enter().ok().unwrap()];
        assert_eq!(wait(&hello), Some(Duration::from_secs(1)));
        assert!(hello.enter().err().unwrap().message.contains("function hello.default takes 2 calls at a time"));
        let third = other.enter().ok().unwrap();
        assert!(other.enter().err().unwrap().message.contains("namespace default takes 3 calls at a time"));
        hello.accept().unwrap();
        drop(inside);
        assert_eq!((wait(&hello), wait(&other)), (None, None), "what was refused by the namespace holds no place");
        drop(third);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_holds_at_once_and_an_older_snapshot_says_nothing() {
        let limits = Limits::new();
        assert!(gate(&limits, "hello", &snapshot(1, &none(), &none())).is_none());
        let slow = gate(&limits, "hello", &snapshot(2, &rate(0.001, 1), &none())).unwrap();
        assert_eq!([wait(&slow), wait(&slow)], [None, Some(Duration::from_secs(1000))]);
        let same = gate(&limits, "hello", &snapshot(3, &rate(0.001, 1), &none())).unwrap();
        assert_eq!(wait(&same), Some(Duration::from_secs(1000)), "another change of the store gives nothing away");
        let fast = gate(&limits, "hello", &snapshot(4, &rate(100.0, 1), &none())).unwrap();
        assert_eq!([wait(&fast), wait(&fast)], [None, Some(10 * MS)]);
        let late = gate(&limits, "hello", &snapshot(2, &rate(0.001, 1), &none())).unwrap();
        assert_eq!(wait(&late), Some(10 * MS));
        assert!(gate(&limits, "hello", &snapshot(5, &none(), &none())).is_none());

        let two = gate(&limits, "hello", &snapshot(6, &at_a_time(2), &none())).unwrap();
        let inside = [two.enter().ok().unwrap(), two.enter().ok().unwrap()];
        let three = gate(&limits, "hello", &snapshot(7, &at_a_time(3), &none())).unwrap();
        let more = three.enter().ok().unwrap();
        assert!(three.enter().is_err(), "those that were inside are still");
        drop((inside, more));
        assert_eq!(limits.functions.lock().unwrap().values().next().unwrap().limiter.running.load(Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gone_leaves_nothing() {
        let limits = Limits::new();
        let snapshot = snapshot(9, &rate(1.0, 1), &none());
        let gone = Function {
            name: FunctionName::parse("gone").unwrap(),
            ..Function::clone(snapshot.functions.values().next().unwrap())
        };
        limits.of(&gone, &Snapshot { version: 1, ..Snapshot::default() }).unwrap();
        gate(&limits, "hello", &snapshot).unwrap();
        assert_eq!(limits.functions.lock().unwrap().len(), 1);
    }

    /// Lanes ask at the same time: together they get what one would, and each a part of it.
    #[test]
    fn threads_share_one_rate() {
        let rate = Rate::new(1e6, Some(40_000));
        let (lanes, now) = (4, 1_000_000_000);
        let barrier = std::sync::Barrier::new(lanes);
        let got: Vec<u32> = thread::scope(|all| {
            let lane = |_| {
                all.spawn(|| {
                    barrier.wait();
                    (0..40_000).filter(|_| rate.take(now).is_ok()).count() as u32
                })
            };
            let running: Vec<_> = (0..lanes).map(lane).collect();
            running.into_iter().map(|lane| lane.join().unwrap()).collect()
        });
        assert_eq!(got.iter().sum::<u32>(), 40_000, "{got:?}");
    }
}
