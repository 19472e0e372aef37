//! Pure scaling decisions: how many instances a revision should have, and why.
//!
//! *Flow.* Whoever measures demand feeds [`Autoscaler::observe`]; on its tick it asks [`Autoscaler::decide`]; when a call arrives
//! while nothing runs it asks [`Autoscaler::wake`]. Each answer is a [`Decision`]: a number and its reason. Inside, samples go into
//! two [`Window`]s, their averages into the [`Decider`] (Knative's algorithm, which [`replay`] runs alone), and what that asks for
//! through [`bounds`]. Beside it stand what outlives a revision at zero: a function's [`Habit`], which forecasts how long an idle instance
//! should stay and when another one should be there ahead of a call, and [`GreedyDual`], which says who goes when memory is short.
//!
//! *Guarantees.* No I/O, no clock, no randomness: the same calls with the same arguments give the same answers.
//!
//! *Assumptions.* `now` is always the time since the Unix epoch, read once and carried forward by a clock that never steps back.
//! Another epoch works too; it only moves the edges of the one-second buckets and of the two-second slots of the scale-down delay.

mod autoscaler;
pub mod bounds;
mod decide;
mod delay;
mod error;
mod greedy_dual;
mod habit;
mod policy;
mod replay;
mod settings;
mod why;
mod window;

pub use autoscaler::{Autoscaler, Sample};
pub use decide::{Decider, Decision, Seen};
pub use delay::DelayWindow;
pub use error::Error;
pub use greedy_dual::GreedyDual;
pub use habit::{Ahead, Basis, Forecast, Habit};
pub use policy::{Aggregation, Metric, ScalePolicy};
pub use replay::replay;
pub use settings::Settings;
pub use why::{Cause, Keep, Limit, Which, Why};
pub use window::Window;
