//! How fast a link is on this machine: round trips of small messages and one-way throughput of large ones over loopback.
//!
//! Prints numbers, asserts nothing about time. Run with `--ignored --nocapture`, release build.
#![allow(clippy::unwrap_used)]

mod kit;

use kit::pair;
use luna_node::noise::{self, Keys};
use luna_node::wire::{Hello, WIRE_VERSION};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

#[test]
#[ignore = "prints numbers; run it by hand"]
fn round_trips() {
    let (a, b) = pair(None);
    b.sink.echo(Some(Arc::clone(&b.peers)));
    for (len, rounds) in [(64, 4000), (4096, 2000), (65_536, 400)] {
        let mut best = f64::MAX;
        for _ in 0..5 {
            let t = Instant::now();
            for _ in 0..rounds {
                a.peers.send(1, vec![1; len]);
                a.sink.wait(1);
            }
            best = best.min(t.elapsed().as_secs_f64() * 1e6 / f64::from(rounds));
        }
        println!("round trip of {len:6} bytes: {best:8.1} us (best of 5)");
    }
    b.sink.echo(None);
    b.sink.wait(0);
    let mut best = 0f64;
    for _ in 0..5 {
        let t = Instant::now();
        for _ in 0..32 {
            a.peers.send(1, vec![1; 1 << 20]);
        }
        b.sink.wait(32);
        best = best.max(32.0 / t.elapsed().as_secs_f64());
    }
    println!("one way in messages of 1 MiB: {best:.0} MiB/s (best of 5)");
}

#[test]
#[ignore = "prints numbers; run it by hand"]
fn handshakes() {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    let (a, b) = (Keys::new(kit::VOLUME, &kit::SECRET).unwrap(), Keys::new(kit::VOLUME, &kit::SECRET).unwrap());
    let hello = |slot| Hello { version: WIRE_VERSION, volume: kit::VOLUME, slot, incarnation: 1, to_slot: 1 - slot, received: 0 };
    let rounds = 500;
    let other = std::thread::spawn(move || {
        for _ in 0..rounds {
            noise::hear(&b, &mut theirs).ok().unwrap().answer(&mut theirs, &hello(1)).ok().unwrap();
        }
    });
    let t = Instant::now();
    for _ in 0..rounds {
        noise::dial(&a, &mut ours, &hello(0), |_, _| Ok(())).ok().unwrap();
    }
    println!("a handshake, both sides: {:.0} us", t.elapsed().as_secs_f64() * 1e6 / f64::from(rounds));
    other.join().unwrap();
}
