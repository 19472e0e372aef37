//! The truth: functions, immutable revisions, secrets and artifacts; published as whole snapshots.

use std::{collections::HashMap, sync::Arc};

use taper_model::{Function, FunctionName};

/// Everything the gateway and the control plane read, always whole: a reader holds one version until it lets go.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts up with every change.
    pub version: u64,
    /// Every function.
    pub functions: HashMap<FunctionName, Arc<Function>>,
}

impl Snapshot {
    /// A function by name.
    pub fn function(&self, name: &FunctionName) -> Option<&Arc<Function>> {
        self.functions.get(name)
    }
}
