//! One file per command; each is a thin parse over the crates that do the work.

pub mod confirm_dead;
pub mod dump;
pub mod fsck;
pub mod man;
pub mod mkfs;
pub mod mount;
pub mod serve;
pub mod status;
pub mod umount;
pub mod wreck;

use anyhow::{Context, Result};
use luna_format::Block;
use luna_lun::{Disk, Lun, LunSpec, OpenOptions};

/// Opens the LUN that `text` names, alone and for a tool.
pub fn open(text: &str, read_only: bool) -> Result<Lun> {
    let spec: LunSpec = text.parse().with_context(|| format!("'{text}' is no LUN"))?;
    let options = OpenOptions { read_only, connections: 1, reconnect: std::time::Duration::from_secs(5), ..OpenOptions::default() };
    luna_lun::open(&spec, &options).with_context(|| format!("cannot open LUN {text}"))
}

/// The block at address `n`.
pub fn read_block(disk: &dyn Disk, n: u64) -> Result<Block> {
    let mut block = Block::zeroed();
    disk.read_at(&mut block.0, n * luna_format::BLOCK_U64)?;
    Ok(block)
}

/// The look of every progress bar; it is drawn on a terminal only.
pub fn bar_style(what: &str) -> indicatif::ProgressStyle {
    let template = format!("{what} {{bar:30}} {{percent}} %");
    indicatif::ProgressStyle::with_template(&template).unwrap_or_else(|_| indicatif::ProgressStyle::default_bar())
}

/// A volume id the way UUIDs are written.
pub fn uuid(id: &[u8; 16]) -> String {
    let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
