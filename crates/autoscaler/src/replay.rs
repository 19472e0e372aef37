//! The bare decision, replayed from JSON lines, and what a function's habit says after each of its calls. Owns the format; never applies
//! bounds and never measures.

use std::{
    io::{BufRead, Read, Write},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Number;

use crate::{Decider, Error, Forecast, Habit, ScalePolicy, Seen};

/// The longest line that is read; none of ours comes near it.
const LONGEST_LINE: u64 = 64 * 1024;

/// Replays decisions: reads a policy and then one moment per line, writes one decision per moment.
///
/// *Flow.* The first line is `{"policy": {…}, "ready": N, "epoch": S}`: the policy (durations in seconds; what it leaves out has
/// Knative's default), the instances ready when the decider was made, and the Unix time of moment 0. Each further line is
/// `{"at": SECONDS, "ready": N, "stable": X, "panic": Y}` and is answered by `{"at", "valid", "want", "excessBurstCapacity",
/// "panicking"}`. Where an average is `null` there is nothing to decide on: `valid` is false and what was decided before stands,
/// -1 before the first decision. Blank lines are passed over.
///
/// Where the first line is `{"worth": SECONDS}` habit is replayed: each further line is a call, `{"begin": SECONDS, "end": SECONDS}`, and is
/// answered by `{"begin", "idle", "start", "keep", "ahead", "because"}`: how long nobody had called, what the call met (`warm`, `ahead` or `cold`),
/// until when after its end an instance stays, and from when to when another one would be there.
///
/// *Guarantees.* Every line up to one that is refused has been answered. Memory does not grow with the input.
///
/// # Errors
/// The first line that is not as above, by its number: an unknown or missing field, a value out of its range, a moment before
/// the one of the line above. A reader or writer that fails.
pub fn replay(mut input: impl BufRead, mut output: impl Write) -> Result<(), Error> {
    let mut lines = Lines { input: &mut input, number: 0, text: Vec::new() };
    let refuse = |line, what: &str| Error::Replay { line, what: what.to_owned() };

    if !lines.advance()? {
        return Err(refuse(1, "there is none; the first line is {\"policy\": {…}, \"ready\": N, \"epoch\": S}"));
    }
    if lines.parse::<Kind>().is_ok_and(|kind| kind.worth.is_some()) {
        let head = lines.parse::<HabitHead>()?;
        return habit(&head, lines, output);
    }
    let head = lines.parse::<Head>()?;
    let policy = head.policy.resolve().map_err(|what| refuse(lines.number, &what))?;
    let epoch = seconds("epoch", head.epoch).map_err(|what| refuse(lines.number, &what))?;
    let mut decider = Decider::new(head.ready, epoch);
    let mut latest = Duration::ZERO;

    while let Some(moment) = lines.next::<Moment>()? {
        let at = moment.at.as_f64().unwrap_or(f64::NAN);
        let at = seconds("at", at).map_err(|what| refuse(lines.number, &what))?;
        if at < latest {
            return Err(refuse(lines.number, "`at` is before that of the line above; a replay runs forward in time"));
        }
        latest = at;
        let Some(now) = epoch.checked_add(at) else {
            return Err(refuse(lines.number, "`epoch` and `at` together are more than time has"));
        };
        let seen = match (moment.stable, moment.panic) {
            (Some(stable), Some(panic)) => Some(Seen { stable, panic }),
            _ => None,
        };
        let decided = decider.decide(&policy, seen, moment.ready, now);
        let answer = Answer {
            at: moment.at,
            valid: decided.is_some(),
            want: decider.desired().map_or(-1, i64::from),
            excess_burst_capacity: decider.excess_burst_capacity(&policy),
            panicking: decider.panicking(),
        };
        write(&mut output, lines.number, &answer)?;
    }
    output.flush().map_err(|source| Error::Write { line: lines.number, source })
}

/// Replays a function's habit from its calls.
fn habit(head: &HabitHead, mut lines: Lines<&mut impl BufRead>, mut output: impl Write) -> Result<(), Error> {
    let refuse = |line, what: &str| Error::Replay { line, what: what.to_owned() };
    let worth = seconds("worth", head.worth).map_err(|what| refuse(lines.number, &what))?;
    let mut habit = Habit::default();
    let (mut latest, mut end) = (Duration::ZERO, None);
    while let Some(call) = lines.next::<Called>()? {
        let time = |name, number: &Number| seconds(name, number.as_f64().unwrap_or(f64::NAN));
        let begin = time("begin", &call.begin).map_err(|what| refuse(lines.number, &what))?;
        let ends = time("end", &call.end).map_err(|what| refuse(lines.number, &what))?;
        if begin < latest || ends < begin {
            return Err(refuse(
                lines.number,
                "`begin` is before that of the line above, or after `end`; a replay runs forward in time",
            ));
        }
        let idle = end.map(|end| begin.saturating_sub(end));
        let start = idle.map_or("cold", |idle| met(&habit, idle, worth));
        habit.busy(begin);
        (latest, end) = (begin, end.max(Some(ends)));
        habit.idle(end.unwrap_or(ends));
        let Forecast { keep, ahead, basis } = habit.forecast(Duration::ZERO, true, worth);
        let answer = Expected {
            begin: call.begin,
            idle: idle.map(|idle| idle.as_secs_f64()),
            start,
            keep: keep.as_secs_f64(),
            ahead: ahead.map(|ahead| [ahead.from, ahead.until].map(|d| d.as_secs_f64())),
            because: basis.to_string(),
        };
        write(&mut output, lines.number, &answer)?;
    }
    output.flush().map_err(|source| Error::Write { line: lines.number, source })
}

/// What a call meets after an idle time.
fn met(habit: &Habit, idle: Duration, worth: Duration) -> &'static str {
    let mut forecast = habit.forecast(Duration::ZERO, true, worth);
    if idle <= forecast.keep {
        return "warm";
    }
    while let Some(ahead) = forecast.ahead.filter(|ahead| ahead.from <= idle) {
        if idle <= ahead.until {
            return "ahead";
        }
        forecast = habit.forecast(ahead.until, false, worth);
    }
    "cold"
}

fn write(output: &mut impl Write, line: usize, answer: &impl Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_vec(answer).expect("an answer is plain numbers and words");
    text.push(b'\n');
    output.write_all(&text).map_err(|source| Error::Write { line, source })
}

/// Looks whether habit is to be replayed.
#[derive(Deserialize)]
struct Kind {
    worth: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HabitHead {
    worth: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Called {
    begin: Number,
    end: Number,
}

#[derive(Serialize)]
struct Expected {
    begin: Number,
    idle: Option<f64>,
    start: &'static str,
    keep: f64,
    ahead: Option<[f64; 2]>,
    because: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Head {
    policy: Numbers,
    ready: u32,
    epoch: f64,
}

/// The part of a policy that the bare decision follows.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Numbers {
    target_value: f64,
    total_value: f64,
    target_burst_capacity: f64,
    max_scale_up_rate: f64,
    max_scale_down_rate: f64,
    panic_threshold: f64,
    stable_window: f64,
    scale_down_delay: f64,
    reachable: bool,
    activation_scale: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Moment {
    at: Number,
    ready: u32,
    #[serde(deserialize_with = "number_or_null")]
    stable: Option<f64>,
    #[serde(deserialize_with = "number_or_null")]
    panic: Option<f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    at: Number,
    valid: bool,
    want: i64,
    excess_burst_capacity: i32,
    panicking: bool,
}

/// Naming a function makes the field required: a forgotten average is a mistake, `null` is an answer.
fn number_or_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    Option::deserialize(from)
}

impl Default for Numbers {
    fn default() -> Self {
        let policy = ScalePolicy::default();
        Self {
            target_value: policy.target_value,
            total_value: policy.total_value,
            target_burst_capacity: policy.target_burst_capacity,
            max_scale_up_rate: policy.max_scale_up_rate,
            max_scale_down_rate: policy.max_scale_down_rate,
            panic_threshold: policy.panic_threshold,
            stable_window: policy.stable_window.as_secs_f64(),
            scale_down_delay: policy.scale_down_delay.as_secs_f64(),
            reachable: policy.reachable,
            activation_scale: policy.activation_scale,
        }
    }
}

impl Numbers {
    /// The policy, or which number makes no sense. The ranges of annotations do not hold here: a replay may try what is not
    /// on offer.
    fn resolve(self) -> Result<ScalePolicy, String> {
        for (name, value) in [
            ("targetValue", self.target_value),
            ("maxScaleUpRate", self.max_scale_up_rate),
            ("maxScaleDownRate", self.max_scale_down_rate),
        ] {
            if value <= 0.0 {
                return Err(format!("`policy.{name}` is {value}; it must be more than 0"));
            }
        }
        Ok(ScalePolicy {
            target_value: self.target_value,
            total_value: self.total_value,
            target_burst_capacity: self.target_burst_capacity,
            max_scale_up_rate: self.max_scale_up_rate,
            max_scale_down_rate: self.max_scale_down_rate,
            panic_threshold: self.panic_threshold,
            stable_window: seconds("policy.stableWindow", self.stable_window)?,
            scale_down_delay: seconds("policy.scaleDownDelay", self.scale_down_delay)?,
            reachable: self.reachable,
            activation_scale: self.activation_scale,
            ..ScalePolicy::default()
        })
    }
}

fn seconds(name: &str, value: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(value).map_err(|_| format!("`{name}` is {value}; it must be seconds, 0 or more"))
}

/// The lines of the input that are not blank.
struct Lines<R> {
    input: R,
    /// Of the line read last, counted from 1.
    number: usize,
    text: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// The next line as `T`; `None` at the end.
    fn next<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>, Error> {
        if self.advance()? { self.parse().map(Some) } else { Ok(None) }
    }

    /// Reads the next line; false at the end.
    fn advance(&mut self) -> Result<bool, Error> {
        loop {
            self.number += 1;
            let line = self.number;
            self.text.clear();
            let read = self.input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut self.text);
            read.map_err(|source| Error::Read { line, source })?;
            if self.text.is_empty() {
                return Ok(false);
            }
            if self.text.len() as u64 == LONGEST_LINE && !self.text.ends_with(b"\n") {
                return Err(Error::Replay { line, what: format!("longer than {LONGEST_LINE} bytes") });
            }
            if !self.text.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    /// The line as `T`.
    fn parse<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.text).map_err(|e| {
            // The parser sees one line only, so its own line number would mislead.
            let place = format!(" at line {} column {}", e.line(), e.column());
            let what = e.to_string();
            let what = what.strip_suffix(&place).unwrap_or(&what);
            Error::Replay { line: self.number, what: format!("{what} (column {})", e.column()) }
        })
    }
}
