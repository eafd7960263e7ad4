//! Trusted time: a floor that only rises, under a system clock that may say anything.
//!
//! ```text
//!            floor − 5 min            floor               floor + 1 year
//!   behind: use floor │ trusted: use the larger of both │ ahead: use floor, not believed
//! ```
//!
//! The floor is the latest moment that is proven to be past: when this program was built, what was
//! persisted, a beacon, the beginning of a certificate that verifies. It advances with the monotonic
//! clock. The system clock never moves it, so that one wrong second cannot poison what follows.
//!
//! A floor that comes from a live session is not only past but present: for [`PRESENT_BELIEVED`] it is
//! trusted in place of a system clock that is wrong.

use std::time::Duration;

use hedgerow_model::{Mono, Now, Wall};

/// How far the system clock may lag behind the floor and still be trusted: clocks of controllers and
/// devices differ a little.
pub const BEHIND_TOLERATED: Duration = Duration::from_secs(300);
/// How far ahead of the floor the system clock is believed.
pub const AHEAD_BELIEVED: Duration = Duration::from_secs(365 * 86_400);

/// How long the time that a live session gave is trusted: it goes on with the monotonic clock, which
/// stands still while a machine sleeps.
pub const PRESENT_BELIEVED: Duration = Duration::from_secs(86_400);

/// Whether the system clock is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockState {
    /// It is.
    Trusted,
    /// It shows a time that is certainly past, by this much.
    Behind(Duration),
    /// It is further ahead of what is proven than a jump is believed, by this much.
    Ahead(Duration),
}

/// The trusted-time floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrustedClock {
    floor: Wall,
    at: Mono,
    /// Until when the floor is the present.
    present_until: Option<Mono>,
}

impl TrustedClock {
    /// Begins with when the program was built and what was persisted by an earlier run.
    pub fn new(built: Wall, persisted: Option<Wall>, mono: Mono) -> Self {
        Self {
            floor: persisted.map_or(built, |persisted| persisted.max(built)),
            at: mono,
            present_until: None,
        }
    }

    /// Learns over a live session that it is `present` at this moment. One that lies behind what is
    /// proven to be past is not believed. Returns whether the floor rose.
    pub fn handle_present(&mut self, present: Wall, mono: Mono) -> bool {
        if self.floor(mono).since(present) <= BEHIND_TOLERATED {
            self.present_until = Some(mono + PRESENT_BELIEVED);
        }
        self.raise(present, mono)
    }

    /// Returns the floor at this moment: what to persist.
    pub fn floor(&self, mono: Mono) -> Wall {
        self.floor + mono.since(self.at)
    }

    /// Learns that `proven` is past: a beacon's or manifest's time, a certificate's beginning, once
    /// verified. Returns whether that was news.
    pub fn raise(&mut self, proven: Wall, mono: Mono) -> bool {
        let floor = self.floor(mono);
        if proven <= floor {
            return false;
        }
        (self.floor, self.at) = (proven, mono.max(self.at));
        true
    }

    /// Judges the system clock.
    pub fn state(&self, system: Wall, mono: Mono) -> ClockState {
        let floor = self.floor(mono);
        let (behind, ahead) = (floor.since(system), system.since(floor));
        if behind > BEHIND_TOLERATED {
            ClockState::Behind(behind)
        } else if ahead > AHEAD_BELIEVED {
            ClockState::Ahead(ahead)
        } else {
            ClockState::Trusted
        }
    }

    /// Returns the time to decide by. Where the system clock is not believed it is the floor: the
    /// present while a session gave it lately, else untrusted, a lower bound of the time.
    pub fn now(&self, system: Wall, mono: Mono) -> Now {
        let floor = self.floor(mono);
        match self.state(system, mono) {
            ClockState::Trusted => Now {
                mono,
                wall: system.max(floor),
                wall_is_trusted: true,
            },
            ClockState::Behind(_) | ClockState::Ahead(_) => Now {
                mono,
                wall: floor,
                wall_is_trusted: self.present_until.is_some_and(|until| mono < until),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    const BUILT: Wall = Wall::from_secs(1_790_000_000);

    fn after(years: u32) -> Wall {
        BUILT + YEAR * years
    }

    #[test]
    fn a_clock_at_1970_is_raised_to_the_floor_and_not_trusted() {
        let clock = TrustedClock::new(BUILT, None, Mono::ZERO);
        let now = clock.now(Wall(0), Mono::ZERO + Duration::from_secs(60));
        assert_eq!(now.wall, BUILT + Duration::from_secs(60));
        assert!(!now.wall_is_trusted);
    }

    #[test]
    fn a_clock_in_2200_is_not_believed_until_somebody_proves_it() {
        let mut clock = TrustedClock::new(BUILT, None, Mono::ZERO);
        let now = clock.now(after(174), Mono::ZERO);
        assert_eq!((now.wall, now.wall_is_trusted), (BUILT, false));
        assert!(clock.raise(after(174), Mono::ZERO));
        assert!(clock.now(after(174), Mono::ZERO).wall_is_trusted);
    }

    #[test]
    fn one_wrong_reading_leaves_no_trace() {
        let clock = TrustedClock::new(BUILT, None, Mono::ZERO);
        clock.now(BUILT + YEAR, Mono::ZERO);
        assert_eq!(clock.floor(Mono::ZERO), BUILT);
    }

    #[test]
    fn the_floor_never_falls() {
        let mut clock = TrustedClock::new(BUILT, Some(after(1)), Mono::ZERO);
        assert_eq!(clock.floor(Mono::ZERO), after(1));
        assert!(!clock.raise(BUILT, Mono::ZERO));
        let later = Mono::ZERO + Duration::from_secs(10);
        assert!(clock.raise(after(1) + Duration::from_secs(11), later));
        assert_eq!(clock.floor(later), after(1) + Duration::from_secs(11));
        assert!(clock.floor(Mono::ZERO) >= after(1));
    }

    #[test]
    fn a_controller_slightly_ahead_does_not_make_us_distrust_our_clock() {
        let mut clock = TrustedClock::new(BUILT, None, Mono::ZERO);
        clock.raise(after(1) + Duration::from_secs(30), Mono::ZERO);
        let now = clock.now(after(1), Mono::ZERO);
        assert!(now.wall_is_trusted);
        assert_eq!(now.wall, after(1) + Duration::from_secs(30));
    }

    #[test]
    fn the_present_of_a_session_stands_in_for_a_wrong_clock_for_a_day() {
        for wrong in [Wall(0), after(174)] {
            let mut clock = TrustedClock::new(BUILT, None, Mono::ZERO);
            assert!(clock.handle_present(after(1), Mono::ZERO));
            let later = Mono::ZERO + Duration::from_secs(3600);
            let now = clock.now(wrong, later);
            assert!(now.wall_is_trusted);
            assert_eq!(now.wall, after(1) + Duration::from_secs(3600));
            let next_day = Mono::ZERO + PRESENT_BELIEVED;
            assert!(!clock.now(wrong, next_day).wall_is_trusted);
        }
    }

    #[test]
    fn a_session_that_lags_behind_what_is_proven_does_not_give_the_present() {
        let mut clock = TrustedClock::new(BUILT, Some(after(1)), Mono::ZERO);
        assert!(!clock.handle_present(BUILT, Mono::ZERO));
        assert!(!clock.now(Wall(0), Mono::ZERO).wall_is_trusted);
    }
}
