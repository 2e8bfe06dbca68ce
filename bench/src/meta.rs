//! Metadata: create+fsync, create, stat and unlink per second, by one thread and by four, in any directory.
//!
//! Each thread works in a folder of its own, as VMs' folders are. Invariant: what a round made it has removed, and the same
//! numbers of files are used for every subject of a run.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context;

use crate::world::{self, World};

/// What is done to each file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Create, write 4 KiB, fsync, close.
    CreateSync,
    /// Create and close.
    Create,
    /// stat(2) by name.
    Stat,
    /// unlink(2).
    Unlink,
}

impl Step {
    /// How the table calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::CreateSync => "create+fsync",
            Self::Create => "create",
            Self::Stat => "stat",
            Self::Unlink => "unlink",
        }
    }

    fn once(self, path: &Path) -> std::io::Result<()> {
        match self {
            Self::CreateSync => {
                let mut file = create(path)?;
                file.write_all(&[0x5a; 4096])?;
                file.sync_all()
            }
            Self::Create => create(path).map(drop),
            Self::Stat => std::fs::metadata(path).map(drop),
            Self::Unlink => std::fs::remove_file(path),
        }
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// A figure's place in the table.
pub type Key = (usize, Step);

/// One round in `dir`: operations per second for each step with `threads` threads and `files` files in all.
pub fn round(dir: &Path, threads: usize, files: usize) -> anyhow::Result<Vec<(Key, f64)>> {
    let each = (files / threads).max(1);
    let folders: Vec<_> = (0..threads).map(|thread| dir.join(format!("bench-{threads}-{thread}"))).collect();
    for folder in &folders {
        std::fs::create_dir(folder).with_context(|| format!("{} can not be made", folder.display()))?;
    }
    let mut figures = Vec::new();
    // The files of the first step are removed untimed, so that create starts from an empty folder as well.
    for (step, name, timed) in [
        (Step::CreateSync, 's', true),
        (Step::Unlink, 's', false),
        (Step::Create, 'f', true),
        (Step::Stat, 'f', true),
        (Step::Unlink, 'f', true),
    ] {
        let begin = Instant::now();
        let results: Vec<std::io::Result<()>> = std::thread::scope(|scope| {
            let work = |folder: &'_ std::path::PathBuf| {
                let folder = folder.clone();
                scope.spawn(move || (0..each).try_for_each(|i| step.once(&folder.join(format!("{name}{i:06}")))))
            };
            let running: Vec<_> = folders.iter().map(work).collect();
            running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(std::io::Error::other("thread panicked")))).collect()
        });
        let taken = begin.elapsed().as_secs_f64();
        for result in results {
            result.with_context(|| format!("{} in {}", step.title(), dir.display()))?;
        }
        if timed {
            figures.push(((threads, step), (each * threads) as f64 / taken));
        }
    }
    for folder in &folders {
        std::fs::remove_dir(folder)?;
    }
    Ok(figures)
}

/// Makes ext4 on a loop device over a file on the same medium, and mounts it.
pub fn ext4(world: &mut World, bytes: u64) -> anyhow::Result<std::path::PathBuf> {
    let image = world.dir.join("ext4.img");
    File::create(&image)?.set_len(bytes)?;
    let dir = world.folder("ext4")?;
    // No lazy initialisation: it would run in the background during the measurement.
    world::run(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&image))?;
    world::run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&dir))?;
    world.mounted(&dir);
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_measures_four_steps_and_leaves_nothing() {
        let dir = std::env::temp_dir().join(format!("luna-bench-meta-{}", std::process::id()));
        std::fs::create_dir(&dir).expect("fresh");
        let figures = round(&dir, 2, 10).expect("plain directory");
        let steps: Vec<Step> = figures.iter().map(|((_, step), _)| *step).collect();
        assert_eq!(steps, [Step::CreateSync, Step::Create, Step::Stat, Step::Unlink]);
        assert!(figures.iter().all(|(_, rate)| *rate > 0.0));
        assert_eq!(std::fs::read_dir(&dir).expect("there").count(), 0);
        std::fs::remove_dir(&dir).expect("empty");
    }
}
