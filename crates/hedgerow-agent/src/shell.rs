//! What touches the world: one event loop, sockets, files, the kernel, clocks and entropy.

pub(crate) mod act;
pub(crate) mod capture;
pub(crate) mod clock;
pub(crate) mod enroll;
pub(crate) mod entropy;
mod gossip;
pub(crate) mod identity;
mod leave;
pub(crate) mod lifeline;
pub(crate) mod local;
mod measure;
mod memory;
pub(crate) mod offline;
mod orders;
mod preference;
mod relay_link;
pub(crate) mod renew;
pub(crate) mod resolver;
pub(crate) mod run;
mod session;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod tls;
pub(crate) mod uplink;
mod who;
