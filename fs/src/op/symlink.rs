//! Symbolic links. The target lives in the inode's body.

use super::attr::{Attr, Cred};
use super::create::make;
use super::{S_IFLNK, S_IFMT};
use crate::error::{FsError, Step};
use crate::inode;
use crate::tx::Tx;
use luna_format::Ino;
use luna_format::inode::{BODY_BYTES, Layout};

/// The longest target; longer ones (Linux would allow 4,095 bytes) are refused with ENAMETOOLONG.
pub const TARGET_MAX: usize = BODY_BYTES;

/// Makes a symbolic link.
pub fn symlink(tx: &mut Tx<'_>, parent: Ino, name: &[u8], target: &[u8], cred: &Cred) -> Step<Attr> {
    if target.len() > TARGET_MAX {
        return Err(FsError::NameTooLong.into());
    }
    if target.is_empty() {
        return Err(FsError::NotFound.into());
    }
    if target.contains(&0) {
        return Err(FsError::Invalid("NUL in the target of a symbolic link").into());
    }
    let attr = make(tx, parent, name, S_IFLNK | 0o777, cred, |i| {
        (i.layout, i.inline_len, i.size) = (Layout::Inline as u8, target.len() as u32, target.len() as u64);
    })?;
    inode::body_mut(tx, attr.ino)?[..target.len()].copy_from_slice(target);
    Ok(attr)
}

/// The target of a symbolic link.
pub fn readlink(tx: &mut Tx<'_>, ino: Ino) -> Step<Vec<u8>> {
    let i = inode::get(tx, ino)?;
    if i.mode & S_IFMT != S_IFLNK || i.layout != Layout::Inline as u8 {
        return Err(FsError::Invalid("not a symbolic link").into());
    }
    Ok(inode::body(tx, ino)?[..i.inline_len as usize].to_vec())
}
