//! Which way a request goes on the platform's own hosts, by its path alone: to a function, to the platform's health, or to the control
//! plane. On other hosts `routes` decides.
//! The path is compared byte by byte as the client wrote it; nothing is decoded and no `..` is resolved, so that whoever
//! authenticates and whoever serves can never see two different paths.

use taper_model::{Cause, Fault, FunctionName, Stage};

/// Where a path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// `/function/NAME[.NAMESPACE][/path]`: a call whose caller waits.
    Function,
    /// `/async-function/…`: a call whose caller does not.
    Async,
    /// A host or a rule leads to a function, whatever the path: a call whose caller waits.
    Routed,
    /// `/healthz`: whether the process lives.
    Health,
    /// `/readyz`: whether it takes calls.
    Ready,
    /// `/metrics`.
    Metrics,
    /// `/system` and below: OpenFaaS's control plane, whose clients print errors as they come.
    System,
    /// Everything else, known to the control plane or not.
    Other,
}

impl Door {
    /// Where this path leads on a host of the platform's own. Total: every text leads somewhere.
    pub fn of(path: &str) -> Self {
        let below = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        match path {
            "/healthz" => Self::Health,
            "/readyz" => Self::Ready,
            "/metrics" => Self::Metrics,
            _ if below("/function") => Self::Function,
            _ if below("/async-function") => Self::Async,
            _ if below("/system") => Self::System,
            _ => Self::Other,
        }
    }
}

/// A function as a path names it, and what is left of the path for the function itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'a> {
    /// The function.
    pub function: FunctionName,
    /// What follows its name, as the client wrote it; `/` when nothing does.
    pub path: &'a str,
}

/// Reads `/function/NAME[.NAMESPACE][/path]`, or the same after `/async-function/`. The name ends at the next `/` and is split at
/// its last dot.
///
/// # Errors
/// A fault of the stage `route` when the path has another form or the name is none.
pub fn parse(path: &str) -> Result<Target<'_>, Fault> {
    let missing = |message: String| Fault::new(Stage::Route, Cause::NotFound, message);
    let name = name(path)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| missing("a function's address is /function/NAME or /function/NAME.NAMESPACE".into()))?;
    let function = FunctionName::parse(name).map_err(|e| missing(format!("there is no such function: {e}")))?;
    Ok(Target { function, path: rest(path) })
}

/// What stands in the place of the function's name in such a path, whether or not it is one.
pub(crate) fn name(path: &str) -> Option<&str> {
    below(path).map(|rest| rest.split_once('/').map_or(rest, |(name, _)| name))
}

/// What follows the function's name in such a path; `/` when nothing does.
pub(crate) fn rest(path: &str) -> &str {
    below(path).and_then(|rest| rest.find('/').map(|at| &rest[at..])).unwrap_or("/")
}

fn below(path: &str) -> Option<&str> {
    path.strip_prefix("/function/").or_else(|| path.strip_prefix("/async-function/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use taper_model::{Name, name::DEFAULT_NAMESPACE};

    use super::*;

    fn seen(path: &str) -> Option<(String, String)> {
        parse(path).ok().map(|t| (t.function.to_string(), t.path.to_owned()))
    }

    #[test]
    fn names_and_paths() {
        for (path, function, rest) in [
            ("/function/hello", "hello.default", "/"),
            ("/function/hello/", "hello.default", "/"),
            ("/function/hello.openfaas-fn", "hello.default", "/"),
            ("/function/hello.dev/a/b%20c", "hello.dev", "/a/b%20c"),
            ("/function/hello/../other", "hello.default", "/../other"),
            ("/function/hello/%2e%2e/%2Fsystem", "hello.default", "/%2e%2e/%2Fsystem"),
            ("/function/hello//x", "hello.default", "//x"),
            ("/function/a/function/b.c", "a.default", "/function/b.c"),
            ("/async-function/hello.dev/a", "hello.dev", "/a"),
            ("/function/async-function/x", "async-function.default", "/x"),
        ] {
            assert_eq!(seen(path), Some((function.into(), rest.into())), "{path}");
            assert_eq!(super::rest(path), rest, "{path}");
        }
        for path in [
            "",
            "/",
            "*",
            "/function",
            "/function/",
            "/function//hello",
            "/function/../system",
            "/function/.openfaas-fn",
            "/function/Hello",
            "/function/hel%6co",
            "/function/hello%2fx",
            "/function/a.b.c",
            "/Function/hello",
            "function/hello",
            "/functions/hello",
            "/function/hello.",
            "/function/ä",
        ] {
            let expected = (path == "/function/hello.").then(|| ("hello.default".to_owned(), "/".to_owned()));
            assert_eq!(seen(path), expected, "{path}");
        }
        let fault = parse("/function/Hello").unwrap_err();
        assert!(fault.message.contains("try `hello`") && fault.stage == Stage::Route, "{fault:?}");
    }

    #[test]
    fn doors() {
        for (path, door) in [
            ("/function", Door::Function),
            ("/function/", Door::Function),
            ("/functions", Door::Other),
            ("/async-function/x", Door::Async),
            ("/healthz", Door::Health),
            ("/healthz/", Door::Other),
            ("/readyz", Door::Ready),
            ("/metrics", Door::Metrics),
            ("/metrics/x", Door::Other),
            ("/system", Door::System),
            ("/system/functions", Door::System),
            ("//system/functions", Door::Other),
            ("/v1/functions", Door::Other),
            ("", Door::Other),
            ("*", Door::Other),
        ] {
            assert_eq!(Door::of(path), door, "{path}");
        }
    }

    /// The rule again, in the plainest words.
    fn naive(path: &str) -> Option<(String, String)> {
        let pieces: Vec<&str> = path.split('/').collect();
        let ["", "function", name, rest @ ..] = &pieces[..] else { return None };
        let dots: Vec<&str> = name.split('.').collect();
        let (name, namespace) = match &dots[..] {
            [name] => (name.to_string(), DEFAULT_NAMESPACE),
            [name @ .., "" | "openfaas-fn"] => (name.join("."), DEFAULT_NAMESPACE),
            [name @ .., namespace] => (name.join("."), *namespace),
            [] => unreachable!("a split gives at least one piece"),
        };
        let ok = Name::new(&name).is_ok() && Name::new(namespace).is_ok();
        ok.then(|| (format!("{name}.{namespace}"), format!("/{}", rest.join("/"))))
    }

    proptest! {
        #[test]
        fn as_the_naive_matcher(path in "(/|/function|/function/|/f)?([a-z.%/-]|openfaas-fn|\\.\\.){0,12}(/.{0,5})?") {
            prop_assert_eq!(seen(&path), naive(&path));
        }

        #[test]
        fn never_panics(path in "\\PC*") {
            let door = Door::of(&path);
            prop_assert!(parse(&path).is_err() || door == Door::Function);
        }

        #[test]
        fn what_is_left_is_what_was_written(name in "[a-z]{1,5}", rest in "/[!-~]{0,30}") {
            let path = format!("/function/{name}{rest}");
            prop_assert_eq!(parse(&path).expect("a function").path, rest);
        }
    }
}
