//! Owns the timer of one connection, which rings at a call's deadline. It never decides what a late call means.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// Rings at a deadline. It is left as it is when a call ends: deadlines mostly move on, and to set a timer for each call costs more
/// than one ring too many.
pub(super) struct Alarm(Pin<Box<Sleep>>);

impl Alarm {
    pub(super) fn new() -> Self {
        Self(Box::pin(sleep_until(Instant::now())))
    }

    /// Whether the deadline has passed; if not, the task is woken when it does, and possibly before.
    pub(super) fn is_late(&mut self, cx: &mut Context<'_>, deadline: Instant) -> bool {
        loop {
            if self.0.deadline() > deadline || self.0.is_elapsed() {
                if deadline <= Instant::now() {
                    return true;
                }
                self.0.as_mut().reset(deadline);
            }
            if self.0.as_mut().poll(cx) == Poll::Pending {
                return false;
            }
        }
    }
}
