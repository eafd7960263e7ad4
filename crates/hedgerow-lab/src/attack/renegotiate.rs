//! A device of ours whose owner replaced the agent by something that never stops to shake hands.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use hedgerow_identity::standing::Standing;
use hedgerow_linux::tunnel::core::{Core, CoreConfig, Output as Wire};
use hedgerow_linux::tunnel::limits::INITIATIONS_PER_SECOND;
use hedgerow_linux::tunnel::{
    Command, MTU_DEFAULT, PeerConfig, PrivateKey, Report, Roaming, Secrecy, Slot,
};
use hedgerow_model::address::{OverlayAddresses, Underlay};
use hedgerow_model::id::DeviceId;
use hedgerow_model::statement::X25519Public;
use hedgerow_model::{Mono, Now, Wall};
use serde::Serialize;
use serde_json::json;

use super::foreign::{Target, converse, insider, moment};
use crate::clock;
use crate::entropy::bytes;

/// Handshakes whose answer may still come.
const UNDER_WAY_MAX: usize = 64;
/// What he begins at once before he looks for answers.
const BURST: usize = 16;
const DATAGRAM_BYTES_MAX: usize = 2048;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
struct Renegotiated {
    /// Handshakes that he began.
    begun: u64,
    /// Those that were answered and confirmed.
    done: u64,
}

/// A device that knows its peer, and forgets at once what it agreed with it.
struct Restless {
    peer: PeerConfig,
    secret: [u8; 32],
    addresses: OverlayAddresses,
    /// Each handshake is later than the one before, whatever the clock says.
    stamp_ms: u64,
    under_way: VecDeque<Core>,
    counts: Renegotiated,
}

/// Whom to attack, and in whose name.
#[derive(Debug, Args)]
pub(crate) struct Order {
    /// State directory of the device in whose name.
    own: PathBuf,
    /// State directory of the device attacked.
    state: PathBuf,
    /// Where its mesh listens.
    endpoint: SocketAddr,
    /// For how long.
    #[arg(long, default_value_t = 10)]
    secs: u64,
}

impl Order {
    /// Introduces the one to the other, begins handshakes as fast as it can, and says what came of it.
    ///
    /// # Errors
    ///
    /// When it is not introduced, or nothing can be sent.
    #[expect(
        clippy::print_stdout,
        reason = "the part of an attack that runs inside a namespace"
    )]
    pub(crate) fn run(&self) -> Result<bool> {
        let target = Target::read(&self.state)?;
        let (now, secret) = (moment(), bytes());
        let public = PrivateKey::from_bytes(secret).public();
        let identity = insider(&self.own, &target, public, now)?;
        let socket = UdpSocket::bind("0.0.0.0:7117")?;
        let answered = converse(&target, &identity, self.endpoint, &socket, now)?;
        let key = answered.key.context("it was not introduced")?;
        let standing = Standing::new(None);
        let ticket = target.trust.verify_ticket(&target.ticket, &standing, now)?;
        let mut restless = Restless {
            peer: peer(ticket.id, key, ticket.addresses, self.endpoint),
            secret,
            addresses: identity.ticket.addresses,
            stamp_ms: now.wall.0,
            under_way: VecDeque::new(),
            counts: Renegotiated::default(),
        };
        socket.set_nonblocking(true)?;
        let start = clock::now();
        let time = Duration::from_secs(self.secs);
        while clock::now().duration_since(start) < time {
            let passed = clock::now().duration_since(start);
            for _ in 0..BURST {
                restless.begin(passed, &socket);
            }
            restless.hear(passed, &socket);
        }
        println!("{}", json!(restless.counts));
        Ok(true)
    }
}

fn peer(
    device: DeviceId,
    public_key: X25519Public,
    addresses: OverlayAddresses,
    endpoint: SocketAddr,
) -> PeerConfig {
    PeerConfig {
        device,
        slot: Slot::Current,
        public_key,
        addresses,
        endpoint: Some(Underlay(endpoint).into()),
        psk: None,
        secrecy: Secrecy::Classical,
        roaming: Roaming::Report,
        keepalive: None,
    }
}

impl Restless {
    fn now(&self, passed: Duration) -> Now {
        Now {
            mono: Mono(passed),
            wall: Wall(self.stamp_ms),
            wall_is_trusted: true,
        }
    }

    /// Begins one more handshake; the oldest that waits for its answer is forgotten.
    fn begin(&mut self, passed: Duration, socket: &UdpSocket) {
        self.stamp_ms += 1;
        let now = self.now(passed);
        let mut core = Core::new(
            CoreConfig {
                addresses: self.addresses,
                mtu: MTU_DEFAULT,
                private_key: PrivateKey::from_bytes(self.secret),
                wall_floor: now.wall,
                initiations_per_second: INITIATIONS_PER_SECOND,
            },
            Box::new(|buffer| {
                buffer.iter_mut().for_each(|b| *b = bytes::<1>()[0]);
                Ok(())
            }),
        );
        let device = self.peer.device;
        core.handle_command(Command::SetPeer(self.peer.clone()), now);
        core.handle_command(Command::Connect { device }, now);
        self.counts.begun += 1;
        send(&mut core, socket);
        self.under_way.push_back(core);
        if self.under_way.len() > UNDER_WAY_MAX {
            self.under_way.pop_front();
        }
    }

    /// Takes what came: an answer is confirmed, and what was agreed is forgotten.
    fn hear(&mut self, passed: Duration, socket: &UdpSocket) {
        let now = self.now(passed);
        let mut datagram = [0; DATAGRAM_BYTES_MAX];
        while let Ok((len, from)) = socket.recv_from(&mut datagram) {
            let came = datagram.get(..len).unwrap_or_default().to_vec();
            // Each looks at a copy: which of them it is for, only they know.
            let done = self.under_way.iter_mut().position(|core| {
                core.handle_datagram(Underlay(from), &mut came.clone(), now);
                send(core, socket)
            });
            if let Some(place) = done {
                self.counts.done += 1;
                drop(self.under_way.remove(place));
            }
        }
    }
}

/// Sends what a tunnel wants sent; returns whether it has got a session.
fn send(core: &mut Core, socket: &UdpSocket) -> bool {
    let mut is_done = false;
    while let Some(output) = core.poll() {
        match output {
            // What the socket has no room for is lost: he begins another.
            Wire::Send { to, bytes, .. } | Wire::PassOn { to, bytes, .. } => {
                drop(socket.send_to(&bytes, to.0));
            }
            Wire::Report(report) => is_done |= matches!(report, Report::Established { .. }),
            Wire::Deliver(_) => {}
        }
    }
    is_done
}
