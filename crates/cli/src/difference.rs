//! What a revision changed, as the platform tells it field by field: in words for a line, and in rows. Compares nothing itself.

use serde::Deserialize;
use serde_json::Value;

use crate::output::harmless;

/// Longest value that stands in a line that is about several fields.
const SHORT: usize = 16;
/// Characters of a digest that are shown where there is no room for all.
const DIGEST: usize = 8;

/// A field that a revision does not have in common with the one before it.
#[derive(Debug, PartialEq, Deserialize)]
pub(crate) struct Difference {
    /// Its path in the manifest, without `spec`; `code` for the artifact.
    field: String,
    /// What the earlier one says.
    before: Option<Value>,
    /// What the later one says.
    after: Option<Value>,
}

/// What a revision changed; what is not understood is left out.
pub(crate) fn of(revision: &Value) -> Vec<Difference> {
    let all = revision["changes"].as_array().into_iter().flatten();
    all.filter_map(|change| Difference::deserialize(change).ok()).collect()
}

/// The differences in one line: as many of them as fit, and the number of the rest.
pub(crate) fn line(all: &[Difference], most: usize) -> String {
    let mut said = String::new();
    for (at, difference) in all.iter().enumerate() {
        let text = difference.short();
        if at > 0 && said.chars().count() + text.chars().count() + 2 > most {
            return format!("{said}, and {} more", all.len() - at);
        }
        if at > 0 {
            said.push_str(", ");
        }
        said.push_str(&text);
    }
    said
}

impl Difference {
    /// `env.GREETING hi → hello`, `+secrets`, `-handler`, `code`.
    fn short(&self) -> String {
        let field = harmless(&self.field);
        match (&self.before, &self.after) {
            (Some(before), Some(after)) if field != "code" => {
                let (before, after) = (shown(before), shown(after));
                let fits = before.chars().count().max(after.chars().count()) <= SHORT;
                if fits { format!("{field} {before} → {after}") } else { field }
            }
            (None, Some(_)) => format!("+{field}"),
            (Some(_), None) => format!("-{field}"),
            _ => field,
        }
    }

    /// All of it: a sign and the field, and the values.
    pub(crate) fn row(&self) -> [String; 2] {
        let field = harmless(&self.field);
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => [format!("  {field}"), format!("{} → {}", shown(before), shown(after))],
            (None, Some(after)) => [format!("+ {field}"), shown(after)],
            (Some(before), None) => [format!("- {field}"), shown(before)],
            (None, None) => [format!("  {field}"), String::new()],
        }
    }
}

/// A digest as it is told apart at a glance.
pub(crate) fn brief(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(DIGEST).collect()
}

/// A value as it would be written, on one line that a terminal does not obey.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "\"\"".into(),
        Value::String(text) => harmless(text),
        other => harmless(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_are_told_in_a_line_and_in_rows() {
        let all = of(&json!({"changes": [
            {"field": "code", "before": "01234567", "after": "abcdef01"},
            {"field": "env.A", "before": "x", "after": "z"},
            {"field": "env.B", "before": "x", "after": "long\n".repeat(9)},
            {"field": "handler", "before": "a.b"},
            {"field": "scale.max", "before": 2, "after": 20},
            {"field": "secrets", "after": ["key"]},
            {"of": "another version"},
        ]}));
        let rows: Vec<String> = all.iter().map(|d| d.row().join(" | ")).collect();
        assert_eq!(
            rows,
            [
                "  code | 01234567 → abcdef01",
                "  env.A | x → z",
                &format!("  env.B | x → {}", "long\\n".repeat(9)),
                "- handler | a.b",
                "  scale.max | 2 → 20",
                "+ secrets | [\"key\"]",
            ]
        );
        assert_eq!(line(&all, 40), "code, env.A x → z, env.B, -handler, and 2 more");
        assert_eq!(line(&all, 200), "code, env.A x → z, env.B, -handler, scale.max 2 → 20, +secrets");
        assert_eq!((line(&[], 9).as_str(), of(&json!({})).len()), ("", 0));
        assert_eq!(shown(&json!("")), "\"\"");
    }
}
