//! Power cuts of the target under load: what was answered and not flushed is lost, torn or there; hosts die; a cold mount finds
//! everything that an fsync had promised, on any host.
//!
//! More rounds: `LUNA_SEEDS=10 cargo nextest run -p luna-tests power_cut`. A round takes as long as a cold mount waits for the dead.

use anyhow::{Context, ensure};
use luna_tests::{Cluster, Kind, Result, Setup, io, load::Promised, tool, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Blocks of the shared file.
const BLOCKS: u64 = 64;

/// One host overwrites blocks past all caches; another one, which writes nothing, reads each and syncs the file: then it is promised.
fn relay(writer: &File, reader: &File, promised: &AtomicU64, stop: &AtomicBool) {
    for n in 1.. {
        let (data, at) = (io::Aligned::pattern(4096, n), (n % BLOCKS) * 4096);
        let mut seen = io::Aligned::new(4096);
        let done = writer
            .write_all_at(data.bytes(), at)
            .and_then(|()| reader.read_exact_at(seen.bytes_mut(), at))
            .and_then(|()| reader.sync_data());
        if stop.load(Ordering::SeqCst) || done.is_err() || seen.bytes() != data.bytes() {
            return;
        }
        promised.store(n, Ordering::SeqCst);
    }
}

/// Each block holds what was promised last, or what came after.
fn check_relay(path: &Path, promised: u64) -> Result {
    let got = fs::read(path)?;
    for (n, block) in (promised.saturating_sub(BLOCKS - 1).max(1)..=promised).map(|n| (n, &got[((n % BLOCKS) * 4096) as usize..][..4096])) {
        let newer = (n % BLOCKS == (promised + 1) % BLOCKS).then(|| io::Aligned::pattern(4096, promised + 1));
        let sector = |s: usize| s * 512..(s + 1) * 512;
        let old = io::Aligned::pattern(4096, n);
        let fits = |s: usize| {
            block[sector(s)] == old.bytes()[sector(s)] || newer.as_ref().is_some_and(|new| block[sector(s)] == new.bytes()[sector(s)])
        };
        ensure!((0..8).all(fits), "block {} lost write {n} of {promised}, which another host had read and synced", n % BLOCKS);
    }
    Ok(())
}

fn kill(c: &Cluster, n: usize) -> Result {
    kill_process(Pid::from_raw(c.noted_pid(n)?).context("a process")?, Signal::KILL)?;
    Ok(())
}

fn round(seed: u64) -> Result {
    let c = Cluster::with("power", Setup { kind: Kind::LunaVolatile, bytes: 1 << 30, slots: 4, ..Setup::default() })?;
    fs::create_dir(c.path(0, "d"))?;
    fs::write(c.path(0, "shared"), vec![0; BLOCKS as usize * 4096])?;
    let (writer, reader) = (io::direct(&c.path(0, "shared"))?, io::direct(&c.path(1, "shared"))?);
    writer.sync_all()?;
    let (promised, relayed) = ([const { Promised::new() }; 3], AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let said = std::thread::scope(|scope| {
        let rescue = c.rescue();
        for (n, (who, p)) in NAMES.iter().zip(&promised).enumerate() {
            let (dir, stop) = (c.path(n, "d"), &stop);
            scope.spawn(move || p.work(&dir, who, stop));
        }
        scope.spawn(|| relay(&writer, &reader, &relayed, &stop));
        let busy = || promised.iter().all(|p| p.count() > 10) && relayed.load(Ordering::SeqCst) > 100;
        wait_until("all write", Duration::from_secs(30), busy)?;
        let said = c.server.as_ref().context("a server")?.power_cut(seed)?;
        // whoever had something unflushed must stop by itself; the others may go on until they die too
        (0..3).try_for_each(|n| kill(&c, n))?;
        stop.store(true, Ordering::SeqCst);
        rescue.disarm();
        Ok::<_, anyhow::Error>(said)
    })?;
    drop((writer, reader));
    println!(
        "seed {seed}: {said}; promised {:?} steps and {} relayed",
        promised.each_ref().map(Promised::count),
        relayed.load(Ordering::SeqCst)
    );
    for n in 0..3 {
        tool("umount", &["-l", &c.hosts[n].dir.display().to_string()])?;
    }
    c.mount(2)?;
    for (who, p) in NAMES.iter().zip(&promised) {
        p.check(&c.path(2, "d"), who)?;
    }
    check_relay(&c.path(2, "shared"), relayed.load(Ordering::SeqCst))?;
    c.finish()
}

#[test]
fn what_was_promised_survives_a_power_cut_of_the_target() -> Result {
    let seeds = std::env::var("LUNA_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    (1..=seeds).try_for_each(round)
}
