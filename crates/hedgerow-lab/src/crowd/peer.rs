//! One of the crowd: identity, mesh and tunnel without a kernel.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result};
use hedgerow_identity::enroll::Token;
use hedgerow_identity::key::SoftwareP256;
use hedgerow_identity::standing::Standing;
use hedgerow_identity::statement::{sign_binding, verify_binding};
use hedgerow_linux::tunnel::core::{Core, CoreConfig, Output as Wire};
use hedgerow_linux::tunnel::limits::INITIATIONS_PER_SECOND;
use hedgerow_linux::tunnel::{Command, MTU_DEFAULT, PrivateKey, Report, Secrecy};
use hedgerow_mesh::{
    Admission, IntroductionSecret, Mesh, Output, OwnIdentity, Resolved, UNREACHABLE_FOR,
    Unreachable, View,
};
use hedgerow_model::address::{Overlay, Underlay};
use hedgerow_model::id::DeviceId;
use hedgerow_model::statement::Binding;
use hedgerow_model::{Mono, Now};
use rand_core::TryRng as _;

use super::{DAY, MESH};
use crate::attack::foreign::Target;
use crate::entropy::{SystemRandom, bytes};
use crate::fleet::device::obtain;
use crate::plant::{CENTRAL_ADDRESS, CENTRAL_PORT};
use crate::translate;

/// One peer.
pub(super) struct Peer {
    mesh: Mesh,
    core: Core,
    socket: UdpSocket,
    /// The agent, once it was met.
    hub: Option<DeviceId>,
    is_live: bool,
    /// Where the agent is looked for.
    wanted: Option<Overlay>,
    /// When it is looked for again, as a program's next packet would have it.
    again_at: Option<Mono>,
    /// How often it was.
    refusals: usize,
}

impl Peer {
    pub(super) async fn enroll(
        token: &Token,
        number: usize,
        target: &Target,
        now: Now,
    ) -> Result<Self> {
        // An address of its own each: budgets count sources.
        let low = u16::try_from(number)?.to_be_bytes();
        let from = Ipv4Addr::new(127, 9, low[0], low[1]);
        let to = SocketAddr::from((CENTRAL_ADDRESS, CENTRAL_PORT));
        let key = SoftwareP256::generate(&mut SystemRandom)?;
        let introduction = IntroductionSecret::from_bytes(bytes());
        let name = format!("peer-{number}");
        let issued = obtain((from, to), token, name, &key, introduction.public()).await?;
        let standing = Standing::new(None);
        let ticket = target.trust.verify_ticket(&issued.ticket, &standing, now)?;
        let secret = PrivateKey::from_bytes(bytes());
        let binding = Binding {
            id: ticket.id,
            wireguard_key: secret.public(),
            sequence: now.wall.secs(),
            not_after_secs: now.wall.secs() + DAY,
        };
        let binding = verify_binding(&sign_binding(&binding, &key)?, &ticket, now)?;
        let core = Core::new(
            CoreConfig {
                addresses: ticket.addresses,
                mtu: MTU_DEFAULT,
                private_key: secret,
                wall_floor: now.wall,
                initiations_per_second: INITIATIONS_PER_SECOND,
            },
            Box::new(|buffer| match SystemRandom.try_fill_bytes(buffer) {
                Ok(()) => Ok(()),
                Err(never) => match never {},
            }),
        );
        let mut mesh = Mesh::new(bytes());
        let identity = OwnIdentity {
            ticket,
            binding,
            introduction,
            previous_introduction: None,
        };
        let view = View {
            trust: &target.trust,
            standing: &standing,
            now,
        };
        mesh.handle_own(identity, view)?;
        let socket = UdpSocket::bind((from, 0))?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            mesh,
            core,
            socket,
            hub: None,
            is_live: false,
            wanted: None,
            again_at: None,
            refusals: 0,
        })
    }

    /// Returns how often the agent did not answer an introduction in time, with all its repetitions.
    pub(super) fn refusals(&self) -> usize {
        self.refusals
    }

    pub(super) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    pub(super) fn is_live(&self) -> bool {
        self.is_live
    }

    /// Begins to look for the agent.
    pub(super) fn want(&mut self, hub: Overlay, view: View<'_>) -> Result<()> {
        self.wanted = Some(hub);
        self.mesh.handle_wanted(hub, view);
        Ok(())
    }

    /// Begins another session.
    pub(super) fn renew(&mut self, view: View<'_>) -> Result<()> {
        let device = self.hub.context("the agent was never met")?;
        self.is_live = false;
        self.core
            .handle_command(Command::Rekey { device }, view.now);
        Ok(())
    }

    /// Takes what has come.
    pub(super) fn receive(&mut self, view: View<'_>) {
        let mut datagram = [0u8; 2048];
        while let Ok((n, from)) = self.socket.recv_from(&mut datagram) {
            let bytes = datagram.get_mut(..n).unwrap_or_default();
            if bytes.first().is_some_and(|b| *b >= 0x80) {
                self.mesh
                    .handle_datagram(Underlay(from).into(), bytes, view);
            } else {
                self.core.handle_datagram(Underlay(from), bytes, view.now);
            }
        }
    }

    /// Does what is due.
    pub(super) fn pass_time(&mut self, view: View<'_>) {
        if self.again_at.take_if(|at| *at <= view.now.mono).is_some()
            && let Some(hub) = self.wanted
        {
            self.mesh.handle_wanted(hub, view);
        }
        if self.mesh.deadline().0 <= view.now.mono {
            self.mesh.handle_timeout(view);
        }
        if self.core.deadline().0 <= view.now.mono {
            self.core.handle_timeout(view.now);
        }
    }

    /// Does what mesh and tunnel want done, until neither wants anything.
    pub(super) fn work(&mut self, target: &Target, view: View<'_>) -> Result<()> {
        loop {
            if let Some(output) = self.mesh.poll() {
                self.do_for_mesh(output, target, view)?;
            } else if let Some(output) = self.core.poll() {
                match output {
                    Wire::Send { to, bytes, .. } => drop(self.socket.send_to(&bytes, to.0)?),
                    Wire::PassOn { to, bytes, .. } => drop(self.socket.send_to(&bytes, to.0)?),
                    Wire::Report(report) => self.tell_mesh(report, view),
                    Wire::Deliver(_) => {}
                }
            } else {
                return Ok(());
            }
        }
    }

    fn do_for_mesh(&mut self, output: Output, target: &Target, view: View<'_>) -> Result<()> {
        match output {
            Output::Resolve { query } => {
                let answer = Resolved {
                    ticket: target.ticket.clone(),
                    endpoints: vec![Underlay(MESH)],
                    relays: vec![],
                };
                self.mesh.handle_resolved(query, Some(answer), view);
            }
            Output::Admit { device, .. } => {
                self.mesh.handle_admitted(device, Admission::Granted, view);
            }
            Output::Send { to, bytes } => drop(self.socket.send_to(&bytes, to.to.0)?),
            Output::SetPeer {
                device,
                wireguard_key,
                addresses,
                ..
            } => {
                self.hub = Some(device);
                let set = Output::SetPeer {
                    device,
                    wireguard_key,
                    addresses,
                    endpoint: Some(Underlay(MESH).into()),
                };
                self.command(set, view);
            }
            Output::Tunnel(_) => self.command(output, view),
            Output::Reject { reason, .. } => match reason {
                // An agent that has more to do than it can answers some of it late.
                Unreachable::Unanswered | Unreachable::Busy => {
                    self.refusals += 1;
                    self.again_at = Some(view.now.mono + UNREACHABLE_FOR);
                }
                Unreachable::NotReady
                | Unreachable::Own
                | Unreachable::Unresolved
                | Unreachable::Refused
                | Unreachable::NotAdmitted
                | Unreachable::NoEndpoint => anyhow::bail!("no way to the agent: {reason}"),
            },
            Output::ForgetOldKey { .. }
            | Output::PathChanged { .. }
            | Output::PathLost { .. }
            | Output::HomeRelays { .. }
            | Output::OpenLink { .. }
            | Output::CloseLink { .. }
            | Output::Release { .. }
            | Output::RemovePeer { .. }
            | Output::Refused { .. }
            | Output::PskFailed { .. }
            | Output::ItemArrived { .. }
            | Output::ItemForked { .. }
            | Output::Member { .. }
            | Output::Remember(_)
            | Output::Forget(_) => {}
        }
        Ok(())
    }

    fn command(&mut self, output: Output, view: View<'_>) {
        for command in translate::commands(output, Secrecy::Classical) {
            self.core.handle_command(command, view.now);
        }
    }

    fn tell_mesh(&mut self, report: Report, view: View<'_>) {
        let mut idle = None;
        if let Report::Idle { device } = &report {
            idle = Some(*device);
        }
        let is_new = matches!(report, Report::Established { .. });
        self.is_live = is_new || (self.is_live && idle.is_none());
        translate::report_to(&mut self.mesh, report, view);
        if let Some(device) = idle {
            // It wants to stay in touch.
            let again = Command::Connect { device };
            self.core.handle_command(again, view.now);
        }
    }
}
