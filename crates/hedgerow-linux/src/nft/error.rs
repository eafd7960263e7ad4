//! Why the table could not be changed or read.

use std::io;

use hedgerow_model::Fault;
use hedgerow_model::ruleset::{PEERS_MAX, ProfileId};

use super::wire::TABLE;

/// Why the table could not be changed or read. The kernel's table is as it was before the call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NftError {
    /// The ruleset contradicts itself.
    #[error("ruleset is malformed: {detail}")]
    Malformed {
        /// What contradicts what.
        detail: String,
    },
    /// More peers than a table takes.
    #[error("{count} peers, at most {PEERS_MAX} are enforced")]
    TooManyPeers {
        /// How many there were.
        count: usize,
    },
    /// A later ruleset is already in force.
    #[error("ruleset generation {got} is older than {loaded}, which is in force")]
    Stale {
        /// The ruleset's generation.
        got: u64,
        /// The one in force.
        loaded: u64,
    },
    /// Nothing was loaded through this value yet, so there is nothing to compare or change.
    #[error("no ruleset was loaded yet")]
    NotLoaded,
    /// The ruleset in force has no such profile.
    #[error("profile {} is not in the loaded ruleset", .0.0)]
    UnknownProfile(ProfileId),
    /// `CAP_NET_ADMIN` is missing.
    #[error("not permitted to change nftables: run as root, or grant CAP_NET_ADMIN")]
    NotPermitted,
    /// Another live process owns the table.
    #[error("table inet {TABLE} belongs to another running process")]
    OwnedByAnother,
    /// The kernel refused one object of the transaction; the first is the cause.
    #[error("the kernel refused {object}")]
    Refused {
        /// Kind and name.
        object: String,
        /// The kernel's account.
        source: io::Error,
    },
    /// The transaction was sent and its outcome could not be read back.
    #[error("the kernel's answer was lost and the table differs from what was sent")]
    Unclear,
    /// The socket failed.
    #[error("cannot {action} by netlink")]
    Socket {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// The kernel's account.
        source: io::Error,
    },
}

impl NftError {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Malformed { .. } | Self::NotLoaded | Self::UnknownProfile(_) => Fault::Bug,
            Self::Stale { .. } => Fault::Bug,
            Self::TooManyPeers { .. } | Self::NotPermitted | Self::OwnedByAnother => {
                Fault::Operator
            }
            Self::Refused { .. } | Self::Unclear | Self::Socket { .. } => Fault::Environment,
        }
    }
}
