//! Small files that come, change names and go, in a few directories, with a model of what must be there.
//!
//! Bytes are synced before a file gets its name, so that names carry all that can be lost. A crash takes the youngest changes of names along, in
//! their order: what is found must be the model as it was after some number of the changes since the last sync that returned.
//!
//! Invariant: a change is among `states` before it is tried. Not here: large files.

use super::worker::{Done, Job, Tally, bad};
use crate::io::fill;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

const DIRS: usize = 4;
const FILES: usize = 200;
const LARGEST: usize = 20_000;

/// Names and the seeds of their bytes.
type Names = BTreeMap<String, u64>;

/// See the module's text.
pub(super) struct Churn {
    id: u64,
    rng: fastrand::Rng,
    dir: PathBuf,
    next: u64,
    /// What was synced, and after each change since; the last is how it is now.
    states: Vec<Names>,
    tally: Tally,
}

fn content(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 8 + (seed as usize * 7919) % LARGEST];
    fill(&mut bytes, seed);
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes
}

impl Churn {
    /// Number `id`; its work follows from `seed`.
    pub(super) fn new(id: u64, seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self { id, rng, dir: PathBuf::new(), next: 1, states: vec![Names::new()], tally: Tally::default() }
    }

    fn now(&self) -> Names {
        self.states.last().cloned().unwrap_or_default()
    }

    /// Tries a change of names: `model` is how it is when it has succeeded.
    fn change(&mut self, model: Names, call: impl FnOnce(&Path) -> io::Result<()>) -> Done {
        self.states.push(model);
        call(&self.dir)?;
        self.tally.ops += 1;
        Ok(())
    }

    fn pick(&mut self, names: &Names) -> Option<String> {
        let n = self.rng.usize(..names.len().max(1));
        names.keys().nth(n).cloned()
    }

    fn new_name(&mut self) -> String {
        self.next += 1;
        format!("d{}/f{}", self.rng.usize(..DIRS), self.next)
    }

    fn create(&mut self) -> Done {
        let mut names = self.now();
        // onto one that is there, sometimes
        let over = if self.rng.u32(..4) == 0 { self.pick(&names) } else { None };
        let name = over.unwrap_or_else(|| self.new_name());
        let (seed, work) = (self.next * 64 + self.id, self.dir.join(format!("tmp-{}", self.next)));
        self.next += 1;
        let mut file = File::create(&work)?;
        file.write_all(&content(seed))?;
        file.sync_all()?;
        names.insert(name.clone(), seed);
        self.change(names, |dir| fs::rename(&work, dir.join(name)))
    }

    fn rename(&mut self) -> Done {
        let mut names = self.now();
        let Some(from) = self.pick(&names) else { return Ok(()) };
        let to = if self.rng.bool() { self.pick(&names).unwrap_or_default() } else { self.new_name() };
        if let Some(seed) = names.remove(&from) {
            names.insert(to.clone(), seed);
        }
        self.change(names, |dir| fs::rename(dir.join(from), dir.join(to)))
    }

    fn remove(&mut self) -> Done {
        let mut names = self.now();
        let Some(name) = self.pick(&names) else { return Ok(()) };
        names.remove(&name);
        self.change(names, |dir| fs::remove_file(dir.join(name)))
    }

    fn read(&mut self) -> Done {
        let names = self.now();
        let Some(name) = self.pick(&names) else { return Ok(()) };
        let got = self.seed_of(&name)?;
        if names.get(&name) != Some(&got) {
            return bad(format!("churn {}: {name} has the bytes of {got}, not of {:?}", self.id, names.get(&name)));
        }
        self.tally.ops += 1;
        Ok(())
    }

    /// Whose bytes a file has; they must be whole.
    fn seed_of(&mut self, name: &str) -> Done<u64> {
        let got = fs::read(self.dir.join(name))?;
        let seed = got.get(..8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
        if got != content(seed) {
            return bad(format!("churn {}: {name} has {} bytes that are not whole", self.id, got.len()));
        }
        self.tally.verified += got.len() as u64;
        Ok(seed)
    }

    /// Everything that is there.
    fn look(&mut self) -> Done<Names> {
        let mut found = Names::new();
        for d in 0..DIRS {
            for entry in fs::read_dir(self.dir.join(format!("d{d}")))? {
                let name = format!("d{d}/{}", entry?.file_name().to_string_lossy());
                let seed = self.seed_of(&name)?;
                found.insert(name, seed);
            }
        }
        Ok(found)
    }

    /// How the nearest state differs, in a few words.
    fn difference(&self, found: &Names) -> String {
        let differs =
            |s: &Names| s.iter().filter(|(k, v)| found.get(*k) != Some(v)).count() + found.keys().filter(|k| !s.contains_key(*k)).count();
        let Some(near) = self.states.iter().min_by_key(|s| differs(s)) else { return String::new() };
        let missing: Vec<_> = near.iter().filter(|(k, v)| found.get(*k) != Some(v)).take(5).collect();
        let foreign: Vec<_> = found.iter().filter(|(k, v)| near.get(*k) != Some(v)).take(5).collect();
        format!("of {} states the nearest lacks {foreign:?} and has {missing:?}", self.states.len())
    }
}

impl Job for Churn {
    fn arrive(&mut self, dir: &Path, crashed: bool) -> Done {
        self.dir = dir.join(format!("churn-{}", self.id));
        for d in 0..DIRS {
            fs::create_dir_all(self.dir.join(format!("d{d}")))?;
        }
        let found = self.look()?;
        let possible = if crashed { &self.states[..] } else { &self.states[self.states.len() - 1..] };
        if !possible.contains(&found) {
            let after = if crashed { "after a crash" } else { "without a crash" };
            return bad(format!("churn {}: what is there {after} was never so: {}", self.id, self.difference(&found)));
        }
        if crashed {
            for entry in fs::read_dir(&self.dir)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with("tmp-") {
                    fs::remove_file(entry.path())?;
                }
            }
            self.states.push(found);
        }
        self.sync()
    }

    fn step(&mut self) -> Done {
        for _ in 0..self.rng.u32(1..8) {
            let full = self.states.last().map_or(0, BTreeMap::len);
            match self.rng.usize(..10) {
                0..4 if full < FILES => self.create()?,
                0..4 | 8 => self.remove()?,
                4..6 => self.rename()?,
                _ => self.read()?,
            }
        }
        if self.rng.u32(..200) == 0 {
            let found = self.look()?;
            if found != self.now() {
                return bad(format!("churn {}: a listing is wrong: {}", self.id, self.difference(&found)));
            }
        }
        self.sync()
    }

    fn sync(&mut self) -> Done {
        File::open(&self.dir)?.sync_all()?;
        for d in 0..DIRS {
            File::open(self.dir.join(format!("d{d}")))?.sync_all()?;
        }
        self.states = vec![self.now()];
        Ok(())
    }

    fn close(&mut self) {}

    fn tally(&self) -> Tally {
        self.tally
    }
}
