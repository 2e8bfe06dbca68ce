//! `luna wreck`: breaks one thing on a volume, so that `fsck` can be seen to find and repair it. Kept out of the default help.
//!
//! Invariant: a volume that a host has mounted, or whose journals are not clean, is refused. Not here: how things are broken (fs crate).

use crate::cli::WreckArgs;
use crate::slots;
use anyhow::{Result, bail};
use luna_fs::check::{Code, Quick, quick};

/// Runs the command.
pub fn run(args: &WreckArgs) -> Result<()> {
    let Some(code) = Code::ALL.iter().find(|c| c.as_str() == args.code) else {
        bail!("'{}' is no code of docs/checks.md", args.code);
    };
    if !args.yes {
        bail!("this breaks the volume on {}; say so with --yes", args.lun);
    }
    let lun = super::open(&args.lun, false)?;
    let (id, sb) = luna_fs::mkfs::read_superblock(&*lun.disk)?;
    if let Some(how) = slots::in_use(&*lun.disk, id, &sb)? {
        bail!("{} is {how}; end that first", args.lun);
    }
    if let Quick::InUse(_) = quick(&*lun.disk)? {
        bail!("{}: a host was not unmounted; mount and unmount it, or repair it, first", args.lun);
    }
    let text = luna_fs::wreck::run(lun.disk, *code, args.seed)?;
    println!("{code} {}: {text}", code.line());
    Ok(())
}
