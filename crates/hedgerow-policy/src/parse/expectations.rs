//! Tests and invariants.

use hedgerow_model::Wall;
use hedgerow_model::id::RuleId;
use hedgerow_model::program::{DeviceState, Services};
use jiff::Timestamp;
use jiff::fmt::temporal::Pieces;

use super::basics::services_of;
use super::fields::{Fields, bounded, join, list, map, place, text, texts, word};
use super::rules::same_of;
use super::selector::{Names, Place, devices, endpoint, listed};
use super::yaml::{Content, Node};
use crate::diagnostic::Findings;
use crate::policy::{By, Endpoint, Expect, FlowTest, Policy, Selector, Test, TestKind};

/// Most tests, and most invariants standing alone.
const TESTS_MAX: usize = 1000;
const EXPECTATIONS: [(&str, Expect); 3] = [
    ("allow", Expect::Allow),
    ("deny", Expect::Deny),
    ("only builtin/controller", Expect::OnlyController),
];
const STATES: [(&str, DeviceState); 3] = [
    ("onboarding", DeviceState::Onboarding),
    ("quarantine", DeviceState::Quarantine),
    ("held", DeviceState::Held),
];

pub(crate) fn tests(
    node: &Node,
    section: &str,
    policy: &Policy,
    segments: &[RuleId],
    findings: &mut Findings,
) -> Vec<Test> {
    let mut tests = Vec::new();
    let items = list(node, section, findings).unwrap_or_default();
    let items = bounded(items, TESTS_MAX, node.at, section, findings);
    for (i, node) in items.iter().enumerate() {
        let reader = TestReader {
            policy,
            names: Names {
                vocabulary: &policy.vocabulary,
                segments,
            },
            path: format!("{section}[{i}]"),
        };
        // An invariant may stand alone as a text.
        let test = match &node.content {
            Content::Scalar { .. } => reader.invariant(node, &reader.path, findings),
            Content::List(_) | Content::Map(_) | Content::Refused => reader.test(node, findings),
        };
        tests.extend(test);
    }
    tests
}

struct TestReader<'p> {
    policy: &'p Policy,
    names: Names<'p>,
    path: String,
}

impl TestReader<'_> {
    fn test(&self, node: &Node, findings: &mut Findings) -> Option<Test> {
        let mut fields = Fields::of(node, self.path.clone(), findings)?;
        if let Some(node) = fields.take("invariant") {
            fields.finish(&[], findings);
            return self.invariant(node, &join(&self.path, "invariant"), findings);
        }
        let from = fields.require("from", "say which device begins", findings);
        let to = fields.require("to", "say which device answers, or any", findings);
        let service = fields.take("service");
        let same = fields.take("same");
        let at = fields.take("at");
        let given = fields.take("given");
        let expect = fields.require("expect", "write expect: allow or deny", findings);
        let by = fields.take("by");
        let place_of_test = fields.at;
        fields.finish(&[("l7", "verbs of a protocol (l7)")], findings);

        let from = from.and_then(|n| self.end(n, "from", findings));
        let to = to.and_then(|n| self.end(n, "to", findings));
        let path = join(&self.path, "expect");
        let expect = word(expect?, &path, &EXPECTATIONS, findings)?;
        if service.is_none() && expect != Expect::OnlyController {
            let message = "`service` is missing".to_owned();
            findings.error(place_of_test, &self.path, message, "name one, or write any");
            return None;
        }
        let services = service.map(|n| self.services(n, findings));
        let services = services.unwrap_or_else(|| Some(("any".to_owned(), Services::Any)));
        let path = join(&self.path, "same");
        let same = same.map_or_else(Vec::new, |n| same_of(self.policy, n, &path, findings));
        let at = at.map(|n| self.time(n, findings));
        let states = given.map_or_else(Vec::new, |n| self.given(n, findings));
        let by = by.map(|n| self.by(n, findings));
        let ((from_title, from), (to_title, to)) = (from?, to?);
        let (service_title, services) = services?;
        let (at, zone) = at.map_or(Some((None, None)), |a| a.map(|(at, z)| (Some(at), z)))?;
        let word = EXPECTATIONS
            .iter()
            .find(|(_, e)| *e == expect)
            .map_or("", |(w, _)| *w);
        Some(Test {
            title: format!("{from_title} → {to_title} on {service_title}: {word}"),
            at: place_of_test,
            kind: TestKind::Flow(FlowTest {
                from,
                to,
                same,
                services,
                at,
                zone,
                states,
                expect,
                by: by.map_or(Some(None), |b| b.map(Some))?,
            }),
        })
    }

    /// Reads one end, and how the file spells it.
    fn end(&self, node: &Node, key: &str, findings: &mut Findings) -> Option<(String, Endpoint)> {
        let path = join(&self.path, key);
        let text = text(node, &path, findings)?;
        let found = endpoint(text, &self.names, &place(node, &path), findings)?;
        Some((text.to_owned(), found))
    }

    fn services(&self, node: &Node, findings: &mut Findings) -> Option<(String, Services)> {
        let path = join(&self.path, "service");
        let services = services_of(self.policy, node, &path, findings)?;
        let title = texts(node, &path, findings);
        let title: Vec<&str> = title.into_iter().map(|(t, _)| t).collect();
        Some((title.join(", "), services))
    }

    /// Reads a time with its offset, and names a zone of that offset where there is one.
    fn time(&self, node: &Node, findings: &mut Findings) -> Option<(Wall, Option<String>)> {
        let path = join(&self.path, "at");
        let text = text(node, &path, findings)?;
        let parsed: Option<Timestamp> = text.parse().ok();
        let Some(at) = parsed.and_then(|t| u64::try_from(t.as_millisecond()).ok()) else {
            let message = format!("`{text}` is not a time");
            let remedy = "write date, time and offset, e.g. \"2026-03-30T07:59+02:00\"";
            findings.error(node.at, &path, message, remedy);
            return None;
        };
        let pieces = Pieces::parse(text).ok();
        let offset = pieces
            .and_then(|p| p.to_numeric_offset())
            .map_or(0, |o| o.seconds());
        // The database spells zones of fixed offset with the sign turned round.
        let zone = (offset % 3600 == 0).then(|| match offset / 3600 {
            0 => "UTC".to_owned(),
            hours if hours > 0 => format!("Etc/GMT-{hours}"),
            hours => format!("Etc/GMT+{}", hours.abs()),
        });
        Some((Wall(at), zone))
    }

    fn given(&self, node: &Node, findings: &mut Findings) -> Vec<(Selector, DeviceState)> {
        let path = join(&self.path, "given");
        let Some(mut fields) = Fields::of(node, path.clone(), findings) else {
            return Vec::new();
        };
        let remedy = "write given: { state: { name=cam-12: quarantine } }";
        let state = fields.require("state", remedy, findings);
        fields.finish(&[], findings);
        let path = join(&path, "state");
        let mut states = Vec::new();
        for (key, node) in state
            .and_then(|n| map(n, &path, findings))
            .unwrap_or_default()
        {
            let place = Place {
                at: key.at,
                field: &path,
            };
            let select = devices(&key.text, &self.names, &place, findings);
            let state = word(node, &path, &STATES, findings);
            states.extend(select.zip(state));
        }
        states
    }

    fn by(&self, node: &Node, findings: &mut Findings) -> Option<By> {
        let path = join(&self.path, "by");
        let text = text(node, &path, findings)?;
        match text {
            "state" => return Some(By::State),
            "guardrail" => return Some(By::Guardrail),
            "default" => return Some(By::Default),
            "schedule" => return Some(By::Schedule),
            _ => {}
        }
        let mut ids = self.policy.rule_ids();
        if let Some(id) = ids.find(|id| id.as_str() == text) {
            return Some(By::Rule(id.clone()));
        }
        let known = listed(self.policy.rule_ids().map(RuleId::as_str));
        let message = format!("`{text}` cannot have decided");
        let remedy = format!("write state, guardrail, default, schedule, or a rule: {known}");
        findings.error(node.at, &path, message, &remedy);
        None
    }

    /// Reads `A never reaches B`, or `A never reaches B on SERVICE`.
    fn invariant(&self, node: &Node, path: &str, findings: &mut Findings) -> Option<Test> {
        const JOIN: &str = " never reaches ";
        let text = text(node, path, findings)?;
        let Some((from, rest)) = text.split_once(JOIN) else {
            let remedy = "write \"A never reaches B\", or \"A never reaches B on SERVICE\"";
            findings.error(node.at, path, "not an invariant".to_owned(), remedy);
            return None;
        };
        let (to, services) = rest.split_once(" on ").unwrap_or((rest, "any"));
        let begin = place(node, path).at;
        let chars = |t: &str| t.chars().count();
        let after = chars(from) + chars(JOIN);
        let from_place = Place {
            at: begin,
            field: path,
        };
        let to_place = Place {
            at: begin.plus(after),
            field: path,
        };
        let from = devices(from, &self.names, &from_place, findings);
        let to_selector = devices(to, &self.names, &to_place, findings);
        let items = services.split(',').map(|s| Node {
            at: begin.plus(after + chars(to) + chars(" on ")),
            content: Content::Scalar {
                text: s.trim().to_owned(),
                quote: 0,
            },
        });
        let list = Node {
            at: node.at,
            content: Content::List(items.collect()),
        };
        let services = services_of(self.policy, &list, path, findings);
        Some(Test {
            title: text.to_owned(),
            at: node.at,
            kind: TestKind::Invariant {
                from: from?,
                to: to_selector?,
                services: services?,
            },
        })
    }
}
