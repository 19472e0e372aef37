//! OpenFaaS's words for scaling and probes, the free edition's and the paid one's alike, in ours. Owns the names; never decides.

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use taper_model::{
    function::{Metric, Probe, Scale},
    quantity::Span,
};

use crate::Error;

type Words = BTreeMap<String, String>;

/// A share of the most instances, in percent: what one alert adds.
const FACTOR: &str = "com.openfaas.scale.factor";
/// What the original adds where nothing is said.
const DEFAULT_FACTOR: u32 = 20;

/// What a label or annotation says, when it is there.
fn read<T: FromStr>(kind: &str, words: &Words, key: &str, what: impl Display) -> Result<Option<T>, Error> {
    let parse = |text: &String| {
        let refuse = |_| Error::Invalid(format!("{kind} {key}: `{}` is not {what}", text.escape_debug()));
        text.trim().parse().map_err(refuse)
    };
    words.get(key).map(parse).transpose()
}

/// What the labels `com.openfaas.scale.*` say. Functions of this surface keep one instance unless they say that they need not.
///
/// # Errors
/// The first label that is malformed, by its name.
pub(super) fn scale(labels: &Words) -> Result<Scale, Error> {
    let key = |name: &str| format!("com.openfaas.scale.{name}");
    let number = |name| read::<u32>("label", labels, &key(name), "a number of instances");
    let real = |name| read::<f64>("label", labels, &key(name), "a number");
    let span = |name| read::<Span>("label", labels, &key(name), "a duration such as `15m`");
    factor(labels)?;
    let to_zero = labels.get(&key("zero")).is_some_and(|z| matches!(z.trim(), "true" | "1"));
    let (min, max) = (number("min")?, number("max")?);
    let mut scale =
        Scale { max, zero_after: span("zero-duration")?, scale_down_delay: span("down.window")?, ..Scale::default() };
    if to_zero {
        scale.min = Some(0);
        scale.activation_scale = min.filter(|n| *n > 1);
    } else {
        scale.min = Some(min.unwrap_or(1));
    }
    scale.target = real("target")?;
    scale.metric = match labels.get(&key("type")).map(|t| t.trim()) {
        None => None,
        Some("capacity") => Some(Metric::Concurrency),
        Some("rps") => Some(Metric::Rps),
        Some("cpu") => Some(Metric::Cpu),
        Some(other) => {
            return Err(Error::Invalid(format!(
                "label {}: `{}` is not served here; write `capacity`, `rps` or `cpu`",
                key("type"),
                other.escape_debug()
            )));
        }
    };
    let proportion = real("target-proportion")?;
    if let Some(p) = proportion.filter(|p| !(0.01..=1.0).contains(p)) {
        let key = key("target-proportion");
        return Err(Error::Invalid(format!("label {key}: {p} is out of range; allowed is 0.01 to 1")));
    }
    if scale.metric.is_some() {
        // The original's defaults, where its scaler is asked for.
        scale.target = scale.target.or(Some(50.0));
        scale.utilization = Some(proportion.unwrap_or(0.9) * 100.0);
    } else {
        scale.utilization = proportion.map(|p| p * 100.0);
    }
    Ok(scale)
}

/// The share of the most instances that one alert adds, in percent; 0 for none.
///
/// # Errors
/// When the label is not a whole number up to 100.
pub(super) fn factor(labels: &Words) -> Result<u32, Error> {
    let factor = read("label", labels, FACTOR, "a whole number of percent, 0 to 100")?.unwrap_or(DEFAULT_FACTOR);
    if factor > 100 {
        return Err(Error::Invalid(format!("label {FACTOR}: {factor} is out of range; allowed is 0 to 100")));
    }
    Ok(factor)
}

/// The probe that annotations describe, `health` or `ready`; none where no path is given.
///
/// # Errors
/// The first annotation that is malformed, by its name.
pub(super) fn probe(annotations: &Words, which: &str) -> Result<Option<Probe>, Error> {
    let key = |name: &str| format!("com.openfaas.{which}.http.{name}");
    let Some(path) = annotations.get(&key("path")) else { return Ok(None) };
    let span = |name: &str| {
        // Both spellings are in use: whole seconds, and a duration.
        let seconds = key(&format!("{name}Seconds"));
        let key = if annotations.contains_key(&seconds) { seconds } else { key(name) };
        read::<Span>("annotation", annotations, &key, "a number of seconds")
    };
    let count = |name| read::<u32>("annotation", annotations, &key(name), "a number of times");
    Ok(Some(Probe {
        path: Some(path.trim().to_owned()),
        initial_delay: span("initialDelay")?,
        period: span("period")?,
        timeout: span("timeout")?,
        failure_threshold: count("failureThreshold")?,
        success_threshold: count("successThreshold")?,
        ..Probe::default()
    }))
}
