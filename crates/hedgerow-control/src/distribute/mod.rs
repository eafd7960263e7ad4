//! Serving agents: one small task per connection around [`hedgerow_sync::ControllerSession`].
//!
//! ```text
//!  bytes ─▶ session ─▶ outputs ─▶ Controller (store, snapshot)
//!  signal (dirty bits) ─▶ offers from the newest snapshot ─▶ session ─▶ frames ─▶ bytes
//! ```

mod greet;
mod offers;
mod requests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hedgerow_identity::certificate::{Access, PeerIdentity};
use hedgerow_model::id::{DeviceId, Revision};
use hedgerow_model::resource::ResourceKind;
use hedgerow_model::{Mono, Now};
use hedgerow_sync::controller::{ControllerSession, Output};
use hedgerow_sync::message::{Command, Hello};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use self::offers::Offers;
use crate::bounds::Rate;
use crate::control::Controller;
use crate::hub::{Counters, Signal, dirty};
use crate::refusal::Refusal;

/// Bytes read at once; larger messages take several reads.
const READ_BYTES: usize = 512;
/// Most encrypted bytes that wait for the socket: one part of a message.
const TLS_BYTES_MAX: usize = 20 << 10;
/// How long an agent stays away that shall connect again.
const RECONNECT_MILLIS: u64 = 500;
/// How long one frame may take to leave.
const WRITE_WITHIN: Duration = Duration::from_secs(30);
/// Peers that one agent may look for at once, and how often one more.
const RESOLVES_MAX: u32 = 200;
const RESOLVE_EVERY: Duration = Duration::from_millis(50);

/// Where a session stands beyond its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// No hello yet.
    Unknown,
    /// Served.
    Served,
    /// Its certificate has expired: it may ask for a new one.
    RenewOnly,
    /// Another session shows the same identity; this one waits.
    Held,
}

/// One agent's connection.
struct Agent {
    control: Arc<Controller>,
    session: ControllerSession,
    peer: PeerIdentity,
    device: DeviceId,
    number: u64,
    source: String,
    signal: Arc<Signal>,
    standing: Standing,
    offers: Offers,
    /// What the agent must hand up before it is given anything, and how long it may take.
    awaits: BTreeSet<ResourceKind>,
    awaits_until: Mono,
    wanted: Option<Revision>,
    /// This session is the served one, and another claims its identity.
    contested: bool,
    /// What the agent said first, until that is believed.
    hello: Option<Box<Hello>>,
    resolves: Rate,
    /// When this one is told that it is held, unless the other has ended by then.
    told_at: Mono,
}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// As the protocol foresees.
    Quiet(&'static str),
    /// The other end broke the protocol.
    Refused(String),
    /// The network failed.
    Lost,
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> Self {
        Self::Lost
    }
}

impl From<hedgerow_sync::SessionError> for End {
    fn from(error: hedgerow_sync::SessionError) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.to_string())
    }
}

/// Serves one agent until its connection ends.
pub(crate) async fn serve(
    control: Arc<Controller>,
    mut stream: Box<TlsStream<TcpStream>>,
    peer: PeerIdentity,
    device: DeviceId,
    source: String,
) {
    let now = control.clock.now().mono;
    let limits = &control.config.limits;
    if control.hub.open() >= limits.sessions_max.saturating_add(limits.waiting_max) {
        Counters::add(&control.hub.counters.shed);
        return;
    }
    let (socket, tls) = stream.get_mut();
    tls.set_buffer_limit(Some(TLS_BYTES_MAX));
    let lowat = hedgerow_sync::frame::UNSENT_BYTES_MAX;
    if let Err(error) = socket2::SockRef::from(&*socket).set_tcp_notsent_lowat(lowat) {
        tracing::debug!(%error, "urgent frames may wait behind others in the socket");
    }
    control.hub.opened();
    let number = control.hub.session_number();
    let mut agent = Agent {
        session: ControllerSession::new(now),
        peer,
        device,
        number,
        source,
        signal: Arc::default(),
        standing: Standing::Unknown,
        offers: Offers::default(),
        awaits: BTreeSet::new(),
        awaits_until: Mono::NEVER,
        wanted: None,
        contested: false,
        hello: None,
        resolves: Rate::new(RESOLVES_MAX, RESOLVE_EVERY, now),
        told_at: Mono::NEVER,
        control,
    };
    let end = agent.run(&mut stream).await;
    agent.leave();
    agent.control.hub.closed();
    match end {
        End::Quiet(why) => tracing::debug!(%device, number, why, "session ended"),
        End::Lost => tracing::debug!(%device, number, "connection lost"),
        End::Refused(why) => {
            Counters::add(&agent.control.hub.counters.refused);
            tracing::info!(%device, number, why, source = agent.source, "session refused");
        }
    }
    // The agent may be gone already; its socket is closed either way.
    drop(tokio::time::timeout(WRITE_WITHIN, stream.shutdown()).await);
}

impl Agent {
    async fn run(&mut self, stream: &mut TlsStream<TcpStream>) -> End {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Err(end) = self.flush(stream).await {
                return end;
            }
            if self.session.is_closed() {
                return End::Quiet("closed");
            }
            let deadline = self.deadline();
            let step = tokio::select! {
                read = stream.read(&mut buffer) => match read {
                    Ok(0) => Err(End::Quiet("the agent closed")),
                    Ok(n) => self.take(buffer.get(..n).unwrap_or_default()).await,
                    Err(e) => Err(e.into()),
                },
                () = self.signal.raised() => self.woken(),
                () = tokio::time::sleep_until(deadline) => self.timeout(),
            };
            if let Err(end) = step {
                if let Err(lost) = self.flush(stream).await {
                    return lost;
                }
                return end;
            }
        }
    }

    fn deadline(&self) -> tokio::time::Instant {
        let (at, _why) = self.session.deadline();
        let mut at = at
            .min(self.told_at)
            .min(self.expires_at(self.control.clock.now()));
        if !self.awaits.is_empty() {
            at = at.min(self.awaits_until);
        }
        self.control.clock.instant(at)
    }

    async fn flush(&mut self, stream: &mut TlsStream<TcpStream>) -> Result<(), End> {
        while let Some(frame) = self.session.next_frame(self.control.clock.now().mono) {
            let written = tokio::time::timeout(WRITE_WITHIN, stream.write_all(&frame)).await;
            written.map_err(|_elapsed| End::Lost)??;
        }
        let flushed = tokio::time::timeout(WRITE_WITHIN, stream.flush()).await;
        Ok(flushed.map_err(|_elapsed| End::Lost)??)
    }

    async fn take(&mut self, bytes: &[u8]) -> Result<(), End> {
        let now = self.control.clock.now();
        let result = self.session.handle_bytes(bytes, now.mono);
        if matches!(self.standing, Standing::Served | Standing::RenewOnly) {
            self.control.hub.with(self.device, |s| s.seen = now.wall);
        }
        if self.contested {
            self.is_alive().await;
        }
        while let Some(output) = self.session.poll() {
            self.act(output).await?;
        }
        Ok(result?)
    }

    fn timeout(&mut self) -> Result<(), End> {
        let at = self.control.clock.now();
        let now = at.mono;
        self.session.handle_timeout(now);
        if now >= self.expires_at(at) {
            self.check_trust(at);
        }
        if now >= self.told_at {
            self.told_at = Mono::NEVER;
            self.session
                .hold("another session with this identity is open; waiting for it to end")?;
        }
        if !self.awaits.is_empty() && now >= self.awaits_until {
            // It had its chance; what it holds will be offered again at its next connection.
            self.awaits.clear();
            self.refresh(dirty::ALL)?;
        }
        match self.session.poll() {
            Some(Output::Closed(why)) => Err(End::Quiet(why)),
            _ => Ok(()),
        }
    }

    /// Looks at what changed.
    fn woken(&mut self) -> Result<(), End> {
        let (bits, mark) = self.signal.take();
        let result = self.look_at(bits);
        self.signal.handled(mark);
        result
    }

    fn look_at(&mut self, bits: u32) -> Result<(), End> {
        if bits & dirty::STOP != 0 {
            self.session.bye("the controller stops; it will be back");
            return Ok(());
        }
        if bits & dirty::REPLACED != 0 {
            self.session
                .bye("a later session with this identity waits in place of this one");
            return Ok(());
        }
        if bits & dirty::TRUST != 0 {
            self.check_trust(self.control.clock.now());
        }
        if bits & dirty::RECORD != 0 {
            self.check_record()?;
        }
        if bits & dirty::CONTESTED != 0 {
            self.contested = true;
            self.probe()?;
        }
        let tells = match self.is_relay() {
            true => dirty::BEACON | dirty::PROGRAM,
            false => dirty::BEACON,
        };
        if bits & tells != 0 && self.standing == Standing::Served {
            self.tell_beacon()?;
        }
        if bits & dirty::FLOWS != 0 && self.standing == Standing::Served {
            for question in self.control.hub.questions.of(self.device) {
                self.session.ask_flows(question)?;
            }
        }
        if self.standing == Standing::Served {
            self.order(bits)?;
        }
        if bits & dirty::ALL != 0 {
            self.refresh(bits & dirty::ALL)?;
        }
        Ok(())
    }

    /// Gives an operator's orders.
    fn order(&mut self, bits: u32) -> Result<(), End> {
        if bits & dirty::ROTATE_KEYS != 0 {
            self.session.command(Command::RotateKeys)?;
        }
        if bits & dirty::RECONNECT != 0 {
            self.session.command(Command::Reconnect(RECONNECT_MILLIS))?;
        }
        Ok(())
    }

    /// Ends the session of an agent whose certificate is not believed any more.
    fn check_trust(&mut self, now: Now) {
        let snapshot = self.control.snapshot();
        let why = if let Some(why) = greet::untrusted(&snapshot, &self.peer) {
            why
        } else if self.peer.access() == Access::Full
            && now.wall.secs() > self.peer.facts().not_after_secs()
        {
            "the certificate has expired: come back to renew it".to_owned()
        } else {
            return;
        };
        self.session.bye(&why);
    }

    /// When a certificate that allows everything ends; not later than `now` once it has ended.
    fn expires_at(&self, now: Now) -> Mono {
        if self.peer.access() != Access::Full {
            return Mono::NEVER;
        }
        let left = (self.peer.facts().not_after_secs() + 1).saturating_sub(now.wall.secs());
        now.mono + Duration::from_secs(left)
    }

    /// Ends the session of a device that ended, and lets a held one go on that was released.
    fn check_record(&mut self) -> Result<(), End> {
        let snapshot = self.control.snapshot();
        let Some(record) = snapshot.device(self.device) else {
            return Ok(());
        };
        if let Some(ended) = &record.ended {
            let why = format!("this device was {}; enroll it again", ended.how);
            self.session.bye(&why);
            return Ok(());
        }
        if self.standing == Standing::Held && !record.flagged {
            self.promote()?;
        }
        Ok(())
    }

    /// Says to the session what the agent shall hold now.
    fn refresh(&mut self, bits: u32) -> Result<(), End> {
        // Whoever is held may be a copy: it gets nothing until that is settled.
        if self.standing != Standing::Served || !self.awaits.is_empty() {
            return Ok(());
        }
        let snapshot = self.control.snapshot();
        if snapshot.device(self.device).is_none() {
            // It handed up nothing that says who it is. Unknown must not look like "hold nothing".
            self.session.bye(greet::UNKNOWN);
            return Ok(());
        }
        let changed = self.offers.refresh(
            &self.control,
            &snapshot,
            self.device,
            self.session.holds().1,
            bits,
        )?;
        if !changed {
            return Ok(());
        }
        let revision = self.offers.revision(&snapshot, self.session.holds().0);
        self.wanted = Some(revision);
        self.session.handle_wanted(revision, self.offers.list());
        Counters::add(&self.control.hub.counters.updates);
        self.control.hub.with(self.device, |s| {
            if s.live.as_ref().is_some_and(|l| l.session == self.number) {
                s.progress.wanted = Some(revision);
            }
        });
        Ok(())
    }

    async fn act(&mut self, output: Output) -> Result<(), End> {
        match self.standing {
            Standing::Unknown | Standing::Served => self.serve(output).await,
            // Whoever is held may be a copy, and an expired certificate proves little: neither
            // changes anything, learns of anybody or ends the device's time.
            Standing::Held | Standing::RenewOnly => match output {
                Output::Renew(request) => self.renew(request).await,
                Output::Resolve { id, query: _ } => Ok(self.session.resolved(id, None)?),
                Output::Closed(why) => Err(End::Quiet(why)),
                Output::Greeted(_)
                | Output::Received(_)
                | Output::Verified { .. }
                | Output::Rejected { .. }
                | Output::Repaired
                | Output::HandedUp(_)
                | Output::Endpoints(..)
                | Output::Events { .. }
                | Output::Flows(_)
                | Output::Leave => Ok(()),
            },
        }
    }

    async fn serve(&mut self, output: Output) -> Result<(), End> {
        match output {
            Output::Greeted(hello) => self.greeted(*hello).await,
            Output::Received(revision) => {
                self.received(revision);
                Ok(())
            }
            Output::Verified {
                revision,
                table_hash,
                partial: _,
            } => {
                self.verified(revision, table_hash);
                Ok(())
            }
            Output::Rejected {
                revision,
                kind,
                reason,
            } => {
                self.rejected(revision, kind, reason);
                Ok(())
            }
            Output::Repaired => Ok(()),
            Output::HandedUp(statement) => self.handed_up(statement).await,
            Output::Renew(request) => self.renew(request).await,
            Output::Resolve { id, query } => self.resolve(id, query),
            Output::Endpoints(list, relays) => {
                self.control.hub.with(self.device, |s| {
                    s.endpoints = list;
                    s.relays = relays;
                });
                Ok(())
            }
            Output::Events { first, events } => self.events(first, events).await,
            Output::Flows(flows) => {
                self.control.hub.questions.answered(self.device, flows);
                Ok(())
            }
            Output::Leave => self.left().await,
            Output::Closed(why) => Err(End::Quiet(why)),
        }
    }

    /// Gives up the place in the hub; a held session takes it when the served one is gone.
    fn leave(&mut self) {
        if let Some(next) = self.control.hub.leave(self.device, self.number) {
            next.signal.raise(dirty::RECORD);
        }
        self.control.hub.came_further();
    }
}

/// Tells an agent why its certificate is not believed, and closes.
pub(crate) async fn refuse(mut stream: TlsStream<TcpStream>, reason: &str) {
    let now = Mono::ZERO;
    let mut session = ControllerSession::new(now);
    session.bye(reason);
    while let Some(frame) = session.next_frame(now) {
        let written = tokio::time::timeout(WRITE_WITHIN, stream.write_all(&frame)).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
    // The agent may be gone already.
    drop(tokio::time::timeout(WRITE_WITHIN, stream.shutdown()).await);
}
