//! Who is at the other end of a TCP connection, and nobody else can read or change what is said: the Noise handshake and the
//! sealed records after it (`docs/adr/0010-noise-links.md`).
//!
//! `Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s`. The pre-shared key is derived from the secret on the LUN and the volume, so the first
//! message already shows that the caller can read the LUN. Each process has a static key; its public half is in its beat, and
//! `peers` compares: so whoever speaks as a slot and incarnation can *write* that beat. The third message shows that the
//! caller is live: a recorded handshake gets no further than a hang-up.
//!
//! ```text
//! dialing                                              answering
//! "luna-lnk" version(4) zero(4) volume(16)  ──────>    magic, version, volume in the open: only for clear errors
//! len(2) psk, e, {Hello}                    ──────>    the secret is known; whom do you want?
//!                                           <──────    "luna-lnk" version(4) status(4)
//!                                           <──────    len(2) e, ee, {s}, es, {Hello}
//! len(2) {s}, se                            ──────>    live, and owner of the key
//!                                           <──────    first record, once its beat is known here: Ack
//! len(2) {up to 65,519 bytes}              <─────>     records: the frames of `wire`, cut anywhere
//! ```
//!
//! Invariants: nothing but preamble and answer ever travels in the open; no length from the wire is believed beyond a fixed
//! buffer; a [`Sealer`] uses each nonce once, in the order in which its records reach the socket (whoever owns it sees to that).
//! The first 12 bytes of preamble and answer never change. Not here: sockets and time limits, who may speak for which slot.

use crate::refusal::{Reason, Refused};
use crate::wire::{Hello, WIRE_VERSION};
use luna_format::VolumeId;
use snow::params::{HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::{Builder, HandshakeState, StatelessTransportState};
use std::io::{self, Read, Write};
use std::sync::Arc;

/// The suite; also bound into every handshake.
const SUITE: &str = "Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s";
/// First bytes of both sides.
const MAGIC: [u8; 8] = *b"luna-lnk";
/// Magic, version, zero, volume.
const PREAMBLE: usize = 32;
/// Magic, version, status.
const ANSWER: usize = 16;
/// Of them, what every version of Luna reads.
const FOREVER: usize = 12;
/// No handshake message is longer.
const HANDSHAKE_MAX: usize = 512;
/// Bytes that sealing adds.
const TAG: usize = 16;
/// The longest record, and what fits in.
const RECORD_MAX: usize = 65_535;
const RECORD_PLAIN: usize = RECORD_MAX - TAG;
/// Status: go on, another version, another volume.
const GO_ON: u32 = 0;
const OTHER_VERSION: u32 = 1;
const OTHER_VOLUME: u32 = 2;

/// Public half of a process's static key.
pub type LinkKey = [u8; 32];

/// What a process needs to make links: the cluster's key and its own. Never printed.
pub struct Keys {
    volume: VolumeId,
    psk: [u8; 32],
    private: [u8; 32],
    public: LinkKey,
}

impl Keys {
    /// Derives the cluster's key from the LUN's secret, and draws a fresh static key.
    pub fn new(volume: VolumeId, secret: &[u8; 32]) -> io::Result<Self> {
        let pair = Builder::new(suite()?).generate_keypair().map_err(io::Error::other)?;
        let half = |v: Vec<u8>| <[u8; 32]>::try_from(v).map_err(|_| io::Error::other("a key of the wrong length"));
        Ok(Self { volume, psk: derive(&volume, secret)?, private: half(pair.private)?, public: half(pair.public)? })
    }

    /// What belongs into this host's beat.
    pub fn public(&self) -> &LinkKey {
        &self.public
    }

    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    fn preamble(&self, version: u32) -> [u8; PREAMBLE] {
        let mut out = [0; PREAMBLE];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&version.to_le_bytes());
        out[16..].copy_from_slice(&self.volume);
        out
    }

    /// A handshake; the preamble is its prologue, so that changing it on the way breaks the handshake.
    fn begin(&self, initiator: bool) -> Result<HandshakeState, Refused> {
        let prologue = self.preamble(WIRE_VERSION);
        let made = || {
            let b = Builder::new(SUITE.parse()?).prologue(&prologue)?.psk(0, &self.psk)?.local_private_key(&self.private)?;
            if initiator { b.build_initiator() } else { b.build_responder() }
        };
        made().map_err(own_fault)
    }
}

fn suite() -> io::Result<NoiseParams> {
    SUITE.parse().map_err(|e: snow::Error| io::Error::other(e))
}

/// HMAC-BLAKE2s of what the key is for and the volume, under the secret.
fn derive(volume: &VolumeId, secret: &[u8; 32]) -> io::Result<[u8; 32]> {
    let none = || io::Error::other("no BLAKE2s in this build");
    let mut hash = DefaultResolver.resolve_hash(&HashChoice::Blake2s).ok_or_else(none)?;
    let mut text = b"luna link psk 1 ".to_vec();
    text.extend_from_slice(volume);
    let mut out = [0; 32];
    hash.hmac(secret, &text, &mut out);
    Ok(out)
}

/// Not what the peer said but this host itself (no random numbers, for one).
fn own_fault(e: snow::Error) -> Refused {
    Refused::new(Reason::Closed, format!("this host cannot make a Noise handshake: {e}"))
}

/// A finished handshake.
pub struct Shaken {
    /// What the peer says of itself.
    pub theirs: Hello,
    /// The key it owns.
    pub key: LinkKey,
    /// For what is sent.
    pub seal: Sealer,
    /// For what arrives.
    pub open: Opener,
}

/// Dials: says `mine`, and goes on only if `meant` has nothing against what the peer says it is and the key it owns.
pub fn dial(
    keys: &Keys,
    s: &mut (impl Read + Write),
    mine: &Hello,
    meant: impl FnOnce(&Hello, &LinkKey) -> Result<(), Refused>,
) -> Result<Shaken, Refused> {
    let mut noise = keys.begin(true)?;
    let mut out = keys.preamble(WIRE_VERSION).to_vec();
    push(&mut noise, &pack(mine)?, &mut out)?;
    s.write_all(&out)?;
    let mut answer = [0; ANSWER];
    s.read_exact(&mut answer)?;
    read_answer(&answer)?;
    let theirs = pull(&mut noise, s)?;
    let key = remote_key(&noise)?;
    let theirs = unpack(keys, &theirs)?;
    // before the third message: whoever is not meant learns nothing of this host
    meant(&theirs, &key)?;
    let mut out = Vec::new();
    push(&mut noise, &[], &mut out)?;
    s.write_all(&out)?;
    finish(noise, theirs, key)
}

/// An incoming handshake of somebody who knows the secret; whether live is not known yet.
pub struct Heard {
    noise: HandshakeState,
    /// What the caller says of itself, and whom it wants. Not proven.
    pub claim: Hello,
}

/// Reads preamble and first message.
pub fn hear(keys: &Keys, s: &mut (impl Read + Write)) -> Result<Heard, Refused> {
    let mut preamble = [0; PREAMBLE];
    s.read_exact(&mut preamble[..FOREVER])?;
    if preamble[..8] != MAGIC {
        return Err(Refused::new(Reason::NotLuna, "the first bytes are not Luna's"));
    }
    let version = le32(&preamble[8..12]);
    if version != WIRE_VERSION {
        turn_away(s, OTHER_VERSION);
        return Err(versions(version));
    }
    s.read_exact(&mut preamble[FOREVER..])?;
    if preamble != keys.preamble(WIRE_VERSION) {
        turn_away(s, OTHER_VOLUME);
        return Err(Refused::new(Reason::Volume, "the caller wants another volume"));
    }
    let mut noise = keys.begin(false)?;
    let claim = pull(&mut noise, s)?;
    Ok(Heard { noise, claim: unpack(keys, &claim)? })
}

impl Heard {
    /// Answers with `mine` and waits for the proof that the caller is live.
    pub fn answer(mut self, s: &mut (impl Read + Write), mine: &Hello) -> Result<Shaken, Refused> {
        let mut out = answer_of(GO_ON).to_vec();
        push(&mut self.noise, &pack(mine)?, &mut out)?;
        s.write_all(&out)?;
        pull(&mut self.noise, s)?;
        let key = remote_key(&self.noise)?;
        finish(self.noise, self.claim, key)
    }
}

fn le32(b: &[u8]) -> u32 {
    b.iter().rev().fold(0, |n, x| n << 8 | u32::from(*x))
}

fn versions(theirs: u32) -> Refused {
    Refused::new(Reason::Version, format!("the peer speaks wire version {theirs}, this host {WIRE_VERSION}: run the same Luna on both"))
}

fn answer_of(status: u32) -> [u8; ANSWER] {
    let mut out = [0; ANSWER];
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&WIRE_VERSION.to_le_bytes());
    out[12..].copy_from_slice(&status.to_le_bytes());
    out
}

/// Says why not. What the caller sent must be read first, or the answer is lost to a reset.
fn turn_away(s: &mut (impl Read + Write), status: u32) {
    if s.write_all(&answer_of(status)).is_ok() {
        let _ = s.take((PREAMBLE + 2 + HANDSHAKE_MAX) as u64).read_to_end(&mut Vec::new());
    }
}

fn read_answer(a: &[u8; ANSWER]) -> Result<(), Refused> {
    if a[..8] != MAGIC {
        return Err(Refused::new(Reason::NotLuna, "what answers at this address is not Luna"));
    }
    match (le32(&a[8..12]), le32(&a[12..])) {
        (WIRE_VERSION, GO_ON) => Ok(()),
        (WIRE_VERSION, OTHER_VOLUME) => Err(Refused::new(Reason::Volume, "the host at this address serves another volume")),
        (WIRE_VERSION, status) => Err(Refused::new(Reason::Secret, format!("the host at this address refuses: status {status}"))),
        (version, _) => Err(versions(version)),
    }
}

fn pack(h: &Hello) -> Result<Vec<u8>, Refused> {
    postcard::to_stdvec(h).map_err(|e| Refused::new(Reason::Malformed, e.to_string()))
}

fn unpack(keys: &Keys, bytes: &[u8]) -> Result<Hello, Refused> {
    let h: Hello = postcard::from_bytes(bytes).map_err(|_| Refused::new(Reason::Malformed, "a hello that is none"))?;
    if h.version != WIRE_VERSION || h.volume != keys.volume {
        return Err(Refused::new(Reason::Malformed, "a hello that says other than its preamble"));
    }
    Ok(h)
}

/// Writes the next handshake message behind its length.
fn push(noise: &mut HandshakeState, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Refused> {
    let mut message = [0; HANDSHAKE_MAX];
    let len = noise.write_message(payload, &mut message).map_err(own_fault)?;
    out.extend_from_slice(&(len as u16).to_le_bytes());
    out.extend_from_slice(&message[..len]);
    Ok(())
}

/// Reads the next handshake message and gives its payload.
fn pull(noise: &mut HandshakeState, s: &mut impl Read) -> Result<Vec<u8>, Refused> {
    let mut len = [0; 2];
    s.read_exact(&mut len)?;
    let len = usize::from(u16::from_le_bytes(len));
    let (mut message, mut payload) = ([0; HANDSHAKE_MAX], [0; HANDSHAKE_MAX]);
    let Some(message) = message.get_mut(..len) else {
        return Err(Refused::new(Reason::Secret, format!("a handshake message of {len} bytes")));
    };
    s.read_exact(message)?;
    let wrong = |_| Refused::new(Reason::Secret, "a handshake message that was not made with the secret on this LUN");
    let n = noise.read_message(message, &mut payload).map_err(wrong)?;
    Ok(payload[..n].to_vec())
}

fn remote_key(noise: &HandshakeState) -> Result<LinkKey, Refused> {
    let key = noise.get_remote_static().and_then(|k| k.try_into().ok());
    key.ok_or_else(|| Refused::new(Reason::Secret, "a handshake without a key"))
}

fn finish(noise: HandshakeState, theirs: Hello, key: LinkKey) -> Result<Shaken, Refused> {
    let both = Arc::new(noise.into_stateless_transport_mode().map_err(own_fault)?);
    Ok(Shaken { theirs, key, seal: Sealer { both: Arc::clone(&both), nonce: 0 }, open: Opener::new(both) })
}

/// Seals what this side sends.
pub struct Sealer {
    both: Arc<StatelessTransportState>,
    nonce: u64,
}

impl Sealer {
    /// Appends `plain` as records to `out`, which is to reach the socket before what is sealed later. False when the nonces are
    /// used up: the connection must end.
    #[must_use]
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> bool {
        for piece in plain.chunks(RECORD_PLAIN) {
            let len = piece.len() + TAG;
            out.extend_from_slice(&(len as u16).to_le_bytes());
            let at = out.len();
            out.resize(at + len, 0);
            if self.both.write_message(self.nonce, piece, &mut out[at..]).is_err() {
                return false;
            }
            self.nonce += 1;
        }
        true
    }
}

/// Opens what the other side sent: fixed buffers, whatever the wire says.
pub struct Opener {
    both: Arc<StatelessTransportState>,
    nonce: u64,
    /// Received bytes; the whole ones are `raw[start..end]`.
    raw: Vec<u8>,
    start: usize,
    end: usize,
    /// The record that was opened last; `plain[at..]` is not taken yet.
    plain: Vec<u8>,
    at: usize,
}

impl Opener {
    fn new(both: Arc<StatelessTransportState>) -> Self {
        Self { both, nonce: 0, raw: vec![0; 2 * (2 + RECORD_MAX)], start: 0, end: 0, plain: Vec::with_capacity(RECORD_PLAIN), at: 0 }
    }

    /// The plain bytes of what `inner` brings.
    pub fn over<R: Read>(&mut self, inner: R) -> Opened<'_, R> {
        Opened { opener: self, inner }
    }

    /// Has at least `need` bytes in the buffer; false at a clean end.
    fn fill(&mut self, inner: &mut impl Read, need: usize) -> io::Result<bool> {
        while self.end - self.start < need {
            if self.start + need > self.raw.len() {
                self.raw.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            match inner.read(&mut self.raw[self.end..]) {
                Ok(0) if self.start == self.end && need == 2 => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Opens the next record into `plain`; false at a clean end.
    fn next(&mut self, inner: &mut impl Read) -> io::Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if !self.fill(inner, 2)? {
            return Ok(false);
        }
        let len = usize::from(u16::from_le_bytes([self.raw[self.start], self.raw[self.start + 1]]));
        if len <= TAG {
            return Err(Refused::new(Reason::Damaged, format!("a record of {len} bytes")).into_io());
        }
        self.fill(inner, 2 + len)?;
        let sealed = &self.raw[self.start + 2..self.start + 2 + len];
        self.plain.resize(len - TAG, 0);
        self.at = 0;
        if self.both.read_message(self.nonce, sealed, &mut self.plain).is_err() {
            self.plain.clear();
            return Err(Refused::new(Reason::Damaged, "a record does not open: it was changed, or is none").into_io());
        }
        self.nonce += 1;
        self.start += 2 + len;
        Ok(true)
    }
}

/// A reader of plain bytes.
pub struct Opened<'a, R> {
    opener: &'a mut Opener,
    inner: R,
}

impl<R: Read> Read for Opened<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let o = &mut *self.opener;
        if o.at == o.plain.len() && !buf.is_empty() && !o.next(&mut self.inner)? {
            return Ok(0);
        }
        let n = buf.len().min(o.plain.len() - o.at);
        buf[..n].copy_from_slice(&o.plain[o.at..o.at + n]);
        o.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const VOLUME: VolumeId = [7; 16];

    fn hello(slot: u16, to_slot: u16) -> Hello {
        Hello { version: WIRE_VERSION, volume: VOLUME, slot, incarnation: 1, to_slot, received: u64::MAX }
    }

    fn shake() -> (Shaken, Shaken) {
        let (a, b) = (Keys::new(VOLUME, &[3; 32]).unwrap(), Keys::new(VOLUME, &[3; 32]).unwrap());
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let key = *b.public();
        let answers = std::thread::spawn(move || hear(&b, &mut theirs).unwrap().answer(&mut theirs, &hello(1, 0)).unwrap());
        let dialed = dial(&a, &mut ours, &hello(0, 1), |_, k| {
            assert_eq!(*k, key);
            Ok(())
        })
        .unwrap();
        let answered = answers.join().unwrap();
        assert_eq!((dialed.key, answered.key), (key, *a.public()));
        assert_eq!((&dialed.theirs, &answered.theirs), (&hello(1, 0), &hello(0, 1)));
        (dialed, answered)
    }

    #[test]
    fn the_cluster_key_depends_on_volume_and_secret() {
        let all = [derive(&[1; 16], &[1; 32]), derive(&[2; 16], &[1; 32]), derive(&[1; 16], &[2; 32])].map(Result::unwrap);
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2] && !all.contains(&[1; 32]));
    }

    #[test]
    fn both_directions_and_every_size_around_a_record() {
        let (mut a, mut b) = shake();
        for len in [1, 2, RECORD_PLAIN - 1, RECORD_PLAIN, RECORD_PLAIN + 1, 5 * RECORD_PLAIN + 7] {
            let plain: Vec<u8> = (0..len).map(|i| i as u8).collect();
            for (from, to) in [(&mut a.seal, &mut b.open), (&mut b.seal, &mut a.open)] {
                let (mut wire, mut got) = (Vec::new(), Vec::new());
                assert!(from.seal(&plain, &mut wire));
                assert_eq!(wire.len(), len + len.div_ceil(RECORD_PLAIN) * (TAG + 2));
                to.over(&wire[..]).read_to_end(&mut got).unwrap();
                assert!(got == plain);
            }
        }
    }

    /// Whatever is done to sealed bytes, what comes out is a prefix of what went in.
    #[test]
    fn changed_records_do_not_open() {
        let (mut a, b) = shake();
        let plain: Vec<u8> = (0..2000u32).flat_map(u32::to_le_bytes).collect();
        let mut wire = Vec::new();
        plain.chunks(100).for_each(|c| assert!(a.seal.seal(c, &mut wire)));
        let mut rng = fastrand::Rng::with_seed(99);
        let mut whole = 0;
        for _ in 0..3000 {
            let mut bad = wire.clone();
            let at = rng.usize(0..bad.len());
            match rng.u8(0..5) {
                0 => bad.truncate(at),
                1 => bad[at] ^= 1 << rng.u8(0..8),
                2 => bad.insert(at, rng.u8(..)),
                3 => drop(bad.drain(at..(at + rng.usize(1..400)).min(wire.len()))),
                _ => {
                    // whole records doubled or exchanged
                    let (one, other) = (at / 118 * 118, rng.usize(0..wire.len() / 118) * 118);
                    bad.copy_within(one..one + 118, other);
                }
            }
            let (mut opener, mut got) = (Opener::new(Arc::clone(&b.open.both)), Vec::new());
            let ended = opener.over(&bad[..]).read_to_end(&mut got);
            assert!(plain.starts_with(&got), "something that nobody sent came out");
            if got == plain {
                whole += 1;
                assert!(ended.is_err() || bad == wire);
            }
        }
        assert!(whole < 300, "{whole}");
    }
}
