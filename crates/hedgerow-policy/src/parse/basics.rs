//! What rules refer to: labels, services, schedules, segments, defaults.

use std::collections::BTreeMap;

use hedgerow_model::id::{LabelKey, LabelValue, RESERVED_LABEL_KEYS, RuleId};
use hedgerow_model::program::{DeviceState, Mode, Schedule};
use hedgerow_model::service::{Ports, Protocol};
use jiff::tz::TimeZone;

use super::fields::{Fields, bounded, id, join, list, map, place, text, texts, word};
use super::selector::{Names, devices, listed};
use super::yaml::{Content, Node};
use crate::diagnostic::{Findings, Mark};
use crate::policy::{Policy, Segment, Vocabulary};

/// Spellings of modes.
pub(crate) const MODES: [(&str, Mode); 3] = [
    ("observe", Mode::Observe),
    ("simulate", Mode::Simulate),
    ("enforce", Mode::Enforce),
];

pub(crate) fn labels(node: &Node, findings: &mut Findings) -> Vocabulary {
    let mut vocabulary = Vocabulary::new();
    let entries = map(node, "labels", findings).unwrap_or_default();
    for (key, node) in bounded(entries, LABELS_MAX, node.at, "labels", findings) {
        let path = join("labels", &key.text);
        let Some(mut fields) = Fields::of(node, path.clone(), findings) else {
            continue;
        };
        let values = fields.take("values");
        let assign = fields.take("assign");
        let from = fields.take("from");
        fields.finish(&[], findings);
        for (_, node) in assign.map_or_else(Vec::new, |n| texts(n, &path, findings)) {
            // Who may assign is the controller's to enforce; here it only has to be text.
            text(node, &path, findings);
        }
        if key.text == "site" {
            site_label(from, values, key.at, &path, findings);
            continue;
        }
        if let Some(node) = from {
            let remedy = "only site comes from enrollment; labels are assigned";
            findings.error(
                node.at,
                &join(&path, "from"),
                "`from` on a label".to_owned(),
                remedy,
            );
        }
        if RESERVED_LABEL_KEYS.contains(&key.text.as_str()) {
            let message = format!("the label `{}` is built in", key.text);
            findings.error(key.at, &path, message, "choose another key");
            continue;
        }
        let name = match LabelKey::new(&key.text) {
            Ok(name) => name,
            Err(e) => {
                findings.error(
                    key.at,
                    &path,
                    format!("`{}` is not a label key", key.text),
                    e.rule,
                );
                continue;
            }
        };
        let Some(values) = values else {
            let remedy = "write values: [ a, b ]; selectors may name these only";
            findings.error(key.at, &path, "`values` is missing".to_owned(), remedy);
            continue;
        };
        let values = label_values(values, &join(&path, "values"), findings);
        vocabulary.insert(name, values);
    }
    vocabulary
}

fn site_label(
    from: Option<&Node>,
    values: Option<&Node>,
    at: Mark,
    path: &str,
    findings: &mut Findings,
) {
    let enrolled = from.and_then(|n| text(n, path, findings)) == Some("enrollment");
    if !enrolled || values.is_some() {
        let message = "the site of a device is fixed at its enrollment".to_owned();
        findings.error(
            at,
            path,
            message,
            "write site: { from: enrollment }, or nothing",
        );
    }
}

fn label_values(node: &Node, path: &str, findings: &mut Findings) -> Vec<LabelValue> {
    let mut values: Vec<LabelValue> = Vec::new();
    let items = list(node, path, findings).unwrap_or_default();
    for item in bounded(items, VALUES_MAX, node.at, path, findings) {
        let Some(text) = text(item, path, findings) else {
            continue;
        };
        match LabelValue::new(text) {
            Ok(value) if values.contains(&value) => {
                let message = format!("the value `{text}` stands twice");
                findings.error(item.at, path, message, "keep one of the two");
            }
            Ok(value) => values.push(value),
            Err(e) => {
                findings.error(
                    item.at,
                    path,
                    format!("`{text}` is not a label value"),
                    e.rule,
                );
            }
        }
    }
    values
}

pub(crate) fn services(node: &Node, findings: &mut Findings) -> BTreeMap<String, Vec<Ports>> {
    let mut services = BTreeMap::new();
    for (key, node) in map(node, "services", findings).unwrap_or_default() {
        let path = join("services", &key.text);
        let id = id(&key.text, key.at, &path, findings);
        let ports = match &node.content {
            Content::Map(_) => {
                Fields::of(node, path.clone(), findings).map_or_else(Vec::new, |mut f| {
                    let l4 = f.require("l4", "write l4: [ tcp/502 ]", findings);
                    f.finish(&[("l7", "verbs of a protocol (l7)")], findings);
                    l4.map_or_else(Vec::new, |n| port_list(n, &join(&path, "l4"), findings))
                })
            }
            Content::List(_) | Content::Scalar { .. } | Content::Refused => {
                port_list(node, &path, findings)
            }
        };
        if let Some(id) = id {
            services.insert(id.as_str().to_owned(), ports);
        }
    }
    services
}

fn port_list(node: &Node, path: &str, findings: &mut Findings) -> Vec<Ports> {
    let found = texts(node, path, findings);
    if found.is_empty() && matches!(node.content, Content::List(_)) {
        let message = "no protocol and port".to_owned();
        findings.error(node.at, path, message, "write [ tcp/8883 ]");
    }
    let mut ports_found = Vec::new();
    let found = bounded(&found, SERVICE_RANGES_MAX, node.at, path, findings);
    for (text, node) in found {
        match ports(text) {
            Ok(ports) => ports_found.push(ports),
            Err(message) => {
                let remedy = "write tcp/8883, udp/5000-5100 or icmp-echo";
                findings.error(node.at, path, message, remedy);
            }
        }
    }
    ports_found
}

/// Reads `tcp/502`, `udp/5000-5100` or `icmp-echo`.
pub(crate) fn ports(text: &str) -> Result<Ports, String> {
    if text == "icmp-echo" {
        return Ok(Ports::ICMP_ECHO);
    }
    let bad = || format!("`{text}` is not a protocol and port");
    let (protocol, range) = text.split_once('/').ok_or_else(bad)?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Err(bad()),
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |t: &str| match t.parse::<u16>() {
        Ok(n) if t.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
        _ => Err(bad()),
    };
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(format!("`{text}` ends before it begins"));
    }
    Ok(Ports {
        protocol,
        first,
        last,
    })
}

const DAYS: [(&str, u8); 7] = [
    ("mon", 0),
    ("tue", 1),
    ("wed", 2),
    ("thu", 3),
    ("fri", 4),
    ("sat", 5),
    ("sun", 6),
];

pub(crate) fn schedules(node: &Node, findings: &mut Findings) -> Vec<Schedule> {
    let mut schedules = Vec::new();
    let entries = map(node, "schedules", findings).unwrap_or_default();
    for (key, node) in bounded(entries, SCHEDULES_MAX, node.at, "schedules", findings) {
        let path = join("schedules", &key.text);
        let id = id(&key.text, key.at, &path, findings);
        let Some(mut fields) = Fields::of(node, path.clone(), findings) else {
            continue;
        };
        let days = fields.require("days", "write days: [ mon, tue ]", findings);
        let from = fields.require("from", "write from: \"08:00\"", findings);
        let to = fields.require("to", "write to: \"18:00\"", findings);
        let zone = fields.require("tz", "write tz: site, or an IANA zone", findings);
        fields.finish(&[], findings);
        let days = days.map_or(0, |n| days_of(n, &join(&path, "days"), findings));
        let from = from.and_then(|n| minute(n, 1439, &join(&path, "from"), findings));
        let to = to.and_then(|n| minute(n, 1440, &join(&path, "to"), findings));
        let zone = zone.and_then(|n| zone_of(n, &join(&path, "tz"), findings));
        if let (Some(from), Some(to)) = (from, to)
            && from == to
        {
            let message = "the window ends when it begins".to_owned();
            let remedy = "for a whole day write from: \"00:00\", to: \"24:00\"";
            findings.error(key.at, &path, message, remedy);
        }
        if let (Some(id), Some(from_minute), Some(to_minute), Some(zone)) = (id, from, to, zone) {
            schedules.push(Schedule {
                id,
                days,
                from_minute,
                to_minute: if to_minute == 0 { 1440 } else { to_minute },
                zone,
            });
        }
    }
    schedules
}

fn days_of(node: &Node, path: &str, findings: &mut Findings) -> u8 {
    let mut days = 0;
    let items = list(node, path, findings).unwrap_or_default();
    if items.is_empty() && matches!(node.content, Content::List(_)) {
        let message = "a window on no day".to_owned();
        findings.error(node.at, path, message, "write days: [ mon, tue ]");
    }
    for item in items {
        days |= word(item, path, &DAYS, findings).map_or(0, |day| 1 << day);
    }
    days
}

fn minute(node: &Node, max: u16, path: &str, findings: &mut Findings) -> Option<u16> {
    let text = text(node, path, findings)?;
    let parts = text
        .split_once(':')
        .filter(|(h, m)| h.len() == 2 && m.len() == 2);
    let number = |t: &str| {
        t.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| t.parse().ok())?
    };
    let minutes = parts.and_then(|(h, m)| {
        let (hour, minute): (u16, u16) = (number(h)?, number(m)?);
        (minute < 60).then_some(hour * 60 + minute)
    });
    if let Some(m) = minutes.filter(|m| *m <= max) {
        return Some(m);
    }
    let message = format!("`{text}` is not a time of day");
    findings.error(
        node.at,
        path,
        message,
        "write hours and minutes, e.g. \"08:00\"",
    );
    None
}

/// Reads `site` as none.
fn zone_of(node: &Node, path: &str, findings: &mut Findings) -> Option<Option<String>> {
    let text = text(node, path, findings)?;
    if text == "site" {
        return Some(None);
    }
    if TimeZone::get(text).is_ok() {
        return Some(Some(text.to_owned()));
    }
    let message = format!("there is no time zone `{text}`");
    let remedy = "write site, or an IANA zone, e.g. Europe/Berlin";
    findings.error(node.at, path, message, remedy);
    None
}

/// Most segments, schedules, values of a label, and labels.
const SEGMENTS_MAX: usize = 256;
const SCHEDULES_MAX: usize = 256;
const VALUES_MAX: usize = 1000;
const LABELS_MAX: usize = 64;

/// Reads the segments' ids first, because they may refer to each other.
pub(crate) fn segments(
    node: &Node,
    vocabulary: &Vocabulary,
    findings: &mut Findings,
) -> (Vec<RuleId>, Vec<Segment>) {
    let entries = map(node, "segments", findings).unwrap_or_default();
    let entries = bounded(entries, SEGMENTS_MAX, node.at, "segments", findings);
    let named: Vec<(RuleId, Mark, &Node)> = entries
        .iter()
        .filter_map(|(key, node)| {
            let path = join("segments", &key.text);
            Some((id(&key.text, key.at, &path, findings)?, key.at, node))
        })
        .collect();
    let ids: Vec<RuleId> = named.iter().map(|(id, _, _)| id.clone()).collect();
    let names = Names {
        vocabulary,
        segments: &ids,
    };
    let mut segments = Vec::new();
    for (id, at, node) in named {
        let path = join("segments", id.as_str());
        let fields = Fields::of(node, path.clone(), findings);
        let Some(mut fields) = fields else {
            segments.push(Segment::unreadable(id, at));
            continue;
        };
        let select = fields.require("select", "write select: \"role=plc\"", findings);
        let mode = fields.require("mode", "write mode: observe, simulate or enforce", findings);
        let underlay = fields.take("underlay");
        fields.finish(&[], findings);
        let field = join(&path, "select");
        let select = select.and_then(|n| {
            let text = text(n, &field, findings)?;
            devices(text, &names, &place(n, &field), findings)
        });
        let mode = mode.and_then(|n| word(n, &join(&path, "mode"), &MODES, findings));
        let modes = [MODES[0], MODES[2]];
        let underlay = underlay.and_then(|n| word(n, &join(&path, "underlay"), &modes, findings));
        let unreadable = Segment::unreadable(id, at);
        segments.push(Segment {
            select: select.unwrap_or(unreadable.select),
            mode: mode.unwrap_or(unreadable.mode),
            underlay: underlay.unwrap_or(Mode::Observe),
            ..unreadable
        });
    }
    (ids, segments)
}

impl Segment {
    /// Stands in for one that was refused, so that indices stay right.
    fn unreadable(id: RuleId, at: Mark) -> Self {
        Self {
            id,
            select: crate::policy::Selector::Nothing,
            mode: Mode::Enforce,
            underlay: Mode::Observe,
            at,
        }
    }
}

/// Longest interval between sampled refusals, in seconds.
const SAMPLE_SECONDS_MAX: u32 = 3600;

pub(crate) fn defaults(node: &Node, policy: &mut Policy, findings: &mut Findings) {
    let Some(mut fields) = Fields::of(node, "defaults".to_owned(), findings) else {
        return;
    };
    let deny = fields.take("deny");
    let log = fields.take("log");
    let unknown = fields.take("unknown_device");
    fields.finish(&[], findings);
    if let Some(node) = deny {
        word(node, "defaults.deny", &[("both", ())], findings);
    }
    if let Some(node) = log
        && let Some(text) = text(node, "defaults.log", findings)
    {
        match sample(text) {
            Some(seconds) => policy.sample_seconds = seconds,
            None => {
                let message = format!("`{text}` is not a way to log refusals");
                let remedy = "write none, or sample/10s: one refusal per 10 seconds and reason";
                findings.error(node.at, "defaults.log", message, remedy);
            }
        }
    }
    if let Some(node) = unknown
        && let Some(mut fields) = Fields::of(node, "defaults.unknown_device".to_owned(), findings)
    {
        let state = fields.require("state", "write { state: onboarding }", findings);
        fields.finish(&[], findings);
        let words = [
            ("onboarding", Some(DeviceState::Onboarding)),
            ("none", None),
        ];
        if let Some(node) = state {
            let state = word(node, "defaults.unknown_device.state", &words, findings);
            policy.unknown_device = state.flatten();
        }
    }
}

fn sample(text: &str) -> Option<u32> {
    if text == "none" {
        return Some(0);
    }
    let seconds = text.strip_prefix("sample/")?.strip_suffix('s')?;
    let seconds = seconds.parse().ok()?;
    (1..=SAMPLE_SECONDS_MAX)
        .contains(&seconds)
        .then_some(seconds)
}

/// Most ranges of ports in one rule: every peer's decision goes through them.
const SERVICE_RANGES_MAX: usize = 256;

/// Resolves `service:` of a rule; reports what is not known.
pub(crate) fn services_of(
    policy: &Policy,
    node: &Node,
    path: &str,
    findings: &mut Findings,
) -> Option<hedgerow_model::program::Services> {
    use hedgerow_model::program::Services;
    let named = texts(node, path, findings);
    let named = bounded(&named, SERVICE_RANGES_MAX, node.at, path, findings);
    if named.is_empty() && matches!(node.content, Content::List(_)) {
        let message = "no service".to_owned();
        findings.error(node.at, path, message, "name one, or write any");
        return None;
    }
    let mut all = Vec::new();
    for (text, node) in named {
        if *text == "any" && named.len() == 1 {
            return Some(Services::Any);
        }
        match policy.service(text) {
            Some(ports) => all.extend(ports),
            None => {
                let message = format!("the service `{text}` is not declared");
                let known = listed(policy.services.keys().map(String::as_str));
                let remedy = format!(
                    "declare it under services, or write tcp/502 or icmp-echo; there are {known}"
                );
                findings.error(node.at, path, message, &remedy);
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    if all.len() > SERVICE_RANGES_MAX {
        let message = format!(
            "{} ranges of ports, at most {SERVICE_RANGES_MAX}",
            all.len()
        );
        findings.error(
            node.at,
            path,
            message,
            "join neighbours to ranges, e.g. tcp/5000-5100",
        );
        return None;
    }
    (!all.is_empty()).then_some(Services::Only(all))
}
