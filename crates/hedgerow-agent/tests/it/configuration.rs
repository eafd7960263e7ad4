//! The configuration, as the program reads it.

use std::fs;

use super::Device;

#[test]
fn fragments_are_laid_over_the_file_and_shown_with_their_origin() {
    let device = Device::fresh("fragments");
    let folder = device.dir.join("agent.conf.d");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("20-late.toml"), "[mesh]\nport = 7201\n").unwrap();
    fs::write(
        folder.join("10-early.toml"),
        "[mesh]\nport = 7200\nmtu = 1400\n",
    )
    .unwrap();
    fs::write(folder.join("30-off.toml.disabled"), "nonsense").unwrap();
    let done = device.script("agent config show --origin");
    assert_eq!(done.code, Some(0), "{done:?}");
    let line = |key: &str| {
        let line = done.out.lines().find(|l| l.starts_with(key));
        line.unwrap_or_default().to_owned()
    };
    assert!(line("mesh.port").starts_with("mesh.port = 7201  # "));
    assert!(line("mesh.port").ends_with("agent.conf.d/20-late.toml:2"));
    assert!(line("mesh.mtu").ends_with("agent.conf.d/10-early.toml:3"));
    assert!(line("paths.state").ends_with("agent.toml:3"));
    assert_eq!(line("events"), "events.spool_events_max = 2048  # default");
}

#[test]
fn a_key_nobody_knows_is_named_with_its_file_and_line() {
    let device = Device::enrolled("unknown-key");
    let folder = device.dir.join("agent.conf.d");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("10-typo.toml"), "[mesh]\nprot = 7200\n").unwrap();
    let done = device.script("agent run");
    done.ends(
        1,
        &[
            "10-typo.toml:2: unknown field `prot`",
            "expected one of `port`",
        ],
    );
    fs::write(folder.join("10-typo.toml"), "[mesh]\nmtu = 12\n").unwrap();
    let done = device.script("agent run");
    done.ends(
        1,
        &["10-typo.toml:2: mesh.mtu must be 1280 to 9000, not 12"],
    );
}
