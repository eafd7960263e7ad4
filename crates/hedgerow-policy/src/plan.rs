//! What a change of policy would do, before it is made.

use std::collections::BTreeSet;
use std::fmt;

use hedgerow_model::packet::Direction;
use hedgerow_model::program::{Effect, Mode, Program, Services, Target};
use hedgerow_model::service::Protocol;

use crate::compile::{class_of, compile};
use crate::facts::{Facts, Kind, World};
use crate::policy::Policy;
use crate::reach::{Reach, ReachChange, changes};
use crate::trial::{TestResult, test};

/// Everything that a change would do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// Rules that appear, by id.
    pub rules_added: Vec<String>,
    /// Rules that disappear, by id.
    pub rules_removed: Vec<String>,
    /// Rules whose meaning or place changes, by id.
    pub rules_changed: Vec<String>,
    /// Classes that reach more.
    pub gained: Vec<ReachChange>,
    /// Classes that reach less.
    pub lost: Vec<ReachChange>,
    /// Devices whose program changes.
    pub devices_affected: usize,
    /// Programs that the fleet will hold.
    pub programs: usize,
    /// Most rules in one of them.
    pub rules_max: usize,
    /// What came of the tests and invariants.
    pub tests: Vec<TestResult>,
    /// Programs that cannot be made, and why.
    pub too_large: Vec<String>,
    /// What an operator should know before, though the change may be made.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Returns whether the change must not be made: a test fails, or a program is too large.
    pub fn is_refused(&self) -> bool {
        !self.too_large.is_empty() || self.tests.iter().any(|t| !t.passed)
    }
}

/// Plans the change from `old`, or from no policy, to `new` for the devices of `world`.
pub fn plan(old: Option<&Policy>, new: &Policy, world: &World) -> Plan {
    let policies: Vec<&Policy> = old.into_iter().chain([new]).collect();
    // The cost goes with kinds of devices, not with devices.
    let thinned = world.thinned(&policies);
    let (gained, lost) = changes(old, new, &thinned)
        .into_iter()
        .partition(|c| c.after > c.before);
    let ids = |p: &Policy| {
        p.rule_ids()
            .map(ToString::to_string)
            .collect::<BTreeSet<_>>()
    };
    let before = old.map(ids).unwrap_or_default();
    let after = ids(new);
    let mut plan = Plan {
        rules_added: after.difference(&before).cloned().collect(),
        rules_removed: before.difference(&after).cloned().collect(),
        rules_changed: old.map_or_else(Vec::new, |old| changed(old, new)),
        gained,
        lost,
        devices_affected: 0,
        programs: 0,
        rules_max: 0,
        tests: test(new, &thinned),
        too_large: Vec::new(),
        warnings: Vec::new(),
    };
    programs(old, new, &world.kinds(&policies), &mut plan);
    plan
}

fn changed(old: &Policy, new: &Policy) -> Vec<String> {
    let pairs = new.rules.iter().filter_map(|rule| {
        let before = old.rules.iter().find(|r| r.id == rule.id)?;
        let says = |p: &Policy, r: &crate::policy::Rule| {
            let except: Vec<_> = r.except.iter().filter_map(|e| p.rules.get(*e)).collect();
            let except: Vec<_> = except.iter().map(|e| e.id.clone()).collect();
            let schedule = r
                .schedule
                .and_then(|s| p.schedules.get(usize::from(s)).cloned());
            let ends = format!("{:?}{:?}", r.from, r.to);
            (
                r.tier,
                r.effect,
                ends,
                r.same.clone(),
                r.services.clone(),
                r.limit,
                schedule,
                r.mode,
                except,
            )
        };
        (says(old, before) != says(new, rule)).then(|| rule.id.to_string())
    });
    pairs.collect()
}

fn programs(old: Option<&Policy>, new: &Policy, kinds: &[Kind<'_>], plan: &mut Plan) {
    let mut classes = std::collections::BTreeMap::<_, (&Facts, usize)>::new();
    for kind in kinds {
        let facts = kind.first;
        let key = (old.map(|p| class_of(p, facts)), class_of(new, facts));
        classes.entry(key).or_insert((facts, 0)).1 += kind.count;
    }
    let made: BTreeSet<_> = classes.keys().map(|(_, class)| class).collect();
    plan.programs = made.len();
    let mut underlay = Underlay::default();
    for ((_, class), (facts, count)) in &classes {
        let before = old.and_then(|p| compile(p, facts).ok());
        match compile(new, facts) {
            Ok(after) => {
                plan.rules_max = plan.rules_max.max(after.rules.len());
                underlay.note(before.as_ref(), &after, *count);
                if before.as_ref() != Some(&after) {
                    plan.devices_affected += count;
                }
            }
            Err(e) => {
                let name = crate::reach::class_name(class);
                plan.too_large.push(format!("{name}: {e}"));
            }
        }
    }
    plan.warnings = underlay.warnings();
}

/// Devices whose underlay becomes enforced by the change, and what they lose that nobody writes
/// down: names and time, which the lifeline keeps for the agent alone.
#[derive(Debug, Default)]
struct Underlay {
    enforced: usize,
    nameless: usize,
    timeless: usize,
}

impl Underlay {
    fn note(&mut self, before: Option<&Program>, after: &Program, devices: usize) {
        let was = before.is_some_and(|p| p.underlay == Mode::Enforce);
        if was || after.underlay != Mode::Enforce {
            return;
        }
        self.enforced += devices;
        self.nameless += if asks(after, 53) { 0 } else { devices };
        self.timeless += if asks(after, 123) { 0 } else { devices };
    }

    fn warnings(&self) -> Vec<String> {
        let count = |n: usize| format!("{n} device{}", if n == 1 { "" } else { "s" });
        let mut out = Vec::new();
        if self.enforced > 0 {
            out.push(format!(
                "the underlay becomes enforced on {}: what no rule names ends, operators' sessions \
                 from outside the management prefixes included; each is on trial until the \
                 controller is heard",
                count(self.enforced)
            ));
        }
        for (devices, what, service) in [
            (self.nameless, "name", "dns"),
            (self.timeless, "time", "ntp"),
        ] {
            if devices > 0 {
                out.push(format!(
                    "no rule lets programs of {} ask a {what} server ({service}); the lifeline does \
                     so for the agent alone",
                    count(devices)
                ));
            }
        }
        out
    }
}

/// Whether a rule lets the device ask this UDP port of some underlay address.
fn asks(program: &Program, port: u16) -> bool {
    program.rules.iter().any(|rule| {
        let spoken = match &rule.services {
            Services::Any => true,
            Services::Only(list) => list.iter().any(|p| p.contains(Protocol::Udp, port)),
        };
        spoken
            && rule.effect == Effect::Allow
            && rule.direction == Direction::Out
            && matches!(rule.target, Target::Prefixes(_) | Target::Internet)
    })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        writeln!(
            f,
            "{} affected, {}, {} added, {} removed, {} changed",
            count(self.devices_affected, "device"),
            count(self.programs, "program"),
            count(self.rules_added.len(), "rule"),
            self.rules_removed.len(),
            self.rules_changed.len(),
        )?;
        for (sign, rows) in [("+", &self.gained), ("-", &self.lost)] {
            for row in rows {
                let when = |r: Reach| match r {
                    Reach::Never => "never",
                    Reach::Sometimes => "in windows",
                    Reach::Always => "always",
                };
                let relation = match row.relation.as_str() {
                    "" => String::new(),
                    text => format!(" ({text})"),
                };
                writeln!(
                    f,
                    "{sign} {} → {}{relation} on {}: {}, was {}",
                    row.from,
                    row.to,
                    row.service,
                    when(row.after),
                    when(row.before),
                )?;
            }
        }
        for test in &self.tests {
            if test.passed {
                writeln!(f, "ok   {}", test.title)?;
            } else {
                writeln!(
                    f,
                    "FAIL {} (line {}): {}",
                    test.title, test.line, test.detail
                )?;
            }
        }
        for line in &self.too_large {
            writeln!(f, "FAIL {line}")?;
        }
        for line in &self.warnings {
            writeln!(f, "warning: {line}")?;
        }
        Ok(())
    }
}
