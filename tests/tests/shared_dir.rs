//! Sixteen processes on three hosts create, rename and delete in one directory; the result is what a model says.

use anyhow::{Context, ensure};
use luna_tests::{Cluster, Result, run};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

const HAMMER: &str = env!("CARGO_BIN_EXE_luna-hammer");

/// Starts `count` hammers spread over the hosts and gives what they printed.
fn hammer(count: usize, args: impl Fn(usize) -> Vec<String> + Sync) -> Result<Vec<String>> {
    std::thread::scope(|scope| {
        let args = &args;
        let all: Vec<_> = (0..count).map(|n| scope.spawn(move || run(HAMMER, &args(n))?.ok(&format!("process {n}")))).collect();
        all.into_iter().map(|t| Ok(t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??.out)).collect()
    })
}

#[test]
fn sixteen_processes_one_directory() -> Result {
    let c = Cluster::new("shared")?;
    fs::create_dir(c.path(0, "d"))?;
    let said = hammer(16, |n| {
        let dir = c.path(n % 3, "d").display().to_string();
        vec!["names".into(), dir, format!("p{n}"), "120".into(), (1000 + n).to_string()]
    })?;
    let mut model = BTreeMap::new();
    let mut winners = BTreeMap::new();
    for line in said.iter().flat_map(|s| s.lines()) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["have", name, content] => drop(model.insert(name.to_owned(), content.to_owned())),
            ["won", name] => *winners.entry(name.to_owned()).or_insert(0) += 1,
            _ => {}
        }
    }
    ensure!(winners.len() == 20 && winners.values().all(|n| *n == 1), "exclusive creation has not one winner each: {winners:?}");
    let names: BTreeSet<String> = model.keys().cloned().chain(winners.into_keys()).chain(["target".to_owned()]).collect();
    for n in 0..3 {
        let dir = c.path(n, "d");
        let there: BTreeSet<String> =
            fs::read_dir(&dir)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
        let missing: Vec<_> = names.difference(&there).collect();
        let extra: Vec<_> = there.difference(&names).collect();
        ensure!(missing.is_empty() && extra.is_empty(), "host {n}: missing {missing:?}, not in the model {extra:?}");
        for (name, content) in &model {
            let got = fs::read_to_string(dir.join(name)).with_context(|| format!("host {n}: {name}"))?;
            ensure!(got == *content, "host {n}: {name} holds '{got}', the model says '{content}'");
        }
    }
    c.finish()
}

#[test]
fn appends_are_atomic_across_hosts() -> Result {
    let c = Cluster::new("append")?;
    const LINES: usize = 60;
    hammer(6, |n| vec!["append".into(), c.path(n % 3, "log").display().to_string(), format!("p{n}"), LINES.to_string()])?;
    for host in 0..3 {
        let text = fs::read_to_string(c.path(host, "log"))?;
        let mut next = BTreeMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            ensure!(words.len() == 3, "host {host}: a torn line '{line}'");
            let n: usize = words[1].parse()?;
            ensure!(words[2].len() == (n * 7) % 200, "host {host}: a damaged line '{line}'");
            let want = next.entry(words[0].to_owned()).or_insert(0);
            ensure!(*want == n, "host {host}: {} wrote line {n} where {want} should be", words[0]);
            *want += 1;
        }
        ensure!(next.len() == 6 && next.values().all(|n| *n == LINES), "host {host}: lines are lost: {next:?}");
    }
    c.finish()
}

#[test]
fn a_number_under_a_posix_lock() -> Result {
    let c = Cluster::new("add")?;
    fs::write(c.path(0, "n"), format!("{:>16}", 0))?;
    hammer(6, |n| vec!["add".into(), c.path(n % 3, "n").display().to_string(), "40".into()])?;
    for host in 0..3 {
        let text = fs::read_to_string(c.path(host, "n"))?;
        ensure!(text.trim() == "240", "host {host} reads {}, 240 were added", text.trim());
    }
    c.finish()
}
