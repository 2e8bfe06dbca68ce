//! The names under which the file system asks the lock manager, and the one order in which they are taken.
//!
//! A name is a class byte and a number, big-endian, so that the byte order of names *is* the lock order: rename, inodes by
//! number, open files, allocation groups by number, freeze. The driver takes what an operation needs in this order and no other.

use luna_dlm::Name;
use luna_format::Ino;

/// Classes in lock order. The numbers are part of the protocol between hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// One name for the volume: a directory changes its parent.
    Rename = 1,
    /// An inode: attributes, body, extents or entries, xattrs.
    Inode = 2,
    /// The right that an open file holds (PR) and the reaper of unlinked files asks for (EX).
    Open = 3,
    /// An allocation group: header and bitmaps.
    Group = 4,
    /// Byte-range locks of a file (queue only, no cached state).
    Posix = 5,
    /// One name for the volume: PR by whoever may change metadata, EX by whoever wants it to stand still. Whoever waits
    /// for it has nothing else.
    Freeze = 6,
}

fn name(class: Class, n: u64) -> Name {
    let mut b = [0; 16];
    b[0] = class as u8;
    b[8..].copy_from_slice(&n.to_be_bytes());
    Name(b)
}

/// The volume-wide right to change metadata at all.
pub fn freeze() -> Name {
    name(Class::Freeze, 0)
}

/// The volume-wide rename right.
pub fn rename() -> Name {
    name(Class::Rename, 0)
}

/// The right on inode `ino`.
pub fn inode(ino: Ino) -> Name {
    name(Class::Inode, ino)
}

/// The open right on inode `ino`.
pub fn open(ino: Ino) -> Name {
    name(Class::Open, ino)
}

/// The right on allocation group `ag`.
pub fn group(ag: u64) -> Name {
    name(Class::Group, ag)
}

/// The byte-range locks of `ino`.
pub fn posix(ino: Ino) -> Name {
    name(Class::Posix, ino)
}

/// Class and number of a name; `None` for bytes that are no name of ours.
pub fn split(n: &Name) -> Option<(Class, u64)> {
    let class =
        [Class::Rename, Class::Inode, Class::Open, Class::Group, Class::Posix, Class::Freeze].into_iter().find(|c| *c as u8 == n.0[0])?;
    Some((class, u64::from_be_bytes(n.0[8..].try_into().ok()?)))
}
