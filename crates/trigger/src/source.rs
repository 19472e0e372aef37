//! The contract of whoever decides by himself when a function is called.

use taper_model::{BoxFuture, trigger::TriggerSpec};

use crate::{Error, Push};

/// Whoever decides by himself when a function is called: a schedule, a broker, a folder that is looked at.
///
/// *Flow.* For each trigger that is its own ([`owns`](Self::owns)) the platform runs [`run`](Self::run) in a task: from the moment that the trigger is
/// there, or the platform has started, until the trigger changes, is suspended or deleted, or the platform ends. A trigger that has changed
/// is run anew, with what it says now.
///
/// *Guarantees.* One task at a time for each trigger, over all processes: the platform that is replaced has ended its tasks before the new one begins.
///
/// *Assumptions.* The future is dropped wherever it waits. What it has pushed by then is on disk; it must not have told anybody that it has something
/// before it was. So: first [`Push::push`], then [`Push::set_cursor`] or the broker's acknowledgement; whoever is killed in between pushes the
/// same call again under the same id, which makes none anew.
///
/// *Errors.* After an error, or a panic, the task is begun anew after a while: a second at first, a minute at most. The error stands in the trigger's status
/// meanwhile. After [`Error::Invalid`] it is not, until the trigger changes. A future that ends well is not begun again either.
pub trait Source: Send + Sync {
    /// One word for the log.
    fn kind(&self) -> &'static str;

    /// Whether a trigger that says this is one of this source.
    fn owns(&self, spec: &TriggerSpec) -> bool;

    /// The names of the cursors that it keeps for a trigger; they are forgotten with it.
    fn cursors(&self) -> &'static [&'static str];

    /// Runs one trigger.
    ///
    /// # Errors
    /// Why it cannot go on.
    fn run(&self, push: Push) -> BoxFuture<'static, Result<(), Error>>;
}
