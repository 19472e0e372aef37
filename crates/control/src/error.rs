//! Everything the control plane can refuse, and the status that says so. The OpenFaaS face prints the text, `/v1` the JSON.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{
    StatusCode,
    header::{CONTENT_LENGTH, RETRY_AFTER},
};
use serde_json::json;
use taper_model::{CallId, Cause, Fault, Invalid, Retry};

/// Why the control plane did not do as it was told. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is wrong; the text names the field, the value, and the mend.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// What is there already stands against it.
    #[error("{0}")]
    Conflict(String),
    /// More bytes than are allowed.
    #[error("{0}")]
    TooLarge(String),
    /// The path exists, the method does not.
    #[error("{0}")]
    Method(String),
    /// It was there, and is not kept any more.
    #[error("{0}")]
    Gone(String),
    /// A bound is reached; there may be room after this long.
    #[error("{0}")]
    Busy(String, Duration),
    /// What is needed is away; it may be back after this long.
    #[error("{0}")]
    Away(String, Duration),
    /// No space is left for what was to be written; there may be some after this long.
    #[error("{0}")]
    DiskFull(String, Duration),
    /// The platform is shutting down.
    #[error("the platform is shutting down; try again when it is back")]
    Stopping,
    /// The store could not do its work.
    #[error("{0}")]
    Store(taper_store::Error),
    /// The queue could not do its work. Why is in the log: that names places on the host.
    #[error("{0}")]
    Queue(String),
}

impl Error {
    /// The word in the field `error` of the JSON.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::NotFound(_) => "not_found",
            Self::Conflict(_) => "conflict",
            Self::TooLarge(_) => "body_too_large",
            Self::Method(_) => "method_not_allowed",
            Self::Gone(_) => "gone",
            Self::Busy(..) => "limited",
            Self::Away(..) => "unavailable",
            Self::Stopping => "shutting_down",
            Self::DiskFull(..) => "disk_full",
            Self::Store(e) if e.is_full() => "disk_full",
            Self::Store(_) | Self::Queue(_) => "internal",
        }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Gone(_) => StatusCode::GONE,
            Self::Busy(..) => StatusCode::TOO_MANY_REQUESTS,
            Self::Away(..) | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::DiskFull(..) => StatusCode::INSUFFICIENT_STORAGE,
            Self::Store(e) if e.is_full() => StatusCode::INSUFFICIENT_STORAGE,
            Self::Store(_) | Self::Queue(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<Invalid> for Error {
    fn from(e: Invalid) -> Self {
        Self::Invalid(e.0)
    }
}

impl From<taper_store::Error> for Error {
    fn from(e: taper_store::Error) -> Self {
        use taper_store::Error as S;
        match e {
            S::NotFound(_) => Self::NotFound(e.to_string()),
            S::Exists(_) | S::Taken(_) | S::InUse(_) | S::Settled { .. } | S::Exhausted(_) => {
                Self::Conflict(e.to_string())
            }
            S::Refused(_) | S::Mismatch { .. } | S::Ended => Self::Invalid(e.to_string()),
            S::TooLarge { .. } => Self::TooLarge(e.to_string()),
            S::Stopped => Self::Stopping,
            other => Self::Store(other),
        }
    }
}

impl From<taper_queue::Error> for Error {
    fn from(e: taper_queue::Error) -> Self {
        use taper_queue::Error as Q;
        let text = e.to_string();
        match e {
            Q::TooLarge { .. } => Self::TooLarge(text),
            Q::Full { retry_after, .. } => Self::Busy(text, retry_after),
            Q::NotFound(_) => Self::NotFound(text),
            Q::State { .. } => Self::Conflict(text),
            Q::Mark(_) => Self::Invalid(format!("after: {text}")),
            Q::Stopped => Self::Stopping,
            other => other.fault().into(),
        }
    }
}

/// Why the queue did not do as it was told, as whoever accepts calls has it.
impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let text = fault.message;
        match (fault.cause, fault.retry) {
            (Cause::BodyTooLarge | Cause::HeadersTooLarge, _) => Self::TooLarge(text),
            (Cause::NotFound, _) => Self::NotFound(text),
            (Cause::Conflict, _) => Self::Conflict(text),
            (Cause::ShuttingDown, _) => Self::Stopping,
            (Cause::Malformed | Cause::Method, _) => Self::Invalid(text),
            (Cause::Limited, Retry::After(wait)) => Self::Busy(text, wait),
            (cause, Retry::After(wait)) => {
                tracing::warn!(source = fault.source.as_ref().map(tracing::field::display), "{text}");
                if cause == Cause::DiskFull { Self::DiskFull(text, wait) } else { Self::Away(text, wait) }
            }
            _ => {
                tracing::error!(source = fault.source.as_ref().map(tracing::field::display), "{text}");
                Self::Queue(text)
            }
        }
    }
}

/// Its status; a layer of the router, which knows the request, writes the body.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        if let Self::Store(e) = &self {
            tracing::error!(error = %e, "the store failed");
        }
        let wait = match &self {
            Self::Busy(_, wait) | Self::Away(_, wait) | Self::DiskFull(_, wait) => {
                Some(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
            }
            _ => None,
        };
        let refusal = Extension(Refusal { code: self.code(), message: self.to_string() });
        let mut response = (self.status(), refusal).into_response();
        if let Some(wait) = wait {
            response.headers_mut().insert(RETRY_AFTER, wait.max(1).into());
        }
        response
    }
}

/// An error on its way out.
#[derive(Clone)]
struct Refusal {
    code: &'static str,
    message: String,
}

/// Writes the body of errors: `{"error": CODE, "message": …, "callId": …}`. The id is the gateway's, where there is one.
pub(crate) async fn body(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<CallId>().cloned();
    let mut response = next.run(request).await;
    let Some(Refusal { code, message }) = response.extensions_mut().remove() else { return response };
    let mut body = json!({"error": code, "message": message});
    if let Some(id) = id {
        body["callId"] = id.as_str().into();
    }
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    (parts.status, parts.headers, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_when_to_come_again() {
        let mut fault = Fault::new(taper_model::Stage::Queue, Cause::DiskFull, "no space is left");
        fault.retry = Retry::After(Duration::from_secs(30));
        let error = Error::from(fault);
        assert_eq!((error.code(), error.to_string().as_str()), ("disk_full", "no space is left"));
        let response = error.into_response();
        assert_eq!((response.status().as_u16(), &response.headers()[RETRY_AFTER]), (507, &"30".parse().unwrap()));
    }

    /// Whichever way one comes to the queue, it is refused with the same status, sentence and time.
    #[test]
    fn what_the_queue_says_is_said_alike() {
        use taper_queue::Error as Q;
        let away = || Q::Away { why: "connection refused by 10.0.0.1".into(), retry_after: Duration::from_secs(3) };
        for (error, status, wait) in
            [(away(), 503, Some(3)), (Q::Lost("gone".into()), 500, None), (Q::Stopped, 503, None)]
        {
            let (asked, accepted) = (Error::from(error.clone()), Error::from(error.fault()));
            assert_eq!(asked.to_string(), accepted.to_string());
            assert!(!asked.to_string().contains("10.0.0.1"), "{asked}");
            for error in [asked, accepted] {
                let response = error.into_response();
                assert_eq!(response.status().as_u16(), status);
                let said = response.headers().get(RETRY_AFTER).map(|v| v.to_str().unwrap().to_owned());
                assert_eq!(said, wait.map(|wait: u64| wait.to_string()));
            }
        }
    }
}
