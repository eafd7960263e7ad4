//! Both ends run against each other in memory.

mod decoding;
mod exchange;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_model::Mono;
use hedgerow_model::id::{Digest, Revision};
use hedgerow_model::resource::{Resource, ResourceKind};
use hedgerow_model::statement::X25519Public;

use crate::agent::{self, AgentSession, Holdings, Opening};
use crate::controller::{self, ControllerSession, Offer};
use crate::message::{Stage, Welcome};

fn rev(number: u64) -> Revision {
    Revision {
        timeline: 1,
        number,
    }
}

fn offer(kind: ResourceKind, number: u64, size: usize) -> Arc<Offer> {
    let mut bytes = format!("{kind} {number}").into_bytes();
    bytes.resize(bytes.len().max(size), b'.');
    Offer::new(Resource {
        kind,
        version: rev(number),
        bytes,
    })
}

fn welcome() -> Welcome {
    Welcome {
        capability: 0,
        now_secs: 1_800_000_000,
        beacon: vec![1, 2, 3],
        session: 7,
        revocations: rev(1),
        manifest: 1,
        ticket_epoch: 1,
        states: Some(rev(1)),
    }
}

fn opening(holdings: Holdings, generation: u64) -> Opening {
    Opening {
        agent_version: "0.1.0".into(),
        boot_id: [9; 16],
        generation,
        verified: None,
        holdings,
        revocations: rev(1),
        manifest: 1,
        ticket_epoch: 1,
        endpoints: Vec::new(),
        introduction_key: X25519Public([5; 32]),
    }
}

/// An agent's disk and kernel: what a crash leaves standing.
#[derive(Default, Clone)]
struct Device {
    holdings: Holdings,
    generation: u64,
    content: BTreeMap<ResourceKind, Vec<u8>>,
    refuses: Option<Vec<u8>>,
    seen: Vec<agent::Output>,
}

impl Device {
    /// Plays the reconciler: stores the update, or refuses it as a whole.
    fn apply(&mut self, update: &crate::message::Update) -> Stage {
        let refused = |r: &&Resource| Some(&r.bytes) == self.refuses.as_ref();
        if let Some(bad) = update.set.iter().find(refused) {
            return Stage::Rejected(Some(bad.kind), "bad signature".into());
        }
        for resource in &update.set {
            let head = resource.head();
            self.content.insert(head.kind, resource.bytes.clone());
            self.holdings.heads.retain(|h| h.kind != head.kind);
            self.holdings.heads.push(head);
            self.holdings.marks.insert(head.kind, head.version);
        }
        for kind in &update.remove {
            self.content.remove(kind);
            self.holdings.heads.retain(|h| h.kind != *kind);
        }
        if !update.partial {
            self.holdings.revision = Some(update.revision);
        }
        Stage::Verified(Digest::of(b"table"))
    }
}

/// One connection: bytes travel in pieces of `piece`, and it breaks after `budget` pieces.
struct Wire {
    agent: AgentSession,
    controller: ControllerSession,
    now: Mono,
    piece: usize,
    budget: usize,
    wanted: (Revision, Vec<Arc<Offer>>),
    seen: Vec<controller::Output>,
}

impl Wire {
    fn connect(device: &mut Device, wanted: (Revision, Vec<Arc<Offer>>), budget: usize) -> Self {
        device.generation += 1;
        let opening = opening(device.holdings.clone(), device.generation);
        Self {
            agent: AgentSession::new(opening, device.generation, Mono::ZERO),
            controller: ControllerSession::new(Mono::ZERO),
            now: Mono::ZERO,
            piece: 50,
            budget,
            wanted,
            seen: Vec::new(),
        }
    }

    /// Moves bytes until nothing moves any more; false when the connection broke on the way.
    fn run(&mut self, device: &mut Device) -> bool {
        loop {
            let mut moved = false;
            while let Some(frame) = self.agent.next_frame() {
                moved = true;
                for piece in frame.chunks(self.piece) {
                    if self.budget == 0 {
                        return false;
                    }
                    self.budget -= 1;
                    self.controller.handle_bytes(piece, self.now).unwrap();
                    self.drain_controller();
                }
            }
            while let Some(frame) = self.controller.next_frame(self.now) {
                moved = true;
                for piece in frame.chunks(self.piece) {
                    if self.budget == 0 {
                        return false;
                    }
                    self.budget -= 1;
                    self.agent.handle_bytes(piece, self.now).unwrap();
                    self.drain_agent(device);
                }
            }
            if !moved {
                return true;
            }
        }
    }

    fn drain_controller(&mut self) {
        while let Some(output) = self.controller.poll() {
            if let controller::Output::Greeted(_) = output {
                self.controller.welcome(welcome(), self.now).unwrap();
                let (revision, offers) = self.wanted.clone();
                self.controller.handle_wanted(revision, offers);
            }
            self.seen.push(output);
        }
    }

    fn drain_agent(&mut self, device: &mut Device) {
        while let Some(output) = self.agent.poll() {
            if let agent::Output::Apply(update) = &output {
                let stage = device.apply(update);
                self.agent
                    .handle_verdict(update.revision, stage, device.holdings.clone())
                    .unwrap();
            }
            device.seen.push(output);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.agent.handle_timeout(self.now);
        self.controller.handle_timeout(self.now);
    }

    fn verified(&self, revision: Revision) -> bool {
        self.seen.iter().any(|o| {
            matches!(o, controller::Output::Verified { revision: r, partial: false, .. } if *r == revision)
        })
    }
}

fn full_set(number: u64) -> Vec<Arc<Offer>> {
    ResourceKind::ALL
        .into_iter()
        .map(|kind| offer(kind, number, 300))
        .collect()
}
