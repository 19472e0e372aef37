//! Owns what an instance is told to be: the claim's command, environment and limits, from a revision. It starts
//! nothing.

use std::{collections::BTreeMap, path::Path};

use taper_model::{
    FunctionSpec, InstanceId, Mode, Revision, Runtime,
    function::{Convention, Network as Wanted, Probe},
};
use taper_provider::Error;
use taper_watchdog::control::Claim;

use crate::{
    language::Languages,
    network::Policy,
    pool::Kind,
    sandbox::{Layout, Limits, NetworkSpace, RUNTIME},
};

/// Where a function in mode `http` listens, in its own network.
const PORT: u16 = 8080;
/// Bytes of a classic reply that are held back until the exit status is known.
const REPLY_HOLD: u64 = 1 << 20;
/// The same while the request is still arriving: a little more than the largest request, and at most half the memory.
const EARLY_HOLD: u64 = 128 << 20;
/// A function with less memory gets a runtime of its own: one that waits has loaded more than it may need.
const AHEAD_MEMORY: u64 = 64 << 20;

/// What must be known of a revision before there is a sandbox for it.
pub(crate) fn kind(revision: &Revision, languages: &Languages) -> Kind {
    let spec = &revision.spec;
    let runtime = spec.runtime();
    let fits = spec.mode() == Mode::Handler
        && spec.memory() >= AHEAD_MEMORY
        && taper_runtimes::starts_ahead(runtime, &spec.env);
    let command = if fits { command(runtime, languages, Path::new(RUNTIME)).ok() } else { None };
    let network = match spec.network() {
        Wanted::Host => NetworkSpace::Host,
        _ => NetworkSpace::Own,
    };
    Kind { network, policy: policy(revision), temporary: spec.tmp(), ahead: command.map(|command| (runtime, command)) }
}

/// How a language runtime is started, with its shim in this folder.
fn command(runtime: Runtime, languages: &Languages, folder: &Path) -> Result<Vec<String>, Error> {
    let language = languages.get(runtime)?;
    let (program, shim) = (language.program.display().to_string(), folder.join(&language.shim).display().to_string());
    taper_runtimes::command(runtime, &program, &shim)
        .ok_or_else(|| Error::Prepare(format!("the runtime {runtime} has no handlers")))
}

/// What an instance of this revision may use.
pub(crate) fn limits(revision: &Revision) -> Limits {
    let spec = &revision.spec;
    // The watchdog counts as one, and is not the function's.
    Limits { memory: spec.memory(), cpu_millis: spec.cpu_milli(), pids: spec.pids().saturating_add(1) }
}

/// What an instance of this revision may reach.
pub(crate) fn policy(revision: &Revision) -> Policy {
    match revision.spec.network() {
        Wanted::None => Policy::None,
        Wanted::Public => Policy::Public,
        Wanted::Open => Policy::Open,
        Wanted::Host => Policy::Host,
    }
}

/// The claim of one instance.
///
/// # Errors
/// When the revision needs an interpreter that this machine does not have.
pub(crate) fn claim(
    revision: &Revision,
    instance: &InstanceId,
    layout: &Layout,
    languages: &Languages,
    dependencies: bool,
) -> Result<Claim, Error> {
    let (spec, id) = (&revision.spec, &revision.id);
    let mode = spec.mode();
    let command = match mode {
        Mode::Handler => {
            // Without isolation there is no other place for it than its own.
            let isolated = *layout == Layout::sandboxed();
            command(spec.runtime(), languages, if isolated { Path::new(RUNTIME) } else { languages.folder() })?
        }
        Mode::Classic | Mode::Http => spec.command.clone(),
    };
    let http = mode == Mode::Http;
    // An older revision may have one that would be refused today.
    let can_be_asked = |probe: &Probe| http || !probe.exec.is_empty();
    Ok(Claim {
        instance: instance.as_str().into(),
        function: id.function().name.to_string(),
        namespace: id.function().namespace.to_string(),
        revision: id.name(),
        mode,
        command,
        cwd: layout.code.display().to_string(),
        env: environment(revision, instance, layout, languages, dependencies),
        handler: spec.handler.clone(),
        concurrency: spec.concurrency(),
        port: http.then(|| upstream(spec).unwrap_or_else(|| port(spec.network(), layout))),
        socket: http.then(|| layout.temporary.join("taper.sock").display().to_string()),
        startup: spec.startup.clone().filter(can_be_asked),
        readiness: spec.readiness.clone().filter(can_be_asked),
        liveness: spec.liveness.clone().filter(can_be_asked),
        start_timeout_ms: u64::try_from(spec.start_timeout().as_millis()).unwrap_or(u64::MAX),
        max_reply_hold: REPLY_HOLD,
        max_early_hold: (spec.memory() / 2).clamp(REPLY_HOLD, EARLY_HOLD),
        combine_output: spec.combine_output.unwrap_or(false),
    })
}

/// The function's complete environment. What the user says wins over all of it.
///
/// `PATH`, `HOME`, `TMPDIR`, `LANG` as programs expect them; `K_SERVICE`, `K_CONFIGURATION` and `K_REVISION` as on
/// Knative; `OPENFAAS_NAME` and `OPENFAAS_NAMESPACE`; `TAPER_INSTANCE`. Python that is not a handler also gets
/// `PYTHONPATH` for its installed dependencies.
fn environment(
    revision: &Revision,
    instance: &InstanceId,
    layout: &Layout,
    languages: &Languages,
    dependencies: bool,
) -> BTreeMap<String, String> {
    let function = revision.id.function();
    let temporary = layout.temporary.display().to_string();
    let mut env: BTreeMap<String, String> = [
        ("PATH", languages.path()),
        ("HOME", temporary.clone()),
        ("TMPDIR", temporary),
        ("LANG", "C.UTF-8".into()),
        ("K_SERVICE", function.name.to_string()),
        ("K_CONFIGURATION", function.name.to_string()),
        ("K_REVISION", revision.id.name()),
        ("OPENFAAS_NAME", function.name.to_string()),
        ("OPENFAAS_NAMESPACE", function.namespace.to_string()),
        ("TAPER_INSTANCE", instance.as_str().to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let packages = layout.dependencies.display().to_string();
    if dependencies && revision.spec.runtime() == Runtime::Python3 {
        // The shim finds `/deps` by itself; elsewhere, and without the shim, it must be said.
        match revision.spec.mode() {
            Mode::Handler => env.insert("TAPER_DEPS".into(), packages),
            Mode::Classic | Mode::Http => env.insert("PYTHONPATH".into(), packages),
        };
    }
    if (revision.spec.mode(), revision.spec.convention) == (Mode::Handler, Some(Convention::Openfaas)) {
        env.insert("TAPER_CONVENTION".into(), "openfaas".into());
    }
    env.extend(revision.spec.env.clone());
    env
}

/// The port of a server that was written for OpenFaaS's watchdog, and so says itself where it listens.
fn upstream(spec: &FunctionSpec) -> Option<u16> {
    let url = spec.env.get("http_upstream_url").or_else(|| spec.env.get("upstream_url"))?;
    url.trim_end_matches('/').rsplit_once(':')?.1.parse().ok().filter(|port| *port != 0)
}

/// The port of a function in mode `http`: always the same where it has a network of its own, else one that is free now.
fn port(network: Wanted, layout: &Layout) -> u16 {
    if network != Wanted::Host && *layout == Layout::sandboxed() {
        return PORT;
    }
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    free.map_or(PORT, |address| address.port())
}

#[cfg(test)]
mod tests {
    use taper_model::{FunctionName, RevisionId};

    use super::*;

    fn revision(spec: FunctionSpec) -> Revision {
        Revision::bare(RevisionId::new(FunctionName::parse("hello.team").unwrap(), 3), spec)
    }

    fn claim_of(spec: FunctionSpec) -> Result<Claim, Error> {
        let dir = tempfile::tempdir().unwrap();
        let languages = Languages::find(dir.path(), &[]).unwrap();
        claim(&revision(spec), &InstanceId::new("hello-00003-1"), &Layout::sandboxed(), &languages, true)
    }

    #[test]
    fn a_classic_function_gets_its_command_and_environment() {
        let env = [("LANG".to_owned(), "de_DE.UTF-8".to_owned()), ("A".to_owned(), "1".to_owned())].into();
        let spec = FunctionSpec { command: vec!["cat".into(), "-".into()], env, ..FunctionSpec::default() };
        let claim = claim_of(spec).unwrap();
        assert_eq!(
            (claim.mode, claim.command.join(" ").as_str(), claim.cwd.as_str()),
            (Mode::Classic, "cat -", "/function")
        );
        let get = |name: &str| claim.env.get(name).map(String::as_str);
        assert_eq!(get("LANG"), Some("de_DE.UTF-8"), "the user's word wins");
        assert_eq!((get("A"), get("HOME"), get("K_SERVICE")), (Some("1"), Some("/tmp"), Some("hello")));
        assert_eq!((get("K_REVISION"), get("OPENFAAS_NAMESPACE")), (Some("hello-00003"), Some("team")));
        assert_eq!((claim.port, claim.socket, claim.concurrency), (None, None, 20));
    }

    #[test]
    fn a_server_gets_a_port_and_a_handler_its_interpreter() {
        let spec = FunctionSpec {
            command: vec!["./serve".into()],
            mode: Some(Mode::Http),
            runtime: Some(Runtime::Python3),
            ..FunctionSpec::default()
        };
        let claim = claim_of(spec).unwrap();
        assert_eq!((claim.port, claim.socket.as_deref()), (Some(8080), Some("/tmp/taper.sock")));
        assert_eq!(claim.env.get("PYTHONPATH").map(String::as_str), Some("/deps"));
        for (url, port) in [("http://127.0.0.1:3000/", 3000), ("http://127.0.0.1", 8080), ("http://x:0", 8080)] {
            let env = [("upstream_url".to_owned(), url.to_owned())].into();
            let spec = FunctionSpec {
                command: vec!["./serve".into()],
                mode: Some(Mode::Http),
                env,
                ..FunctionSpec::default()
            };
            assert_eq!(claim_of(spec).unwrap().port, Some(port), "{url}");
        }
        let spec = FunctionSpec {
            runtime: Some(Runtime::Python3),
            handler: Some("handler.handle".into()),
            convention: Some(Convention::Openfaas),
            ..FunctionSpec::default()
        };
        match claim_of(spec) {
            Ok(claim) => {
                assert_eq!(claim.env.get("TAPER_CONVENTION").map(String::as_str), Some("openfaas"));
                assert_eq!(claim.handler.as_deref(), Some("handler.handle"));
                assert!(
                    claim.command.last().is_some_and(|shim| shim.starts_with("/runtime/shim")),
                    "{:?}",
                    claim.command
                );
            }
            Err(e) => assert!(e.to_string().contains("apt-get install python3"), "{e}"),
        }
    }

    #[test]
    fn the_watchdog_is_not_counted_against_the_function() {
        let revision = revision(FunctionSpec::default());
        assert_eq!(limits(&revision).pids, 257);
        let dir = tempfile::tempdir().unwrap();
        let languages = Languages::find(dir.path(), &[]).unwrap();
        assert_eq!(kind(&revision, &languages).temporary, 64 << 20);
        assert_eq!(policy(&revision), Policy::Open);
    }
}
