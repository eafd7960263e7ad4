//! The whole product on the real kernel: what `cargo xtask demo --once` shows, as a test.

use std::process::{Command, Stdio};
use std::sync::PoisonError;

/// The acts of the demonstration.
const ACTS: u64 = 10;

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "an integration test starts the program that it tests"
)]
fn the_demonstration_holds_every_expectation() {
    // The acts measure a rate and a time: nothing else may load the machine.
    let _alone = crate::MACHINE
        .write()
        .unwrap_or_else(PoisonError::into_inner);
    // Progress goes to standard error, and so to whoever watches the test.
    let output = Command::new(env!("CARGO_BIN_EXE_hedgerow-lab"))
        .args(["demo", "--once", "--json"])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let mut acts = Vec::new();
    let mut broken = Vec::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        let Some(act) = object["act"].as_u64() else {
            continue;
        };
        acts.push(act);
        for check in object["checks"].as_array().unwrap() {
            // What is late was shown; how fast this machine is decides no test.
            if check["held"] != true && check["timed"] != true {
                broken.push(format!("act {act}: {check}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert_eq!(acts, (1..=ACTS).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", output.status);
}
