//! Taper's own resource API under `/v1`: JSON in and out, unknown fields refused by name, every error `{"error", "message"}`.
//! Authentication is not here: the gateway puts one layer over the whole router.

mod artifacts;
mod functions;
mod invocations;
mod logs;
mod namespaces;
mod openapi;
mod read;
pub(crate) mod resource;
mod revisions;
mod routes;
mod secrets;
mod traffic;
mod triggers;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    middleware::from_fn,
    routing::{MethodRouter, any, delete, get, head, post, put},
};
use http::{Method, Uri};
use serde_json::{Value, json};
use taper_model::{FunctionName, Pooled, manifest::API_VERSION};
use tokio::sync::oneshot;

use crate::{Error, Nudge, Shared, error, policy};

pub(crate) use functions::{NDJSON, publish};
pub(crate) use invocations::Ends;
pub(crate) use logs::{follow, since};
pub(crate) use namespaces::{known, put as put_namespace, remove as remove_namespace};
pub(crate) use read::{By, body, has_objects};
pub(crate) use secrets::bytes as secret_bytes;

/// Largest JSON body. Artifacts have their own bound.
pub(crate) const MAX_JSON: usize = 2 << 20;

/// One operation: the table below is the router, and the OpenAPI document is held against it.
struct Route {
    #[cfg_attr(not(test), expect(dead_code, reason = "the method router knows; the tests ask"))]
    method: &'static str,
    path: &'static str,
    on: MethodRouter<Arc<Shared>>,
}

fn routes() -> Vec<Route> {
    let route = |method, path, on| Route { method, path, on };
    const FUNCTIONS: &str = "/v1/namespaces/{namespace}/functions";
    const FUNCTION: &str = "/v1/namespaces/{namespace}/functions/{name}";
    const INVOCATIONS: &str = "/v1/namespaces/{namespace}/invocations";
    const INVOCATION: &str = "/v1/namespaces/{namespace}/invocations/{id}";
    const NAMESPACE: &str = "/v1/namespaces/{namespace}";
    const ROUTE: &str = "/v1/namespaces/{namespace}/routes/{name}";
    const TRIGGER: &str = "/v1/namespaces/{namespace}/triggers/{name}";
    const SECRETS: &str = "/v1/namespaces/{namespace}/secrets";
    const SECRET: &str = "/v1/namespaces/{namespace}/secrets/{name}";
    vec![
        route("get", "/v1/info", get(info)),
        route("get", "/v1/pool", get(pool)),
        route("get", "/v1/openapi.json", get(async || Json(openapi::document()))),
        route("put", "/v1/artifacts", put(artifacts::put)),
        route("head", "/v1/artifacts/{digest}", head(artifacts::head)),
        route("get", "/v1/namespaces", get(namespaces::list)),
        route("post", "/v1/namespaces", post(namespaces::create)),
        route("get", NAMESPACE, get(namespaces::get)),
        route("put", NAMESPACE, put(namespaces::update)),
        route("delete", NAMESPACE, delete(namespaces::delete)),
        route("get", FUNCTIONS, get(functions::list)),
        route("get", FUNCTION, get(functions::get)),
        route("put", FUNCTION, put(functions::put)),
        route("delete", FUNCTION, delete(functions::delete)),
        route("get", "/v1/namespaces/{namespace}/functions/{name}/revisions", get(functions::history)),
        route("put", "/v1/namespaces/{namespace}/functions/{name}/traffic", put(traffic::put)),
        route("post", "/v1/namespaces/{namespace}/functions/{name}/rollback", post(traffic::rollback)),
        route("post", "/v1/namespaces/{namespace}/functions/{name}/scale", post(functions::scale)),
        route("get", "/v1/namespaces/{namespace}/functions/{name}/logs", get(logs::get)),
        route("get", INVOCATIONS, get(invocations::list)),
        route("post", INVOCATIONS, post(invocations::accept).layer(DefaultBodyLimit::max(invocations::MAX_CALL))),
        route("delete", INVOCATIONS, delete(invocations::purge)),
        route("post", "/v1/namespaces/{namespace}/invocations/redrive", post(invocations::redrive)),
        route("get", INVOCATION, get(invocations::get)),
        route("delete", INVOCATION, delete(invocations::cancel)),
        route("post", "/v1/namespaces/{namespace}/invocations/{id}/retry", post(invocations::retry)),
        route("get", "/v1/namespaces/{namespace}/invocations/{id}/result", get(invocations::result)),
        route("get", "/v1/namespaces/{namespace}/invocations/{id}/logs", get(invocations::logs)),
        route("get", "/v1/namespaces/{namespace}/routes", get(routes::list)),
        route("get", ROUTE, get(routes::get)),
        route("put", ROUTE, put(routes::put)),
        route("delete", ROUTE, delete(routes::delete)),
        route("get", "/v1/namespaces/{namespace}/triggers", get(triggers::list)),
        route("get", TRIGGER, get(triggers::get)),
        route("put", TRIGGER, put(triggers::put)),
        route("delete", TRIGGER, delete(triggers::delete)),
        route("get", SECRETS, get(secrets::list)),
        route("post", SECRETS, post(secrets::create)),
        route("put", SECRET, put(secrets::update)),
        route("delete", SECRET, delete(secrets::delete)),
        route("post", "/v1/secrets/rotate-key", post(secrets::rotate_key)),
    ]
}

/// Everything under `/v1`.
pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    routes()
        .into_iter()
        .fold(Router::new(), |router, route| router.route(route.path, route.on))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            Error::Method(format!("{method} is not served at {}; see /v1/openapi.json", uri.path()))
        })
        .route("/v1", any(unknown))
        .route("/v1/", any(unknown))
        .route("/v1/{*rest}", any(unknown))
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .layer(from_fn(error::body))
        .with_state(Arc::clone(shared))
}

async fn unknown(uri: Uri) -> Error {
    Error::NotFound(format!("there is nothing at {}; see /v1/openapi.json", uri.path()))
}

async fn info(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let info = &shared.parts.info;
    Json(json!({
        "version": info.version,
        "apiVersion": API_VERSION,
        "provider": info.provider,
        "isolation": info.isolation,
        "url": (shared.parts.public_url)(),
    }))
}

/// What is kept ready for starts, and what it has been good for.
async fn pool(State(shared): State<Arc<Shared>>) -> Json<Pooled> {
    Json(shared.parts.provider.pool())
}

/// Sets the number of a function's instances now. For both surfaces.
///
/// # Errors
/// When there is no such function, or the number is above its `max`.
pub(crate) async fn set_scale(shared: &Shared, name: &FunctionName, count: u32) -> Result<(), Error> {
    let store = &shared.parts.store;
    let snapshot = Arc::clone(&store.snapshot().borrow());
    let function = snapshot.function(name).ok_or_else(|| no_function(name))?;
    let max = policy::of(function.serving().unwrap_or(&function.latest().revision)).max;
    if count > max {
        return Err(Error::Invalid(format!(
            "replicas: {count} is above scale.max of function {name}, which is {max}; raise scale.max with a deploy first"
        )));
    }
    // Zero holds until the next call, over a restart as well. Any other number is a start for the autoscaler, not a state.
    store.scale(name, (count == 0).then_some(0)).await?;
    let (done, taken_in) = oneshot::channel();
    let _ = shared.nudges.send(Nudge::Scale { function: name.clone(), count, done });
    taken_in.await.map_err(|_| Error::Stopping)
}

/// The refusal of a function that is not there.
pub(crate) fn no_function(name: &FunctionName) -> Error {
    Error::NotFound(format!("function {name} does not exist"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;
    use taper_model::{FunctionSpec, function::Scale};

    use super::{openapi::document, routes};

    /// Every `METHOD path` of the document.
    fn documented() -> BTreeSet<String> {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        let operations = |(path, methods): (&String, &Value)| {
            let methods = methods.as_object().unwrap().keys();
            methods.map(|method| format!("{method} {path}")).collect::<Vec<_>>()
        };
        paths.iter().flat_map(operations).collect()
    }

    /// What is served elsewhere.
    const EVENTS: [&str; 2] =
        ["post /v1/namespaces/{namespace}/events", "post /v1/namespaces/{namespace}/events/{topic}"];

    #[test]
    fn the_document_and_the_router_have_the_same_operations() {
        let routed = routes().into_iter().map(|r| format!("{} {}", r.method, r.path));
        let all: BTreeSet<String> = routed.chain(EVENTS.map(str::to_owned)).collect();
        assert_eq!(documented(), all);
    }

    #[test]
    fn parameters_of_a_path_are_documented_and_references_resolve() {
        let document = document();
        for route in routes() {
            let operation = &document["paths"][route.path][route.method];
            let named: BTreeSet<&str> = operation["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|p| p["in"] == "path")
                .map(|p| p["name"].as_str().unwrap())
                .collect();
            let words: BTreeSet<&str> =
                route.path.split('/').filter_map(|w| w.strip_prefix('{')?.strip_suffix('}')).collect();
            assert_eq!(named, words, "{} {}", route.method, route.path);
        }
        let text = document.to_string();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_document_has_every_field_of_a_spec() {
        // Serde itself says which fields it knows.
        let known = |error: String| -> BTreeSet<String> {
            error.split("expected one of ").nth(1).unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let fields = |value: &Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
        let document = document();
        let spec = &document["components"]["schemas"]["FunctionSpec"]["properties"];
        let error = serde_json::from_str::<FunctionSpec>(r#"{"?": 1}"#).unwrap_err().to_string();
        assert_eq!(fields(spec), known(error));
        let error = serde_json::from_str::<Scale>(r#"{"?": 1}"#).unwrap_err().to_string();
        assert_eq!(fields(&spec["scale"]["properties"]), known(error));
    }
    #[test]
    fn every_operation_is_in_the_documentation() {
        let text = include_str!("../../../../docs/api.md");
        for route in routes() {
            let heading = format!("`{} {}`", route.method.to_uppercase(), route.path.replace("{namespace}", "{ns}"));
            assert!(text.contains(&heading), "docs/api.md has no {heading}");
        }
    }
}
