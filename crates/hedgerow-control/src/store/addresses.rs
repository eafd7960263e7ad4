//! The IPv4 address plan: blocks of the pool belong to sites, addresses to devices.
//!
//! An address comes back only when no ticket that named it can still be valid or in grace.

use std::net::Ipv4Addr;

use hedgerow_model::address::Prefix;
use hedgerow_model::id::{DeviceId, SiteName};

use super::db::{Tx, vals};
use super::{Store, StoreError};

/// Length of a site's block.
pub(crate) const BLOCK_BITS: u8 = 22;
/// Addresses in one block; the first and the last are not given out.
const BLOCK_ADDRESSES: u32 = 1 << (32 - BLOCK_BITS);

/// The pool that blocks are cut from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct V4Pool {
    first: u32,
    blocks: u32,
}

impl V4Pool {
    /// Takes an IPv4 prefix of at least one block; `None` otherwise.
    pub(crate) fn new(prefix: &Prefix) -> Option<Self> {
        match prefix.address() {
            std::net::IpAddr::V4(a) if prefix.bits() <= BLOCK_BITS => Some(Self {
                first: u32::from(a),
                blocks: 1u32.checked_shl(u32::from(BLOCK_BITS - prefix.bits()))?,
            }),
            std::net::IpAddr::V4(_) | std::net::IpAddr::V6(_) => None,
        }
    }

    fn block(&self, index: u32) -> Option<u32> {
        (index < self.blocks).then(|| self.first + index * BLOCK_ADDRESSES)
    }
}

/// Gives `device` an address of `site`; `pick` chooses where the search for a new block begins,
/// so that two controllers restored from one backup do not choose alike.
pub(crate) async fn allocate(
    tx: &mut Tx,
    pool: &V4Pool,
    site: &SiteName,
    device: DeviceId,
    now_secs: u64,
    pick: u32,
) -> Result<Ipv4Addr, StoreError> {
    let blocks = tx
        .rows(
            "SELECT block FROM site_block WHERE site = $1 AND closed_until_secs <= $2 ORDER BY block",
            vals![site.as_str(), now_secs],
        )
        .await?;
    for row in &blocks {
        let block = u32::try_from(row.int(0)?).map_err(StoreError::corrupt)?;
        if let Some(address) = free_in(tx, block, now_secs).await? {
            return take(tx, address, device).await;
        }
    }
    let block = new_block(tx, pool, site, pick).await?;
    take(tx, block + 1, device).await
}

/// Reserves exactly `address` for `device`, as a ticket from before a restore says.
pub(crate) async fn claim(
    tx: &mut Tx,
    address: Ipv4Addr,
    device: DeviceId,
) -> Result<bool, StoreError> {
    let v4 = u64::from(u32::from(address));
    let owner = tx
        .row("SELECT device FROM address WHERE v4 = $1", vals![v4])
        .await?;
    if let Some(row) = owner {
        return Ok(row.blob(0)? == device.0);
    }
    take(tx, u32::from(address), device).await?;
    Ok(true)
}

/// Lets `device`'s address go once `free_after_secs` has passed.
pub(crate) async fn release(
    tx: &mut Tx,
    device: DeviceId,
    free_after_secs: u64,
) -> Result<(), StoreError> {
    tx.run(
        "UPDATE address SET free_after_secs = $2 WHERE device = $1",
        vals![&device.0[..], free_after_secs],
    )
    .await?;
    Ok(())
}

impl Store {
    /// Closes every block in use: after a restore nobody knows which of their addresses were given
    /// out since the backup.
    pub(crate) async fn close_blocks(&self, until_secs: u64) -> Result<(), StoreError> {
        let mut tx = self.note().await?;
        tx.run(
            "UPDATE site_block SET closed_until_secs = $1",
            vals![until_secs],
        )
        .await?;
        tx.commit().await
    }
}

async fn free_in(tx: &mut Tx, block: u32, now_secs: u64) -> Result<Option<u32>, StoreError> {
    let (first, last) = (block + 1, block + BLOCK_ADDRESSES - 2);
    let top = tx
        .row(
            "SELECT MAX(v4) FROM address WHERE v4 BETWEEN $1 AND $2",
            vals![u64::from(first), u64::from(last)],
        )
        .await?
        .map_or(Ok(None), |r| r.opt_int(0))?;
    let next = match top {
        None => first,
        Some(v) => u32::try_from(v).map_err(StoreError::corrupt)? + 1,
    };
    if next <= last {
        return Ok(Some(next));
    }
    let freed = tx
        .row(
            "SELECT MIN(v4) FROM address WHERE v4 BETWEEN $1 AND $2 AND free_after_secs < $3",
            vals![u64::from(first), u64::from(last), now_secs],
        )
        .await?
        .map_or(Ok(None), |r| r.opt_int(0))?;
    freed
        .map(|v| u32::try_from(v).map_err(StoreError::corrupt))
        .transpose()
}

async fn take(tx: &mut Tx, v4: u32, device: DeviceId) -> Result<Ipv4Addr, StoreError> {
    tx.run(
        "INSERT INTO address (v4, device, free_after_secs) VALUES ($1, $2, NULL)
         ON CONFLICT (v4) DO UPDATE SET device = excluded.device, free_after_secs = NULL",
        vals![u64::from(v4), &device.0[..]],
    )
    .await?;
    Ok(Ipv4Addr::from(v4))
}

async fn new_block(
    tx: &mut Tx,
    pool: &V4Pool,
    site: &SiteName,
    pick: u32,
) -> Result<u32, StoreError> {
    let start = pick.checked_rem(pool.blocks).unwrap_or(0);
    for step in 0..pool.blocks {
        let Some(block) = pool.block((start + step) % pool.blocks) else {
            continue;
        };
        let added = tx
            .run(
                "INSERT INTO site_block (block, site, closed_until_secs) VALUES ($1, $2, 0)
                 ON CONFLICT (block) DO NOTHING",
                vals![u64::from(block), site.as_str()],
            )
            .await?;
        if added == 1 {
            return Ok(block);
        }
    }
    Err(StoreError::Exhausted {
        what: "IPv4 blocks of the pool",
    })
}
