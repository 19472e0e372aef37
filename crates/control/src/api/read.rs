//! What requests say, read strictly: paths, queries and JSON bodies, each refused in the API's own shape with the place named.

mod lists;

use std::collections::HashMap;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::AUTHORIZATION, request::Parts};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use taper_model::{FunctionName, Name};

use crate::{
    Error,
    api::{MAX_JSON, invocations::One},
};

/// The `{namespace}` of a path.
pub(crate) struct Space(pub(crate) Name);

/// The `{namespace}` and the `{name}` of a path: a function, or a secret in its namespace.
pub(crate) struct Target(pub(crate) FunctionName);

/// A query without unknown fields.
pub(crate) struct Asked<T>(pub(crate) T);

/// A JSON body, whatever its content type says.
pub(crate) struct Told<T>(pub(crate) T);

async fn path_words<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<HashMap<String, String>, Error> {
    let words = Path::<HashMap<String, String>>::from_request_parts(parts, state).await;
    words.map(|Path(words)| words).map_err(|e| Error::Invalid(format!("path: {e}")))
}

fn word<'a>(words: &'a HashMap<String, String>, key: &str) -> &'a str {
    words.get(key).map(String::as_str).unwrap_or_default()
}

impl<S: Send + Sync> FromRequestParts<S> for Space {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let words = path_words(parts, state).await?;
        Ok(Self(Name::namespace(word(&words, "namespace"))?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let words = path_words(parts, state).await?;
        let namespace = Name::namespace(word(&words, "namespace"))?;
        Ok(Self(FunctionName::new(namespace, Name::new(word(&words, "name"))?)))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for One {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let words = path_words(parts, state).await?;
        Self::new(Name::namespace(word(&words, "namespace"))?, word(&words, "id"))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        let query = Query::<T>::try_from_uri(&parts.uri);
        query.map(|Query(query)| Self(query)).map_err(|e| {
            let inner = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            Error::Invalid(format!("query: {inner}"))
        })
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Told<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        json(&body(request, state).await?).map(Self)
    }
}

/// The same where nothing need be said: an empty body is as good as an empty object.
pub(crate) struct Perhaps<T>(pub(crate) T);

/// Who asks: the user, and in parentheses what the client says of itself.
pub(crate) struct By(pub(crate) String);

/// The header in which a client says who sits in front of it, such as `dev@laptop`.
const SAYS: &str = "x-taper-by";
/// Longest such word, and longest user.
const LONGEST: usize = 128;

impl By {
    /// What the headers say. Whoever answers for the platform has authenticated the request before; nobody is asked again here.
    ///
    /// # Errors
    /// When the client says of itself what cannot be printed, or too much.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let user = headers.get(AUTHORIZATION).and_then(|v| user(v.to_str().ok()?)).unwrap_or_else(|| "admin".into());
        let Some(said) = headers.get(SAYS) else { return Ok(Self(user)) };
        let plain = said.to_str().ok().map(str::trim).filter(|s| s.len() <= LONGEST);
        match plain {
            Some("") => Ok(Self(user)),
            Some(said) => Ok(Self(format!("{user} ({said})"))),
            None => {
                Err(Error::Invalid(format!("{SAYS}: say who you are in at most {LONGEST} printable ASCII characters")))
            }
        }
    }
}

/// The user of basic authentication.
fn user(value: &str) -> Option<String> {
    let (scheme, token) = value.split_once(' ')?;
    let pair = STANDARD.decode(token.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let pair = String::from_utf8(pair).ok()?;
    let name = pair.split_once(':')?.0;
    (!name.is_empty() && name.len() <= LONGEST && !name.contains(char::is_control)).then(|| name.to_owned())
}

impl<S: Send + Sync> FromRequestParts<S> for By {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Self::of(&parts.headers)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for Perhaps<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let bytes = body(request, state).await?;
        if bytes.is_empty() { Ok(Self(T::default())) } else { json(&bytes).map(Self) }
    }
}

/// A whole body within the bound of JSON.
pub(crate) async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Error> {
    whole(request, state, MAX_JSON).await
}

/// A whole body within this bound, which is that of its route.
pub(crate) async fn whole<S: Send + Sync>(request: Request, state: &S, limit: usize) -> Result<Bytes, Error> {
    Bytes::from_request(request, state).await.map_err(|e| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge(format!("the body is over the limit of {limit} bytes")),
        _ => Error::Invalid(format!("the body could not be read: {}", e.body_text())),
    })
}

/// Reads a JSON object; what is wrong is named by its path: `spec.scale.min: …`.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    has_objects::<T>(bytes)?;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
        let path = e.path().to_string();
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        Error::Invalid(format!("{place}{}", e.into_inner()))
    })?;
    reader.end().map_err(|e| Error::Invalid(format!("after the JSON: {e}")))?;
    Ok(value)
}

/// Refuses what is JSON and no object, and a list within it that stands for one: it would be read as the values of fields in the order in which
/// they stand in our code.
pub(crate) fn has_objects<T: DeserializeOwned>(bytes: &[u8]) -> Result<(), Error> {
    let it = match bytes.trim_ascii_start().first() {
        None => "is empty",
        Some(b'[') => "is a JSON array",
        Some(b'"') => "is a JSON string",
        Some(b'-' | b'0'..=b'9') => "is a number",
        Some(b't' | b'f' | b'n') => "is a single word",
        // What is none at all its reader says best.
        Some(_) => {
            let path = lists::for_an_object::<T>(bytes);
            return path.map_or(Ok(()), |path| {
                Err(Error::Invalid(format!("{path}: this is a list; an object is expected: {{…}}")))
            });
        }
    };
    Err(Error::Invalid(format!("the body {it}; a JSON object is expected: {{…}}")))
}

/// A yes or no in a query: `follow`, `follow=true`, `follow=0`.
pub(crate) fn flag<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
    match String::deserialize(d)?.as_str() {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        other => Err(serde::de::Error::custom(format!("`{other}` is neither `true` nor `false`"))),
    }
}
