//! What readers hold: every function at one moment. A snapshot is never changed; the next one shares all but one function
//! with it, so that a change costs the same among ten functions and among a hundred thousand.

use std::{
    collections::{HashMap, HashSet, hash_map},
    fmt,
    hash::{BuildHasherDefault, DefaultHasher},
    iter, slice,
    sync::Arc,
};

use taper_model::{Digest, Function, FunctionName};

/// Everything the gateway and the control plane read, always whole: a reader holds one version until it lets go.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Snapshot {
    /// Counts up with every change, from 0 when the store is opened.
    pub version: u64,
    /// Every function.
    pub functions: Functions,
}

impl Snapshot {
    /// A function by name.
    pub fn function(&self, name: &FunctionName) -> Option<&Arc<Function>> {
        self.functions.get(name)
    }

    /// Every artifact that some revision is made of.
    pub fn artifacts(&self) -> HashSet<Digest> {
        self.functions.values().flat_map(|f| &f.revisions).filter_map(|e| e.revision.artifact).collect()
    }

    /// The next snapshot, in which one function is so, or gone.
    pub(crate) fn with(&self, name: &FunctionName, after: Option<Arc<Function>>) -> Self {
        let mut functions = self.functions.clone();
        match after {
            Some(function) => functions.insert(name.clone(), function),
            None => functions.remove(name),
        }
        Self { version: self.version + 1, functions }
    }
}

/// Functions by name: a map that is read like [`HashMap`], and cloned in a microsecond whatever it holds. The order of
/// iteration follows from the history of changes alone, not from chance.
#[derive(Clone)]
pub struct Functions {
    shards: Box<[Arc<Shard>]>,
    len: usize,
}

/// A shard is what one change copies: 40 entries of 10,000.
type Shard = HashMap<FunctionName, Arc<Function>, BuildHasherDefault<DefaultHasher>>;
type Pairs = fn(&Arc<Shard>) -> hash_map::Iter<'_, FunctionName, Arc<Function>>;

type Iter<'a> = iter::FlatMap<slice::Iter<'a, Arc<Shard>>, hash_map::Iter<'a, FunctionName, Arc<Function>>, Pairs>;

const SHARDS: u32 = 256;

impl Functions {
    /// A function by name.
    pub fn get(&self, name: &FunctionName) -> Option<&Arc<Function>> {
        self.shards[shard(name)].get(name)
    }

    /// Whether there is a function of this name.
    pub fn contains_key(&self, name: &FunctionName) -> bool {
        self.get(name).is_some()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every name with its function.
    pub fn iter(&self) -> Iter<'_> {
        self.shards.iter().flat_map(|s| s.iter())
    }

    /// Every name.
    pub fn keys(&self) -> impl Iterator<Item = &FunctionName> {
        self.iter().map(|(name, _)| name)
    }

    /// Every function.
    pub fn values(&self) -> impl Iterator<Item = &Arc<Function>> {
        self.iter().map(|(_, function)| function)
    }

    fn insert(&mut self, name: FunctionName, function: Arc<Function>) {
        let shard = Arc::make_mut(&mut self.shards[shard(&name)]);
        self.len += usize::from(shard.insert(name, function).is_none());
    }

    fn remove(&mut self, name: &FunctionName) {
        let shard = Arc::make_mut(&mut self.shards[shard(name)]);
        self.len -= usize::from(shard.remove(name).is_some());
    }
}

/// The shard of a name: FNV-1a, because it is short. Names that were chosen to meet in one shard make it as slow as one map.
fn shard(name: &FunctionName) -> usize {
    let bytes = name.name.as_str().bytes().chain(name.namespace.as_str().bytes());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193));
    ((hash ^ (hash >> 16)) % SHARDS) as usize
}

impl Default for Functions {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self { shards: (0..SHARDS).map(|_| Arc::clone(&empty)).collect(), len: 0 }
    }
}

impl PartialEq for Functions {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().all(|(name, function)| other.get(name) == Some(function))
    }
}

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Extend<Function> for Functions {
    fn extend<I: IntoIterator<Item = Function>>(&mut self, functions: I) {
        functions.into_iter().for_each(|f| self.insert(f.name.clone(), Arc::new(f)));
    }
}

impl FromIterator<(FunctionName, Arc<Function>)> for Functions {
    fn from_iter<I: IntoIterator<Item = (FunctionName, Arc<Function>)>>(pairs: I) -> Self {
        let mut functions = Self::default();
        pairs.into_iter().for_each(|(name, function)| functions.insert(name, function));
        functions
    }
}

impl From<HashMap<FunctionName, Arc<Function>>> for Functions {
    fn from(map: HashMap<FunctionName, Arc<Function>>) -> Self {
        map.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a Functions {
    type Item = (&'a FunctionName, &'a Arc<Function>);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_and_what_is_held_stays(changes in prop::collection::vec((0..40u8, any::<Option<u32>>()), 0..100)) {
            let mut model = HashMap::new();
            let mut snapshot = Snapshot::default();
            for (version, (name, scale)) in (1..).zip(changes) {
                let name = FunctionName::parse(&format!("f{name}.n{}", name % 3)).unwrap();
                let function = scale.map(|_| Arc::new(Function {
                    name: name.clone(), revisions: Vec::new(), scale, created_ms: version,
                }));
                let (held, before) = (snapshot.clone(), model.clone());
                snapshot = snapshot.with(&name, function.clone());
                match function {
                    Some(function) => drop(model.insert(name, function)),
                    None => drop(model.remove(&name)),
                }
                prop_assert_eq!(snapshot.version, version);
                for (functions, model) in [(&snapshot.functions, &model), (&held.functions, &before)] {
                    prop_assert_eq!(functions.len(), model.len());
                    prop_assert_eq!(functions.iter().count(), model.len());
                    prop_assert_eq!(functions, &Functions::from(model.clone()));
                }
            }
        }
    }

    #[test]
    fn shards_are_evenly_filled() {
        let mut filled = [0; SHARDS as usize];
        for i in 0..10_000 {
            filled[shard(&FunctionName::parse(&format!("function-{i}")).unwrap())] += 1;
        }
        assert!(filled.iter().all(|n| (10..120).contains(n)), "{filled:?}");
    }
}
