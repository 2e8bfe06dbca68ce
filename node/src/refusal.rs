//! Why connections are refused: a closed list of reasons, a counter for each, and a log that cannot be flooded.
//!
//! Invariant: every connection that is turned away or cut for what it said is counted under exactly one reason. What deserves
//! an administrator's eye is a warning at most once a minute and reason; everything is at debug. Not here: deciding.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two warnings of one reason.
const QUIET: Duration = Duration::from_secs(60);

/// Why a connection ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its first bytes are not Luna's.
    NotLuna,
    /// Another wire version.
    Version,
    /// Another volume.
    Volume,
    /// It does not know the secret on the LUN, or was tampered with.
    Secret,
    /// It wants, or is, another slot or incarnation than the one meant.
    Place,
    /// It speaks for an incarnation that is over.
    Stale,
    /// Its key is not the one in the beat of who it says it is.
    Key,
    /// Nothing on the LUN said in time that the host it says it is exists.
    Unknown,
    /// The handshake took too long.
    Timeout,
    /// It went away during the handshake.
    Closed,
    /// Too many handshakes at once, altogether or from one address.
    Busy,
    /// A sealed record that does not open: bits were changed on the way.
    Damaged,
    /// Authentic bytes that are no frame, or too many of them.
    Malformed,
}

/// Every reason with its name in `status`, and whether it deserves a warning.
const REASONS: [(Reason, &str, bool); 13] = [
    (Reason::NotLuna, "not_luna", true),
    (Reason::Version, "version", true),
    (Reason::Volume, "volume", true),
    (Reason::Secret, "secret", true),
    (Reason::Place, "place", false),
    (Reason::Stale, "stale", false),
    (Reason::Key, "key", true),
    (Reason::Unknown, "unknown", false),
    (Reason::Timeout, "timeout", false),
    (Reason::Closed, "closed", false),
    (Reason::Busy, "busy", true),
    (Reason::Damaged, "damaged", true),
    (Reason::Malformed, "malformed", true),
];

/// A refusal: the reason, and one line for people.
#[derive(Debug)]
pub struct Refused {
    /// The reason.
    pub reason: Reason,
    /// What was found.
    pub text: String,
}

impl Refused {
    /// A refusal.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }

    /// As an error of a reader; [`From`] finds it in there again.
    pub fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refused {}

impl From<io::Error> for Refused {
    fn from(e: io::Error) -> Self {
        match e.downcast::<Self>() {
            Ok(r) => r,
            Err(e) => {
                let reason = match e.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Reason::Timeout,
                    io::ErrorKind::InvalidData => Reason::Malformed,
                    _ => Reason::Closed,
                };
                Self::new(reason, e.to_string())
            }
        }
    }
}

/// Counters of refusals.
#[derive(Debug, Default)]
pub struct Refusals {
    counts: [AtomicU64; REASONS.len()],
    warned: Mutex<[Option<Instant>; REASONS.len()]>,
}

impl Refusals {
    /// Counts a refusal and logs it; `peer` says whose bytes they were.
    pub fn note(&self, r: &Refused, peer: &dyn fmt::Display) {
        let Some(i) = REASONS.iter().position(|x| x.0 == r.reason) else { return };
        let (_, name, news) = REASONS[i];
        let count = self.counts[i].fetch_add(1, Ordering::Relaxed) + 1;
        tracing::debug!(reason = name, count, %peer, what = %r, "a connection was refused");
        if news {
            let mut warned = self.warned.lock();
            if warned[i].is_none_or(|t| t.elapsed() >= QUIET) {
                warned[i] = Some(Instant::now());
                tracing::warn!(reason = name, count, %peer, what = %r, "a connection was refused; more of the same within a minute are only counted");
            }
        }
    }

    /// How often for this reason.
    pub fn of(&self, reason: Reason) -> u64 {
        REASONS.iter().position(|x| x.0 == reason).map_or(0, |i| self.counts[i].load(Ordering::Relaxed))
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|c| c.load(Ordering::Relaxed)).sum()
    }

    /// Each that happened, by name, for status.
    pub fn by_name(&self) -> BTreeMap<&'static str, u64> {
        let each = REASONS.iter().zip(&self.counts).map(|(r, c)| (r.1, c.load(Ordering::Relaxed)));
        each.filter(|(_, n)| *n > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_a_reader_and_is_counted() {
        let r = Refused::from(Refused::new(Reason::Damaged, "bits").into_io());
        assert_eq!((r.reason, r.text.as_str()), (Reason::Damaged, "bits"));
        assert_eq!(Refused::from(io::Error::from(io::ErrorKind::TimedOut)).reason, Reason::Timeout);
        assert_eq!(Refused::from(io::Error::from(io::ErrorKind::UnexpectedEof)).reason, Reason::Closed);
        let counts = Refusals::default();
        (0..3).for_each(|_| counts.note(&r, &"somebody"));
        assert_eq!((counts.of(Reason::Damaged), counts.total()), (3, 3));
        assert_eq!(counts.by_name(), BTreeMap::from([("damaged", 3)]));
    }
}
