//! `/v1` through its router: every endpoint, and what it refuses.

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use taper_model::{Digest, clock};
use taper_provider::LogLine;
use tower::ServiceExt;

use crate::house::{House, manifest, pass, path};

/// Sends a manifest that must be refused, and gives the message.
async fn refused(house: &House, name: &str, manifest: Value) -> String {
    let (status, answer) = house.json("PUT", &path(name), manifest.clone()).await;
    assert_eq!((status.as_u16(), &answer["error"]), (400, &json!("invalid")), "{manifest}: {answer}");
    assert_eq!(
        house.json("GET", "/v1/namespaces/default/functions", Value::Null).await.1,
        json!([]),
        "nothing was changed"
    );
    answer["message"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_manifest_is_named() {
    let house = House::new();
    let with = |spec: Value| manifest("hello", spec);
    for (spec, field, mend) in [
        (json!({"timeuot": "30s"}), "timeuot", "timeout"),
        (json!({"scale": {"zero_after": "30s"}}), "spec.scale", "zeroAfter"),
        (json!({"scale": {"min": "one"}}), "spec.scale.min", "u32"),
        (json!({"timeout": "soon"}), "spec.timeout", "30s"),
        (json!({"resources": {"memory": "lots"}}), "spec.resources.memory", "128Mi"),
        (json!({"concurrency": 5000}), "spec.concurrency", "1000"),
        (json!({"scale": {"min": 9, "max": 2}}), "scale.min", "2"),
        (json!({"runtime": "cobol"}), "spec.runtime", "python3"),
        (json!({"source": "./hello"}), "spec.source: `./hello`", "taper deploy -f"),
        (json!({"source": {"digest": Digest::of(b"nobody").to_string()}}), "spec.source.digest", "PUT /v1/artifacts"),
        (json!({"source": {"image": "nginx"}}), "spec.source", ""),
        (json!({"runtime": "python3", "command": []}), "spec.source", "digest"),
        (json!({"runtime": "python3", "mode": "handler"}), "spec.command", "classic"),
        (json!({"mode": "handler", "command": []}), "spec.mode", "python3"),
        (json!({"command": []}), "spec.command", "command to run"),
        (json!({"handler": "handler.handle"}), "spec.handler", "leave it out"),
        (json!({"network": "host"}), "spec.network", "--allow-host-network"),
        (json!({"secrets": ["api-key"]}), "no secret `api-key`", "taper secret create"),
        (json!({"secrets": ["API"]}), "spec.secrets[0]", "api"),
        (
            json!({"traffic": [{"latest": true, "percent": 90}, {"revision": "hello-00001", "percent": 10}]}),
            "spec.traffic[1].revision",
            "does not exist",
        ),
        (json!({"env": {"A=B": "c"}}), "spec.env", "A=B"),
    ] {
        let text = refused(&house, "hello", with(spec.clone())).await;
        assert!(text.contains(field) && text.contains(mend), "{spec}: {text}");
    }
    let mut annotated = with(json!({}));
    annotated["metadata"]["annotations"] = json!({"autoscaling.knative.dev/target": "many"});
    assert!(refused(&house, "hello", annotated).await.contains("autoscaling.knative.dev/target"));

    for (key, value, expect) in [
        ("/apiVersion", json!("v2"), "taper.dev/v1alpha1"),
        ("/kind", json!("Functoin"), "`Function`"),
        ("/metadata/name", json!("Hello"), "try `hello`"),
        ("/metadata/name", json!("x".repeat(300)), "300 characters"),
        ("/metadata/name", json!("other"), "of function other.default, the path of hello.default"),
    ] {
        let mut manifest = with(json!({}));
        *manifest.pointer_mut(key).unwrap() = value;
        let text = refused(&house, "hello", manifest).await;
        assert!(text.contains(expect), "{text}");
    }
    let mut elsewhere = with(json!({}));
    elsewhere["metadata"]["namespace"] = json!("dev");
    assert!(refused(&house, "hello", elsewhere).await.contains("hello.dev"));
    for (body, expect) in [("", "empty"), ("{", "EOF"), ("[]", "invalid"), ("{} x", "missing field")] {
        let (status, text) = house.send("PUT", &path("hello"), body).await;
        assert!(status == 400 && text.contains(expect), "{body}: {text}");
    }
}

/// The values of a list would be taken for those of fields, in an order that nobody has promised.
#[tokio::test(start_paused = true)]
async fn a_body_is_an_object() {
    let house = House::new();
    house.deploy_later("hello", json!({})).await;
    let one = |rest: &str| format!("/v1/namespaces/default/{rest}");
    for (method, path) in [
        ("POST", "/v1/namespaces".to_owned()),
        ("PUT", "/v1/namespaces/default".into()),
        ("PUT", one("functions/hello")),
        ("PUT", one("functions/hello/traffic")),
        ("POST", one("functions/hello/rollback")),
        ("POST", one("functions/hello/scale")),
        ("PUT", one("routes/hello")),
        ("PUT", one("triggers/hello")),
        ("POST", one("secrets")),
        ("PUT", one("secrets/hello")),
        ("POST", one("invocations")),
    ] {
        for (body, what) in [
            ("[]", "is a JSON array"),
            (" [1]", "is a JSON array"),
            (r#"["hello","POST","/",{},"hi",null,null,null,null,null,null,null]"#, "is a JSON array"),
            ("null", "is a single word"),
            ("true", "is a single word"),
            ("-7", "is a number"),
            ("\"hello\"", "is a JSON string"),
        ] {
            let (status, text) = house.send(method, &path, body).await;
            let expected = format!("the body {what}; a JSON object is expected: {{…}}");
            assert!(status == 400 && text.contains(&expected), "{method} {path} {body}: {status} {text}");
        }
    }
    // Nor is a list read so that stands for an object within.
    for (path, body, at) in [
        ("functions/hello", r#"{"spec": {"runtime": "python3", "scale": [1, 2]}}"#, "spec.scale"),
        ("functions/hello", r#"{"spec": {"async": {"onFailure": ["audit"]}}}"#, "spec.async.onFailure"),
        ("triggers/hello", r#"{"spec": {"function": "hello", "events": ["orders"]}}"#, "spec.events"),
        ("routes/hello", r#"{"spec": {"host": "a.example", "rules": [["/x"]]}}"#, "spec.rules[0]"),
    ] {
        let (status, text) = house.send("PUT", &one(path), body).await;
        let expected = format!("{at}: this is a list; an object is expected");
        assert!(status == 400 && text.contains(&expected), "{path} {body}: {status} {text}");
    }
    let (status, text) = house.send("PUT", "/system/functions", r#"["hello"]"#).await;
    assert!(status == 400 && text.contains("is a JSON array"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_an_address_is_named() {
    let house = House::new();
    for (name, expect) in
        [("Hello", "try `hello`"), (&"x".repeat(300), "300 characters"), ("a_b", "only a-z"), ("%ff", "path")]
    {
        for method in ["GET", "DELETE"] {
            let (status, answer) = house.json(method, &path(name), Value::Null).await;
            assert_eq!((status.as_u16(), &answer["error"]), (400, &json!("invalid")), "{name}");
            assert!(answer["message"].as_str().unwrap().contains(expect), "{answer}");
        }
    }
    let (status, answer) = house.json("GET", "/v1/namespaces/De/functions", Value::Null).await;
    assert!(status == 400 && answer["message"].as_str().unwrap().contains("namespace"), "{answer}");
    for (method, at) in [
        ("GET", path("hello")),
        ("DELETE", path("hello")),
        ("GET", path("hello") + "/revisions"),
        ("GET", path("hello") + "/logs"),
    ] {
        let (status, answer) = house.json(method, &at, Value::Null).await;
        assert_eq!((status.as_u16(), &answer["error"]), (404, &json!("not_found")), "{method} {at}");
        assert!(answer["message"].as_str().unwrap().contains("hello"));
    }
    for at in ["/v1", "/v1/", "/v1/nothing", "/v1/namespaces/default/functions/hello/nothing"] {
        let (status, answer) = house.json("GET", at, Value::Null).await;
        assert_eq!((status.as_u16(), &answer["error"]), (404, &json!("not_found")), "{at}");
    }
    let (status, answer) = house.json("PATCH", &path("hello"), Value::Null).await;
    assert_eq!((status.as_u16(), &answer["error"]), (405, &json!("method_not_allowed")));
    let (status, answer) = house.json("PUT", &(path("hello") + "?wiat=false"), manifest("hello", json!({}))).await;
    assert!(status == 400 && answer["message"].as_str().unwrap().contains("wiat"), "{answer}");
    let big = manifest("hello", json!({"env": {"A": "x".repeat(3 << 20)}}));
    let (status, answer) = house.json("PUT", &path("hello"), big).await;
    assert_eq!((status.as_u16(), &answer["error"]), (413, &json!("body_too_large")));
}

#[tokio::test(start_paused = true)]
async fn functions_are_listed_by_namespace_in_their_order() {
    let house = House::new();
    for name in ["b", "a", "c"] {
        house.deploy(name, json!({})).await;
    }
    let mut elsewhere = manifest("z", json!({}));
    elsewhere["metadata"]["namespace"] = json!("dev");
    house.namespace("dev").await;
    let (status, text) = house.send("PUT", "/v1/namespaces/dev/functions/z", elsewhere.to_string()).await;
    assert!(status == 200 && text.contains("/function/z.dev\""), "{text}");
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|f| f["metadata"]["name"].as_str().unwrap().into()).collect()
    };
    for namespace in ["default", "openfaas-fn"] {
        let (_, list) = house.json("GET", &format!("/v1/namespaces/{namespace}/functions"), Value::Null).await;
        assert_eq!(names(&list), ["a", "b", "c"]);
        assert_eq!(list[0]["metadata"]["namespace"], "default");
    }
    let (_, list) = house.json("GET", "/v1/namespaces/dev/functions", Value::Null).await;
    assert_eq!(names(&list), ["z"]);
    house.namespace("empty").await;
    assert_eq!(house.json("GET", "/v1/namespaces/empty/functions", Value::Null).await.1, json!([]));
    let (status, answer) = house.json("GET", "/v1/namespaces/none/functions", Value::Null).await;
    assert!(status == 404 && answer["message"].as_str().unwrap().contains("taper namespace create none"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_function_is_shown_with_what_it_is() {
    let house = House::new();
    house.deploy("counted", json!({"scale": {"min": 1}, "timeout": "90s"})).await;
    let shown = house.show("counted").await;
    assert_eq!(shown["spec"]["timeout"], "1m30s");
    let status = &shown["status"];
    assert_eq!(
        (&status["invocations"], &status["readyInstances"], &status["wantedInstances"]),
        (&json!(7), &json!(1), &json!(1))
    );
    assert_eq!(status["instances"][0]["memoryBytes"], 1 << 20);
    assert_eq!(status["instances"][0]["revision"], "counted-00001");
    assert_eq!((&status["starts"]["pool"], &status["starts"]["cold"]), (&json!(2), &json!(1)));
    let last = json!({
        "at": "1970-01-01T00:01:00.000Z", "start": "pool", "activateMs": 6.0, "claimMs": 2.0, "bindMs": 0.25, "loadMs": 1.0,
        "firstByteMs": 1.0,
    });
    assert_eq!(status["starts"]["recent"][0], last, "the newest first");
    assert_eq!(status["starts"]["recent"][1]["start"], "cold");
    assert!(status.get("startingInstances").is_none(), "none is on its way");
    assert!(status["createdAt"].as_str().unwrap().ends_with('Z'));
    assert_eq!(status["conditions"], json!([{"type": "Ready", "status": "True", "reason": "Ready"}]));
    let (status, _) = house.send("DELETE", &path("counted"), "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(house.send("GET", &path("counted"), "").await.0, 404);
    pass(1.0).await;
    assert_eq!(house.count("counted", 1), 0);
}

#[tokio::test(start_paused = true)]
async fn without_waiting_the_answer_comes_at_once() {
    let house = House::new();
    house.stage.starts("hello", 1, 100.0, None);
    let (status, shown) = house.json("PUT", &(path("hello") + "?wait=false"), manifest("hello", json!({}))).await;
    assert_eq!((status.as_u16(), &shown["status"]["conditions"][0]["reason"]), (202, &json!("Deploying")));
    assert_eq!(shown["status"]["latestReadyRevision"], Value::Null);
    assert_eq!(shown["status"]["scaling"], "no revision is ready");
}

#[tokio::test(start_paused = true)]
async fn scaling_takes_a_number_and_nothing_else() {
    let house = House::new();
    house.deploy("hello", json!({})).await;
    let at = path("hello") + "/scale";
    for (body, expect) in [
        (json!({"replicas": -1}), "replicas"),
        (json!({"count": 1}), "count"),
        (json!({}), "replicas"),
        (json!({"replicas": 101}), "100"),
    ] {
        let (status, answer) = house.json("POST", &at, body.clone()).await;
        assert_eq!(status, 400, "{body}");
        assert!(answer["message"].as_str().unwrap().contains(expect), "{answer}");
    }
}

#[tokio::test]
async fn artifacts_come_in_whole_or_not_at_all() {
    let house = House::new();
    let digest = Digest::of(b"an archive");
    let at = format!("/v1/artifacts/{digest}");
    assert_eq!(house.send("HEAD", &at, "").await.0, 404);
    let (status, answer) = house.send("PUT", &format!("/v1/artifacts?digest={digest}"), "an archive").await;
    assert_eq!((status.as_u16(), answer), (201, json!({"digest": digest}).to_string()));
    assert_eq!(house.send("HEAD", &at, "").await.0, 200);
    let (status, _) = house.send("PUT", "/v1/artifacts", "another").await;
    assert_eq!(status, 201, "the digest may be left out");

    let (status, answer) = house.json("PUT", &format!("/v1/artifacts?digest={digest}"), json!("something else")).await;
    assert_eq!((status.as_u16(), &answer["error"]), (400, &json!("invalid")));
    assert!(answer["message"].as_str().unwrap().contains(&digest.to_string()), "{answer}");
    assert_eq!(house.send("HEAD", &format!("/v1/artifacts/{}", Digest::of(b"\"something else\"")), "").await.0, 404);
    for bad in ["sha256:zz", "latest"] {
        assert_eq!(house.send("HEAD", &format!("/v1/artifacts/{bad}"), "").await.0, 400);
        assert_eq!(house.send("PUT", &format!("/v1/artifacts?digest={bad}"), "x").await.0, 400);
    }
    // More than the limit, in many chunks without a length.
    let chunk = bytes::Bytes::from(vec![7_u8; 100_000]);
    let stream = futures_util::stream::iter((0..20).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
    let request = Request::put("/v1/artifacts").body(axum::body::Body::from_stream(stream)).unwrap();
    let response = house.router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 413);
    // A sender that breaks off.
    let stream =
        futures_util::stream::iter([Ok(bytes::Bytes::from_static(b"half")), Err(std::io::Error::other("gone"))]);
    let request = Request::put("/v1/artifacts").body(axum::body::Body::from_stream(stream)).unwrap();
    let response = house.router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(house.send("HEAD", &format!("/v1/artifacts/{}", Digest::of(b"half")), "").await.0, 404);

    let spec = json!({"runtime": "python3", "command": [], "handler": "handler.handle", "source": {"digest": digest}});
    let ready = house.deploy("hello", spec).await;
    assert_eq!(
        (&ready["ready"]["spec"]["source"]["digest"], &ready["ready"]["spec"]["mode"]),
        (&json!(digest), &json!("handler"))
    );
}

#[tokio::test(start_paused = true)]
async fn namespaces_are_made_changed_and_removed() {
    let house = House::new();
    let send = async |method: &str, at: &str, body: Value| house.json(method, at, body).await;
    let dev = json!({"name": "dev", "labels": {"team": "a"}, "annotations": {}});
    assert_eq!(
        send("POST", "/v1/namespaces", json!({"name": "dev", "labels": {"team": "a"}})).await,
        (201.try_into().unwrap(), dev.clone())
    );
    let (status, answer) = send("POST", "/v1/namespaces", dev.clone()).await;
    assert_eq!((status.as_u16(), &answer["error"]), (409, &json!("conflict")));
    let default = json!({"name": "default", "labels": {}, "annotations": {}});
    assert_eq!(send("GET", "/v1/namespaces", Value::Null).await.1, json!([default, dev]));
    assert_eq!(send("GET", "/v1/namespaces/openfaas-fn", Value::Null).await.1, default);
    let bare = json!({"name": "dev", "labels": {}, "annotations": {"note": "x"}});
    assert_eq!(send("PUT", "/v1/namespaces/dev", bare.clone()).await.1, bare);
    assert_eq!(send("GET", "/v1/namespaces/dev", Value::Null).await.1, bare);
    for (method, at, body, status) in [
        ("PUT", "/v1/namespaces/dev", json!({"name": "other"}), 400),
        ("PUT", "/v1/namespaces/none", json!({"name": "none"}), 404),
        ("POST", "/v1/namespaces", json!({"name": "kube-public"}), 400),
        ("POST", "/v1/namespaces", json!({"name": "a", "lables": {}}), 400),
        ("GET", "/v1/namespaces/none", Value::Null, 404),
        ("GET", "/v1/namespaces/a%2Fb", Value::Null, 400),
        ("DELETE", "/v1/namespaces/none", Value::Null, 404),
        ("DELETE", "/v1/namespaces/default", Value::Null, 400),
    ] {
        assert_eq!(send(method, at, body.clone()).await.0.as_u16(), status, "{method} {at} {body}");
    }
    assert_eq!(house.send("DELETE", "/v1/namespaces/dev", "").await.0, 204);
}

#[tokio::test(start_paused = true)]
async fn secrets_go_in_and_never_come_out() {
    let house = House::new();
    let at = "/v1/namespaces/default/secrets";
    let (status, made) = house.json("POST", at, json!({"name": "api-key", "value": "s3cret"})).await;
    assert_eq!((status.as_u16(), made), (201, json!({"name": "api-key", "namespace": "default"})));
    let (status, answer) = house.json("POST", at, json!({"name": "api-key", "value": "other"})).await;
    assert_eq!((status.as_u16(), &answer["error"]), (409, &json!("conflict")));
    let (status, _) = house.json("PUT", &format!("{at}/api-key"), json!({"name": "api-key", "rawValue": "AP8="})).await;
    assert_eq!(status, 200);
    let value = taper_store::Store::secret(&*house.store, &"default".parse().unwrap(), &"api-key".parse().unwrap())
        .await
        .unwrap();
    assert_eq!(&value.value[..], [0, 255]);
    let (_, list) = house.json("GET", at, Value::Null).await;
    assert_eq!(list, json!([{"name": "api-key", "namespace": "default"}]));
    assert_eq!(house.send("GET", "/v1/namespaces/dev/secrets", "").await.0, 404);
    house.namespace("dev").await;
    assert_eq!(house.json("GET", "/v1/namespaces/dev/secrets", Value::Null).await.1, json!([]));
    assert_eq!(house.json("POST", "/v1/secrets/rotate-key", Value::Null).await.1, json!({"secrets": 0}));
    assert!(house.deploy("hello", json!({"secrets": ["api-key"]})).await.get("ready").is_some());

    for (body, expect) in [
        (json!({"name": "Api", "value": "x"}), "try `api`"),
        (json!({"name": "api"}), "value"),
        (json!({"name": "api", "rawValue": "!"}), "base64"),
        (json!({"name": "api", "vlaue": "x"}), "vlaue"),
    ] {
        let (status, answer) = house.json("POST", at, body).await;
        assert!(status == 400 && answer["message"].as_str().unwrap().contains(expect), "{answer}");
    }
    let (status, answer) = house.json("POST", at, json!({"name": "big", "value": "x".repeat((1 << 20) + 1)})).await;
    assert_eq!((status.as_u16(), &answer["error"]), (413, &json!("body_too_large")));
    assert_eq!(house.json("PUT", &format!("{at}/none"), json!({"name": "none", "value": "x"})).await.0, 404);
    assert_eq!(house.json("PUT", &format!("{at}/api-key"), json!({"name": "other", "value": "x"})).await.0, 400);
    assert_eq!(house.send("DELETE", &format!("{at}/api-key"), "").await.0, 204);
    assert_eq!(house.send("DELETE", &format!("{at}/api-key"), "").await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn logs_come_as_lines() {
    let house = House::new();
    house.deploy("hello", json!({})).await;
    let now = clock::unix_ms();
    let line = |n: u64, instance: &str| LogLine {
        at_ms: now - 1000 * (10 - n),
        instance: instance.into(),
        revision: String::new(),
        call: None,
        stderr: n == 2,
        text: format!("line {n}"),
    };
    house.stage.wrote(vec![line(1, "a"), line(2, "b"), line(3, "a")]);
    let at = path("hello") + "/logs";
    let (status, text) = house.send("GET", &at, "").await;
    assert_eq!((status.as_u16(), text.lines().count()), (200, 3));
    assert_eq!(serde_json::from_str::<Value>(text.lines().nth(1).unwrap()).unwrap(), json!(line(2, "b")));
    for (query, expect) in [
        ("?tail=1", vec!["line 3"]),
        ("?tail=0", vec![]),
        ("?instance=b", vec!["line 2"]),
        ("?since=7500ms", vec!["line 3"]),
        (&format!("?since={}", clock::rfc3339(now - 8500)), vec!["line 2", "line 3"]),
        ("?follow=false&tail=2", vec!["line 2", "line 3"]),
    ] {
        let (_, text) = house.send("GET", &format!("{at}{query}"), "").await;
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.iter().map(|l| l["text"].as_str().unwrap()).collect::<Vec<_>>(), expect, "{query}");
    }
    for bad in ["?since=yesterday", "?tail=-1", "?follow=maybe", "?tial=1"] {
        assert_eq!(house.send("GET", &format!("{at}{bad}"), "").await.0, 400, "{bad}");
    }

    // Following lasts until somebody ends it.
    let request = Request::get(format!("{at}?follow")).body(axum::body::Body::empty()).unwrap();
    let response = house.router().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let all = tokio::spawn(response.into_body().collect());
    pass(3600.0).await;
    assert!(!all.is_finished());
    house.handle.close();
    assert_eq!(all.await.unwrap().unwrap().to_bytes().iter().filter(|b| **b == b'\n').count(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_platform_says_what_it_is() {
    let house = House::new();
    let (_, pool) = house.json("GET", "/v1/pool", Value::Null).await;
    let shelf = json!({"hits": 9, "misses": 1, "ready": 2, "making": 1, "wanted": 3, "memory": 4096});
    assert_eq!(pool, json!({"kinds": {"python3": shelf}, "budget": 1 << 30}));
    let (_, info) = house.json("GET", "/v1/info", Value::Null).await;
    assert_eq!(
        (&info["version"], &info["isolation"], &info["apiVersion"]),
        (&json!("0.1.0"), &json!("none"), &json!("taper.dev/v1alpha1"))
    );
    let (_, document) = house.json("GET", "/v1/openapi.json", Value::Null).await;
    assert_eq!(document["openapi"], "3.1.0");
}

#[tokio::test(start_paused = true)]
async fn an_error_names_the_call() {
    let house = House::new();
    let request = Request::get(path("none"))
        .extension(taper_model::CallId::given("abc").unwrap())
        .body(axum::body::Body::empty());
    let response = house.router().oneshot(request.unwrap()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let expect = json!({"error": "not_found", "message": "function none.default does not exist", "callId": "abc"});
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expect);
}
