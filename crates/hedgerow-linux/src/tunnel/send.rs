//! The way out: from the TUN device through the queues into sealed trains.

use std::io;

use hedgerow_model::{Mono, Now};

use super::core::Core;
use super::flows::{Flows, Signal};
use super::offload::segment::{Malformed, Super, finish_checksum};
use super::offload::virtio::{HEADER_BYTES as VIRTIO_BYTES, Header, Kind};
use super::offload::{ecn, flow};
use super::pool::{LARGE_BYTES, Pool, SMALL_BYTES};
use super::train::Train;
use crate::tun::{Offload, Tun};
use crate::udp::Udp;

/// Packets read from the TUN device before others have their turn.
const PACKETS_PER_ROUND_MAX: usize = 128;
/// Bytes read from it before something is sent. What waits in the kernel is one line for all flows, so
/// it is emptied faster than we send.
const BYTES_READ_PER_ROUND_MAX: usize = 4 * LARGE_BYTES;
/// Bytes sent before others have their turn: one train.
const BYTES_SENT_PER_ROUND_MAX: usize = 60_000;

/// The queues before the sessions, and the train that is made up.
pub(super) struct Sender {
    pool: Pool,
    flows: Flows,
    train: Train,
    mtu: usize,
    /// Bytes before each packet of the device.
    prefix: usize,
}

impl Sender {
    pub(super) fn new(tun: &Tun, mtu: usize) -> Self {
        let prefix = match tun.offload() {
            Offload::Nothing => 0,
            Offload::Checksums | Offload::Tcp | Offload::TcpEcn | Offload::Udp => VIRTIO_BYTES,
        };
        Self {
            pool: Pool::default(),
            flows: Flows::new(Pool::CAPACITY),
            train: Train::new(mtu),
            mtu,
            prefix,
        }
    }

    /// Returns whether packets wait for their turn.
    pub(super) fn has_work(&self) -> bool {
        !self.flows.is_empty()
    }

    /// Takes packets out of the device into the queues. Where there is no room, the flow that waits
    /// with the most bytes loses its oldest packet.
    pub(super) fn fill(&mut self, tun: &Tun, core: &mut Core, now: Mono) -> io::Result<()> {
        let mut bytes = 0;
        for _ in 0..PACKETS_PER_ROUND_MAX {
            let Some(buffer) = self.make_room(core, Pool::take_large) else {
                return Ok(());
            };
            match tun.read(self.pool.room(buffer)) {
                Ok(Some(len)) => {
                    self.pool.set_len(buffer, len);
                    self.queue(buffer, len, core, now);
                    bytes += len;
                }
                Ok(None) => {
                    self.pool.give(buffer);
                    return Ok(());
                }
                Err(e) => {
                    self.pool.give(buffer);
                    return Err(e);
                }
            }
            if bytes >= BYTES_READ_PER_ROUND_MAX {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Seals and sends what goes next.
    pub(super) fn send(&mut self, core: &mut Core, udp: &Udp, now: Now) {
        let mut bytes = 0;
        while bytes < BYTES_SENT_PER_ROUND_MAX {
            let Some((number, signal)) = self.flows.pop(now.mono) else {
                break;
            };
            bytes += self.pool.bytes(number).len();
            if self.seal(number, signal, core, udp, now).is_err() {
                core.stats().dropped_outgoing += 1;
            }
            self.pool.give(number);
        }
        self.train.depart(udp, core.stats());
    }

    fn queue(&mut self, buffer: usize, len: usize, core: &mut Core, now: Mono) {
        let mut number = buffer;
        if len <= SMALL_BYTES {
            // Small packets do not hold large buffers: the next super-packet needs them.
            let small = self.make_room(core, |pool| pool.take(len));
            if let Some(small) = small {
                self.pool.copy(buffer, small);
                number = small;
            }
            self.pool.give(buffer);
            if small.is_none() {
                core.stats().dropped_queue += 1;
                return;
            }
        }
        let prefix = self.prefix;
        let packet = self.pool.bytes(number).get(prefix..).unwrap_or_default();
        let flow = flow(packet);
        self.flows.push(flow, number, len, now);
    }

    fn make_room(
        &mut self,
        core: &mut Core,
        mut take: impl FnMut(&mut Pool) -> Option<usize>,
    ) -> Option<usize> {
        loop {
            if let Some(buffer) = take(&mut self.pool) {
                return Some(buffer);
            }
            let gone = self.flows.drop_from_fattest()?;
            self.pool.give(gone);
            core.stats().dropped_queue += 1;
        }
    }

    fn seal(
        &mut self,
        number: usize,
        signal: Signal,
        core: &mut Core,
        udp: &Udp,
        now: Now,
    ) -> Result<(), Malformed> {
        let bytes = self.pool.bytes(number);
        let (header, packet) = bytes
            .split_at_mut_checked(self.prefix)
            .ok_or(Malformed::Headers)?;
        let header = match header.is_empty() {
            true => Header::default(),
            false => Header::decode(header).ok_or(Malformed::Headers)?,
        };
        // Who does not understand marks is told by a loss.
        let lost = usize::from(signal == Signal::Congestion && !ecn::mark(packet));
        core.stats().dropped_queue += u64::try_from(lost).unwrap_or(0);
        let class = ecn::class(packet);
        if header.kind == Kind::Single {
            if lost > 0 {
                return Ok(());
            }
            finish_checksum(&header, packet)?;
            let place = self.train.packet_place().get_mut(..packet.len());
            place.ok_or(Malformed::TooLong)?.copy_from_slice(packet);
            let len = packet.len();
            if let Some(sealed) = core.handle_inner_packet(self.train.place(), len, now) {
                self.train.add(sealed, class, udp, core.stats());
            }
            return Ok(());
        }
        let whole = Super::decode(&header, packet, self.mtu)?;
        for n in lost..whole.count() {
            let len = whole
                .write(packet, n, self.train.packet_place())
                .ok_or(Malformed::TooLong)?;
            if let Some(sealed) = core.handle_inner_packet(self.train.place(), len, now) {
                self.train.add(sealed, class, udp, core.stats());
            }
        }
        Ok(())
    }
}
