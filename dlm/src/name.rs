//! Names of locks, and the value block that travels with a grant.
//!
//! Invariant: a name is sixteen opaque bytes; what they mean is the caller's business. A value block only ever grows, word by
//! word, so the order in which contributions arrive does not matter. Nothing here is written to the LUN.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is locked: sixteen opaque, ordered bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Name(
    /// The bytes.
    pub [u8; 16],
);

impl Name {
    /// The bytes as two little-endian words, for hashing.
    #[must_use]
    pub fn words(&self) -> (u64, u64) {
        let mut low = [0_u8; 8];
        let mut high = [0_u8; 8];
        low.copy_from_slice(&self.0[..8]);
        high.copy_from_slice(&self.0[8..]);
        (u64::from_le_bytes(low), u64::from_le_bytes(high))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Four words that follow a lock from holder to holder. Each word is merged by maximum whenever a release or a down-conversion
/// carries a block, so even several CW holders may contribute: a modification time, a size high-water mark, a version.
pub type ValueBlock = [u64; 4];

/// Merges `from` into `into`, word by word, by maximum.
pub fn merge(into: &mut ValueBlock, from: &ValueBlock) {
    for (a, b) in into.iter_mut().zip(from) {
        *a = (*a).max(*b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_commutes_and_only_grows() {
        let (a, b) = ([1, 9, 3, 0], [4, 2, 3, 7]);
        let (mut x, mut y) = (a, b);
        merge(&mut x, &b);
        merge(&mut y, &a);
        assert_eq!(x, y);
        assert_eq!(x, [4, 9, 3, 7]);
    }

    #[test]
    fn names_print_as_hex() {
        let mut name = Name::default();
        name.0[0] = 0xab;
        assert_eq!(name.to_string(), "ab000000000000000000000000000000");
        assert_eq!(name.words(), (0xab, 0));
    }
}
