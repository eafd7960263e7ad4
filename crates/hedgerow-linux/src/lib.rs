//! Hedgerow.

pub mod tun;
pub mod tunnel;
pub mod udp;
