//! What a core counted. One table; nothing is decided by it.

/// The counters of one core since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests this host made.
    pub requests: u64,
    /// Grants this host got.
    pub grants: u64,
    /// Refusals this host got.
    pub denials: u64,
    /// Times this host was asked to come down.
    pub basts: u64,
    /// Times this host came down.
    pub releases: u64,
    /// Releases that crossed a grant and were ignored.
    pub crossed: u64,
    /// Messages to other hosts.
    pub sent: u64,
    /// Messages from other hosts.
    pub received: u64,
    /// Messages of older epochs, dropped.
    pub stale: u64,
    /// Messages of newer epochs, held until the view came.
    pub early: u64,
    /// Messages dropped because they came from a stranger, made no sense, or were too many to hold.
    pub refused: u64,
    /// Times a request had to wait for a dead host's recovery.
    pub frozen_waits: u64,
    /// Views entered.
    pub views: u64,
    /// Byte-range operations.
    pub posix: u64,
}

impl Counters {
    /// Every counter with its name.
    #[must_use]
    pub const fn table(&self) -> [(&'static str, u64); 14] {
        [
            ("requests", self.requests),
            ("grants", self.grants),
            ("denials", self.denials),
            ("basts", self.basts),
            ("releases", self.releases),
            ("crossed", self.crossed),
            ("sent", self.sent),
            ("received", self.received),
            ("stale", self.stale),
            ("early", self.early),
            ("refused", self.refused),
            ("frozen_waits", self.frozen_waits),
            ("views", self.views),
            ("posix", self.posix),
        ]
    }
}
