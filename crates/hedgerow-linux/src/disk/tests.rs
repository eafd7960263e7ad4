use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

/// A directory of the test's own, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hgt-disk-{name}-{}", std::process::id()));
        create_private_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_file_is_replaced_whole_with_the_mode_asked_for() {
    let scratch = Scratch::new("replace");
    let file = scratch.0.join("state");
    assert_eq!(read_bounded(&file, 10).unwrap(), None);
    write_atomic(&file, b"one", Access::Public).unwrap();
    assert_eq!(mode_of(&file), 0o644);
    write_atomic(&file, b"two", Access::Private).unwrap();
    assert_eq!(mode_of(&file), 0o600);
    assert_eq!(read_bounded(&file, 3).unwrap().unwrap(), b"two");
    let error = read_bounded(&file, 2).unwrap_err();
    assert!(error.source.to_string().contains("larger than 2 bytes"));
    remove(&file).unwrap();
    remove(&file).unwrap();
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
    assert_eq!(mode_of(&scratch.0), 0o700);
}

#[test]
fn a_failed_write_leaves_the_old_content_and_no_litter() {
    let scratch = Scratch::new("failed");
    let target = scratch.0.join("occupied");
    fs::create_dir(&target).unwrap();
    let error = write_atomic(&target, b"x", Access::Private).unwrap_err();
    assert_eq!(error.action, "replace");
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
    let missing = scratch.0.join("no").join("where");
    assert_eq!(
        write_atomic(&missing, b"x", Access::Private)
            .unwrap_err()
            .action,
        "write"
    );
}

#[test]
fn a_directory_is_held_by_one_process_at_a_time() {
    let scratch = Scratch::new("lock");
    let held = lock_directory(&scratch.0).unwrap();
    assert!(held.is_some());
    assert!(lock_directory(&scratch.0).unwrap().is_none());
    drop(held);
    assert!(lock_directory(&scratch.0).unwrap().is_some());
}

const CHILD: &str = "HEDGEROW_TEST_DISK_CHILD";
const CONTENT_BYTES: usize = 256 * 1024;

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the child is told by its environment"
)]
fn a_writer_killed_at_any_moment_leaves_whole_content() {
    if let Ok(path) = std::env::var(CHILD) {
        write_for_ever(Path::new(&path));
    }
    let scratch = Scratch::new("kill");
    let file = scratch.0.join("state");
    let mut seen = 0;
    for round in 0..40u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "disk::tests::a_writer_killed_at_any_moment_leaves_whole_content",
            ])
            .env(CHILD, &file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the child's start and many rounds of its loop, differently each time.
        std::thread::sleep(Duration::from_micros(2_000 + round * 1_377 % 23_000));
        child.kill().unwrap();
        child.wait().unwrap();
        if let Some(content) = read_bounded(&file, CONTENT_BYTES).unwrap() {
            assert_eq!(content.len(), CONTENT_BYTES, "round {round}");
            assert!(content.iter().all(|b| *b == content[0]), "round {round}");
            seen += 1;
        }
    }
    assert!(
        seen > 10,
        "the child was killed too early to write in all but {seen} rounds"
    );
    write_atomic(&file, b"mended", Access::Private).unwrap();
    assert_eq!(read_bounded(&file, 10).unwrap().unwrap(), b"mended");
    assert_eq!(
        fs::read_dir(&scratch.0).unwrap().count(),
        1,
        "no litter stays"
    );
}

fn write_for_ever(path: &Path) -> ! {
    for fill in (0..=u8::MAX).cycle() {
        write_atomic(path, &vec![fill; CONTENT_BYTES], Access::Private).unwrap();
    }
    unreachable!("the cycle has no end");
}
