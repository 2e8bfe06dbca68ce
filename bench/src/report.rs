//! The tables: medians, ratios, bars; as markdown for the README and as JSON for machines.
//!
//! Invariant: pure; a missing figure prints as a dash and never enters a ratio. The limit is computed here, once, from the
//! figures of the same run: at depth 1 the times of LUN and door add up; at depth, the costs per operation do. Both are the
//! same formula on operations per second.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::fio::JOBS;
use crate::meta::{Key, Step};
use crate::product::Extra;

/// Whose figure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The bare LUN.
    Lun,
    /// A FUSE door that answers from memory.
    MemoryDoor,
    /// The bare FUSE door over the LUN.
    Door,
    /// Our mount.
    Mount,
    /// ext4 on a loop device.
    Ext4,
}

/// All samples of a kind of figure.
#[derive(Debug, Clone)]
pub struct Samples<K>(BTreeMap<(Subject, K), Vec<f64>>);

impl<K> Default for Samples<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Copy> Samples<K> {
    /// Adds a sample.
    pub fn add(&mut self, subject: Subject, key: K, value: f64) {
        self.0.entry((subject, key)).or_default().push(value);
    }

    /// The median, if there is a sample.
    pub fn median(&self, subject: Subject, key: K) -> Option<f64> {
        let mut values = self.0.get(&(subject, key))?.clone();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            n if n % 2 == 1 => Some(values[middle]),
            _ => Some(f64::midpoint(values[middle - 1], values[middle])),
        }
    }
}

/// Everything of one run.
pub struct Report {
    /// Date, UTC.
    pub date: String,
    /// Kernel release.
    pub kernel: String,
    /// Cores.
    pub cores: usize,
    /// Load average when the run began: above the number of cores, the figures are somebody else's too.
    pub load: String,
    /// Server and transport.
    pub lun: String,
    /// Rounds and seconds.
    pub effort: String,
    /// Data figures by job name.
    pub data: Samples<&'static str>,
    /// Metadata figures.
    pub meta: Samples<Key>,
    /// What only our mount has.
    pub extra: Extra,
    /// What could not be measured, and why.
    pub missing: Vec<String>,
}

/// The best a door over this LUN could do: costs add up.
pub fn limit(lun: f64, memory_door: f64) -> f64 {
    1.0 / (1.0 / lun + 1.0 / memory_door)
}

fn ratio(value: Option<f64>, base: Option<f64>) -> Option<f64> {
    match (value, base) {
        (Some(value), Some(base)) if base > 0.0 => Some(value / base),
        _ => None,
    }
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "–".into(),
        Some(value) if value >= 100.0 => {
            let digits = format!("{value:.0}");
            let mut out = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index) % 3 == 0 {
                    out.push(',');
                }
                out.push(digit);
            }
            out
        }
        Some(value) => format!("{value:.1}"),
    }
}

fn barred(value: Option<f64>, bar: f64) -> String {
    match value {
        None => "–".into(),
        Some(value) if value >= bar => format!("{value:.2}"),
        Some(value) => format!("**{value:.2}** (bar {bar:.2})"),
    }
}

impl Report {
    fn data_limit(&self, job: &'static str) -> Option<f64> {
        Some(limit(self.data.median(Subject::Lun, job)?, self.data.median(Subject::MemoryDoor, job)?))
    }

    /// The tables as markdown.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "Measured {} on Linux {}, {} cores (load {} at the start); LUN: {}; {}.",
            self.date, self.kernel, self.cores, self.load, self.lun, self.effort
        );
        let _ = writeln!(out, "Operations per second, medians; a figure in bold misses its bar.\n");
        self.data_table(&mut out);
        self.meta_table(&mut out);
        self.extra_table(&mut out);
        for line in &self.missing {
            let _ = writeln!(out, "- not measured: {line}");
        }
        out
    }

    fn data_table(&self, out: &mut String) {
        let any = JOBS.iter().any(|job| self.data.median(Subject::Lun, job.name).is_some());
        if !any {
            return;
        }
        let _ =
            writeln!(out, "| O_DIRECT | bare LUN | memory door | limit | bare door | door/limit | our mount | mount/door | mount/limit |");
        let _ = writeln!(out, "|---|---|---|---|---|---|---|---|---|");
        for job in JOBS {
            let of = |subject| self.data.median(subject, job.name);
            let limit = self.data_limit(job.name);
            let (door, mount) = (of(Subject::Door), of(Subject::Mount));
            let (limit_bar, door_bar) = match (job.sequential(), job.depth) {
                (true, _) => (0.0, 0.90),
                (false, 1) => (0.75, 0.95),
                (false, _) => (0.60, 0.95),
            };
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                job.title,
                number(of(Subject::Lun)),
                number(of(Subject::MemoryDoor)),
                number(limit),
                number(door),
                barred(ratio(door, limit), limit_bar),
                number(mount),
                barred(ratio(mount, door), door_bar),
                barred(ratio(mount, limit), limit_bar),
            );
        }
        out.push('\n');
    }

    fn meta_table(&self, out: &mut String) {
        let steps = [Step::CreateSync, Step::Create, Step::Stat, Step::Unlink];
        let keys = [1, 4].into_iter().flat_map(|threads| steps.map(|step| (threads, step)));
        let any = keys.clone().any(|key| self.meta.median(Subject::Ext4, key).or(self.meta.median(Subject::Mount, key)).is_some());
        if !any {
            return;
        }
        let _ = writeln!(out, "| metadata | ext4, same medium | our mount | mount/ext4 |\n|---|---|---|---|");
        for key in keys {
            let (ext4, mount) = (self.meta.median(Subject::Ext4, key), self.meta.median(Subject::Mount, key));
            let bar = if key.1 == Step::CreateSync { 1.0 } else { 0.0 };
            let threads = if key.0 == 1 { "1 thread".into() } else { format!("{} threads", key.0) };
            let _ = writeln!(
                out,
                "| {}, {threads} | {} | {} | {} |",
                key.1.title(),
                number(ext4),
                number(mount),
                barred(ratio(mount, ext4), bar)
            );
        }
        out.push('\n');
    }

    fn extra_table(&self, out: &mut String) {
        let extra = &self.extra;
        let rows = [
            ("mkfs", extra.mkfs_seconds, "s", None),
            ("mount", extra.mount_seconds, "s", Some(1.0)),
            ("umount", extra.umount_seconds, "s", Some(1.0)),
            ("fallocate of 100 GiB", extra.fallocate_100g_seconds, "s", Some(1.0)),
            ("1 TiB sparse file, time", extra.sparse_1t_seconds, "s", Some(1.0)),
            ("1 TiB sparse file, space", extra.sparse_1t_mib, "MiB", Some(1.0)),
            ("daemon memory, 100 GiB of disk files open", extra.daemon_rss_mib, "MiB", Some(150.0)),
        ];
        if rows.iter().all(|row| row.1.is_none()) {
            return;
        }
        let _ = writeln!(out, "| our mount | measured | bar |\n|---|---|---|");
        for (title, value, unit, bar) in rows {
            let measured = match (value, bar) {
                (None, _) => "–".into(),
                (Some(value), Some(bar)) if value > bar => format!("**{value:.3} {unit}**"),
                (Some(value), _) => format!("{value:.3} {unit}"),
            };
            let bar = bar.map_or("–".into(), |bar| format!("{bar} {unit}"));
            let _ = writeln!(out, "| {title} | {measured} | {bar} |");
        }
        out.push('\n');
    }

    /// The same as JSON, with all samples.
    pub fn json(&self) -> serde_json::Value {
        let data: Vec<_> = (self.data.0.iter())
            .map(|((subject, job), samples)| serde_json::json!({"subject": subject, "job": job, "median": self.data.median(*subject, job), "samples": samples}))
            .collect();
        let meta: Vec<_> = (self.meta.0.iter())
            .map(|((subject, key), samples)| {
                serde_json::json!({"subject": subject, "step": key.1.title(), "threads": key.0, "median": self.meta.median(*subject, *key), "samples": samples})
            })
            .collect();
        let limits: BTreeMap<_, _> = JOBS.iter().map(|job| (job.name, self.data_limit(job.name))).collect();
        serde_json::json!({
            "date": self.date, "kernel": self.kernel, "cores": self.cores, "load": self.load, "lun": self.lun, "effort": self.effort,
            "data": data, "limit": limits, "metadata": meta, "mount": self.extra, "missing": self.missing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_adds_costs() {
        assert!((limit(100.0, 100.0) - 50.0).abs() < 1e-9);
        assert!(limit(100_000.0, 250_000.0) < 100_000.0);
    }

    #[test]
    fn medians_of_odd_even_and_none() {
        let mut samples = Samples::default();
        assert_eq!(samples.median(Subject::Lun, "x"), None);
        for value in [9.0, 1.0, 4.0] {
            samples.add(Subject::Lun, "x", value);
        }
        assert_eq!(samples.median(Subject::Lun, "x"), Some(4.0));
        samples.add(Subject::Lun, "x", 6.0);
        assert_eq!(samples.median(Subject::Lun, "x"), Some(5.0));
    }

    #[test]
    fn a_missed_bar_is_bold_and_a_missing_figure_is_a_dash() {
        let mut report = Report {
            date: "d".into(),
            kernel: "k".into(),
            cores: 2,
            load: "0".into(),
            lun: "l".into(),
            effort: "e".into(),
            data: Samples::default(),
            meta: Samples::default(),
            extra: Extra { mount_seconds: Some(2.0), ..Extra::default() },
            missing: vec!["our mount: no binary".into()],
        };
        report.data.add(Subject::Lun, "randread-1", 20_000.0);
        report.data.add(Subject::MemoryDoor, "randread-1", 20_000.0);
        report.data.add(Subject::Door, "randread-1", 5_000.0);
        let text = report.markdown();
        assert!(
            text.contains("| 4 KiB random read, depth 1 | 20,000 | 20,000 | 10,000 | 5,000 | **0.50** (bar 0.75) | – | – | – |"),
            "{text}"
        );
        assert!(text.contains("| mount | **2.000 s** | 1 s |"), "{text}");
        assert!(text.contains("- not measured: our mount: no binary"));
        assert_eq!(report.json()["limit"]["randread-1"], 10_000.0);
    }
}
