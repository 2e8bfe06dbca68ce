//! `luna fsck`: checks a volume, and repairs it. Exit codes are those of fsck(8).
//!
//! Each finding is one line: code, severity, place, what was expected and found; each repair is one line too: what was done, and what was
//! lost by it. `docs/checks.md` has a paragraph for every code. `-n` also looks at a volume that hosts have mounted: if it finds
//! something, once more while they leave the metadata alone. `-p` (at boot) takes the short look first and the long one only if that finds
//! a reason; it repairs when that loses nothing and takes no decision, and leaves everything as it is otherwise. `-y` repairs everything.
//!
//! Invariant: with `-n` the LUN is opened read-only, so nothing can write; otherwise nothing is written before the volume is this program's
//! alone (`exclusive`). Not here: the checks and the repairs (fs crate).

use crate::{cli::FsckArgs, control, exclusive, mounts, size::human, slots};
use anyhow::{Context, Result};
use luna_fs::check::{self, CheckOptions, Code, Finding, Place, Progress, Quick, Severity, Summary};
use luna_fs::repair::{self, Did, Event, Level, Outcome, RepairError, RepairOptions};
use luna_lun::Disk;
use serde_json::json;
use std::{io::Write, path::PathBuf, time::Duration};

/// fsck(8): no errors.
pub const CLEAN: u8 = 0;
/// fsck(8): errors corrected.
pub const CORRECTED: u8 = 1;
/// fsck(8): errors left uncorrected.
pub const LEFT: u8 = 4;
/// fsck(8): operational error.
pub const OPERATIONAL: u8 = 8;
/// fsck(8): usage or syntax error.
pub const USAGE: u8 = 16;

/// For how long the hosts may be kept from changing metadata, so that a look at a mounted volume stands.
const FREEZE: Duration = Duration::from_secs(10);
/// Between two looks whether another repair is done.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Findings of one code that are printed while repairing; further ones are only counted.
const MAX_LINES: u64 = 1000;

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
    let repairs = args.preen || args.yes;
    let lun = super::open(&args.lun, !repairs)?;
    let disk = &*lun.disk;
    loop {
        if args.preen
            && let Some(code) = short(args, disk)?
        {
            return Ok(code);
        }
        if !repairs {
            break;
        }
        match exclusive::alone(&lun, &args.lun, |disk| mend(args, disk)) {
            // hosts that boot at one time all get here: one repairs, the others wait for it
            Err(e) if args.preen && exclusive::is_busy(&e) => {
                eprintln!("luna: {}; waiting until that is done", crate::one_line(&e));
                let (id, _) = luna_fs::mkfs::read_superblock(disk)?;
                while exclusive::repairer(disk, id)?.is_some() {
                    std::thread::sleep(LOOK_AGAIN);
                }
            }
            result => return result,
        }
    }
    let (id, sb) = luna_fs::mkfs::read_superblock(disk)?;
    let Some(how) = slots::in_use(disk, id, &sb)? else {
        let (summary, findings) = look(args, disk, !args.json)?;
        return Ok(report(args, &summary, &findings));
    };
    anyhow::ensure!(args.no_write, "{} is {how}; a check would race with that; end it first, or look with -n", args.lun);
    look_at_live(args, disk, &id, &how)
}

/// The short look of `-p`; the exit code, if that was all.
fn short(args: &FsckArgs, disk: &dyn Disk) -> Result<Option<u8>> {
    match check::quick(disk)? {
        Quick::Clean => say(args, &json!({ "lun": args.lun, "clean": true, "checked": "short" }), &format!("{}: clean", args.lun)),
        // other hosts use it: that is no reason for this host not to boot
        Quick::InUse(n) => {
            let text = format!("{}: in use by {n} hosts, not checked", args.lun);
            say(args, &json!({ "lun": args.lun, "clean": null, "in_use": n }), &text);
        }
        Quick::Look(why) => {
            eprintln!("luna: {}: {why}; checking", args.lun);
            return Ok(None);
        }
    }
    Ok(Some(CLEAN))
}

/// A look at a volume that hosts change meanwhile. What is read block by block is no state that the volume was ever in, so a first look
/// only says whether there is a reason for a second; that one is made while all hosts leave the metadata alone.
fn look_at_live(args: &FsckArgs, disk: &dyn Disk, id: &luna_format::VolumeId, how: &str) -> Result<u8> {
    let (mut summary, mut findings) = look(args, disk, false)?;
    let mut doubt = None;
    if !summary.is_clean() {
        if let Some(dir) = mounted_here(id) {
            let freeze = control::freeze(&dir, FREEZE)?;
            let seen = look(args, disk, false);
            let stood_still = freeze.thaw();
            (summary, findings) = seen?;
            let why = || format!("the look took longer than {} s, for which the hosts stood still", FREEZE.as_secs());
            doubt = (!stood_still).then(why);
        } else {
            doubt = Some(format!("it is {how}, and not mounted here (on a host that has it mounted a report stands)"));
        }
    }
    if let Some(why) = doubt {
        eprintln!("luna: {}: {why}: findings may be gone a moment later", args.lun);
    }
    if !args.json {
        findings.iter().for_each(|f| line(f));
    }
    Ok(report(args, &summary, &findings))
}

/// Where the volume is mounted on this host.
fn mounted_here(id: &luna_format::VolumeId) -> Option<PathBuf> {
    let id = super::uuid(id).replace('-', "");
    let is_it = |dir: &PathBuf| {
        let status = control::ask(dir, "status").ok().and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
        status.is_some_and(|s| s["volume"]["id"] == id)
    };
    mounts::ours().ok()?.into_iter().map(|m| m.dir).find(is_it)
}

/// The bar of a check or a repair.
fn bar() -> indicatif::ProgressBar {
    indicatif::ProgressBar::new(1).with_style(super::bar_style("{msg}"))
}

fn hear(bar: &indicatif::ProgressBar, p: Progress) {
    bar.set_message(p.pass);
    bar.set_length(p.total.max(1));
    bar.set_position(p.done);
}

/// The look that may end in repairs.
fn mend(args: &FsckArgs, disk: &dyn Disk) -> Result<u8> {
    let bar = bar();
    let (mut findings, mut done): (Vec<Finding>, Vec<Did>) = (Vec::new(), Vec::new());
    let print = |text: &dyn std::fmt::Display| {
        if !args.json {
            bar.suspend(|| line(text));
        }
    };
    let mut note = |d: Did| {
        print(&d);
        done.push(d);
    };
    let warn = |text: &str| bar.suspend(|| eprintln!("luna: {}: {text}", args.lun));
    let was_marked = exclusive::take(disk, &args.lun, &warn, &mut note)?;
    let hears = |p: Progress| hear(&bar, p);
    let now_ns = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let level = if args.yes { Level::All } else { Level::Safe };
    let options = RepairOptions { level, now_ns, progress: Some(&hears) };
    let result = repair::run(disk, &options, &mut |e| match e {
        Event::Found(f) => {
            print(&f);
            findings.push(f);
        }
        Event::Did(d) => note(d),
    });
    // one that was cut off by the LUN goes on next time; one that refused, or ended, lets hosts in again
    let half = match &result {
        Ok(out) => was_marked && !out.after.is_clean(),
        Err(RepairError::Unreadable { .. } | RepairError::NoSpace | RepairError::Check(_)) => was_marked,
        Err(_) => true,
    };
    if result.as_ref().is_ok_and(|out| out.after.is_clean() && out.refused.is_none()) {
        repair::exclusive::free_slots(disk)?;
    }
    if !half {
        exclusive::give_back(disk, &mut note)?;
    }
    bar.finish_and_clear();
    let out = result.with_context(|| format!("cannot repair {}", args.lun))?;
    Ok(verdict(args, &out, &findings, &done))
}

/// Says how a repair came out; the exit code.
fn verdict(args: &FsckArgs, out: &Outcome, findings: &[Finding], done: &[Did]) -> u8 {
    let s = &out.after;
    let lost = done.iter().filter(|d| d.lost.is_some()).count();
    let text = match (&out.refused, done.len()) {
        (Some(why), 0) => format!("{}: nothing was changed: {why}", args.lun),
        (Some(why), n) => format!("{}: {n} repairs, but {why}", args.lun),
        (None, 0) => format!("{}: clean; {}", args.lun, size_of(s)),
        (None, n) => format!("{}: clean after {n} repairs, {lost} of them with losses; {}", args.lun, size_of(s)),
    };
    let mut value = as_json(args, s, findings);
    let one = |d: &Did| {
        let mut v = placed(d.code, &d.place, &d.text);
        v["lost"] = json!(d.lost);
        v
    };
    value["repairs"] = done.iter().map(one).collect();
    value["refused"] = json!(out.refused);
    value["rounds"] = json!(out.rounds);
    say(args, &value, &text);
    match (&out.refused, done.is_empty()) {
        (Some(_), _) => LEFT,
        (None, true) => CLEAN,
        (None, false) => CORRECTED,
    }
}

fn size_of(s: &Summary) -> String {
    format!(
        "{} inodes, {} directories, {} of {} in use",
        s.inodes,
        s.directories,
        human(s.reached * luna_format::BLOCK_U64),
        human(s.blocks * luna_format::BLOCK_U64)
    )
}

/// The look that only finds.
fn look(args: &FsckArgs, disk: &dyn Disk, print: bool) -> Result<(Summary, Vec<Finding>)> {
    let bar = bar();
    let hears = |p: Progress| hear(&bar, p);
    let mut findings: Vec<Finding> = Vec::new();
    let options = CheckOptions { progress: Some(&hears), max_per_code: MAX_LINES, ..CheckOptions::default() };
    let summary = check::run(disk, &options, &mut |f| {
        if print {
            bar.suspend(|| line(&f));
        }
        findings.push(f);
    });
    bar.finish_and_clear();
    Ok((summary.with_context(|| format!("cannot check {}", args.lun))?, findings))
}

/// Says how a look came out; the exit code.
fn report(args: &FsckArgs, summary: &Summary, findings: &[Finding]) -> u8 {
    let (errors, minor) = (summary.of(Severity::Error), summary.of(Severity::Minor));
    let verdict = if summary.is_clean() { "clean".to_owned() } else { format!("{errors} errors, {minor} minor findings") };
    let text = format!("{}: {verdict}; {}", args.lun, size_of(summary));
    if !args.json {
        let more = summary.counts.iter().filter(|(_, n)| **n > MAX_LINES);
        more.for_each(|(code, n)| line(&format_args!("{code}: {n} findings in all, the first {MAX_LINES} are listed")));
    }
    say(args, &as_json(args, summary, findings), &text);
    if summary.is_clean() { CLEAN } else { LEFT }
}

fn placed(code: Code, p: &Place, text: &str) -> serde_json::Value {
    json!({
        "code": code.as_str(), "severity": code.severity().word(), "text": text, "block": p.block, "inode": p.ino,
        "group": p.group, "slot": p.slot, "path": p.path,
    })
}

fn as_json(args: &FsckArgs, s: &Summary, findings: &[Finding]) -> serde_json::Value {
    let counts: serde_json::Map<String, serde_json::Value> = s.counts.iter().map(|(c, n)| (c.as_str().to_owned(), json!(n))).collect();
    json!({
        "lun": args.lun, "clean": s.is_clean(), "checked": "long", "directories": s.directories, "inodes": s.inodes,
        "orphans": s.orphans, "blocks": s.blocks, "reached": s.reached, "counts": counts,
        "findings": findings.iter().map(|f| placed(f.code, &f.place, &f.text)).collect::<Vec<_>>(),
    })
}

fn say(args: &FsckArgs, value: &serde_json::Value, text: &str) {
    if args.json { line(value) } else { line(&text) }
}

/// One line on stdout. Whoever closes it early (`| head`) still gets the exit code.
fn line(text: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
