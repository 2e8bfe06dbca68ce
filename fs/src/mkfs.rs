//! Makes a volume, and finds the superblock of one.
//!
//! Invariant: until [`run`] has flushed everything else, no readable superblock copy is on the LUN (old ones are erased
//! first), so a half-made volume can never be mounted. The cost is a few regions of zeroes and one header a group: about a
//! second for any size. The LUN is not discarded as a whole.
//! Not here: asking before overwriting (see [`found`] for what to ask about), drawing identities and secrets (the caller's).

use luna_format::inode::{BODY_AT, Inode, Layout};
use luna_format::superblock::{self, Superblock};
use luna_format::{BLOCK_U64, Block, BlockNo, CheckError, HEADER_BYTES, Ino, Kind, Stamp, VolumeId, ag, geometry};
use luna_lun::{Disk, Durability, LunError};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a volume is made with.
#[derive(Clone, Debug)]
pub struct MkfsOptions {
    /// Label, at most 64 bytes of UTF-8.
    pub label: String,
    /// Hosts that can mount it at once, 1 to 64.
    pub slots: u32,
    /// Identity; random.
    pub volume: VolumeId,
    /// Key of the directory hash; random.
    pub hash_key: [u8; 16],
    /// Secret of the links between hosts; random.
    pub link_secret: [u8; 32],
    /// Nanoseconds since 1970.
    pub now_ns: i64,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct MkfsSummary {
    /// The superblock.
    pub sb: Superblock,
    /// Bytes of the volume.
    pub total_bytes: u64,
    /// Bytes that files can use at the beginning.
    pub free_bytes: u64,
}

/// Why no volume was made.
#[derive(Debug, thiserror::Error)]
pub enum MkfsError {
    /// The LUN is too small.
    #[error("{lun}: {bytes} bytes are too few for a volume of {slots} hosts; use a larger LUN or fewer hosts (--slots)")]
    TooSmall {
        /// The LUN.
        lun: String,
        /// Its size.
        bytes: u64,
        /// Hosts asked for.
        slots: u32,
    },
    /// Slots out of range.
    #[error("{0} hosts asked for; 1 to 64 are possible")]
    Slots(u32),
    /// Label too long.
    #[error("the label has {0} bytes; at most 64 fit")]
    Label(usize),
    /// The LUN refuses writes.
    #[error("{0}: read-only; a volume cannot be made here")]
    ReadOnly(String),
    /// The LUN failed.
    #[error("making the volume failed, it cannot be mounted: {0}")]
    Lun(#[from] LunError),
    /// A journal could not be written.
    #[error("making the volume failed, it cannot be mounted: {0}")]
    Journal(#[from] luna_journal::JournalError),
}

/// Why no superblock was found.
#[derive(Debug, thiserror::Error)]
pub enum SuperError {
    /// Something else, or nothing, is on the LUN.
    #[error("{lun}: not a Luna volume (found {what}); make one with `luna mkfs`")]
    Foreign {
        /// The LUN.
        lun: String,
        /// What is there.
        what: &'static str,
    },
    /// Luna blocks, but no good copy.
    #[error("{lun}: no superblock copy is readable ({first}); run `luna fsck`")]
    Damaged {
        /// The LUN.
        lun: String,
        /// What is wrong with the first copy.
        first: CheckError,
    },
    /// Made by a newer program.
    #[error("{lun}: made by a newer luna ({what}); use that version")]
    Future {
        /// The LUN.
        lun: String,
        /// Which thing is newer.
        what: CheckError,
    },
    /// The LUN has shrunk.
    #[error("{lun}: the volume has {volume} bytes but the LUN only {lun_bytes}; give the LUN its size back")]
    Shrunk {
        /// The LUN.
        lun: String,
        /// Bytes of the volume.
        volume: u64,
        /// Bytes of the LUN.
        lun_bytes: u64,
    },
    /// The LUN failed.
    #[error("reading the superblock failed: {0}")]
    Lun(#[from] LunError),
}

/// What lies on a LUN before mkfs, so that nothing is overwritten by mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Zeroes where anything would announce itself.
    Nothing,
    /// A volume, possibly damaged, with its label if readable.
    Luna(Option<(VolumeId, String)>),
    /// Something known of others, or bytes nobody knows.
    Other(&'static str),
}

/// Threads that write group headers.
const WRITERS: usize = 16;
/// Group headers between two reports of progress.
const CHUNK: u64 = 512;

/// Makes a volume on `disk`; `progress` hears (done, total).
pub fn run(disk: &dyn Disk, o: &MkfsOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<MkfsSummary, MkfsError> {
    let sb = plan(disk, o)?;
    let steps = sb.ag_count + u64::from(sb.slots) + 2;
    erase_old(disk, &sb)?;
    disk.write_zeroes(BLOCK_U64, (sb.journal_start - 1) * BLOCK_U64)?;
    progress(1, steps);
    make_journals(disk, o, &sb)?;
    let mut done = 1 + u64::from(sb.slots);
    progress(done, steps);
    let mut at = 1;
    while at < sb.ag_count {
        let end = (at + CHUNK).min(sb.ag_count);
        in_parallel(at..end, &|n| write_header(disk, o, &sb, n).map_err(MkfsError::from))?;
        done += end - at;
        at = end;
        progress(done, steps);
    }
    let first = first_group(o, &sb);
    let bufs: Vec<&[u8]> = first.iter().map(|b| &b.0[..]).collect();
    disk.write_vectored_at(&bufs, sb.ag_start * BLOCK_U64, Durability::Plain)?;
    disk.flush()?;
    for block in sb.copies().into_iter().rev() {
        disk.write_at(&sb.seal(o.volume, block, 1).0, block * BLOCK_U64, Durability::Plain)?;
        disk.flush()?;
    }
    progress(steps, steps);
    let free: u64 = (0..sb.ag_count).map(|n| group_header(&sb, n).free).sum();
    Ok(MkfsSummary { sb, total_bytes: sb.total_blocks * BLOCK_U64, free_bytes: free * BLOCK_U64 })
}

fn plan(disk: &dyn Disk, o: &MkfsOptions) -> Result<Superblock, MkfsError> {
    let g = disk.geometry();
    if g.read_only {
        return Err(MkfsError::ReadOnly(disk.describe()));
    }
    if o.slots == 0 || o.slots > u32::from(luna_format::MAX_SLOTS) {
        return Err(MkfsError::Slots(o.slots));
    }
    if o.label.len() > 64 {
        return Err(MkfsError::Label(o.label.len()));
    }
    let mut sb = geometry::plan(g.size_bytes, o.slots).ok_or_else(|| MkfsError::TooSmall {
        lun: disk.describe(),
        bytes: g.size_bytes,
        slots: o.slots,
    })?;
    sb.label[..o.label.len()].copy_from_slice(o.label.as_bytes());
    sb.hash_key = o.hash_key;
    sb.link_secret = o.link_secret;
    sb.made_ns = o.now_ns;
    sb.devices[0].id = o.volume;
    Ok(sb)
}

/// No superblock copy of an earlier volume survives, wherever this program would look for one.
fn erase_old(disk: &dyn Disk, sb: &Superblock) -> Result<(), LunError> {
    let mut b = Block::zeroed();
    for block in candidates(disk.geometry().size_bytes / BLOCK_U64) {
        disk.read_at(&mut b.0, block * BLOCK_U64)?;
        if b.header().magic == luna_format::MAGIC && b.header().kind == Kind::Superblock as u16 {
            disk.write_at(&Block::zeroed().0, block * BLOCK_U64, Durability::Plain)?;
        }
    }
    for block in sb.copies() {
        disk.write_at(&Block::zeroed().0, block * BLOCK_U64, Durability::Plain)?;
    }
    disk.flush()
}

/// Where a superblock copy can be on a LUN of `blocks`: the ends, then the middle copies that a plan of today would choose.
fn candidates(blocks: u64) -> Vec<BlockNo> {
    let mut out = vec![0, blocks.saturating_sub(1)];
    for slots in 1..=u32::from(luna_format::MAX_SLOTS) {
        if let Some(sb) = geometry::plan(blocks * BLOCK_U64, slots)
            && !out.contains(&sb.copy_block)
        {
            out.push(sb.copy_block);
        }
    }
    out
}

fn make_journals(disk: &dyn Disk, o: &MkfsOptions, sb: &Superblock) -> Result<(), MkfsError> {
    in_parallel(0..u64::from(sb.slots), &|s| {
        let slot = s as luna_format::Slot;
        Ok(luna_journal::Journal::format(disk, o.volume, sb.journal_region(slot), slot)?)
    })
}

/// Runs `work` for each number on a few threads; the first error wins.
fn in_parallel(range: std::ops::Range<u64>, work: &(dyn Fn(u64) -> Result<(), MkfsError> + Sync)) -> Result<(), MkfsError> {
    let next = AtomicU64::new(range.start);
    let one = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= range.end {
                return Ok(());
            }
            work(n)?;
        }
    };
    let threads = WRITERS.min(range.end.saturating_sub(range.start) as usize);
    std::thread::scope(|s| {
        let all: Vec<_> = (0..threads).map(|_| s.spawn(one)).collect();
        all.into_iter().try_for_each(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    })
}

/// The header of group `n` of a new volume. Group 0 is written whole; of the others only this block.
fn group_header(sb: &Superblock, n: u64) -> ag::AgHeader {
    let (_, blocks) = sb.ag_region(n);
    let bitmaps = ag::bitmaps_for(blocks);
    let own = 1 + bitmaps + if n == 0 { 1 + u64::from(sb.slots) } else { 0 };
    ag::AgHeader {
        index: n,
        blocks,
        free: blocks - own,
        version_floor: 0,
        bitmaps: bitmaps as u32,
        flags: if n == 0 { 0 } else { ag::AG_BITMAP_UNINIT },
        free_meta: blocks.min(ag::SEGMENT_BLOCKS) - own,
        reserved: [0; 2],
    }
}

fn header_block(o: &MkfsOptions, sb: &Superblock, n: u64) -> Block {
    let mut b = Block::zeroed();
    if let Some(h) = b.view_mut::<ag::AgHeader>(HEADER_BYTES) {
        *h = group_header(sb, n);
    }
    ag::set_segment(&mut b.0, 0, ag::SegmentType::Meta);
    seal(o, &mut b, Kind::AgHeader, sb.ag_region(n).0, n);
    b
}

fn write_header(disk: &dyn Disk, o: &MkfsOptions, sb: &Superblock, n: u64) -> Result<(), LunError> {
    let b = header_block(o, sb, n);
    disk.write_at(&b.0, sb.ag_region(n).0 * BLOCK_U64, Durability::Plain)
}

fn seal(o: &MkfsOptions, b: &mut Block, kind: Kind, block: BlockNo, owner: u64) {
    luna_format::seal(b, &Stamp { kind, volume: o.volume, block, owner, version: 1, writer: 0, epoch: 0 });
}

/// Header, bitmaps, root and orphan directories: the first blocks of group 0, one after the other.
fn first_group(o: &MkfsOptions, sb: &Superblock) -> Vec<Block> {
    let (start, blocks) = sb.ag_region(0);
    let bitmaps = ag::bitmaps_for(blocks);
    let used = 1 + bitmaps + 1 + u64::from(sb.slots);
    let mut out = vec![header_block(o, sb, 0)];
    for m in 0..bitmaps {
        let mut b = Block::zeroed();
        for bit in 0..ag::BITS_PER_BITMAP {
            let n = m * ag::BITS_PER_BITMAP + bit;
            if n < used || n >= blocks {
                b.0[HEADER_BYTES + (bit / 8) as usize] |= 1 << (bit % 8);
            }
        }
        seal(o, &mut b, Kind::AgBitmap, start + 1 + m, 0);
        out.push(b);
    }
    out.push(directory(o, sb.root_ino, 0o040_755));
    for s in 0..sb.slots {
        out.push(directory(o, sb.orphan_ino + u64::from(s), 0o040_700));
    }
    out
}

fn directory(o: &MkfsOptions, ino: Ino, mode: u32) -> Block {
    let mut b = Block::zeroed();
    if let Some(i) = b.view_mut::<Inode>(HEADER_BYTES) {
        (i.mode, i.nlink, i.generation, i.parent) = (mode, 2, 1, ino);
        (i.atime_ns, i.mtime_ns, i.ctime_ns, i.btime_ns) = (o.now_ns, o.now_ns, o.now_ns, o.now_ns);
        i.layout = Layout::DirInline as u8;
    }
    debug_assert!(b.0[BODY_AT..].iter().all(|x| *x == 0));
    seal(o, &mut b, Kind::Inode, ino, ino);
    b
}

/// Reads the superblock: the newest good copy of the first, the last and the middle one.
pub fn read_superblock(disk: &dyn Disk) -> Result<(VolumeId, Superblock), SuperError> {
    let lun_bytes = disk.geometry().size_bytes;
    let blocks = lun_bytes / BLOCK_U64;
    let mut best: Option<(VolumeId, u64, Superblock)> = None;
    let mut first_error = None;
    let mut looks_like_luna = false;
    let mut places = vec![0, blocks.saturating_sub(1)];
    let mut searched = false;
    let mut at = 0;
    while at < places.len() || (best.is_none() && !searched) {
        if at == places.len() {
            searched = true;
            places.extend(candidates(blocks).into_iter().skip(2));
            continue;
        }
        let block = places[at];
        at += 1;
        let mut b = Block::zeroed();
        disk.read_at(&mut b.0, block * BLOCK_U64)?;
        match superblock::read(&b, block) {
            Ok((id, version, sb)) if sb.copies().contains(&block) => {
                if !places.contains(&sb.copy_block) && sb.copy_block < blocks {
                    places.push(sb.copy_block);
                }
                if best.as_ref().is_none_or(|(best_id, v, _)| *best_id == id && version > *v) {
                    best = Some((id, version, sb));
                }
            }
            Ok(_) => {}
            Err(e @ CheckError::Future { .. }) => return Err(SuperError::Future { lun: disk.describe(), what: e }),
            Err(e) => {
                looks_like_luna |= b.header().magic == luna_format::MAGIC;
                first_error.get_or_insert(e);
            }
        }
    }
    finish(disk, lun_bytes, best, first_error, looks_like_luna)
}

fn finish(
    disk: &dyn Disk,
    lun_bytes: u64,
    best: Option<(VolumeId, u64, Superblock)>,
    first_error: Option<CheckError>,
    looks_like_luna: bool,
) -> Result<(VolumeId, Superblock), SuperError> {
    match (best, first_error) {
        (Some((.., sb)), _) if sb.total_blocks * BLOCK_U64 > lun_bytes => {
            Err(SuperError::Shrunk { lun: disk.describe(), volume: sb.total_blocks * BLOCK_U64, lun_bytes })
        }
        (Some((id, _, sb)), None) => Ok((id, sb)),
        (Some((id, _, sb)), Some(e)) => {
            // a LUN that grew has no copy in its last block; that alone is no damage
            if lun_bytes / BLOCK_U64 == sb.total_blocks {
                tracing::warn!(lun = disk.describe(), error = %e, "a superblock copy is damaged, another one is good; run luna fsck");
            }
            Ok((id, sb))
        }
        (None, Some(first)) if looks_like_luna => Err(SuperError::Damaged { lun: disk.describe(), first }),
        (None, _) => Err(SuperError::Foreign { lun: disk.describe(), what: signature(disk)?.unwrap_or("nothing") }),
    }
}

/// What is on the LUN now.
pub fn found(disk: &dyn Disk) -> Result<Found, LunError> {
    match read_superblock(disk) {
        Ok((id, sb)) => Ok(Found::Luna(Some((id, sb.label_text())))),
        Err(SuperError::Lun(e)) => Err(e),
        Err(SuperError::Foreign { .. }) => Ok(signature(disk)?.map_or(Found::Nothing, Found::Other)),
        Err(_) => Ok(Found::Luna(None)),
    }
}

/// Whose signature stands in the first 68 KiB; `None` when they are all zeroes.
fn signature(disk: &dyn Disk) -> Result<Option<&'static str>, LunError> {
    const LOOK: usize = 68 << 10;
    let known: [(usize, &[u8], &'static str); 10] = [
        (512, b"EFI PART", "a GPT partition table"),
        (0, b"XFSB", "an XFS file system"),
        (1080, &[0x53, 0xef], "an ext2/3/4 file system"),
        (0x1_0040, b"_BHRfS_M", "a btrfs file system"),
        (0, b"LUKS\xba\xbe", "an encrypted (LUKS) device"),
        (512, b"LABELONE", "an LVM physical volume"),
        (0x1_0000, &[0x01, 0x16, 0x19, 0x70], "a GFS2 file system"),
        (0x1000, b"\xfc\x4e\x2b\xa9", "a Linux software RAID"),
        (3, b"NTFS    ", "an NTFS file system"),
        (510, &[0x55, 0xaa], "a partition table or boot sector"),
    ];
    if disk.geometry().size_bytes < LOOK as u64 {
        return Ok(None);
    }
    let mut blocks = Block::zeroed_vec(LOOK / luna_format::BLOCK_BYTES);
    for (n, b) in blocks.iter_mut().enumerate() {
        disk.read_at(&mut b.0, n as u64 * BLOCK_U64)?;
    }
    let bytes: Vec<u8> = blocks.iter().flat_map(|b| b.0).collect();
    if let Some((.., name)) = known.iter().find(|(at, magic, _)| bytes[*at..].starts_with(magic)) {
        return Ok(Some(name));
    }
    Ok(bytes.iter().any(|b| *b != 0).then_some("unknown data"))
}

#[cfg(test)]
mod tests;
