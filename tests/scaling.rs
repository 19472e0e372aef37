//! From zero, with load, and back to zero.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::platform::{Platform, now};

/// Ends the load when the test has seen enough, and when it fails: threads that call for ever would hang it.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls a function from so many threads, one call after another each, for as long as `what` takes. Every answer must be a 200; `heard`
/// is given its body.
fn under_load(
    platform: &Platform,
    callers: usize,
    (name, body): (&str, &[u8]),
    heard: impl Fn(String) + Sync,
    what: impl FnOnce(),
) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = End(&stop);
        for _ in 0..callers {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let answer = platform.call(name, body);
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    heard(answer.text());
                }
            });
        }
        what();
    });
}

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
    under_load(&platform, 4, ("v", b""), drop, || {
        for version in 1..=5 {
            platform.file("v.py", &format!("def handle(req):\n    return '{version}'\n"));
            platform.ok(&["deploy", &file, "--concurrency", "4"]);
            assert_eq!(platform.call("v", b"").text(), version.to_string());
        }
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

#[test]
fn a_changed_secret_reaches_running_instances_and_loses_no_call() {
    let platform = Platform::start();
    platform.ok(&["secret", "create", "key", "--from-literal", "v0"]);
    // Read once: only another instance can know another value.
    let file = platform.file(
        "peek.py",
        "import time\nKEY = open('/var/openfaas/secrets/key').read()\ndef handle(req):\n    time.sleep(0.02)\n    return KEY\n",
    );
    let deploy = ["deploy", &file, "--secret", "key", "--min", "2", "--max", "3", "--concurrency", "2"];
    // A short window, so that nobody waits for a minute when the load is over.
    platform.ok(&[&deploy[..], &["--annotation", "autoscaling.knative.dev/window=6s"]].concat());
    assert_eq!(platform.call("peek", b"").text(), "v0");
    let seen = Mutex::new(BTreeSet::new());
    under_load(
        &platform,
        4,
        ("peek", b""),
        |body| seen.lock().unwrap().extend([body]),
        || {
            for version in ["v1", "v2", "v3"] {
                platform.ok(&["secret", "update", "key", "--from-literal", version]);
                platform.until("the new value is served", || platform.call("peek", b"").text() == version);
            }
            // As long as two more calls of anybody were served by an older one, it is not over.
            let is_last = || {
                seen.lock().unwrap().clear();
                let begun = now();
                while begun.elapsed() < Duration::from_millis(300) {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                seen.lock().unwrap().iter().eq(["v3"])
            };
            platform.until("every instance has the new value", is_last);
        },
    );
    platform.until("as many as before", || platform.instances("peek") == 2);
}

#[test]
fn openfaas_labels_alone_scale_from_two_to_the_most_and_to_zero_and_back() {
    let platform = Platform::start();
    let password = std::fs::read_to_string(platform.data().join("admin-password")).unwrap();
    let login = format!("Basic {}", BASE64_STANDARD.encode(format!("admin:{}", password.trim())));
    let send = |method: &str, path: &str, body: &Value| {
        platform.request(method, path, &[("Authorization", &login)], body.to_string().as_bytes())
    };
    // The annotation makes the windows short, so that nobody waits for a minute; what scales are the labels.
    let deployment = |labels: Value| {
        let annotations = json!({"autoscaling.knative.dev/window": "6s"});
        json!({"service": "nap", "image": "none", "envProcess": "sleep 0.2", "labels": labels, "annotations": annotations})
    };
    let replicas = || {
        let shown = send("GET", "/system/function/nap", &json!(null));
        let shown: Value = serde_json::from_slice(&shown.body).expect("JSON");
        shown["availableReplicas"].as_u64().unwrap_or(0)
    };
    let mut labels = json!({
        "com.openfaas.scale.min": "2", "com.openfaas.scale.max": "4", "com.openfaas.scale.type": "capacity",
        "com.openfaas.scale.target": "2", "com.openfaas.scale.target-proportion": "1.0",
    });
    let answer = send("POST", "/system/functions", &deployment(labels.clone()));
    assert_eq!(answer.status, 202, "{}", answer.text());
    platform.until("min", || replicas() == 2);

    under_load(&platform, 12, ("nap", b""), drop, || {
        platform.until("max", || replicas() == 4);
    });
    platform.until("min again", || replicas() == 2);

    labels["com.openfaas.scale.zero"] = json!("true");
    labels["com.openfaas.scale.zero-duration"] = json!("2s");
    let answer = send("PUT", "/system/functions", &deployment(labels));
    assert_eq!(answer.status, 202, "{}", answer.text());
    platform.until("zero", || replicas() == 0);
    let answer = platform.call("nap", b"");
    assert_eq!(answer.status, 200);
    assert_ne!(answer.header("x-taper-start"), "warm");
    platform.until("zero again", || replicas() == 0);
}

#[test]
fn calls_that_queue_beside_a_busy_instance_bring_others_at_once() {
    let platform = Platform::start();
    let file = platform.file("slow.py", "import time\ndef handle(req):\n    time.sleep(1.5)\n    return 'done'\n");
    platform.ok(&["deploy", &file, "--concurrency", "1", "--max", "8"]);
    assert_eq!(platform.call("slow", b"").text(), "done");
    let begun = now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(platform.call("slow", b"").text(), "done"));
        }
    });
    // One after another they take twelve seconds; after a tick and its windows, about half of that.
    assert!(begun.elapsed() < Duration::from_secs(6), "eight calls of 1.5 s took {:?}", begun.elapsed());
}

#[test]
fn by_cpu_idle_calls_bring_nothing_and_work_does() {
    let platform = Platform::start();
    let file = platform.file(
        "work.py",
        "import time\ndef handle(req):\n    end = time.monotonic() + 0.5\n    while req == 'work' and time.monotonic() < end: pass\n    time.sleep(max(0, end - time.monotonic()))\n    return req\n",
    );
    let of = |name: &str| format!("autoscaling.knative.dev/{name}");
    let (metric, target, window) =
        (format!("{}=cpu", of("metric")), format!("{}=200", of("target")), format!("{}=6s", of("window")));
    let annotations = ["--annotation", &metric, "--annotation", &target, "--annotation", &window];
    platform.ok(&[&["deploy", &file, "--concurrency", "8", "--max", "3"], &annotations[..]].concat());
    let storm = |body: &[u8], enough: &mut dyn FnMut() -> bool| {
        under_load(&platform, 4, ("work", body), drop, || {
            platform.until("enough", enough);
        });
    };
    let begun = now();
    let mut most = 0;
    storm(b"idle", &mut || {
        most = most.max(platform.instances("work"));
        begun.elapsed() > Duration::from_secs(8)
    });
    assert_eq!(most, 1, "four calls that sleep are no work");
    storm(b"work", &mut || platform.instances("work") == 3);
    platform.until("zero", || platform.instances("work") == 0);
}
