//! Every check in one table: its permanent code, how bad it is, one line, how it is repaired, and how it is made on a healthy volume.
//! `docs/checks.md` has a paragraph for each that says what is wrong, what the repair does and what is lost by it; tests hold table,
//! document, wreckers and repairs together.
//!
//! Invariant: a code is never given a second meaning; one that is no longer checked stays in the table. Not here: the checks.

use crate::wreck::{Wreck, blocks, cluster, dirs, files, groups};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing is wrong; worth knowing.
    Note,
    /// Space or comfort is lost, no file is in danger.
    Minor,
    /// The volume contradicts itself; files may be lost or become lost.
    Error,
}

impl Severity {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Minor => "minor",
            Self::Error => "error",
        }
    }
}

/// How a finding is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// In this step; nothing is lost by it and nothing chosen, so `fsck -p` does it.
    Safe(Step),
    /// In this step; something is lost, or chosen, so it takes `fsck -y`.
    Ask(Step),
    /// Not at all, for this reason.
    Nothing(&'static str),
}

impl Repair {
    /// `fsck -p` may do it.
    pub fn is_safe(self) -> bool {
        matches!(self, Self::Safe(_))
    }
}

/// The steps of a repair, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Copies of the superblock (`repair/exclusive.rs`).
    Copies,
    /// Beats, registers, records (`repair/slots.rs`).
    Slots,
    /// Replay, and journals made anew (`repair/journals.rs`).
    Journals,
    /// Directories and inodes with names (`repair/names.rs`, `records.rs`, `inodes.rs`).
    Walk,
    /// Inodes without names (`repair/lost.rs`).
    Lost,
    /// Links of files (`repair/names.rs`).
    Links,
    /// Extents (`repair/extents.rs`).
    Files,
    /// Headers and bitmaps (`repair/space.rs`).
    Groups,
}

macro_rules! codes {
    ($($name:ident $severity:ident $line:literal : $repair:expr, $wreck:expr;)*) => {
        /// The code of a check.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $line] $name,)*
        }

        impl Code {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As it is printed.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }

            /// What is wrong, in one line.
            pub fn line(self) -> &'static str {
                match self { $(Self::$name => $line,)* }
            }

            /// How it is repaired.
            pub fn repair(self) -> Repair {
                match self { $(Self::$name => $repair,)* }
            }

            /// How it is made.
            pub fn wreck(self) -> Wreck {
                match self { $(Self::$name => $wreck,)* }
            }
        }
    };
}

use Code::*;
use Repair::{Ask, Nothing, Safe};
use Step::*;
use Wreck::{Cannot, Made};

// code, severity, line: repair, wrecker with the codes that may come along
codes! {
    B01 Error "checksum of a metadata block does not match": Ask(Walk), Made(blocks::torn, &[]);
    B02 Error "not a metadata block where one must be": Ask(Walk), Made(blocks::wiped, &[]);
    B03 Error "metadata block of another kind": Ask(Walk), Made(blocks::other_kind, &[]);
    B04 Error "metadata block of another volume": Ask(Walk), Made(blocks::other_volume, &[]);
    B05 Error "metadata block of another address": Ask(Walk), Made(blocks::misdirected, &[]);
    B06 Error "metadata block of another owner": Ask(Walk), Made(blocks::other_owner, &[]);
    B07 Error "metadata block of a future format": Nothing("nothing is wrong with it: use the version of luna that wrote it"), Made(blocks::future, &[]);
    B08 Error "field of a metadata block out of bounds": Nothing("fsck names the field by a code of its own"), Cannot("only errors of a mounted volume carry it");
    B09 Error "block cannot be read": Nothing("a failing LUN is not repaired: copy it to a sound one first"), Cannot("it takes a LUN that fails");
    C01 Minor "beat block damaged": Safe(Slots), Made(cluster::beat, &[]);
    C02 Error "Paxos register damaged": Ask(Slots), Made(cluster::register, &[]);
    C03 Error "membership record damaged": Ask(Slots), Made(cluster::record, &[]);
    C04 Error "membership records do not follow one another": Ask(Slots), Made(cluster::chain, &[]);
    C05 Note "mail block damaged": Nothing("mail is sent again"), Made(cluster::mail, &[]);
    C06 Note "a host is a member of the volume": Nothing("the next mount, or a repair, takes it out"), Made(cluster::member, &[]);
    C07 Note "a host is shut out and not replayed yet": Nothing("the next mount, or a repair, finishes that"), Made(cluster::fenced, &[]);
    C08 Error "membership names a slot that the volume does not have": Ask(Slots), Made(cluster::no_such_slot, &[]);
    C09 Error "Paxos register is ahead of the log": Ask(Slots), Made(cluster::ahead, &[]);
    D01 Error "directory record malformed": Ask(Walk), Made(dirs::record, &[U07]);
    D02 Error "hash of a name is wrong": Ask(Walk), Made(dirs::hash, &[]);
    D03 Error "directory records out of order or twice": Ask(Walk), Made(dirs::order, &[]);
    D04 Error "directory record outside of its leaf's bounds": Ask(Walk), Made(dirs::bounds, &[]);
    D05 Error "directory tree node malformed": Ask(Walk), Made(dirs::level, &[]);
    D06 Error "directory tree keys out of order": Ask(Walk), Made(dirs::keys, &[D04]);
    D07 Error "name leads to no inode": Ask(Walk), Made(dirs::nowhere, &[U07]);
    D08 Error "name leads to another generation of its inode": Ask(Walk), Made(dirs::generation, &[]);
    D09 Error "type in a name differs from the inode's": Safe(Walk), Made(dirs::kind, &[]);
    D10 Error "directory names another parent": Ask(Walk), Made(dirs::parent, &[]);
    D11 Error "count of a directory's entries is wrong": Safe(Walk), Made(dirs::count, &[]);
    D12 Error "directory has a second name or lies in a loop": Ask(Walk), Made(dirs::second_name, &[D10, U07]);
    E01 Error "extents overlap or are out of order": Ask(Files), Made(files::overlap, &[]);
    E02 Error "extent lies outside of the groups": Ask(Files), Made(files::outside, &[]);
    E03 Error "length of an extent is impossible": Ask(Files), Made(files::no_length, &[U03]);
    E04 Error "extent has unknown flags": Ask(Files), Made(files::extent_flags, &[]);
    E05 Error "extent lies outside of its leaf's bounds": Ask(Files), Made(files::bounds, &[]);
    E06 Error "extent tree node malformed": Ask(Files), Made(files::level, &[]);
    E07 Error "extent tree keys out of order": Ask(Files), Made(files::keys, &[E05]);
    F01 Error "an operation met a contradiction and stopped": Nothing("no finding of fsck; its finding for the same inode is repaired"), Cannot("only errors of a mounted volume carry it");
    G01 Error "group header contradicts the superblock": Ask(Groups), Made(groups::shape, &[]);
    G02 Error "count of free blocks of a group is wrong": Safe(Groups), Made(groups::free, &[]);
    G03 Error "count of free metadata blocks of a group is wrong": Safe(Groups), Made(groups::free_meta, &[]);
    G04 Error "first segment of a group is not metadata": Ask(Groups), Made(groups::first_segment, &[U05, G03]);
    G05 Error "group's own blocks are not marked in use": Safe(Groups), Made(groups::own, &[]);
    G06 Error "bits behind the end of a group are clear": Safe(Groups), Made(groups::tail, &[]);
    G07 Error "blocks in use in a free segment": Ask(Groups), Made(groups::in_use_but_free, &[U06]);
    G08 Minor "data segment without blocks in use": Safe(Groups), Made(groups::empty, &[]);
    G09 Error "segment type unknown": Ask(Groups), Made(groups::unknown, &[]);
    I01 Error "inode contradicts itself": Ask(Walk), Made(files::layout, &[]);
    I02 Error "file type unknown": Ask(Walk), Made(files::mode, &[D09]);
    I03 Error "unknown inode flags": Ask(Walk), Made(files::flags, &[]);
    I04 Error "size does not fit the content": Ask(Walk), Made(files::size, &[]);
    I05 Error "count of an inode's blocks is wrong": Safe(Files), Made(files::blocks, &[]);
    I06 Error "name leads to a freed inode": Ask(Walk), Made(files::freed, &[U03, U04]);
    I07 Error "extended attributes malformed": Ask(Walk), Made(files::attributes, &[]);
    I08 Error "extended attribute twice": Ask(Walk), Made(files::attribute_twice, &[]);
    J01 Error "journal record damaged before the end": Ask(Journals), Made(cluster::journal_gap, &[J04, J05]);
    J02 Error "journal image is no block of this volume": Ask(Journals), Made(cluster::journal_image, &[J04, J05]);
    J03 Error "journal header damaged": Ask(Journals), Made(cluster::journal_header, &[]);
    J04 Error "journal of a free slot is dirty": Safe(Journals), Made(cluster::journal_of_nobody, &[J05]);
    J05 Note "journal is dirty; checked as it will be after replay": Safe(Journals), Made(cluster::journal_dirty, &[C06, C07]);
    J06 Error "journal does not admit the next incarnation of its slot": Ask(Journals), Made(cluster::journal_ahead, &[]);
    L01 Error "links of a directory are wrong": Safe(Walk), Made(dirs::links, &[]);
    L02 Error "links of a file are wrong": Safe(Links), Made(files::links, &[]);
    P01 Error "inode with a name is marked as orphan or has no links": Ask(Walk), Made(files::no_links, &[]);
    P02 Error "listed orphan is not marked as one": Ask(Walk), Made(dirs::orphan_unmarked, &[]);
    P03 Error "orphan is listed in another slot than it says": Safe(Walk), Made(dirs::orphan_slot, &[]);
    P04 Error "listed orphan has links": Ask(Walk), Made(dirs::orphan_links, &[]);
    P05 Error "orphan is listed twice or has a name": Ask(Walk), Made(dirs::orphan_named, &[P01]);
    P06 Error "orphan is listed under a wrong name": Safe(Walk), Made(dirs::orphan_name, &[]);
    P07 Error "orphaned directory is not empty": Ask(Walk), Made(dirs::orphan_full, &[D11]);
    S01 Error "superblock copy damaged": Safe(Copies), Made(blocks::copy_gone, &[]);
    S02 Minor "superblock copies differ": Safe(Copies), Made(blocks::copy_old, &[]);
    U01 Error "block owned twice": Ask(Files), Made(files::shared, &[U03]);
    U02 Error "block in use is marked free": Safe(Groups), Made(groups::used_marked_free, &[]);
    U03 Minor "data blocks belong to no file": Safe(Groups), Made(groups::data_leak, &[]);
    U04 Minor "metadata block belongs to nobody": Safe(Groups), Made(groups::meta_leak, &[]);
    U05 Error "metadata outside of metadata segments": Ask(Groups), Made(groups::first_segment, &[G04, G03]);
    U06 Error "data outside of data segments": Ask(Files), Made(groups::data_as_meta, &[G03]);
    U07 Error "inode without a name": Ask(Lost), Made(dirs::unnamed, &[]);
    U08 Note "unowned blocks not judged because metadata is unreadable": Nothing("it goes when what could not be read is repaired"), Made(blocks::torn, &[B01]);
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let all: BTreeSet<&str> = Code::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(all.len(), Code::ALL.len());
        assert!(all.iter().all(|c| c.len() == 3 && c.as_bytes()[0].is_ascii_uppercase() && c[1..].parse::<u8>().is_ok()));
    }

    #[test]
    fn the_document_says_of_each_code_how_it_is_repaired() {
        let text = include_str!("../../../docs/checks.md");
        for part in text.split("\n### ").skip(1) {
            let code = part.split(' ').next().unwrap_or("");
            let found = Code::ALL.iter().find(|c| c.as_str() == code).unwrap_or_else(|| panic!("{code} is unknown"));
            let says = part.split("\n**Repair:** ").nth(1).unwrap_or_else(|| panic!("{code} does not say how it is repaired"));
            let none = says.starts_with("none");
            let nothing = matches!(found.repair(), Repair::Nothing(_));
            assert!(none == nothing, "{code}: the table says {:?}, the page '{}'", found.repair(), says.lines().next().unwrap_or(""));
            // what takes no decision loses nothing
            assert!(!found.repair().is_safe() || !says.contains("Lost: the"), "{code} is safe, but something is lost");
        }
    }

    #[test]
    fn what_cannot_be_made_or_repaired_has_a_reason() {
        for code in Code::ALL {
            if let Repair::Nothing(why) = code.repair() {
                assert!(why.len() > 10, "{code}: no repair, and why?");
            }
            match code.wreck() {
                Wreck::Cannot(why) => assert!(why.len() > 10, "{code}: no wrecker, and why?"),
                Wreck::Made(_, with) => assert!(!with.contains(code), "{code} comes along with itself"),
            }
        }
    }

    #[test]
    fn the_document_has_a_paragraph_for_each_code_and_no_other() {
        let text = include_str!("../../../docs/checks.md");
        let mut documented = BTreeSet::new();
        for line in text.lines() {
            let Some(head) = line.strip_prefix("### ") else { continue };
            let (code, rest) = head.split_once(' ').expect("a heading is a code and a line");
            let found = Code::ALL.iter().find(|c| c.as_str() == code).unwrap_or_else(|| panic!("{code} is documented but unknown"));
            assert_eq!(rest, format!("{} ({})", found.line(), found.severity().word()), "heading of {code}");
            assert!(documented.insert(code), "{code} is documented twice");
        }
        for code in Code::ALL {
            assert!(documented.contains(code.as_str()), "{code} has no paragraph");
        }
    }
}
