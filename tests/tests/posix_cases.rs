//! The tables of POSIX cases (`luna_tests::cases`): each row on a local file system, on one mount, and split over two mounts.

use anyhow::ensure;
use luna_tests::{
    Cluster, Result, Setup,
    cases::{all, check_tables},
    deviations::{Suite, excuse},
};
use std::path::Path;

fn play(what: &str, here: &Path, there: &Path) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (n, case) in all().iter().enumerate() {
        if let Some(why) = case.play(here, there, &format!("c{n}"))?
            && (what == "locally" || excuse(Suite::Posix, &case.name).is_none())
        {
            wrong.push(format!("{what}: {}\n      {why}", case.name));
        }
    }
    Ok(wrong)
}

fn none(wrong: &[String]) -> Result {
    println!("{} cases", all().len());
    ensure!(wrong.is_empty(), "{} are wrong:\n  {}", wrong.len(), wrong.join("\n  "));
    Ok(())
}

/// The rows give modes of their own; nobody takes anything away from them.
fn no_umask() {
    rustix::process::umask(rustix::fs::Mode::empty());
}

#[test]
fn the_tables_are_right() -> Result {
    no_umask();
    check_tables()?;
    let dir = std::env::temp_dir().join(format!("lt-posix-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let wrong = play("locally", &dir, &dir)?;
    std::fs::remove_dir_all(&dir)?;
    none(&wrong)
}

#[test]
fn on_one_host() -> Result {
    no_umask();
    let c = Cluster::with("posix1", Setup { hosts: 1, bytes: 2 << 30, ..Setup::default() })?;
    none(&play("one host", &c.hosts[0].dir, &c.hosts[0].dir)?)?;
    c.finish()
}

#[test]
fn called_on_one_host_seen_on_another() -> Result {
    no_umask();
    let c = Cluster::with("posix2", Setup { hosts: 2, bytes: 2 << 30, ..Setup::default() })?;
    none(&play("two hosts", &c.hosts[0].dir, &c.hosts[1].dir)?)?;
    c.finish()
}
