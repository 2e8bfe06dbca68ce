//! A growable byte buffer whose first byte lies on a page border, as O_DIRECT wants it.
//!
//! Invariant: `bytes().as_ptr()` is a multiple of 4096. Built on a `Vec` of page-aligned pages, so without `unsafe`.
//! It never shrinks, and says nothing about its content after growing.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in one page of the buffer.
const PAGE: usize = 4096;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// A page-aligned buffer; length in whole pages.
#[derive(Default)]
pub struct AlignedBuf {
    pages: Vec<Page>,
}

impl AlignedBuf {
    /// A buffer without memory.
    pub const fn empty() -> Self {
        Self { pages: Vec::new() }
    }

    /// A zeroed buffer of at least `len` bytes.
    pub fn new(len: usize) -> Self {
        let mut buffer = Self::empty();
        buffer.grow(len);
        buffer
    }

    /// Makes it at least `len` bytes long, keeping what it holds.
    pub fn grow(&mut self, len: usize) {
        let pages = len.div_ceil(PAGE);
        if pages > self.pages.len() {
            self.pages.resize(pages, Page([0; PAGE]));
        }
    }

    /// Bytes it can hold.
    pub fn len(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// Whether it has no memory at all.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        self.pages.as_slice().as_bytes()
    }

    /// All bytes, writable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut_slice().as_mut_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_aligned_and_keeps_its_bytes() {
        let mut buffer = AlignedBuf::new(5000);
        assert_eq!(buffer.len(), 8192);
        assert_eq!(buffer.bytes().as_ptr() as usize % 4096, 0);
        buffer.bytes_mut()[4999] = 7;
        buffer.grow(1 << 20);
        assert_eq!(buffer.bytes().as_ptr() as usize % 4096, 0);
        assert_eq!(buffer.bytes()[4999], 7);
    }
}
