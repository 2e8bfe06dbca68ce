//! Mail: the way through the LUN for peers that TCP does not reach.
//!
//! Each host writes a ring of numbered blocks that only it writes; whoever is addressed reads it. The ring is a lossy
//! transport: a reader that falls behind misses blocks, and the link above (see `link`) sends again what was not
//! acknowledged. The thread sleeps while every peer has TCP: then it costs nothing. Who can write a ring is believed (it could as
//! well write the volume), but nothing in it makes this host panic or allocate without bound. Not here: who is a member.

use crate::host::Host;
use crate::peers::Peers;
use crate::wire::{self, Frame, FrameRef};
use luna_format::cluster::{self as fc, MailHead};
use luna_format::superblock::Superblock;
use luna_format::{BLOCK_U64, Block, Incarnation, MAX_SLOTS, Slot, VolumeId};
use luna_lun::{Disk, Durability};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use zerocopy::FromZeros;

/// Pause between two rounds while some peer has no TCP, and while all have.
const ROUND: Duration = Duration::from_millis(10);
const IDLE: Duration = Duration::from_millis(100);
/// Blocks written in one round at the most (the ring has 64).
const BURST: usize = 24;
/// What was not acknowledged for this long is mailed again.
const AGAIN: Duration = Duration::from_millis(500);
/// The longest message in pieces that is collected: a tagged frame.
const LONGEST: usize = 16 + 4 + wire::MAX_FRAME;

/// What one round knows of a reader's or writer's ring.
#[derive(Default)]
struct Box1 {
    incarnation: Incarnation,
    next: u64,
    partial: Vec<u8>,
    /// The message in pieces is too long: it is thrown away up to its end.
    skipping: bool,
}

impl Box1 {
    /// Takes the frames of one block in and gives the messages that are whole.
    fn collect(&mut self, me: Slot, head: &MailHead, frames: &[fc::Frame]) -> Vec<Vec<u8>> {
        if self.incarnation != head.incarnation || self.next != head.number {
            (self.partial, self.skipping) = (Vec::new(), false);
            self.incarnation = head.incarnation;
        }
        self.next = head.number.saturating_add(1);
        let mut whole = Vec::new();
        for f in frames.iter().filter(|f| f.to == me) {
            self.skipping |= self.partial.len() + f.bytes.len() > LONGEST;
            if self.skipping {
                self.partial = Vec::new();
            } else {
                self.partial.extend_from_slice(&f.bytes);
            }
            if !f.more && !std::mem::take(&mut self.skipping) {
                whole.push(std::mem::take(&mut self.partial));
            }
        }
        whole
    }
}

#[derive(Default)]
struct Sent {
    upto: u64,
    oldest: u64,
    since: Option<Instant>,
}

/// The mail thread's state.
pub struct Mail {
    disk: Arc<dyn Disk>,
    sb: Superblock,
    volume: VolumeId,
    me: (Slot, Incarnation),
    peers: Arc<Peers>,
    host: Arc<Host>,
    number: u64,
    boxes: BTreeMap<Slot, Box1>,
    sent: BTreeMap<Slot, Sent>,
}

impl Mail {
    /// A mail thread for this host.
    pub fn new(disk: Arc<dyn Disk>, sb: Superblock, volume: VolumeId, me: (Slot, Incarnation), peers: Arc<Peers>, host: Arc<Host>) -> Self {
        Self { disk, sb, volume, me, peers, host, number: 0, boxes: BTreeMap::new(), sent: BTreeMap::new() }
    }

    /// Rounds until `stop`.
    pub fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            let silent = self.peers.silent();
            if silent.is_empty() {
                self.boxes.clear();
                self.sent.clear();
                std::thread::sleep(IDLE);
                continue;
            }
            if let Err(e) = self.round(&silent) {
                tracing::warn!(error = %e, "mail through the LUN failed; trying again");
                std::thread::sleep(IDLE);
            }
            std::thread::sleep(ROUND);
        }
    }

    fn round(&mut self, silent: &[Slot]) -> luna_lun::Result<()> {
        if self.host.gate().is_open() {
            self.write()?;
        }
        for slot in silent {
            self.read(*slot)?;
        }
        Ok(())
    }

    fn block_of(&self, slot: Slot, number: u64) -> u64 {
        self.sb.mail_start + u64::from(slot) * self.sb.mail_blocks + number % self.sb.mail_blocks.max(1)
    }

    /// Packs what is owed into blocks and writes them.
    fn write(&mut self) -> luna_lun::Result<()> {
        let mut frames = Vec::new();
        for o in self.peers.outgoing() {
            let s = self.sent.entry(o.slot).or_default();
            let oldest = o.messages.first().map_or(u64::MAX, |m| m.0);
            if oldest != s.oldest {
                (s.oldest, s.since) = (oldest, None);
            }
            let now = Instant::now();
            if s.since.is_none_or(|t| now.duration_since(t) > AGAIN) {
                // first time, or no answer: from the oldest on; an empty message carries the acknowledgement
                s.since = Some(now);
                s.upto = oldest.saturating_sub(1);
                let ack = wire::encode_frame(&FrameRef::Ack(o.ack));
                frames.extend(fc::frames_of(o.slot, &tagged(o.incarnation, self.me.1, &ack)));
            }
            for (seq, payload) in &o.messages {
                if *seq <= s.upto {
                    continue;
                }
                if frames.len() > BURST {
                    break;
                }
                s.upto = *seq;
                let data = wire::encode_frame(&FrameRef::Data { seq: *seq, ack: o.ack, payload });
                frames.extend(fc::frames_of(o.slot, &tagged(o.incarnation, self.me.1, &data)));
            }
        }
        let mut rest = &frames[..];
        while !rest.is_empty() {
            self.number += 1;
            let mut head = MailHead::new_zeroed();
            head.incarnation = self.me.1;
            head.number = self.number;
            let at = self.block_of(self.me.0, self.number);
            let (block, packed) = fc::seal_mail(&head, rest, self.volume, at, self.me.0, 0);
            self.disk.write_at(&block.0, at * BLOCK_U64, Durability::Plain)?;
            rest = &rest[packed.max(1).min(rest.len())..];
        }
        Ok(())
    }

    /// Reads what a peer wrote since the last round.
    fn read(&mut self, slot: Slot) -> luna_lun::Result<()> {
        if slot >= MAX_SLOTS || u32::from(slot) >= self.sb.slots {
            return Ok(());
        }
        let known = self.boxes.get(&slot).map(|b| b.next);
        let found = match known {
            Some(next) if next > 0 => self.read_from(slot, next)?,
            _ => self.read_ring(slot)?,
        };
        for (head, frames) in found {
            self.take(slot, &head, &frames);
        }
        Ok(())
    }

    /// The blocks from number `next` on, as long as they are there.
    fn read_from(&self, slot: Slot, next: u64) -> luna_lun::Result<Vec<(MailHead, Vec<fc::Frame>)>> {
        let mut out = Vec::new();
        let mut b = Block::zeroed();
        for number in next..next.saturating_add(self.sb.mail_blocks) {
            let at = self.block_of(slot, number);
            self.disk.read_at(&mut b.0, at * BLOCK_U64)?;
            match fc::read_mail(&b, self.volume, at, slot) {
                Ok(Some((head, frames))) if head.number == number => out.push((head, frames)),
                // overrun: start over with what the ring holds
                Ok(Some((head, _))) if head.number > number => return self.read_ring(slot),
                _ => break,
            }
        }
        Ok(out)
    }

    /// Everything in the ring, oldest first.
    fn read_ring(&self, slot: Slot) -> luna_lun::Result<Vec<(MailHead, Vec<fc::Frame>)>> {
        let start = self.block_of(slot, 0);
        let mut blocks = Block::zeroed_vec(self.sb.mail_blocks as usize);
        for (i, b) in blocks.iter_mut().enumerate() {
            self.disk.read_at(&mut b.0, (start + i as u64) * BLOCK_U64)?;
        }
        let each = blocks.iter().enumerate().filter_map(|(i, b)| fc::read_mail(b, self.volume, start + i as u64, slot).ok().flatten());
        let mut all: Vec<_> = each.collect();
        let newest = all.iter().map(|(h, _)| h.incarnation).max().unwrap_or(0);
        all.retain(|(h, _)| h.incarnation == newest);
        all.sort_by_key(|(h, _)| h.number);
        Ok(all)
    }

    fn take(&mut self, slot: Slot, head: &MailHead, frames: &[fc::Frame]) {
        let whole = self.boxes.entry(slot).or_default().collect(self.me.0, head, frames);
        for m in whole {
            self.deliver(slot, &m);
        }
    }

    fn deliver(&self, slot: Slot, message: &[u8]) {
        let Some((to, from, frame)) = untagged(message) else { return };
        if to != self.me.1 {
            return;
        }
        match wire::read_frame(&mut &frame[..]) {
            Ok(Frame::Data { seq, ack, payload }) => self.peers.incoming(slot, from, ack, vec![(seq, payload)]),
            Ok(Frame::Ack(ack)) => self.peers.incoming(slot, from, ack, Vec::new()),
            _ => {}
        }
    }
}

/// A mail names the incarnations it goes to and comes from: a ring outlives both.
fn tagged(to: Incarnation, from: Incarnation, frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(frame.len() + 16);
    out.extend_from_slice(&to.to_le_bytes());
    out.extend_from_slice(&from.to_le_bytes());
    out.extend_from_slice(frame);
    out
}

fn untagged(m: &[u8]) -> Option<(Incarnation, Incarnation, &[u8])> {
    let (to, rest) = m.split_first_chunk::<8>()?;
    let (from, frame) = rest.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*to), u64::from_le_bytes(*from), frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of a message without an end, numbers at the edge, and whatever bytes: bounded, no panic, and the next message is read.
    #[test]
    fn a_ring_of_lies_is_bounded() {
        let mut b = Box1::default();
        let mut head = MailHead::new_zeroed();
        let piece = |more, n: usize| fc::Frame { to: 1, more, bytes: vec![5; n] };
        for number in 1..=(LONGEST / (1 << 20) + 9) as u64 {
            head.number = number;
            assert!(b.collect(1, &head, &[piece(true, 1 << 20)]).is_empty());
            assert!(b.partial.len() <= LONGEST);
        }
        assert!(b.skipping);
        head.number += 1;
        assert_eq!(b.collect(1, &head, &[piece(false, 3), piece(false, 2)]), [vec![5; 2]]);
        head.number = u64::MAX;
        assert_eq!(b.collect(1, &head, &[piece(false, 1)]).len(), 1);
        assert_eq!(b.collect(1, &head, &[piece(false, 1)]).len(), 1);
        for n in 0..20 {
            assert_eq!(untagged(&vec![1; n]).is_some(), n >= 16);
        }
    }
}
