//! Between mesh and tunnel, as the agent's shell does it: nothing here decides.

use hedgerow_linux::tunnel::{
    Command, Cut, PeerConfig, PresharedKey, PskSlot, Rejection, Report, Roaming, Secrecy, Slot,
};
use hedgerow_mesh::psk::PskUse;
use hedgerow_mesh::{Mesh, Output, Session, TunnelOrder, Unreachable, View};
use hedgerow_model::ruleset::{Profile, Verdict};

/// Translates what the mesh wants of the tunnel.
pub(crate) fn commands(output: Output, secrecy: Secrecy) -> Vec<Command> {
    match output {
        Output::Send { to, bytes } => vec![Command::SendDatagram { to, bytes }],
        Output::SetPeer {
            device,
            wireguard_key,
            addresses,
            endpoint,
        } => {
            let set = Command::SetPeer(PeerConfig {
                device,
                slot: Slot::Current,
                public_key: wireguard_key,
                addresses,
                endpoint,
                psk: None,
                secrecy,
                roaming: Roaming::Report,
                keepalive: None,
            });
            // Who knows where the other is speaks first: the other may not know where we are.
            let connect = endpoint.map(|_| Command::Connect { device });
            [Some(set), connect].into_iter().flatten().collect()
        }
        Output::ForgetOldKey { device } => vec![Command::ForgetPeerKey {
            device,
            slot: Slot::Previous,
        }],
        Output::Tunnel(order) => vec![order_of(order)],
        Output::Release { address } => vec![Command::Release {
            dst: address,
            profile: Box::new(everything()),
        }],
        Output::Reject { address, reason } => vec![Command::RejectQueued {
            dst: address,
            why: match reason {
                Unreachable::NotAdmitted => Rejection::Prohibited,
                Unreachable::NotReady
                | Unreachable::Own
                | Unreachable::Unresolved
                | Unreachable::Refused
                | Unreachable::NoEndpoint
                | Unreachable::Unanswered
                | Unreachable::Busy => Rejection::Unreachable,
            },
        }],
        Output::RemovePeer { device, .. } => vec![Command::RemovePeer { device }],
        Output::Resolve { .. }
        | Output::Admit { .. }
        | Output::PathChanged { .. }
        | Output::PathLost { .. }
        | Output::HomeRelays { .. }
        | Output::OpenLink { .. }
        | Output::CloseLink { .. }
        | Output::PskFailed { .. }
        | Output::ItemArrived { .. }
        | Output::ItemForked { .. }
        | Output::Member { .. }
        | Output::Refused { .. }
        | Output::Remember(_)
        | Output::Forget(_) => Vec::new(),
    }
}

fn order_of(order: TunnelOrder) -> Command {
    match order {
        TunnelOrder::SendMessage {
            device,
            via,
            bytes,
            measures_mtu,
        } => Command::SendMessage {
            device,
            via,
            bytes,
            cut: match measures_mtu {
                true => Cut::Refused,
                false => Cut::Allowed,
            },
        },
        TunnelOrder::MovePeer { device, path } => Command::MovePeer { device, path },
        TunnelOrder::SetPathMtu { device, mtu } => Command::SetPathMtu { device, mtu },
        TunnelOrder::SetPsk {
            device,
            keys,
            psk,
            what,
        } => Command::SetPsk {
            device,
            keys: Some(keys),
            psk: Some(PresharedKey::from_bytes(*psk.expose())),
            slot: match what {
                PskUse::Accept => PskSlot::Accepted,
                PskUse::Use | PskUse::UseNow => PskSlot::Used,
            },
        },
        TunnelOrder::Rekey { device } => Command::Rekey { device },
        TunnelOrder::SetRelay { session, from, to } => Command::SetRelay { session, from, to },
        TunnelOrder::ForgetRelay { session } => Command::ForgetRelay { session },
    }
}

/// Tells the mesh what the tunnel saw.
pub(crate) fn report_to(mesh: &mut Mesh, report: Report, view: View<'_>) {
    match report {
        Report::Datagram { from, bytes } => mesh.handle_datagram(from, &bytes, view),
        Report::Wanted { dst } => mesh.handle_wanted(dst, view),
        Report::Message {
            device,
            from,
            bytes,
        } => mesh.handle_message(device, from, &bytes, view),
        Report::Established {
            device,
            endpoint,
            psk,
        } => {
            mesh.handle_session(device, Session::Established(endpoint), view);
            mesh.handle_agreed(device, psk, view);
        }
        Report::Roamed { device, endpoint } => {
            mesh.handle_session(device, Session::Established(endpoint), view);
        }
        Report::Idle { device } => mesh.handle_session(device, Session::Idle, view),
        Report::Unanswered { device } => mesh.handle_session(device, Session::Unanswered, view),
        Report::HandshakeFromUnknown { public_key, .. } => {
            mesh.handle_unknown_handshake(public_key, view);
        }
        Report::Heard { device, from } => mesh.handle_heard(device, from, view),
        Report::Active { device } => mesh.handle_active(device, view),
        Report::Silent { device, waited } => mesh.handle_silent(device, waited, view),
        Report::Spoofed { .. } | Report::PeerRefused { .. } | Report::Stopped { .. } => {}
    }
}

/// Packets between devices that policy joins pass: which of them is another machine's business.
fn everything() -> Profile {
    Profile {
        inbound: Vec::new(),
        outbound: Vec::new(),
        inbound_default: Verdict::Accept,
        outbound_default: Verdict::Accept,
    }
}
