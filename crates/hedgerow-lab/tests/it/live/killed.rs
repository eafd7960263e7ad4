//! `kill -9` at random moments, again and again. A failure names the seed.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::{clock, process};
use serde_json::Value;

use super::device::Device;
use super::plot::{DAY, POLICY, Plot};

/// Deaths while enrolling.
const ENROLLING: u8 = 6;
/// Deaths of a running agent.
const RUNNING: u32 = 24;
/// Deaths of the controller.
const CENTRAL: u32 = 20;

/// Splitmix64: which moment, and doing what.
struct Dice(u64);

impl Dice {
    fn new() -> (Self, u64) {
        let seed = clock::wall_secs();
        (Self(seed), seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn pause(&mut self, ms_max: u64) {
        clock::pause(Duration::from_millis(self.below(ms_max)));
    }
}

#[test]
fn an_agent_killed_at_any_moment_keeps_its_identity_and_never_half_a_state() -> Result<()> {
    let (mut dice, seed) = Dice::new();
    kill_agents(&mut dice).with_context(|| format!("seed {seed}"))
}

fn kill_agents(dice: &mut Dice) -> Result<()> {
    let plot = Plot::open("agentkill")?;
    for number in 0..ENROLLING {
        enroll_dying(&plot, dice, number)?;
    }
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    right.serve()?;
    plot.apply(POLICY)?;
    let target = right.overlay(6)?;
    left.wait_reaches(&target, 9000)?;
    let id = left.status()?["device"]["id"].clone();
    for death in 0..RUNNING {
        // Something that writes to its disk is under way when it dies.
        match dice.below(3) {
            0 => plot.advance(DAY + DAY / 5)?,
            1 => change(&plot, death)?,
            _ => plot.advance(4000)?,
        }
        drop(left.status());
        dice.pause(400);
        left.kill()?;
        let table = left.table()?;
        ensure!(table.contains("chain"), "death {death}: no table");
        left.wait_ready()
            .with_context(|| format!("death {death}"))?;
        let status = left.status()?;
        ensure!(status["device"]["id"] == id, "death {death}: {status}");
        ensure!(status["table"]["intact"] == true, "death {death}: {status}");
        whole(&left).with_context(|| format!("death {death}"))?;
    }
    plot.settled(&["left", "right"])?;
    let wanted = plot.json(&["status"])?["policy_revision"].clone();
    let status = left.status()?;
    ensure!(
        status["policy"]["verified"] == status["policy"]["revision"],
        "{wanted}: {status}"
    );
    left.wait_reaches(&target, 9000)?;
    right
        .wait_reaches(&left.overlay(6)?, 9000)
        .err()
        .context("the policy is gone")?;
    ensure!(
        plot.events("key_copied")?.is_empty(),
        "taken for a copy of itself"
    );
    Ok(())
}

/// Enrolls a device whose first attempt dies at some moment.
fn enroll_dying(plot: &Plot, dice: &mut Dice, number: u8) -> Result<()> {
    let name = format!("fresh-{number}");
    let device = plot.device(&name, "s2", 20 + number)?;
    let token = plot.token(&["--site", "s2", "--name", &name, "--labels", "role=other"])?;
    let file = device.directory.join("token");
    fs::write(&file, token)?;
    let pid = device.spawn_agent(
        "enroll",
        &["enroll", "--token-file", &file.to_string_lossy()],
    )?;
    dice.pause(250);
    process::kill(pid);
    process::wait_end(pid, Duration::from_secs(5))?;
    let again = device.agent(&["enroll", "--token-file", &file.to_string_lossy()])?;
    let finished = again.code == Some(1) && again.err.contains("enrolled already");
    ensure!(again.code == Some(0) || finished, "{again:?}");
    let shown = device.agent(&["fingerprint"])?.done()?;
    let record = plot.record(&format!("{name}.s2"))?;
    ensure!(
        record["fingerprint"] == shown.trim(),
        "{record}, not {shown}"
    );
    whole(&device)
}

/// Nothing on the device's disk was set aside as broken.
fn whole(device: &Device<'_>) -> Result<()> {
    for entry in fs::read_dir(device.directory.join("state/identity"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(!name.ends_with(".broken"), "{name}");
    }
    let logged = device.logged().unwrap_or_default();
    for bad in ["does not hold", "does not read", "panicked"] {
        ensure!(!logged.contains(bad), "the log says {bad:?}");
    }
    Ok(())
}

/// Applies another policy, and does not wait for anybody.
fn change(plot: &Plot, number: u32) -> Result<()> {
    let port = 10_000 + number;
    let policy = POLICY.replace("tcp/8080", &format!("tcp/8080, tcp/{port}"));
    let words = ["policy", "apply", "-", "--wait", "0s", "--confirm"];
    plot.hedgerow_with(&words, Some(&policy))?.done()?;
    Ok(())
}

#[test]
fn a_controller_killed_at_any_moment_loses_nothing_that_it_acknowledged() -> Result<()> {
    let (mut dice, seed) = Dice::new();
    kill_central(&mut dice).with_context(|| format!("seed {seed}"))
}

/// What the controller said was done.
#[derive(Default)]
struct Acknowledged {
    policy: Option<String>,
    enrolled: Vec<String>,
    revoked: BTreeSet<String>,
    /// Asked for and not acknowledged: it may have been stored, or not.
    perhaps_revoked: BTreeSet<String>,
    sites: Vec<String>,
}

fn kill_central(dice: &mut Dice) -> Result<()> {
    let plot = Plot::open("centralkill")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    right.serve()?;
    plot.apply(POLICY)?;
    let target = right.overlay(6)?;
    left.wait_reaches(&target, 9000)?;
    let mut known = Acknowledged::default();
    for death in 0..CENTRAL {
        die(&plot, dice, death, &mut known).with_context(|| format!("death {death}"))?;
        remembered(&plot, &known).with_context(|| format!("death {death}"))?;
    }
    plot.settled(&["left", "right"])?;
    left.wait_reaches(&target, 9000)?;
    gap_free(&plot)
}

/// Kills the controller while it does something, starts it again, and notes what it acknowledged.
fn die(plot: &Plot, dice: &mut Dice, death: u32, known: &mut Acknowledged) -> Result<()> {
    let kind = dice.below(4);
    let name = format!("d{death}");
    // Prepared beforehand: what is asked while it dies is one thing.
    let device = match kind {
        1 => Some(plot.device(&name, "s2", 20 + u8::try_from(death)?)?),
        _ => None,
    };
    let token = plot.token(&["--site", "s2", "--name", &name, "--labels", "role=other"])?;
    let victim = known
        .enrolled
        .iter()
        .find(|d| !known.revoked.contains(*d) && !known.perhaps_revoked.contains(*d))
        .cloned();
    let port = 10_000 + death;
    let policy = POLICY.replace("tcp/8080", &format!("tcp/8080, tcp/{port}"));
    let said = std::thread::scope(|scope| {
        let asked = scope.spawn(|| match (kind, &device, &victim) {
            (1, Some(device), _) => device.agent_with(&["enroll"], Some(&token)),
            (2, _, Some(victim)) => plot.hedgerow(&["device", "revoke", victim, "--wait", "0s"]),
            (3, ..) => plot.hedgerow(&["site", "create", &name]),
            _ => {
                let words = ["policy", "apply", "-", "--wait", "0s", "--confirm"];
                plot.hedgerow_with(&words, Some(&policy))
            }
        });
        dice.pause(300);
        plot.kill_central()?;
        plot.revive_central()?;
        asked
            .join()
            .map_err(|_panic| anyhow::anyhow!("the asking thread fell down"))?
    })?;
    ensure!(said.code != Some(70), "{said:?}");
    if said.code == Some(0) {
        match (kind, victim) {
            (1, _) => known.enrolled.push(format!("{name}.s2")),
            (2, Some(victim)) => drop(known.revoked.insert(victim)),
            (3, _) => known.sites.push(name),
            _ => known.policy = Some(format!("tcp/{port}")),
        }
    } else if let (2, Some(victim)) = (kind, victim) {
        known.perhaps_revoked.insert(victim);
    }
    Ok(())
}

fn remembered(plot: &Plot, known: &Acknowledged) -> Result<()> {
    let shown = plot.json(&["policy", "show"])?;
    let source = shown["source"].as_str().context("no policy")?;
    if let Some(port) = &known.policy {
        // A later one may have been stored without an acknowledgement, never an earlier one.
        let number = |text: &str| -> Option<u32> {
            let (_, rest) = text.split_once("tcp/8080, tcp/")?;
            rest.split(' ').next()?.parse().ok()
        };
        let least = port.trim_start_matches("tcp/").parse::<u32>()?;
        ensure!(
            number(source) >= Some(least),
            "{port} was acknowledged, and this is in force: {source}"
        );
    }
    let list = plot.json(&["device", "list"])?;
    let devices = list["devices"].as_array().context("no devices")?;
    let find = |device: &str| {
        devices
            .iter()
            .find(|d: &&Value| d["name"].as_str() == device.strip_suffix(".s2"))
    };
    for device in &known.enrolled {
        let record = find(device);
        if known.revoked.contains(device) {
            let ended = record.is_none_or(|r| !r["ended"].is_null());
            ensure!(ended, "{device} was revoked: {record:?}");
        } else if !known.perhaps_revoked.contains(device) {
            ensure!(
                record.is_some_and(|r| r["ended"].is_null()),
                "{device}: {record:?}"
            );
        }
    }
    let sites = plot.json(&["site", "list"])?;
    for site in &known.sites {
        let mut all = sites["sites"].as_array().context("no sites")?.iter();
        ensure!(
            all.any(|s| s["name"] == **site),
            "site {site} was acknowledged: {sites}"
        );
    }
    Ok(())
}

/// Every number of the timeline was given once.
fn gap_free(plot: &Plot) -> Result<()> {
    let script = "import sqlite3, sys\n\
                  db = sqlite3.connect('file:%s?mode=ro' % sys.argv[1], uri=True)\n\
                  for (n,) in db.execute('SELECT number FROM change ORDER BY number'): print(n)";
    let store = plot.files().join("store/hedgerow.db");
    let argv = ["python3", "-c", script, &store.to_string_lossy()];
    let text = plot.tool(&plot.namespace("central"), &argv)?;
    let numbers: Vec<u32> = text.lines().filter_map(|l| l.parse().ok()).collect();
    let first = *numbers.first().context("no changes")?;
    for (number, wanted) in numbers.iter().zip(first..) {
        ensure!(*number == wanted, "{wanted} is missing: {numbers:?}");
    }
    let status = plot.json(&["status"])?;
    let last = numbers.last().context("no changes")?;
    ensure!(
        status["revision"] == format!("1.{last}"),
        "{status} after {last}"
    );
    Ok(())
}
