//! The demo itself, as people run it, once with whatever machine can be had and once with a plain writer.

use anyhow::ensure;
use luna_tests::{Result, luna_bin, run};

fn demo(args: &[&str]) -> Result<String> {
    let bin = luna_bin().display().to_string();
    let mut all = vec!["demo"];
    all.extend(args);
    let out = run(&bin, &all)?.ok("luna demo")?;
    ensure!(out.out.contains("All of it worked"), "the demo ends with: {}", out.out);
    Ok(out.out)
}

#[test]
fn the_whole_story() -> Result {
    let told = demo(&[])?;
    ensure!(told.contains("without a gap"), "the counter was not proven: {told}");
    Ok(())
}

#[test]
fn with_four_hosts_and_no_guest() -> Result {
    let dir = std::env::temp_dir().join(format!("ld-{}", std::process::id()));
    let shown = dir.display().to_string();
    let told = demo(&["--hosts", "4", "--no-vm", "--dir", &shown])?;
    ensure!(told.contains("host-d") && told.contains("plain writer process"), "{told}");
    let left = std::fs::read_dir(&dir)?.count();
    std::fs::remove_dir_all(&dir)?;
    ensure!(left == 0, "the demo left {left} things behind");
    Ok(())
}
