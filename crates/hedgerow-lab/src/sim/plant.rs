//! Who is where, behind what, and who talks to whom: drawn from the seed.

use std::collections::BTreeSet;

use super::hostile::Hostility;
use super::random::Random;

/// What a device is for; policy speaks of nothing else but this and the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Reports to its site's collectors.
    Sensor,
    /// Takes the reports, and compares notes with other collectors anywhere.
    Collector,
    /// Reaches every sensor and collector.
    Operator,
    /// Passes on for others; talks to nobody itself.
    Relay,
}

/// How a site's router treats what comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Translation {
    /// One outer port per inner one; only who was sent to may answer (port-restricted cone).
    Cone,
    /// One outer port per inner one and destination.
    Symmetric,
}

/// Where a site's devices stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Each has an address of its own that everyone can send to.
    Open,
    /// Behind one router.
    Behind {
        /// How it translates.
        translation: Translation,
        /// Whether it passes on what its own side sends to its outer address.
        hairpin: bool,
    },
    /// A floor: no datagram gets in or out. The site's relays stand between, and reach both sides.
    Sealed,
}

/// One device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) kind: Kind,
    pub(super) site: usize,
    /// Sends nothing but agreements until a pre-shared key is agreed.
    pub(super) is_strict: bool,
    /// What it does that it should not.
    pub(super) hostility: Option<Hostility>,
}

impl Member {
    pub(super) fn new(kind: Kind, site: usize) -> Self {
        Self {
            kind,
            site,
            is_strict: false,
            hostility: None,
        }
    }

    pub(super) fn labels(&self) -> String {
        match self.kind {
            Kind::Sensor => "role=sensor".to_owned(),
            Kind::Collector => "role=collector".to_owned(),
            Kind::Operator => "role=operator".to_owned(),
            Kind::Relay => "role=relay,relay=yes".to_owned(),
        }
    }

    /// The whole policy of the plant: whether this device may begin flows to that one.
    pub(super) fn may_reach(&self, other: &Self) -> bool {
        match (self.kind, other.kind) {
            (Kind::Sensor, Kind::Collector) => self.site == other.site,
            (Kind::Operator, Kind::Sensor | Kind::Collector)
            | (Kind::Collector, Kind::Collector) => true,
            _ => false,
        }
    }
}

/// A stream of packets that a program on one device sends to another device, permitted or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Everything that does not change during a run.
#[derive(Debug)]
pub(super) struct Plant {
    pub(super) places: Vec<Place>,
    pub(super) members: Vec<Member>,
    pub(super) flows: Vec<Flow>,
    /// Pairs of sites between which no datagram passes, the lesser number first.
    pub(super) blocked: BTreeSet<(usize, usize)>,
}

/// Devices of one site, more or less.
const SITE_DEVICES: usize = 40;
/// Collectors of other sites that one compares notes with.
const NOTES_WITH: usize = 2;
/// Flows of one operator.
const OPERATOR_FLOWS: usize = 6;

impl Plant {
    pub(super) fn draw(nodes: usize, random: &mut Random) -> Self {
        // Site 0 is the office: open, with most relays and some operators.
        let sites = 1 + nodes.div_ceil(SITE_DEVICES).max(2);
        let mut places = vec![Place::Open];
        places.extend((1..sites).map(|_| draw_place(random)));
        let mut blocked = BTreeSet::new();
        for a in 1..sites {
            let others = a + 1..sites;
            blocked.extend(others.filter(|_| random.chance(150)).map(|b| (a, b)));
        }
        let mut plant = Self {
            members: draw_members(&places, nodes, random),
            places,
            flows: Vec::new(),
            blocked,
        };
        plant.draw_hostile(random);
        plant.draw_flows(random);
        plant
    }

    /// In half of all plants somebody is hostile; two relays at the office are not.
    fn draw_hostile(&mut self, random: &mut Random) {
        let ways: &[Hostility] = match random.chance(500) {
            true => &Hostility::ALL,
            false => &[],
        };
        let victim = random.below(self.members.len());
        for hostility in ways {
            let fits = |m: &Member| (m.kind == Kind::Relay) == hostility.is_of_a_relay();
            let of: Vec<usize> = (0..self.members.len())
                .filter(|n| *n != victim && *n >= HONEST_FIRST)
                .filter(|n| {
                    let member = self.members.get(*n);
                    member.is_some_and(|m| fits(m) && m.hostility.is_none())
                })
                .collect();
            let chosen = random.pick(&of).copied().filter(|_| random.chance(500));
            if let Some(member) = chosen.and_then(|n| self.members.get_mut(n)) {
                member.hostility = Some(hostility.against(victim));
            }
        }
    }

    fn draw_flows(&mut self, random: &mut Random) {
        let mut flows = Vec::new();
        for (from, member) in self.members.iter().enumerate() {
            let others: Vec<usize> = self
                .members
                .iter()
                .enumerate()
                .filter(|(to, other)| *to != from && member.may_reach(other))
                .map(|(to, _)| to)
                .collect();
            let count = match member.kind {
                Kind::Operator => OPERATOR_FLOWS,
                Kind::Collector => NOTES_WITH,
                Kind::Sensor | Kind::Relay => 1,
            };
            for _ in 0..count {
                flows.extend(random.pick(&others).map(|to| Flow { from, to: *to }));
            }
            // Somebody tries what nobody allows.
            if random.chance(50) {
                let to = random.below(self.members.len());
                let forbidden = to != from && !self.are_peers(from, to);
                flows.extend(forbidden.then_some(Flow { from, to }));
            }
        }
        flows.dedup();
        self.flows = flows;
    }

    pub(super) fn place(&self, node: usize) -> Place {
        let member = self.members.get(node);
        let place = self.places.get(member.map_or(0, |m| m.site)).copied();
        match place {
            Some(Place::Sealed) if self.is_relay(node) => Place::Open,
            Some(place) => place,
            None => Place::Open,
        }
    }

    pub(super) fn is_relay(&self, node: usize) -> bool {
        self.members
            .get(node)
            .is_some_and(|m| m.kind == Kind::Relay)
    }

    pub(super) fn site(&self, node: usize) -> usize {
        self.members.get(node).map_or(0, |m| m.site)
    }

    /// Whether a firewall stands between two sites.
    pub(super) fn is_blocked(&self, a: usize, b: usize) -> bool {
        self.blocked.contains(&(a.min(b), a.max(b)))
    }

    /// Whether policy lets packets pass between the two at all.
    pub(super) fn are_peers(&self, a: usize, b: usize) -> bool {
        match (self.members.get(a), self.members.get(b)) {
            (Some(x), Some(y)) => x.may_reach(y) || y.may_reach(x),
            _ => false,
        }
    }
}

/// The first members, which are never hostile: a relay, an operator, and again.
const HONEST_FIRST: usize = 4;

fn draw_place(random: &mut Random) -> Place {
    let translation = match random.chance(300) {
        true => Translation::Symmetric,
        false => Translation::Cone,
    };
    let hairpin = random.chance(500);
    match random.below(10) {
        0..=2 => Place::Open,
        3 | 4 => Place::Sealed,
        _ => Place::Behind {
            translation,
            hairpin,
        },
    }
}

fn draw_members(places: &[Place], nodes: usize, random: &mut Random) -> Vec<Member> {
    let sites = places.len();
    let mut members = Vec::with_capacity(nodes);
    let pairs = (nodes / 200).max(2);
    for pair in 0..=pairs {
        members.push(Member::new(Kind::Relay, 0));
        if pair < pairs {
            let site = match pair < 2 || random.chance(500) {
                true => 0,
                false => random.below(sites),
            };
            members.push(Member::new(Kind::Operator, site));
        }
    }
    for (site, place) in places.iter().enumerate().skip(1) {
        members.push(Member::new(Kind::Collector, site));
        if *place == Place::Sealed {
            members.push(Member::new(Kind::Relay, site));
            if random.chance(500) {
                members.push(Member::new(Kind::Relay, site));
            }
        }
    }
    while members.len() < nodes {
        let kind = match random.chance(80) {
            true => Kind::Collector,
            false => Kind::Sensor,
        };
        members.push(Member::new(kind, 1 + random.below(sites - 1)));
    }
    for member in &mut members {
        member.is_strict = random.chance(300);
    }
    members
}
