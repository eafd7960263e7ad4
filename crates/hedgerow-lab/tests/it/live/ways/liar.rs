//! A relay that lies: somebody sits on its wire, and does to the frames that it passes on what he likes.
//!
//! He stands outside of the relay's machine, so that every packet keeps its addresses and no NAT has a
//! hand in it; what he sees and changes is what the relay itself could: frames, and not what is in them.

use std::cell::Cell;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::{clock, process};
use serde_json::{Value, json};

use super::super::device::Device;
use super::super::plot::Plot;

const SCRIPT: &str = include_str!("liar.py");
/// How long he may take to obey.
const OBEY: Duration = Duration::from_secs(20);
/// Frames are seen one by one, each with its checksum.
const PLAIN: &[&str] = &[
    "tx",
    "off",
    "gso",
    "off",
    "tso",
    "off",
    "gro",
    "off",
    "tx-udp-segmentation",
    "off",
];

/// Somebody on the wire of one machine.
pub(super) struct Liar {
    orders: PathBuf,
    number: Cell<u64>,
}

impl Liar {
    /// Plugs a device in at 10.77.`network`.`host`, with an honest one on its wire.
    pub(super) fn plug<'p>(
        plot: &'p Plot,
        name: &str,
        address: Ipv4Addr,
    ) -> Result<(Device<'p>, Self)> {
        let device = Device::unplugged(plot, name)?;
        let namespace = plot.namespace(&format!("at-{name}"));
        plot.lab.namespace(&namespace)?;
        // He is no machine of the network: nothing but what passes leaves him.
        plot.tool(
            &namespace,
            &["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"],
        )?;
        let [_, _, network, host] = address.octets();
        let (router, inside) = (plot.namespace("router"), &*device.namespace);
        let (port, switch) = (format!("p{network}-{host}"), format!("sw{network}"));
        let (cidr, gateway) = (format!("{address}/24"), format!("10.77.{network}.1"));
        let liar = &*namespace;
        for words in [
            format!("link add eth0 netns {inside} type veth peer name in netns {liar}"),
            format!("link add out netns {liar} type veth peer name {port} netns {router}"),
            format!("-n {router} link set {port} master {switch} up"),
            format!("-n {liar} link set in arp off up"),
            format!("-n {liar} link set out arp off up"),
            format!("-n {inside} address add {cidr} dev eth0"),
            format!("-n {inside} link set eth0 up"),
            format!("-n {inside} route add default via {gateway}"),
        ] {
            let words: Vec<&str> = ["ip"].into_iter().chain(words.split(' ')).collect();
            process::run(&words)?;
        }
        for (namespace, interface) in [(inside, "eth0"), (&router, &port)] {
            plot.tool(namespace, &[&["ethtool", "-K", interface], PLAIN].concat())?;
        }
        let script = plot.lab.path(&format!("{name}-wire/liar.py"))?;
        fs::write(&script, SCRIPT)?;
        let liar = Self {
            orders: script.with_file_name("orders.json"),
            number: Cell::new(0),
        };
        liar.write(&json!({}))?;
        let argv = [
            "/usr/bin/python3",
            &script.to_string_lossy(),
            &liar.orders.to_string_lossy(),
        ];
        plot.lab.start(&namespace, &format!("{name}-wire"), &argv)?;
        liar.wait_obeys()?;
        Ok((device, liar))
    }

    fn write(&self, orders: &Value) -> Result<()> {
        self.number.set(self.number.get() + 1);
        let mut orders = orders.clone();
        orders["number"] = self.number.get().into();
        orders["seed"] = self.number.get().into();
        let fresh = self.orders.with_extension("new");
        fs::write(&fresh, orders.to_string())?;
        Ok(fs::rename(&fresh, &self.orders)?)
    }

    /// Gives him other orders, and returns when they are in force.
    pub(super) fn order(&self, orders: &Value) -> Result<()> {
        self.write(orders)?;
        self.wait_obeys()
    }

    fn wait_obeys(&self) -> Result<()> {
        clock::wait_for("the liar to obey", OBEY, || self.done().map(Some))?;
        Ok(())
    }

    /// Returns what he did since the last orders, by kind.
    pub(super) fn done(&self) -> Result<Value> {
        let path = self.orders.with_extension("json.done");
        let said: Value = serde_json::from_slice(&fs::read(path)?)?;
        ensure!(said["number"] == self.number.get(), "he is at {said}");
        let done = said["done"].as_object().context("no counts")?;
        // What he could not send would be a loss that nobody ordered.
        ensure!(!done.keys().any(|k| k.starts_with("error")), "{said}");
        Ok(said["done"].clone())
    }

    /// Waits until he has done each of these so often.
    pub(super) fn wait_done(&self, kinds: &[&str], times: u64) -> Result<()> {
        clock::wait_for(&format!("{kinds:?} {times} times"), OBEY, || {
            let done = self.done()?;
            let short = kinds
                .iter()
                .find(|k| done[**k].as_u64().unwrap_or(0) < times);
            ensure!(short.is_none(), "{done}");
            Ok(Some(()))
        })
    }
}
