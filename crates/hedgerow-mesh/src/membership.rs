//! Who of the relays and site managers is there: SWIM, as a hint for routing and never a verdict.
//!
//! ```text
//!  session with a relay ─▶ Announce ─▶ Feed ─▶ members
//!  every 10 s: Ping one member ─▶ Ack, or PingReq through three others, or suspicion, then "down"
//! ```
//!
//! The protocol is `foca`'s, with settings for links that are slow and lossy (see
//! `docs/adr`): detection takes minutes, and that is fine, because nothing is dropped or refused when
//! gossip calls a member down. Any member can say so of any other, and most would believe it.
//!
//! Beyond `foca`: *local health*. A device whose own probes go unanswered suspects itself first: it
//! probes less often and waits longer before it calls anybody down, up to [`HEALTH_MAX`] times as long.
//! Randomness is a seed, time an argument.

use std::collections::{BTreeMap, VecDeque};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{
    Config, Foca, Identity, NoCustomBroadcast, Notification, PeriodicParams, Runtime, State,
    Timer as FocaTimer,
};
use hedgerow_model::Mono;
use hedgerow_model::id::DeviceId;
use hedgerow_model::message::MESSAGE_BYTES_MAX;
use rand_core::{Infallible, TryRng};

use crate::budget::{Bucket, Rate};
use crate::random::Random;
use codec::CborCodec;
pub use codec::devices as decode;

mod codec;
#[cfg(test)]
mod tests;

/// How often one member is probed.
pub const PROBE_EVERY: Duration = Duration::from_secs(10);
/// How long the answer of a probe is waited for before others are asked to probe.
pub const PROBE_WITHIN: Duration = Duration::from_secs(3);
/// How long a member is suspected before it is called down.
pub const SUSPECT_FOR: Duration = Duration::from_secs(60);
/// How often news are told while there are any, and to how many.
pub const GOSSIP_EVERY: Duration = Duration::from_secs(1);
/// How often one member is asked whom it knows.
pub const REJOIN_EVERY: Duration = Duration::from_secs(300);
/// How long a member that is down is remembered.
pub const REMEMBER_DOWN: Duration = Duration::from_secs(24 * 3600);
/// Most members. Beyond, a message of a device that is no member yet is refused.
pub const MEMBERS_MAX: usize = 500;
/// How many times slower a device probes whose probes all go unanswered.
pub const HEALTH_MAX: u32 = 8;
/// Messages of one device that are read: rate and burst.
pub const MESSAGES: Rate = Rate {
    per_second: 10,
    burst: 100,
};
/// Timers of the protocol, at most: a few for each member.
const TIMERS_MAX: usize = 4 * MEMBERS_MAX;

/// A member: a device and which of its starts. A device that starts anew is another member, so that what
/// was said of it before does not follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The device.
    pub device: DeviceId,
    /// Grows with each start: trusted seconds then.
    pub boot: u64,
}

impl Identity for Member {
    type Addr = DeviceId;

    /// A member that hears that it is down says that it is not.
    fn renew(&self) -> Option<Self> {
        Some(Self {
            boot: self.boot.checked_add(1)?,
            ..*self
        })
    }

    fn addr(&self) -> DeviceId {
        self.device
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.boot > adversary.boot
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Send this content to the member; without a session with it, the message is lost.
    Send { device: DeviceId, content: Vec<u8> },
    /// A member came.
    Up { device: DeviceId },
    /// Others believe that a member is gone. A hint.
    Down { device: DeviceId },
}

/// Why a message was refused; nothing is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Not a message of ours, or in another device's name.
    Malformed,
    /// We are no relay, or it is none.
    NotAMember,
    /// Too many messages of this device.
    Budget,
    /// As many members as there may be.
    Full,
}

/// `foca`'s randomness from ours.
struct Draw(Random);

impl TryRng for Draw {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let bytes = self.0.bytes();
        Ok(bytes.first_chunk().map_or(0, |b| u32::from_be_bytes(*b)))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let bytes = self.0.bytes();
        Ok(bytes.first_chunk().map_or(0, |b| u64::from_be_bytes(*b)))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(32) {
            let bytes = self.0.bytes();
            for (slot, byte) in chunk.iter_mut().zip(bytes.iter()) {
                *slot = *byte;
            }
        }
        Ok(())
    }
}

/// Collects what `foca` wants.
#[derive(Default)]
struct Wants {
    send: Vec<(Member, Vec<u8>)>,
    timers: Vec<(Duration, FocaTimer<Member>)>,
    told: Vec<Output>,
    renewed: Option<Member>,
}

impl Runtime<Member> for &mut Wants {
    fn notify(&mut self, notification: Notification<'_, Member>) {
        match notification {
            Notification::MemberUp(member) => self.told.push(Output::Up {
                device: member.device,
            }),
            Notification::MemberDown(member) => self.told.push(Output::Down {
                device: member.device,
            }),
            Notification::Rejoin(member) => self.renewed = Some(*member),
            Notification::Rename(..)
            | Notification::Active
            | Notification::Idle
            | Notification::Defunct => {}
        }
    }

    fn send_to(&mut self, to: Member, data: &[u8]) {
        self.send.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: FocaTimer<Member>, after: Duration) {
        self.timers.push((after, event));
    }
}

type Swim = Foca<Member, CborCodec, Draw, NoCustomBroadcast>;

/// How a member is seen, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberStatus {
    /// The device.
    pub device: DeviceId,
    /// Whether somebody suspects that it is gone.
    pub is_suspected: bool,
}

/// The membership of one relay. Other devices have none.
pub(crate) struct Membership {
    swim: Swim,
    own: Member,
    /// By time and order of submission.
    timers: BTreeMap<(Mono, u64), FocaTimer<Member>>,
    submitted: u64,
    /// How unanswered our probes are: 0 when they are answered.
    health: u32,
    budgets: BTreeMap<DeviceId, Bucket>,
    output: VecDeque<Output>,
}

fn config() -> Config {
    let several = NonZeroUsize::MIN.saturating_add(2);
    Config {
        probe_period: PROBE_EVERY,
        probe_rtt: PROBE_WITHIN,
        num_indirect_probes: several,
        max_transmissions: NonZeroU8::MIN.saturating_add(9),
        suspect_to_down_after: SUSPECT_FOR,
        remove_down_after: Some(REMEMBER_DOWN),
        max_packet_size: NonZeroUsize::new(MESSAGE_BYTES_MAX).unwrap_or(NonZeroUsize::MIN),
        notify_down_members: true,
        periodic_announce: Some(PeriodicParams {
            frequency: REJOIN_EVERY,
            num_members: NonZeroUsize::MIN,
        }),
        periodic_announce_to_down_members: Some(PeriodicParams {
            frequency: REJOIN_EVERY,
            num_members: NonZeroUsize::MIN,
        }),
        periodic_gossip: Some(PeriodicParams {
            frequency: GOSSIP_EVERY,
            num_members: several,
        }),
    }
}

impl Membership {
    pub(crate) fn new(own: Member, seed: [u8; 32]) -> Self {
        Self {
            swim: Foca::new(own, config(), Draw(Random::new(seed)), CborCodec),
            own,
            timers: BTreeMap::new(),
            submitted: 0,
            health: 0,
            budgets: BTreeMap::new(),
            output: VecDeque::new(),
        }
    }

    /// Returns who we are.
    pub(crate) fn own(&self) -> Member {
        self.own
    }

    /// Takes note of a session with another relay: it is asked whom it knows, unless we know it.
    pub(crate) fn handle_session(&mut self, device: DeviceId, now: Mono) {
        let is_known = self.swim.iter_members().any(|m| m.id().device == device);
        if device == self.own.device || is_known {
            return;
        }
        // Which of its starts it is in, it says itself.
        let unknown = Member { device, boot: 0 };
        self.run(now, |swim, wants| swim.announce(unknown, wants));
    }

    /// Takes a message of another relay; the tunnel proved that it is the relay's.
    pub(crate) fn handle_message(
        &mut self,
        device: DeviceId,
        content: &[u8],
        now: Mono,
    ) -> Result<(), Refused> {
        let bucket = self
            .budgets
            .entry(device)
            .or_insert_with(|| Bucket::full(MESSAGES, now));
        if !bucket.take(MESSAGES, now) {
            return Err(Refused::Budget);
        }
        let header = codec::header(content).map_err(|_e| Refused::Malformed)?;
        if header.src.device != device || header.dst.device != self.own.device {
            return Err(Refused::Malformed);
        }
        let mut named = codec::devices(content).map_err(|_e| Refused::Malformed)?;
        named.push(device);
        named.sort_unstable();
        named.dedup();
        let state = self.swim.iter_membership_state();
        let known = state.len();
        let old = state.filter(|m| named.binary_search(&m.id().device).is_ok());
        if known + named.len() - old.count() > MEMBERS_MAX {
            return Err(Refused::Full);
        }
        let result = self.run(now, |swim, wants| swim.handle_data(content, wants));
        result.then_some(()).ok_or(Refused::Malformed)
    }

    /// Takes note that a device is no peer any more: its budget is forgotten, its membership is not.
    pub(crate) fn handle_removed(&mut self, device: DeviceId) {
        self.budgets.remove(&device);
    }

    pub(crate) fn handle_timeout(&mut self, now: Mono) {
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let timer = entry.remove();
            let probes = matches!(timer, FocaTimer::SendIndirectProbe { .. });
            let sent = self.output.len();
            self.run(now, |swim, wants| swim.handle_timer(timer, wants));
            if probes {
                // What it sends now asks others to probe: ours went unanswered.
                let unanswered = self.output.len() > sent;
                self.health = match unanswered {
                    true => (self.health + 1).min(HEALTH_MAX - 1),
                    false => self.health.saturating_sub(1),
                };
            }
        }
    }

    /// Lets `foca` work and takes what it wants. Returns whether it was content.
    fn run(
        &mut self,
        now: Mono,
        work: impl FnOnce(&mut Swim, &mut Wants) -> Result<(), foca::Error>,
    ) -> bool {
        let mut wants = Wants::default();
        let result = work(&mut self.swim, &mut wants);
        if let Some(own) = wants.renewed {
            self.own = own;
        }
        for (to, content) in wants.send {
            let device = to.device;
            self.output.push_back(Output::Send { device, content });
        }
        self.output.extend(wants.told);
        for (after, timer) in wants.timers {
            let of_one_member = matches!(
                timer,
                FocaTimer::ChangeSuspectToDown { .. } | FocaTimer::RemoveDown(_)
            );
            let judges = matches!(
                timer,
                FocaTimer::ProbeRandomMember(_) | FocaTimer::ChangeSuspectToDown { .. }
            );
            let stretched = match judges {
                true => after * (self.health + 1),
                false => after,
            };
            // When full, a suspicion stays one; what keeps the protocol going always finds room.
            if self.timers.len() < TIMERS_MAX || !of_one_member {
                self.submitted += 1;
                self.timers.insert((now + stretched, self.submitted), timer);
            }
        }
        result.is_ok()
    }

    pub(crate) fn poll(&mut self) -> Option<Output> {
        self.output.pop_front()
    }

    pub(crate) fn deadline(&self) -> (Mono, &'static str) {
        match self.timers.first_key_value() {
            Some(((at, _), _)) => (*at, "keep up membership"),
            None => (Mono::NEVER, "nothing"),
        }
    }

    pub(crate) fn status(&self) -> Vec<MemberStatus> {
        self.swim
            .iter_members()
            .map(|member| MemberStatus {
                device: member.id().device,
                is_suspected: member.state() == State::Suspect,
            })
            .collect()
    }

    #[cfg(test)]
    pub(crate) fn health(&self) -> u32 {
        self.health
    }
}
