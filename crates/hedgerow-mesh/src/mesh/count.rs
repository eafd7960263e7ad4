//! What was refused how often, and what it cost.

use std::collections::BTreeMap;

use hedgerow_model::Mono;

use super::REPORT_EVERY;
use crate::output::Refusal;

/// What introductions have cost since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// X25519 key agreements.
    pub agreements: u64,
    /// Signatures checked.
    pub signatures: u64,
    /// Introductions answered.
    pub answers: u64,
}

/// Counters, one per reason: as many as there are reasons.
#[derive(Default)]
pub(crate) struct Counts {
    refused: BTreeMap<Refusal, Count>,
    pub(crate) work: Work,
}

#[derive(Default)]
struct Count {
    total: u64,
    suppressed: u64,
    report_after: Mono,
}

impl Counts {
    /// Counts a refusal; returns how many went unreported before it when it is to be reported.
    pub(crate) fn refused(&mut self, reason: Refusal, now: Mono) -> Option<u64> {
        let count = self.refused.entry(reason).or_default();
        count.total += 1;
        if now < count.report_after {
            count.suppressed += 1;
            return None;
        }
        count.report_after = now + REPORT_EVERY;
        Some(std::mem::take(&mut count.suppressed))
    }

    pub(crate) fn totals(&self) -> BTreeMap<Refusal, u64> {
        self.refused
            .iter()
            .map(|(reason, count)| (*reason, count.total))
            .collect()
    }
}
