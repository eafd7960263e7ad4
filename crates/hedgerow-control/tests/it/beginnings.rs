//! What keeps the controller from beginning: each says what it is, where, and the remedy, and ends with
//! the documented code (docs/reference/exit-codes.md).

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::central::{Central, FAKETIME, PATIENCE, pause};

/// The operator has to act.
const OPERATOR: i32 = 1;
/// The environment has to change.
const ENVIRONMENT: i32 = 4;

/// Runs a command that must end by itself; returns its code and what it said.
fn ends(command: &mut Command) -> (Option<i32>, String) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let since = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if since.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        pause();
    }
    let done = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    (done.status.code(), text)
}

fn run(central: &Central) -> Command {
    let mut command = central.command(&["run", "--config"]);
    command.arg(central.dir.join("control.toml"));
    command
}

/// Runs the controller by a shell script in a mount namespace of its own; `$0` is the state directory.
fn run_where(central: &Central, script: &str) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("{script} && exec \"$1\" run --config \"$0/control.toml\"");
    command.args(["--map-root-user", "--mount", "sh", "-c", &script]);
    command
        .arg(&central.dir)
        .arg(env!("CARGO_BIN_EXE_hedgerow-control"));
    command
}

fn says((code, text): (Option<i32>, String), wanted: i32, words: &[&str]) {
    assert_eq!(code, Some(wanted), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let central = Central::new();
    let _taken = TcpListener::bind(("127.0.0.1", central.port)).unwrap();
    let address = format!("127.0.0.1:{}", central.port);
    says(
        ends(&mut run(&central)),
        OPERATOR,
        &["cannot listen on", &address, "taken"],
    );
}

#[test]
fn a_directory_that_init_did_not_make_is_named() {
    let central = Central::new();
    std::fs::rename(central.dir.join("store"), central.dir.join("elsewhere")).unwrap();
    says(
        ends(&mut run(&central)),
        OPERATOR,
        &["hedgerow.db", "init", "restore"],
    );
    std::fs::remove_file(central.dir.join("control.toml")).unwrap();
    says(
        ends(&mut run(&central)),
        OPERATOR,
        &["control.toml", "`hedgerow-control init`"],
    );
}

#[test]
fn a_key_that_nobody_knows_is_shown_with_its_line() {
    let central = Central::new();
    let path = central.dir.join("control.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("colour = \"green\"\n{text}")).unwrap();
    says(
        ends(&mut run(&central)),
        OPERATOR,
        &["control.toml:1:", "colour"],
    );
}

#[test]
fn a_damaged_database_is_not_replaced() {
    let central = Central::new();
    let path = central.dir.join("store/hedgerow.db");
    let junk = vec![0x5a; 20_000];
    std::fs::write(&path, &junk).unwrap();
    says(
        ends(&mut run(&central)),
        ENVIRONMENT,
        &["hedgerow.db", "restore"],
    );
    assert_eq!(
        std::fs::read(&path).unwrap(),
        junk,
        "what may be mended is kept"
    );
}

#[test]
fn a_damaged_key_is_named() {
    let central = Central::new();
    std::fs::write(central.dir.join("keys/policy.pem"), "nothing\n").unwrap();
    says(
        ends(&mut run(&central)),
        OPERATOR,
        &["policy.pem", "backup"],
    );
}

#[test]
fn a_second_controller_in_one_directory_is_refused() {
    let central = Central::started();
    says(
        ends(&mut run(&central)),
        OPERATOR,
        &["another hedgerow-control", "stop it"],
    );
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    let central = Central::new();
    let read_only = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\"";
    let dir = central.dir.to_string_lossy().into_owned();
    says(
        ends(&mut run_where(&central, read_only)),
        OPERATOR,
        &[&dir, "read-only"],
    );
    let full = "cp -a \"$0\" \"$0.full\" && mount -t tmpfs -o size=1m none \"$0\" && \
                cp -a \"$0.full/.\" \"$0\" && rm -r \"$0.full\" && \
                { head -c 2M /dev/zero > \"$0/filler\" 2> /dev/null; true; }";
    says(
        ends(&mut run_where(&central, full)),
        ENVIRONMENT,
        &[&dir, "full"],
    );
}

#[test]
fn what_others_could_read_is_closed_to_them() {
    use std::os::unix::fs::PermissionsExt;
    let mut central = Central::new();
    let secrets = ["", "store", "store/hedgerow.db", "keys", "keys/policy.pem"];
    for secret in secrets {
        let path = central.dir.join(secret);
        let open = if path.is_dir() { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, PermissionsExt::from_mode(open)).unwrap();
    }
    central.start();
    for secret in secrets.iter().chain(&["store/hedgerow.db-wal"]) {
        let mode = std::fs::metadata(central.dir.join(secret))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{secret} has mode {mode:o}");
    }
}

/// A machine without a battery for its clock begins in 1970. The fleet is served on; what depends on time
/// waits, and people hear why.
#[test]
fn a_clock_that_says_1970_is_said_and_the_fleet_is_served() {
    let mut central = Central::new();
    central.start_with(&[
        ("LD_PRELOAD", FAKETIME),
        ("FAKETIME", "@1970-01-01 00:10:00"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ]);
    assert!(central.has_event("clock_untrusted"));
    let log = std::fs::read_to_string(central.dir.join("log")).unwrap();
    assert!(log.contains("set the clock"), "{log}");
}
