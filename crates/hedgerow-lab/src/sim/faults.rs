//! What goes wrong, and when: drawn from the seed before the run begins.

use std::time::Duration;

use hedgerow_model::Mono;

use super::plant::{Place, Plant};
use super::random::Random;

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// A device loses power.
    Dies(usize),
    /// It comes back, with its disk or with an empty one.
    Returns(usize, Disk),
    /// Its clock is wrong by so many seconds, and it knows that something is wrong.
    ClockJumps(usize, i64),
    /// It takes another WireGuard key.
    TakesKey(usize),
    /// A site's router starts anew.
    Rebinds(usize),
    /// A site is cut off.
    Cut(usize),
    /// It is joined again.
    Joined(usize),
    /// Datagrams get lost, doubled and late everywhere.
    Storm,
    /// That is over.
    Calm,
    /// The controller ends.
    ControllerDies,
    /// It is back.
    ControllerReturns,
    /// The operator revokes a device.
    Revoked(usize),
    /// A program looks whether the reference is right.
    Probe,
    /// It must have seen by now.
    Judged,
    /// The controller is gone; a person gives one device a signed list that revokes another.
    HandsRevocations,
    /// And one that puts another in quarantine.
    HandsStates,
    /// Everyone must have learnt of both.
    Learnt,
    /// Programs talk without a pause.
    Streams,
    /// The relay that carries most of that loses power.
    RelayDies,
    /// They must have gone on.
    Streamed,
    /// That relay is back, and everyone is released from quarantine.
    Released,
}

/// What a device finds on its disk when it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Disk {
    /// All that was written.
    Kept,
    /// Nothing.
    Lost,
}

/// One round: things break, are mended, settle, and are judged; then, in a whole network, the controller
/// dies, lists are given by hand, and a relay dies under load.
const ROUND: Duration = Duration::from_secs(900);
const BREAKING: Duration = Duration::from_secs(300);
const MENDED: Duration = Duration::from_secs(360);
const PROBED: Duration = Duration::from_secs(520);
/// Whoever came back with an empty disk is known to others by a key that it does not have any more: a
/// tunnel tries that for 90 s, and only then its peer is looked for anew.
const JUDGED: Duration = Duration::from_secs(700);
/// What happens once the controller is gone, and when.
const DARK: [(Duration, Fault); 9] = [
    (Duration::from_secs(705), Fault::ControllerDies),
    (Duration::from_secs(715), Fault::HandsRevocations),
    (Duration::from_secs(735), Fault::HandsStates),
    (Duration::from_secs(765), Fault::Learnt),
    (Duration::from_secs(770), Fault::Streams),
    (Duration::from_secs(785), Fault::RelayDies),
    (Duration::from_secs(830), Fault::Streamed),
    (Duration::from_secs(840), Fault::ControllerReturns),
    (Duration::from_secs(840), Fault::Released),
];

/// Draws the faults of a run, in their order.
pub(super) fn draw(plant: &Plant, length: Duration, random: &mut Random) -> Vec<(Mono, Fault)> {
    let mut all = Vec::new();
    let mut start = Mono::ZERO + Duration::from_secs(30);
    while start + ROUND <= Mono::ZERO + length {
        round(plant, start, random, &mut all);
        start = start + ROUND;
    }
    all.sort();
    all
}

fn round(plant: &Plant, start: Mono, random: &mut Random, all: &mut Vec<(Mono, Fault)>) {
    let nodes = plant.members.len();
    let mended = start + MENDED;
    let some = |per_mille: usize| (nodes * per_mille).div_ceil(1000);
    for _ in 0..some(50) {
        let (node, at) = (random.below(nodes), start + random.up_to(BREAKING));
        let disk = match random.chance(200) {
            true => Disk::Lost,
            false => Disk::Kept,
        };
        all.push((at, Fault::Dies(node)));
        let back = match random.chance(500) {
            true => at + random.up_to(Duration::from_secs(90)),
            false => mended,
        };
        all.push((back.min(mended), Fault::Returns(node, disk)));
    }
    for _ in 0..some(20) {
        let (node, at) = (random.below(nodes), start + random.up_to(BREAKING));
        let wrong = match random.chance(500) {
            true => -1_795_262_400,
            false => 174 * 365 * 86_400,
        };
        all.push((at, Fault::ClockJumps(node, wrong)));
        all.push((mended, Fault::ClockJumps(node, 0)));
    }
    for _ in 0..some(30) {
        let at = start + random.up_to(BREAKING);
        all.push((at, Fault::TakesKey(random.below(nodes))));
    }
    for (site, place) in plant.places.iter().enumerate() {
        if *place != Place::Open && random.chance(300) {
            all.push((start + random.up_to(BREAKING), Fault::Rebinds(site)));
        }
        if random.chance(150) {
            let at = start + random.up_to(BREAKING);
            all.push((at, Fault::Cut(site)));
            let until = at + random.up_to(Duration::from_secs(240));
            all.push((until.min(mended), Fault::Joined(site)));
        }
    }
    let (storm, down) = (random.up_to(BREAKING), random.up_to(BREAKING));
    all.push((start + storm, Fault::Storm));
    all.push((
        mended.min(start + storm + Duration::from_secs(60)),
        Fault::Calm,
    ));
    all.push((start + down, Fault::ControllerDies));
    all.push((mended, Fault::ControllerReturns));
    for _ in 0..some(4) {
        let at = start + random.up_to(MENDED);
        all.push((at, Fault::Revoked(random.below(nodes))));
    }
    all.push((start + PROBED, Fault::Probe));
    all.push((start + JUDGED, Fault::Judged));
    all.extend(DARK.map(|(after, fault)| (start + after, fault)));
}
