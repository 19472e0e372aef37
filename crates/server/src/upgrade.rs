//! How a running platform is asked to be replaced by a newer program: `POST /v1/upgrade`, and the signal SIGUSR2. What is done then is
//! `handover`'s.

use std::convert::Infallible;

use anyhow::Result;
use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::stream;
use http::{StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// Somebody who wants the platform to be replaced, and hears how far it is.
pub(crate) struct Asked(Option<mpsc::UnboundedSender<Value>>);

impl Asked {
    /// Something was done on the way.
    pub(crate) fn step(&self, line: &str) {
        tracing::info!("upgrade: {line}");
        self.tell(json!({ "line": line }));
    }

    /// The new process serves.
    pub(crate) fn serving(&self, version: &str, pid: u32) {
        tracing::info!(version, pid, "upgrade: the new process serves; this one ends with the calls that it still has");
        self.tell(json!({ "serving": { "version": version, "pid": pid } }));
    }

    /// Nothing has changed.
    pub(crate) fn failed(&self, why: &anyhow::Error) {
        tracing::error!("upgrade: {why:#}; this process goes on as before");
        self.tell(json!({ "failed": { "error": "upgrade_failed", "message": format!("{why:#}; the platform goes on as before") } }));
    }

    /// Somebody else asked first.
    pub(crate) fn late(&self) {
        let message = "another upgrade has just been carried out; ask again for one more";
        self.tell(json!({ "failed": { "error": "conflict", "message": message } }));
    }

    /// The new program did not take over, and this one was started once more in its place.
    pub(crate) fn fell_back(&self, why: &anyhow::Error, pid: u32) {
        let message = format!("{why:#}; the old program serves again, as process {pid}");
        tracing::error!("upgrade: {message}");
        self.tell(json!({ "failed": { "error": "upgrade_failed", "message": message } }));
    }

    /// Neither process serves.
    pub(crate) fn broken(&self, why: &anyhow::Error) {
        tracing::error!("upgrade: {why:#}; start the platform again");
        let message = format!("{why:#}; start the platform again");
        self.tell(json!({ "failed": { "error": "upgrade_failed", "message": message } }));
    }

    fn tell(&self, line: Value) {
        if let Some(to) = &self.0 {
            let _ = to.send(line);
        }
    }
}

/// Whoever asks arrives here, one at a time.
pub(crate) fn channel() -> (mpsc::Sender<Asked>, mpsc::Receiver<Asked>) {
    mpsc::channel(1)
}

/// `POST /v1/upgrade`: a line of JSON for each step, and a last one, `serving` or `failed`.
pub(crate) fn router(ask: mpsc::Sender<Asked>) -> Router {
    Router::new().route("/v1/upgrade", post(async move || answer(&ask)))
}

fn answer(ask: &mpsc::Sender<Asked>) -> Response {
    let (to, lines) = mpsc::unbounded_channel();
    if ask.try_send(Asked(Some(to))).is_err() {
        let body =
            json!({ "error": "conflict", "message": "the platform is being replaced or ended already; see its log" });
        return (StatusCode::CONFLICT, axum::Json(body)).into_response();
    }
    let lines = stream::unfold(lines, async |mut lines| {
        let line: Value = lines.recv().await?;
        Some((Ok::<_, Infallible>(format!("{line}\n")), lines))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// Asks whenever SIGUSR2 comes.
///
/// # Errors
/// When the signal cannot be listened to.
pub(crate) fn on_signal(ask: mpsc::Sender<Asked>) -> Result<()> {
    let mut signals = signal(SignalKind::user_defined2())?;
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            if ask.try_send(Asked(None)).is_err() {
                tracing::warn!("SIGUSR2: the platform is being replaced or ended already");
            }
        }
    });
    Ok(())
}
