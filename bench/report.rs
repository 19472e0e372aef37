//! The table: rows of figures with what they are beside, and where it is written in the documentation.

use std::{fs, path::Path};

use crate::{error::Error, stats::Series};

/// Between this line and [`END`] the documentation's table stands.
pub(crate) const BEGIN: &str = "<!-- taper-bench writes from here … -->";
/// See [`BEGIN`].
pub(crate) const END: &str = "<!-- … to here -->";

/// What stands behind a promise that is not kept.
const MISSED: &str = "**missed**";

/// What a value is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Seconds, shown as µs, ms or s.
    Time,
    /// Things per second.
    Rate,
    /// Bytes, shown as KB or MB.
    Memory,
    /// Things.
    Count,
}

/// What was promised about a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Promise {
    /// Ours is at most so many times the other.
    AtMost(f64),
    /// Ours is at least so many times the other.
    AtLeast(f64),
    /// Ours is at most this value.
    Value(f64),
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    figure: String,
    unit: Unit,
    ours: Series,
    other: Option<(String, Series)>,
    promise: Option<Promise>,
}

/// The figures of one scenario.
#[derive(Debug)]
pub(crate) struct Report {
    scenario: &'static str,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    pub(crate) fn new(scenario: &'static str) -> Self {
        Self { scenario, rows: Vec::new(), notes: Vec::new() }
    }

    /// A figure beside its floor or peer. An empty series is something that could not be measured here.
    pub(crate) fn beside(
        &mut self,
        figure: impl Into<String>,
        unit: Unit,
        ours: &Series,
        name: &str,
        other: &Series,
        promise: Option<Promise>,
    ) {
        let other = (!other.is_empty()).then(|| (name.to_owned(), other.clone()));
        self.rows.push(Row { figure: figure.into(), unit, ours: ours.clone(), other, promise });
    }

    /// The same where the two were not measured in pairs: the medians are what is compared.
    pub(crate) fn pairless(
        &mut self,
        figure: impl Into<String>,
        unit: Unit,
        ours: &Series,
        name: &str,
        other: &Series,
        promise: Promise,
    ) {
        let median = |series: &Series| [series.median()].into_iter().collect();
        self.beside(figure, unit, &median(ours), name, &median(other), Some(promise));
    }

    /// The figures whose promise is not kept.
    pub(crate) fn missed(&self) -> Vec<&str> {
        self.rows.iter().filter(|row| row.cells()[4].ends_with(MISSED)).map(|row| row.figure.as_str()).collect()
    }

    /// A figure that stands alone.
    pub(crate) fn alone(&mut self, figure: impl Into<String>, unit: Unit, ours: &Series, promise: Option<Promise>) {
        self.beside(figure, unit, ours, "", &Series::default(), promise);
    }

    /// Something a reader of the table must know.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Records that something could not be measured, and gives nothing.
    pub(crate) fn skip<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.note(format!("not measured: {error}"))).ok()
    }

    /// The section of this scenario, in Markdown that is also readable as it is.
    pub(crate) fn render(&self, machine: &str, rounds: usize) -> String {
        let header = ["figure", "ours", "floor or peer", "ratio", "promise"].map(str::to_owned);
        let rows: Vec<[String; 5]> = std::iter::once(header).chain(self.rows.iter().map(Row::cells)).collect();
        let mut text = format!("### {}\n\n{machine}; medians of {rounds} rounds (lowest–highest).\n\n", self.scenario);
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 5] = std::array::from_fn(width);
        for (at, row) in rows.iter().enumerate() {
            let cell =
                |(text, width): (&String, usize)| format!(" {text}{} ", " ".repeat(width - text.chars().count()));
            let cells: Vec<String> = row.iter().zip(widths).map(cell).collect();
            text += &format!("|{}|\n", cells.join("|"));
            if at == 0 {
                text += &format!("|{}|\n", widths.map(|width| "-".repeat(width + 2)).join("|"));
            }
        }
        if !self.notes.is_empty() {
            text += "\n";
            self.notes.iter().for_each(|note| text += &format!("- {note}\n"));
        }
        text
    }
}

impl Row {
    fn cells(&self) -> [String; 5] {
        let ratio =
            self.other.as_ref().filter(|_| !self.ours.is_empty()).map(|(_, other)| self.ours.zip(other, fraction));
        let promise = match self.promise {
            None => "–".to_owned(),
            Some(promise) => promise.verdict(self.unit, &self.ours, ratio.as_ref()),
        };
        [
            self.figure.clone(),
            self.unit.show(&self.ours),
            self.other
                .as_ref()
                .map_or_else(|| "–".to_owned(), |(name, other)| format!("{name}: {}", self.unit.show(other))),
            ratio
                .map(|ratio| ratio.median())
                .filter(|ratio| ratio.is_finite())
                .map_or_else(|| "–".to_owned(), |ratio| format!("{} ×", digits(ratio))),
            promise,
        ]
    }
}

impl Promise {
    fn verdict(self, unit: Unit, ours: &Series, ratio: Option<&Series>) -> String {
        let (text, kept) = match self {
            Self::AtMost(most) => (format!("≤ {} ×", digits(most)), ratio.map(|r| r.median() <= most)),
            Self::AtLeast(least) => (format!("≥ {} ×", digits(least)), ratio.map(|r| r.median() >= least)),
            Self::Value(most) => (format!("≤ {}", unit.one(most)), (!ours.is_empty()).then(|| ours.median() <= most)),
        };
        match kept {
            Some(true) => format!("{text}: kept"),
            Some(false) => format!("{text}: {MISSED}"),
            None => format!("{text}: not measured"),
        }
    }
}

impl Unit {
    /// What a value is divided by, and the unit it is then in.
    fn scale(self, value: f64) -> (f64, &'static str) {
        match self {
            Self::Time if value < 1e-3 => (1e-6, " µs"),
            Self::Time if value < 1.0 => (1e-3, " ms"),
            Self::Time => (1.0, " s"),
            Self::Rate => (1.0, "/s"),
            Self::Memory if value < 1e6 => (1e3, " KB"),
            Self::Memory => (1e6, " MB"),
            Self::Count => (1.0, ""),
        }
    }

    fn one(self, value: f64) -> String {
        let (scale, name) = self.scale(value);
        format!("{}{name}", digits(value / scale))
    }

    fn show(self, series: &Series) -> String {
        if series.is_empty() {
            return "–".to_owned();
        }
        let (scale, name) = self.scale(series.median());
        format!(
            "{}{name} ({}–{})",
            digits(series.median() / scale),
            digits(series.min() / scale),
            digits(series.max() / scale)
        )
    }
}

/// How many times the second the first is. Of what is as large, be it nothing, once.
fn fraction(a: f64, b: f64) -> f64 {
    if a == b { 1.0 } else { a / b }
}

/// Three significant digits, thousands apart.
fn digits(value: f64) -> String {
    let size = value.abs();
    if size >= 1000.0 {
        let rounded = format!("{value:.0}");
        let (sign, number) = rounded.strip_prefix('-').map_or(("", rounded.as_str()), |number| ("-", number));
        let groups: Vec<&str> =
            number.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or("")).collect();
        return format!("{sign}{}", groups.join(","));
    }
    let after = if size >= 100.0 {
        0
    } else if size >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.after$}");
    if after > 0 { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Puts sections into the documentation. Those that were not measured now stay as they are; `order` is that of all.
pub(crate) fn write(path: &Path, order: &[&str], sections: &[(&str, String)]) -> Result<(), Error> {
    let text = fs::read_to_string(path).map_err(Error::io(format!("reading {}", path.display())))?;
    let merged = merge(&text, order, sections).ok_or_else(|| Error::NoMarkers { path: path.to_owned() })?;
    fs::write(path, merged).map_err(Error::io(format!("writing {}", path.display())))
}

fn merge(text: &str, order: &[&str], sections: &[(&str, String)]) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (old, after) = rest.split_once(END)?;
    let old: Vec<(&str, &str)> = old.split("\n### ").skip(1).filter_map(|section| section.split_once('\n')).collect();
    let mut merged = format!("{before}{BEGIN}\n");
    for name in order {
        let new = sections.iter().find(|(of, _)| of == name).map(|(_, section)| section.trim_end().to_owned());
        let kept = || old.iter().find(|(of, _)| of == name).map(|(of, body)| format!("### {of}\n{}", body.trim_end()));
        merged.extend(new.or_else(kept).map(|section| format!("\n{section}\n")));
    }
    Some(format!("{merged}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        values.iter().copied().collect()
    }

    #[test]
    fn numbers_are_shown_in_three_digits() {
        for (value, shown) in [
            (0.0, "0"),
            (0.127, "0.13"),
            (1.3, "1.3"),
            (12.34, "12.3"),
            (123.4, "123"),
            (12345.6, "12,346"),
            (-1234.0, "-1,234"),
        ] {
            assert_eq!(digits(value), shown);
        }
        assert_eq!(Unit::Time.show(&series(&[0.000_011_6])), "11.6 µs (11.6–11.6)");
        assert_eq!(Unit::Memory.one(8_000.0), "8 KB");
    }

    #[test]
    fn a_promise_is_judged_by_what_was_measured() {
        let (ours, other) = (series(&[2.0, 4.0]), series(&[1.0, 4.0]));
        let mut report = Report::new("x");
        report.beside("a", Unit::Rate, &ours, "peer", &other, Some(Promise::AtMost(1.5)));
        report.beside("b", Unit::Rate, &ours, "peer", &other, Some(Promise::AtLeast(6.0)));
        report.beside("c", Unit::Rate, &Series::default(), "peer", &other, Some(Promise::AtMost(1.0)));
        report.alone("d", Unit::Rate, &ours, Some(Promise::Value(3.0)));
        let cells: Vec<String> = report.rows.iter().map(|row| row.cells()[4].clone()).collect();
        assert_eq!(cells, ["≤ 1.5 ×: kept", "≥ 6 ×: **missed**", "≤ 1 ×: not measured", "≤ 3/s: kept"]);
    }

    #[test]
    fn what_was_not_measured_again_stays() {
        let text = format!("before\n{BEGIN}\n\n### b\n\nold b\n\n### c\n\nold c\n\n{END}\nafter\n");
        let merged =
            merge(&text, &["a", "b", "c"], &[("a", "### a\n\nnew a\n".into()), ("c", "### c\n\nnew c\n".into())])
                .unwrap();
        assert_eq!(
            merged,
            format!("before\n{BEGIN}\n\n### a\n\nnew a\n\n### b\n\nold b\n\n### c\n\nnew c\n\n{END}\nafter\n")
        );
        assert!(merge("no markers", &["a"], &[]).is_none());
    }
}
