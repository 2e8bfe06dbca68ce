//! What stat(2) tells, and who asks.

use crate::error::Step;
use crate::inode;
use crate::tx::Tx;
use luna_format::Ino;
use luna_format::inode::Inode;

/// Attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Differs for each file that ever had this number.
    pub generation: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks512: u64,
    /// Access time, nanoseconds since 1970.
    pub atime_ns: i64,
    /// Modification time.
    pub mtime_ns: i64,
    /// Change time.
    pub ctime_ns: i64,
    /// Birth time.
    pub btime_ns: i64,
    /// Device number.
    pub rdev: u32,
    /// Preferred I/O size.
    pub blksize: u32,
}

impl Attr {
    /// From the fields on disk.
    pub fn of(ino: Ino, i: &Inode) -> Self {
        Self {
            ino,
            generation: i.generation,
            mode: i.mode,
            nlink: i.nlink,
            uid: i.uid,
            gid: i.gid,
            size: i.size,
            blocks512: i.blocks.saturating_mul(8),
            atime_ns: i.atime_ns,
            mtime_ns: i.mtime_ns,
            ctime_ns: i.ctime_ns,
            btime_ns: i.btime_ns,
            rdev: i.rdev,
            blksize: 4096,
        }
    }
}

/// On whose behalf an operation runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cred {
    /// File system user.
    pub uid: u32,
    /// File system group.
    pub gid: u32,
    /// Further groups, where known.
    pub groups: Option<Vec<u32>>,
    /// Permission bits to leave out of new files.
    pub umask: u32,
}

impl Cred {
    /// Whether the caller is known not to belong to `gid`.
    pub fn is_outside(&self, gid: u32) -> bool {
        self.uid != 0 && self.gid != gid && self.groups.as_ref().is_some_and(|g| !g.contains(&gid))
    }
}

/// Attributes of an inode.
pub fn getattr(tx: &mut Tx<'_>, ino: Ino) -> Step<Attr> {
    Ok(Attr::of(ino, &inode::get(tx, ino)?))
}
