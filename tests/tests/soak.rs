//! The soak in short: three hosts, disks and small files, a move, a cable pulled for a moment, the target restarted, a host killed; all verified.
//! Hours of it: `make soak HOURS=h`.

use anyhow::ensure;
use luna_tests::{Result, run};

#[test]
fn a_short_one() -> Result {
    let out = run(env!("CARGO_BIN_EXE_luna-soak"), &["--short"])?;
    ensure!(out.code == 0, "it ended with {}: {}{}", out.code, out.out, out.err);
    ensure!(out.out.trim_end().ends_with("soak: held"), "no verdict: {}", out.out);
    println!("{}", out.out);
    Ok(())
}
