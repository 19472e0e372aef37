//! Which revision a call goes to: the one that a tag names, the one that its caller has been sent to before, or one drawn by the
//! shares of the traffic. Decides by what the call says and by nothing else, so that every lane and every process, also after a
//! restart, sends the same caller to the same revision. Never looks whether that revision is well: a call is not moved elsewhere.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};
use rand::RngExt;
use sha2::{Digest, Sha256};
use taper_model::{
    Cause, Fault, Function, FunctionName, Name, Revision, RevisionId, Stage,
    call::hex,
    traffic::{Share, Sticky, Targets, WHOLE},
};

use crate::{
    headers,
    metrics::{Ends, Series},
};

/// Where a function's calls go, as one lane needs it.
pub(crate) struct Choice {
    targets: Targets,
    sticky: Option<Sticky>,
    /// The same revisions as in `targets`, those with a share first and in the same order.
    own: Box<[Target]>,
    /// There is nothing to choose: one revision has it all, and no tag names another.
    plain: bool,
}

/// A revision that calls may reach.
pub(crate) struct Target {
    /// This lane's own copy: the store's would be counted by all.
    pub(crate) id: RevisionId,
    pub(crate) revision: Arc<Revision>,
    /// Its name, as `X-Taper-Revision` says it.
    pub(crate) name: HeaderValue,
    /// How its calls end.
    pub(crate) ends: Arc<Ends>,
}

/// What a call's address says beside its function.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Address<'a> {
    /// The tag that its host or its rule names.
    pub(crate) tag: Option<&'a Name>,
    /// The function's name as the path writes it; none where host or rule led to the function.
    pub(crate) name: Option<&'a str>,
    /// What its rule says literally at the beginning of the path.
    pub(crate) base: Option<&'a str>,
    /// It came by TLS.
    pub(crate) secure: bool,
}

/// The revision that was chosen for a call.
#[derive(Default)]
pub(crate) struct Chosen {
    /// Which of [`Choice::target`].
    pub(crate) at: usize,
    /// A tag decided.
    pub(crate) pinned: bool,
    /// What makes the caller come back to it.
    pub(crate) cookie: Option<HeaderValue>,
}

impl Choice {
    /// Where the calls of this function go; none while no revision of it can serve.
    pub(crate) fn of(function: &Function, series: &Series) -> Option<Self> {
        let targets = function.targets();
        let mut own: Vec<Target> = Vec::new();
        let tagged = targets.tags.iter().map(|(_, revision)| revision);
        let copied = targets.mirrors.iter().map(|(revision, _)| revision);
        for revision in targets.shares.iter().map(|s| &s.revision).chain(tagged).chain(copied) {
            if own.iter().all(|target| target.id != revision.id) {
                own.push(Target {
                    id: RevisionId::new(revision.id.function().clone(), revision.id.number()),
                    revision: revision.clone(),
                    name: headers::value(&revision.id.name()),
                    ends: series.revision(revision.id.number()),
                });
            }
        }
        let plain = targets.shares.len() == 1 && targets.tags.is_empty();
        let sticky = function.routing.sticky.clone();
        (!targets.shares.is_empty()).then(|| Self { targets, sticky, own: own.into(), plain })
    }

    /// A revision that was chosen.
    pub(crate) fn target(&self, at: usize) -> &Target {
        &self.own[at]
    }

    /// Those that get copies of so many percent of the calls.
    pub(crate) fn mirrors(&self) -> impl Iterator<Item = (&Target, u8)> {
        let target = |revision: &Revision| self.own.iter().find(|target| target.id == revision.id);
        self.targets.mirrors.iter().filter_map(move |(revision, percent)| Some((target(revision)?, *percent)))
    }

    /// Whether there are any.
    pub(crate) fn has_mirrors(&self) -> bool {
        !self.targets.mirrors.is_empty()
    }

    /// Looks whether a call can be accepted that chooses when it runs.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub(crate) fn accept(&self, address: Address) -> Result<(), Fault> {
        match address.tag {
            Some(tag) if self.targets.tagged(tag.as_str()).is_none() => Err(unknown(self.own[0].id.function(), tag)),
            _ => Ok(()),
        }
    }

    /// Whether the first target is the one for every call whose address names no tag.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }

    /// The revision for this call.
    ///
    /// # Errors
    /// A fault of the stage `route` when the address names a tag that the function does not have.
    pub(crate) fn choose(&self, headers: &HeaderMap, address: Address) -> Result<Chosen, Fault> {
        let name = self.own[0].id.function();
        let Picked { revision, pinned, fresh } = pick(&self.targets, self.sticky.as_ref(), name, headers, address.tag)?;
        let at = self.own.iter().position(|target| target.id == revision.id).unwrap_or(0);
        let cookie = fresh.zip(self.sticky.as_ref().and_then(|s| s.cookie.as_deref()));
        let cookie = cookie.map(|(value, name)| set_cookie(name, &value, address));
        Ok(Chosen { at, pinned, cookie })
    }
}

/// The revision that runs a call which has waited in the queue; none while none can serve. The headers are those that the queue
/// kept, and become the function's.
///
/// # Errors
/// A fault of the stage `route` when the call's address named a tag that is not there any more.
pub fn choose(function: &Function, headers: &mut HeaderMap) -> Result<Option<Arc<Revision>>, Fault> {
    let pin = headers.remove(headers::PIN).and_then(|tag| Name::new(tag.to_str().ok()?).ok());
    let targets = function.targets();
    if targets.shares.is_empty() {
        return Ok(None);
    }
    let sticky = function.routing.sticky.as_ref();
    let Picked { revision, pinned, .. } = pick(&targets, sticky, &function.name, headers, pin.as_ref())?;
    let missed = !pinned && asked(headers).is_some();
    headers::tell(headers, pin.as_ref(), missed);
    Ok(Some(revision.clone()))
}

/// Whether a call that has waited in the queue may be for an earlier function of the same name; the headers are those that the queue kept.
/// What the gateway has taken in says so itself, whatever somebody does to the host's clock.
pub fn is_anothers(function: &Function, headers: &mut HeaderMap) -> bool {
    let made = headers.remove(headers::MADE).and_then(|made| made.to_str().ok()?.parse::<u64>().ok());
    made != Some(function.created_ms)
}

/// A revision, and why.
struct Picked<'a> {
    revision: &'a Arc<Revision>,
    pinned: bool,
    /// The value of a new cookie.
    fresh: Option<String>,
}

/// A tag that the address names, one that a header names, what the caller is known by, chance: the first that says something.
fn pick<'a>(
    targets: &'a Targets,
    sticky: Option<&Sticky>,
    name: &FunctionName,
    headers: &HeaderMap,
    tag: Option<&Name>,
) -> Result<Picked<'a>, Fault> {
    let pinned = |revision| Picked { revision, pinned: true, fresh: None };
    if let Some(tag) = tag {
        return targets.tagged(tag.as_str()).map(pinned).ok_or_else(|| unknown(name, tag));
    }
    if let Some(revision) = asked(headers).and_then(|tag| targets.tagged(tag)) {
        return Ok(pinned(revision));
    }
    let drawn = |revision, fresh| Ok(Picked { revision, pinned: false, fresh });
    match (&targets.shares[..], sticky) {
        ([one], _) => drawn(&one.revision, None),
        (shares, None) => drawn(draw(targets, shares), None),
        (shares, Some(sticky)) => match known(sticky, headers) {
            Some(value) => drawn(keep(shares, name, value), None),
            None if sticky.cookie.is_some() => {
                let value = random();
                drawn(keep(shares, name, value.as_bytes()), Some(value))
            }
            None => drawn(draw(targets, shares), None),
        },
    }
}

/// There is no such tag.
fn unknown(name: &FunctionName, tag: &Name) -> Fault {
    let text = format!("function {name} has no tag `{tag}`; `taper revisions {name}` shows those that there are");
    Fault::new(Stage::Route, Cause::NotFound, text)
}

/// The tag that a call's headers name.
fn asked(headers: &HeaderMap) -> Option<&str> {
    let named = headers.get(headers::TAG).or_else(|| headers.get(headers::KNATIVE_TAG));
    named.and_then(|value| value.to_str().ok()).map(str::trim)
}

fn draw<'a>(targets: &'a Targets, shares: &'a [Share]) -> &'a Arc<Revision> {
    targets.draw(rand::rng().random_range(0..WHOLE)).unwrap_or(&shares[0].revision)
}

/// What the caller is known by.
fn known<'a>(sticky: &Sticky, headers: &'a HeaderMap) -> Option<&'a [u8]> {
    let value = match (&sticky.header, &sticky.cookie) {
        (Some(name), _) => headers.get(name.as_str()).map(HeaderValue::as_bytes),
        (None, Some(name)) => cookie(headers, name.as_bytes()),
        (None, None) => None,
    };
    value.filter(|value| !value.is_empty())
}

/// The value of a cookie (RFC 6265, section 4.2).
fn cookie<'a>(headers: &'a HeaderMap, name: &[u8]) -> Option<&'a [u8]> {
    let pairs = headers.get_all(header::COOKIE).iter().flat_map(|line| line.as_bytes().split(|b| *b == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))
}

/// Weighted rendezvous: every revision draws a waiting time from the caller's value, the shorter the greater its weight, and the
/// shortest wins. A revision that gains weight takes callers from the others and gives none away; one that loses some only gives.
fn keep<'a>(shares: &'a [Share], name: &FunctionName, value: &[u8]) -> &'a Arc<Revision> {
    let digest = Sha256::new().chain_update(name.to_string()).chain_update([0]).chain_update(value).finalize();
    let (first, _) = digest.split_first_chunk().expect("a digest has 32 bytes");
    let seed = u64::from_le_bytes(*first);
    let wait = |share: &Share| {
        let drawn = mix(seed ^ mix(u64::from(share.revision.id.number())));
        // Evenly between 0 and 1, and neither of them: 53 bits are what a float holds exactly.
        let even = ((drawn >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -even.ln() / f64::from(share.weight)
    };
    let first = shares.iter().min_by(|a, b| wait(a).total_cmp(&wait(b)));
    &first.unwrap_or(&shares[0]).revision
}

/// Spreads the bits of a number over all of it (the finaliser of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// 128 random bits.
fn random() -> String {
    let drawn: [u32; 4] = rand::rng().random();
    drawn.into_iter().flat_map(hex).map(char::from).collect()
}

fn set_cookie(name: &str, value: &str, address: Address) -> HeaderValue {
    let secure = if address.secure { "; Secure" } else { "" };
    let path = address.name.map(|name| format!("/function/{name}"));
    let path = path.as_deref().or(address.base).unwrap_or("/");
    // What a cookie's path may hold (RFC 6265, section 4.1.1).
    let fits = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && b != b';');
    let path = if fits { path } else { "/" };
    headers::value(&format!("{name}={value}; Path={path}; HttpOnly; SameSite=Lax{secure}"))
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;
    use taper_model::{FunctionSpec, RevisionState, revision::Entry, traffic::Routing};

    use super::*;

    /// Revisions of these weights, numbered from 1.
    fn shares(weights: &[u32]) -> (FunctionName, Vec<Share>) {
        let name = FunctionName::parse("hello").unwrap();
        let shares = weights.iter().zip(1..).filter(|(weight, _)| **weight > 0).map(|(weight, number)| {
            let revision = Revision::bare(RevisionId::new(name.clone(), number), FunctionSpec::default());
            Share { revision: Arc::new(revision), weight: *weight }
        });
        let shares = shares.collect();
        (name, shares)
    }

    fn kept(weights: &[u32], caller: u32) -> u32 {
        let (name, shares) = shares(weights);
        keep(&shares, &name, caller.to_string().as_bytes()).id.number()
    }

    /// With another hash every caller of every platform would move at its next update.
    #[test]
    fn a_caller_stays_where_it_was_in_earlier_versions() {
        let seen: String = (0..40).map(|caller| char::from(b'0' + kept(&[5000, 3000, 2000], caller) as u8)).collect();
        assert_eq!(seen, "1113232331121311131231231311112221332111");
    }

    #[test]
    fn callers_are_spread_as_the_shares_say() {
        let all = 20_000;
        let mut seen = [0_u32; 3];
        (0..all).for_each(|caller| seen[kept(&[6000, 3000, 1000], caller) as usize - 1] += 1);
        for (seen, part) in seen.into_iter().zip([0.6, 0.3, 0.1]) {
            let (mean, deviation) = (f64::from(all) * part, (f64::from(all) * part * (1.0 - part)).sqrt());
            assert!((f64::from(seen) - mean).abs() < 4.0 * deviation, "{seen} of {mean}");
        }
    }

    /// Of ten percent that become thirty, nobody who was among the ten leaves, and a fifth of all comes.
    #[test]
    fn a_change_of_percentages_moves_as_few_as_it_must() {
        let (mut came, mut left) = (0, 0);
        for caller in 0..20_000 {
            match (kept(&[9000, 1000], caller), kept(&[7000, 3000], caller)) {
                (1, 2) => came += 1,
                (2, 1) => left += 1,
                _ => {}
            }
        }
        assert_eq!(left, 0);
        assert!((3800..4200).contains(&came), "{came}");
    }

    proptest! {
        /// Only one gains: nobody moves but to it.
        #[test]
        fn who_gains_takes_and_gives_nothing(
            weights in proptest::collection::vec(1_u32..5000, 2..5),
            gain in 1_u32..5000,
            caller in any::<u32>(),
        ) {
            let mut after = weights.clone();
            after[0] += gain;
            let (before, after) = (kept(&weights, caller), kept(&after, caller));
            prop_assert!(after == before || after == 1, "{} became {}", before, after);
        }

        #[test]
        fn a_cookie_is_found_among_others(before in "([a-z]{1,3}=[a-z\"=]{0,4}; ?){0,3}", value in "[!-:<-~]{1,9}", after in "(; ?[a-z]=[a-z]){0,2}") {
            let mut headers = HeaderMap::new();
            headers.append("cookie", "other=1".parse().unwrap());
            headers.append("cookie", format!("{before}Stick={value}{after}").parse().unwrap());
            prop_assert_eq!(cookie(&headers, b"Stick"), Some(value.as_bytes()));
            prop_assert_eq!(cookie(&headers, b"tick"), None);
        }
    }

    #[test]
    fn a_cookie_fits_its_address() {
        let set = |address| set_cookie("s", "1", address).to_str().unwrap().to_owned();
        assert_eq!(set(Address::default()), "s=1; Path=/; HttpOnly; SameSite=Lax");
        let named = Address { name: Some("hello.dev"), secure: true, ..Address::default() };
        assert_eq!(set(named), "s=1; Path=/function/hello.dev; HttpOnly; SameSite=Lax; Secure");
        let ruled = Address { base: Some("/shop"), ..Address::default() };
        assert_eq!(set(ruled), "s=1; Path=/shop; HttpOnly; SameSite=Lax");
        let odd = Address { base: Some("/a;b"), ..Address::default() };
        assert_eq!(set(odd), "s=1; Path=/; HttpOnly; SameSite=Lax");
    }

    #[test]
    fn a_call_of_the_queue_chooses_when_it_runs() {
        let name = FunctionName::parse("hello").unwrap();
        let revisions = shares(&[1, 1]).1.into_iter();
        let revisions = revisions.map(|s| Entry { revision: s.revision, state: RevisionState::Ready }).collect();
        let traffic =
            serde_json::from_str(r#"[{"latest": true, "percent": 100}, {"revision": "hello-00001", "tag": "old"}]"#);
        let routing = Arc::new(Routing { traffic: traffic.unwrap(), ..Routing::default() });
        let function = Function { name, revisions, scale: None, created_ms: 0, routing, held: None, shift: None };
        let run = |given: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            given.iter().for_each(|(name, value)| drop(headers.insert(*name, value.parse().unwrap())));
            headers.insert(headers::MADE, "7".parse().unwrap());
            assert!(is_anothers(&function, &mut headers));
            assert!(!headers.contains_key(headers::MADE), "functions do not hear of it");
            let chosen = choose(&function, &mut headers).map(|revision| revision.unwrap().id.number());
            let default = headers.contains_key(headers::DEFAULT_ROUTE);
            assert!(!headers.contains_key(headers::PIN));
            (chosen.map_err(|fault| (fault.stage, fault.cause)), default)
        };
        let own = (headers::MADE, "0".parse().unwrap());
        assert!(!is_anothers(&function, &mut HeaderMap::from_iter([own])));
        assert!(is_anothers(&function, &mut HeaderMap::new()), "nobody knows");
        assert_eq!(run(&[]), (Ok(2), false));
        assert_eq!(run(&[("x-taper-tag", "old")]), (Ok(1), false));
        assert_eq!(run(&[("knative-serving-tag", "old")]), (Ok(1), false));
        assert_eq!(run(&[("knative-serving-tag", "gone")]), (Ok(2), true));
        assert_eq!(run(&[("x-taper-pin", "old"), ("x-taper-tag", "gone")]), (Ok(1), false));
        assert_eq!(run(&[("x-taper-pin", "gone")]).0, Err((Stage::Route, Cause::NotFound)));
    }
}
