//! A policy as read: names resolved, nothing decided.

use std::collections::{BTreeMap, BTreeSet};

use hedgerow_model::Wall;
use hedgerow_model::address::Prefix;
use hedgerow_model::id::{LabelKey, LabelValue, RuleId};
use hedgerow_model::program::{
    Attribute, DeviceState, Effect, Limit, Mode, Schedule, Services, tier,
};
use hedgerow_model::service::Ports;

use crate::diagnostic::Mark;

/// A checked policy. [`crate::parse`] is the only way to make one.
#[derive(Debug, Clone)]
pub struct Policy {
    pub(crate) name: String,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) services: BTreeMap<String, Vec<Ports>>,
    pub(crate) schedules: Vec<Schedule>,
    pub(crate) segments: Vec<Segment>,
    /// Guardrails, then rules, each in the order of the file.
    pub(crate) rules: Vec<Rule>,
    pub(crate) states: BTreeMap<DeviceState, Vec<StateAllow>>,
    pub(crate) sample_seconds: u32,
    pub(crate) unknown_device: Option<DeviceState>,
    pub(crate) tests: Vec<Test>,
    /// What tells devices apart; made of all the above.
    pub(crate) mentioned: Mentioned,
}

/// The attributes that selectors ask for, with the values they name.
pub(crate) type Mentioned = BTreeMap<Attribute, BTreeSet<String>>;

/// The label keys and values that selectors may name.
pub(crate) type Vocabulary = BTreeMap<LabelKey, Vec<LabelValue>>;

/// Services that every policy may name without declaring them.
pub const BUILTIN_SERVICES: [(&str, &[Ports]); 9] = [
    ("dns", &[Ports::tcp(53), Ports::udp(53)]),
    ("http", &[Ports::tcp(80)]),
    ("https", &[Ports::tcp(443)]),
    ("mqtt", &[Ports::tcp(1883)]),
    ("mqtts", &[Ports::tcp(8883)]),
    ("ntp", &[Ports::udp(123)]),
    ("ping", &[Ports::ICMP_ECHO]),
    ("rtsp", &[Ports::tcp(554)]),
    ("ssh", &[Ports::tcp(22)]),
];

impl Policy {
    /// Returns the policy's name, from `meta.name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what a service name stands for: declared, built in, or spelt `tcp/502`, `icmp-echo`.
    pub fn service(&self, text: &str) -> Option<Vec<Ports>> {
        if let Some(ports) = self.services.get(text) {
            return Some(ports.clone());
        }
        if let Some((_, ports)) = BUILTIN_SERVICES.iter().find(|(name, _)| *name == text) {
            return Some(ports.to_vec());
        }
        crate::parse::ports(text).ok().map(|p| vec![p])
    }

    /// Returns the declared services, by name.
    pub fn services(&self) -> impl Iterator<Item = (&str, &[Ports])> {
        self.services
            .iter()
            .map(|(n, p)| (n.as_str(), p.as_slice()))
    }

    /// Returns the state in which a device enrolled without labels begins.
    pub fn unknown_device_state(&self) -> Option<DeviceState> {
        self.unknown_device
    }

    /// Returns the ids of guardrails and rules, in order.
    pub fn rule_ids(&self) -> impl Iterator<Item = &RuleId> {
        self.rules.iter().map(|r| &r.id)
    }
}

/// A zone: some devices and how far policy is in force for them.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) id: RuleId,
    pub(crate) select: Selector,
    pub(crate) mode: Mode,
    pub(crate) underlay: Mode,
    pub(crate) at: Mark,
}

/// A guardrail or a rule.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) id: RuleId,
    pub(crate) tier: u8,
    pub(crate) effect: Effect,
    pub(crate) from: Endpoint,
    pub(crate) to: Endpoint,
    /// Attributes that both ends must share.
    pub(crate) same: Vec<Attribute>,
    pub(crate) services: Services,
    pub(crate) limit: Option<Limit>,
    /// Index into [`Policy::schedules`].
    pub(crate) schedule: Option<u16>,
    /// Absent: the mode of the segment at the end that decides.
    pub(crate) mode: Option<Mode>,
    /// Indices into [`Policy::rules`].
    pub(crate) except: Vec<usize>,
    pub(crate) at: Mark,
    pub(crate) field: String,
}

impl Rule {
    /// Whether it is in force whatever the segments' modes are.
    pub(crate) fn is_guardrail(&self) -> bool {
        self.tier == tier::GUARDRAIL
    }
}

/// One thing that a device in a state may still do.
#[derive(Debug, Clone)]
pub(crate) struct StateAllow {
    /// Whether the device in the state begins the flow.
    pub(crate) outbound: bool,
    pub(crate) other: Endpoint,
    pub(crate) services: Services,
    pub(crate) at: Mark,
}

/// One end of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Devices of the mesh.
    Devices(Selector),
    /// Underlay addresses.
    Prefixes(Vec<Prefix>),
    /// Underlay addresses outside ranges that are somebody's own.
    Internet,
    /// Controllers and site managers.
    Controller,
}

/// Which devices are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selector {
    Any,
    Nothing,
    Is(Attribute, String),
    In(Attribute, Vec<String>),
    Has(Attribute),
    /// Index into [`Policy::segments`].
    Segment(usize),
    Not(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
}

/// An expectation that travels with the policy.
#[derive(Debug, Clone)]
pub(crate) struct Test {
    /// How people call it.
    pub(crate) title: String,
    pub(crate) at: Mark,
    pub(crate) kind: TestKind,
}

impl Test {
    /// Returns every selector that it names.
    pub(crate) fn selectors(&self) -> Vec<&Selector> {
        match &self.kind {
            TestKind::Invariant { from, to, .. } => vec![from, to],
            TestKind::Flow(flow) => {
                let ends = [&flow.from, &flow.to]
                    .into_iter()
                    .filter_map(|end| match end {
                        Endpoint::Devices(selector) => Some(selector),
                        Endpoint::Prefixes(_) | Endpoint::Internet | Endpoint::Controller => None,
                    });
                ends.chain(flow.states.iter().map(|(s, _)| s)).collect()
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum TestKind {
    Flow(FlowTest),
    Invariant {
        from: Selector,
        to: Selector,
        /// Absent: on any service.
        services: Services,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct FlowTest {
    pub(crate) from: Endpoint,
    pub(crate) to: Endpoint,
    pub(crate) same: Vec<Attribute>,
    pub(crate) services: Services,
    pub(crate) at: Option<Wall>,
    /// The zone of stand-ins, by the offset of `at`.
    pub(crate) zone: Option<String>,
    pub(crate) states: Vec<(Selector, DeviceState)>,
    pub(crate) expect: Expect,
    pub(crate) by: Option<By>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    Allow,
    Deny,
    /// Nothing but controllers and site managers.
    OnlyController,
}

/// What should have decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum By {
    State,
    Guardrail,
    Default,
    /// A closed window: with it open, the outcome would be the other one.
    Schedule,
    Rule(RuleId),
}
