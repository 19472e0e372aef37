//! Platforms in processes of their own, which tests may kill, and functions that tell one instance from another.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
};

use rustix::process::Pid;
use serde_json::{Value, json};
use taper_model::Revision;
use tokio::time::Instant;

use crate::world::{PATIENCE, World, works};

/// A function of each mode. Each instance answers the same to every call, and none the same as another.
pub(crate) fn functions(world: &World) -> Vec<Arc<Revision>> {
    const MARK: &str = r#"cd "$TMPDIR"; test -s mark || { cat /proc/sys/kernel/random/uuid > mark; echo began >&2; }; echo called >&2; cat mark"#;
    let mut all = vec![world.classic("classic", &["sh", "-c", MARK])];
    if works("functions in Python", &["python3", "--version"]) {
        let handler = "import os\nMARK = os.urandom(8).hex()\ndef handle(req):\n    return MARK\n";
        let mut python = (*world.python("handler", handler)).clone();
        python.spec.secrets = vec!["token".parse().expect("a name")];
        all.push(Arc::new(python));
        all.push(world.server("server", SERVER));
    }
    if works("functions in Node", &["node", "--version"]) {
        let handler = "const mark = String(Math.random());\nmodule.exports = async () => mark;\n";
        all.push(world.node("node", handler));
    }
    world.supply.secrets.lock().unwrap().insert("token".into(), "held".into());
    all
}

/// A server that answers everything with what it drew at its beginning.
const SERVER: &str = include_str!("../../../../tests/mark.py");

/// A platform in a process of its own.
pub(crate) struct Held {
    process: Child,
    out: BufReader<ChildStdout>,
}

/// The program of such a platform.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_taper-local-program");

/// What such a platform is told: its settings, and what it is to have an instance of.
pub(crate) fn told(revisions: &[Arc<Revision>], settings: &Value) -> Value {
    let wanted = |revision: &Arc<Revision>| {
        json!({
            "name": revision.id.function().to_string(),
            "number": revision.id.number(),
            "spec": revision.spec,
            "artifact": revision.artifact,
        })
    };
    let revisions: Vec<_> = revisions.iter().map(wanted).collect();
    let mut local = json!({ "pool": { "floor": 1, "ceiling": 4 } });
    local.as_object_mut().expect("is one").extend(settings.as_object().expect("is one").clone());
    json!({ "local": local, "revisions": revisions })
}

impl Held {
    /// Over the folder of a world.
    pub(crate) fn start(world: &World, told: &Value) -> Self {
        Self::by(Command::new(PROGRAM).arg("hold").arg(world.dir.path()).arg(told.to_string()))
    }

    /// By a command that ends in such a platform.
    pub(crate) fn by(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
        let out = BufReader::new(process.stdout.take().expect("piped"));
        Self { process, out }
    }

    /// What it says next.
    pub(crate) fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("reads");
        serde_json::from_str(&line).unwrap_or_else(|why| panic!("{why}: {line:?}"))
    }

    /// Has it call each instance once more.
    pub(crate) fn ask(&mut self) -> Value {
        self.process.stdin.as_mut().expect("piped").write_all(b"again\n").expect("it listens");
        self.hear()
    }

    /// The process of its spawner.
    pub(crate) fn spawner(&self) -> Pid {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("lives").flatten();
        let mut children = tasks.flat_map(|task| {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
        });
        children.next().and_then(Pid::from_raw).expect("it has one")
    }

    /// Waits until so many instances are left with its spawner, as its records tell: an instance is told of at once when it is ready, and
    /// left to successors a moment later.
    pub(crate) fn leaves(&self, count: usize) {
        let records = format!("/proc/{}/fd", self.spawner().as_raw_nonzero());
        let begun = Instant::now();
        let is_record = |entry: &fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().contains("memfd:record"))
        };
        while fs::read_dir(&records).expect("lives").flatten().filter(is_record).count() < count {
            assert!(begun.elapsed() < PATIENCE, "{count} instances are not left with the spawner");
            std::thread::yield_now();
        }
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("kills");
        self.process.wait().expect("ends");
    }

    /// Lets it stop in order.
    pub(crate) fn end(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().expect("ends").success());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
