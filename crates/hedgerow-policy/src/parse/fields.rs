//! Reading maps, lists and texts out of the tree, with a finding for whatever is not as it should be.

use hedgerow_model::id::RuleId;

use super::selector::{Place, listed};
use super::yaml::{Content, Key, Node};
use crate::diagnostic::{Findings, Mark};

/// One map under reading. Every key asked for is known; what is left at the end is not.
pub(crate) struct Fields<'n> {
    pub(crate) at: Mark,
    pub(crate) path: String,
    entries: &'n [(Key, Node)],
    asked: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// Takes `node` as a map.
    pub(crate) fn of(node: &'n Node, path: String, findings: &mut Findings) -> Option<Self> {
        let entries = map(node, &path, findings)?;
        Some(Self {
            at: node.at,
            path,
            entries,
            asked: Vec::new(),
        })
    }

    /// Returns the value of `key`, which becomes known by this.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<&'n Node> {
        self.asked.push(key);
        let found = self.entries.iter().find(|(k, _)| k.text == key);
        found.map(|(_, node)| node)
    }

    /// Like [`Self::take`], with a finding when the key is missing.
    pub(crate) fn require(
        &mut self,
        key: &'static str,
        remedy: &str,
        findings: &mut Findings,
    ) -> Option<&'n Node> {
        let found = self.take(key);
        if found.is_none() {
            findings.error(self.at, &self.path, format!("`{key}` is missing"), remedy);
        }
        found
    }

    /// Returns the place in the document of `key`.
    pub(crate) fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Reports every key that nobody asked for; those in `later` by what they would mean.
    pub(crate) fn finish(self, later: &[(&str, &str)], findings: &mut Findings) {
        for (key, _) in self.entries {
            if self.asked.contains(&key.text.as_str()) || key.text.is_empty() {
                continue;
            }
            let path = join(&self.path, &key.text);
            match later.iter().find(|(name, _)| *name == key.text) {
                Some((_, what)) => {
                    let message = format!("not supported yet: {what}");
                    findings.error(key.at, &path, message, "remove it until it is");
                }
                None => {
                    let known = listed(self.asked.iter().copied());
                    let message = format!("unknown key `{}`", key.text);
                    findings.error(key.at, &path, message, &format!("known here: {known}"));
                }
            }
        }
    }
}

/// Spells a place below another.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Takes `node` as a map.
pub(crate) fn map<'n>(
    node: &'n Node,
    path: &str,
    findings: &mut Findings,
) -> Option<&'n [(Key, Node)]> {
    match &node.content {
        Content::Map(entries) => Some(entries),
        Content::Refused => None,
        Content::Scalar { .. } | Content::List(_) => {
            findings.error(
                node.at,
                path,
                "not a map".to_owned(),
                "write { key: value, … }",
            );
            None
        }
    }
}

/// Takes `node` as a list.
pub(crate) fn list<'n>(node: &'n Node, path: &str, findings: &mut Findings) -> Option<&'n [Node]> {
    match &node.content {
        Content::List(items) => Some(items),
        Content::Refused => None,
        Content::Scalar { .. } | Content::Map(_) => {
            findings.error(node.at, path, "not a list".to_owned(), "write [ value, … ]");
            None
        }
    }
}

/// Returns as many of `items` as there may be, with a finding when there are more.
pub(crate) fn bounded<'n, T>(
    items: &'n [T],
    max: usize,
    at: Mark,
    path: &str,
    findings: &mut Findings,
) -> &'n [T] {
    if items.len() > max {
        let message = format!("{} items, at most {max}", items.len());
        findings.error(at, path, message, "join some, or split the policy");
    }
    items.get(..max).unwrap_or(items)
}

/// Takes `node` as a text.
pub(crate) fn text<'n>(node: &'n Node, path: &str, findings: &mut Findings) -> Option<&'n str> {
    match &node.content {
        Content::Scalar { text, .. } => Some(text),
        Content::Refused => None,
        Content::List(_) | Content::Map(_) => {
            findings.error(
                node.at,
                path,
                "not a text".to_owned(),
                "write one word or a quoted text",
            );
            None
        }
    }
}

/// Takes `node` as a text or as a list of texts, each with its node.
pub(crate) fn texts<'n>(
    node: &'n Node,
    path: &str,
    findings: &mut Findings,
) -> Vec<(&'n str, &'n Node)> {
    match &node.content {
        Content::List(items) => items
            .iter()
            .filter_map(|n| Some((text(n, path, findings)?, n)))
            .collect(),
        Content::Scalar { .. } | Content::Map(_) | Content::Refused => text(node, path, findings)
            .map(|t| (t, node))
            .into_iter()
            .collect(),
    }
}

/// Returns where the text of a scalar begins, behind its quote.
pub(crate) fn place<'a>(node: &Node, field: &'a str) -> Place<'a> {
    let quote = match &node.content {
        Content::Scalar { quote, .. } => *quote,
        Content::List(_) | Content::Map(_) | Content::Refused => 0,
    };
    Place {
        at: node.at.plus(quote),
        field,
    }
}

/// Ids that name what is built in.
const RESERVED: [&str; 12] = [
    "default",
    "state",
    "lifeline",
    "quarantine",
    "onboarding",
    "held",
    "guardrail",
    "schedule",
    "org",
    "site",
    "any",
    "internet",
];

/// Takes `text` as the id of a rule, segment, schedule or service.
pub(crate) fn id(text: &str, at: Mark, path: &str, findings: &mut Findings) -> Option<RuleId> {
    if RESERVED.contains(&text) {
        let message = format!("the id `{text}` is built in");
        findings.error(at, path, message, "choose another");
        return None;
    }
    match RuleId::new(text) {
        Ok(id) => Some(id),
        Err(e) => {
            findings.error(at, path, format!("`{text}` is not an id"), e.rule);
            None
        }
    }
}

/// Looks `text` up among words; reports and returns none when it is not there.
pub(crate) fn word<T: Copy>(
    node: &Node,
    path: &str,
    words: &[(&str, T)],
    findings: &mut Findings,
) -> Option<T> {
    let text = text(node, path, findings)?;
    if let Some((_, value)) = words.iter().find(|(w, _)| *w == text) {
        return Some(*value);
    }
    let known = listed(words.iter().map(|(w, _)| *w));
    let message = format!("`{text}` is not known here");
    findings.error(node.at, path, message, &format!("write one of: {known}"));
    None
}
