//! The tunnel's protocol without I/O: time, randomness and keys are arguments.
//!
//! The contract is that of `hedgerow_model::machine`, with one addition: the two calls of the data
//! path work in place on the caller's buffer and return what to do with it, so that a packet is
//! neither copied nor allocated. Everything else comes out of [`Core::poll`].

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use hedgerow_model::address::{Overlay, OverlayAddresses, Underlay};
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::{self, Path, RELAY_FRAME_FIRST, RELAY_HEADER_BYTES};
use hedgerow_model::ruleset::Profile;
use hedgerow_model::statement::X25519Public;
use hedgerow_model::{Mono, Now, Wall};

use super::inner::{self, Inner};
use super::limits::Limits;
use super::message::{self, HEADER_BYTES, Message, TAG_BYTES};
use super::noise::LocalKey;
use super::peers::{Peer, Peers, Sessions};
use super::ready::Ready;
use super::relay::{self, Relay};
use super::session::{Side, Unopened};
use super::timers::{self, KEEPALIVE_TIMEOUT, NO_REPLY_TIMEOUT};
use super::waiting::{Budget, Destinations, PEER_PACKETS_MAX};
use super::{
    Command, Cut, HEARD_INTERVAL, MTU_MIN, PeerConfig, PeerRefusal, PrivateKey, Rejection, Report,
    Roaming, SILENT_MAX, SILENT_MIN, Secrecy, Slot, Stats,
};

/// Peers that can be set; one more is refused.
pub const PEERS_MAX: usize = 100_000;
/// Peers looked at in one [`Core::handle_timeout`]; [`Core::deadline`] then says "now" again.
pub const TIMEOUTS_PER_CALL_MAX: usize = 256;
/// Bytes a buffer needs beyond the inner packet: header before it, padding, tag and a relay's header
/// after it.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + 15 + TAG_BYTES + RELAY_HEADER_BYTES;

/// The source of randomness failed; what needed it was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoEntropy;

/// Fills a buffer with random bytes.
pub type Entropy = Box<dyn FnMut(&mut [u8]) -> Result<(), NoEntropy> + Send>;

/// What the machine begins with.
pub struct CoreConfig {
    /// Our overlay addresses.
    pub addresses: OverlayAddresses,
    /// Longest inner packet in bytes.
    pub mtu: u16,
    /// Our current key.
    pub private_key: PrivateKey,
    /// Handshake timestamps are later than this.
    pub wall_floor: Wall,
    /// Initiations per second that are answered without a cookie, and as many at once.
    pub initiations_per_second: u32,
}

/// What the machine wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram.
    Send {
        /// Where to.
        to: Underlay,
        /// What.
        bytes: Vec<u8>,
        /// Whether the network may cut it.
        cut: Cut,
    },
    /// Pass on a relay's frame that had to wait.
    PassOn {
        /// Where to.
        to: Underlay,
        /// Traffic class.
        class: u8,
        /// What.
        bytes: Vec<u8>,
    },
    /// Write a packet into the TUN device.
    Deliver(Vec<u8>),
    /// Tell the parent.
    Report(Report),
}

/// An inner packet that became a datagram at the start of its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Where to send it.
    pub to: Underlay,
    /// Its bytes, from the start of the buffer.
    pub len: usize,
}

/// What became of a datagram from the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handled {
    /// Nothing is left to do.
    Done,
    /// An inner packet for our kernel stands there in the buffer.
    Deliver(Range<usize>),
    /// A relay's frame, as it stands in the buffer now, goes there.
    Forward(Underlay),
}

/// The machine.
pub struct Core {
    pub(super) addresses: OverlayAddresses,
    pub(super) mtu: usize,
    pub(super) key: LocalKey,
    pub(super) previous_key: Option<LocalKey>,
    pub(super) peers: Peers,
    pub(super) ready: Ready,
    pub(super) limits: Limits,
    pub(super) budget: Budget,
    pub(super) outputs: VecDeque<Output>,
    pub(super) entropy: Entropy,
    pub(super) stats: Stats,
    /// Milliseconds since 1970 of the last handshake timestamp we gave.
    pub(super) last_stamp_ms: u64,
    pub(super) relay: Relay,
    wanted: Destinations,
    timers: BTreeSet<(Mono, u32)>,
}

impl Core {
    /// Makes a machine without peers.
    pub fn new(config: CoreConfig, entropy: Entropy) -> Self {
        Self {
            addresses: config.addresses,
            mtu: config.mtu.into(),
            key: LocalKey::new(config.private_key),
            previous_key: None,
            peers: Peers::default(),
            ready: Ready::default(),
            limits: Limits::new(config.initiations_per_second),
            budget: Budget::default(),
            outputs: VecDeque::new(),
            entropy,
            stats: Stats::default(),
            last_stamp_ms: config.wall_floor.0,
            relay: Relay::default(),
            wanted: Destinations::default(),
            timers: BTreeSet::new(),
        }
    }

    /// Returns the next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns what was counted.
    pub fn stats(&mut self) -> &mut Stats {
        self.stats.relay_sides = u64::try_from(self.relay.len()).unwrap_or(u64::MAX);
        &mut self.stats
    }

    /// Returns when to call [`Core::handle_timeout`] next, and why.
    pub fn deadline(&self) -> (Mono, &'static str) {
        let peer = self.timers.first().map_or(Mono::NEVER, |(at, _)| *at);
        let wanted = self.wanted.deadline();
        let held = self.relay.deadline();
        if held < peer.min(wanted) {
            (held, "a relayed frame waits")
        } else if wanted < peer {
            (wanted, "a destination is no longer wanted")
        } else {
            (peer, "a peer's handshake, keepalive or session")
        }
    }

    /// Takes a packet of our own kernel: `len` bytes after [`HEADER_BYTES`] in `buffer`, which has
    /// room for [`OVERHEAD_BYTES`] more. Returns the datagram it became, or `None` when it waits or
    /// was dropped.
    pub fn handle_inner_packet(
        &mut self,
        buffer: &mut [u8],
        len: usize,
        now: Now,
    ) -> Option<Sealed> {
        let packet = buffer.get(HEADER_BYTES..HEADER_BYTES.checked_add(len)?)?;
        let ends = inner::decode(packet).filter(|i| {
            self.addresses.contains(Overlay(i.src)) && !i.dst.is_multicast() && len <= self.mtu
        });
        let Some(Inner { dst, .. }) = ends else {
            self.stats.dropped_outgoing += 1;
            return None;
        };
        let place = self.peers.by_address(&dst);
        let reachable = |peer: &Peer| peer.endpoint.is_some() || peer.sessions.current.is_some();
        let place = place.filter(|p| self.peers.get(*p).is_some_and(reachable));
        let Some(place) = place else {
            self.want(Overlay(dst), packet, now.mono);
            return None;
        };
        if let Some(mtu) = self.peers.get(place).and_then(|p| p.mtu)
            && len > usize::from(mtu)
            && let Some(answer) = inner::too_big(packet, mtu)
        {
            self.stats.too_big += 1;
            self.outputs.push_back(Output::Deliver(answer));
            return None;
        }
        self.seal_or_keep(place, buffer, len, now)
    }

    /// Takes a datagram from the underlay, which is opened or rewritten in place.
    pub fn handle_datagram(&mut self, from: Underlay, datagram: &mut [u8], now: Now) -> Handled {
        if datagram.first() == Some(&RELAY_FRAME_FIRST) {
            return self.handle_frame(from, datagram, now);
        }
        match self.handle_bare(from.into(), datagram, now) {
            Some(range) => Handled::Deliver(range),
            None => Handled::Done,
        }
    }

    pub(super) fn handle_bare(
        &mut self,
        from: Path,
        datagram: &mut [u8],
        now: Now,
    ) -> Option<Range<usize>> {
        match message::decode(datagram) {
            Some(Message::Transport { receiver, counter }) => {
                return self.open(from, datagram, (receiver, counter), now);
            }
            Some(Message::Initiation(message)) => self.handle_initiation(from, message, now),
            Some(Message::Response(message)) => self.handle_response(message, now),
            Some(Message::CookieReply(message)) => self.handle_cookie_reply(message, now),
            Some(Message::Mesh(bytes)) => {
                self.stats.mesh_datagrams += 1;
                let bytes = bytes.to_vec();
                self.report(Report::Datagram { from, bytes });
            }
            None => self.stats.dropped_malformed += 1,
        }
        None
    }

    /// Does what a command says. [`Command::Shutdown`] is the shell's own.
    pub fn handle_command(&mut self, command: Command, now: Now) {
        match command {
            Command::SetIdentityKey { slot, secret } => self.set_own_key(slot, secret),
            Command::SetPeer(config) => self.set_peer(&config, now),
            Command::ForgetPeerKey { device, slot } => {
                if let Some(place) = self.peers.by_device(&device) {
                    self.peers.forget_key(place, slot);
                }
            }
            Command::MovePeer { device, path } => self.move_peer(&device, path, now),
            Command::SetPsk {
                device,
                keys,
                psk,
                slot,
            } => self.set_psk(&device, keys, (psk, slot)),
            Command::Rekey { device } => {
                if let Some(place) = self.peers.by_device(&device) {
                    self.begin_handshake(place, now);
                }
            }
            Command::SetPathMtu { device, mtu } => {
                let place = self.peers.by_device(&device);
                if let Some(peer) = place.and_then(|p| self.peers.get_mut(p)) {
                    peer.mtu = mtu.map(|mtu| mtu.max(MTU_MIN));
                }
            }
            Command::SendMessage {
                device,
                via,
                bytes,
                cut,
            } => self.send_message(&device, via, (&bytes, cut), now),
            Command::SetRelay { session, from, to } => {
                let (to, out) = to;
                if !self.relay.set(session, relay::Side { from, to, out }) {
                    self.stats.dropped_relay += 1;
                }
            }
            Command::SetRelayLimits(limits) => self.relay.set_limits(limits),
            Command::ForgetRelay { session } => self.relay.forget(session),
            Command::RemovePeer { device } => self.remove_peer(&device),
            Command::Connect { device } => {
                if let Some(place) = self.peers.by_device(&device)
                    && let Some(peer) = self.peers.get_mut(place)
                    && peer.sender(now.mono).is_none()
                {
                    self.begin_handshake(place, now);
                }
            }
            Command::SendDatagram { to, bytes } => {
                let first = bytes.first().copied();
                if first >= Some(super::MESH_DATAGRAM_FIRST) && first != Some(RELAY_FRAME_FIRST) {
                    self.send(to, bytes);
                } else {
                    self.stats.dropped_malformed += 1;
                }
            }
            Command::Release { dst, profile } => self.release(dst, &profile, now),
            Command::RejectQueued { dst, why } => self.reject(dst, why),
            // An asker that is gone needs no answer.
            Command::ListPeers { reply } => drop(reply.try_send(self.peers.list(now.mono))),
            Command::Shutdown => {}
        }
    }

    /// Notes that time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.pass_held(now.mono);
        self.stats.dropped_waiting += self.wanted.expire(&mut self.budget, now.mono);
        for _ in 0..TIMEOUTS_PER_CALL_MAX {
            let due = self.timers.first().filter(|(at, _)| *at <= now.mono);
            let Some((at, place)) = due.copied() else {
                return;
            };
            self.timers.remove(&(at, place));
            if let Some(peer) = self.peers.get_mut(place) {
                peer.timer = Mono::NEVER;
            }
            self.peer_timeout(place, now);
            self.arm(place);
        }
    }

    /// Notes that a report found no room, so that it is made again when it is due.
    pub fn report_was_lost(&mut self, report: &Report) {
        if let Report::Wanted { dst } = report {
            self.wanted.report_was_lost(*dst);
        }
    }

    /// Makes sure that the peer is looked at when it has something due.
    pub(super) fn arm(&mut self, place: u32) {
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        // Later than the timer is harmless: it finds nothing to do and is set anew.
        let due = peer.deadline();
        if due < peer.timer {
            let old = std::mem::replace(&mut peer.timer, due);
            self.timers.remove(&(old, place));
            self.timers.insert((due, place));
        }
    }

    pub(super) fn report(&mut self, report: Report) {
        self.outputs.push_back(Output::Report(report));
    }

    /// Reports what a stranger or liar caused, as often as such reports may be made.
    pub(super) fn report_suspicion(&mut self, report: Report, now: Now) {
        if self.limits.may_report(now.mono) {
            self.report(report);
        }
    }

    /// Our key by its public half.
    pub(super) fn own_keys(&self) -> impl Iterator<Item = &LocalKey> {
        std::iter::once(&self.key).chain(&self.previous_key)
    }

    /// Seals and sends what waits for the peer; a keepalive when nothing does and `or_keepalive`.
    pub(super) fn flush(&mut self, place: u32, or_keepalive: bool, now: Now) {
        let mut sent = false;
        while let Some(peer) = self.peers.get_mut(place) {
            if peer.packet_sender(now.mono).is_none() {
                break;
            }
            let Some(packet) = peer.waiting.pop(&mut self.budget) else {
                break;
            };
            self.send_copy(place, &packet, now);
            sent = true;
        }
        if or_keepalive && !sent {
            self.send_copy(place, &[], now);
        }
    }

    fn set_own_key(&mut self, slot: Slot, secret: Option<PrivateKey>) {
        let key = secret.map(LocalKey::new);
        match (slot, key) {
            (Slot::Current, Some(key)) if key.public == self.key.public => {}
            (Slot::Current, Some(key)) => {
                self.previous_key = Some(std::mem::replace(&mut self.key, key));
            }
            (Slot::Current, None) => {}
            (Slot::Previous, key) => self.previous_key = key,
        }
    }

    fn set_peer(&mut self, config: &PeerConfig, now: Now) {
        let is_own_key = |key: &X25519Public| self.own_keys().any(|k| k.public == *key);
        let ours = config.addresses.iter().any(|a| self.addresses.contains(a));
        let done = if ours || is_own_key(&config.public_key) {
            Err(PeerRefusal::Ourselves)
        } else {
            self.peers.set(config, now.mono)
        };
        match done {
            Err(reason) => {
                let device = config.device;
                self.report(Report::PeerRefused { device, reason });
            }
            Ok(changed) => {
                let place = changed.place;
                let peer = self.peers.get(place);
                if peer.is_some_and(|p| p.handshake.is_some()) {
                    if changed.has_new_endpoint || changed.has_new_key {
                        self.hasten_handshake(place, now);
                    }
                } else if changed.has_new_key && peer.is_some_and(|p| !p.sessions.is_empty()) {
                    // The peer has rotated its key, or has lost its sessions with it.
                    self.begin_handshake(place, now);
                }
                self.arm(place);
            }
        }
    }

    fn remove_peer(&mut self, device: &DeviceId) {
        self.relay.forget_device(*device);
        let Some((place, mut peer)) = self.peers.remove(device) else {
            return;
        };
        self.timers.remove(&(peer.timer, place));
        for session in peer.sessions.iter() {
            self.ready.forget(session.agreed.own_index);
        }
        self.stats.dropped_waiting += peer.waiting.clear(&mut self.budget);
    }

    fn want(&mut self, dst: Overlay, packet: &[u8], now: Mono) {
        let pushed = self.wanted.push(dst, packet, &mut self.budget, now);
        self.stats.dropped_waiting += pushed.dropped;
        if pushed.report {
            self.report(Report::Wanted { dst });
        }
    }

    fn release(&mut self, dst: Overlay, profile: &Profile, now: Now) {
        let Some(mut queue) = self.wanted.take(dst) else {
            return;
        };
        let place = self.peers.by_address(&dst.0);
        while let Some(packet) = queue.pop(&mut self.budget) {
            let passes = inner::passes(&packet, profile, now.wall);
            match place {
                Some(place) if passes => self.send_copy(place, &packet, now),
                Some(_) => self.refuse(&packet, Rejection::Prohibited),
                None => self.refuse(&packet, Rejection::Unreachable),
            }
        }
    }

    fn reject(&mut self, dst: Overlay, why: Rejection) {
        let mut queue = self.wanted.take(dst).unwrap_or_default();
        while let Some(packet) = queue.pop(&mut self.budget) {
            self.refuse(&packet, why);
        }
    }

    /// Tells our own kernel that a packet does not pass.
    fn refuse(&mut self, packet: &[u8], why: Rejection) {
        if let Some(answer) = inner::refusal(packet, why) {
            self.stats.rejected += 1;
            self.outputs.push_back(Output::Deliver(answer));
        }
    }

    /// Seals a packet that is not in a buffer of the shell, or lets it wait. Empty is a keepalive.
    pub(super) fn send_copy(&mut self, place: u32, packet: &[u8], now: Now) {
        let mut bytes = vec![0; packet.len() + OVERHEAD_BYTES];
        message::put(&mut bytes, HEADER_BYTES, packet);
        if let Some(Sealed { to, len }) = self.seal_or_keep(place, &mut bytes, packet.len(), now) {
            bytes.truncate(len);
            let cut = Cut::Allowed;
            self.outputs.push_back(Output::Send { to, bytes, cut });
        }
    }

    fn seal_or_keep(
        &mut self,
        place: u32,
        buffer: &mut [u8],
        len: usize,
        now: Now,
    ) -> Option<Sealed> {
        let mtu = self.mtu;
        let peer = self.peers.get_mut(place)?;
        let endpoint = peer.endpoint;
        let session = match len {
            0 => peer.sender(now.mono),
            _ => peer.packet_sender(now.mono),
        };
        let (Some(path), Some(session)) = (endpoint, session) else {
            let packet = buffer.get(HEADER_BYTES..HEADER_BYTES + len)?;
            self.keep(place, packet, now);
            return None;
        };
        let sealed = session.seal(&mut self.ready, buffer, (len, mtu))?;
        let (side, age) = (session.agreed.side, session.age(now.mono));
        let rekey = timers::rekey_on_send(side, age, session.counter);
        let sealed = frame(path, buffer, sealed)?;
        self.note_sent(place, (usize::from(len > 0), len), now);
        if rekey {
            self.begin_handshake(place, now);
        }
        Some(sealed)
    }

    /// Packets, or a keepalive, were sent to a peer.
    pub(super) fn note_sent(&mut self, place: u32, (packets, bytes): (usize, usize), now: Now) {
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        peer.due.keepalive = None;
        peer.due.persistent = peer.keepalive.map(|interval| now.mono + interval);
        if packets == 0 {
            return;
        }
        let bytes = u64::try_from(bytes).unwrap_or(0);
        peer.sent_bytes += bytes;
        self.stats.sent_packets += u64::try_from(packets).unwrap_or(0);
        self.stats.sent_bytes += bytes;
        if peer.due.reply.is_none() {
            peer.due.reply = Some(now.mono + NO_REPLY_TIMEOUT);
            self.arm(place);
        }
        self.note_use(place, now.mono);
    }

    /// Lets a packet wait for a session, and begins one.
    fn keep(&mut self, place: u32, packet: &[u8], now: Now) {
        if let Some(peer) = self.peers.get_mut(place)
            && !packet.is_empty()
        {
            let dropped = peer
                .waiting
                .push(packet, PEER_PACKETS_MAX, &mut self.budget);
            self.stats.dropped_waiting += dropped;
        }
        // A session that only lacks its pre-shared key waits for that.
        let waits = |peer: &mut Peer| peer.sender(now.mono).is_some();
        if self.peers.get_mut(place).is_some_and(waits) {
            return;
        }
        self.begin_handshake(place, now);
        // Without a key there is nothing to wait for.
        if let Some(peer) = self.peers.get_mut(place)
            && peer.handshake.is_none()
        {
            self.stats.dropped_waiting += peer.waiting.clear(&mut self.budget);
        } else {
            // The peer may have moved while no session lived: the mesh hears of an unanswered handshake
            // as it does of unanswered packets, and does not wait until it is given up.
            self.note_use(place, now.mono);
        }
    }

    fn open(
        &mut self,
        from: Path,
        datagram: &mut [u8],
        (receiver, counter): (u32, u64),
        now: Now,
    ) -> Option<Range<usize>> {
        let place = self.peers.by_index(receiver);
        let peer = place.and_then(|p| self.peers.get_mut(p));
        let session = peer.and_then(|p| p.sessions.by_index(receiver));
        let (Some(place), Some(session)) = (place, session) else {
            self.stats.dropped_no_session += 1;
            return None;
        };
        let len = match session.open(&mut self.ready, datagram, counter, now.mono) {
            Ok(len) => len,
            Err(why) => {
                *match why {
                    Unopened::Expired => &mut self.stats.dropped_no_session,
                    Unopened::Replayed => &mut self.stats.dropped_replayed,
                    Unopened::Forged => &mut self.stats.dropped_forged,
                } += 1;
                return None;
            }
        };
        let (side, age): (Side, _) = (session.agreed.side, session.age(now.mono));
        let has_psk = session.agreed.psk;
        let text = datagram.get(HEADER_BYTES..HEADER_BYTES + len)?;
        let is_message = hedgerow_model::message::is_message(text);
        self.note_authentic(place, (receiver, is_message), from, now);
        let sessions = self.peers.get_mut(place).map(|p| &mut p.sessions);
        let left = sessions.map(Sessions::drop_left).unwrap_or_default();
        self.free_sessions(left);
        if timers::rekey_on_receive(side, age) {
            self.begin_handshake(place, now);
        }
        if len == 0 {
            return None;
        }
        if is_message {
            self.accept_message(place, from, text, now);
            return None;
        }
        let secrecy = self.peers.get(place)?.secrecy;
        if secrecy == Secrecy::PostQuantum && !has_psk {
            self.stats.dropped_not_secret += 1;
            return None;
        }
        self.accept_inner(place, text, now)
            .map(|len| HEADER_BYTES..HEADER_BYTES + len)
    }

    /// An authenticated message came: the peer lives, and is where it came from.
    fn note_authentic(
        &mut self,
        place: u32,
        (receiver, is_message): (u32, bool),
        from: Path,
        now: Now,
    ) {
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        peer.last_received = Some(now.mono);
        peer.due.reply = None;
        peer.due.silent = None;
        peer.due.persistent = peer.keepalive.map(|interval| now.mono + interval);
        let device = peer.device;
        let is_next = peer.sessions.next_is(receiver);
        let is_elsewhere = peer.endpoint != Some(from);
        let follows = match peer.roaming {
            Roaming::Follow => !is_message,
            // The path on which a first session was agreed works.
            Roaming::Report => is_next && peer.sender(now.mono).is_none(),
        };
        if is_elsewhere && (follows || peer.endpoint.is_none()) {
            let had = peer.endpoint.replace(from);
            // The first endpoint is part of `Established`.
            if had.is_some() && !is_next {
                let endpoint = from;
                self.report(Report::Roamed { device, endpoint });
            }
        } else if is_elsewhere && !is_message {
            let was = peer.heard_at.map(|at| now.mono.since(at));
            if was.is_none_or(|ago| ago >= HEARD_INTERVAL) {
                peer.heard_at = Some(now.mono);
                self.report(Report::Heard { device, from });
            }
        }
        if is_next {
            self.confirm_next(place, now);
        }
    }

    /// Hands a message up. It asks for a keepalive as a packet does, unless it came to measure a path.
    fn accept_message(&mut self, place: u32, from: Path, text: &[u8], now: Now) {
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        let device = peer.device;
        if peer.due.keepalive.is_none() && peer.endpoint == Some(from) {
            peer.due.keepalive = Some(now.mono + KEEPALIVE_TIMEOUT);
            self.arm(place);
        }
        self.stats.messages += 1;
        let bytes = text.to_vec();
        self.report(Report::Message {
            device,
            from,
            bytes,
        });
    }

    /// Checks a packet that came out of the tunnel; returns its true length.
    fn accept_inner(&mut self, place: u32, text: &[u8], now: Now) -> Option<usize> {
        let Some(Inner { src, dst, len }) = inner::decode(text) else {
            self.stats.dropped_inner_malformed += 1;
            return None;
        };
        let peer = self.peers.get_mut(place)?;
        let (src, dst) = (Overlay(src), Overlay(dst));
        if !peer.addresses.contains(src) || !self.addresses.contains(dst) {
            let device = peer.device;
            self.stats.dropped_spoofed += 1;
            self.report_suspicion(Report::Spoofed { device, src, dst }, now);
            return None;
        }
        peer.silent_after = SILENT_MIN;
        let bytes = u64::try_from(len).unwrap_or(0);
        peer.received_bytes += bytes;
        self.stats.received_packets += 1;
        self.stats.received_bytes += bytes;
        if peer.due.keepalive.is_none() {
            peer.due.keepalive = Some(now.mono + KEEPALIVE_TIMEOUT);
            self.arm(place);
        }
        Some(len)
    }

    fn peer_timeout(&mut self, place: u32, now: Now) {
        self.end_sessions(place, now.mono);
        self.handshake_timeout(place, now);
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        let is_due = |at: Option<Mono>| at.is_some_and(|at| at <= now.mono);
        let (reply, keepalive) = (is_due(peer.due.reply), is_due(peer.due.keepalive));
        let persistent = is_due(peer.due.persistent);
        let silent = is_due(peer.due.silent);
        let waited = peer.silent_after;
        if silent {
            peer.due.silent = None;
            peer.silent_after = (peer.silent_after * 2).min(SILENT_MAX);
        }
        let device = peer.device;
        if reply {
            peer.due.reply = None;
        }
        if keepalive {
            peer.due.keepalive = None;
        }
        if persistent {
            peer.due.persistent = peer.keepalive.map(|interval| now.mono + interval);
        }
        if silent {
            self.report(Report::Silent { device, waited });
        }
        if reply {
            self.begin_unless_dear(place, now);
        }
        let can_send = self
            .peers
            .get_mut(place)
            .is_some_and(|p| p.sender(now.mono).is_some());
        if (keepalive && can_send) || persistent {
            self.send_copy(place, &[], now);
        }
    }

    /// Drops sessions that are too old, which wipes their keys.
    fn end_sessions(&mut self, place: u32, now: Mono) {
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        let had = !peer.sessions.is_empty();
        let ended = peer.sessions.expire(now);
        if had && peer.sessions.is_empty() {
            let device = peer.device;
            peer.due.reply = None;
            peer.due.silent = None;
            peer.due.keepalive = None;
            self.report(Report::Idle { device });
        }
        self.free_sessions(ended);
    }

    fn free_sessions(&mut self, ended: Vec<u32>) {
        for index in ended {
            self.ready.forget(index);
            self.peers.free_index(index);
        }
    }
}

/// Puts the datagram of `len` bytes at the start of `buffer` into a relay's frame where its path has one.
pub(super) fn frame(path: Path, buffer: &mut [u8], len: usize) -> Option<Sealed> {
    let to = path.to;
    let Some(session) = path.relay else {
        return Some(Sealed { to, len });
    };
    let len_framed = len + RELAY_HEADER_BYTES;
    buffer
        .get_mut(..len_framed)?
        .copy_within(..len, RELAY_HEADER_BYTES);
    message::put(buffer, 0, &path::relay_header(session));
    Some(Sealed {
        to,
        len: len_framed,
    })
}

/// What only an attacker's machine does.
#[cfg(test)]
impl Core {
    pub(super) fn addresses_for_attack(&mut self, addresses: OverlayAddresses) {
        self.addresses = addresses;
    }

    pub(super) fn send_raw_for_attack(&mut self, packet: &[u8], now: Now) {
        self.send_copy(0, packet, now);
    }
}
