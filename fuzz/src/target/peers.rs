//! What other hosts say: frames, packets, handshakes, sealed records, and messages into the two cores.
//!
//! Messages come from members, authenticated, and may be anything all the same: a member may be mad, or of another version. Invariant: a core
//! takes every message and goes on; what makes no sense is dropped. An input for the cores is a sequence of: sender (1 byte), length (2),
//! an encoded packet. Not here: sockets and time limits (`node/tests/strangers.rs`).

use crate::scene::VOLUME;
use luna_cluster as cluster;
use luna_dlm as dlm;
use luna_format::Slot;
use luna_node::noise::{self, Keys};
use luna_node::wire::{self, Frame, FrameRef, Hello, Packet, WIRE_VERSION};
use std::io::{Cursor, Read, Write};
use std::sync::OnceLock;

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

/// Frames, and packets, that an authentic peer sends.
pub fn wire(input: &[u8]) {
    let mut rest = input;
    while !rest.is_empty() {
        match wire::read_frame(&mut rest) {
            Ok(Frame::Data { payload, seq, ack }) => {
                let again = wire::encode_frame(&FrameRef::Data { seq, ack, payload: &payload });
                assert!(wire::read_frame(&mut &again[..]).is_ok());
                packet(&payload);
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    packet(input);
}

fn packet(bytes: &[u8]) {
    if let Some(p) = wire::decode_packet(bytes) {
        // what was understood is said again in the same words
        let again = wire::encode_packet(&p);
        assert_eq!(format!("{:?}", wire::decode_packet(&again)), format!("{:?}", Some(p)));
    }
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| Keys::new(VOLUME, &[3; 32]).unwrap_or_else(|e| panic!("{e}")))
}

fn hello() -> Hello {
    Hello { version: WIRE_VERSION, volume: VOLUME, slot: 1, incarnation: 5, to_slot: 0, received: 900 }
}

/// Both sides of the handshake, and what follows it.
pub fn handshake(input: &[u8]) {
    if let Ok(heard) = noise::hear(keys(), &mut Tape(Cursor::new(input))) {
        let _ = heard.answer(&mut Tape(Cursor::new(&input[32.min(input.len())..])), &hello());
    }
    let refused = noise::dial(keys(), &mut Tape(Cursor::new(input)), &hello(), |_, _| Ok(())).is_err();
    assert!(refused, "somebody without a key was believed");
}

/// A caller's first bytes, and an answer's.
pub fn handshake_seeds() -> Vec<Vec<u8>> {
    let answer = [&b"luna-lnk"[..], &WIRE_VERSION.to_le_bytes(), &[0; 4], &[96, 0], &[1; 96]].concat();
    let mut opening = [&b"luna-lnk"[..], &WIRE_VERSION.to_le_bytes(), &[0; 4], &VOLUME].concat();
    opening.extend([0x46, 0]);
    opening.extend([9; 0x46]);
    vec![answer, opening]
}

/// Splits an input into senders and packets.
fn messages(input: &[u8]) -> impl Iterator<Item = (Slot, Packet)> + '_ {
    let mut rest = input;
    std::iter::from_fn(move || {
        loop {
            let (head, tail) = rest.split_first_chunk::<3>()?;
            let len = usize::from(u16::from_le_bytes([head[1], head[2]])).min(tail.len());
            let (body, tail) = tail.split_at(len);
            rest = tail;
            if let Some(p) = wire::decode_packet(body) {
                return Some((Slot::from(head[0] % 4), p));
            }
        }
    })
    .take(64)
}

fn message(from: u8, p: &Packet) -> Vec<u8> {
    let body = wire::encode_packet(p);
    [&[from][..], &(body.len() as u16).to_le_bytes(), &body].concat()
}

/// The one lie that a master answers by stopping, by design: two members that both say they hold what cannot be held by two. (Going on
/// could hand one lock to two hosts.) So nobody here claims more than PR.
fn believable(body: &mut dlm::Body) {
    if let dlm::Body::Records(records) = body {
        for r in records {
            if let dlm::Record::Held { mode, .. } = r {
                *mode = if dlm::Mode::Pr.covers(*mode) { *mode } else { dlm::Mode::Pr };
            }
        }
    }
}

/// The lock manager of slot 0, among three members, with a little of everything going on.
pub fn locks(input: &[u8]) {
    let all: Vec<dlm::Member> = (0..3).map(|slot| dlm::Member { slot, incarnation: 1 }).collect();
    let mut core = dlm::Core::new(all[0]);
    let mut out = Vec::new();
    let name = |n: u8| dlm::Name([n; 16]);
    core.step(0, dlm::Input::View(dlm::View { epoch: 1, members: all.clone(), dead: Vec::new() }), &mut out);
    for n in 0..8 {
        core.step(1, dlm::Input::Lock { name: name(n), mode: dlm::Mode::Pr, noqueue: n % 2 == 0 }, &mut out);
    }
    for (n, (from, p)) in messages(input).enumerate() {
        let Packet::Dlm(mut msg) = p else { continue };
        believable(&mut msg.body);
        let now = n as u64 * 10;
        core.step(now, dlm::Input::Message { from, msg }, &mut out);
        core.step(now, dlm::Input::Tick, &mut out);
        if n % 16 == 15 {
            let dead = dlm::DeadHost { slot: 2, incarnation: 1, last_view: all.clone() };
            let view = dlm::View { epoch: n as u64, members: all[..2].to_vec(), dead: vec![dead] };
            core.step(now, dlm::Input::View(view), &mut out);
        }
        out.clear();
    }
    assert_eq!(core.check(), Ok(()));
    let _ = core.dump();
}

/// One of every message.
pub fn packets() -> Vec<Packet> {
    use luna_cluster::Msg;
    use luna_dlm::{Body, History, Member, Mode, ModeSet, Name, Record, ValueBlock};
    let name = Name([5; 16]);
    let dlm = |epoch, body| Packet::Dlm(luna_dlm::Msg { epoch, body });
    let held = |i| Record::Held { name: Name([i; 16]), mode: Mode::Pr, value: ValueBlock::default() };
    let dead = Record::Dead { name, member: Member { slot: 3, incarnation: 9 }, modes: ModeSet::default() };
    vec![
        Packet::Cluster(Msg::Nudge { index: 77 }),
        Packet::Cluster(Msg::JoinRequest { host_id: [1; 16], name: "host".into(), nonce: 5 }),
        Packet::Cluster(Msg::Raft { view: 1, bytes: vec![8, 1, 16, 1, 24, 2] }),
        dlm(1, Body::Lock { name, mode: Mode::Ex, noqueue: true }),
        dlm(1, Body::Release { name, from: Mode::Ex, to: Mode::Nl, value: Some(ValueBlock::default()) }),
        dlm(1, Body::Busy { name, wanted: Mode::Ex }),
        dlm(1, Body::Grant { name, mode: Mode::Pr, value: ValueBlock::default() }),
        dlm(1, Body::Deny { name }),
        dlm(1, Body::Bast { name, wanted: Mode::Ex, polite: false }),
        dlm(1, Body::PosixCancel { token: 1, name }),
        dlm(1, Body::Records((0..10).map(held).chain([dead]).collect())),
        dlm(1, Body::Marker(History::default())),
        dlm(1, Body::Ready),
        dlm(15, Body::Marker(History::default())),
    ]
}

/// Sequences of them.
pub fn sequences() -> Vec<Vec<u8>> {
    let all = packets();
    let each = all.iter().flat_map(|p| [message(1, p), message(2, p)]);
    let markers = |epoch| dlm_message(epoch, dlm::Body::Marker(dlm::History::default()));
    let whole = [message(1, &markers(1)), message(2, &markers(1)), message(1, &dlm_message(1, dlm::Body::Ready))];
    let start: Vec<u8> = whole.concat();
    let mut out: Vec<Vec<u8>> = each.map(|m| [start.clone(), m].concat()).collect();
    out.push(all.iter().flat_map(|p| message(1, p)).collect());
    out
}

fn dlm_message(epoch: u64, body: dlm::Body) -> Packet {
    Packet::Dlm(dlm::Msg { epoch, body })
}

/// Frames of them.
pub fn frames() -> Vec<Vec<u8>> {
    let frame = |p: &Packet| wire::encode_frame(&FrameRef::Data { seq: 1, ack: 7, payload: &wire::encode_packet(p) });
    packets().iter().map(frame).chain([wire::encode_frame(&FrameRef::Ack(3))]).collect()
}

/// A raft message from slot 1 to slot 0, in the group of record 2: type, term, and fields of one varint each.
fn raft(kind: u8, term: u8, fields: &[(u8, u8)]) -> Packet {
    let mut bytes = vec![8, kind, 16, 1, 24, 2, 32, term];
    fields.iter().for_each(|(field, value)| bytes.extend([field << 3, *value]));
    Packet::Cluster(cluster::Msg::Raft { view: 2, bytes })
}

/// What raft would say, and what it would not: commits of what nobody has, entries of the future, snapshots, answers to nothing.
fn raft_seeds() -> Vec<Vec<u8>> {
    let lies = [
        raft(8, 5, &[(8, 100)]),
        raft(3, 5, &[(5, 1), (6, 0), (8, 100)]),
        raft(3, 5, &[(5, 9), (6, 90), (8, 1)]),
        raft(4, 1, &[(6, 120)]),
        raft(5, 9, &[(5, 3), (6, 7)]),
        raft(6, 1, &[]),
        raft(7, 5, &[]),
        raft(9, 1, &[(8, 100)]),
        raft(17, 9, &[(5, 3), (6, 7)]),
        raft(18, 9, &[]),
        raft(2, 0, &[]),
        raft(0, 0, &[]),
        raft(13, 0, &[]),
        raft(15, 0, &[(6, 9)]),
    ];
    lies.iter().map(|p| message(1, p)).chain([lies.iter().flat_map(|p| message(1, p)).collect()]).collect()
}

/// Messages for the membership core.
pub fn member_seeds() -> Vec<Vec<u8>> {
    sequences().into_iter().chain(raft_seeds()).collect()
}

/// The membership core of a host that has let another one in, and hears all this from it.
pub fn members(input: &[u8]) {
    let mut shell = super::cluster::Shell::alone();
    shell.run(60);
    shell.hear(None, cluster::Msg::JoinRequest { host_id: [1; 16], name: "other".into(), nonce: 5 });
    shell.run(30);
    for (from, p) in messages(input) {
        let Packet::Cluster(msg) = p else { continue };
        let from = (from != 0).then_some((from, 1)).filter(|_| !matches!(msg, cluster::Msg::JoinRequest { .. }));
        shell.hear(from, msg);
        shell.run(4);
    }
    shell.run(200);
}
