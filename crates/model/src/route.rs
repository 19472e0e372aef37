//! Routes: which host, path and method lead to which function. A [`Table`] holds the rules of one host, finds the most exact one for
//! a request and refuses two between which it could not choose. Pure: nothing here reads a request or knows a listener.

mod check;
mod table;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{FunctionName, Name, quantity::Span};

pub use check::{LONGEST_HOST, METHODS, reserved};
pub use table::{Conflict, Found, Table};

/// One rule as people write it: in a function's `route`, or in a `kind: Route`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rule {
    /// `shop.example.com`, or `*.example.com` for one label in its place; any host that is not the platform's own when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Segments that are literal, `{name}` for one of any text, and at the end `*` for the rest, also where there is none: `/api/*` is for
    /// `/api`, too. Compared with the path as the caller wrote it. Default `/*`: everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The methods it is for; every one when empty. `GET` is for `HEAD`, too, where no rule for the same path says `HEAD`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// The function, in the route's namespace. Only in a `kind: Route`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<Name>,
    /// The tag of the function's revision that is called; its traffic decides when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<Name>,
    /// The function sees the path without what the rule says literally at its beginning.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strip: bool,
    /// What pages of other origins may do; the function's own affair when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// What becomes of requests that come without TLS. Default: they are served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https: Option<Https>,
}

/// What becomes of requests that come without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Https {
    /// They are served like others.
    Allow,
    /// They are sent to the same address with `https` (308).
    Redirect,
}

/// What pages of other origins may do (the Fetch standard's CORS protocol).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cors {
    /// `https://app.example.com`, or `*` for every origin.
    pub origins: Vec<String>,
    /// Methods of a preflight. Default: those of the rule, else what is asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Request headers of a preflight. Default: what is asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Response headers that pages may read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<String>,
    /// Whether cookies and credentials may come along; not with the origin `*`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub credentials: bool,
    /// How long a browser may remember a preflight. Default 10 min.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
}

/// The `spec` of a `kind: Route`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RouteSpec {
    /// The host of every rule that names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its rules, each with its function.
    pub rules: Vec<Rule>,
    /// CORS of every rule that says nothing of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// The same of TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https: Option<Https>,
}

/// A `kind: Route` as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its namespace.
    pub namespace: Name,
    /// Its name among the namespace's routes.
    pub name: Name,
    /// What it says.
    pub spec: RouteSpec,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
}

/// Whose a rule is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// It stands in the function's manifest.
    Function(FunctionName),
    /// It stands in this route of this namespace.
    Route(Name, Name),
}

/// `function hello.default`, `route shop.default`.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(name) => write!(f, "function {name}"),
            Self::Route(namespace, name) => write!(f, "route {name}.{namespace}"),
        }
    }
}

/// A rule with everything filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Whose it is. Its namespace claims the host.
    pub owner: Owner,
    /// The host in lower case; empty for any.
    pub host: String,
    /// The path as it was written; `/*` where nothing was.
    pub path: String,
    /// The methods; every one when empty.
    pub methods: Vec<String>,
    /// Where it leads.
    pub function: FunctionName,
    /// To which of its revisions, where it says so.
    pub tag: Option<Name>,
    /// Whether the function sees the path without its literal beginning.
    pub strip: bool,
    /// What pages of other origins may do.
    pub cors: Option<Cors>,
    /// Requests without TLS are sent to the same address with `https`.
    pub redirect: bool,
}

/// `GET shop.example.com/users/{id} of route shop.default`.
impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let methods = if self.methods.is_empty() { "any method".into() } else { self.methods.join(",") };
        write!(f, "`{methods} {}{}` of {}", self.host, self.path, self.owner)
    }
}

impl Rule {
    /// The rule with everything filled in. To be called for a rule that is valid.
    pub fn bind(&self, owner: &Owner, function: FunctionName, rest: Option<&RouteSpec>) -> Bound {
        let host = self.host.as_ref().or_else(|| rest?.host.as_ref());
        let https = self.https.or_else(|| rest?.https);
        Bound {
            owner: owner.clone(),
            host: host.map(|h| h.to_ascii_lowercase()).unwrap_or_default(),
            path: self.path.clone().unwrap_or_else(|| "/*".into()),
            methods: self.methods.clone(),
            function,
            tag: self.tag.clone(),
            strip: self.strip,
            cors: self.cors.clone().or_else(|| rest?.cors.clone()),
            redirect: https == Some(Https::Redirect),
        }
    }
}

impl Bound {
    /// The namespace that the rule belongs to.
    pub fn namespace(&self) -> &Name {
        match &self.owner {
            Owner::Function(name) => &name.namespace,
            Owner::Route(namespace, _) => namespace,
        }
    }

    /// The parameters in a path that the rule matches, as they were written there, in their order.
    pub fn parameters<'a>(&'a self, path: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let open = self.path.contains('{').then_some((self.path.as_str(), path));
        let both = open.map(|(rule, path)| table::segments(rule).zip(table::segments(path)));
        both.into_iter().flatten().filter_map(|(name, value)| Some((table::parameter(name)?, value)))
    }

    /// A path that the rule matches, parted after the segments that the rule says literally at its beginning. The second part begins
    /// with a slash, or is empty.
    pub fn parted<'a>(&self, path: &'a str) -> (&'a str, &'a str) {
        let literal = table::segments(&self.path).take_while(|s| !table::is_open(s)).count();
        let at = path.match_indices('/').nth(literal).map_or(path.len(), |(at, _)| at);
        path.split_at(at)
    }

    /// What the function sees of a path that the rule matches: all of it, or with `strip` the second part of [`parted`](Self::parted).
    pub fn seen<'a>(&self, path: &'a str) -> &'a str {
        match self.parted(path) {
            _ if !self.strip => path,
            (_, "") => "/",
            (_, rest) => rest,
        }
    }
}
