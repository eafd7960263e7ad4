//! A map that is cheap to copy and to change a little: readers keep the old one.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Arc;

/// Shards: a change copies one of them.
const SHARDS: u64 = 256;

/// A persistent map. Copying it copies pointers; changing an entry copies one shard.
#[derive(Debug, Clone)]
pub(crate) struct Shards<K, V> {
    shards: Vec<Arc<BTreeMap<K, V>>>,
}

impl<K: Ord + Hash + Clone, V: Clone> Shards<K, V> {
    /// Makes an empty map.
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Arc::default()).collect(),
        }
    }

    /// Returns the value of `key`.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.shards.get(shard_of(key))?.get(key)
    }

    /// Sets the value of `key`.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        if let Some(shard) = self.shards.get_mut(shard_of(&key)) {
            Arc::make_mut(shard).insert(key, value);
        }
    }

    /// Takes `key` out.
    pub(crate) fn remove(&mut self, key: &K) {
        if let Some(shard) = self.shards.get_mut(shard_of(key))
            && shard.contains_key(key)
        {
            Arc::make_mut(shard).remove(key);
        }
    }

    /// Returns how many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.len()).sum()
    }

    /// Visits the values, in an order that only depends on the keys.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|s| s.values())
    }
}

/// The hasher's keys are fixed: the same key falls into the same shard in every run.
fn shard_of<K: Hash>(key: &K) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    usize::try_from(hasher.finish() % SHARDS).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_does_not_see_later_changes() {
        let mut map = Shards::new();
        for i in 0..1000u32 {
            map.insert(i, i);
        }
        let old = map.clone();
        map.insert(5, 50);
        map.remove(&6);
        assert_eq!((old.get(&5), old.get(&6)), (Some(&5), Some(&6)));
        assert_eq!((map.get(&5), map.get(&6)), (Some(&50), None));
        assert_eq!((old.len(), map.len()), (1000, 999));
        assert_eq!(map.values().count(), 999);
    }
}
