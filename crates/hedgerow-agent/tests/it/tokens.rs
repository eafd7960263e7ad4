//! Tokens that cannot work, as far as the device can tell alone.

use super::Device;

#[test]
fn what_is_no_token_gets_one_line_and_leaves_nothing_behind() {
    let device = Device::fresh("tokens");
    let cases = [
        ("", "there is no token"),
        ("hello", "copy the whole line"),
        ("hgt1.AAAA", "copy the whole line"),
    ];
    for (token, says) in cases {
        let done = device.script(&format!("echo '{token}' | agent enroll"));
        done.ends(1, &[says]);
        assert_eq!(done.err.lines().count(), 1, "{done:?}");
        assert!(!device.dir.join("state").exists(), "{done:?}");
    }
    let done = device.script("agent enroll --token-file /nowhere");
    done.ends(1, &["there is no /nowhere", "name the file"]);
}

#[test]
fn an_enrolled_device_does_not_enroll_again() {
    let device = Device::enrolled("again");
    let before = device.files();
    let root = "0".repeat(64);
    let enroll = format!("agent enroll --controller 192.0.2.1:7443 --root-hash {root}");
    let done = device.script(&enroll);
    done.ends(1, &["enrolled already", "hedgerow-agent leave"]);
    assert_eq!(device.files(), before);
}
