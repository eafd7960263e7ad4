//! The policy in force, with what was compiled from it so far.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hedgerow_model::id::{Labels, Revision, SiteName};
use hedgerow_model::program::{Attribute, Class, Program};
use hedgerow_model::resource::{Resource, ResourceKind};
use hedgerow_model::statement::{BundleHead, NameEntry};
use hedgerow_model::wire;
use hedgerow_policy::{Diagnostic, Facts, Policy, Severity};
use hedgerow_sync::controller::Offer;

use crate::names::{Asker, Directory, List};
use crate::refusal::{Kind, Refusal};
use crate::sign::Signer;
use crate::store::policies::PolicyRecord;

/// The policy that a controller begins with: nothing is granted, everything is enforced.
pub(crate) const FIRST_POLICY: &str = "\
apiVersion: hedgerow.policy/v1
kind: Policy
meta: { name: nothing-granted-yet }
defaults: { deny: both }
";

/// Most sets of labels whose program is remembered; when there are more, all are forgotten.
const LABELS_KNOWN_MAX: usize = 10_000;

/// A class's program, signed.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// Its number among those of the policy.
    number: usize,
    /// What it says.
    pub(crate) program: Program,
    /// What is sent.
    pub(crate) offer: Arc<Offer>,
}

/// The policy in force. Compiling is a pure function of it, so what is remembered here is only
/// saved work.
#[derive(Debug)]
pub(crate) struct InForce {
    /// What is stored of it.
    pub(crate) record: PolicyRecord,
    /// What it says.
    pub(crate) policy: Policy,
    programs: Mutex<Programs>,
    names: Directory,
}

/// What was compiled so far.
#[derive(Debug, Default)]
struct Programs {
    by_class: BTreeMap<Class, Arc<Compiled>>,
    /// The same, without the work of finding out the class.
    by_labels: BTreeMap<SiteName, BTreeMap<Labels, Arc<Compiled>>>,
    labels_known: usize,
}

impl Programs {
    fn of(&self, facts: &Facts) -> Option<Arc<Compiled>> {
        self.by_labels.get(&facts.site)?.get(&facts.labels).cloned()
    }

    fn remember(&mut self, facts: &Facts, compiled: &Arc<Compiled>) {
        let mut attributes = compiled.program.class.0.iter().map(|(a, _)| a);
        if attributes.any(|a| matches!(a, Attribute::Name | Attribute::Id)) {
            return;
        }
        if self.labels_known >= LABELS_KNOWN_MAX {
            self.by_labels.clear();
            self.labels_known = 0;
        }
        let of_site = self.by_labels.entry(facts.site.clone()).or_default();
        of_site.insert(facts.labels.clone(), compiled.clone());
        self.labels_known += 1;
    }
}

/// Reads a policy; any error refuses it with everything that was found.
pub(crate) fn read(source: &str, file: &str) -> Result<(Policy, Vec<Diagnostic>), Refusal> {
    let (policy, findings) = hedgerow_policy::parse(source, file);
    let errors = findings
        .iter()
        .filter(|d| d.severity == Severity::Error)
        .count();
    match policy {
        Some(policy) if errors == 0 => Ok((policy, findings)),
        _ => Err(Refusal::new(
            Kind::Invalid,
            "policy_invalid",
            format!("the policy has {errors} errors; the running revision is unchanged"),
            "mend them all; each says where it is and what to write",
        )
        .with_details(findings.iter().map(diagnostic).collect())),
    }
}

/// Returns a finding as the API shows it.
pub(crate) fn diagnostic(finding: &Diagnostic) -> serde_json::Value {
    let mut value = serde_json::to_value(finding).unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        map.insert("text".to_owned(), finding.to_string().into());
    }
    value
}

impl InForce {
    /// Returns the signed head: which revision is the newest, and what it hashes to.
    pub(crate) fn head(&self, signer: Signer<'_>) -> Result<Vec<u8>, Refusal> {
        signer.bundle_head(&BundleHead {
            revision: self.record.revision,
            hash: self.record.hash,
        })
    }

    /// Takes a policy that was read without errors.
    pub(crate) fn new(record: PolicyRecord, policy: Policy) -> Self {
        Self {
            record,
            policy,
            programs: Mutex::default(),
            names: Directory::default(),
        }
    }

    /// Returns the program of a device's class, compiled and signed once.
    pub(crate) fn program(
        &self,
        facts: &Facts,
        signer: Signer<'_>,
    ) -> Result<Arc<Compiled>, Refusal> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = programs.of(facts) {
            return Ok(known);
        }
        let class = hedgerow_policy::class_of(&self.policy, facts);
        if let Some(known) = programs.by_class.get(&class).cloned() {
            programs.remember(facts, &known);
            return Ok(known);
        }
        let program = hedgerow_policy::compile(&self.policy, facts)
            .map_err(|e| Refusal::bug(format!("the policy in force does not compile: {e}")))?;
        let revision = self.record.revision;
        let bytes = signer.program(revision, wire::encode(&program))?;
        let compiled = Arc::new(Compiled {
            number: programs.by_class.len(),
            program,
            offer: Offer::new(Resource {
                kind: ResourceKind::Program,
                version: revision,
                bytes,
            }),
        });
        programs.by_class.insert(class, compiled.clone());
        programs.remember(facts, &compiled);
        Ok(compiled)
    }

    /// Returns whom a device like `own` may begin flows to. `members` is the newest change to `living`.
    pub(crate) fn names(
        &self,
        own: &Facts,
        compiled: &Compiled,
        members: Revision,
        living: impl FnOnce() -> Vec<(Facts, NameEntry)>,
    ) -> Arc<List> {
        let revision = members.max(self.record.revision);
        let asker = Asker {
            policy: &self.policy,
            program: &compiled.program,
            number: compiled.number,
            own,
        };
        self.names.list(asker, revision, living)
    }
}
