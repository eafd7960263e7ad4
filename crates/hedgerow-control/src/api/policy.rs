//! Policy.

use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use hedgerow_model::id::{DeviceId, Revision};
use hedgerow_model::service::{Ports, Protocol};
use hedgerow_policy::{Decision, End, Flow, Plan, Ruling};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::extract::{Body, Params, Text};
use super::{Caller, ErrorBody, Shared};
use crate::control::Controller;
use crate::refusal::{Kind, Refusal};
use crate::rules;
use crate::service::live::Live;
use crate::service::policy::{Confirmation, moment, world};
use crate::snapshot::Snapshot;
use crate::store::policies::PolicyRecord;

/// Longest wait for a rollout.
const WAIT_SECS_MAX: u64 = 300;
/// Most rows of one reach matrix.
const REACH_ROWS_MAX: usize = 200_000;

/// A policy revision.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PolicyView {
    /// `timeline.number`.
    revision: String,
    hash: String,
    parent: Option<String>,
    author: String,
    note: String,
    at_ms: u64,
    /// The file; absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
}

/// Revisions, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct History {
    revisions: Vec<PolicyView>,
}

/// What was found in a file without errors.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Checked {
    /// Always true: errors are answered with 422.
    ok: bool,
    /// Warnings.
    findings: Vec<Value>,
}

/// What came of the tests.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tested {
    /// Whether all hold.
    ok: bool,
    passed: usize,
    failed: usize,
    tests: Vec<Value>,
}

/// What a policy would change.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Planned {
    /// Whether it may be applied.
    ok: bool,
    rules_added: Vec<String>,
    rules_removed: Vec<String>,
    rules_changed: Vec<String>,
    /// Who reaches more, by kind of device.
    gained: Vec<Value>,
    /// Who reaches less.
    lost: Vec<Value>,
    devices_affected: usize,
    programs: usize,
    rules_max: usize,
    tests: Vec<Value>,
    too_large: Vec<String>,
    /// What to know before; it does not keep the policy from being applied.
    warnings: Vec<String>,
    /// Why applying it needs a confirmation.
    needs_confirmation: Vec<String>,
    /// The sessions that it would cut now; absent once it was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<LiveSessions>,
}

/// What is known of the sessions that a policy would cut. Devices that lose reach and did not answer,
/// or were not asked, may have more.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LiveSessions {
    cut: Vec<CutSessions>,
    /// Kinds of sessions that are not listed, for there are too many.
    left_out: u64,
    devices_asked: usize,
    devices_answered: usize,
    /// Not connected, or too many.
    devices_not_asked: usize,
}

/// Sessions alike.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CutSessions {
    /// `name.site` of who began them.
    from: String,
    /// `name.site` of who answers.
    to: String,
    service: String,
    sessions: u32,
}

/// What became of an applied policy.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AppliedView {
    revision: String,
    hash: String,
    /// Devices that were connected.
    connected: usize,
    /// How many of them have verified it in their kernel.
    verified: usize,
    /// How many have not, within the time waited.
    waiting: usize,
    /// From the decision to the last verification, in milliseconds.
    last_verified_ms: Option<f64>,
    devices: Vec<AppliedDevice>,
    plan: Planned,
}

/// One device's part in that.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AppliedDevice {
    id: String,
    name: String,
    received_ms: Option<f64>,
    verified_ms: Option<f64>,
    rejected: Option<String>,
}

/// One line of the predicted matrix.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReachLine {
    /// `name.site` of who begins.
    from: String,
    /// `name.site` of who answers.
    to: String,
    service: String,
    /// Whether it comes about.
    passes: bool,
    /// `allow` or `deny` at the initiator's end.
    sender: &'static str,
    /// `allow` or `deny` at the other end.
    receiver: &'static str,
    rule: String,
    limit_bytes_per_second: Option<u64>,
}

/// The predicted matrix.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReachMatrix {
    revision: String,
    rows: Vec<ReachLine>,
}

/// Which revision.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichRevision {
    /// `timeline.number`; the one in force unless given.
    revision: Option<String>,
}

/// How much history.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct HowMany {
    /// At most so many; 50 unless given.
    limit: Option<u64>,
}

/// How to apply.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct How {
    /// Seconds to wait until every connected agent has verified it.
    #[serde(default)]
    wait: u64,
    /// Set after looking at what a large change takes away.
    #[serde(default)]
    confirm: bool,
    /// Why, for the history.
    #[serde(default)]
    note: String,
}

/// Where to go back to.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Back {
    /// `timeline.number`; the one before unless given.
    revision: Option<String>,
}

/// One question.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    /// Device: id, `name.site` or name; `controller`; or an address.
    from: String,
    /// The same.
    to: String,
    /// A service of the policy, or `tcp/443`, `icmp-echo`.
    service: String,
    /// When, e.g. `2026-03-30T07:59+02:00`; now unless given.
    at: Option<String>,
}

/// Which part of the matrix.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichReach {
    /// Comma-separated; the policy's own services unless given.
    services: Option<String>,
    /// When; now unless given.
    at: Option<String>,
}

fn view(p: &PolicyRecord) -> PolicyView {
    PolicyView {
        revision: p.revision.to_string(),
        hash: p.hash.to_string(),
        parent: p.parent.map(|d| d.to_string()),
        author: p.author.clone(),
        note: p.note.clone(),
        at_ms: p.at.0,
        source: None,
    }
}

fn revision_of(text: &str) -> Result<Revision, Refusal> {
    let read = || {
        let (timeline, number) = text.split_once('.')?;
        Some(Revision {
            timeline: timeline.parse().ok()?,
            number: number.parse().ok()?,
        })
    };
    read().ok_or_else(|| {
        Refusal::invalid(
            format!("`{text}` is not a revision"),
            "write timeline.number, as `hedgerow policy history` shows it",
        )
    })
}

fn values<T: Serialize>(list: &[T]) -> Vec<Value> {
    list.iter()
        .map(|v| serde_json::to_value(v).unwrap_or_default())
        .collect()
}

fn plan_view(plan: &Plan, losses: Vec<String>) -> Planned {
    Planned {
        ok: !plan.is_refused(),
        rules_added: plan.rules_added.clone(),
        rules_removed: plan.rules_removed.clone(),
        rules_changed: plan.rules_changed.clone(),
        gained: values(&plan.gained),
        lost: values(&plan.lost),
        devices_affected: plan.devices_affected,
        programs: plan.programs,
        rules_max: plan.rules_max,
        tests: values(&plan.tests),
        too_large: plan.too_large.clone(),
        warnings: plan.warnings.clone(),
        needs_confirmation: losses,
        live: None,
    }
}

/// Runs policy work where it does not hold up connections.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Refusal::bug(format!("policy work ended early: {e}")))?
}

/// Shows a policy revision with its source.
#[utoipa::path(get, path = "/api/v1/policy", params(WhichRevision),
    responses((status = 200, body = PolicyView), (status = 404, body = ErrorBody)))]
pub(super) async fn show(
    State(control): State<Shared>,
    Params(which): Params<WhichRevision>,
) -> Result<Json<PolicyView>, Refusal> {
    let record = match which.revision {
        None => control.snapshot().policy.record.clone(),
        Some(text) => control
            .store
            .policy_at(revision_of(&text)?)
            .await?
            .ok_or_else(|| {
                Refusal::new(
                    Kind::NotFound,
                    "revision_not_found",
                    format!("there is no policy revision {text}"),
                    "`hedgerow policy history` shows them",
                )
            })?,
    };
    Ok(Json(PolicyView {
        source: Some(record.source.clone()),
        ..view(&record)
    }))
}

/// Lists policy revisions, newest first.
#[utoipa::path(get, path = "/api/v1/policy/history", params(HowMany),
    responses((status = 200, body = History)))]
pub(super) async fn history(
    State(control): State<Shared>,
    Params(many): Params<HowMany>,
) -> Result<Json<History>, Refusal> {
    let limit = many.limit.unwrap_or(50).min(1000);
    let records = control.store.policy_history(limit).await?;
    Ok(Json(History {
        revisions: records.iter().map(view).collect(),
    }))
}

/// Reads a policy and says everything that is wrong with it.
#[utoipa::path(post, path = "/api/v1/policy/check", request_body = String,
    responses((status = 200, body = Checked), (status = 422, body = ErrorBody)))]
pub(super) async fn check(Text(source): Text) -> Result<Json<Checked>, Refusal> {
    aside(move || {
        let (_, findings) = rules::read(&source, "policy.yaml")?;
        Ok(Json(Checked {
            ok: true,
            findings: findings.iter().map(rules::diagnostic).collect(),
        }))
    })
    .await
}

/// Runs a policy's tests against the fleet. Without a body: those of the policy in force.
#[utoipa::path(post, path = "/api/v1/policy/test", request_body = String,
    responses((status = 200, body = Tested), (status = 422, body = ErrorBody)))]
pub(super) async fn test(
    State(control): State<Shared>,
    Text(source): Text,
) -> Result<Json<Tested>, Refusal> {
    aside(move || {
        let snapshot = control.snapshot();
        let results = if source.is_empty() {
            hedgerow_policy::test(&snapshot.policy.policy, &world(&snapshot))
        } else {
            let (policy, _) = rules::read(&source, "policy.yaml")?;
            hedgerow_policy::test(&policy, &world(&snapshot))
        };
        let passed = results.iter().filter(|t| t.passed).count();
        Ok(Json(Tested {
            ok: passed == results.len(),
            passed,
            failed: results.len() - passed,
            tests: values(&results),
        }))
    })
    .await
}

/// Says what a policy would change.
#[utoipa::path(post, path = "/api/v1/policy/plan", request_body = String,
    responses((status = 200, body = Planned), (status = 422, body = ErrorBody)))]
pub(super) async fn plan(
    State(control): State<Shared>,
    Text(source): Text,
) -> Result<Json<Planned>, Refusal> {
    let planner = control.clone();
    let draft = aside(move || planner.plan_policy(&source)).await?;
    let mut view = plan_view(&draft.plan, draft.losses);
    let snapshot = draft.snapshot.clone();
    let live = control.live_sessions(draft.snapshot, draft.policy, draft.losing);
    view.live = Some(live_view(&snapshot, &live.await));
    Ok(Json(view))
}

fn live_view(snapshot: &Snapshot, live: &Live) -> LiveSessions {
    let name = |end: End| match end {
        End::Device(id) => full_name(snapshot, id),
        End::Address(address) => address.to_string(),
        End::Controller => "controller".to_owned(),
    };
    let cut = live.cut.iter().map(|cut| CutSessions {
        from: name(cut.flow.from),
        to: name(cut.flow.to),
        service: match cut.flow.protocol {
            Protocol::IcmpEcho => cut.flow.protocol.to_string(),
            Protocol::Tcp | Protocol::Udp => format!("{}/{}", cut.flow.protocol, cut.flow.port),
        },
        sessions: cut.count,
    });
    LiveSessions {
        cut: cut.collect(),
        left_out: live.left_out,
        devices_asked: live.asked,
        devices_answered: live.answered,
        devices_not_asked: live.not_asked,
    }
}

/// Puts a policy into force.
#[utoipa::path(post, path = "/api/v1/policy/apply", params(How), request_body = String,
    responses((status = 200, body = AppliedView), (status = 422, body = ErrorBody),
        (status = 428, body = ErrorBody)))]
pub(super) async fn apply(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Params(how): Params<How>,
    Text(source): Text,
) -> Result<Json<AppliedView>, Refusal> {
    let done = control
        .apply_policy(caller.name(), &source, &how.note, confirmation(&how))
        .await?;
    Ok(Json(rollout(&control, done, how.wait).await))
}

/// Goes back to an earlier policy, as a new revision.
#[utoipa::path(post, path = "/api/v1/policy/rollback", params(How), request_body = Back,
    responses((status = 200, body = AppliedView), (status = 404, body = ErrorBody),
        (status = 428, body = ErrorBody)))]
pub(super) async fn rollback(
    State(control): State<Shared>,
    Extension(caller): Extension<Caller>,
    Params(how): Params<How>,
    Body(back): Body<Back>,
) -> Result<Json<AppliedView>, Refusal> {
    let to = back.revision.as_deref().map(revision_of).transpose()?;
    let done = control
        .rollback_policy(caller.name(), to, confirmation(&how))
        .await?;
    Ok(Json(rollout(&control, done, how.wait).await))
}

fn confirmation(how: &How) -> Confirmation {
    if how.confirm {
        Confirmation::Given
    } else {
        Confirmation::None
    }
}

async fn rollout(
    control: &Controller,
    (record, plan, decided): (PolicyRecord, Plan, hedgerow_model::Mono),
    wait: u64,
) -> AppliedView {
    let within = Duration::from_secs(wait.min(WAIT_SECS_MAX));
    let rollout = control
        .await_rollout(record.revision, decided, within)
        .await;
    let snapshot = control.snapshot();
    let devices = rollout.devices.iter().map(|d| AppliedDevice {
        id: d.device.to_string(),
        name: full_name(&snapshot, d.device),
        received_ms: d.received_ms,
        verified_ms: d.verified_ms,
        rejected: d.rejected.clone(),
    });
    AppliedView {
        revision: record.revision.to_string(),
        hash: record.hash.to_string(),
        connected: rollout.devices.len(),
        verified: rollout
            .devices
            .iter()
            .filter(|d| d.verified_ms.is_some())
            .count(),
        waiting: rollout.waiting,
        last_verified_ms: rollout.last_verified_ms,
        devices: devices.collect(),
        plan: plan_view(&plan, Vec::new()),
    }
}

fn full_name(snapshot: &Snapshot, id: DeviceId) -> String {
    snapshot
        .device(id)
        .map_or_else(|| id.to_string(), |d| format!("{}.{}", d.name, d.site))
}

fn end_of(snapshot: &Snapshot, text: &str) -> Result<End, Refusal> {
    if matches!(text, "controller" | "builtin/controller") {
        return Ok(End::Controller);
    }
    if let Ok(address) = text.parse() {
        let query = hedgerow_model::statement::PeerQuery::Address(
            hedgerow_model::address::Overlay(address),
        );
        return Ok(snapshot
            .resolve(&query)
            .map_or(End::Address(address), |d| End::Device(d.id)));
    }
    let found = snapshot.find(text).filter(|d| d.ended.is_none());
    found
        .map(|d| End::Device(d.id))
        .ok_or_else(|| Refusal::no_device(text))
}

fn ports_of(snapshot: &Snapshot, text: &str) -> Result<Vec<Ports>, Refusal> {
    snapshot.policy.policy.service(text).ok_or_else(|| {
        Refusal::invalid(
            format!("`{text}` is not a service"),
            "name a service of the policy, or write tcp/443, udp/53 or icmp-echo",
        )
    })
}

/// Says why a flow would pass or not, at each end.
#[utoipa::path(get, path = "/api/v1/explain", params(Question),
    responses((status = 200), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub(super) async fn explain(
    State(control): State<Shared>,
    Params(q): Params<Question>,
) -> Result<Json<Value>, Refusal> {
    let snapshot = control.snapshot();
    let now = control.clock.now();
    let at = moment(q.at.as_deref(), now.wall)?;
    let trusted = now.wall_is_trusted || q.at.is_some();
    let (from, to) = (end_of(&snapshot, &q.from)?, end_of(&snapshot, &q.to)?);
    let world = world(&snapshot);
    let mut explanations = Vec::new();
    for ports in ports_of(&snapshot, &q.service)? {
        let flow = Flow {
            from,
            to,
            protocol: ports.protocol,
            port: ports.first,
        };
        let policy = &snapshot.policy.policy;
        let explanation = hedgerow_policy::explain(policy, &world, &flow, at, trusted);
        let mut value = serde_json::to_value(&explanation).unwrap_or_default();
        if let Some(map) = value.as_object_mut() {
            map.insert("text".to_owned(), explanation.to_string().into());
        }
        explanations.push(value);
    }
    Ok(Json(json!({
        "revision": snapshot.policy.record.revision.to_string(),
        "at_ms": at.0,
        "explanations": explanations,
    })))
}

/// Predicts who reaches whom, for every pair of devices.
#[utoipa::path(get, path = "/api/v1/reach", params(WhichReach),
    responses((status = 200, body = ReachMatrix), (status = 422, body = ErrorBody)))]
pub(super) async fn reach(
    State(control): State<Shared>,
    Params(which): Params<WhichReach>,
) -> Result<Json<ReachMatrix>, Refusal> {
    let snapshot = control.snapshot();
    let now = control.clock.now();
    let at = moment(which.at.as_deref(), now.wall)?;
    let services = services_of(&snapshot, which.services.as_deref())?;
    let living = snapshot.living().count();
    if living * living * services.len() > REACH_ROWS_MAX {
        return Err(Refusal::invalid(
            format!(
                "{living} devices and {} services make too many rows",
                services.len()
            ),
            "name fewer services, or ask `hedgerow explain` for one pair",
        ));
    }
    aside(move || {
        let trusted = now.wall_is_trusted || which.at.is_some();
        let ports: Vec<Ports> = services.iter().map(|s| s.1).collect();
        let world = world(&snapshot);
        let policy = &snapshot.policy.policy;
        let rows = hedgerow_policy::predict(policy, &world, &ports, at, trusted);
        let rows = rows.into_iter().map(|r| {
            let service = services.iter().find(|s| s.1 == r.service);
            ReachLine {
                from: full_name(&snapshot, r.from),
                to: full_name(&snapshot, r.to),
                service: service.map_or_else(|| r.service.to_string(), |s| s.0.clone()),
                passes: r.passes,
                sender: word(r.outcome.source.as_ref()),
                receiver: word(r.outcome.destination.as_ref()),
                rule: r.rule,
                limit_bytes_per_second: r.limit.map(|l| l.bytes_per_second),
            }
        });
        Ok(Json(ReachMatrix {
            revision: snapshot.policy.record.revision.to_string(),
            rows: rows.collect(),
        }))
    })
    .await
}

fn services_of(snapshot: &Snapshot, text: Option<&str>) -> Result<Vec<(String, Ports)>, Refusal> {
    let mut out = Vec::new();
    match text {
        Some(text) => {
            for name in text.split(',') {
                let ports = ports_of(snapshot, name.trim())?;
                out.extend(ports.into_iter().map(|p| (name.trim().to_owned(), p)));
            }
        }
        None => {
            for (name, ports) in snapshot.policy.policy.services() {
                out.extend(ports.iter().map(|p| (name.to_owned(), *p)));
            }
            out.push(("ping".to_owned(), Ports::ICMP_ECHO));
        }
    }
    Ok(out)
}

fn word(decision: Option<&Decision>) -> &'static str {
    match decision.map(|d| d.verdict) {
        Some(Ruling::Refuse) => "deny",
        Some(Ruling::Pass | Ruling::WouldRefuse) | None => "allow",
    }
}
