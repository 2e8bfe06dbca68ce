//! More than one thing breaks, or something else than a host: cables, targets, several hosts at once, all of them.
//!
//! After each: everything promised is there, on every host, `fsck -n` finds nothing. The survivors' longest stall is printed.

use anyhow::{Context, ensure};
use luna_tests::{
    Cluster, Result, Setup, io,
    load::{Promised, longest_pause},
    tool, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn kill(c: &Cluster, n: usize) -> Result {
    kill_process(Pid::from_raw(c.noted_pid(n)?).context("a process")?, Signal::KILL)?;
    Ok(())
}

/// The dead mount out of the tree, and a new one.
fn back(c: &Cluster, n: usize) -> Result {
    tool("umount", &["-l", &c.hosts[n].dir.display().to_string()])?;
    c.mount(n)
}

fn all_there(c: &Cluster, promised: &[Promised; 3]) -> Result {
    for n in 0..c.hosts.len() {
        for (who, p) in NAMES.iter().zip(promised) {
            p.check(&c.path(n, "d"), who)?;
        }
    }
    Ok(())
}

/// All hosts work in one directory until `fault` is over; then everybody stops. Whoever cannot stop by itself must be dead by then.
fn under_load(c: &Cluster, promised: &[Promised; 3], fault: impl FnOnce() -> Result) -> Result {
    fs::create_dir(c.path(0, "d"))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let rescue = c.rescue();
        for (n, (who, p)) in NAMES.iter().zip(promised).enumerate() {
            let (dir, stop) = (c.path(n, "d"), &stop);
            scope.spawn(move || p.work(&dir, who, stop));
        }
        wait_until("all write", Duration::from_secs(30), || promised.iter().all(|p| p.count() > 20))?;
        fault()?;
        stop.store(true, Ordering::SeqCst);
        rescue.disarm();
        Ok(())
    })
}

/// Whoever is left goes on: some steps more.
fn goes_on(p: &Promised, limit: u64) -> Result {
    let before = p.count();
    wait_until("the work goes on", Duration::from_secs(limit), || p.count() > before + 10)
}

#[test]
fn two_of_three_at_once() -> Result {
    let c = Cluster::new("two")?;
    let promised = <[Promised; 3]>::default();
    let begun = std::cell::Cell::new(None);
    under_load(&c, &promised, || {
        kill(&c, 1)?;
        kill(&c, 2)?;
        begun.set(Some(std::time::Instant::now()));
        goes_on(&promised[0], 30)
    })?;
    println!("two of three killed: the third went on after at most {:?} ms", begun.get().map(|b| b.elapsed().as_millis()));
    back(&c, 1)?;
    back(&c, 2)?;
    all_there(&c, &promised)?;
    c.finish()
}

#[test]
fn all_at_once_and_a_cold_mount() -> Result {
    let c = Cluster::new("all")?;
    let promised = <[Promised; 3]>::default();
    under_load(&c, &promised, || (0..3).try_for_each(|n| kill(&c, n)))?;
    (0..3).try_for_each(|n| back(&c, n))?;
    all_there(&c, &promised)?;
    c.finish()
}

/// The target is away for a second, three times, under load: nobody is evicted, nobody sees an error.
#[test]
fn a_target_restarted_under_load() -> Result {
    let mut c = Cluster::new("restart")?;
    let promised = <[Promised; 3]>::default();
    fs::create_dir(c.path(0, "d"))?;
    for round in 0..3 {
        // before anybody waits in a mount: see `Server::start_late`
        c.target_away(Duration::from_secs(1))?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result {
            let rescue = c.rescue();
            for (n, (who, p)) in NAMES.iter().zip(&promised).enumerate() {
                let (dir, stop, who) = (c.path(n, "d"), &stop, format!("{who}{round}"));
                let fresh = Promised::default();
                scope.spawn(move || {
                    fresh.work(&dir, &who, stop);
                    fresh.check(&dir, &who).map_err(|e| eprintln!("{e}")).is_ok().then_some(p)
                });
            }
            std::thread::sleep(Duration::from_secs(3));
            stop.store(true, Ordering::SeqCst);
            rescue.disarm();
            Ok(())
        })?;
        for n in 0..3 {
            let s = c.status(n)?;
            ensure!(s["state"] == "member" && s["members"].as_array().is_some_and(|m| m.len() == 3), "round {round}: {s}");
            for who in NAMES {
                ensure!(c.path(n, format!("d/{who}{round}-1")).exists(), "round {round}: {who} did not get on");
            }
        }
    }
    c.finish()
}

/// One host's cable to the target is pulled for a moment: it waits and goes on, nobody is evicted. Then for longer than the lease: the
/// others take over, its programs get an error, and it can be unmounted and mounted again.
#[test]
fn one_hosts_cable_to_the_target_is_pulled() -> Result {
    let mut c = Cluster::with("cable", Setup { hosts: 2, ..Setup::default() })?;
    c.add_host()?;
    let cable = c.own_cable(2)?;
    c.mount(2)?;
    let promised = <[Promised; 3]>::default();
    let (longest, other) = (AtomicU64::new(0), io::direct(&c.path(0, "other"))?);
    other.write_all_at(io::Aligned::pattern(4096, 1).bytes(), 0)?;
    let pausing = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result {
        let (other, pausing, longest) = (&other, &pausing, &longest);
        scope.spawn(move || longest.store(longest_pause(other, pausing).unwrap_or(u128::MAX) as u64, Ordering::SeqCst));
        let result = under_load(&c, &promised, || {
            cable.cut();
            std::thread::sleep(Duration::from_secs(2));
            cable.heal();
            goes_on(&promised[2], 20)?;
            ensure!(c.ask_status(0)?["members"].as_array().is_some_and(|m| m.len() == 3), "nobody is evicted for two seconds");
            cable.cut();
            let members = || c.ask_status(0).is_ok_and(|s| s["members"].as_array().is_some_and(|m| m.len() == 2));
            wait_until("the host without the LUN is evicted", Duration::from_secs(40), members)?;
            goes_on(&promised[0], 20)?;
            cable.heal();
            wait_until("it knows", Duration::from_secs(30), || c.ask_status(2).is_ok_and(|s| s["state"] == "withdrawn"))
        });
        pausing.store(true, Ordering::SeqCst);
        result
    })?;
    println!("one host's cable pulled: longest unrelated write of another host {} ms", longest.load(Ordering::SeqCst));
    drop(other);
    c.umount(2)?;
    c.mount(2)?;
    all_there(&c, &promised)?;
    c.finish()
}

/// A host is stopped for longer than its links live, and for less than the lease: the others wait for what it holds, nobody is evicted, its
/// programs see nothing but a pause.
#[test]
fn a_stop_shorter_than_the_lease() -> Result {
    let c = Cluster::new("stop")?;
    let promised = <[Promised; 3]>::default();
    let pid = Pid::from_raw(c.noted_pid(2)?).context("a process")?;
    under_load(&c, &promised, || {
        kill_process(pid, Signal::STOP)?;
        std::thread::sleep(Duration::from_millis(6500));
        kill_process(pid, Signal::CONT)?;
        promised.iter().try_for_each(|p| goes_on(p, 30))
    })?;
    for n in 0..3 {
        let s = c.status(n)?;
        ensure!(s["epoch"] == c.status(0)?["epoch"] && s["members"].as_array().is_some_and(|m| m.len() == 3), "host {n}: {s}");
        ensure!(s["members"].as_array().is_some_and(|m| m.iter().all(|m| m["incarnation"] == 1)), "somebody was evicted: {s}");
    }
    all_there(&c, &promised)?;
    c.finish()
}
