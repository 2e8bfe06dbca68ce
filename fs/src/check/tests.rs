//! A volume with everything on it is clean; each field damaged by itself gives the code that is meant for it, and no other.

use super::*;
use crate::op::{Cred, create, link, mkdir, symlink, unlink};
use crate::testkit::{Kit, VOLUME, kit_of};
use crate::{extent, inode, xattr};
use luna_format::ag::{self, AgHeader, BITS_PER_BITMAP};
use luna_format::cluster::{self, Record};
use luna_format::dir::DirentHead;
use luna_format::inode::{BODY_AT, Extent, Inode, Layout};
use luna_format::tree::{ENTRIES_AT, Entry, NodeHeader};
use luna_format::{BLOCK_U64, HEADER_BYTES, Ino, Stamp, seal};
use luna_lun::Durability;
use luna_lun::faulty;
use luna_lun::memory::MemoryDisk;
use std::collections::BTreeSet;

/// Numbers of what [`build`] makes.
#[derive(Clone, Copy)]
struct World {
    root: Ino,
    small_dir: Ino,
    big_dir: Ino,
    file: Ino,
    sparse: Ino,
    linked: Ino,
    link: Ino,
    orphan: Ino,
}

fn cred() -> Cred {
    Cred { umask: 0o022, ..Cred::default() }
}

/// Fills `[at, at + len)` of a file, and makes it written.
fn fill(kit: &Kit, ino: Ino, at: u64, len: u64) {
    let mut pos = at;
    while pos < at + len {
        pos = kit.vol.run(|tx| extent::allocate(tx, ino, pos, at + len - pos, len)).unwrap();
    }
    kit.vol.run(|tx| extent::convert(tx, ino, at, len)).unwrap();
    kit.vol.run(|tx| inode::update(tx, ino, |i| i.size = i.size.max((at + len) * BLOCK_U64))).unwrap();
}

fn build(kit: &Kit) -> World {
    let (v, root) = (&kit.vol, kit.sb().root_ino);
    let file_in = |dir: Ino, name: &str| v.run(|tx| create(tx, dir, name.as_bytes(), 0o644, 0, &cred())).unwrap().ino;
    let dir_in = |dir: Ino, name: &str| v.run(|tx| mkdir(tx, dir, name.as_bytes(), 0o755, &cred())).unwrap().ino;
    let small_dir = dir_in(root, "small");
    dir_in(small_dir, "below");
    let big_dir = dir_in(root, "big");
    for n in 0..5000 {
        file_in(big_dir, &format!("entry number {n}"));
    }
    let file = file_in(root, "file");
    fill(kit, file, 0, 300);
    v.run(|tx| xattr::set(tx, file, b"user.one", b"value", 0)).unwrap();
    v.run(|tx| xattr::set(tx, file, b"user.two", b"other", 0)).unwrap();
    let sparse = file_in(small_dir, "sparse");
    for n in 0..600 {
        fill(kit, sparse, n * 3, 1);
    }
    v.run(|tx| extent::allocate(tx, sparse, 10_000, 50, 50)).unwrap();
    let linked = file_in(small_dir, "linked");
    v.run(|tx| link(tx, linked, root, b"second name")).unwrap();
    let link = v.run(|tx| symlink(tx, root, b"link", b"small/sparse", &cred())).unwrap().ino;
    file_in(small_dir, "fifo");
    let orphan = file_in(root, "gone");
    fill(kit, orphan, 0, 20);
    v.run(|tx| unlink(tx, root, b"gone")).unwrap();
    let dir = dir_in(root, "gone too");
    v.run(|tx| crate::op::rmdir(tx, root, b"gone too")).unwrap();
    let _ = dir;
    World { root, small_dir, big_dir, file, sparse, linked, link, orphan }
}

/// A volume at home on its disk, with a clean journal.
fn world() -> (Kit, World) {
    let kit = kit_of(256 << 20, 2);
    let w = build(&kit);
    let kit = kit.remount();
    kit.vol.checkpoint().unwrap();
    kit.vol.journal.close().unwrap();
    (kit, w)
}

fn check(disk: &MemoryDisk) -> (Summary, Vec<Finding>) {
    let mut all = Vec::new();
    let summary = run(disk, &CheckOptions::default(), &mut |f| all.push(f)).expect("runs");
    (summary, all)
}

/// Codes of errors and minor findings.
fn codes(findings: &[Finding]) -> BTreeSet<Code> {
    findings.iter().filter(|f| f.severity > Severity::Note).map(|f| f.code).collect()
}

fn read(disk: &MemoryDisk, block: BlockNo) -> Block {
    let mut b = Block::zeroed();
    disk.read_at(&mut b.0, block * BLOCK_U64).unwrap();
    b
}

fn write(disk: &MemoryDisk, block: BlockNo, b: &Block) {
    disk.write_at(&b.0, block * BLOCK_U64, Durability::Plain).unwrap();
}

/// Changes a block and seals it again.
fn edit(disk: &MemoryDisk, block: BlockNo, change: impl FnOnce(&mut Block)) {
    let mut b = read(disk, block);
    let h = b.header();
    change(&mut b);
    let kind = Kind::from_u16(h.kind).expect("a metadata block");
    seal(&mut b, &Stamp { kind, volume: VOLUME, block, owner: h.owner, version: h.version, writer: h.writer, epoch: h.epoch });
    write(disk, block, &b);
}

fn edit_inode(disk: &MemoryDisk, ino: Ino, change: impl FnOnce(&mut Inode)) {
    edit(disk, ino, |b| change(b.view_mut::<Inode>(HEADER_BYTES).unwrap()));
}

fn inode_of(disk: &MemoryDisk, ino: Ino) -> Inode {
    *read(disk, ino).view::<Inode>(HEADER_BYTES).unwrap()
}

fn edit_group(disk: &MemoryDisk, block: BlockNo, change: impl FnOnce(&mut AgHeader)) {
    edit(disk, block, |b| change(b.view_mut::<AgHeader>(HEADER_BYTES).unwrap()));
}

/// A record in which slot 0 is free, and as old as its journal.
fn record(index: u64) -> Record {
    let mut r = Record { index, ..Record::genesis() };
    r.slots[0].incarnation = 9;
    r
}

/// Byte and bit of a block in its group's bitmap, with the bitmap's address.
fn bit_of(kit: &Kit, block: BlockNo) -> (BlockNo, usize, u8) {
    let (start, _) = kit.sb().ag_region(kit.sb().ag_of(block).unwrap());
    let rel = block - start;
    let bit = rel % BITS_PER_BITMAP;
    (start + 1 + rel / BITS_PER_BITMAP, HEADER_BYTES + (bit / 8) as usize, 1 << (bit % 8))
}

fn child(disk: &MemoryDisk, ino: Ino, n: usize) -> BlockNo {
    read(disk, ino).view::<Entry>(BODY_AT + n * 16).unwrap().child
}

fn extent_of(disk: &MemoryDisk, ino: Ino, n: usize) -> Extent {
    *read(disk, ino).view::<Extent>(BODY_AT + n * 24).unwrap()
}

/// Start of the first record in a directory's body.
fn edit_head(disk: &MemoryDisk, dir: Ino, wanted: Ino, change: impl FnOnce(&mut DirentHead)) {
    edit(disk, dir, |b| {
        let used = b.view::<Inode>(HEADER_BYTES).unwrap().inline_len as usize;
        let bytes = b.0[BODY_AT..BODY_AT + used].to_vec();
        let at = luna_format::dir::entries(dir, &bytes).map(|e| e.unwrap()).find(|e| e.head.ino == wanted).unwrap().at;
        change(b.view_mut::<DirentHead>(BODY_AT + at).unwrap());
    });
}

#[test]
fn everything_is_clean() {
    let (kit, w) = world();
    let (s, found) = check(&kit.disk);
    assert_eq!(found, [], "nothing at all");
    assert!(s.is_clean());
    assert_eq!(s.orphans, 2);
    assert_eq!(s.inodes, 1 + 2 + 3 + 5000 + 6 + 1, "root, lists, directories, entries, files, orphaned directory");
    assert_eq!(inode_of(&kit.disk, w.sparse).layout, Layout::ExtentTree as u8);
    assert_eq!(inode_of(&kit.disk, w.big_dir).layout, Layout::DirTree as u8);
}

#[test]
fn a_fresh_volume_is_clean() {
    for (bytes, slots) in [(64 << 20, 1), (1 << 30, 64), (40 << 30, 16)] {
        let kit = kit_of(bytes, slots);
        kit.vol.journal.close().unwrap();
        let (s, found) = check(&kit.disk);
        assert_eq!(found, [], "{bytes}");
        assert_eq!(s.inodes, 1 + u64::from(slots));
    }
}

#[test]
fn a_crashed_volume_is_judged_as_after_replay() {
    let kit = kit_of(256 << 20, 2);
    build(&kit);
    kit.vol.sync_all().unwrap();
    let disk = kit.disk.snapshot();
    let (s, found) = check(&disk);
    assert_eq!(codes(&found), BTreeSet::new(), "{found:#?}");
    assert!(found.iter().all(|f| f.code == Code::J05) && !found.is_empty());
    assert_eq!(s.orphans, 2);
    let options = CheckOptions { overlay_journals: false, ..CheckOptions::default() };
    let raw = run(&disk, &options, &mut |_| ()).unwrap();
    assert!(raw.inodes < s.inodes, "without the journal most of it is not there: {} of {}", raw.inodes, s.inodes);
}

#[test]
fn checkpoints_and_crashes_in_between_are_clean() {
    let mut kit = kit_of(256 << 20, 2);
    for round in 0..4 {
        let top = kit.sb().root_ino;
        let dir = kit.vol.run(|tx| mkdir(tx, top, format!("round {round}").as_bytes(), 0o755, &cred())).unwrap().ino;
        for n in 0..200 {
            let ino = kit.vol.run(|tx| create(tx, dir, format!("{n}").as_bytes(), 0o644, 0, &cred())).unwrap().ino;
            fill(&kit, ino, n, 5);
            if n % 3 == 0 {
                kit.vol.run(|tx| unlink(tx, dir, format!("{n}").as_bytes())).unwrap();
                crate::orphan::reap(&kit.vol, ino).unwrap();
            }
            if n % 70 == 0 {
                kit.vol.checkpoint().unwrap();
            }
        }
        kit.vol.sync_all().unwrap();
        let (_, found) = check(&kit.disk.snapshot());
        assert_eq!(codes(&found), BTreeSet::new(), "{found:#?}");
        kit = kit.crash();
    }
}

/// One damage and what must be found.
struct Case {
    name: &'static str,
    wreck: fn(&Kit, &World),
    expected: &'static [Code],
}

fn case(name: &'static str, expected: &'static [Code], wreck: fn(&Kit, &World)) -> Case {
    Case { name, wreck, expected }
}

/// Each case damages a fresh copy of the same volume.
fn try_all(cases: &[Case]) {
    let (kit, w) = world();
    let before = kit.disk.clone();
    let mut wrong = Vec::new();
    for case in cases {
        let disk = std::sync::Arc::new(before.snapshot());
        let kit = Kit { disk: disk.clone(), vol: kit.vol.clone(), incarnation: kit.incarnation };
        (case.wreck)(&kit, &w);
        let (s, found) = check(&disk);
        let expected: BTreeSet<Code> = case.expected.iter().copied().collect();
        if codes(&found) != expected || s.is_clean() != expected.is_empty() {
            let lines: Vec<String> = found.iter().take(12).map(ToString::to_string).collect();
            wrong.push(format!("{}: expected {expected:?}, found {:?}\n  {}", case.name, codes(&found), lines.join("\n  ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn damaged_inodes_are_named() {
    use Code::*;
    try_all(&[
        case("torn", &[B01], |k, w| {
            let mut b = read(&k.disk, w.file);
            b.0[3000] ^= 1;
            write(&k.disk, w.file, &b);
        }),
        case("wiped", &[B02], |k, w| write(&k.disk, w.file, &Block::zeroed())),
        case("another kind", &[B03], |k, w| {
            let (h, mut b) = (read(&k.disk, w.file).header(), read(&k.disk, w.file));
            let stamp = Stamp { kind: Kind::Xattr, volume: VOLUME, block: w.file, owner: w.file, version: h.version, writer: 0, epoch: 0 };
            seal(&mut b, &stamp);
            write(&k.disk, w.file, &b);
        }),
        case("misdirected", &[B05], |k, w| write(&k.disk, w.file, &read(&k.disk, w.linked))),
        case("another volume", &[B04], |k, w| {
            let mut b = read(&k.disk, w.file);
            let h = b.header();
            let (kind, volume, version) = (Kind::Inode, [1; 16], h.version);
            seal(&mut b, &Stamp { kind, volume, block: w.file, owner: w.file, version, writer: 0, epoch: 0 });
            write(&k.disk, w.file, &b);
        }),
        case("layout", &[I01], |k, w| edit_inode(&k.disk, w.file, |i| i.layout = 77)),
        case("mode", &[I02, D09], |k, w| edit_inode(&k.disk, w.file, |i| i.mode = 0o170_644)),
        case("flags", &[I03], |k, w| edit_inode(&k.disk, w.file, |i| i.flags = 0x80)),
        case("size of a link", &[I04], |k, w| edit_inode(&k.disk, w.link, |i| i.size += 1)),
        case("size of a directory", &[I04], |k, w| edit_inode(&k.disk, w.small_dir, |i| i.size += 8)),
        case("blocks", &[I05], |k, w| edit_inode(&k.disk, w.file, |i| i.blocks += 1)),
        case("blocks of a tree", &[I05], |k, w| edit_inode(&k.disk, w.sparse, |i| i.blocks -= 1)),
        case("freed", &[I06, U03, U04], |k, w| edit_inode(&k.disk, w.file, |i| i.mode = 0)),
        case("xattr bytes", &[I07], |k, w| {
            let block = inode_of(&k.disk, w.file).xattr_block;
            edit(&k.disk, block, |b| b.0[luna_format::xattr::USED_AT] = 3);
        }),
        case("xattr twice", &[I08], |k, w| {
            let block = inode_of(&k.disk, w.file).xattr_block;
            edit(&k.disk, block, |b| {
                let at = b.0.windows(8).position(|w| w == b"user.two").unwrap();
                b.0[at..at + 8].copy_from_slice(b"user.one");
            });
        }),
        case("xattr of another inode", &[B06], |k, w| {
            let (block, mut b) = (inode_of(&k.disk, w.file).xattr_block, Block::zeroed());
            let stamp = Stamp { kind: Kind::Xattr, volume: VOLUME, block, owner: w.linked, version: 1, writer: 0, epoch: 0 };
            seal(&mut b, &stamp);
            write(&k.disk, block, &b);
        }),
        case("links", &[L02], |k, w| edit_inode(&k.disk, w.linked, |i| i.nlink = 3)),
        case("too few links", &[L02], |k, w| edit_inode(&k.disk, w.linked, |i| i.nlink = 1)),
        case("links of a file with one name", &[L02], |k, w| edit_inode(&k.disk, w.file, |i| i.nlink = 2)),
        case("links of a directory", &[L01], |k, w| edit_inode(&k.disk, w.root, |i| i.nlink += 1)),
        case("no links", &[P01], |k, w| edit_inode(&k.disk, w.file, |i| i.nlink = 0)),
    ]);
}

#[test]
fn damaged_extents_are_named() {
    use Code::*;
    try_all(&[
        case("overlap", &[E01], |k, w| {
            let leaf = child(&k.disk, w.sparse, 0);
            edit(&k.disk, leaf, |b| b.view_mut::<Extent>(ENTRIES_AT + 24).unwrap().logical = 0);
        }),
        case("out of the volume", &[E02], |k, w| {
            edit(&k.disk, w.file, |b| b.view_mut::<Extent>(BODY_AT).unwrap().physical = 1 << 50);
        }),
        case("no length", &[E03, U03], |k, w| edit(&k.disk, w.file, |b| b.view_mut::<Extent>(BODY_AT).unwrap().len = 0)),
        case("flags", &[E04], |k, w| edit(&k.disk, w.file, |b| b.view_mut::<Extent>(BODY_AT).unwrap().flags = 8)),
        case("outside of the leaf", &[E05], |k, w| {
            let leaf = child(&k.disk, w.sparse, 0);
            edit(&k.disk, leaf, |b| {
                let n = b.view::<NodeHeader>(HEADER_BYTES).unwrap().count as usize;
                b.view_mut::<Extent>(ENTRIES_AT + (n - 1) * 24).unwrap().logical = 1 << 30;
            });
        }),
        case("level", &[E06], |k, w| {
            let leaf = child(&k.disk, w.sparse, 0);
            edit(&k.disk, leaf, |b| b.view_mut::<NodeHeader>(HEADER_BYTES).unwrap().level = 3);
        }),
        case("count", &[E06], |k, w| {
            let leaf = child(&k.disk, w.sparse, 0);
            edit(&k.disk, leaf, |b| b.view_mut::<NodeHeader>(HEADER_BYTES).unwrap().count = 9000);
        }),
        case("child out of the volume", &[E06], |k, w| {
            edit(&k.disk, w.sparse, |b| b.view_mut::<Entry>(BODY_AT).unwrap().child = u64::MAX);
        }),
        case("torn leaf", &[B01], |k, w| {
            let leaf = child(&k.disk, w.sparse, 1);
            let mut b = read(&k.disk, leaf);
            b.0[512..1024].fill(0xee);
            write(&k.disk, leaf, &b);
        }),
        case("keys", &[E05, E07], |k, w| edit(&k.disk, w.sparse, |b| b.view_mut::<Entry>(BODY_AT + 32).unwrap().key = 1)),
        case("owned twice", &[U01, U03], |k, w| {
            let other = extent_of(&k.disk, w.file, 0).physical;
            edit(&k.disk, w.orphan, |b| b.view_mut::<Extent>(BODY_AT).unwrap().physical = other);
        }),
        case("data in metadata", &[U01, U03, U06], |k, w| {
            let other = w.linked;
            edit(&k.disk, w.orphan, |b| b.view_mut::<Extent>(BODY_AT).unwrap().physical = other);
        }),
    ]);
}

#[test]
fn damaged_directories_are_named() {
    use Code::*;
    try_all(&[
        case("hash", &[D02], |k, w| edit_head(&k.disk, w.root, w.file, |h| h.hash ^= 1)),
        case("nowhere", &[D07, U07], |k, w| edit_head(&k.disk, w.root, w.file, |h| h.ino = 3)),
        case("generation", &[D08], |k, w| edit_head(&k.disk, w.root, w.file, |h| h.generation += 1)),
        case("type", &[D09], |k, w| edit_head(&k.disk, w.root, w.file, |h| h.kind = 0o4)),
        case("parent", &[D10], |k, w| edit_inode(&k.disk, w.big_dir, |i| i.parent = w.small_dir)),
        case("entries", &[D11], |k, w| edit_inode(&k.disk, w.small_dir, |i| i.entries += 1)),
        case("entries in the body", &[D11], |k, w| edit_inode(&k.disk, w.small_dir, |i| i.count += 1)),
        case("a loop", &[D10, D12, L01, U07, I05], |k, w| {
            // "below" leads back to the directory it lies in
            let below = luna_format::dir::entries(
                0,
                &read(&k.disk, w.small_dir).0[BODY_AT..][..inode_of(&k.disk, w.small_dir).inline_len as usize],
            )
            .map(|e| e.unwrap())
            .find(|e| e.name == b"below")
            .unwrap()
            .head
            .ino;
            edit_head(&k.disk, w.small_dir, below, |h| h.ino = w.small_dir);
            edit_inode(&k.disk, w.small_dir, |i| (i.nlink, i.blocks) = (9, 9));
        }),
        case("record", &[D01], |k, w| edit_head(&k.disk, w.root, w.file, |h| h.len = 7)),
        case("leaf level", &[D05], |k, w| {
            let leaf = child(&k.disk, w.big_dir, 0);
            edit(&k.disk, leaf, |b| b.view_mut::<NodeHeader>(HEADER_BYTES).unwrap().level = 1);
        }),
        case("leaf count", &[D11], |k, w| {
            let leaf = child(&k.disk, w.big_dir, 0);
            edit(&k.disk, leaf, |b| b.view_mut::<NodeHeader>(HEADER_BYTES).unwrap().count -= 1);
        }),
        case("torn leaf", &[B01], |k, w| {
            let leaf = child(&k.disk, w.big_dir, 2);
            let mut b = read(&k.disk, leaf);
            b.0[2048..].fill(0);
            write(&k.disk, leaf, &b);
        }),
        case("key", &[D04], |k, w| {
            edit(&k.disk, w.big_dir, |b| b.view_mut::<Entry>(BODY_AT + 16).unwrap().key += 1 << 40);
        }),
        case("keys", &[D04, D06], |k, w| edit(&k.disk, w.big_dir, |b| b.view_mut::<Entry>(BODY_AT + 32).unwrap().key = 1)),
        case("order", &[D03], |k, w| {
            let leaf = child(&k.disk, w.big_dir, 0);
            edit(&k.disk, leaf, |b| {
                let used = b.view::<NodeHeader>(HEADER_BYTES).unwrap().used as usize;
                let bytes = b.0[ENTRIES_AT..ENTRIES_AT + used].to_vec();
                let first = luna_format::dir::entries(leaf, &bytes).next().unwrap().unwrap().head.len as usize;
                b.0[ENTRIES_AT..ENTRIES_AT + used].rotate_left(first);
            });
        }),
        case("orphan flag", &[P02], |k, w| edit_inode(&k.disk, w.orphan, |i| i.flags = 0)),
        case("orphan slot", &[P03], |k, w| edit_inode(&k.disk, w.orphan, |i| i.orphan_slot = 1)),
        case("orphan with links", &[P04], |k, w| edit_inode(&k.disk, w.orphan, |i| i.nlink = 1)),
        case("orphaned directory with entries", &[D11, P07], |k, _| {
            let list = read(&k.disk, k.sb().orphan_dir(0));
            let used = inode_of(&k.disk, k.sb().orphan_dir(0)).inline_len as usize;
            let all = luna_format::dir::entries(0, &list.0[BODY_AT..BODY_AT + used]).map(|e| e.unwrap().head);
            let dir = all.into_iter().find(|h| h.kind == 0o4).unwrap().ino;
            edit_inode(&k.disk, dir, |i| i.entries = 1);
        }),
        case("orphan not listed", &[U07], |k, w| {
            let list = k.sb().orphan_dir(0);
            let bytes = read(&k.disk, list).0[BODY_AT..].to_vec();
            let used = inode_of(&k.disk, list).inline_len as usize;
            let e = luna_format::dir::entries(list, &bytes[..used]).map(|e| e.unwrap()).find(|e| e.head.ino == w.orphan).unwrap();
            let (at, len) = (e.at, e.head.len as usize);
            edit(&k.disk, list, |b| {
                b.0.copy_within(BODY_AT + at + len..BODY_AT + used, BODY_AT + at);
                b.0[BODY_AT + used - len..BODY_AT + used].fill(0);
            });
            edit_inode(&k.disk, list, |i| {
                (i.inline_len, i.size, i.count, i.entries) = (i.inline_len - len as u32, i.size - len as u64, i.count - 1, i.entries - 1);
            });
        }),
        case("listed twice", &[P05, P06], |k, w| {
            let (list, target) = (k.sb().orphan_dir(0), inode_of(&k.disk, w.orphan));
            let name = crate::orphan::list_name(w.orphan + 5000);
            let mut all = Vec::new();
            let used = inode_of(&k.disk, list).inline_len as usize;
            let mut record = Vec::new();
            let hash = luna_format::dir::hash(&k.sb().hash_key, &name);
            luna_format::dir::push(&mut record, hash, w.orphan, target.generation, (target.mode >> 12) as u8, &name);
            all.extend_from_slice(&read(&k.disk, list).0[BODY_AT..BODY_AT + used]);
            let at = luna_format::dir::entries(list, &all.clone()).map(|e| e.unwrap()).find(|e| e.head.hash > hash).map_or(used, |e| e.at);
            all.splice(at..at, record.iter().copied());
            edit(&k.disk, list, |b| b.0[BODY_AT..BODY_AT + all.len()].copy_from_slice(&all));
            edit_inode(&k.disk, list, |i| {
                (i.inline_len, i.size, i.count, i.entries) = (all.len() as u32, all.len() as u64, i.count + 1, i.entries + 1);
            });
        }),
    ]);
}

#[test]
fn damaged_groups_are_named() {
    use Code::*;
    try_all(&[
        case("shape", &[G01], |k, _| edit_group(&k.disk, k.sb().ag_region(1).0, |h| h.blocks += 1)),
        case("free", &[G02], |k, _| edit_group(&k.disk, k.sb().ag_start, |h| h.free += 1)),
        case("free metadata", &[G03], |k, _| edit_group(&k.disk, k.sb().ag_start, |h| h.free_meta += 1)),
        case("used marked free", &[U02], |k, w| {
            let (map, at, bit) = bit_of(k, extent_of(&k.disk, w.file, 0).physical);
            edit(&k.disk, map, |b| b.0[at] &= !bit);
        }),
        case("free marked used", &[U03], |k, w| {
            let e = extent_of(&k.disk, w.file, 0);
            let (map, at, bit) = bit_of(k, free_behind(k, e.physical));
            edit(&k.disk, map, |b| b.0[at] |= bit);
        }),
        case("free metadata marked used", &[U04], |k, w| {
            let (map, at, bit) = bit_of(k, free_behind(k, w.root));
            edit(&k.disk, map, |b| b.0[at] |= bit);
        }),
        case("own block free", &[G05], |k, _| {
            let (map, at, bit) = bit_of(k, k.sb().ag_start);
            edit(&k.disk, map, |b| b.0[at] &= !bit);
        }),
        case("bits behind the end", &[G06], |k, _| edit(&k.disk, k.sb().ag_start + 1, |b| b.0[4095] = 0)),
        case("type of data", &[U06, G03], |k, w| {
            let block = extent_of(&k.disk, w.file, 0).physical;
            let (start, _) = k.sb().ag_region(k.sb().ag_of(block).unwrap());
            edit(&k.disk, start, |b| ag::set_segment(&mut b.0, (block - start) / 256, ag::SegmentType::Meta));
        }),
        case("type of metadata", &[G04, U05], |k, _| {
            edit(&k.disk, k.sb().ag_start, |b| ag::set_segment(&mut b.0, 0, ag::SegmentType::Data));
        }),
        case("in use but free", &[G07, U06], |k, w| {
            let block = extent_of(&k.disk, w.file, 0).physical;
            let (start, _) = k.sb().ag_region(k.sb().ag_of(block).unwrap());
            edit(&k.disk, start, |b| ag::set_segment(&mut b.0, (block - start) / 256, ag::SegmentType::Free));
        }),
        case("empty data segment", &[G08], |k, _| {
            let start = k.sb().ag_start;
            edit(&k.disk, start, |b| {
                let free = (0..).find(|n| ag::segment(&b.0, *n) == ag::SegmentType::Free).unwrap();
                ag::set_segment(&mut b.0, free, ag::SegmentType::Data);
            });
        }),
        case("unknown type", &[G09], |k, _| {
            let (start, len) = k.sb().ag_region(2);
            let n = len / 256 - 1;
            edit(&k.disk, start, |b| b.0[ag::SEGMENTS_AT + (n / 4) as usize] |= 3 << ((n % 4) * 2));
            edit_group(&k.disk, start, |h| h.free_meta += 256);
        }),
        case("torn header", &[B01], |k, _| {
            let mut b = read(&k.disk, k.sb().ag_start);
            b.0[90] ^= 4;
            write(&k.disk, k.sb().ag_start, &b);
        }),
        case("torn bitmap", &[B01], |k, _| {
            let mut b = read(&k.disk, k.sb().ag_start + 1);
            b.0[3000] ^= 4;
            write(&k.disk, k.sb().ag_start + 1, &b);
        }),
    ]);
}

/// A free block of the same type, behind `block`.
fn free_behind(k: &Kit, block: BlockNo) -> BlockNo {
    let (start, _) = k.sb().ag_region(k.sb().ag_of(block).unwrap());
    let header = read(&k.disk, start);
    let kind = |b: BlockNo| ag::segment(&header.0, (b - start) / 256);
    (block..)
        .find(|b| {
            let (map, at, bit) = bit_of(k, *b);
            read(&k.disk, map).0[at] & bit == 0 && kind(*b) == kind(block)
        })
        .unwrap()
}

#[test]
fn damaged_regions_in_front_are_named() {
    use Code::*;
    try_all(&[
        case("first superblock", &[S01], |k, _| write(&k.disk, 0, &Block::zeroed())),
        case("last superblock", &[S01], |k, _| write(&k.disk, k.sb().total_blocks - 1, &Block::zeroed())),
        case("an old copy", &[S02], |k, _| {
            let sb = Superblock { label: [b'x'; 64], ..*k.sb() };
            write(&k.disk, sb.copy_block, &sb.seal(VOLUME, sb.copy_block, 0));
        }),
        case("beat", &[C01], |k, _| write(&k.disk, k.sb().beat_start, &Block([9; 4096]))),
        case("register", &[C02], |k, _| write(&k.disk, k.sb().px_start, &Block([9; 4096]))),
        case("half a record", &[], |k, _| write(&k.disk, k.sb().log_start + 1, &Block([9; 4096]))),
        case("record", &[C03], |k, _| write(&k.disk, k.sb().log_start + 5, &Block([9; 4096]))),
        case("chain", &[C04], |k, _| {
            for index in 1..3 {
                let r = record(index);
                let at = k.sb().log_start + index;
                write(&k.disk, at, &cluster::seal_record(&r, VOLUME, at));
            }
        }),
        case("mail", &[], |k, _| write(&k.disk, k.sb().mail_start, &Block([9; 4096]))),
        case("no such slot", &[C08], |k, _| {
            let mut r = record(1);
            r.slots[7].state = cluster::SLOT_MEMBER;
            write(&k.disk, k.sb().log_start + 1, &cluster::seal_record(&r, VOLUME, k.sb().log_start + 1));
        }),
        case("members are pointed out", &[], |k, _| {
            let mut r = record(1);
            r.slots[0].state = cluster::SLOT_MEMBER;
            write(&k.disk, k.sb().log_start + 1, &cluster::seal_record(&r, VOLUME, k.sb().log_start + 1));
        }),
        case("journal header", &[B01], |k, _| {
            let at = k.sb().journal_region(1).0;
            let mut b = read(&k.disk, at);
            b.0[70] ^= 1;
            write(&k.disk, at, &b);
        }),
        case("journal state", &[J03], |k, _| edit(&k.disk, k.sb().journal_region(1).0, |b| b.0[88] = 9)),
        case("dirty without an owner", &[J04], |k, _| {
            let r = record(1);
            write(&k.disk, k.sb().log_start + 1, &cluster::seal_record(&r, VOLUME, k.sb().log_start + 1));
            edit(&k.disk, k.sb().journal_region(1).0, |b| b.0[88] = 2);
        }),
    ]);
}

#[test]
fn a_damaged_record_in_a_journal_is_named() {
    let kit = kit_of(256 << 20, 2);
    let top = kit.sb().root_ino;
    for n in 0..5 {
        kit.vol.run(|tx| create(tx, top, format!("{n}").as_bytes(), 0o644, 0, &cred())).unwrap();
        kit.vol.sync_all().unwrap();
    }
    let disk = kit.disk.snapshot();
    write(&disk, kit.sb().journal_region(0).0 + 2, &Block([9; 4096]));
    let (_, found) = check(&disk);
    assert_eq!(codes(&found), BTreeSet::from([Code::J01]), "{found:?}");
}

#[test]
fn the_short_look_tells_clean_from_not() {
    let (kit, _) = world();
    assert_eq!(quick(&*kit.disk).unwrap(), Quick::Clean);
    let dirty = kit_of(64 << 20, 1);
    assert!(matches!(quick(&*dirty.disk).unwrap(), Quick::Look(_)));
    let mut r = record(1);
    r.slots[0].state = cluster::SLOT_MEMBER;
    let at = kit.sb().log_start + 1;
    write(&kit.disk, at, &cluster::seal_record(&r, VOLUME, at));
    assert_eq!(quick(&*kit.disk).unwrap(), Quick::InUse(1));
}

#[test]
fn findings_of_one_code_are_counted_but_not_repeated() {
    let (kit, w) = world();
    for n in 0..20 {
        let leaf = child(&kit.disk, w.big_dir, n);
        edit(&kit.disk, leaf, |b| b.view_mut::<NodeHeader>(HEADER_BYTES).unwrap().count -= 1);
    }
    let mut heard = 0;
    let options = CheckOptions { max_per_code: 5, ..CheckOptions::default() };
    let s = run(&*kit.disk, &options, &mut |_| heard += 1).unwrap();
    assert_eq!((heard, s.counts[&Code::D11]), (5, 20));
}

#[test]
fn an_unreadable_block_is_a_finding_and_hides_what_is_below() {
    let (kit, w) = world();
    let bad = child(&kit.disk, w.sparse, 0) * BLOCK_U64;
    let rule = move |_, op| match op {
        faulty::Operation::Read { offset, len } if (offset..offset + len).contains(&bad) => faulty::Verdict::Fail,
        _ => faulty::Verdict::Pass,
    };
    let disk = faulty::FaultyDisk::new(kit.disk.clone(), Box::new(rule));
    let mut found = Vec::new();
    run(&disk, &CheckOptions::default(), &mut |f| found.push(f)).unwrap();
    assert_eq!(found.iter().map(|f| f.code).collect::<Vec<_>>(), [Code::B09, Code::U08], "{found:#?}");
    assert_eq!(found[0].place.path.as_deref(), Some("/small/sparse"));
}

/// Whatever bytes stand there, the check ends and does not panic.
#[test]
fn random_damage_is_never_a_panic() {
    let (kit, w) = world();
    let before = kit.disk.clone();
    let group = kit.sb().ag_start;
    let targets = [group, group + 1, w.root, w.small_dir, w.big_dir, w.file, w.sparse, w.orphan, kit.sb().orphan_dir(0)];
    let leaves = [child(&before, w.sparse, 0), child(&before, w.big_dir, 0), inode_of(&before, w.file).xattr_block];
    for seed in 0..150 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let disk = before.snapshot();
        let all: Vec<BlockNo> = targets.iter().chain(&leaves).copied().collect();
        for _ in 0..rng.usize(1..4) {
            let victim = all[rng.usize(0..all.len())];
            edit(&disk, victim, |b| {
                for _ in 0..rng.usize(1..10) {
                    let at = if rng.bool() { rng.usize(HEADER_BYTES..BODY_AT + 64) } else { rng.usize(HEADER_BYTES..4096) };
                    b.0[at] = rng.u8(..);
                }
            });
        }
        let _ = run(&disk, &CheckOptions::default(), &mut |f| assert!(!f.to_string().is_empty()));
    }
}
