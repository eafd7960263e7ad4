use domain::base::iana::Rcode;
use domain::base::message_builder::QuestionBuilder;
use domain::rdata::AllRecordData;
use hedgerow_model::id::{DeviceId, Revision};
use hedgerow_model::statement::{P256Public, X25519Public};

use super::*;

fn addresses(n: u16) -> OverlayAddresses {
    OverlayAddresses {
        v6: Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, n),
        v4: n
            .is_multiple_of(2)
            .then(|| Ipv4Addr::new(100, 80, 4, n.to_be_bytes()[1])),
    }
}

fn zone() -> Zone {
    let entry = |n: u16, name: &str, site: &str| NameEntry {
        id: DeviceId([n.to_be_bytes()[1]; 16]),
        name: name.parse().unwrap(),
        site: site.parse().unwrap(),
        addresses: addresses(n),
    };
    let config = SiteConfig {
        revision: Revision::default(),
        site: "plant-1".parse().unwrap(),
        zone: "Europe/Paris".to_owned(),
        controllers: Vec::new(),
        management: Vec::new(),
        pools: vec!["100.80.0.0/12".parse().unwrap()],
        suffix: "hedgerow.internal".to_owned(),
        grace_secs: 0,
    };
    let names = Names {
        revision: Revision {
            timeline: 1,
            number: 77,
        },
        site: "plant-1".parse().unwrap(),
        entries: vec![
            entry(2, "collector-1", "plant-1"),
            entry(3, "plc-1", "plant-1"),
            entry(4, "plc-1", "plant-2"),
        ],
    };
    let own = Ticket {
        id: DeviceId([9; 16]),
        name: "sensor-1".parse().unwrap(),
        site: "plant-1".parse().unwrap(),
        identity_key: P256Public([2; 33]),
        introduction_key: X25519Public([3; 32]),
        labels: "role=sensor".parse().unwrap(),
        addresses: addresses(6),
        epoch: 1,
        not_after_secs: 0,
    };
    Zone::new(&config, &own, Some(Arc::new(names)))
        .unwrap()
        .with_pool("fd12:3456:789a::/48".parse().unwrap())
}

fn begun() -> QuestionBuilder<Vec<u8>> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x4242);
    builder.header_mut().set_rd(true);
    builder.question()
}

fn question(name: &str, rtype: Rtype) -> Vec<u8> {
    let mut builder = begun();
    builder
        .push((name.parse::<Owned>().unwrap(), rtype))
        .unwrap();
    builder.finish()
}

/// What an answer says: rcode, records as text, and whether a zone's authority is named.
fn said(name: &str, rtype: Rtype) -> (Rcode, Vec<String>, Option<String>) {
    let (_, bytes) = zone().answer(&question(name, rtype), Transport::Udp);
    read(&bytes.unwrap())
}

fn read(bytes: &[u8]) -> (Rcode, Vec<String>, Option<String>) {
    let message = Message::from_octets(bytes).unwrap();
    assert_eq!(message.header().id(), 0x4242);
    assert!(message.header().qr() && message.header().rd() && !message.header().ra());
    let text = |records: domain::base::message::RecordSection<'_, &[u8]>| {
        records
            .into_records::<AllRecordData<_, _>>()
            .map(|r| r.unwrap())
            .map(|r| {
                (
                    r.owner().to_string(),
                    r.data().to_string(),
                    r.ttl().as_secs(),
                )
            })
            .collect::<Vec<_>>()
    };
    let answers = text(message.answer().unwrap());
    assert!(answers.iter().all(|(_, _, ttl)| *ttl == TTL_SECS));
    let authority = text(message.authority().unwrap());
    assert!(
        authority
            .iter()
            .all(|(_, _, ttl)| *ttl == NEGATIVE_TTL_SECS)
    );
    (
        message.header().rcode(),
        answers.into_iter().map(|(_, data, _)| data).collect(),
        authority.into_iter().map(|(owner, _, _)| owner).next(),
    )
}

#[test]
fn a_peers_addresses_are_found_in_any_spelling() {
    let (ok, apex) = (Rcode::NOERROR, Some("hedgerow.internal".to_owned()));
    let ask = |name, rtype| said(name, rtype);
    let v4 = vec!["100.80.4.2".to_owned()];
    let v6 = vec!["fd12:3456:789a:1::2".to_owned()];
    let full = "collector-1.plant-1.hedgerow.internal";
    assert_eq!(ask(full, Rtype::A), (ok, v4.clone(), None));
    assert_eq!(
        ask("Collector-1.PLANT-1.hedgerow.Internal.", Rtype::A),
        (ok, v4.clone(), None)
    );
    assert_eq!(ask(full, Rtype::AAAA), (ok, v6.clone(), None));
    assert_eq!(ask(full, Rtype::ANY), (ok, [v6, v4].concat(), None));
    assert_eq!(
        ask(full, Rtype::MX),
        (ok, vec![], apex.clone()),
        "no such type"
    );
    let other = "plc-1.plant-2.hedgerow.internal";
    assert_eq!(ask(other, Rtype::A).1, ["100.80.4.4"]);
    let without_v4 = "plc-1.plant-1.hedgerow.internal";
    assert_eq!(ask(without_v4, Rtype::A), (ok, vec![], apex));
    assert_eq!(
        ask("sensor-1.plant-1.hedgerow.internal", Rtype::A).1,
        ["100.80.4.6"]
    );
}

#[test]
fn an_unknown_name_below_the_suffix_is_denied_with_the_zones_authority() {
    let (no, apex) = (Rcode::NXDOMAIN, Some("hedgerow.internal".to_owned()));
    for name in [
        "nobody.plant-1.hedgerow.internal",
        "collector-1.plant-2.hedgerow.internal",
        "x.collector-1.plant-1.hedgerow.internal",
        "plant-9.hedgerow.internal",
    ] {
        assert_eq!(said(name, Rtype::A), (no, vec![], apex.clone()), "{name}");
    }
    for name in ["plant-1.hedgerow.internal", "hedgerow.internal"] {
        assert_eq!(
            said(name, Rtype::A),
            (Rcode::NOERROR, vec![], apex.clone()),
            "{name}"
        );
    }
    let authority = said("hedgerow.internal", Rtype::SOA);
    let text = "hedgerow.internal. hostmaster.hedgerow.internal. 77 30 30 30 5";
    assert_eq!(
        authority.1.join("").replace("internal ", "internal. "),
        text
    );
}

#[test]
fn addresses_inside_the_pools_have_names_and_others_are_not_ours() {
    let ok = Rcode::NOERROR;
    let name = vec!["collector-1.plant-1.hedgerow.internal.".to_owned()];
    let four = "2.4.80.100.in-addr.arpa";
    assert_eq!(said(four, Rtype::PTR), (ok, name.clone(), None));
    let apex = Some("80.100.in-addr.arpa".to_owned());
    assert_eq!(said(four, Rtype::A), (ok, vec![], apex.clone()));
    let nobody = "9.4.80.100.in-addr.arpa";
    assert_eq!(
        said(nobody, Rtype::PTR),
        (Rcode::NXDOMAIN, vec![], apex.clone())
    );
    assert_eq!(
        said("4.80.100.in-addr.arpa", Rtype::PTR),
        (ok, vec![], apex.clone())
    );
    for name in [
        "02.4.80.100.in-addr.arpa",
        "x.2.4.80.100.in-addr.arpa",
        "+2.4.80.100.in-addr.arpa",
    ] {
        assert_eq!(
            said(name, Rtype::PTR),
            (Rcode::NXDOMAIN, vec![], apex.clone()),
            "{name}"
        );
    }
    let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa";
    assert_eq!(said(six, Rtype::PTR), (ok, name.clone(), None));
    assert_eq!(
        said(&six.to_ascii_uppercase(), Rtype::PTR),
        (ok, name, None)
    );
    let apex = Some("a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa".to_owned());
    assert_eq!(said(&six.replacen('2', "9", 1), Rtype::PTR).2, apex);
    for name in [
        "1.0.0.10.in-addr.arpa",
        "100.in-addr.arpa",
        "1.0.0.127.in-addr.arpa",
        "ip6.arpa",
    ] {
        assert_eq!(said(name, Rtype::PTR).0, Rcode::REFUSED, "{name}");
    }
}

#[test]
fn nothing_else_is_answered_or_forwarded() {
    for name in [
        "example.com",
        ".",
        "collector-1.plant-1",
        "internal",
        "xhedgerow.internal",
    ] {
        assert_eq!(
            said(name, Rtype::A),
            (Rcode::REFUSED, vec![], None),
            "{name}"
        );
    }
    let mut chaos = begun();
    let version = "version.bind".parse::<Owned>().unwrap();
    chaos.push((version, Rtype::TXT, Class::CH)).unwrap();
    let (outcome, bytes) = zone().answer(&chaos.finish(), Transport::Udp);
    assert_eq!(
        (outcome, read(&bytes.unwrap()).0),
        (Outcome::Refused, Rcode::REFUSED)
    );
    let (outcome, _) = answer(
        None,
        &question("hedgerow.internal", Rtype::A),
        Transport::Udp,
    );
    assert_eq!(outcome, Outcome::Refused, "nothing is known yet");
}

#[test]
fn a_question_with_edns_gets_one_and_a_newer_version_is_refused() {
    let ask = |version, size| {
        let mut builder = begun();
        let name: Owned = "nobody.plant-1.hedgerow.internal".parse().unwrap();
        builder.push((name, Rtype::A)).unwrap();
        let mut builder = builder.additional();
        builder
            .opt(|opt| {
                opt.set_version(version);
                opt.set_udp_payload_size(size);
                Ok(())
            })
            .unwrap();
        let (outcome, bytes) = zone().answer(&builder.finish(), Transport::Udp);
        (outcome, bytes.unwrap())
    };
    let (outcome, bytes) = ask(0, 4096);
    let message = Message::from_octets(&bytes[..]).unwrap();
    assert_eq!(outcome, Outcome::NoName);
    assert_eq!(message.opt().unwrap().udp_payload_size(), UDP_BYTES_MAX);
    assert_eq!(message.opt_rcode(), OptRcode::NXDOMAIN);
    let (outcome, bytes) = ask(1, 4096);
    let message = Message::from_octets(&bytes[..]).unwrap();
    assert_eq!(
        (outcome, message.opt_rcode()),
        (Outcome::Malformed, OptRcode::BADVERS)
    );
    // A size below what everybody takes counts as that.
    assert!(ask(0, 0).1.len() > usize::from(message.header_counts().arcount()));
}

#[test]
fn an_answer_that_does_not_fit_is_cut_and_says_so() {
    let bytes = question("collector-1.plant-1.hedgerow.internal", Rtype::ANY);
    let message = Message::from_octets(&bytes[..]).unwrap();
    let asked = message.sole_question().unwrap();
    let zone = zone();
    let said = zone.say(asked.qname(), Rtype::ANY).unwrap();
    let out = |limit| finished(spoken(&message, (&zone, &said, &asked), limit).unwrap());
    let (whole, short) = (out(512), out(90));
    assert!(!Message::from_octets(&whole[..]).unwrap().header().tc());
    let short = Message::from_octets(&short[..]).unwrap();
    assert!(short.header().tc());
    assert_eq!(short.header_counts().ancount(), 0, "half an answer is none");
}

#[test]
fn attack_answers_damage_and_reflections_get_nothing_or_an_error_no_longer_than_themselves() {
    let zone = zone();
    let whole = question("collector-1.plant-1.hedgerow.internal", Rtype::A);
    let mut answered = whole.clone();
    answered[2] |= 0x80;
    assert_eq!(
        zone.answer(&answered, Transport::Udp),
        (Outcome::Dropped, None)
    );
    for cut in 0..whole.len() {
        let (outcome, bytes) = zone.answer(&whole[..cut], Transport::Udp);
        match cut {
            0..12 => assert_eq!((outcome, bytes), (Outcome::Dropped, None)),
            _ => {
                let bytes = bytes.unwrap();
                assert_eq!((outcome, bytes.len()), (Outcome::Malformed, 12));
                assert_eq!(bytes[3] & 15, 1, "FORMERR");
            }
        }
    }
    let mut update = whole.clone();
    update[2] = 5 << 3;
    let (_, bytes) = zone.answer(&update, Transport::Udp);
    assert_eq!(bytes.unwrap()[3] & 15, 4, "NOTIMP");
    let mut two = whole.clone();
    two[5] = 2;
    assert_eq!(zone.answer(&two, Transport::Udp).0, Outcome::Malformed);
    // A name that points at itself.
    let mut loops = whole[..12].to_vec();
    loops.extend([0xc0, 12, 0, 1, 0, 1]);
    assert_eq!(zone.answer(&loops, Transport::Udp).0, Outcome::Malformed);
    let long = vec![0; QUESTION_BYTES_MAX + 1];
    assert_eq!(zone.answer(&long, Transport::Tcp), (Outcome::Dropped, None));
}

#[test]
fn the_domains_to_route_here_are_those_that_are_answered() {
    let domains = zone().domains();
    assert_eq!(domains[0], "hedgerow.internal");
    assert_eq!(domains.len(), 1 + 16 + 1, "a /12 is sixteen /16");
    assert_eq!(domains[1], "80.100.in-addr.arpa");
    assert_eq!(domains[16], "95.100.in-addr.arpa");
    assert_eq!(domains[17], "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa");
    let wide = zone().with_pool("10.0.0.0/9".parse().unwrap());
    assert_eq!(
        wide.domains().len(),
        domains.len(),
        "a pool of too many is left out"
    );
}

#[test]
fn people_name_a_peer_by_one_two_or_all_labels() {
    let zone = zone();
    let id = |name: &str| zone.find(name).map(|e| e.id.0[0]);
    assert_eq!(id("collector-1"), Some(2), "of the own site");
    assert_eq!(id("plc-1.plant-2"), Some(4));
    assert_eq!(id("PLC-1.plant-2.hedgerow.internal."), Some(4));
    assert_eq!(id("plc-1.plant-3"), None);
}
