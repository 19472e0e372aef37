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
    expect["labels"]["faas_function"] = json!("shout");
    (expect["replicas"], expect["availableReplicas"]) = (json!(1), json!(1));
    expect["usage"] = json!({"totalMemoryBytes": 1 << 20});
    expect["createdAt"] = shown["createdAt"].clone();
    assert_eq!(shown, expect);

    let (_, list) = house.json("GET", "/system/functions?namespace=openfaas-fn", Value::Null).await;
    shown.as_object_mut().unwrap().remove("usage");
    assert_eq!(list, json!([shown]));
    assert_eq!(house.json("GET", "/system/functions", Value::Null).await.1, list);
    let (status, text) = house.send("GET", "/system/functions?namespace=dev", "").await;
    assert!(status == 404 && text.contains("taper namespace create dev"), "{text}");
    house.namespace("dev").await;
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
            "name": "counted", "image": "", "namespace": "openfaas-fn", "envProcess": "cat",
            "labels": {"faas_function": "counted"}, "annotations": {},
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
        (json!({"labels": {"com.openfaas.scale.type": "queue"}}), "`capacity`, `rps` or `cpu`"),
        (json!({"labels": {"com.openfaas.scale.factor": "120"}}), "com.openfaas.scale.factor"),
        (json!({"labels": {"com.openfaas.scale.target-proportion": "2"}}), "target-proportion"),
        (json!({"namespace": "Dev"}), "namespace"),
        (json!({"namespace": "none"}), "taper namespace create none"),
        (json!({"namespace": "../etc"}), "../etc"),
        (json!({"secrets": ["../../etc/passwd"]}), "../../etc/passwd"),
        (json!({"limits": {"nvidia.com/gpu": "1"}}), "limits.nvidia.com/gpu"),
        (json!({"requests": {"memory": "1Gi"}}), "requests.memory: 1Gi is above limits.memory, which is 64Mi"),
        (json!({"envVars": {"exec_timeout": "soon"}}), "envVars.exec_timeout"),
        (json!({"envVars": {"max_inflight": "-1"}}), "envVars.max_inflight"),
        (json!({"annotations": {"taper.dev/code": "{"}}), "taper.dev/code"),
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

/// The spec that a deployment with these words becomes.
async fn spec(house: &House, name: &str, words: Value) -> Value {
    let mut body = json!({"service": name, "image": "i", "envProcess": "cat"});
    body.as_object_mut().unwrap().extend(words.as_object().unwrap().clone());
    let (status, text) = house.send("POST", "/system/functions", body.to_string()).await;
    assert_eq!(status, 202, "{words}: {text}");
    house.show(name).await["spec"].clone()
}

#[tokio::test(start_paused = true)]
async fn what_the_watchdog_would_read_holds_here_too() {
    let house = House::new();
    let made =
        spec(&house, "a", json!({"envVars": {"exec_timeout": "5s", "write_timeout": "9s", "max_inflight": "3"}})).await;
    assert_eq!((&made["timeout"], &made["concurrency"], &made["mode"]), (&json!("5s"), &json!(3), &json!("classic")));
    let made =
        spec(&house, "b", json!({"envVars": {"exec_timeout": "0", "write_timeout": "9", "combine_output": "false"}}))
            .await;
    assert_eq!(
        (&made["timeout"], &made["combineOutput"], &made["concurrency"]),
        (&json!("9s"), &json!(false), &Value::Null)
    );
    let probes = json!({
        "com.openfaas.health.http.path": "/healthz", "com.openfaas.health.http.periodSeconds": "2",
        "com.openfaas.health.http.failureThreshold": "4", "com.openfaas.ready.http.path": "/ready",
        "com.openfaas.ready.http.initialDelay": "1s", "com.openfaas.ready.http.successThreshold": "2", "topic": "a,b",
    });
    let server = json!({"mode": "http", "upstream_url": "http://127.0.0.1:5000"});
    let made = spec(&house, "c", json!({"envVars": server, "annotations": probes})).await;
    assert_eq!(made["mode"], "http");
    assert_eq!(made["liveness"], json!({"path": "/healthz", "period": "2s", "failureThreshold": 4}));
    assert_eq!(made["readiness"], json!({"path": "/ready", "initialDelay": "1s", "successThreshold": 2}));
    let made = spec(&house, "d", json!({"requests": {"memory": "512Mi", "cpu": "250m"}})).await;
    assert_eq!(made["resources"], json!({"memory": "512Mi"}), "what is asked for is had; less is no limit");
}

#[tokio::test(start_paused = true)]
async fn a_deployment_of_the_same_image_keeps_the_code() {
    let house = House::new();
    let digest = house.send("PUT", "/v1/artifacts", "an archive").await.1;
    let digest = serde_json::from_str::<Value>(&digest).unwrap()["digest"].clone();
    let code = json!({"source": {"digest": digest}, "runtime": "python3", "mode": "handler", "convention": "openfaas"});
    let body = |more: Value| {
        let mut body = json!({"service": "f", "image": "me/f:latest"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let annotations = json!({"annotations": {"taper.dev/code": code.to_string(), "team": "a"}});
    assert_eq!(house.send("POST", "/system/functions", body(annotations)).await.0, 202);
    let (_, shown) = house.json("GET", "/system/function/f", Value::Null).await;
    assert_eq!((&shown["image"], &shown["annotations"]), (&json!("me/f:latest"), &json!({"team": "a"})));
    pass(1.0).await;

    let (status, text) = house.send("PUT", "/system/functions", body(json!({"envVars": {"A": "1"}}))).await;
    assert_eq!(status, 202, "{text}");
    let made = house.show("f").await["spec"].clone();
    assert_eq!((&made["source"]["digest"], &made["mode"]), (&json!(digest), &json!("handler")));
    assert_eq!((&made["env"], &made["convention"]), (&json!({"A": "1"}), &json!("openfaas")));
    // What a template of theirs would run in the image is not what ours runs.
    assert_eq!(house.send("PUT", "/system/functions", body(json!({"envProcess": "python index.py"}))).await.0, 202);
    let made = house.show("f").await["spec"].clone();
    assert_eq!((&made["source"]["digest"], &made["command"]), (&json!(digest), &Value::Null));
    let other = json!({"service": "f", "image": "me/other"}).to_string();
    let (status, text) = house.send("PUT", "/system/functions", other).await;
    assert!(status == 400 && text.contains("me/other"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn another_process_with_the_same_image_runs_beside_the_same_code() {
    let house = House::new();
    let digest = house.send("PUT", "/v1/artifacts", "an archive").await.1;
    let digest = serde_json::from_str::<Value>(&digest).unwrap()["digest"].clone();
    let code = json!({"source": {"digest": digest}, "runtime": "binary", "mode": "classic", "command": ["./a"]});
    for (process, annotations, command) in [
        ("./a", json!({"taper.dev/code": code.to_string()}), json!(["./a"])),
        ("./a", json!({}), json!(["./a"])),
        ("./b -x", json!({}), json!(["./b", "-x"])),
    ] {
        let body =
            json!({"service": "f", "image": "me/f", "envProcess": process, "annotations": annotations}).to_string();
        if house.send("PUT", "/system/functions", body.clone()).await.0 == 404 {
            assert_eq!(house.send("POST", "/system/functions", body).await.0, 202);
        }
        let made = house.show("f").await["spec"].clone();
        assert_eq!((&made["source"]["digest"], &made["command"]), (&json!(digest), &command));
    }
}

#[tokio::test(start_paused = true)]
async fn namespaces_have_the_statuses_that_clients_expect() {
    let house = House::new();
    let send = async |method: &str, at: &str, body: Value| house.send(method, at, body.to_string()).await;
    let dev = json!({"name": "dev", "labels": {"openfaas": "1"}, "annotations": {"openfaas": "1", "team": "a"}});
    let (status, text) = send("POST", "/system/namespace/", dev.clone()).await;
    assert_eq!((status.as_u16(), text.as_str()), (201, ""));
    assert_eq!(send("POST", "/system/namespace/", dev.clone()).await.0, 409);
    assert_eq!(house.json("GET", "/system/namespace/dev", Value::Null).await.1, dev);
    assert_eq!(house.json("GET", "/system/namespaces", Value::Null).await.1, json!(["dev", "openfaas-fn"]));
    assert_eq!(house.json("GET", "/system/namespace/openfaas-fn", Value::Null).await.1, json!({"name": "openfaas-fn"}));
    assert_eq!(send("PUT", "/system/namespace/dev", json!({"name": "dev", "labels": {"openfaas": "1"}})).await.0, 202);
    assert_eq!(
        house.json("GET", "/system/namespace/dev", Value::Null).await.1,
        json!({"name": "dev", "labels": {"openfaas": "1"}})
    );
    for (method, at, body, status) in [
        ("GET", "/system/namespace/none", json!(null), 404),
        ("GET", "/system/namespace/a%2Fb", json!(null), 404),
        ("PUT", "/system/namespace/none", json!({"name": "none"}), 404),
        ("DELETE", "/system/namespace/none", json!({"name": "none"}), 404),
        ("DELETE", "/system/namespace/openfaas-fn", json!({"name": "openfaas-fn"}), 400),
        ("POST", "/system/namespace/", json!({"name": "a/b"}), 400),
        ("POST", "/system/namespace/", json!({"name": ""}), 400),
        ("POST", "/system/namespace/", json!({"name": "kube-system"}), 400),
        ("POST", "/system/namespace/", json!({"name": "openfaas-fn"}), 409),
        ("POST", "/system/namespace/", json!("no"), 400),
    ] {
        let (seen, text) = send(method, at, body.clone()).await;
        assert_eq!(seen.as_u16(), status, "{method} {at} {body}: {text}");
    }
    let f = json!({"service": "f", "image": "i", "envProcess": "cat", "namespace": "dev"});
    assert_eq!(send("POST", "/system/functions", f).await.0, 202);
    let (status, text) = send("DELETE", "/system/namespace/dev", json!({"name": "dev"})).await;
    assert!(status == 409 && text.contains('f'), "{text}");
    assert_eq!(send("DELETE", "/system/functions", json!({"functionName": "f", "namespace": "dev"})).await.0, 202);
    assert_eq!(send("DELETE", "/system/namespace/dev", json!({"name": "dev"})).await.0, 202);
}

#[tokio::test(start_paused = true)]
async fn alerts_add_and_take_back_instances() {
    let house = House::new();
    let labels =
        json!({"com.openfaas.scale.min": "2", "com.openfaas.scale.max": "9", "com.openfaas.scale.factor": "30"});
    spec(&house, "f", json!({"labels": labels})).await;
    spec(&house, "off", json!({"labels": {"com.openfaas.scale.factor": "0"}})).await;
    pass(1.0).await;
    let replicas = async |name: &str| {
        house.json("GET", &format!("/system/function/{name}"), Value::Null).await.1["replicas"].clone()
    };
    let alert = async |status: &str, names: &[&str]| {
        let alerts = names.iter().map(
            |name| json!({"status": status, "labels": {"alertname": "APIHighInvocationRate", "function_name": name}}),
        );
        let body = json!({"status": status, "receiver": "scale-up", "alerts": alerts.collect::<Vec<_>>()});
        house.send("POST", "/system/alert", body.to_string()).await.0.as_u16()
    };
    assert_eq!(replicas("f").await, json!(2));
    assert_eq!(alert("firing", &["none.openfaas-fn", "NO", "off.openfaas-fn", "f.openfaas-fn"]).await, 200);
    assert_eq!((replicas("f").await, replicas("off").await), (json!(5), json!(1)), "three more of nine");
    for _ in 0..3 {
        alert("firing", &["f"]).await;
    }
    assert_eq!(replicas("f").await, json!(9));
    assert_eq!(alert("resolved", &["f"]).await, 200);
    assert_eq!(replicas("f").await, json!(2));
    let (status, text) = house.send("POST", "/system/alert", "[]").await;
    assert_eq!((status.as_u16(), text.as_str()), (400, "Unable to parse alert, bad format.\n"));
}

#[tokio::test(start_paused = true)]
async fn scale_and_delete_take_the_namespace_from_body_or_query() {
    let house = House::new();
    house.namespace("dev").await;
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
    house.namespace("dev").await;
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
    house.namespace("dev").await;
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
    for bad in [
        "",
        "?name=",
        "?name=..%2F..%2Fetc",
        "?name=f&namespace=dev&tail=few",
        "?name=f&namespace=dev&follow=maybe",
        "?name=f&namespace=dev&since=once",
    ] {
        assert_eq!(house.send("GET", &format!("/system/logs{bad}"), "").await.0, 400, "{bad}");
    }
    // The line is from 1970: there when a number is asked for, not among what is recent.
    let lines =
        async |query: &str| house.send("GET", &format!("/system/logs?name=f.dev{query}"), "").await.1.lines().count();
    assert_eq!((lines("").await, lines("&tail=5").await, lines("&tail=0").await), (0, 1, 0));
    assert_eq!((lines("&tail=-1&instance=i-1").await, lines("&tail=-1&instance=i-2").await), (1, 0));
    assert_eq!(lines("&since=1969-12-31T23:59:59Z").await, 1);
}

#[tokio::test(start_paused = true)]
async fn five_hundred_functions_in_three_namespaces_are_listed_in_one_pass() {
    let house = House::new();
    for namespace in ["a", "b"] {
        house.namespace(namespace).await;
    }
    for n in 0..500 {
        let namespace = ["", "a", "b"][n % 3];
        let body = json!({"service": format!("f{n:03}"), "image": "i", "envProcess": "cat", "namespace": namespace,
            "labels": {"com.openfaas.scale.zero": "true"}});
        assert_eq!(house.send("POST", "/system/functions", body.to_string()).await.0, 202);
    }
    let mut sizes = Vec::new();
    for namespace in ["", "a", "b"] {
        let (before, asked) = (house.store.reads(), house.stage.asked());
        let (_, list) = house.json("GET", &format!("/system/functions?namespace={namespace}"), Value::Null).await;
        let list = list.as_array().unwrap().clone();
        assert!(list.is_sorted_by_key(|f| f["name"].as_str().unwrap().to_owned()));
        assert!(list.iter().all(|f| f["namespace"] == ["openfaas-fn", namespace][usize::from(!namespace.is_empty())]));
        sizes.push(list.len());
        assert_eq!(
            (house.store.reads() - before, house.stage.asked() - asked),
            (1, 0),
            "one snapshot, and nobody else is asked"
        );
    }
    assert_eq!(sizes, [167, 167, 166]);
}
