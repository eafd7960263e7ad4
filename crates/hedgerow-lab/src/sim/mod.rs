//! The deterministic simulator: many devices, one seed, no socket and no clock.
//!
//! ```text
//!  seed ─▶ plant (who, where, behind what) ─▶ faults (what breaks when)
//!             │                                  │
//!             ▼                                  ▼
//!  queue ─▶ world ◀──▶ node: the product's mesh and tunnel machines ◀──▶ network: loss, delay, NATs, cuts
//!             │
//!             └──▶ reference: who must reach whom ──▶ findings
//! ```
//!
//! Every device runs `hedgerow_mesh::Mesh` and `hedgerow_linux::tunnel::core::Core` themselves; only wires,
//! routers, clocks, disks and the controller are simulated.
//!
//! # Invariants
//!
//! - Everything follows from the seed: the same seed gives the same trace, on every machine.
//! - The reference is written apart and sees the plant and the faults, never a machine.
//! - Checked at every step: nobody gets a packet of a device that policy keeps apart or that it knows to be
//!   revoked, and no introduction moves an endpoint. Checked once per round, when everything is mended and had
//!   time: who must reach whom does, who must not does not, no table is above its bound.
//!
//! # Not here
//!
//! Kernel tables, the controller's protocol and the agent's shell: the lab has the real ones.

mod domain;
mod faults;
mod network;
mod node;
mod plant;
mod random;
mod reference;
mod world;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use hedgerow_model::Mono;

use crate::clock;
use crate::screen::Screen;
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
            findings: Vec::new(),
            found: 0,
        }
    }

    fn judged(&self, expected: Expected) -> u64 {
        self.judged.get(&expected).copied().unwrap_or_default()
    }
}

/// Runs one seed.
///
/// # Errors
///
/// When the plant itself cannot be made: a fault of the simulator.
pub(crate) fn run(shape: Shape, progress: impl FnMut(Mono)) -> Result<Outcome> {
    World::new(shape)?.run(progress)
}

/// Runs some seeds one after the other; a failure prints the command that repeats it.
///
/// # Errors
///
/// When a plant cannot be made.
pub(crate) fn many(screen: Screen, first: Shape, seeds: u64, commit: &str) -> Result<bool> {
    let mut failed = 0u64;
    for seed in first.seed..first.seed.saturating_add(seeds) {
        let shape = Shape { seed, ..first };
        let start = clock::now();
        let outcome = run(shape, |at| {
            let secs = at.since(Mono::ZERO).as_secs();
            if secs.is_multiple_of(600) {
                screen.say(&format!("  seed {seed}: {} min simulated", secs / 60));
            }
        })?;
        let took = clock::ms_since(start) / 1000.0;
        screen.say(&format!(
            "seed {seed}: {} in {took:.1} s; {} events, {} datagrams, {} packets, at most {} peers; {} flows must, {} must not; trace {:016x}",
            if outcome.found == 0 { "clean" } else { "FAILED" },
            outcome.events,
            outcome.datagrams,
            outcome.packets,
            outcome.peers_most,
            outcome.judged(Expected::Reaches),
            outcome.judged(Expected::Refused),
            outcome.trace,
        ));
        screen.object(&serde_json::json!({
            "seed": seed, "nodes": shape.nodes, "found": outcome.found, "findings": outcome.findings,
            "seconds": took, "events": outcome.events, "trace": format!("{:016x}", outcome.trace),
        }));
        if outcome.found > 0 {
            failed += 1;
            outcome
                .findings
                .iter()
                .for_each(|f| screen.say(&format!("  {f}")));
            screen.say(&format!(
                "  {} findings; again: git checkout {commit} && cargo xtask sim --seeds 1 --from {seed} --nodes {} --minutes {}",
                outcome.found,
                shape.nodes,
                shape.length.as_secs() / 60
            ));
        }
    }
    screen.say(&format!("{seeds} seeds, {failed} failed."));
    Ok(failed == 0)
}
