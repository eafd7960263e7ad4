//! Links, routes and files of a real machine.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hedgerow_linux::hosts::{self, Entries};
use hedgerow_linux::link::{self, Link, LinkError, ROUTE_PROTOCOL};
use hedgerow_linux::nft::{self, Ownership};
use hedgerow_linux::process;
use hedgerow_model::address::Prefix;

use crate::namespace::Namespace;

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// Adds an interface with a far end that is up.
fn add_link(inside: &Namespace, name: &str) {
    inside.ip(&format!("link add {name} type veth peer name {name}far"));
    inside.ip(&format!("link set {name}far up"));
}

#[test]
fn an_interface_is_configured_and_configuring_it_twice_changes_nothing() {
    let inside = Namespace::new("link");
    add_link(&inside, "tun9");
    inside.run(|| {
        let link = Link::find("tun9").unwrap();
        for _ in 0..2 {
            link.set_mtu(1420).unwrap();
            link.set_up().unwrap();
            link.add_address("fd00:7::a".parse().unwrap(), 128).unwrap();
            link.add_address("100.80.0.10".parse().unwrap(), 32)
                .unwrap();
            for pool in ["fd00:7::/48", "100.80.0.0/12"] {
                link.add_route(prefix(pool)).unwrap();
                link::add_unreachable(prefix(pool)).unwrap();
            }
        }
    });
    let shown = inside.ip("-o link show tun9");
    assert!(
        shown.contains("mtu 1420") && shown.contains(",UP"),
        "{shown}"
    );
    let shown = inside.ip("-o addr show tun9");
    assert!(
        shown.contains("fd00:7::a/128") && shown.contains("100.80.0.10/32"),
        "{shown}"
    );
    let six = inside.ip("-6 route show proto 71");
    let four = inside.ip("-4 route show proto 71");
    assert_eq!(six.lines().count(), 2, "{six}");
    assert_eq!(four.lines().count(), 2, "{four}");
    // Without the interface, the unreachable route is what is left.
    inside.run(|| Link::find("tun9").unwrap().delete().unwrap());
    let left = inside.ip("-6 route show proto 71") + &inside.ip("-4 route show proto 71");
    assert!(left.lines().all(|l| l.starts_with("unreachable")), "{left}");
    assert_eq!(left.lines().count(), 2, "{left}");
    inside.run(|| {
        for _ in 0..2 {
            link::remove_unreachable(prefix("fd00:7::/48")).unwrap();
        }
        let routes = link::routes().unwrap();
        assert!(
            routes
                .iter()
                .any(|r| r.destination == prefix("100.80.0.0/12"))
        );
        assert!(
            !routes
                .iter()
                .any(|r| r.destination == prefix("fd00:7::/48"))
        );
        assert!(matches!(Link::find("tun9"), Err(LinkError::Absent { .. })));
    });
}

#[test]
fn foreign_routes_that_overlap_a_pool_are_listed_and_ours_are_not() {
    let inside = Namespace::new("overlap");
    for name in ["lan0", "tun9"] {
        add_link(&inside, name);
        inside.ip(&format!("link set {name} up"));
    }
    inside.ip("addr add 100.81.0.1/24 dev lan0");
    inside.ip("route add default dev lan0");
    inside.run(|| {
        let tunnel = Link::find("tun9").unwrap();
        tunnel
            .add_address("100.80.0.10".parse().unwrap(), 32)
            .unwrap();
        let pools = [prefix("100.80.0.0/12"), prefix("fd00:7::/48")];
        pools.iter().for_each(|p| tunnel.add_route(*p).unwrap());
        let found = link::overlaps(&pools, Some(&tunnel)).unwrap();
        let found: Vec<_> = found.iter().map(|r| r.destination).collect();
        assert_eq!(found, [prefix("100.81.0.0/24")]);
        let ours = link::routes().unwrap();
        assert_eq!(
            ours.iter().filter(|r| r.protocol == ROUTE_PROTOCOL).count(),
            2
        );
    });
}

#[test]
fn an_interface_is_waited_for_as_long_as_was_said() {
    let inside = Namespace::new("wait");
    inside.run(|| {
        let none = Link::wait("late0", Duration::from_millis(50));
        assert!(matches!(none, Err(LinkError::Absent { .. })));
    });
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| inside.run(|| Link::wait("late0", Duration::from_secs(20))));
        add_link(&inside, "late0");
        assert_eq!(waiting.join().unwrap().unwrap().name(), "late0");
    });
}

#[test]
fn this_machine_has_what_enforcement_needs() {
    let inside = Namespace::new("probe");
    assert_eq!(inside.run(nft::probe).unwrap(), Ownership::Owned);
    assert_eq!(
        inside.nft_ok(&["list", "tables"]),
        "",
        "the probe left something"
    );
    let missing = inside.run(process::missing);
    let serious: Vec<_> = missing
        .iter()
        .filter(|m| !matches!(m, process::Missing::Tun { .. }))
        .collect();
    assert!(serious.is_empty(), "{serious:?}");
}

#[test]
fn without_the_right_to_enforce_the_error_says_what_is_needed() {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    let inside = Namespace::new("bare");
    inside.run(|| {
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        // Of this thread alone, which ends here.
        set_capabilities(None, none).unwrap();
        let needed = "run as root, or grant CAP_NET_ADMIN";
        let error = nft::Table::open(None).unwrap_err();
        assert!(error.to_string().ends_with(needed), "{error}");
        assert!(nft::probe().unwrap_err().to_string().ends_with(needed));
        let error = Link::find("lo").unwrap().set_mtu(1400).unwrap_err();
        assert!(error.to_string().ends_with(needed), "{error}");
    });
}

const CHILD: &str = "HEDGEROW_TEST_HOSTS_CHILD";

#[test]
fn a_hosts_file_that_is_a_mount_point_is_written_in_place() {
    if let Ok(path) = std::env::var(CHILD) {
        write_mounted(Path::new(&path));
        return;
    }
    let directory = std::env::temp_dir().join(format!("hgt-linux-hosts-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("hosts");
    std::fs::write(&file, "127.0.0.1\tlocalhost\n").unwrap();
    let source = directory.join("source");
    std::fs::copy(&file, &source).unwrap();
    // A process of its own, because the mount namespace is.
    let name = "machine::a_hosts_file_that_is_a_mount_point_is_written_in_place";
    let script = format!("mount --bind \"$1\" \"$2\" && exec \"$0\" --exact {name}");
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args([&source, &file])
        .env(CHILD, &file)
        .status()
        .unwrap();
    let mounted = std::fs::read_to_string(&source).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let litter = std::fs::read_dir(&directory).unwrap().count();
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(status.success());
    assert!(mounted.contains("fd00:7::1\tplc-1\n"), "{mounted}");
    assert_eq!(text, "127.0.0.1\tlocalhost\n", "what lies below the mount");
    assert_eq!(litter, 2, "the mount's source and target");
}

fn write_mounted(file: &Path) {
    let entries = Entries::from([("fd00:7::1".parse().unwrap(), vec!["plc-1".to_owned()])]);
    hosts::write(file, &entries).unwrap();
}
