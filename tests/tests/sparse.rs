//! Thin files: a hole takes nothing, allocation is fast, and what is given up returns to the LUN.

use anyhow::ensure;
use luna_tests::{Cluster, Kind, Result, Setup, io};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek, statvfs};
use std::{
    os::unix::fs::{FileExt, MetadataExt},
    time::{Duration, Instant},
};

#[test]
fn a_terabyte_of_nothing() -> Result {
    let c = Cluster::new("thin")?;
    let free = |n: usize| statvfs(&c.hosts[n].dir).map(|v| v.f_bavail * v.f_frsize);
    let before = free(0)?;
    let f = io::direct(&c.path(0, "f"))?;
    f.set_len(1 << 40)?;
    ensure!(f.metadata()?.blocks() == 0, "an empty terabyte takes {} sectors", f.metadata()?.blocks());
    io::expect_zero(&f, (1 << 40) - (1 << 20), 1 << 20)?;
    ensure!(before - free(1)? <= 4 << 20, "an empty terabyte costs {} bytes", before - free(1)?);
    // one block near the end
    let at = (1 << 40) - 4096;
    f.write_all_at(io::Aligned::pattern(4096, 1).bytes(), at)?;
    let g = io::direct(&c.path(1, "f"))?;
    io::expect(&g, at, 4096, 1, "another host")?;
    io::expect_zero(&g, 1 << 39, 1 << 20)?;
    // data and holes are told apart, on any host
    ensure!(seek(&g, SeekFrom::Data(0))? >= at - (64 << 20), "the data is not where it was written");
    ensure!(seek(&g, SeekFrom::Hole(at))? == 1 << 40, "the hole after the data");
    ensure!(seek(&g, SeekFrom::Data(1 << 40)).is_err(), "data behind the end");
    drop((f, g));
    c.finish()
}

#[test]
fn a_hundred_gigabytes_at_once() -> Result {
    let c = Cluster::with("fat", Setup { bytes: 200 << 30, ..Setup::default() })?;
    let f = io::direct(&c.path(0, "f"))?;
    let begin = Instant::now();
    fallocate(&f, FallocateFlags::empty(), 0, 100 << 30)?;
    let took = begin.elapsed();
    // generous: the machine may be loaded; what must not happen is writing 100 GiB
    ensure!(took < Duration::from_secs(10), "fallocate of 100 GiB took {took:?}");
    let meta = std::fs::metadata(c.path(1, "f"))?;
    ensure!(
        meta.len() == 100 << 30 && meta.blocks() >= (100 << 30) / 512,
        "another host sees {} bytes in {} sectors",
        meta.len(),
        meta.blocks()
    );
    let g = io::direct(&c.path(2, "f"))?;
    for n in 0..20u64 {
        let at = n * (5 << 30) + 8192;
        io::expect_zero(&g, at, 8192)?;
        g.write_all_at(io::Aligned::pattern(4096, n).bytes(), at)?;
        io::expect(&f, at, 4096, n, "the host that allocated it")?;
        io::expect_zero(&f, at + 4096, 4096)?;
    }
    let on_lun = std::fs::metadata(c.lun_file())?.blocks() * 512;
    ensure!(on_lun < 4 << 30, "the LUN file itself takes {on_lun} bytes after a fallocate");
    drop((f, g));
    std::fs::remove_file(c.path(1, "f"))?;
    c.finish()
}

#[test]
fn what_is_given_up_returns_to_the_lun() -> Result {
    let c = Cluster::with("trim", Setup { kind: Kind::Luna, options: "discard", ..Setup::default() })?;
    let lun = || std::fs::metadata(c.lun_file()).map(|m| m.blocks() * 512);
    let f = io::direct(&c.path(0, "f"))?;
    let piece = io::Aligned::pattern(4 << 20, 5);
    for n in 0..64 {
        f.write_all_at(piece.bytes(), n * (4 << 20))?;
    }
    f.sync_all()?;
    let full = lun()?;
    ensure!(full > 256 << 20, "256 MiB were written, the LUN file takes {full} bytes");
    // a hole in the middle, from another host
    let g = io::direct(&c.path(1, "f"))?;
    fallocate(&g, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 64 << 20, 128 << 20)?;
    g.sync_all()?;
    io::expect_zero(&f, 64 << 20, 1 << 20)?;
    io::expect(&f, 60 << 20, 4 << 20, 5, "in front of the hole")?;
    io::expect(&f, 192 << 20, 4 << 20, 5, "behind the hole")?;
    let taken = f.metadata()?.blocks() * 512;
    ensure!(taken <= 144 << 20, "with 128 MiB punched out of 256 the file still takes {} MiB", taken >> 20);
    luna_tests::wait_until("the hole returns to the LUN", Duration::from_secs(20), || lun().is_ok_and(|now| now + (100 << 20) < full))?;
    drop((f, g));
    std::fs::remove_file(c.path(2, "f"))?;
    luna_tests::wait_until("the file returns to the LUN", Duration::from_secs(30), || lun().is_ok_and(|now| now + (200 << 20) < full))?;
    c.finish()
}

#[test]
fn ranges_of_every_kind() -> Result {
    let c = Cluster::new("ranges")?;
    let f = io::buffered(&c.path(0, "f"))?;
    let g = io::buffered(&c.path(1, "f"))?;
    f.write_all_at(io::Aligned::pattern(1 << 20, 9).bytes(), 0)?;
    // keep size: allocated behind the end, size as it was
    fallocate(&f, FallocateFlags::KEEP_SIZE, 1 << 20, 1 << 20)?;
    ensure!(g.metadata()?.len() == 1 << 20, "keep size changed the size");
    ensure!(g.metadata()?.blocks() * 512 >= 2 << 20, "nothing was allocated behind the end");
    // odd edges
    fallocate(&g, FallocateFlags::ZERO_RANGE, 1000, 10_000)?;
    fallocate(&g, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 500_001, 70_000)?;
    let mut want = io::Aligned::pattern(1 << 20, 9);
    want.bytes_mut()[1000..11_000].fill(0);
    want.bytes_mut()[500_001..570_001].fill(0);
    let mut got = vec![0; 1 << 20];
    f.read_exact_at(&mut got, 0)?;
    ensure!(got == want.bytes(), "zero range or hole with odd edges");
    // what the program does not do, it refuses
    ensure!(fallocate(&f, FallocateFlags::COLLAPSE_RANGE, 0, 4096).is_err(), "collapse range is not offered");
    drop((f, g));
    c.finish()
}
