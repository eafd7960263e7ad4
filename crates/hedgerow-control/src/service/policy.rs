//! Policy: checked, tested, planned, applied, explained.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::{DeviceId, Revision};
use hedgerow_model::program::{Class, Program};
use hedgerow_model::{Mono, Wall};
use hedgerow_policy::{Plan, Policy, World};
use serde_json::json;

use crate::control::{Controller, revise, set_members};
use crate::hub::dirty;
use crate::refusal::{Kind, Refusal};
use crate::rules::{self, InForce};
use crate::service::live;
use crate::sign::Signer;
use crate::snapshot::Snapshot;
use crate::store::policies::PolicyRecord;

/// A change that takes away more of a device's rules than this, in percent, …
const LOSS_PERCENT_MAX: usize = 20;
/// … and more than this many, needs a confirmation.
const LOSS_RULES_MAX: usize = 10;

/// Whether an operator has seen what a large change takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confirmation {
    /// Not yet.
    None,
    /// Yes.
    Given,
}

/// What one device did with a revision.
#[derive(Debug, Clone)]
pub(crate) struct Applied {
    /// The device.
    pub(crate) device: DeviceId,
    /// From the decision to the acknowledgement that it is in hand, in milliseconds.
    pub(crate) received_ms: Option<f64>,
    /// From the decision to the kernel's verification, in milliseconds.
    pub(crate) verified_ms: Option<f64>,
    /// Why it refused.
    pub(crate) rejected: Option<String>,
}

/// What became of a revision within the time that was waited.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rollout {
    /// Device by device, those connected at the decision.
    pub(crate) devices: Vec<Applied>,
    /// The last verification.
    pub(crate) last_verified_ms: Option<f64>,
    /// How many have not verified it.
    pub(crate) waiting: usize,
}

/// A change that was planned and not made.
#[derive(Debug)]
pub(crate) struct Draft {
    /// What it would do.
    pub(crate) plan: Plan,
    /// Why it needs a confirmation.
    pub(crate) losses: Vec<String>,
    /// Devices whose sessions it may cut.
    pub(crate) losing: BTreeSet<DeviceId>,
    /// The policy.
    pub(crate) policy: Policy,
    /// Everything that it was planned against.
    pub(crate) snapshot: std::sync::Arc<Snapshot>,
}

/// Returns every living device as policy sees it.
pub(crate) fn world(snapshot: &Snapshot) -> World {
    World::new(snapshot.living().map(|d| snapshot.facts(d)))
}

impl Controller {
    /// Says what a policy would change.
    pub(crate) fn plan_policy(&self, source: &str) -> Result<Draft, Refusal> {
        let (policy, _warnings) = rules::read(source, "policy.yaml")?;
        let snapshot = self.snapshot();
        let world = world(&snapshot);
        let old = &snapshot.policy.policy;
        let plan = hedgerow_policy::plan(Some(old), &policy, &world);
        let losses = losses(&snapshot, old, &policy)?;
        let losing = match plan.lost.is_empty() {
            true => BTreeSet::new(),
            false => live::affected(old, &policy, &world),
        };
        Ok(Draft {
            plan,
            losses,
            losing,
            policy,
            snapshot,
        })
    }

    /// Puts a policy into force. With any error the running revision stays.
    pub(crate) async fn apply_policy(
        &self,
        actor: &str,
        source: &str,
        note: &str,
        confirmation: Confirmation,
    ) -> Result<(PolicyRecord, Plan, Mono), Refusal> {
        let (policy, _warnings) = rules::read(source, "policy.yaml")?;
        let mut draft = self.draft().await;
        // Connections are served on other threads meanwhile.
        let plan = tokio::task::block_in_place(|| judge(&draft.next, &policy, confirmation))?;
        let now = self.clock.now();
        let authority = self.authority();
        let trust = draft.next.trust.clone();
        let signer = Signer {
            authority: &authority,
            trust: &trust,
        };
        let mut change = self.store.change(actor, "policy", note, now.wall).await?;
        let source = source.to_owned();
        let record = revise(&mut change, signer, source, actor, note, now.wall).await?;
        let in_force = InForce::new(record.clone(), policy);
        // Compiles and signs every class now: what cannot be compiled is never in force.
        tokio::task::block_in_place(|| {
            let world = world(&draft.next);
            let mut kinds = world.kinds(&[&in_force.policy]).into_iter();
            kinds.try_for_each(|kind| in_force.program(kind.first, signer).map(drop))
        })?;
        set_members(&mut change.tx, draft.next.members.max(change.revision)).await?;
        let revision = change.commit().await?;
        draft.next.policy = std::sync::Arc::new(in_force);
        draft.next.members = draft.next.members.max(revision);
        self.publish(draft, revision);
        let decided = self.clock.now().mono;
        self.hub.raise_all(dirty::PROGRAM | dirty::NAMES);
        self.event(
            Event::new(now.wall, EventKind::PolicyAccepted)
                .detail("revision", revision)
                .detail("hash", record.hash)
                .detail("by", actor)
                .detail("note", note),
        );
        Ok((record, plan, decided))
    }

    /// Puts the policy of an earlier revision into force again, as a new revision.
    pub(crate) async fn rollback_policy(
        &self,
        actor: &str,
        to: Option<Revision>,
        confirmation: Confirmation,
    ) -> Result<(PolicyRecord, Plan, Mono), Refusal> {
        let record = match to {
            Some(revision) => self.store.policy_at(revision).await?,
            None => self.store.policy_history(2).await?.into_iter().nth(1),
        };
        let record = record.ok_or_else(|| {
            Refusal::new(
                Kind::NotFound,
                "revision_not_found",
                "there is no such policy revision",
                "`hedgerow policy history` shows them",
            )
        })?;
        if record.source.is_empty() {
            return Err(Refusal::new(
                Kind::NotFound,
                "revision_text_gone",
                format!(
                    "the text of revision {} is not kept any more",
                    record.revision
                ),
                "apply the file from your own records; the revision's hash tells whether it is the one",
            ));
        }
        let note = format!("back to {}", record.revision);
        self.apply_policy(actor, &record.source, &note, confirmation)
            .await
    }

    /// Waits until every connected agent has `revision` in its kernel, or refused it, or the time is
    /// over.
    pub(crate) async fn await_rollout(
        &self,
        revision: Revision,
        decided: Mono,
        within: Duration,
    ) -> Rollout {
        let mut progress = self.hub.watch_progress();
        let end = self.clock.instant(decided + within);
        while self.are_waiting(revision) {
            if tokio::time::timeout_at(end, progress.changed())
                .await
                .is_err()
            {
                break;
            }
            // News come in bursts; looking at every device once per burst is enough.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.rollout(revision, decided)
    }

    fn are_waiting(&self, revision: Revision) -> bool {
        self.hub.statuses().values().any(|s| {
            let p = &s.progress;
            let verified = p.verified.is_some_and(|v| v.0 >= revision);
            let rejected = p.rejected.as_ref().is_some_and(|r| r.0 >= revision);
            s.live.is_some() && !verified && !rejected
        })
    }

    fn rollout(&self, revision: Revision, decided: Mono) -> Rollout {
        let ms = |at: Mono| at.since(decided).as_secs_f64() * 1000.0;
        let mut rollout = Rollout::default();
        for (device, status) in self.hub.statuses().iter() {
            if status.live.is_none() {
                continue;
            }
            let p = &status.progress;
            let verified = p.verified.filter(|v| v.0 >= revision);
            let rejected = p.rejected.as_ref().filter(|r| r.0 >= revision);
            if verified.is_none() && rejected.is_none() {
                rollout.waiting += 1;
            }
            let applied = Applied {
                device: *device,
                received_ms: p.received.filter(|r| r.0 >= revision).map(|r| ms(r.1)),
                verified_ms: verified.map(|v| ms(v.2)),
                rejected: rejected.map(|r| r.1.clone()),
            };
            rollout.last_verified_ms = match (rollout.last_verified_ms, applied.verified_ms) {
                (Some(a), Some(b)) => Some(f64::max(a, b)),
                (a, b) => a.or(b),
            };
            rollout.devices.push(applied);
        }
        rollout
    }

    /// Says that the names that devices may know have changed; they are told a little later, many
    /// changes at once.
    pub(crate) fn names_changed(&self) {
        self.names_dirty
            .store(true, std::sync::atomic::Ordering::Release);
    }

    /// Tells every session about changed names, if there are any. Returns how many there are to tell.
    pub(crate) fn tell_names(&self) -> usize {
        if self
            .names_dirty
            .swap(false, std::sync::atomic::Ordering::AcqRel)
        {
            self.hub.raise_all(dirty::NAMES);
        }
        self.hub.connected()
    }
}

/// Plans a change and refuses it if it must not be made.
fn judge(
    snapshot: &Snapshot,
    policy: &Policy,
    confirmation: Confirmation,
) -> Result<Plan, Refusal> {
    let old = &snapshot.policy.policy;
    let plan = hedgerow_policy::plan(Some(old), policy, &world(snapshot));
    refuse_plan(&plan)?;
    if confirmation == Confirmation::None {
        let losses = losses(snapshot, old, policy)?;
        if !losses.is_empty() {
            return Err(needs_confirmation(&losses));
        }
    }
    Ok(plan)
}

fn refuse_plan(plan: &Plan) -> Result<(), Refusal> {
    if !plan.is_refused() {
        return Ok(());
    }
    let failed = plan.tests.iter().filter(|t| !t.passed);
    let mut details: Vec<_> = failed
        .map(|t| json!({"line": t.line, "test": t.title, "detail": t.detail}))
        .collect();
    details.extend(plan.too_large.iter().map(|t| json!({"detail": t})));
    Err(Refusal::new(
        Kind::Invalid,
        "policy_test_failed",
        format!(
            "{} tests of the policy fail or programs are too large; the running revision is unchanged",
            details.len()
        ),
        "change the rules or the tests",
    )
    .with_details(details))
}

fn needs_confirmation(losses: &[String]) -> Refusal {
    Refusal::new(
        Kind::NeedsConfirmation,
        "confirmation_needed",
        format!(
            "this takes more than {LOSS_PERCENT_MAX} % of their rules from {} kinds of device",
            losses.len()
        ),
        "look at the list, then apply again with confirm=true",
    )
    .with_details(losses.iter().map(|l| json!({"detail": l})).collect())
}

/// Returns, class by class, which devices would lose a large part of their rules.
fn losses(snapshot: &Snapshot, old: &Policy, new: &Policy) -> Result<Vec<String>, Refusal> {
    let mut classes: BTreeMap<(Class, Class), (String, usize, Program, Program)> = BTreeMap::new();
    for kind in world(snapshot).kinds(&[old, new]) {
        let facts = kind.first;
        let class = (
            hedgerow_policy::class_of(old, facts),
            hedgerow_policy::class_of(new, facts),
        );
        if let Some(known) = classes.get_mut(&class) {
            known.1 += kind.count;
            continue;
        }
        let too_large = |e: hedgerow_policy::TooLarge| {
            Refusal::invalid(format!("a program is too large: {e}"), "use fewer rules")
        };
        let before = hedgerow_policy::compile(old, facts).map_err(too_large)?;
        let after = hedgerow_policy::compile(new, facts).map_err(too_large)?;
        let name = format!("{}.{}", facts.name, facts.site);
        classes.insert(class, (name, kind.count, before, after));
    }
    let mut out = Vec::new();
    for (first, count, before, after) in classes.into_values() {
        let kept: BTreeSet<_> = after.rules.iter().map(key).collect();
        let lost = before
            .rules
            .iter()
            .filter(|r| !kept.contains(&key(r)))
            .count();
        if lost > LOSS_RULES_MAX && lost * 100 > before.rules.len() * LOSS_PERCENT_MAX {
            out.push(format!(
                "{first} and {} others would lose {lost} of {} rules",
                count - 1,
                before.rules.len()
            ));
        }
    }
    Ok(out)
}

type RuleKey<'a> = (&'a str, hedgerow_model::packet::Direction, u8);

fn key(rule: &hedgerow_model::program::ProgramRule) -> RuleKey<'_> {
    (rule.id.as_str(), rule.direction, rule.tier)
}

/// Returns the time that a question is about.
pub(crate) fn moment(text: Option<&str>, now: Wall) -> Result<Wall, Refusal> {
    let Some(text) = text else { return Ok(now) };
    let bad = || {
        Refusal::invalid(
            format!("`{text}` is not a time"),
            "write it like 2026-03-30T07:59+02:00",
        )
    };
    let at: jiff::Timestamp = text.parse().map_err(|_e| bad())?;
    u64::try_from(at.as_millisecond())
        .map(Wall)
        .map_err(|_e| bad())
}
