//! `agent.toml`: read, checked, and shown with where each value came from.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hedgerow_linux::disk;
use hedgerow_model::address::Prefix;
use serde::Deserialize;

use crate::failure::Failure;

/// Where the file is when nobody says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/hedgerow/agent.toml";
/// Largest file that is read, in bytes.
const CONFIG_BYTES_MAX: usize = 64 << 10;
/// Longest interface name the kernel takes, in bytes.
const INTERFACE_BYTES_MAX: usize = 15;

/// The checked configuration. Reading it is the only way to make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) state: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) mesh_port: u16,
    pub(crate) interface: String,
    pub(crate) mtu: u16,
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) hosts_file: Option<PathBuf>,
    pub(crate) trial: Duration,
    pub(crate) verify_every: Duration,
    pub(crate) controllers: Vec<String>,
    pub(crate) management: Vec<Prefix>,
    pub(crate) servers: Vec<IpAddr>,
    pub(crate) resolv_conf: PathBuf,
    pub(crate) spool_events_max: usize,
    origins: Vec<Origin>,
}

/// One effective value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Origin {
    /// Dotted key.
    pub(crate) key: String,
    /// The value as TOML.
    pub(crate) value: String,
    /// A file, or `default`.
    pub(crate) origin: String,
}

#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    /// Format of this file. Must be 1.
    version: u32,
    #[serde(default)]
    paths: RawPaths,
    #[serde(default)]
    mesh: RawMesh,
    #[serde(default)]
    names: RawNames,
    #[serde(default)]
    enforcement: RawEnforcement,
    #[serde(default)]
    lifeline: RawLifeline,
    #[serde(default)]
    events: RawEvents,
}

#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawPaths {
    /// Identity, resources and peers; must survive a reboot. Default: `/var/lib/hedgerow/agent`.
    state: PathBuf,
    /// The control socket. Default: `/run/hedgerow/agent`.
    run: PathBuf,
}

#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawMesh {
    /// UDP port of the mesh. Default: 7117.
    port: u16,
    /// Name of the tunnel interface, at most 15 bytes. Default: `hedgerow0`.
    interface: String,
    /// Largest inner packet, 1280 to 9000 bytes. Default: 1420.
    mtu: u16,
    /// Where peers reach this device, besides its own addresses; for instance a forwarded port.
    endpoints: Vec<SocketAddr>,
}

#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawNames {
    /// Hosts file that gets a managed block with the peers' names; empty for none. Default:
    /// `/etc/hosts`.
    hosts_file: PathBuf,
}

#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawEnforcement {
    /// How long the first enforcement of the underlay is on trial, 10 to 600 seconds: without a
    /// word from the controller it is taken back. Default: 60.
    underlay_trial_seconds: u64,
    /// How often the kernel's table is read back, 5 to 3600 seconds. Default: 30.
    verify_seconds: u64,
}

#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawLifeline {
    /// Controllers, `host:port`, besides those that the site's configuration names.
    controllers: Vec<String>,
    /// Prefixes that may always open TCP connections to this device.
    management: Vec<String>,
    /// Name and time servers that the agent may always ask.
    servers: Vec<IpAddr>,
    /// Where the system keeps its name servers. Default: `/etc/resolv.conf`.
    resolv_conf: PathBuf,
}

#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawEvents {
    /// Events kept while the controller is out of reach, 64 to 65536; when full, the oldest of the
    /// lowest severity goes first. Default: 2048.
    spool_events_max: usize,
}

impl Default for RawPaths {
    fn default() -> Self {
        Self {
            state: "/var/lib/hedgerow/agent".into(),
            run: "/run/hedgerow/agent".into(),
        }
    }
}

impl Default for RawMesh {
    fn default() -> Self {
        Self {
            port: 7117,
            interface: "hedgerow0".into(),
            mtu: 1420,
            endpoints: Vec::new(),
        }
    }
}

impl Default for RawNames {
    fn default() -> Self {
        Self {
            hosts_file: "/etc/hosts".into(),
        }
    }
}

impl Default for RawEnforcement {
    fn default() -> Self {
        Self {
            underlay_trial_seconds: 60,
            verify_seconds: 30,
        }
    }
}

impl Default for RawLifeline {
    fn default() -> Self {
        Self {
            controllers: Vec::new(),
            management: Vec::new(),
            servers: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

impl Default for RawEvents {
    fn default() -> Self {
        Self {
            spool_events_max: 2048,
        }
    }
}

impl Config {
    /// Reads `path`, or the default file when absent; that one may be missing.
    ///
    /// # Errors
    ///
    /// Says which key is wrong and what it takes.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, Failure> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let bytes = disk::read_bounded(file, CONFIG_BYTES_MAX)?;
        let text = match bytes {
            Some(bytes) => String::from_utf8(bytes).map_err(|_e| {
                Failure::operator(
                    format!("{} is not UTF-8", file.display()),
                    "write it as plain text",
                )
            })?,
            None if path.is_none() => "version = 1\n".to_owned(),
            None => {
                return Err(Failure::operator(
                    format!("there is no {}", file.display()),
                    "name an existing file with --config",
                ));
            }
        };
        Self::parse(&text, &file.display().to_string())
    }

    /// Reads the text of a file called `name`.
    ///
    /// # Errors
    ///
    /// Says which key is wrong and what it takes.
    pub(crate) fn parse(text: &str, name: &str) -> Result<Self, Failure> {
        let refuse = |message: String| {
            Failure::operator(
                format!("{name}: {message}"),
                "correct the file; `hedgerow-agent config show --origin` shows what is in force",
            )
        };
        let raw: Raw = toml::from_str(text).map_err(|e| refuse(one_line(&e, text)))?;
        let given: toml::Table = toml::from_str(text).map_err(|e| refuse(one_line(&e, text)))?;
        let origins = origins(&raw, &given, name);
        Self::check(raw, origins).map_err(refuse)
    }

    fn check(raw: Raw, origins: Vec<Origin>) -> Result<Self, String> {
        if raw.version != 1 {
            return Err(format!("version must be 1, not {}", raw.version));
        }
        for (key, path) in [
            ("paths.state", &raw.paths.state),
            ("paths.run", &raw.paths.run),
        ] {
            if !path.is_absolute() {
                return Err(format!("{key} must be absolute, not {}", path.display()));
            }
        }
        let name = &raw.mesh.interface;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
        if name.is_empty() || name.len() > INTERFACE_BYTES_MAX || !name.bytes().all(plain) {
            return Err(format!(
                "mesh.interface must be 1 to 15 letters, digits, -, _ or ., not `{name}`"
            ));
        }
        within("mesh.port", u64::from(raw.mesh.port), 1, 65_535)?;
        within("mesh.mtu", u64::from(raw.mesh.mtu), 1280, 9000)?;
        let trial = raw.enforcement.underlay_trial_seconds;
        within("enforcement.underlay_trial_seconds", trial, 10, 600)?;
        let verify = raw.enforcement.verify_seconds;
        within("enforcement.verify_seconds", verify, 5, 3600)?;
        let spool = u64::try_from(raw.events.spool_events_max).unwrap_or(u64::MAX);
        within("events.spool_events_max", spool, 64, 65_536)?;
        let management = raw.lifeline.management.iter().map(|text| {
            text.parse()
                .map_err(|e| format!("lifeline.management: {e}"))
        });
        for endpoint in &raw.lifeline.controllers {
            check_endpoint(endpoint)?;
        }
        Ok(Self {
            management: management.collect::<Result<_, _>>()?,
            state: raw.paths.state,
            run: raw.paths.run,
            mesh_port: raw.mesh.port,
            interface: raw.mesh.interface,
            mtu: raw.mesh.mtu,
            endpoints: raw.mesh.endpoints,
            hosts_file: Some(raw.names.hosts_file).filter(|p| !p.as_os_str().is_empty()),
            trial: Duration::from_secs(trial),
            verify_every: Duration::from_secs(verify),
            controllers: raw.lifeline.controllers,
            servers: raw.lifeline.servers,
            resolv_conf: raw.lifeline.resolv_conf,
            spool_events_max: raw.events.spool_events_max,
            origins,
        })
    }

    /// Returns every effective value and where it came from.
    pub(crate) fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Returns the control socket's path.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }
}

/// Checks `host:port`.
///
/// # Errors
///
/// Says how to write it.
pub(crate) fn check_endpoint(text: &str) -> Result<(), String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(port)) if port > 0 => Ok(()),
        _ => Err(format!("`{text}` is not a controller; write host:port")),
    }
}

fn within(key: &str, value: u64, min: u64, max: u64) -> Result<(), String> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(format!("{key} must be {min} to {max}, not {value}"))
    }
}

fn one_line(error: &toml::de::Error, text: &str) -> String {
    let line = error
        .span()
        .and_then(|span| text.get(..span.start))
        .map(|before| before.matches('\n').count() + 1);
    let mut out = String::new();
    if let Some(line) = line {
        // Writing to a String does not fail.
        let _written = write!(out, "line {line}: ");
    }
    out + &error.message().replace('\n', " ")
}

fn origins(raw: &Raw, given: &toml::Table, name: &str) -> Vec<Origin> {
    let Ok(effective) = toml::Table::try_from(raw) else {
        return Vec::new();
    };
    let mut out = Vec::new();
    for (table, values) in &effective {
        match values.as_table() {
            Some(values) => {
                let section = given.get(table).and_then(toml::Value::as_table);
                for (key, value) in values {
                    let is_given = section.is_some_and(|s| s.contains_key(key));
                    out.push(origin(format!("{table}.{key}"), value, is_given, name));
                }
            }
            None => out.push(origin(
                table.clone(),
                values,
                given.contains_key(table),
                name,
            )),
        }
    }
    out
}

fn origin(key: String, value: &toml::Value, is_given: bool, name: &str) -> Origin {
    Origin {
        key,
        value: value.to_string(),
        origin: if is_given { name } else { "default" }.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_safe_default_and_an_origin() {
        let config = Config::parse("version = 1\n[mesh]\nport = 7200\n", "agent.toml").unwrap();
        assert_eq!((config.mesh_port, config.mtu), (7200, 1420));
        let origin = |key: &str| {
            let found = config.origins().iter().find(|o| o.key == key);
            found.map(|o| o.origin.as_str())
        };
        assert_eq!(origin("mesh.port"), Some("agent.toml"));
        assert_eq!(origin("mesh.interface"), Some("default"));
    }

    #[test]
    fn wrong_keys_and_values_are_named_with_their_line_or_range() {
        let cases = [
            (
                "version = 1\n[mesh]\nprot = 1\n",
                "line 3: unknown field `prot`",
            ),
            ("version = 2\n", "version must be 1"),
            ("[mesh]\nport = 1\n", "missing field `version`"),
            (
                "version = 1\n[mesh]\nmtu = 100\n",
                "mesh.mtu must be 1280 to 9000",
            ),
            (
                "version = 1\n[mesh]\nport = 0\n",
                "mesh.port must be 1 to 65535",
            ),
            (
                "version = 1\n[paths]\nstate = \"x\"\n",
                "paths.state must be absolute",
            ),
            (
                "version = 1\n[mesh]\ninterface = \"a b\"\n",
                "mesh.interface",
            ),
            (
                "version = 1\n[lifeline]\nmanagement = [\"10.0.0.1/8\"]\n",
                "host bits",
            ),
            (
                "version = 1\n[lifeline]\ncontrollers = [\"central\"]\n",
                "host:port",
            ),
            (
                "version = 1\n[events]\nspool_events_max = 1\n",
                "events.spool_events_max",
            ),
        ];
        for (text, want) in cases {
            let failure = Config::parse(text, "agent.toml").unwrap_err();
            assert!(failure.to_string().contains(want), "{failure}");
            assert_eq!(failure.fault.exit_code(), 1);
        }
    }

    /// The reference page names every key with its default, and no other.
    #[test]
    fn the_reference_page_has_every_key() {
        let config = Config::parse("version = 1\n", "x").unwrap();
        let keys = config.origins().iter().map(|o| o.key.as_str());
        let page = include_str!("../../../docs/reference/agent.toml.md");
        let named = page
            .lines()
            .filter_map(|l| l.strip_prefix("| `")?.split('`').next());
        let set = |keys: &mut dyn Iterator<Item = &str>| {
            keys.map(str::to_owned)
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(set(&mut { named }), set(&mut { keys }));
        for origin in config.origins().iter().filter(|o| o.key != "version") {
            let value = origin.value.trim_matches('"');
            let row = page
                .lines()
                .find(|l| l.starts_with(&format!("| `{}` |", origin.key)));
            let default = row.unwrap().split('|').nth(2).unwrap().trim();
            assert_eq!(default.trim_matches('`'), value, "{}", origin.key);
        }
    }
}
