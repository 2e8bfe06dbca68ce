//! Programs: each host's programs take random names in random modes, hold them a while, and change or read the data below.
//!
//! What the lock cache stand-in ([`crate::user`]) decides is performed here: requests and releases go to the router, write-back
//! takes time and waits for the gate, a hold under PW or EX reads its block and writes it plus one, a hold under PR looks
//! twice. Every belief of a cache is told to the checkers.

use crate::Broken;
use crate::user::{Entry, Step, Want};
use crate::world::{Event, Fallible, Happening, Saw, World};
use luna_cluster::Input;
use luna_dlm::{self as dlm, Mode, Name};
use luna_node::router::In;

const NAMES: u8 = 7;
/// Waits that one host has at once.
const WAITS: usize = 6;

fn name(i: u8) -> Name {
    let mut n = Name::default();
    n.0[0] = i + 1;
    n
}

impl World {
    /// There is a lock cache from now on, and programs that use it.
    pub(crate) fn serve(&mut self, i: usize) -> Fallible {
        if let Some(p) = &mut self.hosts[i].process {
            p.serving = true;
        }
        if self.fs.is_some() {
            self.fs_serve(i)?;
        } else {
            self.input(i, In::Serving)?;
            self.later(1, i, Event::Want);
        }
        self.later(50, i, Event::MailRound);
        Ok(())
    }

    pub(crate) fn random_want(&mut self, i: usize) -> Fallible {
        if self.scale.is_some() {
            return self.steady_want(i);
        }
        let next = self.rng.u64(3..80);
        // the product's pace, and then a guest that is often idle
        let next = if self.setup.calm { 200 * next } else { next };
        self.later(next, i, Event::Want);
        let Some(p) = &self.hosts[i].process else { return Ok(()) };
        if !self.wanting || p.leaving || p.withdrawn || self.check.progress.of(i) >= WAITS {
            return Ok(());
        }
        let name = name(self.rng.u8(0..NAMES));
        let mode = [Mode::Ex, Mode::Ex, Mode::Pw, Mode::Pr, Mode::Pr, Mode::Pr, Mode::Cw, Mode::Cr][self.rng.usize(0..8)];
        let noqueue = self.rng.u8(0..10) == 0;
        self.want(i, name, mode, noqueue)
    }

    /// Everybody wants everything exclusively once.
    pub(crate) fn sweep(&mut self) -> Fallible {
        for i in 0..self.hosts.len() {
            for n in 0..NAMES {
                self.want(i, name(n), Mode::Ex, false)?;
            }
        }
        Ok(())
    }

    pub(crate) fn want(&mut self, i: usize, name: Name, mode: Mode, noqueue: bool) -> Fallible {
        self.next_id += 1;
        let id = self.next_id;
        let Some(entry) = self.entry(i, name) else { return Ok(()) };
        if entry.want(Want { id, mode, noqueue }) {
            self.begun(i, name, id, mode);
            return Ok(());
        }
        self.check.progress.began(id, i, name, mode, self.now);
        self.drive(i, name)
    }

    fn entry(&mut self, i: usize, name: Name) -> Option<&mut Entry> {
        let p = self.hosts[i].process.as_mut().filter(|p| !p.withdrawn)?;
        Some(p.locks.entry(name).or_default())
    }

    /// Does what a name asks for until there is nothing left to do.
    fn drive(&mut self, i: usize, name: Name) -> Fallible {
        loop {
            let (mut begun, mut refused) = (Vec::new(), Vec::new());
            let Some(entry) = self.entry(i, name) else { return Ok(()) };
            let step = entry.plan(&mut begun, &mut refused);
            for (id, mode) in begun {
                self.check.progress.ended(id, self.now);
                self.begun(i, name, id, mode);
            }
            refused.into_iter().for_each(|id| self.check.progress.ended(id, self.now));
            match step {
                Step::Done => return Ok(()),
                Step::Settle { to } => {
                    if let Some(who) = self.hosts[i].place() {
                        self.check.locks.granted(name, who, to, &self.check.members)?;
                    }
                }
                Step::ComeDown { from, to } => {
                    let late = if from.writes() { self.latency() + 1 } else { self.rng.u64(0..2) };
                    self.later(late, i, Event::CameDown { name, from, to });
                }
                Step::Request { mode, noqueue } => self.input(i, In::Dlm(dlm::Input::Lock { name, mode, noqueue }))?,
                Step::Busy { wanted } => self.input(i, In::Dlm(dlm::Input::Busy { name, wanted }))?,
            }
        }
    }

    pub(crate) fn locks_granted(&mut self, i: usize, name: Name, mode: Mode) -> Fallible {
        let Some(entry) = self.entry(i, name) else { return Ok(()) };
        entry.grant(mode);
        self.note(i, 5, &[name.0[0], mode as u8]);
        self.drive(i, name)
    }

    pub(crate) fn locks_denied(&mut self, i: usize, name: Name, mode: Mode) -> Fallible {
        let Some(entry) = self.entry(i, name) else { return Ok(()) };
        if let Some(id) = entry.deny(mode) {
            self.check.progress.ended(id, self.now);
        }
        self.drive(i, name)
    }

    pub(crate) fn locks_bast(&mut self, i: usize, name: Name, mode: Mode, polite: bool) -> Fallible {
        if self.setup.broken == Some(Broken::IgnoresBasts) && !polite {
            return Ok(());
        }
        let Some(entry) = self.entry(i, name) else { return Ok(()) };
        entry.bast(mode, polite);
        self.drive(i, name)
    }

    /// Written back: tell the manager. A host whose lease ran out cannot write back, and waits.
    pub(crate) fn came_down(&mut self, i: usize, name: Name, from: Mode, to: Mode) -> Fallible {
        if from.writes() && !self.may_write(i) {
            self.later(20, i, Event::CameDown { name, from, to });
            return Ok(());
        }
        let Some(entry) = self.entry(i, name) else { return Ok(()) };
        if entry.came_down(to) {
            if let Some(who) = self.hosts[i].place() {
                self.check.locks.released(name, who, to, &self.check.members);
            }
            self.input(i, In::Dlm(dlm::Input::Release { name, from, to, value: None }))?;
        }
        self.drive(i, name)
    }

    fn begun(&mut self, i: usize, name: Name, id: u64, mode: Mode) {
        let late = self.rng.u64(0..5);
        self.later(late, i, Event::HoldWork { name, id, mode });
    }

    /// The program at work under its hold. A writer whose gate is shut waits.
    pub(crate) fn work(&mut self, i: usize, name: Name, id: u64, mode: Mode) -> Fallible {
        let long = self.hold_time();
        let base = self.check.data.read(&name);
        let may = self.may_write(i);
        let Some(entry) = self.entry(i, name) else { return Ok(()) };
        let (writing, writes) = (entry.writing, entry.writes);
        if !matches!(mode, Mode::Pw | Mode::Ex) {
            let saw = (mode == Mode::Pr && may && !writing).then_some((base, writes));
            self.later(long, i, Event::HoldEnd { name, id, saw });
            return Ok(());
        }
        if !may || writing {
            self.later(if may { 2 } else { 20 }, i, Event::HoldWork { name, id, mode });
            return Ok(());
        }
        (entry.writing, entry.writes) = (true, writes + 1);
        let (late, life) = (self.latency() + self.pause(), self.hosts[i].life);
        let Some(p) = &mut self.hosts[i].process else { return Ok(()) };
        let Some(who) = p.place else { return Ok(()) };
        p.in_flight += 1;
        self.at(late, Happening::Land { host: i, life, who, name, id, base });
        Ok(())
    }

    pub(crate) fn written(&mut self, i: usize, name: Name, id: u64, base: u64) -> Fallible {
        if let Some(p) = &mut self.hosts[i].process {
            p.in_flight -= 1;
        }
        self.note(i, 6, &base.to_le_bytes());
        if let Some(entry) = self.entry(i, name) {
            entry.writing = false;
        }
        // a second write now and then, on top of the first
        if self.rng.u8(0..4) == 0 {
            return self.work(i, name, id, Mode::Ex);
        }
        self.hold_end(i, name, id, None)
    }

    pub(crate) fn hold_end(&mut self, i: usize, name: Name, id: u64, saw: Option<Saw>) -> Fallible {
        // whoever knows that its lease ran out has not shown anybody what it read
        let writes = self.entry(i, name).map(|e| e.writes);
        if let (Some((saw, before)), Some(who), true) = (saw, self.hosts[i].place(), self.may_write(i))
            && writes == Some(before)
        {
            self.check.data.read_ended(who, name, saw, &self.check.members)?;
        }
        let Some(entry) = self.entry(i, name) else { return Ok(()) };
        entry.live.remove(&id);
        self.drive(i, name)
    }

    /// This host is out: every right is void, every wait ends.
    pub(crate) fn withdraw(&mut self, i: usize) {
        if let Some(p) = &mut self.hosts[i].process {
            p.withdrawn = true;
            p.locks.clear();
        }
        self.check.progress.gone(i);
    }

    /// Leaves in order: programs stop, what is under way ends, then the journal is clean.
    pub(crate) fn leave(&mut self, i: usize) -> Fallible {
        let Some(p) = self.hosts[i].process.as_mut().filter(|p| p.serving && !p.withdrawn && !p.leaving) else { return Ok(()) };
        p.leaving = true;
        p.withdrawn = p.side.is_none();
        p.locks.clear();
        self.say(format!("host {i} leaves"));
        self.check.progress.gone(i);
        self.input(i, In::Cluster(Input::LeaveRequested))?;
        if self.fs.is_some() {
            self.later(20_000, i, Event::Exit);
            return self.fs_leave(i);
        }
        self.later(2 * self.timing.request_ms, i, Event::Input(Box::new(In::Cluster(Input::JournalClean))));
        self.later(20_000, i, Event::Exit);
        Ok(())
    }
}
