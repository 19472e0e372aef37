//! The one timeout, on the way back: to the last byte for ordinary replies; for event streams and tunnels the longest
//! silence in both directions. Never decides what a caller is told when no reply has begun: `forward` does.
//!
//! A body alone cannot keep time: whoever carries it to the client does not poll it while the client reads nothing. So
//! on HTTP/1 the task of the connection watches the [`Limit`] and ends the connection, and on HTTP/2 an alarm beside each
//! reply takes its body away. In both cases the body, and with it the slot, is dropped on time.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use taper_model::{Body, BoxError, Cause};
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, sleep_until},
};

/// What the two directions of one call know of one another.
pub(crate) struct Transfer {
    began: Instant,
    /// Milliseconds from `began` to the last byte in either direction, once somebody wants to know.
    touched: AtomicU64,
    watched: AtomicBool,
    received: AtomicU64,
    broken: AtomicU8,
    notify: Notify,
}

/// Why a request's body has no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It passed the limit.
    TooLarge,
    /// It was cut short, or is not what its framing says.
    Malformed,
}

impl Broken {
    pub(crate) fn cause(self) -> Cause {
        match self {
            Self::TooLarge => Cause::BodyTooLarge,
            Self::Malformed => Cause::Malformed,
        }
    }
}

impl Transfer {
    pub(crate) fn new(began: Instant) -> Self {
        Self {
            began,
            touched: AtomicU64::new(0),
            watched: AtomicBool::new(false),
            received: AtomicU64::new(0),
            broken: AtomicU8::new(0),
            notify: Notify::new(),
        }
    }

    /// When the request's head was complete.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// A byte passed, in whichever direction.
    pub(crate) fn touch(&self) {
        // Most calls have a deadline and no silence to break: they need no clock for each piece.
        if !self.watched.load(Relaxed) {
            return;
        }
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.touched.store(ms, Relaxed);
    }

    /// Bytes of the request's body passed.
    pub(crate) fn receive(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Relaxed);
        self.touch();
    }

    /// Bytes of the request's body so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// The request's body broke.
    pub(crate) fn fail(&self, why: Broken) {
        let code = match why {
            Broken::TooLarge => 1,
            Broken::Malformed => 2,
        };
        self.broken.store(code, Relaxed);
        self.notify.notify_one();
    }

    /// Whether the request's body broke, and why.
    pub(crate) fn broken(&self) -> Option<Broken> {
        match self.broken.load(Relaxed) {
            0 => None,
            1 => Some(Broken::TooLarge),
            _ => Some(Broken::Malformed),
        }
    }

    /// Waits until the request's body breaks. For one waiter. Cancel safe.
    pub(crate) async fn breaks(&self) -> Broken {
        loop {
            self.notify.notified().await;
            if let Some(why) = self.broken() {
                return why;
            }
        }
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.touched.load(Relaxed))
    }
}

/// Until when a reply may go on.
#[derive(Clone)]
pub(crate) enum Limit {
    /// As long as it likes.
    None,
    /// Its last byte must have left by then.
    Deadline(Instant),
    /// As long as bytes flow: this much silence in both directions ends it.
    Silence(Arc<Transfer>, Duration),
}

impl Limit {
    /// So much silence from now on.
    pub(crate) fn silence(transfer: &Arc<Transfer>, silence: Duration) -> Self {
        transfer.watched.store(true, Relaxed);
        transfer.touch();
        Self::Silence(transfer.clone(), silence)
    }

    /// The moment at which the reply is over, as things stand.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self {
            Self::None => None,
            Self::Deadline(at) => Some(*at),
            Self::Silence(transfer, silence) => Some(transfer.last() + *silence),
        }
    }

    /// Whether the reply is over.
    pub(crate) fn passed(&self) -> bool {
        self.due().is_some_and(|at| at <= Instant::now())
    }

    /// Waits until the reply is over. Cancel safe.
    pub(crate) async fn wait(&self) {
        while let Some(at) = self.due() {
            if at <= Instant::now() {
                return;
            }
            sleep_until(at).await;
        }
        std::future::pending::<()>().await;
    }
}

/// A reply's body, and on HTTP/2 the alarm that takes it away when its limit has passed.
pub(crate) enum Bounded {
    /// Somebody else watches the limit.
    Own(Body),
    /// An alarm does.
    Watched(Arc<Shared>, AbortHandle),
}

pub(crate) struct Shared(Mutex<Inner>);

struct Inner {
    body: Option<Body>,
    waker: Option<Waker>,
}

impl Bounded {
    /// A body with an alarm, unless it is at its end or knows no limit.
    pub(crate) fn watched(body: Body, limit: Limit) -> Self {
        if body.is_end_stream() || matches!(limit, Limit::None) {
            return Self::Own(body);
        }
        let shared = Arc::new(Shared(Mutex::new(Inner { body: Some(body), waker: None })));
        let alarm = tokio::spawn(alarm(Arc::downgrade(&shared), limit));
        Self::Watched(shared, alarm.abort_handle())
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self {
            Self::Own(body) => Pin::new(body).poll_frame(cx),
            Self::Watched(shared, _) => {
                let mut inner = shared.lock();
                let Some(body) = &mut inner.body else {
                    return Poll::Ready(Some(Err("the reply's time is over".into())));
                };
                let polled = Pin::new(body).poll_frame(cx);
                if polled.is_pending() {
                    inner.waker = Some(cx.waker().clone());
                }
                polled
            }
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Watched(shared, _) => shared.lock().body.as_ref().is_some_and(Body::is_end_stream),
        }
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Watched(shared, _) => shared.lock().body.as_ref().map(Body::size_hint).unwrap_or_default(),
        }
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        if let Self::Watched(_, alarm) = self {
            alarm.abort();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no body panics while it is polled")
    }
}

async fn alarm(shared: Weak<Shared>, limit: Limit) {
    limit.wait().await;
    if let Some(shared) = shared.upgrade() {
        let (body, waker) = {
            let mut inner = shared.lock();
            (inner.body.take(), inner.waker.take())
        };
        drop(body);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_fn;
    use http_body_util::{BodyExt, StreamBody};
    use taper_model::call;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A body that never ends, and tells when it is dropped.
    fn endless() -> (Body, Weak<()>) {
        let alive = Arc::new(());
        let seen = Arc::downgrade(&alive);
        let stream = futures_util::stream::poll_fn(move |_| {
            let _held = &alive;
            Poll::<Option<Result<Frame<Bytes>, BoxError>>>::Pending
        });
        (BodyExt::boxed_unsync(StreamBody::new(stream)), seen)
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_takes_a_body_that_nobody_polls() {
        let (body, alive) = endless();
        let mut bounded = Bounded::watched(body, Limit::Deadline(Instant::now() + SECOND));
        tokio::time::sleep(SECOND - Duration::from_millis(5)).await;
        assert!(alive.upgrade().is_some(), "not before its time");
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(alive.upgrade().is_none(), "the slot's holder is gone though nobody polled");
        assert!(poll_fn(|cx| bounded.poll_frame(cx)).await.is_some_and(|f| f.is_err()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_wakes_who_waits() {
        let (body, _alive) = endless();
        let mut bounded = Bounded::watched(body, Limit::Deadline(Instant::now() + SECOND));
        let frame = tokio::time::timeout(2 * SECOND, poll_fn(|cx| bounded.poll_frame(cx))).await.expect("woken");
        assert!(frame.is_some_and(|f| f.is_err()));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_in_either_direction_break_the_silence() {
        let transfer = Arc::new(Transfer::new(Instant::now()));
        let limit = Limit::silence(&transfer, 5 * SECOND);
        for _ in 0..3 {
            tokio::time::sleep(3 * SECOND).await;
            assert!(!limit.passed());
            transfer.receive(1);
        }
        let before = Instant::now();
        limit.wait().await;
        assert_eq!(before.elapsed(), 5 * SECOND);
        assert!(limit.passed());
    }

    #[tokio::test]
    async fn what_has_ended_needs_no_alarm() {
        let bounded = Bounded::watched(call::empty(), Limit::Deadline(Instant::now()));
        assert!(matches!(bounded, Bounded::Own(_)));
        assert!(bounded.is_end_stream() && bounded.size_hint().exact() == Some(0));
    }
}
