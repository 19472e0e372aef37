//! What callers ask of a revision, as the autoscaler sees it, and the contract of whoever measures it.

use crate::{BoxFuture, Fault, InstanceId, RevisionId};

/// What one revision was asked for since the last sample. Exact: integrals, not scrapes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Demand {
    /// Seconds that this sample covers.
    pub seconds: f64,
    /// Integral of calls in the system (waiting and running) over the sample, in call-seconds; divided by `seconds` it is the average concurrency.
    pub call_seconds: f64,
    /// Calls that arrived in the sample.
    pub arrived: u64,
    /// Calls waiting for a slot now.
    pub waiting: u32,
    /// Calls running now.
    pub running: u32,
    /// Instances that take calls now.
    pub ready: u32,
}

/// How calls of one revision ended since the platform started, for whoever decides whether it does well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcomes {
    /// Calls that were answered, by the function or with a fault.
    pub answered: u64,
    /// Those of them with a status of 500 and above, or that broke half way.
    pub failed: u64,
}

/// Where demand is measured and calls are held: the dispatcher, as the control plane sees it.
///
/// *Flow.* The control plane awaits [`Load::knock`], samples each active revision on its tick, and decides. Before it lets a
/// provider stop instances it asks [`Load::retire`] which ones are idle; those get no further call. Instances that others have come to
/// replace leave by [`Load::withdraw`]. When a revision cannot start, [`Load::refuse`] fails the calls that wait for it.
///
/// *Guarantees.* No method blocks; each is cheap enough for a tick over every active revision.
pub trait Load: Send + Sync {
    /// The next revision whose calls wait: for a first instance, or because every slot is taken. The first is reported once until the
    /// revision is sampled or served; the second once, and again whenever twice as many wait, until it is sampled.
    ///
    /// # Cancel safety
    /// Cancel safe: a knock that was not returned is returned by the next call.
    fn knock(&self) -> BoxFuture<'_, RevisionId>;

    /// The demand of every revision that has calls or instances, or had calls since the last sample. Starts the next sample.
    fn sample(&self) -> Vec<(RevisionId, Demand)>;

    /// How one revision stands now, without beginning the next sample: what is counted over time is 0.
    fn glance(&self, revision: &RevisionId) -> Demand;

    /// Takes up to `count` instances of a revision out of service, idle ones first, then those with the fewest calls, and names them.
    /// They get no new call; what runs on them runs on.
    fn retire(&self, revision: &RevisionId, count: u32) -> Vec<InstanceId>;

    /// Takes those of `among` out of service that can be spared, as long as at least `keep` instances stay in service, and names them;
    /// in the order of [`Load::retire`]. Only whoever measures knows what is in service, so here none can leave before those that
    /// replace it take calls.
    fn withdraw(&self, revision: &RevisionId, among: &[InstanceId], keep: u32) -> Vec<InstanceId>;

    /// Fails every call that waits for this revision with a copy of the fault.
    fn refuse(&self, revision: &RevisionId, fault: &Fault);
}
