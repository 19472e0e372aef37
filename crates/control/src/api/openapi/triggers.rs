//! The part of the document that is about triggers, and about what they and functions say of the calls that nobody waits for.

use serde_json::{Value, json};

use super::{JSON, list, named, object, operation, path};

/// The operations.
pub(super) fn paths() -> Value {
    let trigger = [path("namespace", "The namespace."), path("name", "The trigger's name.")];
    let topic = path("topic", "The topic: a name.");
    json!({
        "/v1/namespaces/{namespace}/triggers": {
            "get": operation("List triggers", &trigger[..1], None, 200, Some((JSON, list("Trigger")))),
        },
        "/v1/namespaces/{namespace}/triggers/{name}": {
            "get": operation("Show a trigger", &trigger, None, 200, Some((JSON, named("Trigger")))),
            "put": operation("Make or replace a trigger", &trigger, Some((JSON, named("Trigger"))), 200, Some((JSON, named("Trigger")))),
            "delete": operation("Delete a trigger", &trigger, None, 204, None),
        },
        "/v1/namespaces/{namespace}/events": {"post": publish(&trigger[..1], "Publish events to the topic `default`")},
        "/v1/namespaces/{namespace}/events/{topic}": {"post": publish(&[trigger[0].clone(), topic], "Publish events to a topic")},
    })
}

/// A message of events, in each of the modes of HTTP; the crate `taper-trigger` serves it.
fn publish(place: &[Value], summary: &str) -> Value {
    let summary = format!("{summary}: 202 when all calls that they make are on disk");
    let mut operation = operation(&summary, place, None, 202, Some((JSON, named("PublishedEvent"))));
    let events = json!({"type": "array", "items": {"type": "object"}});
    operation["requestBody"] = json!({
        "description": "CloudEvents 1.0: structured, batched, or, with any other type, binary: the attributes in `ce-…` headers and the data as the body.",
        "content": {
            "application/cloudevents+json": {"schema": {"type": "object"}},
            "application/cloudevents-batch+json": {"schema": events},
            "*/*": {"schema": {"type": "string", "format": "binary"}},
        },
    });
    operation["responses"]["202"]["content"][JSON]["schema"] = json!({"description": "A list of these for a batch.", "oneOf": [named("PublishedEvent"), list("PublishedEvent")]});
    operation
}

/// What holds for a function's calls that nobody waits for, and how many there are.
fn standing() -> Value {
    let fields = [
        ("paused", "boolean"),
        ("concurrency", "integer"),
        ("rate", "number"),
        ("queue", "integer"),
        ("waiting", "integer"),
        ("running", "integer"),
        ("dead", "integer"),
        ("deadAtLeast", "boolean"),
        ("oldest", "string"),
    ];
    let mut standing = object(&fields, &["paused", "waiting", "running"]);
    for (field, of) in [("retry", "Retries"), ("onSuccess", "Destination"), ("onFailure", "Destination")] {
        standing["properties"][field] = named(of);
    }
    standing
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
            ("lastEvent", "string"),
            ("nextTick", "string"),
            ("lastCall", "string"),
            ("missed", "integer"),
            ("skipped", "integer"),
            ("events", "integer"),
            ("matched", "integer"),
            ("error", "string"),
            ("annotation", "boolean"),
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
        "Standing": standing(),
        "PublishedEvent": {
            "type": "object",
            "required": ["id", "source", "calls"],
            "properties": {
                "id": {"type": "string"},
                "source": {"type": "string"},
                "calls": {
                    "type": "array",
                    "items": object(&[("trigger", "string"), ("function", "string"), ("id", "string")], &["trigger", "function", "id"]),
                },
                "error": {"type": "string"},
            },
        },
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
