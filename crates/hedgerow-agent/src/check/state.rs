//! The state directory: there, ours, writable.

use std::os::unix::fs::PermissionsExt as _;

use hedgerow_linux::disk::{self, Access};

use super::Finding;
use crate::config::Config;

/// How much is written to see whether the disk takes it, in bytes.
const PROBE_BYTES: usize = 4096;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    const NAME: &str = "state_directory";
    let dir = &config.state;
    let Ok(metadata) = std::fs::metadata(dir) else {
        return vec![Finding::warning(
            NAME,
            format!("there is no {}", dir.display()),
            "`hedgerow-agent enroll` makes it",
        )];
    };
    let mut findings = Vec::new();
    if metadata.permissions().mode() & 0o077 != 0 {
        findings.push(Finding::error(
            NAME,
            format!("others can look into {}", dir.display()),
            format!("chmod 700 {}", dir.display()),
        ));
    }
    let probe = dir.join("check");
    // A full disk may still take an empty file.
    match disk::write_atomic(&probe, &[0; PROBE_BYTES], Access::Private)
        .and_then(|()| disk::remove(&probe))
    {
        Ok(()) => findings.push(Finding::ok(NAME, format!("{} takes writes", dir.display()))),
        Err(error) => {
            let failure = crate::failure::Failure::from(error);
            findings.push(Finding::error(NAME, failure.message, failure.remedy));
        }
    }
    findings
}
