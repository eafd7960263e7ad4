//! Sites and their numbers in the address plan.

use hedgerow_model::Wall;
use hedgerow_model::id::SiteName;

use super::db::{Tx, vals};
use super::{Store, StoreError, parsed};

/// Sites in one trust domain: a /48 has as many /64.
pub(crate) const SITES_MAX: u64 = 65_535;

/// One site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SiteRecord {
    /// Its name.
    pub(crate) name: SiteName,
    /// Its /64 in the trust domain's /48; from 1.
    pub(crate) number: u16,
    /// Its IANA time zone.
    pub(crate) zone: String,
    /// When it was created.
    pub(crate) created: Wall,
}

impl Store {
    /// Reads every site, in the order of their names.
    pub(crate) async fn sites(&self) -> Result<Vec<SiteRecord>, StoreError> {
        let rows = self
            .pool
            .rows(
                "SELECT name, number, zone, created_ms FROM site ORDER BY name",
                vals![],
            )
            .await?;
        rows.iter()
            .map(|r| {
                Ok(SiteRecord {
                    name: parsed(&r.text(0)?)?,
                    number: u16::try_from(r.int(1)?).map_err(StoreError::corrupt)?,
                    zone: r.text(2)?,
                    created: Wall(r.uint(3)?),
                })
            })
            .collect()
    }
}

/// Creates a site with the next number.
pub(crate) async fn create(
    tx: &mut Tx,
    name: &SiteName,
    zone: &str,
    at: Wall,
) -> Result<SiteRecord, StoreError> {
    let known = tx
        .row("SELECT 1 FROM site WHERE name = $1", vals![name.as_str()])
        .await?;
    if known.is_some() {
        return Err(StoreError::conflict(format!("site {name} exists already")));
    }
    let last = tx
        .row("SELECT COALESCE(MAX(number), 0) FROM site", vals![])
        .await?
        .map_or(Ok(0), |r| r.uint(0))?;
    if last >= SITES_MAX {
        return Err(StoreError::Exhausted {
            what: "site numbers",
        });
    }
    let number = u16::try_from(last + 1).map_err(StoreError::corrupt)?;
    tx.run(
        "INSERT INTO site (name, number, zone, created_ms) VALUES ($1, $2, $3, $4)",
        vals![name.as_str(), u64::from(number), zone, at.0],
    )
    .await?;
    Ok(SiteRecord {
        name: name.clone(),
        number,
        zone: zone.to_owned(),
        created: at,
    })
}

/// Sets a site's time zone.
pub(crate) async fn set_zone(tx: &mut Tx, name: &SiteName, zone: &str) -> Result<(), StoreError> {
    tx.run(
        "UPDATE site SET zone = $2 WHERE name = $1",
        vals![name.as_str(), zone],
    )
    .await?;
    Ok(())
}
