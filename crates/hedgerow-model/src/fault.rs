//! Who has to act on an error.

/// Who has to act: decides retry, alert route and exit code in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A person gave us something wrong; retrying changes nothing.
    Operator,
    /// The other end misbehaved; refuse it, count it, keep our state.
    Peer,
    /// The machine or the network failed us; retry with back-off.
    Environment,
    /// We are wrong; report it.
    Bug,
}

impl Fault {
    /// Returns the process exit code that stands for this fault (`docs/reference/exit-codes.md`).
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Operator => 1,
            Self::Peer => 3,
            Self::Environment => 4,
            Self::Bug => 70,
        }
    }
}
