//! What the hosts keep on the LUN to agree with each other: beats, Disk Paxos registers, membership records, mail.
//!
//! Invariants
//! * Whatever of a beat or a Paxos register ever changes lies in the first 512 bytes of its block, so that a torn write is the
//!   old block or the new one (512 bytes is the atomicity that is assumed).
//! * A record block is a function of the record before it and of the decision: everybody who writes record k writes the same
//!   bytes. It carries the complete state of all slots, so that the newest record alone tells everything.
//! * A block of these areas that is all zero, or sealed for another volume, was never written since mkfs: it is empty
//!   ([`read_beat`] and friends answer `None`). Anything else that does not check is an error, never "empty".
//!
//! Not here: what a decision means (that is `luna-cluster`), who may write what.

use crate::{
    BLOCK_BYTES, Block, BlockNo, COUNT_MAX, CheckError, Epoch, Expect, HEADER_BYTES, Header, Incarnation, Kind, MAX_SLOTS, Slot, Stamp,
    VolumeId, open, seal,
};
use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes of a name or an address, zero-filled UTF-8.
pub const TEXT_BYTES: usize = 64;
/// Addresses a beat announces.
pub const MAX_ADDRESSES: usize = 4;
/// Bytes that are written atomically.
pub const ATOMIC_BYTES: usize = 512;

/// Beat state: nobody.
pub const BEAT_FREE: u32 = 0;
/// Beat state: a host that asks to be let in.
pub const BEAT_JOINING: u32 = 1;
/// Beat state: a member.
pub const BEAT_MEMBER: u32 = 2;
/// Beat state: a member on its way out.
pub const BEAT_LEAVING: u32 = 3;
/// Beat state: evicted, drained, its gate closed: it will never write again as this incarnation.
pub const BEAT_WITHDRAWN: u32 = 4;

/// Body of a beat block, at byte 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Beat {
    /// 64: identity of the host.
    pub host_id: [u8; 16],
    /// 80: its name.
    pub name: [u8; TEXT_BYTES],
    /// 144: incarnation of the slot (0 while joining).
    pub incarnation: u64,
    /// 152: grows with each beat.
    pub counter: u64,
    /// 160: newest record it has seen.
    pub epoch_seen: u64,
    /// 168: tells two attempts of one host apart.
    pub nonce: u64,
    /// 176: bit s is set while its link to slot s is up.
    pub connectivity: u64,
    /// 184: one of `BEAT_*`.
    pub state: u32,
    /// 188: how often it beats.
    pub beat_ms: u32,
    /// 192: lease length L.
    pub lease_ms: u32,
    /// 196: lease margin M.
    pub margin_ms: u32,
    /// 200: public key of its links.
    pub link_key: [u8; 32],
    /// 232: where it listens; empty entries are zero.
    pub addresses: [[u8; TEXT_BYTES]; MAX_ADDRESSES],
    /// 488: 1 when every request of this incarnation reaches the target under its own name, so that the target can refuse it; 0 unknown.
    pub target_fence: u32,
    /// 492: zero.
    pub unused: u32,
}
const _: () = assert!(HEADER_BYTES + size_of::<Beat>() <= ATOMIC_BYTES);
const _: () = assert!(std::mem::offset_of!(Beat, addresses) == 232 - 64);

/// Body of the block in which a repair beats, at byte 64. It lives at [`crate::superblock::REPAIR_BEAT_BLOCK`]
/// and, as it was when the repair began, at [`crate::superblock::REPAIR_HOLDER_BLOCK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RepairBeat {
    /// 64: tells two repairs apart, by chance.
    pub nonce: [u8; 16],
    /// 80: grows with each beat.
    pub counter: u64,
    /// 88: the host that repairs.
    pub name: [u8; TEXT_BYTES],
}
const _: () = assert!(HEADER_BYTES + size_of::<RepairBeat>() <= ATOMIC_BYTES);

/// Decision: nothing (fills a place in the log).
pub const DECIDE_NOTHING: u16 = 0;
/// Decision: a host enters a slot.
pub const DECIDE_JOIN: u16 = 1;
/// Decision: a member is shut out.
pub const DECIDE_EVICT: u16 = 2;
/// Decision: an evicted host cannot write any more.
pub const DECIDE_FENCED: u16 = 3;
/// Decision: a fenced host's journal is replayed.
pub const DECIDE_RECOVERED: u16 = 4;
/// Decision: a member left with a clean journal.
pub const DECIDE_LEAVE: u16 = 5;
/// Decision: a cluster-wide setting.
pub const DECIDE_SETTING: u16 = 6;

/// Decision: another host replays a fenced one's journal, because the recoverer is no member any more.
pub const DECIDE_TAKEOVER: u16 = 7;

/// What a record decides: the value that Disk Paxos chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Decision {
    /// 0: one of `DECIDE_*`.
    pub kind: u16,
    /// 2: the slot it is about.
    pub slot: u16,
    /// 4: the slot that proposed it.
    pub by: u16,
    /// 6: FENCED: number of the method; EVICT: number of the reason.
    pub method: u16,
    /// 8: incarnation of the slot it is about.
    pub incarnation: u64,
    /// 16: JOIN: identity of the host.
    pub host_id: [u8; 16],
    /// 32: JOIN: which attempt of that host; SETTING: the value.
    pub nonce: u64,
    /// 40: JOIN: name of the host; SETTING: the key.
    pub name: [u8; TEXT_BYTES],
    /// 104: reason or proof, for people.
    pub text: [u8; TEXT_BYTES],
}
const _: () = assert!(size_of::<Decision>() == 168);

impl Decision {
    /// A decision with every other field zero.
    pub fn new(kind: u16, slot: Slot, incarnation: Incarnation, by: Slot) -> Self {
        Self { kind, slot, incarnation, by, ..Self::new_zeroed() }
    }
}

/// Body of a Disk Paxos register, at byte 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Paxos {
    /// 64: which record is being chosen.
    pub instance: u64,
    /// 72: largest ballot the owner has begun.
    pub mbal: u64,
    /// 80: largest ballot in which it accepted `value`; 0 for none.
    pub bal: u64,
    /// 88: the accepted value.
    pub value: Decision,
}
const _: () = assert!(HEADER_BYTES + size_of::<Paxos>() <= ATOMIC_BYTES);

/// Slot state: free.
pub const SLOT_FREE: u32 = 0;
/// Slot state: its incarnation is a member.
pub const SLOT_MEMBER: u32 = 1;
/// Slot state: its incarnation was evicted and may still be able to write.
pub const SLOT_EVICTED: u32 = 2;
/// Slot state: its incarnation is fenced, its journal not replayed yet.
pub const SLOT_FENCED: u32 = 3;

/// One slot in a record: its state after the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SlotState {
    /// 0: current or last incarnation; 0 if never used.
    pub incarnation: u64,
    /// 8: current or last host.
    pub host_id: [u8; 16],
    /// 24: its attempt.
    pub nonce: u64,
    /// 32: evicted or fenced: epoch of the EVICT record.
    pub died_epoch: u64,
    /// 40: evicted or fenced: members of the last view it was in (bit = slot).
    pub last_members: u64,
    /// 48: one of `SLOT_*`.
    pub state: u32,
    /// 52: fenced: 1 + slot of the host that replays its journal.
    pub recoverer: u32,
}
const _: () = assert!(size_of::<SlotState>() == 56);

/// Body of a membership record, at byte 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Record {
    /// 64: its index; lives at `log_start + index % log_blocks`.
    pub index: u64,
    /// 72: [`chain`] of the record before it (zero for record 1).
    pub prev: [u8; 16],
    /// 88: index of the last record that changed who is a member.
    pub view_epoch: u64,
    /// 96: what was decided.
    pub decision: Decision,
    /// 264: all slots after it.
    pub slots: [SlotState; MAX_SLOTS as usize],
}
const _: () = assert!(HEADER_BYTES + size_of::<Record>() <= BLOCK_BYTES);
const _: () = assert!(std::mem::offset_of!(Record, slots) == 264 - 64);

impl Record {
    /// The state before any record: every slot free.
    pub fn genesis() -> Self {
        Self::new_zeroed()
    }
}

/// Text as a zero-filled field; cut at a character boundary when too long.
pub fn text(s: &str) -> [u8; TEXT_BYTES] {
    let mut out = [0; TEXT_BYTES];
    let mut end = s.len().min(TEXT_BYTES);
    while !s.is_char_boundary(end) {
        end -= 1;
    }
    out[..end].copy_from_slice(&s.as_bytes()[..end]);
    out
}

/// A zero-filled field as text.
pub fn untext(b: &[u8]) -> String {
    let end = b.iter().position(|c| *c == 0).unwrap_or(b.len());
    String::from_utf8_lossy(&b[..end]).into_owned()
}

/// Link of the hash chain: a hash of the whole record block.
pub fn chain(record: &Block) -> [u8; 16] {
    let mut h = SipHasher24::new();
    h.write(&record.0);
    h.finish128().as_bytes()
}

/// Copies a body behind the header and seals.
fn sealed(body: &[u8], stamp: &Stamp) -> Block {
    let mut b = Block::zeroed();
    b.0[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(body);
    seal(&mut b, stamp);
    b
}

/// Opens a block of the cluster area; `None` when it was never written since mkfs.
fn opened(b: &Block, e: &Expect) -> Result<Option<Header>, CheckError> {
    if b.is_zero() {
        return Ok(None);
    }
    match open(b, e) {
        Ok(h) => Ok(Some(h)),
        Err(CheckError::Volume { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Refuses counters that nobody counted to, before anybody adds one to them.
fn countable(block: BlockNo, counters: &[u64]) -> Result<(), CheckError> {
    let bad = counters.iter().find(|n| **n > COUNT_MAX);
    bad.map_or(Ok(()), |n| Err(CheckError::Field { block, what: "counter", found: *n }))
}

/// Seals the beat of `slot` that will be written at `block`.
pub fn seal_beat(beat: &Beat, volume: VolumeId, block: BlockNo, slot: Slot) -> Block {
    let (owner, version, epoch) = (u64::from(slot), beat.counter, beat.epoch_seen);
    sealed(beat.as_bytes(), &Stamp { kind: Kind::Beat, volume, block, owner, version, writer: slot, epoch })
}

/// Reads the beat of `slot`; `None` when there never was one.
pub fn read_beat(b: &Block, volume: VolumeId, block: BlockNo, slot: Slot) -> Result<Option<Beat>, CheckError> {
    let h = opened(b, &Expect { kind: Kind::Beat, volume, block, owner: Some(u64::from(slot)) })?;
    let beat = h.and_then(|_| b.view::<Beat>(HEADER_BYTES).copied());
    if let Some(beat) = &beat {
        countable(block, &[beat.incarnation, beat.counter, beat.epoch_seen])?;
    }
    Ok(beat)
}

/// Seals the beat of a repair that will be written at `block`.
pub fn seal_repair_beat(beat: &RepairBeat, volume: VolumeId, block: BlockNo) -> Block {
    let stamp = Stamp { kind: Kind::RepairBeat, volume, block, owner: 0, version: beat.counter, writer: 0, epoch: 0 };
    sealed(beat.as_bytes(), &stamp)
}

/// Reads the beat of a repair; `None` when no repair is under way.
pub fn read_repair_beat(b: &Block, volume: VolumeId, block: BlockNo) -> Result<Option<RepairBeat>, CheckError> {
    let e = Expect { kind: Kind::RepairBeat, volume, block, owner: Some(0) };
    let beat = opened(b, &e)?.and_then(|_| b.view::<RepairBeat>(HEADER_BYTES).copied());
    if let Some(beat) = &beat {
        countable(block, &[beat.counter])?;
    }
    Ok(beat)
}

/// Seals the Paxos register of `slot` that will be written at `block`.
pub fn seal_paxos(px: &Paxos, volume: VolumeId, block: BlockNo, slot: Slot) -> Block {
    let owner = u64::from(slot);
    sealed(px.as_bytes(), &Stamp { kind: Kind::Paxos, volume, block, owner, version: px.mbal, writer: slot, epoch: px.instance })
}

/// Reads the Paxos register of `slot`; `None` when it was never used.
pub fn read_paxos(b: &Block, volume: VolumeId, block: BlockNo, slot: Slot) -> Result<Option<Paxos>, CheckError> {
    let h = opened(b, &Expect { kind: Kind::Paxos, volume, block, owner: Some(u64::from(slot)) })?;
    let px = h.and_then(|_| b.view::<Paxos>(HEADER_BYTES).copied());
    if let Some(px) = &px {
        countable(block, &[px.instance, px.mbal, px.bal, px.value.incarnation])?;
    }
    Ok(px)
}

/// Seals a record that will be written at `block`; the same bytes whoever does it.
pub fn seal_record(r: &Record, volume: VolumeId, block: BlockNo) -> Block {
    let stamp = Stamp { kind: Kind::Record, volume, block, owner: r.index, version: r.index, writer: r.decision.by, epoch: r.index };
    sealed(r.as_bytes(), &stamp)
}

/// Reads a record from place `at` of a log of `log_blocks`; `None` when that place was never used.
pub fn read_record(b: &Block, volume: VolumeId, log_start: BlockNo, log_blocks: u64, at: u64) -> Result<Option<Record>, CheckError> {
    let block = log_start + at;
    let Some(h) = opened(b, &Expect { kind: Kind::Record, volume, block, owner: None })? else { return Ok(None) };
    let Some(r) = b.view::<Record>(HEADER_BYTES).copied() else { return Ok(None) };
    if r.index == 0 || r.index % log_blocks != at || r.index != h.owner || r.view_epoch > r.index {
        return Err(CheckError::Field { block, what: "record index", found: r.index });
    }
    countable(block, &[r.index, r.decision.incarnation])?;
    r.slots.iter().try_for_each(|s| countable(block, &[s.incarnation, s.died_epoch]))?;
    if let Some(s) = r.slots.iter().find(|s| s.state > SLOT_FENCED) {
        return Err(CheckError::Field { block, what: "slot state", found: u64::from(s.state) });
    }
    Ok(Some(r))
}

/// Fixed part of a mail block, at byte 64. Frames follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MailHead {
    /// 64: incarnation of the writer.
    pub incarnation: u64,
    /// 72: number of this block, from 1 in each incarnation; lives at place `number % mail_blocks` of the writer's ring.
    pub number: u64,
    /// 80: for each slot: the highest number of *its* mail that the writer has read.
    pub acks: [u64; MAX_SLOTS as usize],
    /// 592: for each slot: the incarnation that ack is for.
    pub ack_incarnations: [u64; MAX_SLOTS as usize],
    /// 1104: bytes of frames that follow.
    pub used: u32,
    /// 1108: frames that follow.
    pub count: u32,
}
const _: () = assert!(size_of::<MailHead>() == 1112 - 64);

/// Where frames start in a mail block.
pub const MAIL_FRAMES_AT: usize = HEADER_BYTES + size_of::<MailHead>();
/// Bytes for frames in a mail block.
pub const MAIL_FRAME_BYTES: usize = BLOCK_BYTES - MAIL_FRAMES_AT;
/// Bytes in front of the payload of a frame.
pub const FRAME_HEAD_BYTES: usize = 8;

/// One message, or a piece of one, in a mail block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The slot it is for.
    pub to: Slot,
    /// Another piece of the same message follows in the next frame for that slot.
    pub more: bool,
    /// The payload.
    pub bytes: Vec<u8>,
}

/// Packs as many of `frames` as fit, from the front, into one mail block; answers the block and how many went in.
pub fn seal_mail(head: &MailHead, frames: &[Frame], volume: VolumeId, block: BlockNo, slot: Slot, epoch: Epoch) -> (Block, usize) {
    let mut b = Block::zeroed();
    let (mut at, mut count) = (MAIL_FRAMES_AT, 0);
    for f in frames {
        let end = at + FRAME_HEAD_BYTES + f.bytes.len();
        if end > BLOCK_BYTES {
            break;
        }
        b.0[at..at + 2].copy_from_slice(&f.to.to_le_bytes());
        b.0[at + 2..at + 4].copy_from_slice(&u16::from(f.more).to_le_bytes());
        b.0[at + 4..at + 8].copy_from_slice(&(f.bytes.len() as u32).to_le_bytes());
        b.0[at + FRAME_HEAD_BYTES..end].copy_from_slice(&f.bytes);
        (at, count) = (end, count + 1);
    }
    let head = MailHead { used: (at - MAIL_FRAMES_AT) as u32, count: count as u32, ..*head };
    b.0[HEADER_BYTES..MAIL_FRAMES_AT].copy_from_slice(head.as_bytes());
    let (owner, version) = (u64::from(slot), head.number);
    seal(&mut b, &Stamp { kind: Kind::Mail, volume, block, owner, version, writer: slot, epoch });
    (b, count)
}

/// Cuts a message into frames that fit a mail block.
pub fn frames_of(to: Slot, message: &[u8]) -> Vec<Frame> {
    let most = MAIL_FRAME_BYTES - FRAME_HEAD_BYTES;
    if message.is_empty() {
        return vec![Frame { to, more: false, bytes: Vec::new() }];
    }
    let last = (message.len() - 1) / most;
    message.chunks(most).enumerate().map(|(i, c)| Frame { to, more: i < last, bytes: c.to_vec() }).collect()
}

/// Reads a mail block of `slot`; `None` when it was never written. Lengths are checked before anything is copied.
pub fn read_mail(b: &Block, volume: VolumeId, block: BlockNo, slot: Slot) -> Result<Option<(MailHead, Vec<Frame>)>, CheckError> {
    let expect = Expect { kind: Kind::Mail, volume, block, owner: Some(u64::from(slot)) };
    if opened(b, &expect)?.is_none() {
        return Ok(None);
    }
    let Some(head) = b.view::<MailHead>(HEADER_BYTES).copied() else { return Ok(None) };
    countable(block, &[head.incarnation, head.number])?;
    let bad = |what, found| CheckError::Field { block, what, found };
    if head.used as usize > MAIL_FRAME_BYTES {
        return Err(bad("bytes of frames", u64::from(head.used)));
    }
    let mut rest = &b.0[MAIL_FRAMES_AT..MAIL_FRAMES_AT + head.used as usize];
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let Some((h, tail)) = rest.split_first_chunk::<FRAME_HEAD_BYTES>() else {
            return Err(bad("frame head", rest.len() as u64));
        };
        let to = u16::from_le_bytes([h[0], h[1]]);
        let len = u32::from_le_bytes([h[4], h[5], h[6], h[7]]) as usize;
        if len > tail.len() || to >= MAX_SLOTS {
            return Err(bad("frame length", len as u64));
        }
        let (bytes, tail) = tail.split_at(len);
        frames.push(Frame { to, more: h[2] != 0, bytes: bytes.to_vec() });
        rest = tail;
    }
    if frames.len() != head.count as usize {
        return Err(bad("number of frames", u64::from(head.count)));
    }
    Ok(Some((head, frames)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = [5; 16];

    #[test]
    fn beats_and_registers_come_back() {
        let mut beat = Beat::new_zeroed();
        (beat.counter, beat.state, beat.name) = (9, BEAT_MEMBER, text("host-a"));
        let b = seal_beat(&beat, VOLUME, 11, 3);
        assert_eq!(read_beat(&b, VOLUME, 11, 3), Ok(Some(beat)));
        assert!(read_beat(&b, VOLUME, 11, 4).is_err());
        assert_eq!(read_beat(&b, [6; 16], 11, 3), Ok(None), "a beat from before mkfs is no beat");
        assert_eq!(read_beat(&Block::zeroed(), VOLUME, 11, 3), Ok(None));
        let px = Paxos { instance: 4, mbal: 67, bal: 3, value: Decision::new(DECIDE_EVICT, 2, 8, 1) };
        let b = seal_paxos(&px, VOLUME, 20, 1);
        assert_eq!(read_paxos(&b, VOLUME, 20, 1), Ok(Some(px)));
        assert!(b.0[ATOMIC_BYTES..].iter().all(|x| *x == 0), "whatever changes is in the first sector");
        let mut rot = b.clone();
        rot.0[100] ^= 1;
        assert!(read_paxos(&rot, VOLUME, 20, 1).is_err());
    }

    #[test]
    fn a_record_knows_its_place() {
        let r = Record { index: 1030, ..Record::genesis() };
        let b = seal_record(&r, VOLUME, 106);
        assert_eq!(read_record(&b, VOLUME, 100, 1024, 6), Ok(Some(r)));
        assert!(read_record(&b, VOLUME, 99, 1024, 7).is_err());
        assert_ne!(chain(&b), chain(&Block::zeroed()));
    }

    /// The next incarnation, record or ballot was one more: a panic, or number 0.
    #[test]
    fn counters_that_nobody_counted_to_are_refused() {
        let beat = |change: fn(&mut Beat)| {
            let mut beat = Beat::new_zeroed();
            change(&mut beat);
            // the header's version is checked as well
            let sealed = Beat { counter: 1, ..beat };
            let mut b = seal_beat(&sealed, VOLUME, 11, 3);
            b.0[HEADER_BYTES..HEADER_BYTES + size_of::<Beat>()].copy_from_slice(beat.as_bytes());
            seal(&mut b, &Stamp { kind: Kind::Beat, volume: VOLUME, block: 11, owner: 3, version: 1, writer: 3, epoch: 1 });
            read_beat(&b, VOLUME, 11, 3).is_ok()
        };
        assert!(beat(|b| (b.counter, b.incarnation) = (COUNT_MAX, COUNT_MAX)));
        assert!(!beat(|b| b.counter = u64::MAX) && !beat(|b| b.incarnation = u64::MAX) && !beat(|b| b.epoch_seen = u64::MAX));
        let px = |instance, mbal| {
            let px = Paxos { instance, mbal: 1, bal: 0, value: Decision::new(0, 0, 0, 0) };
            let mut b = seal_paxos(&px, VOLUME, 20, 1);
            b.0[HEADER_BYTES..HEADER_BYTES + size_of::<Paxos>()].copy_from_slice(Paxos { mbal, ..px }.as_bytes());
            seal(&mut b, &Stamp { kind: Kind::Paxos, volume: VOLUME, block: 20, owner: 1, version: 1, writer: 1, epoch: 1 });
            read_paxos(&b, VOLUME, 20, 1).is_ok()
        };
        assert!(px(COUNT_MAX, COUNT_MAX) && !px(u64::MAX, 1) && !px(1, u64::MAX));
        let mut r = Record { index: 1030, ..Record::genesis() };
        r.slots[3].incarnation = u64::MAX;
        assert!(read_record(&seal_record(&r, VOLUME, 106), VOLUME, 100, 1024, 6).is_err());
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(untext(&text("häuschen")), "häuschen");
        assert_eq!(untext(&text(&"ä".repeat(40))), "ä".repeat(32));
    }

    #[test]
    fn mail_comes_back_and_lies_are_refused() {
        let long: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
        let mut frames = vec![Frame { to: 1, more: false, bytes: b"hello".to_vec() }];
        frames.extend(frames_of(2, &long));
        let mut head = MailHead::new_zeroed();
        (head.incarnation, head.number) = (3, 7);
        let (mut got, mut rest) = (Vec::new(), &frames[..]);
        while !rest.is_empty() {
            let (b, n) = seal_mail(&head, rest, VOLUME, 50, 0, 1);
            assert!(n > 0);
            let (h, f) = read_mail(&b, VOLUME, 50, 0).expect("whole").expect("written");
            assert_eq!((h.number, h.count as usize), (7, n));
            got.extend(f);
            rest = &rest[n..];
        }
        assert_eq!(got, frames);
        let joined: Vec<u8> = got[1..].iter().flat_map(|f| f.bytes.clone()).collect();
        assert_eq!(joined, long);
        let (b, _) = seal_mail(&head, &frames[..1], VOLUME, 50, 0, 1);
        for lie in [u32::MAX, 4, 5000] {
            let mut c = b.clone();
            c.0[MAIL_FRAMES_AT + 4..MAIL_FRAMES_AT + 8].copy_from_slice(&lie.to_le_bytes());
            seal(&mut c, &Stamp { kind: Kind::Mail, volume: VOLUME, block: 50, owner: 0, version: 7, writer: 0, epoch: 1 });
            assert!(read_mail(&c, VOLUME, 50, 0).is_err(), "{lie}");
        }
    }
}
