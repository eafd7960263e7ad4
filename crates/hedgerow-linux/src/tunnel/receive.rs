//! The way in: from trains of datagrams through the sessions into the TUN device.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::time::Duration;

use hedgerow_model::Now;
use hedgerow_model::address::Underlay;

use super::core::{Core, Handled};
use super::flows::{Delay, Signal};
use super::offload::coalesce::{Accepts, Coalescer, PIECES_MAX, Piece, Sink};
use super::offload::virtio::{HEADER_BYTES as VIRTIO_BYTES, Header};
use super::offload::{ecn, is_tcp};
use crate::tun::{Offload, Tun};
use crate::udp::{Arrived, RECEIVE_BATCH_MAX, SLOT_BYTES, Sent, Udp};

/// Bytes received before others have their turn, as far as can be foreseen.
const BYTES_PER_ROUND: usize = 64 * 1024;
/// Time in the socket's buffer that is fine, and how long it may be exceeded before flows are told. All
/// flows of all peers share this one line, so it has to be short: where we are the bottleneck, what
/// is greedy waits in its sender's queue of its own instead.
const WAIT_TARGET: Duration = Duration::from_millis(1);
/// See [`WAIT_TARGET`].
const WAIT_INTERVAL: Duration = Duration::from_millis(10);
/// Packets shorter than this belong to flows that do not make the queue.
const SIGNAL_BYTES_MIN: usize = 1000;

/// Memory for what comes in, and what is put together of it.
pub(super) struct Receiver {
    /// [`RECEIVE_BATCH_MAX`] slots; those never filled are never touched.
    memory: Vec<u8>,
    coalescer: Coalescer,
    /// How long trains wait for us.
    wait: Delay,
    /// How many trains to ask for: many short ones, few long ones.
    ask: usize,
}

/// A TUN device that is written to.
pub(super) struct Delivery<'a> {
    pub(super) tun: &'a Tun,
    /// Packets the kernel did not take.
    pub(super) lost: u64,
}

impl Sink for Delivery<'_> {
    fn write(&mut self, header: &[u8; VIRTIO_BYTES], memory: &[u8], pieces: &[Piece]) {
        let mut all = [IoSlice::new(&[]); PIECES_MAX + 1];
        let first = usize::from(self.tun.offload() > Offload::Nothing);
        if let Some(slot) = all.first_mut()
            && first == 1
        {
            *slot = IoSlice::new(header);
        }
        for (slot, piece) in all.iter_mut().skip(first).zip(pieces) {
            let bytes = memory.get(piece.at..piece.at + piece.len);
            *slot = IoSlice::new(bytes.unwrap_or_default());
        }
        let used = all.get(..pieces.len() + first).unwrap_or(&all);
        if !self.tun.write(used) {
            self.lost += 1;
        }
    }
}

/// Writes one finished packet.
pub(super) fn deliver(tun: &Tun, packet: &[u8], core: &mut Core) {
    let mut delivery = Delivery { tun, lost: 0 };
    let piece = Piece {
        at: 0,
        len: packet.len(),
    };
    delivery.write(&Header::default().encode(), packet, &[piece]);
    core.stats().dropped_tun += delivery.lost;
}

/// Returns whether a packet is of a flow that makes queues and slows down when it is told.
fn listens(packet: &[u8]) -> bool {
    packet.len() >= SIGNAL_BYTES_MIN && (is_tcp(packet) || ecn::is_capable(packet))
}

impl Receiver {
    pub(super) fn new(tun: &Tun) -> Self {
        let accepts = Accepts {
            tcp: tun.offload() >= Offload::Tcp,
            udp: tun.offload() >= Offload::Udp,
        };
        Self {
            memory: vec![0; RECEIVE_BATCH_MAX * SLOT_BYTES],
            coalescer: Coalescer::new(accepts),
            wait: Delay::new(WAIT_TARGET, WAIT_INTERVAL),
            ask: RECEIVE_BATCH_MAX,
        }
    }

    /// Receives, opens and delivers one batch.
    pub(super) fn receive(
        &mut self,
        udp: &Udp,
        tun: &Tun,
        core: &mut Core,
        now: Now,
    ) -> io::Result<()> {
        let mut arrived = [Arrived::default(); RECEIVE_BATCH_MAX];
        let room = arrived.get_mut(..self.ask).unwrap_or_default();
        let filled = udp.receive(&mut self.memory, room)?;
        let mut delivery = Delivery { tun, lost: 0 };
        let mut bytes = 0;
        for (slot, train) in arrived.iter().take(filled).enumerate() {
            bytes += train.len;
            self.take_train(slot * SLOT_BYTES, train, (udp, core), &mut delivery, now);
        }
        self.coalescer.flush(&mut self.memory, &mut delivery);
        core.stats().dropped_tun += delivery.lost;
        if let Some(each) = bytes.checked_div(filled) {
            self.ask = (BYTES_PER_ROUND / each.max(1)).clamp(1, RECEIVE_BATCH_MAX);
        }
        Ok(())
    }

    /// Takes datagrams of one source; frames to pass on leave as they came, in trains.
    fn take_train(
        &mut self,
        start: usize,
        train: &Arrived,
        (udp, core): (&Udp, &mut Core),
        delivery: &mut Delivery<'_>,
        now: Now,
    ) {
        let mut slow_down = self.wait.judge(train.waited, train.len, now.mono);
        let mut forward: Option<(Underlay, Range<usize>)> = None;
        core.note_class(train.class);
        let mut at = start;
        let train_end = start + train.len;
        while at < train_end {
            let end = (at + train.stride).min(train_end);
            let Some(datagram) = self.memory.get_mut(at..end) else {
                break;
            };
            let mut to = None;
            match core.handle_datagram(train.from, datagram, now) {
                Handled::Done => {}
                Handled::Forward(underlay) => to = Some(underlay),
                Handled::Deliver(range) => {
                    let piece = Piece {
                        at: at + range.start,
                        len: range.len(),
                    };
                    let packet = datagram.get_mut(range).unwrap_or_default();
                    let told = slow_down == Signal::Congestion && listens(packet);
                    if told {
                        slow_down = Signal::None;
                    }
                    let passes = !told || ecn::mark(packet);
                    if passes && ecn::carry_in(train.class, packet) {
                        self.coalescer.push(&mut self.memory, piece, delivery);
                    } else {
                        core.stats().dropped_congestion += 1;
                    }
                }
            }
            match (&mut forward, to) {
                (Some((before, range)), Some(to)) if *before == to => range.end = end,
                _ => {
                    self.pass_on(forward.take(), train, udp, core);
                    forward = to.map(|to| (to, at..end));
                }
            }
            at = end;
        }
        self.pass_on(forward, train, udp, core);
    }

    fn pass_on(
        &self,
        forward: Option<(Underlay, Range<usize>)>,
        train: &Arrived,
        udp: &Udp,
        core: &mut Core,
    ) {
        if let Some((to, range)) = forward
            && let Some(frames) = self.memory.get(range)
            && udp.send(to, train.class, frames, train.stride) != Sent::Yes
        {
            core.stats().dropped_send += 1;
        }
    }
}
