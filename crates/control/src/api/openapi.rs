//! The OpenAPI 3.1 description of `/v1`, written by hand. A test holds it against the routes, in both directions.

mod invocations;
mod triggers;

use serde_json::{Map, Value, json};

/// What is told of one kind in the pool.
const SHELF: [&str; 6] = ["hits", "misses", "ready", "making", "wanted", "memory"];
const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

/// The document.
pub(crate) fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Taper",
            "version": "v1",
            "description": "Functions that light on demand and taper to zero. Every error is an object with `error` and `message`.",
        },
        "security": [{"basic": []}],
        "paths": joined(joined(paths(), invocations::paths()), triggers::paths()),
        "components": {
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
            "schemas": joined(joined(schemas(), invocations::schemas()), triggers::schemas()),
        },
    })
}

/// Two objects that have no field in common.
fn joined(mut one: Value, other: Value) -> Value {
    if let (Some(one), Value::Object(other)) = (one.as_object_mut(), other) {
        one.extend(other);
    }
    one
}

// long because: it is a table, one entry per operation
fn paths() -> Value {
    let function = [path("namespace", "The namespace."), path("name", "The function's name.")];
    let secret = [path("namespace", "The namespace."), path("name", "The secret's name.")];
    let route = [path("namespace", "The namespace."), path("name", "The route's name.")];
    let wait =
        query("wait", "boolean", "false: answer 202 at once instead of reporting until the verdict. Default true.");
    let logs = [
        query("follow", "boolean", "Go on with new lines as they are written."),
        query("tail", "integer", "Only the last so many."),
        query("since", "string", "Only lines from a time (RFC 3339) on, or of an age such as `5m`."),
        query("instance", "string", "Only one instance's."),
    ];
    json!({
        "/v1/info": {
            "get": operation("What the platform is", &[], None, 200, Some((JSON, named("Info")))),
        },
        "/v1/pool": {
            "get": operation("What is kept ready for starts", &[], None, 200, Some((JSON, named("Pool")))),
        },
        "/v1/openapi.json": {
            "get": operation("This document", &[], None, 200, Some((JSON, json!({"type": "object"})))),
        },
        "/v1/artifacts": {
            "put": operation(
                "Upload code: a gzip-compressed tar archive",
                &[query("digest", "string", "What the content's digest must be: `sha256:` and 64 hex digits.")],
                Some(("application/octet-stream", json!({"type": "string", "format": "binary"}))),
                201,
                Some((JSON, named("Artifact"))),
            ),
        },
        "/v1/artifacts/{digest}": {
            "head": operation("Whether an artifact is there", &[path("digest", "Its digest.")], None, 200, None),
        },
        "/v1/namespaces": {
            "get": operation("List namespaces", &[], None, 200, Some((JSON, list("Namespace")))),
            "post": operation("Create a namespace", &[], Some((JSON, named("Namespace"))), 201, Some((JSON, named("Namespace")))),
        },
        "/v1/namespaces/{namespace}": {
            "get": operation("Show a namespace", &function[..1], None, 200, Some((JSON, named("Namespace")))),
            "put": operation(
                "Replace a namespace's labels, annotations and limits",
                &function[..1],
                Some((JSON, named("Namespace"))),
                200,
                Some((JSON, named("Namespace"))),
            ),
            "delete": operation("Delete an empty namespace", &function[..1], None, 204, None),
        },
        "/v1/secrets/rotate-key": {
            "post": operation(
                "Encrypt every secret anew under a new key; says how many there are",
                &[],
                None,
                200,
                Some((JSON, object(&[("secrets", "integer")], &["secrets"]))),
            ),
        },
        "/v1/namespaces/{namespace}/functions": {
            "get": operation("List functions", &function[..1], None, 200, Some((JSON, list("Function")))),
        },
        "/v1/namespaces/{namespace}/functions/{name}": {
            "get": operation("Show a function", &function, None, 200, Some((JSON, named("Function")))),
            "put": operation(
                "Deploy a function, and report until it is ready or has failed",
                &[&function[..], &[wait]].concat(),
                Some((JSON, named("Function"))),
                200,
                Some((NDJSON, named("DeployEvent"))),
            ),
            "delete": operation("Delete a function", &function, None, 204, None),
        },
        "/v1/namespaces/{namespace}/functions/{name}/revisions": {
            "get": operation("List a function's revisions", &function, None, 200, Some((JSON, list("Revision")))),
        },
        "/v1/namespaces/{namespace}/functions/{name}/traffic": {
            "put": operation(
                "Spread a function's calls over its revisions",
                &function,
                Some((JSON, named("Spread"))),
                200,
                Some((JSON, named("Function"))),
            ),
        },
        "/v1/namespaces/{namespace}/functions/{name}/rollback": {
            "post": operation(
                "Go back to the revision before, or to one by name; until the next deploy",
                &function,
                Some((JSON, object(&[("revision", "string")], &[]))),
                200,
                Some((JSON, named("Function"))),
            ),
        },
        "/v1/namespaces/{namespace}/functions/{name}/scale": {
            "post": operation(
                "Set the number of instances now",
                &function,
                Some((JSON, object(&[("replicas", "integer")], &["replicas"]))),
                200,
                Some((JSON, named("Function"))),
            ),
        },
        "/v1/namespaces/{namespace}/functions/{name}/logs": {
            "get": operation("Read a function's logs", &[&function[..], &logs].concat(), None, 200, Some((NDJSON, named("LogLine")))),
        },
        "/v1/namespaces/{namespace}/routes": {
            "get": operation("List routes", &route[..1], None, 200, Some((JSON, list("Route")))),
        },
        "/v1/namespaces/{namespace}/routes/{name}": {
            "get": operation("Show a route", &route, None, 200, Some((JSON, named("Route")))),
            "put": operation("Make or replace a route", &route, Some((JSON, named("Route"))), 200, Some((JSON, named("Route")))),
            "delete": operation("Delete a route", &route, None, 204, None),
        },
        "/v1/namespaces/{namespace}/secrets": {
            "get": operation("List the names of secrets", &secret[..1], None, 200, Some((JSON, list("Secret")))),
            "post": operation("Create a secret", &secret[..1], Some((JSON, named("SecretValue"))), 201, Some((JSON, named("Secret")))),
        },
        "/v1/namespaces/{namespace}/secrets/{name}": {
            "put": operation("Change a secret", &secret, Some((JSON, named("SecretValue"))), 200, Some((JSON, named("Secret")))),
            "delete": operation("Delete a secret", &secret, None, 204, None),
        },
    })
}

// long because: it is a table, one entry per shape
fn schemas() -> Value {
    let mut schemas = json!({
        "Error": object(&[("error", "string"), ("message", "string")], &["error", "message"]),
        "Info": object(
            &[("version", "string"), ("apiVersion", "string"), ("provider", "string"), ("isolation", "string"), ("url", "string")],
            &["version", "apiVersion", "provider", "isolation", "url"],
        ),
        "Pool": {
            "type": "object",
            "description": "`kinds` by runtime: `python3`, `node`, or `bare`. Memory is in bytes.",
            "required": ["kinds", "budget"],
            "properties": {"kinds": {"type": "object", "additionalProperties": named("Shelf")}, "budget": {"type": "integer"}},
        },
        "Shelf": object(&SHELF.map(|field| (field, "integer")), &SHELF),
        "Starts": {
            "type": "object",
            "description": "Calls that waited for an instance to start, since the platform started; `recent` are the last 16, the newest first.",
            "required": ["pool", "cold", "recent"],
            "properties": {"pool": {"type": "integer"}, "cold": {"type": "integer"}, "recent": list("ColdStart")},
        },
        "ColdStart": object(
            &[
                ("at", "string"),
                ("start", "string"),
                ("activateMs", "number"),
                ("claimMs", "number"),
                ("bindMs", "number"),
                ("loadMs", "number"),
                ("firstByteMs", "number"),
            ],
            &["at", "start", "activateMs", "claimMs", "bindMs", "loadMs", "firstByteMs"],
        ),
        "Artifact": object(&[("digest", "string")], &["digest"]),
        "Namespace": object(
            &[("name", "string"), ("labels", "object"), ("annotations", "object"), ("limits", "object")],
            &["name"],
        ),
        "Limits": object(&[("rate", "number"), ("burst", "integer"), ("concurrency", "integer"), ("queue", "integer")], &[]),
        "Traffic": object(
            &[("latest", "boolean"), ("revision", "string"), ("percent", "integer"), ("tag", "string"), ("mirror", "integer")],
            &[],
        ),
        "Sticky": object(&[("header", "string"), ("cookie", "string")], &[]),
        "Rollout": object(&[("duration", "string"), ("errors", "number"), ("calls", "integer")], &["duration"]),
        "Spread": {
            "type": "object",
            "description": "Percentages sum to 100; no target at all means everything to the latest ready revision.",
            "required": ["traffic"],
            "properties": {"traffic": list("Traffic"), "sticky": named("Sticky")},
        },
        "Cors": object(
            &[
                ("origins", "array"),
                ("methods", "array"),
                ("headers", "array"),
                ("expose", "array"),
                ("credentials", "boolean"),
                ("maxAge", "string"),
            ],
            &["origins"],
        ),
        "Rule": object(
            &[
                ("host", "string"),
                ("path", "string"),
                ("methods", "array"),
                ("function", "string"),
                ("tag", "string"),
                ("strip", "boolean"),
                ("cors", "object"),
                ("https", "string"),
            ],
            &[],
        ),
        "Route": {
            "type": "object",
            "description": "The manifest; `status` is shown, and read over when sent.",
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {
                "apiVersion": {"const": taper_model::manifest::API_VERSION},
                "kind": {"const": "Route"},
                "metadata": object(&[("name", "string"), ("namespace", "string")], &["name"]),
                "spec": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["rules"],
                    "properties": {"host": {"type": "string"}, "rules": list("Rule"), "cors": named("Cors"), "https": {"enum": ["allow", "redirect"]}},
                },
                "status": object(&[("createdAt", "string")], &["createdAt"]),
            },
        },
        "Secret": object(&[("name", "string"), ("namespace", "string")], &["name", "namespace"]),
        "SecretValue": {
            "description": "`value` is text, `rawValue` base64; `rawValue` wins.",
            "allOf": [object(&[("name", "string"), ("value", "string"), ("rawValue", "string")], &["name"])],
        },
        "Probe": object(
            &[
                ("path", "string"),
                ("port", "integer"),
                ("headers", "object"),
                ("exec", "array"),
                ("initialDelay", "string"),
                ("period", "string"),
                ("timeout", "string"),
                ("failureThreshold", "integer"),
                ("successThreshold", "integer"),
            ],
            &[],
        ),
        "LogLine": object(
            &[
                ("atMs", "integer"),
                ("instance", "string"),
                ("revision", "string"),
                ("call", "string"),
                ("stderr", "boolean"),
                ("text", "string"),
            ],
            &["atMs", "instance", "stderr", "text"],
        ),
        "Revision": object(
            &[
                ("name", "string"),
                ("number", "integer"),
                ("state", "string"),
                ("message", "string"),
                ("serving", "boolean"),
                ("percent", "number"),
                ("tags", "array"),
                ("mirror", "integer"),
                ("createdAt", "string"),
                ("by", "string"),
                ("readyInstances", "integer"),
                ("artifact", "string"),
                ("changes", "array"),
                ("labels", "object"),
                ("annotations", "object"),
                ("spec", "object"),
            ],
            &["name", "number", "state", "serving", "percent", "createdAt", "readyInstances", "changes", "spec"],
        ),
        "DeployEvent": {
            "description": "One line of a deploy's report. `ready` or `failed` is the last.",
            "oneOf": [
                object(&[("warning", "string")], &["warning"]),
                object(&[("stage", "string"), ("line", "string")], &["stage"]),
                {"type": "object", "required": ["ready"], "properties": {"ready": named("Function")}},
                {"type": "object", "required": ["failed"], "properties": {"failed": named("Error")}},
            ],
        },
        "Function": {
            "type": "object",
            "description": "The manifest; `status` is shown, and read over when sent.",
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {
                "apiVersion": {"const": taper_model::manifest::API_VERSION},
                "kind": {"const": "Function"},
                "metadata": object(
                    &[("name", "string"), ("namespace", "string"), ("labels", "object"), ("annotations", "object")],
                    &["name"],
                ),
                "spec": named("FunctionSpec"),
                "status": named("FunctionStatus"),
            },
        },
        "FunctionSpec": {
            "type": "object",
            "description": "Durations are written `30s`, memory `128Mi`, CPU `500m`. What is absent has its default.",
            "additionalProperties": false,
            "properties": spec_properties(),
        },
        "FunctionStatus": object(
            &[
                ("url", "string"),
                ("hostUrl", "string"),
                ("createdAt", "string"),
                ("latestCreatedRevision", "string"),
                ("latestReadyRevision", "string"),
                ("servingRevision", "string"),
                ("traffic", "array"),
                ("tags", "array"),
                ("mirrors", "array"),
                ("rollout", "object"),
                ("held", "object"),
                ("wantedInstances", "integer"),
                ("readyInstances", "integer"),
                ("startingInstances", "integer"),
                ("drainingInstances", "integer"),
                ("scaling", "string"),
                ("invocations", "integer"),
                ("conditions", "array"),
                ("instances", "array"),
                ("triggers", "array"),
            ],
            &["url", "createdAt", "latestCreatedRevision", "traffic", "wantedInstances", "readyInstances", "scaling", "conditions"],
        ),
    });
    schemas["FunctionStatus"]["properties"]["starts"] = named("Starts");
    schemas["FunctionStatus"]["properties"]["schedule"] = named("TriggerStatus");
    schemas["FunctionStatus"]["properties"]["async"] = named("Standing");
    schemas
}

/// Every field of the spec; a test holds it against what serde knows.
fn spec_properties() -> Value {
    let words = |all: &[&str]| json!({"type": "string", "enum": all});
    json!({
        "runtime": words(&["python3", "node", "binary"]),
        "mode": words(&["classic", "http", "handler"]),
        "source": object(&[("digest", "string")], &["digest"]),
        "handler": {"type": "string"},
        "command": {"type": "array", "items": {"type": "string"}},
        "timeout": {"type": "string", "default": "1m"},
        "idleTimeout": {"type": "string", "default": "5m"},
        "concurrency": {"type": "integer", "minimum": 0, "maximum": 1000},
        "scale": {"type": "object", "additionalProperties": false, "properties": scale_properties()},
        "env": {"type": "object", "additionalProperties": {"type": "string"}},
        "secrets": {"type": "array", "items": {"type": "string"}},
        "resources": object(&[("memory", "string"), ("cpu", "string"), ("pids", "integer"), ("tmp", "string")], &[]),
        "network": words(&["none", "public", "open", "host"]),
        "convention": words(&["taper", "openfaas"]),
        "startup": {"$ref": "#/components/schemas/Probe"},
        "readiness": {"$ref": "#/components/schemas/Probe"},
        "liveness": {"$ref": "#/components/schemas/Probe"},
        "startTimeout": {"type": "string", "default": "30s"},
        "combineOutput": {"type": "boolean", "default": false},
        "debug": {"type": "boolean", "default": false},
        "responseStartTimeout": {"type": "string"},
        "grace": {"type": "string"},
        "traffic": list("Traffic"),
        "sticky": named("Sticky"),
        "rollout": named("Rollout"),
        "route": {"description": "One rule, or several.", "oneOf": [named("Rule"), list("Rule")]},
        "limits": named("Limits"),
        "async": named("Async"),
    })
}

fn scale_properties() -> Value {
    json!({
        "min": {"type": "integer", "default": 0},
        "max": {"type": "integer", "default": 100},
        "target": {"type": "number"},
        "metric": {"type": "string", "enum": ["concurrency", "rps", "cpu"]},
        "keepAlive": {"type": "string", "enum": ["fixed", "adaptive"], "description": "What decides when idle instances go: always the same idle time, the default where `zeroAfter` or `window` is set, or the function's own past."},
        "zeroAfter": {"type": "string", "default": "1m"},
        "window": {"type": "string", "default": "1m"},
        "utilization": {"type": "number", "default": 70},
        "panicWindowPercentage": {"type": "number", "default": 10},
        "panicThresholdPercentage": {"type": "number", "default": 200},
        "scaleDownDelay": {"type": "string", "default": "0s"},
        "initialScale": {"type": "integer", "default": 1},
        "activationScale": {"type": "integer", "default": 1},
        "targetBurstCapacity": {"type": "number", "default": 211},
    })
}

fn operation(
    summary: &str,
    parameters: &[Value],
    body: Option<(&str, Value)>,
    status: u16,
    reply: Option<(&str, Value)>,
) -> Value {
    let content = |(kind, schema): (&str, Value)| json!({kind: {"schema": schema}});
    let mut success = json!({"description": summary});
    if let Some(reply) = reply {
        success["content"] = content(reply);
    }
    let failure = json!({"description": "Refused; nothing was changed", "content": content((JSON, named("Error")))});
    let responses = Map::from_iter([(status.to_string(), success), ("default".to_owned(), failure)]);
    let mut operation = json!({"summary": summary, "parameters": parameters, "responses": responses});
    if let Some(body) = body {
        operation["requestBody"] = json!({"required": true, "content": content(body)});
    }
    operation
}

fn path(name: &str, what: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "description": what, "schema": {"type": "string"}})
}

fn query(name: &str, kind: &str, what: &str) -> Value {
    json!({"name": name, "in": "query", "description": what, "schema": {"type": kind}})
}

fn named(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn list(schema: &str) -> Value {
    json!({"type": "array", "items": named(schema)})
}

fn object(fields: &[(&str, &str)], required: &[&str]) -> Value {
    let properties: Map<String, Value> =
        fields.iter().map(|(name, kind)| ((*name).to_owned(), json!({"type": kind}))).collect();
    json!({"type": "object", "properties": properties, "required": required})
}
