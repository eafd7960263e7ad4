//! Signed items that come from other devices or from a person, and those that are handed on.
//!
//! Whoever brought it, a list is taken by the one way that updates take: verified, not older than what is
//! held, kernel element first, then tunnel and connections, then disk.

use hedgerow_mesh::items::{Item, ItemKind};
use hedgerow_mesh::psk::PostQuantum;
use hedgerow_mesh::{ItemRefusal, Output};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::DeviceId;
use hedgerow_model::resource::{Resource, ResourceKind};
use hedgerow_model::{Now, Wall};

use super::{State, Step};

/// Failures of one peer's exchange after which it is worth an event.
const PSK_FAILURES_TOLD: u32 = 3;

impl State {
    /// Takes what may pass before a pre-shared key is agreed with a peer.
    pub(crate) fn set_post_quantum(&mut self, mode: PostQuantum) {
        self.mesh.set_post_quantum(mode);
    }

    /// Takes what gossip brought.
    pub(super) fn handle_heard_by_gossip(&mut self, output: Output, now: Now) {
        if let Output::ItemArrived { from, item } = output {
            self.handle_item(from, &item, now);
        } else if let Output::ItemForked {
            from,
            kind,
            version,
            signer,
        } = output
        {
            self.say_forked(from, (kind, version), signer, now);
        } else if let Output::PskFailed { device, failures } = output {
            self.say_psk_failed(device, failures, now);
        } else if let Output::Member { device, is_up } = output {
            tracing::debug!(%device, is_up, "membership");
        }
    }

    /// Takes a signed item of a peer.
    pub(super) fn handle_item(&mut self, from: DeviceId, item: &Item, now: Now) {
        tracing::info!(peer = %from, kind = %item.key().kind(), version = %item.version(), "heard by gossip");
        match item {
            Item::Revocations(list) => {
                self.take_list(ResourceKind::Revocations, list.version, list.bytes(), now);
            }
            Item::States(states) => {
                self.take_list(ResourceKind::States, states.revision, states.bytes(), now);
            }
            Item::Beacon(beacon) => {
                let secs = beacon.issued_secs;
                if self.world.standing.adopt_beacon(beacon.clone()) {
                    self.steps.push_back(Step::Past(Wall::from_secs(secs)));
                }
            }
            Item::BundleHead(head) => self.note_policy(head.revision),
            // Held for whoever asks.
            Item::TreeHead(_) | Item::Endpoints { .. } => {}
        }
    }

    /// Takes the head of the policy in force, from the controller; one that does not hold is refused
    /// and said.
    pub(crate) fn handle_policy_head(&mut self, bytes: &[u8], now: Now) {
        match self.world.trust.verify_bundle_head(bytes) {
            Ok(head) => {
                self.note_policy(head.revision);
                self.share_item(ItemKind::BundleHead, bytes, now);
            }
            Err(refused) => self.refuse(now, None, &refused.to_string(), refused.reason()),
        }
    }

    /// Notes which policy the controller signed last.
    fn note_policy(&mut self, revision: hedgerow_model::id::Revision) {
        if self.newest_policy.is_none_or(|known| revision > known) {
            tracing::info!(%revision, "heard which policy is the newest");
            self.newest_policy = Some(revision);
        }
    }

    /// Returns the newest policy heard of, when this device holds an older revision: every revision
    /// goes to every device, so it misses something.
    pub(crate) fn missed_policy(&self) -> Option<hedgerow_model::id::Revision> {
        let held = self.revision.unwrap_or_default();
        self.newest_policy.filter(|newest| *newest > held)
    }

    /// Takes a list that did not come in a session.
    fn take_list(
        &mut self,
        kind: ResourceKind,
        version: hedgerow_model::id::Revision,
        bytes: &[u8],
        now: Now,
    ) -> bool {
        let resource = Resource {
            kind,
            version,
            bytes: bytes.to_vec(),
        };
        self.handle_outside(resource, now)
    }

    /// Takes a file that a person brought: a signed revocation list, or a list of states. Returns what
    /// it was, and whether it was news.
    ///
    /// # Errors
    ///
    /// Why it is not believed.
    pub(crate) fn handle_import(
        &mut self,
        bytes: &[u8],
        now: Now,
    ) -> Result<(ItemKind, bool), String> {
        let trust = &self.world.trust;
        let lists = trust.verify_revocations(bytes).map(Item::Revocations);
        let item = match lists.or_else(|e| {
            let states = trust.verify_states(bytes).map(Item::States);
            states.map_err(|_other| e)
        }) {
            Ok(item) => item,
            Err(refused) => {
                self.refuse(now, None, &refused.to_string(), refused.reason());
                return Err(refused.to_string());
            }
        };
        let (kind, version) = (item.key().kind(), item.version());
        let standing = &self.world.standing;
        let (resource, held) = match kind == ItemKind::States {
            true => (ResourceKind::States, standing.states_revision()),
            false => (ResourceKind::Revocations, standing.revocation_version()),
        };
        if version <= held {
            return Ok((kind, false));
        }
        match self.take_list(resource, version, bytes, now) {
            true => Ok((kind, true)),
            false => Err(format!("{kind} {version} was refused; see the events")),
        }
    }

    /// Tells the mesh what is held, so that peers hear of it.
    pub(super) fn share(&mut self, kinds: impl IntoIterator<Item = ResourceKind>, now: Now) {
        for kind in kinds {
            let standing = &self.world.standing;
            let (kind, bytes) = match kind {
                ResourceKind::Revocations => (
                    ItemKind::Revocations,
                    standing.revocations().map(|list| list.bytes().to_vec()),
                ),
                ResourceKind::States => (
                    ItemKind::States,
                    standing.states().map(|states| states.bytes().to_vec()),
                ),
                ResourceKind::Manifest
                | ResourceKind::Ticket
                | ResourceKind::Program
                | ResourceKind::Config
                | ResourceKind::Names => continue,
            };
            if let Some(bytes) = bytes {
                self.share_item(kind, &bytes, now);
            }
        }
    }

    /// Hands on one signed item.
    pub(super) fn share_item(&mut self, kind: ItemKind, bytes: &[u8], now: Now) {
        match self.mesh.handle_item(kind, bytes, self.world.view(now)) {
            Ok(_) => {}
            // Stored under a key that was replaced since: it stays in force here.
            Err(ItemRefusal::UnknownSigner) => {
                tracing::debug!(%kind, "signed by a former key; not handed on");
            }
            Err(reason) => tracing::warn!(%kind, %reason, "not handed on"),
        }
        self.drain_mesh(now);
    }

    /// Hands on where this device may be reached, as it signed it.
    pub(crate) fn handle_record(&mut self, record: &[u8], now: Now) {
        let body = hedgerow_mesh::items::record_body(self.world.ticket.bytes(), record);
        self.share_item(ItemKind::Endpoints, &body, now);
    }

    /// Says what gossip found wrong.
    pub(super) fn say_forked(
        &mut self,
        from: DeviceId,
        (kind, version): (ItemKind, hedgerow_model::id::Revision),
        signer: hedgerow_model::statement::KeyId,
        now: Now,
    ) {
        tracing::error!(peer = %from, %kind, %version, ?signer, "two contents under one version");
        let signer: String = signer.0.iter().map(|b| format!("{b:02x}")).collect();
        self.event(
            Event::new(now.wall, EventKind::ItemForked)
                .peer(from)
                .detail("item", kind)
                .detail("version", version)
                .detail("signer", signer),
        );
    }

    /// Says that a peer and we do not come to a pre-shared key: once, until the next success.
    pub(super) fn say_psk_failed(&mut self, device: DeviceId, failures: u32, now: Now) {
        tracing::debug!(peer = %device, failures, "no pre-shared key");
        if failures == PSK_FAILURES_TOLD {
            self.event(
                Event::new(now.wall, EventKind::PskFailed)
                    .peer(device)
                    .detail("failures", failures),
            );
        }
    }
}
