//! What this process is and what the machine grants it.

use std::io;

use hedgerow_model::Fault;

use crate::disk;
use crate::nft::NftError;

/// Something that enforcement needs and this machine does not give, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// Not root, or root without the capability: no netlink write, no TUN.
    #[error("not permitted to change the network: run as root, with CAP_NET_ADMIN")]
    Right,
    /// The kernel has no nftables, or lacks an expression we need.
    #[error(
        "the kernel lacks nftables support: it needs CONFIG_NF_TABLES_INET, NFT_CT, NFT_LIMIT, NFT_LOG, NFT_REJECT and NF_CONNTRACK ({detail})"
    )]
    Nftables {
        /// The kernel's answer.
        detail: String,
    },
    /// No TUN device.
    #[error("{path} is missing: load the kernel module tun, or give the container the device")]
    Tun {
        /// Where it was looked for.
        path: &'static str,
    },
}

impl Missing {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Right => Fault::Operator,
            Self::Nftables { .. } | Self::Tun { .. } => Fault::Environment,
        }
    }
}

/// Returns everything that enforcement and the tunnel lack here; empty means that all is there.
pub fn missing() -> Vec<Missing> {
    const TUN: &str = "/dev/net/tun";
    let mut found = Vec::new();
    let probed = crate::nft::probe();
    if matches!(probed, Err(NftError::NotPermitted)) {
        found.push(Missing::Right);
    }
    if !std::path::Path::new(TUN).exists() {
        found.push(Missing::Tun { path: TUN });
    }
    match probed {
        // Without the right to ask, the answer says nothing about the kernel.
        Ok(_) | Err(NftError::NotPermitted) => {}
        Err(error) => found.push(Missing::Nftables {
            detail: error.to_string(),
        }),
    }
    found
}

/// Returns how much memory this process occupies, in bytes, where `/proc` is mounted.
pub fn resident_bytes() -> Option<u64> {
    let path = std::path::Path::new("/proc/self/status");
    let bytes = disk::read_bounded(path, 64 << 10).ok()??;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Returns whether the process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the kernel's random id of this boot, 36 characters; another one means a reboot.
///
/// # Errors
///
/// When `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    let path = std::path::Path::new("/proc/sys/kernel/random/boot_id");
    let bytes = disk::read_bounded(path, 64).map_err(|e| e.source)?;
    let text = bytes.unwrap_or_default();
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

/// Returns this machine's name, for events and enrollment requests.
pub fn host_name() -> String {
    let names = rustix::system::uname();
    names.nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_a_uuid_and_stays() {
        let id = boot_id().unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(boot_id().unwrap(), id);
        assert!(resident_bytes().unwrap() > 100_000);
        assert!(!host_name().is_empty());
    }

    #[test]
    fn what_is_missing_names_its_remedy() {
        let text = Missing::Right.to_string();
        assert!(text.contains("CAP_NET_ADMIN"));
        let tun = Missing::Tun {
            path: "/dev/net/tun",
        };
        assert!(tun.to_string().contains("module tun"));
        assert_eq!(tun.fault(), Fault::Environment);
    }
}
