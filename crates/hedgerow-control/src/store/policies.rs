//! Policy revisions: numbered, hashed, signed, each naming its parent.

use hedgerow_model::Wall;
use hedgerow_model::id::{Digest, Revision};

use super::db::{Row, Tx, vals};
use super::{Store, StoreError};

/// One accepted policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PolicyRecord {
    /// Its number.
    pub(crate) revision: Revision,
    /// The file, as given.
    pub(crate) source: String,
    /// SHA-256 of revision, parent and source.
    pub(crate) hash: Digest,
    /// The hash of the one before.
    pub(crate) parent: Option<Digest>,
    /// Who applied it.
    pub(crate) author: String,
    /// Why, in their words.
    pub(crate) note: String,
    /// The policy role key's signature over the hash.
    pub(crate) signature: Vec<u8>,
    /// When.
    pub(crate) at: Wall,
}

impl PolicyRecord {
    /// Returns the hash that revision, parent and source must have.
    pub(crate) fn hash_of(revision: Revision, parent: Option<&Digest>, source: &str) -> Digest {
        let mut bytes = Vec::with_capacity(source.len() + 64);
        bytes.extend_from_slice(b"hedgerow-policy-revision-v1\0");
        bytes.extend_from_slice(&revision.timeline.to_be_bytes());
        bytes.extend_from_slice(&revision.number.to_be_bytes());
        bytes.extend_from_slice(parent.map_or(&[0; 32], |p| &p.0));
        bytes.extend_from_slice(source.as_bytes());
        Digest::of(&bytes)
    }
}

const SELECT_NEWEST: &str = "SELECT timeline, number, source, hash, parent, author, note, \
    signature, at_ms FROM policy ORDER BY timeline DESC, number DESC LIMIT 1";
const SELECT_ONE: &str = "SELECT timeline, number, source, hash, parent, author, note, \
    signature, at_ms FROM policy WHERE timeline = $1 AND number = $2";
const SELECT_HISTORY: &str = "SELECT timeline, number, source, hash, parent, author, note, \
    signature, at_ms FROM policy ORDER BY timeline DESC, number DESC LIMIT $1";

impl Store {
    /// Reads the policy in force.
    pub(crate) async fn policy(&self) -> Result<Option<PolicyRecord>, StoreError> {
        let rows = self.pool.rows(SELECT_NEWEST, vals![]).await?;
        rows.first().map(read).transpose()
    }

    /// Reads the policy of one revision.
    pub(crate) async fn policy_at(
        &self,
        revision: Revision,
    ) -> Result<Option<PolicyRecord>, StoreError> {
        let rows = self
            .pool
            .rows(SELECT_ONE, vals![revision.timeline, revision.number])
            .await?;
        rows.first().map(read).transpose()
    }

    /// Reads the newest revisions, newest first.
    pub(crate) async fn policy_history(&self, limit: u64) -> Result<Vec<PolicyRecord>, StoreError> {
        let rows = self.pool.rows(SELECT_HISTORY, vals![limit]).await?;
        rows.iter().map(read).collect()
    }
}

/// Adds a revision.
pub(crate) async fn add(tx: &mut Tx, p: &PolicyRecord) -> Result<(), StoreError> {
    tx.run(
        "INSERT INTO policy (timeline, number, source, hash, parent, author, note, signature, at_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        vals![
            p.revision.timeline,
            p.revision.number,
            p.source.as_str(),
            &p.hash.0[..],
            p.parent.map(|d| d.0.to_vec()),
            p.author.as_str(),
            p.note.as_str(),
            p.signature.as_slice(),
            p.at.0,
        ],
    )
    .await?;
    Ok(())
}

/// Reads the hash of the newest revision.
pub(crate) async fn newest_hash(tx: &mut Tx) -> Result<Option<Digest>, StoreError> {
    let row = tx.row(SELECT_NEWEST, vals![]).await?;
    row.map(|r| r.bytes(3).map(Digest)).transpose()
}

fn read(r: &Row) -> Result<PolicyRecord, StoreError> {
    let parent = match r.opt_blob(4)? {
        None => None,
        Some(bytes) => {
            Some(Digest(bytes.try_into().map_err(|_e| {
                StoreError::corrupt("a hash of another length")
            })?))
        }
    };
    Ok(PolicyRecord {
        revision: Revision {
            timeline: r.uint(0)?,
            number: r.uint(1)?,
        },
        source: r.text(2)?,
        hash: Digest(r.bytes(3)?),
        parent,
        author: r.text(5)?,
        note: r.text(6)?,
        signature: r.blob(7)?,
        at: Wall(r.uint(8)?),
    })
}
