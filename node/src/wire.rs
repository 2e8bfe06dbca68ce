//! What travels between two hosts: frames on TCP and in mailboxes, and the messages inside. The one module that uses a
//! serializer; nothing here is ever stored.
//!
//! A frame is a little-endian length (at most [`MAX_FRAME`], checked before anything is allocated), a kind byte and a body; on TCP
//! frames travel inside sealed records, and each side's [`Hello`] inside the handshake (see `noise`). Invariant: no length in a
//! message makes this host allocate more than a small multiple of what really arrived. Not here: sockets, order, retries.

use luna_format::{Incarnation, Slot, VolumeId};
use serde::{Deserialize, Serialize};
use std::io::{Read, Result as IoResult};

/// The longest frame body accepted from a peer.
pub const MAX_FRAME: usize = 32 << 20;
/// The longest payload that fits a frame.
pub const MAX_PAYLOAD: usize = MAX_FRAME - 64;
/// Bytes set aside for a body before any of it arrived.
const FIRST_BODY: usize = 16 << 10;
/// Wire version: bumped with every incompatible change of the messages.
pub const WIRE_VERSION: u32 = 2;

/// First words of a connection, from both sides.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Hello {
    /// [`WIRE_VERSION`].
    pub version: u32,
    /// The volume.
    pub volume: VolumeId,
    /// Who speaks.
    pub slot: Slot,
    /// In which incarnation.
    pub incarnation: Incarnation,
    /// Whom it wants.
    pub to_slot: Slot,
    /// Last message it has of the other side, so that only what is missing is sent again.
    pub received: u64,
}

/// A message to a core.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Packet {
    /// For the membership core.
    Cluster(luna_cluster::Msg),
    /// For the lock manager.
    Dlm(luna_dlm::Msg),
}

/// A frame.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Frame {
    /// Opens a connection.
    Hello(Hello),
    /// A numbered message with the number of the last one received.
    Data {
        /// Its number.
        seq: u64,
        /// Acknowledgement.
        ack: u64,
        /// An encoded [`Packet`].
        #[serde(with = "bytes")]
        payload: Vec<u8>,
    },
    /// Acknowledgement alone; also keeps the connection alive.
    Ack(u64),
}

/// A [`Frame`] to be sent, without owning what it carries; the same bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum FrameRef<'a> {
    /// As [`Frame::Hello`].
    Hello(&'a Hello),
    /// As [`Frame::Data`].
    Data {
        /// Its number.
        seq: u64,
        /// Acknowledgement.
        ack: u64,
        /// An encoded [`Packet`].
        #[serde(serialize_with = "bytes::serialize")]
        payload: &'a [u8],
    },
    /// As [`Frame::Ack`].
    Ack(u64),
}

/// Bytes as bytes: the same on the wire as a sequence of numbers, without going through them one by one.
mod bytes {
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;
    use std::fmt;

    pub(super) fn serialize<S: Serializer>(b: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(b)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct Take;
        impl Visitor<'_> for Take {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, b: &[u8]) -> Result<Vec<u8>, E> {
                Ok(b.to_vec())
            }
        }
        d.deserialize_bytes(Take)
    }
}

/// Bytes of a packet.
pub fn encode_packet(p: &Packet) -> Vec<u8> {
    postcard::to_stdvec(p).unwrap_or_default()
}

/// A packet from bytes of an authenticated peer; `None` when they are not one.
pub fn decode_packet(bytes: &[u8]) -> Option<Packet> {
    postcard::from_bytes(bytes).ok()
}

/// A frame with its length in front.
pub fn encode_frame(f: &FrameRef<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    frame_into(f, &mut out);
    out
}

/// Appends a frame with its length in front.
pub fn frame_into(f: &FrameRef<'_>, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    // writing into memory does not fail
    let _ = postcard::to_io(f, &mut *out);
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

/// Reads one frame; errors end the connection.
pub fn read_frame(r: &mut impl Read) -> IoResult<Frame> {
    let mut len = [0; 4];
    r.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_FRAME {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, format!("a peer announced a frame of {len} bytes")));
    }
    let mut body = Vec::with_capacity(len.min(FIRST_BODY));
    // grows with what really arrives: a peer that only announces cannot make us allocate
    let got = r.take(len as u64).read_to_end(&mut body)?;
    if got < len {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    postcard::from_bytes(&body).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_bytes_are_bytes() {
        let hello = Hello { version: 2, volume: [9; 16], slot: 3, incarnation: 4, to_slot: 5, received: 600 };
        let frames = [
            (FrameRef::Hello(&hello), Frame::Hello(hello.clone())),
            (FrameRef::Data { seq: 1, ack: 2, payload: &[] }, Frame::Data { seq: 1, ack: 2, payload: vec![] }),
            (FrameRef::Data { seq: 300, ack: 2, payload: &[7; 300] }, Frame::Data { seq: 300, ack: 2, payload: vec![7; 300] }),
            (FrameRef::Ack(u64::MAX), Frame::Ack(u64::MAX)),
        ];
        for (sent, whole) in frames {
            let bytes = encode_frame(&sent);
            assert_eq!(bytes[4..], postcard::to_stdvec(&whole).unwrap()[..]);
            assert_eq!(format!("{:?}", read_frame(&mut &bytes[..]).unwrap()), format!("{whole:?}"));
            for cut in 0..bytes.len() {
                assert!(read_frame(&mut &bytes[..cut]).is_err());
            }
        }
        // mail and TCP carry what a plain vector of numbers would be
        assert_eq!(
            postcard::to_stdvec(&vec![5u8; 200]).unwrap(),
            encode_frame(&FrameRef::Data { seq: 1, ack: 1, payload: &[5; 200] })[7..]
        );
        assert!(read_frame(&mut &u32::MAX.to_le_bytes()[..]).is_err());
    }
}
