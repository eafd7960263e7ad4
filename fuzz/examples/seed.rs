//! Writes one well-formed input per target, from which the fuzzer starts: `cargo run --example seed`.

use std::fs;
use std::path::Path;

use hedgerow_model::address::OverlayAddresses;
use hedgerow_model::id::{DeviceId, Revision};
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{
    Binding, P256Public, Revocation, RevocationList, Revoked, States, Ticket, X25519Public,
};
use hedgerow_model::wire::encode;
use hedgerow_policy::{Facts, compile, parse};

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&folder).expect("corpus folder");
    fs::write(folder.join(name), bytes).expect("corpus file");
}

fn ticket() -> Ticket {
    Ticket {
        id: DeviceId([7; 16]),
        name: "cam-12".parse().expect("name"),
        site: "plant-1".parse().expect("site"),
        identity_key: P256Public([2; 33]),
        introduction_key: X25519Public([3; 32]),
        labels: "role=camera,zone=hall-3".parse().expect("labels"),
        addresses: OverlayAddresses {
            v6: "fd00::1".parse().expect("address"),
            v4: Some("100.80.0.1".parse().expect("address")),
        },
        epoch: 3,
        not_after_secs: 1_800_000_000,
    }
}

fn main() {
    let ticket = ticket();
    write("statement", "ticket", &encode(&ticket));
    write(
        "statement",
        "binding",
        &encode(&Binding {
            id: ticket.id,
            wireguard_key: X25519Public([9; 32]),
            sequence: 1_790_000_000,
            not_after_secs: 1_790_100_000,
        }),
    );
    write(
        "statement",
        "revocations",
        &encode(&RevocationList {
            version: Revision {
                timeline: 1,
                number: 4,
            },
            issued_secs: 1_790_000_000,
            entries: vec![Revocation {
                what: Revoked::Device(ticket.id),
                at_secs: 1,
                drop_after_secs: 2,
                reason: "stolen".to_owned(),
            }],
            min_epochs: vec![(ticket.id, 3)],
        }),
    );
    write(
        "statement",
        "states",
        &encode(&States {
            revision: Revision {
                timeline: 1,
                number: 5,
            },
            entries: vec![(ticket.id, DeviceState::Quarantine)],
        }),
    );
    let plant = include_str!("../../../examples/plant.yaml");
    write("policy", "plant.yaml", plant.as_bytes());
    if let (Some(policy), _) = parse(plant, "plant.yaml") {
        write(
            "program",
            "camera",
            &encode(&compile(&policy, &Facts::from(&ticket)).expect("fits")),
        );
    }
    write("frame", "empty", &[0, 0, 0, 2, 0, 0xf6]);
    write("to_controller", "null", &[0x82, 0, 0x80]);
    write("to_agent", "null", &[0x82, 0, 0x80]);
    write("enroll", "frame", &[0, 0, 0, 2, 0xa0, 0xa0]);
    write("token", "prefix", b"hgt1.hAEC");
    write("memory", "empty", &[0x80]);
    write("manifest", "empty", &[0x80]);
    write("certificate", "sequence", &[0x30, 0x03, 0x02, 0x01, 0x01]);
    write(
        "wireguard",
        "initiation",
        &[[1u8, 0, 0, 0].as_slice(), &[0; 144]].concat(),
    );
    write(
        "inner",
        "ipv4",
        &[[0x45u8, 0, 0, 20].as_slice(), &[0; 16]].concat(),
    );
    segments();
}

/// Super-packets of both families and protocols, and runs of packets that are one.
fn segments() {
    let tcp = |seq: u32, text: &[u8]| {
        let mut p = vec![
            0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        p[3] = u8::try_from(40 + text.len()).unwrap_or(0);
        p.extend([0x9c, 0x40, 0x14, 0x51]);
        p.extend(seq.to_be_bytes());
        p.extend([0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        p.extend(text);
        p
    };
    let udp = |text: &[u8]| {
        let len = u8::try_from(8 + text.len()).unwrap_or(0);
        let mut p = vec![0; 40];
        p[0] = 0x60;
        p[5] = len;
        p[6..8].copy_from_slice(&[17, 64]);
        p.extend([0x9c, 0x40, 0x14, 0x51, 0, len, 1, 2]);
        p.extend(text);
        p
    };
    let with = |kind: u8, size: u8, start: u8, offset: u8, packet: &[u8]| {
        [&[1, kind, start, 0, size, 0, start, 0, offset, 0], packet].concat()
    };
    write("segments", "tcp4", &with(1, 20, 20, 16, &tcp(1, &[7; 90])));
    write("segments", "udp6", &with(5, 20, 40, 6, &udp(&[7; 90])));
    let run: Vec<u8> = [tcp(0, &[1; 8]), tcp(8, &[1; 8]), udp(&[2; 9]), udp(&[2; 9])]
        .iter()
        .flat_map(|p| std::iter::once(u8::try_from(p.len()).unwrap_or(0)).chain(p.clone()))
        .collect();
    write("segments", "run", &run);
}
