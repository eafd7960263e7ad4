//! The system clock against the trusted-time floor.

use hedgerow_identity::clock::ClockState;

use super::Finding;
use crate::config::Config;
use crate::shell::clock::Clock;
use crate::shell::store::Store;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    const NAME: &str = "clock";
    let store = Store::peek(&config.state);
    vec![match Clock::start(store.floor()).state() {
        ClockState::Trusted => Finding::ok(NAME, "believed"),
        ClockState::Behind(by) => Finding::error(
            NAME,
            format!(
                "the system clock is {} s behind what is proven",
                by.as_secs()
            ),
            "set it (`timedatectl set-ntp true`); until then schedules that allow are closed",
        ),
        ClockState::Ahead(by) => Finding::error(
            NAME,
            format!(
                "the system clock is {} days ahead of what is proven",
                by.as_secs() / 86_400
            ),
            "set it, or let the agent reach a controller once",
        ),
    }]
}
