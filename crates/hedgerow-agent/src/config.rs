//! `agent.toml` and the fragments beside it: read, checked, and shown with where each value came from.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hedgerow_linux::disk;
use hedgerow_linux::tunnel::RelayLimits;
use hedgerow_mesh::psk::PostQuantum;
use hedgerow_model::address::Prefix;
use hedgerow_model::config::{self, FILE_BYTES_MAX, FRAGMENTS_MAX, Layer, Merged, Origin};
use serde::Deserialize;

use crate::failure::Failure;

/// Where the file is when nobody says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/hedgerow/agent.toml";
/// Least rate of a relay, in bytes per second: below, not even the mesh's own messages pass.
const RATE_MIN: u64 = 10_000;
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
    pub(crate) relay_listen: Option<SocketAddr>,
    pub(crate) relay_port: Option<u16>,
    pub(crate) relay_limits: RelayLimits,
    pub(crate) consents_to_bench: bool,
    pub(crate) post_quantum: PostQuantum,
    pub(crate) hosts_file: Option<PathBuf>,
    pub(crate) resolver: Option<SocketAddr>,
    pub(crate) trial: Duration,
    pub(crate) verify_every: Duration,
    pub(crate) controllers: Vec<String>,
    pub(crate) management: Vec<Prefix>,
    pub(crate) servers: Vec<IpAddr>,
    pub(crate) resolv_conf: PathBuf,
    pub(crate) spool_events_max: usize,
    pub(crate) textfile: Option<PathBuf>,
    origins: Vec<Origin>,
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
    #[serde(default)]
    metrics: RawMetrics,
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
    /// Where this device, when it is a relay, takes links over TLS from devices whose UDP is blocked: a TCP
    /// address and port; empty for nowhere. Default: `[::]:443`.
    relay_listen: String,
    /// TCP port of relays, which this device connects to while no relay answers over UDP; 0 for never.
    /// Default: 443.
    relay_port: u16,
    /// Most bytes per second that this device, when it is a relay, passes on for one side of a session, at least
    /// 10000, or `unlimited`. Default: 25000000.
    relay_session_bytes_per_second: RawRate,
    /// The same for all sessions together. Default: 125000000.
    relay_bytes_per_second: RawRate,
    /// Whether peers may measure throughput to this device: `allow` or `deny`. Default: `deny`.
    bench: Consent,
    /// What may pass to a peer before both agreed on a post-quantum key: `prefer` lets everything
    /// pass, `strict` nothing but that exchange. Default: `prefer`.
    post_quantum: RawPostQuantum,
}

/// Whether peers may measure throughput.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Consent {
    Allow,
    Deny,
}

/// A rate, or that there is none.
#[derive(Debug, Clone, Copy, Deserialize, serde::Serialize)]
#[serde(untagged)]
enum RawRate {
    BytesPerSecond(u64),
    Unlimited(Unlimited),
}

/// The word for a rate without a limit.
#[derive(Debug, Clone, Copy, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Unlimited {
    Unlimited,
}

/// What may pass before a post-quantum key is agreed.
#[derive(Debug, Clone, Copy, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum RawPostQuantum {
    Prefer,
    Strict,
}

#[derive(Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawNames {
    /// Hosts file that gets a managed block with the peers' names; empty for none. Default:
    /// `/etc/hosts`.
    hosts_file: PathBuf,
    /// Where the resolver answers programs of this machine, a loopback address and port, UDP and TCP;
    /// empty for none. Default: `127.0.0.59:53`.
    resolver: String,
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

#[derive(Debug, Default, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawMetrics {
    /// File that gets the agent's numbers every 15 seconds, for node_exporter's textfile collector; empty
    /// for none.
    textfile: PathBuf,
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
            relay_listen: "[::]:443".into(),
            relay_port: 443,
            relay_session_bytes_per_second: RawRate::BytesPerSecond(25_000_000),
            relay_bytes_per_second: RawRate::BytesPerSecond(125_000_000),
            bench: Consent::Deny,
            post_quantum: RawPostQuantum::Prefer,
        }
    }
}

impl Default for RawNames {
    fn default() -> Self {
        Self {
            hosts_file: "/etc/hosts".into(),
            resolver: "127.0.0.59:53".into(),
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
    /// Reads `path` and its fragments, or the default file when absent; that one may be missing.
    ///
    /// # Errors
    ///
    /// Says which key is wrong, where it stands and what it takes.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, Failure> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let mut layers = Vec::new();
        match read_layer(file)? {
            Some(layer) => layers.push(layer),
            None if path.is_none() => layers.push(Layer {
                name: "default".to_owned(),
                text: "version = 1\n".to_owned(),
            }),
            None => {
                return Err(Failure::operator(
                    format!("there is no {}", file.display()),
                    "name an existing file with --config",
                ));
            }
        }
        for fragment in fragments(&config::fragments_of(file))? {
            layers.extend(read_layer(&fragment)?);
        }
        Self::parse(&layers)
    }

    /// Reads layers, the later over the earlier.
    ///
    /// # Errors
    ///
    /// Says which key is wrong, where it stands and what it takes.
    pub(crate) fn parse(layers: &[Layer]) -> Result<Self, Failure> {
        let refuse = |message: String| {
            Failure::operator(
                message,
                "correct the file; docs/reference/agent.toml.md has every key",
            )
        };
        let Merged { value, origins } = config::merge::<Raw>(layers).map_err(refuse)?;
        let located = Merged { value: (), origins };
        match Self::check(value, located.origins.clone()) {
            Ok(config) => Ok(config),
            Err(message) => Err(refuse(located.locate(&message))),
        }
    }

    fn check(raw: Raw, origins: Vec<Origin>) -> Result<Self, String> {
        if raw.version != 1 {
            return Err(format!("version must be 1, not {}", raw.version));
        }
        for (key, path) in [
            ("paths.state", &raw.paths.state),
            ("paths.run", &raw.paths.run),
            ("metrics.textfile", &raw.metrics.textfile),
        ] {
            if !path.is_absolute() && (key != "metrics.textfile" || !path.as_os_str().is_empty()) {
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
            check_endpoint(endpoint).map_err(|e| format!("lifeline.controllers: {e}"))?;
        }
        Ok(Self {
            management: management.collect::<Result<_, _>>()?,
            state: raw.paths.state,
            run: raw.paths.run,
            mesh_port: raw.mesh.port,
            interface: raw.mesh.interface,
            mtu: raw.mesh.mtu,
            endpoints: raw.mesh.endpoints,
            relay_listen: relay_listen(&raw.mesh.relay_listen)?,
            relay_limits: RelayLimits {
                session: rate(
                    "mesh.relay_session_bytes_per_second",
                    raw.mesh.relay_session_bytes_per_second,
                )?,
                total: rate(
                    "mesh.relay_bytes_per_second",
                    raw.mesh.relay_bytes_per_second,
                )?,
            },
            relay_port: Some(raw.mesh.relay_port).filter(|port| *port > 0),
            consents_to_bench: raw.mesh.bench == Consent::Allow,
            resolver: resolver(&raw.names.resolver)?,
            post_quantum: match raw.mesh.post_quantum {
                RawPostQuantum::Prefer => PostQuantum::Prefer,
                RawPostQuantum::Strict => PostQuantum::Strict,
            },
            hosts_file: Some(raw.names.hosts_file).filter(|p| !p.as_os_str().is_empty()),
            trial: Duration::from_secs(trial),
            verify_every: Duration::from_secs(verify),
            controllers: raw.lifeline.controllers,
            servers: raw.lifeline.servers,
            resolv_conf: raw.lifeline.resolv_conf,
            spool_events_max: raw.events.spool_events_max,
            textfile: Some(raw.metrics.textfile).filter(|p| !p.as_os_str().is_empty()),
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

/// Reads where the resolver answers: nobody but this machine's programs may ask it.
fn resolver(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() && address.port() > 0 => Ok(Some(address)),
        _ => Err(format!(
            "names.resolver must be a loopback address and a port like 127.0.0.59:53, or empty, not `{text}`"
        )),
    }
}

/// Reads a rate; none is without a limit.
fn rate(key: &str, raw: RawRate) -> Result<Option<u64>, String> {
    match raw {
        RawRate::Unlimited(Unlimited::Unlimited) => Ok(None),
        RawRate::BytesPerSecond(rate) if rate >= RATE_MIN => Ok(Some(rate)),
        RawRate::BytesPerSecond(rate) => Err(format!(
            "{key} must be at least {RATE_MIN}, or `unlimited`, not {rate}"
        )),
    }
}

/// Reads where a relay takes links.
fn relay_listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() > 0 => Ok(Some(address)),
        _ => Err(format!(
            "mesh.relay_listen must be an address and a port like [::]:443, or empty, not `{text}`"
        )),
    }
}

fn within(key: &str, value: u64, min: u64, max: u64) -> Result<(), String> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(format!("{key} must be {min} to {max}, not {value}"))
    }
}

/// Returns the fragments in a folder, in the order of their names; a missing folder has none.
fn fragments(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |source| disk::DiskError {
        action: "read",
        path: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e).into()),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|n| n.to_str());
        if name.is_some_and(config::is_fragment) {
            found.push(path);
        }
        if found.len() > FRAGMENTS_MAX {
            return Err(Failure::operator(
                format!("{} has more than {FRAGMENTS_MAX} files", folder.display()),
                "put what belongs together into one file",
            ));
        }
    }
    found.sort();
    Ok(found)
}

fn read_layer(file: &Path) -> Result<Option<Layer>, Failure> {
    let Some(bytes) = disk::read_bounded(file, FILE_BYTES_MAX)? else {
        return Ok(None);
    };
    let name = file.display().to_string();
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(Layer { name, text })),
        Err(_) => Err(Failure::operator(
            format!("{name} is not UTF-8"),
            "write it as plain text",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Failure> {
        Config::parse(&[Layer {
            name: "agent.toml".to_owned(),
            text: text.to_owned(),
        }])
    }

    #[test]
    fn every_value_has_a_safe_default_and_an_origin() {
        let config = parse("version = 1\n[mesh]\nport = 7200\n").unwrap();
        assert_eq!((config.mesh_port, config.mtu), (7200, 1420));
        let origin = |key: &str| {
            let found = config.origins().iter().find(|o| o.key == key);
            found.map(|o| o.origin.as_str())
        };
        assert_eq!(origin("mesh.port"), Some("agent.toml:3"));
        assert_eq!(origin("mesh.interface"), Some("default"));
    }

    #[test]
    fn a_relay_without_limits_has_to_be_asked_for() {
        let limits = |text: &str| parse(&format!("version = 1\n{text}")).unwrap().relay_limits;
        assert_eq!(limits(""), RelayLimits::default());
        let words = "[mesh]\nrelay_bytes_per_second = \"unlimited\"\n\
                     relay_session_bytes_per_second = 20000\n";
        let (session, total) = (Some(20_000), None);
        assert_eq!(limits(words), RelayLimits { session, total });
        assert!(parse("version = 1\n[mesh]\nrelay_bytes_per_second = \"much\"\n").is_err());
    }

    #[test]
    fn wrong_keys_and_values_are_named_with_their_line_or_range() {
        let cases = [
            (
                "version = 1\n[mesh]\nprot = 1\n",
                "agent.toml:3: unknown field `prot`, expected one of `port`",
            ),
            ("version = 2\n", "agent.toml:1: version must be 1"),
            ("[mesh]\nport = 1\n", "missing field `version`"),
            (
                "version = 1\n[mesh]\nmtu = 100\n",
                "agent.toml:3: mesh.mtu must be 1280 to 9000",
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
                "agent.toml:3: lifeline.controllers: `central` is not a controller; write host:port",
            ),
            (
                "version = 1\n[events]\nspool_events_max = 1\n",
                "events.spool_events_max",
            ),
            (
                "version = 1\n[mesh]\nrelay_bytes_per_second = 0\n",
                "mesh.relay_bytes_per_second must be at least 10000, or `unlimited`, not 0",
            ),
            (
                "version = 1\n[mesh]\nrelay_listen = \"443\"\n",
                "mesh.relay_listen must be an address and a port",
            ),
            (
                "version = 1\n[names]\nresolver = \"0.0.0.0:53\"\n",
                "names.resolver must be a loopback address and a port",
            ),
        ];
        for (text, want) in cases {
            let failure = parse(text).unwrap_err();
            assert!(failure.to_string().contains(want), "{failure}");
            assert_eq!(failure.fault.exit_code(), 1);
        }
    }

    /// The reference page names every key with its default, and no other.
    #[test]
    fn the_reference_page_has_every_key() {
        let config = parse("version = 1\n").unwrap();
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
            assert_eq!(default.trim_matches(['`', '"']), value, "{}", origin.key);
        }
    }
}
