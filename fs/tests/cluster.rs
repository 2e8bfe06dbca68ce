//! Two and three hosts with real mounts of one volume in one process: what one does, the others see at once, and nobody waits
//! for ever.

mod common;

use common::{Aligned, Mounted, cluster::hosts, sh};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn open(m: &Mounted, name: &str, flags: i32) -> File {
    let p: PathBuf = m.dir.join(name);
    OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(p).expect("open")
}

#[test]
fn what_one_host_writes_the_other_reads() {
    let Some(h) = hosts(2, 1 << 30) else { return };
    let (a, b) = (open(&h[0], "f", 0), open(&h[1], "f", 0));
    let reader = File::open(h[1].dir.join("f")).expect("open");
    for round in 0..200u32 {
        let text = format!("round {round:06} {}", "x".repeat(round as usize * 37 % 9000));
        let (from, other) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        from.set_len(0).expect("truncate");
        from.write_all_at(text.as_bytes(), 0).expect("write");
        assert_eq!(other.metadata().expect("stat").len(), text.len() as u64, "round {round}");
        for f in [other, &reader] {
            let mut back = vec![0; text.len() + 10];
            let n = f.read_at(&mut back, 0).expect("read");
            assert_eq!(&back[..n], text.as_bytes(), "round {round}");
        }
    }
    fs::set_permissions(h[0].dir.join("f"), fs::Permissions::from_mode(0o600)).expect("chmod");
    assert_eq!(fs::metadata(h[1].dir.join("f")).expect("stat").mode() & 0o777, 0o600);
    fs::rename(h[1].dir.join("f"), h[1].dir.join("g")).expect("rename");
    assert!(!h[0].dir.join("f").exists() && h[0].dir.join("g").exists());
}

#[test]
fn mapped_pages_follow_the_lock() {
    let Some(h) = hosts(2, 1 << 30) else { return };
    let script = "import mmap,os,sys,fcntl\n\
        f=open(sys.argv[1],'r+b'); m=mmap.mmap(f.fileno(),8192)\n\
        for i in range(int(sys.argv[2])):\n\
        \x20fcntl.lockf(f,fcntl.LOCK_EX,1,0)\n\
        \x20n=int.from_bytes(m[0:8],'little'); k=int.from_bytes(m[4096:4104],'little'); assert n==k,(n,k)\n\
        \x20m[0:8]=(n+1).to_bytes(8,'little'); m[4096:4104]=(n+1).to_bytes(8,'little')\n\
        \x20fcntl.lockf(f,fcntl.LOCK_UN,1,0)\n";
    fs::write("/tmp/luna-cluster-mmap.py", script).expect("script");
    fs::write(h[0].dir.join("m"), vec![0; 8192]).expect("fill");
    sh(&format!(
        "set -e; python3 /tmp/luna-cluster-mmap.py {0}/m 150 & a=$!; python3 /tmp/luna-cluster-mmap.py {1}/m 150; wait $a",
        h[0].dir.display(),
        h[1].dir.display()
    ));
    let b = fs::read(h[1].dir.join("m")).expect("read");
    assert_eq!(u64::from_le_bytes(b[..8].try_into().expect("8")), 300);
}

#[test]
fn a_reader_with_a_mapping_sees_a_direct_overwrite() {
    let Some(h) = hosts(2, 1 << 30) else { return };
    let a = open(&h[0], "f", libc::O_DIRECT);
    a.write_all_at(Aligned::new(65536, 1).bytes(), 0).expect("fill");
    let script = "import mmap,sys\n\
        f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)\n\
        for line in sys.stdin:\n\
        \x20at=int(line); print(m[at],flush=True)\n";
    fs::write("/tmp/luna-cluster-view.py", script).expect("script");
    let mut child = std::process::Command::new("python3")
        .arg("/tmp/luna-cluster-view.py")
        .arg(h[1].dir.join("f"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python");
    let (mut to, from) = (child.stdin.take().expect("stdin"), child.stdout.take().expect("stdout"));
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(from));
    for round in 1..100u8 {
        a.write_all_at(Aligned::new(4096, round).bytes(), 4096 * u64::from(round % 16)).expect("write");
        writeln!(to, "{}", 4096 * u32::from(round % 16) + 77).expect("ask");
        assert_eq!(lines.next().expect("line").expect("text"), round.to_string());
    }
    drop(to);
    assert!(child.wait().expect("ends").success());
}

#[test]
fn appends_of_all_hosts_are_all_there() {
    let Some(h) = hosts(3, 1 << 30) else { return };
    std::thread::scope(|s| {
        for (n, m) in h.iter().enumerate() {
            s.spawn(move || {
                let mut f = OpenOptions::new().append(true).create(true).open(m.dir.join("log")).expect("open");
                for i in 0..150 {
                    f.write_all(format!("{n} {i:04} {}\n", "y".repeat(i % 90)).as_bytes()).expect("append");
                }
            });
        }
    });
    let text = fs::read_to_string(h[1].dir.join("log")).expect("read");
    for n in 0..3 {
        let mine: Vec<&str> = text.lines().filter(|l| l.starts_with(&format!("{n} "))).collect();
        assert_eq!(mine.len(), 150);
        assert!(mine.iter().enumerate().all(|(i, l)| l[2..6] == format!("{i:04}")));
    }
    assert_eq!(text.lines().count(), 450);
}

#[test]
fn direct_writers_of_one_file_do_not_talk() {
    let Some(h) = hosts(2, 1 << 30) else { return };
    let files: Vec<File> = h.iter().map(|m| open(m, "image", libc::O_DIRECT)).collect();
    for i in 0..8 {
        files[0].write_all_at(Aligned::new(1 << 20, 1).bytes(), i << 20).expect("fill");
    }
    files[0].sync_all().expect("fsync");
    let one = Aligned::new(4096, 5);
    for f in &files {
        f.write_all_at(one.bytes(), 0).expect("warm");
        f.write_all_at(one.bytes(), 8192).expect("warm");
    }
    let before: Vec<_> = h.iter().map(Mounted::counts).collect();
    std::thread::scope(|s| {
        for (n, f) in files.iter().enumerate() {
            let one = &one;
            s.spawn(move || {
                let mut back = Aligned::new(4096, 0);
                for i in 0..300u64 {
                    let at = ((i * 131 % 1024) * 2 + n as u64) * 4096;
                    f.write_all_at(one.bytes(), at).expect("write");
                    f.read_exact_at(back.bytes_mut(), at).expect("read");
                    assert_eq!(back.bytes(), one.bytes());
                }
            });
        }
    });
    for (m, before) in h.iter().zip(&before) {
        let after = m.counts();
        assert_eq!((after.lock_requests - before.lock_requests, after.transactions - before.transactions), (0, 0));
    }
    // the time of an overwrite reaches the other host
    let old = h[1].dir.join("image").metadata().expect("stat").modified().expect("mtime");
    std::thread::sleep(Duration::from_millis(20));
    files[0].write_all_at(one.bytes(), 0).expect("write");
    files[0].sync_all().expect("fsync");
    drop(files);
    let until = Instant::now() + Duration::from_secs(5);
    while h[1].dir.join("image").metadata().expect("stat").modified().expect("mtime") <= old {
        assert!(Instant::now() < until, "the modification time never arrived");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_file_unlinked_elsewhere_lives_until_its_close() {
    let Some(h) = hosts(2, 1 << 30) else { return };
    fs::write(h[0].dir.join("f"), vec![3; 50_000]).expect("write");
    let f = File::open(h[1].dir.join("f")).expect("open");
    fs::remove_file(h[0].dir.join("f")).expect("unlink");
    std::thread::sleep(Duration::from_millis(300));
    let mut b = vec![0; 50_000];
    f.read_exact_at(&mut b, 0).expect("read");
    assert_eq!(b, vec![3; 50_000]);
    assert!(!h[1].dir.join("f").exists());
}

#[test]
fn byte_ranges_exclude_across_hosts() {
    let Some(h) = hosts(2, 1 << 30) else { return };
    fs::write(h[0].dir.join("f"), b"x").expect("write");
    let script = "import fcntl,sys,time\n\
        f=open(sys.argv[1],'r+b')\n\
        if sys.argv[2]=='hold':\n\
        \x20fcntl.lockf(f,fcntl.LOCK_EX,10,0); print('held',flush=True); sys.stdin.readline(); sys.exit(0)\n\
        try: fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,10,5); sys.exit(1)\n\
        except OSError as e: assert e.errno in (11,13)\n\
        fcntl.lockf(f,fcntl.LOCK_EX,10,5)\n";
    fs::write("/tmp/luna-cluster-posix.py", script).expect("script");
    sh(&format!(
        "cd /tmp && (sleep 1; echo) | python3 luna-cluster-posix.py {0}/f hold & sleep 0.5; timeout 10 python3 /tmp/luna-cluster-posix.py {1}/f wait",
        h[0].dir.display(),
        h[1].dir.display()
    ));
}

/// Buffered readers, mapped readers and writers, direct and appending writers, truncation, all on one file from two hosts:
/// every block always holds one writer's pattern, and everything ends.
#[test]
fn a_crowd_on_one_file_comes_to_an_end() {
    let Some(h) = hosts(2, 1 << 30) else { return };
    fs::write(h[0].dir.join("f"), vec![b'0'; 1 << 20]).expect("fill");
    let script = "import mmap,os,sys,random,time\n\
        p=sys.argv[1]; r=random.Random(int(sys.argv[2])); end=time.time()+float(sys.argv[3]); c=sys.argv[2][-1].encode()\n\
        kind=int(sys.argv[2])%4; N=256\n\
        f=os.open(p,os.O_RDWR if kind in (0,1) else os.O_RDONLY if kind==2 else os.O_WRONLY)\n\
        m=mmap.mmap(f,1<<20) if kind==0 else mmap.mmap(f,1<<20,prot=mmap.PROT_READ) if kind==2 else None\n\
        n=0\n\
        while time.time()<end:\n\
        \x20b=r.randrange(N); n+=1\n\
        \x20if kind==0: m[b*4096+8:b*4096+16]=c*8\n\
        \x20elif kind==1: os.pwrite(f,c*r.choice([100,4096,5000]),b*4096); x=os.pread(f,4096,r.randrange(N)*4096); assert len(x)==4096\n\
        \x20elif kind==2:\n\
        \x20\x20x=m[b*4096:b*4096+4096]; assert len(set(x))<12; y=os.pread(f,8192,b*4096)\n\
        \x20else: os.pwrite(f,c*4096,b*4096)\n\
        print(sys.argv[2],n)\n";
    fs::write("/tmp/luna-cluster-crowd.py", script).expect("script");
    let mut all = String::from("set -e; ");
    for n in 0..12 {
        all += &format!("python3 /tmp/luna-cluster-crowd.py {}/f {n} 6 & ", h[n % 2].dir.display());
    }
    all += "for p in $(jobs -p); do wait $p; done";
    let out = sh(&all);
    eprintln!("{out}");
    let (x, y) = (fs::read(h[0].dir.join("f")).expect("read"), fs::read(h[1].dir.join("f")).expect("read"));
    assert!(x == y, "both hosts read the same");
    assert!(h.iter().any(|m| m.revokes() > 0), "pages were revoked");
}
