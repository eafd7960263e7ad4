use hedgerow_linux::process;

use super::*;

/// A directory of its own, removed at the end.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new(name: &str) -> Self {
        let random: [u8; 8] = super::super::entropy::bytes();
        let unique = u64::from_ne_bytes(random);
        let path = std::env::temp_dir().join(format!("hgt-agent-{name}-{unique:x}"));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn identity() -> Identity {
    let keys = Keys::generate().unwrap();
    Identity::new(&keys, vec![vec![1, 2, 3]], vec![4, 5])
}

#[test]
fn what_is_written_is_read_again() {
    let scratch = Scratch::new("store");
    let store = Store::open(&scratch.0).unwrap();
    let enrollment = Enrollment {
        genesis: Digest::of(b"roots"),
        controllers: vec!["central:7443".into()],
    };
    store.write_enrollment(&enrollment).unwrap();
    assert_eq!(store.enrollment().unwrap(), Some(enrollment));
    store.write_manifests(vec![vec![1], vec![2, 3]]).unwrap();
    assert_eq!(store.manifests().unwrap(), [vec![1], vec![2, 3]]);
    store.write_floor(Wall::from_secs(1_800_000_000)).unwrap();
    assert_eq!(store.floor(), Some(Wall::from_secs(1_800_000_000)));
    store
        .write_slot(Slot::Current, &identity().encode().unwrap())
        .unwrap();
    assert!(store.read_slot(Slot::Current).unwrap().is_some());
    let again = Identity::decode(&store.read_slot(Slot::Current).unwrap().unwrap()).unwrap();
    assert_eq!(again.chain, [vec![1, 2, 3]]);
}

#[test]
fn a_generation_is_never_given_twice() {
    let scratch = Scratch::new("generation");
    let mut last = 0;
    for _ in 0..5 {
        let store = Store::open(&scratch.0).unwrap();
        let next = store.next_generation().unwrap();
        assert!(next > last);
        last = next;
    }
}

#[test]
fn the_date_of_the_last_key_is_there_for_the_next_process_and_a_torn_one_is_none() {
    let scratch = Scratch::new("dated");
    let store = Store::open(&scratch.0).unwrap();
    assert_eq!(store.dated(), None);
    for secs in [1_800_000_000, 1_800_000_001] {
        store.write_dated(Wall::from_secs(secs)).unwrap();
    }
    drop(store);
    let store = Store::open(&scratch.0).unwrap();
    assert_eq!(store.dated(), Some(Wall::from_secs(1_800_000_001)));
    for torn in [&[][..], &[0x1a, 0x6b], b"garbage"] {
        fs::write(scratch.0.join("dated"), torn).unwrap();
        assert_eq!(store.dated(), None, "{torn:?}");
    }
}

#[test]
fn a_directory_has_one_agent() {
    let scratch = Scratch::new("lock");
    let _first = Store::open(&scratch.0).unwrap();
    let second: Failure = Store::open(&scratch.0).unwrap_err().into();
    assert!(second.message.contains("another agent"));
    assert_eq!(second.fault.exit_code(), 4);
}

#[test]
fn keys_are_for_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let scratch = Scratch::new("modes");
    let store = Store::open(&scratch.0).unwrap();
    store
        .write_slot(Slot::Next, &identity().encode().unwrap())
        .unwrap();
    let mode = |p: &str| {
        fs::metadata(scratch.0.join(p))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("identity/next"), 0o600);
    assert_eq!(mode("identity"), 0o700);
    assert_eq!(mode(""), 0o700);
}

#[test]
fn a_full_or_read_only_disk_is_named_with_its_remedy() {
    let full = Failure::from(DiskError {
        action: "write",
        path: "/var/lib/x".into(),
        source: std::io::Error::from(std::io::ErrorKind::StorageFull),
    });
    assert!(full.to_string().contains("free some space"), "{full}");
    let read_only = Failure::from(DiskError {
        action: "write",
        path: "/var/lib/x".into(),
        source: std::io::Error::from(std::io::ErrorKind::ReadOnlyFilesystem),
    });
    assert!(read_only.to_string().contains("paths.state"), "{read_only}");
    if process::is_root() {
        assert!(Store::open(Path::new("/proc/hedgerow")).is_err());
    }
}

#[test]
fn a_promotion_cut_short_anywhere_leaves_an_identity_in_use() {
    use super::super::identity::Identities;
    for cut in 0..3 {
        let scratch = Scratch::new("promotion");
        let store = Store::open(&scratch.0).unwrap();
        let (old, new) = (identity(), identity());
        store
            .write_slot(Slot::Current, &old.encode().unwrap())
            .unwrap();
        store
            .write_slot(Slot::Next, &new.encode().unwrap())
            .unwrap();
        if cut > 0 {
            store.move_slot(Slot::Current, Slot::Previous).unwrap();
        }
        if cut > 1 {
            store.move_slot(Slot::Next, Slot::Current).unwrap();
        }
        let found = Identities::read(&store).unwrap();
        let want = if cut == 0 { &old } else { &new };
        let key = |i: &Identity| i.keys.identity.public();
        assert_eq!(key(found.current()), key(want), "cut after {cut} renames");
        assert_eq!(found.keys().len(), 2, "no key is lost");
    }
}

#[test]
fn a_damaged_slot_is_set_aside_and_never_deleted() {
    use super::super::identity::Identities;
    let scratch = Scratch::new("damaged");
    let store = Store::open(&scratch.0).unwrap();
    store.write_slot(Slot::Current, b"torn").unwrap();
    store
        .write_slot(Slot::Previous, &identity().encode().unwrap())
        .unwrap();
    assert!(Identities::read(&store).is_ok());
    assert!(scratch.0.join("identity/current.broken").exists());
}
