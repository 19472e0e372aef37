//! Alertmanager's webhook, by which OpenFaaS's free edition scales: firing adds a share of the most instances, resolved goes back to the
//! fewest. Our own autoscaler needs no alerts; where rules are still set up, both hold, and the autoscaler has the last word.

use std::{collections::BTreeMap, sync::Arc};

use axum::extract::{Request, State};
use http::StatusCode;
use serde::Deserialize;
use taper_model::FunctionName;

use crate::{
    Error, Shared, api,
    board::Seen,
    openfaas::{Text, labels, told},
    policy,
};

#[derive(Deserialize)]
struct Webhook {
    alerts: Vec<Alert>,
}

#[derive(Deserialize)]
struct Alert {
    status: String,
    labels: BTreeMap<String, String>,
}

/// One alert that is wrong does not keep the others.
pub(super) async fn receive(State(shared): State<Arc<Shared>>, body: Request) -> Result<StatusCode, Text> {
    let webhook: Webhook = told(body).await.map_err(|Text(error)| match error {
        Error::Invalid(_) => Text(Error::Invalid("Unable to parse alert, bad format.".into())),
        other => Text(other),
    })?;
    for alert in webhook.alerts {
        let name = alert.labels.get("function_name").map(String::as_str).unwrap_or_default();
        if let Err(error) = act(&shared, name, &alert.status).await {
            tracing::warn!(function = name.escape_debug().to_string(), %error, "an alert has no effect");
        }
    }
    Ok(StatusCode::OK)
}

async fn act(shared: &Shared, name: &str, status: &str) -> Result<(), Error> {
    let name = FunctionName::parse(name)?;
    let snapshot = Arc::clone(&shared.parts.store.snapshot().borrow());
    let function = snapshot.function(&name).ok_or_else(|| api::no_function(&name))?;
    let Some(revision) = function.serving() else { return Ok(()) };
    let (policy, factor) = (policy::of(revision), labels::factor(&revision.labels)?);
    let now = Seen::all(&shared.board, function).want;
    let count = match status {
        "firing" => now.saturating_add((policy.max * factor).div_ceil(100)).min(policy.max),
        "resolved" => policy.min,
        other => {
            return Err(Error::Invalid(format!("status: `{}` is neither firing nor resolved", other.escape_debug())));
        }
    };
    if factor == 0 || count == now { Ok(()) } else { api::set_scale(shared, &name, count).await }
}
