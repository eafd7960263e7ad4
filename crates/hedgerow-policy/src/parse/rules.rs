//! Guardrails, rules and states.

use hedgerow_model::id::{LabelKey, RuleId};
use hedgerow_model::program::{Attribute, DeviceState, Effect, Limit, Mode, Services, tier};

use super::basics::{MODES, services_of};
use super::fields::{Fields, bounded, id, join, list, map, place, text, texts, word};
use super::selector::{Names, endpoint, listed};
use super::yaml::{Content, Node};
use crate::diagnostic::{Findings, Mark};
use crate::policy::{Endpoint, Policy, Rule, Selector, StateAllow};

/// What the full language will know on rules.
const LATER: [(&str, &str); 4] = [
    ("l7", "verbs of a protocol (l7)"),
    ("l7_fail", "verbs of a protocol (l7)"),
    ("require", "conditions on people and posture"),
    ("for", "time-limited access"),
];
/// Most guardrails and rules in one policy: each becomes up to two rules of a program.
pub(crate) const RULES_MAX: usize = 2000;
/// Most things that one state allows.
const STATE_ALLOWS_MAX: usize = 32;
/// Least and greatest rate, in bytes per second.
const RATE_BYTES: std::ops::RangeInclusive<u64> = 1000..=12_500_000_000;
/// Least depth of a bucket: segmentation offload hands over that much at once.
const BURST_BYTES_MIN: u64 = 64 << 10;

/// Reads both lists; `except` may name any rule of either.
pub(crate) fn rules(
    guardrails: Option<&Node>,
    rules: Option<&Node>,
    policy: &mut Policy,
    segments: &[RuleId],
    findings: &mut Findings,
) {
    let mut excepts: Vec<Vec<(String, Mark, String)>> = Vec::new();
    let mut found: Vec<Rule> = Vec::new();
    let mut written: Vec<String> = Vec::new();
    for (section, node, guard) in [("guardrails", guardrails, true), ("rules", rules, false)] {
        let Some(node) = node else { continue };
        let items = list(node, section, findings).unwrap_or_default();
        let items = bounded(items, RULES_MAX, node.at, section, findings);
        for (i, node) in items.iter().enumerate() {
            let reader = RuleReader {
                policy,
                segments,
                path: format!("{section}[{i}]"),
            };
            let mut except = Vec::new();
            written.extend(written_id(node));
            let rule = if guard {
                reader.guardrail(node, &mut except, findings)
            } else {
                reader.rule(node, findings)
            };
            if let Some(rule) = rule {
                found.push(rule);
                excepts.push(except);
            }
        }
    }
    if found.len() > RULES_MAX {
        let at = found.get(RULES_MAX).map_or(Mark::default(), |r| r.at);
        let message = format!("{} guardrails and rules, at most {RULES_MAX}", found.len());
        findings.error(
            at,
            "rules",
            message,
            "join rules by `in (…)` and lists of services",
        );
    }
    distinct(&found, findings);
    let resolved: Vec<Vec<usize>> = excepts
        .iter()
        .map(|names| resolve(names, &found, &written, findings))
        .collect();
    for (rule, except) in found.iter_mut().zip(resolved) {
        rule.except = except;
    }
    policy.rules = found;
}

fn written_id(node: &Node) -> Option<String> {
    let Content::Map(entries) = &node.content else {
        return None;
    };
    let (_, id) = entries.iter().find(|(key, _)| key.text == "id")?;
    match &id.content {
        Content::Scalar { text, .. } => Some(text.clone()),
        Content::List(_) | Content::Map(_) | Content::Refused => None,
    }
}

fn distinct(rules: &[Rule], findings: &mut Findings) {
    let mut seen = std::collections::BTreeMap::new();
    for rule in rules {
        if let Some(first) = seen.insert(&rule.id, rule.at) {
            let Mark { line, column } = first;
            let message = format!(
                "the id `{}` stands twice, first at {line}:{column}",
                rule.id
            );
            findings.error(
                rule.at,
                &join(&rule.field, "id"),
                message,
                "choose another id",
            );
        }
    }
}

/// `written` are the ids of all rules, those refused among them: those need no second finding.
fn resolve(
    names: &[(String, Mark, String)],
    rules: &[Rule],
    written: &[String],
    findings: &mut Findings,
) -> Vec<usize> {
    let mut found = Vec::new();
    for (name, at, path) in names {
        match rules.iter().position(|r| r.id.as_str() == name) {
            Some(i) if rules.get(i).is_some_and(|r| r.effect == Effect::Allow) => found.push(i),
            Some(_) => {
                let message = format!("the exception `{name}` is a deny rule");
                findings.error(*at, path, message, "an exception names a rule that allows");
            }
            None if written.contains(name) => {}
            None => {
                let known = rules.iter().filter(|r| r.effect == Effect::Allow);
                let known = listed(known.map(|r| r.id.as_str()));
                let message = format!("the exception `{name}` is no rule");
                findings.error(*at, path, message, &format!("name one of: {known}"));
            }
        }
    }
    found
}

struct RuleReader<'p> {
    policy: &'p Policy,
    segments: &'p [RuleId],
    path: String,
}

/// The keys that say which flows a rule speaks of.
struct Flows {
    from: Option<Endpoint>,
    to: Option<Endpoint>,
    same: Vec<Attribute>,
    services: Option<Services>,
}

impl RuleReader<'_> {
    fn rule(&self, node: &Node, findings: &mut Findings) -> Option<Rule> {
        let mut fields = Fields::of(node, self.path.clone(), findings)?;
        let id = self.id(&mut fields, findings);
        let deny = fields.take("deny");
        let (effect, flows) = match deny {
            Some(node) => {
                let mut inner = Fields::of(node, fields.path_of("deny"), findings)?;
                let flows = self.flows(&mut inner, Effect::Deny, findings);
                inner.finish(&LATER, findings);
                (Effect::Deny, flows)
            }
            None => (
                Effect::Allow,
                self.flows(&mut fields, Effect::Allow, findings),
            ),
        };
        let schedule = fields.take("when");
        let limit = fields.take("limit");
        let mode = fields.take("mode");
        let site = fields.take("tier");
        let at = fields.at;
        fields.finish(&LATER, findings);
        let schedule = schedule.map(|n| self.schedule(n, findings));
        let limit = limit.map(|n| self.limit(n, effect, findings));
        let mode = mode.map(|n| self.mode(n, effect, findings));
        let tiers = [("org", tier::ORG), ("site", tier::SITE)];
        let tier = match site {
            Some(n) => word(n, &join(&self.path, "tier"), &tiers, findings)?,
            None => tier::ORG,
        };
        Some(Rule {
            id: id?,
            tier,
            effect,
            from: flows.from?,
            to: flows.to?,
            same: flows.same,
            services: flows.services?,
            // A part that was refused refuses the rule; the finding is written already.
            limit: limit.map_or(Some(None), |l| l.map(Some))?,
            schedule: schedule.map_or(Some(None), |s| s.map(Some))?,
            mode: mode.map_or(Some(None), |m| m.map(Some))?,
            except: Vec::new(),
            at,
            field: self.path.clone(),
        })
    }

    fn guardrail(
        &self,
        node: &Node,
        except: &mut Vec<(String, Mark, String)>,
        findings: &mut Findings,
    ) -> Option<Rule> {
        let mut fields = Fields::of(node, self.path.clone(), findings)?;
        let id = self.id(&mut fields, findings);
        let (deny, allow) = (fields.take("deny"), fields.take("allow"));
        let exceptions = fields.take("except");
        let schedule = fields.take("when");
        let at = fields.at;
        fields.finish(&LATER, findings);
        let (effect, inner) = match (deny, allow) {
            (Some(node), None) => (
                Effect::Deny,
                Fields::of(node, join(&self.path, "deny"), findings),
            ),
            (None, Some(node)) => (
                Effect::Allow,
                Fields::of(node, join(&self.path, "allow"), findings),
            ),
            _ => {
                let message = "a guardrail has either `deny` or `allow`".to_owned();
                findings.error(at, &self.path, message, "write deny: { to: \"role=plc\" }");
                return None;
            }
        };
        let mut inner = inner?;
        let flows = self.flows(&mut inner, effect, findings);
        inner.finish(&LATER, findings);
        let path = join(&self.path, "except");
        if let Some(node) = exceptions {
            if effect == Effect::Allow {
                let message = "exceptions of a guardrail that allows".to_owned();
                findings.error(node.at, &path, message, "narrow its selectors instead");
            }
            let named = texts(node, &path, findings).into_iter();
            except.extend(named.map(|(t, n)| (t.to_owned(), n.at, path.clone())));
        }
        let schedule = schedule.map(|n| self.schedule(n, findings));
        Some(Rule {
            id: id?,
            tier: tier::GUARDRAIL,
            effect,
            from: flows.from?,
            to: flows.to?,
            same: flows.same,
            services: flows.services?,
            limit: None,
            schedule: schedule.map_or(Some(None), |s| s.map(Some))?,
            mode: None,
            except: Vec::new(),
            at,
            field: self.path.clone(),
        })
    }

    fn id(&self, fields: &mut Fields<'_>, findings: &mut Findings) -> Option<RuleId> {
        let path = join(&self.path, "id");
        let node = fields.require("id", "give the rule an id, e.g. r-mqtt", findings)?;
        let text = text(node, &path, findings)?;
        id(text, node.at, &path, findings)
    }

    /// A deny rule that leaves out an end means every device, and every service: the strict reading.
    fn flows(&self, fields: &mut Fields<'_>, effect: Effect, findings: &mut Findings) -> Flows {
        let deny = effect == Effect::Deny;
        let nodes = [fields.take("from"), fields.take("to")];
        if nodes.iter().flatten().count() < if deny { 1 } else { 2 } {
            let message = "`from` or `to` is missing".to_owned();
            let remedy = "say both ends; every device is spelt `any`";
            findings.error(fields.at, &fields.path, message, remedy);
        }
        let every = || deny.then_some(Endpoint::Devices(Selector::Any));
        let end = |node: Option<&Node>, key: &str, findings: &mut Findings| match node {
            Some(node) => self.endpoint(node, &fields.path_of(key), findings),
            None => every(),
        };
        let from = end(nodes[0], "from", findings);
        let to = end(nodes[1], "to", findings);
        let remedy = "name a service, write tcp/502, or any";
        let services = if deny {
            fields.take("service")
        } else {
            fields.require("service", remedy, findings)
        };
        let services = match services {
            Some(node) => services_of(self.policy, node, &fields.path_of("service"), findings),
            None => deny.then_some(Services::Any),
        };
        let path = fields.path_of("same");
        let same = fields.take("same");
        let same = same.map_or_else(Vec::new, |n| self.same(n, &path, findings));
        Flows {
            from,
            to,
            same,
            services,
        }
    }

    fn endpoint(&self, node: &Node, path: &str, findings: &mut Findings) -> Option<Endpoint> {
        let text = text(node, path, findings)?;
        let names = Names {
            vocabulary: &self.policy.vocabulary,
            segments: self.segments,
        };
        endpoint(text, &names, &place(node, path), findings)
    }

    pub(super) fn same(&self, node: &Node, path: &str, findings: &mut Findings) -> Vec<Attribute> {
        let mut same = Vec::new();
        for (text, node) in texts(node, path, findings) {
            let key = LabelKey::new(text).ok();
            let key = key.filter(|k| self.policy.vocabulary.contains_key(k));
            match (text, key) {
                ("site", _) => same.push(Attribute::Site),
                (_, Some(key)) => same.push(Attribute::Label(key)),
                (_, None) => {
                    let message = format!("`{text}` cannot be shared by two devices");
                    findings.error(node.at, path, message, "write site, or a declared label");
                }
            }
        }
        same.sort_unstable();
        same.dedup();
        same
    }

    fn schedule(&self, node: &Node, findings: &mut Findings) -> Option<u16> {
        let path = join(&self.path, "when");
        let text = text(node, &path, findings)?;
        let schedules = &self.policy.schedules;
        let found = schedules.iter().position(|s| s.id.as_str() == text);
        if let Some(index) = found.and_then(|i| u16::try_from(i).ok()) {
            return Some(index);
        }
        let known = listed(schedules.iter().map(|s| s.id.as_str()));
        let message = format!("the schedule `{text}` is not declared");
        let remedy = format!("declare it under schedules; there are {known}");
        findings.error(node.at, &path, message, &remedy);
        None
    }

    fn mode(&self, node: &Node, effect: Effect, findings: &mut Findings) -> Option<Mode> {
        let path = join(&self.path, "mode");
        if effect == Effect::Allow {
            let message = "a mode on a rule that allows".to_owned();
            findings.error(node.at, &path, message, "set the mode of the segment");
            return None;
        }
        word(node, &path, &MODES, findings)
    }

    fn limit(&self, node: &Node, effect: Effect, findings: &mut Findings) -> Option<Limit> {
        let path = join(&self.path, "limit");
        if effect == Effect::Deny {
            let message = "a limit on a rule that refuses".to_owned();
            findings.error(node.at, &path, message, "remove it");
            return None;
        }
        let mut fields = Fields::of(node, path.clone(), findings)?;
        let rate = fields.require("rate", "write rate: 8 Mbit/s", findings);
        let per = fields.require("per", "write per: source", findings);
        fields.finish(&[], findings);
        let per = per.and_then(|n| word(n, &join(&path, "per"), &[("source", ())], findings));
        let node = rate?;
        let path = join(&path, "rate");
        let text = text(node, &path, findings)?;
        let Some(bytes_per_second) = rate_bytes(text) else {
            let message = format!("`{text}` is not a rate");
            let remedy =
                "write a number and bit/s, kbit/s, Mbit/s or Gbit/s, 8 kbit/s to 100 Gbit/s";
            findings.error(node.at, &path, message, remedy);
            return None;
        };
        per?;
        let tenth = (bytes_per_second / 10).max(BURST_BYTES_MIN);
        Some(Limit {
            bytes_per_second,
            burst_bytes: u32::try_from(tenth).unwrap_or(u32::MAX),
        })
    }
}

fn rate_bytes(text: &str) -> Option<u64> {
    let (number, unit) = text.split_once(' ')?;
    let factor: u64 = match unit {
        "bit/s" => 1,
        "kbit/s" => 1_000,
        "Mbit/s" => 1_000_000,
        "Gbit/s" => 1_000_000_000,
        _ => return None,
    };
    let whole = number.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| whole)?;
    let bytes = number.checked_mul(factor)? / 8;
    RATE_BYTES.contains(&bytes).then_some(bytes)
}

/// Reads `same:` outside of rules.
pub(crate) fn same_of(
    policy: &Policy,
    node: &Node,
    path: &str,
    findings: &mut Findings,
) -> Vec<Attribute> {
    let reader = RuleReader {
        policy,
        segments: &[],
        path: String::new(),
    };
    reader.same(node, path, findings)
}

/// Reads what devices in a state may still do. One not mentioned reaches controllers only.
pub(crate) fn states(
    node: Option<&Node>,
    policy: &mut Policy,
    segments: &[RuleId],
    findings: &mut Findings,
) {
    let controller = |outbound| StateAllow {
        outbound,
        other: Endpoint::Controller,
        services: Services::Any,
        at: Mark::default(),
    };
    for state in [
        DeviceState::Onboarding,
        DeviceState::Quarantine,
        DeviceState::Held,
    ] {
        policy
            .states
            .insert(state, vec![controller(true), controller(false)]);
    }
    let Some(node) = node else { return };
    for (key, node) in map(node, "states", findings).unwrap_or_default() {
        let path = join("states", &key.text);
        let state = match key.text.as_str() {
            "quarantine" => DeviceState::Quarantine,
            "onboarding" => DeviceState::Onboarding,
            _ => {
                let message = format!("`{}` is not a state", key.text);
                findings.error(key.at, &path, message, "write quarantine or onboarding");
                continue;
            }
        };
        let Some(mut fields) = Fields::of(node, path.clone(), findings) else {
            continue;
        };
        let allow = fields.require(
            "allow",
            "write allow: [ { to: builtin/controller } ]",
            findings,
        );
        fields.finish(&[], findings);
        let path = join(&path, "allow");
        let items = allow
            .and_then(|n| list(n, &path, findings))
            .unwrap_or_default();
        let items = bounded(items, STATE_ALLOWS_MAX, key.at, &path, findings);
        let mut allowed = Vec::new();
        for (i, node) in items.iter().enumerate() {
            let reader = RuleReader {
                policy,
                segments,
                path: format!("{path}[{i}]"),
            };
            allowed.extend(state_allow(&reader, node, findings));
        }
        policy.states.insert(state, allowed);
    }
}

fn state_allow(
    reader: &RuleReader<'_>,
    node: &Node,
    findings: &mut Findings,
) -> Option<StateAllow> {
    if matches!(node.content, Content::Refused) {
        return None;
    }
    let mut fields = Fields::of(node, reader.path.clone(), findings)?;
    let (to, from) = (fields.take("to"), fields.take("from"));
    let service = fields.take("service");
    let at = fields.at;
    fields.finish(&LATER, findings);
    let (outbound, key, node) = match (to, from) {
        (Some(node), None) => (true, "to", node),
        (None, Some(node)) => (false, "from", node),
        _ => {
            let message = "either `to` or `from`: the other end is the device itself".to_owned();
            findings.error(
                at,
                &reader.path,
                message,
                "write { to: builtin/controller }",
            );
            return None;
        }
    };
    let other = reader.endpoint(node, &join(&reader.path, key), findings)?;
    let path = join(&reader.path, "service");
    let services = match service {
        Some(node) => services_of(reader.policy, node, &path, findings)?,
        None if other == Endpoint::Controller => Services::Any,
        None => {
            let message = "`service` is missing".to_owned();
            findings.error(at, &reader.path, message, "name a service, or write any");
            return None;
        }
    };
    Some(StateAllow {
        outbound,
        other,
        services,
        at,
    })
}
