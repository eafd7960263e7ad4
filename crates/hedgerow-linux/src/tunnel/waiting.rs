//! Packets that wait for a peer or for a session.

/// Seconds for which a destination stays wanted; then its packets are dropped and it can be
/// reported again.
pub const WANTED_SECONDS_MAX: u64 = 10;
