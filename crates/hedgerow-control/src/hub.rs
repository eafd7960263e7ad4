//! Who is connected, how far each has come, and how sessions are woken.
//!
//! A change sets bits; nothing is queued per agent. A session that wakes computes what it lacks from
//! the newest snapshot.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hedgerow_model::address::Underlay;
use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::{Mono, Wall};
use tokio::sync::{Notify, watch};

use crate::service::live::Questions;

/// What a session has to look at again.
pub(crate) mod dirty {
    /// Manifest, revocations, states: what takes away.
    pub(crate) const TRUST: u32 = 1;
    /// The device's own ticket.
    pub(crate) const TICKET: u32 = 1 << 1;
    /// Its program.
    pub(crate) const PROGRAM: u32 = 1 << 2;
    /// Its site's configuration.
    pub(crate) const CONFIG: u32 = 1 << 3;
    /// The names it may know.
    pub(crate) const NAMES: u32 = 1 << 4;
    /// A fresh beacon is there.
    pub(crate) const BEACON: u32 = 1 << 5;
    /// Its record: it may have ended, or been released.
    pub(crate) const RECORD: u32 = 1 << 6;
    /// Another session shows the same identity.
    pub(crate) const CONTESTED: u32 = 1 << 7;
    /// The controller stops.
    pub(crate) const STOP: u32 = 1 << 8;
    /// A later session waits in the place where this one was held.
    pub(crate) const REPLACED: u32 = 1 << 9;
    /// Somebody wants to know which flows are open on the device.
    pub(crate) const FLOWS: u32 = 1 << 10;
    /// An operator wants it to connect again.
    pub(crate) const RECONNECT: u32 = 1 << 11;
    /// An operator wants it to make new tunnel keys.
    pub(crate) const ROTATE_KEYS: u32 = 1 << 12;
    /// Everything that is sent.
    pub(crate) const ALL: u32 = TRUST | TICKET | PROGRAM | CONFIG | NAMES;
}

/// How a session is woken.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    bits: AtomicU32,
    raised: AtomicU64,
    handled: AtomicU64,
    notify: Notify,
}

impl Signal {
    /// Sets bits and wakes the session.
    pub(crate) fn raise(&self, bits: u32) {
        self.bits.fetch_or(bits, Ordering::AcqRel);
        self.raised.fetch_add(1, Ordering::AcqRel);
        self.notify.notify_one();
    }

    /// Takes every bit, and the mark to give back to [`Signal::handled`].
    pub(crate) fn take(&self) -> (u32, u64) {
        let mark = self.raised.load(Ordering::Acquire);
        (self.bits.swap(0, Ordering::AcqRel), mark)
    }

    /// Notes that everything raised until `mark` was looked at.
    pub(crate) fn handled(&self, mark: u64) {
        self.handled.fetch_max(mark, Ordering::AcqRel);
    }

    /// Returns whether something was raised that the session has not looked at yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.raised.load(Ordering::Acquire) > self.handled.load(Ordering::Acquire)
    }

    /// Waits until bits were set since the last wait.
    pub(crate) async fn raised(&self) {
        self.notify.notified().await;
    }
}

/// A live session.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    /// Its number.
    pub(crate) session: u64,
    /// Wakes it.
    pub(crate) signal: Arc<Signal>,
    /// When it began.
    pub(crate) since: Wall,
    /// Where it comes from.
    pub(crate) source: String,
}

/// How far a device has come with updates.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// What it was last told to hold.
    pub(crate) wanted: Option<Revision>,
    /// What it has in hand.
    pub(crate) received: Option<(Revision, Mono, Wall)>,
    /// What stands in its kernel.
    pub(crate) verified: Option<(Revision, Digest, Mono, Wall)>,
    /// What it refused last.
    pub(crate) rejected: Option<(Revision, String)>,
}

impl Progress {
    /// Returns whether everything it was told stands in its kernel.
    fn is_verified(&self) -> bool {
        match (self.wanted, self.verified) {
            (Some(wanted), Some(verified)) => verified.0 >= wanted,
            (None, _) | (_, None) => false,
        }
    }
}

/// What is known of a device's connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    /// The session that is served.
    pub(crate) live: Option<Live>,
    /// A later session with the same identity, held.
    pub(crate) held: Option<Live>,
    /// Updates.
    pub(crate) progress: Progress,
    /// Where the mesh may reach it.
    pub(crate) endpoints: Vec<Underlay>,
    /// Relays it says it is registered with.
    pub(crate) relays: Vec<DeviceId>,
    /// Its agent's version.
    pub(crate) agent_version: String,
    /// When it last spoke.
    pub(crate) seen: Wall,
    /// The newest start of its agent, beyond what the store has yet.
    pub(crate) generation: u64,
    /// Events of this session below this sequence number are stored.
    pub(crate) events_upto: u64,
    /// When it was last given a certificate.
    pub(crate) renewed: Option<Mono>,
}

impl Status {
    /// Returns whether the device's kernel enforces everything that is decided for it.
    pub(crate) fn is_verified(&self) -> bool {
        let pending = self.live.as_ref().is_some_and(|l| l.signal.is_pending());
        !pending && self.progress.is_verified()
    }
}

/// Counters for `GET metrics`.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Connections accepted.
    pub(crate) accepted: AtomicU64,
    /// Connections closed before a handshake because too many waited.
    pub(crate) shed: AtomicU64,
    /// Handshakes that failed.
    pub(crate) handshakes_failed: AtomicU64,
    /// Agents sent away because too many were connected.
    pub(crate) busy: AtomicU64,
    /// Messages refused.
    pub(crate) refused: AtomicU64,
    /// Updates sent.
    pub(crate) updates: AtomicU64,
    /// Certificates issued.
    pub(crate) issued: AtomicU64,
    /// Events dropped because the writer was behind.
    pub(crate) events_dropped: AtomicU64,
}

impl Counters {
    /// Adds one.
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads one.
    pub(crate) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Every device's status, and who waits for news.
#[derive(Debug)]
pub(crate) struct Hub {
    statuses: Mutex<BTreeMap<DeviceId, Status>>,
    next_session: AtomicU64,
    served: AtomicUsize,
    open: AtomicUsize,
    progress: watch::Sender<u64>,
    /// What devices are being asked.
    pub(crate) questions: Questions,
    /// Counters.
    pub(crate) counters: Counters,
}

impl Hub {
    /// Begins with nobody connected.
    pub(crate) fn new() -> Self {
        Self {
            statuses: Mutex::default(),
            next_session: AtomicU64::new(1),
            served: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            progress: watch::Sender::new(0),
            questions: Questions::default(),
            counters: Counters::default(),
        }
    }

    /// Locks the statuses. A panic elsewhere leaves them consistent: every change is one assignment.
    pub(crate) fn statuses(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Status>> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a number for a new session.
    pub(crate) fn session_number(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }

    /// Reads or changes one device's status.
    pub(crate) fn with<T>(&self, device: DeviceId, f: impl FnOnce(&mut Status) -> T) -> T {
        f(self.statuses().entry(device).or_default())
    }

    /// Forgets a device that has no session.
    pub(crate) fn forget(&self, device: DeviceId) {
        let mut statuses = self.statuses();
        let idle = |s: &Status| s.live.is_none() && s.held.is_none();
        if statuses.get(&device).is_some_and(idle) {
            statuses.remove(&device);
        }
    }

    /// Wakes every session.
    pub(crate) fn raise_all(&self, bits: u32) {
        for status in self.statuses().values() {
            for live in status.live.iter().chain(&status.held) {
                live.signal.raise(bits);
            }
        }
    }

    /// Wakes one device's sessions.
    pub(crate) fn raise(&self, device: DeviceId, bits: u32) {
        if let Some(status) = self.statuses().get(&device) {
            for live in status.live.iter().chain(&status.held) {
                live.signal.raise(bits);
            }
        }
    }

    /// Tells those who wait that some device came further.
    pub(crate) fn came_further(&self) {
        self.progress.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Subscribes to [`Hub::came_further`].
    pub(crate) fn watch_progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Returns how many sessions are served.
    pub(crate) fn connected(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    /// Returns how many sessions are open: served, held, and not greeted yet.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Notes that a session began.
    pub(crate) fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a session ended.
    pub(crate) fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Notes that a device is served from now on.
    pub(crate) fn serves_one_more(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// Removes a session that ended; returns whether it was the served one, and the held one that
    /// may take its place.
    pub(crate) fn leave(&self, device: DeviceId, session: u64) -> Option<Live> {
        let mut statuses = self.statuses();
        let status = statuses.get_mut(&device)?;
        status.held.take_if(|l| l.session == session);
        let served = status.live.take_if(|l| l.session == session).is_some();
        if served {
            self.served.fetch_sub(1, Ordering::Relaxed);
        }
        served.then(|| status.held.clone())?
    }
}
