//! A revision's scaling policy, resolved: every number the decision needs. What people write becomes one in [`crate::Settings`].

use std::time::Duration;

use crate::{Error, Settings};

/// What is measured and compared with the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Metric {
    /// Calls in the system, waiting and running, on average.
    #[default]
    Concurrency,
    /// Calls that arrive per second.
    Rps,
    /// CPU that the instances use together, in thousandths of a core.
    Cpu,
}

/// How the seconds of a window become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Aggregation {
    /// Every second weighs the same.
    #[default]
    Linear,
    /// Newer seconds weigh more; Knative's formula.
    WeightedExponential,
}

/// The numbers that a decision follows. `Default` is Knative's set, with concurrency unlimited.
///
/// The fields are not checked here: [`Settings::policy`] and [`ScalePolicy::from_annotations`] check what people write. Values out
/// of their range give odd decisions, never a panic.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalePolicy {
    /// What is measured. Default concurrency.
    pub metric: Metric,
    /// The metric's value per instance that is aimed for, after the utilisation. Default 70.
    pub target_value: f64,
    /// The metric's value that one instance can carry. Default 100.
    pub total_value: f64,
    /// Spare capacity to keep for bursts; 0 for none, -1 for unlimited. Only reported, as the excess burst capacity. Default 211.
    pub target_burst_capacity: f64,
    /// The most instances one decision may ask for, as a multiple of those ready. Default 1000.
    pub max_scale_up_rate: f64,
    /// One decision may ask for no less than those ready divided by this. Default 2.
    pub max_scale_down_rate: f64,
    /// Load per ready instance, in multiples of the target, from which on it is a panic. Default 2.
    pub panic_threshold: f64,
    /// The window of the calm average, and how long a panic holds after its last burst. Default 60 s.
    pub stable_window: Duration,
    /// The window of the quick average in percent of the stable one. Default 10.
    pub panic_window_percentage: f64,
    /// How long a lower number must hold before it is followed. Default 0.
    pub scale_down_delay: Duration,
    /// Whether some route, tag or trigger may still name the revision. Without it `min` and the down rate do not hold. Default true.
    pub reachable: bool,
    /// Fewest instances when coming up from zero under load. 0 and 1 mean nothing special. Default 1.
    pub activation_scale: u32,
    /// Instances that a new revision must reach once before its load decides. Default 1.
    pub initial_scale: u32,
    /// Fewest instances. Default 0.
    pub min: u32,
    /// Most instances; 0 for no limit. Default 0.
    pub max: u32,
    /// Idle time, all of it, after which the last instances go. Default 60 s.
    pub zero_after: Duration,
    /// Whether how its callers use to call decides in place of `zero_after`, which is then the idle time that one start is worth. Default true.
    pub adaptive: bool,
    /// How the windows are averaged. Default linear.
    pub aggregation: Aggregation,
}

impl ScalePolicy {
    /// The policy that a revision's annotations `autoscaling.knative.dev/*` describe, with Knative's defaults for the rest.
    ///
    /// `concurrency` is the hard limit of calls per instance, 0 for none. Annotations of other groups are passed over.
    ///
    /// # Errors
    /// The first annotation of the group that is unknown, malformed or out of its range, by name, with what is allowed.
    pub fn from_annotations<K: AsRef<str>, V: AsRef<str>>(
        annotations: impl IntoIterator<Item = (K, V)>,
        concurrency: u32,
    ) -> Result<Self, Error> {
        Settings::from_annotations(annotations)?.policy(concurrency)
    }

    /// The window of the quick average: its share of the stable window in whole seconds, at least one.
    pub fn panic_window(&self) -> Duration {
        let seconds = (self.stable_window.as_secs_f64() * self.panic_window_percentage / 100.0).round();
        Duration::from_secs((seconds as u64).max(1))
    }

    /// The most instances there may be.
    pub(crate) fn ceiling(&self) -> u32 {
        if self.max == 0 { u32::MAX } else { self.max }
    }
}

impl Default for ScalePolicy {
    fn default() -> Self {
        Self {
            metric: Metric::Concurrency,
            target_value: 70.0,
            total_value: 100.0,
            target_burst_capacity: 211.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            panic_threshold: 2.0,
            stable_window: Duration::from_secs(60),
            panic_window_percentage: 10.0,
            scale_down_delay: Duration::ZERO,
            reachable: true,
            activation_scale: 1,
            initial_scale: 1,
            min: 0,
            max: 0,
            zero_after: Duration::from_secs(60),
            adaptive: true,
            aggregation: Aggregation::Linear,
        }
    }
}
