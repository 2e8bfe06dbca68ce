//! What the bytes of files may be.
//!
//! A file is a row of cells of 512 bytes and a size; each is a register. A write fills its cells with its own number (and inode and
//! cell, so that foreign and misplaced bytes show). What a reader may see of a register is a set, from the history of operations on it:
//! - an operation that ended replaces everything that had ended before it began, and stands beside what ran at the same time;
//! - one under way may have happened or not; so may one that its host's death or a power cut caught before it was made durable;
//! - one covered by an fsync, or of whose metadata the journal kept every batch, has happened.
//!
//! A cell is old or new, never a mixture: that is what a sector promises. A multi-block write is not atomic. Not here: names.

use crate::check::Who;
use luna_format::Ino;
use std::collections::BTreeMap;

/// Bytes of a cell.
pub(crate) const CELL: usize = 512;
/// Cells of the longest file.
pub(crate) const CELLS: usize = 128;

/// One life of an inode number.
pub(crate) type File = (Ino, u64);

/// What an operation does to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Set(u64),
    AtLeast(u64),
}

impl Effect {
    /// The values after it.
    fn on(self, before: &[(u64, u64)]) -> Vec<u64> {
        let mut all: Vec<u64> = match self {
            Self::Set(v) => vec![v],
            Self::AtLeast(v) => before.iter().map(|(old, _)| v.max(*old)).collect(),
        };
        all.sort_unstable();
        all.dedup();
        all
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pending,
    Done,
    /// Perhaps, and nothing changes that any more.
    Maybe,
}

#[derive(Clone, Debug)]
struct Doing {
    who: Who,
    file: File,
    start: u64,
    end: u64,
    seq: u64,
    state: State,
    stable: bool,
}

#[derive(Clone, Debug, Default)]
struct Register {
    base: Vec<u64>,
    log: Vec<(Effect, u64)>,
}

struct Content {
    size: Register,
    cells: Vec<Register>,
}

/// A read under way: what it may answer so far.
struct Reading {
    who: Who,
    file: File,
    start: u64,
    from: usize,
    sizes: Vec<u64>,
    cells: Vec<Vec<u64>>,
}

/// What a guest does to a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// Cells from..to get the operation's number.
    Write(usize, usize),
    /// The size is set; what is behind it is zero.
    Size(u64),
    /// Cells from..to are zeroes; the size stays.
    Punch(usize, usize),
    /// The size is at least this.
    Grow(u64),
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Data {
    files: BTreeMap<File, Content>,
    doing: BTreeMap<u64, Doing>,
    reading: BTreeMap<u64, Reading>,
    /// When the last operation of a host on a file began that came to an end: it has seen what had ended before.
    seen: BTreeMap<(Who, File), u64>,
    step: u64,
    /// Cells read and found right.
    pub(crate) read: u64,
}

/// Adds what may be there if some of these happened, in whatever order.
fn spread<'a>(all: &mut Vec<(u64, u64)>, perhaps: impl Iterator<Item = &'a (&'a Doing, Effect)> + Clone) {
    for (p, e) in perhaps.clone().chain(perhaps) {
        for v in e.on(all) {
            match all.iter_mut().find(|(old, _)| *old == v) {
                Some((_, end)) => *end = (*end).max(p.end),
                None => all.push((v, p.end)),
            }
        }
    }
}

impl Register {
    /// Values that may be seen now.
    fn visible(&self, doing: &BTreeMap<u64, Doing>) -> Vec<u64> {
        let mut all: Vec<(u64, u64)> = if self.base.is_empty() { vec![(0, 0)] } else { self.base.iter().map(|v| (*v, 0)).collect() };
        let mut over: Vec<(&Doing, Effect)> = self.log.iter().filter_map(|(e, id)| doing.get(id).map(|d| (d, *e))).collect();
        over.sort_by_key(|(d, _)| d.end);
        let (done, perhaps): (Vec<_>, Vec<_>) = over.into_iter().partition(|(d, _)| d.state == State::Done);
        for (d, e) in done {
            // what is uncertain may have happened before it, if it had begun
            spread(&mut all, perhaps.iter().filter(|(p, _)| p.start < d.end));
            let add = e.on(&all);
            all.retain(|(_, end)| *end > d.start);
            all.extend(add.into_iter().map(|v| (v, d.end)));
        }
        spread(&mut all, perhaps.iter());
        let mut values: Vec<u64> = all.into_iter().map(|(v, _)| v).collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// For whoever reads a violation.
    fn history(&self, doing: &BTreeMap<u64, Doing>) -> String {
        let line = |(e, id): &(Effect, u64)| {
            doing.get(id).map_or(String::new(), |d| {
                format!("{id} {e:?} by {:?} {:?} {}..{} batch {} stable {}", d.who, d.state, d.start, d.end as i64, d.seq, d.stable)
            })
        };
        let all: Vec<String> = self.log.iter().map(line).collect();
        format!("history: base {:?}; {}", self.base, all.join("; "))
    }

    /// Somebody saw `v`: what was uncertain and is at rest is certain from now on.
    fn collapse(&mut self, v: u64, start: u64, doing: &BTreeMap<u64, Doing>) {
        let settled =
            |id: &u64| doing.get(id).is_none_or(|d| d.state != State::Pending && d.end < start && (d.stable || d.state == State::Maybe));
        if self.log.iter().all(|(_, id)| settled(id)) {
            self.base = vec![v];
            self.log.clear();
        }
    }
}

impl Data {
    fn content(&mut self, f: File) -> &mut Content {
        self.files.entry(f).or_insert_with(|| Content { size: Register::default(), cells: vec![Register::default(); CELLS] })
    }

    /// A change begins.
    pub(crate) fn begin(&mut self, id: u64, who: Who, file: File, change: Change) {
        self.step += 1;
        let start = self.step;
        self.doing.insert(id, Doing { who, file, start, end: u64::MAX, seq: 0, state: State::Pending, stable: false });
        let c = self.content(file);
        match change {
            Change::Write(from, to) => {
                c.cells[from..to].iter_mut().for_each(|r| r.log.push((Effect::Set(id), id)));
                c.size.log.push((Effect::AtLeast((to * CELL) as u64), id));
            }
            Change::Size(n) => {
                c.cells[n as usize / CELL..].iter_mut().for_each(|r| r.log.push((Effect::Set(0), id)));
                c.size.log.push((Effect::Set(n), id));
            }
            Change::Punch(from, to) => c.cells[from..to].iter_mut().for_each(|r| r.log.push((Effect::Set(0), id))),
            Change::Grow(n) => c.size.log.push((Effect::AtLeast(n), id)),
        }
        self.widen(file);
    }

    /// It ended: it happened, or (when it failed) perhaps. `seq`: the newest batch that its metadata can be in; 0 when all is at home.
    pub(crate) fn end(&mut self, id: u64, happened: bool, seq: u64, stable: bool) {
        self.step += 1;
        let step = self.step;
        let Some(d) = self.doing.get_mut(&id) else { return };
        (d.end, d.seq, d.stable) = (step, seq, stable);
        d.state = if happened { State::Done } else { State::Maybe };
        let file = d.file;
        if happened {
            self.seen.insert((d.who, file), d.start);
        }
        self.widen(file);
    }

    /// The moment now, for [`Data::synced`].
    pub(crate) fn now(&mut self) -> u64 {
        self.step += 1;
        self.step
    }

    /// An fsync of one file, or a sync, by `who` that began at `start` was answered. An fsync covers what its own host did
    /// to the file, and what other hosts did and its own has seen since; a sync covers its own host.
    pub(crate) fn synced(&mut self, who: Who, file: Option<File>, start: u64) {
        let seen = file.and_then(|f| self.seen.get(&(who, f))).copied().unwrap_or(0);
        let mine = |d: &Doing| file.is_none_or(|f| f == d.file) && (d.who == who || d.end < seen);
        let covered = |d: &&mut Doing| d.state == State::Done && d.end < start && mine(d);
        self.doing.values_mut().filter(covered).for_each(|d| d.stable = true);
    }

    /// A read begins.
    pub(crate) fn read_begins(&mut self, id: u64, who: Who, file: File, from: usize, to: usize) {
        self.step += 1;
        let r = Reading { who, file, start: self.step, from, sizes: Vec::new(), cells: vec![Vec::new(); to - from] };
        self.reading.insert(id, r);
        self.widen(file);
    }

    /// Adds what may be seen now to what the reads under way may answer.
    fn widen(&mut self, file: File) {
        let Some(c) = self.files.get(&file) else { return };
        for r in self.reading.values_mut().filter(|r| r.file == file) {
            r.sizes.extend(c.size.visible(&self.doing));
            for (n, cell) in r.cells.iter_mut().enumerate() {
                cell.extend(c.cells[r.from + n].visible(&self.doing));
            }
        }
    }

    /// A read was answered. Judged only when the reader is to be believed.
    pub(crate) fn read_ends(&mut self, id: u64, bytes: Option<&[u8]>, believed: bool) -> Result<(), String> {
        let Some(mut r) = self.reading.remove(&id) else { return Ok(()) };
        let Some(bytes) = bytes.filter(|_| believed) else { return Ok(()) };
        self.seen.insert((r.who, r.file), r.start);
        self.content(r.file);
        let Some(c) = self.files.get_mut(&r.file) else { return Ok(()) };
        r.sizes.extend(c.size.visible(&self.doing));
        let wanted = (r.cells.len() * CELL) as u64;
        let from = (r.from * CELL) as u64;
        let fits = |s: &u64| s.saturating_sub(from).min(wanted) == bytes.len() as u64;
        if !r.sizes.iter().any(fits) {
            r.sizes.sort_unstable();
            r.sizes.dedup();
            return Err(format!("data: {:?} read {} bytes at {from} of {:?}; its size may be {:?}", r.who, bytes.len(), r.file, r.sizes));
        }
        for (n, cell) in bytes.chunks(CELL).enumerate() {
            let at = r.from + n;
            let found = decode(cell, r.file.0, at).map_err(|e| format!("data: {:?} read {e} in cell {at} of {:?}", r.who, r.file))?;
            let now = c.cells[at].visible(&self.doing);
            if !r.cells[n].contains(&found) && !now.contains(&found) {
                return Err(format!(
                    "data: {:?} read write {found} in cell {at} of {:?}; allowed is {now:?}; {}",
                    r.who,
                    r.file,
                    c.cells[at].history(&self.doing)
                ));
            }
            if now.len() > 1 && now.contains(&found) {
                c.cells[at].collapse(found, r.start, &self.doing);
            }
            self.read += 1;
        }
        Ok(())
    }

    /// Whether a file may have this size now.
    pub(crate) fn may_have_size(&mut self, file: File, size: u64) -> Result<(), String> {
        let v = self.files.get(&file).map_or(vec![0], |c| c.size.visible(&self.doing));
        if v.contains(&size) {
            return Ok(());
        }
        let history = self.files.get(&file).map(|c| c.size.history(&self.doing)).unwrap_or_default();
        Err(format!("data: the size of {file:?} is {size}; it may be {v:?}; {history}"))
    }

    /// The target lost power: what nobody had synced is uncertain.
    pub(crate) fn power_cut(&mut self) {
        self.step += 1;
        for d in self.doing.values_mut().filter(|d| d.state == State::Done && !d.stable) {
            (d.state, d.end) = (State::Maybe, self.step);
        }
    }

    /// `who` is gone and its journal was replayed up to batch `kept`: nothing of it is under way any more.
    pub(crate) fn over(&mut self, who: Who, kept: u64) {
        self.step += 1;
        for d in self.doing.values_mut().filter(|d| d.who == who) {
            match d.state {
                State::Pending => (d.state, d.end) = (State::Maybe, self.step),
                State::Done if !d.stable && d.seq > kept => (d.state, d.end) = (State::Maybe, self.step),
                _ => {}
            }
            d.stable = true;
        }
        self.reading.retain(|_, r| r.who != who);
        let files: Vec<File> = self.files.keys().copied().collect();
        files.into_iter().for_each(|f| self.widen(f));
    }
}

/// The bytes of one cell of write `id`.
pub(crate) fn encode(id: u64, ino: Ino, cell: usize) -> [u8; CELL] {
    let mut out = [0; CELL];
    let words = [id, ino, cell as u64, id ^ ino.rotate_left(20) ^ (cell as u64).rotate_left(40) ^ 0x5a5a_a5a5];
    for (n, w) in out.chunks_exact_mut(8).enumerate() {
        w.copy_from_slice(&words[n % 4].to_le_bytes());
    }
    out
}

/// Whose bytes these are; 0 for zeroes.
fn decode(bytes: &[u8], ino: Ino, cell: usize) -> Result<u64, String> {
    if bytes.iter().all(|b| *b == 0) {
        return Ok(0);
    }
    let word = |n: usize| bytes.get(n * 8..n * 8 + 8).and_then(|w| w.try_into().ok()).map_or(0, u64::from_le_bytes);
    let id = word(0);
    if bytes.len() == CELL && encode(id, ino, cell)[..] == *bytes {
        return Ok(id);
    }
    Err(format!("foreign bytes (write {id} of inode {} cell {}, {} bytes)", word(1), word(2), bytes.len()))
}
