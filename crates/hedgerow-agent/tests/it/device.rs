//! An enrolled device on disk, and scripts that run in namespaces around it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hedgerow_identity::key::{SoftwareEd25519, SoftwareP256, SoftwareP384};
use hedgerow_identity::statement::sign_ticket;
use hedgerow_identity::trust::{root_set_digest, sign_manifest};
use hedgerow_model::address::{OverlayAddresses, domain_prefix};
use hedgerow_model::id::{DeviceId, DeviceName, Digest, SiteName, TrustDomain};
use hedgerow_model::statement::{Issuer, Manifest, Role, RoleKey, Root, Ticket, X25519Public};
use hedgerow_model::wire;
use minicbor::Encode;
use minicbor::bytes::ByteVec;
use rand_core::{TryCryptoRng, TryRng};

/// 2026-11-01.
const ISSUED_SECS: u64 = 1_793_491_200;
/// How long a script may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// What every script begins with.
const PRELUDE: &str = r#"
set -u
ip link set lo up
agent() { "$AGENT" --config "$D/agent.toml" "$@"; }
eventually() {
    i=0
    until "$@" >/dev/null 2>&1; do
        i=$((i + 1))
        [ $i -lt 600 ] || { echo "never: $*" >&2; exit 99; }
        sleep 0.05
    done
}
"#;

/// Random bytes of the provider.
struct Random;

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        aws_lc_rs::rand::fill(dst).unwrap();
        Ok(())
    }
}

impl TryCryptoRng for Random {}

/// As `identity/current` holds it; see docs/data.md.
#[derive(Encode)]
struct Slot {
    #[cbor(n(0), with = "minicbor::bytes")]
    key: Vec<u8>,
    #[cbor(n(1), with = "minicbor::bytes")]
    introduction: Vec<u8>,
    #[n(2)]
    chain: Vec<ByteVec>,
    #[cbor(n(3), with = "minicbor::bytes")]
    ticket: Vec<u8>,
}

/// What a script ended with.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    /// Returns the one line that says why the program ended.
    pub(crate) fn last_line(&self) -> &str {
        let line = self.err.lines().last().unwrap_or_default();
        let line = line.strip_prefix("hedgerow-agent: ");
        line.unwrap_or_else(|| panic!("no last word: {self:?}"))
    }

    /// Checks the exit code and what the last line says: what is wrong, and how to mend it.
    pub(crate) fn ends(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for words in says {
            assert!(self.last_line().contains(words), "`{words}`: {self:?}");
        }
    }
}

/// A device, in a directory that is gone afterwards.
pub(crate) struct Device {
    pub(crate) dir: PathBuf,
}

impl Drop for Device {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

impl Device {
    /// A device that was never enrolled.
    pub(crate) fn fresh(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("hgt-agent-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&dir));
        fs::create_dir_all(&dir).unwrap();
        let device = Self { dir };
        let path = |name: &str| device.dir.join(name).display().to_string();
        let config = format!(
            "version = 1\n[paths]\nstate = \"{}\"\nrun = \"{}\"\n[mesh]\ninterface = \"hgt0\"\n\
             [names]\nhosts_file = \"\"\n[lifeline]\nresolv_conf = \"/dev/null\"\n",
            path("state"),
            path("run")
        );
        fs::write(device.dir.join("agent.toml"), config).unwrap();
        device
    }

    /// An enrolled device without a policy yet.
    pub(crate) fn enrolled(name: &str) -> Self {
        let device = Self::fresh(name);
        let state = device.dir.join("state");
        fs::create_dir_all(state.join("identity")).unwrap();
        let root = SoftwareP384::generate(&mut Random).unwrap();
        let issuer = SoftwareP256::generate(&mut Random).unwrap();
        let identity = SoftwareP256::generate(&mut Random).unwrap();
        let roots = vec![Root {
            key: root.public(),
            certificate: Vec::new(),
        }];
        let genesis = root_set_digest(&roots);
        let role = |role, seed: u8| RoleKey {
            role,
            key: SoftwareEd25519::from_seed(&[seed; 32]).public(),
        };
        let manifest = Manifest {
            version: 1,
            trust_domain: TrustDomain::new("plant.example").unwrap(),
            previous: None,
            issued_secs: ISSUED_SECS,
            roots,
            threshold: 1,
            issuers: vec![Issuer {
                key: issuer.public(),
                certificate: Vec::new(),
                site: None,
                not_after_secs: 2 * ISSUED_SECS,
            }],
            role_keys: vec![role(Role::Policy, 1), role(Role::Revocation, 2)],
            genesis,
        };
        let manifest = sign_manifest(&manifest, &[&root]).unwrap();
        let introduction = [9; 32];
        let ticket = ticket(&identity, &introduction, &genesis);
        let slot = Slot {
            key: identity.to_pkcs8_der().unwrap().to_vec(),
            introduction: introduction.to_vec(),
            chain: Vec::new(),
            ticket: sign_ticket(&ticket, &issuer).unwrap(),
        };
        let write = |name: &str, bytes: Vec<u8>| fs::write(state.join(name), bytes).unwrap();
        write("identity/current", wire::encode(&slot));
        // A controller that no packet reaches: the namespace has no other interface.
        let controllers = vec!["192.0.2.1:7443".to_owned()];
        write("enrollment", wire::encode(&(genesis, controllers)));
        write("manifests", wire::encode(&vec![ByteVec::from(manifest)]));
        device
    }

    /// Runs a script as root of namespaces of its own. `$AGENT` is the program, `$D` the directory;
    /// whatever it starts or mounts ends with it.
    pub(crate) fn script(&self, text: &str) -> Done {
        let (out, err) = (self.dir.join("out"), self.dir.join("err"));
        let file = |path: &Path| Stdio::from(fs::File::create(path).unwrap());
        let mut child = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
            .args(["--mount-proc", "sh", "-c", &format!("{PRELUDE}{text}")])
            .env("AGENT", env!("CARGO_BIN_EXE_hedgerow-agent"))
            .env("D", &self.dir)
            .env_remove("HEDGEROW_LOG")
            .stdin(Stdio::null())
            .stdout(file(&out))
            .stderr(file(&err))
            .spawn()
            .unwrap();
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() > end {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        Done {
            code: status.and_then(|s| s.code()),
            out: read(&out),
            err: read(&err),
        }
    }

    /// Returns every file of the state directory but the lock, with its content.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(dir: &Path, out: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, out);
                } else if path.file_name().is_some_and(|n| n != "lock") {
                    let bytes = fs::read(&path).unwrap();
                    out.insert(path, bytes);
                }
            }
        }
        let mut out = BTreeMap::new();
        walk(&self.dir.join("state"), &mut out);
        out
    }
}

fn ticket(identity: &SoftwareP256, introduction: &[u8; 32], genesis: &Digest) -> Ticket {
    let base = match domain_prefix(genesis).address() {
        IpAddr::V6(a) => u128::from(a),
        IpAddr::V4(_) => 0,
    };
    let introduction = hedgerow_mesh::IntroductionSecret::from_bytes(*introduction);
    let introduction_key: X25519Public = introduction.public();
    Ticket {
        id: DeviceId([7; 16]),
        name: DeviceName::new("sensor-1").unwrap(),
        site: SiteName::new("s1").unwrap(),
        identity_key: identity.public(),
        introduction_key,
        labels: "role=sensor".parse().unwrap(),
        addresses: OverlayAddresses {
            v6: Ipv6Addr::from(base | 7),
            v4: None,
        },
        epoch: 1,
        not_after_secs: 2 * ISSUED_SECS,
    }
}
