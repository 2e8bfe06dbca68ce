//! The classic FUSE door: mounts the file system and translates requests. Everything of `fuser` stays in here.
//!
//! Nothing is remembered by the kernel longer than our locks allow: names are not remembered (each look comes to us and is
//! answered from cached locks), attributes and pages live under a lock and are forgotten before it is given back. `nosuid` and
//! `nodev` unless asked otherwise (T8), permissions always checked by the kernel.
//!
//! Invariant: a thread that reads requests never waits for another host. Not here: what requests mean.

mod convert;
mod door;
mod locks;
mod remember;

use crate::system::Fs;
use fuser::{BackgroundSession, Config, INodeNo, MountOption, Session, SessionACL};
use parking_lot::Mutex;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOpts {
    /// Set-id bits are honoured.
    pub suid: bool,
    /// Device nodes are honoured.
    pub dev: bool,
    /// Programs may be run.
    pub exec: bool,
    /// No change is let through.
    pub read_only: bool,
    /// Others than the mounting user may use it (permissions apply).
    pub allow_other: bool,
    /// Threads that read requests. One batches best; what may block goes elsewhere anyway.
    pub threads: usize,
    /// What `mount` shows as the source.
    pub source: String,
}

impl Default for MountOpts {
    fn default() -> Self {
        Self { suid: false, dev: false, exec: true, read_only: false, allow_other: true, threads: 1, source: "luna".to_owned() }
    }
}

/// A mounted file system; unmounted at the latest when dropped.
#[derive(Debug)]
pub struct Mounted {
    dir: PathBuf,
    session: Mutex<Option<BackgroundSession>>,
}

/// Mounts `fs` on `dir`. Call `fs.shutdown()` after the session has ended.
///
/// # Errors
/// What mount(2) or the kernel's handshake says.
pub fn mount(fs: &Arc<Fs>, dir: &Path, opts: &MountOpts) -> io::Result<Mounted> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(opts.source.clone()),
        MountOption::Subtype("luna".to_owned()),
        MountOption::DefaultPermissions,
        if opts.suid { MountOption::Suid } else { MountOption::NoSuid },
        if opts.dev { MountOption::Dev } else { MountOption::NoDev },
        if opts.exec { MountOption::Exec } else { MountOption::NoExec },
        if opts.read_only { MountOption::RO } else { MountOption::RW },
    ];
    config.acl = if opts.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(opts.threads.max(1));
    let remember = Arc::<remember::Remember>::default();
    let session = Session::new(door::Door::new(fs, &remember), dir, &config)?;
    // set once; a second mount of the same `Fs` keeps the first one's
    let _ = fs.door.set(session.as_fd().try_clone_to_owned()?);
    let notifier = session.notifier();
    let root = fs.volume.sb.root_ino;
    let tell = move |ino, offset, len| {
        remember.forget(ino);
        notifier.inval_inode(INodeNo(convert::outside(ino, root)), offset as i64, len as i64)
    };
    let _ = fs.invalidate.set(Box::new(tell));
    Ok(Mounted { dir: dir.to_path_buf(), session: Mutex::new(Some(session.spawn()?)) })
}

impl Mounted {
    /// Waits until somebody unmounts it.
    ///
    /// # Errors
    /// What ended the session, if it was not an unmount.
    pub fn join(&self) -> io::Result<()> {
        let session = self.session.lock().take();
        session.map_or(Ok(()), BackgroundSession::join)
    }

    /// Unmounts. `lazy`: at once for names, when the last user is gone for the rest.
    ///
    /// # Errors
    /// EBUSY and whatever else umount2(2) says.
    pub fn unmount(&self, lazy: bool) -> io::Result<()> {
        let flags = if lazy { rustix::mount::UnmountFlags::DETACH } else { rustix::mount::UnmountFlags::empty() };
        Ok(rustix::mount::unmount(&self.dir, flags)?)
    }
}
