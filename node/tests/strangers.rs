//! Whoever does not belong gets nothing, costs little, and is counted: real sockets, one test for each kind of stranger.
#![allow(clippy::unwrap_used)]

mod kit;

use kit::{Host, SECRET, VOLUME, Wire, pair, until};
use luna_node::noise::{self, Keys, Shaken};
use luna_node::refusal::{Reason, Refused};
use luna_node::wire::{self, FrameRef, Hello, WIRE_VERSION};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

fn knock(h: &Host) -> TcpStream {
    let s = TcpStream::connect(&h.addr).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    s
}

/// Reads until the other side hangs up, and gives what it said.
fn hung_up(mut s: &TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    match s.read_to_end(&mut got) {
        Ok(_) => got,
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => got,
        Err(e) => panic!("the host did not hang up: {e}"),
    }
}

fn preamble(version: u32) -> Vec<u8> {
    [&b"luna-lnk"[..], &version.to_le_bytes(), &[0; 4], &VOLUME].concat()
}

fn hello(slot: u16, incarnation: u64) -> Hello {
    Hello { version: WIRE_VERSION, volume: VOLUME, slot, incarnation, to_slot: 0, received: 0 }
}

/// Somebody who knows the secret dials as anybody.
fn dial_as(keys: &Keys, h: &Host, slot: u16, incarnation: u64) -> Result<(TcpStream, Shaken), Refused> {
    let mut s = knock(h);
    noise::dial(keys, &mut s, &hello(slot, incarnation), |_, k| {
        assert_eq!(*k, h.key);
        Ok(())
    })
    .map(|x| (s, x))
}

#[test]
fn another_secret() {
    let (a, b) = (Host::new(0, 1), Host::with(Some((1, 1)), VOLUME, &[9; 32]));
    a.learns_at(&b, "");
    b.learns(&a);
    a.refuses(Reason::Secret);
    b.refuses(Reason::Closed);
    assert!(!a.peers.is_up(1) && !b.peers.is_up(0));
    assert_eq!(a.sink.ups.load(Ordering::SeqCst), 0);
}

#[test]
fn another_volume_with_the_same_secret() {
    let (a, b) = (Host::new(0, 1), Host::with(Some((1, 1)), [8; 16], &SECRET));
    a.learns_at(&b, "");
    b.learns(&a);
    a.refuses(Reason::Volume);
    b.refuses(Reason::Volume);
    assert!(!a.peers.is_up(1) && !b.peers.is_up(0));
}

#[test]
fn another_version_is_told_to_both() {
    let a = Host::new(0, 1);
    let mut s = knock(&a);
    // with the rest of a future handshake behind it
    s.write_all(&[preamble(WIRE_VERSION + 1), vec![1; 90]].concat()).unwrap();
    let mut answer = [0; 16];
    s.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..12], preamble(WIRE_VERSION)[..12], "the answer says which version this host speaks");
    drop(s);
    a.refuses(Reason::Version);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let b = Host::new(1, 1);
    a.learns_at(&b, &listener.local_addr().unwrap().to_string());
    let (mut s, _) = listener.accept().unwrap();
    s.write_all(&[preamble(99)[..12].to_vec(), vec![1, 0, 0, 0]].concat()).unwrap();
    a.counts(Reason::Version, 2);

    let keys = Keys::new(VOLUME, &SECRET).unwrap();
    let mut other: (&[u8], Vec<u8>) = (&[preamble(99)[..12].to_vec(), vec![1, 0, 0, 0]].concat(), Vec::new());
    let r = noise::dial(&keys, &mut Both(&mut other.0, &mut other.1), &hello(1, 1), |_, _| Ok(())).err().unwrap();
    assert!(r.text.contains("99") && r.text.contains(&WIRE_VERSION.to_string()), "{r}");
}

/// A reader and a writer as one.
struct Both<'a, R, W>(&'a mut R, &'a mut W);

impl<R: Read, W> Read for Both<'_, R, W> {
    fn read(&mut self, b: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(b)
    }
}

impl<R, W: Write> Write for Both<'_, R, W> {
    fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
        self.1.write(b)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn bytes_that_mean_nothing() {
    let a = Host::new(0, 1);
    let says = |bytes: &[u8]| {
        let mut s = knock(&a);
        s.write_all(bytes).unwrap();
        hung_up(&s)
    };
    assert_eq!(says(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), b"");
    assert_eq!(says(&[0xff; 4096]), b"");
    a.counts(Reason::NotLuna, 2);
    // a frame of the first version
    assert_eq!(says(&wire::encode_frame(&FrameRef::Hello(&hello(1, 1)))), b"");
    a.counts(Reason::NotLuna, 3);
    // the right preamble and noise behind it; a message that is too long; one of no bytes
    for rest in [[&[90, 0][..], &[7; 90]].concat(), vec![0xff; 70_000], vec![0, 0]] {
        assert_eq!(says(&[preamble(WIRE_VERSION), rest].concat()), b"", "nothing is said to who does not know the secret");
    }
    a.counts(Reason::Secret, 3);
    // half a preamble, half a message
    for half in [preamble(WIRE_VERSION)[..20].to_vec(), [preamble(WIRE_VERSION), vec![90, 0, 1, 2]].concat()] {
        let mut s = knock(&a);
        s.write_all(&half).unwrap();
        drop(s);
    }
    a.counts(Reason::Closed, 2);
    assert_eq!((a.sink.count(), a.sink.ups.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn a_slow_one_is_dropped_in_time_and_holds_nobody_up() {
    let a = Host::new(0, 1);
    let started = Instant::now();
    let slow: Vec<TcpStream> = (0..20).map(|_| knock(&a)).collect();
    let b = Host::new(1, 1);
    kit::join(&a, &b, None);
    b.peers.send(0, b"in between".to_vec());
    a.sink.wait(1);
    // on a machine that needs seconds for this nothing can be said
    let early = started.elapsed() < Duration::from_secs(2);
    assert!(!early || a.refused(Reason::Timeout) == 0, "the others were let in while the slow ones were still there");
    let bytes = preamble(WIRE_VERSION);
    let mut at = 0;
    // a byte now and then, always in time for any limit that starts anew with each byte
    while a.refused(Reason::Timeout) < 20 {
        assert!(started.elapsed() < Duration::from_secs(20), "slow clients stay: {:?}", a.peers.counters.refused.by_name());
        for mut s in &slow {
            let _ = s.write_all(&bytes[at..=at]);
        }
        at = (at + 1).min(bytes.len() - 2);
        std::thread::sleep(Duration::from_millis(250));
    }
    slow.iter().for_each(|s| drop(hung_up(s)));
}

#[test]
fn too_many_from_one_address() {
    let a = Host::new(0, 1);
    let all: Vec<TcpStream> = (0..70).map(|_| knock(&a)).collect();
    a.refuses(Reason::Busy);
    drop(all);
    until("the end of all handshakes", || a.refused(Reason::Closed) + a.refused(Reason::Timeout) >= 64);
    let b = Host::new(1, 1);
    kit::join(&a, &b, None);
}

#[test]
fn a_recorded_handshake_is_worth_nothing() {
    let wire = Wire::new(|_, _, _| true);
    let (a, b) = pair(Some(&wire));
    b.peers.send(0, b"once".to_vec());
    a.sink.wait(1);
    let recorded = wire.seen.lock().unwrap()[0][0].clone();
    assert!(recorded.len() > 200);
    for _ in 0..3 {
        let mut s = knock(&a);
        s.write_all(&recorded).unwrap();
        hung_up(&s);
    }
    a.counts(Reason::Secret, 3);
    // the first message alone, and silence: the host waits for a proof and attaches nothing
    let mut s = knock(&a);
    s.write_all(&recorded[..32 + 2 + usize::from(recorded[32])]).unwrap();
    s.read_exact(&mut [0; 16]).unwrap();
    assert_eq!(a.peers.links()[0].connections, 1);
    hung_up(&s);
    a.counts(Reason::Timeout, 1);
    assert_eq!((a.sink.count(), a.peers.links()[0].duplicates), (0, 0));
}

#[test]
fn who_reads_the_lun_but_cannot_write_a_beat_speaks_for_nobody() {
    let (a, b) = pair(None);
    let thief = Keys::new(VOLUME, &SECRET).unwrap();
    let tell = |slot, incarnation| {
        let (mut s, mut x) = dial_as(&thief, &a, slot, incarnation).ok().unwrap();
        let mut out = Vec::new();
        assert!(x.seal.seal(&wire::encode_frame(&FrameRef::Data { seq: 1, ack: 0, payload: b"lies" }), &mut out));
        s.write_all(&out).unwrap();
        hung_up(&s);
    };
    tell(1, 1);
    a.counts(Reason::Key, 1);
    tell(1, 0);
    a.counts(Reason::Stale, 1);
    // a newer incarnation that nobody has heard of does not push the known one out
    let asked = a.sink.strangers.load(Ordering::SeqCst);
    tell(1, 9);
    tell(5, 1);
    a.counts(Reason::Unknown, 2);
    assert_eq!(a.sink.strangers.load(Ordering::SeqCst), asked + 2, "the host looks at the LUN");
    assert!(dial_as(&thief, &a, 0, 1).is_err());
    a.counts(Reason::Place, 1);
    assert_eq!(a.sink.count(), 0);
    b.peers.send(0, b"truth".to_vec());
    assert_eq!(a.sink.wait(1)[0].2, b"truth");

    // nor can it answer in somebody's place
    let c = Host::new(3, 1);
    let imposter = Host::new(3, 1);
    b.learns_at(&c, &imposter.addr);
    imposter.learns_at(&b, "");
    b.refuses(Reason::Key);
    assert!(!b.peers.is_up(3));
}

#[test]
fn a_caller_waits_until_its_beat_was_read() {
    let (a, b) = (Host::new(0, 1), Host::new(1, 1));
    b.learns(&a);
    b.peers.send(0, b"early".to_vec());
    until("a question", || a.sink.strangers.load(Ordering::SeqCst) > 0);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(a.sink.count(), 0);
    // who it is but not its beat: still nothing
    a.peers.learn(1, 1, &[], &[0; 32]);
    std::thread::sleep(Duration::from_millis(100));
    assert!(!a.peers.is_up(1) && !b.peers.is_up(0));
    a.learns(&b);
    assert_eq!(a.sink.wait(1), [(1, 1, b"early".to_vec())]);
    assert_eq!(a.peers.counters.refused.total(), 0);
}

#[test]
fn a_host_without_a_slot_is_heard_but_is_nobody() {
    let (a, b) = (Host::new(0, 1), Host::with(None, VOLUME, &SECRET));
    b.learns(&a);
    b.peers.send(0, b"let me in".to_vec());
    until("the request", || a.sink.outsiders.lock().unwrap().first().is_some_and(|m| m == b"let me in"));
    assert_eq!((a.sink.count(), a.peers.links().len()), (0, 0));
    b.is_up_to(&a);
    // in; the same process, the same key
    b.peers.set_me(1, 1);
    a.peers.learn(1, 1, &[], &b.key);
    b.learns(&a);
    b.peers.send(0, b"I am in".to_vec());
    assert_eq!(a.sink.wait(1), [(1, 1, b"I am in".to_vec())]);
}

/// A real member that lost its mind.
#[test]
fn a_member_that_sends_nonsense() {
    let a = Host::new(0, 1);
    let keys = Keys::new(VOLUME, &SECRET).unwrap();
    a.peers.learn(1, 1, &[], keys.public());
    let nonsense = [
        u32::MAX.to_le_bytes().to_vec(),
        [&(33u32 << 20).to_le_bytes()[..], &[0; 64]].concat(),
        [&4u32.to_le_bytes()[..], &[9, 9, 9, 9]].concat(),
        // data that says it has 2^60 bytes
        [&14u32.to_le_bytes()[..], &[1, 1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 1]].concat(),
    ];
    for (i, bytes) in nonsense.iter().enumerate() {
        let (mut s, mut x) = dial_as(&keys, &a, 1, 1).ok().unwrap();
        let mut out = Vec::new();
        assert!(x.seal.seal(bytes, &mut out));
        s.write_all(&out).unwrap();
        hung_up(&s);
        a.counts(Reason::Malformed, i as u64 + 1);
    }
    // records that are none: too short to be sealed, or not sealed at all
    for (i, bytes) in [vec![0, 0], vec![16, 0], [&[40, 0][..], &[3; 40]].concat()].iter().enumerate() {
        let (mut s, _) = dial_as(&keys, &a, 1, 1).ok().unwrap();
        s.write_all(bytes).unwrap();
        hung_up(&s);
        a.counts(Reason::Damaged, i as u64 + 1);
    }
    assert_eq!(a.sink.count(), 0);
}
