//! A small client of QEMU's machine protocol: one command at a time over a unix socket, events skipped.
//!
//! Invariant: every wait has an end. Not here: what the commands mean (see [`super::vm`]).

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// How long QEMU may take to answer one command.
const ANSWER: Duration = Duration::from_secs(20);

/// A connection that has passed the greeting.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to `path`, waiting for QEMU to make the socket; `alive` says whether it still can.
    pub fn connect(path: &Path, mut alive: impl FnMut() -> Result<()>) -> Result<Self> {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(s) => break s,
                Err(e) if start.elapsed() > ANSWER => return Err(e).context("QEMU does not open its control socket"),
                Err(_) => alive()?,
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut qmp = Self { reader: BufReader::new(stream.try_clone()?), stream };
        qmp.read()?;
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs `command` and gives its `return`.
    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).with_context(|| format!("cannot send '{command}' to QEMU"))?;
        loop {
            let mut answer = self.read().with_context(|| format!("QEMU gives no answer to '{command}'"))?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses '{command}': {}", error["desc"].as_str().unwrap_or("no reason given"));
            }
            // anything else is an event
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed its control socket");
        }
        serde_json::from_str(&line).context("QEMU's answer is not JSON")
    }
}
