//! The conductor's end of one worker process: what it was told, and what it last said.

use super::worker::{Tally, read_tally};
use crate::Result;
use anyhow::Context;
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Instant,
};

/// Where a worker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// Nowhere, and nothing is wrong.
    Paused,
    /// Told to go to that host; it may still be working on another.
    Going(usize),
    /// At work on that host.
    At(usize),
    /// Its mount of that host gave an error.
    Lost(usize, String),
}

/// See the module's text.
pub(super) struct Pilot {
    /// How it is called in messages.
    pub(super) name: String,
    /// Where it is.
    pub(super) place: Where,
    /// Where it came from, while it goes.
    pub(super) from: Option<usize>,
    /// What it has done.
    pub(super) tally: Tally,
    /// How often it arrived somewhere.
    pub(super) arrivals: u64,
    /// When it last got on.
    moved: Instant,
    child: Child,
    words: ChildStdin,
    said: Receiver<String>,
}

impl Pilot {
    /// Starts `program` as a worker.
    pub(super) fn start(program: &Path, kind: &str, id: u64, seed: u64) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["worker", kind, &id.to_string(), &seed.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start a worker")?;
        let words = child.stdin.take().context("its stdin")?;
        let out = child.stdout.take().context("its stdout")?;
        let (send, said) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(std::result::Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
            let _ = send.send("bad the process has ended".to_owned());
        });
        let name = format!("{kind} {id}");
        Ok(Self { name, place: Where::Paused, from: None, tally: Tally::default(), arrivals: 0, moved: Instant::now(), child, words, said })
    }

    /// Sends it to `host`, mounted at `dir`.
    pub(super) fn go(&mut self, host: usize, dir: &Path) -> Result {
        self.from = match self.place {
            Where::At(n) => Some(n),
            _ => None,
        };
        self.place = Where::Going(host);
        writeln!(self.words, "go {}", dir.display()).with_context(|| format!("{} has ended", self.name))
    }

    /// Tells it to sync and close everything.
    pub(super) fn pause(&mut self) -> Result {
        writeln!(self.words, "pause").with_context(|| format!("{} has ended", self.name))
    }

    /// Takes what it said since; a broken promise is an error.
    pub(super) fn hear(&mut self) -> Result {
        while let Ok(line) = self.said.try_recv() {
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            match (word, &self.place) {
                ("did", _) => {
                    let now = read_tally(rest)?;
                    if now.ops > self.tally.ops {
                        self.moved = Instant::now();
                    }
                    self.tally = now;
                }
                ("at", Where::Going(n)) => {
                    self.place = Where::At(*n);
                    self.from = None;
                    self.arrivals += 1;
                }
                ("paused", _) => self.place = Where::Paused,
                ("lost", Where::At(n) | Where::Going(n)) => self.place = Where::Lost(*n, rest.to_owned()),
                _ => anyhow::bail!("{}: {line}", self.name),
            }
        }
        Ok(())
    }

    /// Where it is and how long it has done nothing, for a message.
    pub(super) fn told(&self) -> String {
        format!("{}: {:?}, {} s without an operation", self.name, self.place, self.moved.elapsed().as_secs())
    }

    /// The hosts whose mounts it may have files open on.
    pub(super) fn touches(&self, host: usize) -> bool {
        matches!(self.place, Where::At(n) | Where::Going(n) if n == host) || self.from == Some(host)
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
