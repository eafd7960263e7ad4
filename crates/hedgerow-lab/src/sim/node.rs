//! One device: the product's mesh and tunnel machines, with a disk, a clock and a policy around them.
//!
//! It does what the agent's shell does: what the mesh wants of the tunnel becomes a command, what the tunnel
//! reports goes to the mesh. Nothing here decides.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::Result;
use hedgerow_identity::clock::TrustedClock;
use hedgerow_identity::standing::Standing;
use hedgerow_linux::tunnel::core::{Core, CoreConfig, Handled, OVERHEAD_BYTES, Output as Wire};
use hedgerow_linux::tunnel::limits::INITIATIONS_PER_SECOND;
use hedgerow_linux::tunnel::message::HEADER_BYTES;
use hedgerow_linux::tunnel::{
    Command, Cut, MTU_DEFAULT, PeerConfig, PresharedKey, PrivateKey, PskSlot, Rejection, Report,
    Roaming, Secrecy, Slot, inner,
};
use hedgerow_mesh::psk::PskUse;
use hedgerow_mesh::{
    Admission, Memory, Mesh, Output, Resolved, Session, TunnelOrder, Unreachable, View,
};
use hedgerow_model::address::{Overlay, Underlay};
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;
use hedgerow_model::ruleset::{Profile, Verdict};
use hedgerow_model::statement::PeerQuery;
use hedgerow_model::{Mono, Now, Wall};

use super::domain::{Device, Domain, NOON};
use super::plant::Plant;
use super::random::Random;

/// Bytes of an inner packet: an IPv6 and a UDP header, and what a program says.
const PACKET_BYTES: usize = 40 + 8 + 8;
/// How often the trusted-time floor is written, as by the agent.
const FLOOR_EVERY: Duration = Duration::from_secs(300);

/// What a device wants of the world.
#[derive(Debug)]
pub(super) enum Effect {
    /// Send a datagram from its port.
    Send(SocketAddr, Vec<u8>),
    /// Ask the controller.
    Resolve(PeerQuery),
    /// A packet came out of the tunnel.
    Deliver(Packet),
}

/// What a program said to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) is_answer: bool,
    pub(super) serial: u32,
}

struct Life {
    mesh: Mesh,
    core: Core,
}

/// A device, alive or not.
pub(super) struct Node {
    pub(super) number: usize,
    pub(super) device: Device,
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
    random: Random,
}

impl Node {
    pub(super) fn new(number: usize, device: Device, site: Standing, random: Random) -> Self {
        Self {
            number,
            device,
            life: None,
            disk: BTreeMap::new(),
            floor: (None, Mono::ZERO),
            clock: TrustedClock::new(Wall::from_secs(NOON - 86_400), None, Mono::ZERO),
            standing: site,
            wrong: 0,
            boots: 0,
            wakes: Mono::NEVER,
            random,
        }
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

    /// Starts, with what is on the disk.
    pub(super) fn start(&mut self, domain: &Domain, mono: Mono) -> Result<()> {
        self.boots += 1;
        self.clock = TrustedClock::new(Wall::from_secs(NOON - 86_400), self.floor.0, mono);
        let now = self.now(mono);
        let mut mesh = Mesh::new(self.random.bytes());
        for bytes in self.disk.values() {
            mesh.handle_memory(Memory::decode(bytes)?);
        }
        let secret = PrivateKey::from_bytes(self.random.bytes());
        let own = self.device.bind(domain, secret.public(), now)?;
        let mut entropy = self.random.fork();
        let core = CoreConfig {
            addresses: self.device.addresses,
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
        self.life = Some(Life { mesh, core });
        Ok(())
    }

    /// Loses power.
    pub(super) fn stop(&mut self) {
        self.life = None;
        self.wakes = Mono::NEVER;
    }

    pub(super) fn lose_disk(&mut self) {
        self.disk.clear();
    }

    /// Takes another WireGuard key.
    pub(super) fn take_key(&mut self, domain: &Domain, mono: Mono) -> Result<()> {
        let now = self.now(mono);
        let Some(life) = &mut self.life else {
            return Ok(());
        };
        let secret = PrivateKey::from_bytes(self.random.bytes());
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
        Ok(())
    }

    /// Hears the controller: what time it is.
    pub(super) fn hear_time(&mut self, mono: Mono) {
        self.clock.handle_present(true_wall(mono), mono);
        if mono.since(self.floor.1) >= FLOOR_EVERY {
            self.floor = (Some(self.clock.floor(mono)), mono);
        }
    }

    pub(super) fn handle_standing_changed(&mut self, domain: &Domain, mono: Mono) {
        self.with_mesh(domain, mono, |mesh, view| {
            mesh.handle_standing_changed(view)
        });
    }

    pub(super) fn handle_resolved(
        &mut self,
        domain: &Domain,
        query: PeerQuery,
        answer: Option<Resolved>,
        mono: Mono,
    ) {
        self.with_mesh(domain, mono, |mesh, view| {
            mesh.handle_resolved(query, answer, view)
        });
    }

    fn with_mesh(&mut self, domain: &Domain, mono: Mono, f: impl FnOnce(&mut Mesh, View<'_>)) {
        let now = self.now(mono);
        let Some(life) = &mut self.life else {
            return;
        };
        let view = View {
            trust: &domain.trust,
            standing: &self.standing,
            now,
        };
        f(&mut life.mesh, view);
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
            Handled::Forward(to) => Some(Effect::Send(to.0, bytes)),
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
    ) -> Option<Option<Effect>> {
        let now = self.now(mono);
        let life = self.life.as_mut()?;
        let view = View {
            trust: &domain.trust,
            standing: &self.standing,
            now,
        };
        if let Some(output) = life.mesh.poll() {
            return Some(match output {
                Output::Resolve { query } => Some(Effect::Resolve(query)),
                Output::Admit { device, ticket } => {
                    let granted = Domain::number(ticket.addresses.v6.into())
                        .is_some_and(|other| plant.are_peers(self.number, other));
                    let word = match granted {
                        true => Admission::Granted,
                        false => Admission::Denied,
                    };
                    life.mesh.handle_admitted(device, word, view);
                    None
                }
                Output::Remember(memory) => {
                    self.disk.insert(memory.device, memory.encode());
                    None
                }
                Output::Forget(device) => {
                    self.disk.remove(&device);
                    None
                }
                output @ (Output::Send { .. }
                | Output::SetPeer { .. }
                | Output::Tunnel(_)
                | Output::ForgetOldKey { .. }
                | Output::Release { .. }
                | Output::Reject { .. }
                | Output::RemovePeer { .. }
                | Output::PathChanged { .. }
                | Output::PathLost { .. }
                | Output::HomeRelays { .. }
                | Output::OpenLink { .. }
                | Output::CloseLink { .. }
                | Output::PskFailed { .. }
                | Output::ItemArrived { .. }
                | Output::ItemForked { .. }
                | Output::Member { .. }
                | Output::Refused { .. }) => {
                    commands(output)
                        .into_iter()
                        .for_each(|c| life.core.handle_command(c, now));
                    None
                }
            });
        }
        match life.core.poll()? {
            Wire::Send { to, bytes, .. } | Wire::PassOn { to, bytes, .. } => {
                Some(Some(Effect::Send(to.0, bytes)))
            }
            Wire::Deliver(bytes) => Some(unpack(&bytes).map(Effect::Deliver)),
            Wire::Report(report) => {
                report_to(&mut life.mesh, report, view);
                Some(None)
            }
        }
    }

    /// Returns where the peers are with whom a session lives.
    pub(super) fn endpoints(&mut self, mono: Mono) -> BTreeMap<DeviceId, Option<Path>> {
        let now = self.now(mono);
        let Some(life) = &mut self.life else {
            return BTreeMap::new();
        };
        let (reply, answer) = sync_channel(1);
        life.core.handle_command(Command::ListPeers { reply }, now);
        let list = answer.try_recv().unwrap_or_default();
        let live = list.into_iter().filter(|p| p.session_age.is_some());
        live.map(|p| (p.device, p.endpoint)).collect()
    }

    pub(super) fn status(&self) -> Option<hedgerow_mesh::Status> {
        self.life.as_ref().map(|life| life.mesh.status())
    }
}

/// Returns the time that a right clock shows.
fn true_wall(mono: Mono) -> Wall {
    Wall::from_secs(NOON) + mono.since(Mono::ZERO)
}

/// Translates what the mesh wants of the tunnel, as the agent does.
fn commands(output: Output) -> Vec<Command> {
    match output {
        Output::Send { to, bytes } => vec![Command::SendDatagram { to, bytes }],
        Output::SetPeer {
            device,
            wireguard_key,
            addresses,
            endpoint,
        } => {
            let set = Command::SetPeer(PeerConfig {
                device,
                slot: Slot::Current,
                public_key: wireguard_key,
                addresses,
                endpoint,
                psk: None,
                secrecy: Secrecy::Classical,
                roaming: Roaming::Report,
                keepalive: None,
            });
            // Who knows where the other is speaks first: the other may not know where we are.
            let connect = endpoint.map(|_| Command::Connect { device });
            [Some(set), connect].into_iter().flatten().collect()
        }
        Output::ForgetOldKey { device } => vec![Command::ForgetPeerKey {
            device,
            slot: Slot::Previous,
        }],
        Output::Tunnel(order) => vec![order_of(order)],
        Output::Release { address } => vec![Command::Release {
            dst: address,
            profile: Box::new(everything()),
        }],
        Output::Reject { address, reason } => vec![Command::RejectQueued {
            dst: address,
            why: match reason {
                Unreachable::NotAdmitted => Rejection::Prohibited,
                Unreachable::NotReady
                | Unreachable::Own
                | Unreachable::Unresolved
                | Unreachable::Refused
                | Unreachable::NoEndpoint
                | Unreachable::Unanswered
                | Unreachable::Busy => Rejection::Unreachable,
            },
        }],
        Output::RemovePeer { device, .. } => vec![Command::RemovePeer { device }],
        Output::Resolve { .. }
        | Output::Admit { .. }
        | Output::PathChanged { .. }
        | Output::PathLost { .. }
        | Output::HomeRelays { .. }
        | Output::OpenLink { .. }
        | Output::CloseLink { .. }
        | Output::PskFailed { .. }
        | Output::ItemArrived { .. }
        | Output::ItemForked { .. }
        | Output::Member { .. }
        | Output::Refused { .. }
        | Output::Remember(_)
        | Output::Forget(_) => Vec::new(),
    }
}

fn order_of(order: TunnelOrder) -> Command {
    match order {
        TunnelOrder::SendMessage {
            device,
            via,
            bytes,
            measures_mtu,
        } => Command::SendMessage {
            device,
            via,
            bytes,
            cut: match measures_mtu {
                true => Cut::Refused,
                false => Cut::Allowed,
            },
        },
        TunnelOrder::MovePeer { device, path } => Command::MovePeer { device, path },
        TunnelOrder::SetPathMtu { device, mtu } => Command::SetPathMtu { device, mtu },
        TunnelOrder::SetPsk {
            device,
            keys,
            psk,
            what,
        } => Command::SetPsk {
            device,
            keys: Some(keys),
            psk: Some(PresharedKey::from_bytes(*psk.expose())),
            slot: match what {
                PskUse::Accept => PskSlot::Accepted,
                PskUse::Use | PskUse::UseNow => PskSlot::Used,
            },
        },
        TunnelOrder::Rekey { device } => Command::Rekey { device },
        TunnelOrder::SetRelay { session, from, to } => Command::SetRelay { session, from, to },
        TunnelOrder::ForgetRelay { session } => Command::ForgetRelay { session },
    }
}

/// Tells the mesh what the tunnel saw, as the agent does.
fn report_to(mesh: &mut Mesh, report: Report, view: View<'_>) {
    match report {
        Report::Datagram { from, bytes } => mesh.handle_datagram(from, &bytes, view),
        Report::Wanted { dst } => mesh.handle_wanted(dst, view),
        Report::Message {
            device,
            from,
            bytes,
        } => mesh.handle_message(device, from, &bytes, view),
        Report::Established {
            device,
            endpoint,
            psk,
        } => {
            mesh.handle_session(device, Session::Established(endpoint), view);
            mesh.handle_agreed(device, psk, view);
        }
        Report::Roamed { device, endpoint } => {
            mesh.handle_session(device, Session::Established(endpoint), view);
        }
        Report::Idle { device } => mesh.handle_session(device, Session::Idle, view),
        Report::Unanswered { device } => mesh.handle_session(device, Session::Unanswered, view),
        Report::HandshakeFromUnknown { public_key, .. } => {
            mesh.handle_unknown_handshake(public_key, view);
        }
        Report::Heard { device, from } => mesh.handle_heard(device, from, view),
        Report::Active { device } => mesh.handle_active(device, view),
        Report::Silent { device } => mesh.handle_silent(device, view),
        Report::Spoofed { .. } | Report::PeerRefused { .. } | Report::Stopped { .. } => {}
    }
}

/// Packets between devices that policy joins pass: which of them is another machine's business.
fn everything() -> Profile {
    Profile {
        inbound: Vec::new(),
        outbound: Vec::new(),
        inbound_default: Verdict::Accept,
        outbound_default: Verdict::Accept,
    }
}

/// Writes a packet: UDP over IPv6, without checksums.
fn pack(packet: Packet, src: IpAddr, dst: IpAddr, out: &mut [u8]) -> Option<()> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (src, dst) else {
        return None;
    };
    let mut bytes = Vec::with_capacity(PACKET_BYTES);
    let payload = u16::try_from(PACKET_BYTES - 40).ok()?;
    bytes.extend([0x60, 0, 0, 0]);
    bytes.extend(payload.to_be_bytes());
    bytes.extend([17, 64]);
    bytes.extend(src.octets());
    bytes.extend(dst.octets());
    bytes.extend(40_000u16.to_be_bytes());
    bytes.extend(5000u16.to_be_bytes());
    bytes.extend(payload.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(packet.serial.to_be_bytes());
    bytes.extend([u8::from(packet.is_answer), 0, 0, 0]);
    out.get_mut(..PACKET_BYTES)?.copy_from_slice(&bytes);
    Some(())
}

/// Reads a packet; refusals of our own tunnel are none.
fn unpack(bytes: &[u8]) -> Option<Packet> {
    let ends = inner::decode(bytes)?;
    let words = bytes.get(48..PACKET_BYTES)?;
    if bytes.get(6) != Some(&17) {
        return None;
    }
    let (serial, rest) = words.split_first_chunk::<4>()?;
    Some(Packet {
        from: Domain::number(ends.src)?,
        to: Domain::number(ends.dst)?,
        is_answer: rest.first() == Some(&1),
        serial: u32::from_be_bytes(*serial),
    })
}

/// Returns a device's address in the overlay.
pub(super) fn overlay(device: &Device) -> Overlay {
    Overlay(device.addresses.v6.into())
}
