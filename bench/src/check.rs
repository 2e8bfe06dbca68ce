//! How long `luna fsck -n` takes on a large volume, and how much memory.
//!
//! The volume is made in this process with the file system's own operations, over a sparse file: disk files whose extent trees have two
//! levels, and small files in directories of a thousand. Then the real command checks it. The file's metadata is in the page cache of
//! this machine or not, as it comes; what the bar is about is the work of the check.

use anyhow::{Context, ensure};
use luna_dlm::LockCache;
use luna_fs::mkfs::{self, MkfsOptions};
use luna_fs::op::{self, Cred};
use luna_fs::{Parts, Volume, extent};
use luna_journal::Journal;
use luna_lun::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// Runs of a disk file, and the blocks of each (so that 1,000 disk files have allocated most of a terabyte).
const RUNS: u64 = 200;
const RUN_BLOCKS: u64 = 1000;
/// Small files in one directory.
const IN_ONE: u64 = 1000;

/// What to make.
pub struct Shape {
    /// Where the file goes.
    pub dir: PathBuf,
    /// Size of the volume.
    pub bytes: u64,
    /// Disk files.
    pub disks: u64,
    /// Small files.
    pub files: u64,
    /// Checks that are timed.
    pub runs: usize,
    /// The `luna` binary; the one beside this program if there is none.
    pub luna: Option<PathBuf>,
}

/// Makes the volume, checks it, prints a table.
pub fn run(shape: &Shape) -> anyhow::Result<()> {
    let path = shape.dir.join("luna-check-bench");
    let file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
    file.set_len(shape.bytes)?;
    let made = make(shape, &path).and_then(|()| measure(shape, &path));
    std::fs::remove_file(&path)?;
    made
}

fn make(shape: &Shape, path: &Path) -> anyhow::Result<()> {
    let begun = Instant::now();
    let lun = luna_lun::open(&path.display().to_string().parse()?, &OpenOptions::default())?;
    let id = [7; 16];
    let options = MkfsOptions { label: "check".into(), slots: 4, volume: id, hash_key: [3; 16], link_secret: [4; 32], now_ns: 1 << 60 };
    let sb = mkfs::run(&*lun.disk, &options, &mut |_, _| {})?.sb;
    let journal = Journal::open(Arc::clone(&lun.disk), id, sb.journal_region(0), 0, 1)?;
    let vol = Volume::new(Parts {
        sb,
        id,
        slot: 0,
        epoch: 1,
        disk: lun.disk,
        queue: lun.queue,
        journal,
        locks: LockCache::local(),
        discard: false,
    });
    let cred = Cred::default();
    let dir = |name: String| vol.run(|tx| op::mkdir(tx, vol.sb.root_ino, name.as_bytes(), 0o755, &cred)).map(|a| a.ino);
    for d in 0..shape.files.div_ceil(IN_ONE) {
        let parent = dir(format!("dir-{d}"))?;
        for n in 0..IN_ONE.min(shape.files - d * IN_ONE) {
            let name = format!("small file number {n}");
            vol.run(|tx| op::create(tx, parent, name.as_bytes(), 0o644, 0, &cred))?;
        }
    }
    let vms = dir("vms".into())?;
    for n in 0..shape.disks {
        let name = format!("vm-{n}.raw");
        let ino = vol.run(|tx| op::create(tx, vms, name.as_bytes(), 0o600, 0, &cred))?.ino;
        for r in 0..RUNS {
            let (mut at, end) = (r * (RUN_BLOCKS + 24), r * (RUN_BLOCKS + 24) + RUN_BLOCKS);
            while at < end {
                at = vol.run(|tx| extent::allocate(tx, ino, at, end - at, RUNS * RUN_BLOCKS))?;
            }
        }
    }
    vol.checkpoint()?;
    vol.journal.close()?;
    println!("made: {} disk files of {RUNS} extents, {} small files, in {:.0} s", shape.disks, shape.files, begun.elapsed().as_secs_f64());
    Ok(())
}

fn measure(shape: &Shape, path: &Path) -> anyhow::Result<()> {
    let beside = || std::env::current_exe().map(|me| me.with_file_name("luna"));
    let luna = shape.luna.clone().map_or_else(beside, Ok)?;
    println!("| check of {} GiB | s | bar | largest resident memory, MiB | bar |\n|---|---|---|---|---|", shape.bytes >> 30);
    for n in 1..=shape.runs {
        let begun = Instant::now();
        let mut child = Command::new(&luna).args(["fsck", "-n", "--json"]).arg(path).stdout(Stdio::piped()).spawn()?;
        let status = PathBuf::from(format!("/proc/{}/status", child.id()));
        let mut most = 0;
        let code = loop {
            // the kernel keeps the peak; it is gone with the process, so the last look before its end counts
            let peak = std::fs::read_to_string(&status).unwrap_or_default();
            let kib = peak.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
            most = most.max(kib.unwrap_or(0));
            if let Some(code) = child.try_wait()? {
                break code;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        ensure!(code.code() == Some(0), "the check ended with {code}");
        println!("| {n} | {:.1} | 60 | {} | 1024 |", begun.elapsed().as_secs_f64(), most / 1024);
    }
    Ok(())
}
