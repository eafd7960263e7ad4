//! Files that are never half-written and never readable by others.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Most entries of one directory that are looked at.
const DIR_ENTRIES_MAX: usize = 10_000;
/// Largest file this program reads whole, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Creates `path` and its parents, for the owner alone.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Replaces `path` as a whole: temporary file, fsync, rename, fsync of the directory. Mode 0600.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path
        .parent()
        .ok_or_else(|| io::Error::other("a file needs a directory"))?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let temporary = dir.join(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    // One that was left behind keeps its mode otherwise.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

/// Reads a whole file of at most 64 MiB.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("the file is larger than 64 MiB"));
    }
    Ok(bytes)
}

/// Reads a whole text file.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|_e| io::Error::other("the file is not UTF-8"))
}

/// Closes everything in `dir` to other users, and returns what was open to them.
pub(crate) fn close_to_others(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut opened = Vec::new();
    let mut ahead = vec![dir.to_owned()];
    while let Some(path) = ahead.pop() {
        // Links are left alone: what they lead to is somebody else's.
        let found = fs::symlink_metadata(&path)?;
        if !found.is_dir() && !found.is_file() {
            continue;
        }
        let mode = found.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o700))?;
            opened.push(path.clone());
        }
        if found.is_dir() {
            let entries = fs::read_dir(&path)?.take(DIR_ENTRIES_MAX);
            let paths = entries.map(|e| e.map(|e| e.path()));
            ahead.extend(paths.collect::<io::Result<Vec<_>>>()?);
        }
    }
    Ok(opened)
}

/// Makes a file for the owner alone, unless it is there.
pub(crate) fn touch(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options.open(path).map(drop)
}

/// Holds the directory for one process; the lock ends with the returned file.
pub(crate) fn lock(dir: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}
