//! Who is where, behind what, and who talks to whom: drawn from the seed.

use super::random::Random;

/// What a device is for; policy speaks of nothing else but this and the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Reports to its site's collectors.
    Sensor,
    /// Takes the reports.
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
}

/// One device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) kind: Kind,
    pub(super) site: usize,
}

impl Member {
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
            (Kind::Operator, Kind::Sensor | Kind::Collector) => true,
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
}

/// Devices of one site, more or less.
const SITE_DEVICES: usize = 40;

impl Plant {
    pub(super) fn draw(nodes: usize, random: &mut Random) -> Self {
        // Site 0 is the office: open, with the operators and the relays.
        let sites = 1 + nodes.div_ceil(SITE_DEVICES).max(2);
        let mut places = vec![Place::Open];
        for _ in 1..sites {
            let translation = match random.chance(300) {
                true => Translation::Symmetric,
                false => Translation::Cone,
            };
            let hairpin = random.chance(500);
            places.push(match random.chance(300) {
                true => Place::Open,
                false => Place::Behind {
                    translation,
                    hairpin,
                },
            });
        }
        let mut members = Vec::with_capacity(nodes);
        for _ in 0..(nodes / 200).max(2) {
            members.push(Member {
                kind: Kind::Relay,
                site: 0,
            });
            members.push(Member {
                kind: Kind::Operator,
                site: 0,
            });
        }
        for site in 1..sites {
            members.push(Member {
                kind: Kind::Collector,
                site,
            });
        }
        while members.len() < nodes {
            let kind = match random.chance(80) {
                true => Kind::Collector,
                false => Kind::Sensor,
            };
            let site = 1 + random.below(sites - 1);
            members.push(Member { kind, site });
        }
        let flows = Self::draw_flows(&members, random);
        Self {
            places,
            members,
            flows,
        }
    }

    fn draw_flows(members: &[Member], random: &mut Random) -> Vec<Flow> {
        let mut flows = Vec::new();
        for (from, member) in members.iter().enumerate() {
            let others: Vec<usize> = members
                .iter()
                .enumerate()
                .filter(|(to, other)| *to != from && member.may_reach(other))
                .map(|(to, _)| to)
                .collect();
            let count = if member.kind == Kind::Operator { 6 } else { 1 };
            for _ in 0..count {
                flows.extend(random.pick(&others).map(|to| Flow { from, to: *to }));
            }
            // Somebody tries what nobody allows.
            if random.chance(50) {
                let to = random.below(members.len());
                let forbidden = members
                    .get(to)
                    .is_some_and(|other| !member.may_reach(other) && !other.may_reach(member));
                flows.extend((forbidden && to != from).then_some(Flow { from, to }));
            }
        }
        flows.dedup();
        flows
    }

    pub(super) fn place(&self, node: usize) -> Place {
        let site = self.members.get(node).map_or(0, |m| m.site);
        self.places.get(site).copied().unwrap_or(Place::Open)
    }

    /// Whether policy lets packets pass between the two at all.
    pub(super) fn are_peers(&self, a: usize, b: usize) -> bool {
        match (self.members.get(a), self.members.get(b)) {
            (Some(x), Some(y)) => x.may_reach(y) || y.may_reach(x),
            _ => false,
        }
    }
}
