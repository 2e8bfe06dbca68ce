//! The counter that a moving machine writes, and the proof that no record was lost.
//!
//! Record `n` is one 4 KiB block at block address `n` that begins with `LUNA n` and is filled with blanks. A writer
//! announces `n` (on a serial console, or in its log) only after the record is durable. [`check`] then reads the disk and
//! demands every record from 1 to the last one announced, each in its place.
//!
//! Invariant: a gap, a foreign record or an announced record that is missing is an error that names the record.

use anyhow::{Context, Result, ensure};
use std::{fs::File, os::unix::fs::FileExt, path::Path};

/// Bytes of a record.
pub const BLOCK: usize = 4096;
/// The most records one disk takes.
pub const MAX: u64 = 65_535;
/// What each record and each announcement begins with.
pub const TAG: &str = "LUNA";

/// The bytes of record `n`.
pub fn record(n: u64) -> Vec<u8> {
    let mut block = format!("{TAG} {n}").into_bytes();
    block.resize(BLOCK, b' ');
    block
}

/// The last number announced in a console's text; 0 when there is none. A line that is still being written is not one.
pub fn last_announced(console: &str) -> Result<u64> {
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    let mut last = 0;
    for line in whole.lines() {
        // a boot loader may leave control codes before the first announcement of a line
        let Some((_, word)) = line.split_once(&format!("{TAG} ")) else { continue };
        ensure!(!word.starts_with("failed"), "the guest says: {}", line.trim());
        if let Ok(n) = word.trim().parse::<u64>() {
            last = n;
        }
    }
    Ok(last)
}

/// Every record from 1 to `announced` must be on `disk`; tells how many there are without a gap.
pub fn check(disk: &Path, announced: u64) -> Result<u64> {
    let file = File::open(disk).with_context(|| format!("cannot open {}", disk.display()))?;
    let mut block = vec![0; BLOCK];
    for n in 1..=MAX {
        let got = file.read_at(&mut block, n * BLOCK as u64).with_context(|| format!("cannot read {}", disk.display()))?;
        let good = got == BLOCK && block == record(n);
        if !good {
            let seen = String::from_utf8_lossy(&block[..32]).trim().replace('\0', "");
            ensure!(n > announced, "record {n} was announced as durable but the disk has '{seen}' there (announced up to {announced})");
            // behind the end nothing may follow: a later record would mean a gap
            for later in n + 1..(n + 256).min(MAX) {
                let got = file.read_at(&mut block, later * BLOCK as u64)?;
                ensure!(got < BLOCK || block != record(later), "record {n} is missing but record {later} is there: a gap");
            }
            return Ok(n - 1);
        }
    }
    Ok(MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, records: &[u64]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("luna-counter-{}-{name}", std::process::id()));
        let file = File::create(&path).expect("a file");
        for n in records {
            file.write_all_at(&record(*n), n * BLOCK as u64).expect("a write");
        }
        path
    }

    #[test]
    fn announcements() {
        assert_eq!(last_announced("").expect("fine"), 0);
        assert_eq!(last_announced("\x1b[2JLUNA 1\r\nLUNA 2\r\nLUNA 31").expect("fine"), 2);
        assert!(last_announced("LUNA 1\nLUNA failed 2\n").is_err());
    }

    #[test]
    fn gaps_and_losses_are_found() {
        let path = disk("whole", &[1, 2, 3, 4]);
        assert_eq!(check(&path, 3).expect("whole"), 4, "one more than announced is fine");
        assert!(check(&path, 5).is_err(), "an announced record is lost");
        let gap = disk("gap", &[1, 2, 4]);
        assert!(check(&gap, 2).is_err(), "a gap behind the announced ones");
        for p in [path, gap] {
            let _ = std::fs::remove_file(p);
        }
    }
}
