//! The manifest: Kubernetes-shaped resources in YAML (JSON is YAML too), several to a file.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error, IgnoredAny, MapAccess, Visitor},
};
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter, Spanned};

use crate::{FunctionName, FunctionSpec, Invalid, Name, route::RouteSpec, trigger::TriggerSpec};

mod place;

pub use place::line_of;

/// The only API version there is.
pub const API_VERSION: &str = "taper.dev/v1alpha1";

/// One resource as people write it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest<S = FunctionSpec> {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// What it is of: [`Kind::KIND`].
    pub kind: String,
    /// Its name and what is attached to it.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: S,
    /// What a platform showed beside it is read over, so that what was shown can be sent back.
    #[serde(default, skip_serializing)]
    status: ReadOver,
}

/// A kind of resource, by its `spec`.
pub trait Kind {
    /// The word in `kind`.
    const KIND: &'static str;
}

impl Kind for FunctionSpec {
    const KIND: &'static str = "Function";
}

impl Kind for RouteSpec {
    const KIND: &'static str = "Route";
}

impl Kind for TriggerSpec {
    const KIND: &'static str = "Trigger";
}

/// A resource of whatever kind, as one document of a file has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    /// `kind: Function`.
    Function(Box<Manifest<FunctionSpec>>),
    /// `kind: Route`.
    Route(Box<Manifest<RouteSpec>>),
    /// `kind: Trigger`.
    Trigger(Box<Manifest<TriggerSpec>>),
}

impl Resource {
    /// Reads every document of a YAML text, or the one list in it, in the text's order.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line and column.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, Invalid> {
        let documents: Vec<Self> = documents(text).map_err(|e| {
            let path = e.location().and_then(|here| place::path_at(text, &here));
            Invalid(path.map_or_else(|| e.to_string(), |path| e.render_with_formatter(&Named(path))))
        })?;
        if documents.is_empty() {
            return Err(Invalid::new("the manifest is empty"));
        }
        Ok(documents)
    }

    /// Its name, labels and annotations.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Function(manifest) => &manifest.metadata,
            Self::Route(manifest) => &manifest.metadata,
            Self::Trigger(manifest) => &manifest.metadata,
        }
    }
}

/// Every document of a text, or the one list in it.
fn documents<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, serde_saphyr::Error> {
    let first = text.lines().find(|line| !line.trim_start().is_empty() && !line.trim_start().starts_with('#'));
    let list = first.is_some_and(|line| line.starts_with("- ") || line.starts_with('['));
    if list { serde_saphyr::from_str(text) } else { serde_saphyr::from_multiple(text) }
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
        Self::new(name, spec)
    }
}

impl<S: Kind> Manifest<S> {
    /// The manifest of a resource.
    pub fn new(name: &FunctionName, spec: S) -> Self {
        let metadata = Metadata {
            name: name.name.clone(),
            namespace: Some(name.namespace.to_string()),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        };
        Self::read(metadata, spec)
    }

    fn read(metadata: Metadata, spec: S) -> Self {
        Self { api_version: API_VERSION.into(), kind: S::KIND.into(), metadata, spec, status: ReadOver }
    }

    /// The function it names, or the place and the name of another resource.
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
        if self.kind != S::KIND {
            return Err(Invalid(format!("kind: `{}` is not known here; write `{}`", self.kind, S::KIND)));
        }
        self.function_name().map(drop)
    }
}

/// The kinds there are.
#[derive(Clone, Copy)]
enum Word {
    Function,
    Route,
    Trigger,
}

/// A `spec` whose kind is known, or that stands before it.
enum Spec {
    Function(Box<FunctionSpec>),
    Route(RouteSpec),
    Trigger(Box<TriggerSpec>),
    Early(Spanned<serde_json::Value>),
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Field {
    ApiVersion,
    Kind,
    Metadata,
    Spec,
    Status,
}

/// Refused where it stands, so that the reader of YAML adds the place. The form of the text is [`Manifest::check`]'s.
fn unknown<T, E: Error>(field: &str, said: &str, known: &str) -> Result<T, E> {
    Err(E::custom(format_args!("{field}: `{}` is not known here; write {known}", said.escape_debug())))
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match String::deserialize(d)?.as_str() {
            FunctionSpec::KIND => Ok(Self::Function),
            RouteSpec::KIND => Ok(Self::Route),
            TriggerSpec::KIND => Ok(Self::Trigger),
            other => {
                let known = format!("`{}`, `{}` or `{}`", FunctionSpec::KIND, RouteSpec::KIND, TriggerSpec::KIND);
                unknown("kind", other, &known)
            }
        }
    }
}

/// [`API_VERSION`], read.
struct Version;

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match String::deserialize(d)?.as_str() {
            API_VERSION => Ok(Self),
            other => unknown("apiVersion", other, &format!("`{API_VERSION}`")),
        }
    }
}

/// Metadata whose namespace is one. It stays as it was written.
struct About(Metadata);

impl<'de> Deserialize<'de> for About {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let metadata = Metadata::deserialize(d)?;
        Name::namespace(metadata.namespace.as_deref().unwrap_or("")).map_err(D::Error::custom)?;
        Ok(Self(metadata))
    }
}

/// What is wrong, after the path of where it is.
struct Named(String);

impl MessageFormatter for Named {
    fn format_message<'a>(&self, e: &'a serde_saphyr::Error) -> Cow<'a, str> {
        format!("{}: {}", self.0, plain(e)).into()
    }
}

/// What is wrong, in words for people who write manifests rather than readers of YAML.
fn plain(e: &serde_saphyr::Error) -> Cow<'_, str> {
    let said = DefaultMessageFormatter.format_message(e);
    match &*said {
        "expected mapping start" => "expected fields, as in `{name: value}`".into(),
        "expected sequence start" => "expected a list, as in `[one, two]`, or each on its line after `- `".into(),
        "expected string scalar" => "expected one text; write a list or fields as one, in quotes".into(),
        "invalid u8" => "expected a whole number, 0 to 255".into(),
        "invalid u16" => "expected a whole number, 0 to 65535".into(),
        "invalid u32" => "expected a whole number, 0 to 4294967295".into(),
        "invalid u64" => "expected a whole number, 0 or more".into(),
        "invalid f64" => "expected a number".into(),
        _ => said,
    }
}

/// Reads a `spec` that stood before its `kind`. Its place is all that is left of the places in it.
fn late<S: DeserializeOwned, E: Error>(spec: &Spanned<serde_json::Value>) -> Result<S, E> {
    // JSON is YAML, so that values mean what they would have meant.
    let text = spec.value.to_string();
    serde_saphyr::from_str(&text).map_err(|e| {
        let path = e.location().and_then(|here| place::path_at(&text, &here));
        let path = path.map_or_else(|| "spec".into(), |path| format!("spec.{path}"));
        let (what, line) = (plain(e.without_snippet()), spec.referenced.line());
        E::custom(format_args!("{path}: {what}, in the spec that begins in line {line}"))
    })
}

/// A document is read in one go by its `kind`, so that whatever is wrong in its `spec` has its line and column.
impl<'de> Deserialize<'de> for Resource {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Document;
        impl<'de> Visitor<'de> for Document {
            type Value = Resource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a resource with `apiVersion`, `kind`, `metadata` and `spec`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Resource, A::Error> {
                let (mut version, mut kind, mut about, mut spec) = (None, None, None, None);
                while let Some(field) = map.next_key()? {
                    match field {
                        Field::ApiVersion => version = Some(map.next_value::<Version>()?),
                        Field::Kind => kind = Some(map.next_value::<Word>()?),
                        Field::Metadata => about = Some(map.next_value::<About>()?),
                        Field::Spec => {
                            spec = Some(match kind {
                                Some(Word::Function) => Spec::Function(map.next_value()?),
                                Some(Word::Route) => Spec::Route(map.next_value()?),
                                Some(Word::Trigger) => Spec::Trigger(map.next_value()?),
                                None => Spec::Early(map.next_value()?),
                            });
                        }
                        Field::Status => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                let missing = A::Error::missing_field;
                version.ok_or_else(|| missing("apiVersion"))?;
                let kind = kind.ok_or_else(|| missing("kind"))?;
                let About(metadata) = about.ok_or_else(|| missing("metadata"))?;
                Ok(match (kind, spec.ok_or_else(|| missing("spec"))?) {
                    (_, Spec::Function(spec)) => Resource::Function(Box::new(Manifest::read(metadata, *spec))),
                    (_, Spec::Route(spec)) => Resource::Route(Box::new(Manifest::read(metadata, spec))),
                    (_, Spec::Trigger(spec)) => Resource::Trigger(Box::new(Manifest::read(metadata, *spec))),
                    (Word::Function, Spec::Early(spec)) => {
                        Resource::Function(Box::new(Manifest::read(metadata, late(&spec)?)))
                    }
                    (Word::Route, Spec::Early(spec)) => {
                        Resource::Route(Box::new(Manifest::read(metadata, late(&spec)?)))
                    }
                    (Word::Trigger, Spec::Early(spec)) => {
                        Resource::Trigger(Box::new(Manifest::read(metadata, late(&spec)?)))
                    }
                })
            }
        }
        d.deserialize_struct("Resource", &["apiVersion", "kind", "metadata", "spec", "status"], Document)
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
    use proptest::prelude::*;

    use super::*;
    use crate::{Mode, Runtime};

    /// The functions of a text that has nothing else.
    fn functions(text: &str) -> Result<Vec<Manifest>, Invalid> {
        let function = |resource| match resource {
            Resource::Function(manifest) => *manifest,
            other => panic!("{other:?}"),
        };
        Ok(Resource::parse_all(text)?.into_iter().map(function).collect())
    }

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
        let all = functions(GOOD).unwrap();
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
        assert_eq!(functions(&json).unwrap(), all, "JSON is YAML too");
    }

    #[test]
    fn what_was_shown_is_read_again() {
        let shown = format!("{GOOD}status: {{readyInstances: 1, conditions: [{{type: Ready}}]}}\n");
        let all = functions(&shown).unwrap();
        assert_eq!(all, functions(GOOD).unwrap());
        let json = serde_json::to_string(&[&all[0], &all[0]]).unwrap();
        assert!(!json.contains("status"), "{json}");
        assert_eq!(functions(&json).unwrap(), [all[0].clone(), all[0].clone()]);
        let list =
            format!("# two\n- {}\n- {}\n", serde_json::to_string(&all[0]).unwrap(), GOOD.trim().replace('\n', "\n  "));
        assert_eq!(functions(&list).unwrap().len(), 2);
        let text = functions("- apiVersion: taper.dev/v1alpha1\n  knid: Function\n").unwrap_err().to_string();
        assert!(text.contains("knid") && text.contains("line 2"), "{text}");
    }

    #[test]
    fn a_misspelt_field_is_named_with_its_line_and_column() {
        let text = functions(&GOOD.replace("timeout:", "timeuot:")).unwrap_err().to_string();
        assert!(text.contains("timeuot") && text.contains('9') && text.contains("timeout"), "{text}");
        let text = functions(&GOOD.replace("zeroAfter", "zero_after")).unwrap_err().to_string();
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
            let text = functions(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(text.contains(expect), "{to}: {text}");
        }
        assert!(functions("").is_err());
        assert!(functions("a: [").is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        let read = |from: &str, to: &str| functions(&GOOD.replace(from, to)).unwrap()[0].spec.validate();
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

    const ROUTE: &str = "
apiVersion: taper.dev/v1alpha1
kind: Route
metadata: {name: shop}
spec:
  host: shop.example.com
  rules:
    - {path: '/users/{id}', methods: [GET], function: hello}
    - {path: /*, function: front, tag: canary}
";

    const TRIGGER: &str = "
apiVersion: taper.dev/v1alpha1
kind: Trigger
metadata: {name: nightly}
spec:
  function: hello
  schedule: '0 3 * * *'
  timeZone: Europe/Vienna
  missed: all
  overlap: replace
  jitter: 30s
  input: {method: PUT, path: /report, headers: {X-Kind: nightly}, body: '{}'}
  retry: {attempts: 5, maxWait: 10m}
  onFailure: {topic: failures}
";

    #[test]
    fn a_file_has_documents_of_several_kinds() {
        let all = Resource::parse_all(&format!("{ROUTE}---\n# nothing\n---\n{GOOD}---{ROUTE}---{TRIGGER}")).unwrap();
        let [Resource::Route(one), Resource::Function(two), Resource::Route(three), Resource::Trigger(four)] = &all[..]
        else {
            panic!("{all:?}");
        };
        assert_eq!((four.kind.as_str(), four.metadata.name.as_str()), ("Trigger", "nightly"));
        assert_eq!(four.spec.input.as_ref().and_then(|i| i.path.as_deref()), Some("/report"));
        four.spec.validate(&Name::default_namespace()).unwrap();
        assert_eq!((one, two.as_ref()), (three, &functions(GOOD).unwrap()[0]));
        assert_eq!((one.kind.as_str(), one.spec.rules.len()), ("Route", 2));
        assert_eq!(all[0].metadata().name.as_str(), "shop");
        let (one, two) = (serde_json::to_string(&one).unwrap(), serde_json::to_string(&two).unwrap());
        assert_eq!(Resource::parse_all(&format!("[{one}, {two}]")).unwrap(), all[..2], "a list of both");
        let list = format!("- {one}\n- {two}\n");
        assert_eq!(Resource::parse_all(&list).unwrap(), all[..2]);
    }

    #[test]
    fn whatever_is_wrong_has_its_line_in_the_file() {
        let file = format!("{GOOD}---{ROUTE}---{TRIGGER}");
        for (from, to, what, line) in [
            (
                "kind: Route",
                "kind: Ruote",
                "kind: `Ruote` is not known here; write `Function`, `Route` or `Trigger`",
                18,
            ),
            ("v1alpha1\nkind: Route", "v2\nkind: Route", "write `taper.dev/v1alpha1`", 17),
            ("methods: [GET]", "method: [GET]", "unknown field `method`", 23),
            ("tag: canary", "tag: Canary", "try `canary`", 24),
            ("host: shop", "hots: shop", "unknown field `hots`", 21),
            ("{name: shop}", "{name: shop, namespace: Shop}", "namespace: name `Shop`", 19),
            ("{name: shop}", "{name: shop}\nspce: {}", "unknown field `spce`", 20),
            ("timeout: 30s", "timeuot: 30s", "unknown field `timeuot`", 9),
            ("missed: all", "missed: never", ": spec.missed: unknown variant `never`", 33),
            ("overlap: replace", "overlap: [1]", ": spec.overlap: ", 34),
            ("jitter: 30s", "jitter: soon", ": spec.jitter: `soon` is not a duration", 35),
            ("jitter: 30s", "jitterr: 30s", ": spec: unknown field `jitterr`", 35),
            ("headers: {X", "haeders: {X", ": spec.input: unknown field `haeders`", 36),
            ("attempts: 5", "attempts: many", ": spec.retry.attempts: ", 37),
            ("attempts: 5", "attemps: 5", ": spec.retry: unknown field `attemps`", 37),
            ("methods: [GET]", "methods: [[GET]]", ": spec.rules[0].methods[0]: ", 23),
            ("memory: 128Mi", "memory: lots", ": spec.resources.memory: ", 14),
            ("concurrency: 10", "concurrency: -1", ": spec.concurrency: expected a whole number, 0 to ", 10),
            (
                "timeout: 30s",
                "async: {onFailure: echo}",
                ": spec.async.onFailure: expected fields, as in `{name: value}`",
                9,
            ),
            ("timeout: 30s", "async: {retry: {statuses: [500]}}", ": spec.async.retry.statuses: expected one text", 9),
            (
                "onFailure: {topic: failures}",
                "filters: {exact: {type: a}}",
                ": spec.filters: expected a list, as in",
                38,
            ),
        ] {
            assert!(file.contains(from), "{from}");
            let text = Resource::parse_all(&file.replace(from, to)).unwrap_err().to_string();
            assert!(text.contains(what) && text.contains(&format!("line {line}")), "{to}: {text}");
        }
        for field in ["apiVersion", "kind", "metadata", "spec"] {
            let (cut, _) = file.split_once(&format!("---{ROUTE}")).unwrap();
            let left: String = cut.lines().filter(|l| !l.starts_with(field)).map(|l| format!("{l}\n")).collect();
            let left = if field == "spec" { left.split_once("  runtime").unwrap().0.to_owned() } else { left };
            let text = Resource::parse_all(&left).unwrap_err().to_string();
            assert!(text.contains(&format!("missing field `{field}`")), "{text}");
        }
        let text = Resource::parse_all("hello").unwrap_err().to_string();
        assert!(text.contains("expected mapping") && text.contains("line 1"), "{text}");
    }

    #[test]
    fn fields_may_stand_in_any_order() {
        let turned = |spec: &str, kind: &str| {
            format!("spec:\n  {spec}\nmetadata: {{name: a}}\nkind: {kind}\napiVersion: taper.dev/v1alpha1\n")
        };
        let function = "command: [cat]\n  env: {PORT: 8080, HALF: 0.50}\n  timeout: 30";
        let all = functions(&turned(function, "Function")).unwrap();
        let straight = format!(
            "apiVersion: taper.dev/v1alpha1\nkind: Function\nmetadata: {{name: a}}\nspec:\n  {}\n",
            function.replace("0.50", "0.5")
        );
        assert_eq!(all, functions(&straight).unwrap());
        assert!(matches!(Resource::parse_all(&turned("rules: []", "Route")).unwrap()[..], [Resource::Route(_)]));
        assert!(matches!(
            Resource::parse_all(&turned("events: {topic: a}", "Trigger")).unwrap()[..],
            [Resource::Trigger(_)]
        ));
        let text = Resource::parse_all(&turned("rulse: []", "Route")).unwrap_err().to_string();
        assert!(text.starts_with("spec: unknown field `rulse`") && text.contains("begins in line 2"), "{text}");
        let text = Resource::parse_all(&turned("jitter: soon", "Trigger")).unwrap_err().to_string();
        assert!(text.starts_with("spec.jitter: `soon`") && text.contains("begins in line 2"), "{text}");
        let twice = ROUTE.replace("kind: Route", "kind: Route\nkind: Function");
        assert!(Resource::parse_all(&twice).unwrap_err().to_string().contains("duplicate"), "{twice}");
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_or_refused(
            order in prop::collection::vec(0..4_usize, 1..4),
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, 0..14_usize), 0..4),
        ) {
            let mut text: String = order.iter().map(|at| [GOOD, ROUTE, TRIGGER, "\n"][*at]).collect::<Vec<_>>().join("---");
            for (at, cut, put) in edits {
                let at = text.floor_char_boundary(at.index(text.len() + 1));
                let end = text.ceil_char_boundary((at + cut).min(text.len()));
                let words = ["", "\n", " ", "- ", "{", "]", ": ", "spec", "kind: Route\n", "---\n", "&a ", "*a", "0x", "\u{e4}"];
                text.replace_range(at..end, words[put]);
            }
            for resource in Resource::parse_all(&text).into_iter().flatten() {
                let printed = match &resource {
                    Resource::Function(manifest) => serde_json::to_string(manifest),
                    Resource::Route(manifest) => serde_json::to_string(manifest),
                    Resource::Trigger(manifest) => serde_json::to_string(manifest),
                };
                prop_assert_eq!(Resource::parse_all(&printed.unwrap()).unwrap(), [resource]);
            }
        }
    }
}
