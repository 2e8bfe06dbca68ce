//! The client's side of the NBD handshake: fixed newstyle, GO, block sizes.
//!
//! First it says who it is with the private option `LUNA`. `luna serve` notes the name (so that it can cut this host off),
//! and answers with a token that stays the same for as long as its page cache does; any other server answers "unsupported",
//! which is fine. A fenced name is refused there.
//!
//! Invariant: whatever a server says is bounded before memory is taken for it, and nonsense is an error, never a panic.
//! It runs on a blocking stream with a timeout set.

use std::io::{self, Read, Write};

use super::wire::{self, be16, be32, be64, can, info, opt, rep};
use crate::stream::Stream;
use crate::{BLOCK_BYTES, Geometry, LunError, Result};

/// No answer to an option of ours is longer.
const ANSWER_MAX: u32 = 64 << 10;
/// No server needs more answers than this to one option.
const ANSWERS_MAX: usize = 1024;

/// What the handshake found.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) geometry: Geometry,
    /// The token of a `luna serve`, which proves after a reconnect that nothing answered was lost.
    pub(crate) instance: Option<String>,
}

/// One answer to an option.
struct Answer {
    kind: u32,
    data: Vec<u8>,
}

/// The talk with one server.
pub(crate) struct Talk<'a> {
    stream: &'a Stream,
    what: &'a str,
    no_zeroes: bool,
}

impl<'a> Talk<'a> {
    /// Reads the greeting and answers it; `what` is the LUN string for messages.
    pub(crate) fn begin(stream: &'a Stream, what: &'a str) -> Result<Self> {
        let mut talk = Self { stream, what, no_zeroes: false };
        let mut hello = [0; 18];
        talk.read(&mut hello)?;
        if be64(&hello, 0) != wire::MAGIC_HELLO {
            return Err(talk.nonsense("this is not an NBD server"));
        }
        if be64(&hello, 8) != wire::MAGIC_OPTION || be16(&hello, 16) & wire::FLAG_FIXED == 0 {
            return Err(talk.nonsense("the NBD server is too old, fixed newstyle negotiation is needed"));
        }
        let flags = be16(&hello, 16) & (wire::FLAG_FIXED | wire::FLAG_NO_ZEROES);
        talk.no_zeroes = flags & wire::FLAG_NO_ZEROES != 0;
        talk.write(&u32::from(flags).to_be_bytes())?;
        Ok(talk)
    }

    /// Sends a line to `luna serve`. `Ok(None)`: some other server. A refusal carries the server's words.
    pub(crate) fn luna(&mut self, line: &str) -> Result<Option<String>> {
        self.option(opt::LUNA, line.as_bytes())?;
        let answer = self.answer(opt::LUNA)?;
        let text = String::from_utf8_lossy(&answer.data).into_owned();
        match answer.kind {
            rep::ACK => Ok(Some(text)),
            rep::ERR_POLICY => Err(LunError::Refused(format!("{}: {text}", self.what))),
            kind if kind & rep::ERROR != 0 && kind != rep::ERR_UNSUP && !text.is_empty() && line.starts_with("fence ") => {
                Err(LunError::Refused(format!("{}: {text}", self.what)))
            }
            kind if kind & rep::ERROR != 0 => Ok(None),
            _ => Err(self.nonsense("an unexpected answer to an option")),
        }
    }

    /// Selects the export and enters the transmission phase.
    pub(crate) fn go(&mut self, export: &str) -> Result<Geometry> {
        let mut data = Vec::with_capacity(export.len() + 8);
        data.extend_from_slice(&(export.len() as u32).to_be_bytes());
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&1u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        self.option(opt::GO, &data)?;
        let (mut size_and_flags, mut blocks) = (None, None);
        for _ in 0..ANSWERS_MAX {
            let Answer { kind, data } = self.answer(opt::GO)?;
            match kind {
                rep::INFO if data.len() < 2 => return Err(self.nonsense("an information item is too short")),
                rep::INFO => match (be16(&data, 0), data.len()) {
                    (info::EXPORT, 12) => size_and_flags = Some((be64(&data, 2), be16(&data, 10))),
                    (info::BLOCK_SIZE, 14) => blocks = Some((be32(&data, 2), be32(&data, 10))),
                    (info::EXPORT | info::BLOCK_SIZE, _) => return Err(self.nonsense("an information item has the wrong size")),
                    _ => {}
                },
                rep::ACK => {
                    let (size, flags) = size_and_flags.ok_or_else(|| self.nonsense("the server did not tell the size"))?;
                    return self.geometry(size, flags, blocks);
                }
                rep::ERR_UNSUP => return self.export_name(export),
                rep::ERR_UNKNOWN => {
                    let list = "list the exports with 'nbdinfo --list'";
                    return Err(LunError::Refused(format!("{}: the server has no export of this name; {list}", self.what)));
                }
                kind if kind & rep::ERROR != 0 => {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    return Err(LunError::Refused(format!("{}: the server refuses the export (error {kind:#x}) {text}", self.what)));
                }
                _ => return Err(self.nonsense("an unexpected answer to GO")),
            }
        }
        Err(self.nonsense("the server does not come to an end"))
    }

    /// The old way to select an export, for servers that do not know GO.
    fn export_name(&mut self, export: &str) -> Result<Geometry> {
        self.option(opt::EXPORT_NAME, export.as_bytes())?;
        let mut data = [0; 10];
        self.read(&mut data)?;
        if !self.no_zeroes {
            self.read(&mut [0; 124])?;
        }
        self.geometry(be64(&data, 0), be16(&data, 8), None)
    }

    fn geometry(&self, size: u64, flags: u16, blocks: Option<(u32, u32)>) -> Result<Geometry> {
        let (min, max) = blocks.unwrap_or((1, wire::MAX_REQUEST));
        if min == 0 || !min.is_power_of_two() || max < min {
            return Err(self.nonsense("the server's block sizes make no sense"));
        }
        if u64::from(min) > BLOCK_BYTES {
            return Err(LunError::Refused(format!("{}: the server wants blocks of {min} bytes, at most 4096 can be used", self.what)));
        }
        let size_bytes = size - size % BLOCK_BYTES;
        if size_bytes == 0 || i64::try_from(size).is_err() {
            return Err(LunError::Refused(format!("{}: the export has {size} bytes, which can not be used", self.what)));
        }
        let max = max.min(wire::MAX_REQUEST);
        if u64::from(max) < BLOCK_BYTES {
            return Err(LunError::Refused(format!("{}: the server takes at most {max} bytes at a time, 4096 are needed", self.what)));
        }
        let has = |flag: u16| flags & can::HAS_FLAGS != 0 && flags & flag != 0;
        Ok(Geometry {
            size_bytes,
            block_bytes: min.max(512),
            max_io_bytes: max - max % BLOCK_BYTES as u32,
            can_fua: has(can::FUA),
            can_flush: has(can::FLUSH),
            can_trim: has(can::TRIM),
            can_write_zeroes: has(can::WRITE_ZEROES),
            multi_conn: has(can::MULTI_CONN),
            read_only: has(can::READ_ONLY),
        })
    }

    fn option(&mut self, number: u32, data: &[u8]) -> Result<()> {
        let mut out = Vec::with_capacity(16 + data.len());
        out.extend_from_slice(&wire::MAGIC_OPTION.to_be_bytes());
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
        self.write(&out)
    }

    fn answer(&mut self, number: u32) -> Result<Answer> {
        let mut head = [0; 20];
        self.read(&mut head)?;
        if be64(&head, 0) != wire::MAGIC_OPTION_REPLY || be32(&head, 8) != number {
            return Err(self.nonsense("the answer to an option is garbled"));
        }
        let len = be32(&head, 16);
        if len > ANSWER_MAX {
            return Err(self.nonsense("the answer to an option is too long"));
        }
        let mut data = vec![0; len as usize];
        self.read(&mut data)?;
        Ok(Answer { kind: be32(&head, 12), data })
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<()> {
        let mut stream = self.stream;
        stream.read_exact(buf).map_err(|source| self.failed(source))
    }

    fn write(&mut self, buf: &[u8]) -> Result<()> {
        let mut stream = self.stream;
        stream.write_all(buf).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> LunError {
        let source = match source.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(source.kind(), "the server closed the connection during the handshake"),
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "the server did not answer the handshake in time"),
            _ => source,
        };
        LunError::io("connect", 0, source)
    }

    fn nonsense(&self, why: &str) -> LunError {
        LunError::Refused(format!("{}: {why}", self.what))
    }
}
