//! The judgements: what was seen against what the reference says.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;

use super::faults::Disk;
use super::figures::Stream;
use super::hostile::Hostility;
use super::network;
use super::packet::Packet;
use super::plant::Flow;
use super::reference::{self, Expected};
use super::world::{Probe, World};

/// Serials from here on are of streams.
pub(super) const STREAMS_FROM: u32 = 1 << 31;
/// Streams of one round.
const STREAMS_MAX: usize = 12;
/// Between two packets of one.
const STREAM_EVERY: Duration = Duration::from_millis(50);
/// Gossip of one device while nothing happens, in thousandths of a byte per second.
const GOSSIP_MOST: u64 = 40_000;
/// How long the quiet lasts over which that is a mean, in seconds.
const QUIET_SECS: u64 = 180;
/// How soon a signed list is everywhere: 99 of 100, and all.
const URGENT_P99_MS: u64 = 5_000;
/// A list that comes so long after it was given by hand comes from elsewhere.
const URGENT_FOR: Duration = Duration::from_secs(30);
/// Candidates for being revoked or contained begin here: some relays and operators stay.
const EXPENDABLE_FIRST: usize = 4;

impl World {
    pub(super) fn probe(&mut self) {
        self.probes.clear();
        for (index, flow) in self.plant.flows.iter().enumerate() {
            let expected =
                reference::expected(&self.plant, &self.circumstances, flow.from, flow.to);
            self.probes.insert(
                index,
                Probe {
                    expected,
                    arrived: false,
                    answered: false,
                },
            );
        }
        for flow in 0..self.plant.flows.len() {
            self.put_probe(flow);
        }
        self.quiet = self
            .nodes
            .iter()
            .map(|n| (n.boots, n.gossip_bytes))
            .collect();
    }

    /// Compares what was seen with what the reference says, and every table with its bound.
    pub(super) fn judge(&mut self) {
        for (flow, probe) in std::mem::take(&mut self.probes) {
            let Some(Flow { from, to }) = self.plant.flows.get(flow).copied() else {
                continue;
            };
            *self.outcome.judged.entry(probe.expected).or_default() += 1;
            if probe.expected.is_a_must() && !probe.answered {
                let how = match probe.arrived {
                    true => "no answer",
                    false => "nothing arrived",
                };
                let (asker, answerer) = (self.view_of(from, to), self.view_of(to, from));
                self.find(format!(
                    "device {from} must reach {to} ({:?}): {how}; {from} {asker}; {to} {answerer}",
                    probe.expected
                ));
            }
            if probe.expected == Expected::Refused && probe.arrived {
                self.find(format!("device {from} must not reach {to}"));
            }
        }
        self.judge_gossip();
        self.judge_members();
        for node in 0..self.nodes.len() {
            self.judge_tables(node);
        }
    }

    /// What devices say about items and members while nothing happens is little.
    fn judge_gossip(&mut self) {
        let (mut bytes, mut devices) = (0u64, 0u64);
        for (node, (boots, before)) in self.nodes.iter().zip(&self.quiet) {
            if node.is_alive() && node.boots == *boots {
                bytes += node.gossip_bytes - before;
                devices += 1;
            }
        }
        let mean = (bytes * 1000 / QUIET_SECS)
            .checked_div(devices)
            .unwrap_or_default();
        self.outcome.figures.gossip.push(mean);
        if mean > GOSSIP_MOST {
            self.find(format!(
                "{mean} mB/s of gossip per device while nothing happens"
            ));
        }
    }

    /// Relays that talk to each other know each other, whatever was said of them while one was dead. Nobody's
    /// reach hangs on that: the reference knows no members.
    fn judge_members(&mut self) {
        let relays: Vec<usize> = (0..self.nodes.len())
            .filter(|n| self.plant.is_relay(*n) && self.circumstances.is_in(&self.plant, *n))
            .collect();
        let mut live = BTreeSet::new();
        for relay in &relays {
            let endpoints = self.nodes.get_mut(*relay).map(|n| n.endpoints(self.now));
            let others = endpoints.unwrap_or_default().into_keys();
            live.extend(others.filter_map(|d| Some((*relay, *self.numbers.get(&d)?))));
        }
        let talk = |a: usize, b: usize| live.contains(&(a, b)) && live.contains(&(b, a));
        for relay in &relays {
            let gossip = self.nodes.get(*relay).and_then(|n| n.gossip_status());
            let members: BTreeSet<DeviceId> = gossip
                .map(|g| g.members.iter().map(|m| m.device).collect())
                .unwrap_or_default();
            let is_known = |n: usize| {
                let device = self.nodes.get(n).map(|n| n.device.id);
                device.is_some_and(|d| members.contains(&d))
            };
            let others = relays.iter().filter(|n| talk(*relay, **n));
            let unknown: Vec<usize> = others.filter(|n| !is_known(**n)).copied().collect();
            if !unknown.is_empty() {
                self.find(format!(
                    "the relay {relay} talks to {unknown:?} and takes them for gone"
                ));
            }
        }
    }

    fn judge_tables(&mut self, node: usize) {
        let Some(n) = self.nodes.get(node) else {
            return;
        };
        let (Some(status), Some(gossip)) = (n.status(), n.gossip_status()) else {
            return;
        };
        self.outcome.peers_most = self.outcome.peers_most.max(status.peers.len());
        self.outcome.figures.refused += status.refused.values().sum::<u64>();
        let bounded = status.asking <= hedgerow_mesh::ASKING_MAX
            && status.lookups <= hedgerow_mesh::LOOKUPS_MAX
            && status.answering <= hedgerow_mesh::ANSWERING_MAX
            && status.remembered <= hedgerow_mesh::REMEMBERED_MAX
            && gossip.members.len() <= hedgerow_mesh::membership::MEMBERS_MAX
            && gossip.items.len() <= hedgerow_mesh::items::RECORDS_MAX + ITEMS_WITHOUT_SUBJECT;
        if !bounded {
            self.find(format!("a table of device {node} is above its bound"));
        }
    }

    /// Chooses somebody who takes part.
    fn somebody(&mut self, first: usize) -> Option<usize> {
        let some: Vec<usize> = (first..self.nodes.len())
            .filter(|n| self.circumstances.is_in(&self.plant, *n))
            .collect();
        self.random.pick(&some).copied()
    }

    /// Chooses who is given a list by hand: somebody whom gossip reaches.
    fn recipient(&mut self, not: usize) -> Option<usize> {
        let some: Vec<usize> = (0..self.nodes.len())
            .filter(|n| *n != not && reference::must_learn(&self.plant, &self.circumstances, *n))
            .collect();
        self.random.pick(&some).copied()
    }

    pub(super) fn hands_revocations(&mut self) -> Result<()> {
        let Some(target) = self.somebody(EXPENDABLE_FIRST) else {
            return Ok(());
        };
        self.revoke(target)?;
        let list = self.controller.list.clone();
        if let (Some(to), Some(list)) = (self.recipient(target), list) {
            self.handed = self.now;
            if let Some(n) = self.nodes.get_mut(to) {
                n.take_revocations(&self.domain, &list, self.now)?;
            }
            self.settle(to)?;
        }
        Ok(())
    }

    pub(super) fn hands_states(&mut self) -> Result<()> {
        let is_relay = self.random.chance(500);
        let fits: Vec<usize> = (EXPENDABLE_FIRST..self.nodes.len())
            .filter(|n| self.plant.is_relay(*n) == is_relay)
            .filter(|n| self.circumstances.is_in(&self.plant, *n))
            .collect();
        let Some(target) = self.random.pick(&fits).copied() else {
            return Ok(());
        };
        self.circumstances.contained.insert(target);
        self.circumstances.was_contained.insert(target);
        let id = self.nodes.get(target).map(|n| n.device.id);
        self.controller.contain(&self.domain, id)?;
        let states = self.controller.states.clone();
        if let (Some(to), Some(states)) = (self.recipient(target), states) {
            self.handed = self.now;
            if let Some(n) = self.nodes.get_mut(to) {
                n.take_states(&self.domain, &states, self.now)?;
            }
            self.settle(to)?;
        }
        Ok(())
    }

    /// A device has learnt of a list. How long that took counts where gossip must reach it: whom the list itself
    /// revokes is left by all, and hears of it by chance or not at all.
    pub(super) fn learns(&mut self, node: usize) {
        let took = self.now.since(self.handed);
        if took < URGENT_FOR && reference::must_learn(&self.plant, &self.circumstances, node) {
            self.outcome.figures.urgent.add(took);
        }
    }

    /// With the controller dead, everyone in reach of a relay has the newest lists and does what they say.
    pub(super) fn judge_learnt(&mut self) {
        let list = self.controller.list.as_ref().map(|l| l.version);
        let states = self.controller.states.as_ref().map(|s| s.revision);
        let revoked = self.circumstances.revoked.clone();
        let contained = self.circumstances.contained.clone();
        for node in 0..self.nodes.len() {
            if !reference::must_learn(&self.plant, &self.circumstances, node) {
                continue;
            }
            let Some(n) = self.nodes.get_mut(node) else {
                continue;
            };
            let has = list.is_none_or(|v| n.standing.revocation_version() == v)
                && states.is_none_or(|v| n.standing.states_revision() == v);
            let peers = n.tunnel_peers(self.now);
            let numbers = &self.numbers;
            let held = peers.iter().filter_map(|p| numbers.get(&p.device));
            let held: Vec<usize> = held.filter(|n| revoked.contains(*n)).copied().collect();
            let (plant, now) = (&self.plant, &self.circumstances);
            let via: Vec<usize> = peers
                .iter()
                .filter(|p| p.session_age.is_some())
                .filter(|p| {
                    let other = numbers.get(&p.device).copied().unwrap_or_default();
                    let there = reference::expected(plant, now, node, other);
                    // Whom no other way reaches is not reached: the relay passes nothing on.
                    there.is_a_must() || reference::expected(plant, now, other, node).is_a_must()
                })
                .filter_map(|p| relay_in(p.endpoint))
                .filter_map(|at| {
                    let is_at = |n: &&usize| network::local_address(plant, **n) == at;
                    contained.iter().find(is_at).copied()
                })
                .collect();
            if !has {
                let home = n.home.len();
                self.find(format!(
                    "device {node} ({home} relays) did not learn of the newest lists"
                ));
            } else if !held.is_empty() || !via.is_empty() {
                self.find(format!(
                    "device {node} still holds {held:?}, who are revoked, or sends through {via:?}, who are in quarantine"
                ));
            }
        }
        let p99 = self.outcome.figures.urgent.permille(990);
        if p99 > URGENT_P99_MS {
            self.find(format!("urgent items took {p99} ms at the 99th percentile"));
        }
    }

    pub(super) fn begin_streams(&mut self) {
        self.killed = None;
        let must = |flow: &&Flow| {
            let now = &self.circumstances;
            let expected = reference::expected(&self.plant, now, flow.from, flow.to);
            expected.is_a_must() && expected != Expected::Reaches
        };
        let mut flows: Vec<Flow> = self.plant.flows.iter().filter(must).copied().collect();
        self.streams.clear();
        while self.streams.len() < STREAMS_MAX && !flows.is_empty() {
            let flow = flows.swap_remove(self.random.below(flows.len()));
            self.streams.push(Stream::new(flow.from, flow.to));
            self.put_stream(STREAM_EVERY, self.streams.len() - 1);
        }
    }

    pub(super) fn streams_on(&mut self, stream: usize) -> Result<()> {
        let Some(s) = self.streams.get_mut(stream) else {
            return Ok(());
        };
        s.sent += 1;
        let packet = Packet {
            from: s.from,
            to: s.to,
            origin: s.from,
            is_answer: false,
            serial: STREAMS_FROM + u32::try_from(stream)?,
            count: s.sent,
        };
        self.put_stream(STREAM_EVERY, stream);
        self.say(packet)
    }

    pub(super) fn stream_of(&self, packet: Packet) -> Option<usize> {
        let stream = packet.serial.checked_sub(STREAMS_FROM)?;
        usize::try_from(stream).ok()
    }

    /// Returns the round trip of the path by which a device sends to another.
    fn round_trip(&self, from: usize, to: usize) -> Option<Duration> {
        let id = self.nodes.get(to)?.device.id;
        let routes = self.nodes.get(from)?.routes(id);
        routes.iter().find(|r| r.in_use)?.round_trip
    }

    /// Returns the relay that a device's packets to another go through first.
    fn first_relay(&mut self, from: usize, to: usize) -> Option<usize> {
        let id = self.nodes.get(to)?.device.id;
        let endpoints = self.nodes.get_mut(from)?.endpoints(self.now);
        let at = relay_in(*endpoints.get(&id)?)?;
        (0..self.nodes.len())
            .find(|n| self.plant.is_relay(*n) && network::local_address(&self.plant, *n) == at)
    }

    /// Kills the relay that carries most streams of those that others can carry on.
    pub(super) fn relay_dies(&mut self) {
        let ends: Vec<(usize, usize)> = self.streams.iter().map(|s| (s.from, s.to)).collect();
        let relays: Vec<[Option<usize>; 2]> = ends
            .iter()
            .map(|(a, b)| [self.first_relay(*a, *b), self.first_relay(*b, *a)])
            .collect();
        let carries = |relay: usize| {
            relays
                .iter()
                .flatten()
                .filter(|r| **r == Some(relay))
                .count()
        };
        let live = (0..self.nodes.len())
            .filter(|n| self.plant.is_relay(*n) && self.circumstances.is_in(&self.plant, *n));
        let Some(relay) = live.max_by_key(|n| carries(*n)) else {
            return;
        };
        let others = |node: usize| -> BTreeSet<usize> {
            let home = self.nodes.get(node).map(|n| n.home.as_slice());
            let home = home.unwrap_or_default().iter();
            let home = home.filter_map(|device| self.numbers.get(device).copied());
            let is_honest = |n: &usize| {
                let member = self.plant.members.get(*n);
                *n != relay && member.is_some_and(|m| m.hostility.is_none())
            };
            home.filter(is_honest).collect()
        };
        let had_another: Vec<bool> = ends
            .iter()
            .map(|(a, b)| !others(*a).is_disjoint(&others(*b)))
            .collect();
        for ((stream, used), had) in self.streams.iter_mut().zip(&relays).zip(had_another) {
            stream.is_hit = used.contains(&Some(relay));
            stream.had_another = had;
        }
        self.dies(relay);
        self.killed = Some((relay, self.now));
    }

    /// Whatever can go on without the relay that died went on.
    pub(super) fn judge_streams(&mut self) -> Result<()> {
        for stream in std::mem::take(&mut self.streams) {
            let Stream { from, to, .. } = stream;
            let expected = reference::expected(&self.plant, &self.circumstances, from, to);
            if !expected.is_a_must() {
                continue;
            }
            match stream.gap {
                Some(gap) if stream.is_hit => {
                    let round_trip = self.round_trip(from, to);
                    let had_another = stream.had_another;
                    self.outcome
                        .figures
                        .failed_over(gap, had_another, round_trip);
                }
                Some(_) => {}
                None => {
                    let (a, b) = (self.view_of(from, to), self.view_of(to, from));
                    self.find(format!(
                        "the stream from device {from} to {to} did not go on after relay {:?} died ({expected:?}); {from} {a}; {to} {b}",
                        self.killed.map(|(relay, _)| relay)
                    ));
                }
            }
        }
        if let Some((relay, _)) = self.killed.take() {
            self.returns(relay, Disk::Kept)?;
        }
        Ok(())
    }

    /// Says what a device holds of another, for whoever looks for the reason of a finding.
    pub(super) fn view_of(&mut self, node: usize, other: usize) -> String {
        let place = self.plant.place(node);
        let id = self.nodes.get(other).map(|n| n.device.id);
        let Some(n) = self.nodes.get_mut(node) else {
            return "is not there".to_owned();
        };
        let live = n.endpoints(self.now);
        let home: Vec<(Option<usize>, Option<Hostility>)> = n
            .home
            .iter()
            .map(|relay| {
                let number = self.numbers.get(relay).copied();
                let member = number.and_then(|n| self.plant.members.get(n));
                (number, member.and_then(|m| m.hostility))
            })
            .collect();
        let routes = id.map(|id| n.routes(id)).unwrap_or_default();
        let routes: Vec<String> = routes
            .iter()
            .map(|r| {
                let used = if r.in_use { "*" } else { "" };
                let (standing, loss) = (r.standing, r.loss_permille);
                format!("{used}{} {standing:?} loss {loss} {:?}", r.path, r.mtu)
            })
            .collect();
        let Some(status) = n.status() else {
            return "is dead".to_owned();
        };
        let peer = status.peers.iter().find(|p| Some(p.device) == id);
        format!(
            "(started {} times, relays {home:?}, {place:?}, routes {:?}) holds {:?}, session at {:?}, asks {}, answers {}, refused {:?}, relays refused {:?}",
            n.boots,
            routes,
            peer.map(|p| (p.endpoint, p.in_session)),
            id.and_then(|id| live.get(&id)),
            status.asking,
            status.answering,
            status.refused,
            n.relays_refused(),
        )
    }
}

/// Items that are one for all: lists, heads, the beacon.
const ITEMS_WITHOUT_SUBJECT: usize = 16;

/// Returns the relay's address in a path through one.
fn relay_in(path: Option<Path>) -> Option<std::net::SocketAddr> {
    path.filter(|p| !p.is_direct()).map(|p| p.to.0)
}
