//! One block, every kind: the doors of `format`, without a volume around them.
//!
//! An input is the bytes of a block from the header on; the header's identity is put right and the checksum sealed, so that every byte is
//! believed. Invariant: no reader of a kind panics on any bytes, and what it accepts it can walk. Not here: trees, the volume (`image`).

use crate::damage::reseal;
use crate::scene::{Area, SLOTS, Scene, VOLUME};
use luna_format::inode::{self, BODY_AT, Layout};
use luna_format::tree::{self, ENTRIES_AT};
use luna_format::{BLOCK_BYTES, Block, CheckError, Expect, HEADER_BYTES, Kind, cluster, dir, geometry, open, peek, superblock, xattr};

/// Where the block lies.
const AT: u64 = 77;

/// All kinds, one after the other, and the arithmetic of mkfs.
pub fn block(input: &[u8]) {
    let mut b = Block::zeroed();
    let n = input.len().min(BLOCK_BYTES);
    b.0[..n].copy_from_slice(&input[..n]);
    b.0[4..8].copy_from_slice(&luna_format::MAGIC.to_le_bytes());
    b.0[16..32].copy_from_slice(&VOLUME);
    b.0[32..40].copy_from_slice(&AT.to_le_bytes());
    reseal(&mut b);
    let Ok(h) = peek(&b, &VOLUME, AT) else {
        assert!(b.header().version > luna_format::COUNT_MAX, "sealed, and does not open");
        return;
    };
    for kind in 0..20 {
        b.0[8..10].copy_from_slice(&u16::to_le_bytes(kind));
        b.0[10..12].copy_from_slice(&1u16.to_le_bytes());
        reseal(&mut b);
        if let Some(kind) = Kind::from_u16(kind) {
            assert!(open(&b, &Expect { kind, volume: VOLUME, block: AT, owner: Some(h.owner) }).is_ok());
            one(&b, kind, h.owner);
        }
    }
    let word = |at: usize| b.view::<u64>(at).copied().unwrap_or(0);
    if let Some(sb) = geometry::plan(word(64), word(72) as u32) {
        assert!(sb.check(0).is_ok());
    }
}

fn one(b: &Block, kind: Kind, owner: u64) {
    match kind {
        Kind::Superblock => sb(b),
        Kind::Inode => drop(inode_of(b)),
        Kind::ExtentNode | Kind::DirNode | Kind::DirLeaf => nodes(b, kind),
        Kind::Xattr => {
            let used = b.view::<u64>(xattr::USED_AT).copied().unwrap_or(0).min(xattr::RECORDS_BYTES as u64);
            if let Ok(list) = xattr::entries(AT, &b.0[xattr::RECORDS_AT..xattr::RECORDS_AT + used as usize]) {
                assert!(list.iter().map(|(n, v)| xattr::record_bytes(n.len(), v.len())).sum::<usize>() == used as usize);
            }
        }
        Kind::Beat | Kind::Paxos | Kind::Record | Kind::Mail => slots(b, owner),
        Kind::RepairBeat => drop(cluster::read_repair_beat(b, VOLUME, AT)),
        _ => {}
    }
}

fn sb(b: &Block) {
    let Ok((_, _, sb)) = superblock::read(b, AT) else { return };
    let (first, blocks) = sb.ag_region(sb.ag_count - 1);
    assert!(first + blocks < sb.total_blocks && sb.copies().into_iter().all(|c| c < sb.total_blocks));
    let _ = sb.label_text();
    for s in 0..sb.slots as u16 {
        let (start, len) = sb.journal_region(s);
        assert!(start + len <= sb.copy_block && sb.ag_of(sb.orphan_dir(s)).is_some());
    }
    assert!(sb.log_blocks > 0 && sb.mail_blocks > 0);
}

fn inode_of(b: &Block) -> Result<(), CheckError> {
    let i = inode::check(b)?;
    match Layout::from_u8(i.layout) {
        Some(Layout::DirInline) => dir::entries(AT, &b.0[BODY_AT..BODY_AT + i.inline_len as usize]).for_each(drop),
        Some(Layout::Inline) => assert!(BODY_AT + i.inline_len as usize <= BLOCK_BYTES),
        _ => {}
    }
    Ok(())
}

fn nodes(b: &Block, kind: Kind) {
    for level in 0..8 {
        let Ok(h) = tree::check(b, level) else { continue };
        if level == 0 && kind == Kind::DirLeaf {
            let used = &b.0[ENTRIES_AT..ENTRIES_AT + h.used as usize];
            let mut sum = 0;
            for e in dir::entries(AT, used) {
                let Ok(e) = e else { return };
                assert!(dir::name_ok(e.name));
                sum += dir::record_bytes(e.name.len());
            }
            assert_eq!(sum, used.len());
        }
    }
}

fn slots(b: &Block, owner: u64) {
    let slot = owner as u16;
    if let Ok(Some(beat)) = cluster::read_beat(b, VOLUME, AT, slot) {
        let _ = (cluster::untext(&beat.name), beat.addresses.map(|a| cluster::untext(&a)));
    }
    let _ = cluster::read_paxos(b, VOLUME, AT, slot);
    for (start, blocks) in [(AT, 1), (AT - 5, 64), (AT - 76, 1024)] {
        let _ = cluster::read_record(b, VOLUME, start, blocks, AT - start);
    }
    if let Ok(Some((head, frames))) = cluster::read_mail(b, VOLUME, AT, slot) {
        assert!(frames.iter().map(|f| f.bytes.len()).sum::<usize>() <= head.used as usize);
    }
    assert_ne!(HEADER_BYTES, usize::from(SLOTS));
}

/// The image's own blocks, one of each shape.
pub fn seeds() -> Vec<Vec<u8>> {
    let scene = Scene::get();
    let mut seen = std::collections::BTreeSet::new();
    let pick = |at: &&u64| {
        let h = scene.base.get(*at).map(Block::header);
        h.is_some_and(|h| seen.insert((h.kind, h.owner.min(3))))
    };
    let places: Vec<u64> = scene.blocks(Area::All).iter().filter(pick).copied().collect();
    places.iter().filter_map(|at| scene.base.get(at)).map(|b| b.0.to_vec()).collect()
}
