//! Hosts, as requests name them and as templates make them of functions. Pure; never says whose a host is: `routes` does.

use std::borrow::Cow;

use taper_model::{Cause, Fault, FunctionName, Invalid, Stage, route::LONGEST_HOST};

/// The host that a `Host` header or a target's authority names: in lower case, without its port and without the dot that ends full
/// names. Empty where none is named.
///
/// # Errors
/// A fault of the stage `accept` when it is none, or longer than any.
pub fn read(text: &str) -> Result<Cow<'_, str>, Fault> {
    let refuse = |why: String| Err(Fault::new(Stage::Accept, Cause::Malformed, why));
    let (name, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((address, rest)) => (&text[..address.len() + 2], rest),
        None => text.find(':').map_or((text, ""), |at| text.split_at(at)),
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    let has_port = digits.len() < port.len();
    let number = digits.bytes().all(|b| b.is_ascii_digit()) && (digits.is_empty() || digits.parse::<u16>().is_ok());
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > LONGEST_HOST {
        return refuse(format!("the host has {} bytes; at most {LONGEST_HOST} are allowed", name.len()));
    }
    if !number || (!has_port && !digits.is_empty()) {
        return refuse("the port in the Host header is none".into());
    }
    Ok(match name.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(name.to_ascii_lowercase()),
        false => Cow::Borrowed(name),
    })
}

/// How functions are reached by hosts: `{name}.{namespace}.{domain}`, and `{tag}-{name}` in the place of the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Templates {
    /// Empty: no host is a function's by template.
    domain: String,
    labels: Vec<Part>,
    tag: Tagged,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Name,
    Namespace,
}

/// What stands around a tag and a name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tagged {
    before: String,
    between: String,
    after: String,
    /// The tag comes first.
    tag_first: bool,
}

/// A function as a host names it by the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named<'a> {
    /// What stands in the place of the name, perhaps with a tag.
    pub label: &'a str,
    /// The namespace.
    pub namespace: &'a str,
}

impl Templates {
    /// Reads the three settings.
    ///
    /// # Errors
    /// Names the setting, the value, and what is allowed.
    pub fn new(domain: &str, host: &str, tag: &str) -> Result<Self, Invalid> {
        let refuse = |field: &str, text: &str, why: &str| Err(Invalid(format!("gateway.{field}: `{text}` {why}")));
        let domain = domain.to_ascii_lowercase();
        if !domain.is_empty() && (domain.len() > LONGEST_HOST - 128 || !domain.split('.').all(is_label)) {
            return refuse("domain", &domain, "is not a domain such as `faas.example.com`");
        }
        let Some(pattern) = host.strip_suffix(".{domain}") else {
            return refuse("hostTemplate", host, "does not end with `.{domain}`");
        };
        let labels: Vec<Part> = pattern
            .split('.')
            .map(|label| match label {
                "{name}" => Part::Name,
                "{namespace}" => Part::Namespace,
                other => Part::Literal(other.to_ascii_lowercase()),
            })
            .collect();
        let once = |part: &Part| labels.iter().filter(|l| *l == part).count() == 1;
        if !once(&Part::Name) || !once(&Part::Namespace) {
            let why = "needs `{name}` and `{namespace}` once, each as a whole label: in one label they could not be told apart";
            return refuse("hostTemplate", host, why);
        }
        if labels.iter().any(|l| matches!(l, Part::Literal(text) if !is_label(text))) {
            return refuse("hostTemplate", host, "has a label that is no label of a host");
        }
        let Some(tag) = Tagged::read(tag) else {
            let why = "needs `{tag}` and `{name}` once, with letters, digits or `-` between them";
            return refuse("tagTemplate", tag, why);
        };
        Ok(Self { domain, labels, tag })
    }

    /// The function that a host, as [`read`] gives it, names by the template; whether there is such a one is not looked at.
    pub fn function<'a>(&self, host: &'a str) -> Option<Named<'a>> {
        if self.domain.is_empty() {
            return None;
        }
        let front = host.strip_suffix(&*self.domain)?.strip_suffix('.')?;
        let mut found = front.split('.');
        let (mut name, mut namespace) = (None, None);
        for part in &self.labels {
            let label = found.next()?;
            match part {
                Part::Literal(text) if text == label => {}
                Part::Literal(_) => return None,
                Part::Name => name = Some(label),
                Part::Namespace => namespace = Some(label),
            }
        }
        found.next().is_none().then_some(Named { label: name?, namespace: namespace? })
    }

    /// The tags and names that a label may be made of, the shortest tag first.
    pub fn tagged<'a>(&self, label: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let Tagged { before, between, after, tag_first } = &self.tag;
        let inner = label.strip_prefix(&**before).and_then(|l| l.strip_suffix(&**after)).unwrap_or("");
        let splits = inner.match_indices(&**between).map(|(at, _)| (&inner[..at], &inner[at + between.len()..]));
        let mut pairs: Vec<(&str, &str)> =
            splits.map(|(one, other)| if *tag_first { (one, other) } else { (other, one) }).collect();
        pairs.sort_by_key(|(tag, _)| tag.len());
        pairs.into_iter()
    }

    /// The domain, which is the platform's, where the host lies below it.
    pub(crate) fn above(&self, host: &str) -> Option<&str> {
        let is_below = !self.domain.is_empty() && host.strip_suffix(&*self.domain)?.ends_with('.');
        is_below.then_some(&*self.domain)
    }

    /// Whether the host is the domain itself, which is the platform's.
    pub fn is_domain(&self, host: &str) -> bool {
        !self.domain.is_empty() && host == self.domain
    }

    /// The host of a function, or of one of its tags; none where no hosts are made.
    pub fn host(&self, function: &FunctionName, tag: Option<&str>) -> Option<String> {
        if self.domain.is_empty() {
            return None;
        }
        let Tagged { before, between, after, tag_first } = &self.tag;
        let name = match (tag, *tag_first) {
            (None, _) => function.name.to_string(),
            (Some(tag), true) => format!("{before}{tag}{between}{}{after}", function.name),
            (Some(tag), false) => format!("{before}{}{between}{tag}{after}", function.name),
        };
        let labels = self.labels.iter().map(|part| match part {
            Part::Literal(text) => text.as_str(),
            Part::Name => &name,
            Part::Namespace => function.namespace.as_str(),
        });
        let labels: Vec<&str> = labels.chain([self.domain.as_str()]).collect();
        Some(labels.join("."))
    }
}

impl Tagged {
    fn read(text: &str) -> Option<Self> {
        let tag_first = text.find("{tag}")? < text.find("{name}")?;
        let (one, other) = if tag_first { ("{tag}", "{name}") } else { ("{name}", "{tag}") };
        let (before, rest) = text.split_once(one)?;
        let (between, after) = rest.split_once(other)?;
        let spelt = |t: &str| t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let pieces = [before, between, after];
        let ok =
            !between.is_empty() && pieces.iter().all(|t| spelt(t)) && !before.starts_with('-') && !after.ends_with('-');
        let [before, between, after] = pieces.map(str::to_owned);
        ok.then_some(Self { before, between, after, tag_first })
    }
}

fn is_label(text: &str) -> bool {
    let spelt = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    spelt && (1..=63).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usual() -> Templates {
        Templates::new("localhost", "{name}.{namespace}.{domain}", "{tag}-{name}").unwrap()
    }

    #[test]
    fn hosts_are_read() {
        for (text, host) in [
            ("hello.default.localhost", "hello.default.localhost"),
            ("Hello.Default.LOCALHOST:8080", "hello.default.localhost"),
            ("hello.default.localhost.", "hello.default.localhost"),
            ("hello.default.localhost.:80", "hello.default.localhost"),
            ("a:", "a"),
            ("", ""),
            (".", ""),
            ("127.0.0.1:8080", "127.0.0.1"),
            ("[::1]:8080", "[::1]"),
            ("[::1]", "[::1]"),
            ("a..b", "a..b"),
            ("a.b..", "a.b."),
        ] {
            assert_eq!(read(text).unwrap(), host, "{text}");
        }
        let (long, longest) = ("a".repeat(10 << 10), "a".repeat(253));
        assert_eq!(read(&format!("{longest}:80")).unwrap(), longest);
        for bad in ["a:b", "a:80:80", "a:65536", "a:+1", "::1", "[::1]x", "[::1]:x", "[::1]80", "[::1", ":x", &long] {
            let fault = read(bad).unwrap_err();
            assert_eq!((fault.stage, fault.cause), (Stage::Accept, Cause::Malformed), "{bad}");
        }
        assert!(read(&long).unwrap_err().message.contains("10240 bytes; at most 253"));
    }

    #[test]
    fn templates_name_functions() {
        let t = usual();
        for (host, function) in [
            ("hello.default.localhost", Some(("hello", "default"))),
            ("canary-hello.dev.localhost", Some(("canary-hello", "dev"))),
            ("a_b..localhost", Some(("a_b", ""))),
            ("localhost", None),
            ("default.localhost", None),
            ("x.hello.default.localhost", None),
            ("hello.default.localhostx", None),
            ("hello.default.xlocalhost", None),
            ("hello.default", None),
            ("", None),
        ] {
            assert_eq!(t.function(host).map(|n| (n.label, n.namespace)), function, "{host}");
        }
        let other = Templates::new("Faas.Example.com", "{namespace}.fn.{name}.{domain}", "x{name}--{tag}").unwrap();
        let named = other.function("dev.fn.hello.faas.example.com").unwrap();
        assert_eq!((named.label, named.namespace), ("hello", "dev"));
        assert_eq!(other.function("dev.of.hello.faas.example.com"), None);
        assert_eq!(other.tagged("xhello--a--b").collect::<Vec<_>>(), [("b", "hello--a"), ("a--b", "hello")]);
        assert_eq!(other.tagged("hello--a").count(), 0);
        let hello = FunctionName::parse("hello.dev").unwrap();
        assert_eq!(other.host(&hello, Some("a")).unwrap(), "dev.fn.xhello--a.faas.example.com");
        assert!(other.is_domain("faas.example.com") && !other.is_domain("example.com"));
        let none = Templates::new("", "{name}.{namespace}.{domain}", "{tag}-{name}").unwrap();
        assert!(none.function("hello.default.").is_none() && none.host(&hello, None).is_none() && !none.is_domain(""));
        assert_eq!(t.host(&hello, None).unwrap(), "hello.dev.localhost");
    }

    #[test]
    fn what_is_no_template() {
        let (d, h, g) = ("localhost", "{name}.{namespace}.{domain}", "{tag}-{name}");
        for (domain, host, tag, field) in [
            ("a..b", h, g, "gateway.domain"),
            ("localhost.", h, g, "gateway.domain"),
            ("a:80", h, g, "gateway.domain"),
            (d, "{name}.{namespace}", g, "does not end"),
            (d, "{name}-{namespace}.{domain}", g, "told apart"),
            (d, "{name}.{domain}", g, "told apart"),
            (d, "{name}.{name}.{namespace}.{domain}", g, "told apart"),
            (d, "{name}.{namespace}..{domain}", g, "no label"),
            (d, "{name}.{namespace}.{tag}.{domain}", g, "no label"),
            (d, h, "{tag}{name}", "gateway.tagTemplate"),
            (d, h, "{tag}.{name}", "gateway.tagTemplate"),
            (d, h, "{tag}-", "gateway.tagTemplate"),
            (d, h, "-{tag}-{name}", "gateway.tagTemplate"),
        ] {
            let said = Templates::new(domain, host, tag).expect_err(host).to_string();
            assert!(said.contains(field), "{said}");
        }
    }

    proptest! {
        #[test]
        fn what_is_made_is_read(name in "[a-z][a-z0-9-]{0,6}[a-z]", namespace in "[a-z]{1,6}", tag in "[a-z][a-z0-9-]{0,3}[a-z]") {
            let function = FunctionName::parse(&format!("{name}.{namespace}")).expect("a name");
            let t = usual();
            let host = t.host(&function, None).expect("there is a domain");
            prop_assert_eq!(t.function(&host), Some(Named { label: &name, namespace: function.namespace.as_str() }));
            let host = t.host(&function, Some(&tag)).expect("there is a domain");
            let label = t.function(&host).expect("the form of a function").label;
            prop_assert!(t.tagged(label).any(|pair| pair == (tag.as_str(), name.as_str())));
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}|[a-z.:\\[\\]0-9]{0,20}") {
            if let Ok(host) = read(&text) {
                if let Some(named) = usual().function(&host) {
                    let _ = usual().tagged(named.label).count();
                }
                // What was read once reads the same again, but for what else looked like a port or an end.
                prop_assert!(host.len() <= text.len());
            }
        }
    }
}
