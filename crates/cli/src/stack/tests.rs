//! Stack files, from their text to what is sent.

use taper_model::{Mode, Runtime, function::Convention};

use super::*;

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn lookup(name: &str) -> Option<String> {
    (name == "OWNER").then(|| "me".into())
}

fn plan_in(base: &Path, text: &str, overlay: &Overlay) -> Result<Stack> {
    plan(text, &Source { shown: "stack.yml", base, lookup: Some(&lookup) }, &Chosen::All, overlay)
}

fn refused(base: &Path, text: &str) -> String {
    plan_in(base, text, &Overlay::default()).err().map_or_else(|| "it was taken".into(), |e| crate::output::chain(&e))
}

const FULL: &str = r#"
version: 1.0
provider:
  name: openfaas
  gateway: http://faas.lan:8080
configuration:
  templates: [{name: python3-http}]
  copy: [./common]
functions:
  zeta:
    lang: python3-http
    handler: ./zeta
    image: ghcr.io/${OWNER}/zeta:${TAG:-latest}
    environment: {PORT: 8080, DEBUG: true, NONE: , price: "$$5"}
    environment_file: [env.yml]
    secrets: [api-key]
    labels: {com.openfaas.scale.min: 2, canary: true}
    annotations: {topic: a.b}
    limits: {memory: 64Mi, cpu: 0.5}
    requests: {memory: 16Mi}
    constraints: ["lowmem=true"]
    readonly_root_filesystem: true
    namespace: team
    build_args: {A: 1}
    skip_build: true
  alpha:
    image: "alpine:${NONE}"
    fprocess: wc -w
"#;

#[test]
fn a_whole_stack_is_what_faas_cli_sends() {
    let dir = folder(&[
        ("zeta/handler.py", "def handle(event, context):\n    return ''\n"),
        ("zeta/other.py", ""),
        ("common/shared.py", "x = 1\n"),
        ("env.yml", "environment: {DEBUG: 'no', MORE: 1}\nother: 1\n"),
    ]);
    let stack = plan_in(dir.path(), FULL, &Overlay::default()).unwrap();
    assert_eq!(stack.gateway.as_deref(), Some("http://faas.lan:8080"));
    let [zeta, alpha] = &stack.functions[..] else { panic!("two functions, in the file's order") };
    assert_eq!(
        zeta.deployment,
        json!({
            "service": "zeta", "image": "ghcr.io/me/zeta:latest", "namespace": "team", "constraints": ["lowmem=true"], "secrets": ["api-key"],
            "envVars": {"PORT": "8080", "DEBUG": "no", "NONE": "", "price": "$5", "MORE": "1"},
            "labels": {"com.openfaas.scale.min": "2", "canary": "true"}, "annotations": {"topic": "a.b"},
            "limits": {"memory": "64Mi", "cpu": "0.5"}, "requests": {"memory": "16Mi"}, "readOnlyRootFilesystem": true,
        })
    );
    let (spec, package) = zeta.code.as_ref().unwrap();
    assert_eq!(
        (spec.runtime(), spec.mode(), spec.handler.as_deref()),
        (Runtime::Python3, Mode::Handler, Some("handler"))
    );
    assert_eq!(spec.convention, Some(Convention::Openfaas));
    let names: Vec<_> = package.files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["common/shared.py", "handler.py", "other.py"]);
    assert_eq!(
        alpha.deployment,
        json!({"service": "alpha", "image": "alpine:", "namespace": "default", "envProcess": "wc -w", "secrets": [], "envVars": {}, "labels": {}, "annotations": {}})
    );
    assert!(alpha.code.is_none());
    for part in ["`${NONE}` is not set", "configuration.templates", "zeta: `build_args`"] {
        assert!(stack.notes.iter().any(|n| n.contains(part)), "{part}: {:?}", stack.notes);
    }
    assert_eq!(stack.notes.len(), 3, "{:?}", stack.notes);
}

#[test]
fn an_image_without_a_tag_is_the_latest() {
    for (image, sent) in [
        ("alpine", "alpine:latest"),
        ("lan:5000/a/b", "lan:5000/a/b:latest"),
        ("lan:5000/a:1", "lan:5000/a:1"),
        ("a@sha256:0", "a@sha256:0"),
        ("", ""),
    ] {
        assert_eq!(tagged(image.into()), sent);
    }
}

#[test]
fn flags_win_over_the_file() {
    let dir = folder(&[]);
    let overlay = Overlay {
        namespace: Some(Name::new("other").unwrap()),
        env: [("A".to_owned(), "flag".to_owned())].into(),
        secrets: vec![Name::new("b").unwrap(), Name::new("c").unwrap()],
        labels: [("l".to_owned(), "flag".to_owned())].into(),
        annotations: [("a".to_owned(), "flag".to_owned())].into(),
    };
    let text = "functions:\n  f: {image: x, namespace: team, environment: {A: file, B: file}, secrets: [a, b], labels: {l: file}}\n";
    let stack = plan_in(dir.path(), text, &overlay).unwrap();
    let sent = &stack.functions[0].deployment;
    assert_eq!(sent["namespace"], "other");
    assert_eq!(sent["envVars"], json!({"A": "flag", "B": "file"}));
    assert_eq!(sent["secrets"], json!(["a", "b", "c"]));
    assert_eq!((&sent["labels"], &sent["annotations"]), (&json!({"l": "flag"}), &json!({"a": "flag"})));
}

#[test]
fn some_of_the_functions() {
    let dir = folder(&[]);
    let text = "functions:\n  mail-in: {image: x}\n  mail-out: {image: x}\n  web: {image: x}\n";
    let names = |chosen: Chosen| {
        let stack = plan(text, &Source { shown: "s", base: dir.path(), lookup: None }, &chosen, &Overlay::default());
        stack
            .map(|s| s.functions.iter().map(|f| f.name.name.to_string()).collect::<Vec<_>>())
            .map_err(|e| e.to_string())
    };
    assert_eq!(names(Chosen::Glob("mail-*".into())).unwrap(), ["mail-in", "mail-out"]);
    assert_eq!(names(Chosen::regex("^(web|.*-in)$").unwrap()).unwrap(), ["mail-in", "web"]);
    assert!(names(Chosen::Glob("x*".into())).unwrap_err().contains("no function's name fits"));
    assert!(Chosen::regex("(").is_err());
}

#[test]
fn names_are_known_without_the_code() {
    let dir = folder(&[]);
    let source = Source { shown: "stack.yml", base: dir.path(), lookup: Some(&lookup) };
    let (gateway, all) = names(FULL, &source, None).unwrap();
    assert_eq!(gateway.as_deref(), Some("http://faas.lan:8080"));
    assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), ["zeta.team", "alpha.default"]);
    let (_, all) = names(FULL, &source, Some(&Name::new("other").unwrap())).unwrap();
    assert!(all.iter().all(|name| name.namespace.as_str() == "other"), "{all:?}");
    let said = names("functions:\n  Upper: {image: x}\n", &source, None).unwrap_err().to_string();
    assert!(said.contains("line 2") && said.contains("try `upper`"), "{said}");
}

#[test]
fn languages_and_folders() {
    let dir = folder(&[
        ("py/handler.py", ""),
        ("js/handler.js", ""),
        ("js/package.json", r#"{"main": "gone.js"}"#),
        ("sh/handler.sh", "#!/bin/sh\ncat\n"),
        ("plain/handler.sh", "cat\n"),
        ("docker/Dockerfile", "FROM x\nENV fprocess=cat A=1 B=1\nRUN x\n"),
        ("own/main.sh", "#!/bin/sh\n"),
        ("two/a.py", ""),
        ("two/b.py", ""),
    ]);
    let of = |function: &str| {
        let text = format!("functions:\n  f: {{{function}}}\n");
        plan_in(dir.path(), &text, &Overlay::default()).map(|s| {
            let f = &s.functions[0];
            let Some((spec, _)) = &f.code else { return "image".to_owned() };
            let convention = if spec.convention.is_some() { " openfaas" } else { "" };
            let what = spec.handler.clone().unwrap_or_else(|| spec.command.join(" "));
            format!("{} {} {what}{convention} {}", spec.runtime(), spec.mode(), f.deployment["envVars"])
        })
    };
    for (function, expected) in [
        ("lang: python3, handler: py", "python3 handler handler openfaas {}"),
        (
            "lang: python3-flask-debian, handler: ./py/, fprocess: python index.py",
            "python3 handler handler openfaas {}",
        ),
        ("lang: node22, handler: js", "node handler handler openfaas {}"),
        ("lang: bash-streaming, handler: sh", "binary classic ./handler.sh {}"),
        ("lang: bash, handler: plain", "binary classic bash handler.sh {}"),
        ("lang: bash, handler: sh, fprocess: sh -x handler.sh", "binary classic sh -x handler.sh {}"),
        ("lang: Dockerfile, handler: docker, environment: {B: 2}", r#"binary classic cat {"A":"1","B":"2"}"#),
        ("lang: dockerfile, handler: docker, fprocess: env", r#"binary classic env {"A":"1","B":"1"}"#),
        ("lang: golang-http, handler: own", "binary classic /bin/sh ./main.sh {}"),
        ("handler: py", "python3 handler handler openfaas {}"),
        ("handler: gone, image: x", "image"),
    ] {
        assert_eq!(of(function).unwrap_or_else(|e| format!("{e:#}")), expected, "{function}");
    }
    for (function, parts) in [
        ("lang: python3, handler: gone", ["line 2: functions.f.handler", "there is no folder"]),
        ("lang: python3", ["line 2: functions.f.handler", "write `handler: ./f`"]),
        ("lang: python3, handler: two", ["functions.f.handler", "a.py, b.py"]),
        ("lang: cobol, handler: two", ["functions.f.lang: `cobol` is none of", "a.py, b.py"]),
        ("lang: dockerfile, handler: py", ["functions.f.handler", "Dockerfile"]),
        ("fprocess: cat", ["functions.f", "neither code nor an image"]),
        ("", ["functions.f", "neither code nor an image"]),
    ] {
        let said = of(function).unwrap_err().to_string();
        assert!(parts.iter().all(|part| said.contains(part)), "{function}: {said}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let dir = folder(&[("fn/handler.py", ""), ("bad.yml", "environment: [\n")]);
    for (text, parts) in [
        ("provider: {name: faasd}\nfunctions: {a: {image: x}}\n", vec!["line 1: provider.name: `faasd`", "`openfaas`"]),
        ("provider: {name: openfaas}\n", vec!["it has no functions"]),
        ("functions:\n\thello:\n", vec!["stack.yml", "tab"]),
        ("functions:\n  Hello: {image: x}\n", vec!["line 2", "try `hello`"]),
        ("functions:\n  a.b: {image: x}\n", vec!["line 2", "try `a-b`"]),
        ("functions:\n  a: {image: x}\n  a: {image: y}\n", vec!["line 3", "duplicate"]),
        ("functions:\n  a: {image: x, secrets: [../x]}\n", vec!["line 2: functions.a.secrets", "`../x`"]),
        ("functions:\n  a: {image: x, namespace: a/b}\n", vec!["line 2: functions.a.namespace"]),
        (
            "functions:\n  a:\n    image: x\n    environment_file: [gone.yml]\n",
            vec!["line 4: functions.a.environment_file", "gone.yml"],
        ),
        ("functions:\n  a: {image: x, environment_file: [bad.yml]}\n", vec!["functions.a.environment_file", "bad.yml"]),
        ("functions:\n  a: {image: x, environment: [1]}\n", vec!["line 2", "map"]),
        ("functions:\n  a: {image: x, readonly_root_filesystem: maybe}\n", vec!["line 2", "bool"]),
        ("functions:\n  a: {image: '${'}\n", vec!["stack.yml: line 2: `${"]),
        ("functions: [a]\n", vec!["line 1", "map"]),
        ("a: &a [*a]\nfunctions: {a: *a}\n", vec!["stack.yml", "line"]),
        (
            "configuration: {copy: [../x]}\nfunctions: {a: {lang: python3, handler: fn}}\n",
            vec!["configuration.copy: `../x`"],
        ),
        ("configuration: {copy: [gone]}\nfunctions: {a: {lang: python3, handler: fn}}\n", vec!["gone"]),
    ] {
        let said = refused(dir.path(), text).to_lowercase();
        assert!(parts.iter().all(|part| said.contains(&part.to_lowercase())), "{text}: {said}");
    }
    let bomb: String = ('b'..='l')
        .map(|c| {
            let before = char::from(c as u8 - 1);
            format!("{c}: &{c} [{}]\n", vec![format!("*{before}"); 10].join(","))
        })
        .collect();
    let said = refused(dir.path(), &format!("a: &a [x]\n{bomb}functions: {{a: {{image: x, constraints: *l}}}}\n"));
    assert!(
        said.contains("stack.yml")
            && said.contains("line ")
            && said.contains("aliases written out")
            && said.len() < 300,
        "{said}"
    );
}

#[test]
fn unknown_fields_are_passed_over_with_a_word() {
    let dir = folder(&[]);
    let text = "provider: {name: openfaas, network: x}\nfunctions:\n  a: {image: x, imagee: y, limits: {gpu: 1}}\nversion: 2\n";
    let stack = plan_in(dir.path(), text, &Overlay::default()).unwrap();
    let notes = stack.notes.join("\n");
    for part in ["`provider.network`", "`functions.a.imagee`", "`functions.a.limits.gpu`", "version `2`"] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
}

#[test]
fn a_stack_is_told_from_a_manifest() {
    assert!(is_stack(FULL) && is_stack("functions :\n") && is_stack(r#"{"functions": {}}"#));
    assert!(
        !is_stack("apiVersion: taper.dev/v1alpha1\nfunctions:\n")
            && !is_stack("spec:\n  functions:\n")
            && !is_stack("")
    );
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let dir = folder(&[("big.yml", &"# \n".repeat(400_000))]);
    assert!(read(&dir.path().join("big.yml")).unwrap_err().to_string().contains("larger than 1 MiB"));
    fs::write(dir.path().join("bytes.yml"), b"\xff").unwrap();
    assert!(read(&dir.path().join("bytes.yml")).is_err());
}
