//! `luna fsck`: checks a volume and prints what it finds, one line each on stdout. Exit codes are those of fsck(8).
//!
//! `-n` (and no flag at all) checks. `-p`/`-a`, as a boot uses it, takes a short look and answers 0 at once when the volume
//! was left in order or is in use by hosts; otherwise it checks. `-y` checks. What would have to be repaired is reported: this
//! version repairs nothing, says so in one line, and exits 8.
//!
//! Invariant: the LUN is opened read-only, whatever the flag, so nothing is ever written. Not here: the checks (fs crate).

use crate::cli::FsckArgs;
use luna_fs::check::{self, CheckOptions, Finding, Progress, Quick, Severity, Summary};
use luna_lun::Disk;
use std::{cell::Cell, io::Write};

/// fsck(8): no errors.
const CLEAN: u8 = 0;
/// fsck(8): errors left uncorrected.
const ERRORS_LEFT: u8 = 4;
/// fsck(8): operational error.
pub const OPERATIONAL: u8 = 8;
/// fsck(8): usage or syntax error.
pub const USAGE: u8 = 16;

/// Findings of one code that are printed; the summary counts all.
const PRINTED: u64 = 1000;

/// Runs the command; the exit code.
pub fn run(args: &FsckArgs) -> u8 {
    match check(args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("luna: {}", crate::one_line(&e));
            OPERATIONAL
        }
    }
}

fn check(args: &FsckArgs) -> anyhow::Result<u8> {
    let lun = super::open(&args.lun, true)?;
    if args.preen {
        match check::quick(&*lun.disk)? {
            Quick::Clean => return short(args, "clean"),
            Quick::InUse(n) => return short(args, &format!("in use by {n} hosts, not checked")),
            Quick::Look(why) => eprintln!("luna: {}: not left in order, checking it: {why}", args.lun),
        }
    }
    let (summary, findings) = walk(&*lun.disk, args)?;
    report(args, &summary, &findings)?;
    if summary.is_clean() {
        return Ok(CLEAN);
    }
    if args.preen || args.yes {
        eprintln!("luna: {}: this version of fsck cannot repair; nothing was changed, check with -n and restore what is listed", args.lun);
        return Ok(OPERATIONAL);
    }
    Ok(ERRORS_LEFT)
}

/// The answer of the short look.
fn short(args: &FsckArgs, state: &str) -> anyhow::Result<u8> {
    if args.json {
        writeln!(std::io::stdout(), "{}", serde_json::json!({ "lun": args.lun, "state": state, "findings": [] }))?;
    } else {
        writeln!(std::io::stdout(), "{}: {state}", args.lun)?;
    }
    Ok(CLEAN)
}

/// Checks, with a progress bar; findings are printed as they come, or kept for JSON.
fn walk(disk: &dyn Disk, args: &FsckArgs) -> anyhow::Result<(Summary, Vec<Finding>)> {
    let bar = indicatif::ProgressBar::new(1).with_style(super::bar_style("{msg:>21}"));
    let pass = Cell::new("");
    let hear = |p: Progress| {
        if pass.replace(p.pass) != p.pass {
            bar.set_message(p.pass);
        }
        bar.set_length(p.total);
        bar.set_position(p.done);
    };
    let options = CheckOptions { max_per_code: PRINTED, progress: Some(&hear), ..CheckOptions::default() };
    let (mut kept, mut failed) = (Vec::new(), None);
    let summary = check::run(disk, &options, &mut |f| {
        if args.json {
            kept.push(f);
        } else if let Err(e) = bar.suspend(|| writeln!(std::io::stdout(), "{f}")) {
            failed.get_or_insert(e);
        }
    });
    bar.finish_and_clear();
    match failed {
        Some(e) => Err(e.into()),
        None => Ok((summary?, kept)),
    }
}

fn report(args: &FsckArgs, s: &Summary, findings: &[Finding]) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", json(args, s, findings))?;
        return Ok(());
    }
    for (code, n) in s.counts.iter().filter(|(_, n)| **n > PRINTED) {
        writeln!(out, "{code}: {n} in all, the first {PRINTED} are listed")?;
    }
    let state = if s.is_clean() { "clean" } else { "NOT clean" };
    writeln!(
        out,
        "{}: {state}; {} inodes ({} directories, {} orphans), {} of {} blocks in use; {} errors, {} minor, {} notes",
        args.lun,
        s.inodes,
        s.directories,
        s.orphans,
        s.reached,
        s.blocks,
        s.of(Severity::Error),
        s.of(Severity::Minor),
        s.of(Severity::Note)
    )?;
    Ok(())
}

fn json(args: &FsckArgs, s: &Summary, findings: &[Finding]) -> serde_json::Value {
    let one = |f: &Finding| {
        serde_json::json!({
            "code": f.code.as_str(), "severity": f.severity.word(), "what": f.code.line(), "text": f.text,
            "block": f.place.block, "inode": f.place.ino, "group": f.place.group, "slot": f.place.slot, "path": f.place.path,
        })
    };
    let counts: serde_json::Map<String, serde_json::Value> = s.counts.iter().map(|(c, n)| (c.to_string(), (*n).into())).collect();
    serde_json::json!({
        "lun": args.lun,
        "state": if s.is_clean() { "clean" } else { "not clean" },
        "findings": findings.iter().map(one).collect::<Vec<_>>(),
        "summary": {
            "inodes": s.inodes, "directories": s.directories, "orphans": s.orphans, "blocks": s.blocks, "reached": s.reached,
            "errors": s.of(Severity::Error), "minor": s.of(Severity::Minor), "notes": s.of(Severity::Note), "counts": counts,
        },
    })
}
