//! Workloads: short sequences of file system operations with a sync between, all of them up to a length.
//!
//! The idea is that of bounded black-box crash testing (ACE and CrashMonkey, OSDI 2018): most crash bugs show in two or three operations on a few
//! files, with a sync between. The files are those of [`base`]: one of extents, one small enough for its inode, links, an attribute,
//! directories, one of them empty. Every write has bytes of its own.
//!
//! Invariant: the same index is the same workload. Not here: what may be left of them (`model`).

use super::hosts::Hosts;
use luna_format::Ino;
use luna_fs::data::{FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE};
use luna_fs::op::{self, Cred};
use luna_fs::{Fs, FsError, xattr};
use std::sync::Arc;

/// A path below the root.
pub(super) type Path = &'static str;

/// What is done to a file's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Falloc {
    Keep,
    Grow,
    Punch,
    Zero,
    ZeroKeep,
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Creat(Path),
    Mkdir(Path),
    /// At this offset, so many bytes.
    Write(Path, u64, usize),
    /// The same through a handle with O_DSYNC.
    Dsync(Path, u64, usize),
    /// At the end.
    Append(Path, usize),
    Truncate(Path, u64),
    Fallocate(Path, Falloc, u64, u64),
    Link(Path, Path),
    Symlink(Path),
    Unlink(Path),
    Rmdir(Path),
    Rename(Path, Path),
    Exchange(Path, Path),
    SetX(Path),
    RemoveX(Path),
}

/// What is made durable after an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sync {
    None,
    /// fsync of what the operation was about.
    File,
    /// fsync of the directory it is in.
    Dir,
    /// Everything of that host.
    All,
    /// The background: everything goes home.
    Home,
}

/// An operation on a host, and what is synced then, on which host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) host: usize,
    pub(super) op: Op,
    pub(super) sync: Sync,
    pub(super) sync_host: usize,
}

/// Operations of the sequences.
pub(super) const OPS: &[Op] = &[
    Op::Creat("bar"),
    Op::Creat("B/foo"),
    Op::Mkdir("B/D"),
    Op::Write("foo", 0, 4096),
    Op::Write("foo", 5000, 3000),
    Op::Write("foo", 8192, 16384),
    Op::Write("foo", 40960, 4096),
    Op::Write("A/foo", 6000, 5000),
    Op::Write("A/bar", 100, 300),
    Op::Write("A/bar", 3000, 3000),
    Op::Write("B/foo", 0, 5000),
    Op::Write("bar", 512, 1000),
    Op::Append("foo", 4096),
    Op::Append("A/foo", 20000),
    Op::Dsync("foo", 4096, 4096),
    Op::Dsync("A/foo", 8192, 4096),
    Op::Dsync("A/bar", 0, 200),
    Op::Dsync("foo", 40960, 4096),
    Op::Truncate("foo", 0),
    Op::Truncate("foo", 5000),
    Op::Truncate("foo", 30000),
    Op::Truncate("A/foo", 4096),
    Op::Truncate("A/bar", 10),
    Op::Fallocate("foo", Falloc::Keep, 16384, 8192),
    Op::Fallocate("A/foo", Falloc::Grow, 8192, 8192),
    Op::Fallocate("A/bar", Falloc::Grow, 0, 8192),
    Op::Fallocate("foo", Falloc::Punch, 4096, 4096),
    Op::Fallocate("foo", Falloc::Punch, 1000, 6000),
    Op::Fallocate("foo", Falloc::ZeroKeep, 2048, 8192),
    Op::Fallocate("A/foo", Falloc::Zero, 4096, 8192),
    Op::Link("foo", "B/foo"),
    Op::Link("A/bar", "bar"),
    Op::Symlink("B/foo"),
    Op::Unlink("foo"),
    Op::Unlink("A/foo"),
    Op::Unlink("A/bar"),
    Op::Rmdir("B"),
    Op::Rename("foo", "bar"),
    Op::Rename("foo", "A/foo"),
    Op::Rename("A/bar", "foo"),
    Op::Rename("A/foo", "B/foo"),
    Op::Rename("A", "B"),
    Op::Rename("B", "A/D"),
    Op::Exchange("foo", "A/bar"),
    Op::SetX("foo"),
    Op::SetX("A/bar"),
    Op::RemoveX("A/foo"),
];

/// Syncs after an operation.
pub(super) const SYNCS: [Sync; 5] = [Sync::None, Sync::File, Sync::Dir, Sync::All, Sync::Home];

/// What every workload begins with.
pub(super) const BASE: &[Op] = &[
    Op::Mkdir("A"),
    Op::Mkdir("B"),
    Op::Creat("foo"),
    Op::Write("foo", 0, 13288),
    Op::Creat("A/foo"),
    Op::Write("A/foo", 0, 8192),
    Op::SetX("A/foo"),
    Op::Creat("A/bar"),
    Op::Write("A/bar", 0, 700),
];

impl Op {
    /// What it is about, after it.
    pub(super) fn about(&self) -> Path {
        match *self {
            Self::Creat(p)
            | Self::Mkdir(p)
            | Self::Write(p, ..)
            | Self::Dsync(p, ..)
            | Self::Append(p, _)
            | Self::Truncate(p, _)
            | Self::Fallocate(p, ..)
            | Self::Symlink(p)
            | Self::Unlink(p)
            | Self::Rmdir(p)
            | Self::SetX(p)
            | Self::RemoveX(p)
            | Self::Link(_, p)
            | Self::Rename(_, p)
            | Self::Exchange(_, p) => p,
        }
    }
}

/// Directory and last name of a path.
pub(super) fn split(p: Path) -> (Path, Path) {
    p.rsplit_once('/').unwrap_or(("", p))
}

/// The bytes of a write: each 16 of them say which write, which offset; none is zero.
pub(super) fn bytes(tag: u32, offset: u64, len: usize) -> Vec<u8> {
    let at = |n: u64| {
        let word = n / 16;
        let text = [0xa5, 0x5a, tag as u8 | 0x80, (tag >> 7) as u8 | 0x80];
        match n % 16 {
            i @ 0..4 => text[i as usize],
            i => ((word >> (7 * (i % 4))) as u8) | 0x80,
        }
    };
    (offset..offset + len as u64).map(at).collect()
}

fn lookup(fs: &Fs, path: &str) -> Result<Ino, FsError> {
    path.split('/')
        .filter(|n| !n.is_empty())
        .try_fold(fs.volume.sb.root_ino, |dir, n| fs.run(|tx| op::lookup(tx, dir, n.as_bytes())).map(|a| a.ino))
}

fn with_file(
    fs: &Arc<Fs>,
    path: &str,
    flags: i32,
    work: impl FnOnce(&luna_fs::open::OpenFile) -> Result<(), FsError>,
) -> Result<(), FsError> {
    let file = fs.open_wait(lookup(fs, path)?, flags)?;
    let done = work(&file);
    fs.close_file(file);
    done
}

fn write(fs: &Arc<Fs>, path: &str, at: Option<u64>, flags: i32, tag: u32, len: usize) -> Result<(), FsError> {
    let ino = lookup(fs, path)?;
    let end = fs.run(|tx| op::getattr(tx, ino))?.size;
    let data = bytes(tag, at.unwrap_or(end), len);
    with_file(fs, path, flags, |f| {
        let n = fs.pwrite(f, at.unwrap_or(end), &data, |_| ())?;
        if n as usize == len { Ok(()) } else { Err(FsError::Invalid("a short write")) }
    })
}

/// Does it.
pub(super) fn perform(fs: &Arc<Fs>, o: Op, tag: u32) -> Result<(), FsError> {
    let cred = Cred::default();
    let direct = libc::O_RDWR | libc::O_DIRECT;
    let parent = |p: Path| -> Result<(Ino, &'static [u8]), FsError> {
        let (dir, name) = split(p);
        Ok((lookup(fs, dir)?, name.as_bytes()))
    };
    let two = |p: Path, q: Path, flags: u32| -> Result<(), FsError> {
        let ((d, n), (e, m)) = (parent(p)?, parent(q)?);
        fs.run(|tx| op::rename(tx, d, n, e, m, flags))
    };
    match o {
        Op::Creat(p) => parent(p).and_then(|(d, n)| fs.run(|tx| op::create(tx, d, n, 0o644, 0, &cred)).map(drop)),
        Op::Mkdir(p) => parent(p).and_then(|(d, n)| fs.run(|tx| op::mkdir(tx, d, n, 0o755, &cred)).map(drop)),
        Op::Symlink(p) => parent(p).and_then(|(d, n)| fs.run(|tx| op::symlink(tx, d, n, b"nowhere", &cred)).map(drop)),
        Op::Write(p, at, len) => write(fs, p, Some(at), direct, tag, len),
        Op::Dsync(p, at, len) => write(fs, p, Some(at), direct | libc::O_DSYNC, tag, len),
        Op::Append(p, len) => write(fs, p, None, libc::O_WRONLY | libc::O_APPEND, tag, len),
        Op::Truncate(p, size) => with_file(fs, p, libc::O_RDWR, |f| fs.ftruncate(f, size)),
        Op::Fallocate(p, how, at, len) => {
            let mode = match how {
                Falloc::Keep => FALLOC_KEEP_SIZE,
                Falloc::Grow => 0,
                Falloc::Punch => FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
                Falloc::Zero => FALLOC_ZERO_RANGE,
                Falloc::ZeroKeep => FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
            };
            with_file(fs, p, libc::O_RDWR, |f| fs.fallocate_wait(f, mode, at, len))
        }
        Op::Link(p, q) => {
            let (ino, (d, n)) = (lookup(fs, p)?, parent(q)?);
            fs.run(|tx| op::link(tx, ino, d, n)).map(drop)
        }
        Op::Unlink(p) => parent(p).and_then(|(d, n)| fs.run(|tx| op::unlink(tx, d, n))),
        Op::Rmdir(p) => parent(p).and_then(|(d, n)| fs.run(|tx| op::rmdir(tx, d, n))),
        Op::Rename(p, q) => two(p, q, 0),
        Op::Exchange(p, q) => two(p, q, op::RENAME_EXCHANGE),
        Op::SetX(p) => lookup(fs, p).and_then(|ino| fs.run(|tx| xattr::set(tx, ino, b"user.x", &bytes(tag, 0, 40), 0))),
        Op::RemoveX(p) => lookup(fs, p).and_then(|ino| fs.run(|tx| xattr::remove(tx, ino, b"user.x"))),
    }
}

/// Makes it durable. False: what was to be synced is not there.
pub(super) fn sync(fs: &Arc<Fs>, o: Op, how: Sync) -> Result<bool, FsError> {
    let (dir, _) = split(o.about());
    let path = match how {
        Sync::None => return Ok(false),
        Sync::All => return fs.volume.sync_all().map(|()| true),
        Sync::Home => return fs.volume.sync_all().and_then(|()| fs.volume.checkpoint()).map(|()| true),
        Sync::File => o.about(),
        Sync::Dir => dir,
    };
    let Ok(ino) = lookup(fs, path) else { return Ok(false) };
    let mode = fs.run(|tx| op::getattr(tx, ino))?.mode;
    if mode & op::S_IFMT == op::S_IFREG {
        with_file(fs, path, libc::O_RDWR, |f| fs.fsync(f)).map(|()| true)
    } else if op::is_dir(mode) {
        fs.sync_dir(ino).map(|()| true)
    } else {
        Ok(false)
    }
}

/// Takes nearly all free space with a file of its own; leaves so many blocks.
pub(super) fn fill(hosts: &Arc<Hosts>, leave: u64) -> Result<(), String> {
    let filled = hosts.on(0, |fs| {
        perform(fs, Op::Creat("full"), 0)?;
        luna_fs::alloc::refresh_hints(&fs.volume);
        let t = luna_fs::alloc::statfs(&fs.volume);
        let blocks = t.free.saturating_sub(t.free_meta).saturating_sub(leave);
        with_file(fs, "full", libc::O_RDWR, |f| fs.fallocate_wait(f, FALLOC_KEEP_SIZE, 1 << 20, blocks * 4096))
    })?;
    match filled {
        Some(Err(e)) => Err(format!("fill: {e}")),
        _ => Ok(()),
    }
}
