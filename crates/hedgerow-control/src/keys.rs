//! Where the controller's keys rest: one directory, for the owner alone.

use std::io;
use std::path::{Path, PathBuf};

use hedgerow_identity::key::SoftwareEd25519;
use hedgerow_identity::trust::Trust;
use hedgerow_model::Wall;
use hedgerow_model::statement::{Issuer, Role};

use crate::disk;
use crate::issue::{Authority, IssueError};
use crate::root_file::{pem, unpem_all};

/// The state directory and what lies where in it.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Takes the state directory.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
        }
    }

    /// Returns the directory itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the database file.
    pub(crate) fn store(&self) -> PathBuf {
        self.dir.join("store").join("hedgerow.db")
    }

    /// Returns the configuration that `init` wrote.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("control.toml")
    }

    /// Returns the encrypted root key, to be moved offline.
    pub(crate) fn root_key(&self) -> PathBuf {
        self.dir.join("root").join("root.pem")
    }

    /// Returns a file of the keys' directory.
    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.dir.join("keys").join(name)
    }

    /// Returns a file of the operator's bundle.
    pub(crate) fn operator(&self, name: &str) -> PathBuf {
        self.dir.join("operator").join(name)
    }

    /// Creates the directories.
    pub(crate) fn create(&self) -> io::Result<()> {
        for name in ["root", "keys", "operator", "store"] {
            disk::create_dir(&self.dir.join(name))?;
        }
        Ok(())
    }
}

/// Returns the file name of a role's key.
pub(crate) fn role_file(role: Role) -> &'static str {
    match role {
        Role::Policy => "policy.pem",
        Role::Revocation => "revocation.pem",
        Role::Update => "update.pem",
        Role::Checkpoint => "checkpoint.pem",
    }
}

/// Why the keys could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's account.
        source: io::Error,
    },
    /// A key does not fit the trust manifest.
    #[error("{path} is not a key of the trust manifest in force")]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// A file holds no key that can be used.
    #[error("cannot use {path}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        source: IssueError,
    },
}

fn text(path: PathBuf) -> Result<String, KeysError> {
    disk::read_text(&path).map_err(|source| KeysError::Read { path, source })
}

/// Orders issuers by preference: first those whose certificate still covers `cover_secs` from now,
/// the one that ends first before the others; then the rest, the one that ends last first.
///
/// So a new issuer only waits at first. Every device has learnt of it long before the first
/// certificate or ticket of its making, and peers that hold an older manifest lose nobody.
fn by_preference(issuers: &mut [&Issuer], now: Wall, cover_secs: u64) {
    let needed = now.secs().saturating_add(cover_secs);
    issuers.sort_by_key(|i| {
        let end = i.not_after_secs;
        if end >= needed {
            (0, end)
        } else {
            (1, u64::MAX - end)
        }
    });
}

/// Loads what signs from day to day, and sees that the manifest in force knows it. Of several
/// issuing keys in the directory the oldest is used that covers the longest certificate made now.
pub(crate) fn load_authority(
    layout: &Layout,
    trust: &Trust,
    now: Wall,
    cover_secs: u64,
) -> Result<Authority, KeysError> {
    let manifest = trust.manifest();
    let mut issuers: Vec<_> = manifest
        .issuers
        .iter()
        .filter(|i| i.site.is_none())
        .collect();
    by_preference(&mut issuers, now, cover_secs);
    let mut last = KeysError::Foreign {
        path: layout.key("issuer-*.pem"),
    };
    for issuer in issuers {
        let id = hedgerow_identity::key::PublicKey::P256(issuer.key).id();
        let pem = match text(layout.key(&issuer_file(id.0))) {
            Ok(pem) => pem,
            Err(e) => {
                last = e;
                continue;
            }
        };
        return Authority::new(
            &pem,
            &issuer.certificate,
            issuer.not_after_secs,
            role_key(layout, Role::Policy)?,
            role_key(layout, Role::Revocation)?,
        )
        .map_err(|source| KeysError::Damaged {
            path: layout.key(&issuer_file(id.0)),
            source,
        });
    }
    Err(last)
}

fn role_key(layout: &Layout, role: Role) -> Result<SoftwareEd25519, KeysError> {
    let path = layout.key(role_file(role));
    SoftwareEd25519::from_pkcs8_pem(&text(path.clone())?).map_err(|error| KeysError::Damaged {
        path,
        source: error.into(),
    })
}

/// Returns the file name of an issuing key.
pub(crate) fn issuer_file(id: [u8; 8]) -> String {
    let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
    format!("issuer-{hex}.pem")
}

/// Writes a certificate chain as PEM.
pub(crate) fn chain_pem(chain: &[Vec<u8>]) -> String {
    chain.iter().map(|der| pem("CERTIFICATE", der)).collect()
}

/// Reads a certificate chain from PEM.
pub(crate) fn chain_from_pem(text: &str) -> Vec<Vec<u8>> {
    unpem_all("CERTIFICATE", text)
}

#[cfg(test)]
mod tests {
    use hedgerow_model::statement::P256Public;

    use super::*;

    const DAY: u64 = 86_400;

    #[test]
    fn a_new_issuer_waits_until_the_old_one_no_longer_covers_a_certificate() {
        let issuer = |days: u64| Issuer {
            key: P256Public([2; 33]),
            certificate: Vec::new(),
            site: None,
            not_after_secs: days * DAY,
        };
        let (old, new) = (issuer(365), issuer(700));
        let first = |day: u64| {
            let mut order = [&new, &old];
            by_preference(&mut order, Wall::from_secs(day * DAY), 30 * DAY);
            order.map(|i| i.not_after_secs / DAY)
        };
        assert_eq!(first(100), [365, 700]);
        assert_eq!(first(335), [365, 700]);
        assert_eq!(first(336), [700, 365]);
        assert_eq!(first(690), [700, 365]);
    }
}
