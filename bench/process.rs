//! Processes this program starts: ended by their id when their value goes, their CPU time and memory read from `/proc`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process, test_kill_process},
};

use crate::{
    error::Error,
    machine::{Cpus, now},
};

/// How long a program may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that runs beside us. Dropping it ends it, and with it every process it left behind.
pub(crate) struct Running {
    child: Child,
    /// The process that the first one was replaced by.
    successor: Option<u32>,
    name: String,
    log: PathBuf,
}

impl Running {
    /// Starts a program on these processors. What it writes on standard error, and on standard output unless the caller has
    /// taken that, goes to `log`.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path, cpus: &Cpus) -> Result<Self, Error> {
        // Behind what another one, that this one follows, has said.
        let file = File::options().create(true).append(true).open(log);
        let file = file.map_err(Error::io(format!("making {}", log.display())))?;
        command.stdin(Stdio::null()).stderr(file);
        let child = cpus.run(|| command.spawn())?.map_err(Error::io(format!("starting {name}")))?;
        Ok(Self { child, successor: None, name: name.to_owned(), log: log.to_owned() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.successor.unwrap_or_else(|| self.child.id())
    }

    /// From now on this process is the program.
    pub(crate) fn succeeded_by(&mut self, pid: u32) {
        self.successor = Some(pid).filter(|pid| *pid != self.child.id());
    }

    /// `kill -9`, and waits for its end. What it had started is left to whoever comes after it.
    pub(crate) fn kill(&mut self) -> Result<(), Error> {
        kill(self.pid());
        self.ended("it does not end although it was killed")
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        // The first one is waited for whoever came after it.
        let first = !matches!(self.child.try_wait(), Ok(None));
        self.successor.map_or(first, |pid| Process::read(pid).is_none())
    }

    fn ended(&mut self, not: &str) -> Result<(), Error> {
        let begun = now();
        while !self.has_ended() {
            if begun.elapsed() > PATIENCE {
                return Err(self.failed(not));
            }
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits until `ready` gives something.
    pub(crate) fn wait<T>(&mut self, what: &str, mut ready: impl FnMut() -> Option<T>) -> Result<T, Error> {
        let begun = now();
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            if self.has_ended() || begun.elapsed() > PATIENCE {
                return Err(self.failed(what));
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// The error that quotes what the program said last.
    pub(crate) fn failed(&self, what: &str) -> Error {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let tail: Vec<&str> = said.lines().rev().take(5).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        Error::Failed { what: format!("{}: {what}", self.name), said: tail.join(" | ") }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        let tree = Tree::of(self.pid());
        signal(self.pid(), Signal::TERM);
        if self.ended("").is_err() {
            eprintln!("{} did not end within {} s of SIGTERM and is killed", self.name, PATIENCE.as_secs());
            let _ = self.kill();
        }
        // A process that outlives the one that started it is a defect worth a line; either way it does not outlive us.
        for process in tree.others_still_there() {
            eprintln!("{} left process {} ({}) behind; it is killed", self.name, process.pid, process.name);
            kill(process.pid);
        }
        tree.others_still_there();
    }
}

/// Every process of this machine, with the words that it was started with.
pub(crate) fn commands() -> Vec<(u32, Vec<String>)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()));
    let words = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    };
    pids.map(|pid| (pid, words(pid))).collect()
}

/// `kill -9` of a process, which may have ended by itself.
pub(crate) fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, signal);
    }
}

/// One process, as `/proc/PID/stat` shows it.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) name: String,
    parent: u32,
    /// CPU seconds of its own and of the children it has waited for.
    pub(crate) cpu: f64,
    /// When it began; with the id this names a process for good.
    begun: u64,
}

/// A process and everything under it.
pub(crate) struct Tree {
    processes: Vec<Process>,
}

/// CPU seconds by the name of the process.
pub(crate) type Cpu = BTreeMap<String, f64>;

impl Tree {
    /// The processes under `root`, itself included.
    pub(crate) fn of(root: u32) -> Self {
        let mut children: BTreeMap<u32, Vec<Process>> = BTreeMap::new();
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match Process::read(pid) {
                Some(process) if pid == root => processes.push(process),
                Some(process) => children.entry(process.parent).or_default().push(process),
                None => {}
            }
        }
        let mut at = 0;
        while at < processes.len() {
            processes.extend(children.remove(&processes[at].pid).into_iter().flatten());
            at += 1;
        }
        Self { processes }
    }

    /// Their ids.
    pub(crate) fn pids(&self) -> BTreeSet<u32> {
        self.processes.iter().map(|process| process.pid).collect()
    }

    /// CPU seconds so far, by process name. A child that was waited for counts as its parent's.
    pub(crate) fn cpu(&self) -> Cpu {
        let mut sum = Cpu::new();
        for process in &self.processes {
            *sum.entry(process.name.clone()).or_default() += process.cpu;
        }
        sum
    }

    /// Bytes of memory, shared pages divided among those that share them, by process name.
    pub(crate) fn pss(&self) -> BTreeMap<String, f64> {
        let mut sum = BTreeMap::new();
        for process in &self.processes {
            let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid)).unwrap_or_default();
            let kib =
                text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse::<f64>().ok());
            *sum.entry(process.name.clone()).or_default() += kib.unwrap_or(0.0) * 1024.0;
        }
        sum
    }

    /// Those that are still there, after a moment's grace, except the root.
    fn others_still_there(&self) -> Vec<Process> {
        let begun = now();
        loop {
            let left: Vec<Process> =
                self.processes.iter().skip(1).filter(|process| process.is_there()).cloned().collect();
            if left.is_empty() || begun.elapsed() > Duration::from_secs(2) {
                return left;
            }
            sleep(Duration::from_millis(5));
        }
    }
}

impl Process {
    /// What it is now; nothing when it has ended.
    pub(crate) fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold anything, a closing one included.
        let (head, rest) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // What is dead and waits to be waited for runs no more.
        if fields.first() == Some(&"Z") {
            return None;
        }
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        let ticks = (11..=14).map(number).sum::<Option<u64>>()?;
        let cpu = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Some(Self { pid, name, parent: number(1)? as u32, cpu, begun: number(19)? })
    }

    fn is_there(&self) -> bool {
        let known = Pid::from_raw(self.pid as i32).is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH));
        known && Self::read(self.pid).is_some_and(|now| now.begun == self.begun)
    }
}

/// CPU seconds between two readings: those whose name satisfies `which`, and the rest.
pub(crate) fn spent(before: &Cpu, after: &Cpu, which: impl Fn(&str) -> bool) -> (f64, f64) {
    let mut sums = (0.0, 0.0);
    for (name, seconds) in after {
        let spent = seconds - before.get(name).copied().unwrap_or(0.0);
        if which(name) { sums.0 += spent } else { sums.1 += spent }
    }
    sums
}

/// Where a program is: the system's own folders first, as the platform looks too, then the search path.
#[allow(clippy::disallowed_methods, reason = "the search path is the environment's")]
pub(crate) fn find(program: &str, mend: &str) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(PathBuf::from);
    let folders = system.into_iter().chain(std::env::split_paths(&path));
    let missing = || Error::Missing { what: program.to_owned(), mend: mend.to_owned() };
    folders.map(|folder| folder.join(program)).find(|file| file.is_file()).ok_or_else(missing)
}

/// Runs a program to its end; its standard output, or what it said on the way out.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<String, Error> {
    let output = command.stdin(Stdio::null()).output().map_err(Error::io(what))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = said.trim().lines().rev().take(4).collect();
    Err(Error::Failed {
        what: format!("{what} failed ({})", output.status),
        said: tail.into_iter().rev().collect::<Vec<_>>().join(" | "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_ends_with_its_value_and_is_counted_while_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 1000 & wait"]);
        let mut running = Running::start("sh", &mut command, &dir.path().join("log"), &Cpus::all()).unwrap();
        let pid = running.pid();
        let tree =
            running.wait("it never had a child", || Some(Tree::of(pid)).filter(|tree| tree.pids().len() == 2)).unwrap();
        assert!(tree.pss().values().sum::<f64>() > 0.0);
        drop(running);
        assert!(tree.processes.iter().all(|process| !process.is_there()), "both are gone");
    }

    #[test]
    fn cpu_time_is_counted() {
        let before = Tree::of(std::process::id()).cpu();
        let begun = now();
        while begun.elapsed() < Duration::from_millis(60) {
            std::hint::black_box(0);
        }
        let (ours, rest) = spent(&before, &Tree::of(std::process::id()).cpu(), |_| true);
        assert!(ours > 0.0 && rest == 0.0, "{ours} {rest}");
    }
}
