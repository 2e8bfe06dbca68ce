//! The NBD client against our own server: bytes, holes, flushes, depth, restarts under load, fences, garbage.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use luna_lun::serve::{self, Listen, ServeOptions, Server};
use luna_lun::{Disk, Durability, Lun, LunError, LunSpec, OpenOptions};

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("luna-own-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn unix(scratch: &Scratch, size: u64) -> ServeOptions {
    let mut options = ServeOptions::new(scratch.path("disk"), Listen::Unix(scratch.path("nbd.sock")));
    options.export = "vms".into();
    options.create_bytes = Some(size);
    options
}

fn tcp(scratch: &Scratch, size: u64) -> ServeOptions {
    ServeOptions { listen: Listen::Tcp("127.0.0.1:0".parse().unwrap()), ..unix(scratch, size) }
}

fn open(spec: &LunSpec, options: OpenOptions) -> Lun {
    luna_lun::open(spec, &options).unwrap()
}

fn shared(name: &str) -> OpenOptions {
    OpenOptions { need_multi_conn: true, client_name: Some(name.into()), ..OpenOptions::default() }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut data = vec![0; len];
    rng.fill(&mut data);
    data
}

/// One request through the queue, waited for.
fn queue_write(lun: &Lun, offset: u64, data: &[u8], durability: Durability) -> Result<(), LunError> {
    let slot = Arc::new(Mutex::new(None));
    let inner = Arc::clone(&slot);
    lun.queue.write(offset, data, durability, Box::new(move |result| *inner.lock().unwrap() = Some(result)));
    lun.queue.drive(&|| false);
    wait(&slot)
}

fn queue_read(lun: &Lun, offset: u64, len: u32) -> Result<Vec<u8>, LunError> {
    let slot = Arc::new(Mutex::new(None));
    let inner = Arc::clone(&slot);
    lun.queue.read(offset, len, Box::new(move |result| *inner.lock().unwrap() = Some(result.map(<[u8]>::to_vec))));
    lun.queue.drive(&|| false);
    wait(&slot)
}

fn queue_flush(lun: &Lun) -> Result<(), LunError> {
    let slot = Arc::new(Mutex::new(None));
    let inner = Arc::clone(&slot);
    lun.queue.flush(Box::new(move |result| *inner.lock().unwrap() = Some(result)));
    lun.queue.drive(&|| false);
    wait(&slot)
}

fn wait<T>(slot: &Mutex<Option<T>>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = slot.lock().unwrap().take() {
            return value;
        }
        assert!(Instant::now() < until, "a request was never answered");
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn round_trip(server: &Server, scratch: &Scratch) {
    let lun = open(&server.spec(), shared("a#1"));
    let geometry = lun.disk.geometry();
    assert_eq!(geometry.size_bytes, 64 << 20);
    assert!(geometry.can_fua && geometry.can_flush && geometry.can_trim && geometry.can_write_zeroes && geometry.multi_conn);
    for (index, len) in [4096usize, 65_536, 65_536 + 4096, 1 << 20, 5 << 20, 33 << 20].into_iter().enumerate() {
        let data = pattern(index as u64, len);
        let durability = if index % 2 == 0 { Durability::Plain } else { Durability::Forced };
        lun.disk.write_at(&data, 8192, durability).unwrap();
        assert!(queue_read(&lun, 8192, len as u32).unwrap() == data, "sync write, queue read of {len}");
        let data = pattern(index as u64 + 100, len);
        queue_write(&lun, 4096, &data, durability).unwrap();
        let mut back = vec![0; len];
        lun.disk.read_at(&mut back, 4096).unwrap();
        assert!(back == data, "queue write, sync read of {len}");
        let file = std::fs::File::open(scratch.path("disk")).unwrap();
        file.read_exact_at(&mut back, 4096).unwrap();
        assert!(back == data, "the file has it");
    }
    let parts: Vec<Vec<u8>> = (0..700).map(|i| pattern(i, 4096)).collect();
    let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    lun.disk.write_vectored_at(&slices, 1 << 20, Durability::Forced).unwrap();
    let mut back = vec![0; 700 * 4096];
    lun.disk.read_at(&mut back, 1 << 20).unwrap();
    assert!(back == parts.concat());
    lun.disk.flush().unwrap();
    queue_flush(&lun).unwrap();
    assert!(matches!(lun.disk.read_at(&mut [0; 4096], 64 << 20), Err(LunError::Usage(_))));
    assert!(queue_write(&lun, 64 << 20, &[0; 4096], Durability::Plain).is_err());
}

#[test]
fn bytes_round_trip_over_a_unix_socket() {
    let scratch = Scratch::new("unix");
    let server = serve::start(unix(&scratch, 64 << 20)).unwrap();
    round_trip(&server, &scratch);
}

#[test]
fn bytes_round_trip_over_tcp() {
    let scratch = Scratch::new("tcp");
    let server = serve::start(tcp(&scratch, 64 << 20)).unwrap();
    round_trip(&server, &scratch);
}

#[test]
fn trim_and_zeroes_really_punch() {
    let scratch = Scratch::new("punch");
    let server = serve::start(unix(&scratch, 64 << 20)).unwrap();
    let lun = open(&server.spec(), shared("a"));
    let blocks = || std::fs::metadata(scratch.path("disk")).unwrap().blocks() * 512;
    // the file system's own index of a file in pieces counts as well
    let index = 64 << 10;
    assert!(blocks() < 1 << 20, "made sparse");
    lun.disk.write_at(&vec![1; 64 << 20], 0, Durability::Plain).unwrap();
    lun.disk.flush().unwrap();
    let full = blocks();
    assert!(full >= 64 << 20);
    lun.disk.discard(8 << 20, 16 << 20).unwrap();
    lun.disk.flush().unwrap();
    let trimmed = blocks();
    assert!(trimmed <= full - (16 << 20) + index, "{full} {trimmed}");
    lun.disk.write_zeroes(32 << 20, 32 << 20).unwrap();
    lun.disk.flush().unwrap();
    assert!(blocks() <= trimmed - (32 << 20) + index);
    let mut back = vec![9; 32 << 20];
    lun.disk.read_at(&mut back, 32 << 20).unwrap();
    assert!(back.iter().all(|b| *b == 0));
    lun.disk.read_at(&mut back[..8 << 20], 0).unwrap();
    assert!(back[..8 << 20].iter().all(|b| *b == 1));
}

/// Threads that keep 32 requests in flight between them and check each read against what they wrote.
fn hammer(lun: &Lun, threads: u64, rounds: u64, reports: &AtomicU64) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                // Each thread owns every `threads`-th block; `model` is what the last answered write left there.
                let mut model: Vec<Option<u64>> = vec![None; 256];
                for round in 0..rounds {
                    let answered = Arc::new(AtomicUsize::new(0));
                    let mut picks: Vec<usize> = (0..256).collect();
                    rng.shuffle(&mut picks);
                    picks.truncate(32);
                    for pick in &picks {
                        let offset = (*pick as u64 * threads + thread) * 4096;
                        let counter = Arc::clone(&answered);
                        if rng.bool() {
                            let seed = thread << 48 | round << 16 | *pick as u64;
                            let durability = if rng.u8(..) < 8 { Durability::Forced } else { Durability::Plain };
                            model[*pick] = Some(seed);
                            lun.queue.write(
                                offset,
                                &pattern(seed, 4096),
                                durability,
                                Box::new(move |result| {
                                    result.unwrap();
                                    counter.fetch_add(1, Ordering::SeqCst);
                                }),
                            );
                        } else {
                            let expected = model[*pick].map_or_else(|| vec![0; 4096], |seed| pattern(seed, 4096));
                            lun.queue.read(
                                offset,
                                4096,
                                Box::new(move |result| {
                                    assert!(result.unwrap() == expected, "thread {thread} round {round} offset {offset}");
                                    counter.fetch_add(1, Ordering::SeqCst);
                                }),
                            );
                        }
                        if rng.u8(..) < 40 {
                            lun.queue.drive(&|| true);
                        }
                    }
                    lun.queue.drive(&|| false);
                    let until = Instant::now() + Duration::from_secs(60);
                    while answered.load(Ordering::SeqCst) < picks.len() {
                        assert!(Instant::now() < until, "thread {thread} round {round}: a request was stranded");
                        std::thread::sleep(Duration::from_micros(50));
                    }
                    reports.fetch_add(1, Ordering::SeqCst);
                    if round % 16 == 0 {
                        queue_flush(lun).unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn many_threads_keep_many_requests_in_flight() {
    for connections in [1, 3] {
        let scratch = Scratch::new(&format!("hammer{connections}"));
        let server = serve::start(unix(&scratch, 64 << 20)).unwrap();
        let lun = open(&server.spec(), OpenOptions { connections, ..shared("a") });
        hammer(&lun, 4, 150, &AtomicU64::new(0));
    }
}

#[test]
fn a_server_killed_and_restarted_under_load_loses_nothing() {
    let scratch = Scratch::new("restart");
    let options = unix(&scratch, 64 << 20);
    let server = Mutex::new(Some(serve::start(options.clone()).unwrap()));
    let spec = server.lock().unwrap().as_ref().unwrap().spec();
    let lun = open(&spec, OpenOptions { connections: 2, ..shared("a") });
    let (over, reports) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut restarts = 0;
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(60));
                drop(server.lock().unwrap().take());
                std::thread::sleep(Duration::from_millis(30));
                *server.lock().unwrap() = Some(serve::start(options.clone()).unwrap());
                restarts += 1;
            }
            assert!(restarts >= 3, "{restarts} restarts are no test");
        });
        // The synchronous door lives through it, too.
        let disk = Arc::clone(&lun.disk);
        let over = &over;
        scope.spawn(move || {
            let mut round = 0u64;
            while !over.load(Ordering::SeqCst) {
                let data = pattern(round, 8192);
                disk.write_at(&data, (32 << 20) + (round % 64) * 8192, Durability::Plain).unwrap();
                disk.flush().unwrap();
                let mut back = vec![0; 8192];
                disk.read_at(&mut back, (32 << 20) + (round % 64) * 8192).unwrap();
                assert!(back == data);
                round += 1;
            }
        });
        hammer(&lun, 3, 300, &reports);
        over.store(true, Ordering::SeqCst);
    });
    assert_eq!(reports.load(Ordering::SeqCst), 900);
}

#[test]
fn a_write_is_not_sent_again_without_permission() {
    let scratch = Scratch::new("resend");
    let options = unix(&scratch, 16 << 20);
    let server = serve::start(options.clone()).unwrap();
    let member = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&member);
    let hook: luna_lun::ResendHook = Arc::new(move || asked.load(Ordering::SeqCst));
    let lun = open(&server.spec(), OpenOptions { resend_ok: Some(hook), ..shared("a") });
    queue_write(&lun, 0, &[1; 4096], Durability::Forced).unwrap();
    drop(server);
    let _server = serve::start(options).unwrap();
    member.store(false, Ordering::SeqCst);
    let error = queue_write(&lun, 0, &[2; 4096], Durability::Forced).unwrap_err();
    assert!(matches!(error, LunError::Gone(_)), "{error}");
    assert!(lun.disk.write_at(&[2; 4096], 0, Durability::Forced).is_err());
    assert!(queue_read(&lun, 0, 4096).unwrap().iter().all(|b| *b == 1), "reads go on, the write did not happen");
    member.store(true, Ordering::SeqCst);
    queue_write(&lun, 0, &[3; 4096], Durability::Forced).unwrap();
}

#[test]
fn a_target_that_stays_away_fails_everything_in_bounded_time() {
    let scratch = Scratch::new("away");
    let server = serve::start(unix(&scratch, 16 << 20)).unwrap();
    let lun = open(&server.spec(), OpenOptions { reconnect: Duration::from_millis(300), ..shared("a") });
    drop(server);
    let start = Instant::now();
    let error = queue_read(&lun, 0, 4096).unwrap_err();
    assert!(matches!(error, LunError::Gone(_)) && error.to_string().contains("did not come back"), "{error}");
    assert!(lun.disk.flush().is_err());
    assert!(queue_write(&lun, 0, &[0; 4096], Durability::Plain).is_err());
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_target_that_comes_back_smaller_is_refused() {
    let scratch = Scratch::new("smaller");
    let options = unix(&scratch, 16 << 20);
    let server = serve::start(options.clone()).unwrap();
    let lun = open(&server.spec(), shared("a"));
    drop(server);
    std::fs::OpenOptions::new().write(true).open(scratch.path("disk")).unwrap().set_len(8 << 20).unwrap();
    let _server = serve::start(options).unwrap();
    let error = queue_read(&lun, 0, 4096).unwrap_err();
    assert!(error.to_string().contains("came back with"), "{error}");
}

#[test]
fn another_target_with_unflushed_writes_behind_it_fails_the_flush() {
    let scratch = Scratch::new("other");
    let options = unix(&scratch, 16 << 20);
    let server = serve::start(options.clone()).unwrap();
    let lun = open(&server.spec(), shared("a"));
    queue_write(&lun, 0, &[1; 4096], Durability::Plain).unwrap();
    drop(server);
    // Another file of the same size stands for a server machine that lost its cache.
    std::fs::rename(scratch.path("disk"), scratch.path("old")).unwrap();
    let _server = serve::start(options).unwrap();
    let error = queue_flush(&lun).unwrap_err();
    assert!(error.to_string().contains("can not prove"), "{error}");
    assert!(lun.disk.flush().is_err(), "and it stays so");
}

#[test]
fn a_fenced_client_is_cut_off_for_good() {
    let scratch = Scratch::new("fence");
    let mut options = tcp(&scratch, 64 << 20);
    options.control = Some(scratch.path("control"));
    let server = serve::start(options.clone()).unwrap();
    let mode = std::fs::metadata(scratch.path("control")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let victim = open(&server.spec(), shared("host-a#7"));
    let other = open(&server.spec(), shared("host-b#1"));
    queue_write(&victim, 0, &[1; 4096], Durability::Plain).unwrap();

    assert_eq!(serve::control_command(&scratch.path("control"), "ping").unwrap(), "ok pong");
    let clients = serve::control_command(&scratch.path("control"), "clients").unwrap();
    assert!(clients.contains("host-a 7") && clients.contains("host-b 1"), "{clients}");
    assert!(serve::control_command(&scratch.path("control"), "fence host-a x").is_err());
    assert!(serve::control_command(&scratch.path("control"), "burn").is_err());

    // Under load: after the answer, nothing of the victim changes the disk any more.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (writer, stop) = (&victim, &stop);
        scope.spawn(move || {
            for round in 0u64.. {
                if stop.load(Ordering::SeqCst) || writer.disk.write_at(&pattern(round, 65_536), 1 << 20, Durability::Plain).is_err() {
                    return;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        let answer = serve::client_fence(&server.spec(), "host-a", 7).unwrap();
        assert!(answer.starts_with("ok fenced host-a 7 drained "), "{answer}");
        assert_ne!(answer, "ok fenced host-a 7 drained 0");
        other.disk.write_at(&[0xee; 65_536], 1 << 20, Durability::Plain).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::SeqCst);
    });
    let mut back = vec![0; 65_536];
    other.disk.read_at(&mut back, 1 << 20).unwrap();
    assert!(back.iter().all(|b| *b == 0xee), "a write of the victim arrived after the fence");

    for error in [queue_write(&victim, 0, &[9; 4096], Durability::Plain), victim.disk.flush()] {
        let error = error.unwrap_err();
        assert!(error.to_string().contains("fenced"), "{error}");
    }
    let refused = |name: &str, spec: &LunSpec| luna_lun::open(spec, &shared(name)).err().map(|e| e.to_string());
    assert!(refused("host-a#7", &server.spec()).unwrap().contains("fenced"));
    assert!(refused("host-a", &server.spec()).is_some());
    open(&server.spec(), shared("host-a#8")).disk.flush().unwrap();
    other.disk.flush().unwrap();
    // It survives a restart of the server, and holds for the name in the export string.
    drop(server);
    let server = serve::start(options).unwrap();
    assert!(refused("host-a#7", &server.spec()).unwrap().contains("fenced"));
    let LunSpec::Nbd { host, port, .. } = server.spec() else { panic!("tcp") };
    let named = |who: &str| LunSpec::Nbd { host: host.clone(), port, export: format!("vms@{who}") };
    assert!(luna_lun::open(&named("host-a#6"), &OpenOptions::default()).is_err());
    assert!(luna_lun::open(&named("host-a#8"), &OpenOptions::default()).is_ok());
    assert!(luna_lun::open(&named("bad name"), &OpenOptions::default()).is_err());
}

#[test]
fn one_server_per_file_and_per_socket() {
    let scratch = Scratch::new("twice");
    let server = serve::start(unix(&scratch, 16 << 20)).unwrap();
    let error = serve::start(tcp(&scratch, 16 << 20)).err().unwrap();
    assert!(error.to_string().contains("served already"), "{error}");
    let mut second = unix(&scratch, 16 << 20);
    second.file = scratch.path("disk2");
    let error = serve::start(second).err().unwrap();
    assert!(error.to_string().contains("running there"), "{error}");
    drop(server);
    assert!(!scratch.path("nbd.sock").exists());
    // A stale socket of a killed server is replaced.
    drop(std::os::unix::net::UnixListener::bind(scratch.path("nbd.sock")).unwrap());
    serve::start(unix(&scratch, 16 << 20)).unwrap();
}

#[test]
fn a_read_only_server_can_be_read_but_not_shared() {
    let scratch = Scratch::new("ro");
    drop(serve::start(unix(&scratch, 16 << 20)).unwrap());
    let server = serve::start(ServeOptions { read_only: true, ..unix(&scratch, 16 << 20) }).unwrap();
    let error = luna_lun::open(&server.spec(), &shared("a")).err().unwrap();
    assert!(matches!(error, LunError::Refused(_)) && error.to_string().contains("read-only"), "{error}");
    let lun = open(&server.spec(), OpenOptions::default());
    assert!(lun.disk.geometry().read_only);
    lun.disk.read_at(&mut [0; 4096], 0).unwrap();
    assert!(lun.disk.write_at(&[0; 4096], 0, Durability::Plain).is_err());
    assert!(queue_write(&lun, 0, &[0; 4096], Durability::Plain).is_err());
    assert!(lun.disk.write_zeroes(0, 4096).is_err());
}

/// A server that says `bytes` and then listens to whatever comes.
fn liar(bytes: Vec<u8>) -> LunSpec {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.write_all(&bytes);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(300)));
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    LunSpec::Nbd { host: "127.0.0.1".into(), port, export: "x".into() }
}

fn greeting() -> Vec<u8> {
    let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
    bytes.extend([0, 3]);
    bytes
}

fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn export_info(size: u64) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend(size.to_be_bytes());
    data.extend([0x01, 0x6d]);
    data
}

#[test]
fn a_server_that_talks_nonsense_is_an_error() {
    let luna = answer(0x4c55_4e41, 1 << 31 | 1, b"");
    let go = |parts: &[Vec<u8>]| [greeting(), luna.clone(), parts.concat()].concat();
    let cases: Vec<Vec<u8>> = vec![
        vec![],
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        greeting(),
        [greeting(), vec![0xff; 64]].concat(),
        go(&[answer(7, 1, b"")]),
        go(&[answer(7, 3, b"")]),
        go(&[answer(7, 3, b"\x00\x00abc")]),
        go(&[answer(7, 3, &export_info(0)), answer(7, 1, b"")]),
        go(&[answer(7, 3, &export_info(u64::MAX)), answer(7, 1, b"")]),
        go(&[answer(7, 3, &export_info(1 << 20)), answer(7, 3, &[0, 3, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), answer(7, 1, b"")]),
        go(&[answer(9, 1, b"")]),
        go(&vec![answer(7, 3, &export_info(1 << 20)); 2000]),
        [greeting(), answer(0x4c55_4e41, 1, &vec![b'x'; 70_000])].concat(),
    ];
    for (index, bytes) in cases.into_iter().enumerate() {
        let options = OpenOptions { connect_timeout: Duration::from_millis(500), ..OpenOptions::default() };
        assert!(luna_lun::open(&liar(bytes), &options).is_err(), "case {index}");
    }
    // A good handshake and then garbage instead of replies: reconnects within its bounds, then one clear error.
    let bytes = go(&[answer(7, 3, &export_info(1 << 20)), answer(7, 1, b""), vec![0xaa; 100]]);
    let wait = Duration::from_millis(200);
    let options = OpenOptions { reconnect: wait, request_timeout: wait, ..OpenOptions::default() };
    if let Ok(lun) = luna_lun::open(&liar(bytes), &options) {
        assert!(queue_read(&lun, 0, 4096).is_err());
        assert!(lun.disk.read_at(&mut [0; 4096], 0).is_err());
    }
}

#[test]
fn a_client_that_talks_nonsense_harms_nobody() {
    let scratch = Scratch::new("badclient");
    let mut options = tcp(&scratch, 16 << 20);
    options.handshake_timeout = Duration::from_millis(300);
    let server = serve::start(options).unwrap();
    let mut rng = fastrand::Rng::with_seed(7);
    let option = |number: u32, data: &[u8]| {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    };
    let request = |command: u16, flags: u16, offset: u64, len: u32| {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(1u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes
    };
    let go = option(7, &[0, 0, 0, 3, b'v', b'm', b's', 0, 0]);
    let mut cases: Vec<Vec<u8>> = vec![
        vec![],
        vec![0, 0, 0, 3],
        [vec![0, 0, 0, 3], option(7, &[0xff; 40])].concat(),
        [vec![0, 0, 0, 3], b"IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff".to_vec()].concat(),
        [vec![0, 0, 0, 3], option(0x4c55_4e41, &[0xff; 600])].concat(),
        [vec![0, 0, 0, 3], option(0x4c55_4e41, b"fence ../x 1")].concat(),
        [vec![0, 0, 0, 3], go.clone(), vec![0xff; 100]].concat(),
        [vec![0, 0, 0, 3], go.clone(), request(0, 0, u64::MAX, u32::MAX), request(1, 0, 0, 4096), vec![1; 100]].concat(),
    ];
    for _ in 0..40 {
        let mut junk = vec![0; rng.usize(..300)];
        rng.fill(&mut junk);
        cases.push([vec![0, 0, 0, 3], go.clone(), junk].concat());
    }
    for bytes in cases {
        let mut stream = std::net::TcpStream::connect(server.addr().unwrap()).unwrap();
        stream.write_all(&bytes).unwrap();
    }
    // Wrong requests are answered, and the connection goes on after them.
    let mut stream = std::net::TcpStream::connect(server.addr().unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&[vec![0, 0, 0, 3], go].concat()).unwrap();
    let mut skip = [0; 18 + 20 + 12 + 20 + 14 + 20];
    stream.read_exact(&mut skip).unwrap();
    let too_long = (32 << 20) + 1;
    let bad = [
        (request(0, 0, 16 << 20, 1), 22),
        (request(0, 0, 0, u32::MAX), 22),
        (request(9, 0, 0, 0), 22),
        (request(0, 0x80, 0, 512), 22),
        ([request(1, 0, (16 << 20) - 512, 4096), vec![1; 4096]].concat(), 28),
        (request(4, 0, u64::MAX, 4096), 28),
        (request(6, 0, 1, u32::MAX), 28),
        ([request(1, 0, 0, too_long), vec![1; too_long as usize]].concat(), 22),
        (request(3, 0, 0, 0), 0),
    ];
    for (index, (bytes, error)) in bad.into_iter().enumerate() {
        stream.write_all(&bytes).unwrap();
        let mut reply = [0; 16];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..8], [[0x67, 0x44, 0x66, 0x98], [0, 0, 0, error]].concat()[..], "case {index}");
    }
    drop(stream);
    let until = Instant::now() + Duration::from_secs(10);
    while server.connections() > 0 {
        assert!(Instant::now() < until, "{} connections hang", server.connections());
        std::thread::sleep(Duration::from_millis(10));
    }
    open(&server.spec(), shared("a")).disk.read_at(&mut [0; 4096], 0).unwrap();
}

#[test]
fn a_silent_server_does_not_hang_the_client() {
    // It answers the handshake of every connection and then says nothing more.
    let luna = answer(0x4c55_4e41, 1 << 31 | 1, b"");
    let talk = [greeting(), luna, answer(7, 3, &export_info(1 << 20)), answer(7, 1, b"")].concat();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(&talk).unwrap();
            open.push(stream);
        }
    });
    let spec = LunSpec::Nbd { host: "127.0.0.1".into(), port, export: String::new() };
    let wait = Duration::from_millis(300);
    let lun = open(&spec, OpenOptions { request_timeout: wait, connect_timeout: wait, reconnect: wait, ..OpenOptions::default() });
    let start = Instant::now();
    let error = queue_read(&lun, 0, 4096).unwrap_err();
    assert!(error.to_string().contains("answered nothing"), "{error}");
    assert!(lun.disk.read_at(&mut [0; 4096], 0).is_err());
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_wrong_export_is_one_clear_line() {
    let scratch = Scratch::new("wrong");
    let server = serve::start(unix(&scratch, 16 << 20)).unwrap();
    let LunSpec::NbdUnix { socket, .. } = server.spec() else { panic!("unix") };
    let error = luna_lun::open(&LunSpec::NbdUnix { socket, export: "other".into() }, &OpenOptions::default()).err().unwrap();
    assert!(error.to_string().contains("no export of this name") && !error.to_string().contains('\n'), "{error}");
    let nowhere = LunSpec::NbdUnix { socket: scratch.path("nothing"), export: String::new() };
    assert!(luna_lun::open(&nowhere, &OpenOptions::default()).is_err());
    let iscsi = "iscsi://h/iqn.2026-01.x:y/0".parse().unwrap();
    assert!(luna_lun::open(&iscsi, &OpenOptions::default()).err().unwrap().to_string().contains("not in this build"));
}

#[test]
fn a_disk_trait_object_is_enough() {
    fn takes(disk: &dyn Disk) -> u64 {
        disk.geometry().size_bytes
    }
    assert_eq!(takes(&luna_lun::memory::MemoryDisk::new(8192)), 8192);
}

/// What was let in while the gate was open and is not sent when this host is shut out fails, instead of waiting for ever; what was
/// answered leaves nothing under way.
#[test]
fn shut_out_with_requests_unsent() {
    let scratch = Scratch::new("shut");
    let server = serve::start(unix(&scratch, 1 << 20)).unwrap();
    let gate = luna_lun::Gate::new();
    gate.open_until(luna_lun::boottime_ms() + 60_000);
    let spec: LunSpec = format!("nbd+unix:///vms?socket={}", scratch.path("nbd.sock").display()).parse().unwrap();
    let lun = open(&spec, OpenOptions { gate: Some(Arc::clone(&gate)), ..shared("a#1") });
    let answers = Arc::new(Mutex::new(Vec::new()));
    let write = |lun: &Lun| {
        let heard = Arc::clone(&answers);
        let done = Box::new(move |r: luna_lun::Result<()>| heard.lock().unwrap().push(r.map_err(|e| e.to_string())));
        lun.queue.write(0, &[7; 4096], Durability::Plain, done);
    };
    write(&lun);
    lun.queue.drive(&|| false);
    assert_eq!(*answers.lock().unwrap(), [Ok(())]);
    assert!(lun.queue.is_drained() && lun.disk.is_drained(), "everything was answered");
    // let in, and then the lease runs out before it is sent
    write(&lun);
    gate.open_until(0);
    let waits = std::thread::spawn({
        let lun = lun.clone();
        move || lun.queue.drive(&|| false)
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(answers.lock().unwrap().len() == 1 && !lun.queue.is_drained(), "paused: it waits");
    gate.shut("evicted: no beat");
    waits.join().unwrap();
    assert_eq!(answers.lock().unwrap()[1], Err("evicted: no beat".to_owned()));
    let mut got = [0; 4096];
    server_bytes(&scratch, &mut got);
    assert_eq!(got, [7; 4096]);
    drop((lun, server));
}

fn server_bytes(scratch: &Scratch, buf: &mut [u8]) {
    std::fs::File::open(scratch.path("disk")).unwrap().read_exact_at(buf, 0).unwrap();
}

#[test]
fn a_power_cut_takes_nothing_that_a_flush_on_any_connection_covered() {
    let scratch = Scratch::new("power");
    let server = serve::start(ServeOptions { power_cut_cache: Some(16), ..unix(&scratch, 1 << 20) }).unwrap();
    let mut lost = 0;
    for seed in 0..20_u64 {
        let at = |n: u64| n * 4096;
        let block = |n: u64| pattern(seed * 10 + n, 4096);
        let (a, b) = (open(&server.spec(), shared("a#1")), open(&server.spec(), shared("b#1")));
        a.disk.write_at(&block(0), at(0), Durability::Plain).unwrap();
        queue_write(&a, at(1), &block(1), Durability::Plain).unwrap();
        b.disk.flush().unwrap();
        a.disk.write_zeroes(at(0), 4096).unwrap();
        queue_flush(&b).unwrap();
        a.disk.write_at(&block(2), at(2), Durability::Plain).unwrap();
        b.disk.write_at(&block(3), at(3), Durability::Forced).unwrap();
        assert_eq!(queue_read(&b, at(2), 4096).unwrap(), block(2));
        assert!(server.power_cut(seed).unwrap().starts_with("ok power cut: 1 blocks"));
        assert!(a.disk.flush().is_err(), "what was answered may be gone, and whoever wrote it must hear of it");
        let after = open(&server.spec(), shared("c#1"));
        let read = |n: u64| queue_read(&after, at(n), 4096).unwrap();
        assert!(read(0) == vec![0; 4096] && read(1) == block(1) && read(3) == block(3));
        lost += u32::from(read(2) != block(2));
    }
    assert!((3..=19).contains(&lost), "{lost} of 20 lost something");
}
