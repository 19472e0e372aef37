//! `/system` as OpenFaaS's clients use it.

use serde_json::{Value, json};

use crate::house::{House, pass};

/// What `faas-cli` sends for a function with everything.
fn deployment() -> Value {
    json!({
        "service": "shout", "image": "ghcr.io/openfaas/alpine:latest", "envProcess": "tr a-z A-Z",
        "envVars": {"LEVEL": "debug"}, "constraints": ["lowmem=true"], "secrets": ["api-key"],
        "labels": {"com.openfaas.scale.max": "5", "team": "a"}, "annotations": {"topic": "orders"},
        "limits": {"memory": "64Mi", "cpu": "100m"}, "requests": {"memory": "16Mi"}, "readOnlyRootFilesystem": true,
    })
}

async fn secret(house: &House) {
    let (status, body) =
        house.send("POST", "/system/secrets", json!({"name": "api-key", "value": "x"}).to_string()).await;
    assert_eq!((status.as_u16(), body.as_str()), (202, ""));
}

#[tokio::test(start_paused = true)]
async fn a_deployment_is_echoed_as_it_was_sent() {
    let house = House::new();
    let (status, text) = house.send("POST", "/system/functions", deployment().to_string()).await;
    assert!(status == 400 && text.contains("no secret `api-key`") && !text.starts_with('{'), "{text}");
    secret(&house).await;
    let (status, body) = house.send("PUT", "/system/functions", deployment().to_string()).await;
    assert!(status == 404 && body.contains("shout"), "faas-cli deploys by PUT, then by POST: {body}");
    let (status, body) = house.send("POST", "/system/functions", deployment().to_string()).await;
    assert_eq!((status.as_u16(), body.as_str()), (202, ""));
    assert_eq!(house.send("POST", "/system/functions", deployment().to_string()).await.0, 400, "it exists");
    pass(1.0).await;

    let (status, mut shown) = house.json("GET", "/system/function/shout?usage=1", Value::Null).await;
    assert_eq!(status, 200);
    let mut expect = deployment();
    expect["name"] = expect["service"].take();
    expect.as_object_mut().unwrap().remove("service");
    expect["namespace"] = json!("openfaas-fn");
    (expect["replicas"], expect["availableReplicas"]) = (json!(1), json!(1));
    expect["usage"] = json!({"totalMemoryBytes": 1 << 20});
    expect["createdAt"] = shown["createdAt"].clone();
    assert_eq!(shown, expect);

    let (_, list) = house.json("GET", "/system/functions?namespace=openfaas-fn", Value::Null).await;
    shown.as_object_mut().unwrap().remove("usage");
    assert_eq!(list, json!([shown]));
    assert_eq!(house.json("GET", "/system/functions", Value::Null).await.1, list);
    assert_eq!(house.json("GET", "/system/functions?namespace=dev", Value::Null).await.1, json!([]));

    // The same function under /v1.
    let native = house.show("shout").await;
    assert_eq!(native["spec"]["command"], json!(["tr", "a-z", "A-Z"]));
    assert_eq!(
        (&native["spec"]["combineOutput"], &native["spec"]["scale"]),
        (&json!(true), &json!({"min": 1, "max": 5}))
    );

    let mut changed = deployment();
    changed["envProcess"] = json!("cat");
    assert_eq!(house.send("PUT", "/system/functions", changed.to_string()).await.0, 202);
    pass(1.0).await;
    assert_eq!(house.show("shout").await["status"]["latestReadyRevision"], "shout-00002");
}

#[tokio::test(start_paused = true)]
async fn one_of_ours_is_shown_in_their_shape() {
    let house = House::new();
    house.deploy("counted", json!({"resources": {"memory": "128Mi"}})).await;
    let (_, shown) = house.json("GET", "/system/function/counted", Value::Null).await;
    assert_eq!(
        shown,
        json!({
            "name": "counted", "image": "", "namespace": "openfaas-fn", "envProcess": "cat", "labels": {}, "annotations": {},
            "limits": {"memory": "128Mi"}, "invocationCount": 7, "replicas": 1, "availableReplicas": 1, "createdAt": shown["createdAt"],
        })
    );
    pass(70.0).await;
    let (_, shown) = house.json("GET", "/system/function/counted.openfaas-fn", Value::Null).await;
    assert!(
        shown.get("replicas").is_none() && shown.get("availableReplicas").is_none(),
        "zero counts are absent: {shown}"
    );
}

#[tokio::test(start_paused = true)]
async fn deployments_that_cannot_run_are_refused_in_plain_text() {
    let house = House::new();
    for (change, expect) in [
        (json!({"envProcess": null}), "the image `ghcr.io/openfaas/alpine:latest` cannot be run here"),
        (json!({"envProcess": " "}), "envProcess"),
        (json!({"service": "Shout"}), "try `shout`"),
        (json!({"service": "x".repeat(300)}), "300 characters"),
        (json!({"service": 7}), "Error unmarshalling request body"),
        (json!({"limits": {"memory": "much"}}), "much"),
        (json!({"labels": {"com.openfaas.scale.min": "few"}}), "com.openfaas.scale.min"),
        (json!({"labels": {"com.openfaas.scale.type": "cpu"}}), "capacity"),
        (json!({"namespace": "Dev"}), "namespace"),
    ] {
        let mut body = deployment();
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        let (status, text) = house.send("POST", "/system/functions", body.to_string()).await;
        assert!(status == 400 && text.contains(expect), "{change}: {status} {text}");
    }
    assert_eq!(house.send("POST", "/system/functions", "{").await.0, 400);
    // A field that nobody knows is passed over, and `fprocess` among the variables is a process too.
    let (status, text) = house
        .send(
            "POST",
            "/system/functions",
            json!({"service": "a", "image": "x", "network": "n", "envVars": {"fprocess": "cat"}, "labels": null})
                .to_string(),
        )
        .await;
    assert_eq!(status, 202, "{text}");
}

#[tokio::test(start_paused = true)]
async fn scale_labels_become_settings() {
    let house = House::new();
    for (n, (labels, expect)) in [
        (json!({}), json!({"min": 1})),
        (json!({"com.openfaas.scale.min": "2", "com.openfaas.scale.max": "9"}), json!({"min": 2, "max": 9})),
        (json!({"com.openfaas.scale.min": "0"}), json!({"min": 0})),
        (json!({"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "15m"}), json!({"min": 0, "zeroAfter": "15m"})),
        (json!({"com.openfaas.scale.zero": "true", "com.openfaas.scale.min": "3"}), json!({"min": 0, "activationScale": 3})),
        (
            json!({"com.openfaas.scale.type": "rps", "com.openfaas.scale.target": "20", "com.openfaas.scale.target-proportion": "0.5"}),
            json!({"min": 1, "metric": "rps", "target": 20.0, "utilization": 50.0}),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("f{n}");
        let body = json!({"service": name, "image": "i", "envProcess": "cat", "labels": labels});
        assert_eq!(house.send("POST", "/system/functions", body.to_string()).await.0, 202, "{labels}");
        assert_eq!(house.show(&name).await["spec"]["scale"], expect, "{labels}");
    }
}

#[tokio::test(start_paused = true)]
async fn scale_and_delete_take_the_namespace_from_body_or_query() {
    let house = House::new();
    for ns in ["", "dev"] {
        let body = json!({"service": "f", "image": "i", "envProcess": "cat", "namespace": ns});
        assert_eq!(house.send("POST", "/system/functions", body.to_string()).await.0, 202);
    }
    pass(1.0).await;
    let replicas = async |ns: &str| {
        house.json("GET", &format!("/system/function/f?namespace={ns}"), Value::Null).await.1["replicas"].clone()
    };
    let scale = async |query: &str, body: Value| {
        house.send("POST", &format!("/system/scale-function/f{query}"), body.to_string()).await
    };
    assert_eq!(scale("", json!({"serviceName": "f", "replicas": 2})).await.0, 202);
    assert_eq!(scale("", json!({"serviceName": "f", "replicas": 3, "namespace": "dev"})).await.0, 202);
    assert_eq!((replicas("").await, replicas("dev").await), (json!(2), json!(3)));
    assert_eq!(scale("?namespace=dev", json!({"serviceName": "f", "replicas": 4})).await.0, 202);
    assert_eq!((replicas("openfaas-fn").await, replicas("dev").await), (json!(2), json!(4)));
    assert_eq!(scale("", json!({"serviceName": "f", "replicas": 0})).await.0, 202);
    assert_eq!(replicas("").await, Value::Null);
    let (status, text) = scale("", json!("no")).await;
    assert!(status == 400 && text.starts_with("Error unmarshalling request body"), "{text}");
    assert_eq!(scale("", json!({"replicas": 1000})).await.0, 400);
    assert_eq!(scale("?namespace=none", json!({"replicas": 1})).await.0, 404);

    let delete = async |query: &str, body: Value| {
        house.send("DELETE", &format!("/system/functions{query}"), body.to_string()).await.0
    };
    assert_eq!(delete("?namespace=dev", json!({"functionName": "f"})).await, 202);
    assert_eq!(delete("", json!({"functionName": "f", "namespace": "openfaas-fn"})).await, 202);
    assert_eq!(delete("", json!({"functionName": "f"})).await, 404);
    assert_eq!(delete("", json!({})).await, 400);
}

#[tokio::test(start_paused = true)]
async fn secrets_have_the_statuses_that_clients_expect() {
    let house = House::new();
    secret(&house).await;
    let send =
        async |method: &str, body: Value| house.send(method, "/system/secrets", body.to_string()).await.0.as_u16();
    assert_eq!(send("POST", json!({"name": "api-key", "value": "y"})).await, 409);
    assert_eq!(send("PUT", json!({"name": "api-key", "rawValue": "AP8="})).await, 202);
    assert_eq!(send("PUT", json!({"name": "none", "value": "y"})).await, 404);
    assert_eq!(send("POST", json!({"name": "far", "namespace": "dev", "value": "y"})).await, 202);
    assert_eq!(send("POST", json!({"name": "Bad", "value": "y"})).await, 400);
    let list = async |query: &str| house.json("GET", &format!("/system/secrets{query}"), Value::Null).await.1;
    assert_eq!(list("").await, json!([{"name": "api-key", "namespace": "openfaas-fn"}]));
    assert_eq!(list("?namespace=dev").await, json!([{"name": "far", "namespace": "dev"}]));
    assert_eq!(send("DELETE", json!({"name": "api-key"})).await, 202);
    assert_eq!(send("DELETE", json!({"name": "api-key"})).await, 404);
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_the_surface() {
    let house = House::new();
    let body = json!({"service": "f", "image": "i", "envProcess": "cat", "namespace": "dev"});
    assert_eq!(house.send("POST", "/system/functions", body.to_string()).await.0, 202);
    assert_eq!(house.json("GET", "/system/namespaces", Value::Null).await.1, json!(["dev", "openfaas-fn"]));
    let (_, info) = house.json("GET", "/system/info", Value::Null).await;
    assert_eq!((&info["provider"]["provider"], &info["version"]["release"]), (&json!("taper"), &json!("0.1.0")));
    assert!(info["arch"].is_string() && info["provider"]["orchestration"].is_string());
    for name in ["none", "Hello", "none.dev"] {
        let (status, text) = house.send("GET", &format!("/system/function/{name}"), "").await;
        assert_eq!((status.as_u16(), text.as_str()), (404, ""), "{name}");
    }
    let (status, text) = house.send("GET", "/system/nothing", "").await;
    assert_eq!((status.as_u16(), text.as_str()), (404, "404 page not found\n"));
    let (status, text) = house.send("PATCH", "/system/functions", "").await;
    assert_eq!((status.as_u16(), text.as_str()), (405, ""));

    house.stage.wrote(vec![taper_provider::LogLine {
        at_ms: 0,
        instance: "i-1".into(),
        revision: String::new(),
        call: None,
        stderr: false,
        text: "hi".into(),
    }]);
    let (status, text) = house.send("GET", "/system/logs?name=f&namespace=dev&tail=-1&follow=false", "").await;
    assert_eq!(status, 200);
    assert_eq!(
        serde_json::from_str::<Value>(text.trim()).unwrap(),
        json!({"name": "f", "namespace": "dev", "instance": "i-1", "timestamp": "1970-01-01T00:00:00.000Z", "text": "hi"})
    );
    assert_eq!(house.send("GET", "/system/logs?name=none", "").await.0, 404);
    assert_eq!(house.send("GET", "/system/logs", "").await.0, 400);
}
