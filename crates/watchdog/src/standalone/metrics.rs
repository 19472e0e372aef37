//! What Prometheus is told: the three series of OpenFaaS's watchdogs, under their names and labels.
//!
//! Never here: a label that a caller thought up. Methods that HTTP does not know count as `unknown`.

use std::{cell::RefCell, collections::BTreeMap, fmt::Write, time::Duration};

use hyper::{Method, StatusCode};

/// The content type of what [`Metrics::text`] gives.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds in seconds, as text and as numbers.
const BUCKETS: [(&str, f64); 11] = [
    ("0.005", 0.005),
    ("0.01", 0.01),
    ("0.025", 0.025),
    ("0.05", 0.05),
    ("0.1", 0.1),
    ("0.25", 0.25),
    ("0.5", 0.5),
    ("1", 1.0),
    ("2.5", 2.5),
    ("5", 5.0),
    ("10", 10.0),
];

/// All that is counted.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    series: RefCell<BTreeMap<(u16, &'static str), Series>>,
}

#[derive(Debug, Default)]
struct Series {
    count: u64,
    seconds: f64,
    /// Requests in each bucket and in none before it.
    buckets: [u64; BUCKETS.len()],
}

impl Metrics {
    /// Counts a request that has ended.
    pub(crate) fn record(&self, status: StatusCode, method: &Method, took: Duration) {
        let mut series = self.series.borrow_mut();
        let series = series.entry((status.as_u16(), word(method))).or_default();
        let seconds = took.as_secs_f64();
        series.count += 1;
        series.seconds += seconds;
        if let Some(at) = BUCKETS.iter().position(|(_, bound)| seconds <= *bound) {
            series.buckets[at] += 1;
        }
    }

    /// Prometheus's text format.
    pub(crate) fn text(&self, in_flight: usize) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out, in_flight);
        out
    }

    fn write(&self, out: &mut String, in_flight: usize) -> std::fmt::Result {
        let all = self.series.borrow();
        let name = "http_request_duration_seconds";
        writeln!(out, "# HELP {name} Seconds spent serving HTTP requests.\n# TYPE {name} histogram")?;
        for ((code, method), series) in all.iter() {
            let labels = format!("code=\"{code}\",method=\"{method}\"");
            let mut sum = 0;
            for ((bound, _), count) in BUCKETS.iter().zip(series.buckets) {
                sum += count;
                writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {sum}")?;
            }
            writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", series.count)?;
            writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {}", series.seconds, series.count)?;
        }
        let name = "http_requests_in_flight";
        writeln!(out, "# HELP {name} HTTP requests that have not ended.\n# TYPE {name} gauge\n{name} {in_flight}")?;
        let name = "http_requests_total";
        writeln!(out, "# HELP {name} HTTP requests that have ended.\n# TYPE {name} counter")?;
        for ((code, method), series) in all.iter() {
            writeln!(out, "{name}{{code=\"{code}\",method=\"{method}\"}} {}", series.count)?;
        }
        Ok(())
    }
}

fn word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::POST => "post",
        Method::PUT => "put",
        Method::DELETE => "delete",
        Method::HEAD => "head",
        Method::OPTIONS => "options",
        Method::CONNECT => "connect",
        Method::PATCH => "patch",
        Method::TRACE => "trace",
        _ => "unknown",
    }
}
