//! The gate: whether this host may use the LUN right now, asked just before each request is handed over.
//!
//! A host may write only as a member with a valid lease. Who knows that (the membership core) publishes a time until which it holds;
//! every request through [`Gate::guard`]ed doors looks at the clock first. Past that time the host is *paused*: whoever submits waits,
//! nothing is lost. A new time lets everything go on; [`Gate::shut`] ends it for good with one clear error.
//!
//! What is durable is looked at twice: a flush or a forced write is answered only if the lease holds after it as well (R10), for
//! otherwise somebody may have replayed this host's journal without it.
//!
//! Invariant: no request is handed over at or after the published time, except what a thread had in its hands between the look and the
//! system call (P of the lease arithmetic). The clock is CLOCK_BOOTTIME: it goes on while the machine sleeps.
//! Not here: who may be a member. Beats do not pass here: they are how a paused host comes back.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::{DataQueue, Disk, Durability, Geometry, Lun, LunError, ReadDone, Result, WriteDone};

/// Milliseconds of CLOCK_BOOTTIME.
pub fn boottime_ms() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    (t.tv_sec as u64) * 1000 + (t.tv_nsec as u64) / 1_000_000
}

/// Runs when the gate is open again, or shut for good.
type Later = Box<dyn FnOnce(Result<()>) + Send>;

#[derive(Default)]
struct Waiting {
    why: Option<String>,
    later: Vec<Later>,
}

/// See the module's text.
#[derive(Default)]
pub struct Gate {
    until_ms: AtomicU64,
    is_shut: AtomicBool,
    /// Times somebody found it closed.
    stops: AtomicU64,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Gate {
    /// A gate that is closed until a time is published.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Whether a request may be handed over now.
    pub fn is_open(&self) -> bool {
        boottime_ms() < self.until_ms.load(Ordering::Acquire)
    }

    /// Publishes until when this host may act; 0 closes it. Ignored once shut.
    pub fn open_until(&self, until_ms: u64) {
        let changed = self.until_ms.swap(until_ms, Ordering::AcqRel) != until_ms;
        if self.is_shut() {
            // shut meanwhile, or long before
            self.until_ms.store(0, Ordering::Release);
        } else if changed && self.is_open() {
            self.wake(&Ok(()));
        }
    }

    /// Whether it is closed for good.
    pub fn is_shut(&self) -> bool {
        self.is_shut.load(Ordering::Acquire)
    }

    /// Closes it for good: whoever waits and whoever comes gets an error with these words.
    pub fn shut(&self, why: &str) {
        self.waiting.lock().why.get_or_insert_with(|| why.to_owned());
        self.is_shut.store(true, Ordering::Release);
        self.until_ms.store(0, Ordering::Release);
        self.wake(&Err(self.error()));
    }

    /// How often somebody found it closed.
    pub fn stops(&self) -> u64 {
        self.stops.load(Ordering::Relaxed)
    }

    fn error(&self) -> LunError {
        let why = self.waiting.lock().why.clone();
        LunError::Gone(why.unwrap_or_else(|| "this host was shut out of the volume".into()))
    }

    fn wake(&self, result: &Result<()>) {
        let later = {
            let mut w = self.waiting.lock();
            self.changed.notify_all();
            std::mem::take(&mut w.later)
        };
        for run in later {
            run(match result {
                Ok(()) => Ok(()),
                Err(e) => Err(e.duplicate()),
            });
        }
    }

    /// Waits until this host may act.
    ///
    /// # Errors
    /// It never may again.
    pub fn pass(&self) -> Result<()> {
        if self.is_open() {
            return Ok(());
        }
        self.stops.fetch_add(1, Ordering::Relaxed);
        let mut w = self.waiting.lock();
        loop {
            if self.is_open() {
                return Ok(());
            }
            if self.is_shut() {
                drop(w);
                return Err(self.error());
            }
            self.changed.wait(&mut w);
        }
    }

    /// Runs `run` as soon as this host may act: now, or on the thread that publishes.
    fn when_open(&self, run: Later) {
        if self.is_open() {
            return run(Ok(()));
        }
        self.stops.fetch_add(1, Ordering::Relaxed);
        let mut w = self.waiting.lock();
        // a time published since the look would not run it
        if self.is_open() {
            drop(w);
            run(Ok(()));
        } else if self.is_shut() {
            drop(w);
            run(Err(self.error()));
        } else {
            w.later.push(run);
        }
    }

    /// The same disk behind this gate, for who does not wait: whatever comes while it is closed fails at once.
    pub fn guard_at_once(self: &Arc<Self>, inner: Arc<dyn Disk>) -> Arc<dyn Disk> {
        Arc::new(GuardedDisk { gate: Arc::clone(self), inner, waits: false })
    }

    /// The same LUN behind this gate.
    pub fn guard(self: &Arc<Self>, lun: Lun) -> Lun {
        let disk = GuardedDisk { gate: Arc::clone(self), inner: lun.disk, waits: true };
        let queue = GuardedQueue { gate: Arc::clone(self), inner: lun.queue };
        Lun { disk: Arc::new(disk), queue: Arc::new(queue) }
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("is_open", &self.is_open()).field("stops", &self.stops()).finish_non_exhaustive()
    }
}

struct GuardedDisk {
    gate: Arc<Gate>,
    inner: Arc<dyn Disk>,
    waits: bool,
}

impl GuardedDisk {
    fn pass(&self) -> Result<()> {
        if self.waits || self.gate.is_open() {
            return self.gate.pass();
        }
        Err(LunError::Gone("this host may not act any more: its claim or its lease ran out".into()))
    }
}

impl Disk for GuardedDisk {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn gone(&self) -> Option<LunError> {
        self.inner.gone()
    }

    fn is_drained(&self) -> bool {
        self.inner.is_drained()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.pass()?;
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64, durability: Durability) -> Result<()> {
        self.write_vectored_at(&[buf], offset, durability)
    }

    fn write_vectored_at(&self, bufs: &[&[u8]], offset: u64, durability: Durability) -> Result<()> {
        self.pass()?;
        self.inner.write_vectored_at(bufs, offset, durability)?;
        if durability == Durability::Forced { self.pass() } else { Ok(()) }
    }

    fn flush(&self) -> Result<()> {
        self.pass()?;
        self.inner.flush()?;
        self.pass()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.pass()?;
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.pass()?;
        self.inner.write_zeroes(offset, len)
    }
}

struct GuardedQueue {
    gate: Arc<Gate>,
    inner: Arc<dyn DataQueue>,
}

impl GuardedQueue {
    /// Answers only while the lease holds.
    fn answered(&self, done: WriteDone) -> WriteDone {
        let gate = Arc::clone(&self.gate);
        Box::new(move |result| match result {
            Ok(()) => gate.when_open(done),
            Err(error) => done(Err(error)),
        })
    }
}

impl DataQueue for GuardedQueue {
    fn read(&self, offset: u64, len: u32, done: ReadDone) {
        match self.gate.pass() {
            Ok(()) => self.inner.read(offset, len, done),
            Err(error) => done(Err(error)),
        }
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability, done: WriteDone) {
        match self.gate.pass() {
            Ok(()) if durability == Durability::Forced => self.inner.write(offset, data, durability, self.answered(done)),
            Ok(()) => self.inner.write(offset, data, durability, done),
            Err(error) => done(Err(error)),
        }
    }

    fn flush(&self, done: WriteDone) {
        match self.gate.pass() {
            Ok(()) => self.inner.flush(self.answered(done)),
            Err(error) => done(Err(error)),
        }
    }

    fn drive(&self, more: &dyn Fn() -> bool) {
        self.inner.drive(more);
    }

    fn drive_until(&self, wake: BorrowedFd<'_>) {
        self.inner.drive_until(wake);
    }

    fn kick(&self) {
        self.inner.kick();
    }

    fn is_drained(&self) -> bool {
        self.inner.is_drained()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryDisk;
    use std::time::Duration;

    fn open() -> u64 {
        boottime_ms() + 60_000
    }

    #[test]
    fn a_closed_gate_holds_requests_and_an_open_one_lets_them_go_on() {
        let gate = Gate::new();
        let lun = gate.guard(Lun::inline(Arc::new(MemoryDisk::new(1 << 20))));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| lun.disk.write_at(&[1; 4096], 0, Durability::Plain));
            std::thread::sleep(Duration::from_millis(30));
            assert!(!writer.is_finished(), "nothing is submitted without a lease");
            gate.open_until(open());
            assert!(writer.join().expect("no panic").is_ok());
        });
        let mut got = [0; 4096];
        lun.disk.read_at(&mut got, 0).expect("open");
        assert_eq!((got[0], gate.stops()), (1, 1));
    }

    #[test]
    fn a_flush_is_answered_only_under_the_lease() {
        let gate = Gate::new();
        gate.open_until(open());
        let lun = gate.guard(Lun::inline(Arc::new(MemoryDisk::new(1 << 20))));
        let queue = GuardedQueue { gate: Arc::clone(&gate), inner: Arc::clone(&lun.queue) };
        let (tx, rx) = std::sync::mpsc::channel();
        let done = queue.answered(Box::new(move |result| tx.send(result.is_ok()).expect("heard")));
        gate.open_until(0);
        done(Ok(()));
        assert!(rx.try_recv().is_err(), "the lease was lost while it was under way");
        gate.open_until(open());
        assert_eq!(rx.try_recv(), Ok(true));
    }

    #[test]
    fn shut_is_for_good_and_says_why() {
        let gate = Gate::new();
        let lun = gate.guard(Lun::inline(Arc::new(MemoryDisk::new(1 << 20))));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| lun.disk.flush());
            std::thread::sleep(Duration::from_millis(20));
            gate.shut("evicted: no beat");
            assert_eq!(writer.join().expect("no panic").expect_err("shut").to_string(), "evicted: no beat");
        });
        gate.open_until(open());
        assert!(!gate.is_open() && lun.disk.read_at(&mut [0; 4096], 0).is_err());
    }

    #[test]
    fn who_does_not_wait_fails_at_once() {
        let gate = Gate::new();
        let disk = gate.guard_at_once(Arc::new(MemoryDisk::new(1 << 20)));
        assert!(disk.write_at(&[1; 4096], 0, Durability::Plain).is_err() && disk.flush().is_err());
        gate.open_until(open());
        assert!(disk.write_at(&[1; 4096], 0, Durability::Forced).is_ok());
    }

    #[test]
    fn time_alone_closes_it() {
        let gate = Gate::new();
        gate.open_until(boottime_ms() + 20);
        assert!(gate.is_open());
        std::thread::sleep(Duration::from_millis(30));
        assert!(!gate.is_open());
    }
}
