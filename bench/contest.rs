//! The same load on several servers in turn: A B C, A B C, …, so that a neighbour's load disturbs all of them alike.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    error::Error,
    load::{self, Request, Target},
    machine::Cpus,
    process::{Cpu, Tree, spent},
    report::Report,
    stats::Series,
};

/// One server, under a name that rows refer to.
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    pub(crate) request: Request,
    /// The processes whose CPU time counts, with all under them.
    pub(crate) roots: Vec<u32>,
    /// Names of those among them that are the function, not what stands before it.
    pub(crate) function: &'static [&'static str],
    /// How many connections it can be called over at a time.
    pub(crate) connections: &'static [usize],
}

/// What one round of one server brought.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// Seconds.
    pub(crate) p50: f64,
    /// Seconds.
    pub(crate) p99: f64,
    /// Calls per second.
    pub(crate) rate: f64,
    /// CPU seconds per call of what stands before the function.
    pub(crate) platform: f64,
    /// CPU seconds per call of the function.
    pub(crate) function: f64,
}

impl Measured {
    /// CPU seconds per call of all of it.
    pub(crate) fn cpu(&self) -> f64 {
        self.platform + self.function
    }
}

/// The results by server and number of connections.
#[derive(Default)]
pub(crate) struct Results(BTreeMap<(&'static str, usize), Vec<Measured>>);

impl Results {
    /// Appends further rounds of the same servers.
    pub(crate) fn add(&mut self, more: Self) {
        for (of, rounds) in more.0 {
            self.0.entry(of).or_default().extend(rounds);
        }
    }

    /// One value of every round; empty when the server was not there or failed.
    pub(crate) fn series(&self, name: &'static str, connections: usize, value: impl Fn(&Measured) -> f64) -> Series {
        self.0.get(&(name, connections)).into_iter().flatten().map(value).collect()
    }
}

/// Lets all of them run `rounds` times. One that gives a wrong answer is out, and the report says why.
pub(crate) fn play(
    contestants: &[Contestant],
    rounds: usize,
    duration: Duration,
    load: &Cpus,
    report: &mut Report,
) -> Results {
    let mut results = Results::default();
    let mut out = Vec::new();
    for _ in 0..rounds {
        for contestant in contestants {
            for &connections in contestant.connections {
                if out.contains(&contestant.name) {
                    continue;
                }
                match contestant.measure(connections, duration, load) {
                    Ok(measured) => results.0.entry((contestant.name, connections)).or_default().push(measured),
                    Err(error) => {
                        report.note(format!("not measured: {}: {error}", contestant.name));
                        out.push(contestant.name);
                    }
                }
            }
        }
    }
    results.0.retain(|(name, _), _| !out.contains(name));
    results
}

impl Contestant {
    fn measure(&self, connections: usize, duration: Duration, cpus: &Cpus) -> Result<Measured, Error> {
        // Caches, connections and just-in-time compilers are warm when the measurement begins.
        load::run(&self.target, &self.request, connections, cpus, duration / 4)?;
        let before = self.cpu();
        let mut outcome = load::run(&self.target, &self.request, connections, cpus, duration)?;
        let after = self.cpu();
        if let (errors @ 1.., Some(first)) = (outcome.errors, &outcome.first_error) {
            return Err(Error::Answer(format!(
                "{errors} of {} calls over {connections} connections failed, first: {first}",
                errors + outcome.calls
            )));
        }
        let (function, platform) =
            spent(&before, &after, |name| self.function.iter().any(|start| name.starts_with(start)));
        let calls = outcome.calls.max(1) as f64;
        Ok(Measured {
            p50: outcome.latency(0.5),
            p99: outcome.latency(0.99),
            rate: outcome.rate(),
            platform: platform / calls,
            function: function / calls,
        })
    }

    fn cpu(&self) -> Cpu {
        let mut sum = Cpu::new();
        for root in &self.roots {
            for (name, seconds) in Tree::of(*root).cpu() {
                *sum.entry(name).or_default() += seconds;
            }
        }
        sum
    }
}
