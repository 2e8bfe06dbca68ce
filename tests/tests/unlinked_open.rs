//! A file that is unlinked while it is open elsewhere lives until the last one closes it, and then gives its space back.

use anyhow::ensure;
use luna_tests::{Cluster, Result, io, wait_until};
use rustix::fs::statvfs;
use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    time::Duration,
};

#[test]
fn unlinked_on_another_host() -> Result {
    let c = Cluster::new("unlink")?;
    let free = |n: usize| statvfs(&c.hosts[n].dir).map_or(0, |v| v.f_bavail * v.f_frsize);
    let before = free(0);
    let f = io::direct(&c.path(0, "f"))?;
    let piece = io::Aligned::pattern(1 << 20, 3);
    for n in 0..64 {
        f.write_all_at(piece.bytes(), n << 20)?;
    }
    f.sync_all()?;
    fs::remove_file(c.path(1, "f"))?;
    ensure!(!c.path(0, "f").exists() && !c.path(2, "f").exists(), "the name is still there");
    // the open file is all there, and can be written
    ensure!(f.metadata()?.nlink() == 0, "an unlinked file has {} links", f.metadata()?.nlink());
    io::expect(&f, 63 << 20, 1 << 20, 3, "an unlinked file")?;
    f.write_all_at(io::Aligned::pattern(1 << 20, 4).bytes(), 0)?;
    io::expect(&f, 0, 1 << 20, 4, "an unlinked file, written")?;
    // the same name again is another file
    fs::write(c.path(2, "f"), "new")?;
    io::expect(&f, 0, 1 << 20, 4, "an unlinked file beside a new one of the same name")?;
    ensure!(fs::read_to_string(c.path(0, "f"))? == "new", "the new file of the same name");
    drop(f);
    wait_until("the space comes back", Duration::from_secs(20), || free(1) + (8 << 20) > before)?;
    c.finish()
}

#[test]
fn replaced_by_rename_while_open() -> Result {
    let c = Cluster::new("replaced")?;
    fs::write(c.path(0, "f"), "old")?;
    let open = fs::File::open(c.path(0, "f"))?;
    fs::write(c.path(1, "g"), "new")?;
    fs::rename(c.path(1, "g"), c.path(1, "f"))?;
    let mut text = [0; 3];
    open.read_exact_at(&mut text, 0)?;
    ensure!(&text == b"old", "the replaced file changed under its reader");
    ensure!(fs::read_to_string(c.path(0, "f"))? == "new", "the name still leads to the replaced file");
    drop(open);
    c.finish()
}

#[test]
fn open_and_unlinked_at_unmount_is_freed() -> Result {
    let c = Cluster::new("orphan")?;
    // a process that holds an unlinked file while its host goes away
    let path = c.path(0, "f");
    fs::write(&path, vec![7; 8 << 20])?;
    let holder = fs::File::open(&path)?;
    fs::remove_file(c.path(1, "f"))?;
    drop(holder);
    c.umount(0)?;
    ensure!(fs::read_dir(&c.hosts[1].dir)?.next().is_none(), "names left");
    // fsck -n in finish() finds leaked blocks and orphans
    c.finish()
}
