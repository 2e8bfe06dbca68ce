//! `luna dump`: prints on-disk structures, as they are, for people who debug. Reads only.
//!
//! Every dump names the block it came from and says whether the block passed its check. It shows the home blocks: what a
//! dirty journal holds for them is shown by `journal N` only. Not here: judging a volume (fsck).

mod path;

use super::{read_block, uuid};
use crate::{cli::DumpArgs, slots};
use anyhow::{Context, Result, bail, ensure};
use luna_format::{
    BLOCK_U64, Block, HEADER_BYTES, Kind, VolumeId,
    ag::{self, AgHeader, SegmentType},
    cluster::{self, untext},
    inode::{BODY_AT, BODY_BYTES, Extent, FLAG_ORPHAN, Inode, Layout},
    superblock::Superblock,
    tree::Entry,
};
use luna_lun::Disk;
use std::io::Write;

/// One line of output: a name and a value.
type Rows = Vec<(String, String)>;

/// Runs the command.
pub fn run(args: &DumpArgs) -> Result<()> {
    let lun = super::open(&args.lun, true)?;
    let disk = &*lun.disk;
    let (volume, sb) = luna_fs::mkfs::read_superblock(disk)?;
    let what: Vec<&str> = args.what.iter().map(String::as_str).collect();
    let number = |n: &str| n.parse::<u64>().with_context(|| format!("'{n}' is no number"));
    let rows = match what[..] {
        ["superblock"] => superblock(volume, &sb),
        ["slots"] => slot_rows(disk, volume, &sb)?,
        ["group", n] => group(disk, volume, &sb, number(n)?)?,
        ["inode", n] => inode(disk, volume, number(n)?)?,
        ["journal", n] => journal(disk, volume, &sb, number(n)?)?,
        ["path", p] => {
            let ino = path::resolve(disk, volume, &sb, p.as_bytes()).with_context(|| format!("cannot follow {p}"))?;
            inode(disk, volume, ino)?
        }
        ["block", n] => block_rows(disk, volume, number(n)?)?,
        _ => bail!("cannot dump '{}'; superblock, slots, group N, inode N, journal N, block N or path P can be", what.join(" ")),
    };
    let text = if args.json {
        let map: serde_json::Map<String, serde_json::Value> = rows.into_iter().map(|(k, v)| (k, v.into())).collect();
        format!("{}\n", serde_json::Value::Object(map))
    } else {
        rows.iter().map(|(key, value)| format!("{key:<22}{value}\n")).collect()
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // whoever read has seen enough
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

fn row(rows: &mut Rows, key: impl Into<String>, value: impl std::fmt::Display) {
    rows.push((key.into(), value.to_string()));
}

fn superblock(volume: VolumeId, sb: &Superblock) -> Rows {
    let mut r = Rows::new();
    row(&mut r, "volume", uuid(&volume));
    row(&mut r, "label", sb.label_text());
    row(&mut r, "format version", sb.format_version);
    row(&mut r, "features", format!("compat {:#x}, ro_compat {:#x}, incompat {:#x}", sb.compat, sb.ro_compat, sb.incompat));
    row(&mut r, "blocks", format!("{} of {} bytes", sb.total_blocks, sb.block_bytes));
    row(&mut r, "slots", sb.slots);
    row(&mut r, "copies", sb.copies().map(|b| b.to_string()).join(", "));
    row(&mut r, "beats", format!("at {}", sb.beat_start));
    row(&mut r, "paxos registers", format!("at {}", sb.px_start));
    row(&mut r, "membership log", format!("{} blocks at {}", sb.log_blocks, sb.log_start));
    row(&mut r, "mailboxes", format!("{} blocks each at {}", sb.mail_blocks, sb.mail_start));
    row(&mut r, "journals", format!("{} blocks each at {}", sb.journal_blocks, sb.journal_start));
    row(&mut r, "groups", format!("{} of {} blocks at {}", sb.ag_count, sb.ag_blocks, sb.ag_start));
    row(&mut r, "root directory", format!("inode {}", sb.root_ino));
    row(&mut r, "orphan directories", format!("inodes from {}", sb.orphan_ino));
    row(&mut r, "made", format!("{}.{:09} s after 1970", sb.made_ns / 1_000_000_000, sb.made_ns % 1_000_000_000));
    r
}

fn slot_rows(disk: &dyn Disk, volume: VolumeId, sb: &Superblock) -> Result<Rows> {
    let mut r = Rows::new();
    let record = slots::newest_record(disk, volume, sb)?;
    row(&mut r, "epoch", record.map_or(0, |rec| rec.index));
    let beats = slots::beats(disk, volume, sb)?;
    for slot in 0..sb.slots as u16 {
        let state = record.map(|rec| rec.slots[usize::from(slot)]);
        let beat = beats.iter().find(|(s, _)| *s == slot).map(|(_, b)| b);
        if beat.is_none() && state.is_none_or(|s| s.incarnation == 0) {
            continue;
        }
        let chosen = state.map_or("never used".into(), |s| format!("{} (incarnation {})", slots::slot_state(s.state), s.incarnation));
        let told = beat.map_or("no beat".into(), |b| {
            let addresses: Vec<String> = b.addresses.iter().map(|a| untext(a)).filter(|a| !a.is_empty()).collect();
            let (name, state) = (untext(&b.name), slots::beat_state(b.state));
            format!("'{name}' says {state}, beat {} every {} ms, epoch {}, at {}", b.counter, b.beat_ms, b.epoch_seen, addresses.join(" "))
        });
        row(&mut r, format!("slot {slot}"), format!("{chosen}; {told}"));
    }
    Ok(r)
}

/// A group: what its header says, and its first block.
fn group(disk: &dyn Disk, volume: VolumeId, sb: &Superblock, n: u64) -> Result<Rows> {
    ensure!(n < sb.ag_count, "there are groups 0 to {}", sb.ag_count - 1);
    let (start, len) = sb.ag_region(n);
    let block = read_block(disk, start)?;
    let mut r = header_rows(&block, volume, start, Some(Kind::AgHeader));
    row(&mut r, "region", format!("blocks {start} to {}", start + len - 1));
    let Some(h) = block.view::<AgHeader>(HEADER_BYTES) else { return Ok(r) };
    row(&mut r, "index", h.index);
    row(&mut r, "blocks", h.blocks);
    row(&mut r, "free", h.free);
    row(&mut r, "free metadata", h.free_meta);
    row(&mut r, "version floor", h.version_floor);
    let unwritten = if h.flags & ag::AG_BITMAP_UNINIT != 0 { ", never written" } else { "" };
    row(&mut r, "bitmap blocks", format!("{}{unwritten}", h.bitmaps));
    let segments = len.div_ceil(ag::SEGMENT_BLOCKS);
    let count = |t| (0..segments).filter(|s| ag::segment(&block.0, *s) == t).count();
    let [free, data, meta] = [SegmentType::Free, SegmentType::Data, SegmentType::Meta].map(count);
    row(&mut r, "segments", format!("{segments}: {free} free, {data} data, {meta} metadata"));
    Ok(r)
}

/// An inode: its fields, and what its body holds.
fn inode(disk: &dyn Disk, volume: VolumeId, n: u64) -> Result<Rows> {
    ensure!(n < disk.geometry().size_bytes / BLOCK_U64, "the LUN has no block {n}");
    let block = read_block(disk, n)?;
    let mut r = header_rows(&block, volume, n, Some(Kind::Inode));
    let sound = block.header().kind == Kind::Inode as u16;
    let (true, Ok(i)) = (sound, luna_format::inode::check(&block)) else {
        row(&mut r, "body", "not readable as an inode's");
        hex(&mut r, &block, HEADER_BYTES);
        return Ok(r);
    };
    row(&mut r, "mode", if i.mode == 0 { "0 (freed)".into() } else { format!("{:#o}", i.mode) });
    row(&mut r, "links", i.nlink);
    row(&mut r, "uid, gid", format!("{}, {}", i.uid, i.gid));
    row(&mut r, "size", i.size);
    row(&mut r, "blocks", i.blocks);
    let seconds = |ns: i64| format!("{}.{:09}", ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    let times = [("accessed", i.atime_ns), ("modified", i.mtime_ns), ("changed", i.ctime_ns), ("born", i.btime_ns)];
    times.into_iter().for_each(|(name, ns)| row(&mut r, name, seconds(ns)));
    row(&mut r, "generation", i.generation);
    row(&mut r, "flags", format!("{:#x}{}", i.flags, if i.flags & FLAG_ORPHAN != 0 { " (orphan)" } else { "" }));
    row(&mut r, "device", i.rdev);
    let layout = Layout::from_u8(i.layout).map_or_else(|| i.layout.to_string(), |l| format!("{l:?}"));
    row(&mut r, "layout", format!("{layout}, depth {}, count {}, {} bytes", i.depth, i.count, i.inline_len));
    row(&mut r, "attributes", if i.xattr_block == 0 { "none".into() } else { format!("block {}", i.xattr_block) });
    row(&mut r, "parent", i.parent);
    row(&mut r, "orphan slot", i.orphan_slot);
    row(&mut r, "entries", i.entries);
    body(&mut r, &i, &block);
    Ok(r)
}

/// What the body of an inode holds, by its layout.
fn body(r: &mut Rows, i: &Inode, block: &Block) {
    let used = &block.0[BODY_AT..BODY_AT + (i.inline_len as usize).min(BODY_BYTES)];
    match Layout::from_u8(i.layout) {
        Some(Layout::Extents) => {
            for n in 0..usize::from(i.count) {
                let Some(e) = block.view::<Extent>(BODY_AT + n * size_of::<Extent>()) else { return };
                let unwritten = if e.unwritten() { ", unwritten" } else { "" };
                let (from, to) = (e.physical, e.physical.saturating_add(u64::from(e.len)));
                row(r, format!("extent {}", e.logical), format!("{} blocks, {from} to {}{unwritten}", e.len, to.saturating_sub(1)));
            }
        }
        Some(Layout::ExtentTree | Layout::DirTree) => {
            for n in 0..usize::from(i.count) {
                let Some(e) = block.view::<Entry>(BODY_AT + n * size_of::<Entry>()) else { return };
                row(r, format!("child {n}"), format!("key {:#x}, block {}", e.key, e.child));
            }
        }
        Some(Layout::DirInline) => {
            for e in luna_format::dir::entries(i.parent, used) {
                match e {
                    Ok(e) => {
                        let text = format!("inode {}, generation {}, type {:#o}", e.head.ino, e.head.generation, e.head.kind);
                        row(r, format!("name {}", e.name.escape_ascii()), text);
                    }
                    Err(e) => row(r, "record", e),
                }
            }
        }
        _ => hex(r, block, BODY_AT),
    }
}

/// A journal: its header, and what replay would do.
fn journal(disk: &dyn Disk, volume: VolumeId, sb: &Superblock, n: u64) -> Result<Rows> {
    ensure!(n < u64::from(sb.slots), "there are slots 0 to {}", sb.slots - 1);
    let (slot, region) = (n as u16, sb.journal_region(n as u16));
    let mut r = header_rows(&read_block(disk, region.0)?, volume, region.0, Some(Kind::JournalHeader));
    row(&mut r, "region", format!("blocks {} to {}", region.0, region.0 + region.1 - 1));
    match luna_journal::inspect(disk, volume, region, slot) {
        Err(e) => row(&mut r, "header", e),
        Ok(h) => {
            row(&mut r, "state", if h.clean { "clean" } else { "dirty" });
            row(&mut r, "incarnation", h.incarnation);
            row(&mut r, "tail", format!("position {}, sequence {}", h.tail, h.tail_sequence));
        }
    }
    // planning reads only; nothing is applied here, so no proof about the owner is needed
    match luna_journal::plan(disk, volume, region, sb.homes(), slot, luna_journal::ReplayProof::FirstMount) {
        Err(e) => row(&mut r, "records", e),
        Ok(plan) => {
            row(&mut r, "records", plan.records());
            if let Some(g) = plan.gap() {
                row(&mut r, "damage", format!("record {} at position {}, but record {} is whole", g.missing, g.position, g.later));
            }
            for (block, image) in plan.images() {
                let h = image.header();
                let kind = Kind::from_u16(h.kind).map_or_else(|| h.kind.to_string(), |k| format!("{k:?}"));
                row(&mut r, format!("image {block}"), format!("{kind} of {}, version {}", h.owner, h.version));
            }
        }
    }
    Ok(r)
}

/// The header of any block, whether it checks, and the bytes behind it.
fn block_rows(disk: &dyn Disk, volume: VolumeId, n: u64) -> Result<Rows> {
    let total = disk.geometry().size_bytes / BLOCK_U64;
    ensure!(n < total, "the LUN has blocks 0 to {}", total - 1);
    let block = read_block(disk, n)?;
    let mut r = header_rows(&block, volume, n, None);
    let h = block.header();
    if let Ok(Some((head, frames))) = cluster::read_mail(&block, volume, n, h.writer) {
        row(&mut r, "mail", format!("number {}, {} frames", head.number, frames.len()));
    }
    hex(&mut r, &block, if h.magic == luna_format::MAGIC { HEADER_BYTES } else { 0 });
    Ok(r)
}

/// What a block says about itself, and whether it is true.
fn header_rows(block: &Block, volume: VolumeId, n: u64, wanted: Option<Kind>) -> Rows {
    let mut r = Rows::new();
    row(&mut r, "block", n);
    let h = block.header();
    if h.magic != luna_format::MAGIC {
        let zero = block.is_zero();
        row(&mut r, "content", if zero { "all zero" } else { "no metadata block (file data, or damaged beyond recognition)" });
        return r;
    }
    match luna_format::block::peek(block, &volume, n) {
        Ok(_) => row(&mut r, "check", "sound"),
        Err(e) => row(&mut r, "check", e),
    }
    let found = Kind::from_u16(h.kind);
    if let Some(wanted) = wanted.filter(|k| found != Some(*k)) {
        row(&mut r, "remark", format!("this is no {wanted:?}"));
    }
    row(&mut r, "kind", found.map_or_else(|| format!("unknown ({})", h.kind), |k| format!("{k:?}")));
    row(&mut r, "volume", uuid(&h.volume));
    row(&mut r, "written by", format!("slot {} in epoch {}", h.writer, h.epoch));
    row(&mut r, "owner", h.owner);
    row(&mut r, "version", h.version);
    r
}

/// The bytes from `from` on, without rows of zeroes.
fn hex(rows: &mut Rows, block: &Block, from: usize) {
    for (i, line) in block.0.chunks(32).enumerate() {
        let offset = i * 32;
        if offset >= from && line.iter().any(|b| *b != 0) {
            let text: Vec<String> = line.chunks(4).map(|w| w.iter().map(|b| format!("{b:02x}")).collect()).collect();
            row(rows, format!("{offset:04x}"), text.join(" "));
        }
    }
}
