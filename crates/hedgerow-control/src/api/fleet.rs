//! The fleet as a whole: status, events, metrics.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use hedgerow_model::event::Severity;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::devices::state_name;
use super::extract::Params;
use super::{ErrorBody, Shared};
use crate::hub::Counters;
use crate::refusal::Refusal;
use crate::store::events::EventRecord;

/// Most events in one answer.
const EVENTS_MAX: u64 = 5000;

/// One device, in short.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeviceStatus {
    id: String,
    name: String,
    site: String,
    state: Option<&'static str>,
    flagged: bool,
    connected: bool,
    session_held: bool,
    wanted_revision: Option<String>,
    verified_revision: Option<String>,
    /// Whether its kernel enforces everything it was last told.
    verified: bool,
    /// How long ago it verified that, in milliseconds.
    verified_age_ms: Option<u64>,
    /// How long ago it last spoke, in milliseconds.
    seen_age_ms: Option<u64>,
    rejected: Option<String>,
}

/// The fleet.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FleetStatus {
    trust_domain: String,
    /// What tokens pin.
    root_hash: String,
    /// The newest change.
    revision: String,
    /// The policy in force.
    policy_revision: String,
    policy_hash: String,
    manifest: u64,
    revocations: String,
    /// End of the issuing certificate: `hedgerow-control issuer renew` before that.
    issuer_not_after_secs: u64,
    enrolled: usize,
    connected: usize,
    /// How many connected devices enforce everything they were told.
    verified: usize,
    quarantined: usize,
    flagged: usize,
    devices: Vec<DeviceStatus>,
}

/// Which events.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichEvents {
    /// Those after this sequence number; the newest unless given.
    after: Option<u64>,
    /// At most so many; 100 unless given.
    limit: Option<u64>,
}

/// An event.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EventView {
    seq: u64,
    at_ms: u64,
    kind: &'static str,
    /// `informational`, `low`, `medium` or `high`.
    severity: &'static str,
    device: Option<String>,
    /// `name.site` of the device.
    device_name: Option<String>,
    peer: Option<String>,
    peer_name: Option<String>,
    /// The device that reported it; absent when the controller saw it.
    reporter: Option<String>,
    details: BTreeMap<String, String>,
}

/// Events, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EventList {
    events: Vec<EventView>,
    /// To be given as `after` next time.
    last: u64,
}

/// Shows who is connected and how far each has come.
#[utoipa::path(get, path = "/api/v1/status", responses((status = 200, body = FleetStatus)))]
pub(super) async fn status(State(control): State<Shared>) -> Json<FleetStatus> {
    let snapshot = control.snapshot();
    let now = control.clock.now();
    let mut living: Vec<_> = snapshot.living().collect();
    living.sort_by(|a, b| (&a.site, &a.name).cmp(&(&b.site, &b.name)));
    let statuses = control.hub.statuses();
    let devices: Vec<DeviceStatus> = living
        .iter()
        .map(|d| {
            let s = statuses.get(&d.id);
            let progress = s.map(|s| &s.progress);
            let verified = progress.and_then(|p| p.verified);
            DeviceStatus {
                id: d.id.to_string(),
                name: d.name.to_string(),
                site: d.site.to_string(),
                state: state_name(d.state),
                flagged: d.flagged,
                connected: s.is_some_and(|s| s.live.is_some()),
                session_held: s.is_some_and(|s| s.held.is_some()),
                wanted_revision: progress.and_then(|p| p.wanted).map(|r| r.to_string()),
                verified_revision: verified.map(|v| v.0.to_string()),
                verified: s.is_some_and(crate::hub::Status::is_verified),
                verified_age_ms: verified.map(|v| millis(now.mono.since(v.2))),
                seen_age_ms: s
                    .filter(|s| s.seen.0 > 0)
                    .map(|s| millis(now.wall.since(s.seen))),
                rejected: progress
                    .and_then(|p| p.rejected.as_ref())
                    .map(|r| r.1.clone()),
            }
        })
        .collect();
    drop(statuses);
    Json(FleetStatus {
        trust_domain: snapshot.trust.trust_domain().to_string(),
        root_hash: snapshot.trust.genesis().to_string(),
        revision: snapshot.revision.to_string(),
        policy_revision: snapshot.policy.record.revision.to_string(),
        policy_hash: snapshot.policy.record.hash.to_string(),
        manifest: snapshot.trust.manifest().version,
        revocations: snapshot.standing.revocation_version().to_string(),
        issuer_not_after_secs: snapshot
            .trust
            .manifest()
            .issuers
            .iter()
            .filter(|i| i.site.is_none())
            .map(|i| i.not_after_secs)
            .max()
            .unwrap_or_default(),
        enrolled: devices.len(),
        connected: devices.iter().filter(|d| d.connected).count(),
        verified: devices.iter().filter(|d| d.connected && d.verified).count(),
        quarantined: devices
            .iter()
            .filter(|d| d.state == Some("quarantine"))
            .count(),
        flagged: devices.iter().filter(|d| d.flagged).count(),
        devices,
    })
}

fn millis(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Lists events, oldest first.
#[utoipa::path(get, path = "/api/v1/events", params(WhichEvents),
    responses((status = 200, body = EventList), (status = 503, body = ErrorBody)))]
pub(super) async fn events(
    State(control): State<Shared>,
    Params(which): Params<WhichEvents>,
) -> Result<Json<EventList>, Refusal> {
    let limit = which.limit.unwrap_or(100).min(EVENTS_MAX);
    let records = match which.after {
        Some(after) => control.store.events_after(after, limit).await?,
        None => control.store.events_newest(limit).await?,
    };
    let last = records.last().map_or(which.after.unwrap_or(0), |r| r.seq);
    let snapshot = control.snapshot();
    let name = |id| {
        snapshot
            .device(id)
            .map(|d| format!("{}.{}", d.name, d.site))
    };
    let view = |r: &EventRecord| EventView {
        seq: r.seq,
        at_ms: r.event.at_ms,
        kind: r.event.kind.as_str(),
        severity: match r.event.kind.severity() {
            Severity::Informational => "informational",
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
        },
        device: r.event.device.map(|d| d.to_string()),
        device_name: r.event.device.and_then(name),
        peer: r.event.peer.map(|d| d.to_string()),
        peer_name: r.event.peer.and_then(name),
        reporter: r.reporter.map(|d| d.to_string()),
        details: r.event.details.clone(),
    };
    Ok(Json(EventList {
        events: records.iter().map(view).collect(),
        last,
    }))
}

/// Shows counters and gauges in the text format of Prometheus.
#[utoipa::path(get, path = "/api/v1/metrics", responses((status = 200, body = String)))]
pub(super) async fn metrics(State(control): State<Shared>) -> String {
    let snapshot = control.snapshot();
    let c = &control.hub.counters;
    let known = snapshot.devices_known() as u64;
    let rows = [
        (
            "hedgerow_agents_connected",
            "gauge",
            control.hub.connected() as u64,
        ),
        ("hedgerow_devices_known", "gauge", known),
        (
            "hedgerow_revision_number",
            "gauge",
            snapshot.revision.number,
        ),
        (
            "hedgerow_connections_accepted_total",
            "counter",
            Counters::get(&c.accepted),
        ),
        (
            "hedgerow_connections_shed_total",
            "counter",
            Counters::get(&c.shed),
        ),
        (
            "hedgerow_handshakes_failed_total",
            "counter",
            Counters::get(&c.handshakes_failed),
        ),
        (
            "hedgerow_agents_busy_total",
            "counter",
            Counters::get(&c.busy),
        ),
        (
            "hedgerow_messages_refused_total",
            "counter",
            Counters::get(&c.refused),
        ),
        (
            "hedgerow_updates_total",
            "counter",
            Counters::get(&c.updates),
        ),
        (
            "hedgerow_certificates_issued_total",
            "counter",
            Counters::get(&c.issued),
        ),
        (
            "hedgerow_events_dropped_total",
            "counter",
            Counters::get(&c.events_dropped),
        ),
    ];
    rows.iter()
        .map(|(name, kind, value)| format!("# TYPE {name} {kind}\n{name} {value}\n"))
        .collect()
}
