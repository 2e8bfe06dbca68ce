//! A virtual machine of the demo: boot, save, resume, migrate. TCG only, so that it runs wherever QEMU does.
//!
//! Invariant: a [`Vm`] that is dropped is killed; every wait ends. The disk is opened with `cache=none`, so its blocks go
//! through the mount with O_DIRECT, and with QEMU's own image locking, so two machines can never have it at once.

use super::{counter, initramfs::Kernel, qmp::Qmp, stop};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";
/// How long a boot may take; TCG on a loaded machine is slow.
const BOOT: Duration = Duration::from_secs(90);
/// How long moving 128 MiB may take.
const MOVE: Duration = Duration::from_secs(90);

/// What all the machines of a demo share.
#[derive(Debug)]
pub struct Image {
    /// The guest's kernel.
    pub kernel: Kernel,
    /// The guest's user space.
    pub initrd: PathBuf,
    /// A local directory for sockets and consoles.
    pub work: PathBuf,
}

/// A running QEMU.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    qmp: Qmp,
    console: PathBuf,
    errors: PathBuf,
}

impl Vm {
    /// Boots from nothing, with `disk`; `name` makes its files unique.
    pub fn boot(image: &Image, name: &str, disk: &Path) -> Result<Self> {
        Self::launch(image, name, disk, None)
    }

    /// Starts a QEMU that waits for a machine's state from `uri`.
    pub fn incoming(image: &Image, name: &str, disk: &Path, uri: &str) -> Result<Self> {
        Self::launch(image, name, disk, Some(uri))
    }

    fn launch(image: &Image, name: &str, disk: &Path, incoming: Option<&str>) -> Result<Self> {
        let file = |kind: &str| image.work.join(format!("{name}.{kind}"));
        let (socket, console, errors) = (file("qmp"), file("console"), file("err"));
        let mut c = Command::new(QEMU);
        c.args(["-accel", "tcg", "-m", "128", "-nodefaults", "-display", "none", "-no-reboot", "-no-user-config"])
            .arg("-kernel")
            .arg(&image.kernel.image)
            .arg("-initrd")
            .arg(&image.initrd)
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .arg("-drive")
            .arg(format!("file={},format=raw,cache=none,if=virtio", escape(disk)))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()));
        if let Some(uri) = incoming {
            c.args(["-incoming", uri]);
        }
        let stderr = File::create(&errors).with_context(|| format!("cannot write {}", errors.display()))?;
        let child = c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).process_group(0).spawn();
        let mut child = child.with_context(|| format!("cannot start {QEMU}"))?;
        let qmp = Qmp::connect(&socket, || gone(&mut child, &errors));
        match qmp {
            Ok(qmp) => Ok(Self { child, qmp, console, errors }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e)
            }
        }
    }

    /// The last record this machine announced on its console.
    pub fn announced(&self) -> Result<u64> {
        let text = std::fs::read(&self.console).with_context(|| format!("cannot read {}", self.console.display()))?;
        counter::last_announced(&String::from_utf8_lossy(&text))
    }

    /// Waits until the machine has announced more than `past`.
    pub fn wait_for(&mut self, past: u64) -> Result<u64> {
        let start = Instant::now();
        loop {
            stop::check()?;
            gone(&mut self.child, &self.errors)?;
            let n = self.announced()?;
            if n > past {
                return Ok(n);
            }
            ensure!(start.elapsed() < BOOT, "the guest's counter stands at {n}, {} s after it should have passed {past}", BOOT.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops the machine and writes its state to `state`; the process ends.
    pub fn save(mut self, state: &Path) -> Result<u64> {
        self.qmp.call("stop", json!({}))?;
        self.migrate(&format!("exec:cat > '{}'", state.display()))?;
        let n = self.announced()?;
        self.quit()?;
        Ok(n)
    }

    /// Moves the running machine to `target`, which waits at `uri`.
    pub fn migrate_to(mut self, target: &mut Vm, uri: &str) -> Result<u64> {
        self.migrate(uri)?;
        let n = self.announced()?;
        target.wait_running()?;
        self.quit()?;
        Ok(n)
    }

    fn migrate(&mut self, uri: &str) -> Result<()> {
        self.qmp.call("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 30, "downtime-limit": 500 }))?;
        self.qmp.call("migrate", json!({ "uri": uri }))?;
        let start = Instant::now();
        loop {
            stop::check()?;
            let info = self.qmp.call("query-migrate", json!({}))?;
            match info["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    bail!("QEMU could not move the machine: {}", info["error-desc"].as_str().unwrap_or("no reason given"))
                }
                _ => ensure!(start.elapsed() < MOVE, "moving the machine takes longer than {} s", MOVE.as_secs()),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets a machine that was saved while stopped run again.
    pub fn resume(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let status = self.qmp.call("query-status", json!({}))?;
            match status["status"].as_str() {
                Some("running") => return Ok(()),
                Some("inmigrate") => ensure!(start.elapsed() < MOVE, "the machine's state does not arrive"),
                _ => drop(self.qmp.call("cont", json!({}))?),
            }
            gone(&mut self.child, &self.errors)?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_running(&mut self) -> Result<()> {
        let start = Instant::now();
        while self.qmp.call("query-status", json!({}))?["status"].as_str() != Some("running") {
            gone(&mut self.child, &self.errors)?;
            ensure!(start.elapsed() < MOVE, "the machine does not run on its new host");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ends the process in an orderly way: the disk is flushed and closed when this returns.
    pub fn quit(&mut self) -> Result<()> {
        // QEMU may close the socket before the answer
        let _ = self.qmp.call("quit", json!({}));
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(start.elapsed() < Duration::from_secs(20), "QEMU does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An error if the process has ended, with what it said last.
fn gone(child: &mut Child, errors: &Path) -> Result<()> {
    if let Some(status) = child.try_wait()? {
        let text = std::fs::read_to_string(errors).unwrap_or_default();
        bail!("QEMU ended ({status}): {}", text.lines().last().unwrap_or("it said nothing"));
    }
    Ok(())
}

/// QEMU reads two commas as one in an option's value.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
