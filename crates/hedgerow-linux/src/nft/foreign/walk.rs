//! One packet through the rules of a table, as far as it can be known.

use std::collections::BTreeMap;

use super::super::wire::CT_NEW;
use super::{Content, Element};
use crate::netlink::{attributes, be32, find, text};

/// Rules looked at for one packet; beyond, it counts as fallen through.
pub(super) const STEPS_MAX: usize = 200_000;
/// The kernel's own bound for jumps.
const DEPTH_MAX: usize = 16;
const NAME_BYTES: usize = 16;

/// What is known of a packet that begins a flow.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) family: u8,
    pub(super) protocol: u8,
    pub(super) input: Option<String>,
    pub(super) output: Option<String>,
    pub(super) source_port: Option<u16>,
    pub(super) destination_port: Option<u16>,
}

/// How a chain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Accepted,
    Refused,
    FellThrough,
}

/// What a rule does with what matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Refuse,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    /// Reads `NFTA_DATA_VERDICT` inside of data.
    pub(super) fn decode(data: &[u8]) -> Option<Self> {
        let verdict = find(data, 2)?;
        let chain = || find(verdict, 2).map(text);
        match i32::from_be_bytes(*find(verdict, 1)?.first_chunk()?) {
            0 => Some(Self::Refuse),
            1 => Some(Self::Accept),
            -3 => chain().map(Self::Jump),
            -4 => chain().map(Self::Goto),
            -5 => Some(Self::Return),
            _ => None,
        }
    }
}

/// Whether something matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    Yes,
    No,
    Unknown,
}

impl From<bool> for Match {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// One expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Load {
        to: u32,
        source: Source,
    },
    Mask {
        from: u32,
        to: u32,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Lookup(Lookup),
    Test(Test),
    End(Verdict),
}

/// What a register is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Meta { key: u32 },
    State,
    Payload { base: u32, offset: u32, bytes: u32 },
    Unknown,
}

/// Whether a register's value is in a set, or what a map has for it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lookup {
    set: String,
    inverted: bool,
    verdict: bool,
    register: u32,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Compare {
        operator: u32,
        with: Vec<u8>,
        register: u32,
    },
    Range {
        inverted: bool,
        from: Vec<u8>,
        to: Vec<u8>,
        register: u32,
    },
    /// `-p udp --dport …` of `iptables`.
    Ports {
        source: (u16, u16),
        destination: (u16, u16),
        inversions: u8,
    },
    /// `-m multiport --dports …`.
    Multiport {
        ranges: Vec<(u16, u16)>,
        inverted: bool,
    },
    /// `-m conntrack --ctstate …`: whether a new flow matches.
    NewFlow(bool),
    /// Not understood.
    Unknown,
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rule(Vec<Step>);

impl Rule {
    pub(super) fn decode(list: &[u8]) -> Self {
        let expressions = attributes(list).map(|(_, expression)| {
            let name = find(expression, 1).map(text).unwrap_or_default();
            let data = find(expression, 2).unwrap_or_default();
            decode(&name, data)
        });
        Self(expressions.flatten().collect())
    }

    /// Returns the sets that it looks into.
    pub(super) fn sets(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|step| match step {
            Step::Lookup(lookup) => Some(lookup.set.as_str()),
            Step::Load { .. } | Step::Mask { .. } | Step::Test(_) | Step::End(_) => None,
        })
    }
}

/// Returns nothing for what neither matches nor decides: counters, logs, comments.
fn decode(name: &str, data: &[u8]) -> Option<Step> {
    const PASSING: [&str; 6] = ["counter", "log", "objref", "notrack", "last", "nat"];
    if PASSING.contains(&name) {
        return None;
    }
    if name == "reject" {
        return Some(Step::End(Verdict::Refuse));
    }
    let number = |kind| find(data, kind).and_then(be32);
    let value = |kind| {
        find(data, kind)
            .and_then(|d| find(d, 1))
            .map(<[u8]>::to_vec)
    };
    let load = |source, to| {
        Some(Step::Load {
            source,
            to: register(number(to)?),
        })
    };
    let step = || match name {
        "meta" => load(Source::Meta { key: number(2)? }, 1),
        "ct" if number(2)? == 0 => load(Source::State, 1),
        "payload" => load(
            Source::Payload {
                base: number(2)?,
                offset: number(3)?,
                bytes: number(4)?,
            },
            1,
        ),
        "fib" | "ct" | "rt" | "socket" | "hash" | "numgen" | "exthdr" => load(Source::Unknown, 1),
        "bitwise" if number(6).unwrap_or(0) == 0 => Some(Step::Mask {
            from: register(number(1)?),
            to: register(number(2)?),
            mask: value(4)?,
            xor: value(5)?,
        }),
        "bitwise" | "byteorder" => load(Source::Unknown, 2),
        "cmp" => Some(Step::Test(Test::Compare {
            operator: number(2)?,
            with: value(3)?,
            register: register(number(1)?),
        })),
        "range" => Some(Step::Test(Test::Range {
            inverted: number(2)? == 1,
            from: value(3)?,
            to: value(4)?,
            register: register(number(1)?),
        })),
        "lookup" => Some(Step::Lookup(Lookup {
            set: text(find(data, 1)?),
            inverted: number(5).unwrap_or(0) & 1 != 0,
            verdict: number(3) == Some(0),
            register: register(number(2)?),
        })),
        "immediate" => Verdict::decode(find(data, 2)?).map(Step::End),
        "match" => extension(&text(find(data, 1)?), number(2)?, find(data, 3)?).map(Step::Test),
        _ => None,
    };
    match (name, find(data, 1).map(text).as_deref()) {
        ("target", Some("REJECT" | "DROP")) => Some(Step::End(Verdict::Refuse)),
        // Other targets, and what is written to a packet, let it go on.
        ("target", _) | ("match", Some("comment")) => None,
        ("meta", _) if find(data, 3).is_some() => None,
        ("payload", _) if find(data, 5).is_some() => None,
        ("immediate", _) => step(),
        _ => Some(step().unwrap_or(Step::Test(Test::Unknown))),
    }
}

/// What the `iptables` extensions match (`linux/netfilter/xt_*.h`).
fn extension(name: &str, revision: u32, info: &[u8]) -> Option<Test> {
    const CONNTRACK_STATE: u16 = 1;
    let byte = |at: usize| info.get(at).copied();
    let word = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    match name {
        "udp" | "tcp" => Some(Test::Ports {
            source: (word(0)?, word(2)?),
            destination: (word(4)?, word(6)?),
            // What a TCP rule wants of options and flags is not looked at: it is not our packet.
            inversions: if name == "udp" { byte(8)? } else { byte(11)? },
        }),
        "multiport" if revision == 1 && byte(0)? != 0 => {
            let mut ranges = Vec::new();
            let mut first = None;
            for index in 0..usize::from(byte(1)?).min(15) {
                let port = word(2 + 2 * index)?;
                if byte(32 + index)? != 0 {
                    first = Some(port);
                } else {
                    ranges.push((first.take().unwrap_or(port), port));
                }
            }
            Some(Test::Multiport {
                ranges,
                inverted: byte(47)? != 0,
            })
        }
        "conntrack" if revision >= 2 && word(146)? == CONNTRACK_STATE => {
            let covers_new = u32::from(word(150)?) & CT_NEW != 0;
            let inverted = word(148)? & CONNTRACK_STATE != 0;
            Some(Test::NewFlow(covers_new != inverted))
        }
        _ => None,
    }
}

/// The old sixteen-byte registers 1 to 4 begin where the four-byte ones 8, 12, 16, 20 do.
fn register(number: u32) -> u32 {
    match number {
        1..=4 => 4 + number * 4,
        n => n,
    }
}

/// Follows the packet through a chain and those it jumps to.
pub(super) fn chain(
    table: &Content,
    name: &str,
    packet: &Packet,
    depth: usize,
    steps: &mut usize,
) -> Fate {
    let rules = table.chains.get(name).map(|c| c.rules.as_slice());
    for rule in rules.unwrap_or_default() {
        *steps = steps.saturating_sub(1);
        if *steps == 0 || depth > DEPTH_MAX {
            break;
        }
        let Some((certain, verdict)) = run(table, rule, packet) else {
            continue;
        };
        let inner = |to: &str, steps: &mut usize| chain(table, to, packet, depth + 1, steps);
        let fate = match &verdict {
            Verdict::Accept => Fate::Accepted,
            Verdict::Refuse => Fate::Refused,
            Verdict::Return => return Fate::FellThrough,
            Verdict::Jump(to) => inner(to, steps),
            Verdict::Goto(to) => match inner(to, steps) {
                Fate::FellThrough if certain => return Fate::FellThrough,
                fate @ (Fate::Accepted | Fate::Refused | Fate::FellThrough) => fate,
            },
        };
        let jumps = matches!(verdict, Verdict::Jump(_) | Verdict::Goto(_));
        match fate {
            Fate::FellThrough => {}
            // A chain of its own that lets the packet through is there for packets like it.
            Fate::Accepted if certain || jumps => return fate,
            Fate::Refused if certain => return fate,
            Fate::Accepted | Fate::Refused => {}
        }
    }
    Fate::FellThrough
}

type Registers = BTreeMap<u32, Vec<u8>>;

/// Returns the rule's verdict and whether it is certain that it applies; none when it does not.
fn run(table: &Content, rule: &Rule, packet: &Packet) -> Option<(bool, Verdict)> {
    let mut registers = Registers::new();
    let mut certain = true;
    for step in &rule.0 {
        let found = match step {
            Step::End(verdict) => return Some((certain, verdict.clone())),
            Step::Lookup(lookup) if lookup.verdict => {
                let element = lookup.find(table, &registers)??;
                return Some((certain, element.verdict.clone()?));
            }
            Step::Lookup(lookup) => match lookup.find(table, &registers) {
                Some(element) => (element.is_some() != lookup.inverted).into(),
                None => Match::Unknown,
            },
            Step::Load { to, source } => {
                write(&mut registers, *to, packet.load(*source));
                Match::Yes
            }
            Step::Mask {
                from,
                to,
                mask,
                xor,
            } => {
                let value = registers.get(from).map(|v| {
                    let bits = v.iter().zip(mask).zip(xor);
                    bits.map(|((v, m), x)| v & m ^ x).collect()
                });
                write(&mut registers, *to, value);
                Match::Yes
            }
            Step::Test(test) => test.holds(packet, &registers),
        };
        match found {
            Match::Yes => {}
            Match::No => return None,
            Match::Unknown => certain = false,
        }
    }
    None
}

fn write(registers: &mut Registers, to: u32, value: Option<Vec<u8>>) {
    match value {
        Some(value) => drop(registers.insert(to, value)),
        None => drop(registers.remove(&to)),
    }
}

impl Lookup {
    /// Returns the element that holds the key; the outer `None` says that it cannot be known.
    fn find<'a>(&self, table: &'a Content, registers: &Registers) -> Option<Option<&'a Element>> {
        look_up(table.sets.get(&self.set)?, registers.get(&self.register)?)
    }
}

impl Test {
    fn holds(&self, packet: &Packet, registers: &Registers) -> Match {
        let value = |register, bytes| registers.get(register).and_then(|v| v.get(..bytes));
        match self {
            Self::Compare {
                operator,
                with,
                register,
            } => {
                let Some(order) = value(register, with.len()).map(|v| v.cmp(with)) else {
                    return Match::Unknown;
                };
                match operator {
                    0 => order.is_eq().into(),
                    1 => order.is_ne().into(),
                    2 => order.is_lt().into(),
                    3 => order.is_le().into(),
                    4 => order.is_gt().into(),
                    5 => order.is_ge().into(),
                    _ => Match::Unknown,
                }
            }
            Self::Range {
                inverted,
                from,
                to,
                register,
            } => match value(register, from.len()) {
                Some(v) => ((from.as_slice() <= v && v <= to.as_slice()) != *inverted).into(),
                None => Match::Unknown,
            },
            Self::Ports {
                source,
                destination,
                inversions,
            } => {
                let source = within(packet.source_port, &[*source], inversions & 1 != 0);
                let inverted = inversions & 2 != 0;
                match (
                    source,
                    within(packet.destination_port, &[*destination], inverted),
                ) {
                    (Match::No, _) | (_, Match::No) => Match::No,
                    (Match::Yes, Match::Yes) => Match::Yes,
                    _ => Match::Unknown,
                }
            }
            Self::Multiport { ranges, inverted } => {
                within(packet.destination_port, ranges, *inverted)
            }
            Self::NewFlow(matches) => (*matches).into(),
            Self::Unknown => Match::Unknown,
        }
    }
}

fn within(port: Option<u16>, ranges: &[(u16, u16)], inverted: bool) -> Match {
    match port {
        _ if ranges == [(0, u16::MAX)] && !inverted => Match::Yes,
        Some(port) => (ranges.iter().any(|(a, b)| (*a..=*b).contains(&port)) != inverted).into(),
        None => Match::Unknown,
    }
}

/// Finds the element that holds the key; keys of another length are not compared.
fn look_up<'a>(list: &'a [Element], key: &[u8]) -> Option<Option<&'a Element>> {
    if list.iter().any(|e| e.key.len() != key.len()) {
        return None;
    }
    if !list.iter().any(|e| e.is_end) {
        return Some(list.iter().find(|e| e.key == key));
    }
    // An interval begins at an element and ends before the next one that is an end.
    let below = list.iter().filter(|e| e.key.as_slice() <= key);
    let nearest = below.max_by(|a, b| a.key.cmp(&b.key).then(b.is_end.cmp(&a.is_end)));
    Some(nearest.filter(|e| !e.is_end))
}

impl Packet {
    fn load(&self, source: Source) -> Option<Vec<u8>> {
        match source {
            Source::Meta { key } => self.meta(key),
            Source::State => Some(CT_NEW.to_ne_bytes().to_vec()),
            Source::Payload {
                base,
                offset,
                bytes,
            } => self.payload(base, offset, bytes),
            Source::Unknown => None,
        }
    }

    fn meta(&self, key: u32) -> Option<Vec<u8>> {
        const INPUT_NAME: u32 = 6;
        const OUTPUT_NAME: u32 = 7;
        const FAMILY: u32 = 15;
        const PROTOCOL: u32 = 16;
        match key {
            INPUT_NAME => self.input.as_deref().map(name),
            OUTPUT_NAME => self.output.as_deref().map(name),
            FAMILY => Some(vec![self.family]),
            PROTOCOL => Some(vec![self.protocol]),
            _ => None,
        }
    }

    fn payload(&self, base: u32, offset: u32, bytes: u32) -> Option<Vec<u8>> {
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        let is_v4 = self.family == super::NFPROTO_IPV4;
        let port = |p: Option<u16>| Some(p?.to_be_bytes().to_vec());
        match (base, offset, bytes) {
            (TRANSPORT, 0, 2) => port(self.source_port),
            (TRANSPORT, 2, 2) => port(self.destination_port),
            (NETWORK, 9, 1) if is_v4 => Some(vec![self.protocol]),
            (NETWORK, 6, 1) if !is_v4 => Some(vec![self.protocol]),
            _ => None,
        }
    }
}

/// An interface's name as the kernel loads it.
fn name(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(NAME_BYTES, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(destination_port: Option<u16>) -> Packet {
        Packet {
            family: super::super::NFPROTO_IPV4,
            protocol: 17,
            input: None,
            output: None,
            source_port: None,
            destination_port,
        }
    }

    fn holds(name: &str, revision: u32, info: &[u8], port: Option<u16>) -> Match {
        let test = extension(name, revision, info).unwrap_or(Test::Unknown);
        test.holds(&packet(port), &Registers::new())
    }

    #[test]
    fn the_matches_of_iptables_are_read() {
        let mut udp = [0; 10];
        for (at, port) in [(0, 0u16), (2, u16::MAX), (4, 7117), (6, 7118)] {
            udp[at..at + 2].copy_from_slice(&port.to_ne_bytes());
        }
        assert_eq!(holds("udp", 0, &udp, Some(7117)), Match::Yes);
        assert_eq!(holds("udp", 0, &udp, Some(7119)), Match::No);
        assert_eq!(holds("udp", 0, &udp, None), Match::Unknown);
        udp[8] = 2;
        assert_eq!(holds("udp", 0, &udp, Some(7117)), Match::No);

        let mut multiport = [0; 48];
        (multiport[0], multiport[1], multiport[33]) = (1, 3, 1);
        for (at, port) in [(2, 22u16), (4, 7000), (6, 7200)] {
            multiport[at..at + 2].copy_from_slice(&port.to_ne_bytes());
        }
        for (port, found) in [(22, Match::Yes), (7117, Match::Yes), (7201, Match::No)] {
            assert_eq!(holds("multiport", 1, &multiport, Some(port)), found);
        }

        let mut conntrack = [0; 160];
        conntrack[146..148].copy_from_slice(&1u16.to_ne_bytes());
        conntrack[150..152].copy_from_slice(&6u16.to_ne_bytes());
        assert_eq!(holds("conntrack", 3, &conntrack, None), Match::No);
        conntrack[150..152].copy_from_slice(&8u16.to_ne_bytes());
        assert_eq!(holds("conntrack", 3, &conntrack, None), Match::Yes);

        assert_eq!(holds("recent", 0, &[], Some(22)), Match::Unknown);
        for cut in 0..9 {
            assert_eq!(holds("udp", 0, &udp[..cut], Some(7117)), Match::Unknown);
        }
    }

    #[test]
    fn chains_that_jump_in_circles_end() {
        let jump = |to: &str| Rule(vec![Step::End(Verdict::Jump(to.to_owned()))]);
        let mut table = Content::default();
        for (name, to) in [("a", "b"), ("b", "a")] {
            let chain = table.chains.entry(name.to_owned()).or_default();
            chain.rules = vec![jump(to), jump(to), jump(to)];
        }
        let mut steps = STEPS_MAX;
        let fate = chain(&table, "a", &packet(None), 0, &mut steps);
        assert_eq!(fate, Fate::FellThrough);
    }
}
