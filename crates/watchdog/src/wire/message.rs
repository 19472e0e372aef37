//! What the JSON frames say: CALL, REPLY, FAULT and the trailers of END.
//!
//! Never here: bytes of bodies, which travel as they are.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::Error;

/// The head of one call, platform → runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Call<'a> {
    /// The call's identity, in every log line about it.
    pub id: Cow<'a, str>,
    /// The HTTP method.
    pub method: Cow<'a, str>,
    /// The path as it came, not decoded; begins with `/`.
    pub path: Cow<'a, str>,
    /// The query as it came, without the `?`; may be empty.
    pub query: Cow<'a, str>,
    /// Headers in their order, names in lower case. A value that is not UTF-8 is given as Latin-1.
    pub headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Milliseconds until the last byte of the reply must have left.
    pub deadline_ms: u64,
    /// The function's name.
    pub function: Cow<'a, str>,
    /// Its namespace.
    pub namespace: Cow<'a, str>,
    /// The revision that serves the call.
    pub revision: Cow<'a, str>,
    /// The size of the body, where the caller said it.
    pub content_length: Option<u64>,
}

/// The head of the answer, runtime → platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The size of the body, where the runtime knows it. The platform may hold it to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Headers in their order; names in any case, unchecked.
    pub headers: Vec<(String, String)>,
}

/// Headers that follow a body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trailers {
    /// Names and values, unchecked.
    pub trailers: Vec<(String, String)>,
}

/// Why a call has no (whole) reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What kind of failure.
    pub what: FaultKind,
    /// One line, safe to show to the function's owner: `ValueError: no such city`.
    pub message: String,
    /// More of it: a traceback, or the end of standard error.
    #[serde(default)]
    pub detail: Option<String>,
    /// The exit status, where a process had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
}

/// The kinds of failure a runtime can report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultKind {
    /// The function raised.
    Exception,
    /// The call's process ended with a status other than 0, or by a signal.
    Exit,
    /// The caller left or the deadline passed.
    Cancelled,
    /// The request was larger than the runtime can hold.
    TooLarge,
}

impl<'a> Call<'a> {
    /// Reads the payload of a CALL frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] with what is wrong.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Error> {
        serde_json::from_slice(payload).map_err(|e| Error::call(format!("CALL: {e}")))
    }
}

impl Reply {
    /// Reads the payload of a REPLY frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] with what is wrong, also for a status outside of 200 to 599.
    pub fn decode(payload: &[u8]) -> Result<Self, Error> {
        let reply: Self = from_json("REPLY", payload)?;
        if !(200..=599).contains(&reply.status) {
            return Err(Error::call(format!("REPLY: {} is not a final status", reply.status)));
        }
        Ok(reply)
    }
}

impl Fault {
    /// Reads the payload of a FAULT frame.
    ///
    /// # Errors
    /// [`Error::Malformed`] with what is wrong.
    pub fn decode(payload: &[u8]) -> Result<Self, Error> {
        from_json("FAULT", payload)
    }
}

impl Trailers {
    /// Reads the payload of an END frame; an empty one has no trailers.
    ///
    /// # Errors
    /// [`Error::Malformed`] with what is wrong.
    pub fn decode(payload: &[u8]) -> Result<Self, Error> {
        if payload.is_empty() { Ok(Self::default()) } else { from_json("END", payload) }
    }
}

fn from_json<T: DeserializeOwned>(frame: &str, payload: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(payload).map_err(|e| Error::call(format!("{frame}: {e}")))
}

/// The JSON of a message. These types have string keys and finite numbers only, so it cannot fail.
pub(super) fn to_json(message: &impl Serialize) -> Bytes {
    serde_json::to_vec(message).expect("messages of the call protocol are plain JSON").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_call_survives_the_wire(
            id in "\\PC{1,40}", path in "/\\PC*", query in "\\PC*", deadline_ms in any::<u64>(),
            content_length in any::<Option<u64>>(),
            headers in prop::collection::vec(("[a-z-]{1,20}", "\\PC*"), 0..20),
        ) {
            let call = Call {
                id: id.into(), method: "POST".into(), path: path.into(), query: query.into(),
                headers: headers.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
                deadline_ms, function: "f".into(), namespace: "default".into(), revision: "f-00001".into(), content_length,
            };
            let json = to_json(&call);
            prop_assert_eq!(Call::decode(&json).unwrap(), call);
        }

        #[test]
        fn a_reply_and_a_fault_survive_the_wire(
            status in 200_u16..600, length in any::<Option<u64>>(), message in "\\PC*", detail in any::<Option<String>>(), exit in any::<Option<i32>>(),
            headers in prop::collection::vec((any::<String>(), any::<String>()), 0..9),
        ) {
            let reply = Reply { status, length, headers };
            prop_assert_eq!(Reply::decode(&to_json(&reply)).unwrap(), reply);
            let fault = Fault { what: FaultKind::TooLarge, message, detail, exit };
            prop_assert_eq!(Fault::decode(&to_json(&fault)).unwrap(), fault);
        }

        #[test]
        fn any_payload_decodes_or_is_refused(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (Call::decode(&payload).is_ok(), Reply::decode(&payload).is_ok(), Fault::decode(&payload).is_ok());
            prop_assert_eq!(Trailers::decode(&payload).is_ok(), payload.is_empty());
        }
    }

    #[test]
    fn a_status_that_is_not_final_is_refused() {
        for status in [0, 100, 199, 600, 65535] {
            let json = format!(r#"{{"status":{status},"headers":[]}}"#);
            assert!(Reply::decode(json.as_bytes()).is_err(), "{status}");
        }
    }
}
