//! Memory, threads and descriptors of every daemon over its life, and how they grow.
//!
//! Growth is the slope of a line through the samples, the first quarter of a life (at most two minutes) left out: caches fill then. Only lives
//! long enough to mean something are reported as growth; peaks are of all. Not here: whether growth is too much, beside [`Life::verdict`].

use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, time::Instant};

/// Descriptors or threads beyond which a daemon is broken, whatever the load of the soak.
const MOST: u64 = 400;

/// What was seen once.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at_s: f64,
    rss_kib: u64,
    threads: u64,
    descriptors: u64,
}

/// One process.
#[derive(Clone, Debug)]
pub(super) struct Life {
    label: String,
    samples: Vec<Sample>,
}

/// All processes seen.
#[derive(Debug)]
pub(super) struct Watch {
    begun: Instant,
    lives: BTreeMap<i32, Life>,
}

fn look(pid: i32, at_s: f64) -> Option<Sample> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    Some(Sample { at_s, rss_kib: field("VmRSS:")?, threads: field("Threads:")?, descriptors })
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), lives: BTreeMap::new() }
    }

    /// Looks at the process `pid`, which is called `label`.
    pub(super) fn sample(&mut self, label: &str, pid: i32) {
        if let Some(s) = look(pid, self.begun.elapsed().as_secs_f64()) {
            let life = self.lives.entry(pid).or_insert_with(|| Life { label: label.to_owned(), samples: Vec::new() });
            life.samples.push(s);
        }
    }

    /// The longest lives first.
    fn longest(&self) -> Vec<&Life> {
        let mut all: Vec<&Life> = self.lives.values().collect();
        all.sort_by(|a, b| b.seconds().total_cmp(&a.seconds()));
        all
    }

    /// What the report says.
    pub(super) fn report(&self) -> Value {
        let all = self.longest();
        json!({ "processes": all.len(), "longest_lives": all.iter().take(8).map(|l| l.report()).collect::<Vec<_>>() })
    }

    /// What is wrong with one of them.
    pub(super) fn verdict(&self) -> Option<String> {
        self.lives.values().find_map(Life::verdict)
    }

    /// The largest of all now, in MiB, for a summary line.
    pub(super) fn peak_mib(&self) -> u64 {
        self.lives.values().filter_map(|l| l.samples.last()).map(|s| s.rss_kib / 1024).max().unwrap_or(0)
    }
}

impl Life {
    fn seconds(&self) -> f64 {
        let at = |s: Option<&Sample>| s.map_or(0.0, |s| s.at_s);
        at(self.samples.last()) - at(self.samples.first())
    }

    /// Growth of `what` in an hour.
    fn growth(&self, what: impl Fn(&Sample) -> u64) -> f64 {
        let begin = self.samples.first().map_or(0.0, |s| s.at_s) + (self.seconds() / 4.0).min(120.0);
        let points: Vec<(f64, f64)> = self.samples.iter().filter(|s| s.at_s >= begin).map(|s| (s.at_s / 3600.0, what(s) as f64)).collect();
        let n = points.len() as f64;
        let mean = points.iter().fold((0.0, 0.0), |m, p| (m.0 + p.0 / n, m.1 + p.1 / n));
        let over = points.iter().map(|p| (p.0 - mean.0).powi(2)).sum::<f64>();
        if over > 0.0 { points.iter().map(|p| (p.0 - mean.0) * (p.1 - mean.1)).sum::<f64>() / over } else { 0.0 }
    }

    fn report(&self) -> Value {
        let peak = |what: fn(&Sample) -> u64| self.samples.iter().map(what).max().unwrap_or(0);
        let last = |what: fn(&Sample) -> u64| self.samples.last().map_or(0, what);
        let round = |v: f64| (v * 10.0).round() / 10.0;
        let mut out = json!({
            "process": self.label, "minutes": round(self.seconds() / 60.0),
            "rss_mib": { "last": last(|s| s.rss_kib) / 1024, "peak": peak(|s| s.rss_kib) / 1024 },
            "threads": { "last": last(|s| s.threads), "peak": peak(|s| s.threads) },
            "descriptors": { "last": last(|s| s.descriptors), "peak": peak(|s| s.descriptors) },
        });
        // shorter than that, a slope says nothing
        if self.seconds() >= 300.0 {
            out["growth_per_hour"] = json!({
                "rss_mib": round(self.growth(|s| s.rss_kib) / 1024.0),
                "threads": round(self.growth(|s| s.threads)),
                "descriptors": round(self.growth(|s| s.descriptors)),
            });
        }
        out
    }

    fn verdict(&self) -> Option<String> {
        let most = self.samples.iter().map(|s| s.threads.max(s.descriptors)).max().unwrap_or(0);
        (most > MOST).then(|| format!("{} had {most} threads or descriptors", self.label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(rss_kib: impl Fn(u64) -> u64) -> Life {
        let sample = |n: u64| Sample { at_s: n as f64 * 10.0, rss_kib: rss_kib(n), threads: 9, descriptors: 20 };
        Life { label: "x".into(), samples: (0..180).map(sample).collect() }
    }

    #[test]
    fn a_leak_is_a_slope_and_a_cache_that_fills_is_not() {
        // 10 KiB every ten seconds
        let leak = life(|n| 50_000 + n * 10).growth(|s| s.rss_kib);
        assert!((leak - 3600.0).abs() < 1.0, "{leak}");
        let filling = life(|n| 50_000 + n.min(10) * 5000).growth(|s| s.rss_kib);
        assert!(filling.abs() < 1.0, "{filling}");
        let mut broken = life(|_| 1);
        assert!(broken.verdict().is_none());
        broken.samples[3].descriptors = MOST + 1;
        assert!(broken.verdict().is_some());
    }

    #[test]
    fn it_sees_its_own_process() {
        let s = look(std::process::id() as i32, 0.0).expect("this process");
        assert!(s.rss_kib > 500 && s.threads >= 1 && s.descriptors >= 3);
    }
}
