//! Ways between devices whose networks are in the way: NATs, firewalls, relays that die or lie.
//!
//! What is asserted is that packets pass and by which way; how long it took is printed, and never decides.

mod copied;
mod hops;
mod hostile;
mod liar;
mod nats;
mod restless;
mod six;

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::clock;
use hedgerow_lab::process::{self, Signal};
use serde_json::Value;

use super::device::Device;
use super::plot::{POLICY, Plot};

/// How long a way may take to be found.
const FIND: Duration = Duration::from_secs(30);
/// Seconds between two questions of a [`Pulse`].
const BEAT: &str = "0.05";

/// All devices with the role `left` may reach each other.
fn policy() -> String {
    POLICY.replace("to: \"role=right\"", "to: \"role=left\"")
}

/// Gives a device an identity and starts its agent; `labels` are `key=value`, with commas between.
fn join(plot: &Plot, device: &Device<'_>, site: &str, labels: &str) -> Result<()> {
    let words = ["--site", site, "--name", &device.name, "--labels", labels];
    let token = plot.token(&words)?;
    device.agent_with(&["enroll"], Some(&token))?.done()?;
    device.start()
}

/// Plugs a relay in and starts its agent.
fn relay<'p>(plot: &'p Plot, name: &str, site: &str) -> Result<Device<'p>> {
    let device = plot.device(name, site, 51)?;
    join(plot, &device, site, "role=other,relay=yes")?;
    Ok(device)
}

/// A box that masquerades a network of its own, and lets in only what answers, for itself too: one that takes in what
/// nobody asked for remembers it, and then gives the hidden device's own packets another port.
struct Nat<'p> {
    plot: &'p Plot,
    namespace: String,
}

const NAT_RULES: &str = "table inet nat_box {
    chain out {
        type nat hook postrouting priority srcnat;
        oifname eth0 masquerade
    }
    chain in {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname != eth0 accept
    }
    chain through {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname inside accept
    }
}
";

impl<'p> Nat<'p> {
    /// Puts a box at `address`, with 192.168.1.0/24 behind it.
    fn plug(plot: &'p Plot, name: &str, address: Ipv4Addr) -> Result<Self> {
        let namespace = plot.namespace(name);
        plot.lab.namespace(&namespace)?;
        plot.plug(&namespace, address.into())?;
        for words in [
            "sysctl -qw net.ipv4.ip_forward=1",
            "ip link add inside type bridge",
            "ip address add 192.168.1.1/24 dev inside",
            "ip link set inside up",
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            plot.tool(&namespace, &words)?;
        }
        rules(plot, &namespace, NAT_RULES)?;
        Ok(Self { plot, namespace })
    }

    /// Puts a device behind it, at 192.168.1.`host`.
    fn hide(&self, name: &str, host: u8) -> Result<Device<'p>> {
        let device = Device::unplugged(self.plot, name)?;
        let (port, address) = (format!("p{host}"), format!("192.168.1.{host}/24"));
        let (inside, nat) = (&*device.namespace, &*self.namespace);
        process::run(&[
            "ip", "link", "add", "eth0", "netns", inside, "type", "veth", "peer", "name", &port,
            "netns", nat,
        ])?;
        process::run(&[
            "ip", "-n", nat, "link", "set", &port, "master", "inside", "up",
        ])?;
        process::run(&[
            "ip", "-n", inside, "address", "add", &address, "dev", "eth0",
        ])?;
        process::run(&["ip", "-n", inside, "link", "set", "eth0", "up"])?;
        process::run(&[
            "ip",
            "-n",
            inside,
            "route",
            "add",
            "default",
            "via",
            "192.168.1.1",
        ])?;
        Ok(device)
    }

    /// Gives every flow a new port out of `ports` and forgets the old ones, as a box does that was restarted.
    fn rebind(&self, ports: &str) -> Result<()> {
        let rule = format!("oifname eth0 meta l4proto udp masquerade to :{ports}");
        let script = format!(
            "flush chain inet nat_box out\nadd rule inet nat_box out {rule}\n\
             add rule inet nat_box out oifname eth0 masquerade\n"
        );
        rules(self.plot, &self.namespace, &script)?;
        // Says how many there were.
        self.plot
            .tool(&self.namespace, &["conntrack", "-D", "-p", "udp"])?;
        Ok(())
    }
}

/// Loads nftables rules in a namespace.
fn rules(plot: &Plot, namespace: &str, script: &str) -> Result<()> {
    plot.run(namespace, &["nft", "-f", "-"], Some(script))?
        .done()?;
    Ok(())
}

/// Loads rules for what the plot's router passes on, in a table of that name.
fn on_the_way(plot: &Plot, name: &str, statements: &str) -> Result<()> {
    let script = format!(
        "table inet {name} {{\nchain through {{\ntype filter hook forward priority filter;\n{statements}\n}}\n}}\n"
    );
    rules(plot, &plot.namespace("router"), &script)
}

/// Returns where a device sends what is for a peer, while they have a session: `direct at ADDRESS:PORT`,
/// `relayed by NAME at ADDRESS:PORT`.
fn way(device: &Device<'_>, peer: &str) -> Result<Option<String>> {
    let Some(peer) = device.peer(peer)?.filter(|p| p["session"] == true) else {
        return Ok(None);
    };
    let text = |key: &str| {
        peer[key]
            .as_str()
            .with_context(|| format!("no {key}: {peer}"))
    };
    Ok(Some(match text("path")? {
        "direct" => format!("direct at {}", text("address")?),
        path => format!("{path} by {} at {}", text("relay")?, text("address")?),
    }))
}

/// Waits until a device's way to a peer fits, prints how long that took, and returns it.
fn wait_way(device: &Device<'_>, peer: &str, fits: impl Fn(&str) -> bool) -> Result<String> {
    let start = clock::now();
    let what = format!("another way from {} to {peer}", device.name);
    let found = clock::wait_for(&what, FIND, || match way(device, peer)? {
        Some(way) if fits(&way) => Ok(Some(way)),
        other => anyhow::bail!("it is {other:?}; {}", routes(device, peer)?),
    })?;
    measured(
        &format!("{} to {peer}: {found}", device.name),
        clock::ms_since(start),
    );
    Ok(found)
}

/// Waits until a way through a relay answers that is not in use.
fn wait_standby(device: &Device<'_>, peer: &str, relay: &str) -> Result<()> {
    let start = clock::now();
    let what = format!("a second way from {} to {peer}", device.name);
    clock::wait_for(&what, FIND, || {
        let known = device.peer(peer)?.context("no peer")?["routes"].clone();
        let mut routes = known.as_array().into_iter().flatten();
        let by = format!("{relay}.");
        let is_by = |r: &Value| {
            r["relay"]
                .as_str()
                .is_some_and(|name| name.starts_with(&by))
        };
        let found = routes.any(|r| is_by(r) && r["state"] == "alive");
        ensure!(found, "{known}");
        Ok(Some(()))
    })?;
    measured(&what, clock::ms_since(start));
    Ok(())
}

/// Returns every way that a device knows to a peer, for the words of a failure.
fn routes(device: &Device<'_>, peer: &str) -> Result<String> {
    Ok(device
        .peer(peer)?
        .map_or_else(|| "no peer".to_owned(), |p| p["routes"].to_string()))
}

#[expect(
    clippy::print_stderr,
    reason = "a measurement for whoever runs the test by hand"
)]
fn measured(what: &str, ms: f64) {
    eprintln!("  {ms:>9.1} ms  {what}");
}

/// Somebody who asks a peer twenty times a second whether it is there.
struct Pulse<'d, 'p> {
    device: &'d Device<'p>,
    pid: u32,
    log: String,
}

/// What the peer answered.
#[derive(Debug)]
struct Heartbeat {
    answered: usize,
    longest_gap_ms: f64,
}

impl<'d, 'p> Pulse<'d, 'p> {
    /// Starts asking; returns after the first answers.
    fn start(device: &'d Device<'p>, log: &str, target: &str) -> Result<Self> {
        let argv = ["stdbuf", "-oL", "ping", "-n", "-D", "-i", BEAT, target];
        let pid = device.spawn(log, &argv)?;
        let log = log.to_owned();
        let pulse = Self { device, pid, log };
        pulse.wait_answers(3)?;
        Ok(pulse)
    }

    fn beat(&self) -> Result<Heartbeat> {
        let text = fs::read_to_string(self.device.log_file(&self.log)?)?;
        Ok(heartbeat(&text))
    }

    /// Waits for so many answers more.
    fn wait_answers(&self, count: usize) -> Result<()> {
        let before = self.beat()?.answered;
        clock::wait_for("answers", FIND, || {
            Ok((self.beat()?.answered >= before + count).then_some(()))
        })
    }

    /// Ends it after some more answers, prints the longest time without one and returns what came.
    fn end(self, what: &str) -> Result<Heartbeat> {
        self.wait_answers(3)?;
        process::signal(self.pid, Signal::INT);
        process::wait_end(self.pid, Duration::from_secs(10))?;
        let beat = self.beat()?;
        measured(
            &format!(
                "{what}: longest time without an answer, of {}",
                beat.answered
            ),
            beat.longest_gap_ms,
        );
        Ok(beat)
    }
}

/// Reads what `ping -D` prints.
fn heartbeat(text: &str) -> Heartbeat {
    let mut last = None::<f64>;
    let mut beat = Heartbeat {
        answered: 0,
        longest_gap_ms: 0.0,
    };
    for line in text.lines() {
        let at = line
            .strip_prefix('[')
            .and_then(|l| l.split(']').next()?.parse::<f64>().ok());
        let (Some(at), true) = (at, line.contains(" time=")) else {
            continue;
        };
        beat.answered += 1;
        let gap = last.map_or(0.0, |last| (at - last) * 1000.0);
        beat.longest_gap_ms = beat.longest_gap_ms.max(gap);
        last = Some(at);
    }
    beat
}
