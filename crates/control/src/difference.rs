//! What two revisions of a function say differently, field by field, as people read it. Pure; asks for nothing.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use taper_model::Revision;

/// Most fields that are told of.
const MOST: usize = 100;
/// Longest value that is told whole, in characters.
const LONGEST: usize = 200;
/// Characters of a digest that tell it apart at a glance.
const DIGEST: usize = 8;

/// A field that two revisions do not have in common.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Difference {
    /// Its path in the manifest, without `spec`; `code` for the artifact.
    field: String,
    /// What the earlier one says; absent where it says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Value>,
    /// What the later one says.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Value>,
}

/// Every difference, the code first and the others by path. Of what is too much and of what is too long, the end is cut off.
pub(crate) fn between(before: &Revision, after: &Revision) -> Vec<Difference> {
    let (mut left, right) = (fields(before), fields(after));
    let mut all = Vec::new();
    for (field, after) in right {
        match left.remove(&field) {
            Some(before) if before == after => {}
            before => all.push(Difference { field, before, after: Some(after) }),
        }
    }
    all.extend(left.into_iter().map(|(field, before)| Difference { field, before: Some(before), after: None }));
    all.sort_by(|a, b| (a.field != "code", &a.field).cmp(&(b.field != "code", &b.field)));
    all.truncate(MOST);
    for value in all.iter_mut().flat_map(|d| [&mut d.before, &mut d.after]).flatten() {
        *value = brief(value);
    }
    all
}

/// What a revision says, by path. Its code is its artifact; secrets are names, and nothing here knows more of them.
fn fields(revision: &Revision) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    flatten(&json!(revision.spec), "", &mut all);
    all.retain(|field, _| field != "source" && !field.starts_with("source."));
    flatten(&json!(revision.labels), "labels", &mut all);
    flatten(&json!(revision.annotations), "annotations", &mut all);
    if let Some(digest) = revision.artifact {
        let digest = digest.to_string();
        let hex = digest.strip_prefix("sha256:").unwrap_or(&digest);
        all.insert("code".into(), hex.chars().take(DIGEST).collect::<String>().into());
    }
    all
}

fn flatten(value: &Value, path: &str, all: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(value, &path, all);
            }
        }
        Value::Null => {}
        other => drop(all.insert(path.into(), other.clone())),
    }
}

fn brief(value: &Value) -> Value {
    let cut =
        |text: &str| (text.chars().count() > LONGEST).then(|| text.chars().take(LONGEST).collect::<String>() + "…");
    match value {
        Value::String(text) => cut(text).map_or_else(|| value.clone(), Into::into),
        other => cut(&other.to_string()).map_or_else(|| other.clone(), Into::into),
    }
}

#[cfg(test)]
mod tests {
    use taper_model::{Digest, FunctionName, RevisionId};

    use super::*;

    fn revision(spec: Value, code: Option<u8>, labels: Value) -> Revision {
        Revision {
            id: RevisionId::new(FunctionName::parse("hello").unwrap(), 1),
            spec: serde_json::from_value(spec).unwrap(),
            artifact: code
                .map(|byte| format!("sha256:{}", format!("{byte:02x}").repeat(32)).parse::<Digest>().unwrap()),
            labels: serde_json::from_value(labels).unwrap(),
            annotations: BTreeMap::new(),
            created_ms: 0,
            by: String::new(),
        }
    }

    fn told(before: &Revision, after: &Revision) -> Vec<String> {
        let word = |value: &Option<Value>| value.as_ref().map_or("-".into(), ToString::to_string);
        between(before, after).iter().map(|d| format!("{} {} → {}", d.field, word(&d.before), word(&d.after))).collect()
    }

    #[test]
    fn fields_are_told_by_their_paths_and_the_code_by_its_digest() {
        let one = revision(
            json!({"env": {"A": "x", "B": "y"}, "handler": "a.b", "scale": {"max": 2}, "source": {"digest": format!("sha256:{}", "ab".repeat(32))}}),
            Some(0xab),
            json!({}),
        );
        let two = revision(
            json!({"env": {"A": "z", "B": "y"}, "secrets": ["key"], "scale": {"max": 20}, "timeout": "5s"}),
            Some(0xcd),
            json!({"team": "web"}),
        );
        assert_eq!(
            told(&one, &two),
            [
                r#"code "abababab" → "cdcdcdcd""#,
                r#"env.A "x" → "z""#,
                r#"handler "a.b" → -"#,
                r#"labels.team - → "web""#,
                "scale.max 2 → 20",
                r#"secrets - → ["key"]"#,
                r#"timeout - → "5s""#,
            ]
        );
        assert!(between(&one, &one).is_empty());
    }

    #[test]
    fn what_is_long_is_cut() {
        let env: BTreeMap<String, String> = (0..500).map(|n| (format!("K{n:03}"), "v".into())).collect();
        let none = revision(json!({}), None, json!({}));
        assert_eq!(between(&none, &revision(json!({"env": env}), None, json!({}))).len(), MOST);
        let long = revision(json!({"env": {"A": "ä".repeat(10_000)}}), None, json!({}));
        let all = between(&none, &long);
        assert_eq!(all[0].after.as_ref().unwrap().as_str().unwrap().chars().count(), LONGEST + 1);
    }
}
