//! Whom this device met: written down before it goes on, and made to last on another thread.

use std::time::Duration;

use hedgerow_mesh::Memory;
use hedgerow_model::{Mono, Now};

use super::run::{Daemon, Input};
use super::store::Met;
use crate::failure::Failure;

/// When what an earlier run left unsettled is looked at: who waits for peers goes before.
const LEFT_OVER_AFTER: Duration = Duration::from_secs(1);
/// How soon a disk that did not take it is asked again.
const AGAIN: Duration = Duration::from_secs(10);

/// When records are made to last.
#[derive(Debug)]
pub(super) struct Settling {
    at: Mono,
    is_under_way: bool,
}

impl Settling {
    /// Begins; an earlier run may have left something.
    pub(super) fn new(met: &Met, now: Mono) -> Self {
        let at = match met.is_settled() {
            true => Mono::NEVER,
            false => now + LEFT_OVER_AFTER,
        };
        Self {
            at,
            is_under_way: false,
        }
    }

    /// Returns when the next attempt begins.
    pub(super) fn deadline(&self) -> Mono {
        match self.is_under_way {
            true => Mono::NEVER,
            false => self.at,
        }
    }
}

impl Daemon {
    /// Writes a peer's record; the disk is asked for its word as soon as nothing else is to do.
    pub(super) fn remember(&mut self, memory: &Memory, now: Now) {
        if self.written("a peer", |s| s.store.met().keep(memory)) {
            self.settling.at = self.settling.at.min(now.mono);
        }
    }

    /// Lets another thread wait for the disk.
    pub(super) fn settle(&mut self) {
        self.settling = Settling {
            at: Mono::NEVER,
            is_under_way: true,
        };
        let (met, inputs) = (self.store.met().clone(), self.inputs.clone());
        tokio::spawn(async move {
            let settled = tokio::task::spawn_blocking(move || met.settle()).await;
            let settled = settled.unwrap_or_else(|error| {
                let text = format!("peers are not on disk: {error}");
                Err(Failure::environment(text, "report this"))
            });
            // Nobody listens any more only when the agent ends.
            drop(inputs.send(Input::Settled(settled)).await);
        });
    }

    /// Notes whether the disk has everything that was written.
    pub(super) fn handle_settled(&mut self, settled: Result<(), Failure>, now: Now) {
        self.settling.is_under_way = false;
        let is_failed = settled.is_err();
        self.written("peers", |_| settled);
        if is_failed {
            self.settling.at = now.mono + AGAIN;
        } else if !self.store.met().is_settled() {
            self.settling.at = now.mono;
        }
    }
}
