//! `luna mount`: starts this host's daemon and returns when the mount is usable.
//!
//! The daemon is this binary again (`--daemon`), in a session of its own, with its stdout as the line to its parent: `ready`
//! or one line that says why not. So the parent prints the daemon's own error and its exit status is the mount's. Nothing
//! here forks, so nothing here is unsafe.
//!
//! Invariant: when this returns 0 the directory is a usable mount; when it does not, nothing is mounted and no daemon is
//! left. Not here: what a host does (the node crate).

use crate::{cli::MountArgs, mounts};
use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{UnmountFlags, unmount};
use std::{
    fs::OpenOptions,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Words of fstab and mount(8) that are no business of the file system.
const IGNORED: [&str; 18] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "rw",
    "async",
    "exec",
    "nosuid",
    "nodev",
    "allow_other",
    "relatime",
    "noatime",
];

/// What the node is told, from flags and `-o` together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `ro`.
    pub read_only: bool,
    /// `discard`: give freed space back to the LUN.
    pub discard: bool,
    /// `suid`: honour set-user-id bits (off by default).
    pub suid: bool,
    /// `dev`: honour device nodes (off by default).
    pub dev: bool,
    /// `name=`.
    pub name: Option<String>,
    /// `listen=`.
    pub listen: Option<String>,
    /// `log=`.
    pub log: Option<PathBuf>,
    /// `fence_cmd=`: a program that switches a dead host off.
    pub fence_cmd: Option<PathBuf>,
    /// `fence_qmp=`: the control socket of the `qemu-storage-daemon` that serves the LUN.
    pub fence_qmp: Option<PathBuf>,
}

/// Reads the words of `-o`.
pub fn settings(options: &[String]) -> Result<Settings> {
    let mut s = Settings::default();
    for word in options.iter().map(|o| o.trim()).filter(|o| !o.is_empty()) {
        match word.split_once('=') {
            Some(("name", v)) => s.name = Some(v.into()),
            Some(("listen", v)) => s.listen = Some(v.into()),
            Some(("log", v)) => s.log = Some(v.into()),
            Some(("fence_qmp", v)) => s.fence_qmp = Some(v.into()),
            Some(("fence_cmd", v)) => s.fence_cmd = Some(v.into()),
            Some((key, _)) if key.starts_with("x-") || key == "comment" => {}
            None => match word {
                "ro" => s.read_only = true,
                "discard" => s.discard = true,
                "nodiscard" => s.discard = false,
                "suid" => s.suid = true,
                "dev" => s.dev = true,
                _ if IGNORED.contains(&word) || word.starts_with("x-") => {}
                _ => bail!("unknown mount option '{word}'"),
            },
            Some(_) => bail!("unknown mount option '{word}'"),
        }
    }
    Ok(s)
}

/// Runs the command.
pub fn run(mut args: MountArgs) -> Result<()> {
    let mut settings = settings(&args.options)?;
    settings.name = args.name.take().or(settings.name);
    settings.listen = args.listen.take().or(settings.listen);
    settings.log = args.log.take().or(settings.log);
    let name = settings.name.get_or_insert_with(luna_node::options::host_name);
    ensure!(!name.is_empty() && name.len() <= 63, "'{name}' is no host name: 1 to 63 bytes are wanted; give one with --name");
    ensure!(
        !name.chars().any(|c| c.is_control() || c.is_whitespace() || c == '#'),
        "'{name}' is no host name: blanks and '#' are not allowed"
    );
    if let Some(program) = &settings.fence_cmd {
        ensure!(program.is_absolute() && program.is_file(), "fence_cmd={}: give the absolute path of a program", program.display());
    }
    if let Some(socket) = &settings.fence_qmp {
        let shown = socket.display();
        ensure!(socket.is_absolute() && socket.exists(), "fence_qmp={shown}: give the absolute path of a qemu-storage-daemon's QMP socket");
        ensure!(args.lun.starts_with("nbd"), "fence_qmp={shown}: the LUN must be an NBD export of that qemu-storage-daemon");
    }
    if let Some(listen) = &settings.listen {
        listen.parse::<std::net::SocketAddr>().with_context(|| format!("'{listen}' is not ADDR:PORT"))?;
    }
    // the daemon changes its directory, so everything is made absolute here
    if !args.lun.contains("://") {
        args.lun = mounts::absolute(Path::new(&args.lun))?.display().to_string();
    }
    args.dir = args.dir.canonicalize().with_context(|| format!("cannot mount on {}", args.dir.display()))?;
    ensure!(args.dir.is_dir(), "cannot mount on {}: not a directory", args.dir.display());
    if mounts::at(&args.dir)?.is_some_and(|m| m.is_luna()) {
        bail!("{} has a Luna mount already; unmount it first with 'luna umount'", args.dir.display());
    }
    match (args.daemon, args.foreground) {
        (true, _) => daemon(&args, &settings),
        (false, true) => foreground(&args, &settings),
        (false, false) => launch(&args, &settings),
    }
}

/// Starts the daemon and waits for its word.
fn launch(args: &MountArgs, settings: &Settings) -> Result<()> {
    let log_path = match &settings.log {
        Some(path) => path.clone(),
        None => luna_node::control::socket_path(&args.dir).with_extension("log"),
    };
    if let Some(parent) = log_path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let log =
        OpenOptions::new().create(true).append(true).open(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["mount", "--daemon"]).arg(&args.lun).arg(&args.dir);
    if let Some(name) = &settings.name {
        command.args(["--name", name]);
    }
    if let Some(listen) = &settings.listen {
        command.args(["--listen", listen]);
    }
    if !args.options.is_empty() {
        command.args(["-o", &args.options.join(",")]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().context("cannot start the daemon")?;
    let mut word = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut word).context("cannot hear the daemon")?;
    }
    match word.trim() {
        "ready" => Ok(()),
        "" => {
            let status = child.wait()?;
            bail!("cannot mount {} on {}: the daemon ended ({status}); see {}", args.lun, args.dir.display(), log_path.display())
        }
        error => {
            let _ = child.wait();
            bail!("{error}")
        }
    }
}

/// The daemon's half.
fn daemon(args: &MountArgs, settings: &Settings) -> Result<()> {
    // fails only for a process that leads a group already, which is as good
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/").context("cannot change to /")?;
    start_log("info");
    let host = match start(args, settings) {
        Ok(host) => host,
        Err(e) => {
            println!("{}", crate::one_line(&e));
            return Err(e);
        }
    };
    println!("ready");
    serve(args, host)
}

fn foreground(args: &MountArgs, settings: &Settings) -> Result<()> {
    match &settings.log {
        None => start_log("info"),
        Some(path) => {
            let log =
                OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("cannot write {}", path.display()))?;
            tracing_subscriber::fmt().with_env_filter(filter("info")).with_ansi(false).with_writer(std::sync::Mutex::new(log)).init();
        }
    }
    let host = start(args, settings)?;
    eprintln!("luna: {} is mounted on {}; end with Ctrl-C", args.lun, args.dir.display());
    serve(args, host)
}

fn filter(level: &str) -> tracing_subscriber::EnvFilter {
    tracing_subscriber::EnvFilter::try_from_env("LUNA_LOG").unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level))
}

fn start_log(level: &str) {
    tracing_subscriber::fmt().with_env_filter(filter(level)).with_ansi(false).with_writer(std::io::stderr).init();
}

/// Brings the host up.
fn start(args: &MountArgs, settings: &Settings) -> Result<luna_node::MountedHost> {
    let lun = args.lun.parse().with_context(|| format!("'{}' is no LUN", args.lun))?;
    let mut options = luna_node::MountOptions::new(lun, args.dir.clone());
    if let Some(name) = &settings.name {
        options.name.clone_from(name);
    }
    if let Some(text) = &settings.listen {
        options.listen = text.parse().with_context(|| format!("'{text}' is not ADDR:PORT"))?;
    }
    options.read_only = settings.read_only;
    options.discard = settings.discard;
    options.nosuid = !settings.suid;
    options.nodev = !settings.dev;
    options.fence_cmd.clone_from(&settings.fence_cmd);
    options.fence_qmp.clone_from(&settings.fence_qmp);
    luna_node::mount(options).with_context(|| format!("cannot mount {} on {}", args.lun, args.dir.display()))
}

/// Runs until the mount is gone: by umount(8), by `luna umount`, or by a signal.
fn serve(args: &MountArgs, host: luna_node::MountedHost) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
    let dir = args.dir.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in &mut signals {
            // in use: take it out of the tree; it ends when the last user does
            if unmount(&dir, UnmountFlags::NOFOLLOW).is_err() {
                let _ = unmount(&dir, UnmountFlags::DETACH);
            }
        }
    })?;
    host.wait().with_context(|| format!("unmounting {}", args.dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn options_of_fstab() {
        let s = settings(&words("rw,discard,_netdev,nofail,x-systemd.automount,name=kvm1,listen=10.0.0.1:7000")).expect("all known");
        assert!(s.discard && !s.read_only && !s.suid);
        assert_eq!((s.name.as_deref(), s.listen.as_deref()), (Some("kvm1"), Some("10.0.0.1:7000")));
        assert!(settings(&words("ro,suid,dev")).expect("all known").read_only);
        for bad in ["disc", "name", "size=3"] {
            assert!(settings(&words(bad)).is_err(), "{bad}");
        }
    }
}
