//! Peers once met, on disk: written before the agent goes on, made to last beside it.
//!
//! ```text
//!  keep ──write──▶ peers/new-N ──fsync──▶ rename over peers/ID ──▶ fsync of the directory
//!                                 └────────── settle, on another thread ──────────┘
//! ```
//!
//! # Invariants
//!
//! - What was kept is found by the next start, whenever this process is killed.
//! - A loss of power takes what the disk has not confirmed, and nothing older: only a file that is on the
//!   disk is renamed over another one.
//! - What was forgotten is gone from the disk before [`Met::forget`] returns, and no record written before
//!   comes back.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hedgerow_linux::disk::{self, Access, DiskError};
use hedgerow_mesh::{Memory, REMEMBERED_MAX};
use hedgerow_model::id::DeviceId;

use crate::failure::Failure;

/// Largest record read.
const MEMORY_BYTES_MAX: usize = 4096;
/// Most records beside their place that are read; each device has one but for a moment. Further ones stay
/// unread.
const NEW_MAX: usize = 2 * REMEMBERED_MAX;
/// Records that are made to last together.
const LOT_MAX: usize = 64;
/// With more in one lot, the whole file system is asked once.
const ALONE_MAX: usize = 4;
const NEW: &str = "new-";

/// The records of peers. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Met {
    dir: PathBuf,
    unsettled: Arc<Mutex<Unsettled>>,
}

/// Records beside their place: at most one of each device that is remembered.
#[derive(Debug, Default)]
struct Unsettled {
    by_device: BTreeMap<DeviceId, u64>,
    last: u64,
    /// Files without a whole record: an earlier run was cut short.
    torn: Vec<u64>,
    /// The disk failed: the kernel may have dropped what these files hold, and say later that all is well.
    is_doubted: bool,
}

impl Met {
    /// Names the directory; nothing is read yet.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            unsettled: Arc::default(),
        }
    }

    /// Returns whether everything is in its place.
    pub(crate) fn is_settled(&self) -> bool {
        let unsettled = self.lock();
        unsettled.by_device.is_empty() && unsettled.torn.is_empty()
    }

    /// Reads every peer once met; torn or damaged records are left out, counted and said.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub(crate) fn read(&self) -> Result<Vec<Memory>, Failure> {
        let (settled, new) = self.list()?;
        let mut records = BTreeMap::new();
        let mut damaged = 0;
        for path in settled {
            match read_record(&path) {
                Some(memory) => drop(records.insert(memory.device, memory)),
                None => damaged += 1,
            }
        }
        let mut latest = Vec::new();
        for number in new {
            match read_record(&self.new_file(number)) {
                Some(memory) => {
                    self.supersede(memory.device, number);
                    records.remove(&memory.device);
                    latest.retain(|m: &Memory| m.device != memory.device);
                    latest.push(memory);
                }
                None => {
                    damaged += 1;
                    self.lock().torn.push(number);
                }
            }
        }
        if damaged > 0 {
            tracing::warn!(damaged, "records of peers left out");
        }
        // Those that were being written are the latest.
        Ok(records.into_values().chain(latest).collect())
    }

    /// Writes a peer's record so that it survives this process; [`Self::settle`] makes it survive the machine.
    ///
    /// # Errors
    ///
    /// When the disk does not take it; what was known of the peer stays.
    pub(crate) fn keep(&self, memory: &Memory) -> Result<(), Failure> {
        let number = {
            let mut unsettled = self.lock();
            unsettled.last = unsettled.last.saturating_add(1);
            unsettled.last
        };
        disk::write_soon(&self.new_file(number), &memory.encode(), Access::Private)?;
        self.supersede(memory.device, number);
        Ok(())
    }

    /// Removes a peer's record for good.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub(crate) fn forget(&self, device: DeviceId) -> Result<(), Failure> {
        let is_gone = {
            // While this is held nothing is renamed into the place that is cleared.
            let mut unsettled = self.lock();
            let new = unsettled.by_device.remove(&device);
            let new = new.map_or(Ok(false), |number| remove(&self.new_file(number)))?;
            remove(&self.place(device))? || new
        };
        if is_gone {
            disk::sync(&self.dir)?;
        }
        Ok(())
    }

    /// Removes every record for good.
    ///
    /// # Errors
    ///
    /// When the disk fails; running it again goes on.
    pub(crate) fn forget_all(&self) -> Result<(), Failure> {
        {
            let mut unsettled = self.lock();
            unsettled.by_device.clear();
            let (settled, new) = self.list()?;
            let new = new.into_iter().map(|number| self.new_file(number));
            for path in settled.into_iter().chain(new) {
                remove(&path)?;
            }
        }
        Ok(disk::sync(&self.dir)?)
    }

    /// Waits until the disk holds every record in its place. It may take as long as the disk likes; records
    /// are kept and forgotten meanwhile.
    ///
    /// # Errors
    ///
    /// When the disk fails; what is not in its place stays beside it.
    pub(crate) fn settle(&self) -> Result<(), Failure> {
        let torn = std::mem::take(&mut self.lock().torn);
        for number in torn {
            remove(&self.new_file(number))?;
        }
        loop {
            let (lot, is_doubted) = {
                let unsettled = self.lock();
                let waiting = unsettled.by_device.iter().map(|(d, n)| (*d, *n));
                let lot: Vec<(DeviceId, u64)> = waiting.take(LOT_MAX).collect();
                (lot, unsettled.is_doubted)
            };
            if lot.is_empty() {
                return Ok(());
            }
            let settled = self.settle_lot(&lot, is_doubted);
            self.lock().is_doubted = settled.is_err();
            settled?;
        }
    }

    fn settle_lot(&self, lot: &[(DeviceId, u64)], is_doubted: bool) -> Result<(), DiskError> {
        let mut staged = Vec::new();
        for (device, number) in lot {
            let file = match is_doubted {
                true => self.write_again(*number)?,
                false => self.new_file(*number),
            };
            staged.push((*device, *number, file));
        }
        if staged.len() > ALONE_MAX {
            disk::sync_file_system(&self.dir)?;
        } else {
            for (_, _, file) in &staged {
                disk::sync(file)?;
            }
        }
        for (device, number, file) in staged {
            let mut unsettled = self.lock();
            if unsettled.by_device.get(&device) == Some(&number) {
                let place = self.place(device);
                fs::rename(&file, &place).map_err(|e| failed("replace", &place, e))?;
                unsettled.by_device.remove(&device);
                remove(&self.new_file(number))?;
            } else {
                // A later record is there, or the peer was forgotten.
                remove(&file)?;
            }
        }
        disk::sync(&self.dir)
    }

    /// Writes a record a second time, under a name that no start reads.
    fn write_again(&self, number: u64) -> Result<PathBuf, DiskError> {
        let again = self.dir.join(format!("again-{number}"));
        if let Some(bytes) = disk::read_bounded(&self.new_file(number), MEMORY_BYTES_MAX)? {
            disk::write_soon(&again, &bytes, Access::Private)?;
        }
        Ok(again)
    }

    /// Lets a record take the place of one of the same device that is not settled.
    fn supersede(&self, device: DeviceId, number: u64) {
        let mut unsettled = self.lock();
        unsettled.last = unsettled.last.max(number);
        if let Some(older) = unsettled.by_device.insert(device, number) {
            // If it stays, the next start finds the later one too.
            drop(fs::remove_file(self.new_file(older)));
        }
    }

    /// Returns the records in their places, and the numbers of those beside them, ascending.
    fn list(&self) -> Result<(Vec<PathBuf>, Vec<u64>), DiskError> {
        let (mut settled, mut new) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.dir).map_err(|e| failed("read", &self.dir, e))? {
            let path = entry.map_err(|e| failed("read", &self.dir, e))?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
                continue;
            };
            let number = name.strip_prefix(NEW).and_then(|n| n.parse().ok());
            if let Some(number) = number.filter(|_| new.len() < NEW_MAX) {
                new.push(number);
            } else if name.parse::<DeviceId>().is_ok() && settled.len() < REMEMBERED_MAX {
                settled.push(path);
            }
        }
        new.sort_unstable();
        Ok((settled, new))
    }

    fn place(&self, device: DeviceId) -> PathBuf {
        self.dir.join(device.to_string())
    }

    fn new_file(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{NEW}{number}"))
    }

    fn lock(&self) -> MutexGuard<'_, Unsettled> {
        // Nothing that is done under it can leave it half done.
        let unsettled = self.unsettled.lock();
        unsettled.unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_record(path: &Path) -> Option<Memory> {
    let bytes = disk::read_bounded(path, MEMORY_BYTES_MAX);
    let bytes = bytes.map_err(|error| tracing::debug!(%error, "left out"));
    let memory = Memory::decode(&bytes.ok()??);
    let memory =
        memory.map_err(|error| tracing::debug!(path = %path.display(), %error, "left out"));
    memory.ok()
}

/// Removes a file, not yet for good; returns whether there was one.
fn remove(path: &Path) -> Result<bool, DiskError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("remove", path, e)),
    }
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> DiskError {
    DiskError {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
