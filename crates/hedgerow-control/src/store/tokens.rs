//! Enrollment tokens: public halves, bounds, and which keys spent them.

use hedgerow_model::Wall;
use hedgerow_model::id::{DeviceId, DeviceName, Digest, Labels, SiteName};
use hedgerow_model::statement::Ed25519Public;

use super::db::{Row, Tx, vals};
use super::{Store, StoreError, parsed};

/// One token. The secret half is known to its holder alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenRecord {
    /// Its number.
    pub(crate) id: [u8; 8],
    /// Checks the holder's signature.
    pub(crate) public_key: Ed25519Public,
    /// The site it enrolls into.
    pub(crate) site: SiteName,
    /// The labels it gives.
    pub(crate) labels: Labels,
    /// The name it gives; only with a single use.
    pub(crate) name: Option<DeviceName>,
    /// An operator must approve each use.
    pub(crate) approve: bool,
    /// How many keys may use it.
    pub(crate) uses_max: u64,
    /// How many did.
    pub(crate) used: u64,
    /// When it was created.
    pub(crate) created: Wall,
    /// By whom.
    pub(crate) created_by: String,
    /// When it ends.
    pub(crate) expires: Wall,
    /// When it was revoked.
    pub(crate) revoked: Option<Wall>,
}

const SELECT_ALL: &str = "SELECT t.id, t.public_key, t.site, t.labels, t.name, t.approve, \
    t.uses_max, (SELECT COUNT(*) FROM token_use u WHERE u.token = t.id), t.created_ms, \
    t.created_by, t.expires_ms, t.revoked_ms FROM token t ORDER BY t.created_ms, t.id";
const SELECT_ONE: &str = "SELECT t.id, t.public_key, t.site, t.labels, t.name, t.approve, \
    t.uses_max, (SELECT COUNT(*) FROM token_use u WHERE u.token = t.id), t.created_ms, \
    t.created_by, t.expires_ms, t.revoked_ms FROM token t WHERE t.id = $1";

impl Store {
    /// Reads every token, oldest first.
    pub(crate) async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        let rows = self.pool.rows(SELECT_ALL, vals![]).await?;
        rows.iter().map(read).collect()
    }

    /// Reads one token, without waiting for a change in the making.
    pub(crate) async fn token(&self, id: &[u8; 8]) -> Result<Option<TokenRecord>, StoreError> {
        let rows = self.pool.rows(SELECT_ONE, vals![&id[..]]).await?;
        rows.first().map(read).transpose()
    }
}

/// Adds a token.
pub(crate) async fn create(tx: &mut Tx, t: &TokenRecord) -> Result<(), StoreError> {
    tx.run(
        "INSERT INTO token (id, public_key, site, labels, name, approve, uses_max, created_ms,
             created_by, expires_ms, revoked_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, NULL)",
        vals![
            &t.id[..],
            &t.public_key.0[..],
            t.site.as_str(),
            t.labels.to_string(),
            t.name.as_ref().map(DeviceName::as_str),
            i64::from(t.approve),
            t.uses_max,
            t.created.0,
            t.created_by.as_str(),
            t.expires.0,
        ],
    )
    .await?;
    Ok(())
}

/// Reads one token.
pub(crate) async fn get(tx: &mut Tx, id: &[u8; 8]) -> Result<Option<TokenRecord>, StoreError> {
    let row = tx.row(SELECT_ONE, vals![&id[..]]).await?;
    row.as_ref().map(read).transpose()
}

/// Ends a token; returns whether there was a living one.
pub(crate) async fn revoke(tx: &mut Tx, id: &[u8; 8], at: Wall) -> Result<bool, StoreError> {
    let n = tx
        .run(
            "UPDATE token SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL",
            vals![&id[..], at.0],
        )
        .await?;
    Ok(n == 1)
}

/// Ends every token that could still be used; returns how many.
pub(crate) async fn revoke_all(tx: &mut Tx, at: Wall) -> Result<u64, StoreError> {
    tx.run(
        "UPDATE token SET revoked_ms = $1 WHERE revoked_ms IS NULL AND expires_ms > $1",
        vals![at.0],
    )
    .await
}

/// Returns whether `key` already used the token, and the device it got.
pub(crate) async fn use_by(
    tx: &mut Tx,
    id: &[u8; 8],
    key: &Digest,
) -> Result<Option<Option<DeviceId>>, StoreError> {
    let row = tx
        .row(
            "SELECT device FROM token_use WHERE token = $1 AND key_hash = $2",
            vals![&id[..], &key.0[..]],
        )
        .await?;
    match row {
        None => Ok(None),
        Some(r) => match r.opt_blob(0)? {
            None => Ok(Some(None)),
            Some(bytes) => <[u8; 16]>::try_from(bytes)
                .map(|id| Some(Some(DeviceId(id))))
                .map_err(|_e| StoreError::corrupt("a device id of another length")),
        },
    }
}

/// Marks the token used by `key`, for `device` once there is one.
pub(crate) async fn mark_used(
    tx: &mut Tx,
    id: &[u8; 8],
    key: &Digest,
    device: Option<DeviceId>,
    at: Wall,
) -> Result<(), StoreError> {
    tx.run(
        "INSERT INTO token_use (token, key_hash, device, at_ms) VALUES ($1, $2, $3, $4)
         ON CONFLICT (token, key_hash) DO UPDATE SET device = excluded.device",
        vals![&id[..], &key.0[..], device.map(|d| d.0.to_vec()), at.0],
    )
    .await?;
    Ok(())
}

fn read(r: &Row) -> Result<TokenRecord, StoreError> {
    Ok(TokenRecord {
        id: r.bytes(0)?,
        public_key: Ed25519Public(r.bytes(1)?),
        site: parsed(&r.text(2)?)?,
        labels: parsed(&r.text(3)?)?,
        name: r.opt_text(4)?.as_deref().map(parsed).transpose()?,
        approve: r.int(5)? != 0,
        uses_max: r.uint(6)?,
        used: r.uint(7)?,
        created: Wall(r.uint(8)?),
        created_by: r.text(9)?,
        expires: Wall(r.uint(10)?),
        revoked: r
            .opt_int(11)?
            .map(|v| u64::try_from(v).map(Wall).map_err(StoreError::corrupt))
            .transpose()?,
    })
}
