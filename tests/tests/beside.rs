//! A request that waits for the LUN is finished by whoever takes the next request, or by the one that waits: requests of other kinds beside it must not
//! make it be forgotten. Each round is one write and one other call at the same time, and then nothing: what was forgotten stays so.

use anyhow::{Context, ensure};
use luna_tests::{Cluster, Result, Setup, io};
use rustix::fs::SeekFrom;
use std::{
    fs::{self, File},
    io::IsTerminal,
    os::unix::fs::FileExt,
    sync::mpsc::{Receiver, Sender, channel},
    thread::spawn,
    time::Duration,
};

/// Far more than any write takes.
const LIMIT: Duration = Duration::from_secs(40);
const ROUNDS: usize = 700;

/// A call that is not I/O, at a directory and a file in it.
type Other = fn(&std::path::Path, &File);

/// What is called beside a write.
const OTHERS: &[(&str, Other)] = &[
    ("opendir and releasedir", |dir, _| drop(File::open(dir))),
    ("ioctl", |_, f| {
        let _ = f.is_terminal();
    }),
    ("a seek to nowhere", |_, f| {
        let _ = rustix::fs::seek(f, SeekFrom::Data(u64::MAX >> 1));
    }),
    ("readdir", |dir, _| drop(fs::read_dir(dir).map(Iterator::count))),
    ("getattr", |_, f| drop(f.metadata())),
    ("statfs", |dir, _| {
        let _ = rustix::fs::statvfs(dir);
    }),
    ("xattr", |_, f| {
        let _ = rustix::fs::fgetxattr(f, "user.none", &mut [0u8; 8][..]);
    }),
];

/// A thread that calls `work` for each word, and says so.
fn worker(work: impl Fn() -> bool + Send + 'static) -> (Sender<()>, Receiver<bool>) {
    let ((go, words), (said, done)) = (channel(), channel());
    spawn(move || {
        while words.recv().is_ok() {
            let _ = said.send(work());
        }
    });
    (go, done)
}

#[test]
fn other_calls_beside_a_write() -> Result {
    let c = Cluster::with("beside", Setup { hosts: 1, bytes: 1 << 30, ..Setup::default() })?;
    // a thread that waits in the mount for ever would keep the test from ending
    let rescue = c.rescue();
    for (name, other) in OTHERS {
        let (path, dir) = (c.path(0, "f"), c.hosts[0].dir.clone());
        let (written, looked) = (io::direct(&path)?, io::buffered(&path)?);
        written.write_all_at(io::Aligned::pattern(1 << 16, 1).bytes(), 0)?;
        let block = io::Aligned::pattern(4096, 2);
        let (write, wrote) = worker(move || written.write_all_at(block.bytes(), 4096).is_ok());
        let (call, called) = worker(move || {
            other(&dir, &looked);
            true
        });
        for round in 0..ROUNDS {
            write.send(())?;
            call.send(())?;
            let good = wrote.recv_timeout(LIMIT).with_context(|| format!("{name}, round {round}: the write does not end"))?;
            ensure!(good && called.recv_timeout(LIMIT)?, "{name}, round {round}: an error");
        }
    }
    rescue.disarm();
    c.finish()
}
