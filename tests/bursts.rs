//! Many first calls at once: to one function that takes one call at a time, and to many functions. Everybody is answered, and soon.

use std::{sync::Barrier, thread, time::Duration};

use crate::platform::{Platform, now};

/// Deploys `cat` under a name and takes it to zero.
fn at_zero(platform: &Platform, name: &str, more: &[&str]) {
    platform.ok(&[&["deploy", "--name", name, "--command", "cat"], more].concat());
    to_zero(platform, name);
}

fn to_zero(platform: &Platform, name: &str) {
    platform.ok(&["scale", name, "0"]);
    platform.until("zero", || platform.instances(name) == 0);
}

/// One call; how long it took. It must bring its own body back.
fn call(platform: &Platform, name: &str, number: usize) -> Duration {
    let (begun, body) = (now(), format!("call {number}"));
    let answer = platform.call(name, body.as_bytes());
    assert_eq!((answer.status, answer.text()), (200, body), "{name}");
    begun.elapsed()
}

/// Calls these functions all at once; how long the last one waited.
fn at_once<'a>(platform: &Platform, names: impl IntoIterator<Item = &'a str>) -> Duration {
    let names: Vec<&str> = names.into_iter().collect();
    let start = Barrier::new(names.len());
    thread::scope(|scope| {
        let call = |(number, name)| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                call(platform, name, number)
            })
        };
        let callers: Vec<_> = names.into_iter().enumerate().map(call).collect();
        callers.into_iter().map(|caller| caller.join().expect("answered")).max().unwrap_or_default()
    })
}

/// The slowest of a few calls at zero, each alone.
fn alone(platform: &Platform, name: &str) -> Duration {
    let once = |number| {
        to_zero(platform, name);
        call(platform, name, number)
    };
    (0..3).map(once).max().unwrap_or_default()
}

#[test]
fn sixty_four_and_five_hundred_first_calls_to_one_function_are_answered() {
    let platform = Platform::start();
    at_zero(&platform, "one", &["--concurrency", "1", "--max", "64"]);
    let single = alone(&platform, "one");
    to_zero(&platform, "one");
    let last = at_once(&platform, ["one"; 64]);
    assert!(last < single * 40, "the last of 64 after {last:?}, one alone after {single:?}");
    to_zero(&platform, "one");
    let last = at_once(&platform, ["one"; 500]);
    assert!(last < single * 500, "the last of 500 after {last:?}, one alone after {single:?}");
    // The burst's instances leave as they came.
    to_zero(&platform, "one");
}

#[test]
fn two_hundred_functions_are_called_at_once_from_zero() {
    const FUNCTIONS: usize = 200;
    let platform = Platform::start();
    let names: Vec<String> = (0..FUNCTIONS).map(|n| format!("f{n}")).collect();
    thread::scope(|scope| {
        for share in names.chunks(FUNCTIONS / 8) {
            let platform = &platform;
            scope.spawn(move || share.iter().for_each(|name| at_zero(platform, name, &["--max", "1"])));
        }
    });
    let single = alone(&platform, "f0");
    to_zero(&platform, "f0");
    let last = at_once(&platform, names.iter().map(String::as_str));
    // Most sandboxes have to be made: what that takes is the kernel's, and grows with what else the machine does.
    let most = (single * FUNCTIONS as u32).max(Duration::from_secs(5));
    assert!(last < most, "the last after {last:?}, one alone after {single:?}");
    assert!(names.iter().step_by(20).all(|name| platform.instances(name) == 1), "each has the one that it may have");
}
