//! One NBD target as all its connections see it: how to reach it, what it was at first, and whether it is still the same.
//!
//! Every connection of an open LUN is made here. **Invariants:** a target that comes back smaller, read-only or without
//! coherence is refused, not used. Attempts to come back are bounded in time; after that the target is gone for good and
//! every request fails at once with the same words (open the LUN again to go on). If plain writes were answered and not yet
//! flushed when a connection broke, and the target can not prove that it is still the same running system (`luna serve`
//! can), all later flushes fail: the writes may have died with the target's cache, and an honest error is better.
//!
//! It does not know requests; who re-sends them asks [`Target::may_resend`] first.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::handshake::{Offer, Talk};
use crate::stream::Stream;
use crate::{Geometry, LunError, LunSpec, OpenOptions, Result};

/// First pause between two attempts; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A target and its state.
pub(crate) struct Target {
    pub(crate) spec: LunSpec,
    pub(crate) what: String,
    pub(crate) options: OpenOptions,
    pub(crate) geometry: Geometry,
    instance: Option<String>,
    gone: AtomicBool,
    gone_why: Mutex<Option<LunError>>,
    answered: AtomicU64,
    flushed: AtomicU64,
    /// When a connection broke last with requests under way, on CLOCK_BOOTTIME.
    broke_ms: AtomicU64,
    lost: AtomicBool,
}

impl Target {
    /// Connects for the first time, learns what the target is, and refuses it if it does not fit `options`.
    pub(crate) fn open(spec: &LunSpec, options: &OpenOptions) -> Result<(Self, Stream)> {
        let what = spec.to_string();
        let (stream, offer) = dial(spec, &what, options)?;
        let mut geometry = offer.geometry;
        if options.need_multi_conn && !geometry.multi_conn {
            return Err(LunError::Refused(format!(
                "{what}: the server does not promise that several connections see the same data (CAN_MULTI_CONN), so several hosts \
                 can not share it; use 'luna serve', nbdkit, or qemu-nbd with --shared=N and a writable raw file"
            )));
        }
        if options.need_multi_conn && geometry.read_only {
            return Err(LunError::Refused(format!("{what}: the server offers it read-only, a shared mount writes to it")));
        }
        if geometry.read_only && !options.read_only {
            tracing::warn!(lun = %what, "the server offers this LUN read-only");
        }
        geometry.read_only |= options.read_only;
        let target = Self {
            spec: spec.clone(),
            what,
            options: options.clone(),
            geometry,
            instance: offer.instance,
            gone: AtomicBool::new(false),
            gone_why: Mutex::new(None),
            answered: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            broke_ms: AtomicU64::new(0),
        };
        Ok((target, stream))
    }

    /// One more connection, checked against the first.
    pub(crate) fn connect(&self) -> Result<Stream> {
        self.check()?;
        let (stream, offer) = dial(&self.spec, &self.what, &self.options)?;
        let (now, then) = (offer.geometry, self.geometry);
        if now.size_bytes < then.size_bytes {
            return Err(LunError::Refused(format!(
                "{}: the LUN came back with {} bytes, it had {}; is this the right one?",
                self.what, now.size_bytes, then.size_bytes
            )));
        }
        let worse = (now.read_only && !then.read_only)
            || (then.can_flush && !now.can_flush)
            || (then.multi_conn && !now.multi_conn)
            || now.max_io_bytes < then.max_io_bytes
            || (then.can_fua && !now.can_fua);
        if worse {
            return Err(LunError::Refused(format!("{}: the LUN came back with fewer abilities than it had", self.what)));
        }
        let same = self.instance.is_some() && self.instance == offer.instance;
        let unflushed = self.answered.load(Ordering::SeqCst) > self.flushed.load(Ordering::SeqCst);
        if self.instance.is_some() && !same && unflushed {
            self.lost.store(true, Ordering::SeqCst);
        }
        Ok(stream)
    }

    /// A broken connection is replaced: tries until it works or the time is over. What is final is not tried again.
    pub(crate) fn reconnect(&self, deadline: Instant) -> Result<Stream> {
        let mut pause = PAUSE_MIN;
        loop {
            let error = match self.connect() {
                Ok(stream) => {
                    self.came_back();
                    return Ok(stream);
                }
                Err(error @ LunError::Io { .. }) => error,
                Err(error) => return Err(self.give_up(error)),
            };
            if let Some(Err(error)) = self.options.gate.as_ref().filter(|gate| gate.is_shut()).map(|gate| gate.pass()) {
                return Err(self.give_up(error));
            }
            if Instant::now() + pause >= deadline {
                let seconds = self.options.reconnect.as_secs();
                return Err(self.give_up(LunError::Gone(format!(
                    "{}: the LUN went away and did not come back within {seconds} s ({error}); check the server, then mount again",
                    self.what
                ))));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Replaces a connection that broke with `error`. `broke_at` is the time of the first break since a request was last
    /// answered: a server that takes connections but answers nothing is not tried for ever, and not in a tight loop.
    pub(crate) fn again(&self, broke_at: &mut Option<Instant>, error: &std::io::Error) -> Result<Stream> {
        let first = match *broke_at {
            None => *broke_at.insert(Instant::now()),
            Some(first) => {
                let limit = self.options.reconnect + self.options.request_timeout;
                if first.elapsed() >= limit {
                    return Err(self.give_up(LunError::Gone(format!(
                        "{}: the server takes connections but has answered nothing for {} s ({error}); check the server, then mount again",
                        self.what,
                        first.elapsed().as_secs()
                    ))));
                }
                std::thread::sleep(PAUSE_MIN.max(first.elapsed() / 4).min(PAUSE_MAX));
                first
            }
        };
        self.reconnect(self.deadline().max(first + self.options.reconnect))
    }

    /// A connection that carried requests broke and another took its place.
    fn came_back(&self) {
        tracing::warn!(lun = %self.what, "connection to the LUN re-made");
        let unflushed = self.answered.load(Ordering::SeqCst) > self.flushed.load(Ordering::SeqCst);
        if self.instance.is_none() && unflushed {
            self.lost.store(true, Ordering::SeqCst);
        }
    }

    /// When an attempt to come back must have succeeded.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.options.reconnect
    }

    /// Marks the target as gone for good.
    pub(crate) fn give_up(&self, error: LunError) -> LunError {
        let mut why = self.gone_why.lock();
        let first = why.get_or_insert_with(|| error.duplicate());
        self.gone.store(true, Ordering::SeqCst);
        first.duplicate()
    }

    /// Whether the target is still there as far as anybody knows.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.gone.load(Ordering::Relaxed) {
            return Ok(());
        }
        match &*self.gone_why.lock() {
            Some(error) => Err(error.duplicate()),
            None => Err(LunError::Gone(format!("{}: the LUN is gone", self.what))),
        }
    }

    /// Whether a write may be sent again over a new connection.
    pub(crate) fn may_resend(&self) -> bool {
        // a lease that ran out while the target was away may come back: wait for the word
        let member = self.options.gate.as_ref().is_none_or(|gate| gate.pass().is_ok());
        member && self.options.resend_ok.as_ref().is_none_or(|hook| hook())
    }

    /// A connection broke with requests under way: what becomes of them is not known for a while.
    pub(crate) fn note_broken(&self) {
        self.broke_ms.store(crate::gate::boottime_ms(), Ordering::SeqCst);
    }

    /// Whether a request whose connection broke may still land, as far as the time-out tells.
    pub(crate) fn in_doubt(&self) -> bool {
        let broke = self.broke_ms.load(Ordering::SeqCst);
        broke > 0 && crate::gate::boottime_ms() - broke <= self.options.request_timeout.as_millis() as u64
    }

    /// Why nothing may be sent ever again, if so.
    pub(crate) fn shut(&self) -> Option<LunError> {
        self.options.gate.as_ref().filter(|gate| gate.is_shut()).and_then(|gate| gate.pass().err())
    }

    /// Whether requests may be handed to a socket now.
    pub(crate) fn may_send(&self) -> bool {
        self.options.gate.as_ref().is_none_or(|gate| gate.is_open())
    }

    /// The error of a write that may not be sent again.
    pub(crate) fn not_resent(&self) -> LunError {
        LunError::Gone(format!("{}: the connection broke with a write in flight, and this host may not send it again", self.what))
    }

    /// A plain write was answered.
    pub(crate) fn note_answered(&self) {
        self.answered.fetch_add(1, Ordering::SeqCst);
    }

    /// What a flush that starts now will cover.
    pub(crate) fn flush_mark(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// The flush that began at `mark` was answered `Ok`; fails if what it covers may have been lost before.
    pub(crate) fn note_flushed(&self, mark: u64) -> Result<()> {
        if self.lost.load(Ordering::SeqCst) {
            return Err(LunError::Gone(format!(
                "{}: the connection broke with answered but unflushed writes, and the server can not prove that it kept them; mount again",
                self.what
            )));
        }
        self.flushed.fetch_max(mark, Ordering::SeqCst);
        Ok(())
    }
}

/// Connects, introduces this host, selects the export.
fn dial(spec: &LunSpec, what: &str, options: &OpenOptions) -> Result<(Stream, Offer)> {
    let export = match spec {
        LunSpec::Nbd { export, .. } | LunSpec::NbdUnix { export, .. } => export,
        LunSpec::Path(_) | LunSpec::Iscsi { .. } => return Err(LunError::Usage(format!("{what} is not an NBD LUN"))),
    };
    let stream = dial_raw(spec, what, options.connect_timeout)?;
    let offer = {
        let mut talk = Talk::begin(&stream, what)?;
        let hello = match &options.client_name {
            Some(name) => format!("hello {name}"),
            None => "hello".to_owned(),
        };
        let instance = talk.luna(&hello)?;
        Offer { geometry: talk.go(export)?, instance }
    };
    Ok((stream, offer))
}

/// Connects and sets the handshake's time limit.
pub(crate) fn dial_raw(spec: &LunSpec, what: &str, timeout: Duration) -> Result<Stream> {
    let stream = Stream::connect(spec, timeout).map_err(|source| {
        let text = format!("{what} can not be reached: {source}");
        LunError::io("connect", 0, std::io::Error::new(source.kind(), text))
    })?;
    stream.set_timeout(Some(timeout)).map_err(|source| LunError::io("connect", 0, source))?;
    Ok(stream)
}
