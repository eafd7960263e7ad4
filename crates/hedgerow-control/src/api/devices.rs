//! Devices.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Extension, Path, State};
use hedgerow_identity::fingerprint::fingerprint_of;
use hedgerow_model::program::DeviceState;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Body, Params};
use super::sites::site_name;
use super::tokens::{device_name, label_map, labels_of};
use super::{Caller, ErrorBody, Shared};
use crate::control::Controller;
use crate::hub::dirty;
use crate::refusal::Refusal;
use crate::service::devices::{Approval, Ending};
use crate::store::devices::DeviceRecord;
use crate::store::pending::PendingRecord;

/// Overlay addresses.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AddressView {
    v6: String,
    v4: Option<String>,
}

/// A device.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeviceView {
    id: String,
    name: String,
    site: String,
    labels: BTreeMap<String, String>,
    addresses: AddressView,
    /// `onboarding`, `quarantine`, `held`, or absent: in normal service.
    state: Option<&'static str>,
    /// Its key was seen twice.
    flagged: bool,
    /// Whether its agent is connected.
    connected: bool,
    /// A later session with the same identity is held.
    session_held: bool,
    /// Where its agent connects from.
    source: Option<String>,
    connected_since_ms: Option<u64>,
    seen_ms: Option<u64>,
    agent_version: Option<String>,
    /// What it was last told to hold.
    wanted_revision: Option<String>,
    /// What it has in hand.
    received_revision: Option<String>,
    /// What stands in its kernel.
    verified_revision: Option<String>,
    verified_ms: Option<u64>,
    /// Whether its kernel enforces everything it was last told.
    verified: bool,
    /// What it refused last, and why.
    rejected: Option<String>,
    /// Where the mesh may reach it.
    endpoints: Vec<String>,
    epoch: u64,
    not_after_secs: u64,
    fingerprint: String,
    enrolled_ms: u64,
    /// `revoked`, `removed` or `left`; absent while it belongs to the fleet.
    ended: Option<String>,
}

/// Devices.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeviceList {
    devices: Vec<DeviceView>,
}

/// A device that waits for approval.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PendingView {
    /// To be compared with `hedgerow-agent fingerprint` on the device.
    fingerprint: String,
    hostname: String,
    source: String,
    site: Option<String>,
    labels: BTreeMap<String, String>,
    name: Option<String>,
    /// `waiting`, `approved` or `rejected`.
    decision: &'static str,
    device: Option<String>,
    created_ms: u64,
    expires_ms: u64,
}

/// Devices that wait for approval.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PendingList {
    pending: Vec<PendingView>,
}

/// Which devices to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Of this site only.
    site: Option<String>,
    /// Also those that were revoked, removed, or left.
    #[serde(default)]
    ended: bool,
}

/// New labels; they replace the old ones.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewLabels {
    labels: BTreeMap<String, String>,
}

/// Why.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Reason {
    reason: String,
}

/// What an approved device shall be.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ApprovalBody {
    /// Needed when the device came without a token.
    site: Option<String>,
    /// In place of the token's.
    labels: Option<BTreeMap<String, String>>,
    /// In place of the device's own wish.
    name: Option<String>,
}

pub(super) fn state_name(state: Option<DeviceState>) -> Option<&'static str> {
    state.map(DeviceState::as_str)
}

fn view(control: &Controller, d: &DeviceRecord) -> DeviceView {
    let status = control.hub.statuses().get(&d.id).cloned();
    let status = status.unwrap_or_default();
    let p = &status.progress;
    DeviceView {
        id: d.id.to_string(),
        name: d.name.to_string(),
        site: d.site.to_string(),
        labels: label_map(&d.labels),
        addresses: AddressView {
            v6: d.addresses.v6.to_string(),
            v4: d.addresses.v4.map(|a| a.to_string()),
        },
        state: state_name(d.state),
        flagged: d.flagged,
        connected: status.live.is_some(),
        session_held: status.held.is_some(),
        source: status.live.as_ref().map(|l| l.source.clone()),
        connected_since_ms: status.live.as_ref().map(|l| l.since.0),
        seen_ms: Some(status.seen.0).filter(|ms| *ms > 0),
        agent_version: Some(status.agent_version.clone()).filter(|v| !v.is_empty()),
        wanted_revision: p.wanted.map(|r| r.to_string()),
        received_revision: p.received.map(|r| r.0.to_string()),
        verified_revision: p.verified.map(|v| v.0.to_string()),
        verified_ms: p.verified.map(|v| v.3.0),
        verified: status.is_verified(),
        rejected: p.rejected.as_ref().map(|r| r.1.clone()),
        endpoints: status.endpoints.iter().map(ToString::to_string).collect(),
        epoch: d.epoch,
        not_after_secs: d.not_after_secs,
        fingerprint: fingerprint_of(&d.key_hash),
        enrolled_ms: d.enrolled.0,
        ended: d.ended.as_ref().map(|e| e.how.clone()),
    }
}

fn pending_view(p: &PendingRecord) -> PendingView {
    PendingView {
        fingerprint: p.fingerprint.clone(),
        hostname: p.hostname.clone(),
        source: p.source.clone(),
        site: p.site.as_ref().map(ToString::to_string),
        labels: label_map(&p.labels),
        name: p.name.as_ref().map(ToString::to_string),
        decision: p.decision.as_str(),
        device: p.device.map(|d| d.to_string()),
        created_ms: p.created.0,
        expires_ms: p.expires.0,
    }
}

/// Lists devices.
#[utoipa::path(get, path = "/api/v1/devices", params(Which),
    responses((status = 200, body = DeviceList)))]
pub(super) async fn list(
    State(control): State<Shared>,
    Params(which): Params<Which>,
) -> Json<DeviceList> {
    let snapshot = control.snapshot();
    let mut devices: Vec<_> = snapshot
        .devices()
        .filter(|d| which.ended || d.ended.is_none())
        .filter(|d| which.site.as_deref().is_none_or(|s| d.site.as_str() == s))
        .collect();
    devices.sort_by(|a, b| (&a.site, &a.name).cmp(&(&b.site, &b.name)));
    Json(DeviceList {
        devices: devices.into_iter().map(|d| view(&control, d)).collect(),
    })
}

/// Lists devices that wait for approval.
#[utoipa::path(get, path = "/api/v1/pending", responses((status = 200, body = PendingList)))]
pub(super) async fn pending(State(control): State<Shared>) -> Result<Json<PendingList>, Refusal> {
    let now = control.clock.wall();
    let all = control.store.pending().await?;
    let waiting = all.iter().filter(|p| p.expires > now);
    Ok(Json(PendingList {
        pending: waiting.map(pending_view).collect(),
    }))
}

/// Shows a device, by id, `name.site`, or a name that only one device has.
#[utoipa::path(get, path = "/api/v1/devices/{device}", params(("device" = String, Path)),
    responses((status = 200, body = DeviceView), (status = 404, body = ErrorBody)))]
pub(super) async fn show(
    State(control): State<Shared>,
    Path(device): Path<String>,
) -> Result<Json<DeviceView>, Refusal> {
    let snapshot = control.snapshot();
    let record = snapshot
        .find(&device)
        .ok_or_else(|| Refusal::no_device(&device))?;
    Ok(Json(view(&control, record)))
}

/// Gives a device other labels.
#[utoipa::path(put, path = "/api/v1/devices/{device}/labels", params(("device" = String, Path)),
    request_body = NewLabels,
    responses((status = 200, body = DeviceView), (status = 404, body = ErrorBody)))]
pub(super) async fn label(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
    Body(new): Body<NewLabels>,
) -> Result<Json<DeviceView>, Refusal> {
    let labels = labels_of(&new.labels)?;
    let record = control.relabel(caller.name(), &device, labels).await?;
    Ok(Json(view(&control, &record)))
}

/// Contains a device.
#[utoipa::path(post, path = "/api/v1/devices/{device}/quarantine",
    params(("device" = String, Path)), request_body = Reason,
    responses((status = 200, body = DeviceView), (status = 404, body = ErrorBody)))]
pub(super) async fn quarantine(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
    Body(why): Body<Reason>,
) -> Result<Json<DeviceView>, Refusal> {
    let state = Some(DeviceState::Quarantine);
    let (record, _) = control
        .set_state(caller.name(), &device, state, &why.reason)
        .await?;
    Ok(Json(view(&control, &record)))
}

/// Takes a device back into normal service, and lets a held session go on.
#[utoipa::path(post, path = "/api/v1/devices/{device}/release",
    params(("device" = String, Path)), request_body = Reason,
    responses((status = 200, body = DeviceView), (status = 404, body = ErrorBody)))]
pub(super) async fn release(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
    Body(why): Body<Reason>,
) -> Result<Json<DeviceView>, Refusal> {
    let (record, _) = control
        .set_state(caller.name(), &device, None, &why.reason)
        .await?;
    Ok(Json(view(&control, &record)))
}

/// Has a connected device connect again.
#[utoipa::path(post, path = "/api/v1/devices/{device}/reconnect",
    params(("device" = String, Path)),
    responses((status = 200, body = DeviceView), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub(super) async fn reconnect(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
) -> Result<Json<DeviceView>, Refusal> {
    let record = control.order(caller.name(), &device, dirty::RECONNECT)?;
    Ok(Json(view(&control, &record)))
}

/// Has a connected device make new tunnel keys at once.
#[utoipa::path(post, path = "/api/v1/devices/{device}/rotate-keys",
    params(("device" = String, Path)),
    responses((status = 200, body = DeviceView), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub(super) async fn rotate_keys(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
) -> Result<Json<DeviceView>, Refusal> {
    let record = control.order(caller.name(), &device, dirty::ROTATE_KEYS)?;
    Ok(Json(view(&control, &record)))
}

/// Revokes a device: nobody believes it any more.
#[utoipa::path(post, path = "/api/v1/devices/{device}/revoke",
    params(("device" = String, Path)), request_body = Reason,
    responses((status = 200, body = DeviceView), (status = 404, body = ErrorBody)))]
pub(super) async fn revoke(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
    Body(why): Body<Reason>,
) -> Result<Json<DeviceView>, Refusal> {
    let (record, _) = control
        .end_device(caller.name(), &device, Ending::Revoked, &why.reason)
        .await?;
    Ok(Json(view(&control, &record)))
}

/// Takes a device out of the fleet.
#[utoipa::path(delete, path = "/api/v1/devices/{device}", params(("device" = String, Path)),
    responses((status = 200, body = DeviceView), (status = 404, body = ErrorBody)))]
pub(super) async fn remove(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
) -> Result<Json<DeviceView>, Refusal> {
    let (record, _) = control
        .end_device(caller.name(), &device, Ending::Removed, "")
        .await?;
    Ok(Json(view(&control, &record)))
}

/// Lets a waiting device in, by fingerprint, its beginning, or hostname.
#[utoipa::path(post, path = "/api/v1/devices/{device}/approve",
    params(("device" = String, Path)), request_body = ApprovalBody,
    responses((status = 200, body = DeviceView), (status = 404, body = ErrorBody)))]
pub(super) async fn approve(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
    Body(body): Body<ApprovalBody>,
) -> Result<Json<DeviceView>, Refusal> {
    let approval = Approval {
        site: body.site.as_deref().map(site_name).transpose()?,
        labels: body.labels.as_ref().map(labels_of).transpose()?,
        name: body.name.as_deref().map(device_name).transpose()?,
    };
    let record = control.approve(caller.name(), &device, approval).await?;
    Ok(Json(view(&control, &record)))
}

/// Keeps a waiting device out.
#[utoipa::path(post, path = "/api/v1/devices/{device}/reject", params(("device" = String, Path)),
    responses((status = 200), (status = 404, body = ErrorBody)))]
pub(super) async fn reject(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(device): Path<String>,
) -> Result<Json<serde_json::Value>, Refusal> {
    control.reject(caller.name(), &device).await?;
    Ok(Json(serde_json::json!({"decision": "rejected"})))
}
