//! What a policy means: the reference.
//!
//! Written from the language's specification alone, on the policy as read. Nothing here calls the
//! compiler, the resolver or their reading of schedules, so that a mistake would have to be made
//! twice to go unnoticed.

use std::net::IpAddr;

use hedgerow_model::Wall;
use hedgerow_model::id::DeviceId;
use hedgerow_model::program::{DeviceState, Effect, Limit, Mode, Schedule, Services, tier};
use hedgerow_model::service::Protocol;
use jiff::Timestamp;
use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;

use crate::facts::{Facts, World};
use crate::policy::{Endpoint, Policy, Rule, Selector};

/// One end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// A device of the mesh. One that the world does not hold reaches nothing.
    Device(DeviceId),
    /// An underlay address.
    Address(IpAddr),
    /// A controller or site manager.
    Controller,
}

/// A flow as its initiator begins it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Who begins.
    pub from: End,
    /// Who answers.
    pub to: End,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port; 0 for ICMP echo.
    pub port: u16,
}

/// What one end does with a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// Lets it pass.
    Pass,
    /// Lets it pass, and counts that enforcement would refuse it.
    WouldRefuse,
    /// Refuses it.
    Refuse,
}

/// How one end decides a flow, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What it does.
    pub verdict: Ruling,
    /// The rule that decides: its id, a state's name, `lifeline` or `default`.
    pub rule: String,
    /// The tier that decides, see [`tier`].
    pub tier: u8,
    /// Why, for people.
    pub reason: String,
    /// The rate per source that the receiver enforces.
    pub limit: Option<Limit>,
    /// The rule that would refuse the flow if it were enforced.
    pub would_deny: Option<String>,
    /// Every tier that was asked, in order.
    pub steps: Vec<Step>,
}

/// What one rule, or a tier without any, had to say.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    /// See [`tier`].
    pub tier: u8,
    /// The rule's id; empty for a tier that is silent.
    pub rule: String,
    /// What came of it.
    pub outcome: String,
}

/// What both ends do with a flow. An end that is not a device decides nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The initiator's end.
    pub source: Option<Decision>,
    /// The other end.
    pub destination: Option<Decision>,
}

impl Outcome {
    /// Returns whether the flow comes about: neither end refuses, and at least one is a device.
    pub fn passes(&self) -> bool {
        let mut ends = [&self.source, &self.destination]
            .into_iter()
            .flatten()
            .peekable();
        ends.peek().is_some() && ends.all(|d| d.verdict != Ruling::Refuse)
    }

    /// Returns the decision that settles it: the first refusal, else the receiver's.
    pub fn deciding(&self) -> Option<&Decision> {
        let refusing = [&self.source, &self.destination]
            .into_iter()
            .flatten()
            .find(|d| d.verdict == Ruling::Refuse);
        refusing
            .or(self.destination.as_ref())
            .or(self.source.as_ref())
    }
}

/// What is known of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// It is this time.
    At(Wall),
    /// Nothing: windows that allow are closed, windows that deny are in force.
    Strict,
    /// Whatever lets most pass, to learn what is possible at some time.
    Hopeful,
}

/// Whether modes count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Force {
    /// Every segment and rule in its own mode.
    AsIs,
    /// As if everything were enforced: what a policy under observation is meant to do.
    Enforced,
}

/// An end with its facts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Party<'w> {
    Device(&'w Facts),
    Address(IpAddr),
    Controller,
}

impl<'w> Party<'w> {
    pub(crate) fn device(self) -> Option<&'w Facts> {
        match self {
            Self::Device(facts) => Some(facts),
            Self::Address(_) | Self::Controller => None,
        }
    }
}

/// A flow with what is known of its ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case<'w> {
    pub(crate) from: Party<'w>,
    pub(crate) to: Party<'w>,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

/// Decides `flow` as both ends do at `at`. `trusted` says whether that time is believed.
pub fn evaluate(policy: &Policy, world: &World, flow: &Flow, at: Wall, trusted: bool) -> Outcome {
    let party = |end| match end {
        End::Device(id) => world.get(id).map(Party::Device),
        End::Address(address) => Some(Party::Address(address)),
        End::Controller => Some(Party::Controller),
    };
    let (Some(from), Some(to)) = (party(flow.from), party(flow.to)) else {
        return Outcome {
            source: None,
            destination: None,
        };
    };
    let case = Case {
        from,
        to,
        protocol: flow.protocol,
        port: flow.port,
    };
    let clock = if trusted {
        Clock::At(at)
    } else {
        Clock::Strict
    };
    judge(policy, &case, clock, Force::AsIs)
}

/// Decides at both ends.
pub(crate) fn judge(policy: &Policy, case: &Case<'_>, clock: Clock, force: Force) -> Outcome {
    let at_end = |party: Party<'_>, receives: bool| {
        let own = party.device()?;
        let mut judge = Judge {
            policy,
            case,
            own,
            receives,
            clock,
            force,
            steps: Vec::new(),
            simulated: None,
        };
        Some(judge.decide())
    };
    Outcome {
        source: at_end(case.from, false),
        destination: at_end(case.to, true),
    }
}

/// One end at work.
struct Judge<'c> {
    policy: &'c Policy,
    case: &'c Case<'c>,
    own: &'c Facts,
    receives: bool,
    clock: Clock,
    force: Force,
    steps: Vec<Step>,
    /// The first deny rule that is only simulated here.
    simulated: Option<String>,
}

const STATES: [DeviceState; 3] = [
    DeviceState::Onboarding,
    DeviceState::Quarantine,
    DeviceState::Held,
];

impl Judge<'_> {
    fn decide(&mut self) -> Decision {
        if let (Party::Device(_), Party::Controller) = (self.case.from, self.case.to) {
            let reason = "a device always reaches its controllers";
            return self.settle(Ruling::Pass, "lifeline", tier::LIFELINE, reason);
        }
        if let Some(decision) = self.states() {
            return decision;
        }
        for level in [tier::GUARDRAIL, tier::ORG, tier::SITE] {
            if let Some(decision) = self.level(level) {
                return decision;
            }
        }
        self.default()
    }

    fn settle(&mut self, verdict: Ruling, rule: &str, level: u8, reason: &str) -> Decision {
        self.step(level, rule, reason);
        Decision {
            verdict,
            rule: rule.to_owned(),
            tier: level,
            reason: reason.to_owned(),
            limit: None,
            would_deny: None,
            steps: std::mem::take(&mut self.steps),
        }
    }

    fn step(&mut self, level: u8, rule: &str, outcome: &str) {
        self.steps.push(Step {
            tier: level,
            rule: rule.to_owned(),
            outcome: outcome.to_owned(),
        });
    }

    /// A flow of devices in states passes when every such state allows it, else it is refused.
    fn states(&mut self) -> Option<Decision> {
        let ends = [(self.case.from, true), (self.case.to, false)];
        let contained: Vec<(DeviceState, bool)> = ends
            .into_iter()
            .filter_map(|(party, begins)| Some((party.device()?.state?, begins)))
            .collect();
        let (first, begins) = *contained.first()?;
        let mesh = self.case.from.device().is_some() && self.case.to.device().is_some();
        // Onboarding takes the mesh away, not the underlay.
        if first == DeviceState::Onboarding && !mesh && !self.state_permits(first, begins) {
            return None;
        }
        for state in STATES {
            let refused = contained
                .iter()
                .any(|(s, begins)| *s == state && !self.state_permits(state, *begins));
            if refused {
                let reason = format!("a device in {state} reaches only what its state allows");
                return Some(self.settle(Ruling::Refuse, state.as_str(), tier::STATE, &reason));
            }
        }
        let reason = "the state allows it";
        Some(self.settle(Ruling::Pass, first.as_str(), tier::STATE, reason))
    }

    fn state_permits(&self, state: DeviceState, begins: bool) -> bool {
        let other = if begins { self.case.to } else { self.case.from };
        let allows = self.policy.states.get(&state);
        allows.into_iter().flatten().any(|allow| {
            allow.outbound == begins
                && self.meant(&allow.other, other)
                && self.spoken(&allow.services)
        })
    }

    /// Asks one tier. Deny beats allow in it.
    fn level(&mut self, level: u8) -> Option<Decision> {
        let policy = self.policy;
        let rules: Vec<&Rule> = policy.rules.iter().filter(|r| r.tier == level).collect();
        for rule in rules.iter().filter(|r| r.effect == Effect::Deny) {
            if !self.matches(rule) || !self.in_force(rule) {
                continue;
            }
            let exempt = |index: &usize| {
                policy
                    .rules
                    .get(*index)
                    .filter(|e| self.matches(e) && self.in_force(e))
            };
            if let Some(except) = rule.except.iter().find_map(exempt) {
                let outcome = format!("refuses, but excepts what {} allows", except.id);
                self.step(level, rule.id.as_str(), &outcome);
                continue;
            }
            match self.mode_of(rule) {
                Mode::Enforce => {
                    let reason = "the rule refuses it";
                    return Some(self.settle(Ruling::Refuse, rule.id.as_str(), level, reason));
                }
                Mode::Simulate => {
                    let id = rule.id.as_str().to_owned();
                    self.step(level, &id, "would refuse, and is simulated here");
                    self.simulated.get_or_insert(id);
                }
                Mode::Observe => {
                    self.step(
                        level,
                        rule.id.as_str(),
                        "would refuse, and is observed here",
                    );
                }
            }
        }
        let mut allows = rules.iter().filter(|r| r.effect == Effect::Allow);
        if let Some(rule) = allows.find(|r| self.matches(r) && self.in_force(r)) {
            return Some(self.allowed(rule));
        }
        let shut = |r: &&&Rule| self.matches(r) && !self.in_force(r);
        if let Some(rule) = rules.iter().find(shut) {
            self.step(
                level,
                rule.id.as_str(),
                "speaks of it, but its window is closed",
            );
        } else if self.steps.last().is_none_or(|s| s.tier != level) {
            self.step(level, "", "is silent");
        }
        None
    }

    fn allowed(&mut self, rule: &Rule) -> Decision {
        let enforcing = self.segment_mode() == Mode::Enforce;
        let limit = rule.limit.filter(|_| self.receives && enforcing);
        let mut decision = self.settle(
            Ruling::Pass,
            rule.id.as_str(),
            rule.tier,
            "the rule allows it",
        );
        decision.limit = limit;
        decision.would_deny = self.simulated.take();
        // A rate is enforced even where another rule is only counted.
        if decision.would_deny.is_some() && limit.is_none() {
            decision.verdict = Ruling::WouldRefuse;
        }
        decision
    }

    fn default(&mut self) -> Decision {
        let simulated = self.simulated.take();
        let named = simulated.clone().unwrap_or_else(|| "default".to_owned());
        match self.segment_mode() {
            Mode::Enforce => {
                let reason = "no rule allows it";
                self.settle(Ruling::Refuse, "default", tier::DEFAULT, reason)
            }
            Mode::Simulate => {
                let reason = "no rule allows it, and the segment is simulated";
                let mut decision =
                    self.settle(Ruling::WouldRefuse, "default", tier::DEFAULT, reason);
                decision.would_deny = Some(named);
                decision
            }
            Mode::Observe => {
                let reason = "no rule allows it, and the segment is observed";
                let verdict = match simulated {
                    Some(_) => Ruling::WouldRefuse,
                    None => Ruling::Pass,
                };
                let mut decision = self.settle(verdict, "default", tier::DEFAULT, reason);
                decision.would_deny = simulated;
                decision
            }
        }
    }

    /// How far this end's own segment is in force for this kind of flow.
    fn segment_mode(&self) -> Mode {
        if self.force == Force::Enforced {
            return Mode::Enforce;
        }
        let mut segments = self.policy.segments.iter();
        let segment = segments.find(|s| picks(self.policy, &s.select, self.own));
        let mesh = self.case.from.device().is_some() && self.case.to.device().is_some();
        match (segment, mesh) {
            (Some(segment), true) => segment.mode,
            (Some(segment), false) => segment.underlay,
            (None, true) => Mode::Enforce,
            (None, false) => Mode::Observe,
        }
    }

    fn mode_of(&self, rule: &Rule) -> Mode {
        if rule.is_guardrail() || self.force == Force::Enforced {
            return Mode::Enforce;
        }
        rule.mode.unwrap_or_else(|| self.segment_mode())
    }

    /// Whether the rule speaks of this flow, at whatever time.
    fn matches(&self, rule: &Rule) -> bool {
        let shared = || {
            rule.same.iter().all(|attribute| {
                let ends = self.case.from.device().zip(self.case.to.device());
                ends.is_some_and(|(from, to)| {
                    let value = from.value(attribute);
                    value.is_some() && value == to.value(attribute)
                })
            })
        };
        self.meant(&rule.from, self.case.from)
            && self.meant(&rule.to, self.case.to)
            && self.spoken(&rule.services)
            && shared()
    }

    fn spoken(&self, services: &Services) -> bool {
        match services {
            Services::Any => true,
            Services::Only(all) => all.iter().any(|s| {
                s.protocol == self.case.protocol
                    && s.first <= self.case.port
                    && self.case.port <= s.last
            }),
        }
    }

    fn meant(&self, endpoint: &Endpoint, party: Party<'_>) -> bool {
        match (endpoint, party) {
            (Endpoint::Devices(selector), Party::Device(facts)) => {
                picks(self.policy, selector, facts)
            }
            (Endpoint::Prefixes(prefixes), Party::Address(address)) => {
                prefixes.iter().any(|p| p.contains(address))
            }
            (Endpoint::Internet, Party::Address(address)) => !crate::internet::local_prefixes()
                .iter()
                .any(|p| p.contains(address)),
            (Endpoint::Controller, Party::Controller) => true,
            _ => false,
        }
    }

    /// Whether the rule's window lets it act now.
    fn in_force(&self, rule: &Rule) -> bool {
        let Some(index) = rule.schedule else {
            return true;
        };
        let schedule = self.policy.schedules.get(usize::from(index));
        let open = match self.clock {
            Clock::At(at) => schedule.and_then(|s| shows(s, self.own.zone.as_deref(), at)),
            Clock::Strict => None,
            Clock::Hopeful => return rule.effect == Effect::Allow,
        };
        match (open, rule.effect) {
            (Some(open), _) => open,
            (None, Effect::Allow) => false,
            (None, Effect::Deny) => true,
        }
    }
}

/// Whether a selector means this device.
pub(crate) fn picks(policy: &Policy, selector: &Selector, facts: &Facts) -> bool {
    let has = |a, wanted: &str| facts.value(a).is_some_and(|v| v.as_ref() == wanted);
    let picks = |s: &Selector| picks(policy, s, facts);
    match selector {
        Selector::Any => true,
        Selector::Nothing => false,
        Selector::Has(a) => facts.value(a).is_some(),
        Selector::Is(a, wanted) => has(a, wanted),
        Selector::In(a, wanted) => wanted.iter().any(|w| has(a, w)),
        Selector::Not(inner) => !picks(inner),
        Selector::Or(a, b) => [a, b].iter().any(|s| picks(s)),
        Selector::And(a, b) => [a, b].iter().all(|s| picks(s)),
        Selector::Segment(index) => {
            let segment = policy.segments.get(*index);
            segment.is_some_and(|s| picks(&s.select))
        }
    }
}

/// Whether the clock on the site's wall shows a time inside the window; none when nobody knows.
fn shows(schedule: &Schedule, site_zone: Option<&str>, at: Wall) -> Option<bool> {
    let zone = TimeZone::get(schedule.zone.as_deref().or(site_zone)?).ok()?;
    let instant = Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok()?;
    let shown = instant.to_zoned(zone);
    let listed = |day: Weekday| {
        let bit = day.to_monday_one_offset() - 1;
        schedule.days >> bit & 1 == 1
    };
    let clock = shown.time();
    let since = |minute: u16| of_day(minute).is_some_and(|t| clock >= t);
    let before = |minute: u16| of_day(minute).is_none_or(|t| clock < t);
    let today = listed(shown.weekday());
    if schedule.from_minute < schedule.to_minute {
        return Some(today && since(schedule.from_minute) && before(schedule.to_minute));
    }
    let yesterday = listed(shown.weekday().previous());
    Some(today && since(schedule.from_minute) || yesterday && before(schedule.to_minute))
}

/// The time of day; none for the day's end, which no clock shows.
fn of_day(minute: u16) -> Option<Time> {
    let hour = i8::try_from(minute / 60).ok()?;
    let minute = i8::try_from(minute % 60).ok()?;
    Time::new(hour, minute, 0, 0).ok()
}
