//! The world of crashes: short workloads on one or two hosts, and every state that a loss of power or the death of a host may leave.
//!
//! A workload runs once, by the production code, over a LUN that writes down what happens to it. From that tape all states are
//! built that the disk's promises allow; each is recovered by the production replay, mounted, looked at, unmounted and checked,
//! and a small model says whether what is seen may be. With two hosts, each of them also dies in each of its changes of the LUN while
//! the other lives on, takes over and shows what it sees; and power may be lost after that.
//!
//! | part | here |
//! |---|---|
//! | bytes, shared by many states | `image`; what happened to them, and how a host dies `tape` |
//! | production code of one or two hosts on one stack | `hosts`; what is to be seen `look` |
//! | workloads | `work`; volumes they begin with `base`; running one `run` |
//! | what may be left of the LUN | `states`; of the files `model`; both together `judge` |
//!
//! Unlike the other worlds nothing is left to chance where it can be tried out; and unlike them nothing overlaps: operations come one after
//! the other, and a host has one request under way. Not here: membership, the network, time, the kernel's page cache.

mod base;
mod hosts;
mod image;
mod judge;
mod look;
mod model;
mod run;
mod states;
mod tape;
mod work;

pub use judge::Counts;
pub use states::{Cut, Effort};

use crate::Broken;
use base::Base;
use fastrand::Rng;
use judge::Judge;
use run::{Ended, is_valid, record};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tape::Fate;
use work::{OPS, SYNCS, Step, Sync};

/// What is explored.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Operations of a workload.
    pub length: usize,
    /// Hosts: 1 or 2.
    pub hosts: usize,
    /// Next to nothing is free.
    pub full: bool,
    /// Of all workloads, so many, evenly spread by a seed; 0 is all.
    pub sample: u64,
    /// For what is left to chance.
    pub seed: u64,
    /// How much is tried for each.
    pub effort: Effort,
    /// A rule taken away.
    pub broken: Option<Broken>,
}

impl Setup {
    /// All workloads of so many operations on so many hosts.
    pub fn all(length: usize, hosts: usize) -> Self {
        Self { length, hosts, full: false, sample: 0, seed: 1, effort: Effort::FULL, broken: None }
    }
}

/// A state that may not be.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The workload's number.
    pub workload: u64,
    /// The workload.
    pub steps: String,
    /// How the state came about.
    pub state: String,
    /// What is wrong with it.
    pub what: String,
    /// What had happened to the LUN, one line an event.
    pub tape: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "workload {}: {}; {}: {}", self.workload, self.steps, self.state, self.what)
    }
}

impl std::error::Error for Violation {}

/// Where an exploration is, for whoever reads a violation.
#[derive(Default)]
struct Place {
    state: String,
    tape: String,
}

/// The volume that a setup begins with, and its workloads.
pub struct World {
    base: Base,
    setup: Setup,
}

impl World {
    /// Makes the volume.
    ///
    /// # Errors
    /// When the production code cannot even do that.
    pub fn new(setup: Setup) -> Result<Self, String> {
        Ok(Self { base: Base::new(setup.full)?, setup })
    }

    /// How many numbers of workloads there are; not all of them are possible.
    pub fn numbers(&self) -> u64 {
        (0..self.setup.length).map(|_| (OPS.len() * SYNCS.len()) as u64 * self.placements()).product()
    }

    /// The numbers that the setup asks for.
    pub fn chosen(&self) -> Vec<u64> {
        let all = self.numbers();
        if self.setup.sample == 0 || self.setup.sample >= all {
            return (0..all).collect();
        }
        let mut rng = Rng::with_seed(self.setup.seed);
        let part = all / self.setup.sample;
        (0..self.setup.sample).map(|n| n * part + rng.u64(0..part)).collect()
    }

    /// With two hosts a sync is on the host of the operation or on the other one.
    fn placements(&self) -> u64 {
        if self.setup.hosts == 1 { 1 } else { 2 }
    }

    /// Workload `n`; `None` when it is none: an operation that would be refused, or the same as another one.
    fn steps(&self, mut n: u64) -> Option<Vec<Step>> {
        let mut take = |of: usize| {
            let got = (n % of as u64) as usize;
            n /= of as u64;
            got
        };
        let hosts = self.setup.hosts;
        let mut steps = Vec::new();
        // the last step's digits go first, so that neighbours begin alike
        for i in (0..self.setup.length).rev() {
            let (op, sync) = (OPS[take(OPS.len())], SYNCS[take(SYNCS.len())]);
            let elsewhere = take(self.placements() as usize);
            if elsewhere == 1 && !matches!(sync, Sync::File | Sync::Dir) {
                return None;
            }
            let host = i % hosts;
            steps.push(Step { host, op, sync, sync_host: (host + elsewhere) % hosts });
        }
        steps.reverse();
        is_valid(&self.base.model, &steps).then_some(steps)
    }

    /// The number of a workload: operations and syncs as they are printed, and whether the sync is on the other host.
    pub fn number(&self, steps: &[(&str, &str, bool)]) -> Option<u64> {
        steps.iter().try_fold(0, |n, (op, sync, elsewhere)| {
            let op = OPS.iter().position(|o| format!("{o:?}") == *op)? as u64;
            let sync = SYNCS.iter().position(|s| format!("{s:?}") == *sync)? as u64;
            let n = n * self.placements() + u64::from(*elsewhere);
            Some((n * SYNCS.len() as u64 + sync) * OPS.len() as u64 + op)
        })
    }

    /// Somebody who explores workloads of this world, one after the other.
    pub fn explorer(&self) -> Explorer<'_> {
        Explorer { world: self, judge: Judge::new(&self.base, self.setup.broken) }
    }
}

/// Explores workloads one after the other, and remembers what equal bytes came to.
pub struct Explorer<'a> {
    world: &'a World,
    judge: Judge<'a>,
}

impl Explorer<'_> {
    /// Explores workload `n`. `None`: there is no such workload.
    ///
    /// # Errors
    /// The first state that may not be.
    pub fn explore(&mut self, n: u64) -> Option<Result<Counts, Violation>> {
        let steps = self.world.steps(n)?;
        let steps_text = format!("{steps:?}");
        let mut place = Place { state: "recording".into(), ..Place::default() };
        let seed = seed_of(self.world.setup.seed, &steps_text);
        let got = catch_unwind(AssertUnwindSafe(|| self.workload(&steps, seed, &mut place))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("the production code stopped: {}", text.unwrap_or_default()))
        });
        let counts = self.judge.next_workload();
        if got.is_err() {
            self.judge.forget();
        }
        Some(got.map(|()| counts).map_err(|what| Violation { workload: n, steps: steps_text, state: place.state, what, tape: place.tape }))
    }

    fn workload(&mut self, steps: &[Step], seed: u64, place: &mut Place) -> Result<(), String> {
        let (s, mut rng) = (self.world.setup, Rng::with_seed(seed));
        self.judge.counts.workloads = 1;
        let run = match record(&self.world.base, steps, s.hosts, None, s.broken) {
            Ok(run) => run,
            Err(Ended::NoSpace) => {
                self.judge.counts.no_space += 1;
                return Ok(());
            }
            Err(Ended::Wrong(what)) => return Err(what),
        };
        self.judge.counts.events += run.tape.len() as u64;
        self.power_cuts(&run, 0, s.effort, &mut rng, place)?;
        let changes: Vec<Vec<usize>> = (0..s.hosts).map(|h| run.hosts.host(h).door.changes.lock().clone()).collect();
        drop(run);
        if s.hosts > 1 {
            for (h, changes) in changes.iter().enumerate() {
                for (at, sectors) in changes.iter().enumerate() {
                    for fate in fates(*sectors, s.effort, &mut rng) {
                        self.death(steps, (h, at, fate), &mut rng, place)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn power_cuts(&mut self, run: &run::Run, from: usize, effort: Effort, rng: &mut Rng, place: &mut Place) -> Result<(), String> {
        let judge = &mut self.judge;
        judge.next_story();
        states::each(&run.start, &run.tape, from, effort, rng, &mut |image, at, cut| {
            let mark = run.marks.partition_point(|(m, _)| *m <= at);
            let got = judge.state(image, cut, &run.story, run.known(at), mark);
            if got.is_err() {
                place.state = format!("power lost after {at} of {} events ({cut:?})", run.tape.len());
                place.tape = tape::describe(&run.tape, &hosts::VOLUME);
            }
            got
        })
    }

    fn death(&mut self, steps: &[Step], death: run::Death, rng: &mut Rng, place: &mut Place) -> Result<(), String> {
        place.state = format!("host {} dies in its change {} ({:?})", death.0, death.1, death.2);
        let s = &self.world.setup;
        let run = match record(&self.world.base, steps, s.hosts, Some(death), s.broken) {
            Ok(run) => run,
            Err(Ended::NoSpace) => return Ok(()),
            Err(Ended::Wrong(what)) => return Err(what),
        };
        let Some(died) = run.died else { return Ok(()) };
        self.judge.counts.deaths += 1;
        let mut known = run.known(usize::MAX).clone();
        let survivor = 1 - death.0;
        known.must.extend(run.story.done.iter().enumerate().filter(|(_, d)| d.host == survivor).map(|(i, _)| i));
        self.judge.survivor(&run.hosts, survivor, &run.story, &known)?;
        if rng.u64(0..s.effort.deaths) == 0 {
            let before = place.state.clone();
            self.power_cuts(&run, died + 1, Effort::ASIDE, rng, place)
                .inspect_err(|_| place.state = format!("{before}, then {}", place.state))?;
        }
        Ok(())
    }
}

/// The same for the same workload, whatever its number.
fn seed_of(seed: u64, steps: &str) -> u64 {
    steps.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// What may become of a change in which its host dies.
fn fates(sectors: usize, effort: Effort, rng: &mut Rng) -> Vec<Fate> {
    let mut all = vec![Fate::Lost, Fate::Landed];
    for _ in 0..effort.cuts.div_ceil(2).min(sectors.saturating_sub(1)) {
        all.push(Fate::Head(rng.usize(1..sectors)));
        all.push(Fate::Tail(rng.usize(1..sectors)));
    }
    all.push(Fate::Any(rng.u64(..)));
    all
}
