//! Extended attributes of one inode: one block, packed records of [`XattrHead`], name, value, padded to 8 bytes, at
//! [`RECORDS_AT`]. Not here: name spaces and permissions (that is `fs`).

use crate::{BLOCK_BYTES, CheckError, HEADER_BYTES};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the bytes-in-use counter (u64) lives.
pub const USED_AT: usize = HEADER_BYTES;
/// Where the records start.
pub const RECORDS_AT: usize = HEADER_BYTES + 8;
/// Bytes for records.
pub const RECORDS_BYTES: usize = BLOCK_BYTES - RECORDS_AT;

/// Fixed part of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct XattrHead {
    /// 0: bytes of the record, padding included.
    pub len: u16,
    /// 2: bytes of the value.
    pub value_len: u16,
    /// 4: bytes of the name.
    pub name_len: u8,
    /// 5: zero.
    pub zero: [u8; 3],
}
const _: () = assert!(size_of::<XattrHead>() == 8);

/// Bytes of a record.
pub fn record_bytes(name_len: usize, value_len: usize) -> usize {
    (8 + name_len + value_len).next_multiple_of(8)
}

/// Name and value of one attribute.
pub type Pair<'a> = (&'a [u8], &'a [u8]);

/// Splits the used bytes into (name, value) pairs.
pub fn entries(block: u64, bytes: &[u8]) -> Result<Vec<Pair<'_>>, CheckError> {
    let (mut at, mut out) = (0, Vec::new());
    while at < bytes.len() {
        let bad = Err(CheckError::Field { block, what: "xattr record", found: at as u64 });
        let Ok((h, _)) = XattrHead::read_from_prefix(&bytes[at..]) else { return bad };
        let (n, v, len) = (h.name_len as usize, h.value_len as usize, h.len as usize);
        if n == 0 || len != record_bytes(n, v) || at + len > bytes.len() {
            return bad;
        }
        out.push((&bytes[at + 8..at + 8 + n], &bytes[at + 8 + n..at + 8 + n + v]));
        at += len;
    }
    Ok(out)
}

/// Appends a record.
pub fn push(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let len = record_bytes(name.len(), value.len());
    let h = XattrHead { len: len as u16, value_len: value.len() as u16, name_len: name.len() as u8, zero: [0; 3] };
    let start = out.len();
    out.extend_from_slice(h.as_bytes());
    out.extend_from_slice(name);
    out.extend_from_slice(value);
    out.resize(start + len, 0);
}
