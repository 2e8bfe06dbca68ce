//! Locks of files and byte ranges across hosts: conflicts, upgrades, waiting, and what a closing or dying owner leaves.

use anyhow::ensure;
use luna_tests::{
    Cluster, Result, io,
    posix::{Mode, file_lock, file_lock_wait, flock, process_lock},
    wait_until,
};
use rustix::fs::FlockOperation;
use std::{
    io::Read,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const HAMMER: &str = env!("CARGO_BIN_EXE_luna-hammer");
/// How long the kernel may take to tell that an open file is gone.
const LIMIT: Duration = Duration::from_secs(10);

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
    wait_until("the range of a closed file", LIMIT, || matches!(file_lock(&b, Mode::Exclusive, (4, 1)), Ok(true)))?;
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
fn whole_file_locks() -> Result {
    let c = Cluster::new("flock")?;
    let (a, b) = (io::buffered(&c.path(0, "f"))?, io::buffered(&c.path(1, "f"))?);
    ensure!(flock(&a, FlockOperation::NonBlockingLockShared)?, "shared on one host");
    ensure!(flock(&b, FlockOperation::NonBlockingLockShared)?, "shared on another");
    ensure!(!flock(&b, FlockOperation::NonBlockingLockExclusive)?, "exclusive beside a shared one");
    ensure!(flock(&a, FlockOperation::NonBlockingUnlock)?, "unlock");
    ensure!(flock(&b, FlockOperation::NonBlockingLockExclusive)?, "exclusive when alone");
    ensure!(!flock(&a, FlockOperation::NonBlockingLockShared)?, "shared beside an exclusive one");
    // a duplicate is the same open file: the lock stays until the last one is closed
    let twin = b.try_clone()?;
    drop(b);
    ensure!(!flock(&a, FlockOperation::NonBlockingLockShared)?, "closing one of two descriptors let go");
    drop(twin);
    wait_until("closing lets go", LIMIT, || matches!(flock(&a, FlockOperation::NonBlockingLockExclusive), Ok(true)))?;
    // flock(2) and fcntl(2) share one space of ranges here (docs/semantics.md); when this fails, the text is to be changed
    let b = io::buffered(&c.path(1, "f"))?;
    ensure!(!process_lock(&b, Mode::Exclusive, (3, 1))?, "a range lock beside a whole-file lock of another host");
    drop((a, b));
    c.finish()
}

#[test]
fn process_locks() -> Result {
    let c = Cluster::new("process")?;
    let (a, b) = (io::buffered(&c.path(0, "f"))?, io::buffered(&c.path(1, "f"))?);
    ensure!(process_lock(&a, Mode::Exclusive, (0, 10))?, "the first lock");
    // two mounts are two inodes to the kernel, so this process conflicts with itself here, as two processes would
    ensure!(!process_lock(&b, Mode::Shared, (3, 1))?, "a process's lock is not seen on another host");
    ensure!(process_lock(&b, Mode::Exclusive, (10, 5))?, "a range that nobody has");
    ensure!(process_lock(&a, Mode::Unlock, (0, 5))?, "unlock a part");
    ensure!(process_lock(&b, Mode::Shared, (3, 1))?, "the part that was let go");
    ensure!(!process_lock(&b, Mode::Shared, (5, 1))?, "the part that was kept");
    // a process that closes any descriptor of a file loses its locks on it: POSIX
    drop(io::buffered(&c.path(0, "f"))?);
    ensure!(process_lock(&b, Mode::Exclusive, (5, 5))?, "another descriptor of the file was closed");
    // locked again before the kernel tells the end of the handle that is closed now: that end must not let go
    for round in 0..50 {
        let again = io::buffered(&c.path(0, "f"))?;
        ensure!(process_lock(&again, Mode::Exclusive, (100, 1))?, "round {round}: the lock");
        drop(again);
        ensure!(process_lock(&a, Mode::Exclusive, (100, 1))?, "round {round}: the lock again, through an older handle");
        ensure!(!process_lock(&b, Mode::Shared, (100, 1))?, "round {round}: closing another handle let go");
    }
    ensure!(!process_lock(&b, Mode::Shared, (100, 1))?, "the last round's lock is gone");
    drop(a);
    wait_until("closing lets go", LIMIT, || matches!(process_lock(&b, Mode::Shared, (100, 1)), Ok(true)))?;
    drop(b);
    c.finish()
}

#[test]
fn a_killed_owner_lets_go() -> Result {
    let c = Cluster::new("killed")?;
    let (path, b) = (c.path(0, "f"), io::buffered(&c.path(1, "f"))?);
    let free = || -> Result<bool> {
        let got = flock(&b, FlockOperation::NonBlockingLockExclusive)?;
        flock(&b, FlockOperation::NonBlockingUnlock)?;
        Ok(got)
    };
    for kind in ["flock", "process", "file"] {
        let mut owner = Command::new(HAMMER).args(["hold", kind]).arg(&path).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut said = [0; 5];
        let heard = owner.stdout.take().map(|mut out| out.read_exact(&mut said));
        let locked = !free()?;
        // SIGKILL
        owner.kill()?;
        owner.wait()?;
        ensure!(matches!(heard, Some(Ok(()))) && &said == b"held\n", "{kind}: the owner has no lock");
        ensure!(locked, "{kind}: another host does not see the lock");
        wait_until(&format!("{kind}: the lock of a killed process"), LIMIT, || matches!(free(), Ok(true)))?;
    }
    drop(b);
    c.finish()
}
