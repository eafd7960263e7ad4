//! Live sessions that a policy would cut: asked of the devices themselves, when a change is planned.
//!
//! A question is a number under which devices answer. Nothing of the answers is kept: they are true
//! for a moment, and say who talks with whom.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hedgerow_model::id::DeviceId;
use hedgerow_model::packet::{Direction, LiveFlow};
use hedgerow_model::statement::PeerQuery;
use hedgerow_policy::{End, Flow, Policy, World, class_of, compile, evaluate};
use hedgerow_sync::message::Flows;
use tokio::sync::mpsc;

use crate::control::Controller;
use crate::hub::dirty;
use crate::snapshot::Snapshot;

/// How long devices may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Most devices that one plan asks; the others are counted as not asked.
const ASKED_MAX: usize = 256;
/// Most questions open at once, over all plans; beyond that devices are not asked.
const QUESTIONS_MAX: usize = 4 * ASKED_MAX;
/// Most sessions listed; the others are counted.
const CUT_MAX: usize = 512;

type Answers = mpsc::Sender<(DeviceId, Flows)>;

/// Who is being asked.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    open: Mutex<BTreeMap<(DeviceId, u64), Answers>>,
    next: AtomicU64,
}

impl Questions {
    fn open(&self) -> MutexGuard<'_, BTreeMap<(DeviceId, u64), Answers>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the numbers under which a device is being asked.
    pub(crate) fn of(&self, device: DeviceId) -> Vec<u64> {
        let open = self.open();
        let own = open.range((device, 0)..=(device, u64::MAX));
        own.map(|((_, id), _)| *id).collect()
    }

    /// Takes a device's answer; one that nobody waits for is dropped.
    pub(crate) fn answered(&self, device: DeviceId, flows: Flows) {
        if let Some(answers) = self.open().remove(&(device, flows.id)) {
            // There is room for every device that was asked; the plan may be over.
            drop(answers.try_send((device, flows)));
        }
    }

    fn forget(&self, id: u64) {
        self.open().retain(|(_, of), _| *of != id);
    }
}

/// Sessions alike that would be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    /// What they are.
    pub(crate) flow: Flow,
    /// How many, by the end that sees more.
    pub(crate) count: u32,
}

/// What is known of the sessions that a change would cut. Devices that were not asked or did not
/// answer may have more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Live {
    /// The sessions, most first; at most [`CUT_MAX`].
    pub(crate) cut: Vec<Cut>,
    /// Kinds of sessions beyond that, and those that devices left out of their answers.
    pub(crate) left_out: u64,
    /// Devices that were asked.
    pub(crate) asked: usize,
    /// Devices among them that answered.
    pub(crate) answered: usize,
    /// Devices that lose reach and were not asked: not connected, or too many.
    pub(crate) not_asked: usize,
}

/// Returns the devices that reach less, or are reached by less, if their programs say otherwise.
pub(crate) fn affected(old: &Policy, new: &Policy, world: &World) -> BTreeSet<DeviceId> {
    let mut changed = BTreeMap::new();
    let differs = |facts: &hedgerow_policy::Facts| {
        let programs = (compile(old, facts), compile(new, facts));
        !matches!(programs, (Ok(before), Ok(after)) if before == after)
    };
    world
        .devices()
        .filter(|facts| {
            let class = (class_of(old, facts), class_of(new, facts));
            *changed.entry(class).or_insert_with(|| differs(facts))
        })
        .map(|facts| facts.id)
        .collect()
}

/// Returns the flows that `old` lets through now and `new` refuses.
fn cut(
    (old, new): (&Policy, &Policy),
    snapshot: &Snapshot,
    world: &World,
    answers: &[(DeviceId, Flows)],
    now: hedgerow_model::Now,
) -> Vec<Cut> {
    let mut counts: BTreeMap<Flow, u32> = BTreeMap::new();
    let seen = answers.iter();
    for (device, live) in seen.flat_map(|(d, f)| f.flows.iter().map(move |live| (*d, live))) {
        if let Some(flow) = flow_of(snapshot, device, live) {
            let count = counts.entry(flow).or_default();
            *count = live.count.max(*count);
        }
    }
    let passes = |policy: &Policy, flow: &Flow| {
        evaluate(policy, world, flow, now.wall, now.wall_is_trusted).passes()
    };
    let lost = counts.into_iter();
    let lost = lost.filter(|(flow, _)| passes(old, flow) && !passes(new, flow));
    let mut cut: Vec<Cut> = lost.map(|(flow, count)| Cut { flow, count }).collect();
    cut.sort_by_key(|c| std::cmp::Reverse(c.count));
    cut
}

/// An address that is nobody's any more belongs to no flow that policy speaks of.
fn flow_of(snapshot: &Snapshot, device: DeviceId, live: &LiveFlow) -> Option<Flow> {
    let peer = snapshot.resolve(&PeerQuery::Address(live.peer))?.id;
    let (from, to) = match live.direction {
        Direction::In => (peer, device),
        Direction::Out => (device, peer),
    };
    Some(Flow {
        from: End::Device(from),
        to: End::Device(to),
        protocol: live.protocol,
        port: live.port,
    })
}

impl Controller {
    /// Asks the connected among `devices` for their sessions and says which of them `new` would cut.
    pub(crate) async fn live_sessions(
        &self,
        snapshot: Arc<Snapshot>,
        new: Policy,
        devices: BTreeSet<DeviceId>,
    ) -> Live {
        let (id, receiver, asked) = self.ask(&devices);
        let answers = self.gather(receiver, asked).await;
        self.hub.questions.forget(id);
        // What devices say is judged where it does not hold up connections.
        tokio::task::block_in_place(|| {
            let world = super::policy::world(&snapshot);
            let old = &snapshot.policy.policy;
            let now = self.clock.now();
            let mut cut = cut((old, &new), &snapshot, &world, &answers, now);
            let beyond = cut.len().saturating_sub(CUT_MAX) as u64;
            cut.truncate(CUT_MAX);
            Live {
                cut,
                left_out: answers.iter().map(|(_, f)| f.left_out).sum::<u64>() + beyond,
                asked,
                answered: answers.len(),
                not_asked: devices.len().saturating_sub(asked),
            }
        })
    }

    fn ask(&self, devices: &BTreeSet<DeviceId>) -> (u64, mpsc::Receiver<(DeviceId, Flows)>, usize) {
        let questions = &self.hub.questions;
        let id = questions.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel(ASKED_MAX);
        let connected: Vec<DeviceId> = {
            let statuses = self.hub.statuses();
            let live = |d: &&DeviceId| statuses.get(*d).is_some_and(|s| s.live.is_some());
            devices
                .iter()
                .filter(live)
                .take(ASKED_MAX)
                .copied()
                .collect()
        };
        let asked: Vec<DeviceId> = {
            let mut open = questions.open();
            let room = QUESTIONS_MAX.saturating_sub(open.len());
            let asked: Vec<DeviceId> = connected.into_iter().take(room).collect();
            open.extend(asked.iter().map(|d| ((*d, id), sender.clone())));
            asked
        };
        for device in &asked {
            self.hub.raise(*device, dirty::FLOWS);
        }
        (id, receiver, asked.len())
    }

    async fn gather(
        &self,
        mut receiver: mpsc::Receiver<(DeviceId, Flows)>,
        asked: usize,
    ) -> Vec<(DeviceId, Flows)> {
        let end = self.clock.instant(self.clock.now().mono + ANSWER_WITHIN);
        let mut answers = Vec::new();
        while answers.len() < asked {
            match tokio::time::timeout_at(end, receiver.recv()).await {
                Ok(Some(answer)) => answers.push(answer),
                Ok(None) | Err(_) => break,
            }
        }
        answers
    }
}
