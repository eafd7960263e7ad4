//! The one place where the agent looks at a clock.

use std::time::{Duration, Instant, SystemTime};

use hedgerow_identity::clock::{BEHIND_TOLERATED, ClockState, TrustedClock};
use hedgerow_model::{Mono, Now, Wall};

/// 2026-11-01: nothing was built before, so a clock that says less is wrong.
const BUILT: Wall = Wall::from_secs(1_793_491_200);
/// Sequences of bindings are seconds.
const SEQUENCE_STEP: Duration = Duration::from_secs(1);
/// Timers of the runtime reach no further.
const FAR: Duration = Duration::from_secs(30 * 86_400);

/// The machine's clocks under the trusted-time floor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
    trusted: TrustedClock,
    /// Later than every sequence that we gave.
    given: Wall,
}

impl Clock {
    /// Starts the monotonic clock at zero, over the floor that an earlier run wrote down.
    #[expect(
        clippy::disallowed_methods,
        reason = "the shell's clock: everything else takes time as an argument"
    )]
    pub(crate) fn start(persisted: Option<Wall>) -> Self {
        Self {
            start: Instant::now(),
            trusted: TrustedClock::new(BUILT, persisted, Mono::ZERO),
            given: Wall(0),
        }
    }

    /// Reads both clocks.
    pub(crate) fn now(&self) -> Now {
        self.trusted.now(system(), self.mono())
    }

    /// Reads the monotonic clock.
    #[expect(
        clippy::disallowed_methods,
        reason = "the shell's clock: everything else takes time as an argument"
    )]
    pub(crate) fn mono(&self) -> Mono {
        Mono(Instant::now().duration_since(self.start))
    }

    /// Judges the system clock.
    pub(crate) fn state(&self) -> ClockState {
        self.trusted.state(system(), self.mono())
    }

    /// Learns that `proven` is past. Returns the floor when that was news.
    pub(crate) fn raise(&mut self, proven: Wall) -> Option<Wall> {
        let mono = self.mono();
        self.trusted.raise(proven, mono).then(|| self.floor())
    }

    /// Learns over a live session that it is `present` now. Returns the floor when it rose.
    pub(crate) fn handle_present(&mut self, present: Wall) -> Option<Wall> {
        let mono = self.mono();
        let news = self.trusted.handle_present(present, mono);
        news.then(|| self.floor())
    }

    /// Returns the date of what is signed at `wall`: after all that was signed before, also in the same
    /// second, unless somebody has set the clock back since.
    pub(crate) fn dated(&self, wall: Wall) -> Wall {
        match self.given.since(wall) <= BEHIND_TOLERATED {
            true => wall.max(self.given),
            false => wall,
        }
    }

    /// Notes that we signed something that is dated `sequence`: peers refuse what is not later.
    pub(crate) fn handle_given(&mut self, sequence: Wall) {
        self.given = self.given.max(sequence + SEQUENCE_STEP);
    }

    /// Returns what to write down: the floor, so that a machine whose clock starts at 1970 starts with
    /// a time after all that it signed. The system clock, by which it signs, may raise it by no more
    /// than is forgiven when somebody sets it right.
    pub(crate) fn floor(&self) -> Wall {
        let floor = self.trusted.floor(self.mono());
        match self.given.since(floor) <= BEHIND_TOLERATED {
            true => floor.max(self.given),
            false => floor,
        }
    }

    /// Returns the moment of `mono` for timers of the runtime.
    pub(crate) fn instant(&self, mono: Mono) -> tokio::time::Instant {
        let soon = mono.0.min(self.mono().0.saturating_add(FAR));
        tokio::time::Instant::from_std(self.start + soon)
    }
}

fn system() -> Wall {
    Wall(u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX))
}

/// Returns what the system clock shows, believed or not, since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "the shell's clock: everything else takes time as an argument"
)]
pub(crate) fn since_epoch() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_past_for_certain_is_not_the_time_of_day_under_a_clock_that_is_behind() {
        let day = Duration::from_secs(86_400);
        let mut clock = Clock::start(Some(system() + 10 * day));
        for passed_on in 11..20 {
            let proven = system() + passed_on * day;
            assert!(clock.raise(proven).is_some(), "it is news");
            let now = clock.now();
            assert!(now.wall >= proven, "a lower bound");
            assert!(!now.wall_is_trusted, "no window opens by it");
        }
        assert!(clock.handle_present(system() + 20 * day).is_some());
        assert!(clock.now().wall_is_trusted, "a session says it");
    }

    #[test]
    fn what_is_signed_is_dated_later_each_time_unless_the_clock_was_far_ahead() {
        let mut clock = Clock::start(None);
        let wall = BUILT + Duration::from_millis(500);
        assert_eq!(clock.dated(wall), wall);
        let mut last = wall.secs();
        clock.handle_given(Wall::from_secs(last));
        for back in [0, 0, 20] {
            let again = clock.dated(Wall(wall.0 - back * 1000)).secs();
            assert_eq!(again, last + 1, "set back by {back} s");
            last = again;
            clock.handle_given(Wall::from_secs(last));
        }
        let mut anew = Clock::start(None);
        anew.handle_given(Wall::from_secs(last));
        assert_eq!(anew.dated(wall).secs(), last + 1, "started anew at once");
        clock.handle_given(wall + 2 * BEHIND_TOLERATED);
        assert_eq!(clock.dated(wall), wall);
    }
}
