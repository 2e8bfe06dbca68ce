//! Chooses the regions of a new volume from its size. Pure arithmetic.

use crate::{BLOCK_U64, ag, superblock::*};

/// The smallest LUN that can hold a volume.
pub const MIN_BYTES: u64 = 64 << 20;

/// Lays a volume of `bytes` out for `slots` hosts. The result passes [`Superblock::check`]; `None` when the LUN is too small.
/// Identity, label, secrets and times are left zero for the caller.
pub fn plan(bytes: u64, slots: u32) -> Option<Superblock> {
    let total = bytes / BLOCK_U64;
    if bytes < MIN_BYTES || slots == 0 || slots > u32::from(crate::MAX_SLOTS) {
        return None;
    }
    let n = u64::from(slots);
    let mut sb = Superblock::empty();
    sb.format_version = FORMAT_VERSION;
    sb.checksum_type = CHECKSUM_CRC32C;
    sb.block_bytes = BLOCK_U64 as u32;
    sb.slots = slots;
    sb.total_blocks = total;
    sb.beat_start = 8;
    sb.px_start = sb.beat_start + n;
    sb.log_start = sb.px_start + n;
    sb.log_blocks = 1024;
    sb.mail_start = sb.log_start + sb.log_blocks;
    sb.mail_blocks = 64;
    sb.journal_start = sb.mail_start + n * sb.mail_blocks;
    // an eighth of the volume for all journals, 1 to 64 MiB each
    sb.journal_blocks = (total / 8 / n).clamp(256, 16384);
    sb.copy_block = sb.journal_start + n * sb.journal_blocks;
    sb.ag_start = (sb.copy_block + 1).next_multiple_of(ag::SEGMENT_BLOCKS);
    let usable = (total - 1).checked_sub(sb.ag_start).filter(|u| *u >= 8 * ag::SEGMENT_BLOCKS)?;
    // 1 GiB groups; longer ones for volumes above 16 TiB; at least 4 groups on small volumes
    let want = (usable / 16384).clamp(1 << 18, ag::MAX_BLOCKS).min(usable / 4);
    sb.ag_blocks = want.next_multiple_of(ag::SEGMENT_BLOCKS).min(ag::MAX_BLOCKS);
    sb.ag_count = usable.div_ceil(sb.ag_blocks);
    // a last group too short to be worth it is left out
    if usable % sb.ag_blocks != 0 && usable % sb.ag_blocks < 4 * ag::SEGMENT_BLOCKS && sb.ag_count > 1 {
        sb.ag_count -= 1;
    }
    sb.segment_blocks = ag::SEGMENT_BLOCKS;
    sb.root_ino = sb.ag_start + 1 + ag::bitmaps_for(sb.ag_region(0).1);
    sb.orphan_ino = sb.root_ino + 1;
    sb.device_count = 1;
    sb.devices[0].len_blocks = total;
    sb.check(0).ok()?;
    Some(sb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gives_a_sound_plan() {
        for shift in 26..=53 {
            for slots in [1, 2, 16, 64] {
                for odd in [0, 4096, 1 << 20] {
                    let bytes = (1u64 << shift) + odd;
                    if let Some(sb) = plan(bytes, slots) {
                        assert!(sb.check(0).is_ok());
                        assert!(sb.ag_count <= 1 << 20, "{bytes} {slots}: {}", sb.ag_count);
                    } else {
                        assert!(bytes < 256 << 20, "{bytes} {slots} refused");
                    }
                }
            }
        }
    }
}
