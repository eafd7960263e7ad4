//! What the table looks like: from a [`Ruleset`] to the messages that create it.
//!
//! ```text
//!  input ─┬ lo ─▶ accept                       output: the same with addresses turned round
//!         ├ tunnel ─▶ in6 / in4 ─┬ not to us, invalid, TCP without SYN ─▶ refused
//!         │                      ├ original ─▶ peer → profile; (profile . protocol . dport) ─▶ in_*
//!         │                      └ reply    ─▶ peer → profile; (profile . protocol . sport) ─▶ out_*
//!         ├ overlay address elsewhere ─▶ refused
//!         └ underlay_in: lifeline, rules, default
//!  forward: from or to the tunnel ─▶ dropped
//! ```
//!
//! # Invariants
//!
//! - Every packet is looked up; there is no shortcut for established flows. What leaves a map stops
//!   at once, whoever is alive.
//! - A rule or reason has one counter, one sampler and one chain of its own name.
//! - The profile stays in a register from the peer's map to the verdict maps, so no packet mark of
//!   somebody else's is overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use hedgerow_model::Wall;
use hedgerow_model::address::{Overlay, OverlayAddresses, Prefix};
use hedgerow_model::packet::Direction;
use hedgerow_model::program::{Limit, Mode};
use hedgerow_model::ruleset::{
    Entry, Lifeline, Profile, ProfileId, RuleRef, Ruleset, UnderlayRule, UnderlayTarget, Verdict,
};
use hedgerow_model::service::{Ports, Protocol};

use super::NftError;
use super::matching::{
    FAMILIES, Family, Part, in_family, interface, of_part, of_protocol, with_profile, with_state,
};
use super::ranges::{merged, successor};
use super::wire::{CT_INVALID, CT_NEW, CT_RELATED, CT_UNTRACKED};
use super::wire::{
    Carries, Compare, Element, Header, Hook, ICMP, ICMPV6, Mapped, Meta, Meter, NFPROTO_IPV6, Rule,
    SET_DYNAMIC, SET_INTERVAL, SET_TIMEOUT, Set, Shown, TCP, Target, UDP, chain, counter, elements,
    message, register,
};
use crate::netlink::Request;

/// The NFLOG group that refused packets are sampled to.
pub(super) const SAMPLE_GROUP: u16 = 7117;
/// Bytes of a sampled packet: headers only, never payload worth keeping.
const SAMPLE_BYTES: u32 = 96;
/// After connection tracking and after the `filter` chains of other firewalls.
const PRIORITY: u32 = 10;
/// An attribute ends at 64 KiB.
const ELEMENTS_PER_MESSAGE_MAX: usize = 500;
/// Deepest bucket below which segmentation offload would be cut.
const BURST_BYTES_MIN: u32 = 64 * 1024;
/// Set in every profile's word.
const PROFILE_BIT: u32 = 1 << 31;
const YEAR_MS: u64 = 365 * 86_400_000;

/// What is refused without a rule saying so; each is a chain and a counter.
pub(super) const REASONS: [&str; 8] = [
    "unknown_peer",
    "spoofed_overlay",
    "not_overlay",
    "not_syn",
    "invalid",
    "forwarded",
    "wanted_excess",
    "underlay_default",
];

/// The table under construction, in the order in which the kernel wants it.
#[derive(Debug, Default)]
pub(super) struct Layout {
    chains: Vec<Request>,
    counters: BTreeSet<String>,
    sets: Vec<Request>,
    elements: BTreeMap<String, Vec<Element>>,
    rules: Vec<Request>,
    names: Vec<String>,
    limits: BTreeSet<u16>,
    denied: BTreeSet<u16>,
    observed: BTreeSet<u16>,
    sample_seconds: u32,
}

/// Returns every message of the table's content, in the order in which they are sent.
pub(super) fn layout(ruleset: &Ruleset, now: Wall) -> Result<Vec<Request>, NftError> {
    check(ruleset)?;
    let mut out = Layout {
        names: unique_names(&ruleset.rule_names),
        sample_seconds: ruleset.sample_seconds,
        ..Layout::default()
    };
    out.base_chains(&ruleset.tunnel);
    out.pools(&ruleset.pools);
    out.peers(ruleset);
    let ranges = out.profiles(ruleset, now);
    for family in FAMILIES {
        out.tunnel(family, Direction::In, ruleset, ranges);
        out.tunnel(family, Direction::Out, ruleset, ranges);
        out.wanted(family);
    }
    out.underlay(ruleset, now);
    out.limit_chains(ruleset);
    out.rule_chains();
    out.reason_chains();
    Ok(out.finish())
}

/// Returns a ruleset that needs every kind of object and expression there is.
pub(super) fn specimen() -> Ruleset {
    let window = |ports, verdict| Entry {
        ports,
        verdict,
        until: Some(Wall(1_000)),
    };
    let range = Ports {
        protocol: Protocol::Tcp,
        first: 1,
        last: 2,
    };
    let profile = Profile {
        inbound: vec![window(Ports::ICMP_ECHO, Verdict::Limited(0))],
        outbound: vec![window(range, Verdict::WouldDeny(RuleRef(0)))],
        inbound_default: Verdict::Deny(RuleRef(0)),
        outbound_default: Verdict::Accept,
    };
    let own = OverlayAddresses {
        v6: Ipv6Addr::LOCALHOST,
        v4: Some(Ipv4Addr::LOCALHOST),
    };
    Ruleset {
        generation: 0,
        tunnel: "specimen".to_owned(),
        own,
        pools: Vec::new(),
        peers: own.iter().map(|a| (a, ProfileId(0))).collect(),
        profiles: BTreeMap::from([(ProfileId(0), profile)]),
        limits: vec![Limit {
            bytes_per_second: 1,
            burst_bytes: BURST_BYTES_MIN,
        }],
        rule_names: vec!["specimen".to_owned()],
        underlay_mode: Mode::Enforce,
        underlay: vec![UnderlayRule {
            direction: Direction::Out,
            target: UnderlayTarget::Internet,
            ports: vec![range],
            verdict: Verdict::Accept,
            until: Some(Wall(1_000)),
        }],
        lifeline: Lifeline::default(),
        sample_seconds: 1,
    }
}

fn check(ruleset: &Ruleset) -> Result<(), NftError> {
    let malformed = |detail: String| Err(NftError::Malformed { detail });
    if ruleset.tunnel.is_empty() || ruleset.tunnel.len() > 15 {
        return malformed(format!("{:?} is no interface name", ruleset.tunnel));
    }
    if let Some(id) = ruleset.profiles.keys().find(|id| id.0 >= PROFILE_BIT) {
        return malformed(format!("profile number {} is too large", id.0));
    }
    if let Some(id) = ruleset
        .peers
        .values()
        .find(|id| !ruleset.profiles.contains_key(id))
    {
        return malformed(format!("a peer has profile {}, which is not there", id.0));
    }
    let profiles = ruleset.profiles.values().flat_map(|p| {
        let entries = p.inbound.iter().chain(&p.outbound).map(|e| e.verdict);
        entries.chain([p.inbound_default, p.outbound_default])
    });
    let mut verdicts = profiles.chain(ruleset.underlay.iter().map(|r| r.verdict));
    let lost = verdicts.find(|v| match v {
        Verdict::Accept => false,
        Verdict::Limited(i) => usize::from(*i) >= ruleset.limits.len(),
        Verdict::WouldDeny(r) | Verdict::Deny(r) => usize::from(r.0) >= ruleset.rule_names.len(),
    });
    match lost {
        Some(verdict) => malformed(format!("{verdict:?} points beyond its list")),
        None => Ok(()),
    }
}

/// Makes the names fit for counters and chains, and different from each other.
fn unique_names(names: &[String]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let fit = |name: &String| {
        let keep = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        let text: String = name
            .chars()
            .take(64)
            .map(|c| if keep(c) { c } else { '_' })
            .collect();
        let mut tried = text.clone();
        let mut n = 2;
        while !seen.insert(tried.clone()) {
            tried = format!("{text}.{n}");
            n += 1;
        }
        tried
    };
    names.iter().map(fit).collect()
}

impl Layout {
    pub(super) fn chain(&mut self, name: &str) {
        self.chains.push(chain(name, None));
    }

    pub(super) fn rule(&mut self, rule: Rule) {
        self.rules.push(rule.request());
    }

    pub(super) fn set(&mut self, set: Set<'_>) {
        let id = u32::try_from(self.sets.len() + 1).unwrap_or(u32::MAX);
        self.sets.push(set.request(id));
    }

    pub(super) fn element(&mut self, set: &str, element: Element) {
        match self.elements.get_mut(set) {
            Some(list) => list.push(element),
            None => drop(self.elements.insert(set.to_owned(), vec![element])),
        }
    }

    /// Adds a set of address ranges per family; returns nothing to look up for an empty one.
    pub(super) fn prefix_sets(&mut self, name: &str, prefixes: &[Prefix]) {
        for family in FAMILIES {
            let set = format!("{name}{}", family.digit);
            let own = prefixes
                .iter()
                .filter(|p| Family::of(p).digit == family.digit);
            self.set(Set::new(
                &set,
                &[family.shown],
                Carries::Nothing,
                SET_INTERVAL,
            ));
            for (first, last) in merged(own) {
                self.element(&set, Element::new(first, Mapped::Nothing));
                if let Some(next) = successor(&last) {
                    let mut end = Element::new(next, Mapped::Nothing);
                    end.interval_end = true;
                    self.element(&set, end);
                }
            }
        }
    }

    fn base_chains(&mut self, tunnel: &str) {
        for (name, hook) in [
            ("input", Hook::Input),
            ("forward", Hook::Forward),
            ("output", Hook::Output),
        ] {
            self.chains.push(chain(name, Some((hook, PRIORITY))));
        }
        for (base, way, name) in [
            ("input", Direction::In, Meta::InputName),
            ("output", Direction::Out, Meta::OutputName),
        ] {
            let prefix = prefix_of(way);
            let branch = format!("tunnel_{prefix}");
            self.chain(&branch);
            self.rule(interface(base, name, "lo").then(&Target::Accept));
            self.rule(interface(base, name, tunnel).then(&Target::goto(branch.clone())));
            for family in FAMILIES {
                for offset in [family.source, family.destination] {
                    let pool = format!("pools{}", family.digit);
                    let rule = in_family(Rule::new(base), family)
                        .payload(Header::Network, offset, family.length, register::FIRST)
                        .in_set(&pool, register::FIRST);
                    self.rule(rule.then(&Target::goto("spoofed_overlay")));
                }
                let inner = format!("{prefix}{}", family.digit);
                self.chain(&inner);
                let rule = in_family(Rule::new(&*branch), family);
                self.rule(rule.then(&Target::goto(inner)));
            }
            self.rule(Rule::new(branch).then(&Target::goto("invalid")));
            self.rule(Rule::new(base).then(&Target::goto(format!("underlay_{prefix}"))));
        }
        for name in [Meta::InputName, Meta::OutputName] {
            let rule = interface("forward", name, tunnel);
            self.rule(rule.then(&Target::goto("forwarded")));
        }
    }

    fn pools(&mut self, pools: &[Prefix]) {
        self.prefix_sets("pools", pools);
    }

    fn peers(&mut self, ruleset: &Ruleset) {
        for family in FAMILIES {
            let name = format!("peers{}", family.digit);
            self.set(Set::new(&name, &[family.shown], Carries::Profile, 0));
        }
        for (address, profile) in &ruleset.peers {
            let (set, element) = peer_element(*address, *profile);
            self.element(set, element);
        }
    }

    /// Adds the verdict maps; returns whether there are ranges, (in, out).
    fn profiles(&mut self, ruleset: &Ruleset, now: Wall) -> (bool, bool) {
        const KEY: [Shown; 3] = [Shown::Mark, Shown::Protocol, Shown::Port];
        for way in [Direction::In, Direction::Out] {
            let prefix = prefix_of(way);
            let entries = || {
                let of = move |(id, p): (&ProfileId, _)| (*id, entries_of(p, way));
                ruleset.profiles.iter().map(of)
            };
            let timed = entries().any(|(_, list)| list.iter().any(|e| e.until.is_some()));
            let flags = if timed { SET_TIMEOUT } else { 0 };
            let (ports, ranges) = (format!("{prefix}_ports"), format!("{prefix}_ranges"));
            self.set(Set::new(&ports, &KEY, Carries::Verdict, flags));
            self.set(Set::new(
                &ranges,
                &KEY,
                Carries::Verdict,
                flags | SET_INTERVAL,
            ));
            for (id, entry) in entries().flat_map(|(id, l)| l.iter().map(move |e| (id, e))) {
                self.entry(way, id, entry, now);
            }
            let default = format!("{prefix}_default");
            self.set(Set::new(&default, &[Shown::Mark], Carries::Verdict, 0));
            for (id, profile) in &ruleset.profiles {
                let verdict = match way {
                    Direction::In => profile.inbound_default,
                    Direction::Out => profile.outbound_default,
                };
                let data = Mapped::Verdict(self.target(way, verdict));
                self.element(&default, Element::new(mark(*id), data));
            }
        }
        self.set(Set::new("known", &[Shown::Mark], Carries::Verdict, 0));
        for id in ruleset.profiles.keys() {
            let data = Mapped::Verdict(Target::Accept);
            self.element("known", Element::new(mark(*id), data));
        }
        (
            self.elements.contains_key("in_ranges"),
            self.elements.contains_key("out_ranges"),
        )
    }

    fn entry(&mut self, way: Direction, id: ProfileId, entry: &Entry, now: Wall) {
        let Some(timeout_ms) = remaining(entry.until, now) else {
            return;
        };
        let data = Mapped::Verdict(self.target(way, entry.verdict));
        let prefix = prefix_of(way);
        for (protocol, first, last) in wire_ports(entry.ports) {
            let mut element = Element::new(key(id, protocol, first), data.clone());
            element.timeout_ms = timeout_ms;
            if first == last {
                self.element(&format!("{prefix}_ports"), element);
            } else {
                element.key_end = Some(key(id, protocol, last));
                self.element(&format!("{prefix}_ranges"), element);
            }
        }
    }

    /// Returns where `verdict` sends a packet of a flow that begins in direction `way`.
    ///
    /// The receiver meters, so a limit on flows that this device begins lets pass here.
    pub(super) fn target(&mut self, way: Direction, verdict: Verdict) -> Target {
        let name = |names: &[String], rule: RuleRef| {
            names.get(usize::from(rule.0)).cloned().unwrap_or_default()
        };
        match verdict {
            Verdict::Accept => Target::Accept,
            Verdict::Limited(_) if way == Direction::Out => Target::Accept,
            Verdict::Limited(i) => {
                self.limits.insert(i);
                Target::goto(format!("limit.{i}"))
            }
            Verdict::WouldDeny(rule) => {
                self.observed.insert(rule.0);
                Target::goto(format!("would.{}", name(&self.names, rule)))
            }
            Verdict::Deny(rule) => {
                self.denied.insert(rule.0);
                Target::goto(format!("deny.{}", name(&self.names, rule)))
            }
        }
    }

    fn tunnel(&mut self, family: Family, way: Direction, ruleset: &Ruleset, ranges: (bool, bool)) {
        let name = format!("{}{}", prefix_of(way), family.digit);
        let own: Option<Vec<u8>> = if family.number == NFPROTO_IPV6 {
            Some(ruleset.own.v6.octets().to_vec())
        } else {
            ruleset.own.v4.map(|a| a.octets().to_vec())
        };
        let address = |offset| {
            let rule = in_family(Rule::new(&*name), family);
            rule.payload(Header::Network, offset, family.length, register::FIRST)
        };
        if way == Direction::Out {
            let pool = format!("pools{}", family.digit);
            let rule = address(family.destination).not_in_set(&pool, register::FIRST);
            self.rule(rule.then(&Target::goto("not_overlay")));
        }
        let foreign = match &own {
            Some(own) => address(family.near(way)).compare(Compare::NotEqual, own, register::FIRST),
            None => Rule::new(&*name),
        };
        self.rule(foreign.then(&Target::goto("spoofed_overlay")));
        self.gates(&name, family, way);
        for part in [Part::Original, Part::Reply] {
            let branch = branch_name(&name, part);
            self.chain(&branch);
            self.rule(of_part(Rule::new(&*name), part).then(&Target::goto(branch)));
            self.lookups(&name, family, way, part, ranges);
        }
        self.rule(Rule::new(&*name).then(&Target::goto("invalid")));
    }

    /// What is refused, or let through, before ports are looked at.
    fn gates(&mut self, name: &str, family: Family, way: Direction) {
        let rule = with_state(Rule::new(name), CT_INVALID | CT_UNTRACKED);
        self.rule(rule.then(&Target::goto("invalid")));

        let mut rule = of_protocol(with_state(Rule::new(name), CT_RELATED), family.icmp);
        if family.icmp == ICMP {
            const REDIRECT: u8 = 5;
            rule = rule
                .payload(Header::Transport, 0, 1, register::FIRST)
                .compare(Compare::NotEqual, &[REDIRECT], register::FIRST);
        }
        let rule = with_profile(rule, family, way).verdict_map("known", register::PROFILE);
        self.rule(rule);
        if way == Direction::In {
            self.answers(name, family);
        }

        const FLAGS_OFFSET: u32 = 13;
        const FIN_SYN_RST_ACK: u8 = 0x17;
        const SYN: u8 = 0x02;
        let rule = with_state(of_protocol(Rule::new(name), TCP), CT_NEW)
            .payload(Header::Transport, FLAGS_OFFSET, 1, register::FIRST)
            .mask(&[FIN_SYN_RST_ACK], register::FIRST)
            .compare(Compare::NotEqual, &[SYN], register::FIRST);
        self.rule(rule.then(&Target::goto("not_syn")));
    }

    /// The tunnel answers a first packet that may not go, or cannot, in the name of its destination,
    /// which is no peer here. A peer cannot forge such an answer: the tunnel takes from it what bears
    /// its own addresses alone, and those are known.
    fn answers(&mut self, name: &str, family: Family) {
        // Host unreachable, and communication administratively prohibited.
        const ANSWERS: [[u8; 2]; 2] = [[3, 1], [3, 13]];
        const ANSWERS_V6: [[u8; 2]; 2] = [[1, 3], [1, 1]];
        let kinds = match family.icmp {
            ICMP => ANSWERS,
            _ => ANSWERS_V6,
        };
        self.counters.insert("answered".to_owned());
        for kind in kinds {
            let rule = of_protocol(with_state(Rule::new(name), CT_RELATED), family.icmp)
                .payload(Header::Transport, 0, 2, register::FIRST)
                .compare(Compare::Equal, &kind, register::FIRST)
                .count("answered");
            self.rule(rule.then(&Target::Accept));
        }
    }

    fn lookups(
        &mut self,
        name: &str,
        family: Family,
        way: Direction,
        part: Part,
        ranges: (bool, bool),
    ) {
        let branch = branch_name(name, part);
        // Whose flow it is: a reply belongs to a flow that began the other way.
        let maps = match (way, part) {
            (Direction::In, Part::Original) | (Direction::Out, Part::Reply) => "in",
            (Direction::Out, Part::Original) | (Direction::In, Part::Reply) => "out",
        };
        let has_ranges = if maps == "in" { ranges.0 } else { ranges.1 };
        let (ports, default) = (format!("{maps}_ports"), format!("{maps}_default"));
        let end = match way {
            Direction::In => Target::goto("unknown_peer"),
            Direction::Out => Target::goto(format!("wanted{}", family.digit)),
        };
        let by_port = |chain: &str, offset: u32, map: &str| {
            with_profile(Rule::new(chain), family, way)
                .meta(Meta::Protocol, register::PROTOCOL)
                .payload(Header::Transport, offset, 2, register::PORT)
                .verdict_map(map, register::PROFILE)
        };
        let by_default = |chain: &str| {
            with_profile(Rule::new(chain), family, way).verdict_map(&default, register::PROFILE)
        };
        if part == Part::Original {
            // Echo's type lies where a reply's port does; there is no port on the way there.
            let echo = format!("{name}_echo");
            self.chain(&echo);
            let rule = of_protocol(Rule::new(&*branch), family.icmp);
            self.rule(rule.then(&Target::goto(echo.clone())));
            self.rule(by_port(&echo, 0, &ports));
            self.rule(by_default(&echo));
            self.rule(Rule::new(echo).then(&end));
        }
        self.rule(by_port(&branch, part.port_offset(), &ports));
        if has_ranges {
            self.rule(by_port(
                &branch,
                part.port_offset(),
                &format!("{maps}_ranges"),
            ));
        }
        self.rule(by_default(&branch));
        self.rule(Rule::new(branch).then(&end));
    }

    /// The first packets to a peer that is not known yet go to the tunnel, which introduces it.
    fn wanted(&mut self, family: Family) {
        let name = format!("wanted{}", family.digit);
        let set = format!("meter_{name}");
        self.set(Set {
            size: 4096,
            timeout_ms: 10_000,
            ..Set::new(
                &set,
                &[family.shown],
                Carries::Nothing,
                SET_DYNAMIC | SET_TIMEOUT,
            )
        });
        self.chain(&name);
        self.counters.insert("wanted".to_owned());
        let meter = Meter::Packets {
            per_second: 10,
            burst: 16,
        };
        let rule = in_family(Rule::new(&*name), family)
            .payload(
                Header::Network,
                family.destination,
                family.length,
                register::FIRST,
            )
            .meter(&set, register::FIRST, meter)
            .count("wanted");
        self.rule(rule.then(&Target::Accept));
        self.rule(Rule::new(name).then(&Target::goto("wanted_excess")));
    }

    fn limit_chains(&mut self, ruleset: &Ruleset) {
        let capacity = u32::try_from(ruleset.peers.len()).unwrap_or(u32::MAX);
        let capacity = capacity.saturating_mul(2).max(1024).next_power_of_two();
        for index in std::mem::take(&mut self.limits) {
            let Some(limit) = ruleset.limits.get(usize::from(index)) else {
                continue;
            };
            let name = format!("limit.{index}");
            self.chain(&name);
            self.rule(of_part(Rule::new(&*name), Part::Reply).then(&Target::Accept));
            let per_second = limit.bytes_per_second.max(1);
            let burst = limit.burst_bytes.max(BURST_BYTES_MIN);
            // An idle source's bucket is forgotten when it would be full anyway.
            let refill_ms = u64::from(burst).saturating_mul(2000) / per_second;
            for family in FAMILIES {
                let set = format!("meter_{index}_{}", family.digit);
                self.set(Set {
                    size: capacity,
                    timeout_ms: refill_ms.clamp(60_000, YEAR_MS),
                    ..Set::new(
                        &set,
                        &[family.shown],
                        Carries::Nothing,
                        SET_DYNAMIC | SET_TIMEOUT,
                    )
                });
                let rule = in_family(Rule::new(&*name), family)
                    .payload(
                        Header::Network,
                        family.source,
                        family.length,
                        register::FIRST,
                    )
                    .meter(&set, register::FIRST, Meter::Bytes { per_second, burst });
                self.rule(rule.then(&Target::Accept));
            }
            self.refusal(&name);
        }
    }

    fn rule_chains(&mut self) {
        for index in std::mem::take(&mut self.denied) {
            if let Some(name) = self.names.get(usize::from(index)) {
                let name = format!("deny.{name}");
                self.chain(&name);
                self.refusal(&name);
            }
        }
        for index in std::mem::take(&mut self.observed) {
            if let Some(name) = self.names.get(usize::from(index)) {
                let name = format!("would.{name}");
                self.chain(&name);
                self.counters.insert(name.clone());
                let rule = Rule::new(&*name).count(&name);
                self.rule(rule.then(&Target::Accept));
            }
        }
    }

    fn reason_chains(&mut self) {
        for reason in REASONS {
            self.chain(reason);
            self.refusal(reason);
        }
        self.chain("refuse");
        // A packet that came from somewhere is dropped; our own programs are told.
        let arrived = Rule::new("refuse")
            .meta(Meta::InputIndex, register::FIRST)
            .compare(Compare::NotEqual, &0u32.to_ne_bytes(), register::FIRST);
        self.rule(arrived.then(&Target::Drop));
        self.rule(of_protocol(Rule::new("refuse"), TCP).reject_tcp());
        self.rule(Rule::new("refuse").reject_prohibited());
    }

    /// Fills a chain that counts, samples and refuses.
    fn refusal(&mut self, name: &str) {
        // Multicast that the kernel itself sends into any interface is counted and is no news;
        // excess towards the unknown must not look like an answer from there.
        let quiet = name == "not_overlay";
        let silent = quiet || name == "wanted_excess";
        self.counters.insert(name.to_owned());
        self.rule(Rule::new(name).count(name));
        if let Some((rate, unit)) = sampling(self.sample_seconds).filter(|_| !quiet) {
            let rule = Rule::new(name).limit_packets(rate, unit, 1);
            self.rule(rule.log(SAMPLE_GROUP, name, SAMPLE_BYTES));
        }
        let end = if silent {
            Target::Drop
        } else {
            Target::goto("refuse")
        };
        self.rule(Rule::new(name).then(&end));
    }

    fn finish(self) -> Vec<Request> {
        let mut out = self.chains;
        out.extend(self.counters.iter().map(|name| counter(name)));
        out.extend(self.sets);
        for (set, list) in &self.elements {
            let parts = list.chunks(ELEMENTS_PER_MESSAGE_MAX);
            out.extend(parts.map(|part| elements(message::NEW_ELEMENT, set, part)));
        }
        out.extend(self.rules);
        out
    }
}

fn prefix_of(way: Direction) -> &'static str {
    match way {
        Direction::In => "in",
        Direction::Out => "out",
    }
}

fn branch_name(name: &str, part: Part) -> String {
    match part {
        Part::Original => format!("{name}_original"),
        Part::Reply => format!("{name}_reply"),
    }
}

fn entries_of(profile: &Profile, way: Direction) -> &[Entry] {
    match way {
        Direction::In => &profile.inbound,
        Direction::Out => &profile.outbound,
    }
}

/// Returns the element of a peer and the map it belongs to.
pub(super) fn peer_element(address: Overlay, profile: ProfileId) -> (&'static str, Element) {
    let data = Mapped::Value([vec![0; 4], mark(profile)].concat());
    match address.0 {
        std::net::IpAddr::V6(a) => ("peers6", Element::new(a.octets().to_vec(), data)),
        std::net::IpAddr::V4(a) => ("peers4", Element::new(a.octets().to_vec(), data)),
    }
}

fn mark(id: ProfileId) -> Vec<u8> {
    (PROFILE_BIT | id.0).to_ne_bytes().to_vec()
}

fn key(id: ProfileId, protocol: u8, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    let mut out = mark(id);
    out.extend_from_slice(&[protocol, 0, 0, 0, high, low, 0, 0]);
    out
}

/// Returns protocol number and key range; echo is known by type and code of request and reply.
fn wire_ports(ports: Ports) -> Vec<(u8, u16, u16)> {
    match ports.protocol {
        Protocol::Tcp => vec![(TCP, ports.first, ports.last)],
        Protocol::Udp => vec![(UDP, ports.first, ports.last)],
        Protocol::IcmpEcho => [
            (ICMPV6, 0x8000),
            (ICMPV6, 0x8100),
            (ICMP, 0x0800),
            (ICMP, 0),
        ]
        .map(|(protocol, kind)| (protocol, kind, kind))
        .to_vec(),
    }
}

/// Returns for how many milliseconds an entry stays, 0 for ever; nothing when it is over.
fn remaining(until: Option<Wall>, now: Wall) -> Option<u64> {
    match until {
        None => Some(0),
        Some(end) if end <= now => None,
        Some(end) => Some((end.0 - now.0).min(YEAR_MS)),
    }
}

/// Returns packets per unit so that at most one sample leaves in `seconds`, in units nft can print.
fn sampling(seconds: u32) -> Option<(u64, u64)> {
    let seconds = u64::from(seconds);
    let unit = [1, 60, 3600, 86_400]
        .into_iter()
        .find(|u| seconds <= *u)
        .unwrap_or(604_800);
    (seconds > 0).then(|| ((unit / seconds).max(1), unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_rate_never_exceeds_one_in_the_seconds_asked_for() {
        assert_eq!(sampling(0), None);
        for seconds in [1, 2, 7, 10, 59, 60, 61, 3_000, 90_000, 700_000] {
            let (rate, unit) = sampling(seconds).unwrap();
            let asked = u64::from(seconds);
            assert!(rate == 1 || unit / rate >= asked, "{seconds}");
        }
    }

    #[test]
    fn names_are_fit_for_the_kernel_and_stay_apart() {
        let names = ["a b", "a_b", "plc-write", "a b"].map(str::to_owned);
        assert_eq!(unique_names(&names), ["a_b", "a_b.2", "plc-write", "a_b.3"]);
    }
}
