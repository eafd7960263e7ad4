//! What is spoken: protocol and ports.

use std::fmt;

use minicbor::{Decode, Encode};

/// A protocol that policy can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Protocol {
    /// TCP.
    #[n(0)]
    Tcp,
    /// UDP.
    #[n(1)]
    Udp,
    /// ICMP and ICMPv6 echo request with its reply; has no ports.
    #[n(2)]
    IcmpEcho,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::IcmpEcho => "icmp-echo",
        })
    }
}

/// A closed range of ports of one protocol. ICMP echo takes 0 to 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Ports {
    /// The protocol.
    #[n(0)]
    pub protocol: Protocol,
    /// First port.
    #[n(1)]
    pub first: u16,
    /// Last port, not below `first`.
    #[n(2)]
    pub last: u16,
}

impl Ports {
    /// ICMP echo.
    pub const ICMP_ECHO: Self = Self {
        protocol: Protocol::IcmpEcho,
        first: 0,
        last: 0,
    };

    /// Returns the range of one TCP port.
    pub const fn tcp(port: u16) -> Self {
        Self {
            protocol: Protocol::Tcp,
            first: port,
            last: port,
        }
    }

    /// Returns the range of one UDP port.
    pub const fn udp(port: u16) -> Self {
        Self {
            protocol: Protocol::Udp,
            first: port,
            last: port,
        }
    }

    /// Returns whether `protocol` and `port` lie inside.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::IcmpEcho => f.write_str("icmp-echo"),
            Protocol::Tcp | Protocol::Udp if self.first == self.last => {
                write!(f, "{}/{}", self.protocol, self.first)
            }
            Protocol::Tcp | Protocol::Udp => {
                write!(f, "{}/{}-{}", self.protocol, self.first, self.last)
            }
        }
    }
}
