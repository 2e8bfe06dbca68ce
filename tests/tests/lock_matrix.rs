//! Locks held × locks asked for, by processes on one host and on two: kinds, modes, every way two ranges can lie; what F_GETLK says of it; and every
//! way a wait can end. Against a local file system, where the same processes do the same.
//!
//! `flock` and `fcntl` share one space here (`docs/semantics.md`), so rows with both are known to differ.

use anyhow::{Context, ensure};
use luna_tests::{
    Cluster, Result, Setup,
    deviations::{Suite, excuse},
    io,
};
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::sleep,
    time::Duration,
};

const HAMMER: &str = env!("CARGO_BIN_EXE_luna-hammer");
const KINDS: [&str; 3] = ["process", "file", "flock"];
const MODES: [&str; 2] = ["shared", "exclusive"];
/// What is held when ranges count.
const HELD: (i64, i64) = (100, 50);
/// How the asked range lies to it.
const RANGES: &[(&str, (i64, i64))] = &[
    ("the same", (100, 50)),
    ("before", (10, 50)),
    ("up to it", (50, 50)),
    ("from its end", (150, 10)),
    ("over its begin", (90, 20)),
    ("over its end", (140, 20)),
    ("its last byte", (149, 1)),
    ("inside", (110, 10)),
    ("around", (50, 200)),
    ("to the end of the file", (120, 0)),
    ("behind, to the end", (150, 0)),
    ("everything", (0, 0)),
];

/// A process that locks.
struct Locker {
    child: Child,
    words: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Locker {
    fn start(file: &Path) -> Result<Self> {
        let mut child = Command::new(HAMMER).arg("locks").arg(file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let words = child.stdin.take().context("stdin")?;
        let said = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self { child, words, said })
    }

    fn tell(&mut self, words: &str) -> Result {
        Ok(writeln!(self.words, "{words}")?)
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        ensure!(!line.is_empty(), "a locker has ended");
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self, words: &str) -> Result<String> {
        self.tell(words)?;
        self.hear()
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two processes and where they are.
struct Two {
    holder: Locker,
    asker: Locker,
}

impl Two {
    fn start(one: &Path, other: &Path) -> Result<Self> {
        drop(io::buffered(one)?);
        Ok(Self { holder: Locker::start(one)?, asker: Locker::start(other)? })
    }

    /// What comes of a row: granted or not, and who is said to be in the way.
    fn play(&mut self, row: &Row) -> Result<String> {
        let held = self.holder.ask(&format!("try {} {} {} {}", row.held.0, row.held.1, HELD.0, HELD.1))?;
        ensure!(held == "true", "{}: the first lock: {held}", row.name);
        let (start, len) = row.range;
        let asked = self.asker.ask(&format!("try {} {} {start} {len}", row.asked.0, row.asked.1))?;
        let way = if row.asked.0 == "flock" {
            String::new()
        } else {
            self.asker.ask(&format!("get {} {} {start} {len}", row.asked.0, row.asked.1))?
        };
        self.holder.ask(&format!("try {} unlock 0 0", row.held.0))?;
        self.asker.ask(&format!("try {} unlock 0 0", row.asked.0))?;
        Ok(format!("granted {asked}, in the way: {way}"))
    }
}

/// One row of the table.
struct Row {
    name: String,
    held: (&'static str, &'static str),
    asked: (&'static str, &'static str),
    range: (i64, i64),
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let pairs = || KINDS.into_iter().flat_map(|k| MODES.into_iter().map(move |m| (k, m)));
    for held in pairs() {
        for asked in pairs() {
            // flock knows no ranges
            let ranges = if held.0 == "flock" || asked.0 == "flock" { &RANGES[..1] } else { RANGES };
            for (how, range) in ranges {
                let mixed = (held.0 == "flock") != (asked.0 == "flock");
                let kind = if mixed { "flock beside fcntl: " } else { "" };
                let name = format!("{kind}{} {} held, {} {} asked: {how}", held.0, held.1, asked.0, asked.1);
                rows.push(Row { name, held, asked, range: *range });
            }
        }
    }
    rows
}

fn two_hosts(name: &str) -> Result<Cluster> {
    Cluster::with(name, Setup { hosts: 2, bytes: 2 << 30, ..Setup::default() })
}

#[test]
fn held_and_asked() -> Result {
    let local = std::env::temp_dir().join(format!("lt-locks-{}", std::process::id()));
    let c = two_hosts("lockm")?;
    let mut here = Two::start(&local, &local)?;
    let mut same = Two::start(&c.path(0, "f"), &c.path(0, "f"))?;
    let mut other = Two::start(&c.path(0, "g"), &c.path(1, "g"))?;
    let (mut wrong, mut known, rows) = (Vec::new(), 0, rows());
    for row in &rows {
        let want = here.play(row)?;
        for (place, two) in [("one host", &mut same), ("two hosts", &mut other)] {
            let got = two.play(row)?;
            match excuse(Suite::Locks, &row.name) {
                _ if got == want => {}
                Some(_) => known += 1,
                None => wrong.push(format!("{place}: {}: {got}; locally {want}", row.name)),
            }
        }
    }
    println!("{} rows in two places, {known} deviations that are known", rows.len());
    drop((here, same, other));
    std::fs::remove_file(&local)?;
    ensure!(wrong.is_empty(), "{} differ:\n  {}", wrong.len(), wrong.join("\n  "));
    c.finish()
}

/// A wait ends when the lock is let go, by each of the ways to let go.
#[test]
fn waits_end() -> Result {
    let c = two_hosts("lockw")?;
    for n in [0, 1] {
        for kind in KINDS {
            for way in ["unlock", "downgrade", "close", "death"] {
                // a file of its own: the end of the last owner is told a moment after it
                let file = format!("f-{n}-{kind}-{way}");
                let mut two = Two::start(&c.path(0, &file), &c.path(n, &file))?;
                let what = format!("asker on host {n}, {kind}, by {way}");
                ensure!(two.holder.ask(&format!("try {kind} exclusive 0 0"))? == "true", "{what}: the first lock");
                two.asker.tell(&format!("wait {kind} shared 0 10"))?;
                sleep(Duration::from_millis(20));
                match way {
                    "unlock" => drop(two.holder.ask(&format!("try {kind} unlock 0 0"))?),
                    "downgrade" => drop(two.holder.ask(&format!("try {kind} shared 0 0"))?),
                    "close" => drop(two.holder.ask("reopen")?),
                    _ => two.holder.child.kill()?,
                }
                ensure!(two.asker.hear()? == "true", "{what}: the wait ended otherwise");
            }
        }
    }
    c.finish()
}

/// Two processes that wait for each other on one file: one of them is told.
#[test]
fn a_deadlock_is_told() -> Result {
    let c = two_hosts("lockd")?;
    for n in [0, 1] {
        let file = format!("f{n}");
        let mut two = Two::start(&c.path(0, &file), &c.path(n, &file))?;
        ensure!(two.holder.ask("try process exclusive 0 1")? == "true" && two.asker.ask("try process exclusive 1 1")? == "true", "held");
        two.holder.tell("wait process exclusive 1 1")?;
        sleep(Duration::from_millis(100));
        let told = two.asker.ask("wait process exclusive 0 1")?;
        ensure!(told == "EDEADLK", "the one that closed the circle: {told}");
        two.asker.ask("try process unlock 0 0")?;
        ensure!(two.holder.hear()? == "true", "the other gets its lock then");
    }
    c.finish()
}
