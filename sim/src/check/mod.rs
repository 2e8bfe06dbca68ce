//! The checkers: one property each, told what happens, saying no with one line.
//!
//! They believe the LUN (what was written where and when) and what the hosts do, never what a core says of itself.

pub(crate) mod data;
pub(crate) mod locks;
pub(crate) mod membership;
pub(crate) mod progress;

/// One life of one host.
pub(crate) type Who = (luna_format::Slot, luna_format::Incarnation);

/// All of them.
#[derive(Default)]
pub(crate) struct Checks {
    pub(crate) locks: locks::Locks,
    pub(crate) members: membership::Membership,
    pub(crate) progress: progress::Progress,
    pub(crate) data: data::Data,
}
