//! Peers' names in a managed block of a hosts file.
//!
//! What stands outside the two marker lines is never touched. A block that lost its end marker
//! reaches to the first line that is not one of ours, so that a damaged file loses nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::disk::{self, Access, DiskError};

/// First line of the block.
pub const BEGIN: &str = "# BEGIN hedgerow (managed, do not edit)";
/// Last line of the block.
pub const END: &str = "# END hedgerow";
/// Largest hosts file that is edited, in bytes.
pub const HOSTS_BYTES_MAX: usize = 16 << 20;

/// Names by address, in the order in which they are written.
pub type Entries = BTreeMap<IpAddr, Vec<String>>;

/// Returns `text` with the managed block replaced by `entries`, at its old place or at the end;
/// without entries the block goes.
pub fn edit(text: &str, entries: &Entries) -> String {
    let mut before = String::new();
    let mut after = String::new();
    let mut state = State::Before;
    for line in text.split_inclusive('\n') {
        let bare = line.trim_end();
        state = match state {
            State::Before | State::After if bare == BEGIN => State::Inside,
            State::Inside if bare == END => State::After,
            State::Inside if is_ours(bare) => State::Inside,
            State::Before => {
                before.push_str(line);
                State::Before
            }
            State::Inside | State::After => {
                after.push_str(line);
                State::After
            }
        };
    }
    if entries.values().any(|names| !names.is_empty()) {
        if !before.is_empty() && !before.ends_with('\n') {
            before.push('\n');
        }
        before.push_str(&block(entries));
    }
    before + &after
}

enum State {
    Before,
    Inside,
    After,
}

fn is_ours(line: &str) -> bool {
    line.split_once('\t')
        .is_some_and(|(address, _)| address.parse::<IpAddr>().is_ok())
}

fn block(entries: &Entries) -> String {
    let lines: String = entries
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(address, names)| format!("{address}\t{}\n", names.join(" ")))
        .collect();
    format!("{BEGIN}\n{lines}{END}\n")
}

/// Brings the managed block of the file at `path` up to date; an unchanged file is not written.
///
/// The file is replaced atomically. Where it is a mount point of its own, as in containers, it
/// cannot be renamed over and is written in place.
///
/// # Errors
///
/// When the file cannot be read or written, or is larger than [`HOSTS_BYTES_MAX`].
pub fn write(path: &Path, entries: &Entries) -> Result<(), DiskError> {
    let old = disk::read_bounded(path, HOSTS_BYTES_MAX)?.unwrap_or_default();
    let text = String::from_utf8(old).map_err(|e| DiskError {
        action: "read",
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, e),
    })?;
    let new = edit(&text, entries);
    if new == text {
        return Ok(());
    }
    match disk::write_atomic(path, new.as_bytes(), Access::Public) {
        Err(e) if is_alone_writable(&e) => disk::write_in_place(path, new.as_bytes()),
        result => result,
    }
}

/// Says whether only the file itself can be written: it is bind-mounted, or a service sandbox leaves
/// its folder read-only.
fn is_alone_writable(error: &DiskError) -> bool {
    matches!(
        error.source.kind(),
        io::ErrorKind::ResourceBusy
            | io::ErrorKind::CrossesDevices
            | io::ErrorKind::ReadOnlyFilesystem
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(list: &[(&str, &str)]) -> Entries {
        list.iter()
            .map(|(a, n)| (a.parse().unwrap(), vec![(*n).to_owned()]))
            .collect()
    }

    #[test]
    fn the_block_is_added_replaced_and_removed_and_nothing_else_changes() {
        let original = "127.0.0.1\tlocalhost\n::1 localhost";
        let one = edit(original, &entries(&[("fd00::1", "plc-1.hall")]));
        assert_eq!(
            one,
            format!("127.0.0.1\tlocalhost\n::1 localhost\n{BEGIN}\nfd00::1\tplc-1.hall\n{END}\n")
        );
        let more = one + "10.0.0.1 later\n";
        let two = edit(&more, &entries(&[("fd00::2", "plc-2.hall")]));
        assert!(two.contains("fd00::2\tplc-2.hall") && !two.contains("fd00::1"));
        assert!(two.ends_with(&format!("{END}\n10.0.0.1 later\n")));
        let gone = edit(&two, &Entries::new());
        assert_eq!(gone, format!("{original}\n10.0.0.1 later\n"));
        assert_eq!(edit(&gone, &Entries::new()), gone);
    }

    #[test]
    fn a_block_without_its_end_takes_only_our_own_lines() {
        let damaged = format!("a\n{BEGIN}\nfd00::1\tplc-1.hall\n10.0.0.1 mine\n");
        assert_eq!(edit(&damaged, &Entries::new()), "a\n10.0.0.1 mine\n");
    }

    #[test]
    fn a_second_block_is_folded_into_the_first() {
        let twice = format!("{BEGIN}\nfd00::1\tx\n{END}\nmine\n{BEGIN}\nfd00::2\ty\n{END}\n");
        let once = edit(&twice, &entries(&[("fd00::3", "z")]));
        assert_eq!(once, format!("{BEGIN}\nfd00::3\tz\n{END}\nmine\n"));
    }

    #[test]
    fn a_file_that_is_a_mount_point_is_written_in_place() {
        let error = |e: i32| DiskError {
            action: "replace",
            path: "/etc/hosts".into(),
            source: io::Error::from_raw_os_error(e),
        };
        assert!(is_alone_writable(&error(
            rustix::io::Errno::BUSY.raw_os_error()
        )));
        assert!(!is_alone_writable(&error(
            rustix::io::Errno::NOSPC.raw_os_error()
        )));
    }
}
