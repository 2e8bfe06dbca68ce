//! Every check in one table: its permanent code, how bad it is, one line. `docs/checks.md` has a paragraph for each; a test
//! holds the two together.
//!
//! Invariant: a code is never given a second meaning; one that is no longer checked stays in the table. Not here: the checks.

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

macro_rules! codes {
    ($($name:ident $severity:ident $line:literal;)*) => {
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
        }
    };
}

codes! {
    B01 Error "checksum of a metadata block does not match";
    B02 Error "not a metadata block where one must be";
    B03 Error "metadata block of another kind";
    B04 Error "metadata block of another volume";
    B05 Error "metadata block of another address";
    B06 Error "metadata block of another owner";
    B07 Error "metadata block of a future format";
    B08 Error "field of a metadata block out of bounds";
    B09 Error "block cannot be read";
    C01 Minor "beat block damaged";
    C02 Error "Paxos register damaged";
    C03 Error "membership record damaged";
    C04 Error "membership records do not follow one another";
    C05 Note "mail block damaged";
    C06 Note "a host is a member of the volume";
    C07 Note "a host is shut out and not replayed yet";
    C08 Error "membership names a slot that the volume does not have";
    D01 Error "directory record malformed";
    D02 Error "hash of a name is wrong";
    D03 Error "directory records out of order or twice";
    D04 Error "directory record outside of its leaf's bounds";
    D05 Error "directory tree node malformed";
    D06 Error "directory tree keys out of order";
    D07 Error "name leads to no inode";
    D08 Error "name leads to another generation of its inode";
    D09 Error "type in a name differs from the inode's";
    D10 Error "directory names another parent";
    D11 Error "count of a directory's entries is wrong";
    D12 Error "directory has a second name or lies in a loop";
    E01 Error "extents overlap or are out of order";
    E02 Error "extent lies outside of the groups";
    E03 Error "length of an extent is impossible";
    E04 Error "extent has unknown flags";
    E05 Error "extent lies outside of its leaf's bounds";
    E06 Error "extent tree node malformed";
    E07 Error "extent tree keys out of order";
    F01 Error "an operation met a contradiction and stopped";
    G01 Error "group header contradicts the superblock";
    G02 Error "count of free blocks of a group is wrong";
    G03 Error "count of free metadata blocks of a group is wrong";
    G04 Error "first segment of a group is not metadata";
    G05 Error "group's own blocks are not marked in use";
    G06 Error "bits behind the end of a group are clear";
    G07 Error "blocks in use in a free segment";
    G08 Minor "data segment without blocks in use";
    G09 Error "segment type unknown";
    I01 Error "inode contradicts itself";
    I02 Error "file type unknown";
    I03 Error "unknown inode flags";
    I04 Error "size does not fit the content";
    I05 Error "count of an inode's blocks is wrong";
    I06 Error "name leads to a freed inode";
    I07 Error "extended attributes malformed";
    I08 Error "extended attribute twice";
    J01 Error "journal record damaged before the end";
    J02 Error "journal image is no block of this volume";
    J03 Error "journal header damaged";
    J04 Error "journal of a free slot is dirty";
    J05 Note "journal is dirty; checked as it will be after replay";
    L01 Error "links of a directory are wrong";
    L02 Error "links of a file are wrong";
    P01 Error "inode with a name is marked as orphan or has no links";
    P02 Error "listed orphan is not marked as one";
    P03 Error "orphan is listed in another slot than it says";
    P04 Error "listed orphan has links";
    P05 Error "orphan is listed twice or has a name";
    P06 Error "orphan is listed under a wrong name";
    P07 Error "orphaned directory is not empty";
    S01 Error "superblock copy damaged";
    S02 Minor "superblock copies differ";
    U01 Error "block owned twice";
    U02 Error "block in use is marked free";
    U03 Minor "data blocks belong to no file";
    U04 Minor "metadata block belongs to nobody";
    U05 Error "metadata outside of metadata segments";
    U06 Error "data outside of data segments";
    U07 Error "inode without a name";
    U08 Note "unowned blocks not judged because metadata is unreadable";
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
