//! Links over TLS: where the tunnel finds them, and where relays are to be connected to.

use hedgerow_model::address::Underlay;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;
use hedgerow_model::statement::PeerQuery;

use super::{Mesh, View};
use crate::output::Output;
use crate::relay::{self, LinkOutput};

impl Mesh {
    /// Allows links to relays over TLS, or forbids them. Without it none is asked for.
    pub fn handle_links_allowed(&mut self, is_allowed: bool) {
        self.links.handle_allowed(is_allowed);
    }

    /// The link to a relay stands: what is sent to `at`, an address on this machine, reaches it.
    pub fn handle_link(&mut self, relay: DeviceId, at: Underlay, view: View<'_>) {
        self.links.handle_opened(relay, at, view.now.mono);
        let path = Path::direct(at);
        self.add_path(relay, path, view);
        if self.peers.get(relay).is_some() {
            if self.ways.paths.in_use(relay).is_none() {
                self.set_peer(relay, Some(path));
            }
        } else if self.memories.get(relay).is_some() {
            self.ask_remembered(relay, view);
        } else if !self.asking.is_asking(relay) {
            self.wanted_devices.insert(relay);
            self.look_up(PeerQuery::Device(relay), view);
        }
        self.drain_ways(view);
    }

    /// A link is over, or did not come to stand: one that this device opened, or at a relay one that `device`
    /// opened. `at` is where it was.
    pub fn handle_link_ended(&mut self, device: DeviceId, at: Option<Underlay>, view: View<'_>) {
        let now = view.now.mono;
        if self.links.at(device) == at {
            self.links.handle_ended(device, now);
        }
        if let Some(at) = at {
            let path = Path::direct(at);
            self.ways.paths.handle_closed(device, &[path], now);
        }
        self.drain_ways(view);
    }

    /// Lets the links be judged by where relays are reached now. Returns whether anything came of it.
    pub(super) fn tend_links(&mut self, view: View<'_>) -> bool {
        if !self.links.is_allowed() {
            return false;
        }
        let ranked = self.ways.client.ranked();
        self.links.handle_relays(&ranked, view.now.mono);
        let mut is_busy = false;
        while let Some(output) = self.links.poll() {
            is_busy = true;
            match output {
                LinkOutput::Open(relay) => self.open_link(relay, view),
                LinkOutput::Close(relay) => self.output.push_back(Output::CloseLink { relay }),
            }
        }
        is_busy
    }

    fn open_link(&mut self, relay: DeviceId, view: View<'_>) {
        let remembered = self.memories.get(relay);
        let remembered = remembered.map(|m| m.endpoints.as_slice());
        let said = self.links.addresses(relay);
        let all = remembered.unwrap_or_default().iter().chain(said);
        let hosts = relay::hosts(all.filter(|a| self.ways.paths.may_lead(**a)));
        if hosts.is_empty() {
            // Who is asked says where it is; it is connected to the next time.
            self.links.handle_ended(relay, view.now.mono);
            self.look_up(PeerQuery::Device(relay), view);
        } else {
            self.output.push_back(Output::OpenLink { relay, hosts });
        }
    }
}
