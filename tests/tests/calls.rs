//! System calls with sharp corners, tried from one host and looked at from another.

use anyhow::{Context, ensure};
use luna_tests::{Cluster, Result, io, tool};
use rustix::fs::{CWD, RenameFlags, copy_file_range, renameat_with};
use std::{
    fs,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink},
    path::Path,
};

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> rustix::io::Result<()> {
    renameat_with(CWD, from, CWD, to, flags)
}

#[test]
fn rename_of_every_kind() -> Result {
    let c = Cluster::new("rename")?;
    let (a, b) = (|p: &str| c.path(0, p), |p: &str| c.path(1, p));
    use rustix::io::Errno;
    fs::create_dir_all(a("d1/sub"))?;
    fs::create_dir_all(a("d2"))?;
    fs::create_dir_all(a("empty"))?;
    for name in ["f1", "f2", "d2/in"] {
        fs::write(a(name), name)?;
    }
    // from, to, flags, expected
    let no = RenameFlags::NOREPLACE;
    let swap = RenameFlags::EXCHANGE;
    let none = RenameFlags::empty();
    let table = [
        ("f1", "f2", no, Err(Errno::EXIST)),
        ("f1", "f3", no, Ok(())),
        ("f3", "f2", none, Ok(())),
        ("nothing", "f2", none, Err(Errno::NOENT)),
        ("f2", "d1", none, Err(Errno::ISDIR)),
        ("d1", "f2", none, Err(Errno::NOTDIR)),
        ("d1", "d2", none, Err(Errno::NOTEMPTY)),
        ("d1", "empty", none, Ok(())),
        ("empty", "empty/sub/x", none, Err(Errno::INVAL)),
        ("f2", "d2", swap, Ok(())),
        ("f2", "nothing", swap, Err(Errno::NOENT)),
        ("d2", "empty/sub/moved", none, Ok(())),
        ("f2", "empty/d", none, Ok(())),
    ];
    for (n, (from, to, flags, want)) in table.into_iter().enumerate() {
        // from alternating hosts
        let got = if n % 2 == 0 { rename(&a(from), &a(to), flags) } else { rename(&b(from), &b(to), flags) };
        ensure!(got == want, "row {n}, {from} to {to}: {got:?} instead of {want:?}");
    }
    let all = tool("find", &[&c.hosts[2].dir.display().to_string(), "-printf", "%P %n %y\n"])?;
    let mut lines: Vec<&str> = all.lines().filter(|l| !l.starts_with(' ')).collect();
    lines.sort_unstable();
    ensure!(
        lines == ["empty 4 d", "empty/d 2 d", "empty/d/in 1 f", "empty/sub 2 d", "empty/sub/moved 1 f"],
        "the third host sees {lines:?}"
    );
    ensure!(fs::read_to_string(c.path(2, "empty/sub/moved"))? == "f1", "content after all the renames");
    c.finish()
}

#[test]
fn links_nodes_and_attributes() -> Result {
    let c = Cluster::new("links")?;
    fs::write(c.path(0, "f"), "x")?;
    symlink("f", c.path(0, "s"))?;
    let long = "l".repeat(3000);
    symlink(&long, c.path(0, "long"))?;
    ensure!(fs::read_to_string(c.path(1, "s"))? == "x", "a symbolic link on another host");
    ensure!(fs::read_link(c.path(1, "long"))?.as_os_str().len() == 3000, "a long symbolic link");
    ensure!(fs::hard_link(c.path(1, "f"), c.path(1, "s")).is_err(), "a link over a name that is there");
    tool("mkfifo", &[c.path(0, "pipe").display().to_string()])?;
    ensure!(fs::symlink_metadata(c.path(1, "pipe"))?.file_type().is_fifo(), "a pipe");
    let name = |n: usize| c.path(n, "f").display().to_string();
    for (key, value) in [("user.small", "v".to_owned()), ("user.large", "w".repeat(3000)), ("trusted.luna-test", "t".into())] {
        tool("setfattr", &["-n", key, "-v", &value, &name(0)])?;
        let got = tool("getfattr", &["--only-values", "--absolute-names", "-n", key, &name(1)])?;
        ensure!(got == value, "{key} on another host has {} bytes", got.len());
    }
    tool("setfattr", &["-x", "user.large", &name(1)])?;
    let left = tool("getfattr", &["--absolute-names", "-d", &name(2)])?;
    ensure!(left.contains("user.small") && !left.contains("user.large"), "attributes left: {left}");
    let too_long = "n".repeat(256);
    ensure!(fs::write(c.path(0, &too_long), "").is_err(), "a name of 256 bytes");
    fs::write(c.path(0, &too_long[1..]), "")?;
    ensure!(c.path(1, &too_long[1..]).exists(), "a name of 255 bytes on another host");
    c.finish()
}

#[test]
fn copying_ranges() -> Result {
    let c = Cluster::new("copy")?;
    let (from, to) = (io::buffered(&c.path(0, "from"))?, io::buffered(&c.path(0, "to"))?);
    from.write_all_at(io::Aligned::pattern(3 << 20, 1).bytes(), 0)?;
    let (mut here, mut there) = (0, 0);
    while here < 3 << 20 {
        let left = (3 << 20) - here as usize;
        let n = copy_file_range(&from, Some(&mut here), &to, Some(&mut there), left)?;
        ensure!(n > 0, "nothing was copied at {here}");
    }
    io::expect(&io::buffered(&c.path(1, "to"))?, 0, 3 << 20, 1, "a copy, on another host")?;
    drop((from, to));
    c.finish()
}

#[test]
fn a_large_directory() -> Result {
    let c = Cluster::new("large")?;
    fs::create_dir(c.path(0, "d"))?;
    const FILES: usize = 3000;
    for n in 0..FILES {
        fs::File::create(c.path(n % 2, format!("d/file-{n:06}")))?;
    }
    for host in 0..3 {
        let count = fs::read_dir(c.path(host, "d"))?.count();
        ensure!(count == FILES, "host {host} lists {count} of {FILES}");
    }
    // removed by another host while this one reads
    let mut seen = 0;
    for (n, entry) in fs::read_dir(c.path(2, "d"))?.enumerate() {
        let entry = entry.context("reading a directory that changes")?;
        fs::remove_file(c.path(n % 2, "d").join(entry.file_name()))?;
        seen += 1;
    }
    ensure!(seen == FILES, "a listing of {FILES} files with removals showed {seen}");
    fs::remove_dir(c.path(1, "d"))?;
    ensure!(!c.path(0, "d").exists(), "the directory is gone");
    c.finish()
}

#[test]
fn modes_and_owners() -> Result {
    let c = Cluster::new("modes")?;
    fs::write(c.path(0, "secret"), "x")?;
    tool("chmod", &["600", &c.path(0, "secret").display().to_string()])?;
    let read = luna_tests::run("runuser", &["-u", "nobody", "--", "cat", &c.path(1, "secret").display().to_string()])?;
    ensure!(read.code != 0, "another user reads a file of mode 600");
    tool("chown", &["nobody", &c.path(0, "secret").display().to_string()])?;
    let read = luna_tests::run("runuser", &["-u", "nobody", "--", "cat", &c.path(1, "secret").display().to_string()])?;
    ensure!(read.code == 0, "its owner does not: {}", read.err);
    // a set-group-id directory hands its group down; a write drops set-user-id
    fs::create_dir(c.path(0, "g"))?;
    tool("chgrp", &["nogroup", &c.path(0, "g").display().to_string()])?;
    tool("chmod", &["2775", &c.path(0, "g").display().to_string()])?;
    fs::write(c.path(1, "g/f"), "")?;
    ensure!(fs::metadata(c.path(2, "g/f"))?.gid() == fs::metadata(c.path(2, "g"))?.gid(), "the group was not handed down");
    c.finish()
}
