//! The run: one queue of events, and everything that they touch.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hedgerow_mesh::{Removal, Resolved};
use hedgerow_model::Mono;
use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::RelaySession;
use hedgerow_model::path::{Path, relay_header};
use hedgerow_model::statement::{PeerQuery, Revoked};

use super::broken::Broken;
use super::controller::Controller;
use super::domain::{Device, Domain};
use super::faults::{self, Disk, Fault};
use super::figures::Stream;
use super::hostile::{Hostility, RENEGOTIATES_EVERY, Treatment};
use super::network::{self, Flight, Network, Weather};
use super::node::{Effect, Node, overlay};
use super::packet::{self, PACKET_BYTES, Packet, pack};
use super::plant::{Flow, Plant};
use super::random::Random;
use super::reference::{Circumstances, Expected};
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
/// First byte of a relay's frame.
const RELAY_FRAME: u8 = hedgerow_model::path::RELAY_FRAME_FIRST;

#[derive(Debug)]
enum Event {
    /// Boxed, as all that is large: the queue moves its entries about.
    Arrives(Box<Flight>),
    Wakes(usize),
    Greets(usize),
    Answered(usize, u32, Box<(PeerQuery, Option<Resolved>)>),
    Sends(usize),
    Probes(usize),
    Streams(usize),
    Renegotiates(usize),
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
pub(super) struct Probe {
    pub(super) expected: Expected,
    pub(super) arrived: bool,
    pub(super) answered: bool,
}

/// Everything.
pub(super) struct World {
    pub(super) plant: Plant,
    pub(super) domain: Domain,
    pub(super) network: Network,
    broken: Option<Broken>,
    /// Of so many introductions one is watched for what it moves.
    watched_every: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) numbers: BTreeMap<DeviceId, usize>,
    pub(super) controller: Controller,
    pub(super) circumstances: Circumstances,
    pub(super) probes: BTreeMap<usize, Probe>,
    pub(super) streams: Vec<Stream>,
    /// Which relay died under load, and when.
    pub(super) killed: Option<(usize, Mono)>,
    /// When the last list was given to a device by hand.
    pub(super) handed: Mono,
    /// How often each device had started, and what it had gossiped, when the network was quiet.
    pub(super) quiet: Vec<(u32, u64)>,
    queue: BinaryHeap<Reverse<Entry>>,
    serial: u64,
    pub(super) now: Mono,
    pub(super) random: Random,
    pub(super) outcome: Outcome,
}

impl World {
    pub(super) fn new(shape: Shape) -> Result<Self> {
        let mut random = Random::new(shape.seed);
        let plant = Plant::draw(shape.nodes, &mut random.fork());
        Self::of(shape, plant, None, random)
    }

    /// Makes a world of a plant; its faults are drawn unless given.
    pub(super) fn of(
        shape: Shape,
        plant: Plant,
        faults: Option<Vec<(Mono, Fault)>>,
        mut random: Random,
    ) -> Result<Self> {
        let mut keys = random.fork();
        let domain = Domain::new(&mut keys)?;
        let mut nodes = Vec::with_capacity(plant.members.len());
        for (number, member) in plant.members.iter().enumerate() {
            let device = Device::new(&domain, number, member, &mut keys)?;
            let node = Node::new(number, device, member, random.fork())?;
            nodes.push(node.broken(shape.broken));
        }
        share_keys(&mut nodes);
        let faults =
            faults.unwrap_or_else(|| faults::draw(&plant, shape.length, &mut random.fork()));
        let numbers = nodes.iter().map(|n| (n.device.id, n.number)).collect();
        let mut world = Self {
            network: Network::new(&plant, random.fork()),
            broken: shape.broken,
            watched_every: u64::try_from(shape.nodes / 64)?.max(1),
            plant,
            domain,
            nodes,
            numbers,
            controller: Controller::new(),
            circumstances: Circumstances::default(),
            probes: BTreeMap::new(),
            streams: Vec::new(),
            killed: None,
            handed: Mono::ZERO,
            quiet: Vec::new(),
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
            let hostility = self.nodes.get(node).and_then(|n| n.hostility);
            if hostility == Some(Hostility::Renegotiates) {
                self.put(at, Event::Renegotiates(node));
            }
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

    /// Runs to the end; says how it goes about once per simulated minute, and may be stopped then.
    pub(super) fn run(
        mut self,
        mut progress: impl FnMut(Mono) -> ControlFlow<()>,
    ) -> Result<Option<Outcome>> {
        let end = Mono::ZERO + self.outcome.shape.length;
        let mut said = Mono::ZERO;
        while self.next(end)? {
            if self.now.since(said) >= Duration::from_secs(60) {
                said = self.now;
                if progress(said).is_break() {
                    return Ok(None);
                }
            }
        }
        Ok(Some(self.outcome))
    }

    /// Lets the next thing happen that does by `end`; returns whether there was one.
    pub(super) fn next(&mut self, end: Mono) -> Result<bool> {
        let is_due = |entry: &Reverse<Entry>| entry.0.at <= end;
        let is_due = self.queue.peek().is_some_and(is_due);
        let Some(Reverse(entry)) = is_due.then(|| self.queue.pop()).flatten() else {
            return Ok(false);
        };
        self.now = self.now.max(entry.at);
        self.outcome.events += 1;
        self.handle(entry.event)?;
        Ok(true)
    }

    fn put(&mut self, at: Mono, event: Event) {
        self.serial += 1;
        let serial = self.serial;
        self.queue.push(Reverse(Entry { at, serial, event }));
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Arrives(flight) => self.arrives(*flight)?,
            Event::Wakes(node) => self.wakes(node)?,
            Event::Greets(node) => self.greets(node)?,
            Event::Answered(node, boots, answer) => {
                let (query, answer) = *answer;
                if let Some(n) = self.nodes.get_mut(node).filter(|n| n.boots == boots) {
                    n.handle_resolved(&self.domain, query, answer, self.now);
                    self.settle(node)?;
                }
            }
            Event::Sends(flow) => {
                self.sends(flow)?;
                let (least, most) = SENDS_AFTER;
                let after = least + self.random.up_to(most.saturating_sub(least));
                self.put(self.now + after, Event::Sends(flow));
            }
            Event::Probes(flow) => {
                if self.probes.get(&flow).is_some_and(|p| !p.answered) {
                    self.sends(flow)?;
                    self.put(self.now + PROBES_EVERY, Event::Probes(flow));
                }
            }
            Event::Streams(stream) => self.streams_on(stream)?,
            Event::Renegotiates(node) => {
                if let Some(n) = self.nodes.get_mut(node) {
                    n.renegotiate(self.now);
                    self.settle(node)?;
                }
                self.put(self.now + RENEGOTIATES_EVERY, Event::Renegotiates(node));
            }
            Event::Happens(fault) => self.happens(fault)?,
        }
        Ok(())
    }

    fn arrives(&mut self, flight: Flight) -> Result<()> {
        let Some(node) = self.network.arrive(&flight, self.now) else {
            return Ok(());
        };
        self.outcome.datagrams += 1;
        let first = flight.bytes.first().copied().unwrap_or_default();
        let length = u64::try_from(flight.bytes.len()).unwrap_or_default();
        self.trace(u64::from(first), node, length);
        let is_introduction = first >= 0x80 && first != RELAY_FRAME;
        let Some(n) = self.nodes.get_mut(node).filter(|n| n.is_alive()) else {
            return Ok(());
        };
        // Where there are many, some are looked at: each look lists all peers.
        let is_watched = is_introduction && self.outcome.events.is_multiple_of(self.watched_every);
        let before = is_watched.then(|| n.endpoints(self.now));
        let effect = n.handle_datagram(flight.src, flight.bytes, self.now);
        // What the tunnel reports of the same datagram comes first: whose session it proves.
        self.settle(node)?;
        if let Some(effect) = effect {
            self.effect(node, effect)?;
        }
        if let Some(before) = before {
            self.check_endpoints(node, &before);
        }
        Ok(())
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

    fn wakes(&mut self, node: usize) -> Result<()> {
        let Some(n) = self.nodes.get_mut(node).filter(|n| n.wakes <= self.now) else {
            return Ok(());
        };
        n.wakes = Mono::NEVER;
        n.handle_timeout(&self.domain, self.now);
        self.settle(node)
    }

    /// Does what a device wants until it wants nothing, and notes when it wants to be looked after.
    pub(super) fn settle(&mut self, node: usize) -> Result<()> {
        while let Some(n) = self.nodes.get_mut(node) {
            let Some(effect) = n.step(&self.domain, &self.plant, self.now)? else {
                break;
            };
            if let Some(effect) = effect {
                self.effect(node, effect)?;
            }
        }
        let Some(n) = self.nodes.get_mut(node) else {
            return Ok(());
        };
        let wakes = n.deadline().max(self.now + Duration::from_micros(100));
        if wakes < n.wakes {
            n.wakes = wakes;
            self.put(wakes, Event::Wakes(node));
        }
        Ok(())
    }

    fn effect(&mut self, node: usize, effect: Effect) -> Result<()> {
        match effect {
            Effect::Send(to, bytes) => self.transmit(node, to, bytes),
            Effect::Forward(to, bytes) => self.forward(node, to, bytes),
            Effect::Resolve(query) => self.resolve(node, query),
            Effect::Deliver(packet) => self.delivered(node, packet)?,
            Effect::Removed(device, reason) => self.check_removal(node, device, reason),
            Effect::Learnt => self.learns(node),
        }
        Ok(())
    }

    /// A relay passes a frame on; a hostile one does something else with it.
    fn forward(&mut self, node: usize, to: std::net::SocketAddr, mut bytes: Vec<u8>) {
        self.outcome.figures.relayed += 1;
        if packet::is_readable(&bytes) {
            self.find(format!("the relay {node} could read what it passed on"));
        }
        let hostility = self.nodes.get(node).and_then(|n| n.hostility);
        let treatment = hostility.map(|h| h.treat(&mut self.random));
        match treatment {
            None => return self.transmit(node, to, bytes),
            Some(Treatment::After(after)) => return self.transmit_later(node, to, bytes, after),
            Some(Treatment::Renumbers(number)) => {
                let header = relay_header(RelaySession(number));
                bytes.iter_mut().zip(header).for_each(|(b, h)| *b = h);
                self.transmit(node, to, bytes);
            }
            Some(Treatment::Misdirects) => {
                let other = self.random.below(self.nodes.len());
                let to = network::local_address(&self.plant, other);
                self.transmit(node, to, bytes);
            }
            Some(Treatment::Drops) => {}
        }
        self.outcome.figures.mistreated += 1;
    }

    /// Nobody is removed for good but who is out.
    fn check_removal(&mut self, node: usize, device: DeviceId, reason: Removal) {
        let Some(other) = self.numbers.get(&device).copied() else {
            return;
        };
        let for_good = match reason {
            Removal::Revoked | Removal::Held | Removal::Distrusted | Removal::Superseded => true,
            // Whoever is in quarantine has no peers.
            Removal::NotAdmitted => !self.circumstances.was_contained.contains(&node),
            Removal::Expired
            | Removal::Idle
            | Removal::Unanswered
            | Removal::Displaced
            | Removal::Ourselves => false,
        };
        let known = &self.circumstances;
        let is_out = known.revoked.contains(&other) || known.was_contained.contains(&other);
        if for_good && !is_out {
            self.find(format!("device {node} lost its peer {other}: {reason}"));
        }
    }

    fn transmit(&mut self, node: usize, to: std::net::SocketAddr, bytes: Vec<u8>) {
        let from = network::local_address(&self.plant, node);
        for (at, flight) in self.network.send(node, from, to, bytes, self.now) {
            self.put(at, Event::Arrives(Box::new(flight)));
        }
    }

    fn transmit_later(
        &mut self,
        node: usize,
        to: std::net::SocketAddr,
        bytes: Vec<u8>,
        after: Duration,
    ) {
        let from = network::local_address(&self.plant, node);
        for (at, flight) in self.network.send(node, from, to, bytes, self.now) {
            self.put(at + after, Event::Arrives(Box::new(flight)));
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
        let asked = other.filter(|_| self.is_connected(node));
        let asked = asked.and_then(|other| self.nodes.get(other));
        let known = asked.and_then(|other| self.controller.resolve(other));
        let after = match self.is_connected(node) {
            true => {
                let (least, more) = self.controller.answers_in;
                least + self.random.up_to(more)
            }
            false => Duration::ZERO,
        };
        let answer = Box::new((query, known));
        self.put(self.now + after, Event::Answered(node, boots, answer));
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
        if self.controller.is_revoked(n.device.id) {
            return Ok(());
        }
        let at = Underlay(network::local_address(&self.plant, node));
        n.hear_time(self.now);
        n.chatter(&self.domain, at, self.now)?;
        if let Some(list) = &self.controller.list {
            n.take_revocations(&self.domain, list, self.now)?;
        }
        if let Some(states) = &self.controller.states {
            n.take_states(&self.domain, states, self.now)?;
        }
        self.settle(node)?;
        let relays = self.controller.relays_for(&self.plant, &self.nodes, node);
        if let Some(n) = self.nodes.get_mut(node) {
            n.handle_relays_named(&self.domain, &relays, self.now);
            self.controller.register(n, at);
        }
        self.settle(node)
    }

    fn sends(&mut self, flow: usize) -> Result<()> {
        let Some(Flow { from, to }) = self.plant.flows.get(flow).copied() else {
            return Ok(());
        };
        let serial = u32::try_from(flow).unwrap_or(u32::MAX);
        // A spoofer speaks in the name of its victim.
        let origin = from;
        let from = match self.nodes.get(from).and_then(|n| n.hostility) {
            Some(Hostility::Spoofs(victim)) => victim,
            _ => from,
        };
        self.outcome.figures.spoofed += u64::from(from != origin);
        self.say(Packet {
            from,
            to,
            origin,
            is_answer: false,
            serial,
            count: 0,
        })
    }

    pub(super) fn say(&mut self, packet: Packet) -> Result<()> {
        let address = |n: &Node| overlay(&n.device).0;
        let src = self.nodes.get(packet.from).map(address);
        let dst = self.nodes.get(packet.to).map(address);
        let (Some(src), Some(dst)) = (src, dst) else {
            return Ok(());
        };
        let Some(n) = self.nodes.get_mut(packet.origin) else {
            return Ok(());
        };
        let sealed = n.send(packet, src, dst, self.now);
        if let Some((to, mut bytes)) = sealed {
            if self.broken == Some(Broken::Sealing) {
                let place = bytes.len().saturating_sub(PACKET_BYTES);
                pack(packet, src, dst, bytes.get_mut(place..).unwrap_or_default());
            }
            self.transmit(packet.origin, to, bytes);
        }
        self.settle(packet.origin)
    }

    /// A packet came out of a tunnel: from whom it may, and to whom it was sent?
    fn delivered(&mut self, node: usize, packet: Packet) -> Result<()> {
        self.outcome.packets += 1;
        self.trace(2, node, u64::from(packet.serial));
        let Packet { from, to, .. } = packet;
        if !self.check_packet(node, packet) {
            return Ok(());
        }
        if let Some(stream) = self.stream_of(packet) {
            let killed = self.killed.map(|(_, at)| at);
            if let Some(stream) = self.streams.get_mut(stream) {
                stream.hear(killed, self.now);
            }
            return Ok(());
        }
        let flow = usize::try_from(packet.serial).unwrap_or(usize::MAX);
        if packet.is_answer {
            if let Some(probe) = self.probes.get_mut(&flow) {
                probe.answered = true;
            }
            return Ok(());
        }
        if let Some(probe) = self.probes.get_mut(&flow) {
            probe.arrived = true;
        }
        debug_assert!(from != to, "nobody speaks to itself");
        self.say(packet.answer())
    }

    /// Judges a packet; returns whether the kernel lets it pass.
    fn check_packet(&mut self, node: usize, packet: Packet) -> bool {
        let Packet {
            from, to, origin, ..
        } = packet;
        if to != node {
            self.find(format!("device {node} got a packet for {to}"));
        }
        if origin != from {
            self.find(format!(
                "device {node} took a packet of {origin} in the name of {from}"
            ));
        }
        let contained = |world: &Self| {
            let id = |n: usize| world.nodes.get(n).map(|n| n.device.id);
            let known = world.nodes.get(node).map(|n| &n.standing);
            let in_quarantine = |n| known?.state(id(n)?);
            in_quarantine(from).or(in_quarantine(node)).is_some()
        };
        let guests = self.plant.is_relay(from) || self.plant.is_relay(node);
        let are_peers = self.plant.are_peers(from, to);
        if (!are_peers && guests) || contained(self) {
            // Peers of the tunnel, to whom the kernel gives the closed profile.
            self.outcome.figures.stopped += 1;
            return false;
        }
        if !are_peers {
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
        self.check_secrecy(node, from);
        true
    }

    /// Where one of two is strict, both have agreed on a key in this life.
    fn check_secrecy(&mut self, node: usize, from: usize) {
        let (Some(here), Some(there)) = (self.nodes.get(node), self.nodes.get(from)) else {
            return;
        };
        let here_holds = !here.is_strict() || here.keyed.contains(&there.device.id);
        let there_holds =
            !there.is_strict() || !there.is_alive() || there.keyed.contains(&here.device.id);
        if !here_holds || !there_holds {
            self.find(format!(
                "a packet of device {from} passed to {node} without a pre-shared key"
            ));
        }
    }

    pub(super) fn start(&mut self, node: usize) -> Result<()> {
        if let Some(n) = self.nodes.get_mut(node).filter(|n| !n.is_alive()) {
            n.start(&self.domain, &self.plant, self.now)
                .with_context(|| format!("device {node} does not start"))?;
            self.circumstances.dead.remove(&node);
            self.settle(node)?;
        }
        Ok(())
    }

    fn happens(&mut self, fault: Fault) -> Result<()> {
        self.trace(1, 0, self.outcome.events);
        match fault {
            Fault::Dies(node) => self.dies(node),
            Fault::Returns(node, disk) => self.returns(node, disk)?,
            Fault::ClockJumps(node, wrong) => {
                self.nodes
                    .get_mut(node)
                    .into_iter()
                    .for_each(|n| n.wrong = wrong);
            }
            Fault::TakesKey(node) => {
                if let Some(n) = self.nodes.get_mut(node) {
                    n.take_key(&self.domain, &self.plant, self.now)?;
                    self.settle(node)?;
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
            Fault::HandsRevocations => self.hands_revocations()?,
            Fault::HandsStates => self.hands_states()?,
            Fault::Learnt => self.judge_learnt(),
            Fault::Streams => self.begin_streams(),
            Fault::RelayDies => self.relay_dies(),
            Fault::Streamed => self.judge_streams()?,
            Fault::Released => {
                self.circumstances.contained.clear();
                self.controller.contain(&self.domain, None)?;
            }
        }
        Ok(())
    }

    pub(super) fn returns(&mut self, node: usize, disk: Disk) -> Result<()> {
        let dead = self.nodes.get_mut(node).filter(|n| !n.is_alive());
        if let Some(n) = dead.filter(|_| disk == Disk::Lost) {
            n.lose_disk();
        }
        self.start(node)
    }

    pub(super) fn dies(&mut self, node: usize) {
        self.circumstances.dead.insert(node);
        self.nodes.get_mut(node).into_iter().for_each(Node::stop);
    }

    pub(super) fn revoke(&mut self, node: usize) -> Result<()> {
        if self.circumstances.revoked.insert(node) {
            let id = self.nodes.get(node).context("no such device")?.device.id;
            self.controller.revoke(&self.domain, id)?;
        }
        Ok(())
    }

    pub(super) fn put_stream(&mut self, after: Duration, stream: usize) {
        self.put(self.now + after, Event::Streams(stream));
    }

    pub(super) fn put_probe(&mut self, flow: usize) {
        let at = self.now + self.random.up_to(SPREAD);
        self.put(at, Event::Probes(flow));
    }

    pub(super) fn find(&mut self, text: String) {
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

/// Gives those who show another's key that key.
fn share_keys(nodes: &mut [Node]) {
    let thieves: Vec<(usize, usize)> = nodes
        .iter()
        .filter_map(|n| match n.hostility {
            Some(Hostility::SharesKey(victim)) => Some((n.number, victim)),
            _ => None,
        })
        .collect();
    for (thief, victim) in thieves {
        let key = nodes.get(victim).map(|n| n.first_secret);
        if let (Some(n), Some(key)) = (nodes.get_mut(thief), key) {
            n.first_secret = key;
        }
    }
}
