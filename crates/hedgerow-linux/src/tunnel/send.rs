//! The way out: from the TUN device through the queues into sealed trains.

use std::io;

use hedgerow_model::{Mono, Now};

use super::core::Core;
use super::flows::{Flows, Signal};
use super::lanes::{Cutter, Job, Lanes};
use super::offload::segment::{Malformed, Super, finish_checksum};
use super::offload::virtio::{HEADER_BYTES as VIRTIO_BYTES, Header, Kind};
use super::offload::{ecn, flow};
use super::pass::Pieces;
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

/// The queues before the sessions, and where packets are sealed.
pub(super) struct Sender {
    pool: Pool,
    flows: Flows,
    cutter: Cutter,
    lanes: Lanes,
    /// A job for which its lane has no room.
    held: Option<Box<Job>>,
    mtu: usize,
    /// Bytes before each packet of the device.
    prefix: usize,
}

impl Sender {
    pub(super) fn new(tun: &Tun, mtu: usize, lanes: Lanes) -> Self {
        let prefix = match tun.offload() {
            Offload::Nothing => 0,
            Offload::Checksums | Offload::Tcp | Offload::TcpEcn | Offload::Udp => VIRTIO_BYTES,
        };
        Self {
            pool: Pool::default(),
            flows: Flows::new(Pool::CAPACITY),
            cutter: Cutter {
                train: Train::new(mtu),
            },
            lanes,
            held: None,
            mtu,
            prefix,
        }
    }

    /// Returns whether packets wait for their turn.
    pub(super) fn has_work(&self) -> bool {
        !self.flows.is_empty() && self.held.is_none()
    }

    /// Takes packets out of the device into the queues. Where there is no room, the flow that waits
    /// with the most bytes loses its oldest packet.
    pub(super) fn fill(&mut self, tun: &Tun, core: &mut Core, now: Mono) -> io::Result<()> {
        self.lanes.collect(&mut self.pool);
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
        self.lanes.collect(&mut self.pool);
        let mut bytes = 0;
        if let Some(job) = self.held.take() {
            self.hand_on(*job, udp);
        }
        while bytes < BYTES_SENT_PER_ROUND_MAX && self.held.is_none() {
            let Some((number, signal)) = self.flows.pop(now.mono) else {
                break;
            };
            bytes += self.pool.bytes(number).len();
            match self.judge(number, signal, (core, udp), now) {
                Ok(Some(job)) => self.hand_on(job, udp),
                Ok(None) => self.pool.give(number),
                Err(_malformed) => {
                    core.stats().dropped_outgoing += 1;
                    self.pool.give(number);
                }
            }
        }
        self.cutter.train.depart(udp);
        core.stats().dropped_send += self.cutter.train.take_lost() + self.lanes.take_lost();
    }

    /// Has a job done here or on its lane.
    fn hand_on(&mut self, job: Job, udp: &Udp) {
        if !self.lanes.are_not_for(&job) {
            // What was sealed here goes first.
            self.cutter.train.depart(udp);
            self.held = self.lanes.offer(job).err();
            return;
        }
        self.cutter.work(&job, udp);
        self.pool.put_back(job.number, job.memory);
        self.pool.give(job.number);
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

    /// Decides about a packet. What has no session is handled by the machine, piece by piece: it waits
    /// there, or is refused.
    fn judge(
        &mut self,
        number: usize,
        signal: Signal,
        (core, udp): (&mut Core, &Udp),
        now: Now,
    ) -> Result<Option<Job>, Malformed> {
        let start = self.prefix;
        let bytes = self.pool.bytes(number);
        let (header, packet) = bytes
            .split_at_mut_checked(start)
            .ok_or(Malformed::Headers)?;
        let header = match header.is_empty() {
            true => Header::default(),
            false => Header::decode(header).ok_or(Malformed::Headers)?,
        };
        // Who does not understand marks is told by a loss.
        let skip = usize::from(signal == Signal::Congestion && !ecn::mark(packet));
        core.stats().dropped_queue += u64::try_from(skip).unwrap_or(0);
        let (class, flow, len) = (ecn::class(packet), flow(packet), packet.len());
        let whole = match header.kind {
            Kind::Single if skip > 0 => return Ok(None),
            Kind::Single => {
                finish_checksum(&header, packet)?;
                None
            }
            Kind::TcpV4 | Kind::TcpV6 | Kind::Udp => {
                Some(Super::decode(&header, packet, self.mtu)?)
            }
        };
        let pieces = whole.map_or(
            Pieces {
                count: 1,
                longest: len,
                bytes: len,
            },
            |whole| whole.pieces(),
        );
        let Some(pass) = core.pass(packet, pieces, now) else {
            self.keep(number, (whole, class), (core, udp), now)?;
            return Ok(None);
        };
        Ok(Some(Job {
            number,
            memory: self.pool.lift(number),
            start,
            len,
            whole,
            skip,
            class,
            pass,
            flow,
        }))
    }

    fn keep(
        &mut self,
        number: usize,
        (whole, class): (Option<Super>, u8),
        (core, udp): (&mut Core, &Udp),
        now: Now,
    ) -> Result<(), Malformed> {
        let packet = self.pool.bytes(number).get(self.prefix..);
        let packet = packet.ok_or(Malformed::Headers)?;
        let count = whole.map_or(1, |w| w.count());
        for n in 0..count {
            let place = self.cutter.train.packet_place();
            let len = match whole {
                Some(whole) => whole.write(packet, n, place),
                None => place.get_mut(..packet.len()).map(|place| {
                    place.copy_from_slice(packet);
                    packet.len()
                }),
            };
            let len = len.ok_or(Malformed::TooLong)?;
            let place = self.cutter.train.place();
            // Some pieces may go where the longest does not.
            if let Some(sealed) = core.handle_inner_packet(place, len, now) {
                self.cutter.train.add(sealed, class, udp);
            }
        }
        Ok(())
    }
}
