//! The numbers as markdown tables, for `docs/scale.md`. Not here: measuring.

use super::{Case, Counts, Measured, Rate, Takeover};
use std::fmt::Write as _;

/// All tables.
pub fn tables(all: &[Measured]) -> String {
    let mut out = String::new();
    storms(&mut out, all);
    rates(&mut out, all);
    takeovers(&mut out, all);
    out
}

fn head(out: &mut String, title: &str, columns: &str) {
    let rule = "|---".repeat(columns.matches('|').count() - 1);
    let _ = writeln!(out, "### {title}\n\n{columns}\n{rule}|");
}

/// With one digit.
fn per(n: u64, by: f64) -> String {
    format!("{:.1}", n as f64 / by)
}

fn storms(out: &mut String, all: &[Measured]) {
    let columns = "| hosts | first member ms | all members ms | all serve ms | messages | of them locks | raft | KiB sent | LUN reads | blocks read | LUN writes |";
    head(out, "Join storm: all start within 100 ms on a fresh volume (counts per host)", columns);
    for m in all {
        let (n, s, c) = (m.hosts as f64, &m.storm, &m.storm.counts);
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            m.hosts,
            s.first_ms,
            s.members_ms,
            s.serve_ms,
            per(c.messages(), n),
            per(c.locks, n),
            per(c.raft, n),
            per(c.bytes, 1024.0 * n),
            per(c.reads, n),
            per(c.blocks, n),
            per(c.writes, n)
        );
    }
    out.push('\n');
}

fn rates(out: &mut String, all: &[Measured]) {
    let columns = "| hosts | load | messages | frames | KiB sent | LUN reads | MiB read | LUN writes | grants | longest wait ms | all hosts: MiB read |";
    head(out, "Steady state (per host and second)", columns);
    for m in all {
        rate(out, m.hosts, "none", &m.idle);
        rate(out, m.hosts, "20 wants", &m.load);
    }
    out.push('\n');
}

fn rate(out: &mut String, hosts: usize, load: &str, r: &Rate) {
    let c: &Counts = &r.counts;
    let n = hosts as f64 * r.ms as f64 / 1000.0;
    let _ = writeln!(
        out,
        "| {hosts} | {load} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        per(c.messages(), n),
        per(c.frames, n),
        per(c.bytes, 1024.0 * n),
        per(c.reads, n),
        per(c.blocks, 256.0 * n),
        per(c.writes, n),
        per(c.grants, n),
        r.longest_ms,
        per(c.blocks, 256.0 * r.ms as f64 / 1000.0)
    );
}

fn name(c: Case) -> &'static str {
    match (c.half, c.silent) {
        (false, false) => "one process",
        (false, true) => "one machine",
        (true, false) => "half the processes",
        (true, true) => "half the machines",
    }
}

fn takeovers(out: &mut String, all: &[Measured]) {
    let columns = "| dies | fence | hosts | EVICT ms | FENCED ms | RECOVERED ms | thaw ms | unrelated wait ms | messages | of them locks | KiB sent | LUN reads | LUN writes | back ms |";
    head(out, "Takeover (from the death to the last record of its kind; counts per survivor, load included)", columns);
    let cases = all.iter().flat_map(|m| m.takeovers.iter().map(|t| (m.hosts, t)));
    let mut cases: Vec<(usize, &Takeover)> = cases.collect();
    cases.sort_by_key(|(n, t)| (t.case.half, t.case.silent, !t.case.exact, *n));
    for (hosts, t) in cases {
        let (n, c) = (t.survivors as f64, &t.counts);
        let _ = writeln!(
            out,
            "| {} | {} | {hosts} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            name(t.case),
            if t.case.exact { "exact" } else { "lease" },
            t.evict_ms,
            t.fenced_ms,
            t.recovered_ms,
            t.thaw_ms,
            t.unrelated_ms,
            per(c.messages(), n),
            per(c.locks, n),
            per(c.bytes, 1024.0 * n),
            per(c.reads, n),
            per(c.writes, n),
            t.rejoin_ms
        );
    }
}
