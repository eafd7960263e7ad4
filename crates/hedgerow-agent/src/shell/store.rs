//! The state directory: every file is replaced whole or not at all. See `docs/data.md`.
//!
//! ```text
//!  identity/{current,next,previous}  key, chain, ticket, introduction key   0600
//!  identity/pending                  keys that wait for their first certificate
//!  enrollment  pinned root set, controllers of the token
//!  manifests   chain of trust manifests
//!  resources   signed resources, revision, high-water marks
//!  peers/      peers once met; see `met`
//!  spool       events not reported yet
//!  generation  connections opened     clock   trusted-time floor     trial   underlay on trial
//!  dated       the latest date that we signed a key with
//! ```

mod met;

use std::fs;
use std::path::{Path, PathBuf};

use hedgerow_identity::slots::Slot;
use hedgerow_linux::disk::{self, Access, DirectoryLock, DiskError};
use hedgerow_model::Wall;
use hedgerow_model::id::{Digest, Revision};
use hedgerow_model::resource::{RESOURCE_BYTES_MAX, Resource, ResourceKind};
use hedgerow_model::wire;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

pub(crate) use self::met::Met;
use super::identity::{Identity, Keys, SLOT_BYTES_MAX};
use crate::failure::Failure;
use crate::state::{Spool, Stored, UnderlayTrial};

const SMALL_BYTES_MAX: usize = 64 << 10;
const MANIFESTS_BYTES_MAX: usize = 16 << 20;
const RESOURCES_BYTES_MAX: usize = ResourceKind::ALL.len() * (RESOURCE_BYTES_MAX + 1024);
const SPOOL_BYTES_MAX: usize = 64 << 20;

/// Whom to believe and whom to ask.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Enrollment {
    /// Digest of the first root set.
    #[n(0)]
    pub(crate) genesis: Digest,
    /// Controllers, `host:port`.
    #[n(1)]
    pub(crate) controllers: Vec<String>,
}

#[derive(Encode, Decode)]
struct ResourcesRecord {
    #[n(0)]
    revision: Option<Revision>,
    #[n(1)]
    marks: Vec<(ResourceKind, Revision)>,
    #[n(2)]
    resources: Vec<Resource>,
}

/// Why the state directory was not taken.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// Another agent uses it.
    Used(Failure),
    /// It takes no writes.
    Disk(DiskError),
}

impl From<DiskError> for NotOpened {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl From<NotOpened> for Failure {
    fn from(error: NotOpened) -> Self {
        match error {
            NotOpened::Used(failure) => failure,
            NotOpened::Disk(error) => error.into(),
        }
    }
}

/// The state directory.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    met: Met,
    _lock: Option<DirectoryLock>,
}

impl Store {
    /// Opens the directory for this process alone and creates what is missing.
    ///
    /// # Errors
    ///
    /// When it cannot be written, or another agent uses it.
    pub(crate) fn open(dir: &Path) -> Result<Self, NotOpened> {
        for path in [dir, &dir.join("identity"), &dir.join("peers")] {
            disk::create_private_dir(path)?;
        }
        let lock = disk::lock_directory(dir)?.ok_or_else(|| {
            NotOpened::Used(Failure::environment(
                format!("another agent uses {}", dir.display()),
                "stop it, or give this one its own paths.state",
            ))
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            met: Met::new(dir.join("peers")),
            _lock: Some(lock),
        })
    }

    /// Returns whether the directory holds anything that makes this device a member, damaged or not.
    pub(crate) fn is_enrolled(dir: &Path) -> bool {
        let held = |name: &str| fs::symlink_metadata(dir.join(name)).is_ok();
        held("enrollment") || Slot::ALL.into_iter().any(|slot| held(&slot_name(slot)))
    }

    /// Looks at the directory without taking it; for commands beside a running agent.
    pub(crate) fn peek(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            met: Met::new(dir.join("peers")),
            _lock: None,
        }
    }

    /// Reads the enrollment; absent before the first.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read.
    pub(crate) fn enrollment(&self) -> Result<Option<Enrollment>, Failure> {
        self.record("enrollment", SMALL_BYTES_MAX)
    }

    /// Writes the enrollment.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    pub(crate) fn write_enrollment(&self, enrollment: &Enrollment) -> Result<(), Failure> {
        self.write("enrollment", &wire::encode(enrollment))
    }

    /// Reads the chain of manifests.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read.
    pub(crate) fn manifests(&self) -> Result<Vec<Vec<u8>>, Failure> {
        let chain: Option<Vec<ByteVec>> = self.record("manifests", MANIFESTS_BYTES_MAX)?;
        let chain = chain.unwrap_or_default();
        Ok(chain.into_iter().map(Vec::from).collect())
    }

    /// Writes the chain of manifests.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    pub(crate) fn write_manifests(&self, chain: Vec<Vec<u8>>) -> Result<(), Failure> {
        let chain: Vec<ByteVec> = chain.into_iter().map(ByteVec::from).collect();
        self.write("manifests", &wire::encode(&chain))
    }

    /// Reads the resources; nothing before the first update.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read.
    pub(crate) fn resources(&self) -> Result<Stored, Failure> {
        let record: Option<ResourcesRecord> = self.record("resources", RESOURCES_BYTES_MAX)?;
        Ok(record.map_or_else(Stored::default, |r| Stored {
            revision: r.revision,
            marks: r.marks.into_iter().collect(),
            resources: r.resources,
        }))
    }

    /// Writes the resources.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    pub(crate) fn write_resources(&self, stored: Stored) -> Result<(), Failure> {
        let record = ResourcesRecord {
            revision: stored.revision,
            marks: stored.marks.into_iter().collect(),
            resources: stored.resources,
        };
        self.write("resources", &wire::encode(&record))
    }

    /// Counts a connection: what is returned was never returned before, also not by an earlier run.
    ///
    /// # Errors
    ///
    /// When the disk does not take it: the number must not be used then.
    pub(crate) fn next_generation(&self) -> Result<u64, Failure> {
        let last: u64 = self.record("generation", 16)?.unwrap_or(0);
        let next = last.saturating_add(1);
        self.write("generation", &wire::encode(&next))?;
        Ok(next)
    }

    /// Reads the trusted-time floor. A damaged file is as good as none: the floor is only a help.
    pub(crate) fn floor(&self) -> Option<Wall> {
        let secs: Option<u64> = self.record("clock", 16).ok().flatten();
        secs.map(Wall::from_secs)
    }

    /// Writes the trusted-time floor.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    pub(crate) fn write_floor(&self, floor: Wall) -> Result<(), Failure> {
        self.write("clock", &wire::encode(&floor.secs()))
    }

    /// Reads the latest date that an earlier run signed a key with. A damaged file is as good as none: the
    /// trusted-time floor, which lasts, is hardly behind it.
    pub(crate) fn dated(&self) -> Option<Wall> {
        let secs: Option<u64> = self.record("dated", 16).ok().flatten();
        secs.map(Wall::from_secs)
    }

    /// Writes the date that a key is signed with, for a process that starts again within the same second. It
    /// does not wait for the disk: no machine starts as fast.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    pub(crate) fn write_dated(&self, dated: Wall) -> Result<(), Failure> {
        let bytes = wire::encode(&dated.secs());
        Ok(disk::replace_soon(
            &self.path("dated"),
            &bytes,
            Access::Private,
        )?)
    }

    /// Reads how far underlay enforcement is proven; a damaged file means not at all.
    pub(crate) fn trial(&self) -> UnderlayTrial {
        self.record("trial", 256).ok().flatten().unwrap_or_default()
    }

    /// Writes how far underlay enforcement is proven.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    pub(crate) fn write_trial(&self, trial: UnderlayTrial) -> Result<(), Failure> {
        self.write("trial", &wire::encode(&trial))
    }

    /// Reads the events that wait; a damaged file is set aside and the spool begins anew.
    pub(crate) fn spool(&self, max: usize) -> Spool {
        match self.record::<Spool>("spool", SPOOL_BYTES_MAX) {
            Ok(Some(spool)) => spool.resumed(max),
            Ok(None) => Spool::new(max),
            Err(error) => {
                tracing::warn!(%error, "the spool is damaged and begins anew");
                Spool::new(max)
            }
        }
    }

    /// Writes the events that wait.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    pub(crate) fn write_spool(&self, spool: &Spool) -> Result<(), Failure> {
        self.write("spool", &wire::encode(spool))
    }

    /// Returns the peers once met.
    pub(crate) fn met(&self) -> &Met {
        &self.met
    }

    /// Reads the keys that wait for their first certificate.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read.
    pub(crate) fn pending(&self) -> Result<Option<Keys>, Failure> {
        let bytes = self.read("identity/pending", SLOT_BYTES_MAX)?;
        Ok(bytes
            .and_then(|b| Identity::decode(&b))
            .map(|identity| identity.keys))
    }

    /// Writes the keys that wait for their first certificate.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    pub(crate) fn write_pending(&self, keys: &Keys) -> Result<(), Failure> {
        let waiting = Identity::new(keys, Vec::new(), Vec::new());
        self.write("identity/pending", &waiting.encode()?)
    }

    /// Removes the keys that waited.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub(crate) fn remove_pending(&self) -> Result<(), Failure> {
        Ok(disk::remove(&self.path("identity/pending"))?)
    }

    /// Reads a slot.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read.
    pub(crate) fn read_slot(&self, slot: Slot) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        self.read(&slot_name(slot), SLOT_BYTES_MAX)
    }

    /// Writes a slot.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    pub(crate) fn write_slot(&self, slot: Slot, bytes: &[u8]) -> Result<(), Failure> {
        self.write(&slot_name(slot), bytes)
    }

    /// Renames one slot over another; a missing one is success.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub(crate) fn move_slot(&self, from: Slot, to: Slot) -> Result<(), Failure> {
        self.rename(&slot_name(from), &slot_name(to))
    }

    /// Sets a slot aside, for a person to look at.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub(crate) fn set_slot_aside(&self, slot: Slot) -> Result<(), Failure> {
        let name = slot_name(slot);
        self.rename(&name, &format!("{name}.broken"))
    }

    /// Removes a slot.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub(crate) fn remove_slot(&self, slot: Slot) -> Result<(), Failure> {
        Ok(disk::remove(&self.path(&slot_name(slot)))?)
    }

    /// Removes everything that makes this device a member: keys first. The trusted-time floor stays.
    ///
    /// # Errors
    ///
    /// When the disk fails; running it again goes on.
    pub(crate) fn remove_identity(&self) -> Result<(), Failure> {
        for slot in Slot::ALL {
            self.remove_slot(slot)?;
        }
        self.remove_pending()?;
        for name in [
            "resources",
            "enrollment",
            "manifests",
            "trial",
            "generation",
            "dated",
            "spool",
        ] {
            disk::remove(&self.path(name))?;
        }
        self.met.forget_all()
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        let (from, to) = (self.path(from), self.path(to));
        match fs::rename(&from, &to) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => {
                return Err(DiskError {
                    action: "rename",
                    path: from,
                    source,
                }
                .into());
            }
        }
        let dir = to.parent().unwrap_or(&self.dir);
        fs::File::open(dir)
            .and_then(|d| d.sync_all())
            .map_err(|source| {
                DiskError {
                    action: "fsync",
                    path: dir.to_owned(),
                    source,
                }
                .into()
            })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn read(&self, name: &str, max: usize) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        Ok(disk::read_bounded(&self.path(name), max)?.map(Zeroizing::new))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        Ok(disk::write_atomic(
            &self.path(name),
            bytes,
            Access::Private,
        )?)
    }

    fn record<T: for<'b> Decode<'b, ()>>(
        &self,
        name: &str,
        max: usize,
    ) -> Result<Option<T>, Failure> {
        let Some(bytes) = self.read(name, max)? else {
            return Ok(None);
        };
        minicbor::decode(&bytes).map(Some).map_err(|error| {
            Failure::environment(
                format!("{} is damaged: {error}", self.path(name).display()),
                "remove it and enroll again, or restore it from a backup",
            )
        })
    }
}

fn slot_name(slot: Slot) -> String {
    format!("identity/{}", slot.as_str())
}

#[cfg(test)]
mod tests;
