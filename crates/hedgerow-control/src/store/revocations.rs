//! What is revoked, and below which epoch tickets are refused.

use hedgerow_model::id::{DeviceId, Revision};
use hedgerow_model::statement::{Revocation, RevocationList};
use hedgerow_model::wire;

use super::db::{Row, Tx, vals};
use super::{Store, StoreError, set_fact};

/// The fact that holds the list's version.
const VERSION: &str = "revocations_version";
/// The fact that holds the version that a restored backup had.
const RESTORED: &str = "revocations_restored";

/// Reads the list as a change leaves it. Nothing is left out by a clock, which may be wrong: what
/// may leave the list is pruned.
pub(crate) async fn list(
    tx: &mut Tx,
    version: Revision,
    now_secs: u64,
) -> Result<RevocationList, StoreError> {
    let entries = tx.rows(SELECT_ENTRIES, vals![]).await?;
    let epochs = tx.rows(SELECT_EPOCHS, vals![]).await?;
    read(&entries, &epochs, version, now_secs)
}

const SELECT_ENTRIES: &str = "SELECT what, at_secs, drop_after_secs, reason FROM revocation";
const SELECT_EPOCHS: &str = "SELECT device, epoch FROM min_epoch ORDER BY device";

fn read(
    entries: &[Row],
    epochs: &[Row],
    version: Revision,
    now_secs: u64,
) -> Result<RevocationList, StoreError> {
    let mut list = RevocationList {
        version,
        issued_secs: now_secs,
        ..RevocationList::default()
    };
    for r in entries {
        list.entries.push(Revocation {
            what: wire::decode_canonical("revoked", &r.blob(0)?).map_err(StoreError::corrupt)?,
            at_secs: r.uint(1)?,
            drop_after_secs: r.uint(2)?,
            reason: r.text(3)?,
        });
    }
    list.entries.sort();
    for r in epochs {
        list.min_epochs.push((DeviceId(r.bytes(0)?), r.uint(1)?));
    }
    Ok(list)
}

impl Store {
    /// Reads the version that the list had in the backup this store was restored from.
    pub(crate) async fn revocations_restored(&self) -> Result<Option<Revision>, StoreError> {
        match self.fact(RESTORED).await? {
            Some(bytes) => wire::decode_canonical("revision", &bytes)
                .map(Some)
                .map_err(StoreError::corrupt),
            None => Ok(None),
        }
    }
}

/// Adds an entry; an older one of the same thing keeps the later end.
pub(crate) async fn add(tx: &mut Tx, r: &Revocation) -> Result<(), StoreError> {
    tx.run(
        "INSERT INTO revocation (what, at_secs, drop_after_secs, reason) VALUES ($1, $2, $3, $4)
         ON CONFLICT (what) DO UPDATE SET drop_after_secs = excluded.drop_after_secs
             WHERE excluded.drop_after_secs > revocation.drop_after_secs",
        vals![
            wire::encode(&r.what),
            r.at_secs,
            r.drop_after_secs,
            r.reason.as_str()
        ],
    )
    .await?;
    Ok(())
}

/// Raises the epoch below which a device's tickets are refused.
pub(crate) async fn raise_epoch(
    tx: &mut Tx,
    device: DeviceId,
    epoch: u64,
    drop_after_secs: u64,
) -> Result<(), StoreError> {
    tx.run(
        "INSERT INTO min_epoch (device, epoch, drop_after_secs) VALUES ($1, $2, $3)
         ON CONFLICT (device) DO UPDATE SET epoch = excluded.epoch,
             drop_after_secs = excluded.drop_after_secs WHERE excluded.epoch >= min_epoch.epoch",
        vals![&device.0[..], epoch, drop_after_secs],
    )
    .await?;
    Ok(())
}

/// Sets the list's version: the revision of the change that changed it.
pub(crate) async fn set_version(tx: &mut Tx, version: Revision) -> Result<(), StoreError> {
    set_fact(tx, VERSION, &wire::encode(&version)).await
}

/// Reads the list's version.
pub(crate) async fn version(tx: &mut Tx) -> Result<Option<Revision>, StoreError> {
    let row = tx
        .row("SELECT value FROM fact WHERE name = $1", vals![VERSION])
        .await?;
    row.map(|r| wire::decode_canonical("revision", &r.blob(0)?).map_err(StoreError::corrupt))
        .transpose()
}

/// Remembers that the list is only as new as `version`: agents may hold newer ones.
pub(crate) async fn set_restored(tx: &mut Tx, version: Revision) -> Result<(), StoreError> {
    set_fact(tx, RESTORED, &wire::encode(&version)).await
}

/// Forgets entries that may leave the list; returns how many.
pub(crate) async fn prune(tx: &mut Tx, now_secs: u64) -> Result<u64, StoreError> {
    let entries = tx
        .run(
            "DELETE FROM revocation WHERE drop_after_secs < $1",
            vals![now_secs],
        )
        .await?;
    let epochs = tx
        .run(
            "DELETE FROM min_epoch WHERE drop_after_secs < $1",
            vals![now_secs],
        )
        .await?;
    Ok(entries + epochs)
}
