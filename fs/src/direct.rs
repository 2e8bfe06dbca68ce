//! A door for programs of this process: the calls of an open file, waiting for their answers. The simulator's guests come in here.
//!
//! Invariant: nothing is decided here; each call is the one that the FUSE door makes, with a wait behind it. Not here: names and
//! attributes, which are operations of the volume ([`Fs::run`] and `op`).

use crate::data::WriteHow;
use crate::error::FsError;
use crate::open::{How, OpenFile};
use crate::system::Fs;
use crate::volume::Wait;
use luna_dlm::Answer;
use luna_format::Ino;
use std::sync::Arc;

impl Fs {
    /// open(2) of a file that is there.
    pub fn open_wait(self: &Arc<Self>, ino: Ino, flags: i32) -> Result<Arc<OpenFile>, FsError> {
        self.open(ino, How::from_flags(flags), Wait::Yes)?.ok_or(FsError::WouldBlock)
    }

    /// close(2).
    pub fn close_file(self: &Arc<Self>, file: Arc<OpenFile>) {
        self.close(file);
    }

    /// pread(2); `heard` is called at the moment of the answer.
    pub fn pread(
        self: &Arc<Self>,
        file: &OpenFile,
        offset: u64,
        len: u32,
        heard: impl FnOnce(&Result<Vec<u8>, FsError>) + Send + 'static,
    ) -> Result<Vec<u8>, FsError> {
        let answer = Arc::new(Answer::default());
        let theirs = Arc::clone(&answer);
        self.read(file, offset, len, move |got: Result<&[u8], FsError>| {
            let got = got.map(<[u8]>::to_vec);
            heard(&got);
            theirs.give(got);
        });
        self.drive();
        answer.take(self.volume.threads())
    }

    /// pwrite(2); `heard` is called at the moment of the answer.
    pub fn pwrite(
        self: &Arc<Self>,
        file: &OpenFile,
        offset: u64,
        data: &[u8],
        heard: impl FnOnce(&Result<u32, FsError>) + Send + 'static,
    ) -> Result<u32, FsError> {
        let answer = Arc::new(Answer::default());
        let theirs = Arc::clone(&answer);
        self.write(file, offset, data, WriteHow::default(), move |got: Result<u32, FsError>| {
            heard(&got);
            theirs.give(got);
        });
        self.drive();
        answer.take(self.volume.threads())
    }

    /// ftruncate(2).
    pub fn ftruncate(&self, file: &OpenFile, size: u64) -> Result<(), FsError> {
        self.truncate(&file.node, size, false, Wait::Yes)?.ok_or(FsError::WouldBlock)
    }

    /// fallocate(2).
    pub fn fallocate_wait(&self, file: &OpenFile, mode: i32, offset: u64, len: u64) -> Result<(), FsError> {
        self.fallocate(&file.node, mode, offset, len, Wait::Yes)?.ok_or(FsError::WouldBlock)
    }

    /// fsync(2).
    pub fn fsync(&self, file: &OpenFile) -> Result<(), FsError> {
        self.sync_node(&file.node, false)
    }
}
