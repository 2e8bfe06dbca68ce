//! Making a volume: every part is where the superblock says, any one copy of it is enough, and what is no volume says why.
//!
//! The write that fails is moved from the first to the last, so that no moment is left at which a half-made volume, or the
//! earlier one, could be mounted. Not here: looking for damage, which `check` does.

use super::*;
use luna_lun::memory::MemoryDisk;

fn options(slots: u32) -> MkfsOptions {
    MkfsOptions { label: "vol".into(), slots, volume: [9; 16], hash_key: [1; 16], link_secret: [2; 32], now_ns: 5 }
}

fn read_block(disk: &dyn Disk, block: u64) -> Block {
    let mut b = Block::zeroed();
    disk.read_at(&mut b.0, block * BLOCK_U64).unwrap();
    b
}

#[test]
fn every_size_is_made_and_read_back() {
    for (bytes, slots) in [(64 << 20, 4), ((64 << 20) + 4096, 1), (1 << 30, 16), (100 << 30, 64), (64 << 40, 16)] {
        let disk = MemoryDisk::new(bytes);
        let mut last = (0, 0);
        let begun = std::time::Instant::now();
        let made = run(&disk, &options(slots), &mut |done, of| {
            assert!(done > last.0 && done <= of, "{done} of {of}");
            last = (done, of);
        })
        .unwrap();
        println!("{bytes} bytes, {slots} slots: {} groups, {:?}, {} bytes written", made.sb.ag_count, begun.elapsed(), disk.used_bytes());
        assert_eq!(last.0, last.1);
        let (id, sb) = read_superblock(&disk).unwrap();
        assert_eq!((id, sb.label_text().as_str(), sb), ([9; 16], "vol", made.sb));
        assert!(made.free_bytes > made.total_bytes / 2);
        for ag in [0, sb.ag_count / 2, sb.ag_count - 1] {
            let start = sb.ag_region(ag).0;
            let expect = luna_format::Expect { kind: Kind::AgHeader, volume: id, block: start, owner: Some(ag) };
            luna_format::open(&read_block(&disk, start), &expect).unwrap();
        }
        for ino in [sb.root_ino, sb.orphan_dir(0), sb.orphan_dir(slots as u16 - 1)] {
            let b = read_block(&disk, ino);
            luna_format::open(&b, &luna_format::Expect { kind: Kind::Inode, volume: id, block: ino, owner: Some(ino) }).unwrap();
            assert_eq!(luna_format::inode::check(&b).unwrap().nlink, 2);
        }
        for s in 0..slots as u16 {
            assert!(luna_journal::inspect(&disk, id, sb.journal_region(s), s).is_ok());
        }
    }
}

#[test]
fn group_zero_counts_its_own_blocks() {
    let disk = MemoryDisk::new(1 << 30);
    let sb = run(&disk, &options(16), &mut |_, _| {}).unwrap().sb;
    let (start, blocks) = sb.ag_region(0);
    let used: u32 = (0..ag::bitmaps_for(blocks))
        .map(|m| read_block(&disk, start + 1 + m).0[HEADER_BYTES..].iter().map(|b| b.count_ones()).sum::<u32>())
        .sum();
    let beyond = ag::bitmaps_for(blocks) * ag::BITS_PER_BITMAP - blocks;
    assert_eq!(u64::from(used) - beyond, blocks - group_header(&sb, 0).free);
}

#[test]
fn any_one_copy_is_enough() {
    let disk = MemoryDisk::new(1 << 30);
    let sb = run(&disk, &options(7), &mut |_, _| {}).unwrap().sb;
    for keep in sb.copies() {
        let cut = disk.snapshot();
        for block in sb.copies().into_iter().filter(|b| *b != keep) {
            cut.write_at(&[0xa5; 4096], block * BLOCK_U64, Durability::Plain).unwrap();
        }
        assert_eq!(read_superblock(&cut).unwrap().1, sb, "only the copy at {keep}");
    }
}

#[test]
fn the_newest_copy_wins() {
    let disk = MemoryDisk::new(1 << 30);
    let mut sb = run(&disk, &options(4), &mut |_, _| {}).unwrap().sb;
    sb.log_checkpoint = 77;
    disk.write_at(&sb.seal([9; 16], sb.copy_block, 2).0, sb.copy_block * BLOCK_U64, Durability::Plain).unwrap();
    assert_eq!(read_superblock(&disk).unwrap().1.log_checkpoint, 77);
}

#[test]
fn what_cannot_be_mounted_says_why() {
    let disk = MemoryDisk::new(1 << 30);
    let text = |d: &MemoryDisk| read_superblock(d).map(|_| ()).unwrap_err().to_string();
    assert!(text(&disk).contains("found nothing"), "{}", text(&disk));
    assert_eq!(found(&disk).unwrap(), Found::Nothing);
    let mut gpt = Block::zeroed();
    gpt.0[512..520].copy_from_slice(b"EFI PART");
    disk.write_at(&gpt.0, 0, Durability::Plain).unwrap();
    assert!(text(&disk).contains("GPT"), "{}", text(&disk));
    assert_eq!(found(&disk).unwrap(), Found::Other("a GPT partition table"));
    let sb = run(&disk, &options(4), &mut |_, _| {}).unwrap().sb;
    assert_eq!(found(&disk).unwrap(), Found::Luna(Some(([9; 16], "vol".into()))));
    let future = Superblock { format_version: 9, ..sb };
    let newer = disk.snapshot();
    newer.write_at(&future.seal([9; 16], 0, 2).0, 0, Durability::Plain).unwrap();
    assert!(text(&newer).contains("newer"), "{}", text(&newer));
    let torn = disk.snapshot();
    for block in sb.copies() {
        let mut b = read_block(&torn, block);
        b.0[2000] ^= 1;
        torn.write_at(&b.0, block * BLOCK_U64, Durability::Plain).unwrap();
    }
    assert!(text(&torn).contains("fsck"), "{}", text(&torn));
    assert_eq!(found(&torn).unwrap(), Found::Luna(None));
    let small = MemoryDisk::new(512 << 20);
    small.write_at(&read_block(&disk, 0).0, 0, Durability::Plain).unwrap();
    assert!(text(&small).contains("size back"), "{}", text(&small));
}

#[test]
fn an_earlier_volume_is_gone_from_the_first_moment() {
    let disk = MemoryDisk::new(1 << 30);
    run(&disk, &options(64), &mut |_, _| {}).unwrap();
    for n in 0.. {
        let inner = std::sync::Arc::new(disk.snapshot());
        let failing = luna_lun::faulty::FaultyDisk::fail_after_writes(inner.clone(), n);
        let made = run(&failing, &MkfsOptions { volume: [8; 16], ..options(3) }, &mut |_, _| {});
        match read_superblock(&*inner) {
            Ok((id, _)) if made.is_ok() => {
                assert_eq!(id, [8; 16]);
                assert!(n > 10, "{n} writes cannot be enough");
                return;
            }
            // nothing but old superblock copies was touched yet
            Ok(([9, ..], _)) => assert!(n < 6, "the old volume after {n} writes"),
            // all but a copy was written
            Ok((_, sb)) => assert!(sb.slots == 3 && n > 10),
            Err(_) => assert!(made.is_err() && n > 2),
        }
    }
}

#[test]
fn options_are_checked() {
    let disk = MemoryDisk::new(1 << 30);
    let fail = |o: &MkfsOptions| run(&disk, o, &mut |_, _| {}).map(|_| ()).unwrap_err().to_string();
    assert!(fail(&options(0)).contains("1 to 64"));
    assert!(fail(&options(65)).contains("1 to 64"));
    assert!(fail(&MkfsOptions { label: "x".repeat(65), ..options(4) }).contains("64"));
    assert!(run(&MemoryDisk::new(1 << 20), &options(4), &mut |_, _| {}).unwrap_err().to_string().contains("too few"));
    assert_eq!(disk.used_bytes(), 0);
}
