//! The one place where the controller looks at a clock.

use std::time::{Duration, Instant, SystemTime};

use hedgerow_model::{Mono, Now, Wall};

/// 2026-11-01: nothing was built before, so a clock that says less is wrong.
const BUILT_SECS: u64 = 1_793_491_200;

/// The machine's clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts the monotonic clock at zero.
    #[expect(
        clippy::disallowed_methods,
        reason = "the shell's clock: everything else takes time as an argument"
    )]
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Reads both clocks.
    #[expect(
        clippy::disallowed_methods,
        reason = "the shell's clock: everything else takes time as an argument"
    )]
    pub(crate) fn now(&self) -> Now {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let wall_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        Now {
            mono: Mono(Instant::now().duration_since(self.start)),
            wall: Wall(wall_ms.max(BUILT_SECS * 1000)),
            wall_is_trusted: wall_ms / 1000 >= BUILT_SECS,
        }
    }

    /// Reads the wall clock.
    pub(crate) fn wall(&self) -> Wall {
        self.now().wall
    }

    /// Returns the moment of `mono` for timers of the runtime.
    pub(crate) fn instant(&self, mono: Mono) -> tokio::time::Instant {
        let far = Duration::from_secs(365 * 24 * 3600);
        tokio::time::Instant::from_std(self.start + mono.0.min(far))
    }
}
