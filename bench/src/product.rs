//! Our mount, as an administrator makes it: `luna mkfs`, `luna mount`, and the figures only it has.
//!
//! The daemon runs in the foreground as a child of this process, so its memory can be read and its end is certain. Invariant: it
//! speaks only the command line of the contract; nothing here looks inside the product.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::FallocateFlags;

use crate::fio::SPAN_BYTES;
use crate::world::{self, World};

/// Disk files that are open while memory is measured, and their size: 100 GiB together.
const DISKS: u64 = 10;
const DISK_BYTES: u64 = 10 << 30;
/// The whole-file allocation that has a bar.
const LARGE_BYTES: u64 = 100 << 30;
const SPARSE_BYTES: u64 = 1 << 40;
/// How long an unmount may take before it is an error.
const UNMOUNT: Duration = Duration::from_secs(20);

/// A running mount.
pub struct Mount {
    /// Where.
    pub dir: PathBuf,
    /// The daemon, if it was started here.
    pub daemon: Option<u32>,
    binary: Option<PathBuf>,
}

/// Figures with a bar that only our mount has; seconds, MiB.
#[derive(Debug, Default, Clone, serde::Serialize)]
pub struct Extra {
    /// `luna mkfs`.
    pub mkfs_seconds: Option<f64>,
    /// From the start of `luna mount` until the directory answers.
    pub mount_seconds: Option<f64>,
    /// `luna umount` until the daemon is gone from the mount table.
    pub umount_seconds: Option<f64>,
    /// fallocate of 100 GiB.
    pub fallocate_100g_seconds: Option<f64>,
    /// Making a 1 TiB sparse file.
    pub sparse_1t_seconds: Option<f64>,
    /// Space the sparse file took, in MiB.
    pub sparse_1t_mib: Option<f64>,
    /// Resident memory of the daemon with 100 GiB of disk files open and read.
    pub daemon_rss_mib: Option<f64>,
}

/// The `luna` binary beside this program, if it is there.
pub fn beside() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name("luna");
    path.is_file().then_some(path)
}

/// Makes a volume on `lun` and mounts it.
pub fn mount(world: &mut World, binary: &Path, lun: &str, extra: &mut Extra) -> anyhow::Result<Mount> {
    let begin = Instant::now();
    world::run(Command::new(binary).args(["mkfs", lun, "--yes"]))?;
    extra.mkfs_seconds = Some(begin.elapsed().as_secs_f64());
    let dir = world.folder("luna")?;
    let begin = Instant::now();
    let log = File::create(world.dir.join("luna.log"))?;
    let mut command = Command::new(binary);
    command.args(["mount", lun]).arg(&dir).args(["--name", "bench", "--listen", "127.0.0.1:0", "--foreground"]);
    let daemon = world.start(command.stdout(Stdio::null()).stderr(log))?;
    world.mounted(&dir);
    let came = world.wait(daemon, "luna mount", || world::is_fuse(&dir) && std::fs::metadata(&dir).is_ok());
    if let Err(error) = came {
        let said = std::fs::read_to_string(world.dir.join("luna.log")).unwrap_or_default();
        bail!("{error}: {}", said.lines().last().unwrap_or("no word"));
    }
    extra.mount_seconds = Some(begin.elapsed().as_secs_f64());
    Ok(Mount { dir, daemon: Some(daemon), binary: Some(binary.to_path_buf()) })
}

/// A mount that somebody else made.
pub fn given(dir: &Path) -> Mount {
    Mount { dir: dir.to_path_buf(), daemon: None, binary: None }
}

impl Mount {
    /// A fully written file of [`SPAN_BYTES`] for the data jobs: overwrites of allocated blocks are what is compared.
    pub fn disk(&self) -> anyhow::Result<PathBuf> {
        let path = self.dir.join("bench-disk");
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        let chunk: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for index in 0..SPAN_BYTES >> 20 {
            file.write_all_at(&chunk, index << 20).with_context(|| format!("{} can not be filled", path.display()))?;
        }
        file.sync_all()?;
        Ok(path)
    }

    /// The figures about large files and memory.
    pub fn extra(&self, extra: &mut Extra) -> anyhow::Result<()> {
        let large = self.dir.join("bench-large");
        let file = File::create(&large)?;
        let begin = Instant::now();
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, LARGE_BYTES).context("fallocate of 100 GiB")?;
        extra.fallocate_100g_seconds = Some(begin.elapsed().as_secs_f64());
        drop(file);
        std::fs::remove_file(&large)?;
        self.sparse(extra)?;
        self.memory(extra)
    }

    fn free_mib(&self) -> anyhow::Result<f64> {
        let state = rustix::fs::statvfs(&self.dir)?;
        Ok(state.f_bfree as f64 * state.f_frsize as f64 / f64::from(1 << 20))
    }

    fn sparse(&self, extra: &mut Extra) -> anyhow::Result<()> {
        let path = self.dir.join("bench-sparse");
        let before = self.free_mib()?;
        let begin = Instant::now();
        let file = File::create(&path)?;
        file.set_len(SPARSE_BYTES)?;
        file.sync_all()?;
        extra.sparse_1t_seconds = Some(begin.elapsed().as_secs_f64());
        extra.sparse_1t_mib = Some((before - self.free_mib()?).max(0.0));
        drop(file);
        std::fs::remove_file(&path)?;
        Ok(())
    }

    fn memory(&self, extra: &mut Extra) -> anyhow::Result<()> {
        let Some(daemon) = self.daemon else { return Ok(()) };
        let mut open = Vec::new();
        for index in 0..DISKS {
            let path = self.dir.join(format!("bench-vm-{index}"));
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, DISK_BYTES).context("fallocate of a disk file")?;
            // Touched all over, written and read, as a guest would.
            for piece in 0..1024 {
                let offset = piece * (DISK_BYTES / 1024);
                file.write_all_at(&[1; 4096], offset)?;
                file.read_exact_at(&mut [0; 4096], offset)?;
            }
            open.push((path, file));
        }
        extra.daemon_rss_mib = Some(rss_mib(daemon)?);
        for (path, file) in open {
            drop(file);
            std::fs::remove_file(path)?;
        }
        Ok(())
    }

    /// Unmounts with `luna umount`, timed.
    pub fn unmount(&self, world: &mut World, extra: &mut Extra) -> anyhow::Result<()> {
        let Some(binary) = &self.binary else { return Ok(()) };
        let begin = Instant::now();
        world::run(Command::new(binary).arg("umount").arg(&self.dir))?;
        while world::is_fuse(&self.dir) {
            if begin.elapsed() > UNMOUNT {
                bail!("{} is still mounted after {} s", self.dir.display(), UNMOUNT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        extra.umount_seconds = Some(begin.elapsed().as_secs_f64());
        world.unmounted(&self.dir);
        Ok(())
    }
}

/// Resident memory of a process.
fn rss_mib(process: u32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).context("the daemon is gone")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is no number")?;
    Ok(kib / 1024.0)
}
