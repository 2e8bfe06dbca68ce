//! Two hosts in network namespaces of their own, which talk over veth and find each other through the LUN alone.

use anyhow::{Context, ensure};
use luna_tests::{Cluster, Result, Setup, io, net::Net, wait_until};
use std::{fs, os::unix::fs::FileExt, time::Duration};

/// A LUN that every namespace reaches (a unix socket is a file), and hosts that reach each other by `net` only.
fn hosts(name: &str, net: &Net) -> Result<Cluster> {
    let hosts = net.namespaces.len();
    Cluster::with(name, Setup { hosts, namespaces: net.namespaces.clone(), listen: "10.77.0.{}:7700", ..Setup::default() })
}

/// How host `n` says it talks to the others.
fn links(c: &Cluster, n: usize) -> Result<Vec<String>> {
    let status = c.status(n)?;
    let members = status["members"].as_array().context("no members in the status")?;
    let own = &status["slot"];
    Ok(members.iter().filter(|m| m["slot"] != *own).map(|m| m["link"].as_str().unwrap_or("?").to_owned()).collect())
}

#[test]
fn over_veth() -> Result {
    let net = Net::new(2)?;
    let c = hosts("veth", &net)?;
    wait_until("TCP between the hosts", Duration::from_secs(20), || {
        (0..2).all(|n| links(&c, n).is_ok_and(|l| l.len() == 1 && l[0] == "tcp"))
    })?;
    for round in 0..50 {
        let (w, r) = (round % 2, (round + 1) % 2);
        fs::write(c.path(w, format!("f{round}")), round.to_string())?;
        ensure!(fs::read_to_string(c.path(r, format!("f{round}")))? == round.to_string(), "round {round}");
    }
    c.finish()
}

#[test]
fn tcp_cut_work_goes_on_through_the_lun() -> Result {
    let net = Net::new(3)?;
    let c = hosts("cut", &net)?;
    let work = |from: usize, rounds: usize| -> Result {
        for round in from..from + rounds {
            let (w, r) = (round % 3, (round + 1) % 3);
            let name = format!("f{round}");
            fs::write(c.path(w, &name), round.to_string()).with_context(|| format!("host {w} writes {name}"))?;
            ensure!(fs::read_to_string(c.path(r, &name)).with_context(|| format!("host {r} reads {name}"))? == round.to_string(), "{name}");
            let (a, b) = (io::direct(&c.path(w, "disk"))?, io::direct(&c.path(r, "disk"))?);
            a.write_all_at(io::Aligned::pattern(8192, round as u64).bytes(), (round as u64 % 5) * 8192)?;
            io::expect(&b, (round as u64 % 5) * 8192, 8192, round as u64, &name)?;
        }
        Ok(())
    };
    work(0, 10)?;
    net.cut(0)?;
    // lock messages of host 0 now go through mailboxes on the LUN: slower, never wrong
    work(10, 6)?;
    wait_until("the status says so", Duration::from_secs(30), || links(&c, 0).is_ok_and(|l| l.iter().all(|l| l == "lun")))?;
    let status = c.status(1)?;
    let members = status["members"].as_array().map_or(0, Vec::len);
    ensure!(members == 3, "a host was thrown out because of a network fault: {status}");
    net.heal(0)?;
    wait_until("TCP again", Duration::from_secs(40), || links(&c, 0).is_ok_and(|l| l.iter().all(|l| l == "tcp")))?;
    work(16, 10)?;
    c.finish()
}

#[test]
fn no_network_at_all() -> Result {
    let net = Net::new(2)?;
    net.cut(0)?;
    let c = hosts("nonet", &net)?;
    for round in 0..4 {
        let (w, r) = (round % 2, (round + 1) % 2);
        fs::write(c.path(w, format!("f{round}")), round.to_string())?;
        ensure!(fs::read_to_string(c.path(r, format!("f{round}")))? == round.to_string(), "round {round}");
    }
    c.finish()
}
