//! The data path: bytes between a request and the LUN.
//!
//! An overwrite or a read of blocks that are mapped, inside the size, under a cached right goes straight to the LUN's queue on
//! the thread that read the request: no message, no journal, no metadata mutex, no copy, no thread. Everything else is slow:
//! it copies what it was given and may wait on a pool thread.
//!
//! Invariants: a transfer carries its right and its pass through the gate until it is answered; data is answered by the LUN
//! before the transaction that makes it reachable (R9); what lies beyond the end of a file is never believed, whatever the
//! disk says; page-cache reads need PR, EX when somebody has the file open for writing. Not here: giving rights back.

pub(crate) mod gate;
pub(crate) mod map;
pub(crate) mod right;

mod copy;
mod learn;
mod read;
mod seek;
mod shape;
mod space;
mod time;
mod write;

pub use shape::{FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE};
pub use write::WriteHow;

use luna_format::BLOCK_U64;

/// The blocks that bytes `offset..offset + len` touch.
pub(crate) fn blocks_of(offset: u64, len: u64) -> (u64, u64) {
    (offset / BLOCK_U64, (offset + len).div_ceil(BLOCK_U64))
}

#[cfg(test)]
mod tests;
