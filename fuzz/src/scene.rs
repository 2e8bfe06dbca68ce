//! The image that is mutated: small, and with one of everything. Made once a process, by production code, so that it is as real as any.
//!
//! 64 MiB, four slots, four groups. Trees two and three levels deep (a tree this small has one level; `deepen` puts nodes between,
//! as a larger one would have them), every inode layout, attributes, orphans of two slots, three dirty journals with several records,
//! membership records, registers, beats and mail. Invariant: fsck finds nothing on it but the dirty journals and the hosts that are in
//! (a test says so). Beside it lie older versions of the same blocks, for mutations that bring back the past.
//! Not here: mutations (`damage`).

use crate::disk::{Blocks, GuardDisk};
use crate::host::Host;
use luna_format::cluster::{self as fc, Decision, Record};
use luna_format::inode::{BODY_AT, Inode, Layout};
use luna_format::superblock::Superblock;
use luna_format::tree::{ENTRIES_AT, Entry, NodeHeader};
use luna_format::{Block, BlockNo, HEADER_BYTES, Ino, Kind, Slot, Stamp, VolumeId, ag, seal};
use luna_fs::alloc;
use luna_fs::mkfs::{self, MkfsOptions};
use luna_fs::op::{self, Cred};
use luna_fs::{Fs, xattr};
use luna_lun::Disk;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Identity of the volume.
pub const VOLUME: VolumeId = [7; 16];
/// Blocks of the LUN.
pub const BLOCKS: u64 = (64 << 20) / 4096;
/// Slots.
pub const SLOTS: Slot = 4;

/// What a mutation may be confined to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// Superblock copies.
    Super,
    /// Beats, registers, records, mail.
    Cluster,
    /// Headers, descriptors and images of the journals.
    Journal,
    /// Headers and bitmaps of the groups.
    Groups,
    /// Inodes.
    Inodes,
    /// Nodes of extent trees, and inodes of files.
    Extents,
    /// Nodes and leaves of directories, and their inodes.
    Dirs,
    /// Attribute blocks, and the inodes they belong to.
    Xattrs,
    /// Everything.
    All,
}

/// Of each journal: its descriptors, and how many images lie behind each.
pub type Descriptors = Vec<Vec<(BlockNo, u64)>>;

/// See the module's text.
pub struct Scene {
    /// The image.
    pub base: Arc<Blocks>,
    /// Its superblock.
    pub sb: Superblock,
    /// Blocks of each area.
    areas: BTreeMap<Area, Vec<BlockNo>>,
    /// Earlier versions of some blocks.
    pub old: Blocks,
    /// Positions of the descriptors in each journal: block, images behind it.
    pub descriptors: Descriptors,
}

impl Scene {
    /// The one of this process.
    pub fn get() -> &'static Self {
        static SCENE: OnceLock<Scene> = OnceLock::new();
        SCENE.get_or_init(|| build().unwrap_or_else(|e| panic!("the image cannot be made: {e}")))
    }

    /// Blocks of an area; never none.
    pub fn blocks(&self, area: Area) -> &[BlockNo] {
        self.areas.get(&area).map_or(&[0], Vec::as_slice)
    }

    /// A disk over the image with `change` on top.
    pub fn disk(&self, change: Blocks) -> GuardDisk {
        GuardDisk::new(Arc::clone(&self.base), BLOCKS, change)
    }
}

type Built<T> = Result<T, String>;

fn say<E: std::fmt::Display>(e: E) -> String {
    e.to_string()
}

fn taken(disk: &GuardDisk) -> Blocks {
    disk.changes().into_iter().filter_map(|(at, b)| Some((at, *b?))).collect()
}

fn over(blocks: &Blocks) -> Arc<GuardDisk> {
    Arc::new(GuardDisk::new(Arc::default(), BLOCKS, blocks.clone()))
}

fn build() -> Built<Scene> {
    let disk = over(&Blocks::new());
    let options = MkfsOptions {
        label: "fuzz".into(),
        slots: u32::from(SLOTS),
        volume: VOLUME,
        hash_key: [3; 16],
        link_secret: [4; 32],
        now_ns: 1_700_000_000 << 30,
    };
    mkfs::run(&*disk, &options, &mut |_, _| {}).map_err(say)?;
    let host = Host::mount(&disk, 0)?;
    furnish(&host.fs)?;
    host.unmount()?;
    let mut blocks = taken(&disk);
    let (_, sb) = mkfs::read_superblock(&*disk).map_err(say)?;
    let old = blocks.clone();
    deepen_all(&mut blocks, &sb)?;
    // a host that died with everything at home but its log, one that died before anything was at home, and one in between
    for (slot, home) in [(1, true), (2, true), (3, false)] {
        let disk = over(&blocks);
        let host = Host::mount_only(&disk, slot)?;
        busy(&host.fs, slot)?;
        if home {
            host.fs.volume.checkpoint().map_err(say)?;
        }
        drop(host);
        blocks = taken(&disk);
    }
    membership(&mut blocks, &sb);
    let (areas, descriptors) = survey(&blocks, &sb);
    Ok(Scene { base: Arc::new(blocks), sb, areas, old, descriptors })
}

fn put(fs: &Arc<Fs>, ino: Ino, pieces: &[(u64, usize)]) -> Built<()> {
    let file = fs.open_wait(ino, 2).map_err(say)?;
    for (at, len) in pieces {
        fs.pwrite(&file, *at, &vec![*at as u8 | 1; *len], |_| ()).map_err(say)?;
    }
    fs.fsync(&file).map_err(say)?;
    fs.close_file(file);
    Ok(())
}

/// One of everything.
fn furnish(fs: &Arc<Fs>) -> Built<()> {
    let (v, cred) = (&fs.volume, Cred::default());
    let root = v.sb.root_ino;
    let file = |dir: Ino, name: &str| v.run(|tx| op::create(tx, dir, name.as_bytes(), 0o100_644, 0, &cred)).map(|a| a.ino).map_err(say);
    let mkdir = |dir: Ino, name: &str| v.run(|tx| op::mkdir(tx, dir, name.as_bytes(), 0o755, &cred)).map(|a| a.ino).map_err(say);
    let small = file(root, "small")?;
    put(fs, small, &[(0, 300)])?;
    put(fs, file(root, "inline-extents")?, &[(0, 8192), (1 << 20, 4096), (1 << 40, 4096)])?;
    // every other block: as many extents as blocks
    let scattered: Vec<(u64, usize)> = (0..400).map(|n| (n * 8192, 4096)).collect();
    put(fs, file(root, "scattered")?, &scattered)?;
    put(fs, file(root, "deeper")?, &scattered[..380])?;
    let sparse = file(root, "preallocated")?;
    let handle = fs.open_wait(sparse, 2).map_err(say)?;
    fs.fallocate_wait(&handle, 0, 0, 3 << 20).map_err(say)?;
    fs.pwrite(&handle, 1 << 20, &[9; 4096], |_| ()).map_err(say)?;
    fs.close_file(handle);
    v.run(|tx| op::symlink(tx, root, b"link", b"small", &cred)).map_err(say)?;
    v.run(|tx| op::create(tx, root, b"fifo", 0o010_600, 0, &cred)).map_err(say)?;
    v.run(|tx| op::create(tx, root, b"null", 0o020_600, 0x103, &cred)).map_err(say)?;
    v.run(|tx| op::link(tx, small, root, b"small-again")).map_err(say)?;
    v.run(|tx| xattr::set(tx, small, b"user.one", b"value", 0)).map_err(say)?;
    v.run(|tx| xattr::set(tx, small, b"user.two", &[7; 900], 0)).map_err(say)?;
    v.run(|tx| xattr::set(tx, root, b"security.selinux", b"context", 0)).map_err(say)?;
    let dir = mkdir(root, "dir")?;
    let below = mkdir(dir, "below")?;
    mkdir(below, "empty")?;
    put(fs, file(below, "leaf")?, &[(0, 5000)])?;
    for (name, count) in [("wide", 60), ("wider", 160)] {
        let wide = mkdir(root, name)?;
        let one = file(wide, "zero")?;
        for n in 0..count {
            let name = format!("{n:03}-{}", "n".repeat(n % 7 * 30));
            v.run(|tx| op::link(tx, one, wide, name.as_bytes())).map_err(say)?;
        }
    }
    let gone = file(root, "orphan")?;
    put(fs, gone, &[(0, 50_000), (1 << 30, 4096)])?;
    v.run(|tx| op::unlink(tx, root, b"orphan")).map_err(say)?;
    let freed = file(root, "freed")?;
    put(fs, freed, &[(0, 9000)])?;
    v.run(|tx| op::unlink(tx, root, b"freed")).map_err(say)?;
    luna_fs::orphan::reap(v, freed).map_err(say)?;
    Ok(())
}

/// What a host does before it dies: several records in its journal.
fn busy(fs: &Arc<Fs>, slot: Slot) -> Built<()> {
    let (v, cred) = (&fs.volume, Cred::default());
    let root = v.sb.root_ino;
    let name = |what: &str| format!("{what}-of-{slot}").into_bytes();
    let file = v.run(|tx| op::create(tx, root, &name("file"), 0o100_600, 0, &cred)).map_err(say)?.ino;
    v.sync_all().map_err(say)?;
    put(fs, file, &[(0, 20_000), (1 << 20, 4096)])?;
    v.run(|tx| xattr::set(tx, file, b"user.slot", &[slot as u8; 60], 0)).map_err(say)?;
    v.sync_all().map_err(say)?;
    let dir = v.run(|tx| op::mkdir(tx, root, &name("dir"), 0o755, &cred)).map_err(say)?.ino;
    v.run(|tx| op::rename(tx, root, &name("file"), dir, b"moved", 0)).map_err(say)?;
    v.sync_all().map_err(say)?;
    let gone = v.run(|tx| op::create(tx, dir, b"gone", 0o100_600, 0, &cred)).map_err(say)?.ino;
    put(fs, gone, &[(0, 9000)])?;
    v.run(|tx| op::unlink(tx, dir, b"gone")).map_err(say)?;
    v.sync_all().map_err(say)
}

/// Trees of one level become trees of two and three: a node is put between the root and its children.
fn deepen_all(blocks: &mut Blocks, sb: &Superblock) -> Built<()> {
    let host = over(blocks);
    let host = Host::mount_only(&host, 0)?;
    let find = |name: &str| {
        let v = &host.fs.volume;
        v.run(|tx| op::lookup(tx, tx.sb.root_ino, name.as_bytes())).map(|a| a.ino).map_err(say)
    };
    let todo = [find("scattered")?, find("deeper")?, find("deeper")?, find("wider")?, find("wider")?];
    drop(host);
    todo.into_iter().try_for_each(|ino| deepen(blocks, sb, ino))
}

/// Puts two nodes (or one) between the root of a tree and its children.
fn deepen(blocks: &mut Blocks, sb: &Superblock, ino: Ino) -> Built<()> {
    let none = || format!("inode {ino} has no tree");
    let mut inode = blocks.get(&ino).cloned().ok_or_else(none)?;
    let mut i = *inode.view::<Inode>(HEADER_BYTES).ok_or_else(none)?;
    let kind = match Layout::from_u8(i.layout) {
        Some(Layout::ExtentTree) => Kind::ExtentNode,
        Some(Layout::DirTree) => Kind::DirNode,
        _ => return Err(none()),
    };
    let bytes = &inode.0[BODY_AT..BODY_AT + usize::from(i.count) * size_of::<Entry>()];
    let entries: Vec<Entry> = <[Entry]>::ref_from_bytes(bytes).map_err(|_| none())?.to_vec();
    let mut root = Vec::new();
    for part in entries.chunks(entries.len().div_ceil(2)) {
        let block = claim(blocks, sb)?;
        let mut b = Block::zeroed();
        let head = NodeHeader { level: u16::from(i.depth), count: part.len() as u16, used: 0, reserved: 0 };
        b.0[HEADER_BYTES..ENTRIES_AT].copy_from_slice(head.as_bytes());
        b.0[ENTRIES_AT..ENTRIES_AT + size_of_val(part)].copy_from_slice(part.as_bytes());
        seal(&mut b, &Stamp { kind, volume: VOLUME, block, owner: ino, version: 1000, writer: 0, epoch: 1 });
        blocks.insert(block, b);
        root.push(Entry { key: part[0].key, child: block });
    }
    i.depth += 1;
    i.count = root.len() as u16;
    i.blocks += root.len() as u64;
    inode.0[HEADER_BYTES..BODY_AT].copy_from_slice(i.as_bytes());
    inode.0[BODY_AT..].fill(0);
    inode.0[BODY_AT..BODY_AT + root.len() * size_of::<Entry>()].copy_from_slice(root.as_bytes());
    again(&mut inode);
    blocks.insert(ino, inode);
    Ok(())
}

/// Seals a block that was changed under what it says of itself, one version later.
fn again(b: &mut Block) {
    let h = b.header();
    let kind = Kind::from_u16(h.kind).unwrap_or(Kind::Inode);
    let (volume, block, owner, version) = (h.volume, h.block, h.owner, h.version + 1);
    seal(b, &Stamp { kind, volume, block, owner, version, writer: h.writer, epoch: h.epoch });
}

/// Takes a free block of group 0's first segment.
fn claim(blocks: &mut Blocks, sb: &Superblock) -> Built<BlockNo> {
    let (start, _) = sb.ag_region(0);
    let none = || "no free metadata block".to_owned();
    let mut map = blocks.get(&(start + 1)).cloned().ok_or_else(none)?;
    let rel = (0..ag::SEGMENT_BLOCKS).find(|n| map.0[HEADER_BYTES + *n as usize / 8] & 1 << (n % 8) == 0).ok_or_else(none)?;
    map.0[HEADER_BYTES + rel as usize / 8] |= 1 << (rel % 8);
    again(&mut map);
    blocks.insert(start + 1, map);
    let mut head = blocks.get(&start).cloned().ok_or_else(none)?;
    let h = head.view_mut::<ag::AgHeader>(HEADER_BYTES).ok_or_else(none)?;
    (h.free, h.free_meta) = (h.free - 1, h.free_meta - 1);
    again(&mut head);
    blocks.insert(start, head);
    Ok(start + rel)
}

/// Slots 1 to 3 died as members, who was in slot 0 left: records, registers, beats and mail that say so.
fn membership(blocks: &mut Blocks, sb: &Superblock) {
    let (mut r, mut prev) = (Record::genesis(), [0; 16]);
    r.slots[0].incarnation = 1;
    let steps = [(fc::DECIDE_JOIN, 1), (fc::DECIDE_JOIN, 2), (fc::DECIDE_JOIN, 3), (fc::DECIDE_EVICT, 1), (fc::DECIDE_FENCED, 1)];
    for (n, (kind, slot)) in steps.into_iter().enumerate() {
        (r.index, r.prev) = (n as u64 + 1, prev);
        r.view_epoch = r.index.min(4);
        r.decision = Decision::new(kind, slot, 1, 3);
        let s = &mut r.slots[usize::from(slot)];
        (s.incarnation, s.host_id, s.nonce) = (1, [slot as u8; 16], 77);
        s.state = match kind {
            fc::DECIDE_JOIN => fc::SLOT_MEMBER,
            fc::DECIDE_EVICT => fc::SLOT_EVICTED,
            _ => fc::SLOT_FENCED,
        };
        if kind != fc::DECIDE_JOIN {
            (s.died_epoch, s.last_members, s.recoverer) = (4, 0b1110, 3);
        }
        let at = sb.log_start + r.index % sb.log_blocks;
        let b = fc::seal_record(&r, VOLUME, at);
        prev = fc::chain(&b);
        blocks.insert(at, b);
    }
    for slot in 1..SLOTS {
        let mut beat = fc::Beat::new_zeroed();
        (beat.host_id, beat.name, beat.incarnation) = ([slot as u8; 16], fc::text(&format!("host-{slot}")), 1);
        (beat.counter, beat.epoch_seen, beat.state) = (500, 5, fc::BEAT_MEMBER);
        (beat.beat_ms, beat.lease_ms, beat.margin_ms) = (400, 12_000, 4000);
        beat.addresses[0] = fc::text("127.0.0.1:9");
        let at = sb.beat_start + u64::from(slot);
        blocks.insert(at, fc::seal_beat(&beat, VOLUME, at, slot));
        let px = fc::Paxos { instance: 5, mbal: 64 + u64::from(slot), bal: 64 + u64::from(slot), value: r.decision };
        let at = sb.px_start + u64::from(slot);
        blocks.insert(at, fc::seal_paxos(&px, VOLUME, at, slot));
        let mut head = fc::MailHead::new_zeroed();
        (head.incarnation, head.number) = (1, 3);
        let frames = [fc::frames_of(0, &[5; 90]), fc::frames_of(2, &[6; 4000])].concat();
        let at = sb.mail_start + u64::from(slot) * sb.mail_blocks + 3;
        blocks.insert(at, fc::seal_mail(&head, &frames, VOLUME, at, slot, 5).0);
    }
}

/// Sorts the blocks into areas.
fn survey(blocks: &Blocks, sb: &Superblock) -> (BTreeMap<Area, Vec<BlockNo>>, Descriptors) {
    let mut areas: BTreeMap<Area, Vec<BlockNo>> = BTreeMap::new();
    let mut descriptors = vec![Vec::new(); usize::from(SLOTS)];
    let journals = sb.journal_start..sb.copy_block;
    for (at, b) in blocks {
        let h = b.header();
        if h.magic != luna_format::MAGIC || (h.block != *at && !journals.contains(at)) {
            continue;
        }
        let mut to: Vec<Area> = match Kind::from_u16(h.kind) {
            _ if journals.contains(at) => vec![Area::Journal],
            Some(Kind::Superblock) => vec![Area::Super],
            Some(Kind::Beat | Kind::Paxos | Kind::Record | Kind::Mail) => vec![Area::Cluster],
            Some(Kind::AgHeader | Kind::AgBitmap) => vec![Area::Groups],
            Some(Kind::Inode) => inode_areas(b),
            Some(Kind::ExtentNode) => vec![Area::Extents],
            Some(Kind::DirNode | Kind::DirLeaf) => vec![Area::Dirs],
            Some(Kind::Xattr) => vec![Area::Xattrs],
            _ => continue,
        };
        if journals.contains(at) && h.block == *at && h.kind == Kind::JournalDescriptor as u16 {
            let slot = (at - sb.journal_start) / sb.journal_blocks;
            let count = b.view::<luna_format::journal::Descriptor>(HEADER_BYTES).map_or(0, |d| u64::from(d.count));
            descriptors[slot as usize].push((*at, count));
        }
        to.push(Area::All);
        to.into_iter().for_each(|area| areas.entry(area).or_default().push(*at));
    }
    (areas, descriptors)
}

fn inode_areas(b: &Block) -> Vec<Area> {
    let mut to = vec![Area::Inodes];
    if let Some(i) = b.view::<Inode>(HEADER_BYTES) {
        to.push(if op::is_dir(i.mode) { Area::Dirs } else { Area::Extents });
        if i.xattr_block != 0 {
            to.push(Area::Xattrs);
        }
    }
    to
}

/// Free blocks of the whole volume, as a mounted host sees them: for tests.
pub fn free_blocks(fs: &Fs) -> u64 {
    alloc::refresh_hints(&fs.volume);
    alloc::statfs(&fs.volume).free
}

/// Reads one block of a disk.
pub fn read(disk: &dyn Disk, at: BlockNo) -> Block {
    let mut b = Block::zeroed();
    if disk.read_at(&mut b.0, at * luna_format::BLOCK_U64).is_err() {
        b = Block::zeroed();
    }
    b
}
