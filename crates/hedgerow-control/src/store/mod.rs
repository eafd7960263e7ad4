//! What the controller must not forget, in one database file.
//!
//! ```text
//!  begin(actor, what) ─▶ Change { tx, revision } ─▶ domain writes ─▶ commit
//!                         └ the next number, taken in the same transaction: no gap, no reuse
//! ```
//!
//! # Invariants
//!
//! - A revision number and the change it stands for become durable together or not at all.
//! - One connection writes. Readers see the last committed state.
//! - Domain types go in and come out; no other module speaks SQL.
//!
//! # Not here
//!
//! The snapshot that connections are served from (`snapshot`), and every signature.

pub(crate) mod addresses;
pub(crate) mod db;
pub(crate) mod devices;
pub(crate) mod events;
pub(crate) mod pending;
pub(crate) mod policies;
pub(crate) mod retention;
pub(crate) mod revocations;
pub(crate) mod sites;
pub(crate) mod tokens;

#[cfg(test)]
mod tests;

use std::path::Path;

use hedgerow_model::id::Revision;
use hedgerow_model::{Fault, Wall};

use self::db::{Pool, Tx, vals};

/// Why the store could not do what was asked. Nothing of the change is kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database refused or the disk failed.
    #[error("the store failed")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the store's schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A record does not read as what it must be.
    #[error("the store holds {what} where a record belongs")]
    Corrupt {
        /// What was found.
        what: String,
    },
    /// The change contradicts what is stored.
    #[error("{what}")]
    Conflict {
        /// Which fact it contradicts.
        what: String,
    },
    /// An address plan or another bounded resource is used up.
    #[error("{what} are used up")]
    Exhausted {
        /// Which.
        what: &'static str,
    },
}

impl StoreError {
    /// A record of the wrong shape.
    pub(crate) fn corrupt(what: impl std::fmt::Display) -> Self {
        Self::Corrupt {
            what: what.to_string(),
        }
    }

    /// A contradiction.
    pub(crate) fn conflict(what: impl Into<String>) -> Self {
        Self::Conflict { what: what.into() }
    }

    /// Returns who has to act.
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Database(_) => Fault::Environment,
            Self::Migrate(_) | Self::Conflict { .. } | Self::Exhausted { .. } => Fault::Operator,
            Self::Corrupt { .. } => Fault::Bug,
        }
    }
}

/// The store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pool: Pool,
}

/// A change in the making, with the number it will have.
#[derive(Debug)]
pub(crate) struct Change {
    /// The transaction.
    pub(crate) tx: Tx,
    /// Its place in the order of everything.
    pub(crate) revision: Revision,
}

impl Change {
    /// Makes the change durable and returns its number.
    pub(crate) async fn commit(self) -> Result<Revision, StoreError> {
        self.tx.commit().await?;
        Ok(self.revision)
    }
}

/// Changes kept for `GET changes`; older ones are pruned.
const CHANGES_KEPT: u64 = 100_000;

impl Store {
    /// Opens the database file, creating it with the current schema if it is not there.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Self {
            pool: Pool::open(path).await?,
        };
        let mut tx = store.pool.begin().await?;
        tx.run(
            "INSERT INTO revision (id, timeline, number) VALUES (1, 1, 0) ON CONFLICT (id) DO NOTHING",
            vals![],
        )
        .await?;
        tx.commit().await?;
        Ok(store)
    }

    /// Closes it.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// Writes a consistent copy into a new file.
    pub(crate) async fn copy_into(&self, path: &Path) -> Result<(), StoreError> {
        self.pool.copy_into(path).await
    }

    /// Begins a numbered change.
    pub(crate) async fn change(
        &self,
        actor: &str,
        what: &str,
        subject: &str,
        at: Wall,
    ) -> Result<Change, StoreError> {
        let mut tx = self.pool.begin().await?;
        let row = tx
            .row(
                "UPDATE revision SET number = number + 1 WHERE id = 1 RETURNING timeline, number",
                vals![],
            )
            .await?
            .ok_or_else(|| StoreError::corrupt("no revision counter"))?;
        let revision = Revision {
            timeline: row.uint(0)?,
            number: row.uint(1)?,
        };
        tx.run(
            "INSERT INTO change (timeline, number, at_ms, actor, what, subject)
             VALUES ($1, $2, $3, $4, $5, $6)",
            vals![
                revision.timeline,
                revision.number,
                at.0,
                actor,
                what,
                subject
            ],
        )
        .await?;
        if revision.number.is_multiple_of(1000) && revision.number > CHANGES_KEPT {
            tx.run(
                "DELETE FROM change WHERE timeline = $1 AND number <= $2",
                vals![revision.timeline, revision.number - CHANGES_KEPT],
            )
            .await?;
        }
        Ok(Change { tx, revision })
    }

    /// Begins a change that has no number: counters, events, renewals.
    pub(crate) async fn note(&self) -> Result<Tx, StoreError> {
        self.pool.begin().await
    }

    /// Returns the number of the newest change.
    pub(crate) async fn revision(&self) -> Result<Revision, StoreError> {
        let rows = self
            .pool
            .rows(
                "SELECT timeline, number FROM revision WHERE id = 1",
                vals![],
            )
            .await?;
        let row = rows
            .first()
            .ok_or_else(|| StoreError::corrupt("no revision counter"))?;
        Ok(Revision {
            timeline: row.uint(0)?,
            number: row.uint(1)?,
        })
    }

    /// Begins a new timeline: numbers start again, and every one of them is larger than before.
    pub(crate) async fn begin_timeline(&self, timeline: u64) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        tx.run(
            "UPDATE revision SET timeline = $1, number = 0 WHERE id = 1 AND timeline < $1",
            vals![timeline],
        )
        .await?;
        tx.commit().await
    }

    /// Reads a named fact.
    pub(crate) async fn fact(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let rows = self
            .pool
            .rows("SELECT value FROM fact WHERE name = $1", vals![name])
            .await?;
        rows.first().map(|r| r.blob(0)).transpose()
    }

    /// Reads the manifest chain, oldest first.
    pub(crate) async fn manifests(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let rows = self
            .pool
            .rows("SELECT signed FROM manifest ORDER BY version", vals![])
            .await?;
        rows.iter().map(|r| r.blob(0)).collect()
    }
}

/// Sets a named fact.
pub(crate) async fn set_fact(tx: &mut Tx, name: &str, value: &[u8]) -> Result<(), StoreError> {
    tx.run(
        "INSERT INTO fact (name, value) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        vals![name, value],
    )
    .await?;
    Ok(())
}

/// Adds a manifest to the chain.
pub(crate) async fn add_manifest(
    tx: &mut Tx,
    version: u64,
    signed: &[u8],
) -> Result<(), StoreError> {
    tx.run(
        "INSERT INTO manifest (version, signed) VALUES ($1, $2)",
        vals![version, signed],
    )
    .await?;
    Ok(())
}

/// Reads a checked value out of stored text.
pub(crate) fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, StoreError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(StoreError::corrupt)
}
