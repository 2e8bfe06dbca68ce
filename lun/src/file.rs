//! A regular file or a block device as LUN.
//!
//! One descriptor, `pread` and `pwrite` on the caller's thread. With O_DIRECT where the file system has it, so that several
//! hosts on one device see each other's writes; where it has not, the page cache is used and a note is logged. Buffers that
//! are not aligned go through a page-aligned one of the thread.
//!
//! Invariant: an answer `Ok` to a forced write or a flush means the kernel said that the medium has it. It does not stop
//! anybody else from opening the same file, and does not follow a file that grows.

use std::fs::{File, OpenOptions as FsOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

use crate::{AlignedBuf, BLOCK_BYTES, Disk, Durability, Geometry, LunError, OpenOptions, Result, check_range};

/// Memory alignment that O_DIRECT wants; real limits are lower or equal on everything seen so far.
const MEMORY_ALIGN: usize = 512;
/// The largest piece that goes through the bounce buffer.
const BOUNCE: usize = 1 << 20;
/// Zeroes written per call where the LUN can not make zeroes itself.
const ZERO_PIECE: u64 = 1 << 20;
/// Larger discards are cut, so that one call never holds the device for long.
const DISCARD_PIECE: u64 = 1 << 30;

/// A file or block device.
pub struct FileDisk {
    file: File,
    path: PathBuf,
    geometry: Geometry,
    direct: bool,
    device: bool,
}

thread_local! {
    static BOUNCE_BUFFER: std::cell::RefCell<AlignedBuf> = const { std::cell::RefCell::new(AlignedBuf::empty()) };
}

impl FileDisk {
    /// Opens `path`, which must exist and hold at least one block.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let (file, direct) = open_file(path, options)?;
        let failed = |source: io::Error| LunError::Refused(format!("{}: can not be examined: {source}", path.display()));
        let meta = file.metadata().map_err(failed)?;
        let device = meta.file_type().is_block_device();
        if !device && !meta.file_type().is_file() {
            return Err(LunError::Refused(format!("{} is neither a file nor a block device", path.display())));
        }
        let (size, block_bytes) = if device {
            let size = device_size(&file).map_err(failed)?;
            (size, rustix::fs::ioctl_blksszget(&file).map_err(|e| failed(e.into()))?)
        } else {
            (meta.len(), 512)
        };
        if u64::from(block_bytes) > BLOCK_BYTES {
            return Err(LunError::Refused(format!("{} has blocks of {block_bytes} bytes, at most 4096 can be used", path.display())));
        }
        let size_bytes = size - size % BLOCK_BYTES;
        if size_bytes == 0 {
            return Err(LunError::Refused(format!("{} has {size} bytes, at least {BLOCK_BYTES} are needed", path.display())));
        }
        let geometry = Geometry { block_bytes, read_only: options.read_only, ..Geometry::able(size_bytes) };
        Ok(Self { file, path: path.to_owned(), geometry, direct, device })
    }

    /// Whether O_DIRECT is in use.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        check_range(|| self.describe(), self.geometry.size_bytes, offset, len)
    }

    fn must_bounce(&self, buf: &[u8]) -> bool {
        self.direct && !(buf.as_ptr() as usize).is_multiple_of(MEMORY_ALIGN)
    }

    fn read_raw(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match rustix::io::pread(&self.file, &mut *buf, offset) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the LUN ends here (did it shrink?)")),
                Ok(count) => {
                    buf = &mut buf[count..];
                    offset += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write_raw(&self, mut buf: &[u8], mut offset: u64, durability: Durability) -> io::Result<()> {
        while !buf.is_empty() {
            let count = write_once(&self.file, &[IoSlice::new(buf)], offset, durability)?;
            buf = &buf[count..];
            offset += count as u64;
        }
        Ok(())
    }

    /// Runs `step` over the pieces of a long range.
    fn pieces(offset: u64, len: u64, piece: u64, mut step: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let count = piece.min(end - at);
            step(at, count)?;
            at += count;
        }
        Ok(())
    }
}

fn open_file(path: &Path, options: &OpenOptions) -> Result<(File, bool)> {
    let attempt = |flags: i32| FsOptions::new().read(true).write(!options.read_only).custom_flags(flags).open(path);
    let failed = |source: io::Error| LunError::Refused(format!("{}: can not be opened: {source}", path.display()));
    if options.direct {
        match attempt(libc::O_DIRECT | libc::O_CLOEXEC) {
            Ok(file) => return Ok((file, true)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::warn!(path = %path.display(), "no direct I/O here, the page cache is used");
            }
            Err(error) => return Err(failed(error)),
        }
    }
    attempt(libc::O_CLOEXEC).map(|file| (file, false)).map_err(failed)
}

/// One `pwritev`, forced if asked; may write less than all.
pub(crate) fn write_once(file: &File, bufs: &[IoSlice<'_>], offset: u64, durability: Durability) -> io::Result<usize> {
    loop {
        let result = match durability {
            Durability::Plain => rustix::io::pwritev(file, bufs, offset),
            Durability::Forced => rustix::io::pwritev2(file, bufs, offset, ReadWriteFlags::DSYNC),
        };
        match result {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::WriteZero, "the LUN takes no more bytes here")),
            Ok(count) => return Ok(count),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if durability == Durability::Forced => {
                let count = rustix::io::pwritev(file, bufs, offset)?;
                rustix::fs::fdatasync(file)?;
                return Ok(count);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn device_size(file: &File) -> io::Result<u64> {
    // BLKGETSIZE64 by other means: the end of a block device is where a seek to its end arrives.
    Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?)
}

/// Discards a range of a block device; the kernel refuses where the device can not.
fn device_discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    /// `_IO(0x12, 119)`, the same on every architecture Linux runs on here.
    const BLKDISCARD: libc::Ioctl = 0x1277;
    let range: [u64; 2] = [offset, len];
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open for the whole call, and BLKDISCARD reads exactly two u64 from the pointer, which points
    // at a live array of two u64; it keeps no reference to it.
    let answer = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Frees a range so that it reads as zeroes: punches a hole in a file, zeroes (unmapping where it can) a device.
pub(crate) fn punch(file: impl AsFd, offset: u64, len: u64) -> rustix::io::Result<()> {
    retry(|| rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len))
}

/// Makes a range read as zeroes and keeps its space.
pub(crate) fn zero_range(file: impl AsFd, offset: u64, len: u64) -> rustix::io::Result<()> {
    retry(|| rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, len))
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Whether an error says "this medium can not do that" rather than "this went wrong".
pub(crate) fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NOTTY | Errno::NODEV)
}

impl Disk for FileDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        if !self.must_bounce(buf) {
            return self.read_raw(buf, offset).map_err(|source| LunError::io("read", offset, source));
        }
        BOUNCE_BUFFER.with_borrow_mut(|bounce| {
            bounce.grow(buf.len().min(BOUNCE));
            let mut at = offset;
            for part in buf.chunks_mut(BOUNCE) {
                let through = &mut bounce.bytes_mut()[..part.len()];
                self.read_raw(through, at).map_err(|source| LunError::io("read", at, source))?;
                part.copy_from_slice(through);
                at += part.len() as u64;
            }
            Ok(())
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64, durability: Durability) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        if !self.must_bounce(buf) {
            return self.write_raw(buf, offset, durability).map_err(|source| LunError::io("write", offset, source));
        }
        self.write_vectored_at(&[buf], offset, durability)
    }

    fn write_vectored_at(&self, bufs: &[&[u8]], offset: u64, durability: Durability) -> Result<()> {
        let total: usize = bufs.iter().map(|part| part.len()).sum();
        self.check(offset, total as u64)?;
        // Gathered through the bounce buffer: a vectored direct write wants every part aligned, which is rarely so.
        BOUNCE_BUFFER.with_borrow_mut(|bounce| {
            bounce.grow(total.min(BOUNCE));
            let (mut at, mut filled) = (offset, 0);
            for part in bufs {
                let mut part = *part;
                while !part.is_empty() {
                    let count = part.len().min(BOUNCE - filled);
                    bounce.bytes_mut()[filled..filled + count].copy_from_slice(&part[..count]);
                    filled += count;
                    part = &part[count..];
                    if filled == BOUNCE {
                        self.write_raw(&bounce.bytes()[..filled], at, durability).map_err(|source| LunError::io("write", at, source))?;
                        at += filled as u64;
                        filled = 0;
                    }
                }
            }
            self.write_raw(&bounce.bytes()[..filled], at, durability).map_err(|source| LunError::io("write", at, source))
        })
    }

    fn flush(&self) -> Result<()> {
        retry(|| rustix::fs::fdatasync(&self.file)).map_err(|source| LunError::io("flush", 0, source))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len)?;
        Self::pieces(offset, len, DISCARD_PIECE, |at, count| {
            let result =
                if self.device { device_discard(&self.file, at, count) } else { punch(&self.file, at, count).map_err(io::Error::from) };
            match result {
                Err(error) if error.raw_os_error().is_some_and(|code| is_unsupported(Errno::from_raw_os_error(code))) => Ok(()),
                other => other.map_err(|source| LunError::io("discard", at, source)),
            }
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len)?;
        Self::pieces(offset, len, DISCARD_PIECE, |at, count| {
            let result = punch(&self.file, at, count)
                .or_else(|error| if is_unsupported(error) { zero_range(&self.file, at, count) } else { Err(error) });
            match result {
                Err(error) if is_unsupported(error) => {
                    let zeroes = AlignedBuf::new(ZERO_PIECE.min(count) as usize);
                    Self::pieces(at, count, ZERO_PIECE, |at, count| {
                        self.write_raw(&zeroes.bytes()[..count as usize], at, Durability::Plain)
                            .map_err(|source| LunError::io("write zeroes", at, source))
                    })
                }
                other => other.map_err(|source| LunError::io("write zeroes", at, source)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn scratch(name: &str, len: u64) -> PathBuf {
        let path = std::env::temp_dir().join(format!("luna-lun-{}-{name}", std::process::id()));
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }

    #[test]
    fn aligned_unaligned_and_gathered_bytes_arrive() {
        let path = scratch("file", 8 << 20);
        for direct in [true, false] {
            let disk = FileDisk::open(&path, &OpenOptions { direct, ..OpenOptions::default() }).unwrap();
            let mut data: Vec<u8> = (0..(3 << 20) + 4097u32).map(|i| (i * 7 % 253) as u8).collect();
            data.insert(0, 0);
            let odd = &data[1..(3 << 20) + 4096 + 1];
            disk.write_at(odd, 4096, Durability::Plain).unwrap();
            disk.flush().unwrap();
            let mut back = vec![0; odd.len() + 1];
            disk.read_at(&mut back[1..], 4096).unwrap();
            assert!(&back[1..] == odd);
            disk.write_vectored_at(&[&odd[..4096], &odd[8192..8192 + (2 << 20)]], 0, Durability::Forced).unwrap();
            let mut back = AlignedBuf::new((2 << 20) + 4096);
            disk.read_at(back.bytes_mut(), 0).unwrap();
            assert!(back.bytes()[..4096] == odd[..4096] && back.bytes()[4096..] == odd[8192..8192 + (2 << 20)]);
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn zeroes_and_discards_give_space_back() {
        let path = scratch("punch", 8 << 20);
        let disk = FileDisk::open(&path, &OpenOptions::default()).unwrap();
        disk.write_at(&vec![1; 8 << 20], 0, Durability::Forced).unwrap();
        let full = std::fs::metadata(&path).unwrap().blocks();
        disk.write_zeroes(1 << 20, 2 << 20).unwrap();
        disk.discard(4 << 20, 4 << 20).unwrap();
        disk.flush().unwrap();
        let left = std::fs::metadata(&path).unwrap().blocks();
        assert!(full >= (8 << 20) / 512 && left <= full - (6 << 20) / 512, "{full} {left}");
        let mut back = vec![9; 4 << 20];
        disk.read_at(&mut back, 0).unwrap();
        assert!(back[..1 << 20].iter().all(|b| *b == 1) && back[1 << 20..3 << 20].iter().all(|b| *b == 0) && back[3 << 20] == 1);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_can_not_be_a_lun_is_refused() {
        let options = OpenOptions::default();
        for path in ["/nonexistent/lun", "/", "/dev/null"] {
            assert!(matches!(FileDisk::open(Path::new(path), &options), Err(LunError::Refused(_))), "{path}");
        }
        let path = scratch("small", 4095);
        assert!(FileDisk::open(&path, &options).is_err());
        File::create(&path).unwrap().set_len(10_000).unwrap();
        let disk = FileDisk::open(&path, &OpenOptions { read_only: true, ..options }).unwrap();
        assert_eq!(disk.geometry().size_bytes, 8192);
        assert!(disk.write_at(&[0; 4096], 0, Durability::Plain).is_err());
        assert!(matches!(disk.read_at(&mut [0; 4096], 8192), Err(LunError::Usage(_))));
        std::fs::remove_file(path).unwrap();
    }
}
