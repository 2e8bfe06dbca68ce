//! `luna status`: members, epoch, lease, space, journal and locks of a mounted volume, or what a LUN says by itself.
//!
//! For a mounted directory the host's own daemon answers, in JSON ([`Report`]); a table is made of it here. For a LUN the
//! superblock and the slots are read, and nothing is written.

use crate::{cli::StatusArgs, control, mounts, size::human, slots};
use anyhow::{Context, Result};
use luna_format::cluster::untext;
use serde::{Deserialize, Serialize};
use std::{fmt::Write, path::Path};

/// What a host tells about itself and the cluster.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Report {
    /// The volume.
    pub volume: Volume,
    /// The slot of the host that was asked; `None` when the LUN was read.
    pub slot: Option<u16>,
    /// How this host stands: member, paused, withdrawn ...
    pub state: String,
    /// Index of the last membership record.
    pub epoch: u64,
    /// The slot of the coordinator.
    pub leader: Option<u16>,
    /// Who is in.
    pub members: Vec<Member>,
    /// This host's right to write.
    pub lease: Option<Lease>,
    /// How a lost host would be fenced.
    pub rung: Option<Rung>,
    /// Space on the volume.
    pub space: Option<Space>,
    /// This host's journal.
    pub journal: Option<Journal>,
    /// This host's locks.
    pub locks: Option<Locks>,
    /// Everything else that is counted.
    pub counters: std::collections::BTreeMap<String, serde_json::Value>,
}

/// The volume.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Volume {
    pub id: String,
    pub label: String,
    pub lun: String,
    pub slots: u32,
}

/// One host.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Member {
    pub slot: u16,
    pub name: String,
    pub incarnation: u64,
    pub state: String,
    pub addr: String,
    pub beat_age_ms: Option<u64>,
    /// `self`, `tcp`, or `lun` when messages go through the mailboxes.
    pub link: String,
}

/// The lease.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Lease {
    pub margin_ms: i64,
    pub length_ms: u64,
    pub beat_ms: u64,
}

/// The rung of the fencing ladder.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Rung {
    pub number: u32,
    pub name: String,
    pub takeover_ms: u64,
}

/// Space.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Space {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

/// The journal.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Journal {
    pub total_blocks: u64,
    pub used_blocks: u64,
    pub sequence: u64,
}

/// Locks.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Locks {
    pub held: u64,
    pub mastered: u64,
    pub waiting: u64,
}

/// Runs the command.
pub fn run(args: &StatusArgs) -> Result<()> {
    let mounted = if args.target.contains("://") { None } else { mounts::at(Path::new(&args.target))?.filter(mounts::Mount::is_luna) };
    let json = match mounted {
        Some(mount) => control::ask(&mount.dir, "status")?,
        None => serde_json::to_string(&from_lun(&args.target)?)?,
    };
    if args.json {
        println!("{}", json.trim());
        return Ok(());
    }
    let report: Report = serde_json::from_str(&json).context("the daemon's answer is not what this version understands")?;
    print!("{}", table(&report));
    Ok(())
}

/// What a LUN says by itself.
fn from_lun(target: &str) -> Result<Report> {
    let lun = super::open(target, true)?;
    let disk = &*lun.disk;
    let (id, sb) = luna_fs::mkfs::read_superblock(disk)?;
    let volume = Volume { id: super::uuid(&id), label: sb.label_text(), lun: target.into(), slots: sb.slots };
    let record = slots::newest_record(disk, id, &sb)?;
    let beats = slots::beats(disk, id, &sb)?;
    let live = slots::live(disk, id, &sb)?;
    let mut members = Vec::new();
    for slot in 0..sb.slots as u16 {
        let Some(state) = record.map(|r| r.slots[usize::from(slot)]).filter(|s| s.state != luna_format::cluster::SLOT_FREE) else {
            continue;
        };
        let beat = beats.iter().find(|(s, _)| *s == slot).map(|(_, b)| b);
        members.push(Member {
            slot,
            name: beat.map(|b| untext(&b.name)).unwrap_or_default(),
            incarnation: state.incarnation,
            state: slots::slot_state(state.state).into(),
            addr: beat.map(|b| untext(&b.addresses[0])).unwrap_or_default(),
            ..Member::default()
        });
    }
    let state = if live.is_empty() { "no host seems to have it mounted".into() } else { format!("mounted by {}", live.join(", ")) };
    let epoch = record.map_or(0, |r| r.index);
    Ok(Report { volume, state, epoch, members, ..Report::default() })
}

/// The report for people.
fn table(r: &Report) -> String {
    let mut t = String::new();
    let mut row = |key: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(t, "{key:<10}{value}");
        }
    };
    let label = if r.volume.label.is_empty() { "(no label)" } else { &r.volume.label };
    row("volume", format!("{label} {} on {}", r.volume.id, r.volume.lun));
    row("state", r.state.clone());
    let leader = r.members.iter().find(|m| Some(m.slot) == r.leader).map_or("none".into(), |m| m.name.clone());
    if r.epoch > 0 {
        row("epoch", format!("{}, coordinator {leader}", r.epoch));
    }
    if let Some(l) = &r.lease {
        row("lease", format!("{} ms left of {} ms, a beat every {} ms", l.margin_ms, l.length_ms, l.beat_ms));
    }
    if let Some(f) = &r.rung {
        row("fencing", format!("rung {} ({}), takeover within {:.1} s", f.number, f.name, f.takeover_ms as f64 / 1000.0));
    }
    if let Some(s) = &r.space {
        let used = s.total_bytes.saturating_sub(s.free_bytes);
        row("space", format!("{} of {} in use, {} free", human(used), human(s.total_bytes), human(s.free_bytes)));
    }
    if let Some(j) = &r.journal {
        row("journal", format!("{} of {} blocks in use, sequence {}", j.used_blocks, j.total_blocks, j.sequence));
    }
    if let Some(l) = &r.locks {
        row("locks", format!("{} held, {} mastered, {} waiting", l.held, l.mastered, l.waiting));
    }
    if !r.members.is_empty() {
        let _ = writeln!(t, "slot  name              inc.  state       beat       link  address");
        for m in &r.members {
            let age = m.beat_age_ms.map_or("-".into(), |a| format!("{a} ms"));
            let own = if Some(m.slot) == r.slot { "*" } else { " " };
            let Member { slot, name, incarnation, state, addr, link, .. } = m;
            let _ = writeln!(t, "{slot:>3}{own}  {name:<16}  {incarnation:>4}  {state:<10}  {age:<9}  {link:<4}  {addr}");
        }
        let _ = writeln!(t, "{} of {} slots in use", r.members.len(), r.volume.slots);
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_or_newer_daemon_is_understood() {
        let r: Report =
            serde_json::from_str(r#"{"epoch":3,"something_new":1,"members":[{"slot":0,"name":"a"}],"leader":0,"slot":0}"#).expect("reads");
        let t = table(&r);
        assert!(t.contains("coordinator a") && t.contains("  0*  a "), "{t}");
        assert!(table(&Report::default()).contains("(no label)"));
    }
}
