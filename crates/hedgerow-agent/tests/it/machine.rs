//! What the machine must give: a port, a TUN device, the right to change the network, a clock.

use super::Device;

#[test]
fn a_port_that_another_program_uses_is_named_and_the_table_is_in_force() {
    let device = Device::enrolled("port");
    let before = device.files();
    let done = device.script(
        r#"
        nc -u -l 7117 >/dev/null 2>&1 &
        eventually sh -c 'ss -lun | grep -q :7117'
        agent run; code=$?
        nft list table inet hedgerow | grep -c hgt0
        exit $code
        "#,
    );
    done.ends(
        1,
        &["7117 is taken", "set mesh.port", "hedgerow-agent check"],
    );
    assert_ne!(done.out.trim(), "0", "closed, not open: {done:?}");
    let after = device.files();
    for (path, bytes) in &before {
        assert_eq!(after.get(path), Some(bytes), "{}", path.display());
    }
}

#[test]
fn a_machine_without_a_tun_device_is_told_which_module_it_needs() {
    let device = Device::enrolled("tun");
    let done = device.script("mount -t tmpfs none /dev/net; agent run");
    done.ends(4, &["/dev/net/tun is missing", "kernel module tun"]);
    let done = device.script("mount -t tmpfs none /dev/net; agent check");
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.out.contains("/dev/net/tun is missing"), "{done:?}");
}

#[test]
fn root_without_the_right_to_change_the_network_is_told_so() {
    let device = Device::enrolled("capability");
    for command in ["run", "load"] {
        let done = device.script(&format!(
            "setpriv --bounding-set=-net_admin --inh-caps=-net_admin \
             \"$AGENT\" --config \"$D/agent.toml\" {command}"
        ));
        done.ends(1, &["CAP_NET_ADMIN"]);
        assert!(!done.last_line().contains("the kernel lacks"), "{done:?}");
    }
}

#[test]
fn another_user_than_root_is_told_what_it_needs() {
    let device = Device::enrolled("user");
    for command in ["run", "load", "off"] {
        let done = device.script(&format!(
            "chmod 755 \"$D\"; chmod 644 \"$D/agent.toml\"; setpriv --reuid=65534 --clear-groups \
             \"$AGENT\" --config \"$D/agent.toml\" {command}"
        ));
        done.ends(1, &["root"]);
    }
}

#[test]
fn in_1970_the_device_enforces_and_says_that_its_clock_is_behind() {
    let device = Device::enrolled("clock");
    let done = device.script(
        r#"
        lib=$(ls /usr/lib/*/faketime/libfaketime.so.1) || { echo "install libfaketime" >&2; exit 98; }
        early() {
            LD_PRELOAD="$lib" FAKETIME='@1970-01-01 00:10:00' FAKETIME_DONT_FAKE_MONOTONIC=1 \
                "$AGENT" --config "$D/agent.toml" "$@"
        }
        LD_PRELOAD="$lib" FAKETIME='@1970-01-01 00:10:00' FAKETIME_DONT_FAKE_MONOTONIC=1 \
            "$AGENT" --config "$D/agent.toml" run &
        pid=$!
        eventually agent status
        agent status --json
        early check
        echo "check $?"
        kill -TERM $pid
        wait $pid
        "#,
    );
    assert_eq!(done.code, Some(0), "{done:?}");
    let status: serde_json::Value = serde_json::from_str(done.out.lines().next().unwrap()).unwrap();
    assert_eq!(status["clock"]["state"], "behind", "{done:?}");
    assert_eq!(status["table"]["intact"], true, "{done:?}");
    assert!(done.err.contains("the clock is behind"), "{done:?}");
    let line = done.out.lines().find(|l| l.contains(" clock: ")).unwrap();
    assert!(line.starts_with("error") && line.contains("set "), "{line}");
    assert!(done.out.contains("check 1"), "{done:?}");
}

/// What waits for an introduction must not wait for nothing: programs fail at once, with a reason.
#[test]
fn a_destination_that_nobody_knows_is_unreachable_at_once() {
    let device = Device::enrolled("unreachable");
    let done = device.script(
        r#"
        "$AGENT" --config "$D/agent.toml" run &
        pid=$!
        eventually agent status
        own=$(agent status --json | sed 's/.*"addresses":\["\([^"]*\)".*/\1/')
        eventually sh -c "ip -6 addr show dev hgt0 | grep -q '$own.*global'"
        nc -6 -v -z -w 20 "${own%7}9" 8883; echo "nc $?"
        nft list counter inet hedgerow answered | grep -o 'packets [0-9]*'
        kill -TERM $pid
        wait $pid
        "#,
    );
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains("No route to host"), "{done:?}");
    assert!(done.out.contains("nc 1"), "{done:?}");
    assert!(!done.out.contains("packets 0"), "{done:?}");
}
