//! How long the others wait when a host dies, and how long a full journal takes to replay.
//!
//! Three real mounts of one LUN; the third one's daemon is killed (`kill -9`) while it makes files in a directory; the first one
//! makes a file there. Measured: from the kill to that file, and the longest overwrite of an unrelated file of the first host from
//! the kill until a second after. The replay's own time is read from the log of the host that did it.
//!
//! A full journal: as many images as the log of a slot takes, none of them home, behind the same server; side by side, as inodes that
//! were made together are, and each apart from the next.
//!
//! Invariant: what is printed are medians with minimum and maximum over all runs; nothing is left out. Not here: whether everything
//! promised is there (`tests/tests/fencing.rs`).

use anyhow::{Context, ensure};
use luna_format::{Block, Kind, Stamp, seal};
use luna_journal::{Fenced, Image, Journal, ReplayProof};
use luna_lun::OpenOptions;
use luna_tests::{Cluster, Kind as Server, Setup, io, load::Promised, tool, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What one run found, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    first: f64,
    stall: f64,
    replay: f64,
}

/// A way to fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RungKind {
    /// `luna serve` refuses the dead host.
    Target,
    /// The dead host's export at a `qemu-storage-daemon` is deleted.
    StorageDaemon,
    /// `nbdkit`, which can not fence: the others wait.
    Lease,
}

impl RungKind {
    fn server(self) -> Server {
        match self {
            Self::Target => Server::Luna,
            Self::StorageDaemon => Server::StorageDaemon,
            Self::Lease => Server::Nbdkit,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Target => "target (`luna serve`)",
            Self::StorageDaemon => "target (`qemu-storage-daemon`)",
            Self::Lease => "lease (`nbdkit`)",
        }
    }

    /// Bar of the first write, ms: 1.5 s, or W + 1 s.
    fn bar(self) -> f64 {
        if self == Self::Lease { 16_400.0 } else { 1500.0 }
    }
}

/// Measures `rungs`, `runs` times each, and prints a table.
pub fn run(rungs: &[RungKind], runs: usize) -> anyhow::Result<()> {
    println!("| rung | runs | first write in the victim's directory, ms | bar | longest unrelated write, ms | bar | replay, ms |");
    println!("|---|---|---|---|---|---|---|");
    for rung in rungs {
        let all = measure(*rung, runs)?;
        let show = |f: &dyn Fn(&Found) -> f64| shown(all.iter().map(f).collect());
        let (first, stall, replay) = (show(&|f| f.first), show(&|f| f.stall), show(&|f| f.replay));
        println!("| {} | {runs} | {first} | {} | {stall} | 50 | {replay} |", rung.title(), rung.bar());
    }
    println!("\n| replay of a full journal, all to be written home | images | ms | bar |\n|---|---|---|---|");
    for (where_, stride) in [("home blocks side by side", 1), ("home blocks scattered", 2)] {
        let (images, times) = full_journal(runs, stride)?;
        println!("| {where_} | {images} | {} | 1000 |", shown(times));
    }
    Ok(())
}

/// Median (the upper one of two), minimum and maximum.
fn shown(mut v: Vec<f64>) -> String {
    v.sort_by(f64::total_cmp);
    let (low, high) = (v.first().copied().unwrap_or_default(), v.last().copied().unwrap_or_default());
    format!("{:.0} ({low:.0} to {high:.0})", v.get(v.len() / 2).copied().unwrap_or_default())
}

fn measure(rung: RungKind, runs: usize) -> anyhow::Result<Vec<Found>> {
    let c = Cluster::with("bench", Setup { kind: rung.server(), life: Duration::from_secs(3600), ..Setup::default() })?;
    fs::create_dir(c.path(0, "d"))?;
    let other = io::direct(&c.path(0, "other"))?;
    other.write_all_at(io::Aligned::pattern(4096, 1).bytes(), 0)?;
    let mut all = Vec::new();
    for n in 0..runs {
        all.push(once(&c, &other, n).with_context(|| format!("run {n}"))?);
        tool("umount", &["-l", &c.hosts[2].dir.display().to_string()])?;
        c.mount(2)?;
    }
    drop(other);
    c.finish()?;
    Ok(all)
}

/// Kills the third host once.
fn once(c: &Cluster, other: &File, n: usize) -> anyhow::Result<Found> {
    let (promised, over, killed) = (Promised::default(), AtomicBool::new(false), AtomicBool::new(false));
    let (dir, who) = (c.path(2, "d"), format!("v{n}"));
    let (first, stall) = std::thread::scope(|scope| -> anyhow::Result<(f64, f64)> {
        let rescue = c.rescue();
        let (promised, over, killed, who) = (&promised, &over, &killed, &who);
        scope.spawn(move || promised.work(&dir, who, over));
        wait_until("the victim writes", Duration::from_secs(20), || promised.count() > 30)?;
        let stall = scope.spawn(move || stall_of(other, killed, over));
        kill_process(Pid::from_raw(c.noted_pid(2)?).context("a process")?, Signal::KILL)?;
        killed.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        fs::write(c.path(0, format!("d/after{n}")), "x")?;
        let first = begun.elapsed();
        std::thread::sleep(Duration::from_secs(1));
        over.store(true, Ordering::SeqCst);
        let stall = stall.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        rescue.disarm();
        Ok((ms(first), ms(stall)))
    })?;
    promised.check(&c.path(1, "d"), &who)?;
    Ok(Found { first, stall, replay: replay_of(&c.dir)? })
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// The longest overwrite that ended after the kill.
fn stall_of(file: &File, killed: &AtomicBool, over: &AtomicBool) -> anyhow::Result<Duration> {
    let block = io::Aligned::pattern(4096, 1);
    let mut longest = Duration::ZERO;
    while !over.load(Ordering::SeqCst) {
        let begun = Instant::now();
        file.write_all_at(block.bytes(), 0)?;
        if killed.load(Ordering::SeqCst) {
            longest = longest.max(begun.elapsed());
        }
    }
    Ok(longest)
}

/// The newest replay in the hosts' logs, in milliseconds.
fn replay_of(dir: &Path) -> anyhow::Result<f64> {
    let mut newest: Option<(String, f64)> = None;
    for name in ["host-a.log", "host-b.log"] {
        let text = fs::read_to_string(dir.join(name)).unwrap_or_default();
        let Some(line) = text.lines().rev().find(|l| l.contains("journal replayed")) else { continue };
        let when = line.split_whitespace().next().unwrap_or_default().to_owned();
        let took = line.split("ms=").nth(1).and_then(|t| t.split_whitespace().next()?.parse().ok()).context("a replay without its time")?;
        if newest.as_ref().is_none_or(|(w, _)| *w < when) {
            newest = Some((when, took));
        }
    }
    newest.map(|n| n.1).context("no host's log has a replay")
}

/// Fills the journal of a slot and replays it, `runs` times; how many images, and the milliseconds of each. Every `stride`-th block has
/// an image.
fn full_journal(runs: usize, stride: u64) -> anyhow::Result<(usize, Vec<f64>)> {
    let c = Cluster::unmade("full", Setup::default())?;
    c.mkfs()?;
    let lun = luna_lun::open(&c.lun().parse()?, &OpenOptions::default())?;
    let (volume, sb) = luna_fs::mkfs::read_superblock(&*lun.disk)?;
    let (slot, region) = (3, sb.journal_region(3));
    // behind the group's own blocks
    let home = sb.ag_region(1).0 + 64;
    let (mut times, mut filled) = (Vec::new(), 0);
    for n in 0..runs as u64 {
        let incarnation = luna_journal::inspect(&*lun.disk, volume, region, slot)?.incarnation;
        let journal = Journal::open(Arc::clone(&lun.disk), volume, region, slot, incarnation)?;
        filled = 0;
        loop {
            let free = journal.free_images().min(64);
            if free == 0 {
                break;
            }
            let images = (0..free).map(|i| image(volume, home + (filled as u64 + i) * stride, n + 1)).collect();
            let Ok(sequence) = journal.append(images) else { break };
            journal.flush_to(sequence)?;
            filled += free as usize;
        }
        drop(journal);
        let begun = Instant::now();
        let proof = ReplayProof::Fenced(Fenced::attest(slot, incarnation, 1));
        let mut plan = luna_journal::plan(&*lun.disk, volume, region, sb.homes(), slot, proof)?;
        plan.settle(&*lun.disk, &mut || false)?;
        let report = plan.apply(&*lun.disk, &|_| false)?;
        times.push(ms(begun.elapsed()));
        ensure!(report.written == filled as u64, "{report:?} of {filled}");
    }
    c.discard();
    Ok((filled, times))
}

fn image(volume: luna_format::VolumeId, block: u64, version: u64) -> Image {
    let mut b = Block::zeroed();
    b.0[1000..].fill(version as u8);
    seal(&mut b, &Stamp { kind: Kind::ExtentNode, volume, block, owner: 7, version, writer: 3, epoch: 1 });
    Image { block, bytes: Arc::new(b) }
}
