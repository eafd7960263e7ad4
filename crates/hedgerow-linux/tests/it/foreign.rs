//! Other firewalls, imitated with `nft` after what they make: found, named, and silent once they
//! let us through.

use hedgerow_linux::nft::foreign::{Affected, Firewalls, Owner, Way};

use crate::namespace::{Namespace, TUNNEL};

const PORT: u16 = 7117;

/// What `ufw enable` makes on Debian, shortened.
const UFW: &str = r"
table ip filter {
    chain ufw-user-input { }
    chain ufw-not-local {
        fib daddr type local counter return
        fib daddr type multicast return
        counter drop
    }
    chain ufw-before-input {
        iifname lo accept
        ct state related,established accept
        ct state invalid drop
        icmp type echo-request accept
        udp sport 67 udp dport 68 accept
        counter jump ufw-not-local
        counter jump ufw-user-input
    }
    chain ufw-after-input { udp dport 137 return; }
    chain INPUT {
        type filter hook input priority filter; policy drop;
        counter jump ufw-before-input
        counter jump ufw-after-input
    }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
    }
    chain OUTPUT {
        type filter hook output priority filter; policy accept;
    }
}";

/// What firewalld makes with the zones `public` and `trusted`, shortened.
const FIREWALLD: &str = r#"
table inet firewalld {
    chain filter_IN_public_allow {
        tcp dport 22 accept
    }
    chain filter_IN_public {
        jump filter_IN_public_allow
        meta l4proto { icmp, ipv6-icmp } accept
        reject with icmpx admin-prohibited
    }
    chain filter_IN_trusted {
        accept
    }
    chain filter_INPUT_ZONES {
        iifname "eth9" goto filter_IN_public
        goto filter_IN_public
    }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_INPUT_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_OUTPUT {
        type filter hook output priority filter + 10; policy accept;
        ct state { established, related } accept
        oifname "lo" accept
    }
}"#;

const DOCKER: &str = r#"
table ip filter {
    chain DOCKER-USER { }
    chain DOCKER { }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter jump DOCKER-USER
        oifname "docker0" jump DOCKER
        iifname "docker0" accept
    }
}
table ip nat {
    chain DOCKER { type nat hook prerouting priority dstnat; }
}"#;

/// What people write by hand.
const BY_HAND: &str = r#"
table inet filter {
    set open {
        type inet_service
        flags interval
        elements = { 22, 8000-8100 }
    }
    chain input {
        type filter hook input priority filter; policy drop;
        ct state vmap { invalid : drop, established : accept, related : accept }
        iifname vmap { "lo" : accept, "eth9" : jump inside }
        udp dport @open accept
    }
    chain inside {
        tcp dport 22 accept
    }
    chain output {
        type filter hook output priority filter; policy drop;
        oifname "lo" accept
        udp dport 53 accept
    }
}
table arp others {
    chain input { type filter hook input priority 0; policy drop; }
}
table inet hedgerow {
    chain input { type filter hook input priority filter + 10; policy drop; }
}"#;

struct Device(Namespace);

impl Device {
    fn with(rules: &str) -> Self {
        let device = Self(Namespace::new("foreign"));
        device.add(rules);
        device
    }

    fn add(&self, rules: &str) {
        self.0.nft_ok(&[rules]);
    }

    /// Says who refuses what, as words.
    fn refusals(&self) -> Vec<(Owner, Affected, Way)> {
        let before = self.0.nft_ok(&["list", "ruleset"]);
        let firewalls = self.0.run(|| Firewalls::read().unwrap());
        assert_eq!(self.0.nft_ok(&["list", "ruleset"]), before, "only read");
        assert!(!firewalls.is_cut());
        let list = firewalls.refusals(TUNNEL, PORT);
        list.iter().map(|r| (r.owner, r.affected, r.way)).collect()
    }
}

#[test]
fn ufw_is_found_until_the_port_and_the_interface_are_let_through() {
    let device = Device::with(UFW);
    let forward = (Owner::Ufw, Affected::Forwarded, Way::Forward);
    let port = (Owner::Ufw, Affected::MeshPort, Way::Input);
    let tunnel = (Owner::Ufw, Affected::Tunnel, Way::Input);
    assert_eq!(device.refusals(), [port, tunnel, forward]);
    device.add("add rule ip filter ufw-user-input udp dport 7117 accept");
    assert_eq!(device.refusals(), [tunnel, forward]);
    device.add("add rule ip filter ufw-user-input iifname hedgerow0 accept");
    assert_eq!(device.refusals(), [forward]);
}

#[test]
fn firewalld_is_found_though_its_policy_accepts() {
    let device = Device::with(FIREWALLD);
    let port = (Owner::Firewalld, Affected::MeshPort, Way::Input);
    let tunnel = (Owner::Firewalld, Affected::Tunnel, Way::Input);
    assert_eq!(device.refusals(), [port, tunnel]);
    device.add("add rule inet firewalld filter_IN_public_allow udp dport 7117 accept");
    assert_eq!(device.refusals(), [tunnel]);
    device.add(
        "insert rule inet firewalld filter_INPUT_ZONES iifname \"hedgerow0\" goto filter_IN_trusted",
    );
    assert_eq!(device.refusals(), []);
}

#[test]
fn docker_only_closes_what_a_device_passes_on() {
    let device = Device::with(DOCKER);
    let forward = (Owner::Docker, Affected::Forwarded, Way::Forward);
    assert_eq!(device.refusals(), [forward]);
}

#[test]
fn a_firewall_written_by_hand_is_read_with_its_sets() {
    let device = Device::with(BY_HAND);
    let (port, tunnel) = (Affected::MeshPort, Affected::Tunnel);
    assert_eq!(
        device.refusals(),
        [
            (Owner::Other, port, Way::Input),
            (Owner::Other, port, Way::Output),
            (Owner::Other, tunnel, Way::Input),
            (Owner::Other, tunnel, Way::Output),
        ]
    );
    device.add("add element inet filter open { 7000-7200 }");
    device.add("add rule inet filter input iifname { \"hedgerow0\", \"eth3\" } accept");
    device.add("add rule inet filter output oifname \"hedge*\" accept");
    device.add("add rule inet filter output meta l4proto udp th dport 7100-7120 accept");
    assert_eq!(device.refusals(), []);
}

#[test]
fn an_empty_machine_refuses_nothing() {
    let device = Device(Namespace::new("foreign"));
    assert_eq!(device.refusals(), []);
}
