//! One packet as a decision sees it.

use crate::service::Protocol;

/// Which way a packet crosses the device that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From a peer to this device.
    In,
    /// From this device to a peer.
    Out,
}

/// A packet of a new flow, or one that its initiator sends: destination port decides. Replies are
/// decided as the flow they answer, with the direction turned round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// Which way the flow's initiator sends.
    pub direction: Direction,
    /// The protocol.
    pub protocol: Protocol,
    /// Destination port of the initiator's packets; 0 for ICMP echo.
    pub port: u16,
}
