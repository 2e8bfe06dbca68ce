//! One workload, done by the production code over a taped LUN; with marks of what was promised when.
//!
//! Invariant: the same workload, host to die and moment give the same tape. Not here: what may be left (`states`, `model`).

use super::base::Base;
use super::hosts::Hosts;
use super::image::Image;
use super::model::{Done, Id, Known, Model, Story};
use super::tape::{Event, Fate};
use super::work::{self, Op, Step, Sync};
use crate::Broken;
use std::sync::Arc;

/// Which host dies, in which of its changes, and what becomes of that.
pub(super) type Death = (usize, usize, Fate);

/// What was recorded.
pub(super) struct Run {
    pub(super) hosts: Arc<Hosts>,
    pub(super) start: Image,
    pub(super) tape: Vec<Event>,
    /// From which event on this was known.
    pub(super) marks: Vec<(usize, Known)>,
    pub(super) story: Story,
    /// How many events there were before the one in which a host died.
    pub(super) died: Option<usize>,
}

impl Run {
    /// What was known after so many events.
    pub(super) fn known(&self, events: usize) -> &Known {
        let n = self.marks.partition_point(|(at, _)| *at <= events);
        &self.marks[n - 1].1
    }
}

/// How a recording ended without a tape.
#[derive(Debug)]
pub(super) enum Ended {
    /// There was no space for it.
    NoSpace,
    /// Something is wrong.
    Wrong(String),
}

impl From<String> for Ended {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

struct Recorder {
    run: Run,
    model: Model,
    known: Known,
    death: Option<Death>,
    broken: Option<Broken>,
}

/// Whether the model can do all of it.
pub(super) fn is_valid(base: &Model, steps: &[Step]) -> bool {
    let mut m = base.clone();
    steps.iter().enumerate().all(|(i, s)| m.perform(s.op, 0, 1000 + i).is_some())
}

/// Records a workload.
pub(super) fn record(base: &Base, steps: &[Step], many: usize, death: Option<Death>, broken: Option<Broken>) -> Result<Run, Ended> {
    let hosts = Hosts::mount(base.image.clone(), base.sb, many, broken)?;
    let start = hosts.image();
    hosts.lun.lock().tape.clear();
    (0..many).for_each(|h| hosts.host(h).door.changes.lock().clear());
    if let Some((h, n, fate)) = death {
        *hosts.host(h).door.end.lock() = Some((n, fate));
    }
    let story = Story { base: base.model.clone(), done: Vec::new() };
    let run = Run { hosts, start, tape: Vec::new(), marks: Vec::new(), story, died: None };
    let mut r = Recorder { run, model: base.model.clone(), known: Known::default(), death, broken };
    r.mark();
    for (i, s) in steps.iter().enumerate() {
        r.step(i, *s)?;
    }
    for h in 0..many {
        r.home(h)?;
    }
    if death.is_none() {
        (0..many).try_for_each(|h| r.run.hosts.unmount(h))?;
    }
    r.run.tape = r.run.hosts.lun.lock().tape.clone();
    Ok(r.run)
}

impl Recorder {
    fn mark(&mut self) {
        let at = self.run.hosts.lun.lock().tape.len();
        self.run.marks.push((at, self.known.clone()));
    }

    fn note_death(&mut self) {
        if let Some((h, ..)) = self.death {
            self.run.died = *self.run.hosts.host(h).door.died.lock();
        }
    }

    fn step(&mut self, i: usize, s: Step) -> Result<(), Ended> {
        if self.run.hosts.is_dead(s.host) {
            return Ok(());
        }
        let dead_before = self.run.died.is_some();
        let tag = 100 + i as u32;
        let target = self.model.find(s.op.about());
        let before = self.model.clone();
        let touched = self.model.perform(s.op, tag, 1000 + i).unwrap_or_default();
        let target = target.filter(|t| touched.contains(t)).or_else(|| self.model.find(s.op.about()));
        let (shows, size) = (!self.model.looks_like(&before), target.and_then(|t| before.size(t)));
        let touched = touched.into_iter().collect();
        self.run.story.done.push(Done { host: s.host, op: s.op, tag, touched, target, shows, size, alone: dead_before });
        self.known.begun += 1;
        self.mark();
        let got = self.run.hosts.on(s.host, |fs| work::perform(fs, s.op, tag))?;
        let death = self.death.is_some_and(|(h, ..)| self.run.hosts.is_dead(h));
        self.note_death();
        match got {
            None => return Ok(()),
            Some(Err(e)) if e.errno() == libc::ENOSPC => return Err(Ended::NoSpace),
            Some(Err(_)) if death || dead_before => {
                // what it was about may have died with the other host
                self.run.story.done.pop();
                self.known.begun -= 1;
                self.run.marks.iter_mut().for_each(|(_, known)| known.begun = known.begun.min(self.known.begun));
                self.mark();
                return Ok(());
            }
            Some(Err(e)) => return Err(Ended::Wrong(format!("{:?} failed: {e}", s.op))),
            Some(Ok(())) => {}
        }
        if death && let Some(d) = self.run.story.done.last_mut() {
            d.alone = true;
        }
        let n = self.run.story.done.len() - 1;
        self.answered(n);
        self.sync(n, s)
    }

    /// What the answer of an operation promises by itself.
    fn answered(&mut self, n: usize) {
        let d = &self.run.story.done[n];
        if let (Op::Dsync(_, at, len), Some(id)) = (d.op, d.target) {
            self.known.ranges.push((id, at, at + len as u64, n + 1));
            // what it takes to find the bytes again: the file, and a size that has them
            let (host, alone, end) = (d.host, self.run.died.is_some(), at as usize + len);
            let needed = |d: &Done| d.size.is_none_or(|before| before < end);
            self.promise(|_, d| d.target == Some(id) && needed(d) && (!alone || d.host == host));
        }
        self.mark();
    }

    fn promise(&mut self, which: impl Fn(usize, &Done) -> bool) {
        // what changes only bytes is promised by their versions: no journal has it
        let all = self.run.story.done.iter().enumerate().filter(|(i, d)| d.shows && which(*i, d)).map(|(i, _)| i);
        self.known.must.extend(all);
    }

    fn sync(&mut self, n: usize, s: Step) -> Result<(), Ended> {
        if s.sync == Sync::None || self.run.hosts.is_dead(s.sync_host) {
            return Ok(());
        }
        let object = match s.sync {
            Sync::File => self.model.find(s.op.about()),
            Sync::Dir => self.model.find(work::split(s.op.about()).0),
            _ => None,
        };
        let got = match self.broken {
            Some(Broken::SyncsInWordsOnly) => Some(Ok(true)),
            _ => self.run.hosts.on(s.sync_host, |fs| work::sync(fs, s.op, s.sync))?,
        };
        self.note_death();
        match got {
            None | Some(Ok(false)) => return Ok(()),
            Some(Err(_)) if self.run.died.is_some() => return Ok(()),
            Some(Err(e)) => return Err(Ended::Wrong(format!("{:?} after {:?} failed: {e}", s.sync, s.op))),
            // it was removed, and is there again because its removal died with the other host: nothing was said about anything else
            Some(Ok(true)) if object.is_none() && matches!(s.sync, Sync::File | Sync::Dir) => return Ok(()),
            Some(Ok(true)) => {}
        }
        let (host, alone) = (s.sync_host, self.run.died.is_some());
        match object {
            Some(id) if !alone => {
                self.known.bytes.insert(id, n + 1);
                self.promise(|_, d| d.touched.contains(&id));
            }
            // what a dead host had done to it may have gone with it; and a sync of all covers what its host did
            _ => {
                let mine = |d: &Done| d.host == host && object.is_none_or(|o| d.touched.contains(&o));
                let files: Vec<(Id, usize)> =
                    self.run.story.done.iter().enumerate().filter(|(_, d)| mine(d)).filter_map(|(i, d)| Some((d.target?, i + 1))).collect();
                self.known.bytes.extend(files);
                self.promise(|_, d| mine(d));
            }
        }
        self.mark();
        Ok(())
    }

    /// Everything of a host goes home, as the background would have it.
    fn home(&mut self, h: usize) -> Result<(), Ended> {
        if self.run.hosts.is_dead(h) {
            return Ok(());
        }
        let got = self.run.hosts.on(h, |fs| {
            fs.volume.sync_all()?;
            fs.volume.reclaim(None)?;
            fs.volume.checkpoint()
        })?;
        self.note_death();
        match got {
            Some(Err(e)) => Err(Ended::Wrong(format!("the background failed: {e}"))),
            _ => Ok(()),
        }
    }
}
