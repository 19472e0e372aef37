//! From zero, with load, and back to zero.

use std::{collections::BTreeSet, time::Duration};

use crate::platform::{Platform, now};

#[test]
fn a_call_at_zero_is_held_not_refused() {
    let platform = Platform::start();
    let file = platform.file("lazy.py", "def handle(req):\n    return 'up'\n");
    platform.ok(&["deploy", &file]);
    platform.ok(&["scale", "lazy", "0"]);
    platform.until("zero", || platform.instances("lazy") == 0);
    let answer = platform.call("lazy", b"");
    assert_eq!((answer.status, answer.text().as_str()), (200, "up"));
    assert_ne!(answer.header("x-taper-start"), "warm");
    assert_eq!(platform.call("lazy", b"").header("x-taper-start"), "warm");
}

#[test]
fn a_burst_of_64_at_zero_with_one_slot_each() {
    let platform = Platform::start();
    let file = platform.file("one.py", "def handle(req):\n    return req\n");
    platform.ok(&["deploy", &file, "--concurrency", "1", "--max", "64"]);
    platform.ok(&["scale", "one", "0"]);
    platform.until("zero", || platform.instances("one") == 0);
    std::thread::scope(|scope| {
        for n in 0..64 {
            let platform = &platform;
            scope.spawn(move || {
                let answer = platform.call("one", n.to_string().as_bytes());
                assert_eq!((answer.status, answer.text()), (200, n.to_string()));
            });
        }
    });
}

#[test]
fn load_brings_instances_and_idleness_takes_them_away() {
    let platform = Platform::start();
    let file = platform.file("busy.py", "import os, time\ndef handle(req):\n    time.sleep(0.1)\n    return open('/etc/hostname').read() + str(os.getpid())\n");
    platform.ok(&["deploy", &file, "--max", "4", "--annotation", "autoscaling.knative.dev/window=6s"]);
    let begun = now();
    let most = std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while begun.elapsed() < Duration::from_secs(6) {
                    assert_eq!(platform.call("busy", b"").status, 200);
                }
            });
        }
        let mut seen = BTreeSet::new();
        while begun.elapsed() < Duration::from_secs(6) {
            seen.insert(platform.instances("busy"));
        }
        *seen.last().unwrap()
    });
    assert_eq!(most, 4, "eight callers want more than one instance, and max is 4");
    platform.until("zero again", || platform.instances("busy") == 0);
}

#[test]
fn min_is_kept_and_comes_back_after_a_restart() {
    let mut platform = Platform::start();
    let file = platform.file("kept.py", "def handle(req):\n    return 'k'\n");
    platform.ok(&["deploy", &file, "--min", "2"]);
    platform.until("two", || platform.instances("kept") == 2);
    platform.stop();
    platform.up();
    platform.until("two again", || platform.instances("kept") == 2);
}

#[test]
fn an_update_loses_no_call() {
    let platform = Platform::start();
    let file = platform.file("v.py", "def handle(req):\n    return '0'\n");
    platform.ok(&["deploy", &file, "--concurrency", "4"]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let answer = platform.call("v", b"");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                }
            });
        }
        for version in 1..=5 {
            platform.file("v.py", &format!("def handle(req):\n    return '{version}'\n"));
            platform.ok(&["deploy", &file, "--concurrency", "4"]);
            assert_eq!(platform.call("v", b"").text(), version.to_string());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_dead_instance_is_replaced() {
    let platform = Platform::start();
    let file = platform.file(
        "mortal.py",
        "import os\ndef handle(req):\n    if req == 'die': os.kill(os.getppid(), 9); os._exit(1)\n    return 'alive'\n",
    );
    platform.ok(&["deploy", &file]);
    for _ in 0..3 {
        platform.call("mortal", b"die");
        platform.until("it answers again", || platform.call("mortal", b"").text() == "alive");
    }
}
