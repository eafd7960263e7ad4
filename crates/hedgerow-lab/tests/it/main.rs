//! Replays the fuzz corpora, so that every toolchain and every change meets them; and plays the
//! product on the real kernel: the demonstration, and live scenarios.

#[path = "../../../../fuzz/src/targets.rs"]
#[expect(
    unreachable_pub,
    clippy::drop_non_drop,
    reason = "a library of its own under fuzz/, which throws away what decodes"
)]
mod targets;

mod agreement;
mod demonstration;
mod guides;
#[cfg(test)]
mod live;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::RwLock;

/// Taken for writing by whoever measures this machine, for reading by everybody who loads it.
static MACHINE: RwLock<()> = RwLock::new(());

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
}

#[test]
fn every_target_survives_its_corpus() {
    let mut inputs = 0;
    for (name, target) in targets::TARGETS {
        let folder = corpus().join(name);
        let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut own = 0;
        for file in files {
            target(&fs::read(file.unwrap().path()).unwrap());
            own += 1;
        }
        assert!(own > 0, "{name}: the corpus is empty");
        inputs += own;
    }
    assert!(inputs >= 14, "{inputs} inputs");
}

#[test]
fn no_corpus_and_no_binary_is_forgotten() {
    let names: BTreeSet<String> = targets::TARGETS
        .iter()
        .map(|(n, _)| (*n).to_owned())
        .collect();
    let listed = |folder: PathBuf| -> BTreeSet<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|f| {
                f.unwrap()
                    .path()
                    .file_stem()
                    .unwrap()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    };
    assert_eq!(listed(corpus()), names);
    assert_eq!(listed(corpus().join("../fuzz_targets")), names);
}
