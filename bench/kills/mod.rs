//! Asynchronous calls under `kill -9`: of the platform, also while it starts and while it is replaced; of the instances that run them; of the
//! server that keeps them. Callers call as fast as they can and remember what they were promised; at the end every promise is looked at.
//!
//! One piece of code for the tests, which kill twenty times, and for the bench, which does it a hundred times.

mod callers;
mod look;
mod moments;
mod outcome;
mod receiver;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

pub use self::outcome::Outcome;
use self::{
    callers::{Caller, Heard},
    moments::{Deck, Dice, Moment},
    receiver::{Receiver, Witness},
};
use crate::{
    error::Error,
    load::{Request, once},
    machine::{Cpus, monotonic_ns, now},
    nats::Nats,
    platform::{AUTHORIZATION, Platform, launch},
    process::{commands, kill},
};

/// Who calls at the same time; the first half has an order key each.
const CALLERS: u64 = 6;
const ORDERED: u64 = CALLERS / 2;
/// Most calls that run at a time, and so the most that one kill can make run again.
pub(crate) const RUNNING: usize = 16;
/// How long what was accepted may take to its end, once nobody calls any more.
const END: Duration = Duration::from_secs(600);

/// Says what it runs to whoever listens at `@` outside of the platform, and answers it. Some calls take long enough to be killed.
const FUNCTION: &str = "import socket, time

witness = socket.create_connection(('127.0.0.1', @))

def handle(text):
    caller, number = text.split()[:2]
    witness.sendall(f'{caller} {number} {time.monotonic_ns()}\\n'.encode())
    if int(number) % 8 == 0:
        time.sleep(0.02)
    return caller + ' ' + number
";
/// Answers with the tick that it was called for.
const TICKED: &str = "def handle(event, context):\n    return event.headers['x-taper-tick']\n";

/// What keeps the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// The embedded queue.
    Journal,
    /// A real `nats-server`, which is killed as well.
    JetStream,
}

/// What is to be done.
#[derive(Debug)]
pub struct Suite<'a> {
    /// The platform's program.
    pub taper: &'a Path,
    /// A folder for all that it writes.
    pub dir: &'a Path,
    /// What keeps the calls.
    pub medium: Medium,
    /// How often something is killed.
    pub kills: usize,
    /// What the moments are drawn from.
    pub seed: u64,
}

/// Something was killed, by the clock that all processes of a machine have in common.
#[derive(Debug, Clone, Copy)]
struct Killed {
    /// Just before, and when it had happened.
    at: (u64, u64),
    /// Calls that ran, by the platform's own count shortly before, where it could be asked.
    running: Option<f64>,
    /// Seconds from a kill of the platform until the next one served.
    away: Option<f64>,
}

/// Kills and looks.
///
/// # Errors
/// When something that is needed is not there ([`Error::Missing`]), or anything went another way than it can under kills. What was promised and
/// not kept is no error, but in the outcome.
pub fn run(suite: &Suite<'_>) -> Result<Outcome, Error> {
    let mut stage = Stage::set(suite)?;
    let heard = Mutex::new(Heard::default());
    let mut callers: Vec<Caller> = (0..CALLERS).map(|id| Caller::new(id, id < ORDERED)).collect();
    let mut deck = Deck::new(suite.medium, suite.seed);
    let mut killed = Vec::new();
    for round in 0..suite.kills {
        let moment = deck.draw();
        let stop = AtomicBool::new(false);
        let (target, back) = (stage.platform.target.clone(), stage.receiver.url());
        let kill = thread::scope(|scope| {
            let all: Vec<_> = callers
                .iter_mut()
                .map(|caller| {
                    let (target, back, stop, heard) = (&target, &back, &stop, &heard);
                    scope.spawn(move || caller.calls(target, back, stop, heard))
                })
                .collect();
            thread::park_timeout(Duration::from_millis(20 + deck.dice.roll(400)));
            let kill = stage.kill(moment, &mut deck.dice);
            stop.store(true, Relaxed);
            for caller in all {
                caller.join().unwrap_or_else(|_| Err(Error::Answer("a caller broke off".into())))?;
            }
            kill
        });
        killed.extend(kill.map_err(|error| Error::Answer(format!("round {round}, {moment:?}: {error}")))?);
    }
    let heard = heard.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seen = look::at_the_end(&stage, &heard)?;
    let left = stage.strike()?;
    Ok(Outcome::new(suite, heard, &killed, seen, left))
}

/// What all of it happens on.
struct Stage<'a> {
    suite: &'a Suite<'a>,
    home: PathBuf,
    settings: String,
    platform: Platform,
    nats: Option<Nats>,
    receiver: Receiver,
    witness: Witness,
}

impl<'a> Stage<'a> {
    fn set(suite: &'a Suite<'a>) -> Result<Self, Error> {
        let home = Platform::home(suite.dir);
        let nats = match suite.medium {
            Medium::Journal => None,
            Medium::JetStream => Some(Nats::start(&suite.dir.join("nats"), &Cpus::all())?),
        };
        // Nothing is thrown away that is looked at in the end.
        let mut settings =
            "queue: {calls: 20000000, functionCalls: 20000000, bytes: 60Gi, results: 20000000, resultsBytes: 60Gi, \
                            privateCallbacks: true}\ncontrol: {allowHostNetwork: true}\n"
                .to_owned();
        if let Some(nats) = &nats {
            settings += &format!("queueUrl: \"{}\"\n", nats.url());
        }
        let platform = Platform::start_in(suite.taper, &home, &settings, &Cpus::all())?;
        let (receiver, witness) = (Receiver::start()?, Witness::start()?);
        let stage = Self { suite, home, settings, platform, nats, receiver, witness };
        stage.file("f.py", &FUNCTION.replace('@', &stage.witness.port.to_string()))?;
        stage.file("ticked.py", TICKED)?;
        stage.apply(
            "f",
            &format!(
                "kind: Function\nmetadata: {{name: f}}\nspec:\n  source: ./f.py\n  network: host\n  concurrency: 4\n  scale: {{max: 4}}\n  \
                 async: {{concurrency: {RUNNING}, retry: {{attempts: 100, minWait: 10ms, maxWait: 1s}}}}\n"
            ),
        )?;
        stage.apply("ticked", "kind: Function\nmetadata: {name: ticked}\nspec: {source: ./ticked.py}\n")?;
        stage.ticks(true)?;
        Ok(stage)
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        let path = self.home.join(name);
        fs::write(&path, text).map_err(Error::io(format!("writing {name}")))?;
        Ok(path)
    }

    fn apply(&self, name: &str, manifest: &str) -> Result<(), Error> {
        let file = self.file(&format!("{name}.yaml"), &format!("apiVersion: taper.dev/v1alpha1\n{manifest}"))?;
        self.platform.taper(&["deploy", "-f", &file.display().to_string()]).map(drop)
    }

    /// A schedule that makes a call each second, or rests.
    fn ticks(&self, on: bool) -> Result<(), Error> {
        let spec = format!("{{function: ticked, schedule: \"@every 1s\", missed: all, suspend: {}}}", !on);
        self.apply("ticks", &format!("kind: Trigger\nmetadata: {{name: ticks}}\nspec: {spec}\n"))
    }

    fn kill(&mut self, moment: Moment, dice: &mut Dice) -> Result<Vec<Killed>, Error> {
        let running = self.running();
        let mut killed = Vec::new();
        let mut noted = |running, kill: &mut dyn FnMut() -> Result<(), Error>| {
            let before = monotonic_ns();
            kill()?;
            killed.push(Killed { at: (before, monotonic_ns()), running, away: None });
            Ok::<_, Error>(())
        };
        match moment {
            Moment::Running => noted(running, &mut || self.platform.kill())?,
            Moment::Starting => {
                noted(running, &mut || self.platform.kill())?;
                let mut next = launch(self.suite.taper, &self.home, &self.settings, &Cpus::all())?;
                thread::park_timeout(Duration::from_millis(dice.roll(250)));
                noted(None, &mut || next.kill())?;
            }
            Moment::Instance => {
                let all = self.instances()?;
                let at = usize::try_from(dice.roll(all.len().max(1) as u64)).unwrap_or_default();
                // Where there is none, or it has ended meanwhile, nothing is killed this time.
                noted(running, &mut || {
                    all.get(at).into_iter().for_each(|pid| kill(*pid));
                    Ok(())
                })?;
            }
            Moment::Server => {
                let nats = self.nats.as_mut().ok_or_else(|| Error::Answer("there is no server to be killed".into()))?;
                noted(running, &mut || nats.kill())?;
            }
            Moment::Upgrading => {
                let mut upgrade = self.platform.command(&["upgrade"]);
                let upgrade = upgrade.stdout(Stdio::null()).spawn();
                let mut upgrade = upgrade.map_err(Error::io("starting taper upgrade"))?;
                let old = self.platform.pid();
                let new = self.successor(old);
                thread::park_timeout(Duration::from_millis(dice.roll(400)));
                let victim = new.filter(|_| dice.roll(2) == 0).unwrap_or(old);
                noted(running, &mut || {
                    kill(victim);
                    Ok(())
                })?;
                upgrade.wait().map_err(Error::io("waiting for taper upgrade"))?;
                self.settle()?;
            }
        }
        if self.platform.has_ended() {
            self.platform = Platform::start_in(self.suite.taper, &self.home, &self.settings, &Cpus::all())?;
            if let (Moment::Running, Some(last)) = (moment, killed.last_mut()) {
                last.away = Some((monotonic_ns() - last.at.0) as f64 / 1e9);
            }
        }
        Ok(killed)
    }

    /// Calls that run, by the platform's own count.
    fn running(&self) -> Option<f64> {
        let metrics = once(&self.platform.target, &Request::control("GET", "/metrics", AUTHORIZATION, "")).ok()?;
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        text.lines().find_map(|line| line.strip_prefix("taper_async_running ")?.parse().ok())
    }

    /// The processes of instances, those that another platform had started included: by their control groups.
    fn instances(&self) -> Result<Vec<u32>, Error> {
        let data = self.home.join("data").display().to_string();
        let report = self.platform.taper(&["doctor", "--data", &data, "-o", "json"])?;
        let report: Value = serde_json::from_str(&report).map_err(|e| Error::Answer(format!("taper doctor: {e}")))?;
        let items = report["items"].as_array().into_iter().flatten();
        let traces =
            items.filter(|item| item["name"] == "changes to this host").filter_map(|item| item["found"].as_str());
        let groups =
            traces.flat_map(|found| found.split(", ")).filter_map(|trace| trace.strip_prefix("control group "));
        let inside = groups.flat_map(|base| fs::read_dir(base).into_iter().flatten().flatten());
        let members = inside.map(|group| fs::read_to_string(group.path().join("cgroup.procs")).unwrap_or_default());
        let pids: BTreeSet<u32> =
            members.flat_map(|text| text.lines().flat_map(str::parse).collect::<Vec<_>>()).collect();
        Ok(pids.into_iter().collect())
    }

    /// The processes that are a platform over this folder.
    fn platforms(&self) -> Vec<u32> {
        let data = self.home.join("data").display().to_string();
        let is = |line: &[String]| line.get(1).is_some_and(|word| word == "up") && line.contains(&data);
        commands().into_iter().filter(|(_, line)| is(line)).map(|(pid, _)| pid).collect()
    }

    /// The process that is about to replace this one.
    fn successor(&self, old: u32) -> Option<u32> {
        let begun = now();
        while begun.elapsed() < Duration::from_secs(10) {
            if let Some(new) = self.platforms().into_iter().find(|pid| *pid != old) {
                return Some(new);
            }
            thread::sleep(Duration::from_millis(1));
        }
        None
    }

    /// Waits until one process is the platform and serves, or none is there any more.
    fn settle(&mut self) -> Result<(), Error> {
        let begun = now();
        loop {
            match self.platforms().as_slice() {
                [] => return Ok(()),
                [one] => {
                    self.platform.succeeded_by(*one);
                    let ready = Request::control("GET", "/readyz", AUTHORIZATION, "");
                    if once(&self.platform.target, &ready).is_ok() {
                        return Ok(());
                    }
                }
                _ => {}
            }
            if begun.elapsed() > Duration::from_secs(60) {
                let what = format!("an upgrade that was cut off came to no end: {:?}", self.platforms());
                return Err(self.platform.failed(&what));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it all; what is left of it by then.
    fn strike(self) -> Result<Vec<String>, Error> {
        let Self { home, platform, nats, .. } = self;
        drop(platform);
        drop(nats);
        let home = home.display().to_string();
        let ours = |line: &[String]| line.iter().any(|word| word.starts_with(&home));
        Ok(commands().into_iter().filter(|(_, line)| ours(line)).map(|(_, l)| l.join(" ")).collect())
    }
}
