//! The part of the document that is about triggers, and about what they and functions say of the calls that nobody waits for.

use serde_json::{Value, json};

use super::{JSON, list, named, object, operation, path};

/// The operations.
pub(super) fn paths() -> Value {
    let trigger = [path("namespace", "The namespace."), path("name", "The trigger's name.")];
    json!({
        "/v1/namespaces/{namespace}/triggers": {
            "get": operation("List triggers", &trigger[..1], None, 200, Some((JSON, list("Trigger")))),
        },
        "/v1/namespaces/{namespace}/triggers/{name}": {
            "get": operation("Show a trigger", &trigger, None, 200, Some((JSON, named("Trigger")))),
            "put": operation("Make or replace a trigger", &trigger, Some((JSON, named("Trigger"))), 200, Some((JSON, named("Trigger")))),
            "delete": operation("Delete a trigger", &trigger, None, 204, None),
        },
    })
}

/// The shapes.
// long because: it is a table, one entry per shape
pub(super) fn schemas() -> Value {
    let attributes = |what: &str| json!({"type": "object", "minProperties": 1, "description": what, "additionalProperties": {"type": "string"}});
    let status = object(
        &[
            ("state", "string"),
            ("createdAt", "string"),
            ("lastTick", "string"),
            ("nextTick", "string"),
            ("lastCall", "string"),
            ("missed", "integer"),
            ("skipped", "integer"),
            ("events", "integer"),
            ("matched", "integer"),
            ("error", "string"),
        ],
        &["state"],
    );
    json!({
        "Trigger": {
            "type": "object",
            "description": "The manifest; `status` is shown, and read over when sent.",
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {
                "apiVersion": {"const": taper_model::manifest::API_VERSION},
                "kind": {"const": "Trigger"},
                "metadata": object(&[("name", "string"), ("namespace", "string")], &["name"]),
                "spec": named("TriggerSpec"),
                "status": named("TriggerStatus"),
            },
        },
        "TriggerSpec": {
            "type": "object",
            "description": "Exactly one source: `schedule`, to which `timeZone`, `missed`, `overlap`, `jitter` and `input` belong, or `events`, to which `filters` belong.",
            "additionalProperties": false,
            "required": ["function"],
            "properties": {
                "function": {"type": "string"},
                "suspend": {"type": "boolean", "default": false},
                "schedule": {"type": "string"},
                "timeZone": {"type": "string", "default": "UTC"},
                "missed": {"type": "string", "enum": ["skip", "once", "all"], "default": "once"},
                "overlap": {"type": "string", "enum": ["allow", "forbid", "replace"], "default": "allow"},
                "jitter": {"type": "string", "default": "0s"},
                "input": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "method": {"type": "string", "default": "POST"},
                        "path": {"type": "string", "default": "/"},
                        "headers": {"type": "object", "additionalProperties": {"type": "string"}},
                        "body": {"type": "string"},
                    },
                },
                "events": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {"topic": {"type": "string", "default": "default"}, "reply": {"type": "string"}},
                },
                "filters": list("Filter"),
                "retry": named("Retries"),
                "onSuccess": named("Destination"),
                "onFailure": named("Destination"),
            },
        },
        "TriggerStatus": status,
        "Filter": {
            "description": "A condition on an event's attributes.",
            "oneOf": [
                {"type": "object", "required": ["exact"], "properties": {"exact": attributes("Each is this.")}},
                {"type": "object", "required": ["prefix"], "properties": {"prefix": attributes("Each begins so.")}},
                {"type": "object", "required": ["suffix"], "properties": {"suffix": attributes("Each ends so.")}},
                {"type": "object", "required": ["all"], "properties": {"all": list("Filter")}},
                {"type": "object", "required": ["any"], "properties": {"any": list("Filter")}},
                {"type": "object", "required": ["not"], "properties": {"not": named("Filter")}},
                {"type": "object", "required": ["cesql"], "properties": {"cesql": {"type": "string"}}},
            ],
        },
        "Async": {
            "type": "object",
            "description": "How a function's asynchronous calls run, and where what became of them goes.",
            "additionalProperties": false,
            "properties": {
                "concurrency": {"type": "integer", "minimum": 0},
                "rate": {"type": "number"},
                "queue": {"type": "integer", "minimum": 1},
                "retry": named("Retries"),
                "onSuccess": named("Destination"),
                "onFailure": named("Destination"),
            },
        },
        "Retries": {
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "attempts": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 3},
                "minWait": {"type": "string", "default": "1s"},
                "maxWait": {"type": "string", "default": "5m"},
                "maxAge": {"type": "string", "default": "6h"},
                "statuses": {"type": "string", "default": "429,5xx"},
            },
        },
        "Destination": {
            "type": "object",
            "description": "Exactly one of the three.",
            "additionalProperties": false,
            "properties": {"function": {"type": "string"}, "url": {"type": "string", "format": "uri"}, "topic": {"type": "string"}},
        },
    })
}
