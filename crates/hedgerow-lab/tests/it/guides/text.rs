//! The commands that a document tells its reader to type.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

/// What a line starts with when it is a command, and not a piece of a policy or of an output.
const PROGRAMS: [&str; 12] = [
    "cargo",
    "chown",
    "cp",
    "hedgerow",
    "hedgerow-agent",
    "hedgerow-control",
    "apt-get",
    "install",
    "nft",
    "rm",
    "sed",
    "systemctl",
];

/// One command of a document.
#[derive(Debug)]
struct Command {
    file: String,
    line: usize,
    text: String,
    done: bool,
}

/// The commands of some documents, and which of them were run.
#[derive(Debug, Default)]
pub(super) struct Commands(RefCell<Vec<Command>>);

pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

fn is_command(text: &str) -> bool {
    text.split_once(' ')
        .is_some_and(|(program, _)| PROGRAMS.contains(&program))
}

/// Returns the commands of one line: the whole of an indented one, the quoted ones of a sentence.
fn commands(line: &str) -> Vec<String> {
    if let Some(code) = line.strip_prefix("    ") {
        let code = code.split("  #").next().unwrap_or_default().trim();
        return is_command(code)
            .then(|| code.to_owned())
            .into_iter()
            .collect();
    }
    line.split('`')
        .skip(1)
        .step_by(2)
        .filter(|span| is_command(span))
        .map(str::to_owned)
        .collect()
}

impl Commands {
    /// Reads documents, named from the root of the project.
    pub(super) fn of(files: &[&str]) -> Self {
        let mut all = Vec::new();
        for file in files {
            let text = fs::read_to_string(root().join(file)).unwrap();
            for (number, line) in text.lines().enumerate() {
                all.extend(commands(line).into_iter().map(|text| Command {
                    file: (*file).to_owned(),
                    line: number + 1,
                    text,
                    done: false,
                }));
            }
        }
        Self(RefCell::new(all))
    }

    /// Takes the first such command of `file` that was not run yet.
    pub(super) fn take(&self, file: &str, text: &str) -> String {
        let mut all = self.0.borrow_mut();
        let found = all
            .iter_mut()
            .find(|c| !c.done && c.file.ends_with(file) && c.text == text);
        let Some(command) = found else {
            panic!("{file} does not say (any more, or so often): {text}");
        };
        command.done = true;
        command.text.clone()
    }

    /// Fails with the commands that the test did not run.
    pub(super) fn assert_all_ran(&self) {
        let left: Vec<String> = self
            .0
            .borrow()
            .iter()
            .filter(|c| !c.done)
            .map(|c| format!("{}:{}: {}", c.file, c.line, c.text))
            .collect();
        assert!(left.is_empty(), "nobody ran\n{}", left.join("\n"));
    }
}

#[test]
fn commands_are_told_from_text() {
    assert_eq!(
        commands("    hedgerow status                  # who is away"),
        ["hedgerow status"]
    );
    assert_eq!(
        commands("run `hedgerow-agent off`, then `status`, `a b`"),
        ["hedgerow-agent off"]
    );
    assert!(commands("    ot:  { select: \"role=plc\" }").is_empty());
}
