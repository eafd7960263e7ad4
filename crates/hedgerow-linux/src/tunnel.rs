//! The encrypted tunnel: WireGuard sessions between a TUN device and one UDP port.
//!
//! ```text
//!   TUN ─super-packets─▶ flows ─▶ ┌──────┐ ─leave to seal─▶ cut, seal ─trains─▶ UDP
//!                                 │ Core │
//!   TUN ◀─super-packets─ coalesce │      │ ◀──────── open ◀──────────── trains─ UDP
//!                                 └──────┘
//!                   Command ────────▲  │
//!                                      └───▶ Report
//! ```
//!
//! What the kernel hands over in one piece is decided about in one piece ([`pass`]), cut and sealed side by
//! side, and sent in one call; what comes in is put together again ([`offload`]). Packets wait by flow
//! ([`flows`]), not in one line. One thread does it all, or has super-packets sealed on lanes ([`Layout`]).
//!
//! [`core::Core`] is the protocol without I/O; [`Tunnel::start`] is the thread that moves the bytes.
//!
//! # Invariants
//!
//! - An inner packet is sent only to the peer that holds its destination address, and accepted only
//!   from the peer that holds its source address. Both tables have exact addresses, no prefixes.
//! - A peer is a device id. Its keys change under it without a packet lost: two slots for its key,
//!   two for ours.
//! - Only an authenticated transport message moves a peer's endpoint.
//! - Nothing is sent in answer to bytes that do not prove knowledge of our public key.
//! - Every table, queue and buffer has a bound, and says what it drops when full.
//!
//! # Not here
//!
//! Who may be a peer (`hedgerow-mesh`), what may pass (`crate::nft`), interface addresses and routes
//! (`crate::link`).

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use hedgerow_model::address::{Overlay, OverlayAddresses};
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::{Path, RelaySession};
use hedgerow_model::ruleset::Profile;
use hedgerow_model::statement::X25519Public;
use hedgerow_model::{Fault, Wall};
use rustix::fd::OwnedFd;
use zeroize::Zeroizing;

use crate::tun::{Offload, TunError};
use crate::udp::{Trains, UdpError};

mod agreement;
pub mod core;
pub mod flows;
mod handshakes;
pub mod inner;
mod lanes;
pub mod limits;
mod linger;
mod mac;
pub mod message;
mod noise;
pub mod offload;
mod outbox;
mod parted;
pub mod pass;
mod paths;
mod peers;
pub mod pool;
mod ready;
mod receive;
pub mod relay;
pub mod replay;
mod run;
mod send;
mod session;
mod stats;
pub mod timers;
mod train;
pub mod waiting;

pub use relay::RelayLimits;

#[cfg(test)]
mod tests;

pub use lanes::LANES_MAX;
pub use stats::Stats;

/// Commands waiting for the tunnel's thread; [`TunnelHandle::send`] says [`SendError::Full`] beyond.
pub const COMMANDS_MAX: usize = 4096;
/// Bytes of one inner packet when the configuration does not say otherwise.
pub const MTU_DEFAULT: u16 = 1420;
/// Bytes of one inner packet that every path must carry.
pub const MTU_MIN: u16 = 1280;
/// Time between two reports that a peer is heard from elsewhere.
pub const HEARD_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two reports that packets are exchanged with a peer.
pub const ACTIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Silence after a packet that is reported.
pub const SILENT_MIN: Duration = Duration::from_millis(100);
/// The same where packets go one way only, and only messages come back.
pub const SILENT_MAX: Duration = Duration::from_millis(2400);
/// The most of it while so many packets and more go into the silence: a busy stream learns soon that its path
/// is dead, and a report costs little beside it.
pub const SILENT_BUSY: Duration = Duration::from_millis(300);
/// That many.
pub const SILENT_PACKETS: u8 = 6;
/// Bytes of one inner packet that can be configured.
pub const MTU_MAX: u16 = 9000;
/// First byte of a mesh datagram, or a greater one: not WireGuard's, handed up unread.
pub const MESH_DATAGRAM_FIRST: u8 = 0x80;

/// An X25519 secret key of this device; wiped from memory when dropped.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<[u8; 32]>);

impl PrivateKey {
    /// Takes 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Returns the public half.
    pub fn public(&self) -> X25519Public {
        let secret = x25519_dalek::StaticSecret::from(*self.0);
        X25519Public(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// Lends the bytes.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A pre-shared key mixed into a peer's handshakes; wiped from memory when dropped.
#[derive(Clone)]
pub struct PresharedKey(Zeroizing<[u8; 32]>);

impl PresharedKey {
    /// Takes 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Lends the bytes.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Which of two keys that overlap during a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// The newest.
    Current,
    /// The one before, still answered.
    Previous,
}

/// What is done with a pre-shared key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PskSlot {
    /// Responses under it are taken; the one before is used. For the moment in which we do not know yet
    /// whether the peer has it.
    Accepted,
    /// It is used; responses under the one before are taken.
    Used,
}

/// How to open the tunnel.
pub struct TunnelConfig {
    /// Interface name, at most 15 bytes, e.g. `hedgerow0`.
    pub name: String,
    /// Our overlay addresses: nothing else is sent from, nothing else is delivered to.
    pub addresses: OverlayAddresses,
    /// Longest inner packet in bytes, 1280 to [`MTU_MAX`]. The interface's own MTU is set by
    /// `crate::link`.
    pub mtu: u16,
    /// UDP port of the underlay; 0 takes a free one.
    pub port: u16,
    /// Our current key.
    pub private_key: PrivateKey,
    /// Whether the interface outlives the process, with its addresses and routes.
    pub persistent: bool,
    /// Handshake timestamps are at least this, so that they rise across restarts.
    pub wall_floor: Wall,
    /// What of the kernel to use, as far as it is there.
    pub features: Features,
}

/// What the kernel can take off us. The default is all of it; less is for kernels that lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// Between us and the programs of this machine.
    pub tun: Offload,
    /// Between us and the network.
    pub trains: Trains,
    /// Which threads do the work.
    pub layout: Layout,
}

/// Which threads do the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// What suits the machine: one thread up to two processors, lanes beyond.
    #[default]
    Auto,
    /// Everything on one thread.
    One,
    /// One thread decides, receives and opens; so many others cut, seal and send, at most
    /// [`LANES_MAX`].
    Lanes(usize),
}

/// What a peer is: its key in one slot, its addresses, where it may be found.
#[derive(Clone)]
pub struct PeerConfig {
    /// Which device.
    pub device: DeviceId,
    /// Which of its keys `public_key` is. A new key in [`Slot::Current`] moves the one that was there to
    /// [`Slot::Previous`].
    pub slot: Slot,
    /// Its WireGuard key.
    pub public_key: X25519Public,
    /// Its overlay addresses; they replace the ones set before.
    pub addresses: OverlayAddresses,
    /// Where to send. Used while no session under `public_key` lives that the peer is known to have; afterwards
    /// only [`Command::MovePeer`] changes it, and the peer's own authenticated packets as `roaming` says.
    pub endpoint: Option<Path>,
    /// Mixed into handshakes from now on, as by [`Command::SetPsk`]; `None` leaves what is set.
    pub psk: Option<PresharedKey>,
    /// What may pass without a pre-shared key.
    pub secrecy: Secrecy,
    /// What an authenticated packet from another place does.
    pub roaming: Roaming,
    /// Interval at which an idle session is kept open through a NAT; `None` sends nothing when idle.
    pub keepalive: Option<Duration>,
}

/// What may pass a session that was agreed without a pre-shared key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Secrecy {
    /// Everything.
    #[default]
    Classical,
    /// Only messages between the agents; packets wait for a session under a pre-shared key, and the
    /// peer's are dropped.
    PostQuantum,
}

/// What a packet of a peer does that is authentic and comes from another place than the peer's endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Roaming {
    /// It moves the endpoint, as WireGuard has it.
    #[default]
    Follow,
    /// It is reported ([`Report::Heard`]); the endpoint moves only by [`Command::MovePeer`], or while no
    /// session lives by a handshake.
    Report,
}

/// What the tunnel is told.
pub enum Command {
    /// Puts our own key into a slot. A new [`Slot::Current`] moves the old one to
    /// [`Slot::Previous`]; `None` empties [`Slot::Previous`] and is ignored for [`Slot::Current`].
    SetIdentityKey {
        /// Which slot.
        slot: Slot,
        /// The key.
        secret: Option<PrivateKey>,
    },
    /// Adds or changes a peer. A key or address another device holds is refused and reported.
    SetPeer(PeerConfig),
    /// Empties one key slot of a peer; live sessions go on until they end by themselves.
    ForgetPeerKey {
        /// Which device.
        device: DeviceId,
        /// Which slot.
        slot: Slot,
    },
    /// Moves a peer's endpoint although a session lives.
    MovePeer {
        /// Which device.
        device: DeviceId,
        /// Where to.
        path: Path,
    },
    /// Mixes a pre-shared key into a peer's handshakes. The one before stays as the second slot, for a peer
    /// that does not have the new one yet, until a session lives under the new.
    SetPsk {
        /// Which device.
        device: DeviceId,
        /// The pair of keys that it was agreed for, ours first: handshakes under others are made without.
        /// Absent means the peer's current key and any of ours.
        keys: Option<[X25519Public; 2]>,
        /// The key; `None` without `keys` forgets both slots, and with them says nothing.
        psk: Option<PresharedKey>,
        /// Which slot; without `keys` it is used.
        slot: PskSlot,
    },
    /// Begins a handshake although a session lives.
    Rekey {
        /// Which device.
        device: DeviceId,
    },
    /// Bounds the inner packets sent to a peer; longer ones are answered with "packet too big".
    SetPathMtu {
        /// Which device.
        device: DeviceId,
        /// Bytes, at least [`MTU_MIN`]; `None` is the tunnel's own.
        mtu: Option<u16>,
    },
    /// Sends a message to the agent of a peer, inside the tunnel. Dropped and counted when no session
    /// lives.
    SendMessage {
        /// Which device.
        device: DeviceId,
        /// By which path; `None` is the peer's endpoint. The endpoint stays.
        via: Option<Path>,
        /// The message (`hedgerow_model::message`), zeros after it included.
        bytes: Vec<u8>,
        /// Whether the network may cut it.
        cut: Cut,
    },
    /// Passes on the frames of a session that one side of it sends, as a relay.
    SetRelay {
        /// The session, as the side knows it that sends.
        session: RelaySession,
        /// That side; its frames are taken only from where this peer is.
        from: DeviceId,
        /// Where they go, under which number.
        to: (DeviceId, RelaySession),
    },
    /// Bounds what is passed on as a relay.
    SetRelayLimits(RelayLimits),
    /// Passes a session's frames on no more.
    ForgetRelay {
        /// The session.
        session: RelaySession,
    },
    /// Forgets a peer, its sessions and its waiting packets at once.
    RemovePeer {
        /// Which device.
        device: DeviceId,
    },
    /// Starts a handshake with a peer unless a session lives, without waiting for a packet.
    Connect {
        /// Which device.
        device: DeviceId,
    },
    /// Sends a mesh datagram (first byte [`MESH_DATAGRAM_FIRST`] or greater).
    SendDatagram {
        /// Where to.
        to: Path,
        /// What.
        bytes: Vec<u8>,
    },
    /// Sends the packets that wait for `dst` to the peer that now holds it, those that `profile` lets
    /// pass; the others are answered with [`Rejection::Prohibited`]. The kernel judged none of them: it
    /// did not know the peer.
    Release {
        /// The destination that was [`Report::Wanted`].
        dst: Overlay,
        /// What the peer and this device may do.
        profile: Box<Profile>,
    },
    /// Answers the packets that wait for `dst`, so that their programs fail at once.
    RejectQueued {
        /// The destination that was [`Report::Wanted`].
        dst: Overlay,
        /// What they are told.
        why: Rejection,
    },
    /// Asks for the state of every peer.
    ListPeers {
        /// Where the answer goes; dropped when full.
        reply: SyncSender<Vec<PeerStatus>>,
    },
    /// Ends the thread; see [`TunnelHandle::shutdown`].
    Shutdown,
}

/// Whether the network may cut a datagram into fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cut {
    /// It may.
    #[default]
    Allowed,
    /// It may not: the datagram arrives whole or not at all, which measures a path.
    Refused,
}

/// What our own programs are told of a packet that does not go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The policy says no: "communication administratively prohibited".
    Prohibited,
    /// Nobody knows the way: "host unreachable", "address unreachable".
    Unreachable,
}

/// What the tunnel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A mesh datagram came in. Nothing about it is proven.
    Datagram {
        /// From where.
        from: Path,
        /// What.
        bytes: Vec<u8>,
    },
    /// A message of a peer's agent, authentic.
    Message {
        /// Which device.
        device: DeviceId,
        /// By which path it came.
        from: Path,
        /// The message, padding included (`hedgerow_model::message`).
        bytes: Vec<u8>,
    },
    /// A packet waits for a destination no peer holds. Said once until the destination is released,
    /// rejected, or [`waiting::WANTED_SECONDS_MAX`] seconds are over.
    Wanted {
        /// The destination.
        dst: Overlay,
    },
    /// A handshake with a peer is complete, proven by both sides.
    Established {
        /// Which device.
        device: DeviceId,
        /// Where it is.
        endpoint: Path,
        /// Whether a pre-shared key was mixed in.
        psk: bool,
    },
    /// A peer's authenticated packet came from somewhere else than before, and its endpoint moved there.
    Roamed {
        /// Which device.
        device: DeviceId,
        /// Where it is now.
        endpoint: Path,
    },
    /// A peer's authenticated packet came by another path than the one we send by. Said at most once per
    /// [`HEARD_INTERVAL`] and peer, and only of peers with [`Roaming::Report`].
    Heard {
        /// Which device.
        device: DeviceId,
        /// By which path.
        from: Path,
    },
    /// Packets go to the peer or come from it. Said at most once per [`ACTIVE_INTERVAL`] and peer, and only
    /// of peers with [`Roaming::Report`].
    Active {
        /// Which device.
        device: DeviceId,
    },
    /// A packet was sent to the peer, and nothing came back for [`SILENT_MIN`]; twice as long each time
    /// that only messages come back, up to [`SILENT_MAX`], or [`SILENT_BUSY`] once [`SILENT_PACKETS`] were sent. Only of peers with [`Roaming::Report`].
    Silent {
        /// Which device.
        device: DeviceId,
        /// How long: four times [`SILENT_MIN`] and more when the silences before it were not broken by a packet.
        waited: Duration,
    },
    /// No session with the peer is left; the next packet begins a handshake.
    Idle {
        /// Which device.
        device: DeviceId,
    },
    /// Handshakes were tried for 90 s without an answer; packets that waited are dropped.
    Unanswered {
        /// Which device.
        device: DeviceId,
    },
    /// A peer sent a packet from an address that is not its own, or to one that is not ours.
    Spoofed {
        /// Which device.
        device: DeviceId,
        /// The inner source.
        src: Overlay,
        /// The inner destination.
        dst: Overlay,
    },
    /// A proper handshake under a key no peer has. It gets no answer.
    HandshakeFromUnknown {
        /// The key.
        public_key: X25519Public,
        /// From where.
        from: Path,
    },
    /// A [`Command::SetPeer`] was refused; the peers are as before.
    PeerRefused {
        /// Which device.
        device: DeviceId,
        /// Why.
        reason: PeerRefusal,
    },
    /// The thread ended; `error` is `None` after [`Command::Shutdown`].
    Stopped {
        /// What failed.
        error: Option<String>,
    },
}

/// Why a peer was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefusal {
    /// Two devices cannot share an address.
    #[error("address {0} belongs to device {1}")]
    AddressTaken(Overlay, DeviceId),
    /// Two devices cannot share a key.
    #[error("the key belongs to device {0}")]
    KeyTaken(DeviceId),
    /// A device cannot be its own peer.
    #[error("the key or an address is our own")]
    Ourselves,
    /// The table is full.
    #[error("{} peers are set", core::PEERS_MAX)]
    TooMany,
}

/// One peer's state, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Which device.
    pub device: DeviceId,
    /// Where it is.
    pub endpoint: Option<Path>,
    /// Whether the session in use was agreed under a pre-shared key.
    pub psk: bool,
    /// How long ago the session in use was agreed; `None` without a session.
    pub session_age: Option<Duration>,
    /// How long ago it last sent anything authentic.
    pub last_received: Option<Duration>,
    /// Inner bytes received.
    pub received_bytes: u64,
    /// Inner bytes sent.
    pub sent_bytes: u64,
    /// Packets waiting for a session.
    pub waiting_packets: usize,
}

/// Where reports go. Called on the tunnel's thread: it must return at once.
///
/// Implemented by every `FnMut(Report) -> Result<(), Report>`, for instance a `try_send`:
///
/// ```text
/// move |report| sender.try_send(report).map_err(|e| e.into_inner())
/// ```
///
/// A report given back is treated by its kind: [`Report::Datagram`], [`Report::Message`],
/// [`Report::Heard`], [`Report::Active`], [`Report::Silent`], [`Report::Spoofed`] and [`Report::HandshakeFromUnknown`] are dropped and counted; [`Report::Wanted`] is dropped, and
/// said again by the next packet for that destination; all others are kept, up to
/// [`REPORTS_KEPT_MAX`], and offered again in order every 20 ms.
pub trait Reports: Send + 'static {
    /// Takes a report, or gives it back when there is no room.
    ///
    /// # Errors
    ///
    /// The report itself.
    fn offer(&mut self, report: Report) -> Result<(), Box<Report>>;
}

impl<F> Reports for F
where
    F: FnMut(Report) -> Result<(), Report> + Send + 'static,
{
    fn offer(&mut self, report: Report) -> Result<(), Box<Report>> {
        self(report).map_err(Box::new)
    }
}

/// Reports kept for a receiver that is full; the oldest goes first and is counted.
pub const REPORTS_KEPT_MAX: usize = 4096;

/// Why the tunnel did not start; nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The UDP socket.
    #[error(transparent)]
    Udp(#[from] UdpError),
    /// A value out of range.
    #[error("an MTU of {mtu} is not between 1280 and {MTU_MAX}")]
    Mtu {
        /// The value.
        mtu: u16,
    },
    /// The system has no thread, event descriptor or random bytes left.
    #[error("cannot start the tunnel's thread")]
    System(#[source] std::io::Error),
}

impl StartError {
    /// Returns who is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Tun(e) => e.fault(),
            Self::Udp(e) => e.fault(),
            Self::Mtu { .. } => Fault::Operator,
            Self::System(_) => Fault::Environment,
        }
    }
}

/// Why a command was not taken; it had no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// [`COMMANDS_MAX`] commands wait: try again later.
    #[error("{COMMANDS_MAX} commands wait for the tunnel")]
    Full,
    /// The thread has ended.
    #[error("the tunnel has stopped")]
    Stopped,
}

/// A command that was not taken, given back by [`TunnelHandle::offer`].
pub struct Refused {
    /// Why.
    pub error: SendError,
    /// The command.
    pub command: Box<Command>,
}

/// The tunnel.
pub struct Tunnel;

impl Tunnel {
    /// Opens the TUN device and the UDP socket in the caller's network namespace and starts the
    /// thread that serves them.
    ///
    /// # Errors
    ///
    /// [`StartError`] names what could not be opened.
    pub fn start(config: TunnelConfig, reports: impl Reports) -> Result<TunnelHandle, StartError> {
        let (sender, receiver) = sync_channel(COMMANDS_MAX);
        run::start(config, Box::new(reports), sender, receiver)
    }
}

/// A running tunnel. Dropping it shuts the tunnel down.
pub struct TunnelHandle {
    /// In boxes: a channel takes and touches the memory of all its places when it is made.
    commands: SyncSender<Box<Command>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    stats: Arc<stats::Shared>,
    name: String,
    port: u16,
}

impl TunnelHandle {
    /// Hands a command to the tunnel's thread without waiting.
    ///
    /// # Errors
    ///
    /// [`SendError`]; the command is dropped.
    pub fn send(&self, command: Command) -> Result<(), SendError> {
        self.offer(command).map_err(|refused| refused.error)
    }

    /// Hands a command to the tunnel's thread without waiting, or gives it back.
    ///
    /// # Errors
    ///
    /// The command, and why it was not taken.
    pub fn offer(&self, command: Command) -> Result<(), Refused> {
        let command = Box::new(command);
        self.commands.try_send(command).map_err(|e| match e {
            TrySendError::Full(command) => Refused {
                error: SendError::Full,
                command,
            },
            TrySendError::Disconnected(command) => Refused {
                error: SendError::Stopped,
                command,
            },
        })?;
        run::wake(&self.wake);
        Ok(())
    }

    /// Returns the counters as of the last round of the loop.
    pub fn stats(&self) -> Stats {
        self.stats.read()
    }

    /// Returns the interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the UDP port in use.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends the thread and waits for it. The interface goes unless it is persistent.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A full queue is drained by the thread; a dead thread needs no word.
        if self.commands.send(Box::new(Command::Shutdown)).is_ok() {
            run::wake(&self.wake);
        }
        if thread.join().is_err() {
            tracing::error!("the tunnel's thread panicked");
        }
    }
}

impl Drop for TunnelHandle {
    fn drop(&mut self) {
        self.stop();
    }
}
