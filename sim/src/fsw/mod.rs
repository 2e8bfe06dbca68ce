//! The world of files: the hosts of this simulator with the production lock cache, volume, data path and journal on one LUN of bytes.
//!
//! | part | here |
//! |---|---|
//! | bytes, tearing, fences, power cuts | `medium`; one host's way to it | `door` |
//! | stacks instead of threads | `machine`; what runs on a host | `side` |
//! | programs of the guests | `guest`; what they were promised | `oracle/` |
//! | hooks with rules taken away | `mutant`; the end of a run | `end` |
//!
//! A host runs one stack at a time and none while one of its requests is at the LUN (one processor, no overlapping requests of one
//! host); between hosts everything overlaps. What is not here: the kernel's page cache, byte-range locks, overlapping requests of
//! one host, clocks that drift, damage that no fault explains.

pub(crate) mod door;
pub(crate) mod end;
pub(crate) mod guest;
pub(crate) mod machine;
pub(crate) mod medium;
pub(crate) mod mutant;
pub(crate) mod oracle;
pub(crate) mod side;

use crate::check::Who;
use crate::world::{Fallible, World};
use luna_cluster::Area;
use luna_format::superblock::Superblock;
use luna_format::{Block, BlockNo, VolumeId};
use luna_fs::mkfs::{self, MkfsOptions};
use luna_lun::Disk;
use luna_node::router::In;
use medium::{Medium, Shared};
use oracle::Oracle;
use oracle::data::{Change, File};
use oracle::names::{Got, Op};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Bytes of the LUN; the smallest there is.
const SIZE: u64 = 64 << 20;
const VOLUME: VolumeId = [3; 16];

/// What the jobs of this world say.
pub(crate) enum Heard {
    /// The volume is mounted.
    Mounted(Arc<luna_fs::Fs>),
    /// An error that no fault explains, unless this host is about to be shut out.
    Failed(String),
    /// A guest did this to names, in this batch.
    Name(u64, Op, Got),
    /// A guest saw this size.
    Size(u64, u64),
    /// Session opened the inode.
    Opened(u64, u64),
    /// Session closed.
    Closed(u64),
    /// Session begins a change with this number.
    Begin(u64, u64, Change),
    /// It ended: happened or perhaps; the newest batch of its inode.
    End(u64, bool, u64),
    /// Session begins to read these cells under this number.
    ReadBegins(u64, u64, usize, usize),
    /// The answer.
    ReadEnds(u64, Option<Vec<u8>>),
    /// An fsync or sync begins under this number.
    SyncBegins(u64),
    /// An fsync of a session was answered.
    Synced(u64, u64),
    /// A sync was answered: this batch.
    SyncedAll(u64, u64),
    /// A replay read a journal: the newest batch it has.
    Found(Who, u64),
    /// The metadata is frozen from now on.
    StandsStill,
    /// It was frozen until now.
    StoodStill,
    /// For the router.
    Input(Box<In>),
    /// The walk at the end is over.
    Walked,
}

impl std::fmt::Debug for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mounted(_) => write!(f, "mounted"),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Name(seq, op, got) => write!(f, "batch {seq}: {op:?} = {got:?}"),
            Self::Size(ino, size) => write!(f, "size of {ino} is {size}"),
            Self::Opened(s, ino) => write!(f, "session {s} opens {ino}"),
            Self::Closed(s) => write!(f, "session {s} closes"),
            Self::Begin(s, id, change) => write!(f, "session {s} begins {id}: {change:?}"),
            Self::End(id, happened, seq) => write!(f, "{id} ends, happened {happened}, batch {seq}"),
            Self::ReadBegins(s, id, from, to) => write!(f, "session {s} begins {id}: read {from}..{to}"),
            Self::ReadEnds(id, bytes) => write!(f, "{id} ends with {:?} bytes", bytes.as_ref().map(Vec::len)),
            Self::SyncBegins(id) => write!(f, "sync {id} begins"),
            Self::Synced(s, id) => write!(f, "session {s}: fsync {id} ends"),
            Self::SyncedAll(id, seq) => write!(f, "sync {id} ends: batch {seq}"),
            Self::Found(who, last) => write!(f, "journal of {who:?} has batches up to {last}"),
            Self::StandsStill => write!(f, "the metadata stands still"),
            Self::StoodStill => write!(f, "the metadata stood still"),
            Self::Input(_) => write!(f, "something for the router"),
            Self::Walked => write!(f, "the walk is over"),
        }
    }
}

/// What this world has beyond the hosts.
pub(crate) struct Files {
    pub(crate) oracle: Oracle,
    pub(crate) medium: Shared,
    pub(crate) sb: Superblock,
    pub(crate) clock: Arc<AtomicU64>,
    pub(crate) ids: Arc<AtomicU64>,
    /// The target can fence.
    pub(crate) exact: bool,
    /// There is next to no free space; and whether somebody has seen to that.
    pub(crate) full: (bool, bool),
    /// Times the target lost power.
    pub(crate) power: u64,
    /// Guests begin new work.
    pub(crate) guests: bool,
    pub(crate) sessions: BTreeMap<u64, (Who, File)>,
    pub(crate) marks: BTreeMap<u64, u64>,
    pub(crate) walked: bool,
    /// What was on the LUN when a host froze the metadata.
    pub(crate) frozen: BTreeMap<Who, BTreeMap<BlockNo, Arc<Block>>>,
    pub(crate) stats: Stats,
}

/// What happened in this world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Operations of guests that came to an end.
    pub operations: u64,
    /// Operations lost with their hosts.
    pub lost: u64,
    /// Cells of 512 bytes read and found right.
    pub cells: u64,
    /// Hosts that died in the middle of a request.
    pub crash_points: u64,
    /// Power cuts of the target.
    pub power_cuts: u64,
    /// Journals replayed.
    pub replays: u64,
    /// Looks at frozen metadata.
    pub looks: u64,
    /// Requests to the LUN.
    pub requests: u64,
    /// Writes that landed after their host had died.
    pub late_writes: u64,
}

/// A new volume for so many hosts; made once.
fn template(slots: u32) -> (Superblock, BTreeMap<BlockNo, Arc<Block>>) {
    type Made = BTreeMap<u32, (Superblock, BTreeMap<BlockNo, Arc<Block>>)>;
    static MADE: Mutex<Made> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock();
    let one = made.entry(slots).or_insert_with(|| {
        let disk = end::Plain(Mutex::new(Medium::default()), SIZE);
        let options = MkfsOptions {
            label: "sim".into(),
            slots,
            volume: VOLUME,
            hash_key: [3; 16],
            link_secret: [4; 32],
            now_ns: 1_780_000_000 << 30,
        };
        let sb = mkfs::run(&disk as &dyn Disk, &options, &mut |_, _| {}).map(|s| s.sb);
        (sb.expect("the LUN is large enough"), disk.0.into_inner().into_blocks())
    });
    (one.0, one.1.clone())
}

impl Files {
    /// A new volume for so many hosts.
    pub(crate) fn new(slots: u16, exact: bool, full: bool) -> (Self, Area) {
        let (sb, blocks) = template(u32::from(slots));
        let files = Self {
            oracle: Oracle::new(sb.root_ino),
            medium: Arc::new(Mutex::new(Medium::of(blocks, (sb.journal_start, VOLUME), sb.px_start..sb.log_start))),
            sb,
            clock: Arc::default(),
            ids: Arc::new(AtomicU64::new(1)),
            exact,
            full: (full, false),
            power: 0,
            guests: true,
            sessions: BTreeMap::new(),
            marks: BTreeMap::new(),
            walked: false,
            frozen: BTreeMap::new(),
            stats: Stats::default(),
        };
        (files, Area::of(VOLUME, &sb))
    }
}

impl World {
    /// Something a job of host `i` said.
    pub(crate) fn fs_heard(&mut self, i: usize, h: Heard) -> Fallible {
        let who = self.hosts[i].place().unwrap_or_default();
        if self.setup.talk {
            eprintln!("{:>7} host {i} {who:?}: {h:?}", self.now);
        }
        let (fenced, member) = (self.check.members.is_fenced(who), self.check.members.is_member(who));
        let Some(f) = &mut self.fs else { return Ok(()) };
        match h {
            Heard::Input(input) => return self.input(i, *input),
            Heard::Mounted(fs) => return self.fs_mounted(i, fs),
            Heard::Found(whose, last) => {
                f.stats.replays += 1;
                return f.oracle.found(whose, last);
            }
            Heard::Walked => f.walked = true,
            _ if fenced => {}
            Heard::Failed(why) => return self.fs_failed(i, who, &why),
            Heard::Name(seq, op, got) => {
                self.fs_learn(i, &op, &got);
                let Some(f) = &mut self.fs else { return Ok(()) };
                if member || !oracle::names::Names::is_read(&op) {
                    return f.oracle.name(who, seq, op, got);
                }
            }
            Heard::Size(ino, size) => {
                if let Some(generation) = f.oracle.names.generation(ino).filter(|_| member) {
                    return f.oracle.data.may_have_size((ino, generation), size);
                }
            }
            Heard::StandsStill => drop(f.frozen.insert(who, f.medium.lock().content())),
            Heard::StoodStill => {
                let before = f.frozen.remove(&who).unwrap_or_default();
                // a freeze goes with the right of the host that made it
                if member {
                    f.stats.looks += 1;
                    return f.stood_still(before);
                }
            }
            other => return self.fs_heard_data(who, member, other),
        }
        Ok(())
    }

    fn fs_heard_data(&mut self, who: Who, member: bool, h: Heard) -> Fallible {
        let Some(f) = &mut self.fs else { return Ok(()) };
        let file = |s: u64| f.sessions.get(&s).map(|(_, file)| *file);
        match h {
            Heard::Opened(session, ino) => {
                if let Some(file) = f.oracle.opened(who, ino) {
                    f.sessions.insert(session, (who, file));
                }
            }
            Heard::Closed(session) => {
                if let Some((who, file)) = f.sessions.remove(&session) {
                    f.oracle.closed(who, file);
                }
            }
            Heard::Begin(session, id, change) => {
                if let Some(file) = file(session) {
                    f.oracle.begin(id, who, file, change);
                }
            }
            Heard::End(id, happened, seq) => f.oracle.data.end(id, happened, seq, false),
            Heard::ReadBegins(session, id, from, to) => {
                if let Some(file) = file(session) {
                    f.oracle.heard += 1;
                    f.oracle.data.read_begins(id, who, file, from, to);
                }
            }
            Heard::ReadEnds(id, bytes) => return f.oracle.data.read_ends(id, bytes.as_deref(), member),
            Heard::SyncBegins(id) => drop(f.marks.insert(id, f.oracle.data.now())),
            Heard::Synced(session, id) => {
                if let (Some(file), Some(start)) = (file(session), f.marks.remove(&id)) {
                    f.oracle.synced(who, file, start);
                }
            }
            Heard::SyncedAll(id, seq) => {
                if let Some(start) = f.marks.remove(&id) {
                    f.oracle.synced_all(who, seq, start);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
