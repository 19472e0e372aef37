//! One stream, and several who want it: one has it at a time, also when one was taken for dead and was not.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use taper_jetstream::{Error, JetStream};
use taper_queue::{
    Config, Error as Refused, Queue,
    conformance::{entry, unlimited},
};
use tokio::time::Instant;

use crate::{
    open, run_all,
    server::{Server, is_installed},
};

const KILLS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_one_owner() {
    if !is_installed() {
        return;
    }
    let server = Server::start();
    let (address, first, second) = (server.address(), server.home("first"), server.home("second"));
    let one = open(&address, &first).await;
    let id = std::fs::read_to_string(first.join("owner")).unwrap();
    let other = JetStream::open(&address, &second, Config::default(), unlimited()).await.map(drop).unwrap_err();
    let text = other.to_string();
    assert!(matches!(other, Error::Owned { .. }) && text.contains(id.trim()) && text.contains("?stream="), "{text}");
    let same = JetStream::open(&address, &first, Config::default(), unlimited()).await.map(drop).unwrap_err();
    assert!(matches!(same, Error::Medium(_)), "{same}");
    // Side by side, with a stream each.
    let beside = open(&server.at("?stream=OTHER").parse().unwrap(), &second).await;
    one.push(entry("f", b"1")).await.unwrap();
    beside.push(entry("f", b"2")).await.unwrap();
    assert_eq!((one.stats().depth, beside.stats().depth), (1, 1));
    beside.close().await;
    // Given up, it is anybody's at once.
    one.close().await;
    assert!(matches!(one.push(entry("f", b"3")).await, Err(Refused::Stopped)));
    assert!(matches!(one.lease().await, Err(Refused::Stopped)));
    let begun = Instant::now();
    let two = open(&address, &second).await;
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert_eq!(run_all(&two).await.len(), 1);
}

/// A platform in a process of its own, which accepts as fast as it can, and says so.
struct Platform {
    child: Child,
    said: mpsc::Receiver<String>,
}

impl Platform {
    fn start(server: &Server, home: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "owners::child", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{} {}", server.at(""), home.display()).unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (tell, said) = mpsc::channel();
        thread::spawn(move || {
            // The child ends when nobody holds the other end.
            let _stdin = stdin;
            let mut line = String::new();
            // A line without its end was cut off by a kill.
            while out.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
                if let Some(said) = line.trim_end_matches('\n').strip_prefix("child ") {
                    tell.send(said.to_owned()).ok();
                }
                line.clear();
            }
        });
        Self { child, said }
    }

    /// Its next so many words that calls were accepted; those that it says else are dropped.
    fn accepted(&self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        while ids.len() < count {
            let line = self.said.recv_timeout(Duration::from_secs(60)).expect("the child works");
            ids.extend(line.strip_prefix("accepted ").map(str::to_owned));
        }
        ids
    }

    fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.said.iter().filter_map(|line| line.strip_prefix("accepted ").map(str::to_owned)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by those above and below it"]
async fn child() {
    let mut told = String::new();
    std::io::stdin().read_line(&mut told).unwrap();
    let Some((address, home)) = told.trim_end().split_once(' ') else { return };
    // When the parent is gone, so is this.
    thread::spawn(|| {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        std::process::exit(1);
    });
    println!(); // ends what the test harness may have begun to say
    let queue = open(&address.parse().unwrap(), Path::new(home)).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let queue = queue.clone();
        tasks.spawn(async move {
            for n in 0_u32.. {
                let size = if n % 100 == 99 { 2 << 20 } else { 300 };
                match queue.push(entry("f", &vec![b'x'; size])).await {
                    Ok(accepted) => println!("child accepted {}", accepted.id),
                    Err(error) => {
                        println!("child refused {error}");
                        if matches!(error, Refused::Lost(_)) {
                            return;
                        }
                    }
                }
            }
        });
    }
    tasks.join_all().await;
    println!("child over");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_is_killed_has_its_stream_back_at_once_and_all_that_it_accepted() {
    if !is_installed() {
        return;
    }
    let server = Server::start();
    let home = server.home("home");
    let mut accepted = HashSet::new();
    for kill in 0..KILLS {
        let platform = Platform::start(&server, &home);
        accepted.extend(platform.accepted(50 + 37 * kill));
        accepted.extend(platform.kill());
    }
    let queue = open(&server.address(), &home).await;
    let ran = run_all(&queue).await;
    let once: HashSet<String> = ran.iter().cloned().collect();
    println!("{} accepted, {} ran, over {KILLS} kills", accepted.len(), ran.len());
    assert_eq!(once.len(), ran.len());
    assert_eq!(accepted.difference(&once).count(), 0, "what was accepted ran");
    // What was on its way at a kill may be there, too.
    assert!(ran.len() <= accepted.len() + KILLS * 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_was_taken_for_dead_writes_nothing_any_more() {
    if !is_installed() {
        return;
    }
    let server = Server::start();
    let platform = Platform::start(&server, &server.home("first"));
    let mut accepted = platform.accepted(300);
    let pid = Pid::from_child(&platform.child);
    kill_process(pid, Signal::STOP).unwrap();
    // As if it were a minute later.
    let client = async_nats::connect(server.at("")).await.unwrap();
    let last =
        client.request("$JS.API.STREAM.MSG.GET.TAPER", r#"{"last_by_subj":"TAPER.owner"}"#.into()).await.unwrap();
    let last: serde_json::Value = serde_json::from_slice(&last.payload).unwrap();
    let headers =
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, last["message"]["hdrs"].as_str().unwrap())
            .unwrap();
    let headers = String::from_utf8(headers).unwrap();
    let owner = headers.lines().find_map(|line| line.strip_prefix("Taper:")).unwrap().trim();
    let mut owner: serde_json::Value = serde_json::from_str(owner).unwrap();
    owner["owner"]["at"] = 5.into();
    let headers = async_nats::HeaderMap::from_iter([("Taper".parse().unwrap(), owner.to_string().parse().unwrap())]);
    client.request_with_headers("TAPER.owner", headers, "".into()).await.unwrap();
    let second = open(&server.address(), &server.home("second")).await;
    let depth = second.stats().depth;
    let mut ours = Vec::new();
    for n in 0..50 {
        ours.push(second.push(entry("g", &[n])).await.unwrap().id.to_string());
        if n == 10 {
            kill_process(pid, Signal::CONT).unwrap();
        }
    }
    let mut refused = String::new();
    for line in platform.said.iter() {
        match line.split_once(' ') {
            Some(("accepted", id)) => accepted.push(id.to_owned()),
            Some(("refused", why)) => refused = why.to_owned(),
            _ => break,
        }
    }
    let id = std::fs::read_to_string(server.home("second").join("owner")).unwrap();
    assert!(refused.contains("has taken over") && refused.contains(id.trim()), "{refused}");
    platform.kill();
    assert_eq!(second.stats().depth, depth + 50);
    second.close().await;
    let second = open(&server.address(), &server.home("second")).await;
    assert_eq!(second.stats().depth, depth + 50, "nothing came from elsewhere");
    let ran: HashSet<String> = run_all(&second).await.into_iter().collect();
    assert!(accepted.iter().chain(&ours).all(|id| ran.contains(id)), "what either of them accepted ran");
}
