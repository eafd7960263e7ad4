//! What leaves the store by itself: rows that nothing can ask for any more (`docs/data.md`).

use std::time::Duration;

use hedgerow_model::Wall;
use hedgerow_model::id::DeviceId;

use super::db::vals;
use super::{Store, StoreError};

/// How long a token is remembered after its end, so that a late use is told why it fails.
pub(crate) const TOKEN_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Policy revisions whose text is kept. Of older ones number, author, hash and signature stay: the
/// chain of hashes is evidence of what was in force, for whoever has the text.
pub(crate) const POLICY_TEXTS_MAX: u64 = 1000;
/// How long a device that has ended is remembered, once nothing of it can be valid or in grace.
pub(crate) const ENDED_KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

impl Store {
    /// Lets leave what may leave at `now`, which must be trusted, and these devices.
    pub(crate) async fn retire(&self, now: Wall, devices: &[DeviceId]) -> Result<(), StoreError> {
        let mut tx = self.note().await?;
        let ended = now.0.saturating_sub(millis(TOKEN_KEPT));
        tx.run(
            "DELETE FROM token_use WHERE token IN (SELECT id FROM token WHERE expires_ms < $1)",
            vals![ended],
        )
        .await?;
        tx.run("DELETE FROM token WHERE expires_ms < $1", vals![ended])
            .await?;
        tx.run("DELETE FROM pending WHERE expires_ms < $1", vals![now.0])
            .await?;
        let newest = tx
            .row(
                "SELECT timeline, number FROM policy ORDER BY timeline DESC, number DESC
                 LIMIT 1 OFFSET $1",
                vals![POLICY_TEXTS_MAX],
            )
            .await?;
        if let Some(newest) = newest {
            tx.run(
                "UPDATE policy SET source = '' WHERE source <> ''
                 AND (timeline < $1 OR (timeline = $1 AND number <= $2))",
                vals![newest.uint(0)?, newest.uint(1)?],
            )
            .await?;
        }
        for device in devices {
            tx.run(
                "DELETE FROM device WHERE id = $1 AND ended_ms IS NOT NULL",
                vals![&device.0[..]],
            )
            .await?;
        }
        tx.commit().await
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
