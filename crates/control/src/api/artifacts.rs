//! Artifacts: archives come in by their bytes and are known by their digest from then on.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
};
use futures_util::StreamExt;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use taper_model::Digest;

use crate::{Error, Shared, api::read::Asked};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expected {
    digest: Option<Digest>,
}

/// Streams the body to the disk; nothing is kept of one that breaks off, is too large, or is not what its digest says.
pub(crate) async fn put(
    State(shared): State<Arc<Shared>>,
    Asked(expected): Asked<Expected>,
    body: Body,
) -> Result<(StatusCode, Json<Value>), Error> {
    let limit = shared.config.artifact_limit;
    let too_large = || {
        Error::TooLarge(format!("the artifact is over the limit of {limit}; leave out what the function does not need"))
    };
    let mut upload = shared.parts.artifacts.begin(limit.0).await?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| Error::Invalid(format!("the upload broke off: {e}")))?;
        upload.write(&chunk).await.map_err(|e| match e {
            taper_store::Error::TooLarge { .. } => too_large(),
            other => other.into(),
        })?;
    }
    let digest = upload.finish(expected.digest).await?;
    Ok((StatusCode::CREATED, Json(json!({"digest": digest}))))
}

/// Whether an artifact is here; who asks means to deploy it, so it is kept for a while from now on.
pub(crate) async fn head(State(shared): State<Arc<Shared>>, Path(digest): Path<String>) -> Result<StatusCode, Error> {
    let digest: Digest = digest.parse()?;
    Ok(if shared.parts.artifacts.renew(&digest).await? { StatusCode::OK } else { StatusCode::NOT_FOUND })
}
