//! Leave to seal: what the machine decides for a whole super-packet at once, so that its pieces can be
//! sealed elsewhere.

use hedgerow_model::Now;
use hedgerow_model::address::Overlay;
use hedgerow_model::path::Path;

use super::core::{Core, Sealed, frame};
use super::inner;
use super::session::Seal;
use super::timers;

/// Leave to send some packets of one flow: to whom, under which key, with which counters. A packet that
/// is not sent after all is a packet lost.
pub struct Pass {
    path: Path,
    seal: Seal,
    mtu: usize,
}

impl Pass {
    /// Seals packet `n` of these: `len` bytes after the header's room in `buffer`, as for
    /// [`Core::handle_inner_packet`]. `None` when there is no such packet, or no room.
    pub fn seal(&self, n: usize, buffer: &mut [u8], len: usize) -> Option<Sealed> {
        let n = u64::try_from(n).ok()?;
        let sealed = self.seal.seal(n, buffer, len, self.mtu)?;
        frame(self.path, buffer, sealed)
    }
}

/// What a super-packet becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieces {
    /// How many packets.
    pub count: usize,
    /// Bytes of the longest.
    pub longest: usize,
    /// Bytes of all.
    pub bytes: usize,
}

impl Core {
    /// Judges all packets of a super-packet by its headers. `None` when each has to be handled by itself:
    /// there is no session, the destination is wanted, or it is not to be sent.
    pub fn pass(&mut self, packet: &[u8], pieces: Pieces, now: Now) -> Option<Pass> {
        let ends = inner::decode(packet)?;
        if !self.addresses.contains(Overlay(ends.src))
            || ends.dst.is_multicast()
            || pieces.longest > self.mtu
        {
            return None;
        }
        let place = self.peers.by_address(&ends.dst)?;
        let mtu = self.mtu;
        let peer = self.peers.get_mut(place)?;
        if peer
            .mtu
            .is_some_and(|mtu| pieces.longest > usize::from(mtu))
        {
            return None;
        }
        let path = peer.endpoint?;
        let session = peer.packet_sender(now.mono)?;
        let seal = session.take(&mut self.ready, u64::try_from(pieces.count).ok()?)?;
        let (side, age) = (session.agreed.side, session.age(now.mono));
        let rekey = timers::rekey_on_send(side, age, session.counter);
        self.note_sent(place, (pieces.count, pieces.bytes), now);
        if rekey {
            self.begin_handshake(place, now);
        }
        Some(Pass { path, seal, mtu })
    }
}
