//! What is known of a device, and of all devices together.

use std::borrow::Cow;
use std::collections::BTreeMap;

use hedgerow_model::id::{DeviceId, DeviceName, Labels, SiteName};
use hedgerow_model::program::{Attribute, DeviceState};
use hedgerow_model::statement::Ticket;

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
