//! Which device a person means by a name.

use hedgerow_model::address::OverlayAddresses;
use hedgerow_model::id::DeviceId;
use serde_json::{Value, json};

use super::run::Daemon;

/// A device that somebody named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) device: DeviceId,
    /// `name.site`.
    pub(super) name: String,
    pub(super) addresses: OverlayAddresses,
}

impl Daemon {
    /// Finds a device among those that are peers now, then among those that have a name here.
    ///
    /// # Errors
    ///
    /// The answer to whoever asked.
    pub(super) fn find(&self, name: &str) -> Result<Found, Value> {
        let own = self.state.ticket();
        let zone = self.resolver.zone();
        let suffix = zone.as_ref().map_or_else(String::new, |z| z.suffix());
        let wanted = name.to_ascii_lowercase();
        let wanted = wanted.trim_end_matches('.');
        let short = wanted
            .strip_suffix(&suffix)
            .unwrap_or(wanted)
            .trim_end_matches('.');
        let full = match short.contains('.') {
            true => short.to_owned(),
            false => format!("{short}.{}", own.site),
        };
        if full == format!("{}.{}", own.name, own.site) {
            return Err(json!({
                "error": format!("`{name}` is this device"),
                "remedy": "name another one; `hedgerow-agent peers` lists those that are there",
                "exit_code": 1,
            }));
        }
        let peers = self.state.mesh_status().peers;
        let peer = peers
            .iter()
            .find(|p| format!("{}.{}", p.name, p.site) == full || p.device.to_string() == wanted);
        if let Some(peer) = peer {
            return Ok(Found {
                device: peer.device,
                name: format!("{}.{}", peer.name, peer.site),
                addresses: peer.addresses,
            });
        }
        let entry = zone.as_ref().and_then(|z| z.find(&full));
        entry
            .map(|entry| Found {
                device: entry.id,
                name: format!("{}.{}", entry.name, entry.site),
                addresses: entry.addresses,
            })
            .ok_or_else(|| {
                json!({
                    "error": format!("no device called `{name}` is a peer of this one"),
                    "remedy": "write NAME or NAME.SITE as `hedgerow device list` does; a device that policy lets \
                               neither call nor be called by this one has no name here",
                    "exit_code": 1,
                })
            })
    }
}
