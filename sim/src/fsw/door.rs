//! One host's way to the LUN: asks the gate, takes time now and then, and is where a host dies in the middle of something.
//!
//! The rules are those of `luna_lun`'s gate: nothing is handed over without a lease, and what is to be durable is answered only
//! under a lease that still holds afterwards (R10). Most requests take no time at all; a slow one suspends the stack, and its write is
//! on its way meanwhile. The k-th request from now can be the host's last ([`Door::die_in`]): that write stays on its way.
//! Not here: what becomes of it (`medium`), when it lands (the world).

use super::machine::{Pause, pause};
use super::medium::Shared;
use crate::check::Who;
use fastrand::Rng;
use luna_lun::{Disk, Durability, Geometry, LunError, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// See the module's text.
pub(crate) struct Door {
    medium: Shared,
    size_bytes: u64,
    clock: Arc<AtomicU64>,
    /// Host and life.
    from: (usize, u64),
    /// The name under which requests go, once there is one.
    pub(crate) who: Mutex<Option<Who>>,
    /// Until when this host may act; no member has no limit.
    pub(crate) until: AtomicU64,
    /// No path to the LUN until then.
    pub(crate) away: AtomicU64,
    /// For good.
    pub(crate) shut: AtomicBool,
    /// Requests until the host dies; a huge number: it does not.
    pub(crate) die_in: AtomicU64,
    /// Slow requests in a hundred, and how slow at the most.
    pub(crate) slow: (u8, u64),
    /// Rules taken away.
    pub(crate) broken: Option<crate::Broken>,
    rng: Mutex<Rng>,
    /// Requests so far.
    pub(crate) count: AtomicU64,
}

impl Door {
    pub(crate) fn new(medium: Shared, size_bytes: u64, clock: Arc<AtomicU64>, from: (usize, u64), seed: u64, slow: (u8, u64)) -> Self {
        Self {
            medium,
            size_bytes,
            clock,
            from,
            who: Mutex::new(None),
            until: AtomicU64::new(0),
            away: AtomicU64::new(0),
            shut: AtomicBool::new(false),
            die_in: AtomicU64::new(u64::MAX),
            slow,
            broken: None,
            rng: Mutex::new(Rng::with_seed(seed)),
            count: AtomicU64::new(0),
        }
    }

    fn gone() -> LunError {
        LunError::Gone("this host was shut out of the volume".into())
    }

    /// Waits until this host may act.
    fn pass(&self) -> Result<()> {
        loop {
            if self.shut.load(Ordering::Relaxed) {
                return Err(Self::gone());
            }
            let now = self.clock.load(Ordering::Relaxed);
            let lease = self.who.lock().is_none() || self.until.load(Ordering::Relaxed) > now;
            let open = lease || self.broken == Some(crate::Broken::WritesThroughAShutGate);
            if open && self.away.load(Ordering::Relaxed) <= now {
                return Ok(());
            }
            pause(Pause::Gate);
        }
    }

    /// Counts a request and says whether it is the last.
    fn is_last(&self) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed);
        let left = self.die_in.load(Ordering::Relaxed);
        if left != u64::MAX {
            self.die_in.store(left.saturating_sub(1), Ordering::Relaxed);
        }
        left == 0
    }

    fn delay(&self) -> Option<u64> {
        let mut rng = self.rng.lock();
        if rng.u8(0..100) >= self.slow.0 {
            return None;
        }
        Some(if rng.u8(0..20) == 0 { rng.u64(1..self.slow.1) } else { rng.u64(1..5) })
    }

    /// Something that only takes time.
    fn stay(&self) {
        if self.is_last() {
            pause(Pause::Die);
        } else if let Some(ms) = self.delay() {
            pause(Pause::Lun(ms, None));
        }
    }

    fn write(&self, bytes: Vec<u8>, offset: u64, forced: bool) -> Result<()> {
        self.pass()?;
        let forced = forced && self.broken != Some(crate::Broken::AnswersBeforeDurable);
        let who = *self.who.lock();
        if self.is_last() {
            self.medium.lock().fly(who, self.from, offset, bytes, forced);
            pause(Pause::Die);
            return Err(Self::gone());
        }
        let landed = match self.delay() {
            None => self.medium.lock().write(who, offset, &bytes, forced),
            Some(ms) => {
                let id = self.medium.lock().fly(who, self.from, offset, bytes, forced);
                pause(Pause::Lun(ms, Some(id)));
                !self.medium.lock().refuses(who)
            }
        };
        if !landed {
            Err(Self::gone())
        } else if forced {
            self.pass()
        } else {
            Ok(())
        }
    }
}

impl Disk for Door {
    fn geometry(&self) -> Geometry {
        Geometry::able(self.size_bytes)
    }

    fn describe(&self) -> String {
        format!("simulated LUN at host {}", self.from.0)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.pass()?;
        self.stay();
        let m = self.medium.lock();
        if m.refuses(*self.who.lock()) {
            return Err(Self::gone());
        }
        m.read(buf, offset);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, durability: Durability) -> Result<()> {
        self.write(buf.to_vec(), offset, durability == Durability::Forced)
    }

    fn flush(&self) -> Result<()> {
        self.pass()?;
        if self.medium.lock().refuses(*self.who.lock()) {
            return Err(Self::gone());
        }
        if self.broken != Some(crate::Broken::AnswersBeforeDurable) {
            self.medium.lock().flush();
        }
        self.stay();
        self.pass()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.pass()?;
        self.stay();
        self.pass()?;
        if self.medium.lock().clear(*self.who.lock(), offset, len) { Ok(()) } else { Err(Self::gone()) }
    }
}
