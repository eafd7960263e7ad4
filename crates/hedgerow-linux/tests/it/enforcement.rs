//! The table's verdicts on real packets.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hedgerow_linux::conntrack;
use hedgerow_linux::nft::Table;
use hedgerow_linux::nft::samples::Samples;
use hedgerow_model::address::Overlay;
use hedgerow_model::packet::{Direction, LiveFlow};
use hedgerow_model::program::Mode;
use hedgerow_model::ruleset::{Askers, Entry, ProfileId, UnderlayRule, UnderlayTarget, Verdict};
use hedgerow_model::service::{Ports, Protocol};

use crate::fixture::{
    DEFAULT, NO_WEB, Outcome, at, connect, entry, exchange, load, ping, profile, ruleset, serve,
    soon, tcp, udp, with_peer,
};
use crate::namespace::{Lab, own4, own6, peer4, peer6};

const RANGE: Ports = Ports {
    protocol: Protocol::Tcp,
    first: 8000,
    last: 8010,
};

/// Both families' addresses of the device and of a peer.
fn pairs(peer: u8) -> [(IpAddr, IpAddr); 2] {
    [(own6(), peer6(peer)), (own4(), peer4(peer))]
}

fn socket(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

#[test]
fn a_peer_reaches_what_its_profile_allows_and_nothing_else() {
    let lab = Lab::new();
    let mut rules = ruleset(vec![profile(
        vec![
            entry(Ports::tcp(22), Verdict::Accept),
            entry(RANGE, Verdict::Accept),
            entry(Ports::udp(53), Verdict::Accept),
            entry(Ports::ICMP_ECHO, Verdict::Accept),
            entry(Ports::tcp(80), Verdict::Deny(NO_WEB)),
        ],
        vec![],
    )]);
    for (_, peer) in pairs(1) {
        with_peer(&mut rules, peer, 1);
    }
    let mut table = load(&lab, &rules);
    for (own, peer) in pairs(1) {
        serve(
            &lab.device,
            own,
            &[22, 53, 80, 7999, 8000, 8005, 8010, 8011],
        );
        let attempt = |port| tcp(&lab.peers, peer, socket(own, port));
        for port in [22, 8000, 8005, 8010] {
            assert_eq!(attempt(port), Outcome::Answered, "tcp {port} of {own}");
        }
        for port in [53, 80, 7999, 8011] {
            assert_eq!(attempt(port), Outcome::Silent, "tcp {port} of {own}");
        }
        assert_eq!(udp(&lab.peers, peer, socket(own, 53)), Outcome::Answered);
        assert_eq!(udp(&lab.peers, peer, socket(own, 22)), Outcome::Silent);
        assert!(ping(&lab.peers, peer, own), "echo of {own}");
        assert!(!ping(&lab.device, own, peer), "echo to {peer}");
    }
    let counters = table.counters().unwrap();
    assert!(counters["deny.no-web"].packets >= 2);
    assert!(counters["deny.default"].packets >= 8);
    assert!(table.verify(at(1).mono).unwrap().is_intact());
}

#[test]
fn this_device_reaches_what_its_profile_allows_and_is_told_at_once_of_the_rest() {
    let lab = Lab::new();
    let mut rules = ruleset(vec![profile(
        vec![],
        vec![
            entry(Ports::tcp(502), Verdict::Accept),
            entry(RANGE, Verdict::Accept),
            entry(Ports::udp(53), Verdict::Accept),
            entry(Ports::ICMP_ECHO, Verdict::Accept),
        ],
    )]);
    for (_, peer) in pairs(1) {
        with_peer(&mut rules, peer, 1);
    }
    let _table = load(&lab, &rules);
    for (own, peer) in pairs(1) {
        serve(&lab.peers, peer, &[53, 80, 502, 8000, 8010, 8011]);
        let attempt = |port| tcp(&lab.device, own, socket(peer, port));
        for port in [502, 8000, 8010] {
            assert_eq!(attempt(port), Outcome::Answered, "tcp {port} of {peer}");
        }
        for port in [53, 80, 8011] {
            assert_eq!(attempt(port), Outcome::Rejected, "tcp {port} of {peer}");
        }
        assert_eq!(udp(&lab.device, own, socket(peer, 53)), Outcome::Answered);
        assert_eq!(udp(&lab.device, own, socket(peer, 80)), Outcome::Rejected);
        assert!(ping(&lab.device, own, peer));
        assert!(!ping(&lab.peers, peer, own));
    }
}

#[test]
fn observed_defaults_let_pass_and_count() {
    let lab = Lab::new();
    let mut open = profile(vec![], vec![]);
    open.inbound_default = Verdict::WouldDeny(DEFAULT);
    open.outbound_default = Verdict::Accept;
    let mut rules = ruleset(vec![open]);
    with_peer(&mut rules, peer6(1), 1);
    let mut table = load(&lab, &rules);
    serve(&lab.device, own6(), &[1234]);
    serve(&lab.peers, peer6(1), &[1234]);
    assert_eq!(
        tcp(&lab.peers, peer6(1), socket(own6(), 1234)),
        Outcome::Answered
    );
    assert!(ping(&lab.peers, peer6(1), own6()));
    assert_eq!(
        tcp(&lab.device, own6(), socket(peer6(1), 1234)),
        Outcome::Answered
    );
    assert!(table.counters().unwrap()["would.default"].packets > 4);
}

#[test]
fn strangers_and_forged_addresses_get_nowhere() {
    let lab = Lab::new();
    let all = profile(vec![entry(Ports::tcp(22), Verdict::Accept)], vec![]);
    let mut rules = ruleset(vec![all]);
    for (_, peer) in pairs(1) {
        with_peer(&mut rules, peer, 1);
    }
    let mut table = load(&lab, &rules);
    // A second address of the device's that is not its overlay address.
    lab.device.ip("addr add fd55::1/64 dev hedgerow0 nodad");
    lab.peers.ip("addr add fd55::2/64 dev hedgerow0 nodad");
    for own in [own6(), own4(), "fd55::1".parse().unwrap()] {
        serve(&lab.device, own, &[22]);
    }
    // In the tunnel, but nobody's.
    for (own, stranger) in pairs(2) {
        assert_eq!(tcp(&lab.peers, stranger, socket(own, 22)), Outcome::Silent);
    }
    assert!(table.counters().unwrap()["unknown_peer"].packets >= 2);
    // In the tunnel, to an address that is not the device's overlay address.
    let target = "[fd55::1]:22".parse().unwrap();
    assert_eq!(
        tcp(&lab.peers, "fd55::2".parse().unwrap(), target),
        Outcome::Silent
    );
    let inside = table.counters().unwrap()["spoofed_overlay"].packets;
    assert!(inside >= 1);
    // A peer's address, and the device's own, on the underlay.
    lab.peers.ip(&format!(
        "route add {}/128 dev under0 src {}",
        own6(),
        peer6(1)
    ));
    lab.peers.ip(&format!(
        "neigh replace {} lladdr {} dev under0 nud permanent",
        own6(),
        mac(&lab)
    ));
    assert_eq!(
        tcp(&lab.peers, peer6(1), socket(own6(), 22)),
        Outcome::Silent
    );
    assert!(table.counters().unwrap()["spoofed_overlay"].packets > inside);
}

fn mac(lab: &Lab) -> String {
    let text = lab.device.ip("-o link show under0");
    let mut words = text.split_whitespace().skip_while(|w| *w != "link/ether");
    words.nth(1).unwrap().to_owned()
}

#[test]
fn packets_to_the_unknown_reach_the_tunnel_a_few_at_a_time() {
    let lab = Lab::new();
    let mut table = load(&lab, &ruleset(vec![]));
    serve(&lab.peers, peer6(3), &[9]);
    lab.device.run(|| {
        let socket = std::net::UdpSocket::bind((own6(), 0)).unwrap();
        for _ in 0..200 {
            drop(socket.send_to(b"x", (peer6(3), 9)));
        }
    });
    let counters = table.counters().unwrap();
    assert!(
        (16..40).contains(&counters["wanted"].packets),
        "{counters:?}"
    );
    assert!(counters["wanted_excess"].packets >= 160);
    // Replies of the unknown do not come in.
    let refused = |table: &mut Table| table.counters().unwrap()["unknown_peer"].packets >= 16;
    assert!(soon(|| refused(&mut table)), "{counters:?}");
}

#[test]
fn nothing_is_forwarded_from_or_to_the_tunnel_and_the_rest_is_left_alone() {
    let lab = Lab::new();
    let mut rules = ruleset(vec![profile(vec![], vec![])]);
    with_peer(&mut rules, peer6(1), 1);
    let mut table = load(&lab, &rules);
    let forwarding = "/proc/sys/net/ipv6/conf/all/forwarding";
    lab.device.run(|| std::fs::write(forwarding, "1").unwrap());
    lab.device.ip("route add fd42::/64 via fd99::2");
    let send = |target: &str| {
        lab.peers.run(|| {
            let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
            for _ in 0..3 {
                socket.send_to(b"x", target).unwrap();
            }
        });
    };
    let settle = || std::thread::sleep(Duration::from_millis(100));
    lab.peers
        .ip(&format!("route add fd42::/65 via {} dev hedgerow0", own6()));
    send("[fd42::5]:9");
    settle();
    assert_eq!(
        table.counters().unwrap()["forwarded"].packets,
        3,
        "from the tunnel"
    );
    lab.peers.ip("route add fd00:7::7777/128 via fd99::1");
    send("[fd00:7::7777]:9");
    settle();
    assert_eq!(
        table.counters().unwrap()["forwarded"].packets,
        6,
        "to the tunnel"
    );
    lab.peers.ip("route add fd42:0:0:0:8000::/65 via fd99::1");
    let before = forwarded(&lab);
    send("[fd42::8000:0:0:5]:9");
    settle();
    assert_eq!(forwarded(&lab), before + 3, "beside the tunnel");
    assert_eq!(table.counters().unwrap()["forwarded"].packets, 6);
}

fn forwarded(lab: &Lab) -> u64 {
    let text = lab
        .device
        .run(|| std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap());
    let mut lines = text
        .lines()
        .filter_map(|l| l.strip_prefix("Ip6OutForwDatagrams"));
    lines.next().unwrap().trim().parse().unwrap()
}

#[test]
fn taking_a_peer_out_cuts_its_live_session_at_once() {
    let lab = Lab::new();
    let mut rules = ruleset(vec![profile(
        vec![entry(Ports::tcp(22), Verdict::Accept)],
        vec![entry(Ports::tcp(502), Verdict::Accept)],
    )]);
    with_peer(&mut rules, peer6(1), 1);
    let mut table = load(&lab, &rules);
    serve(&lab.device, own6(), &[22]);
    serve(&lab.peers, peer6(1), &[502]);
    let inward = lab
        .peers
        .run(|| connect(peer6(1), socket(own6(), 22)).unwrap());
    let outward = lab
        .device
        .run(|| connect(own6(), socket(peer6(1), 502)).unwrap());
    assert!(exchange(&inward) && exchange(&outward));
    table.remove_peer(Overlay(peer6(1))).unwrap();
    assert!(!exchange(&inward), "the peer's session lives on");
    assert!(!exchange(&outward), "our session lives on");
    assert!(table.verify(at(1).mono).unwrap().is_intact());
    table.set_peer(Overlay(peer6(1)), ProfileId(1)).unwrap();
    assert_eq!(
        tcp(&lab.peers, peer6(1), socket(own6(), 22)),
        Outcome::Answered
    );
    assert!(table.verify(at(2).mono).unwrap().is_intact());
}

#[test]
fn narrowing_a_profile_cuts_live_sessions_that_it_no_longer_allows() {
    let lab = Lab::new();
    let wide = [22, 23]
        .map(|p| entry(Ports::tcp(p), Verdict::Accept))
        .to_vec();
    let mut rules = ruleset(vec![profile(wide, vec![])]);
    with_peer(&mut rules, peer6(1), 1);
    let mut table = load(&lab, &rules);
    serve(&lab.device, own6(), &[22, 23]);
    let kept = lab
        .peers
        .run(|| connect(peer6(1), socket(own6(), 22)).unwrap());
    let cut = lab
        .peers
        .run(|| connect(peer6(1), socket(own6(), 23)).unwrap());
    assert!(exchange(&kept) && exchange(&cut));
    rules.profiles.get_mut(&ProfileId(1)).unwrap().inbound.pop();
    rules.generation = 2;
    table.load(&rules, at(1)).unwrap();
    assert!(exchange(&kept), "a session that stays allowed was cut");
    assert!(
        !exchange(&cut),
        "a session that is no longer allowed lives on"
    );
    rules.generation = 1;
    assert!(
        table.load(&rules, at(1)).is_err(),
        "an older generation was loaded"
    );
}

#[test]
fn windows_close_by_themselves_and_verification_expects_it() {
    let lab = Lab::new();
    let window = |port, secs| Entry {
        until: Some(at(secs).wall),
        ..entry(Ports::tcp(port), Verdict::Accept)
    };
    let mut ranged = window(8000, 2);
    ranged.ports = RANGE;
    let inbound = vec![window(22, 2), window(23, 3600), ranged];
    let mut rules = ruleset(vec![profile(inbound, vec![])]);
    with_peer(&mut rules, peer6(1), 1);
    let mut table = load(&lab, &rules);
    assert!(table.verify(at(0).mono).unwrap().is_intact());
    serve(&lab.device, own6(), &[22, 23, 8001]);
    let attempt = |port| tcp(&lab.peers, peer6(1), socket(own6(), port));
    let live = lab
        .peers
        .run(|| connect(peer6(1), socket(own6(), 22)).unwrap());
    for port in [22, 23, 8001] {
        assert_eq!(attempt(port), Outcome::Answered, "tcp {port} before");
    }
    std::thread::sleep(Duration::from_millis(2_200));
    for port in [22, 8001] {
        assert_eq!(attempt(port), Outcome::Silent, "tcp {port} after");
    }
    assert_eq!(attempt(23), Outcome::Answered);
    assert!(!exchange(&live), "a session outlived its window");
    for secs in [2, 3, 10, 3_000] {
        assert!(
            table.verify(at(secs).mono).unwrap().is_intact(),
            "at {secs} s"
        );
    }
    assert!(
        !table.verify(at(4_000).mono).unwrap().is_intact(),
        "an element outlived its end"
    );
}

#[test]
fn only_a_syn_begins_a_connection() {
    let lab = Lab::new();
    let mut rules = ruleset(vec![profile(
        vec![entry(Ports::tcp(22), Verdict::Accept)],
        vec![],
    )]);
    with_peer(&mut rules, peer6(1), 1);
    let mut table = load(&lab, &rules);
    serve(&lab.device, own6(), &[22]);
    let stream = lab
        .peers
        .run(|| connect(peer6(1), socket(own6(), 22)).unwrap());
    assert!(exchange(&stream));
    let forgotten = lab
        .device
        .run(|| conntrack::delete_for(Overlay(peer6(1))))
        .unwrap();
    assert_eq!(forgotten, 1);
    assert!(!exchange(&stream));
    assert!(table.counters().unwrap()["not_syn"].packets >= 1);
}

#[test]
fn live_flows_are_listed_by_peer_direction_and_service_port() {
    let lab = Lab::new();
    let mut rules = ruleset(vec![profile(
        vec![entry(Ports::tcp(22), Verdict::Accept)],
        vec![entry(Ports::tcp(80), Verdict::Accept)],
    )]);
    with_peer(&mut rules, peer6(1), 1);
    let own = rules.own;
    let _table = load(&lab, &rules);
    serve(&lab.device, own6(), &[22]);
    serve(&lab.peers, peer6(1), &[80]);
    let inward = || {
        lab.peers
            .run(|| connect(peer6(1), socket(own6(), 22)).unwrap())
    };
    let (one, two) = (inward(), inward());
    let out = lab
        .device
        .run(|| connect(own6(), socket(peer6(1), 80)).unwrap());
    assert!(exchange(&one) && exchange(&two) && exchange(&out));
    let list = |max| lab.device.run(|| conntrack::flows(&own, max)).unwrap();
    let flow = |direction, port, count| LiveFlow {
        peer: Overlay(peer6(1)),
        direction,
        protocol: Protocol::Tcp,
        port,
        count,
    };
    let (inbound, outbound) = (flow(Direction::In, 22, 2), flow(Direction::Out, 80, 1));
    assert_eq!(list(512).flows, [inbound, outbound]);
    let cut = list(1);
    assert_eq!((cut.flows, cut.left_out), (vec![inbound], 1));
    lab.device
        .run(|| conntrack::delete_for(Overlay(peer6(1))))
        .unwrap();
    assert_eq!(list(512), conntrack::Flows::default());
}

#[test]
fn errors_about_our_flows_come_through_from_known_peers_only() {
    let lab = Lab::new();
    let mut rules = ruleset(vec![profile(
        vec![],
        vec![entry(Ports::udp(99), Verdict::Accept)],
    )]);
    for (_, peer) in pairs(1) {
        with_peer(&mut rules, peer, 1);
    }
    let mut table = load(&lab, &rules);
    for (own, peer) in pairs(1) {
        // Nobody listens: the peer's kernel answers with an error.
        assert_eq!(udp(&lab.device, own, socket(peer, 99)), Outcome::Rejected);
    }
    for (own, stranger) in pairs(2) {
        assert_eq!(udp(&lab.device, own, socket(stranger, 99)), Outcome::Silent);
    }
    assert!(table.counters().unwrap()["unknown_peer"].packets >= 2);
}

#[test]
fn refused_packets_are_sampled_with_their_reason_once_per_interval() {
    let lab = Lab::new();
    let mut rules = ruleset(vec![profile(vec![], vec![])]);
    with_peer(&mut rules, peer6(1), 1);
    rules.sample_seconds = 60;
    let _table = load(&lab, &rules);
    let samples = lab.device.run(Samples::open).unwrap();
    for _ in 0..3 {
        assert_eq!(
            udp(&lab.peers, peer6(1), socket(own6(), 22)),
            Outcome::Silent
        );
        assert_eq!(
            tcp(&lab.peers, peer6(2), socket(own6(), 23)),
            Outcome::Silent
        );
    }
    let list = samples.read().unwrap();
    let reasons: Vec<_> = list.iter().map(|s| s.reason.as_str()).collect();
    assert_eq!(reasons, ["deny.default", "unknown_peer"]);
    assert_eq!(list[0].direction, Direction::In);
    assert_eq!((list[0].source, list[0].destination), (peer6(1), own6()));
    assert_eq!((list[0].protocol, list[0].destination_port), (17, Some(22)));
    assert_eq!(list[1].destination_port, Some(23));
}

/// The far and near ends of the underlay link.
fn underlay4() -> (IpAddr, IpAddr) {
    ([192, 0, 2, 2].into(), [192, 0, 2, 1].into())
}

fn underlay6() -> (IpAddr, IpAddr) {
    ("fd99::2".parse().unwrap(), "fd99::1".parse().unwrap())
}

/// A lab whose underlay answers on a few ports at both ends.
fn underlay_lab() -> Lab {
    let lab = Lab::new();
    for (far, near) in [underlay4(), underlay6()] {
        serve(&lab.device, near, &[22, 7117, 8001, 8002]);
        serve(&lab.peers, far, &[53, 80, 123, 7117, 7443]);
    }
    lab
}

#[test]
fn an_enforced_underlay_keeps_the_lifeline_and_refuses_the_rest() {
    let lab = underlay_lab();
    let mut rules = ruleset(vec![]);
    let ((far, near), (far6, near6)) = (underlay4(), underlay6());
    rules.underlay_mode = Mode::Enforce;
    rules.lifeline.controllers = vec![socket(far, 7443), socket(far6, 7443)];
    rules.lifeline.management = vec!["192.0.2.0/24".parse().unwrap()];
    rules.lifeline.servers = vec![far];
    rules.lifeline.askers = Askers::Anybody;
    let mut table = load(&lab, &rules);
    let inward = |from, to, port| tcp(&lab.peers, from, socket(to, port));
    let outward = |from, to, port| tcp(&lab.device, from, socket(to, port));
    assert_eq!(inward(far, near, 22), Outcome::Answered, "management");
    assert_eq!(inward(far6, near6, 22), Outcome::Silent, "not management");
    assert_eq!(outward(near, far, 7443), Outcome::Answered, "controller");
    assert_eq!(outward(near6, far6, 7443), Outcome::Answered, "controller");
    assert_eq!(outward(near, far, 80), Outcome::Rejected, "default");
    assert_eq!(outward(near, far, 53), Outcome::Answered, "name server");
    assert_eq!(
        udp(&lab.device, near, socket(far, 53)),
        Outcome::Answered,
        "name server"
    );
    assert_eq!(
        udp(&lab.device, near6, socket(far6, 53)),
        Outcome::Rejected,
        "no name server"
    );
    assert_eq!(
        udp(&lab.device, near, socket(far, 80)),
        Outcome::Rejected,
        "default"
    );
    assert_eq!(
        udp(&lab.peers, far6, socket(near6, 7117)),
        Outcome::Answered,
        "mesh"
    );
    assert!(table.counters().unwrap()["underlay_default"].packets > 2);
    // The operator's session lives on when the connection table is emptied.
    let session = lab.peers.run(|| connect(far, socket(near, 22)).unwrap());
    assert!(exchange(&session));
    assert!(
        lab.device
            .run(|| conntrack::delete_for(Overlay(far)))
            .unwrap()
            > 0
    );
    assert!(exchange(&session), "the operator's session was cut");
    assert!(table.verify(at(1).mono).unwrap().is_intact());
}

#[test]
fn underlay_rules_decide_in_their_order_and_windows_close_by_the_kernels_clock() {
    let lab = underlay_lab();
    let mut rules = ruleset(vec![]);
    let ((far, near), (far6, near6)) = (underlay4(), underlay6());
    rules.underlay_mode = Mode::Enforce;
    let rule = |direction, ports, verdict| UnderlayRule {
        direction,
        target: UnderlayTarget::Prefixes(vec!["fd99::/64".parse().unwrap()]),
        ports,
        verdict,
        until: None,
    };
    rules.underlay = vec![
        rule(Direction::In, vec![Ports::tcp(8001)], Verdict::Deny(NO_WEB)),
        rule(
            Direction::In,
            vec![RANGE, Ports::ICMP_ECHO],
            Verdict::Accept,
        ),
        rule(Direction::Out, vec![Ports::udp(123)], Verdict::Accept),
    ];
    rules.underlay.push(UnderlayRule {
        // Over by the kernel's clock, not yet by ours.
        until: Some(at(5).wall),
        ..rule(Direction::In, vec![Ports::tcp(22)], Verdict::Accept)
    });
    rules.underlay.push(UnderlayRule {
        target: UnderlayTarget::Internet,
        ..rule(Direction::Out, vec![], Verdict::Accept)
    });
    let mut table = load(&lab, &rules);
    let inward = |from, to, port| tcp(&lab.peers, from, socket(to, port));
    assert_eq!(
        inward(far6, near6, 8001),
        Outcome::Silent,
        "the first rule decides"
    );
    assert_eq!(inward(far6, near6, 8002), Outcome::Answered, "rule");
    assert_eq!(inward(far6, near6, 22), Outcome::Silent, "window");
    assert_eq!(
        udp(&lab.device, near6, socket(far6, 123)),
        Outcome::Answered,
        "rule"
    );
    assert!(ping(&lab.peers, far6, near6) && !ping(&lab.device, near6, far6));
    let out = |from, to| tcp(&lab.device, from, socket(to, 80));
    assert_eq!(out(near6, far6), Outcome::Rejected, "not the internet");
    assert_eq!(out(near, far), Outcome::Answered, "outside private ranges");
    assert!(table.counters().unwrap()["deny.no-web"].packets > 0);
    assert!(table.verify(at(1).mono).unwrap().is_intact());
    rules.underlay_mode = Mode::Observe;
    rules.generation = 2;
    table.load(&rules, at(0)).unwrap();
    assert_eq!(out(near6, far6), Outcome::Answered, "observed only");
    assert_eq!(
        inward(far6, near6, 8001),
        Outcome::Silent,
        "a rule's own verdict stays"
    );
}

#[test]
fn the_internet_leads_to_no_private_address_through_a_translator() {
    let lab = underlay_lab();
    let mut rules = ruleset(vec![]);
    rules.underlay_mode = Mode::Enforce;
    rules.underlay = vec![UnderlayRule {
        direction: Direction::Out,
        target: UnderlayTarget::Internet,
        ports: vec![],
        verdict: Verdict::Accept,
        until: None,
    }];
    let _table = load(&lab, &rules);
    let (_, near6) = underlay6();
    for (address, expected) in [
        ("64:ff9b::192.168.0.1", Outcome::Rejected),
        ("64:ff9b::10.0.0.1", Outcome::Rejected),
        ("64:ff9b::203.0.113.1", Outcome::Answered),
        ("64:ff9b:1::203.0.113.1", Outcome::Rejected),
        ("2002:c0a8:1::1", Outcome::Rejected),
        ("2a00::1", Outcome::Answered),
    ] {
        let address: IpAddr = address.parse().unwrap();
        lab.peers
            .ip(&format!("addr add {address}/128 dev under0 nodad"));
        lab.device
            .ip(&format!("route add {address}/128 dev under0"));
        serve(&lab.peers, address, &[80]);
        let reached = tcp(&lab.device, near6, socket(address, 80));
        assert_eq!(reached, expected, "{address}");
    }
}

/// Programs of this device, told no by each of the places that can say it.
#[test]
fn every_refused_program_is_told_at_once() {
    let lab = underlay_lab();
    let mut rules = ruleset(vec![profile(
        vec![],
        vec![
            entry(Ports::tcp(22), Verdict::Accept),
            entry(Ports::udp(22), Verdict::Accept),
            entry(Ports::tcp(80), Verdict::Deny(NO_WEB)),
            entry(Ports::udp(80), Verdict::Deny(NO_WEB)),
        ],
    )]);
    for (_, peer) in pairs(1) {
        with_peer(&mut rules, peer, 1);
    }
    rules.underlay_mode = Mode::Enforce;
    rules.underlay = vec![UnderlayRule {
        direction: Direction::Out,
        target: UnderlayTarget::Any,
        ports: vec![Ports::tcp(8001), Ports::udp(8001)],
        verdict: Verdict::Deny(NO_WEB),
        until: None,
    }];
    let mut table = load(&lab, &rules);
    // An overlay address that a route of somebody else's leads around the tunnel.
    lab.device.ip("route add fd00:7::1:5/128 dev under0");
    lab.device.ip("route add 100.80.1.5/32 dev under0");
    let [(own6, peer6), (own4, peer4)] = pairs(1);
    let around: [IpAddr; 2] = ["fd00:7::1:5".parse().unwrap(), [100, 80, 1, 5].into()];
    let ((far, near), (far6, near6)) = (underlay4(), underlay6());
    let refused = [
        ("by default", own6, peer6, 23),
        ("by default", own4, peer4, 23),
        ("by a rule", own6, peer6, 80),
        ("by a rule", own4, peer4, 80),
        ("outside of the tunnel", near6, around[0], 22),
        ("outside of the tunnel", near, around[1], 22),
        ("on the underlay by default", near6, far6, 22),
        ("on the underlay by default", near, far, 22),
        ("on the underlay by a rule", near6, far6, 8001),
        ("on the underlay by a rule", near, far, 8001),
    ];
    for (how, from, to, port) in refused {
        let target = socket(to, port);
        assert_eq!(
            tcp(&lab.device, from, target),
            Outcome::Rejected,
            "{how} {to}"
        );
        assert_eq!(
            udp(&lab.device, from, target),
            Outcome::Rejected,
            "{how} {to}"
        );
    }
    // A session that what is allowed no longer covers: the next write finds a reset.
    let closed = profile(vec![], vec![]);
    for (own, peer) in pairs(1) {
        serve(&lab.peers, peer, &[22]);
        let session = lab.device.run(|| connect(own, socket(peer, 22)).unwrap());
        assert!(exchange(&session));
        let mut narrow = rules.clone();
        narrow.generation += 1;
        narrow.profiles.insert(ProfileId(1), closed.clone());
        table.load(&narrow, at(0)).unwrap();
        drop(std::io::Write::write(&mut (&session), b"hello"));
        let ended = soon(|| session.take_error().unwrap().is_some());
        assert!(ended, "a session to {peer} hangs");
        rules.generation = narrow.generation + 1;
        table.load(&rules, at(0)).unwrap();
    }
}
