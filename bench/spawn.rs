//! The floors of starting things: a static program, a language's interpreter, a `cat` for every call.
//!
//! `std::process::Command` without a hook before `exec` is `posix_spawn`, which shares the parent's memory until `exec`:
//! the cheapest start there is, however large this process grows.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::{
    error::Error,
    machine::{Cpus, now},
    process::{Process, find, run},
};

/// A program that is started, ends at once, and is waited for.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    program: PathBuf,
    arguments: &'static [&'static str],
}

impl Start {
    /// F, the spawn floor: a static `true`, made here.
    pub(crate) fn floor(dir: &Path) -> Result<Self, Error> {
        let cc = find("cc", "apt-get install build-essential")?;
        let (source, program) = (dir.join("true.c"), dir.join("true"));
        fs::write(&source, "int main(void) { return 0; }\n").map_err(Error::io("writing true.c"))?;
        run("cc -static", Command::new(cc).args(["-O2", "-static", "-o"]).arg(&program).arg(&source))?;
        Ok(Self { program, arguments: &[] })
    }

    /// Python that does nothing.
    pub(crate) fn python() -> Result<Self, Error> {
        Ok(Self { program: find("python3", "apt-get install python3")?, arguments: &["-I", "-c", "pass"] })
    }

    /// Node that does nothing.
    pub(crate) fn node() -> Result<Self, Error> {
        Ok(Self { program: find("node", "apt-get install nodejs")?, arguments: &["-e", "0"] })
    }

    /// `cat` with nothing to read.
    pub(crate) fn cat() -> Result<Self, Error> {
        Ok(Self { program: find("cat", "apt-get install coreutils")?, arguments: &["/dev/null"] })
    }

    /// Seconds of so many starts in a row. A row, because what was just started starts faster than what was not for a while:
    /// the lower floor is the honest one.
    pub(crate) fn row(&self, count: usize) -> Result<Vec<f64>, Error> {
        (0..count).map(|_| self.once()).collect()
    }

    /// Seconds from before the start to after the end.
    pub(crate) fn once(&self) -> Result<f64, Error> {
        let begun = now();
        let mut child =
            Command::new(&self.program).args(self.arguments).spawn().map_err(Error::io("starting a program"))?;
        let status = child.wait().map_err(Error::io("waiting for a program"))?;
        let took = begun.elapsed().as_secs_f64();
        if status.success() {
            Ok(took)
        } else {
            Err(Error::Failed { what: format!("{} ended with {status}", self.program.display()), said: String::new() })
        }
    }
}

/// The spawn ceiling: on each of so many threads, `cat` is started with pipes, fed, read to its end and waited for, in a loop.
/// Gives calls per second, and CPU seconds per call.
pub(crate) fn ceiling(threads: usize, cpus: &Cpus, duration: Duration, body: &[u8]) -> Result<(f64, f64), Error> {
    let cat = find("cat", "apt-get install coreutils")?;
    // Of this process alone, with the children it has waited for: a server that runs meanwhile is not part of it.
    let cpu = || Process::read(std::process::id()).map_or(0.0, |process| process.cpu);
    let (begun, before) = (now(), cpu());
    let counts: Vec<Result<u64, Error>> = cpus.run(|| {
        thread::scope(|scope| {
            let loops = || {
                let mut calls = 0;
                while begun.elapsed() < duration {
                    piped(&cat, body)?;
                    calls += 1;
                }
                Ok(calls)
            };
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(loops)).collect();
            workers.into_iter().map(|worker| worker.join().expect("a spawning thread does not panic")).collect()
        })
    })?;
    let calls = counts.into_iter().sum::<Result<u64, Error>>()?;
    Ok((calls as f64 / begun.elapsed().as_secs_f64(), (cpu() - before) / calls.max(1) as f64))
}

fn piped(program: &Path, body: &[u8]) -> Result<(), Error> {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(Error::io("starting cat"))?;
    let mut answer = Vec::with_capacity(body.len());
    if let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.as_mut()) {
        input.write_all(body).map_err(Error::io("writing to cat"))?;
        drop(input);
        output.read_to_end(&mut answer).map_err(Error::io("reading from cat"))?;
    }
    let status = child.wait().map_err(Error::io("waiting for cat"))?;
    if status.success() && answer == body {
        Ok(())
    } else {
        Err(Error::Answer(format!("cat ended with {status} and {} bytes", answer.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floors_can_be_measured() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Start::floor(dir.path()).unwrap().once().unwrap() > 0.0);
        let (rate, cpu) = ceiling(2, &Cpus::all(), Duration::from_millis(200), b"body").unwrap();
        assert!(rate > 0.0 && cpu > 0.0, "{rate} {cpu}");
    }
}
