//! Beside real firewalls: what they drop is named, what we do leaves them byte for byte as they are,
//! and what `hedgerow-agent check` advises lets the mesh through.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicU32, Ordering};

use hedgerow_linux::nft::foreign::{Affected, Firewalls, Owner, Way};
use hedgerow_model::address::Overlay;
use hedgerow_model::ruleset::{ProfileId, Ruleset, Verdict};
use hedgerow_model::service::Ports;

use crate::coexistence::foreign;
use crate::fixture::{Outcome, at, entry, open, profile, ruleset, serve, tcp, udp, with_peer};
use crate::namespace::{Lab, TUNNEL, own6, peer6, tool};

const PORT: u16 = 7117;

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hgt-linux-firewall-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A device that another firewall guards, and its peers.
struct Guarded {
    lab: Lab,
    rules: Ruleset,
}

impl Guarded {
    fn new() -> Self {
        let lab = Lab::new();
        serve(&lab.device, own6(), &[9000, 9001]);
        serve(&lab.device, near(), &[PORT]);
        let allowed = vec![entry(Ports::tcp(9000), Verdict::Accept)];
        let mut rules = ruleset(vec![profile(allowed, vec![])]);
        with_peer(&mut rules, peer6(1), 1);
        Self { lab, rules }
    }

    /// Says who refuses what.
    fn refusals(&self) -> Vec<(Owner, Affected, Way)> {
        let firewalls = self.lab.device.run(|| Firewalls::read().unwrap());
        assert!(!firewalls.is_cut());
        let list = firewalls.refusals(TUNNEL, PORT);
        let mut list: Vec<_> = list.iter().map(|r| (r.owner, r.affected, r.way)).collect();
        // One for IPv4 and one for IPv6.
        list.sort_unstable();
        list.dedup();
        list
    }

    /// Says whether the mesh's datagrams and a peer's connection come in.
    fn comes_in(&self) -> (Outcome, Outcome) {
        let far: IpAddr = [192, 0, 2, 2].into();
        let mesh = udp(&self.lab.peers, far, SocketAddr::new(near(), PORT));
        let peer = tcp(&self.lab.peers, peer6(1), SocketAddr::new(own6(), 9000));
        (mesh, peer)
    }

    /// Loads, changes, verifies and removes our table; the others' stay as they are throughout.
    fn live_beside(&mut self, comes_in: (Outcome, Outcome)) {
        let everything = self.lab.device.nft_ok(&["-s", "list", "ruleset"]);
        let others = foreign(&self.lab);
        assert!(!others.is_empty());
        let mut table = open(&self.lab.device);
        table.load(&self.rules, at(0)).unwrap();
        assert_eq!(foreign(&self.lab), others, "loaded");
        table.set_peer(Overlay(peer6(3)), ProfileId(1)).unwrap();
        table.remove_peer(Overlay(peer6(3))).unwrap();
        self.rules.generation += 1;
        table.load(&self.rules, at(1)).unwrap();
        assert!(table.verify(at(1).mono).unwrap().is_intact());
        assert_eq!(self.comes_in(), comes_in);
        let refused = tcp(&self.lab.peers, peer6(1), SocketAddr::new(own6(), 9001));
        assert_eq!(refused, Outcome::Silent, "what our table refuses");
        assert_eq!(foreign(&self.lab), others, "changed");
        table.remove().unwrap();
        let left = self.lab.device.nft_ok(&["-s", "list", "ruleset"]);
        assert_eq!(left, everything, "removed");
    }
}

fn near() -> IpAddr {
    [192, 0, 2, 1].into()
}

const SHUT: (Outcome, Outcome) = (Outcome::Silent, Outcome::Silent);
const OPEN: (Outcome, Outcome) = (Outcome::Answered, Outcome::Answered);

#[test]
fn ufw_is_named_until_it_lets_us_through_and_stays_as_it_is() {
    drop((tool("ufw"), tool("iptables")));
    let mut device = Guarded::new();
    let scratch = Scratch::new();
    let copy = "cp -a /etc/ufw \"$1/ufw\" && cp /etc/default/ufw \"$1/default\"";
    device.lab.device.script_ok(copy, &[scratch.path()]);
    let ufw = |device: &Guarded, order: &str| {
        let script = "mount --bind \"$1/ufw\" /etc/ufw && \
            mount --bind \"$1/default\" /etc/default/ufw && ufw $2";
        device
            .lab
            .device
            .script_ok(script, &[scratch.path(), order]);
    };
    ufw(&device, "--force enable");
    let forward = (Owner::Ufw, Affected::Forwarded, Way::Forward);
    let port = (Owner::Ufw, Affected::MeshPort, Way::Input);
    let tunnel = (Owner::Ufw, Affected::Tunnel, Way::Input);
    assert_eq!(device.refusals(), [port, tunnel, forward]);
    device.live_beside(SHUT);
    ufw(&device, "allow 7117/udp");
    assert_eq!(device.refusals(), [tunnel, forward]);
    ufw(&device, "allow in on hedgerow0");
    assert_eq!(device.refusals(), [forward]);
    device.live_beside(OPEN);
}

#[test]
fn dockers_rules_are_no_trouble_and_stay_as_they_are() {
    drop((tool("iptables"), tool("ip6tables")));
    let mut device = Guarded::new();
    // What dockerd 24 makes at its start.
    let script = "set -e
        for chain in DOCKER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2 DOCKER-USER; do
            iptables -N $chain
        done
        iptables -t nat -N DOCKER
        iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
        iptables -t nat -A OUTPUT -m addrtype --dst-type LOCAL ! --dst 127.0.0.0/8 -j DOCKER
        iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
        iptables -t nat -A DOCKER -i docker0 -j RETURN
        iptables -A FORWARD -j DOCKER-USER
        iptables -A FORWARD -j DOCKER-ISOLATION-STAGE-1
        iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        iptables -A FORWARD -o docker0 -j DOCKER
        iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
        iptables -A FORWARD -i docker0 -o docker0 -j ACCEPT
        iptables -A DOCKER-ISOLATION-STAGE-1 -j RETURN
        iptables -A DOCKER-ISOLATION-STAGE-2 -j RETURN
        iptables -A DOCKER-USER -j RETURN
        iptables -P FORWARD DROP";
    device.lab.device.script_ok(script, &[]);
    let forward = (Owner::Docker, Affected::Forwarded, Way::Forward);
    assert_eq!(device.refusals(), [forward]);
    device.live_beside(OPEN);
    // A rule for the host itself, made with the same tool.
    device.lab.device.script_ok("iptables -P INPUT DROP", &[]);
    let iptables = |affected| (Owner::Iptables, affected, Way::Input);
    let expected = [
        forward,
        iptables(Affected::MeshPort),
        iptables(Affected::Tunnel),
    ];
    assert_eq!(device.refusals(), expected);
    // Of IPv4 alone: the peer comes by IPv6.
    device.live_beside((Outcome::Silent, Outcome::Answered));
}

/// firewalld in the device's namespace, with a message bus and a configuration of its own.
struct Firewalld {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    _scratch: Scratch,
}

impl Firewalld {
    fn start(lab: &Lab) -> Self {
        let scratch = Scratch::new();
        // It ends with its standard input, and so with this test, however that ends.
        let script = "set -e
            cp -a /etc/firewalld \"$1/firewalld\"
            mount --bind \"$1/firewalld\" /etc/firewalld
            mount -t tmpfs tmpfs /run
            export DBUS_SYSTEM_BUS_ADDRESS=$DBUS_SESSION_BUS_ADDRESS
            firewalld --nofork --nopid --log-file \"$1/log\" >\"$1/out\" 2>&1 &
            pid=$!
            trap 'kill $pid; wait $pid' EXIT
            n=0
            until firewall-cmd --state >\"$1/state\" 2>&1; do
                n=$((n + 1)); test $n -lt 300; kill -0 $pid; sleep 0.1
            done
            echo did
            while read -r order; do firewall-cmd $order >\"$1/order\" 2>&1; echo did; done";
        let bus = ["dbus-run-session", "--"];
        let mut child = lab.device.script(&bus, script, &[scratch.path()]);
        let mut firewalld = Self {
            orders: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
            _scratch: scratch,
        };
        firewalld.answer("its start");
        firewalld
    }

    fn order(&mut self, words: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{words}").unwrap();
        self.answer(words);
    }

    fn answer(&mut self, what: &str) {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line, "did\n", "firewalld: {what}");
    }
}

impl Drop for Firewalld {
    fn drop(&mut self) {
        drop(self.orders.take());
        drop(self.child.wait());
    }
}

#[test]
fn firewalld_is_named_until_it_lets_us_through_and_stays_as_it_is() {
    drop((tool("firewalld"), tool("dbus-run-session")));
    let mut device = Guarded::new();
    let mut firewalld = Firewalld::start(&device.lab);
    let port = (Owner::Firewalld, Affected::MeshPort, Way::Input);
    let tunnel = (Owner::Firewalld, Affected::Tunnel, Way::Input);
    let forward = (Owner::Firewalld, Affected::Forwarded, Way::Forward);
    assert_eq!(device.refusals(), [port, tunnel, forward]);
    // It rejects where ufw drops. Its error to a peer belongs to no flow that is tracked, so our
    // table does not let it into the tunnel.
    device.live_beside((Outcome::Rejected, Outcome::Silent));
    firewalld.order("--add-port=7117/udp");
    assert_eq!(device.refusals(), [tunnel, forward]);
    firewalld.order("--zone=trusted --add-interface=hedgerow0");
    assert!(device.refusals().is_empty());
    device.live_beside(OPEN);
    // What it does at its own reload leaves our table alone.
    let mut table = open(&device.lab.device);
    table.load(&device.rules, at(2)).unwrap();
    firewalld.order("--reload");
    assert!(table.verify(at(2).mono).unwrap().is_intact());
    table.remove().unwrap();
}
