//! `luna umount`: unmounts and waits until this host has left the cluster.
//!
//! `umount DIR` works too, but returns as soon as the kernel has let go; this waits for the daemon to write back, leave and
//! end, so that the next `luna mkfs` or `luna fsck` finds a clean volume.

use crate::{cli::UmountArgs, control, mounts};
use anyhow::{Context, Result, bail, ensure};
use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};
use std::time::Duration;

/// How long a host may take to leave.
const LEAVE: Duration = Duration::from_secs(60);

/// Runs the command.
pub fn run(args: &UmountArgs) -> Result<()> {
    let shown = args.dir.display();
    let Some(mount) = mounts::at(&args.dir)? else { bail!("{shown} is not mounted") };
    ensure!(mount.is_luna(), "{shown} is a {} mount, not Luna's; use umount", mount.kind);
    // before unmounting: afterwards nobody knows who it was
    let daemon = control::daemon(&mount.dir);
    let flags = if args.lazy { UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
    match unmount(&mount.dir, flags) {
        Ok(()) => {}
        Err(Errno::BUSY) => bail!("{shown} is in use; see who by 'fuser -vm {shown}', or detach it with --lazy"),
        Err(Errno::PERM) => return unprivileged(&mount.dir),
        Err(e) => return Err(e).with_context(|| format!("cannot unmount {shown}")),
    }
    match daemon {
        Some(daemon) if !args.lazy => {
            ensure!(daemon.wait(LEAVE)?, "{shown} is unmounted, but its daemon (process {}) has not left the cluster yet", daemon.pid())
        }
        _ => {}
    }
    Ok(())
}

/// Without privileges only FUSE's own helper may unmount.
fn unprivileged(dir: &std::path::Path) -> Result<()> {
    let status = std::process::Command::new("fusermount3").arg("-u").arg("--").arg(dir).status();
    let status = status.context("may not unmount, and fusermount3 cannot be run; try as root")?;
    ensure!(status.success(), "fusermount3 could not unmount {}", dir.display());
    Ok(())
}
