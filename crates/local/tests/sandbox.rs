//! Sandboxes, from park to the last trace: what a command in one can do, and what is left afterwards.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use support::{Data, Outcome, STAND_IN, claim, installed, job, root, run, run_in};
use taper_local::Error;
use taper_local::sandbox::{
    Binding, Isolation, Limits, NetworkSpace, ParkSpec, Secret, Tree,
    cgroup::{Cgroups, Hierarchy},
};
use taper_local::spawner::Spawner;

const PYTHON: &str = "/usr/bin/python3";
const SUCCESS: Outcome = Outcome::Ended { code: Some(0), signal: None };

#[tokio::test]
async fn a_command_runs_and_its_output_arrives() {
    let data = Data::new();
    let spawner = data.spawner().await;
    let spec = ParkSpec::default();
    let ran = run(&spawner, &spec, Binding::default(), &job(&["/bin/true"])).await.expect("runs");
    assert_eq!((ran.outcome, ran.stdout.as_str(), ran.stderr.as_str()), (SUCCESS, "", ""));
    let both = job(&["/bin/sh", "-c", "echo out; echo err >&2; echo again > /dev/stdout; hostname; exit 3"]);
    let ran = run(&spawner, &spec, Binding::default(), &both).await.expect("runs");
    assert_eq!(ran.outcome, Outcome::Ended { code: Some(3), signal: None });
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\nagain\nhello-00001-x\n", "err\n"));
    if installed("python", PYTHON) {
        let ran = run(&spawner, &spec, Binding::default(), &job(&[PYTHON, "-c", "print(6 * 7)"])).await.expect("runs");
        assert_eq!((ran.outcome, ran.stdout.as_str()), (SUCCESS, "42\n"));
    }
    spawner.stop().await;
}

#[tokio::test]
async fn code_and_secrets_are_there_and_only_for_reading() {
    let mut data = Data::new();
    let folder = data.code("handler.sh", "#!/bin/sh\necho from the code\n");
    data.config.runtime = Some(folder.clone());
    let spawner = data.spawner().await;
    let tree = |spawner: Spawner| {
        let folder = folder.clone();
        async move { spawner.tree(&folder).await.map(Some) }
    };
    let binding = Binding {
        code: tree(spawner.clone()).await.expect("binds"),
        dependencies: tree(spawner.clone()).await.expect("binds"),
        secrets: vec![
            Secret { name: "api-key".to_owned(), value: b"s3cret".to_vec() },
            Secret { name: "other".to_owned(), value: vec![0, 255] },
        ],
        resolv_conf: "nameserver 192.0.2.7\n".to_owned(),
        ..Binding::default()
    };
    let script = "/function/handler.sh; ls /deps /runtime; cat /var/openfaas/secrets/api-key; echo; wc -c < /run/secrets/other
        cat /etc/resolv.conf; getent hosts localhost | head -1 | wc -l
        for place in /function /deps /runtime /run/secrets /var/openfaas/secrets; do touch $place/x; done 2>/dev/null; ls -A /run/secrets
        (echo y > /run/secrets/api-key) 2>/dev/null";
    let ran = run(&spawner, &ParkSpec::default(), binding, &job(&["/bin/sh", "-c", script])).await.expect("runs");
    assert_eq!(ran.outcome, Outcome::Ended { code: Some(2), signal: None }, "a secret was written");
    let want = "from the code\n/deps:\nhandler.sh\n\n/runtime:\nhandler.sh\ns3cret\n2\nnameserver 192.0.2.7\n1\napi-key\nother\n";
    assert_eq!(ran.stdout, want, "{}", ran.stderr);
    let content = fs::read_to_string(folder.join("handler.sh")).expect("reads");
    assert_eq!(content, "#!/bin/sh\necho from the code\n");
    spawner.stop().await;
}

/// The verdicts of the escape program that did not hold.
fn broken(output: &str) -> Vec<Value> {
    let verdicts: Vec<Value> = serde_json::from_str(output).unwrap_or_else(|why| panic!("{why}: {output}"));
    assert!(verdicts.len() > 90, "only {} attempts were made", verdicts.len());
    verdicts.into_iter().filter(|verdict| verdict["held"] != true).collect()
}

#[tokio::test]
async fn nothing_escapes() {
    if !installed("the escape suite", PYTHON) {
        return;
    }
    let data = Data::new();
    let spawner = data.spawner().await;
    let code = data.code("escape.py", include_str!("escape.py"));
    let host = TcpListener::bind("0.0.0.0:0").expect("listens");
    let port = host.local_addr().expect("bound").port();
    let name = format!("taper-test-{port}");
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("listens");
    let mut job = job(&[PYTHON, "/function/escape.py"]);
    let mut set = |name: &str, value: String| job.env.insert(name.to_owned(), value);
    set("ESCAPE_ALONE", "1".to_owned());
    set("ESCAPE_DATA", data.folder.path().to_string_lossy().into_owned());
    set("ESCAPE_PID", std::process::id().to_string());
    set("ESCAPE_SECRETS", "mine".to_owned());
    set("ESCAPE_HOST", format!("127.0.0.1:{port},[::1]:{port},0.0.0.0:{port}"));
    set("ESCAPE_ABSTRACT", name);
    if spawner.isolation() == Isolation::User {
        set("ESCAPE_SHARED_ID", "1".to_owned());
    }
    let binding = Binding {
        code: Some(spawner.tree(&code).await.expect("binds")),
        secrets: vec![Secret { name: "mine".to_owned(), value: b"x".to_vec() }],
        pids: Some(256),
        ..Binding::default()
    };
    let ran = run(&spawner, &ParkSpec::default(), binding, &job).await.expect("runs");
    assert_eq!(ran.outcome, SUCCESS, "{}", ran.stderr);
    assert_eq!(broken(&ran.stdout), Vec::<Value>::new());
    spawner.stop().await;
}

/// A data directory that belongs to an ordinary account, with the program in it, since the build folder may be closed.
fn of_an_account(uid: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("makes");
    let code = folder.path().join("data/code");
    fs::create_dir_all(&code).expect("makes");
    let copied = Command::new("cp").arg(STAND_IN).arg(folder.path().join("stand-in")).status().expect("copies");
    assert!(copied.success());
    fs::write(code.join("escape.py"), include_str!("escape.py")).expect("writes");
    for path in [folder.path().to_owned(), folder.path().join("data"), code.clone(), code.join("escape.py")] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets");
        chown(&path, Some(uid), Some(uid)).expect("gives");
    }
    folder
}

const ACCOUNT: u32 = 4321;

/// The program as that account, without its environment.
fn as_account(folder: &Path) -> Command {
    let mut command = Command::new("setpriv");
    let id = ACCOUNT.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(folder.join("stand-in")).current_dir("/");
    command
}

#[test]
fn nothing_escapes_from_an_ordinary_account_either() {
    if !root("trying as another account") || !installed("the escape suite", PYTHON) {
        return;
    }
    let folder = of_an_account(ACCOUNT);
    let data = folder.path().join("data");
    let output = as_account(folder.path())
        .arg("try")
        .arg(&data)
        .args(["--env", "ESCAPE_ALONE=1", "--env", "ESCAPE_SHARED_ID=1", "--env", "PATH=/usr/bin:/bin", "--env"])
        .arg(format!("ESCAPE_DATA={}", data.display()))
        .args(["--env", &format!("ESCAPE_PID={}", std::process::id()), "--code"])
        .arg(data.join("code"))
        .args(["--", PYTHON, "/function/escape.py"])
        .output()
        .expect("starts");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    assert!(words.contains("isolation User"), "{words}");
    assert_eq!(broken(&String::from_utf8_lossy(&output.stdout)), Vec::<Value>::new());
    let left: Vec<_> = fs::read_dir(&data).expect("lists").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["code"]);
}

#[test]
fn an_account_with_a_range_of_ids_does_not_lend_its_own() {
    if !root("trying as another account") || !installed("mapping ids", "/usr/bin/newuidmap") {
        return;
    }
    let folder = of_an_account(ACCOUNT);
    let file = |name: &str, content: String| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("writes");
        path
    };
    let passwd = fs::read_to_string("/etc/passwd").expect("reads");
    let passwd = file("passwd", format!("{passwd}taper-test:x:{ACCOUNT}:{ACCOUNT}::/:/bin/sh\n"));
    let range = file("subid", "taper-test:231072:65536\n".to_owned());
    // The grant is made in a mount namespace of the test's own.
    let granted = "mount --bind \"$0\" /etc/passwd; for file in subuid subgid; do mount --bind \"$1\" /etc/$file; done
        shift; exec \"$@\"";
    let mut account = as_account(folder.path());
    account.arg("try").arg(folder.path().join("data")).args(["--", "/bin/sh", "-c", "id -u; cat /proc/self/uid_map"]);
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-e", "-c", granted])
        .args([&passwd, &range])
        .arg(account.get_program())
        .args(account.get_args())
        .current_dir("/")
        .output()
        .expect("starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let numbers: Vec<&str> = stdout.split_whitespace().collect();
    assert_eq!(numbers, ["1000", "0", "1", "65536"], "{stderr}");
}

#[test]
fn processes_are_bounded_without_control_groups() {
    if !root("trying as another account") || !installed("forking", PYTHON) {
        return;
    }
    let folder = of_an_account(ACCOUNT);
    let output = as_account(folder.path())
        .arg("try")
        .arg(folder.path().join("data"))
        .args(["--pids", "20", "--code"])
        .arg(folder.path().join("data/code"))
        .args(["--", PYTHON, "-c", FORK_UNTIL_REFUSED])
        .output()
        .expect("starts");
    let count: u32 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a count");
    assert!((10..20).contains(&count), "{count} processes of 20");
}

/// Forks children that only wait, until the kernel refuses, and says how many there were.
const FORK_UNTIL_REFUSED: &str = "
import os, signal
made = 0
try:
    while made < 5000:
        if os.fork() == 0:
            signal.pause()
        made += 1
except BlockingIOError:
    pass
print(made, flush=True)
";

#[tokio::test]
async fn a_fork_bomb_stops_at_its_limit_and_leaves_nobody() {
    if !installed("forking", PYTHON) {
        return;
    }
    let data = Data::new();
    let spawner = data.spawner().await;
    let limits = Limits { pids: 40, ..Limits::default() };
    let spec = ParkSpec { limits, ..ParkSpec::default() };
    let parked = spawner.park(&spec).await.expect("parks");
    let binding = Binding { pids: Some(limits.pids), ..Binding::default() };
    let (ran, _) = run_in(parked, binding, &job(&[PYTHON, "-c", FORK_UNTIL_REFUSED])).await.expect("runs");
    let count: u32 = ran.stdout.trim().parse().expect("a count");
    assert!((20..40).contains(&count), "{count} processes of 40");
    spawner.stop().await;
}

#[tokio::test]
async fn the_control_group_alone_bounds_processes() {
    let data = Data::new();
    let spawner = data.spawner().await;
    if matches!(spawner.cgroups().hierarchy(), Hierarchy::Absent { .. }) || !installed("forking", PYTHON) {
        support::skipped(format_args!("no control group may be written"));
        return;
    }
    let spec = ParkSpec { limits: Limits { pids: 30, ..Limits::default() }, ..ParkSpec::default() };
    // Without the rlimit that a binding brings.
    let ran = run(&spawner, &spec, Binding::default(), &job(&[PYTHON, "-c", FORK_UNTIL_REFUSED])).await.expect("runs");
    let count: u32 = ran.stdout.trim().parse().expect("a count");
    assert!((10..30).contains(&count), "{count} processes of 30");
    spawner.stop().await;
}

#[tokio::test]
async fn memory_beyond_the_limit_ends_this_instance_alone() {
    let data = Data::new();
    let spawner = data.spawner().await;
    if matches!(spawner.cgroups().hierarchy(), Hierarchy::Absent { .. }) || !installed("memory", PYTHON) {
        support::skipped(format_args!("no control group may be written"));
        return;
    }
    let neighbour = spawner.park(&ParkSpec::default()).await.expect("parks");
    let mut neighbour =
        claim(neighbour, Binding::default(), &job(&["/bin/sh", "-c", "sleep 0.2; echo alive"])).await.expect("claims");
    let parked = spawner.park(&ParkSpec::default()).await.expect("parks");
    parked.life.set_limits(&Limits { memory: 48 << 20, ..Limits::default() }).expect("limits");
    assert_eq!(parked.life.memory_kills(), 0);
    assert!(parked.life.memory().is_some_and(|bytes| bytes < 48 << 20));
    let greedy = job(&[PYTHON, "-c", "x = bytearray(b'x') * (400 << 20); print(len(x))"]);
    let (ran, exit) = run_in(parked, Binding::default(), &greedy).await.expect("runs");
    assert!(matches!(ran.outcome, Outcome::Ended { signal: Some(9), .. }), "{ran:?}");
    assert_eq!(ran.stdout, "");
    assert!(exit.memory_kills > 0);

    assert_eq!(neighbour.next().await, Some(SUCCESS));
    rustix::net::shutdown(&neighbour.control, rustix::net::Shutdown::Both).expect("ends");
    assert_eq!(neighbour.life.gone().await.memory_kills, 0);
    assert_eq!(neighbour.finish().await.0, "alive\n");
    spawner.stop().await;
}

#[tokio::test]
async fn processor_time_is_told_with_and_without_control_groups() {
    let mut data = Data::new();
    for groups in [None, Some(Cgroups::at(Hierarchy::Absent { why: String::new() }))] {
        data.config.cgroups = groups;
        let spawner = data.spawner().await;
        let parked = spawner.park(&ParkSpec::default()).await.expect("parks");
        let burn = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done";
        let before = parked.life.cpu_nanos().expect("is counted");
        let mut running = claim(parked, Binding::default(), &job(&["/bin/sh", "-c", burn])).await.expect("claims");
        assert_eq!(running.next().await, Some(SUCCESS));
        // The process has ended, the instance has not.
        let used = running.life.cpu_nanos().expect("is counted") - before;
        assert!((50_000_000..60_000_000_000).contains(&used), "{used}");
        rustix::net::shutdown(&running.control, rustix::net::Shutdown::Both).expect("ends");
        running.finish().await;
        assert_eq!(running.life.cpu_nanos(), None, "nothing is told of what is gone");
        spawner.stop().await;
    }
}

#[tokio::test]
async fn what_fills_tmp_counts_as_memory() {
    let data = Data::new();
    let spawner = data.spawner().await;
    if matches!(spawner.cgroups().hierarchy(), Hierarchy::Absent { .. }) {
        support::skipped(format_args!("no control group may be written"));
        return;
    }
    let limits = Limits { memory: 24 << 20, ..Limits::default() };
    let spec = ParkSpec { limits, ..ParkSpec::default() };
    let parked = spawner.park(&spec).await.expect("parks");
    let fill = job(&["/bin/sh", "-c", "head -c 50000000 /dev/zero > /tmp/fill"]);
    let (ran, exit) = run_in(parked, Binding::default(), &fill).await.expect("runs");
    assert_ne!(ran.outcome, SUCCESS);
    assert!(exit.memory_kills > 0);
    spawner.stop().await;
}

/// The process that started `pid`.
fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("lives");
    status.lines().find_map(|line| line.strip_prefix("PPid:\t")?.parse().ok()).expect("has a parent")
}

/// Descriptors of the processes that `ours` picks by their number on the host.
fn processes(ours: impl Fn(&str) -> bool) -> Vec<OwnedFd> {
    let all = fs::read_dir("/proc").expect("lists").flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let numbers = all.filter(|pid| ours(pid)).filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw));
    // One that has ended in between needs no waiting for.
    numbers.filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).collect()
}

/// Every process in the pid namespace that begins with `pid`.
fn members(pid: u32) -> Vec<OwnedFd> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(&pid.to_string()).expect("lives");
    processes(|pid| namespace(pid).as_ref() == Some(&own))
}

/// Waits until a process has ended, however long that takes within the test's own patience.
fn wait_for_end(process: impl AsFd) {
    let patience = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
    let mut source = [PollFd::new(&process, PollFlags::IN)];
    assert_eq!(poll(&mut source, Some(&patience)), Ok(1), "a process outlived what held it");
}

fn descriptor_of(pid: u32) -> OwnedFd {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    pidfd_open(pid, PidfdFlags::empty()).expect("lives")
}

/// Folders of control groups that carry the mark of `data`.
fn group_folders(data: &Data) -> Vec<std::path::PathBuf> {
    let path = fs::canonicalize(data.folder.path()).expect("there");
    taper_local::sandbox::cgroup::Cgroups::traces(&taper_local::sandbox::Mark::of(&path))
}

fn instance_groups(data: &Data) -> usize {
    group_folders(data)
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("lists").flatten())
        .filter(|entry| entry.path().is_dir())
        .count()
}

/// What is in the folders of the platforms' lives besides what their spawners have there.
fn run_folder(data: &Data) -> BTreeSet<String> {
    let lives = fs::read_dir(data.folder.path().join("run")).into_iter().flatten().flatten();
    let names = lives.flat_map(|life| fs::read_dir(life.path()).into_iter().flatten().flatten());
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name != "root" && name != "adopt.sock").collect()
}

const FAMILY: &str = "sleep 1000 & setsid sleep 1000 & (sleep 1000 &) ; wait";

#[tokio::test]
async fn nothing_is_left_of_an_instance_or_of_the_platform() {
    let data = Data::new();
    let spawner = data.spawner().await;
    let parked = spawner.park(&ParkSpec::default()).await.expect("parks");
    let running = claim(parked, Binding::default(), &job(&["/bin/sh", "-c", FAMILY])).await.expect("claims");
    let table = fs::read_to_string("/proc/self/mountinfo").expect("reads");
    let path = data.folder.path().to_string_lossy().into_owned();
    assert!(!table.contains(&path), "a mount shows on the host: {table}");
    assert_eq!(run_folder(&data).len(), 1);

    let family = members(running.life.pid());
    assert!(!family.is_empty());
    running.life.kill();
    let exit = running.life.gone().await;
    assert_eq!((exit.code, exit.signal, exit.memory_kills), (None, Some(9), 0));
    family.iter().for_each(wait_for_end);
    assert_eq!((run_folder(&data), instance_groups(&data)), (BTreeSet::new(), 0));

    spawner.stop().await;
    assert_eq!(group_folders(&data), Vec::<std::path::PathBuf>::new());
    assert_eq!(fs::read_dir(data.folder.path()).expect("lists").count(), 0);
}

#[tokio::test]
async fn a_parked_sandbox_that_is_dropped_is_gone() {
    let data = Data::new();
    let spawner = data.spawner().await;
    let parked = spawner.park(&ParkSpec::default()).await.expect("parks");
    let process = descriptor_of(parked.life.pid());
    drop(parked);
    wait_for_end(process);
    // Asked for and given up before the answer: the same.
    for _ in 0..8 {
        let spec = ParkSpec::default();
        let asking = spawner.park(&spec);
        tokio::select! {
            biased;
            _ = asking => {}
            () = tokio::task::yield_now() => {}
        }
    }
    spawner.stop().await;
    assert_eq!(fs::read_dir(data.folder.path()).expect("lists").count(), 0);
    assert!(group_folders(&data).is_empty());
}

#[tokio::test]
async fn what_ends_a_terminals_processes_does_not_end_the_spawner() {
    let data = Data::new();
    let spawner = data.spawner().await;
    let parked = spawner.park(&ParkSpec::default()).await.expect("parks");
    let process = Pid::from_raw(i32::try_from(parent(parked.life.pid())).expect("a pid")).expect("a pid");
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM] {
        kill_process(process, signal).expect("sends");
    }
    // And none of that is inherited by what runs inside.
    let command = job(&["/bin/sh", "-c", "kill -TERM $$; echo survived"]);
    let (ran, _) = run_in(parked, Binding::default(), &command).await.expect("runs");
    assert_eq!((ran.outcome, ran.stdout.as_str()), (Outcome::Ended { code: None, signal: Some(15) }, ""));
    spawner.park(&ParkSpec::default()).await.expect("parks again");
    spawner.stop().await;
}

#[tokio::test]
async fn closing_the_control_channel_ends_the_instance() {
    let data = Data::new();
    let spawner = data.spawner().await;
    let parked = spawner.park(&ParkSpec::default()).await.expect("parks");
    drop(parked.control);
    assert_eq!(parked.life.gone().await.code, Some(0));
    spawner.stop().await;
}

#[tokio::test]
async fn when_the_spawner_is_killed_every_instance_ends_and_is_cleared_up() {
    let data = Data::new();
    let spawner = data.spawner().await;
    let mut running = Vec::new();
    for _ in 0..3 {
        let parked = spawner.park(&ParkSpec::default()).await.expect("parks");
        running.push(claim(parked, Binding::default(), &job(&["/bin/sh", "-c", FAMILY])).await.expect("claims"));
    }
    let waiting = spawner.park(&ParkSpec::default()).await.expect("parks");
    let family: Vec<_> = running.iter().flat_map(|one| members(one.life.pid())).collect();
    let process = Pid::from_raw(i32::try_from(parent(waiting.life.pid())).expect("a pid")).expect("a pid");
    kill_process(process, Signal::KILL).expect("kills");
    spawner.gone().await;
    family.iter().for_each(wait_for_end);
    for one in &running {
        one.life.gone().await;
    }
    waiting.life.gone().await;
    assert_eq!((run_folder(&data), instance_groups(&data)), (BTreeSet::new(), 0));
    assert!(matches!(spawner.park(&ParkSpec::default()).await, Err(Error::SpawnerGone)));
    assert!(matches!(spawner.tree(data.folder.path()).await, Err(Error::SpawnerGone)));
    spawner.stop().await;
    assert!(group_folders(&data).is_empty());
}

/// A platform in another process that holds three instances, its spawner, and every process of theirs.
fn held(data: &Data) -> (std::process::Child, u32, Vec<OwnedFd>) {
    let mut platform = Command::new(STAND_IN)
        .arg("hold")
        .arg(data.folder.path())
        .arg("3")
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    BufReader::new(platform.stdout.take().expect("piped")).read_line(&mut line).expect("reads");
    let told: Value = serde_json::from_str(&line).unwrap_or_else(|why| panic!("{why}: {line}"));
    let pids: Vec<u32> = told["instances"].as_array().expect("a list").iter().map(pid).collect();
    let family: Vec<_> = pids.iter().flat_map(|pid| members(*pid)).collect();
    assert!(family.len() >= 6, "{}", family.len());
    (platform, parent(pids[0]), family)
}

#[tokio::test]
async fn when_the_platform_is_killed_every_instance_ends_and_the_spawner_or_the_next_start_clears_up() {
    let data = Data::new();
    for spawner_too in [false, true] {
        let (mut platform, spawner, family) = held(&data);
        let gone = descriptor_of(spawner);
        if spawner_too {
            // Stopped first, so that it cannot clear up after its spawner itself.
            for (pid, signal) in [(platform.id(), Signal::STOP), (spawner, Signal::KILL)] {
                kill_process(Pid::from_raw(pid.cast_signed()).expect("a pid"), signal).expect("signals");
            }
        }
        platform.kill().expect("kills");
        platform.wait().expect("ends");
        family.iter().for_each(wait_for_end);
        wait_for_end(gone);
        assert_eq!(run_folder(&data).is_empty(), !spawner_too);
        if spawner_too {
            let spawner = data.spawner().await;
            assert_eq!((run_folder(&data), instance_groups(&data)), (BTreeSet::new(), 0));
            spawner.stop().await;
        }
        assert_eq!(group_folders(&data), Vec::<std::path::PathBuf>::new());
        assert_eq!(fs::read_dir(data.folder.path()).expect("lists").count(), 0);
    }
}

fn pid(value: &Value) -> u32 {
    value.as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid")
}

#[tokio::test]
async fn processes_left_in_a_group_are_ended_by_the_next_start() {
    let data = Data::new();
    let spawner = data.spawner().await;
    let Hierarchy::V1 { memory: Some(memory), pids: Some(pids), .. } = spawner.cgroups().hierarchy().clone() else {
        support::skipped(format_args!("control groups of version 1 are needed"));
        return;
    };
    spawner.stop().await;
    let mut left = Command::new("sleep").arg("1000").spawn().expect("starts");
    for base in [memory, pids] {
        fs::create_dir_all(base.join("i99")).expect("makes");
        fs::write(base.join("i99/cgroup.procs"), left.id().to_string()).expect("moves");
    }
    // Its parent must collect it before the group can go, as init would.
    let reaper = std::thread::spawn(move || left.wait().expect("ends"));
    let spawner = data.spawner().await;
    assert_eq!(instance_groups(&data), 0);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&reaper.join().expect("ends")), Some(9));
    spawner.stop().await;
}

#[tokio::test]
async fn instances_share_nothing() {
    let data = Data::new();
    let spawner = data.spawner().await;
    let mut ids = BTreeSet::new();
    let mut spaces = BTreeSet::new();
    let write = job(&["/bin/sh", "-c", "echo secret > /tmp/mine; echo x > /dev/shm/mine; sleep 1000"]);
    let first = spawner.park(&ParkSpec::default()).await.expect("parks");
    let first = claim(first, Binding::default(), &write).await.expect("claims");
    let second = spawner.park(&ParkSpec::default()).await.expect("parks");
    for pid in [first.life.pid(), second.life.pid()] {
        ids.insert(fs::metadata(format!("/proc/{pid}/task")).expect("lives").uid());
        let status = fs::read_to_string(format!("/proc/{pid}/uid_map")).expect("reads");
        ids.insert(status.split_whitespace().nth(1).and_then(|id| id.parse().ok()).expect("a map"));
        for kind in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
            spaces.insert(fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("reads"));
            spaces.insert(fs::read_link(format!("/proc/self/ns/{kind}")).expect("reads"));
        }
    }
    assert_eq!(spaces.len(), 3 * 7, "{spaces:?}");
    if spawner.isolation() == Isolation::Full {
        assert!(ids.iter().filter(|id| **id >= 0x7000_0000).count() >= 2, "{ids:?}");
    }
    let look = job(&["/bin/ls", "/tmp", "/dev/shm"]);
    let (ran, _) = run_in(second, Binding::default(), &look).await.expect("runs");
    assert_eq!(ran.stdout, "/dev/shm:\n\n/tmp:\n");
    spawner.stop().await;
}

#[tokio::test]
async fn the_hosts_network_is_there_only_when_asked_for() {
    if !installed("connecting", PYTHON) {
        return;
    }
    let data = Data::new();
    let spawner = data.spawner().await;
    let host = TcpListener::bind("127.0.0.1:0").expect("listens");
    let port = host.local_addr().expect("bound").port();
    let connect = format!("import socket; print(socket.socket().connect_ex(('127.0.0.1', {port})))");
    for (network, answer) in [(NetworkSpace::Own, "111\n"), (NetworkSpace::Host, "0\n")] {
        let spec = ParkSpec { network, ..ParkSpec::default() };
        let ran = run(&spawner, &spec, Binding::default(), &job(&[PYTHON, "-c", &connect])).await.expect("runs");
        assert_eq!(ran.stdout, answer, "{network:?}: {}", ran.stderr);
    }
    spawner.stop().await;
}

#[tokio::test]
async fn abstract_sockets_of_the_host_are_out_of_reach_even_on_its_network() {
    if taper_local::sandbox::landlock_abi().is_none_or(|abi| abi < 6) || !installed("connecting", PYTHON) {
        support::skipped(format_args!("this kernel's landlock does not scope abstract sockets"));
        return;
    }
    let data = Data::new();
    let spawner = data.spawner().await;
    let name = format!("taper-test-{}", data.folder.path().display());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("listens");
    let connect = format!("import socket; print(socket.socket(socket.AF_UNIX).connect_ex('\\0{name}'))");
    let spec = ParkSpec { network: NetworkSpace::Host, ..ParkSpec::default() };
    let ran = run(&spawner, &spec, Binding::default(), &job(&[PYTHON, "-c", &connect])).await.expect("runs");
    assert_eq!(ran.stdout, "1\n", "{}", ran.stderr);
    spawner.stop().await;
}

#[tokio::test]
async fn only_folders_of_the_data_directory_are_bound() {
    let data = Data::new();
    let spawner = data.spawner().await;
    let inside = data.code("x", "");
    assert!(matches!(spawner.tree(&inside).await, Ok(Tree::Mount(_))));
    for path in [Path::new("/etc"), Path::new("/"), &inside.join("../../etc"), &inside.join("missing")] {
        assert!(matches!(spawner.tree(path).await, Err(Error::Tree { .. })), "{} was bound", path.display());
    }
    spawner.stop().await;
}

#[tokio::test]
async fn a_claim_that_makes_no_sense_confines_nothing_and_runs_nothing() {
    let data = Data::new();
    let spawner = data.spawner().await;
    let parked = spawner.park(&ParkSpec::default()).await.expect("parks");
    let control = parked.control.try_clone().expect("duplicates");
    support::channel::send(&control, &job(&["/bin/echo", "ran"]), &[]).expect("sends");
    let answer = support::channel::receive::<Outcome>(&control).expect("answers").expect("an outcome").0;
    assert!(matches!(answer, Outcome::Refused(_)), "{answer:?}");
    drop((control, parked.control));
    parked.life.gone().await;
    let mut output = String::new();
    fs::File::from(parked.stdout).read_to_string(&mut output).expect("reads");
    assert_eq!(output, "");
    spawner.stop().await;
}

#[tokio::test]
async fn an_interpreter_outside_usr_is_seen_at_its_own_path_and_nothing_around_it() {
    let mut data = Data::new();
    // Not in /tmp, which every instance has for itself.
    let Ok(home) = tempfile::tempdir_in("/opt") else {
        support::skipped(format_args!("a folder in /opt is needed"));
        return;
    };
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("sets");
    let version = home.path().join("versions/9.9");
    fs::create_dir_all(version.join("bin")).expect("makes");
    fs::write(home.path().join("private"), "key").expect("writes");
    fs::write(version.join("bin/tool"), "#!/bin/sh\necho tool\n").expect("writes");
    fs::set_permissions(version.join("bin/tool"), fs::Permissions::from_mode(0o755)).expect("sets");
    data.config.interpreters = vec![version.clone()];
    let spawner = data.spawner().await;
    let script = format!("{0}/versions/9.9/bin/tool; ls -A {0} {0}/versions", home.path().display());
    let ran =
        run(&spawner, &ParkSpec::default(), Binding::default(), &job(&["/bin/sh", "-c", &script])).await.expect("runs");
    let want = format!("tool\n{0}:\nversions\n\n{0}/versions:\n9.9\n", home.path().display());
    assert_eq!(ran.stdout, want, "{}", ran.stderr);
    spawner.stop().await;

    for folder in ["/root", "/tmp/versions/1", "/usr"] {
        data.config.interpreters = vec![folder.into()];
        let refused = Spawner::start_with(&data.config, Path::new(STAND_IN), &[]).await;
        assert!(matches!(refused, Err(Error::Spawner(_))), "{folder}: {refused:?}");
    }
}

#[tokio::test]
async fn sockets_work_however_long_the_path_is() {
    let outer = tempfile::tempdir().expect("makes");
    let long = outer.path().join("a-folder-with-a-long-name-".repeat(8));
    fs::create_dir_all(&long).expect("makes");
    let mut data = Data::new();
    data.config.data.clone_from(&long);
    let spawner = data.spawner().await;
    let parked = spawner.park(&ParkSpec::default()).await.expect("parks");
    UnixStream::connect(&parked.listener).expect("connects");
    let mode = fs::metadata(long.join("run")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    spawner.stop().await;
    assert_eq!(fs::read_dir(&long).expect("lists").count(), 0);
}

#[tokio::test]
async fn bursts_of_sandboxes_are_made_and_taken_down_and_nothing_grows() {
    let data = Data::new();
    let spawner = data.spawner().await;
    let first = spawner.park(&ParkSpec::default()).await.expect("parks");
    let process = parent(first.life.pid());
    let grown = || {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).expect("lists").count();
        let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).expect("reads").lines().count();
        (descriptors, mounts)
    };
    let before = grown();
    for _ in 0..3 {
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let spawner = spawner.clone();
            asked.spawn(async move { spawner.park(&ParkSpec::default()).await });
        }
        let parked = asked.join_all().await;
        let parked: Vec<_> = parked.into_iter().collect::<Result<_, _>>().expect("all are made");
        let pids: BTreeSet<u32> = parked.iter().map(|one| one.life.pid()).collect();
        assert_eq!(pids.len(), 64);
        for one in parked {
            one.life.kill();
            one.life.gone().await;
        }
    }
    assert_eq!(grown(), before);
    assert_eq!((run_folder(&data).len(), instance_groups(&data)), (1, group_folders(&data).len()));
    drop(first);
    spawner.stop().await;
    assert_eq!(fs::read_dir(data.folder.path()).expect("lists").count(), 0);
    assert!(group_folders(&data).is_empty());
}

#[tokio::test]
async fn without_isolation_everything_is_still_cleared_up() {
    let data = Data::with(Isolation::None);
    let spawner = data.spawner().await;
    let folder = data.code("hello", "#!/bin/sh\necho hello\n");
    let parked = spawner.park(&ParkSpec::default()).await.expect("parks");
    let layout = parked.layout.clone();
    let binding = Binding {
        code: Some(spawner.tree(&folder).await.expect("binds")),
        secrets: vec![Secret { name: "key".to_owned(), value: b"value".to_vec() }],
        ..Binding::default()
    };
    let script = format!(
        "{}/hello; cat {}/key; echo; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; ulimit -c",
        layout.code.display(),
        layout.secrets.display()
    );
    let (ran, _) = run_in(parked, binding, &job(&["/bin/sh", "-c", &script])).await.expect("runs");
    assert_eq!(ran.stdout, "hello\nvalue\nNoNewPrivs:\t1\nSeccomp:\t2\n0\n", "{}", ran.stderr);
    assert!(!layout.secrets.exists());
    spawner.stop().await;
}

/// A family of sessions within sessions, which tells the first when the last is there, and waits.
const SESSIONS: &str = "#!/bin/sh
case $1 in
0) echo there > \"$2\"; sleep 1000 ;;
*) setsid \"$0\" $(($1 - 1)) \"$2\" & wait ;;
esac
";

#[tokio::test]
async fn without_isolation_whoever_orphaned_itself_is_ended_too() {
    let data = Data::with(Isolation::None);
    let spawner = data.spawner().await;
    let folder = data.code("sessions", SESSIONS);
    let token = format!("TAPER_TEST={}", data.folder.path().display());
    let ours = |pid: &str| fs::read_to_string(format!("/proc/{pid}/environ")).is_ok_and(|env| env.contains(&token));
    let mut family = Vec::new();
    // One instance is ended by itself, the other with the spawner.
    let mut instances = Vec::new();
    for _ in 0..2 {
        let parked = spawner.park(&ParkSpec::default()).await.expect("parks");
        let (code, temporary) = (parked.layout.code.clone(), parked.layout.temporary.clone());
        let binding = Binding { code: Some(spawner.tree(&folder).await.expect("binds")), ..Binding::default() };
        let script =
            format!("cd {0}; mkfifo f; {1}/sessions 3 {0}/f & read it < f", temporary.display(), code.display());
        let mut command = job(&["/bin/sh", "-c", &script]);
        command.env.insert("TAPER_TEST".to_owned(), data.folder.path().to_string_lossy().into_owned());
        let mut running = claim(parked, binding, &command).await.expect("claims");
        assert_eq!(running.next().await, Some(SUCCESS));
        family = processes(ours);
        instances.push(running);
    }
    assert!(family.len() >= 10, "only {} processes", family.len());
    instances.pop().expect("two").life.kill();
    spawner.stop().await;
    family.iter().for_each(wait_for_end);
    assert_eq!(processes(ours).len(), 0);
}
