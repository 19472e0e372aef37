//! The part of the document that is about calls whose callers do not wait.

use serde_json::{Value, json};

use super::{JSON, NDJSON, list, named, object, operation, path, query};

/// The operations.
// long because: it is a table, one entry per operation
pub(super) fn paths() -> Value {
    let namespace = [path("namespace", "The namespace.")];
    let one = [path("namespace", "The namespace."), path("id", "The call's id.")];
    let which = [
        query("function", "string", "Only one function's."),
        query("status", "string", "Only those that are `waiting`, `running`, `done`, `dead` or `cancelled`."),
        query("trigger", "string", "Only those that a trigger made."),
        query(
            "since",
            "string",
            "Only those that were accepted at a time (RFC 3339) or later, or within an age such as `1h`.",
        ),
        query(
            "before",
            "string",
            "Only those that were accepted before a time (RFC 3339), or longer ago than an age such as `7d`.",
        ),
    ];
    let pages = [
        query("limit", "integer", "At most so many, 1 to 1000. Default 100."),
        query("after", "string", "The page after the one that ended with this `next`."),
        query("watch", "boolean", "Every change from now on instead, as server-sent events."),
    ];
    let all = query("all", "boolean", "Every call of the namespace; needed where nothing else says which.");
    let wait = query("wait", "string", "Answer as soon as the call has ended, or after this time: at most `5m`.");
    let cut = query("cut", "boolean", "Give what was kept of an answer that was too long.");
    let which_of = |more: &[Value]| [&namespace[..], &which, more].concat();
    json!({
        "/v1/namespaces/{namespace}/invocations": {
            "get": operation("List asynchronous calls, newest first", &which_of(&pages), None, 200, Some((JSON, named("Invocations")))),
            "post": operation(
                "Call a function and do not wait; `Location` is where the call's record is",
                &namespace,
                Some((JSON, named("InvocationRequest"))),
                202,
                Some((JSON, named("InvocationDetails"))),
            ),
            "delete": operation(
                "Forget calls that have ended; `owed` is how many stay because something is still to be told of them",
                &which_of(std::slice::from_ref(&all)),
                None,
                200,
                Some((JSON, object(&[("purged", "integer"), ("owed", "integer")], &["purged", "owed"]))),
            ),
        },
        "/v1/namespaces/{namespace}/invocations/redrive": {
            "post": operation(
                "Have dead letters run again, all that match",
                &which_of(std::slice::from_ref(&all)),
                None,
                200,
                Some((JSON, named("Redriven"))),
            ),
        },
        "/v1/namespaces/{namespace}/invocations/{id}": {
            "get": operation(
                "Show a call",
                &[&one[..], &[wait]].concat(),
                None,
                200,
                Some((JSON, named("InvocationDetails"))),
            ),
            "delete": operation("Cancel a call", &one, None, 200, Some((JSON, named("InvocationDetails")))),
        },
        "/v1/namespaces/{namespace}/invocations/{id}/retry": {
            "post": operation(
                "Have a dead letter run again, or a call that waits run now",
                &one,
                None,
                200,
                Some((JSON, named("InvocationDetails"))),
            ),
        },
        "/v1/namespaces/{namespace}/invocations/{id}/result": {
            "get": operation(
                "The answer's body; its status is in `X-Taper-Result-Status`, its headers in `X-Taper-Result-…`",
                &[&one[..], &[cut]].concat(),
                None,
                200,
                Some(("*/*", json!({"type": "string", "format": "binary"}))),
            ),
        },
        "/v1/namespaces/{namespace}/invocations/{id}/logs": {
            "get": operation("What the function wrote while it ran the call", &one, None, 200, Some((NDJSON, named("CallLine")))),
        },
    })
}

/// The shapes.
pub(super) fn schemas() -> Value {
    let fields = [
        ("id", "string"),
        ("function", "string"),
        ("namespace", "string"),
        ("status", "string"),
        ("trigger", "string"),
        ("acceptedAt", "string"),
        ("dueAt", "string"),
        ("endedAt", "string"),
        ("tries", "integer"),
        ("lastStatus", "integer"),
        ("reason", "string"),
    ];
    let required = ["id", "function", "namespace", "status", "acceptedAt", "tries"];
    let more = [("cause", "string"), ("correlation", "string"), ("method", "string"), ("path", "string")];
    let mut details = object(&[&fields[..], &more].concat(), &[&required[..], &["method", "path"]].concat());
    details["description"] =
        "One call with everything that is known of it. Of what was asked, values of headers and the body stay inside."
            .into();
    details["properties"]["attempts"] = list("Attempt");
    let delivery = [
        ("kind", "string"),
        ("to", "string"),
        ("state", "string"),
        ("tries", "integer"),
        ("nextAt", "string"),
        ("last", "string"),
    ];
    let mut delivery = object(&delivery, &["kind", "to", "state", "tries"]);
    delivery["description"] =
        "What is told of the call, to whom, and what became of that. `last` is why it failed last.".into();
    delivery["properties"]["kind"]["enum"] = json!(["callback", "record", "reply"]);
    delivery["properties"]["state"]["enum"] = json!(["waiting", "delivered", "givenUp"]);
    details["properties"]["deliveries"] = json!({"type": "array", "items": delivery});
    details["properties"]["request"] = object(
        &[
            ("headers", "array"),
            ("contentType", "string"),
            ("body", "object"),
            ("orderKey", "string"),
            ("idempotencyKey", "string"),
            ("callback", "string"),
        ],
        &["headers"],
    );
    details["properties"]["result"] = object(
        &[
            ("status", "integer"),
            ("headers", "object"),
            ("bytes", "integer"),
            ("cut", "boolean"),
            ("body", "string"),
            ("bodyBase64", "string"),
        ],
        &["status", "headers", "bytes", "cut"],
    );
    json!({
        "Invocation": object(&fields, &required),
        "Invocations": {
            "type": "object",
            "description": "One page; `next` is null on the last one.",
            "required": ["items", "next"],
            "properties": {"items": list("Invocation"), "next": {"type": ["string", "null"]}},
        },
        "InvocationDetails": details,
        "Attempt": object(
            &[
                ("startedAt", "string"),
                ("tookMs", "integer"),
                ("status", "integer"),
                ("start", "string"),
                ("stage", "string"),
                ("message", "string"),
                ("revision", "string"),
                ("instance", "string"),
            ],
            &["startedAt", "tookMs"],
        ),
        "InvocationRequest": {
            "type": "object",
            "additionalProperties": false,
            "required": ["function"],
            "properties": {
                "function": {"type": "string"},
                "method": {"type": "string", "default": "POST"},
                "path": {"type": "string", "default": "/"},
                "headers": {
                    "type": "object",
                    "additionalProperties": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
                },
                "body": {"type": "string"},
                "bodyBase64": {"type": "string"},
                "delay": {"type": "string"},
                "at": {"type": "string", "format": "date-time"},
                "idempotencyKey": {"type": "string"},
                "orderKey": {"type": "string"},
                "callback": {"type": "string", "format": "uri"},
            },
        },
        "CallLine": {
            "description": "A line that a call's function wrote. `attempt` is the place among the call's `attempts`, from 1 on; one more is the one that runs.",
            "allOf": [named("LogLine"), object(&[("attempt", "integer")], &[])],
        },
        "Redriven": object(
            &[("redriven", "integer"), ("refused", "integer"), ("refusals", "array"), ("complete", "boolean")],
            &["redriven", "refused", "refusals", "complete"],
        ),
    })
}
