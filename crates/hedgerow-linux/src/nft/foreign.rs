//! Other firewalls of this machine, read and never changed: which of them refuse what we need.
//!
//! ```text
//!  kernel ──dump──▶ Firewalls ──walk with packets of ours──▶ Refusal{who, where, what}
//! ```
//!
//! An accept in our table does not undo a drop in another one, so a device can be perfectly
//! configured and hear nothing. The walk follows a packet through the rules of a base chain as the
//! kernel would. What it cannot know (an address, a set's content that is too large) it takes for
//! not matching, except that a return is taken: a firewall is reported when nothing in it lets the
//! packet through for certain.
//!
//! # Not here
//!
//! Rules of `iptables-legacy`: they are outside nftables.

use std::collections::BTreeMap;

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use super::wire::{
    ELEMENT_INTERVAL_END, FAMILY_INET, NFPROTO_IPV4, NFPROTO_IPV6, TABLE, TCP, UDP, message,
    question,
};
use super::{NftError, attributes_of};
use crate::netlink::{Message, Socket, attributes, be32, find, text};
use walk::{Packet, Rule, Verdict};

mod walk;

/// Chains beyond these are not read.
const CHAINS_MAX: usize = 10_000;
/// Rules beyond these are not read; a cluster's node has some tens of thousands.
const RULES_MAX: usize = 50_000;
/// Sets with more elements are not looked into.
const ELEMENTS_MAX: usize = 4096;
/// Sets beyond these are not read.
const SETS_MAX: usize = 1000;

/// Whose firewall it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Uncomplicated Firewall.
    Ufw,
    /// Docker.
    Docker,
    /// firewalld.
    Firewalld,
    /// Rules made with the `iptables` commands.
    Iptables,
    /// Anything else, usually `/etc/nftables.conf`.
    Other,
}

impl Owner {
    /// Says whose a base chain is, by the names in its table.
    pub fn of<'a>(
        family: Family,
        table: &str,
        chains: impl Iterator<Item = &'a str>,
        way: Way,
    ) -> Self {
        if table == "firewalld" || table.starts_with("firewalld_") {
            return Self::Firewalld;
        }
        if table.starts_with("docker") {
            return Self::Docker;
        }
        let (mut ufw, mut docker) = (false, false);
        for chain in chains {
            ufw |= chain.starts_with("ufw-") || chain.starts_with("ufw6-");
            docker |= chain.starts_with("DOCKER");
        }
        match way {
            // Docker puts itself before ufw here, and it is Docker that sets the policy.
            Way::Forward if docker => Self::Docker,
            Way::Input | Way::Forward | Way::Output => {
                if ufw {
                    Self::Ufw
                } else if family != Family::Inet && is_of_iptables(table) {
                    Self::Iptables
                } else {
                    Self::Other
                }
            }
        }
    }
}

fn is_of_iptables(table: &str) -> bool {
    ["filter", "mangle", "raw", "security", "nat"].contains(&table)
}

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    fn of(message: &Message<'_>) -> Option<Self> {
        match *message.body.first()? {
            FAMILY_INET => Some(Self::Inet),
            NFPROTO_IPV4 => Some(Self::Ip),
            NFPROTO_IPV6 => Some(Self::Ip6),
            _ => None,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Inet => FAMILY_INET,
            Self::Ip => NFPROTO_IPV4,
            Self::Ip6 => NFPROTO_IPV6,
        }
    }

    fn protocols(self) -> &'static [u8] {
        match self {
            Self::Inet => &[NFPROTO_IPV4, NFPROTO_IPV6],
            Self::Ip => &[NFPROTO_IPV4],
            Self::Ip6 => &[NFPROTO_IPV6],
        }
    }

    /// Returns the word that `nft` uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

/// Which way packets go that a base chain sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// To this machine.
    Input,
    /// Through this machine.
    Forward,
    /// From this machine.
    Output,
}

impl Way {
    fn of(hook: u32) -> Option<Self> {
        match hook {
            0 | 1 => Some(Self::Input),
            2 => Some(Self::Forward),
            3 | 4 => Some(Self::Output),
            _ => None,
        }
    }

    /// Returns the word that `nft` uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
        }
    }
}

/// What of ours another firewall refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Affected {
    /// Datagrams of the mesh, to or from its UDP port.
    MeshPort,
    /// Connections inside the mesh, through the tunnel's interface.
    Tunnel,
    /// Packets that this machine passes on for others.
    Forwarded,
}

/// A base chain that lets something of ours not through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// Whose it is.
    pub owner: Owner,
    /// Which packets.
    pub affected: Affected,
    /// Which way.
    pub way: Way,
    /// The table's family.
    pub family: Family,
    /// The table.
    pub table: String,
    /// The base chain.
    pub chain: String,
}

type Place = (Family, String);

#[derive(Debug, Default)]
struct Chain {
    base: Option<Base>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy)]
struct Base {
    way: Way,
    drops: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Element {
    key: Vec<u8>,
    is_end: bool,
    verdict: Option<Verdict>,
}

#[derive(Debug, Default)]
struct Content {
    chains: BTreeMap<String, Chain>,
    sets: BTreeMap<String, Vec<Element>>,
}

/// Every table of this network namespace but ours.
#[derive(Debug, Default)]
pub struct Firewalls {
    tables: BTreeMap<Place, Content>,
    cut: bool,
}

impl Firewalls {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// When netlink cannot be used, or the tables change all the time.
    pub fn read() -> Result<Self, NftError> {
        let failed = super::socket("read other tables");
        let mut socket = Socket::open(Some(NETFILTER)).map_err(|source| NftError::Socket {
            action: "open a socket",
            source,
        })?;
        let mut firewalls = socket
            .dump(
                || question(message::GET_CHAIN),
                Self::default,
                |all, m| all.add_chain(m),
            )
            .map_err(&failed)?;
        let rules = socket
            .dump(
                || question(message::GET_RULE),
                Vec::new,
                |list, m| {
                    if list.len() <= RULES_MAX {
                        list.extend(decode_rule(m));
                    }
                },
            )
            .map_err(&failed)?;
        firewalls.cut |= rules.len() > RULES_MAX;
        for (place, chain, rule) in rules.into_iter().take(RULES_MAX) {
            let content = firewalls.tables.get_mut(&place);
            if let Some(chain) = content.and_then(|c| c.chains.get_mut(&chain)) {
                chain.rules.push(rule);
            }
        }
        firewalls.read_sets(&mut socket).map_err(&failed)?;
        Ok(firewalls)
    }

    /// Returns whether there was more than is read, so that nothing can be said for certain.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Returns the base chains that refuse what a device with this tunnel and mesh port needs.
    pub fn refusals(&self, tunnel: &str, port: u16) -> Vec<Refusal> {
        let mut out = Vec::new();
        for ((family, table), content) in &self.tables {
            for (name, base) in content.bases() {
                let names = content.chains.keys().map(String::as_str);
                let owner = Owner::of(*family, table, names, base.way);
                for affected in [Affected::MeshPort, Affected::Tunnel, Affected::Forwarded] {
                    let refused = family.protocols().iter().any(|protocol| {
                        packet(affected, base.way, tunnel, port)
                            .is_some_and(|p| !content.passes(name, base, &p(*protocol)))
                    });
                    if refused {
                        out.push(Refusal {
                            owner,
                            affected,
                            way: base.way,
                            family: *family,
                            table: table.clone(),
                            chain: name.to_owned(),
                        });
                    }
                }
            }
        }
        out.sort_unstable();
        out
    }

    fn add_chain(&mut self, message: &Message<'_>) {
        let Some((place, name, chain)) = decode_chain(message) else {
            return;
        };
        let count: usize = self.tables.values().map(|c| c.chains.len()).sum();
        if count < CHAINS_MAX {
            self.tables
                .entry(place)
                .or_default()
                .chains
                .insert(name, chain);
        } else {
            self.cut = true;
        }
    }

    /// Reads the sets that rules look into.
    fn read_sets(&mut self, socket: &mut Socket) -> Result<(), Errno> {
        let mut read = 0;
        for ((family, table), content) in &mut self.tables {
            let rules = content.chains.values().flat_map(|c| &c.rules);
            let names: Vec<String> = rules.flat_map(Rule::sets).map(str::to_owned).collect();
            for name in names {
                if content.sets.contains_key(&name) {
                    continue;
                }
                read += 1;
                if read > SETS_MAX {
                    self.cut = true;
                    return Ok(());
                }
                let list = elements(socket, *family, table, &name)?;
                if list.len() <= ELEMENTS_MAX {
                    content.sets.insert(name, list);
                }
            }
        }
        Ok(())
    }
}

impl Content {
    fn bases(&self) -> impl Iterator<Item = (&str, Base)> {
        let chains = self.chains.iter();
        chains.filter_map(|(name, chain)| Some((name.as_str(), chain.base?)))
    }

    fn passes(&self, chain: &str, base: Base, packet: &Packet) -> bool {
        let mut steps = walk::STEPS_MAX;
        match walk::chain(self, chain, packet, 0, &mut steps) {
            walk::Fate::Accepted => true,
            walk::Fate::Refused => false,
            walk::Fate::FellThrough => !base.drops,
        }
    }
}

/// Returns the packet that tells whether something of ours passes, for an IP version; none when
/// the chain has no say in it.
fn packet(affected: Affected, way: Way, tunnel: &str, port: u16) -> Option<impl Fn(u8) -> Packet> {
    let tunnel = Some(tunnel.to_owned());
    let (protocol, input, output, ports) = match (affected, way) {
        (Affected::MeshPort, Way::Input) => (UDP, None, None, (None, Some(port))),
        // The other end's port is usually the same.
        (Affected::MeshPort, Way::Output) => (UDP, None, None, (Some(port), Some(port))),
        (Affected::Tunnel, Way::Input) => (TCP, tunnel, None, (None, None)),
        (Affected::Tunnel, Way::Output) => (TCP, None, tunnel, (None, None)),
        (Affected::Forwarded, Way::Forward) => (TCP, tunnel, None, (None, None)),
        _ => return None,
    };
    Some(move |family| Packet {
        family,
        protocol,
        input: input.clone(),
        output: output.clone(),
        source_port: ports.0,
        destination_port: ports.1,
    })
}

fn decode_chain(message: &Message<'_>) -> Option<(Place, String, Chain)> {
    let family = Family::of(message)?;
    let body = attributes_of(message.body);
    let table = text(find(body, 1)?);
    if table == TABLE {
        return None;
    }
    let is_nat = find(body, 7).map(text).as_deref() == Some("nat");
    let hook = find(body, 4).and_then(|hook| be32(find(hook, 1)?));
    let base = hook.filter(|_| !is_nat).and_then(Way::of).map(|way| Base {
        way,
        drops: find(body, 5).and_then(be32) == Some(0),
    });
    let rules = Vec::new();
    Some(((family, table), text(find(body, 3)?), Chain { base, rules }))
}

fn decode_rule(message: &Message<'_>) -> Option<(Place, String, Rule)> {
    let family = Family::of(message)?;
    let body = attributes_of(message.body);
    let table = text(find(body, 1)?);
    if table == TABLE {
        return None;
    }
    let rule = Rule::decode(find(body, 4).unwrap_or_default());
    Some(((family, table), text(find(body, 2)?), rule))
}

/// Reads one set, one element more than is used at most; a set that is gone has none.
fn elements(
    socket: &mut Socket,
    family: Family,
    table: &str,
    set: &str,
) -> Result<Vec<Element>, Errno> {
    let request = || {
        let head = super::wire::head(family.number(), 0);
        let kind = super::SUBSYSTEM << 8 | message::GET_ELEMENT;
        crate::netlink::Request::new(kind, 0, &head).attributes(|a| {
            a.text(1, table).text(2, set);
        })
    };
    let visit = |list: &mut Vec<Element>, m: &Message<'_>| {
        let all = find(attributes_of(m.body), 3).unwrap_or_default();
        for (_, element) in attributes(all) {
            if list.len() <= ELEMENTS_MAX {
                list.extend(decode_element(element));
            }
        }
    };
    let list = socket.dump(request, Vec::new, visit);
    list.or_else(|e| super::absent(e).map(|()| Vec::new()))
}

fn decode_element(element: &[u8]) -> Option<Element> {
    let flags = find(element, 3).and_then(be32).unwrap_or(0);
    Some(Element {
        key: find(find(element, 1)?, 1)?.to_vec(),
        is_end: flags & ELEMENT_INTERVAL_END != 0,
        verdict: find(element, 2).and_then(Verdict::decode),
    })
}

#[cfg(test)]
mod tests;
