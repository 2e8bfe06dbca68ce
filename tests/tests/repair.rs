//! `luna fsck -y` and `luna wreck` as an administrator types them: damage, find, repair, mount, and everything else is as it was.

use anyhow::ensure;
use luna_format::{Block, superblock};
use luna_tests::{Cluster, Output, Result, Setup, luna_bin, run, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{FileExt, symlink},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A volume with a bit of everything on it, unmounted.
fn filled(name: &str) -> Result<Cluster> {
    let mut c = Cluster::unmade(name, Setup { bytes: 1 << 30, slots: 4, ..Setup::default() })?;
    c.mkfs()?;
    let n = c.add_host()?;
    c.mount(n)?;
    let at = |p: &str| c.path(n, p);
    fs::create_dir_all(at("vms/alice"))?;
    fs::create_dir(at("many"))?;
    fs::create_dir(at("vms/empty"))?;
    for k in 0..6u8 {
        fs::write(at(&format!("vms/alice/disk{k}")), vec![k + 1; 300_000 + usize::from(k) * 5000])?;
        fs::write(at(&format!("small{k}")), [k; 50])?;
    }
    (0..200).try_for_each(|k| fs::write(at(&format!("many/entry with a long name, number {k}")), format!("{k}")))?;
    symlink("vms/alice", at("link"))?;
    fs::hard_link(at("vms/alice/disk0"), at("vms/disk zero"))?;
    c.umount(n)?;
    Ok(c)
}

fn fsck(c: &Cluster, how: &str) -> Result<Output> {
    c.luna(&["fsck", how, &c.lun()])
}

/// Paths and contents, without what is in lost+found.
fn content(dir: &Path) -> Result<Vec<String>> {
    let script = "find . -path ./lost+found -prune -o -printf '%p %y %s %l\\n' -type f -exec cksum {} + | sort";
    let out = run("sh", &["-c", &format!("cd '{}' && {script}", dir.display())])?.ok("find")?;
    Ok(out.out.lines().filter(|l| !l.starts_with(". ") && !l.starts_with("./many d")).map(str::to_owned).collect())
}

#[test]
fn damage_is_found_repaired_and_gone() -> Result {
    let c = filled("repair")?;
    c.mount(0)?;
    let mut before = content(&c.hosts[0].dir)?;
    c.umount(0)?;
    // code, status of -p (whose short look sees superblock, slots and journals), lines that may differ afterwards
    for (code, safe, differ) in [
        ("G02", 0, 0),
        ("S01", 1, 0),
        ("B01", 0, 0),
        ("D07", 0, 4),
        ("U07", 0, 4),
        ("J01", 4, 0),
        ("C02", 4, 0),
        ("U01", 0, 4),
        ("I06", 0, 4),
    ] {
        let out = c.luna(&["wreck", &c.lun(), code, "--yes"])?.ok("wreck")?;
        ensure!(out.out.starts_with(code), "wreck says what it broke: {}", out.out);
        let found = fsck(&c, "-n")?;
        ensure!(
            found.code == 4 && found.out.contains(&format!("{code} ")),
            "{code}: -n ended with {}: {}{}",
            found.code,
            found.out,
            found.err
        );
        let preen = fsck(&c, "-p")?;
        ensure!(preen.code == safe, "{code}: -p ended with {}: {}{}", preen.code, preen.out, preen.err);
        if safe != 1 {
            let out = fsck(&c, "-y")?;
            ensure!(out.code == 1 && out.out.contains(" repaired "), "{code}: -y ended with {}: {}{}", out.code, out.out, out.err);
        }
        let clean = fsck(&c, "-n")?;
        ensure!(clean.code == 0, "{code}: -n afterwards: {}{}", clean.out, clean.err);
        c.mount(0)?;
        let after = content(&c.hosts[0].dir)?;
        c.umount(0)?;
        let changed = before.iter().filter(|l| !after.contains(l)).count();
        ensure!(changed <= differ, "{code}: {changed} lines of {} changed", before.len());
        before = after;
    }
    let out = c.luna(&["fsck", "-y", "--json", &c.lun()])?;
    let json: serde_json::Value = serde_json::from_str(&out.out)?;
    ensure!(out.code == 0 && json["clean"] == true && json["repairs"].as_array().is_some_and(Vec::is_empty), "{}", out.out);
    c.finish()
}

#[test]
fn nobody_repairs_under_a_host_and_nobody_mounts_under_a_repair() -> Result {
    let mut c = filled("alone")?;
    c.mount(0)?;
    for how in ["-y", "-p"] {
        let out = fsck(&c, how)?;
        // a boot goes on when others use the volume; a repair that was asked for is refused
        ensure!(out.code == if how == "-y" { 8 } else { 0 }, "{how} on a mounted volume: {} {}{}", out.code, out.out, out.err);
    }
    let out = c.luna(&["wreck", &c.lun(), "G02", "--yes"])?;
    ensure!(out.code == 1 && out.err.contains("mounted"), "wreck on a mounted volume: {}", out.err);
    // the host dies: the repair waits until it is surely silent, replays its journal, and takes it out
    let mut words = File::create(c.path(0, "last words"))?;
    words.write_all(b"x")?;
    words.sync_all()?;
    drop(words);
    c.kill(0)?;
    let out = wait_for(&c)?;
    ensure!(out.code == 1 && out.out.contains("J05 repaired"), "-y after a crash: {} {}{}", out.code, out.out, out.err);
    ensure!(out.err.contains("15.4 s"), "says how long it waits: {}", out.err);
    ensure!(fsck(&c, "-p")?.out.contains("clean"), "the short look afterwards");
    // a repair that was cut off
    let file = File::options().read(true).write(true).open(c.lun_file())?;
    let mut block = Block::zeroed();
    file.read_exact_at(&mut block.0, 0)?;
    let (volume, version, mut sb) = superblock::read(&block, 0)?;
    sb.incompat |= superblock::INCOMPAT_REPAIR;
    file.write_all_at(&sb.seal(volume, 0, version + 1).0, 0)?;
    let out = c.try_mount(0)?;
    ensure!(out.code == 1 && out.err.contains("luna fsck -y"), "mounting under a repair: {} {}", out.code, out.err);
    let out = fsck(&c, "-y")?;
    // the one marked copy was brought to the others
    ensure!(out.code <= 1, "the next repair goes on: {} {}{}", out.code, out.out, out.err);
    c.mount(0)?;
    ensure!(fs::read_to_string(c.path(0, "last words"))? == "x", "what was synced before the crash");
    c.finish()
}

/// `fsck -y`, as soon as the dead host's last beat is old enough for it to be looked at.
fn wait_for(c: &Cluster) -> Result<Output> {
    let mut last = None;
    wait_until("the dead host's beats to stop", Duration::from_secs(20), || {
        last = fsck(c, "-y").ok();
        last.as_ref().is_some_and(|o| o.code != 8)
    })?;
    last.ok_or_else(|| anyhow::anyhow!("fsck did not run"))
}

/// Starts a repair and goes on.
fn repair_beside(c: &Cluster, how: &str) -> Result<Child> {
    let mut luna = Command::new(luna_bin());
    Ok(luna.args(["fsck", how, &c.lun()]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Its status and what it said.
fn ended(child: Child) -> Result<(i32, String)> {
    let out = child.wait_with_output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    Ok((out.status.code().unwrap_or(-1), said))
}

fn signal(child: &Child, signal: Signal) -> Result {
    Ok(kill_process(Pid::from_child(child), signal)?)
}

#[test]
fn of_several_repairs_one_repairs() -> Result {
    let c = filled("several")?;
    // at a boot of all hosts: the others wait for the one that repairs
    c.luna(&["wreck", &c.lun(), "S01", "--yes"])?.ok("wreck")?;
    let all = (0..4).map(|_| repair_beside(&c, "-p")).collect::<Result<Vec<_>>>()?;
    let all = all.into_iter().map(ended).collect::<Result<Vec<_>>>()?;
    ensure!(all.iter().all(|(code, _)| *code <= 1), "-p on four hosts: {all:?}");
    ensure!(all.iter().filter(|(code, _)| *code == 1).count() == 1, "one of them repairs: {all:?}");
    ensure!(all.iter().any(|(_, said)| said.contains("waiting until that is done")), "the others say what they wait for: {all:?}");
    // by hand: the others are told
    c.luna(&["wreck", &c.lun(), "U01", "--yes"])?.ok("wreck")?;
    let all = (0..3).map(|_| repair_beside(&c, "-y")).collect::<Result<Vec<_>>>()?;
    let all = all.into_iter().map(ended).collect::<Result<Vec<_>>>()?;
    let repaired = |x: &&(i32, String)| x.0 == 1;
    let told = |x: &&(i32, String)| x.0 == 8 && x.1.contains("being repaired right now by");
    // a third one may come when all is over
    ensure!(all.iter().filter(repaired).count() == 1, "one of them repairs: {all:?}");
    ensure!(all.iter().all(|x| x.0 == 0 || repaired(&x) || told(&x)) && all.iter().any(|x| told(&x)), "the others are told: {all:?}");
    ensure!(fsck(&c, "-n")?.code == 0, "clean afterwards");
    c.finish()
}

#[test]
fn a_repair_that_stood_still_writes_no_more() -> Result {
    let mut c = filled("stood")?;
    c.mount(0)?;
    c.kill(0)?;
    // it has the volume to itself, and waits for the dead host's silence, when it is stopped
    let first = repair_beside(&c, "-y")?;
    std::thread::sleep(Duration::from_secs(8));
    let out = fsck(&c, "-y")?;
    ensure!(out.code == 8 && out.err.contains("being repaired right now by"), "while it beats: {} {}{}", out.code, out.out, out.err);
    let out = c.luna(&["mkfs", &c.lun(), "--yes", "--force"])?;
    ensure!(out.code == 1 && out.err.contains("being repaired right now by"), "mkfs under a repair: {}", out.err);
    signal(&first, Signal::STOP)?;
    let out = wait_for(&c)?;
    ensure!(out.code == 1 && out.out.contains("J05 repaired"), "the next one takes over: {} {}{}", out.code, out.out, out.err);
    signal(&first, Signal::CONT)?;
    let (code, said) = ended(first)?;
    ensure!(code == 8 && said.contains("stood still"), "the first one gives up: {code} {said}");
    ensure!(!said.contains(" repaired "), "the first one repairs nothing: {said}");
    ensure!(fsck(&c, "-n")?.code == 0, "clean afterwards");
    c.mount(0)?;
    ensure!(fs::read(c.path(0, "small3"))? == [3; 50], "and everything is there");
    c.finish()
}
