//! What is known of a device, and of all devices together.

use std::borrow::Cow;
use std::collections::BTreeMap;

use hedgerow_model::id::{DeviceId, DeviceName, Labels, SiteName};
use hedgerow_model::program::{Attribute, DeviceState};
use hedgerow_model::statement::Ticket;

use crate::compile::asked;
use crate::policy::{Mentioned, Policy};

/// The facts of one device that policy can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The device.
    pub id: DeviceId,
    /// Its name, unique in its site.
    pub name: DeviceName,
    /// Its site.
    pub site: SiteName,
    /// Its labels.
    pub labels: Labels,
    /// Whether it is out of normal service.
    pub state: Option<DeviceState>,
    /// Its site's IANA time zone. Unknown: windows that allow are closed, windows that deny are in
    /// force.
    pub zone: Option<String>,
}

impl Facts {
    /// Returns the device's value of `attribute`, if it has one.
    pub fn value(&self, attribute: &Attribute) -> Option<Cow<'_, str>> {
        match attribute {
            Attribute::Label(key) => self.labels.get(key).map(|v| v.as_str().into()),
            Attribute::Name => Some(self.name.as_str().into()),
            Attribute::Site => Some(self.site.as_str().into()),
            Attribute::Id => Some(self.id.to_string().into()),
        }
    }

    /// Returns the same device in `state`.
    #[must_use]
    pub fn in_state(self, state: Option<DeviceState>) -> Self {
        Self { state, ..self }
    }

    /// Returns the same device in a site with this IANA zone.
    #[must_use]
    pub fn in_zone(self, zone: &str) -> Self {
        Self {
            zone: Some(zone.to_owned()),
            ..self
        }
    }
}

/// In normal service, in a zone not yet known.
impl From<&Ticket> for Facts {
    fn from(ticket: &Ticket) -> Self {
        Self {
            id: ticket.id,
            name: ticket.name.clone(),
            site: ticket.site.clone(),
            labels: ticket.labels.clone(),
            state: None,
            zone: None,
        }
    }
}

/// Devices that a policy treats alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind<'w> {
    /// One of them.
    pub first: &'w Facts,
    /// Another, if there is one.
    pub second: Option<&'w Facts>,
    /// How many there are.
    pub count: usize,
}

/// Every device there is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct World(BTreeMap<DeviceId, Facts>);

impl World {
    /// Makes a world of these devices; of two with one id the later counts.
    pub fn new(devices: impl IntoIterator<Item = Facts>) -> Self {
        Self(devices.into_iter().map(|f| (f.id, f)).collect())
    }

    /// Returns the facts of `id`.
    pub fn get(&self, id: DeviceId) -> Option<&Facts> {
        self.0.get(&id)
    }

    /// Visits the devices in the order of their ids.
    pub fn devices(&self) -> impl Iterator<Item = &Facts> {
        self.0.values()
    }

    /// Sorts the devices into kinds that these policies, their tests included, treat alike: of one site,
    /// in one state, with the same labels. In the order of the first ids.
    pub fn kinds(&self, policies: &[&Policy]) -> Vec<Kind<'_>> {
        let asked: Vec<Mentioned> = policies.iter().map(|p| asked(p)).collect();
        let singled_out = |attribute: &Attribute, value: &str| {
            let mut asked = asked.iter().filter_map(|a| a.get(attribute));
            asked.any(|values| values.contains(value))
        };
        let by_id = asked.iter().any(|a| a.contains_key(&Attribute::Id));
        let mut numbers = BTreeMap::new();
        let mut kinds: Vec<Kind<'_>> = Vec::new();
        for facts in self.devices() {
            let name = Some(&facts.name).filter(|n| singled_out(&Attribute::Name, n.as_str()));
            let id =
                Some(facts.id).filter(|id| by_id && singled_out(&Attribute::Id, &id.to_string()));
            let key = (
                &facts.site,
                &facts.labels,
                facts.state,
                &facts.zone,
                name,
                id,
            );
            let number = *numbers.entry(key).or_insert(kinds.len());
            match kinds.get_mut(number) {
                Some(kind) => {
                    kind.second.get_or_insert(facts);
                    kind.count += 1;
                }
                None => kinds.push(Kind {
                    first: facts,
                    second: None,
                    count: 1,
                }),
            }
        }
        kinds
    }

    /// Returns two devices of every kind, so that whatever happens between devices happens here too.
    pub(crate) fn thinned(&self, policies: &[&Policy]) -> Self {
        let kinds = self.kinds(policies);
        let kept = kinds.iter().flat_map(|k| [Some(k.first), k.second]);
        Self::new(kept.flatten().cloned())
    }

    /// Finds a device by id, by `name.site`, or by a name that only one device has.
    pub fn find(&self, text: &str) -> Option<&Facts> {
        if let Some(found) = text.parse().ok().and_then(|id| self.get(id)) {
            return Some(found);
        }
        let (name, site) = match text.split_once('.') {
            Some((name, site)) => (name, Some(site)),
            None => (text, None),
        };
        let mut hits = self
            .devices()
            .filter(|f| f.name.as_str() == name && site.is_none_or(|site| f.site.as_str() == site));
        hits.next().filter(|_| hits.next().is_none())
    }
}
