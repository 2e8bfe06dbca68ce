//! What can go wrong in a soak, how often, and how each is done and undone.
//!
//! | fault | may a program see an error? |
//! |---|---|
//! | a worker moves to another host | no |
//! | `kill -9` of a host, mounted again later | on that host |
//! | SIGSTOP beyond the eviction, then SIGCONT | on that host |
//! | SIGSTOP for a moment | no |
//! | a host's cable to the target pulled beyond the eviction | on that host |
//! | the cable pulled for a moment | no |
//! | the target killed and started again, within or beyond the lease | no |
//!
//! Invariant: when a fault is over, everything is as before it: all hosts are members, every worker is at work. Not here: what workers check.

use super::{Conductor, pilot::Where};
use crate::{Result, tool};
use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

/// The faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Move,
    Kill,
    StopLong,
    StopShort,
    CutLong,
    CutShort,
    Target,
    TargetLong,
}

/// How often each beside the others.
const ODDS: &[(Fault, u32)] = &[
    (Fault::Move, 12),
    (Fault::Kill, 4),
    (Fault::StopLong, 2),
    (Fault::StopShort, 3),
    (Fault::CutLong, 2),
    (Fault::CutShort, 3),
    (Fault::Target, 3),
    (Fault::TargetLong, 1),
];

/// How long an eviction may take to be seen.
const EVICTION: Duration = Duration::from_secs(60);
/// How long work may take to go on.
const GOES_ON: Duration = Duration::from_secs(90);

impl Fault {
    pub(super) fn draw(rng: &mut fastrand::Rng) -> Self {
        let mut n = rng.u32(..ODDS.iter().map(|o| o.1).sum::<u32>());
        for (fault, odds) in ODDS {
            if n < *odds {
                return *fault;
            }
            n -= odds;
        }
        Self::Move
    }
}

fn signal(pid: i32, signal: Signal) -> Result {
    Ok(kill_process(Pid::from_raw(pid).context("a process")?, signal)?)
}

fn seconds(rng: &mut fastrand::Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.u64(from * 1000..to * 1000))
}

impl Conductor {
    /// Does `fault` to a host drawn by the seed, undoes it, and sees to it that work goes on.
    pub(super) fn suffer(&mut self, fault: Fault) -> Result {
        // host 0 is spared what ends a host, so that one life is long enough to show growth
        let ends = matches!(fault, Fault::Kill | Fault::StopLong | Fault::CutLong);
        let host = self.rng.usize(usize::from(ends)..self.cluster.hosts.len());
        self.say(&format!("{fault:?} {}", self.cluster.hosts[host].name));
        *self.faults.entry(format!("{fault:?}")).or_insert(0) += 1;
        match fault {
            Fault::Move => self.migrate()?,
            Fault::Kill => self.kill(host)?,
            Fault::StopLong => self.shut_out(host, Cause::Stopped)?,
            Fault::CutLong => self.shut_out(host, Cause::Cut)?,
            Fault::StopShort => {
                let pid = self.cluster.noted_pid(host)?;
                signal(pid, Signal::STOP)?;
                let waited = seconds(&mut self.rng, 0, 4).max(Duration::from_millis(50));
                let passed = self.let_pass(waited);
                signal(pid, Signal::CONT)?;
                passed?;
            }
            Fault::CutShort => {
                self.cables[host].cut();
                let waited = seconds(&mut self.rng, 0, 4);
                let passed = self.let_pass(waited);
                self.cables[host].heal();
                passed?;
            }
            Fault::Target => self.target(0, 4)?,
            Fault::TargetLong => self.target(9, 20)?,
        }
        self.goes_on(&format!("{fault:?}"))
    }

    /// Every worker is at work and gets on; every host is a member.
    pub(super) fn goes_on(&mut self, after: &str) -> Result {
        let before: Vec<u64> = self.pilots.iter().map(|p| p.tally.ops).collect();
        self.wait_for(&format!("work goes on after {after}"), GOES_ON, |s| {
            s.pilots.iter().zip(&before).all(|(p, before)| matches!(p.place, Where::At(_)) && p.tally.ops > *before)
        })?;
        let all = self.cluster.hosts.len();
        self.wait_for(&format!("all are members after {after}"), GOES_ON, |s| s.members(0) == Some(all))
    }

    fn migrate(&mut self) -> Result {
        let worker = self.rng.usize(..self.pilots.len());
        let host = self.rng.usize(..self.cluster.hosts.len());
        self.send(worker, host)
    }

    fn kill(&mut self, host: usize) -> Result {
        self.usable[host] = false;
        self.may_fail[host] = true;
        signal(self.cluster.noted_pid(host)?, Signal::KILL)?;
        tool("umount", &["-l", &self.cluster.hosts[host].dir.display().to_string()])?;
        self.emptied(host)?;
        let away = seconds(&mut self.rng, 0, if self.short { 1 } else { 20 });
        self.let_pass(away)?;
        self.mount(host)
    }

    /// Waits until no worker has anything open on `host`, which gives errors.
    fn emptied(&mut self, host: usize) -> Result {
        self.wait_for("its workers notice and move", EVICTION, |s| !s.pilots.iter().any(|p| p.touches(host)))
    }

    fn shut_out(&mut self, host: usize, cause: Cause) -> Result {
        let pid = self.cluster.noted_pid(host)?;
        self.usable[host] = false;
        self.may_fail[host] = true;
        match cause {
            Cause::Stopped => signal(pid, Signal::STOP)?,
            Cause::Cut => self.cables[host].cut(),
        }
        let left = self.cluster.hosts.len() - 1;
        let evicted = self.wait_for("it is evicted", EVICTION, |s| s.members(0) == Some(left));
        let more = seconds(&mut self.rng, 0, 5);
        let passed = evicted.and_then(|()| self.let_pass(more));
        match cause {
            Cause::Stopped => signal(pid, Signal::CONT)?,
            Cause::Cut => self.cables[host].heal(),
        }
        passed?;
        let knows = |s: &Self| s.cluster.ask_status(host).is_ok_and(|status| status["state"] == "withdrawn");
        self.wait_for("it knows that it is out", EVICTION, knows)?;
        self.emptied(host)?;
        self.cluster.umount(host)?;
        self.mount(host)
    }

    /// The target dies, and is there again after some time. Nobody may see an error.
    fn target(&mut self, from_s: u64, to_s: u64) -> Result {
        self.cluster.server = None;
        let away = seconds(&mut self.rng, from_s, to_s);
        let passed = self.let_pass(away);
        self.cluster.start_server()?;
        passed
    }

    /// Mounts `host` (again).
    fn mount(&mut self, host: usize) -> Result {
        self.cluster.mount(host)?;
        self.usable[host] = true;
        self.may_fail[host] = false;
        Ok(())
    }

    /// Everybody stops, all hosts leave, `fsck -n` finds nothing, all come back.
    pub(super) fn offline_check(&mut self) -> Result {
        self.park()?;
        self.cluster.fsck()?;
        self.checks += 1;
        self.say("fsck -n found nothing");
        (0..self.cluster.hosts.len()).try_for_each(|n| self.mount(n))?;
        for worker in 0..self.pilots.len() {
            let host = self.rng.usize(..self.cluster.hosts.len());
            self.send(worker, host)?;
        }
        self.goes_on("a check")
    }

    /// Everybody stops and all hosts leave.
    pub(super) fn park(&mut self) -> Result {
        for p in &mut self.pilots {
            p.pause()?;
        }
        self.wait_for("all stop", GOES_ON, |s| s.pilots.iter().all(|p| p.place == Where::Paused))?;
        // somebody who only looks at the directories of this machine is in the way for a moment
        let begun = Instant::now();
        while let Err(e) = self.cluster.umount_all() {
            ensure!(begun.elapsed() < EVICTION, "{e:#}");
            std::thread::sleep(Duration::from_millis(500));
        }
        ensure!((0..self.cluster.hosts.len()).all(|n| !self.cluster.is_mounted(n)), "a host is still mounted");
        Ok(())
    }
}

/// Why a host is shut out.
#[derive(Clone, Copy)]
enum Cause {
    Stopped,
    Cut,
}
