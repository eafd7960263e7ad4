//! A trust domain, its devices and a network between them, all from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use hedgerow_identity::key::{SoftwareEd25519, SoftwareP256, SoftwareP384};
use hedgerow_identity::statement::{
    sign_binding, sign_endpoints, sign_revocations, sign_states, sign_ticket,
};
use hedgerow_identity::trust::{root_set_digest, sign_manifest};
use hedgerow_model::Wall;
use hedgerow_model::address::{OverlayAddresses, domain_prefix};
use hedgerow_model::id::{DeviceName, Labels, Revision, SiteName, TrustDomain};
use hedgerow_model::path::Path;
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{
    EndpointRecord, Issuer, Manifest, P256Public, P384Public, Revocation, RevocationList, Revoked,
    Role, RoleKey, Root, States,
};
use rand_core::{Infallible, TryCryptoRng, TryRng};

use super::super::*;
use crate::output::Output;

/// 2026-11-21, about noon.
pub(super) const NOON: u64 = 1_795_262_400;
pub(super) const DAY: u64 = 86_400;
const LATENCY: Duration = Duration::from_millis(20);

pub(super) struct Rng(pub u64);

impl Rng {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.draw().to_le_bytes()[0])
    }
}

impl TryRng for Rng {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self
            .draw()
            .to_le_bytes()
            .first_chunk()
            .copied()
            .map_or(0, u32::from_le_bytes))
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.draw())
    }
    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        dst.fill_with(|| self.draw().to_le_bytes()[0]);
        Ok(())
    }
}
impl TryCryptoRng for Rng {}

/// Who may speak for a trust domain.
pub(super) struct Domain {
    pub(super) trust: Trust,
    pub(super) issuer: SoftwareP256,
    revoker: SoftwareEd25519,
    policy: SoftwareEd25519,
    prefix: [u8; 6],
}

impl Domain {
    pub(super) fn new(name: &str, rng: &mut Rng) -> Self {
        let root = SoftwareP384::generate(rng).unwrap();
        let issuer = SoftwareP256::generate(rng).unwrap();
        let revoker = SoftwareEd25519::from_seed(&rng.bytes());
        let policy = SoftwareEd25519::from_seed(&rng.bytes());
        let roots = vec![Root {
            key: P384Public(root.public().0),
            certificate: vec![],
        }];
        let genesis = root_set_digest(&roots);
        let manifest = Manifest {
            version: 1,
            trust_domain: TrustDomain::new(name).unwrap(),
            previous: None,
            issued_secs: NOON - DAY,
            roots,
            threshold: 1,
            issuers: vec![Issuer {
                key: P256Public(issuer.public().0),
                certificate: vec![],
                site: None,
                not_after_secs: NOON + 400 * 365 * DAY,
            }],
            role_keys: vec![
                RoleKey {
                    role: Role::Policy,
                    key: policy.public(),
                },
                RoleKey {
                    role: Role::Revocation,
                    key: revoker.public(),
                },
            ],
            genesis,
        };
        let signed = sign_manifest(&manifest, &[&root]).unwrap();
        let trust = Trust::pinned(genesis, &signed).unwrap();
        let octets = match domain_prefix(&genesis).address() {
            std::net::IpAddr::V6(a) => a.octets(),
            std::net::IpAddr::V4(_) => unreachable!("the domain's prefix is IPv6"),
        };
        Self {
            trust,
            issuer,
            revoker,
            policy,
            prefix: *octets.first_chunk().unwrap(),
        }
    }

    pub(super) fn addresses(&self, number: u8) -> OverlayAddresses {
        let mut octets = [0; 16];
        octets[..6].copy_from_slice(&self.prefix);
        octets[15] = number;
        OverlayAddresses {
            v6: Ipv6Addr::from(octets),
            v4: Some(Ipv4Addr::new(100, 80, 0, number)),
        }
    }

    pub(super) fn revocations(
        &self,
        version: u64,
        devices: &[DeviceId],
        min_epochs: &[(DeviceId, u64)],
    ) -> Verified<RevocationList> {
        let entry = |device: &DeviceId| Revocation {
            what: Revoked::Device(*device),
            at_secs: NOON,
            drop_after_secs: NOON + 400 * DAY,
            reason: "test".to_owned(),
        };
        let mut list = RevocationList {
            version: Revision {
                timeline: 1,
                number: version,
            },
            issued_secs: NOON,
            entries: devices.iter().map(entry).collect(),
            min_epochs: min_epochs.to_vec(),
        };
        list.entries.sort();
        list.min_epochs.sort();
        let bytes = sign_revocations(&list, &self.revoker).unwrap();
        self.trust.verify_revocations(&bytes).unwrap()
    }

    pub(super) fn states(
        &self,
        revision: u64,
        entries: &[(DeviceId, DeviceState)],
    ) -> Verified<States> {
        let states = States {
            revision: Revision {
                timeline: 1,
                number: revision,
            },
            entries: entries.to_vec(),
        };
        self.trust
            .verify_states(&sign_states(&states, &self.policy).unwrap())
            .unwrap()
    }
}

/// One device's secrets and statements.
pub(super) struct Device {
    pub(super) identity: SoftwareP256,
    pub(super) introduction: IntroductionSecret,
    pub(super) body: Ticket,
    pub(super) ticket: Vec<u8>,
    pub(super) binding: Vec<u8>,
}

impl Device {
    pub(super) fn new(domain: &Domain, number: u8, rng: &mut Rng) -> Self {
        let identity = SoftwareP256::generate(rng).unwrap();
        let introduction = IntroductionSecret::from_bytes(rng.bytes());
        let body = Ticket {
            id: DeviceId(rng.bytes()),
            name: DeviceName::new(&format!("device-{number}")).unwrap(),
            site: SiteName::new("plant-one").unwrap(),
            identity_key: identity.public(),
            introduction_key: introduction.public(),
            labels: "role=sensor,zone=hall-three".parse::<Labels>().unwrap(),
            addresses: domain.addresses(number),
            epoch: 1,
            not_after_secs: NOON + 7 * DAY,
        };
        let mut device = Self {
            identity,
            introduction,
            body,
            ticket: vec![],
            binding: vec![],
        };
        device.sign(domain);
        device.rotate(NOON, rng);
        device
    }

    /// Signs the body again, as the controller does after a change.
    pub(super) fn sign(&mut self, domain: &Domain) {
        self.ticket = sign_ticket(&self.body, &domain.issuer).unwrap();
    }

    /// Takes a new WireGuard key.
    pub(super) fn rotate(&mut self, sequence: u64, rng: &mut Rng) {
        let binding = Binding {
            id: self.body.id,
            wireguard_key: X25519Public(rng.bytes()),
            sequence,
            not_after_secs: sequence + 2 * DAY,
        };
        self.binding = sign_binding(&binding, &self.identity).unwrap();
    }

    /// Signs where the device is, with its ticket: what relays hand on.
    pub(super) fn record(&self, sequence: u64, endpoint: &str, relay: DeviceId) -> Vec<u8> {
        let record = EndpointRecord {
            id: self.body.id,
            sequence,
            not_after_secs: sequence + 3600,
            endpoints: vec![Underlay(endpoint.parse().unwrap())],
            relays: vec![relay],
        };
        let record = sign_endpoints(&record, &self.identity).unwrap();
        crate::items::record_body(&self.ticket, &record)
    }

    pub(super) fn own(&self, domain: &Domain, now: Now) -> OwnIdentity {
        let key = self.identity.public();
        let ticket = domain
            .trust
            .verify_own_ticket(&self.ticket, &key, None)
            .unwrap();
        let binding =
            hedgerow_identity::statement::verify_binding(&self.binding, &ticket, now).unwrap();
        OwnIdentity {
            ticket,
            binding,
            introduction: self.introduction.clone(),
            previous_introduction: None,
        }
    }
}

/// What the tunnel of a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tunnel {
    pub(super) key: X25519Public,
    pub(super) old_key: Option<X25519Public>,
    pub(super) addresses: OverlayAddresses,
    pub(super) endpoint: Option<Path>,
}

pub(super) struct Node {
    pub(super) mesh: Mesh,
    pub(super) device: Device,
    pub(super) standing: Standing,
    pub(super) at: Underlay,
    pub(super) tunnel: BTreeMap<DeviceId, Tunnel>,
    pub(super) disk: BTreeMap<DeviceId, Memory>,
    pub(super) log: Vec<Output>,
    pub(super) denied: BTreeSet<DeviceId>,
    pub(super) wall_offset: i64,
}

/// What is on its way.
type Flight = (Mono, u64, Underlay, Underlay, Vec<u8>);

pub(super) struct World {
    pub(super) domain: Domain,
    pub(super) nodes: Vec<Node>,
    pub(super) now: Mono,
    pub(super) rng: Rng,
    flights: BTreeSet<Flight>,
    pub(super) sent: Vec<(Underlay, Underlay, Vec<u8>)>,
    /// Percent.
    pub(super) loss: u64,
    pub(super) duplicates: u64,
    pub(super) reorder: bool,
    pub(super) controller: bool,
    serial: u64,
}

impl World {
    pub(super) fn new(seed: u64, nodes: u8) -> Self {
        let mut rng = Rng(seed);
        let domain = Domain::new("plant.example", &mut rng);
        let mut world = Self {
            domain,
            nodes: vec![],
            now: Mono::ZERO + Duration::from_secs(1000),
            rng,
            flights: BTreeSet::new(),
            sent: vec![],
            loss: 0,
            duplicates: 0,
            reorder: false,
            controller: true,
            serial: 0,
        };
        for number in 1..=nodes {
            let device = Device::new(&world.domain, number, &mut world.rng);
            world.join(device, number);
        }
        world
    }

    pub(super) fn join(&mut self, device: Device, number: u8) -> usize {
        let at = Underlay(format!("192.0.2.{number}:7117").parse().unwrap());
        let node = Node {
            mesh: Mesh::new(self.rng.bytes()),
            standing: Standing::new(Some(device.body.site.clone())),
            device,
            at,
            tunnel: BTreeMap::new(),
            disk: BTreeMap::new(),
            log: vec![],
            denied: BTreeSet::new(),
            wall_offset: 0,
        };
        self.nodes.push(node);
        let index = self.nodes.len() - 1;
        self.renew(index);
        index
    }

    pub(super) fn id(&self, node: usize) -> DeviceId {
        self.nodes[node].device.body.id
    }

    pub(super) fn address(&self, node: usize) -> Overlay {
        Overlay(self.nodes[node].device.body.addresses.v6.into())
    }

    pub(super) fn now_of(&self, node: usize) -> Now {
        let true_wall = Wall::from_secs(NOON) + self.now.since(Mono::ZERO);
        let wall = true_wall
            .0
            .saturating_add_signed(self.nodes[node].wall_offset * 1000);
        Now {
            mono: self.now,
            wall: Wall(wall),
            wall_is_trusted: self.nodes[node].wall_offset == 0,
        }
    }

    /// Calls one of the machine's inputs and carries out what comes out.
    pub(super) fn with(&mut self, node: usize, f: impl FnOnce(&mut Mesh, View<'_>)) {
        let now = self.now_of(node);
        let n = &mut self.nodes[node];
        f(
            &mut n.mesh,
            View {
                trust: &self.domain.trust,
                standing: &n.standing,
                now,
            },
        );
        self.drain(node);
    }

    pub(super) fn renew(&mut self, node: usize) {
        let own = self.nodes[node].device.own(&self.domain, self.now_of(node));
        self.with(node, |mesh, view| mesh.handle_own(own, view).unwrap());
    }

    pub(super) fn want(&mut self, from: usize, to: usize) {
        let address = self.address(to);
        self.with(from, |mesh, view| mesh.handle_wanted(address, view));
    }

    /// Starts a node again with nothing but its disk, and with a new WireGuard key.
    pub(super) fn reboot(&mut self, node: usize) {
        let seed = self.rng.bytes();
        let secs = self.now_of(node).wall.secs();
        let n = &mut self.nodes[node];
        n.mesh = Mesh::new(seed);
        n.tunnel.clear();
        for memory in n.disk.values() {
            let memory = Memory::decode(&memory.encode()).unwrap();
            n.mesh.handle_memory(memory);
        }
        n.device.rotate(secs, &mut self.rng);
        self.renew(node);
    }

    pub(super) fn deliver(&mut self, from: Underlay, to: usize, bytes: &[u8]) {
        self.with(to, |mesh, view| {
            mesh.handle_datagram(from.into(), bytes, view)
        });
    }

    fn drain(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].mesh.poll() {
            self.nodes[node].log.push(output.clone());
            match output {
                Output::Resolve { query } => self.resolve(node, query),
                Output::Send { to, bytes } => self.send(node, to.to, bytes),
                Output::Admit { device, .. } => {
                    let denied = self.nodes[node].denied.contains(&device);
                    let word = if denied {
                        Admission::Denied
                    } else {
                        Admission::Granted
                    };
                    self.with(node, |mesh, view| mesh.handle_admitted(device, word, view));
                }
                Output::SetPeer {
                    device,
                    wireguard_key,
                    addresses,
                    endpoint,
                } => {
                    let tunnel = &mut self.nodes[node].tunnel;
                    let before = tunnel.remove(&device);
                    let rotated = before.as_ref().is_some_and(|t| t.key != wireguard_key);
                    let old_key = before
                        .as_ref()
                        .and_then(|t| if rotated { Some(t.key) } else { t.old_key });
                    let endpoint = before.and_then(|t| t.endpoint).or(endpoint);
                    tunnel.insert(
                        device,
                        Tunnel {
                            key: wireguard_key,
                            old_key,
                            addresses,
                            endpoint,
                        },
                    );
                }
                Output::ForgetOldKey { device } => {
                    self.nodes[node].tunnel.get_mut(&device).unwrap().old_key = None;
                }
                Output::RemovePeer { device, .. } => {
                    self.nodes[node].tunnel.remove(&device);
                }
                Output::Remember(memory) => {
                    self.nodes[node].disk.insert(memory.device, memory);
                }
                Output::Forget(device) => {
                    self.nodes[node].disk.remove(&device);
                }
                Output::Release { .. }
                | Output::Reject { .. }
                | Output::Refused { .. }
                | Output::PskFailed { .. }
                | Output::ItemArrived { .. }
                | Output::ItemForked { .. }
                | Output::Member { .. }
                | Output::Tunnel(_)
                | Output::PathChanged { .. }
                | Output::PathLost { .. }
                | Output::HomeRelays { .. }
                | Output::OpenLink { .. }
                | Output::CloseLink { .. } => {}
            }
        }
    }

    fn resolve(&mut self, node: usize, query: PeerQuery) {
        let found = self.nodes.iter().find(|n| match query {
            PeerQuery::Device(device) => n.device.body.id == device,
            PeerQuery::Address(address) => n.device.body.addresses.contains(address),
        });
        let answer = found.filter(|_| self.controller).map(|n| Resolved {
            ticket: n.device.ticket.clone(),
            endpoints: vec![n.at],
            relays: vec![],
        });
        self.with(node, |mesh, view| mesh.handle_resolved(query, answer, view));
    }

    fn send(&mut self, node: usize, to: Underlay, bytes: Vec<u8>) {
        let from = self.nodes[node].at;
        self.sent.push((from, to, bytes.clone()));
        let copies = 1 + usize::from(self.rng.below(100) < self.duplicates);
        for _ in 0..copies {
            if self.rng.below(100) < self.loss {
                continue;
            }
            let extra = if self.reorder { self.rng.below(300) } else { 0 };
            self.serial += 1;
            let at = self.now + LATENCY + Duration::from_millis(extra);
            self.flights
                .insert((at, self.serial, from, to, bytes.clone()));
        }
    }

    /// Lets time pass, in the order in which things happen.
    pub(super) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let flight = self.flights.first().map(|flight| flight.0);
            let timers = self.nodes.iter().map(|n| n.mesh.deadline().0);
            let next = timers.chain(flight).min().unwrap_or(Mono::NEVER);
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if flight == Some(next) {
                let (_, _, from, to, bytes) = self.flights.pop_first().unwrap();
                if let Some(node) = self.nodes.iter().position(|n| n.at == to) {
                    self.deliver(from, node, &bytes);
                }
            } else {
                for node in 0..self.nodes.len() {
                    self.with(node, |mesh, view| mesh.handle_timeout(view));
                }
            }
        }
        self.now = end;
    }

    /// Returns whether a WireGuard handshake between the two would succeed now.
    pub(super) fn linked(&self, a: usize, b: usize) -> bool {
        let key = |node: usize| {
            let own = self.nodes[node].mesh.own.as_ref().unwrap();
            own.identity.binding.wireguard_key
        };
        let holds = |x: usize, y: usize| {
            self.nodes[x]
                .tunnel
                .get(&self.id(y))
                .is_some_and(|t| t.key == key(y))
        };
        let reaches = |x: usize, y: usize| {
            let tunnel = self.nodes[x].tunnel.get(&self.id(y));
            tunnel.is_some_and(|t| t.endpoint == Some(self.nodes[y].at.into()))
        };
        holds(a, b) && holds(b, a) && (reaches(a, b) || reaches(b, a))
    }

    /// Does what the tunnels do when they can: handshakes, which set the endpoints.
    pub(super) fn establish(&mut self, a: usize, b: usize) {
        assert!(self.linked(a, b));
        for (x, y) in [(a, b), (b, a)] {
            let (device, at) = (self.id(y), self.nodes[y].at.into());
            self.nodes[x].tunnel.get_mut(&device).unwrap().endpoint = Some(at);
            self.with(x, |mesh, view| {
                mesh.handle_session(device, Session::Established(at), view);
            });
        }
    }

    pub(super) fn refusals(&self, node: usize) -> BTreeMap<Refusal, u64> {
        self.nodes[node].mesh.status().refused
    }

    pub(super) fn refused(&self, node: usize, reason: Refusal) -> u64 {
        self.refusals(node).get(&reason).copied().unwrap_or(0)
    }

    pub(super) fn sent_by(&self, node: usize) -> usize {
        self.sent
            .iter()
            .filter(|(from, _, _)| *from == self.nodes[node].at)
            .count()
    }
}
