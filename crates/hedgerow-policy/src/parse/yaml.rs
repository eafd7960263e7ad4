//! The strict subset of YAML: a tree with the place of every node, or every reason why not.

use std::borrow::Cow;
use std::collections::BTreeMap;

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};

use crate::diagnostic::{Findings, Mark};

/// Deepest nesting of maps and lists.
const DEPTH_MAX: usize = 24;
/// Plain words that YAML readers disagree about.
const AMBIGUOUS: [&str; 8] = ["yes", "no", "on", "off", "true", "false", "null", "~"];

/// A value at its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: Mark,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Scalar {
        text: String,
        /// Columns between `at` and the text's first character: the opening quote.
        quote: usize,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
    /// Was refused already; not worth another finding.
    Refused,
}

#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) at: Mark,
    pub(crate) text: String,
}

/// A map or list that is still open.
enum Open {
    List(Mark, Vec<Node>),
    Map(Mark, Vec<(Key, Node)>, Option<Key>, BTreeMap<String, Mark>),
}

/// Reads the one document in `source`; none when it is not YAML or there is nothing.
pub(crate) fn read(source: &str, findings: &mut Findings) -> Option<Node> {
    let mut open: Vec<Open> = Vec::new();
    let mut root: Option<Node> = None;
    let mut documents = 0usize;
    for event in Parser::new_from_str(source) {
        let (event, span) = match event {
            Ok(found) => found,
            Err(e) => {
                let remedy = "mend the YAML; what follows was not read";
                findings.error(
                    mark(e.marker()),
                    "",
                    format!("not YAML: {}", e.info()),
                    remedy,
                );
                return None;
            }
        };
        let at = mark(&span.start);
        let list = matches!(event, Event::SequenceStart(..));
        let node = match event {
            Event::DocumentStart(..) => {
                documents += 1;
                if documents > 1 {
                    let remedy = "one file holds one policy: remove what follows `---`";
                    findings.error(at, "", "a second document".to_owned(), remedy);
                    return root;
                }
                continue;
            }
            Event::Scalar(text, style, anchor, tag) => {
                properties(anchor, tag.as_ref(), at, findings);
                scalar(&text, style, at, &span, &open, findings)
            }
            Event::SequenceStart(_, anchor, tag) | Event::MappingStart(_, anchor, tag) => {
                properties(anchor, tag.as_ref(), at, findings);
                open.push(if list {
                    Open::List(at, Vec::new())
                } else {
                    Open::Map(at, Vec::new(), None, BTreeMap::new())
                });
                if !depth_is_fine(&open, at, findings) {
                    return None;
                }
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(done) => closed(done),
                None => continue,
            },
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                let remedy =
                    "write the value out: anchors and aliases are not part of the language";
                findings.error(at, "", "an alias".to_owned(), remedy);
                Node {
                    at,
                    content: Content::Refused,
                }
            }
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Anchor(..) | _ => {
                continue;
            }
        };
        place(node, &mut open, &mut root, findings);
    }
    root
}

fn closed(open: Open) -> Node {
    match open {
        Open::List(at, items) => Node {
            at,
            content: Content::List(items),
        },
        Open::Map(at, entries, ..) => Node {
            at,
            content: Content::Map(entries),
        },
    }
}

fn depth_is_fine(open: &[Open], at: Mark, findings: &mut Findings) -> bool {
    if open.len() > DEPTH_MAX {
        let remedy = "the language needs five levels";
        findings.error(at, "", format!("nested deeper than {DEPTH_MAX}"), remedy);
    }
    open.len() <= DEPTH_MAX
}

fn properties(anchor: usize, tag: Option<&Cow<'_, Tag>>, at: Mark, findings: &mut Findings) {
    if anchor != 0 {
        let remedy = "write the value out: anchors and aliases are not part of the language";
        findings.error(at, "", "an anchor".to_owned(), remedy);
    }
    if let Some(tag) = tag {
        let message = format!("the tag `{}`", tag.original());
        findings.error(
            at,
            "",
            message,
            "remove it: tags are not part of the language",
        );
    }
}

/// Whether the next node is the key of the innermost map.
fn wants_key(open: &[Open]) -> bool {
    matches!(open.last(), Some(Open::Map(_, _, None, _)))
}

fn scalar(
    text: &str,
    style: ScalarStyle,
    at: Mark,
    span: &Span,
    open: &[Open],
    findings: &mut Findings,
) -> Node {
    let quote = usize::from(!matches!(style, ScalarStyle::Plain));
    let lower = text.to_ascii_lowercase();
    let plain = style == ScalarStyle::Plain;
    let content = if plain && AMBIGUOUS.contains(&lower.as_str()) {
        let message = format!("a bare `{text}`, which YAML readers take for different things");
        findings.error(at, "", message, "quote it if it is meant as text");
        Content::Refused
    } else if plain && text == "<<" && wants_key(open) {
        let remedy = "write the keys out: merge keys are not part of the language";
        findings.error(at, "", "a merge key".to_owned(), remedy);
        Content::Refused
    } else {
        // A text over several lines keeps the place of its beginning.
        let one_line = span.start.line() == span.end.line();
        Content::Scalar {
            text: text.to_owned(),
            quote: if one_line { quote } else { 0 },
        }
    };
    Node { at, content }
}

fn place(node: Node, open: &mut [Open], root: &mut Option<Node>, findings: &mut Findings) {
    match open.last_mut() {
        None => *root = Some(node),
        Some(Open::List(_, items)) => items.push(node),
        Some(Open::Map(_, entries, key, seen)) => match key.take() {
            Some(key) => {
                let first = seen.get(&key.text).filter(|_| !key.text.is_empty());
                if let Some(Mark { line, column }) = first {
                    let message = format!(
                        "the key `{}` stands twice, first at {line}:{column}",
                        key.text
                    );
                    findings.error(key.at, "", message, "keep one of the two");
                } else {
                    seen.insert(key.text.clone(), key.at);
                    entries.push((key, node));
                }
            }
            None => *key = Some(as_key(node, findings)),
        },
    }
}

/// A key that was refused becomes the empty text, which no field has.
fn as_key(node: Node, findings: &mut Findings) -> Key {
    let at = node.at;
    let text = match node.content {
        Content::Scalar { text, .. } => text,
        Content::Refused => String::new(),
        Content::List(_) | Content::Map(_) => {
            findings.error(at, "", "a key that is not text".to_owned(), "write a word");
            String::new()
        }
    };
    Key { at, text }
}

fn mark(marker: &granit_parser::Marker) -> Mark {
    Mark {
        line: u32::try_from(marker.line()).unwrap_or(u32::MAX).max(1),
        column: u32::try_from(marker.col())
            .unwrap_or(u32::MAX)
            .saturating_add(1),
    }
}
