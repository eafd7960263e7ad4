//! The table beside other tables, other processes and its own past.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;

use hedgerow_linux::nft::{Found, NftError, Ownership, Table};
use hedgerow_model::address::Overlay;
use hedgerow_model::ruleset::{ProfileId, Ruleset, Verdict};
use hedgerow_model::service::Ports;

use crate::fixture::{
    Outcome, at, connect, entry, exchange, load, open, profile, ruleset, serve, tcp, with_peer,
};
use crate::namespace::{Lab, own6, peer6};

/// One peer that may reach port 22.
fn one_peer() -> Ruleset {
    let allowed = vec![entry(Ports::tcp(22), Verdict::Accept)];
    let mut rules = ruleset(vec![profile(allowed, vec![])]);
    with_peer(&mut rules, peer6(1), 1);
    rules
}

fn attempt(lab: &Lab, peer: u8, port: u16) -> Outcome {
    tcp(&lab.peers, peer6(peer), SocketAddr::new(own6(), port))
}

/// The allowed passes, the rest does not.
fn assert_enforced(lab: &Lab, when: &str) {
    assert_eq!(attempt(lab, 1, 22), Outcome::Answered, "{when}");
    assert_eq!(attempt(lab, 1, 23), Outcome::Silent, "{when}");
    assert_eq!(attempt(lab, 2, 22), Outcome::Silent, "{when}");
}

const FOREIGN: &str = r#"
table inet filter {
    set banned {
        type ipv4_addr
        flags interval
        elements = { 198.51.100.0/24 }
    }
    chain input {
        type filter hook input priority 0; policy accept;
        ip saddr @banned drop
        tcp dport 9999 drop
    }
    chain forward {
        type filter hook forward priority 0; policy drop;
    }
}
table ip nat {
    chain postrouting {
        type nat hook postrouting priority 100;
        oifname "eth9" masquerade
    }
}
table ip6 mangle {
    map marks {
        type inet_service : mark
        elements = { 80 : 0x7, 443 : 0x9 }
    }
    chain prerouting {
        type filter hook prerouting priority -150;
        meta mark set tcp dport map @marks
    }
}
table inet hedgerow-like {
    chain c {
    }
}
"#;

/// Returns every table but ours, as `nft` prints it without counters.
pub(crate) fn foreign(lab: &Lab) -> String {
    let mut tables = lab.device.nft_ok(&["-s", "list", "tables"]);
    tables =
        tables
            .lines()
            .filter(|l| *l != "table inet hedgerow")
            .fold(String::new(), |all, l| {
                let words: Vec<_> = ["-s", "list"]
                    .into_iter()
                    .chain(l.split_whitespace())
                    .collect();
                all + &lab.device.nft_ok(&words)
            });
    tables
}

#[test]
fn foreign_tables_stay_byte_identical_and_removal_leaves_nothing() {
    let lab = Lab::new();
    let path = std::env::temp_dir().join(format!("hgt-linux-foreign-{}", std::process::id()));
    std::fs::write(&path, FOREIGN).unwrap();
    lab.device.nft_ok(&["-f", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    let before = lab.device.nft_ok(&["list", "ruleset"]);
    let alone = foreign(&lab);
    let mut rules = one_peer();
    let mut table = load(&lab, &rules);
    assert_eq!(foreign(&lab), alone, "after loading");
    table.set_peer(Overlay(peer6(3)), ProfileId(1)).unwrap();
    table.remove_peer(Overlay(peer6(3))).unwrap();
    rules.generation = 2;
    table.load(&rules, at(1)).unwrap();
    serve(&lab.device, own6(), &[22, 23, 9999]);
    assert_enforced(&lab, "beside other tables");
    assert_eq!(
        attempt(&lab, 1, 9999),
        Outcome::Silent,
        "a foreign drop stays a drop"
    );
    assert_eq!(foreign(&lab), alone, "after changing");
    table.remove().unwrap();
    assert_eq!(
        lab.device.nft_ok(&["list", "ruleset"]),
        before,
        "after removal"
    );
    table.remove().unwrap();
}

#[test]
fn other_processes_cannot_flush_delete_or_change_the_table() {
    let lab = Lab::new();
    let mut table = load(&lab, &one_peer());
    assert_eq!(
        table.ownership(),
        Some(Ownership::Owned),
        "this kernel lacks owner and persist"
    );
    serve(&lab.device, own6(), &[22, 23]);
    lab.device.nft_ok(&["add", "table", "inet", "bystander"]);
    lab.device.nft_ok(&["flush", "ruleset"]);
    assert!(!lab.device.nft_ok(&["list", "tables"]).contains("bystander"));
    let element = format!("{{ {} : 0x0 . 0x80000001 }}", peer6(2));
    for forbidden in [
        vec!["delete", "table", "inet", "hedgerow"],
        vec!["flush", "chain", "inet", "hedgerow", "input"],
        vec!["add", "element", "inet", "hedgerow", "peers6", &element],
    ] {
        assert!(
            !lab.device.nft(&forbidden).status.success(),
            "{forbidden:?} was allowed"
        );
    }
    assert_enforced(&lab, "after the attempts");
    assert!(table.verify(at(1).mono).unwrap().is_intact());
    let other = lab.device.run(|| Table::open(None));
    assert!(matches!(other, Err(NftError::OwnedByAnother)));
}

const CHILD: &str = "HEDGEROW_TEST_OWNER_CHILD";

#[test]
fn a_killed_owner_leaves_a_table_that_enforces_and_is_adopted() {
    if std::env::var(CHILD).is_ok() {
        own_until_killed();
    }
    let lab = Lab::new();
    let name = "coexistence::a_killed_owner_leaves_a_table_that_enforces_and_is_adopted";
    let mut child = lab.device.spawn_test(name, CHILD);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.map_while(Result::ok).any(|l| l.contains("loaded")),
        "the child failed"
    );
    serve(&lab.device, own6(), &[22, 23]);
    assert_enforced(&lab, "while the owner lives");
    assert!(
        !lab.device
            .nft(&["delete", "table", "inet", "hedgerow"])
            .status
            .success()
    );
    let live = lab
        .peers
        .run(|| connect(peer6(1), SocketAddr::new(own6(), 22)).unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(exchange(&live), "what is allowed goes on");
    assert_enforced(&lab, "after the owner was killed");
    // Nobody owns it now, so any root process can take the peer out: the session ends at once.
    let element = format!("{{ {} }}", peer6(1));
    lab.device
        .nft_ok(&["delete", "element", "inet", "hedgerow", "peers6", &element]);
    assert!(
        !exchange(&live),
        "the session of a peer that is gone lives on"
    );

    let mut table = open(&lab.device);
    assert_eq!(table.found(), Found::Orphan);
    assert!(
        !lab.device
            .nft(&["delete", "table", "inet", "hedgerow"])
            .status
            .success()
    );
    lab.device.nft_ok(&["flush", "ruleset"]);
    assert!(matches!(table.verify(at(0).mono), Err(NftError::NotLoaded)));
    table.load(&one_peer(), at(0)).unwrap();
    assert!(table.verify(at(0).mono).unwrap().is_intact());
    assert_enforced(&lab, "after adoption");
}

fn own_until_killed() -> ! {
    let mut table = Table::open(None).unwrap();
    table.load(&one_peer(), at(0)).unwrap();
    println!("loaded");
    std::io::stdout().flush().unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn a_stored_socket_keeps_the_table_owned_across_a_restart() {
    let lab = Lab::new();
    let table = load(&lab, &one_peer());
    let stored = table.as_fd().try_clone_to_owned().unwrap();
    drop(table);
    assert!(
        !lab.device
            .nft(&["delete", "table", "inet", "hedgerow"])
            .status
            .success()
    );
    lab.device.nft_ok(&["flush", "ruleset"]);
    let mut table = lab.device.run(|| Table::open(Some(stored))).unwrap();
    assert_eq!(table.found(), Found::Ours);
    table.load(&one_peer(), at(0)).unwrap();
    assert!(table.verify(at(0).mono).unwrap().is_intact());
}

#[test]
fn a_difference_in_the_kernel_is_noticed_and_mended() {
    let lab = Lab::new();
    let rules = one_peer();
    let mut table = load(&lab, &rules);
    let loaded = table.expected(at(0).mono).unwrap();
    // The same socket, so the kernel takes it for the owner.
    let same = table.as_fd().try_clone_to_owned().unwrap();
    let mut behind = lab.device.run(|| Table::open(Some(same))).unwrap();
    behind.load(&rules, at(0)).unwrap();
    assert!(table.verify(at(0).mono).unwrap().is_intact());
    behind.remove_peer(Overlay(peer6(1))).unwrap();
    let seen = table.verify(at(0).mono).unwrap();
    assert_eq!((seen.missing, seen.surplus), (1, 0));
    assert_eq!(seen.expected, loaded);
    assert_ne!(seen.found, loaded);
    behind.set_peer(Overlay(peer6(5)), ProfileId(1)).unwrap();
    assert_eq!(table.verify(at(0).mono).unwrap().surplus, 1);
    let mut wider = rules.clone();
    let inbound = &mut wider.profiles.get_mut(&ProfileId(1)).unwrap().inbound;
    inbound.push(entry(Ports::tcp(23), Verdict::Accept));
    behind.load(&wider, at(0)).unwrap();
    assert!(!table.verify(at(0).mono).unwrap().is_intact());
    behind.remove().unwrap();
    assert!(table.verify(at(0).mono).unwrap().missing > 50);
    // A change that does not fit what is there fails, and says so.
    assert!(table.remove_peer(Overlay(peer6(1))).is_err());
    assert_eq!(table.load(&rules, at(0)).unwrap(), loaded);
    assert!(table.verify(at(0).mono).unwrap().is_intact());
}

#[test]
fn the_table_that_stands_is_taken_as_it_is_and_no_other() {
    let lab = Lab::new();
    let rules = one_peer();
    let loaded = load(&lab, &rules).expected(at(0).mono).unwrap();
    let mut again = open(&lab.device);
    assert_eq!(again.found(), Found::Orphan);
    lab.device.run(|| again.read_ahead());
    assert_eq!(again.adopt(&rules, at(5)).unwrap(), Some(loaded));
    // It is loaded now, as if by this process: elements change, and there is nothing left to adopt.
    again.set_peer(Overlay(peer6(5)), ProfileId(1)).unwrap();
    assert!(again.verify(at(5).mono).unwrap().is_intact());
    assert_eq!(again.adopt(&rules, at(5)).unwrap(), None);
    drop(again);
    // The peer that was added since is no part of these rules.
    let mut other = open(&lab.device);
    assert_eq!(other.adopt(&rules, at(9)).unwrap(), None);
    assert_eq!(other.load(&rules, at(9)).unwrap(), loaded);
    drop(other);
    let mut wider = rules;
    let inbound = &mut wider.profiles.get_mut(&ProfileId(1)).unwrap().inbound;
    inbound.push(entry(Ports::tcp(23), Verdict::Accept));
    let mut newer = open(&lab.device);
    assert_eq!(newer.adopt(&wider, at(9)).unwrap(), None);
    lab.device.nft_ok(&["list", "table", "inet", "hedgerow"]);
}

#[test]
fn without_ownership_the_same_is_enforced_and_a_flush_is_noticed() {
    let lab = Lab::new();
    let mut table = lab.device.run(Table::open_plain).unwrap();
    table.load(&one_peer(), at(0)).unwrap();
    assert_eq!(table.ownership(), Some(Ownership::Plain));
    serve(&lab.device, own6(), &[22, 23]);
    assert_enforced(&lab, "as a plain table");
    lab.device.nft_ok(&["flush", "ruleset"]);
    assert!(!table.verify(at(0).mono).unwrap().is_intact());
    table.load(&one_peer(), at(0)).unwrap();
    assert_enforced(&lab, "after mending");
    drop(table);
    assert_enforced(&lab, "after its process ended");
    let mut owned = open(&lab.device);
    assert_eq!(owned.found(), Found::Plain);
    owned.load(&one_peer(), at(0)).unwrap();
    assert_eq!(owned.ownership(), Some(Ownership::Owned));
    assert!(
        !lab.device
            .nft(&["delete", "table", "inet", "hedgerow"])
            .status
            .success()
    );
    assert_enforced(&lab, "after the upgrade");
}

#[test]
fn a_refused_load_names_its_cause_and_leaves_the_previous_ruleset() {
    let lab = Lab::new();
    let mut table = load(&lab, &one_peer());
    serve(&lab.device, own6(), &[22, 23]);
    let mut overlapping = one_peer();
    let inbound = &mut overlapping.profiles.get_mut(&ProfileId(1)).unwrap().inbound;
    let range = |first, last| Ports {
        first,
        last,
        ..Ports::tcp(0)
    };
    inbound.push(entry(range(100, 200), Verdict::Accept));
    inbound.push(entry(range(150, 250), Verdict::Accept));
    let error = table.load(&overlapping, at(0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel refused an element of in_ranges"
    );
    let mut dangling = one_peer();
    with_peer(&mut dangling, peer6(2), 9);
    let error = table.load(&dangling, at(0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ruleset is malformed: a peer has profile 9, which is not there"
    );
    assert!(table.verify(at(0).mono).unwrap().is_intact());
    assert_enforced(&lab, "after refused loads");
}

#[test]
fn nft_prints_the_table_in_words() {
    let lab = Lab::new();
    let _table = load(&lab, &one_peer());
    let text = lab.device.nft_ok(&["list", "table", "inet", "hedgerow"]);
    for line in [
        "comment \"Hedgerow, generation 1\"",
        "fd00:7::1:1 : 0x00000000 . 0x80000001",
        "0x80000001 . tcp . 22 : accept",
        "type filter hook input priority filter + 10; policy accept;",
        "iifname \"hedgerow0\" goto tunnel_in",
        "ip6 daddr != fd00:7::a goto spoofed_overlay",
        "ct state new tcp flags != syn / fin,syn,rst,ack goto not_syn",
        "meta mark . meta l4proto . th dport vmap @in_ports comment \"mark stands for the peer's profile in peers6\"",
        "limit rate 1/second burst 1 packets log prefix \"deny.default\" group 7117 snaplen 96",
        "reject with icmpx admin-prohibited",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
