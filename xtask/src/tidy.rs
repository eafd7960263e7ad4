//! What neither the compiler nor clippy checks. Each finding says where, what and what to do.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::step;

/// Longest source file, in lines.
const FILE_LINES_MAX: usize = 800;

/// Who may depend on whom: everything of ours that a crate may name in its manifest.
const EDGES: &[(&str, &[&str])] = &[
    ("hedgerow-model", &[]),
    ("hedgerow-identity", &["hedgerow-model"]),
    ("hedgerow-policy", &["hedgerow-model", "hedgerow-identity"]),
    ("hedgerow-mesh", &["hedgerow-model", "hedgerow-identity"]),
    ("hedgerow-sync", &["hedgerow-model", "hedgerow-identity"]),
    ("hedgerow-linux", &["hedgerow-model"]),
    (
        "hedgerow-agent",
        &[
            "hedgerow-model",
            "hedgerow-identity",
            "hedgerow-policy",
            "hedgerow-mesh",
            "hedgerow-sync",
            "hedgerow-linux",
        ],
    ),
    (
        "hedgerow-control",
        &[
            "hedgerow-model",
            "hedgerow-identity",
            "hedgerow-policy",
            "hedgerow-sync",
        ],
    ),
    ("hedgerow-cli", &["hedgerow-model"]),
    (
        "hedgerow-lab",
        &[
            "hedgerow-model",
            "hedgerow-identity",
            "hedgerow-policy",
            "hedgerow-mesh",
            "hedgerow-sync",
            "hedgerow-linux",
        ],
    ),
    ("xtask", &["hedgerow-model"]),
];

/// Crates that decide: no I/O, no async.
const NOUNS: &[&str] = &[
    "hedgerow-model",
    "hedgerow-identity",
    "hedgerow-policy",
    "hedgerow-mesh",
    "hedgerow-sync",
];

/// What nouns never depend on, beside what [`NEVER`] says of everyone.
const NEVER_IN_NOUNS: &[&str] = &[
    "tokio",
    "rustls",
    "rustix",
    "axum",
    "hyper",
    "sqlx",
    "ureq",
    "clap",
    "tracing",
    "serde_json",
];

/// Dependencies that a crate never has, with the reason.
const NEVER: &[(&str, &str, &str)] = &[
    ("hedgerow-agent", "sqlx", "an agent has no database"),
    (
        "hedgerow-agent",
        "axum",
        "nothing listens on a device but the mesh",
    ),
    (
        "hedgerow-control",
        "hedgerow-linux",
        "the controller runs unprivileged",
    ),
    (
        "hedgerow-cli",
        "tokio",
        "the tool asks one question at a time",
    ),
];

/// Names that say nothing, in declarations of ours.
const EMPTY_NAMES: &[&str] = &[
    "Manager", "Helper", "Helpers", "Util", "Utils", "Data", "Info", "Handler",
];

/// Words that do not stand in code or documents. Each is spelt in two halves, so that this list does
/// not find itself.
const WORDS: &[(&str, &str, &str)] = &[
    (
        "TO",
        "DO",
        "finish it, or write it into the list of what is missing",
    ),
    ("FIX", "ME", "fix it"),
    ("XX", "X", "say what is meant"),
    ("/wo", "rk/", "a path of one machine"),
];

/// Words that do not stand in code; documents may have to name them.
const CODE_WORDS: &[(&str, &str, &str)] = &[
    ("block", "chain", "it is a transparency log"),
    ("tamper-", "proof", "say tamper-evident"),
    ("#[ig", "nore", "nothing passes by not running"),
    ("military-", "grade", "say which algorithm"),
];

/// Returns every finding, sorted.
///
/// # Errors
///
/// When a file or cargo's metadata cannot be read.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    manifests(root, &mut found)?;
    for path in files(root)? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let name = path
            .strip_prefix(root)
            .unwrap_or(&path)
            .display()
            .to_string();
        words(&name, &text, WORDS, &mut found);
        match path.extension().and_then(|e| e.to_str()) {
            Some("rs") => {
                words(&name, &text, CODE_WORDS, &mut found);
                source(&name, &text, &mut found);
            }
            Some("md") => links(&path, &name, &text, &mut found),
            Some(_) | None => {}
        }
    }
    decisions(root, &mut found)?;
    found.sort();
    Ok(found)
}

/// Files that git knows or would add: what is ignored is nobody's text.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let listed = step::output(&[
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
        "*.md",
        "*.toml",
        "*.yaml",
        "*.service",
        "*.sql",
        "*.cddl",
    ])?;
    let paths = listed.lines().map(|line| root.join(line));
    Ok(paths.filter(|path| path.is_file()).collect())
}

fn manifests(root: &Path, found: &mut Vec<String>) -> Result<()> {
    let text = step::output(&[
        "cargo",
        "metadata",
        "--format-version=1",
        "--no-deps",
        "--offline",
    ])?;
    let metadata: Value = serde_json::from_str(&text)?;
    let packages = metadata
        .get("packages")
        .and_then(Value::as_array)
        .context("no packages")?;
    let mut seen = BTreeMap::new();
    for package in packages {
        let name = package
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let manifest = package
            .get("manifest_path")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let text = fs::read_to_string(manifest).with_context(|| manifest.to_owned())?;
        if !text.contains("[lints]\nworkspace = true") {
            found.push(format!(
                "{name}: add `[lints] workspace = true` to its manifest"
            ));
        }
        let dependencies = package.get("dependencies").and_then(Value::as_array);
        edges(
            name,
            dependencies.map(Vec::as_slice).unwrap_or_default(),
            found,
        );
        let folder = Path::new(manifest).parent().unwrap_or(root).to_owned();
        if folder.file_name().is_some_and(|f| f != name) {
            found.push(format!(
                "{name}: the folder has another name than the crate"
            ));
        }
        forbids_unsafe(name, &folder, found)?;
        seen.insert(name, folder);
    }
    Ok(())
}

fn edges(name: &str, dependencies: &[Value], found: &mut Vec<String>) {
    let Some((_, allowed)) = EDGES.iter().find(|(n, _)| *n == name) else {
        found.push(format!(
            "{name}: say in xtask/src/tidy.rs what it may depend on"
        ));
        return;
    };
    for dependency in dependencies {
        let to = dependency
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let for_tests = dependency.get("kind").and_then(Value::as_str) == Some("dev");
        if for_tests {
            continue;
        }
        if to.starts_with("hedgerow-") && !allowed.contains(&to) {
            found.push(format!("{name}: may not depend on {to}"));
        }
        if NOUNS.contains(&name) && NEVER_IN_NOUNS.contains(&to) {
            found.push(format!(
                "{name}: decides, and so does no I/O: it may not depend on {to}"
            ));
        }
        if let Some((.., why)) = NEVER.iter().find(|(from, t, _)| *from == name && *t == to) {
            found.push(format!("{name}: may not depend on {to}: {why}"));
        }
    }
}

fn forbids_unsafe(name: &str, folder: &Path, found: &mut Vec<String>) -> Result<()> {
    for file in ["src/lib.rs", "src/main.rs"] {
        let path = folder.join(file);
        let wanted = name != "hedgerow-linux" && path.exists();
        if wanted && !fs::read_to_string(&path)?.contains("#![forbid(unsafe_code)]") {
            found.push(format!("{name}: {file}: add #![forbid(unsafe_code)]"));
        }
    }
    Ok(())
}

fn source(name: &str, text: &str, found: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        found.push(format!(
            "{name}: {lines} lines; the limit is {FILE_LINES_MAX}: split it"
        ));
    }
    for (number, line) in text.lines().enumerate() {
        let at = format!("{name}:{}", number + 1);
        if let Some(declared) = declared(line)
            && EMPTY_NAMES.iter().any(|empty| declared.ends_with(empty))
        {
            found.push(format!("{at}: {declared}: name what it does instead"));
        }
        if line
            .trim_start()
            .trim_start_matches("pub ")
            .starts_with("fn get_")
        {
            found.push(format!("{at}: drop the get_"));
        }
    }
}

/// Returns the name of the type or trait that a line declares.
fn declared(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace().skip_while(|w| w.starts_with("pub"));
    let keyword = words.next()?;
    if !["struct", "enum", "trait", "type", "union"].contains(&keyword) {
        return None;
    }
    words
        .next()?
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
}

fn words(name: &str, text: &str, list: &[(&str, &str, &str)], found: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate() {
        for (first, second, instead) in list {
            let word = format!("{first}{second}");
            if line.contains(&word) {
                found.push(format!("{name}:{}: `{word}`: {instead}", number + 1));
            }
        }
    }
}

/// Checks that links to files of the repository lead somewhere.
fn links(path: &Path, name: &str, text: &str, found: &mut Vec<String>) {
    let folder = path.parent().unwrap_or(Path::new("/"));
    for (number, line) in text.lines().enumerate() {
        for target in line
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = target.split('#').next().unwrap_or_default();
            let elsewhere = file.is_empty() || file.contains("://") || file.starts_with("mailto:");
            if !elsewhere && !folder.join(file).exists() {
                found.push(format!("{name}:{}: {target} leads nowhere", number + 1));
            }
        }
    }
}

/// Checks that decision records are numbered without gaps or repetition.
fn decisions(root: &Path, found: &mut Vec<String>) -> Result<()> {
    let folder = root.join("docs/adr");
    if !folder.is_dir() {
        return Ok(());
    }
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        match name.split('-').next().map(str::parse::<usize>) {
            Some(Ok(number)) => numbers.push(number),
            Some(Err(_)) | None => found.push(format!("docs/adr/{name}: begin with a number")),
        }
    }
    numbers.sort_unstable();
    if numbers.iter().enumerate().any(|(i, n)| *n != i + 1) {
        found.push(format!("docs/adr: numbers are not 1, 2, 3, …: {numbers:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let found = check(&crate::root()).unwrap();
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        let mut found = Vec::new();
        source(
            "a.rs",
            "pub struct PeerManager;\n    pub fn get_peer() {}\n",
            &mut found,
        );
        source("b.rs", &"\n".repeat(FILE_LINES_MAX + 1), &mut found);
        words("c.rs", &["// TO", "DO: later"].concat(), WORDS, &mut found);
        links(
            Path::new("/nowhere/x.md"),
            "x.md",
            "see [y](y.md), [z](https://z)",
            &mut found,
        );
        let dependency = serde_json::json!({"name": "tokio", "kind": null});
        edges("hedgerow-policy", &[dependency], &mut found);
        let dependency = serde_json::json!({"name": "hedgerow-mesh", "kind": null});
        edges("hedgerow-policy", &[dependency], &mut found);
        assert_eq!(found.len(), 7, "{found:#?}");
    }
}
