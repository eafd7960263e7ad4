//! The underlay half of the table: what keeps a device manageable, then rules, then the default.
//!
//! The lifeline is stateless where it can be, so that neither an overflowing nor a freshly emptied
//! connection table cuts the operator's own session.

use std::net::{IpAddr, SocketAddr};

use hedgerow_model::address::Prefix;
use hedgerow_model::packet::Direction;
use hedgerow_model::program::Mode;
use hedgerow_model::ruleset::{Askers, Lifeline, Ruleset, UnderlayRule, UnderlayTarget};
use hedgerow_model::service::{Ports, Protocol};
use hedgerow_model::{Wall, internet};

use super::layout::Layout;
use super::matching::{
    FAMILIES, Family, IPV4, IPV6, Part, in_family, of_group, of_part, of_protocol, with_state,
};
use super::wire::{
    CT_RELATED, Carries, Compare, Element, Header, ICMP, ICMPV6, Mapped, Meta, Rule, Set, Shown,
    TCP, Target, UDP, register,
};

const BOTH: [Direction; 2] = [Direction::In, Direction::Out];

fn chain_of(way: Direction) -> &'static str {
    match way {
        Direction::In => "underlay_in",
        Direction::Out => "underlay_out",
    }
}

/// Returns which packets of a flow that begins in direction `begins` travel in direction `way`.
fn part_of(begins: Direction, way: Direction) -> Part {
    if begins == way {
        Part::Original
    } else {
        Part::Reply
    }
}

impl Layout {
    pub(super) fn underlay(&mut self, ruleset: &Ruleset, now: Wall) {
        let enforced = ruleset.underlay_mode == Mode::Enforce;
        let in_force = |r: &&UnderlayRule| r.until.is_none_or(|end| now < end);
        let rules: Vec<_> = ruleset.underlay.iter().filter(in_force).collect();
        for way in BOTH {
            self.chain(chain_of(way));
        }
        if enforced || !rules.is_empty() {
            self.lifeline(&ruleset.lifeline);
        }
        if rules.iter().any(|r| r.target == UnderlayTarget::Internet) {
            let local = internet::local_prefixes().iter();
            let all: Vec<Prefix> = local.chain(&ruleset.pools).copied().collect();
            self.prefix_sets("local", &all);
        }
        for (index, rule) in rules.into_iter().enumerate() {
            self.underlay_rule(index, rule);
        }
        for way in BOTH {
            let rule = Rule::new(chain_of(way));
            self.rule(if enforced {
                rule.then(&Target::goto("underlay_default"))
            } else {
                rule.count("underlay_default").then(&Target::Accept)
            });
        }
    }

    fn lifeline(&mut self, lifeline: &Lifeline) {
        let accept = |rule: Rule| rule.then(&Target::Accept);
        for way in BOTH {
            let chain = chain_of(way);
            let own_port = part_offset(way);
            let mesh = of_port(
                of_protocol(Rule::new(chain), UDP),
                own_port,
                lifeline.mesh_port,
            );
            self.rule(accept(mesh).comment("mesh"));
            for (client, server) in [(68, 67), (546, 547)] {
                let far = 2 - own_port;
                let rule = of_port(of_protocol(Rule::new(chain), UDP), own_port, client);
                self.rule(accept(of_port(rule, far, server)).comment("dhcp"));
            }
            self.control_messages(way);
        }
        self.controllers(&lifeline.controllers);
        self.management(&lifeline.management);
        self.servers(lifeline);
        self.links(lifeline);
    }

    /// Errors about flows that are tracked, never a redirect: who sends one moves the path of what
    /// the lifeline protects. Of neighbour discovery (RFC 4861) and listener discovery (RFC 3810)
    /// what a host needs: it asks for routers and hears them, answers queries and asks none.
    fn control_messages(&mut self, way: Direction) {
        // Unreachable; time exceeded and parameter problem. In IPv6 with packet too big.
        for (protocol, first, last) in [(ICMP, 3, 3), (ICMP, 11, 12), (ICMPV6, 1, 4)] {
            let rule = of_protocol(with_state(Rule::new(chain_of(way)), CT_RELATED), protocol);
            let rule = of_type(rule, first, last).then(&Target::Accept);
            self.rule(rule.comment("errors about flows that are tracked"));
        }
        const NEIGHBOURS: (u8, u8) = (135, 136);
        let needed = match way {
            // Listener query; router advertisement.
            Direction::In => [(130, 130), (134, 134), NEIGHBOURS].as_slice(),
            // Listener report and done, report of version 2; router solicitation.
            Direction::Out => [(131, 133), (143, 143), NEIGHBOURS].as_slice(),
        };
        for (first, last) in needed {
            let rule = of_protocol(Rule::new(chain_of(way)), ICMPV6);
            let rule = of_type(rule, *first, *last).then(&Target::Accept);
            self.rule(rule.comment("neighbours"));
        }
    }

    /// Connections that this device opens to its controllers.
    fn controllers(&mut self, list: &[SocketAddr]) {
        for family in FAMILIES {
            let set = format!("controllers{}", family.digit);
            self.set(Set::new(
                &set,
                &[family.shown, Shown::Port],
                Carries::Nothing,
                0,
            ));
            let mut keys: Vec<Vec<u8>> = list
                .iter()
                .filter(|a| Family::of_address(a.ip()).digit == family.digit)
                .map(|a| {
                    let [high, low] = a.port().to_be_bytes();
                    [octets(a.ip()), vec![high, low, 0, 0]].concat()
                })
                .collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                self.element(&set, Element::new(key, Mapped::Nothing));
            }
            let after_address = if family.length == 4 {
                register::SECOND
            } else {
                register::PEER
            };
            for way in BOTH {
                let far_port = 2 - part_offset(way);
                let rule = of_protocol(in_family(Rule::new(chain_of(way)), family), TCP);
                // The answer must not open anything.
                let rule = match way {
                    Direction::In => not_opening(rule),
                    Direction::Out => rule,
                };
                let rule = rule
                    .payload(
                        Header::Network,
                        family.far(way),
                        family.length,
                        register::FIRST,
                    )
                    .payload(Header::Transport, far_port, 2, after_address)
                    .in_set(&set, register::FIRST);
                self.rule(rule.then(&Target::Accept).comment("controllers"));
            }
        }
    }

    /// Connections that operators open to this device.
    fn management(&mut self, prefixes: &[Prefix]) {
        self.prefix_sets("management", prefixes);
        for family in FAMILIES {
            for way in BOTH {
                let rule = of_protocol(in_family(Rule::new(chain_of(way)), family), TCP);
                let rule = match way {
                    Direction::In => rule,
                    Direction::Out => not_opening(rule),
                };
                let rule = rule
                    .payload(
                        Header::Network,
                        family.far(way),
                        family.length,
                        register::FIRST,
                    )
                    .in_set(&format!("management{}", family.digit), register::FIRST);
                self.rule(rule.then(&Target::Accept).comment("management"));
            }
        }
    }

    /// Names and time: for the agent's own sockets, because a name server carries anything.
    fn servers(&mut self, lifeline: &Lifeline) {
        let group = match lifeline.askers {
            Askers::Nobody => return,
            Askers::Group(group) => Some(group),
            Askers::Anybody => None,
        };
        let prefixes: Vec<_> = lifeline
            .servers
            .iter()
            .filter_map(|a| Prefix::new(*a, if a.is_ipv4() { 32 } else { 128 }).ok())
            .collect();
        self.prefix_sets("servers", &prefixes);
        for family in FAMILIES {
            for way in BOTH {
                for (protocol, port) in [(UDP, 53), (TCP, 53), (UDP, 123)] {
                    let part = part_of(Direction::Out, way);
                    let rule = of_part(in_family(Rule::new(chain_of(way)), family), part);
                    let rule = of_port(of_protocol(rule, protocol), part.port_offset(), port)
                        .payload(
                            Header::Network,
                            family.far(way),
                            family.length,
                            register::FIRST,
                        )
                        .in_set(&format!("servers{}", family.digit), register::FIRST);
                    let rule = match group {
                        Some(group) => of_group(rule, group),
                        None => rule,
                    };
                    self.rule(rule.then(&Target::Accept).comment("servers"));
                }
            }
        }
    }

    /// Links that carry the mesh's datagrams: from anybody to a relay, which judges who it is, and from the
    /// agent's own sockets to any relay, because where those are is not known before it is asked.
    fn links(&mut self, lifeline: &Lifeline) {
        for way in BOTH {
            if let Some(port) = lifeline.links.listens {
                let rule = of_protocol(Rule::new(chain_of(way)), TCP);
                let rule = match way {
                    Direction::In => rule,
                    Direction::Out => not_opening(rule),
                };
                let rule = of_port(rule, part_offset(way), port);
                self.rule(rule.then(&Target::Accept).comment("links"));
            }
            if let (Some(port), Askers::Group(group)) = (lifeline.links.connects, lifeline.askers) {
                let part = part_of(Direction::Out, way);
                let rule = of_part(Rule::new(chain_of(way)), part);
                let rule = of_port(of_protocol(rule, TCP), part.port_offset(), port);
                let rule = of_group(rule, group);
                self.rule(rule.then(&Target::Accept).comment("links"));
            }
        }
    }

    fn underlay_rule(&mut self, index: usize, rule: &UnderlayRule) {
        let target = self.target(rule.direction, rule.verdict);
        let set = format!("rule{index}_");
        if let UnderlayTarget::Prefixes(list) = &rule.target {
            self.prefix_sets(&set, list);
        }
        let families = FAMILIES.iter().filter(|f| match &rule.target {
            UnderlayTarget::Prefixes(list) => list.iter().any(|p| Family::of(p).digit == f.digit),
            UnderlayTarget::Internet | UnderlayTarget::Any => true,
        });
        for family in families {
            for way in BOTH {
                let part = part_of(rule.direction, way);
                let begin = || {
                    let bare = of_part(in_family(Rule::new(chain_of(way)), *family), part);
                    let far = |r: Rule| {
                        let at = family.far(way);
                        r.payload(Header::Network, at, family.length, register::FIRST)
                    };
                    let placed = match &rule.target {
                        UnderlayTarget::Any => bare,
                        UnderlayTarget::Prefixes(_) => {
                            far(bare).in_set(&format!("{set}{}", family.digit), register::FIRST)
                        }
                        UnderlayTarget::Internet => {
                            far(bare).not_in_set(&format!("local{}", family.digit), register::FIRST)
                        }
                    };
                    before(placed, rule.until)
                };
                if rule.ports.is_empty() {
                    self.rule(begin().then(&target));
                }
                for ports in &rule.ports {
                    self.rule(speaking(begin(), *family, *ports, part).then(&target));
                }
            }
        }
    }
}

impl Family {
    fn of_address(address: IpAddr) -> Self {
        if address.is_ipv6() { IPV6 } else { IPV4 }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Returns where this device's own port lies.
fn part_offset(way: Direction) -> u32 {
    match way {
        Direction::In => 2,
        Direction::Out => 0,
    }
}

fn of_port(rule: Rule, offset: u32, port: u16) -> Rule {
    rule.payload(Header::Transport, offset, 2, register::FIRST)
        .compare(Compare::Equal, &port.to_be_bytes(), register::FIRST)
}

fn of_type(rule: Rule, first: u8, last: u8) -> Rule {
    rule.payload(Header::Transport, 0, 1, register::FIRST)
        .compare(Compare::AtLeast, &[first], register::FIRST)
        .compare(Compare::AtMost, &[last], register::FIRST)
}

/// Goes on unless the packet asks for a new connection: SYN without ACK.
fn not_opening(rule: Rule) -> Rule {
    rule.payload(Header::Transport, 13, 1, register::FIRST)
        .mask(&[0x12], register::FIRST)
        .compare(Compare::NotEqual, &[0x02], register::FIRST)
}

/// Goes on while the kernel's own clock is before `end`, so that a dead agent closes windows.
fn before(rule: Rule, end: Option<Wall>) -> Rule {
    match end {
        None => rule,
        Some(end) => rule
            .meta(Meta::TimeNanoseconds, register::FIRST)
            .network_order_64(register::FIRST)
            .compare(
                Compare::Less,
                &end.0.saturating_mul(1_000_000).to_be_bytes(),
                register::FIRST,
            ),
    }
}

fn speaking(rule: Rule, family: Family, ports: Ports, part: Part) -> Rule {
    let protocol = match ports.protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
        Protocol::IcmpEcho => family.icmp,
    };
    let rule = of_protocol(rule, protocol);
    let echo = match (family.icmp, part) {
        (ICMPV6, Part::Original) => 128,
        (ICMPV6, Part::Reply) => 129,
        (_, Part::Original) => 8,
        (_, Part::Reply) => 0,
    };
    match ports.protocol {
        Protocol::IcmpEcho => of_type(rule, echo, echo),
        Protocol::Tcp | Protocol::Udp if ports.first == ports.last => {
            of_port(rule, part.port_offset(), ports.first)
        }
        Protocol::Tcp | Protocol::Udp => rule
            .payload(Header::Transport, part.port_offset(), 2, register::FIRST)
            .compare(
                Compare::AtLeast,
                &ports.first.to_be_bytes(),
                register::FIRST,
            )
            .compare(Compare::AtMost, &ports.last.to_be_bytes(), register::FIRST),
    }
}
