//! The six lock modes, which of them get along, and which of them include each other.
//!
//! Invariant: the compatibility matrix is the literal table below, symmetric; everything else (`covers`, `join`, `below`) is
//! derived from it and tested against it. Nothing here knows who holds what.
//!
//! |    | NL | CR | CW | PR | PW | EX | meaning here |
//! |----|----|----|----|----|----|----|---|
//! | NL | yes | yes | yes | yes | yes | yes | no right |
//! | CR | yes | yes | yes | yes | yes | no | read while others write |
//! | CW | yes | yes | yes | no | no | no | write while others write |
//! | PR | yes | yes | no | yes | no | no | read, nobody writes |
//! | PW | yes | yes | no | no | no | no | the one writer, others CR |
//! | EX | yes | no | no | no | no | no | alone |

use std::fmt;

use serde::{Deserialize, Serialize};

/// A lock mode; the order of the variants is the order of strength used to pick the "highest" of several.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[repr(u8)]
pub enum Mode {
    /// No right.
    #[default]
    Nl = 0,
    /// Concurrent read.
    Cr = 1,
    /// Concurrent write.
    Cw = 2,
    /// Protected read.
    Pr = 3,
    /// Protected write.
    Pw = 4,
    /// Exclusive.
    Ex = 5,
}

/// Row and column in the order of [`Mode::ALL`]; bit m of row h says that h and m get along.
const COMPATIBLE: [u8; 6] = [0b11_1111, 0b01_1111, 0b00_0111, 0b00_1011, 0b00_0011, 0b00_0001];

impl Mode {
    /// All modes, weakest first.
    pub const ALL: [Self; 6] = [Self::Nl, Self::Cr, Self::Cw, Self::Pr, Self::Pw, Self::Ex];

    /// The mode with this number, or none.
    #[must_use]
    pub const fn from_index(index: u8) -> Option<Self> {
        if (index as usize) < Self::ALL.len() { Some(Self::ALL[index as usize]) } else { None }
    }

    /// May two hosts hold `self` and `other` at the same time?
    #[must_use]
    pub const fn compatible(self, other: Self) -> bool {
        COMPATIBLE[self as usize] & (1 << other as u8) != 0
    }

    /// Does holding `self` include every right of `wanted`? True when whoever gets along with `self` also gets along with `wanted`.
    #[must_use]
    pub const fn covers(self, wanted: Self) -> bool {
        COMPATIBLE[self as usize] & !COMPATIBLE[wanted as usize] == 0
    }

    /// The weakest mode that covers both.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self::ALL.into_iter().find(|m| m.covers(self) && m.covers(other)).unwrap_or(Self::Ex)
    }

    /// The highest mode that `self` covers and that gets along with every mode in `wanted`: where a holder comes down to.
    #[must_use]
    pub fn below(self, wanted: ModeSet) -> Self {
        Self::ALL.into_iter().rev().find(|m| self.covers(*m) && wanted.all_compatible(*m)).unwrap_or(Self::Nl)
    }

    /// A mode under which a host may change things, so that its death leaves something to recover.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Cw | Self::Pw | Self::Ex)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["NL", "CR", "CW", "PR", "PW", "EX"][*self as usize])
    }
}

/// A set of modes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct ModeSet(u8);

impl ModeSet {
    /// No mode.
    pub const EMPTY: Self = Self(0);
    /// CW, PW and EX: what a dead host may have changed something under.
    pub const WRITING: Self = Self(1 << Mode::Cw as u8 | 1 << Mode::Pw as u8 | 1 << Mode::Ex as u8);

    /// Just `mode`.
    #[must_use]
    pub const fn only(mode: Mode) -> Self {
        Self(1 << mode as u8)
    }

    /// Every mode that gets along with `mode`.
    #[must_use]
    pub const fn compatible_with(mode: Mode) -> Self {
        Self(COMPATIBLE[mode as usize])
    }

    /// In either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self((self.0 | other.0) & 0b11_1111)
    }

    /// In both.
    #[must_use]
    pub const fn intersect(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Is `mode` in the set?
    #[must_use]
    pub const fn contains(self, mode: Mode) -> bool {
        self.0 & (1 << mode as u8) != 0
    }

    /// Nothing in it?
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Does `mode` get along with every mode of the set?
    #[must_use]
    pub const fn all_compatible(self, mode: Mode) -> bool {
        self.0 & 0b11_1111 & !COMPATIBLE[mode as usize] == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The classic matrix, written a second time, by hand, as text.
    const CLASSIC: [&str; 6] = ["111111", "111110", "111000", "110100", "110000", "100000"];

    #[test]
    fn the_matrix_is_the_classic_one_and_symmetric() {
        for a in Mode::ALL {
            for b in Mode::ALL {
                assert_eq!(a.compatible(b), CLASSIC[a as usize].as_bytes()[b as usize] == b'1', "{a} {b}");
                assert_eq!(a.compatible(b), b.compatible(a));
            }
        }
    }

    #[test]
    fn covering_is_exactly_what_the_matrix_implies() {
        let expected = |h: Mode, w: Mode| match h {
            Mode::Ex => true,
            Mode::Pw => w != Mode::Ex,
            Mode::Pr => matches!(w, Mode::Nl | Mode::Cr | Mode::Pr),
            Mode::Cw => matches!(w, Mode::Nl | Mode::Cr | Mode::Cw),
            Mode::Cr => matches!(w, Mode::Nl | Mode::Cr),
            Mode::Nl => w == Mode::Nl,
        };
        for h in Mode::ALL {
            for w in Mode::ALL {
                assert_eq!(h.covers(w), expected(h, w), "{h} covers {w}");
                let j = h.join(w);
                assert!(j.covers(h) && j.covers(w));
                assert!(Mode::ALL.into_iter().filter(|m| m.covers(h) && m.covers(w)).all(|m| m.covers(j)), "{j} is least");
            }
        }
        assert_eq!(Mode::Cw.join(Mode::Pr), Mode::Pw);
    }

    #[test]
    fn coming_down_keeps_as_much_as_possible() {
        for (held, wanted, left) in [
            (Mode::Ex, Mode::Cw, Mode::Cw),
            (Mode::Ex, Mode::Cr, Mode::Pw),
            (Mode::Ex, Mode::Pr, Mode::Pr),
            (Mode::Ex, Mode::Ex, Mode::Nl),
            (Mode::Pw, Mode::Cw, Mode::Cw),
            (Mode::Pw, Mode::Pw, Mode::Cr),
            (Mode::Pr, Mode::Cw, Mode::Cr),
            (Mode::Cw, Mode::Pr, Mode::Cr),
            (Mode::Cr, Mode::Ex, Mode::Nl),
            (Mode::Pr, Mode::Pr, Mode::Pr),
        ] {
            assert_eq!(held.below(ModeSet::only(wanted)), left, "{held} for {wanted}");
        }
        assert_eq!(Mode::Ex.below(ModeSet::only(Mode::Cw).union(ModeSet::only(Mode::Pr))), Mode::Cr);
    }
}
