//! `kill -9` of the platform at random moments under deploys and calls: what was acknowledged is there afterwards, nothing
//! half-written is, and nothing of the dead one is left on the host.

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
    let seed = u64::from(std::process::id()) ^ 0x7461_7065;
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let mut platform = Platform::start();
    // Every function answers with the number it was last acknowledged with.
    let acknowledged: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());
    for round in 0..KILLS {
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
        while !processes_of(&platform).is_empty() {
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
