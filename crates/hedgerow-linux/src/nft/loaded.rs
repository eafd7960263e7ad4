//! What the kernel should have, as hashes to compare with what it has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::Overlay;
use hedgerow_model::ruleset::{ProfileId, Ruleset};

use super::canonical::{self, Canon, Hash};
use super::wire::message;
use super::{ELEMENTS_PER_MESSAGE_MAX, Verification, attributes_of, is_peers, peer_requests};
use crate::netlink::Request;

/// How far the kernel's idea of an element's end may lie from ours.
const EXPIRY_SLACK: Duration = Duration::from_secs(3);

/// What the kernel should have.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) generation: u64,
    pub(super) hashes: Vec<Hash>,
    pub(super) timed: Vec<(Hash, Mono)>,
    pub(super) peers: BTreeMap<Overlay, ProfileId>,
    pub(super) profiles: BTreeSet<ProfileId>,
}

impl Loaded {
    pub(super) fn new(ruleset: &Ruleset, requests: &[Request], now: Mono) -> Self {
        let mut canon = Canon::default();
        let fixed = requests.iter().filter(|r| !is_peers(r));
        fixed.for_each(|r| canon.add(r.kind() & 0xff, attributes_of(r.body())));
        let expiry = |ms| now + Duration::from_millis(ms);
        Self {
            generation: ruleset.generation,
            hashes: canon.hashes,
            timed: canon
                .timed
                .iter()
                .map(|(h, ms)| (*h, expiry(*ms)))
                .collect(),
            peers: ruleset.peers.clone(),
            profiles: ruleset.profiles.keys().copied().collect(),
        }
    }

    /// Returns the sorted hashes of what should be there, leaving out what is over or about to be.
    pub(super) fn expected(&self, now: Mono) -> Vec<Hash> {
        let mut peers = Canon::default();
        for chunk in self
            .peers
            .iter()
            .collect::<Vec<_>>()
            .chunks(ELEMENTS_PER_MESSAGE_MAX)
        {
            for request in
                peer_requests(message::NEW_ELEMENT, chunk.iter().map(|(a, p)| (**a, **p)))
            {
                peers.add(message::NEW_ELEMENT, attributes_of(request.body()));
            }
        }
        let lasting = |(_, end): &&(Hash, Mono)| *end > now + EXPIRY_SLACK;
        let mut out = peers.hashes;
        out.extend_from_slice(&self.hashes);
        out.extend(self.timed.iter().filter(lasting).map(|(h, _)| *h));
        out.sort_unstable();
        out
    }

    /// Returns the hashes that may or may not be there at this moment.
    pub(super) fn ending(&self, now: Mono) -> BTreeSet<Hash> {
        let slack = |end: Mono| end <= now + EXPIRY_SLACK && now <= end + EXPIRY_SLACK;
        let near = self.timed.iter().filter(|(_, end)| slack(*end));
        near.map(|(h, _)| *h).collect()
    }

    /// Compares what the kernel has with what it should have.
    pub(super) fn compare(&self, found: Canon, now: Mono) -> Verification {
        let (expected, ending) = (self.expected(now), self.ending(now));
        let timed = found.timed.iter().map(|(h, _)| *h);
        let mut found: Vec<_> = timed
            .filter(|h| !ending.contains(h))
            .chain(found.hashes.iter().copied())
            .collect();
        found.sort_unstable();
        let (missing, surplus) = canonical::difference(&expected, &found);
        Verification {
            expected: canonical::combine(&expected),
            found: canonical::combine(&found),
            missing,
            surplus,
        }
    }
}
