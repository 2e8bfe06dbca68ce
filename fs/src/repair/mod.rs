//! Repair: makes a volume that contradicts itself into one that does not, losing as little as can be, and saying what.
//!
//! **Not finding by finding.** One damage shows as many findings, and what is right for one of them depends on the others. So a repair
//! walks the volume itself, level by level in the order of the check, and brings each object into the one form that its readable
//! content allows; a sound object is in that form already and is not written. Everything is decided before the first write of a
//! round; then the round is written in an order in which it may be cut off anywhere (`apply`). Then the check runs again, and if it
//! finds anything, another round follows. The check is the judge, the repair never is. `docs/adr/0012` has the reasons.
//!
//! Levels: superblock copies, slots, journals (replayed first: all else is judged as after replay), then in memory the walk (directories,
//! inodes, attributes), lost inodes, links, the extents of files, and last the groups, which are made from what was reached.
//!
//! Invariants
//! 1. Nobody else writes: the caller has made sure (`luna fsck` does, with [`exclusive`]).
//! 2. Repairing what was repaired writes nothing. Repairing what a cut-off repair left comes to the same end.
//! 3. A block that the LUN does not give back ends the repair before anything is written (B09), and so does anything made by a newer
//!    program (B07).
//! 4. Rounds are bounded; each reads a bounded multiple of what is on the volume.
//!
//! Not here: finding (`check`), who may repair and when, printing.

mod apply;
mod door;
pub mod exclusive;
mod extents;
pub mod hold;
mod inodes;
mod journals;
mod lost;
mod names;
mod records;
mod slots;
mod space;
#[cfg(test)]
mod tests;

use crate::check::{self, CheckOptions, Code, Finding, FsckError, Place, Progress, Summary};
use door::Door;
use extents::Part;
use luna_format::superblock::Superblock;
use luna_format::{Block, BlockNo, Ino, Kind, VolumeId};
use luna_journal::JournalError;
use luna_lun::{Disk, LunError};
use records::Rec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Rounds of a repair at the most. One is enough for all damage that is known; a second one mends what came to light by the first.
const ROUNDS: u32 = 6;

/// How far a repair may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Only when all that is to be done loses nothing and chooses nothing (`fsck -p`).
    Safe,
    /// Whatever is needed (`fsck -y`).
    All,
}

/// How to repair.
#[derive(Clone, Copy)]
pub struct RepairOptions<'a> {
    /// How far.
    pub level: Level,
    /// Nanoseconds since 1970, for directories that are made.
    pub now_ns: i64,
    /// Hears how far it is.
    pub progress: Option<&'a dyn Fn(Progress)>,
}

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Did {
    /// For which finding.
    pub code: Code,
    /// Where.
    pub place: Place,
    /// What.
    pub text: String,
    /// What was lost by it.
    pub lost: Option<String>,
}

impl Did {
    fn new(code: Code, place: Place, text: impl Into<String>) -> Self {
        Self { code, place, text: text.into(), lost: None }
    }

    fn lost(code: Code, place: Place, text: impl Into<String>, lost: impl Into<String>) -> Self {
        Self { lost: Some(lost.into()), ..Self::new(code, place, text) }
    }
}

impl std::fmt::Display for Did {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} repaired {}: {}", self.code, self.place, self.text)?;
        if let Some(lost) = &self.lost {
            write!(f, "; lost: {lost}")?;
        }
        Ok(())
    }
}

/// What a repair tells while it runs.
#[derive(Clone, Debug)]
pub enum Event {
    /// The check before it, or the last check, found this.
    Found(Finding),
    /// The repair did this.
    Did(Did),
}

/// How a repair came out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The volume as it was.
    pub before: Summary,
    /// The volume as it is.
    pub after: Summary,
    /// Things done.
    pub repairs: u64,
    /// Blocks written.
    pub written: u64,
    /// Rounds.
    pub rounds: u32,
    /// Why not everything was repaired.
    pub refused: Option<String>,
}

/// Why a volume could not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// It could not even be checked.
    #[error(transparent)]
    Check(#[from] FsckError),
    /// The LUN failed.
    #[error("the repair was given up and may be run again: {0}")]
    Lun(#[from] LunError),
    /// A block cannot be read.
    #[error("block {block} cannot be read ({why}); a failing LUN is not repaired: copy it to a sound one first [B09]")]
    Unreadable {
        /// Which.
        block: BlockNo,
        /// What the LUN said.
        why: String,
    },
    /// A journal failed.
    #[error("the repair was given up and may be run again: {0}")]
    Journal(#[from] JournalError),
    /// No room for new tree nodes.
    #[error("the volume is full: there is no room to rebuild a tree; nothing but journals and slots was changed")]
    NoSpace,
}

/// What becomes of the body of an inode.
enum Body {
    /// As it is in the block.
    AsIs,
    /// Names, in new nodes.
    Names(Vec<Rec>),
    /// Extents, in new nodes.
    Parts(Vec<Part>),
}

/// An inode that is to be written.
struct Plan {
    block: Block,
    body: Body,
}

/// One round: what was found in it and what is to be written.
struct Repair<'a> {
    door: Door<'a>,
    sb: Superblock,
    space: space::Space,
    now_ns: i64,
    options: &'a RepairOptions<'a>,
    report: &'a mut dyn FnMut(Did),
    /// Reads only: nothing is claimed, nothing said.
    looking: bool,
    /// Of each directory: parent and name; of the inode that is looked at, too.
    paths: BTreeMap<Ino, (Ino, Box<[u8]>)>,
    now: Option<(Ino, Ino, Box<[u8]>)>,
    queue: VecDeque<names::Dir>,
    /// Files with extents, and whether their inodes are suspect.
    files: Vec<(Ino, bool)>,
    /// Files whose size is that of their extents.
    resize: BTreeSet<Ino>,
    /// Links that an inode counts, names found; of files that have not exactly one.
    links: BTreeMap<Ino, (u32, u32)>,
    plans: BTreeMap<Ino, Plan>,
    /// Attribute blocks that are written in place.
    rewrites: Vec<(BlockNo, Kind, Ino, Block)>,
    /// Inodes that were not there before.
    fresh: BTreeSet<Ino>,
    /// Directories that get names: written before the others.
    early: BTreeSet<Ino>,
    /// `lost+found`, if it is known.
    lost_dir: Option<Ino>,
    /// Names it will get.
    found: Vec<Rec>,
}

impl Repair<'_> {
    fn did(&mut self, d: Did) {
        if !self.looking {
            (self.report)(d);
        }
    }

    fn progress(&self, pass: &'static str, done: u64, total: u64) {
        if let Some(hear) = self.options.progress {
            hear(Progress { pass, done, total });
        }
    }

    /// An inode with its path, as far as it is known.
    fn place(&self, ino: Ino) -> Place {
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = ino;
        if let Some((_, dir, name)) = self.now.as_ref().filter(|n| n.0 == ino) {
            parts.push(name);
            at = *dir;
        }
        while let Some((parent, name)) = self.paths.get(&at).filter(|_| at != self.sb.root_ino && parts.len() < 256) {
            parts.push(name);
            at = *parent;
        }
        let text: Vec<String> = parts.iter().rev().map(|p| p.escape_ascii().to_string()).collect();
        Place { ino: Some(ino), path: (at == self.sb.root_ino).then(|| format!("/{}", text.join("/"))), ..Place::default() }
    }

    /// The block of an inode as it will be.
    fn inode_now(&self, ino: Ino) -> Result<Block, RepairError> {
        self.plans.get(&ino).map_or_else(|| self.door.one(ino), |p| Ok(p.block.clone()))
    }

    /// Plans to write an inode; a body that was planned before stays unless another one comes.
    fn plan(&mut self, ino: Ino, block: Block, body: Body) {
        let old = self.plans.remove(&ino).map(|p| p.body);
        let body = match (body, old) {
            (Body::AsIs, Some(old)) => old,
            (body, _) => body,
        };
        self.plans.insert(ino, Plan { block, body });
    }

    fn round(&mut self) -> Result<(), RepairError> {
        self.walk()?;
        self.lost()?;
        self.link_counts()?;
        self.files()?;
        self.name_lost()?;
        self.apply()
    }
}

/// Whether findings of these codes are repaired without a decision; the first that is not, if there is one.
fn needs_decision(s: &Summary) -> Option<Code> {
    let bad = |c: &Code| c.severity() > check::Severity::Note && !c.repair().is_safe();
    s.counts.keys().copied().find(bad)
}

/// Findings that no repair touches, and why.
fn hopeless(s: &Summary) -> Option<String> {
    let why = |c: &Code| match c.repair() {
        check::Repair::Nothing(why) if c.severity() == check::Severity::Error => Some(format!("{c}: {why}")),
        _ => None,
    };
    s.counts.keys().find_map(why)
}

/// Repairs the volume on `disk`, on which no host is up and none can come up (see [`exclusive`]).
pub fn run(disk: &dyn Disk, options: &RepairOptions<'_>, tell: &mut dyn FnMut(Event)) -> Result<Outcome, RepairError> {
    let look = CheckOptions { progress: options.progress, ..CheckOptions::default() };
    let before = check::run(disk, &look, &mut |f| tell(Event::Found(f)))?;
    let mut out = Outcome { after: before.clone(), before, ..Outcome::default() };
    out.refused = hopeless(&out.before);
    if let (Level::Safe, Some(code)) = (options.level, needs_decision(&out.before)) {
        out.refused = Some(format!("{code} ({}) needs a decision: run `luna fsck -y`", code.line()));
    }
    let dirty = out.before.counts.contains_key(&Code::J05);
    if out.refused.is_some() || (out.before.is_clean() && !dirty) {
        return Ok(out);
    }
    let (id, sb) = crate::mkfs::read_superblock(disk).map_err(FsckError::from)?;
    let mut count = 0;
    let mut did = |d: Did| {
        count += 1;
        tell(Event::Did(d));
    };
    let mut door = Door::new(disk, id, sb.total_blocks);
    exclusive::copies(disk, &mut did)?;
    slots::slots(&mut door, id, &sb, &mut did)?;
    journals::journals(&mut door, id, &sb, &mut did)?;
    out.written += door.written;
    loop {
        out.after = check::run(disk, &look, &mut |_| ())?;
        if out.after.is_clean() || out.rounds == ROUNDS {
            break;
        }
        out.rounds += 1;
        let written = one_round(disk, id, &sb, options, &mut did)?;
        out.written += written;
        if written == 0 {
            out.after = check::run(disk, &look, &mut |_| ())?;
            break;
        }
    }
    out.repairs = count;
    if !out.after.is_clean() {
        check::run(disk, &look, &mut |f| tell(Event::Found(f)))?;
        out.refused = Some(format!("not everything could be repaired in {} rounds; please report it with the findings", out.rounds));
    }
    Ok(out)
}

fn one_round<'a>(
    disk: &'a dyn Disk,
    id: VolumeId,
    sb: &Superblock,
    options: &'a RepairOptions<'a>,
    did: &'a mut dyn FnMut(Did),
) -> Result<u64, RepairError> {
    let mut door = Door::new(disk, id, sb.total_blocks);
    let space = space::Space::read(&mut door, sb)?;
    let mut r = Repair {
        door,
        sb: *sb,
        space,
        now_ns: options.now_ns,
        options,
        report: did,
        looking: false,
        paths: BTreeMap::new(),
        now: None,
        queue: VecDeque::new(),
        files: Vec::new(),
        resize: BTreeSet::new(),
        links: BTreeMap::new(),
        plans: BTreeMap::new(),
        rewrites: Vec::new(),
        fresh: BTreeSet::new(),
        early: BTreeSet::new(),
        lost_dir: None,
        found: Vec::new(),
    };
    r.round()?;
    Ok(r.door.written)
}
