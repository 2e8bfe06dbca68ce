//! The commands of `luna serve`: `ping`, `clients`, `fence NAME INCARNATION`; one line in, answer lines out.
//!
//! Two ways in, same words: a Unix socket on the server's machine (mode 0600), and the private NBD option `LUNA` for hosts
//! that reach the server over the network only. A line is bounded before it is read. An answer that begins with `ok` was
//! done; one that begins with `error` was not. For tests there is `power-cut SEED`, over the socket only (see `volatile`).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::Shared;
use crate::{LunError, LunSpec, Result};

/// No line is longer.
pub(super) const LINE_MAX: usize = 512;
/// A fence waits for running requests; whoever asks waits a little longer than that.
const PATIENCE: Duration = Duration::from_secs(65);

/// Does one command; `local`: it came over the socket on this machine.
pub(super) fn execute(shared: &Shared, line: &str, local: bool) -> Result<String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words.as_slice() {
        ["ping"] => Ok("ok pong".into()),
        ["clients"] => Ok(format!("{}ok", shared.registry.list())),
        ["fence", name, incarnation] => {
            let incarnation = incarnation.parse().map_err(|_| LunError::Usage(format!("'{incarnation}' is not an incarnation")))?;
            shared.registry.fence(name, incarnation)
        }
        ["power-cut", seed] if local => {
            let seed = seed.parse().map_err(|_| LunError::Usage(format!("'{seed}' is not a seed")))?;
            shared.power_cut(seed)
        }
        _ => Err(LunError::Usage("commands are: ping, clients, fence NAME INCARNATION".into())),
    }
}

/// Answers the lines of one control connection.
pub(super) fn serve(shared: &Shared, stream: &UnixStream) {
    // Short turns, so that a stopping server does not wait for a silent client.
    if stream.set_read_timeout(Some(super::TURN)).and_then(|()| stream.set_write_timeout(Some(super::TURN * 10))).is_err() {
        return;
    }
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        match reader.by_ref().take((LINE_MAX - line.len()) as u64).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) if line.last() != Some(&b'\n') => {
                if line.len() >= LINE_MAX {
                    return;
                }
                continue;
            }
            Ok(_) => {}
            Err(error) if crate::stream::is_again(&error) => {
                if shared.stop.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                continue;
            }
            Err(_) => return,
        }
        let answer = match std::str::from_utf8(&line).map_err(|_| LunError::Usage("not text".into())).and_then(|l| execute(shared, l, true))
        {
            Ok(text) => text,
            Err(error) => format!("error {error}"),
        };
        line.clear();
        let mut out = stream;
        if out.write_all(format!("{answer}\n").as_bytes()).is_err() {
            return;
        }
    }
}

/// Sends one line to a server's control socket and gives the whole answer; an `error` answer becomes an error.
pub fn control_command(socket: &Path, line: &str) -> Result<String> {
    let failed = |error: std::io::Error| LunError::Refused(format!("{}: {error}", socket.display()));
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.write_all(format!("{line}\n").as_bytes()).map_err(failed)?;
    stream.shutdown(std::net::Shutdown::Write).map_err(failed)?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer).map_err(failed)?;
    let answer = answer.trim_end().to_owned();
    match answer.strip_prefix("error ") {
        Some(text) => Err(LunError::Refused(text.to_owned())),
        None if answer.is_empty() => Err(LunError::Refused(format!("{}: the server gave no answer", socket.display()))),
        None => Ok(answer),
    }
}

/// Asks the `luna serve` behind `spec` to cut off `name` up to and including `incarnation`. `Ok` means: nothing that it sent
/// will be applied any more. It answers `ok fenced NAME INCARNATION drained CONNECTIONS`.
pub fn client_fence(spec: &LunSpec, name: &str, incarnation: u64) -> Result<String> {
    match crate::nbd::command(spec, &format!("fence {name} {incarnation}"), PATIENCE)? {
        Some(answer) if answer.starts_with("ok fenced ") => Ok(answer),
        Some(answer) => Err(LunError::Refused(format!("{spec}: the server did not fence {name}: {answer}"))),
        None => Err(LunError::Refused(format!("{spec}: this server can not fence; 'luna serve' can"))),
    }
}
