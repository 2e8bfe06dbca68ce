//! Our client against other people's servers, other people's clients against our server, and our server killed with
//! SIGKILL in a process of its own. A missing program skips its test with a message (`make test` installs them all).
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use luna_lun::serve::{self, Listen, ServeOptions};
use luna_lun::{Durability, Lun, LunError, LunSpec, OpenOptions};

const SIZE: u64 = 64 << 20;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("luna-others-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::File::create(dir.join("disk")).unwrap().set_len(SIZE).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A child that dies with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn missing(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    !found
}

fn start(command: &mut Command) -> Process {
    Process(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

/// Opens as soon as the server is there.
fn open(spec: &LunSpec, options: &OpenOptions) -> Result<Lun, LunError> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match luna_lun::open(spec, options) {
            Err(LunError::Io { .. }) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            other => return other,
        }
    }
}

fn unix(path: &Path, export: &str) -> LunSpec {
    LunSpec::NbdUnix { socket: path.to_owned(), export: export.into() }
}

fn shared() -> OpenOptions {
    OpenOptions { need_multi_conn: true, client_name: Some("host-a#1".into()), connections: 2, ..OpenOptions::default() }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut data);
    data
}

/// What every server must do for us: both doors, depth, zeroes, trim, flush, forced writes.
fn exercise(lun: &Lun) {
    assert_eq!(lun.disk.geometry().size_bytes, SIZE);
    let answered = Arc::new(AtomicUsize::new(0));
    for block in 0..256u64 {
        let counter = Arc::clone(&answered);
        let durability = if block % 32 == 0 { Durability::Forced } else { Durability::Plain };
        let done = Box::new(move |result: Result<(), LunError>| {
            result.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
        });
        lun.queue.write(block * 4096, &pattern(block, 4096), durability, done);
    }
    lun.queue.drive(&|| false);
    assert_eq!(answered.load(Ordering::SeqCst), 256);
    lun.disk.flush().unwrap();
    for block in 0..256u64 {
        let counter = Arc::clone(&answered);
        let done = Box::new(move |result: Result<&[u8], LunError>| {
            assert!(result.unwrap() == pattern(block, 4096), "block {block}");
            counter.fetch_add(1, Ordering::SeqCst);
        });
        lun.queue.read(block * 4096, 4096, done);
    }
    lun.queue.drive(&|| false);
    assert_eq!(answered.load(Ordering::SeqCst), 512);
    let long = pattern(9, 9 << 20);
    lun.disk.write_at(&long, 4 << 20, Durability::Forced).unwrap();
    let mut back = vec![0; long.len()];
    lun.disk.read_at(&mut back, 4 << 20).unwrap();
    assert!(back == long);
    lun.disk.write_zeroes(5 << 20, 2 << 20).unwrap();
    lun.disk.discard(9 << 20, 2 << 20).unwrap();
    lun.disk.read_at(&mut back, 4 << 20).unwrap();
    assert!(back[1 << 20..3 << 20].iter().all(|b| *b == 0) && back[..1 << 20] == long[..1 << 20]);
}

#[test]
fn nbdkit_over_unix_and_tcp() {
    if missing("nbdkit") {
        return;
    }
    let scratch = Scratch::new("nbdkit");
    let socket = scratch.path("kit.sock");
    let _server = start(Command::new("nbdkit").args(["-f", "-U"]).arg(&socket).arg("file").arg(scratch.path("disk")));
    let lun = open(&unix(&socket, "any"), &shared()).unwrap();
    assert!(lun.disk.geometry().multi_conn && lun.disk.geometry().can_fua);
    exercise(&lun);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new("nbdkit");
    command.args(["-f", "-i", "127.0.0.1", "-p"]).arg(port.to_string()).arg("file").arg(scratch.path("disk"));
    let _tcp = start(&mut command);
    exercise(&open(&LunSpec::Nbd { host: "127.0.0.1".into(), port, export: String::new() }, &shared()).unwrap());
    let error = serve::client_fence(&unix(&socket, ""), "host-a", 1).unwrap_err();
    assert!(error.to_string().contains("can not fence"), "{error}");
}

#[test]
fn nbdkit_without_coherence_or_read_only_is_refused() {
    if missing("nbdkit") {
        return;
    }
    let scratch = Scratch::new("nbdkit-ro");
    let socket = scratch.path("kit.sock");
    let _server = start(Command::new("nbdkit").args(["-f", "-r", "-U"]).arg(&socket).arg("file").arg(scratch.path("disk")));
    let error = open(&unix(&socket, ""), &shared()).err().unwrap();
    assert!(error.to_string().contains("read-only"), "{error}");
    let socket = scratch.path("multi.sock");
    let mut command = Command::new("nbdkit");
    command.args(["-f", "--filter=multi-conn", "-U"]).arg(&socket).arg("file").arg(scratch.path("disk")).arg("multi-conn-mode=disable");
    let _server = start(&mut command);
    let error = open(&unix(&socket, ""), &shared()).err().unwrap();
    assert!(error.to_string().contains("CAN_MULTI_CONN") && !error.to_string().contains('\n'), "{error}");
    // One host alone may use it, over one queue connection and one synchronous one.
    exercise(&open(&unix(&socket, ""), &OpenOptions { connections: 4, ..OpenOptions::default() }).unwrap());
}

#[test]
fn qemu_nbd_shared_and_not_shared() {
    if missing("qemu-nbd") {
        return;
    }
    let scratch = Scratch::new("qemu");
    let socket = scratch.path("qemu.sock");
    let run = |share: &str, socket: &Path| {
        let mut command = Command::new("qemu-nbd");
        command.args(["-t", "-f", "raw", "-x", "vms", "--discard=unmap", "-e", share, "-k"]).arg(socket).arg(scratch.path("disk"));
        start(&mut command)
    };
    let server = run("8", &socket);
    let lun = open(&unix(&socket, "vms"), &shared()).unwrap();
    exercise(&lun);
    let error = luna_lun::open(&unix(&socket, "other"), &shared()).err().unwrap();
    assert!(error.to_string().contains("no export of this name"), "{error}");
    drop(lun);
    drop(server);
    let socket = scratch.path("alone.sock");
    let _server = run("1", &socket);
    let error = open(&unix(&socket, "vms"), &shared()).err().unwrap();
    assert!(error.to_string().contains("CAN_MULTI_CONN"), "{error}");
}

fn output(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {text}");
    text
}

#[test]
fn qemu_clients_use_our_server() {
    if missing("qemu-img") || missing("qemu-io") {
        return;
    }
    let scratch = Scratch::new("clients");
    let mut options = ServeOptions::new(scratch.path("disk"), Listen::Unix(scratch.path("own.sock")));
    options.export = "vms".into();
    let server = serve::start(options).unwrap();
    let uri = format!("nbd+unix:///vms?socket={}", scratch.text("own.sock"));
    let info = output(Command::new("qemu-img").args(["info", "-f", "raw", &uri]));
    assert!(info.contains("64 MiB"), "{info}");
    let io = |commands: &[&str]| {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw", "-d", "unmap"]);
        for text in commands {
            command.args(["-c", text]);
        }
        output(command.arg(&uri))
    };
    io(&["write -P 0x5a 0 8M", "write -f -P 0xa5 1M 64k", "flush", "read -P 0x5a 0 1M", "read -P 0xa5 1M 64k"]);
    let blocks = || std::fs::metadata(scratch.path("disk")).unwrap().blocks() * 512;
    let full = blocks();
    io(&["discard 2M 4M", "write -z -u 6M 1M", "read -P 0 6M 1M", "read -P 0x5a 7M 1M"]);
    assert!(blocks() <= full - (5 << 20), "{full} {}", blocks());
    let kept = blocks();
    io(&["write -z 7M 1M", "read -P 0 7M 1M"]);
    assert_eq!(blocks(), kept, "write zeroes without unmap keeps the space");
    let mut first = vec![0; 1 << 20];
    let lun = open(&server.spec(), &shared()).unwrap();
    lun.disk.read_at(&mut first, 0).unwrap();
    assert!(first.iter().all(|b| *b == 0x5a));
    // A name in the export string is fenced like any other.
    server.fence("vm7", 3).unwrap();
    let tagged = |who: &str| format!("nbd+unix:///vms@{who}?socket={}", scratch.text("own.sock"));
    output(Command::new("qemu-img").args(["info", "-f", "raw", &tagged("vm7%234")]));
    assert!(!Command::new("qemu-img").args(["info", "-f", "raw", &tagged("vm7%233")]).output().unwrap().status.success());
    if !missing("nbdinfo") {
        let text = output(Command::new("nbdinfo").arg(&uri));
        for line in ["can_multi_conn: true", "can_fua: true", "can_trim: true", "can_zero: true", "can_flush: true"] {
            assert!(text.contains(line), "{text}");
        }
        assert!(output(Command::new("nbdinfo").args(["--list", &uri])).contains("vms"));
    }
    if !missing("nbdcopy") {
        output(Command::new("nbdcopy").args([&uri, &scratch.text("copy")]));
        assert!(std::fs::read(scratch.path("copy")).unwrap() == std::fs::read(scratch.path("disk")).unwrap());
    }
}

/// Not a test of its own: the server process of the next one, which this binary starts again for it.
#[test]
fn child_server() {
    let Ok(dir) = std::env::var("LUNA_CHILD_SERVE") else { return };
    let dir = PathBuf::from(dir);
    let mut options = ServeOptions::new(dir.join("disk"), Listen::Unix(dir.join("own.sock")));
    options.export = "vms".into();
    let _server = serve::start(options).unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
fn our_server_killed_with_sigkill_under_load_loses_nothing() {
    let scratch = Scratch::new("sigkill");
    let spawn = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_server", "--nocapture"]).env("LUNA_CHILD_SERVE", &scratch.0).stderr(Stdio::null());
        start(&mut command)
    };
    let first = spawn();
    let lun = open(&unix(&scratch.path("own.sock"), "vms"), &shared()).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let over = &over;
        scope.spawn(move || {
            let mut server = Some(first);
            let mut kills = 0;
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(150));
                drop(server.take());
                server = Some(spawn());
                kills += 1;
            }
            assert!(kills >= 3, "{kills} kills are no test");
            // The other threads are done; the last check below needs a server.
            std::thread::sleep(Duration::from_millis(200));
            drop(server);
        });
        let until = Instant::now() + Duration::from_secs(3);
        let mut round = 0u64;
        while Instant::now() < until {
            let answered = Arc::new(AtomicUsize::new(0));
            for block in 0..32u64 {
                let counter = Arc::clone(&answered);
                let done = Box::new(move |result: Result<(), LunError>| {
                    result.unwrap();
                    counter.fetch_add(1, Ordering::SeqCst);
                });
                lun.queue.write(block * 65_536, &pattern(round << 8 | block, 65_536), Durability::Plain, done);
            }
            lun.queue.drive(&|| false);
            assert_eq!(answered.load(Ordering::SeqCst), 32);
            lun.disk.flush().unwrap();
            for block in 0..32u64 {
                let mut back = vec![0; 65_536];
                lun.disk.read_at(&mut back, block * 65_536).unwrap();
                assert!(back == pattern(round << 8 | block, 65_536), "round {round} block {block}");
            }
            round += 1;
        }
        over.store(true, Ordering::SeqCst);
        assert!(round > 5, "{round} rounds are no test");
    });
}
