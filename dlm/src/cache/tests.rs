use super::*;

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
