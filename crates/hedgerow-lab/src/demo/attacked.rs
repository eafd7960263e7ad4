//! Act 9: attacks, each of which gets nowhere and leaves an event.

use anyhow::Result;

use super::stage::Stage;

/// Plays act 9.
///
/// # Errors
///
/// When the lab itself fails.
pub(crate) fn play(stage: &mut Stage<'_>) -> Result<bool> {
    let act = stage
        .screen
        .act(9, "Attacks get nowhere, and each leaves an event");
    Ok(act.end())
}
