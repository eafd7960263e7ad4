//! The kernel's vocabulary: message numbers, attributes, expressions (`linux/netfilter/nf_tables.h`).

use crate::netlink::{APPEND, Attributes, CREATE, Request};

pub(super) const TABLE: &str = "hedgerow";

pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const BATCH_BEGIN: u16 = 0x10;
pub(super) const BATCH_END: u16 = 0x11;

/// Message numbers within the subsystem: new, get and delete of each kind of object.
pub(super) mod message {
    pub(in crate::nft) const NEW_TABLE: u16 = 0;
    pub(in crate::nft) const GET_TABLE: u16 = 1;
    pub(in crate::nft) const DELETE_TABLE: u16 = 2;
    pub(in crate::nft) const NEW_CHAIN: u16 = 3;
    pub(in crate::nft) const GET_CHAIN: u16 = 4;
    pub(in crate::nft) const NEW_RULE: u16 = 6;
    pub(in crate::nft) const GET_RULE: u16 = 7;
    pub(in crate::nft) const NEW_SET: u16 = 9;
    pub(in crate::nft) const GET_SET: u16 = 10;
    pub(in crate::nft) const NEW_ELEMENT: u16 = 12;
    pub(in crate::nft) const GET_ELEMENT: u16 = 13;
    pub(in crate::nft) const DELETE_ELEMENT: u16 = 14;
    pub(in crate::nft) const NEW_OBJECT: u16 = 18;
    pub(in crate::nft) const GET_OBJECT: u16 = 19;
}

pub(super) const TABLE_OWNER: u32 = 0x2;
pub(super) const TABLE_PERSIST: u32 = 0x4;

pub(super) const SET_INTERVAL: u32 = 0x4;
pub(super) const SET_MAP: u32 = 0x8;
pub(super) const SET_TIMEOUT: u32 = 0x10;
pub(super) const SET_DYNAMIC: u32 = 0x20;
pub(super) const SET_CONCAT: u32 = 0x80;
pub(super) const ELEMENT_INTERVAL_END: u32 = 0x1;
pub(super) const DATA_VERDICT: u32 = 0xffff_ff00;
pub(super) const OBJECT_COUNTER: u32 = 1;

pub(super) const FAMILY_UNSPEC: u8 = 0;
pub(super) const FAMILY_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;

pub(super) const CT_INVALID: u32 = 0x1;
pub(super) const CT_RELATED: u32 = 0x4;
pub(super) const CT_NEW: u32 = 0x8;
pub(super) const CT_UNTRACKED: u32 = 0x40;

/// How `nft` shows a value; the kernel only keeps the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    Mark,
}

impl Shown {
    fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
        }
    }

    /// Length in bytes, before padding to a register.
    fn length(self) -> u32 {
        match self {
            Self::Ipv4 | Self::Mark => 4,
            Self::Ipv6 => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }
}

/// Where a packet goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Accept,
    Drop,
    Goto(String),
}

impl Target {
    pub(super) fn goto(chain: impl Into<String>) -> Self {
        Self::Goto(chain.into())
    }

    /// Writes `NFTA_DATA_VERDICT`.
    pub(super) fn write(&self, a: &mut Attributes) {
        const DROP: u32 = 0;
        const ACCEPT: u32 = 1;
        const GOTO: u32 = 0xffff_fffc;
        a.nested(2, |a| {
            match self {
                Self::Accept => a.be32(1, ACCEPT),
                Self::Drop => a.be32(1, DROP),
                Self::Goto(chain) => a.be32(1, GOTO).text(2, chain),
            };
        });
    }
}

/// The fixed part of every nfnetlink message.
pub(super) fn head(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

pub(super) fn request(message: u16, flags: u16) -> Request {
    Request::new(SUBSYSTEM << 8 | message, flags, &head(FAMILY_INET, 0))
}

/// A question about tables of every family.
pub(super) fn question(message: u16) -> Request {
    Request::new(SUBSYSTEM << 8 | message, 0, &head(FAMILY_UNSPEC, 0))
}

pub(super) fn batch_mark(kind: u16) -> Request {
    Request::new(kind, 0, &head(FAMILY_UNSPEC, SUBSYSTEM))
}

/// A table; `comment` says to people what it is.
pub(super) fn table(name: &str, flags: u32, comment: &str) -> Request {
    request(message::NEW_TABLE, CREATE).attributes(|a| {
        a.text(1, name).be32(2, flags);
        if !comment.is_empty() {
            a.bytes(6, &user_text(comment));
        }
    })
}

pub(super) fn delete_table(name: &str) -> Request {
    request(message::DELETE_TABLE, 0).attributes(|a| {
        a.text(1, name);
    })
}

/// Where packets enter a base chain.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hook {
    Input = 1,
    Forward = 2,
    Output = 3,
}

/// A chain; with a hook it is a base chain that accepts what falls through.
pub(super) fn chain(name: &str, hook: Option<(Hook, u32)>) -> Request {
    chain_of_table(TABLE, name, hook)
}

/// A chain of another table than ours.
pub(super) fn chain_of_table(table: &str, name: &str, hook: Option<(Hook, u32)>) -> Request {
    request(message::NEW_CHAIN, CREATE).attributes(|a| {
        a.text(1, table).text(3, name);
        if let Some((hook, priority)) = hook {
            a.nested(4, |a| {
                a.be32(1, hook as u32).be32(2, priority);
            });
            a.be32(5, 1).text(7, "filter");
        }
    })
}

pub(super) fn counter(name: &str) -> Request {
    request(message::NEW_OBJECT, CREATE).attributes(|a| {
        a.text(1, TABLE).text(2, name).be32(3, OBJECT_COUNTER);
        a.nested(4, |a| {
            a.be64(1, 0).be64(2, 0);
        });
    })
}

/// What a set's elements carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carries {
    Nothing,
    /// A word that is not used, and a profile.
    Profile,
    Verdict,
}

/// A set or map.
#[derive(Debug, Clone, Copy)]
pub(super) struct Set<'a> {
    pub(super) name: &'a str,
    pub(super) key: &'a [Shown],
    pub(super) carries: Carries,
    /// Beyond what key and data imply: interval, timeout, dynamic.
    pub(super) flags: u32,
    /// Most elements; 0 is no bound of the kernel's.
    pub(super) size: u32,
    /// What an element gets that asks for none, in milliseconds.
    pub(super) timeout_ms: u64,
}

impl<'a> Set<'a> {
    pub(super) fn new(name: &'a str, key: &'a [Shown], carries: Carries, flags: u32) -> Self {
        Self {
            name,
            key,
            carries,
            flags,
            size: 0,
            timeout_ms: 0,
        }
    }

    pub(super) fn request(&self, id: u32) -> Request {
        let lengths = self.key.iter().map(|k| k.length().next_multiple_of(4));
        let key_type = self.key.iter().fold(0, |t, k| t << 6 | k.number());
        let concat = if self.key.len() > 1 { SET_CONCAT } else { 0 };
        let map = if self.carries == Carries::Nothing {
            0
        } else {
            SET_MAP
        };
        request(message::NEW_SET, CREATE).attributes(|a| {
            a.text(1, TABLE).text(2, self.name);
            a.be32(3, self.flags | concat | map);
            a.be32(4, key_type).be32(5, lengths.sum());
            match self.carries {
                Carries::Nothing => {}
                Carries::Profile => {
                    let mark = Shown::Mark.number();
                    a.be32(6, mark << 6 | mark).be32(7, 8);
                }
                Carries::Verdict => {
                    a.be32(6, DATA_VERDICT).be32(7, 0);
                }
            }
            a.nested(9, |a| self.describe(a));
            a.be32(10, id);
            if self.timeout_ms > 0 {
                a.be64(11, self.timeout_ms);
            }
            a.bytes(13, &byte_orders(self.key, self.carries));
        })
    }

    fn describe(&self, a: &mut Attributes) {
        if self.size > 0 {
            a.be32(1, self.size);
        }
        if self.key.len() > 1 {
            a.nested(2, |a| {
                for field in self.key {
                    a.nested(1, |a| {
                        a.be32(1, field.length());
                    });
                }
            });
        }
    }
}

/// Tells `nft` how to print: marks are in the machine's order, the rest in the network's.
fn byte_orders(key: &[Shown], carries: Carries) -> Vec<u8> {
    const HOST: u32 = 1;
    const NETWORK: u32 = 2;
    let order = |mark| if mark { HOST } else { NETWORK };
    let mut out = Vec::new();
    let list = [
        (0u8, key == [Shown::Mark]),
        (1, carries == Carries::Profile),
    ];
    for (kind, is_mark) in list {
        out.extend_from_slice(&[kind, 4]);
        out.extend_from_slice(&order(is_mark).to_ne_bytes());
    }
    out
}

/// A comment as `nft` keeps it: type 0, length, text.
fn user_text(text: &str) -> Vec<u8> {
    let mut cut = text.as_bytes().to_vec();
    cut.truncate(120);
    cut.push(0);
    let mut out = vec![0, u8::try_from(cut.len()).unwrap_or(u8::MAX)];
    out.append(&mut cut);
    out
}

/// Registers by what lies in them. A peer's address takes one or four of four bytes; what follows
/// makes up the key of the verdict maps. Where one of the old sixteen-byte registers begins, the
/// kernel shows its number, so it is written with that: 1 begins where 8 does, 2 where 12 does.
pub(super) mod register {
    pub(in crate::nft) const FIRST: u32 = 1;
    /// After an IPv4 address in [`FIRST`].
    pub(in crate::nft) const SECOND: u32 = 9;
    /// Where a peer's data goes, after an IPv6 address in [`FIRST`]: an unused word, the profile.
    pub(in crate::nft) const PEER: u32 = 2;
    pub(in crate::nft) const PROFILE: u32 = 13;
    pub(in crate::nft) const PROTOCOL: u32 = 14;
    pub(in crate::nft) const PORT: u32 = 15;
    pub(super) const VERDICT: u32 = 0;
}

/// What `meta` reads.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meta {
    Mark = 3,
    InputIndex = 4,
    InputName = 6,
    OutputName = 7,
    Family = 15,
    Protocol = 16,
    TimeNanoseconds = 30,
}

/// What `ct` reads.
#[derive(Debug, Clone, Copy)]
pub(super) enum Track {
    State = 0,
    Direction = 1,
}

/// Where a payload offset counts from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Header {
    Network = 1,
    Transport = 2,
}

/// How two values are compared.
#[derive(Debug, Clone, Copy)]
pub(super) enum Compare {
    Equal = 0,
    NotEqual = 1,
    Less = 2,
    AtMost = 3,
    AtLeast = 5,
}

/// One rule under construction: expressions run left to right until one does not match.
#[derive(Debug)]
pub(super) struct Rule {
    table: String,
    chain: String,
    comment: String,
    list: Attributes,
}

impl Rule {
    pub(super) fn new(chain: impl Into<String>) -> Self {
        Self::of_table(TABLE, chain)
    }

    /// Begins a rule of another table than ours.
    pub(super) fn of_table(table: &str, chain: impl Into<String>) -> Self {
        Self {
            table: table.to_owned(),
            chain: chain.into(),
            comment: String::new(),
            list: Attributes::default(),
        }
    }

    pub(super) fn comment(mut self, text: impl Into<String>) -> Self {
        self.comment = text.into();
        self
    }

    pub(super) fn request(self) -> Request {
        let Self {
            table,
            chain,
            comment,
            list,
        } = self;
        request(message::NEW_RULE, CREATE | APPEND).attributes(|a| {
            a.text(1, &table).text(2, &chain);
            a.nested(4, |a| a.append(list));
            if !comment.is_empty() {
                a.bytes(7, &user_text(&comment));
            }
        })
    }

    fn expression(mut self, name: &str, fill: impl FnOnce(&mut Attributes)) -> Self {
        self.list.nested(1, |a| {
            a.text(1, name).nested(2, fill);
        });
        self
    }

    pub(super) fn meta(self, key: Meta, to: u32) -> Self {
        self.expression("meta", |a| {
            a.be32(2, key as u32).be32(1, to);
        })
    }

    pub(super) fn track(self, key: Track, to: u32) -> Self {
        self.expression("ct", |a| {
            a.be32(2, key as u32).be32(1, to);
        })
    }

    /// Reads which group, at this depth, the packet's socket belongs to: its number, eight bytes in
    /// the machine's order. Does not go on when there is no socket.
    pub(super) fn control_group(self, level: u8, to: u32) -> Self {
        self.expression("socket", |a| {
            const CONTROL_GROUP: u32 = 3;
            a.be32(1, CONTROL_GROUP).be32(2, to).be32(3, level.into());
        })
    }

    pub(super) fn payload(self, from: Header, offset: u32, length: u32, to: u32) -> Self {
        self.expression("payload", |a| {
            a.be32(1, to).be32(2, from as u32);
            a.be32(3, offset).be32(4, length);
        })
    }

    pub(super) fn compare(self, how: Compare, with: &[u8], register: u32) -> Self {
        self.expression("cmp", |a| {
            a.be32(1, register).be32(2, how as u32);
            a.nested(3, |a| {
                a.bytes(1, with);
            });
        })
    }

    pub(super) fn mask(self, mask: &[u8], register: u32) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(0);
        self.expression("bitwise", |a| {
            a.be32(1, register).be32(2, register).be32(3, length);
            a.nested(4, |a| {
                a.bytes(1, mask);
            });
            a.nested(5, |a| {
                a.bytes(1, &vec![0; mask.len()]);
            });
            a.be32(6, 0);
        })
    }

    /// Turns eight bytes from the machine's order into the network's, which is what ordering needs.
    pub(super) fn network_order_64(self, register: u32) -> Self {
        self.expression("byteorder", |a| {
            a.be32(1, register).be32(2, register);
            a.be32(3, 1).be32(4, 8).be32(5, 8);
        })
    }

    /// Goes on when the key is in the set.
    pub(super) fn in_set(self, set: &str, key: u32) -> Self {
        self.lookup(set, key, None, false)
    }

    /// Goes on when the key is not in the set.
    pub(super) fn not_in_set(self, set: &str, key: u32) -> Self {
        self.lookup(set, key, None, true)
    }

    /// Goes on with what the map has for the key.
    pub(super) fn read_map(self, map: &str, key: u32, to: u32) -> Self {
        self.lookup(map, key, Some(to), false)
    }

    /// Ends with the verdict that the map has for the key; goes on when it has none.
    pub(super) fn verdict_map(self, map: &str, key: u32) -> Self {
        self.lookup(map, key, Some(register::VERDICT), false)
    }

    fn lookup(self, set: &str, key: u32, to: Option<u32>, inverted: bool) -> Self {
        self.expression("lookup", |a| {
            a.text(1, set).be32(2, key);
            if let Some(to) = to {
                a.be32(3, to);
            }
            a.be32(5, u32::from(inverted));
        })
    }

    pub(super) fn count(self, counter: &str) -> Self {
        self.expression("objref", |a| {
            a.be32(1, OBJECT_COUNTER).text(2, counter);
        })
    }

    /// Goes on for at most `rate` packets per `unit` seconds and `burst` at once.
    pub(super) fn limit_packets(self, rate: u64, unit: u64, burst: u32) -> Self {
        self.expression("limit", |a| limit(a, rate, unit, burst, 0))
    }

    /// Keeps a limit per key in the set; goes on while the packet is inside it, and not when the
    /// set is full.
    pub(super) fn meter(self, set: &str, key: u32, limit: Meter) -> Self {
        self.expression("dynset", |a| {
            const UPDATE: u32 = 1;
            const HAS_EXPRESSION: u32 = 2;
            a.text(1, set).be32(3, UPDATE).be32(4, key);
            a.be32(9, HAS_EXPRESSION);
            a.nested(7, |a| {
                a.text(1, "limit");
                a.nested(2, |a| limit.write(a));
            });
        })
    }

    pub(super) fn log(self, group: u16, prefix: &str, bytes: u32) -> Self {
        self.expression("log", |a| {
            a.be16(1, group).text(2, prefix).be32(3, bytes);
        })
    }

    pub(super) fn reject_tcp(self) -> Self {
        self.expression("reject", |a| {
            a.be32(1, 1);
        })
    }

    pub(super) fn reject_prohibited(self) -> Self {
        self.expression("reject", |a| {
            a.be32(1, 2).bytes(2, &[3]);
        })
    }

    pub(super) fn then(self, target: &Target) -> Self {
        self.expression("immediate", |a| {
            a.be32(1, register::VERDICT);
            a.nested(2, |a| target.write(a));
        })
    }
}

/// A limit that a dynamic set keeps per key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meter {
    Bytes { per_second: u64, burst: u32 },
    Packets { per_second: u64, burst: u32 },
}

impl Meter {
    fn write(self, a: &mut Attributes) {
        match self {
            Self::Bytes { per_second, burst } => limit(a, per_second, 1, burst, 1),
            Self::Packets { per_second, burst } => limit(a, per_second, 1, burst, 0),
        }
    }
}

fn limit(a: &mut Attributes, rate: u64, unit: u64, burst: u32, kind: u32) {
    a.be64(1, rate).be64(2, unit);
    a.be32(3, burst).be32(4, kind).be32(5, 0);
}

/// One element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    pub(super) key_end: Option<Vec<u8>>,
    pub(super) data: Mapped,
    pub(super) interval_end: bool,
    /// Leaves by itself after so many milliseconds; 0 is never.
    pub(super) timeout_ms: u64,
}

/// What an element carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mapped {
    Nothing,
    Value(Vec<u8>),
    Verdict(Target),
}

impl Element {
    pub(super) fn new(key: Vec<u8>, data: Mapped) -> Self {
        Self {
            key,
            key_end: None,
            data,
            interval_end: false,
            timeout_ms: 0,
        }
    }

    pub(super) fn write(&self, a: &mut Attributes) {
        a.nested(1, |a| {
            a.nested(1, |a| {
                a.bytes(1, &self.key);
            });
            match &self.data {
                Mapped::Nothing => {}
                Mapped::Value(value) => {
                    a.nested(2, |a| {
                        a.bytes(1, value);
                    });
                }
                Mapped::Verdict(target) => {
                    a.nested(2, |a| target.write(a));
                }
            }
            if self.interval_end {
                a.be32(3, ELEMENT_INTERVAL_END);
            }
            if self.timeout_ms > 0 {
                a.be64(4, self.timeout_ms);
            }
            if let Some(end) = &self.key_end {
                a.nested(10, |a| {
                    a.bytes(1, end);
                });
            }
        });
    }
}

/// Adds or deletes elements; the caller keeps to 500 at a time, because an attribute ends at 64 KiB.
pub(super) fn elements(message: u16, set: &str, list: &[Element]) -> Request {
    let flags = if message == message::NEW_ELEMENT {
        CREATE
    } else {
        0
    };
    request(message, flags).attributes(|a| {
        a.text(1, TABLE).text(2, set);
        a.nested(3, |a| list.iter().for_each(|e| e.write(a)));
    })
}
