//! From a program and what is known of a peer to what the kernel loads.
//!
//! ```text
//!  Program ──┐
//!  own facts ┼─▶ Resolver ─┬─ profile(peer)  ─▶ Profile
//!  now ──────┘             └─ ruleset(peers) ─▶ Ruleset, and next_change() when to ask again
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use hedgerow_model::address::{Overlay, OverlayAddresses, Prefix};
use hedgerow_model::id::DeviceId;
use hedgerow_model::packet::Direction;
use hedgerow_model::program::{
    Effect, Limit, Mode, Predicate, PredicateOp, Program, ProgramRule, Services, Target,
};
use hedgerow_model::ruleset::{
    Entry, Lifeline, PEERS_MAX, PROFILE_ENTRIES_MAX, Profile, ProfileId, RuleRef, Ruleset,
    UnderlayRule, UnderlayTarget, Verdict,
};
use hedgerow_model::service::{Ports, Protocol};
use hedgerow_model::{Fault, Now, Wall};
use jiff::tz::TimeZone;

use crate::facts::Facts;
use crate::window;

/// What a device adds to its program: its own addresses and its way to be mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalEnvironment {
    /// Grows with every ruleset.
    pub generation: u64,
    /// The tunnel interface's name.
    pub tunnel: String,
    /// Own overlay addresses.
    pub own: OverlayAddresses,
    /// Overlay pools of the trust domain.
    pub pools: Vec<Prefix>,
    /// What stays possible whatever policy says.
    pub lifeline: Lifeline,
}

/// A program needs more than the kernel is asked to hold. Nothing is made; the old ruleset stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ruleset needs {count} {what}, the bound is {max}")]
pub struct TooLarge {
    /// What is too many.
    pub what: &'static str,
    /// How many.
    pub count: usize,
    /// How many there may be.
    pub max: usize,
}

impl TooLarge {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        Fault::Operator
    }
}

/// How a schedule is read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Open,
    Closed,
    /// The time or the zone is not known: allow rules rest, deny rules apply.
    Unknown,
    /// What is possible at some time is asked: allow rules apply, deny rules rest.
    Hopeful,
}

/// A moment and the reading of every schedule from then on.
#[derive(Debug)]
struct Moment {
    at: Wall,
    readings: Vec<Reading>,
}

/// Turns one program into profiles for peers, at one time and for one device.
#[derive(Debug)]
pub struct Resolver<'a> {
    program: &'a Program,
    own: &'a Facts,
    /// Now, and the boundaries after it in order.
    moments: Vec<Moment>,
    /// Every reading unknown: what is in force when nobody watches the clock.
    blind: Moment,
    rule_names: Vec<String>,
    rule_refs: Vec<RuleRef>,
    limits: Vec<Limit>,
}

/// The refusal by default.
const DEFAULT: RuleRef = RuleRef(0);

/// Returns the devices among `candidates` that rules let `own` begin flows to, at some time: whom its
/// names should list. Modes short of enforcement add nobody, and states take nobody away.
pub fn names_for<'f>(
    program: &Program,
    own: &Facts,
    candidates: impl IntoIterator<Item = &'f Facts>,
) -> Vec<DeviceId> {
    let own = own.clone().in_state(None);
    let allow: Vec<&Predicate> = program
        .rules
        .iter()
        .filter(|r| r.direction == Direction::Out && r.effect == Effect::Allow)
        .filter(|r| r.own_state.is_none())
        .filter_map(|r| match &r.target {
            Target::Peers(predicate) => Some(predicate),
            Target::Prefixes(_) | Target::Internet | Target::Controller => None,
        })
        .collect();
    let resolver = Resolver::hopeful(program, &own);
    let mut known: BTreeMap<Vec<usize>, bool> = BTreeMap::new();
    let reached = candidates.into_iter().filter(|peer| {
        let peer = (*peer).clone().in_state(None);
        if peer.id == own.id || !allow.iter().any(|p| holds(p, &own, &peer).unwrap_or(false)) {
            return false;
        }
        let rules = resolver.matching(&peer);
        *known.entry(rules).or_insert_with_key(|rules| {
            let lines = resolver.lines(Direction::Out, rules, Mode::Enforce);
            !refuses(lines.default) || lines.entries.iter().any(|e| !refuses(e.verdict))
        })
    });
    reached.map(|f| f.id).collect()
}

/// What every rule that matches one other end says, both ways.
#[derive(Debug, PartialEq, Eq)]
struct Lines {
    entries: Vec<Entry>,
    default: Verdict,
}

impl<'a> Resolver<'a> {
    /// Prepares `program` for the device `own`, in its state, in its site's IANA `zone`, at `now`.
    ///
    /// An unknown zone and an untrusted clock read alike: windows that allow are closed, windows
    /// that deny are in force.
    pub fn new(program: &'a Program, own: &'a Facts, zone: &str, now: Now) -> Self {
        let mut rule_names = vec!["default".to_owned()];
        let mut limits: Vec<Limit> = Vec::new();
        let mut rule_refs = Vec::new();
        for rule in &program.rules {
            let known = rule_names.iter().position(|n| n == rule.id.as_str());
            let index = known.unwrap_or_else(|| {
                rule_names.push(rule.id.as_str().to_owned());
                rule_names.len() - 1
            });
            rule_refs.push(RuleRef(u16::try_from(index).unwrap_or(DEFAULT.0)));
            limits.extend(rule.limit.filter(|l| !limits.contains(l)));
        }
        let blind = Moment {
            at: now.wall,
            readings: vec![Reading::Unknown; program.schedules.len()],
        };
        Self {
            program,
            own,
            moments: moments(program, zone, now),
            blind,
            rule_names,
            rule_refs,
            limits,
        }
    }

    /// Reads every schedule so that most passes.
    fn hopeful(program: &'a Program, own: &'a Facts) -> Self {
        let now = Now {
            mono: hedgerow_model::Mono::ZERO,
            wall: Wall(0),
            wall_is_trusted: false,
        };
        let mut resolver = Self::new(program, own, "", now);
        for reading in resolver.moments.iter_mut().flat_map(|m| &mut m.readings) {
            *reading = Reading::Hopeful;
        }
        resolver
    }

    /// Returns the names that [`RuleRef`] refers to, in every profile of this resolver.
    pub fn rule_names(&self) -> &[String] {
        &self.rule_names
    }

    /// Returns the rates that [`Verdict::Limited`] refers to, in every profile of this resolver.
    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// Returns when a window opens or closes next: the profiles made now hold until then.
    pub fn next_change(&self) -> Option<Wall> {
        self.moments.get(1).map(|m| m.at)
    }

    /// Returns what `peer` may do with this device and this device with it.
    pub fn profile(&self, peer: &Facts) -> Profile {
        self.profile_of(&self.matching(peer))
    }

    /// Returns everything that the kernel is to load, for the peers met so far.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] when a bound of [`hedgerow_model::ruleset`] is broken; nothing is cut short.
    pub fn ruleset(
        &self,
        peers: &BTreeMap<DeviceId, (Facts, OverlayAddresses)>,
        env: LocalEnvironment,
    ) -> Result<Ruleset, TooLarge> {
        self.bounded(peers, env, PROFILE_ENTRIES_MAX)
    }

    fn bounded(
        &self,
        peers: &BTreeMap<DeviceId, (Facts, OverlayAddresses)>,
        env: LocalEnvironment,
        entries_max: usize,
    ) -> Result<Ruleset, TooLarge> {
        check("peers", peers.len(), PEERS_MAX)?;
        let mut by_rules: BTreeMap<Vec<usize>, ProfileId> = BTreeMap::new();
        let mut by_value: BTreeMap<Profile, ProfileId> = BTreeMap::new();
        let mut members: BTreeMap<Overlay, ProfileId> = BTreeMap::new();
        let mut entries = 0usize;
        for (facts, addresses) in peers.values() {
            let rules = self.matching(facts);
            let id = match by_rules.get(&rules) {
                Some(id) => *id,
                None => {
                    let profile = self.profile_of(&rules);
                    let lines = profile.inbound.len() + profile.outbound.len();
                    let next = ProfileId(u32::try_from(by_value.len()).unwrap_or(u32::MAX));
                    let id = *by_value.entry(profile).or_insert_with(|| {
                        entries = entries.saturating_add(lines);
                        next
                    });
                    by_rules.insert(rules, id);
                    id
                }
            };
            check("profile entries", entries, entries_max)?;
            members.extend(addresses.iter().map(|a| (a, id)));
        }
        Ok(Ruleset {
            generation: env.generation,
            tunnel: env.tunnel,
            own: env.own,
            profiles: by_value.into_iter().map(|(p, id)| (id, p)).collect(),
            peers: members,
            limits: self.limits.clone(),
            rule_names: self.rule_names.clone(),
            underlay_mode: self.program.underlay,
            underlay: self.underlay(&env.pools, &env.lifeline),
            pools: env.pools,
            lifeline: env.lifeline,
            sample_seconds: self.program.sample_seconds,
        })
    }

    /// Returns the rules that speak of `peer` while this device is in its state.
    fn matching(&self, peer: &Facts) -> Vec<usize> {
        self.select(|rule| match &rule.target {
            Target::Peers(predicate) => {
                holds(predicate, self.own, peer).unwrap_or(matches!(rule.effect, Effect::Deny))
            }
            Target::Prefixes(_) | Target::Internet | Target::Controller => false,
        })
    }

    fn select(&self, speaks: impl Fn(&ProgramRule) -> bool) -> Vec<usize> {
        let rules = self.program.rules.iter().enumerate();
        rules
            .filter(|(_, r)| r.own_state.is_none_or(|s| self.own.state == Some(s)) && speaks(r))
            .map(|(i, _)| i)
            .collect()
    }

    fn profile_of(&self, rules: &[usize]) -> Profile {
        let inbound = self.lines(Direction::In, rules, self.program.mode);
        let outbound = self.lines(Direction::Out, rules, self.program.mode);
        Profile {
            inbound: inbound.entries,
            outbound: outbound.entries,
            inbound_default: inbound.default,
            outbound_default: outbound.default,
        }
    }

    /// Decides every protocol and port under `rules`, and sums it up as few entries.
    fn lines(&self, direction: Direction, rules: &[usize], mode: Mode) -> Lines {
        let rules: Vec<usize> = rules
            .iter()
            .copied()
            .filter(|i| self.rule(*i).is_some_and(|r| r.direction == direction))
            .collect();
        let case = Case {
            resolver: self,
            direction,
            rules: &rules,
            mode,
        };
        // Where nobody watches the clock, the entries that a window holds open end by themselves and
        // leave the default: so the default is what holds without a clock.
        let mut default = case.verdict(&case.about_everything(), &self.blind);
        let pieces = case.pieces();
        let spoken = case.spoken_of(&pieces);
        let decided = pieces.iter().zip(&spoken);
        let pieces: Vec<Entry> = decided.map(|(p, rules)| case.decide(*p, rules)).collect();
        let ends = pieces.iter().find(|e| e.until.is_some());
        if let (Some(_), false) = (ends, refuses(default)) {
            default = Verdict::Deny(DEFAULT);
        }
        let mut entries: Vec<Entry> = Vec::new();
        for entry in pieces {
            match entries.last_mut() {
                Some(last) if joins(last, &entry) => last.ports.last = entry.ports.last,
                _ => entries.push(entry),
            }
        }
        entries.retain(|e| e.verdict != default || e.until.is_some());
        Lines { entries, default }
    }

    fn rule(&self, index: usize) -> Option<&ProgramRule> {
        self.program.rules.get(index)
    }

    fn reference(&self, index: usize) -> RuleRef {
        self.rule_refs.get(index).copied().unwrap_or(DEFAULT)
    }

    /// Decides the underlay: the address space falls into nested prefixes, each decided by itself;
    /// the narrowest comes first, and one that says the same as what surrounds it is left out.
    fn underlay(&self, pools: &[Prefix], lifeline: &Lifeline) -> Vec<UnderlayRule> {
        let space = Space::new(self.program, pools, lifeline);
        let mut rules = Vec::new();
        for direction in [Direction::In, Direction::Out] {
            let decided: Vec<(Prefix, Lines)> = space
                .prefixes
                .iter()
                .map(|prefix| {
                    let speaks = self.select(|r| space.speaks(&r.target, prefix));
                    (
                        *prefix,
                        self.lines(direction, &speaks, self.program.underlay),
                    )
                })
                .collect();
            let silent = self.lines(direction, &[], self.program.underlay);
            let mut layers: BTreeMap<usize, Vec<(Vec<Prefix>, &Lines)>> = BTreeMap::new();
            for (prefix, lines) in &decided {
                let around = decided
                    .iter()
                    .filter(|(p, _)| p != prefix && covers(p, prefix))
                    .max_by_key(|(p, _)| p.bits());
                if around.map_or(&silent, |(_, l)| l) == lines {
                    continue;
                }
                let depth = decided.iter().filter(|(p, _)| covers(p, prefix)).count();
                let layer = layers.entry(depth).or_default();
                match layer.iter_mut().find(|(_, l)| *l == lines) {
                    Some((prefixes, _)) => prefixes.push(*prefix),
                    None => layer.push((vec![*prefix], lines)),
                }
            }
            for (prefixes, lines) in layers.into_values().rev().flatten() {
                rules.extend(written(direction, &prefixes, lines));
            }
        }
        rules
    }
}

/// One direction of one other end.
struct Case<'r, 'a> {
    resolver: &'r Resolver<'a>,
    direction: Direction,
    rules: &'r [usize],
    mode: Mode,
}

impl Case<'_, '_> {
    /// Cuts the protocols and ports into pieces that every rule treats alike.
    fn pieces(&self) -> Vec<Ports> {
        let named = self.rules.iter().filter_map(|i| self.resolver.rule(*i));
        let ranges: Vec<Ports> = named
            .filter_map(|rule| match &rule.services {
                Services::Any => None,
                Services::Only(ports) => Some(ports),
            })
            .flatten()
            .copied()
            .collect();
        let mut pieces = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let own = ranges.iter().filter(|p| p.protocol == protocol);
            let mut starts: Vec<u16> = own
                .flat_map(|p| [Some(p.first), p.last.checked_add(1)])
                .flatten()
                .chain([0])
                .collect();
            starts.sort_unstable();
            starts.dedup();
            let ends = starts.iter().skip(1).map(|s| s.saturating_sub(1));
            let ends = ends.chain([u16::MAX]);
            pieces.extend(starts.iter().zip(ends).map(|(first, last)| Ports {
                protocol,
                first: *first,
                last,
            }));
        }
        pieces.push(Ports::ICMP_ECHO);
        pieces
    }

    /// Returns the rules that speak of every protocol and port.
    fn about_everything(&self) -> Vec<usize> {
        let any = |i: &&usize| {
            let rule = self.resolver.rule(**i);
            rule.is_some_and(|r| matches!(r.services, Services::Any))
        };
        self.rules.iter().filter(any).copied().collect()
    }

    /// Returns the rules that speak of each piece, in their order. A range of a rule covers pieces that
    /// lie side by side, so the work grows with what is found and not with rules times pieces.
    fn spoken_of(&self, pieces: &[Ports]) -> Vec<Vec<usize>> {
        let mut out = vec![Vec::new(); pieces.len()];
        for index in self.rules {
            let Some(rule) = self.resolver.rule(*index) else {
                continue;
            };
            let Services::Only(ranges) = &rule.services else {
                out.iter_mut().for_each(|rules| rules.push(*index));
                continue;
            };
            for range in ranges {
                let start = pieces.partition_point(|p| place(p) < place(range));
                let covered = pieces.iter().zip(out.iter_mut()).skip(start);
                for (_, rules) in covered.take_while(|(p, _)| range.contains(p.protocol, p.first)) {
                    // Ranges of one rule may overlap.
                    if rules.last() != Some(index) {
                        rules.push(*index);
                    }
                }
            }
        }
        out
    }

    /// Decides one piece at the present time by the rules that speak of it, and finds when a window
    /// takes away what it lets pass.
    fn decide(&self, ports: Ports, rules: &[usize]) -> Entry {
        let at = |m: &Moment| self.verdict(rules, m);
        let mut moments = self.resolver.moments.iter();
        let verdict = moments.next().map_or_else(|| at(&self.resolver.blind), at);
        let mut timed = rules.iter().filter_map(|i| self.resolver.rule(*i));
        let until = if refuses(verdict) || timed.all(|r| r.schedule.is_none()) {
            None
        } else {
            moments.find(|m| refuses(at(m))).map(|m| m.at)
        };
        Entry {
            ports,
            verdict,
            until,
        }
    }

    /// Walks the tiers of the rules that speak: the first that decides ends it, and in a tier deny
    /// beats allow.
    fn verdict(&self, spoken: &[usize], moment: &Moment) -> Verdict {
        let mut would: Option<RuleRef> = None;
        let mut rest = spoken;
        while let Some(first) = rest.first().and_then(|i| self.resolver.rule(*i)) {
            let in_tier = |i: &usize| self.resolver.rule(*i).is_some_and(|r| r.tier == first.tier);
            let (tier, lower) = rest.split_at(rest.iter().take_while(|i| in_tier(i)).count());
            rest = lower;
            let mut allowed: Option<&ProgramRule> = None;
            for index in tier.iter().filter(|i| self.applies(**i, spoken, moment)) {
                let Some(rule) = self.resolver.rule(*index) else {
                    continue;
                };
                match (rule.effect, rule.mode) {
                    (Effect::Allow, _) => allowed = allowed.or(Some(rule)),
                    (Effect::Deny, Mode::Enforce) => {
                        return Verdict::Deny(self.resolver.reference(*index));
                    }
                    (Effect::Deny, Mode::Simulate) => {
                        would = would.or(Some(self.resolver.reference(*index)));
                    }
                    (Effect::Deny, Mode::Observe) => {}
                }
            }
            if let Some(rule) = allowed {
                return self.passes(rule, would);
            }
        }
        match self.mode {
            Mode::Enforce => Verdict::Deny(DEFAULT),
            Mode::Simulate => Verdict::WouldDeny(would.unwrap_or(DEFAULT)),
            Mode::Observe => would.map_or(Verdict::Accept, Verdict::WouldDeny),
        }
    }

    /// A rate binds where the flow arrives and the receiver enforces.
    fn passes(&self, rule: &ProgramRule, would: Option<RuleRef>) -> Verdict {
        let binds = self.direction == Direction::In && self.mode == Mode::Enforce;
        let limit = rule.limit.filter(|_| binds);
        let index = limit.and_then(|l| self.resolver.limits.iter().position(|k| *k == l));
        match index.and_then(|i| u16::try_from(i).ok()) {
            Some(i) => Verdict::Limited(i),
            None => would.map_or(Verdict::Accept, Verdict::WouldDeny),
        }
    }

    /// Whether a rule that speaks is in force now, and no exception of it that speaks too.
    fn applies(&self, index: usize, spoken: &[usize], moment: &Moment) -> bool {
        let excepted = |rule: &ProgramRule| {
            let except = rule.except.iter().map(|e| usize::from(*e));
            let mut except = except.filter(|e| spoken.contains(e));
            except.any(|e| self.in_force(e, moment))
        };
        self.in_force(index, moment) && !self.resolver.rule(index).is_some_and(excepted)
    }

    fn in_force(&self, index: usize, moment: &Moment) -> bool {
        let Some(rule) = self.resolver.rule(index) else {
            return false;
        };
        let reading = rule.schedule.map(|s| {
            let reading = moment.readings.get(usize::from(s));
            reading.copied().unwrap_or(Reading::Unknown)
        });
        match reading {
            None | Some(Reading::Open) => true,
            Some(Reading::Closed) => false,
            Some(Reading::Unknown) => rule.effect == Effect::Deny,
            Some(Reading::Hopeful) => rule.effect == Effect::Allow,
        }
    }
}

/// The underlay address space, cut wherever a rule can tell addresses apart.
struct Space {
    /// Distinct, the whole space among them.
    prefixes: Vec<Prefix>,
    local: Vec<Prefix>,
    controllers: Vec<Prefix>,
}

impl Space {
    fn new(program: &Program, pools: &[Prefix], lifeline: &Lifeline) -> Self {
        let controllers: Vec<Prefix> = lifeline
            .controllers
            .iter()
            .filter_map(|c| host(c.ip()))
            .collect();
        let local: Vec<Prefix> = crate::internet::local_prefixes()
            .iter()
            .copied()
            .chain(pools.iter().copied())
            .collect();
        let mut prefixes: Vec<Prefix> = crate::internet::whole().collect();
        for rule in &program.rules {
            match &rule.target {
                Target::Peers(_) => {}
                Target::Prefixes(named) => prefixes.extend(named),
                Target::Internet => prefixes.extend(&local),
                Target::Controller => prefixes.extend(&controllers),
            }
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        Self {
            prefixes,
            local,
            controllers,
        }
    }

    fn speaks(&self, target: &Target, prefix: &Prefix) -> bool {
        let within = |set: &[Prefix]| set.iter().any(|p| covers(p, prefix));
        match target {
            Target::Peers(_) => false,
            Target::Prefixes(named) => within(named),
            Target::Internet => !within(&self.local),
            Target::Controller => within(&self.controllers),
        }
    }
}

fn host(address: IpAddr) -> Option<Prefix> {
    Prefix::new(address, if address.is_ipv4() { 32 } else { 128 }).ok()
}

fn covers(outer: &Prefix, inner: &Prefix) -> bool {
    outer.bits() <= inner.bits() && outer.contains(inner.address())
}

/// Writes what was decided for some prefixes: one rule per verdict, then the default.
fn written(direction: Direction, prefixes: &[Prefix], lines: &Lines) -> Vec<UnderlayRule> {
    let target = UnderlayTarget::Prefixes(prefixes.to_vec());
    let mut rules: Vec<UnderlayRule> = Vec::new();
    for entry in &lines.entries {
        let same = |r: &&mut UnderlayRule| (r.verdict, r.until) == (entry.verdict, entry.until);
        match rules.iter_mut().find(same) {
            Some(rule) => rule.ports.push(entry.ports),
            None => rules.push(UnderlayRule {
                direction,
                target: target.clone(),
                ports: vec![entry.ports],
                verdict: entry.verdict,
                until: entry.until,
            }),
        }
    }
    rules.push(UnderlayRule {
        direction,
        target,
        ports: Vec::new(),
        verdict: lines.default,
        until: None,
    });
    rules
}

fn refuses(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Deny(_))
}

/// Where a piece stands among all of one case.
fn place(ports: &Ports) -> (Protocol, u16) {
    (ports.protocol, ports.first)
}

fn joins(a: &Entry, b: &Entry) -> bool {
    a.ports.protocol == b.ports.protocol
        && a.ports.last.checked_add(1) == Some(b.ports.first)
        && (a.verdict, a.until) == (b.verdict, b.until)
}

fn check(what: &'static str, count: usize, max: usize) -> Result<(), TooLarge> {
    if count > max {
        return Err(TooLarge { what, count, max });
    }
    Ok(())
}

/// Reads every schedule now and at each coming boundary.
fn moments(program: &Program, zone: &str, now: Now) -> Vec<Moment> {
    let zones: Vec<Option<TimeZone>> = program
        .schedules
        .iter()
        .map(|s| TimeZone::get(s.zone.as_deref().unwrap_or(zone)).ok())
        .collect();
    let timed = || program.schedules.iter().zip(&zones);
    let mut at: Vec<Wall> = vec![now.wall];
    if now.wall_is_trusted {
        for (schedule, zone) in timed() {
            at.extend(
                zone.iter()
                    .flat_map(|z| window::boundaries(schedule, z, now.wall)),
            );
        }
    }
    at.sort_unstable();
    at.dedup();
    let read = |schedule, zone: &Option<TimeZone>, at| {
        let zone = zone.as_ref().filter(|_| now.wall_is_trusted);
        match zone.and_then(|z| window::is_open(schedule, z, at)) {
            Some(true) => Reading::Open,
            Some(false) => Reading::Closed,
            None => Reading::Unknown,
        }
    };
    at.into_iter()
        .map(|at| Moment {
            at,
            readings: timed().map(|(s, z)| read(s, z, at)).collect(),
        })
        .collect()
}

/// Evaluates a predicate over a peer's facts; none when it does not leave exactly one value.
pub(crate) fn holds(predicate: &Predicate, own: &Facts, peer: &Facts) -> Option<bool> {
    let mut stack: Vec<bool> = Vec::new();
    for op in &predicate.0 {
        let value = match op {
            PredicateOp::True => true,
            PredicateOp::False => false,
            PredicateOp::Is(a, v) => peer.value(a).is_some_and(|p| p == v.as_str()),
            PredicateOp::In(a, vs) => peer.value(a).is_some_and(|p| vs.iter().any(|v| p == *v)),
            PredicateOp::Has(a) => peer.value(a).is_some(),
            PredicateOp::SameAsOwn(a) => peer.value(a).is_some_and(|p| own.value(a) == Some(p)),
            PredicateOp::State(s) => peer.state == Some(*s),
            PredicateOp::AnyState => peer.state.is_some(),
            PredicateOp::Not => !stack.pop()?,
            PredicateOp::And => {
                let (a, b) = (stack.pop()?, stack.pop()?);
                a && b
            }
            PredicateOp::Or => {
                let (a, b) = (stack.pop()?, stack.pop()?);
                a || b
            }
        };
        stack.push(value);
    }
    stack.pop().filter(|_| stack.is_empty())
}

#[cfg(test)]
mod tests;
