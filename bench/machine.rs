//! The machine the figures come from: its description in general terms, its processors, and the clock.

use std::{fs, time::Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{error::Error, process::Tree};

/// Real time. Nothing here is ever tested with a paused clock: real time is what is measured.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Nanoseconds of the clock that all processes of a machine have in common.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Processors on which something may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cpus(Vec<usize>);

impl Cpus {
    /// All that this process may use.
    pub(crate) fn all() -> Self {
        let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
        Self(if cpus.is_empty() { vec![0] } else { cpus })
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The half for what is measured, and the half for what measures. They are the same on a machine with one processor.
    pub(crate) fn halves(&self) -> (Self, Self) {
        if self.0.len() < 2 {
            return (self.clone(), self.clone());
        }
        let (server, load) = self.0.split_at(self.0.len() / 2);
        (Self(server.to_vec()), Self(load.to_vec()))
    }

    /// The first of them alone.
    pub(crate) fn first(&self) -> Self {
        Self(vec![self.0[0]])
    }

    /// Runs `work` on these processors alone; threads and processes that it starts inherit them.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let before = sched_getaffinity(None).map_err(|e| Error::io("reading the processors of a thread")(e.into()))?;
        let mut set = CpuSet::new();
        self.0.iter().for_each(|cpu| set.set(*cpu));
        sched_setaffinity(None, &set).map_err(|e| Error::io("pinning a thread")(e.into()))?;
        let result = work();
        sched_setaffinity(None, &before).map_err(|e| Error::io("unpinning a thread")(e.into()))?;
        Ok(result)
    }
}

/// CPU seconds of the whole machine until now: what all processes took, what ours took, and what the hypervisor gave to others.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Busy {
    all: f64,
    ours: f64,
    stolen: f64,
}

impl Busy {
    /// Read when nothing that we started runs, so that all of it has been waited for and counts as ours.
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let ticks: Vec<f64> =
            stat.lines().next().unwrap_or("").split_whitespace().skip(1).flat_map(str::parse).collect();
        let seconds = |at: usize| ticks.get(at).unwrap_or(&0.0) / rustix::param::clock_ticks_per_second() as f64;
        // user, nice, system, (idle, waiting,) interrupts, soft interrupts, stolen
        let all = [0, 1, 2, 5, 6].map(seconds).iter().sum();
        Self { all, ours: Tree::of(std::process::id()).cpu().values().sum(), stolen: seconds(7) }
    }

    /// How many processors others used since then, on this machine and, of ours, beside it.
    pub(crate) fn neighbours(self, seconds: f64) -> (f64, f64) {
        let now = Self::now();
        let others = (now.all - self.all) - (now.ours - self.ours);
        (others.max(0.0) / seconds, (now.stolen - self.stolen) / seconds)
    }
}

/// Cores, processor family, kernel, distribution: enough to compare, nothing that names the machine.
pub(crate) fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    // «AMD EPYC 7763 64-Core Processor» → «AMD EPYC»: the family is what a reader can compare with.
    let family: String = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name))
        .map(|name| name.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let virtual_machine = if cpuinfo.contains(" hypervisor") { ", virtual machine" } else { "" };
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel: Vec<&str> = kernel.trim().split(['.', '-']).take(2).collect();
    let release = read("/etc/os-release");
    let distribution = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "unknown distribution".to_owned(), |name| name.trim_matches('"').to_owned());
    let cgroup =
        if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) { "cgroup v2" } else { "cgroup v1" };
    format!(
        "{} cores ({family}{virtual_machine}), Linux {}, {distribution}, {cgroup}",
        Cpus::all().count(),
        kernel.join(".")
    )
}
