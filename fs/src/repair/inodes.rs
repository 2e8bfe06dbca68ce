//! The fields of one inode, made to agree with each other and with its type. Pure, but for looking at one child to tell layouts apart.
//!
//! What cannot be told from the fields (blocks, a directory's size and entries, links) is set by those who count it. Invariant:
//! what [`Repair::fields`] answers passes `format::inode::check`, and fields that were sound are as they were.

use super::door::Judged;
use super::{Did, Repair, RepairError};
use crate::check::{Code, Place};
use crate::op::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use luna_format::inode::{BODY_AT, BODY_BYTES, Extent, FLAG_ORPHAN, FLAG_REAPING, INLINE_EXTENTS, Inode, Layout, MAX_SIZE, ROOT_ENTRIES};
use luna_format::tree::{Entry, MAX_DEPTH};
use luna_format::xattr::{RECORDS_AT, RECORDS_BYTES, USED_AT, XattrHead, record_bytes};
use luna_format::{Block, HEADER_BYTES, Ino, Kind};
use zerocopy::FromBytes;

/// An inode as it must be.
pub(super) struct Fixed {
    /// The block, to be sealed.
    pub(super) block: Block,
    /// Something is not as it was found.
    pub(super) changed: bool,
    /// Nobody knows how long the file is: as long as its last extent.
    pub(super) resize: bool,
}

/// The fields of an inode block.
pub(super) fn view(b: &Block) -> Inode {
    b.view::<Inode>(HEADER_BYTES).copied().unwrap_or_else(Inode::empty)
}

/// Changes the fields of an inode block.
pub(super) fn edit(b: &mut Block, change: impl FnOnce(&mut Inode)) {
    if let Some(i) = b.view_mut::<Inode>(HEADER_BYTES) {
        change(i);
    }
}

/// Whether the file type of a mode is one of stat(2)'s.
pub(super) fn known(mode: u32) -> bool {
    matches!(mode & S_IFMT, S_IFREG | S_IFDIR | S_IFLNK | 0o010_000 | 0o020_000 | 0o060_000 | 0o140_000)
}

fn tree_shape(i: &Inode) -> bool {
    (1..=ROOT_ENTRIES).contains(&(i.count as usize)) && (1..=MAX_DEPTH).contains(&i.depth)
}

/// Whether the body can be read as `layout`.
fn shape(i: &Inode, layout: Layout) -> bool {
    match layout {
        Layout::Empty => true,
        Layout::Inline | Layout::DirInline => i.inline_len as usize <= BODY_BYTES,
        Layout::Extents => i.count as usize <= INLINE_EXTENTS,
        Layout::ExtentTree | Layout::DirTree => tree_shape(i),
    }
}

fn fits(mode: u32, layout: Layout) -> bool {
    match mode & S_IFMT {
        S_IFREG => !matches!(layout, Layout::DirInline | Layout::DirTree),
        S_IFDIR => matches!(layout, Layout::DirInline | Layout::DirTree),
        S_IFLNK => layout == Layout::Inline,
        _ => layout == Layout::Empty,
    }
}

impl Repair<'_> {
    /// The inode in `b` with fields that agree; `hint` is the type that a name gives it. `None` when nothing of it can be kept.
    pub(super) fn fields(&mut self, ino: Ino, b: &Block, hint: Option<u8>) -> Result<Option<Fixed>, RepairError> {
        let (old, mut block, mut resize) = (view(b), b.clone(), false);
        let mut i = old;
        let mut say: Vec<(Code, String)> = Vec::new();
        if i.mode >> 16 != 0 || !known(i.mode) {
            let named = hint.map(|k| u32::from(k) << 12).filter(|m| known(*m));
            let dir = matches!(Layout::from_u8(i.layout), Some(Layout::DirInline | Layout::DirTree));
            let kind = if known(i.mode) { i.mode & S_IFMT } else { named.unwrap_or(if dir { S_IFDIR } else { S_IFREG }) };
            i.mode = kind | (i.mode & 0o7777);
            say.push((Code::I02, format!("mode is {:#o}, not {:#o}", i.mode, old.mode)));
        }
        let layout = Layout::from_u8(i.layout).filter(|l| fits(i.mode, *l) && shape(&i, *l));
        if layout.is_none() {
            let Some(guess) = self.guess(ino, &mut i, b)? else { return Ok(None) };
            i.layout = guess as u8;
            resize = matches!(guess, Layout::Extents | Layout::ExtentTree) && i.size > MAX_SIZE;
            say.push((Code::I01, format!("read as layout {guess:?}")));
        }
        if i.size > MAX_SIZE {
            resize |= i.mode & S_IFMT == S_IFREG;
            say.push((Code::I01, format!("size {} is impossible", i.size)));
            i.size = 0;
        }
        if i.flags & !(FLAG_ORPHAN | FLAG_REAPING) != 0 {
            i.flags &= FLAG_ORPHAN | FLAG_REAPING;
            say.push((Code::I03, format!("flags are {:#x}, not {:#x}", i.flags, old.flags)));
        }
        if !size_of_content(&mut i, b) {
            return Ok(None);
        }
        if i.size != old.size && old.size <= MAX_SIZE {
            say.push((Code::I04, format!("size is {}, not {}", i.size, old.size)));
        }
        edit(&mut block, |to| *to = i);
        for (code, text) in say {
            self.did(Did::new(code, self.place(ino), text));
        }
        Ok(Some(Fixed { block, changed: i != old, resize }))
    }

    /// How the body of an inode whose layout is nonsense is best read.
    fn guess(&mut self, ino: Ino, i: &mut Inode, b: &Block) -> Result<Option<Layout>, RepairError> {
        let child = |b: &Block| b.view::<Entry>(BODY_AT).map_or(0, |e| e.child);
        Ok(match i.mode & S_IFMT {
            S_IFREG => {
                let inline = shape(i, Layout::Inline) && i.inline_len > 0 && u64::from(i.inline_len) <= i.size;
                if tree_shape(i) && self.is_node(ino, child(b), &[Kind::ExtentNode])? {
                    Some(Layout::ExtentTree)
                } else if i.count > 0 && shape(i, Layout::Extents) && self.are_extents(i, b) {
                    Some(Layout::Extents)
                } else {
                    Some(if inline { Layout::Inline } else { Layout::Empty })
                }
            }
            S_IFDIR => {
                if tree_shape(i) && self.is_node(ino, child(b), &[Kind::DirNode, Kind::DirLeaf])? {
                    Some(Layout::DirTree)
                } else {
                    i.inline_len = BODY_BYTES as u32;
                    Some(Layout::DirInline)
                }
            }
            S_IFLNK => {
                if !shape(i, Layout::Inline) || i.inline_len == 0 {
                    i.inline_len = b.0[BODY_AT..].iter().position(|c| *c == 0).unwrap_or(BODY_BYTES) as u32;
                }
                (i.inline_len > 0).then_some(Layout::Inline)
            }
            _ => Some(Layout::Empty),
        })
    }

    fn are_extents(&self, i: &Inode, b: &Block) -> bool {
        let one = |n: usize| b.view::<Extent>(BODY_AT + n * size_of::<Extent>()).copied();
        (0..i.count as usize).all(|n| one(n).is_some_and(|e| e.len > 0 && self.sb.ag_of(e.physical).is_some()))
    }

    fn is_node(&mut self, ino: Ino, block: u64, kinds: &[Kind]) -> Result<bool, RepairError> {
        if !self.space.can_be_meta(block) {
            return Ok(false);
        }
        let b = self.door.one(block)?;
        Ok(kinds.iter().any(|k| matches!(self.door.judge(&b, *k, block, ino), Judged::Sound)))
    }

    /// The attribute block of an inode: claims it, mends it, or takes it away from the inode. Answers whether the inode changed.
    pub(super) fn attributes(&mut self, ino: Ino, inode: &mut Block) -> Result<bool, RepairError> {
        let at = view(inode).xattr_block;
        if at == 0 {
            return Ok(false);
        }
        let mut gone = |r: &mut Self, code, why: &str| {
            edit(inode, |i| i.xattr_block = 0);
            r.did(Did::lost(code, r.place(ino).at_block(at), why, "its extended attributes"));
            Ok(true)
        };
        if !self.space.can_be_meta(at) {
            return gone(self, Code::I07, "leads outside of the groups");
        }
        let b = self.door.one(at)?;
        let judged = self.door.judge(&b, Kind::Xattr, at, ino);
        if let Judged::Bad(code, text) = judged {
            return gone(self, code, &text);
        }
        if !self.space.claim_meta(at) {
            return gone(self, Code::U01, "the block has another owner");
        }
        let (records, mut wrong) = attributes_in(&b);
        if let Judged::Suspect(code, text) = judged {
            self.did(Did::new(code, self.place(ino).at_block(at), format!("attributes kept as far as they can be read ({text})")));
            wrong.get_or_insert((code, "sealed again"));
        }
        let Some((code, text)) = wrong else { return Ok(false) };
        if records.is_empty() {
            self.space.leave(at);
            return gone(self, code, text);
        }
        let mut new = Block::zeroed();
        new.0[USED_AT..RECORDS_AT].copy_from_slice(&(records.len() as u64).to_le_bytes());
        new.0[RECORDS_AT..RECORDS_AT + records.len()].copy_from_slice(&records);
        self.did(Did::lost(code, self.place(ino).at_block(at), text, "attributes that cannot be read, or stood there twice"));
        self.rewrites.push((at, Kind::Xattr, ino, new));
        Ok(false)
    }
}

/// The whole records of an attribute block, each name once, and what was wrong.
fn attributes_in(b: &Block) -> (Vec<u8>, Option<(Code, &'static str)>) {
    let used = b.view::<u64>(USED_AT).copied().unwrap_or(0);
    let sane = (1..=RECORDS_BYTES as u64).contains(&used);
    let mut wrong = (!sane).then_some((Code::I07, "the length was impossible"));
    let bytes = &b.0[RECORDS_AT..RECORDS_AT + if sane { used as usize } else { RECORDS_BYTES }];
    let (mut at, mut out, mut names) = (0, Vec::new(), Vec::<&[u8]>::new());
    while at < bytes.len() {
        let Ok((h, _)) = XattrHead::read_from_prefix(&bytes[at..]) else { break };
        let (n, v, len) = (h.name_len as usize, h.value_len as usize, h.len as usize);
        if n == 0 || len != record_bytes(n, v) || at + len > bytes.len() {
            break;
        }
        let name = &bytes[at + 8..at + 8 + n];
        if names.contains(&name) {
            wrong = Some((Code::I08, "the first of two attributes of one name counts"));
        } else {
            names.push(name);
            out.extend_from_slice(&bytes[at..at + len]);
        }
        at += len;
    }
    if sane && at < bytes.len() {
        wrong = Some((Code::I07, "records behind a malformed one are dropped"));
    }
    (out, wrong)
}

/// Sets the size that the content implies, where it implies one; `false` when a symbolic link leads nowhere.
fn size_of_content(i: &mut Inode, b: &Block) -> bool {
    let inline = i.inline_len as usize;
    match (i.mode & S_IFMT, Layout::from_u8(i.layout)) {
        (S_IFLNK, _) => {
            let target = &b.0[BODY_AT..BODY_AT + inline.min(BODY_BYTES)];
            let len = target.iter().position(|c| *c == 0).unwrap_or(target.len());
            (i.inline_len, i.size) = (len as u32, len as u64);
            len > 0
        }
        (S_IFREG, Some(Layout::Inline)) => {
            i.size = i.size.max(inline as u64);
            true
        }
        (S_IFREG | S_IFDIR, _) => true,
        _ => {
            i.size = 0;
            true
        }
    }
}

/// The place of an inode without a path.
pub(super) fn place_of(ino: Ino) -> Place {
    Place::ino(ino)
}
