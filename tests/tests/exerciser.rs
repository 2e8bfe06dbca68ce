//! Random operations on one file against a model of its bytes (`luna_tests::exerciser`): on one host, alternating between two hosts, and several
//! processes at once on files and ranges of their own. `LUNA_FSX_OPS=100000 LUNA_FSX_SEED=7` makes more of it, from a seed.

use anyhow::ensure;
use luna_tests::{
    Cluster, Result, Setup,
    exerciser::{Plan, exercise},
    io,
};
use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

const HAMMER: &str = env!("CARGO_BIN_EXE_luna-hammer");

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Operations and first seed.
fn how_much(usual: u64) -> (u64, u64) {
    let seed = number("LUNA_FSX_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    (number("LUNA_FSX_OPS").unwrap_or(usual), seed)
}

fn cluster(name: &str, hosts: usize) -> Result<Cluster> {
    let life = Duration::from_secs(150.max(number("LUNA_FSX_OPS").unwrap_or(0) / 20));
    Cluster::with(name, Setup { hosts, life, bytes: 4 << 30, ..Setup::default() })
}

/// The exerciser itself: a local file system must pass, and two files that are taken for one must not.
#[test]
fn a_local_file_system() -> Result {
    let (ops, seed) = how_much(2000);
    let dir = std::env::temp_dir().join(format!("lt-fsx-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("f");
    exercise(&Plan::whole(seed, ops), &[path.clone(), path])?;
    for name in ["one", "another"] {
        std::fs::write(dir.join(name), "")?;
    }
    ensure!(exercise(&Plan::whole(seed, ops), &[dir.join("one"), dir.join("another")]).is_err(), "two files pass for one");
    Ok(std::fs::remove_dir_all(&dir)?)
}

#[test]
fn one_host() -> Result {
    let c = cluster("fsx1", 1)?;
    let (ops, seed) = how_much(3000);
    println!("seed {seed}");
    exercise(&Plan::whole(seed, ops), &[c.path(0, "f")])?;
    c.finish()
}

#[test]
fn two_hosts_in_turn() -> Result {
    let c = cluster("fsx2", 2)?;
    let (ops, seed) = how_much(2500);
    println!("seed {seed}");
    exercise(&Plan::whole(seed, ops), &[c.path(0, "f"), c.path(1, "f")])?;
    c.finish()
}

/// Five processes: two on ranges of one file through different hosts, one on a third range through both, two on files of their own.
#[test]
fn processes_on_two_hosts() -> Result {
    const SPAN: usize = 512 << 10;
    let c = cluster("fsxp", 2)?;
    let (ops, seed) = how_much(600);
    println!("seed {seed}");
    let shared = io::buffered(&c.path(0, "shared"))?;
    shared.set_len(3 * SPAN as u64)?;
    drop(shared);
    let (a, b) = (|n: &str| c.path(0, n), |n: &str| c.path(1, n));
    // range (none: a file of its own), paths
    let table: [(Option<usize>, Vec<PathBuf>); 5] = [
        (Some(0), vec![a("shared")]),
        (Some(1), vec![b("shared")]),
        (Some(2), vec![a("shared"), b("shared")]),
        (None, vec![a("own1")]),
        (None, vec![b("own2"), a("own2")]),
    ];
    let mut running = Vec::new();
    for (n, (range, paths)) in table.iter().enumerate() {
        let range = range.map_or_else(|| "whole".to_owned(), |r| format!("{}", r * SPAN));
        let mut command = Command::new(HAMMER);
        command.args(["exercise", &(seed + n as u64).to_string(), &ops.to_string(), &range, &SPAN.to_string()]).args(paths);
        running.push(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?);
    }
    for (n, child) in running.into_iter().enumerate() {
        let out = child.wait_with_output()?;
        ensure!(out.status.success(), "process {n}: {}", String::from_utf8_lossy(&out.stderr));
    }
    c.finish()
}
