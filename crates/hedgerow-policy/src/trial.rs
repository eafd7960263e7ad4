//! Tests and invariants of a policy file, tried on the devices there are and on stand-ins.

use std::collections::{BTreeMap, BTreeSet};

use hedgerow_model::id::{DeviceId, DeviceName, Labels, SiteName};
use hedgerow_model::program::{Attribute, DeviceState, Services, tier};
use hedgerow_model::service::Ports;

use crate::compile::class_of;
use crate::evaluate::{Case, Clock, Force, Outcome, Party, judge, picks};
use crate::facts::{Facts, World};
use crate::policy::{By, Endpoint, Expect, FlowTest, Policy, Selector, Test, TestKind};
use crate::reach::{pieces, suppose};
use crate::satisfy::{Bound, Region, UNDECLARED, regions};

/// What came of one test or invariant.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TestResult {
    /// What is expected, in the words of the file.
    pub title: String,
    /// Where it stands in the file.
    pub line: u32,
    /// Whether it holds.
    pub passed: bool,
    /// The first case that does not hold; empty when all do.
    pub detail: String,
}

/// Most stand-ins for one selector.
const STAND_INS_MAX: usize = 64;

/// Runs every test and invariant of the policy, as if every segment were enforced.
///
/// A selector means the devices of `world` that match; where there is none, a stand-in made from the
/// selector takes their place, so that a policy can be tested before its devices exist. Devices that
/// policy cannot tell apart are tried once. The states devices are in do not count, only those that
/// a test supposes.
pub fn test(policy: &Policy, world: &World) -> Vec<TestResult> {
    let world = world.thinned(&[policy]);
    let tests = policy.tests.iter();
    tests.map(|t| run(policy, &world, t)).collect()
}

fn run(policy: &Policy, world: &World, test: &Test) -> TestResult {
    let detail = match &test.kind {
        TestKind::Flow(flow) => flow_test(policy, world, flow),
        TestKind::Invariant { from, to, services } => invariant(policy, world, from, to, services),
    };
    TestResult {
        title: test.title.clone(),
        line: test.at.line,
        passed: detail.is_none(),
        detail: detail.unwrap_or_default(),
    }
}

/// One end that a test speaks of.
enum Subject {
    Device(Facts),
    Address(std::net::IpAddr),
    Controller,
}

impl Subject {
    fn party(&self) -> Party<'_> {
        match self {
            Self::Device(facts) => Party::Device(facts),
            Self::Address(address) => Party::Address(*address),
            Self::Controller => Party::Controller,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Device(facts) => format!("{}.{}", facts.name, facts.site),
            Self::Address(address) => address.to_string(),
            Self::Controller => "controller".to_owned(),
        }
    }
}

/// Returns the first case that is not as expected. Where the devices there are make no pair, for
/// instance while one end is not enrolled at the other's site, stand-ins take both places.
fn flow_test(policy: &Policy, world: &World, test: &FlowTest) -> Option<String> {
    for world in [world, &World::default()] {
        if let Some(wrong) = flow_cases(policy, world, test) {
            return wrong;
        }
    }
    Some("no pair of devices to try it on".to_owned())
}

/// Returns what is wrong with the first bad case, `Some(None)` when all are good, and `None` when
/// there is no case.
fn flow_cases(policy: &Policy, world: &World, test: &FlowTest) -> Option<Option<String>> {
    let state = |facts: &Facts| {
        let given = test.states.iter().rev();
        let mut given = given.filter(|(s, _)| picks(policy, s, facts));
        given.next().map(|(_, state)| *state)
    };
    let zone = test.zone.as_deref();
    let froms = subjects(policy, world, &test.from, &state, zone);
    let tos = subjects(policy, world, &test.to, &state, zone);
    let services = services(policy, &test.services);
    let mut tried = false;
    for (from, to) in pairs(policy, world, (&froms, &tos), &test.same) {
        for service in &services {
            tried = true;
            let case = Case {
                from: from.party(),
                to: to.party(),
                protocol: service.protocol,
                port: service.first,
            };
            if let Some(wrong) = unexpected(policy, &case, test) {
                let (from, to) = (from.name(), to.name());
                return Some(Some(format!("{from} → {to} on {service}: {wrong}")));
            }
        }
    }
    tried.then_some(None)
}

/// Says what is wrong with one case. Without a time, an expectation holds at every time.
fn unexpected(policy: &Policy, case: &Case<'_>, test: &FlowTest) -> Option<String> {
    let allow = test.expect == Expect::Allow;
    let timeless = if allow { Clock::Strict } else { Clock::Hopeful };
    let clock = test.at.map_or(timeless, Clock::At);
    let outcome = judge(policy, case, clock, Force::Enforced);
    let controller = matches!(case.to, Party::Controller);
    let wanted = allow || (test.expect == Expect::OnlyController && controller);
    let decided = || {
        let decision = outcome.deciding();
        decision.map_or_else(String::new, |d| format!("{} ({})", d.rule, d.reason))
    };
    if outcome.passes() != wanted {
        let fate = if wanted { "refused" } else { "passes" };
        return Some(format!("{fate} by {}", decided()));
    }
    let by = test
        .by
        .as_ref()
        .filter(|by| !decided_by(policy, case, by, &outcome));
    by.map(|_| format!("as expected, but decided by {}", decided()))
}

fn decided_by(policy: &Policy, case: &Case<'_>, by: &By, outcome: &Outcome) -> bool {
    let Some(decision) = outcome.deciding() else {
        return false;
    };
    match by {
        By::State => decision.tier == tier::STATE,
        By::Guardrail => decision.tier == tier::GUARDRAIL,
        By::Default => decision.tier == tier::DEFAULT,
        By::Rule(id) => decision.rule == id.as_str(),
        By::Schedule => {
            let other = if outcome.passes() {
                Clock::Strict
            } else {
                Clock::Hopeful
            };
            judge(policy, case, other, Force::Enforced).passes() != outcome.passes()
        }
    }
}

/// Tries every class that can be meant, at every time: with the devices there are, and with one
/// stand-in for each way the selectors can be met.
fn invariant(
    policy: &Policy,
    world: &World,
    from: &Selector,
    to: &Selector,
    services_named: &Services,
) -> Option<String> {
    let every = |selector: &Selector| {
        let mut found = matching(policy, world, selector, &|_| None);
        found.extend(stand_ins(policy, selector, &|_| None, None));
        found.into_iter().map(Subject::Device).collect::<Vec<_>>()
    };
    let (froms, tos) = (every(from), every(to));
    let services = services(policy, services_named);
    for (from, to) in pairs(policy, world, (&froms, &tos), &[]) {
        for service in &services {
            let case = Case {
                from: from.party(),
                to: to.party(),
                protocol: service.protocol,
                port: service.first,
            };
            let outcome = judge(policy, &case, Clock::Hopeful, Force::Enforced);
            if outcome.passes() {
                let rule = outcome.deciding().map_or("", |d| d.rule.as_str());
                let (from, to) = (from.name(), to.name());
                return Some(format!("{from} → {to} on {service}: {rule} allows it"));
            }
        }
    }
    None
}

fn services(policy: &Policy, services: &Services) -> Vec<Ports> {
    let all = pieces(&[policy]);
    match services {
        Services::Any => all,
        Services::Only(named) => named
            .iter()
            .flat_map(|n| {
                let inside = all.iter().filter(move |p| n.contains(p.protocol, p.first));
                inside.copied().chain([*n])
            })
            .collect(),
    }
}

fn subjects(
    policy: &Policy,
    world: &World,
    endpoint: &Endpoint,
    state: &dyn Fn(&Facts) -> Option<DeviceState>,
    zone: Option<&str>,
) -> Vec<Subject> {
    match endpoint {
        Endpoint::Controller => vec![Subject::Controller],
        Endpoint::Internet => ["8.8.8.8", "2000::8"]
            .iter()
            .filter_map(|a| a.parse().ok())
            .map(Subject::Address)
            .collect(),
        Endpoint::Prefixes(prefixes) => prefixes
            .iter()
            .map(|p| Subject::Address(p.address()))
            .collect(),
        Endpoint::Devices(selector) => {
            let mut found = matching(policy, world, selector, state);
            if found.is_empty() {
                found = stand_ins(policy, selector, state, zone);
            }
            let devices = found.into_iter().map(Subject::Device);
            let controller = (*selector == Selector::Any).then_some(Subject::Controller);
            devices.chain(controller).collect()
        }
    }
}

fn matching(
    policy: &Policy,
    world: &World,
    selector: &Selector,
    state: &dyn Fn(&Facts) -> Option<DeviceState>,
) -> Vec<Facts> {
    let hits = world.devices().filter(|f| picks(policy, selector, f));
    hits.map(|f| f.clone().in_state(state(f))).collect()
}

/// Makes one device for each way that `selector` can be met, in a site of this zone.
fn stand_ins(
    policy: &Policy,
    selector: &Selector,
    state: &dyn Fn(&Facts) -> Option<DeviceState>,
    zone: Option<&str>,
) -> Vec<Facts> {
    let mut found = Vec::new();
    for region in regions(selector, policy).unwrap_or_default() {
        for site in STAND_IN_SITES {
            for (name, labels) in alternatives(&region) {
                let number = u8::try_from(found.len()).unwrap_or(u8::MAX);
                let facts = stand_in(number, site, &name, &labels, zone);
                let facts = facts.filter(|f| picks(policy, selector, f));
                found.extend(facts.map(|f| {
                    let state = state(&f);
                    f.in_state(state)
                }));
                if found.len() >= STAND_INS_MAX {
                    return found;
                }
            }
        }
    }
    found
}

const STAND_IN_SITES: [&str; 2] = ["stand-in-1", "stand-in-2"];

/// The values that a region leaves to choose from, each spelt out for one attribute at a time.
fn alternatives(region: &Region) -> Vec<(Option<String>, BTreeMap<Attribute, String>)> {
    let mut found: Vec<BTreeMap<Attribute, String>> = vec![BTreeMap::new()];
    for (attribute, bound) in &region.0 {
        let Bound::Among(values) = bound else {
            continue;
        };
        let mut next = Vec::new();
        for chosen in &found {
            for value in values {
                let mut chosen = chosen.clone();
                match value.as_deref() {
                    Some(UNDECLARED) => chosen.insert(attribute.clone(), "undeclared".to_owned()),
                    Some(value) => chosen.insert(attribute.clone(), value.to_owned()),
                    None => None,
                };
                next.push(chosen);
            }
        }
        next.truncate(STAND_INS_MAX);
        found = next;
    }
    let named = |m: BTreeMap<Attribute, String>| (m.get(&Attribute::Name).cloned(), m);
    found.into_iter().map(named).collect()
}

fn stand_in(
    number: u8,
    site: &str,
    name: &Option<String>,
    values: &BTreeMap<Attribute, String>,
    zone: Option<&str>,
) -> Option<Facts> {
    let mut facts = Facts {
        id: DeviceId([number; 16]),
        name: DeviceName::new(name.as_deref().unwrap_or("stand-in")).ok()?,
        site: SiteName::new(site).ok()?,
        labels: Labels::default(),
        state: None,
        zone: Some(zone.unwrap_or("UTC").to_owned()),
    };
    for (attribute, value) in values {
        suppose(&mut facts, attribute, value)?;
    }
    Some(facts)
}

/// Pairs up the ends. Devices of one class and state, which share the same things with the other
/// end, meet the same fate: one of them is tried.
fn pairs<'s>(
    policy: &Policy,
    world: &World,
    (froms, tos): (&'s [Subject], &'s [Subject]),
    same: &[Attribute],
) -> Vec<(&'s Subject, &'s Subject)> {
    let compared = policy.rules.iter().flat_map(|r| &r.same).chain(same);
    let compared: BTreeSet<&Attribute> = compared.chain([&Attribute::Site]).collect();
    let key = |facts: &Facts| (class_of(policy, facts), facts.state, facts.zone.clone());
    let mut seen_from = BTreeSet::new();
    let mut found = Vec::new();
    let to_keys: Vec<_> = tos.iter().map(|t| t.party().device().map(key)).collect();
    for from in froms {
        let from_facts = from.party().device();
        let mut first = true;
        if let Some(facts) = from_facts {
            // Two of a kind: what one shares with nobody, the other may share.
            first = seen_from.insert((key(facts), 0)) || seen_from.insert((key(facts), 1));
        }
        if !first {
            continue;
        }
        let mut seen_to = BTreeSet::new();
        for (to, to_key) in tos.iter().zip(&to_keys) {
            let both = from_facts.zip(to.party().device());
            if both.is_some_and(|(f, t)| f.id == t.id && world.get(f.id).is_some()) {
                continue;
            }
            let shares = |a: &Attribute| {
                both.is_some_and(|(f, t)| f.value(a).is_some() && f.value(a) == t.value(a))
            };
            if !same.iter().all(shares) {
                continue;
            }
            let vector: Vec<bool> = compared.iter().map(|a| shares(a)).collect();
            if to_key.is_none() || seen_to.insert((to_key, vector)) {
                found.push((from, to));
            }
        }
    }
    found
}
