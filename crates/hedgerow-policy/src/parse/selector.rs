//! The small grammar of selectors.
//!
//! ```text
//!  or      = and *("or" and)
//!  and     = unary *("and" unary)
//!  unary   = ("not" / "!") unary / "(" or ")" / primary
//!  primary = "any" / key / key "=" value / key "in" "(" value *("," value) ")"
//!          / "segment" "=" id / "internet" / "builtin/controller" / address ["/" bits]
//! ```

use hedgerow_model::address::Prefix;
use hedgerow_model::id::{DeviceId, DeviceName, LabelKey, NameError, RuleId, SiteName};
use hedgerow_model::program::Attribute;

use crate::diagnostic::{Findings, Mark};
use crate::policy::{Endpoint, Selector, Vocabulary};

/// Longest selector, in bytes.
const SELECTOR_BYTES_MAX: usize = 4096;
/// Deepest nesting of parentheses and negations.
const DEPTH_MAX: usize = 24;

/// What selectors may refer to.
pub(crate) struct Names<'a> {
    pub(crate) vocabulary: &'a Vocabulary,
    pub(crate) segments: &'a [RuleId],
}

/// Where a selector stands, for its findings.
pub(crate) struct Place<'a> {
    /// Of the text's first character.
    pub(crate) at: Mark,
    pub(crate) field: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'s> {
    Word(&'s str),
    Equals,
    Open,
    Close,
    Comma,
    Bang,
}

/// A selector with underlay leaves, before the two worlds are told apart.
#[derive(Debug)]
enum Tree {
    Devices(Selector),
    Underlay(Endpoint),
}

struct Fault {
    /// In characters from the beginning.
    column: usize,
    message: String,
    remedy: String,
}

/// Reads one end of a rule; reports and returns none when it is not one.
pub(crate) fn endpoint(
    text: &str,
    names: &Names<'_>,
    place: &Place<'_>,
    findings: &mut Findings,
) -> Option<Endpoint> {
    let fault = match read(text, names) {
        Ok(Tree::Underlay(endpoint)) => return Some(endpoint),
        Ok(Tree::Devices(selector)) => {
            if selector == Selector::Nothing {
                let message = "an empty selector, which selects nothing".to_owned();
                let remedy = "write `any` for every device, or remove the rule";
                findings.warning(place.at, place.field, message, remedy);
            }
            return Some(Endpoint::Devices(selector));
        }
        Err(fault) => fault,
    };
    let at = place.at.plus(fault.column);
    findings.error(at, place.field, fault.message, &fault.remedy);
    None
}

/// Reads a selector of devices; underlay leaves are refused.
pub(crate) fn devices(
    text: &str,
    names: &Names<'_>,
    place: &Place<'_>,
    findings: &mut Findings,
) -> Option<Selector> {
    match endpoint(text, names, place, findings)? {
        Endpoint::Devices(selector) => Some(selector),
        Endpoint::Prefixes(_) | Endpoint::Internet | Endpoint::Controller => {
            let message = format!("`{text}` does not select devices");
            findings.error(
                place.at,
                place.field,
                message,
                "select by labels, name, site or id",
            );
            None
        }
    }
}

fn read(text: &str, names: &Names<'_>) -> Result<Tree, Fault> {
    if text.len() > SELECTOR_BYTES_MAX {
        return Err(fault(
            0,
            "a selector of more than 4096 bytes",
            "define a segment and use it",
        ));
    }
    let tokens = tokens(text)?;
    if tokens.is_empty() {
        return Ok(Tree::Devices(Selector::Nothing));
    }
    let mut reader = Reader {
        tokens: &tokens,
        next: 0,
        end: text.chars().count(),
        names,
    };
    let tree = reader.or(0)?;
    match reader.peek() {
        None => Ok(tree),
        Some(_) => Err(fault(
            reader.column(),
            "the selector does not end here",
            "join conditions by `and` or `or`",
        )),
    }
}

fn fault(column: usize, message: impl Into<String>, remedy: impl Into<String>) -> Fault {
    Fault {
        column,
        message: message.into(),
        remedy: remedy.into(),
    }
}

fn tokens(text: &str) -> Result<Vec<(usize, Token<'_>)>, Fault> {
    let in_word =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '*');
    let mut found = Vec::new();
    let mut chars = text.char_indices().enumerate().peekable();
    while let Some((column, (start, c))) = chars.next() {
        let token = match c {
            ' ' | '\t' | '\n' => continue,
            '=' => Token::Equals,
            '(' => Token::Open,
            ')' => Token::Close,
            ',' => Token::Comma,
            '!' => Token::Bang,
            c if in_word(c) => {
                let mut end = start + c.len_utf8();
                while let Some((_, (at, c))) = chars.next_if(|(_, (_, c))| in_word(*c)) {
                    end = at + c.len_utf8();
                }
                Token::Word(text.get(start..end).unwrap_or_default())
            }
            other => {
                let message = format!("the character `{other}` in a selector");
                return Err(fault(
                    column,
                    message,
                    "write conditions such as role=sensor",
                ));
            }
        };
        found.push((column, token));
    }
    Ok(found)
}

struct Reader<'t, 's, 'n> {
    tokens: &'t [(usize, Token<'s>)],
    next: usize,
    end: usize,
    names: &'n Names<'n>,
}

impl<'s> Reader<'_, 's, '_> {
    fn peek(&self) -> Option<Token<'s>> {
        self.tokens.get(self.next).map(|(_, t)| *t)
    }

    fn column(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |(c, _)| *c)
    }

    fn take(&mut self, wanted: Token<'_>) -> bool {
        let hit = self.peek() == Some(wanted);
        self.next += usize::from(hit);
        hit
    }

    fn or(&mut self, depth: usize) -> Result<Tree, Fault> {
        let mut left = self.and(depth)?;
        loop {
            let column = self.column();
            if !self.take(Token::Word("or")) {
                return Ok(left);
            }
            left = either(left, self.and(depth)?, column)?;
        }
    }

    fn and(&mut self, depth: usize) -> Result<Tree, Fault> {
        let mut left = self.unary(depth)?;
        loop {
            let column = self.column();
            if !self.take(Token::Word("and")) {
                return Ok(left);
            }
            left = match (left, self.unary(depth)?) {
                (Tree::Devices(a), Tree::Devices(b)) => {
                    Tree::Devices(Selector::And(Box::new(a), Box::new(b)))
                }
                _ => return Err(mixed(column)),
            };
        }
    }

    fn unary(&mut self, depth: usize) -> Result<Tree, Fault> {
        let column = self.column();
        if depth > DEPTH_MAX {
            return Err(fault(
                column,
                "a selector nested deeper than 24",
                "define a segment",
            ));
        }
        if self.take(Token::Word("not")) || self.take(Token::Bang) {
            return match self.unary(depth + 1)? {
                Tree::Devices(s) => Ok(Tree::Devices(Selector::Not(Box::new(s)))),
                Tree::Underlay(_) => Err(mixed(column)),
            };
        }
        if self.take(Token::Open) {
            let inner = self.or(depth + 1)?;
            if !self.take(Token::Close) {
                return Err(fault(
                    self.column(),
                    "a parenthesis stays open",
                    "close it by `)`",
                ));
            }
            return Ok(inner);
        }
        match self.peek() {
            Some(Token::Word(word)) if !matches!(word, "and" | "or" | "in") => {
                self.next += 1;
                self.primary(word, column)
            }
            _ => Err(fault(
                column,
                "a condition is missing here",
                "write one such as role=sensor",
            )),
        }
    }

    fn primary(&mut self, word: &str, column: usize) -> Result<Tree, Fault> {
        if self.take(Token::Equals) {
            let (column, value) = self.value()?;
            if word == "segment" {
                return self.segment(value, column).map(Tree::Devices);
            }
            let attribute = self.attribute(word, column)?;
            let value = self.checked(&attribute, value, column)?;
            return Ok(Tree::Devices(Selector::Is(attribute, value)));
        }
        if self.take(Token::Word("in")) {
            let attribute = self.attribute(word, column)?;
            return self.values(attribute).map(Tree::Devices);
        }
        match word {
            "any" => return Ok(Tree::Devices(Selector::Any)),
            "internet" => return Ok(Tree::Underlay(Endpoint::Internet)),
            "builtin/controller" => return Ok(Tree::Underlay(Endpoint::Controller)),
            _ => {}
        }
        if let Some(reason) = unsupported(word) {
            return Err(reason.at(column));
        }
        if word.contains(['/', ':', '.']) {
            return prefix(word, column).map(|p| Tree::Underlay(Endpoint::Prefixes(vec![p])));
        }
        let attribute = self.attribute(word, column)?;
        Ok(Tree::Devices(Selector::Has(attribute)))
    }

    fn value(&mut self) -> Result<(usize, &'s str), Fault> {
        let column = self.column();
        match self.peek() {
            Some(Token::Word(value)) => {
                self.next += 1;
                Ok((column, value))
            }
            _ => Err(fault(column, "a value is missing here", "write key=value")),
        }
    }

    fn values(&mut self, attribute: Attribute) -> Result<Selector, Fault> {
        if !self.take(Token::Open) {
            return Err(fault(
                self.column(),
                "`in` without `(`",
                "write key in (a, b)",
            ));
        }
        let mut values = Vec::new();
        loop {
            let (column, value) = self.value()?;
            values.push(self.checked(&attribute, value, column)?);
            if self.take(Token::Comma) {
                continue;
            }
            if self.take(Token::Close) {
                break;
            }
            return Err(fault(
                self.column(),
                "a parenthesis stays open",
                "close it by `)`",
            ));
        }
        values.sort();
        values.dedup();
        Ok(Selector::In(attribute, values))
    }

    fn segment(&self, value: &str, column: usize) -> Result<Selector, Fault> {
        let found = self.names.segments.iter().position(|s| s.as_str() == value);
        found.map(Selector::Segment).ok_or_else(|| {
            let known = listed(self.names.segments.iter().map(RuleId::as_str));
            let message = format!("the segment `{value}` is not declared");
            fault(
                column,
                message,
                format!("declare it under segments; there are {known}"),
            )
        })
    }

    fn attribute(&self, word: &str, column: usize) -> Result<Attribute, Fault> {
        match word {
            "name" => return Ok(Attribute::Name),
            "site" => return Ok(Attribute::Site),
            "id" => return Ok(Attribute::Id),
            "segment" => {
                return Err(fault(
                    column,
                    "`segment` without a name",
                    "write segment=ot",
                ));
            }
            "state" => {
                let remedy = "states apply by themselves; say what they allow under states";
                return Err(fault(column, "`state` in a selector", remedy));
            }
            _ => {}
        }
        let known = || listed(self.names.vocabulary.keys().map(LabelKey::as_str));
        LabelKey::new(word)
            .ok()
            .filter(|key| self.names.vocabulary.contains_key(key))
            .map(Attribute::Label)
            .ok_or_else(|| {
                let message = format!("the label `{word}` is not declared");
                fault(
                    column,
                    message,
                    format!("declare it under labels; there are {}", known()),
                )
            })
    }

    fn checked(&self, attribute: &Attribute, value: &str, column: usize) -> Result<String, Fault> {
        let named = |r: Result<(), NameError>| match r {
            Ok(()) => Ok(value.to_owned()),
            Err(e) => Err(fault(
                column,
                format!("`{value}` is not a {}", e.what),
                e.rule,
            )),
        };
        match attribute {
            Attribute::Name => named(DeviceName::new(value).map(|_| ())),
            Attribute::Site => named(SiteName::new(value).map(|_| ())),
            Attribute::Id => named(value.parse::<DeviceId>().map(|_| ())),
            Attribute::Label(key) => {
                let values = self.names.vocabulary.get(key);
                let known = || values.into_iter().flatten().map(|v| v.as_str());
                if known().any(|v| v == value) {
                    return Ok(value.to_owned());
                }
                let message = format!("the label {key} has no value `{value}`");
                let remedy = format!(
                    "add it under labels.{key}.values; there are {}",
                    listed(known())
                );
                Err(fault(column, message, remedy))
            }
        }
    }
}

fn mixed(column: usize) -> Fault {
    fault(
        column,
        "devices and underlay addresses in one selector, or a condition on addresses",
        "addresses take `or` among themselves only; write one rule for each",
    )
}

/// Joins by `or`: devices with devices, prefixes with prefixes.
fn either(a: Tree, b: Tree, column: usize) -> Result<Tree, Fault> {
    match (a, b) {
        (Tree::Devices(a), Tree::Devices(b)) => {
            Ok(Tree::Devices(Selector::Or(Box::new(a), Box::new(b))))
        }
        (Tree::Underlay(Endpoint::Prefixes(mut a)), Tree::Underlay(Endpoint::Prefixes(b))) => {
            a.extend(b);
            Ok(Tree::Underlay(Endpoint::Prefixes(a)))
        }
        _ => Err(mixed(column)),
    }
}

struct Unsupported {
    message: String,
    remedy: String,
}

impl Unsupported {
    fn at(self, column: usize) -> Fault {
        fault(column, self.message, self.remedy)
    }
}

/// What the full language will know and this version refuses.
fn unsupported(word: &str) -> Option<Unsupported> {
    let refuse = |what: &str, remedy: String| {
        Some(Unsupported {
            message: format!("not supported yet: {what} (`{word}`)"),
            remedy,
        })
    };
    if word.starts_with("group/") {
        return refuse(
            "groups",
            "select devices by a label, e.g. role=ops".to_owned(),
        );
    }
    if word.starts_with("user/") {
        return refuse(
            "users",
            "select devices by a label, e.g. role=ops".to_owned(),
        );
    }
    if let Some(name) = word.strip_prefix("id/") {
        return refuse(
            "id/…",
            format!("write name={name}, or id= with the device's id"),
        );
    }
    let is_address = word.contains([':', '/']) || !word.contains(|c: char| c.is_ascii_alphabetic());
    if word.contains('.') && !is_address {
        return refuse(
            "names of the DNS",
            "write the addresses, e.g. 192.0.2.0/24".to_owned(),
        );
    }
    None
}

fn prefix(word: &str, column: usize) -> Result<Prefix, Fault> {
    word.parse().map_err(|e: NameError| {
        let message = format!("`{word}` is not a condition and not an address range");
        fault(column, message, e.rule)
    })
}

/// Spells a list of known words for a remedy.
pub(crate) fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.take(12).collect();
    if words.is_empty() {
        "none so far".to_owned()
    } else {
        words.join(", ")
    }
}
