//! `kill -9` of the platform at random moments under deploys and calls: what was acknowledged is there afterwards, nothing
//! half-written is, and nothing of the dead one is left on the host. Instances that serve outlive it for a while, and the next
//! platform goes on with them.

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::platform::{Platform, TAPER, now, root};

/// How often the platform is killed.
const KILLS: u64 = 50;

/// A small generator with a printed seed: the moments differ from run to run and can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Processes whose command line or environment names this platform's folder, or that run as its helpers.
pub(crate) fn processes_of(platform: &Platform) -> Vec<String> {
    let mark = platform.dir.path().to_str().expect("UTF-8").to_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let has = |bytes: &[u8]| bytes.windows(mark.len()).any(|w| w == mark.as_bytes());
        if has(&environment) || has(&line) {
            found.push(format!(
                "{} {}",
                entry.file_name().to_string_lossy(),
                String::from_utf8_lossy(&line).replace('\0', " ")
            ));
        }
    }
    found
}

/// What `doctor` says is left on the host of this platform: control groups, links, tables, sockets.
pub(crate) fn traces_of(platform: &Platform) -> String {
    let data = platform.data().display().to_string();
    let report: serde_json::Value =
        serde_json::from_str(&platform.ok(&["doctor", "--data", &data, "-o", "json"])).expect("JSON");
    let items = report["items"].as_array().expect("items");
    let changes = items.iter().find(|i| i["name"] == "changes to this host").unwrap_or_else(|| panic!("{report:#}"));
    changes["found"].as_str().expect("text").to_owned()
}

#[test]
fn killed_at_fifty_random_moments() {
    killed_at_random_moments("local: {adopt: 0s}\n", KILLS, true);
}

#[test]
fn killed_at_random_moments_and_adopted() {
    killed_at_random_moments("local: {adopt: 10s}\n", KILLS / 3, false);
}

/// `alone`: everything of a platform ends with it.
// long because: the rounds are one story
fn killed_at_random_moments(settings: &str, kills: u64, alone: bool) {
    let seed = u64::from(std::process::id()) ^ 0x7461_7065;
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let mut platform = Platform::start_configured(settings);
    // Every function answers with the number it was last acknowledged with.
    let acknowledged: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());
    for round in 0..kills {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (platform, acknowledged, stop) = (&platform, &acknowledged, &stop);
            for worker in 0..2u64 {
                scope.spawn(move || {
                    let mut step = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let name = format!("f{}", (round + worker * 3 + step) % 6);
                        let number = round * 1000 + worker * 500 + step;
                        let command = format!("echo {number}");
                        let out = Command::new(TAPER)
                            .args(["deploy", "--name", &name, "--command", &command])
                            .env("TAPER_URL", &platform.url)
                            .env("XDG_CONFIG_HOME", platform.dir.path().join("config"))
                            .output()
                            .expect("taper starts");
                        if out.status.success() {
                            let mut all = acknowledged.lock().unwrap();
                            let known = all.entry(name).or_insert(number);
                            *known = number;
                        }
                        step += 1;
                    }
                });
            }
            std::thread::park_timeout(Duration::from_millis(50 + dice.roll(700)));
            stop.store(true, Ordering::Relaxed);
            let pid = rustix::process::Pid::from_raw(platform.pid() as i32).expect("a pid");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it can be killed");
        });
        platform.kill();
        let begun = now();
        while alone && !processes_of(&platform).is_empty() {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "round {round}: left running: {:?}",
                processes_of(&platform)
            );
            std::thread::park_timeout(Duration::from_millis(5));
        }
        platform.up();
        let all = acknowledged.lock().unwrap();
        let listed: serde_json::Value = serde_json::from_str(&platform.ok(&["list", "-o", "json"])).expect("JSON");
        let names: Vec<&str> =
            listed.as_array().unwrap().iter().map(|f| f["metadata"]["name"].as_str().unwrap()).collect();
        for name in all.keys() {
            assert!(names.contains(&name.as_str()), "round {round}: {name} was acknowledged and is lost");
        }
    }
    // Two workers never deploy the same name in the same round, but a deploy that was cut off may still have been taken:
    // an answer is either the acknowledged number or one that was asked for later.
    for (name, number) in acknowledged.lock().unwrap().iter() {
        let answer = platform.call(name, b"");
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        let served: u64 = answer.text().trim().parse().expect("a number");
        assert!(
            served == *number || served / 1000 >= number / 1000,
            "{name} answers {served}, acknowledged was {number}"
        );
    }
    platform.stop();
    assert!(processes_of(&platform).is_empty(), "{:?}", processes_of(&platform));
    assert_eq!(traces_of(&platform), "none");
    assert!(!platform.data().join("local/run").exists());
    let artifacts = platform.data().join("artifacts");
    if artifacts.exists() {
        let temporary = walk(&artifacts).into_iter().filter(|p| p.contains("tmp")).collect::<Vec<_>>();
        assert!(temporary.is_empty(), "{temporary:?}");
    }
}

fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

#[test]
fn the_password_and_the_functions_survive() {
    let mut platform = Platform::start();
    let file = platform.file("keep.py", "def handle(req):\n    return 'kept'\n");
    platform.ok(&["deploy", &file]);
    platform.ok(&["secret", "create", "token", "--from-literal", "t"]);
    let password = fs::read_to_string(platform.data().join("admin-password")).expect("the password");
    platform.kill();
    platform.up();
    assert_eq!(password, fs::read_to_string(platform.data().join("admin-password")).unwrap());
    assert_eq!(platform.call("keep", b"").text(), "kept");
    assert!(platform.ok(&["secret", "list"]).contains("token"));
}

/// The metric that says the call is in.
const STARTED: &str = r#"gateway_function_invocation_started{function_name="slow.openfaas-fn"} 1"#;

#[test]
fn a_drain_lets_running_calls_end_and_leaves_nothing() {
    let mut platform = Platform::start();
    let file = platform.file("slow.py", "import time\ndef handle(req):\n    time.sleep(1)\n    return 'done'\n");
    platform.ok(&["deploy", &file]);
    let url = format!("{}/function/slow", platform.url);
    let call = std::thread::spawn(move || {
        ureq::post(&url).send("x").map(|mut r| r.body_mut().read_to_string().unwrap_or_default())
    });
    platform.until("the call runs", || platform.request("GET", "/metrics", &[], b"").text().contains(STARTED));
    if root() {
        assert_ne!(traces_of(&platform), "none", "doctor sees what there is");
    }
    let (status, _) = platform.stop();
    assert!(status.success(), "{}", platform.said());
    assert_eq!(call.join().unwrap().expect("an answer"), "done");
    assert!(processes_of(&platform).is_empty(), "{:?}", processes_of(&platform));
    assert_eq!(traces_of(&platform), "none");
}

/// A server that answers everything with what it drew at its beginning.
const SERVER: &str = include_str!("mark.py");
/// A handler that sleeps for as long as it is told, and answers with the name of its instance, whichever worker it is in.
const HANDLER: &str =
    "import os, time\ndef handle(req):\n    time.sleep(float(req or 0))\n    return os.environ['TAPER_INSTANCE']\n";
/// The same for a process per call, which has only `/tmp` to remember by.
const CLASSIC: &str = "test -s /tmp/mark || cat /proc/sys/kernel/random/uuid > /tmp/mark; cat /tmp/mark";

/// A function in each mode, and what it answers for as long as it has the same instance.
fn functions(platform: &Platform) -> BTreeMap<&'static str, String> {
    platform.ok(&["deploy", &platform.file("handler.py", HANDLER), "--concurrency", "2"]);
    let folder = platform.file("server/server.py", SERVER);
    let folder = std::path::Path::new(&folder).parent().expect("a folder").to_str().expect("UTF-8").to_owned();
    platform.ok(&["deploy", &folder, "--name", "server", "--mode", "http", "--command", "python3 server.py"]);
    platform.ok(&["deploy", "--name", "classic", "--command", &format!("sh -c '{CLASSIC}'")]);
    ["handler", "server", "classic"].map(|name| (name, answer(platform, name))).into()
}

fn answer(platform: &Platform, name: &str) -> String {
    let answer = platform.call(name, b"");
    assert_eq!(answer.status, 200, "{name}: {}\n{}", answer.text(), platform.said());
    answer.text()
}

/// The first processes of the instances that serve, as control groups tell them; none where there are none.
fn pids(platform: &Platform) -> Vec<String> {
    let mut found = Vec::new();
    for base in traces_of(platform).split(", ").filter_map(|trace| trace.strip_prefix("control group ")) {
        for group in fs::read_dir(base).into_iter().flatten().flatten() {
            let members = fs::read_to_string(group.path().join("cgroup.procs")).unwrap_or_default();
            found.extend(members.lines().map(str::to_owned));
        }
    }
    found.sort();
    found.dedup();
    found
}

#[test]
fn warm_instances_outlive_the_platform_and_serve_the_next() {
    for ordinary in [false, true] {
        let mut platform = if ordinary { Platform::start_as_ordinary_user() } else { Platform::start() };
        let marks = functions(&platform);
        for _ in 0..3 {
            let before = pids(&platform);
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for name in marks.keys() {
                    let (url, stop) = (format!("{}/function/{name}", platform.url), &stop);
                    scope.spawn(move || {
                        // Whatever is under way when it is killed breaks; before that every call is answered.
                        while !stop.load(Ordering::Relaxed) && ureq::post(&url).send("").is_ok() {}
                    });
                }
                std::thread::park_timeout(Duration::from_millis(200));
                platform.signal(rustix::process::Signal::KILL);
                stop.store(true, Ordering::Relaxed);
            });
            platform.wait();
            platform.up();
            for (name, mark) in &marks {
                assert_eq!(answer(&platform, name), *mark, "{name}: another instance answers\n{}", platform.said());
            }
            if !ordinary && root() {
                let after = pids(&platform);
                let stayed = before.iter().filter(|pid| after.contains(pid)).count();
                // Each has a first process besides what it runs; what waited for a claim has gone.
                assert!(stayed >= marks.len(), "before {before:?}, after {after:?}");
            }
        }
        let (status, _) = platform.stop();
        assert!(status.success(), "{}", platform.said());
        assert!(processes_of(&platform).is_empty(), "{:?}", processes_of(&platform));
        assert_eq!(traces_of(&platform), "none");
        assert!(!platform.data().join("local/run").exists());
    }
}

#[test]
fn a_call_that_went_with_the_platform_holds_its_slot_until_it_has_ended() {
    let mut platform = Platform::start();
    let file = platform.file("handler.py", HANDLER);
    platform.ok(&["deploy", &file, "--concurrency", "2", "--max", "1"]);
    let mark = answer(&platform, "handler");
    let url = format!("{}/function/handler", platform.url);
    // Much longer than a platform takes to start, on a busy machine as well.
    let busy = Duration::from_secs(15);
    let cut = std::thread::spawn(move || ureq::post(&url).send(busy.as_secs().to_string()).is_err());
    let started = r#"gateway_function_invocation_started{function_name="handler.openfaas-fn"} 2"#;
    platform.until("the call runs", || platform.request("GET", "/metrics", &[], b"").text().contains(started));
    let begun = now();
    platform.kill();
    assert!(cut.join().expect("ends"), "its caller hears of it");
    platform.up();
    // One slot is free, and one is not: nobody waits behind the process that is busy.
    for _ in 0..3 {
        assert_eq!(answer(&platform, "handler"), mark);
    }
    assert!(begun.elapsed() < busy, "{:?}", begun.elapsed());
    platform.until("both are free", || {
        std::thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| platform.call("handler", b"0.2").text()));
            both.map(|call| call.join().expect("ends")) == [mark.clone(), mark.clone()]
        })
    });
}

#[test]
fn without_a_successor_nothing_is_left_when_the_time_is_over() {
    let mut platform = Platform::start_configured("local: {adopt: 1s}\n");
    let marks = functions(&platform);
    platform.kill();
    let run = platform.data().join("local/run");
    let begun = now();
    platform.until("the folders are gone", || !run.exists());
    assert!(begun.elapsed() > Duration::from_millis(900), "{:?}", begun.elapsed());
    assert!(processes_of(&platform).is_empty(), "{:?}", processes_of(&platform));
    assert!(pids(&platform).is_empty());
    // The packet filter is left to the next start.
    let traces = traces_of(&platform);
    assert!(!traces.contains("control group") && !traces.contains(" links "), "{traces}");
    platform.up();
    assert!(marks.iter().all(|(name, mark)| answer(&platform, name) != *mark));
    platform.stop();
    assert_eq!(traces_of(&platform), "none");
}
