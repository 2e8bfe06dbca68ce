//! The cluster core in a simulated world: plain stories with their times, then random ones from seeds.
#![allow(clippy::unwrap_used)] // a test may

mod world;

use luna_cluster::*;
use luna_format::cluster::*;
use world::*;

fn up(n: usize, slots: u16, timing: Timing) -> World {
    let mut w = World::new(1, n, slots, timing);
    for i in 0..n {
        w.start(i);
        assert!(w.run_until(3000, World::healthy), "host {i} does not get in\n{}", w.tail());
    }
    w
}

#[test]
fn the_computed_wait_is_the_documented_one() {
    // 15,233 by the formula, in half beats
    assert_eq!(Timing::default().wait_ms(), 15_400);
}

#[test]
fn mounts_and_umounts_take_less_than_a_second() {
    let mut w = World::new(1, 3, 8, Timing::default());
    for i in 0..3 {
        w.start(i);
        assert!(w.run_until(1000, |w| w.hosts[i].joined.is_some()), "{}", w.tail());
        let took = w.hosts[i].joined_at - w.hosts[i].started;
        assert!(took < if i == 0 { 800 } else { 400 }, "host {i} took {took} ms\n{}", w.tail());
    }
    assert!(w.run_until(1000, World::healthy), "{}", w.tail());
    let named = |w: &World| w.hosts[0].view.as_ref().unwrap().members.iter().all(|m| !m.name.is_empty() && m.addresses.len() == 1);
    assert!(w.run_until(3000, named), "names and addresses arrive");
    for i in 0..3 {
        w.leave(i);
        assert!(w.run_until(500, |w| w.hosts[i].left == 1), "host {i}\n{}", w.tail());
    }
    assert_eq!(w.newest().slots.iter().filter(|s| s.state != SLOT_FREE).count(), 0);
    assert!(w.decisions().iter().all(|d| matches!(d.0, DECIDE_JOIN | DECIDE_LEAVE)));
}

#[test]
fn all_at_once_on_a_fresh_volume() {
    let mut w = World::new(1, 6, 8, Timing::default());
    (0..6).for_each(|i| w.start(i));
    assert!(w.run_until(5000, World::healthy), "{}", w.tail());
    assert!(w.hosts.iter().all(|h| h.joined.is_some()));
}

#[test]
fn a_killed_host_is_evicted_fenced_replayed_and_comes_back() {
    let mut w = up(3, 8, Timing::default());
    let dead = w.hosts[1].joined.unwrap();
    let t = w.now;
    w.crash(1);
    assert!(w.run_until(30_000, |w| w.healthy() && w.decisions().contains(&(DECIDE_RECOVERED, dead.0, dead.1))), "{}", w.tail());
    let took = w.now - t;
    assert!((14_000..22_000).contains(&took), "lease takeover took {took} ms");
    let order: Vec<u16> = w.decisions().iter().filter(|d| d.1 == dead.0).map(|d| d.0).collect();
    assert_eq!(order, [DECIDE_JOIN, DECIDE_EVICT, DECIDE_FENCED, DECIDE_RECOVERED]);
    w.start(1);
    assert!(w.run_until(1000, World::healthy), "{}", w.tail());
}

#[test]
fn an_exact_fence_needs_no_lease_wait() {
    let mut w = up(3, 8, Timing::default());
    w.fence = FenceMethod::Target;
    let t = w.now;
    w.crash(0);
    assert!(w.run_until(30_000, World::healthy), "{}", w.tail());
    assert!(w.now - t < 8_000, "took {} ms", w.now - t);
}

#[test]
fn a_corpse_of_the_same_name_does_not_keep_its_host_out() {
    let mut w = up(2, 8, quick());
    w.crash(1);
    w.run(w.now + 30);
    w.start(1);
    assert!(w.run_until(10_000, World::healthy), "{}", w.tail());
    assert_eq!(w.hosts[1].refused.len(), 0);
}

#[test]
fn everybody_dies_and_one_comes_back() {
    let mut w = up(3, 8, Timing::default());
    (0..3).for_each(|i| w.crash(i));
    w.run(w.now + 1000);
    let t = w.now;
    w.start(2);
    assert!(w.run_until(40_000, World::healthy), "{}", w.tail());
    assert!(w.now - t < 22_000, "took {} ms\n{}", w.now - t, w.tail());
    assert_eq!(w.decisions().iter().filter(|d| d.0 == DECIDE_RECOVERED).count(), 3);
}

#[test]
fn all_slots_are_full_of_the_dead() {
    let mut w = up(2, 2, quick());
    w.crash(0);
    w.crash(1);
    w.start(0);
    assert!(w.run_until(10_000, World::healthy), "{}", w.tail());
    w.start(1);
    assert!(w.run_until(10_000, World::healthy), "{}", w.tail());
}

#[test]
fn the_same_name_twice_and_no_free_slot_are_refused() {
    let mut w = World::new(1, 4, 2, quick());
    w.start(0);
    assert!(w.run_until(2000, World::healthy), "{}", w.tail());
    w.hosts[1].name = "host-0".to_owned();
    w.start(1);
    assert!(w.run_until(2000, |w| w.hosts[1].refused.len() == 1), "{}", w.tail());
    assert!(w.hosts[1].refused[0].starts_with("host name host-0 is already mounted from slot 0"));
    w.start(2);
    assert!(w.run_until(2000, World::healthy), "{}", w.tail());
    w.start(3);
    assert!(w.run_until(2000, |w| w.hosts[3].refused.len() == 1), "{}", w.tail());
    assert!(w.hosts[3].refused[0].starts_with("all 2 slots"));
}

#[test]
fn without_a_network_the_lun_is_enough() {
    let mut w = World::new(1, 3, 8, quick());
    w.faults.lose_percent = 100;
    for i in 0..3 {
        w.start(i);
        assert!(w.run_until(5000, World::healthy), "host {i}\n{}", w.tail());
    }
    w.crash(0);
    assert!(w.run_until(10_000, World::healthy), "{}", w.tail());
    w.leave(1);
    assert!(w.run_until(5000, |w| w.healthy() && w.hosts[1].left == 1), "{}", w.tail());
}

#[test]
fn as_many_hosts_as_slots_get_in_without_waiting_for_claims_left_behind() {
    let mut w = up(6, 6, Timing::default());
    (1..6).for_each(|i| w.leave(i));
    assert!(w.run_until(3000, |w| w.hosts[1..].iter().all(|h| h.left == 1)), "{}", w.tail());
    // all ask by beat, in slots that others used last and get again
    w.faults.lose_percent = 100;
    (1..6).rev().for_each(|i| w.start(i));
    assert!(w.run_until(9000, World::healthy), "{}", w.tail());
}

#[test]
fn nobody_looks_more_often_because_of_one_who_is_gone() {
    let mut w = up(3, 8, Timing::default());
    w.crash(1);
    assert!(w.run_until(30_000, World::healthy), "{}", w.tail());
    w.run(w.now + 1000);
    let before = w.reads;
    w.run(w.now + 10_000);
    // two hosts, beats and log each 2.5 times a second, and the log once more after each beat
    assert!(w.reads - before < 200, "{} reads in ten seconds", w.reads - before);
}

#[test]
fn a_stopped_host_pauses_and_goes_on_or_is_evicted() {
    let mut w = up(3, 8, quick());
    w.stop(1, 900);
    w.run(w.now + 1000);
    assert!(w.run_until(2000, World::healthy), "{}", w.tail());
    assert_eq!(w.hosts[1].evicted, 0);
    w.stop(1, 4000);
    assert!(w.run_until(8000, |w| w.hosts[1].evicted == 1), "{}", w.tail());
    assert!(w.run_until(8000, World::healthy), "{}", w.tail());
}

/// Hosts that wake up while they are being evicted. (A random life found that a beat and a log read answered just before the
/// EVICT record let a host act while the fence rested on older reads; both sides now look again. This story covers the
/// neighbourhood but was seen to pass without the second look too: the random lives are what finds that bug.)
#[test]
fn waking_up_into_the_own_eviction() {
    for round in 0..240 {
        let mut w = up(3, 8, quick());
        // the others sleep as well, so that the silence is long enough for the fence when they wake
        w.rng = Rng(round | 1);
        w.stop(0, 2000);
        w.stop(2, 2000);
        w.stop(1, 1990 + round % 60);
        w.run(w.now + 5000);
        assert!(w.run_until(8000, World::healthy), "{round}\n{}", w.tail());
    }
}

#[test]
fn the_recoverer_dies_in_the_middle() {
    for at in 0..40 {
        let mut w = up(4, 8, quick());
        w.crash(3);
        w.run(w.now + 1000 + at * 60);
        let leader = (0..3).find(|i| w.hosts[*i].core.as_ref().is_some_and(Core::is_coordinator)).unwrap_or(0);
        w.crash(leader);
        assert!(w.run_until(15_000, World::healthy), "{at}\n{}", w.tail());
    }
}

/// One random life of a cluster; the trace comes back.
fn random(seed: u64) -> Vec<String> {
    let mut w = World::new(seed, 4, if seed.is_multiple_of(3) { 4 } else { 8 }, quick());
    w.faults = Faults { lose_percent: w.rng.below(30), slow_percent: w.rng.below(8), fail_percent: w.rng.below(4), restart: true };
    for i in 0..4 {
        w.start(i);
    }
    for _ in 0..25 {
        let (i, j) = (w.rng.below(4) as usize, w.rng.below(4) as usize);
        match w.rng.below(9) {
            0 | 1 => w.crash(i),
            2 => {
                let ms = w.rng.below(3000);
                w.stop(i, ms);
            }
            3 => w.leave(i),
            4 => {
                w.cut.insert((i.min(j), i.max(j)));
            }
            5 => w.cut.clear(),
            _ => {
                for i in 0..4 {
                    if w.hosts[i].core.is_none() && w.rng.chance(50) {
                        w.start(i);
                    }
                }
            }
        }
        let pause = w.rng.below(800);
        w.run(w.now + pause);
    }
    w.faults = Faults { restart: true, ..CALM };
    w.cut.clear();
    for i in 0..4 {
        if w.hosts[i].core.is_none() {
            w.start(i);
        }
    }
    assert!(w.run_until(30_000, World::healthy), "seed {seed} does not heal\n{}\n{:?}", w.tail(), w.cores());
    w.trace
}

#[test]
fn random_lives() {
    let seeds = std::env::var("LUNA_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(150);
    let first = std::env::var("LUNA_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    // 6: a host asked by its beat in the slot it was given under an older name of itself; 204: a leaving host owed a replay
    for seed in [6, 204].into_iter().chain(first..first + seeds) {
        random(seed);
    }
}

/// Hosts hold to the bounds, but the wait was computed from smaller ones: somebody must be caught writing after his fence.
#[test]
fn a_wait_that_is_too_short_is_caught() {
    let short = Timing { request_ms: 20, pause_ms: 10, margin_ms: 10, ..quick() };
    let caught = (0..40).filter(|seed| {
        std::panic::catch_unwind(|| {
            let mut w = World::new(*seed, 3, 8, short);
            w.data_late_ms = 3000;
            for i in 0..3 {
                w.start(i);
                w.run_until(3000, World::healthy);
            }
            w.crash(1);
            w.run(w.now + 8000);
        })
        .is_err_and(|e| e.downcast_ref::<String>().is_some_and(|s| s.starts_with("I2")))
    });
    assert!(caught.count() > 20);
}

#[test]
fn a_seed_is_a_life() {
    assert_eq!(random(7), random(7));
    assert_ne!(random(7), random(8));
}
