use super::*;

fn owner(family: Family, table: &str, chains: &[&str], way: Way) -> Owner {
    Owner::of(family, table, chains.iter().copied(), way)
}

#[test]
fn firewalls_are_known_by_the_names_in_their_tables() {
    use Family::{Inet, Ip, Ip6};
    let ufw = ["INPUT", "FORWARD", "ufw-before-input", "ufw-user-input"];
    let both = [
        "INPUT",
        "FORWARD",
        "DOCKER",
        "DOCKER-USER",
        "ufw-user-input",
    ];
    let firewalld = ["filter_INPUT", "filter_IN_public"];
    for (found, family, table, chains, way) in [
        (Owner::Ufw, Ip, "filter", &ufw[..], Way::Input),
        (Owner::Ufw, Ip, "filter", &both[..], Way::Input),
        (Owner::Docker, Ip, "filter", &both[..], Way::Forward),
        (
            Owner::Ufw,
            Ip6,
            "filter",
            &["INPUT", "ufw6-user-input"][..],
            Way::Input,
        ),
        (
            Owner::Docker,
            Ip,
            "docker-bridges",
            &["filter-FORWARD"][..],
            Way::Forward,
        ),
        (
            Owner::Firewalld,
            Inet,
            "firewalld",
            &firewalld[..],
            Way::Input,
        ),
        (Owner::Iptables, Ip, "filter", &["INPUT"][..], Way::Input),
        (Owner::Other, Inet, "filter", &["input"][..], Way::Input),
        (Owner::Other, Ip, "mine", &["input"][..], Way::Output),
    ] {
        assert_eq!(
            owner(family, table, chains, way),
            found,
            "{table} {chains:?}"
        );
    }
}

#[test]
fn damaged_expressions_do_not_decide() {
    let whole = {
        let mut a = crate::netlink::Attributes::default();
        a.nested(1, |a| {
            a.text(1, "immediate").nested(2, |a| {
                a.be32(1, 0).nested(2, |a| {
                    a.nested(2, |a| {
                        a.be32(1, 0);
                    });
                });
            });
        });
        let mut out = crate::netlink::Attributes::default();
        out.nested(4, |list| list.append(a));
        let request = question(0).attributes(|a| a.append(out));
        let body = attributes_of(request.body()).to_vec();
        find(&body, 4).unwrap().to_vec()
    };
    assert_ne!(Rule::decode(&whole), Rule::default());
    for cut in 0..whole.len() {
        let rule = Rule::decode(&whole[..cut]);
        assert_eq!(rule.sets().count(), 0);
        assert_eq!(rule, Rule::default(), "cut at {cut}");
    }
}
