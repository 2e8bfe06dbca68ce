//! What lies on the LUN, what the lock table says, and what each host believes. Data, and questions about it.
//!
//! Invariant: a value of [`State`] says all that decides what may happen next; what was only of interest in the past is dropped, so that
//! equal futures are equal states. Not here: steps (`steps.rs`).

use super::{Mutant, Takeover, Which};

/// Most blocks of a model.
pub(super) const MAX_BLOCKS: usize = 2;

/// The contents of a block: its writers in order, two bits each behind a leading one; zero for a torn block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content(u16);

impl Content {
    /// Version 0: nobody wrote.
    pub const EMPTY: Self = Self(1);
    /// Neither the old nor the new.
    pub const TORN: Self = Self(0);

    /// The version: how many writers.
    pub fn version(self) -> u32 {
        self.0.checked_ilog2().unwrap_or(0) / 2
    }

    /// The next version, by `host`.
    pub fn by(self, host: u8) -> Self {
        assert!(self.version() < 7 && host < 4, "no room for this writer");
        Self(self.0 << 2 | u16::from(host))
    }

    /// Whether everything in `other` is in here.
    pub fn holds(self, other: Self) -> bool {
        self != Self::TORN && self.version() >= other.version() && self.0 >> (2 * (self.version() - other.version())) == other.0
    }
}

/// Where a slot's incarnation is in its life, as the records say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Status {
    Member,
    Evicted,
    Fenced,
    Recovered,
}

/// The one record that a host may have under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Record {
    None,
    Sent(Content),
    /// Durable; the host does not know yet.
    Landed(Content),
}

/// What a host thinks of a home block under its lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Home {
    Clean,
    Dirty,
    Sent(Content),
}

/// How far a replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Step {
    Ordered,
    /// Reads this block next.
    At(u8),
    /// The write of this block is under way.
    Writing(u8),
    /// The write of the clean header is under way.
    Header,
    Done,
}

/// The replay of one journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Job {
    pub(super) by: u8,
    pub(super) step: Step,
    /// The newest image, as planned.
    pub(super) image: Option<Content>,
    /// It wrote a home block.
    pub(super) wrote: bool,
    /// It wrote over a torn block.
    pub(super) rebuilt: bool,
    /// It left an older image out.
    pub(super) left_out: bool,
    /// It is not the first.
    pub(super) again: bool,
}

impl Job {
    pub(super) fn ordered(by: u8, again: bool) -> Self {
        Self { by, step: Step::Ordered, image: None, wrote: false, rebuilt: false, left_out: false, again }
    }

    pub(super) fn is_done(&self) -> bool {
        self.step == Step::Done
    }

    /// Whether it is between its order and its end.
    pub(super) fn runs(&self) -> bool {
        !matches!(self.step, Step::Ordered)
    }
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Host {
    pub(super) status: Status,
    /// The process goes on; one whose write failed has withdrawn.
    pub(super) up: bool,
    pub(super) lease: bool,
    /// It holds the lock, or did when it was stopped and is not recovered.
    pub(super) holds: bool,
    /// It is not the slot's first incarnation.
    pub(super) is_new: bool,
    pub(super) cache: Content,
    pub(super) record: Record,
    pub(super) home: [Home; MAX_BLOCKS],
    pub(super) journal: Vec<Content>,
    /// The replay of this slot's journal.
    pub(super) job: Option<Job>,
}

impl Host {
    /// A member that has done nothing yet; its journal is clean.
    pub(super) fn fresh() -> Self {
        Self {
            status: Status::Member,
            up: true,
            lease: true,
            holds: false,
            is_new: false,
            cache: Content::EMPTY,
            record: Record::None,
            home: [Home::Clean; MAX_BLOCKS],
            journal: Vec::new(),
            job: None,
        }
    }
}

/// A replay that was taken over from a recoverer which can still do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Lost {
    pub(super) of: u8,
    pub(super) job: Job,
}

/// Which invariants have fallen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Broken {
    pub(super) late_write: bool,
    pub(super) granted_early: bool,
    pub(super) lost: bool,
    pub(super) fell: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) disk: [Content; MAX_BLOCKS],
    /// Who holds the lock, as the lock table says.
    pub(super) owner: Option<u8>,
    /// The newest contents that were acknowledged.
    pub(super) acked: Content,
    pub(super) hosts: Vec<Host>,
    /// In order, so that equal futures are equal states.
    pub(super) lost: Vec<Lost>,
    /// New incarnations so far.
    pub(super) joins: u8,
    pub(super) broken: Broken,
}

impl State {
    /// Host 0 holds the lock; which one does makes no difference.
    pub(super) fn new(m: &Takeover) -> Self {
        assert!((1..=MAX_BLOCKS).contains(&usize::from(m.blocks)), "one or two blocks");
        let host = |h: u8| Host { holds: h == 0, ..Host::fresh() };
        Self {
            disk: [Content::EMPTY; MAX_BLOCKS],
            owner: Some(0),
            acked: Content::EMPTY,
            hosts: (0..m.hosts).map(host).collect(),
            lost: Vec::new(),
            joins: 0,
            broken: Broken::default(),
        }
    }

    pub(super) fn host(&self, h: u8) -> &Host {
        &self.hosts[usize::from(h)]
    }

    pub(super) fn host_mut(&mut self, h: u8) -> &mut Host {
        &mut self.hosts[usize::from(h)]
    }

    /// Whether the process may have writes accepted by the LUN.
    pub(super) fn can_write(&self, m: &Takeover, h: u8) -> bool {
        let host = self.host(h);
        let refused = m.fence == super::Fence::Exact && m.mutant != Mutant::NoFence && self.is_fenced(h);
        host.up && !refused && (host.lease || m.mutant == Mutant::GateSkipped)
    }

    /// Whether the recoverer may have the writes of a replay accepted.
    pub(super) fn can_replay(&self, m: &Takeover, by: u8) -> bool {
        m.mutant == Mutant::ReplayUngated || self.can_write(m, by)
    }

    /// The replay that a step is about, and of whose journal.
    pub(super) fn job(&self, which: Which) -> Option<Lost> {
        match which {
            Which::Of(of) => self.host(of).job.map(|job| Lost { of, job }),
            Which::Lost(n) => self.lost.get(usize::from(n)).copied(),
        }
    }

    /// Changes it; one that was lost and comes to its end is gone.
    pub(super) fn change_job(&mut self, which: Which, change: impl FnOnce(&mut Job)) {
        match which {
            Which::Of(of) => {
                if let Some(job) = &mut self.host_mut(of).job {
                    change(job);
                }
            }
            Which::Lost(n) => {
                if let Some(lost) = self.lost.get_mut(usize::from(n)) {
                    change(&mut lost.job);
                }
                self.lost.retain(|l| !l.job.is_done());
                self.lost.sort_unstable();
            }
        }
    }

    /// Whether FENCED of the host was chosen.
    pub(super) fn is_fenced(&self, h: u8) -> bool {
        matches!(self.host(h).status, Status::Fenced | Status::Recovered)
    }

    pub(super) fn all_fenced(&self) -> bool {
        self.hosts.iter().all(|h| h.status != Status::Evicted)
    }

    /// Un-fenced hosts that hold the lock.
    pub(super) fn holders(&self) -> usize {
        self.hosts.iter().filter(|h| h.holds && matches!(h.status, Status::Member | Status::Evicted)).count()
    }

    pub(super) fn longest_journal(&self) -> usize {
        self.hosts.iter().map(|h| h.journal.len()).max().unwrap_or(0)
    }

    pub(super) fn recovered(&self) -> usize {
        self.hosts.iter().filter(|h| h.status == Status::Recovered).count()
    }

    pub(super) fn job_says(&self, what: impl Fn(&Job) -> bool) -> bool {
        self.hosts.iter().filter_map(|h| h.job.as_ref()).any(what)
    }

    /// Whether a live host holds what a replay has brought home.
    pub(super) fn is_passed_on(&self) -> bool {
        let brought = |h: &Host| h.status == Status::Recovered && h.job.is_some_and(|j| j.wrote);
        self.hosts.iter().any(brought) && self.hosts.iter().any(|h| h.holds && h.status == Status::Member)
    }

    pub(super) fn is_new_holder(&self) -> bool {
        self.hosts.iter().any(|h| h.is_new && h.holds && h.status == Status::Member)
    }

    /// Whether a write to the block is under way.
    pub(super) fn is_being_written(&self, block: u8) -> bool {
        let home = |h: &Host| matches!(h.home[usize::from(block)], Home::Sent(_));
        let writes = |j: &Job| j.step == Step::Writing(block);
        self.hosts.iter().any(home) || self.job_says(writes) || self.lost.iter().any(|l| writes(&l.job))
    }
}
