//! What is kept ready for starts to come, as whoever keeps it tells it to people and to the metrics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is kept ready for starts, and what it has been good for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pooled {
    /// By kind of runtime: `bare`, `node`, `python3`.
    pub kinds: BTreeMap<String, Shelf>,
    /// The most memory that all of it may take, in bytes.
    pub budget: u64,
}

/// One kind of runtime in the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shelf {
    /// Starts that took one, since the platform started.
    pub hits: u64,
    /// Starts that found none.
    pub misses: u64,
    /// Sandboxes that are ready.
    pub ready: u64,
    /// Sandboxes that are being made.
    pub making: u64,
    /// Sandboxes that there should be.
    pub wanted: u64,
    /// Bytes of memory that those which are ready take, as far as it is known.
    pub memory: u64,
}
