//! Looking for the next request for a moment before sleeping in a read of `/dev/fuse`.
//!
//! A sleeping thread is woken by an interrupt to its core, which costs more than answering most requests. Whoever asks one thing after
//! another (a guest at depth 1, `stat` after `lookup`) asks again within microseconds, so the thread looks that long, offering its core
//! to others between two looks. Invariant: nothing is read here; at most [`LOOK`] is spent, and only while that has paid lately.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::stream::{Luck, readable};

/// How long to look.
const LOOK: Duration = Duration::from_micros(30);
/// Requests without looking after it failed.
const PAUSE: i32 = 32;

/// Returns when `fd` is readable, or soon.
pub fn linger(fd: BorrowedFd<'_>) {
    thread_local! {
        static LUCK: RefCell<Luck> = const { RefCell::new(Luck::new(PAUSE)) };
    }
    LUCK.with_borrow_mut(|luck| {
        if !luck.spins() {
            return;
        }
        let until = Instant::now() + LOOK;
        while !readable(fd) {
            std::thread::yield_now();
            if Instant::now() >= until {
                return luck.failed();
            }
        }
        luck.paid();
    });
}
