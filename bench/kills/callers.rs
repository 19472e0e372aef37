//! Who calls, as fast as answers come, and what was promised.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use crate::{
    error::Error,
    load::{Line, Request, Target},
};

/// Which calls have a key, which a callback, and which a body that is kept in a file.
const KEYED: u64 = 10;
const CALLED_BACK: u64 = 7;
const LARGE: u64 = 40;
const LARGE_BYTES: usize = 40_000;

/// What the callers have heard.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Ids that were answered with 202.
    pub(super) accepted: HashSet<String>,
    /// Ids whose call had an idempotency key, by that; each key is asked with twice, and again when no answer came.
    pub(super) keyed: BTreeMap<String, BTreeSet<String>>,
    /// Those that had a callback.
    pub(super) callbacks: HashSet<String>,
    /// Calls without a key whose answer never came: nobody knows whether they were accepted.
    pub(super) unknown: u64,
    /// Calls with a key that were asked for again because no answer had come.
    pub(super) asked_again: u64,
    /// Calls that were refused, by the status.
    pub(super) refused: BTreeMap<u16, u64>,
}

/// One caller.
pub(super) struct Caller {
    id: u64,
    ordered: bool,
    next: u64,
    /// The next call was asked for already, and no answer came.
    again: bool,
}

impl Caller {
    pub(super) fn new(id: u64, ordered: bool) -> Self {
        Self { id, ordered, next: 0, again: false }
    }

    /// Calls until it is told to stop, or the platform is gone.
    pub(super) fn calls(
        &mut self,
        target: &Target,
        back: &str,
        stop: &AtomicBool,
        heard: &Mutex<Heard>,
    ) -> Result<(), Error> {
        let heard = || heard.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(mut line) = Line::open(target) else { return Ok(()) };
        while !stop.load(Relaxed) {
            let number = self.next;
            let key = number.is_multiple_of(KEYED).then(|| format!("{}-{number}", self.id));
            if std::mem::take(&mut self.again) {
                heard().asked_again += 1;
            }
            let request = self.request(number, key.as_deref(), back);
            for _ in 0..if key.is_some() { 2 } else { 1 } {
                let Ok(answer) = line.ask(&request) else {
                    // With a key it can be asked for again; without one it never is.
                    match key {
                        Some(_) => self.again = true,
                        None => (self.next, heard().unknown) = (number + 1, heard().unknown + 1),
                    }
                    return Ok(());
                };
                let mut heard = heard();
                match answer.status {
                    202 => {}
                    // The queue's server is away, or the platform ends: it was not accepted, and that was said.
                    status @ (429 | 500 | 503) => {
                        *heard.refused.entry(status).or_default() += 1;
                        continue;
                    }
                    other => return Err(Error::Answer(format!("{other} is no answer to an asynchronous call"))),
                }
                let id = answer.header("location").rsplit('/').next().unwrap_or_default().to_owned();
                if let Some(key) = &key {
                    heard.keyed.entry(key.clone()).or_default().insert(id.clone());
                }
                if number.is_multiple_of(CALLED_BACK) {
                    heard.callbacks.insert(id.clone());
                }
                heard.accepted.insert(id);
            }
            self.next = number + 1;
        }
        Ok(())
    }

    fn request(&self, number: u64, key: Option<&str>, back: &str) -> Request {
        let order = format!("caller {}", self.id);
        let mut headers = Vec::new();
        if self.ordered {
            headers.push(("X-Taper-Order-Key", order.as_str()));
        }
        headers.extend(key.map(|key| ("Idempotency-Key", key)));
        if number.is_multiple_of(CALLED_BACK) {
            headers.push(("X-Callback-Url", back));
        }
        let fill = if number.is_multiple_of(LARGE) { LARGE_BYTES } else { 0 };
        Request::post("/async-function/f", &headers, &format!("{} {number} {}", self.id, "x".repeat(fill)))
    }
}
