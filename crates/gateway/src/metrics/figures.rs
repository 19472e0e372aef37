//! Figures of parts that the gateway knows nothing of, shown beside its own.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{MetricType, exemplar::Exemplar},
};

use super::expose::NoLabels;

const NONE: Option<&Exemplar<NoLabels, f64>> = None;

/// One figure as it is now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// Its name, beginning with `taper_`; of a counter without the `_total` that it is shown with.
    pub name: &'static str,
    /// What it says, in a sentence.
    pub help: &'static str,
    /// Whether it only ever grows.
    pub counter: bool,
    /// The figure.
    pub value: f64,
}

/// Asked at each scrape.
pub type Figures = Box<dyn Fn() -> Vec<Figure> + Send + Sync>;

/// Figures as Prometheus reads them.
pub(super) struct Beside(pub(super) Figures);

impl Collector for Beside {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for Figure { name, help, counter, value } in (self.0)() {
            if counter {
                let mut m = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                m.encode_counter::<NoLabels, _, f64>(&value, NONE)?;
            } else {
                encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;

    #[test]
    fn shown_by_their_kinds() {
        let figure = |name, counter, value| Figure { name, help: "Help.", counter, value };
        let mut registry = Registry::default();
        let figures = move || vec![figure("taper_a", true, 3.0), figure("taper_b_seconds", false, 0.25)];
        registry.register_collector(Box::new(Beside(Box::new(figures))));
        let mut shown = String::new();
        text::encode(&mut shown, &registry).unwrap();
        for line in
            ["# TYPE taper_a counter", "taper_a_total 3.0", "# TYPE taper_b_seconds gauge", "taper_b_seconds 0.25"]
        {
            assert!(shown.lines().any(|l| l == line), "{line} is not in\n{shown}");
        }
    }
}
