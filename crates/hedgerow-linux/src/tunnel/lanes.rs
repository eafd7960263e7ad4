//! Where packets are cut, sealed and sent: on the thread that decides, or on lanes beside it.
//!
//! ```text
//!            ┌─ Job ─▶ lane 0: cut, seal, send ─┐
//!   decides ─┤  by flow                         ├─▶ buffers back
//!            └─ Job ─▶ lane 1: cut, seal, send ─┘
//! ```
//!
//! A job owns all it needs: its buffer, leave to seal ([`Pass`]), how it is cut. Packets of one flow go
//! down one lane, so they keep their order. Nothing is shared but two queues, used once per job.
//!
//! A lane is worth waking for a super-packet. A single packet whose lane is idle is sealed by the thread
//! that decides: there is nothing it could overtake.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use rustix::fd::OwnedFd;

use super::Layout;
use super::offload::segment::Super;
use super::pass::Pass;
use super::pool::Pool;
use super::train::Train;
use crate::udp::Udp;

/// A job that is done: its lane, its buffer.
type Back = (usize, usize, Box<[u8]>);

/// Threads that seal.
pub const LANES_MAX: usize = 4;
/// Jobs that wait before one lane; then packets wait in their flows' queues.
const JOBS_MAX: usize = 8;

/// One packet or super-packet that may be sent.
pub(super) struct Job {
    /// The buffer's number, for when it is given back.
    pub(super) number: usize,
    pub(super) memory: Box<[u8]>,
    /// Where in it the packet is.
    pub(super) start: usize,
    pub(super) len: usize,
    /// `None` for one packet that is complete.
    pub(super) whole: Option<Super>,
    /// Pieces left out at the beginning.
    pub(super) skip: usize,
    pub(super) class: u8,
    pub(super) pass: Pass,
    pub(super) flow: u64,
}

/// Cuts and seals into a train.
pub(super) struct Cutter {
    pub(super) train: Train,
}

impl Cutter {
    /// Does a job; complete trains depart.
    pub(super) fn work(&mut self, job: &Job, udp: &Udp) {
        let packet = job.memory.get(job.start..job.start + job.len);
        let packet = packet.unwrap_or_default();
        let Some(whole) = job.whole else {
            let place = self.train.packet_place().get_mut(..packet.len());
            if let Some(place) = place {
                place.copy_from_slice(packet);
                self.seal(job, 0, packet.len(), udp);
            }
            return;
        };
        for n in job.skip..whole.count() {
            if let Some(len) = whole.write(packet, n, self.train.packet_place()) {
                self.seal(job, n, len, udp);
            }
        }
    }

    fn seal(&mut self, job: &Job, n: usize, len: usize, udp: &Udp) {
        if let Some(sealed) = job.pass.seal(n, self.train.place(), len) {
            self.train.add(sealed, job.class, udp);
        }
    }
}

/// What the lanes share with the thread that decides.
#[derive(Debug, Default)]
struct Shared {
    /// Datagrams the kernel did not take.
    lost: AtomicU64,
    /// The thread that decides waits for room.
    is_waiting: AtomicBool,
}

struct Lane {
    jobs: Option<SyncSender<Job>>,
    /// Jobs whose buffers have not come back.
    busy: usize,
    thread: Option<JoinHandle<()>>,
}

/// The lanes; ended when dropped.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    back: Receiver<Back>,
    shared: Arc<Shared>,
    lost: u64,
}

impl Lanes {
    /// Starts as many as the layout says; none where all is done on one thread.
    pub(super) fn start(
        layout: Layout,
        mtu: usize,
        udp: &Arc<Udp>,
        bell: &Arc<OwnedFd>,
    ) -> std::io::Result<Self> {
        let count = match layout {
            Layout::One => 0,
            Layout::Lanes(count) => count.min(LANES_MAX),
            Layout::Auto => match std::thread::available_parallelism().map_or(1, usize::from) {
                0..=2 => 0,
                cores => (cores - 1).min(LANES_MAX),
            },
        };
        let shared = Arc::new(Shared::default());
        // As many as there are buffers: giving back never waits. Without lanes nothing is given.
        let room = if count == 0 { 1 } else { Pool::CAPACITY };
        let (give, back) = sync_channel(room);
        let start = |n: usize| {
            let (jobs, work) = sync_channel(JOBS_MAX);
            let (udp, bell, shared) = (Arc::clone(udp), Arc::clone(bell), Arc::clone(&shared));
            let give = give.clone();
            let thread = std::thread::Builder::new()
                .name(format!("tunnel-lane-{n}"))
                .spawn(move || run(&work, (n, &give), mtu, &udp, &bell, &shared))?;
            Ok(Lane {
                jobs: Some(jobs),
                busy: 0,
                thread: Some(thread),
            })
        };
        let lanes: std::io::Result<Vec<Lane>> = (0..count).map(start).collect();
        Ok(Self {
            lanes: lanes?,
            back,
            shared,
            lost: 0,
        })
    }

    /// Returns whether a job is better done by the thread that decides, and overtakes nothing there.
    pub(super) fn are_not_for(&self, job: &Job) -> bool {
        let lane = self.lanes.get(self.place(job.flow));
        lane.is_none_or(|lane| lane.busy == 0 && job.whole.is_none())
    }

    /// Hands a job to its flow's lane, or gives it back when too many wait there: the bell rings when
    /// there is room.
    pub(super) fn offer(&mut self, job: Job) -> Result<(), Box<Job>> {
        let place = self.place(job.flow);
        let lane = self.lanes.get_mut(place);
        let Some((busy, jobs)) = lane.and_then(|l| Some((&mut l.busy, l.jobs.as_ref()?))) else {
            return Err(Box::new(job));
        };
        let back = |job| match job {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => Box::new(job),
        };
        if let Err(full) = jobs.try_send(job) {
            // Said before the second try: whoever makes room after it rings.
            self.shared.is_waiting.store(true, Ordering::SeqCst);
            jobs.try_send(*back(full)).map_err(back)?;
        }
        *busy += 1;
        Ok(())
    }

    /// Takes back the buffers of jobs that are done.
    pub(super) fn collect(&mut self, pool: &mut Pool) {
        while let Ok((lane, number, memory)) = self.back.try_recv() {
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.busy = lane.busy.saturating_sub(1);
            }
            pool.put_back(number, memory);
            pool.give(number);
        }
    }

    fn place(&self, flow: u64) -> usize {
        let count = u64::try_from(self.lanes.len()).unwrap_or(1).max(1);
        usize::try_from((flow >> 32) % count).unwrap_or(0)
    }

    /// Returns how many datagrams the kernel did not take since the last call.
    pub(super) fn take_lost(&mut self) -> u64 {
        let all = self.shared.lost.load(Ordering::Relaxed);
        all - std::mem::replace(&mut self.lost, all)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        for lane in &mut self.lanes {
            lane.jobs = None;
        }
        for lane in &mut self.lanes {
            if lane.thread.take().is_some_and(|t| t.join().is_err()) {
                tracing::error!("a lane of the tunnel panicked");
            }
        }
    }
}

fn run(
    work: &Receiver<Job>,
    (own, give): (usize, &SyncSender<Back>),
    mtu: usize,
    udp: &Udp,
    bell: &OwnedFd,
    shared: &Shared,
) {
    let train = Train::new(mtu);
    let mut cutter = Cutter { train };
    while let Ok(first) = work.recv() {
        let mut next = Some(first);
        while let Some(job) = next {
            cutter.work(&job, udp);
            next = work.try_recv().ok();
            if next.is_none() {
                // Whoever takes the buffer back may send the next packet of the flow itself.
                cutter.train.depart(udp);
            }
            // Nobody takes buffers back once the tunnel ends.
            drop(give.try_send((own, job.number, job.memory)));
            if shared.is_waiting.swap(false, Ordering::SeqCst) {
                super::run::wake(bell);
            }
        }
        let lost = cutter.train.take_lost();
        shared.lost.fetch_add(lost, Ordering::Relaxed);
    }
}
