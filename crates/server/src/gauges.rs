//! How functions stand, for the metrics: instances as the control plane knows them, waiting calls as the dispatcher does, and what
//! the provider keeps ready.

use std::{collections::BTreeMap, sync::Arc};

use taper_control::Handle;
use taper_dispatch::Dispatcher;
use taper_gateway::Gauges;
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
