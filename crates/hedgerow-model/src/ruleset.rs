//! What one device enforces: the concrete, local form that the kernel loads.
//!
//! A [`Ruleset`] is made from a [`crate::program::Program`], the tickets of the peers met so far and
//! the time; `hedgerow-linux` turns it into one nftables table and reads it back.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::address::{Overlay, OverlayAddresses, Prefix};
use crate::internet;
use crate::packet::{Direction, Packet};
use crate::program::{Limit, Mode};
use crate::service::{Ports, Protocol};
use crate::time::Wall;

/// Most peers in one ruleset. A further peer is refused and counted, never evicts another.
pub const PEERS_MAX: usize = 100_000;
/// Most entries over all profiles. A program that needs more is refused as a whole.
pub const PROFILE_ENTRIES_MAX: usize = 200_000;

/// A profile's number, local to the device; equal profiles share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfileId(pub u32);

/// Index into [`Ruleset::rule_names`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef(pub u16);

/// What happens to a packet that matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Passes.
    Accept,
    /// Passes up to a rate per source: index into [`Ruleset::limits`].
    Limited(u16),
    /// Passes, and is counted as what enforcement would refuse.
    WouldDeny(RuleRef),
    /// Refused: dropped on the way in, rejected on the way out.
    Deny(RuleRef),
}

/// One line of a profile. Entries of one profile and direction never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// What is spoken: the initiator's destination port.
    pub ports: Ports,
    /// What happens.
    pub verdict: Verdict,
    /// The entry leaves the kernel by itself at this time, so that a dead agent closes windows.
    pub until: Option<Wall>,
}

/// What a set of equal peers may do, both ways. What no entry names meets the default.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Profile {
    /// Flows that the peer begins, sorted by ports.
    pub inbound: Vec<Entry>,
    /// Flows that this device begins, sorted by ports.
    pub outbound: Vec<Entry>,
    /// For inbound flows without an entry.
    pub inbound_default: Verdict,
    /// For outbound flows without an entry.
    pub outbound_default: Verdict,
}

impl Profile {
    /// Returns what happens to `packet` at `now`, as the kernel decides it: by entry, else default.
    pub fn decide(&self, packet: &Packet, now: Wall) -> Verdict {
        let (entries, default) = match packet.direction {
            Direction::In => (&self.inbound, self.inbound_default),
            Direction::Out => (&self.outbound, self.outbound_default),
        };
        entries
            .iter()
            .find(|e| {
                e.ports.contains(packet.protocol, packet.port) && e.until.is_none_or(|t| now < t)
            })
            .map_or(default, |e| e.verdict)
    }

    /// Returns whether the peer can do nothing, in either direction.
    pub fn is_closed(&self) -> bool {
        let shut = |v: Verdict| matches!(v, Verdict::Deny(_));
        shut(self.inbound_default)
            && shut(self.outbound_default)
            && self
                .inbound
                .iter()
                .chain(&self.outbound)
                .all(|e| shut(e.verdict))
    }
}

/// Underlay addresses that a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnderlayTarget {
    /// These; empty matches nothing.
    Prefixes(Vec<Prefix>),
    /// Everything outside private, link-local, loopback, multicast and overlay ranges.
    Internet,
    /// Everything.
    Any,
}

/// One underlay rule; the first that matches decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnderlayRule {
    /// Which way the flow's initiator sends.
    pub direction: Direction,
    /// The other end.
    pub target: UnderlayTarget,
    /// What is spoken; empty is every protocol and port.
    pub ports: Vec<Ports>,
    /// What happens.
    pub verdict: Verdict,
    /// The rule leaves force at this time.
    pub until: Option<Wall>,
}

/// A control group (version 2) as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ControlGroup {
    /// The kernel's number for it: the inode of its directory. A group that is removed and made
    /// again has another.
    pub id: u64,
    /// How deep it lies below the root, which is 0; at least 1.
    pub level: u8,
}

/// Whose sockets may use [`Lifeline::servers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Askers {
    /// Nobody's: the agent does not run yet.
    #[default]
    Nobody,
    /// Those of the agent's own control group, and of groups below it.
    Group(ControlGroup),
    /// Every program's: the agent cannot be told apart on this machine.
    Anybody,
}

/// What stays possible whatever policy says, so that a device can be mended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lifeline {
    /// Controllers and site managers (TCP, outbound).
    pub controllers: Vec<SocketAddr>,
    /// The mesh's UDP port, both ways.
    pub mesh_port: u16,
    /// Prefixes that may open TCP connections to this device for management.
    pub management: Vec<Prefix>,
    /// Name and time servers (UDP and TCP 53, UDP 123).
    pub servers: Vec<IpAddr>,
    /// Who may ask them.
    pub askers: Askers,
    /// Links that carry the mesh where UDP is blocked.
    pub links: LinkPorts,
}

/// TCP ports of links between devices and relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LinkPorts {
    /// Where this device takes them from anybody, because it is a relay.
    pub listens: Option<u16>,
    /// Where the agent's own sockets connect to, on any host; nothing where they cannot be told apart
    /// ([`Askers::Group`]).
    pub connects: Option<u16>,
}

impl Lifeline {
    /// Returns whether a TCP connection with this far end stays possible; `direction` is the way of
    /// who opened it.
    pub fn keeps(&self, direction: Direction, far: SocketAddr) -> bool {
        match direction {
            Direction::Out => self.controllers.contains(&far),
            Direction::In => self.management.iter().any(|p| p.contains(far.ip())),
        }
    }
}

/// Everything the kernel enforces on one device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ruleset {
    /// Grows with every ruleset this device loads; an actor refuses a smaller one.
    pub generation: u64,
    /// The tunnel interface's name.
    pub tunnel: String,
    /// This device's overlay addresses; the tunnel carries nothing else of ours.
    pub own: OverlayAddresses,
    /// Overlay pools of the trust domain: never legitimate on another interface.
    pub pools: Vec<Prefix>,
    /// Profiles by number.
    pub profiles: BTreeMap<ProfileId, Profile>,
    /// Peers met so far; inbound packets of others are dropped, outbound ones start an introduction.
    pub peers: BTreeMap<Overlay, ProfileId>,
    /// Rates that [`Verdict::Limited`] refers to.
    pub limits: Vec<Limit>,
    /// Names that [`RuleRef`] refers to: rule ids, `default`, `state`; one counter each.
    pub rule_names: Vec<String>,
    /// How far the underlay is in force.
    pub underlay_mode: Mode,
    /// Underlay rules in order; what none matches is refused when `underlay_mode` enforces.
    pub underlay: Vec<UnderlayRule>,
    /// What stays possible.
    pub lifeline: Lifeline,
    /// At most one refusal in this many seconds is sampled per reason; 0 is none.
    pub sample_seconds: u32,
}

impl Ruleset {
    /// Returns what the underlay rules say of a flow with this far end, which begins in `direction`
    /// and speaks to `port`; nothing when no rule names it, and so the underlay's default decides.
    pub fn underlay_verdict(
        &self,
        direction: Direction,
        far: IpAddr,
        (protocol, port): (Protocol, u16),
        now: Wall,
    ) -> Option<Verdict> {
        let meant = |target: &UnderlayTarget| match target {
            UnderlayTarget::Any => true,
            UnderlayTarget::Prefixes(list) => list.iter().any(|p| p.contains(far)),
            UnderlayTarget::Internet => !internet::local_prefixes()
                .iter()
                .chain(&self.pools)
                .any(|p| p.contains(far)),
        };
        let spoken =
            |ports: &[Ports]| ports.is_empty() || ports.iter().any(|p| p.contains(protocol, port));
        let rule = self.underlay.iter().find(|r| {
            r.direction == direction
                && r.until.is_none_or(|end| now < end)
                && meant(&r.target)
                && spoken(&r.ports)
        });
        rule.map(|r| r.verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_underlay_rule_that_matches_decides() {
        let rule = |target, ports: Vec<Ports>, verdict, until| UnderlayRule {
            direction: Direction::In,
            target,
            ports,
            verdict,
            until,
        };
        let lan = || UnderlayTarget::Prefixes(vec!["10.0.0.0/8".parse().unwrap()]);
        let denied = Verdict::Deny(RuleRef(0));
        let ruleset = Ruleset {
            generation: 1,
            tunnel: "t".into(),
            own: OverlayAddresses {
                v6: std::net::Ipv6Addr::LOCALHOST,
                v4: None,
            },
            pools: Vec::new(),
            profiles: BTreeMap::new(),
            peers: BTreeMap::new(),
            limits: Vec::new(),
            rule_names: Vec::new(),
            underlay_mode: Mode::Enforce,
            underlay: vec![
                rule(lan(), vec![Ports::tcp(22)], Verdict::Accept, Some(Wall(10))),
                rule(lan(), vec![], denied, None),
                rule(UnderlayTarget::Internet, vec![], Verdict::Accept, None),
            ],
            lifeline: Lifeline::default(),
            sample_seconds: 0,
        };
        let decide = |far: &str, port, now| {
            let far = far.parse().unwrap();
            ruleset.underlay_verdict(Direction::In, far, (Protocol::Tcp, port), Wall(now))
        };
        assert_eq!(decide("10.1.1.1", 22, 9), Some(Verdict::Accept));
        assert_eq!(decide("10.1.1.1", 22, 10), Some(denied));
        assert_eq!(decide("10.1.1.1", 23, 9), Some(denied));
        assert_eq!(decide("9.9.9.9", 23, 9), Some(Verdict::Accept));
        assert_eq!(decide("192.168.0.1", 23, 9), None);
    }
}
