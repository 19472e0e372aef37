//! What became of a call, in the shape of AWS Lambda's destination records: a consumer of those reads ours. Pure.

use std::str;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use taper_model::{RevisionId, Stage, clock};

use crate::{Attempt, Condition, Details, callback::name};

/// Where Lambda's functions would be: no region and no account is ours, and whoever takes a function's ARN apart finds what he expects.
const ARN: &str = "arn:aws:lambda:us-east-1:000000000000:function";
/// What Lambda calls a version that has no number.
const LATEST: &str = "$LATEST";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    version: &'static str,
    timestamp: String,
    request_context: Request<'a>,
    request_payload: Payload<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_context: Option<Response>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_payload: Option<Payload<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    request_id: &'a str,
    function_arn: String,
    condition: Condition,
    approximate_invoke_count: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    status_code: u16,
    executed_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_error: Option<&'static str>,
}

/// Bytes in JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    /// They are JSON: as they are, to the last digit.
    Json(&'a RawValue),
    Text(&'a str),
    Base64(String),
    Error {
        #[serde(rename = "errorMessage")]
        message: &'a str,
    },
}

impl<'a> Payload<'a> {
    /// `cut`: there was more, and what is missing may be half a character.
    fn of(bytes: &'a [u8], cut: bool) -> Self {
        let text = match str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) if cut && error.error_len().is_none() => {
                str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default()
            }
            Err(_) => return Self::Base64(BASE64_STANDARD.encode(bytes)),
        };
        match serde_json::from_str::<&RawValue>(text) {
            // The first half of a number is a number.
            Ok(json) if !cut => Self::Json(json),
            _ => Self::Text(text),
        }
    }
}

/// The record of a call that has ended, and why.
pub(crate) fn record(details: &Details, condition: Condition) -> Bytes {
    let Details { invocation, entry, attempts, answer, .. } = details;
    let last = attempts.last().filter(|attempt| reached(attempt));
    let failed = condition != Condition::Success;
    let record = Record {
        version: "1.0",
        timestamp: clock::rfc3339(invocation.ended_ms.unwrap_or_default()),
        request_context: Request {
            request_id: invocation.id.as_str(),
            function_arn: format!("{ARN}:{}:{LATEST}", name(&invocation.function)),
            condition,
            approximate_invoke_count: attempts.iter().filter(|attempt| reached(attempt)).count(),
        },
        request_payload: Payload::of(&entry.body, false),
        response_context: last.and_then(|attempt| {
            Some(Response {
                status_code: attempt.status?,
                executed_version: version(details, attempt),
                function_error: failed.then_some("Unhandled"),
            })
        }),
        response_payload: last.map(|_| match answer {
            Some(answer) => Payload::of(&answer.body, answer.cut),
            None => Payload::Error { message: invocation.reason.as_deref().unwrap_or_default() },
        }),
    };
    // Text and numbers: nothing of it can fail.
    serde_json::to_vec(&record).unwrap_or_default().into()
}

/// Whether an attempt came to the function: where it did not, there is nothing that answered.
fn reached(attempt: &Attempt) -> bool {
    let before = [Stage::Accept, Stage::Route, Stage::Queue, Stage::Activate];
    !attempt.stage.as_deref().is_some_and(|stage| before.iter().any(|b| b.as_str() == stage))
}

/// The number of the revision, as Lambda numbers versions.
fn version(details: &Details, attempt: &Attempt) -> String {
    let number = attempt.revision.as_deref().and_then(|name| RevisionId::number_in(&details.entry.function.name, name));
    number.map_or_else(|| LATEST.into(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};
    use serde_json::{Value, json};
    use taper_model::FunctionName;

    use super::*;
    use crate::{Answer, Invocation, State, conformance};

    fn details(body: &'static [u8], answer: Option<Answer>, attempts: Vec<Attempt>) -> Details {
        let entry = conformance::entry("f", body);
        let invocation = Invocation {
            id: entry.id.clone(),
            function: entry.function.clone(),
            trigger: None,
            state: State::Dead,
            accepted_ms: 0,
            due_ms: None,
            ended_ms: Some(1_709_251_199_999),
            attempts: u32::try_from(attempts.len()).unwrap(),
            status: attempts.last().and_then(|a| a.status),
            reason: Some("it went wrong".into()),
        };
        Details { invocation, entry, attempts, answer, deliveries: Vec::new() }
    }

    fn attempt(status: u16, stage: Option<Stage>) -> Attempt {
        Attempt {
            started_ms: 0,
            took_ms: 1,
            status: Some(status),
            stage: stage.map(|stage| stage.as_str().into()),
            message: None,
            start: None,
            revision: Some("f-00007".into()),
            instance: None,
        }
    }

    fn answer(status: u16, body: &'static [u8], cut: bool) -> Option<Answer> {
        let status = StatusCode::from_u16(status).unwrap();
        Some(Answer { status, headers: HeaderMap::new(), body: Bytes::from_static(body), cut })
    }

    fn read(details: &Details, condition: Condition) -> Value {
        serde_json::from_slice(&record(details, condition)).unwrap()
    }

    #[test]
    fn what_was_answered() {
        let details = details(
            br#"{"n": 12345678901234567890123, "a": [1.10]}"#,
            answer(200, b"\"fine\"", false),
            vec![attempt(200, None)],
        );
        let text = String::from_utf8(record(&details, Condition::Success).to_vec()).unwrap();
        assert!(text.contains(r#""requestPayload":{"n": 12345678901234567890123, "a": [1.10]}"#), "{text}");
        let mut shown: Value = serde_json::from_str(&text).unwrap();
        shown["requestPayload"] = Value::Null;
        assert_eq!(
            shown,
            json!({
                "version": "1.0",
                "timestamp": "2024-02-29T23:59:59.999Z",
                "requestContext": {
                    "requestId": details.invocation.id.as_str(),
                    "functionArn": "arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST",
                    "condition": "Success",
                    "approximateInvokeCount": 1,
                },
                "requestPayload": null,
                "responseContext": {"statusCode": 200, "executedVersion": "7"},
                "responsePayload": "fine",
            })
        );
    }

    #[test]
    fn what_failed() {
        let tried = vec![attempt(503, Some(Stage::Queue)), attempt(500, None), attempt(504, Some(Stage::Invoke))];
        let shown = read(&details(b"not json", None, tried), Condition::RetriesExhausted);
        assert_eq!(shown["requestContext"]["condition"], "RetriesExhausted");
        assert_eq!(shown["requestContext"]["approximateInvokeCount"], 2, "one did not reach it");
        assert_eq!(shown["requestPayload"], "not json");
        assert_eq!(
            shown["responseContext"],
            json!({"statusCode": 504, "executedVersion": "7", "functionError": "Unhandled"})
        );
        assert_eq!(shown["responsePayload"], json!({"errorMessage": "it went wrong"}));
        // It never came to the function: nobody answered.
        let shown = read(&details(b"1", None, vec![attempt(404, Some(Stage::Route))]), Condition::EventAgeExceeded);
        assert_eq!(shown["requestContext"]["approximateInvokeCount"], 0);
        assert_eq!(shown["requestPayload"], 1);
        assert!(shown.get("responseContext").is_none() && shown.get("responsePayload").is_none(), "{shown}");
    }

    #[test]
    fn payloads_of_all_kinds() {
        let deep: &'static str = Box::leak("[".repeat(10_000).into_boxed_str());
        let shown = |bytes: &'static [u8], cut| serde_json::to_value(Payload::of(bytes, cut)).unwrap();
        for (bytes, cut, as_json) in [
            (&b"null"[..], false, Value::Null),
            (b" [1, 2] ", false, json!([1, 2])),
            (b"", false, json!("")),
            (b"{\"half\": ", true, json!("{\"half\": ")),
            (b"123", true, json!("123")),
            ("Grüß".as_bytes(), false, json!("Grüß")),
            (&"Grüß".as_bytes()[..3], true, json!("Gr")),
            (&"Grüß".as_bytes()[..3], false, json!("R3LD")),
            (&[0xff, 0xfe, 0], true, json!("//4A")),
            (deep.as_bytes(), false, json!(deep)),
        ] {
            assert_eq!(shown(bytes, cut), as_json, "{bytes:?}");
        }
    }

    #[test]
    fn outside_the_default_namespace_the_name_says_so() {
        let mut details = details(b"", answer(200, b"", false), vec![attempt(200, None)]);
        details.invocation.function = FunctionName::parse("f.shop").unwrap();
        let shown = read(&details, Condition::Success);
        let arn = "arn:aws:lambda:us-east-1:000000000000:function:f.shop:$LATEST";
        assert_eq!((&shown["requestContext"]["functionArn"], &shown["responsePayload"]), (&json!(arn), &json!("")));
    }
}
