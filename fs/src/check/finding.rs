//! One finding: what, how bad, where, expected and found; and the counter through which findings go out.

use super::codes::{Code, Severity};
use luna_format::{BlockNo, CheckError, Ino, Slot};
use std::collections::BTreeMap;

/// Where something is wrong; as much of it as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Block address.
    pub block: Option<BlockNo>,
    /// Inode.
    pub ino: Option<Ino>,
    /// Allocation group.
    pub group: Option<u64>,
    /// Slot.
    pub slot: Option<Slot>,
    /// Path from the root of the volume.
    pub path: Option<String>,
}

impl Place {
    /// A block.
    pub(crate) fn block(block: BlockNo) -> Self {
        Self { block: Some(block), ..Self::default() }
    }

    /// An inode whose path is not at hand.
    pub(crate) fn ino(ino: Ino) -> Self {
        Self { ino: Some(ino), ..Self::default() }
    }

    /// A group.
    pub(crate) fn group(group: u64) -> Self {
        Self { group: Some(group), ..Self::default() }
    }

    /// A slot.
    pub(crate) fn slot(slot: Slot) -> Self {
        Self { slot: Some(slot), ..Self::default() }
    }

    /// The same, with a block (unless the block is the inode itself).
    pub(crate) fn at_block(mut self, block: BlockNo) -> Self {
        if self.ino != Some(block) {
            self.block = Some(block);
        }
        self
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers = [("slot", self.slot.map(u64::from)), ("group", self.group), ("inode", self.ino), ("block", self.block)];
        let mut gap = "";
        for (what, n) in numbers {
            if let Some(n) = n {
                write!(f, "{gap}{what} {n}")?;
                gap = " ";
            }
        }
        match &self.path {
            Some(p) => write!(f, "{gap}{p}"),
            None if gap.is_empty() => f.write_str("volume"),
            None => Ok(()),
        }
    }
}

/// Something that a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which check.
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// Where.
    pub place: Place,
    /// What was expected and what was found.
    pub text: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}: {}: {}", self.code, self.severity.word(), self.place, self.code.line(), self.text)
    }
}

/// Counts findings and hands the first ones of each code on.
pub(super) struct Out<'a> {
    report: &'a mut dyn FnMut(Finding),
    max: u64,
    pub(super) counts: BTreeMap<Code, u64>,
}

impl<'a> Out<'a> {
    pub(super) fn new(report: &'a mut dyn FnMut(Finding), max: u64) -> Self {
        Self { report, max, counts: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, code: Code, place: Place, text: String) {
        let n = self.counts.entry(code).or_default();
        *n += 1;
        if *n <= self.max {
            (self.report)(Finding { code, severity: code.severity(), place, text });
        }
    }
}

/// The code for a block that was not accepted, and the text without the address, which the place has.
pub(crate) fn of_check_error(e: &CheckError) -> (Code, String) {
    match e {
        CheckError::Checksum { found, computed, .. } => (Code::B01, format!("expected {computed:#010x}, found {found:#010x}")),
        CheckError::Magic { found, .. } => (Code::B02, format!("expected magic {:#010x}, found {found:#010x}", luna_format::MAGIC)),
        CheckError::Kind { expected, found, .. } => {
            let found = luna_format::Kind::from_u16(*found).map_or_else(|| format!("kind {found}"), |k| format!("{k:?}"));
            (Code::B03, format!("expected {expected:?}, found {found}"))
        }
        CheckError::Volume { .. } => (Code::B04, "expected this volume's identity, found another".into()),
        CheckError::Address { block, found } => (Code::B05, format!("expected address {block}, found {found}")),
        CheckError::Owner { expected, found, .. } => (Code::B06, format!("expected owner {expected}, found {found}")),
        CheckError::Future { what, found, known, .. } => {
            (Code::B07, format!("expected {what} up to {known}, found {found}: use a newer luna"))
        }
        CheckError::Field { what, found, .. } => (Code::B08, format!("expected {what} in bounds, found {found}")),
    }
}
