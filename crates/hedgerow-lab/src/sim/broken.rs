//! Parts that are broken on purpose: an invariant that was never seen to fail holds nothing.

use clap::ValueEnum;

/// What is broken, everywhere in the plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Broken {
    /// Who learns that a device is revoked or in quarantine tells its mesh nothing of it.
    Revocation,
    /// Tunnels take what a spoofer sends in its victim's name.
    Sources,
    /// What goes to a relay is not sealed.
    Sealing,
    /// Strict devices do not wait for a pre-shared key.
    Waiting,
    /// Every device says anew where it is whenever it hears the controller.
    Chatter,
    /// Everybody is admitted.
    Policy,
}
