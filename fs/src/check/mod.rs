//! The checker: reads a volume past every cache and lock, and says where it contradicts itself. It never writes.
//!
//! What it believes: only checksummed blocks, and of those nothing that it has not compared with something else. No length,
//! depth or count is trusted before it is checked; trees are walked with bounded depth, directories with a queue, and a
//! block or directory reached twice is reported and not entered again. Dirty journals are laid over the LUN in memory, so
//! that a crashed volume is judged as it will be after replay.
//!
//! Memory: two bits a block of the volume (in use, reached), one more bit in groups that hold inodes, and a few bytes for
//! each directory and each file with several names; the images of dirty journals that are not at home yet.
//!
//! Invariant: a finding has a permanent [`Code`], a place and what was expected and found. When metadata is unreadable, what
//! hangs below it is not called lost: blocks without owner are then only counted (U08).
//! Not here: repair, printing, exit codes.

pub(crate) mod bits;
mod codes;
pub(crate) mod finding;
mod inodes;
mod lost;
mod names;
mod quick;
pub(crate) mod read;
mod slots;
mod space;
#[cfg(test)]
mod tests;
mod tree;
mod volume;

pub use codes::{Code, Repair, Severity, Step};
pub use finding::{Finding, Place};
pub use quick::{Quick, quick};
pub(crate) use space::ASKED_MOST;

use crate::mkfs::SuperError;
use finding::Out;
use luna_format::superblock::Superblock;
use luna_format::{Block, BlockNo, CheckError, Expect, Header, Kind, VolumeId, open};
use luna_lun::{Disk, LunError};
use read::{Fetched, Reader};
use std::collections::BTreeMap;

/// How far a check is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The pass.
    pub pass: &'static str,
    /// Units done in it.
    pub done: u64,
    /// Units in it.
    pub total: u64,
}

/// How to check.
#[derive(Clone, Copy)]
pub struct CheckOptions<'a> {
    /// Judge the volume as it will be after the dirty journals are replayed.
    pub overlay_journals: bool,
    /// Findings of one code that are reported one by one; further ones are only counted.
    pub max_per_code: u64,
    /// Hears how far the check is.
    pub progress: Option<&'a dyn Fn(Progress)>,
}

impl Default for CheckOptions<'_> {
    fn default() -> Self {
        Self { overlay_journals: true, max_per_code: 1000, progress: None }
    }
}

/// What was checked, and how it came out.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Directories.
    pub directories: u64,
    /// Inodes of all types, directories and orphans included.
    pub inodes: u64,
    /// Orphans.
    pub orphans: u64,
    /// Blocks that the groups have.
    pub blocks: u64,
    /// Blocks reached.
    pub reached: u64,
    /// Findings by code, also those not reported one by one.
    pub counts: BTreeMap<Code, u64>,
}

impl Summary {
    /// Findings of this severity.
    pub fn of(&self, severity: Severity) -> u64 {
        self.counts.iter().filter(|(c, _)| c.severity() == severity).map(|(_, n)| n).sum()
    }

    /// Nothing is to be repaired.
    pub fn is_clean(&self) -> bool {
        self.of(Severity::Error) == 0 && self.of(Severity::Minor) == 0
    }
}

/// Why a volume could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// There is no superblock to begin with.
    #[error(transparent)]
    Super(#[from] SuperError),
    /// The LUN failed as a whole.
    #[error("the check was given up: {0}")]
    Lun(#[from] LunError),
}

type Result<T> = std::result::Result<T, FsckError>;

/// The state of a check, handed from pass to pass.
struct Check<'a> {
    reader: Reader<'a>,
    sb: Superblock,
    id: VolumeId,
    options: &'a CheckOptions<'a>,
    out: Out<'a>,
    space: space::Space,
    names: names::Names,
    summary: Summary,
    /// Metadata was unreadable: what is not reached is not therefore lost.
    incomplete: bool,
    /// The newest membership record, for the journals.
    record: Option<Box<luna_format::cluster::Record>>,
}

/// One pass.
struct Pass {
    name: &'static str,
    run: fn(&mut Check<'_>) -> Result<()>,
}

/// The order of a check. Each pass may rely on what the ones before it brought.
const PASSES: [Pass; 8] = [
    Pass { name: "superblock", run: volume::superblocks },
    Pass { name: "slots", run: slots::slots },
    Pass { name: "journals", run: volume::journals },
    Pass { name: "groups", run: space::groups },
    Pass { name: "files and directories", run: names::walk },
    Pass { name: "links", run: names::links },
    Pass { name: "lost inodes", run: lost::inodes },
    Pass { name: "free space", run: space::compare },
];

/// Checks the volume on `disk`. Each finding goes to `report` as it is found.
pub fn run(disk: &dyn Disk, options: &CheckOptions<'_>, report: &mut dyn FnMut(Finding)) -> Result<Summary> {
    let (id, sb) = crate::mkfs::read_superblock(disk)?;
    let mut check = Check {
        reader: Reader::new(disk, sb.total_blocks),
        space: space::Space::new(&sb),
        names: names::Names::default(),
        sb,
        id,
        options,
        out: Out::new(report, options.max_per_code),
        summary: Summary::default(),
        incomplete: false,
        record: None,
    };
    for pass in &PASSES {
        check.progress(pass.name, 0, 1);
        (pass.run)(&mut check)?;
        check.progress(pass.name, 1, 1);
    }
    check.summary.counts = check.out.counts;
    Ok(check.summary)
}

impl Check<'_> {
    fn progress(&self, pass: &'static str, done: u64, total: u64) {
        if let Some(hear) = self.options.progress {
            hear(Progress { pass, done, total });
        }
    }

    fn found(&mut self, code: Code, place: impl Into<Place>, text: impl Into<String>) {
        self.out.add(code, place.into(), text.into());
    }

    /// Reports why a block was not accepted. Whatever hangs below it is out of sight from now on.
    fn refused(&mut self, place: Place, e: &CheckError) {
        self.incomplete = true;
        let (code, text) = finding::of_check_error(e);
        self.found(code, place, text);
    }

    /// Opens a block that was fetched; a finding and `None` when it is not what it must be.
    fn open<'b>(&mut self, fetched: &'b Fetched, kind: Kind, block: BlockNo, owner: u64, place: Place) -> Option<(&'b Block, Header)> {
        match fetched {
            Err(why) => {
                self.incomplete = true;
                self.found(Code::B09, place.at_block(block), format!("expected a readable {kind:?} block, found: {why}"));
                None
            }
            Ok(b) => match open(b, &Expect { kind, volume: self.id, block, owner: Some(owner) }) {
                Ok(h) => Some((b, h)),
                Err(e) => {
                    self.refused(place.at_block(block), &e);
                    None
                }
            },
        }
    }
}
