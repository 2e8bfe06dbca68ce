//! Why a host could not mount or unmount: one line each, with what to do.

/// Errors of a mount.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The LUN could not be opened or read.
    #[error("{0}")]
    Lun(#[from] luna_lun::LunError),
    /// There is no usable Luna volume on the LUN.
    #[error("{0}")]
    Super(#[from] luna_fs::mkfs::SuperError),
    /// A repair is under way.
    #[error("{lun}: a repair is under way or was cut off; wait for it, or finish it with `luna fsck -y {lun}`")]
    UnderRepair {
        /// The LUN.
        lun: String,
    },
    /// The LUN is smaller than the volume on it.
    #[error("the volume has {want} bytes but the LUN only {have}: grow the LUN back, or it is the wrong one")]
    TooSmall {
        /// Bytes of the volume.
        want: u64,
        /// Bytes of the LUN.
        have: u64,
    },
    /// The cluster does not take this host.
    #[error("{0}")]
    Refused(String),
    /// The means to fence that was asked for does not work.
    #[error("{0}")]
    Fence(String),
    /// The cluster did not answer in time.
    #[error("could not join within {0} s: the LUN is slow or other hosts keep changing the membership; try again")]
    JoinTimeout(u64),
    /// The journal could not be opened.
    #[error("{0}")]
    Journal(#[from] luna_journal::JournalError),
    /// A file system operation failed.
    #[error("{0}")]
    Fs(#[from] luna_fs::FsError),
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl NodeError {
    /// For `map_err`: names what was attempted.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
