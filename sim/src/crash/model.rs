//! What a crash may leave: the file system as a few maps, and the sets of operations that may have survived.
//!
//! Of the operations begun by then, what is left of names, sizes and attributes is that of a set of them in which
//! - everything is that a sync before the crash had covered;
//! - with an operation all earlier ones of its host are (a journal is a log);
//! - with an operation are all those of other hosts that had changed something which it looked at or changed.
//!
//! Bytes are judged by sectors. Each operation on a file makes a new version of its bytes; a sector must be that of a version which
//! has all the bytes that the file shows there, not older than what a sync covered, nor than a truncation or punch among the survivors.
//! So no sector is ever a mixture, foreign, or stale, and what a size makes visible has been written.
//!
//! Invariant: the model never does what the operation refused. Not here: times.

use super::image::{SECTOR, foreign};
use super::look::{Seen, SeenFile};
use super::work::{Falloc, Op, Path, bytes, split};
use luna_format::BLOCK_BYTES;
use std::collections::{BTreeMap, BTreeSet};

/// An object, whatever its names.
pub(super) type Id = usize;

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Dir(BTreeMap<String, Id>),
    File(Vec<u8>),
    Link,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    kind: Kind,
    xattr: Option<Vec<u8>>,
}

/// A file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Model {
    nodes: BTreeMap<Id, Node>,
}

impl Model {
    /// An empty one: a root.
    pub(super) fn new() -> Self {
        Self { nodes: BTreeMap::from([(0, Node { kind: Kind::Dir(BTreeMap::new()), xattr: None })]) }
    }

    pub(super) fn find(&self, path: &str) -> Option<Id> {
        path.split('/').filter(|n| !n.is_empty()).try_fold(0, |d, n| self.dir(d)?.get(n).copied())
    }

    fn dir(&self, id: Id) -> Option<&BTreeMap<String, Id>> {
        if let Kind::Dir(d) = &self.nodes.get(&id)?.kind { Some(d) } else { None }
    }

    fn file(&self, id: Id) -> Option<&Vec<u8>> {
        if let Kind::File(f) = &self.nodes.get(&id)?.kind { Some(f) } else { None }
    }

    fn is_dir(&self, id: Id) -> bool {
        self.dir(id).is_some()
    }

    fn names(&mut self, id: Id) -> Option<&mut BTreeMap<String, Id>> {
        if let Kind::Dir(d) = &mut self.nodes.get_mut(&id)?.kind { Some(d) } else { None }
    }

    fn spot(&self, p: Path) -> Option<(Id, &'static str)> {
        let (dir, name) = split(p);
        Some((self.find(dir).filter(|d| self.is_dir(*d))?, name))
    }

    fn make(&mut self, p: Path, id: Id, kind: Kind) -> Option<Vec<Id>> {
        let (d, name) = self.spot(p)?;
        if self.dir(d)?.contains_key(name) {
            return None;
        }
        self.nodes.insert(id, Node { kind, xattr: None });
        self.names(d)?.insert(name.to_owned(), id);
        Some(vec![d, id])
    }

    fn below(&self, id: Id, top: Id) -> bool {
        id == top || self.dir(top).is_some_and(|d| d.values().any(|c| self.below(id, *c)))
    }

    fn rename(&mut self, p: Path, q: Path) -> Option<Vec<Id>> {
        let ((d, n), (e, m)) = (self.spot(p)?, self.spot(q)?);
        let source = *self.dir(d)?.get(n)?;
        let target = self.dir(e)?.get(m).copied();
        if target == Some(source) || self.below(e, source) {
            return None;
        }
        if let Some(t) = target
            && (self.is_dir(t) != self.is_dir(source) || self.dir(t).is_some_and(|d| !d.is_empty()))
        {
            return None;
        }
        self.names(d)?.remove(n);
        self.names(e)?.insert(m.to_owned(), source);
        Some([d, e, source].into_iter().chain(target).collect())
    }

    fn exchange(&mut self, p: Path, q: Path) -> Option<Vec<Id>> {
        let ((d, n), (e, m)) = (self.spot(p)?, self.spot(q)?);
        let (a, b) = (*self.dir(d)?.get(n)?, *self.dir(e)?.get(m)?);
        if a == b || self.below(e, a) || self.below(d, b) {
            return None;
        }
        self.names(d)?.insert(n.to_owned(), b);
        self.names(e)?.insert(m.to_owned(), a);
        Some(vec![d, e, a, b])
    }

    fn bytes(&mut self, p: Path, change: impl FnOnce(&mut Vec<u8>)) -> Option<Vec<Id>> {
        let id = self.find(p)?;
        let Kind::File(f) = &mut self.nodes.get_mut(&id)?.kind else { return None };
        change(f);
        Some(vec![id])
    }

    /// Does an operation, whose writes have `tag` and whose new object is `id`; what it touched, or `None` when it is refused.
    pub(super) fn perform(&mut self, o: Op, tag: u32, id: Id) -> Option<Vec<Id>> {
        let put = |f: &mut Vec<u8>, at: u64, len: usize| {
            let at = at as usize;
            f.resize(f.len().max(at + len), 0);
            f[at..at + len].copy_from_slice(&bytes(tag, at as u64, len));
        };
        match o {
            Op::Creat(p) => self.make(p, id, Kind::File(Vec::new())),
            Op::Mkdir(p) => self.make(p, id, Kind::Dir(BTreeMap::new())),
            Op::Symlink(p) => self.make(p, id, Kind::Link),
            Op::Write(p, at, len) | Op::Dsync(p, at, len) => self.bytes(p, |f| put(f, at, len)),
            Op::Append(p, len) => self.bytes(p, |f| put(f, f.len() as u64, len)),
            Op::Truncate(p, size) => self.bytes(p, |f| f.resize(size as usize, 0)),
            Op::Fallocate(p, how, at, len) => self.bytes(p, |f| {
                let (at, end) = (at as usize, (at + len) as usize);
                if matches!(how, Falloc::Grow | Falloc::Zero) {
                    f.resize(f.len().max(end), 0);
                }
                if matches!(how, Falloc::Punch | Falloc::Zero | Falloc::ZeroKeep) {
                    let end = end.min(f.len());
                    f[at.min(end)..end].fill(0);
                }
            }),
            Op::Link(p, q) => {
                let (id, (d, name)) = (self.find(p).filter(|i| !self.is_dir(*i))?, self.spot(q)?);
                if self.dir(d)?.contains_key(name) {
                    return None;
                }
                self.names(d)?.insert(name.to_owned(), id);
                Some(vec![d, id])
            }
            Op::Unlink(p) | Op::Rmdir(p) => {
                let (d, name) = self.spot(p)?;
                let id = *self.dir(d)?.get(name)?;
                let dir = matches!(o, Op::Rmdir(_));
                if self.is_dir(id) != dir || self.dir(id).is_some_and(|d| !d.is_empty()) {
                    return None;
                }
                self.names(d)?.remove(name);
                Some(vec![d, id])
            }
            Op::Rename(p, q) => self.rename(p, q),
            Op::Exchange(p, q) => self.exchange(p, q),
            Op::SetX(p) | Op::RemoveX(p) => {
                let id = self.find(p)?;
                let value = matches!(o, Op::SetX(_)).then(|| bytes(tag, 0, 40));
                let x = &mut self.nodes.get_mut(&id)?.xattr;
                if value.is_none() && x.is_none() {
                    return None;
                }
                *x = value;
                Some(vec![id])
            }
        }
    }

    /// Does what an operation does to bytes that a file has already.
    fn overwrite(&mut self, o: Op, tag: u32) {
        let Some(old) = self.find(o.about()).and_then(|id| self.file(id)).map(Vec::len) else { return };
        if matches!(o, Op::Write(..) | Op::Dsync(..) | Op::Fallocate(..)) {
            self.perform(o, tag, 0);
            self.bytes(o.about(), |f| f.truncate(old));
        }
    }

    /// Names of everything, with the object behind.
    fn walk(&self, id: Id, path: &str, out: &mut BTreeMap<String, Id>) {
        out.insert(path.to_owned(), id);
        for (name, child) in self.dir(id).into_iter().flatten() {
            self.walk(*child, &if path.is_empty() { name.clone() } else { format!("{path}/{name}") }, out);
        }
    }

    /// The size of a file.
    pub(super) fn size(&self, id: Id) -> Option<usize> {
        self.file(id).map(Vec::len)
    }

    /// Whether the same is to be seen here as there, but for bytes.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        let outline = |m: &Self| {
            let mut m = m.clone();
            for n in m.nodes.values_mut() {
                if let Kind::File(f) = &mut n.kind {
                    f.fill(0);
                }
            }
            m
        };
        outline(self) == outline(other)
    }

    /// Whether what was seen has these names, types, links, sizes and attributes.
    fn fits(&self, seen: &Seen) -> bool {
        let mut names = BTreeMap::new();
        self.walk(0, "", &mut names);
        if !names.keys().eq(seen.names.keys()) {
            return false;
        }
        let mut same = BTreeMap::new();
        names.iter().all(|(path, id)| {
            let ino = seen.names[path];
            let (Some(node), Some(file)) = (self.nodes.get(id), seen.files.get(&ino)) else { return false };
            let links = names.values().filter(|n| *n == id).count() as u32;
            let shape = match (&node.kind, file) {
                (Kind::Dir(_), SeenFile { dir: true, .. }) => true,
                (Kind::File(f), SeenFile { bytes: Some(b), .. }) => f.len() == b.len() && file.links == links,
                (Kind::Link, SeenFile { dir: false, bytes: None, .. }) => file.links == links,
                _ => false,
            };
            shape && node.xattr == file.xattr && *same.entry(*id).or_insert(ino) == ino
        })
    }
}

/// One operation that was done.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) host: usize,
    pub(super) op: Op,
    pub(super) tag: u32,
    /// Objects it looked at to change them, or changed.
    pub(super) touched: BTreeSet<Id>,
    /// What it was about.
    pub(super) target: Option<Id>,
    /// Names, a size or an attribute are others after it; not only bytes.
    pub(super) shows: bool,
    /// The size of its file before it; nothing when it made the file.
    pub(super) size: Option<usize>,
    /// It was answered after the other host had died, and may not have seen what that had done.
    pub(super) alone: bool,
}

/// What is known at a moment: operations begun, those that must have survived, and how far the bytes of files must have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) begun: usize,
    pub(super) must: BTreeSet<usize>,
    /// Files whose bytes are durable as of so many operations.
    pub(super) bytes: BTreeMap<Id, usize>,
    /// Ranges of files that are.
    pub(super) ranges: Vec<(Id, u64, u64, usize)>,
}

/// A run of operations, for judging what is left of it.
pub(super) struct Story {
    pub(super) base: Model,
    pub(super) done: Vec<Done>,
}

impl Story {
    /// The model after these of the operations.
    fn after(&self, set: &[usize]) -> Option<Model> {
        let mut m = self.base.clone();
        for i in set {
            let d = &self.done[*i];
            m.perform(d.op, d.tag, 1000 + i)?;
        }
        Some(m)
    }

    /// Whether this set of operations may be what survived.
    fn allowed(&self, set: &BTreeSet<usize>, known: &Known) -> bool {
        known.must.is_subset(set)
            && set.iter().all(|i| {
                let d = &self.done[*i];
                (0..*i).all(|j| {
                    let e = &self.done[j];
                    let needed = e.host == d.host || !d.alone && e.touched.iter().any(|t| d.touched.contains(t));
                    !needed || set.contains(&j)
                })
            })
    }

    /// Says why what was seen may not be.
    pub(super) fn judge(&self, seen: &Seen, known: &Known) -> Result<(), String> {
        let mut why = None;
        for bits in 0..1_u32 << known.begun {
            let set: BTreeSet<usize> = (0..known.begun).filter(|i| bits & (1 << i) != 0).collect();
            if !self.allowed(&set, known) {
                continue;
            }
            let order: Vec<usize> = set.iter().copied().collect();
            let Some(m) = self.after(&order) else { continue };
            if !m.fits(seen) {
                continue;
            }
            match self.judge_bytes(&m, &set, seen, known) {
                Ok(()) => return Ok(()),
                Err(e) => why = Some(e),
            }
        }
        Err(why.unwrap_or_else(|| format!("names, sizes or attributes are of no legal set of operations: {}", seen.outline())))
    }

    fn judge_bytes(&self, m: &Model, set: &BTreeSet<usize>, seen: &Seen, known: &Known) -> Result<(), String> {
        let mut names = BTreeMap::new();
        m.walk(0, "", &mut names);
        for (path, id) in names.iter().filter(|(_, id)| m.file(**id).is_some()) {
            let Some(found) = seen.files.get(&seen.names[path]).and_then(|f| f.bytes.as_ref()) else { continue };
            let all = (0..known.begun).collect();
            let alone = (0..known.begun).filter(|i| self.done[*i].alone || set.contains(i)).collect();
            let histories = [&all, set, &alone].map(|h| [self.versions(*id, h, 0), self.versions(*id, h, known.begun)]);
            for (n, part) in found.chunks(SECTOR).enumerate() {
                let (from, to) = (n * SECTOR, n * SECTOR + part.len());
                let floor = self.floor(*id, from, to, set, known);
                if !histories.iter().flatten().any(|h| shows(h, set, floor, from, part)) {
                    let whose = foreign(part).unwrap_or("bytes that it may not have there");
                    return Err(format!("{path} shows {whose} at {from}: {:02x?}; floor {floor}", &part[..part.len().min(16)]));
                }
            }
        }
        Ok(())
    }

    /// The bytes of a file after each of these operations that changed them; numbered from 1, the base is 0. Bytes may run ahead of
    /// names and sizes: what other ones of the first `ahead` write inside the file is taken too.
    fn versions(&self, id: Id, set: &BTreeSet<usize>, ahead: usize) -> Vec<(usize, Vec<u8>)> {
        let mut m = self.base.clone();
        let mut all: Vec<(usize, Vec<u8>)> = m.file(id).map(|f| (0, f.clone())).into_iter().collect();
        for i in 0..self.done.len() {
            let d = &self.done[i];
            if set.contains(&i) {
                m.perform(d.op, d.tag, 1000 + i);
            } else if i < ahead {
                m.overwrite(d.op, d.tag);
            }
            if let Some(f) = m.file(id)
                && (set.contains(&i) && d.target == Some(id) || all.last().is_none_or(|(_, old)| old != f))
            {
                all.push((i + 1, f.clone()));
            }
        }
        all
    }

    fn floor(&self, id: Id, from: usize, to: usize, set: &BTreeSet<usize>, known: &Known) -> usize {
        let mut floor = known.bytes.get(&id).copied().unwrap_or(0);
        for (_, _, _, upto) in known.ranges.iter().filter(|(i, a, b, _)| *i == id && *a < to as u64 && *b > from as u64) {
            floor = floor.max(*upto);
        }
        for i in set.iter().filter(|i| self.done[**i].target == Some(id)) {
            let cuts = match self.done[*i].op {
                Op::Truncate(_, size) => to as u64 > size,
                Op::Fallocate(_, Falloc::Punch | Falloc::Zero | Falloc::ZeroKeep, at, len) => at < to as u64 && at + len > from as u64,
                _ => false,
            };
            if cuts {
                floor = floor.max(i + 1);
            }
        }
        floor
    }
}

/// Whether a part at `from` is that of the version which was current after `floor` operations, or of a later one. Bytes may run ahead
/// of an operation that did not survive: where such a version ends, zeroes were written up to the end of the block.
fn shows(versions: &[(usize, Vec<u8>)], set: &BTreeSet<usize>, floor: usize, from: usize, part: &[u8]) -> bool {
    let current = versions.iter().rposition(|(i, _)| *i <= floor).unwrap_or(0);
    versions.iter().skip(current).any(|(i, v)| {
        let there = &v[from.min(v.len())..(from + part.len()).min(v.len())];
        let ahead = *i > 0 && !set.contains(&(i - 1)) && from < v.len().next_multiple_of(BLOCK_BYTES);
        part.starts_with(there) && (there.len() == part.len() || ahead && part[there.len()..].iter().all(|b| *b == 0))
    })
}
