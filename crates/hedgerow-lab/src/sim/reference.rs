//! Who must be able to reach whom, worked out without looking at any machine.
//!
//! It is written apart from what it judges, and knows nothing but the plant and what happened to it. Where
//! neither "must" nor "must not" follows, nothing is expected.

use std::collections::BTreeSet;

use super::plant::{Place, Plant};

/// What is expected of a flow once everything had time to settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Expected {
    /// A packet gets there, and its answer back.
    Reaches,
    /// No packet gets there.
    Refused,
    /// Either.
    Open,
}

/// What happened so far and still holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Circumstances {
    pub(super) dead: BTreeSet<usize>,
    pub(super) revoked: BTreeSet<usize>,
}

/// Judges a flow in a plant whose network is whole and whose controller answers.
pub(super) fn expected(plant: &Plant, now: &Circumstances, from: usize, to: usize) -> Expected {
    let permitted = match (plant.members.get(from), plant.members.get(to)) {
        (Some(a), Some(b)) => a.may_reach(b),
        _ => false,
    };
    let is_out = |node| now.revoked.contains(&node);
    if !plant.are_peers(from, to) || is_out(from) || is_out(to) {
        return Expected::Refused;
    }
    if !permitted || now.dead.contains(&from) || now.dead.contains(&to) {
        return Expected::Open;
    }
    match hears(plant, from, to) {
        true => Expected::Reaches,
        false => Expected::Open,
    }
}

/// Whether the first datagram of one device finds the other without help.
fn hears(plant: &Plant, from: usize, to: usize) -> bool {
    let same_site = match (plant.members.get(from), plant.members.get(to)) {
        (Some(a), Some(b)) => a.site == b.site,
        _ => false,
    };
    same_site || plant.place(to) == Place::Open
}
