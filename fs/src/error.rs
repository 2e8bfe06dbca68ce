//! What can end an operation, and the one table that turns it into an errno.
//!
//! A [`Stop`] is not an error: it says what the operation needs before it can run again (a lock, a block, journal space).
//! [`FsError`] is an error of the operation. A bug is neither: it is an assertion.

use luna_dlm::{Mode, Name};
use luna_format::{BlockNo, CheckError, Kind};

/// Why an operation body did not finish.
#[derive(Debug)]
pub enum Stop {
    /// It failed.
    Error(FsError),
    /// It also needs this lock in this mode.
    Lock(Name, Mode),
    /// It also needs this metadata block in the cache.
    Block(Fetch),
    /// The journal is full, or the only free blocks wait for it: checkpoint, then run again.
    Journal,
    /// The metadata of the volume is frozen: wait until it is not, then run again.
    Frozen,
    /// It wants to make a free segment a metadata segment: write zeroes over it first, under its group's lock, then run again.
    Zero {
        /// First block of the segment.
        start: BlockNo,
        /// Its blocks.
        len: u64,
    },
}

/// A metadata block to be read: where, and what it must be.
#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    /// Address.
    pub block: BlockNo,
    /// Expected kind.
    pub kind: Kind,
    /// Expected owner.
    pub owner: u64,
    /// The lock under which it may be cached.
    pub lock: Name,
}

impl From<FsError> for Stop {
    fn from(e: FsError) -> Self {
        Self::Error(e)
    }
}

impl From<CheckError> for Stop {
    fn from(e: CheckError) -> Self {
        Self::Error(FsError::Corrupt(e))
    }
}

/// The result of an operation body.
pub type Step<T> = Result<T, Stop>;

/// Errors of file system operations.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// ENOENT.
    #[error("no such file or directory")]
    NotFound,
    /// EEXIST.
    #[error("file exists")]
    Exists,
    /// ENOTDIR.
    #[error("not a directory")]
    NotDir,
    /// EISDIR.
    #[error("is a directory")]
    IsDir,
    /// ENOTEMPTY.
    #[error("directory not empty")]
    NotEmpty,
    /// ENOSPC.
    #[error("no space left on the volume")]
    NoSpace,
    /// EFBIG.
    #[error("file too large")]
    TooBig,
    /// ENAMETOOLONG.
    #[error("name longer than 255 bytes")]
    NameTooLong,
    /// EINVAL.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// EPERM.
    #[error("operation not permitted")]
    Permission,
    /// EACCES.
    #[error("permission denied")]
    Access,
    /// EMLINK.
    #[error("too many links")]
    TooManyLinks,
    /// ENODATA.
    #[error("no such attribute")]
    NoAttribute,
    /// ERANGE.
    #[error("buffer too small")]
    Range,
    /// ENXIO.
    #[error("no data or hole beyond this offset")]
    NoSuchOffset,
    /// EOPNOTSUPP.
    #[error("not supported: {0}")]
    NotSupported(&'static str),
    /// ESTALE.
    #[error("the file is gone")]
    Stale,
    /// EBADF.
    #[error("not an open file handle")]
    BadHandle,
    /// EAGAIN.
    #[error("held by another")]
    WouldBlock,
    /// EDEADLK.
    #[error("would deadlock")]
    Deadlock,
    /// EINTR.
    #[error("interrupted")]
    Interrupted,
    /// EIO: a metadata block is damaged.
    #[error("{0}")]
    Corrupt(#[from] CheckError),
    /// EIO: a structure is damaged beyond one block.
    #[error("inode {ino}: {what} [F01]")]
    Damaged {
        /// The inode.
        ino: u64,
        /// What was found.
        what: &'static str,
    },
    /// EIO: the LUN failed.
    #[error("{0}")]
    Lun(#[from] luna_lun::LunError),
    /// EIO: this host no longer takes part.
    #[error("this host has withdrawn from the volume: {0}; unmount and mount again")]
    Withdrawn(String),
    /// EROFS.
    #[error("mounted read-only")]
    ReadOnly,
}

impl FsError {
    /// The errno a user sees. Exhaustive on purpose.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Exists => libc::EEXIST,
            Self::NotDir => libc::ENOTDIR,
            Self::IsDir => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::NoSpace => libc::ENOSPC,
            Self::TooBig => libc::EFBIG,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::Invalid(_) => libc::EINVAL,
            Self::Permission => libc::EPERM,
            Self::Access => libc::EACCES,
            Self::TooManyLinks => libc::EMLINK,
            Self::NoAttribute => libc::ENODATA,
            Self::Range => libc::ERANGE,
            Self::NoSuchOffset => libc::ENXIO,
            Self::NotSupported(_) => libc::EOPNOTSUPP,
            Self::Stale => libc::ESTALE,
            Self::BadHandle => libc::EBADF,
            Self::WouldBlock => libc::EAGAIN,
            Self::Deadlock => libc::EDEADLK,
            Self::Interrupted => libc::EINTR,
            Self::ReadOnly => libc::EROFS,
            Self::Corrupt(_) | Self::Damaged { .. } | Self::Lun(_) | Self::Withdrawn(_) => libc::EIO,
        }
    }
}
