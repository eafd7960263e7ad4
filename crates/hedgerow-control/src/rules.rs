//! The policy in force, with what was compiled from it so far.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hedgerow_model::id::{Revision, SiteName};
use hedgerow_model::program::{Class, Program};
use hedgerow_model::resource::{Resource, ResourceKind};
use hedgerow_model::statement::NameEntry;
use hedgerow_model::wire;
use hedgerow_policy::{Diagnostic, Facts, Policy, Severity};
use hedgerow_sync::controller::Offer;

use crate::refusal::{Kind, Refusal};
use crate::sign::Signer;
use crate::store::policies::PolicyRecord;

/// Most names that one device is given; a device that may begin flows to more peers finds the rest
/// by address.
pub(crate) const NAMES_GIVEN_MAX: usize = 2000;

/// The policy that a controller begins with: nothing is granted, everything is enforced.
pub(crate) const FIRST_POLICY: &str = "\
apiVersion: hedgerow.policy/v1
kind: Policy
meta: { name: nothing-granted-yet }
defaults: { deny: both }
";

/// A class's program, signed.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// What it says.
    pub(crate) program: Program,
    /// What is sent.
    pub(crate) offer: Arc<Offer>,
}

/// Names by the class and site of who may know them.
type Names = BTreeMap<(Class, SiteName), Arc<Vec<NameEntry>>>;

/// The policy in force. Compiling is a pure function of it, so what is remembered here is only
/// saved work.
#[derive(Debug)]
pub(crate) struct InForce {
    /// What is stored of it.
    pub(crate) record: PolicyRecord,
    /// What it says.
    pub(crate) policy: Policy,
    programs: Mutex<BTreeMap<Class, Arc<Compiled>>>,
    names: Mutex<(Revision, Names)>,
    groups: Mutex<(Revision, Arc<Vec<Group>>)>,
}

/// Devices that no rule can tell apart, within a site.
#[derive(Debug)]
struct Group {
    representative: Facts,
    entries: Vec<NameEntry>,
}

impl Group {
    /// Returns whether a device like `own` may begin flows to these.
    fn may_be_named(&self, program: &Program, own: &Facts) -> bool {
        let mut peer = self.representative.clone();
        if peer.id == own.id {
            // A device stands for its own group: ask as for another of the group. Where rules tell
            // devices apart by id, the group has nobody else.
            peer.id.0 = peer.id.0.map(|byte| !byte);
        }
        !hedgerow_policy::names_for(program, own, [&peer]).is_empty()
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
    /// Takes a policy that was read without errors.
    pub(crate) fn new(record: PolicyRecord, policy: Policy) -> Self {
        Self {
            record,
            policy,
            programs: Mutex::default(),
            names: Mutex::default(),
            groups: Mutex::default(),
        }
    }

    /// Returns the program of a device's class, compiled and signed once.
    pub(crate) fn program(
        &self,
        facts: &Facts,
        signer: Signer<'_>,
    ) -> Result<Arc<Compiled>, Refusal> {
        let class = hedgerow_policy::class_of(&self.policy, facts);
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = programs.get(&class) {
            return Ok(known.clone());
        }
        let program = hedgerow_policy::compile(&self.policy, facts)
            .map_err(|e| Refusal::bug(format!("the policy in force does not compile: {e}")))?;
        let revision = self.record.revision;
        let bytes = signer.program(revision, wire::encode(&program))?;
        let compiled = Arc::new(Compiled {
            program,
            offer: Offer::new(Resource {
                kind: ResourceKind::Program,
                version: revision,
                bytes,
            }),
        });
        programs.insert(class, compiled.clone());
        Ok(compiled)
    }

    /// Returns whom devices of the class and site of `own` may begin flows to. `members` is the
    /// newest change to `living`.
    pub(crate) fn names<'a>(
        &self,
        own: &Facts,
        compiled: &Compiled,
        members: Revision,
        living: impl FnOnce() -> Vec<(Facts, NameEntry)> + 'a,
    ) -> Arc<Vec<NameEntry>> {
        let key = (compiled.program.class.clone(), own.site.clone());
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.0 != members {
            *names = (members, Names::new());
        }
        if let Some(known) = names.1.get(&key) {
            return known.clone();
        }
        let groups = self.groups(members, living);
        let mut entries: Vec<NameEntry> = groups
            .iter()
            .filter(|g| g.may_be_named(&compiled.program, own))
            .flat_map(|g| g.entries.iter().cloned())
            .collect();
        entries.sort_by(|a, b| (&a.site, &a.name).cmp(&(&b.site, &b.name)));
        entries.truncate(NAMES_GIVEN_MAX);
        let entries = Arc::new(entries);
        names.1.insert(key, entries.clone());
        entries
    }

    fn groups(
        &self,
        members: Revision,
        living: impl FnOnce() -> Vec<(Facts, NameEntry)>,
    ) -> Arc<Vec<Group>> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if groups.0 != members {
            let mut by_key: BTreeMap<(Class, SiteName), Group> = BTreeMap::new();
            for (facts, entry) in living() {
                let class = hedgerow_policy::class_of(&self.policy, &facts);
                by_key
                    .entry((class, facts.site.clone()))
                    .or_insert_with(|| Group {
                        representative: facts,
                        entries: Vec::new(),
                    })
                    .entries
                    .push(entry);
            }
            *groups = (members, Arc::new(by_key.into_values().collect()));
        }
        groups.1.clone()
    }
}
