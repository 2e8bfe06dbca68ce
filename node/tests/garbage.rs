//! Bytes from a seed into everything that reads bytes from others: handshake, records, frames, packets, mail. Nothing panics, and
//! what is announced is not allocated.
//!
//! One test in a process of its own, because it takes away the address space that a believed length would need. Thousands of
//! inputs, each a mutation of a good one; the good ones have fixed keys, so a seed is a run. Not here: sockets (see `strangers`).
#![allow(clippy::unwrap_used)]

use luna_format::cluster as fc;
use luna_format::{BLOCK_BYTES, Block, Kind, Stamp, VolumeId, seal};
use luna_node::noise::{self, Keys};
use luna_node::wire::{self, FrameRef, Hello, Packet, WIRE_VERSION};
use std::io::{Cursor, Read, Write};
use zerocopy::FromZeros;

const VOLUME: VolumeId = [7; 16];
const SECRET: [u8; 32] = [3; 32];
const ROUNDS: u32 = 4000;

/// Gives `input`, swallows what is said.
struct Tape<'a>(Cursor<&'a [u8]>);

impl Read for Tape<'_> {
    fn read(&mut self, b: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(b)
    }
}

impl Write for Tape<'_> {
    fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
        Ok(b.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One of the usual ways to break bytes.
fn mutate(rng: &mut fastrand::Rng, good: &[u8]) -> Vec<u8> {
    let mut b = good.to_vec();
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(0..=b.len().saturating_sub(1));
        match rng.u8(0..7) {
            0 => b.truncate(at),
            1 if !b.is_empty() => b[at] ^= 1 << rng.u8(0..8),
            2 if !b.is_empty() => b[at] = [0, 0x7f, 0x80, 0xff][rng.usize(0..4)],
            3 => (0..rng.usize(1..12)).for_each(|_| b.insert(at.min(b.len()), 0xff)),
            4 => b.extend((0..rng.usize(0..300)).map(|_| rng.u8(..))),
            5 if b.len() > at + 8 => {
                let other = rng.usize(0..b.len() - 7);
                b.copy_within(other..other + 8, at);
            }
            _ => (0..8).for_each(|i| {
                if let Some(x) = b.get_mut(at + i) {
                    *x = rng.u8(..)
                }
            }),
        }
    }
    b
}

/// The first bytes of a caller with this volume and secret, recorded once: they must be understood for as long as the wire version
/// stays. (A new version needs a new recording: print what `hello` says through `opening`.)
const OPENING: &str = "6c756e612d6c6e6b020000000000000007070707070707070707070707070707460043dbbb3b934c24b033f86f86675d34d83b26dd14e13ce18e\
    ffbfd7acf9d82550c0fd8263bceacbcf2624ec97625079936d50252d08fb3f7842147728fbdd61f64549c6916a24";

/// What the recorded caller said of itself.
fn hello() -> Hello {
    Hello { version: WIRE_VERSION, volume: VOLUME, slot: 1, incarnation: 5, to_slot: 0, received: 900 }
}

fn unhex(s: &str) -> Vec<u8> {
    (0..s.len() / 2).map(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// Records what a caller says first.
fn opening() -> String {
    struct Recorder(Vec<u8>);
    impl Read for Recorder {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Ok(0)
        }
    }
    impl Write for Recorder {
        fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
            self.0.extend_from_slice(b);
            Ok(b.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut said = Recorder(Vec::new());
    let _ = noise::dial(&Keys::new(VOLUME, &SECRET).unwrap(), &mut said, &hello(), |_, _| Ok(()));
    said.0.iter().map(|b| format!("{b:02x}")).collect()
}

fn packets() -> Vec<Packet> {
    use luna_cluster::Msg;
    use luna_dlm::{Body, History, Member, Mode, ModeSet, Name, Record, ValueBlock};
    let name = Name([5; 16]);
    let dlm = |body| Packet::Dlm(luna_dlm::Msg { epoch: 300, body });
    let held = |i| Record::Held { name: Name([i; 16]), mode: Mode::Pr, value: ValueBlock::default() };
    let dead = Record::Dead { name, member: Member { slot: 3, incarnation: 9 }, modes: ModeSet::default() };
    vec![
        Packet::Cluster(Msg::Nudge { index: 77 }),
        Packet::Cluster(Msg::JoinRequest { host_id: [1; 16], name: "host".into(), nonce: 5 }),
        Packet::Cluster(Msg::Raft { view: 3, bytes: vec![8, 1, 16, 2] }),
        dlm(Body::Lock { name, mode: Mode::Ex, noqueue: true }),
        dlm(Body::Release { name, from: Mode::Ex, to: Mode::Nl, value: Some(ValueBlock::default()) }),
        dlm(Body::Records((0..100).map(held).chain([dead]).collect())),
        dlm(Body::Marker(History::default())),
        dlm(Body::Ready),
    ]
}

/// Leaves this process 96 MiB more than it has.
fn no_more_memory() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let have = pages.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096;
    let limit = Some(have + (96 << 20));
    setrlimit(Resource::As, Rlimit { current: limit, maximum: limit }).unwrap();
}

#[test]
fn whatever_arrives() {
    no_more_memory();
    let mut rng = fastrand::Rng::with_seed(4711);
    handshakes(&mut rng);
    frames(&mut rng);
    mail(&mut rng);
}

/// The answering side of a handshake, with bytes that are almost right.
fn handshakes(rng: &mut fastrand::Rng) {
    let keys = Keys::new(VOLUME, &SECRET).unwrap();
    let good = unhex(OPENING);
    let heard = noise::hear(&keys, &mut Tape(Cursor::new(&good)));
    assert_eq!(heard.ok().map(|h| h.claim), Some(hello()), "a recorded opening is not understood; this version's would be {}", opening());
    let mut accepted = 0;
    for _ in 0..ROUNDS {
        let bad = mutate(rng, &good);
        let Ok(heard) = noise::hear(&keys, &mut Tape(Cursor::new(&bad))) else { continue };
        // only what lies behind the message may differ
        assert!(bad.starts_with(&good), "a changed opening was accepted");
        accepted += 1;
        let third = mutate(rng, &good[32..]);
        assert!(heard.answer(&mut Tape(Cursor::new(&third)), &hello()).is_err());
    }
    assert!(accepted > 0 && accepted < ROUNDS / 4, "{accepted} openings got to the third message");
    // the dialing side
    let answer = [&b"luna-lnk"[..], &WIRE_VERSION.to_le_bytes(), &[0; 4], &[96, 0], &[1; 96]].concat();
    for _ in 0..ROUNDS {
        let bad = mutate(rng, &answer);
        assert!(noise::dial(&keys, &mut Tape(Cursor::new(&bad)), &hello(), |_, _| Ok(())).is_err());
    }
}

/// Frames, and packets in them, as an authentic peer that is out of its mind could send them.
fn frames(rng: &mut fastrand::Rng) {
    let (mut frames_read, mut packets_read) = (0, 0);
    let packets: Vec<Vec<u8>> = packets().iter().map(wire::encode_packet).collect();
    for p in &packets {
        assert!(wire::decode_packet(p).is_some());
    }
    for i in 0..ROUNDS {
        let payload = &packets[i as usize % packets.len()];
        let good = wire::encode_frame(&FrameRef::Data { seq: u64::from(i), ack: 7, payload });
        let bad = mutate(rng, &good);
        let mut r = &bad[..];
        while !r.is_empty() && wire::read_frame(&mut r).is_ok() {
            frames_read += 1;
        }
        packets_read += u32::from(wire::decode_packet(&mutate(rng, payload)).is_some());
    }
    assert!(frames_read > 0 && packets_read > 0, "nothing ever got through: the mutations are too coarse");
    // the worst lies, one by one: lengths of everything, and a vector of 2^40 records
    for len in [u32::MAX, 32 << 20, (32 << 20) + 1] {
        assert!(wire::read_frame(&mut &[&len.to_le_bytes()[..], &[1; 40]].concat()[..]).is_err());
    }
    let varint = |n: u64| postcard_varint(n);
    for n in [1 << 20, 1 << 32, 1 << 40, u64::MAX] {
        let records = [&[1, 1, 9][..], &varint(n), &[0; 20]].concat();
        assert!(wire::decode_packet(&records).is_none());
        let raft = [&[0, 2, 3][..], &varint(n), &[0; 20]].concat();
        assert!(wire::decode_packet(&raft).is_none());
    }
}

fn postcard_varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

/// Mail blocks with a right checksum and wrong insides.
fn mail(rng: &mut fastrand::Rng) {
    let mut read = 0;
    for i in 0..ROUNDS {
        let mut head = fc::MailHead::new_zeroed();
        (head.incarnation, head.number) = (3, u64::from(i));
        let frame = wire::encode_frame(&FrameRef::Data { seq: 1, ack: 2, payload: &[i as u8; 700] });
        let frames = fc::frames_of(2, &[&frame[..]; 4].concat());
        let (good, _) = fc::seal_mail(&head, &frames, VOLUME, 50, 0, 1);
        let mut bad = Block::zeroed();
        let bytes = mutate(rng, &good.0[64..]);
        let n = bytes.len().min(BLOCK_BYTES - 64);
        bad.0[64..64 + n].copy_from_slice(&bytes[..n]);
        seal(&mut bad, &Stamp { kind: Kind::Mail, volume: VOLUME, block: 50, owner: 0, version: 1, writer: 0, epoch: 1 });
        if let Ok(Some((_, frames))) = fc::read_mail(&bad, VOLUME, 50, 0) {
            read += 1;
            frames.iter().for_each(|f| drop(wire::read_frame(&mut &f.bytes[..])));
        }
    }
    assert!(read > 0);
}
