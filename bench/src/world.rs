//! What a run needs around it: a folder, processes, mounts, steady cores; and the end of all of them.
//!
//! Invariant: everything started through a [`World`] is ended by its drop, in reverse order: mounts first, then processes
//! (asked, then killed), then the folder; a setting of the machine that was changed is put back. A path that was not made here
//! is never removed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How long something may take to come up.
const START: Duration = Duration::from_secs(20);
/// How long a process may take to end by itself.
const END: Duration = Duration::from_secs(3);

/// The folder and everything that runs in it.
pub struct World {
    /// Where files, sockets and mount points go.
    pub dir: PathBuf,
    children: Vec<Child>,
    mounts: Vec<PathBuf>,
    halt_poll: Option<String>,
}

/// How long an idle core looks for work before it halts, in nanoseconds; a virtual machine's kernel has it
/// (Documentation/virt/guest-halt-polling.rst).
const HALT_POLL: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";
/// The kernel's own default where guest halt polling is on.
const HALT_POLL_NS: &str = "200000";

impl World {
    /// A fresh folder below `medium`, and cores that do not halt: a halted virtual core takes 50 to 100 us to answer, so that
    /// depth 1 would measure where the scheduler happened to put three threads. Idle cores poll where the kernel can; where it can
    /// not, one idle-priority spinner per core keeps them awake (a wake-up then still costs an interrupt between cores).
    pub fn new(medium: &Path) -> anyhow::Result<Self> {
        let dir = medium.join(format!("luna-bench-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("{} can not be made", dir.display()))?;
        let mut world = Self { dir, children: Vec::new(), mounts: Vec::new(), halt_poll: None };
        let before = std::fs::read_to_string(HALT_POLL).ok();
        if std::fs::write(HALT_POLL, HALT_POLL_NS).is_ok() {
            world.halt_poll = before;
            return Ok(world);
        }
        for core in 0..cores() {
            let mut spinner = Command::new("taskset");
            spinner.args(["-c", &core.to_string(), "chrt", "-i", "0", "sh", "-c", "while :; do :; done"]);
            // Without util-linux the run is noisier, nothing else.
            let _ = world.start(spinner.stderr(Stdio::null()));
        }
        Ok(world)
    }

    /// How the cores are kept awake.
    pub fn awake(&self) -> &'static str {
        if self.halt_poll.is_some() { "idle cores poll" } else { "a spinner per core" }
    }

    /// A new folder below the world's.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::create_dir(&path).with_context(|| format!("{} can not be made", path.display()))?;
        Ok(path)
    }

    /// Starts a process that ends with the world; gives its id.
    pub fn start(&mut self, command: &mut Command) -> anyhow::Result<u32> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("{name} can not be started"))?;
        let id = child.id();
        self.children.push(child);
        Ok(id)
    }

    /// Waits until `ready` or until the process `id` is gone or the time is over.
    pub fn wait(&mut self, id: u32, what: &str, ready: impl Fn() -> bool) -> anyhow::Result<()> {
        let begin = Instant::now();
        while !ready() {
            let child = self.children.iter_mut().find(|child| child.id() == id);
            if let Some(Ok(Some(status))) = child.map(Child::try_wait) {
                bail!("{what} ended with {status}");
            }
            if begin.elapsed() > START {
                bail!("{what} did not come up in {} s", START.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Remembers a mount, to be undone at the end.
    pub fn mounted(&mut self, dir: &Path) {
        self.mounts.push(dir.to_path_buf());
    }

    /// Forgets a mount that was undone.
    pub fn unmounted(&mut self, dir: &Path) {
        self.mounts.retain(|mount| mount != dir);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for mount in self.mounts.drain(..).rev() {
            let _ = Command::new("umount").arg("-l").arg(&mount).stderr(Stdio::null()).status();
        }
        for child in self.children.iter_mut().rev() {
            let ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
            if !ended(child) {
                let _ = Command::new("kill").arg(child.id().to_string()).stderr(Stdio::null()).status();
                let begin = Instant::now();
                while !ended(child) && begin.elapsed() < END {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(before) = &self.halt_poll {
            let _ = std::fs::write(HALT_POLL, before.trim());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Whether a FUSE file system is mounted exactly at `dir`.
pub fn is_fuse(dir: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string("/proc/self/mountinfo") else { return false };
    let Some(dir) = dir.to_str() else { return false };
    text.lines().any(|line| line.split(' ').nth(4) == Some(dir) && line.contains(" - fuse"))
}

/// Runs a command to its end; an error carries the last line it said.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let name = format!("{command:?}").replace('"', "");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{name} can not be started"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{name}: {}: {}", output.status, said.lines().last().unwrap_or("no word"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
