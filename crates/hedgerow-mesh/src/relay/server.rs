//! The relay's side: registrations, sessions, their bounds and ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::id::DeviceId;
use hedgerow_model::message::{self, MessageKind};
use hedgerow_model::path::RelaySession;

use super::wire::{Connect, RelayMessage, Verdict};
use crate::budget::{Bucket, Rate};
use crate::random::Random;
use crate::timers::Timers;

/// Most registered devices; one more is told that the relay is full.
pub const REGISTERED_MAX: usize = 10_000;
/// Most sessions; one more is refused.
pub const SESSIONS_MAX: usize = 32_768;
/// Most sessions in which one device has an end; one more is refused.
pub const SIDES_PER_DEVICE_MAX: usize = 1024;
/// The same for another relay, which speaks for many devices.
pub const SIDES_PER_RELAY_MAX: usize = 8192;
/// Most wishes passed on to other relays at once; one more is refused.
pub const PENDING_MAX: usize = 1024;
/// How long a registration holds when it is not renewed.
pub const REGISTERED_FOR: Duration = Duration::from_secs(90);
/// How long a session holds when neither end says that it is in use.
pub const SESSION_FOR: Duration = Duration::from_secs(120);
/// Wishes and renewals of one device.
pub const CONNECTS: Rate = Rate {
    per_second: 50,
    burst: 500,
};
/// Most relays between two devices.
pub const HOPS_MAX: usize = 2;
/// How long another relay may take to answer.
const PENDING_FOR: Duration = Duration::from_secs(2);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerOutput {
    /// Say this to a device, inside its tunnel.
    Say {
        /// To whom.
        device: DeviceId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Pass on what this side sends.
    Set {
        /// The session, as the side knows it that sends.
        session: RelaySession,
        /// That side.
        from: DeviceId,
        /// Where its frames go, under which number.
        to: (DeviceId, RelaySession),
    },
    /// Pass it on no more.
    Forget {
        /// The session, as the side knows it that sends.
        session: RelaySession,
    },
}

/// What the relay holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerStatus {
    /// Devices that may be reached through this one.
    pub registered: usize,
    /// Sessions.
    pub sessions: usize,
    /// Answers to wishes, by verdict.
    pub verdicts: BTreeMap<Verdict, u64>,
    /// Messages that were none, or came too often.
    pub dropped: u64,
}

/// One side of a session.
#[derive(Debug, Clone, Copy)]
struct Side {
    owner: DeviceId,
    other: RelaySession,
    key: Key,
}

/// Who asked at this relay, on whose behalf, for whom.
type Key = (DeviceId, DeviceId, DeviceId);

#[derive(Debug)]
struct Member {
    registered_until: Option<Mono>,
    sides: BTreeSet<RelaySession>,
    bucket: Bucket,
    is_relay: bool,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    asker: DeviceId,
    asked: Connect,
    relay: DeviceId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Member(DeviceId),
    /// By the asker's number.
    Session(RelaySession),
    Pending(u32),
}

/// The relay's side; see the module.
pub struct Server {
    is_relay: bool,
    members: BTreeMap<DeviceId, Member>,
    registered: usize,
    sides: BTreeMap<RelaySession, Side>,
    /// The asker's number.
    joined: BTreeMap<Key, RelaySession>,
    pending: BTreeMap<u32, Pending>,
    next_number: u32,
    timers: Timers<Timer>,
    random: Random,
    status: ServerStatus,
    output: VecDeque<ServerOutput>,
}

impl Server {
    /// Begins without a session, and as no relay.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            is_relay: false,
            members: BTreeMap::new(),
            registered: 0,
            sides: BTreeMap::new(),
            joined: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_number: 0,
            timers: Timers::new(),
            random: Random::new(seed),
            status: ServerStatus::default(),
            output: VecDeque::new(),
        }
    }

    /// Takes whether this device's own ticket makes it a relay. When it does no more, all sessions end.
    pub fn handle_role(&mut self, is_relay: bool) {
        if std::mem::replace(&mut self.is_relay, is_relay) && !is_relay {
            let members: Vec<DeviceId> = self.members.keys().copied().collect();
            for device in members {
                self.handle_gone(device);
            }
        }
    }

    /// The device is no peer any more, or must not be served: its sessions end at once.
    pub fn handle_gone(&mut self, device: DeviceId) {
        self.timers.clear(Timer::Member(device));
        let Some(member) = self.members.get_mut(&device) else {
            return;
        };
        self.registered -= usize::from(member.registered_until.take().is_some());
        let sides: Vec<RelaySession> = member.sides.iter().copied().collect();
        for session in sides {
            self.close(session, Some(device));
        }
        self.members.remove(&device);
    }

    /// Takes a message that only relays get, from a peer; `is_relay` says what its ticket says.
    pub fn handle_message(
        &mut self,
        device: DeviceId,
        is_relay: bool,
        message: RelayMessage,
        now: Mono,
    ) {
        if self.is_relay && !self.may_ask(device, is_relay, now) {
            self.status.dropped += 1;
            return;
        }
        match message {
            RelayMessage::Open { number, sessions } => {
                let verdict = self.open(device, now);
                self.say(device, &RelayMessage::Opened { number, verdict });
                self.keep(device, &sessions, now);
            }
            RelayMessage::Keep { sessions } => self.keep(device, &sessions, now),
            RelayMessage::Connect(connect) => {
                if let Some((verdict, session)) = self.connect(device, connect, now) {
                    self.answer(device, connect.number, verdict, session);
                }
            }
            RelayMessage::Connected {
                number,
                verdict,
                session,
            } => self.joined_there(device, number, (verdict, session), now),
            RelayMessage::Close { session } => {
                if self.owner(session) == Some(device) {
                    self.close(session, Some(device));
                }
            }
            RelayMessage::Opened { .. } | RelayMessage::Incoming { .. } => {
                self.status.dropped += 1;
            }
        }
    }

    /// Returns whether a message of [`RelayMessage::Connected`] answers a wish passed on by this relay.
    pub(crate) fn awaits(&self, device: DeviceId, number: u32) -> bool {
        self.pending.get(&number).is_some_and(|p| p.relay == device)
    }

    /// Returns whether a wish waits for another relay's answer.
    pub(crate) fn asks(&self, relay: DeviceId) -> bool {
        self.pending.values().any(|p| p.relay == relay)
    }

    /// Returns whether a session is one that this relay passes on for the device.
    pub(crate) fn owns(&self, device: DeviceId, session: RelaySession) -> bool {
        self.owner(session) == Some(device)
    }

    /// A session with another relay began: what was to be asked of it before is asked now.
    pub fn handle_relay_live(&mut self, relay: DeviceId) {
        let waiting: Vec<(u32, Pending)> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.relay == relay)
            .map(|(number, pending)| (*number, *pending))
            .collect();
        for (number, pending) in waiting {
            self.ask(number, pending);
        }
    }

    /// Takes the passing of time.
    pub fn handle_timeout(&mut self, now: Mono) {
        while let Some(timer) = self.timers.due(now) {
            match timer {
                Timer::Member(device) => {
                    if let Some(member) = self.members.get_mut(&device) {
                        let was = member.registered_until.take().is_some();
                        self.registered -= usize::from(was);
                        if member.sides.is_empty() {
                            self.members.remove(&device);
                        } else {
                            self.timers.set(timer, now + REGISTERED_FOR);
                        }
                    }
                }
                Timer::Session(session) => self.close(session, None),
                Timer::Pending(number) => {
                    if let Some(pending) = self.pending.remove(&number) {
                        let number = pending.asked.number;
                        self.answer(pending.asker, number, Verdict::NotRegistered, None);
                    }
                }
            }
        }
    }

    /// Returns the next thing to do.
    pub fn poll(&mut self) -> Option<ServerOutput> {
        self.output.pop_front()
    }

    /// Returns when [`Self::handle_timeout`] has something to do.
    pub fn deadline(&self) -> Mono {
        self.timers.first().map_or(Mono::NEVER, |(at, _)| at)
    }

    /// Returns what the relay holds.
    pub fn status(&self) -> ServerStatus {
        ServerStatus {
            registered: self.registered,
            sessions: self.sides.len() / 2,
            ..self.status.clone()
        }
    }

    /// Returns whether others may reach the device through this relay.
    pub fn is_registered(&self, device: DeviceId) -> bool {
        let member = self.members.get(&device);
        member.is_some_and(|m| m.registered_until.is_some())
    }

    fn owner(&self, session: RelaySession) -> Option<DeviceId> {
        self.sides.get(&session).map(|side| side.owner)
    }

    /// Finds or makes the device's entry and spends from its budget.
    fn may_ask(&mut self, device: DeviceId, is_relay: bool, now: Mono) -> bool {
        if self.members.len() >= REGISTERED_MAX * 2 && !self.members.contains_key(&device) {
            return false;
        }
        let member = self.members.entry(device).or_insert_with(|| {
            self.timers.set(Timer::Member(device), now + REGISTERED_FOR);
            Member {
                registered_until: None,
                sides: BTreeSet::new(),
                bucket: Bucket::full(CONNECTS, now),
                is_relay,
            }
        });
        member.is_relay = is_relay;
        member.bucket.take(CONNECTS, now)
    }

    fn open(&mut self, device: DeviceId, now: Mono) -> Verdict {
        if !self.is_relay {
            return Verdict::NoRelay;
        }
        let Some(member) = self.members.get_mut(&device) else {
            return Verdict::Full;
        };
        if member.registered_until.is_none() {
            if self.registered >= REGISTERED_MAX {
                return Verdict::Full;
            }
            self.registered += 1;
        }
        let until = now + REGISTERED_FOR;
        member.registered_until = Some(until);
        self.timers.set(Timer::Member(device), until);
        Verdict::Done
    }

    /// Renews sessions; tells the device of those that are none, and the next relay of the others.
    fn keep(&mut self, device: DeviceId, sessions: &[RelaySession], now: Mono) {
        let mut onward: BTreeMap<DeviceId, Vec<RelaySession>> = BTreeMap::new();
        for session in sessions {
            let side = self.sides.get(session).filter(|s| s.owner == device);
            let Some(side) = side.copied() else {
                self.say(device, &RelayMessage::Close { session: *session });
                continue;
            };
            // One beside which another was joined since ends when its time is over.
            let joined = self.joined.get(&side.key);
            if let Some(asker) = joined.filter(|s| [*session, side.other].contains(s)) {
                self.timers.set(Timer::Session(*asker), now + SESSION_FOR);
            }
            if let Some(other) = self.owner(side.other)
                && self.members.get(&other).is_some_and(|m| m.is_relay)
            {
                onward.entry(other).or_default().push(side.other);
            }
        }
        // Only the end that was joined here says more: two relays do not keep a session for each other.
        for (relay, sessions) in onward {
            if !self.members.get(&device).is_some_and(|m| m.is_relay) {
                self.say(relay, &RelayMessage::Keep { sessions });
            }
        }
    }

    fn connect(
        &mut self,
        device: DeviceId,
        connect: Connect,
        now: Mono,
    ) -> Option<(Verdict, Option<RelaySession>)> {
        let refuse = |verdict| Some((verdict, None));
        if !self.is_relay {
            return refuse(Verdict::NoRelay);
        }
        let origin = connect.origin.unwrap_or(device);
        let destination = connect.destination;
        if destination == device || destination == origin {
            return refuse(Verdict::NotRegistered);
        }
        let key = (device, origin, destination);
        let joined = self.joined.get(&key).copied();
        if let Some(session) = joined.filter(|s| !self.is_by_another(*s, &connect)) {
            self.timers.set(Timer::Session(session), now + SESSION_FOR);
            self.announce(session, origin);
            return Some((Verdict::Done, Some(session)));
        }
        // The other end may have asked for the same first: one session serves both.
        let asked_there = self.joined.get(&(destination, destination, device));
        if let Some(theirs) = asked_there.filter(|_| connect.origin.is_none()).copied()
            && let Some(ours) = self.sides.get(&theirs).map(|side| side.other)
            && self.owner(ours) == Some(device)
        {
            self.timers.set(Timer::Session(theirs), now + SESSION_FOR);
            self.announce(ours, origin);
            return Some((Verdict::Done, Some(ours)));
        }
        if self.is_registered(destination) {
            let made = self.join(key, destination, None, now);
            return Some(match made {
                Ok(session) => {
                    self.announce(session, origin);
                    (Verdict::Done, Some(session))
                }
                Err(verdict) => (verdict, None),
            });
        }
        match connect.through {
            None => refuse(Verdict::NotRegistered),
            Some(_) if connect.origin.is_some() => refuse(Verdict::TooFar),
            Some(relay) if relay == device => refuse(Verdict::NotRegistered),
            Some(relay) => self.pass_on(device, connect, relay, now),
        }
    }

    /// Whether a session goes by another relay than the one that is asked for: that one may be dead, of
    /// which nobody tells this relay.
    fn is_by_another(&self, session: RelaySession, connect: &Connect) -> bool {
        let far = self.sides.get(&session).and_then(|s| self.owner(s.other));
        far.is_some_and(|far| far != connect.destination)
            && connect.through.is_some()
            && connect.through != far
    }

    /// Asks another relay to join the device with one that is registered there.
    fn pass_on(
        &mut self,
        asker: DeviceId,
        asked: Connect,
        relay: DeviceId,
        now: Mono,
    ) -> Option<(Verdict, Option<RelaySession>)> {
        if self.pending.len() >= PENDING_MAX {
            return Some((Verdict::Full, None));
        }
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        let pending = Pending {
            asker,
            asked,
            relay,
        };
        self.pending.insert(number, pending);
        self.timers.set(Timer::Pending(number), now + PENDING_FOR);
        self.ask(number, pending);
        None
    }

    fn ask(&mut self, number: u32, pending: Pending) {
        let connect = Connect {
            number,
            destination: pending.asked.destination,
            through: None,
            origin: Some(pending.asker),
        };
        self.say(pending.relay, &RelayMessage::Connect(connect));
    }

    /// Another relay answered: its session becomes the far side of one of ours.
    fn joined_there(
        &mut self,
        relay: DeviceId,
        number: u32,
        (verdict, session): (Verdict, Option<RelaySession>),
        now: Mono,
    ) {
        if !self.awaits(relay, number) {
            self.status.dropped += 1;
            return;
        }
        self.timers.clear(Timer::Pending(number));
        let Some(pending) = self.pending.remove(&number) else {
            return;
        };
        let Pending { asker, asked, .. } = pending;
        let (verdict, session) = match session.filter(|_| verdict == Verdict::Done) {
            None if verdict == Verdict::Done => (Verdict::NotRegistered, None),
            None => (verdict, None),
            Some(far) => {
                match self.join((asker, asker, asked.destination), relay, Some(far), now) {
                    Ok(session) => (Verdict::Done, Some(session)),
                    Err(verdict) => {
                        self.say(relay, &RelayMessage::Close { session: far });
                        (verdict, None)
                    }
                }
            }
        };
        self.answer(asker, asked.number, verdict, session);
    }

    /// Makes a session between the asker of `key` and `far`, whose number may be given by another relay.
    fn join(
        &mut self,
        key: Key,
        far: DeviceId,
        far_number: Option<RelaySession>,
        now: Mono,
    ) -> Result<RelaySession, Verdict> {
        let near = key.0;
        // One by another relay stays beside it until it is no longer kept.
        let joined = self.joined.get(&key).copied();
        let same = |s: &RelaySession| {
            let other = self.sides.get(s).and_then(|s| self.owner(s.other));
            other == Some(far)
        };
        if let Some(session) = joined.filter(same) {
            return Ok(session);
        }
        if let Some(session) = self.beside(&key, far, far_number) {
            self.joined.insert(key, session);
            self.timers.set(Timer::Session(session), now + SESSION_FOR);
            return Ok(session);
        }
        let room = |device: &DeviceId| {
            self.members.get(device).is_none_or(|m| {
                let most = match m.is_relay {
                    true => SIDES_PER_RELAY_MAX,
                    false => SIDES_PER_DEVICE_MAX,
                };
                m.sides.len() < most
            })
        };
        if self.sides.len() / 2 >= SESSIONS_MAX || !room(&near) || !room(&far) {
            return Err(Verdict::Full);
        }
        let near_number = self.draw().ok_or(Verdict::Full)?;
        let far_number = match far_number {
            Some(number) if self.sides.contains_key(&number) || number == near_number => {
                return Err(Verdict::Full);
            }
            Some(number) => number,
            None => self.draw().ok_or(Verdict::Full)?,
        };
        let sides = [
            (near, near_number, far, far_number),
            (far, far_number, near, near_number),
        ];
        for (owner, number, other_owner, other) in sides {
            self.sides.insert(number, Side { owner, other, key });
            let member = self.members.entry(owner).or_insert_with(|| {
                self.timers.set(Timer::Member(owner), now + REGISTERED_FOR);
                // Who was not heard of answered as a relay.
                Member {
                    registered_until: None,
                    sides: BTreeSet::new(),
                    bucket: Bucket::full(CONNECTS, now),
                    is_relay: true,
                }
            });
            member.sides.insert(number);
            self.output.push_back(ServerOutput::Set {
                session: number,
                from: owner,
                to: (other_owner, other),
            });
        }
        self.joined.insert(key, near_number);
        self.timers
            .set(Timer::Session(near_number), now + SESSION_FOR);
        Ok(near_number)
    }

    /// Returns the asker's number of a session by another relay that stood beside the one in use, and that the
    /// other relay still has.
    fn beside(
        &self,
        key: &Key,
        far: DeviceId,
        far_number: Option<RelaySession>,
    ) -> Option<RelaySession> {
        let side = self.sides.get(&far_number?)?;
        (side.owner == far && side.key == *key).then_some(side.other)
    }

    /// Draws a number that is in no use here.
    fn draw(&mut self) -> Option<RelaySession> {
        (0..8).find_map(|_| {
            let bytes = self.random.bytes();
            let number = bytes.first_chunk::<4>().map(|b| u32::from_le_bytes(*b))?;
            let session = RelaySession(number);
            (number != 0 && !self.sides.contains_key(&session)).then_some(session)
        })
    }

    /// Tells the far end of a session that it is there.
    fn announce(&mut self, near: RelaySession, origin: DeviceId) {
        let Some(side) = self.sides.get(&near) else {
            return;
        };
        let far = side.other;
        if let Some(owner) = self.owner(far) {
            let message = RelayMessage::Incoming {
                session: far,
                from: origin,
            };
            self.say(owner, &message);
        }
    }

    /// Ends a session; `by` needs not be told.
    fn close(&mut self, session: RelaySession, by: Option<DeviceId>) {
        let Some(side) = self.sides.get(&session).copied() else {
            return;
        };
        if let Some(asker) = self.joined.get(&side.key).copied()
            && (asker == session || asker == side.other)
        {
            self.joined.remove(&side.key);
        }
        for number in [session, side.other] {
            self.timers.clear(Timer::Session(number));
            let Some(side) = self.sides.remove(&number) else {
                continue;
            };
            self.output
                .push_back(ServerOutput::Forget { session: number });
            if let Some(member) = self.members.get_mut(&side.owner) {
                member.sides.remove(&number);
            }
            if Some(side.owner) != by {
                self.say(side.owner, &RelayMessage::Close { session: number });
            }
        }
    }

    fn answer(
        &mut self,
        device: DeviceId,
        number: u32,
        verdict: Verdict,
        session: Option<RelaySession>,
    ) {
        *self.status.verdicts.entry(verdict).or_default() += 1;
        let message = RelayMessage::Connected {
            number,
            verdict,
            session,
        };
        self.say(device, &message);
    }

    fn say(&mut self, device: DeviceId, message: &RelayMessage) {
        if let Some(bytes) = message::encode(MessageKind::Relay, &message.encode()) {
            self.output.push_back(ServerOutput::Say { device, bytes });
        }
    }
}
