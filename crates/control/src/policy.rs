//! A revision's scaling policy: its manifest's `scale` block over its annotations over the defaults. Never decides.

use std::collections::BTreeMap;

use taper_autoscaler::{Error, Metric, ScalePolicy, Settings};
use taper_model::{
    FunctionSpec, Revision,
    function::{self, MAX_SCALE, Scale},
};

/// What a spec and its annotations say together. `max` is always a number.
///
/// # Errors
/// The first setting that is unknown, malformed, out of its range or contradicts another, by the name it was written with.
pub(crate) fn policy(spec: &FunctionSpec, annotations: &BTreeMap<String, String>) -> Result<ScalePolicy, Error> {
    let mut settings = written(&spec.scale).or(Settings::from_annotations(annotations)?);
    settings.max = Some(match settings.max {
        None => FunctionSpec::default().max().max(settings.min.unwrap_or(0)).min(MAX_SCALE),
        Some(0) => MAX_SCALE,
        Some(max) => max.min(MAX_SCALE),
    });
    settings.policy(spec.concurrency())
}

/// The policy of a stored revision. Admission has checked it; should its rules have become stricter since, the bounds still hold.
pub(crate) fn of(revision: &Revision) -> ScalePolicy {
    policy(&revision.spec, &revision.annotations).unwrap_or_else(|e| {
        tracing::warn!(revision = %revision.id, error = %e, "the scaling settings are not usable any more; the defaults hold");
        ScalePolicy { min: revision.spec.min(), max: revision.spec.max(), ..ScalePolicy::default() }
    })
}

fn written(scale: &Scale) -> Settings {
    Settings {
        min: scale.min,
        max: scale.max,
        target: scale.target,
        metric: scale.metric.map(|m| match m {
            function::Metric::Concurrency => Metric::Concurrency,
            function::Metric::Rps => Metric::Rps,
            function::Metric::Cpu => Metric::Cpu,
        }),
        utilization: scale.utilization,
        zero_after: scale.zero_after.map(|s| s.0),
        window: scale.window.map(|s| s.0),
        panic_window_percentage: scale.panic_window_percentage,
        panic_threshold_percentage: scale.panic_threshold_percentage,
        scale_down_delay: scale.scale_down_delay.map(|s| s.0),
        initial_scale: scale.initial_scale,
        activation_scale: scale.activation_scale,
        target_burst_capacity: scale.target_burst_capacity,
        pod_retention: None,
        aggregation: None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(scale: &str, annotations: &[(&str, &str)]) -> Result<ScalePolicy, Error> {
        let spec = FunctionSpec {
            command: vec!["cat".into()],
            scale: serde_json::from_str(scale).unwrap(),
            ..FunctionSpec::default()
        };
        let annotations =
            annotations.iter().map(|(k, v)| (format!("autoscaling.knative.dev/{k}"), (*v).into())).collect();
        policy(&spec, &annotations)
    }

    #[test]
    fn the_manifest_comes_before_the_annotations_and_the_defaults_last() {
        let p = read("{}", &[]).unwrap();
        assert_eq!((p.min, p.max, p.zero_after.as_secs(), p.total_value), (0, 100, 60, 20.0));
        let p = read(r#"{"min": 2, "zeroAfter": "5s"}"#, &[("min-scale", "7"), ("max-scale", "9")]).unwrap();
        assert_eq!((p.min, p.max, p.zero_after), (2, 9, Duration::from_secs(5)));
        assert_eq!(read("{}", &[("max-scale", "0")]).unwrap().max, MAX_SCALE);
        assert_eq!(read("{}", &[("min-scale", "300")]).unwrap().max, 300, "a default never contradicts");
        assert_eq!(read(r#"{"metric": "rps"}"#, &[]).unwrap().metric, Metric::Rps);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = read("{}", &[("target", "none")]).unwrap_err().to_string();
        assert!(text.contains("autoscaling.knative.dev/target"), "{text}");
        let text = read("{}", &[("tarqet", "1")]).unwrap_err().to_string();
        assert!(text.contains("tarqet"), "{text}");
        assert!(read(r#"{"min": 5}"#, &[("max-scale", "3")]).is_err(), "they contradict each other");
    }
}
