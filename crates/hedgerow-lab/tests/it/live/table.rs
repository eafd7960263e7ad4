//! The kernel's table under a running agent: mended when it was tampered with; the underlay's first
//! enforcement, taken back without a word from the controller and kept with one.

use std::fs;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::process::Signal;
use hedgerow_lab::{clock, process, supervise};
use rustix::net::SendFlags;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::device::Device;
use super::plot::{POLICY, Plot, strs};

/// How long an agent may take over what its clock says is due.
const SOON: Duration = Duration::from_secs(30);
/// Longer than a trial, and than the time between two readings of the table.
const MINUTE: i64 = 65;

#[test]
fn an_element_taken_through_the_owners_socket_is_mended_and_said() -> Result<()> {
    let plot = Plot::open("mend")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s2", 12, "right")?;
    right.serve()?;
    plot.apply(POLICY)?;
    let address = right.overlay(6)?;
    left.wait_reaches(&address, 9000)?;
    let peer = format!("{address} : ");
    ensure!(left.table()?.contains(&peer), "{}", left.table()?);

    // Nobody but the owner may, so the owner's own socket does it.
    let element = format!("{{ {address} }}");
    let refused = left.run(&[
        "nft", "delete", "element", "inet", "hedgerow", "peers6", &element,
    ])?;
    ensure!(refused.code != Some(0), "another process took it out");
    let socket = owners_socket(&left)?;
    let order = deletion("peers6", &address.parse::<Ipv6Addr>()?.octets());
    rustix::net::send(&socket, &order, SendFlags::empty())?;
    drop(socket);
    ensure!(!left.table()?.contains(&peer), "it is there all the same");

    plot.advance(MINUTE)?;
    let mended = plot.event("table_mended", |_| true)?;
    let detail = mended.to_string();
    ensure!(detail.contains("\"missing\":\"1\""), "{detail}");
    ensure!(detail.contains("\"surplus\":\"0\""), "{detail}");
    ensure!(left.table()?.contains(&peer), "said and not mended");
    ensure!(left.status()?["table"]["intact"] == true);
    left.wait_reaches(&address, 9000)
}

#[test]
fn the_underlays_first_enforcement_needs_a_word_from_the_controller() -> Result<()> {
    let plot = Plot::open("underlay")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    plot.apply(POLICY)?;
    plot.settled(&["left"])?;
    ensure!(pings(&left)?, "the gateway does not answer");
    let enforced = POLICY.replace("mode: enforce }", "mode: enforce, underlay: enforce }");

    // The controller falls silent in the moment in which the trial begins.
    let trial = left.directory.join("state/trial");
    let before = changed(&trial);
    let central = supervise::state(&plot.lab.path("central/service/state.json")?)?;
    let central = central.pid.context("the controller does not run")?;
    std::thread::scope(|scope| {
        let apply = scope.spawn(|| plot.apply(&enforced));
        let begun = clock::wait_for("the trial to begin", SOON, || {
            Ok((changed(&trial) != before).then_some(()))
        });
        process::signal(central, Signal::STOP);
        let result = begun.and_then(|()| silent(&plot, &left));
        process::signal(central, Signal::CONT);
        drop(apply.join());
        result
    })?;
    let event = plot.event("underlay_reverted", |_| true)?;
    ensure!(
        event.to_string().contains("\"what\":\"enforcement\""),
        "{event}"
    );
    plot.settled(&["left"])?;
    ensure!(underlay(&left)? == "observe", "it was tried again");
    ensure!(pings(&left)?, "the underlay stays closed");

    // Another program, and a controller that answers.
    let other = enforced.replace("r-echo", "r-other");
    plot.apply(&other)?;
    clock::wait_for("the controller's word", SOON, || {
        let status = left.status()?;
        let confirmed = status["lifeline"]["trial_seconds_left"].is_null();
        Ok((confirmed && status["table"]["underlay"] == "enforce").then_some(()))
    })?;
    ensure!(!pings(&left)?, "the underlay is enforced");
    plot.advance(MINUTE)?;
    plot.settled(&["left"])?;
    ensure!(underlay(&left)? == "enforce", "it was taken back");
    ensure!(plot.events("underlay_reverted")?.len() == 1);
    Ok(())
}

/// A control group of a scenario's own; it goes when nobody is in it.
pub(super) struct Group(pub(super) &'static str);

impl Group {
    /// Puts a shell into the group, which then becomes the program; the lab's namespaces hide the
    /// machine's own mount.
    pub(super) fn words(&self) -> Vec<String> {
        let enter = format!(
            "mount -t cgroup2 none /sys/fs/cgroup && mkdir -p /sys/fs/cgroup/{0} && \
             echo $$ > /sys/fs/cgroup/{0}/cgroup.procs && exec \"$@\"",
            self.0
        );
        ["sh", "-c", &enter, "sh"].map(str::to_owned).to_vec()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mount = mounts.lines().find(|l| l.contains(" - cgroup2 "));
        if let Some(point) = mount.and_then(|l| l.split(' ').nth(4)) {
            drop(fs::remove_dir(std::path::Path::new(point).join(self.0)));
        }
    }
}

#[test]
fn where_the_underlay_is_enforced_the_agent_alone_asks_name_servers() -> Result<()> {
    const SERVER: &str = "10.77.1.1";
    let group = Group("hgd-asking");
    let plot = Plot::open("asking")?;
    let left = plot.device("left", "s1", 11)?;
    let config = left.directory.join("agent.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(
        &config,
        format!("{text}\n[lifeline]\nservers = [\"{SERVER}\"]\n"),
    )?;
    let words = ["--site", "s1", "--name", "left", "--labels", "role=left"];
    let token = plot.token(&words)?;
    left.agent_with(&["enroll"], Some(&token))?.done()?;
    left.start_in(&group.words())?;
    ensure!(left.status()?["lifeline"]["askers"] == "agent");
    let router = plot.namespace("router");
    let listen = "UDP4-LISTEN:53,reuseaddr,fork";
    plot.lab
        .start(&router, "router-names", &["socat", listen, "EXEC:cat"])?;
    let ask = format!("echo question | timeout 3 nc -u -w 1 {SERVER} 53");
    let outside = || Ok::<bool, anyhow::Error>(left.run(&["sh", "-c", &ask])?.out == "question\n");
    let inside = || {
        let enter = group.words();
        let argv = strs(&enter, &["sh", "-c", &ask]);
        Ok::<bool, anyhow::Error>(left.run(&argv)?.out == "question\n")
    };
    clock::wait_for("an answer before enforcement", SOON, || {
        Ok(outside()?.then_some(()))
    })?;
    let enforced = POLICY.replace("mode: enforce }", "mode: enforce, underlay: enforce }");
    plot.apply(&enforced)?;
    ensure!(underlay(&left)? == "enforce");
    ensure!(!outside()?, "a program of no service was answered");
    ensure!(inside()?, "a program of the agent's group was not answered");
    // A rule makes it a matter of policy.
    let rule = format!(
        "rules:\n  - {{ id: r-names, from: \"role=left\", to: {SERVER}/32, service: dns }}"
    );
    plot.apply(&enforced.replace("rules:", &rule))?;
    ensure!(outside()?, "the rule does not hold");
    let checked = left.agent(&["check"])?.out;
    ensure!(checked.contains("lets only the agent ask"), "{checked}");
    left.stop()
}

#[test]
fn a_session_that_enforcing_the_underlay_would_end_is_named_before() -> Result<()> {
    let plot = Plot::open("stake")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    left.serve()?;
    plot.apply(POLICY)?;
    let script = "sleep 600 | nc 10.77.1.11 9000";
    let router = plot.namespace("router");
    plot.lab
        .start(&router, "router-session", &["bash", "-c", script])?;
    let named = || {
        let text = left.agent(&["check"])?.out;
        let line = text.lines().find(|l| l.contains("enforcing the underlay"));
        Ok::<bool, anyhow::Error>(line.is_some_and(|l| l.contains("10.77.1.1:")))
    };
    clock::wait_for("the session to be named", SOON, || {
        Ok(named()?.then_some(()))
    })?;
    let text = left.agent(&["check"])?.out;
    ensure!(text.contains("to 10.77.1.11:9000"), "{text}");
    ensure!(
        !text.contains("10.77.0.2:7443 from"),
        "the controller's: {text}"
    );
    // A rule that keeps it, and nothing is at stake.
    let rule = "rules:\n  - { id: r-kept, from: 10.77.1.0/24, to: \"role=left\", service: echo }";
    plot.apply(&POLICY.replace("rules:", rule))?;
    ensure!(!named()?, "it is kept by a rule");
    Ok(())
}

/// What a device does whose controller says nothing from the trial's first moment on.
fn silent(plot: &Plot, left: &Device<'_>) -> Result<()> {
    clock::wait_for("enforcement", SOON, || {
        Ok((underlay(left)? == "enforce").then_some(()))
    })?;
    ensure!(!pings(left)?, "the underlay is open");
    let left_over = left.status()?["lifeline"]["trial_seconds_left"].clone();
    ensure!(left_over.as_u64().is_some_and(|s| s <= 60), "{left_over}");
    let checked = left.agent(&["check"])?.out;
    ensure!(checked.contains("on trial"), "{checked}");
    plot.advance(MINUTE)?;
    clock::wait_for("enforcement to be taken back", SOON, || {
        Ok((underlay(left)? == "observe").then_some(()))
    })?;
    ensure!(pings(left)?, "the underlay stays closed");
    Ok(())
}

fn underlay(device: &Device<'_>) -> Result<String> {
    let status = device.status()?;
    let mode = status["table"]["underlay"].as_str();
    Ok(mode.context("no table")?.to_owned())
}

/// Whether the site's router answers, which no rule names.
fn pings(device: &Device<'_>) -> Result<bool> {
    let said = device.run(&["ping", "-n", "-c", "1", "-W", "2", "10.77.1.1"])?;
    Ok(said.code == Some(0))
}

fn changed(path: &std::path::Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

/// Returns the socket that owns the device's table, as its service manager keeps it.
fn owners_socket(device: &Device<'_>) -> Result<OwnedFd> {
    /// The supervisor keeps descriptors from this number on.
    const STORED_FIRST: i32 = 100;
    let state = device.service()?;
    ensure!(state.stored == ["nftables"], "{:?}", state.stored);
    let agent = state.pid.context("the agent does not run")?;
    let about = fs::read_to_string(format!("/proc/{agent}/status"))?;
    let parent = about.lines().find_map(|l| l.strip_prefix("PPid:"));
    let parent: i32 = parent.context("no parent")?.trim().parse()?;
    let pid = Pid::from_raw(parent).context("no supervisor")?;
    let supervisor = pidfd_open(pid, PidfdFlags::empty())?;
    for entry in fs::read_dir(format!("/proc/{parent}/fd"))? {
        let entry = entry?;
        let number: i32 = entry.file_name().to_string_lossy().parse()?;
        let target = fs::read_link(entry.path())?;
        if number >= STORED_FIRST && target.to_string_lossy().starts_with("socket:") {
            let flags = PidfdGetfdFlags::empty();
            return Ok(pidfd_getfd(supervisor.as_fd(), number, flags)?);
        }
    }
    anyhow::bail!("the supervisor keeps no socket")
}

/// Returns a transaction that takes one element out of a set of the table (`nfnetlink(7)`).
fn deletion(set: &str, key: &[u8]) -> Vec<u8> {
    const NESTED: u16 = 1 << 15;
    let key = attribute(1 | NESTED, &attribute(1, key));
    let element = attribute(1 | NESTED, &key);
    let text = |kind, text: &str| attribute(kind, &[text.as_bytes(), &[0]].concat());
    let body = [
        text(1, "hedgerow"),
        text(2, set),
        attribute(3 | NESTED, &element),
    ]
    .concat();
    const SUBSYSTEM: u16 = 10;
    const DELETE_ELEMENT: u16 = SUBSYSTEM << 8 | 14;
    [
        message(16, 1, [0, 0, 0, 10], &[]),
        message(DELETE_ELEMENT, 2, [1, 0, 0, 0], &body),
        message(17, 3, [0, 0, 0, 10], &[]),
    ]
    .concat()
}

fn message(kind: u16, sequence: u32, head: [u8; 4], body: &[u8]) -> Vec<u8> {
    const REQUEST: u16 = 1;
    let length = u32::try_from(20 + body.len()).unwrap();
    let mut out = length.to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(REQUEST.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend(head);
    out.extend(body);
    out
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut out = length.to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}
