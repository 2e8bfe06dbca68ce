//! A LUN, a server, and mounted hosts.

use crate::{
    Kind, Output, Result, Server, luna_bin,
    proc::{finish, luna, tool},
    proxy::Proxy,
    server::qmp_socket,
    wait_until,
};
use anyhow::{Context, ensure};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How long a cluster may live unless told otherwise. A call that hangs in a mount cannot be interrupted by anything but the end of its daemon.
const LIFE: Duration = Duration::from_secs(150);

/// What a cluster is made with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Size of the LUN.
    pub bytes: u64,
    /// Who serves it.
    pub kind: Kind,
    /// How many hosts are mounted at once.
    pub hosts: usize,
    /// `--slots` of mkfs.
    pub slots: u32,
    /// `-o` of every mount.
    pub options: &'static str,
    /// Network namespaces the hosts live in, by host; empty for none.
    pub namespaces: Vec<String>,
    /// How long the cluster may live.
    pub life: Duration,
    /// `--listen` of every mount, with the host's number for `{}`.
    pub listen: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            bytes: 16 << 30,
            kind: Kind::Luna,
            hosts: 3,
            slots: 8,
            options: "",
            namespaces: Vec::new(),
            life: LIFE,
            listen: "127.0.0.1:0",
        }
    }
}

/// One host of a cluster.
#[derive(Clone, Debug)]
pub struct Host {
    /// `host-a` and so on.
    pub name: String,
    /// The mount point.
    pub dir: PathBuf,
    number: usize,
}

impl Host {
    /// A path below the mount.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.dir.join(below)
    }
}

/// All of it; torn down when dropped.
#[derive(Debug)]
pub struct Cluster {
    /// Where everything lies.
    pub dir: PathBuf,
    /// The server; `None` while it is away.
    pub server: Option<Server>,
    /// The hosts, mounted or not.
    pub hosts: Vec<Host>,
    setup: Setup,
    good: bool,
    over: Arc<AtomicBool>,
    /// Each host's newest daemon, noted while it is well: a broken one can make the process table hang.
    pids: Arc<Mutex<BTreeMap<usize, i32>>>,
    /// Hosts that reach the LUN by another way.
    ways: BTreeMap<usize, String>,
}

/// Ends a cluster's daemons when dropped, unless told that all went well: threads that wait in a mount then end, and so does a
/// scope that waits for them.
#[derive(Debug)]
pub struct Rescue(Option<Arc<Mutex<BTreeMap<usize, i32>>>>);

impl Rescue {
    /// All went well.
    pub fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Rescue {
    fn drop(&mut self) {
        if let Some(pids) = self.0.take() {
            eprintln!("not well: killing the daemons");
            kill_all(&pids);
        }
    }
}

/// Continues and kills them all.
fn kill_all(pids: &Mutex<BTreeMap<usize, i32>>) {
    for pid in pids.lock().map(|p| p.values().copied().collect::<Vec<_>>()).unwrap_or_default() {
        kill_stopped(pid);
    }
}

fn kill_stopped(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::CONT);
    }
}

impl Cluster {
    /// A cluster of three hosts with everything by default.
    pub fn new(name: &str) -> Result<Self> {
        Self::with(name, Setup::default())
    }

    /// A cluster, made and mounted.
    pub fn with(name: &str, setup: Setup) -> Result<Self> {
        let mut cluster = Self::unmade(name, setup)?;
        cluster.mkfs()?;
        for n in 0..cluster.setup.hosts {
            cluster.add_host()?;
            cluster.mount(n)?;
        }
        Ok(cluster)
    }

    /// A served LUN with nothing on it and no hosts.
    pub fn unmade(name: &str, setup: Setup) -> Result<Self> {
        // short: a unix socket's path has room for 107 bytes
        let dir = std::env::temp_dir().join(format!("lt-{}-{}-{name}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&dir)?;
        let mut cluster = Self {
            server: None,
            hosts: Vec::new(),
            setup,
            good: false,
            over: Arc::default(),
            pids: Arc::default(),
            ways: BTreeMap::new(),
            dir,
        };
        watch(cluster.dir.clone(), Arc::clone(&cluster.over), Arc::clone(&cluster.pids), cluster.setup.life);
        File::create(cluster.lun_file())?.set_len(cluster.setup.bytes)?;
        cluster.start_server()?;
        Ok(cluster)
    }

    /// The file behind the LUN.
    pub fn lun_file(&self) -> PathBuf {
        self.dir.join("lun.img")
    }

    /// The LUN's address.
    pub fn lun(&self) -> String {
        self.server.as_ref().map_or_else(String::new, |s| s.lun.clone())
    }

    /// Starts the server (again).
    pub fn start_server(&mut self) -> Result {
        let server = Server::start(self.setup.kind, &self.lun_file(), &self.dir.join("lun.sock"), &self.dir.join("serve.log"))?;
        self.server = Some(server);
        Ok(())
    }

    /// Host `n` reaches the LUN through a cable of its own from its next mount on.
    pub fn own_cable(&mut self, n: usize) -> Result<Proxy> {
        let proxy = Proxy::start(&self.dir.join(format!("cable{n}.sock")), &self.dir.join("lun.sock"))?;
        self.ways.insert(n, format!("nbd+unix:///lun?socket={}", proxy.socket.display()));
        Ok(proxy)
    }

    /// Takes the target (`luna serve`) away for a while: killed now, there again after `late`.
    pub fn target_away(&mut self, late: Duration) -> Result {
        let next = Server::start_late(&self.lun_file(), &self.dir.join("lun.sock"), &self.dir.join("serve.log"), late)?;
        self.server = None;
        self.server = Some(next);
        Ok(())
    }

    /// The status of host `n`, asked without starting a program: see [`Server::start_late`].
    pub fn ask_status(&self, n: usize) -> Result<serde_json::Value> {
        let name = self.hosts[n].dir.display().to_string().trim_matches('/').replace('/', "-");
        let mut stream = UnixStream::connect(format!("/run/luna/{name}.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"status\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("status is no JSON: {text}"))
    }

    /// Runs `luna` with `args`.
    pub fn luna<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Result<Output> {
        luna(args)
    }

    /// Makes the file system.
    pub fn mkfs(&self) -> Result {
        let slots = self.setup.slots.to_string();
        luna(&["mkfs", &self.lun(), "--slots", &slots, "--label", "test", "--yes"])?.ok("mkfs").map(drop)
    }

    /// One more host, not mounted yet; its number.
    pub fn add_host(&mut self) -> Result<usize> {
        let number = self.hosts.len();
        let name = format!("host-{}", char::from(b'a' + number as u8));
        let dir = self.dir.join(format!("m{number}"));
        fs::create_dir(&dir)?;
        self.hosts.push(Host { name, dir, number });
        Ok(number)
    }

    /// The mount command of host `n`, to be run or changed.
    pub fn mount_command(&self, n: usize, name: &str) -> Command {
        let host = &self.hosts[n];
        let mut command = match self.setup.namespaces.get(host.number) {
            Some(namespace) => {
                let mut c = Command::new("nsenter");
                // not `ip netns exec`: that would hide the mount in a mount namespace of its own
                c.arg(format!("--net=/run/netns/{namespace}")).arg(luna_bin());
                c
            }
            None => Command::new(luna_bin()),
        };
        let listen = self.setup.listen.replace("{}", &(n + 1).to_string());
        command
            .arg("mount")
            .arg(self.ways.get(&n).cloned().unwrap_or_else(|| self.lun()))
            .arg(&host.dir)
            .args(["--name", name, "--listen", &listen]);
        command.arg("--log").arg(self.dir.join(format!("{}.log", host.name)));
        if self.setup.kind == Kind::StorageDaemon {
            command.arg("-o").arg(format!("fence_qmp={}", qmp_socket(&self.dir.join("lun.sock")).display()));
        }
        if !self.setup.options.is_empty() {
            command.args(["-o", self.setup.options]);
        }
        command
    }

    /// Mounts host `n`; what the command did.
    pub fn try_mount(&self, n: usize) -> Result<Output> {
        finish(&mut self.mount_command(n, &self.hosts[n].name), "luna mount")
    }

    /// Mounts host `n`.
    pub fn mount(&self, n: usize) -> Result {
        self.try_mount(n)?.ok(&format!("mounting {}", self.hosts[n].name))?;
        let pid = self.daemon_pid(n)?;
        let _ = self.pids.lock().map(|mut p| p.insert(n, pid));
        Ok(())
    }

    /// For scopes with threads that use a mount: see [`Rescue`].
    pub fn rescue(&self) -> Rescue {
        Rescue(Some(Arc::clone(&self.pids)))
    }

    /// The daemon of host `n` as noted when it was mounted.
    pub fn noted_pid(&self, n: usize) -> Result<i32> {
        self.pids.lock().ok().and_then(|p| p.get(&n).copied()).context("that host was never mounted")
    }

    /// Runs a command made from [`Cluster::mount_command`].
    pub fn command(&self, command: &mut Command) -> Result<Output> {
        finish(command, "luna mount")
    }

    /// Serves with another program from the next [`Cluster::start_server`] on.
    pub fn set_kind(&mut self, kind: Kind) {
        self.setup.kind = kind;
    }

    /// Kills the daemon of host `n` as a power cut would, and takes the dead mount out of the tree.
    pub fn kill(&mut self, n: usize) -> Result {
        kill_stopped(self.daemon_pid(n)?);
        let _ = self.pids.lock().map(|mut p| p.remove(&n));
        tool("umount", &["-l", &self.hosts[n].dir.display().to_string()]).map(drop)
    }

    /// Unmounts host `n` and waits until it has left.
    pub fn umount(&self, n: usize) -> Result {
        let dir = self.hosts[n].dir.display().to_string();
        luna(&["umount", &dir])?.ok("umount")?;
        let _ = self.pids.lock().map(|mut p| p.remove(&n));
        Ok(())
    }

    /// Unmounts every mounted host.
    pub fn umount_all(&self) -> Result {
        (0..self.hosts.len()).filter(|n| self.is_mounted(*n)).try_for_each(|n| self.umount(n))
    }

    /// Whether host `n` is mounted.
    pub fn is_mounted(&self, n: usize) -> bool {
        is_mounted(&self.hosts[n].dir)
    }

    /// A path below the mount of host `n`.
    pub fn path(&self, n: usize, below: impl AsRef<Path>) -> PathBuf {
        self.hosts[n].path(below)
    }

    /// `luna status --json` of host `n`.
    pub fn status(&self, n: usize) -> Result<serde_json::Value> {
        let dir = self.hosts[n].dir.display().to_string();
        let out = luna(&["status", &dir, "--json"])?.ok("status")?;
        serde_json::from_str(&out.out).with_context(|| format!("status is no JSON: {}", out.out))
    }

    /// The process number of host `n`'s daemon.
    pub fn daemon_pid(&self, n: usize) -> Result<i32> {
        let dir = self.hosts[n].dir.display().to_string();
        daemons(&dir).first().copied().with_context(|| format!("no daemon for {dir}"))
    }

    /// Unmounts everything, checks the file system and lets go of it all. Every test ends with it.
    pub fn finish(mut self) -> Result {
        self.umount_all()?;
        self.fsck()?;
        self.good = true;
        Ok(())
    }

    /// Ends a test that leaves nothing worth checking.
    pub fn discard(mut self) {
        self.good = true;
    }

    /// `fsck -n` must find nothing.
    pub fn fsck(&self) -> Result {
        let out = luna(&["fsck", "-n", &self.lun()])?;
        ensure!(out.code == 0, "fsck -n ended with {}: {}{}", out.code, out.out, out.err);
        Ok(())
    }
}

/// The daemons whose mount point begins with `dir`.
fn daemons(dir: &str) -> Vec<i32> {
    let of = |pid: i32| -> Option<i32> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        (words.iter().any(|w| w == "--daemon") && words.iter().any(|w| w == dir || w.starts_with(&format!("{dir}/m")))).then_some(pid)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| of(e.file_name().to_string_lossy().parse().ok()?)).collect()
}

/// Kills the daemons below `dir` when the cluster outlives its time: whatever hangs in a mount then fails, and the test with it.
fn watch(dir: PathBuf, over: Arc<AtomicBool>, pids: Arc<Mutex<BTreeMap<usize, i32>>>, life: Duration) {
    std::thread::spawn(move || {
        let begin = Instant::now();
        while begin.elapsed() < life {
            std::thread::sleep(Duration::from_millis(200));
            if over.load(Ordering::Relaxed) {
                return;
            }
        }
        eprintln!("{}: still there after {} s; killing its daemons", dir.display(), life.as_secs());
        kill_all(&pids);
        for pid in daemons(&dir.display().to_string()) {
            kill_stopped(pid);
        }
    });
}

fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let want = dir.display().to_string();
    table.lines().any(|l| l.split(' ').nth(4) == Some(&want))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let keep = !self.good || std::env::var_os("LUNA_TEST_KEEP").is_some();
        if !self.good {
            // whatever is broken must not make what follows wait
            kill_all(&self.pids);
        }
        for n in 0..self.hosts.len() {
            if !self.is_mounted(n) {
                continue;
            }
            let pid = self.daemon_pid(n);
            let _ = tool("umount", &["-l", &self.hosts[n].dir.display().to_string()]);
            if let Ok(pid) = pid {
                // it may be waiting for a target that is away
                let gone = || !Path::new(&format!("/proc/{pid}")).exists();
                if wait_until("daemon", Duration::from_secs(5), gone).is_err() {
                    kill_stopped(pid);
                }
            }
        }
        self.server = None;
        self.over.store(true, Ordering::Relaxed);
        if keep {
            eprintln!("kept: {}", self.dir.display());
            for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.ends_with(".log") {
                    let text = fs::read_to_string(entry.path()).unwrap_or_default();
                    let lines: Vec<&str> = text.lines().collect();
                    eprintln!("--- {name}, last lines\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
                }
            }
            // the LUN may be large
            if std::env::var_os("LUNA_TEST_KEEP").is_none() {
                let _ = fs::remove_file(self.lun_file());
            }
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
