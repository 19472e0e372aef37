//! The program behind the provider's tests: spawner and watchdog of each sandbox, in place of `taper`; and a platform in a
//! process of its own, which a test may kill.
//!
//! `hold DIR TOLD`: a provider over `DIR/local` with one instance of each revision that `TOLD` names (JSON), whose artifacts
//! lie in `DIR` under their digests. It calls each once and prints, on one line, the names of the instances that were there
//! before it asked for any, and the answers. For each line on its standard input it calls and prints again; at its end it stops.

#![allow(missing_docs, reason = "a program of the tests")]

use std::{
    collections::BTreeMap,
    io::{BufRead, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use http_body_util::BodyExt;
use serde::Deserialize;
use taper_local::{Config, Local};
use taper_model::{
    BoxFuture, Call, CallId, Digest, FunctionName, FunctionSpec, Name, Revision, RevisionId, Secret, call,
};
use taper_provider::{Error, Event, Instance, Progress, Provider, Supply};
use tokio::time::Instant;

/// The longest that anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

type Failure = Box<dyn std::error::Error>;

/// What is to be held.
#[derive(Deserialize)]
struct Told {
    local: Config,
    revisions: Vec<Wanted>,
}

#[derive(Deserialize)]
struct Wanted {
    name: String,
    number: u32,
    spec: FunctionSpec,
    artifact: Option<Digest>,
}

/// Artifacts in a folder, and one secret.
struct Folder(PathBuf);

impl Supply for Folder {
    fn artifact(&self, digest: &Digest) -> Result<PathBuf, Error> {
        Ok(self.0.join(digest.hex()))
    }

    fn secret<'a>(&'a self, _: &'a Name, _: &'a Name) -> BoxFuture<'a, Result<Secret, Error>> {
        Box::pin(async { Ok(Secret { value: "held".into(), version: 7 }) })
    }
}

fn main() -> ExitCode {
    if let Some(code) = taper_local::spawner::main_if_spawner() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [word, dir, told] = arguments.as_slice() else {
        eprintln!("this program is a part of tests, not a command");
        return ExitCode::from(2);
    };
    assert_eq!(word, "hold");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(hold(dir.into(), told)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

async fn hold(dir: PathBuf, told: &str) -> Result<(), Failure> {
    let Told { local, revisions } = serde_json::from_str(told)?;
    let config = Config { dir: dir.join("local"), program: Some("/proc/self/exe".into()), ..local };
    let local = Local::start(config, Arc::new(Folder(dir))).await?;
    let mut events = local.watch();
    let mut instances: Vec<Instance> = Vec::new();
    if let Some(Event::Reset(there)) = events.next().await {
        instances.extend(there);
    }
    let before: Vec<String> = instances.iter().map(|instance| instance.id.as_str().to_owned()).collect();
    for Wanted { name, number, spec, artifact } in revisions {
        let revision = Arc::new(Revision {
            by: String::new(),
            id: RevisionId::new(FunctionName::parse(&name)?, number),
            spec,
            artifact,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            created_ms: 0,
        });
        local.prepare(&revision, Progress::silent()).await?;
        local.apply(&revision, 1, &[]).await?;
        while !instances.iter().any(|instance| instance.revision == revision.id) {
            match events.next().await {
                Some(Event::Ready(instance)) => instances.push(instance),
                Some(Event::Failed { why, .. }) => return Err(why.into()),
                Some(_) => {}
                None => return Err("nothing is told any more".into()),
            }
        }
    }
    tell(&local, &before, &instances).await?;
    let (tx, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lock().lines().try_for_each(|line| tx.send(line)));
    while lines.recv().await.is_some() {
        tell(&local, &before, &instances).await?;
    }
    local.stop().await;
    Ok(())
}

/// Calls each instance, and says what it answers, and of how many it is known what they use.
async fn tell(local: &Local, before: &[String], instances: &[Instance]) -> Result<(), Failure> {
    let (mut answers, mut measured) = (BTreeMap::new(), 0);
    for instance in instances {
        let request = http::Request::post("/").body(call::full("held"))?;
        let call = Call {
            terms: Default::default(),
            id: CallId::random(),
            revision: instance.revision.clone(),
            deadline: Instant::now() + PATIENCE,
            request,
        };
        let answer = match instance.run.invoke(call).await {
            Ok(reply) => {
                String::from_utf8_lossy(&reply.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes())
                    .into_owned()
            }
            Err(fault) => format!("fault: {fault}"),
        };
        answers.insert(instance.revision.function().to_string(), answer);
        measured += local.usage(instance.revision.function()).iter().filter(|usage| usage.cpu_nanos > Some(0)).count();
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::json!({ "before": before, "answers": answers, "measured": measured }))?;
    Ok(out.flush()?)
}
