//! The stand-in for a virtual machine where there is no QEMU: a process that writes the same counter to the same disk.
//!
//! It announces on stdout, ends when stdin is closed (its owner "saves" it: its whole state is the last number), and is
//! started on the next host with the number that follows. The proof on the disk is the same as for a real guest.

use super::{counter, stop};
use crate::cli::WriterArgs;
use anyhow::{Context, Result, ensure};
use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read},
    os::unix::{fs::FileExt, fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// `luna demo-writer DISK FROM`.
pub fn run(args: &WriterArgs) -> Result<()> {
    let shown = args.disk.display();
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&args.disk);
    let file = file.with_context(|| format!("cannot open {shown}"))?;
    // stdin's end is the order to stop
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&over);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        seen.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let mut room = super::traffic::Aligned::new(counter::BLOCK);
    for n in args.from..=counter::MAX {
        if over.load(std::sync::atomic::Ordering::Relaxed) {
            break;
        }
        room.bytes_mut().copy_from_slice(&counter::record(n));
        file.write_all_at(room.bytes(), n * counter::BLOCK as u64).with_context(|| format!("cannot write record {n} to {shown}"))?;
        file.sync_data().with_context(|| format!("cannot flush {shown}"))?;
        println!("{} {n}", counter::TAG);
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A running writer process.
#[derive(Debug)]
pub struct Writer {
    child: Child,
    log: PathBuf,
}

impl Writer {
    /// Starts one on `disk` at record `from`; `log` takes its announcements.
    pub fn start(disk: &Path, from: u64, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut c = Command::new(std::env::current_exe()?);
        c.arg("demo-writer").arg(disk).arg(from.to_string()).stdin(Stdio::piped()).stdout(out).stderr(Stdio::piped());
        let child = c.process_group(0).spawn().context("cannot start the writer process")?;
        Ok(Self { child, log: log.into() })
    }

    /// The last record announced.
    pub fn announced(&self) -> Result<u64> {
        counter::last_announced(&std::fs::read_to_string(&self.log)?)
    }

    /// Waits until it has announced more than `past`.
    pub fn wait_for(&mut self, past: u64) -> Result<u64> {
        let start = Instant::now();
        loop {
            stop::check()?;
            let n = self.announced()?;
            if n > past {
                return Ok(n);
            }
            if self.child.try_wait()?.is_some() {
                let mut line = String::new();
                if let Some(err) = self.child.stderr.take() {
                    BufReader::new(err).read_line(&mut line)?;
                }
                anyhow::bail!("the writer process ended: {}", line.trim());
            }
            ensure!(start.elapsed() < Duration::from_secs(60), "the writer's counter stands at {n}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it in an orderly way; the last record it announced is its state.
    pub fn save(mut self) -> Result<u64> {
        drop(self.child.stdin.take());
        self.child.wait()?;
        self.announced()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
