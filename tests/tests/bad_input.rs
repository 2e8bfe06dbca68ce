//! Wrong and damaged input: one clear line each, exit status 1, nothing written, nothing left mounted, no hanging.

use anyhow::ensure;
use luna_tests::{Cluster, Output, Result, Setup, io, tool};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    time::Duration,
};

/// A small LUN without hosts.
fn small(name: &str) -> Result<Cluster> {
    Cluster::unmade(name, Setup { bytes: 1 << 30, ..Setup::default() })
}

/// It failed as an operation fails: status 1 and one line with one of the words.
fn clear(what: &str, out: &Output, words: &[&str]) -> Result {
    ensure!(out.code == 1, "{what}: status {}, stderr: {}", out.code, out.err);
    ensure!(out.err.trim().lines().count() == 1, "{what}: not one line: {}", out.err);
    let said = out.err.to_lowercase();
    ensure!(words.iter().any(|w| said.contains(w)), "{what}: none of {words:?} in: {said}");
    ensure!(out.took < Duration::from_secs(60), "{what}: took {:?}", out.took);
    Ok(())
}

fn overwrite(c: &Cluster, at: u64, bytes: &[u8]) -> Result {
    File::options().write(true).open(c.lun_file())?.write_all_at(bytes, at)?;
    Ok(())
}

/// Recomputes nothing: the bytes of the first copy with a change that a checksum finds.
fn cksum(c: &Cluster) -> Result<String> {
    tool("cksum", &[c.lun_file().display().to_string()])
}

#[test]
fn wrong_luns() -> Result {
    let mut c = small("wrong")?;
    let n = c.add_host()?;
    let dir = c.hosts[n].dir.display().to_string();
    clear("an empty LUN", &c.try_mount(n)?, &["not a luna", "no luna"])?;
    let gone = c.dir.join("nothing").display().to_string();
    for (lun, words) in [
        (gone.clone(), ["no such file", "not found"]),
        (format!("nbd+unix:///x?socket={gone}"), ["no such file", "connect"]),
        ("nbd://127.0.0.1:1/x".into(), ["refused", "connect"]),
        ("ftp://x/y".into(), ["is not a lun", "is no lun"]),
        (format!("{}nope", c.lun().replace("///lun", "///")), ["export", "socket"]),
    ] {
        clear(&lun, &c.luna(&["mount", &lun, &dir])?, &words)?;
    }
    clear("a directory that is not there", &c.luna(&["mount", &c.lun(), &gone])?, &["no such file"])?;
    let file = c.lun_file().display().to_string();
    clear("a file as mount point", &c.luna(&["mount", &c.lun(), &file])?, &["not a directory"])?;
    clear("unmounting what is not mounted", &c.luna(&["umount", &dir])?, &["not mounted"])?;
    for usage in [&["mount"][..], &["mkfs"], &["nonsense"], &["mkfs", &file, "--slots", "0"], &["serve", &file]] {
        let out = c.luna(usage)?;
        ensure!(out.code == 2, "luna {usage:?} ended with {}, wrong usage is 2", out.code);
    }
    ensure!(c.luna(&["fsck", "-n", "-y", &file])?.code == 16, "fsck(8)'s code for wrong usage is 16");
    c.discard();
    Ok(())
}

#[test]
fn foreign_file_systems() -> Result {
    let mut c = small("foreign")?;
    let n = c.add_host()?;
    let file = c.lun_file().display().to_string();
    tool("mkfs.ext4", &["-q", "-F", &file])?;
    let before = cksum(&c)?;
    clear("mounting ext4", &c.try_mount(n)?, &["ext", "not a luna"])?;
    clear("mkfs over ext4", &c.luna(&["mkfs", &c.lun(), "--yes"])?, &["ext2/3/4"])?;
    ensure!(c.luna(&["fsck", "-n", &c.lun()])?.code == 8, "fsck of ext4 is an operational error");
    ensure!(cksum(&c)? == before, "somebody wrote to a foreign file system");
    c.luna(&["mkfs", &c.lun(), "--yes", "--force"])?.ok("mkfs --force")?;
    clear("mkfs over a Luna volume", &c.luna(&["mkfs", &c.lun(), "--yes"])?, &["luna volume"])?;
    c.mount(n)?;
    // in use: --force is not enough
    clear("mkfs under a mounted host", &c.luna(&["mkfs", &c.lun(), "--yes", "--force"])?, &["mounted right now by host-a"])?;
    fs::write(c.path(n, "still"), "here")?;
    c.finish()
}

#[test]
fn damaged_superblocks() -> Result {
    let mut c = small("damaged")?;
    c.mkfs()?;
    let n = c.add_host()?;
    c.mount(n)?;
    fs::write(c.path(n, "f"), "x")?;
    c.umount(n)?;
    let whole = {
        let mut block = vec![0; 4096];
        File::open(c.lun_file())?.read_exact_at(&mut block, 0)?;
        block
    };
    // one copy lost: the others are enough
    overwrite(&c, 0, &[0; 4096])?;
    c.mount(n)?;
    ensure!(fs::read_to_string(c.path(n, "f"))? == "x", "content after a lost superblock copy");
    c.umount(n)?;
    // all copies lost: one clear line
    let dump = c.luna(&["dump", &c.lun(), "superblock", "--json"])?.ok("dump")?;
    let dump: serde_json::Value = serde_json::from_str(&dump.out)?;
    let copies = dump["copies"].as_str().unwrap_or_default().to_owned();
    for at in copies.split(", ") {
        overwrite(&c, at.parse::<u64>()? * 4096, &[0x55; 4096])?;
    }
    clear("no copy left", &c.try_mount(n)?, &["superblock", "not a luna"])?;
    // damage in the middle of a block is found by its checksum
    let mut torn = whole.clone();
    torn[200] ^= 1;
    overwrite(&c, 0, &torn)?;
    clear("a torn copy", &c.try_mount(n)?, &["superblock", "checksum"])?;
    overwrite(&c, 0, &whole)?;
    c.mount(n)?;
    ensure!(fs::read_to_string(c.path(n, "f"))? == "x", "content after the superblock came back");
    c.umount(n)?;
    c.discard();
    Ok(())
}

#[test]
fn a_version_from_the_future() -> Result {
    let mut c = small("future")?;
    c.mkfs()?;
    let n = c.add_host()?;
    let (volume, version, mut sb) = {
        let mut block = luna_format::Block::zeroed();
        File::open(c.lun_file())?.read_exact_at(&mut block.0, 0)?;
        luna_format::superblock::read(&block, 0)?
    };
    sb.format_version = 99;
    for copy in sb.copies() {
        overwrite(&c, copy * 4096, &sb.seal(volume, copy, version + 1).0)?;
    }
    let before = cksum(&c)?;
    clear("format version 99", &c.try_mount(n)?, &["newer", "version", "99"])?;
    sb.format_version = 1;
    sb.incompat = 1 << 40;
    for copy in sb.copies() {
        overwrite(&c, copy * 4096, &sb.seal(volume, copy, version + 2).0)?;
    }
    clear("an unknown feature", &c.try_mount(n)?, &["feature", "newer"])?;
    ensure!(before != cksum(&c)?, "the test itself wrote nothing");
    c.discard();
    Ok(())
}

#[test]
fn slots_full_and_names_taken() -> Result {
    let mut c = Cluster::with("full", Setup { slots: 2, hosts: 2, bytes: 1 << 30, ..Setup::default() })?;
    let third = c.add_host()?;
    clear("a third host on two slots", &c.try_mount(third)?, &["slot"])?;
    // room again when one leaves
    c.umount(0)?;
    c.mount(third)?;
    fs::write(c.path(third, "f"), "x")?;
    ensure!(fs::read_to_string(c.path(1, "f"))? == "x", "the newcomer's file");
    c.umount(third)?;
    // the same name twice
    let out = c.command(&mut c.mount_command(third, "host-b"))?;
    clear("a name that is taken", &out, &["host-b", "name"])?;
    ensure!(fs::read_to_string(c.path(1, "f"))? == "x", "the owner of the name goes on");
    fs::write(c.path(1, "g"), "y")?;
    c.finish()
}

#[test]
fn a_lun_that_shrank_or_is_too_small() -> Result {
    let mut c = small("shrunk")?;
    c.mkfs()?;
    let n = c.add_host()?;
    c.server = None;
    File::options().write(true).open(c.lun_file())?.set_len(512 << 20)?;
    c.start_server()?;
    clear("half a LUN", &c.try_mount(n)?, &["small", "size", "bytes"])?;
    let tiny = c.dir.join("tiny");
    File::create(&tiny)?.set_len(1 << 20)?;
    clear("a tiny LUN", &c.luna(&["mkfs", &tiny.display().to_string(), "--yes"])?, &["small", "few"])?;
    c.discard();
    Ok(())
}

#[test]
fn mounted_twice_and_in_use() -> Result {
    let mut c = Cluster::with("twice", Setup { hosts: 1, bytes: 1 << 30, ..Setup::default() })?;
    clear("the same directory twice", &c.try_mount(0)?, &["already"])?;
    let f = io::buffered(&c.path(0, "f"))?;
    let out = c.luna(&["umount", &c.hosts[0].dir.display().to_string()])?;
    clear("in use", &out, &["in use", "busy"])?;
    drop(f);
    c.umount(0)?;
    let again = c.add_host()?;
    c.mount(again)?;
    ensure!(c.path(again, "f").exists(), "the file after mounting again");
    c.finish()
}
