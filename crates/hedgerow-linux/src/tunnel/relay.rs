//! A relay's table: whose frames go where, and how much of it. Frames are passed on unread.
//!
//! A side that sends more than its rate loses what is above it and takes nothing from others. When all together send
//! more than the device's rate, frames wait in queues by session ([`Flows`]): fair by bytes, and where there is no room
//! the session of which the most waits loses its oldest. While anything waits nothing overtakes it, so the order
//! within a session stays.

use std::collections::HashMap;
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::RelaySession;

use super::flows::{Flows, Signal};

/// Sides of sessions that a relay passes on; a further one is not set, and its frames are dropped.
pub const RELAY_SIDES_MAX: usize = 32_768;

/// Frames that wait while all sessions together exceed the rate; one more takes the place of the oldest of the session
/// of which the most waits.
pub const RELAY_QUEUED_FRAMES_MAX: usize = 1024;
/// Bytes of them; the same happens.
pub const RELAY_QUEUED_BYTES_MAX: usize = 1 << 20;
/// Bytes passed at once after a pause, at least: a train of each of two sessions.
const BURST_BYTES_MIN: u64 = 128 << 10;
/// How long a rate may be made up for after a pause.
const BURST: Duration = Duration::from_millis(50);

/// How much a relay passes on, in bytes per second; none is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimits {
    /// Of one side of a session.
    pub session: Option<u64>,
    /// Of all together.
    pub total: Option<u64>,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            session: Some(25_000_000),
            total: Some(125_000_000),
        }
    }
}

/// Bytes that may pass; a frame passes while any are left, and is paid for afterwards.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: i64,
    at: Mono,
}

impl Bucket {
    fn new(rate: Option<u64>, now: Mono) -> Self {
        let left = rate.map_or(0, |rate| signed(burst(rate)));
        Self { left, at: now }
    }

    /// Returns whether a frame may pass now.
    fn has_room(&mut self, rate: Option<u64>, now: Mono) -> bool {
        let Some(rate) = rate else {
            return true;
        };
        let micros = u64::try_from(now.since(self.at).as_micros()).unwrap_or(u64::MAX);
        let gained = rate.saturating_mul(micros) / 1_000_000;
        let full = signed(burst(rate));
        if self.left.saturating_add(signed(gained)) >= full {
            *self = Self {
                left: full,
                at: now,
            };
        } else if gained > 0 {
            // Only as much time has passed as was gained for: a slow rate must not lose the rest.
            self.left += signed(gained);
            self.at = self.at + Duration::from_micros(gained * 1_000_000 / rate.max(1));
        }
        self.left > 0
    }

    fn take(&mut self, rate: Option<u64>, bytes: usize) {
        if rate.is_some() {
            self.left = self
                .left
                .saturating_sub_unsigned(u64::try_from(bytes).unwrap_or(0));
        }
    }

    /// Returns when a frame may pass.
    fn ready_at(&self, rate: Option<u64>) -> Mono {
        match rate {
            Some(rate) if self.left <= 0 => {
                let lacks = self.left.unsigned_abs() + 1;
                let micros = lacks.saturating_mul(1_000_000).div_ceil(rate.max(1));
                self.at + Duration::from_micros(micros)
            }
            Some(_) | None => self.at,
        }
    }
}

fn burst(rate: u64) -> u64 {
    let millis = u64::try_from(BURST.as_millis()).unwrap_or(0);
    (rate.saturating_mul(millis) / 1000).max(BURST_BYTES_MIN)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A frame that waits, as it will be sent.
#[derive(Debug)]
pub(super) struct Frame {
    session: RelaySession,
    pub(super) to: Underlay,
    /// Traffic class.
    pub(super) class: u8,
    pub(super) bytes: Vec<u8>,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is passed on at once.
    Now,
    /// It waits.
    Later,
    /// Its session has sent too much.
    Never,
}

/// What becomes of a frame that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes.
    Passes,
    /// It waited too long and is lost, so that its flow slows down.
    Late,
    /// Its session is none any more: who was taken out while it waited sends nothing.
    Ended,
}

/// Frames that wait, by number.
#[derive(Debug)]
struct Held {
    flows: Flows,
    frames: Vec<Option<Frame>>,
    free: Vec<usize>,
}

impl Held {
    fn new() -> Self {
        Self {
            flows: Flows::new(RELAY_QUEUED_FRAMES_MAX),
            frames: std::iter::repeat_with(|| None)
                .take(RELAY_QUEUED_FRAMES_MAX)
                .collect(),
            free: (0..RELAY_QUEUED_FRAMES_MAX).collect(),
        }
    }

    fn remove(&mut self, number: usize) -> Option<Frame> {
        self.free.push(number);
        self.frames.get_mut(number)?.take()
    }

    /// Keeps a frame; returns how many others went for it.
    fn push(&mut self, frame: Frame, now: Mono) -> u64 {
        let (session, bytes) = (frame.session, frame.bytes.len());
        let mut dropped = 0;
        while self.free.is_empty() || self.flows.bytes() + bytes > RELAY_QUEUED_BYTES_MAX {
            let Some(gone) = self.flows.drop_from_fattest() else {
                break;
            };
            self.remove(gone);
            dropped += 1;
        }
        let Some(number) = self.free.pop() else {
            return dropped + 1;
        };
        if let Some(place) = self.frames.get_mut(number) {
            *place = Some(frame);
        }
        self.flows.push(u64::from(session.0), number, bytes, now);
        dropped
    }
}

/// One direction of a session through this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Side {
    /// Who sends under this number.
    pub(super) from: DeviceId,
    /// Who gets it.
    pub(super) to: DeviceId,
    /// Under which number.
    pub(super) out: RelaySession,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Relay {
    sides: HashMap<RelaySession, (Side, Option<Bucket>)>,
    limits: RelayLimits,
    total: Option<Bucket>,
    /// Absent until something has to wait.
    held: Option<Box<Held>>,
    /// Traffic class of the train that is being taken.
    pub(super) class: u8,
}

impl Relay {
    /// Sets the rates; every bucket is full again.
    pub(super) fn set_limits(&mut self, limits: RelayLimits) {
        self.limits = limits;
        self.total = None;
        for (_, bucket) in self.sides.values_mut() {
            *bucket = None;
        }
    }

    /// Judges a frame of a session that is in the table.
    pub(super) fn admit(&mut self, session: RelaySession, bytes: usize, now: Mono) -> Admission {
        let RelayLimits {
            session: own,
            total,
        } = self.limits;
        let Some((_, bucket)) = self.sides.get_mut(&session) else {
            return Admission::Never;
        };
        let bucket = bucket.get_or_insert_with(|| Bucket::new(own, now));
        if !bucket.has_room(own, now) {
            return Admission::Never;
        }
        bucket.take(own, bytes);
        let all = self.total.get_or_insert_with(|| Bucket::new(total, now));
        let waits = self.held.as_ref().is_some_and(|h| !h.flows.is_empty());
        if waits || !all.has_room(total, now) {
            return Admission::Later;
        }
        all.take(total, bytes);
        Admission::Now
    }

    /// Lets a frame wait; returns how many were dropped for it.
    pub(super) fn hold(
        &mut self,
        session: RelaySession,
        to: Underlay,
        frame: &[u8],
        now: Mono,
    ) -> u64 {
        let held = self.held.get_or_insert_with(|| Box::new(Held::new()));
        let frame = Frame {
            session,
            to,
            class: self.class,
            bytes: frame.to_vec(),
        };
        held.push(frame, now)
    }

    /// Takes out the frame that goes next, if one may go now, and what becomes of it.
    pub(super) fn next(&mut self, now: Mono) -> Option<(Frame, Fate)> {
        let rate = self.limits.total;
        let held = self.held.as_mut().filter(|h| !h.flows.is_empty())?;
        let all = self.total.get_or_insert_with(|| Bucket::new(rate, now));
        if !all.has_room(rate, now) {
            return None;
        }
        let (number, signal) = held.flows.pop(now)?;
        let frame = held.remove(number)?;
        let fate = match signal {
            _ if !self.sides.contains_key(&frame.session) => Fate::Ended,
            Signal::Congestion => Fate::Late,
            Signal::None => {
                all.take(rate, frame.bytes.len());
                Fate::Passes
            }
        };
        Some((frame, fate))
    }

    /// Returns when something that waits may go.
    pub(super) fn deadline(&self) -> Mono {
        match (&self.held, &self.total) {
            (Some(held), Some(all)) if !held.flows.is_empty() => all.ready_at(self.limits.total),
            (_, _) => Mono::NEVER,
        }
    }

    /// Returns how many sides there are.
    pub(super) fn len(&self) -> usize {
        self.sides.len()
    }

    /// Adds or changes a side; `false` when the table is full.
    pub(super) fn set(&mut self, session: RelaySession, side: Side) -> bool {
        if self.sides.len() >= RELAY_SIDES_MAX && !self.sides.contains_key(&session) {
            return false;
        }
        let bucket = self.sides.get(&session).and_then(|(_, bucket)| *bucket);
        self.sides.insert(session, (side, bucket));
        true
    }

    pub(super) fn forget(&mut self, session: RelaySession) {
        self.sides.remove(&session);
    }

    /// Forgets every side that begins or ends at a device.
    pub(super) fn forget_device(&mut self, device: DeviceId) {
        self.sides
            .retain(|_, (side, _)| side.from != device && side.to != device);
    }

    pub(super) fn side(&self, session: RelaySession) -> Option<Side> {
        self.sides.get(&session).map(|(side, _)| *side)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const TO: Underlay = Underlay(std::net::SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        7117,
    ));

    fn at(ms: u64) -> Mono {
        Mono(Duration::from_millis(ms))
    }

    fn relay(limits: RelayLimits, sessions: u32) -> Relay {
        let mut relay = Relay::default();
        relay.set_limits(limits);
        for n in 1..=sessions {
            let side = Side {
                from: DeviceId([1; 16]),
                to: DeviceId([2; 16]),
                out: RelaySession(100 + n),
            };
            assert!(relay.set(RelaySession(n), side));
        }
        relay
    }

    /// What became of frames, by session: passed, and lost.
    #[derive(Debug, Default)]
    struct Seen {
        passed: BTreeMap<u32, Vec<Vec<u8>>>,
        never: BTreeMap<u32, u64>,
        squeezed_out: u64,
        late: u64,
        ended: u64,
    }

    impl Seen {
        fn bytes(&self, session: u32) -> usize {
            let frames = self.passed.get(&session).into_iter().flatten();
            frames.map(Vec::len).sum()
        }

        fn drain(&mut self, relay: &mut Relay, now: Mono) {
            while let Some((frame, signal)) = relay.next(now) {
                match signal {
                    Fate::Passes => {
                        let session = u32::from(frame.bytes[0]);
                        self.passed.entry(session).or_default().push(frame.bytes);
                    }
                    Fate::Late => self.late += 1,
                    Fate::Ended => self.ended += 1,
                }
            }
        }

        fn offer(&mut self, relay: &mut Relay, session: u32, frame: &[u8], now: Mono) {
            let number = RelaySession(session);
            match relay.admit(number, frame.len(), now) {
                Admission::Now => {
                    self.passed.entry(session).or_default().push(frame.to_vec());
                }
                Admission::Later => self.squeezed_out += relay.hold(number, TO, frame, now),
                Admission::Never => *self.never.entry(session).or_default() += 1,
            }
        }
    }

    fn frame(session: u32, number: u32, bytes: usize) -> Vec<u8> {
        let mut frame = vec![u8::try_from(session).unwrap(); bytes.max(5)];
        frame[1..5].copy_from_slice(&number.to_be_bytes());
        frame
    }

    #[test]
    fn a_greedy_session_and_a_modest_one_share_the_total_evenly() {
        let total = Some(1_000_000);
        let mut relay = relay(
            RelayLimits {
                session: None,
                total,
            },
            2,
        );
        let mut seen = Seen::default();
        // Both want more than half: one ten times as much as all there is, the other three quarters.
        for ms in 0..4000 {
            seen.drain(&mut relay, at(ms));
            for n in 0..10 {
                seen.offer(&mut relay, 1, &frame(1, n, 1000), at(ms));
            }
            if ms % 4 > 0 {
                seen.offer(&mut relay, 2, &frame(2, 0, 1000), at(ms));
            }
        }
        let (greedy, modest) = (seen.bytes(1), seen.bytes(2));
        assert!(greedy.abs_diff(modest) < 400_000, "{greedy} {modest}");
        assert!(
            (3_900_000..4_300_000).contains(&(greedy + modest)),
            "{greedy} {modest}"
        );
        assert!(seen.squeezed_out > 0);
    }

    #[test]
    fn a_session_above_its_own_limit_takes_nothing_from_others() {
        let limits = RelayLimits {
            session: Some(200_000),
            total: Some(1_000_000),
        };
        let mut relay = relay(limits, 2);
        let mut seen = Seen::default();
        for ms in 0..5000 {
            seen.drain(&mut relay, at(ms));
            for n in 0..20 {
                seen.offer(&mut relay, 1, &frame(1, n, 1000), at(ms));
            }
            if ms % 10 == 0 {
                seen.offer(&mut relay, 2, &frame(2, 0, 1500), at(ms));
            }
        }
        assert_eq!(seen.passed[&2].len(), 500, "every frame of the other");
        assert_eq!((seen.squeezed_out, seen.late), (0, 0));
        let passed = seen.bytes(1);
        assert!((950_000..1_200_000).contains(&passed), "{passed}");
        assert!(seen.never[&1] > 90_000 && !seen.never.contains_key(&2));
    }

    #[test]
    fn what_waits_is_bounded_and_the_fattest_session_loses_first() {
        let limits = RelayLimits {
            session: None,
            total: Some(1000),
        };
        let mut relay = relay(limits, 2);
        let mut seen = Seen::default();
        seen.offer(&mut relay, 1, &frame(1, 0, 200_000), at(0));
        seen.offer(&mut relay, 2, &frame(2, 7, 500), at(0));
        for n in 0..10_000 {
            seen.offer(&mut relay, 1, &frame(1, n, 1400), at(0));
        }
        let held = relay.held.as_ref().unwrap();
        assert!(held.flows.bytes() <= RELAY_QUEUED_BYTES_MAX);
        assert!(held.frames.iter().flatten().count() <= RELAY_QUEUED_FRAMES_MAX);
        assert!(held.frames.iter().flatten().any(|f| f.bytes[0] == 2));
        // Small ones are bounded by their number.
        for n in 0..10_000 {
            seen.offer(&mut relay, 1, &frame(1, n, 40), at(0));
        }
        let held = relay.held.as_ref().unwrap();
        assert_eq!(
            held.frames.iter().flatten().count() + held.free.len(),
            RELAY_QUEUED_FRAMES_MAX
        );
    }

    #[test]
    fn attack_what_waits_of_a_device_that_is_taken_out_is_not_passed_on() {
        let limits = RelayLimits {
            session: None,
            total: Some(1000),
        };
        let mut relay = relay(limits, 2);
        let mut seen = Seen::default();
        seen.offer(&mut relay, 1, &frame(1, 0, 200_000), at(0));
        let passed = seen.bytes(1);
        for n in 0..10 {
            seen.offer(&mut relay, 1, &frame(1, n, 1000), at(0));
        }
        relay.forget(RelaySession(1));
        while relay.deadline() != Mono::NEVER {
            let due = relay.deadline();
            seen.drain(&mut relay, due);
        }
        assert_eq!((seen.bytes(1), seen.ended), (passed, 10));
    }

    #[test]
    fn without_limits_everything_passes_at_once() {
        let limits = RelayLimits {
            session: None,
            total: None,
        };
        let mut relay = relay(limits, 1);
        for _ in 0..100_000 {
            let admitted = relay.admit(RelaySession(1), 1400, at(0));
            assert_eq!(admitted, Admission::Now);
        }
        assert!(relay.held.is_none() && relay.deadline() == Mono::NEVER);
        assert_eq!(relay.admit(RelaySession(9), 1, at(0)), Admission::Never);
    }

    #[test]
    fn a_slow_rate_is_kept_however_often_it_is_asked() {
        let rate = Some(3000);
        let mut bucket = Bucket::new(rate, at(0));
        bucket.take(rate, usize::try_from(burst(3000)).unwrap());
        let mut passed = 0;
        for micros in 0..2_000_000u64 {
            let now = Mono(Duration::from_micros(micros));
            if bucket.has_room(rate, now) {
                bucket.take(rate, 10);
                passed += 10;
            } else {
                assert!(bucket.ready_at(rate) > now);
            }
        }
        assert!((5900..6100).contains(&passed), "{passed}");
    }

    proptest! {
        #[test]
        fn order_within_a_session_is_kept_and_nothing_comes_twice(
            steps in prop::collection::vec((1u32..5, 5usize..9000, 0u64..40), 1..400),
        ) {
            let limits = RelayLimits { session: Some(100_000), total: Some(50_000) };
            let mut relay = relay(limits, 4);
            let (mut seen, mut now) = (Seen::default(), 0);
            for (number, (session, bytes, pause)) in (0..).zip(steps) {
                now += pause;
                if pause % 3 == 0 {
                    seen.drain(&mut relay, at(now));
                }
                seen.offer(&mut relay, session, &frame(session, number, bytes), at(now));
                let held = relay.held.as_ref().map_or(0, |h| h.flows.bytes());
                prop_assert!(held <= RELAY_QUEUED_BYTES_MAX);
            }
            while relay.deadline() != Mono::NEVER {
                let due = relay.deadline().max(at(now));
                seen.drain(&mut relay, due);
                prop_assert!(relay.deadline() > due, "it makes progress");
            }
            for (session, frames) in &seen.passed {
                let numbers = frames.iter().map(|f| (f[0], f[1..5].to_vec()));
                let numbers: Vec<_> = numbers.collect();
                prop_assert!(numbers.is_sorted_by(|a, b| a < b), "{session}: {numbers:?}");
            }
        }
    }
}
