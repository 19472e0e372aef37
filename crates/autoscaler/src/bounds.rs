//! The bounds around a decision: the least, the most, the initial scale, and when nothing at all is left. Never looks at load.

use std::time::Duration;

use crate::{Keep, ScalePolicy, Why};

/// What the bounds need to know about a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Instances that are wanted now, or ready where those are more.
    pub up: u32,
    /// Whether it has once reached its initial scale.
    pub initialised: bool,
    /// How long no call has been in the system; `None` while one is.
    pub idle: Option<Duration>,
    /// What stands in place of the policy's `zero_after` until the next call.
    pub keep: Option<Keep>,
}

/// The least there may be: `min`, for a new revision also the initial scale, for one that nothing names any more none.
pub fn floor(policy: &ScalePolicy, initialised: bool) -> u32 {
    let least = match (policy.reachable, initialised) {
        (false, _) => 0,
        (true, true) => policy.min,
        (true, false) => policy.min.max(policy.initial_scale),
    };
    least.min(policy.ceiling())
}

/// A wanted number within the bounds, and the reason where they changed it.
///
/// Zero is reached when nothing holds it up and the revision has been idle for `zero_after`, or as long as
/// what stands in its place says, and then whatever the load's
/// averages still say; before that the last instance stays, or as many as the activation scale. The activator being always in the path, there is nothing to probe
/// and no grace period to wait.
pub fn bounded(policy: &ScalePolicy, asked: u32, standing: Standing) -> (u32, Option<Why>) {
    let (floor, ceiling) = (floor(policy, standing.initialised), policy.ceiling());
    if floor == 0 {
        let zero_after = standing.keep.map_or(policy.zero_after, |keep| keep.until);
        match standing.idle {
            Some(idle) if idle >= zero_after => {
                let gone = |keep: Keep| Why::LetGo { idle: keep.until, cause: keep.cause };
                return (0, Some(standing.keep.map_or(Why::Idle { zero_after }, gone)));
            }
            idle if asked == 0 && (standing.up > 0 || idle.is_none()) => {
                let idle = idle.unwrap_or_default();
                let kept = |keep: Keep| Why::Kept { idle, until: keep.until, cause: keep.cause };
                // From the least there is under load it goes to zero at once, and never up to that while idle.
                let last = policy.activation_scale.clamp(1, standing.up.max(1)).min(ceiling);
                return (last, Some(standing.keep.map_or(Why::IdleHold { idle, zero_after }, kept)));
            }
            _ => {}
        }
    }
    if asked < floor {
        let why = if asked < policy.min || standing.initialised { Why::Min { asked } } else { Why::Initial };
        return (floor, Some(why));
    }
    if asked > ceiling {
        return (ceiling, Some(Why::Max { asked }));
    }
    (asked, None)
}
