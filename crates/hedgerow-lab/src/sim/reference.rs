//! Who must be able to reach whom, worked out without looking at any machine.
//!
//! It is written apart from what it judges, and knows nothing but the plant and what happened to it. Where
//! neither "must" nor "must not" follows, nothing is expected.
//!
//! ```text
//!  policy joins them ∧ neither is revoked, contained, dead or hostile
//!    ∧ ( a datagram finds the way ∨ both find one relay ∨ each finds a relay and these find each other )
//! ```
//!
//! A device keeps the relays that it chooses, and others reach it through those. So a relay helps for certain only
//! where every choice of the two devices leaves one that both have or two that find each other. A hostile relay may
//! be among the chosen: it takes registrations like any other, and what it withholds or misdirects nobody sees
//! before something is sent through it. So it is counted as a choice, and joins nobody.

use std::collections::BTreeSet;

use hedgerow_mesh::relay::HOME_RELAYS;

use super::plant::{Place, Plant};

/// What is expected of a flow once everything had time to settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Expected {
    /// A packet gets there, and its answer back: the first datagram finds the way.
    Reaches,
    /// The same, and a relay has to help.
    ReachesRelayed,
    /// The same, and two relays have to help.
    ReachesOverTwo,
    /// No packet gets there.
    Refused,
    /// Either.
    Open,
}

impl Expected {
    /// Whether a packet must get there.
    pub(super) fn is_a_must(self) -> bool {
        matches!(
            self,
            Self::Reaches | Self::ReachesRelayed | Self::ReachesOverTwo
        )
    }
}

/// What happened so far and still holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Circumstances {
    pub(super) dead: BTreeSet<usize>,
    pub(super) revoked: BTreeSet<usize>,
    /// In quarantine: neither peer nor relay of anybody.
    pub(super) contained: BTreeSet<usize>,
    /// Was ever: news of the release come later than the release.
    pub(super) was_contained: BTreeSet<usize>,
}

impl Circumstances {
    /// Whether a device is out for good or until it is released.
    pub(super) fn is_out(&self, node: usize) -> bool {
        self.revoked.contains(&node) || self.contained.contains(&node)
    }

    /// Whether a device takes part, and does what it should.
    pub(super) fn is_in(&self, plant: &Plant, node: usize) -> bool {
        let honest = |n: usize| plant.members.get(n).is_some_and(|m| m.hostility.is_none());
        honest(node) && !self.is_out(node) && !self.dead.contains(&node)
    }

    /// Relays that can be counted on.
    fn relays(&self, plant: &Plant) -> Vec<usize> {
        let member = |n: &usize| plant.members.get(*n);
        let serves = |n: &usize| {
            member(n).is_some_and(|m| m.hostility.is_none_or(|hostility| hostility.serves()))
        };
        let choices = self.choices(plant).into_iter();
        choices.filter(serves).collect()
    }

    /// Relays that a device may choose, whatever becomes of what it sends through them.
    fn choices(&self, plant: &Plant) -> Vec<usize> {
        let is_there = |n: &usize| plant.is_relay(*n) && !self.is_out(*n) && !self.dead.contains(n);
        (0..plant.members.len()).filter(is_there).collect()
    }
}

/// Judges a flow in a plant whose network is whole and had time to settle.
pub(super) fn expected(plant: &Plant, now: &Circumstances, from: usize, to: usize) -> Expected {
    let permitted = match (plant.members.get(from), plant.members.get(to)) {
        (Some(a), Some(b)) => a.may_reach(b),
        _ => false,
    };
    if !plant.are_peers(from, to) || now.is_out(from) != now.is_out(to) {
        return Expected::Refused;
    }
    if !permitted || !now.is_in(plant, from) || !now.is_in(plant, to) || is_robbed(plant, from, to)
    {
        return Expected::Open;
    }
    if finds(plant, from, to) {
        return Expected::Reaches;
    }
    let relays = now.relays(plant);
    let choices = now.choices(plant);
    let near: Vec<usize> = relays_of(plant, &choices, from);
    let far: Vec<usize> = relays_of(plant, &choices, to);
    let joins = |a, b| relays.contains(&a) && relays.contains(&b) && are_joined(plant, a, b);
    if !is_joined_whatever_they_choose(&near, &far, joins) {
        return Expected::Open;
    }
    let near = relays_of(plant, &relays, from);
    match near.iter().any(|relay| far.contains(relay)) {
        true => Expected::ReachesRelayed,
        false => Expected::ReachesOverTwo,
    }
}

// The choices below are pairs.
const _: () = assert!(HOME_RELAYS == 2);

/// Whether what comes to one relay can go on to the other, or need not.
fn are_joined(plant: &Plant, a: usize, b: usize) -> bool {
    a == b || finds(plant, a, b) || finds(plant, b, a)
}

/// Whether two devices are joined by relays, whichever [`HOME_RELAYS`] of those in its reach each keeps.
fn is_joined_whatever_they_choose(
    near: &[usize],
    far: &[usize],
    joins: impl Fn(usize, usize) -> bool,
) -> bool {
    let strangers = |chosen: &[usize]| {
        let stranger = |b: &&usize| !chosen.iter().any(|a| joins(*a, **b));
        far.iter().filter(stranger).count()
    };
    if near.is_empty() || far.is_empty() {
        return false;
    }
    let kept = HOME_RELAYS.min(far.len());
    let pairs = near.iter().enumerate().flat_map(|(place, a)| {
        let others = near.iter().skip(place + 1);
        others.map(|b| vec![*a, *b])
    });
    let choices: Vec<Vec<usize>> = match near {
        [only] => vec![vec![*only]],
        _ => pairs.collect(),
    };
    choices.iter().all(|chosen| strangers(chosen) < kept)
}

/// Whether somebody shows the key of one of the two: who is met first holds it, at each device.
fn is_robbed(plant: &Plant, from: usize, to: usize) -> bool {
    let victim = plant.members.iter().find_map(|m| match m.hostility {
        Some(super::hostile::Hostility::SharesKey(victim)) => Some(victim),
        _ => None,
    });
    victim.is_some_and(|victim| victim == from || victim == to)
}

/// Those of some relays that a device can begin with.
fn relays_of(plant: &Plant, relays: &[usize], node: usize) -> Vec<usize> {
    let found = relays.iter().filter(|relay| finds(plant, node, **relay));
    found.copied().collect()
}

/// Whether gossip must reach a device: it takes part, and a relay that can be counted on is in its reach.
pub(super) fn must_learn(plant: &Plant, now: &Circumstances, node: usize) -> bool {
    let robbed = is_robbed(plant, node, node);
    let relays = now.relays(plant);
    let near = relays_of(plant, &relays, node);
    now.is_in(plant, node) && !robbed && near.iter().any(|relay| *relay != node)
}

/// Whether the first datagram of one device finds the other without help.
fn finds(plant: &Plant, from: usize, to: usize) -> bool {
    let (near, far) = (plant.site(from), plant.site(to));
    if near == far {
        return true;
    }
    let sealed = plant.place(from) == Place::Sealed;
    !sealed && !plant.is_blocked(near, far) && plant.place(to) == Place::Open
}
