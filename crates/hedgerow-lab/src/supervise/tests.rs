use super::*;

/// A program that stores a pipe at first, and reads from it when it is started again.
const PROGRAM: &str = r#"
import os, socket, sys, time
say = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
say.connect(os.environ["NOTIFY_SOCKET"])
if "LISTEN_FDS" not in os.environ:
    reader, writer = os.pipe()
    os.write(writer, b"kept")
    socket.send_fds(say, [b"FDSTORE=1\nFDNAME=pipe"], [reader, ])
    os.kill(os.getpid(), 9)
assert os.environ["LISTEN_PID"] == str(os.getpid())
assert os.environ["LISTEN_FDNAMES"] == "pipe"
open(sys.argv[1], "wb").write(os.read(3, 4))
say.send(b"READY=1\nSTATUS=well")
say.send(b"STOPPING=1")
"#;

#[test]
fn a_killed_program_gets_its_descriptors_back() {
    let directory = std::env::temp_dir().join(format!("hgt-lab-supervise-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let result = directory.join("result");
    supervise(Service {
        socket: directory.join("notify"),
        hold: directory.join("hold"),
        state: directory.join("state"),
        watchdog: None,
        argv: ["/usr/bin/python3", "-c", PROGRAM, &result.to_string_lossy()]
            .map(str::to_owned)
            .to_vec(),
    })
    .unwrap();
    assert_eq!(fs::read(&result).unwrap(), b"kept");
    let state = state(&directory.join("state")).unwrap();
    assert_eq!((state.starts, state.status.as_str()), (2, "well"));
    assert_eq!(state.stored, ["pipe"]);
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_silent_program_is_killed_by_its_watchdog() {
    let directory = std::env::temp_dir().join(format!("hgt-lab-watchdog-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let count = directory.join("count");
    // Hangs at first, ends well the second time.
    let script = r#"
        if [ -e "$1" ]; then exec /usr/bin/python3 -c 'import os, socket
say = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
say.connect(os.environ["NOTIFY_SOCKET"]); say.send(b"STOPPING=1")'; fi
        touch "$1"; exec tail -f /dev/null"#;
    supervise(Service {
        socket: directory.join("notify"),
        hold: directory.join("hold"),
        state: directory.join("state"),
        watchdog: Some(Duration::from_millis(1500)),
        argv: ["bash", "-c", script, "x", &count.to_string_lossy()]
            .map(str::to_owned)
            .to_vec(),
    })
    .unwrap();
    let state = state(&directory.join("state")).unwrap();
    assert_eq!((state.starts, state.watchdog_kills), (2, 1));
    fs::remove_dir_all(&directory).unwrap();
}
