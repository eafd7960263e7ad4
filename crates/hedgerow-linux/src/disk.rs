//! Files that are whole at every moment, whatever is killed or unplugged.
//!
//! ```text
//!  write_atomic: .name.tmp ──write, fsync──▶ rename over name ──▶ fsync of the directory
//!  write_soon:   name ──write──▶ …later, elsewhere… ──sync──▶ fsync
//! ```
//!
//! # Invariants
//!
//! - A reader finds the old content or the new one, never a part, also after `kill -9` at any point.
//! - After [`write_atomic`] returns, the new content survives loss of power.
//! - What [`write_soon`] wrote survives the process at once, and loss of power after [`sync`].
//! - One file has one writer: two at a time would share the temporary file. Programs hold a lock on
//!   their state directory.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hedgerow_model::Fault;
use rustix::fs::{FlockOperation, OFlags, flock};

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The owner alone: 0600.
    Private,
    /// Everybody: 0644.
    Public,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// Why a file could not be read or written. What stood there before still stands there.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct DiskError {
    /// What was tried, as an infinitive.
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The kernel's account: no space, read-only, not permitted.
    pub source: io::Error,
}

impl DiskError {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        let kind = self.source.kind();
        if kind == io::ErrorKind::InvalidInput {
            Fault::Bug
        } else if matches!(
            kind,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        ) {
            Fault::Operator
        } else {
            Fault::Environment
        }
    }
}

fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> DiskError + Copy + 'a {
    move |source| DiskError {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Replaces the content of `path`, whole or not at all.
///
/// # Errors
///
/// When the directory is missing, full or read-only; the old content stays.
pub fn write_atomic(path: &Path, bytes: &[u8], access: Access) -> Result<(), DiskError> {
    let temporary = temporary_for(path)?;
    let written = write_durably(&temporary, bytes, access)
        .map_err(failed("write", path))
        .and_then(|()| fs::rename(&temporary, path).map_err(failed("replace", path)));
    if let Err(error) = written {
        // The half-written temporary file is worthless; the next write would replace it anyway.
        drop(fs::remove_file(&temporary));
        return Err(error);
    }
    sync_directory_of(path)
}

fn write_durably(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    write_to_kernel(path, bytes, access)?.sync_all()
}

fn write_to_kernel(path: &Path, bytes: &[u8], access: Access) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(access.mode())
        .custom_flags(flag_bits(OFlags::NOFOLLOW))
        .open(path)?;
    // A leftover of another mode keeps it on opening, and the umask may have taken bits away.
    file.set_permissions(Permissions::from_mode(access.mode()))?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Writes a file that nobody reads yet, and does not wait for the disk: whatever happens to this process,
/// the content is there; after a loss of power the file may be absent, empty or torn until [`sync`] said
/// that it lasts.
///
/// # Errors
///
/// When the directory is missing, full or read-only; there is no such file then.
pub fn write_soon(path: &Path, bytes: &[u8], access: Access) -> Result<(), DiskError> {
    if let Err(error) = write_to_kernel(path, bytes, access) {
        drop(fs::remove_file(path));
        return Err(failed("write", path)(error));
    }
    Ok(())
}

/// Replaces a file's whole content, and does not wait for the disk: whatever happens to this process, either
/// the old content is there or the new; a loss of power may take both.
///
/// # Errors
///
/// When the directory is missing, full or read-only; the old content is there then.
pub fn replace_soon(path: &Path, bytes: &[u8], access: Access) -> Result<(), DiskError> {
    let temporary = temporary_for(path)?;
    write_soon(&temporary, bytes, access)?;
    fs::rename(&temporary, path).map_err(failed("replace", path))
}

/// Waits until the content of `path`, a file or directory, is on the disk; a missing one is success.
///
/// # Errors
///
/// When the disk did not take it. The kernel may have dropped the content: it must be written again.
pub fn sync(path: &Path) -> Result<(), DiskError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    match synced {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("fsync", path)(e)),
        Ok(()) => Ok(()),
    }
}

/// Waits until everything on the file system of `path` is on the disk; cheaper than many [`sync`].
///
/// # Errors
///
/// When the disk did not take it. The kernel may have dropped content: it must be written again.
pub fn sync_file_system(path: &Path) -> Result<(), DiskError> {
    let synced = File::open(path).and_then(|file| Ok(rustix::fs::syncfs(&file)?));
    synced.map_err(failed("sync", path))
}

/// Overwrites `path` in place, for a file that cannot be renamed over because it is a mount point.
///
/// # Errors
///
/// When it cannot be written; it may then hold a part of `bytes`.
pub fn write_in_place(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(failed("overwrite", path))
}

/// Reads `path`, at most `bytes_max`; `None` when there is no such file.
///
/// # Errors
///
/// When it cannot be read or is larger.
pub fn read_bounded(path: &Path, bytes_max: usize) -> Result<Option<Vec<u8>>, DiskError> {
    let failed = failed("read", path);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() > bytes_max {
        let text = format!("larger than {bytes_max} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, text)));
    }
    Ok(Some(bytes))
}

/// Removes `path` for good; a missing file is success.
///
/// # Errors
///
/// When it is there and cannot be removed.
pub fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory_of(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("remove", path)(e)),
    }
}

/// Creates `path` and what leads to it, for the owner alone: 0700. An existing directory is closed
/// to others.
///
/// # Errors
///
/// When it cannot be created or something else is in its place.
pub fn create_private_dir(path: &Path) -> Result<(), DiskError> {
    let failed = failed("create directory", path);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed)
}

/// Holds a directory for one process; released on drop, and by the kernel when the process dies.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// Takes the directory's lock; `None` when another process holds it.
///
/// # Errors
///
/// When the lock file cannot be created.
pub fn lock_directory(path: &Path) -> Result<Option<DirectoryLock>, DiskError> {
    let name = path.join("lock");
    let failed = failed("lock", &name);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(DirectoryLock { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(failed(e.into())),
    }
}

fn temporary_for(path: &Path) -> Result<PathBuf, DiskError> {
    let Some(name) = path.file_name() else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
        return Err(failed("write", path)(source));
    };
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    Ok(path.with_file_name(temporary))
}

fn sync_directory_of(path: &Path) -> Result<(), DiskError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    sync(directory)
}

fn flag_bits(flags: OFlags) -> i32 {
    i32::try_from(flags.bits()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
