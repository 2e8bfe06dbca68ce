//! Progress: after the faults end, every wait for a lock ends.
//!
//! A wait also ends with its process or with the withdrawal of its host. Waits are not bounded while there are faults.

use luna_dlm::{Mode, Name};
use std::collections::BTreeMap;

struct Wait {
    host: usize,
    name: Name,
    mode: Mode,
    since: u64,
}

/// Who waits.
#[derive(Default)]
pub(crate) struct Progress {
    waits: BTreeMap<u64, Wait>,
    pub(crate) longest_ms: u64,
    /// Where they are kept: waits that ended (name, since, until).
    pub(crate) kept: Option<Vec<(Name, u64, u64)>>,
}

impl Progress {
    /// Somebody on `host` begins to wait.
    pub(crate) fn began(&mut self, id: u64, host: usize, name: Name, mode: Mode, now: u64) {
        self.waits.insert(id, Wait { host, name, mode, since: now });
    }

    /// It got the hold or a refusal.
    pub(crate) fn ended(&mut self, id: u64, now: u64) {
        if let Some(w) = self.waits.remove(&id) {
            self.longest_ms = self.longest_ms.max(now - w.since);
            if let Some(kept) = &mut self.kept {
                kept.push((w.name, w.since, now));
            }
        }
    }

    /// A host died or was shut out.
    pub(crate) fn gone(&mut self, host: usize) {
        self.waits.retain(|_, w| w.host != host);
    }

    /// Waits of one host.
    pub(crate) fn of(&self, host: usize) -> usize {
        self.waits.values().filter(|w| w.host == host).count()
    }

    /// Waits that go on: name, since when.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (Name, u64)> {
        self.waits.values().map(|w| (w.name, w.since))
    }

    /// Nobody waits.
    pub(crate) fn all_ended(&self) -> bool {
        self.waits.is_empty()
    }

    /// The waits, oldest first, for a message.
    pub(crate) fn describe(&self) -> String {
        let line = |w: &Wait| format!("host {} wants {} of {} since {} ms", w.host, w.mode, w.name, w.since);
        self.waits.values().take(6).map(line).collect::<Vec<_>>().join("; ")
    }
}
