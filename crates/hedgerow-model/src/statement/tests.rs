use super::*;
use crate::wire::{decode_canonical, encode};

#[test]
fn a_ticket_with_six_labels_leaves_room_for_its_signature() {
    let ticket = Ticket {
        id: DeviceId([7; 16]),
        name: DeviceName::new("cam-12").unwrap(),
        site: SiteName::new("plant-1").unwrap(),
        identity_key: P256Public([2; 33]),
        introduction_key: X25519Public([3; 32]),
        labels: "role=camera,zone=hall-3,line=7,model=cam3,owner=ot,crit=low"
            .parse()
            .unwrap(),
        addresses: OverlayAddresses {
            v6: "fd00::1".parse().unwrap(),
            v4: Some("100.80.0.1".parse().unwrap()),
        },
        epoch: 3,
        not_after_secs: 1_800_000_000,
    };
    let bytes = encode(&ticket);
    assert!(
        bytes.len() <= 220,
        "{} B payload; the COSE envelope adds 80",
        bytes.len()
    );
    assert_eq!(
        decode_canonical::<Ticket>("ticket", &bytes).unwrap(),
        ticket
    );
    let mut trailing = bytes;
    trailing.push(0);
    assert!(decode_canonical::<Ticket>("ticket", &trailing).is_err());
}
