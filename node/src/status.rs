//! Answers to `luna status`: everything an administrator can look at, as one JSON object.
//!
//! Two commands are no questions: an operator's word that a dead host is off (`confirm-dead`), and `freeze`, which makes the metadata of
//! the volume stand still for a checker.
//!
//! Invariant: looking changes nothing and waits for no other host; a freeze ends by itself. Not here: tables for people (the `luna` binary).

use crate::mount::Site;
use luna_format::{Incarnation, Slot};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The longest freeze: guests' file systems give up on writes that take a minute or two.
const MAX_FREEZE_MS: u64 = 30_000;

/// Answers one command line of the control socket.
pub(crate) fn answer(site: &Site, line: &str, asker: &UnixStream) -> String {
    let value = match line {
        "status" => status(site),
        "locks" => locks(site),
        "manager" => json!({ "manager": site.host.look(|_, d, _| format!("{d:#?}")) }),
        other => match other.split_once(' ') {
            Some(("confirm-dead", slot)) => confirm_dead(site, slot),
            Some(("freeze", ms)) => freeze(site, ms, asker),
            _ => json!({ "error": format!("unknown command '{other}'; known: status, locks, manager, confirm-dead SLOT, freeze MS") }),
        },
    };
    format!("{value}\n")
}

/// Makes the metadata of the volume stand still on all hosts until the asker says another word, goes away, or `ms` are over.
fn freeze(site: &Site, ms: &str, asker: &UnixStream) -> Value {
    let Some(limit) = ms.trim().parse().ok().filter(|ms| (1..=MAX_FREEZE_MS).contains(ms)).map(Duration::from_millis) else {
        return json!({ "error": format!("a freeze lasts 1 to {MAX_FREEZE_MS} ms, not '{ms}'") });
    };
    let Some(volume) = site.volume() else { return json!({ "error": "this host is not a member yet; try again" }) };
    let frozen = match volume.freeze() {
        Ok(frozen) => frozen,
        Err(e) => return json!({ "error": format!("the volume cannot be frozen: {e}") }),
    };
    let begun = Instant::now();
    let told = asker.set_read_timeout(Some(limit)).is_ok() && (&*asker).write_all(b"{\"frozen\":true}\n").is_ok();
    let expired = told && (&*asker).read(&mut [0]).is_err();
    drop(frozen);
    let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(ms, expired, "the volume was frozen for somebody who looks at it");
    json!({ "frozen_ms": ms, "expired": expired })
}

/// An operator's word that an evicted host is off, where no rung of the ladder works: FENCED by method Operator.
fn confirm_dead(site: &Site, slot: &str) -> Value {
    let dead = |view: Option<&luna_cluster::View>| -> Vec<(Slot, Incarnation)> {
        view.iter().flat_map(|v| &v.dead).filter(|d| !d.fenced).map(|d| (d.slot, d.incarnation)).collect()
    };
    let waiting = site.host.look(|_, _, view| dead(view));
    let Some(&(slot, incarnation)) = waiting.iter().find(|(s, _)| s.to_string() == slot.trim()) else {
        let all: Vec<String> = waiting.iter().map(|(s, i)| format!("slot {s} incarnation {i}")).collect();
        let text =
            if all.is_empty() { "nobody waits to be fenced".to_owned() } else { format!("waiting to be fenced: {}", all.join(", ")) };
        return json!({ "error": format!("slot {slot} is not evicted and unfenced; {text}") });
    };
    tracing::warn!(slot, incarnation, "an operator says that this host is off");
    let result = Ok(luna_cluster::FenceMethod::Operator);
    site.host.post(crate::host::In::Cluster(luna_cluster::Input::FenceDone { slot, incarnation, result }));
    json!({ "slot": slot, "incarnation": incarnation })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn status(site: &Site) -> Value {
    let t = site.options.timing;
    let me = site.place.get().copied();
    let mut members = Vec::new();
    let (epoch, leader, gate) = site.host.look(|c, _, view| {
        for m in view.iter().flat_map(|v| &v.members) {
            let own = me == Some((m.slot, m.incarnation));
            let link = if own {
                "self"
            } else if site.peers.is_up(m.slot) {
                "tcp"
            } else {
                "lun"
            };
            members.push(json!({
                "slot": m.slot, "name": m.name, "incarnation": m.incarnation, "state": "member",
                "addr": m.addresses.join(" "), "beat_age_ms": c.beat_age_ms(m.slot, crate::host::now_ms()), "link": link,
            }));
        }
        for d in view.iter().flat_map(|v| &v.dead) {
            let state = if d.fenced { "fenced" } else { "evicted" };
            members.push(json!({ "slot": d.slot, "incarnation": d.incarnation, "state": state, "link": "" }));
        }
        (c.epoch(), c.coordinator(), c.gate())
    });
    let (state, margin_ms) = match gate {
        luna_cluster::Gate::Active { until_ms } => ("member", until_ms as i64 - crate::host::now_ms() as i64),
        luna_cluster::Gate::Paused => ("paused", 0),
        luna_cluster::Gate::Evicted => ("withdrawn", 0),
    };
    let mut out = json!({
        "volume": { "id": hex(&site.volume_id), "label": site.sb.label_text(), "lun": site.options.lun.to_string(), "slots": site.sb.slots },
        "slot": me.map(|m| m.0), "state": state, "epoch": epoch, "leader": leader, "members": members,
        "lease": { "margin_ms": margin_ms, "length_ms": t.lease_ms, "beat_ms": t.beat_ms },
        "rung": rung(site),
    });
    if let Some(v) = site.volume() {
        let j = v.journal.stats();
        let (blocks, dirty) = v.meta_counts();
        let space = v.space();
        out["space"] = json!({ "total_bytes": space.0 * 4096, "free_bytes": space.1 * 4096 });
        out["journal"] = json!({ "total_blocks": j.ring_blocks, "used_blocks": j.used_blocks, "sequence": v.journal.running() });
        let mastered =
            site.host.look(|_, d, _| d.map_or(0, |d| d.dump().iter().filter(|l| l.master.map(|m| (m.slot, m.incarnation)) == me).count()));
        let dump = v.locks.dump();
        let held = dump.iter().filter(|l| l.granted != luna_dlm::Mode::Nl).count();
        out["locks"] = json!({ "held": held, "mastered": mastered, "waiting": dump.iter().map(|l| l.waiters).sum::<usize>() });
        out["counters"] = counters(site, v, blocks, dirty);
    }
    out
}

/// How a dead host would be fenced, what that promises, and how long a takeover takes at worst.
fn rung(site: &Site) -> Value {
    let rung = site.ladder.rung.get().copied().unwrap_or(crate::fence::Rung::Lease);
    let (number, name) = rung.title();
    json!({ "number": number, "name": name, "promise": rung.promise(), "takeover_ms": rung.worst_takeover_ms(&site.options.timing) })
}

fn counters(site: &Site, v: &luna_fs::Volume, blocks: usize, dirty: usize) -> Value {
    use std::sync::atomic::Ordering::Relaxed;
    let c = v.locks.counters();
    let p = &site.peers.counters;
    let mut out = json!({
        "meta_blocks": blocks, "meta_dirty": dirty, "runs": v.runs.load(Relaxed), "restarts": v.restarts.load(Relaxed),
        "lock_requests": c.requests, "lock_grants": c.grants, "lock_basts": c.basts, "lock_come_downs": c.come_downs, "lock_waits": c.waits,
        "messages_sent": p.sent.load(Relaxed), "messages_received": p.received.load(Relaxed), "messages_mailed": p.mailed.load(Relaxed),
        "links_refused": p.refused.total(), "links_refused_by": p.refused.by_name(), "garbage": site.host.garbage.load(Relaxed),
    });
    let (lock_epoch, lock_open, lock_view_ms) = site.host.look(|_, d, _| d.map_or((0, false, 0), luna_dlm::Core::status));
    out["lock_epoch"] = json!(lock_epoch);
    out["lock_open"] = json!(lock_open);
    out["lock_view_ms"] = json!(lock_view_ms);
    for l in site.peers.links() {
        out[format!("link_{}", l.slot)] = json!(l);
    }
    if let Some(fs) = site.fs() {
        let f = &fs.counters;
        out["io_fast"] = json!(f.fast.load(Relaxed));
        out["io_slow"] = json!(f.slow.load(Relaxed));
        out["io_parked"] = json!(f.parked.load(Relaxed));
        out["revokes"] = json!(f.revokes.load(Relaxed));
    }
    out
}

fn locks(site: &Site) -> Value {
    let lines = site.volume().map(|v| v.locks.dump()).unwrap_or_default();
    let shown = lines.into_iter().filter(|l| l.granted != luna_dlm::Mode::Nl || l.waiters > 0).take(10_000).map(|l| {
        let (class, number) = luna_fs::names::split(&l.name).map_or(("?".to_owned(), 0), |(c, n)| (format!("{c:?}").to_lowercase(), n));
        json!({ "class": class, "number": number, "mode": l.granted.to_string(), "live": l.live, "waiters": l.waiters, "asked_down": l.asked_down })
    });
    json!({ "locks": shown.collect::<Vec<_>>() })
}
