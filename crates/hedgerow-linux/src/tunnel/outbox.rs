//! Reports on their way to a receiver that may be full.

use std::collections::VecDeque;
use std::time::Duration;

use super::{REPORTS_KEPT_MAX, Report, Reports};

/// Time until kept reports are offered again.
const RETRY: Duration = Duration::from_millis(20);

/// Keeps the reports that must arrive, in order; drops those that repeat themselves.
pub(super) struct Outbox {
    reports: Box<dyn Reports>,
    kept: VecDeque<Report>,
    dropped: u64,
}

impl Outbox {
    pub(super) fn new(reports: Box<dyn Reports>) -> Self {
        Self {
            reports,
            kept: VecDeque::new(),
            dropped: 0,
        }
    }

    /// Offers a report; returns the one that was lost, if one was.
    pub(super) fn offer(&mut self, report: Report) -> Option<Report> {
        let must_arrive = must_arrive(&report);
        let back = if self.kept.is_empty() || !must_arrive {
            match self.reports.offer(report) {
                Ok(()) => return None,
                Err(back) => *back,
            }
        } else {
            report
        };
        if !must_arrive {
            self.dropped += 1;
            return Some(back);
        }
        self.kept.push_back(back);
        if self.kept.len() <= REPORTS_KEPT_MAX {
            return None;
        }
        self.dropped += 1;
        self.kept.pop_front()
    }

    /// Offers what was kept.
    pub(super) fn retry(&mut self) {
        while let Some(report) = self.kept.pop_front() {
            if let Err(back) = self.reports.offer(report) {
                self.kept.push_front(*back);
                return;
            }
        }
    }

    pub(super) fn retry_in(&self) -> Option<Duration> {
        (!self.kept.is_empty()).then_some(RETRY)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}

fn must_arrive(report: &Report) -> bool {
    match report {
        Report::Datagram { .. }
        | Report::Message { .. }
        | Report::Heard { .. }
        | Report::Active { .. }
        | Report::Silent { .. }
        | Report::Wanted { .. }
        | Report::Spoofed { .. }
        | Report::HandshakeFromUnknown { .. } => false,
        Report::Established { .. }
        | Report::Roamed { .. }
        | Report::Idle { .. }
        | Report::Unanswered { .. }
        | Report::PeerRefused { .. }
        | Report::Stopped { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use hedgerow_model::id::DeviceId;

    use super::*;

    fn idle(n: u8) -> Report {
        Report::Idle {
            device: DeviceId([n; 16]),
        }
    }

    #[test]
    fn tunnel_reports_that_matter_wait_for_a_full_receiver_in_order() {
        let (sender, receiver) = sync_channel(1);
        let mut outbox = Outbox::new(Box::new(move |report: Report| {
            sender.try_send(report).map_err(|e| match e {
                std::sync::mpsc::TrySendError::Full(r)
                | std::sync::mpsc::TrySendError::Disconnected(r) => r,
            })
        }));
        let wanted = Report::Wanted {
            dst: hedgerow_model::address::Overlay("10.0.0.1".parse().unwrap()),
        };
        assert_eq!(outbox.offer(idle(1)), None);
        assert_eq!(outbox.retry_in(), None);
        assert_eq!(outbox.offer(wanted.clone()), Some(wanted));
        assert_eq!(outbox.offer(idle(2)), None);
        assert_eq!(outbox.offer(idle(3)), None);
        assert_eq!((outbox.dropped(), outbox.retry_in()), (1, Some(RETRY)));
        for n in 1..4 {
            assert_eq!(receiver.try_recv(), Ok(idle(n)));
            outbox.retry();
        }
        for n in 0..=REPORTS_KEPT_MAX {
            outbox.offer(idle(u8::try_from(n % 256).unwrap()));
        }
        assert_eq!(outbox.dropped(), 1, "one was taken, the rest is kept");
        assert_eq!(outbox.offer(idle(9)), Some(idle(1)), "the oldest goes");
    }
}
