//! `luna fsck`: checks a volume that no host has mounted. Exit codes are those of fsck(8).
//!
//! Each finding is one line: code, severity, place, what was expected and found; `docs/checks.md` has a paragraph for every
//! code. `-n` also looks at a volume that hosts have mounted, and says so. `-p` (at boot) takes the short look first and the long one only if that finds a reason. There is no repair yet:
//! `-p` and `-y` check, say what is left, and exit 8.
//!
//! Invariant: the LUN is opened read-only, so nothing here can write. Not here: the checks (fs crate).

use crate::{cli::FsckArgs, size::human, slots};
use anyhow::{Context, Result};
use luna_fs::check::{self, CheckOptions, Finding, Progress, Quick, Severity, Summary};
use luna_lun::Disk;
use serde_json::json;
use std::io::Write;

/// fsck(8): no errors.
pub const CLEAN: u8 = 0;
/// fsck(8): errors left uncorrected.
pub const LEFT: u8 = 4;
/// fsck(8): operational error.
pub const OPERATIONAL: u8 = 8;
/// fsck(8): usage or syntax error.
pub const USAGE: u8 = 16;

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

fn check(args: &FsckArgs) -> Result<u8> {
    let lun = super::open(&args.lun, true)?;
    let disk = &*lun.disk;
    if args.preen {
        match check::quick(disk)? {
            Quick::Clean => {
                say(args, &json!({ "lun": args.lun, "clean": true, "checked": "short" }), &format!("{}: clean", args.lun));
                return Ok(CLEAN);
            }
            // other hosts use it: that is no reason for this host not to boot
            Quick::InUse(n) => {
                let text = format!("{}: in use by {n} hosts, not checked", args.lun);
                say(args, &json!({ "lun": args.lun, "clean": null, "in_use": n }), &text);
                return Ok(CLEAN);
            }
            Quick::Look(why) => eprintln!("luna: {}: {why}; checking", args.lun),
        }
    }
    let (id, sb) = luna_fs::mkfs::read_superblock(disk)?;
    let live = slots::live(disk, id, &sb)?;
    if !live.is_empty() && args.no_write {
        eprintln!("luna: {} is mounted right now by {}: findings may be gone a moment later", args.lun, live.join(", "));
    } else if !live.is_empty() {
        anyhow::bail!(
            "{} is mounted right now by {}; a check would race with them; unmount it there first, or look with -n",
            args.lun,
            live.join(", ")
        );
    }
    walk(args, disk)
}

/// The long look.
fn walk(args: &FsckArgs, disk: &dyn Disk) -> Result<u8> {
    let bar = indicatif::ProgressBar::new(1).with_style(super::bar_style("{msg}"));
    let hear = |p: Progress| {
        bar.set_message(p.pass);
        bar.set_length(p.total.max(1));
        bar.set_position(p.done);
    };
    let mut findings: Vec<Finding> = Vec::new();
    let options = CheckOptions { progress: Some(&hear), ..CheckOptions::default() };
    let summary = check::run(disk, &options, &mut |f| {
        if !args.json {
            bar.suspend(|| line(&f));
        }
        findings.push(f);
    });
    bar.finish_and_clear();
    let summary = summary.with_context(|| format!("cannot check {}", args.lun))?;
    let (errors, minor) = (summary.of(Severity::Error), summary.of(Severity::Minor));
    let verdict = if summary.is_clean() { "clean".to_owned() } else { format!("{errors} errors, {minor} minor findings") };
    let text = format!(
        "{}: {verdict}; {} inodes, {} directories, {} of {} in use",
        args.lun,
        summary.inodes,
        summary.directories,
        human(summary.reached * luna_format::BLOCK_U64),
        human(summary.blocks * luna_format::BLOCK_U64)
    );
    if !args.json {
        let more = summary.counts.iter().filter(|(_, n)| **n > options.max_per_code);
        more.for_each(|(code, n)| line(&format_args!("{code}: {n} findings in all, the first {} are listed", options.max_per_code)));
    }
    say(args, &as_json(args, &summary, &findings), &text);
    if summary.is_clean() {
        return Ok(CLEAN);
    }
    if args.preen || args.yes {
        eprintln!("luna: {}: this version finds errors but cannot repair them; nothing was changed", args.lun);
        return Ok(OPERATIONAL);
    }
    Ok(LEFT)
}

fn as_json(args: &FsckArgs, s: &Summary, findings: &[Finding]) -> serde_json::Value {
    let one = |f: &Finding| {
        let p = &f.place;
        json!({
            "code": f.code.as_str(), "severity": f.severity.word(), "text": f.text, "block": p.block, "inode": p.ino,
            "group": p.group, "slot": p.slot, "path": p.path,
        })
    };
    let counts: serde_json::Map<String, serde_json::Value> = s.counts.iter().map(|(c, n)| (c.as_str().to_owned(), json!(n))).collect();
    json!({
        "lun": args.lun, "clean": s.is_clean(), "checked": "long", "directories": s.directories, "inodes": s.inodes,
        "orphans": s.orphans, "blocks": s.blocks, "reached": s.reached, "counts": counts,
        "findings": findings.iter().map(one).collect::<Vec<_>>(),
    })
}

fn say(args: &FsckArgs, value: &serde_json::Value, text: &str) {
    if args.json { line(value) } else { line(&text) }
}

/// One line on stdout. Whoever closes it early (`| head`) still gets the exit code.
fn line(text: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
