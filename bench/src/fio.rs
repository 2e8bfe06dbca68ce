//! The load: six jobs, the same for every subject, and fio that runs them on a file.
//!
//! Invariant: the span is [`SPAN_BYTES`] everywhere, so that caches and mappings of all subjects are equally warm. libaio at
//! depth (io_uring hands FUSE requests to worker threads, which measures those), plain pread/pwrite at depth 1.

use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, bail};

/// The part of the LUN or file that jobs touch.
pub const SPAN_BYTES: u64 = 1 << 30;

/// One row of the data table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Job {
    /// Short name, also the key in the JSON.
    pub name: &'static str,
    /// How the table calls it.
    pub title: &'static str,
    /// Writes instead of reads.
    pub write: bool,
    /// Bytes per request.
    pub block_bytes: u32,
    /// Requests in flight.
    pub depth: u32,
}

/// All of them, in the table's order.
pub const JOBS: [Job; 6] = [
    Job { name: "randread-1", title: "4 KiB random read, depth 1", write: false, block_bytes: 4096, depth: 1 },
    Job { name: "randwrite-1", title: "4 KiB random write, depth 1", write: true, block_bytes: 4096, depth: 1 },
    Job { name: "randread-32", title: "4 KiB random read, depth 32", write: false, block_bytes: 4096, depth: 32 },
    Job { name: "randwrite-32", title: "4 KiB random write, depth 32", write: true, block_bytes: 4096, depth: 32 },
    Job { name: "seqread", title: "1 MiB sequential read, depth 4", write: false, block_bytes: 1 << 20, depth: 4 },
    Job { name: "seqwrite", title: "1 MiB sequential write, depth 4", write: true, block_bytes: 1 << 20, depth: 4 },
];

impl Job {
    /// Whether offsets follow one another.
    pub fn sequential(&self) -> bool {
        self.block_bytes > 65536
    }

    fn fio_name(&self) -> &'static str {
        match (self.sequential(), self.write) {
            (false, false) => "randread",
            (false, true) => "randwrite",
            (true, false) => "read",
            (true, true) => "write",
        }
    }
}

impl FromStr for Job {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        JOBS.iter().find(|job| job.name == text).copied().with_context(|| format!("there is no job {text}"))
    }
}

/// Runs one job on a file; gives operations per second.
pub fn on_file(path: &Path, job: Job, seconds: u32) -> anyhow::Result<f64> {
    let mut command = Command::new("timeout");
    command.arg((seconds + 30).to_string()).args(["fio", "--name=bench", "--direct=1", "--time_based", "--thread", "--gtod_reduce=1"]);
    command.args(["--randrepeat=0", "--norandommap", "--invalidate=0", "--allow_file_create=0", "--output-format=json"]);
    command.arg(format!("--filename={}", path.display())).arg(format!("--size={SPAN_BYTES}"));
    command.arg(format!("--rw={}", job.fio_name())).arg(format!("--bs={}", job.block_bytes)).arg(format!("--runtime={seconds}"));
    if job.depth == 1 {
        command.arg("--ioengine=psync");
    } else {
        command.arg("--ioengine=libaio").arg(format!("--iodepth={}", job.depth));
    }
    let output = command.output().context("fio can not be started; install it")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = rate_of(&text, job.write);
    match rate {
        Some(rate) if output.status.success() => Ok(rate),
        _ => bail!(
            "fio {} on {} failed: {}",
            job.name,
            path.display(),
            String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("no word")
        ),
    }
}

/// Operations per second from fio's JSON, which may follow other lines; `None` if the job failed.
fn rate_of(text: &str, write: bool) -> Option<f64> {
    let json: serde_json::Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    let job = json.get("jobs")?.get(0)?;
    if job.get("error")?.as_i64()? != 0 {
        return None;
    }
    job.get(if write { "write" } else { "read" })?.get("iops")?.as_f64().filter(|rate| *rate > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_found_behind_other_lines_and_a_failed_job_gives_none() {
        let good = "note: x\n{\"jobs\":[{\"error\":0,\"read\":{\"iops\":12.5},\"write\":{\"iops\":0.0}}]}";
        assert_eq!(rate_of(good, false), Some(12.5));
        assert_eq!(rate_of(good, true), None);
        assert_eq!(rate_of(&good.replace("\"error\":0", "\"error\":5"), false), None);
        assert_eq!(rate_of("nothing", false), None);
    }

    #[test]
    fn jobs_are_found_by_name() {
        for job in JOBS {
            assert_eq!(job.name.parse::<Job>().expect("listed"), job);
        }
        assert!("x".parse::<Job>().is_err());
    }
}
