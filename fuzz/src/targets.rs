//! One function per decoder of bytes that others wrote. The fuzzer and the corpus replay share them.
//!
//! A target passes when it returns: nothing here may panic, overflow or grow without bound.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hedgerow_identity::certificate::{CaFacts, LeafFacts};
use hedgerow_identity::cose::Envelope;
use hedgerow_identity::enroll::Token;
use hedgerow_identity::enroll::wire::{EnrollReply, EnrollRequest, FrameBuffer, Hello};
use hedgerow_identity::trust::Trust;
use hedgerow_mesh::Memory;
use hedgerow_mesh::introduction::{Answer, Ask};
use hedgerow_mesh::measure::Measure;
use hedgerow_mesh::names::{Transport, Zone};
use hedgerow_model::Mono;
use hedgerow_model::address::{OverlayAddresses, Underlay};
use hedgerow_model::id::{DeviceId, Digest, Revision};
use hedgerow_model::path::Path;
use hedgerow_model::program::Program;
use hedgerow_model::statement::{
    Beacon, Binding, BundleHead, EndpointRecord, Manifest, NameEntry, Names, P256Public,
    RevocationList, SignedProgramBody, SiteConfig, States, Ticket, TreeHead, X25519Public,
};
use hedgerow_model::wire::decode_canonical;
use hedgerow_sync::frame::FrameReader;
use hedgerow_sync::message::{ToAgent, ToController};

/// A target's name, which is also its corpus folder, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("statement", statement),
    ("manifest", manifest),
    ("program", program),
    ("certificate", certificate),
    ("enroll", enroll),
    ("token", token),
    ("frame", frame),
    ("to_controller", to_controller),
    ("to_agent", to_agent),
    ("introduction", introduction),
    ("memory", memory),
    ("path_message", path_message),
    ("relay_message", relay_message),
    ("lookup_message", lookup_message),
    ("wireguard", wireguard),
    ("inner", inner),
    ("segments", segments),
    ("policy", policy),
    ("names", names),
    ("measure", measure),
    ("post_quantum", post_quantum),
    ("items", items),
    ("membership", membership),
];

/// COSE envelopes and every statement they may carry.
pub fn statement(data: &[u8]) {
    let payload = Envelope::decode(data).map_or(data, |e| e.unverified_payload());
    drop(decode_canonical::<Ticket>("ticket", payload));
    drop(decode_canonical::<Binding>("binding", payload));
    drop(decode_canonical::<RevocationList>("revocations", payload));
    drop(decode_canonical::<States>("states", payload));
    drop(decode_canonical::<SiteConfig>("config", payload));
    drop(decode_canonical::<Names>("names", payload));
    drop(decode_canonical::<Beacon>("beacon", payload));
    drop(decode_canonical::<SignedProgramBody>("program", payload));
}

/// Signed manifests, before and after the pin.
pub fn manifest(data: &[u8]) {
    drop(Trust::pinned(Digest::default(), data));
    drop(decode_canonical::<Manifest>("manifest", data));
}

/// Compiled programs.
pub fn program(data: &[u8]) {
    drop(decode_canonical::<Program>("program", data));
}

/// Certificates and certification requests.
pub fn certificate(data: &[u8]) {
    drop(LeafFacts::parse(data));
    drop(CaFacts::parse(data));
    drop(hedgerow_identity::csr::parse(data));
}

/// The enrollment protocol's messages and frames.
pub fn enroll(data: &[u8]) {
    drop(Hello::decode_body(data));
    drop(EnrollRequest::decode_body(data));
    drop(EnrollReply::decode_body(data));
    let mut frames = FrameBuffer::new(1 << 16);
    for piece in data.chunks(7) {
        frames.push(piece);
        while let Ok(Some(_)) = frames.pop() {}
    }
}

/// Enrollment tokens as pasted text.
pub fn token(data: &[u8]) {
    drop(Token::parse(&String::from_utf8_lossy(data)));
}

/// The sync protocol's frames, in uneven pieces.
pub fn frame(data: &[u8]) {
    let mut reader = FrameReader::new(1 << 20);
    for piece in data.chunks(13) {
        let mut rest = piece;
        loop {
            match reader.next_message(&mut rest) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// Messages of agents.
pub fn to_controller(data: &[u8]) {
    drop(ToController::decode(data));
}

/// Messages of controllers.
pub fn to_agent(data: &[u8]) {
    drop(ToAgent::decode(data));
}

/// The sealed content of introductions.
pub fn introduction(data: &[u8]) {
    drop(Ask::decode(data));
    drop(Answer::decode(data));
}

/// The cache of peers once met.
pub fn memory(data: &[u8]) {
    drop(Memory::decode(data));
}

/// What peers say about the paths between them: read, written and read again.
pub fn path_message(data: &[u8]) {
    use hedgerow_mesh::path::PathMessage;
    if let Ok(message) = PathMessage::decode(data) {
        assert_eq!(PathMessage::decode(&message.encode()).ok(), Some(message));
    }
}

/// What devices and relays say to each other: read, written and read again.
pub fn relay_message(data: &[u8]) {
    use hedgerow_mesh::relay::RelayMessage;
    if let Ok(message) = RelayMessage::decode(data) {
        assert_eq!(RelayMessage::decode(&message.encode()).ok(), Some(message));
    }
}

/// Questions about other devices and their answers: read, written and read again.
pub fn lookup_message(data: &[u8]) {
    use hedgerow_mesh::lookup::LookupMessage;
    if let Ok(message) = LookupMessage::decode(data) {
        assert_eq!(LookupMessage::decode(&message.encode()).ok(), Some(message));
    }
}

/// Datagrams on the mesh's UDP port.
pub fn wireguard(data: &[u8]) {
    drop(hedgerow_linux::tunnel::message::decode(data));
}

/// Packets that come out of a tunnel.
pub fn inner(data: &[u8]) {
    use hedgerow_linux::tunnel::Rejection;
    let _inner = hedgerow_linux::tunnel::inner::decode(data);
    for why in [Rejection::Prohibited, Rejection::Unreachable] {
        drop(hedgerow_linux::tunnel::inner::refusal(data, why));
    }
}

/// Super-packets of the kernel, and packets of peers that are put together: a header, then a packet that
/// is cut as the header says; then all bytes as packets, each after its length.
pub fn segments(data: &[u8]) {
    use hedgerow_linux::tunnel::offload::coalesce::{Accepts, Coalescer, Piece, Sink};
    use hedgerow_linux::tunnel::offload::segment::{Super, finish_checksum};
    use hedgerow_linux::tunnel::offload::virtio::{HEADER_BYTES, Header};
    use hedgerow_linux::tunnel::offload::{ecn, flow};

    struct Count(usize);
    impl Sink for Count {
        fn write(&mut self, _header: &[u8; HEADER_BYTES], memory: &[u8], pieces: &[Piece]) {
            for piece in pieces {
                let bytes = memory.get(piece.at..piece.at + piece.len);
                assert!(bytes.is_some(), "a piece is in the memory");
                self.0 += piece.len;
            }
        }
    }

    if let (Some(header), Some(packet)) = (Header::decode(data), data.get(HEADER_BYTES..)) {
        let mut packet = packet.to_vec();
        if let Ok(whole) = Super::decode(&header, &packet, 1420) {
            let mut out = [0; 1420];
            for n in 0..whole.count() {
                assert_eq!(whole.write(&packet, n, &mut out), Some(whole.len_of(n)));
            }
        }
        let _refused = finish_checksum(&header, &mut packet);
        let _kept = ecn::carry_in(3, &mut packet);
        flow(&packet);
    }
    let mut memory = data.to_vec();
    let mut coalescer = Coalescer::new(Accepts {
        tcp: true,
        udp: true,
    });
    let (mut at, mut count) = (0, Count(0));
    while let Some(len) = memory.get(at).map(|n| usize::from(*n)) {
        at += 1;
        let len = len.min(memory.len() - at);
        coalescer.push(&mut memory, Piece { at, len }, &mut count);
        at += len;
    }
    coalescer.flush(&mut memory, &mut count);
    assert!(count.0 <= data.len());
}

/// The exchange for a pre-shared key.
pub fn post_quantum(data: &[u8]) {
    let _message = hedgerow_mesh::psk::Message::decode(data);
}

/// Announcements, pieces and digests of signed items, and their statements.
pub fn items(data: &[u8]) {
    drop(hedgerow_mesh::items::Message::decode(data));
    let payload = Envelope::decode(data).map_or(data, |e| e.unverified_payload());
    drop(decode_canonical::<EndpointRecord>("endpoints", payload));
    drop(decode_canonical::<BundleHead>("bundle head", payload));
    drop(decode_canonical::<TreeHead>("tree head", payload));
}

/// Membership of relays.
pub fn membership(data: &[u8]) {
    drop(hedgerow_mesh::membership::decode(data));
}

/// Policy files.
pub fn policy(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        drop(hedgerow_policy::parse(text, "fuzz.yaml"));
    }
}

/// Questions of local programs, to a zone with a few names and without one.
pub fn names(data: &[u8]) {
    let zone = sample_zone();
    assert!(zone.is_some());
    for zone in [zone.as_ref(), None] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let (_, answer) = hedgerow_mesh::names::answer(zone, data, transport);
            // An answer is never taken for a question, so two resolvers cannot talk for ever.
            let again = answer.map(|a| hedgerow_mesh::names::answer(zone, &a, transport).1);
            assert!(!matches!(again, Some(Some(_))), "an answer was answered");
        }
    }
}

/// What peers' agents say about measuring, to one that consents.
pub fn measure(data: &[u8]) {
    let device = DeviceId([1; 16]);
    let here = std::net::SocketAddr::from(([192, 0, 2, 1], 7117));
    let mut end = Measure::new(true);
    for (n, piece) in data.chunks(24).enumerate() {
        let now = Mono(std::time::Duration::from_millis(n as u64));
        let messages = [piece, data];
        for bytes in messages {
            end.handle_message(device, Path::direct(Underlay(here)), bytes, now);
        }
        end.handle_timeout(now);
        let sent = std::iter::from_fn(|| end.poll()).count();
        assert!(sent <= 3 * 1024, "{sent} messages for two");
    }
}

/// A zone with three names, an IPv4 and an IPv6 pool.
pub fn sample_zone() -> Option<Zone> {
    let entry = |n: u8, name: &str, site: &str| {
        Some(NameEntry {
            id: DeviceId([n; 16]),
            name: name.parse().ok()?,
            site: site.parse().ok()?,
            addresses: OverlayAddresses {
                v6: Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, u16::from(n)),
                v4: n.is_multiple_of(2).then(|| Ipv4Addr::new(100, 80, 0, n)),
            },
        })
    };
    let own = entry(6, "sensor-1", "plant-1")?;
    let ticket = Ticket {
        id: own.id,
        name: own.name,
        site: own.site,
        identity_key: P256Public([2; 33]),
        introduction_key: X25519Public([3; 32]),
        labels: "role=sensor".parse().ok()?,
        addresses: own.addresses,
        epoch: 1,
        not_after_secs: 0,
    };
    let config = SiteConfig {
        revision: Revision::default(),
        site: ticket.site.clone(),
        zone: "Europe/Paris".to_owned(),
        controllers: Vec::new(),
        management: Vec::new(),
        pools: vec!["100.80.0.0/12".parse().ok()?],
        suffix: "hedgerow.internal".to_owned(),
        grace_secs: 0,
    };
    let names = Names {
        revision: Revision::default(),
        site: ticket.site.clone(),
        entries: vec![
            entry(2, "collector-1", "plant-1")?,
            entry(3, "plc-1", "plant-2")?,
        ],
    };
    let zone = Zone::new(&config, &ticket, Some(Arc::new(names)))?;
    Some(zone.with_pool("fd00::/48".parse().ok()?))
}
