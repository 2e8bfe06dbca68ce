//! What an administrator does: mount by mount(8), status, man pages, a killed host's slot, mounting and unmounting often.

use anyhow::ensure;
use luna_tests::{Cluster, Result, Setup, luna_bin, run, wait_until};
use std::{fs, os::unix::fs::symlink, time::Duration};

#[test]
fn the_helpers_of_mount_mkfs_and_fsck() -> Result {
    let mut c = Cluster::unmade("helper", Setup { bytes: 1 << 30, ..Setup::default() })?;
    let bin = luna_bin();
    let link = |name: &str| -> Result<String> {
        let path = c.dir.join(name);
        symlink(&bin, &path)?;
        Ok(path.display().to_string())
    };
    let (mkfs, fsck, mount) = (link("mkfs.luna")?, link("fsck.luna")?, link("mount.luna")?);
    let lun = c.lun();
    run(&mkfs, &["-L", "helped", "-N", "4", &lun])?.ok("mkfs.luna")?;
    let n = c.add_host()?;
    let dir = c.hosts[n].dir.display().to_string();
    run(&mount, &[&lun, &dir, "-o", "rw,noauto,_netdev,name=helped,listen=127.0.0.1:0", "-s", "-v"])?.ok("mount.luna")?;
    ensure!(c.is_mounted(n), "mount.luna returned 0 and nothing is mounted");
    fs::write(c.path(n, "f"), "x")?;
    ensure!(run(&mount, &[&lun, &dir])?.code == 32, "mount(8)'s code for a failed mount is 32");
    ensure!(run(&mount, &[&lun])?.code == 1, "mount(8)'s code for wrong usage is 1");
    run("umount", &[&dir])?.ok("umount(8)")?;
    wait_until("the volume is free", Duration::from_secs(20), || run(&fsck, &["-n", &lun]).is_ok_and(|o| o.code == 0))?;
    ensure!(run(&fsck, &["-a", "-C0", &lun])?.code == 0, "fsck -a of a clean volume");
    c.discard();
    Ok(())
}

#[test]
fn status_for_people_and_programs() -> Result {
    let c = Cluster::new("status")?;
    let status = c.status(0)?;
    let members = status["members"].as_array().map_or(0, Vec::len);
    ensure!(members == 3, "three hosts, {members} members: {status}");
    ensure!(status["epoch"].as_u64().is_some_and(|e| e >= 3), "three joins make an epoch of at least 3: {status}");
    ensure!(status["space"]["total_bytes"].as_u64().is_some_and(|b| b > 8 << 30), "space: {status}");
    for target in [c.hosts[1].dir.display().to_string(), c.lun()] {
        let text = c.luna(&["status", &target])?.ok("status")?.out;
        for n in 0..3 {
            ensure!(text.contains(&c.hosts[n].name), "{} is not in the status of {target}: {text}", c.hosts[n].name);
        }
    }
    c.umount(2)?;
    wait_until("a host that left is gone from the status", Duration::from_secs(20), || {
        c.status(0).is_ok_and(|s| s["members"].as_array().map_or(0, Vec::len) == 2)
    })?;
    c.finish()
}

#[test]
fn in_and_out_again() -> Result {
    let c = Cluster::with("inout", Setup { slots: 3, ..Setup::default() })?;
    for round in 0..6 {
        let n = round % 3;
        fs::write(c.path(n, format!("f{round}")), round.to_string())?;
        c.umount(n)?;
        ensure!(c.path((n + 1) % 3, format!("f{round}")).exists(), "round {round}: the file of a host that left");
        c.mount(n)?;
        for seen in 0..=round {
            ensure!(fs::read_to_string(c.path(n, format!("f{seen}")))? == seen.to_string(), "round {round}: f{seen}");
        }
    }
    c.finish()
}

#[test]
fn a_killed_host_is_recovered() -> Result {
    let mut c = Cluster::new("killed")?;
    for n in 0..20 {
        fs::write(c.path(0, format!("f{n}")), n.to_string())?;
    }
    fs::File::open(&c.hosts[0].dir)?.sync_all()?;
    c.kill(0)?;
    // unrelated work goes on at once; what the dead host held follows when its lease is over
    fs::write(c.path(1, "other"), "x")?;
    for n in 0..20 {
        let got = fs::read_to_string(c.path(2, format!("f{n}")))?;
        ensure!(got == n.to_string(), "f{n} holds '{got}' after its host died");
    }
    fs::write(c.path(1, "f0"), "new")?;
    ensure!(fs::read_to_string(c.path(2, "f0"))? == "new", "a dead host's file, written by another");
    c.mount(0)?;
    ensure!(fs::read_to_string(c.path(0, "f0"))? == "new", "the dead host is back");
    c.finish()
}

#[test]
fn all_killed_and_mounted_again() -> Result {
    let mut c = Cluster::new("cold")?;
    for n in 0..3 {
        fs::create_dir(c.path(n, format!("d{n}")))?;
        for i in 0..10 {
            fs::write(c.path(n, format!("d{n}/f{i}")), i.to_string())?;
        }
        fs::File::open(c.path(n, format!("d{n}")))?.sync_all()?;
        fs::File::open(c.path(n, format!("d{n}/f9")))?.sync_all()?;
    }
    for n in 0..3 {
        c.kill(n)?;
    }
    c.mount(1)?;
    for n in 0..3 {
        let count = fs::read_dir(c.path(1, format!("d{n}")))?.count();
        ensure!(count == 10, "after all hosts died d{n} has {count} of 10 files");
    }
    c.finish()
}
