//! Real mounts through the kernel's FUSE, over a disk in memory or a file: what programs do to a file system.
//!
//! Skipped with a message where /dev/fuse cannot be used.

mod common;

use common::{Mounted, sh};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

#[test]
fn names_links_and_attributes() {
    let Some(m) = Mounted::memory(1 << 30) else { return };
    let d = m.dir.clone();
    fs::create_dir_all(d.join("a/b/c")).expect("mkdir");
    fs::write(d.join("a/x"), b"hello").expect("write");
    fs::hard_link(d.join("a/x"), d.join("a/b/y")).expect("link");
    symlink("../x", d.join("a/b/z")).expect("symlink");
    assert_eq!(fs::read(d.join("a/b/z")).expect("through the link"), b"hello");
    assert_eq!(fs::metadata(d.join("a/x")).expect("stat").nlink(), 2);
    fs::rename(d.join("a/b/y"), d.join("w")).expect("rename");
    fs::remove_file(d.join("a/x")).expect("unlink");
    assert_eq!(fs::read(d.join("w")).expect("still there"), b"hello");
    fs::set_permissions(d.join("w"), fs::Permissions::from_mode(0o640)).expect("chmod");
    assert_eq!(fs::metadata(d.join("w")).expect("stat").mode() & 0o7777, 0o640);
    for n in 0..2000 {
        fs::write(d.join(format!("a/f{n}")), format!("{n}")).expect("create");
    }
    assert_eq!(fs::read_dir(d.join("a")).expect("readdir").count(), 2001);
    for n in 0..2000 {
        assert_eq!(fs::read_to_string(d.join(format!("a/f{n}"))).expect("read"), format!("{n}"));
    }
    let m = m.again();
    assert_eq!(fs::read_dir(m.dir.join("a")).expect("readdir").count(), 2001);
    fs::remove_dir_all(m.dir.join("a")).expect("rm -r");
    assert_eq!(fs::read(m.dir.join("w")).expect("still there"), b"hello");
    sh(&format!(
        "cd {0} && touch -d '2001-02-03 04:05:06.789' w && [ \"$(stat -c %y w | cut -c1-23)\" = '2001-02-03 04:05:06.789' ]",
        m.dir.display()
    ));
}

#[test]
fn bytes_of_every_shape_survive() {
    let Some(m) = Mounted::memory(1 << 30) else { return };
    let d = m.dir.display().to_string();
    sh(&format!(
        "cd {d} && head -c 30000000 /dev/urandom > /tmp/luna-src.$$ && cp /tmp/luna-src.$$ big && cmp /tmp/luna-src.$$ big && \
         dd if=/tmp/luna-src.$$ of=direct bs=1M oflag=direct,sync 2>/dev/null conv=fsync; cp /tmp/luna-src.$$ two; cmp two big && \
         dd if=big of=back bs=64k iflag=direct 2>/dev/null && cmp back big && for i in 1 2 3 4 5 6 7 8 9 10; do \
         head -c 1000 /dev/urandom | tee -a /tmp/luna-app.$$ >> app; done; cmp app /tmp/luna-app.$$ && \
         truncate -s 5000 app && truncate -s 9000 app && [ $(stat -c %s app) = 9000 ] && \
         [ \"$(tail -c 4000 app | tr -d '\\000' | wc -c)\" = 0 ] && rm -f /tmp/luna-src.$$ /tmp/luna-app.$$"
    ));
    let sum = sh(&format!("cd {d} && cat big | sha1sum"));
    let m = m.again();
    assert_eq!(sum, sh(&format!("cd {} && cat big | sha1sum", m.dir.display())));
}

#[test]
fn mapped_pages_come_home() {
    let Some(m) = Mounted::memory(1 << 30) else { return };
    let script = "import mmap,os,sys\n\
        p=sys.argv[1]+'/mapped'\n\
        f=open(p,'w+b'); f.truncate(1<<20)\n\
        m=mmap.mmap(f.fileno(),1<<20)\n\
        for i in range(0,1<<20,4096): m[i:i+8]=b'%08d'%(i%100000000)\n\
        m.flush()\n\
        m[5:9]=b'tail'\n\
        m.close(); f.close()\n\
        b=open(p,'rb').read()\n\
        assert b[5:9]==b'tail',b[:16]\n\
        assert all(b[i:i+8]==b'%08d'%i for i in range(4096,1<<20,4096))\n\
        g=open(p,'r+b'); m=mmap.mmap(g.fileno(),0)\n\
        g.seek(8192); g.write(b'through write'); g.flush()\n\
        assert m[8192:8205]==b'through write',m[8192:8205]\n\
        m[12288:12291]=b'map'; g.seek(12288)\n\
        os.fsync(g.fileno())\n\
        assert os.pread(g.fileno(),3,12288)==b'map'\n";
    fs::write("/tmp/luna-mmap.py", script).expect("script");
    sh(&format!("python3 /tmp/luna-mmap.py {}", m.dir.display()));
    let m = m.again();
    assert_eq!(&fs::read(m.dir.join("mapped")).expect("read")[8192..8205], b"through write");
}

#[test]
fn an_unlinked_open_file_lives_until_its_close() {
    let Some(m) = Mounted::memory(1 << 30) else { return };
    let p = m.dir.join("gone");
    let mut f = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&p).expect("open");
    f.write_all(&[7; 100_000]).expect("write");
    fs::remove_file(&p).expect("unlink");
    f.seek(SeekFrom::Start(0)).expect("seek");
    let mut b = Vec::new();
    f.read_to_end(&mut b).expect("read");
    assert_eq!(b, vec![7; 100_000]);
    f.write_all_at(&[8; 10], 50).expect("write");
    assert_eq!(f.metadata().expect("fstat").nlink(), 0);
    drop(f);
    assert!(!p.exists());
}

#[test]
fn a_steady_overwrite_runs_no_transaction() {
    let Some(m) = Mounted::memory(1 << 30) else { return };
    let p = m.dir.join("image");
    let f = OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT).open(&p).expect("open");
    let block = common::Aligned::new(1 << 20, 1);
    for i in 0..16 {
        f.write_all_at(block.bytes(), i << 20).expect("fill");
    }
    f.sync_all().expect("fsync");
    let one = common::Aligned::new(4096, 9);
    let mut back = common::Aligned::new(4096, 0);
    f.write_all_at(one.bytes(), 4096).expect("warm");
    f.read_exact_at(back.bytes_mut(), 4096).expect("warm");
    let before = m.counts();
    for i in 0..1000u64 {
        f.write_all_at(one.bytes(), (i * 7919 % 4096) * 4096).expect("overwrite");
        f.read_exact_at(back.bytes_mut(), (i * 7919 % 4096) * 4096).expect("read");
        assert_eq!(back.bytes(), one.bytes());
    }
    let after = m.counts();
    assert_eq!(after.runs - before.runs, 0, "operation bodies run");
    assert_eq!(after.transactions - before.transactions, 0, "journal transactions");
    assert_eq!(after.lock_requests - before.lock_requests, 0, "lock requests");
    let old = fs::metadata(&p).expect("stat").mtime();
    assert!(old > 1_600_000_000);
}

#[test]
fn holes_and_space() {
    let Some(m) = Mounted::memory(1 << 30) else { return };
    let d = m.dir.display().to_string();
    sh(&format!(
        "cd {d} && truncate -s 100G sparse && [ $(du -k sparse | cut -f1) -lt 8 ] && dd if=/dev/urandom of=sparse bs=4k count=1 seek=1000000 \
         conv=notrunc 2>/dev/null && [ $(du -k sparse | cut -f1) -lt 1100 ] && \
         fallocate -l 100M full && [ $(du -k full | cut -f1) -ge 102400 ] && [ $(stat -c %s full) = 104857600 ] && \
         fallocate -p -o 10M -l 50M full && [ $(du -k full | cut -f1) -lt 55000 ] && fallocate -n -l 200M full && \
         [ $(stat -c %s full) = 104857600 ] && cmp -n 104857600 full /dev/zero"
    ));
    let script = "import os,sys\n\
        f=os.open(sys.argv[1]+'/sparse',os.O_RDWR)\n\
        at=os.lseek(f,0,os.SEEK_DATA); assert at==4096000000,at\n\
        assert os.lseek(f,at,os.SEEK_HOLE)==at+4096\n\
        assert os.lseek(f,0,os.SEEK_HOLE)==0\n\
        try: os.lseek(f,at+4096,os.SEEK_DATA); assert False\n\
        except OSError as e: assert e.errno==6\n\
        a=os.open(sys.argv[1]+'/cfr',os.O_RDWR|os.O_CREAT)\n\
        os.pwrite(a,os.urandom(3000000),0)\n\
        b=os.open(sys.argv[1]+'/cfr2',os.O_RDWR|os.O_CREAT)\n\
        n=0\n\
        while n<3000000: n+=os.copy_file_range(a,b,3000000-n,n,n)\n\
        assert os.pread(a,3000000,0)==os.pread(b,3000000,0)\n";
    fs::write("/tmp/luna-holes.py", script).expect("script");
    sh(&format!("python3 /tmp/luna-holes.py {d}"));
}

#[test]
fn programs_locks_and_interruption() {
    let Some(m) = Mounted::memory(1 << 30) else { return };
    let script = "import fcntl,os,sys,signal,time\n\
        p=sys.argv[1]+'/locked'\n\
        f=open(p,'w+b'); fcntl.lockf(f,fcntl.LOCK_EX,10,0)\n\
        pid=os.fork()\n\
        if pid==0:\n\
        \x20g=open(p,'r+b')\n\
        \x20try: fcntl.lockf(g,fcntl.LOCK_EX|fcntl.LOCK_NB,5,5); os._exit(1)\n\
        \x20except OSError as e: assert e.errno in (11,13),e\n\
        \x20fcntl.lockf(g,fcntl.LOCK_EX|fcntl.LOCK_NB,5,20)\n\
        \x20class Late(Exception): pass\n\
        \x20def h(*a): raise Late()\n\
        \x20signal.signal(signal.SIGALRM,h); signal.alarm(1)\n\
        \x20t=time.time()\n\
        \x20try: fcntl.lockf(g,fcntl.LOCK_EX,10,0); os._exit(2)\n\
        \x20except Late: pass\n\
        \x20assert time.time()-t<3\n\
        \x20os._exit(0)\n\
        assert os.waitpid(pid,0)[1]==0\n\
        fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,5,20)\n\
        fcntl.flock(f,fcntl.LOCK_SH|fcntl.LOCK_NB) if False else None\n";
    fs::write("/tmp/luna-locks.py", script).expect("script");
    sh(&format!(
        "python3 /tmp/luna-locks.py {0} && cd {0} && flock -n l1 true && (flock l1 sleep 0.3 & sleep 0.1; flock -n l1 true && exit 1; flock l1 true)",
        m.dir.display()
    ));
}

#[test]
fn xattrs_setuid_and_tmpfile() {
    let Some(m) = Mounted::memory(1 << 30) else { return };
    let script = "import os,sys\n\
        p=sys.argv[1]+'/x'\n\
        open(p,'w').write('x'); os.setxattr(p,'user.a',b'1'); os.setxattr(p,'user.b',b'22'*100)\n\
        assert sorted(os.listxattr(p))==['user.a','user.b']\n\
        assert os.getxattr(p,'user.b')==b'22'*100\n\
        os.removexattr(p,'user.a'); assert os.listxattr(p)==['user.b']\n\
        try: os.open(sys.argv[1],os.O_TMPFILE|os.O_RDWR); assert False\n\
        except OSError as e: assert e.errno==95,e\n\
        os.chmod(p,0o6777)\n\
        pid=os.fork()\n\
        if pid==0:\n\
        \x20os.setgid(1000); os.setuid(1000); f=os.open(p,os.O_WRONLY); os.write(f,b'y'); os._exit(0)\n\
        assert os.waitpid(pid,0)[1]==0\n\
        assert os.stat(p).st_mode&0o7777==0o777,oct(os.stat(p).st_mode)\n";
    fs::write("/tmp/luna-xattr.py", script).expect("script");
    fs::set_permissions(&m.dir, fs::Permissions::from_mode(0o777)).expect("chmod");
    sh(&format!("python3 /tmp/luna-xattr.py {}", m.dir.display()));
}

#[test]
fn a_program_tree_is_built_and_verified() {
    let Some(m) = Mounted::file(2 << 30) else { return };
    let d = m.dir.display().to_string();
    sh(&format!(
        "cd {d} && git init -q r && cd r && git config user.email a@b && git config user.name n && for i in $(seq 60); do \
         mkdir -p d$((i%7)); seq $((i*50)) > d$((i%7))/f$i; done && git add . && git commit -qm one && git repack -adq && \
         git checkout -q -b other && seq 9 > n && git add n && git commit -qm two && git checkout -q - && git fsck --strict 2>/dev/null && \
         [ -z \"$(git status --porcelain)\" ]"
    ));
    if Path::new("/usr/bin/fio").exists() {
        let fio = |extra: &str| {
            sh(&format!(
                "cd {d} && fio --name=v --filename=fio --size=48m --rw=randwrite --bsrange=512-64k --verify=crc32c --verify_fatal=1 --loops=1 \
                 --do_verify=1 --randseed=5 --ioengine=psync {extra} > fio.out 2>&1 || (cat fio.out; exit 1)"
            ))
        };
        fio("");
        fio("--direct=1 --bsrange=4k-128k --ioengine=libaio --iodepth=16");
        fio("--ioengine=mmap");
    }
    let m = m.again();
    sh(&format!("cd {}/r && git fsck --strict && git status", m.dir.display()));
    drop(File::open(m.dir.join("r")).expect("open"));
}
