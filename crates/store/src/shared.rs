//! A map that is read like [`HashMap`](std::collections::HashMap), and cloned in a microsecond whatever it holds: copies share
//! what neither has changed. The order of iteration follows from the history of changes alone, not from chance.

use std::{
    collections::{HashMap, hash_map},
    fmt,
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    iter, slice,
    sync::Arc,
};

/// A map whose copies share what neither has changed.
#[derive(Clone)]
pub struct Shared<K, V> {
    shards: Box<[Arc<Shard<K, V>>]>,
    len: usize,
}

/// A shard is what one change copies: 40 entries of 10,000.
type Shard<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;
type Pairs<K, V> = fn(&Arc<Shard<K, V>>) -> hash_map::Iter<'_, K, V>;
type Iter<'a, K, V> = iter::FlatMap<slice::Iter<'a, Arc<Shard<K, V>>>, hash_map::Iter<'a, K, V>, Pairs<K, V>>;

const SHARDS: u32 = 256;

impl<K: Hash + Eq + Clone, V: Clone> Shared<K, V> {
    /// What is there under this name.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.shards[shard(key)].get(key)
    }

    /// Whether there is something under this name.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Every name with what it names.
    pub fn iter(&self) -> Iter<'_, K, V> {
        self.shards.iter().flat_map(|s| s.iter())
    }

    /// The names under which another map has something that is not the `same`, or nothing. What both maps share is not looked at,
    /// so that two versions of a large one are compared at the cost of what changed between them.
    pub fn differences<'a>(&'a self, other: &'a Self, same: fn(&V, &V) -> bool) -> impl Iterator<Item = &'a K> {
        let changed = self.shards.iter().zip(&other.shards).filter(|(a, b)| !Arc::ptr_eq(a, b));
        changed.flat_map(move |(a, b)| {
            let new = a.iter().filter(move |(key, value)| b.get(*key).is_none_or(|before| !same(value, before)));
            new.map(|(key, _)| key).chain(b.keys().filter(|key| !a.contains_key(*key)))
        })
    }

    /// Every name.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Everything that is named.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        let shard = Arc::make_mut(&mut self.shards[shard(&key)]);
        self.len += usize::from(shard.insert(key, value).is_none());
    }

    pub(crate) fn remove(&mut self, key: &K) {
        let shard = Arc::make_mut(&mut self.shards[shard(key)]);
        self.len -= usize::from(shard.remove(key).is_some());
    }
}

impl<K, V> Shared<K, V> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The shard of a name. Names that were chosen to meet in one shard make it as slow as one map.
fn shard(key: &impl Hash) -> usize {
    let mut fnv = Fnv(0x811c_9dc5);
    key.hash(&mut fnv);
    ((fnv.0 ^ (fnv.0 >> 16)) % SHARDS) as usize
}

/// FNV-1a, because it is short; and not the hash by which a shard orders its own entries, which would then all look alike there.
struct Fnv(u32);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, b| (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    }

    fn finish(&self) -> u64 {
        self.0.into()
    }
}

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self { shards: (0..SHARDS).map(|_| Arc::clone(&empty)).collect(), len: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone + PartialEq> PartialEq for Shared<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().all(|(key, value)| other.get(key) == Some(value))
    }
}

impl<K: Hash + Eq + Clone + fmt::Debug, V: Clone + fmt::Debug> fmt::Debug for Shared<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Hash + Eq + Clone, V: Clone> FromIterator<(K, V)> for Shared<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut map = Self::default();
        pairs.into_iter().for_each(|(key, value)| map.insert(key, value));
        map
    }
}

impl<'a, K: Hash + Eq + Clone, V: Clone> IntoIterator for &'a Shared<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use taper_model::{FunctionName, Name};

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_and_what_is_held_stays(changes in prop::collection::vec((0..40u8, any::<Option<u32>>()), 0..100)) {
            let mut model = HashMap::new();
            let mut map = Shared::<Name, u32>::default();
            for (key, value) in changes {
                let key = Name::new(&format!("f{key}")).unwrap();
                let (held, before) = (map.clone(), model.clone());
                match value {
                    Some(value) => {
                        map.insert(key.clone(), value);
                        model.insert(key, value);
                    }
                    None => {
                        map.remove(&key);
                        model.remove(&key);
                    }
                }
                let differ: HashSet<_> = map.differences(&held, u32::eq).cloned().collect();
                let all = model.keys().chain(before.keys());
                prop_assert_eq!(differ, all.filter(|key| model.get(*key) != before.get(*key)).cloned().collect());
                for (map, model) in [(&map, &model), (&held, &before)] {
                    prop_assert_eq!((map.len(), map.iter().count()), (model.len(), model.len()));
                    prop_assert_eq!(map, &model.clone().into_iter().collect());
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
