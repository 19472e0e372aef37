//! Owns one HTTP/1.1 connection to a function's server, whose work is done by the call that uses it, step by step as it is polled:
//! a task for each connection would have to be woken, and wake the call, several times for each call. It never decides which
//! call gets it; [`super::http`] does.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread::{self, ThreadId},
};

use ::http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use taper_model::BoxFuture;
use tokio::{
    task::unconstrained,
    time::{Instant, Sleep, sleep_until},
};

use super::{Upload, http::Stream};

/// How often a step may cause the next one at once, before others get their turn.
const STEPS: usize = 4;

/// A connection that takes one request at a time.
pub(super) struct Line {
    sender: http1::SendRequest<Upload>,
    /// What the connection has to do; none when a task of its own does it.
    work: Option<BoxFuture<'static, hyper::Result<()>>>,
    bell: Arc<Bell>,
    /// The bell, as those want it who ring it.
    waker: Waker,
    /// Rings at a call's deadline. Left as it is when the call ends: to set it for each would cost more than one ring too many.
    alarm: Pin<Box<Sleep>>,
    armed: bool,
    /// Until when it may be used again; told by the last response.
    pub(super) until: Instant,
    /// The thread whose event loop it is waited for by. Others have lines of their own: being woken by another thread costs more.
    pub(super) home: ThreadId,
}

impl Line {
    /// Over a fresh stream.
    pub(super) async fn open(stream: Box<dyn Stream>) -> io::Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let bell = Arc::new(Bell::default());
        let (now, home) = (Instant::now(), thread::current().id());
        Ok(Self {
            sender,
            work: Some(Box::pin(connection.with_upgrades())),
            waker: Waker::from(bell.clone()),
            bell,
            alarm: Box::pin(sleep_until(now)),
            armed: false,
            until: now,
            home,
        })
    }

    /// Sends a request and waits for the head of its response; nothing when the deadline passes first.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line in the middle of a call: it must be dropped, too.
    pub(super) async fn send(
        &mut self,
        request: Request<Upload>,
        deadline: Instant,
    ) -> Option<Result<Response<Incoming>, TrySendError<Request<Upload>>>> {
        let mut response = pin!(self.sender.try_send_request(request));
        poll_fn(|cx| match self.drive(cx, |cx| response.as_mut().poll(cx)) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending if self.is_late(deadline) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Does what the connection has to do, and then a step that depends on it; again, as long as the one brings the other on.
    pub(super) fn drive<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut step: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        for _ in 0..STEPS {
            self.bell.hush();
            self.work();
            if let Poll::Ready(out) = step(&mut Context::from_waker(&self.waker)) {
                return Poll::Ready(out);
            }
            if self.bell.listen(cx.waker()) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// From now on a task of its own does the work: what goes on while nobody waits for a response.
    pub(super) fn leave(&mut self) {
        if let Some(work) = self.work.take() {
            tokio::spawn(work);
        }
    }

    /// Whether it takes the next request, when the last one is over.
    pub(super) fn rests(&mut self) -> bool {
        if !self.sender.is_ready() {
            self.work();
        }
        // A task of its own may not have come to it yet.
        if self.work.is_some() { self.sender.is_ready() } else { !self.sender.is_closed() }
    }

    /// Waits until it takes a request; false when it never will again.
    pub(super) async fn ready(&mut self) -> bool {
        self.sender.is_ready() || (self.work.is_none() && self.sender.ready().await.is_ok())
    }

    fn work(&mut self) {
        let Some(work) = &mut self.work else { return };
        if work.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready() {
            self.work = None;
        }
    }

    fn is_late(&mut self, deadline: Instant) -> bool {
        loop {
            if self.alarm.deadline() > deadline || self.alarm.is_elapsed() {
                if deadline <= Instant::now() {
                    return true;
                }
                self.alarm.as_mut().reset(deadline);
                self.armed = false;
            }
            if self.armed {
                return false;
            }
            self.armed = true;
            let alarm = pin!(unconstrained(self.alarm.as_mut()));
            if alarm.poll(&mut Context::from_waker(&self.waker)).is_pending() {
                return false;
            }
        }
    }
}

/// Wakes whoever uses a line now. What is rung while he is at work is no news for his task; he asks for it himself.
#[derive(Default)]
struct Bell(Mutex<Rung>);

#[derive(Default)]
struct Rung {
    rung: bool,
    listener: Option<Waker>,
}

impl Bell {
    /// Begins a step.
    fn hush(&self) {
        *self.lock() = Rung::default();
    }

    /// Ends a step: whoever rings from now on wakes this task. False when it has rung meanwhile.
    fn listen(&self, waker: &Waker) -> bool {
        let mut bell = self.lock();
        if bell.rung {
            return false;
        }
        bell.listener = Some(waker.clone());
        true
    }

    fn lock(&self) -> MutexGuard<'_, Rung> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let listener = {
            let mut bell = self.lock();
            bell.rung = true;
            bell.listener.take()
        };
        if let Some(listener) = listener {
            listener.wake();
        }
    }
}
