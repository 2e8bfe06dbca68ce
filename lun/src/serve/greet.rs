//! The server's side of the NBD handshake: fixed newstyle, the options clients use, and `LUNA`.
//!
//! Invariants: an option longer than [`OPTION_MAX`] ends the connection before memory is taken; the number of options is
//! bounded, and the whole handshake in time, so that a client that says nothing (or too much) holds a thread only briefly.
//! A fenced name does not get past here.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use super::control;
use super::fence::{Identity, Ticket};
use crate::nbd::wire::{self, be16, be32, be64, can, info, opt, rep};
use crate::stream::Stream;

/// No option needs more.
const OPTION_MAX: u32 = 16 << 10;
/// No client needs more options.
const OPTIONS_MAX: usize = 64;

struct Greeting<'a> {
    shared: &'a Shared,
    stream: &'a Stream,
    until: Instant,
    no_zeroes: bool,
}

/// Leads the handshake; `Ok(true)`: the client may send requests.
pub(super) fn greet(shared: &Shared, stream: &Arc<Stream>, ticket: &Ticket<'_>) -> io::Result<bool> {
    let until = Instant::now() + shared.handshake_timeout;
    Greeting { shared, stream, until, no_zeroes: false }.run(ticket)
}

impl Greeting<'_> {
    fn run(&mut self, ticket: &Ticket<'_>) -> io::Result<bool> {
        let mut hello = Vec::with_capacity(18);
        hello.extend_from_slice(&wire::MAGIC_HELLO.to_be_bytes());
        hello.extend_from_slice(&wire::MAGIC_OPTION.to_be_bytes());
        hello.extend_from_slice(&(wire::FLAG_FIXED | wire::FLAG_NO_ZEROES).to_be_bytes());
        self.write(&hello)?;
        let mut flags = [0; 4];
        self.read(&mut flags)?;
        let flags = be32(&flags, 0);
        if flags & u32::from(wire::FLAG_FIXED) == 0 || flags & !u32::from(wire::FLAG_FIXED | wire::FLAG_NO_ZEROES) != 0 {
            return Ok(false);
        }
        self.no_zeroes = flags & u32::from(wire::FLAG_NO_ZEROES) != 0;
        for _ in 0..OPTIONS_MAX {
            let mut head = [0; 16];
            self.read(&mut head)?;
            let (option, len) = (be32(&head, 8), be32(&head, 12));
            if be64(&head, 0) != wire::MAGIC_OPTION || len > OPTION_MAX {
                return Ok(false);
            }
            let mut data = vec![0; len as usize];
            self.read(&mut data)?;
            match option {
                opt::EXPORT_NAME => return self.export_name(&data, ticket),
                opt::ABORT => {
                    self.reply(option, rep::ACK, &[])?;
                    return Ok(false);
                }
                opt::LIST => self.list(option, &data)?,
                opt::INFO | opt::GO => {
                    if self.select(option, &data, ticket)? {
                        return Ok(true);
                    }
                }
                opt::LUNA => self.luna(option, &data, ticket)?,
                _ => self.reply(option, rep::ERR_UNSUP, b"this option is not supported")?,
            }
        }
        Ok(false)
    }

    fn list(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        if !data.is_empty() {
            return self.reply(option, rep::ERR_INVALID, b"LIST takes no data");
        }
        let name = self.shared.export.as_bytes();
        let mut entry = Vec::with_capacity(4 + name.len());
        entry.extend_from_slice(&(name.len() as u32).to_be_bytes());
        entry.extend_from_slice(name);
        self.reply(option, rep::SERVER, &entry)?;
        self.reply(option, rep::ACK, &[])
    }

    /// `hello [NAME[#INCARNATION]]`, or a control command.
    fn luna(&mut self, option: u32, data: &[u8], ticket: &Ticket<'_>) -> io::Result<()> {
        let line = match std::str::from_utf8(data) {
            Ok(line) if line.len() <= control::LINE_MAX => line.trim_end(),
            _ => return self.reply(option, rep::ERR_TOO_BIG, b"one short line of text"),
        };
        if let Some(rest) = line.strip_prefix("hello") {
            let answer = match rest.trim() {
                "" => Ok(()),
                text => match Identity::parse(text) {
                    Some(identity) => self.shared.registry.rename(ticket, identity),
                    None => return self.reply(option, rep::ERR_POLICY, format!("'{text}' is not NAME or NAME#INCARNATION").as_bytes()),
                },
            };
            return match answer {
                Ok(()) => self.reply(option, rep::ACK, self.shared.instance().as_bytes()),
                Err(why) => self.reply(option, rep::ERR_POLICY, why.as_bytes()),
            };
        }
        match control::execute(self.shared, line, false) {
            Ok(text) => self.reply(option, rep::ACK, text.as_bytes()),
            Err(error) => self.reply(option, rep::ERR_INVALID, error.to_string().as_bytes()),
        }
    }

    /// Resolves `EXPORT` or `EXPORT@NAME[#INCARNATION]`; an error is the answer's number and text.
    fn resolve(&self, name: &[u8], ticket: &Ticket<'_>) -> Result<(), (u32, String)> {
        let unknown = || (rep::ERR_UNKNOWN, "there is no export of this name".to_owned());
        let name = std::str::from_utf8(name).map_err(|_| unknown())?;
        if name == self.shared.export || name.is_empty() {
            return Ok(());
        }
        let (export, who) = name.rsplit_once('@').ok_or_else(unknown)?;
        if export != self.shared.export && !export.is_empty() {
            return Err(unknown());
        }
        let identity = Identity::parse(who).ok_or_else(unknown)?;
        self.shared.registry.rename(ticket, identity).map_err(|why| (rep::ERR_POLICY, why))
    }

    fn select(&mut self, option: u32, data: &[u8], ticket: &Ticket<'_>) -> io::Result<bool> {
        let parsed = (data.len() >= 6).then(|| be32(data, 0) as usize).filter(|len| len + 6 <= data.len());
        let Some(len) = parsed.filter(|len| data.len() == len + 6 + 2 * usize::from(be16(data, len + 4))) else {
            self.reply(option, rep::ERR_INVALID, b"the option is garbled")?;
            return Ok(false);
        };
        if let Err((kind, why)) = self.resolve(&data[4..4 + len], ticket) {
            self.reply(option, kind, why.as_bytes())?;
            return Ok(false);
        }
        let mut export = Vec::with_capacity(12);
        export.extend_from_slice(&info::EXPORT.to_be_bytes());
        export.extend_from_slice(&self.shared.size_bytes.to_be_bytes());
        export.extend_from_slice(&self.flags().to_be_bytes());
        self.reply(option, rep::INFO, &export)?;
        let mut sizes = Vec::with_capacity(14);
        sizes.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        for size in [1, 4096, wire::MAX_REQUEST] {
            sizes.extend_from_slice(&u32::to_be_bytes(size));
        }
        self.reply(option, rep::INFO, &sizes)?;
        self.reply(option, rep::ACK, &[])?;
        Ok(option == opt::GO)
    }

    fn export_name(&mut self, name: &[u8], ticket: &Ticket<'_>) -> io::Result<bool> {
        if self.resolve(name, ticket).is_err() {
            return Ok(false);
        }
        let mut out = Vec::with_capacity(134);
        out.extend_from_slice(&self.shared.size_bytes.to_be_bytes());
        out.extend_from_slice(&self.flags().to_be_bytes());
        if !self.no_zeroes {
            out.resize(134, 0);
        }
        self.write(&out)?;
        Ok(true)
    }

    fn flags(&self) -> u16 {
        let all = can::HAS_FLAGS | can::FLUSH | can::FUA | can::TRIM | can::WRITE_ZEROES | can::MULTI_CONN;
        if self.shared.read_only { can::HAS_FLAGS | can::FLUSH | can::MULTI_CONN | can::READ_ONLY } else { all }
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut out = Vec::with_capacity(20 + data.len());
        out.extend_from_slice(&wire::MAGIC_OPTION_REPLY.to_be_bytes());
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
        self.write(&out)
    }

    fn in_time(&self) -> io::Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake takes too long"));
        }
        self.stream.set_timeout(Some(left))
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<()> {
        let mut got = 0;
        while got < buf.len() {
            self.in_time()?;
            match self.stream.recv(&mut buf[got..], true) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&mut self, buf: &[u8]) -> io::Result<()> {
        self.in_time()?;
        let mut stream = self.stream;
        stream.write_all(buf)
    }
}
