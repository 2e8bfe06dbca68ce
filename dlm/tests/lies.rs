//! What a member says to a master that is none of the master's business, or not the member's.
#![allow(clippy::unwrap_used)]

use luna_dlm::posix::{Owner, PosixLock, Space};
use luna_dlm::{Body, Core, History, Input, Member, Mode, Msg, Name, Record, ValueBlock, View, master_of};

/// Records of names that somebody else masters were kept, for ever and against the core's own check; so were byte ranges in the
/// name of another host's programs, and such as end before they begin.
#[test]
fn a_master_keeps_only_what_a_member_may_tell_it() {
    let members: Vec<Member> = (0..3).map(|slot| Member { slot, incarnation: 1 }).collect();
    let mut core = Core::new(members[0]);
    let mut out = Vec::new();
    core.step(0, Input::View(View { epoch: 1, members: members.clone(), dead: Vec::new() }), &mut out);
    let names: Vec<Name> = (0..64).map(|n| Name([n; 16])).collect();
    let mine: Vec<Name> = names.iter().filter(|n| master_of(n, &members) == Some(members[0])).copied().collect();
    assert!(!mine.is_empty() && mine.len() < names.len());
    let lock = |slot, start| PosixLock { space: Space::Range, owner: Owner { slot, id: 1 }, write: true, start, end: 100, pid: 1 };
    let held = names.iter().map(|n| Record::Held { name: *n, mode: Mode::Ex, value: ValueBlock::default() });
    let ranges = [lock(1, 0), lock(2, 0), lock(1, 101)].map(|lock| Record::PosixHeld { name: mine[0], lock });
    let body = Body::Records(held.chain(ranges).collect());
    core.step(1, Input::Message { from: 1, msg: Msg { epoch: 1, body } }, &mut out);
    for from in [1, 2] {
        let msg = Msg { epoch: 1, body: Body::Marker(History::default()) };
        core.step(2, Input::Message { from, msg }, &mut out);
    }
    assert_eq!(core.check(), Ok(()));
    assert_eq!(core.dump().iter().map(|d| d.name).collect::<Vec<_>>(), mine);
    assert_eq!(core.counters().refused, (names.len() - mine.len() + 2) as u64);
}
