//! The deterministic simulator: many devices, one seed, no socket and no clock.
//!
//! ```text
//!  seed ─▶ plant (who, where, behind what) ─▶ faults (what breaks when)
//!             │                                  │
//!             ▼                                  ▼
//!  queue ─▶ world ◀──▶ node: the product's mesh and tunnel machines ◀──▶ network: loss, delay, NATs, cuts
//!             │
//!             └──▶ judge ◀── reference: who must reach whom ──▶ findings, figures
//! ```
//!
//! Every device runs `hedgerow_mesh::Mesh` and `hedgerow_linux::tunnel::core::Core` themselves; only wires,
//! routers, clocks, disks and the controller are simulated.
//!
//! # Invariants
//!
//! - Everything follows from the seed: the same seed gives the same trace, on every machine.
//! - The reference is written apart and sees the plant and the faults, never a machine.
//! - Checked at every step: nobody gets a packet of a device that policy keeps apart, that it knows to be
//!   revoked, or in another's name; none passes to or from a strict device before a pre-shared key; no
//!   introduction moves an endpoint; no relay passes on what it could read; nobody loses a peer for good who is neither revoked nor in quarantine.
//! - Checked once per round, when everything is mended and had time: who must reach whom does, directly or
//!   through one relay or two, who must not does not, no table is above its bound, gossip is little. Then, with
//!   the controller dead: a list given to one device is everywhere, and what a dying relay carried goes on.
//! - Every invariant was seen to fail: `broken` has a part to break for each, and a test that does.
//! - Membership is nowhere in the reference: what gossip says of a relay changes nobody's reach.
//!
//! # Not here
//!
//! Kernel tables, the controller's protocol and the agent's shell: the lab has the real ones.

mod broken;
mod controller;
mod domain;
mod faults;
mod figures;
mod hostile;
mod judge;
mod network;
mod node;
mod packet;
mod plant;
mod random;
mod reference;
mod seeds;
mod world;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Result;
use hedgerow_model::Mono;

use crate::screen::Screen;
pub(crate) use seeds::Order;

use broken::Broken;
use figures::Figures;
use reference::Expected;
use world::World;

/// What a run is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Everything that is drawn is drawn from it.
    pub(crate) seed: u64,
    /// Devices.
    pub(crate) nodes: usize,
    /// Simulated time.
    pub(crate) length: Duration,
    /// What is broken on purpose.
    pub(crate) broken: Option<Broken>,
}

/// What a run showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) shape: Shape,
    /// Hash of everything that happened, in its order.
    pub(crate) trace: u64,
    pub(crate) events: u64,
    pub(crate) datagrams: u64,
    pub(crate) packets: u64,
    /// Flows judged, by what was expected of them.
    judged: BTreeMap<Expected, u64>,
    /// Most peers of one device.
    pub(crate) peers_most: usize,
    pub(crate) figures: Figures,
    /// What is wrong; the first few.
    pub(crate) findings: Vec<String>,
    /// How many are wrong.
    pub(crate) found: u64,
}

impl Outcome {
    fn new(shape: Shape) -> Self {
        Self {
            shape,
            trace: 0xcbf2_9ce4_8422_2325,
            events: 0,
            datagrams: 0,
            packets: 0,
            judged: BTreeMap::new(),
            peers_most: 0,
            figures: Figures::default(),
            findings: Vec::new(),
            found: 0,
        }
    }

    /// Says what was judged and measured.
    fn tell(&self, screen: Screen) {
        screen.say(&format!(
            "  flows: {} must directly, {} by a relay, {} by two, {} must not, {} may",
            self.judged(Expected::Reaches),
            self.judged(Expected::ReachesRelayed),
            self.judged(Expected::ReachesOverTwo),
            self.judged(Expected::Refused),
            self.judged(Expected::Open),
        ));
        screen.say(&self.figures.text());
    }

    fn judged(&self, expected: Expected) -> u64 {
        self.judged.get(&expected).copied().unwrap_or_default()
    }
}

/// Runs one seed; `None` when it was told to stop.
///
/// # Errors
///
/// When the plant itself cannot be made: a fault of the simulator.
fn run(shape: Shape, progress: impl FnMut(Mono) -> ControlFlow<()>) -> Result<Option<Outcome>> {
    World::new(shape)?.run(progress)
}
