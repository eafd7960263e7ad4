//! Debian packages that the demonstration and the tests need.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::step::{self, say};

/// What the demonstration runs: each with what it is there for.
pub(crate) const DEMO: &[(&str, &str)] = &[
    ("gcc", "compiles the C parts of dependencies, and links"),
    ("libc6-dev", "the same"),
    ("iproute2", "network namespaces"),
    ("procps", "sysctl"),
    ("nftables", "the lab's own view of the kernel"),
    ("conntrack", "the lab's own view of sessions"),
    ("ethtool", "makes links send datagrams one by one"),
    (
        "openssl",
        "the camera's web server, the plant's certificate",
    ),
    ("curl", "the ops laptop's browser"),
    ("iputils-ping", "ping"),
    ("mosquitto", "the collector"),
    ("mosquitto-clients", "the sensors"),
    ("mbpoll", "the SCADA host"),
    (
        "python3-pymodbus",
        "the PLCs, and the attack tools' interpreter",
    ),
    (
        "python3-serial-asyncio",
        "needed by pymodbus, which does not say so",
    ),
    ("socat", "the camera's stream and the recorder"),
    ("openssh-server", "the recorder's administration"),
    ("openssh-client", "the ops laptop's ssh"),
    (
        "wireguard-go",
        "the tunnel of an attacker who replaced the agent",
    ),
    ("wireguard-tools", "its configuration"),
];

/// What the tests need beyond that.
pub(crate) const TEST: &[(&str, &str)] = &[
    (
        "wireguard-go",
        "another WireGuard implementation to interoperate with",
    ),
    ("wireguard-tools", "its configuration"),
    ("iperf3", "traffic"),
    ("bind9-dnsutils", "dig, which asks the agent's resolver"),
    ("tcpdump", "reads what the agent captured"),
    ("netcat-openbsd", "traffic"),
    ("ufw", "a firewall to live beside"),
    ("firewalld", "the same"),
    ("iptables", "the same, as Docker uses it"),
    ("dbus-daemon", "firewalld's way to be spoken to"),
    ("libfaketime", "clocks that say 1970, and days that pass"),
    (
        "systemd-container",
        "machines on which the guides' commands are run",
    ),
    ("dbus", "the bus of those machines"),
];

/// What tests unpack in machines of their own. Installed here it would take this machine's names over.
const FETCHED: &[(&str, &str)] = &[(
    "systemd-resolved",
    "the resolver of a machine on which names are looked up",
)];
/// Where those are kept.
const FETCHED_TO: &str = "/var/cache/hedgerow-lab";

/// Services of these packages would start by themselves; on this machine they are only programs.
const SERVICES: &[(&str, &str)] = &[
    ("mosquitto", "mosquitto"),
    ("openssh-server", "ssh"),
    ("ufw", "ufw"),
    ("firewalld", "firewalld"),
];
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs what is missing of `packages`, and of [`DEMO`].
///
/// # Errors
///
/// Names each package that could not be installed, and what to do about it.
pub(crate) fn install(packages: &[(&str, &str)]) -> Result<()> {
    let mut wanted = DEMO.to_vec();
    wanted.extend(packages.iter().filter(|p| !DEMO.contains(p)));
    let missing = missing(&wanted);
    if missing.is_empty() {
        say("    all there");
        return Ok(());
    }
    for (name, reason) in &missing {
        say(&format!("    {name}: {reason}"));
    }
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    let by_hand = format!(
        "apt-get install --no-install-recommends {}",
        names.join(" ")
    );
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "not a Debian machine; install what these packages contain: {}",
            names.join(" ")
        );
    }
    if !is_root()? {
        bail!("installing takes root. Run once: sudo {by_hand}");
    }
    let quiet = Quiet::begin()?;
    let installed = apt(&["update"]).and_then(|()| {
        let mut words = vec!["install", "--yes", "--no-install-recommends"];
        words.extend(&names);
        apt(&words)
    });
    drop(quiet);
    for (package, service) in SERVICES {
        if names.contains(package) && Path::new("/run/systemd/system").exists() {
            // A machine without the unit is as well off.
            drop(step::output(&["systemctl", "disable", "--quiet", service]));
        }
    }
    let still: Vec<&str> = self::missing(&wanted)
        .iter()
        .map(|(name, _)| *name)
        .collect();
    if still.is_empty() {
        return installed;
    }
    bail!(
        "could not install {}: look at the lines above, check /etc/apt/sources.list and the network, \
         then run: {by_hand}",
        still.join(", ")
    );
}

/// Fetches the packages of [`FETCHED`] that are not there yet.
///
/// # Errors
///
/// Names the package that could not be fetched.
pub(crate) fn fetch() -> Result<()> {
    for (name, reason) in FETCHED {
        let has = fs::read_dir(FETCHED_TO).is_ok_and(|mut found| {
            found.any(|f| f.is_ok_and(|f| f.file_name().to_string_lossy().starts_with(name)))
        });
        if has {
            continue;
        }
        say(&format!("    {name}: {reason}; fetched, not installed"));
        let script = "mkdir -p \"$0\" && cd \"$0\" && exec apt-get --quiet download \"$1\" >&2";
        step::program(&["bash", "-c", script, FETCHED_TO, name])
            .with_context(|| format!("cannot fetch the package {name} to {FETCHED_TO}"))?;
    }
    Ok(())
}

fn missing<'a>(wanted: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    wanted
        .iter()
        .filter(|(name, _)| !is_installed(name))
        .copied()
        .collect()
}

fn is_installed(name: &str) -> bool {
    step::output(&[
        "dpkg-query",
        "--show",
        "--showformat=${db:Status-Status}",
        name,
    ])
    .is_ok_and(|status| status == "installed")
}

fn is_root() -> Result<bool> {
    Ok(step::output(&["id", "--user"])?.trim() == "0")
}

fn apt(words: &[&str]) -> Result<()> {
    let mut argv = vec![
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "--quiet",
        "-o",
        "DPkg::Lock::Timeout=120",
        "-o",
        "Acquire::Retries=3",
    ];
    argv.extend(words);
    // What apt says is for the person who waits, not part of our results.
    let argv: Vec<&str> = ["bash", "-c", "exec \"$@\" >&2", "apt"]
        .into_iter()
        .chain(argv)
        .collect();
    step::program(&argv)
}

/// Keeps the services of new packages from starting, as `invoke-rc.d(8)` lets an administrator do.
struct Quiet {
    ours: bool,
}

impl Quiet {
    fn begin() -> Result<Self> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            fs::write(
                POLICY,
                "#!/bin/sh\n# Removed by cargo xtask after installing.\nexit 101\n",
            )
            .with_context(|| format!("cannot write {POLICY}"))?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.ours {
            drop(fs::remove_file(POLICY));
        }
    }
}
