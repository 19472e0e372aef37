//! What has been counted, and how the functions stand, as Prometheus reads it. Asked for at each scrape; counts nothing.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder},
    metrics::{MetricType, exemplar::Exemplar},
};
use taper_model::{Function, Pooled, RevisionId, Shelf, Stage};
use taper_queue::{Backlog, Queue};
use taper_store::Snapshot;

use super::{Counts, Ends, Gauges, Mirrored, STARTS, Series};

impl Collector for Counts {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let snapshot = self.snapshot.borrow().clone();
        let (mut counted, mut revisions) = (Vec::new(), Vec::new());
        {
            let mut functions = self.functions.write().expect("counting does not panic");
            functions.retain(|name, _| snapshot.function(name).is_some());
            for (name, series) in functions.iter() {
                counted.push((name.openfaas(), series.clone()));
                revisions.extend(snapshot.function(name).into_iter().flat_map(|function| series.revisions(function)));
            }
        }
        counted.sort_by(|a, b| a.0.cmp(&b.0));
        revisions.sort_by(|a, b| a.0.cmp(&b.0));
        self.encode_openfaas(&mut encoder, &counted)?;
        self.encode_calls(&mut encoder, &counted)?;
        encode_revisions(&mut encoder, &revisions)?;
        self.encode_gauges(&mut encoder, &snapshot)?;
        encode_pool(&mut encoder, &(self.pool)())?;
        if let Some(queue) = &self.queue {
            encode_queue(&mut encoder, queue.as_ref(), &snapshot)?;
        }
        let stage = |s: Stage| [("stage", s.as_str())];
        let mut m = encoder.encode_descriptor(
            "taper_faults",
            "Requests that stopped at a stage.",
            None,
            MetricType::Counter,
        )?;
        for s in Stage::ALL {
            count(&mut m, &stage(s), self.faults[s as usize].load(Relaxed))?;
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
                m.encode_family(&[("function_name", name.as_str()), ("code", &shown(code))])?
                    .encode_counter::<NoLabels, _, f64>(&histogram.count(), NONE)?;
            }
        }
        let help = "Time from the first byte of a call to the last of its response.";
        let mut m = encoder.encode_descriptor("gateway_functions_seconds", help, None, MetricType::Histogram)?;
        for (name, series) in counted {
            for (code, histogram) in codes(series) {
                histogram.encode(&mut m, &[("function_name", name.as_str()), ("code", &shown(code))])?;
            }
        }
        // A counter in OpenFaaS, but OpenMetrics would append `_total` to a counter's name.
        let help = "Calls that began.";
        let mut m =
            encoder.encode_descriptor("gateway_function_invocation_started", help, None, MetricType::Unknown)?;
        for (name, series) in counted {
            m.encode_family(&[("function_name", name.as_str())])?.encode_gauge(&series.calls())?;
        }
        let help = "Calls that began and have not ended.";
        let name = "gateway_invocation_function_invocation_inflight";
        let mut m = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (name, series) in counted {
            // The ended ones first: none of them began later than what is read after.
            let ended: u64 = codes(series).values().map(|h| h.count()).sum();
            let inflight = series.calls().saturating_sub(ended);
            m.encode_family(&[("function_name", name.as_str())])?.encode_gauge(&inflight)?;
        }
        Ok(())
    }

    fn encode_calls(&self, encoder: &mut DescriptorEncoder, counted: &[(String, Arc<Series>)]) -> fmt::Result {
        let help = "Calls by how the instance that served them came to be there.";
        let mut m = encoder.encode_descriptor("taper_cold_starts", help, None, MetricType::Counter)?;
        for (name, series) in counted {
            for start in STARTS {
                count(&mut m, &[("function_name", name.as_str()), ("start", start.as_str())], series.starts(start))?;
            }
        }
        let help = "Time that a phase of a start took, of starts that calls waited for.";
        let mut m = encoder.encode_descriptor("taper_cold_start_phase_seconds", help, None, MetricType::Histogram)?;
        self.phases.encode(&mut m)?;
        let help = "Time a call waited for a slot, an instance's start included.";
        let mut m = encoder.encode_descriptor("taper_queue_wait_seconds", help, None, MetricType::Histogram)?;
        for (name, series) in counted {
            series.wait.encode(&mut m, &[("function_name", name.as_str())])?;
        }
        let help = "Time from when an asynchronous call was due until its first attempt began.";
        let mut m = encoder.encode_descriptor("taper_async_wait_seconds", help, None, MetricType::Histogram)?;
        // Most functions are never called so.
        for (name, series) in counted.iter().filter(|(_, series)| series.later.count() > 0) {
            series.later.encode(&mut m, &[("function_name", name.as_str())])?;
        }
        Ok(())
    }

    fn encode_gauges(&self, encoder: &mut DescriptorEncoder, snapshot: &Snapshot) -> fmt::Result {
        let seen: BTreeMap<String, Gauges> = (self.gauges)().into_iter().map(|g| (g.function.openfaas(), g)).collect();
        let mut functions: Vec<(String, &Function)> =
            snapshot.functions.values().map(|f| (f.name.openfaas(), f.as_ref())).collect();
        functions.sort_by(|a, b| a.0.cmp(&b.0));
        let mut gauge = |name: &str, help: &str, value: &dyn Fn(&Gauges) -> u64| {
            let mut m = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (name, _) in &functions {
                m.encode_family(&[("function_name", name.as_str())])?.encode_gauge(&seen.get(name).map_or(0, value))?;
            }
            fmt::Result::Ok(())
        };
        gauge("gateway_service_count", "Instances there should be.", &|g| g.want)?;
        gauge("gateway_service_ready_count", "Instances that take calls.", &|g| g.ready)?;
        let settings = |f: &Function| f.serving().map_or_else(|| f.latest().revision.clone(), Arc::clone);
        let help = "Instances kept even when idle.";
        let mut m = encoder.encode_descriptor("gateway_service_min", help, None, MetricType::Gauge)?;
        for (name, function) in &functions {
            let min = u64::from(settings(function).spec.min());
            m.encode_family(&[("function_name", name.as_str())])?.encode_gauge(&min)?;
        }
        let help = "What one instance should carry, where the function says so.";
        let mut m = encoder.encode_descriptor("gateway_service_target", help, None, MetricType::Gauge)?;
        for (name, function) in &functions {
            if let Some(target) = settings(function).spec.scale.target {
                m.encode_family(&[("function_name", name.as_str())])?.encode_gauge(&target)?;
            }
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

/// How calls and copies of them ended, by revision.
fn encode_revisions(encoder: &mut DescriptorEncoder, revisions: &[(RevisionId, Arc<Ends>)]) -> fmt::Result {
    let label = |id: &RevisionId, outcome| {
        [("function_name", id.function().openfaas()), ("revision", id.name()), ("outcome", String::from(outcome))]
    };
    let help = "Calls that were answered, by the revision that they were for.";
    let mut m = encoder.encode_descriptor("taper_revision_calls", help, None, MetricType::Counter)?;
    for (id, ends) in revisions {
        let all = ends.outcomes();
        count(&mut m, &label(id, "ok"), all.answered - all.failed)?;
        count(&mut m, &label(id, "failed"), all.failed)?;
    }
    let help = "Copies of calls, by the revision that they were for.";
    let mut m = encoder.encode_descriptor("taper_mirrored", help, None, MetricType::Counter)?;
    for (id, ends) in revisions {
        let counts = Mirrored::ALL.map(|outcome| (outcome, ends.copies(outcome)));
        if counts.iter().any(|(_, copies)| *copies > 0) {
            for (outcome, copies) in counts {
                count(&mut m, &label(id, outcome.as_str()), copies)?;
            }
        }
    }
    Ok(())
}

/// What is kept ready for starts.
fn encode_pool(encoder: &mut DescriptorEncoder, pool: &Pooled) -> fmt::Result {
    type Read = fn(&Shelf) -> u64;
    let counters: [(&str, &str, Read); 2] = [
        ("taper_pool_hits", "Starts that took a sandbox which was ready.", |s| s.hits),
        ("taper_pool_misses", "Starts that found no sandbox ready.", |s| s.misses),
    ];
    for (name, help, read) in counters {
        let mut m = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (kind, shelf) in &pool.kinds {
            count(&mut m, &[("kind", kind.as_str())], read(shelf))?;
        }
    }
    let gauges: [(&str, &str, Read); 4] = [
        ("taper_pool_ready", "Sandboxes that are ready for a start.", |s| s.ready),
        ("taper_pool_making", "Sandboxes that are being made for starts to come.", |s| s.making),
        ("taper_pool_wanted", "Sandboxes that there should be.", |s| s.wanted),
        ("taper_pool_memory_bytes", "Memory of the sandboxes that are ready.", |s| s.memory),
    ];
    for (name, help, read) in gauges {
        let mut m = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (kind, shelf) in &pool.kinds {
            m.encode_family(&[("kind", kind.as_str())])?.encode_gauge(&read(shelf))?;
        }
    }
    let help = "Memory that the sandboxes which are ready may take together.";
    encoder.encode_descriptor("taper_pool_budget_bytes", help, None, MetricType::Gauge)?.encode_gauge(&pool.budget)
}

/// The calls whose callers do not wait.
fn encode_queue(encoder: &mut DescriptorEncoder, queue: &dyn Queue, snapshot: &Snapshot) -> fmt::Result {
    let stats = queue.stats();
    for (name, help, value) in [
        ("taper_async_accepted", "Asynchronous calls that were accepted.", stats.accepted),
        ("taper_async_refused", "Asynchronous calls that were refused because a bound was reached.", stats.refused),
        ("taper_async_started", "Attempts that began.", stats.started),
        ("taper_async_done", "Asynchronous calls that ended with an answer.", stats.done),
        ("taper_async_failed", "Attempts that did not end the call well.", stats.failed),
        ("taper_async_retried", "Asynchronous calls that were put back to be tried again.", stats.retried),
        ("taper_async_dead", "Asynchronous calls that became dead letters.", stats.dead),
        ("taper_async_cancelled", "Asynchronous calls that were cancelled.", stats.cancelled),
        ("taper_async_delivered", "What was delivered of asynchronous calls that have ended.", stats.delivered),
        ("taper_async_given_up", "What could not be delivered of such calls and was given up.", stats.given_up),
        ("taper_async_cut", "What was given up because the chain of calls would have become too long.", stats.cut),
    ] {
        let mut m = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        m.encode_counter::<NoLabels, _, f64>(&value, NONE)?;
    }
    for (name, help, value) in [
        ("taper_async_depth", "Asynchronous calls that wait.", stats.depth),
        ("taper_async_running", "Asynchronous calls that run.", stats.running),
        ("taper_async_bytes", "Bytes of asynchronous calls that wait or run.", stats.bytes),
        (
            "taper_async_deliveries",
            "What is still to be delivered of asynchronous calls that have ended.",
            stats.parcels,
        ),
    ] {
        encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
    }
    let help = "How long the oldest asynchronous call that is due has waited.";
    let mut m = encoder.encode_descriptor("taper_async_lag_seconds", help, None, MetricType::Gauge)?;
    m.encode_gauge(&stats.lag.as_secs_f64())?;
    let mut backlog: Vec<(String, Backlog)> = queue
        .backlog()
        .into_iter()
        .filter(|(name, _)| snapshot.function(name).is_some())
        .map(|(name, backlog)| (name.openfaas(), backlog))
        .collect();
    backlog.sort_by(|a, b| a.0.cmp(&b.0));
    let help = "Asynchronous calls by state.";
    let mut m = encoder.encode_descriptor("taper_async_calls", help, None, MetricType::Gauge)?;
    for (name, b) in &backlog {
        for (state, n) in [("waiting", b.waiting), ("running", b.running)] {
            m.encode_family(&[("function_name", name.as_str()), ("state", state)])?.encode_gauge(&n)?;
        }
    }
    Ok(())
}

/// The label for a status.
fn shown(code: u16) -> String {
    if code == 0 { "other".into() } else { code.to_string() }
}

pub(super) type NoLabels = [(&'static str, &'static str); 0];
const NONE: Option<&Exemplar<NoLabels, f64>> = None;

fn count(m: &mut MetricEncoder, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    m.encode_family(labels)?.encode_counter::<NoLabels, _, f64>(&value, NONE)
}
