//! What calls leave running in an instance when they are over, and what is kept until that has ended, too. Never ends
//! anything: the runtime is told, and says when it is at rest.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, Ordering},
};

/// The calls of one instance that linger.
#[derive(Default)]
pub(crate) struct Left {
    /// For how many nothing is kept yet. Changed under the lock, and read without it by every call that ends.
    bare: AtomicU32,
    /// What is kept for the others.
    places: Mutex<Vec<Box<dyn Send>>>,
}

/// A call that lingers, while this lives.
pub(crate) struct Lingering(Arc<Left>);

impl Left {
    /// See [`taper_model::Invoke::lingers`].
    pub(super) fn lingers(&self) -> u32 {
        self.bare.load(Ordering::Acquire)
    }

    /// See [`taper_model::Invoke::keep`]. Which call a place is kept for makes no difference.
    pub(super) fn keep(&self, place: Box<dyn Send>) {
        let mut places = self.lock();
        let bare = self.bare.load(Ordering::Relaxed);
        if bare > 0 {
            self.bare.store(bare - 1, Ordering::Release);
            places.push(place);
        }
    }

    /// How many linger, whether something is kept for them or not.
    pub(crate) fn calls(&self) -> usize {
        self.lock().len() + self.bare.load(Ordering::Relaxed) as usize
    }

    /// A call is over and not at rest.
    pub(crate) fn linger(self: &Arc<Self>) -> Lingering {
        let _places = self.lock();
        self.bare.fetch_add(1, Ordering::Release);
        Lingering(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Box<dyn Send>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let mut places = self.0.lock();
        let place = places.pop();
        if place.is_none() {
            self.0.bare.fetch_sub(1, Ordering::Release);
        }
        drop(places);
        // It may go to a call that waits: not under the lock.
        drop(place);
    }
}
