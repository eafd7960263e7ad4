//! Devices: who they are, what they were issued, whether they may still speak.

use std::net::{Ipv4Addr, Ipv6Addr};

use hedgerow_model::Wall;
use hedgerow_model::address::OverlayAddresses;
use hedgerow_model::id::{DeviceId, DeviceName, Digest, Labels, SiteName};
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{P256Public, X25519Public};

use super::db::{Row, Tx, vals};
use super::{Store, StoreError, parsed};

/// How a device's record ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// When.
    pub(crate) at: Wall,
    /// `revoked`, `removed` or `left`.
    pub(crate) how: String,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceRecord {
    /// Its permanent identity.
    pub(crate) id: DeviceId,
    /// Its name, unique among its site's living devices.
    pub(crate) name: DeviceName,
    /// Its site.
    pub(crate) site: SiteName,
    /// Its labels.
    pub(crate) labels: Labels,
    /// Its identity key.
    pub(crate) identity_key: P256Public,
    /// SHA-256 of that key's SubjectPublicKeyInfo.
    pub(crate) key_hash: Digest,
    /// What introductions to it are sealed to.
    pub(crate) introduction_key: X25519Public,
    /// Its overlay addresses.
    pub(crate) addresses: OverlayAddresses,
    /// Grows with labels, addresses and state.
    pub(crate) epoch: u64,
    /// Out of normal service.
    pub(crate) state: Option<DeviceState>,
    /// Seen twice at once, or with a stale generation.
    pub(crate) flagged: bool,
    /// End of its certificate and ticket.
    pub(crate) not_after_secs: u64,
    /// Its signed ticket.
    pub(crate) ticket: Vec<u8>,
    /// Its certificate chain, encoded.
    pub(crate) chain: Vec<u8>,
    /// The newest start of its agent that was seen.
    pub(crate) generation: u64,
    /// When it was enrolled.
    pub(crate) enrolled: Wall,
    /// Set once it may not speak any more.
    pub(crate) ended: Option<Ended>,
}

const COLUMNS_ALL: &str = "SELECT id, name, site, labels, identity_key, key_hash, \
    introduction_key, v6, v4, epoch, state, flagged, not_after_secs, ticket, chain, generation, \
    enrolled_ms, ended_ms, ended_by FROM device ORDER BY id";

impl Store {
    /// Reads every device, ended ones included, in the order of their ids.
    pub(crate) async fn devices(&self) -> Result<Vec<DeviceRecord>, StoreError> {
        let rows = self.pool.rows(COLUMNS_ALL, vals![]).await?;
        rows.iter().map(read).collect()
    }
}

/// Adds a device, or replaces what is stored of it.
pub(crate) async fn put(tx: &mut Tx, d: &DeviceRecord) -> Result<(), StoreError> {
    let taken = tx
        .row(
            "SELECT id FROM device WHERE site = $1 AND name = $2 AND ended_ms IS NULL AND id <> $3",
            vals![d.site.as_str(), d.name.as_str(), &d.id.0[..]],
        )
        .await?;
    if d.ended.is_none() && taken.is_some() {
        return Err(StoreError::conflict(format!(
            "the name {} is taken in site {}",
            d.name, d.site
        )));
    }
    tx.run(
        "INSERT INTO device (id, name, site, labels, identity_key, key_hash, introduction_key,
             v6, v4, epoch, state, flagged, not_after_secs, ticket, chain, generation, enrolled_ms,
             ended_ms, ended_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, labels = excluded.labels,
             identity_key = excluded.identity_key, key_hash = excluded.key_hash,
             introduction_key = excluded.introduction_key, v6 = excluded.v6, v4 = excluded.v4,
             epoch = excluded.epoch, state = excluded.state, flagged = excluded.flagged,
             not_after_secs = excluded.not_after_secs, ticket = excluded.ticket,
             chain = excluded.chain, generation = MAX(device.generation, excluded.generation),
             ended_ms = excluded.ended_ms, ended_by = excluded.ended_by",
        vals![
            &d.id.0[..],
            d.name.as_str(),
            d.site.as_str(),
            d.labels.to_string(),
            &d.identity_key.0[..],
            &d.key_hash.0[..],
            &d.introduction_key.0[..],
            &d.addresses.v6.octets()[..],
            d.addresses.v4.map(|a| u64::from(u32::from(a))),
            d.epoch,
            d.state.map(state_number),
            i64::from(d.flagged),
            d.not_after_secs,
            d.ticket.as_slice(),
            d.chain.as_slice(),
            d.generation,
            d.enrolled.0,
            d.ended.as_ref().map(|e| e.at.0),
            d.ended.as_ref().map(|e| e.how.as_str()),
        ],
    )
    .await?;
    Ok(())
}

/// Remembers the newest start of a device's agent.
pub(crate) async fn set_generation(
    tx: &mut Tx,
    device: DeviceId,
    generation: u64,
) -> Result<(), StoreError> {
    tx.run(
        "UPDATE device SET generation = $2 WHERE id = $1 AND generation < $2",
        vals![&device.0[..], generation],
    )
    .await?;
    Ok(())
}

/// Forgets how often a device's agent started.
pub(crate) async fn forget_generation(tx: &mut Tx, device: DeviceId) -> Result<(), StoreError> {
    let sql = "UPDATE device SET generation = 0 WHERE id = $1";
    tx.run(sql, vals![&device.0[..]]).await?;
    Ok(())
}

/// Returns the device that a key belongs to or once belonged to.
pub(crate) async fn by_key(tx: &mut Tx, key: &Digest) -> Result<Option<DeviceId>, StoreError> {
    let row = tx
        .row(
            "SELECT id FROM device WHERE key_hash = $1",
            vals![&key.0[..]],
        )
        .await?;
    row.map(|r| r.bytes(0).map(DeviceId)).transpose()
}

/// Returns whether a living device of the site has the name.
pub(crate) async fn name_is_taken(
    tx: &mut Tx,
    site: &SiteName,
    name: &DeviceName,
) -> Result<bool, StoreError> {
    let row = tx
        .row(
            "SELECT 1 FROM device WHERE site = $1 AND name = $2 AND ended_ms IS NULL",
            vals![site.as_str(), name.as_str()],
        )
        .await?;
    Ok(row.is_some())
}

fn read(r: &Row) -> Result<DeviceRecord, StoreError> {
    let ended = match (r.opt_int(17)?, r.opt_text(18)?) {
        (Some(at), how) => Some(Ended {
            at: Wall(u64::try_from(at).map_err(StoreError::corrupt)?),
            how: how.unwrap_or_default(),
        }),
        (None, _) => None,
    };
    let v4 = match r.opt_int(8)? {
        Some(v) => Some(Ipv4Addr::from(
            u32::try_from(v).map_err(StoreError::corrupt)?,
        )),
        None => None,
    };
    Ok(DeviceRecord {
        id: DeviceId(r.bytes(0)?),
        name: parsed(&r.text(1)?)?,
        site: parsed(&r.text(2)?)?,
        labels: parsed(&r.text(3)?)?,
        identity_key: P256Public(r.bytes(4)?),
        key_hash: Digest(r.bytes(5)?),
        introduction_key: X25519Public(r.bytes(6)?),
        addresses: OverlayAddresses {
            v6: Ipv6Addr::from(r.bytes::<16>(7)?),
            v4,
        },
        epoch: r.uint(9)?,
        state: r.opt_int(10)?.map(state_of).transpose()?,
        flagged: r.int(11)? != 0,
        not_after_secs: r.uint(12)?,
        ticket: r.blob(13)?,
        chain: r.blob(14)?,
        generation: r.uint(15)?,
        enrolled: Wall(r.uint(16)?),
        ended,
    })
}

fn state_number(state: DeviceState) -> i64 {
    match state {
        DeviceState::Onboarding => 0,
        DeviceState::Quarantine => 1,
        DeviceState::Held => 2,
    }
}

fn state_of(number: i64) -> Result<DeviceState, StoreError> {
    match number {
        0 => Ok(DeviceState::Onboarding),
        1 => Ok(DeviceState::Quarantine),
        2 => Ok(DeviceState::Held),
        n => Err(StoreError::corrupt(format!("device state {n}"))),
    }
}
