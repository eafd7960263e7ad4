//! The handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s by `snow`, keys and randomness as arguments.

use std::sync::Arc;

use hedgerow_model::statement::X25519Public;
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::agreement::{Agreement, Prepared};
use super::mac::MacKeys;
use super::message::{self, INITIATION_BYTES, RESPONSE_BYTES};
use super::{PresharedKey, PrivateKey};

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const PSK_LOCATION: u8 = 2;
const NO_PSK: [u8; 32] = [0; 32];

/// TAI64N: later moments compare greater as bytes.
pub(super) type Timestamp = [u8; 12];

/// A handshake message that is not what it should be; the handshake state is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the handshake message does not decrypt")]
pub(super) struct BadHandshake;

/// One of our own keys, with what is derived from it.
pub(super) struct LocalKey {
    pub(super) secret: PrivateKey,
    pub(super) public: X25519Public,
    pub(super) macs: MacKeys,
    prepared: Option<Arc<Prepared>>,
}

impl LocalKey {
    pub(super) fn new(secret: PrivateKey) -> Self {
        let public = secret.public();
        Self {
            prepared: Prepared::of(&secret),
            secret,
            public,
            macs: MacKeys::of(&public),
        }
    }
}

/// The keys of a new session; wiped when dropped.
pub(super) struct TransportKeys {
    pub(super) send: Zeroizing<[u8; 32]>,
    pub(super) receive: Zeroizing<[u8; 32]>,
}

/// 32 random bytes for an ephemeral key.
pub(super) type Ephemeral = Zeroizing<[u8; 32]>;

/// Our half of a handshake that waits for the response.
pub(super) struct Initiator(Box<HandshakeState>);

impl Initiator {
    /// Begins a handshake; the message has no macs yet.
    pub(super) fn begin(
        local: &LocalKey,
        remote: &X25519Public,
        psk: Option<&PresharedKey>,
        (sender, timestamp): (u32, Timestamp),
        ephemeral: Ephemeral,
    ) -> Result<(Self, [u8; INITIATION_BYTES]), BadHandshake> {
        let mut state = builder(local, ephemeral)
            .and_then(|b| b.remote_public_key(&remote.0))
            .and_then(|b| b.psk(PSK_LOCATION, psk.map_or(&NO_PSK, PresharedKey::expose)))
            .and_then(Builder::build_initiator)
            .map_err(|_e| BadHandshake)?;
        let mut noise = [0; 108];
        state
            .write_message(&timestamp, &mut noise)
            .map_err(|_e| BadHandshake)?;
        Ok((Self(Box::new(state)), message::initiation(sender, &noise)))
    }

    /// Reads the response under the first of `psks` that fits, and returns its place among them. After
    /// an error the handshake waits on, so a forgery does not end it.
    pub(super) fn finish(
        &mut self,
        response: &[u8; RESPONSE_BYTES],
        psks: &[Option<&PresharedKey>],
    ) -> Result<(TransportKeys, usize), BadHandshake> {
        let noise: [u8; 48] = message::array_at(response, 12);
        for (place, psk) in psks.iter().enumerate() {
            let psk = psk.map_or(&NO_PSK, PresharedKey::expose);
            let read = self
                .0
                .set_psk(usize::from(PSK_LOCATION), psk)
                .and_then(|()| self.0.read_message(&noise, &mut []));
            if read.is_err() {
                continue;
            }
            let (send, receive) = self.0.dangerously_get_raw_split();
            let keys = TransportKeys {
                send: Zeroizing::new(send),
                receive: Zeroizing::new(receive),
            };
            return Ok((keys, place));
        }
        Err(BadHandshake)
    }
}

/// An initiation that decrypted: whose it is, and how to answer.
pub(super) struct Responder {
    state: Box<HandshakeState>,
    /// Who initiates.
    pub(super) remote: X25519Public,
    /// When, by its clock.
    pub(super) timestamp: Timestamp,
    sender: u32,
}

impl Responder {
    /// Opens an initiation whose mac1 was checked.
    pub(super) fn open(
        local: &LocalKey,
        initiation: &[u8; INITIATION_BYTES],
        ephemeral: Ephemeral,
    ) -> Result<Self, BadHandshake> {
        let mut state = builder(local, ephemeral)
            .and_then(Builder::build_responder)
            .map_err(|_e| BadHandshake)?;
        let noise: [u8; 108] = message::array_at(initiation, 8);
        let mut timestamp = [0; 12];
        state
            .read_message(&noise, &mut timestamp)
            .map_err(|_e| BadHandshake)?;
        let remote = state.get_remote_static().ok_or(BadHandshake)?;
        let remote = remote.try_into().map_err(|_e| BadHandshake)?;
        Ok(Self {
            state: Box::new(state),
            remote: X25519Public(remote),
            timestamp,
            sender: message::u32_at(initiation, 4),
        })
    }

    /// Answers: the message without macs, the session's keys, and the initiator's index.
    pub(super) fn respond(
        mut self,
        psk: Option<&PresharedKey>,
        own_index: u32,
    ) -> Result<([u8; RESPONSE_BYTES], TransportKeys, u32), BadHandshake> {
        let psk = psk.map_or(&NO_PSK, PresharedKey::expose);
        let mut noise = [0; 48];
        self.state
            .set_psk(usize::from(PSK_LOCATION), psk)
            .and_then(|()| self.state.write_message(&[], &mut noise))
            .map_err(|_e| BadHandshake)?;
        let (receive, send) = self.state.dangerously_get_raw_split();
        let keys = TransportKeys {
            send: Zeroizing::new(send),
            receive: Zeroizing::new(receive),
        };
        let response = message::response(own_index, self.sender, &noise);
        Ok((response, keys, self.sender))
    }
}

/// Spends what answering one initiation costs, all but what is cheap: four agreements and a new key.
pub(super) fn rehearse(secret: &PrivateKey) {
    let Some(key) = Prepared::of(secret) else {
        return;
    };
    let (public, mut shared) = (secret.public(), Zeroizing::new([0; 32]));
    for _ in 0..4 {
        // It is our own key: the result is of no use to anybody.
        let agreed = key.agree(&public.0, &mut *shared);
        debug_assert!(agreed.is_ok());
    }
}

fn builder(local: &LocalKey, ephemeral: Ephemeral) -> Result<Builder<'_>, snow::Error> {
    let params: NoiseParams = PATTERN.parse()?;
    let resolver = Resolver {
        ephemeral,
        own: local.prepared.clone(),
    };
    Builder::with_resolver(params, Box::new(resolver))
        .prologue(PROLOGUE)?
        .local_private_key(local.secret.expose())
}

/// snow's primitives, X25519 of our own choice, and randomness that was given to us.
struct Resolver {
    ephemeral: Ephemeral,
    own: Option<Arc<Prepared>>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(Some(self.ephemeral.clone()))))
    }

    fn resolve_dh(&self, _choice: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(Agreement::new(self.own.clone())))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// Gives its 32 bytes once: a handshake draws one ephemeral key.
struct Once(Option<Ephemeral>);

impl Random for Once {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let bytes = self.0.take().ok_or(snow::Error::Rng)?;
        if dest.len() != bytes.len() {
            return Err(snow::Error::Rng);
        }
        dest.copy_from_slice(&*bytes);
        Ok(())
    }
}
