//! One packet as a decision sees it.

use minicbor::{Decode, Encode};

use crate::address::Overlay;
use crate::service::Protocol;

/// Which way a packet crosses the device that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Direction {
    /// From a peer to this device.
    #[n(0)]
    In,
    /// From this device to a peer.
    #[n(1)]
    Out,
}

/// Flows that are open now on a device, those alike taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(map)]
pub struct LiveFlow {
    /// The other end.
    #[n(0)]
    pub peer: Overlay,
    /// Which way the initiator sends.
    #[n(1)]
    pub direction: Direction,
    /// The protocol.
    #[n(2)]
    pub protocol: Protocol,
    /// Destination port of the initiator's packets; 0 for ICMP echo.
    #[n(3)]
    pub port: u16,
    /// How many.
    #[n(4)]
    pub count: u32,
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
