//! The machine's handshakes: begun, answered, retried, given up.

use std::time::Duration;

use hedgerow_model::path::Path;
use hedgerow_model::statement::X25519Public;
use hedgerow_model::{Mono, Now};
use zeroize::Zeroizing;

use super::Report;
use super::core::{Core, NoEntropy};
use super::limits::Admission;
use super::mac::MacKeys;
use super::message::{self, COOKIE_REPLY_BYTES, INITIATION_BYTES, RESPONSE_BYTES, put};
use super::noise::{Ephemeral, Initiator, Responder, Timestamp, TransportKeys};
use super::peers::{Handshake, Peer, SentMac};
use super::session::{Agreement, Session, Side};
use super::timers::{
    self, INITIATION_INTERVAL_MIN, REKEY_ATTEMPT_TIME, REKEY_JITTER_MS_MAX, REKEY_TIMEOUT,
};

/// Responses tried against one attempt; beyond, only the next attempt can succeed.
const FORGERIES_MAX: u32 = 16;
/// TAI64 label of 1970-01-01, by the paper without leap seconds.
const TAI64_EPOCH: u64 = 0x4000_0000_0000_000a;

impl Core {
    /// Begins a handshake with a peer unless one is under way or nobody knows where it is.
    pub(super) fn begin_handshake(&mut self, place: u32, now: Now) {
        let local = self.key.public;
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        let Some(newest) = peer.current_key.as_ref().or(peer.previous_key.as_ref()) else {
            return;
        };
        if peer.handshake.is_some() || peer.endpoint.is_none() {
            return;
        }
        peer.handshake = Some(Box::new(Handshake {
            state: None,
            own_index: 0,
            local,
            remote: newest.public,
            attempts: 0,
            retry_at: now.mono,
            give_up_at: now.mono + REKEY_ATTEMPT_TIME,
            forgeries: 0,
        }));
        self.attempt(place, now);
        self.arm(place);
    }

    /// Begins a handshake with a peer that keeps silent: later, when nobody sends to it and too many such
    /// are under way.
    pub(super) fn begin_unless_dear(&mut self, place: u32, now: Now) {
        if self.may_attempt(place, now.mono) {
            self.begin_handshake(place, now);
        } else if let Some(peer) = self.peers.get_mut(place) {
            peer.due.reply = Some(now.mono + REKEY_TIMEOUT);
        }
    }

    fn may_attempt(&mut self, place: u32, now: Mono) -> bool {
        let peer = self.peers.get(place);
        peer.is_some_and(|peer| peer.is_wanted(now)) || self.limits.may_attempt_idle(now)
    }

    /// Makes the next attempt of a running handshake now.
    pub(super) fn hasten_handshake(&mut self, place: u32, now: Now) {
        let peer = self.peers.get_mut(place);
        let handshake = peer.and_then(|p| p.handshake.as_deref_mut());
        if let Some(handshake) = handshake {
            handshake.attempts = 0;
            handshake.give_up_at = now.mono + REKEY_ATTEMPT_TIME;
            self.attempt(place, now);
        }
    }

    pub(super) fn handshake_timeout(&mut self, place: u32, now: Now) {
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        let Some(handshake) = &peer.handshake else {
            return;
        };
        if handshake.give_up_at <= now.mono {
            let index = handshake.own_index;
            let device = peer.device;
            peer.handshake = None;
            self.stats.dropped_waiting += peer.waiting.clear(&mut self.budget);
            self.stats.handshakes_unanswered += 1;
            self.peers.free_index(index);
            self.report(Report::Unanswered { device });
        } else if handshake.retry_at <= now.mono {
            if self.may_attempt(place, now.mono) {
                self.attempt(place, now);
            } else {
                let wait = REKEY_TIMEOUT + self.jitter();
                let peer = self.peers.get_mut(place);
                if let Some(handshake) = peer.and_then(|p| p.handshake.as_deref_mut()) {
                    handshake.retry_at = now.mono + wait;
                }
            }
        }
    }

    pub(super) fn handle_initiation(
        &mut self,
        from: Path,
        message: &[u8; INITIATION_BYTES],
        now: Now,
    ) {
        if !self.own_keys().any(|k| k.macs.mac1_holds(message)) {
            self.stats.dropped_bad_mac += 1;
            return;
        }
        if self.limits.secret_is_stale(now.mono) {
            let Ok(secret) = self.random() else { return };
            self.limits.set_secret(secret, now.mono);
        }
        match self.limits.admit(from.to, message, now.mono) {
            Admission::Process => self.answer(from, message, now),
            Admission::Refuse => self.stats.dropped_handshake_rate += 1,
            Admission::Prove(cookie) => {
                self.stats.dropped_handshake_rate += 1;
                let Ok(nonce) = self.random() else { return };
                let key = self.own_keys().find(|k| k.macs.mac1_holds(message));
                let reply = key.and_then(|k| k.macs.seal_cookie(message, &cookie, nonce));
                if let Some(reply) = reply {
                    self.stats.cookies_sent += 1;
                    self.send(from, reply.to_vec());
                }
            }
        }
    }

    pub(super) fn handle_response(&mut self, message: &[u8; RESPONSE_BYTES], now: Now) {
        let own_index = message::u32_at(message, 8);
        if !self.own_keys().any(|k| k.macs.mac1_holds(message)) {
            self.stats.dropped_bad_mac += 1;
            return;
        }
        let Some(place) = self.peers.by_index(own_index) else {
            self.stats.dropped_no_session += 1;
            return;
        };
        let peer = self.peers.get_mut(place);
        let running = peer.and_then(|p| {
            let (local, remote) = p.handshake.as_ref().map(|h| (h.local, h.remote))?;
            let psks = p.key(&remote)?.psks(&local);
            Some((p.handshake.as_deref_mut()?, psks))
        });
        let running =
            running.filter(|(h, _)| h.own_index == own_index && h.forgeries < FORGERIES_MAX);
        let Some((handshake, psks)) = running else {
            self.stats.dropped_no_session += 1;
            return;
        };
        let psks: Vec<_> = psks.iter().map(Option::as_ref).collect();
        let state = handshake.state.as_mut();
        let Some(Ok((keys, fitting))) = state.map(|s| s.finish(message, &psks)) else {
            handshake.forgeries += 1;
            self.stats.dropped_forged += 1;
            return;
        };
        let agreed = Agreement {
            own_index,
            remote_index: message::u32_at(message, 4),
            side: Side::Initiator,
            born: now.mono,
            local: handshake.local,
            remote: handshake.remote,
            psk: psks.get(fitting).is_some_and(Option::is_some),
        };
        let key = self
            .peers
            .get_mut(place)
            .and_then(|p| p.key_mut(&agreed.remote));
        if let Some(key) = key {
            key.answered(&agreed.local, fitting);
        }
        self.use_session(place, agreed, keys, now);
    }

    pub(super) fn handle_cookie_reply(&mut self, message: &[u8; COOKIE_REPLY_BYTES], now: Now) {
        let own_index = message::u32_at(message, 4);
        let place = self.peers.by_index(own_index);
        let Some(peer) = place.and_then(|p| self.peers.get_mut(p)) else {
            self.stats.dropped_no_session += 1;
            return;
        };
        let sent = peer.last_mac.as_ref().filter(|m| m.own_index == own_index);
        let opened = sent.and_then(|sent| {
            let key = peer.key(&sent.remote)?;
            Some((
                sent.remote,
                MacKeys::of(&key.public).open_cookie(message, &sent.mac1)?,
            ))
        });
        match opened {
            Some((remote, cookie)) => {
                // Used by the next attempt: an answer at once would let a stranger make us send.
                if let Some(key) = peer.key_mut(&remote) {
                    key.set_cookie(cookie, now.mono);
                }
            }
            None => self.stats.dropped_forged += 1,
        }
    }

    /// The peer has used the session in which we responded: so do we.
    pub(super) fn confirm_next(&mut self, place: u32, now: Now) {
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        let next = peer.sessions.next.take();
        let gone = peer.sessions.advance(next);
        peer.last_mac = None;
        // A handshake of our own is no longer needed.
        let given_up = peer.handshake.take().map(|h| h.own_index);
        if let Some(index) = given_up {
            self.peers.free_index(index);
        }
        self.free_session(gone.as_deref());
        self.established(place);
        self.flush(place, false, now);
    }

    /// A handshake of ours is complete: its session is used at once.
    fn use_session(&mut self, place: u32, agreed: Agreement, keys: TransportKeys, now: Now) {
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        (peer.handshake, peer.last_mac) = (None, None);
        peer.due.reply = None;
        peer.last_received = Some(now.mono);
        let session = Session::new(agreed, keys);
        let gone = peer.sessions.advance(Some(Box::new(session)));
        self.free_session(gone.as_deref());
        self.established(place);
        // The peer waits for proof that we have the keys.
        self.flush(place, true, now);
        self.arm(place);
    }

    fn established(&mut self, place: u32) {
        self.stats.handshakes_done += 1;
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        let agreed = peer.sessions.current.as_ref().map(|s| s.agreed);
        let psk = agreed.is_some_and(|a| a.psk);
        // The peer has the newest pre-shared key: nothing may be agreed under an older one any more.
        if let Some(agreed) = agreed.filter(|a| a.psk)
            && let Some(key) = peer.key_mut(&agreed.remote)
        {
            key.forget_former(&agreed.local);
        }
        if let Some(endpoint) = peer.endpoint {
            let device = peer.device;
            self.report(Report::Established {
                device,
                endpoint,
                psk,
            });
        }
    }

    fn free_session(&mut self, session: Option<&Session>) {
        if let Some(session) = session {
            self.ready.forget(session.agreed.own_index);
            self.peers.free_index(session.agreed.own_index);
        }
    }

    /// Opens an initiation and answers it if it is a peer's and new.
    fn answer(&mut self, from: Path, message: &[u8; INITIATION_BYTES], now: Now) {
        let Ok(ephemeral) = self.ephemeral() else {
            return;
        };
        let key = self.own_keys().find(|k| k.macs.mac1_holds(message));
        let opened =
            key.and_then(|k| Some((k.public, Responder::open(k, message, ephemeral).ok()?)));
        let Some((local, responder)) = opened else {
            self.stats.dropped_unknown += 1;
            return;
        };
        let remote = responder.remote;
        let Some(place) = self.peers.by_key(&remote) else {
            self.stats.dropped_unknown += 1;
            let public_key = remote;
            self.report_suspicion(Report::HandshakeFromUnknown { public_key, from }, now);
            return;
        };
        let peer = self.peers.get_mut(place);
        let Some(key) = peer.and_then(|p| p.key_mut(&remote)) else {
            return;
        };
        if key.last_timestamp >= Some(responder.timestamp) {
            self.stats.dropped_replayed_handshake += 1;
            return;
        }
        let is_early = |at| now.mono.since(at) < INITIATION_INTERVAL_MIN;
        if key.last_initiation.is_some_and(is_early) {
            self.stats.dropped_handshake_rate += 1;
            return;
        }
        key.last_timestamp = Some(responder.timestamp);
        key.last_initiation = Some(now.mono);
        self.respond(place, from, (local, responder), now);
    }

    fn respond(
        &mut self,
        place: u32,
        from: Path,
        (local, responder): (X25519Public, Responder),
        now: Now,
    ) {
        let Ok(own_index) = self.claim_index(place) else {
            return;
        };
        let remote = responder.remote;
        let key = self.peers.get(place).and_then(|p| p.key(&remote));
        let psk = key.and_then(|k| k.psk(&local));
        let answer = key.map(|_| responder.respond(psk, own_index));
        let psk = psk.is_some();
        let Some(Ok((mut response, keys, remote_index))) = answer else {
            self.peers.free_index(own_index);
            return;
        };
        let agreed = Agreement {
            own_index,
            remote_index,
            side: Side::Responder,
            born: now.mono,
            local,
            remote,
            psk,
        };
        let session = Box::new(Session::new(agreed, keys));
        let peer = self.peers.get_mut(place);
        let gone = peer.and_then(|peer| peer.sessions.next.replace(session));
        self.free_session(gone.as_deref());
        self.sign(place, own_index, &remote, &mut response, now);
        self.send(from, response.to_vec());
        self.arm(place);
    }

    /// Sends an initiation with the pair of keys whose turn it is.
    fn attempt(&mut self, place: u32, now: Now) {
        let Some(peer) = self.peers.get(place) else {
            return;
        };
        let (Some(handshake), Some(to)) = (&peer.handshake, peer.endpoint) else {
            return;
        };
        let (attempts, old_index) = (handshake.attempts, handshake.own_index);
        let pairs = self.pairs(peer);
        let (pair, wait) = timers::attempt(attempts, pairs.len());
        let pair = pairs.get(pair).copied();
        self.peers.free_index(old_index);
        let begun = pair.and_then(|pair| self.initiate(place, pair, now));
        let jitter = self.jitter();
        let peer = self.peers.get_mut(place);
        let Some(handshake) = peer.and_then(|p| p.handshake.as_deref_mut()) else {
            return;
        };
        handshake.attempts = attempts.saturating_add(1);
        handshake.retry_at = now.mono + wait + jitter;
        handshake.forgeries = 0;
        handshake.state = None;
        if let (Some((state, own_index, bytes)), Some((local, remote))) = (begun, pair) {
            handshake.state = Some(state);
            handshake.own_index = own_index;
            handshake.local = local;
            handshake.remote = remote;
            self.stats.handshakes_begun += 1;
            self.send(to, bytes.to_vec());
        }
        self.arm(place);
    }

    /// The pairs of keys, ours and the peer's, in the order in which they are tried.
    ///
    /// The newest first, with one exception: after we have rotated, a running session shows that the
    /// peer knows our old key, and nothing shows that it knows the new one, under which it would take
    /// us for a stranger. Once it has heard of it, it begins a handshake itself.
    fn pairs(&self, peer: &Peer) -> Vec<(X25519Public, X25519Public)> {
        let mut locals: Vec<X25519Public> = self.own_keys().map(|k| k.public).collect();
        let newest = peer.current_key.as_ref().map(|k| k.public);
        let session = peer.sessions.current.as_ref().map(|s| s.agreed);
        let proven = session
            .filter(|s| Some(s.remote) == newest)
            .map(|s| s.local);
        locals.sort_by_key(|local| Some(*local) != proven);
        let remotes = [&peer.current_key, &peer.previous_key];
        let remotes = remotes.into_iter().flatten().map(|k| k.public);
        remotes
            .flat_map(|remote| locals.iter().map(move |local| (*local, remote)))
            .collect()
    }

    fn initiate(
        &mut self,
        place: u32,
        (local, remote): (X25519Public, X25519Public),
        now: Now,
    ) -> Option<(Initiator, u32, [u8; INITIATION_BYTES])> {
        let ephemeral = self.ephemeral().ok()?;
        let timestamp = self.timestamp(now);
        let own_index = self.claim_index(place).ok()?;
        let local = self.own_keys().find(|k| k.public == local)?;
        let psk = self.peers.get(place)?.key(&remote)?.psk(&local.public);
        let begun = Initiator::begin(local, &remote, psk, (own_index, timestamp), ephemeral);
        let Ok((state, mut bytes)) = begun else {
            self.peers.free_index(own_index);
            return None;
        };
        self.sign(place, own_index, &remote, &mut bytes, now);
        Some((state, own_index, bytes))
    }

    /// Writes the macs of a handshake message and remembers them for a cookie reply.
    fn sign(
        &mut self,
        place: u32,
        own_index: u32,
        remote: &X25519Public,
        message: &mut [u8],
        now: Now,
    ) {
        let Some(peer) = self.peers.get_mut(place) else {
            return;
        };
        let Some(key) = peer.key(remote) else {
            return;
        };
        let mac1 = MacKeys::of(remote).sign(message, key.cookie(now.mono));
        peer.last_mac = Some(Box::new(SentMac {
            own_index,
            mac1,
            remote: *remote,
        }));
    }

    /// Later than every timestamp before, across restarts too by the wall clock's floor.
    fn timestamp(&mut self, now: Now) -> Timestamp {
        let ms = now.wall.0.max(self.last_stamp_ms.saturating_add(1));
        self.last_stamp_ms = ms;
        let nanos = u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000;
        let mut stamp = [0; 12];
        put(
            &mut stamp,
            0,
            &TAI64_EPOCH.saturating_add(ms / 1000).to_be_bytes(),
        );
        put(&mut stamp, 8, &nanos.to_be_bytes());
        stamp
    }

    fn claim_index(&mut self, place: u32) -> Result<u32, NoEntropy> {
        loop {
            // At most some hundred thousand of four thousand million are taken.
            let index = u32::from_le_bytes(self.random()?);
            if self.peers.claim_index(index, place) {
                return Ok(index);
            }
        }
    }

    fn jitter(&mut self) -> Duration {
        let random = self.random().map_or(0, u64::from_le_bytes);
        Duration::from_millis(random % (REKEY_JITTER_MS_MAX + 1))
    }

    fn ephemeral(&mut self) -> Result<Ephemeral, NoEntropy> {
        self.random().map(Zeroizing::new)
    }

    fn random<const N: usize>(&mut self) -> Result<[u8; N], NoEntropy> {
        let mut bytes = [0; N];
        (self.entropy)(&mut bytes)?;
        Ok(bytes)
    }
}
