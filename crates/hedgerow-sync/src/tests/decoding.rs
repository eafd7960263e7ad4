use hedgerow_model::address::{Overlay, Underlay};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::packet::{Direction, LiveFlow};
use hedgerow_model::resource::root_hash;
use hedgerow_model::service::Protocol;
use hedgerow_model::wire::encode;
use proptest::prelude::*;

use super::*;
use crate::SessionError;
use crate::frame::{self, Channel, FRAME_BYTES_MAX, FrameReader};
use crate::message::{
    Command, Flows, HandUp, Renew, Renewed, ToAgent, ToController, Update, Verified,
};

pub(super) fn hello() -> crate::message::Hello {
    crate::message::Hello {
        capability: 1,
        agent_version: "0.1.0".into(),
        boot_id: [1; 16],
        generation: 3,
        revision: Some(rev(4)),
        verified: Some(Verified {
            revision: rev(4),
            table_hash: Digest::of(b"t"),
        }),
        heads: full_set(4).iter().map(|o| o.head()).collect(),
        revocations: rev(2),
        manifest: 1,
        endpoints: vec![Underlay("[2001:db8::1]:7117".parse().unwrap())],
        introduction_key: X25519Public([5; 32]),
    }
}

fn flows(count: u16) -> Flows {
    let flow = |port| LiveFlow {
        peer: Overlay("fd00::1".parse().unwrap()),
        direction: Direction::In,
        protocol: Protocol::Tcp,
        port,
        count: 3,
    };
    Flows {
        id: 7,
        flows: (0..count).map(flow).collect(),
        left_out: 1,
    }
}

#[test]
fn more_flows_than_the_bound_refuse_the_message() {
    let of = |count| ToController::decode(&encode(&ToController::Flows(flows(count))));
    assert!(of(512).is_ok());
    assert!(matches!(of(513), Err(SessionError::Malformed { .. })));
}

fn every_to_controller() -> Vec<ToController> {
    let event = Event::new(Wall(5), EventKind::AgentStarted).detail("version", "1");
    vec![
        ToController::Hello(hello()),
        ToController::Ack(rev(1), Stage::Received),
        ToController::Flows(flows(2)),
        ToController::Ack(rev(1), Stage::Verified(Digest::of(b"x"))),
        ToController::Ack(
            rev(1),
            Stage::Rejected(Some(ResourceKind::Program), "no".into()),
        ),
        ToController::Repair(None, Vec::new()),
        ToController::Ping(rev(1), root_hash(&[])),
        ToController::HandUp(HandUp {
            kind: ResourceKind::Manifest,
            bytes: vec![1],
        }),
        ToController::Renew(Renew {
            id: 1,
            csr: vec![2],
            introduction_key: X25519Public([5; 32]),
        }),
        ToController::Endpoints(hello().endpoints, None),
        ToController::Events(3, vec![event]),
        ToController::Leave,
        ToController::Bye,
    ]
}

fn every_to_agent() -> Vec<ToAgent> {
    vec![
        ToAgent::Welcome(welcome()),
        ToAgent::Update(Update {
            revision: rev(2),
            previous: None,
            partial: false,
            set: vec![offer(ResourceKind::Names, 2, 5).to_resource()],
            remove: vec![ResourceKind::Program],
        }),
        ToAgent::Pong(true),
        ToAgent::Beacon(vec![1], None),
        ToAgent::Beacon(vec![1], Some(vec![2])),
        ToAgent::Renewed(Renewed {
            id: 1,
            chain: vec![vec![1], vec![2]],
            ticket: vec![3],
        }),
        ToAgent::RenewRefused(1, "no".into(), 0),
        ToAgent::Resolved(1, None),
        ToAgent::EventsStored(2),
        ToAgent::Command(Command::Reconnect(1000)),
        ToAgent::Held("copied".into()),
        ToAgent::Busy(5),
        ToAgent::Bye("stopping".into()),
        ToAgent::Flows(7),
    ]
}

use hedgerow_model::Wall;

#[test]
fn every_message_survives_the_wire_and_no_shortening_does() {
    for message in every_to_controller() {
        let bytes = encode(&message);
        assert_eq!(ToController::decode(&bytes).unwrap(), message);
        for n in 0..bytes.len() {
            assert!(
                ToController::decode(&bytes[..n]).is_err(),
                "{}",
                message.name()
            );
        }
    }
    for message in every_to_agent() {
        let bytes = encode(&message);
        assert_eq!(ToAgent::decode(&bytes).unwrap(), message);
        for n in 0..bytes.len() {
            assert!(ToAgent::decode(&bytes[..n]).is_err(), "{}", message.name());
        }
    }
}

#[test]
fn unknown_keys_are_skipped_and_repeated_ones_refused() {
    // [4, [{0: 1, 1: h'02', 2: key}]] with one more key, and with one twice.
    let renew = |extra: &[u8], pairs: u8| {
        let mut bytes = vec![0x82, 5, 0x81, 0xa0 | pairs, 0, 1, 1, 0x41, 2, 2, 0x58, 32];
        bytes.extend_from_slice(&[5; 32]);
        bytes.extend_from_slice(extra);
        bytes
    };
    assert!(ToController::decode(&renew(&[], 3)).is_ok());
    assert!(ToController::decode(&renew(&[0x18, 99, 0x81, 0xf6], 4)).is_ok());
    for bad in [
        renew(&[0, 7], 4),
        renew(&[9, 7, 9, 8], 5),
        renew(&[0xff], 3),
    ] {
        assert!(matches!(
            ToController::decode(&bad),
            Err(SessionError::Malformed { .. })
        ));
    }
}

#[test]
fn lists_and_texts_beyond_their_bound_refuse_the_message() {
    let mut long = hello();
    long.endpoints = vec![long.endpoints[0]; 17];
    assert!(ToController::decode(&encode(&ToController::Hello(long))).is_err());
    let text = "x".repeat(513);
    assert!(ToAgent::decode(&encode(&ToAgent::Bye(text))).is_err());
    let events = vec![Event::new(Wall(1), EventKind::AgentStarted); 65];
    assert!(ToController::decode(&encode(&ToController::Events(1, events))).is_err());
}

#[test]
fn deep_nesting_is_refused_without_recursion_to_match() {
    assert!(ToAgent::decode(&vec![0x81; 60_000]).is_err());
    assert!(ToAgent::decode(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
}

#[test]
fn frames_out_of_bounds_are_refused_before_they_are_read() {
    for length in [0u32, u32::try_from(FRAME_BYTES_MAX).unwrap() + 1, u32::MAX] {
        let mut reader = FrameReader::new(1 << 20);
        let bytes = length.to_be_bytes();
        assert!(matches!(
            reader.next_message(&mut bytes.as_slice()),
            Err(SessionError::FrameLength { .. })
        ));
    }
    let mut reader = FrameReader::new(1 << 20);
    let unknown = [0, 0, 0, 1, 4];
    assert_eq!(
        reader.next_message(&mut unknown.as_slice()),
        Err(SessionError::Channel { number: 4 })
    );
    assert!(frame::whole(Channel::Bulk, &vec![0; FRAME_BYTES_MAX]).is_err());
    assert!(frame::whole(Channel::Bulk, &vec![0; FRAME_BYTES_MAX - 1]).is_ok());
}

proptest! {
    #[test]
    fn garbage_never_panics_either_end(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut agent = AgentSession::new(opening(Holdings::default(), 1), 1, Mono::ZERO);
        let _result = agent.handle_bytes(&bytes, Mono::ZERO);
        let mut controller = ControllerSession::new(Mono::ZERO);
        let _result = controller.handle_bytes(&bytes, Mono::ZERO);
        let _result = ToAgent::decode(&bytes);
        let _result = ToController::decode(&bytes);
    }

    #[test]
    fn a_changed_byte_is_another_message_or_an_error(at in 0usize..400, to in any::<u8>()) {
        for message in every_to_controller() {
            let mut bytes = encode(&message);
            let at = at % bytes.len();
            let was = std::mem::replace(&mut bytes[at], to);
            if let Ok(read) = ToController::decode(&bytes) {
                prop_assert!(was == to || read != message || encode(&read) != bytes);
            }
        }
    }

    #[test]
    fn pieces_do_not_matter(sizes in prop::collection::vec(1usize..40, 1..60), more in any::<u8>()) {
        let messages: Vec<Vec<u8>> = (0..5u8).map(|i| vec![i; usize::from(more) * 7]).collect();
        let stream: Vec<u8> = messages
            .iter()
            .flat_map(|m| frame::whole(Channel::Command, m).unwrap())
            .collect();
        let mut reader = FrameReader::new(1 << 20);
        let mut got = Vec::new();
        let mut rest = stream.as_slice();
        let mut turn = sizes.iter().cycle();
        while !rest.is_empty() {
            let (mut piece, later) = rest.split_at((*turn.next().unwrap()).min(rest.len()));
            rest = later;
            while let Some((channel, message)) = reader.next_message(&mut piece).unwrap() {
                prop_assert_eq!(channel, Channel::Command);
                got.push(message);
            }
        }
        prop_assert_eq!(got, messages);
        prop_assert!(reader.is_between_frames());
    }
}
