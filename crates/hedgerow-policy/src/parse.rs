//! From text to a checked [`Policy`], with every mistake at once.
//!
//! ```text
//!  text ─▶ yaml (tree with places) ─▶ sections (names resolved) ─▶ check (meaning) ─▶ Policy
//! ```

mod basics;
mod expectations;
mod fields;
mod rules;
mod selector;
mod yaml;

use std::collections::BTreeMap;

use hedgerow_model::id::NAME_BYTES_MAX;

pub(crate) use basics::ports;
use fields::{Fields, text};
use yaml::Node;

use crate::check;
use crate::compile::mentioned;
use crate::diagnostic::{Diagnostic, Findings, Mark, Severity};
use crate::policy::Policy;

/// Largest policy file, in bytes.
pub const POLICY_BYTES_MAX: usize = 4 << 20;
/// The language's version, as `apiVersion` spells it.
pub const API_VERSION: &str = "hedgerow.policy/v1";

/// What the full language will know at the top of a file.
const LATER: [(&str, &str); 4] = [
    ("access", "just-in-time access"),
    ("delegate", "delegation to sites"),
    ("imports", "imports of device profiles (MUD)"),
    ("rollout", "staged rollout"),
];

/// Reads a policy file; `file` is how findings call it.
///
/// There is a policy exactly when no finding is an error. Findings come in the order of the file.
pub fn parse(source: &str, file: &str) -> (Option<Policy>, Vec<Diagnostic>) {
    let mut findings = Findings {
        file: file.to_owned(),
        list: Vec::new(),
    };
    let policy = read(source, &mut findings);
    findings.list.sort_by_key(|d| (d.line, d.column));
    findings.list.dedup();
    let policy = policy.filter(|_| !findings.has_errors());
    (policy, findings.list)
}

fn read(source: &str, findings: &mut Findings) -> Option<Policy> {
    let start = Mark { line: 1, column: 1 };
    if source.len() > POLICY_BYTES_MAX {
        let message = format!("{} bytes, at most {POLICY_BYTES_MAX}", source.len());
        findings.error(
            start,
            "",
            message,
            "split the policy, or generate fewer rules",
        );
        return None;
    }
    let Some(root) = yaml::read(source, findings) else {
        if !findings.has_errors() {
            let message = "the file holds no policy".to_owned();
            findings.error(
                start,
                "",
                message,
                &format!("begin with apiVersion: {API_VERSION}"),
            );
        }
        return None;
    };
    let policy = document(&root, findings)?;
    // What was refused is left out, so that its absence may look odd: no warnings then.
    let broken = findings.has_errors();
    let before = findings.list.len();
    check::check(&policy, findings);
    if broken {
        let judged = findings.list.split_off(before);
        let errors = judged.into_iter().filter(|d| d.severity == Severity::Error);
        findings.list.extend(errors);
    }
    Some(policy)
}

fn document(root: &Node, findings: &mut Findings) -> Option<Policy> {
    let mut fields = Fields::of(root, String::new(), findings)?;
    header(&mut fields, findings);
    let name = meta(&mut fields, findings);
    let labels = fields.take("labels");
    let services = fields.take("services");
    let schedules = fields.take("schedules");
    let segments = fields.take("segments");
    let guardrails = fields.take("guardrails");
    let rules = fields.take("rules");
    let states = fields.take("states");
    let defaults = fields.take("defaults");
    let tests = fields.take("tests");
    let invariants = fields.take("invariants");
    fields.finish(&LATER, findings);

    let mut policy = Policy {
        name,
        vocabulary: labels.map_or_else(BTreeMap::new, |n| basics::labels(n, findings)),
        services: services.map_or_else(BTreeMap::new, |n| basics::services(n, findings)),
        schedules: schedules.map_or_else(Vec::new, |n| basics::schedules(n, findings)),
        segments: Vec::new(),
        rules: Vec::new(),
        states: BTreeMap::new(),
        sample_seconds: 10,
        unknown_device: None,
        tests: Vec::new(),
        mentioned: BTreeMap::new(),
    };
    let mut segment_ids = Vec::new();
    if let Some(node) = segments {
        (segment_ids, policy.segments) = basics::segments(node, &policy.vocabulary, findings);
    }
    rules::rules(guardrails, rules, &mut policy, &segment_ids, findings);
    rules::states(states, &mut policy, &segment_ids, findings);
    if let Some(node) = defaults {
        basics::defaults(node, &mut policy, findings);
    }
    policy.mentioned = mentioned(&policy);
    for (node, section) in [(tests, "tests"), (invariants, "invariants")] {
        if let Some(node) = node {
            let found = expectations::tests(node, section, &policy, &segment_ids, findings);
            policy.tests.extend(found);
        }
    }
    Some(policy)
}

fn header(fields: &mut Fields<'_>, findings: &mut Findings) {
    let remedy = format!("write apiVersion: {API_VERSION}");
    for (key, want, remedy) in [
        ("apiVersion", API_VERSION, remedy.as_str()),
        ("kind", "Policy", "write kind: Policy"),
    ] {
        let Some(node) = fields.require(key, remedy, findings) else {
            continue;
        };
        if let Some(found) = text(node, key, findings).filter(|t| *t != want) {
            let message = format!("`{found}` is not known");
            findings.error(node.at, key, message, remedy);
        }
    }
}

fn meta(fields: &mut Fields<'_>, findings: &mut Findings) -> String {
    let Some(node) = fields.take("meta") else {
        return "policy".to_owned();
    };
    let Some(mut fields) = Fields::of(node, "meta".to_owned(), findings) else {
        return String::new();
    };
    let name = fields.take("name");
    let owner = fields.take("owner");
    fields.finish(&[], findings);
    if let Some(node) = owner {
        text(node, "meta.owner", findings);
    }
    let Some(node) = name else {
        return "policy".to_owned();
    };
    let Some(name) = text(node, "meta.name", findings) else {
        return String::new();
    };
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        let message = format!("a name of {} bytes", name.len());
        findings.error(node.at, "meta.name", message, "write 1 to 63");
    }
    name.to_owned()
}

/// Whether any finding stops the policy.
pub fn has_errors(findings: &[Diagnostic]) -> bool {
    findings.iter().any(|d| d.severity == Severity::Error)
}

#[cfg(test)]
mod tests;
