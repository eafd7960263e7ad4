//! Staying awake for an answer: waking a core that sleeps takes longer than most answers take to come.
//!
//! Only the first packet after a pause is worth it, and only where the first packets of its direction were
//! answered at once lately. Who sends and is never answered costs nothing, and neither does a stream: between
//! its packets there is no pause. Halt polling of hypervisors decides in the same way.

use std::time::Duration;

/// How long to stay awake.
pub(super) const STAY_MAX: Duration = Duration::from_micros(300);
/// An answer that came in this, the core's waking included, would have been met awake.
const SOON: Duration = Duration::from_micros(400);
/// A packet after so long a pause begins an exchange.
const PAUSE: Duration = Duration::from_micros(500);
/// So many answers in a row are remembered, and so many are lost by as many silences.
const TRUST_MAX: u8 = 8;
/// What an answer adds; a silence takes one away.
const TRUST_STEP: u8 = 2;

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From this machine to a peer.
    Out,
    /// From a peer to this machine.
    In,
}

/// What is known of answers in each direction.
#[derive(Debug, Default)]
pub(super) struct Linger {
    trust: [u8; 2],
    /// The last packet began an exchange.
    begun: Option<Direction>,
    /// After that packet nobody stays awake again.
    has_stayed: bool,
}

impl Linger {
    /// Notes a packet that came after so long a wait.
    pub(super) fn handle_packet(&mut self, direction: Direction, waited: Duration) {
        if let Some(begun) = self.begun.take() {
            let trust = self.trust_in(begun);
            *trust = match waited <= SOON {
                true => trust.saturating_add(TRUST_STEP).min(TRUST_MAX),
                false => trust.saturating_sub(1),
            };
        }
        if waited >= PAUSE {
            self.begun = Some(direction);
            self.has_stayed = false;
        }
    }

    /// Returns how long to stay awake before the next sleep: once after each packet.
    pub(super) fn stay(&mut self) -> Option<Duration> {
        let begun = self.begun.filter(|_| !self.has_stayed)?;
        self.has_stayed = true;
        (*self.trust_in(begun) >= TRUST_STEP).then_some(STAY_MAX)
    }

    fn trust_in(&mut self, direction: Direction) -> &mut u8 {
        let [out, inwards] = &mut self.trust;
        match direction {
            Direction::Out => out,
            Direction::In => inwards,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_millis(3);
    const QUICK: Duration = Duration::from_micros(120);

    #[test]
    fn who_is_answered_at_once_is_waited_for_and_only_after_the_question() {
        let mut linger = Linger::default();
        linger.handle_packet(Direction::Out, LONG);
        assert_eq!(linger.stay(), None, "nothing is known yet");
        linger.handle_packet(Direction::In, QUICK);
        assert_eq!(linger.stay(), None, "the answer begins nothing");
        linger.handle_packet(Direction::Out, LONG);
        assert_eq!(linger.stay(), Some(STAY_MAX));
        assert_eq!(linger.stay(), None, "a timer does not begin it anew");
        linger.handle_packet(Direction::In, QUICK);
        assert_eq!(linger.stay(), None);
        // What comes in by itself is another matter.
        linger.handle_packet(Direction::In, LONG);
        assert_eq!(linger.stay(), None);
    }

    #[test]
    fn who_is_not_answered_costs_nothing_after_a_few() {
        let mut linger = Linger::default();
        for _ in 0..20 {
            linger.handle_packet(Direction::Out, LONG);
            linger.handle_packet(Direction::In, QUICK);
        }
        let mut stays = 0;
        for _ in 0..100 {
            linger.handle_packet(Direction::Out, LONG);
            stays += u8::from(linger.stay().is_some());
        }
        assert_eq!(stays, TRUST_MAX - 1);
    }

    #[test]
    fn a_stream_is_never_waited_for() {
        let mut linger = Linger::default();
        linger.handle_packet(Direction::Out, LONG);
        for _ in 0..1000 {
            linger.handle_packet(Direction::In, QUICK);
            linger.handle_packet(Direction::Out, QUICK);
            assert_eq!(linger.stay(), None);
        }
    }
}
