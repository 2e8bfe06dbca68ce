//! One of many processes that work in the same directory; the tests start it, several times on several hosts.
//!
//! `luna-hammer names DIR ID OPS SEED`: creates, renames and deletes files named after ID, at random, and prints at the end
//! what it believes is there, one `name content` a line, for the test to compare. On the way it also fights with the other
//! processes over shared names, and prints `won NAME` for each exclusive creation it won.
//!
//! `luna-hammer append FILE ID COUNT`: appends COUNT lines with O_APPEND, one write each.
//!
//! `luna-hammer add FILE COUNT`: adds one to the number in FILE, COUNT times, under a POSIX lock.
//!
//! `luna-hammer exercise SEED OPS whole|BASE SPAN FILE...`: random operations on FILE (a path a mount), or on SPAN bytes of it from BASE.
//!
//! `luna-hammer locks FILE`: does what stdin says to FILE, a line each, and prints what came of it: `try|wait|get KIND MODE START LEN`, `reopen`.
//!
//! `luna-hammer hold flock|process|file FILE`: locks FILE, prints `held`, and sleeps until it is killed.

use anyhow::{Context, Result, bail, ensure};
use luna_tests::{
    exerciser::{Plan, exercise},
    posix,
};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::FileExt,
    path::Path,
};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["names", dir, id, ops, seed] => names(Path::new(dir), id, ops.parse()?, seed.parse()?),
        ["append", file, id, count] => append(Path::new(file), id, count.parse()?),
        ["add", file, count] => add(Path::new(file), count.parse()?),
        ["locks", file] => locks(Path::new(file)),
        ["hold", kind, file] => hold(kind, Path::new(file)),
        ["exercise", seed, ops, base, span, ref files @ ..] => {
            let base = if base == "whole" { None } else { Some(base.parse()?) };
            let whole = Plan::whole(seed.parse()?, ops.parse()?);
            let plan = base.map_or(Ok(whole.clone()), |base| span.parse().map(|span| Plan { base, span, fixed: true, ..whole }))?;
            exercise(&plan, &files.iter().map(Into::into).collect::<Vec<_>>())
        }
        _ => bail!("names DIR ID OPS SEED | append FILE ID COUNT | add FILE COUNT | hold flock|process|file FILE"),
    }
}

/// Names that every process fights for.
const SHARED: usize = 20;

fn names(dir: &Path, id: &str, ops: u32, seed: u64) -> Result<()> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut mine: BTreeMap<String, String> = BTreeMap::new();
    let mut next = 0;
    for op in 0..ops {
        match rng.u32(..10) {
            0..5 => {
                let (name, content) = (format!("{id}-{next}"), format!("{id}.{op}"));
                next += 1;
                let mut file =
                    OpenOptions::new().write(true).create_new(true).open(dir.join(&name)).with_context(|| format!("create {name}"))?;
                file.write_all(content.as_bytes())?;
                mine.insert(name, content);
            }
            5..8 if !mine.is_empty() => {
                let old = pick(&mut rng, &mine);
                // sometimes onto a file that is there
                let new = if rng.bool() { pick(&mut rng, &mine) } else { format!("{id}-r{op}") };
                fs::rename(dir.join(&old), dir.join(&new)).with_context(|| format!("rename {old} to {new}"))?;
                if let Some(content) = mine.remove(&old) {
                    mine.insert(new, content);
                }
            }
            8..10 if !mine.is_empty() => {
                let name = pick(&mut rng, &mine);
                fs::remove_file(dir.join(&name)).with_context(|| format!("remove {name}"))?;
                mine.remove(&name);
            }
            _ => {}
        }
        contend(dir, id, (op as usize) % SHARED, op)?;
    }
    let mut out = String::new();
    for (name, content) in &mine {
        out += &format!("have {name} {content}\n");
        let there = fs::read_to_string(dir.join(name)).with_context(|| format!("read {name}"))?;
        ensure!(there == *content, "{name} holds '{there}', not '{content}'");
    }
    print!("{out}");
    Ok(())
}

fn pick(rng: &mut fastrand::Rng, mine: &BTreeMap<String, String>) -> String {
    mine.keys().nth(rng.usize(..mine.len())).cloned().unwrap_or_default()
}

/// Exclusive creation has one winner; a name that many rename onto is never missing and never half.
fn contend(dir: &Path, id: &str, n: usize, op: u32) -> Result<()> {
    match OpenOptions::new().write(true).create_new(true).open(dir.join(format!("first-{n}"))) {
        Ok(_) => println!("won first-{n}"),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e).context("create a shared name"),
    }
    if op.is_multiple_of(5) {
        let (temp, target) = (dir.join(format!("{id}.tmp")), dir.join("target"));
        fs::write(&temp, format!("{id:->64}"))?;
        fs::rename(&temp, &target).context("rename onto the shared name")?;
        let seen = fs::read_to_string(&target).context("the shared name is missing")?;
        ensure!(seen.len() == 64, "the shared name holds {} bytes of 64", seen.len());
    }
    Ok(())
}

fn append(file: &Path, id: &str, count: u32) -> Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(file)?;
    for n in 0..count {
        // lengths differ, so that a lost or doubled byte shows
        let line = format!("{id} {n} {}\n", "x".repeat((n as usize * 7) % 200));
        let wrote = file.write(line.as_bytes())?;
        ensure!(wrote == line.len(), "a short append");
    }
    Ok(())
}

fn add(path: &Path, count: u32) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    for _ in 0..count {
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        let n = number(&file)?;
        file.write_all_at(format!("{:>16}", n + 1).as_bytes(), 0)?;
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::Unlock)?;
    }
    Ok(())
}

fn hold(kind: &str, path: &Path) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let held = match kind {
        "flock" => posix::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?,
        "process" => posix::process_lock(&file, posix::Mode::Exclusive, (0, 0))?,
        "file" => posix::file_lock(&file, posix::Mode::Exclusive, (0, 0))?,
        _ => bail!("no kind of lock: {kind}"),
    };
    ensure!(held, "somebody else has a lock on {}", path.display());
    println!("held");
    loop {
        std::thread::park();
    }
}

/// Locks as told, until stdin ends.
fn locks(path: &Path) -> Result<()> {
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = open()?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let said = match words[..] {
            ["reopen"] => {
                drop(file);
                file = open()?;
                "true".to_owned()
            }
            [verb, kind, mode, start, len] => match lock(&file, verb, kind, mode, (start.parse()?, len.parse()?)) {
                Ok(said) => said,
                Err(e) => luna_tests::matrix::errno_name(&e),
            },
            _ => bail!("not understood: {line}"),
        };
        println!("{said}");
    }
    Ok(())
}

fn lock(file: &File, verb: &str, kind: &str, mode: &str, range: posix::Range) -> std::io::Result<String> {
    use rustix::fs::FlockOperation as F;
    let (how, whole, waited) = match mode {
        "shared" => (posix::Mode::Shared, F::NonBlockingLockShared, F::LockShared),
        "exclusive" => (posix::Mode::Exclusive, F::NonBlockingLockExclusive, F::LockExclusive),
        _ => (posix::Mode::Unlock, F::NonBlockingUnlock, F::Unlock),
    };
    let granted = match (verb, kind) {
        ("get", kind) => return posix::in_the_way(file, kind == "file", how, range),
        ("try", "flock") => posix::flock(file, whole)?,
        ("try", "file") => posix::file_lock(file, how, range)?,
        ("try", _) => posix::process_lock(file, how, range)?,
        (_, "flock") => posix::flock(file, waited)?,
        (_, "file") => posix::file_lock_wait(file, how, range).map(|()| true)?,
        _ => posix::process_lock_wait(file, how, range).map(|()| true)?,
    };
    Ok(granted.to_string())
}

fn number(file: &File) -> Result<u64> {
    let mut text = [0; 16];
    file.read_exact_at(&mut text, 0)?;
    std::str::from_utf8(&text)?.trim().parse().context("not a number")
}
