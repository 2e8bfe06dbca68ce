//! Targets that speak through a socket, because that is where their code begins: the NBD client against a server that says anything, our
//! NBD server against a client that does, and the control sockets of both programs.
//!
//! One server of each sort a process. Invariant: whoever listens goes on listening, and ends every conversation in its time: an answer that
//! does not come fails the run. These targets alone depend on time (a conversation that broke is told by a time-out). Not here: fences
//! that hold (`lun/tests/own.rs`).

use luna_lun::serve::{self, Listen, ServeOptions, Server};
use luna_lun::{Durability, LunSpec, OpenOptions};
use luna_node::control::{self, Control};
use parking_lot::Mutex;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Bytes of an input that are used.
const LONGEST: usize = 8192;
/// Bytes of an answer that are read.
const ANSWER: u64 = 64 << 20;
/// How long anybody may think.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of the export.
const EXPORT: u64 = 1 << 20;

fn folder() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("luna-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        dir
    })
}

/// Says `input`, hangs up half, and hears the answer to its end.
fn converse(socket: &Path, input: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut talk = || -> std::io::Result<()> {
        let mut s = UnixStream::connect(socket)?;
        s.set_read_timeout(Some(PATIENCE))?;
        s.set_write_timeout(Some(PATIENCE))?;
        // a server that has heard enough hangs up while we talk
        let _ = s.write_all(&input[..input.len().min(LONGEST)]);
        let _ = s.shutdown(std::net::Shutdown::Write);
        match (&s).take(ANSWER).read_to_end(&mut answer) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            other => other.map(|_| ()),
        }
    };
    if let Err(e) = talk() {
        panic!("{}: {e}", socket.display());
    }
    answer
}

struct Ours {
    _server: Server,
    socket: PathBuf,
    control: PathBuf,
}

fn ours() -> &'static Ours {
    static SERVER: OnceLock<Ours> = OnceLock::new();
    SERVER.get_or_init(|| {
        let (socket, control) = (folder().join("nbd"), folder().join("control"));
        let mut options = ServeOptions::new(folder().join("lun"), Listen::Unix(socket.clone()));
        options.create_bytes = Some(EXPORT);
        options.export = "export".into();
        options.control = Some(control.clone());
        options.handshake_timeout = Duration::from_secs(2);
        let server = serve::start(options).unwrap_or_else(|e| panic!("{e}"));
        Ours { _server: server, socket, control }
    })
}

/// A client of our NBD server that says anything.
pub fn nbd_server(input: &[u8]) {
    converse(&ours().socket, input);
}

/// Lines, and other things, at the control sockets of `luna serve` and of a mount.
pub fn control(input: &[u8]) {
    converse(&ours().control, input);
    static MOUNT: OnceLock<Option<(Control, PathBuf)>> = OnceLock::new();
    let mount = MOUNT.get_or_init(|| {
        let dir = folder().join("mount-point");
        let answer = Arc::new(|line: &str, _: &std::os::unix::net::UnixStream| format!("{{\"bytes\":{}}}", line.len()));
        // only root may open it
        Some((Control::start(&dir, answer).ok()?, control::socket_path(&dir)))
    });
    if let Some((_, socket)) = mount {
        converse(socket, input);
    }
}

/// What is said at control sockets.
pub fn lines() -> Vec<Vec<u8>> {
    ["ping\n", "clients\n", "fence a 3\n", "fence a#1 99999999999999999999\n", "status\nping\n", "\n", "ping"]
        .map(|l| l.as_bytes().to_vec())
        .into()
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [&0x4948_4156_454f_5054_u64.to_be_bytes()[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

fn request(flags: u16, command: u16, handle: u64, offset: u64, len: u32) -> Vec<u8> {
    let head = [&0x2560_9513_u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
    [&head[..], &handle.to_be_bytes(), &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}

/// Whole conversations of clients.
pub fn clients() -> Vec<Vec<u8>> {
    let flags = 3u32.to_be_bytes().to_vec();
    let go = |name: &[u8]| option(7, &[&(name.len() as u32).to_be_bytes()[..], name, &[0, 1, 0, 3]].concat());
    let requests = [
        request(0, 0, 1, 0, 4096),
        request(1, 1, 2, 4096, 512),
        vec![7; 512],
        request(0, 3, 3, 0, 0),
        request(0, 4, 4, 8192, 8192),
        request(2, 6, 5, 16_384, 4096),
        request(0, 0, 6, EXPORT - 4096, 8192),
        request(0, 2, 7, 0, 0),
    ];
    vec![
        [flags.clone(), option(3, b""), option(0x4c55_4e41, b"hello me#5"), go(b"export"), requests.concat()].concat(),
        [flags.clone(), option(1, b"export@you#3"), requests.concat()].concat(),
        [flags.clone(), option(6, &go(b"")[16..]), option(2, b"")].concat(),
        [flags, go(b""), request(0, 1, 9, 0, u32::MAX), requests.concat()].concat(),
    ]
}

/// What the server of [`nbd_client`] says, and where.
struct Liar {
    socket: PathBuf,
    says: Arc<Mutex<Arc<Vec<u8>>>>,
}

fn liar() -> &'static Liar {
    static LIAR: OnceLock<Liar> = OnceLock::new();
    LIAR.get_or_init(|| {
        let socket = folder().join("liar");
        let listener = UnixListener::bind(&socket).unwrap_or_else(|e| panic!("{e}"));
        let says: Arc<Mutex<Arc<Vec<u8>>>> = Arc::default();
        let theirs = Arc::clone(&says);
        std::thread::spawn(move || {
            for s in listener.incoming().flatten() {
                let bytes = Arc::clone(&theirs.lock());
                std::thread::spawn(move || lie(s, &bytes));
            }
        });
        Liar { socket, says }
    })
}

/// Says everything at once and listens until the client has had enough.
fn lie(mut s: UnixStream, bytes: &[u8]) {
    let _ = s.set_read_timeout(Some(PATIENCE));
    let _ = s.set_write_timeout(Some(PATIENCE));
    let _ = s.write_all(bytes);
    let _ = s.shutdown(std::net::Shutdown::Write);
    let _ = std::io::copy(&mut s, &mut std::io::sink());
}

/// A server that says anything, to our NBD client: handshake, then a few requests at both doors.
pub fn nbd_client(input: &[u8]) {
    let liar = liar();
    *liar.says.lock() = Arc::new(input[..input.len().min(LONGEST)].to_vec());
    let options = OpenOptions {
        client_name: Some("fuzzed#1".into()),
        reconnect: Duration::ZERO,
        connect_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_millis(50),
        connections: 1,
        ..OpenOptions::default()
    };
    let spec = LunSpec::NbdUnix { socket: liar.socket.clone(), export: "export".into() };
    let Ok(lun) = luna_lun::open(&spec, &options) else { return };
    let _ = lun.disk.geometry();
    let mut buf = [0; 8192];
    let _ = lun.disk.read_at(&mut buf, 0);
    let _ = lun.disk.write_at(&buf, 4096, Durability::Forced);
    let _ = lun.disk.flush();
    let (ended, heard) = std::sync::mpsc::channel();
    let (other, third) = (ended.clone(), ended.clone());
    lun.queue.read(0, 4096, Box::new(move |r| ended.send(r.is_ok()).unwrap_or(())));
    lun.queue.write(4096, &buf, Durability::Plain, Box::new(move |r| other.send(r.is_ok()).unwrap_or(())));
    lun.queue.flush(Box::new(move |r| third.send(r.is_ok()).unwrap_or(())));
    lun.queue.drive(&|| false);
    for _ in 0..3 {
        assert!(heard.recv_timeout(PATIENCE).is_ok(), "a request at the data door is never answered");
    }
}

/// Conversations of servers: the greeting, the answers to our options, replies to the first requests.
pub fn servers() -> Vec<Vec<u8>> {
    let reply = |opt: u32, kind: u32, data: &[u8]| {
        [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &opt.to_be_bytes(), &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data]
            .concat()
    };
    let hello = [&0x4e42_444d_4147_4943_u64.to_be_bytes()[..], &0x4948_4156_454f_5054_u64.to_be_bytes(), &[0, 3]].concat();
    let export = [&[0, 0][..], &EXPORT.to_be_bytes(), &0x16d_u16.to_be_bytes()].concat();
    let sizes = [&[0, 3][..], &1u32.to_be_bytes(), &4096u32.to_be_bytes(), &(1u32 << 20).to_be_bytes()].concat();
    let simple = |error: u32, handle: u64| [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &handle.to_be_bytes()].concat();
    let replies = [simple(0, 1), vec![5; 8192], simple(0, 2), simple(0, 3)].concat();
    let queue = [simple(0, 1 << 32), vec![6; 4096], simple(0, 1 << 32 | 1), simple(5, 1 << 32 | 2)].concat();
    let go = [reply(7, 3, &export), reply(7, 3, &sizes), reply(7, 1, b"")].concat();
    let luna = reply(0x4c55_4e41, 1, b"luna-serve boot=1");
    let unsupported = reply(0x4c55_4e41, 1 << 31 | 1, b"");
    let old = [&EXPORT.to_be_bytes()[..], &0x16d_u16.to_be_bytes()].concat();
    vec![
        [&hello[..], &luna, &go, &replies].concat(),
        [&hello[..], &luna, &go, &queue].concat(),
        [&hello[..], &unsupported, &go, &simple(28, 1)].concat(),
        [&hello[..], &unsupported, &reply(7, 1 << 31 | 1, b""), &old, &replies].concat(),
        [&hello[..], &luna, &reply(7, 1 << 31 | 6, b"no")].concat(),
    ]
}
