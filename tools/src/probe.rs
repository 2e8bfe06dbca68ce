//! What else may live on a LUN: recognises foreign file systems, volume managers, partition tables and disk images.
//!
//! mkfs asks before it destroys; this is what it asks with. The knowledge is a table of names, offsets and bytes, plus the
//! few formats a fixed byte string cannot tell (partition tables, uberblocks).
//!
//! Invariant: only the given bytes are looked at, all offsets are checked. Not here: Luna's own superblock (mkfs reads it
//! through the format crate) and any promise to know everything: `--force` is not a substitute for looking.

/// How much of the LUN's start [`probe`] wants to see.
pub const HEAD_BYTES: usize = (1 << 20) + 8192;

/// Name, offset, bytes.
const SIGNATURES: &[(&str, usize, &[u8])] = &[
    ("an ext2/3/4 file system", 0x438, &[0x53, 0xef]),
    ("an XFS file system", 0, b"XFSB"),
    ("a Btrfs file system", 0x10040, b"_BHRfS_M"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a FAT file system", 0x36, b"FAT12   "),
    ("a FAT file system", 0x36, b"FAT16   "),
    ("a FAT file system", 0x52, b"FAT32   "),
    ("a ReFS file system", 3, b"ReFS\0\0\0\0"),
    ("an LVM2 physical volume", 0x18, b"LVM2 001"),
    ("an LVM2 physical volume", 0x218, b"LVM2 001"),
    ("an LVM2 physical volume", 0x418, b"LVM2 001"),
    ("an LVM2 physical volume", 0x618, b"LVM2 001"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("swap space", 4086, b"SWAP-SPACE"),
    ("a suspended system's image", 4086, b"S1SUSPEND"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("a qcow2 image", 0, b"QFI\xfb"),
    ("a VMDK image", 0, b"KDMV"),
    ("a VHD image", 0, b"conectix"),
    ("a VHDX image", 0, b"vhdxfile"),
    ("a VDI image", 0x40, &[0x7f, 0x10, 0xda, 0xbe]),
    ("a LUKS container", 0, b"LUKS\xba\xbe"),
    ("an OCFS2 file system", 1024, b"OCFSV2"),
    ("an OCFS2 file system", 2048, b"OCFSV2"),
    ("an OCFS2 file system", 4096, b"OCFSV2"),
    ("an OCFS2 file system", 8192, b"OCFSV2"),
    ("a GFS2 file system", 0x10000, &[0x01, 0x16, 0x19, 0x70]),
    ("a VMFS volume", 0x100000, &[0x0d, 0xd0, 0x01, 0xc0]),
    ("a Linux RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a Linux RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a bcache device", 4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]),
    ("a Ceph OSD", 0, b"bluestore block device"),
    ("an F2FS file system", 0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    ("an EROFS file system", 0x400, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("a JFS file system", 0x8000, b"JFS1"),
    ("an ISO 9660 image", 0x8001, b"CD001"),
    ("a SquashFS image", 0, b"hsqs"),
    ("a Sanlock lease space", 0, &[0x12, 0x21, 0x20, 0x10]),
];

/// What `head`, the first bytes of a LUN, looks like; `None` when nothing is recognised.
pub fn probe(head: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, want: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(want));
    if let Some((name, ..)) = SIGNATURES.iter().find(|(_, offset, want)| at(*offset, want)) {
        return Some(name);
    }
    if is_zfs(head) {
        return Some("a ZFS pool member");
    }
    // last: boot sectors of file systems carry the same two bytes
    if at(510, &[0x55, 0xaa]) && (0..4).any(|n| head[446 + 16 * n + 4] != 0) {
        return Some("an MBR partition table");
    }
    None
}

/// A ZFS label keeps a ring of uberblocks in its second half; any of them tells.
fn is_zfs(head: &[u8]) -> bool {
    let magic = 0x00ba_b10c_u64;
    (0x20000..0x40000)
        .step_by(1024)
        .any(|offset| head.get(offset..offset + 8).is_some_and(|b| b == magic.to_le_bytes() || b == magic.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_reached_and_nothing_else() {
        assert_eq!(probe(&[]), None);
        assert_eq!(probe(&vec![0; HEAD_BYTES]), None);
        assert_eq!(probe(&vec![0x55; 100_000]), None);
        for (name, offset, want) in SIGNATURES {
            assert!(offset + want.len() <= HEAD_BYTES, "{name} lies beyond what is read");
            let mut head = vec![0; HEAD_BYTES];
            head[*offset..offset + want.len()].copy_from_slice(want);
            assert_eq!(probe(&head), Some(*name));
            assert_eq!(probe(&head[..*offset]), None, "{name}: cut short");
        }
    }

    #[test]
    fn partition_tables_and_pools() {
        let mut head = vec![0; HEAD_BYTES];
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(probe(&head), None, "an empty table is no reason to refuse");
        head[446 + 16 + 4] = 0x83;
        assert_eq!(probe(&head), Some("an MBR partition table"));
        let mut head = vec![0; HEAD_BYTES];
        head[0x20000 + 5 * 1024..][..8].copy_from_slice(&0x00ba_b10c_u64.to_be_bytes());
        assert_eq!(probe(&head), Some("a ZFS pool member"));
    }
}
