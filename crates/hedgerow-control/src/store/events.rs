//! What happened, bounded: the oldest events leave first.

use hedgerow_model::event::Event;
use hedgerow_model::id::DeviceId;
use hedgerow_model::wire;

use super::db::vals;
use super::{Store, StoreError};

/// Events kept.
pub(crate) const EVENTS_MAX: u64 = 200_000;

/// One event as stored.
#[derive(Debug, Clone)]
pub(crate) struct EventRecord {
    /// Its place in the order of arrival.
    pub(crate) seq: u64,
    /// The device that reported it; absent when the controller saw it itself.
    pub(crate) reporter: Option<DeviceId>,
    /// The event.
    pub(crate) event: Event,
}

impl Store {
    /// Reads up to `limit` events after `after`, oldest first.
    pub(crate) async fn events_after(
        &self,
        after: u64,
        limit: u64,
    ) -> Result<Vec<EventRecord>, StoreError> {
        self.events(
            "SELECT seq, reporter, body FROM event WHERE seq > $1 ORDER BY seq LIMIT $2",
            vals![after, limit],
        )
        .await
    }

    /// Reads the newest `limit` events, oldest first.
    pub(crate) async fn events_newest(&self, limit: u64) -> Result<Vec<EventRecord>, StoreError> {
        let mut newest = self
            .events(
                "SELECT seq, reporter, body FROM event ORDER BY seq DESC LIMIT $1",
                vals![limit],
            )
            .await?;
        newest.reverse();
        Ok(newest)
    }

    async fn events(
        &self,
        sql: &'static str,
        vals: Vec<super::db::Val>,
    ) -> Result<Vec<EventRecord>, StoreError> {
        let rows = self.pool.rows(sql, vals).await?;
        let mut out = Vec::with_capacity(rows.len());
        for r in &rows {
            let reporter = match r.opt_blob(1)? {
                None => None,
                Some(b) => {
                    Some(DeviceId(b.try_into().map_err(|_e| {
                        StoreError::corrupt("a device id of another length")
                    })?))
                }
            };
            out.push(EventRecord {
                seq: r.uint(0)?,
                reporter,
                event: wire::decode_canonical("event", &r.blob(2)?).map_err(StoreError::corrupt)?,
            });
        }
        Ok(out)
    }

    /// Appends events in one transaction and lets the oldest go beyond [`EVENTS_MAX`].
    pub(crate) async fn add_events(
        &self,
        events: &[(Option<DeviceId>, Event)],
    ) -> Result<(), StoreError> {
        let mut tx = self.note().await?;
        let mut seq = tx
            .row("SELECT COALESCE(MAX(seq), 0) FROM event", vals![])
            .await?
            .map_or(Ok(0), |r| r.uint(0))?;
        for (reporter, event) in events {
            seq += 1;
            tx.run(
                "INSERT INTO event (seq, at_ms, kind, device, peer, reporter, body)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
                vals![
                    seq,
                    event.at_ms,
                    event.kind.as_str(),
                    event.device.map(|d| d.0.to_vec()),
                    event.peer.map(|d| d.0.to_vec()),
                    reporter.map(|d| d.0.to_vec()),
                    wire::encode(event),
                ],
            )
            .await?;
        }
        if let Some(last) = seq.checked_sub(EVENTS_MAX) {
            tx.run("DELETE FROM event WHERE seq <= $1", vals![last])
                .await?;
        }
        tx.commit().await
    }
}
