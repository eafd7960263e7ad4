//! What is forgotten in time: see `docs/data.md`.

use hedgerow_model::Wall;
use hedgerow_model::id::DeviceId;

use crate::control::Controller;
use crate::refusal::Refusal;
use crate::snapshot::Snapshot;
use crate::store::devices::DeviceRecord;
use crate::store::retention::ENDED_KEPT;

impl Controller {
    /// Lets leave what may leave. Without a trusted clock nothing does.
    pub(crate) async fn retire(&self) -> Result<(), Refusal> {
        let now = self.clock.now();
        if !now.wall_is_trusted {
            return Ok(());
        }
        let mut draft = self.draft().await;
        let over = over(&draft.next, self.config.grace_secs(), now.wall);
        self.store.retire(now.wall, &over).await?;
        if over.is_empty() {
            return Ok(());
        }
        for id in &over {
            draft.next.forget_device(*id);
            self.hub.forget(*id);
        }
        tracing::info!(
            count = over.len(),
            "devices that ended long ago are forgotten"
        );
        let revision = draft.next.revision;
        self.publish(draft, revision);
        Ok(())
    }
}

/// Returns the devices that ended so long ago that nothing of theirs can be believed by anybody.
fn over(snapshot: &Snapshot, grace_secs: u64, now: Wall) -> Vec<DeviceId> {
    let is_over = |d: &&DeviceRecord| {
        d.ended.as_ref().is_some_and(|ended| {
            let last = d
                .not_after_secs
                .saturating_add(grace_secs)
                .max(ended.at.secs());
            last.saturating_add(ENDED_KEPT.as_secs()) < now.secs()
        })
    };
    let all = snapshot.devices().map(|d| &**d);
    all.filter(is_over).map(|d| d.id).collect()
}
