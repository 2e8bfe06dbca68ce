//! Between the file system's words and FUSE's.
//!
//! Invariant: inode numbers are the same on both sides but for the root, which FUSE calls 1 (block 1 is never an inode).

use crate::error::FsError;
use crate::op::{Attr, When};
use fuser::{Errno, FileAttr, FileType, Generation, INodeNo, TimeOrNow};
use luna_format::Ino;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// FUSE's number for an inode.
pub(super) fn outside(ino: Ino, root: Ino) -> u64 {
    if ino == root { 1 } else { ino }
}

/// The inode of a FUSE number.
pub(super) fn inside(n: INodeNo, root: Ino) -> Ino {
    if n.0 == 1 { root } else { n.0 }
}

/// The errno of an error; damage and LUN failures are logged here, where users meet them.
pub(super) fn errno(e: &FsError) -> Errno {
    match e {
        FsError::Corrupt(_) | FsError::Damaged { .. } | FsError::Lun(_) | FsError::Invalid("operation restarted without end") => {
            tracing::error!(error = %e, "a request failed");
        }
        _ => tracing::trace!(error = %e, "a request failed"),
    }
    Errno::from_i32(e.errno())
}

/// The type bits of a mode.
pub(super) fn kind(mode: u32) -> FileType {
    match mode >> 12 & 0o17 {
        0o04 => FileType::Directory,
        0o12 => FileType::Symlink,
        0o01 => FileType::NamedPipe,
        0o14 => FileType::Socket,
        0o02 => FileType::CharDevice,
        0o06 => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn time(ns: i64) -> SystemTime {
    let d = Duration::from_nanos(ns.unsigned_abs());
    let t = if ns >= 0 { UNIX_EPOCH.checked_add(d) } else { UNIX_EPOCH.checked_sub(d) };
    t.unwrap_or(UNIX_EPOCH)
}

/// Nanoseconds since 1970; what does not fit becomes the nearest that does.
pub(super) fn nanos(t: SystemTime) -> i64 {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_nanos()).unwrap_or(i64::MAX),
        Err(e) => i64::try_from(e.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

/// A time to be set.
pub(super) fn when(t: TimeOrNow) -> When {
    match t {
        TimeOrNow::Now => When::Now,
        TimeOrNow::SpecificTime(t) => When::Set(nanos(t)),
    }
}

/// Attributes.
pub(super) fn attr(a: &Attr, root: Ino) -> FileAttr {
    FileAttr {
        ino: INodeNo(outside(a.ino, root)),
        size: a.size,
        blocks: a.blocks512,
        atime: time(a.atime_ns),
        mtime: time(a.mtime_ns),
        ctime: time(a.ctime_ns),
        crtime: time(a.btime_ns),
        kind: kind(a.mode),
        perm: (a.mode & 0o7777) as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: a.blksize,
        flags: 0,
    }
}

/// Generation.
pub(super) fn generation(a: &Attr) -> Generation {
    Generation(a.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_way_there_and_back() {
        for ns in [0, 1, -1, 1_700_000_000_123_456_789, -5_000_000_001] {
            assert_eq!(nanos(time(ns)), ns);
        }
    }

    #[test]
    fn the_root_is_one_and_nothing_else_changes() {
        assert_eq!((outside(77, 77), inside(INodeNo(1), 77)), (1, 77));
        assert_eq!((outside(78, 77), inside(INodeNo(78), 77)), (78, 78));
    }
}
