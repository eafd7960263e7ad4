use hedgerow_model::address::OverlayAddresses;
use hedgerow_model::statement::X25519Public;

use super::super::tests::Scratch;
use super::*;

fn device(number: u16) -> DeviceId {
    let [high, low] = number.to_be_bytes();
    let mut id = [0; 16];
    (id[0], id[1]) = (high, low);
    DeviceId(id)
}

fn memory(number: u16, heard_ms: u64) -> Memory {
    Memory {
        device: device(number),
        addresses: OverlayAddresses {
            v6: std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number),
            v4: None,
        },
        introduction_key: X25519Public([1; 32]),
        ticket: vec![1, 2, 3],
        endpoints: Vec::new(),
        heard_ms,
        live: true,
        relays: None,
    }
}

/// What the next start finds.
fn found(scratch: &Scratch) -> Vec<(DeviceId, u64)> {
    let records = Met::new(scratch.0.clone()).read().unwrap();
    let mut found: Vec<_> = records.iter().map(|m| (m.device, m.heard_ms)).collect();
    found.sort_unstable();
    found
}

fn files(scratch: &Scratch) -> Vec<String> {
    let name = |e: fs::DirEntry| e.file_name().to_string_lossy().into_owned();
    let entries = fs::read_dir(&scratch.0).unwrap();
    let mut files: Vec<String> = entries.map(|e| name(e.unwrap())).collect();
    files.sort_unstable();
    files
}

/// The lot that another thread is just waiting for.
fn under_way(met: &Met) -> Vec<(DeviceId, u64)> {
    let unsettled = met.lock();
    unsettled.by_device.iter().map(|(d, n)| (*d, *n)).collect()
}

#[test]
fn what_was_kept_is_found_after_a_kill_and_gets_to_its_place() {
    let scratch = Scratch::new("kept");
    let met = Met::new(scratch.0.clone());
    met.keep(&memory(1, 5)).unwrap();
    met.keep(&memory(2, 6)).unwrap();
    met.keep(&memory(1, 7)).unwrap();
    assert_eq!(files(&scratch), ["new-2", "new-3"]);
    assert_eq!(found(&scratch), [(device(1), 7), (device(2), 6)]);

    // The next process brings them to their places, and goes on counting.
    let next = Met::new(scratch.0.clone());
    assert_eq!(next.read().unwrap().len(), 2);
    assert!(!next.is_settled());
    next.keep(&memory(3, 8)).unwrap();
    assert!(files(&scratch).contains(&"new-4".to_owned()));
    next.settle().unwrap();
    assert!(next.is_settled());
    let places = [1, 2, 3].map(|n| device(n).to_string());
    assert_eq!(files(&scratch), places);
    assert_eq!(
        found(&scratch),
        [1, 2, 3]
            .map(device)
            .into_iter()
            .zip([7, 6, 8])
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_loss_of_power_takes_what_was_being_written_and_not_what_was_known_before() {
    for torn in [0, 1, 20] {
        let scratch = Scratch::new("torn");
        let met = Met::new(scratch.0.clone());
        met.keep(&memory(1, 5)).unwrap();
        met.settle().unwrap();
        met.keep(&memory(1, 6)).unwrap();
        let bytes = fs::read(met.new_file(2)).unwrap();
        fs::write(met.new_file(2), &bytes[..torn]).unwrap();
        let next = Met::new(scratch.0.clone());
        let records = next.read().unwrap();
        assert_eq!(records, [memory(1, 5)], "after {torn} bytes");
        assert!(!next.is_settled());
        next.settle().unwrap();
        assert!(next.is_settled());
        assert_eq!(files(&scratch), [device(1).to_string()]);
    }
}

#[test]
fn a_record_under_way_does_not_bring_back_a_forgotten_peer() {
    for is_doubted in [false, true] {
        let scratch = Scratch::new("forgotten");
        let met = Met::new(scratch.0.clone());
        met.keep(&memory(1, 5)).unwrap();
        met.settle().unwrap();
        met.keep(&memory(1, 6)).unwrap();
        met.keep(&memory(2, 6)).unwrap();
        let lot = under_way(&met);
        met.forget(device(1)).unwrap();
        assert_eq!(found(&scratch), [(device(2), 6)]);
        met.settle_lot(&lot, is_doubted).unwrap();
        assert_eq!(files(&scratch), [device(2).to_string()]);
        met.forget(device(1)).unwrap();
        met.keep(&memory(3, 6)).unwrap();
        met.forget_all().unwrap();
        met.settle().unwrap();
        assert_eq!(files(&scratch), [""; 0]);
    }
}

#[test]
fn a_record_under_way_does_not_replace_a_later_one() {
    for is_doubted in [false, true] {
        let scratch = Scratch::new("later");
        let met = Met::new(scratch.0.clone());
        met.keep(&memory(1, 5)).unwrap();
        let lot = under_way(&met);
        met.keep(&memory(1, 6)).unwrap();
        met.settle_lot(&lot, is_doubted).unwrap();
        assert_eq!(found(&scratch), [(device(1), 6)]);
        met.settle().unwrap();
        met.settle_lot(&lot, is_doubted).unwrap();
        assert_eq!(found(&scratch), [(device(1), 6)]);
        assert_eq!(files(&scratch), [device(1).to_string()]);
    }
}

#[test]
fn a_disk_that_failed_is_given_the_records_again() {
    let scratch = Scratch::new("failed");
    let met = Met::new(scratch.0.clone());
    met.keep(&memory(1, 5)).unwrap();
    // A directory in its place is what no file can be renamed over.
    fs::create_dir(met.place(device(1))).unwrap();
    met.settle().unwrap_err();
    assert!(!met.is_settled() && met.lock().is_doubted);
    assert_eq!(found(&scratch), [(device(1), 5)]);
    fs::remove_dir(met.place(device(1))).unwrap();
    met.settle().unwrap();
    assert!(met.is_settled() && !met.lock().is_doubted);
    assert_eq!(files(&scratch), [device(1).to_string()]);
    assert_eq!(found(&scratch), [(device(1), 5)]);
}

#[test]
fn many_at_once_are_settled_in_lots_and_each_device_has_one_file() {
    let scratch = Scratch::new("many");
    let met = Met::new(scratch.0.clone());
    let many = 3 * u16::try_from(LOT_MAX).unwrap() + 1;
    for heard_ms in [1, 2] {
        for number in 0..many {
            met.keep(&memory(number, heard_ms)).unwrap();
        }
        assert!(files(&scratch).len() <= usize::from(many) * 2);
        assert_eq!(met.lock().by_device.len(), usize::from(many));
    }
    assert_eq!(files(&scratch).len(), usize::from(many));
    met.settle().unwrap();
    assert_eq!(files(&scratch).len(), usize::from(many));
    assert!(found(&scratch).iter().all(|(_, heard)| *heard == 2));
}
