//! Talks to a mounted host's daemon through its control socket.
//!
//! The daemon of a mount listens on a unix socket whose name follows from the mount point. One line of question, the answer
//! until the end of the stream. Invariant: every wait ends, so that a daemon that hangs cannot hang the tool.
//! Not here: what the answer means (see [`crate::cmd::status`]).

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::OwnedFd,
    net::sockopt::socket_peercred,
    process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Asks the daemon of the mount on `dir` and gives its whole answer.
pub fn ask(dir: &Path, question: &str) -> Result<String> {
    let mut stream = connect(dir)?;
    stream.write_all(format!("{question}\n").as_bytes()).context("the daemon does not listen")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("the daemon of {} gives no answer", dir.display()))?;
    let value: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
    if let Some(error) = value["error"].as_str() {
        bail!("{}: {error}", dir.display());
    }
    ensure!(!answer.is_empty(), "the daemon of {} does not know '{question}'", dir.display());
    Ok(answer)
}

fn connect(dir: &Path) -> Result<UnixStream> {
    let path = luna_node::control::socket_path(dir);
    let stream = UnixStream::connect(&path).with_context(|| format!("no daemon answers for {} at {}", dir.display(), path.display()))?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// A volume whose metadata stands still on all hosts, until this is dropped or its time is over.
pub struct Freeze {
    stream: BufReader<UnixStream>,
}

/// Freezes the volume that is mounted on `dir`, for at most `limit`. Waits for the changes that are under way on all hosts.
pub fn freeze(dir: &Path, limit: Duration) -> Result<Freeze> {
    let mut stream = connect(dir)?;
    stream.write_all(format!("freeze {}\n", limit.as_millis()).as_bytes()).context("the daemon does not listen")?;
    let mut stream = BufReader::new(stream);
    let mut answer = String::new();
    stream.read_line(&mut answer).with_context(|| format!("the volume on {} does not come to rest", dir.display()))?;
    let value: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
    if let Some(error) = value["error"].as_str() {
        bail!("{}: {error}", dir.display());
    }
    ensure!(value["frozen"] == true, "the daemon of {} cannot freeze; it is of another version", dir.display());
    Ok(Freeze { stream })
}

impl Freeze {
    /// Lets it go on; whether it stood still up to now.
    pub fn thaw(mut self) -> bool {
        let mut answer = String::new();
        let asked = self.stream.get_mut().write_all(b"\n").is_ok() && self.stream.read_line(&mut answer).is_ok();
        let value: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
        asked && value["expired"] == false
    }
}

/// The daemon process behind a mount.
#[derive(Debug)]
pub struct Daemon {
    pid: i32,
    fd: OwnedFd,
}

/// The daemon of the mount on `dir`, if it can be found.
pub fn daemon(dir: &Path) -> Option<Daemon> {
    let stream = connect(dir).ok()?;
    let pid = socket_peercred(&stream).ok()?.pid;
    let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    Some(Daemon { pid: pid.as_raw_nonzero().get(), fd })
}

impl Daemon {
    /// Its process number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Kills it. The other hosts recover what it held.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.fd, Signal::KILL);
    }

    /// Waits until the process has ended; `false` when it has not within `limit`.
    pub fn wait(&self, limit: Duration) -> Result<bool> {
        let time = limit.try_into().context("too long a wait")?;
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        Ok(poll(&mut fds, Some(&time))? > 0)
    }
}
