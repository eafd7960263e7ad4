//! The pre-shared keys of peers: a hybrid exchange inside the tunnel, so that recorded traffic stays
//! closed to whoever can break X25519 one day.
//!
//! ```text
//!  smaller id                                       larger id
//!   session ─▶ Begin (ML-KEM key) ───────────────▶ answers, within its budget
//!   accepts ◀─ Answer (ciphertext, X25519, check) ─
//!              Finish (X25519, check) ───────────▶ uses the key
//!   uses it ◀─ Done (check) ──────────────────────
//! ```
//!
//! A key belongs to one pair of WireGuard keys: a device that starts anew makes a new key and begins
//! without. The beginning side *accepts* the new key before it sends `Finish` and *uses* it after
//! `Done`, so at each moment each side accepts what the other uses, whatever gets lost.
//!
//! Only the device with the smaller id begins, so two never begin at once.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::id::DeviceId;
use hedgerow_model::statement::X25519Public;
use zeroize::Zeroizing;

use crate::budget::{Bucket, Rate};
use crate::output::Psk;
use crate::random::Random;
use crate::timers::Timers;
use agree::{Agreed, Answerer, Beginner, Parties, same};
pub use agree::{CIPHERTEXT_BYTES, Check, ENCAPSULATION_KEY_BYTES, Exchange};
pub use wire::Message;

mod agree;
mod wire;

/// How long a key is used before the next; a tenth shorter or longer by chance.
pub const RENEW_EVERY: Duration = Duration::from_secs(3600);
/// How soon an unanswered message is repeated; each next time after twice as long.
pub const REPEAT_AFTER: Duration = Duration::from_millis(500);
/// How often a message is sent before the exchange is given up.
pub const SENDINGS_MAX: u32 = 6;
/// How soon a failed exchange is begun again; each next time after twice as long.
pub const AGAIN_AFTER: Duration = Duration::from_secs(15);
/// Longest pause after failures.
pub const AGAIN_MAX: Duration = Duration::from_secs(900);
/// Longest pause after failures where nothing else may pass.
pub const AGAIN_STRICT_MAX: Duration = Duration::from_secs(60);
/// Most answers that wait for their end; beyond, the oldest is forgotten and its other side repeats.
pub const ANSWERS_MAX: usize = 1024;
/// How long an answer waits for its end: longer than the other side goes on sending that.
pub const ANSWER_KEPT: Duration = Duration::from_secs(600);
/// How many rounds of [`SENDINGS_MAX`] the end of an exchange is sent before another begins. The other
/// side may use the key already, so a live one must be heard of it first.
pub const FINISH_ROUNDS: u32 = 4;
/// Exchanges that one peer may begin: rate and burst.
pub const PER_PEER: Rate = Rate {
    per_second: 1,
    burst: 4,
};
/// A peer's budget fills once in this many seconds: a key an hour needs less.
const PER_PEER_SLOWED: u32 = 60;
/// Exchanges of all peers together that are computed.
pub const ALL: Rate = Rate {
    per_second: 500,
    burst: 1000,
};
/// Messages per second, and at once, that are said again for want of an answer, to all peers together: those
/// that went away all at once cost no more, however many they are. Beyond, they are said later.
pub const REPEATS: Rate = Rate {
    per_second: 100,
    burst: 400,
};
/// How much later; a quarter shorter or longer by chance.
const REPEAT_LATER: Duration = Duration::from_secs(5);
/// How long after an agreement a session without it says nothing: it was on its way.
const SETTLING: Duration = Duration::from_secs(10);
/// How long after a change of keys the exchange begins by itself, if no new session begins it.
const AFTER_CHANGE: Duration = Duration::from_secs(5);

/// What may pass before a pre-shared key is agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PostQuantum {
    /// Everything; the key follows within a second.
    #[default]
    Prefer,
    /// Only messages between the agents.
    Strict,
}

/// What a tunnel does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PskUse {
    /// Takes answers under it, and uses the one before.
    Accept,
    /// Answers under it, and takes answers under the one before.
    Use,
    /// As [`Self::Use`], and begins a handshake at once.
    UseNow,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Send this content to the peer.
    Send { device: DeviceId, content: Vec<u8> },
    /// Give the tunnel a key for this pair of WireGuard keys, ours first.
    Set {
        device: DeviceId,
        keys: [X25519Public; 2],
        psk: Psk,
        what: PskUse,
    },
    /// An exchange was given up; traffic goes on as the mode says.
    Failed { device: DeviceId, failures: u32 },
}

/// Why a message was refused; nothing is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refused {
    Malformed,
    /// No peer of ours, or we have no key yet.
    Stranger,
    /// It is ours to begin: a reflected message, or a peer that does not know the order.
    NotTheirs,
    /// Of no exchange that is under way.
    Unasked,
    /// Does not prove what it must.
    Forged,
    /// Begins too often.
    TooOften,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Begin(DeviceId),
    Repeat(DeviceId),
    Expire(DeviceId),
}

/// Our side of an exchange that we began.
enum Begun {
    /// `Begin` is under way.
    Asking(Beginner),
    /// `Finish` is under way: the key is accepted, not used.
    Finishing {
        exchange: Exchange,
        content: Vec<u8>,
        agreed: Agreed,
        rounds: u32,
    },
}

/// Our side of an exchange that the peer began.
enum Answering {
    /// The answer is under way.
    Answered {
        answerer: Answerer,
        key: Zeroizing<Vec<u8>>,
        content: Vec<u8>,
    },
    /// The key is used; kept for `Finish` that comes again.
    Done { finish: Check, content: Vec<u8> },
}

struct Peer {
    key: X25519Public,
    is_live: bool,
    /// Under which two keys, ours first, and when.
    agreed: Option<([X25519Public; 2], Mono)>,
    begun: Option<Box<Begun>>,
    keys: [X25519Public; 2],
    sendings: u32,
    failures: u32,
    answering: Option<Box<(Exchange, Answering)>>,
    bucket: Bucket,
}

/// How far one peer is, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PskStatus {
    /// When the key in use was agreed; absent without one.
    pub agreed_at: Option<Mono>,
    /// How many exchanges failed since.
    pub failures: u32,
}

/// All exchanges. One entry for each peer of the mesh.
pub(crate) struct Exchanges {
    mode: PostQuantum,
    own: Option<(DeviceId, X25519Public)>,
    /// In boxes: a third of the places in a map are empty.
    peers: BTreeMap<DeviceId, Box<Peer>>,
    /// Answers waiting for their end, the oldest first.
    waiting: VecDeque<DeviceId>,
    timers: Timers<Timer>,
    all: Bucket,
    repeats: Bucket,
    random: Random,
    output: VecDeque<Output>,
}

impl Exchanges {
    pub(crate) fn new(seed: [u8; 32], mode: PostQuantum) -> Self {
        Self {
            mode,
            own: None,
            peers: BTreeMap::new(),
            waiting: VecDeque::new(),
            timers: Timers::new(),
            all: Bucket::full(ALL, Mono::ZERO),
            repeats: Bucket::full(REPEATS, Mono::ZERO),
            random: Random::new(seed),
            output: VecDeque::new(),
        }
    }

    pub(crate) fn set_mode(&mut self, mode: PostQuantum) {
        self.mode = mode;
    }

    /// Takes our own device and WireGuard key. Another key needs other pre-shared keys.
    pub(crate) fn handle_own(&mut self, device: DeviceId, key: X25519Public, now: Mono) {
        if self.own.replace((device, key)) == Some((device, key)) {
            return;
        }
        let live: Vec<DeviceId> = self.peers.keys().copied().collect();
        for peer in live {
            self.keys_changed(peer, now);
        }
    }

    /// Takes a peer, or its other key.
    pub(crate) fn handle_peer(&mut self, device: DeviceId, key: X25519Public, now: Mono) {
        match self.peers.get_mut(&device) {
            Some(peer) if peer.key == key => {}
            Some(peer) => {
                peer.key = key;
                self.keys_changed(device, now);
            }
            None => {
                let peer = Peer {
                    key,
                    is_live: false,
                    agreed: None,
                    begun: None,
                    keys: [key, key],
                    sendings: 0,
                    failures: 0,
                    answering: None,
                    bucket: Bucket::full(PER_PEER, now),
                };
                self.peers.insert(device, Box::new(peer));
            }
        }
    }

    fn keys_changed(&mut self, device: DeviceId, now: Mono) {
        if let Some(peer) = self.peers.get_mut(&device) {
            peer.begun = None;
            self.timers.clear(Timer::Repeat(device));
            self.plan(device, now + AFTER_CHANGE);
        }
    }

    /// Forgets a peer.
    pub(crate) fn handle_removed(&mut self, device: DeviceId) {
        self.peers.remove(&device);
        self.waiting.retain(|waiting| *waiting != device);
        for timer in [
            Timer::Begin(device),
            Timer::Repeat(device),
            Timer::Expire(device),
        ] {
            self.timers.clear(timer);
        }
    }

    /// Takes the tunnel's word that a session was agreed, and whether under a pre-shared key.
    pub(crate) fn handle_session(&mut self, device: DeviceId, with_psk: bool, now: Mono) {
        let Some(peer) = self.peers.get_mut(&device) else {
            return;
        };
        peer.is_live = true;
        let settled = peer.agreed.is_none_or(|(_, at)| now.since(at) >= SETTLING);
        if !with_psk && settled {
            // The peer does not have it, whatever we believe.
            peer.agreed = None;
        }
        if matches!(peer.begun.as_deref(), Some(Begun::Finishing { .. })) {
            peer.sendings = 0;
            self.send_begun(device, now);
        } else if !self.has_key(device) && self.timers_allow(device) {
            self.begin(device, now);
        }
    }

    /// Takes the tunnel's word that no session is left.
    pub(crate) fn handle_idle(&mut self, device: DeviceId) {
        if let Some(peer) = self.peers.get_mut(&device) {
            peer.is_live = false;
            self.timers.clear(Timer::Repeat(device));
            // The end of an exchange is sent again in the next session: the other side may use the key.
            if matches!(peer.begun.as_deref(), Some(Begun::Asking(_))) {
                peer.begun = None;
            }
        }
    }

    /// Returns whether a key is agreed for the WireGuard keys in use now.
    fn has_key(&self, device: DeviceId) -> bool {
        let keys = self.peers.get(&device).and_then(|peer| peer.agreed);
        keys.is_some_and(|(keys, _)| Some(keys) == self.keys(device))
    }

    fn keys(&self, device: DeviceId) -> Option<[X25519Public; 2]> {
        Some([self.own?.1, self.peers.get(&device)?.key])
    }

    /// Whether nothing is under way and no failure is being waited out.
    fn timers_allow(&self, device: DeviceId) -> bool {
        let peer = self.peers.get(&device);
        peer.is_some_and(|p| p.begun.is_none() && p.failures == 0)
    }

    fn plan(&mut self, device: DeviceId, at: Mono) {
        if self.own.is_some_and(|(own, _)| own < device) {
            self.timers.set(Timer::Begin(device), at);
        }
    }

    fn begin(&mut self, device: DeviceId, now: Mono) {
        let (Some((own, _)), Some(keys)) = (self.own, self.keys(device)) else {
            return;
        };
        if own >= device {
            return;
        }
        self.timers.clear(Timer::Begin(device));
        let parties = Parties {
            devices: [own, device],
            keys,
        };
        let mut exchange = Exchange::default();
        for (slot, byte) in exchange.iter_mut().zip(self.random.bytes().iter()) {
            *slot = *byte;
        }
        let seeds = (self.random.bytes(), self.random.bytes());
        let beginner = Beginner::new(
            parties,
            exchange,
            (&seeds.0, &seeds.1),
            self.random.secret(),
        );
        let Some(peer) = self.peers.get_mut(&device).filter(|p| p.is_live) else {
            return;
        };
        peer.keys = keys;
        peer.sendings = 0;
        peer.begun = Some(Box::new(Begun::Asking(beginner)));
        self.send_begun(device, now);
    }

    /// Sends what is under way once more, or gives up.
    fn send_begun(&mut self, device: DeviceId, now: Mono) {
        let Some(peer) = self.peers.get_mut(&device) else {
            return;
        };
        if peer.sendings >= SENDINGS_MAX || !peer.is_live {
            self.give_up(device, now);
            return;
        }
        let content = match peer.begun.as_deref() {
            Some(Begun::Asking(beginner)) => Message::Begin {
                exchange: beginner.exchange,
                key: &beginner.key(),
            }
            .encode(),
            Some(Begun::Finishing { content, .. }) => content.clone(),
            None => return,
        };
        let wait = REPEAT_AFTER * 2u32.saturating_pow(peer.sendings);
        peer.sendings += 1;
        let wait = self.random.jitter(wait);
        self.timers.set(Timer::Repeat(device), now + wait);
        self.output.push_back(Output::Send { device, content });
    }

    fn give_up(&mut self, device: DeviceId, now: Mono) {
        let Some(peer) = self.peers.get_mut(&device) else {
            return;
        };
        peer.failures = peer.failures.saturating_add(1);
        peer.sendings = 0;
        let failures = peer.failures;
        let most = match self.mode {
            PostQuantum::Prefer => AGAIN_MAX,
            PostQuantum::Strict => AGAIN_STRICT_MAX,
        };
        let doublings = failures.saturating_sub(1).min(10);
        let pause = (AGAIN_AFTER * 2u32.saturating_pow(doublings)).min(most);
        let again = now + self.random.jitter(pause);
        self.timers.clear(Timer::Repeat(device));
        match peer.begun.as_deref_mut() {
            Some(Begun::Finishing { rounds, .. }) if *rounds < FINISH_ROUNDS => {
                *rounds += 1;
                self.timers.set(Timer::Repeat(device), again);
            }
            _ => {
                peer.begun = None;
                self.plan(device, again);
            }
        }
        self.output.push_back(Output::Failed { device, failures });
    }

    /// Takes a message of a peer; the tunnel proved that it is the peer's.
    pub(crate) fn handle_message(
        &mut self,
        device: DeviceId,
        content: &[u8],
        now: Mono,
    ) -> Result<(), Refused> {
        let message = Message::decode(content).map_err(|_e| Refused::Malformed)?;
        let (own, _) = self.own.ok_or(Refused::Stranger)?;
        if !self.peers.contains_key(&device) {
            return Err(Refused::Stranger);
        }
        let is_ours_to_begin = own < device;
        match message {
            Message::Begin { exchange, key } => {
                if is_ours_to_begin {
                    return Err(Refused::NotTheirs);
                }
                self.handle_begin(device, exchange, key, now)
            }
            Message::Answer {
                exchange,
                ciphertext,
                x25519,
                check,
            } => self.handle_answer(device, exchange, (ciphertext, x25519, &check), now),
            Message::Finish {
                exchange,
                x25519,
                check,
            } => self.handle_finish(device, exchange, (x25519, check), now),
            Message::Done { exchange, check } => self.handle_done(device, exchange, &check, now),
        }
    }

    fn handle_begin(
        &mut self,
        device: DeviceId,
        exchange: Exchange,
        key: &[u8; ENCAPSULATION_KEY_BYTES],
        now: Mono,
    ) -> Result<(), Refused> {
        let (own, own_key) = self.own.ok_or(Refused::Stranger)?;
        let peer = self.peers.get_mut(&device).ok_or(Refused::Stranger)?;
        match peer.answering.as_deref() {
            Some((
                known,
                Answering::Answered {
                    key: k, content, ..
                },
            )) if *known == exchange => {
                // The same again gets the same answer; another key under the same name gets none.
                if k.as_slice() != key {
                    return Err(Refused::Forged);
                }
                let content = content.clone();
                self.output.push_back(Output::Send { device, content });
                return Ok(());
            }
            Some((known, Answering::Done { .. })) if *known == exchange => {
                return Err(Refused::Unasked);
            }
            Some(_) | None => {}
        }
        let slowed = Mono(now.0 / PER_PEER_SLOWED);
        if !peer.bucket.take(PER_PEER, slowed) || !self.all.take(ALL, now) {
            return Err(Refused::TooOften);
        }
        let parties = Parties {
            devices: [device, own],
            keys: [peer.key, own_key],
        };
        let random = (self.random.bytes(), self.random.secret());
        let (answerer, answered) =
            Answerer::answer(&parties, &exchange, key, (&random.0, random.1))
                .ok_or(Refused::Forged)?;
        let content = Message::Answer {
            exchange,
            ciphertext: &answered.ciphertext,
            x25519: &answered.x25519,
            check: answered.check,
        }
        .encode();
        peer.keys = [own_key, peer.key];
        peer.answering = Some(Box::new((
            exchange,
            Answering::Answered {
                answerer,
                key: Zeroizing::new(key.to_vec()),
                content: content.clone(),
            },
        )));
        self.output.push_back(Output::Send { device, content });
        self.keep_answer(device, now);
        Ok(())
    }

    /// Makes room for one more answer.
    fn keep_answer(&mut self, device: DeviceId, now: Mono) {
        self.waiting.retain(|waiting| *waiting != device);
        self.waiting.push_back(device);
        self.timers.set(Timer::Expire(device), now + ANSWER_KEPT);
        if self.waiting.len() > ANSWERS_MAX
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.forget_answer(oldest);
        }
    }

    fn forget_answer(&mut self, device: DeviceId) {
        self.timers.clear(Timer::Expire(device));
        self.waiting.retain(|waiting| *waiting != device);
        if let Some(peer) = self.peers.get_mut(&device) {
            peer.answering = None;
        }
    }

    fn handle_answer(
        &mut self,
        device: DeviceId,
        exchange: Exchange,
        (ciphertext, x25519, check): (&[u8; CIPHERTEXT_BYTES], &[u8; 32], &Check),
        now: Mono,
    ) -> Result<(), Refused> {
        let peer = self.peers.get_mut(&device).ok_or(Refused::Stranger)?;
        let Some(Begun::Asking(beginner)) = peer.begun.as_deref() else {
            return Err(Refused::Unasked);
        };
        if beginner.exchange != exchange {
            return Err(Refused::Unasked);
        }
        let agreed = beginner
            .finish(ciphertext, x25519, check)
            .ok_or(Refused::Forged)?;
        let content = Message::Finish {
            exchange,
            x25519: &beginner.x25519(),
            check: agreed.finish,
        }
        .encode();
        self.output.push_back(Output::Set {
            device,
            keys: peer.keys,
            psk: agreed.psk.clone(),
            what: PskUse::Accept,
        });
        peer.sendings = 0;
        peer.begun = Some(Box::new(Begun::Finishing {
            exchange,
            content,
            agreed,
            rounds: 1,
        }));
        self.send_begun(device, now);
        Ok(())
    }

    fn handle_finish(
        &mut self,
        device: DeviceId,
        exchange: Exchange,
        (x25519, check): (&[u8; 32], Check),
        now: Mono,
    ) -> Result<(), Refused> {
        let peer = self.peers.get_mut(&device).ok_or(Refused::Stranger)?;
        let agreed = match peer.answering.as_deref() {
            Some((known, Answering::Answered { answerer, .. })) if *known == exchange => {
                answerer.finish(x25519, &check).ok_or(Refused::Forged)?
            }
            Some((known, Answering::Done { finish, content })) if *known == exchange => {
                if !same(finish, &check) {
                    return Err(Refused::Forged);
                }
                let content = content.clone();
                self.output.push_back(Output::Send { device, content });
                return Ok(());
            }
            Some(_) | None => return Err(Refused::Unasked),
        };
        let content = Message::Done {
            exchange,
            check: agreed.done,
        }
        .encode();
        peer.answering = Some(Box::new((
            exchange,
            Answering::Done {
                finish: check,
                content: content.clone(),
            },
        )));
        peer.agreed = Some((peer.keys, now));
        // What is done is small, and kept until the next: its end may come again at any time.
        self.timers.clear(Timer::Expire(device));
        self.waiting.retain(|waiting| *waiting != device);
        self.output.push_back(Output::Set {
            device,
            keys: peer.keys,
            psk: agreed.psk,
            what: PskUse::Use,
        });
        self.output.push_back(Output::Send { device, content });
        Ok(())
    }

    fn handle_done(
        &mut self,
        device: DeviceId,
        exchange: Exchange,
        check: &Check,
        now: Mono,
    ) -> Result<(), Refused> {
        let peer = self.peers.get_mut(&device).ok_or(Refused::Stranger)?;
        let Some(Begun::Finishing {
            exchange: known,
            agreed,
            ..
        }) = peer.begun.as_deref()
        else {
            return Err(Refused::Unasked);
        };
        if *known != exchange {
            return Err(Refused::Unasked);
        }
        if !same(&agreed.done, check) {
            return Err(Refused::Forged);
        }
        self.output.push_back(Output::Set {
            device,
            keys: peer.keys,
            psk: agreed.psk.clone(),
            what: PskUse::UseNow,
        });
        peer.agreed = Some((peer.keys, now));
        peer.begun = None;
        peer.failures = 0;
        self.timers.clear(Timer::Repeat(device));
        let spread = self.random.up_to(RENEW_EVERY / 5);
        self.plan(device, now + RENEW_EVERY * 9 / 10 + spread);
        Ok(())
    }

    pub(crate) fn handle_timeout(&mut self, now: Mono) {
        while let Some(timer) = self.timers.due(now) {
            match timer {
                Timer::Begin(device) if self.may_repeat(timer, now) => self.begin_due(device, now),
                Timer::Repeat(device) if self.may_repeat(timer, now) => {
                    self.send_begun(device, now);
                }
                Timer::Begin(_) | Timer::Repeat(_) => {
                    let later = self.random.jitter(REPEAT_LATER);
                    self.timers.set(timer, now + later);
                }
                Timer::Expire(device) => self.forget_answer(device),
            }
        }
    }

    /// Returns whether there is budget for what a timer is to repeat. What was never tried needs none.
    fn may_repeat(&mut self, timer: Timer, now: Mono) -> bool {
        let has_failed = |device| self.peers.get(&device).is_some_and(|p| p.failures > 0);
        match timer {
            Timer::Begin(device) if !has_failed(device) => true,
            Timer::Begin(_) | Timer::Repeat(_) => self.repeats.take(REPEATS, now),
            Timer::Expire(_) => true,
        }
    }

    /// Begins what was planned: without a session, the next one begins it.
    fn begin_due(&mut self, device: DeviceId, now: Mono) {
        let Some(peer) = self.peers.get_mut(&device) else {
            return;
        };
        if !peer.is_live {
            peer.failures = 0;
            peer.agreed = None;
        } else if peer.begun.is_none() {
            self.begin(device, now);
        }
    }

    pub(crate) fn poll(&mut self) -> Option<Output> {
        self.output.pop_front()
    }

    pub(crate) fn deadline(&self) -> (Mono, &'static str) {
        match self.timers.first() {
            Some((at, Timer::Begin(_))) => (at, "agree on a pre-shared key"),
            Some((at, Timer::Repeat(_))) => (at, "repeat a step of an exchange"),
            Some((at, Timer::Expire(_))) => (at, "forget an answered exchange"),
            None => (Mono::NEVER, "nothing"),
        }
    }

    pub(crate) fn status(&self, device: DeviceId) -> Option<PskStatus> {
        self.peers.get(&device).map(|peer| PskStatus {
            agreed_at: peer.agreed.map(|(_, at)| at),
            failures: peer.failures,
        })
    }
}

#[cfg(test)]
mod tests;
