//! How a function's calls are spread over its revisions: shares, tags, mirrors, rollouts, what is held back, and how much is let in.
//! All of it belongs to the function and not to a revision: a change of it makes none. The semantics are Knative's where it has them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Function, FunctionName, Invalid, Name, Revision, RevisionId, RevisionState, invocation::Async, quantity::Span,
    route::Rule,
};

/// All of the traffic, in the unit of [`Share::weight`]: hundredths of a percent.
pub const WHOLE: u32 = 10_000;

/// A share of a function's traffic, a tag, or a mirror. Percentages over all of a function's targets sum to 100.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Traffic {
    /// True: whatever revision is the latest ready one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub latest: bool,
    /// A revision by name, when not `latest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Its share, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// A name for the target, reachable without taking a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Name>,
    /// Copies of this percentage of all calls go to the target as well; their answers are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<u8>,
}

/// What keeps a caller with the revision that it was sent to first. Exactly one of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sticky {
    /// Calls with the same value of this header go to the same revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The gateway gives each caller a cookie of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
}

/// How a new revision takes over the share of `latest`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollout {
    /// From the first call to all of them, 1 s to 24 h.
    pub duration: Span,
    /// Percent of the new revision's calls that may fail (answers of 500 and above) beyond those of the old one, 0 to 100. Default 5.
    #[serde(default = "errors")]
    pub errors: f64,
    /// Calls that the new revision must have answered before its errors count. Default 20.
    #[serde(default = "calls")]
    pub calls: u32,
}

fn errors() -> f64 {
    5.0
}

fn calls() -> u32 {
    20
}

/// How much is let in, of one function or of one namespace. What is over it is answered with 429 and `Retry-After`; what is over `queue` with 503.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Calls per second, over time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Calls that may come at once beyond the rate. Default: as many as come in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Calls at a time, those that wait included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Calls of a function that may wait for a slot; of a namespace it says nothing. Default: the platform's `dispatch.queue`, and never more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the bounds; `field` is what the limits are called where they were written.
    ///
    /// # Errors
    /// Names the field, the value, and what is allowed.
    pub fn validate(&self, field: &str) -> Result<(), Invalid> {
        if let Some(rate) = self.rate.filter(|r| !(0.001..=1e9).contains(r)) {
            return Err(Invalid(format!(
                "{field}.rate: {rate} is out of range; allowed is 0.001 to 1e9 calls per second"
            )));
        }
        if self.burst.is_some() && self.rate.is_none() {
            return Err(Invalid(format!(
                "{field}.burst: there is no rate that it could exceed; set {field}.rate as well"
            )));
        }
        match [("burst", self.burst), ("concurrency", self.concurrency), ("queue", self.queue)]
            .into_iter()
            .find(|(_, n)| *n == Some(0))
        {
            Some((word, _)) => Err(Invalid(format!("{field}.{word}: 0 would let nothing in; allowed is 1 or more"))),
            None => Ok(()),
        }
    }
}

/// What a function says about its calls beside its revisions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Routing {
    /// Shares, tags and mirrors. Everything to the latest ready revision when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<Traffic>,
    /// What keeps a caller with a revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// How a new revision takes over; at once when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Hosts and paths that lead to it, besides `/function/NAME`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<Rule>,
    /// How much is let in.
    #[serde(skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// How its asynchronous calls run, and where what became of them goes.
    #[serde(rename = "async", skip_serializing_if = "is_default")]
    pub asynchronous: Async,
}

fn is_default(asynchronous: &Async) -> bool {
    *asynchronous == Async::default()
}

/// The share of `latest` stays with a revision that is not the latest one, until a deploy that came later is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Held {
    /// The number of the revision.
    pub revision: u32,
    /// Why, in a sentence: a rollback, or a rollout that was stopped.
    pub why: String,
    /// Since when, in milliseconds since the Unix epoch. The store sees to it that every revision from before is older.
    pub at_ms: u64,
}

/// A rollout under way: within the share of `latest`, `to` has so many percent and `from` the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shift {
    /// The number of the revision that served before.
    pub from: u32,
    /// The number of the one that takes over.
    pub to: u32,
    /// What `to` has, 0 to 100.
    pub percent: u8,
    /// When it began, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// A revision with its part of the calls.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// The revision.
    pub revision: Arc<Revision>,
    /// Of [`WHOLE`].
    pub weight: u32,
}

/// Where a function's calls go, resolved. Targets that cannot serve are left out, and the weights of the others sum to [`WHOLE`] all the same.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Targets {
    /// Each revision at most once, none with weight 0, the greatest number first. Empty while no revision can serve.
    pub shares: Vec<Share>,
    /// Revisions by tag.
    pub tags: Vec<(Name, Arc<Revision>)>,
    /// Revisions that get copies of so many percent of the calls.
    pub mirrors: Vec<(Arc<Revision>, u8)>,
}

impl Targets {
    /// The revision that a number draws, `drawn` being evenly spread below [`WHOLE`].
    pub fn draw(&self, drawn: u32) -> Option<&Arc<Revision>> {
        let mut left = drawn % WHOLE;
        for share in &self.shares {
            if left < share.weight {
                return Some(&share.revision);
            }
            left -= share.weight;
        }
        self.shares.first().map(|s| &s.revision)
    }

    /// The revision with this tag.
    pub fn tagged(&self, tag: &str) -> Option<&Arc<Revision>> {
        self.tags.iter().find(|(name, _)| name.as_str() == tag).map(|(_, revision)| revision)
    }

    /// Whether a revision takes a share of the calls. It alone is kept ready (`scale.min`).
    pub fn shares_in(&self, id: &RevisionId) -> bool {
        self.shares.iter().any(|s| s.revision.id == *id)
    }

    /// Whether calls may reach a revision: by share, tag or mirror.
    pub fn reaches(&self, id: &RevisionId) -> bool {
        self.shares_in(id)
            || self.tags.iter().any(|(_, r)| r.id == *id)
            || self.mirrors.iter().any(|(r, _)| r.id == *id)
    }
}

/// A function's traffic as [`Function::targets`] resolves it.
pub(crate) fn resolve(function: &Function) -> Targets {
    let all = [Traffic { latest: true, percent: Some(100), ..Traffic::default() }];
    let traffic = if function.routing.traffic.is_empty() { &all[..] } else { &function.routing.traffic };
    let mut targets = Targets::default();
    for target in traffic {
        let weight = u32::from(target.percent.unwrap_or(0)) * (WHOLE / 100);
        let Some(revision) = pointed(function, target) else { continue };
        if let Some(tag) = &target.tag {
            targets.tags.push((tag.clone(), Arc::clone(revision)));
        }
        if let Some(percent) = target.mirror.filter(|p| *p > 0) {
            targets.mirrors.push((Arc::clone(revision), percent));
        }
        let shift = function.shift.as_ref().filter(|_| target.latest && function.held.is_none());
        match shift.and_then(|s| Some((s, function.ready(s.from)?, function.ready(s.to)?))) {
            Some((shift, from, to)) => {
                let part = weight * u32::from(shift.percent.min(100)) / 100;
                add(&mut targets.shares, to, part);
                add(&mut targets.shares, from, weight - part);
            }
            None => add(&mut targets.shares, revision, weight),
        }
    }
    even_out(&mut targets.shares);
    if targets.shares.is_empty()
        && let Some(revision) = function.serving()
    {
        add(&mut targets.shares, revision, WHOLE);
    }
    targets.shares.sort_by_key(|s| std::cmp::Reverse(s.revision.id.number()));
    targets
}

/// The revision that a target stands for, where it can serve.
fn pointed<'a>(function: &'a Function, target: &Traffic) -> Option<&'a Arc<Revision>> {
    match &target.revision {
        Some(name) => function.ready(RevisionId::number_in(&function.name.name, name)?),
        None => function.serving(),
    }
}

fn add(shares: &mut Vec<Share>, revision: &Arc<Revision>, weight: u32) {
    match shares.iter_mut().find(|s| s.revision.id == revision.id) {
        Some(share) => share.weight += weight,
        None if weight > 0 => shares.push(Share { revision: Arc::clone(revision), weight }),
        None => {}
    }
}

/// Spreads what belonged to targets that cannot serve over the others, in proportion.
fn even_out(shares: &mut [Share]) {
    let sum: u32 = shares.iter().map(|s| s.weight).sum();
    if sum == 0 || sum == WHOLE {
        return;
    }
    let mut left = WHOLE;
    for share in shares.iter_mut() {
        share.weight = share.weight * WHOLE / sum;
        left -= share.weight;
    }
    shares[0].weight += left;
}

/// Checks what somebody wants the calls of the function of this name to do, against the revisions it has (none: it is new).
///
/// # Errors
/// The first thing that is wrong, with its place and the mend.
pub fn validate(routing: &Routing, of: &FunctionName, function: Option<&Function>) -> Result<(), Invalid> {
    let name = &of.name;
    let refuse = |text: String| Err(Invalid(text));
    let mut tags = BTreeSet::new();
    let mut sum = 0_u32;
    for (at, target) in routing.traffic.iter().enumerate() {
        let place = format!("spec.traffic[{at}]");
        match (&target.revision, target.latest) {
            (Some(revision), true) => {
                return refuse(format!(
                    "{place}: `latest` and `revision: {revision}` contradict each other; say one of them"
                ));
            }
            (None, false) => return refuse(format!("{place}: a target is `latest: true` or `revision: {name}-00001`")),
            (Some(revision), false) => exists(&place, revision, name, function)?,
            (None, true) => {}
        }
        for (word, percent) in [("percent", target.percent), ("mirror", target.mirror)] {
            if let Some(percent) = percent.filter(|p| *p > 100) {
                return refuse(format!("{place}.{word}: {percent} is out of range; allowed is 0 to 100"));
            }
        }
        if target.percent.is_none() && target.tag.is_none() && target.mirror.is_none() {
            return refuse(format!("{place}: the target gets nothing; give it a `percent`, a `tag` or a `mirror`"));
        }
        if target.tag.as_ref().is_some_and(|tag| tag.as_str() == "latest") {
            return refuse(format!(
                "{place}.tag: `latest` means the newest ready revision already; choose another name"
            ));
        }
        if let Some(tag) = &target.tag
            && !tags.insert(tag)
        {
            return refuse(format!("{place}.tag: `{tag}` is taken by another target; a tag names one revision"));
        }
        sum += u32::from(target.percent.unwrap_or(0));
    }
    if !routing.traffic.is_empty() && sum != 100 {
        return refuse(format!("spec.traffic: the percentages sum to {sum}; they must sum to 100"));
    }
    sticky(routing.sticky.as_ref())?;
    if let Some(rollout) = &routing.rollout {
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
        if rollout.duration.0 < least || rollout.duration.0 > most {
            return refuse(format!(
                "spec.rollout.duration: {} is out of range; allowed is 1s to 24h",
                rollout.duration
            ));
        }
        if !(0.0..=100.0).contains(&rollout.errors) {
            return refuse(format!(
                "spec.rollout.errors: {} is out of range; allowed is 0 to 100 percent",
                rollout.errors
            ));
        }
    }
    for (at, rule) in routing.route.iter().enumerate() {
        rule.validate(&format!("spec.route[{at}]"))?;
        if rule.function.is_some() {
            return refuse(format!(
                "spec.route[{at}].function: a function's own routes lead to itself; leave it out, or write a `kind: Route`"
            ));
        }
    }
    routing.limits.validate("spec.limits")?;
    routing.asynchronous.validate("spec.async", of)
}

fn sticky(sticky: Option<&Sticky>) -> Result<(), Invalid> {
    let Some(sticky) = sticky else { return Ok(()) };
    let (field, word) = match (&sticky.header, &sticky.cookie) {
        (Some(header), None) => ("header", header),
        (None, Some(cookie)) => ("cookie", cookie),
        _ => return Err(Invalid::new("spec.sticky: say either `header` or `cookie`")),
    };
    // RFC 9110, section 5.6.2; RFC 6265, section 4.1.1.
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if word.is_empty() || word.len() > 64 || !word.bytes().all(token) {
        return Err(Invalid(format!(
            "spec.sticky.{field}: `{}` is not a name of 1 to 64 letters, digits and `-_.`",
            word.escape_debug()
        )));
    }
    Ok(())
}

fn exists(place: &str, revision: &str, name: &Name, function: Option<&Function>) -> Result<(), Invalid> {
    let known = RevisionId::number_in(name, revision).and_then(|n| function?.entry(n));
    let why = match known.map(|e| &e.state) {
        Some(RevisionState::Ready) => return Ok(()),
        Some(RevisionState::Pending) => "is not ready yet; wait for its deploy".into(),
        Some(RevisionState::Failed(why)) => format!("never became ready: {}", crate::fault::brief(why)),
        None => format!("does not exist; `taper revisions {name}` shows what does"),
    };
    Err(Invalid(format!("{place}.revision: `{}` {why}", revision.escape_debug())))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{FunctionName, FunctionSpec, revision::Entry};

    /// A function whose revisions are in these states (`r`, `p`, `f`), with this traffic in the manifest's words.
    fn function(states: &str, traffic: &str) -> Function {
        let name = FunctionName::parse("hello").unwrap();
        let entry = |(i, state): (usize, char)| Entry {
            revision: Arc::new(Revision::bare(
                RevisionId::new(name.clone(), u32::try_from(i).unwrap() + 1),
                FunctionSpec::default(),
            )),
            state: match state {
                'r' => RevisionState::Ready,
                'p' => RevisionState::Pending,
                _ => RevisionState::Failed("no luck".into()),
            },
        };
        let traffic = serde_saphyr::from_str(traffic).unwrap();
        Function {
            name: name.clone(),
            revisions: states.chars().enumerate().map(entry).collect(),
            scale: None,
            created_ms: 0,
            routing: Arc::new(Routing { traffic, ..Routing::default() }),
            held: None,
            shift: None,
        }
    }

    /// `2:9000 1:1000 stable=1 ~3:5`
    fn shown(function: &Function) -> String {
        let targets = function.targets();
        let mut words: Vec<String> =
            targets.shares.iter().map(|s| format!("{}:{}", s.revision.id.number(), s.weight)).collect();
        words.extend(targets.tags.iter().map(|(tag, r)| format!("{tag}={}", r.id.number())));
        words.extend(targets.mirrors.iter().map(|(r, percent)| format!("~{}:{percent}", r.id.number())));
        words.join(" ")
    }

    #[test]
    fn where_calls_go() {
        for (states, traffic, expect) in [
            ("r", "[]", "1:10000"),
            ("rrp", "[]", "2:10000"),
            ("rrf", "[]", "2:10000"),
            ("p", "[]", ""),
            (
                "rr",
                "[{latest: true, percent: 90}, {revision: hello-00001, percent: 10, tag: stable}]",
                "2:9000 1:1000 stable=1",
            ),
            ("rrr", "[{revision: hello-00001, percent: 100}, {latest: true, tag: next}]", "1:10000 next=3"),
            ("rrr", "[{latest: true, percent: 60}, {revision: hello-00003, percent: 40}]", "3:10000"),
            ("rr", "[{revision: hello-00001, percent: 100}, {latest: true, mirror: 5}]", "1:10000 ~2:5"),
            // What cannot serve gives its share to the others.
            ("rf", "[{revision: hello-00001, percent: 25}, {revision: hello-00002, percent: 75}]", "1:10000"),
            ("fr", "[{revision: hello-00001, percent: 100}]", "2:10000"),
        ] {
            assert_eq!(shown(&function(states, traffic)), expect, "{states} {traffic}");
        }
    }

    #[test]
    fn what_is_held_and_what_shifts_is_the_share_of_latest_alone() {
        let mut split = function("rrr", "[{latest: true, percent: 50}, {revision: hello-00001, percent: 50}]");
        split.shift = Some(Shift { from: 2, to: 3, percent: 10, since_ms: 0 });
        assert_eq!(shown(&split), "3:500 2:4500 1:5000");
        split.held = Some(Held { revision: 2, why: "a rollback".into(), at_ms: 0 });
        assert_eq!(shown(&split), "2:5000 1:5000", "nothing shifts while something is held");
        split.shift = None;
        split.held = Some(Held { revision: 9, why: "it is gone".into(), at_ms: 0 });
        assert_eq!(shown(&split), "3:5000 1:5000");
        assert!(split.names(9) && split.names(1) && !split.names(2));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let of = function("rrf", "[]");
        for (text, expect) in [
            ("[{latest: true, percent: 99}]", "sum to 99"),
            ("[{latest: true, percent: 101}]", "101"),
            ("[{latest: true, revision: hello-00001, percent: 100}]", "contradict"),
            ("[{percent: 100}]", "latest: true"),
            ("[{latest: true, percent: 100}, {revision: hello-00001}]", "spec.traffic[1]: the target gets nothing"),
            ("[{latest: true, percent: 100, tag: a}, {revision: hello-00001, tag: a}]", "`a` is taken"),
            ("[{latest: true, percent: 100, tag: latest}]", "already"),
            ("[{revision: hello-00003, percent: 100}]", "never became ready: no luck"),
            ("[{revision: hello-00009, percent: 100}]", "does not exist"),
            ("[{revision: other-00001, percent: 100}]", "does not exist"),
        ] {
            let routing = Routing { traffic: serde_saphyr::from_str(text).unwrap(), ..Routing::default() };
            let said = validate(&routing, &of.name, Some(&of)).unwrap_err().to_string();
            assert!(said.contains(expect), "{text}: {said}");
        }
        for (field, text) in [
            ("sticky", "{sticky: {}}"),
            ("sticky", "{sticky: {header: a, cookie: b}}"),
            ("sticky.header", "{sticky: {header: \"a b\"}}"),
            ("rollout.duration", "{rollout: {duration: 10ms}}"),
            ("rollout.errors", "{rollout: {duration: 10s, errors: 101}}"),
            ("limits.rate", "{limits: {rate: 0}}"),
            ("limits.burst", "{limits: {burst: 3}}"),
            ("limits.concurrency", "{limits: {concurrency: 0}}"),
            ("route[0].function", "{route: [{path: /a, function: other}]}"),
        ] {
            let routing: Routing = serde_saphyr::from_str(text).unwrap();
            let said = validate(&routing, &of.name, None).unwrap_err().to_string();
            assert!(said.contains(&format!("spec.{field}")), "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn weights_are_whole_and_drawn_as_they_say(
            states in "[rpf]{1,6}", parts in proptest::collection::vec((0..7usize, 0..100u8), 1..4), percent in 0..=100u8,
        ) {
            let mut left = 100;
            let mut traffic = Vec::new();
            for (i, (target, part)) in parts.iter().enumerate() {
                let part = if i + 1 == parts.len() { left } else { (*part).min(left) };
                left -= part;
                let revision = (*target > 0).then(|| format!("hello-{target:05}"));
                traffic.push(Traffic { latest: revision.is_none(), revision, percent: Some(part), ..Traffic::default() });
            }
            let mut function = function(&states, "[]");
            function.routing = Arc::new(Routing { traffic, ..Routing::default() });
            function.shift = Some(Shift { from: 1, to: 2, percent, since_ms: 0 });
            let targets = function.targets();
            prop_assert_eq!(targets.shares.is_empty(), !states.contains('r'));
            if let Some(first) = targets.shares.first() {
                prop_assert_eq!(targets.shares.iter().map(|s| s.weight).sum::<u32>(), WHOLE);
                prop_assert!(targets.shares.iter().all(|s| s.weight > 0));
                let mut drawn = BTreeMap::<_, u32>::new();
                for n in 0..WHOLE {
                    *drawn.entry(targets.draw(n).expect("one").id.number()).or_default() += 1;
                }
                let said: BTreeMap<_, u32> = targets.shares.iter().map(|s| (s.revision.id.number(), s.weight)).collect();
                prop_assert_eq!(drawn, said);
                prop_assert!(targets.reaches(&first.revision.id) && targets.shares_in(&first.revision.id));
            }
        }
    }
}
