//! Measures the data path of a LUN: 4 KiB random reads and writes at depth 1 and 32, 1 MiB sequential at depth 4.
//!
//! Without arguments it makes a file in `/dev/shm`, serves it with our server and with nbdkit (if installed), over Unix
//! socket and TCP, and prints one line for each. With a LUN as argument it measures that one, **overwriting it**.
//! `LUNBENCH_MS` sets the time per number (default 1000), `LUNBENCH_CONNECTIONS` the connections, `LUNBENCH_THREADS` the
//! threads that submit and receive.
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use luna_lun::serve::{Listen, ServeOptions};
use luna_lun::{DataQueue, Durability, LunSpec, OpenOptions};

const SIZE: u64 = 1 << 30;

struct Run {
    queue: Arc<dyn DataQueue>,
    write: bool,
    len: u32,
    random: bool,
    until: Instant,
    done: AtomicU64,
    next: AtomicU64,
    data: Vec<u8>,
}

fn submit(run: &Arc<Run>) {
    let index = run.next.fetch_add(1, Ordering::Relaxed);
    let blocks = SIZE / u64::from(run.len);
    let block = if run.random { index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20 } else { index } % blocks;
    let offset = block * u64::from(run.len);
    let again = Arc::clone(run);
    let finish = move || {
        again.done.fetch_add(1, Ordering::Relaxed);
        if Instant::now() < again.until {
            submit(&again);
        }
    };
    if run.write {
        run.queue.write(offset, &run.data, Durability::Plain, Box::new(move |r| r.map(|()| finish()).expect("write")));
    } else {
        run.queue.read(offset, run.len, Box::new(move |r| r.map(|_| finish()).expect("read")));
    }
}

fn measure(queue: &Arc<dyn DataQueue>, write: bool, len: u32, depth: usize, random: bool) -> f64 {
    let millis = std::env::var("LUNBENCH_MS").ok().and_then(|v| v.parse().ok()).unwrap_or(1000);
    let start = Instant::now();
    let run = Arc::new(Run {
        queue: Arc::clone(queue),
        write,
        len,
        random,
        until: start + Duration::from_millis(millis),
        done: AtomicU64::new(0),
        next: AtomicU64::new(0),
        data: vec![7; len as usize],
    });
    let threads = std::env::var("LUNBENCH_THREADS").ok().and_then(|v| v.parse().ok()).unwrap_or(1).clamp(1, depth);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..depth / threads {
                    submit(&run);
                }
                queue.drive(&|| false);
            });
        }
    });
    run.done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

fn line(name: &str, spec: &LunSpec) {
    let connections = std::env::var("LUNBENCH_CONNECTIONS").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
    // A number made with a stalled connection in it is worth nothing: say so.
    let hook: luna_lun::ResendHook = Arc::new(|| {
        eprintln!("the server was silent for two seconds, the connection was made again");
        true
    });
    let request_timeout = Duration::from_secs(2);
    let options = OpenOptions { connections, request_timeout, resend_ok: Some(hook), ..OpenOptions::default() };
    let lun = luna_lun::open(spec, &options).expect("open");
    let mut sync = [0u8; 4096];
    let start = Instant::now();
    let mut count = 0u64;
    while start.elapsed() < Duration::from_millis(300) {
        lun.disk.read_at(&mut sync, (count * 7919 % (SIZE / 4096)) * 4096).expect("read");
        count += 1;
    }
    let sync = count as f64 / start.elapsed().as_secs_f64();
    print!("{name:24} sync {:7.1}k", sync / 1e3);
    for (label, write, depth) in [("r1", false, 1), ("w1", true, 1), ("r32", false, 32), ("w32", true, 32)] {
        print!("  {label} {:7.1}k", measure(&lun.queue, write, 4096, depth, true) / 1e3);
    }
    for (label, write, depth) in [("R1", false, 1), ("W1", true, 1), ("R4", false, 4), ("W4", true, 4)] {
        print!("  {label} {:6.0}", measure(&lun.queue, write, 1 << 20, depth, false));
    }
    println!("  (1 MiB: MiB/s)");
}

fn wait_for(path: &str) {
    for _ in 0..200 {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn nbdkit(args: &[&str]) -> Option<Child> {
    Command::new("nbdkit").args(["-f", "--exit-with-parent"]).args(args).stdout(Stdio::null()).spawn().ok()
}

fn main() {
    if let Some(spec) = std::env::args().nth(1) {
        let spec: LunSpec = spec.parse().expect("a LUN");
        assert!(!matches!(spec, LunSpec::Path(_)), "files answer inline and would recurse here; give an NBD LUN");
        return line(&spec.to_string(), &spec);
    }
    let dir = format!("/dev/shm/lunbench-{}", std::process::id());
    std::fs::create_dir_all(&dir).expect("directory");
    let file = format!("{dir}/disk");
    std::fs::write(&file, vec![1u8; SIZE as usize]).expect("file");
    let socket = format!("{dir}/own.sock");
    {
        let mut options = ServeOptions::new(&file, Listen::Unix(socket.clone().into()));
        options.export = "x".into();
        let server = luna_lun::serve::start(options).expect("serve");
        line("own unix", &server.spec());
    }
    let theirs = format!("{dir}/kit.sock");
    if let Some(mut child) = nbdkit(&["-U", &theirs, "file", &file]) {
        wait_for(&theirs);
        line("nbdkit unix", &format!("nbd+unix:///x?socket={theirs}").parse().expect("spec"));
        let _ = child.kill();
        let _ = child.wait();
    }
    {
        let mut options = ServeOptions::new(&file, Listen::Tcp("127.0.0.1:0".parse().expect("address")));
        options.export = "x".into();
        let server = luna_lun::serve::start(options).expect("serve");
        line("own tcp", &server.spec());
    }
    if let Some(mut child) = nbdkit(&["-i", "127.0.0.1", "-p", "10899", "file", &file]) {
        std::thread::sleep(Duration::from_millis(500));
        line("nbdkit tcp", &"nbd://127.0.0.1:10899/x".parse().expect("spec"));
        let _ = child.kill();
        let _ = child.wait();
    }
    let _ = std::fs::remove_dir_all(dir);
}
