//! What a guest does to a mounted image: reads every directory and every file, then writes, makes, renames and removes.
//!
//! Invariant: a walk ends, however the directories lead: each inode is entered once, each directory is listed at most `PAGES` pages long,
//! each file read at its beginning, its end and where its extents are. Errors are what is expected of a damaged image, and go by. Not here:
//! what is right (there is no truth to compare with).

use crate::host::Host;
use luna_format::inode::FLAG_ORPHAN;
use luna_format::{Ino, Slot};
use luna_fs::op::{self, Cred, SetAttr, When};
use luna_fs::{FsError, inode, orphan, xattr};
use std::collections::{BTreeSet, VecDeque};

/// Inodes entered at the most.
const INODES: usize = 300;
/// Pages of one directory read at the most: more than the image has names.
const PAGES: usize = 200;
/// Names a page asks for.
const PAGE: usize = 16;

/// How much of a walk is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Change things, too.
    pub change: bool,
}

/// What was met.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Inodes entered.
    pub inodes: usize,
    /// Calls that failed.
    pub errors: usize,
    /// The last of them.
    pub last: Option<String>,
}

impl Met {
    fn note<T>(&mut self, what: Result<T, FsError>) -> Option<T> {
        match what {
            Ok(v) => Some(v),
            Err(e) => {
                self.errors += 1;
                self.last = Some(e.to_string());
                None
            }
        }
    }
}

/// Walks from the root.
pub fn walk(host: &Host, how: Walk) -> Met {
    let mut met = Met::default();
    let sb = &host.fs.volume.sb;
    let (mut seen, mut todo) = (BTreeSet::new(), VecDeque::from([sb.root_ino]));
    todo.extend((0..sb.slots as Slot).map(|s| sb.orphan_dir(s)));
    luna_fs::alloc::refresh_hints(&host.fs.volume);
    let _ = luna_fs::alloc::statfs(&host.fs.volume);
    while let Some(ino) = todo.pop_front() {
        if seen.len() >= INODES || !seen.insert(ino) {
            continue;
        }
        met.inodes += 1;
        let v = &host.fs.volume;
        let Some(a) = met.note(v.run(|tx| op::getattr(tx, ino))) else { continue };
        xattrs(host, ino, &mut met);
        match a.mode & op::S_IFMT {
            op::S_IFDIR => todo.extend(directory(host, ino, &mut met)),
            op::S_IFLNK => drop(met.note(v.run(|tx| op::readlink(tx, ino)))),
            op::S_IFREG => content(host, ino, a.size, &mut met),
            _ => {}
        }
    }
    if how.change {
        let entered: Vec<Ino> = seen.into_iter().collect();
        change(host, &entered, &mut met);
    }
    met
}

fn xattrs(host: &Host, ino: Ino, met: &mut Met) {
    let v = &host.fs.volume;
    let names = met.note(v.run(|tx| xattr::list(tx, ino))).unwrap_or_default();
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()).take(8) {
        met.note(v.run(|tx| xattr::get(tx, ino, name)));
    }
}

fn directory(host: &Host, dir: Ino, met: &mut Met) -> Vec<Ino> {
    let (v, mut found, mut cookie) = (&host.fs.volume, Vec::new(), 0);
    for page in 0.. {
        assert!(page < PAGES, "directory {dir} does not end");
        let Some(entries) = met.note(v.run(|tx| op::readdir(tx, dir, cookie, PAGE))) else { break };
        let Some(last) = entries.last() else { break };
        assert!(last.cookie > cookie, "readdir of {dir} goes back: {} after {cookie}", last.cookie);
        cookie = last.cookie;
        for e in entries.iter().filter(|e| e.name != b"." && e.name != b"..").take(4) {
            met.note(v.run(|tx| op::lookup(tx, dir, &e.name)));
        }
        found.extend(entries.into_iter().map(|e| e.ino));
    }
    found
}

fn content(host: &Host, ino: Ino, size: u64, met: &mut Met) {
    let fs = &host.fs;
    let Some(file) = met.note(fs.open_wait(ino, 0)) else { return };
    for at in [0, 8192, 1 << 20, (1 << 20) + 4096, 1 << 30, 1 << 40, size.saturating_sub(5000), u64::MAX - 5] {
        met.note(fs.pread(&file, at, 70_000, |_| ()));
    }
    fs.close_file(file);
    host.machine.work();
}

fn change(host: &Host, inodes: &[Ino], met: &mut Met) {
    let v = &host.fs.volume;
    let lists = v.sb.orphan_ino..v.sb.orphan_ino + u64::from(v.sb.slots);
    for ino in inodes.iter().take(40) {
        let Some(i) = met.note(v.run(|tx| inode::get(tx, *ino))) else { continue };
        met.note(v.run(|tx| xattr::set(tx, *ino, b"user.new", &[1; 40], 0)));
        met.note(v.run(|tx| xattr::remove(tx, *ino, b"user.one")));
        let set = SetAttr { mode: Some(0o600), mtime: Some(When::Now), ..SetAttr::default() };
        met.note(v.run(|tx| op::setattr(tx, *ino, &set, &Cred::default())));
        match i.mode & op::S_IFMT {
            op::S_IFREG if i.flags & FLAG_ORPHAN == 0 => data(host, *ino, met),
            // the way up from a list of orphans does not end at the root: a rename into one looks 65,536 levels far
            op::S_IFDIR if !lists.contains(ino) => names(host, *ino, met),
            _ => {}
        }
    }
    for slot in 0..v.sb.slots as Slot {
        met.note(orphan::sweep(v, slot));
    }
    met.note(v.sync_all());
    met.note(v.checkpoint());
}

/// Writes inside, over a hole, behind the end; punches, cuts, allocates.
fn data(host: &Host, ino: Ino, met: &mut Met) {
    let fs = &host.fs;
    let Some(file) = met.note(fs.open_wait(ino, 2)) else { return };
    for (at, len) in [(0, 4096), (4096, 100), (12_288, 9000), (1 << 20, 4096), (1 << 41, 10)] {
        met.note(fs.pwrite(&file, at, &vec![3; len], |_| ()));
    }
    met.note(fs.fallocate_wait(&file, 0, 2 << 20, 1 << 20));
    // punch a hole, keep the size
    met.note(fs.fallocate_wait(&file, 3, 16_384, 100_000));
    met.note(fs.pread(&file, 0, 200_000, |_| ()));
    met.note(fs.fsync(&file));
    met.note(fs.ftruncate(&file, 5000));
    met.note(fs.ftruncate(&file, 1 << 42));
    fs.close_file(file);
    host.machine.work();
}

fn names(host: &Host, dir: Ino, met: &mut Met) {
    let (v, cred) = (&host.fs.volume, Cred::default());
    let long = [b'z'; 255];
    met.note(v.run(|tx| op::create(tx, dir, &long, 0o100_600, 0, &cred)));
    met.note(v.run(|tx| op::mkdir(tx, dir, b"made", 0o700, &cred)));
    met.note(v.run(|tx| op::rename(tx, dir, &long, dir, b"renamed", 0)));
    met.note(v.run(|tx| op::rename(tx, dir, b"renamed", v.sb.root_ino, b"moved", 0)));
    met.note(v.run(|tx| op::rename(tx, v.sb.root_ino, b"dir", dir, b"dir", 0)));
    met.note(v.run(|tx| op::rmdir(tx, dir, b"made")));
    let page = met.note(v.run(|tx| op::readdir(tx, dir, op::COOKIE_DOT_DOT, 30))).unwrap_or_default();
    for e in page.iter().take(30) {
        if u32::from(e.kind) << 12 == op::S_IFDIR {
            met.note(v.run(|tx| op::rmdir(tx, dir, &e.name)));
        } else {
            met.note(v.run(|tx| op::unlink(tx, dir, &e.name)));
        }
    }
}
