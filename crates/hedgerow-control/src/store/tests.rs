use std::path::PathBuf;

use hedgerow_model::Wall;
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::{DeviceId, SiteName};

use super::*;

/// A store in its own directory, gone afterwards.
struct Scratch {
    dir: PathBuf,
    store: Store,
}

impl Scratch {
    async fn open() -> Self {
        let dir = std::env::temp_dir().join(format!(
            "hgt-control-{}",
            hedgerow_model::base32::encode(&crate::entropy::bytes::<10>())
        ));
        crate::disk::create_dir(&dir).unwrap();
        let store = Store::open(&dir.join("hedgerow.db")).await.unwrap();
        Self { dir, store }
    }

    async fn change(&self) -> Change {
        self.store
            .change("tester", "test", "", Wall(1))
            .await
            .unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

fn site(name: &str) -> SiteName {
    SiteName::new(name).unwrap()
}

#[tokio::test]
async fn an_existing_file_opens_again_with_its_schema_and_its_counter() {
    let s = Scratch::open().await;
    s.change().await.commit().await.unwrap();
    let path = s.dir.join("hedgerow.db");
    s.store.close().await;
    let again = Store::open(&path).await.unwrap();
    assert_eq!(again.revision().await.unwrap().number, 1);
    again.close().await;
}

/// As when the disk is full: SQLite ends the transaction, and the driver does not know.
#[tokio::test]
async fn a_transaction_that_the_database_ended_does_not_end_all_later_ones() {
    let s = Scratch::open().await;
    let mut tx = s.store.pool.begin().await.unwrap();
    tx.run("ROLLBACK", Vec::new()).await.unwrap();
    drop(tx);
    s.change().await.commit().await.unwrap();
    assert_eq!(s.store.revision().await.unwrap().number, 1);
    s.store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn revisions_have_no_gap_whoever_writes_and_whoever_gives_up() {
    let s = Scratch::open().await;
    let mut tasks = Vec::new();
    for i in 0..8u64 {
        let store = s.store.clone();
        tasks.push(tokio::spawn(async move {
            let mut mine = Vec::new();
            for n in 0..10u64 {
                let change = store.change("t", "test", "", Wall(n)).await.unwrap();
                if (i + n).is_multiple_of(3) {
                    drop(change);
                } else {
                    mine.push(change.commit().await.unwrap().number);
                }
            }
            mine
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all.sort_unstable();
    let wanted: Vec<u64> = (1..=all.len() as u64).collect();
    assert_eq!(all, wanted, "no number is missing, none is used twice");
    assert_eq!(s.store.revision().await.unwrap().number, all.len() as u64);
}

#[tokio::test]
async fn a_change_that_was_not_committed_leaves_nothing() {
    let s = Scratch::open().await;
    let mut change = s.change().await;
    sites::create(&mut change.tx, &site("s1"), "UTC", Wall(1))
        .await
        .unwrap();
    drop(change);
    assert!(s.store.sites().await.unwrap().is_empty());
    assert_eq!(s.store.revision().await.unwrap().number, 0);
}

#[tokio::test]
async fn a_copy_of_the_files_taken_at_any_moment_opens_and_is_consistent() {
    let s = Scratch::open().await;
    for i in 0..20u16 {
        let mut change = s.change().await;
        sites::create(&mut change.tx, &site(&format!("s{i}")), "UTC", Wall(1))
            .await
            .unwrap();
        change.commit().await.unwrap();
        // What a power cut leaves behind: the file and its log as they are.
        let copy = s.dir.join(format!("copy-{i}"));
        std::fs::create_dir(&copy).unwrap();
        for name in ["hedgerow.db", "hedgerow.db-wal"] {
            std::fs::copy(s.dir.join(name), copy.join(name)).unwrap();
        }
        let after = Store::open(&copy.join("hedgerow.db")).await.unwrap();
        assert_eq!(
            after.revision().await.unwrap().number,
            after.sites().await.unwrap().len() as u64
        );
        assert_eq!(after.sites().await.unwrap().len(), usize::from(i) + 1);
        after.close().await;
    }
}

#[tokio::test]
async fn addresses_come_back_only_after_the_last_ticket_has_ended() {
    let s = Scratch::open().await;
    let pool = addresses::V4Pool::new(&"100.80.0.0/22".parse().unwrap()).unwrap();
    let mut tx = s.store.note().await.unwrap();
    let mut given = std::collections::BTreeSet::new();
    for i in 0..1022u64 {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&i.to_be_bytes());
        let address = addresses::allocate(&mut tx, &pool, &site("s1"), DeviceId(id), 100, 7)
            .await
            .unwrap();
        assert!(given.insert(address), "{address} was given twice");
    }
    let other = DeviceId([9; 16]);
    let full = addresses::allocate(&mut tx, &pool, &site("s1"), other, 100, 7).await;
    assert!(matches!(full, Err(StoreError::Exhausted { .. })));
    let first = DeviceId([0; 16]);
    addresses::release(&mut tx, first, 200).await.unwrap();
    let early = addresses::allocate(&mut tx, &pool, &site("s1"), other, 200, 7).await;
    assert!(early.is_err(), "its last ticket is still in grace");
    let late = addresses::allocate(&mut tx, &pool, &site("s1"), other, 201, 7)
        .await
        .unwrap();
    assert_eq!(Some(&late), given.first());
}

#[tokio::test]
async fn events_are_bounded_and_ordered() {
    let s = Scratch::open().await;
    let events: Vec<_> = (0..5)
        .map(|i| (None, Event::new(Wall(i), EventKind::AgentStarted)))
        .collect();
    s.store.add_events(&events).await.unwrap();
    let page = s.store.events_after(2, 2).await.unwrap();
    assert_eq!(page.iter().map(|e| e.seq).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(s.store.events_newest(1).await.unwrap()[0].seq, 5);
}

#[tokio::test]
async fn a_new_timeline_is_larger_and_begins_at_its_first_number() {
    let s = Scratch::open().await;
    s.change().await.commit().await.unwrap();
    s.store.begin_timeline(1000).await.unwrap();
    s.store.begin_timeline(5).await.unwrap();
    let next = s.change().await.commit().await.unwrap();
    assert_eq!((next.timeline, next.number), (1000, 1));
}

#[tokio::test]
async fn what_is_over_leaves_and_evidence_stays() {
    let s = Scratch::open().await;
    let day = 24 * 3600 * 1000;
    let mut change = s.change().await;
    for (id, expires) in [([1; 8], day), ([2; 8], 20 * day)] {
        let token = tokens::TokenRecord {
            id,
            public_key: hedgerow_model::statement::Ed25519Public([0; 32]),
            site: site("s1"),
            labels: hedgerow_model::id::Labels::default(),
            name: None,
            approve: false,
            uses_max: 1,
            used: 0,
            created: Wall(0),
            created_by: "admin".to_owned(),
            expires: Wall(expires),
            revoked: None,
        };
        tokens::create(&mut change.tx, &token).await.unwrap();
    }
    change.commit().await.unwrap();
    let most = retention::POLICY_TEXTS_MAX;
    let mut tx = s.store.note().await.unwrap();
    for number in 1..=most + 2 {
        let revision = Revision {
            timeline: 1,
            number,
        };
        let record = policies::PolicyRecord {
            revision,
            source: "text".to_owned(),
            hash: hedgerow_model::id::Digest([7; 32]),
            parent: None,
            author: "admin".to_owned(),
            note: String::new(),
            signature: vec![1],
            at: Wall(number),
        };
        policies::add(&mut tx, &record).await.unwrap();
    }
    tx.commit().await.unwrap();
    s.store.retire(Wall(40 * day), &[]).await.unwrap();
    let left = s.store.tokens().await.unwrap();
    assert_eq!(left.iter().map(|t| t.id).collect::<Vec<_>>(), [[2; 8]]);
    let kept = s.store.policy_history(most * 2).await.unwrap();
    assert_eq!(kept.len() as u64, most + 2, "no revision is gone");
    let texts = kept.iter().filter(|p| !p.source.is_empty()).count() as u64;
    assert_eq!(texts, most);
    assert!(
        kept.last()
            .is_some_and(|p| p.source.is_empty() && p.signature == [1])
    );
}

fn waiting(n: u16, source: &str, token: Option<[u8; 8]>) -> pending::PendingRecord {
    pending::PendingRecord {
        key_hash: hedgerow_model::id::Digest::of(&n.to_be_bytes()),
        csr: Vec::new(),
        introduction_key: hedgerow_model::statement::X25519Public([0; 32]),
        hostname: "plc-7".to_owned(),
        source: source.to_owned(),
        fingerprint: format!("{n:08}"),
        token,
        site: None,
        labels: hedgerow_model::id::Labels::default(),
        name: None,
        decision: pending::Decision::Waiting,
        device: None,
        created: Wall(u64::from(n)),
        expires: Wall(u64::MAX >> 1),
    }
}

async fn asks(s: &Scratch, p: &pending::PendingRecord) -> bool {
    let mut tx = s.store.note().await.unwrap();
    let added = pending::add(&mut tx, p).await.is_ok();
    tx.commit().await.unwrap();
    added
}

#[tokio::test]
async fn one_network_cannot_fill_the_approval_queue() {
    let s = Scratch::open().await;
    for n in 0..40 {
        let from = format!("2001:db8::{n:x}");
        let room = u64::from(n) < pending::PENDING_PER_SOURCE_MAX;
        assert_eq!(asks(&s, &waiting(n, &from, None)).await, room, "{from}");
    }
    for n in 100..140 {
        let room = u64::from(n - 100) < pending::PENDING_PER_SOURCE_MAX;
        assert_eq!(asks(&s, &waiting(n, "192.0.2.1", None)).await, room, "{n}");
    }
    let mapped = waiting(200, "::ffff:192.0.2.1", None);
    assert!(!asks(&s, &mapped).await, "the same in another spelling");
    for (n, from) in [(300, "2001:db8:0:1::1"), (301, "192.0.2.2")] {
        assert!(asks(&s, &waiting(n, from, None)).await, "{from}");
    }
    let token = waiting(400, "2001:db8::1", Some([1; 8]));
    assert!(asks(&s, &token).await, "a token is no matter of networks");
    s.store.close().await;
}

#[tokio::test]
async fn strangers_from_everywhere_keep_nobody_out_of_the_approval_queue() {
    let s = Scratch::open().await;
    let all = u16::try_from(pending::PENDING_MAX).unwrap();
    let proven = waiting(0, "198.51.100.1", Some([1; 8]));
    assert!(asks(&s, &proven).await);
    let mut tx = s.store.note().await.unwrap();
    for n in 1..=all {
        let p = waiting(n, &format!("2001:db8:0:{n:x}::1"), None);
        pending::put(&mut tx, &p).await.unwrap();
    }
    tx.commit().await.unwrap();
    let honest = waiting(all + 1, "192.0.2.1", None);
    let with_token = waiting(all + 2, "192.0.2.2", Some([2; 8]));
    assert!(asks(&s, &honest).await && asks(&s, &with_token).await);
    let kept = s.store.pending().await.unwrap();
    let has = |p: &pending::PendingRecord| kept.iter().any(|k| k.key_hash == p.key_hash);
    assert!(has(&proven) && has(&honest) && has(&with_token));
    assert!(
        !has(&waiting(1, "", None)),
        "the oldest stranger makes room"
    );
    assert_eq!(kept.len(), usize::from(all) + 2);
    s.store.close().await;
}
