//! A revision's scaling policy: its manifest's `scale` block over its annotations over the defaults. Never decides.

use std::collections::BTreeMap;

use taper_autoscaler::{Error, Metric, ScalePolicy, Settings};
use taper_model::{
    FunctionSpec, Revision,
    function::{self, KeepAlive, MAX_SCALE, Scale},
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
    if settings.metric == Some(Metric::Cpu) {
        // As a concurrency target above the slots: an instance can never use more than it is limited to.
        let most = f64::from(spec.cpu_milli()).max(1.0);
        settings.target = Some(settings.target.map_or(most.min(1000.0), |target| target.min(most)));
    }
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
        adaptive: scale.keep_alive.map(|k| k == KeepAlive::Adaptive),
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
    fn a_cpu_target_is_one_that_an_instance_can_reach() {
        let read = |scale: &str, cpu: Option<&str>| {
            let mut spec = FunctionSpec { command: vec!["cat".into()], ..FunctionSpec::default() };
            spec.scale = serde_json::from_str(scale).unwrap();
            spec.resources.cpu = cpu.map(|c| c.parse().unwrap());
            policy(&spec, &BTreeMap::new()).map(|p| p.total_value)
        };
        assert_eq!(read(r#"{"metric": "cpu"}"#, Some("2")).unwrap(), 1000.0);
        assert_eq!(read(r#"{"metric": "cpu"}"#, Some("250m")).unwrap(), 250.0);
        assert_eq!(read(r#"{"metric": "cpu", "target": 1500}"#, Some("2")).unwrap(), 1500.0);
        assert_eq!(read(r#"{"metric": "cpu", "target": 50}"#, Some("250m")).unwrap(), 50.0);
        assert_eq!(read(r#"{"metric": "cpu", "target": 2}"#, Some("1m")).unwrap(), 1.0, "the least there may be");
        assert!(read(r#"{"metric": "cpu", "target": 0.5}"#, None).is_err());
        assert_eq!(read(r#"{"metric": "rps"}"#, Some("250m")).unwrap(), 200.0, "of the others it says nothing");
    }

    #[test]
    fn whatever_is_written_there_is_a_bound() {
        let counts = ["0", "1", "2", "99", "100", "101", "9999", "10000", "10001", "2147483647"];
        let mut taken = 0;
        for key in ["min-scale", "max-scale", "initial-scale", "activation-scale"] {
            for (count, other) in counts.iter().flat_map(|c| counts.map(|o| (*c, o))) {
                for second in ["min-scale", "max-scale", "activation-scale"].into_iter().filter(|s| *s != key) {
                    let Ok(p) = read("{}", &[(key, count), (second, other)]) else { continue };
                    taken += 1;
                    assert!((1..=MAX_SCALE).contains(&p.max), "{key}={count} {second}={other}: max {}", p.max);
                    assert!(p.min <= p.max && p.activation_scale <= p.max, "{key}={count} {second}={other}: {p:?}");
                }
            }
        }
        assert!(taken > 200, "{taken}");
        let text = read("{}", &[("min-scale", "10001")]).unwrap_err().to_string();
        assert!(text.contains("10001") && text.contains("10000"), "{text}");
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
