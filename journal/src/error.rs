//! What can go wrong in a journal, one line each: what failed, where, what to do. Full is a stop (checkpoint and come again),
//! Withdrawn is final for this mount, the others are errors of the LUN or of the bytes on it. Not here: mapping to errno.

use luna_format::{BlockNo, CheckError, Incarnation, Slot};

/// Result of a journal operation.
pub type Result<T, E = JournalError> = std::result::Result<T, E>;

/// Why a journal operation failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Not enough free space now: write images home, [`crate::Journal::retire`], come again.
    #[error("journal of slot {slot} is full: {wanted} images wanted, {free} free; checkpoint and retire first")]
    Full {
        /// The slot.
        slot: Slot,
        /// Images asked for.
        wanted: u64,
        /// Images that would fit.
        free: u64,
    },
    /// The transaction can never fit, not even into an empty journal.
    #[error("journal of slot {slot}: a transaction of {wanted} images exceeds the limit of {limit}; split it")]
    TooLarge {
        /// The slot.
        slot: Slot,
        /// Images asked for.
        wanted: u64,
        /// Images an empty journal takes.
        limit: u64,
    },
    /// An earlier journal write or flush failed: this host must stop using the volume.
    #[error("journal of slot {slot} is withdrawn after a failed write ({cause}); unmount, check the LUN, mount again")]
    Withdrawn {
        /// The slot.
        slot: Slot,
        /// The first failure.
        cause: String,
    },
    /// The journal was not replayed yet.
    #[error("journal of slot {slot} is dirty (incarnation {incarnation}): it must be replayed before it is opened")]
    Dirty {
        /// The slot.
        slot: Slot,
        /// Its last user.
        incarnation: Incarnation,
    },
    /// Somebody newer used the journal.
    #[error("journal of slot {slot} belongs to incarnation {found}, not to {ours}: this host is not its owner any more")]
    NotOwner {
        /// The slot.
        slot: Slot,
        /// In the header.
        found: Incarnation,
        /// The caller's.
        ours: Incarnation,
    },
    /// `close` with images that are not home.
    #[error("journal of slot {slot} cannot be closed: sequence {durable} is durable, only {retired} is retired")]
    NotRetired {
        /// The slot.
        slot: Slot,
        /// Newest record.
        durable: u64,
        /// Newest retired record.
        retired: u64,
    },
    /// The proof does not cover this journal.
    #[error("journal of slot {slot} (incarnation {found}) must not be replayed: the proof is for {proof}")]
    Unproven {
        /// The slot.
        slot: Slot,
        /// In the header.
        found: Incarnation,
        /// What the proof covers.
        proof: String,
    },
    /// A record is damaged although a later one is whole: acknowledged changes would be lost.
    #[error(
        "journal of slot {slot}: record {missing} at position {position} is damaged but record {later} after it is whole; \
         run fsck, or accept the loss explicitly [J01]"
    )]
    Damaged {
        /// The slot.
        slot: Slot,
        /// First unreadable record.
        missing: u64,
        /// Where it should be.
        position: u64,
        /// A later record that is whole.
        later: u64,
    },
    /// A home block is torn, and whether somebody is writing it right now was not found out.
    #[error("journal of slot {slot}: block {block} reads as torn and may be being written; it is looked at again")]
    Unsettled {
        /// The slot.
        slot: Slot,
        /// The home block.
        block: BlockNo,
    },
    /// Somebody else replayed this journal, or uses it already.
    #[error("journal of slot {slot} was replayed by somebody else meanwhile (incarnation {incarnation} is next); nothing was changed")]
    Overtaken {
        /// The slot.
        slot: Slot,
        /// In the header now.
        incarnation: Incarnation,
    },
    /// An image that does not name its own home, or lies outside the volume.
    #[error("journal of slot {slot}: an image for block {block} is not a sealed metadata block of that address [J02]")]
    BadImage {
        /// The slot.
        slot: Slot,
        /// The home it was given for.
        block: BlockNo,
    },
    /// A field of the journal header is out of bounds.
    #[error("journal of slot {slot}: header field {what} is {found}, out of bounds [J03]")]
    BadHeader {
        /// The slot.
        slot: Slot,
        /// Which field.
        what: &'static str,
        /// Its value.
        found: u64,
    },
    /// A block failed its check.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The LUN failed.
    #[error("journal of slot {slot}: {what}: {source}")]
    Lun {
        /// The slot.
        slot: Slot,
        /// What was being done.
        what: &'static str,
        /// The LUN's word.
        source: luna_lun::LunError,
    },
}
