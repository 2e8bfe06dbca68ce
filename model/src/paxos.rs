//! One-disk Disk Paxos: one register per slot on the LUN, hosts that restart as new incarnations, writes that land when they like.
//!
//! Mirrors `cluster/src/paxos.rs` and the order in `cluster/src/core/log.rs`: write the own register, then read all registers, one at a
//! time and in any order; the own one must read as written; a later instance anywhere means "behind"; the record is written to the log
//! before the register goes on to the next instance. A value is named by the ballot that brought it in, so each attempt has its own.
//! A ballot is any unused one of the slot above its own last one: "above all seen" serves progress only.
//!
//! It is a plain [`Model`], not a set of actors: the medium is a disk, whose blocks change when a write lands and not when a message is
//! delivered. A write has one step, its landing; whatever dies before it never lands, whatever dies after it did. So a crash needs no
//! action: a host that died is one that does nothing more, and [`Action::Restart`] is its fence, its drained queue and its
//! successor's first read in one. The old process may live on as a *ghost*: its writes are refused, its reads are not.
//!
//! Invariant: I1, at most one value is chosen for an instance. Not here: when a host proposes, time, how a fence works
//! (`takeover.rs`), the ring of the log, power cuts of the LUN.

use stateright::{Model, Property};

use crate::run::{Mutable, Row};

/// Most instances a model may have.
pub const MAX_INSTANCES: usize = 2;

/// At most one value is chosen for an instance.
pub const I1: &str = "I1 at most one value is chosen";
/// The log holds what was chosen.
pub const LOG: &str = "I1 the log holds what was chosen";

/// Which rule is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// None: the protocol.
    None,
    /// Phase 1 is left out: a host writes its value at once.
    NoPhaseOne,
    /// A restarted host does not read its own register.
    ForgetOwn,
    /// A slot goes to a new incarnation while the old one can still write.
    LateWrite,
    /// Phase 2 does not read the registers again.
    NoReread,
    /// A register that is at a later instance counts as unused.
    IgnoreLater,
}

/// The sizes of a model, and its mutant.
#[derive(Clone, Copy, Debug)]
pub struct Paxos {
    /// Slots, each with a host.
    pub hosts: u8,
    /// Ballots of each slot in each instance.
    pub rounds: u8,
    /// Records to be chosen, at most [`MAX_INSTANCES`].
    pub instances: u8,
    /// Restarts in all.
    pub restarts: u8,
    /// Which rule is left out.
    pub mutant: Mutant,
}

/// A register as it lies on the LUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Register {
    instance: u8,
    mbal: u8,
    bal: u8,
    value: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    One,
    Two,
}

/// What a process waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// A write of its register is under way.
    Writing(Stage),
    /// It reads the registers: those read (a bit each), and the largest accepted ballot with its value.
    Reading(Stage, u8, u8, u8),
    /// The write of the chosen record is under way.
    Logging,
}

/// A running process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Process {
    phase: Phase,
    /// Its register, after the write under way.
    own: Register,
    /// Records it knows.
    knows: u8,
}

const FRESH: Process = Process { phase: Phase::Idle, own: Register { instance: 0, mbal: 0, bal: 0, value: 0 }, knows: 0 };

/// The LUN and the processes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    disk: Vec<Register>,
    hosts: Vec<Process>,
    /// Fenced processes that do not know it.
    ghosts: Vec<Option<Process>>,
    log: [u8; MAX_INSTANCES],
    /// The first value that somebody saw chosen.
    chosen: [u8; MAX_INSTANCES],
    restarts: u8,
    /// A second value was chosen, or a record was overwritten with another.
    split: bool,
    rewritten: bool,
}

/// Who takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The incarnation that owns the slot.
    Host(u8),
    /// The one before it.
    Ghost(u8),
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A host begins with this ballot.
    Begin(u8, u8),
    /// The write of a process lands and is answered.
    Lands(Who),
    /// A process reads one register.
    Reads(Who, u8),
    /// It has read all, and goes on.
    Decides(Who),
    /// A host learns the next record from the log.
    Learns(u8),
    /// The slot's process is fenced, and a new incarnation reads the slot's register.
    Restart(u8),
}

impl Paxos {
    /// The protocol, at a size that a test can afford.
    pub fn small() -> Self {
        Self { hosts: 2, rounds: 2, instances: 2, restarts: 1, mutant: Mutant::None }
    }

    fn process(state: &State, who: Who) -> Option<Process> {
        match who {
            Who::Host(s) => state.hosts.get(usize::from(s)).copied(),
            Who::Ghost(s) => state.ghosts.get(usize::from(s)).copied().flatten(),
        }
    }

    /// A ghost that cannot write and has nothing to learn is gone.
    fn put(&self, state: &mut State, who: Who, p: Process) {
        match who {
            Who::Host(s) => state.hosts[usize::from(s)] = p,
            Who::Ghost(s) => state.ghosts[usize::from(s)] = Some(p).filter(|p| self.haunts(p)),
        }
    }

    /// Whether a fenced process can still do something that matters.
    fn haunts(&self, p: &Process) -> bool {
        match p.phase {
            Phase::Reading(Stage::Two, ..) => true,
            Phase::Writing(_) | Phase::Reading(..) => self.mutant == Mutant::LateWrite,
            Phase::Idle | Phase::Logging => false,
        }
    }

    /// The registers a process reads, as bits.
    fn all(&self) -> u8 {
        (1 << self.hosts) - 1
    }

    fn ballots(&self, slot: u8, own: Register, instance: u8) -> impl Iterator<Item = u8> {
        let above = if own.instance == instance { own.mbal } else { 0 };
        let hosts = self.hosts;
        (0..self.rounds).map(move |r| r * hosts + slot + 1).filter(move |b| *b > above)
    }

    fn steps_of(&self, state: &State, who: Who, out: &mut Vec<Action>) {
        let Some(p) = Self::process(state, who) else { return };
        match p.phase {
            Phase::Idle => {
                let Who::Host(s) = who else { return };
                let next = p.knows + 1;
                if next <= self.instances && next >= p.own.instance {
                    out.extend(self.ballots(s, p.own, next).map(|b| Action::Begin(s, b)));
                }
                if state.log.get(usize::from(p.knows)).is_some_and(|r| *r != 0) {
                    out.push(Action::Learns(s));
                }
            }
            Phase::Writing(_) | Phase::Logging => out.push(Action::Lands(who)),
            Phase::Reading(_, seen, ..) if seen == self.all() => out.push(Action::Decides(who)),
            Phase::Reading(_, seen, ..) => {
                out.extend((0..self.hosts).filter(|s| seen & (1 << s) == 0).map(|s| Action::Reads(who, s)));
            }
        }
    }

    fn begin(&self, state: &mut State, slot: u8, ballot: u8) {
        let mut p = state.hosts[usize::from(slot)];
        if p.own.instance != p.knows + 1 {
            p.own = Register { instance: p.knows + 1, ..Register::default() };
        }
        p.own.mbal = ballot;
        p.phase = Phase::Writing(Stage::One);
        if self.mutant == Mutant::NoPhaseOne {
            let value = if p.own.bal > 0 { p.own.value } else { ballot };
            p.own = Register { bal: ballot, value, ..p.own };
            p.phase = Phase::Writing(Stage::Two);
        }
        state.hosts[usize::from(slot)] = p;
    }

    fn lands(&self, state: &mut State, who: Who, mut p: Process) {
        let (Who::Host(s) | Who::Ghost(s)) = who;
        match p.phase {
            Phase::Writing(stage) => {
                state.disk[usize::from(s)] = p.own;
                let seen = if stage == Stage::Two && self.mutant == Mutant::NoReread { self.all() } else { 0 };
                p.phase = Phase::Reading(stage, seen, p.own.bal, p.own.value);
            }
            _ => {
                let record = &mut state.log[usize::from(p.own.instance) - 1];
                state.rewritten |= *record != 0 && *record != p.own.value;
                *record = p.own.value;
                (p.phase, p.knows) = (Phase::Idle, p.own.instance);
            }
        }
        self.put(state, who, p);
    }

    fn reads(&self, state: &mut State, who: Who, mut p: Process, from: u8) {
        let Phase::Reading(stage, seen, bal, value) = p.phase else { return };
        let (Who::Host(me) | Who::Ghost(me)) = who;
        let found = state.disk[usize::from(from)];
        let mut best = (bal, value);
        if from == me {
            if found != p.own {
                // somebody else wrote the own register: what was promised does not stand
                p = Process { phase: Phase::Idle, own: found, ..p };
                return self.put(state, who, p);
            }
        } else if found.instance == p.own.instance {
            if found.mbal > p.own.mbal {
                p.phase = Phase::Idle;
                return self.put(state, who, p);
            }
            best = best.max((found.bal, found.value));
        } else if found.instance > p.own.instance && self.mutant != Mutant::IgnoreLater {
            p.phase = Phase::Idle;
            return self.put(state, who, p);
        }
        p.phase = Phase::Reading(stage, seen | 1 << from, best.0, best.1);
        self.put(state, who, p);
    }

    fn decides(&self, state: &mut State, who: Who, mut p: Process) {
        let Phase::Reading(stage, _, bal, value) = p.phase else { return };
        match stage {
            Stage::One => {
                p.own.value = if bal > 0 { value } else { p.own.mbal };
                p.own.bal = p.own.mbal;
                p.phase = Phase::Writing(Stage::Two);
            }
            Stage::Two => {
                let chosen = &mut state.chosen[usize::from(p.own.instance) - 1];
                state.split |= *chosen != 0 && *chosen != p.own.value;
                if *chosen == 0 {
                    *chosen = p.own.value;
                }
                p.phase = Phase::Logging;
            }
        }
        self.put(state, who, p);
    }

    fn restart(&self, state: &mut State, slot: u8) {
        let s = usize::from(slot);
        state.restarts += 1;
        state.ghosts[s] = Some(state.hosts[s]).filter(|p| self.haunts(p));
        let own = if self.mutant == Mutant::ForgetOwn { Register::default() } else { state.disk[s] };
        state.hosts[s] = Process { own, ..FRESH };
    }
}

impl Model for Paxos {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let n = usize::from(self.hosts);
        assert!(usize::from(self.instances) <= MAX_INSTANCES, "more instances than a state has room for");
        vec![State {
            disk: vec![Register::default(); n],
            hosts: vec![FRESH; n],
            ghosts: vec![None; n],
            log: [0; MAX_INSTANCES],
            chosen: [0; MAX_INSTANCES],
            restarts: 0,
            split: false,
            rewritten: false,
        }]
    }

    fn actions(&self, state: &State, out: &mut Vec<Action>) {
        for s in 0..self.hosts {
            self.steps_of(state, Who::Host(s), out);
            self.steps_of(state, Who::Ghost(s), out);
            if state.restarts < self.restarts && state.hosts[usize::from(s)] != FRESH {
                out.push(Action::Restart(s));
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Begin(s, ballot) => self.begin(&mut next, s, ballot),
            Action::Lands(who) => self.lands(&mut next, who, Self::process(state, who)?),
            Action::Reads(who, from) => self.reads(&mut next, who, Self::process(state, who)?, from),
            Action::Decides(who) => self.decides(&mut next, who, Self::process(state, who)?),
            Action::Learns(s) => next.hosts[usize::from(s)].knows += 1,
            Action::Restart(s) => self.restart(&mut next, s),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(I1, |_: &Self, s: &State| !s.split),
            Property::always(LOG, |_: &Self, s: &State| {
                !s.rewritten && s.log.iter().zip(&s.chosen).all(|(record, chosen)| *record == 0 || record == chosen)
            }),
            Property::sometimes("a record is chosen", |_: &Self, s: &State| s.chosen[0] != 0),
            Property::sometimes("every record is chosen", |m: &Self, s: &State| s.chosen.iter().take(m.instances.into()).all(|c| *c != 0)),
            Property::sometimes("the value of another slot is adopted", |m: &Self, s: &State| {
                let foreign = |(i, p): (usize, &Process)| p.phase == Phase::Logging && usize::from((p.own.value - 1) % m.hosts) != i;
                s.hosts.iter().enumerate().any(foreign)
            }),
        ];
        if self.restarts > 0 {
            all.push(Property::sometimes("a new incarnation is bound by what the old one accepted", |_: &Self, s: &State| {
                s.restarts > 0 && s.hosts.iter().any(|p| p.phase == Phase::Logging && p.own.value != p.own.bal)
            }));
            all.push(Property::sometimes("a fenced process learns what is chosen", |m: &Self, s: &State| {
                s.ghosts.iter().flatten().any(|g| matches!(g.phase, Phase::Reading(Stage::Two, seen, ..) if seen == m.all()))
            }));
        }
        all
    }
}

impl Mutable for Paxos {
    fn mutants() -> &'static [Row<Self>] {
        const BASE: Paxos = Paxos { hosts: 2, rounds: 2, instances: 1, restarts: 0, mutant: Mutant::None };
        &[
            Row { name: "no-phase-one", what: "phase 1 left out", breaks: &[I1], model: || Paxos { mutant: Mutant::NoPhaseOne, ..BASE } },
            Row {
                name: "forget-own",
                what: "restart without reading the own register",
                breaks: &[I1],
                model: || Paxos { mutant: Mutant::ForgetOwn, restarts: 1, ..BASE },
            },
            Row {
                name: "late-write",
                what: "slot used again while a write of its last owner is under way",
                breaks: &[I1],
                model: || Paxos { mutant: Mutant::LateWrite, restarts: 1, ..BASE },
            },
            Row {
                name: "no-reread",
                what: "phase 2 does not read the registers again",
                breaks: &[I1],
                model: || Paxos { mutant: Mutant::NoReread, ..BASE },
            },
            Row {
                name: "ignore-later",
                what: "a register at a later instance counts as unused",
                breaks: &[I1],
                model: || Paxos { mutant: Mutant::IgnoreLater, instances: 2, ..BASE },
            },
        ]
    }
}
