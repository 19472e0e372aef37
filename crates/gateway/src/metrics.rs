//! What Prometheus is told: OpenFaaS's four series under their own names, and ours. Counting is a few atomic additions; text
//! is made only when somebody asks. Never makes a label of a name that a caller thought up: functions count when they exist.

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
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Registry,
};
use taper_model::{FunctionName, Stage, call::Start};
use taper_store::Snapshot;
use tokio::sync::watch;

/// Upper bounds in seconds of a call's whole time: those of OpenFaaS's gateway.
const CALL: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper bounds in seconds of a stage's time.
const STAGE: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0];
/// The content type of what [`Metrics::text`] gives.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How a function stands at one moment, as the parts behind the gateway see it. Asked for at each scrape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gauges {
    /// The function.
    pub function: FunctionName,
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
    snapshot: watch::Receiver<Arc<Snapshot>>,
    gauges: Box<dyn Fn() -> Vec<Gauges> + Send + Sync>,
}

/// How often each function was called since the gateway was bound; for whoever lists functions. Cheap to clone.
#[derive(Clone)]
pub struct Invocations(Arc<Counts>);

impl Invocations {
    /// Calls that began.
    pub fn of(&self, function: &FunctionName) -> u64 {
        let functions = self.0.functions.read().expect("counting does not panic");
        functions.get(function).map_or(0, |series| series.started.load(Relaxed))
    }
}

/// What is counted of one function.
pub(crate) struct Series {
    started: AtomicU64,
    starts: [AtomicU64; STARTS.len()],
    wait: Histogram,
    codes: Mutex<BTreeMap<u16, Arc<Histogram>>>,
}

const STARTS: [Start; 3] = [Start::Warm, Start::Pool, Start::Cold];

impl Series {
    fn new() -> Self {
        Self {
            started: AtomicU64::new(0),
            starts: Default::default(),
            wait: Histogram::new(STAGE),
            codes: Mutex::new(BTreeMap::new()),
        }
    }

    /// A call began.
    pub(crate) fn started(&self) {
        self.started.fetch_add(1, Relaxed);
    }

    /// A call reached an instance that came to be there so, after waiting this long.
    pub(crate) fn reached(&self, start: Start, wait: Duration) {
        self.starts[start as usize].fetch_add(1, Relaxed);
        self.wait.observe(wait);
    }

    /// A call ended without reaching an instance, after waiting this long.
    pub(crate) fn waited(&self, wait: Duration) {
        self.wait.observe(wait);
    }

    /// A call ended.
    pub(crate) fn ended(&self, status: StatusCode, took: Duration) {
        let mut codes = self.codes.lock().expect("counting does not panic");
        let histogram = codes.entry(status.as_u16()).or_insert_with(|| Arc::new(Histogram::new(CALL))).clone();
        drop(codes);
        histogram.observe(took);
    }
}

impl Metrics {
    pub(crate) fn new(
        snapshot: watch::Receiver<Arc<Snapshot>>,
        gauges: Box<dyn Fn() -> Vec<Gauges> + Send + Sync>,
    ) -> Self {
        let counts = Arc::new(Counts {
            functions: RwLock::default(),
            stages: std::array::from_fn(|_| Histogram::new(STAGE)),
            faults: Default::default(),
            snapshot,
            gauges,
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(counts.clone()));
        Self { counts, registry }
    }

    /// The counts of calls, for others.
    pub(crate) fn invocations(&self) -> Invocations {
        Invocations(self.counts.clone())
    }

    /// What is counted of a function. Only for functions that exist.
    pub(crate) fn function(&self, name: &FunctionName) -> Arc<Series> {
        let known = self.counts.functions.read().expect("counting does not panic").get(name).cloned();
        known.unwrap_or_else(|| {
            let mut functions = self.counts.functions.write().expect("counting does not panic");
            let snapshot = self.counts.snapshot.borrow();
            // Functions that come and go leave nothing behind: with a new name in a full map, some name is old.
            if functions.len() >= snapshot.functions.len() {
                functions.retain(|name, _| snapshot.function(name).is_some());
            }
            functions.entry(name.clone()).or_insert_with(|| Arc::new(Series::new())).clone()
        })
    }

    /// Time was spent in a stage.
    pub(crate) fn stage(&self, stage: Stage, took: Duration) {
        self.counts.stages[stage as usize].observe(took);
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

impl Collector for Counts {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let snapshot = self.snapshot.borrow().clone();
        let mut counted: Vec<(String, Arc<Series>)> = {
            let mut functions = self.functions.write().expect("counting does not panic");
            functions.retain(|name, _| snapshot.function(name).is_some());
            functions.iter().map(|(name, series)| (name.openfaas(), series.clone())).collect()
        };
        counted.sort_by(|a, b| a.0.cmp(&b.0));
        self.encode_openfaas(&mut encoder, &counted)?;
        self.encode_calls(&mut encoder, &counted)?;
        self.encode_gauges(&mut encoder, &snapshot)?;
        let stage = |s: Stage| [("stage", s.as_str())];
        let mut m = encoder.encode_descriptor(
            "taper_faults",
            "Requests that stopped at a stage.",
            None,
            MetricType::Counter,
        )?;
        for s in Stage::ALL {
            count(&mut m, &stage(s), &self.faults[s as usize])?;
        }
        let mut m =
            encoder.encode_descriptor("taper_stage_seconds", "Time spent in a stage.", None, MetricType::Histogram)?;
        for s in Stage::ALL {
            self.stages[s as usize].encode(&mut m, &stage(s))?;
        }
        let m = &mut encoder.encode_descriptor("taper_build", "What runs here.", None, MetricType::Info)?;
        m.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
    }
}

impl Counts {
    fn encode_openfaas(&self, encoder: &mut DescriptorEncoder, counted: &[(String, Arc<Series>)]) -> fmt::Result {
        let codes = |s: &Series| s.codes.lock().expect("counting does not panic").clone();
        let help = "Calls that ended.";
        let mut m = encoder.encode_descriptor("gateway_function_invocation", help, None, MetricType::Counter)?;
        for (name, series) in counted {
            for (code, histogram) in codes(series) {
                let labels = [("function_name", name.as_str()), ("code", &code.to_string())];
                m.encode_family(&labels)?.encode_counter::<NoLabels, _, f64>(&histogram.count(), NONE)?;
            }
        }
        let help = "Time from the first byte of a call to the last of its response.";
        let mut m = encoder.encode_descriptor("gateway_functions_seconds", help, None, MetricType::Histogram)?;
        for (name, series) in counted {
            for (code, histogram) in codes(series) {
                histogram.encode(&mut m, &[("function_name", name.as_str()), ("code", &code.to_string())])?;
            }
        }
        // A counter in OpenFaaS, but OpenMetrics would append `_total` to a counter's name.
        let help = "Calls that began.";
        let mut m =
            encoder.encode_descriptor("gateway_function_invocation_started", help, None, MetricType::Unknown)?;
        for (name, series) in counted {
            m.encode_family(&[("function_name", name.as_str())])?.encode_gauge(&series.started.load(Relaxed))?;
        }
        Ok(())
    }

    fn encode_calls(&self, encoder: &mut DescriptorEncoder, counted: &[(String, Arc<Series>)]) -> fmt::Result {
        let help = "Calls by how the instance that served them came to be there.";
        let mut m = encoder.encode_descriptor("taper_cold_starts", help, None, MetricType::Counter)?;
        for (name, series) in counted {
            for start in STARTS {
                count(
                    &mut m,
                    &[("function_name", name.as_str()), ("start", start.as_str())],
                    &series.starts[start as usize],
                )?;
            }
        }
        let help = "Time a call waited for a slot, an instance's start included.";
        let mut m = encoder.encode_descriptor("taper_queue_wait_seconds", help, None, MetricType::Histogram)?;
        for (name, series) in counted {
            series.wait.encode(&mut m, &[("function_name", name.as_str())])?;
        }
        Ok(())
    }

    fn encode_gauges(&self, encoder: &mut DescriptorEncoder, snapshot: &Snapshot) -> fmt::Result {
        let seen: BTreeMap<String, Gauges> = (self.gauges)().into_iter().map(|g| (g.function.openfaas(), g)).collect();
        let mut names: Vec<String> = snapshot.functions.keys().map(FunctionName::openfaas).collect();
        names.sort();
        let mut m = encoder.encode_descriptor("gateway_service_count", "Ready instances.", None, MetricType::Gauge)?;
        for name in &names {
            let ready = seen.get(name).map_or(0, |g| g.ready);
            m.encode_family(&[("function_name", name.as_str())])?.encode_gauge(&ready)?;
        }
        let mut m =
            encoder.encode_descriptor("taper_queue_depth", "Calls that wait for a slot.", None, MetricType::Gauge)?;
        for (name, g) in &seen {
            m.encode_family(&[("function_name", name.as_str())])?.encode_gauge(&g.queued)?;
        }
        let mut m = encoder.encode_descriptor("taper_instances", "Instances by state.", None, MetricType::Gauge)?;
        for (name, g) in &seen {
            for (state, n) in [("starting", g.starting), ("ready", g.ready), ("draining", g.draining)] {
                m.encode_family(&[("function_name", name.as_str()), ("state", state)])?.encode_gauge(&n)?;
            }
        }
        Ok(())
    }
}

type NoLabels = [(&'static str, &'static str); 0];
const NONE: Option<&Exemplar<NoLabels, f64>> = None;

fn count(m: &mut MetricEncoder, labels: &impl EncodeLabelSet, value: &AtomicU64) -> fmt::Result {
    m.encode_family(labels)?.encode_counter::<NoLabels, _, f64>(&value.load(Relaxed), NONE)
}

/// A histogram without a lock: `observe` is called for every call from every core.
struct Histogram {
    bounds: &'static [f64],
    /// One per bound, and one for what is above the last.
    buckets: Box<[AtomicU64]>,
    nanos: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), nanos: AtomicU64::new(0) }
    }

    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.buckets[self.bounds.partition_point(|b| *b < seconds)].fetch_add(1, Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Relaxed)).sum()
    }

    fn encode(&self, m: &mut MetricEncoder, labels: &impl EncodeLabelSet) -> fmt::Result {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.buckets.iter().map(|b| b.load(Relaxed))).collect();
        let count = buckets.iter().map(|b| b.1).sum();
        let sum = Duration::from_nanos(self.nanos.load(Relaxed)).as_secs_f64();
        m.encode_family(labels)?.encode_histogram::<NoLabels>(sum, count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use taper_model::{Function, FunctionSpec, Revision, RevisionId, RevisionState, revision::Entry};

    use super::*;

    fn snapshot(names: &[&str]) -> Arc<Snapshot> {
        let functions = names.iter().map(|n| {
            let name = FunctionName::parse(n).unwrap();
            let revision = Revision {
                id: RevisionId::new(name.clone(), 1),
                spec: FunctionSpec::default(),
                artifact: None,
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                created_ms: 0,
            };
            let entry = Entry { revision: Arc::new(revision), state: RevisionState::Ready };
            (name.clone(), Arc::new(Function { name, revisions: vec![entry], scale: None, created_ms: 0 }))
        });
        Arc::new(Snapshot { version: 1, functions: functions.collect() })
    }

    #[test]
    fn names_are_exact() {
        let (_tx, rx) = watch::channel(snapshot(&["hello", "idle.dev"]));
        let hello = FunctionName::parse("hello").unwrap();
        let gauges = vec![Gauges { function: hello.clone(), queued: 2, starting: 1, ready: 3, draining: 0 }];
        let metrics = Metrics::new(rx, Box::new(move || gauges.clone()));
        let series = metrics.function(&hello);
        series.started();
        series.reached(Start::Cold, Duration::from_millis(20));
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
            r#"gateway_service_count{function_name="hello.openfaas-fn"} 3"#,
            r#"gateway_service_count{function_name="idle.dev"} 0"#,
            r#"taper_cold_starts_total{function_name="hello.openfaas-fn",start="cold"} 1"#,
            r#"taper_cold_starts_total{function_name="hello.openfaas-fn",start="warm"} 0"#,
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
    fn functions_that_are_gone_leave_nothing() {
        let (tx, rx) = watch::channel(snapshot(&["a", "b"]));
        let metrics = Metrics::new(rx, Box::new(Vec::new));
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

    #[test]
    fn bounds_are_inclusive() {
        let h = Histogram::new(STAGE);
        for ms in [1, 1, 2, 100_000] {
            h.observe(Duration::from_millis(ms));
        }
        assert_eq!(h.count(), 4);
        assert_eq!((h.buckets[2].load(Relaxed), h.buckets[3].load(Relaxed)), (2, 1));
        assert_eq!(h.buckets[STAGE.len()].load(Relaxed), 1);
    }
}
