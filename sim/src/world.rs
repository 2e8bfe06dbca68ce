//! Time and events: one queue, ordered by time and then by order of insertion; whoever has the next event runs.
//!
//! A stopped host (SIGSTOP) keeps its events in a backlog, in order, and takes them when it goes on, as if nothing had
//! happened. Events carry the life of the process they are for: those of a dead one fall on the floor. Not here: what events do.

use crate::check::{Checks, Who};
use crate::fsw::Files;
use crate::host::Host;
use crate::lun::Lun;
use crate::net::{Mail, Net, Packet};
use crate::scale::meter::Meter;
use crate::{Report, Setup};
use luna_cluster::{Area, Timing};
use luna_dlm::{Mode, Name};
use luna_node::router::{DiskJob, In};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub(crate) type Fallible = Result<(), String>;

/// What a reader saw: the block, and how many writes of its own host there had been.
pub(crate) type Saw = (u64, u64);

/// Something for a host.
pub(crate) enum Event {
    Tick,
    Input(Box<In>),
    Serve,
    Frame { conn: u64, packet: Packet },
    Closed { conn: u64 },
    Dial { slot: u16, incarnation: u64, target: Option<usize> },
    Mail(Mail),
    MailRound,
    Want,
    FsResume { id: u64 },
    FsGuest,
    FsRound,
    HoldWork { name: Name, id: u64, mode: Mode },
    HoldWritten { name: Name, id: u64, base: u64 },
    HoldEnd { name: Name, id: u64, saw: Option<Saw> },
    CameDown { name: Name, from: Mode, to: Mode },
    Exit,
}

/// Under which name a request of the membership core went to the target, and how often that had lost power by then.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sent {
    pub(crate) who: Option<Who>,
    pub(crate) power: u64,
}

/// Something that happens whoever lives.
pub(crate) enum Happening {
    For { host: usize, life: u64, event: Event },
    Wake { host: usize },
    Lun { host: usize, life: u64, job: DiskJob, sent: Sent },
    FsLand { flight: u64 },
    Land { host: usize, life: u64, who: (u16, u64), name: Name, id: u64, base: u64 },
    Fault,
    Heal { pair: (usize, usize) },
    CalmLun,
    Start { host: usize },
}

/// Everything.
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) now: u64,
    pub(crate) rng: fastrand::Rng,
    pub(crate) hosts: Vec<Host>,
    pub(crate) net: Net,
    pub(crate) lun: Lun,
    pub(crate) check: Checks,
    pub(crate) timing: Timing,
    pub(crate) area: Area,
    pub(crate) report: Report,
    pub(crate) faulty: bool,
    pub(crate) wanting: bool,
    pub(crate) next_id: u64,
    /// The world of files, if this run has one.
    pub(crate) fs: Option<Files>,
    /// Nobody comes back any more.
    pub(crate) ending: bool,
    /// Except this one.
    pub(crate) last: Option<usize>,
    /// Only where it is measured how things grow with the number of hosts.
    pub(crate) scale: Option<Box<Meter>>,
    queue: BTreeMap<(u64, u64), Happening>,
    order: u64,
    log: VecDeque<String>,
}

impl World {
    pub(crate) fn new(setup: &Setup) -> Self {
        let mut rng = fastrand::Rng::with_seed(setup.seed);
        let n = if setup.hosts == 0 { rng.usize(2..=8) } else { setup.hosts.clamp(2, 8) };
        let slots = if rng.u8(0..3) == 0 { n as u16 } else { 8 };
        let quick = Timing { raft_tick_ms: 20, ..Timing::shrunk(10) };
        let timing = if setup.calm { Timing::default() } else { quick };
        Self::build(setup, rng, n, slots, timing)
    }

    /// A world before its first event.
    pub(crate) fn build(setup: &Setup, mut rng: fastrand::Rng, n: usize, slots: u16, timing: Timing) -> Self {
        let s = u64::from(slots);
        let plain = Area { volume: [3; 16], slots, beat_start: 8, px_start: 8 + s, log_start: 8 + 2 * s, log_blocks: 64 };
        let (fs, area) = if setup.files {
            let (f, area) = Files::new(slots, rng.u8(0..3) > 0, rng.u8(0..4) == 0);
            (Some(f), area)
        } else {
            (None, plain)
        };
        let medium = fs.as_ref().map(|f| Arc::clone(&f.medium)).unwrap_or_default();
        Self {
            setup: *setup,
            now: 1000,
            hosts: (0..n).map(Host::new).collect(),
            net: Net::default(),
            lun: Lun { medium, calm: true },
            check: Checks::default(),
            timing,
            area,
            report: Report { trace: 0xcbf2_9ce4_8422_2325, ..Report::default() },
            faulty: false,
            wanting: true,
            next_id: 0,
            fs,
            ending: false,
            last: None,
            scale: None,
            queue: BTreeMap::new(),
            order: 0,
            log: VecDeque::new(),
            rng,
        }
    }

    /// The whole story.
    pub(crate) fn live(&mut self) -> Fallible {
        for host in 0..self.hosts.len() {
            let late = self.rng.u64(0..3000);
            self.at(late, Happening::Start { host });
        }
        self.faulty = true;
        self.at(2000, Happening::Fault);
        self.run_until(self.now + self.setup.faults_ms)?;
        self.heal_all();
        let bound = 4 * self.timing.wait_ms() + 20_000;
        self.must(bound, "the cluster does not heal", Self::healthy)?;
        if self.fs.is_some() {
            return self.fs_end(bound);
        }
        self.wanting = false;
        self.must(bound, "waits do not end", |w| w.check.progress.all_ended())?;
        // somebody may have been shut out for what came before the healing; who has just joined has no lock cache yet, and what
        // it is granted nobody would give back (seed 102)
        self.must(bound, "the cluster does not stay well", Self::healthy)?;
        self.sweep()?;
        self.must(bound, "waits for everything in turn do not end", |w| w.check.progress.all_ended())
    }

    /// Runs until `done`, for at most `limit`.
    pub(crate) fn must(&mut self, limit: u64, what: &str, done: impl Fn(&Self) -> bool) -> Fallible {
        let end = self.now + limit;
        while !done(self) {
            if self.now >= end {
                for i in 0..self.hosts.len() {
                    let core = self.hosts[i].process.as_ref().map(|p| format!("{:?}", p.router.cluster()));
                    self.say(format!("host {i}: {}", core.unwrap_or_else(|| "down".to_owned())));
                    if self.fs.is_some() {
                        self.say(self.fs_describe(i));
                        continue;
                    }
                    self.say(self.describe_links(i));
                }
                return Err(format!(
                    "progress: {what}: {}; {:?}; {}",
                    self.ailing(),
                    self.check.members.newest(),
                    self.check.progress.describe()
                ));
            }
            self.run_until(self.now + 20)?;
        }
        Ok(())
    }

    /// A time of the world: as drawn for the shrunk timing, or at the product's pace.
    pub(crate) fn paced(&self, ms: u64) -> u64 {
        if self.setup.calm { 10 * ms } else { ms }
    }

    pub(crate) fn at(&mut self, delay: u64, h: Happening) {
        self.order += 1;
        self.queue.insert((self.now + delay, self.order), h);
    }

    /// For the process that runs on `host` now.
    pub(crate) fn later(&mut self, delay: u64, host: usize, event: Event) {
        let life = self.hosts[host].life;
        self.at(delay, Happening::For { host, life, event });
    }

    pub(crate) fn run_until(&mut self, until: u64) -> Fallible {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > until {
                break;
            }
            self.now = entry.key().0;
            if let Some(f) = &self.fs {
                f.clock.store(self.now, std::sync::atomic::Ordering::Relaxed);
            }
            let h = entry.remove();
            self.happen(h)?;
        }
        self.now = until;
        if let Some(f) = &self.fs {
            f.clock.store(until, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(())
    }

    fn happen(&mut self, h: Happening) -> Fallible {
        match h {
            Happening::For { host, life, event } => {
                let h = &mut self.hosts[host];
                if h.life != life {
                    return Ok(());
                }
                if h.stopped_until > self.now || !h.backlog.is_empty() {
                    h.backlog.push_back(event);
                    return Ok(());
                }
                self.event(host, event)
            }
            Happening::Wake { host } => {
                while self.hosts[host].stopped_until <= self.now
                    && let Some(e) = self.hosts[host].backlog.pop_front()
                {
                    self.event(host, e)?;
                }
                Ok(())
            }
            Happening::Lun { host, life, job, sent } => self.lun_job(host, life, job, sent),
            Happening::FsLand { flight } => self.fs_land(flight),
            Happening::Land { host, life, who, name, id, base } => {
                self.check.data.land(who, name, base, &self.check.members)?;
                self.at(1, Happening::For { host, life, event: Event::HoldWritten { name, id, base: base + 1 } });
                Ok(())
            }
            Happening::Fault => self.fault(),
            Happening::Heal { pair } => {
                self.net.heal(Some(pair));
                Ok(())
            }
            Happening::CalmLun => {
                self.lun.calm = true;
                Ok(())
            }
            Happening::Start { host } => self.start(host),
        }
    }

    fn event(&mut self, host: usize, e: Event) -> Fallible {
        match e {
            Event::Tick => self.tick(host),
            Event::Input(i) => self.input(host, *i),
            Event::Serve => self.serve(host),
            Event::Frame { conn, packet } => self.frame(host, conn, packet),
            Event::Closed { conn } => self.closed(host, conn),
            Event::Dial { slot, incarnation, target } => self.dialed(host, slot, incarnation, target),
            Event::Mail(m) => self.mail(host, m),
            Event::MailRound => {
                self.mail_round(host);
                Ok(())
            }
            Event::Want => self.random_want(host),
            e @ (Event::FsResume { .. } | Event::FsGuest | Event::FsRound) => self.fs_event(host, e),
            Event::HoldWork { name, id, mode } => self.work(host, name, id, mode),
            Event::HoldWritten { name, id, base } => self.written(host, name, id, base),
            Event::HoldEnd { name, id, saw } => self.hold_end(host, name, id, saw),
            Event::CameDown { name, from, to } => self.came_down(host, name, from, to),
            Event::Exit => {
                self.kill(host);
                Ok(())
            }
        }
    }

    /// Notes a fact in the trace.
    pub(crate) fn note(&mut self, host: usize, tag: u8, bytes: &[u8]) {
        let mut hash = self.report.trace;
        let head = [self.now.to_le_bytes(), (host as u64).to_le_bytes(), u64::from(tag).to_le_bytes()];
        for b in head.iter().flatten().chain(bytes) {
            hash = (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
        }
        self.report.trace = hash;
    }

    /// A line for whoever has to read a violation.
    pub(crate) fn say(&mut self, line: String) {
        self.note(usize::MAX, 255, line.as_bytes());
        if self.setup.talk {
            eprintln!("{:>7} {line}", self.now);
        }
        if self.log.len() >= 80 {
            self.log.pop_front();
        }
        self.log.push_back(format!("{:>7} {line}", self.now));
    }

    pub(crate) fn tail(&self) -> String {
        self.log.iter().cloned().collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn report(&self) -> Report {
        Report {
            simulated_ms: self.now - 1000,
            grants: self.check.locks.grants,
            evictions: self.check.members.evictions,
            writes: self.check.data.writes,
            stale_reads: self.check.data.stale_reads,
            longest_wait_ms: self.check.progress.longest_ms,
            files: self.fs.as_ref().map(|f| f.stats).unwrap_or_default(),
            ..self.report
        }
    }
}
