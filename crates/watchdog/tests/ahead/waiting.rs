//! A runtime that waits for its claim: what it becomes, and when another is started in its place.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use taper_runtimes::Runtime;
use taper_watchdog::control::Claim;

use crate::instance::{Instance, eventually, is_alive};

/// The runtime that the watchdog of this instance started ahead.
async fn waiting(instance: &Instance) -> u32 {
    let path = format!("/proc/{0}/task/{0}/children", instance.child.id());
    let pid: u32 = eventually(|| fs::read_to_string(&path).ok()?.split_whitespace().next()?.parse().ok()).await;
    // From the fork to the program it is still its parent.
    let program = || fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("taper-shim"));
    eventually(|| program().then_some(())).await;
    pid
}

const PYTHON: &str = r#"
import os, sys, time
def handle(event, context):
    return {"parent": os.getppid(), "env": dict(os.environ), "code": os.getcwd(), "path": sys.path[0], "group": os.getpgid(0),
            "shell": os.popen("echo $GREETING $TAPER_CLAIM_FD").read(), "zone": time.tzname, "fds": sorted(os.listdir("/proc/self/fd"))}
"#;

const NODE: &str = r"
exports.handle = () => ({ parent: process.pid, env: { ...process.env }, code: process.cwd(),
  shell: require('child_process').execSync('echo $GREETING $TAPER_CLAIM_FD').toString(), zone: new Date(0).toString() });
";

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn the_waiting_runtime_becomes_the_function() {
    for (runtime, file, code) in [(Runtime::Python3, "hello.py", PYTHON), (Runtime::Node, "hello.js", NODE)] {
        let instance = Instance::parked(&[(file, code)]);
        let pid = waiting(&instance).await;
        let mut claim = instance.handler_claim(runtime, "hello.handle", 1);
        claim.env.insert("TZ".into(), "Asia/Tokyo".into());
        claim.env.insert("ODD".into(), "ä \u{1f600} = \n".into());
        let env = claim.env.clone();
        instance.start(claim).await;
        let told = json(instance.post(b"").await.text());
        assert_eq!(told["parent"], pid, "{runtime}: it is the one that waited");
        assert_eq!(told["env"], serde_json::to_value(&env).unwrap(), "{runtime}: exactly the claim's environment");
        assert_eq!(told["code"], instance.folder.path().to_str().unwrap());
        assert_eq!(told["shell"], "hi\n", "{runtime}: what it starts has the same");
        assert!(told["zone"].to_string().contains(if runtime == Runtime::Node { "+0900" } else { "JST" }), "{told}");
    }
}

#[tokio::test]
async fn an_environment_larger_than_a_pipe_arrives() {
    for (runtime, file, code) in [(Runtime::Python3, "hello.py", PYTHON), (Runtime::Node, "hello.js", NODE)] {
        let instance = Instance::parked(&[(file, code)]);
        let mut claim = instance.handler_claim(runtime, "hello.handle", 1);
        claim.env.insert("LARGE".into(), "x".repeat(100_000));
        instance.start(claim).await;
        assert_eq!(json(instance.post(b"").await.text())["env"]["LARGE"].as_str().unwrap().len(), 100_000);
    }
}

#[tokio::test]
async fn a_runtime_that_died_waiting_is_replaced() {
    for (runtime, file, code) in [(Runtime::Python3, "hello.py", PYTHON), (Runtime::Node, "hello.js", NODE)] {
        let instance = Instance::parked(&[(file, code)]);
        let pid = waiting(&instance).await;
        kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
        eventually(|| (!is_alive(pid)).then_some(())).await;
        instance.start(instance.handler_claim(runtime, "hello.handle", 2)).await;
        assert_ne!(json(instance.post(b"").await.text())["parent"], pid, "{runtime}");
    }
}

#[tokio::test]
async fn a_module_of_the_functions_own_is_not_the_librarys() {
    let code = "import json, os\ndef handle(event, context):\n    return [json.mine, os.getppid()]\n";
    for own in ["json.py", "json/__init__.py"] {
        let instance = Instance::parked(&[("hello.py", code), (own, "mine = 7\n")]);
        let pid = waiting(&instance).await;
        instance.start(instance.handler_claim(Runtime::Python3, "hello.handle", 1)).await;
        let told = json(instance.post(b"").await.text());
        assert_eq!(told[0], 7);
        assert_ne!(told[1], pid, "another was started");
        eventually(|| (!is_alive(pid)).then_some(())).await;
    }
}

#[tokio::test]
async fn a_claim_for_something_else_ends_the_one_that_waits() {
    let instance = Instance::parked(&[("hello.py", PYTHON)]);
    let pid = waiting(&instance).await;
    let claim = instance.handler_claim(Runtime::Python3, "hello.handle", 1);
    let other = ["python3", "-S", "-B", claim.command.last().unwrap()].map(String::from).into();
    instance.start(Claim { command: other, ..claim }).await;
    assert_ne!(json(instance.post(b"").await.text())["parent"], pid);
    eventually(|| (!is_alive(pid)).then_some(())).await;

    let mut instance = Instance::parked(&[("hello.py", PYTHON)]);
    let pid = waiting(&instance).await;
    let mut claim = instance.handler_claim(Runtime::Python3, "hello.handle", 1);
    (claim.mode, claim.command) = (taper_runtimes::Mode::Classic, vec!["cat".into()]);
    instance.start(claim).await;
    assert_eq!(instance.post(b"through").await.text(), "through");
    eventually(|| (!is_alive(pid)).then_some(())).await;
    instance.end();
}

#[tokio::test]
async fn nobody_claims_it() {
    for (file, code) in [("hello.py", PYTHON), ("hello.js", NODE)] {
        let mut instance = Instance::parked(&[(file, code)]);
        let pid = waiting(&instance).await;
        assert_eq!(instance.end(), 0);
        eventually(|| (!is_alive(pid)).then_some(())).await;
    }
}
