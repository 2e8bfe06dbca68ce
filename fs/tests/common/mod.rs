//! A volume made, wired and mounted for a test; unmounted and checked when dropped.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod cluster;

use luna_dlm::{LockCache, PosixClient};
use luna_fs::fuse::{self, MountOpts};
use luna_fs::mkfs::{self, MkfsOptions};
use luna_fs::orphan::Reaper;
use luna_fs::{Fs, Parts, Volume};
use luna_journal::Journal;
use luna_lun::memory::MemoryDisk;
use luna_lun::{Disk, Lun};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A mounted volume.
pub(crate) struct Mounted {
    /// Where.
    pub(crate) dir: PathBuf,
    /// What.
    pub(crate) fs: Arc<Fs>,
    lun: Lun,
    reaper: Arc<Reaper>,
    session: Option<fuse::Mounted>,
    incarnation: u64,
    backing: Option<PathBuf>,
}

/// Counters that must not move.
pub(crate) struct Counts {
    /// Operation bodies run.
    pub(crate) runs: u64,
    /// Journal transactions.
    pub(crate) transactions: u64,
    /// Requests to the lock manager.
    pub(crate) lock_requests: u64,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a shell script; its output. Fails the test when it fails.
pub(crate) fn sh(script: &str) -> String {
    let out = Command::new("timeout").args(["120", "bash", "-c", script]).output().expect("bash");
    assert!(
        out.status.success(),
        "{script}\n{}\n{}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn format(lun: &Lun) {
    let options = MkfsOptions { label: "test".into(), slots: 4, volume: [7; 16], hash_key: [3; 16], link_secret: [4; 32], now_ns: 1 << 60 };
    mkfs::run(&*lun.disk, &options, &mut |_, _| {}).expect("mkfs");
}

fn usable() -> bool {
    let ok = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok() && rustix::process::geteuid().is_root();
    if !ok {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    ok
}

impl Mounted {
    /// A fresh volume in memory.
    pub(crate) fn memory(bytes: u64) -> Option<Self> {
        usable().then(|| {
            let disk = Arc::new(MemoryDisk::new(bytes));
            Self::fresh(Lun { disk: disk.clone(), queue: disk }, None)
        })
    }

    /// A fresh volume in a file.
    pub(crate) fn file(bytes: u64) -> Option<Self> {
        usable().then(|| {
            let path = std::env::temp_dir().join(format!("luna-lun-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            std::fs::File::create(&path).and_then(|f| f.set_len(bytes)).expect("backing file");
            let spec = path.display().to_string().parse().expect("spec");
            let lun = luna_lun::open(&spec, &luna_lun::OpenOptions::default()).expect("open");
            Self::fresh(lun, Some(path))
        })
    }

    fn fresh(lun: Lun, backing: Option<PathBuf>) -> Self {
        format(&lun);
        Self::mount(lun, 0, 1, backing, LockCache::local(), PosixClient::local())
    }

    fn mount(lun: Lun, slot: u16, incarnation: u64, backing: Option<PathBuf>, locks: Arc<LockCache>, posix: Arc<PosixClient>) -> Self {
        let (id, sb) = mkfs::read_superblock(&*lun.disk).expect("superblock");
        let disk: Arc<dyn Disk> = Arc::clone(&lun.disk);
        let journal = Journal::open(Arc::clone(&disk), id, sb.journal_region(slot), slot, incarnation).expect("journal");
        let volume = Volume::new(Parts {
            sb,
            id,
            slot,
            epoch: incarnation,
            disk,
            queue: Arc::clone(&lun.queue),
            journal,
            locks: Arc::clone(&locks),
            discard: true,
        });
        let reaper = Reaper::start(Arc::clone(&volume)).expect("reaper");
        let wake = Arc::clone(&reaper);
        let fs = Fs::new(volume, posix, Arc::new(move |ino| wake.wake(ino)));
        locks.set_hooks(fs.hooks());
        let dir = std::env::temp_dir().join(format!("luna-mnt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&dir).expect("mount point");
        let session = Some(fuse::mount(&fs, &dir, &MountOpts::default()).expect("mount"));
        Self { dir, fs, lun, reaper, session, incarnation, backing }
    }

    fn end(&mut self) {
        let Some(session) = self.session.take() else { return };
        if session.unmount(false).is_err() {
            session.unmount(true).expect("lazy unmount");
        }
        session.join().expect("session");
        self.fs.shutdown().expect("shutdown");
        self.reaper.stop();
        self.fs.volume.sync_all().expect("sync");
        self.fs.volume.checkpoint().expect("checkpoint");
        self.fs.volume.journal.close().expect("clean journal");
        let _ = std::fs::remove_dir(&self.dir);
    }

    /// Unmounts, keeps the disk only, mounts again.
    pub(crate) fn again(mut self) -> Self {
        self.end();
        Self::mount(self.lun.clone(), 0, self.incarnation + 1, self.backing.take(), LockCache::local(), PosixClient::local())
    }

    /// Times the kernel's pages were emptied for another host.
    pub(crate) fn revokes(&self) -> u64 {
        self.fs.counters.revokes.load(Ordering::Relaxed)
    }

    /// Counters.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            runs: self.fs.volume.runs.load(Ordering::Relaxed),
            transactions: self.fs.volume.journal.stats().transactions,
            lock_requests: self.fs.volume.locks.counters().requests,
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(s) = self.session.take() {
                let _ = s.unmount(true);
            }
        } else {
            self.end();
        }
        if let Some(p) = &self.backing {
            let _ = std::fs::remove_file(p);
        }
    }
}

/// Page-aligned memory for O_DIRECT.
pub(crate) struct Aligned(luna_lun::AlignedBuf, usize);

impl Aligned {
    /// `len` bytes of `fill`.
    pub(crate) fn new(len: usize, fill: u8) -> Self {
        let mut b = luna_lun::AlignedBuf::new(len);
        b.bytes_mut()[..len].fill(fill);
        Self(b, len)
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0.bytes()[..self.1]
    }

    /// The bytes, writable.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0.bytes_mut()[..self.1]
    }
}
