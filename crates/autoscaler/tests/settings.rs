//! What people may write about scaling, what it becomes, and how a refusal reads.

use std::time::Duration;

use taper_autoscaler::{Aggregation, Error, Metric, ScalePolicy, Settings};

fn policy(annotations: &[(&str, &str)], concurrency: u32) -> Result<ScalePolicy, Error> {
    let annotations = annotations.iter().map(|(name, value)| (format!("autoscaling.knative.dev/{name}"), *value));
    ScalePolicy::from_annotations(annotations, concurrency)
}

fn good(annotations: &[(&str, &str)], concurrency: u32) -> ScalePolicy {
    policy(annotations, concurrency).expect("allowed")
}

fn refusal(annotations: &[(&str, &str)]) -> String {
    policy(annotations, 0).expect_err("refused").to_string()
}

#[test]
fn nothing_written_is_knatives_default() {
    assert_eq!(good(&[], 0), ScalePolicy::default());
    let foreign = [("prometheus.io/scrape", "true"), ("serving.knative.dev/window", "no duration")];
    assert_eq!(ScalePolicy::from_annotations(foreign, 0).expect("not ours"), ScalePolicy::default());
}

#[test]
fn habit_decides_where_no_idle_time_was_set() {
    let adaptive = |settings: Settings| settings.policy(0).expect("good").adaptive;
    let (none, minute) = (Settings::default(), Some(Duration::from_secs(60)));
    assert!(adaptive(none));
    assert!(adaptive(Settings { scale_down_delay: minute, ..none }));
    for timed in [
        Settings { zero_after: minute, ..none },
        Settings { window: minute, ..none },
        Settings { pod_retention: minute, ..none },
    ] {
        assert!(!adaptive(timed), "{timed:?}");
        assert!(adaptive(Settings { adaptive: Some(true), ..timed }), "{timed:?}");
    }
    assert!(!adaptive(Settings { adaptive: Some(false), ..none }));
    assert!(!adaptive(Settings { adaptive: Some(false), ..none }.or(Settings { adaptive: Some(true), ..none })));
}

#[test]
fn every_annotation_by_both_names() {
    let all = [
        ("class", "class", "kpa.autoscaling.knative.dev"),
        ("metric", "metric", "rps"),
        ("metric-aggregation-algorithm", "metricAggregationAlgorithm", "weighted-exponential"),
        ("min-scale", "minScale", "2"),
        ("max-scale", "maxScale", "9"),
        ("initial-scale", "initialScale", "3"),
        ("activation-scale", "activationScale", "4"),
        ("target", "target", "50"),
        ("target-utilization-percentage", "targetUtilizationPercentage", "80"),
        ("target-burst-capacity", "targetBurstCapacity", "-1"),
        ("window", "window", "1m30s"),
        ("panic-window-percentage", "panicWindowPercentage", "5.5"),
        ("panic-threshold-percentage", "panicThresholdPercentage", "150"),
        ("scale-down-delay", "scaleDownDelay", "15m"),
        ("scale-to-zero-pod-retention-period", "scaleToZeroPodRetentionPeriod", "500ms"),
    ];
    let expected = ScalePolicy {
        metric: Metric::Rps,
        target_value: 40.0,
        total_value: 50.0,
        target_burst_capacity: -1.0,
        panic_threshold: 1.5,
        stable_window: Duration::from_secs(90),
        panic_window_percentage: 5.5,
        scale_down_delay: Duration::from_secs(900),
        activation_scale: 4,
        initial_scale: 3,
        min: 2,
        max: 9,
        zero_after: Duration::from_millis(90_000 + 900_000 + 500),
        adaptive: false,
        aggregation: Aggregation::WeightedExponential,
        ..ScalePolicy::default()
    };
    assert_eq!(good(&all.map(|(name, _, value)| (name, value)), 0), expected);
    assert_eq!(good(&all.map(|(_, name, value)| (name, value)), 0), expected);
}

#[test]
fn the_hyphens_win_over_camel_case() {
    for pair in [[("min-scale", "1"), ("minScale", "2")], [("minScale", "2"), ("min-scale", "1")]] {
        assert_eq!(good(&pair, 0).min, 1);
    }
}

#[test]
fn targets() {
    let target = |annotations: &[_], concurrency| {
        let policy = good(annotations, concurrency);
        (policy.total_value, (policy.target_value * 1e9).round() / 1e9)
    };
    assert_eq!(target(&[], 0), (100.0, 70.0));
    assert_eq!(target(&[], 10), (10.0, 7.0));
    assert_eq!(target(&[], 1), (1.0, 0.7));
    assert_eq!(target(&[("target", "7")], 0), (7.0, 4.9));
    assert_eq!(target(&[("target", "7")], 10), (7.0, 4.9));
    // The hard limit is the most an instance may be aimed at.
    assert_eq!(target(&[("target", "70")], 10), (10.0, 7.0));
    assert_eq!(target(&[("target-utilization-percentage", "100")], 10), (10.0, 10.0));
    assert_eq!(target(&[("target", "0.01"), ("target-utilization-percentage", "1")], 0), (0.01, 0.01));
    assert_eq!(target(&[("metric", "rps")], 10), (200.0, 140.0));
    assert_eq!(target(&[("metric", "rps"), ("target", "300")], 10), (300.0, 210.0));
    assert_eq!(
        target(&[("metric", "cpu")], 10),
        (1000.0, 700.0),
        "thousandths of a core, and the calls do not bound it"
    );
    assert_eq!(target(&[("metric", "cpu"), ("target", "1")], 1), (1.0, 0.7));
}

#[test]
fn a_target_in_cores_is_refused() {
    let text = refusal(&[("metric", "cpu"), ("target", "0.5")]);
    assert_eq!(
        text,
        "`autoscaling.knative.dev/target`: `0.5` is out of range; allowed is 1 or more for cpu: thousandths of a core, so 1000 is one"
    );
    // From two sources, too: neither is wrong alone.
    let both = Settings { target: Some(0.9), ..Settings::default() };
    let metric = Settings { metric: Some(Metric::Cpu), ..Settings::default() };
    assert!(both.or(metric).policy(0).expect_err("refused").to_string().contains("scale.target"));
}

#[test]
fn panic_windows_are_whole_seconds() {
    let panic = |window: &str, percentage: &str| {
        good(&[("window", window), ("panic-window-percentage", percentage)], 0).panic_window().as_secs()
    };
    assert_eq!(good(&[], 0).panic_window(), Duration::from_secs(6));
    assert_eq!(panic("6s", "1"), 1);
    assert_eq!(panic("25s", "10"), 3);
    assert_eq!(panic("24s", "10"), 2);
    assert_eq!(panic("1h", "100"), 3600);
}

#[test]
fn idle_time_before_zero() {
    let zero_after = |settings: Settings| settings.policy(0).expect("allowed").zero_after.as_secs();
    let seconds = |s| Some(Duration::from_secs(s));
    assert_eq!(zero_after(Settings::default()), 60);
    assert_eq!(zero_after(Settings { window: seconds(90), ..Settings::default() }), 90);
    assert_eq!(zero_after(Settings { window: seconds(90), zero_after: seconds(10), ..Settings::default() }), 10);
    let slow = Settings { scale_down_delay: seconds(300), pod_retention: seconds(5), ..Settings::default() };
    assert_eq!(zero_after(slow), 365);
    assert_eq!(zero_after(Settings { zero_after: seconds(30), ..slow }), 30);
}

#[test]
fn one_source_fills_the_gaps_of_another() {
    let manifest = Settings { min: Some(1), max: Some(5), ..Settings::default() };
    let annotations = [("autoscaling.knative.dev/max-scale", "3"), ("autoscaling.knative.dev/target", "7")];
    let both = manifest.or(Settings::from_annotations(annotations).expect("allowed"));
    assert_eq!(both, Settings { min: Some(1), max: Some(5), target: Some(7.0), ..Settings::default() });
}

#[test]
fn the_edges_of_every_range() {
    #[rustfmt::skip]
    let ranges: [(&str, &[&str], &[&str]); 14] = [
        ("class", &["kpa.autoscaling.knative.dev"], &["hpa.autoscaling.knative.dev", "mine.example.com", ""]),
        ("metric", &["concurrency", "rps", "cpu"], &["memory", "custom", "RPS", "CPU", ""]),
        ("metric-aggregation-algorithm", &["linear", "weightedExponential", ""], &["median", "Linear"]),
        ("min-scale", &["0", "2147483647", "+3"], &["-1", "2147483648", "99999999999", "1.5", "one", "", " 1"]),
        ("max-scale", &["0", "1", "2147483647"], &["-1", "2147483648"]),
        ("initial-scale", &["1", "7"], &["0", "-1", "x"]),
        ("activation-scale", &["2", "7"], &["1", "0", "-2"]),
        ("target", &["0.01", "1e6", "70"], &["0.0099", "0", "-1", "NaN", "inf", "many"]),
        ("target-utilization-percentage", &["1", "70.5", "100"], &["0.99", "100.01", "70%"]),
        ("target-burst-capacity", &["0", "-1", "0.5", "211"], &["-2", "-0.5", "nan"]),
        ("window", &["6s", "1h", "60m", "6000ms", "1m0.0s"], &["5s", "5.999s", "1h1s", "6.5s", "60", "-60s", "s", "1m 1s", "1x", "", "9e9s", "999999999999999999999h"]),
        ("panic-window-percentage", &["1", "100"], &["0.9", "100.1"]),
        ("panic-threshold-percentage", &["110", "1000"], &["109.9", "1000.1"]),
        ("scale-down-delay", &["0", "0s", "1h"], &["-1s", "1h1s", "1.5s", "1"]),
    ];
    for (name, fine, bad) in ranges {
        for value in fine {
            policy(&[(name, value)], 0).unwrap_or_else(|error| panic!("{name}: {value}: {error}"));
        }
        for value in bad {
            let text = refusal(&[(name, value)]);
            assert!(text.starts_with(&format!("`autoscaling.knative.dev/{name}`: `")), "{text}");
            assert!(text.contains("; allowed is "), "{text}");
        }
    }
    for (value, fine) in [("0s", true), ("1h", true), ("1.5s", true), ("3601s", false), ("-1s", false)] {
        assert_eq!(policy(&[("scale-to-zero-pod-retention-period", value)], 0).is_ok(), fine, "{value}");
    }
}

#[test]
fn refusals_name_the_annotation_the_value_and_the_range() {
    assert_eq!(
        refusal(&[("minScale", "-1")]),
        "`autoscaling.knative.dev/minScale`: `-1` is not a whole number; allowed is 0 to 2147483647"
    );
    assert_eq!(
        refusal(&[("window", "2h")]),
        "`autoscaling.knative.dev/window`: `7200s` is out of range; allowed is 6s to 1h in whole seconds"
    );
    assert_eq!(
        refusal(&[("metric", "memory")]),
        "`autoscaling.knative.dev/metric`: `memory` is not a metric that this autoscaler knows; allowed is concurrency, rps or cpu"
    );
    assert!(
        refusal(&[("min-scal", "1")])
            .starts_with("`autoscaling.knative.dev/min-scal` is not a known annotation; known after `autoscaling.knative.dev/` are: class, metric,")
    );
}

#[test]
fn settings_that_exclude_each_other() {
    assert_eq!(
        refusal(&[("minScale", "4"), ("max-scale", "3")]),
        "`autoscaling.knative.dev/minScale` is 4 and `autoscaling.knative.dev/max-scale` is 3; \
         raise `autoscaling.knative.dev/max-scale` or lower `autoscaling.knative.dev/minScale`"
    );
    assert!(refusal(&[("min-scale", "4"), ("activation-scale", "3")]).contains("activation-scale` is 3"));
    assert!(refusal(&[("activation-scale", "4"), ("max-scale", "3")]).contains("max-scale` is 3"));
    good(&[("min-scale", "3"), ("activation-scale", "3"), ("max-scale", "3")], 0);
    good(&[("min-scale", "3"), ("activation-scale", "4"), ("max-scale", "0")], 0);
}

#[test]
fn the_manifest_is_refused_by_its_own_names() {
    let refusal = |settings: Settings| settings.policy(0).expect_err("refused").to_string();
    assert_eq!(
        refusal(Settings { zero_after: Some(Duration::ZERO), ..Settings::default() }),
        "`scale.zeroAfter`: `0s` is out of range; allowed is more than 0s, up to 24h (to keep an instance for good, set the minimum to 1)"
    );
    assert_eq!(
        refusal(Settings { utilization: Some(0.7), ..Settings::default() }),
        "`scale.utilization`: `0.7` is out of range; allowed is 1 to 100 (percent)"
    );
    assert_eq!(
        refusal(Settings { min: Some(2), max: Some(1), ..Settings::default() }),
        "`scale.min` is 2 and `scale.max` is 1; raise `scale.max` or lower `scale.min`"
    );
    assert!(refusal(Settings { target: Some(f64::NAN), ..Settings::default() }).starts_with("`scale.target`: `NaN`"));
}
