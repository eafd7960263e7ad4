//! The one operating system: everything that touches the Linux kernel, and all unsafe code.
//!
//! ```text
//!  Ruleset ──▶ nft ──▶ kernel table ──▶ verdict for every packet
//!  commands ─▶ tunnel (WireGuard) ──▶ tun (inner packets) + udp (datagrams)
//!  service, disk, hosts, resolved, link, cgroup, conntrack, sessions, process: the machine around them
//! ```
//!
//! # Invariants
//!
//! - Nothing here knows what a policy, a ticket or a controller is: it acts on values of
//!   `hedgerow-model` and reports what it saw.
//! - One wrapper per system call holds its `unsafe` block, with the reason why it is sound.
//! - A failed call leaves the kernel as it was; where it cannot, the function says so.
//!
//! # Not here
//!
//! Deciding which rules, peers or addresses are right (`hedgerow-policy`, `hedgerow-mesh`, the agent).

pub mod capture;
pub mod cgroup;
pub mod conntrack;
pub mod disk;
pub mod hosts;
pub mod link;
mod netlink;
pub mod nft;
pub mod process;
pub mod random;
pub mod resolved;
pub mod service;
pub mod sessions;
pub mod tun;
pub mod tunnel;
pub mod udp;
