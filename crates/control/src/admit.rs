//! The gate of the deploy journey: what must hold before anything is changed. Reads the store, never writes it.

use std::collections::BTreeMap;

use taper_model::{
    FunctionName, FunctionSpec, Mode, Name,
    function::{Network, Source},
    invocation::Retries,
    traffic,
};
use taper_store::Deploy;

use crate::{Config, Error, Parts, policy};

/// Checks a function completely and says it as the store takes it: runtime and mode spelled out, the source a digest or nothing, and what is the
/// function's and not the revision's beside the spec.
///
/// # Errors
/// The first thing that is wrong, with the field's path, the value and the mend.
// long because: it is one check after another, in their order
pub(crate) async fn admit(
    config: &Config,
    parts: &Parts,
    function: FunctionName,
    mut spec: FunctionSpec,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    by: String,
) -> Result<Deploy, Error> {
    let artifact = match &spec.source {
        Some(Source::Path(path)) => {
            return refuse(format!(
                "spec.source: `{}` is a path on your machine, which the platform cannot read; `taper deploy -f FILE` packs and uploads it, \
                 or upload an archive with PUT /v1/artifacts and write `source: {{digest: sha256:…}}`",
                path.escape_debug()
            ));
        }
        Some(Source::Digest { digest }) => Some(*digest),
        None => None,
    };
    if !parts.store.snapshot().borrow().namespaces.contains_key(&function.namespace) {
        return refuse(format!("metadata.namespace: {}", no_namespace(&function.namespace)));
    }
    spec.validate()?;
    policy::policy(&spec, &annotations).map_err(|e| Error::Invalid(e.to_string()))?;
    match (spec.mode(), &spec.handler) {
        (Mode::Handler, _) if artifact.is_none() => {
            return refuse("spec.source: mode `handler` needs the code; write `source: {digest: sha256:…}`".into());
        }
        (mode, Some(handler)) if mode != Mode::Handler => {
            return refuse(format!(
                "spec.handler: `{}` means nothing in mode `{mode}`; leave it out",
                handler.escape_debug()
            ));
        }
        _ => {}
    }
    if spec.network() == Network::Host && !config.allow_host_network {
        return refuse(
            "spec.network: `host` is not allowed on this platform; its operator can start it with `--allow-host-network`"
                .into(),
        );
    }
    let routing = spec.take_routing();
    let before = parts.store.snapshot().borrow().function(&function).cloned();
    traffic::validate(&routing, &function, before.as_deref())?;
    if !config.private_callbacks {
        for (word, destination) in routing.asynchronous.destinations() {
            destination.refuse_inside(&format!("spec.async.{word}"))?;
        }
    }
    if let Some(digest) = artifact
        && !parts.artifacts.renew(&digest).await?
    {
        return refuse(format!("spec.source.digest: there is no artifact {digest}; upload it with PUT /v1/artifacts"));
    }
    let known = if spec.secrets.is_empty() { Vec::new() } else { parts.store.secrets(&function.namespace).await? };
    if let Some(missing) = spec.secrets.iter().find(|s| !known.contains(s)) {
        return refuse(format!(
            "spec.secrets: there is no secret `{missing}` in namespace `{}`; create it with `taper secret create {missing}`",
            function.namespace
        ));
    }
    for why in Retries::of_annotations(&annotations).1 {
        tracing::warn!(%function, %why, "an annotation has no effect");
    }
    (spec.runtime, spec.mode) = (Some(spec.runtime()), Some(spec.mode()));
    Ok(Deploy { function, spec, artifact, labels, annotations, routing, by })
}

/// The refusal of a namespace that is not there.
pub(crate) fn no_namespace(name: &Name) -> String {
    format!("there is no namespace `{name}`; create it with `taper namespace create {name}`")
}

fn refuse<T>(text: String) -> Result<T, Error> {
    Err(Error::Invalid(text))
}
