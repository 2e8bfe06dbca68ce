//! The changes of the matrix, each a call or two below the ground's directory.

use super::{Change, LEN};
use crate::io::Aligned;
use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, Timespec, Timestamps, XattrFlags, copy_file_range, fallocate, renameat_with};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    path::Path,
};
use vmap::{Extent, Flush, MapMut};

/// All of them.
pub const CHANGES: &[Change] = &[
    ("creat", |d| File::create_new(d.join("new")).map(drop)),
    ("creat over", |d| File::create(d.join("f")).map(drop)),
    ("mkdir", |d| fs::create_dir(d.join("newdir"))),
    ("mkdir below", |d| fs::create_dir(d.join("sub/newdir"))),
    ("symlink", |d| symlink("f", d.join("new"))),
    ("mknod", |d| mknod(&d.join("new"))),
    ("write, extending", |d| open(d, 0)?.write_all_at(&[7; 5000], LEN as u64)),
    ("write, extending over a gap", |d| open(d, 0)?.write_all_at(&[7; 5000], LEN as u64 * 2 + 5)),
    ("append", append),
    ("overwrite", |d| open(d, 0)?.write_all_at(&[8; 3000], 1000)),
    ("overwrite the hole", |d| open(d, 0)?.write_all_at(&[8; 4096], 20 << 10)),
    ("overwrite O_DIRECT", |d| open(d, libc::O_DIRECT)?.write_all_at(Aligned::pattern(8192, 9).bytes(), 4096)),
    ("overwrite O_SYNC", |d| open(d, libc::O_SYNC)?.write_all_at(&[3; 100], 50)),
    ("mmap store, msync", |d| store(d, true)),
    ("mmap store, munmap", |d| store(d, false)),
    ("truncate down", |d| open(d, 0)?.set_len(5000)),
    ("truncate to nothing", |d| open(d, 0)?.set_len(0)),
    ("truncate up", |d| open(d, 0)?.set_len(200_000)),
    ("fallocate", |d| allocate(d, FallocateFlags::empty(), 0, 150_000)),
    ("fallocate, keep size", |d| allocate(d, FallocateFlags::KEEP_SIZE, 0, 150_000)),
    ("punch", |d| allocate(d, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 8192)),
    ("punch, unaligned", |d| allocate(d, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 100, 9000)),
    ("zero range", |d| allocate(d, FallocateFlags::ZERO_RANGE, 4096, 8192)),
    ("copy_file_range", copy),
    ("chmod", |d| fs::set_permissions(d.join("f"), fs::Permissions::from_mode(0o600))),
    ("chmod, directory", |d| fs::set_permissions(d.join("sub"), fs::Permissions::from_mode(0o700))),
    ("chown", |d| chown(d.join("f"), Some(12), Some(34))),
    ("utimens", utimens),
    ("setxattr", |d| set(d, "user.a", b"new")),
    ("setxattr, replaced", |d| set(d, "user.x", b"after")),
    ("removexattr", |d| Ok(rustix::fs::removexattr(d.join("f"), "user.x")?)),
    ("link", |d| fs::hard_link(d.join("f"), d.join("new"))),
    ("unlink", |d| fs::remove_file(d.join("f"))),
    ("unlink and creat", replace),
    ("unlink, other file", |d| fs::remove_file(d.join("g"))),
    ("rename", |d| fs::rename(d.join("f"), d.join("new"))),
    ("rename over it", |d| fs::rename(d.join("g"), d.join("f"))),
    ("rename it over", |d| fs::rename(d.join("f"), d.join("g"))),
    ("rename below", |d| fs::rename(d.join("f"), d.join("sub/f"))),
    ("rename, exchange", |d| Ok(renameat_with(CWD, d.join("f"), CWD, d.join("g"), RenameFlags::EXCHANGE)?)),
    ("rename of a directory", |d| fs::rename(d.join("sub"), d.join("new"))),
    ("rmdir", |d| fs::remove_dir(d.join("sub"))),
    ("symlink, replaced", |d| symlink("g", d.join("t")).and_then(|()| fs::rename(d.join("t"), d.join("s")))),
    ("symlink, removed", |d| fs::remove_file(d.join("s"))),
];

fn open(d: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(d.join("f"))
}

/// The old one is open, so that the new one cannot get its number.
fn replace(d: &Path) -> io::Result<()> {
    let _old = open(d, 0)?;
    fs::remove_file(d.join("f"))?;
    fs::write(d.join("f"), "another")
}

fn append(d: &Path) -> io::Result<()> {
    io::Write::write_all(&mut OpenOptions::new().append(true).open(d.join("f"))?, &[6; 777])
}

fn mknod(path: &Path) -> io::Result<()> {
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    Ok(rustix::fs::mknodat(CWD, path, rustix::fs::FileType::Fifo, mode, 0)?)
}

fn store(d: &Path, synced: bool) -> io::Result<()> {
    let f = open(d, 0)?;
    let mut map: MapMut = MapMut::with_options().len(Extent::Exact(LEN)).map(&f).map_err(io::Error::other)?;
    map[3000..9000].fill(5);
    if synced { map.flush(&f, Flush::Sync).map_err(io::Error::other) } else { Ok(()) }
}

fn allocate(d: &Path, flags: FallocateFlags, at: u64, len: u64) -> io::Result<()> {
    Ok(fallocate(open(d, 0)?, flags, at, len)?)
}

fn copy(d: &Path) -> io::Result<()> {
    let f = open(d, 0)?;
    let (mut from, mut to) = (0, 40 << 10);
    match copy_file_range(&f, Some(&mut from), &f, Some(&mut to), 8192)? {
        8192 => Ok(()),
        n => Err(io::Error::other(format!("{n} bytes copied"))),
    }
}

fn utimens(d: &Path) -> io::Result<()> {
    let t = |tv_sec| Timespec { tv_sec, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: t(1_100_000_000), last_modification: t(1_200_000_000) };
    Ok(rustix::fs::utimensat(CWD, d.join("f"), &times, AtFlags::empty())?)
}

fn set(d: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::setxattr(d.join("f"), name, value, XattrFlags::empty())?)
}
