//! From a policy to the program of one class of devices.

use std::collections::{BTreeMap, BTreeSet};

use hedgerow_model::id::RuleId;
use hedgerow_model::packet::Direction;
use hedgerow_model::program::{
    Attribute, Class, ClassValue, DeviceState, Effect, Mode, PROGRAM_BYTES_MAX, PROGRAM_FORMAT,
    PROGRAM_RULES_MAX, Predicate, PredicateOp, Program, ProgramRule, Schedule, Services, Target,
    tier,
};
use hedgerow_model::wire;

use crate::facts::Facts;
use crate::policy::{Endpoint, Mentioned, Policy, Rule, Selector, StateAllow, TestKind};
use crate::resolve::TooLarge;

/// Returns the class of a device: what the policy's selectors can tell of it.
///
/// Two devices of one class have the same program, to the byte.
pub fn class_of(policy: &Policy, facts: &Facts) -> Class {
    let class = policy.mentioned.iter().map(|(attribute, values)| {
        let value = match facts.value(attribute) {
            None => ClassValue::Absent,
            Some(v) if values.contains(v.as_ref()) => ClassValue::Is(v.into_owned()),
            Some(_) => ClassValue::Other(values.iter().cloned().collect()),
        };
        (attribute.clone(), value)
    });
    Class(class.collect())
}

/// Returns every attribute in which a rule compares the two ends. Two devices of one class and site
/// that agree in these are told apart by no rule.
pub fn compared(policy: &Policy) -> BTreeSet<&Attribute> {
    policy.rules.iter().flat_map(|r| &r.same).collect()
}

/// Returns every attribute that selectors ask for, with the values they name.
pub(crate) fn mentioned(policy: &Policy) -> Mentioned {
    let mut mentioned = Mentioned::new();
    let ends = policy.rules.iter().flat_map(|r| [&r.from, &r.to]);
    let states = policy.states.values().flatten().map(|s| &s.other);
    for end in ends.chain(states) {
        if let Endpoint::Devices(selector) = end {
            mentions(selector, &mut mentioned);
        }
    }
    for segment in &policy.segments {
        mentions(&segment.select, &mut mentioned);
    }
    mentioned
}

/// Returns whether a device belongs to `class`: one whose ticket disagrees refuses the program.
pub fn class_matches(class: &Class, facts: &Facts) -> bool {
    class.0.iter().all(|(attribute, expected)| {
        let value = facts.value(attribute);
        match expected {
            ClassValue::Is(v) => value.is_some_and(|f| f == v.as_str()),
            ClassValue::Other(vs) => value.is_some_and(|f| vs.iter().all(|v| f != v.as_str())),
            ClassValue::Absent => value.is_none(),
        }
    })
}

/// Returns every attribute that anything in the policy asks for, tests included.
pub(crate) fn asked(policy: &Policy) -> Mentioned {
    let mut asked = policy.mentioned.clone();
    for test in &policy.tests {
        match &test.kind {
            TestKind::Flow(flow) => {
                for end in [&flow.from, &flow.to] {
                    if let Endpoint::Devices(selector) = end {
                        mentions(selector, &mut asked);
                    }
                }
                for (selector, _) in &flow.states {
                    mentions(selector, &mut asked);
                }
            }
            TestKind::Invariant { from, to, .. } => {
                mentions(from, &mut asked);
                mentions(to, &mut asked);
            }
        }
    }
    asked
}

fn mentions(selector: &Selector, found: &mut Mentioned) {
    match selector {
        Selector::Any | Selector::Nothing | Selector::Segment(_) => {}
        Selector::Is(a, v) => {
            found.entry(a.clone()).or_default().insert(v.clone());
        }
        Selector::In(a, vs) => found
            .entry(a.clone())
            .or_default()
            .extend(vs.iter().cloned()),
        Selector::Has(a) => {
            found.entry(a.clone()).or_default();
        }
        Selector::Not(inner) => mentions(inner, found),
        Selector::And(a, b) | Selector::Or(a, b) => {
            mentions(a, found);
            mentions(b, found);
        }
    }
}

/// Returns the program of the class that `facts` belongs to.
///
/// # Errors
///
/// [`TooLarge`] when a bound of [`hedgerow_model::program`] is broken; nothing is cut short.
pub fn compile(policy: &Policy, facts: &Facts) -> Result<Program, TooLarge> {
    let segment = policy
        .segments
        .iter()
        .find(|s| selects(&s.select, facts, policy));
    let mut compiler = Compiler {
        policy,
        own: facts,
        mode: segment.map_or(Mode::Enforce, |s| s.mode),
        underlay: segment.map_or(Mode::Observe, |s| s.underlay),
        rules: Vec::new(),
        schedules: Vec::new(),
    };
    for (state, allows) in &policy.states {
        compiler.own_state(*state, allows);
        compiler.peer_state(*state, allows);
    }
    compiler.policy_rules();
    let program = Program {
        format: PROGRAM_FORMAT,
        class: class_of(policy, facts),
        mode: compiler.mode,
        underlay: compiler.underlay,
        rules: compiler.rules,
        schedules: compiler.schedules,
        sample_seconds: policy.sample_seconds,
    };
    bound("program rules", program.rules.len(), PROGRAM_RULES_MAX)?;
    bound(
        "program bytes",
        wire::encode(&program).len(),
        PROGRAM_BYTES_MAX,
    )?;
    Ok(program)
}

fn bound(what: &'static str, count: usize, max: usize) -> Result<(), TooLarge> {
    if count > max {
        return Err(TooLarge { what, count, max });
    }
    Ok(())
}

/// Returns how many operations a selector becomes, at most about `max`.
pub(crate) fn operations(selector: &Selector, policy: &Policy, max: usize) -> usize {
    match selector {
        Selector::Any
        | Selector::Nothing
        | Selector::Is(..)
        | Selector::In(..)
        | Selector::Has(_) => 1,
        Selector::Segment(i) => policy
            .segments
            .get(*i)
            .map_or(1, |s| operations(&s.select, policy, max)),
        Selector::Not(inner) => operations(inner, policy, max) + 1,
        Selector::And(a, b) | Selector::Or(a, b) => {
            let left = operations(a, policy, max);
            if left > max {
                left
            } else {
                left + operations(b, policy, max) + 1
            }
        }
    }
}

/// Whether a selector means this device.
fn selects(selector: &Selector, facts: &Facts, policy: &Policy) -> bool {
    match selector {
        Selector::Any => true,
        Selector::Nothing => false,
        Selector::Is(a, v) => facts.value(a).is_some_and(|f| f == v.as_str()),
        Selector::In(a, vs) => facts
            .value(a)
            .is_some_and(|f| vs.iter().any(|v| f == v.as_str())),
        Selector::Has(a) => facts.value(a).is_some(),
        Selector::Segment(i) => policy
            .segments
            .get(*i)
            .is_some_and(|s| selects(&s.select, facts, policy)),
        Selector::Not(inner) => !selects(inner, facts, policy),
        Selector::And(a, b) => selects(a, facts, policy) && selects(b, facts, policy),
        Selector::Or(a, b) => selects(a, facts, policy) || selects(b, facts, policy),
    }
}

struct Compiler<'p> {
    policy: &'p Policy,
    own: &'p Facts,
    mode: Mode,
    underlay: Mode,
    rules: Vec<ProgramRule>,
    schedules: Vec<Schedule>,
}

impl Compiler<'_> {
    fn selects(&self, selector: &Selector) -> bool {
        selects(selector, self.own, self.policy)
    }

    fn ops(&self, selector: &Selector, out: &mut Vec<PredicateOp>) {
        match selector {
            Selector::Any => out.push(PredicateOp::True),
            Selector::Nothing => out.push(PredicateOp::False),
            Selector::Is(a, v) => out.push(PredicateOp::Is(a.clone(), v.clone())),
            Selector::In(a, vs) => out.push(PredicateOp::In(a.clone(), vs.clone())),
            Selector::Has(a) => out.push(PredicateOp::Has(a.clone())),
            Selector::Segment(i) => match self.policy.segments.get(*i) {
                Some(segment) => self.ops(&segment.select, out),
                None => out.push(PredicateOp::False),
            },
            Selector::Not(inner) => {
                self.ops(inner, out);
                out.push(PredicateOp::Not);
            }
            Selector::And(a, b) => {
                self.ops(a, out);
                self.ops(b, out);
                out.push(PredicateOp::And);
            }
            Selector::Or(a, b) => {
                self.ops(a, out);
                self.ops(b, out);
                out.push(PredicateOp::Or);
            }
        }
    }

    fn target(&self, other: &Endpoint, same: &[Attribute]) -> Target {
        match other {
            Endpoint::Devices(selector) => {
                let mut ops = Vec::new();
                self.ops(selector, &mut ops);
                for attribute in same {
                    ops.push(PredicateOp::SameAsOwn(attribute.clone()));
                    ops.push(PredicateOp::And);
                }
                Target::Peers(Predicate(ops))
            }
            Endpoint::Prefixes(prefixes) => Target::Prefixes(prefixes.clone()),
            Endpoint::Internet => Target::Internet,
            Endpoint::Controller => Target::Controller,
        }
    }

    /// Adds a rule and returns its index.
    fn push(&mut self, rule: ProgramRule) -> Option<u16> {
        self.rules.push(rule);
        u16::try_from(self.rules.len() - 1).ok()
    }

    /// What this device may do in `state`, and the refusal of the rest.
    fn own_state(&mut self, state: DeviceState, allows: &[StateAllow]) {
        for direction in [Direction::In, Direction::Out] {
            let mut allowed = Vec::new();
            for allow in allows
                .iter()
                .filter(|a| a.outbound == (direction == Direction::Out))
            {
                let target = self.target(&allow.other, &[]);
                allowed.extend(self.push(ProgramRule {
                    own_state: Some(state),
                    services: allow.services.clone(),
                    ..state_rule(state, direction, Effect::Allow, target)
                }));
            }
            let everyone = Target::Peers(Predicate(vec![PredicateOp::True]));
            let everything = Target::Prefixes(crate::internet::whole().collect());
            // Onboarding is not containment: it leaves the underlay to the segment.
            let everything = Some(everything).filter(|_| state != DeviceState::Onboarding);
            for target in [Some(everyone), everything].into_iter().flatten() {
                self.push(ProgramRule {
                    own_state: Some(state),
                    except: allowed.clone(),
                    ..state_rule(state, direction, Effect::Deny, target)
                });
            }
        }
    }

    /// What peers in `state` may do with this device, and the refusal of the rest.
    fn peer_state(&mut self, state: DeviceState, allows: &[StateAllow]) {
        let peers = || Target::Peers(Predicate(vec![PredicateOp::State(state)]));
        for direction in [Direction::In, Direction::Out] {
            let mut allowed = Vec::new();
            for allow in allows
                .iter()
                .filter(|a| a.outbound == (direction == Direction::In))
            {
                let Endpoint::Devices(selector) = &allow.other else {
                    continue;
                };
                if self.selects(selector) {
                    allowed.extend(self.push(ProgramRule {
                        services: allow.services.clone(),
                        ..state_rule(state, direction, Effect::Allow, peers())
                    }));
                }
            }
            self.push(ProgramRule {
                except: allowed,
                ..state_rule(state, direction, Effect::Deny, peers())
            });
        }
    }

    fn policy_rules(&mut self) {
        let policy = self.policy;
        let mut order: Vec<usize> = (0..policy.rules.len()).collect();
        order.sort_by_key(|i| policy.rules.get(*i).map(|r| (r.tier, *i)));
        // Where each rule of the policy came to stand, by direction.
        let mut places: BTreeMap<(usize, bool), u16> = BTreeMap::new();
        for index in &order {
            let Some(rule) = policy.rules.get(*index) else {
                continue;
            };
            for direction in [Direction::In, Direction::Out] {
                if let Some(place) = self.policy_rule(rule, direction) {
                    places.insert((*index, direction == Direction::In), place);
                }
            }
        }
        for ((index, inbound), place) in &places {
            let except = policy.rules.get(*index).map_or(&[][..], |r| &r.except);
            let except = except
                .iter()
                .filter_map(|e| places.get(&(*e, *inbound)).copied());
            if let Some(rule) = self.rules.get_mut(usize::from(*place)) {
                rule.except = except.collect();
            }
        }
    }

    /// Adds `rule` as it concerns this device in one direction, if it does.
    fn policy_rule(&mut self, rule: &Rule, direction: Direction) -> Option<u16> {
        let (own, other) = match direction {
            Direction::In => (&rule.to, &rule.from),
            Direction::Out => (&rule.from, &rule.to),
        };
        let Endpoint::Devices(selector) = own else {
            return None;
        };
        if !self.selects(selector) {
            return None;
        }
        let segment_mode = match other {
            Endpoint::Devices(_) => self.mode,
            Endpoint::Prefixes(_) | Endpoint::Internet | Endpoint::Controller => self.underlay,
        };
        let mode = match rule.effect {
            Effect::Deny if !rule.is_guardrail() => rule.mode.unwrap_or(segment_mode),
            Effect::Deny | Effect::Allow => Mode::Enforce,
        };
        let target = self.target(other, &rule.same);
        let schedule = rule.schedule.and_then(|s| self.schedule(s));
        self.push(ProgramRule {
            id: rule.id.clone(),
            tier: rule.tier,
            direction,
            effect: rule.effect,
            target,
            services: rule.services.clone(),
            own_state: None,
            schedule,
            limit: rule.limit.filter(|_| direction == Direction::In),
            mode,
            except: Vec::new(),
        })
    }

    /// Returns the program's index of one of the policy's schedules.
    fn schedule(&mut self, index: u16) -> Option<u16> {
        let schedule = self.policy.schedules.get(usize::from(index))?;
        let known = self.schedules.iter().position(|s| s == schedule);
        let place = known.unwrap_or_else(|| {
            self.schedules.push(schedule.clone());
            self.schedules.len() - 1
        });
        u16::try_from(place).ok()
    }
}

/// A rule of a state, without what tells it from the others.
fn state_rule(
    state: DeviceState,
    direction: Direction,
    effect: Effect,
    target: Target,
) -> ProgramRule {
    ProgramRule {
        id: state_id(state),
        tier: tier::STATE,
        direction,
        effect,
        target,
        services: Services::Any,
        own_state: None,
        schedule: None,
        limit: None,
        mode: Mode::Enforce,
        except: Vec::new(),
    }
}

#[expect(
    clippy::expect_used,
    reason = "the three spellings are names, as a test shows"
)]
fn state_id(state: DeviceState) -> RuleId {
    RuleId::new(state.as_str()).expect("a state's spelling is a name")
}

#[cfg(test)]
mod tests;
