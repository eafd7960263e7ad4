//! Revocation lists: what is new in one, what may leave one.

use std::collections::{BTreeMap, BTreeSet};

use hedgerow_model::Now;
use hedgerow_model::id::{DeviceId, Revision};
use hedgerow_model::statement::{REVOCATIONS_MAX, Revocation, RevocationList, Revoked};

/// Longest reason of an entry, in bytes.
pub const REASON_BYTES_MAX: usize = 120;

/// Returns what `new` revokes that `old` did not, in order. Enforcement acts on these only: cutting
/// again what is cut already would cut a device that has enrolled anew.
pub fn newly_revoked(old: Option<&RevocationList>, new: &RevocationList) -> Vec<Revoked> {
    let known: BTreeSet<&Revoked> = old.map_or_else(BTreeSet::new, |l| {
        l.entries.iter().map(|e| &e.what).collect()
    });
    new.entries
        .iter()
        .map(|e| &e.what)
        .filter(|what| !known.contains(what))
        .cloned()
        .collect()
}

/// Returns the devices whose lowest accepted epoch rose from `old` to `new`, in order.
pub fn raised_epochs(old: Option<&RevocationList>, new: &RevocationList) -> Vec<(DeviceId, u64)> {
    let known: BTreeMap<DeviceId, u64> =
        old.map_or_else(BTreeMap::new, |l| l.min_epochs.iter().copied().collect());
    new.min_epochs
        .iter()
        .filter(|(device, epoch)| known.get(device).is_none_or(|old| epoch > old))
        .copied()
        .collect()
}

/// Makes the next list: `entries` and `min_epochs` sorted, one entry per thing (the one that stays
/// longest), entries gone whose time has passed. While the clock is not trusted nothing leaves.
pub fn next_list(
    version: Revision,
    entries: impl IntoIterator<Item = Revocation>,
    min_epochs: impl IntoIterator<Item = (DeviceId, u64)>,
    now: Now,
) -> RevocationList {
    let mut by_what: BTreeMap<Revoked, Revocation> = BTreeMap::new();
    for entry in entries {
        if now.wall_is_trusted && entry.drop_after_secs < now.wall.secs() {
            continue;
        }
        let kept = by_what
            .entry(entry.what.clone())
            .or_insert_with(|| entry.clone());
        if entry.drop_after_secs > kept.drop_after_secs {
            *kept = entry;
        }
    }
    let mut epochs: BTreeMap<DeviceId, u64> = BTreeMap::new();
    for (device, epoch) in min_epochs {
        let slot = epochs.entry(device).or_insert(epoch);
        *slot = epoch.max(*slot);
    }
    RevocationList {
        version,
        issued_secs: now.wall.secs(),
        entries: by_what.into_values().collect(),
        min_epochs: epochs.into_iter().collect(),
    }
}

/// Checks order and bounds of a list; returns the rule it breaks.
pub(crate) fn check(list: &RevocationList) -> Result<(), &'static str> {
    if list.entries.len() > REVOCATIONS_MAX || list.min_epochs.len() > REVOCATIONS_MAX {
        return Err("too many entries");
    }
    let ordered = list.entries.is_sorted_by(|a, b| a.what < b.what)
        && list.min_epochs.is_sorted_by(|a, b| a.0 < b.0);
    if !ordered {
        return Err("entries are out of order or doubled");
    }
    if list
        .entries
        .iter()
        .any(|e| e.reason.len() > REASON_BYTES_MAX)
    {
        return Err("a reason takes at most 120 bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
