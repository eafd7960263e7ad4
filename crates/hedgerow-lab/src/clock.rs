//! The lab's clock: the one place that reads it and that waits.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Returns the present.
#[expect(
    clippy::disallowed_methods,
    reason = "the lab measures real programs in real time"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// Returns milliseconds since `start`, with one decimal.
pub fn ms_since(start: Instant) -> f64 {
    (now().duration_since(start).as_secs_f64() * 10_000.0).round() / 10.0
}

/// Waits a moment between two looks at a condition.
#[expect(
    clippy::disallowed_methods,
    reason = "between two looks at a condition of the outside world there is nothing to wait on"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Looks every 50 ms until `look` finds something.
///
/// # Errors
///
/// When `limit` is over: says what was awaited, and why the last look failed.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = now();
    loop {
        let last = match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => String::new(),
            Err(error) => format!(": {error:#}"),
        };
        if now().duration_since(start) > limit {
            bail!("waited {} s in vain for {what}{last}", limit.as_secs());
        }
        pause(Duration::from_millis(50));
    }
}

/// Returns seconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "a policy's days are days of the calendar"
)]
pub fn wall_secs() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
