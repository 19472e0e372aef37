//! When a trigger's ticks are: five or six fields as cron has them, names for the usual ones, and `@every`. It owns what may be written and
//! when that is; it reads no clock and never waits.
//!
//! *Time zones* are those of the host's database, or of a copy in this program where the host has none.
//!
//! *Where the clocks change.* A schedule with one time of day (`30 2 * * *`) comes once every day: where the clocks skip that time, at the
//! first moment after the gap, and where it is there twice, at the first of the two. Every other schedule (`*/10 * * * *`, `30 1,2 * * *`)
//! follows the clock on the wall: it has no tick at a time that is skipped, and two at one that is there twice.
//!
//! *Days.* Where both the day of the month and the day of the week are said, a day that is either will do. Only a bare `*` says nothing.

use std::{fmt, str::FromStr, time::Duration};

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, Zoned, tz::TimeZone};

use crate::{Invalid, quantity::Span};

/// Longest text of a schedule, in bytes.
const MAX_TEXT: usize = 1024;
/// Most schedules in a list.
const MAX_PARTS: usize = 16;
/// Longest name of a time zone, in bytes.
const MAX_ZONE: usize = 64;
/// The shortest and the longest time of `@every`.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(366 * 24 * 3600));
/// Where the search for a first tick begins, 2000-01-01: what has none in the 400 years that the calendar repeats in has none at all.
const BEGIN_MS: u64 = 946_684_800_000;

/// What a field is called, and what may stand in it.
struct Field {
    name: &'static str,
    allowed: &'static str,
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const DAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
const FIELDS: [Field; 6] = [
    Field { name: "second", allowed: "0-59", names: &[] },
    Field { name: "minute", allowed: "0-59", names: &[] },
    Field { name: "hour", allowed: "0-23", names: &[] },
    Field {
        name: "day of month",
        allowed: "1-31, L (the last one), LW (the last working day) and 15W (the working day nearest to the 15th)",
        names: &[],
    },
    Field { name: "month", allowed: "1-12 and JAN-DEC", names: &MONTHS },
    Field {
        name: "day of week",
        allowed: "0-7 (0 and 7 are Sunday), SUN-SAT, FRI#2 (the second Friday) and FRI#L (the last one)",
        names: &DAYS,
    },
];

/// The names for the usual schedules.
const NAMED: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// When a trigger's ticks are. All times are milliseconds since the Unix epoch.
#[derive(Debug, Clone)]
pub struct Schedule {
    parts: Vec<Part>,
    zone: TimeZone,
    anchor_ms: u64,
}

#[derive(Debug, Clone)]
enum Part {
    Cron(Box<Cron>),
    /// Milliseconds.
    Every(u64),
}

impl Schedule {
    /// Reads a schedule: five fields (minute, hour, day of month, month, day of week), or six with the second before them; `@hourly` and its
    /// like; `@every 90s`; or several of these with `;` between them. The time zone is one of the IANA database; UTC when none is said.
    ///
    /// # Errors
    /// Names the field, what stands there and what is allowed. A schedule that never comes is refused, and so is a time zone that does not
    /// exist, with those that are called alike.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, Invalid> {
        let zone = self::zone(zone)?;
        if text.len() > MAX_TEXT {
            return Err(Invalid(format!("schedule: it has {} bytes; at most {MAX_TEXT} are allowed", text.len())));
        }
        let parts: Vec<&str> = text.split(';').map(str::trim).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Err(Invalid::new(
                "schedule: it is empty; write five fields such as `*/10 * * * *`, `@hourly` or `@every 90s`",
            ));
        }
        if parts.len() > MAX_PARTS {
            return Err(Invalid(format!("schedule: it lists {}; at most {MAX_PARTS} are allowed", parts.len())));
        }
        let read = |part: &&str| part.parse().map_err(|Invalid(why)| Invalid(format!("schedule: {why}")));
        let schedule = Self { parts: parts.iter().map(read).collect::<Result<_, _>>()?, zone, anchor_ms: 0 };
        match schedule.parts.iter().position(|part| schedule.next(part, BEGIN_MS).is_none()) {
            Some(n) => Err(Invalid(format!(
                "schedule: `{}` never comes: no month that it names has such a day",
                parts[n].escape_debug()
            ))),
            None => Ok(schedule),
        }
    }

    /// The same, with the times of `@every` counted from then, so that they stay when whoever counts begins anew.
    #[must_use]
    pub fn anchored(self, at_ms: u64) -> Self {
        Self { anchor_ms: at_ms, ..self }
    }

    /// The first tick after this moment.
    pub fn after(&self, ms: u64) -> Option<u64> {
        self.parts.iter().filter_map(|part| self.next(part, ms)).min()
    }

    /// The ticks after one moment, up to another and with it: the latest `most` of them, the oldest of these first. What it costs grows with `most`, not with
    /// how far the two are apart.
    pub fn ticks(&self, after: u64, until: u64, most: usize) -> Vec<u64> {
        let from = |ms: u64| {
            let next = std::iter::successors(self.after(ms), |ms| self.after(*ms));
            next.take_while(|ms| *ms <= until).take(most + 1).collect::<Vec<_>>()
        };
        let mut at = from(after);
        let more = at.len() > most;
        // The latest moment from which on there are too many: a second after it there is exactly what is wanted, but for what lists of
        // `@every` have within one second.
        let (mut low, mut high) = (after / 1000, until / 1000 + 1);
        while more && high - low > 1 {
            let middle = low + (high - low) / 2;
            let found = from(middle * 1000);
            if found.len() > most {
                low = middle;
            } else {
                (high, at) = (middle, found);
            }
        }
        if more && high * 1000 > until {
            at = from(low * 1000);
        }
        let many = at.len().saturating_sub(most);
        at.split_off(many)
    }

    fn next(&self, part: &Part, ms: u64) -> Option<u64> {
        match part {
            Part::Every(period) => {
                let passed = ms.saturating_sub(self.anchor_ms) / period;
                self.anchor_ms.checked_add(passed.checked_add(1)?.checked_mul(*period)?)
            }
            Part::Cron(cron) => {
                let from: Zoned =
                    Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()?.to_zoned(self.zone.clone());
                let next = cron.find_next_occurrence(&from, false).ok()?;
                u64::try_from(next.timestamp().as_millisecond()).ok().filter(|next| *next > ms)
            }
        }
    }
}

impl FromStr for Part {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic() && *c != ' ' && *c != '\t') {
            return Err(Invalid(format!("it contains {bad:?}; write it with ASCII characters")));
        }
        if !text.starts_with('@') {
            return fields(text);
        }
        let (word, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
        let word = word.to_ascii_lowercase();
        if word == "@every" {
            return every(rest.trim());
        }
        match NAMED.iter().find(|(name, _)| *name == word && rest.is_empty()) {
            Some((_, fields)) => self::fields(fields),
            None => {
                let names = NAMED.map(|(name, _)| name).join(", ");
                Err(Invalid(format!("`{text}` is none of {names} and `@every 90s`")))
            }
        }
    }
}

fn every(text: &str) -> Result<Part, Invalid> {
    let wrong = |why: &dyn fmt::Display| Invalid(format!("`@every {text}`: {why}"));
    let span: Span = text.parse().map_err(|why| wrong(&why))?;
    let (shortest, longest) = EVERY;
    if !(shortest..=longest).contains(&span.0) {
        return Err(wrong(&format!("allowed is {} to {}", Span(shortest), Span(longest))));
    }
    let ms = u64::try_from(span.0.as_millis()).map_err(|why| wrong(&why))?;
    Ok(Part::Every(ms))
}

fn fields(text: &str) -> Result<Part, Invalid> {
    let given: Vec<&str> = text.split_ascii_whitespace().collect();
    let fields = match given.len() {
        5 => &FIELDS[1..],
        6 => &FIELDS[..],
        n => {
            let names = FIELDS[1..].iter().map(|field| field.name).collect::<Vec<_>>().join(", ");
            return Err(Invalid(format!(
                "`{text}` has {n} fields; it has five ({names}), or six with the second before them"
            )));
        }
    };
    let wrong = |field: &Field, part: &str| {
        let Field { name, allowed, .. } = field;
        let forms = "each alone, as a list (1,15), a range (1-5) or a range with a step (*/10, 8-18/2)";
        Invalid(format!("`{text}`: the {name} is `{part}`; allowed are *, {allowed}, {forms}"))
    };
    for (field, part) in fields.iter().zip(&given) {
        if !part.split(',').all(|item| is_item(item, field)) {
            return Err(wrong(field, part));
        }
    }
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
    let cron = parser.parse(text).map_err(|error| {
        // The parser does not say where: whichever field it refuses among others that say nothing.
        let alone = |at: usize| {
            let only: Vec<&str> = (0..given.len()).map(|n| if n == at { given[n] } else { "*" }).collect();
            parser.parse(&only.join(" ")).is_err()
        };
        let found = fields.iter().zip(&given).enumerate().find(|(at, _)| alone(*at));
        found.map_or_else(|| Invalid(format!("`{text}`: {error}")), |(_, (field, part))| wrong(field, part))
    })?;
    // From behind: the second may be left out.
    let (week, days) = (given[given.len() - 1], given[given.len() - 3]);
    match matches!(week, "*" | "?") && no_such_day(&cron, days) {
        true => Err(Invalid(format!("`{text}` never comes: no month that it names has such a day"))),
        false => Ok(Part::Cron(Box::new(cron))),
    }
}

/// Whether an item of a field's list is made of what belongs there; whether it makes sense is for the parser to say.
fn is_item(item: &str, field: &Field) -> bool {
    let upper = item.to_ascii_uppercase();
    let atom = |atom: &str| {
        let day = |text: &str| !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
        let (of_month, of_week) = (field.name == "day of month", field.name == "day of week");
        let named = |text: &str| day(text) || field.names.contains(&text);
        match atom {
            "*" => true,
            "?" => of_month || of_week,
            "L" | "LW" => of_month,
            atom if of_month && atom.ends_with('W') => day(&atom[..atom.len() - 1]),
            atom if of_week && atom.contains('#') => {
                atom.split_once('#').is_some_and(|(weekday, nth)| named(weekday) && (day(nth) || nth == "L"))
            }
            atom if of_week && atom.len() > 1 && atom.ends_with('L') => named(&atom[..atom.len() - 1]),
            atom => named(atom),
        }
    };
    upper.split(['-', '/']).all(atom)
}

/// Whether no month that it names has one of the days of months in this field.
fn no_such_day(cron: &Cron, days: &str) -> bool {
    const LONGEST: [u16; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let first = |item: &str| {
        let day = item.split(['-', '/']).next().unwrap_or_default().trim_end_matches(['W', 'w']);
        // `*` and `L` are in every month.
        day.parse().unwrap_or(1_u16)
    };
    let first = days.split(',').map(first).min().unwrap_or(1);
    cron.pattern.months.values().iter().all(|month| LONGEST[usize::from(*month) - 1] < first)
}

fn zone(name: Option<&str>) -> Result<TimeZone, Invalid> {
    let Some(name) = name.map(str::trim).filter(|name| !name.is_empty()) else { return Ok(TimeZone::UTC) };
    let shown: String = name.chars().take(MAX_ZONE).collect();
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"/_+-".contains(&c);
    if name.len() > MAX_ZONE || !name.bytes().all(plain) {
        let why = "names of time zones are such as `Europe/Vienna`, `America/New_York` and `UTC`";
        return Err(Invalid(format!("timeZone: `{}` is none; {why}", shown.escape_debug())));
    }
    TimeZone::get(name).map_err(|_| {
        let near = near(name);
        let mend = match near.is_empty() {
            true => "names are such as `Europe/Vienna`, `America/New_York` and `UTC`".to_owned(),
            false => format!("did you mean {}?", near.join(" or ")),
        };
        Invalid(format!("timeZone: there is no `{shown}`; {mend}"))
    })
}

/// Up to three time zones that are called nearly so.
fn near(name: &str) -> Vec<String> {
    let name = name.to_ascii_lowercase();
    let city = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    let far = |known: &str| {
        let known = known.to_ascii_lowercase();
        // Whoever writes the city alone, or puts it into another part of the world, means the city.
        let by_city = edits(&city(&name), &city(&known)) * 2 + usize::from(!name.contains('/'));
        edits(&name, &known).min(by_city)
    };
    let known = jiff::tz::db().available().map(|known| known.as_str().to_owned());
    // Beside those of the parts of the world there are copies for those who count leap seconds.
    let mut all: Vec<(usize, String)> = known
        .filter(|known| !known.starts_with("right/") && !known.starts_with("posix/"))
        .map(|known| (far(&known), known))
        .collect();
    all.sort();
    all.dedup();
    let bound = (name.len() / 3).clamp(1, 4);
    all.into_iter().take(3).filter(|(far, _)| *far <= bound).map(|(_, known)| format!("`{known}`")).collect()
}

/// How many letters have to be put in, taken out or changed to make one of the other (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let change = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = change.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
