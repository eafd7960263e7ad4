//! What rules have in common: which packets they speak of.

use hedgerow_model::address::Prefix;
use hedgerow_model::packet::Direction;
use hedgerow_model::ruleset::ControlGroup;

use super::wire::{
    Compare, Header, ICMP, ICMPV6, Meta, NFPROTO_IPV4, NFPROTO_IPV6, Rule, Shown, Track, register,
};

/// One IP version: where its fields lie and how its sets are called.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    pub(super) digit: char,
    pub(super) number: u8,
    pub(super) icmp: u8,
    pub(super) source: u32,
    pub(super) destination: u32,
    pub(super) length: u32,
    pub(super) shown: Shown,
}

pub(super) const IPV6: Family = Family {
    digit: '6',
    number: NFPROTO_IPV6,
    icmp: ICMPV6,
    source: 8,
    destination: 24,
    length: 16,
    shown: Shown::Ipv6,
};
pub(super) const IPV4: Family = Family {
    digit: '4',
    number: NFPROTO_IPV4,
    icmp: ICMP,
    source: 12,
    destination: 16,
    length: 4,
    shown: Shown::Ipv4,
};
pub(super) const FAMILIES: [Family; 2] = [IPV6, IPV4];

impl Family {
    pub(super) fn of(prefix: &Prefix) -> Self {
        if prefix.address().is_ipv6() {
            IPV6
        } else {
            IPV4
        }
    }

    /// Returns the offset of the far end's address in a packet of this direction.
    pub(super) fn far(self, way: Direction) -> u32 {
        match way {
            Direction::In => self.source,
            Direction::Out => self.destination,
        }
    }

    pub(super) fn near(self, way: Direction) -> u32 {
        match way {
            Direction::In => self.destination,
            Direction::Out => self.source,
        }
    }
}

/// Which packets of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// From who began it.
    Original,
    /// Back to who began it.
    Reply,
}

impl Part {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Original => 0,
            Self::Reply => 1,
        }
    }

    /// Returns where the service's port lies: the destination on the way there, the source back.
    pub(super) fn port_offset(self) -> u32 {
        match self {
            Self::Original => 2,
            Self::Reply => 0,
        }
    }
}

pub(super) fn interface(chain: &str, which: Meta, name: &str) -> Rule {
    let mut bytes = [0; 16];
    for (slot, byte) in bytes.iter_mut().zip(name.bytes()) {
        *slot = byte;
    }
    Rule::new(chain)
        .meta(which, register::FIRST)
        .compare(Compare::Equal, &bytes, register::FIRST)
}

pub(super) fn in_family(rule: Rule, family: Family) -> Rule {
    rule.meta(Meta::Family, register::FIRST).compare(
        Compare::Equal,
        &[family.number],
        register::FIRST,
    )
}

pub(super) fn of_protocol(rule: Rule, protocol: u8) -> Rule {
    rule.meta(Meta::Protocol, register::FIRST)
        .compare(Compare::Equal, &[protocol], register::FIRST)
}

pub(super) fn of_part(rule: Rule, part: Part) -> Rule {
    rule.track(Track::Direction, register::FIRST).compare(
        Compare::Equal,
        &[part.number()],
        register::FIRST,
    )
}

/// Goes on when the packet's socket belongs to this control group or to one below it.
pub(super) fn of_group(rule: Rule, group: ControlGroup) -> Rule {
    rule.control_group(group.level, register::FIRST).compare(
        Compare::Equal,
        &group.id.to_ne_bytes(),
        register::FIRST,
    )
}

/// Goes on when the connection is in one of these states.
pub(super) fn with_state(rule: Rule, states: u32) -> Rule {
    rule.track(Track::State, register::FIRST)
        .mask(&states.to_ne_bytes(), register::FIRST)
        .compare(Compare::NotEqual, &0u32.to_ne_bytes(), register::FIRST)
}

/// Goes on when the far end is a known peer, with its profile in the register.
///
/// `nft` up to 1.0.8 aborts on any rule that looks up what a map gave. It follows registers by where
/// a value begins; so the map's value begins one word before the profile, and the packet mark is
/// read into the profile's register first, to be overwritten. `nft` then prints `meta mark` where
/// the profile stands, and the rule's comment says what is meant. No packet's mark is a profile
/// ([`PROFILE_BIT`]), so a printed ruleset that is loaded again refuses.
pub(super) fn with_profile(rule: Rule, family: Family, way: Direction) -> Rule {
    let peers = format!("peers{}", family.digit);
    rule.meta(Meta::Mark, register::PROFILE)
        .payload(
            Header::Network,
            family.far(way),
            family.length,
            register::FIRST,
        )
        .read_map(&peers, register::FIRST, register::PEER)
        .comment(format!("mark stands for the peer's profile in {peers}"))
}
