//! The tunnel's protocol without I/O.

/// Peers that can be set; one more is refused.
pub const PEERS_MAX: usize = 100_000;
