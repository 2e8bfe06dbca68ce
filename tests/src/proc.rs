//! Running programs: with an end to every wait, and with what they said in the error.

use crate::{Result, luna_bin};
use anyhow::{Context, bail, ensure};
use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long one program may run.
const LIMIT: Duration = Duration::from_secs(150);

/// What a program did.
#[derive(Debug)]
pub struct Output {
    /// Its exit status; -1 for a signal.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// What it complained about.
    pub err: String,
    /// How long it took.
    pub took: Duration,
}

impl Output {
    /// The error when it should have succeeded.
    pub fn ok(self, what: &str) -> Result<Self> {
        ensure!(self.code == 0, "{what} ended with {}: {}{}", self.code, self.err.trim(), self.out.trim());
        Ok(self)
    }
}

/// Whether `program` can be found.
pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain([Path::new("/usr/sbin").into(), Path::new("/sbin").into()]).any(|d| d.join(program).exists())
}

/// Runs `program` with `args`; its status and what it said.
pub fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(args);
    finish(&mut command, program)
}

/// Runs `program` in the directory `dir`; an error unless it succeeds.
pub fn run_in<S: AsRef<OsStr>>(dir: &Path, program: &str, args: &[S]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir);
    let words: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
    Ok(finish(&mut command, program)?.ok(&format!("{program} {}", words.join(" ")))?.out)
}

/// Runs `program`; an error unless it succeeds.
pub fn tool<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<String> {
    run_in(Path::new("/"), program, args)
}

/// Runs the binary under test.
pub(crate) fn luna<S: AsRef<OsStr>>(args: &[S]) -> Result<Output> {
    let mut command = Command::new(luna_bin());
    command.args(args);
    finish(&mut command, "luna")
}

/// Runs `command` to its end, within [`LIMIT`].
pub(crate) fn finish(command: &mut Command, name: &str) -> Result<Output> {
    // files, not pipes: a daemon that stays behind must not keep us waiting
    let (mut out, mut err) = (scratch()?, scratch()?);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    let begin = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begin.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{name} has not ended after {} s; it said: {}", LIMIT.as_secs(), text(&mut err)?.trim());
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    Ok(Output { code: status.code().unwrap_or(-1), out: text(&mut out)?, err: text(&mut err)?, took: begin.elapsed() })
}

fn scratch() -> Result<File> {
    // an unnamed file: nothing to clean up
    let fd = rustix::fs::memfd_create("luna-test", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(File::from(fd))
}

fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits until `done` says so, at most `limit`; an error that names `what` otherwise.
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Result {
    let begin = Instant::now();
    while !done() {
        ensure!(begin.elapsed() < limit, "{what}: not within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
