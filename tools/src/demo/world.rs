//! The demo's little world: one served file, N mounts, every part of it a child process of the real binary.
//!
//! Invariant: whatever way the demo ends (success, failure, Ctrl-C, a panic), dropping the [`World`] leaves no mount, no
//! process and, unless it was asked to keep them, no file behind. Not here: the story (see [`super::steps`]).

use crate::mounts;
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long one command of the binary may take.
const COMMAND: Duration = Duration::from_secs(120);

/// One host: a name and the directory it mounts on.
#[derive(Clone, Debug)]
pub struct Host {
    /// `host-a` and so on.
    pub name: String,
    /// The mount point.
    pub dir: PathBuf,
}

/// All of it.
#[derive(Debug)]
pub struct World {
    /// The directory everything lies in.
    pub dir: PathBuf,
    /// The LUN's address, once served.
    pub lun: String,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// No mounts at all: the hosts' directories are one local directory.
    pub plain: bool,
    /// Whether it is to be left standing at the end.
    pub keep: bool,
    left: bool,
    own_dir: bool,
    serve: Option<Child>,
}

impl World {
    /// An empty world of `hosts` hosts in `dir`, or in a new temporary directory.
    pub fn new(dir: Option<&Path>, hosts: u32, plain: bool) -> Result<Self> {
        let own_dir = dir.is_none();
        let dir = match dir {
            Some(d) => {
                fs::create_dir_all(d).with_context(|| format!("cannot create {}", d.display()))?;
                let left = fs::read_dir(d)?.next().is_some();
                ensure!(!left, "{} is not empty; the demo wants a directory of its own", d.display());
                d.canonicalize()?
            }
            None => new_temporary()?,
        };
        // a unix socket's path has room for 107 bytes
        ensure!(dir.as_os_str().len() < 80, "{} is too long a path for the demo's sockets; choose a shorter one", dir.display());
        let host = |n: u32| {
            let name = format!("host-{}", char::from(b'a' + n as u8));
            Host { dir: dir.join(&name), name }
        };
        let hosts: Vec<Host> = (0..hosts).map(host).collect();
        let world = Self { lun: String::new(), hosts, plain, keep: false, left: false, own_dir, serve: None, dir };
        for h in &world.hosts {
            if plain {
                let one = world.dir.join("plain");
                fs::create_dir_all(&one)?;
                std::os::unix::fs::symlink(&one, &h.dir)?;
            } else {
                fs::create_dir(&h.dir)?;
            }
        }
        fs::create_dir(world.local())?;
        Ok(world)
    }

    /// A directory that is on no mount: logs, sockets, consoles.
    pub fn local(&self) -> PathBuf {
        self.dir.join("local")
    }

    /// Runs `luna` with `args`; its stdout, or its one line of error.
    pub fn luna(&self, args: &[&str]) -> Result<String> {
        let (code, out, err) = self.luna_code(args)?;
        if code != 0 {
            let line = err.lines().last().unwrap_or("it said nothing").trim_start_matches("luna: ").to_owned();
            bail!("luna {}: {line}", args.first().unwrap_or(&""));
        }
        Ok(out)
    }

    /// Runs `luna` with `args`; exit code, stdout, stderr.
    pub fn luna_code(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let exe = std::env::current_exe()?;
        let (out_path, err_path) = (self.local().join("out"), self.local().join("err"));
        let mut command = Command::new(exe);
        command.args(args).stdin(Stdio::null()).process_group(0);
        // files, not pipes: a daemon that a command leaves behind must not keep us waiting
        let mut child = command.stdout(fs::File::create(&out_path)?).stderr(fs::File::create(&err_path)?).spawn()?;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > COMMAND {
                let _ = child.kill();
                let _ = child.wait();
                bail!("luna {} has not ended after {} s", args.join(" "), COMMAND.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let text = |p: &Path| fs::read(p).map(|b| String::from_utf8_lossy(&b).into_owned());
        Ok((status.code().unwrap_or(-1), text(&out_path)?, text(&err_path)?))
    }

    /// Makes a sparse file of `bytes` and serves it; the LUN's address comes from the server's own first line.
    pub fn serve(&mut self, bytes: u64) -> Result<()> {
        let file = self.dir.join("lun.img");
        fs::File::create(&file)?.set_len(bytes).with_context(|| format!("cannot make {}", file.display()))?;
        let socket = self.dir.join("lun.sock");
        let err_path = self.local().join("serve.err");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg(&file).arg("--socket").arg(&socket).args(["--export", "demo"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(fs::File::create(&err_path)?).process_group(0);
        let mut child = command.spawn().context("cannot start luna serve")?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        self.serve = Some(child);
        let lun = line.trim().strip_prefix("listening on ").map(str::to_owned);
        self.lun = lun.with_context(|| {
            let said = fs::read_to_string(&err_path).unwrap_or_default();
            format!("luna serve did not start: {}", said.lines().last().unwrap_or("it said nothing"))
        })?;
        Ok(())
    }

    /// Mounts the LUN for host number `n`.
    pub fn mount(&self, n: usize) -> Result<()> {
        let host = &self.hosts[n];
        let log = self.local().join(format!("{}.log", host.name));
        let (dir, log) = (host.dir.display().to_string(), log.display().to_string());
        self.luna(&["mount", &self.lun, &dir, "--name", &host.name, "--listen", "127.0.0.1:0", "-o", "discard", "--log", &log])?;
        Ok(())
    }

    /// Unmounts host number `n`, waiting until it has left.
    pub fn umount(&self, n: usize) -> Result<()> {
        self.luna(&["umount", &self.hosts[n].dir.display().to_string()]).map(drop)
    }

    /// How the people who kept it can end it.
    pub fn how_to_end(&self) -> String {
        let umounts: Vec<String> = self.hosts.iter().map(|h| format!("luna umount {}", h.dir.display())).collect();
        let kill = self.serve.as_ref().map_or(String::new(), |c| format!("; kill {}", c.id()));
        format!("{}{kill}; rm -r {}", umounts.join("; "), self.dir.display())
    }

    /// From here on the world stays when the demo ends.
    pub fn leave(&mut self) {
        self.left = true;
    }

    fn tear_down(&mut self) {
        for host in self.hosts.iter().filter(|_| !self.plain) {
            if !matches!(mounts::at(&host.dir), Ok(Some(_))) {
                continue;
            }
            let dir = host.dir.display().to_string();
            if self.luna(&["umount", &dir]).is_err() {
                let _ = self.luna(&["umount", "--lazy", &dir]);
            }
        }
        if let Some(mut serve) = self.serve.take() {
            let pid = rustix::process::Pid::from_child(&serve);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let start = Instant::now();
            while matches!(serve.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = serve.kill();
            let _ = serve.wait();
        }
        let mounted = self.hosts.iter().any(|h| matches!(mounts::at(&h.dir), Ok(Some(_))));
        if mounted && !self.plain {
            eprintln!("luna: {} still has mounts; it was left alone", self.dir.display());
        } else if self.own_dir {
            let _ = fs::remove_dir_all(&self.dir);
        } else {
            // the directory is somebody else's: take only what was put there
            for h in &self.hosts {
                let _ = if self.plain { fs::remove_file(&h.dir) } else { fs::remove_dir(&h.dir) };
            }
            for name in ["local", "plain"] {
                let _ = fs::remove_dir_all(self.dir.join(name));
            }
            for name in ["lun.img", "lun.img.fence", "lun.sock"] {
                let _ = fs::remove_file(self.dir.join(name));
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.left {
            self.tear_down();
        }
    }
}

/// A new directory below the system's temporary one.
fn new_temporary() -> Result<PathBuf> {
    for n in 0..1000 {
        let dir = std::env::temp_dir().join(format!("luna-demo-{}-{n}", std::process::id()));
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| format!("cannot create {}", dir.display())),
        }
    }
    bail!("no free name below {}", std::env::temp_dir().display())
}
