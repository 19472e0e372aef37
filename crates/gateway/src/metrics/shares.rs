//! What many threads count, each in a place of its own: a number that all lanes add to would travel from processor to processor with
//! every call. It is summed when somebody asks.

use std::{
    array,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Places. More threads than that share some.
const SHARES: usize = 8;

thread_local! {
    static SHARE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Relaxed) % SHARES
    };
}

/// A `T` for each thread that counts, made when it first does.
pub(super) struct Shares<T>([OnceLock<Box<Share<T>>>; SHARES]);

/// On cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Share<T>(T);

impl<T: Default> Shares<T> {
    /// This thread's.
    pub(super) fn mine(&self) -> &T {
        &self.0[SHARE.with(|at| *at)].get_or_init(Box::default).0
    }

    /// Those that were made.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().filter_map(OnceLock::get).map(|share| &share.0)
    }
}

impl<T> Default for Shares<T> {
    fn default() -> Self {
        Self(array::from_fn(|_| OnceLock::new()))
    }
}
