//! Revisions and how calls are spread over them: shares, tags, callers that stay, copies, rollouts, going back, and limits.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::Output,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;

use crate::platform::{PATIENCE, Platform, now, text};

/// Callers at a time, where a test has a load.
const CALLERS: usize = 8;

/// A connection that is kept open from call to call. Whatever ends it early fails the test.
struct Line {
    stream: BufReader<TcpStream>,
}

impl Line {
    fn open(platform: &Platform) -> Self {
        let stream = TcpStream::connect(platform.address()).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// One call; gives its status and its body.
    fn call(&mut self, name: &str) -> (u16, String) {
        let head = format!("POST /function/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        self.stream.get_mut().write_all(head.as_bytes()).expect("an open connection");
        let mut line = || {
            let mut line = String::new();
            assert_ne!(self.stream.read_line(&mut line).expect("an answer"), 0, "the connection was closed");
            line.trim_end().to_ascii_lowercase()
        };
        let status = line().split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        let mut length = None;
        loop {
            match line().split_once(':') {
                None => break,
                Some(("content-length", value)) => length = Some(value.trim().parse().expect("a length")),
                Some(("connection", value)) => assert_ne!(value.trim(), "close", "the connection is to stay"),
                Some(_) => {}
            }
        }
        let mut body = vec![0; length.expect("a length")];
        self.stream.read_exact(&mut body).expect("a whole answer");
        (status, text(&body))
    }
}

/// Calls a function over kept connections for as long as `what` takes; gives how often each answer came.
fn under_load(platform: &Platform, name: &str, what: impl FnOnce()) -> BTreeMap<(u16, String), usize> {
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (stop, seen) = (AtomicBool::new(false), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        let _end = End(&stop);
        for _ in 0..CALLERS {
            scope.spawn(|| {
                let (mut line, mut own) = (Line::open(platform), BTreeMap::new());
                while !stop.load(Ordering::Relaxed) {
                    *own.entry(line.call(name)).or_insert(0) += 1;
                }
                let mut seen = seen.lock().unwrap();
                own.into_iter().for_each(|(answer, times)| *seen.entry(answer).or_insert(0) += times);
            });
        }
        what();
    });
    seen.into_inner().unwrap()
}

/// Deploys a function that answers with this word.
fn deploy(platform: &Platform, name: &str, word: &str, more: &[&str]) -> String {
    let file = platform.file(&format!("{name}.py"), &format!("def handle(req):\n    return '{word}'\n"));
    platform.ok(&[&["deploy", &file], more].concat())
}

/// A platform with a function of two revisions that answer `1` and `2`.
fn two_revisions() -> Platform {
    let platform = Platform::start();
    deploy(&platform, "hello", "1", &[]);
    deploy(&platform, "hello", "2", &[]);
    platform
}

/// How often each word comes back from so many calls.
fn tally(platform: &Platform, name: &str, calls: usize) -> BTreeMap<String, usize> {
    let seen = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                let mut line = Line::open(platform);
                for _ in 0..calls / CALLERS {
                    let (status, word) = line.call(name);
                    assert_eq!(status, 200, "{word}");
                    *seen.lock().unwrap().entry(word).or_insert(0) += 1;
                }
            });
        }
    });
    seen.into_inner().unwrap()
}

fn described(platform: &Platform, name: &str) -> Value {
    serde_json::from_str(&platform.ok(&["describe", name, "-o", "json"])).unwrap()
}

fn stderr(out: &Output) -> String {
    assert!(out.status.success(), "{}", text(&out.stderr));
    text(&out.stderr)
}

#[test]
fn calls_are_shared_out_as_was_said() {
    let platform = two_revisions();
    assert_eq!(tally(&platform, "hello", 80), BTreeMap::from([("2".to_owned(), 80)]), "the newest serves");
    let shown = platform.ok(&["traffic", "hello", "latest=10", "hello-00001=90"]);
    assert!(shown.contains("hello-00002 (latest)    10 %  ████\n"), "{shown}");
    assert!(shown.contains(&format!("hello-00001             90 %  {}\n", "█".repeat(36))), "{shown}");
    assert_eq!(shown, platform.ok(&["traffic", "hello"]));
    // Three standard deviations of 2,000 calls at a tenth. One run of 370 is outside, one of 137,000 twice.
    let (calls, part) = (2000_f64, 0.1_f64);
    let bound = 3.0 * (calls * part * (1.0 - part)).sqrt();
    let mut counts = Vec::new();
    let within = (0..2).any(|_| {
        let seen = tally(&platform, "hello", 2000);
        counts.push(seen.clone());
        assert_eq!(seen.values().sum::<usize>(), 2000);
        (seen["2"] as f64 - calls * part).abs() <= bound
    });
    assert!(within, "{counts:?} is more than {bound:.1} away from 200");
    // What was pinned stays pinned when something newer comes.
    let out = platform.taper(&["deploy", &platform.file("hello.py", "def handle(req):\n    return '3'\n")]);
    assert!(stderr(&out).contains("it has 10 % of the calls"), "{}", text(&out.stderr));
    let seen = tally(&platform, "hello", 400);
    assert!(seen["1"] > 300 && seen.get("3").is_some_and(|n| *n > 5) && !seen.contains_key("2"), "{seen:?}");
    assert!(platform.ok(&["list"]).contains("10/90"));
    platform.ok(&["traffic", "hello", "--reset"]);
    assert_eq!(tally(&platform, "hello", 80), BTreeMap::from([("3".to_owned(), 80)]));
}

#[test]
fn a_tag_is_called_by_its_host_and_by_its_header() {
    let platform = two_revisions();
    let shown = platform.ok(&["traffic", "hello", "--tag", "old=1", "--tag", "newest=latest"]);
    assert!(
        shown.contains("newest  hello-00002  http://newest-hello.default.localhost:")
            && shown.contains("old     hello-00001"),
        "{shown}"
    );
    let call = |path: &str, header: (&str, &str)| platform.request("POST", path, &[header], b"").text();
    for _ in 0..20 {
        assert_eq!(call("/function/hello", ("knative-serving-tag", "old")), "1");
        assert_eq!(call("/function/hello", ("x-taper-tag", "old")), "1");
        assert_eq!(call("/any/path", ("host", "old-hello.default.localhost")), "1");
        assert_eq!(call("/", ("host", "newest-hello.default.localhost")), "2");
        assert_eq!(call("/", ("host", "hello.default.localhost")), "2");
        assert_eq!(platform.call("hello", b"").text(), "2");
    }
    // A tag has no share; with one it has both.
    platform.ok(&["traffic", "hello", "1=100"]);
    assert_eq!(platform.call("hello", b"").text(), "1");
    assert_eq!(call("/", ("host", "newest-hello.default.localhost")), "2");
    platform.ok(&["traffic", "hello", "--untag", "old"]);
    assert_ne!(platform.request("POST", "/", &[("host", "old-hello.default.localhost")], b"").status, 200);
    let said = platform.fails(&["traffic", "hello", "--tag", "newest=1"]);
    assert!(said.contains("the tag is taken, by latest") && said.contains("--untag newest --tag newest=1"), "{said}");
    let twice = platform.file(
        "twice.yaml",
        "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {name: hello}\nspec:\n  source: hello.py\n  traffic:\n  - {latest: true, percent: 100, tag: blue}\n  - {revision: hello-00001, tag: blue}\n",
    );
    let said = platform.fails(&["deploy", "-f", &twice]);
    assert!(said.contains("spec.traffic[1].tag: `blue` is taken by another target"), "{said}");
    assert_eq!(described(&platform, "hello")["status"]["latestCreatedRevision"], "hello-00002", "nothing was changed");
}

#[test]
fn a_caller_stays_with_its_revision() {
    let mut platform = two_revisions();
    platform.ok(&["traffic", "hello", "latest=50", "1=50", "--sticky", "cookie=seen"]);
    let mut words = BTreeMap::new();
    for _ in 0..40 {
        let first = platform.request("POST", "/function/hello", &[], b"");
        let cookie = first.header("set-cookie").split(';').next().unwrap().to_owned();
        assert!(cookie.starts_with("seen="), "{cookie}");
        for _ in 0..10 {
            let again = platform.request("POST", "/function/hello", &[("cookie", &format!("a=b; {cookie}"))], b"");
            assert_eq!(again.text(), first.text());
        }
        *words.entry(first.text()).or_insert(0) += 1;
    }
    assert_eq!(words.len(), 2, "{words:?}");
    let shown = platform.ok(&["traffic", "hello", "--sticky", "header=X-User"]);
    assert!(shown.contains("by the header `X-User`"), "{shown}");
    let all = |platform: &Platform| -> Vec<String> {
        let of = |n: usize| platform.request("POST", "/function/hello", &[("x-user", &n.to_string())], b"").text();
        (0..40).map(of).collect()
    };
    let first = all(&platform);
    assert!(first.iter().any(|w| w == "1") && first.iter().any(|w| w == "2"), "{first:?}");
    for _ in 0..3 {
        assert_eq!(all(&platform), first);
    }
    // More for the newest: callers come to it, and none of its own leaves.
    platform.ok(&["traffic", "hello", "latest=80", "1=20"]);
    let more = all(&platform);
    assert!(first.iter().zip(&more).all(|(before, after)| before == "1" || after == "2"), "{first:?} {more:?}");
    platform.stop();
    platform.up();
    assert_eq!(all(&platform), more, "after a restart too");
    assert!(!platform.ok(&["traffic", "hello", "--sticky", "none"]).contains("Sticky"));
}

#[test]
fn copies_of_calls_reach_a_revision_whose_answers_nobody_sees() {
    let platform = Platform::start();
    let code = |word: &str| {
        format!(
            "import sys\ndef handle(req):\n    print('{word} got ' + req, file=sys.stderr, flush=True)\n    return '{word}'\n"
        )
    };
    for word in ["one", "two"] {
        platform.ok(&["deploy", &platform.file("copied.py", &code(word))]);
    }
    let shown = platform.ok(&["traffic", "copied", "1=100", "--mirror", "latest=100"]);
    assert!(shown.contains("copied-00002 gets copies of 100 % of the calls"), "{shown}");
    for n in 0..10 {
        assert_eq!(platform.call("copied", n.to_string().as_bytes()).text(), "one");
    }
    platform.until("copies", || platform.ok(&["logs", "copied"]).contains("two got 7"));
    assert!(!platform.ok(&["traffic", "copied", "--mirror", "latest=0"]).contains("Mirror"));
}

#[test]
fn a_rollback_is_one_step_and_holds_until_the_next_deploy() {
    let mut platform = two_revisions();
    let out = platform.taper(&["rollback", "hello"]);
    assert!(stderr(&out).contains("`taper rollback hello hello-00002`"), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout), "hello.default serves hello-00001; it served hello-00002\n");
    assert_eq!(tally(&platform, "hello", 40), BTreeMap::from([("1".to_owned(), 40)]));
    let shown = platform.ok(&["describe", "hello"]);
    assert!(shown.contains("`latest` means hello-00001") && shown.contains("rolled back from hello-00002"), "{shown}");
    assert!(platform.fails(&["rollback", "hello"]).contains("hello-00001"), "nothing is before the first");
    // From nothing, and over a restart.
    platform.ok(&["scale", "hello", "0"]);
    platform.until("zero", || platform.instances("hello") == 0);
    assert_eq!(platform.call("hello", b"").text(), "1");
    platform.stop();
    platform.up();
    assert_eq!(platform.call("hello", b"").text(), "1");
    // The same deploy again takes the traffic back, and so does one that changes something.
    deploy(&platform, "hello", "2", &[]);
    assert_eq!(platform.call("hello", b"").text(), "2");
    assert!(!platform.ok(&["describe", "hello"]).contains("Held"));
    platform.ok(&["rollback", "hello", "1"]);
    deploy(&platform, "hello", "3", &[]);
    assert_eq!(tally(&platform, "hello", 40), BTreeMap::from([("3".to_owned(), 40)]));
    platform.ok(&["rollback", "hello", "hello-00001"]);
    assert_eq!(platform.call("hello", b"").text(), "1");
    assert!(platform.fails(&["rollback", "hello", "7"]).contains("`taper revisions hello"));
    assert!(platform.fails(&["rollback", "hello", "hullo-00001"]).contains("is no revision of hello"));
    platform.ok(&["traffic", "hello", "1=100"]);
    let said = platform.fails(&["rollback", "hello", "2"]);
    assert!(said.contains("`latest`") && said.contains("taper traffic hello"), "{said}");
}

#[test]
fn a_rollback_under_load_costs_nothing() {
    let platform = Platform::start();
    deploy(&platform, "hello", "1", &["--concurrency", "4"]);
    deploy(&platform, "hello", "2", &["--concurrency", "4"]);
    let mut slowest = Duration::ZERO;
    let seen = under_load(&platform, "hello", || {
        let mut line = Line::open(&platform);
        for (to, word) in [("1", "1"), ("2", "2"), ("1", "1"), ("2", "2")] {
            platform.ok(&["rollback", "hello", to]);
            let begun = now();
            for _ in 0..50 {
                assert_eq!(
                    line.call("hello"),
                    (200, word.to_owned()),
                    "whoever calls after the command gets the other"
                );
            }
            slowest = slowest.max(begun.elapsed());
        }
    });
    assert!(seen.keys().all(|(status, _)| *status == 200), "{seen:?}");
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(slowest < Duration::from_secs(20), "{slowest:?}");
}

/// A manifest of a function with a rollout.
fn rolled_out(platform: &Platform, code: &str, rollout: &str) -> String {
    platform.file("gradual.py", code);
    platform.file(
        "gradual.yaml",
        &format!("apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {{name: gradual}}\nspec:\n  source: gradual.py\n  concurrency: 4\n  rollout: {rollout}\n"),
    )
}

#[test]
fn a_rollout_that_fails_is_stopped_and_returned() {
    let platform = Platform::start();
    let window = Duration::from_secs(45);
    let rollout = "{duration: 45s, errors: 5, calls: 20}";
    platform.ok(&["deploy", "-f", &rolled_out(&platform, "def handle(req):\n    return '1'\n", rollout)]);
    let failing = "n = 0\ndef handle(req):\n    global n\n    n += 1\n    if n % 5 == 0:\n        raise ValueError('the fifth')\n    return '2'\n";
    let file = rolled_out(&platform, failing, rollout);
    let begun = now();
    let mut deployed = None;
    let seen = under_load(&platform, "gradual", || {
        deployed = Some(platform.taper(&["deploy", "-f", &file]));
        platform.until("the rollout is stopped", || described(&platform, "gradual")["status"]["held"].is_object());
    });
    assert!(begun.elapsed() < window, "{:?}", begun.elapsed());
    let said = stderr(&deployed.unwrap());
    assert!(
        said.contains("its rollout has begun: gradual-00002 has") && said.contains("taper traffic gradual"),
        "{said}"
    );
    let count = |status: u16, word: &str| seen.get(&(status, word.to_owned())).copied().unwrap_or(0);
    let failed: usize = seen.iter().filter(|((status, _), _)| *status == 500).map(|(_, times)| times).sum();
    assert!(failed > 0 && count(200, "2") >= 16, "it had calls, and some failed: {seen:?}");
    assert!(count(200, "1") > 10 * failed, "few callers felt it: {seen:?}");
    assert!(seen.keys().all(|(status, _)| [200, 500].contains(status)), "{seen:?}");
    assert_eq!(tally(&platform, "gradual", 200), BTreeMap::from([("1".to_owned(), 200)]));
    let shown = platform.ok(&["describe", "gradual"]);
    assert!(shown.contains("`latest` means gradual-00001 until the next deploy") && shown.contains('%'), "{shown}");
    assert!(platform.ok(&["traffic", "gradual"]).contains("Held"));
}

#[test]
fn a_rollout_that_does_well_takes_over() {
    let platform = Platform::start();
    let rollout = "{duration: 4s}";
    platform.ok(&["deploy", "-f", &rolled_out(&platform, "def handle(req):\n    return '1'\n", rollout)]);
    let file = rolled_out(&platform, "def handle(req):\n    return '2'\n", rollout);
    let mut drawn = String::new();
    let seen = under_load(&platform, "gradual", || {
        platform.ok(&["deploy", "-f", &file]);
        drawn = platform.ok(&["traffic", "gradual"]);
        platform.until("it has taken over", || described(&platform, "gradual")["status"]["rollout"].is_null());
        assert_eq!(tally(&platform, "gradual", 80), BTreeMap::from([("2".to_owned(), 80)]));
    });
    assert!(drawn.contains("Rollout      gradual-00001 → gradual-00002") && drawn.contains('░'), "{drawn}");
    assert!(seen.keys().all(|(status, _)| *status == 200), "{seen:?}");
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[test]
fn revisions_say_who_made_them_and_what_they_changed() {
    let platform = Platform::start();
    deploy(&platform, "hello", "1", &["--env", "GREETING=hi"]);
    let file = platform.file("hello.py", "def handle(req):\n    return '2'\n");
    let mut command = platform.command();
    command.env("TAPER_URL", &platform.url).env("SUDO_USER", "dev");
    command.args(["deploy", &file, "--env", "GREETING=hello", "--max", "3", "--label", "team=web"]);
    stderr(&command.output().unwrap());
    platform.file("hello.py", "import nothing_of_that_name\n");
    platform.fails(&["deploy", &file, "--env", "GREETING=hello", "--max", "3", "--label", "team=web"]);

    let shown = platform.ok(&["revisions", "hello"]);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("REVISION") && lines[1].starts_with("hello-00003  failed"), "{shown}");
    assert!(lines[2].contains("100 %") && lines[2].contains("admin (dev@"), "{shown}");
    assert!(lines[2].contains("code, env.GREETING hi → hello, +labels.team"), "{shown}");
    assert!(lines[3].starts_with("hello-00001  ready   -"), "{shown}");
    assert!(shown.contains("hello-00003 never became ready: ") && shown.contains("nothing_of_that_name"), "{shown}");

    let shown = platform.ok(&["revisions", "hello", "2"]);
    for words in ["Against hello-00001:", "hi → hello", "+ scale.max", "+ labels.team", "  code ", "sha256:"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let shown = platform.ok(&["revisions", "hello", "hello-00003"]);
    assert!(shown.contains("Why") && shown.contains("nothing_of_that_name"), "{shown}");
    assert!(platform.ok(&["revisions", "hello", "1"]).contains("the first that is kept"));
    let all: Value = serde_json::from_str(&platform.ok(&["revisions", "hello", "-o", "json"])).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 3);
    assert_eq!((&all[0]["name"], &all[2]["state"]), (&"hello-00001".into(), &"failed".into()));
    assert!(platform.fails(&["revisions", "hello", "9"]).contains("it has hello-00001, hello-00002, hello-00003"));
    assert!(platform.fails(&["revisions", "nobody"]).contains("nobody"));
}

#[test]
fn a_revision_that_never_becomes_ready_gets_no_call() {
    let platform = Platform::start();
    deploy(&platform, "hello", "1", &[]);
    let seen = under_load(&platform, "hello", || {
        let file = platform.file("hello.py", "raise RuntimeError('no luck today')\n");
        assert!(platform.fails(&["deploy", &file]).contains("no luck today"));
    });
    assert_eq!(seen.keys().collect::<Vec<_>>(), [&(200, "1".to_owned())]);
    let shown = platform.ok(&["describe", "hello"]);
    assert!(shown.contains("no luck today") && shown.contains("hello-00001 serves"), "{shown}");
    for target in ["2=100", "latest=0 2=100"] {
        let arguments: Vec<&str> = ["traffic", "hello"].into_iter().chain(target.split(' ')).collect();
        let said = platform.fails(&arguments);
        assert!(said.contains("never became ready") && said.contains("no luck today"), "{said}");
    }
    assert!(platform.fails(&["traffic", "hello", "--tag", "new=2"]).contains("never became ready"));
    assert!(platform.fails(&["rollback", "hello", "2"]).contains("never became ready"));
    assert_eq!(tally(&platform, "hello", 40), BTreeMap::from([("1".to_owned(), 40)]));
}

#[test]
fn shares_that_make_no_whole_are_refused() {
    let platform = two_revisions();
    for (arguments, words) in [
        (&["latest=9", "1=90"][..], "the percentages sum to 99; they must sum to 100"),
        (&["latest=50", "1=51"], "sum to 101"),
        (&["1=101"], "101 is out of range; allowed is 0 to 100"),
        (&["3=100"], "`hello-00003` does not exist"),
        (&["latest=ten"], "not a whole percentage"),
        (&["latest"], "write REV=PERCENT"),
        (&["--sticky", "cookie=a b"], "spec.sticky.cookie"),
    ] {
        let said = platform.fails(&[&["traffic", "hello"], arguments].concat());
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    assert_eq!(platform.taper(&["traffic", "hello", "--sticky", "maybe"]).status.code(), Some(2));
    assert_eq!(tally(&platform, "hello", 40), BTreeMap::from([("2".to_owned(), 40)]), "nothing was changed");
}

#[test]
fn what_is_over_the_limit_of_a_namespace_is_told_when_to_come_again() {
    let platform = Platform::start();
    platform.ok(&["namespace", "create", "guests", "--rate", "0.1", "--burst", "2"]);
    assert!(platform.ok(&["namespace", "list"]).contains("0.1 calls/s (bursts of 2)"));
    deploy(&platform, "hello", "1", &["-n", "guests"]);
    let answers: Vec<_> = (0..4).map(|_| platform.call("hello.guests", b"")).collect();
    assert_eq!(answers.iter().map(|a| a.status).collect::<Vec<_>>(), [200, 200, 429, 429]);
    let over = &answers[3];
    assert_eq!(over.header("x-taper-fault"), "queue", "{}", over.text());
    assert!(over.header("retry-after").parse::<u32>().is_ok_and(|s| (1..=10).contains(&s)), "{:?}", over.headers);
    platform.ok(&["namespace", "update", "guests", "--rate", "none"]);
    assert_eq!(platform.ok(&["namespace", "describe", "guests"]).lines().last().unwrap(), "Limits       -");
    platform.until("there is no limit", || platform.call("hello.guests", b"").status == 200);
    assert!(platform.fails(&["namespace", "update", "guests", "--burst", "5"]).contains("limits.burst"));
}

/// What differs from run to run, taken out: times, ages, digests, hosts, ports, and the room that columns take.
fn settled(line: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_start_matches('(').trim_end_matches(':');
        let hex = |text: &str| text.len() >= 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let age =
            |text: &str| text.strip_suffix('s').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()) && !n.is_empty());
        if age(bare) {
            word.replace(bare, "AGE")
        } else if hex(bare.strip_prefix("sha256:").unwrap_or(bare)) {
            "DIGEST".into()
        } else if bare.ends_with('Z') && bare.parse::<jiff::Timestamp>().is_ok() {
            "TIME".into()
        } else if let Some(at) = word.find("(dev@") {
            format!("{}(dev)", &word[..at])
        } else {
            word.to_owned()
        }
    };
    let words: Vec<String> = line.split_whitespace().map(word).collect();
    words.join(" ")
}

#[test]
fn what_is_documented_is_what_comes_out() {
    let platform = Platform::start();
    let port = platform.address().rsplit_once(':').unwrap().1;
    let page = include_str!("../docs/traffic.md");
    let mut steps: Vec<(&str, String)> = Vec::new();
    for block in page.split("```console\n").skip(1) {
        for line in block.split("```").next().unwrap().lines() {
            match line.strip_prefix("$ ") {
                Some(command) => steps.push((command, String::new())),
                None => steps.last_mut().expect("a command first").1.push_str(&format!("{line}\n")),
            }
        }
    }
    assert!(steps.len() > 20, "the page has commands");
    let bin = platform.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(crate::platform::TAPER, bin.join("taper")).unwrap();
    for (command, expect) in steps {
        let mut shell = std::process::Command::new("sh");
        let taper = platform.command();
        let own = taper.get_envs().filter_map(|(name, value)| Some((name, value?)));
        shell.envs(own).env("TAPER_URL", &platform.url).env("SUDO_USER", "dev");
        shell.arg("-c").arg(format!("PATH={}:$PATH; {{ {command}; }} 2>&1", bin.display()));
        let out = shell.current_dir(platform.dir.path()).stdin(std::process::Stdio::null()).output().unwrap();
        let said = text(&out.stdout).replace(&format!(":{port}"), ":8080");
        let lines = |text: &str| text.lines().map(settled).collect::<Vec<_>>();
        assert_eq!(lines(&said), lines(&expect), "$ {command}\n{said}");
    }
}
