//! Who reaches whom: predicted for devices, and compared between two policies for classes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hedgerow_model::Wall;
use hedgerow_model::address::Prefix;
use hedgerow_model::id::{DeviceId, DeviceName, LabelValue, Labels, SiteName};
use hedgerow_model::program::{Attribute, Class, ClassValue, Limit, Services};
use hedgerow_model::service::{Ports, Protocol};

use crate::compile::{class_of, compared};
use crate::evaluate::{Case, Clock, Force, Outcome, Party, judge};
use crate::facts::{Facts, World};
use crate::policy::{Endpoint, Policy};

/// What is predicted for one ordered pair of devices and one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReachRow {
    /// Who begins.
    pub from: DeviceId,
    /// Who answers.
    pub to: DeviceId,
    /// What is spoken.
    pub service: Ports,
    /// Whether it comes about.
    pub passes: bool,
    /// The rule that settles it.
    pub rule: String,
    /// The rate that the receiver enforces.
    pub limit: Option<Limit>,
    /// What each end does.
    pub outcome: Outcome,
}

/// Predicts every ordered pair of devices for each service, by the service's first port.
pub fn predict(
    policy: &Policy,
    world: &World,
    services: &[Ports],
    at: Wall,
    trusted: bool,
) -> Vec<ReachRow> {
    let clock = if trusted {
        Clock::At(at)
    } else {
        Clock::Strict
    };
    let mut rows = Vec::new();
    for from in world.devices() {
        for to in world.devices().filter(|to| to.id != from.id) {
            for service in services {
                let outcome = judge(policy, &case(from, to, service), clock, Force::AsIs);
                let rule = outcome
                    .deciding()
                    .map_or_else(String::new, |d| d.rule.clone());
                rows.push(ReachRow {
                    from: from.id,
                    to: to.id,
                    service: *service,
                    passes: outcome.passes(),
                    rule,
                    limit: outcome.destination.as_ref().and_then(|d| d.limit),
                    outcome,
                });
            }
        }
    }
    rows
}

pub(crate) fn case<'w>(from: &'w Facts, to: &'w Facts, service: &Ports) -> Case<'w> {
    Case {
        from: Party::Device(from),
        to: Party::Device(to),
        protocol: service.protocol,
        port: service.first,
    }
}

/// Whether a class reaches another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// At no time.
    Never,
    /// While some window is open or closed.
    Sometimes,
    /// At all times.
    Always,
}

/// One (class, class, service) triple whose reach differs between two policies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct ReachChange {
    /// Who begins, e.g. `role=sensor`.
    pub from: String,
    /// Who answers.
    pub to: String,
    /// What the two share or not, e.g. `same site`; empty when no rule asks.
    pub relation: String,
    /// What is spoken, e.g. `tcp/502`.
    pub service: String,
    /// Reach under the old policy.
    pub before: Reach,
    /// Reach under the new one.
    pub after: Reach,
}

/// Cuts all protocols and ports into pieces that the rules of every policy treat alike.
pub(crate) fn pieces(policies: &[&Policy]) -> Vec<Ports> {
    let rules = policies.iter().flat_map(|p| &p.rules).map(|r| &r.services);
    let states = policies.iter().flat_map(|p| p.states.values().flatten());
    let named: Vec<Ports> = rules
        .chain(states.map(|s| &s.services))
        .filter_map(|services| match services {
            Services::Any => None,
            Services::Only(ports) => Some(ports),
        })
        .flatten()
        .copied()
        .collect();
    let mut pieces = vec![Ports::ICMP_ECHO];
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut starts: BTreeSet<u16> = [0].into();
        for ports in named.iter().filter(|p| p.protocol == protocol) {
            starts.insert(ports.first);
            starts.extend(ports.last.checked_add(1));
        }
        let mut last = u16::MAX;
        for first in starts.into_iter().rev() {
            pieces.push(Ports {
                protocol,
                first,
                last,
            });
            last = first.saturating_sub(1);
        }
    }
    pieces.sort_unstable();
    pieces
}

/// Spells protocols and ports, neighbours joined.
pub(crate) fn spelt(ports: &[Ports]) -> String {
    let mut joined: Vec<Ports> = Vec::new();
    for next in ports {
        match joined.last_mut() {
            Some(last)
                if last.protocol == next.protocol
                    && last.last.checked_add(1) == Some(next.first) =>
            {
                last.last = next.last;
            }
            _ => joined.push(*next),
        }
    }
    let words: Vec<String> = joined
        .iter()
        .map(|p| match p {
            Ports {
                first: 0,
                last: u16::MAX,
                protocol,
            } => protocol.to_string(),
            other => other.to_string(),
        })
        .collect();
    words.join(", ")
}

/// Spells a class by what sets it apart.
pub(crate) fn class_name(class: &Class) -> String {
    let words: Vec<String> = class
        .0
        .iter()
        .filter_map(|(attribute, value)| match value {
            ClassValue::Is(v) => Some(format!("{}={v}", attribute.as_str())),
            ClassValue::Other(vs) if vs.is_empty() => Some(attribute.as_str().to_owned()),
            ClassValue::Other(_) | ClassValue::Absent => None,
        })
        .collect();
    if words.is_empty() {
        "other devices".to_owned()
    } else {
        words.join(" and ")
    }
}

/// One member of each class that both policies together can tell apart.
pub(crate) fn representatives<'w>(
    policies: &[&Policy],
    world: &'w World,
) -> BTreeMap<Vec<Class>, &'w Facts> {
    let mut found = BTreeMap::new();
    for facts in world.devices() {
        let key: Vec<Class> = policies.iter().map(|p| class_of(p, facts)).collect();
        found.entry(key).or_insert(facts);
    }
    found
}

/// Compares who reaches whom. The cost goes with pairs of classes, not of devices: what two devices
/// share is supposed each way, for every attribute that a rule compares.
pub(crate) fn changes(old: Option<&Policy>, new: &Policy, world: &World) -> Vec<ReachChange> {
    let policies: Vec<&Policy> = old.into_iter().chain([new]).collect();
    let members = representatives(&policies, world);
    let services = pieces(&policies);
    let compared: BTreeSet<&Attribute> = policies.iter().flat_map(|p| compared(p)).collect();
    let compared: Vec<&Attribute> = compared.into_iter().take(COMPARED_MAX).collect();
    let mut found = Found::new();
    for (from_class, from) in &members {
        for (to_class, to) in &members {
            for shared in 0..1u32 << compared.len() {
                let Some((from, to, relation)) =
                    related((from_class, from), (to_class, to), &compared, shared)
                else {
                    continue;
                };
                for service in &services {
                    let case = case(&from, &to, service);
                    let of = |policy| reach(policy, &case);
                    let (before, after) = (old.map_or(Reach::Never, of), of(new));
                    if before == after {
                        continue;
                    }
                    let names = (name(from_class), name(to_class), relation.clone());
                    let key = (names.0, names.1, names.2, before, after);
                    found.entry(key).or_default().push(*service);
                }
            }
        }
    }
    underlay(old, new, &members, &services, &mut found);
    let rows = found
        .into_iter()
        .map(|((from, to, relation, before, after), mut ports)| {
            ports.sort_unstable();
            ports.dedup();
            ReachChange {
                from,
                to,
                relation,
                service: spelt(&ports),
                before,
                after,
            }
        });
    rows.collect()
}

/// Most attributes whose sharing is supposed each way.
const COMPARED_MAX: usize = 4;

/// Rows under construction: who, to whom, how related, before, after, and on what.
type Found = BTreeMap<(String, String, String, Reach, Reach), Vec<Ports>>;

fn name(classes: &[Class]) -> String {
    classes.last().map_or_else(String::new, class_name)
}

/// Compares what classes reach in the underlay and what reaches them from there, by one address of
/// every range that a rule names, one of the internet, and one of neither.
fn underlay(
    old: Option<&Policy>,
    new: &Policy,
    members: &BTreeMap<Vec<Class>, &Facts>,
    services: &[Ports],
    found: &mut Found,
) {
    let rules = old.into_iter().chain([new]).flat_map(|p| &p.rules);
    let named = rules
        .flat_map(|r| [&r.from, &r.to])
        .filter_map(|end| match end {
            Endpoint::Prefixes(prefixes) => Some(prefixes),
            Endpoint::Devices(_) | Endpoint::Internet | Endpoint::Controller => None,
        });
    let named: BTreeSet<Prefix> = named.flatten().copied().collect();
    let mut addresses: Vec<(String, IpAddr)> =
        named.iter().map(|p| (p.to_string(), p.address())).collect();
    let others = [
        ("internet", [8, 8, 8, 8]),
        ("local addresses", [169, 254, 254, 254]),
    ];
    addresses.extend(others.map(|(name, octets)| (name.to_owned(), IpAddr::from(octets))));
    for (classes, facts) in members {
        let device = Party::Device(facts);
        for (spelt, address) in &addresses {
            let outer = (spelt.clone(), Party::Address(*address));
            let inner = (name(classes), device);
            for (from, to) in [(&inner, &outer), (&outer, &inner)] {
                for service in services {
                    let case = Case {
                        from: from.1,
                        to: to.1,
                        protocol: service.protocol,
                        port: service.first,
                    };
                    // Without a policy the underlay is observed.
                    let before = old.map_or(Reach::Always, |p| reach(p, &case));
                    let after = reach(new, &case);
                    if before != after {
                        let relation = "underlay".to_owned();
                        let key = (from.0.clone(), to.0.clone(), relation, before, after);
                        found.entry(key).or_default().push(*service);
                    }
                }
            }
        }
    }
}

fn reach(policy: &Policy, case: &Case<'_>) -> Reach {
    if judge(policy, case, Clock::Strict, Force::AsIs).passes() {
        Reach::Always
    } else if judge(policy, case, Clock::Hopeful, Force::AsIs).passes() {
        Reach::Sometimes
    } else {
        Reach::Never
    }
}

/// What the classes say of one attribute of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said<'c> {
    Value(&'c str),
    Absent,
    /// Nothing that a policy tells apart.
    Free,
}

fn said<'c>(classes: &'c [Class], attribute: &Attribute) -> Said<'c> {
    let mut values = classes
        .iter()
        .flat_map(|c| &c.0)
        .filter(|(a, _)| a == attribute);
    let fixed = values.find_map(|(_, value)| match value {
        ClassValue::Is(v) => Some(Said::Value(v)),
        ClassValue::Absent => Some(Said::Absent),
        ClassValue::Other(_) => None,
    });
    fixed.unwrap_or(Said::Free)
}

/// Values that no policy names, for whatever is free.
const FREE_VALUES: [&str; 2] = ["any-one-00", "any-other-00"];

/// Supposes that members of two classes, out of all states, share some of the attributes and not the
/// others; none where their classes rule that out.
fn related(
    (from_classes, from): (&[Class], &Facts),
    (to_classes, to): (&[Class], &Facts),
    compared: &[&Attribute],
    shared: u32,
) -> Option<(Facts, Facts, String)> {
    let mut from = from.clone().in_state(None);
    let mut to = to.clone().in_state(None);
    let mut words: Vec<String> = Vec::new();
    for (i, attribute) in compared.iter().enumerate() {
        let share = shared >> i & 1 == 1;
        words.push(format!(
            "{} {}",
            if share { "same" } else { "other" },
            attribute.as_str()
        ));
        let (a, b) = (said(from_classes, attribute), said(to_classes, attribute));
        let possible = match (a, b) {
            (Said::Value(a), Said::Value(b)) => (a == b) == share,
            (Said::Free, Said::Free) => true,
            _ => !share,
        };
        if !possible {
            return None;
        }
        let [one, other] = FREE_VALUES;
        if a == Said::Free {
            suppose(&mut from, attribute, one)?;
        }
        if b == Said::Free {
            suppose(&mut to, attribute, if share { one } else { other })?;
        }
    }
    Some((from, to, words.join(", ")))
}

/// Gives a device another value; rules compare sites and labels only.
pub(crate) fn suppose(facts: &mut Facts, attribute: &Attribute, value: &str) -> Option<()> {
    match attribute {
        Attribute::Site => facts.site = SiteName::new(value).ok()?,
        Attribute::Name => facts.name = DeviceName::new(value).ok()?,
        Attribute::Id => facts.id = value.parse().ok()?,
        Attribute::Label(key) => {
            let mut map = facts.labels.to_map();
            map.insert(key.clone(), LabelValue::new(value).ok()?);
            facts.labels = Labels::new(map).ok()?;
        }
    }
    Some(())
}
