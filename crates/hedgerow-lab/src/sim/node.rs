//! One device: the product's mesh and tunnel machines, with a disk, a clock and a policy around them.
//!
//! It does what the agent's shell does: what the mesh wants of the tunnel becomes a command, what the tunnel
//! reports goes to the mesh. Nothing here decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::Result;
use hedgerow_identity::Verified;
use hedgerow_identity::clock::TrustedClock;
use hedgerow_identity::standing::Standing;
use hedgerow_linux::tunnel::core::{Core, CoreConfig, Handled, OVERHEAD_BYTES, Output as Wire};
use hedgerow_linux::tunnel::limits::INITIATIONS_PER_SECOND;
use hedgerow_linux::tunnel::message::HEADER_BYTES;
use hedgerow_linux::tunnel::{Command, MTU_DEFAULT, PeerStatus, PrivateKey, Report, Secrecy, Slot};
use hedgerow_mesh::items::{Item, ItemKind};
use hedgerow_mesh::psk::{PostQuantum, PskUse};
use hedgerow_mesh::{Admission, Memory, Mesh, Output, Removal, Resolved, TunnelOrder, View};
use hedgerow_model::address::{Overlay, Underlay};
use hedgerow_model::id::{DeviceId, SiteName};
use hedgerow_model::path::{Path, is_relay};
use hedgerow_model::statement::{PeerQuery, RevocationList, States, Ticket};
use hedgerow_model::{Mono, Now, Wall};

use super::broken::Broken;
use super::domain::{Device, Domain, NOON};
use super::hostile::Hostility;
use super::network;
use super::packet::{PACKET_BYTES, Packet, pack, unpack};
use super::plant::{Member, Plant};
use super::random::Random;
use crate::translate;

/// How often the trusted-time floor is written, as by the agent.
const FLOOR_EVERY: Duration = Duration::from_secs(300);
/// With so many relays at home, no more are asked for.
const RELAYS_ENOUGH: usize = 2;
/// Bytes around a message inside of the tunnel: UDP and IP, header and tag.
const MESSAGE_OVERHEAD_BYTES: usize = 28 + 32;

/// What a device wants of the world.
#[derive(Debug)]
pub(super) enum Effect {
    /// Send a datagram from its port.
    Send(SocketAddr, Vec<u8>),
    /// Pass on a frame.
    Forward(SocketAddr, Vec<u8>),
    /// Ask the controller.
    Resolve(PeerQuery),
    /// A packet came out of the tunnel.
    Deliver(Packet),
    /// A peer was removed.
    Removed(DeviceId, Removal),
    /// Gossip brought a newer list.
    Learnt,
}

struct Life {
    mesh: Mesh,
    core: Core,
}

/// A device, alive or not.
pub(super) struct Node {
    pub(super) number: usize,
    pub(super) device: Device,
    site: SiteName,
    secrecy: Secrecy,
    broken: Option<Broken>,
    pub(super) hostility: Option<Hostility>,
    life: Option<Life>,
    disk: BTreeMap<DeviceId, Vec<u8>>,
    floor: (Option<Wall>, Mono),
    clock: TrustedClock,
    pub(super) standing: Standing,
    /// Seconds by which the system's clock is wrong.
    pub(super) wrong: i64,
    /// How often it was started: answers to a former life go nowhere.
    pub(super) boots: u32,
    /// When it is looked after next, as the queue knows it.
    pub(super) wakes: Mono,
    /// Relays through which it is reached.
    pub(super) home: Vec<DeviceId>,
    /// Peers with whom a pre-shared key was agreed in this life.
    pub(super) keyed: BTreeSet<DeviceId>,
    /// The pre-shared keys that were agreed in this life and are to be used, the last one last.
    pub(super) agreed: BTreeMap<DeviceId, Vec<[u8; 32]>>,
    /// Bytes of membership and items that it sent.
    pub(super) gossip_bytes: u64,
    /// The key of its first start.
    pub(super) first_secret: [u8; 32],
    random: Random,
}

impl Node {
    pub(super) fn new(
        number: usize,
        device: Device,
        member: &Member,
        mut random: Random,
    ) -> Result<Self> {
        let site = SiteName::new(&format!("site-{}", member.site))?;
        Ok(Self {
            number,
            device,
            standing: Standing::new(Some(site.clone())),
            site,
            secrecy: match member.is_strict {
                true => Secrecy::PostQuantum,
                false => Secrecy::Classical,
            },
            broken: None,
            hostility: member.hostility,
            life: None,
            disk: BTreeMap::new(),
            floor: (None, Mono::ZERO),
            clock: TrustedClock::new(Wall::from_secs(NOON - 86_400), None, Mono::ZERO),
            wrong: 0,
            boots: 0,
            wakes: Mono::NEVER,
            home: Vec::new(),
            keyed: BTreeSet::new(),
            agreed: BTreeMap::new(),
            gossip_bytes: 0,
            first_secret: random.bytes(),
            random,
        })
    }

    /// The same with one part broken.
    pub(super) fn broken(self, broken: Option<Broken>) -> Self {
        Self { broken, ..self }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.life.is_some()
    }

    fn now(&self, mono: Mono) -> Now {
        let system = Wall(
            true_wall(mono)
                .0
                .saturating_add_signed(self.wrong.saturating_mul(1000)),
        );
        self.clock.now(system, mono)
    }

    fn secret(&mut self) -> PrivateKey {
        let is_fixed = self.boots == 1 || matches!(self.hostility, Some(Hostility::SharesKey(_)));
        PrivateKey::from_bytes(match is_fixed {
            true => self.first_secret,
            false => self.random.bytes(),
        })
    }

    /// Starts, with what is on the disk. A spoofer's tunnel lets packets in another's name out.
    pub(super) fn start(&mut self, domain: &Domain, plant: &Plant, mono: Mono) -> Result<()> {
        self.boots += 1;
        self.home.clear();
        self.keyed.clear();
        self.agreed.clear();
        self.clock = TrustedClock::new(Wall::from_secs(NOON - 86_400), self.floor.0, mono);
        let now = self.now(mono);
        let mut mesh = Mesh::new(self.random.bytes());
        for bytes in self.disk.values() {
            mesh.handle_memory(Memory::decode(bytes)?);
        }
        if self.secrecy == Secrecy::PostQuantum {
            mesh.set_post_quantum(PostQuantum::Strict);
        }
        let secret = self.secret();
        let own = self.device.bind(domain, secret.public(), now)?;
        let mut entropy = self.random.fork();
        let core = CoreConfig {
            addresses: match self.hostility {
                Some(Hostility::Spoofs(victim)) => domain.addresses(victim),
                _ => self.device.addresses,
            },
            mtu: MTU_DEFAULT,
            private_key: secret,
            wall_floor: now.wall,
            initiations_per_second: INITIATIONS_PER_SECOND,
        };
        let core = Core::new(
            core,
            Box::new(move |bytes| {
                entropy.fill(bytes);
                Ok(())
            }),
        );
        self.floor = (Some(Wall::from_secs(own.binding.sequence)), mono);
        let view = View {
            trust: &domain.trust,
            standing: &self.standing,
            now,
        };
        mesh.handle_own(own, view)?;
        let at = Underlay(network::local_address(plant, self.number));
        mesh.handle_local_addresses(vec![at], &domain.pools, view);
        self.life = Some(Life { mesh, core });
        self.share(domain, mono);
        self.tell_where(domain, at, mono)
    }

    /// Hands on the lists that are in force.
    fn share(&mut self, domain: &Domain, mono: Mono) {
        let revocations = self.standing.revocations().map(|l| l.bytes().to_vec());
        let states = self.standing.states().map(|l| l.bytes().to_vec());
        let lists = [
            (ItemKind::Revocations, revocations),
            (ItemKind::States, states),
        ];
        for (kind, bytes) in lists {
            if let Some(bytes) = bytes {
                self.hand_on(kind, &bytes, domain, mono);
            }
        }
    }

    /// What the mesh refuses to hand on stays in force here, as in the agent.
    fn hand_on(&mut self, kind: ItemKind, bytes: &[u8], domain: &Domain, mono: Mono) {
        self.with_mesh(domain, mono, |mesh, view| {
            mesh.handle_item(kind, bytes, view).unwrap_or_default()
        });
    }

    fn tell_where(&mut self, domain: &Domain, at: Underlay, mono: Mono) -> Result<()> {
        let record = self.device.record(at)?;
        self.hand_on(ItemKind::Endpoints, &record, domain, mono);
        Ok(())
    }

    /// Loses power.
    pub(super) fn stop(&mut self) {
        self.life = None;
        self.home.clear();
        self.keyed.clear();
        self.wakes = Mono::NEVER;
    }

    pub(super) fn lose_disk(&mut self) {
        self.disk.clear();
        self.standing = Standing::new(Some(self.site.clone()));
    }

    /// Takes another WireGuard key.
    pub(super) fn take_key(&mut self, domain: &Domain, plant: &Plant, mono: Mono) -> Result<()> {
        let now = self.now(mono);
        let secret = self.secret();
        let Some(life) = &mut self.life else {
            return Ok(());
        };
        let own = self.device.bind(domain, secret.public(), now)?;
        self.floor = (Some(Wall::from_secs(own.binding.sequence)), mono);
        let command = Command::SetIdentityKey {
            slot: Slot::Current,
            secret: Some(secret),
        };
        life.core.handle_command(command, now);
        let view = View {
            trust: &domain.trust,
            standing: &self.standing,
            now,
        };
        life.mesh.handle_own(own, view)?;
        let at = Underlay(network::local_address(plant, self.number));
        self.tell_where(domain, at, mono)
    }

    /// Says anew where it is, though it is where it was: what only a broken device does.
    pub(super) fn chatter(&mut self, domain: &Domain, at: Underlay, mono: Mono) -> Result<()> {
        if self.broken == Some(Broken::Chatter) {
            self.device.sequence += 1;
            self.tell_where(domain, at, mono)?;
        }
        Ok(())
    }

    /// Hears the controller: what time it is.
    pub(super) fn hear_time(&mut self, mono: Mono) {
        self.clock.handle_present(true_wall(mono), mono);
        if mono.since(self.floor.1) >= FLOOR_EVERY {
            self.floor = (Some(self.clock.floor(mono)), mono);
        }
    }

    /// Takes a list of revocations from wherever; returns whether it was news.
    pub(super) fn take_revocations(
        &mut self,
        domain: &Domain,
        list: &Verified<RevocationList>,
        mono: Mono,
    ) -> Result<bool> {
        if list.version <= self.standing.revocation_version() {
            return Ok(false);
        }
        self.standing.adopt_revocations(list.clone())?;
        if self.broken != Some(Broken::Revocation) {
            self.with_mesh(domain, mono, |mesh, view| {
                mesh.handle_standing_changed(view)
            });
        }
        self.share(domain, mono);
        Ok(true)
    }

    /// Takes a list of states from wherever; returns whether it was news.
    pub(super) fn take_states(
        &mut self,
        domain: &Domain,
        states: &Verified<States>,
        mono: Mono,
    ) -> Result<bool> {
        if states.revision <= self.standing.states_revision() {
            return Ok(false);
        }
        self.standing.adopt_states(states.clone())?;
        let contained = self.standing.state(self.device.id).is_some();
        let broken = self.broken;
        self.with_mesh(domain, mono, |mesh, view| {
            if broken != Some(Broken::Revocation) {
                mesh.handle_standing_changed(view);
            }
            mesh.handle_policy_changed();
            // In quarantine, policy grants nothing with anybody.
            let peers = mesh.status().peers;
            for peer in peers.iter().filter(|_| contained) {
                mesh.handle_admitted(peer.device, Admission::Denied, view);
            }
        });
        self.share(domain, mono);
        Ok(true)
    }

    /// Takes the relays that the controller names, while it lacks some.
    pub(super) fn handle_relays_named(&mut self, domain: &Domain, relays: &[DeviceId], mono: Mono) {
        if self.home.len() < RELAYS_ENOUGH {
            self.with_mesh(domain, mono, |mesh, view| {
                mesh.handle_relays_named(relays, view);
            });
        }
    }

    /// Returns where it thinks that it may be reached.
    pub(super) fn candidates(&self) -> Vec<Underlay> {
        let life = self.life.as_ref();
        life.map(|l| l.mesh.own_candidates()).unwrap_or_default()
    }

    pub(super) fn handle_resolved(
        &mut self,
        domain: &Domain,
        query: PeerQuery,
        answer: Option<Resolved>,
        mono: Mono,
    ) {
        self.with_mesh(domain, mono, |mesh, view| {
            mesh.handle_resolved(query, answer, view);
        });
    }

    fn with_mesh<T>(
        &mut self,
        domain: &Domain,
        mono: Mono,
        f: impl FnOnce(&mut Mesh, View<'_>) -> T,
    ) -> Option<T> {
        let now = self.now(mono);
        let life = self.life.as_mut()?;
        let view = View {
            trust: &domain.trust,
            standing: &self.standing,
            now,
        };
        Some(f(&mut life.mesh, view))
    }

    /// Takes a datagram from the network; returns the packet in it, or where a relay passes it on.
    pub(super) fn handle_datagram(
        &mut self,
        from: SocketAddr,
        mut bytes: Vec<u8>,
        mono: Mono,
    ) -> Option<Effect> {
        let now = self.now(mono);
        let life = self.life.as_mut()?;
        match life.core.handle_datagram(Underlay(from), &mut bytes, now) {
            Handled::Deliver(range) => unpack(bytes.get(range)?).map(Effect::Deliver),
            Handled::Forward(to) => Some(Effect::Forward(to.0, bytes)),
            Handled::Done => None,
        }
    }

    /// A program sends; returns what goes out at once, if a session lives.
    pub(super) fn send(
        &mut self,
        packet: Packet,
        src: IpAddr,
        dst: IpAddr,
        mono: Mono,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let now = self.now(mono);
        let life = self.life.as_mut()?;
        let mut buffer = vec![0; PACKET_BYTES + HEADER_BYTES + OVERHEAD_BYTES];
        pack(packet, src, dst, buffer.get_mut(HEADER_BYTES..)?)?;
        let sealed = life
            .core
            .handle_inner_packet(&mut buffer, PACKET_BYTES, now)?;
        buffer.truncate(sealed.len);
        Some((sealed.to.0, buffer))
    }

    /// Begins a handshake with every peer.
    pub(super) fn renegotiate(&mut self, mono: Mono) {
        let now = self.now(mono);
        if let Some(life) = &mut self.life {
            for peer in life.mesh.status().peers {
                let device = peer.device;
                life.core.handle_command(Command::Rekey { device }, now);
            }
        }
    }

    /// Lets time pass where something is due.
    pub(super) fn handle_timeout(&mut self, domain: &Domain, mono: Mono) {
        let now = self.now(mono);
        let Some(life) = &mut self.life else {
            return;
        };
        if life.core.deadline().0 <= mono {
            life.core.handle_timeout(now);
        }
        if life.mesh.deadline().0 <= mono {
            let view = View {
                trust: &domain.trust,
                standing: &self.standing,
                now,
            };
            life.mesh.handle_timeout(view);
        }
    }

    pub(super) fn deadline(&self) -> Mono {
        let Some(life) = &self.life else {
            return Mono::NEVER;
        };
        life.core.deadline().0.min(life.mesh.deadline().0)
    }

    /// Does the next thing that mesh or tunnel want; `None` when nothing is left.
    pub(super) fn step(
        &mut self,
        domain: &Domain,
        plant: &Plant,
        mono: Mono,
    ) -> Result<Option<Option<Effect>>> {
        let Some(life) = self.life.as_mut() else {
            return Ok(None);
        };
        if let Some(output) = life.mesh.poll() {
            return self.obey(output, domain, plant, mono).map(Some);
        }
        let Some(wire) = life.core.poll() else {
            return Ok(None);
        };
        Ok(Some(match wire {
            Wire::Send { to, bytes, .. } => Some(Effect::Send(to.0, bytes)),
            Wire::PassOn { to, bytes, .. } => Some(Effect::Forward(to.0, bytes)),
            Wire::Deliver(bytes) => unpack(&bytes).map(Effect::Deliver),
            Wire::Report(report) => {
                if let Report::Established {
                    device, psk: true, ..
                } = &report
                {
                    self.keyed.insert(*device);
                }
                self.with_mesh(domain, mono, |mesh, view| {
                    translate::report_to(mesh, report, view);
                });
                None
            }
        }))
    }

    /// Breaks what a part that is broken on purpose would.
    fn break_order(&self, output: &mut Output, domain: &Domain, plant: &Plant) {
        if self.broken == Some(Broken::Sources)
            && let Output::SetPeer { addresses, .. } = output
            && let Some(peer) = Domain::number(addresses.v6.into())
            && let Some(Hostility::Spoofs(victim)) =
                plant.members.get(peer).and_then(|m| m.hostility)
        {
            *addresses = domain.addresses(victim);
        }
    }

    fn obey(
        &mut self,
        mut output: Output,
        domain: &Domain,
        plant: &Plant,
        mono: Mono,
    ) -> Result<Option<Effect>> {
        let mut effect = None;
        self.break_order(&mut output, domain, plant);
        match &output {
            Output::Resolve { query } => return Ok(Some(Effect::Resolve(*query))),
            Output::Admit { device, ticket } => {
                let word = self.admission(plant, ticket);
                self.with_mesh(domain, mono, |mesh, view| {
                    mesh.handle_admitted(*device, word, view);
                });
            }
            Output::Remember(memory) => {
                self.disk.insert(memory.device, memory.encode());
            }
            Output::Forget(device) => {
                self.disk.remove(device);
            }
            Output::HomeRelays { relays } => self.home.clone_from(relays),
            Output::ItemArrived { item, .. } => return self.take_item(item, domain, mono),
            Output::RemovePeer { device, reason, .. } => {
                self.keyed.remove(device);
                effect = Some(Effect::Removed(*device, *reason));
            }
            Output::Tunnel(TunnelOrder::SendMessage { bytes, .. })
                if matches!(bytes.first(), Some(4 | 5)) =>
            {
                let bytes = bytes.len() + MESSAGE_OVERHEAD_BYTES;
                self.gossip_bytes += u64::try_from(bytes).unwrap_or_default();
            }
            Output::Tunnel(TunnelOrder::SetPsk {
                device, psk, what, ..
            }) if *what != PskUse::Accept => {
                self.agreed.entry(*device).or_default().push(*psk.expose());
            }
            Output::Tunnel(_)
            | Output::Send { .. }
            | Output::SetPeer { .. }
            | Output::ForgetOldKey { .. }
            | Output::Release { .. }
            | Output::Reject { .. }
            | Output::PathChanged { .. }
            | Output::PathLost { .. }
            | Output::OpenLink { .. }
            | Output::CloseLink { .. }
            | Output::PskFailed { .. }
            | Output::ItemForked { .. }
            | Output::Member { .. }
            | Output::Refused { .. } => {}
        }
        let (now, mut secrecy) = (self.now(mono), self.secrecy);
        if self.broken == Some(Broken::Waiting) {
            secrecy = Secrecy::Classical;
        }
        if let Some(life) = &mut self.life {
            for command in translate::commands(output, secrecy) {
                life.core.handle_command(command, now);
            }
        }
        Ok(effect)
    }

    /// The policy's word: what the plant grants to whoever is not in quarantine; and relay and guest are
    /// peers whatever it grants.
    fn admission(&self, plant: &Plant, ticket: &Ticket) -> Admission {
        let contained = |device| self.standing.state(device).is_some();
        let granted = Domain::number(ticket.addresses.v6.into())
            .is_some_and(|other| plant.are_peers(self.number, other));
        let open = granted && !contained(ticket.id) && !contained(self.device.id);
        let open = open || self.broken == Some(Broken::Policy);
        match open || is_relay(&ticket.labels) || plant.is_relay(self.number) {
            true => Admission::Granted,
            false => Admission::Denied,
        }
    }

    fn take_item(&mut self, item: &Item, domain: &Domain, mono: Mono) -> Result<Option<Effect>> {
        let is_news = match item {
            Item::Revocations(list) => self.take_revocations(domain, list, mono)?,
            Item::States(states) => self.take_states(domain, states, mono)?,
            Item::Endpoints { .. } | Item::BundleHead(_) | Item::TreeHead(_) | Item::Beacon(_) => {
                false
            }
        };
        Ok(is_news.then_some(Effect::Learnt))
    }

    /// Returns what the tunnel holds.
    pub(super) fn tunnel_peers(&mut self, mono: Mono) -> Vec<PeerStatus> {
        let now = self.now(mono);
        let Some(life) = &mut self.life else {
            return Vec::new();
        };
        let (reply, answer) = sync_channel(1);
        life.core.handle_command(Command::ListPeers { reply }, now);
        answer.try_recv().unwrap_or_default()
    }

    /// Returns where the peers are with whom a session lives.
    pub(super) fn endpoints(&mut self, mono: Mono) -> BTreeMap<DeviceId, Option<Path>> {
        let list = self.tunnel_peers(mono).into_iter();
        let live = list.filter(|p| p.session_age.is_some());
        live.map(|p| (p.device, p.endpoint)).collect()
    }

    pub(super) fn status(&self) -> Option<hedgerow_mesh::Status> {
        self.life.as_ref().map(|life| life.mesh.status())
    }

    pub(super) fn gossip_status(&self) -> Option<hedgerow_mesh::GossipStatus> {
        self.life.as_ref().map(|life| life.mesh.gossip_status())
    }

    pub(super) fn routes(&self, device: DeviceId) -> Vec<hedgerow_mesh::path::RouteStatus> {
        let life = self.life.as_ref();
        life.map(|l| l.mesh.routes(device)).unwrap_or_default()
    }

    /// Returns what relays answered to wishes that they did not fulfil.
    pub(super) fn relays_refused(&self) -> BTreeMap<hedgerow_mesh::relay::Verdict, u64> {
        let life = self.life.as_ref();
        life.map(|l| l.mesh.relay_status().refused)
            .unwrap_or_default()
    }

    pub(super) fn is_strict(&self) -> bool {
        self.secrecy == Secrecy::PostQuantum
    }
}

/// Returns the time that a right clock shows.
fn true_wall(mono: Mono) -> Wall {
    Wall::from_secs(NOON) + mono.since(Mono::ZERO)
}

/// Returns a device's address in the overlay.
pub(super) fn overlay(device: &Device) -> Overlay {
    Overlay(device.addresses.v6.into())
}
