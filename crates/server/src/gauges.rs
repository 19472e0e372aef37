//! How functions stand, for the metrics: instances as the control plane knows them, waiting calls as the dispatcher does, what
//! the provider keeps ready; and what triggers have done.

use std::{collections::BTreeMap, sync::Arc};

use taper_control::Handle;
use taper_dispatch::Dispatcher;
use taper_gateway::{Figure, Figures, Gauges};
use taper_model::{FunctionName, Pooled};
use taper_provider::Provider;

/// A collector that is asked at each scrape.
pub(crate) fn collect(control: Handle, dispatcher: Dispatcher) -> Box<dyn Fn() -> Vec<Gauges> + Send + Sync> {
    Box::new(move || {
        let mut all: BTreeMap<FunctionName, Gauges> = BTreeMap::new();
        let empty = |function: &FunctionName| Gauges {
            function: function.clone(),
            want: 0,
            queued: 0,
            starting: 0,
            ready: 0,
            draining: 0,
        };
        for gauge in control.gauges() {
            let function = gauge.revision.function();
            let sum = all.entry(function.clone()).or_insert_with(|| empty(function));
            sum.want += u64::from(gauge.want);
            sum.starting += u64::from(gauge.starting);
            sum.ready += u64::from(gauge.ready);
            sum.draining += u64::from(gauge.draining);
        }
        for stats in dispatcher.stats() {
            let function = stats.revision.function();
            all.entry(function.clone()).or_insert_with(|| empty(function)).queued += u64::from(stats.waiting);
        }
        all.into_values().collect()
    })
}

/// What is kept ready, asked for at each scrape.
pub(crate) fn pool(provider: Arc<dyn Provider>) -> Box<dyn Fn() -> Pooled + Send + Sync> {
    Box::new(move || provider.pool())
}

/// What triggers have done, asked for at each scrape.
pub(crate) fn triggers(triggers: taper_trigger::Handle) -> Figures {
    Box::new(move || {
        let stats = triggers.stats();
        let counter = |name, help, value: u64| Figure { name, help, counter: true, value: value as f64 };
        vec![
            counter("taper_trigger_ticks", "Calls that ticks of schedules have made.", stats.ticks),
            counter(
                "taper_trigger_missed",
                "Ticks that passed while nobody could work them off, and made no call.",
                stats.missed,
            ),
            counter(
                "taper_trigger_skipped",
                "Ticks that made no call because that of an earlier one waited or ran.",
                stats.skipped,
            ),
            counter("taper_trigger_events", "Events that came.", stats.events),
            counter("taper_trigger_matched", "Triggers that events matched.", stats.matched),
            counter("taper_trigger_calls", "Calls that events have made.", stats.calls),
            counter(
                "taper_trigger_filter_errors",
                "Expressions of filters that ended with an error.",
                stats.filter_errors,
            ),
            counter("taper_trigger_errors", "Calls that could not be made, and sources that failed.", stats.errors),
            Figure {
                name: "taper_trigger_lag_seconds",
                help: "How much later than it was due the last tick was worked off.",
                counter: false,
                value: stats.lag_ms as f64 / 1000.0,
            },
        ]
    })
}
