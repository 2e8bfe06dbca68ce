//! The words of the tables, done. An error is the call's own.

use super::octal;
use crate::creds::become_member;
use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, Uid, accessat,
    chmodat, chownat, fallocate, ftruncate, linkat, mkdirat, mknodat, openat, renameat_with, symlinkat, unlinkat, utimensat,
};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
};

/// A path of a row: `$255` and `$256` are names of that length, `$4096` is a path that is too long, `$link3840` a target of that length.
pub(super) fn name(word: &str) -> String {
    let long = |n: usize| "n".repeat(n);
    word.replace("$255", &long(255)).replace("$256", &long(256)).replace("$4096", &"d/".repeat(2050)).replace("$link3840", &long(3840))
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::other(format!("not a number: {text}")))
}

/// Does `words` below `dir`.
pub(super) fn run(dir: &Path, words: &str) -> io::Result<()> {
    let list: Vec<&str> = words.split_whitespace().collect();
    if let ["as", who, rest @ ..] = &list[..] {
        let ids = who.split(':').map(number::<u32>).collect::<io::Result<Vec<_>>>()?;
        let (dir, rest) = (dir.to_owned(), rest.join(" "));
        let done = std::thread::spawn(move || {
            become_member(ids[0], ids[1], &ids[2..])?;
            run(&dir, &rest)
        });
        return done.join().map_err(|_| io::Error::other("the thread panicked"))?;
    }
    let path = |n: usize| dir.join(name(list.get(n).copied().unwrap_or_default()));
    // a trailing slash is lost by join's parent, never by join itself
    match list[..] {
        ["make", kind, p] => make(dir, kind, p),
        ["mkdir", _] => Ok(mkdirat(CWD, path(1), Mode::from_raw_mode(0o755))?),
        ["mkdir", _, mode] => Ok(mkdirat(CWD, path(1), Mode::from_raw_mode(octal(mode)?))?),
        ["mknod", kind, _, mode] => node(&path(2), kind, octal(mode)?),
        ["creat", _] => open(&path(1), "creat", 0o644),
        ["creat", _, mode] => open(&path(1), "creat", octal(mode)?),
        ["symlink", target, _] => Ok(symlinkat(name(target), CWD, path(2))?),
        ["link", ..] => Ok(linkat(CWD, path(1), CWD, path(2), AtFlags::empty())?),
        ["unlink", _] => Ok(unlinkat(CWD, path(1), AtFlags::empty())?),
        ["rmdir", _] => Ok(unlinkat(CWD, path(1), AtFlags::REMOVEDIR)?),
        ["rename", ..] => Ok(renameat_with(CWD, path(1), CWD, path(2), RenameFlags::empty())?),
        ["noreplace", ..] => Ok(renameat_with(CWD, path(1), CWD, path(2), RenameFlags::NOREPLACE)?),
        ["exchange", ..] => Ok(renameat_with(CWD, path(1), CWD, path(2), RenameFlags::EXCHANGE)?),
        ["chmod", _, mode] => Ok(chmodat(CWD, path(1), Mode::from_raw_mode(octal(mode)?), AtFlags::empty())?),
        ["chown", _, uid, gid] => own(&path(1), uid, gid, AtFlags::empty()),
        ["lchown", _, uid, gid] => own(&path(1), uid, gid, AtFlags::SYMLINK_NOFOLLOW),
        ["utimens", _, sec] => times(&path(1), Timespec { tv_sec: number(sec)?, tv_nsec: 7 }),
        ["now", _] => times(&path(1), Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }),
        ["write", _, n] => OpenOptions::new().append(true).open(path(1))?.write_all(&vec![b'x'; number(n)?]),
        ["read", _] => fs::read(path(1)).map(drop),
        ["list", _] => fs::read_dir(path(1)).map(drop),
        ["stat", _] => fs::metadata(path(1)).map(drop),
        ["readlink", _] => fs::read_link(path(1)).map(drop),
        ["truncate", _, n] => truncate(&path(1), number(n)?),
        ["ftruncate", _, n] => Ok(ftruncate(OpenOptions::new().write(true).open(path(1))?, number(n)?)?),
        ["ftruncate-read-only", _, n] => Ok(ftruncate(OpenOptions::new().read(true).open(path(1))?, number(n)?)?),
        ["allocate", _, at, len] => {
            let file = OpenOptions::new().write(true).open(path(1))?;
            Ok(fallocate(file, FallocateFlags::empty(), number(at)?, number(len)?)?)
        }
        ["open", _, flags] => open(&path(1), flags, 0o644),
        ["open", _, flags, mode] => open(&path(1), flags, octal(mode)?),
        ["access", _, what] => {
            let bit = |c, b| if what.contains(c) { b } else { Access::empty() };
            let wanted = bit('r', Access::READ_OK) | bit('w', Access::WRITE_OK) | bit('x', Access::EXEC_OK);
            Ok(accessat(CWD, path(1), wanted, AtFlags::empty())?)
        }
        _ => Err(io::Error::other(format!("not understood: {words}"))),
    }
}

fn make(dir: &Path, kind: &str, p: &str) -> io::Result<()> {
    let path = dir.join(name(p));
    match kind {
        "dir" => Ok(mkdirat(CWD, path, Mode::from_raw_mode(0o755))?),
        "file" => open(&path, "creat", 0o644),
        "symlink" => Ok(symlinkat("nowhere", CWD, path)?),
        _ => node(&path, kind, 0o644),
    }
}

fn node(path: &Path, kind: &str, mode: u32) -> io::Result<()> {
    let (kind, device) = match kind {
        "fifo" => (FileType::Fifo, 0),
        "socket" => (FileType::Socket, 0),
        "char" => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        "block" => (FileType::BlockDevice, rustix::fs::makedev(7, 200)),
        "file" => (FileType::RegularFile, 0),
        _ => return Err(io::Error::other(format!("no type: {kind}"))),
    };
    Ok(mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device)?)
}

fn own(path: &Path, uid: &str, gid: &str, flags: AtFlags) -> io::Result<()> {
    let id = |t: &str| if t == "-" { Ok(None) } else { number::<u32>(t).map(Some) };
    Ok(chownat(CWD, path, id(uid)?.map(Uid::from_raw), id(gid)?.map(Gid::from_raw), flags)?)
}

fn times(path: &Path, t: Timespec) -> io::Result<()> {
    Ok(utimensat(CWD, path, &Timestamps { last_access: t, last_modification: t }, AtFlags::empty())?)
}

/// truncate(2) by its path: the permissions are looked at as the call does.
fn truncate(path: &Path, size: i64) -> io::Result<()> {
    nix::unistd::truncate(path, size).map_err(Into::into)
}

fn open(path: &Path, flags: &str, mode: u32) -> io::Result<()> {
    let mut all = OFlags::CLOEXEC | OFlags::NONBLOCK;
    for f in flags.split('+') {
        all |= match f {
            "r" => OFlags::RDONLY,
            "w" => OFlags::WRONLY,
            "rw" => OFlags::RDWR,
            "creat" => OFlags::CREATE | OFlags::WRONLY,
            "excl" => OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY,
            "trunc" => OFlags::TRUNC | OFlags::WRONLY,
            "dir" => OFlags::DIRECTORY,
            "nofollow" => OFlags::NOFOLLOW,
            _ => return Err(io::Error::other(format!("no flag: {f}"))),
        };
    }
    openat(CWD, path, all, Mode::from_raw_mode(mode))?;
    Ok(())
}
