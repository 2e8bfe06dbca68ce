//! `luna mkfs`: makes a file system on a LUN, after making sure that nothing is lost by it.
//!
//! Invariant: a LUN that holds something is not touched without `--force`; one that a host has mounted right now is not
//! touched without `--force --force`; on a terminal it asks. Not here: the format (format crate) and the first blocks of
//! the volume (fs and journal crates).

use crate::{cli::MkfsArgs, probe, size::human, slots};
use anyhow::{Context, Result, bail, ensure};
use luna_fs::mkfs::{self, Found, MkfsOptions};
use luna_lun::Disk;
use std::{
    io::{IsTerminal, Read, Write},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// Runs the command.
pub fn run(args: &MkfsArgs) -> Result<()> {
    ensure!(args.label.len() <= 63, "the label has {} bytes, at most 63 are allowed", args.label.len());
    let lun = super::open(&args.lun, false)?;
    let disk = &*lun.disk;
    let geometry = disk.geometry();
    ensure!(!geometry.read_only, "LUN {} is read-only", args.lun);
    let held = holds(disk).with_context(|| format!("cannot look at LUN {}", args.lun))?;
    refuse(args, disk, held.as_deref())?;
    confirm(args, geometry.size_bytes, held.as_deref())?;
    make(args, disk)
}

/// What the LUN holds now, if anything is recognised.
fn holds(disk: &dyn Disk) -> Result<Option<String>> {
    let known = mkfs::found(disk)?;
    if let Found::Luna(volume) = known {
        let name = volume.map_or("a damaged Luna volume".into(), |(id, label)| format!("the Luna volume '{label}' ({})", super::uuid(&id)));
        return Ok(Some(name));
    }
    let len = disk.geometry().size_bytes.min(probe::HEAD_BYTES as u64) as usize / 4096 * 4096;
    let mut head = vec![0; len];
    for (n, piece) in head.chunks_mut(64 << 10).enumerate() {
        disk.read_at(piece, (n as u64) * (64 << 10))?;
    }
    let other = if let Found::Other(what) = known { Some(what) } else { None };
    Ok(probe::probe(&head).or(other).map(str::to_owned))
}

fn refuse(args: &MkfsArgs, disk: &dyn Disk, held: Option<&str>) -> Result<()> {
    let Some(held) = held else { return Ok(()) };
    ensure!(args.force > 0, "LUN {} holds {held}; nothing was written; --force overwrites it", args.lun);
    // a volume too damaged to be read cannot be mounted either
    let Ok((id, sb)) = mkfs::read_superblock(disk) else { return Ok(()) };
    let in_use = slots::in_use(disk, id, &sb)?;
    ensure!(
        in_use.is_none() || args.force > 1,
        "LUN {} holds {held}, {}; nothing was written; end that first, or destroy it under them with --force --force",
        args.lun,
        in_use.unwrap_or_default()
    );
    Ok(())
}

fn confirm(args: &MkfsArgs, bytes: u64, held: Option<&str>) -> Result<()> {
    if args.yes || !std::io::stdin().is_terminal() {
        return Ok(());
    }
    let what = held.map_or(String::new(), |h| format!(", which holds {h}"));
    eprint!("Make a file system on {} ({}){what}? [y/N] ", args.lun, human(bytes));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was written");
    }
    Ok(())
}

fn make(args: &MkfsArgs, disk: &dyn Disk) -> Result<()> {
    let begin = Instant::now();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let options = MkfsOptions {
        label: args.label.clone(),
        slots: args.slots,
        volume: random()?,
        hash_key: random()?,
        link_secret: random()?,
        now_ns: i64::try_from(now.as_nanos()).unwrap_or(0),
    };
    let bar = indicatif::ProgressBar::new(1).with_style(super::bar_style("making"));
    let made = mkfs::run(disk, &options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let made = made.with_context(|| format!("cannot make a file system on {}", args.lun))?;
    let sb = &made.sb;
    let journal = human(sb.journal_blocks * luna_format::BLOCK_U64);
    let label = if args.label.is_empty() { "no label" } else { &args.label };
    println!("volume {} ({label}) on {}", super::uuid(&options.volume), args.lun);
    println!(
        "{} in {} allocation groups, {} slots with a journal of {journal} each, {} free for files; {:.2} s",
        human(made.total_bytes),
        sb.ag_count,
        sb.slots,
        human(made.free_bytes),
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Bytes nobody can guess.
fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).context("cannot read /dev/urandom")?;
    Ok(bytes)
}
