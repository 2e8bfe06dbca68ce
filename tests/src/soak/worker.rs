//! A process that works on one mount at a time and goes where it is told: the side of the soak that has files open.
//!
//! It is a process of its own because whoever has files of a mount open cannot start programs while the mount waits (a new process closes
//! what it inherited, and that waits too); the conductor starts many. Words come in by stdin, one a line, and go out by stdout:
//!
//! | in | out |
//! |---|---|
//! | `go DIR`: work below DIR from now on | `at DIR` after everything was verified there |
//! | `pause`: sync, close everything | `paused` |
//! | | `did OPS BYTES-VERIFIED SNAPSHOTS`, about once a second |
//! | | `lost WHY`: the mount gave an error; whatever was not synced may be either way; waits for `go` |
//! | | `bad WHY`: a promise was broken; the process ends |
//!
//! Invariant: what a job believes survives the loss of every host, because it is kept here. Not here: whether an error was to be expected.

use super::{churn::Churn, disk::Disk};
use crate::Result;
use anyhow::{Context, bail};
use std::{
    io::{self, BufRead},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, TryRecvError, channel},
    time::{Duration, Instant},
};

/// Why a job cannot go on.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The mount answered with an error.
    Host(io::Error),
    /// What was read is not what was promised.
    Bad(String),
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        Self::Host(e)
    }
}

impl From<rustix::io::Errno> for Trouble {
    fn from(e: rustix::io::Errno) -> Self {
        Self::Host(e.into())
    }
}

/// The result of a piece of work.
pub(super) type Done<T = ()> = std::result::Result<T, Trouble>;

/// A broken promise.
pub(super) fn bad<T>(why: String) -> Done<T> {
    Err(Trouble::Bad(why))
}

/// What a job has done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub ops: u64,
    pub verified: u64,
    pub snapshots: u64,
}

/// Something that works below a directory and can move.
pub(super) trait Job {
    /// Everything of it is verified below `dir`, and work goes on there. After a crash what was not synced may be either way. Comes
    /// from where it was before, if it was anywhere: what it has open there is closed when the new place is good.
    fn arrive(&mut self, dir: &Path, crashed: bool) -> Done;
    /// A little work.
    fn step(&mut self) -> Done;
    /// Syncs everything.
    fn sync(&mut self) -> Done;
    /// Closes everything.
    fn close(&mut self);
    /// What was done so far.
    fn tally(&self) -> Tally;
}

/// Where a job is.
struct Place {
    at: Option<PathBuf>,
    crashed: bool,
    told: Instant,
}

/// Runs the job `kind` number `id` until stdin ends.
pub fn work(kind: &str, id: u64, seed: u64) -> Result {
    let mut job: Box<dyn Job> = match kind {
        "disk" => Box::new(Disk::new(id, seed)),
        "churn" => Box::new(Churn::new(id, seed)),
        _ => bail!("no such job: {kind}"),
    };
    let words = listen();
    let mut place = Place { at: None, crashed: false, told: Instant::now() };
    loop {
        let word = if place.at.is_some() {
            match words.try_recv() {
                Ok(w) => Some(w),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        } else {
            match words.recv() {
                Ok(w) => Some(w),
                Err(_) => return Ok(()),
            }
        };
        match place.turn(&mut *job, word.as_deref()) {
            Ok(()) => {}
            Err(Trouble::Host(e)) => {
                job.close();
                place = Place { at: None, crashed: true, told: place.told };
                println!("lost {e}");
            }
            Err(Trouble::Bad(why)) => {
                println!("bad {}", why.replace('\n', " "));
                return Ok(());
            }
        }
    }
}

impl Place {
    fn turn(&mut self, job: &mut dyn Job, word: Option<&str>) -> Done {
        match word.map(|w| w.split_once(' ').unwrap_or((w, ""))) {
            Some(("go", dir)) => {
                if self.at.is_some() {
                    job.sync()?;
                }
                job.arrive(Path::new(dir), self.crashed)?;
                self.at = Some(dir.into());
                self.crashed = false;
                println!("at {dir}");
            }
            Some(("pause", _)) => {
                job.sync()?;
                job.close();
                self.at = None;
                println!("paused");
            }
            _ => job.step()?,
        }
        if self.told.elapsed() > Duration::from_secs(1) || word.is_some() {
            let t = job.tally();
            println!("did {} {} {}", t.ops, t.verified, t.snapshots);
            self.told = Instant::now();
        }
        Ok(())
    }
}

fn listen() -> Receiver<String> {
    let (send, words) = channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(std::result::Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    words
}

/// Reads a number out of a `did` line.
pub(super) fn read_tally(text: &str) -> Result<Tally> {
    let mut n = text.split(' ').map(str::parse::<u64>);
    let mut next = || n.next().context("a number is missing")?.context("no number");
    Ok(Tally { ops: next()?, verified: next()?, snapshots: next()? })
}
