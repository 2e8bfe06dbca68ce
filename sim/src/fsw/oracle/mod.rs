//! What was promised to the guests, and whether it holds.
//!
//! `names` knows the one tree there must be, `data` the sets of bytes there may be. Here is what joins them: which host had promised
//! what (by fsync and sync), and what is known to be left of a host that is gone: the batches of its journal that replay found. That
//! number comes from the replay itself; if it kept less than what was promised, or something that is not so, the rest of the oracle
//! does not come out. Not here: asking (the guests do).

pub(crate) mod data;
pub(crate) mod names;

use crate::check::Who;
use data::{Change, Data, File};
use luna_format::Ino;
use names::{Got, Names, Op};
use std::collections::BTreeMap;

/// See the module's text.
pub(crate) struct Oracle {
    pub(crate) names: Names,
    pub(crate) data: Data,
    /// The newest batch that each host promised.
    promised: BTreeMap<Who, u64>,
    /// The newest batch of each host that touched an inode.
    touched: BTreeMap<(Who, Ino), u64>,
    /// What replay found of a host, before it was told to be recovered.
    found: BTreeMap<Who, u64>,
    /// Open handles.
    opens: BTreeMap<(Who, File), u32>,
    /// Operations heard.
    pub(crate) heard: u64,
    /// Operations lost with their hosts.
    pub(crate) lost: u64,
}

impl Oracle {
    pub(crate) fn new(root: Ino) -> Self {
        Self {
            names: Names::new(root),
            data: Data::default(),
            promised: BTreeMap::new(),
            touched: BTreeMap::new(),
            found: BTreeMap::new(),
            opens: BTreeMap::new(),
            heard: 0,
            lost: 0,
        }
    }

    /// A host did something to names.
    pub(crate) fn name(&mut self, who: Who, seq: u64, op: Op, got: Got) -> Result<(), String> {
        self.heard += 1;
        let number = match &op {
            Op::Chmod(i, _) | Op::SetX(i, ..) | Op::Link(i, ..) => Some(*i),
            Op::Create(..) | Op::Mkdir(..) => {
                if let Got::Ino(i, _) = got {
                    Some(i)
                } else {
                    None
                }
            }
            _ => None,
        };
        if let Some(i) = number.filter(|_| !matches!(got, Got::Errno(_))) {
            self.touched.insert((who, i), seq);
        }
        let opens = &self.opens;
        self.names.heard(who, seq, op, got, &|ino| opens.keys().any(|(_, f)| f.0 == ino))
    }

    /// The file behind a handle that was just opened.
    pub(crate) fn opened(&mut self, who: Who, ino: Ino) -> Option<File> {
        let file = (ino, self.names.last_generation(ino)?);
        *self.opens.entry((who, file)).or_default() += 1;
        Some(file)
    }

    pub(crate) fn closed(&mut self, who: Who, file: File) {
        if let Some(n) = self.opens.get_mut(&(who, file)) {
            *n -= 1;
            if *n == 0 {
                self.opens.remove(&(who, file));
            }
        }
    }

    pub(crate) fn begin(&mut self, id: u64, who: Who, file: File, change: Change) {
        self.heard += 1;
        self.data.begin(id, who, file, change);
    }

    /// fsync was answered.
    pub(crate) fn synced(&mut self, who: Who, file: File, start: u64) {
        self.data.synced(who, Some(file), start);
        if let Some(seq) = self.touched.get(&(who, file.0)).copied() {
            self.promise(who, seq);
        }
    }

    /// sync was answered; everything up to this batch.
    pub(crate) fn synced_all(&mut self, who: Who, seq: u64, start: u64) {
        self.data.synced(who, None, start);
        self.promise(who, seq);
    }

    fn promise(&mut self, who: Who, seq: u64) {
        let p = self.promised.entry(who).or_default();
        *p = (*p).max(seq);
    }

    /// A replay read this host's journal and found batches up to `last`. A second replay must find the same.
    pub(crate) fn found(&mut self, who: Who, last: u64) -> Result<(), String> {
        let before = *self.found.entry(who).or_insert(last);
        if before == last { Ok(()) } else { Err(format!("journal: of {who:?} batches up to {before} were found, now {last}")) }
    }

    /// It is recovered.
    pub(crate) fn recovered(&mut self, who: Who) -> Result<(), String> {
        // no replay found a dirty journal: it never had one
        let kept = self.found.get(&who).copied().unwrap_or(u64::MAX);
        let promised = self.promised.get(&who).copied().unwrap_or(0);
        if kept < promised {
            return Err(format!("journal: {who:?} had promised batch {promised}; replay found only {kept} (I5)"));
        }
        self.over(who, kept)
    }

    /// It left in order: everything is there.
    pub(crate) fn left(&mut self, who: Who) -> Result<(), String> {
        self.over(who, u64::MAX)
    }

    fn over(&mut self, who: Who, kept: u64) -> Result<(), String> {
        self.gone(who);
        self.lost += self.names.forget(who, kept)? as u64;
        self.data.over(who, kept);
        Ok(())
    }

    /// Its process is gone: its handles are.
    pub(crate) fn gone(&mut self, who: Who) {
        self.opens.retain(|(w, _), _| *w != who);
    }
}
