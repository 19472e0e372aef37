//! A call that is asked for as a resource: JSON becomes the request that it describes, and goes the same way as one at `/async-function`.
//! What such a request may be is checked there, and not twice.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header::LOCATION, uri::PathAndQuery};
use serde::Deserialize;
use taper_model::{Cause, FunctionName, Name};

use super::{One, shown};
use crate::{
    Error, Shared,
    api::{
        functions::snapshot,
        known,
        read::{Space, json, whole},
    },
};

/// Largest JSON that describes a call. A larger body goes to `/async-function`, as it is.
pub(crate) const MAX_CALL: usize = 16 << 20;

/// What says to the queue how a call is to run: as a field here, and as a header of a request.
const FIELDS: [(&str, HeaderName); 5] = [
    ("delay", HeaderName::from_static("x-taper-delay")),
    ("at", HeaderName::from_static("x-taper-at")),
    ("idempotencyKey", HeaderName::from_static("idempotency-key")),
    ("orderKey", HeaderName::from_static("x-taper-order-key")),
    ("callback", HeaderName::from_static("x-callback-url")),
];

/// A call.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    function: String,
    method: Option<String>,
    path: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Values>,
    body: Option<String>,
    body_base64: Option<String>,
    delay: Option<String>,
    at: Option<String>,
    idempotency_key: Option<String>,
    order_key: Option<String>,
    callback: Option<String>,
}

/// A header's value, or several.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string, or a list of strings")]
enum Values {
    One(String),
    Many(Vec<String>),
}

/// Accepts a call: it is on disk when its record is answered.
pub(crate) async fn accept(
    State(shared): State<Arc<Shared>>,
    Space(namespace): Space,
    request: Request,
) -> Result<Response, Error> {
    known(&snapshot(&shared), &namespace)?;
    let wanted: Wanted = json(&whole(request, &shared, MAX_CALL).await?)?;
    let name = Name::new(&wanted.function).map_err(|e| Error::Invalid(format!("function: {e}")))?;
    let function = FunctionName::new(namespace.clone(), name);
    let accepted = (shared.parts.accept)(function, wanted.request()?).await.map_err(|mut fault| {
        // The words for a header are for a field here.
        if fault.cause == Cause::Malformed {
            let said = |text: String, (field, header): &(&str, HeaderName)| text.replace(header.as_str(), field);
            fault.message = FIELDS.iter().fold(fault.message, said);
        }
        Error::from(fault)
    })?;
    let location = format!("/v1/namespaces/{namespace}/invocations/{}", accepted.id);
    let found = One { namespace, id: accepted.id }.find(&shared).await?;
    let mut response = (StatusCode::ACCEPTED, Json(shown::whole(found).await)).into_response();
    let value =
        HeaderValue::try_from(location).map_err(|_| Error::Invalid("id: it is no part of an address".into()))?;
    response.headers_mut().insert(LOCATION, value);
    if accepted.repeated {
        response.headers_mut().insert("x-taper-repeated", HeaderValue::from_static("true"));
    }
    Ok(response)
}

impl Wanted {
    /// The request that it describes.
    fn request(self) -> Result<http::Request<Bytes>, Error> {
        let invalid = |text: String| Error::Invalid(text);
        let said = self.method.unwrap_or_else(|| "POST".into());
        let method = Method::from_bytes(said.as_bytes());
        let method = method.map_err(|_| invalid(format!("method: `{}` is none", said.escape_debug())))?;
        let path = self.path.unwrap_or_else(|| "/".into());
        let target =
            PathAndQuery::try_from(path.as_str()).ok().filter(|_| path.starts_with('/') && !path.contains('#'));
        let target = target.ok_or_else(|| {
            invalid(format!("path: `{}` is none; write one such as `/orders?day=1`, encoded", path.escape_debug()))
        })?;
        let mut headers = HeaderMap::new();
        for (name, values) in self.headers {
            let wrong = |what: &str| invalid(format!("headers.{}: {what}", name.escape_debug()));
            let header = HeaderName::try_from(&name).map_err(|_| wrong("it is no header's name"))?;
            if let Some((field, _)) = FIELDS.iter().find(|(_, own)| *own == header) {
                return Err(wrong(&format!("say it as `{field}`, beside `headers`")));
            }
            let values = match values {
                Values::One(value) => vec![value],
                Values::Many(values) => values,
            };
            for value in values {
                let value = HeaderValue::try_from(value).map_err(|_| wrong("a header's value is one line of text"))?;
                headers.append(&header, value);
            }
        }
        let fields = [self.delay, self.at, self.idempotency_key, self.order_key, self.callback];
        for ((field, header), value) in FIELDS.into_iter().zip(fields) {
            let Some(value) = value else { continue };
            let value =
                HeaderValue::try_from(value).map_err(|_| invalid(format!("{field}: it is one line of text")))?;
            headers.insert(header, value);
        }
        let body = match (self.body, self.body_base64) {
            (Some(_), Some(_)) => return Err(invalid("give `body`, which is text, or `bodyBase64`, not both".into())),
            (Some(text), None) => text.into(),
            (None, Some(text)) => {
                STANDARD.decode(text).map_err(|e| invalid(format!("bodyBase64: it is not base64: {e}")))?.into()
            }
            (None, None) => Bytes::new(),
        };
        let mut request = http::Request::new(body);
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, Uri::from(target), headers);
        Ok(request)
    }
}
