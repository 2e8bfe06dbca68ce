//! How things grow with the number of hosts: one world after the other, with production timing and nothing that fails but
//! hosts, and what happens in it is measured.
//!
//! One world lives through this: all hosts start within 100 ms on a fresh volume ([`Storm`]); they idle, then they work under
//! a load of locks ([`Rate`]); then some of them die, are taken over, and come back, once for each [`Case`] ([`Takeover`]).
//!
//! Invariant: all checkers look on all the time, and every stage has a limit: what does not come to an end is a violation, not a
//! row. The same seed gives the same table. Not here: faults while a takeover goes on (the seeds of [`crate::run`] have those), what
//! is counted (`meter`), the limits of a real LUN, network or processor.

pub(crate) mod meter;
mod table;

use crate::check::Who;
use crate::world::{Happening, World};
use crate::{Setup, Violation};
use luna_cluster::Timing;
use luna_dlm::{Member, Mode, Name, master_of};
use luna_format::cluster::{DECIDE_EVICT, DECIDE_FENCED, DECIDE_RECOVERED};
pub use meter::Counts;
use std::collections::BTreeSet;
pub use table::tables;

/// How hosts die, and how they can be fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// How many: one, or every second host.
    pub half: bool,
    /// The machine dies, not the process: its connections fall silent and are not reset.
    pub silent: bool,
    /// The target refuses the dead at once; otherwise only time does.
    pub exact: bool,
}

/// The cases of the table.
pub const CASES: [Case; 8] = [
    Case { half: false, silent: false, exact: true },
    Case { half: false, silent: false, exact: false },
    Case { half: false, silent: true, exact: true },
    Case { half: false, silent: true, exact: false },
    Case { half: true, silent: false, exact: true },
    Case { half: true, silent: false, exact: false },
    Case { half: true, silent: true, exact: true },
    Case { half: true, silent: true, exact: false },
];

/// All start at once on a fresh volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storm {
    /// Until the first is a member.
    pub first_ms: u64,
    /// Until all are members.
    pub members_ms: u64,
    /// Until all serve in the same epoch.
    pub serve_ms: u64,
    /// What that took.
    pub counts: Counts,
}

/// What was counted in some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How long.
    pub ms: u64,
    /// What.
    pub counts: Counts,
    /// The longest wait for a lock that ended in it.
    pub longest_ms: u64,
}

/// Some die. Times are from the death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takeover {
    /// How.
    pub case: Case,
    /// How many survived.
    pub survivors: usize,
    /// Until the last EVICT was on the LUN.
    pub evict_ms: u64,
    /// Until the last FENCED was.
    pub fenced_ms: u64,
    /// Until the last RECOVERED was.
    pub recovered_ms: u64,
    /// Until somebody else had something that one of the dead had held exclusively.
    pub thaw_ms: u64,
    /// The longest wait for something that none of the dead held, wanted or mastered.
    pub unrelated_ms: u64,
    /// What it took until the last RECOVERED, load included.
    pub counts: Counts,
    /// Until the dead were back and everybody served.
    pub rejoin_ms: u64,
}

/// Everything about one number of hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// How many hosts.
    pub hosts: usize,
    /// How they came in.
    pub storm: Storm,
    /// Nobody wants anything.
    pub idle: Rate,
    /// Everybody wants something twenty times a second.
    pub load: Rate,
    /// How some of them died.
    pub takeovers: Vec<Takeover>,
}

/// No stage may take longer.
const LIMIT_MS: u64 = 180_000;
/// Between the stages.
const SETTLE_MS: u64 = 3000;

/// Measures one number of hosts (at most as many as there are slots).
///
/// # Errors
/// The first property that did not hold, or a stage that did not end.
pub fn measure(seed: u64, hosts: usize, cases: &[Case]) -> Result<Measured, Violation> {
    let hosts = hosts.clamp(2, usize::from(luna_format::MAX_SLOTS));
    let setup = Setup { hosts, ..Setup::of(seed) };
    let rng = fastrand::Rng::with_seed(seed);
    let mut w = World::build(&setup, rng, hosts, luna_format::MAX_SLOTS, Timing::default());
    w.scale = Some(Box::default());
    w.wanting = false;
    crate::guarded(&mut w, |w| w.grow(cases))
}

impl World {
    fn grow(&mut self, cases: &[Case]) -> Result<Measured, String> {
        let storm = self.storm()?;
        self.run_until(self.now + SETTLE_MS)?;
        let idle = self.rate(10_000)?;
        self.wanting = true;
        self.run_until(self.now + SETTLE_MS)?;
        let load = self.rate(10_000)?;
        let takeovers = cases.iter().map(|c| self.die(*c)).collect::<Result<_, _>>()?;
        self.wanting = false;
        self.wait_for("waits do not end", |w| w.check.progress.all_ended())?;
        Ok(Measured { hosts: self.hosts.len(), storm, idle, load, takeovers })
    }

    /// Runs until `done`, millisecond by millisecond, and says how long that took.
    fn wait_for(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) -> Result<u64, String> {
        let begin = self.now;
        while !done(self) {
            if self.now >= begin + LIMIT_MS {
                let (newest, waits) = (self.check.members.newest(), self.check.progress.describe());
                return Err(format!("progress: {what}: {}; {newest:?}; {waits}", self.ailing()));
            }
            self.run_until(self.now + 1)?;
        }
        Ok(self.now - begin)
    }

    fn storm(&mut self) -> Result<Storm, String> {
        let (begin, before) = (self.now, self.counted());
        self.start_all(&(0..self.hosts.len()).collect::<Vec<_>>());
        let first_ms = self.wait_for("nobody gets in", |w| w.check.members.newest().1 > 0)?;
        self.wait_for("not everybody gets in", |w| w.check.members.newest().1 == w.hosts.len())?;
        let members_ms = self.now - begin;
        self.wait_for("not everybody serves", Self::healthy)?;
        Ok(Storm { first_ms, members_ms, serve_ms: self.now - begin, counts: self.counted().since(&before) })
    }

    fn start_all(&mut self, hosts: &[usize]) {
        for host in hosts {
            let late = self.rng.u64(0..100);
            self.at(late, Happening::Start { host: *host });
        }
    }

    fn rate(&mut self, ms: u64) -> Result<Rate, String> {
        let before = self.counted();
        self.check.progress.kept = Some(Vec::new());
        self.run_until(self.now + ms)?;
        let kept = self.check.progress.kept.take().unwrap_or_default();
        let longest_ms = kept.iter().map(|(_, since, until)| until - since).max().unwrap_or(0);
        Ok(Rate { ms, counts: self.counted().since(&before), longest_ms })
    }

    /// Some die, are taken over, and come back.
    fn die(&mut self, case: Case) -> Result<Takeover, String> {
        let victims: Vec<usize> = if case.half { (0..self.hosts.len()).step_by(2).collect() } else { vec![0] };
        let dead: Vec<Who> = victims.iter().filter_map(|i| self.hosts[*i].place()).collect();
        let (held, related) = self.stakes(&dead);
        if let Some(s) = &mut self.scale {
            s.exact = case.exact;
            s.records.clear();
        }
        let (begin, before) = (self.now, self.counted());
        self.check.progress.kept = Some(Vec::new());
        for i in &victims {
            self.end_for_good(*i, case.silent);
        }
        let mut thaw_ms = None;
        let recovered_ms = self.wait_for("the dead are not recovered", |w| {
            let thawed = || held.iter().any(|n| w.check.locks.others_have(n, &dead));
            thaw_ms = thaw_ms.or_else(|| thawed().then(|| w.now - begin));
            w.last_record(DECIDE_RECOVERED, &dead).is_some()
        })?;
        let counts = self.counted().since(&before);
        let late = self.wait_for("nothing thaws", |w| held.iter().any(|n| w.check.locks.others_have(n, &dead)) || held.is_empty())?;
        let unrelated_ms = self.longest_wait(&related);
        let since = |at: Option<u64>| at.map_or(0, |at| at - begin);
        let (evict_ms, fenced_ms) = (since(self.last_record(DECIDE_EVICT, &dead)), since(self.last_record(DECIDE_FENCED, &dead)));
        self.run_until(self.now + SETTLE_MS)?;
        let survivors = self.hosts.len() - victims.len();
        let rejoin_ms = self.come_back(&victims)?;
        let thaw_ms = thaw_ms.unwrap_or(recovered_ms + late);
        Ok(Takeover { case, survivors, evict_ms, fenced_ms, recovered_ms, thaw_ms, unrelated_ms, counts, rejoin_ms })
    }

    fn come_back(&mut self, hosts: &[usize]) -> Result<u64, String> {
        self.start_all(hosts);
        self.run_until(self.now + 100)?;
        let took = 100 + self.wait_for("the dead do not come back", Self::healthy)?;
        self.run_until(self.now + SETTLE_MS)?;
        Ok(took)
    }

    /// What the dead held exclusively, and everything that they held, wanted or mastered.
    fn stakes(&self, dead: &[Who]) -> (Vec<Name>, BTreeSet<Name>) {
        let all: Vec<(Name, Mode)> = dead.iter().flat_map(|who| self.check.locks.of(*who)).collect();
        let held = all.iter().filter(|(_, m)| *m == Mode::Ex).map(|(n, _)| *n).collect();
        let members: Vec<_> = self.hosts.iter().filter_map(crate::host::Host::place).collect();
        let members: Vec<_> = members.into_iter().map(|(slot, incarnation)| Member { slot, incarnation }).collect();
        let gone = |m: &Member| dead.contains(&(m.slot, m.incarnation));
        let mut related: BTreeSet<Name> =
            meter::all_names(self.hosts.len()).filter(|n| master_of(n, &members).as_ref().is_some_and(gone)).collect();
        related.extend(all.iter().map(|(n, _)| *n));
        for dump in self.hosts.iter().filter_map(|h| h.process.as_ref()?.router.dlm()).flat_map(luna_dlm::Core::dump) {
            let theirs = |(slot, _): &(u16, Mode)| dead.iter().any(|d| d.0 == *slot);
            if dump.holders.iter().chain(&dump.waiters).any(theirs) {
                related.insert(dump.name);
            }
        }
        for p in self.hosts.iter().filter_map(|h| h.process.as_ref()).filter(|p| p.place.is_some_and(|at| dead.contains(&at))) {
            related.extend(p.router.dlm().into_iter().flat_map(luna_dlm::Core::dump).map(|d| d.name));
        }
        (held, related)
    }

    /// The longest wait, ended or not, for something that is not `related`.
    fn longest_wait(&mut self, related: &BTreeSet<Name>) -> u64 {
        let now = self.now;
        let ended = self.check.progress.kept.take().unwrap_or_default();
        let going_on = self.check.progress.waiting().map(|(name, since)| (name, since, now));
        let all = ended.into_iter().chain(going_on).filter(|(name, ..)| !related.contains(name));
        all.map(|(_, since, until)| until - since).max().unwrap_or(0)
    }

    /// When the last of the dead got this record; `None` until all have it.
    fn last_record(&self, kind: u16, dead: &[Who]) -> Option<u64> {
        let records = self.scale.as_ref().map_or(&[][..], |s| &s.records);
        let at = |who: &Who| records.iter().find(|(_, k, w)| *k == kind && w == who).map(|(at, ..)| *at);
        dead.iter().map(at).collect::<Option<Vec<u64>>>()?.into_iter().max()
    }

    /// A host dies and stays dead; its machine resets its connections, or is dead too.
    fn end_for_good(&mut self, i: usize, silent: bool) {
        if !silent {
            return self.kill(i);
        }
        let h = &mut self.hosts[i];
        h.process = None;
        h.life += 1;
        h.backlog.clear();
        self.say(format!("the machine of host {i} dies"));
        self.check.progress.gone(i);
    }
}

/// Every stage that was asked for, for every number of hosts.
///
/// # Errors
/// See [`measure`].
pub fn measure_all(seed: u64, hosts: &[usize], cases: &[Case]) -> Result<Vec<Measured>, Violation> {
    hosts.iter().map(|n| measure(seed, *n, cases)).collect()
}
