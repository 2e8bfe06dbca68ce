//! One inode: its fields against each other, against its content, and its extended attributes.
//!
//! Not here: names, links (see `names`), the trees themselves (see `tree`).

use super::tree::Tally;
use super::{Check, Code, Result};
use crate::op::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use luna_format::ag::SegmentType;
use luna_format::inode::{BODY_AT, FLAG_ORPHAN, FLAG_REAPING, Inode, Layout};
use luna_format::xattr::{RECORDS_AT, RECORDS_BYTES, USED_AT};
use luna_format::{Block, BlockNo, CheckError, Ino, Kind, xattr};

/// An xattr block to be looked at, and whose it is.
pub(super) type XattrRef = (Ino, BlockNo);

impl Check<'_> {
    /// The fields of an inode whose block is whole; `None` (and a finding) when they make no sense.
    pub(super) fn fields(&mut self, ino: Ino, b: &Block) -> Option<Inode> {
        match luna_format::inode::check(b) {
            Ok(i) => Some(i),
            Err(e) => {
                let text = match e {
                    CheckError::Field { what, found, .. } => format!("expected {what} in bounds, found {found}"),
                    other => other.to_string(),
                };
                let place = self.place(ino);
                self.found(Code::I01, place, text);
                self.incomplete = true;
                None
            }
        }
    }

    /// Type, flags, layout and size of an inode in use.
    pub(super) fn judge_fields(&mut self, ino: Ino, i: &Inode, b: &Block) {
        let place = self.place(ino);
        let kind = i.mode & S_IFMT;
        let known = matches!(kind, S_IFREG | S_IFDIR | S_IFLNK | 0o010_000 | 0o020_000 | 0o060_000 | 0o140_000);
        if !known || i.mode >> 16 != 0 {
            self.found(Code::I02, place, format!("expected a file type of stat(2), found mode {:#o}", i.mode));
            return;
        }
        if i.flags & !(FLAG_ORPHAN | FLAG_REAPING) != 0 {
            self.found(Code::I03, place.clone(), format!("expected no flags but {FLAG_ORPHAN} and {FLAG_REAPING}, found {:#x}", i.flags));
        }
        let layout = Layout::from_u8(i.layout).unwrap_or(Layout::Empty);
        let fits = match kind {
            S_IFREG => !matches!(layout, Layout::DirInline | Layout::DirTree),
            S_IFDIR => true,
            S_IFLNK => layout == Layout::Inline,
            _ => layout == Layout::Empty,
        };
        if !fits {
            self.found(Code::I01, place, format!("expected a layout for mode {:#o}, found {layout:?}", i.mode));
            return;
        }
        let inline = u64::from(i.inline_len);
        match (kind, layout) {
            (S_IFLNK, _) if i.size != inline || inline == 0 || b.0[BODY_AT..BODY_AT + i.inline_len as usize].contains(&0) => {
                self.found(Code::I04, place, format!("expected a target of {} bytes without NUL, found {inline}", i.size));
            }
            (S_IFREG, Layout::Inline) if inline > i.size => {
                self.found(Code::I04, place, format!("expected at most {} bytes in the inode, found {inline}", i.size));
            }
            (S_IFREG | S_IFDIR | S_IFLNK, _) => {}
            _ if i.size != 0 => self.found(Code::I04, place, format!("expected size 0 of a special file, found {}", i.size)),
            _ => {}
        }
    }

    /// The counter of blocks against what was counted.
    pub(super) fn judge_blocks(&mut self, ino: Ino, i: &Inode, tally: Tally) {
        let expected = tally.data + tally.nodes + u64::from(i.xattr_block != 0);
        if !tally.broken && i.blocks != expected {
            let place = self.place(ino);
            self.found(Code::I05, place, format!("expected {expected}, found {}", i.blocks));
        }
    }

    /// The attribute blocks of several inodes.
    pub(super) fn xattrs(&mut self, refs: &[XattrRef]) -> Result<()> {
        let mut mine = Vec::new();
        for (ino, block) in refs.iter().filter(|(_, b)| *b != 0) {
            if self.sb.ag_of(*block).is_none() {
                let place = self.place(*ino);
                self.found(Code::I07, place, format!("expected the address of a block, found {block}"));
                self.incomplete = true;
            } else if self.claim(*block, 1, SegmentType::Meta, &|c| c.place(*ino)) {
                mine.push((*ino, *block));
            }
        }
        let wanted: Vec<BlockNo> = mine.iter().map(|(_, b)| *b).collect();
        for ((ino, block), fetched) in mine.iter().zip(self.reader.many(&wanted)?) {
            let place = self.place(*ino);
            if let Some((b, _)) = self.open(&fetched, Kind::Xattr, *block, *ino, place) {
                self.judge_xattrs(*ino, *block, b);
            }
        }
        Ok(())
    }

    fn judge_xattrs(&mut self, ino: Ino, block: BlockNo, b: &Block) {
        let place = self.place(ino).at_block(block);
        let used = b.view::<u64>(USED_AT).copied().unwrap_or(0);
        if used == 0 || used > RECORDS_BYTES as u64 {
            self.found(Code::I07, place, format!("expected 1 to {RECORDS_BYTES} bytes in use, found {used}"));
            return;
        }
        match xattr::entries(block, &b.0[RECORDS_AT..RECORDS_AT + used as usize]) {
            Err(_) => self.found(Code::I07, place, "expected whole records, found a malformed one"),
            Ok(list) => {
                let mut names: Vec<&[u8]> = list.iter().map(|(n, _)| *n).collect();
                names.sort_unstable();
                if let Some(w) = names.windows(2).find(|w| w[0] == w[1]) {
                    let text = format!("expected each name once, found '{}' again", w[0].escape_ascii());
                    self.found(Code::I08, place, text);
                }
            }
        }
    }
}
