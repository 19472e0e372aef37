//! Whose turn it is: namespaces go round, and within one its functions. Knows nothing of calls.

use std::collections::{BTreeMap, HashMap};

use taper_model::{FunctionName, Name};

/// Functions that take turns. Each one in it has a number, by which it leaves.
#[derive(Default)]
pub(super) struct Turns {
    last: u64,
    spaces: HashMap<Name, Space>,
    /// Namespaces, the next one first.
    order: BTreeMap<u64, Name>,
}

struct Space {
    at: u64,
    functions: BTreeMap<u64, FunctionName>,
}

impl Turns {
    /// A function comes after all others of its namespace; says under which number.
    pub(super) fn join(&mut self, function: &FunctionName) -> u64 {
        self.last += 1;
        let (turn, namespace) = (self.last, &function.namespace);
        if !self.spaces.contains_key(namespace) {
            self.order.insert(turn, namespace.clone());
            self.spaces.insert(namespace.clone(), Space { at: turn, functions: BTreeMap::new() });
        }
        if let Some(space) = self.spaces.get_mut(namespace) {
            space.functions.insert(turn, function.clone());
        }
        turn
    }

    /// A function takes no turns any more.
    pub(super) fn leave(&mut self, namespace: &Name, turn: u64) {
        let Some(space) = self.spaces.get_mut(namespace) else { return };
        space.functions.remove(&turn);
        if space.functions.is_empty() {
            self.order.remove(&space.at);
            self.spaces.remove(namespace);
        }
    }

    /// Whose turn it is.
    pub(super) fn first(&self) -> Option<&FunctionName> {
        let (_, namespace) = self.order.first_key_value()?;
        self.spaces.get(namespace)?.functions.first_key_value().map(|(_, function)| function)
    }

    /// A namespace has had its turn.
    pub(super) fn pass(&mut self, namespace: &Name) {
        let Some(space) = self.spaces.get_mut(namespace) else { return };
        self.last += 1;
        if let Some(name) = self.order.remove(&space.at) {
            self.order.insert(self.last, name);
        }
        space.at = self.last;
    }
}
