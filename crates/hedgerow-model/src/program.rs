//! The compiled policy of one class of device: rules over peer labels, in precedence order.
//!
//! Devices whose policy-relevant labels agree share one program, so it is encoded, hashed and signed
//! once. Which peers it speaks of is decided on the device, by evaluating [`Predicate`]s over the
//! labels in a peer's verified ticket; no peer is listed.

use std::fmt;

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

use crate::address::Prefix;
use crate::id::{LabelKey, RuleId};
use crate::packet::Direction;
use crate::service::Ports;

/// The format this crate reads and writes. Another number is refused as a whole.
pub const PROGRAM_FORMAT: u32 = 1;
/// Most operations in one predicate.
pub const PREDICATE_OPS_MAX: usize = 512;
/// Most rules in one program.
pub const PROGRAM_RULES_MAX: usize = 4096;
/// Largest encoded program, in bytes.
pub const PROGRAM_BYTES_MAX: usize = 1 << 20;

/// A fact of a device that selectors can ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attribute {
    /// An assigned label.
    Label(LabelKey),
    /// The device's name.
    Name,
    /// The device's site.
    Site,
    /// The device's id, spelt in base32.
    Id,
}

impl Attribute {
    /// Returns the spelling used in selectors.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Label(key) => key.as_str(),
            Self::Name => "name",
            Self::Site => "site",
            Self::Id => "id",
        }
    }
}

impl<C> Encode<C> for Attribute {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.str(self.as_str())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Attribute {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        match d.str()? {
            "name" => Ok(Self::Name),
            "site" => Ok(Self::Site),
            "id" => Ok(Self::Id),
            key => LabelKey::new(key)
                .map(Self::Label)
                .map_err(decode::Error::message),
        }
    }
}

/// What a class says of one attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum ClassValue {
    /// The device has this very value.
    #[n(0)]
    Is(#[n(0)] String),
    /// The device has a value, and none of these, which are all that the policy mentions.
    #[n(1)]
    Other(#[n(0)] Vec<String>),
    /// The device has no value.
    #[n(2)]
    Absent,
}

/// Which devices a program is for: the policy-relevant attributes and their values, in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Default)]
pub struct Class(#[n(0)] pub Vec<(Attribute, ClassValue)>);

/// Whether a device was taken out of normal service, in order of severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum DeviceState {
    /// Enrolled, and nothing granted yet.
    #[n(0)]
    Onboarding,
    /// Contained by an operator or a detection.
    #[n(1)]
    Quarantine,
    /// Two sessions used one key: the later one is held until an operator decides.
    #[n(2)]
    Held,
}

impl DeviceState {
    /// Returns the spelling used in policy files, the API and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Onboarding => "onboarding",
            Self::Quarantine => "quarantine",
            Self::Held => "held",
        }
    }
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One operation of a predicate in postfix order; each leaves one truth value on the stack.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum PredicateOp {
    /// Pushes true.
    #[n(0)]
    True,
    /// Pushes false.
    #[n(1)]
    False,
    /// Pushes whether the peer's attribute has this value.
    #[n(2)]
    Is(#[n(0)] Attribute, #[n(1)] String),
    /// Pushes whether the peer's attribute has one of these values.
    #[n(3)]
    In(#[n(0)] Attribute, #[n(1)] Vec<String>),
    /// Pushes whether the peer has the attribute at all.
    #[n(4)]
    Has(#[n(0)] Attribute),
    /// Pushes whether peer and this device have the attribute and it is equal.
    #[n(5)]
    SameAsOwn(#[n(0)] Attribute),
    /// Pushes whether the peer is in this state.
    #[n(6)]
    State(#[n(0)] DeviceState),
    /// Pushes whether the peer is in any state.
    #[n(7)]
    AnyState,
    /// Turns the top round.
    #[n(8)]
    Not,
    /// Replaces the two on top by their conjunction.
    #[n(9)]
    And,
    /// Replaces the two on top by their disjunction.
    #[n(10)]
    Or,
}

/// A truth function over a peer's verified facts, as postfix operations. At most
/// [`PREDICATE_OPS_MAX`]; one that does not leave exactly one value is false for allow rules and
/// true for deny rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Predicate(#[n(0)] pub Vec<PredicateOp>);

/// The other end that a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Target {
    /// Devices of the mesh, by their tickets.
    #[n(0)]
    Peers(#[n(0)] Predicate),
    /// Underlay addresses.
    #[n(1)]
    Prefixes(#[n(0)] Vec<Prefix>),
    /// Every underlay address outside private, link-local and overlay ranges.
    #[n(2)]
    Internet,
    /// The controllers and site managers of the device's configuration.
    #[n(3)]
    Controller,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Effect {
    /// Lets pass.
    #[n(0)]
    Allow,
    /// Refuses.
    #[n(1)]
    Deny,
}

/// How far a segment or rule is put into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Mode {
    /// Lets pass and counts.
    #[n(0)]
    Observe,
    /// Lets pass and counts what enforcement would refuse, per rule.
    #[n(1)]
    Simulate,
    /// Refuses what is not allowed.
    #[n(2)]
    Enforce,
}

/// Precedence: the lowest tier that decides ends it; within a tier deny beats allow.
pub mod tier {
    /// What keeps a device manageable; built in.
    pub const LIFELINE: u8 = 0;
    /// What a state allows, and the refusal of the rest: a deny rule that excepts what is allowed.
    /// One tier for both, so that a flow between two contained devices needs the leave of both.
    pub const STATE: u8 = 10;
    /// Invariants of the organisation.
    pub const GUARDRAIL: u8 = 20;
    /// Rules of the organisation.
    pub const ORG: u8 = 50;
    /// Rules of a site.
    pub const SITE: u8 = 60;
    /// The rest.
    pub const DEFAULT: u8 = 90;
}

/// A rate per source device, enforced at the receiving device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Limit {
    /// Bytes per second of IP packets.
    #[n(0)]
    pub bytes_per_second: u64,
    /// Bucket depth; at least 64 KiB, because segmentation offload hands over that much at once.
    #[n(1)]
    pub burst_bytes: u32,
}

/// What a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Services {
    /// Every protocol and port, spelt out in the policy.
    #[n(0)]
    Any,
    /// These.
    #[n(1)]
    Only(#[n(0)] Vec<Ports>),
}

/// One rule as it concerns this class of device.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct ProgramRule {
    /// Its id in the policy file, for counters and explanations.
    #[n(0)]
    pub id: RuleId,
    /// See [`tier`].
    #[n(1)]
    pub tier: u8,
    /// Which way the flow's initiator sends, seen from this device.
    #[cbor(n(2), with = "cbor_direction")]
    pub direction: Direction,
    /// What it does.
    #[n(3)]
    pub effect: Effect,
    /// The other end.
    #[n(4)]
    pub target: Target,
    /// What is spoken.
    #[n(5)]
    pub services: Services,
    /// Applies only while this device is in this state.
    #[n(6)]
    pub own_state: Option<DeviceState>,
    /// Index into [`Program::schedules`]; the rule applies while that window is open.
    #[n(7)]
    pub schedule: Option<u16>,
    /// The rate that an allow rule carries.
    #[n(8)]
    pub limit: Option<Limit>,
    /// A deny rule short of `Enforce` counts and lets lower tiers decide.
    #[n(9)]
    pub mode: Mode,
    /// Indices into [`Program::rules`]: this rule does not apply to what one of those matches.
    #[n(10)]
    pub except: Vec<u16>,
}

/// A weekly window in a site's own time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Schedule {
    /// Its id in the policy file.
    #[n(0)]
    pub id: RuleId,
    /// Days on which the window opens; bit 0 is Monday.
    #[n(1)]
    pub days: u8,
    /// Opens at this minute of the local day, 0 to 1439.
    #[n(2)]
    pub from_minute: u16,
    /// Closes at this minute, 1 to 1440; not after `from_minute` means on the next day.
    #[n(3)]
    pub to_minute: u16,
    /// IANA zone; absent means the site's.
    #[n(4)]
    pub zone: Option<String>,
}

/// Everything a class of device needs to know of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Program {
    /// [`PROGRAM_FORMAT`].
    #[n(0)]
    pub format: u32,
    /// Which devices it is for; a device whose ticket disagrees refuses the program.
    #[n(1)]
    pub class: Class,
    /// How far this class's own segment is in force, for overlay traffic.
    #[n(2)]
    pub mode: Mode,
    /// The same for the underlay; `Observe` until the policy says otherwise.
    #[n(3)]
    pub underlay: Mode,
    /// Rules, sorted by tier and then by their place in the policy.
    #[n(4)]
    pub rules: Vec<ProgramRule>,
    /// Windows that rules refer to.
    #[n(5)]
    pub schedules: Vec<Schedule>,
    /// At most one sampled refusal event per this many seconds, source and reason; 0 is none.
    #[n(6)]
    pub sample_seconds: u32,
}

mod cbor_direction {
    use super::*;

    pub(super) fn encode<C, W: encode::Write>(
        v: &Direction,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.u8(match v {
            Direction::In => 0,
            Direction::Out => 1,
        })?
        .ok()
    }

    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Direction, decode::Error> {
        match d.u8()? {
            0 => Ok(Direction::In),
            1 => Ok(Direction::Out),
            _ => Err(decode::Error::message("direction is neither 0 nor 1")),
        }
    }
}
