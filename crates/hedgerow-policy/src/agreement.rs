//! The compiled form against the meaning: whatever the policy, the devices, their states, the packet
//! and the time, both ends decide as the evaluator says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use hedgerow_model::address::{OverlayAddresses, Prefix};
use hedgerow_model::id::DeviceId;
use hedgerow_model::packet::{Direction, Packet};
use hedgerow_model::program::{DeviceState, Mode, Program};
use hedgerow_model::ruleset::{Lifeline, Ruleset, UnderlayTarget, Verdict};
use hedgerow_model::service::Protocol;
use hedgerow_model::{Mono, Now, Wall, wire};
use proptest::prelude::*;

use crate::{
    Decision, End, Facts, Flow, LocalEnvironment, Outcome, Policy, Resolver, Ruling, World,
    class_matches, compile, evaluate, names_for, parse,
};

/// Choices drawn from bytes, so that a failing case shrinks; zero when they run out.
struct Tape<'t> {
    bytes: std::slice::Iter<'t, u8>,
    /// Whether every rule carries one and the same limit, so that none contradict.
    limits: bool,
}

impl<'t> Tape<'t> {
    fn new(bytes: &'t [u8]) -> Self {
        Self {
            bytes: bytes.iter(),
            limits: false,
        }
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let byte = self.bytes.next().copied().unwrap_or(0);
        choices[usize::from(byte) % choices.len()]
    }

    fn chance(&mut self, one_in: u8) -> bool {
        self.bytes.next().copied().unwrap_or(0) % one_in == one_in - 1
    }

    fn selector(&mut self, depth: u8) -> String {
        let simple = [
            "role=a",
            "role=b",
            "role=c",
            "any",
            "role in (a, b)",
            "zone=x",
            "zone",
            "site=s1",
            "name=d1",
            "segment=g1",
            "role=a and zone=x",
            "not role=c",
            "role=b or zone=y",
        ];
        if depth == 0 || !self.chance(4) {
            return self.pick(&simple).to_owned();
        }
        let (a, b) = (self.selector(depth - 1), self.selector(depth - 1));
        match self.pick(&[0, 1, 2]) {
            0 => format!("({a}) and ({b})"),
            1 => format!("({a}) or ({b})"),
            _ => format!("not ({a})"),
        }
    }

    fn destination(&mut self) -> &'static str {
        self.pick(&[
            "role=b",
            "role=a",
            "any",
            "role in (b, c)",
            "zone=y",
            "name=d2",
            "segment=g2",
        ])
    }

    fn underlay(&mut self) -> &'static str {
        self.pick(&[
            "internet",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "0.0.0.0/0",
            "8.8.8.0/24",
            "::/0",
        ])
    }

    fn service(&mut self) -> &'static str {
        self.pick(&[
            "web",
            "modbus",
            "range",
            "ping",
            "any",
            "[web, ping]",
            "udp/53",
        ])
    }

    fn flows(&mut self, deny: bool) -> String {
        let (from, to) = if self.chance(4) {
            let (device, address) = (self.selector(1), self.underlay().to_owned());
            if self.chance(2) {
                (device, address)
            } else {
                (address, device)
            }
        } else if deny {
            (self.selector(1), self.selector(1))
        } else {
            (self.selector(1), self.destination().to_owned())
        };
        let mut text = format!(
            "from: \"{from}\", to: \"{to}\", service: {}",
            self.service()
        );
        let mesh = ![&from, &to]
            .iter()
            .any(|e| e.contains(['/']) || *e == "internet");
        if mesh && self.chance(3) {
            let same = self.pick(&["site", "zone", "site, zone"]);
            write!(text, ", same: [{same}]").unwrap();
        }
        text
    }

    fn schedule(&mut self) -> String {
        let days = self.pick(&["mon, tue, wed, thu, fri", "sat, sun", "sun", "mon"]);
        let (from, to) = self.pick(&[
            ("08:00", "18:00"),
            ("22:00", "06:00"),
            ("02:30", "24:00"),
            ("00:00", "24:00"),
        ]);
        let zone = self.pick(&["site", "site", "Europe/Berlin", "Asia/Kolkata"]);
        format!("{{ days: [{days}], from: \"{from}\", to: \"{to}\", tz: {zone} }}")
    }

    fn rule(&mut self, id: usize) -> String {
        let deny = self.chance(4);
        let mut text = format!("  - {{ id: r{id}, ");
        let flows = self.flows(deny);
        if deny {
            write!(text, "deny: {{ {flows} }}").unwrap();
            if self.chance(3) {
                write!(
                    text,
                    ", mode: {}",
                    self.pick(&["observe", "simulate", "enforce"])
                )
                .unwrap();
            }
        } else {
            text += &flows;
            if (self.limits || self.chance(12))
                && !flows.contains("to: \"internet")
                && !flows.contains("/0\"")
            {
                text += ", limit: { rate: 8 Mbit/s, per: source }";
            }
        }
        if self.chance(3) {
            write!(text, ", when: {}", self.pick(&["w1", "w2"])).unwrap();
        }
        if self.chance(4) {
            text += ", tier: site";
        }
        text + " }\n"
    }

    fn policy(&mut self) -> String {
        self.limits = self.chance(3);
        let modes = ["enforce", "enforce", "simulate", "observe"];
        let (m1, m2) = (self.pick(&modes), self.pick(&modes));
        let (u1, u2) = (
            self.pick(&["observe", "enforce"]),
            self.pick(&["observe", "enforce"]),
        );
        let (w1, w2) = (self.schedule(), self.schedule());
        let mut text = format!(
            "apiVersion: hedgerow.policy/v1\nkind: Policy\n\
             labels: {{ role: {{ values: [a, b, c] }}, zone: {{ values: [x, y] }} }}\n\
             services: {{ web: [tcp/443], modbus: [tcp/502], range: [tcp/400-510, udp/0-52] }}\n\
             schedules: {{ w1: {w1}, w2: {w2} }}\n\
             segments:\n  g1: {{ select: \"role=a\", mode: {m1}, underlay: {u1} }}\n  \
             g2: {{ select: \"role=b and not segment=g1\", mode: {m2}, underlay: {u2} }}\n",
        );
        let count = usize::from(self.pick(&[2u8, 3, 4, 5, 6, 8, 12]));
        let rules: Vec<String> = (0..count).map(|i| self.rule(i)).collect();
        let allows: Vec<usize> = rules
            .iter()
            .enumerate()
            .filter(|(_, r)| !r.contains("deny"))
            .map(|(i, _)| i)
            .collect();
        if self.chance(3) {
            text += "guardrails:\n";
            for i in 0..self.pick(&[1, 2]) {
                let deny = !self.chance(3);
                let flows = self.flows(deny);
                let word = if deny { "deny" } else { "allow" };
                write!(text, "  - {{ id: g{i}, {word}: {{ {flows} }}").unwrap();
                if deny && !allows.is_empty() && self.chance(2) {
                    write!(text, ", except: [ r{} ]", self.pick(&allows)).unwrap();
                }
                if self.chance(3) {
                    text += ", when: w1";
                }
                text += " }\n";
            }
        }
        if !rules.is_empty() {
            text += "rules:\n";
            text.extend(rules);
        }
        if self.chance(2) {
            let (a, b) = (self.destination(), self.service());
            let c = self.destination();
            writeln!(
                text,
                "states: {{ quarantine: {{ allow: [ {{ to: \"{a}\", service: {b} }}, \
                 {{ from: \"{c}\", service: web }} ] }} }}"
            )
            .unwrap();
        }
        text
    }

    fn world(&mut self) -> Vec<Facts> {
        let states = [
            None,
            None,
            None,
            None,
            None,
            None,
            Some(DeviceState::Quarantine),
            Some(DeviceState::Onboarding),
        ];
        (0..5u8)
            .map(|i| {
                let role = self.pick(&["role=a", "role=b", "role=c", "", "role=other"]);
                let zone = self.pick(&["", "zone=x", "zone=y"]);
                let join = if role.is_empty() || zone.is_empty() {
                    ""
                } else {
                    ","
                };
                let site = self.pick(&["s1", "s2"]);
                Facts {
                    id: DeviceId([i; 16]),
                    name: format!("d{i}").parse().unwrap(),
                    site: site.parse().unwrap(),
                    labels: format!("{role}{join}{zone}").parse().unwrap(),
                    state: self.pick(&states),
                    zone: Some(
                        if site == "s1" {
                            "Europe/Berlin"
                        } else {
                            "America/New_York"
                        }
                        .to_owned(),
                    ),
                }
            })
            .collect()
    }
}

const POINTS: [(Protocol, u16); 12] = [
    (Protocol::Tcp, 0),
    (Protocol::Tcp, 399),
    (Protocol::Tcp, 400),
    (Protocol::Tcp, 443),
    (Protocol::Tcp, 502),
    (Protocol::Tcp, 510),
    (Protocol::Tcp, 511),
    (Protocol::Tcp, u16::MAX),
    (Protocol::Udp, 52),
    (Protocol::Udp, 53),
    (Protocol::Udp, 54),
    (Protocol::IcmpEcho, 0),
];

const ADDRESSES: [&str; 7] = [
    "8.8.8.8",
    "9.9.9.9",
    "10.1.2.3",
    "10.9.9.9",
    "192.168.7.7",
    "fd12::9",
    "2a00::1",
];

/// Around the European clock change of 2026-03-29, which falls on a Sunday.
fn times() -> impl Strategy<Value = Wall> {
    (0u64..9 * 24 * 60).prop_map(|m| Wall::from_secs(1_774_396_800 + m * 60))
}

fn now(wall: Wall, trusted: bool) -> Now {
    Now {
        mono: Mono::ZERO,
        wall,
        wall_is_trusted: trusted,
    }
}

/// The evaluator's decision in the words of the kernel.
fn expected(decision: &Decision, resolver: &Resolver<'_>) -> Verdict {
    let named = |name: &str| {
        let index = resolver.rule_names().iter().position(|n| n == name);
        hedgerow_model::ruleset::RuleRef(u16::try_from(index.unwrap()).unwrap())
    };
    match decision.verdict {
        Ruling::Refuse => Verdict::Deny(named(&decision.rule)),
        Ruling::WouldRefuse => Verdict::WouldDeny(named(decision.would_deny.as_ref().unwrap())),
        Ruling::Pass => decision.limit.map_or(Verdict::Accept, |limit| {
            let index = resolver.limits().iter().position(|l| *l == limit);
            Verdict::Limited(u16::try_from(index.unwrap()).unwrap())
        }),
    }
}

/// Removes the lines that are refused, which only rules that contradict others may be.
fn accepted(mut text: String) -> Policy {
    loop {
        let (policy, findings) = parse(&text, "random");
        if let Some(policy) = policy {
            return policy;
        }
        let errors = findings
            .iter()
            .filter(|d| d.severity == crate::Severity::Error);
        let mut bad = BTreeSet::new();
        for error in errors {
            let line = text
                .lines()
                .nth(error.line as usize - 1)
                .unwrap_or_default();
            assert!(line.starts_with("  - {"), "{error}\n{text}");
            bad.insert(error.line as usize - 1);
        }
        let lines = text.lines().enumerate().filter(|(i, _)| !bad.contains(i));
        let lines: Vec<&str> = lines.map(|(_, l)| l).collect();
        let empty = |i: usize| {
            lines[i].ends_with("s:") && !lines.get(i + 1).is_some_and(|l| l.starts_with("  "))
        };
        let kept = (0..lines.len()).filter(|i| !empty(*i)).map(|i| lines[i]);
        text = kept.collect::<Vec<_>>().join("\n") + "\n";
    }
}

struct Bench {
    policy: Policy,
    world: World,
    devices: Vec<Facts>,
    programs: BTreeMap<DeviceId, Program>,
}

impl Bench {
    fn new(bytes: &[u8]) -> Self {
        let mut tape = Tape::new(bytes);
        let devices = tape.world();
        let policy = accepted(tape.policy());
        let compiled = devices.iter().map(|f| (f.id, compile(&policy, f).unwrap()));
        let programs = compiled.collect();
        let world = World::new(devices.clone());
        Self {
            policy,
            world,
            devices,
            programs,
        }
    }

    fn outcome(&self, from: End, to: End, point: (Protocol, u16), at: Wall, ok: bool) -> Outcome {
        let flow = Flow {
            from,
            to,
            protocol: point.0,
            port: point.1,
        };
        evaluate(&self.policy, &self.world, &flow, at, ok)
    }

    /// One device's view of one peer, at `at` and, with nobody watching the clock, at `later`.
    fn mesh(&self, own: &Facts, peer: &Facts, at: Wall, later: Wall, ok: bool) {
        let program = &self.programs[&own.id];
        let resolver = Resolver::new(program, own, own.zone.as_deref().unwrap(), now(at, ok));
        let profile = resolver.profile(peer);
        let quiet = resolver.next_change().map(|t| Wall(t.0 - 1));
        for point in POINTS {
            for direction in [Direction::In, Direction::Out] {
                let (me, other) = (End::Device(own.id), End::Device(peer.id));
                let decide = |t| match direction {
                    Direction::In => self.outcome(other, me, point, t, ok).destination.unwrap(),
                    Direction::Out => self.outcome(me, other, point, t, ok).source.unwrap(),
                };
                let packet = Packet {
                    direction,
                    protocol: point.0,
                    port: point.1,
                };
                let wanted = expected(&decide(at), &resolver);
                assert_eq!(
                    profile.decide(&packet, at),
                    wanted,
                    "{packet:?} {:#?}",
                    decide(at)
                );
                if let Some(quiet) = quiet {
                    assert_eq!(
                        expected(&decide(quiet), &resolver),
                        wanted,
                        "before the change"
                    );
                }
                let passes = !matches!(profile.decide(&packet, later), Verdict::Deny(_));
                assert!(
                    !passes || decide(later).verdict != Ruling::Refuse,
                    "a dead agent leaves {packet:?} open at {later:?}"
                );
            }
        }
    }

    fn ruleset(&self, own: &Facts, at: Wall, ok: bool) -> (Ruleset, Vec<String>) {
        let program = &self.programs[&own.id];
        let resolver = Resolver::new(program, own, own.zone.as_deref().unwrap(), now(at, ok));
        let addresses = |f: &Facts| OverlayAddresses {
            v6: std::net::Ipv6Addr::from(u128::from_be_bytes(f.id.0)),
            v4: None,
        };
        let peers = self.devices.iter().filter(|p| p.id != own.id);
        let peers = peers.map(|p| (p.id, (p.clone(), addresses(p)))).collect();
        let env = LocalEnvironment {
            generation: 1,
            tunnel: "hedgerow0".to_owned(),
            own: addresses(own),
            pools: vec!["100.80.0.0/12".parse::<Prefix>().unwrap()],
            lifeline: Lifeline::default(),
        };
        (
            resolver.ruleset(&peers, env).unwrap(),
            resolver.rule_names().to_vec(),
        )
    }

    fn underlay(&self, own: &Facts, at: Wall, later: Wall, ok: bool) {
        let (ruleset, names) = self.ruleset(own, at, ok);
        for address in ADDRESSES.map(|a| a.parse::<IpAddr>().unwrap()) {
            for (protocol, port) in POINTS {
                for direction in [Direction::In, Direction::Out] {
                    let (me, other) = (End::Device(own.id), End::Address(address));
                    let decide = |t| match direction {
                        Direction::In => self
                            .outcome(other, me, (protocol, port), t, ok)
                            .destination
                            .unwrap(),
                        Direction::Out => self
                            .outcome(me, other, (protocol, port), t, ok)
                            .source
                            .unwrap(),
                    };
                    let found = |t| first_match(&ruleset, direction, address, (protocol, port), t);
                    let decision = decide(at);
                    let same = match (found(at), decision.verdict) {
                        (Verdict::Deny(r), Ruling::Refuse) => {
                            names[usize::from(r.0)] == decision.rule
                        }
                        (Verdict::WouldDeny(r), Ruling::WouldRefuse) => {
                            Some(&names[usize::from(r.0)]) == decision.would_deny.as_ref()
                        }
                        (Verdict::Accept, Ruling::Pass) => decision.limit.is_none(),
                        (Verdict::Limited(i), Ruling::Pass) => {
                            Some(ruleset.limits[usize::from(i)]) == decision.limit
                        }
                        _ => false,
                    };
                    assert!(
                        same,
                        "{direction:?} {address} {protocol}/{port}: {:?} but {decision:#?}\n{:#?}",
                        found(at),
                        ruleset.underlay
                    );
                    let passes = !matches!(found(later), Verdict::Deny(_));
                    assert!(
                        !passes || decide(later).verdict != Ruling::Refuse,
                        "left open"
                    );
                }
            }
        }
    }
}

fn first_match(
    ruleset: &Ruleset,
    direction: Direction,
    address: IpAddr,
    (protocol, port): (Protocol, u16),
    at: Wall,
) -> Verdict {
    let hit = ruleset.underlay.iter().find(|r| {
        let UnderlayTarget::Prefixes(prefixes) = &r.target else {
            panic!("prefixes only");
        };
        r.direction == direction
            && prefixes.iter().any(|p| p.contains(address))
            && (r.ports.is_empty() || r.ports.iter().any(|p| p.contains(protocol, port)))
            && r.until.is_none_or(|t| at < t)
    });
    let enforce = ruleset.underlay_mode == Mode::Enforce;
    let default = if enforce {
        Verdict::Deny(hedgerow_model::ruleset::RuleRef(0))
    } else {
        Verdict::Accept
    };
    hit.map_or(default, |r| r.verdict)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn both_ends_decide_as_the_evaluator_says(
        bytes in proptest::collection::vec(any::<u8>(), 250..700),
        at in times(),
        wait in 0u64..8 * 24 * 60,
        trusted in any::<bool>(),
    ) {
        let bench = Bench::new(&bytes);
        {
            let later = Wall(at.0 + wait * 60_000);
            for own in &bench.devices {
                for peer in bench.devices.iter().filter(|p| p.id != own.id) {
                    bench.mesh(own, peer, at, later, trusted);
                }
            }
        }
    }

    #[test]
    fn the_underlay_is_decided_as_the_evaluator_says(
        bytes in proptest::collection::vec(any::<u8>(), 250..700),
        at in times(),
        wait in 0u64..8 * 24 * 60,
        trusted in any::<bool>(),
    ) {
        let bench = Bench::new(&bytes);
        {
            let later = Wall(at.0 + wait * 60_000);
            for own in bench.devices.iter().take(3) {
                bench.underlay(own, at, later, trusted);
            }
        }
    }

    #[test]
    fn programs_fit_their_class_survive_the_wire_and_name_whom_they_reach(
        bytes in proptest::collection::vec(any::<u8>(), 250..700),
        at in times(),
    ) {
        let bench = Bench::new(&bytes);
        {
            for own in &bench.devices {
                let program = &bench.programs[&own.id];
                for other in &bench.devices {
                    let same = class_matches(&program.class, other);
                    prop_assert_eq!(same, program == &bench.programs[&other.id]
                        && program.class == bench.programs[&other.id].class);
                }
                prop_assert_eq!(crate::fits(program), Ok(()));
                let bytes = wire::encode(program);
                prop_assert_eq!(&wire::decode_canonical::<Program>("program", &bytes).unwrap(), program);
                let named = names_for(program, own, &bench.devices);
                for peer in bench.devices.iter().filter(|p| p.id != own.id) {
                    if own.state.is_some() || peer.state.is_some() || program.mode != Mode::Enforce {
                        continue;
                    }
                    let reached = POINTS.iter().any(|p| {
                        let (me, other) = (End::Device(own.id), End::Device(peer.id));
                        let outcome = bench.outcome(me, other, *p, at, true);
                        outcome.source.unwrap().verdict != Ruling::Refuse
                    });
                    prop_assert!(!reached || named.contains(&peer.id));
                }
            }
        }
    }

    #[test]
    fn random_bytes_never_panic_the_parser(text in ".{0,300}") {
        parse(&text, "random");
    }
}
