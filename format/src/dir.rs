//! Directory entries: packed records, sorted by (hash, name), in an inode's body or in a directory leaf.
//!
//! A record is a [`DirentHead`] and the name, padded with zeroes to 8 bytes. The hash is SipHash-2-4 of the name under the
//! volume's key, cut to 62 bits and moved above [`FIRST_COOKIE`], so that it serves as readdir cookie (a positive i64) and
//! cannot be forced to collide by users who do not know the key. Not here: `.` and `..` (never stored).

use crate::CheckError;
use std::hash::Hasher;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The longest name in bytes.
pub const NAME_MAX: usize = 255;
/// Hashes are at least this: 0, 1 and 2 are the cookies of the start, `.` and `..`.
pub const FIRST_COOKIE: u64 = 16;

/// Fixed part of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DirentHead {
    /// 0: hash of the name.
    pub hash: u64,
    /// 8: inode number.
    pub ino: u64,
    /// 16: generation of the inode.
    pub generation: u64,
    /// 24: bytes of the whole record, padding included.
    pub len: u16,
    /// 26: bytes of the name.
    pub name_len: u8,
    /// 27: file type, `mode >> 12`.
    pub kind: u8,
    /// 28: zero.
    pub zero: u32,
}
/// Bytes of [`DirentHead`].
pub const HEAD_BYTES: usize = 32;
const _: () = assert!(size_of::<DirentHead>() == HEAD_BYTES);

/// Hash of `name` under the volume's key.
pub fn hash(key: &[u8; 16], name: &[u8]) -> u64 {
    let mut h = siphasher::sip::SipHasher24::new_with_key(key);
    h.write(name);
    (h.finish() >> 2).max(FIRST_COOKIE)
}

/// Bytes of the record for a name of `name_len` bytes.
pub fn record_bytes(name_len: usize) -> usize {
    (HEAD_BYTES + name_len).next_multiple_of(8)
}

/// Whether a name may be stored: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`.
pub fn name_ok(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX && name != b"." && name != b".." && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// One entry, borrowed from the bytes it lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirent<'a> {
    /// Where its record starts.
    pub at: usize,
    /// Fixed part.
    pub head: DirentHead,
    /// Name.
    pub name: &'a [u8],
}

/// Walks the records of `bytes` (exactly the used part); an error ends the walk.
pub fn entries(block: u64, bytes: &[u8]) -> impl Iterator<Item = Result<Dirent<'_>, CheckError>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= bytes.len() {
            return None;
        }
        let r = one(block, bytes, at);
        at = r.as_ref().map_or(bytes.len(), |d| at + d.head.len as usize);
        Some(r)
    })
}

fn one(block: u64, bytes: &[u8], at: usize) -> Result<Dirent<'_>, CheckError> {
    let bad = |what, found| Err(CheckError::Field { block, what, found });
    let Ok((head, _)) = DirentHead::read_from_prefix(&bytes[at..]) else { return bad("directory record", at as u64) };
    let (len, name_len) = (head.len as usize, head.name_len as usize);
    if len != record_bytes(name_len) || at + len > bytes.len() {
        return bad("directory record length", u64::from(head.len));
    }
    let name = &bytes[at + HEAD_BYTES..at + HEAD_BYTES + name_len];
    if !name_ok(name) {
        return bad("directory name", at as u64);
    }
    Ok(Dirent { at, head, name })
}

/// Appends a record to `out`.
pub fn push(out: &mut Vec<u8>, hash: u64, ino: u64, generation: u64, kind: u8, name: &[u8]) {
    let len = record_bytes(name.len());
    let head = DirentHead { hash, ino, generation, len: len as u16, name_len: name.len() as u8, kind, zero: 0 };
    let start = out.len();
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(name);
    out.resize(start + len, 0);
}
