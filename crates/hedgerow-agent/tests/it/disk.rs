//! Disks that take nothing, and state that is damaged.

use std::fs;

use super::Device;

/// Puts the state directory onto a small file system of its own, and fills that.
const FULL: &str = r#"
mkdir "$D/small"
mount -t tmpfs -o size=512k,mode=700 none "$D/small"
cp -a "$D/state/." "$D/small/"
mkdir "$D/agent.conf.d"
echo "paths.state = \"$D/small\"" > "$D/agent.conf.d/10-small.toml"
fill() { dd if=/dev/zero of="$D/small/ballast" bs=1k 2>/dev/null; true; }
"#;

#[test]
fn a_read_only_state_directory_stops_the_agent_with_the_remedy_and_not_the_table() {
    let device = Device::enrolled("read-only");
    let before = device.files();
    let done = device.script(
        r#"
        mkdir "$D/state/peers"
        mount --bind "$D/state" "$D/state"
        mount -o remount,ro,bind "$D/state"
        agent load; echo "load $?"
        nft list table inet hedgerow | grep -c hgt0
        agent run
        "#,
    );
    done.ends(
        1,
        &["Read-only file system", "mount that file system writable"],
    );
    let out: Vec<&str> = done.out.lines().collect();
    assert!(out[0].contains("the overlay is closed"), "{done:?}");
    assert_eq!(out[1], "load 0");
    assert_ne!(out[2], "0", "{done:?}");
    assert_eq!(device.files(), before);
}

#[test]
fn on_a_full_disk_the_agent_enforces_warns_and_leaves_every_file_whole() {
    let device = Device::enrolled("full");
    let done = device.script(&format!(
        r#"{FULL}
        mkdir "$D/small/peers"; : > "$D/small/lock"
        fill
        (cd "$D/small" && find . -type f | sort | xargs sha256sum) > "$D/before"
        "$AGENT" --config "$D/agent.toml" run &
        pid=$!
        eventually sh -c '"$AGENT" --config "$D/agent.toml" status --json | grep -q disk_failed.:true'
        agent status
        agent check; echo "check $?"
        (cd "$D/small" && find . -type f | sort | xargs sha256sum) > "$D/after"
        cmp "$D/before" "$D/after" && echo same
        nft list table inet hedgerow | grep -q hgt0 && echo enforced
        kill -TERM $pid
        wait $pid
        "#
    ));
    assert_eq!(done.code, Some(0), "{done:?}");
    for words in [
        "Warning: the state directory does not take writes",
        "No space left on device",
        "free some space",
        "check 1",
        "same\n",
        "enforced\n",
    ] {
        assert!(done.out.contains(words), "`{words}`: {done:?}");
    }
}

#[test]
fn enrolling_on_a_full_disk_leaves_nothing_half_done() {
    let device = Device::fresh("enroll-full");
    fs::create_dir(device.dir.join("state")).unwrap();
    let done = device.script(&format!(
        r#"{FULL}
        mkdir -p "$D/small/identity" "$D/small/peers"; : > "$D/small/lock"
        fill
        agent enroll --controller 192.0.2.1:7443 --root-hash {}
        code=$?
        find "$D/small" -type f
        exit $code
        "#,
        "0".repeat(64)
    ));
    done.ends(4, &["No space left on device", "free some space"]);
    assert!(!done.out.contains("pending"), "{done:?}");
}

#[test]
fn damaged_state_at_boot_closes_the_device_and_says_what_to_do() {
    let device = Device::enrolled("damaged");
    fs::write(device.dir.join("state/enrollment"), b"\xff\xff").unwrap();
    let done = device.script(
        r#"
        agent load; code=$?
        nft list table inet hedgerow | grep hgt0 | head -1
        exit $code
        "#,
    );
    done.ends(
        4,
        &[
            "is damaged",
            "closes the overlay",
            "restore it from a backup",
        ],
    );
    assert!(done.out.contains("hgt0"), "{done:?}");
}

#[test]
fn damaged_state_leaves_a_table_alone_that_is_in_the_kernel() {
    let device = Device::enrolled("damaged-later");
    let done = device.script(
        r#"
        agent load
        nft list table inet hedgerow > "$D/first"
        echo garbage > "$D/state/identity/current"
        agent load; code=$?
        nft list table inet hedgerow > "$D/second"
        cmp "$D/first" "$D/second" && echo same
        exit $code
        "#,
    );
    assert_ne!(done.code, Some(0), "{done:?}");
    assert!(
        done.last_line()
            .contains("the kernel's table stays in force"),
        "{done:?}"
    );
    assert!(done.out.contains("same"), "{done:?}");
}

/// An error, not a table: a machine that never enrolled is nobody's yet.
#[test]
fn a_device_that_is_not_enrolled_gets_no_table() {
    let device = Device::fresh("fresh");
    let done = device.script(
        r#"
        agent load; code=$?
        nft list tables
        exit $code
        "#,
    );
    done.ends(1, &["not enrolled", "hedgerow-agent enroll"]);
    assert_eq!(done.out, "");
}
