//! What a disk keeps for the next start, and nobody waits for now.
//!
//! A write takes as long as the disk likes; a peer's first packet waits for none.

use std::collections::VecDeque;
use std::time::Duration;

use hedgerow_model::{Mono, Now};

use super::run::Daemon;
use crate::state::Step;

/// How much later; a process that is killed sooner has met those peers in vain.
const LATER: Duration = Duration::from_millis(100);
/// Steps put off; with more, all are done at once.
const LATER_MAX: usize = 1024;

/// Steps put off, in their order.
#[derive(Default)]
pub(super) struct Later {
    steps: VecDeque<Step>,
    since: Option<Mono>,
}

impl Later {
    /// Returns when they are due.
    pub(super) fn deadline(&self) -> Mono {
        self.since.map_or(Mono::NEVER, |since| since + LATER)
    }

    fn put_off(&mut self, step: Step, now: Mono) -> bool {
        self.since.get_or_insert(now);
        self.steps.push_back(step);
        self.steps.len() >= LATER_MAX
    }
}

impl Daemon {
    /// Does a step, or puts off one that only writes down whom this device met.
    pub(super) fn act_in_time(&mut self, step: Step, now: Now) {
        if !matches!(step, Step::Remember(_) | Step::Forget(_)) {
            self.act(step);
        } else if self.later.put_off(step, now.mono) {
            self.catch_up();
        }
    }

    /// Does what was put off.
    pub(super) fn catch_up(&mut self) {
        self.later.since = None;
        while let Some(step) = self.later.steps.pop_front() {
            self.act(step);
        }
    }
}
