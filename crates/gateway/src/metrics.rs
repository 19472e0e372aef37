//! What Prometheus is told: OpenFaaS's series under their own names, and ours. Counting is a few atomic additions; text
//! is made only when somebody asks. Never makes a label of a name that a caller thought up: functions count when they exist.

mod ends;
mod expose;
mod figures;
mod histogram;
mod shares;
mod starts;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::StatusCode;
use prometheus_client::{encoding::text, registry::Registry};
use taper_model::{
    Function, FunctionName, Pooled, RevisionId, Stage,
    call::{Served, Start},
    demand::Outcomes,
};
use taper_queue::Queue;
use taper_store::Snapshot;
use tokio::sync::watch;

pub(crate) use ends::{Ends, Mirrored};
pub use figures::{Figure, Figures};
pub(crate) use histogram::Histogram;
use shares::Shares;
pub use starts::Starts;
use starts::{Phased, Recent};

/// Upper bounds in seconds of a call's whole time: those of OpenFaaS's gateway.
const CALL: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Most statuses of a function that are counted each for itself; a function may answer with 800 different ones, and each is a
/// series for every bucket.
const CODES: usize = 64;
/// Upper bounds in seconds of a stage's time.
const STAGE: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0];
/// Upper bounds in seconds of the time that a call whose caller does not wait waits for its first attempt.
const LATER: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0, 3600.0];
/// The content type of what [`Metrics::text`] gives.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How a function stands at one moment, as the parts behind the gateway see it. Asked for at each scrape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gauges {
    /// The function.
    pub function: FunctionName,
    /// Instances there should be.
    pub want: u64,
    /// Calls that wait for a slot.
    pub queued: u64,
    /// Instances on their way to ready.
    pub starting: u64,
    /// Instances that take calls.
    pub ready: u64,
    /// Instances that take no more calls and end theirs.
    pub draining: u64,
}

/// All that is counted.
pub(crate) struct Metrics {
    counts: Arc<Counts>,
    registry: Registry,
}

struct Counts {
    functions: RwLock<HashMap<FunctionName, Arc<Series>>>,
    stages: [Histogram; Stage::ALL.len()],
    faults: [AtomicU64; Stage::ALL.len()],
    phases: Phased,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    gauges: Box<dyn Fn() -> Vec<Gauges> + Send + Sync>,
    pool: Box<dyn Fn() -> Pooled + Send + Sync>,
    queue: Option<Arc<dyn Queue>>,
}

/// How often each function was called since the gateway was bound, and how its calls found it; for whoever shows functions. Cheap to clone.
#[derive(Clone)]
pub struct Invocations(Arc<Counts>);

impl Invocations {
    /// Calls that began.
    pub fn of(&self, function: &FunctionName) -> u64 {
        let functions = self.0.functions.read().expect("counting does not panic");
        functions.get(function).map_or(0, |series| series.calls())
    }

    /// How calls of a revision ended, whichever way they came.
    pub fn outcomes(&self, revision: &RevisionId) -> Outcomes {
        let functions = self.0.functions.read().expect("counting does not panic");
        let ends = functions.get(revision.function()).and_then(|series| series.known(revision.number()));
        ends.map_or_else(Outcomes::default, |ends| ends.outcomes())
    }

    /// Its calls that waited for an instance to start.
    pub fn starts(&self, function: &FunctionName) -> Starts {
        let functions = self.0.functions.read().expect("counting does not panic");
        let Some(series) = functions.get(function) else { return Starts::default() };
        Starts { pool: series.starts(Start::Pool), cold: series.starts(Start::Cold), recent: series.recent.all() }
    }

    /// A call that did not come through the gateway's door began: one from the queue. A function that is not there counts nothing.
    pub fn began(&self, function: &FunctionName) {
        if let Some(series) = self.0.existing(function) {
            series.started();
        }
    }

    /// The first attempt at a call from the queue began this long after it was due.
    pub fn waited(&self, function: &FunctionName, wait: Duration) {
        if let Some(series) = self.0.existing(function) {
            series.later.observe(wait);
        }
    }

    /// It reached an instance, in this way.
    pub fn reached(&self, function: &FunctionName, served: &Served) {
        if let Some(series) = self.0.existing(function) {
            self.0.started(served);
            series.reached(served);
        }
    }

    /// It ended with this status, the function's or the fault's, after this long.
    pub fn ended(&self, function: &FunctionName, status: StatusCode, took: Duration) {
        if let Some(series) = self.0.existing(function) {
            series.ended(status, took);
        }
    }

    /// A call of a revision that did not come through the gateway's door was answered; `failed`: with a status of 500 or above, or it
    /// broke half way.
    pub fn answered(&self, revision: &RevisionId, failed: bool) {
        if let Some(series) = self.0.existing(revision.function()) {
            series.revision(revision.number()).ended(failed);
        }
    }
}

/// What is counted of one function.
pub(crate) struct Series {
    begun: Shares<Begun>,
    wait: Histogram,
    /// Of calls from the queue: how long after they were due they began.
    later: Histogram,
    recent: Recent,
    /// By status; 0 stands for all that came when there were too many.
    codes: Mutex<BTreeMap<u16, Arc<Histogram>>>,
    /// By number.
    revisions: Mutex<BTreeMap<u32, Arc<Ends>>>,
}

/// How many calls began, and how many of them reached an instance that came to be there so.
#[derive(Default)]
struct Begun {
    calls: AtomicU64,
    starts: [AtomicU64; STARTS.len()],
}

const STARTS: [Start; 3] = [Start::Warm, Start::Pool, Start::Cold];

impl Series {
    fn new() -> Self {
        Self {
            begun: Shares::default(),
            wait: Histogram::new(STAGE),
            later: Histogram::new(LATER),
            recent: Recent::default(),
            codes: Mutex::new(BTreeMap::new()),
            revisions: Mutex::new(BTreeMap::new()),
        }
    }

    /// A call began.
    pub(crate) fn started(&self) {
        self.begun.mine().calls.fetch_add(1, Relaxed);
    }

    /// Calls that began.
    fn calls(&self) -> u64 {
        self.begun.all().map(|begun| begun.calls.load(Relaxed)).sum()
    }

    /// Calls that reached an instance that came to be there so.
    fn starts(&self, start: Start) -> u64 {
        self.begun.all().map(|begun| begun.starts[start as usize].load(Relaxed)).sum()
    }

    /// A call reached an instance.
    pub(crate) fn reached(&self, served: &Served) {
        self.begun.mine().starts[served.start as usize].fetch_add(1, Relaxed);
        self.wait.observe(served.timing.queue + served.timing.activate);
        if served.start != Start::Warm {
            self.recent.add(served);
        }
    }

    /// A call ended without reaching an instance, after waiting this long.
    pub(crate) fn waited(&self, wait: Duration) {
        self.wait.observe(wait);
    }

    /// A call ended.
    pub(crate) fn ended(&self, status: StatusCode, took: Duration) {
        self.code(status).observe(took);
    }

    /// What is counted of calls that ended with this status.
    pub(crate) fn code(&self, status: StatusCode) -> Arc<Histogram> {
        let mut codes = self.codes.lock().expect("counting does not panic");
        let known = codes.len() < CODES || codes.contains_key(&status.as_u16());
        let code = if known { status.as_u16() } else { 0 };
        codes.entry(code).or_insert_with(|| Arc::new(Histogram::new(CALL))).clone()
    }

    /// What is counted of a revision. Only for revisions that exist.
    pub(crate) fn revision(&self, number: u32) -> Arc<Ends> {
        self.revisions.lock().expect("counting does not panic").entry(number).or_default().clone()
    }

    /// The same, if anything was counted.
    fn known(&self, number: u32) -> Option<Arc<Ends>> {
        self.revisions.lock().expect("counting does not panic").get(&number).cloned()
    }

    /// What is counted of every revision that the function still has; of those that it had nothing is kept.
    pub(crate) fn revisions(&self, function: &Function) -> Vec<(RevisionId, Arc<Ends>)> {
        let mut revisions = self.revisions.lock().expect("counting does not panic");
        // Whoever looks may know less than others: what is newer than all he knows is not gone.
        let newest = function.latest().revision.id.number();
        revisions.retain(|number, _| *number > newest || function.entry(*number).is_some());
        let named =
            |(number, ends): (&u32, &Arc<Ends>)| (RevisionId::new(function.name.clone(), *number), ends.clone());
        revisions.iter().map(named).collect()
    }
}

impl Metrics {
    pub(crate) fn new(
        snapshot: watch::Receiver<Arc<Snapshot>>,
        gauges: Box<dyn Fn() -> Vec<Gauges> + Send + Sync>,
        pool: Box<dyn Fn() -> Pooled + Send + Sync>,
        queue: Option<Arc<dyn Queue>>,
    ) -> Self {
        let counts = Arc::new(Counts {
            functions: RwLock::default(),
            stages: std::array::from_fn(|_| Histogram::new(STAGE)),
            faults: Default::default(),
            phases: Phased::new(),
            snapshot,
            gauges,
            pool,
            queue,
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(counts.clone()));
        Self { counts, registry }
    }

    /// Shows these figures as well.
    pub(crate) fn beside(mut self, figures: Figures) -> Self {
        self.registry.register_collector(Box::new(figures::Beside(figures)));
        self
    }

    /// The counts of calls, for others.
    pub(crate) fn invocations(&self) -> Invocations {
        Invocations(self.counts.clone())
    }

    /// What is counted of a function. Only for functions that exist.
    pub(crate) fn function(&self, name: &FunctionName) -> Arc<Series> {
        self.counts.series(name)
    }

    /// Time was spent in a stage.
    pub(crate) fn stage(&self, stage: Stage, took: Duration) {
        self.counts.stages[stage as usize].observe(took);
    }

    /// A call reached an instance; it may have waited for it to start.
    pub(crate) fn started(&self, served: &Served) {
        self.counts.started(served);
    }

    /// A call stopped at a stage.
    pub(crate) fn fault(&self, stage: Stage) {
        self.counts.faults[stage as usize].fetch_add(1, Relaxed);
    }

    /// Everything, in OpenMetrics' text format.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("writing to a string does not fail");
        out
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").finish_non_exhaustive()
    }
}

impl Counts {
    fn started(&self, served: &Served) {
        if let Some(phases) = &served.phases {
            self.phases.observe(served.start, phases, served.timing.invoke);
        }
    }

    /// What is counted of a function that exists.
    fn series(&self, name: &FunctionName) -> Arc<Series> {
        let known = self.functions.read().expect("counting does not panic").get(name).cloned();
        known.unwrap_or_else(|| {
            let mut functions = self.functions.write().expect("counting does not panic");
            let snapshot = self.snapshot.borrow();
            // Functions that come and go leave nothing behind: with a new name in a full map, some name is old.
            if functions.len() >= snapshot.functions.len() {
                functions.retain(|name, _| snapshot.function(name).is_some());
            }
            functions.entry(name.clone()).or_insert_with(|| Arc::new(Series::new())).clone()
        })
    }

    fn existing(&self, name: &FunctionName) -> Option<Arc<Series>> {
        let exists = self.snapshot.borrow().function(name).is_some();
        exists.then(|| self.series(name))
    }
}

#[cfg(test)]
mod tests {
    use taper_model::{
        Function, FunctionSpec, Revision, RevisionId, RevisionState, Shelf,
        call::{Phases, Timing},
        function::Scale,
        revision::Entry,
    };

    use super::*;

    fn snapshot(names: &[&str]) -> Arc<Snapshot> {
        let functions = names.iter().map(|n| {
            let name = FunctionName::parse(n).unwrap();
            let revision = Revision {
                by: String::new(),
                id: RevisionId::new(name.clone(), 1),
                spec: FunctionSpec {
                    scale: Scale { target: n.starts_with("idle").then_some(7.5), ..Scale::default() },
                    ..FunctionSpec::default()
                },
                artifact: None,
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                created_ms: 0,
            };
            let entry = Entry { revision: Arc::new(revision), state: RevisionState::Ready };
            (
                name.clone(),
                Arc::new(Function {
                    held: None,
                    routing: Default::default(),
                    shift: None,
                    name,
                    revisions: vec![entry],
                    scale: None,
                    created_ms: 0,
                }),
            )
        });
        Arc::new(Snapshot { version: 1, functions: functions.collect(), ..Snapshot::default() })
    }

    fn cold() -> Served {
        let ms = Duration::from_millis;
        let timing = Timing { activate: ms(20), invoke: ms(1), ..Timing::default() };
        Served {
            start: Start::Cold,
            timing,
            phases: Some(Phases { claim: ms(1), bind: ms(4), load: ms(14) }),
            repeated: false,
        }
    }

    #[test]
    fn names_are_exact() {
        let (_tx, rx) = watch::channel(snapshot(&["hello", "idle.dev"]));
        let hello = FunctionName::parse("hello").unwrap();
        let gauges = vec![Gauges { function: hello.clone(), want: 4, queued: 2, starting: 1, ready: 3, draining: 0 }];
        let shelf = Shelf { hits: 9, misses: 1, ready: 2, making: 0, wanted: 3, memory: 4096 };
        let pool = Pooled { kinds: [("python3".to_owned(), shelf)].into(), budget: 1 << 30 };
        let metrics = Metrics::new(rx, Box::new(move || gauges.clone()), Box::new(move || pool.clone()), None);
        let series = metrics.function(&hello);
        series.started();
        metrics.invocations().reached(&hello, &cold());
        series.ended(StatusCode::OK, Duration::from_millis(30));
        metrics.stage(Stage::Activate, Duration::from_millis(20));
        metrics.fault(Stage::Route);
        let text = metrics.text();
        for line in [
            r#"gateway_function_invocation_total{function_name="hello.openfaas-fn",code="200"} 1"#,
            r#"gateway_functions_seconds_bucket{le="0.025",function_name="hello.openfaas-fn",code="200"} 0"#,
            r#"gateway_functions_seconds_bucket{le="0.05",function_name="hello.openfaas-fn",code="200"} 1"#,
            r#"gateway_functions_seconds_sum{function_name="hello.openfaas-fn",code="200"} 0.03"#,
            r#"gateway_functions_seconds_count{function_name="hello.openfaas-fn",code="200"} 1"#,
            r#"gateway_function_invocation_started{function_name="hello.openfaas-fn"} 1"#,
            r#"gateway_service_count{function_name="hello.openfaas-fn"} 4"#,
            r#"gateway_service_ready_count{function_name="hello.openfaas-fn"} 3"#,
            r#"gateway_service_min{function_name="hello.openfaas-fn"} 0"#,
            r#"gateway_service_target{function_name="idle.dev"} 7.5"#,
            r#"gateway_invocation_function_invocation_inflight{function_name="hello.openfaas-fn"} 0"#,
            r#"gateway_service_count{function_name="idle.dev"} 0"#,
            r#"taper_cold_starts_total{function_name="hello.openfaas-fn",start="cold"} 1"#,
            r#"taper_cold_starts_total{function_name="hello.openfaas-fn",start="warm"} 0"#,
            r#"taper_cold_start_phase_seconds_bucket{le="0.0025",phase="bind",start="cold"} 0"#,
            r#"taper_cold_start_phase_seconds_bucket{le="0.005",phase="bind",start="cold"} 1"#,
            r#"taper_cold_start_phase_seconds_sum{phase="first_byte",start="cold"} 0.001"#,
            r#"taper_cold_start_phase_seconds_count{phase="claim",start="cold"} 1"#,
            r#"taper_cold_start_phase_seconds_count{phase="load",start="pool"} 0"#,
            r#"taper_pool_hits_total{kind="python3"} 9"#,
            r#"taper_pool_misses_total{kind="python3"} 1"#,
            r#"taper_pool_ready{kind="python3"} 2"#,
            r#"taper_pool_making{kind="python3"} 0"#,
            r#"taper_pool_wanted{kind="python3"} 3"#,
            r#"taper_pool_memory_bytes{kind="python3"} 4096"#,
            "taper_pool_budget_bytes 1073741824",
            r#"taper_queue_wait_seconds_count{function_name="hello.openfaas-fn"} 1"#,
            r#"taper_queue_depth{function_name="hello.openfaas-fn"} 2"#,
            r#"taper_instances{function_name="hello.openfaas-fn",state="ready"} 3"#,
            r#"taper_stage_seconds_count{stage="activate"} 1"#,
            r#"taper_faults_total{stage="route"} 1"#,
            concat!(r#"taper_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""} 1"#),
            "# TYPE gateway_function_invocation counter",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_function_cannot_make_series_without_end() {
        let (_tx, rx) = watch::channel(snapshot(&["wild"]));
        let metrics = Metrics::new(rx, Box::new(Vec::new), Box::new(Pooled::default), None);
        let wild = FunctionName::parse("wild").unwrap();
        for code in 200..1000 {
            metrics.function(&wild).ended(StatusCode::from_u16(code).unwrap(), Duration::ZERO);
        }
        metrics.function(&wild).ended(StatusCode::OK, Duration::ZERO);
        let text = metrics.text();
        let codes = text.lines().filter(|l| l.starts_with("gateway_function_invocation_total")).count();
        assert_eq!(codes, CODES + 1);
        let rest = 800 - CODES;
        let line = |code: &str, n: usize| {
            format!(r#"gateway_function_invocation_total{{function_name="wild.openfaas-fn",code="{code}"}} {n}"#)
        };
        assert!(text.contains(&line("200", 2)) && text.contains(&line("other", rest)), "{text}");
    }

    #[test]
    fn calls_from_the_queue_count() {
        let (_tx, rx) = watch::channel(snapshot(&["hello"]));
        let metrics = Metrics::new(rx, Box::new(Vec::new), Box::new(Pooled::default), None);
        let (hello, gone) = (FunctionName::parse("hello").unwrap(), FunctionName::parse("gone").unwrap());
        let invocations = metrics.invocations();
        for name in [&hello, &hello, &gone] {
            invocations.began(name);
        }
        invocations.ended(&hello, StatusCode::OK, Duration::from_millis(1));
        invocations.ended(&gone, StatusCode::OK, Duration::from_millis(1));
        assert_eq!((invocations.of(&hello), invocations.of(&gone)), (2, 0));
        assert_eq!(invocations.starts(&hello).recent.len(), 0);
        invocations.reached(&hello, &Served { start: Start::Warm, phases: None, ..cold() });
        invocations.reached(&hello, &cold());
        invocations.reached(&gone, &cold());
        invocations.waited(&hello, Duration::from_millis(40));
        invocations.waited(&gone, Duration::from_millis(40));
        let starts = invocations.starts(&hello);
        assert_eq!((starts.pool, starts.cold, starts.recent.len()), (0, 1, 1));
        assert_eq!(starts.recent[0].1.phases, cold().phases);
        assert_eq!(invocations.starts(&gone).cold, 0);
        let text = metrics.text();
        assert!(text.contains(r#"invocation_inflight{function_name="hello.openfaas-fn"} 1"#), "{text}");
        for line in [
            r#"taper_async_wait_seconds_bucket{le="0.01",function_name="hello.openfaas-fn"} 0"#,
            r#"taper_async_wait_seconds_bucket{le="0.05",function_name="hello.openfaas-fn"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("gone"), "{text}");
    }

    #[test]
    fn functions_that_are_gone_leave_nothing() {
        let (tx, rx) = watch::channel(snapshot(&["a", "b"]));
        let metrics = Metrics::new(rx, Box::new(Vec::new), Box::new(Pooled::default), None);
        for name in ["a", "b"] {
            metrics.function(&FunctionName::parse(name).unwrap()).started();
        }
        tx.send_replace(snapshot(&["b"]));
        let text = metrics.text();
        assert!(!text.contains("a.openfaas-fn") && text.contains("b.openfaas-fn"), "{text}");
        tx.send_replace(snapshot(&["c"]));
        metrics.function(&FunctionName::parse("c").unwrap()).started();
        metrics.function(&FunctionName::parse("c").unwrap()).started();
        assert_eq!(metrics.counts.functions.read().unwrap().len(), 1, "b went when c came");
    }
}
