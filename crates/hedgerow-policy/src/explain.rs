//! Why a flow passes or not: every tier asked at both ends, for people and for tools.

use std::fmt;

use hedgerow_model::Wall;
use hedgerow_model::program::tier;

use crate::evaluate::{Decision, End, Flow, Outcome, Ruling, Step, evaluate};
use crate::facts::World;
use crate::policy::Policy;

/// A flow's fate and how it came about.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Explanation {
    /// The initiator, by name, address or `controller`.
    pub from: String,
    /// The other end.
    pub to: String,
    /// What is spoken, e.g. `tcp/502`.
    pub service: String,
    /// Whether the flow comes about.
    pub passes: bool,
    /// The rule that settles it; empty where no end has a say.
    pub rule: String,
    /// Why, in a sentence.
    pub reason: String,
    /// What each end that is a device does, the initiator's first.
    pub ends: Vec<EndTrace>,
}

/// How one end decides.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct EndTrace {
    /// The device.
    pub device: String,
    /// `sends` or `receives`.
    pub role: &'static str,
    /// What it does.
    pub verdict: Ruling,
    /// The rule that decides.
    pub rule: String,
    /// The tier that decides.
    pub tier: u8,
    /// Why.
    pub reason: String,
    /// The rate it enforces, in bytes per second.
    pub limit_bytes_per_second: Option<u64>,
    /// The rule that would refuse if it were enforced.
    pub would_deny: Option<String>,
    /// Every tier that was asked, in order.
    pub steps: Vec<Step>,
}

/// Returns how people call a tier.
pub fn tier_name(number: u8) -> &'static str {
    match number {
        tier::LIFELINE => "lifeline",
        tier::STATE => "state",
        tier::GUARDRAIL => "guardrail",
        tier::ORG => "org",
        tier::SITE => "site",
        tier::DEFAULT => "default",
        _ => "unknown",
    }
}

/// Explains `flow` at `at`; `trusted` says whether that time is believed.
pub fn explain(
    policy: &Policy,
    world: &World,
    flow: &Flow,
    at: Wall,
    trusted: bool,
) -> Explanation {
    let outcome = evaluate(policy, world, flow, at, trusted);
    let name = |end| match end {
        End::Device(id) => world
            .get(id)
            .map_or_else(|| id.to_string(), |f| format!("{}.{}", f.name, f.site)),
        End::Address(address) => address.to_string(),
        End::Controller => "controller".to_owned(),
    };
    let service = crate::reach::spelt(&[hedgerow_model::service::Ports {
        protocol: flow.protocol,
        first: flow.port,
        last: flow.port,
    }]);
    let mut explanation = told(name(flow.from), name(flow.to), service, &outcome);
    if let Some((passes, reason)) = undecided(world, flow) {
        explanation.passes = passes;
        explanation.rule = String::new();
        explanation.reason = reason;
        explanation.ends = Vec::new();
    }
    explanation
}

/// Says why no end has a say, if none has.
fn undecided(world: &World, flow: &Flow) -> Option<(bool, String)> {
    let mut stranger = None;
    for end in [flow.from, flow.to] {
        if let End::Device(id) = end {
            stranger = stranger.or_else(|| world.get(id).is_none().then_some(id));
        }
    }
    match (stranger, flow.from, flow.to) {
        (Some(id), _, _) => Some((false, format!("no device {id} is known"))),
        (None, End::Device(from), End::Device(to)) if from == to => {
            let reason = "a device's own programs reach each other without policy";
            Some((true, reason.to_owned()))
        }
        (None, End::Device(_), _) | (None, _, End::Device(_)) => None,
        (None, _, _) => Some((false, "neither end is a device of the mesh".to_owned())),
    }
}

fn told(from: String, to: String, service: String, outcome: &Outcome) -> Explanation {
    let trace = |device: &str, role, decision: &Decision| EndTrace {
        device: device.to_owned(),
        role,
        verdict: decision.verdict,
        rule: decision.rule.clone(),
        tier: decision.tier,
        reason: decision.reason.clone(),
        limit_bytes_per_second: decision.limit.map(|l| l.bytes_per_second),
        would_deny: decision.would_deny.clone(),
        steps: decision.steps.clone(),
    };
    let source = outcome.source.iter().map(|d| trace(&from, "sends", d));
    let destination = outcome
        .destination
        .iter()
        .map(|d| trace(&to, "receives", d));
    let ends = source.chain(destination).collect();
    let deciding = outcome.deciding();
    Explanation {
        passes: outcome.passes(),
        rule: deciding.map_or_else(String::new, |d| d.rule.clone()),
        reason: deciding.map_or_else(String::new, |d| d.reason.clone()),
        from,
        to,
        service,
        ends,
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = if self.passes { "passes" } else { "is refused" };
        write!(
            f,
            "{} → {} on {} {fate}: ",
            self.from, self.to, self.service
        )?;
        if !self.rule.is_empty() {
            write!(f, "{}, ", self.rule)?;
        }
        writeln!(f, "{}", self.reason)?;
        for end in &self.ends {
            let verdict = match end.verdict {
                Ruling::Pass => "lets it pass",
                Ruling::WouldRefuse => "lets it pass, and counts that it would refuse",
                Ruling::Refuse => "refuses it",
            };
            writeln!(f, "  {} {}: {verdict}", end.device, end.role)?;
            for step in &end.steps {
                let rule = if step.rule.is_empty() {
                    "–"
                } else {
                    &step.rule
                };
                let tier = tier_name(step.tier);
                writeln!(f, "    {:>2} {tier:<9} {rule}: {}", step.tier, step.outcome)?;
            }
            if let Some(rate) = end.limit_bytes_per_second {
                writeln!(f, "    at most {} kbit/s from this source", rate * 8 / 1000)?;
            }
            if let Some(rule) = &end.would_deny {
                writeln!(f, "    enforced, {rule} would refuse it")?;
            }
        }
        Ok(())
    }
}
