//! The program behind the tests of this crate: spawner and first process of each sandbox, in place of `taper`.
//!
//! `connect DATA` parks and connects one instance and waits to be killed; `try DATA [--isolation L] [--code DIR] [--env K=V]… -- COMMAND…` runs one command in a sandbox and prints its output; `hold DATA N` parks and
//! claims N instances, prints their process ids and waits to be killed; `measure DATA N MS` prints what parking and
//! claiming take, with a pause before each.

#![allow(missing_docs, reason = "a program of the tests")]

mod channel;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use channel::{Job, Outcome};
use taper_local::network::{self, Network, Policy};
use taper_local::sandbox::{Binding, Inside, ParkSpec};
use taper_local::spawner::{Config, Spawner, main_if_spawner, main_if_spawner_with};

fn main() -> ExitCode {
    // A spawner's further arguments are the test's: with `watchdog` its sandboxes are as in production.
    let watchdog = std::env::args_os().nth(2).is_some_and(|word| word == "watchdog");
    if let Some(code) = if watchdog { main_if_spawner() } else { main_if_spawner_with(inside) } {
        return code;
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let done = runtime.block_on(async {
        match words.as_slice() {
            ["try", data, rest @ ..] => attempt(Path::new(data), rest).await,
            ["connect", data] => connect(Path::new(data)).await,
            ["hold", data, count] => hold(Path::new(data), number(count)?).await,
            ["measure", data, count, pause] => measure(Path::new(data), number(count)?, number(pause)?).await,
            _ => Err("try DATA -- COMMAND… | hold DATA N | measure DATA N MS".to_owned()),
        }
    });
    match done {
        Ok(code) => ExitCode::from(code),
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(99)
        }
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("{text} is not a number"))
}

/// The first process of a sandbox: one job, then wait for the end.
#[allow(clippy::needless_pass_by_value, reason = "the shape of an entry")]
fn inside(inside: Inside) -> ExitCode {
    let Ok(Some((job, descriptors))) = channel::receive::<Job>(&inside.control) else { return ExitCode::SUCCESS };
    let outcome = match inside.confinement.confine(&job.instance, descriptors, None) {
        Err(why) => Outcome::Refused(why),
        Ok(()) => {
            if channel::send(&inside.control, &Outcome::Confined, &[]).is_err() {
                return ExitCode::FAILURE;
            }
            perform(&job)
        }
    };
    let told = channel::send(&inside.control, &outcome, &[]);
    // Until the platform closes its end.
    let _ = channel::receive::<Job>(&inside.control);
    if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn perform(job: &Job) -> Outcome {
    use std::os::unix::process::ExitStatusExt;
    let [program, arguments @ ..] = job.command.as_slice() else {
        return Outcome::Ended { code: Some(0), signal: None };
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&job.env).stdin(Stdio::null());
    if let Some(folder) = &job.folder {
        command.current_dir(folder);
    }
    match command.status() {
        Ok(status) => Outcome::Ended { code: status.code(), signal: status.signal() },
        Err(why) => Outcome::Refused(format!("{program}: {why}")),
    }
}

async fn start(config: &Config) -> Result<Spawner, String> {
    Spawner::start_with(config, Path::new("/proc/self/exe"), &[]).await.map_err(|why| why.to_string())
}

async fn attempt(data: &Path, mut words: &[&str]) -> Result<u8, String> {
    let mut config = Config::new(data);
    let mut job = Job { instance: "tried-00001".to_owned(), ..Job::default() };
    let mut code = None;
    let mut limits = ParkSpec::default();
    let mut policy = None;
    loop {
        match words {
            ["--", command @ ..] => {
                job.command = command.iter().map(|&word| word.to_owned()).collect();
                break;
            }
            ["--isolation", level, rest @ ..] => {
                let level = serde_json::from_value(serde_json::Value::from(*level)).map_err(|why| why.to_string())?;
                config.isolation = Some(level);
                words = rest;
            }
            ["--code", folder, rest @ ..] => {
                code = Some(PathBuf::from(folder));
                words = rest;
            }
            ["--network", word, rest @ ..] => {
                policy = Some(word.parse::<Policy>().map_err(|why| why.to_string())?);
                words = rest;
            }
            ["--pids", count, rest @ ..] => {
                limits.limits.pids = count.parse().map_err(|_| "--pids takes a number".to_owned())?;
                words = rest;
            }
            ["--env", pair, rest @ ..] => {
                let (name, value) = pair.split_once('=').ok_or("--env takes NAME=VALUE")?;
                job.env.insert(name.to_owned(), value.to_owned());
                words = rest;
            }
            _ => return Err(format!("what is {words:?}?")),
        }
    }
    let spawner = start(&config).await?;
    let mut binding = Binding { pids: Some(limits.limits.pids), ..Binding::default() };
    if let Some(code) = code {
        binding.code = Some(spawner.tree(&code).await.map_err(|why| why.to_string())?);
    }
    let parked = spawner.park(&limits).await.map_err(|why| why.to_string())?;
    let mut joined = None;
    if let Some(policy) = policy {
        let network = Network::start(&network::Config::new(data)).await;
        let lease = network.join(policy, parked.life.pid()).await.map_err(|why| why.to_string())?;
        lease.bind(&mut binding);
        eprintln!("network {:?}", network.outbound());
        joined = Some((network, lease));
    }
    job.folder = Some("/".to_owned());
    eprintln!("isolation {:?}, groups {:?}", spawner.isolation(), spawner.cgroups().hierarchy());
    let descriptors = binding.into_descriptors().map_err(|why| why.to_string())?;
    channel::send(&parked.control, &job, &descriptors).map_err(|why| why.to_string())?;
    let copy = |from: std::os::fd::OwnedFd, mut to: Box<dyn std::io::Write + Send>| {
        std::thread::spawn(move || std::io::copy(&mut std::fs::File::from(from), &mut to))
    };
    let readers = [copy(parked.stdout, Box::new(std::io::stdout())), copy(parked.stderr, Box::new(std::io::stderr()))];
    let mut last = None;
    let control = parked.control;
    let channel = control.try_clone().map_err(|why| why.to_string())?;
    let read = tokio::task::spawn_blocking(move || {
        while let Ok(Some((outcome, _))) = channel::receive::<Outcome>(&channel) {
            let finished = outcome != Outcome::Confined;
            last = Some(outcome);
            if finished {
                break;
            }
        }
        last
    });
    let outcome = read.await.map_err(|why| why.to_string())?;
    rustix::net::shutdown(&control, rustix::net::Shutdown::Both).map_err(|why| why.to_string())?;
    let exit = parked.life.gone().await;
    for reader in readers {
        let _ = reader.join();
    }
    if let Some((network, lease)) = joined {
        drop(lease);
        network.remove().await.map_err(|why| why.to_string())?;
    }
    spawner.stop().await;
    match outcome {
        Some(Outcome::Ended { code: Some(code), .. }) => Ok(u8::try_from(code).unwrap_or(98)),
        other => Err(format!("{other:?}, {exit:?}")),
    }
}

async fn hold(data: &Path, count: usize) -> Result<u8, String> {
    let spawner = start(&Config::new(data)).await?;
    let mut held = Vec::new();
    for number in 0..count {
        let parked = spawner.park(&ParkSpec::default()).await.map_err(|why| why.to_string())?;
        let command = ["/bin/sh", "-c", "sleep 1000 & setsid sleep 1000 & wait"].map(str::to_owned).to_vec();
        let job = Job { instance: format!("held-{number}"), command, ..Job::default() };
        let descriptors = Binding::default().into_descriptors().map_err(|why| why.to_string())?;
        channel::send(&parked.control, &job, &descriptors).map_err(|why| why.to_string())?;
        match channel::receive::<Outcome>(&parked.control) {
            Ok(Some((Outcome::Confined, _))) => {}
            other => return Err(format!("{other:?}")),
        }
        held.push(parked);
    }
    let pids: Vec<u32> = held.iter().map(|parked| parked.life.pid()).collect();
    println!("{}", serde_json::json!({"instances": pids}));
    std::future::pending::<()>().await;
    Ok(0)
}

async fn connect(data: &Path) -> Result<u8, String> {
    let network = Network::start(&network::Config::new(data)).await;
    let spawner = start(&Config::new(data)).await?;
    let parked = spawner.park(&ParkSpec::default()).await.map_err(|why| why.to_string())?;
    let lease = network.join(Policy::Open, parked.life.pid()).await.map_err(|why| why.to_string())?;
    println!("{}", serde_json::json!({"address": lease.address(), "outbound": network.outbound()}));
    std::future::pending::<()>().await;
    drop((lease, parked));
    Ok(0)
}

async fn measure(data: &Path, count: usize, pause: usize) -> Result<u8, String> {
    let spawner = start(&Config::new(data)).await?;
    let network = Network::start(&network::Config::new(data)).await;
    let (mut parks, mut trees, mut claims, mut ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut joins = Vec::new();
    for _ in 0..count {
        tokio::time::sleep(std::time::Duration::from_millis(pause as u64)).await;
        let begin = tokio::time::Instant::now();
        let parked = spawner.park(&ParkSpec::default()).await.map_err(|why| why.to_string())?;
        parks.push(begin.elapsed());
        let begin = tokio::time::Instant::now();
        let code = spawner.tree(&data.join("code")).await.map_err(|why| why.to_string())?;
        trees.push(begin.elapsed());
        let begin = tokio::time::Instant::now();
        let lease = network.join(Policy::Open, parked.life.pid()).await.map_err(|why| why.to_string())?;
        joins.push(begin.elapsed());
        let begin = tokio::time::Instant::now();
        let mut binding = Binding { code: Some(code), pids: Some(256), ..Binding::default() };
        lease.bind(&mut binding);
        let descriptors = binding.into_descriptors().map_err(|why| why.to_string())?;
        let job = Job { instance: "measured".to_owned(), ..Job::default() };
        channel::send(&parked.control, &job, &descriptors).map_err(|why| why.to_string())?;
        match channel::receive::<Outcome>(&parked.control) {
            Ok(Some((Outcome::Confined, _))) => claims.push(begin.elapsed()),
            other => return Err(format!("{other:?}")),
        }
        let begin = tokio::time::Instant::now();
        parked.life.kill();
        parked.life.gone().await;
        ends.push(begin.elapsed());
    }
    spawner.stop().await;
    network.remove().await.map_err(|why| why.to_string())?;
    for (what, mut times) in [
        ("park", parks),
        ("network join", joins),
        ("tree", trees),
        ("claim to confined", claims),
        ("kill to gone", ends),
    ] {
        times.sort();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
        println!("{what:<18} p50 {:>6} µs  p90 {:>6} µs  p99 {:>6} µs", at(0.5), at(0.9), at(0.99));
    }
    Ok(0)
}
