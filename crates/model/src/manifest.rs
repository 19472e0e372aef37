//! The manifest: Kubernetes-shaped resources in YAML (JSON is YAML too), several to a file.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};

use crate::{FunctionName, FunctionSpec, Invalid, Name};

/// The only API version there is.
pub const API_VERSION: &str = "taper.dev/v1alpha1";

/// One resource as people write it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// `Function`.
    pub kind: String,
    /// Its name and what is attached to it.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: FunctionSpec,
    /// What a platform showed beside it is read over, so that what was shown can be sent back.
    #[serde(default, skip_serializing)]
    status: ReadOver,
}

/// A resource's name, labels and annotations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// The name inside the namespace.
    pub name: Name,
    /// The namespace; the default one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Labels: for selecting.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations: for settings such as `autoscaling.knative.dev/target`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// A function's manifest.
    pub fn function(name: &FunctionName, spec: FunctionSpec) -> Self {
        Self {
            api_version: API_VERSION.into(),
            kind: "Function".into(),
            metadata: Metadata {
                name: name.name.clone(),
                namespace: Some(name.namespace.to_string()),
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
            },
            spec,
            status: ReadOver,
        }
    }

    /// The function it names.
    ///
    /// # Errors
    /// When the namespace is not a name.
    pub fn function_name(&self) -> Result<FunctionName, Invalid> {
        let namespace = Name::namespace(self.metadata.namespace.as_deref().unwrap_or(""))?;
        Ok(FunctionName::new(namespace, self.metadata.name.clone()))
    }

    /// Checks version, kind and namespace. The spec has its own check, made once its source is resolved.
    ///
    /// # Errors
    /// Names the field, the value, and what is allowed.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.api_version != API_VERSION {
            return Err(Invalid(format!(
                "apiVersion: `{}` is not known here; write `{API_VERSION}`",
                self.api_version
            )));
        }
        if self.kind != "Function" {
            return Err(Invalid(format!("kind: `{}` is not known here; write `Function`", self.kind)));
        }
        self.function_name().map(drop)
    }

    /// Reads every document of a YAML text, or the one list in it.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line and column.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, Invalid> {
        let first = text.lines().find(|line| !line.trim_start().is_empty() && !line.trim_start().starts_with('#'));
        let list = first.is_some_and(|line| line.starts_with("- ") || line.starts_with('['));
        let read = if list { serde_saphyr::from_str(text) } else { serde_saphyr::from_multiple(text) };
        let documents: Vec<Self> = read.map_err(|e| Invalid(e.to_string()))?;
        if documents.is_empty() {
            return Err(Invalid::new("the manifest is empty"));
        }
        documents.iter().try_for_each(Self::check)?;
        Ok(documents)
    }
}

/// Something that may be there and says nothing.
#[derive(Debug, Clone, PartialEq, Default)]
struct ReadOver;

impl<'de> Deserialize<'de> for ReadOver {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(d).map(|_| Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mode, Runtime};

    const GOOD: &str = "
apiVersion: taper.dev/v1alpha1
kind: Function
metadata: {name: hello, namespace: default}
spec:
  runtime: python3
  source: ./hello            # a file, a directory or an archive
  handler: handler.handle
  timeout: 30s
  concurrency: 10
  scale: {min: 0, max: 20, target: 7, metric: concurrency, zeroAfter: 60s}
  env: {GREETING: hello}
  secrets: [api-key]
  resources: {memory: 128Mi, cpu: 500m}
  traffic: [{latest: true, percent: 90}, {revision: hello-00001, percent: 10, tag: stable}]
";

    #[test]
    fn the_documented_manifest_is_read() {
        let all = Manifest::parse_all(GOOD).unwrap();
        let spec = &all[0].spec;
        assert_eq!(
            (spec.runtime(), spec.mode(), spec.concurrency(), spec.max()),
            (Runtime::Python3, Mode::Handler, 10, 20)
        );
        assert_eq!((spec.memory(), spec.cpu_milli(), spec.timeout().as_secs()), (128 << 20, 500, 30));
        assert_eq!(spec.traffic.len(), 2);
        spec.validate().unwrap();
        let json = serde_json::to_string(&all[0]).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), all[0]);
        assert_eq!(Manifest::parse_all(&json).unwrap(), all, "JSON is YAML too");
    }

    #[test]
    fn what_was_shown_is_read_again() {
        let shown = format!("{GOOD}status: {{readyInstances: 1, conditions: [{{type: Ready}}]}}\n");
        let all = Manifest::parse_all(&shown).unwrap();
        assert_eq!(all, Manifest::parse_all(GOOD).unwrap());
        let json = serde_json::to_string(&[&all[0], &all[0]]).unwrap();
        assert!(!json.contains("status"), "{json}");
        assert_eq!(Manifest::parse_all(&json).unwrap(), [all[0].clone(), all[0].clone()]);
        let list =
            format!("# two\n- {}\n- {}\n", serde_json::to_string(&all[0]).unwrap(), GOOD.trim().replace('\n', "\n  "));
        assert_eq!(Manifest::parse_all(&list).unwrap().len(), 2);
        let text = Manifest::parse_all("- apiVersion: taper.dev/v1alpha1\n  knid: Function\n").unwrap_err().to_string();
        assert!(text.contains("knid") && text.contains("line 2"), "{text}");
    }

    #[test]
    fn a_misspelt_field_is_named_with_its_line_and_column() {
        let text = Manifest::parse_all(&GOOD.replace("timeout:", "timeuot:")).unwrap_err().to_string();
        assert!(text.contains("timeuot") && text.contains('9') && text.contains("timeout"), "{text}");
        let text = Manifest::parse_all(&GOOD.replace("zeroAfter", "zero_after")).unwrap_err().to_string();
        assert!(text.contains("zero_after") && text.contains("11"), "{text}");
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        for (from, to, expect) in [
            ("name: hello", "name: Hello", "try `hello`"),
            ("memory: 128Mi", "memory: lots", "amount of memory"),
            ("runtime: python3", "runtime: cobol", "cobol"),
            ("kind: Function", "kind: Functoin", "`Function`"),
            ("taper.dev/v1alpha1", "taper.dev/v9", "taper.dev/v1alpha1"),
            ("timeout: 30s", "timeout: soon", "duration"),
            ("concurrency: 10", "concurrency: -1", ""),
        ] {
            let text = Manifest::parse_all(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(text.contains(expect), "{to}: {text}");
        }
        assert!(Manifest::parse_all("").is_err());
        assert!(Manifest::parse_all("a: [").is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        let read = |from: &str, to: &str| Manifest::parse_all(&GOOD.replace(from, to)).unwrap()[0].spec.validate();
        for (from, to, field) in [
            ("min: 0", "min: 21", "scale.min"),
            ("max: 20", "max: 0", "scale.max"),
            ("target: 7", "target: 0", "scale.target"),
            ("timeout: 30s", "timeout: 0s", "spec.timeout"),
            ("runtime: python3", "runtime: binary", "spec.command"),
            ("handler: handler.handle", "command: [ls]", "a"),
            ("concurrency: 10", "concurrency: 2000", "spec.concurrency"),
            ("memory: 128Mi", "memory: 1Mi", "resources.memory"),
        ] {
            match read(from, to) {
                Err(e) => assert!(e.to_string().contains(field), "{to}: {e}"),
                Ok(()) => assert_eq!(to, "command: [ls]", "{to} was accepted"),
            }
        }
    }
}
