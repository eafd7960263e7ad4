//! The first message: who is it, may it be served, and was its key copied?

use std::time::Duration;

use hedgerow_identity::certificate::{Access, PeerIdentity};
use hedgerow_model::Mono;
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::Revision;
use hedgerow_model::path;
use hedgerow_model::resource::{ResourceHead, ResourceKind};
use hedgerow_sync::message::{Hello, Welcome};

use super::{Agent, End, Standing};
use crate::entropy;
use crate::hub::{Counters, Live, dirty};
use crate::journal::Note;
use crate::sign::Signer;
use crate::snapshot::Snapshot;
use crate::store::devices::DeviceRecord;

/// How long an agent that must hand up its revocations may take.
const HAND_UP_WITHIN: Duration = Duration::from_secs(10);
/// Agents sent away come back after this, and up to as much again.
const BUSY_SECS: u64 = 5;
/// Furthest that a device's count of starts can have gone on unseen.
const GENERATION_JUMP_MAX: u64 = 1 << 32;
/// What an agent is told whose device this controller does not have.
pub(super) const UNKNOWN: &str = "this controller does not know the device; enroll it again";

/// How long the end of an older connection may take to be noticed.
const TOLD_AFTER: Duration = Duration::from_secs(2);

/// What a greeting shows of the identity's other uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copies {
    /// None.
    Alone,
    /// A session with the same identity lives: one of the two is old, or a copy.
    Contested,
    /// The generation did not grow: this is a copy.
    Stale,
}

impl Agent {
    /// Decides on the agent's greeting.
    pub(super) async fn greeted(&mut self, hello: Hello) -> Result<(), End> {
        let control = self.control.clone();
        let snapshot = control.snapshot();
        if control.hub.open() > control.config.limits.sessions_max {
            Counters::add(&control.hub.counters.busy);
            let jitter = u64::from(u16::from_ne_bytes(entropy::bytes())) % (BUSY_SECS * 1000);
            self.session
                .busy(Duration::from_millis(BUSY_SECS * 1000 + jitter));
            return Ok(());
        }
        let record = snapshot.device(self.device).cloned();
        if let Some(why) = refusal(&snapshot, record.as_deref()) {
            self.session.bye(&why);
            return Ok(());
        }
        if hello.generation > self.generation().saturating_add(GENERATION_JUMP_MAX) {
            self.session.bye("the count of starts is out of range");
            return Ok(());
        }
        let now = control.clock.now().mono;
        let welcome = self.welcome(&snapshot, record.as_deref(), &hello, now);
        self.session.welcome(welcome, now)?;
        let copies = self.enter(&hello);
        // Whatever was decided since the first look reaches this session by its signal from now on.
        let snapshot = control.snapshot();
        let record = snapshot.device(self.device);
        let why = refusal(&snapshot, record.map(|r| &**r));
        if let Some(why) = why.or_else(|| untrusted(&snapshot, &self.peer)) {
            self.session.bye(&why);
            return Ok(());
        }
        match copies {
            Copies::Alone => {
                self.arrived(&hello);
                self.serve_now(&hello)
            }
            Copies::Contested => {
                self.hello = Some(Box::new(hello));
                self.wait_for_the_other();
                Ok(())
            }
            Copies::Stale => self.copied().await,
        }
    }

    /// Says where the controller stands, and notes what the agent must hand up.
    fn welcome(
        &mut self,
        snapshot: &Snapshot,
        record: Option<&DeviceRecord>,
        hello: &Hello,
        now: Mono,
    ) -> Welcome {
        let restored = snapshot.restored.filter(|restored| {
            hello.revocations > *restored && hello.revocations.timeline < snapshot.revision.timeline
        });
        let newer_states = |restored: &Revision| {
            hello.heads.iter().any(|h| {
                h.kind == ResourceKind::States
                    && h.version > *restored
                    && h.version.timeline < snapshot.revision.timeline
            })
        };
        let restored_states = snapshot.restored_states.filter(newer_states);
        let welcome = Welcome {
            capability: hello.capability,
            now_secs: self.control.clock.wall().secs(),
            beacon: (*self.control.newest_beacon()).clone(),
            session: self.number,
            revocations: restored.map_or_else(
                || snapshot.standing.revocation_version(),
                |_| snapshot.restored.unwrap_or_default(),
            ),
            manifest: snapshot.trust.manifest().version,
            ticket_epoch: record.map_or(0, |r| r.epoch),
            states: Some(restored_states.unwrap_or_else(|| snapshot.standing.states_revision())),
        };
        if snapshot.restored.is_some() {
            let newer_ticket = |h: &ResourceHead| {
                h.kind == ResourceKind::Ticket && h.version.timeline > welcome.ticket_epoch
            };
            if restored.is_some() {
                self.awaits.insert(ResourceKind::Revocations);
            }
            if restored_states.is_some() {
                self.awaits.insert(ResourceKind::States);
            }
            if record.is_none() || hello.heads.iter().any(newer_ticket) {
                self.awaits.insert(ResourceKind::Ticket);
            }
            self.awaits_until = now + HAND_UP_WITHIN;
        }
        welcome
    }

    /// Returns the newest start of the device's agent that was believed.
    fn generation(&self) -> u64 {
        let snapshot = self.control.snapshot();
        let stored = snapshot.device(self.device).map_or(0, |d| d.generation);
        self.control
            .hub
            .with(self.device, |s| s.generation.max(stored))
    }

    /// Takes a place in the hub.
    fn enter(&mut self, hello: &Hello) -> Copies {
        let now = self.control.clock.wall();
        let live = Live {
            session: self.number,
            signal: self.signal.clone(),
            since: now,
            source: self.source.clone(),
        };
        let stored = self
            .control
            .snapshot()
            .device(self.device)
            .map_or(0, |d| d.generation);
        self.control.hub.with(self.device, |s| {
            let newest = s.generation.max(stored);
            let copies = if hello.generation <= newest {
                Copies::Stale
            } else if let Some(other) = &s.live {
                other.signal.raise(dirty::CONTESTED);
                Copies::Contested
            } else {
                Copies::Alone
            };
            match copies {
                Copies::Alone => {
                    s.live = Some(live);
                    self.control.hub.serves_one_more();
                    s.events_upto = 0;
                    s.progress = crate::hub::Progress::default();
                }
                Copies::Contested | Copies::Stale => {
                    if let Some(replaced) = s.held.replace(live) {
                        replaced.signal.raise(dirty::REPLACED);
                    }
                }
            }
            copies
        })
    }

    /// Believes what an agent said of itself that is not a copy: its start, and all else only while its
    /// certificate allows everything.
    fn arrived(&self, hello: &Hello) {
        let now = self.control.clock.now();
        let is_full = self.peer.access() == Access::Full;
        self.control
            .note(Note::Generation(self.device, hello.generation));
        self.control.hub.with(self.device, |s| {
            s.generation = s.generation.max(hello.generation);
            s.seen = now.wall;
            if !is_full {
                return;
            }
            s.agent_version.clone_from(&hello.agent_version);
            s.endpoints.clone_from(&hello.endpoints);
            if let Some(v) = &hello.verified {
                s.progress.verified = Some((v.revision, v.table_hash, now.mono, now.wall));
            }
        });
    }

    /// Serves the agent from now on.
    fn serve_now(&mut self, hello: &Hello) -> Result<(), End> {
        self.set_served()?;
        if self.standing != Standing::Served {
            return Ok(());
        }
        if self.is_relay() {
            self.tell_beacon()?;
        }
        if !self.awaits.is_empty() {
            return Ok(());
        }
        self.first_offers(hello)
    }

    /// Gives the session what its certificate allows.
    fn set_served(&mut self) -> Result<(), End> {
        match self.peer.access() {
            Access::Full => {
                self.standing = Standing::Served;
                self.session.release();
            }
            Access::RenewOnly => {
                self.standing = Standing::RenewOnly;
                self.session
                    .hold("the certificate has expired: renew it, then come back")?;
            }
        }
        Ok(())
    }

    fn first_offers(&mut self, hello: &Hello) -> Result<(), End> {
        let snapshot = self.control.snapshot();
        self.offers.refresh(
            &self.control,
            &snapshot,
            self.device,
            &hello.heads,
            dirty::ALL,
        )?;
        let current = snapshot
            .device(self.device)
            .is_some_and(|d| d.key_hash == self.peer.spki_digest());
        if !current {
            // It shows an older certificate than the newest we issued: the ticket with the newer
            // key is for when it comes with that one.
            self.offers.withhold(ResourceKind::Ticket);
        }
        self.offers.settle(&hello.heads, hello.revision, &snapshot);
        let revision = self.offers.revision(&snapshot, hello.revision);
        self.wanted = Some(revision);
        self.session.handle_wanted(revision, self.offers.list());
        self.control
            .hub
            .with(self.device, |s| s.progress.wanted = Some(revision));
        self.control.hub.came_further();
        Ok(())
    }

    /// Waits until it is clear whether the other session lives.
    fn wait_for_the_other(&mut self) {
        self.standing = Standing::Held;
        // An agent that came back faster than its old connection ended need not hear of this.
        self.told_at = self.control.clock.now().mono + TOLD_AFTER;
    }

    /// This identity is used twice: both are flagged, the later one gets nothing.
    async fn copied(&mut self) -> Result<(), End> {
        self.standing = Standing::Held;
        self.session.hold(
            "this identity was already used by a later connection: its disk was copied or restored; \
             an operator must decide (hedgerow device release, or revoke and enroll again)",
        )?;
        self.control.flag(self.device).await?;
        let at = self.control.clock.wall();
        let other = self
            .control
            .hub
            .with(self.device, |s| s.live.as_ref().map(|l| l.source.clone()));
        let event = |kind| {
            Event::new(at, kind)
                .device(self.device)
                .detail("source", &self.source)
                .detail("other", other.as_deref().unwrap_or("not connected"))
        };
        self.control.event(event(EventKind::KeyCopied));
        self.control.event(event(EventKind::SessionHeld));
        Ok(())
    }

    /// Writes to the agent: when its machine has forgotten the connection, this ends it.
    pub(super) fn probe(&mut self) -> Result<(), End> {
        let beacon = self.control.newest_beacon();
        Ok(self.session.beacon(&beacon, None)?)
    }

    /// Sends the newest beacon; to a relay with the head of the policy, for those who are cut off.
    pub(super) fn tell_beacon(&mut self) -> Result<(), End> {
        let beacon = self.control.newest_beacon();
        let head = match self.is_relay() {
            true => {
                let (authority, snapshot) = (self.control.authority(), self.control.snapshot());
                let signer = Signer {
                    authority: &authority,
                    trust: &snapshot.trust,
                };
                Some(snapshot.policy.head(signer)?)
            }
            false => None,
        };
        Ok(self.session.beacon(&beacon, head)?)
    }

    /// Whether the device hands on what it hears to devices that are cut off.
    pub(super) fn is_relay(&self) -> bool {
        let snapshot = self.control.snapshot();
        let record = snapshot.device(self.device);
        record.is_some_and(|r| path::is_relay(&r.labels))
    }

    /// The agent spoke although another session claims its identity: both live.
    pub(super) async fn is_alive(&mut self) {
        self.contested = false;
        let at = self.control.clock.wall();
        let other = self
            .control
            .hub
            .with(self.device, |s| s.held.as_ref().map(|l| l.source.clone()));
        let Some(other) = other else { return };
        if let Err(error) = self.control.flag(self.device).await {
            tracing::error!(%error, "the copied key could not be flagged");
        }
        let event = |kind| {
            Event::new(at, kind)
                .device(self.device)
                .detail("source", &other)
                .detail("other", &self.source)
        };
        self.control.event(event(EventKind::KeyCopied));
        self.control.event(event(EventKind::SessionHeld));
    }

    /// A held session takes the place of one that ended.
    pub(super) fn promote(&mut self) -> Result<(), End> {
        let number = self.number;
        let taken = self.control.hub.with(self.device, |s| {
            if s.live.is_none() {
                s.live = s.held.take_if(|l| l.session == number);
                if s.live.is_some() {
                    self.control.hub.serves_one_more();
                }
            }
            s.live.as_ref().is_some_and(|l| l.session == number)
        });
        if !taken {
            return Ok(());
        }
        self.told_at = Mono::NEVER;
        if let Some(hello) = self.hello.take() {
            self.arrived(&hello);
        }
        self.set_served()?;
        self.refresh(dirty::ALL)
    }
}

/// Returns why a device is not served at all.
fn refusal(snapshot: &Snapshot, record: Option<&DeviceRecord>) -> Option<String> {
    match record {
        Some(record) => record
            .ended
            .as_ref()
            .map(|e| format!("this device was {}; enroll it again", e.how)),
        // After a restore devices are taken back by the tickets they hand up.
        None if snapshot.restored.is_some() => None,
        None => Some(UNKNOWN.to_owned()),
    }
}

/// Returns why a certificate that was believed at the door is not believed any more.
pub(super) fn untrusted(snapshot: &Snapshot, peer: &PeerIdentity) -> Option<String> {
    let (device, site) = peer.device()?;
    let standing = &snapshot.standing;
    if let Some(what) = standing.revocation_of(device, site, &peer.key()) {
        return Some(format!("revoked: {what:?}"));
    }
    match snapshot.trust.issuer(peer.issuer()) {
        Some(scope) => standing
            .issuer_revocation(peer.issuer(), &scope.key())
            .map(|what| format!("its issuer is revoked: {what:?}")),
        None => Some("its issuer is no longer trusted".to_owned()),
    }
}
