//! A session with a controller: connecting, doing what it says, reporting, parting.

use std::time::Duration;

use hedgerow_identity::certificate::{Purpose, check_leaf};
use hedgerow_identity::rotation::Uplink;
use hedgerow_linux::{conntrack, process};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::{Mono, Now, Wall};
use hedgerow_sync::AgentSession;
use hedgerow_sync::agent::{self, Opening};
use hedgerow_sync::message;

use super::leave::Heard;
use super::preference::{Unwelcome, Verdict};
use super::run::{Daemon, Live};
use super::uplink::{self, Connection};
use super::{entropy, lifeline, tls};

impl Daemon {
    /// Begins a connection to the next controller in turn.
    pub(super) fn connect(&mut self, now: Now) {
        self.connect_at = Mono::NEVER;
        if self.controllers.is_empty() {
            return;
        }
        // The network may have come up since, and named its servers.
        let found = lifeline::name_servers(&self.config);
        self.state.handle_name_servers(found, now);
        let endpoint = self
            .controllers
            .get(self.turn % self.controllers.len())
            .cloned();
        self.turn = self.turn.wrapping_add(1);
        let next = self.identities.next();
        let next = next.filter(|_| self.preference.shows_next());
        let uses_next = next.is_some();
        let identity = next.unwrap_or_else(|| self.identities.current());
        let config = tls::for_session(identity, self.state.trust(), self.state.standing(), now);
        let (Some(endpoint), Ok(config)) = (endpoint, config) else {
            tracing::error!("no TLS configuration; trying again");
            self.connect_at = self.backoff.handle_failure(now.mono);
            return;
        };
        self.serials += 1;
        let inputs = self.inputs.clone();
        let connection = Connection::begin(endpoint.clone(), config, inputs, self.serials);
        self.live = Some(Live {
            serial: self.serials,
            endpoint,
            connection,
            session: None,
            leaf: Vec::new(),
            uses_next,
            welcomed: false,
        });
    }

    pub(super) fn handle_uplink(&mut self, report: uplink::Report, now: Now) {
        match report {
            uplink::Report::Connected(local, leaf) => {
                if let Some(live) = &mut self.live {
                    live.leaf = leaf;
                }
                self.greet(local.map(|a| a.ip()), now);
            }
            uplink::Report::Room => {}
            uplink::Report::Manifests(chain) => self.state.handle_manifests(&chain, now),
            uplink::Report::Bytes(bytes) => {
                let Some(session) = self.session() else {
                    return;
                };
                let result = session.handle_bytes(&bytes, now.mono);
                let is_open = session.is_open();
                if let Err(error) = result {
                    let event = Event::new(now.wall, EventKind::MessageRefused);
                    self.state.event(event.detail("reason", &error));
                    self.disconnect(&error.to_string());
                } else if is_open {
                    self.state.handle_heard(now);
                }
            }
            uplink::Report::Closed(reason) => {
                // What the controller said last came before the end.
                self.obey_session(now);
                self.disconnect(&reason);
            }
        }
    }

    /// Does what the session wants.
    pub(super) fn obey_session(&mut self, now: Now) -> bool {
        let mut busy = false;
        while let Some(output) = self.session().and_then(AgentSession::poll) {
            self.obey(output, now);
            busy = true;
        }
        busy
    }

    /// Opens a session on a fresh connection: the generation is on disk before it is used.
    fn greet(&mut self, local: Option<std::net::IpAddr>, now: Now) {
        self.local_address = local;
        let generation = match self.store.next_generation() {
            Ok(generation) => generation,
            Err(failure) => {
                self.state.handle_disk(Err(failure.to_string()));
                self.disconnect(&failure.to_string());
                return;
            }
        };
        let opening = Opening {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: boot_id(),
            generation,
            verified: self.state.verified(),
            holdings: self.state.holdings(),
            revocations: self.state.standing().revocation_version(),
            manifest: self.state.trust().manifest().version,
            ticket_epoch: self.state.ticket().epoch,
            endpoints: self.endpoints(),
            introduction_key: self.state.ticket().introduction_key,
        };
        if let Some(live) = &mut self.live {
            live.session = Some(AgentSession::new(opening, entropy::seed(), now.mono));
        }
    }

    /// Ends the connection and plans the next.
    pub(super) fn disconnect(&mut self, reason: &str) {
        self.end_connection(Unwelcome::Cut, reason);
    }

    fn end_connection(&mut self, how: Unwelcome, reason: &str) {
        let now = self.clock.now();
        let Some(live) = self.live.take() else {
            return;
        };
        tracing::info!(endpoint = live.endpoint, reason, "no session");
        self.last_uplink_error = Some(format!("{}: {reason}", live.endpoint));
        self.state.spool().handle_uplink_down();
        self.state.handle_uplink_down(reason, now);
        self.note_uplink(Uplink::Down, now);
        self.renewal = None;
        if live.session.is_some() && !live.welcomed {
            let verdict = self.preference.handle_unwelcome(live.uses_next, how);
            if verdict == Verdict::GiveUp {
                tracing::warn!("the controller refuses the new certificate");
                self.rotation.handle_refused(now.mono);
            }
        }
        if self.connect_at == Mono::NEVER {
            self.connect_at = self.backoff.handle_failure(now.mono);
        }
        // An end that says nothing else says nothing about leaving.
        self.conclude(Heard::Nothing(reason.to_owned()));
    }

    fn obey(&mut self, output: agent::Output, now: Now) {
        match output {
            agent::Output::Welcomed(welcome) => self.welcomed(&welcome, now),
            agent::Output::Apply(update) => {
                self.state.handle_update(update, now);
                self.judge_server(now);
            }
            agent::Output::Refused {
                revision,
                kind,
                reason,
            } => {
                tracing::warn!(%revision, reason, "an update was refused");
                let mut event = Event::new(now.wall, EventKind::ResourceRefused)
                    .detail("reason", reason)
                    .detail("revision", revision);
                if let Some(kind) = kind {
                    event = event.detail("resource", kind);
                }
                self.state.event(event);
            }
            agent::Output::HandUpWanted(kind) => self.hand_up(kind),
            agent::Output::Beacon(beacon, head) => {
                self.beacon(&beacon, now);
                if let Some(head) = head {
                    self.state.handle_policy_head(&head, now);
                }
            }
            agent::Output::Renewed(new) => self.renewed(new, now),
            agent::Output::RenewRefused { reason, .. } => {
                tracing::warn!(reason, "no new certificate");
                self.renewal = None;
                self.rotation.handle_refused(now.mono);
            }
            agent::Output::Resolved { id, peer } => self.state.handle_resolved(id, peer, now),
            agent::Output::EventsStored(upto) => self.state.spool().handle_stored(upto),
            agent::Output::Command(command) => self.command(&command, now),
            agent::Output::FlowsWanted(id) => self.tell_flows(id),
            agent::Output::Held(reason) => self.state.handle_held(reason),
            agent::Output::Busy(wait) => {
                self.connect_at = self.backoff.handle_busy(wait, now.mono);
                self.disconnect("the controller is busy");
            }
            agent::Output::Dismissed(reason) => {
                if reason == message::LEFT {
                    self.conclude(Heard::Confirmed);
                }
                self.end_connection(Unwelcome::Refused, &reason);
            }
            agent::Output::Closed(reason) => self.disconnect(&reason),
        }
    }

    /// Ends the session with a server that what just came speaks against.
    fn judge_server(&mut self, now: Now) {
        let Some(live) = &self.live else {
            return;
        };
        let standing = self.state.standing();
        let purpose = Purpose::Server {
            own_site: standing.site(),
        };
        let checked = check_leaf(&live.leaf, self.state.trust(), standing, purpose, now);
        if let Err(refused) = checked {
            self.disconnect(&format!("the server's certificate is refused: {refused}"));
        }
    }

    fn welcomed(&mut self, welcome: &message::Welcome, now: Now) {
        let Some(live) = &mut self.live else {
            return;
        };
        live.welcomed = true;
        let uses_next = live.uses_next;
        tracing::info!(
            endpoint = live.endpoint,
            session = welcome.session,
            "session open"
        );
        self.last_uplink_error = None;
        self.turn = self.turn.wrapping_sub(1);
        self.backoff.handle_success();
        self.beacon(&welcome.beacon, now);
        self.state.handle_uplink_up(now);
        self.note_uplink(Uplink::Up, now);
        if uses_next {
            self.rotation.handle_accepted(now.mono);
        }
    }

    fn beacon(&mut self, bytes: &[u8], now: Now) {
        if bytes.is_empty() {
            return;
        }
        if let Some(secs) = self.state.handle_beacon(bytes, now) {
            self.note_present(Wall::from_secs(secs));
        }
    }

    /// Says which flows are open. Whoever asked takes silence for "unknown".
    fn tell_flows(&mut self, id: u64) {
        let own = self.state.ticket().addresses;
        let list = match conntrack::flows(&own, message::FLOWS_MAX) {
            Ok(list) => list,
            Err(error) => {
                tracing::warn!(%error, "connections cannot be listed");
                return;
            }
        };
        let list = message::Flows {
            id,
            flows: list.flows,
            left_out: list.left_out,
        };
        if let Some(Err(error)) = self.session().map(|s| s.flows(list)) {
            tracing::warn!(%error, "the open flows are not told");
        }
    }

    fn command(&mut self, command: &message::Command, now: Now) {
        match command {
            message::Command::Reconnect(millis) => {
                let wait = Duration::from_millis(*millis);
                self.connect_at = self.backoff.handle_busy(wait, now.mono);
                self.disconnect("the controller asks to connect again");
            }
            message::Command::RotateKeys => self.state.handle_rotation_wanted(now),
        }
    }

    pub(super) fn report_events(&mut self) {
        let Some(session) = self.live.as_mut().and_then(|l| l.session.as_mut()) else {
            return;
        };
        if !session.is_open() || session.telemetry_waiting() > 0 {
            return;
        }
        if let Some((first, events)) = self.state.spool().next_report(message::EVENTS_MAX)
            && session.events(first, events).is_err()
        {
            self.state.spool().handle_uplink_down();
        }
    }
}

/// Returns the boot's id as 16 bytes; zeros where there is none.
fn boot_id() -> [u8; 16] {
    let text = process::boot_id().unwrap_or_default();
    let digest = hedgerow_model::id::Digest::of(text.as_bytes()).0;
    let mut id = [0; 16];
    for (slot, byte) in id.iter_mut().zip(digest) {
        *slot = byte;
    }
    id
}
