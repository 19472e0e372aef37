//! Certificates from an authority that speaks ACME (RFC 8555): for the hosts that are configured and those that functions and routes name,
//! proved by what the gateway answers below `/.well-known/acme-challenge/`. Obtained one after another and renewed when two thirds of their
//! time are over; a host that fails waits longer each time. Never on a call's way: that sees only the table of `choice`.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rand::RngExt;
use taper_model::{BoxError, clock};
use taper_store::Snapshot;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Acme, Unusable,
    agent::Agent,
    choice::{self, Choice},
    kept::{Kept, Tried},
    pair::{Pair, Validity},
    settings::is_name,
};

/// Below this path an authority looks for its answer (RFC 8555, section 8.3).
const PATH: &str = "/.well-known/acme-challenge/";
/// No host is ordered for more often.
const LEAST: i64 = 3600;
/// Longest wait after failures.
const MOST: i64 = 24 * 3600;
/// Longest time that an order may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at which hosts there are.
const LOOK: Duration = Duration::from_secs(1);

/// What authorities are told who ask for it.
#[derive(Debug, Default)]
pub(super) struct Challenges {
    /// Most of the time there is none, and no call pays for a look.
    any: AtomicBool,
    answers: RwLock<HashMap<String, String>>,
}

impl Challenges {
    pub(super) fn answer(&self, path: &str) -> Option<String> {
        if !self.any.load(Relaxed) {
            return None;
        }
        let answers = self.answers.read().unwrap_or_else(PoisonError::into_inner);
        answers.get(path.strip_prefix(PATH)?).cloned()
    }

    fn set(self: &Arc<Self>, token: &str, answer: &str) -> Challenge {
        let mut answers = self.answers.write().unwrap_or_else(PoisonError::into_inner);
        answers.insert(token.to_owned(), answer.to_owned());
        self.any.store(true, Relaxed);
        Challenge { token: token.to_owned(), of: self.clone() }
    }
}

/// An answer that is given for as long as this lives.
struct Challenge {
    token: String,
    of: Arc<Challenges>,
}

impl Drop for Challenge {
    fn drop(&mut self) {
        let mut answers = self.of.answers.write().unwrap_or_else(PoisonError::into_inner);
        answers.remove(&self.token);
        self.of.any.store(!answers.is_empty(), Relaxed);
    }
}

/// What is known of a host.
#[derive(Debug, Clone, Copy)]
struct Host {
    validity: Option<Validity>,
    tried: Option<Tried>,
    /// In thousandths, so that what was obtained together is not renewed together.
    jitter: i64,
}

impl Host {
    /// When its next order may begin, in seconds since the Unix epoch.
    fn turn(&self) -> i64 {
        let wanted = self.validity.map_or(0, |v| {
            let life = v.ends.saturating_sub(v.begins);
            v.begins + life / 3 * 2 + life / 30 / 1000 * self.jitter
        });
        let allowed = self.tried.map_or(0, |tried| {
            let wait = LEAST << tried.failures.saturating_sub(1).min(5);
            tried.at + wait.min(MOST)
        });
        wanted.max(allowed)
    }
}

/// Obtains and renews.
pub(super) struct Upkeep {
    acme: Acme,
    agent: Agent,
    kept: Arc<Kept>,
    account: Option<Account>,
    hosts: HashMap<String, Host>,
    choice: Arc<Choice>,
    challenges: Arc<Challenges>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

impl Upkeep {
    /// Takes what was kept, and speaks with nobody.
    ///
    /// # Errors
    /// When the folder or the authority's root cannot be used.
    pub(super) fn build(
        acme: &Acme,
        choice: &Arc<Choice>,
        challenges: &Arc<Challenges>,
        snapshot: watch::Receiver<Arc<Snapshot>>,
    ) -> Result<Self, Unusable> {
        let Some(folder) = &acme.folder else {
            let why = "it is not set; say where the account and the certificates are kept".to_owned();
            return Err(Unusable { file: "gateway.tls.acme.folder".into(), why });
        };
        let mut upkeep = Self {
            agent: Agent::build(acme.ca.as_deref())?,
            kept: Arc::new(Kept::open(folder, &acme.directory)?),
            account: None,
            acme: acme.clone(),
            hosts: HashMap::new(),
            choice: choice.clone(),
            challenges: challenges.clone(),
            snapshot,
        };
        choice.makeshift(choice::makeshift());
        upkeep.wanted();
        Ok(upkeep)
    }

    /// For ever.
    pub(super) async fn run(mut self) {
        loop {
            let wanted = self.wanted();
            let next = wanted.iter().filter_map(|host| Some((self.hosts.get(host)?.turn(), host))).min();
            let wait = match next {
                Some((turn, host)) if turn <= now() => {
                    self.order(host).await;
                    continue;
                }
                Some((turn, _)) => (turn - now()).clamp(1, LEAST).unsigned_abs(),
                None => LEAST.unsigned_abs(),
            };
            sleep(LOOK).await;
            tokio::select! {
                () = sleep(Duration::from_secs(wait)) => {}
                Ok(()) = self.snapshot.changed() => {}
            }
        }
    }

    /// The hosts that are to have a certificate from the authority; of those that are new, what is kept is taken.
    fn wanted(&mut self) -> BTreeSet<String> {
        let snapshot = self.snapshot.borrow_and_update().clone();
        let named = snapshot.tables.keys().filter(|host| is_name(host));
        let all = self.acme.hosts.iter().chain(named);
        let wanted: BTreeSet<String> = all.filter(|host| !self.choice.is_in_files(host)).cloned().collect();
        let mut found = Vec::new();
        for host in &wanted {
            if !self.hosts.contains_key(host) {
                let pair = self.kept.pair(host);
                let (validity, tried) = (pair.as_ref().map(|pair| pair.validity), self.kept.tried(host));
                self.hosts.insert(host.clone(), Host { validity, tried, jitter: rand::rng().random_range(0..1000) });
                found.extend(pair.map(|pair| (host.clone(), pair)));
            }
        }
        self.choice.obtained(found);
        wanted
    }

    /// One order, and what it teaches.
    async fn order(&mut self, name: &str) {
        let Some(mut host) = self.hosts.get(name).copied() else { return };
        let has = host.validity.is_some_and(|v| v.ends > now());
        if !has {
            tracing::warn!(host = name, "there is no certificate yet: callers are shown one that nobody trusts");
        }
        let failures = host.tried.map_or(0, |tried| tried.failures);
        let tried = Tried { at: now(), failures };
        // A program that ends and begins all the time must not order all the time; one that is replaced in the middle may order again.
        let mark = Mark::set(&self.kept, name, host.tried, tried);
        host.tried = Some(tried);
        match timeout(PATIENCE, self.obtain(name)).await.unwrap_or_else(|_| Err("it took too long".into())) {
            Ok(pair) => {
                host.validity = Some(pair.validity);
                host.tried = Some(Tried { failures: 0, ..tried });
                let until = clock::rfc3339(pair.validity.ends.unsigned_abs() * 1000);
                tracing::info!(host = name, until, "a certificate was obtained");
                self.choice.obtained(vec![(name.to_owned(), pair)]);
            }
            Err(error) => {
                host.tried = Some(Tried { failures: failures.saturating_add(1), ..tried });
                let again = clock::rfc3339(host.turn().unsigned_abs() * 1000);
                let directory = &self.acme.directory;
                tracing::warn!(host = name, directory, again, "no certificate was obtained: {error}");
                // The account may be what is wrong.
                self.account = None;
            }
        }
        mark.ends(host.tried);
        self.hosts.insert(name.to_owned(), host);
    }

    async fn obtain(&mut self, host: &str) -> Result<Pair, BoxError> {
        let account = self.account().await?;
        let mut order = account.new_order(&NewOrder::new(&[Identifier::Dns(host.to_owned())])).await?;
        let mut answers = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let mut challenge = authorization
                .challenge(ChallengeType::Http01)
                .ok_or("the authority offers no proof over HTTP (http-01), and no other is known here")?;
            answers.push(self.challenges.set(&challenge.token, challenge.key_authorization().as_str()));
            challenge.set_ready().await?;
        }
        let patience = RetryPolicy::new().initial_delay(Duration::from_millis(250)).timeout(Duration::from_secs(90));
        if order.poll_ready(&patience).await? != OrderStatus::Ready {
            return Err(refusal(&mut order).await.into());
        }
        drop(answers);
        let key = order.finalize().await?;
        let chain = order.poll_certificate(&patience).await?;
        let pair = Pair::parse(chain.as_bytes(), key.as_bytes()).map_err(|(_, why)| why)?;
        if !pair.names.iter().any(|name| name == host) {
            return Err("the authority gave a certificate for another name".into());
        }
        if let Err(e) = self.kept.keep_pair(host, &chain, &key) {
            tracing::warn!(host, "the certificate cannot be kept, and is lost at the end: {e}");
        }
        Ok(pair)
    }

    /// The account with the authority: the one that is kept, or a new one.
    async fn account(&mut self) -> Result<Account, BoxError> {
        if let Some(account) = &self.account {
            return Ok(account.clone());
        }
        let builder = Account::builder_with_http(Box::new(self.agent.clone()));
        let account = if let Some(kept) = self.kept.account() {
            builder.from_credentials(kept).await?
        } else {
            let contact = self.acme.email.iter().map(|email| format!("mailto:{email}")).collect::<Vec<_>>();
            let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
            let asked = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
            let (account, credentials) = builder.create(&asked, self.acme.directory.clone(), None).await?;
            self.kept.keep_account(&credentials)?;
            account
        };
        Ok(self.account.insert(account).clone())
    }
}

/// Why an authority did not accept a proof, in its own words.
async fn refusal(order: &mut Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        // What is known of it is from before the proof.
        let Ok(state) = authorization.refresh().await else { continue };
        if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            return format!("the authority did not accept the proof: {problem}");
        }
    }
    "the authority did not accept the proof; is port 80 of the host forwarded to the gateway?".into()
}

/// An order is on its way. If nobody sees its end it counts for nothing.
struct Mark {
    kept: Arc<Kept>,
    host: String,
    before: Option<Tried>,
}

impl Mark {
    fn set(kept: &Arc<Kept>, host: &str, before: Option<Tried>, tried: Tried) -> Self {
        let mark = Self { kept: kept.clone(), host: host.to_owned(), before };
        mark.write(Some(tried));
        mark
    }

    fn ends(mut self, tried: Option<Tried>) {
        self.before = tried;
    }

    fn write(&self, tried: Option<Tried>) {
        if let Err(e) = self.kept.keep_tried(&self.host, tried) {
            tracing::warn!(host = self.host, "when a certificate was last ordered cannot be kept: {e}");
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.write(self.before);
    }
}

fn now() -> i64 {
    clock::unix().as_secs().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600;

    #[test]
    fn a_hosts_turn() {
        let host = |validity, tried, jitter| Host { validity, tried, jitter }.turn();
        let ninety = Some(Validity { begins: 1000, ends: 1000 + 90 * DAY });
        assert_eq!(host(None, None, 500), 0, "at once");
        assert_eq!(host(ninety, None, 0), 1000 + 60 * DAY, "two thirds");
        let latest = host(ninety, None, 999);
        assert!((1000 + 62 * DAY..1000 + 63 * DAY).contains(&latest), "{latest}");
        // A day's certificate that was obtained a moment ago, and one that an authority backdated into its last third.
        let tried = |failures| Some(Tried { at: 5000, failures });
        assert_eq!(
            host(Some(Validity { begins: 0, ends: 600 }), tried(0), 0),
            5000 + 3600,
            "never more often than hourly"
        );
        for (failures, hours) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 24), (60, 24), (u32::MAX, 24)] {
            assert_eq!(host(None, tried(failures), 0), 5000 + hours * 3600, "{failures}");
        }
    }

    #[test]
    fn an_answer_is_given_for_as_long_as_it_is_wanted() {
        let all = Arc::<Challenges>::default();
        let path = format!("{PATH}token");
        assert_eq!(all.answer(&path), None);
        let one = all.set("token", "token.print");
        let two = all.set("other", "other.print");
        assert_eq!(all.answer(&path).as_deref(), Some("token.print"));
        assert_eq!(all.answer("/token"), None);
        drop(one);
        assert_eq!(all.answer(&path), None);
        assert!(all.any.load(Relaxed));
        drop(two);
        assert!(!all.any.load(Relaxed));
    }
}
