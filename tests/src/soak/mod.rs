//! The soak: hours of what virtual machines do, on three hosts, with faults from a seed, everything verified.
//!
//! A conductor (this process) has the LUN's server, three mounts, each over a cable of its own, and some workers (`worker`): disks that are
//! written at random, flushed, copied and moved (`disk`), and directories of small files (`churn`). It draws faults (`faults`), moves workers
//! from hosts that failed to hosts that work, now and then stops everything for `fsck -n`, and looks at every daemon's memory, threads and
//! descriptors (`watch`).
//!
//! Invariant: an error that a worker meets is a failure of the soak, unless its host was just killed or shut out; and the conductor has no file
//! of a mount open. Not here: the order of faults (`faults.rs`), timing that a loaded machine could break: waits have limits of a minute and more.

mod churn;
mod disk;
mod faults;
mod pilot;
mod watch;
mod worker;

pub use worker::work;

use crate::{Cluster, Result, Setup, proxy::Proxy};
use anyhow::{Context, bail, ensure};
use faults::Fault;
use pilot::{Pilot, Where};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};
use watch::Watch;

const HOSTS: usize = 3;
const LUN_BYTES: u64 = 8 << 30;

/// What a soak is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long; `None` is the short form: each step once, in seconds.
    pub time: Option<Duration>,
    /// Where everything comes from.
    pub seed: u64,
    /// The program to start workers with: this one.
    pub program: PathBuf,
    /// Time between two checks with everything stopped.
    pub check_every: Duration,
    /// Longest time between two faults.
    pub calm: Duration,
}

/// See the module's text.
pub(crate) struct Conductor {
    cluster: Cluster,
    cables: Vec<Proxy>,
    pilots: Vec<Pilot>,
    /// Hosts that workers can be sent to.
    usable: Vec<bool>,
    /// Hosts whose programs may see errors.
    may_fail: Vec<bool>,
    rng: fastrand::Rng,
    watch: Watch,
    faults: BTreeMap<String, u64>,
    checks: u64,
    short: bool,
    begun: Instant,
    sampled: Instant,
    told: Instant,
}

/// Runs a soak; the report, and what broke it.
pub fn soak(options: &Options) -> Result<(Value, Option<String>)> {
    let mut conductor = Conductor::new(options)?;
    let result = conductor.run(options);
    let why = result.err().or_else(|| conductor.watch.verdict().map(|w| anyhow::anyhow!(w))).map(|e| format!("{e:#}"));
    let report = conductor.report(options, why.as_deref());
    let Conductor { cluster, pilots, .. } = conductor;
    // a worker in a mount that is stuck ends with its daemon only
    if why.is_none() {
        drop(pilots);
        cluster.discard();
    } else {
        drop(cluster);
        drop(pilots);
    }
    Ok((report, why))
}

impl Conductor {
    fn new(options: &Options) -> Result<Self> {
        let life = options.time.unwrap_or(Duration::from_secs(90)) * 2 + Duration::from_secs(600);
        let setup = Setup { bytes: LUN_BYTES, hosts: 0, life, ..Setup::default() };
        let mut cluster = Cluster::with("soak", setup)?;
        let mut cables = Vec::new();
        for n in 0..HOSTS {
            cluster.add_host()?;
            cables.push(cluster.own_cable(n)?);
            cluster.mount(n)?;
        }
        let mut rng = fastrand::Rng::with_seed(options.seed);
        let short = options.time.is_none();
        let jobs: &[&str] = if short { &["disk", "disk", "churn"] } else { &["disk", "disk", "disk", "churn", "churn"] };
        let start = |(id, kind): (usize, &&str)| Pilot::start(&options.program, kind, id as u64 + 1, rng.u64(..));
        let pilots = jobs.iter().enumerate().map(start).collect::<Result<Vec<_>>>()?;
        let now = Instant::now();
        Ok(Self {
            cluster,
            cables,
            pilots,
            usable: vec![true; HOSTS],
            may_fail: vec![false; HOSTS],
            rng,
            watch: Watch::new(),
            faults: BTreeMap::new(),
            checks: 0,
            short,
            begun: now,
            sampled: now,
            told: now,
        })
    }

    fn run(&mut self, options: &Options) -> Result {
        for worker in 0..self.pilots.len() {
            self.send(worker, worker % HOSTS)?;
        }
        self.goes_on("the start")?;
        match options.time {
            None => [Fault::Move, Fault::CutShort, Fault::Target, Fault::Kill].into_iter().try_for_each(|f| self.suffer(f))?,
            Some(time) => self.random(time, options)?,
        }
        // everything once more, from a host that is not the one it was written on
        for worker in 0..self.pilots.len() {
            let host = self.rng.usize(..HOSTS);
            self.send(worker, host)?;
        }
        self.goes_on("the last move")?;
        self.park()?;
        self.cluster.fsck()?;
        self.checks += 1;
        Ok(())
    }

    fn random(&mut self, time: Duration, options: &Options) -> Result {
        let mut checked = Instant::now();
        while self.begun.elapsed() < time {
            let calm = Duration::from_millis(self.rng.u64(..1000 + options.calm.as_millis() as u64));
            self.let_pass(calm)?;
            if checked.elapsed() > options.check_every {
                self.offline_check()?;
                checked = Instant::now();
            }
            let fault = Fault::draw(&mut self.rng);
            self.suffer(fault)?;
        }
        Ok(())
    }

    fn say(&self, text: &str) {
        println!("{:>7.1} s  {text}", self.begun.elapsed().as_secs_f64());
    }

    fn send(&mut self, worker: usize, host: usize) -> Result {
        let dir = self.cluster.hosts[host].dir.clone();
        self.pilots[worker].go(host, &dir)
    }

    /// How many members host `n` sees.
    fn members(&self, n: usize) -> Option<usize> {
        self.cluster.ask_status(n).ok()?["members"].as_array().map(Vec::len)
    }

    /// Hears everybody, moves those whose host failed, looks at the daemons.
    fn turn(&mut self) -> Result {
        for worker in 0..self.pilots.len() {
            self.pilots[worker].hear()?;
            let Where::Lost(host, why) = self.pilots[worker].place.clone() else { continue };
            let from = self.pilots[worker].from;
            let excused = self.may_fail[host] || from.is_some_and(|n| self.may_fail[n]);
            ensure!(excused, "{} met an error on {}, which was well: {why}", self.pilots[worker].name, self.cluster.hosts[host].name);
            let good: Vec<usize> = (0..HOSTS).filter(|n| self.usable[*n]).collect();
            let next = good[self.rng.usize(..good.len())];
            self.pilots[worker].from = None;
            self.send(worker, next)?;
        }
        if self.sampled.elapsed() > Duration::from_secs(if self.short { 1 } else { 5 }) {
            self.sampled = Instant::now();
            self.sample();
        }
        if self.told.elapsed() > Duration::from_secs(60) {
            self.told = Instant::now();
            let (ops, gib) = (self.sum(|p| p.tally.ops), self.sum(|p| p.tally.verified) >> 30);
            let faults: u64 = self.faults.values().sum();
            self.say(&format!("{ops} operations, {gib} GiB verified, {faults} faults, largest daemon {} MiB", self.watch.peak_mib()));
        }
        Ok(())
    }

    fn sum(&self, what: impl Fn(&Pilot) -> u64) -> u64 {
        self.pilots.iter().map(what).sum()
    }

    fn sample(&mut self) {
        for n in (0..HOSTS).filter(|n| self.usable[*n]) {
            if let Ok(pid) = self.cluster.noted_pid(n) {
                self.watch.sample(&self.cluster.hosts[n].name, pid);
            }
        }
        if let Some(server) = &self.cluster.server {
            self.watch.sample("target", server.pid());
        }
    }

    fn let_pass(&mut self, time: Duration) -> Result {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.turn()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn wait_for(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) -> Result {
        let begun = Instant::now();
        loop {
            self.turn()?;
            if done(self) {
                return Ok(());
            }
            if begun.elapsed() > limit {
                self.keep_status();
                let places = self.pilots.iter().map(Pilot::told).collect::<Vec<_>>().join("; ");
                bail!("{what}: not within {} s; {places}", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the hosts say of themselves, kept beside their logs: something waits for ever.
    fn keep_status(&self) {
        for n in 0..HOSTS {
            let status = self.cluster.ask_status(n).map_or_else(|e| format!("{e:#}"), |s| format!("{s:#}"));
            let _ = std::fs::write(self.cluster.dir.join(format!("status-{n}.json")), status);
        }
    }

    fn report(&self, options: &Options, why: Option<&str>) -> Value {
        json!({
            "seed": options.seed,
            "hours": (self.begun.elapsed().as_secs_f64() / 36.0).round() / 100.0,
            "verdict": why.unwrap_or("held"),
            "operations": self.sum(|p| p.tally.ops),
            "verified_bytes": self.sum(|p| p.tally.verified),
            "snapshots": self.sum(|p| p.tally.snapshots),
            "arrivals": self.sum(|p| p.arrivals),
            "faults": self.faults,
            "fsck_runs": self.checks,
            "daemons": self.watch.report(),
        })
    }
}

/// The program's own path.
pub fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("where this program is")
}
