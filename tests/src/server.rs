//! The targets: `luna serve`, `qemu-nbd` and `nbdkit`, each over the same file on a unix socket.

use crate::{Result, luna_bin, wait_until};
use anyhow::{Context, ensure};
use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Which program serves the LUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `luna serve`.
    Luna,
    /// `qemu-nbd --shared=0`.
    QemuNbd,
    /// `nbdkit file`.
    Nbdkit,
    /// `nbdkit` that takes one connection at a time and so does not announce multi-connection coherence.
    NbdkitSingle,
    /// `luna serve --read-only`.
    LunaReadOnly,
    /// `luna serve` with a volatile cache, see [`Server::power_cut`].
    LunaVolatile,
    /// `qemu-storage-daemon` with a QMP socket beside the LUN's.
    StorageDaemon,
}

/// Where the control socket of a `qemu-storage-daemon` lies.
pub(crate) fn qmp_socket(socket: &Path) -> PathBuf {
    socket.with_extension("qmp")
}

/// A serving process; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    socket: PathBuf,
    /// The LUN's address.
    pub lun: String,
}

impl Server {
    /// Serves `file` on `socket`.
    pub fn start(kind: Kind, file: &Path, socket: &Path, log: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(socket);
        let (mut command, export) = match kind {
            Kind::Luna | Kind::LunaReadOnly | Kind::LunaVolatile => {
                let mut c = Command::new(luna_bin());
                c.arg("serve").arg(file).arg("--socket").arg(socket).args(["--export", "lun"]);
                if kind == Kind::LunaReadOnly {
                    c.arg("--read-only");
                }
                if kind == Kind::LunaVolatile {
                    c.arg("--control").arg(socket.with_extension("control")).args(["--power-cut-cache", "64"]);
                }
                (c, "lun")
            }
            Kind::StorageDaemon => {
                let mut c = Command::new("qemu-storage-daemon");
                let qmp = qmp_socket(socket);
                let _ = std::fs::remove_file(&qmp);
                c.args(["--blockdev", &format!("driver=file,node-name=disk,filename={},discard=unmap", file.display())]);
                c.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", socket.display())]);
                c.args(["--export", "type=nbd,id=lun,name=lun,node-name=disk,writable=on"]);
                c.args(["--chardev", &format!("socket,id=qmp,path={},server=on,wait=off", qmp.display()), "--monitor", "chardev=qmp"]);
                (c, "lun")
            }
            Kind::QemuNbd => {
                let mut c = Command::new("qemu-nbd");
                c.args(["--format=raw", "--cache=none", "--discard=unmap", "--shared=0", "--persistent", "--export-name=lun"]);
                c.arg(format!("--socket={}", socket.display())).arg(file);
                (c, "lun")
            }
            Kind::Nbdkit | Kind::NbdkitSingle => {
                let mut c = Command::new("nbdkit");
                c.args(["--foreground", "--exit-with-parent", "--threads=16", "--unix"]).arg(socket);
                if kind == Kind::NbdkitSingle {
                    c.arg("--filter=multi-conn");
                }
                c.arg("file").arg(format!("file={}", file.display()));
                if kind == Kind::NbdkitSingle {
                    c.arg("multi-conn-mode=disable");
                }
                (c, "")
            }
        };
        let log = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stderr(log).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {kind:?}"))?;
        let said = child.stdout.take();
        if matches!(kind, Kind::Luna | Kind::LunaReadOnly | Kind::LunaVolatile)
            && let Some(out) = said
        {
            let mut line = String::new();
            BufReader::new(out).read_line(&mut line)?;
        }
        let lun = format!("nbd+unix:///{export}?socket={}", socket.display());
        let server = Self { child, socket: socket.into(), lun };
        wait_until("the server's socket", Duration::from_secs(20), || UnixStream::connect(socket).is_ok())?;
        Ok(server)
    }

    /// `luna serve` over `file` that begins after `late`, prepared now: nothing may be started while a program waits in a mount
    /// for its target, because a new process closes the files it inherited, and the kernel lets that wait for the write.
    pub fn start_late(file: &Path, socket: &Path, log: &Path, late: Duration) -> Result<Self> {
        let mut command = Command::new("sh");
        // its first word says that it has closed what it inherited
        let script = format!("echo here; sleep {}; exec \"$0\" \"$@\" > /dev/null", late.as_secs_f32());
        command.args(["-c", &script]).arg(luna_bin()).arg("serve").arg(file).arg("--socket").arg(socket).args(["--export", "lun"]);
        let log = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stderr(log).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().context("cannot start the shell")?;
        let said = child.stdout.take().context("a pipe")?;
        BufReader::new(said).read_line(&mut String::new())?;
        Ok(Self { child, socket: socket.into(), lun: format!("nbd+unix:///lun?socket={}", socket.display()) })
    }

    /// The target ([`Kind::LunaVolatile`]) loses power: of what was not flushed anything is left, by `seed`; what it says.
    /// Starts no program.
    pub fn power_cut(&self, seed: u64) -> Result<String> {
        let mut stream = UnixStream::connect(self.socket.with_extension("control"))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(format!("power-cut {seed}\n").as_bytes())?;
        let mut said = String::new();
        BufReader::new(stream).read_line(&mut said)?;
        ensure!(said.starts_with("ok"), "the target did not lose power: {said}");
        Ok(said.trim_end().to_owned())
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Kills it, as a power cut of the target would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
