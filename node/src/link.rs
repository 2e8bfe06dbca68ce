//! One peer's link: a reliable, ordered stream of messages that survives the loss of its transport.
//!
//! Pure: numbers what is sent, keeps it until the peer acknowledged it, delivers what arrives exactly once and in order, and
//! says what must be sent again. The transport (a TCP connection, or the mailbox on the LUN when TCP is down) may lose
//! everything in flight and may be exchanged at any time. State belongs to one incarnation of the peer and dies with it.
//! Not here: sockets, the LUN, time.

use std::collections::VecDeque;
use std::sync::Arc;

/// A numbered message.
#[derive(Clone, Debug)]
pub struct Numbered {
    /// Its number, from 1.
    pub seq: u64,
    /// The message.
    pub payload: Arc<[u8]>,
}

/// Both directions of one link.
#[derive(Debug, Default)]
pub struct Link {
    sent: u64,
    unacked: VecDeque<Numbered>,
    unacked_bytes: usize,
    received: u64,
    acked_to_peer: u64,
    /// Messages that arrived twice.
    pub duplicates: u64,
    /// Messages that arrived with a hole before them (and were dropped; they come again).
    pub gaps: u64,
}

/// What became of an arrived message.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The next one: deliver it.
    Deliver,
    /// Known already.
    Duplicate,
    /// An earlier one is missing.
    Gap,
}

impl Link {
    /// Numbers a message and keeps it until it is acknowledged. Never refuses: a message lost here would stall a lock for
    /// ever, and a peer that does not acknowledge is evicted within the lease, which ends this link.
    pub fn send(&mut self, payload: Vec<u8>) -> Numbered {
        self.sent += 1;
        self.unacked_bytes += payload.len();
        let n = Numbered { seq: self.sent, payload: payload.into() };
        self.unacked.push_back(n.clone());
        n
    }

    /// The peer has everything up to `ack`.
    pub fn acked(&mut self, ack: u64) {
        while self.unacked.front().is_some_and(|n| n.seq <= ack) {
            if let Some(n) = self.unacked.pop_front() {
                self.unacked_bytes -= n.payload.len();
            }
        }
    }

    /// A numbered message arrived.
    pub fn arrived(&mut self, seq: u64) -> Arrival {
        if seq <= self.received {
            self.duplicates += 1;
            Arrival::Duplicate
        } else if seq == self.received + 1 {
            self.received = seq;
            Arrival::Deliver
        } else {
            self.gaps += 1;
            Arrival::Gap
        }
    }

    /// The number to acknowledge, remembered as said.
    pub fn ack(&mut self) -> u64 {
        self.acked_to_peer = self.received;
        self.received
    }

    /// Whether the peer has not been told of all that arrived.
    pub fn ack_due(&self) -> u64 {
        self.received - self.acked_to_peer
    }

    /// The last number sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// The last number received.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that wait for an acknowledgement.
    pub fn unacked_bytes(&self) -> usize {
        self.unacked_bytes
    }

    /// What must be sent again on a new transport.
    pub fn unacked(&self) -> impl Iterator<Item = &Numbered> {
        self.unacked.iter()
    }

    /// Number of the oldest message that is not acknowledged, if any.
    pub fn oldest_unacked(&self) -> Option<u64> {
        self.unacked.front().map(|n| n.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two links over a transport that loses, doubles and is exchanged: everything arrives once and in order.
    #[test]
    fn everything_arrives_once_and_in_order() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut a, mut b) = (Link::default(), Link::default());
            let mut got = Vec::new();
            let mut wire: VecDeque<Numbered> = VecDeque::new();
            for step in 0u32..2000 {
                match rng.u8(0..10) {
                    0..4 if step < 1500 => wire.push_back(a.send(step.to_le_bytes().to_vec())),
                    4 => wire.clear(),
                    5 => wire = a.unacked().cloned().collect(),
                    6 => a.acked(b.ack()),
                    _ => {
                        if let Some(n) = wire.pop_front()
                            && b.arrived(n.seq) == Arrival::Deliver
                        {
                            got.push(n.payload.to_vec());
                        }
                    }
                }
            }
            for n in a.unacked() {
                if b.arrived(n.seq) == Arrival::Deliver {
                    got.push(n.payload.to_vec());
                }
            }
            a.acked(b.ack());
            assert_eq!(a.oldest_unacked(), None, "seed {seed}");
            assert_eq!(got.len() as u64, a.sent, "seed {seed}");
            assert!(
                got.windows(2).all(|w| u32::from_le_bytes(w[0][..].try_into().unwrap()) < u32::from_le_bytes(w[1][..].try_into().unwrap())),
                "seed {seed}"
            );
        }
    }
}
