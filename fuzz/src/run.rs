//! The short way to feed a target: the kept corpus, then mutations of it from a seed. No coverage, no special compiler.
//!
//! Invariant: the same seed is the same inputs. A panic on any thread counts, also one that a thread took to its grave. Not here: the
//! targets.

use crate::damage::{STEP, STEPS};
use crate::target::Target;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts panics on all threads from now on.
pub fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            before(info);
        }));
    });
}

/// Runs one input; whether nothing panicked, on whatever thread.
pub fn holds(t: &Target, input: &[u8]) -> bool {
    let before = PANICS.load(Ordering::SeqCst);
    let ended = std::panic::catch_unwind(|| (t.run)(input)).is_ok();
    ended && PANICS.load(Ordering::SeqCst) == before
}

/// Where a target's kept inputs are.
pub fn corpus_dir(t: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(t.name)
}

/// The kept inputs of a target, by name, and its seeds.
pub fn corpus(t: &Target) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = (t.seeds)().into_iter().enumerate().map(|(n, s)| (format!("seed {n}"), s)).collect();
    for entry in std::fs::read_dir(corpus_dir(t)).into_iter().flatten().flatten() {
        if let Ok(bytes) = std::fs::read(entry.path()) {
            all.push((entry.file_name().to_string_lossy().into_owned(), bytes));
        }
    }
    all.sort();
    all
}

/// The next input: a kept one, changed, or one made of nothing.
pub fn mutate(rng: &mut fastrand::Rng, from: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut b = match from.len() {
        0 => Vec::new(),
        n => from[rng.usize(0..n)].1.clone(),
    };
    if b.is_empty() || rng.u8(0..4) == 0 {
        b.extend((0..STEP * rng.usize(1..=STEPS / 4)).map(|_| rng.u8(..)));
    }
    for _ in 0..rng.usize(0..4) {
        let at = rng.usize(0..b.len().max(1));
        match rng.u8(0..7) {
            0 if !b.is_empty() => b[at] = rng.u8(..),
            1 if !b.is_empty() => b[at] ^= 1 << rng.u8(0..8),
            2 if !b.is_empty() => b[at] = [0, 1, 0x7f, 0x80, 0xff][rng.usize(0..5)],
            3 => b.truncate(at),
            4 => (0..STEP).for_each(|_| b.insert(at.min(b.len()), rng.u8(..))),
            5 if b.len() > at + 8 => {
                let other = rng.usize(0..b.len() - 7);
                b.copy_within(other..other + 8, at);
            }
            _ if !from.is_empty() => {
                let tail = &from[rng.usize(0..from.len())].1;
                b.truncate(at);
                b.extend_from_slice(&tail[at.min(tail.len())..]);
            }
            _ => {}
        }
    }
    b.truncate(1 << 16);
    b
}
