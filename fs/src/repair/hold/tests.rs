//! Several repairs on one volume, in simulated time: every request may take long, before it lands and after it; some die.
//!
//! Each contender is a thread that runs the production code; whoever's moment is the earliest goes on, all others wait. The same
//! seed is the same run.

use super::{Clock, Hold, HoldError, Times, busy};
use fastrand::Rng;
use luna_format::{BLOCK_BYTES, BLOCK_U64, Block, VolumeId};
use luna_lun::{Disk, Durability, Geometry, LunError, Result};
use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard};

const ID: VolumeId = [5; 16];

struct World {
    now: u64,
    /// When each contender goes on; `None` when it has ended.
    wake: Vec<Option<u64>>,
    rng: Rng,
    /// Of a hundred requests, so many take long.
    slow: u32,
    /// The two blocks that matter.
    blocks: [Box<[u8; BLOCK_BYTES]>; 2],
    /// The session that wrote last, and those that somebody else wrote after.
    writer: Option<(usize, u32)>,
    over: BTreeSet<(usize, u32)>,
    repairs: u32,
    violation: Option<String>,
}

impl World {
    fn block(&mut self, offset: u64) -> &mut [u8; BLOCK_BYTES] {
        &mut self.blocks[(offset / BLOCK_U64 - super::REPAIR_BEAT_BLOCK) as usize]
    }
}

struct Stage {
    world: Mutex<World>,
    moved: Condvar,
}

impl Stage {
    fn new(seed: u64, many: usize, slow: u32) -> Self {
        let mut rng = Rng::with_seed(seed);
        let wake = (0..many).map(|_| Some(rng.u64(0..3_000))).collect();
        let (blocks, over) = ([(); 2].map(|()| Box::new([0; BLOCK_BYTES])), BTreeSet::new());
        let world = World { now: 0, wake, rng, slow, blocks, writer: None, over, repairs: 0, violation: None };
        Self { world: Mutex::new(world), moved: Condvar::new() }
    }

    /// Waits until `me` is the one whose moment is the earliest.
    fn until(&self, me: usize, moment: impl FnOnce(&mut World) -> u64) -> MutexGuard<'_, World> {
        let mut w = self.world.lock().unwrap();
        let at = moment(&mut w);
        w.wake[me] = Some(at);
        self.moved.notify_all();
        while w.wake.iter().enumerate().filter_map(|(i, t)| t.map(|t| (t, i))).min() != Some((at, me)) {
            w = self.moved.wait(w).unwrap();
        }
        w.now = w.now.max(at);
        w
    }

    fn draw(&self, range: std::ops::Range<u64>) -> u64 {
        self.world.lock().unwrap().rng.u64(range)
    }

    /// A piece of a request's way.
    fn way(&self, me: usize) -> MutexGuard<'_, World> {
        self.until(me, |w| {
            let slow = w.rng.u32(0..100) < w.slow;
            w.now + if slow { w.rng.u64(0..7_000) } else { w.rng.u64(0..5) }
        })
    }
}

/// What one contender sees of the stage: its clock and the LUN, of which there are only the two blocks.
struct View<'a>(&'a Stage, usize);

impl Clock for View<'_> {
    fn now_ms(&self) -> u64 {
        self.0.world.lock().unwrap().now
    }

    fn sleep_ms(&self, ms: u64) {
        drop(self.0.until(self.1, |w| w.now + ms));
    }
}

impl Disk for View<'_> {
    fn geometry(&self) -> Geometry {
        Geometry::able(1 << 20)
    }

    fn describe(&self) -> String {
        "two blocks".into()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.copy_from_slice(self.0.way(self.1).block(offset));
        drop(self.0.way(self.1));
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, _: Durability) -> Result<()> {
        self.0.way(self.1).block(offset).copy_from_slice(buf);
        let mut w = self.0.way(self.1);
        let fails = w.rng.u32(0..200) < w.slow;
        if fails { Err(LunError::io("write", offset, std::io::ErrorKind::TimedOut)) } else { Ok(()) }
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
}

/// Repairs now and then, until an hour or so is over.
fn contend(view: &View<'_>, times: Times) {
    for session in 0..6 {
        let pause = view.0.draw(0..2_000);
        view.sleep_ms(pause);
        let nonce = [view.1 as u8 * 16 + session as u8 + 1; 16];
        let Ok((mut hold, mut until)) = Hold::take(view, view, times, ID, ("a host", nonce)) else { continue };
        let beats = view.0.draw(0..30);
        let mut is_mine = true;
        for _ in 0..beats {
            for _ in 0..3 {
                // one write of the repair: asked and handed over at one moment
                let mut w = view.0.until(view.1, |w| w.now + w.rng.u64(0..2 * times.beat / 3));
                if w.now >= until {
                    break;
                }
                let me = (view.1, session);
                if w.over.contains(&me) {
                    let (now, other) = (w.now, w.writer);
                    w.violation.get_or_insert(format!("at {now} ms {me:?} wrote after {other:?}"));
                }
                if let Some(last) = w.writer.replace(me).filter(|last| *last != me) {
                    w.over.insert(last);
                    w.repairs += 1;
                }
            }
            match hold.beat() {
                Ok(t) => until = t,
                Err(HoldError::Lun(_)) => {}
                Err(HoldError::Busy(_)) => {
                    is_mine = false;
                    break;
                }
            }
        }
        let dies = view.0.draw(0..2) == 0;
        if is_mine && !dies {
            let _ = hold.give_back();
        }
    }
}

/// The first violation, and how often the volume went from one repair to another.
fn run(seed: u64, times: Times, slow: u32) -> (Option<String>, u32) {
    let stage = Stage::new(seed, 3, slow);
    std::thread::scope(|s| {
        for me in 0..3 {
            let view = View(&stage, me);
            s.spawn(move || {
                drop(view.0.until(me, |w| w.wake[me].unwrap_or(0)));
                contend(&view, times);
                view.0.world.lock().unwrap().wake[me] = None;
                view.0.moved.notify_all();
            });
        }
    });
    let w = stage.world.lock().unwrap();
    (w.violation.clone().map(|v| format!("seed {seed}: {v}")), w.repairs)
}

#[test]
fn one_repair_at_a_time() {
    let mut handed_on = 0;
    let seeds = std::env::var("LUNA_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(300);
    for seed in 0..seeds {
        let (violation, n) = run(seed, Times::USUAL, [0, 2, 10, 30][seed as usize % 4]);
        assert_eq!(violation, None);
        handed_on += n;
    }
    assert!(handed_on > seeds as u32, "too quiet: {handed_on}");
}

#[test]
fn a_wait_that_is_shorter_than_the_hold_is_noticed() {
    let times = Times { wait: 300, ..Times::USUAL };
    assert!((0..200).any(|seed| run(seed, times, 10).0.is_some()), "the test would not notice two repairs at one time");
}

#[test]
fn the_next_one_comes_at_once_after_a_good_end_and_after_a_while_otherwise() {
    let stage = Stage::new(1, 1, 0);
    let view = View(&stage, 0);
    let (hold, until) = Hold::take(&view, &view, Times::USUAL, ID, ("a", [1; 16])).unwrap();
    let taken = view.now_ms();
    assert!(taken >= Times::USUAL.wait && until > taken && until <= taken + Times::USUAL.hold);
    hold.give_back().unwrap();
    let at = view.now_ms();
    assert!(busy(&view, &view, Times::USUAL, ID).unwrap().is_none() && view.now_ms() < at + 100, "nobody is waited for");
    let _cut_off = Hold::take(&view, &view, Times::USUAL, ID, ("b", [2; 16])).unwrap();
    let at = view.now_ms();
    assert!(busy(&view, &view, Times::USUAL, ID).unwrap().is_none() && view.now_ms() >= at + Times::USUAL.dead, "it may still be there");
}

#[test]
fn what_is_no_beat_is_waited_for_and_taken() {
    let stage = Stage::new(1, 1, 0);
    stage.world.lock().unwrap().blocks[0].fill(0x5a);
    let view = View(&stage, 0);
    assert!(Hold::take(&view, &view, Times::USUAL, ID, ("a", [1; 16])).is_ok());
    let b = Block(*stage.world.lock().unwrap().blocks[0]);
    assert_eq!(luna_format::cluster::read_repair_beat(&b, ID, super::REPAIR_BEAT_BLOCK).unwrap().unwrap().counter, 1);
}
