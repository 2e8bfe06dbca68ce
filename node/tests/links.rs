//! Links between hosts who know each other, over real sockets: everything arrives once, in order, and unseen, whatever happens to
//! the wire.
#![allow(clippy::unwrap_used)]

mod kit;

use kit::{Host, Wire, join, pair, until};
use luna_node::refusal::Reason;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Message `n` of thread `t`, `len` bytes longer than it must be.
fn message(t: u8, n: u32, len: usize) -> Vec<u8> {
    let mut m = vec![t];
    m.extend_from_slice(&n.to_le_bytes());
    m.extend((0..len).map(|i| (i as u32 ^ n) as u8));
    m
}

/// Checks that the messages of each thread are there, whole and in order.
fn check(got: &[(u16, u64, Vec<u8>)], from: (u16, u64), threads: u8, each: u32, len: impl Fn(u32) -> usize) {
    let mut next = vec![0; usize::from(threads)];
    for (slot, incarnation, m) in got.iter().filter(|g| !g.2.is_empty()) {
        assert_eq!((*slot, *incarnation), from);
        let t = usize::from(m[0]);
        assert_eq!(*m, message(m[0], next[t], len(next[t])), "thread {t}");
        next[t] += 1;
    }
    assert!(next.iter().all(|n| *n == each), "{next:?}");
}

fn lengths(n: u32) -> usize {
    match n {
        7 => 3 << 20,
        11 => 65_519 - 20,
        _ => (n as usize * 977) % 70_000,
    }
}

/// `threads` threads of each side send to the other; one message in ten is followed by an empty one.
fn talk(a: &Host, b: &Host, threads: u8, each: u32) {
    std::thread::scope(|s| {
        for (from, to) in [(a, b), (b, a)] {
            for t in 0..threads {
                s.spawn(move || {
                    for n in 0..each {
                        from.peers.send(to.place.0, message(t, n, lengths(n)));
                        if n % 10 == 0 {
                            from.peers.send(to.place.0, Vec::new());
                        }
                    }
                });
            }
        }
    });
    let all = usize::from(threads) * (each + each.div_ceil(10)) as usize;
    check(&b.sink.wait(all), a.place, threads, each, lengths);
    check(&a.sink.wait(all), b.place, threads, each, lengths);
}

#[test]
fn both_ways_from_many_threads_of_all_sizes() {
    let (a, b) = pair(None);
    talk(&a, &b, 4, 60);
    until("acknowledgements", || a.peers.links()[0].unacked == 0 && b.peers.links()[0].unacked == 0);
    assert_eq!((a.sink.count(), b.sink.count()), (0, 0), "nothing comes twice");
}

#[test]
fn nothing_is_readable_on_the_wire() {
    let wire = Wire::new(|_, _, _| true);
    let (a, b) = pair(Some(&wire));
    let marker = b"the marker that nobody may see";
    for _ in 0..50 {
        a.peers.send(1, marker.repeat(40));
        b.peers.send(0, marker.repeat(40));
    }
    a.sink.wait(50);
    b.sink.wait(50);
    let seen = wire.seen.lock().unwrap();
    for bytes in seen.iter().flatten() {
        // the volume is in the preamble; the secret, keys and everything else are not
        assert!(!bytes.windows(8).any(|w| marker.windows(8).any(|m| m == w)), "plain text on the wire");
        for hidden in [&kit::SECRET[..8], &a.key[..8], &b.key[..8]] {
            assert!(!bytes.windows(8).any(|w| w == hidden));
        }
    }
    assert!(seen.iter().flatten().map(Vec::len).sum::<usize>() > 100 * 40 * marker.len(), "the wire saw all of it");
}

/// A wire that does something to the first connections, after the handshake, and what the receiver counts for it.
fn through_a_bad_wire(reason: Option<Reason>, tamper: impl Fn(u64, u64, &mut Vec<u8>) -> bool + Send + Sync + 'static) {
    let wire = Wire::new(tamper);
    let (a, b) = pair(Some(&wire));
    talk(&a, &b, 2, 40);
    assert!(wire.seen.lock().unwrap().len() > 1, "the connection was not replaced");
    if let Some(r) = reason {
        a.refuses(r);
    }
    until("acknowledgements", || b.peers.links()[0].unacked == 0);
    assert_eq!((a.sink.count(), b.sink.count()), (0, 0), "nothing comes twice");
}

#[test]
fn a_flipped_bit_ends_the_connection_and_loses_nothing() {
    through_a_bad_wire(Some(Reason::Damaged), |conn, at, piece| {
        if conn < 3 && at > 50_000 * (conn + 1) {
            let middle = piece.len() / 2;
            piece[middle] ^= 4;
        }
        true
    });
}

#[test]
fn a_cut_in_the_middle_of_a_record_loses_nothing() {
    through_a_bad_wire(None, |conn, at, piece| {
        if conn < 4 && at > 30_000 * (conn + 1) {
            piece.truncate(piece.len() / 2);
            return false;
        }
        true
    });
}

#[test]
fn records_swapped_or_repeated_end_the_connection_and_nothing_comes_twice() {
    let hits = Arc::new(AtomicU64::new(0));
    let h = Arc::clone(&hits);
    through_a_bad_wire(Some(Reason::Damaged), move |conn, at, piece| {
        if conn < 2 && at > 60_000 && h.fetch_add(1, Ordering::SeqCst) < 2 {
            *piece = piece.repeat(2);
        }
        true
    });
    assert!(hits.load(Ordering::SeqCst) >= 2);
}

#[test]
fn a_new_incarnation_starts_anew() {
    let a = Host::new(0, 1);
    let old = Host::new(1, 1);
    join(&a, &old, None);
    old.peers.send(0, b"old".to_vec());
    assert_eq!(a.sink.wait(1)[0].1, 1);
    let new = Host::new(1, 2);
    join(&a, &new, None);
    new.peers.send(0, b"new".to_vec());
    a.peers.send(1, b"hello".to_vec());
    assert_eq!(a.sink.wait(1), [(1, 2, b"new".to_vec())]);
    assert_eq!(new.sink.wait(1), [(0, 1, b"hello".to_vec())]);
    // the old one goes on trying
    a.refuses(Reason::Stale);
    assert!(!old.peers.is_up(0));
}
