//! Delivers what is to be told of calls that have ended: callbacks and records to addresses, records to functions and topics, replies to
//! topics. What cannot be delivered is tried again for some hours and then given up; nobody who is slow holds up others.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header::CONTENT_TYPE};
use rand::RngExt;
use taper_model::{
    CallId, Cause, Fault, FunctionName, Invalid, Name, Retry, clock,
    invocation::{MAX_CALLS, MAX_HOPS, To},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    Chain, Condition, Config, Delivery, Details, Due, Entry, Error, Notice, Origin, Owed, Parcel, Parts, Policy, Tried,
    callback::callback,
    derived_id,
    lanes::{Ask, LONGEST, Lanes, Place},
    outbox::Told,
    post::{Post, say},
    record::record,
    service::PAUSE,
};

/// A delivery is large that holds more bytes.
const LARGE: usize = 128 << 10;
/// How often it is said at most that there is no room for those who are slow.
const SAY: Duration = Duration::from_secs(60);
/// How long after a call's end it is tried to tell of it.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);
/// Says which delivery it is: the same each time it is tried.
const DELIVERY: HeaderName = HeaderName::from_static("x-taper-delivery");
/// What leads from the call to the one that is made of its record.
const TRACE: [HeaderName; 2] = [HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];

/// Whoever delivers.
pub(crate) struct Courier {
    parts: Arc<Parts>,
    post: Post,
    lanes: Lanes<Owed>,
    /// When it was said last that there is no room for those who are slow.
    said: Mutex<Option<Instant>>,
}

/// Why something was not delivered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    /// Another time it may be, not before that long.
    Later(String, Option<Duration>),
    /// It would not be another time.
    Never(String),
    /// More calls would make one another than may.
    Cut,
    /// The queue has stopped: it is delivered when there is one again.
    Stopped,
}

impl Missed {
    pub(crate) fn later(why: impl Into<String>, after: Option<Duration>) -> Self {
        Self::Later(why.into(), after)
    }

    pub(crate) fn never(why: impl Into<String>) -> Self {
        Self::Never(why.into())
    }
}

impl Courier {
    /// Reads whom to trust beside those whom the system trusts.
    ///
    /// # Errors
    /// When that file is of no use.
    pub(crate) fn build(config: &Config, parts: Arc<Parts>) -> Result<Self, Error> {
        Ok(Self { parts, post: Post::build(config)?, lanes: Lanes::new(), said: Mutex::default() })
    }

    /// Delivers until the queue stops. What is under way is left in `deliveries`: no more than the lanes have places.
    pub(crate) async fn work(self: &Arc<Self>, deliveries: &mut JoinSet<()>) {
        loop {
            while deliveries.try_join_next().is_some() {}
            match self.parts.queue.outbox().await {
                Ok(delivery) => {
                    if let Some((delivery, place)) = self.start(delivery) {
                        let courier = Arc::clone(self);
                        deliveries.spawn(async move { courier.deliver(delivery, place).await });
                    }
                }
                Err(Error::Stopped) => return,
                Err(error) => {
                    tracing::error!(%error, "nothing that is to be delivered can be read from the queue");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// A delivery for which there is a place; one for which there is none waits, without what it holds, and comes again with its place.
    fn start(&self, mut delivery: Delivery) -> Option<(Delivery, Place<Owed>)> {
        let details = &mut delivery.details;
        if delivery.parcel == Parcel::Callback {
            // It says nothing of what was asked.
            details.entry.body = Bytes::new();
        }
        if let Some(place) = delivery.owed.place.take().filter(|place| place.is_of(&self.lanes)) {
            return Some((delivery, *place));
        }
        let answer = details.answer.as_ref().map_or(0, |answer| answer.body.len());
        let ask = Ask {
            function: details.entry.function.clone(),
            callback: delivery.parcel == Parcel::Callback,
            large: details.entry.body.len() + answer > LARGE,
            receiver: receiver(&delivery),
        };
        let mut delivery = Some(delivery);
        let place = self.lanes.enter(ask, || delivery.take().expect("it is asked for once").owed)?;
        Some((delivery?, place))
    }

    /// One try. It ends when the receiver answers, or when its place is had by somebody else.
    async fn attempt(&self, delivery: &Delivery, place: &mut Place<Owed>) -> Result<(), Missed> {
        let mut until = place.begin();
        let mut hand_over = std::pin::pin!(self.hand_over(delivery));
        loop {
            if let Ok(tried) = timeout_at(until, &mut hand_over).await {
                return tried;
            }
            let taken = place.pace().time();
            match place.slower() {
                Some(longer) => until = longer,
                None if taken == LONGEST => return Err(Missed::later("it took longer than 60 s", None)),
                None => {
                    self.say(&delivery.details.invocation.function);
                    let why =
                        format!("it took longer than {} s, and others who are slow had all places", taken.as_secs());
                    return Err(Missed::Later(why, None));
                }
            }
        }
    }

    /// There is no room for those who are slow.
    fn say(&self, function: &FunctionName) {
        let (mut said, now) = (self.said.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        if said.is_none_or(|said| now - said >= SAY) {
            *said = Some(now);
            tracing::warn!(
                %function,
                "so many receivers of callbacks and records do not answer in time that what goes to such receivers has to wait; others are not held up"
            );
        }
    }

    /// One try, and what follows from it.
    async fn deliver(&self, mut delivery: Delivery, mut place: Place<Owed>) {
        let tried = self.attempt(&delivery, &mut place).await;
        // How long it takes to write that down is no matter of the receiver's.
        place.end();
        let invocation = &delivery.details.invocation;
        let (call, function) = (invocation.id.clone(), invocation.function.clone());
        // Without an address's path: it may hold a key.
        let to = Notice::of(delivery.number, &delivery.parcel, &delivery.details.entry, 0).to;
        let tried = match tried {
            Ok(()) => {
                delivery.owed.tell(Told::Delivered);
                Tried::Delivered
            }
            Err(Missed::Stopped) => return,
            Err(Missed::Later(why, asked)) => {
                let age = delivery.owed.now_ms().saturating_sub(invocation.ended_ms.unwrap_or_default());
                let again = again(delivery.tries, Duration::from_millis(age), asked, rand::rng().random());
                match again {
                    Some(after) => {
                        // Once for each: what follows is in the call's record.
                        if delivery.tries == 0 {
                            tracing::warn!(%call, %function, to, why, "what became of a call could not be delivered; it is tried again for 6 h");
                        }
                        Tried::Again { after, why }
                    }
                    None => {
                        delivery.owed.tell(Told::GivenUp);
                        tracing::warn!(%call, %function, to, why, "what became of a call could not be delivered within 6 h and is given up");
                        Tried::GivenUp(why)
                    }
                }
            }
            Err(Missed::Never(why)) => {
                delivery.owed.tell(Told::GivenUp);
                tracing::warn!(%call, %function, to, why, "what became of a call cannot be delivered and is given up");
                Tried::GivenUp(why)
            }
            Err(Missed::Cut) => {
                delivery.owed.tell(Told::Cut);
                tracing::warn!(
                    %call,
                    %function,
                    "what became of a call is not delivered: of calls that make one another at most {MAX_HOPS} may follow the first in a row, and \
                     there may be at most {MAX_CALLS} in all; look for a circle of destinations and topics"
                );
                Tried::GivenUp(
                    "more calls would have made one another than may; look for a circle of destinations and topics"
                        .into(),
                )
            }
        };
        let mut said = false;
        while let Err(error) = self.parts.queue.delivered(&mut delivery, tried.clone()).await {
            if matches!(error, Error::Stopped) {
                return;
            }
            if !std::mem::replace(&mut said, true) {
                tracing::error!(%error, %call, "how a delivery went could not be written; trying again until it is");
            }
            sleep(PAUSE).await;
        }
        drop(place);
    }

    async fn hand_over(&self, delivery: &Delivery) -> Result<(), Missed> {
        let details = &delivery.details;
        match &delivery.parcel {
            Parcel::Callback => {
                let Some(uri) = &details.entry.callback else { return Ok(()) };
                let (mut headers, body) = callback(details);
                say(&mut headers, DELIVERY, &name(delivery));
                self.post.send(&details.entry.function, uri, headers, body).await
            }
            Parcel::Record { to, condition } => {
                let to = to.to(&details.entry.function.namespace).map_err(|Invalid(why)| Missed::Never(why))?;
                let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
                let body = record(details, *condition);
                match to {
                    To::Url(uri) => {
                        say(&mut headers, DELIVERY, &name(delivery));
                        self.post.send(&details.entry.function, &uri, headers, body).await
                    }
                    To::Function(function) => {
                        say(&mut headers, DELIVERY, &name(delivery));
                        self.push(function, headers, body, delivery).await
                    }
                    To::Topic(topic) => {
                        attributes(&mut headers, delivery, *condition);
                        self.publish(&topic, headers, body, details).await
                    }
                }
            }
            Parcel::Reply(topic) => match &details.answer {
                Some(answer) if answer.cut => {
                    Err(Missed::never("the event that was answered is longer than queue.resultBody; allow more"))
                }
                Some(answer) => self.publish(topic, answer.headers.clone(), answer.body.clone(), details).await,
                None => Ok(()),
            },
        }
    }

    /// Calls a function with a record: once, however often this is done.
    async fn push(
        &self,
        function: FunctionName,
        mut headers: HeaderMap,
        body: Bytes,
        of: &Delivery,
    ) -> Result<(), Missed> {
        let entry = &of.details.entry;
        for trace in TRACE {
            headers.extend(entry.headers.get(&trace).map(|value| (trace.clone(), value.clone())));
        }
        headers.insert(http::header::CONTENT_LENGTH, (body.len() as u64).into());
        let origin = Origin { cause: Some(entry.id.clone()), chain: self.chain(&of.details)?, ..Origin::default() };
        let made = Entry {
            id: made_of(of),
            function,
            method: Method::POST,
            path: "/".into(),
            headers,
            body,
            correlation: None,
            due: Due::Now,
            idempotency_key: None,
            callback: None,
            order_key: None,
            origin: Some(origin),
        };
        match self.parts.queue.push(made).await {
            Ok(_) => Ok(()),
            Err(Error::Stopped) => Err(Missed::Stopped),
            Err(Error::Full { retry_after, what, .. }) => {
                Err(Missed::later(format!("{what} has reached its bound"), Some(retry_after)))
            }
            Err(error @ Error::TooLarge { .. }) => Err(Missed::never(error.to_string())),
            Err(error) => Err(Missed::later(error.to_string(), None)),
        }
    }

    /// What the calls may lead to that are made of this one. Where its answer makes calls on two ways, each has half of it.
    fn chain(&self, of: &Details) -> Result<Chain, Missed> {
        let origin = of.entry.origin.as_ref();
        let to = || (self.parts.policy)(&of.entry).on_success;
        let both = origin.is_some_and(|origin| origin.reply.is_some()) && to().is_some_and(|to| to.url.is_none());
        let chain = origin.map(|origin| origin.chain).unwrap_or_default();
        chain.next().and_then(|chain| chain.split(1 + usize::from(both))).ok_or(Missed::Cut)
    }

    async fn publish(&self, topic: &Name, headers: HeaderMap, body: Bytes, of: &Details) -> Result<(), Missed> {
        let published =
            self.parts.topics.publish(&of.entry.function.namespace, topic, headers, body, self.chain(of)?).await;
        published.map_err(|Fault { message, retry, cause, .. }| match retry {
            // Too many would follow from it.
            Retry::Never if cause == Cause::Limited => Missed::Cut,
            Retry::Never => Missed::Never(message),
            Retry::Safe => Missed::Later(message, None),
            Retry::After(after) => Missed::Later(message, Some(after)),
        })
    }
}

/// After how long something is tried again that was tried so often before, so long after its call's end; none when it is given up.
fn again(tries: u32, age: Duration, asked: Option<Duration>, random: f64) -> Option<Duration> {
    let after = Policy::default().wait(tries, random).max(asked.unwrap_or_default());
    (age.saturating_add(after) <= PATIENCE).then_some(after)
}

/// The host and port of a delivery that goes to an address.
fn receiver(delivery: &Delivery) -> Option<String> {
    let of = |uri: &Uri| {
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        Some(format!("{}:{port}", uri.host()?.to_ascii_lowercase()))
    };
    match &delivery.parcel {
        Parcel::Callback => of(delivery.details.entry.callback.as_ref()?),
        Parcel::Record { to, .. } => of(&to.url.as_ref()?.parse().ok()?),
        Parcel::Reply(_) => None,
    }
}

/// What a delivery is known by: the call's id, and from the second one on its number.
fn name(delivery: &Delivery) -> String {
    let call = &delivery.details.invocation.id;
    match delivery.number {
        0 => call.to_string(),
        number => format!("{call}.{number}"),
    }
}

/// The id of the call that is made of a delivery.
fn made_of(delivery: &Delivery) -> CallId {
    derived_id([delivery.details.invocation.id.as_str(), &delivery.number.to_string()])
}

/// The attributes of a record as an event, in the headers of CloudEvents' binary mode.
fn attributes(headers: &mut HeaderMap, delivery: &Delivery, condition: Condition) {
    let invocation = &delivery.details.invocation;
    let FunctionName { namespace, name: function } = &invocation.function;
    let kind = if condition == Condition::Success { "succeeded" } else { "failed" };
    for (header, text) in [
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", name(delivery)),
        ("ce-source", format!("/namespaces/{namespace}/functions/{function}")),
        ("ce-type", format!("dev.taper.invocation.{kind}")),
        ("ce-subject", invocation.id.to_string()),
        ("ce-time", clock::rfc3339(invocation.ended_ms.unwrap_or_default())),
    ] {
        say(headers, HeaderName::from_static(header), &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_for_six_hours() {
        for random in [1.0, 0.5, 0.1] {
            let (mut tries, mut age) = (0, Duration::ZERO);
            while let Some(after) = again(tries, age, None, random) {
                assert!(after <= Duration::from_secs(300), "{after:?}");
                (tries, age) = (tries + 1, age + after);
            }
            assert!(age <= PATIENCE && age > PATIENCE - Duration::from_secs(301), "{age:?}");
            assert!((70..900).contains(&tries), "{tries}");
        }
        let asked = Some(Duration::from_secs(3600));
        assert_eq!(again(0, Duration::ZERO, asked, 1.0), asked);
        assert_eq!(again(0, Duration::from_secs(5 * 3600 + 1), asked, 1.0), None);
        assert_eq!(again(u32::MAX, Duration::MAX, None, 0.0), None);
    }
}
