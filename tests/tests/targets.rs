//! Other people's targets: qemu-nbd and nbdkit where they promise coherence, and a clear refusal where nobody does.

use anyhow::ensure;
use luna_tests::{Cluster, Kind, Result, Setup, io};
use std::{
    fs,
    os::unix::fs::FileExt,
    process::Command,
    time::{Duration, Instant},
};

fn work(c: &Cluster) -> Result {
    for round in 0..30 {
        let (w, r) = (round % 3, (round + 1) % 3);
        fs::write(c.path(w, format!("f{round}")), format!("{round}"))?;
        ensure!(fs::read_to_string(c.path(r, format!("f{round}")))? == format!("{round}"), "round {round}");
        let (a, b) = (io::direct(&c.path(w, "disk"))?, io::direct(&c.path(r, "disk"))?);
        a.write_all_at(io::Aligned::pattern(1 << 20, round as u64).bytes(), (round as u64) << 20)?;
        a.sync_all()?;
        io::expect(&b, (round as u64) << 20, 1 << 20, round as u64, "direct")?;
    }
    Ok(())
}

#[test]
fn qemu_nbd() -> Result {
    let c = Cluster::with("qnbd", Setup { kind: Kind::QemuNbd, options: "discard", ..Setup::default() })?;
    work(&c)?;
    c.finish()
}

#[test]
fn nbdkit() -> Result {
    let c = Cluster::with("nbdkit", Setup { kind: Kind::Nbdkit, options: "discard", ..Setup::default() })?;
    work(&c)?;
    c.finish()
}

/// A mount that must be refused, at once, with one line that has these words.
fn refused(c: &mut Cluster, words: &[&str]) -> Result {
    let n = c.add_host()?;
    let begin = Instant::now();
    let out = c.try_mount(n)?;
    ensure!(out.code == 1, "the mount ended with {}: {}", out.code, out.err);
    ensure!(out.err.trim().lines().count() == 1, "not one line: {}", out.err);
    let said = out.err.to_lowercase();
    ensure!(words.iter().any(|w| said.contains(w)), "none of {words:?} in: {said}");
    ensure!(begin.elapsed() < Duration::from_secs(30), "the refusal took {:?}", begin.elapsed());
    ensure!(!c.is_mounted(n), "something is mounted all the same");
    Ok(())
}

#[test]
fn without_a_promise_of_coherence() -> Result {
    let mut c = Cluster::unmade("single", Setup::default())?;
    c.mkfs()?;
    c.server = None;
    c.set_kind(Kind::NbdkitSingle);
    c.start_server()?;
    refused(&mut c, &["multi-conn", "multi_conn", "coheren", "several connections"])?;
    c.discard();
    Ok(())
}

#[test]
fn read_only() -> Result {
    let mut c = Cluster::unmade("ro", Setup::default())?;
    c.mkfs()?;
    c.server = None;
    c.set_kind(Kind::LunaReadOnly);
    c.start_server()?;
    refused(&mut c, &["read-only", "read only"])?;
    c.discard();
    Ok(())
}

#[test]
fn a_target_that_goes_away_and_comes_back() -> Result {
    let mut c = Cluster::new("away")?;
    fs::write(c.path(0, "before"), "x".repeat(100_000))?;
    let f = io::direct(&c.path(0, "disk"))?;
    f.write_all_at(io::Aligned::pattern(1 << 20, 1).bytes(), 0)?;
    f.sync_all()?;
    let lun = c.lun();
    c.server = None;
    // no file on the mount may be open here: starting a program closes this process's files in the child, each with a flush
    // that waits for the LUN, and the server would never be started
    drop(f);
    let pattern = c.dir.join("pattern");
    fs::write(&pattern, io::Aligned::pattern(1 << 20, 2).bytes())?;
    let (from, to) = (format!("if={}", pattern.display()), format!("of={}", c.path(0, "disk").display()));
    let begin = Instant::now();
    let mut dd =
        Command::new("dd").args([&from, &to]).args(["bs=1M", "seek=1", "oflag=direct", "conv=notrunc,fsync", "status=none"]).spawn()?;
    // I/O while it is away waits; it neither fails nor hangs for ever
    std::thread::sleep(Duration::from_millis(1500));
    c.start_server()?;
    let status = dd.wait()?;
    let waiting = begin.elapsed();
    ensure!(status.success(), "a write while the target was away: {status}");
    let f = io::direct(&c.path(0, "disk"))?;
    ensure!(c.lun() == lun, "the LUN's address changed");
    ensure!(waiting >= Duration::from_millis(1000), "a write to a target that is away was answered after {waiting:?}");
    io::expect(&f, 1 << 20, 1 << 20, 2, "what was written meanwhile")?;
    for n in 0..3 {
        ensure!(fs::read_to_string(c.path(n, "before"))?.len() == 100_000, "host {n} lost a file");
        fs::write(c.path(n, format!("after-{n}")), "y")?;
    }
    ensure!(fs::read_dir(&c.hosts[1].dir)?.count() == 5, "files are missing");
    drop(f);
    c.finish()
}
