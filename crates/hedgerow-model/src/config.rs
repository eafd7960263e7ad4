//! Configuration in layers: one TOML file, and fragments beside it that are laid over it.
//!
//! ```text
//!  agent.toml ──┐
//!  agent.conf.d/10-a.toml ──┼── key by key, the later file wins ──▶ values, each with file and line
//!  agent.conf.d/20-b.toml ──┘
//! ```
//!
//! # Invariants
//!
//! - A key that no program knows is an error in every layer, named with file and line.
//! - Tables are merged, everything else is replaced whole: a list in a fragment replaces the list.
//! - Every effective value says where it came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

/// Most fragments beside one file; one more is an error.
pub const FRAGMENTS_MAX: usize = 64;
/// Largest file, in bytes.
pub const FILE_BYTES_MAX: usize = 64 << 10;

/// The text of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// How people call the file: its path.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// One effective value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Dotted key.
    pub key: String,
    /// The value as TOML.
    pub value: String,
    /// `FILE:LINE`, or `default`.
    pub origin: String,
}

/// Layers that are merged and read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged<T> {
    /// What they say together, with defaults for what they do not say.
    pub value: T,
    /// Every value, sorted by key.
    pub origins: Vec<Origin>,
}

impl<T> Merged<T> {
    /// Puts file and line before a message that begins with a key.
    pub fn locate(&self, message: &str) -> String {
        let word = message.split([' ', ':']).next().unwrap_or_default();
        let origin = self.origins.iter().find(|o| o.key == word);
        match origin.filter(|o| o.origin != DEFAULT) {
            Some(origin) => format!("{}: {message}", origin.origin),
            None => message.to_owned(),
        }
    }
}

const DEFAULT: &str = "default";

/// Returns the folder of fragments beside a file: `agent.conf.d` beside `agent.toml`. Two programs
/// that keep their files in one folder do not share it.
pub fn fragments_of(file: &Path) -> PathBuf {
    file.with_extension("conf.d")
}

/// Returns whether a file in the folder of fragments is one: its name ends with `.toml` and does not
/// begin with a dot.
pub fn is_fragment(name: &str) -> bool {
    name.ends_with(".toml") && !name.starts_with('.')
}

/// Merges `layers`, the later over the earlier, and reads them.
///
/// # Errors
///
/// Says the file, the line, the field and what it takes.
pub fn merge<T: DeserializeOwned + Serialize>(layers: &[Layer]) -> Result<Merged<T>, String> {
    let mut table = toml::Table::new();
    let mut places = BTreeMap::new();
    for layer in layers {
        let at = |e: &toml::de::Error| format!("{}: {}", place(layer, e.span()), one_line(e));
        match toml::from_str::<T>(&layer.text) {
            Ok(_) => {}
            // Another layer may have it; whether one does is seen at the end.
            Err(e) if e.message().starts_with("missing field") => {}
            Err(e) => return Err(at(&e)),
        }
        let spanned = DeTable::parse(&layer.text).map_err(|e| at(&e))?;
        let mut keys = Vec::new();
        note_keys(spanned.get_ref(), "", &mut keys);
        for (key, span) in keys {
            places.insert(key, place(layer, Some(span)));
        }
        let values: toml::Table = toml::from_str(&layer.text).map_err(|e| at(&e))?;
        lay_over(&mut table, values);
    }
    let value: T = toml::Value::Table(table).try_into().map_err(|e| {
        let files: Vec<&str> = layers.iter().map(|l| l.name.as_str()).collect();
        format!("{}: {}", files.join(", "), one_line(&e))
    })?;
    let mut origins = Vec::new();
    if let Ok(effective) = toml::Table::try_from(&value) {
        note_origins(&effective, "", &places, &mut origins);
    }
    Ok(Merged { value, origins })
}

fn lay_over(under: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => lay_over(under, over),
            (_, value) => drop(under.insert(key, value)),
        }
    }
}

fn note_keys(table: &DeTable<'_>, prefix: &str, out: &mut Vec<(String, std::ops::Range<usize>)>) {
    for (key, value) in table {
        let name = format!("{prefix}{}", key.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            note_keys(inner, &format!("{name}."), out);
        }
        out.push((name, key.span()));
    }
}

fn note_origins(
    table: &toml::Table,
    prefix: &str,
    places: &BTreeMap<String, String>,
    out: &mut Vec<Origin>,
) {
    for (key, value) in table {
        let name = format!("{prefix}{key}");
        if let toml::Value::Table(inner) = value {
            note_origins(inner, &format!("{name}."), places, out);
            continue;
        }
        let origin = places.get(&name).map_or(DEFAULT, String::as_str).to_owned();
        out.push(Origin {
            key: name,
            value: value.to_string(),
            origin,
        });
    }
}

/// Returns `FILE:LINE`.
fn place(layer: &Layer, span: Option<std::ops::Range<usize>>) -> String {
    let before = span.and_then(|span| layer.text.get(..span.start));
    match before {
        Some(before) => format!("{}:{}", layer.name, before.matches('\n').count() + 1),
        None => layer.name.clone(),
    }
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    struct Raw {
        version: u32,
        #[serde(default)]
        mesh: Mesh,
    }

    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    struct Mesh {
        port: u16,
        mtu: u16,
        endpoints: Vec<String>,
    }

    impl Default for Mesh {
        fn default() -> Self {
            Self {
                port: 7117,
                mtu: 1420,
                endpoints: Vec::new(),
            }
        }
    }

    fn layers(texts: &[&str]) -> Vec<Layer> {
        let layer = |(i, text): (usize, &&str)| Layer {
            name: format!("{i}.toml"),
            text: (*text).to_owned(),
        };
        texts.iter().enumerate().map(layer).collect()
    }

    #[test]
    fn the_later_file_wins_key_by_key_and_every_value_says_where_it_is_from() {
        let merged: Merged<Raw> = merge(&layers(&[
            "version = 1\n[mesh]\nport = 1\nendpoints = [\"a\", \"b\"]\n",
            "mesh.port = 2\n",
            "\n[mesh]\nendpoints = [\"c\"]\n",
        ]))
        .unwrap();
        assert_eq!(merged.value.mesh.port, 2);
        assert_eq!(merged.value.mesh.endpoints, ["c"], "a list is replaced");
        let shown: Vec<String> = merged
            .origins
            .iter()
            .map(|o| format!("{} {} {}", o.key, o.value, o.origin))
            .collect();
        assert_eq!(
            shown,
            [
                "mesh.endpoints [\"c\"] 2.toml:3",
                "mesh.mtu 1420 default",
                "mesh.port 2 1.toml:1",
                "version 1 0.toml:1",
            ]
        );
        let told = merged.locate("mesh.port must be even, not 2");
        assert_eq!(told, "1.toml:1: mesh.port must be even, not 2");
        assert_eq!(merged.locate("mesh.mtu: odd"), "mesh.mtu: odd");
    }

    #[test]
    fn a_mistake_is_named_with_the_file_and_line_it_stands_in() {
        let cases = [
            (
                ["version = 1\n", "[mesh]\nprot = 1\n"],
                "1.toml:2: unknown field `prot`, expected one of `port`, `mtu`, `endpoints`",
            ),
            (["version = 1\n[mesh\n", ""], "0.toml:2: "),
            (
                ["version = 1\n", "[mesh]\nport = \"x\"\n"],
                "1.toml:2: invalid type",
            ),
            (
                ["version = 1\n", "mesh.port = 1\nmesh.port = 2\n"],
                "1.toml:2: duplicate key",
            ),
            (
                ["", "mesh.port = 1\n"],
                "0.toml, 1.toml: missing field `version`",
            ),
        ];
        for (texts, want) in cases {
            let error = merge::<Raw>(&layers(&texts)).unwrap_err();
            assert!(error.starts_with(want), "{error}");
        }
    }

    #[test]
    fn two_programs_do_not_share_a_folder_of_fragments() {
        let folder = fragments_of(Path::new("/etc/hedgerow/agent.toml"));
        assert_eq!(folder, Path::new("/etc/hedgerow/agent.conf.d"));
        let names = [
            "10-a.toml",
            ".10-a.toml.swp",
            ".a.toml",
            "a.toml.bak",
            "README",
        ];
        assert_eq!(names.map(is_fragment), [true, false, false, false, false]);
    }
}
