//! Schedules against tables: what they say, where clocks change, what is refused.

use jiff::{Timestamp, tz::TimeZone};
use proptest::prelude::*;

use super::*;

fn ms(text: &str) -> u64 {
    let at: Timestamp = text.parse().unwrap();
    at.as_millisecond().try_into().unwrap()
}

fn shown(ms: u64, zone: &str) -> String {
    let zone = TimeZone::get(zone).unwrap();
    Timestamp::from_millisecond(ms.try_into().unwrap())
        .unwrap()
        .to_zoned(zone)
        .strftime("%m-%dT%H:%M:%S%:z")
        .to_string()
}

/// The first ticks after a moment.
fn ticks(text: &str, zone: &str, after: &str, many: usize) -> Vec<String> {
    let schedule = Schedule::parse(text, Some(zone)).unwrap();
    let first = schedule.after(ms(after));
    std::iter::successors(first, |at| schedule.after(*at)).take(many).map(|at| shown(at, zone)).collect()
}

#[test]
fn what_may_be_written() {
    // Thursday.
    let after = "2026-01-01T10:20:30Z";
    for (text, expect) in [
        ("*/10 * * * *", ["01-01T10:30:00", "01-01T10:40:00"]),
        ("30 * * * * *", ["01-01T10:21:30", "01-01T10:22:30"]),
        ("*/20 * * * * *", ["01-01T10:20:40", "01-01T10:21:00"]),
        ("0 9-17/4 * * *", ["01-01T13:00:00", "01-01T17:00:00"]),
        ("5,15 10 * * mon-WED", ["01-05T10:05:00", "01-05T10:15:00"]),
        ("0 0 1 jan,JUL *", ["07-01T00:00:00", "01-01T00:00:00"]),
        ("0 12 * * 7", ["01-04T12:00:00", "01-11T12:00:00"]),
        ("0 12 * * FRI-SUN", ["01-02T12:00:00", "01-03T12:00:00"]),
        ("0 0 L * *", ["01-31T00:00:00", "02-28T00:00:00"]),
        ("0 0 LW * ?", ["01-30T00:00:00", "02-27T00:00:00"]),
        ("0 0 17W * *", ["01-16T00:00:00", "02-17T00:00:00"]),
        ("0 0 * * FRI#2", ["01-09T00:00:00", "02-13T00:00:00"]),
        ("0 0 * * 5L", ["01-30T00:00:00", "02-27T00:00:00"]),
        ("0 0 * * FRI#L", ["01-30T00:00:00", "02-27T00:00:00"]),
        // Either day will do.
        ("0 0 13 * FRI", ["01-02T00:00:00", "01-09T00:00:00"]),
        ("@hourly", ["01-01T11:00:00", "01-01T12:00:00"]),
        (" @Daily ", ["01-02T00:00:00", "01-03T00:00:00"]),
        ("@midnight", ["01-02T00:00:00", "01-03T00:00:00"]),
        ("@weekly", ["01-04T00:00:00", "01-11T00:00:00"]),
        ("@monthly", ["02-01T00:00:00", "03-01T00:00:00"]),
        ("@yearly", ["01-01T00:00:00", "01-01T00:00:00"]),
        ("@every 90s", ["01-01T10:21:00", "01-01T10:22:30"]),
        ("@every 1h30m", ["01-01T10:30:00", "01-01T12:00:00"]),
        ("0 11 * * *; 30 10 * * *;", ["01-01T10:30:00", "01-01T11:00:00"]),
        ("0 11 * * *;@every 40m", ["01-01T10:40:00", "01-01T11:00:00"]),
    ] {
        let expect = expect.map(|at| format!("{at}+00:00"));
        assert_eq!(ticks(text, "UTC", after, 2), expect, "{text}");
    }
    assert_eq!(ticks("0 0 29 2 *", "UTC", "2096-03-01T00:00:00Z", 1), ["02-29T00:00:00+00:00"], "2100 has none");
}

#[test]
fn every_counts_from_its_anchor() {
    let schedule = Schedule::parse("@every 90s", None).unwrap().anchored(1_000_007);
    assert_eq!(schedule.after(0), Some(1_090_007), "its first tick is one time after it was made");
    assert_eq!(schedule.after(1_000_007), Some(1_090_007));
    assert_eq!(schedule.after(1_090_006), Some(1_090_007));
    assert_eq!(schedule.after(1_090_007), Some(1_180_007));
    assert_eq!(schedule.after(u64::MAX), None);
    assert_eq!(Schedule::parse("* * * * *", None).unwrap().after(u64::MAX), None);
    assert_eq!(Schedule::parse("* * * * *", None).unwrap().after(i64::MAX as u64), None);
}

#[test]
fn where_clocks_change() {
    // Vienna: 2026-03-29 02:00 becomes 03:00; 2026-10-25 03:00 becomes 02:00.
    for (text, after, expect) in [
        // One time of day: every day once.
        (
            "30 2 * * *",
            "2026-03-28T00:00:00Z",
            vec!["03-28T02:30:00+01:00", "03-29T03:00:00+02:00", "03-30T02:30:00+02:00"],
        ),
        ("0 2 * * *", "2026-03-28T12:00:00Z", vec!["03-29T03:00:00+02:00", "03-30T02:00:00+02:00"]),
        ("30 2 * * *", "2026-10-24T12:00:00Z", vec!["10-25T02:30:00+02:00", "10-26T02:30:00+01:00"]),
        ("0 3 * * *", "2026-10-24T12:00:00Z", vec!["10-25T03:00:00+01:00", "10-26T03:00:00+01:00"]),
        ("@daily", "2026-03-28T12:00:00Z", vec!["03-29T00:00:00+01:00", "03-30T00:00:00+02:00"]),
        // Everything else goes by the clock on the wall.
        (
            "*/30 * * * *",
            "2026-03-29T00:00:00Z",
            vec!["03-29T01:30:00+01:00", "03-29T03:00:00+02:00", "03-29T03:30:00+02:00"],
        ),
        ("30 1,2 * * *", "2026-03-28T12:00:00Z", vec!["03-29T01:30:00+01:00", "03-30T01:30:00+02:00"]),
        (
            "@hourly",
            "2026-10-24T23:30:00Z",
            vec!["10-25T02:00:00+02:00", "10-25T02:00:00+01:00", "10-25T03:00:00+01:00"],
        ),
        (
            "30 1,2 * * *",
            "2026-10-24T12:00:00Z",
            vec!["10-25T01:30:00+02:00", "10-25T02:30:00+02:00", "10-25T02:30:00+01:00", "10-26T01:30:00+01:00"],
        ),
        // Begun in the second of the two hours.
        ("*/20 * * * *", "2026-10-25T01:25:00Z", vec!["10-25T02:40:00+01:00", "10-25T03:00:00+01:00"]),
        ("30 2 * * *", "2026-10-25T01:10:00Z", vec!["10-26T02:30:00+01:00"]),
        ("@every 1h", "2026-03-29T00:10:00Z", vec!["03-29T03:00:00+02:00", "03-29T04:00:00+02:00"]),
    ] {
        assert_eq!(ticks(text, "Europe/Vienna", after, expect.len()), expect, "{text} after {after}");
    }
    // A midnight that is skipped, and a change of half an hour.
    let cairo = ticks("@daily", "Africa/Cairo", "2026-04-23T12:00:00Z", 2);
    assert_eq!(cairo, ["04-24T01:00:00+03:00", "04-25T00:00:00+03:00"]);
    let lord_howe = ticks("*/30 * * * *", "Australia/Lord_Howe", "2026-10-03T15:00:00Z", 2);
    assert_eq!(lord_howe, ["10-04T02:30:00+11:00", "10-04T03:00:00+11:00"]);
}

#[test]
fn ticks_between_two_moments() {
    let from = ms("2026-01-01T00:00:00Z");
    let second = Schedule::parse("* * * * * *", None).unwrap();
    let year = from + 365 * 86_400_000;
    let all = second.ticks(from, year, 1000);
    assert_eq!((all.len(), all[0], all[999]), (1000, year - 999_000, year));
    let few = second.ticks(from, from + 3500, 1000);
    assert_eq!(few, [from + 1000, from + 2000, from + 3000]);
    assert!(second.ticks(from, from, 10).is_empty() && second.ticks(from, from - 5, 10).is_empty());
    assert_eq!(second.ticks(from, year, 1), [year]);
    let january = Schedule::parse("* * * * 1 *", None).unwrap();
    let late = january.ticks(from, ms("2026-12-24T00:00:00Z"), 3);
    assert_eq!(late, [57, 58, 59].map(|s| ms("2026-01-31T23:59:00Z") + s * 1000));
    let odd = Schedule::parse("@every 1s;@every 1001ms", None).unwrap().anchored(from + 13);
    let late = odd.ticks(from, from + 100_000, 4);
    assert!(late.len() == 4 && late.iter().all(|at| *at > from + 97_000), "{late:?}");
}

#[test]
fn what_is_refused_is_named() {
    for (text, expect) in [
        ("", "empty"),
        (" ; ;", "empty"),
        (
            "* * * *",
            "has 4 fields; it has five (minute, hour, day of month, month, day of week), or six with the second before them",
        ),
        ("* * * * * * *", "has 7 fields"),
        ("60 * * * *", "the minute is `60`; allowed are *, 0-59"),
        ("61 * * * * *", "the second is `61`"),
        ("* 24 * * *", "the hour is `24`; allowed are *, 0-23"),
        ("* * 32 * *", "the day of month is `32`; allowed are *, 1-31"),
        ("* * 0 * *", "the day of month is `0`"),
        ("* * * 13 *", "the month is `13`; allowed are *, 1-12 and JAN-DEC"),
        ("* * * * 8", "the day of week is `8`; allowed are *, 0-7"),
        ("* * * * MONDAY", "the day of week is `MONDAY`"),
        ("MON * * * *", "the minute is `MON`"),
        ("* * * JANFEB *", "the month is `JANFEB`"),
        ("* * JAN * *", "the day of month is `JAN`"),
        ("*/0 * * * *", "the minute is `*/0`"),
        ("5-1 * * * *", "the minute is `5-1`"),
        ("1,,2 * * * *", "the minute is `1,,2`"),
        ("-1 * * * *", "the minute is `-1`"),
        ("1- * * * *", "the minute is `1-`"),
        ("*/5/5 * * * *", "the minute is `*/5/5`"),
        ("* * * * FRI#6", "the day of week is `FRI#6`"),
        ("* * * * FRI#0", "the day of week is `FRI#0`"),
        ("* * 32W * *", "the day of month is `32W`"),
        ("* * * * ?-?", "the day of week is `?-?`"),
        ("99999999999999 * * * *", "the minute is"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        ("0 0 31W 2 *", "never comes"),
        ("* * * 31w,30-31/5 feb ?", "never comes"),
        ("0 * * * *; 0 0 31 2 *", "`0 0 31 2 *` never comes"),
        ("@reboot", "`@reboot` is none of @yearly"),
        ("@hourly 5", "`@hourly 5` is none of"),
        ("@every", "`@every `"),
        ("@every 0s", "allowed is 1s to 8784h"),
        ("@every 10ms", "allowed is 1s"),
        ("@every 9000h", "allowed is 1s"),
        ("@every soon", "not a duration"),
        ("* * * * \u{661}", "contains '\u{661}'; write it with ASCII"),
        ("* * * *\n*", "contains '\\n'"),
    ] {
        let said = Schedule::parse(text, None).map(|_| ()).expect_err(text).to_string();
        assert!(said.starts_with("schedule: ") && said.contains(expect), "{text}: {said}");
    }
    let list = "* * * * *;".repeat(17);
    assert!(Schedule::parse(&list, None).unwrap_err().to_string().contains("lists 17; at most 16"));
    assert!(Schedule::parse(&" ".repeat(2000), None).unwrap_err().to_string().contains("at most 1024"));
}

#[test]
fn time_zones() {
    for zone in [None, Some(""), Some("UTC"), Some("Europe/Vienna"), Some("europe/vienna"), Some("Etc/GMT+5")] {
        assert!(Schedule::parse("@daily", zone).is_ok(), "{zone:?}");
    }
    for (zone, expect) in [
        ("Europe/Wien", "did you mean `Europe/"),
        ("Europe/Viena", "did you mean `Europe/Vienna`"),
        ("Vienna", "did you mean `Europe/Vienna`"),
        ("America/Vienna", "`Europe/Vienna`"),
        ("New_York", "did you mean `America/New_York`"),
        ("xyzzyxyzzyxyzzy", "names are such as"),
        ("../../etc/passwd", "`../../etc/passwd` is none"),
        ("Europe/Vienna; drop", "is none; names of time zones are such as"),
        ("local time", "is none"),
    ] {
        let said = Schedule::parse("@daily", Some(zone)).unwrap_err().to_string();
        assert!(said.starts_with("timeZone: ") && said.contains(expect), "{zone}: {said}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[-*/,;@?#LW0-9A-Z ]{0,40}", zone in "[A-Za-z/_]{0,12}") {
        if let Ok(schedule) = Schedule::parse(&text, None) {
            let first = schedule.after(1_800_000_000_000).expect("what was taken comes");
            prop_assert!(first > 1_800_000_000_000);
            prop_assert!(schedule.after(first).is_some_and(|second| second > first));
        }
        let _ = Schedule::parse("@daily", Some(&zone));
    }

    #[test]
    fn the_latest_ticks_are_those_that_are_there(
        minute in 0..60u8, step in 1..30u8, hours in 0..6000u64, from in 0..10_000_000u64, most in 1..50usize,
    ) {
        let schedule = Schedule::parse(&format!("{minute}/{step} * * * *; */{step} 3 * * *").replace(&format!("{minute}/"), &format!("{minute}-59/")), Some("Europe/Vienna")).unwrap();
        let after = 1_790_000_000_000 + from * 777;
        let until = after + hours * 600_000;
        let all: Vec<u64> = std::iter::successors(schedule.after(after), |at| schedule.after(*at)).take_while(|at| *at <= until).collect();
        let found = schedule.ticks(after, until, most);
        prop_assert_eq!(&found[..], &all[all.len().saturating_sub(most)..]);
    }
}
