//! Ranges of bits in words: set, look for overlaps, compare. Pure.

/// Bits `[from, to)` of word number `w`.
fn mask(w: usize, from: u64, to: u64) -> u64 {
    let base = w as u64 * 64;
    let below = |n: u64| if n >= 64 { u64::MAX } else { (1 << n) - 1 };
    below(to.saturating_sub(base)) & !below(from.saturating_sub(base))
}

fn span(from: u64, to: u64) -> std::ops::Range<usize> {
    (from / 64) as usize..to.div_ceil(64) as usize
}

/// Words for `bits` bits, all clear.
pub(crate) fn words(bits: u64) -> Box<[u64]> {
    vec![0; bits.div_ceil(64) as usize].into_boxed_slice()
}

/// Whether bit `n` is set.
#[cfg(test)]
fn get(words: &[u64], n: u64) -> bool {
    words.get((n / 64) as usize).is_some_and(|w| w >> (n % 64) & 1 != 0)
}

/// Sets `[from, to)`; answers how many of them were set before, and the first such.
pub(crate) fn set(words: &mut [u64], from: u64, to: u64) -> (u64, Option<u64>) {
    let (mut count, mut first) = (0, None);
    for w in span(from, to) {
        let m = mask(w, from, to);
        let old = words[w] & m;
        count += u64::from(old.count_ones());
        if old != 0 && first.is_none() {
            first = Some(w as u64 * 64 + u64::from(old.trailing_zeros()));
        }
        words[w] |= m;
    }
    (count, first)
}

/// Clears `[from, to)`.
pub(crate) fn clear(words: &mut [u64], from: u64, to: u64) {
    for w in span(from, to) {
        words[w] &= !mask(w, from, to);
    }
}

/// How many of `[from, to)` are set.
pub(crate) fn count(words: &[u64], from: u64, to: u64) -> u64 {
    span(from, to).map(|w| u64::from((words[w] & mask(w, from, to)).count_ones())).sum()
}

/// The first bit in `[from, to)` that is set (or, with `value` false, clear).
pub(crate) fn find(words: &[u64], from: u64, to: u64, value: bool) -> Option<u64> {
    span(from, to).find_map(|w| {
        let word = if value { words[w] } else { !words[w] } & mask(w, from, to);
        (word != 0).then(|| w as u64 * 64 + u64::from(word.trailing_zeros()))
    })
}

/// The first run of bits in `[from, to)` that are set in `a` and clear in `b`.
pub(crate) fn only_in(a: &[u64], b: &[u64], from: u64, to: u64) -> Option<(u64, u64)> {
    let both = |w: usize| a[w] & !b[w];
    let first = span(from, to).find_map(|w| {
        let word = both(w) & mask(w, from, to);
        (word != 0).then(|| w as u64 * 64 + u64::from(word.trailing_zeros()))
    })?;
    let end = span(first, to).find_map(|w| {
        let word = !both(w) & mask(w, first, to);
        (word != 0).then(|| w as u64 * 64 + u64::from(word.trailing_zeros()))
    });
    Some((first, end.unwrap_or(to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_what_a_plain_set_does() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..300 {
            let bits = rng.u64(1..400);
            let (mut w, mut plain) = (words(bits), vec![false; bits as usize]);
            for _ in 0..6 {
                let from = rng.u64(0..bits);
                let to = rng.u64(from..=bits);
                let before = &plain[from as usize..to as usize];
                let expected = (before.iter().filter(|b| **b).count() as u64, before.iter().position(|b| *b).map(|i| from + i as u64));
                assert_eq!(set(&mut w, from, to), expected);
                plain[from as usize..to as usize].fill(true);
                let (from, to) = (rng.u64(0..bits), bits);
                let part = &plain[from as usize..];
                assert_eq!(count(&w, from, to), part.iter().filter(|b| **b).count() as u64);
                for value in [true, false] {
                    assert_eq!(find(&w, from, to, value), part.iter().position(|b| *b == value).map(|i| from + i as u64));
                }
                let run = part.iter().position(|b| *b).map(|i| {
                    let end = part[i..].iter().position(|b| !b).map_or(to, |n| from + (i + n) as u64);
                    (from + i as u64, end)
                });
                assert_eq!(only_in(&w, &words(bits), from, to), run);
                assert_eq!(only_in(&w, &w, from, to), None);
            }
            assert!(plain.iter().enumerate().all(|(i, b)| get(&w, i as u64) == *b));
        }
    }
}
