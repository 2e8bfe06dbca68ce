//! The ways of looking of the matrix. Each is prepared and has looked once before the change, so that its host remembers what it may.
//!
//! Times are told as what they are to the observer: a change of `mtime` or `ctime` since its first look, since clocks differ; a time that somebody set is
//! told as it is.

use super::{Eye, LEN, Look, errno_name};
use crate::io::Aligned;
use rustix::fs::{Access, AtFlags, CWD, Dir, Mode, OFlags, SeekFrom, accessat, openat, seek, statat};
use std::{
    collections::BTreeSet,
    fs::{self, File, Metadata, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
};
use vmap::{Extent, Map};

/// All of them.
pub const LOOKS: &[Look] = &[
    ("stat", |d| by_name(d, "f")),
    ("stat of the other file", |d| by_name(d, "g")),
    ("stat of the directory", |d| by_name(d, "")),
    ("stat of a directory below", |d| by_name(d, "sub")),
    ("stat of a new name", |d| maybe(d, "new")),
    ("lstat", lstat),
    ("fstat", |d| by_handle(d, "f")),
    ("fstat of a directory below", |d| by_handle(d, "sub")),
    ("statat from a handle", stat_from_handle),
    ("read", |d| read_handle(d, 0)),
    ("read by name", read_name),
    ("read O_DIRECT", |d| read_handle(d, libc::O_DIRECT)),
    ("mmap", mapped),
    ("readdir", |d| list(d, false)),
    ("readdir of an open directory", |d| list(d, true)),
    ("open", open_name),
    ("open for another user", open_as_nobody),
    ("access by another user", access_as_nobody),
    ("getxattr", |d| xattr(d, false)),
    ("listxattr", |d| xattr(d, true)),
    ("readlink", readlink),
    ("SEEK_HOLE", holes),
    ("size by seek", seek_end),
    ("statfs", statfs),
];

/// What is told of a stat, beside what it was at the first look.
fn told(m: &Metadata, first: &mut Option<Metadata>) -> String {
    let old = first.get_or_insert_with(|| m.clone());
    let another = m.ino() != old.ino();
    let time = |sec: i64, nsec: i64, old: (i64, i64)| match (sec, (sec, nsec) == old) {
        (..1_500_000_000, _) => format!("{sec}.{nsec}"),
        // two files that were made in the same tick have the same time, or not
        _ if another => "its own".into(),
        (_, true) => "same".into(),
        (_, false) => "new".into(),
    };
    // a directory's size is the file system's own affair
    let size = if m.is_dir() { 0 } else { m.len() };
    let mtime = time(m.mtime(), m.mtime_nsec(), (old.mtime(), old.mtime_nsec()));
    let ctime = time(m.ctime(), m.ctime_nsec(), (old.ctime(), old.ctime_nsec()));
    let same = if another { "another" } else { "same" };
    format!("{same} {:o} {}:{} links {} size {size} mtime {mtime} ctime {ctime}", m.mode(), m.uid(), m.gid(), m.nlink())
}

fn by_name(d: &Path, name: &str) -> io::Result<Eye> {
    let (path, mut first) = (d.join(name), None);
    Ok(Box::new(move || Ok(told(&fs::metadata(&path)?, &mut first))))
}

/// A name that need not be there.
fn maybe(d: &Path, name: &str) -> io::Result<Eye> {
    let path = d.join(name);
    Ok(Box::new(move || {
        Ok(match fs::symlink_metadata(&path) {
            Ok(m) => told(&m, &mut None),
            Err(e) => errno_name(&e),
        })
    }))
}

fn lstat(d: &Path) -> io::Result<Eye> {
    let (path, mut first) = (d.join("s"), None);
    Ok(Box::new(move || Ok(told(&fs::symlink_metadata(&path)?, &mut first))))
}

fn by_handle(d: &Path, name: &str) -> io::Result<Eye> {
    let (file, mut first) = (File::open(d.join(name))?, None);
    Ok(Box::new(move || Ok(told(&file.metadata()?, &mut first))))
}

fn stat_from_handle(d: &Path) -> io::Result<Eye> {
    let dir = openat(CWD, d, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    Ok(Box::new(move || {
        let s = statat(&dir, "f", AtFlags::empty())?;
        Ok(format!("{:o} {}:{} links {} size {}", s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_size))
    }))
}

fn digest(bytes: &[u8]) -> String {
    let mut h = DefaultHasher::new();
    bytes.hash(&mut h);
    format!("{} bytes, {:016x}", bytes.len(), h.finish())
}

/// Everything from an open file, to the end that read finds.
fn all_of(file: &File) -> io::Result<String> {
    let mut room = Aligned::new(256 << 10);
    let mut done = 0;
    loop {
        let n = file.read_at(&mut room.bytes_mut()[done..], done as u64)?;
        done += n;
        if n == 0 || !done.is_multiple_of(4096) {
            return Ok(digest(&room.bytes()[..done]));
        }
    }
}

fn read_handle(d: &Path, flags: i32) -> io::Result<Eye> {
    let file = OpenOptions::new().read(true).custom_flags(flags).open(d.join("f"))?;
    Ok(Box::new(move || all_of(&file)))
}

fn read_name(d: &Path) -> io::Result<Eye> {
    let path = d.join("f");
    Ok(Box::new(move || Ok(digest(&fs::read(&path)?))))
}

/// A mapping that was touched; of what is beyond the file's end now nothing is read (that is a signal).
fn mapped(d: &Path) -> io::Result<Eye> {
    let file = OpenOptions::new().read(true).open(d.join("f"))?;
    let map: Map = Map::with_options().len(Extent::Exact(LEN)).map(&file).map_err(io::Error::other)?;
    Ok(Box::new(move || {
        let there = (file.metadata()?.len() as usize).div_ceil(4096) * 4096;
        Ok(digest(&map[..there.min(LEN)]))
    }))
}

fn list(d: &Path, open: bool) -> io::Result<Eye> {
    let path = d.to_owned();
    let fresh = move || openat(CWD, &path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).and_then(Dir::new);
    let mut kept = if open { Some(fresh()?) } else { None };
    Ok(Box::new(move || {
        let mut new = if open { None } else { Some(fresh()?) };
        let Some(dir) = kept.as_mut().or(new.as_mut()) else { return Ok(String::new()) };
        // half a listing first, so that a kept one stands in the middle of something
        let _ = (dir.read(), dir.read());
        dir.rewind();
        let mut names = BTreeSet::new();
        while let Some(entry) = dir.read() {
            let entry = entry?;
            names.insert(format!("{} {:?}", entry.file_name().to_string_lossy(), entry.file_type()));
        }
        Ok(names.into_iter().collect::<Vec<_>>().join(", "))
    }))
}

fn open_name(d: &Path) -> io::Result<Eye> {
    let path = d.join("f");
    Ok(Box::new(move || Ok(format!("{} bytes", OpenOptions::new().read(true).write(true).open(&path)?.metadata()?.len()))))
}

/// What another user without groups is told.
fn as_nobody(call: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<String> {
    let told = std::thread::spawn(move || {
        crate::creds::become_user(65534, 65534)?;
        Ok(match call() {
            Ok(()) => "may".to_owned(),
            Err(e) => errno_name(&e),
        })
    });
    told.join().map_err(|_| io::Error::other("the thread panicked"))?
}

fn open_as_nobody(d: &Path) -> io::Result<Eye> {
    let path = d.join("f");
    Ok(Box::new(move || {
        let path = path.clone();
        as_nobody(move || File::open(path).map(drop))
    }))
}

fn access_as_nobody(d: &Path) -> io::Result<Eye> {
    let (file, sub) = (d.join("f"), d.join("sub"));
    Ok(Box::new(move || {
        let (file, sub) = (file.clone(), sub.clone());
        let one = as_nobody(move || Ok(accessat(CWD, file, Access::READ_OK, AtFlags::empty())?))?;
        let two = as_nobody(move || Ok(accessat(CWD, sub, Access::EXEC_OK, AtFlags::empty())?))?;
        Ok(format!("file: {one}; directory: {two}"))
    }))
}

fn xattr(d: &Path, names: bool) -> io::Result<Eye> {
    let path = d.join("f");
    Ok(Box::new(move || {
        let mut room = [0; 512];
        if names {
            let n = rustix::fs::listxattr(&path, &mut room[..])?;
            let set: BTreeSet<_> = room[..n].split(|b| *b == 0).map(String::from_utf8_lossy).filter(|n| n.starts_with("user.")).collect();
            return Ok(format!("{set:?}"));
        }
        let mut one = |name| match rustix::fs::getxattr(&path, name, &mut room[..]) {
            Ok(n) => String::from_utf8_lossy(&room[..n]).into_owned(),
            Err(e) => errno_name(&e.into()),
        };
        Ok(format!("{}, {}", one("user.x"), one("user.a")))
    }))
}

fn readlink(d: &Path) -> io::Result<Eye> {
    let path = d.join("s");
    Ok(Box::new(move || Ok(fs::read_link(&path)?.display().to_string())))
}

fn holes(d: &Path) -> io::Result<Eye> {
    let file = File::open(d.join("f"))?;
    Ok(Box::new(move || {
        let (mut out, mut at) = (String::new(), 0);
        loop {
            let data = match seek(&file, SeekFrom::Data(at)) {
                Ok(n) => n,
                Err(rustix::io::Errno::NXIO) => return Ok(out),
                Err(e) => return Err(e.into()),
            };
            at = seek(&file, SeekFrom::Hole(data))?;
            out += &format!("data {data}..{at} ");
        }
    }))
}

fn seek_end(d: &Path) -> io::Result<Eye> {
    let file = File::open(d.join("f"))?;
    Ok(Box::new(move || Ok(seek(&file, SeekFrom::End(0))?.to_string())))
}

/// Only that it answers, and that the file system has a size: other programs use the local one too.
fn statfs(d: &Path) -> io::Result<Eye> {
    let path = d.to_owned();
    Ok(Box::new(move || {
        let s = rustix::fs::statvfs(&path)?;
        Ok(format!("names {} sane {}", s.f_namemax, s.f_bfree <= s.f_blocks && s.f_bavail > 0))
    }))
}
