//! Full and read-only disks: nothing is acknowledged that is not stored, and all comes back with room.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedgerow_lab::{clock, process};
use serde_json::Value;

use super::device::Device;
use super::plot::{DAY, POLICY, Plot};

/// How soon after there is room again everything has to be as if nothing had been.
const MENDED: Duration = Duration::from_secs(60);

/// A directory that a supervisor and its program see on a small disk of their own.
pub(crate) struct SmallDisk {
    supervisor: u32,
    directory: PathBuf,
}

impl SmallDisk {
    /// Words that put a directory's content on a disk of `kib` KiB, and run the rest there. Nobody
    /// else sees the disk, which goes with the last process that does.
    pub(crate) fn words(directory: &Path, kib: u32) -> Result<Vec<String>> {
        let whole = directory.with_extension("whole");
        fs::rename(directory, &whole)?;
        fs::create_dir(directory)?;
        let (directory, whole) = (directory.display(), whole.display());
        let script = format!(
            "mount -t tmpfs -o size={kib}k,mode=700 tmpfs {directory} && \
             cp -a {whole}/. {directory}/ && exec \"$@\""
        );
        Ok(["sh", "-c", &script, "small-disk"]
            .map(str::to_owned)
            .to_vec())
    }

    /// The disk of a supervisor started with [`Self::words`].
    pub(crate) fn of(supervisor: u32, directory: &Path) -> Self {
        Self {
            supervisor,
            directory: directory.to_owned(),
        }
    }

    fn filler(&self) -> PathBuf {
        let inside = self.directory.strip_prefix("/").unwrap_or(&self.directory);
        let root = PathBuf::from(format!("/proc/{}/root", self.supervisor));
        root.join(inside).join("filler")
    }

    /// Takes all the room there is.
    fn fill(&self) -> Result<()> {
        let mut filler = fs::File::create(self.filler())?;
        for block in [&[0u8; 4096][..], &[0u8; 1][..]] {
            while filler.write_all(block).is_ok() {}
        }
        Ok(())
    }

    /// Gives the room back.
    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    /// Lets nobody make, rename or remove a file in it, root included; or lets them again.
    fn lock(&self, how: &str) -> Result<()> {
        let pid = self.supervisor.to_string();
        let directory = self.directory.to_string_lossy();
        process::run(&[
            "nsenter", "--target", &pid, "--mount", "chattr", how, &directory,
        ])?;
        Ok(())
    }
}

#[test]
fn an_agent_without_room_enforces_claims_nothing_and_recovers() -> Result<()> {
    let plot = Plot::open("agentdisk")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    left.serve()?;
    right.serve()?;
    plot.apply(POLICY)?;
    let (target, back) = (right.overlay(6)?, left.overlay(6)?);
    left.wait_reaches(&target, 9000)?;
    left.stop()?;
    let disk = left.start_on_small_disk(1024)?;
    plot.settled(&["left", "right"])?;
    left.wait_reaches(&target, 9000)?;
    let narrow = POLICY.replace("[ echo, web, ping ]", "[ echo, ping ]");
    for (round, spoil, mend) in [
        (
            "full",
            SmallDisk::fill as fn(&SmallDisk) -> Result<()>,
            SmallDisk::free as fn(&SmallDisk) -> Result<()>,
        ),
        ("read-only", |d| d.lock("+i"), |d| d.lock("-i")),
    ] {
        plot.apply(POLICY)?;
        spoil(&disk)?;
        let words = [
            "--json",
            "policy",
            "apply",
            "-",
            "--wait",
            "5s",
            "--confirm",
        ];
        let said = plot.hedgerow_with(&words, Some(&narrow))?;
        ensure!(
            said.code == Some(4),
            "{round}: it claims what it has not stored: {said:?}"
        );
        let status = left.status()?;
        ensure!(status["disk_failed"] == true, "{round}: {status}");
        ensure!(status["table"]["intact"] == true, "{round}: {status}");
        ensure!(
            !right.reaches(&back, 9000)?,
            "{round}: it permits more than the policy"
        );
        left.wait_reaches(&target, 9000)?;
        mend(&disk)?;
        plot.settled(&["left", "right"])
            .with_context(|| format!("{round}, with room again"))?;
        left.wait_cut(&target, 8080)?;
        left.kill()?;
        left.wait_ready()?;
        plot.settled(&["left", "right"])?;
        ensure!(
            !left.reaches(&target, 8080)?,
            "{round}: the old policy is back"
        );
        left.wait_reaches(&target, 9000)?;
    }

    renewal_without_room(&plot, &left, &disk)?;
    left.wait_reaches(&target, 9000)
}

/// A renewal that finds no room leaves the certificate that works.
fn renewal_without_room(plot: &Plot, left: &Device<'_>, disk: &SmallDisk) -> Result<()> {
    let ends = |status: &Value| status["certificate"]["not_after"].as_i64();
    let before = ends(&left.status()?);
    disk.fill()?;
    plot.advance(DAY + DAY / 5)?;
    clock::wait_for("the disk to be found full", MENDED, || {
        Ok((left.status()?["disk_failed"] == true).then_some(()))
    })?;
    plot.settled(&["right"])?;
    ensure!(ends(&left.status()?) == before, "renewed without room");
    disk.free()?;
    plot.advance(1000)?;
    clock::wait_for("the renewal that was missed", MENDED, || {
        plot.advance(120)?;
        Ok((ends(&left.status()?) > before).then_some(()))
    })?;
    Ok(())
}

#[test]
fn a_controller_without_room_acknowledges_nothing_and_recovers() -> Result<()> {
    let plot = Plot::open("centraldisk")?;
    let left = plot.enrolled("left", "s1", 11, "left")?;
    let right = plot.enrolled("right", "s1", 12, "right")?;
    right.serve()?;
    plot.apply(POLICY)?;
    let target = right.overlay(6)?;
    left.wait_reaches(&target, 9000)?;
    let token = plot.token(&["--site", "s1", "--name", "late", "--labels", "role=left"])?;
    let late = plot.device("late", "s1", 13)?;
    plot.stop_central()?;
    let disk = plot.start_central_on_small_disk(8192)?;
    plot.settled(&["left", "right"])?;
    let before = plot.json(&["status"])?["revision"].clone();
    disk.fill()?;
    let narrow = POLICY.replace("[ echo, web, ping ]", "[ echo, ping ]");
    for (words, input) in [
        (
            &["policy", "apply", "-", "--wait", "0s", "--confirm"][..],
            Some(&*narrow),
        ),
        (&["site", "create", "s3"], None),
        (
            &["token", "create", "--site", "s1", "--labels", "role=left"],
            None,
        ),
        (&["device", "quarantine", "left.s1", "--wait", "0s"], None),
        (&["device", "revoke", "left.s1", "--wait", "0s"], None),
    ] {
        let said = plot.hedgerow_with(words, input)?;
        ensure!(said.code == Some(4), "{words:?} with a full disk: {said:?}");
    }
    let said = late.agent_with(&["enroll"], Some(&token))?;
    ensure!(said.code == Some(4), "enrolled on a full disk: {said:?}");
    let status = plot.json(&["status"])?;
    ensure!(
        status["revision"] == before,
        "{before} became {}",
        status["revision"]
    );
    left.wait_reaches(&target, 8080)
        .context("the fleet goes on")?;

    disk.free()?;
    clock::wait_for("the controller to store again", MENDED, || {
        plot.apply(&narrow).map(Some)
    })?;
    left.wait_cut(&target, 8080)?;
    late.agent_with(&["enroll"], Some(&token))?.done()?;
    late.start()?;
    plot.settled(&["left", "right", "late"])?;
    late.wait_reaches(&target, 9000)?;
    let status = plot.json(&["status"])?;
    let devices = status["devices"].as_array().context("no devices")?;
    ensure!(devices.len() == 3, "{status}");
    Ok(())
}
