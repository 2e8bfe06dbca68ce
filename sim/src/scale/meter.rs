//! What is counted while it is measured how things grow, and the load and the times under which it is measured.
//!
//! Invariant: whoever does not measure ([`World::scale`] is `None`) notices nothing of this file: same chances, same trace.
//! Times are whole milliseconds, the unit of all cores: a request to the LUN takes 1 ms (for 0.2 to 1), a hop through the network 0
//! or, one time in five, 1 ms (for 0.1 to 0.3). Counted are messages of both cores and membership's requests to the LUN. Not
//! counted: data written by the load, mail blocks. Not imitated: a LUN or network that saturates.

use crate::check::Who;
use crate::world::{Event, Fallible, World};
use luna_cluster::{FenceMethod, Msg};
use luna_dlm::{Mode, Name};
use luna_node::router::{DiskJob, Out};
use luna_node::wire::{self, Packet};

/// How long a replay takes: the same for every journal, so that what is left is what the protocol takes.
pub(crate) const REPLAY_MS: u64 = 100;
/// How long an exact fence takes.
const FENCE_MS: u64 = 20;
/// Names that belong to each host.
const NAMES: usize = 8;
/// Waits that one host has at once.
const WAITS: usize = 32;

/// Sums over all hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Raft messages.
    pub raft: u64,
    /// Other messages of membership.
    pub membership: u64,
    /// Messages between lock managers.
    pub locks: u64,
    /// Bytes of all these.
    pub bytes: u64,
    /// What travelled on connections: messages, repeated ones, acknowledgements.
    pub frames: u64,
    /// Read requests to the LUN.
    pub reads: u64,
    /// Blocks that they read.
    pub blocks: u64,
    /// Write requests to the LUN, of one block each.
    pub writes: u64,
    /// Locks granted.
    pub grants: u64,
    /// Membership records.
    pub records: u64,
}

impl Counts {
    /// All messages.
    pub fn messages(&self) -> u64 {
        self.raft + self.membership + self.locks
    }

    pub(crate) fn since(&self, b: &Self) -> Self {
        Self {
            raft: self.raft - b.raft,
            membership: self.membership - b.membership,
            locks: self.locks - b.locks,
            bytes: self.bytes - b.bytes,
            frames: self.frames - b.frames,
            reads: self.reads - b.reads,
            blocks: self.blocks - b.blocks,
            writes: self.writes - b.writes,
            grants: self.grants - b.grants,
            records: self.records - b.records,
        }
    }
}

/// What is counted, and how a fence is done now.
#[derive(Default)]
pub(crate) struct Meter {
    pub(crate) counts: Counts,
    /// Records as they landed: when, what, of whom.
    pub(crate) records: Vec<(u64, u16, Who)>,
    pub(crate) exact: bool,
}

impl Meter {
    /// How long a fence takes, and what it is.
    pub(crate) fn fence(&self) -> (u64, FenceMethod) {
        if self.exact { (FENCE_MS, FenceMethod::Target) } else { (1, FenceMethod::Lease) }
    }
}

fn own_name(host: usize, n: usize) -> Name {
    let mut name = Name::default();
    name.0[..8].copy_from_slice(&((host * NAMES + n + 1) as u64).to_le_bytes());
    name
}

impl World {
    /// Counts what a host has done.
    pub(crate) fn measure(&mut self, o: &Out) {
        let Some(c) = self.scale.as_mut().map(|s| &mut s.counts) else { return };
        match o {
            Out::Disk(DiskJob::Read(_, _, count)) => (c.reads, c.blocks) = (c.reads + 1, c.blocks + count),
            Out::Disk(DiskJob::Write(..)) => c.writes += 1,
            Out::Send { packet, .. } => {
                match packet {
                    Packet::Cluster(Msg::Raft { .. }) => c.raft += 1,
                    Packet::Cluster(_) => c.membership += 1,
                    Packet::Dlm(_) => c.locks += 1,
                }
                c.bytes += wire::encode_packet(packet).len() as u64;
            }
            _ => {}
        }
    }

    /// Counts what goes onto a connection.
    pub(crate) fn measure_frame(&mut self) {
        if let Some(s) = &mut self.scale {
            s.counts.frames += 1;
        }
    }

    /// Notes a record that is new.
    pub(crate) fn measure_record(&mut self, kind: u16, who: Who) {
        let now = self.now;
        if let Some(s) = &mut self.scale {
            s.counts.records += 1;
            s.records.push((now, kind, who));
        }
    }

    /// Everything counted so far.
    pub(crate) fn counted(&self) -> Counts {
        Counts { grants: self.check.locks.grants, ..self.scale.as_ref().map_or_else(Counts::default, |s| s.counts) }
    }

    /// How long a message travels.
    pub(crate) fn hop(&mut self) -> u64 {
        if self.scale.is_some() { u64::from(self.rng.u8(0..5) == 0) } else { self.rng.u64(0..3) }
    }

    /// How long a thread sleeps between the check of its lease and its write.
    pub(crate) fn pause(&mut self) -> u64 {
        if self.scale.is_some() { 0 } else { self.rng.u64(0..self.timing.pause_ms / 20) }
    }

    /// How long a program keeps what it holds.
    pub(crate) fn hold_time(&mut self) -> u64 {
        if self.scale.is_some() { 2 } else { self.rng.u64(1..60) }
    }

    /// The load: twenty times a second something exclusively: four times in five one of the host's own names, otherwise one of
    /// anybody's, half of those only to read.
    pub(crate) fn steady_want(&mut self, i: usize) -> Fallible {
        let next = self.rng.u64(25..75);
        self.later(next, i, Event::Want);
        let Some(p) = &self.hosts[i].process else { return Ok(()) };
        if !self.wanting || p.withdrawn || self.check.progress.of(i) >= WAITS {
            return Ok(());
        }
        let others = self.rng.u8(0..5) == 0;
        let of = if others { self.rng.usize(0..self.hosts.len()) } else { i };
        let name = own_name(of, self.rng.usize(0..NAMES));
        let mode = if others && self.rng.bool() { Mode::Pr } else { Mode::Ex };
        self.want(i, name, mode, false)
    }
}

/// Every name of the load.
pub(crate) fn all_names(hosts: usize) -> impl Iterator<Item = Name> {
    (0..hosts).flat_map(|h| (0..NAMES).map(move |n| own_name(h, n)))
}
