//! The local door to a running mount: a Unix socket, root only, one line in, one JSON answer out.
//!
//! `luna status DIR`, `luna umount DIR` and `luna fsck -n` use it. Commands: see `status`. The path is derived from the
//! mount point, so that no registry is needed. Not here: what the answers contain (see `status`).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Where the sockets live.
const RUN_DIR: &str = "/run/luna";
/// The longest command line.
const MAX_LINE: u64 = 4096;

/// What answers a command line; for a command that lasts, the stream tells when its asker is gone.
pub type Answer = dyn Fn(&str, &UnixStream) -> String + Send + Sync;

/// The socket of the mount at `dir`. The name is the path with `/` as `-`, as systemd does, cut by a hash when too long.
pub fn socket_path(dir: &Path) -> PathBuf {
    let full = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let text = full.to_string_lossy();
    let escaped: String = text.trim_matches('/').chars().map(|c| if c == '/' { '-' } else { c }).collect();
    if escaped.len() <= 80 {
        return Path::new(RUN_DIR).join(format!("{escaped}.sock"));
    }
    let id = crate::options::host_id(&text);
    let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
    Path::new(RUN_DIR).join(format!("{hex}.sock"))
}

/// A serving control socket; removed when dropped.
pub struct Control {
    path: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Control {
    /// Serves `answer` at the socket of `dir`.
    pub fn start(dir: &Path, answer: Arc<Answer>) -> std::io::Result<Self> {
        let path = socket_path(dir);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(RUN_DIR)?;
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::Builder::new().name("luna-control".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let answer = Arc::clone(&answer);
                let _ = std::thread::Builder::new().name("luna-control-1".into()).spawn(move || one(stream, &*answer));
            }
        })?;
        Ok(Self { path, stop })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn one(stream: UnixStream, answer: &Answer) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let _ = stream.set_write_timeout(Some(Duration::from_secs(5)));
    let mut line = String::new();
    if BufReader::new((&stream).take(MAX_LINE)).read_line(&mut line).is_ok() {
        let _ = (&stream).write_all(answer(line.trim(), &stream).as_bytes());
    }
}

/// Asks the mount at `dir`; the error says when nothing is mounted there.
pub fn ask(dir: &Path, command: &str, timeout: Duration) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket_path(dir))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
