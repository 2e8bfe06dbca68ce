//! The world in one thread: hosts, network, LUN, faults and checkers, from one seed.
//!
//! Each host runs the router of `node` (with the membership core and the lock manager in it) and `node`'s links, the very
//! code of a real mount; around it are simulated: time, TCP (delay, loss of connections, cuts, duplicates), mail through the
//! LUN, the LUN itself. A run has two phases: faults of all kinds, in which nothing unsafe may happen; then everything is healed
//! and must get on ([`run`]). The same [`Setup`] gives the same run, bit for bit ([`Report::trace`]).
//!
//! There are three worlds. In that of *locks* a small stand-in takes locks and changes counters: fast, for the protocols. In that of
//! *files* each host has the production lock cache, volume, data path and journal, guests that use them, and replays that are
//! real; an oracle knows what they were promised. In that of [`crash`]es short
//! workloads run once, and every state that a crash may leave of them is recovered and judged.
//!
//! | part | here |
//! |---|---|
//! | events and time | `world`; what a process does | `host` |
//! | TCP, mail | `net`; cluster blocks of the LUN | `lun`; faults | `faults` |
//! | world of locks | `user`, `jobs`; properties | `check/` |
//! | world of files | `fsw/` |
//! | world of crashes | [`crash`] |
//! | how things grow up to 64 hosts | [`scale`] |
//!
//! What it does not run: `PosixClient` and byte-range locks, the kernel's page cache, the bytes of mail blocks, `peers` itself (its
//! rules are repeated in `net`, because it owns sockets and threads), clock drift.
#![forbid(unsafe_code)]

mod check;
pub mod crash;
mod faults;
mod fsw;
mod host;
mod jobs;
mod lun;
mod net;
pub mod scale;
mod user;
mod world;

pub use fsw::Stats;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A rule taken away on purpose, to show that the checkers would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// What lock managers say before their host has a lock cache is dropped. (Once a real bug: every lock waited for ever.)
    DropsEarlyLockMessages,
    /// Now and then a message is handed on a second time, a little later.
    DeliversTwice,
    /// Hosts write though their lease ran out.
    WritesThroughAShutGate,
    /// A host greets a new incarnation of a slot with the number of the last message it had of the old one, so that the first
    /// messages of the new one count as acknowledged and are lost. (A real bug of the links' handshake.)
    AcksForAnOlderIncarnation,
    /// Holders do not hear that others want their locks.
    IgnoresBasts,
    /// A restarted process does not see its own Paxos register.
    ForgetsItsRegister,
    /// The target says that it fenced a host, and did nothing.
    FenceDoesNothing,
    /// Where there is nothing but time to fence with, nobody waits.
    DoesNotWaitForTheLease,
    /// What a dead host held is granted when it is fenced, not when it is recovered.
    ThawsBeforeRecovery,
    /// A lock goes to the next host without what was changed under it.
    GivesLocksBackDirty,
    /// What was cached under a lock is kept when the lock goes.
    RemembersWithoutALock,
    /// Flushes and forced writes are answered when the target's cache has them.
    AnswersBeforeDurable,
    /// fsync and sync answer at once.
    SyncsInWordsOnly,
    /// Replay writes what it has, whatever is there.
    ReplaysWithoutVersions,
    /// Replay leaves home blocks alone that are torn.
    LeavesTornBlocks,
    /// Replay does not write the journal's new header.
    LeavesTheJournalDirty,
    /// Freed blocks are handed out before the transaction that freed them is durable.
    ReusesFreedBlocksAtOnce,
    /// A freeze of the metadata freezes nothing.
    FreezesInWordsOnly,
    /// Metadata goes home before its record is in the journal; crashes only.
    WritesHomeBeforeTheRecord,
    /// A record is written though the data that it makes reachable is not durable; crashes only.
    RecordsBeforeTheirData,
}

impl Broken {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::DropsEarlyLockMessages,
        Self::DeliversTwice,
        Self::WritesThroughAShutGate,
        Self::AcksForAnOlderIncarnation,
        Self::IgnoresBasts,
        Self::ForgetsItsRegister,
        Self::FenceDoesNothing,
        Self::DoesNotWaitForTheLease,
        Self::ThawsBeforeRecovery,
        Self::GivesLocksBackDirty,
        Self::RemembersWithoutALock,
        Self::AnswersBeforeDurable,
        Self::SyncsInWordsOnly,
        Self::ReplaysWithoutVersions,
        Self::LeavesTornBlocks,
        Self::LeavesTheJournalDirty,
        Self::ReusesFreedBlocksAtOnce,
        Self::FreezesInWordsOnly,
        Self::WritesHomeBeforeTheRecord,
        Self::RecordsBeforeTheirData,
    ];
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Where all chance comes from.
    pub seed: u64,
    /// How many hosts; 0 lets the seed say (2 to 8).
    pub hosts: usize,
    /// How long there are faults, in simulated milliseconds.
    pub faults_ms: u64,
    /// Production timing and faults minutes apart, for hours of simulated time; locks only.
    pub calm: bool,
    /// Files and the production file system, or locks only.
    pub files: bool,
    /// Now and then a host freezes the metadata, and the production check looks at the LUN meanwhile; files only. An option, because it
    /// changes what every seed means.
    pub freezes: bool,
    /// Prints everything as it happens, for whoever has to read a seed.
    pub talk: bool,
    /// A rule to take away.
    pub broken: Option<Broken>,
}

impl Setup {
    /// The usual run of a seed.
    pub fn of(seed: u64) -> Self {
        Self { seed, hosts: 0, faults_ms: 40_000, calm: false, files: false, freezes: false, talk: false, broken: None }
    }

    /// A seed over ten hours as they are in a machine room on a bad day: a fault every six minutes, and the timing of the product.
    pub fn calm(seed: u64) -> Self {
        Self { faults_ms: 36_000_000, calm: true, ..Self::of(seed) }
    }

    /// The usual run of a seed over files.
    pub fn files(seed: u64) -> Self {
        Self { faults_ms: 8_000, files: true, ..Self::of(seed) }
    }
}

/// What a run that ended well was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Hash of everything that all routers had done, in order and with times.
    pub trace: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Kills, stops, cuts, resets, leaves, slow and failing spells of the LUN.
    pub faults: u64,
    /// Messages handed to links.
    pub messages: u64,
    /// Locks granted.
    pub grants: u64,
    /// Hosts evicted.
    pub evictions: u64,
    /// Data writes that landed.
    pub writes: u64,
    /// Reads of hosts that were evicted and did not know it yet, of data that had changed meanwhile.
    pub stale_reads: u64,
    /// Longest wait for a lock, in simulated milliseconds.
    pub longest_wait_ms: u64,
    /// What happened to files.
    pub files: Stats,
}

/// A property that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The seed that shows it.
    pub seed: u64,
    /// When, in simulated milliseconds.
    pub at_ms: u64,
    /// Which, in one line.
    pub what: String,
    /// The last things that happened.
    pub tail: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {} at {} ms: {}", self.seed, self.at_ms, self.what)
    }
}

impl std::error::Error for Violation {}

/// Runs one seed: faults, heal, and then everything must come to an end.
///
/// # Errors
/// The first property that did not hold; a core that stopped itself (its own assertions) is one too.
pub fn run(setup: &Setup) -> Result<Report, Violation> {
    let mut w = world::World::new(setup);
    guarded(&mut w, |w| w.live().map(|()| w.report()))
}

/// Lives a world's story; a core that stops itself does not stop the simulator.
fn guarded<T>(w: &mut world::World, story: impl FnOnce(&mut world::World) -> Result<T, String>) -> Result<T, Violation> {
    let what = match catch_unwind(AssertUnwindSafe(|| story(w))) {
        Ok(Ok(told)) => return Ok(told),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            format!("a core stopped: {}", text.unwrap_or_default())
        }
    };
    Err(Violation { seed: w.setup.seed, at_ms: w.now, what, tail: w.tail() })
}
