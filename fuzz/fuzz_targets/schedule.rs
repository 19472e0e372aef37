//! Schedules and time zones: any text is one or is refused; what is one comes, later and later, and takes no time to say when.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taper_model::trigger::schedule::Schedule;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (text, zone) = text.split_once('\n').unwrap_or((text, "Europe/Vienna"));
    let zone = Some(zone).filter(|zone| !zone.is_empty());
    let Ok(schedule) = Schedule::parse(text, zone) else { return };
    let schedule = schedule.anchored(1_700_000_000_123);
    // The night in which Vienna's clocks go back.
    let begin = 1_792_879_200_000;
    let first = schedule.after(begin).expect("what was taken comes");
    let second = schedule.after(first).expect("and comes again");
    assert!(begin < first && first < second, "{begin} {first} {second}");
    let ticks = schedule.ticks(begin, second, 2);
    assert_eq!(ticks, [first, second]);
});
