//! Locks of files and byte ranges across hosts: conflicts, upgrades, waiting, and what a closing or dying owner leaves.

use anyhow::ensure;
use luna_tests::{
    Cluster, Result, io,
    posix::{Mode, file_lock, file_lock_wait, flock, process_lock},
    wait_until,
};
use rustix::fs::FlockOperation;
use std::time::{Duration, Instant};

#[test]
fn ranges_conflict_across_hosts() -> Result {
    let c = Cluster::new("range")?;
    let f = [0, 1, 2].map(|n| io::buffered(&c.path(n, "f")));
    let [a, b, d] = f;
    let (a, b, d) = (a?, b?, d?);
    // who, mode, range, granted
    let table = [
        (&a, Mode::Exclusive, (0, 10), true),
        (&b, Mode::Exclusive, (5, 10), false),
        (&b, Mode::Shared, (9, 1), false),
        (&b, Mode::Exclusive, (10, 10), true),
        (&d, Mode::Shared, (0, 0), false),
        (&d, Mode::Shared, (20, 0), true),
        (&a, Mode::Shared, (30, 5), true),
        (&b, Mode::Exclusive, (1 << 40, 1), false),
        // downgrade, and then readers may share
        (&a, Mode::Shared, (0, 10), true),
        (&d, Mode::Shared, (0, 10), true),
        (&a, Mode::Exclusive, (0, 10), false),
        // a hole in the middle of a range
        (&d, Mode::Unlock, (4, 2), true),
        (&a, Mode::Exclusive, (4, 2), true),
        (&b, Mode::Shared, (4, 1), false),
        (&b, Mode::Shared, (6, 2), true),
    ];
    for (n, (file, mode, range, granted)) in table.into_iter().enumerate() {
        let got = file_lock(file, mode, range)?;
        ensure!(got == granted, "row {n}: {mode:?} of {range:?} was {}", if got { "granted" } else { "refused" });
    }
    // closing lets go
    drop(a);
    wait_until("the range of a closed file", Duration::from_secs(10), || matches!(file_lock(&b, Mode::Exclusive, (4, 1)), Ok(true)))?;
    drop((b, d));
    c.finish()
}

#[test]
fn waiting_ends_when_the_other_host_lets_go() -> Result {
    let c = Cluster::new("wait")?;
    let (a, b) = (io::buffered(&c.path(0, "f"))?, io::buffered(&c.path(1, "f"))?);
    ensure!(file_lock(&a, Mode::Exclusive, (0, 0))?, "the first lock");
    let begin = Instant::now();
    let waited = std::thread::scope(|scope| -> Result<Duration> {
        let waiter = scope.spawn(|| file_lock_wait(&b, Mode::Exclusive, (100, 1)).map(|()| begin.elapsed()));
        std::thread::sleep(Duration::from_millis(400));
        ensure!(!waiter.is_finished(), "it did not wait");
        file_lock(&a, Mode::Unlock, (0, 0))?;
        Ok(waiter.join().map_err(|_| anyhow::anyhow!("the waiter panicked"))??)
    })?;
    ensure!(waited >= Duration::from_millis(400), "granted before it was free");
    drop((a, b));
    c.finish()
}

#[test]
fn whole_file_and_process_locks() -> Result {
    let c = Cluster::new("flock")?;
    let (a, b) = (io::buffered(&c.path(0, "f"))?, io::buffered(&c.path(1, "f"))?);
    ensure!(flock(&a, FlockOperation::NonBlockingLockShared)?, "shared on one host");
    ensure!(flock(&b, FlockOperation::NonBlockingLockShared)?, "shared on another");
    ensure!(!flock(&b, FlockOperation::NonBlockingLockExclusive)?, "exclusive beside a shared one");
    ensure!(flock(&a, FlockOperation::NonBlockingUnlock)?, "unlock");
    ensure!(flock(&b, FlockOperation::NonBlockingLockExclusive)?, "exclusive when alone");
    // flock and fcntl are two worlds, as on a local file system
    ensure!(process_lock(&a, Mode::Exclusive, (0, 0))?, "a range lock beside a whole-file lock");
    // two mounts are two inodes to the kernel, so this process conflicts with itself here, as two processes would
    ensure!(!process_lock(&b, Mode::Shared, (3, 1))?, "a process's range lock is not seen on another host");
    drop(a);
    wait_until("closing lets go", Duration::from_secs(10), || matches!(process_lock(&b, Mode::Shared, (3, 1)), Ok(true)))?;
    drop(b);
    c.finish()
}

#[test]
fn a_killed_owner_lets_go() -> Result {
    let c = Cluster::new("killed")?;
    let path = c.path(0, "f");
    let b = io::buffered(&c.path(1, "f"))?;
    let mut owner = std::process::Command::new("flock").arg(&path).args(["sleep", "60"]).spawn()?;
    wait_until("the owner's lock", Duration::from_secs(10), || {
        matches!(flock(&b, FlockOperation::NonBlockingLockExclusive), Ok(false))
            || flock(&b, FlockOperation::NonBlockingUnlock).is_err()
            || std::fs::metadata(&path).is_err()
    })?;
    // flock(1) starts sleep, which inherits the open file: both must go
    let pid = owner.id().to_string();
    let _ = luna_tests::run("pkill", &["-P", &pid]);
    owner.kill()?;
    owner.wait()?;
    wait_until("the lock of a killed process", Duration::from_secs(10), || {
        matches!(flock(&b, FlockOperation::NonBlockingLockExclusive), Ok(true))
    })?;
    drop(b);
    c.finish()
}
