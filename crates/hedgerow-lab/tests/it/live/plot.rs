//! A plant of a scenario's own: central, a router, two sites, and the devices that it plugs in.
//!
//! ```text
//!   central 10.77.0.2 ──┐
//!                       router ── 10.77.1.0/24 site s1
//!                          └───── 10.77.2.0/24 site s2
//! ```
//!
//! Each plot has namespaces of its own, so that the same addresses serve all of them at once. The
//! daemons and the operator's tool read their clocks through libfaketime: one file moves the time of
//! all of them while they run.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{PoisonError, RwLockReadGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hedgerow_lab::lab::Lab;
use hedgerow_lab::process::Signal;
use hedgerow_lab::{clock, process, supervise};
use serde_json::Value;

use super::account;
use super::device::Device;
use super::disks::SmallDisk;

/// Where the controller listens.
const CENTRAL: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const CENTRAL_PORT: u16 = 7443;
/// An address is good at once: nobody else could have it.
const AT_ONCE: &str = "net.ipv6.conf.default.accept_dad=0";
/// How long the controller may take to answer after a start.
const START: Duration = Duration::from_secs(30);
/// How long the fleet may take to have a change in every kernel. An agent that found no controller pauses up to
/// a minute.
const SETTLE: Duration = Duration::from_secs(100);
/// How long what failed once may take that an agent tries again after a minute and a pause: a renewal, or to reach a
/// controller that was gone for minutes.
pub(crate) const TRIED_AGAIN: Duration = Duration::from_secs(150);
/// A day in seconds.
pub(crate) const DAY: i64 = 86_400;

/// Allows `left` to reach `right` on the services of [`Device::serve`], and nothing else.
pub(crate) const POLICY: &str = "apiVersion: hedgerow.policy/v1
kind: Policy
meta: { name: live, owner: lab }
labels:
  role: { values: [ left, right, other ] }
  site: { from: enrollment }
services:
  echo: [ tcp/9000 ]
  web: [ tcp/8080 ]
segments:
  all: { select: \"role in (left, right, other)\", mode: enforce }
rules:
  - { id: r-echo, from: \"role=left\", to: \"role=right\", service: [ echo, web, ping ] }
defaults: { deny: both, log: sample/10s }
";

/// What a program said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    /// The exit code; none when a signal ended it.
    pub(crate) code: Option<i32>,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Returns standard output of a program that succeeded.
    pub(crate) fn done(self) -> Result<String> {
        ensure!(self.code == Some(0), "{self:?}");
        Ok(self.out)
    }

    /// Returns standard error's last line of a program that ended with `code`.
    pub(crate) fn refused(self, code: i32) -> Result<String> {
        ensure!(self.code == Some(code), "wanted exit code {code}: {self:?}");
        let last = self.err.lines().rfind(|l| !l.trim().is_empty());
        Ok(last
            .with_context(|| format!("nothing said: {self:?}"))?
            .to_owned())
    }
}

/// A scenario's plant. Dropping it removes everything.
pub(crate) struct Plot {
    /// What has to be removed again.
    pub(crate) lab: Lab,
    name: &'static str,
    /// Seconds by which the plot's clock is ahead of the machine's.
    ahead: AtomicI64,
    /// What the clocks of its daemons do.
    pub(crate) clocks: Monotonic,
    /// Others may load the machine as well, but nobody measures it.
    _machine: RwLockReadGuard<'static, ()>,
}

impl Plot {
    /// Builds the wires of a plot, without a controller.
    pub(crate) fn wired(name: &'static str) -> Result<Self> {
        Self::wired_with(name, Monotonic::Moves, CENTRAL.into())
    }

    fn wired_with(name: &'static str, clocks: Monotonic, central_at: IpAddr) -> Result<Self> {
        let machine = crate::MACHINE.read();
        let lab = Lab::open(&format!("live-{name}"))?;
        lab.wipe()?;
        let plot = Self {
            lab,
            name,
            ahead: AtomicI64::new(0),
            clocks,
            _machine: machine.unwrap_or_else(PoisonError::into_inner),
        };
        plot.advance(0)?;
        let router = plot.namespace("router");
        plot.lab.namespace(&router)?;
        let (v4, v6) = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1");
        plot.tool(&router, &["sysctl", "-qw", v4, v6, AT_ONCE])?;
        for network in 0..3 {
            let bridge = format!("sw{network}");
            let gateway = match central_at {
                IpAddr::V4(_) => format!("10.77.{network}.1/24"),
                IpAddr::V6(_) => format!("fd77:{network}::1/64"),
            };
            plot.tool(&router, &["ip", "link", "add", &bridge, "type", "bridge"])?;
            plot.tool(&router, &["ip", "address", "add", &gateway, "dev", &bridge])?;
            plot.tool(&router, &["ip", "link", "set", &bridge, "up"])?;
        }
        let central = plot.namespace("central");
        plot.lab.namespace(&central)?;
        plot.plug(&central, central_at)?;
        Ok(plot)
    }

    /// Builds a plot whose controller runs, with sites s1 and s2.
    pub(crate) fn open(name: &'static str) -> Result<Self> {
        Self::wired(name)?.with_central(CENTRAL.into())
    }

    /// As [`Self::open`], with the machine's own clock for all: for scenes that are measured.
    pub(crate) fn open_in_real_time(name: &'static str) -> Result<Self> {
        let at = CENTRAL.into();
        Self::wired_with(name, Monotonic::Real, at)?.with_central(at)
    }

    /// As [`Self::open_in_real_time`], where nobody has an IPv4 address.
    pub(crate) fn open_without_ipv4(name: &'static str) -> Result<Self> {
        let at = IpAddr::V6("fd77:0::2".parse()?);
        Self::wired_with(name, Monotonic::Real, at)?.with_central(at)
    }

    fn with_central(self, at: IpAddr) -> Result<Self> {
        let plot = self;
        let listen = SocketAddr::new(at, CENTRAL_PORT).to_string();
        let files = plot.files();
        let files = files.to_string_lossy();
        plot.control(&[
            "init",
            "--trust-domain",
            "plant.example",
            "--endpoint",
            &listen,
            "--listen",
            &listen,
            "--dir",
            &files,
            "--operator",
            "admin",
        ])?
        .done()?;
        plot.start_central()?;
        for site in ["s1", "s2"] {
            plot.hedgerow(&["site", "create", site])?.done()?;
        }
        Ok(plot)
    }

    /// Returns the name of one of the plot's namespaces.
    pub(crate) fn namespace(&self, what: &str) -> String {
        format!("hgd-{}-{what}", self.name)
    }

    /// Returns the controller's state directory.
    pub(crate) fn files(&self) -> PathBuf {
        self.lab.directory().join("central/files")
    }

    /// Plugs a namespace into its network's switch and raises the link.
    pub(crate) fn plug(&self, namespace: &str, address: IpAddr) -> Result<()> {
        let (network, host, bits) = match address {
            IpAddr::V4(v4) => (v4.octets()[2].into(), v4.octets()[3].into(), 24),
            IpAddr::V6(v6) => (v6.segments()[1], v6.segments()[7], 64),
        };
        let (port, router) = (format!("p{network}-{host}"), self.namespace("router"));
        let (switch, cidr) = (format!("sw{network}"), format!("{address}/{bits}"));
        let gateway = match address {
            IpAddr::V4(_) => format!("10.77.{network}.1"),
            IpAddr::V6(_) => format!("fd77:{network}::1"),
        };
        self.tool(namespace, &["sysctl", "-qw", AT_ONCE])?;
        process::run(&[
            "ip", "link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", &port,
            "netns", &router,
        ])?;
        process::run(&[
            "ip", "-n", &router, "link", "set", &port, "master", &switch, "up",
        ])?;
        process::run(&[
            "ip", "-n", namespace, "address", "add", &cidr, "dev", "eth0",
        ])?;
        process::run(&["ip", "-n", namespace, "link", "set", "eth0", "up"])?;
        process::run(&[
            "ip", "-n", namespace, "route", "add", "default", "via", &gateway,
        ])?;
        Ok(())
    }

    /// Runs a tool in a namespace and returns what it printed.
    pub(crate) fn tool(&self, namespace: &str, argv: &[&str]) -> Result<String> {
        self.run(namespace, argv, None)?.done()
    }

    /// Runs a program in a namespace to its end.
    pub(crate) fn run(&self, namespace: &str, argv: &[&str], input: Option<&str>) -> Result<Said> {
        let words: Vec<&str> = ["ip", "netns", "exec", namespace]
            .into_iter()
            .chain(argv.iter().copied())
            .collect();
        Ok(Said::of(&process::output(&words, input)?))
    }

    /// Moves the clock of every daemon, wall and monotonic.
    ///
    /// A daemon that sleeps sees it at its next wake-up, as after a suspend.
    pub(crate) fn advance(&self, seconds: i64) -> Result<()> {
        let ahead = self.ahead.fetch_add(seconds, Ordering::SeqCst) + seconds;
        set_clock(&self.clock(), ahead)
    }

    /// Returns the file that the plot's clock is read from.
    pub(crate) fn clock(&self) -> PathBuf {
        self.lab.directory().join("clock")
    }

    /// Runs `hedgerow-control` for one order.
    pub(crate) fn control(&self, words: &[&str]) -> Result<Said> {
        let argv = timed(&program("hedgerow-control")?, &self.clock(), self.clocks)?;
        self.run(&self.namespace("central"), &strs(&argv, words), None)
    }

    /// Runs the operator's tool.
    pub(crate) fn hedgerow(&self, words: &[&str]) -> Result<Said> {
        self.hedgerow_with(words, None)
    }

    /// Runs the operator's tool with something on its standard input.
    pub(crate) fn hedgerow_with(&self, words: &[&str], input: Option<&str>) -> Result<Said> {
        let mut argv = timed(&program("hedgerow")?, &self.clock(), self.clocks)?;
        let config = self.files().join("operator/cli.toml");
        argv.extend(["--config".to_owned(), config.to_string_lossy().into_owned()]);
        self.run(&self.namespace("central"), &strs(&argv, words), input)
    }

    /// Runs the operator's tool and returns its JSON document.
    pub(crate) fn json(&self, words: &[&str]) -> Result<Value> {
        let words: Vec<&str> = ["--json"]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        let text = self.hedgerow(&words)?.done()?;
        serde_json::from_str(&text).with_context(|| format!("{words:?} said {text}"))
    }

    /// Applies a policy, and waits until every connected agent has it in its kernel.
    pub(crate) fn apply(&self, policy: &str) -> Result<String> {
        let words = [
            "--json",
            "policy",
            "apply",
            "-",
            "--wait",
            "30s",
            "--confirm",
        ];
        let text = self.hedgerow_with(&words, Some(policy))?.done()?;
        let answer: Value = serde_json::from_str(&text)?;
        let revision = answer["revision"].as_str().context("no revision")?;
        Ok(revision.to_owned())
    }

    /// Returns a device's record.
    pub(crate) fn record(&self, device: &str) -> Result<Value> {
        self.json(&["device", "show", device])
    }

    /// Makes a token; `words` are options of `hedgerow token create`.
    pub(crate) fn token(&self, words: &[&str]) -> Result<String> {
        let words: Vec<&str> = ["token", "create"]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        let made = self.json(&words)?;
        Ok(made["token"].as_str().context("no token")?.to_owned())
    }

    /// Returns events of a kind, oldest first.
    pub(crate) fn events(&self, kind: &str) -> Result<Vec<Value>> {
        let answer = self.json(&["events", "--limit", "1000", "--kind", kind])?;
        Ok(answer["events"].as_array().context("no events")?.clone())
    }

    /// Waits for an event of a kind that `is` says yes to, and returns it.
    pub(crate) fn event(&self, kind: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        clock::wait_for(&format!("event {kind}"), Duration::from_secs(30), || {
            Ok(self.events(kind)?.into_iter().find(&is))
        })
    }

    /// Waits until all of `names` are connected and have verified all that they were told.
    pub(crate) fn settled(&self, names: &[&str]) -> Result<()> {
        clock::wait_for(&format!("{names:?} to be verified"), SETTLE, || {
            let status = self.json(&["status"])?;
            for name in names {
                let devices = status["devices"].as_array().context("no devices")?;
                let device = devices.iter().find(|d| d["name"] == **name);
                let device = device.with_context(|| format!("no device {name}"))?;
                ensure!(
                    device["connected"] == true && device["verified"] == true,
                    "{name} is behind: {device}"
                );
            }
            Ok(Some(()))
        })
    }

    /// Starts the controller under a supervisor; returns when it answers.
    pub(crate) fn start_central(&self) -> Result<()> {
        self.start_central_in(&[])?;
        Ok(())
    }

    /// As [`Self::start_central`], with its state directory on a disk of `kib` KiB.
    pub(crate) fn start_central_on_small_disk(&self, kib: u32) -> Result<SmallDisk> {
        let words = SmallDisk::words(&self.files(), kib)?;
        // The operator's tool has its certificate from elsewhere.
        let operator = self.files().with_extension("whole").join("operator");
        process::run(&[
            "cp",
            "-a",
            &operator.to_string_lossy(),
            &self.files().to_string_lossy(),
        ])?;
        Ok(SmallDisk::of(self.start_central_in(&words)?, &self.files()))
    }

    fn start_central_in(&self, wrapper: &[String]) -> Result<u32> {
        let service = self.lab.path("central/service/state.json")?;
        let service = service.with_file_name("");
        let config = self.files().join("control.toml");
        let control = program("hedgerow-control")?;
        let argv = timed(&control, &self.clock(), self.clocks)?;
        let words = ["run", "--config", &config.to_string_lossy()];
        let supervisor = self.supervise(
            ("central", "central"),
            &service,
            wrapper,
            &strs(&argv, &words),
        )?;
        self.wait_central()?;
        Ok(supervisor)
    }

    /// Starts something in a namespace under a supervisor, which runs within the words of `wrapper`;
    /// returns the supervisor's pid.
    pub(crate) fn supervise(
        &self,
        (what, log): (&str, &str),
        service: &Path,
        wrapper: &[String],
        argv: &[&str],
    ) -> Result<u32> {
        let service = service.to_string_lossy();
        let supervisor = env!("CARGO_BIN_EXE_hedgerow-lab");
        let words = [
            supervisor,
            "supervise",
            "--directory",
            &service,
            "--watchdog-secs",
            "60",
            "--",
        ];
        let words = [&strs(wrapper, &words)[..], argv].concat();
        self.lab.start(&self.namespace(what), log, &words)
    }

    /// Waits until the controller answers.
    pub(crate) fn wait_central(&self) -> Result<()> {
        clock::wait_for("the controller's answer", START, || {
            self.json(&["status"]).map(Some)
        })?;
        Ok(())
    }

    /// Kills the controller without warning, and keeps it dead until [`Self::revive_central`].
    pub(crate) fn kill_central(&self) -> Result<()> {
        fs::write(self.lab.path("central/service/hold")?, "")?;
        self.end_central(Signal::KILL)
    }

    /// Ends the controller in good order, until [`Self::start_central`].
    pub(crate) fn stop_central(&self) -> Result<()> {
        self.end_central(Signal::TERM)
    }

    fn end_central(&self, signal: Signal) -> Result<()> {
        let state = supervise::state(&self.lab.path("central/service/state.json")?)?;
        let pid = state.pid.context("the controller does not run")?;
        process::signal(pid, signal);
        process::wait_end(pid, Duration::from_secs(10))
    }

    /// Lets the controller be started again; returns when it answers.
    pub(crate) fn revive_central(&self) -> Result<()> {
        fs::remove_file(self.lab.path("central/service/hold")?)?;
        self.wait_central()
    }

    /// Plugs a device in, without an agent.
    pub(crate) fn device(&self, name: &str, site: &str, host: u8) -> Result<Device<'_>> {
        Device::plug(self, name, site, host)
    }

    /// Plugs a device in, enrolls it with a role, and starts its agent.
    pub(crate) fn enrolled(
        &self,
        name: &str,
        site: &str,
        host: u8,
        role: &str,
    ) -> Result<Device<'_>> {
        let device = self.device(name, site, host)?;
        device.enroll(site, role)?;
        Ok(device)
    }
}

impl Drop for Plot {
    #[expect(
        clippy::print_stdout,
        reason = "shown of a scene that failed, and of no other"
    )]
    fn drop(&mut self) {
        println!("{}", account::of(self));
        self.lab.close();
        // libfaketime leaves these behind when its process is killed.
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = ["faketime_shm_", "sem.faketime_sem_"]
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix)?.parse::<u32>().ok());
            if pid.is_some_and(|pid| process::start_time(pid).is_none()) {
                drop(fs::remove_file(entry.path()));
            }
        }
    }
}

/// What a daemon's clocks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Monotonic {
    /// Both follow the file: time passes.
    Moves,
    /// The wall clock follows the file alone: somebody sets it.
    Stays,
    /// Both are the machine's own, and cost what they cost everywhere.
    Real,
}

/// Sets a clock file so many seconds ahead of the machine's clock, at once for whoever reads it.
pub(crate) fn set_clock(file: &Path, ahead: i64) -> Result<()> {
    let fresh = file.with_extension("new");
    fs::write(&fresh, format!("{ahead:+}\n"))?;
    Ok(fs::rename(&fresh, file)?)
}

/// Returns the words that run a program under a clock file.
pub(crate) fn timed(program: &str, clock: &Path, monotonic: Monotonic) -> Result<Vec<String>> {
    if monotonic == Monotonic::Real {
        return Ok(vec![program.to_owned()]);
    }
    let library = fs::read_dir("/usr/lib")?
        .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|path| path.exists())
        .context("libfaketime is not installed: apt-get install libfaketime")?;
    Ok(vec![
        "env".to_owned(),
        format!("LD_PRELOAD={}", library.display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        format!(
            "FAKETIME_DONT_FAKE_MONOTONIC={}",
            i32::from(monotonic == Monotonic::Stays)
        ),
        program.to_owned(),
    ])
}

/// Returns the path of a program that was built beside the lab.
pub(crate) fn program(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_BIN_EXE_hedgerow-lab")).with_file_name(name);
    if !path.exists() {
        bail!(
            "{} is not built: run cargo build --workspace --bins",
            path.display()
        );
    }
    Ok(path.to_string_lossy().into_owned())
}

/// Joins words.
pub(crate) fn strs<'w>(first: &'w [String], rest: &[&'w str]) -> Vec<&'w str> {
    first
        .iter()
        .map(String::as_str)
        .chain(rest.iter().copied())
        .collect()
}
