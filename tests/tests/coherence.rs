//! What one host did, another host sees as soon as the call has returned: bytes, sizes, times, names, attributes.

use anyhow::{Context, ensure};
use luna_tests::{Cluster, Result, io};
use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    time::Duration,
};

#[test]
fn bytes_and_sizes() -> Result {
    let c = Cluster::new("bytes")?;
    let files = [0, 1, 2].map(|n| io::buffered(&c.path(n, "f")));
    let [a, b, d] = files;
    let files = [a?, b?, d?];
    let mut rng = fastrand::Rng::with_seed(7);
    let mut model = vec![0u8; 300_000];
    let mut len = 0;
    for round in 0..300u64 {
        let writer = rng.usize(..3);
        let (offset, size) = (rng.usize(..250_000), rng.usize(1..50_000));
        match rng.u32(..10) {
            // truncation, both ways
            0 => {
                len = rng.usize(..300_000);
                files[writer].set_len(len as u64)?;
                model[len..].fill(0);
            }
            _ => {
                io::fill(&mut model[offset..offset + size], round);
                files[writer].write_all_at(&model[offset..offset + size], offset as u64)?;
                len = len.max(offset + size);
            }
        }
        for (n, file) in files.iter().enumerate().filter(|(n, _)| round % 10 == 0 || *n != writer) {
            ensure!(
                file.metadata()?.len() == len as u64,
                "round {round}: host {n} sees a size of {}, host {writer} made it {len}",
                file.metadata()?.len()
            );
            let (from, to) = (offset.min(len), (offset + size).min(len));
            let mut got = vec![0; to - from];
            file.read_exact_at(&mut got, from as u64)?;
            if let Some(at) = got.iter().zip(&model[from..to]).position(|(x, y)| x != y) {
                ensure!(false, "round {round}: host {n} reads an old byte at {}, host {writer} wrote {from}..{to}", from + at);
            }
        }
    }
    drop(files);
    c.finish()
}

#[test]
fn direct_and_buffered_mix() -> Result {
    let c = Cluster::new("mix")?;
    let (direct, buffered) = (io::direct(&c.path(0, "f"))?, io::buffered(&c.path(1, "f"))?);
    for round in 0..60u64 {
        let offset = (round % 7) * 65536;
        direct.write_all_at(io::Aligned::pattern(65536, round).bytes(), offset)?;
        io::expect(&buffered, offset, 65536, round, "buffered after direct")?;
        buffered.write_all_at(io::Aligned::pattern(65536, 1000 + round).bytes(), offset)?;
        io::expect(&direct, offset, 65536, 1000 + round, "direct after buffered")?;
    }
    // and several hosts at once with O_DIRECT, each in its own places
    let files: Vec<_> = (0..3).map(|n| io::direct(&c.path(n, "f"))).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = files
            .iter()
            .enumerate()
            .map(|(n, file)| {
                scope.spawn(move || -> Result {
                    for place in 0..100u64 {
                        let at = (place * 3 + n as u64) * 4096;
                        file.write_all_at(io::Aligned::pattern(4096, at).bytes(), at)?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    for (n, file) in files.iter().enumerate() {
        for place in 0..300u64 {
            io::expect(file, place * 4096, 4096, place * 4096, &format!("host {n}"))?;
        }
    }
    drop((direct, buffered, files));
    c.finish()
}

#[test]
fn names_and_attributes() -> Result {
    let c = Cluster::new("names")?;
    for round in 0..40 {
        let (w, r) = (round % 3, (round + 1) % 3);
        let name = format!("n{round}");
        let (here, there) = (c.path(w, &name), c.path(r, &name));
        ensure!(!there.exists(), "{name} before it is made");
        fs::write(&here, &name)?;
        ensure!(fs::read_to_string(&there)? == name, "{name}: content");
        fs::set_permissions(&here, fs::Permissions::from_mode(0o640))?;
        ensure!(fs::metadata(&there)?.mode() & 0o7777 == 0o640, "{name}: mode");
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000 + round as u64, 123_456_789);
        fs::File::options().write(true).open(&here)?.set_modified(time)?;
        ensure!(fs::metadata(&there)?.modified()? == time, "{name}: nanosecond time");
        fs::hard_link(&here, c.path(w, format!("{name}.link")))?;
        ensure!(fs::metadata(&there)?.nlink() == 2, "{name}: links");
        fs::rename(c.path(r, &name), c.path(r, format!("{name}.new")))?;
        let gone = fs::metadata(&here).map(|_| ()).map_err(|e| e.kind());
        ensure!(gone == Err(ErrorKind::NotFound), "{name}: still there after another host renamed it");
        fs::remove_file(c.path(w, format!("{name}.new")))?;
        ensure!(fs::metadata(c.path(r, format!("{name}.link"))).context("the other link")?.nlink() == 1, "{name}: links after unlink");
    }
    ensure!(fs::read_dir(&c.hosts[0].dir)?.count() == 40, "names left");
    c.finish()
}

/// Attributes that a host's kernel remembers are gone before another host's change returns, also while that host asks without pause
/// (so that there is always a reply on its way). A directory's handle shows it best: no lookup and no page takes its attributes along.
#[test]
fn remembered_attributes_are_forgotten_in_time() -> Result {
    let c = Cluster::new("attributes")?;
    looks_while_another_host_changes(&c, "f", &[true, true])?;
    looks_while_another_host_changes(&c, "f", &[true, false])?;
    looks_while_another_host_changes(&c, "d", &[true, false])?;
    looks_while_another_host_changes(&c, "d", &[false, false])?;
    c.finish()
}

fn looks_while_another_host_changes(c: &Cluster, what: &str, by_name: &[bool]) -> Result {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let (mine, theirs) = (c.path(0, what), c.path(1, what));
    let is_file = what == "f";
    if is_file {
        fs::write(&mine, "")?;
    } else if !mine.exists() {
        fs::create_dir(&mine)?;
    }
    let (promised, changed_at, over, asked) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let ctime_ns = |m: &fs::Metadata| (m.ctime() * 1_000_000_000 + m.ctime_nsec()) as u64;
    std::thread::scope(|scope| -> Result {
        let look = |by_name: bool| {
            let (mine, promised, changed_at, over, asked) = (&mine, &promised, &changed_at, &over, &asked);
            scope.spawn(move || -> Result {
                let handle = if by_name { None } else { Some(fs::File::open(mine)?) };
                while !over.load(Ordering::Acquire) {
                    let (least, since) = (promised.load(Ordering::Acquire), changed_at.load(Ordering::Acquire));
                    let m = handle.as_ref().map_or_else(|| fs::metadata(mine), fs::File::metadata)?;
                    asked.fetch_add(1, Ordering::Relaxed);
                    ensure!(m.len() >= least, "by name: {by_name}: size {} after another host's truncate to {least} had returned", m.len());
                    ensure!(ctime_ns(&m) >= since, "by name: {by_name}: attributes from before another host's chmod had returned");
                }
                Ok(())
            })
        };
        let threads: Vec<_> = by_name.iter().map(|by_name| look(*by_name)).collect();
        let file = if is_file { fs::File::options().write(true).open(&theirs)? } else { fs::File::open(&theirs)? };
        let change = || -> Result {
            for round in 1..300u64 {
                let mode = if round % 2 == 1 { 0o700 } else { 0o755 };
                file.set_permissions(fs::Permissions::from_mode(mode))?;
                changed_at.store(ctime_ns(&file.metadata()?), Ordering::Release);
                if is_file {
                    file.set_len(round)?;
                    promised.store(round, Ordering::Release);
                }
                // short: the other host has just taken the right back; long: its kernel remembers
                std::thread::sleep(if round % 25 == 0 { Duration::from_millis(80) } else { Duration::from_micros(300 * (round % 5)) });
            }
            Ok(())
        };
        let changed = change();
        over.store(true, Ordering::Release);
        for t in threads {
            t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        changed
    })?;
    ensure!(asked.load(Ordering::Relaxed) > 1000, "the other host hardly asked");
    Ok(())
}

#[test]
fn mapped_memory_sees_another_hosts_writes() -> Result {
    // through dd and cmp, which need no unsafe here: cmp maps nothing, but the page cache is the same one mmap uses
    let c = Cluster::new("pages")?;
    let (a, b) = (io::buffered(&c.path(0, "f"))?, io::buffered(&c.path(1, "f"))?);
    for round in 0..20u64 {
        a.write_all_at(io::Aligned::pattern(1 << 20, round).bytes(), 0)?;
        io::expect(&b, 0, 1 << 20, round, "first reading")?;
        // now it is cached on b; a small change far inside must show
        a.write_all_at(&[round as u8; 3], 777_777)?;
        let mut three = [0; 3];
        b.read_exact_at(&mut three, 777_777)?;
        ensure!(three == [round as u8; 3], "round {round}: a cached page is stale");
    }
    drop((a, b));
    c.finish()
}
