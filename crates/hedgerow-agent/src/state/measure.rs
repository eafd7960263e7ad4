//! Measuring: the machine of `hedgerow_mesh::measure`, and how it finds its peers.

use hedgerow_linux::tunnel::Report;
use hedgerow_mesh::measure::{Measure, Output};
use hedgerow_mesh::{TunnelOrder, Unreachable};
use hedgerow_model::Now;
use hedgerow_model::address::{Overlay, OverlayAddresses};
use hedgerow_model::id::DeviceId;
use hedgerow_model::message::{self, MessageKind};

use super::{State, Step, ToTunnel};

/// Devices that are looked for because somebody measures; the one wanted longest ago is forgotten first.
const WANTED_MAX: usize = 64;

/// The machine, and whom the mesh looks for on its behalf.
#[derive(Debug)]
pub(super) struct Measuring {
    machine: Measure,
    wanted: Vec<(Overlay, DeviceId)>,
}

impl Measuring {
    pub(super) fn new(consents: bool) -> Self {
        Self {
            machine: Measure::new(consents),
            wanted: Vec::new(),
        }
    }

    pub(super) fn deadline(&self) -> hedgerow_model::Mono {
        self.machine.deadline()
    }
}

impl State {
    /// Asks a peer's agent for an answer; [`Step::Answer`] says how it went.
    pub(crate) fn handle_ping(
        &mut self,
        (id, token): (u64, u64),
        (device, addresses): (DeviceId, OverlayAddresses),
        now: Now,
    ) {
        let machine = &mut self.measuring.machine;
        machine.handle_ping(id, device, token, now.mono);
        self.reach(device, addresses, now);
    }

    /// Measures throughput to a peer's agent and back; [`Step::Answer`] says how it went.
    pub(crate) fn handle_bench(
        &mut self,
        (id, token): (u64, u64),
        (device, addresses): (DeviceId, OverlayAddresses),
        seconds: u32,
        now: Now,
    ) {
        let machine = &mut self.measuring.machine;
        machine.handle_bench(id, device, (token, seconds), now.mono);
        self.reach(device, addresses, now);
    }

    /// Sees to it that a session lives.
    fn reach(&mut self, device: DeviceId, addresses: OverlayAddresses, now: Now) {
        let peers = self.mesh.status().peers;
        match peers.iter().find(|p| p.device == device) {
            Some(peer) if peer.in_session => {
                self.measuring.machine.handle_session(device, now.mono);
            }
            Some(_) => self
                .steps
                .push_back(Step::Tunnel(ToTunnel::Connect(device))),
            None => {
                let address = Overlay(addresses.v6.into());
                if self.measuring.wanted.len() >= WANTED_MAX {
                    self.measuring.wanted.remove(0);
                }
                self.measuring.wanted.push((address, device));
                self.mesh.handle_wanted(address, self.world.view(now));
                self.drain_mesh(now);
            }
        }
        self.drain_measure();
    }

    /// Takes what concerns measuring out of the tunnel's reports. Returns whether nobody else is to see
    /// it.
    pub(super) fn measures(&mut self, report: &Report, now: Now) -> bool {
        let Report::Message {
            device,
            from,
            bytes,
        } = report
        else {
            return false;
        };
        let Some((MessageKind::Measure, content)) = message::decode(bytes) else {
            return false;
        };
        if self.peers.holds(*device) {
            let machine = &mut self.measuring.machine;
            machine.handle_message(*device, *from, content, now.mono);
            self.drain_measure();
        }
        true
    }

    /// Notes that a session lives.
    pub(super) fn measure_session(&mut self, device: DeviceId, now: Now) {
        self.measuring
            .wanted
            .retain(|(_, wanted)| *wanted != device);
        self.measuring.machine.handle_session(device, now.mono);
        self.drain_measure();
    }

    /// Notes that the mesh gave up an address.
    pub(super) fn measure_unreachable(&mut self, address: Overlay, why: Unreachable) {
        let wanted = &mut self.measuring.wanted;
        let Some(place) = wanted.iter().position(|(a, _)| *a == address) else {
            return;
        };
        let (_, device) = wanted.swap_remove(place);
        self.measuring.machine.handle_unreachable(device, why);
        self.drain_measure();
    }

    pub(super) fn measure_timeout(&mut self, now: Now) {
        self.measuring.machine.handle_timeout(now.mono);
        self.drain_measure();
    }

    fn drain_measure(&mut self) {
        while let Some(output) = self.measuring.machine.poll() {
            match output {
                Output::Answer(id, answer) => {
                    self.steps.push_back(Step::Answer(id, Box::new(answer)));
                }
                Output::Send(device, content) => {
                    if let Some(bytes) = message::encode(MessageKind::Measure, &content) {
                        let order = TunnelOrder::SendMessage {
                            device,
                            via: None,
                            bytes,
                            measures_mtu: false,
                        };
                        self.steps.push_back(Step::Tunnel(ToTunnel::Mesh(order)));
                    }
                }
            }
        }
    }
}
