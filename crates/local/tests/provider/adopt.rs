//! Instances that outlive a platform which was killed, and what becomes of them: the next one adopts them, or they end and nothing
//! is left.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::Command,
    time::Duration,
};

use futures_util::StreamExt;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, connect, recv, send, socket},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde_json::{Value, json};
use taper_provider::{LogLine, LogQuery, Provider};
use tokio::time::Instant;

use crate::{
    held::{Held, PROGRAM, functions, told},
    world::{World, works},
};

/// A world without a platform of its own.
async fn empty() -> World {
    let world = World::with(|_| ()).await;
    world.local.stop().await;
    world
}

fn names(said: &Value) -> usize {
    said["before"].as_array().expect("names").len()
}

fn ended(process: Pid) -> impl Fn() {
    let process = pidfd_open(process, PidfdFlags::empty()).expect("lives");
    move || {
        let patience = Timespec { tv_sec: 30, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)), Ok(1), "it goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_platform_has_the_same_instances() {
    for isolation in ["auto", "none"] {
        let world = empty().await;
        let functions = functions(&world);
        let told = told(&functions, &json!({ "adopt": "60s", "isolation": isolation }));
        let mut platform = Held::start(&world, &told);
        let said = platform.hear();
        assert_eq!(names(&said), 0);
        platform.leaves(functions.len());
        // Also the one after the next.
        for _ in 0..2 {
            platform.kill();
            platform = Held::start(&world, &told);
            let heard = platform.hear();
            assert_eq!(names(&heard), functions.len(), "{isolation}: {heard}");
            assert_eq!((&heard["answers"], &heard["measured"]), (&said["answers"], &said["measured"]), "{isolation}");
            assert_eq!(platform.ask()["answers"], said["answers"], "{isolation}");
        }
        platform.end();
        // Its log went on: each of three platforms called it, the later ones twice. What the first two had read and not written yet
        // went with them.
        let reader = world.another().await;
        let lines: Vec<LogLine> = reader.logs(functions[0].id.function(), LogQuery::default()).collect().await;
        let said = |text: &str| lines.iter().filter(|line| line.text == text).count();
        assert!((2..=5).contains(&said("called")) && said("began") <= 1, "{isolation}: {lines:?}");
        reader.stop().await;
        world.assert_nothing_left();
        assert!(!world.dir.path().join("local/run").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_platform_that_lives_does_not_matter() {
    let world = empty().await;
    let functions = functions(&world);
    let told = told(&functions, &json!({ "adopt": "60s" }));
    let (mut lives, mut dies) = (Held::start(&world, &told), Held::start(&world, &told));
    let (stays, said) = (lives.hear(), dies.hear());
    dies.leaves(functions.len());
    dies.kill();
    let mut next = Held::start(&world, &told);
    let heard = next.hear();
    assert_eq!((names(&heard), &heard["answers"]), (functions.len(), &said["answers"]));
    assert_eq!(lives.ask()["answers"], stays["answers"]);
    lives.end();
    assert_eq!(next.ask()["answers"], said["answers"]);
    next.end();
    world.assert_nothing_left();
    assert!(!world.dir.path().join("local/run").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_for_an_ordinary_account() {
    const ACCOUNT: u32 = 4321;
    if !rustix::process::geteuid().is_root() || !works("another account", &["setpriv", "--version"]) {
        return;
    }
    let world = empty().await;
    let functions = functions(&world);
    // The build folder may be closed to others.
    let program = world.dir.path().join("program");
    assert!(Command::new("cp").arg(PROGRAM).arg(&program).status().expect("copies").success());
    fs::remove_dir_all(world.dir.path().join("local")).expect("removes");
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).expect("sets");
    chown(world.dir.path(), Some(ACCOUNT), Some(ACCOUNT)).expect("gives");
    let told = told(&functions, &json!({ "adopt": "60s" }));
    let start = || {
        let account = ACCOUNT.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &account, "--regid", &account, "--clear-groups"]).arg(&program);
        Held::by(command.arg("hold").arg(world.dir.path()).arg(told.to_string()).current_dir("/"))
    };
    let mut platform = start();
    let said = platform.hear();
    platform.leaves(functions.len());
    platform.kill();
    let mut platform = start();
    let heard = platform.hear();
    assert_eq!((names(&heard), &heard["answers"]), (functions.len(), &said["answers"]));
    platform.end();
    assert!(!world.dir.path().join("local/run").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_successor_all_ends_and_the_spawner_clears_up() {
    let world = empty().await;
    let mut platform = Held::start(&world, &told(&functions(&world), &json!({ "adopt": "500ms" })));
    platform.hear();
    let (spawner, killed) = (ended(platform.spawner()), Instant::now());
    platform.kill();
    spawner();
    assert!(killed.elapsed() >= Duration::from_millis(500), "{:?}", killed.elapsed());
    world.assert_nothing_left();
    assert!(!world.dir.path().join("local/run").exists());
    // What only a start removes: the packet filter.
    world.another().await.stop().await;
}

/// Whether the next platform, whose program this is, is given nothing, and works all the same.
async fn adopts_nothing(world: &World, program: &Path, told: &Value, said: &Value) {
    let mut next = Held::by(Command::new(program).arg("hold").arg(world.dir.path()).arg(told.to_string()));
    let heard = next.hear();
    assert_eq!(names(&heard), 0);
    for (name, answer) in heard["answers"].as_object().expect("answers") {
        assert!(!answer.as_str().expect("text").starts_with("fault"), "{name}: {answer}");
        assert_ne!(Some(answer), said["answers"].get(name), "{name}");
    }
    next.end();
    world.assert_nothing_left();
    assert!(!world.dir.path().join("local/run").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_dies_with_its_directory_leaves_no_groups() {
    let world = empty().await;
    let functions = functions(&world);
    let mut platform = Held::start(&world, &told(&functions, &json!({ "adopt": "500ms" })));
    platform.hear();
    platform.leaves(functions.len());
    let (spawner, traces) = (ended(platform.spawner()), world.traces());
    platform.kill();
    fs::remove_dir_all(world.dir.path().join("local")).expect("removes");
    spawner();
    assert_eq!(traces(), 0);
    // What only a start removes: the packet filter.
    world.another().await.stop().await;
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_build_or_other_settings_adopt_nothing() {
    let world = empty().await;
    let functions = functions(&world);
    let (as_before, otherwise) = (
        told(&functions, &json!({ "adopt": "60s" })),
        told(&functions, &json!({ "adopt": "60s", "isolation": "none" })),
    );
    let copy = world.dir.path().join("program");
    assert!(Command::new("cp").arg(PROGRAM).arg(&copy).status().expect("copies").success());
    for (program, next) in [(copy.as_path(), &as_before), (Path::new(PROGRAM), &otherwise)] {
        let mut platform = Held::start(&world, &as_before);
        let said = platform.hear();
        let spawner = ended(platform.spawner());
        platform.leaves(functions.len());
        platform.kill();
        adopts_nothing(&world, program, next, &said).await;
        spawner();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_else_knocks_is_given_nothing() {
    let world = empty().await;
    let functions = functions(&world);
    let told = told(&functions, &json!({ "adopt": "60s" }));
    let mut platform = Held::start(&world, &told);
    let said = platform.hear();
    let folder = world.dir.path().join("local/run/g1");
    assert_eq!(fs::metadata(&folder).expect("there").permissions().mode() & 0o777, 0o700);
    let knock = |word: &[u8]| {
        let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("a socket");
        connect(&socket, &SocketAddrUnix::new(folder.join("adopt.sock")).expect("short")).expect("connects");
        send(&socket, word, SendFlags::NOSIGNAL).expect("sends");
        socket
    };
    // While the platform lives nobody is let in, whatever it says.
    let early = knock(br#"{"Adopt":{"identity":""}}"#);
    assert_eq!(recv(&early, &mut [0_u8; 64], RecvFlags::DONTWAIT), Err(Errno::AGAIN));
    drop(early);
    platform.leaves(functions.len());
    platform.kill();
    for word in [br#"{"Adopt":{"identity":"","more":1}}"#.as_slice(), b"\"End\"", b"{\"Park\":{}}", b"\xff"] {
        let socket = knock(word);
        assert!(!matches!(recv(&socket, &mut [0_u8; 64], RecvFlags::empty()), Ok((1.., _))), "{word:?} was answered");
    }
    let mut next = Held::start(&world, &told);
    let heard = next.hear();
    assert_eq!((names(&heard), &heard["answers"]), (functions.len(), &said["answers"]));
    next.end();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spawner_that_does_not_answer_is_not_waited_for() {
    let world = empty().await;
    let functions = functions(&world);
    let told = told(&functions, &json!({ "adopt": "60s" }));
    let mut platform = Held::start(&world, &told);
    let said = platform.hear();
    let pid = platform.spawner();
    let spawner = ended(pid);
    platform.leaves(functions.len());
    kill_process(pid, Signal::STOP).expect("stops");
    platform.kill();
    adopts_nothing(&world, Path::new(PROGRAM), &told, &said).await;
    spawner();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_died_meanwhile_is_cleared_up_and_says_so() {
    let world = empty().await;
    let revision = world.classic("short", &["cat"]);
    let other = world.classic("long", &["cat"]);
    let told = told(&[revision.clone(), other], &json!({ "adopt": "60s", "pool": { "ceiling": 0 } }));
    let mut platform = Held::start(&world, &told);
    platform.hear();
    let processes = world.processes();
    if processes.is_empty() {
        return;
    }
    // Control groups are numbered in the order of starting: after the one for trial comes that of the first function.
    let first = Pid::from_raw(processes[0]).expect("a process");
    let (first, gone) = (first, ended(first));
    platform.leaves(2);
    platform.kill();
    kill_process(first, Signal::KILL).expect("kills");
    gone();
    let mut next = Held::start(&world, &told);
    let heard = next.hear();
    assert_eq!(heard["before"].as_array().expect("names").len(), 1, "{heard}");
    assert!(heard["before"][0].as_str().expect("a name").starts_with("long-"), "{heard}");
    assert_eq!(heard["answers"].as_object().expect("answers").len(), 2);
    next.end();
    let reader = world.another().await;
    let lines: Vec<LogLine> = reader.logs(revision.id.function(), LogQuery::default()).collect().await;
    let lines: Vec<String> = lines.into_iter().map(|line| line.text).collect();
    assert!(lines.contains(&"the instance ended: while no platform ran: killed by signal 9".to_owned()), "{lines:?}");
    reader.stop().await;
    world.assert_nothing_left();
}
