//! The host's lock cache alone: without a cluster, and against a manager that only writes down what it is asked.
//!
//! What is tried: granting, going up, coming down for others, giving back what is idle, and what a failed write-back ends. Not
//! here: several hosts and lost messages, which the simulator has.

use super::*;
use parking_lot::Mutex;

fn name(i: u8) -> Name {
    let mut name = Name::default();
    name.0[0] = i;
    name
}

#[test]
fn a_local_cache_grants_what_is_asked_and_no_more() {
    let cache = LockCache::local();
    assert!(cache.try_hold(&name(1), Mode::Cr).is_none());
    let hold = cache.hold(&name(1), Mode::Pr).expect("granted at once");
    assert_eq!((hold.mode(), cache.mode(&name(1))), (Mode::Pr, Mode::Pr));
    assert!(cache.try_hold(&name(1), Mode::Cr).is_some());
    assert!(cache.try_hold(&name(1), Mode::Ex).is_none());
    assert_eq!(cache.try_want(&name(1), Mode::Ex).map(|_| ()), Err(LockError::WouldBlock));
    drop(hold);
    assert_eq!(cache.mode(&name(1)), Mode::Pr, "the right stays");
    let hold = cache.hold(&name(1), Mode::Ex).expect("drained, so granted");
    let handle = cache.handle(&name(1));
    assert!(handle.try_hold(Mode::Ex).is_some(), "a right belongs to the host");
    drop(hold);
    assert_eq!(cache.counters().requests, 2);
}

#[test]
fn going_up_waits_for_local_holds_and_newcomers_queue() {
    let cache = LockCache::local();
    let first = cache.hold(&name(1), Mode::Pr).expect("granted");
    let got = Arc::new(Mutex::new(Vec::new()));
    let theirs = Arc::clone(&got);
    cache.want(&name(1), Mode::Ex, Box::new(move |h| theirs.lock().push(h.expect("granted"))));
    assert!(got.lock().is_empty());
    assert!(cache.try_hold(&name(1), Mode::Pr).is_none(), "no overtaking");
    drop(first);
    let holds = std::mem::take(&mut *got.lock());
    assert_eq!(holds.len(), 1);
    assert_eq!(holds[0].mode(), Mode::Ex);
}

#[test]
fn shrinking_gives_back_what_is_idle_and_spares_what_was_used() {
    let cache = LockCache::local();
    for i in 0..20 {
        drop(cache.hold(&name(i), Mode::Pr).expect("granted"));
    }
    let kept = cache.hold(&name(3), Mode::Pr).expect("granted");
    cache.shrink(20);
    for i in 10..20 {
        drop(cache.try_hold(&name(i), Mode::Pr).expect("cached"));
    }
    cache.shrink(11);
    wait_until(|| cache.dump().iter().filter(|line| line.granted == Mode::Nl).count() == 9);
    for i in 10..20 {
        assert_eq!(cache.mode(&name(i)), Mode::Pr, "used since");
    }
    cache.drop_unused();
    wait_until(|| cache.dump().iter().all(|line| line.granted == Mode::Nl || line.live > 0));
    // a worker that has just come down still has its reference for a moment, and shrinking spares what somebody refers to
    wait_until(|| {
        cache.shrink(0);
        cache.len() == 1
    });
    assert_eq!(cache.len(), 1);
    assert_eq!(kept.name(), &name(3));
}

fn wait_until(done: impl Fn() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("it did not happen within ten seconds");
}

/// Writes down what the manager is asked.
#[derive(Default)]
struct Script(Mutex<Vec<String>>);

impl Script {
    fn said(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl Requester for Script {
    fn lock(&self, _: Name, mode: Mode, noqueue: bool) {
        self.0.lock().push(format!("lock {mode} {noqueue}"));
    }
    fn release(&self, _: Name, from: Mode, to: Mode, value: Option<ValueBlock>) {
        self.0.lock().push(format!("release {from} {to} {:?}", value.map(|v| v[0])));
    }
    fn busy(&self, _: Name, wanted: Mode) {
        self.0.lock().push(format!("busy {wanted}"));
    }
    fn failed(&self, _: &str) {
        self.0.lock().push("failed".into());
    }
}

type Got = Arc<Mutex<Vec<Result<Hold, LockError>>>>;

fn want(cache: &Arc<LockCache>, mode: Mode, got: &Got) {
    let got = Arc::clone(got);
    cache.want(&name(1), mode, Box::new(move |result| got.lock().push(result)));
}

#[test]
fn coming_down_waits_for_holds_gives_waiters_their_turn_and_asks_again() {
    let script = Arc::new(Script::default());
    let (cache, got) = (LockCache::new(Arc::clone(&script) as _), Got::default());
    want(&cache, Mode::Ex, &got);
    assert_eq!(script.said(), ["lock EX false"]);
    cache.granted(&name(1), Mode::Ex, [7, 0, 0, 0]);
    let hold = got.lock().pop().expect("woken").expect("granted");
    assert_eq!(cache.value(&name(1))[0], 7);
    cache.contribute(&name(1), &[9, 0, 0, 0]);
    cache.bast(&name(1), Mode::Pr, false);
    assert!(cache.try_hold(&name(1), Mode::Ex).is_none(), "no new holds above PR");
    assert!(cache.try_hold(&name(1), Mode::Cr).is_some(), "those below go on");
    want(&cache, Mode::Ex, &got);
    assert!(script.said().is_empty());
    drop(hold);
    wait_until(|| script.0.lock().len() == 2);
    assert_eq!(script.said(), ["release EX PR Some(9)", "lock EX false"]);
    // The other host's turn: asked down while our own request is queued, we can.
    cache.bast(&name(1), Mode::Ex, false);
    wait_until(|| script.0.lock().len() == 1);
    assert_eq!(script.said(), ["release PR NL None"]);
    assert!(got.lock().is_empty());
    cache.granted(&name(1), Mode::Ex, [0; 4]);
    assert!(got.lock().pop().is_some_and(|r| r.is_ok()));
}

#[test]
fn a_polite_question_is_answered_by_use() {
    let script = Arc::new(Script::default());
    let (cache, got) = (LockCache::new(Arc::clone(&script) as _), Got::default());
    want(&cache, Mode::Cr, &got);
    cache.granted(&name(1), Mode::Cr, [0; 4]);
    script.said();
    cache.bast(&name(1), Mode::Ex, true);
    assert_eq!(script.said(), ["busy EX"]);
    assert!(cache.try_hold(&name(1), Mode::Cr).is_some(), "and the right stays open");
    got.lock().clear();
    cache.bast(&name(1), Mode::Ex, true);
    wait_until(|| !script.0.lock().is_empty());
    assert_eq!(script.said(), ["release CR NL None"]);
}

struct Broken;
impl Hooks for Broken {
    fn come_down(&self, _: &Name, _: Mode, _: Mode) -> Result<Option<ValueBlock>, String> {
        Err("the disk is gone".into())
    }
    fn granted(&self, _: &Name, _: Mode, _: Mode, _: &ValueBlock) {}
}

#[test]
fn a_write_back_that_fails_withdraws_and_hands_nothing_on() {
    let script = Arc::new(Script::default());
    let (cache, got) = (LockCache::new(Arc::clone(&script) as _), Got::default());
    cache.set_hooks(Arc::new(Broken));
    want(&cache, Mode::Ex, &got);
    cache.granted(&name(1), Mode::Ex, [0; 4]);
    let hold = got.lock().pop().expect("woken").expect("granted");
    cache.bast(&name(1), Mode::Ex, false);
    want(&cache, Mode::Ex, &got);
    drop(hold);
    wait_until(|| script.0.lock().len() == 2);
    assert_eq!(script.said(), ["lock EX false", "failed"]);
    assert!(matches!(got.lock().pop(), Some(Err(LockError::Withdrawn))));
    assert_eq!(cache.hold(&name(2), Mode::Pr).map(|_| ()), Err(LockError::Withdrawn));
}

/// Prints what a cached hold costs; run with `--release --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "it measures time")]
fn what_a_cached_hold_costs() {
    let cache = LockCache::local();
    for i in 0..200 {
        drop(cache.hold(&name(i), Mode::Cw).expect("granted"));
    }
    let handle = cache.handle(&name(7));
    for (what, by_handle) in [("by handle", true), ("by name", false)] {
        let begin = std::time::Instant::now();
        let rounds = 5_000_000_u32;
        for _ in 0..rounds {
            drop(if by_handle { handle.try_hold(Mode::Cw) } else { cache.try_hold(&name(7), Mode::Cw) }.expect("cached"));
        }
        eprintln!("{what}: {:?} a hold", begin.elapsed() / rounds);
    }
}
