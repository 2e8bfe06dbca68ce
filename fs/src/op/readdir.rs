//! Reads a directory in pages. The position is the hash of the entry, so it survives changes in between: an entry that was
//! there all the time is returned exactly once.

use super::S_IFDIR;
use crate::dir;
use crate::error::Step;
use crate::tx::Tx;
use luna_format::Ino;

/// Position after `.`.
pub const COOKIE_DOT: u64 = 1;
/// Position after `..`.
pub const COOKIE_DOT_DOT: u64 = 2;

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Position behind it. Entries of one hash (next to never) share it; only the last of them may end a page.
    pub cookie: u64,
    /// Inode number.
    pub ino: Ino,
    /// Type, `mode >> 12` (the DT_ numbers).
    pub kind: u8,
    /// Name.
    pub name: Vec<u8>,
}

/// Entries behind `cookie` (0 at first), about `max_entries`; none at the end.
pub fn readdir(tx: &mut Tx<'_>, ino: Ino, cookie: u64, max_entries: usize) -> Step<Vec<DirEntry>> {
    let i = dir::directory(tx, ino)?;
    let kind = (S_IFDIR >> 12) as u8;
    let dots = [(COOKIE_DOT, ino, &b"."[..]), (COOKIE_DOT_DOT, i.parent, &b".."[..])];
    let mut out: Vec<DirEntry> = dots
        .into_iter()
        .filter(|(c, ..)| *c > cookie)
        .map(|(cookie, ino, name)| DirEntry { cookie, ino, kind, name: name.to_vec() })
        .collect();
    let max = max_entries.saturating_sub(out.len());
    if max == 0 {
        out.truncate(max_entries.max(1));
        return Ok(out);
    }
    let listed = dir::list(tx, ino, cookie.max(COOKIE_DOT_DOT), max)?;
    out.extend(listed.into_iter().map(|l| DirEntry { cookie: l.hash, ino: l.target.ino, kind: l.target.kind, name: l.name }));
    Ok(out)
}
