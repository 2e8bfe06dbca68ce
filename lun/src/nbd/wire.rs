//! The numbers of the NBD protocol and the shape of its fixed-size messages.
//!
//! Fixed newstyle handshake, simple replies. Big-endian throughout. Everything both sides of the wire must agree on stands
//! here and nowhere else. No sockets.

/// First eight bytes a server says.
pub(crate) const MAGIC_HELLO: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: second eight bytes of a newstyle server, and the head of each option.
pub(crate) const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// Head of each answer to an option.
pub(crate) const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Head of each request.
pub(crate) const MAGIC_REQUEST: u32 = 0x2560_9513;
/// Head of each simple reply.
pub(crate) const MAGIC_REPLY: u32 = 0x6744_6698;

/// Handshake flag: fixed newstyle.
pub(crate) const FLAG_FIXED: u16 = 1;
/// Handshake flag: no 124 zeroes after the answer to EXPORT_NAME.
pub(crate) const FLAG_NO_ZEROES: u16 = 2;

/// Option numbers.
pub(crate) mod opt {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    /// `LUNA`: a line of text to `luna serve`: who I am, whom to fence.
    pub(crate) const LUNA: u32 = 0x4c55_4e41;
}

/// Answers to options.
pub(crate) mod rep {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    /// Set in every error.
    pub(crate) const ERROR: u32 = 1 << 31;
    pub(crate) const ERR_UNSUP: u32 = ERROR | 1;
    pub(crate) const ERR_POLICY: u32 = ERROR | 2;
    pub(crate) const ERR_INVALID: u32 = ERROR | 3;
    pub(crate) const ERR_UNKNOWN: u32 = ERROR | 6;
    pub(crate) const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Information items in GO.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub(crate) mod can {
    pub(crate) const HAS_FLAGS: u16 = 1;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const FLUSH: u16 = 1 << 2;
    pub(crate) const FUA: u16 = 1 << 3;
    pub(crate) const TRIM: u16 = 1 << 5;
    pub(crate) const WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const MULTI_CONN: u16 = 1 << 8;
}

/// Commands.
pub(crate) mod cmd {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    /// Command flag: force to stable storage.
    pub(crate) const FLAG_FUA: u16 = 1;
    /// Command flag of WRITE_ZEROES: keep the space.
    pub(crate) const FLAG_NO_HOLE: u16 = 2;
}

/// Bytes of a request header.
pub(crate) const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply header.
pub(crate) const REPLY_BYTES: usize = 16;
/// The longest request we send or accept.
pub(crate) const MAX_REQUEST: u32 = 32 << 20;

/// A request header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) handle: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Request {
    /// The bytes on the wire.
    pub(crate) fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        out[0..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.handle.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..28].copy_from_slice(&self.len.to_be_bytes());
        out
    }

    /// Reads a header; `None` if the magic is wrong.
    pub(crate) fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        (be32(bytes, 0) == MAGIC_REQUEST).then(|| Self {
            flags: be16(bytes, 4),
            command: be16(bytes, 6),
            handle: be64(bytes, 8),
            offset: be64(bytes, 16),
            len: be32(bytes, 24),
        })
    }
}

/// A simple reply header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) error: u32,
    pub(crate) handle: u64,
}

impl Reply {
    /// The bytes on the wire.
    pub(crate) fn encode(&self) -> [u8; REPLY_BYTES] {
        let mut out = [0; REPLY_BYTES];
        out[0..4].copy_from_slice(&MAGIC_REPLY.to_be_bytes());
        out[4..8].copy_from_slice(&self.error.to_be_bytes());
        out[8..16].copy_from_slice(&self.handle.to_be_bytes());
        out
    }

    /// Reads a header; `None` if the magic is wrong. `bytes` holds at least [`REPLY_BYTES`].
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        (be32(bytes, 0) == MAGIC_REPLY).then(|| Self { error: be32(bytes, 4), handle: be64(bytes, 8) })
    }
}

/// The longest piece of a trim or zero request for `left` bytes: 1 GiB, so that no server works on one for long.
pub(crate) fn can_len(left: u64) -> u32 {
    left.min(1 << 30) as u32
}

/// A big-endian u16 at `at`, which lies inside.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// A big-endian u32 at `at`, which lies inside.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

/// A big-endian u64 at `at`, which lies inside.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

/// The errno a wire error stands for.
pub(crate) fn errno_of(error: u32) -> i32 {
    match error {
        1 => libc::EPERM,
        12 => libc::ENOMEM,
        22 => libc::EINVAL,
        28 => libc::ENOSPC,
        75 => libc::EOVERFLOW,
        95 => libc::EOPNOTSUPP,
        108 => libc::ESHUTDOWN,
        _ => libc::EIO,
    }
}

/// The wire error for an errno.
pub(crate) fn error_of(errno: i32) -> u32 {
    match errno {
        libc::EPERM | libc::EROFS | libc::EACCES => 1,
        libc::ENOMEM => 12,
        libc::EINVAL => 22,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => 28,
        libc::EOVERFLOW => 75,
        libc::EOPNOTSUPP => 95,
        libc::ESHUTDOWN => 108,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_wrong_magic_is_seen() {
        let request = Request { flags: 1, command: cmd::WRITE, handle: 0x0102_0304_0506_0708, offset: 1 << 40, len: 4096 };
        let mut bytes = request.encode();
        assert_eq!(bytes[..4], [0x25, 0x60, 0x95, 0x13]);
        assert_eq!(Request::decode(&bytes), Some(request));
        bytes[0] ^= 1;
        assert_eq!(Request::decode(&bytes), None);
        let reply = Reply { error: 28, handle: 77 };
        assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        assert_eq!(Reply::decode(&[0; 16]), None);
        for errno in [libc::EPERM, libc::EIO, libc::ENOMEM, libc::EINVAL, libc::ENOSPC] {
            assert_eq!(errno_of(error_of(errno)), errno);
        }
    }
}
