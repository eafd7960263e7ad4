//! The plant: what stands where.
//!
//! ```text
//!   hgd-central ─── 10.77.0.0/24 ──┐
//!                                  hgd-router
//!   site s1 ─────── 10.77.1.0/24 ──┘   └── 10.77.2.0/24 ─────── site s2
//!   sensor-1 collector camera               sensor-2 plc-2
//!   nvr scada plc-1                         ops contractor
//! ```
//!
//! Each device is a network namespace with its own agent. The router routes, and knows no policy.

use std::net::Ipv4Addr;

use anyhow::Result;
use serde::Serialize;

use crate::lab::{Lab, PREFIX};
use crate::process;

/// Namespace of the controller.
pub(crate) const CENTRAL: &str = "hgd-central";
/// Where the controller listens.
pub(crate) const CENTRAL_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Its port.
pub(crate) const CENTRAL_PORT: u16 = 7443;
/// The trust domain.
pub(crate) const TRUST_DOMAIN: &str = "plant.example";
/// Sites and their time zones.
pub(crate) const SITES: [(&str, &str); 2] = [("s1", "Europe/Berlin"), ("s2", "America/New_York")];

/// Namespace of the router.
pub(crate) const ROUTER: &str = "hgd-router";

/// A device of the plant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Device {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its site, and the third byte of its address.
    pub(crate) site: &'static str,
    /// Its labels.
    pub(crate) labels: &'static str,
    /// The last byte of its address.
    pub(crate) host: u8,
    /// Services that a program of its own provides; the lab answers on all others.
    pub(crate) provides: &'static [&'static str],
}

/// The ten devices.
pub(crate) const DEVICES: [Device; 10] = [
    device("sensor-1", "s1", "role=sensor", 11, &[]),
    device("collector", "s1", "role=collector", 12, &["mqtts"]),
    device("camera", "s1", "role=camera", 13, &["https"]),
    device("nvr", "s1", "role=nvr", 14, &["rtsp", "ssh"]),
    device("scada", "s1", "role=scada", 15, &[]),
    device("plc-1", "s1", "role=plc", 16, &["modbus"]),
    device("sensor-2", "s2", "role=sensor", 11, &[]),
    device("plc-2", "s2", "role=plc", 12, &["modbus"]),
    device("ops", "s2", "role=ops", 13, &[]),
    device("contractor", "s2", "role=contractor", 14, &[]),
];

const fn device(
    name: &'static str,
    site: &'static str,
    labels: &'static str,
    host: u8,
    provides: &'static [&'static str],
) -> Device {
    Device {
        name,
        site,
        labels,
        host,
        provides,
    }
}

impl Device {
    /// Returns its namespace.
    pub(crate) fn namespace(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// Returns its address on the plant's network.
    pub(crate) fn underlay(&self) -> Ipv4Addr {
        let site = if self.site == "s1" { 1 } else { 2 };
        Ipv4Addr::new(10, 77, site, self.host)
    }

    /// Returns its name in the hosts file before Hedgerow.
    pub(crate) fn plant_name(&self) -> String {
        format!("{}.{}.plant", self.name, self.site)
    }

    /// Returns its name on the overlay.
    pub(crate) fn overlay_name(&self) -> String {
        format!("{}.{}.hedgerow.internal", self.name, self.site)
    }

    /// Returns the file that is `/etc/hosts` in its namespace.
    pub(crate) fn hosts_file(&self) -> String {
        format!("/etc/netns/{}/hosts", self.namespace())
    }
}

/// Returns the device called `name`.
pub(crate) fn find(name: &str) -> Option<&'static Device> {
    DEVICES.iter().find(|d| d.name == name)
}

/// How a service is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP or ICMPv6 echo.
    Ping,
}

/// A service that every pair of devices is tried with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Service {
    /// Its name in the policy.
    pub(crate) name: &'static str,
    /// How it stands in the table.
    pub(crate) letter: char,
    /// How it is spoken.
    pub(crate) protocol: Protocol,
    /// Its port; 0 for echo.
    pub(crate) port: u16,
}

/// The services of the matrix.
pub(crate) const SERVICES: [Service; 7] = [
    Service {
        name: "mqtts",
        letter: 'q',
        protocol: Protocol::Tcp,
        port: 8883,
    },
    Service {
        name: "rtsp",
        letter: 'r',
        protocol: Protocol::Tcp,
        port: 554,
    },
    Service {
        name: "modbus",
        letter: 'm',
        protocol: Protocol::Tcp,
        port: 502,
    },
    Service {
        name: "https",
        letter: 'h',
        protocol: Protocol::Tcp,
        port: 443,
    },
    Service {
        name: "ssh",
        letter: 's',
        protocol: Protocol::Tcp,
        port: 22,
    },
    Service {
        name: "syslog",
        letter: 'l',
        protocol: Protocol::Udp,
        port: 514,
    },
    Service {
        name: "ping",
        letter: 'p',
        protocol: Protocol::Ping,
        port: 0,
    },
];

/// Builds the middle of the wires: router, its three switches, and central.
///
/// # Errors
///
/// When `ip` refuses.
pub(crate) fn router(lab: &Lab) -> Result<()> {
    lab.namespace(ROUTER)?;
    in_namespace(ROUTER, &["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    for (bridge, gateway) in [
        ("sw0", "10.77.0.1"),
        ("sw1", "10.77.1.1"),
        ("sw2", "10.77.2.1"),
    ] {
        let ip = |words: &[&str]| in_namespace(ROUTER, words);
        ip(&["ip", "link", "add", bridge, "type", "bridge"])?;
        ip(&[
            "ip",
            "address",
            "add",
            &format!("{gateway}/24"),
            "dev",
            bridge,
        ])?;
        ip(&["ip", "link", "set", bridge, "up"])?;
    }
    lab.namespace(CENTRAL)?;
    plug(CENTRAL, CENTRAL_ADDRESS)?;
    link_up(CENTRAL)
}

/// Builds the wires: router, central, and every device's namespace with its link up.
///
/// # Errors
///
/// When `ip` refuses.
pub(crate) fn wire(lab: &Lab) -> Result<()> {
    router(lab)?;
    for device in &DEVICES {
        lab.namespace(&device.namespace())?;
        plug(&device.namespace(), device.underlay())?;
        link_up(&device.namespace())?;
        std::fs::write(device.hosts_file(), hosts())?;
    }
    Ok(())
}

/// Gives a namespace its link to the site's switch, still down, with its address and default route
/// to come when [`link_up`] is called.
///
/// # Errors
///
/// When `ip` refuses.
pub(crate) fn plug(namespace: &str, address: Ipv4Addr) -> Result<()> {
    let [_, _, site, host] = address.octets();
    let port = format!("p{site}-{host}");
    // A port of a namespace that is gone disappears a little later than the namespace.
    drop(process::output(
        &["ip", "-n", ROUTER, "link", "delete", &port],
        None,
    ));
    process::run(&[
        "ip", "link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", &port,
        "netns", ROUTER,
    ])?;
    let switch = format!("sw{site}");
    process::run(&[
        "ip", "-n", ROUTER, "link", "set", &port, "master", &switch, "up",
    ])?;
    let cidr = format!("{address}/24");
    process::run(&[
        "ip", "-n", namespace, "address", "add", &cidr, "dev", "eth0",
    ])?;
    // Lets the lab's own probes send echo requests without a raw socket.
    in_namespace(
        namespace,
        &["sysctl", "-qw", "net.ipv4.ping_group_range=0 0"],
    )?;
    Ok(())
}

/// Raises a namespace's link and sets its default route.
///
/// # Errors
///
/// When `ip` refuses.
pub(crate) fn link_up(namespace: &str) -> Result<()> {
    process::run(&["ip", "-n", namespace, "link", "set", "eth0", "up"])?;
    let shown = process::run(&[
        "ip", "-n", namespace, "-brief", "-4", "address", "show", "eth0",
    ])?;
    let site = shown.split('.').nth(2).unwrap_or("0");
    let gateway = format!("10.77.{site}.1");
    process::run(&[
        "ip", "-n", namespace, "route", "add", "default", "via", &gateway,
    ])?;
    Ok(())
}

/// Runs a tool in a namespace.
///
/// # Errors
///
/// As [`process::run`].
pub(crate) fn in_namespace(namespace: &str, argv: &[&str]) -> Result<String> {
    in_namespace_with(namespace, argv, None)
}

/// Runs a tool in a namespace, with `input` on its standard input.
///
/// # Errors
///
/// As [`process::run_with`].
pub(crate) fn in_namespace_with(
    namespace: &str,
    argv: &[&str],
    input: Option<&str>,
) -> Result<String> {
    let words: Vec<&str> = ["ip", "netns", "exec", namespace]
        .into_iter()
        .chain(argv.iter().copied())
        .collect();
    process::run_with(&words, input)
}

/// Returns the hosts file that the plant had before Hedgerow.
fn hosts() -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
    text.push_str(&format!("{CENTRAL_ADDRESS} central.plant\n"));
    for device in &DEVICES {
        text.push_str(&format!("{} {}\n", device.underlay(), device.plant_name()));
    }
    text
}
