use std::collections::BTreeSet;

use hedgerow_identity::key::{SoftwareEd25519, SoftwareP256, SoftwareP384};
use hedgerow_identity::standing::Standing;
use hedgerow_identity::statement::{
    sign_beacon, sign_bundle_head, sign_endpoints, sign_revocations, sign_states, sign_ticket,
    sign_tree_head,
};
use hedgerow_identity::trust::{Trust, root_set_digest, sign_manifest};
use hedgerow_model::address::{OverlayAddresses, Underlay, domain_prefix};
use hedgerow_model::id::{DeviceName, Labels, SiteName, TrustDomain};
use hedgerow_model::message::MESSAGE_BYTES_MAX;
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{
    Beacon, BundleHead, EndpointRecord, Issuer, Manifest, Revocation, RevocationList, Revoked,
    Role, RoleKey, Root, States, Ticket, TreeHead, X25519Public,
};
use hedgerow_model::{Now, Wall};
use rand_core::{Infallible, TryCryptoRng, TryRng};

use super::*;
use crate::membership::{self, Member, Membership};

mod attacks;

/// 2026-11-21, about noon.
const NOON: u64 = 1_795_262_400;
const SECOND: Duration = Duration::from_secs(1);

struct Draws(Random);

impl TryRng for Draws {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_be_bytes(*self.0.bytes().first_chunk().unwrap()))
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_be_bytes(*self.0.bytes().first_chunk().unwrap()))
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.fill_with(|| self.0.bytes()[0]);
        Ok(())
    }
}

impl TryCryptoRng for Draws {}

/// A trust domain with all of its role keys.
struct Domain {
    trust: Trust,
    standing: Standing,
    issuer: SoftwareP256,
    policy: SoftwareEd25519,
    revocation: SoftwareEd25519,
    checkpoint: SoftwareEd25519,
}

fn revision(number: u64) -> Revision {
    Revision {
        timeline: 1,
        number,
    }
}

impl Domain {
    fn new(seed: u8) -> Self {
        let mut rng = Draws(Random::new([seed; 32]));
        let root = SoftwareP384::generate(&mut rng).unwrap();
        let issuer = SoftwareP256::generate(&mut rng).unwrap();
        let role = |n: u8| SoftwareEd25519::from_seed(&[seed ^ n; 32]);
        let (policy, revocation, checkpoint) = (role(101), role(102), role(103));
        let roots = vec![Root {
            key: root.public(),
            certificate: vec![],
        }];
        let genesis = root_set_digest(&roots);
        let key = |role, key: &SoftwareEd25519| RoleKey {
            role,
            key: key.public(),
        };
        let manifest = Manifest {
            version: 1,
            trust_domain: TrustDomain::new("plant.example").unwrap(),
            previous: None,
            issued_secs: NOON,
            roots,
            threshold: 1,
            issuers: vec![Issuer {
                key: issuer.public(),
                certificate: vec![],
                site: None,
                not_after_secs: NOON * 2,
            }],
            role_keys: vec![
                key(Role::Policy, &policy),
                key(Role::Revocation, &revocation),
                key(Role::Checkpoint, &checkpoint),
            ],
            genesis,
        };
        let signed = sign_manifest(&manifest, &[&root]).unwrap();
        Self {
            trust: Trust::pinned(genesis, &signed).unwrap(),
            standing: Standing::new(Some(SiteName::new("s1").unwrap())),
            issuer,
            policy,
            revocation,
            checkpoint,
        }
    }

    fn view(&self, now: Mono) -> View<'_> {
        View {
            trust: &self.trust,
            standing: &self.standing,
            now: Now {
                mono: now,
                wall: Wall::from_secs(NOON) + now.0,
                wall_is_trusted: true,
            },
        }
    }

    fn revocations(&self, number: u64, entries: u8) -> Vec<u8> {
        let list = RevocationList {
            version: revision(number),
            issued_secs: NOON,
            entries: (0..entries)
                .map(|n| Revocation {
                    what: Revoked::Device(DeviceId([n; 16])),
                    at_secs: NOON,
                    drop_after_secs: NOON * 2,
                    reason: "stolen from the gate house on a Tuesday".to_owned(),
                })
                .collect(),
            min_epochs: vec![],
        };
        sign_revocations(&list, &self.revocation).unwrap()
    }

    fn states(&self, number: u64) -> Vec<u8> {
        let states = States {
            revision: revision(number),
            entries: vec![(DeviceId([1; 16]), DeviceState::Quarantine)],
        };
        sign_states(&states, &self.policy).unwrap()
    }

    fn beacon(&self, secs: u64) -> Vec<u8> {
        let beacon = Beacon {
            issued_secs: NOON + secs,
            manifest: 1,
            revocations: revision(1),
        };
        sign_beacon(&beacon, &self.issuer).unwrap()
    }

    /// The record of a device that has the number in its address.
    fn record(&self, id: DeviceId, number: u8, sequence: u64) -> Vec<u8> {
        let identity = SoftwareP256::generate(&mut Draws(Random::new([number; 32]))).unwrap();
        let std::net::IpAddr::V6(prefix) = domain_prefix(&self.trust.manifest().genesis).address()
        else {
            panic!("an overlay prefix is IPv6");
        };
        let ticket = Ticket {
            id,
            name: DeviceName::new(&format!("device-{number}")).unwrap(),
            site: SiteName::new("s1").unwrap(),
            identity_key: identity.public(),
            introduction_key: X25519Public([number; 32]),
            labels: Labels::default(),
            addresses: OverlayAddresses {
                v6: (u128::from(prefix) | u128::from(number)).into(),
                v4: None,
            },
            epoch: 1,
            not_after_secs: NOON + 86_400,
        };
        let record = EndpointRecord {
            id,
            sequence: NOON + sequence,
            not_after_secs: NOON + sequence + 3600,
            endpoints: vec![Underlay(([192, 0, 2, number], 7117).into())],
            relays: vec![],
        };
        record_body(
            &sign_ticket(&ticket, &self.issuer).unwrap(),
            &sign_endpoints(&record, &identity).unwrap(),
        )
    }

    fn verify(&self, kind: ItemKind, bytes: &[u8], now: Mono) -> Item {
        Item::verify(kind, bytes, self.view(now)).unwrap()
    }
}

fn device(number: u16) -> DeviceId {
    let mut id = [9; 16];
    id[..2].copy_from_slice(&number.to_be_bytes());
    DeviceId(id)
}

fn number(device: DeviceId) -> usize {
    usize::from(u16::from_be_bytes(*device.0.first_chunk().unwrap()))
}

/// One device: its items and, where it is a relay, its membership.
struct Node {
    items: Items,
    membership: Option<Membership>,
    links: BTreeSet<usize>,
    sent_bytes: u64,
    arrived: Vec<(Mono, ItemKey)>,
    forked: Vec<ItemKey>,
}

#[derive(Clone, Copy)]
enum Channel {
    Items,
    Membership,
}

/// From, to, and what.
type Parcel = (usize, usize, Channel, Vec<u8>);

/// Devices, their tunnels, and a network that delays and loses.
struct World {
    domain: Domain,
    nodes: Vec<Node>,
    relays: usize,
    way: BTreeMap<(Mono, u64), Parcel>,
    sent: u64,
    random: Random,
    loss_percent: u8,
    now: Mono,
    dead: BTreeSet<usize>,
    /// When each node wants time to pass, and the same by time.
    wakes: Vec<Mono>,
    by_time: BTreeSet<(Mono, usize)>,
}

/// IPv4 and UDP outside, WireGuard's header and tag, our header, padded to 16 bytes.
fn on_the_wire(content: &[u8]) -> u64 {
    let padded = (content.len() + 3).next_multiple_of(16);
    u64::try_from(padded + 28 + 32).unwrap()
}

impl World {
    fn new(count: u16, relays: usize, seed: u8) -> Self {
        let now = Mono::ZERO + SECOND * 100;
        let nodes = (0..count).map(|n| {
            let [high, low] = n.to_be_bytes();
            let mut bytes = [seed; 32];
            (bytes[0], bytes[1]) = (high, low);
            let mut items = Items::new(bytes);
            let is_relay = usize::from(n) < relays;
            items.handle_own(device(n), is_relay);
            let own = Member {
                device: device(n),
                boot: NOON,
            };
            Node {
                items,
                membership: is_relay.then(|| Membership::new(own, bytes)),
                links: BTreeSet::new(),
                sent_bytes: 0,
                arrived: vec![],
                forked: vec![],
            }
        });
        Self {
            domain: Domain::new(1),
            nodes: nodes.collect(),
            relays,
            way: BTreeMap::new(),
            sent: 0,
            random: Random::new([seed; 32]),
            loss_percent: 0,
            now,
            dead: BTreeSet::new(),
            wakes: vec![Mono::NEVER; usize::from(count)],
            by_time: BTreeSet::new(),
        }
    }

    fn link(&mut self, a: usize, b: usize) {
        for (own, other) in [(a, b), (b, a)] {
            let is_relay = other < self.relays;
            let peer = device(u16::try_from(other).unwrap());
            let now = self.now;
            let node = &mut self.nodes[own];
            node.links.insert(other);
            node.items.handle_session(peer, is_relay, now);
            if let Some(membership) = node.membership.as_mut().filter(|_| is_relay) {
                membership.handle_session(peer, now);
            }
            self.drain(own);
        }
    }

    /// All relays know each other; each device has one relay and one neighbour.
    fn plant(&mut self) {
        let count = self.nodes.len();
        for n in 0..count {
            if n < self.relays {
                (0..n).for_each(|other| self.link(n, other));
            } else {
                self.link(n, n % self.relays);
                if n + 1 < count && n % 2 == 0 {
                    self.link(n, n + 1);
                }
            }
        }
    }

    fn give(&mut self, n: usize, kind: ItemKind, bytes: &[u8]) {
        let item = self.domain.verify(kind, bytes, self.now);
        let now = self.now;
        self.nodes[n].items.handle_item(&item, bytes, now);
        self.drain(n);
    }

    fn drain(&mut self, n: usize) {
        while let Some(output) = self.nodes[n].items.poll() {
            match output {
                Output::Send { device, content } => {
                    self.send(n, number(device), Channel::Items, content);
                }
                Output::Arrived { item, .. } => {
                    let at = self.now;
                    self.nodes[n].arrived.push((at, item.key()));
                }
                Output::Forked { key, .. } => self.nodes[n].forked.push(key),
            }
        }
        while let Some(output) = self.nodes[n].membership.as_mut().and_then(Membership::poll) {
            if let membership::Output::Send { device, content } = output {
                self.send(n, number(device), Channel::Membership, content);
            }
        }
        self.note_wake(n);
    }

    fn send(&mut self, from: usize, to: usize, channel: Channel, content: Vec<u8>) {
        assert!(content.len() <= MESSAGE_BYTES_MAX);
        if !self.nodes[from].links.contains(&to) {
            return;
        }
        self.nodes[from].sent_bytes += on_the_wire(&content);
        self.sent += 1;
        let [draw, delay] = *self.random.bytes().first_chunk().unwrap();
        let lost = u16::from(draw) * 100 < u16::from(self.loss_percent) * 256;
        // 20 to 150 ms one way.
        let delay = 20 + u64::from(delay) * 130 / 255;
        if !lost && !self.dead.contains(&from) {
            let at = self.now + Duration::from_millis(delay);
            self.way
                .insert((at, self.sent), (from, to, channel, content));
        }
    }

    fn note_wake(&mut self, n: usize) {
        let node = &self.nodes[n];
        let membership = node.membership.as_ref();
        let at = membership.map_or(Mono::NEVER, |m| m.deadline().0);
        let at = node.items.deadline().0.min(at);
        self.by_time.remove(&(self.wakes[n], n));
        self.by_time.insert((at, n));
        self.wakes[n] = at;
    }

    fn next(&self) -> (Mono, Option<usize>) {
        let alive = |(_, n): &&(Mono, usize)| !self.dead.contains(n);
        let timer = self.by_time.iter().find(alive);
        let (timer_at, n) = timer.copied().unwrap_or((Mono::NEVER, 0));
        match self.way.first_key_value().map(|(key, _)| key.0) {
            Some(at) if at <= timer_at => (at, None),
            _ => (timer_at, Some(n)),
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let (at, node) = self.next();
            if at > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(at);
            let now = self.now;
            match node {
                Some(n) => {
                    self.nodes[n].items.handle_timeout(now);
                    if let Some(membership) = &mut self.nodes[n].membership {
                        membership.handle_timeout(now);
                    }
                    self.drain(n);
                }
                None => self.deliver(),
            }
        }
    }

    fn deliver(&mut self) {
        let Some((_, (from, to, channel, content))) = self.way.pop_first() else {
            return;
        };
        if self.dead.contains(&to) {
            return;
        }
        let peer = device(u16::try_from(from).unwrap());
        let view = self.domain.view(self.now);
        let node = &mut self.nodes[to];
        match channel {
            Channel::Items => node.items.handle_message(peer, &content, view),
            Channel::Membership => {
                if let Some(membership) = &mut node.membership {
                    let _refused = membership.handle_message(peer, &content, view.now.mono);
                }
            }
        }
        self.drain(to);
    }

    /// Hands a message to a node as if this peer had sent it.
    fn hand(&mut self, to: usize, from: usize, message: &Message<'_>) {
        let peer = device(u16::try_from(from).unwrap());
        let view = self.domain.view(self.now);
        let content = message.encode();
        self.nodes[to].items.handle_message(peer, &content, view);
        self.drain(to);
    }

    fn version(&self, n: usize, kind: ItemKind) -> u64 {
        let key = ItemKey::of_domain(kind).unwrap();
        let held = self.nodes[n].items.held.get(&key);
        held.map_or(0, |held| held.version.number)
    }

    fn refused(&self, n: usize, reason: ItemRefusal) -> u64 {
        let refused = self.nodes[n].items.refusals();
        refused.get(&reason).copied().unwrap_or(0)
    }

    fn has_record(&self, n: usize, device: DeviceId) -> bool {
        self.nodes[n]
            .items
            .bytes(ItemKey::of_device(device))
            .is_some()
    }
}

fn entry_of(item: &Item, bytes: &[u8]) -> Entry {
    Entry {
        key: item.key(),
        version: item.version(),
        hash: Digest::of(bytes),
        size: u32::try_from(bytes.len()).unwrap(),
    }
}

#[test]
fn an_item_reaches_every_device_and_is_handed_up_once() {
    let mut world = World::new(30, 3, 1);
    world.plant();
    world.run(SECOND * 5);
    let everything: Vec<(ItemKind, Vec<u8>)> = {
        let d = &world.domain;
        let head = BundleHead {
            revision: revision(7),
            hash: Digest([1; 32]),
        };
        let tree = TreeHead {
            size: 9,
            root: Digest([2; 32]),
            issued_secs: NOON,
        };
        vec![
            (ItemKind::Revocations, d.revocations(2, 200)),
            (ItemKind::States, d.states(3)),
            (ItemKind::Beacon, d.beacon(0)),
            (
                ItemKind::BundleHead,
                sign_bundle_head(&head, &d.policy).unwrap(),
            ),
            (
                ItemKind::TreeHead,
                sign_tree_head(&tree, &d.checkpoint).unwrap(),
            ),
        ]
    };
    for (kind, bytes) in &everything {
        world.give(29, *kind, bytes);
    }
    world.run(SECOND * 20);
    for n in 0..29 {
        let arrived: BTreeSet<ItemKey> =
            world.nodes[n].arrived.iter().map(|(_, key)| *key).collect();
        assert_eq!(
            arrived.len(),
            5,
            "node {n}: {:?}",
            world.nodes[n].items.refusals()
        );
        assert_eq!(world.nodes[n].arrived.len(), 5, "each once");
        assert_eq!(world.version(n, ItemKind::Revocations), 2);
    }
    assert!(
        world
            .nodes
            .iter()
            .all(|node| node.items.refusals().is_empty())
    );
}

/// The goal: idle at most 40 bytes a second for each of 200, urgent items everywhere within 5 s.
#[test]
fn two_hundred_devices_stay_within_the_budget() {
    for (relays, loss, seed) in [(10, 5, 2), (200, 0, 3)] {
        let mut world = World::new(200, relays, seed);
        world.plant();
        let first = (world.domain.revocations(1, 3), world.domain.states(1));
        world.give(0, ItemKind::Revocations, &first.0);
        world.give(0, ItemKind::States, &first.1);
        world.run(SECOND * 60);
        let before: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
        world.run(SECOND * 120);
        let after: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
        let idle = (after - before) / 120 / 200;
        world.loss_percent = loss;
        let mut times = Vec::new();
        for round in 2..4 {
            let origin = usize::from(u8::try_from(round).unwrap()) * 31;
            let list = world.domain.revocations(round, 3);
            let (began, sent) = (
                world.now,
                world.nodes.iter().map(|n| n.sent_bytes).sum::<u64>(),
            );
            world.nodes.iter_mut().for_each(|node| node.arrived.clear());
            world.give(origin, ItemKind::Revocations, &list);
            world.run(SECOND * 5);
            let cost = world.nodes.iter().map(|n| n.sent_bytes).sum::<u64>() - sent;
            assert!(cost / 200 < 5000, "{cost} bytes for one item");
            world.run(SECOND * 10);
            for (n, node) in world.nodes.iter().enumerate().filter(|(n, _)| *n != origin) {
                let (at, _) = node
                    .arrived
                    .first()
                    .unwrap_or_else(|| panic!("node {n} of {relays}"));
                times.push(at.since(began).as_millis());
            }
        }
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        assert!(idle <= 40, "{idle} B/s");
        assert!(at(99) <= 5000, "{} ms", at(99));
    }
}

#[test]
fn what_the_push_missed_the_digest_brings() {
    let mut world = World::new(12, 2, 3);
    world.plant();
    world.run(SECOND * 5);
    world.dead.insert(7);
    let list = world.domain.revocations(4, 2);
    world.give(9, ItemKind::Revocations, &list);
    world.run(SECOND * 60);
    assert_eq!(world.version(7, ItemKind::Revocations), 0);
    world.dead.clear();
    world.run(DIGEST_EVERY * 2);
    assert_eq!(world.version(7, ItemKind::Revocations), 4);
}

#[test]
fn a_body_of_many_pieces_comes_whole_over_a_bad_link() {
    let mut world = World::new(2, 0, 5);
    world.loss_percent = 15;
    world.link(0, 1);
    let list = world.domain.revocations(1, 250);
    assert!(list.len() > 15_000);
    world.give(0, ItemKind::Revocations, &list);
    world.run(SECOND * 120);
    assert_eq!(world.version(1, ItemKind::Revocations), 1);
}

#[test]
fn an_older_list_is_not_taken_and_its_sender_is_told_the_newer() {
    let mut world = World::new(2, 0, 6);
    let (old, new) = (
        world.domain.revocations(1, 1),
        world.domain.revocations(2, 1),
    );
    world.give(0, ItemKind::Revocations, &old);
    world.give(1, ItemKind::Revocations, &new);
    world.link(0, 1);
    world.run(SECOND * 10);
    assert_eq!(world.version(0, ItemKind::Revocations), 2);
    assert_eq!(world.version(1, ItemKind::Revocations), 2);
    assert!(world.nodes[1].arrived.is_empty());
    let item = world.domain.verify(ItemKind::Revocations, &old, world.now);
    let now = world.now;
    assert!(!world.nodes[1].items.handle_item(&item, &old, now));
}
