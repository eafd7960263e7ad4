//! `control.toml` and the fragments beside it: raw text in, checked configuration out.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hedgerow_identity::certificate::DEVICE_LEAF_LIFE_MAX;
use hedgerow_model::address::Prefix;
use hedgerow_model::config::{self, FRAGMENTS_MAX, Layer, Merged, Origin};
use hedgerow_model::id::TrustDomain;
use serde::{Deserialize, Serialize};

use crate::store::addresses::V4Pool;
use crate::{disk, issue};

/// Where `init` keeps everything unless told otherwise.
pub(crate) const DIR_DEFAULT: &str = "/var/lib/hedgerow/control";
/// The configuration that `run` reads unless told otherwise.
pub(crate) const CONFIG_DEFAULT: &str = "/etc/hedgerow/control.toml";

/// Longest life of a device's certificate, in whole hours: devices refuse what lives longer than
/// 31 days, and a certificate begins a little in the past.
const DEVICE_HOURS_MAX: u64 = (DEVICE_LEAF_LIFE_MAX.as_secs() - issue::BACKDATE.as_secs()) / 3600;

/// The file as written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawConfig {
    /// 1.
    pub(crate) version: u32,
    /// The state directory, made by `init`.
    pub(crate) dir: PathBuf,
    /// Where to listen.
    pub(crate) listen: SocketAddr,
    /// How agents and operators reach this controller, `host:port`, in order of preference.
    pub(crate) endpoints: Vec<String>,
    /// Names in SPIFFE ids.
    pub(crate) trust_domain: String,
    /// Bounds.
    #[serde(default)]
    pub(crate) limits: RawLimits,
    /// Certificates.
    #[serde(default)]
    pub(crate) certificates: RawCertificates,
    /// What devices learn of their surroundings.
    #[serde(default)]
    pub(crate) fleet: RawFleet,
}

/// `[limits]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLimits {
    /// Agents connected at once; further ones are told to come back.
    pub(crate) sessions_max: usize,
    /// TLS handshakes at once.
    pub(crate) handshakes_max: usize,
    /// Connections that wait for a handshake; further ones are closed.
    pub(crate) waiting_max: usize,
    /// Certificates signed at once.
    pub(crate) signings_max: usize,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            sessions_max: 100_000,
            handshakes_max: 64,
            waiting_max: 4096,
            signings_max: 16,
        }
    }
}

/// `[certificates]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCertificates {
    /// Life of a device's certificate and ticket, in hours.
    pub(crate) device_hours: u64,
    /// Life of the controller's own certificate, in days.
    pub(crate) controller_days: u64,
    /// Life of an operator's certificate, in days.
    pub(crate) operator_days: u64,
    /// How long an expired ticket works while no issuer can be reached, in days.
    pub(crate) grace_days: u64,
}

impl Default for RawCertificates {
    fn default() -> Self {
        Self {
            device_hours: 7 * 24,
            controller_days: 30,
            operator_days: 90,
            grace_days: 30,
        }
    }
}

/// `[fleet]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawFleet {
    /// Overlay IPv4 addresses come from here.
    pub(crate) pool_v4: String,
    /// Suffix of device names.
    pub(crate) suffix: String,
    /// Prefixes that devices are managed from, kept open when the underlay is enforced.
    pub(crate) management: Vec<String>,
}

impl Default for RawFleet {
    fn default() -> Self {
        Self {
            pool_v4: "100.80.0.0/12".to_owned(),
            suffix: "hedgerow.internal".to_owned(),
            management: Vec::new(),
        }
    }
}

/// The configuration, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The state directory.
    pub(crate) dir: PathBuf,
    /// Where to listen.
    pub(crate) listen: SocketAddr,
    /// How agents and operators reach this controller.
    pub(crate) endpoints: Vec<String>,
    /// Names in SPIFFE ids.
    pub(crate) trust_domain: TrustDomain,
    /// Bounds.
    pub(crate) limits: RawLimits,
    /// Certificates.
    pub(crate) certificates: RawCertificates,
    /// Overlay IPv4 pool.
    pub(crate) pool_v4: Prefix,
    /// The same, in blocks.
    pub(crate) blocks: V4Pool,
    /// Suffix of device names.
    pub(crate) suffix: String,
    /// Prefixes that devices are managed from.
    pub(crate) management: Vec<Prefix>,
    /// Every effective value and where it came from.
    pub(crate) origins: Vec<Origin>,
}

impl Config {
    /// Reads and checks a file with its fragments.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong and where.
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let base =
            read_layer(path).map_err(|e| format!("{e}; `hedgerow-control init` writes one"))?;
        let mut layers = vec![base];
        for fragment in fragments(&config::fragments_of(path))? {
            layers.push(read_layer(&fragment)?);
        }
        Self::parse(&layers)
    }

    /// Reads and checks layers, the later over the earlier.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong and where.
    pub(crate) fn parse(layers: &[Layer]) -> Result<Self, String> {
        let Merged { value, origins } = config::merge::<RawConfig>(layers)?;
        let located = Merged { value: (), origins };
        let mut config = Self::check(value).map_err(|e| located.locate(&e))?;
        config.origins = located.origins;
        Ok(config)
    }

    /// Checks what was read.
    ///
    /// # Errors
    ///
    /// The field and the rule it breaks.
    pub(crate) fn check(raw: RawConfig) -> Result<Self, String> {
        if raw.version != 1 {
            return Err(format!("version = {}: this program reads 1", raw.version));
        }
        if raw.endpoints.is_empty() {
            return Err("endpoints: name at least one host:port".to_owned());
        }
        for endpoint in &raw.endpoints {
            split_endpoint(endpoint).map_err(|e| format!("endpoints: {e}"))?;
        }
        let trust_domain =
            TrustDomain::new(&raw.trust_domain).map_err(|e| format!("trust_domain: {e}"))?;
        let pool_v4: Prefix = raw
            .fleet
            .pool_v4
            .parse()
            .map_err(|e| format!("fleet.pool_v4: {e}"))?;
        let blocks = V4Pool::new(&pool_v4)
            .ok_or("fleet.pool_v4: it takes an IPv4 prefix of /22 or shorter")?;
        TrustDomain::new(&raw.fleet.suffix).map_err(|e| format!("fleet.suffix: {e}"))?;
        let management = raw
            .fleet
            .management
            .iter()
            .map(|p| p.parse().map_err(|e| format!("fleet.management: {e}")))
            .collect::<Result<_, _>>()?;
        let c = &raw.certificates;
        if !(1..=DEVICE_HOURS_MAX).contains(&c.device_hours) {
            return Err(format!(
                "certificates.device_hours: it takes 1 to {DEVICE_HOURS_MAX}"
            ));
        }
        if c.grace_days > 365 {
            return Err("certificates.grace_days: it takes 0 to 365".to_owned());
        }
        let l = &raw.limits;
        for (key, is_zero) in [
            ("certificates.controller_days", c.controller_days == 0),
            ("certificates.operator_days", c.operator_days == 0),
            ("limits.sessions_max", l.sessions_max == 0),
            ("limits.handshakes_max", l.handshakes_max == 0),
            ("limits.waiting_max", l.waiting_max == 0),
            ("limits.signings_max", l.signings_max == 0),
        ] {
            if is_zero {
                return Err(format!("{key}: it takes at least 1"));
            }
        }
        Ok(Self {
            dir: raw.dir,
            listen: raw.listen,
            endpoints: raw.endpoints,
            trust_domain,
            limits: raw.limits,
            certificates: raw.certificates,
            pool_v4,
            blocks,
            suffix: raw.fleet.suffix,
            management,
            origins: Vec::new(),
        })
    }

    /// Returns how long an expired ticket may still work, in seconds.
    pub(crate) fn grace_secs(&self) -> u64 {
        self.certificates.grace_days * 86_400
    }

    /// Returns the longest life of a certificate that devices judge, in seconds.
    pub(crate) fn longest_secs(&self) -> u64 {
        self.device_secs()
            .max(self.certificates.controller_days * 86_400)
    }

    /// Returns how long a device's certificate lives, in seconds.
    pub(crate) fn device_secs(&self) -> u64 {
        self.certificates.device_hours * 3600
    }
}

/// Returns the fragments in a folder, in the order of their names; a missing folder has none.
fn fragments(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |e: std::io::Error| format!("cannot read {}: {e}", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|n| n.to_str());
        if name.is_some_and(config::is_fragment) {
            found.push(path);
        }
        if found.len() > FRAGMENTS_MAX {
            return Err(format!(
                "{} has more than {FRAGMENTS_MAX} files: put what belongs together into one",
                folder.display()
            ));
        }
    }
    found.sort();
    Ok(found)
}

fn read_layer(file: &Path) -> Result<Layer, String> {
    let text = disk::read_text(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    let name = file.display().to_string();
    Ok(Layer { name, text })
}

/// Splits `host:port` or `[v6]:port`.
///
/// # Errors
///
/// When either part is missing.
pub(crate) fn split_endpoint(endpoint: &str) -> Result<(String, u16), String> {
    let bad = || format!("endpoint `{endpoint}`: write host:port, e.g. control.example:7443");
    let (host, port) = endpoint.rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().map_err(|_e| bad())?;
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    if host.is_empty() || port == 0 {
        return Err(bad());
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const GOOD: &str = "version = 1\ndir = \"/x\"\nlisten = \"0.0.0.0:7443\"\n\
        endpoints = [\"c.example:7443\"]\ntrust_domain = \"plant.example\"\n";

    fn load(text: &str) -> Result<Config, String> {
        Config::parse(&[Layer {
            name: "control.toml".to_owned(),
            text: text.to_owned(),
        }])
    }

    #[test]
    fn fragments_are_laid_over_the_file_in_the_order_of_their_names() {
        let dir = std::env::temp_dir().join(format!("hedgerow-fragments-{}", std::process::id()));
        let folder = dir.join("control.conf.d");
        fs::create_dir_all(&folder).unwrap();
        let file = dir.join("control.toml");
        fs::write(&file, GOOD).unwrap();
        let fragment = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        fragment("20-b.toml", "[limits]\nwaiting_max = 20\n");
        fragment(
            "10-a.toml",
            "[limits]\nwaiting_max = 10\nsignings_max = 10\n",
        );
        fragment("30-c.toml.old", "nonsense");
        let config = Config::load(&file).unwrap();
        assert_eq!(config.limits.waiting_max, 20);
        assert_eq!(config.limits.signings_max, 10);
        let origin = |key: &str| {
            let found = config.origins.iter().find(|o| o.key == key).unwrap();
            found.origin.clone()
        };
        assert!(origin("limits.waiting_max").ends_with("control.conf.d/20-b.toml:2"));
        assert!(origin("listen").ends_with("control.toml:3"));
        assert_eq!(origin("fleet.suffix"), "default");
        fragment("40-d.toml", "\n[limits]\nwaiting_max = 0\n");
        let error = Config::load(&file).unwrap_err();
        let want = "40-d.toml:3: limits.waiting_max: it takes at least 1";
        assert!(error.ends_with(want), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn unknown_keys_and_values_out_of_range_are_errors() {
        assert!(load(GOOD).is_ok());
        for bad in [
            "colour = 1\n",
            "[limits]\nsessions_max = 0\n",
            "[fleet]\npool_v4 = \"10.0.0.0/24\"\n",
            "[certificates]\ngrace_days = 400\n",
            "[certificates]\ndevice_hours = 0\n",
            "[certificates]\ndevice_hours = 744\n",
        ] {
            assert!(load(&format!("{GOOD}{bad}")).is_err(), "{bad}");
        }
        assert!(load(&format!("{GOOD}[certificates]\ndevice_hours = 743\n")).is_ok());
        assert!(load(&GOOD.replace("version = 1", "version = 2")).is_err());
    }

    /// The reference page names every key, and no other.
    #[test]
    fn the_reference_page_has_every_key() {
        let raw: RawConfig = toml::from_str(GOOD).unwrap();
        let toml::Value::Table(all) = toml::Value::try_from(&raw).unwrap() else {
            panic!("a configuration is a table");
        };
        let mut keys = BTreeSet::new();
        for (key, value) in &all {
            if let toml::Value::Table(part) = value {
                keys.extend(part.keys().map(|k| format!("{key}.{k}")));
            } else {
                keys.insert(key.clone());
            }
        }
        let page = include_str!("../../../docs/reference/control.toml.md");
        let named = page
            .lines()
            .filter_map(|l| l.strip_prefix("| `")?.split('`').next());
        assert_eq!(named.map(str::to_owned).collect::<BTreeSet<_>>(), keys);
        assert!(page.contains(&format!("1 to {DEVICE_HOURS_MAX} hours")));
        assert!(page.contains(&format!("`{}`", crate::cli::LOG_FILTER)));
    }

    #[test]
    fn endpoints_have_host_and_port() {
        assert_eq!(
            split_endpoint("[fd00::1]:7443").unwrap(),
            ("fd00::1".to_owned(), 7443)
        );
        for bad in ["host", "host:", ":1", "host:0"] {
            assert!(split_endpoint(bad).is_err(), "{bad}");
        }
    }
}
