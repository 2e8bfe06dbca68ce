//! What travels between two hosts: frames on TCP and in mailboxes, and the messages inside. The one module that uses a
//! serializer; nothing here is ever stored.
//!
//! A frame is a little-endian length (at most [`MAX_FRAME`], checked before anything is allocated), a kind byte and a body.
//! The first frame of a connection is a [`Hello`]. Not here: sockets, order, retries.

use luna_format::{Incarnation, Slot, VolumeId};
use serde::{Deserialize, Serialize};
use std::io::{Read, Result as IoResult};

/// The longest frame body accepted from a peer.
pub const MAX_FRAME: usize = 32 << 20;
/// Wire version: bumped with every incompatible change of the messages.
pub const WIRE_VERSION: u32 = 1;

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
        payload: Vec<u8>,
    },
    /// Acknowledgement alone; also keeps the connection alive.
    Ack(u64),
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
pub fn encode_frame(f: &Frame) -> Vec<u8> {
    let body = postcard::to_stdvec(f).unwrap_or_default();
    let mut out = Vec::with_capacity(body.len() + 4);
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&body);
    out
}

/// Reads one frame; errors end the connection.
pub fn read_frame(r: &mut impl Read) -> IoResult<Frame> {
    let mut len = [0; 4];
    r.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_FRAME {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, format!("a peer announced a frame of {len} bytes")));
    }
    let mut body = Vec::new();
    // grows with what really arrives: a peer that only announces cannot make us allocate
    let got = r.take(len as u64).read_to_end(&mut body)?;
    if got < len {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    postcard::from_bytes(&body).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
}
