//! `cli.toml`: which controller, and who we are to it.

use std::fs;
use std::path::{Path, PathBuf};

use hedgerow_model::Fault;
use serde::Deserialize;

use crate::error::CliError;
use crate::shell::System;

/// Where the controller's own machine keeps the operator's files.
const CONTROLLERS_OWN: &str = "/var/lib/hedgerow/control/operator/cli.toml";
/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The configuration, with every path made absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The file it came from.
    pub(crate) file: PathBuf,
    /// The controller, e.g. `https://control.plant.example:7443`.
    pub(crate) url: String,
    /// The operator's certificate chain, PEM.
    pub(crate) certificate: PathBuf,
    /// Its private key, PEM.
    pub(crate) key: PathBuf,
    /// The roots that the controller's certificate must lead to, PEM.
    pub(crate) root: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    /// The format of the file; 1.
    version: Option<u32>,
    url: String,
    certificate: PathBuf,
    /// The same file as `certificate` when absent.
    key: Option<PathBuf>,
    root: PathBuf,
}

/// Finds and reads the configuration: the file given, else the user's, else the controller's own.
///
/// # Errors
///
/// [`CliError`] that names the files tried and what to write into one.
pub(crate) fn find(given: Option<&Path>) -> Result<Config, CliError> {
    if let Some(file) = given {
        return read(file);
    }
    let own = System::home().map(|home| home.join(".config/hedgerow/cli.toml"));
    let candidates: Vec<PathBuf> = own.into_iter().chain([CONTROLLERS_OWN.into()]).collect();
    match candidates.iter().find(|file| file.exists()) {
        Some(file) => read(file),
        None => Err(none_found(&candidates)),
    }
}

fn none_found(candidates: &[PathBuf]) -> CliError {
    let tried: Vec<String> = candidates
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    CliError::new(
        Fault::Operator,
        "not_configured",
        format!("no configuration in {}", tried.join(" or ")),
        "copy the folder `operator` that `hedgerow-control init` made on the controller to \
         ~/.config/hedgerow and set the paths in its cli.toml, or run this on the controller as \
         root, or name the file with --config",
    )
}

/// Reads one file.
fn read(file: &Path) -> Result<Config, CliError> {
    let text = bytes(file)?;
    let text = String::from_utf8_lossy(&text);
    let wrong = |message: String| {
        CliError::new(
            Fault::Operator,
            "configuration_invalid",
            format!("{}: {message}", file.display()),
            "it takes url, certificate, root and optionally key; see docs/reference/cli.md",
        )
    };
    let raw: RawConfig = toml::from_str(&text).map_err(|e| wrong(e.message().to_owned()))?;
    if raw.version.is_some_and(|version| version != 1) {
        return Err(wrong("this tool reads version 1".to_owned()));
    }
    if !raw.url.starts_with("https://") {
        return Err(wrong(format!(
            "url must begin with https://, not `{}`",
            raw.url
        )));
    }
    let directory = file.parent().unwrap_or(Path::new("."));
    let at = |path: &Path| directory.join(path);
    Ok(Config {
        file: file.to_owned(),
        url: raw.url.trim_end_matches('/').to_owned(),
        key: at(raw.key.as_deref().unwrap_or(&raw.certificate)),
        certificate: at(&raw.certificate),
        root: at(&raw.root),
    })
}

/// Reads a small file.
///
/// # Errors
///
/// [`CliError`] that names the file.
pub(crate) fn bytes(file: &Path) -> Result<Vec<u8>, CliError> {
    let failed = |reason: String, remedy: &str| {
        CliError::new(
            Fault::Operator,
            "file_unreadable",
            format!("cannot read {}: {reason}", file.display()),
            remedy,
        )
    };
    let size = fs::metadata(file)
        .map_err(|e| failed(e.to_string(), "check path and owner"))?
        .len();
    if size > FILE_BYTES_MAX {
        return Err(failed(
            format!("{size} bytes are too many"),
            "it takes at most 1 MiB",
        ));
    }
    fs::read(file).map_err(|e| failed(e.to_string(), "check path and owner"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_file_and_unknown_keys_are_errors() {
        let directory = std::env::temp_dir().join(format!("hgt-cli-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("cli.toml");
        fs::write(
            &file,
            "url = \"https://c.example:7443/\"\ncertificate = \"operator.pem\"\nroot = \"/r.pem\"\n",
        )
        .unwrap();
        let config = find(Some(&file)).unwrap();
        assert_eq!(config.url, "https://c.example:7443");
        assert_eq!(config.key, directory.join("operator.pem"));
        assert_eq!(config.root, PathBuf::from("/r.pem"));
        for wrong in [
            "colour = 1",
            "url = \"http://c\"\ncertificate = \"a\"\nroot = \"b\"",
        ] {
            fs::write(&file, wrong).unwrap();
            assert_eq!(find(Some(&file)).unwrap_err().code, "configuration_invalid");
        }
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(find(Some(&file)).unwrap_err().code, "file_unreadable");
    }
}
