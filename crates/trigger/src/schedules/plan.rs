//! Which of the ticks that are due make calls. Pure.

use taper_model::trigger::Missed;

/// Most ticks that are worked off at once; of more, the latest.
pub(super) const MOST: usize = 1000;
/// The latest tick was not missed when it is no older than this, in milliseconds: a platform that is started again, or does much else, is
/// not gone.
const ON_TIME: u64 = 10_000;

/// What becomes of ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// Those that make calls, the oldest first.
    pub(super) calls: Vec<u64>,
    /// How many make none.
    pub(super) missed: u64,
}

/// What becomes of these ticks, the oldest first, of which the latest has been due for so many milliseconds.
pub(super) fn plan(missed: Missed, ticks: &[u64], late: u64) -> Plan {
    let calls = match missed {
        Missed::All => ticks,
        Missed::Skip if late > ON_TIME => &[],
        Missed::Skip | Missed::Once => &ticks[ticks.len().saturating_sub(1)..],
    };
    Plan { calls: calls.to_vec(), missed: (ticks.len() - calls.len()) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_ticks() {
        for (missed, ticks, late, calls) in [
            (Missed::Skip, vec![5], 0, vec![5]),
            (Missed::Skip, vec![5], ON_TIME, vec![5]),
            (Missed::Skip, vec![5], ON_TIME + 1, vec![]),
            (Missed::Skip, vec![1, 2, 3], 7, vec![3]),
            (Missed::Skip, vec![1, 2, 3], ON_TIME + 1, vec![]),
            (Missed::Once, vec![5], 0, vec![5]),
            (Missed::Once, vec![1, 2, 3], u64::MAX, vec![3]),
            (Missed::All, vec![1, 2, 3], u64::MAX, vec![1, 2, 3]),
            (Missed::All, vec![], 0, vec![]),
            (Missed::Once, vec![], 0, vec![]),
        ] {
            let plan = plan(missed, &ticks, late);
            assert_eq!(plan.calls, calls, "{missed:?} {ticks:?} {late}");
            assert_eq!(plan.missed as usize + plan.calls.len(), ticks.len());
        }
    }
}
