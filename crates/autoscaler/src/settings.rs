//! What people write about scaling, in the manifest's `scale` block or in annotations, and its limits. Owns the names and the
//! ranges; never decides anything.

use std::{collections::BTreeMap, time::Duration};

use crate::{Aggregation, Error, Metric, ScalePolicy};

/// Scaling settings as written; `None` where nothing was said.
///
/// The manifest's `scale` block maps onto the fields one to one. Several sources are laid over each other with [`or`](Self::or)
/// and become a policy, checked, with [`policy`](Self::policy).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Settings {
    /// Fewest instances.
    pub min: Option<u32>,
    /// Most instances; 0 for no limit.
    pub max: Option<u32>,
    /// The metric's value one instance should carry, before the utilisation; with the metric `cpu` in thousandths of a core.
    pub target: Option<f64>,
    /// What is measured.
    pub metric: Option<Metric>,
    /// Percent of the target that is aimed for.
    pub utilization: Option<f64>,
    /// Idle time, all of it, before zero.
    pub zero_after: Option<Duration>,
    /// Whether habit decides how long an idle instance stays; manifest only. Not set: where no idle time is.
    pub adaptive: Option<bool>,
    /// The stable window.
    pub window: Option<Duration>,
    /// The panic window in percent of the stable one.
    pub panic_window_percentage: Option<f64>,
    /// Load in percent of the target from which on it is a panic.
    pub panic_threshold_percentage: Option<f64>,
    /// How long a lower number must hold before it is followed.
    pub scale_down_delay: Option<Duration>,
    /// Instances that a new revision must reach once.
    pub initial_scale: Option<u32>,
    /// Fewest instances when coming up from zero.
    pub activation_scale: Option<u32>,
    /// Spare capacity for bursts.
    pub target_burst_capacity: Option<f64>,
    /// Knative's extra time before the last instance goes; annotation only, `zero_after` contains it.
    pub pod_retention: Option<Duration>,
    /// How the windows are averaged; annotation only.
    pub aggregation: Option<Aggregation>,
}

/// The group of the annotations.
const GROUP: &str = "autoscaling.knative.dev/";
const KPA: &str = "kpa.autoscaling.knative.dev";

/// The largest count.
const LARGEST: u32 = i32::MAX.unsigned_abs();
const HOUR: Duration = Duration::from_secs(3600);

// The settings by the names of their annotations.
const CLASS: &str = "class";
const METRIC: &str = "metric";
const AGGREGATION: &str = "metric-aggregation-algorithm";
const MIN: &str = "min-scale";
const MAX: &str = "max-scale";
const INITIAL: &str = "initial-scale";
const ACTIVATION: &str = "activation-scale";
const TARGET: &str = "target";
const UTILIZATION: &str = "target-utilization-percentage";
const BURST: &str = "target-burst-capacity";
const WINDOW: &str = "window";
const PANIC_WINDOW: &str = "panic-window-percentage";
const PANIC_THRESHOLD: &str = "panic-threshold-percentage";
const DELAY: &str = "scale-down-delay";
const RETENTION: &str = "scale-to-zero-pod-retention-period";
const ZERO_AFTER: &str = "zero-after";

const KNOWN: [&str; 15] = [
    CLASS,
    METRIC,
    AGGREGATION,
    MIN,
    MAX,
    INITIAL,
    ACTIVATION,
    TARGET,
    UTILIZATION,
    BURST,
    WINDOW,
    PANIC_WINDOW,
    PANIC_THRESHOLD,
    DELAY,
    RETENTION,
];

impl Settings {
    /// Reads the annotations `autoscaling.knative.dev/*`, each also by its camelCase name, and passes over all others.
    /// Where both spellings are there, the one with hyphens counts.
    ///
    /// # Errors
    /// The first annotation of the group that is unknown, malformed or out of its range.
    pub fn from_annotations<K: AsRef<str>, V: AsRef<str>>(
        annotations: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, Error> {
        let written = Written::read(annotations)?;
        written.class()?;
        let settings = Self {
            min: written.count(MIN)?,
            max: written.count(MAX)?,
            target: written.number(TARGET)?,
            metric: written.metric()?,
            utilization: written.number(UTILIZATION)?,
            zero_after: None,
            adaptive: None,
            window: written.span(WINDOW)?,
            panic_window_percentage: written.number(PANIC_WINDOW)?,
            panic_threshold_percentage: written.number(PANIC_THRESHOLD)?,
            scale_down_delay: written.span(DELAY)?,
            initial_scale: written.count(INITIAL)?,
            activation_scale: written.count(ACTIVATION)?,
            target_burst_capacity: written.number(BURST)?,
            pod_retention: written.span(RETENTION)?,
            aggregation: written.aggregation()?,
        };
        settings.check(|setting| written.key(setting))?;
        Ok(settings)
    }

    /// These settings, and the other's where these say nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            min: self.min.or(other.min),
            max: self.max.or(other.max),
            target: self.target.or(other.target),
            metric: self.metric.or(other.metric),
            utilization: self.utilization.or(other.utilization),
            zero_after: self.zero_after.or(other.zero_after),
            adaptive: self.adaptive.or(other.adaptive),
            window: self.window.or(other.window),
            panic_window_percentage: self.panic_window_percentage.or(other.panic_window_percentage),
            panic_threshold_percentage: self.panic_threshold_percentage.or(other.panic_threshold_percentage),
            scale_down_delay: self.scale_down_delay.or(other.scale_down_delay),
            initial_scale: self.initial_scale.or(other.initial_scale),
            activation_scale: self.activation_scale.or(other.activation_scale),
            target_burst_capacity: self.target_burst_capacity.or(other.target_burst_capacity),
            pod_retention: self.pod_retention.or(other.pod_retention),
            aggregation: self.aggregation.or(other.aggregation),
        }
    }

    /// The policy these settings describe, with Knative's defaults where they say nothing.
    ///
    /// `concurrency` is the hard limit of calls per instance, 0 for none; a concurrency target above it is lowered to it.
    /// `zero_after`, where it is not set, is the window with the pod retention and the scale-down delay: what Knative would
    /// take, without its grace period.
    ///
    /// # Errors
    /// The first setting that is out of its range, by its name in the manifest, with what is allowed.
    pub fn policy(&self, concurrency: u32) -> Result<ScalePolicy, Error> {
        self.check(|setting| manifest_name(setting).to_owned())?;
        let default = ScalePolicy::default();
        let metric = self.metric.unwrap_or_default();
        let limit = (concurrency > 0).then_some(f64::from(concurrency));
        let total_value = match metric {
            Metric::Concurrency => {
                let limit = limit.unwrap_or(f64::INFINITY);
                self.target.unwrap_or(if limit.is_finite() { limit } else { 100.0 }).min(limit)
            }
            Metric::Rps => self.target.unwrap_or(200.0),
            Metric::Cpu => self.target.unwrap_or(1000.0),
        };
        let utilization = self.utilization.map_or(0.7, |percent| percent / 100.0);
        let stable_window = self.window.unwrap_or(default.stable_window);
        let scale_down_delay = self.scale_down_delay.unwrap_or(default.scale_down_delay);
        let retention = self.pod_retention.unwrap_or_default();
        let is_timed = self.zero_after.or(self.window).or(self.pod_retention).is_some();
        Ok(ScalePolicy {
            metric,
            target_value: (total_value * utilization).max(0.01),
            total_value,
            target_burst_capacity: self.target_burst_capacity.unwrap_or(default.target_burst_capacity),
            panic_threshold: self.panic_threshold_percentage.map_or(default.panic_threshold, |percent| percent / 100.0),
            stable_window,
            panic_window_percentage: self.panic_window_percentage.unwrap_or(default.panic_window_percentage),
            scale_down_delay,
            activation_scale: self.activation_scale.unwrap_or(default.activation_scale),
            initial_scale: self.initial_scale.unwrap_or(default.initial_scale),
            min: self.min.unwrap_or(default.min),
            max: self.max.unwrap_or(default.max),
            zero_after: self.zero_after.unwrap_or(stable_window + retention + scale_down_delay),
            adaptive: self.adaptive.unwrap_or(!is_timed),
            aggregation: self.aggregation.unwrap_or_default(),
            ..default
        })
    }

    /// Holds every setting against its range; `name` says how the person who reads the error wrote it.
    fn check(&self, name: impl Fn(&'static str) -> String) -> Result<(), Error> {
        let out = |setting, value| Error::OutOfRange { name: name(setting), value, allowed: allowed(setting) };
        let number = |setting, value: Option<f64>, fits: fn(f64) -> bool| match value {
            Some(v) if !(v.is_finite() && fits(v)) => Err(out(setting, v.to_string())),
            _ => Ok(()),
        };
        number(TARGET, self.target, |v| v >= 0.01)?;
        if let (Some(Metric::Cpu), Some(target)) = (self.metric, self.target.filter(|t| *t < 1.0)) {
            // Whoever writes 0.5 means cores, and would get the most instances at once.
            let allowed = "1 or more for cpu: thousandths of a core, so 1000 is one";
            return Err(Error::OutOfRange { name: name(TARGET), value: target.to_string(), allowed });
        }
        number(UTILIZATION, self.utilization, |v| (1.0..=100.0).contains(&v))?;
        number(PANIC_WINDOW, self.panic_window_percentage, |v| (1.0..=100.0).contains(&v))?;
        number(PANIC_THRESHOLD, self.panic_threshold_percentage, |v| (110.0..=1000.0).contains(&v))?;
        number(BURST, self.target_burst_capacity, |v| v >= 0.0 || v == -1.0)?;

        let span = |setting, value: Option<Duration>, fits: fn(Duration) -> bool| match value {
            Some(v) if !fits(v) => Err(out(setting, format!("{}s", v.as_secs_f64()))),
            _ => Ok(()),
        };
        span(WINDOW, self.window, |v| v.subsec_nanos() == 0 && v >= Duration::from_secs(6) && v <= HOUR)?;
        span(DELAY, self.scale_down_delay, |v| v.subsec_nanos() == 0 && v <= HOUR)?;
        span(RETENTION, self.pod_retention, |v| v <= HOUR)?;
        span(ZERO_AFTER, self.zero_after, |v| !v.is_zero() && v <= 24 * HOUR)?;

        let count = |setting, value: Option<u32>, least| match value {
            Some(v) if v < least || v > LARGEST => Err(out(setting, v.to_string())),
            _ => Ok(()),
        };
        count(MIN, self.min, 0)?;
        count(MAX, self.max, 0)?;
        count(INITIAL, self.initial_scale, 1)?;
        count(ACTIVATION, self.activation_scale, 2)?;

        let order = |low, low_value: Option<u32>, high, high_value: Option<u32>| match (low_value, high_value) {
            (Some(low_value), Some(high_value)) if low_value > high_value => {
                Err(Error::Contradiction { low: name(low), low_value, high: name(high), high_value })
            }
            _ => Ok(()),
        };
        let max = self.max.filter(|max| *max > 0);
        order(MIN, self.min, MAX, max)?;
        order(MIN, self.min, ACTIVATION, self.activation_scale)?;
        order(ACTIVATION, self.activation_scale, MAX, max)
    }
}

/// The annotations of the group as they were written: name with hyphens → (whole key, value).
struct Written(BTreeMap<&'static str, (String, String)>);

impl Written {
    fn read<K: AsRef<str>, V: AsRef<str>>(annotations: impl IntoIterator<Item = (K, V)>) -> Result<Self, Error> {
        let mut found = BTreeMap::new();
        for (key, value) in annotations {
            let (key, value) = (key.as_ref(), value.as_ref());
            let Some(suffix) = key.strip_prefix(GROUP) else { continue };
            let Some(name) = KNOWN.into_iter().find(|name| *name == suffix || camel(name) == suffix) else {
                return Err(Error::Unknown { name: key.to_owned(), known: KNOWN.join(", ") });
            };
            if *name == *suffix || !found.contains_key(name) {
                found.insert(name, (key.to_owned(), value.to_owned()));
            }
        }
        Ok(Self(found))
    }

    fn key(&self, setting: &'static str) -> String {
        self.0.get(setting).map_or_else(|| format!("{GROUP}{setting}"), |(key, _)| key.clone())
    }

    /// The setting read by `parse`, which says what it expected when it cannot.
    fn get<T>(
        &self,
        setting: &'static str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some((key, value)) = self.0.get(setting) else { return Ok(None) };
        match parse(value) {
            Some(read) => Ok(Some(read)),
            None => {
                let (name, value) = (key.clone(), value.clone());
                Err(Error::Malformed { name, value, expected, allowed: allowed(setting) })
            }
        }
    }

    fn number(&self, setting: &'static str) -> Result<Option<f64>, Error> {
        self.get(setting, "a number", |text| text.parse().ok())
    }

    fn count(&self, setting: &'static str) -> Result<Option<u32>, Error> {
        self.get(setting, "a whole number", |text| text.parse().ok())
    }

    fn span(&self, setting: &'static str) -> Result<Option<Duration>, Error> {
        self.get(setting, "a duration such as 90s, 1m30s or 500ms", duration)
    }

    fn class(&self) -> Result<(), Error> {
        self.get(CLASS, "an autoscaler that is here", |text| (text == KPA).then_some(())).map(|_| ())
    }

    fn metric(&self) -> Result<Option<Metric>, Error> {
        self.get(METRIC, "a metric that this autoscaler knows", |text| match text {
            "concurrency" => Some(Metric::Concurrency),
            "rps" => Some(Metric::Rps),
            "cpu" => Some(Metric::Cpu),
            _ => None,
        })
    }

    fn aggregation(&self) -> Result<Option<Aggregation>, Error> {
        self.get(AGGREGATION, "a way to average", |text| match text {
            "linear" | "" => Some(Aggregation::Linear),
            "weighted-exponential" | "weightedExponential" => Some(Aggregation::WeightedExponential),
            _ => None,
        })
    }
}

/// What a setting may be, in words.
fn allowed(setting: &'static str) -> &'static str {
    match setting {
        CLASS => KPA,
        METRIC => "concurrency, rps or cpu",
        AGGREGATION => "linear or weighted-exponential",
        MIN => "0 to 2147483647",
        MAX => "0 (no limit) to 2147483647",
        INITIAL => "1 to 2147483647",
        ACTIVATION => "2 to 2147483647",
        TARGET => "0.01 or more",
        UTILIZATION | PANIC_WINDOW => "1 to 100 (percent)",
        PANIC_THRESHOLD => "110 to 1000 (percent)",
        BURST => "0 or more, or -1 for unlimited",
        WINDOW => "6s to 1h in whole seconds",
        DELAY => "0s to 1h in whole seconds",
        RETENTION => "0s to 1h",
        _ => "more than 0s, up to 24h (to keep an instance for good, set the minimum to 1)",
    }
}

/// The name in the manifest of a setting known by its annotation.
fn manifest_name(setting: &'static str) -> &'static str {
    match setting {
        MIN => "scale.min",
        MAX => "scale.max",
        INITIAL => "scale.initialScale",
        ACTIVATION => "scale.activationScale",
        TARGET => "scale.target",
        UTILIZATION => "scale.utilization",
        BURST => "scale.targetBurstCapacity",
        WINDOW => "scale.window",
        PANIC_WINDOW => "scale.panicWindowPercentage",
        PANIC_THRESHOLD => "scale.panicThresholdPercentage",
        DELAY => "scale.scaleDownDelay",
        ZERO_AFTER => "scale.zeroAfter",
        // Only an annotation has it.
        other => other,
    }
}

/// `min-scale` → `minScale`.
fn camel(name: &str) -> String {
    let mut words = name.split('-');
    let mut out = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        out.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    out
}

/// A duration in Go's notation: decimal numbers, each with its unit, one after another; `0` needs none.
fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("μs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    loop {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, next) = tail.split_at(tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len()));
        let scale = UNITS.into_iter().find_map(|(name, scale)| (name == unit).then_some(scale))?;
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * scale).ok()?;
        total = total.checked_add(part)?;
        if next.is_empty() {
            return Some(total);
        }
        rest = next;
    }
}
