//! `luna dump`: prints on-disk structures, as they are, for people who debug. Reads only.
//!
//! Every dump names the block it came from and says whether the block passed its check. Not here: judging a volume (fsck).

use super::{read_block, uuid};
use crate::{cli::DumpArgs, slots};
use anyhow::{Context, Result, bail, ensure};
use luna_format::{
    BLOCK_U64, Block, HEADER_BYTES, Kind, VolumeId,
    cluster::{self, untext},
    superblock::Superblock,
};
use luna_lun::Disk;

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
        ["group", n] => {
            let n = number(n)?;
            ensure!(n < sb.ag_count, "there are groups 0 to {}", sb.ag_count - 1);
            let (start, len) = sb.ag_region(n);
            let mut rows = block_rows(disk, volume, start, Some(Kind::AgHeader))?;
            row(&mut rows, "region", format!("blocks {start} to {}", start + len - 1));
            rows
        }
        ["inode", n] => block_rows(disk, volume, number(n)?, Some(Kind::Inode))?,
        ["journal", n] => {
            let n = number(n)?;
            ensure!(n < u64::from(sb.slots), "there are slots 0 to {}", sb.slots - 1);
            let (start, len) = sb.journal_region(n as u16);
            let mut rows = block_rows(disk, volume, start, None)?;
            row(&mut rows, "region", format!("blocks {start} to {}", start + len - 1));
            rows
        }
        ["block", n] => block_rows(disk, volume, number(n)?, None)?,
        _ => bail!("cannot dump '{}'; superblock, slots, group N, inode N, journal N or block N can be", what.join(" ")),
    };
    if args.json {
        let map: serde_json::Map<String, serde_json::Value> = rows.into_iter().map(|(k, v)| (k, v.into())).collect();
        println!("{}", serde_json::Value::Object(map));
    } else {
        for (key, value) in rows {
            println!("{key:<22}{value}");
        }
    }
    Ok(())
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

/// The header of any block, whether it checks, and the bytes behind it.
fn block_rows(disk: &dyn Disk, volume: VolumeId, n: u64, kind: Option<Kind>) -> Result<Rows> {
    let total = disk.geometry().size_bytes / BLOCK_U64;
    ensure!(n < total, "the LUN has blocks 0 to {}", total - 1);
    let block = read_block(disk, n)?;
    let mut r = Rows::new();
    row(&mut r, "block", n);
    if block.0.iter().all(|b| *b == 0) {
        row(&mut r, "content", "all zero");
        return Ok(r);
    }
    let h = block.header();
    if h.magic != luna_format::MAGIC {
        row(&mut r, "content", "no metadata block (file data, or damaged beyond recognition)");
        hex(&mut r, &block, 0);
        return Ok(r);
    }
    match luna_format::block::peek(&block, &volume, n) {
        Ok(_) => row(&mut r, "check", "sound"),
        Err(e) => row(&mut r, "check", e),
    }
    let found = Kind::from_u16(h.kind);
    if let Some(wanted) = kind.filter(|k| found != Some(*k)) {
        row(&mut r, "remark", format!("this is no {wanted:?}"));
    }
    row(&mut r, "kind", found.map_or(format!("unknown ({})", h.kind), |k| format!("{k:?}")));
    row(&mut r, "volume", uuid(&h.volume));
    row(&mut r, "written by", format!("slot {} in epoch {}", h.writer, h.epoch));
    row(&mut r, "owner", h.owner);
    row(&mut r, "version", h.version);
    if found == Some(Kind::Inode)
        && let Some(inode) = block.view::<luna_format::inode::Inode>(HEADER_BYTES)
    {
        row(&mut r, "inode", format!("{inode:?}"));
    }
    if let Ok(Some((head, frames))) = cluster::read_mail(&block, volume, n, h.writer) {
        row(&mut r, "mail", format!("number {}, {} frames", head.number, frames.len()));
    }
    hex(&mut r, &block, HEADER_BYTES);
    Ok(r)
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
