//! A git repository on the mount: cloned on one host, checked on the second, worked on from the third.

use anyhow::ensure;
use luna_tests::{Cluster, Result, run_in};
use std::path::Path;

fn git(dir: &Path, args: &[&str]) -> Result<String> {
    let mut all =
        vec!["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false", "-c", "safe.directory=*", "-c", "gc.auto=0"];
    all.extend(args);
    run_in(dir, "git", &all)
}

#[test]
fn clone_commit_and_check() -> Result {
    let c = Cluster::new("git")?;
    let source = c.dir.join("source");
    std::fs::create_dir(&source)?;
    git(&source, &["init", "-q", "-b", "main"])?;
    for round in 0..5 {
        for n in 0..120 {
            let dir = source.join(format!("d{}", n % 12));
            std::fs::create_dir_all(&dir)?;
            std::fs::write(dir.join(format!("f{n}")), format!("{round} {n}\n").repeat(n * 10 + 1))?;
        }
        git(&source, &["add", "-A"])?;
        git(&source, &["commit", "-q", "-m", &format!("round {round}")])?;
    }
    let from = format!("file://{}", source.display());
    git(&c.hosts[0].dir, &["clone", "-q", &from, "work"])?;
    git(&c.path(1, "work"), &["fsck", "--full", "--strict"])?;
    ensure!(git(&c.path(1, "work"), &["status", "--porcelain"])?.is_empty(), "the second host sees a dirty work tree");
    // each host commits in turn, and sees the others' commits
    for n in 0..3 {
        let work = c.path(n, "work");
        std::fs::write(work.join(format!("from-{n}")), "x")?;
        git(&work, &["add", "-A"])?;
        git(&work, &["commit", "-q", "-m", &format!("from {n}")])?;
        let log = git(&c.path((n + 1) % 3, "work"), &["log", "--oneline"])?;
        ensure!(log.lines().count() == 6 + n, "after the commit of host {n} the next one sees {} commits", log.lines().count());
    }
    git(&c.path(2, "work"), &["gc", "-q", "--prune=now"])?;
    git(&c.path(0, "work"), &["fsck", "--full"])?;
    let sum = |dir: &Path| run_in(dir, "sh", &["-c", "git -c safe.directory='*' ls-files | xargs cat | cksum"]);
    let sums = [sum(&c.path(0, "work"))?, sum(&c.path(1, "work"))?, sum(&c.path(2, "work"))?];
    ensure!(sums[0] == sums[1] && sums[1] == sums[2], "the work tree differs between hosts: {sums:?}");
    c.finish()
}
