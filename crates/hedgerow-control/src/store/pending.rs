//! Devices that wait for an operator's approval. Bounded per source and in total.

use hedgerow_model::Wall;
use hedgerow_model::id::{DeviceId, DeviceName, Digest, Labels, SiteName};
use hedgerow_model::statement::X25519Public;

use super::db::{Row, Tx, vals};
use super::{Store, StoreError, parsed};

/// Most devices waiting at once: as many without as with a token.
pub(crate) const PENDING_MAX: u64 = 1000;
/// Most devices waiting from one source: an IPv4 address, a /64 of IPv6.
pub(crate) const PENDING_PER_SOURCE_MAX: u64 = 10;
/// A device that nobody approved is forgotten after this long.
pub(crate) const PENDING_HOURS: u64 = 24;

/// What an operator said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing yet.
    Waiting,
    /// Let it in.
    Approved,
    /// Keep it out.
    Rejected,
}

impl Decision {
    /// Returns the spelling used in the store and the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
        }
    }
}

/// One device that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingRecord {
    /// SHA-256 of its key's SubjectPublicKeyInfo: exactly this key is approved.
    pub(crate) key_hash: Digest,
    /// Its certificate request.
    pub(crate) csr: Vec<u8>,
    /// Its introduction key.
    pub(crate) introduction_key: X25519Public,
    /// What it calls itself.
    pub(crate) hostname: String,
    /// Where it asked from.
    pub(crate) source: String,
    /// What an operator compares with the device's own display.
    pub(crate) fingerprint: String,
    /// The token it came with.
    pub(crate) token: Option<[u8; 8]>,
    /// The site it will belong to, from the token or the approval.
    pub(crate) site: Option<SiteName>,
    /// The labels it will have.
    pub(crate) labels: Labels,
    /// The name it will have.
    pub(crate) name: Option<DeviceName>,
    /// What an operator said.
    pub(crate) decision: Decision,
    /// The device it became.
    pub(crate) device: Option<DeviceId>,
    /// When it first asked.
    pub(crate) created: Wall,
    /// When it is forgotten.
    pub(crate) expires: Wall,
}

const SELECT_ALL: &str = "SELECT key_hash, csr, introduction_key, hostname, source, fingerprint, \
    token, site, labels, name, decision, device, created_ms, expires_ms FROM pending \
    ORDER BY created_ms, key_hash";
const SELECT_ONE: &str = "SELECT key_hash, csr, introduction_key, hostname, source, fingerprint, \
    token, site, labels, name, decision, device, created_ms, expires_ms FROM pending \
    WHERE key_hash = $1";

impl Store {
    /// Reads every waiting device, the longest waiting first.
    pub(crate) async fn pending(&self) -> Result<Vec<PendingRecord>, StoreError> {
        let rows = self.pool.rows(SELECT_ALL, vals![]).await?;
        rows.iter().map(read).collect()
    }

    /// Reads the request of one key, unless its time is over.
    pub(crate) async fn pending_by_key(
        &self,
        key: &Digest,
        now: Wall,
    ) -> Result<Option<PendingRecord>, StoreError> {
        let rows = self.pool.rows(SELECT_ONE, vals![&key.0[..]]).await?;
        let found = rows.first().map(read).transpose()?;
        Ok(found.filter(|p| p.device.is_some() || p.expires > now))
    }
}

/// Adds a device to the queue, unless it is full.
pub(crate) async fn add(tx: &mut Tx, p: &PendingRecord) -> Result<(), StoreError> {
    tx.run(
        "DELETE FROM pending WHERE expires_ms < $1",
        vals![p.created.0],
    )
    .await?;
    let strangers = tx
        .rows(
            "SELECT source FROM pending WHERE token IS NULL AND device IS NULL",
            vals![],
        )
        .await?;
    if p.token.is_some() {
        // A proven token does not compete with strangers, whoever they are.
        let proven = count(
            tx,
            "SELECT COUNT(*) FROM pending WHERE token IS NOT NULL AND device IS NULL",
            vals![],
        );
        if proven.await? >= PENDING_MAX {
            return Err(StoreError::Exhausted {
                what: "places in the approval queue",
            });
        }
        return put(tx, p).await;
    }
    let network = |source: &str| source.parse().ok().map(crate::crowd::network);
    let own = network(&p.source);
    let mut from_source = 0;
    for row in &strangers {
        from_source += u64::from(network(&row.text(0)?) == own);
    }
    if from_source >= PENDING_PER_SOURCE_MAX {
        return Err(StoreError::Exhausted {
            what: "places in the approval queue for this source address",
        });
    }
    if strangers.len() as u64 >= PENDING_MAX {
        // The oldest makes room; if it still waits it will ask again.
        tx.run(
            "DELETE FROM pending WHERE key_hash IN (SELECT key_hash FROM pending
                 WHERE token IS NULL AND device IS NULL AND decision = 'waiting'
                 ORDER BY created_ms, key_hash LIMIT 1)",
            vals![],
        )
        .await?;
    }
    put(tx, p).await
}

/// Writes what is known of a waiting device.
pub(crate) async fn put(tx: &mut Tx, p: &PendingRecord) -> Result<(), StoreError> {
    tx.run(
        "INSERT INTO pending (key_hash, csr, introduction_key, hostname, source, fingerprint,
             token, site, labels, name, decision, device, created_ms, expires_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (key_hash) DO UPDATE SET csr = excluded.csr,
             introduction_key = excluded.introduction_key, site = excluded.site,
             labels = excluded.labels, name = excluded.name, decision = excluded.decision,
             device = excluded.device",
        vals![
            &p.key_hash.0[..],
            p.csr.as_slice(),
            &p.introduction_key.0[..],
            p.hostname.as_str(),
            p.source.as_str(),
            p.fingerprint.as_str(),
            p.token.map(|t| t.to_vec()),
            p.site.as_ref().map(SiteName::as_str),
            p.labels.to_string(),
            p.name.as_ref().map(DeviceName::as_str),
            p.decision.as_str(),
            p.device.map(|d| d.0.to_vec()),
            p.created.0,
            p.expires.0,
        ],
    )
    .await?;
    Ok(())
}

async fn count(
    tx: &mut Tx,
    sql: &'static str,
    vals: Vec<super::db::Val>,
) -> Result<u64, StoreError> {
    tx.row(sql, vals).await?.map_or(Ok(0), |r| r.uint(0))
}

fn read(r: &Row) -> Result<PendingRecord, StoreError> {
    let decision = match r.text(10)?.as_str() {
        "waiting" => Decision::Waiting,
        "approved" => Decision::Approved,
        "rejected" => Decision::Rejected,
        other => return Err(StoreError::corrupt(format!("the decision `{other}`"))),
    };
    let eight = |b: Vec<u8>| {
        <[u8; 8]>::try_from(b).map_err(|_e| StoreError::corrupt("a token id of another length"))
    };
    let sixteen = |b: Vec<u8>| {
        <[u8; 16]>::try_from(b).map_err(|_e| StoreError::corrupt("a device id of another length"))
    };
    Ok(PendingRecord {
        key_hash: Digest(r.bytes(0)?),
        csr: r.blob(1)?,
        introduction_key: X25519Public(r.bytes(2)?),
        hostname: r.text(3)?,
        source: r.text(4)?,
        fingerprint: r.text(5)?,
        token: r.opt_blob(6)?.map(eight).transpose()?,
        site: r.opt_text(7)?.as_deref().map(parsed).transpose()?,
        labels: parsed(&r.text(8)?)?,
        name: r.opt_text(9)?.as_deref().map(parsed).transpose()?,
        decision,
        device: r.opt_blob(11)?.map(sixteen).transpose()?.map(DeviceId),
        created: Wall(r.uint(12)?),
        expires: Wall(r.uint(13)?),
    })
}
