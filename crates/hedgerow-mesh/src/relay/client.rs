//! Every device's side: which relays there are, which two are home, sessions through them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::message::{self, MessageKind};
use hedgerow_model::path::{Path, RelaySession};

use super::wire::{Connect, RelayMessage, SESSIONS_PER_MESSAGE_MAX, Verdict};
use crate::random::Random;
use crate::timers::Timers;

/// Relays that a device is registered with: when one dies, the other is there already.
pub const HOME_RELAYS: usize = 2;
/// Most relays known; a further one is left out until one is forgotten.
pub const KNOWN_MAX: usize = 64;
/// Most devices that sessions are wanted with; a further one gets none.
pub const WANTS_MAX: usize = 4096;
/// Most sessions remembered per relay; a further one is not used.
pub const SESSIONS_PER_RELAY_MAX: usize = 1024;
/// How often a registration is renewed; well below [`super::REGISTERED_FOR`].
pub const OPEN_EVERY: Duration = Duration::from_secs(25);
/// How long a relay may take to become a peer.
pub const ASK_WITHIN: Duration = Duration::from_secs(8);
/// The longest pause before a relay is tried again that failed.
pub const ASK_AGAIN_MAX: Duration = Duration::from_secs(300);
/// The first pause of one that was never reached while another is at home; each next is
/// four times as long. Most such are in cells that this device does not see.
pub const UNSEEN_AGAIN_MIN: Duration = Duration::from_secs(120);
/// The longest.
pub const UNSEEN_AGAIN_MAX: Duration = Duration::from_secs(3600);
/// How often a relay is tried that might be nearer than those at home.
pub const EXPLORE_EVERY: Duration = Duration::from_secs(600);

const ASK_AGAIN_MIN: Duration = Duration::from_secs(2);
/// How much longer each pause is of a relay that was never reached.
const UNSEEN_SLOWS: u32 = 4;
/// Pauses before an unanswered message is said again.
const SAY_AGAIN: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_millis(900),
    Duration::from_secs(3),
];
/// A relay whose round trip is unknown is taken to be this far.
const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(50);
/// A relay at home stays unless another is nearer by a third and by this.
const NEARER_BY: Duration = Duration::from_millis(5);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientOutput {
    /// Make the relay a peer, and say so by [`Client::handle_tunnel`].
    Ask {
        /// Which relay.
        relay: DeviceId,
    },
    /// The relays at home are now these, the best first: their tunnels are kept open.
    Home {
        /// At most [`HOME_RELAYS`].
        relays: Vec<DeviceId>,
    },
    /// Say this to a relay, inside its tunnel.
    Say {
        /// To whom.
        relay: DeviceId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A relay does not answer: is its way dead?
    Suspect {
        /// Which relay.
        relay: DeviceId,
    },
    /// There is a session with a device through a relay. Nothing proves yet who is at its end.
    Opened {
        /// Who is said to be there.
        device: DeviceId,
        /// The way.
        path: Path,
    },
    /// These are over, all at once: none of them is a way around the others.
    Closed {
        /// With whom they were.
        device: DeviceId,
        /// The ways.
        paths: Vec<Path>,
    },
    /// Datagrams to a relay go elsewhere than before, and with them all sessions through it.
    Moved {
        /// Where they went.
        from: Underlay,
        /// Where they go.
        to: Underlay,
    },
}

/// One relay, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayStatus {
    /// Which.
    pub device: DeviceId,
    /// Whether it is one of the home relays.
    pub is_home: bool,
    /// Whether it holds our registration.
    pub is_registered: bool,
    /// Where its tunnel goes, when it has one.
    pub tunnel: Option<Underlay>,
    /// Its round trip.
    pub round_trip: Option<Duration>,
    /// Sessions through it.
    pub sessions: usize,
}

/// What the client holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientStatus {
    /// All known relays.
    pub relays: Vec<RelayStatus>,
    /// Devices that sessions are wanted with.
    pub wants: usize,
    /// Refused wishes, by verdict.
    pub refused: BTreeMap<Verdict, u64>,
}

#[derive(Debug, Default)]
struct Relay {
    same_site: bool,
    round_trip: Option<Duration>,
    tunnel: Option<Underlay>,
    registered: bool,
    /// The answer to the registration that is awaited, and how often it was asked for.
    opening: Option<(u32, usize)>,
    asked: bool,
    /// There was a tunnel once.
    was_met: bool,
    failures: u32,
    /// Not asked before this.
    retry_at: Option<Mono>,
    sessions: BTreeMap<RelaySession, DeviceId>,
}

#[derive(Debug)]
struct Want {
    hints: Vec<DeviceId>,
    /// Which of them is named first.
    turn: usize,
    attempts: BTreeMap<DeviceId, Attempt>,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    number: u32,
    tries: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Relay(DeviceId),
    /// Wishes of a device at a relay.
    Attempt(DeviceId, DeviceId),
    Explore,
}

/// The device's side; see the module.
pub struct Client {
    relays: BTreeMap<DeviceId, Relay>,
    home: Vec<DeviceId>,
    wants: BTreeMap<DeviceId, Want>,
    /// Whom an unanswered wish is about.
    asked: BTreeMap<u32, DeviceId>,
    /// All sessions, by who is at the other end.
    ends: BTreeMap<DeviceId, BTreeSet<(DeviceId, RelaySession)>>,
    next_number: u32,
    timers: Timers<Timer>,
    random: Random,
    refused: BTreeMap<Verdict, u64>,
    output: VecDeque<ClientOutput>,
}

impl Client {
    /// Begins without a relay.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            relays: BTreeMap::new(),
            home: Vec::new(),
            wants: BTreeMap::new(),
            asked: BTreeMap::new(),
            ends: BTreeMap::new(),
            next_number: 0,
            timers: Timers::new(),
            random: Random::new(seed),
            refused: BTreeMap::new(),
            output: VecDeque::new(),
        }
    }

    /// Takes a device whose verified ticket makes it a relay.
    pub fn handle_relay(&mut self, device: DeviceId, same_site: bool, now: Mono) {
        if !self.relays.contains_key(&device) && self.relays.len() >= KNOWN_MAX {
            return;
        }
        let relay = self.relays.entry(device).or_default();
        relay.same_site = same_site;
        self.reconsider(now);
    }

    /// The device is a relay no more, or must not be used.
    pub fn handle_relay_forgotten(&mut self, device: DeviceId, now: Mono) {
        self.handle_tunnel_lost(device, now);
        if self.relays.remove(&device).is_some() {
            self.timers.clear(Timer::Relay(device));
            self.reconsider(now);
        }
    }

    /// A session with the relay lives; its datagrams go to `to`.
    pub fn handle_tunnel(&mut self, device: DeviceId, to: Underlay, now: Mono) {
        let Some(relay) = self.relays.get_mut(&device) else {
            return;
        };
        relay.asked = false;
        relay.was_met = true;
        let before = relay.tunnel.replace(to);
        if before.is_none() {
            relay.failures = 0;
            relay.retry_at = None;
            self.timers.clear(Timer::Relay(device));
            self.reconsider(now);
            return;
        }
        if let Some(from) = before.filter(|from| *from != to) {
            self.output.push_back(ClientOutput::Moved { from, to });
        }
        if self.home.contains(&device) {
            // After a restart it does not know us.
            self.open(device, now);
        }
    }

    /// The relay is no peer any more, or silent: sessions through it are over.
    pub fn handle_tunnel_lost(&mut self, device: DeviceId, now: Mono) {
        let Some(relay) = self.relays.get_mut(&device) else {
            return;
        };
        let to = relay.tunnel.take();
        relay.registered = false;
        relay.opening = None;
        relay.asked = false;
        let sessions = std::mem::take(&mut relay.sessions);
        let mut ways: BTreeMap<DeviceId, Vec<Path>> = BTreeMap::new();
        for (session, other) in sessions {
            self.unlink(device, session, other);
            let path = to.map(|to| Path::relayed(to, session));
            ways.entry(other).or_default().extend(path);
        }
        for (device, paths) in ways.into_iter().filter(|(_, paths)| !paths.is_empty()) {
            self.output
                .push_back(ClientOutput::Closed { device, paths });
        }
        for (destination, want) in &mut self.wants {
            if let Some(attempt) = want.attempts.remove(&device) {
                self.asked.remove(&attempt.number);
                self.timers.clear(Timer::Attempt(*destination, device));
            }
        }
        self.failed(device, now);
    }

    /// A relay that was asked to become a peer did not answer: the next is asked at once.
    pub fn handle_unanswered(&mut self, device: DeviceId, now: Mono) {
        let relay = self.relays.get_mut(&device);
        if relay.is_some_and(|r| r.tunnel.is_none() && std::mem::take(&mut r.asked)) {
            self.timers.clear(Timer::Relay(device));
            self.failed(device, now);
        }
    }

    /// Returns whether a relay was never reached and another is at home: there is no hurry.
    pub fn is_spare(&self, device: DeviceId) -> bool {
        let relay = self.relays.get(&device);
        relay.is_some_and(|r| !r.was_met && r.tunnel.is_none()) && !self.home.is_empty()
    }

    /// Takes what probes of the tunnel to a relay measured.
    pub fn handle_round_trip(&mut self, device: DeviceId, round_trip: Duration) {
        if let Some(relay) = self.relays.get_mut(&device) {
            relay.round_trip = Some(round_trip);
        }
    }

    /// Wants sessions with a device, which is said to be registered at `hints`.
    pub fn handle_want(&mut self, destination: DeviceId, hints: &[DeviceId], now: Mono) {
        let full = self.wants.len() >= WANTS_MAX;
        match self.wants.get_mut(&destination) {
            Some(want) if !hints.is_empty() => want.hints = hints.to_vec(),
            Some(_) => {}
            None if full => return,
            None => {
                let want = Want {
                    hints: hints.to_vec(),
                    turn: 0,
                    attempts: BTreeMap::new(),
                };
                self.wants.insert(destination, want);
            }
        }
        for relay in self.ways_to(destination) {
            self.connect(destination, relay, 0, now);
        }
    }

    /// No way to the device answers: where two relays are needed, the next wish names another second one.
    pub fn handle_stuck(&mut self, destination: DeviceId) {
        if let Some(want) = self.wants.get_mut(&destination) {
            want.turn = want.turn.wrapping_add(1);
        }
    }

    /// Sessions with the device are not renewed any more.
    pub fn handle_unwanted(&mut self, destination: DeviceId) {
        if let Some(want) = self.wants.remove(&destination) {
            for (relay, attempt) in want.attempts {
                self.asked.remove(&attempt.number);
                self.timers.clear(Timer::Attempt(destination, relay));
            }
        }
        for (device, session) in self.ends.remove(&destination).unwrap_or_default() {
            if let Some(relay) = self.relays.get_mut(&device) {
                relay.sessions.remove(&session);
            }
            say(&mut self.output, device, &RelayMessage::Close { session });
        }
    }

    /// Takes a message from a peer.
    pub fn handle_message(&mut self, device: DeviceId, message: RelayMessage, now: Mono) {
        let Some(relay) = self.relays.get_mut(&device) else {
            return;
        };
        match message {
            RelayMessage::Opened { number, verdict } => {
                if relay.opening.take_if(|(n, _)| *n == number).is_none() {
                    return;
                }
                if verdict == Verdict::Done {
                    relay.registered = true;
                    let every = self.random.jitter(OPEN_EVERY);
                    self.timers.set(Timer::Relay(device), now + every);
                    self.connect_all(device, now);
                } else {
                    *self.refused.entry(verdict).or_default() += 1;
                    relay.registered = false;
                    self.failed(device, now);
                }
            }
            RelayMessage::Connected {
                number,
                verdict,
                session,
            } => self.connected(device, number, (verdict, session), now),
            RelayMessage::Incoming { session, from } => self.session(device, session, from),
            RelayMessage::Close { session } => self.taken_back(device, session, now),
            RelayMessage::Open { .. } | RelayMessage::Connect(_) | RelayMessage::Keep { .. } => {}
        }
    }

    /// A session is none any more. A relay that has just begun anew knows none of those that were wanted
    /// and still are.
    fn taken_back(&mut self, device: DeviceId, session: RelaySession, now: Mono) {
        let relay = self.relays.get_mut(&device);
        let ended = relay.and_then(|r| Some((r.sessions.remove(&session)?, r.tunnel?)));
        let Some((other, to)) = ended else {
            return;
        };
        self.unlink(device, session, other);
        self.output.push_back(ClientOutput::Closed {
            device: other,
            paths: vec![Path::relayed(to, session)],
        });
        let has_another = |r: &Relay| r.sessions.values().any(|end| *end == other);
        let want = self.wants.get(&other);
        if want.is_some_and(|w| !w.attempts.contains_key(&device))
            && !self.relays.get(&device).is_some_and(has_another)
        {
            self.connect(other, device, 0, now);
        }
    }

    /// Takes the passing of time.
    pub fn handle_timeout(&mut self, now: Mono) {
        while let Some(timer) = self.timers.due(now) {
            match timer {
                Timer::Relay(device) => self.look_after(device, now),
                Timer::Attempt(destination, relay) => {
                    let want = self.wants.get(&destination);
                    let attempt = want.and_then(|w| w.attempts.get(&relay));
                    if let Some(tries) = attempt.map(|a| a.tries) {
                        self.output.push_back(ClientOutput::Suspect { relay });
                        self.connect(destination, relay, tries, now);
                    }
                }
                Timer::Explore => {
                    self.explore(now);
                    self.reconsider(now);
                }
            }
        }
    }

    /// Returns the next thing to do.
    pub fn poll(&mut self) -> Option<ClientOutput> {
        self.output.pop_front()
    }

    /// Returns when [`Self::handle_timeout`] has something to do.
    pub fn deadline(&self) -> Mono {
        self.timers.first().map_or(Mono::NEVER, |(at, _)| at)
    }

    /// Returns whether the device is a relay that is known.
    pub fn knows(&self, device: DeviceId) -> bool {
        self.relays.contains_key(&device)
    }

    /// Returns every known relay.
    pub fn known(&self) -> impl Iterator<Item = DeviceId> {
        self.relays.keys().copied()
    }

    /// Returns the relays at home, the best first.
    pub fn home(&self) -> &[DeviceId] {
        &self.home
    }

    /// Returns the relays with a tunnel.
    pub fn reachable(&self) -> impl Iterator<Item = DeviceId> {
        let with_tunnel = self.relays.iter().filter(|(_, r)| r.tunnel.is_some());
        with_tunnel.map(|(device, _)| *device)
    }

    /// Returns every known relay, the best first, and where its tunnel goes when it has one.
    pub fn ranked(&self) -> Vec<(DeviceId, Option<Underlay>)> {
        let ranks = self
            .relays
            .iter()
            .map(|(d, r)| (self.rank(*d, r), r.tunnel));
        let mut ranks: Vec<_> = ranks.collect();
        ranks.sort();
        let devices = ranks.into_iter().map(|((_, _, d), tunnel)| (d, tunnel));
        devices.collect()
    }

    /// Returns the ways to a device through relays.
    pub fn paths_to(&self, destination: DeviceId) -> Vec<Path> {
        let ends = self.ends.get(&destination).into_iter().flatten();
        let path = |(relay, session): &(DeviceId, RelaySession)| {
            let tunnel = self.relays.get(relay)?.tunnel?;
            Some(Path::relayed(tunnel, *session))
        };
        ends.filter_map(path).collect()
    }

    /// Returns what the client holds.
    pub fn status(&self) -> ClientStatus {
        let relays = self.relays.iter().map(|(device, relay)| RelayStatus {
            device: *device,
            is_home: self.home.contains(device),
            is_registered: relay.registered,
            tunnel: relay.tunnel,
            round_trip: relay.round_trip,
            sessions: relay.sessions.len(),
        });
        ClientStatus {
            relays: relays.collect(),
            wants: self.wants.len(),
            refused: self.refused.clone(),
        }
    }

    /// Orders relays: the same site first, then by round trip, then by number.
    fn rank(&self, device: DeviceId, relay: &Relay) -> (bool, Duration, DeviceId) {
        let far = relay.round_trip.unwrap_or(UNKNOWN_ROUND_TRIP);
        let far = match self.home.contains(&device) {
            true => far.saturating_sub(far / 3 + NEARER_BY),
            false => far,
        };
        (!relay.same_site, far, device)
    }

    /// Decides which relays are home, and whom to ask.
    fn reconsider(&mut self, now: Mono) {
        let mut live: Vec<_> = self
            .relays
            .iter()
            .filter(|(_, relay)| {
                relay.tunnel.is_some() && relay.retry_at.is_none_or(|at| at <= now)
            })
            .map(|(device, relay)| self.rank(*device, relay))
            .collect();
        live.sort();
        let live = live.into_iter().map(|(_, _, device)| device);
        let home: Vec<DeviceId> = live.take(HOME_RELAYS).collect();
        if home != self.home {
            let new: Vec<DeviceId> = home
                .iter()
                .filter(|device| !self.home.contains(device))
                .copied()
                .collect();
            let was_alone = self.home.is_empty();
            self.home.clone_from(&home);
            if home.is_empty() {
                self.recall_unseen(now);
            } else if was_alone {
                self.forget_failures();
            }
            self.output.push_back(ClientOutput::Home { relays: home });
            for device in new {
                self.open(device, now);
            }
        }
        let missing = HOME_RELAYS.saturating_sub(self.home.len());
        self.ask(missing, now);
        if self.relays.len() > HOME_RELAYS && !self.timers.is_set(Timer::Explore) {
            self.timers
                .set(Timer::Explore, now + self.random.jitter(EXPLORE_EVERY));
        }
    }

    /// Asks so many relays without a tunnel to become peers, the best first.
    fn ask(&mut self, count: usize, now: Mono) {
        let asked = self.relays.values().filter(|r| r.asked).count();
        let mut idle: Vec<_> = self
            .relays
            .iter()
            .filter(|(_, r)| r.tunnel.is_none() && !r.asked)
            .map(|(device, r)| (self.rank(*device, r), r.retry_at))
            .collect();
        idle.sort();
        let mut room = count.saturating_sub(asked);
        for ((_, _, device), retry_at) in idle {
            match retry_at {
                Some(at) if at > now => {
                    if !self.timers.is_set(Timer::Relay(device)) {
                        self.timers.set(Timer::Relay(device), at);
                    }
                }
                Some(_) | None if room > 0 => {
                    room -= 1;
                    if let Some(relay) = self.relays.get_mut(&device) {
                        relay.asked = true;
                    }
                    self.timers.set(Timer::Relay(device), now + ASK_WITHIN);
                    self.output.push_back(ClientOutput::Ask { relay: device });
                }
                Some(_) | None => {}
            }
        }
    }

    /// Tries a relay that might be nearer than the farther one at home.
    fn explore(&mut self, now: Mono) {
        self.ask(1, now);
    }

    /// The relay does not serve us: others do, and it is tried again later.
    fn failed(&mut self, device: DeviceId, now: Mono) {
        if let Some(relay) = self.relays.get_mut(&device) {
            let before = relay.failures.min(12);
            relay.failures += 1;
            let pause = match relay.was_met || self.home.is_empty() {
                true => (ASK_AGAIN_MIN * 2u32.pow(before)).min(ASK_AGAIN_MAX),
                false => (UNSEEN_AGAIN_MIN * UNSEEN_SLOWS.pow(before)).min(UNSEEN_AGAIN_MAX),
            };
            let at = now + self.random.jitter(pause);
            relay.retry_at = Some(at);
            self.timers.set(Timer::Relay(device), at);
        }
        self.reconsider(now);
    }

    /// No relay is left at home: those given up for long are tried again, each once before its pause grows.
    fn recall_unseen(&mut self, now: Mono) {
        for (device, relay) in &mut self.relays {
            if relay.tunnel.is_none() && relay.retry_at.is_some() {
                let at = now + self.random.jitter(ASK_AGAIN_MIN);
                relay.retry_at = relay.retry_at.map(|before| before.min(at));
                relay.failures = relay.failures.min(5);
                self.timers.set(Timer::Relay(*device), at);
            }
        }
    }

    /// The first relay is at home: what failed while none was says nothing about the others.
    fn forget_failures(&mut self) {
        for relay in self.relays.values_mut().filter(|r| !r.was_met) {
            relay.failures = 0;
        }
    }

    fn look_after(&mut self, device: DeviceId, now: Mono) {
        let Some(relay) = self.relays.get_mut(&device) else {
            return;
        };
        if relay.tunnel.is_none() && std::mem::take(&mut relay.asked) {
            self.failed(device, now);
            return;
        }
        relay.retry_at = relay.retry_at.filter(|at| *at > now);
        if relay.tunnel.is_some() && self.home.contains(&device) {
            self.open(device, now);
        }
        self.reconsider(now);
    }

    /// Registers with a relay, or says that we still are.
    fn open(&mut self, device: DeviceId, now: Mono) {
        let number = self.next_number;
        let Some(relay) = self.relays.get_mut(&device) else {
            return;
        };
        let tries = relay.opening.map_or(0, |(_, tries)| tries);
        let Some(pause) = SAY_AGAIN.get(tries) else {
            relay.opening = None;
            relay.registered = false;
            self.failed(device, now);
            return;
        };
        self.next_number = number.wrapping_add(1);
        relay.opening = Some((number, tries + 1));
        let mut sessions = relay.sessions.keys().copied().peekable();
        let first: Vec<_> = sessions.by_ref().take(SESSIONS_PER_MESSAGE_MAX).collect();
        let open = RelayMessage::Open {
            number,
            sessions: first,
        };
        say(&mut self.output, device, &open);
        while sessions.peek().is_some() {
            let sessions = sessions.by_ref().take(SESSIONS_PER_MESSAGE_MAX).collect();
            say(&mut self.output, device, &RelayMessage::Keep { sessions });
        }
        self.timers.set(Timer::Relay(device), now + *pause);
    }

    /// Returns the relays to ask for a session with a device: those at home, and those at its home that
    /// have a tunnel with us.
    fn ways_to(&self, destination: DeviceId) -> Vec<DeviceId> {
        let mut ways: Vec<DeviceId> = self.home.clone();
        if let Some(want) = self.wants.get(&destination) {
            for hint in &want.hints {
                let live = self.relays.get(hint).is_some_and(|r| r.tunnel.is_some());
                if live && !ways.contains(hint) {
                    ways.push(*hint);
                }
            }
        }
        ways.retain(|relay| *relay != destination);
        ways
    }

    /// Asks a relay for a session with a device, unless there is one.
    fn connect(&mut self, destination: DeviceId, device: DeviceId, tries: usize, now: Mono) {
        let (Some(relay), Some(want)) =
            (self.relays.get(&device), self.wants.get_mut(&destination))
        else {
            return;
        };
        let Some(pause) = SAY_AGAIN.get(tries).filter(|_| relay.tunnel.is_some()) else {
            if let Some(attempt) = want.attempts.remove(&device) {
                self.asked.remove(&attempt.number);
            }
            return;
        };
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        // Any of them may be out of that relay's reach: each try names another.
        let hints: Vec<DeviceId> = want
            .hints
            .iter()
            .filter(|h| **h != device)
            .copied()
            .collect();
        let turn = want.turn.wrapping_add(tries);
        let through = hints.get(turn % hints.len().max(1)).copied();
        let attempt = Attempt {
            number,
            tries: tries + 1,
        };
        if let Some(before) = want.attempts.insert(device, attempt) {
            self.asked.remove(&before.number);
        }
        self.asked.insert(number, destination);
        self.timers
            .set(Timer::Attempt(destination, device), now + *pause);
        let connect = Connect {
            number,
            destination,
            through,
            origin: None,
        };
        say(&mut self.output, device, &RelayMessage::Connect(connect));
    }

    /// A relay took us in: whatever is wanted is wanted there too.
    fn connect_all(&mut self, relay: DeviceId, now: Mono) {
        let sessions = self.relays.get(&relay).map(|r| &r.sessions);
        let has: BTreeSet<DeviceId> = sessions
            .map(|s| s.values().copied().collect())
            .unwrap_or_default();
        let wanted: Vec<DeviceId> = self
            .wants
            .keys()
            .filter(|destination| **destination != relay && !has.contains(destination))
            .copied()
            .collect();
        for destination in wanted {
            self.connect(destination, relay, 0, now);
        }
    }

    fn connected(
        &mut self,
        device: DeviceId,
        number: u32,
        (verdict, session): (Verdict, Option<RelaySession>),
        now: Mono,
    ) {
        let Some(destination) = self.asked.get(&number).copied() else {
            return;
        };
        let Some(want) = self.wants.get_mut(&destination) else {
            return;
        };
        // Only the relay that was asked may answer.
        let attempt = want.attempts.get(&device);
        let Some(attempt) = attempt.copied().filter(|a| a.number == number) else {
            return;
        };
        want.attempts.remove(&device);
        let others = want.hints.iter().filter(|hint| **hint != device).count();
        self.asked.remove(&number);
        self.timers.clear(Timer::Attempt(destination, device));
        match session {
            Some(session) if verdict == Verdict::Done => self.session(device, session, destination),
            Some(_) | None => {
                *self.refused.entry(verdict).or_default() += 1;
                if verdict == Verdict::NotRegistered && attempt.tries < others {
                    self.connect(destination, device, attempt.tries, now);
                }
            }
        }
    }

    fn unlink(&mut self, relay: DeviceId, session: RelaySession, other: DeviceId) {
        if let Some(ends) = self.ends.get_mut(&other) {
            ends.remove(&(relay, session));
            if ends.is_empty() {
                self.ends.remove(&other);
            }
        }
    }

    fn session(&mut self, device: DeviceId, session: RelaySession, other: DeviceId) {
        let Some(relay) = self.relays.get_mut(&device) else {
            return;
        };
        let full = relay.sessions.len() >= SESSIONS_PER_RELAY_MAX;
        let Some(to) = relay
            .tunnel
            .filter(|_| !full || relay.sessions.contains_key(&session))
        else {
            return;
        };
        if let Some(before) = relay.sessions.insert(session, other)
            && before != other
        {
            self.unlink(device, session, before);
        }
        self.ends
            .entry(other)
            .or_default()
            .insert((device, session));
        let path = Path::relayed(to, session);
        self.output.push_back(ClientOutput::Opened {
            device: other,
            path,
        });
    }
}

fn say(output: &mut VecDeque<ClientOutput>, relay: DeviceId, message: &RelayMessage) {
    if let Some(bytes) = message::encode(MessageKind::Relay, &message.encode()) {
        output.push_back(ClientOutput::Say { relay, bytes });
    }
}
