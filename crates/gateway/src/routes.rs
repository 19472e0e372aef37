//! Where a request goes: decided once, before authentication, by its host and then by its path; whoever authenticates and whoever
//! serves hold the same decision. What a lane has found out is kept until the store publishes, so that a call of one that was called
//! before parses, looks up and writes nothing anew: never older than the snapshot that was published last, and only of functions that
//! exist.
//!
//! A host is asked for in this order: exactly as a rule names it; with `*` in the place of its first label; as the template makes it of
//! a function. Then every path on it is the function's or the rules', and no surface of the platform is there. All other hosts are the
//! platform's, and what it does not keep for itself there belongs to the rules without a host.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use taper_model::{
    Cause, Fault, Function, FunctionName, Name, Stage,
    route::{self as rules, Bound, Table},
};
use taper_store::Snapshot;
use tokio::sync::watch;

use crate::{
    Context,
    accept::{Request, Response},
    choose::{Address, Choice},
    cors, headers, host,
    limit::Gate,
    metrics::{Histogram, Series},
    reply,
    route::{self, Door},
};

/// Most hosts, names and rules that are known at a time, of each.
const KNOWN: usize = 1024;

/// What one lane knows.
pub(crate) struct Routes(Mutex<Known>);

struct Known {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    /// By the host as requests write it.
    hosts: HashMap<Box<str>, Whose>,
    /// By the name as paths write it.
    named: HashMap<Box<str>, Arc<Found>>,
    /// By the rule's address in memory, at which there is no other one as long as it is kept here.
    ruled: HashMap<usize, Arc<Found>>,
    /// The rules without a host, once somebody has asked for them.
    open: Option<Whose>,
}

/// Whose a host is.
#[derive(Clone)]
enum Whose {
    /// Nobody's, and so the platform's.
    Nobody,
    /// This function's, by the template.
    Function(Arc<Found>),
    /// It has the form of a function's, and there is none: this says so.
    Missing(Arc<str>),
    /// These rules'.
    Rules(Arc<Rules>),
}

/// The rules of a host, counted again for each lane: the store's own count would be shared by all.
struct Rules(Arc<Table>);

/// A function that exists, at one of its addresses, with what each call of it there needs.
pub(crate) struct Found {
    pub(crate) function: Arc<Function>,
    series: Arc<Series>,
    /// What is counted of calls that end as the last one did.
    last: Mutex<Option<(StatusCode, Arc<Histogram>)>>,
    /// The revisions that calls of it may go to; none when no one is ready.
    pub(crate) choice: Option<Choice>,
    /// What its calls must keep to, where there are limits.
    pub(crate) gate: Option<Gate>,
    /// The value of `Host` in calls of it.
    pub(crate) host: HeaderValue,
    at: At,
}

/// Which of a function's addresses.
enum At {
    /// `/function/NAME/…`
    Name,
    /// A host of its own, perhaps with a tag.
    Host(Option<Name>),
    /// The rule, and the headers of its parameters.
    Rule(Arc<Bound>, Box<[HeaderName]>),
}

/// Why a request goes nowhere.
pub(crate) struct Refusal {
    fault: Box<Fault>,
    /// The methods that are served where this one is not, if not the usual ones.
    allow: Option<String>,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self { fault: Box::new(fault), allow: None }
    }
}

impl Refusal {
    /// The answer to the request.
    pub(crate) fn answer(self, request: Request) -> Response {
        let mut response = reply::refuse(request, &self.fault);
        if let Some(allow) = self.allow {
            response.headers_mut().insert(header::ALLOW, headers::value(&allow));
        }
        response
    }
}

/// A door, and the function behind it where it leads to one.
type Decision = (Door, Result<Option<Arc<Found>>, Refusal>);

/// Decides where a request goes. Its record knows from then on.
///
/// # Errors
/// Why it goes nowhere. That is the same whoever asks, and tells nothing of what is behind authentication.
pub(crate) fn decide(request: &mut Request) -> Result<(), Refusal> {
    let record = &request.body().record;
    let (context, lane) = (record.context(), record.link().lane);
    let (door, found) = context.routes[lane].decide(context, request);
    let (found, refused) = match found {
        Ok(found) => (found, Ok(())),
        Err(refusal) => (None, Err(refusal)),
    };
    request.body_mut().record.leads(door, found);
    refused
}

impl Routes {
    pub(crate) fn new(snapshot: watch::Receiver<Arc<Snapshot>>) -> Self {
        let (hosts, named, ruled) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self(Mutex::new(Known { snapshot, hosts, named, ruled, open: None }))
    }

    /// A function that no request has led to.
    ///
    /// # Errors
    /// When there is none of this name.
    pub(crate) fn named(&self, context: &Context, name: &FunctionName) -> Result<Arc<Found>, Fault> {
        self.known().by_name(context, &format!("/function/{name}"))
    }

    /// What is known, and not old.
    fn known(&self) -> MutexGuard<'_, Known> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.snapshot.has_changed().unwrap_or(true) {
            known.forget();
        }
        known
    }

    /// Whether a host, as a request names it, is no function's and no rule's: the platform's own paths are there.
    pub(crate) fn is_nobodys(&self, context: &Context, host: &str) -> bool {
        matches!(self.known().whose(context, host), Ok(Whose::Nobody))
    }

    fn decide(&self, context: &Context, request: &Request) -> Decision {
        let mut known = self.known();
        let path = request.uri().path();
        let found = match asked(request).and_then(|host| known.whose(context, host)) {
            Ok(Whose::Nobody) => return known.at_home(context, request),
            Ok(Whose::Function(found)) => checked(path).map(|()| found).map_err(Refusal::from),
            Ok(Whose::Missing(text)) => Err(Fault::new(Stage::Route, Cause::NotFound, &*text).into()),
            Ok(Whose::Rules(table)) => checked(path)
                .map_err(Refusal::from)
                .and_then(|()| known.by_rule(context, request, &table.0)?.ok_or_else(|| nothing(path))),
            Err(fault) => Err(fault.into()),
        };
        (Door::Routed, found.and_then(|found| callable(context, request, found)))
    }
}

impl Known {
    /// The store has published: what was found out is old.
    fn forget(&mut self) {
        self.hosts.clear();
        self.named.clear();
        self.ruled.clear();
        self.open = None;
    }

    /// What was published last.
    fn latest(&mut self) -> Arc<Snapshot> {
        let (changed, latest) = {
            let latest = self.snapshot.borrow_and_update();
            (latest.has_changed(), latest.clone())
        };
        // It may have come since we looked, and nobody looks for it again.
        if changed {
            self.forget();
        }
        latest
    }

    /// Where a request goes on a host that is nobody's.
    fn at_home(&mut self, context: &Context, request: &Request) -> Decision {
        let path = request.uri().path();
        match Door::of(path) {
            Door::Function => {
                let found = served(request.method()).and_then(|()| self.by_name(context, path));
                (Door::Function, found.map(Some).map_err(Refusal::from))
            }
            Door::Other if !rules::reserved(path) => {
                let Whose::Rules(table) = self.open() else { return (Door::Other, Ok(None)) };
                let found = match self.by_rule(context, request, &table.0) {
                    Ok(None) => return (Door::Other, Ok(None)),
                    Ok(Some(found)) => checked(path).map(|()| found).map_err(Refusal::from),
                    Err(refusal) => Err(refusal),
                };
                (Door::Routed, found.and_then(|found| callable(context, request, found)))
            }
            Door::Async if reply::ASYNC_METHODS.contains(request.method()) => {
                (Door::Async, self.by_name(context, path).map(Some).map_err(Refusal::from))
            }
            door => (door, Ok(None)),
        }
    }

    /// The rules without a host.
    fn open(&mut self) -> Whose {
        if let Some(open) = &self.open {
            return open.clone();
        }
        let open = rules_of(&self.latest(), "", None).unwrap_or(Whose::Nobody);
        self.open = Some(open.clone());
        open
    }

    /// The function that a path names.
    fn by_name(&mut self, context: &Context, path: &str) -> Result<Arc<Found>, Fault> {
        if let Some(found) = route::name(path).and_then(|name| self.named.get(name)) {
            return Ok(found.clone());
        }
        let name = route::parse(path)?.function;
        let latest = self.latest();
        let function = latest.function(&name).ok_or_else(|| missing(&name))?;
        let found = Arc::new(Found::of(function, At::Name, &latest, context));
        if let Some(name) = route::name(path) {
            keep(&mut self.named, name.into(), found.clone());
        }
        Ok(found)
    }

    /// The function that a table has for a request.
    fn by_rule(&mut self, context: &Context, request: &Request, table: &Table) -> Result<Option<Arc<Found>>, Refusal> {
        let (method, written) = (request.method(), request.uri().path());
        let path = &*plain(written);
        // A preflight asks on behalf of the method that is to come.
        let preflight = cors::preflight(method, request.headers()).and_then(|asked| match table.find(asked, path) {
            rules::Found::Rule(rule) if rule.cors.is_some() => Some(rule),
            _ => None,
        });
        let rule = match preflight.map_or_else(|| table.find(method.as_str(), path), rules::Found::Rule) {
            rules::Found::Rule(rule) => rule,
            rules::Found::Nothing => return Ok(None),
            rules::Found::Method(allowed) => {
                let fault = Fault::new(Stage::Route, Cause::Method, format!("{written} is not served with {method}"));
                return Err(Refusal { allow: Some(allowed.join(", ")), ..fault.into() });
            }
        };
        if written.contains("//") {
            // Programs that leave empty segments out would read another path, which may be another rule's.
            let text = "the path has an empty segment, which rules do not let through";
            return Err(Fault::new(Stage::Accept, Cause::Malformed, text).into());
        }
        let place = Arc::as_ptr(rule) as usize;
        if let Some(found) = self.ruled.get(&place) {
            return Ok(Some(found.clone()));
        }
        let latest = self.latest();
        let function = latest.function(&rule.function).ok_or_else(|| missing(&rule.function))?;
        let found = Arc::new(Found::of(function, At::rule(rule), &latest, context));
        keep(&mut self.ruled, place, found.clone());
        Ok(Some(found))
    }

    /// Whose a host is that a request names so.
    fn whose(&mut self, context: &Context, text: &str) -> Result<Whose, Fault> {
        if let Some(whose) = self.hosts.get(text) {
            return Ok(whose.clone());
        }
        let whose = self.ask(context, &host::read(text)?);
        keep(&mut self.hosts, text.into(), whose.clone());
        Ok(whose)
    }

    /// The same, asked of the snapshot.
    fn ask(&mut self, context: &Context, host: &str) -> Whose {
        if host.is_empty() || context.templates.is_domain(host) {
            return Whose::Nobody;
        }
        let latest = self.latest();
        let named = context.templates.function(host);
        // Where the template has given a host to a namespace, no other one takes it by a rule.
        let namespace = named.map(|named| {
            let text = Some(named.namespace).filter(|text| !text.is_empty());
            text.and_then(|text| Name::namespace(text).ok())
        });
        let exact = rules_of(&latest, host, namespace.as_ref());
        let wild = || {
            let (first, rest) = host.split_once('.')?;
            if first.is_empty() { None } else { rules_of(&latest, &format!("*.{rest}"), namespace.as_ref()) }
        };
        if let Some(rules) = exact.or_else(wild) {
            return rules;
        }
        let Some(named) = named else { return Whose::Nobody };
        let function = |name: &str| {
            let name = FunctionName::new(namespace.clone()??, Name::new(name).ok()?);
            latest.function(&name)
        };
        let with_tag = |(tag, name): (&str, &str)| {
            let function = function(name)?;
            let tag = Name::new(tag).ok()?;
            function.routing.traffic.iter().any(|t| t.tag.as_ref() == Some(&tag)).then_some((function, Some(tag)))
        };
        let found = function(named.label).map(|function| (function, None));
        match found.or_else(|| context.templates.tagged(named.label).find_map(with_tag)) {
            Some((function, tag)) => Whose::Function(Arc::new(Found::of(function, At::Host(tag), &latest, context))),
            None => {
                let text =
                    format!("function {}.{} is not deployed; `taper list` shows what is", named.label, named.namespace);
                Whose::Missing(text.into())
            }
        }
    }
}

/// The rules of a host, if there are any; and if they are this namespace's, where it is one's.
fn rules_of(snapshot: &Snapshot, host: &str, namespace: Option<&Option<Name>>) -> Option<Whose> {
    let table = snapshot.tables.get(&host.to_owned())?;
    let mut owners = table.rules().iter().map(|rule| rule.namespace());
    let theirs = namespace.is_none_or(|name| owners.all(|owner| Some(owner) == name.as_ref()));
    (theirs && !table.rules().is_empty()).then(|| Whose::Rules(Arc::new(Rules(table.clone()))))
}

/// Keeps one thing more, and no more than the bound.
fn keep<K: Eq + std::hash::Hash, V>(all: &mut HashMap<K, V>, key: K, value: V) {
    if all.len() >= KNOWN {
        all.clear();
    }
    all.insert(key, value);
}

/// The host that a request names; the empty one where it names none. Where its target and its header both do, they were compared before.
fn asked(request: &Request) -> Result<&str, Fault> {
    let header = || request.headers().get(header::HOST).map_or(Ok(""), HeaderValue::to_str);
    let text = request.uri().authority().map_or_else(header, |authority| Ok(authority.as_str()));
    text.map_err(|_| Fault::new(Stage::Accept, Cause::Malformed, "the Host header is not a host"))
}

/// A path with what needs no encoding written plainly (RFC 3986, sections 2.3 and 6.2.2.2): no rule is passed by writing its path in
/// another way. It has as many segments as before.
fn plain(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return path.into();
    }
    let mut plain = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        plain.push_str(before);
        let byte = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|b| b.is_ascii_alphanumeric() || b"-._~".contains(b)) {
            Some(byte) => {
                plain.push(byte.into());
                rest = &after[2..];
            }
            None => {
                plain.push('%');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain.into()
}

/// Refuses a path that the gateway and a function could read as two different ones.
fn checked(path: &str) -> Result<(), Fault> {
    let refuse = |what: &str| {
        let text = format!("the path has {what}, which routes do not let through");
        Err(Fault::new(Stage::Accept, Cause::Malformed, text))
    };
    if !path.starts_with('/') {
        return refuse("no `/` at its beginning");
    }
    let odd = |b: u8| b < 0x20 || matches!(b, b'%' | b'\\' | 0x7f);
    if !path.contains("/.") && !path.bytes().any(odd) {
        return Ok(());
    }
    if path.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return refuse("a control character");
    }
    if path.contains('\\') {
        return refuse("a backslash");
    }
    for (at, _) in path.match_indices('%') {
        let digits = path.get(at + 1..at + 3).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(b'/') => return refuse("`%2f`"),
            Some(b'\\') => return refuse("`%5c`"),
            Some(0..0x20 | 0x7f) => return refuse("a control character"),
            _ => {}
        }
    }
    let is_dots = |segment: &str| {
        let plain = segment.replace("%2e", ".").replace("%2E", ".");
        plain == "." || plain == ".."
    };
    if path.split('/').any(is_dots) {
        return refuse("a segment `.` or `..`");
    }
    Ok(())
}

/// A function that a host or a rule led to, if it may be called now and so.
fn callable(context: &Context, request: &Request, found: Arc<Found>) -> Result<Option<Arc<Found>>, Refusal> {
    // `/healthz` is let in while the platform ends, but here it is the function's.
    if context.draining.load(Relaxed) {
        let text = "the platform is shutting down; try again";
        return Err(Fault::new(Stage::Accept, Cause::ShuttingDown, text).into());
    }
    served(request.method())?;
    Ok(Some(found))
}

/// Refuses methods that functions are not called with.
fn served(method: &Method) -> Result<(), Fault> {
    if reply::METHODS.contains(method) {
        return Ok(());
    }
    Err(Fault::new(Stage::Route, Cause::Method, format!("functions are not called with {method}")))
}

fn nothing(path: &str) -> Refusal {
    Fault::new(Stage::Route, Cause::NotFound, format!("no rule of this host is for {path}")).into()
}

impl At {
    fn rule(rule: &Arc<Bound>) -> Self {
        let name = |(name, _)| HeaderName::try_from(format!("{}{name}", headers::PARAMETER));
        let names = rule.parameters(&rule.path).map(|pair| name(pair).expect("the names of parameters are checked"));
        Self::Rule(rule.clone(), names.collect())
    }
}

impl Found {
    fn of(function: &Arc<Function>, at: At, snapshot: &Snapshot, context: &Context) -> Self {
        let series = context.metrics.function(&function.name);
        let choice = Choice::of(function, &series);
        let gate = context.limits.of(function, snapshot);
        let host = headers::value(&function.name.to_string());
        Self { function: function.clone(), series, last: Mutex::default(), choice, gate, host, at }
    }

    /// The rule that led to it.
    pub(crate) fn rule(&self) -> Option<&Bound> {
        match &self.at {
            At::Rule(rule, _) => Some(rule),
            At::Name | At::Host(_) => None,
        }
    }

    /// What the function sees of a path that led to it.
    pub(crate) fn path<'a>(&self, path: &'a str) -> &'a str {
        match &self.at {
            At::Name => route::rest(path),
            At::Host(_) => path,
            At::Rule(rule, _) => rule.seen(path),
        }
    }

    /// What the address says beside the function, of a request with this path.
    pub(crate) fn address<'a>(&'a self, path: &'a str, secure: bool) -> Address<'a> {
        match &self.at {
            At::Name => Address { name: route::name(path), secure, ..Address::default() },
            At::Host(_) => Address { tag: self.tag(), secure, ..Address::default() },
            At::Rule(rule, _) => {
                let base = Some(rule.parted(path).0);
                Address { tag: self.tag(), base, secure, ..Address::default() }
            }
        }
    }

    /// The tag that the address names.
    pub(crate) fn tag(&self) -> Option<&Name> {
        match &self.at {
            At::Name => None,
            At::Host(tag) => tag.as_ref(),
            At::Rule(rule, _) => rule.tag.as_ref(),
        }
    }

    /// Tells the function the parameters in a path, as they were written there.
    pub(crate) fn tell(&self, path: &str, headers: &mut HeaderMap) {
        let At::Rule(rule, names) = &self.at else { return };
        for (name, (_, value)) in names.iter().zip(rule.parameters(path)) {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                headers.insert(name, value);
            }
        }
    }

    /// What is counted of it.
    pub(crate) fn series(&self) -> &Series {
        &self.series
    }

    /// A call of it ended.
    pub(crate) fn ended(&self, status: StatusCode, took: Duration) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(known, _)| *known != status) {
            *last = Some((status, self.series.code(status)));
        }
        if let Some((_, histogram)) = &*last {
            histogram.observe(took);
        }
    }
}

/// There is no function of this name.
pub(crate) fn missing(name: &FunctionName) -> Fault {
    let text = format!("function {name} is not deployed; `taper list` shows what is");
    Fault::new(Stage::Route, Cause::NotFound, text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_is_matched_by_what_it_says_however_it_is_written() {
        for (written, expect) in [
            ("/a/b", "/a/b"),
            ("/%61dmin/%2D%5f%7E%2e", "/admin/-_~."),
            ("/a%20b/%2Fx/%c3%a4", "/a%20b/%2Fx/%c3%a4"),
            ("/100%/%4/%zz%41", "/100%/%4/%zzA"),
            ("/ä%41%", "/äA%"),
        ] {
            assert_eq!(super::plain(written), expect, "{written}");
        }
    }

    /// Whether a path means the same to whoever decodes it before he takes it apart and to whoever does it after.
    fn plain(path: &str) -> bool {
        let mut decoded = Vec::new();
        let mut rest = path.as_bytes();
        while let [first, after @ ..] = rest {
            let digit = |at: usize| after.get(at).and_then(|b| char::from(*b).to_digit(16));
            let both = digit(0).zip(digit(1)).filter(|_| *first == b'%');
            let byte = both.map(|(high, low)| (high * 16 + low) as u8);
            decoded.push(byte.unwrap_or(*first));
            rest = if byte.is_some() { &after[2..] } else { after };
        }
        let odd = |b: &u8| *b < 0x20 || *b == 0x7f || *b == b'\\';
        let segments = |bytes: &[u8]| bytes.split(|b| *b == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
        let (before, after) = (segments(path.as_bytes()), segments(&decoded));
        path.starts_with('/')
            && before.len() == after.len()
            && !decoded.iter().any(odd)
            && !after.iter().any(|s| s == b"." || s == b"..")
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5000, ..ProptestConfig::default() })]

        #[test]
        fn what_passes_means_one_thing(path in "/?(/|\\.|%2[eEfF5]|%5[cC]|%0a|%7F|%+4|%|[a2e]|\\\\|\\x00|é){0,8}") {
            prop_assert_eq!(checked(&path).is_ok(), plain(&path), "{:?}", path);
        }
    }
}
