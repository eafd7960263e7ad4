//! One NAT: who is behind it reaches others and is reached, while the box forgets, and forbids.
//!
//! ```text
//!   one, two ── nat ──┐
//!   central ──────────┼── router ── relay-1
//!                     └──────────── relay-2, public
//! ```

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::clock;

use super::super::device::Device;
use super::super::plot::Plot;
use super::{
    FIND, Nat, Pulse, join, measured, policy, relay, routes, rules, wait_standby, wait_way,
};

const NAT_AT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 61);
const PUBLIC: &str = "direct at 10.77.2.11:7117";

/// The devices of these scenes.
struct Cast<'p> {
    plot: &'p Plot,
    nat: Nat<'p>,
    relays: [Device<'p>; 2],
    public: Device<'p>,
    one: Device<'p>,
    two: Device<'p>,
}

#[test]
fn devices_behind_a_nat_reach_and_are_reached_whatever_the_box_forgets_or_forbids() -> Result<()> {
    let plot = Plot::open_in_real_time("nats")?;
    plot.apply(&policy())?;
    let cast = Cast::gather(&plot)?;
    cast.public_speaks_first()
        .context("the public one speaks first")?;
    cast.hidden_speaks_first()
        .context("the hidden one speaks first")?;
    cast.neighbours().context("two behind one NAT")?;
    cast.rebinding().context("the NAT changes its mappings")?;
    cast.only_relays().context("UDP to the relays alone")?;
    cast.relay_dies().context("a relay dies")?;
    cast.relay_in_quarantine().context("a relay is quarantined")
}

impl<'p> Cast<'p> {
    fn gather(plot: &'p Plot) -> Result<Self> {
        let relays = [relay(plot, "relay-1", "s1")?, relay(plot, "relay-2", "s2")?];
        let nat = Nat::plug(plot, "nat", NAT_AT)?;
        let public = plot.device("public", "s2", 11)?;
        join(plot, &public, "s2", "role=left")?;
        let [one, two] = [nat.hide("one", 11)?, nat.hide("two", 12)?];
        for device in [&one, &two] {
            join(plot, device, "s1", "role=left")?;
        }
        for device in [&public, &one, &two] {
            device.serve()?;
        }
        let cast = Self {
            plot,
            nat,
            relays,
            public,
            one,
            two,
        };
        for device in [&cast.public, &cast.one, &cast.two] {
            cast.wait_home(device)?;
        }
        Ok(cast)
    }

    /// Waits until a device is registered with both relays.
    fn wait_home(&self, device: &Device<'_>) -> Result<()> {
        let what = format!("{} to have two relays", device.name);
        clock::wait_for(&what, FIND, || {
            let home = device.status()?["mesh"]["home_relays"].clone();
            ensure!(home.as_array().is_some_and(|h| h.len() == 2), "{home}");
            Ok(Some(()))
        })
    }

    /// Nothing that the public one sends gets in before the hidden one has sent something: a relay carries the
    /// introduction and the first packets.
    fn public_speaks_first(&self) -> Result<()> {
        let start = clock::now();
        self.public.wait_reaches(&self.one.overlay(6)?, 9000)?;
        measured(
            "first connection to a device behind a NAT",
            clock::ms_since(start),
        );
        let nat = format!("direct at {NAT_AT}:");
        wait_way(&self.public, "one", |w| w.starts_with(&nat))?;
        wait_way(&self.one, "public", |w| w == PUBLIC)?;
        Ok(())
    }

    fn hidden_speaks_first(&self) -> Result<()> {
        let start = clock::now();
        self.two.wait_reaches(&self.public.overlay(6)?, 9000)?;
        measured("first connection out of a NAT", clock::ms_since(start));
        wait_way(&self.two, "public", |w| w == PUBLIC)?;
        self.public.wait_reaches(&self.two.overlay(4)?, 9000)
    }

    /// Their way does not leave the network behind the box, which would not turn a packet around.
    fn neighbours(&self) -> Result<()> {
        self.one.wait_reaches(&self.two.overlay(6)?, 9000)?;
        wait_way(&self.one, "two", |w| w == "direct at 192.168.1.12:7117")?;
        wait_way(&self.two, "one", |w| w == "direct at 192.168.1.11:7117")?;
        Ok(())
    }

    fn rebinding(&self) -> Result<()> {
        let talk = self.one.talk(&self.public.overlay(6)?)?;
        let pulse = Pulse::start(&self.public, "rebinding", &self.one.overlay(6)?)?;
        for ports in ["20000-20999", "30000-30999"] {
            self.nat.rebind(ports)?;
            let (first, _) = ports.split_at(2);
            let mapped = format!("direct at {NAT_AT}:{first}");
            wait_way(&self.public, "one", |w| w.starts_with(&mapped))?;
            wait_way(&self.one, "public", |w| w == PUBLIC)?;
            talk.moves().context("the conversation before")?;
        }
        pulse.end("two rebindings")?;
        Ok(())
    }

    fn only_relays(&self) -> Result<()> {
        let (one, public) = (self.one.overlay(6)?, self.public.overlay(6)?);
        let talk = self.public.talk(&one)?;
        let pulse = Pulse::start(&self.one, "only-relays", &public)?;
        let relays = "{ 10.77.1.51, 10.77.2.51 }";
        let rule = format!("meta l4proto udp ip saddr != {relays} ip daddr != {relays} drop");
        rules(
            self.plot,
            &self.nat.namespace,
            &format!("insert rule inet nat_box through {rule}\n"),
        )?;
        wait_way(&self.one, "public", |w| w.starts_with("relayed"))?;
        wait_way(&self.public, "one", |w| w.starts_with("relayed"))?;
        talk.moves().context("the conversation before")?;
        pulse.end("UDP blocked but to relays")?;
        self.one.wait_reaches(&public, 9000)?;
        self.public.wait_reaches(&one, 9000)?;
        self.two.wait_reaches(&self.public.overlay(4)?, 9000)
    }

    /// Returns the relay on the way from `one` to `public`, and the other.
    fn used(&self) -> Result<(&Device<'p>, &Device<'p>)> {
        let way = wait_way(&self.one, "public", |w| w.starts_with("relayed by relay-"))?;
        let [a, b] = &self.relays;
        Ok(match way.contains(&a.name) {
            true => (a, b),
            false => (b, a),
        })
    }

    /// Both ends come to the other relay.
    fn wait_relay(&self, relay: &Device<'_>) -> Result<()> {
        let by = format!("relayed by {}.", relay.name);
        wait_way(&self.one, "public", |w| w.starts_with(&by))?;
        wait_way(&self.public, "one", |w| w.starts_with(&by))?;
        Ok(())
    }

    fn relay_dies(&self) -> Result<()> {
        let (used, other) = self.used()?;
        wait_standby(&self.one, "public", &other.name)?;
        wait_standby(&self.public, "one", &other.name)?;
        let pulse = Pulse::start(&self.one, "relay-dies", &self.public.overlay(6)?)?;
        used.kill_for_good()?;
        self.wait_relay(other)?;
        pulse.end("relay killed")?;
        used.revive()?;
        wait_standby(&self.one, "public", &used.name)?;
        wait_standby(&self.public, "one", &used.name)
    }

    fn relay_in_quarantine(&self) -> Result<()> {
        let (used, other) = self.used()?;
        let pulse = Pulse::start(&self.one, "quarantine", &self.public.overlay(6)?)?;
        let start = clock::now();
        let name = used.status()?["device"]["site"]
            .as_str()
            .context("no site")?
            .to_owned();
        let name = format!("{}.{name}", used.name);
        self.plot
            .hedgerow(&["device", "quarantine", &name, "--reason", "test"])?
            .done()?;
        measured("ordered", clock::ms_since(start));
        self.wait_relay(other)?;
        pulse.end("relay quarantined")?;
        self.plot.event("relay_left", |e| {
            e["device_name"] == "one.s1" && e["peer_name"] == *name
        })?;
        // Nothing that is known leads there any more.
        clock::wait_for("the quarantined relay to be left", FIND, || {
            let known = routes(&self.one, "public")?;
            let home = self.one.status()?["mesh"]["home_relays"].to_string();
            ensure!(
                !home.contains(&name) && !known.contains(&name),
                "{home} {known}"
            );
            Ok(Some(()))
        })
    }
}
