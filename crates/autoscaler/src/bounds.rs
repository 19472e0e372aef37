//! The bounds around a decision: the least, the most, the initial scale, and when nothing at all is left. Never looks at load.

use std::time::Duration;

use crate::{ScalePolicy, Why};

/// What the bounds need to know about a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether instances are wanted or ready now.
    pub up: bool,
    /// Whether it has once reached its initial scale.
    pub initialised: bool,
    /// How long no call has been in the system; `None` while one is.
    pub idle: Option<Duration>,
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
/// Zero is reached when nothing holds it up and the revision has been idle for `zero_after`, and then whatever the load's
/// averages still say; before that the last instance stays. The activator being always in the path, there is nothing to probe
/// and no grace period to wait.
pub fn bounded(policy: &ScalePolicy, asked: u32, standing: Standing) -> (u32, Option<Why>) {
    let (floor, ceiling) = (floor(policy, standing.initialised), policy.ceiling());
    if floor == 0 {
        let zero_after = policy.zero_after;
        match standing.idle {
            Some(idle) if idle >= zero_after => return (0, Some(Why::Idle { zero_after })),
            idle if asked == 0 && (standing.up || idle.is_none()) => {
                return (1, Some(Why::IdleHold { idle: idle.unwrap_or_default(), zero_after }));
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
