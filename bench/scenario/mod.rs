//! The scenarios, one file each. A scenario starts what it needs, measures in rounds, and fills a report.

mod burst;
mod classic;
mod cold;
mod deploy;
mod flood;
mod floors;
mod handler;
mod http;
mod kills;
mod later;
mod many;
mod memory;
mod routes;
mod soak;
mod watchdog;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{error::Error, machine::Cpus, platform::Platform, report::Report};

/// What a scenario works with.
pub(crate) struct Bench {
    /// A folder that goes away at the end.
    pub(crate) dir: PathBuf,
    /// The platform's program.
    pub(crate) taper: Result<PathBuf, String>,
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
    /// How long the soak goes on.
    pub(crate) soak: Duration,
    /// Where what is measured runs.
    pub(crate) server: Cpus,
    /// Where the load comes from.
    pub(crate) load: Cpus,
    pub(crate) all: Cpus,
}

impl Bench {
    /// The platform on these processors.
    pub(crate) fn platform(&self, cpus: &Cpus) -> Result<Platform, Error> {
        Platform::start(self.program()?, &self.dir, cpus)
    }

    /// The platform on these processors, over what is in a folder, with these settings.
    pub(crate) fn platform_in(&self, home: &Path, settings: &str, cpus: &Cpus) -> Result<Platform, Error> {
        Platform::start_in(self.program()?, home, settings, cpus)
    }

    fn program(&self) -> Result<&Path, Error> {
        self.taper.as_deref().map_err(|why| Error::Answer(why.clone()))
    }

    /// How long a load lasts.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_millis(if self.quick { 500 } else { 2_000 })
    }

    /// A number that a quick run divides.
    pub(crate) fn count(&self, whole: usize) -> usize {
        if self.quick { whole.div_ceil(5) } else { whole }
    }

    /// A file of a function, in a folder of its own.
    pub(crate) fn function(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        let dir = self.dir.join("functions");
        let file = dir.join(name);
        fs::create_dir_all(&dir).and_then(|()| fs::write(&file, text)).map_err(Error::io(format!("writing {name}")))?;
        Ok(file)
    }

    /// The folder with the hello function's program.
    pub(crate) fn hello(&self) -> Result<PathBuf, Error> {
        let dir = self.dir.join("hello-code");
        if !dir.join("hello").exists() {
            fs::create_dir_all(&dir).map_err(Error::io("making a folder"))?;
            // Built elsewhere: the folder is deployed, and a function needs its program alone.
            let program = crate::peers::build_hello(&self.dir)?;
            fs::copy(program, dir.join("hello")).map_err(Error::io("copying hello"))?;
        }
        Ok(dir)
    }
}

/// Deploys the hello function in mode `http` on a Unix socket (`unix`) or a port (`tcp`).
fn deploy_hello(platform: &Platform, code: &Path, name: &str, transport: &str) -> Result<(), Error> {
    let command = format!("./hello {transport}");
    platform.deploy(Some(code), name, &["--mode", "http", "--command", &command, "--max", "1", "--cpu", "4"])
}

/// What hello answers.
const HELLO: &[u8] = b"Hello, world\n";

/// A Python handler and a Node handler that answer with what they got.
const ECHO_PYTHON: &str = "def handle(event, context):\n    return event.body\n";
const ECHO_NODE: &str = "export function handle(event, context) {\n  return event.body;\n}\n";

/// One thing to measure.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Bench, &mut Report) -> Result<(), Error>,
    /// It takes so long that it is run only when it is named.
    pub(crate) long: bool,
}

/// All of them, in the order of the table.
pub(crate) const ALL: &[Scenario] = &[
    short("floors", "what starting a process costs on this machine", floors::run),
    short("warm-http", "a warm call to an HTTP function, beside nginx and HAProxy", http::run),
    short("warm-python", "a warm call to a Python handle, beside functions-framework and a bare loop", handler::python),
    short("warm-node", "a warm call to a Node handle, beside functions-framework", handler::node),
    short("classic", "a process per call, beside the spawn ceiling", classic::run),
    short("cold", "a call to a function at zero, beside the spawn floor", cold::run),
    short("burst", "64 and 500 calls at once to a function at zero, and to 200 functions", burst::run),
    short("flood", "a function's calls and first start beside another that is flooded", flood::floods),
    short(
        "later",
        "accepting calls whose callers do not wait, beside a plain file, and how soon they run",
        later::accept,
    ),
    short("deploy", "a one-file function until it is ready", deploy::run),
    short("memory", "of the platform, per function at zero, per running instance", memory::run),
    short("many", "10,000 and 100,000 functions at zero", many::zero),
    short("routes", "100,000 rules on one host and on as many hosts, beside ten", routes::run),
    short("running", "a thousand running instances that nobody calls", many::running),
    short(
        "watchdog",
        "the stand-alone watchdog, beside the function alone, the spawn ceiling and OpenFaaS's",
        watchdog::run,
    ),
    Scenario {
        name: "kills",
        what: "calls whose callers do not wait under a hundred kills, on either queue: what is lost, and what runs again",
        run: kills::kills,
        long: true,
    },
    Scenario { name: "soak", what: "cold starts beside warm traffic, for --minutes", run: soak::soak, long: true },
];

const fn short(name: &'static str, what: &'static str, run: fn(&Bench, &mut Report) -> Result<(), Error>) -> Scenario {
    Scenario { name, what, run, long: false }
}
