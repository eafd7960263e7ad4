//! Checks of meaning, on a policy whose every name is known.

use std::collections::BTreeSet;

use hedgerow_model::program::{Effect, PREDICATE_OPS_MAX, PROGRAM_RULES_MAX, Services};

use crate::compile::operations;
use crate::diagnostic::{Findings, Mark};
use crate::policy::{Endpoint, Policy, Rule, Selector};
use crate::satisfy::{Region, joined, meet, regions};

/// Program rules that three states need at most, besides what they allow.
const STATE_RULES: usize = 18;

/// Adds every finding about `policy`.
pub(crate) fn check(policy: &Policy, findings: &mut Findings) {
    if cycles(policy, findings) {
        return; // Every selector below may run in circles.
    }
    if sizes(policy, findings) {
        return; // Unfolded, a selector may be of any size.
    }
    segments(policy, findings);
    let flows: Vec<Option<Flows>> = policy
        .rules
        .iter()
        .map(|rule| {
            ends(rule, findings);
            flows(policy, rule, findings)
        })
        .collect();
    let rules: Vec<(&Rule, &Flows)> = policy
        .rules
        .iter()
        .zip(&flows)
        .filter_map(|(r, f)| Some((r, f.as_ref()?)))
        .collect();
    for (i, (rule, flows)) in rules.iter().enumerate() {
        if flows.is_empty() {
            let message = "no two devices can match both ends".to_owned();
            let remedy = "mend the selectors, or remove the rule";
            findings.warning(rule.at, &rule.field, message, remedy);
        }
        for (other, other_flows) in rules.iter().take(i) {
            contradiction(policy, (rule, flows), (other, other_flows), findings);
        }
    }
    exceptions(policy, &rules, findings);
}

/// Where a rule's flows can begin and end.
enum Flows {
    /// Pairs of boxes that can be joined.
    Mesh(Vec<(Region, Region)>),
    /// One end is not a device.
    Underlay {
        outbound: bool,
        own: Vec<Region>,
        other: Endpoint,
    },
}

impl Flows {
    fn is_empty(&self) -> bool {
        match self {
            Self::Mesh(pairs) => pairs.is_empty(),
            Self::Underlay { own, .. } => own.is_empty(),
        }
    }

    /// Whether a flow can be among both.
    fn meet(&self, other: &Self, a: &Rule, b: &Rule, policy: &Policy) -> bool {
        match (self, other) {
            (Self::Mesh(x), Self::Mesh(y)) => {
                let mut same = a.same.clone();
                same.extend(b.same.iter().cloned());
                x.iter().any(|(xf, xt)| {
                    y.iter().any(|(yf, yt)| {
                        let from = xf.and(yf, policy);
                        let to = xt.and(yt, policy);
                        from.zip(to)
                            .is_some_and(|(f, t)| joined(&f, &t, &same, policy))
                    })
                })
            }
            (
                Self::Underlay {
                    outbound: x_out,
                    own: x,
                    other: x_other,
                },
                Self::Underlay {
                    outbound: y_out,
                    own: y,
                    other: y_other,
                },
            ) => x_out == y_out && meet(x, y, policy) && overlap(x_other, y_other),
            (Self::Mesh(_), Self::Underlay { .. }) | (Self::Underlay { .. }, Self::Mesh(_)) => {
                false
            }
        }
    }
}

/// Whether an address can be meant by both; in doubt, yes.
fn overlap(a: &Endpoint, b: &Endpoint) -> bool {
    match (a, b) {
        (Endpoint::Prefixes(a), Endpoint::Prefixes(b)) => {
            a.iter().any(|a| b.iter().any(|b| a.overlaps(b)))
        }
        _ => true,
    }
}

fn cycles(policy: &Policy, findings: &mut Findings) -> bool {
    let named: Vec<BTreeSet<usize>> = policy
        .segments
        .iter()
        .map(|s| mentioned(&s.select).into_iter().collect())
        .collect();
    let mut found = false;
    for (start, segment) in policy.segments.iter().enumerate() {
        let mut reached: BTreeSet<usize> = BTreeSet::new();
        let mut next: Vec<usize> = vec![start];
        while let Some(further) = next.pop().and_then(|i| named.get(i)) {
            next.extend(further.iter().filter(|i| reached.insert(**i)));
        }
        if reached.contains(&start) {
            found = true;
            let field = format!("segments.{}.select", segment.id);
            let message = format!("the segment `{}` is defined by itself", segment.id);
            let remedy = "define it by labels, name, site or id";
            findings.error(segment.at, &field, message, remedy);
        }
    }
    found || nested(policy, &named, findings)
}

/// How deep segments may be defined by segments.
const NESTING_MAX: usize = 8;

/// Whether a chain of segments is too long to be unfolded.
fn nested(policy: &Policy, named: &[BTreeSet<usize>], findings: &mut Findings) -> bool {
    let mut levels = vec![0usize; named.len()];
    for _ in 0..=NESTING_MAX {
        let level = |below: &BTreeSet<usize>| {
            let below = below.iter().filter_map(|i| levels.get(*i));
            below.max().map_or(0, |l| l + 1)
        };
        levels = named.iter().map(level).collect();
    }
    let deep = levels.iter().position(|l| *l > NESTING_MAX);
    if let Some(segment) = deep.and_then(|i| policy.segments.get(i)) {
        let field = format!("segments.{}.select", segment.id);
        let message = format!("segments nested deeper than {NESTING_MAX}");
        findings.error(
            segment.at,
            &field,
            message,
            "define it by labels, name, site or id",
        );
    }
    deep.is_some()
}

/// Returns the segments that a selector names.
fn mentioned(selector: &Selector) -> Vec<usize> {
    match selector {
        Selector::Segment(i) => vec![*i],
        Selector::Not(inner) => mentioned(inner),
        Selector::And(a, b) | Selector::Or(a, b) => {
            let mut found = mentioned(a);
            found.extend(mentioned(b));
            found
        }
        Selector::Any
        | Selector::Nothing
        | Selector::Is(..)
        | Selector::In(..)
        | Selector::Has(_) => Vec::new(),
    }
}

/// Whether something is too large to be judged further.
fn sizes(policy: &Policy, findings: &mut Findings) -> bool {
    let before = findings.list.len();
    let allows: usize = policy.states.values().map(Vec::len).sum();
    let needed = policy.rules.len() * 2 + allows * 2 + STATE_RULES;
    if needed > PROGRAM_RULES_MAX {
        let at = policy.rules.last().map_or_else(Mark::default, |r| r.at);
        let message =
            format!("one device may need {needed} program rules, at most {PROGRAM_RULES_MAX}");
        findings.error(
            at,
            "rules",
            message,
            "join rules by `in (…)` and lists of services",
        );
    }
    // Two operations for each shared attribute, and one to spare.
    let mut check = |selector: &Selector, shared: usize, at: Mark, field: String| {
        let max = PREDICATE_OPS_MAX - (shared * 2 + 1).min(PREDICATE_OPS_MAX);
        if operations(selector, policy, max) > max {
            let message = format!("the selector needs more than {PREDICATE_OPS_MAX} operations");
            findings.error(at, &field, message, "use a label instead of long lists");
        }
    };
    for segment in &policy.segments {
        let field = format!("segments.{}.select", segment.id);
        check(&segment.select, 0, segment.at, field);
    }
    for rule in &policy.rules {
        for (key, end) in [("from", &rule.from), ("to", &rule.to)] {
            if let Endpoint::Devices(selector) = end {
                check(
                    selector,
                    rule.same.len(),
                    rule.at,
                    format!("{}.{key}", rule.field),
                );
            }
        }
    }
    for (state, allows) in &policy.states {
        for allow in allows {
            if let Endpoint::Devices(selector) = &allow.other {
                check(selector, 0, allow.at, format!("states.{state}.allow"));
            }
        }
    }
    for test in &policy.tests {
        for selector in test.selectors() {
            check(selector, 0, test.at, "tests".to_owned());
        }
    }
    findings.list.len() > before
}

fn segments(policy: &Policy, findings: &mut Findings) {
    let mut boxes: Vec<Vec<Region>> = Vec::new();
    for segment in &policy.segments {
        let field = format!("segments.{}.select", segment.id);
        match regions(&segment.select, policy) {
            Ok(found) => boxes.push(found),
            Err(_) => {
                intricate(segment.at, &field, findings);
                boxes.push(Vec::new());
            }
        }
    }
    for (i, (a, a_boxes)) in policy.segments.iter().zip(&boxes).enumerate() {
        for (b, b_boxes) in policy.segments.iter().zip(&boxes).take(i) {
            let differ = (a.mode, a.underlay) != (b.mode, b.underlay);
            if differ && meet(a_boxes, b_boxes, policy) {
                let field = format!("segments.{}", a.id);
                let message = format!(
                    "a device can be in `{}` and in `{}`, whose modes differ",
                    b.id, a.id
                );
                let remedy = format!("narrow one, e.g. by `and not segment={}`", b.id);
                findings.error(a.at, &field, message, &remedy);
            }
        }
    }
}

fn intricate(at: Mark, field: &str, findings: &mut Findings) {
    let message = "a selector too intricate to check".to_owned();
    findings.error(
        at,
        field,
        message,
        "use fewer alternatives, or a label of its own",
    );
}

/// Refuses ends that do not go together.
fn ends(rule: &Rule, findings: &mut Findings) {
    let device = |end: &Endpoint| matches!(end, Endpoint::Devices(_));
    let (from, to) = (device(&rule.from), device(&rule.to));
    if !from && !to {
        let message = "neither end is a device of the mesh".to_owned();
        findings.error(rule.at, &rule.field, message, "select devices at one end");
    }
    let mesh = from && to;
    if !mesh && !rule.same.is_empty() {
        let field = format!("{}.same", rule.field);
        let message = "an underlay address shares nothing with a device".to_owned();
        findings.error(rule.at, &field, message, "remove `same`");
    }
    if rule.limit.is_some() && !to {
        let field = format!("{}.limit", rule.field);
        let message = "no device of the mesh receives, so none can enforce the limit".to_owned();
        findings.error(
            rule.at,
            &field,
            message,
            "remove it: limits bind at the receiver",
        );
    }
    if let (Effect::Allow, Endpoint::Devices(selector)) = (rule.effect, &rule.to)
        && negates(selector)
    {
        let field = format!("{}.to", rule.field);
        let message = "an allow rule to whatever is not something grows in silence".to_owned();
        findings.error(
            rule.at,
            &field,
            message,
            "name the destinations that are meant",
        );
    }
}

fn negates(selector: &Selector) -> bool {
    match selector {
        Selector::Not(_) => true,
        Selector::And(a, b) | Selector::Or(a, b) => negates(a) || negates(b),
        Selector::Any
        | Selector::Nothing
        | Selector::Is(..)
        | Selector::In(..)
        | Selector::Has(_)
        | Selector::Segment(_) => false,
    }
}

fn flows(policy: &Policy, rule: &Rule, findings: &mut Findings) -> Option<Flows> {
    let mut boxes = |selector: &Selector, key: &str| {
        let found = regions(selector, policy);
        if found.is_err() {
            intricate(rule.at, &format!("{}.{key}", rule.field), findings);
        }
        found.ok()
    };
    match (&rule.from, &rule.to) {
        (Endpoint::Devices(from), Endpoint::Devices(to)) => {
            let (from, to) = (boxes(from, "from")?, boxes(to, "to")?);
            let pairs = from.iter().flat_map(|f| to.iter().map(move |t| (f, t)));
            let pairs = pairs.filter(|(f, t)| joined(f, t, &rule.same, policy));
            Some(Flows::Mesh(
                pairs.map(|(f, t)| (f.clone(), t.clone())).collect(),
            ))
        }
        (Endpoint::Devices(own), other) => Some(Flows::Underlay {
            outbound: true,
            own: boxes(own, "from")?,
            other: other.clone(),
        }),
        (other, Endpoint::Devices(own)) => Some(Flows::Underlay {
            outbound: false,
            own: boxes(own, "to")?,
            other: other.clone(),
        }),
        _ => None,
    }
}

fn share_services(a: &Services, b: &Services) -> bool {
    let (Services::Only(a), Services::Only(b)) = (a, b) else {
        return true;
    };
    a.iter().any(|a| {
        b.iter()
            .any(|b| a.protocol == b.protocol && a.first <= b.last && b.first <= a.last)
    })
}

/// Two rules of one tier that cannot both be meant.
fn contradiction(
    policy: &Policy,
    (rule, flows): (&Rule, &Flows),
    (other, other_flows): (&Rule, &Flows),
    findings: &mut Findings,
) {
    if rule.tier != other.tier || !share_services(&rule.services, &other.services) {
        return;
    }
    match (rule.effect, other.effect) {
        (Effect::Allow, Effect::Allow) => {
            if rule.limit != other.limit && flows.meet(other_flows, rule, other, policy) {
                let message = format!(
                    "contradicts `{}`: both allow a flow in one tier, with different limits",
                    other.id
                );
                let remedy = "make their ends or services distinct, or their limits equal";
                findings.error(rule.at, &rule.field, message, remedy);
            }
        }
        (Effect::Deny, Effect::Deny) => {}
        (Effect::Allow, Effect::Deny) => covered(rule, other, rule, findings),
        (Effect::Deny, Effect::Allow) => covered(other, rule, rule, findings),
    }
}

/// A deny rule that takes everything its twin allows.
fn covered(allow: &Rule, deny: &Rule, later: &Rule, findings: &mut Findings) {
    let wider = |deny: &Endpoint, allow: &Endpoint| {
        deny == allow
            || matches!(
                (deny, allow),
                (Endpoint::Devices(Selector::Any), Endpoint::Devices(_))
            )
    };
    let services = match (&deny.services, &allow.services) {
        (Services::Any, _) => true,
        (Services::Only(_), Services::Any) => false,
        (Services::Only(deny), Services::Only(allow)) => allow.iter().all(|a| {
            deny.iter()
                .any(|d| d.protocol == a.protocol && d.first <= a.first && a.last <= d.last)
        }),
    };
    let excepted = !deny.except.is_empty();
    let always = deny.schedule.is_none() || deny.schedule == allow.schedule;
    let same = deny.same.iter().all(|k| allow.same.contains(k));
    let enforced = deny.mode.is_none();
    let ends = wider(&deny.from, &allow.from) && wider(&deny.to, &allow.to);
    if ends && services && always && same && enforced && !excepted {
        let message = format!(
            "`{}` allows nothing: `{}` of the same tier refuses all of it",
            allow.id, deny.id
        );
        findings.error(later.at, &later.field, message, "remove one of the two");
    }
}

fn exceptions(policy: &Policy, rules: &[(&Rule, &Flows)], findings: &mut Findings) {
    let find = |rule: &Rule| rules.iter().find(|(r, _)| r.id == rule.id);
    for (rule, flows) in rules {
        for other in rule.except.iter().filter_map(|i| policy.rules.get(*i)) {
            let Some((other, other_flows)) = find(other) else {
                continue;
            };
            let touch = share_services(&rule.services, &other.services)
                && flows.meet(other_flows, rule, other, policy);
            if !touch {
                let field = format!("{}.except", rule.field);
                let message = format!("the exception `{}` speaks of other flows", other.id);
                findings.warning(rule.at, &field, message, "remove it, or mend its selectors");
            }
        }
    }
}
