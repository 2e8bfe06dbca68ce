//! The coordinator: one volatile raft group per view, voters = its members. It elects who coordinates and replicates who
//! takes over which dead slot. It makes recovery fast and orderly; it can never make it unsafe, because nothing
//! irreversible happens without a chosen record on the LUN.
//!
//! Deterministic: election ticks are fixed per member (`min = n, max = n + 1`), so raft's own random source has no choice.
//! raft types do not leave this file; an id is slot + 1. Not here: membership itself.

use crate::types::Msg;
use luna_format::{COUNT_MAX, Epoch, Incarnation, Slot};
use protobuf::Message as _;
use raft::eraftpb::{ConfState, EntryType, Message, MessageType};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};

/// No message of this group is longer: one entry of a few bytes. (The decoder recurses over nested groups of unknown fields.)
const LONGEST: usize = 4096;

/// What the group agrees on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Takeover {
    /// Whose journal.
    pub(crate) slot: Slot,
    /// Which incarnation of it.
    pub(crate) incarnation: Incarnation,
    /// Who replays it.
    pub(crate) by: Slot,
}

impl Takeover {
    fn encode(&self) -> Vec<u8> {
        let mut v = Vec::with_capacity(12);
        v.extend(self.slot.to_le_bytes());
        v.extend(self.by.to_le_bytes());
        v.extend(self.incarnation.to_le_bytes());
        v
    }

    fn decode(b: &[u8]) -> Option<Self> {
        let b: &[u8; 12] = b.try_into().ok()?;
        let slot = u16::from_le_bytes([b[0], b[1]]);
        let by = u16::from_le_bytes([b[2], b[3]]);
        let incarnation = u64::from_le_bytes(b[4..].try_into().ok()?);
        Some(Self { slot, incarnation, by })
    }
}

/// The raft group of one view.
pub(crate) struct Council {
    view: Epoch,
    me: u64,
    node: RawNode<MemStorage>,
    voters: Vec<u64>,
}

impl Council {
    /// The group of `view` with `members` (this host's slot among them). `None` when raft refuses the configuration.
    pub(crate) fn new(view: Epoch, me: Slot, members: &[Slot]) -> Option<Self> {
        let voters: Vec<u64> = members.iter().map(|s| u64::from(*s) + 1).collect();
        let id = u64::from(me) + 1;
        let rank = voters.iter().position(|v| *v == id)?;
        let ticks = 10 + 3 * rank;
        let config = Config {
            id,
            election_tick: ticks,
            heartbeat_tick: 2,
            min_election_tick: ticks,
            max_election_tick: ticks + 1,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let storage = MemStorage::new_with_conf_state(ConfState::from((voters.clone(), vec![])));
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut node = RawNode::new(&config, storage, &logger).ok()?;
        if rank == 0 {
            // the lowest slot asks at once; the others only when it does not
            node.campaign().ok()?;
        }
        Some(Self { view, me: id, node, voters })
    }

    pub(crate) fn view(&self) -> Epoch {
        self.view
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// The slot that leads, if one is known.
    pub(crate) fn leader(&self) -> Option<Slot> {
        self.node.raft.leader_id.checked_sub(1).map(|s| s as Slot)
    }

    pub(crate) fn tick(&mut self) {
        self.node.tick();
    }

    /// A message from a member of this group.
    pub(crate) fn receive(&mut self, from: Slot, bytes: &[u8]) {
        if bytes.len() > LONGEST {
            return;
        }
        let Ok(m) = Message::parse_from_bytes(bytes) else { return };
        let sender = u64::from(from) + 1;
        if m.from != sender || m.to != self.me || !self.voters.contains(&sender) || !self.is_sane(&m) {
            return;
        }
        // an error means a message that raft does not want now; it is as good as lost
        let _ = self.node.step(m);
    }

    /// Whether raft can take the message. It trusts its group and stops the process over a commit of entries that nobody has, over entries
    /// out of order, over a snapshot or a proposal of nothing; a member that is mad must not stop the others.
    fn is_sane(&self, m: &Message) -> bool {
        use MessageType::*;
        let last = self.node.raft.raft_log.last_index();
        let small = [m.term, m.log_term, m.index, m.commit, m.reject_hint, m.commit_term].into_iter().all(|n| n <= COUNT_MAX);
        let in_order = (m.index + 1..).zip(m.get_entries()).all(|(index, e)| e.index == index && e.term <= m.term);
        small
            && match m.get_msg_type() {
                MsgAppend => in_order,
                MsgHeartbeat => m.commit <= last,
                MsgAppendResponse => m.index <= last || m.reject,
                MsgRequestVote | MsgRequestVoteResponse | MsgRequestPreVote | MsgRequestPreVoteResponse | MsgHeartbeatResponse => true,
                // this group never compacts, hands over or forwards
                _ => false,
            }
    }

    /// Proposes a takeover; only a leader's proposal has any effect.
    pub(crate) fn propose(&mut self, t: &Takeover) -> bool {
        self.is_leader() && self.node.propose(vec![], t.encode()).is_ok()
    }

    /// Does what raft is ready for: answers messages to send and takeovers that the group agreed on.
    pub(crate) fn drain(&mut self) -> (Vec<(Slot, Msg)>, Vec<Takeover>) {
        let (mut out, mut agreed) = (Vec::new(), Vec::new());
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            self.collect(ready.take_messages(), &mut out);
            Self::apply(ready.take_committed_entries(), &mut agreed);
            // volatile: "persisting" is appending to memory; it cannot fail for entries that raft itself made in order
            if !ready.entries().is_empty() {
                let _ = self.node.raft.raft_log.store.wl().append(ready.entries());
            }
            if let Some(hs) = ready.hs() {
                self.node.raft.raft_log.store.wl().set_hardstate(hs.clone());
            }
            self.collect(ready.take_persisted_messages(), &mut out);
            let mut light = self.node.advance(ready);
            if let Some(commit) = light.commit_index() {
                self.node.raft.raft_log.store.wl().mut_hard_state().set_commit(commit);
            }
            self.collect(light.take_messages(), &mut out);
            Self::apply(light.take_committed_entries(), &mut agreed);
            self.node.advance_apply();
        }
        (out, agreed)
    }

    fn collect(&self, messages: Vec<Message>, out: &mut Vec<(Slot, Msg)>) {
        for m in messages {
            if let (Some(to), Ok(bytes)) = (m.to.checked_sub(1), m.write_to_bytes()) {
                out.push((to as Slot, Msg::Raft { view: self.view, bytes }));
            }
        }
    }

    fn apply(entries: Vec<raft::eraftpb::Entry>, agreed: &mut Vec<Takeover>) {
        for e in entries {
            if e.get_entry_type() == EntryType::EntryNormal {
                agreed.extend(Takeover::decode(&e.data));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::Entry;

    /// Each of these stopped the process: a commit of what nobody has, answers for entries that do not exist, entries out of order, a
    /// snapshot, a proposal of nothing, a term after which there is none, and nesting without end.
    #[test]
    fn a_mad_member_does_not_stop_the_others() {
        let say = |kind, change: fn(&mut Message)| {
            let mut c = Council::new(4, 0, &[0, 1, 2]).expect("a group");
            let mut m = Message::default();
            m.set_msg_type(kind);
            (m.from, m.to, m.term) = (2, 1, 5);
            change(&mut m);
            c.receive(1, &m.write_to_bytes().expect("encodes"));
            (0..200).for_each(|_| {
                c.tick();
                c.drain();
            });
        };
        say(MessageType::MsgHeartbeat, |m| m.commit = 100);
        say(MessageType::MsgAppendResponse, |m| m.index = 100);
        say(MessageType::MsgAppend, |m| (m.index, m.commit) = (0, 100));
        say(MessageType::MsgAppend, |m| {
            for index in [3, 9] {
                m.entries.push(Entry { index, term: 5, ..Entry::default() });
            }
        });
        say(MessageType::MsgSnapshot, |m| m.mut_snapshot().mut_metadata().index = 100);
        say(MessageType::MsgPropose, |_| ());
        say(MessageType::MsgReadIndex, |_| ());
        say(MessageType::MsgRequestVote, |m| m.term = u64::MAX);
        Council::new(4, 0, &[0, 1]).expect("a group").receive(1, &[0xfb; 1 << 20]);
    }
}
