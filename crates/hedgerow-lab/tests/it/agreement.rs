//! The compiled form in a real kernel against the meaning: whatever the policy, the devices, their
//! states and the time, real packets meet at both ends what the evaluator says.
//!
//! Every policy is tried three times: with both ends enforcing, as in a plant, and twice with every
//! flow's one end open, so that the other end's verdict is seen even where the first would refuse.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod draw;
pub(crate) mod namespace;
mod probe;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use hedgerow_linux::nft::Table;
use hedgerow_model::program::{Limit, tier};
use hedgerow_model::ruleset::{Lifeline, Profile, Ruleset, Verdict};
use hedgerow_model::service::Protocol;
use hedgerow_model::{Mono, Now, Wall, wire};
use hedgerow_policy::{
    Decision, End, Facts, Flow, LocalEnvironment, Policy, Resolver, Ruling, World, compile,
    evaluate,
};

use draw::{DEVICES, Dice, accepted};
use namespace::{TUNNEL, Wire, addresses, both};
use probe::{PATIENCE, Seen, TCP_PORTS, UDP_PORTS, attempt, flood, serve};

/// Together they meet every kind of decision, which the test makes sure of.
const SEEDS: [u64; 10] = [1, 2, 3, 4, 6, 7, 9, 10, 16, 21];
/// What should arrive and did not may only have been late: it is tried again, and waited for.
const LONG_PATIENCE: Duration = Duration::from_secs(4);
/// Which devices enforce; the others let everything pass.
const ROUNDS: [[bool; DEVICES]; 3] = [
    [true, true, true, true],
    [true, true, false, false],
    [false, false, true, true],
];

/// One attempt.
#[derive(Debug, Clone, Copy)]
struct Probe {
    from: usize,
    to: usize,
    target: IpAddr,
    point: (Protocol, u16),
}

/// What both ends say of one attempt; nothing where an end is open.
struct Meant {
    source: Option<Decision>,
    destination: Option<Decision>,
}

fn passes(decision: Option<&Decision>) -> bool {
    decision.is_none_or(|d| d.verdict != Ruling::Refuse)
}

impl Meant {
    fn seen(&self) -> Seen {
        match (
            passes(self.source.as_ref()),
            passes(self.destination.as_ref()),
        ) {
            (false, _) => Seen::Rejected,
            (true, false) => Seen::Silent,
            (true, true) => Seen::Answered,
        }
    }
}

/// A policy and devices, compiled as a controller does and resolved as agents do.
struct Plant {
    text: String,
    policy: Policy,
    world: World,
    devices: Vec<Facts>,
    at: Wall,
    trusted: bool,
}

impl Plant {
    fn drawn(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let devices = dice.devices();
        let (policy, text) = accepted(dice.policy());
        Self {
            text,
            policy,
            world: World::new(devices.clone()),
            devices,
            at: dice.time(),
            trusted: !dice.chance(4),
        }
    }

    fn now(&self) -> Now {
        Now {
            mono: Mono::ZERO,
            wall: self.at,
            wall_is_trusted: self.trusted,
        }
    }

    /// What device `number` loads, and its limits in the order of the kernel's names for them.
    fn ruleset(&self, number: usize, generation: u64) -> (Ruleset, Vec<Limit>) {
        let own = &self.devices[number];
        let sent = wire::encode(&compile(&self.policy, own).unwrap());
        let program = wire::decode_canonical("program", &sent).unwrap();
        let resolver = Resolver::new(&program, own, own.zone.as_deref().unwrap(), self.now());
        let peers = self.devices.iter().enumerate();
        let peers = peers
            .filter(|(i, _)| *i != number)
            .map(|(i, facts)| (facts.id, (facts.clone(), addresses(i))))
            .collect();
        let environment = LocalEnvironment {
            generation,
            tunnel: TUNNEL.to_owned(),
            own: addresses(number),
            pools: ["fd00:7::/48", "100.80.0.0/12"]
                .map(|p| p.parse().unwrap())
                .to_vec(),
            lifeline: Lifeline::default(),
        };
        let ruleset = resolver.ruleset(&peers, environment).unwrap();
        (ruleset, resolver.limits().to_vec())
    }

    fn meant(&self, probe: &Probe, enforcing: &[bool; DEVICES]) -> Meant {
        let flow = Flow {
            from: End::Device(self.devices[probe.from].id),
            to: End::Device(self.devices[probe.to].id),
            protocol: probe.point.0,
            port: probe.point.1,
        };
        let outcome = evaluate(&self.policy, &self.world, &flow, self.at, self.trusted);
        Meant {
            source: outcome.source.filter(|_| enforcing[probe.from]),
            destination: outcome.destination.filter(|_| enforcing[probe.to]),
        }
    }
}

/// Every attempt in which an end enforces alone, or both do.
fn probes(enforcing: &[bool; DEVICES]) -> Vec<Probe> {
    let all = enforcing.iter().all(|e| *e);
    let mut points: Vec<(Protocol, u16)> = Vec::new();
    points.extend(TCP_PORTS.map(|p| (Protocol::Tcp, p)));
    points.extend(UDP_PORTS.map(|p| (Protocol::Udp, p)));
    points.push((Protocol::IcmpEcho, 0));
    let mut out = Vec::new();
    for (from, to) in (0..DEVICES).flat_map(|a| (0..DEVICES).map(move |b| (a, b))) {
        if from == to || !all && enforcing[from] == enforcing[to] {
            continue;
        }
        for target in both(to) {
            out.extend(points.iter().map(|point| Probe {
                from,
                to,
                target,
                point: *point,
            }));
        }
    }
    out
}

fn open(mut ruleset: Ruleset) -> Ruleset {
    for profile in ruleset.profiles.values_mut() {
        *profile = Profile {
            inbound: Vec::new(),
            outbound: Vec::new(),
            inbound_default: Verdict::Accept,
            outbound_default: Verdict::Accept,
        };
    }
    ruleset
}

/// The kernels and the wire between them.
struct Bench {
    wire: Wire,
    tables: Vec<Table>,
    generation: u64,
    /// How often each kind of decision was met, so that the drawn policies are known to have them.
    met: BTreeMap<&'static str, usize>,
}

impl Bench {
    fn new() -> Self {
        let wire = Wire::new(DEVICES);
        for device in &wire.devices {
            serve(device);
        }
        let tables = wire.devices.iter();
        let tables = tables
            .map(|d| d.run(|| Table::open(None)).unwrap())
            .collect();
        Self {
            wire,
            tables,
            generation: 0,
            met: BTreeMap::new(),
        }
    }

    fn compare(&mut self, seed: u64) {
        let plant = Plant::drawn(seed);
        for enforcing in &ROUNDS {
            self.round(&plant, enforcing)
                .unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}\n{}", describe(&plant)));
        }
    }

    fn round(&mut self, plant: &Plant, enforcing: &[bool; DEVICES]) -> Result<(), String> {
        self.generation += 1;
        let mut limits = Vec::new();
        for (number, table) in self.tables.iter_mut().enumerate() {
            let (ruleset, known) = plant.ruleset(number, self.generation);
            let ruleset = if enforcing[number] {
                ruleset
            } else {
                open(ruleset)
            };
            table.load(&ruleset, plant.now()).unwrap();
            limits.push(known);
        }
        let before = self.counters();
        let mut counted = vec![BTreeSet::new(); DEVICES];
        let probes = probes(enforcing);
        for (probe, seen) in probes.iter().zip(self.attempt(&probes)) {
            let meant = plant.meant(probe, enforcing);
            self.tally(&meant);
            let seen = self.confirmed(probe, seen, meant.seen());
            if seen != meant.seen() {
                return Err(told(probe, seen, &meant));
            }
            counted[probe.from].extend(meant.source.as_ref().and_then(count_of));
            if passes(meant.source.as_ref()) {
                counted[probe.to].extend(meant.destination.as_ref().and_then(count_of));
            }
        }
        self.flood(plant, enforcing, &probes, (&limits, &mut counted));
        let after = self.counters();
        for number in (0..DEVICES).filter(|n| enforcing[*n]) {
            let grown = grown(&before[number], &after[number]);
            if grown != counted[number] {
                let wanted = &counted[number];
                return Err(format!("d{number} counts {grown:?}, meant is {wanted:?}"));
            }
        }
        Ok(())
    }

    /// Tries all at the same time; every device from its own namespace.
    fn attempt(&self, probes: &[Probe]) -> Vec<Seen> {
        let mut seen = vec![Seen::Silent; probes.len()];
        let results: Vec<(usize, Seen)> = std::thread::scope(|scope| {
            let mut senders = Vec::new();
            for (number, device) in self.wire.devices.iter().enumerate() {
                let own = probes.iter().enumerate();
                let own: Vec<_> = own.filter(|(_, p)| p.from == number).collect();
                senders.push(scope.spawn(move || device.run(|| together(&own))));
            }
            let done = senders.into_iter().flat_map(|s| s.join().unwrap());
            done.collect()
        });
        for (index, result) in results {
            seen[index] = result;
        }
        seen
    }

    /// Tries once more what should have come, on a machine that may be busy.
    fn confirmed(&self, probe: &Probe, seen: Seen, wanted: Seen) -> Seen {
        let late = seen == Seen::Silent && wanted != Seen::Silent;
        if !late {
            return seen;
        }
        let device = &self.wire.devices[probe.from];
        device.run(|| attempt(probe.target, probe.point, LONG_PATIENCE))
    }

    /// Sends more than a limit lets pass wherever datagrams pass, and notes which limits bind.
    fn flood(
        &mut self,
        plant: &Plant,
        enforcing: &[bool; DEVICES],
        probes: &[Probe],
        (limits, counted): (&[Vec<Limit>], &mut [BTreeSet<String>]),
    ) {
        for probe in probes.iter().filter(|p| p.point.0 == Protocol::Udp) {
            let meant = plant.meant(probe, enforcing);
            if meant.seen() != Seen::Answered {
                continue;
            }
            let device = &self.wire.devices[probe.from];
            device.run(|| flood(probe.target, probe.point.1));
            let Some(limit) = meant.destination.and_then(|d| d.limit) else {
                continue;
            };
            let index = limits[probe.to].iter().position(|l| *l == limit).unwrap();
            counted[probe.to].insert(format!("limit.{index}"));
            *self.met.entry("limit").or_default() += 1;
        }
    }

    fn counters(&mut self) -> Vec<BTreeMap<String, u64>> {
        let of = |table: &mut Table| {
            let counters = table.counters().unwrap().into_iter();
            let of_rules = ["deny.", "would.", "limit."];
            counters
                .filter(|(name, _)| of_rules.iter().any(|p| name.starts_with(p)))
                .map(|(name, counter)| (name, counter.packets))
                .collect()
        };
        self.tables.iter_mut().map(of).collect()
    }

    fn tally(&mut self, meant: &Meant) {
        let mut met = |what| *self.met.entry(what).or_default() += 1;
        met(match meant.seen() {
            Seen::Answered => "passes",
            Seen::Rejected => "refused at its source",
            Seen::Silent => "refused at its destination",
        });
        for decision in [&meant.source, &meant.destination].into_iter().flatten() {
            match decision.tier {
                tier::STATE => met("state"),
                tier::GUARDRAIL => met("guardrail"),
                tier::ORG => met("rule"),
                tier::SITE => met("rule of a site"),
                tier::DEFAULT => met("default"),
                other => panic!("tier {other}"),
            }
            if decision.verdict == Ruling::WouldRefuse {
                met("would refuse");
            }
            for step in &decision.steps {
                if step.outcome.contains("window is closed") {
                    met("window closed");
                }
                if step.outcome.contains("but excepts") {
                    met("exception");
                }
            }
        }
    }
}

fn together(probes: &[(usize, &Probe)]) -> Vec<(usize, Seen)> {
    std::thread::scope(|scope| {
        let running: Vec<_> = probes
            .iter()
            .map(|(index, p)| {
                let run = || attempt(p.target, p.point, PATIENCE);
                (*index, scope.spawn(run))
            })
            .collect();
        let done = running.into_iter().map(|(i, r)| (i, r.join().unwrap()));
        done.collect()
    })
}

/// The counter that grows by a packet with this decision.
fn count_of(decision: &Decision) -> Option<String> {
    match decision.verdict {
        Ruling::Pass => None,
        Ruling::WouldRefuse => Some(format!("would.{}", decision.would_deny.as_ref().unwrap())),
        Ruling::Refuse => Some(format!("deny.{}", decision.rule)),
    }
}

fn grown(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeSet<String> {
    let more = after
        .iter()
        .filter(|(name, count)| before.get(*name).is_none_or(|old| old < *count) && **count > 0);
    more.map(|(name, _)| name.clone()).collect()
}

fn told(probe: &Probe, seen: Seen, meant: &Meant) -> String {
    let end = |decision: &Option<Decision>| match decision {
        None => "open".to_owned(),
        Some(d) => format!("{:?} by {} ({})", d.verdict, d.rule, d.reason),
    };
    let (protocol, port) = probe.point;
    format!(
        "d{} → d{} at {} on {protocol}/{port}: {seen:?}, meant is {:?}; source: {}; destination: {}",
        probe.from,
        probe.to,
        probe.target,
        meant.seen(),
        end(&meant.source),
        end(&meant.destination)
    )
}

fn describe(plant: &Plant) -> String {
    let devices = plant.devices.iter();
    let devices: String = devices.map(|d| format!("{d:?}\n")).collect();
    let (at, trusted, text) = (plant.at, plant.trusted, &plant.text);
    format!("{devices}at {at:?}, trusted: {trusted}\n{text}")
}

#[test]
fn real_packets_meet_what_the_evaluator_says_at_both_ends() {
    let mut bench = Bench::new();
    for seed in SEEDS {
        bench.compare(seed);
    }
    for kind in [
        "passes",
        "refused at its source",
        "refused at its destination",
        "would refuse",
        "limit",
        "state",
        "guardrail",
        "exception",
        "rule",
        "rule of a site",
        "default",
        "window closed",
    ] {
        assert!(
            bench.met.contains_key(kind),
            "{kind} was not met: {:?}",
            bench.met
        );
    }
}
