//! What the tree of names must be: every operation is repeated here at the moment it took effect, and must come out the same.
//!
//! Operations on names and attributes are atomic and ordered by locks, and in a world of one thread they take effect in the order in
//! which they are heard of. So there is no set of allowed trees, there is one. A host that dies takes its youngest operations along
//! ([`Names::forget`]): then everything else is repeated without them and must still come out the same, or somebody had seen what
//! was not durable (R4).
//!
//! Not exact on purpose: an inode without names that nobody has open may be there or not (a reaper is at work). Not here: contents.

use crate::check::Who;
use luna_format::Ino;
use std::collections::BTreeMap;

/// Something done to names or attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Create(Ino, String),
    Mkdir(Ino, String),
    Unlink(Ino, String),
    Rmdir(Ino, String),
    Rename(Ino, String, Ino, String, u32),
    Link(Ino, Ino, String),
    Lookup(Ino, String),
    List(Ino),
    Stat(Ino),
    Chmod(Ino, u32),
    SetX(Ino, String, Vec<u8>),
    GetX(Ino, String),
}

/// How it came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Done,
    /// Number and generation.
    Ino(Ino, u64),
    /// Links and mode.
    Stat(u32, u32),
    List(BTreeMap<String, Ino>),
    Value(Vec<u8>),
    Errno(i32),
}

#[derive(Clone, Debug, Default)]
struct Node {
    generation: u64,
    nlink: u32,
    mode: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Of a directory.
    entries: Option<BTreeMap<String, Ino>>,
    parent: Ino,
}

struct Logged {
    who: Who,
    seq: u64,
    op: Op,
    got: Got,
}

/// See the module's text.
pub(crate) struct Names {
    root: Ino,
    nodes: BTreeMap<Ino, Node>,
    log: Vec<Logged>,
}

/// What may come out: success, these errors.
struct May {
    ok: bool,
    errors: Vec<i32>,
}

impl May {
    fn only(errors: &[i32]) -> Self {
        Self { ok: errors.is_empty(), errors: errors.to_vec() }
    }
}

const GONE: [i32; 3] = [libc::ENOENT, libc::ESTALE, libc::ENOTDIR];

impl Names {
    pub(crate) fn new(root: Ino) -> Self {
        let mut n = Self { root, nodes: BTreeMap::new(), log: Vec::new() };
        n.begin();
        n
    }

    fn begin(&mut self) {
        let root = Node { nlink: 2, mode: 0o040_755, entries: Some(BTreeMap::new()), parent: self.root, ..Node::default() };
        self.nodes = BTreeMap::from([(self.root, root)]);
    }

    /// The life an inode number has now, if it has a name.
    pub(crate) fn generation(&self, ino: Ino) -> Option<u64> {
        self.nodes.get(&ino).filter(|n| n.nlink > 0).map(|n| n.generation)
    }

    /// The life an inode number has now or had last: who looked it up may open it for a moment after its last name went.
    pub(crate) fn last_generation(&self, ino: Ino) -> Option<u64> {
        self.nodes.get(&ino).map(|n| n.generation)
    }

    /// Directories, root first, and files, as they are now.
    pub(crate) fn all(&self) -> (Vec<Ino>, Vec<Ino>) {
        let live = self.nodes.iter().filter(|(_, n)| n.nlink > 0);
        let (dirs, files): (Vec<_>, Vec<_>) = live.partition(|(_, n)| n.entries.is_some());
        (dirs.into_iter().map(|x| *x.0).collect(), files.into_iter().map(|x| *x.0).collect())
    }

    /// An operation came out like this. `open`: whether somebody has the inode open.
    pub(crate) fn heard(&mut self, who: Who, seq: u64, op: Op, got: Got, open: &dyn Fn(Ino) -> bool) -> Result<(), String> {
        self.apply(&op, &got, open).map_err(|e| format!("names: {who:?} {op:?} came out as {got:?}: {e}"))?;
        self.log.push(Logged { who, seq, op, got });
        Ok(())
    }

    /// A read by a host that is no member any more: not to be believed, not to be judged.
    pub(crate) fn is_read(op: &Op) -> bool {
        matches!(op, Op::Lookup(..) | Op::List(_) | Op::Stat(_) | Op::GetX(..))
    }

    /// Of what `who` did, only batches up to `kept` survive.
    pub(crate) fn forget(&mut self, who: Who, kept: u64) -> Result<usize, String> {
        let before = self.log.len();
        self.log.retain(|l| l.who != who || l.seq <= kept);
        let lost = before - self.log.len();
        if lost > 0 {
            self.begin();
            let log = std::mem::take(&mut self.log);
            for l in &log {
                self.apply(&l.op, &l.got, &|_| false).map_err(|e| {
                    format!(
                        "names: after {who:?} lost what it did after batch {kept}, {:?} {:?} = {:?} cannot have been: {e} (R4)",
                        l.who, l.op, l.got
                    )
                })?;
            }
            self.log = log;
        }
        Ok(lost)
    }

    fn dir(&self, ino: Ino) -> Option<&BTreeMap<String, Ino>> {
        self.nodes.get(&ino).filter(|n| n.nlink > 0)?.entries.as_ref()
    }

    fn is_dir(&self, ino: Ino) -> bool {
        self.nodes.get(&ino).is_some_and(|n| n.entries.is_some())
    }

    /// On an inode by number: what is allowed when it has no name any more.
    fn by_number(&self, ino: Ino, open: &dyn Fn(Ino) -> bool) -> May {
        let live = self.nodes.get(&ino).is_some_and(|n| n.nlink > 0) || open(ino);
        May { ok: true, errors: if live { Vec::new() } else { vec![libc::ESTALE, libc::ENOENT] } }
    }

    fn may(&self, op: &Op, open: &dyn Fn(Ino) -> bool) -> May {
        match op {
            Op::Create(d, n) | Op::Mkdir(d, n) => match self.dir(*d) {
                None => May::only(&GONE),
                Some(e) if e.contains_key(n) => May::only(&[libc::EEXIST]),
                Some(_) => May::only(&[]),
            },
            Op::Unlink(d, n) => match self.dir(*d).map(|e| e.get(n)) {
                None => May::only(&GONE),
                Some(None) => May::only(&[libc::ENOENT]),
                Some(Some(i)) if self.is_dir(*i) => May::only(&[libc::EISDIR]),
                Some(Some(_)) => May::only(&[]),
            },
            Op::Rmdir(d, n) => match self.dir(*d).map(|e| e.get(n)) {
                None => May::only(&GONE),
                Some(None) => May::only(&[libc::ENOENT]),
                Some(Some(i)) => match self.dir(*i) {
                    None => May::only(&[libc::ENOTDIR]),
                    Some(e) if !e.is_empty() => May::only(&[libc::ENOTEMPTY]),
                    Some(_) => May::only(&[]),
                },
            },
            Op::Rename(d, n, e, m, flags) => self.may_rename((*d, n), (*e, m), *flags),
            Op::Link(i, d, n) => {
                let mut errors = Vec::new();
                match self.nodes.get(i).filter(|x| x.nlink > 0) {
                    None => errors.extend([libc::ENOENT, libc::ESTALE]),
                    Some(_) if self.is_dir(*i) => errors.push(libc::EPERM),
                    Some(_) => {}
                }
                match self.dir(*d) {
                    None => errors.extend(GONE),
                    Some(e) if e.contains_key(n) => errors.push(libc::EEXIST),
                    Some(_) => {}
                }
                May::only(&errors)
            }
            Op::Lookup(d, n) => match self.dir(*d) {
                None => May::only(&GONE),
                Some(e) if e.contains_key(n) => May::only(&[]),
                Some(_) => May::only(&[libc::ENOENT]),
            },
            Op::List(d) if self.dir(*d).is_none() => May { ok: true, errors: GONE.to_vec() },
            Op::List(_) => May::only(&[]),
            Op::Stat(i) | Op::Chmod(i, _) | Op::SetX(i, ..) => self.by_number(*i, open),
            Op::GetX(i, n) => {
                let mut may = self.by_number(*i, open);
                if !self.nodes.get(i).is_some_and(|x| x.xattrs.contains_key(n)) {
                    may.ok = false;
                    may.errors.push(libc::ENODATA);
                }
                may
            }
        }
    }

    fn below(&self, mut dir: Ino, top: Ino) -> bool {
        for _ in 0..1000 {
            if dir == top {
                return true;
            }
            if dir == self.root {
                return false;
            }
            dir = self.nodes.get(&dir).map_or(self.root, |n| n.parent);
        }
        true
    }

    fn may_rename(&self, from: (Ino, &String), to: (Ino, &String), flags: u32) -> May {
        let (Some(a), Some(b)) = (self.dir(from.0), self.dir(to.0)) else { return May::only(&GONE) };
        let Some(source) = a.get(from.1).copied() else { return May::only(&[libc::ENOENT]) };
        let target = b.get(to.1).copied();
        let exchange = flags & luna_fs::op::RENAME_EXCHANGE != 0;
        match target {
            None if exchange => return May::only(&[libc::ENOENT]),
            Some(_) if flags & luna_fs::op::RENAME_NOREPLACE != 0 => return May::only(&[libc::EEXIST]),
            Some(t) if t == source => return May::only(&[]),
            _ => {}
        }
        let moves = |i: Ino| self.is_dir(i) && from.0 != to.0;
        if moves(source) && self.below(to.0, source) || exchange && target.is_some_and(|t| moves(t) && self.below(from.0, t)) {
            return May::only(&[libc::EINVAL]);
        }
        match target.filter(|_| !exchange) {
            Some(t) if self.is_dir(source) && !self.is_dir(t) => May::only(&[libc::ENOTDIR]),
            Some(t) if !self.is_dir(source) && self.is_dir(t) => May::only(&[libc::EISDIR]),
            Some(t) if self.dir(t).is_some_and(|e| !e.is_empty()) => May::only(&[libc::ENOTEMPTY]),
            _ => May::only(&[]),
        }
    }

    fn apply(&mut self, op: &Op, got: &Got, open: &dyn Fn(Ino) -> bool) -> Result<(), String> {
        let may = self.may(op, open);
        if let Got::Errno(e) = got {
            let fine = may.errors.contains(e);
            return if fine { Ok(()) } else { Err(format!("expected success: {}, or one of {:?}", may.ok, may.errors)) };
        }
        if !may.ok {
            return Err(format!("expected one of the errors {:?}", may.errors));
        }
        match op {
            Op::Create(d, n) => self.make(*d, n, got, false, open),
            Op::Mkdir(d, n) => self.make(*d, n, got, true, open),
            Op::Unlink(d, n) | Op::Rmdir(d, n) => {
                self.drop_name(*d, n);
                Ok(())
            }
            Op::Rename(d, n, e, m, flags) => {
                self.rename((*d, n), (*e, m), *flags);
                Ok(())
            }
            Op::Link(i, d, n) => {
                self.put(*d, n, *i);
                self.nodes.entry(*i).and_modify(|x| x.nlink += 1);
                Ok(())
            }
            Op::Lookup(d, n) => {
                let ino = self.dir(*d).and_then(|e| e.get(n)).copied().unwrap_or(0);
                same(got, &Got::Ino(ino, self.nodes.get(&ino).map_or(0, |x| x.generation)))
            }
            Op::List(d) => same(got, &Got::List(self.dir(*d).cloned().unwrap_or_default())),
            Op::Stat(i) => match self.nodes.get(i) {
                Some(n) => same(got, &Got::Stat(n.nlink, n.mode)),
                None => Err("nothing is known of it".into()),
            },
            Op::Chmod(i, mode) => {
                self.nodes.entry(*i).and_modify(|x| x.mode = x.mode & 0o170_000 | mode);
                Ok(())
            }
            Op::SetX(i, n, v) => {
                self.nodes.entry(*i).and_modify(|x| drop(x.xattrs.insert(n.clone(), v.clone())));
                Ok(())
            }
            Op::GetX(i, n) => match self.nodes.get(i).and_then(|x| x.xattrs.get(n)) {
                Some(v) => same(got, &Got::Value(v.clone())),
                None => Err("it has no such attribute".into()),
            },
        }
    }

    fn make(&mut self, d: Ino, name: &str, got: &Got, dir: bool, open: &dyn Fn(Ino) -> bool) -> Result<(), String> {
        let Got::Ino(ino, generation) = *got else { return Err("no inode number".into()) };
        if self.nodes.get(&ino).is_some_and(|n| n.nlink > 0) || open(ino) {
            return Err(format!("inode {ino} was handed out while it is in use"));
        }
        let mode = if dir { 0o040_755 } else { 0o100_644 };
        let entries = dir.then(BTreeMap::new);
        self.nodes.insert(ino, Node { generation, nlink: 1 + u32::from(dir), mode, entries, parent: d, ..Node::default() });
        self.put(d, name, ino);
        self.count(d, i64::from(dir));
        Ok(())
    }

    fn put(&mut self, d: Ino, name: &str, ino: Ino) {
        if let Some(e) = self.nodes.get_mut(&d).and_then(|n| n.entries.as_mut()) {
            e.insert(name.to_owned(), ino);
        }
    }

    fn count(&mut self, d: Ino, by: i64) {
        self.nodes.entry(d).and_modify(|n| n.nlink = (i64::from(n.nlink) + by) as u32);
    }

    fn take(&mut self, d: Ino, name: &str) -> Option<Ino> {
        self.nodes.get_mut(&d)?.entries.as_mut()?.remove(name)
    }

    fn drop_name(&mut self, d: Ino, name: &str) {
        let Some(ino) = self.take(d, name) else { return };
        let dir = self.is_dir(ino);
        self.nodes.entry(ino).and_modify(|n| n.nlink = if dir { 0 } else { n.nlink - 1 });
        self.count(d, -i64::from(dir));
    }

    fn rename(&mut self, from: (Ino, &String), to: (Ino, &String), flags: u32) {
        let source = self.dir(from.0).and_then(|e| e.get(from.1)).copied();
        let target = self.dir(to.0).and_then(|e| e.get(to.1)).copied();
        let Some(source) = source.filter(|s| Some(*s) != target) else { return };
        if let Some(t) = target
            && flags & luna_fs::op::RENAME_EXCHANGE != 0
        {
            self.put(from.0, from.1, t);
            self.put(to.0, to.1, source);
            let by = i64::from(self.is_dir(t)) - i64::from(self.is_dir(source));
            self.count(from.0, by);
            self.count(to.0, -by);
            self.set_parent(t, from.0);
        } else {
            self.drop_name(to.0, to.1);
            self.take(from.0, from.1);
            self.put(to.0, to.1, source);
            let by = i64::from(self.is_dir(source));
            self.count(from.0, -by);
            self.count(to.0, by);
        }
        self.set_parent(source, to.0);
    }

    fn set_parent(&mut self, ino: Ino, parent: Ino) {
        self.nodes.entry(ino).and_modify(|n| n.parent = if n.entries.is_some() { parent } else { n.parent });
    }
}

fn same(got: &Got, expected: &Got) -> Result<(), String> {
    if got == expected { Ok(()) } else { Err(format!("expected {expected:?}")) }
}
