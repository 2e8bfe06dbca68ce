//! `luna man DIR`: man pages from the same definition as `--help`.

use crate::cli::Cli;
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::path::Path;

/// Writes `luna.8` and one page per command.
pub fn run(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let root = Cli::command();
    write(dir, root.clone(), "luna")?;
    for sub in root.get_subcommands().filter(|s| !s.is_hide_set()) {
        let name = format!("luna-{}", sub.get_name());
        write(dir, sub.clone().display_name(name.clone()), &name)?;
    }
    // mkfs(8) and its kin look for these names
    for name in ["mkfs", "fsck", "mount"] {
        let page = dir.join(format!("{name}.luna.8"));
        std::fs::write(&page, format!(".so man8/luna-{name}.8\n")).with_context(|| format!("cannot write {}", page.display()))?;
    }
    Ok(())
}

fn write(dir: &Path, command: clap::Command, name: &str) -> Result<()> {
    let path = dir.join(format!("{name}.8"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command).section("8").render(&mut page)?;
    std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}
