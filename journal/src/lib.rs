//! The journal: one log per slot on the LUN. It makes a set of whole-block images atomic on behalf of the host that owns the
//! slot, and lets a survivor put a dead host's images in place.
//!
//! * [`Journal`] is the writer: `reserve` credits, `append` images to the running batch (memory only), `flush_to` makes a
//!   batch durable (one leader writes, the others wait: group commit), `retire` says that images are home, `close` leaves the
//!   log clean.
//! * [`Plan`] is replay: `plan` reads and classifies and writes nothing; `apply` writes an image iff its home block is torn or
//!   carries a smaller version (rule R5), flushes, then marks the log clean (R8). Applying twice equals applying once.
//!
//! Invariants
//! 1. A record is written once: (incarnation, sequence, position) never repeats, so no old bytes can be taken for a new record.
//!    A failed write poisons the journal ([`JournalError::Withdrawn`] from then on); nothing is retried over unknown bytes.
//! 2. The ring is overwritten only up to the tail that the header *on the LUN* names.
//! 3. The fields of the header block lie in its first 512 bytes and the rest is always zero, so a torn header write is either
//!    the old header or the new one.
//!
//! Header states: `DIRTY` with incarnation i means that host incarnation i uses the log (or died using it); `CLEAN` with
//! incarnation i means that nothing is to be replayed and that only incarnations >= i may open the log.
//!
//! Not here: locks, deciding who is dead, checkpointing (writing the images home is the file system's business).
#![forbid(unsafe_code)]

mod data;
mod error;
mod layout;
mod proof;
mod replay;
mod writer;

pub use error::{JournalError, Result};
pub use layout::{Image, Region, blocks_for};
pub use proof::{Fenced, ReplayProof};
pub use replay::{Gap, HeaderInfo, Plan, Report, inspect, plan};
pub use writer::{Credit, Journal, Sequence, Stats};
