//! Programs of the guests: a few names, a few files, many hosts, so that they meet.
//!
//! A host knows only what it has looked up itself. A piece of work is one operation on names, a sync, or a session: open, a few calls,
//! perhaps a pause with the file open, close. What comes out is told at the moment it takes effect; the oracle judges.
//! Not here: whether it is right.

use super::Heard;
use super::machine::Machine;
use super::oracle::data::{CELL, CELLS, Change, encode};
use super::oracle::names::{Got, Op};
use crate::Broken;
use crate::world::{Event, Fallible, World};
use fastrand::Rng;
use luna_format::Ino;
use luna_fs::data::{FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE};
use luna_fs::op::{self, Cred, SetAttr};
use luna_fs::{Fs, FsError, Machine as _, names, xattr};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Pieces of work that one host has at once.
const AT_ONCE: usize = 4;

/// Of so many pieces of work one is a freeze, where there are freezes.
const FREEZE_EACH: u64 = 40;

/// A call of a session.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Write(usize, usize),
    Read(usize, usize),
    Truncate(usize),
    Reserve(usize, usize),
    Punch(usize, usize),
    Fsync,
    Pause(u64),
}

/// A piece of work.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Name(Op),
    Session(Ino, i32, Vec<Call>),
    Sync,
    /// The metadata stands still for so long.
    Freeze(u64),
}

fn cells(rng: &mut Rng) -> (usize, usize) {
    // small files stay in their inode; whole blocks go the fast way
    match rng.u8(0..4) {
        0 => {
            let from = rng.usize(0..6);
            (from, rng.usize(from + 1..=7))
        }
        1 => {
            let from = rng.usize(0..CELLS - 1);
            (from, rng.usize(from + 1..=CELLS.min(from + 20)))
        }
        _ => {
            let from = rng.usize(0..CELLS / 8);
            (from * 8, rng.usize(from + 1..=(from + 3).min(CELLS / 8)) * 8)
        }
    }
}

fn call(rng: &mut Rng) -> Call {
    let (from, to) = cells(rng);
    match rng.u8(0..20) {
        0..8 => Call::Write(from, to),
        8..13 => Call::Read(from, to),
        13 => Call::Truncate(if rng.bool() { 0 } else { from }),
        14 => Call::Reserve(from, to),
        15 => Call::Punch(from, to),
        16 | 17 => Call::Fsync,
        _ => Call::Pause(rng.u64(1..200)),
    }
}

fn file_name(rng: &mut Rng) -> String {
    ["a", "b", "c", "d"][rng.usize(0..4)].to_owned()
}

fn dir_name(rng: &mut Rng) -> String {
    ["d", "e", "f"][rng.usize(0..3)].to_owned()
}

/// Something to do, for a host that knows these directories and files.
pub(crate) fn choose(rng: &mut Rng, root: Ino, dirs: &[Ino], files: &[Ino]) -> Work {
    let dir = |rng: &mut Rng| if rng.u8(0..3) == 0 { root } else { dirs[rng.usize(0..dirs.len())] };
    let (d, e) = (dir(rng), dir(rng));
    let any = if rng.u8(0..3) == 0 { dir_name(rng) } else { file_name(rng) };
    let other = if rng.u8(0..3) == 0 { dir_name(rng) } else { file_name(rng) };
    let file = (!files.is_empty()).then(|| files[rng.usize(0..files.len())]);
    let op = match (rng.u8(0..40), file) {
        (0..5, _) => Op::Create(d, file_name(rng)),
        (5 | 6, _) => Op::Mkdir(d, dir_name(rng)),
        (7..10, _) => Op::Unlink(d, any),
        (10, _) => Op::Rmdir(d, dir_name(rng)),
        (11..14, _) => Op::Rename(d, any, e, other, [0, 0, 0, op::RENAME_NOREPLACE, op::RENAME_EXCHANGE][rng.usize(0..5)]),
        (14..19, _) => Op::Lookup(d, any),
        (19 | 20, _) => Op::List(d),
        (21, _) => return Work::Sync,
        (22, Some(f)) => Op::Link(f, d, file_name(rng)),
        (23 | 24, Some(f)) => Op::Stat(f),
        (25, Some(f)) => Op::Chmod(f, [0o600, 0o640, 0o644][rng.usize(0..3)]),
        (26, Some(f)) => Op::SetX(f, "user.x".into(), vec![rng.u8(..); rng.usize(1..40)]),
        (27, Some(f)) => Op::GetX(f, "user.x".into()),
        (_, Some(f)) => {
            let flags = [libc::O_RDWR | libc::O_DIRECT, libc::O_RDWR | libc::O_DIRECT, libc::O_RDWR, libc::O_WRONLY][rng.usize(0..4)];
            let calls = (0..rng.usize(1..5)).map(|_| call(rng)).collect();
            return Work::Session(f, flags, calls);
        }
        _ => Op::Lookup(root, any),
    };
    Work::Name(op)
}

/// Where a piece of work runs.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) fs: Arc<Fs>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) ids: Arc<AtomicU64>,
    pub(crate) broken: Option<Broken>,
    /// There may be no space.
    pub(crate) full: bool,
}

impl Place {
    fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    fn hear(&self, h: Heard) {
        self.machine.hear(h);
    }

    /// An error: its number, unless it is one that needs a reason.
    fn errno(&self, what: &dyn std::fmt::Debug, e: &FsError) -> Option<i32> {
        match e.errno() {
            libc::ENOSPC if self.full => None,
            libc::EIO | libc::EINVAL | libc::EAGAIN | libc::EOPNOTSUPP | libc::ENOSPC if !matches!(e, FsError::Invalid(w) if w.contains("below itself")) =>
            {
                self.hear(Heard::Failed(format!("{what:?}: {e}")));
                None
            }
            n => Some(n),
        }
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, work: Work) {
        match work {
            Work::Name(op) => drop(self.name(op)),
            Work::Session(ino, flags, calls) => self.session(ino, flags, &calls),
            Work::Freeze(ms) => self.freeze(ms),
            Work::Sync => {
                let id = self.id();
                self.hear(Heard::SyncBegins(id));
                let seq = self.fs.volume.journal.running();
                match self.sync(|| self.fs.volume.sync_all()) {
                    // the batch that was running then
                    Ok(()) => self.hear(Heard::SyncedAll(id, seq.min(self.fs.volume.journal.durable()))),
                    Err(e) => {
                        self.errno(&"sync", &e);
                    }
                }
            }
        }
    }

    fn freeze(&self, ms: u64) {
        let really = self.broken != Some(Broken::FreezesInWordsOnly);
        let frozen = match really.then(|| self.fs.volume.freeze()).transpose() {
            Ok(frozen) => frozen,
            // another guest of this host was first
            Err(FsError::Invalid(_)) => return,
            Err(e) => {
                self.errno(&"freeze", &e);
                return;
            }
        };
        for (told, pause) in [(Heard::StandsStill, ms), (Heard::StoodStill, 1)] {
            self.hear(told);
            self.machine.sleep(Duration::from_millis(pause));
        }
        drop(frozen);
    }

    fn sync(&self, really: impl FnOnce() -> Result<(), FsError>) -> Result<(), FsError> {
        if self.broken == Some(Broken::SyncsInWordsOnly) { Ok(()) } else { really() }
    }

    /// An operation on names.
    pub(crate) fn name(&self, op: Op) -> Option<Got> {
        let (vol, cred) = (&self.fs.volume, Cred::default());
        let mut size = None;
        let came = match &op {
            Op::Create(d, n) => {
                vol.run_seq(|tx| op::create(tx, *d, n.as_bytes(), 0o644, 0, &cred)).map(|(a, s)| (Got::Ino(a.ino, a.generation), s))
            }
            Op::Mkdir(d, n) => {
                vol.run_seq(|tx| op::mkdir(tx, *d, n.as_bytes(), 0o755, &cred)).map(|(a, s)| (Got::Ino(a.ino, a.generation), s))
            }
            Op::Unlink(d, n) => vol.run_seq(|tx| op::unlink(tx, *d, n.as_bytes())).map(|((), s)| (Got::Done, s)),
            Op::Rmdir(d, n) => vol.run_seq(|tx| op::rmdir(tx, *d, n.as_bytes())).map(|((), s)| (Got::Done, s)),
            Op::Rename(d, n, e, m, flags) => {
                vol.run_seq(|tx| op::rename(tx, *d, n.as_bytes(), *e, m.as_bytes(), *flags)).map(|((), s)| (Got::Done, s))
            }
            Op::Link(i, d, n) => vol.run_seq(|tx| op::link(tx, *i, *d, n.as_bytes())).map(|(_, s)| (Got::Done, s)),
            Op::Lookup(d, n) => vol.run_seq(|tx| op::lookup(tx, *d, n.as_bytes())).map(|(a, s)| (Got::Ino(a.ino, a.generation), s)),
            Op::List(d) => vol.run_seq(|tx| op::readdir(tx, *d, op::COOKIE_DOT_DOT, 1000)).map(|(all, s)| {
                let all: BTreeMap<String, Ino> = all.into_iter().map(|e| (String::from_utf8_lossy(&e.name).into_owned(), e.ino)).collect();
                (Got::List(all), s)
            }),
            Op::Stat(i) => vol.run_seq(|tx| op::getattr(tx, *i)).map(|(a, s)| {
                size = (!op::is_dir(a.mode) && a.nlink > 0).then_some(a.size);
                (Got::Stat(a.nlink, a.mode), s)
            }),
            Op::Chmod(i, mode) => {
                let set = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                vol.run_seq(|tx| op::setattr(tx, *i, &set, &cred)).map(|(_, s)| (Got::Done, s))
            }
            Op::SetX(i, n, v) => vol.run_seq(|tx| xattr::set(tx, *i, n.as_bytes(), v, 0)).map(|((), s)| (Got::Done, s)),
            Op::GetX(i, n) => vol.run_seq(|tx| xattr::get(tx, *i, n.as_bytes())).map(|(v, s)| (Got::Value(v), s)),
        };
        let (got, seq) = match came {
            Ok(x) => x,
            Err(e) => (Got::Errno(self.errno(&op, &e)?), vol.journal.running()),
        };
        if let (Some(size), Op::Stat(i)) = (size, &op) {
            self.hear(Heard::Size(*i, size));
        }
        self.hear(Heard::Name(seq, op, got.clone()));
        Some(got)
    }

    /// A session on a file.
    pub(crate) fn session(&self, ino: Ino, flags: i32, calls: &[Call]) {
        let session = self.id();
        let file = match self.fs.open_wait(ino, flags) {
            Ok(f) => f,
            Err(e) => {
                self.errno(&("open", ino), &e);
                return;
            }
        };
        self.hear(Heard::Opened(session, ino));
        for c in calls {
            self.call(session, &file, c);
            if self.broken == Some(Broken::ReusesFreedBlocksAtOnce) {
                self.fs.volume.forget_freed();
            }
        }
        self.hear(Heard::Closed(session));
        self.fs.close_file(file);
    }

    fn call(&self, session: u64, file: &Arc<luna_fs::open::OpenFile>, c: &Call) {
        let (id, ino, fs) = (self.id(), file.ino(), &self.fs);
        let end = |happened: bool| self.hear(Heard::End(id, happened, newest(fs, ino)));
        let failed = |e: &FsError| {
            self.errno(&(c, ino), e);
        };
        match *c {
            Call::Pause(ms) => self.machine.sleep(Duration::from_millis(ms)),
            Call::Write(from, to) => {
                let bytes: Vec<u8> = (from..to).flat_map(|n| encode(id, ino, n)).collect();
                self.hear(Heard::Begin(session, id, Change::Write(from, to)));
                let (m, theirs) = (Arc::clone(&self.machine), Arc::clone(fs));
                let heard = move |got: &Result<u32, FsError>| m.hear(Heard::End(id, got.is_ok(), newest(&theirs, ino)));
                match fs.pwrite(file, (from * CELL) as u64, &bytes, heard) {
                    Ok(n) if n as usize == bytes.len() => {}
                    Ok(n) => self.hear(Heard::Failed(format!("a write of {} bytes wrote {n}", bytes.len()))),
                    Err(e) => failed(&e),
                }
            }
            Call::Read(from, to) if file.how.read => {
                self.hear(Heard::ReadBegins(session, id, from, to));
                let m = Arc::clone(&self.machine);
                let heard = move |got: &Result<Vec<u8>, FsError>| m.hear(Heard::ReadEnds(id, got.as_ref().ok().cloned()));
                if let Err(e) = fs.pread(file, (from * CELL) as u64, ((to - from) * CELL) as u32, heard) {
                    failed(&e);
                }
            }
            Call::Read(..) => {}
            Call::Truncate(n) => {
                self.hear(Heard::Begin(session, id, Change::Size((n * CELL) as u64)));
                let got = fs.ftruncate(file, (n * CELL) as u64);
                end(got.is_ok());
                got.unwrap_or_else(|e| failed(&e));
            }
            Call::Reserve(from, to) => {
                self.hear(Heard::Begin(session, id, Change::Grow((to * CELL) as u64)));
                let got = fs.fallocate_wait(file, 0, (from * CELL) as u64, ((to - from) * CELL) as u64);
                end(got.is_ok());
                got.unwrap_or_else(|e| failed(&e));
            }
            Call::Punch(from, to) => {
                self.hear(Heard::Begin(session, id, Change::Punch(from, to)));
                let mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE;
                let got = fs.fallocate_wait(file, mode, (from * CELL) as u64, ((to - from) * CELL) as u64);
                end(got.is_ok());
                got.unwrap_or_else(|e| failed(&e));
            }
            Call::Fsync => {
                self.hear(Heard::SyncBegins(id));
                match self.sync(|| fs.fsync(file)) {
                    Ok(()) => self.hear(Heard::Synced(session, id)),
                    Err(e) => failed(&e),
                }
            }
        }
    }

    /// Takes nearly all free space, for a file that shows nothing of it.
    pub(crate) fn fill(&self, root: Ino) {
        let Some(Got::Ino(ino, _)) = self.name(Op::Create(root, "full".into())) else { return };
        let Ok(file) = self.fs.open_wait(ino, libc::O_RDWR) else { return };
        let t = luna_fs::alloc::statfs(&self.fs.volume);
        let blocks = t.free.saturating_sub(t.free_meta).saturating_sub(80);
        let taken = self.fs.fallocate_wait(&file, FALLOC_KEEP_SIZE, 1 << 20, blocks.max(1) * 4096);
        self.fs.close_file(file);
        if let Err(e) = taken {
            self.errno(&"fill", &e);
        }
    }

    /// Reads the whole tree and every file in it.
    pub(crate) fn walk(&self, dir: Ino) {
        let Some(Got::List(all)) = self.name(Op::List(dir)) else { return };
        self.name(Op::Stat(dir));
        for (name, ino) in all {
            self.name(Op::Lookup(dir, name));
            self.name(Op::GetX(ino, "user.x".into()));
            match self.name(Op::Stat(ino)) {
                Some(Got::Stat(_, mode)) if op::is_dir(mode) => self.walk(ino),
                Some(Got::Stat(..)) => self.session(ino, libc::O_RDWR | libc::O_DIRECT, &[Call::Read(0, CELLS)]),
                _ => {}
            }
        }
    }
}

/// The newest batch that has something of this inode that is not at home.
fn newest(fs: &Fs, ino: Ino) -> u64 {
    fs.volume.last_change(&names::inode(ino)).unwrap_or(0)
}

impl World {
    pub(crate) fn fs_place(&mut self, i: usize) -> Option<Place> {
        let (ids, full) = (Arc::clone(&self.fs.as_ref()?.ids), self.fs.as_ref()?.full.0);
        let broken = self.setup.broken;
        let s = self.side(i)?;
        Some(Place { fs: s.fs.clone()?, machine: Arc::clone(&s.machine), ids, broken, full })
    }

    /// A guest begins something, now and then.
    pub(crate) fn fs_guest(&mut self, i: usize) -> Fallible {
        let next = self.rng.u64(3..60);
        self.later(next, i, Event::FsGuest);
        let Some(p) = &self.hosts[i].process else { return Ok(()) };
        let busy = p.side.as_ref().is_none_or(|s| s.guests.len() >= AT_ONCE);
        if busy || p.leaving || p.withdrawn || !self.fs.as_ref().is_some_and(|f| f.guests) {
            return Ok(());
        }
        let Some(place) = self.fs_place(i) else { return Ok(()) };
        let Some(f) = &mut self.fs else { return Ok(()) };
        f.stats.operations += 1;
        let (root, (mut dirs, mut files)) = (f.sb.root_ino, f.oracle.names.all());
        let Some(known) = self.side(i).map(|s| s.known.clone()) else { return Ok(()) };
        dirs.retain(|d| known.contains(d));
        files.retain(|x| known.contains(x));
        let mut work = choose(&mut self.rng, root, &dirs, &files);
        if self.setup.freezes && self.fs.as_ref().is_some_and(|f| f.stats.operations.is_multiple_of(FREEZE_EACH)) {
            work = Work::Freeze(self.rng.u64(0..400));
        }
        self.note(i, 7, format!("{work:?}").as_bytes());
        if let Some(s) = self.side(i) {
            s.begin_guest(Box::new(move || place.run(work)));
        }
        self.fs_pump(i, false)
    }
}
