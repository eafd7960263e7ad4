//! The machine's paths: where peers are, what is sent by another way, what is passed on.

use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::{self, Path, RELAY_HEADER_BYTES};
use hedgerow_model::statement::X25519Public;
use hedgerow_model::{Mono, Now};

use super::core::{Core, Handled, OVERHEAD_BYTES, Output};
use super::message::{self, HEADER_BYTES};
use super::relay::{Admission, Fate, Frame};
use super::timers::{self, NO_REPLY_TIMEOUT};
use super::{
    ACTIVE_INTERVAL, Cut, PresharedKey, PskSlot, Report, Roaming, SILENT_BUSY, SILENT_PACKETS,
};

impl Core {
    /// A relay's frame: one we pass on, or one for us.
    pub(super) fn handle_frame(&mut self, from: Underlay, frame: &mut [u8], now: Now) -> Handled {
        let Some((session, _)) = path::split_relay_frame(frame) else {
            self.stats.dropped_malformed += 1;
            return Handled::Done;
        };
        let Some(side) = self.relay.side(session) else {
            let Some(datagram) = frame.get_mut(RELAY_HEADER_BYTES..) else {
                return Handled::Done;
            };
            let at = |i: usize| i + RELAY_HEADER_BYTES;
            return match self.handle_bare(Path::relayed(from, session), datagram, now) {
                Some(range) => Handled::Deliver(at(range.start)..at(range.end)),
                None => Handled::Done,
            };
        };
        let place = |device| self.peers.get(self.peers.by_device(&device)?)?.endpoint;
        let is_its = place(side.from) == Some(Path::direct(from));
        let to = place(side.to).filter(Path::is_direct);
        let Some(to) = to.filter(|_| is_its) else {
            self.stats.dropped_relay += 1;
            return Handled::Done;
        };
        message::put(frame, 0, &path::relay_header(side.out));
        match self.relay.admit(session, frame.len(), now.mono) {
            Admission::Now => {
                self.note_relayed(frame.len());
                return Handled::Forward(to.to);
            }
            Admission::Later => {
                let dropped = self.relay.hold(session, to.to, frame, now.mono);
                self.stats.dropped_relay_queue += dropped;
            }
            Admission::Never => self.stats.dropped_relay_session += 1,
        }
        Handled::Done
    }

    fn note_relayed(&mut self, bytes: usize) {
        self.stats.relayed_frames += 1;
        self.stats.relayed_bytes += u64::try_from(bytes).unwrap_or(0);
    }

    /// Passes on what waited, as far as the rate allows.
    pub(super) fn pass_held(&mut self, now: Mono) {
        while let Some((frame, fate)) = self.relay.next(now) {
            match fate {
                Fate::Late => self.stats.dropped_relay_delay += 1,
                Fate::Ended => self.stats.dropped_relay += 1,
                Fate::Passes => {
                    let Frame {
                        to, class, bytes, ..
                    } = frame;
                    self.note_relayed(bytes.len());
                    self.outputs.push_back(Output::PassOn { to, class, bytes });
                }
            }
        }
    }

    /// Notes the traffic class of the datagrams that come next: a frame that has to wait keeps it.
    pub fn note_class(&mut self, class: u8) {
        self.relay.class = class;
    }

    /// A packet was sent to a peer whose paths the mesh chooses: it is told that they are used, and if
    /// nothing comes back.
    pub(super) fn note_use(&mut self, place: u32, now: Mono) {
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        if peer.roaming == Roaming::Follow {
            return;
        }
        let is_new = match peer.due.silent {
            None => {
                peer.due.silent = Some(now + peer.silent_after);
                peer.unanswered = 1;
                true
            }
            Some(due) => {
                peer.unanswered = peer.unanswered.saturating_add(1);
                let sooner = peer.silent_after.saturating_sub(SILENT_BUSY);
                let is_busy = peer.unanswered == SILENT_PACKETS && !sooner.is_zero();
                if is_busy {
                    let due = Mono::ZERO + due.since(Mono::ZERO + sooner);
                    peer.due.silent = Some(due.max(now));
                }
                is_busy
            }
        };
        let was = peer.active_at.map(|at| now.since(at));
        if was.is_none_or(|ago| ago >= ACTIVE_INTERVAL) {
            peer.active_at = Some(now);
            let device = peer.device;
            self.report(Report::Active { device });
        }
        if is_new {
            self.arm(place);
        }
    }

    /// Sends a datagram, inside a relay's frame where the path has one.
    pub(super) fn send(&mut self, to: Path, bytes: Vec<u8>) {
        let bytes = match to.relay {
            None => bytes,
            Some(session) => [&path::relay_header(session)[..], &bytes].concat(),
        };
        self.outputs.push_back(Output::Send {
            to: to.to,
            bytes,
            cut: Cut::Allowed,
        });
    }

    pub(super) fn move_peer(&mut self, device: &DeviceId, path: Path, now: Now) {
        let Some(place) = self.peers.by_device(device) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        let is_other = peer.endpoint.replace(path) != Some(path);
        let is_live = peer.sender(now.mono).is_some();
        if is_other && peer.handshake.is_some() {
            self.hasten_handshake(place, now);
        } else if is_other && !is_live && peer.waiting.len() > 0 {
            self.begin_handshake(place, now);
        }
    }

    pub(super) fn set_psk(
        &mut self,
        device: &DeviceId,
        keys: Option<[X25519Public; 2]>,
        (psk, slot): (Option<PresharedKey>, PskSlot),
    ) {
        let place = self.peers.by_device(device);
        let Some(peer) = place.and_then(|p| self.peers.get_mut(p)) else {
            return;
        };
        match (keys, psk) {
            (Some([local, remote]), Some(psk)) => {
                if let Some(key) = peer.key_mut(&remote) {
                    key.set_agreed(local, psk, slot);
                }
            }
            (Some(_), None) => {}
            (None, psk) => {
                if let Some(key) = peer.current_key.as_mut() {
                    key.set_psk(psk);
                }
            }
        }
    }

    /// Seals a message of our agent into the session that lives, and sends it by `via`.
    pub(super) fn send_message(
        &mut self,
        device: &DeviceId,
        via: Option<Path>,
        (message, cut): (&[u8], Cut),
        now: Now,
    ) {
        let len = message.len();
        let place = self.peers.by_device(device).filter(|_| len <= self.mtu);
        let mut bytes = vec![0; len + OVERHEAD_BYTES];
        message::put(&mut bytes, HEADER_BYTES, message);
        let mtu = self.mtu;
        let peer = place.and_then(|p| self.peers.get_mut(p));
        let sealed = peer.and_then(|peer| {
            let path = via.or(peer.endpoint)?;
            let session = peer.sender(now.mono)?;
            let sealed = session.seal(&mut self.ready, &mut bytes, (len, mtu))?;
            let rekey =
                timers::rekey_on_send(session.agreed.side, session.age(now.mono), session.counter);
            // What the network may lose for its length is no sign of life.
            if peer.endpoint == Some(path) && cut == Cut::Allowed {
                peer.due.keepalive = None;
                peer.due.persistent = peer.keepalive.map(|interval| now.mono + interval);
            }
            if via.is_none() {
                peer.due.reply.get_or_insert(now.mono + NO_REPLY_TIMEOUT);
            }
            Some((path, sealed, rekey))
        });
        let (Some(place), Some((path, sealed, rekey))) = (place, sealed) else {
            self.stats.dropped_messages += 1;
            return;
        };
        bytes.truncate(sealed);
        self.send(path, bytes);
        if let Some(Output::Send { cut: allowed, .. }) = self.outputs.back_mut() {
            *allowed = cut;
        }
        if rekey {
            self.begin_handshake(place, now);
        }
        self.arm(place);
    }
}
