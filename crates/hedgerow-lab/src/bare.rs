//! One tunnel by itself: two ends know each other by what stands on the command line. For measuring
//! the data plane without anything around it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use hedgerow_linux::link::Link;
use hedgerow_linux::tun::Offload;
use hedgerow_linux::tunnel::{
    Command, Features, Layout, MTU_DEFAULT, PeerConfig, PrivateKey, Report, Roaming, Secrecy,
    SendError, Slot, Tunnel, TunnelConfig,
};
use hedgerow_linux::udp::Trains;
use hedgerow_model::Wall;
use hedgerow_model::address::{OverlayAddresses, Underlay};
use hedgerow_model::id::DeviceId;
use hedgerow_model::path::Path;

use crate::clock;

/// Time the interface has to appear.
const PATIENCE: Duration = Duration::from_secs(5);

/// A tunnel with one peer.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Bare {
    /// Interface name.
    #[arg(long, default_value = "hedgerow0")]
    interface: String,
    /// UDP port.
    #[arg(long, default_value_t = 7117)]
    port: u16,
    /// Our number.
    #[arg(long)]
    own: u8,
    /// Our address inside, with the length of its network, e.g. 10.99.0.1/24.
    #[arg(long)]
    address: Prefix,
    /// The peer's number, another one.
    #[arg(long)]
    peer: u8,
    /// The peer's address inside.
    #[arg(long)]
    peer_address: Ipv4Addr,
    /// Where the peer is; without it, it has to come to us.
    #[arg(long)]
    endpoint: Option<SocketAddr>,
    /// So many further peers, with the keys of the handshake storm.
    #[arg(long, default_value_t = 0)]
    crowd: u32,
    /// Uses none of the kernel's offloads.
    #[arg(long)]
    plain: bool,
    /// Threads that seal beside the one that decides; 0 for none. Chosen by the machine when absent.
    #[arg(long)]
    lanes: Option<usize>,
}

/// An address with the length of its network.
#[derive(Debug, Clone, Copy)]
struct Prefix(Ipv4Addr, u8);

impl FromStr for Prefix {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (address, bits) = text.split_once('/').context("no / before the length")?;
        Ok(Self(address.parse()?, bits.parse()?))
    }
}

impl Bare {
    /// Runs the tunnel until it fails.
    pub(crate) fn run(self) -> anyhow::Result<bool> {
        if self.own == self.peer || self.own == 0 || self.peer == 0 {
            bail!("the two ends need two numbers, each at least 1");
        }
        let (sender, reports) = std::sync::mpsc::sync_channel(256);
        let tunnel = Tunnel::start(self.config(), move |report: Report| {
            sender.try_send(report).map_err(|e| match e {
                std::sync::mpsc::TrySendError::Full(r)
                | std::sync::mpsc::TrySendError::Disconnected(r) => r,
            })
        })
        .context("no tunnel")?;
        tunnel
            .send(Command::SetPeer(self.peer_config()))
            .context("no peer")?;
        for number in 0..self.crowd {
            clock::wait_for("the tunnel to take a peer", PATIENCE, || {
                match tunnel.send(Command::SetPeer(one_of_crowd(number))) {
                    Ok(()) => Ok(Some(())),
                    Err(SendError::Full) => Ok(None),
                    Err(error) => Err(error.into()),
                }
            })?;
        }
        let link = Link::wait(&self.interface, PATIENCE)?;
        link.set_mtu(MTU_DEFAULT.into())?;
        link.add_address(self.address.0.into(), self.address.1)?;
        link.set_up()?;
        for report in reports {
            if let Report::Stopped { error } = report {
                return Err(anyhow!(error.unwrap_or_default()).context("the tunnel stopped"));
            }
        }
        Ok(false)
    }

    fn config(&self) -> TunnelConfig {
        let features = match self.plain {
            false => Features::default(),
            true => Features {
                tun: Offload::Nothing,
                trains: Trains {
                    send: false,
                    receive: false,
                },
                layout: Layout::One,
            },
        };
        let features = Features {
            layout: self.lanes.map_or(Layout::Auto, |lanes| match lanes {
                0 => Layout::One,
                lanes => Layout::Lanes(lanes),
            }),
            ..features
        };
        TunnelConfig {
            name: self.interface.clone(),
            addresses: addresses(self.address.0),
            mtu: MTU_DEFAULT,
            port: self.port,
            private_key: key(self.own),
            persistent: false,
            wall_floor: Wall(0),
            features,
        }
    }

    fn peer_config(&self) -> PeerConfig {
        PeerConfig {
            device: DeviceId([self.peer; 16]),
            slot: Slot::Current,
            public_key: key(self.peer).public(),
            addresses: addresses(self.peer_address),
            endpoint: self.endpoint.map(|e| Path::direct(Underlay(e))),
            psk: None,
            secrecy: Secrecy::default(),
            roaming: Roaming::default(),
            keepalive: None,
        }
    }
}

/// A peer that comes to us; its secret key is made from its number alone, as the storm's client makes it.
fn one_of_crowd(number: u32) -> PeerConfig {
    let mut secret = [0x42; 32];
    let (_, rest) = secret.split_at_mut(8);
    let (place, _) = rest.split_at_mut(8);
    place.copy_from_slice(&(u64::from(number) + 1).to_le_bytes());
    let mut id = [0xff; 16];
    let (head, _) = id.split_at_mut(4);
    head.copy_from_slice(&number.to_be_bytes());
    PeerConfig {
        device: DeviceId(id),
        slot: Slot::Current,
        public_key: PrivateKey::from_bytes(secret).public(),
        addresses: addresses(Ipv4Addr::from_bits(0x0a64_0000 + number)),
        endpoint: None,
        psk: None,
        secrecy: Secrecy::default(),
        roaming: Roaming::default(),
        keepalive: None,
    }
}

fn key(n: u8) -> PrivateKey {
    PrivateKey::from_bytes([n; 32])
}

/// An IPv4 address and an IPv6 one made of it.
fn addresses(v4: Ipv4Addr) -> OverlayAddresses {
    let site = u128::from(0xfd99u16) << 112;
    OverlayAddresses {
        v6: Ipv6Addr::from_bits(site | u128::from(v4.to_bits())),
        v4: Some(v4),
    }
}
