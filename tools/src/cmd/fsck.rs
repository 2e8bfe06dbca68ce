//! `luna fsck`: checks a volume that no host has mounted. Exit codes are those of fsck(8).
//!
//! Invariant: `-n` opens the LUN read-only, so it cannot write. Not here: the checks (fs crate).

use crate::cli::FsckArgs;

/// fsck(8): usage or syntax error.
pub const USAGE: u8 = 16;
/// fsck(8): operational error.
pub const OPERATIONAL: u8 = 8;

/// Runs the command; the exit code.
pub fn run(args: &FsckArgs) -> u8 {
    match check(args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("luna: {}", crate::one_line(&e));
            OPERATIONAL
        }
    }
}

fn check(args: &FsckArgs) -> anyhow::Result<u8> {
    let lun = super::open(&args.lun, args.no_write)?;
    let (_volume, _sb) = luna_fs::mkfs::read_superblock(&*lun.disk)?;
    anyhow::bail!("the checks are not connected yet")
}
