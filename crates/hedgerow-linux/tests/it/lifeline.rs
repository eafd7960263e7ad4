//! Who may use the lifeline of an enforced underlay, by the control group of the asking process.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use hedgerow_linux::cgroup;
use hedgerow_linux::nft::{Table, knows_group};
use hedgerow_model::program::Mode;
use hedgerow_model::ruleset::{Askers, ControlGroup, Ruleset};

use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto};

use crate::fixture::{Outcome, connect, exchange, load, ruleset, serve, tcp_here, udp, udp_here};
use crate::namespace::Lab;

const CHILD: &str = "HEDGEROW_TEST_ASKING_CHILD";
const TEST: &str = "lifeline::only_the_agents_control_group_asks_name_and_time_servers";
const PREFIX: &str = "hgt-linux";

/// A control group that goes away with the test; what a killed run left behind goes first.
struct Group {
    directory: PathBuf,
    level: u8,
}

impl Group {
    fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = hierarchy();
        for left in std::fs::read_dir(&root).unwrap().flatten() {
            let name = left.file_name().into_string().unwrap_or_default();
            let pid = name.strip_prefix(PREFIX).and_then(|n| n.split('-').nth(1));
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                drop(std::fs::remove_dir(left.path().join("below")));
                drop(std::fs::remove_dir(left.path()));
            }
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}-{role}", std::process::id());
        Self::made(root.join(name), 1)
    }

    fn made(directory: PathBuf, level: u8) -> Self {
        std::fs::create_dir(&directory).unwrap();
        Self { directory, level }
    }

    fn below(&self) -> Self {
        Self::made(self.directory.join("below"), self.level + 1)
    }

    fn number(&self) -> ControlGroup {
        ControlGroup {
            id: std::fs::metadata(&self.directory).unwrap().ino(),
            level: self.level,
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(std::fs::remove_dir(&self.directory));
    }
}

/// Returns where control groups version 2 are mounted.
fn hierarchy() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|l| l.contains(" - cgroup2 "));
    let point = line.and_then(|l| l.split(' ').nth(4));
    PathBuf::from(point.unwrap_or_else(|| panic!("control groups version 2 are not mounted")))
}

fn far() -> [(IpAddr, IpAddr); 2] {
    [("192.0.2.1", "192.0.2.2"), ("fd99::1", "fd99::2")]
        .map(|(near, far)| (near.parse().unwrap(), far.parse().unwrap()))
}

/// Asks name and time servers, and prints what came of it.
fn ask() {
    let mut said = Vec::new();
    for (near, far) in far() {
        let socket = |port| SocketAddr::new(far, port);
        said.push(udp_here(near, socket(53)));
        said.push(tcp_here(near, socket(53)));
        said.push(udp_here(near, socket(123)));
        said.push(udp_here(near, socket(80)));
    }
    println!("\ngroup {:?}", cgroup::own());
    println!("\nasked {said:?}");
}

/// Returns what a process in the group said of its group and of its questions.
fn asked_from(lab: &Lab, group: Option<&Group>) -> (String, String) {
    let group = group.map(|g| g.directory.as_path());
    let child = lab.device.spawn_test_in(group, TEST, CHILD);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |word: &str| {
        let found = text.lines().find_map(|l| l.strip_prefix(word));
        found
            .unwrap_or_else(|| panic!("no {word}in {text}"))
            .to_owned()
    };
    (line("group "), line("asked "))
}

const ANSWERED: &str =
    "[Answered, Answered, Answered, Rejected, Answered, Answered, Answered, Rejected]";
const REFUSED: &str =
    "[Rejected, Rejected, Rejected, Rejected, Rejected, Rejected, Rejected, Rejected]";

fn enforced(askers: Askers) -> Ruleset {
    let mut rules = ruleset(vec![]);
    rules.underlay_mode = Mode::Enforce;
    rules.lifeline.servers = far().map(|(_, far)| far).to_vec();
    rules.lifeline.askers = askers;
    rules
}

#[test]
fn only_the_agents_control_group_asks_name_and_time_servers() {
    if std::env::var(CHILD).is_ok() {
        return ask();
    }
    let lab = Lab::new();
    for (_, far) in far() {
        serve(&lab.peers, far, &[53, 80, 123]);
    }
    let (agent, other) = (Group::new("agent"), Group::new("other"));
    let below = agent.below();
    let mut table = load(&lab, &enforced(Askers::Group(agent.number())));
    let (group, asked) = asked_from(&lab, Some(&agent));
    assert_eq!(group, format!("Ok({:?})", agent.number()));
    assert_eq!(asked, ANSWERED, "the agent");
    assert_eq!(asked_from(&lab, Some(&below)).1, ANSWERED, "its children");
    assert_eq!(asked_from(&lab, Some(&other)).1, REFUSED, "another service");
    let (group, asked) = asked_from(&lab, None);
    assert_eq!(asked, REFUSED, "a program outside of any service");
    assert_eq!(
        group,
        format!("{:?}", cgroup::own()),
        "where this test runs"
    );
    assert!(
        table
            .verify(crate::fixture::at(1).mono)
            .unwrap()
            .is_intact()
    );

    // A service that is started again has another group, also under the same name.
    let text = lab
        .device
        .nft_ok(&["list", "chain", "inet", "hedgerow", "underlay_out"]);
    let name = agent
        .directory
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let shown = format!("socket cgroupv2 level 1 {} accept", agent.number().id);
    assert!(text.contains(&shown), "{text}");
    drop(below);
    let before = agent.number();
    drop(agent);
    let again = Group::made(hierarchy().join(&name), 1);
    assert_ne!(again.number(), before);
    assert_eq!(asked_from(&lab, Some(&again)).1, REFUSED, "not told of yet");
    let mut rules = enforced(Askers::Group(again.number()));
    rules.generation = 2;
    let hash = table.expected(crate::fixture::at(1).mono).unwrap();
    assert_ne!(table.load(&rules, crate::fixture::at(1)).unwrap(), hash);
    assert_eq!(asked_from(&lab, Some(&again)).1, ANSWERED, "told of");
}

#[test]
fn at_boot_nobody_asks_and_without_control_groups_everybody_does() {
    let lab = Lab::new();
    for (_, far) in far() {
        serve(&lab.peers, far, &[53, 80, 123]);
    }
    let group = Group::new("agent");
    let mut table = load(&lab, &enforced(Askers::Nobody));
    assert_eq!(asked_from(&lab, Some(&group)).1, REFUSED);
    let mut rules = enforced(Askers::Anybody);
    rules.generation = 2;
    table.load(&rules, crate::fixture::at(1)).unwrap();
    assert_eq!(asked_from(&lab, Some(&group)).1, ANSWERED);
    assert_eq!(asked_from(&lab, None).1, ANSWERED);
}

#[test]
fn this_kernel_matches_control_groups_and_asking_leaves_nothing() {
    let lab = Lab::new();
    let group = ControlGroup { id: 7, level: 1 };
    assert!(lab.device.run(|| knows_group(group)).unwrap());
    assert_eq!(lab.device.nft_ok(&["list", "tables"]), "");
}

/// The checksum of the internet (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let pairs = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let sum = pairs.sum::<u32>();
    let sum = (sum >> 16) + (sum & 0xffff);
    (!u16::try_from((sum >> 16) + (sum & 0xffff)).unwrap()).to_be_bytes()
}

/// A control message of the far end about a TCP connection that the device opened.
struct Message<'a> {
    kind: u8,
    about: &'a TcpStream,
}

impl Message<'_> {
    /// Returns the message; of IPv6, the kernel writes the checksum.
    fn bytes(&self) -> Vec<u8> {
        let (near, far) = (
            self.about.local_addr().unwrap(),
            self.about.peer_addr().unwrap(),
        );
        let mut out = vec![self.kind, 0, 0, 0, 0, 0, 0, 0];
        match (near.ip(), far.ip()) {
            (IpAddr::V4(near), IpAddr::V4(far)) => {
                out.extend([0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0]);
                out.extend([near.octets(), far.octets()].concat());
            }
            (IpAddr::V6(near), IpAddr::V6(far)) => {
                // A redirect names a router and a destination before the packet it is about.
                if self.kind == 137 {
                    out.extend([far.octets(), far.octets()].concat());
                }
                out.extend([0x60, 0, 0, 0, 0, 40, 6, 64]);
                out.extend([near.octets(), far.octets()].concat());
            }
            _ => panic!("one family"),
        }
        out.extend([near.port().to_be_bytes(), far.port().to_be_bytes()].concat());
        out.extend([0; 16]);
        if near.is_ipv4() {
            let sum = checksum(&out);
            out[2..4].copy_from_slice(&sum);
        }
        out
    }
}

fn send_raw(from: IpAddr, to: IpAddr, bytes: &[u8]) {
    let (family, protocol) = match from.is_ipv4() {
        true => (AddressFamily::INET, ipproto::ICMP),
        false => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket = rustix::net::socket(family, SocketType::RAW, Some(protocol)).unwrap();
    rustix::net::bind(&socket, &SocketAddr::new(from, 0)).unwrap();
    let to = SocketAddr::new(to, 0);
    rustix::net::sendto(&socket, bytes, SendFlags::empty(), &to).unwrap();
}

#[test]
fn control_messages_that_move_a_path_or_probe_do_not_pass_the_lifeline() {
    let lab = Lab::new();
    let mut rules = enforced(Askers::Nobody);
    for (near, far) in far() {
        serve(&lab.peers, far, &[7443]);
        serve(&lab.device, near, &[7117]);
        rules.lifeline.controllers.push(SocketAddr::new(far, 7443));
    }
    let mut table = load(&lab, &rules);
    let redirect = [5, 137];
    // Echo, timestamp, mask, quench, router discovery; of IPv6 what only hosts and routers send.
    let others: [&[u8]; 2] = [&[4, 8, 9, 10, 13, 17], &[128, 131, 133, 143]];
    let needed: [&[u8]; 2] = [&[3, 11, 12], &[1, 2, 3, 4, 130, 134, 135, 136]];
    for (index, (near, far)) in far().into_iter().enumerate() {
        let target = SocketAddr::new(far, 7443);
        let session = lab.device.run(|| connect(near, target).unwrap());
        assert!(exchange(&session));
        let mut refused = |kind| {
            let about = &session;
            let count = |table: &mut Table| table.counters().unwrap()["underlay_default"].packets;
            let before = count(&mut table);
            let bytes = Message { kind, about }.bytes();
            lab.peers.run(|| send_raw(far, near, &bytes));
            // What came before it on the link has been judged when its answer is back.
            let mesh = udp(&lab.peers, far, SocketAddr::new(near, 7117));
            assert_eq!(mesh, Outcome::Answered);
            count(&mut table) > before
        };
        assert!(refused(redirect[index]), "a redirect from {far}");
        for kind in others[index] {
            assert!(refused(*kind), "type {kind} from {far}");
        }
        for kind in needed[index] {
            assert!(!refused(*kind), "type {kind} from {far}");
        }
        assert!(exchange(&session), "the controller's session");
    }
}
