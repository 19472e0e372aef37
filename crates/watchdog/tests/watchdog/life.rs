//! The life of an instance: what it says when it cannot start, and that nothing is left when it ends.

use std::time::Duration;

use taper_runtimes::Mode;
use taper_watchdog::{
    control::{Claim, FailedKind, Order},
    wire::{Exchange, FaultKind},
};
use tokio::time::Instant;

use crate::instance::{Answer, Instance, Pieces, call, call_within, eventually, is_alive, pid_in};

#[tokio::test]
async fn a_parked_instance_ends_with_its_platform() {
    let mut instance = Instance::parked(&[]);
    assert_eq!(instance.end(), 0);
}

#[tokio::test]
async fn the_first_message_must_be_the_claim() {
    let mut instance = Instance::parked(&[]);
    instance.send(&Order::Connect(1)).await;
    assert!(instance.report().await.is_none());
    assert_eq!(instance.end(), 1);
}

#[tokio::test]
async fn a_sandbox_that_fails_is_the_platforms_failure() {
    let instance = Instance::parked(&[]);
    let mut claim = instance.claim(Mode::Classic, &["cat"]);
    claim.instance = "unconfined".into();
    let failed = instance.fail(claim).await;
    assert_eq!(
        (failed.what, failed.message.as_str()),
        (FailedKind::Confine, "cannot confine: 0 descriptors came with the claim")
    );
    let instance = Instance::parked(&[]);
    let claim = Claim { cwd: "/nowhere/at/all".into(), ..instance.claim(Mode::Classic, &["cat"]) };
    assert!(instance.fail(claim).await.message.contains("`/nowhere/at/all`: No such file or directory"));
}

#[tokio::test]
async fn a_command_that_cannot_run_says_why() {
    let files = [
        ("folder/x", ""),
        ("script", "#!/no/such/interpreter\n"),
        ("windows", "#!/bin/sh\r\necho hi\r\n"),
        ("data", "just text\n"),
    ];
    for (command, word) in [
        (
            "no-such-tool",
            "cannot run `no-such-tool`: No such file or directory (looked in /usr/local/bin:/usr/bin:/bin)",
        ),
        ("./no-such-file", "cannot run `./no-such-file`: No such file or directory"),
        ("./folder", "cannot run `./folder`: it is a directory"),
        ("./script", "wants `/no/such/interpreter`, which is not here: No such file or directory"),
        ("./windows", "cannot run `./windows`: its first line ends as on Windows; give it Unix line ends"),
        ("/etc/passwd", "cannot run `/etc/passwd`: Permission denied; make it executable (chmod +x)"),
    ] {
        for mode in [Mode::Classic, Mode::Http] {
            let instance = Instance::parked(&files);
            let claim = Claim { port: Some(1), ..instance.claim(mode, &[command]) };
            let failed = instance.fail(claim).await;
            assert_eq!(failed.what, FailedKind::Missing, "{command}");
            assert!(failed.message.contains(word), "{}", failed.message);
        }
    }
    // Executable, but nothing that the kernel can execute: found out at the first call, or at the start of a server.
    let instance = Instance::parked(&files);
    let claim = Claim { port: Some(1), ..instance.claim(Mode::Http, &["./data"]) };
    let failed = instance.fail(claim).await;
    assert!(failed.message.contains("`./data`") && failed.message.contains("begins with `#!`"), "{}", failed.message);
    let instance = Instance::parked(&[]);
    let claim = instance.claim(Mode::Http, &[]);
    assert_eq!(instance.fail(claim).await.what, FailedKind::Config);
}

/// A process that ignores SIGTERM, with a child in its group and one that left it for a session of its own.
const FAMILY: &str = "#!/bin/sh
trap '' TERM
sleep 600 & echo $! > child
setsid sh -c 'echo $$ > daemon; exec sleep 600' &
sleep 600 & wait
";

#[tokio::test]
async fn the_end_of_the_control_channel_leaves_nothing() {
    // In the middle of a call …
    let mut instance = Instance::parked(&[("family.sh", FAMILY)]);
    instance.start(instance.claim(Mode::Classic, &["./family.sh"])).await;
    let mut exchange = Exchange::start(instance.connect().await, &call("/", ""), Pieces::of(b"")).unwrap();
    let pids = tokio::select! { pids = family(&instance) => pids, event = exchange.event() => panic!("{event:?}") };
    let began = Instant::now();
    instance.end();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "{pids:?}");
    // … and while the function starts.
    let mut instance = Instance::parked(&[("family.sh", FAMILY)]);
    let claim = Claim { port: Some(1), ..instance.claim(Mode::Http, &["./family.sh"]) };
    instance.send(&Order::Claim(Box::new(claim))).await;
    let pids = family(&instance).await;
    instance.end();
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "{pids:?}");
}

async fn family(instance: &Instance) -> [u32; 2] {
    [pid_in(instance, "child").await, pid_in(instance, "daemon").await]
}

/// Says three megabytes on standard error.
const FLOOD: &str = "#!/bin/sh\necho $$ > pid\nhead -c 3000000 /dev/zero | tr '\\0' 'x' >&2\necho over\n";

#[tokio::test]
async fn a_flood_of_log_is_passed_whole() {
    let instance = Instance::parked(&[("flood.sh", FLOOD)]);
    instance.start(instance.claim(Mode::Classic, &["./flood.sh"])).await;
    assert_eq!(instance.post(b"").await.text(), "over\n");
    let log = instance.err.wait_for("Duration").await;
    assert_eq!(log.bytes().filter(|b| *b == b'x').count(), 3_000_000);
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "only the reader of the stream waits for it, and that is the point")]
async fn a_log_that_nobody_reads_does_not_stop_the_watchdog() {
    let mut instance = Instance::parked(&[("flood.sh", FLOOD)]);
    instance.start(instance.claim(Mode::Classic, &["./flood.sh"])).await;
    let err = instance.err.clone();
    let paused = err.pause();
    let mut exchange = Exchange::start(instance.connect().await, &call_within(500), Pieces::of(b"")).unwrap();
    // Its process is killed by the deadline although nobody takes what it says, and orders are followed.
    let pid = tokio::select! { pid = pid_in(&instance, "pid") => pid, event = exchange.event() => panic!("{event:?}") };
    assert_eq!(Answer::of(&mut exchange).await.unwrap().fault().what, FaultKind::Cancelled);
    eventually(|| (!is_alive(pid)).then_some(())).await;
    assert_eq!(instance.end(), 0);
    drop(paused);
}
