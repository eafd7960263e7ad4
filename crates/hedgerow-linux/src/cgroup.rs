//! Which control group (version 2) this process runs in, so that the kernel's table can tell its
//! sockets apart.
//!
//! A service manager gives every service a group of its own. A socket belongs to the group that its
//! maker was in when it made it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use hedgerow_model::ruleset::ControlGroup;

use crate::disk;

/// A machine with more mounts is treated as one whose hierarchy cannot be found.
const MOUNTS_BYTES_MAX: usize = 1 << 20;
const GROUPS_BYTES_MAX: usize = 64 << 10;

/// Why this process cannot be told apart by its control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoGroup {
    /// Version 2 is not mounted where this process can see it.
    #[error("control groups version 2 are not mounted")]
    Unmounted,
    /// It runs in the root group, as everything does that no service manager started.
    #[error("the agent runs in the root control group, like every program outside of a service")]
    Root,
    /// Its group lies outside of what is mounted, or deeper than the kernel compares.
    #[error("the agent's control group cannot be found")]
    Hidden,
    /// The kernel's firewall cannot match it.
    #[error("the kernel lacks CONFIG_NFT_SOCKET or CONFIG_SOCK_CGROUP_DATA")]
    Unmatched,
}

/// Finds this process's own control group, and whether the kernel's firewall can match it.
///
/// # Errors
///
/// Says what is in the way.
pub fn own() -> Result<ControlGroup, NoGroup> {
    let read = |path: &str, max| {
        let bytes = disk::read_bounded(Path::new(path), max).ok().flatten();
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    };
    let groups = read("/proc/self/cgroup", GROUPS_BYTES_MAX);
    let mounts = read("/proc/self/mountinfo", MOUNTS_BYTES_MAX);
    let (directory, level) = place(&groups, &mounts)?;
    let found = std::fs::metadata(directory).map_err(|_e| NoGroup::Hidden)?;
    let group = ControlGroup {
        id: found.ino(),
        level,
    };
    match crate::nft::knows_group(group) {
        Ok(true) => Ok(group),
        // Without an answer the narrower rule could be refused later, and with it the whole table.
        Ok(false) | Err(_) => Err(NoGroup::Unmatched),
    }
}

/// Returns the directory of the group that `/proc/self/cgroup` names, and its depth.
fn place(groups: &str, mounts: &str) -> Result<(PathBuf, u8), NoGroup> {
    let group = groups.lines().find_map(|l| l.strip_prefix("0::"));
    let group = group.ok_or(NoGroup::Unmounted)?;
    let mut mounted = mounts.lines().filter_map(hierarchy).peekable();
    mounted.peek().ok_or(NoGroup::Unmounted)?;
    if group == "/" {
        return Err(NoGroup::Root);
    }
    let level = group.split('/').filter(|part| !part.is_empty()).count();
    let level = u8::try_from(level).map_err(|_e| NoGroup::Hidden)?;
    // A group above the mount, or removed under its process, has no directory of this name.
    if group.contains("/..") || group.ends_with(" (deleted)") {
        return Err(NoGroup::Hidden);
    }
    mounted
        .find_map(|(root, point)| {
            let below = Path::new(group).strip_prefix(root).ok()?;
            Some((point.join(below), level))
        })
        .ok_or(NoGroup::Hidden)
}

/// Returns root and mount point of a line of `/proc/self/mountinfo` that mounts version 2.
fn hierarchy(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (place, kind) = line.split_once(" - ")?;
    if kind.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut words = place.split(' ').skip(3).map(unescaped);
    Some((words.next()?, words.next()?))
}

/// Undoes the octal escapes of mount tables: blank, tab, line feed, backslash.
fn unescaped(word: &str) -> PathBuf {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let text = escapes
        .iter()
        .fold(word.to_owned(), |text, (from, to)| text.replace(from, to));
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "\
        23 28 0:21 / /proc rw - proc proc rw\n\
        35 25 0:30 / /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "\
        31 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        33 31 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const GROUP: &str = "12:pids:/x\n0::/system.slice/hedgerow-agent.service\n";

    #[test]
    fn a_services_group_is_found_on_unified_and_hybrid_machines() {
        let found = |mounts| place(GROUP, mounts).unwrap();
        let (directory, level) = found(UNIFIED);
        let service = "system.slice/hedgerow-agent.service";
        assert_eq!(directory, Path::new("/sys/fs/cgroup").join(service));
        assert_eq!(level, 2);
        let (directory, level) = found(HYBRID);
        assert_eq!(directory, Path::new("/sys/fs/cgroup/unified").join(service));
        assert_eq!(level, 2);
    }

    #[test]
    fn a_part_of_the_hierarchy_that_is_mounted_alone_is_followed() {
        let part = "9 8 0:7 /system.slice /mnt/my\\040groups rw - cgroup2 none rw\n";
        let (directory, level) = place(GROUP, part).unwrap();
        assert_eq!(
            directory,
            Path::new("/mnt/my groups/hedgerow-agent.service")
        );
        assert_eq!(level, 2, "the kernel counts from its own root");
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let reason = |groups, mounts| place(groups, mounts).unwrap_err();
        assert_eq!(reason("0::/\n", HYBRID), NoGroup::Root);
        assert_eq!(
            reason(GROUP, "1 2 0:1 / / rw - ext4 a rw\n"),
            NoGroup::Unmounted
        );
        assert_eq!(reason("4:memory:/a\n", HYBRID), NoGroup::Unmounted);
        assert_eq!(reason("0::/../a\n", HYBRID), NoGroup::Hidden);
        assert_eq!(reason("0::/a (deleted)\n", HYBRID), NoGroup::Hidden);
        let deep = format!("0::{}\n", "/a".repeat(300));
        assert_eq!(reason(&deep, HYBRID), NoGroup::Hidden);
        let part = "9 8 0:7 /user.slice /mnt rw - cgroup2 none rw\n";
        assert_eq!(reason(GROUP, part), NoGroup::Hidden);
    }
}
