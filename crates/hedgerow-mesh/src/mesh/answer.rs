//! The answering side: who asks, and may they?
//!
//! Checks go from cheap to dear, and each may end in silence:
//!
//! ```text
//!  length, version ─▶ check under our key ─▶ budgets ─▶ agreement ─▶ agreement (key proven)
//!   ─▶ content, addressee, timestamp ─▶ budget ─▶ ticket ─▶ binding ─▶ policy ─▶ answer
//! ```

use hedgerow_identity::Verified;
use hedgerow_identity::statement::verify_binding;
use hedgerow_model::Now;
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{Binding, Ticket, X25519Public};

use super::ask::{age, same_facts};
use super::{ANSWER_WITHIN, ANSWERING_MAX, CLOCK_AHEAD_MAX, Mesh, Refused, Timer, View};
use crate::budget::Spent;
use crate::introduction::{self, Answer, Ask, IntroductionSecret, MARK_LABEL, Outer, PROLOGUE};
use crate::noise::{Opening, Responder};
use crate::output::{Output, Refusal};

/// A device that asked, verified, while the policy is asked about it.
pub(super) struct Answering {
    source: Path,
    responder: Responder,
    timestamp_ms: u64,
    /// Which ticket of ours it holds.
    known: (u64, u64),
    ticket: Verified<Ticket>,
    binding: Verified<Binding>,
}

impl Answering {
    pub(super) fn source(&self) -> Path {
        self.source
    }

    pub(super) fn ticket(&self) -> Verified<Ticket> {
        self.ticket.clone()
    }

    /// Returns whether the ticket still holds.
    pub(super) fn holds(&self, view: View<'_>) -> bool {
        view.trust
            .recheck_ticket(&self.ticket, view.standing, view.now)
            .is_ok()
    }
}

impl From<Spent> for Refused {
    fn from(spent: Spent) -> Self {
        match spent {
            Spent::Source => (Refusal::SourceBudget, None),
            Spent::Global => (Refusal::GlobalBudget, None),
        }
    }
}

impl Mesh {
    /// Takes a question. `Err` is silence.
    pub(super) fn introduce(
        &mut self,
        source: Path,
        bytes: &[u8],
        view: View<'_>,
    ) -> Result<(), Refused> {
        let outer = Outer::parse(bytes).map_err(|_e| (Refusal::Malformed, None))?;
        let (responder, ask) = self.open(source, &outer, view.now)?;
        let key = X25519Public(responder.initiator());
        self.check_timestamp(key, ask.timestamp_ms, view.now)?;
        self.budgets.verify(view.now.mono)?;
        let ticket = self.check_ticket(&ask, key, view)?;
        let device = ticket.id;
        let refused = |reason: Refusal| (reason, Some(device));
        self.counts.work.signatures += 1;
        let binding = verify_binding(&ask.binding, &ticket, view.now);
        let binding = binding.map_err(|e| refused(Refusal::from(&e)))?;
        self.heard(key, ask.timestamp_ms);
        let answering = Answering {
            source,
            responder,
            timestamp_ms: ask.timestamp_ms,
            known: ask.known,
            ticket,
            binding,
        };
        let peer = self.peers.get(device);
        if peer.is_some_and(|peer| same_facts(&peer.ticket, &answering.ticket)) {
            return self.answer(device, answering, view);
        }
        if self.answering.len() >= ANSWERING_MAX && !self.answering.contains_key(&device) {
            return Err(refused(Refusal::Busy));
        }
        let ticket = answering.ticket.clone();
        self.answering.insert(device, answering);
        self.timers
            .set(Timer::Answer(device), view.now.mono + ANSWER_WITHIN);
        self.output.push_back(Output::Admit { device, ticket });
        Ok(())
    }

    /// Opens a question that was made for us, within the budgets. After this the asking key is
    /// proven, and nothing else.
    fn open(
        &mut self,
        source: Path,
        outer: &Outer<'_>,
        now: Now,
    ) -> Result<(Responder, Ask), Refused> {
        let own = self.own.as_ref().ok_or((Refusal::NotReady, None))?;
        let secret = own.secrets().find(|secret| outer.is_for(&secret.public));
        let secret: &IntroductionSecret = secret.ok_or((Refusal::WrongCheck, None))?;
        self.budgets.open(source.to, now.mono)?;
        let unopened = |_e| (Refusal::Unopened, None);
        self.counts.work.agreements += 1;
        let opening = Opening::start(PROLOGUE, &secret.secret, outer.noise).map_err(unopened)?;
        self.counts.work.agreements += 1;
        let (responder, payload) = opening.payload(&secret.secret).map_err(unopened)?;
        if own
            .secrets()
            .any(|s| s.public.to_bytes() == responder.initiator())
        {
            return Err((Refusal::Ourselves, None));
        }
        let ask = Ask::decode(&payload).map_err(|_e| (Refusal::Malformed, None))?;
        if ask.responder != own.device() {
            return Err((Refusal::OtherResponder, None));
        }
        Ok((responder, ask))
    }

    /// Refuses what is not newer than the last of this key, and what is from far in the future. A
    /// remembered timestamp from far in the future was taken while our clock could not tell.
    fn check_timestamp(
        &self,
        key: X25519Public,
        timestamp_ms: u64,
        now: Now,
    ) -> Result<(), Refused> {
        let plausible = |ms: u64| !now.wall_is_trusted || ms <= (now.wall + CLOCK_AHEAD_MAX).0;
        if !plausible(timestamp_ms) {
            return Err((Refusal::ClockAhead, None));
        }
        let last = self.heard.get(&key).filter(|ms| plausible(*ms));
        match last {
            Some(last) if timestamp_ms <= last => Err((Refusal::Replayed, None)),
            Some(_) | None => Ok(()),
        }
    }

    fn check_ticket(
        &mut self,
        ask: &Ask,
        key: X25519Public,
        view: View<'_>,
    ) -> Result<Verified<Ticket>, Refused> {
        self.counts.work.signatures += 1;
        let ticket = view
            .trust
            .verify_ticket(&ask.ticket, view.standing, view.now);
        let ticket = ticket.map_err(|e| (Refusal::from(&e), None))?;
        if ticket.introduction_key != key {
            return Err((Refusal::OtherKey, None));
        }
        let device = ticket.id;
        let refused = |reason: Refusal| Err((reason, Some(device)));
        if device == ask.responder {
            return refused(Refusal::Ourselves);
        }
        if view.standing.state(device) == Some(DeviceState::Held) {
            return refused(Refusal::Held);
        }
        let newest = self.peers.get(device).map(|peer| peer.ticket.epoch);
        if newest.is_some_and(|epoch| ticket.epoch < epoch) {
            return refused(Refusal::SupersededTicket);
        }
        Ok(ticket)
    }

    pub(super) fn heard(&mut self, key: X25519Public, timestamp_ms: u64) {
        self.heard.put(key, timestamp_ms);
    }

    pub(super) fn heard_from(&self, key: &X25519Public) -> u64 {
        self.heard.get(key).unwrap_or(0)
    }

    pub(super) fn end_answering(&mut self, device: DeviceId) -> Option<Answering> {
        self.timers.clear(Timer::Answer(device));
        self.answering.remove(&device)
    }

    pub(super) fn admitted_to_answer(&mut self, device: DeviceId, view: View<'_>) {
        let Some(answering) = self.end_answering(device) else {
            return;
        };
        let source = Some(answering.source);
        if let Err((reason, device)) = self.answer(device, answering, view) {
            self.refuse(reason, source, device, view.now.mono);
        }
    }

    /// Makes the peer, then answers. When we were about to ask this device ourselves, that is done
    /// too: both ends hold what they need, whichever message arrives.
    fn answer(
        &mut self,
        device: DeviceId,
        answering: Answering,
        view: View<'_>,
    ) -> Result<(), Refused> {
        let refused = |reason: Refusal| (reason, Some(device));
        let Answering {
            source,
            responder,
            timestamp_ms,
            known,
            ticket,
            binding,
        } = answering;
        let own = self.own.as_ref().ok_or((Refusal::NotReady, None))?;
        let shown = own.shown;
        let current = &own.identity.ticket;
        let answer = Answer {
            binding: own.identity.binding.bytes().to_vec(),
            ticket: (known != age(current)).then(|| current.bytes().to_vec()),
            echo_ms: timestamp_ms,
        };
        // Where our own questions went; a source address proves nothing.
        let endpoint = self.asked_at(device, source);
        self.install(ticket, binding, endpoint, shown, view)
            .map_err(refused)?;
        let bytes = self
            .seal(responder, &answer)
            .ok_or(refused(Refusal::Malformed))?;
        self.output.push_back(Output::Send { to: source, bytes });
        self.counts.work.answers += 1;
        self.end_asking(device);
        Ok(())
    }

    fn seal(&mut self, responder: Responder, answer: &Answer) -> Option<Vec<u8>> {
        let payload = answer.encode().ok()?;
        let mark = responder.mark(MARK_LABEL);
        let mut noise = Vec::new();
        self.counts.work.agreements += 2;
        responder
            .answer(&self.random.secret(), &payload, &mut noise)
            .ok()?;
        Some(introduction::introduced(mark, &noise))
    }
}
