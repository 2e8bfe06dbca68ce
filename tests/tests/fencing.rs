//! A host dies, or stops and wakes up as if nothing had happened: what the target does about it, and how long the others wait.
//!
//! Times are printed, not asserted: figures belong to a quiet machine. What is asserted is what must never happen.

use anyhow::{Context, ensure};
use luna_tests::{
    Cluster, Kind, Result, Setup, io,
    load::{Promised, longest_pause},
    tool, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

fn signal(pid: i32, signal: Signal) -> Result {
    kill_process(Pid::from_raw(pid).context("a process")?, signal)?;
    Ok(())
}

/// kill -9 in the middle of writes, renames, allocations and removals; the others go on in the same directory, what was promised is there.
fn killed_while_writing(name: &str, kind: Kind) -> Result {
    let c = Cluster::with(name, Setup { kind, ..Setup::default() })?;
    fs::create_dir(c.path(0, "d"))?;
    let other = io::direct(&c.path(0, "other"))?;
    other.write_all_at(io::Aligned::pattern(4096, 1).bytes(), 0)?;
    let (promised, stop, over) = (Promised::default(), AtomicBool::new(false), AtomicBool::new(false));
    let (first, pause) = std::thread::scope(|scope| -> Result<(Duration, u128)> {
        let rescue = c.rescue();
        let dir = c.path(2, "d");
        let (promised, over) = (&promised, &over);
        scope.spawn(move || promised.work(&dir, "c", over));
        wait_until("the victim writes", Duration::from_secs(20), || promised.count() > 30)?;
        let (other, stop) = (&other, &stop);
        let pause = scope.spawn(move || longest_pause(other, stop));
        signal(c.noted_pid(2)?, Signal::KILL)?;
        let begun = Instant::now();
        fs::write(c.path(0, "d/after"), "x")?;
        let first = begun.elapsed();
        stop.store(true, Ordering::SeqCst);
        let pause = pause.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        rescue.disarm();
        Ok((first, pause))
    })?;
    println!("{name}: first write in the victim's directory after {} ms; longest unrelated write {pause} ms", first.as_millis());
    promised.check(&c.path(1, "d"), "c")?;
    drop(other);
    // nobody serves it any more
    tool("umount", &["-l", &c.hosts[2].dir.display().to_string()])?;
    c.mount(2)?;
    promised.check(&c.path(2, "d"), "c")?;
    c.finish()
}

#[test]
fn killed_while_writing_at_a_target_that_fences() -> Result {
    let c = Cluster::new("rung")?;
    for n in 0..3 {
        ensure!(c.status(n)?["rung"]["name"] == "target", "luna serve fences, and status says so: {}", c.status(n)?["rung"]);
    }
    c.finish()?;
    killed_while_writing("kt", Kind::Luna)
}

/// Every incarnation has an export of its own there; the dead one's is deleted.
#[test]
fn killed_while_writing_at_a_storage_daemon() -> Result {
    let c = Cluster::with("qrung", Setup { kind: Kind::StorageDaemon, hosts: 2, ..Setup::default() })?;
    ensure!(c.status(1)?["rung"]["name"] == "target", "status says how: {}", c.status(1)?["rung"]);
    c.finish()?;
    killed_while_writing("kq", Kind::StorageDaemon)
}

#[test]
fn killed_while_writing_at_a_target_that_does_not() -> Result {
    killed_while_writing("kl", Kind::Nbdkit)
}

#[test]
fn a_zombie_writes_nothing() -> Result {
    zombie("zombie", Kind::Luna)
}

#[test]
fn a_zombie_writes_nothing_at_a_storage_daemon() -> Result {
    zombie("zombieq", Kind::StorageDaemon)
}

/// Stopped past its lease and continued: what it still has in its hands does not land, it says so to its programs, and it can come back.
fn zombie(name: &str, kind: Kind) -> Result {
    let mut c = Cluster::with(name, Setup { kind, ..Setup::default() })?;
    for n in 0..3 {
        io::direct(&c.path(n, "f"))?.write_all_at(io::Aligned::pattern(65536, n as u64).bytes(), 0)?;
    }
    let (stop, failed) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| -> Result {
        let rescue = c.rescue();
        let victim = io::direct(&c.path(2, "f"))?;
        let (stop, failed) = (&stop, &failed);
        for thread in 0..4u64 {
            let victim = victim.try_clone()?;
            scope.spawn(move || {
                let block = io::Aligned::pattern(4096, 99);
                while !stop.load(Ordering::SeqCst) {
                    if victim.write_all_at(block.bytes(), thread * 4096).is_err() {
                        failed.store(true, Ordering::SeqCst);
                        return;
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        let pid = c.noted_pid(2)?;
        signal(pid, Signal::STOP)?;
        let evicted = wait_until("the stopped host is evicted", Duration::from_secs(60), || {
            c.ask_status(0).is_ok_and(|s| s["members"].as_array().is_some_and(|m| m.len() == 2))
        });
        // the others own the file now
        let ours = io::direct(&c.path(0, "f")).and_then(|f| Ok(f.write_all_at(io::Aligned::pattern(65536, 7).bytes(), 0)?));
        signal(pid, Signal::CONT)?;
        evicted?;
        ours?;
        let heard = wait_until("its programs hear that it is out", Duration::from_secs(30), || failed.load(Ordering::SeqCst));
        stop.store(true, Ordering::SeqCst);
        heard?;
        rescue.disarm();
        Ok(())
    })?;
    io::expect(&io::direct(&c.path(1, "f"))?, 0, 65536, 7, "a stopped host's write landed after it was fenced")?;
    c.kill(2)?;
    c.mount(2)?;
    io::expect(&io::direct(&c.path(2, "f"))?, 0, 65536, 7, "the host that came back")?;
    c.finish()
}

/// The target is gone for longer than the lease: guests wait; it comes back: they go on, and nothing is lost.
#[test]
fn a_lease_lost_with_the_target_comes_back_with_it() -> Result {
    let mut c = Cluster::with("away", Setup { hosts: 2, ..Setup::default() })?;
    let files = [io::direct(&c.path(0, "a"))?, io::direct(&c.path(1, "b"))?];
    for file in &files {
        file.write_all_at(io::Aligned::pattern(4096, 1).bytes(), 0)?;
        file.sync_all()?;
    }
    // past the lease on purpose: 12 s less the margin of 4
    c.target_away(Duration::from_secs(14))?;
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| -> Result {
        let rescue = c.rescue();
        for file in &files {
            let written = &written;
            scope.spawn(move || {
                if file.write_all_at(io::Aligned::pattern(4096, 2).bytes(), 0).is_ok() && file.sync_all().is_ok() {
                    written.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        std::thread::sleep(Duration::from_secs(11));
        for n in 0..2 {
            let state = c.ask_status(n)?["state"].clone();
            ensure!(state == "paused", "host {n} without a lease is {state}");
        }
        ensure!(written.load(Ordering::SeqCst) == 0, "a write was answered without a target");
        wait_until("both hosts go on", Duration::from_secs(40), || written.load(Ordering::SeqCst) == 2)?;
        rescue.disarm();
        Ok(())
    })?;
    for (n, file) in files.iter().enumerate() {
        io::expect(file, 0, 4096, 2, "after the pause")?;
        ensure!(c.status(n)?["state"] == "member", "host {n} is a member again: {}", c.status(n)?["state"]);
    }
    drop(files);
    c.finish()
}

/// Where there is only the lease: a host that wakes up and reads that it is out tells the others when nothing of it is under way, and
/// they need not wait.
#[test]
fn a_host_that_reads_its_eviction_says_that_it_is_drained() -> Result {
    let c = Cluster::with("drained", Setup { kind: Kind::Nbdkit, hosts: 2, ..Setup::default() })?;
    fs::write(c.path(1, "f"), "promised")?;
    fs::File::open(c.path(1, "f"))?.sync_all()?;
    let pid = c.noted_pid(1)?;
    signal(pid, Signal::STOP)?;
    let members = |n: usize| {
        c.ask_status(0).is_ok_and(|s| s["members"].as_array().is_some_and(|m| m.iter().filter(|x| x["state"] == "member").count() == n))
    };
    let evicted = wait_until("the stopped host is evicted", Duration::from_secs(30), || members(1));
    signal(pid, Signal::CONT)?;
    evicted?;
    ensure!(fs::read_to_string(c.path(0, "f"))? == "promised");
    let log = fs::read_to_string(c.dir.join("host-a.log"))?;
    ensure!(log.contains("FENCED slot 1 incarnation 1 by slot 0: Acknowledged"), "the others waited: {log}");
    c.umount(1)?;
    c.mount(1)?;
    ensure!(fs::read_to_string(c.path(1, "f"))? == "promised");
    c.finish()
}

/// No rung works (the administrator's program fails): what the dead host held stays blocked, everything else goes on, the log says it;
/// an operator's word ends it.
#[test]
fn without_a_fence_only_what_the_dead_held_waits() -> Result {
    let c = Cluster::with("nofence", Setup { kind: Kind::Nbdkit, options: "fence_cmd=/bin/false", hosts: 2, ..Setup::default() })?;
    fs::create_dir(c.path(1, "d"))?;
    fs::write(c.path(1, "d/f"), "promised")?;
    fs::File::open(c.path(1, "d/f"))?.sync_all()?;
    let mine = io::direct(&c.path(0, "mine"))?;
    mine.write_all_at(io::Aligned::pattern(4096, 1).bytes(), 0)?;
    let dir = c.hosts[0].dir.display().to_string();
    let early = c.luna(&["confirm-dead", &dir, "1", "--yes"])?;
    ensure!(early.code != 0 && early.err.contains("nobody waits to be fenced"), "{early:?}");
    signal(c.noted_pid(1)?, Signal::KILL)?;
    let (found, blocked) = (AtomicBool::new(false), c.path(0, "d/f"));
    std::thread::scope(|scope| -> Result {
        let rescue = c.rescue();
        let found = &found;
        scope.spawn(move || found.store(fs::read_to_string(blocked).is_ok_and(|t| t == "promised"), Ordering::SeqCst));
        wait_until("it is evicted", Duration::from_secs(20), || {
            c.ask_status(0).is_ok_and(|s| s["members"].as_array().is_some_and(|m| m.iter().any(|x| x["state"] == "evicted")))
        })?;
        for n in 0..20 {
            mine.write_all_at(io::Aligned::pattern(4096, n).bytes(), 0)?;
            mine.sync_all()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(!found.load(Ordering::SeqCst), "what the dead host held was given away without a fence");
        let log = fs::read_to_string(c.dir.join("host-a.log"))?;
        ensure!(log.contains("what it held stays blocked"), "the log says what is wrong: {log}");
        let said = c.luna(&["confirm-dead", &dir, "1", "--yes"])?;
        ensure!(said.code == 0 && said.out.contains("counts as fenced"), "{said:?}");
        wait_until("the operator's word is enough", Duration::from_secs(20), || found.load(Ordering::SeqCst))?;
        rescue.disarm();
        Ok(())
    })?;
    drop(mine);
    tool("umount", &["-l", &c.hosts[1].dir.display().to_string()])?;
    c.mount(1)?;
    c.finish()
}
