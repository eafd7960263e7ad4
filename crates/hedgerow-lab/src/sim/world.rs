//! The run: one queue of events, and everything that they touch.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hedgerow_identity::Verified;
use hedgerow_identity::standing::Standing;
use hedgerow_mesh::Resolved;
use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::{DeviceId, SiteName};
use hedgerow_model::path::Path;
use hedgerow_model::statement::{PeerQuery, RevocationList, Revoked};

use super::domain::{Device, Domain};
use super::faults::{self, Disk, Fault};
use super::network::{self, Flight, Network, Weather};
use super::node::{Effect, Node, Packet, overlay};
use super::plant::{Flow, Plant};
use super::random::Random;
use super::reference::{self, Circumstances, Expected};
use super::{Outcome, Shape};

/// How often a device talks to its controller.
const GREETS_EVERY: Duration = Duration::from_secs(20);
/// Between two packets of a flow, at least and at most.
const SENDS_AFTER: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(540));
/// Between two tries of a flow that is probed.
const PROBES_EVERY: Duration = Duration::from_secs(5);
/// Over how long devices start, and probes begin.
const SPREAD: Duration = Duration::from_secs(10);
/// Findings that are kept of one run; further ones are counted.
const FINDINGS_MAX: usize = 20;

#[derive(Debug)]
enum Event {
    Arrives(Flight),
    Wakes(usize),
    Greets(usize),
    Answered(usize, u32, PeerQuery, Option<Resolved>),
    Sends(usize),
    Probes(usize),
    Happens(Fault),
}

struct Entry {
    at: Mono,
    serial: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// What became of a flow that is probed.
struct Probe {
    expected: Expected,
    arrived: bool,
    answered: bool,
}

struct Controller {
    is_up: bool,
    revoked: Vec<DeviceId>,
    list: Option<Verified<RevocationList>>,
    registered: BTreeMap<usize, Underlay>,
}

/// Everything.
pub(super) struct World {
    plant: Plant,
    domain: Domain,
    network: Network,
    nodes: Vec<Node>,
    numbers: BTreeMap<DeviceId, usize>,
    controller: Controller,
    circumstances: Circumstances,
    probes: BTreeMap<usize, Probe>,
    queue: BinaryHeap<Reverse<Entry>>,
    serial: u64,
    now: Mono,
    random: Random,
    outcome: Outcome,
}

impl World {
    pub(super) fn new(shape: Shape) -> Result<Self> {
        let mut random = Random::new(shape.seed);
        let plant = Plant::draw(shape.nodes, &mut random.fork());
        let mut keys = random.fork();
        let domain = Domain::new(&mut keys)?;
        let mut nodes = Vec::with_capacity(plant.members.len());
        for (number, member) in plant.members.iter().enumerate() {
            let device = Device::new(&domain, number, member, &mut keys)?;
            let site = SiteName::new(&format!("site-{}", member.site))?;
            nodes.push(Node::new(
                number,
                device,
                Standing::new(Some(site)),
                random.fork(),
            ));
        }
        let faults = faults::draw(&plant, shape.length, &mut random.fork());
        let numbers = nodes.iter().map(|n| (n.device.id, n.number)).collect();
        let mut world = Self {
            network: Network::new(&plant, random.fork()),
            plant,
            domain,
            nodes,
            numbers,
            controller: Controller {
                is_up: true,
                revoked: Vec::new(),
                list: None,
                registered: BTreeMap::new(),
            },
            circumstances: Circumstances::default(),
            probes: BTreeMap::new(),
            queue: BinaryHeap::new(),
            serial: 0,
            now: Mono::ZERO,
            random,
            outcome: Outcome::new(shape),
        };
        world.begin(faults)?;
        Ok(world)
    }

    fn begin(&mut self, faults: Vec<(Mono, Fault)>) -> Result<()> {
        for node in 0..self.nodes.len() {
            self.start(node)?;
            let at = Mono::ZERO + self.random.up_to(SPREAD);
            self.put(at, Event::Greets(node));
        }
        for flow in 0..self.plant.flows.len() {
            let at = Mono::ZERO + SPREAD + self.random.up_to(SENDS_AFTER.1);
            self.put(at, Event::Sends(flow));
        }
        for (at, fault) in faults {
            self.put(at, Event::Happens(fault));
        }
        Ok(())
    }

    /// Runs to the end; says how it goes about once per simulated minute.
    pub(super) fn run(mut self, mut progress: impl FnMut(Mono)) -> Result<Outcome> {
        let end = Mono::ZERO + self.outcome.shape.length;
        let mut said = Mono::ZERO;
        while let Some(Reverse(entry)) = self.queue.pop() {
            if entry.at > end {
                break;
            }
            self.now = self.now.max(entry.at);
            self.outcome.events += 1;
            if self.now.since(said) >= Duration::from_secs(60) {
                said = self.now;
                progress(said);
            }
            self.handle(entry.event)?;
        }
        Ok(self.outcome)
    }

    fn put(&mut self, at: Mono, event: Event) {
        self.serial += 1;
        let serial = self.serial;
        self.queue.push(Reverse(Entry { at, serial, event }));
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Arrives(flight) => self.arrives(flight),
            Event::Wakes(node) => self.wakes(node),
            Event::Greets(node) => self.greets(node)?,
            Event::Answered(node, boots, query, answer) => {
                if let Some(n) = self.nodes.get_mut(node).filter(|n| n.boots == boots) {
                    n.handle_resolved(&self.domain, query, answer, self.now);
                    self.settle(node);
                }
            }
            Event::Sends(flow) => {
                self.sends(flow);
                let (least, most) = SENDS_AFTER;
                let after = least + self.random.up_to(most.saturating_sub(least));
                self.put(self.now + after, Event::Sends(flow));
            }
            Event::Probes(flow) => {
                if self.probes.get(&flow).is_some_and(|p| !p.answered) {
                    self.sends(flow);
                    self.put(self.now + PROBES_EVERY, Event::Probes(flow));
                }
            }
            Event::Happens(fault) => self.happens(fault)?,
        }
        Ok(())
    }

    fn arrives(&mut self, flight: Flight) {
        let Some(node) = self.network.arrive(&flight, self.now) else {
            return;
        };
        self.outcome.datagrams += 1;
        let first = flight.bytes.first().copied().unwrap_or_default();
        let length = u64::try_from(flight.bytes.len()).unwrap_or_default();
        self.trace(u64::from(first), node, length);
        let is_introduction = first >= 0x80;
        let Some(n) = self.nodes.get_mut(node).filter(|n| n.is_alive()) else {
            return;
        };
        let before = is_introduction.then(|| n.endpoints(self.now));
        let effect = n.handle_datagram(flight.src, flight.bytes, self.now);
        if let Some(effect) = effect {
            self.effect(node, effect);
        }
        self.settle(node);
        if let Some(before) = before {
            self.check_endpoints(node, &before);
        }
    }

    /// An introduction moves no endpoint: whoever overhears one can send it from anywhere.
    fn check_endpoints(&mut self, node: usize, before: &BTreeMap<DeviceId, Option<Path>>) {
        let after = self.nodes.get_mut(node).map(|n| n.endpoints(self.now));
        for (device, endpoint) in after.unwrap_or_default() {
            if before.get(&device).is_some_and(|was| *was != endpoint) {
                self.find(format!("an introduction moved {device} at device {node}"));
            }
        }
    }

    fn wakes(&mut self, node: usize) {
        let Some(n) = self.nodes.get_mut(node).filter(|n| n.wakes <= self.now) else {
            return;
        };
        n.wakes = Mono::NEVER;
        n.handle_timeout(&self.domain, self.now);
        self.settle(node);
    }

    /// Does what a device wants until it wants nothing, and notes when it wants to be looked after.
    fn settle(&mut self, node: usize) {
        while let Some(n) = self.nodes.get_mut(node) {
            let Some(effect) = n.step(&self.domain, &self.plant, self.now) else {
                break;
            };
            if let Some(effect) = effect {
                self.effect(node, effect);
            }
        }
        let Some(n) = self.nodes.get_mut(node) else {
            return;
        };
        let wakes = n.deadline().max(self.now + Duration::from_micros(100));
        if wakes < n.wakes {
            n.wakes = wakes;
            self.put(wakes, Event::Wakes(node));
        }
    }

    fn effect(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Send(to, bytes) => self.transmit(node, to, bytes),
            Effect::Resolve(query) => self.resolve(node, query),
            Effect::Deliver(packet) => self.delivered(node, packet),
        }
    }

    fn transmit(&mut self, node: usize, to: std::net::SocketAddr, bytes: Vec<u8>) {
        let from = network::local_address(&self.plant, node);
        for (at, flight) in self.network.send(node, from, to, bytes, self.now) {
            self.put(at, Event::Arrives(flight));
        }
    }

    fn is_connected(&self, node: usize) -> bool {
        self.controller.is_up && self.network.reaches_office(node)
    }

    fn resolve(&mut self, node: usize, query: PeerQuery) {
        let boots = self.nodes.get(node).map_or(0, |n| n.boots);
        let other = match query {
            PeerQuery::Device(device) => self.numbers.get(&device).copied(),
            PeerQuery::Address(address) => Domain::number(address.0),
        };
        let known = other.filter(|_| self.is_connected(node)).and_then(|other| {
            let device = &self.nodes.get(other)?.device;
            let endpoint = self.controller.registered.get(&other)?;
            (!self.controller.revoked.contains(&device.id)).then(|| Resolved {
                ticket: device.ticket.clone(),
                endpoints: vec![*endpoint],
                relays: Vec::new(),
            })
        });
        let after = match self.is_connected(node) {
            true => Duration::from_millis(20) + self.random.up_to(Duration::from_millis(80)),
            false => Duration::ZERO,
        };
        self.put(self.now + after, Event::Answered(node, boots, query, known));
    }

    /// A device that reaches the controller registers, hears the time, and learns who is revoked.
    fn greets(&mut self, node: usize) -> Result<()> {
        self.put(self.now + GREETS_EVERY, Event::Greets(node));
        let connected = self.is_connected(node);
        let Some(n) = self
            .nodes
            .get_mut(node)
            .filter(|n| connected && n.is_alive())
        else {
            return Ok(());
        };
        // Who is revoked gets no session.
        if self.controller.revoked.contains(&n.device.id) {
            return Ok(());
        }
        let address = Underlay(network::local_address(&self.plant, node));
        self.controller.registered.insert(node, address);
        n.hear_time(self.now);
        let news = self.controller.list.as_ref();
        let news = news.filter(|list| list.version > n.standing.revocation_version());
        if let Some(list) = news {
            n.standing.adopt_revocations(list.clone())?;
            n.handle_standing_changed(&self.domain, self.now);
            self.settle(node);
        }
        Ok(())
    }

    fn sends(&mut self, flow: usize) {
        let Some(Flow { from, to }) = self.plant.flows.get(flow).copied() else {
            return;
        };
        let serial = u32::try_from(flow).unwrap_or(u32::MAX);
        self.say(Packet {
            from,
            to,
            is_answer: false,
            serial,
        });
    }

    fn say(&mut self, packet: Packet) {
        let Some(to) = self.nodes.get(packet.to).map(|n| overlay(&n.device).0) else {
            return;
        };
        let Some(n) = self.nodes.get_mut(packet.from) else {
            return;
        };
        let src = overlay(&n.device).0;
        let sealed = n.send(packet, src, to, self.now);
        if let Some((to, bytes)) = sealed {
            self.transmit(packet.from, to, bytes);
        }
        self.settle(packet.from);
    }

    /// A packet came out of a tunnel: from whom it may, and to whom it was sent?
    fn delivered(&mut self, node: usize, packet: Packet) {
        self.outcome.packets += 1;
        self.trace(2, node, u64::from(packet.serial));
        let Packet { from, to, .. } = packet;
        if to != node {
            self.find(format!("device {node} got a packet for {to}"));
        }
        if !self.plant.are_peers(from, to) {
            self.find(format!(
                "device {node} got a packet of {from}, whom policy keeps apart"
            ));
        }
        let id = self.nodes.get(from).map(|n| n.device.id);
        let standing = self.nodes.get(node).map(|n| &n.standing);
        if let (Some(id), Some(standing)) = (id, standing)
            && standing.is_revoked(&Revoked::Device(id))
        {
            self.find(format!(
                "device {node} got a packet of {from}, of whom it knows that it is revoked"
            ));
        }
        let flow = usize::try_from(packet.serial).unwrap_or(usize::MAX);
        if packet.is_answer {
            if let Some(probe) = self.probes.get_mut(&flow) {
                probe.answered = true;
            }
            return;
        }
        if let Some(probe) = self.probes.get_mut(&flow) {
            probe.arrived = true;
        }
        self.say(Packet {
            from: to,
            to: from,
            is_answer: true,
            serial: packet.serial,
        });
    }

    fn start(&mut self, node: usize) -> Result<()> {
        if let Some(n) = self.nodes.get_mut(node).filter(|n| !n.is_alive()) {
            n.start(&self.domain, self.now)
                .with_context(|| format!("device {node} does not start"))?;
            self.circumstances.dead.remove(&node);
            self.settle(node);
        }
        Ok(())
    }

    fn happens(&mut self, fault: Fault) -> Result<()> {
        self.trace(1, 0, self.outcome.events);
        match fault {
            Fault::Dies(node) => {
                self.circumstances.dead.insert(node);
                self.nodes.get_mut(node).into_iter().for_each(Node::stop);
            }
            Fault::Returns(node, disk) => {
                if let Some(n) = self
                    .nodes
                    .get_mut(node)
                    .filter(|n| !n.is_alive() && disk == Disk::Lost)
                {
                    n.lose_disk();
                }
                self.start(node)?;
            }
            Fault::ClockJumps(node, wrong) => {
                self.nodes
                    .get_mut(node)
                    .into_iter()
                    .for_each(|n| n.wrong = wrong);
            }
            Fault::TakesKey(node) => {
                if let Some(n) = self.nodes.get_mut(node) {
                    n.take_key(&self.domain, self.now)?;
                    self.settle(node);
                }
            }
            Fault::Rebinds(site) => self.network.rebind(site),
            Fault::Cut(site) => self.network.cut.push(site),
            Fault::Joined(site) => self.network.cut.retain(|s| *s != site),
            Fault::Storm => self.network.weather = Weather::FOUL,
            Fault::Calm => self.network.weather = Weather::FAIR,
            Fault::ControllerDies => self.controller.is_up = false,
            Fault::ControllerReturns => self.controller.is_up = true,
            Fault::Revoked(node) => self.revoke(node)?,
            Fault::Probe => self.probe(),
            Fault::Judged => self.judge(),
        }
        Ok(())
    }

    fn revoke(&mut self, node: usize) -> Result<()> {
        if !self.circumstances.revoked.insert(node) {
            return Ok(());
        }
        let id = self.nodes.get(node).context("no such device")?.device.id;
        self.controller.revoked.push(id);
        self.controller.list = Some(self.domain.revocations(&self.controller.revoked)?);
        Ok(())
    }

    fn probe(&mut self) {
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
            let at = self.now + self.random.up_to(SPREAD);
            self.put(at, Event::Probes(flow));
        }
    }

    /// Compares what was seen with what the reference says, and every table with its bound.
    fn judge(&mut self) {
        for (flow, probe) in std::mem::take(&mut self.probes) {
            let Some(Flow { from, to }) = self.plant.flows.get(flow).copied() else {
                continue;
            };
            *self.outcome.judged.entry(probe.expected).or_default() += 1;
            match probe.expected {
                Expected::Reaches if !probe.answered => {
                    let how = if probe.arrived {
                        "no answer"
                    } else {
                        "nothing arrived"
                    };
                    let (asker, answerer) = (self.view_of(from, to), self.view_of(to, from));
                    self.find(format!(
                        "device {from} must reach {to}: {how}; {from} {asker}; {to} {answerer}"
                    ));
                }
                Expected::Refused if probe.arrived => {
                    self.find(format!("device {from} must not reach {to}"));
                }
                Expected::Reaches | Expected::Refused | Expected::Open => {}
            }
        }
        for node in 0..self.nodes.len() {
            let Some(status) = self.nodes.get(node).and_then(Node::status) else {
                continue;
            };
            self.outcome.peers_most = self.outcome.peers_most.max(status.peers.len());
            let bounded = status.asking <= hedgerow_mesh::ASKING_MAX
                && status.lookups <= hedgerow_mesh::LOOKUPS_MAX
                && status.answering <= hedgerow_mesh::ANSWERING_MAX
                && status.remembered <= hedgerow_mesh::REMEMBERED_MAX;
            if !bounded {
                self.find(format!("a table of device {node} is above its bound"));
            }
        }
    }

    /// Says what a device holds of another, for whoever looks for the reason of a finding.
    fn view_of(&mut self, node: usize, other: usize) -> String {
        let place = self.plant.place(node);
        let id = self.nodes.get(other).map(|n| n.device.id);
        let Some(n) = self.nodes.get_mut(node) else {
            return "is not there".to_owned();
        };
        let live = n.endpoints(self.now);
        let Some(status) = n.status() else {
            return "is dead".to_owned();
        };
        let peer = status.peers.iter().find(|p| Some(p.device) == id);
        format!(
            "(started {} times, {place:?}) holds {:?}, session at {:?}, asks {}, answers {}, refused {:?}",
            n.boots,
            peer.map(|p| (p.endpoint, p.in_session)),
            id.and_then(|id| live.get(&id)),
            status.asking,
            status.answering,
            status.refused,
        )
    }

    fn find(&mut self, text: String) {
        self.outcome.found += 1;
        if self.outcome.findings.len() < FINDINGS_MAX {
            let secs = self.now.since(Mono::ZERO).as_secs_f64();
            self.outcome
                .findings
                .push(format!("at {secs:.3} s: {text}"));
        }
    }

    /// Adds to the hash of everything that happened (FNV-1a over words).
    fn trace(&mut self, kind: u64, node: usize, detail: u64) {
        let micros = u64::try_from(self.now.since(Mono::ZERO).as_micros()).unwrap_or_default();
        for word in [
            micros,
            kind,
            u64::try_from(node).unwrap_or_default(),
            detail,
        ] {
            self.outcome.trace = (self.outcome.trace ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
