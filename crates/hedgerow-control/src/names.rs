//! Which names a device is given: one list for all that no rule can tell apart, signed once.
//!
//! ```text
//!  living devices ─▶ groups by kin ─▶ list per kin of the asker ─▶ signed per revision ─▶ sessions
//! ```
//!
//! *Kin* are devices of one class and site that also agree in every attribute in which a rule compares
//! two ends. What is remembered here is only saved work: everything follows from the policy and the
//! devices.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hedgerow_model::id::{Digest, Revision, SiteName};
use hedgerow_model::program::{Class, Program};
use hedgerow_model::resource::{Resource, ResourceKind};
use hedgerow_model::statement::{NameEntry, Names};
use hedgerow_model::wire;
use hedgerow_policy::{Facts, Policy};
use hedgerow_sync::controller::Offer;

use crate::refusal::Refusal;
use crate::sign::Signer;

/// Most names in one list. A device that may begin flows to more peers is given those of its own
/// site first, and finds the rest by address.
pub(crate) const NAMES_GIVEN_MAX: usize = 2000;
/// Revisions of one list that are remembered signed: the newest, and those that agents hold.
const SIGNED_MAX: usize = 4;

/// Devices that no rule can tell apart: what tells their class, their site, and what rules compare of
/// them.
type Kin<C> = (C, SiteName, Vec<Option<String>>);

/// Whose list is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker<'a> {
    /// The policy in force.
    pub(crate) policy: &'a Policy,
    /// The asker's program.
    pub(crate) program: &'a Program,
    /// The program's number among those of the policy.
    pub(crate) number: usize,
    /// The asker.
    pub(crate) own: &'a Facts,
}

/// One list of names.
#[derive(Debug)]
pub(crate) struct List {
    site: SiteName,
    entries: Vec<NameEntry>,
    /// The newest change that can have altered it.
    pub(crate) revision: Revision,
    /// Tells apart lists that say something else, whatever their revision.
    pub(crate) content: Digest,
    /// How many names were left out.
    left_out: usize,
    told: AtomicBool,
    signed: Mutex<BTreeMap<Revision, Arc<Offer>>>,
}

impl List {
    fn new(site: SiteName, mut entries: Vec<NameEntry>, revision: Revision) -> Self {
        entries.sort_by(|a, b| {
            (a.site != site, &a.site, &a.name).cmp(&(b.site != site, &b.site, &b.name))
        });
        let left_out = entries.len().saturating_sub(NAMES_GIVEN_MAX);
        entries.truncate(NAMES_GIVEN_MAX);
        entries.sort_by(|a, b| (&a.site, &a.name).cmp(&(&b.site, &b.name)));
        Self {
            content: Digest::of(&wire::encode(&entries)),
            site,
            entries,
            revision,
            left_out,
            told: AtomicBool::new(false),
            signed: Mutex::default(),
        }
    }

    /// Returns for which site how many names were left out, once: whoever asks says so.
    pub(crate) fn untold(&self) -> Option<(&SiteName, usize)> {
        let is_news = self.left_out > 0 && !self.told.swap(true, Ordering::Relaxed);
        is_news.then_some((&self.site, self.left_out))
    }

    /// Returns the list signed as of `revision`. The same list signed as of the same revision is the
    /// same to the byte, so an agent that holds it need not be sent it again.
    pub(crate) fn offer(
        &self,
        revision: Revision,
        signer: Signer<'_>,
    ) -> Result<Arc<Offer>, Refusal> {
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = signed.get(&revision) {
            return Ok(known.clone());
        }
        let bytes = signer.names(&Names {
            revision,
            site: self.site.clone(),
            entries: self.entries.clone(),
        })?;
        let offer = Offer::new(Resource {
            kind: ResourceKind::Names,
            version: revision,
            bytes,
        });
        if signed.len() >= SIGNED_MAX {
            // Agents that hold an older one are given the newest.
            signed.pop_first();
        }
        signed.insert(revision, offer.clone());
        Ok(offer)
    }
}

/// Every list, by who it is for.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    known: Mutex<Known>,
}

/// What holds as long as nobody joins, leaves or changes.
#[derive(Debug, Default)]
struct Known {
    revision: Revision,
    lists: BTreeMap<Kin<usize>, Arc<List>>,
    groups: Option<Arc<Vec<Group>>>,
}

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

impl Directory {
    /// Returns the asker's list as of `revision`, when `living` last changed, or as of a newer one that
    /// another session has seen already.
    pub(crate) fn list(
        &self,
        asker: Asker<'_>,
        revision: Revision,
        living: impl FnOnce() -> Vec<(Facts, NameEntry)>,
    ) -> Arc<List> {
        let kin = kin_of(asker.policy, asker.own, asker.number);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.revision < revision {
            *known = Known {
                revision,
                ..Known::default()
            };
        }
        if let Some(list) = known.lists.get(&kin) {
            return list.clone();
        }
        let groups = known
            .groups
            .get_or_insert_with(|| Arc::new(groups(asker.policy, living())))
            .clone();
        let entries = groups
            .iter()
            .filter(|g| g.may_be_named(asker.program, asker.own))
            .flat_map(|g| g.entries.iter().cloned());
        let list = List::new(asker.own.site.clone(), entries.collect(), known.revision);
        let list = Arc::new(list);
        known.lists.insert(kin, list.clone());
        list
    }
}

fn groups(policy: &Policy, living: Vec<(Facts, NameEntry)>) -> Vec<Group> {
    let mut by_kin: BTreeMap<Kin<Class>, Group> = BTreeMap::new();
    for (facts, entry) in living {
        let class = hedgerow_policy::class_of(policy, &facts);
        by_kin
            .entry(kin_of(policy, &facts, class))
            .or_insert_with(|| Group {
                representative: facts,
                entries: Vec::new(),
            })
            .entries
            .push(entry);
    }
    by_kin.into_values().collect()
}

fn kin_of<C>(policy: &Policy, facts: &Facts, class: C) -> Kin<C> {
    let compared = hedgerow_policy::compared(policy)
        .into_iter()
        .map(|attribute| facts.value(attribute).map(Into::into));
    (class, facts.site.clone(), compared.collect())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use hedgerow_model::address::OverlayAddresses;
    use hedgerow_model::id::{DeviceId, DeviceName};

    use super::*;

    fn device(n: u32, site: &str, labels: &str) -> (Facts, NameEntry) {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        let (id, site) = (DeviceId(id), SiteName::new(site).unwrap());
        let name = DeviceName::new(&format!("d{n:05}")).unwrap();
        let facts = Facts {
            id,
            name: name.clone(),
            site: site.clone(),
            labels: labels.parse().unwrap(),
            state: None,
            zone: None,
        };
        let addresses = OverlayAddresses {
            v6: Ipv6Addr::from(u128::from(n)),
            v4: None,
        };
        let entry = NameEntry {
            id,
            name,
            site,
            addresses,
        };
        (facts, entry)
    }

    fn revision(number: u64) -> Revision {
        Revision {
            timeline: 1,
            number,
        }
    }

    const POLICY: &str = "\
apiVersion: hedgerow.policy/v1
kind: Policy
meta: { name: lines }
labels:
  role: { values: [ plc ] }
  line: { values: [ a, b ] }
defaults: { deny: both }
rules:
  - { id: along-the-line, from: \"role=plc\", to: \"role=plc\", same: [ line ], service: tcp/502 }
";

    fn list(directory: &Directory, world: &[(Facts, NameEntry)], of: usize, at: u64) -> Arc<List> {
        let (policy, findings) = hedgerow_policy::parse(POLICY, "test.yaml");
        let policy = policy.unwrap_or_else(|| panic!("{findings:?}"));
        let own = &world[of].0;
        let program = hedgerow_policy::compile(&policy, own).unwrap();
        let asker = Asker {
            policy: &policy,
            program: &program,
            number: 0,
            own,
        };
        directory.list(asker, revision(at), || world.to_vec())
    }

    fn ids(list: &List) -> Vec<DeviceId> {
        list.entries.iter().map(|e| e.id).collect()
    }

    #[test]
    fn a_rule_that_compares_labels_names_only_those_who_share_them() {
        let world: Vec<_> = (0..6u32)
            .map(|n| {
                device(
                    n,
                    "s1",
                    if n % 2 == 0 {
                        "role=plc,line=a"
                    } else {
                        "role=plc,line=b"
                    },
                )
            })
            .collect();
        let directory = Directory::default();
        let own = |parity: usize| -> Vec<DeviceId> {
            let mine = world.iter().skip(parity).step_by(2);
            mine.map(|(f, _)| f.id).collect()
        };
        assert_eq!(ids(&list(&directory, &world, 0, 1)), own(0));
        assert_eq!(ids(&list(&directory, &world, 1, 1)), own(1));
        let (one, other) = (
            list(&directory, &world, 0, 1),
            list(&directory, &world, 2, 1),
        );
        assert!(Arc::ptr_eq(&one, &other), "kin share one list");
    }

    #[test]
    fn a_list_beyond_its_bound_keeps_the_own_site_and_says_what_is_missing() {
        let most = u32::try_from(NAMES_GIVEN_MAX).unwrap();
        let mut world: Vec<_> = (0..most)
            .map(|n| device(n, "a-other-site", "role=plc,line=a"))
            .collect();
        world.extend((0..3).map(|n| device(most + n, "s1", "role=plc,line=a")));
        let list = list(&Directory::default(), &world, NAMES_GIVEN_MAX, 1);
        assert_eq!(list.entries.len(), NAMES_GIVEN_MAX);
        assert_eq!(
            list.entries
                .iter()
                .filter(|e| e.site.as_str() == "s1")
                .count(),
            3
        );
        assert!(
            list.entries
                .is_sorted_by(|a, b| (&a.site, &a.name) < (&b.site, &b.name))
        );
        assert_eq!(list.untold().map(|(_, count)| count), Some(3));
        assert_eq!(list.untold(), None, "it is said once");
    }

    #[test]
    fn a_list_follows_its_members_and_never_goes_back() {
        let mut world: Vec<_> = (0..2).map(|n| device(n, "s1", "role=plc,line=a")).collect();
        let directory = Directory::default();
        let first = list(&directory, &world, 0, 5);
        world.push(device(2, "s1", "role=plc,line=a"));
        let second = list(&directory, &world, 0, 6);
        assert_ne!(first.content, second.content);
        let late = list(&directory, &world[..2], 0, 5);
        assert_eq!((late.revision, late.content), (revision(6), second.content));
    }
}
