//! Suites that others wrote: pjdfstest on one mount, stress-ng's class of file systems on two mounts at once, `fio --verify` across two mounts.
//!
//! Whatever a suite skips must be in `luna_tests::deviations`; what fails there fails here. `LUNA_STRESS_SECONDS=60` runs stress-ng for longer.

use anyhow::{Context, ensure};
use luna_tests::{
    Cluster, Output, Result, Setup,
    deviations::{Suite, excuse},
    have, run, tool,
};
use rustix::{fs::CWD, io::Errno};
use std::{fs, path::Path};

fn small(name: &str, hosts: usize) -> Result<Cluster> {
    Cluster::with(name, Setup { hosts, bytes: 6 << 30, ..Setup::default() })
}

/// The names of cases on lines that end with `word`.
fn cases<'a>(out: &'a str, word: &str) -> Vec<&'a str> {
    let of = |l: &'a str| l.trim_end().strip_suffix(word).map(str::trim_end).filter(|n| n.contains("::"));
    out.lines().filter_map(of).collect()
}

#[test]
fn pjdfstest() -> Result {
    ensure!(have("pjdfstest"), "pjdfstest is not installed; tests/setup.sh test does it");
    let c = small("pjd", 1)?;
    let config = c.dir.join("pjdfstest.toml");
    let entries = r#"[["nobody", "nogroup"], ["daemon", "daemon"]]"#;
    let features = "posix_fallocate = {}\nrename_ctime = {}\nutimensat = {}\nutime_now = {}\n";
    fs::write(
        &config,
        format!("[features]\n{features}[settings]\nnaptime = 0.01\nallow_remount = false\n[dummy_auth]\nentries = {entries}\n"),
    )?;
    let (config, dir) = (config.display().to_string(), c.hosts[0].dir.display().to_string());
    let out = run("pjdfstest", &["-c", &config, "-p", &dir, "-s", "/dev/shm"])?;
    let (passed, skipped, failed) = (cases(&out.out, " ok"), cases(&out.out, " skipped"), cases(&out.out, " FAILED"));
    println!("pjdfstest: {} passed, {} skipped, {} failed", passed.len(), skipped.len(), failed.len());
    ensure!(out.code == 0 && failed.is_empty(), "failed: {failed:?}\n{}", out.err);
    ensure!(passed.len() > 350, "only {} cases passed: the output is not understood", passed.len());
    let unknown: Vec<_> = skipped.into_iter().filter(|n| excuse(Suite::Pjdfstest, n).is_none()).collect();
    ensure!(unknown.is_empty(), "skipped without a reason that is written down: {unknown:?}");
    c.finish()
}

/// What pjdfstest cannot ask for (its remount does not quote the source): nothing changes a mount that is read-only.
#[test]
fn a_read_only_mount_refuses_changes() -> Result {
    let mut c = small("ro", 1)?;
    let dir = c.hosts[0].dir.clone();
    fs::write(dir.join("f"), "x")?;
    fs::create_dir(dir.join("d"))?;
    let ro = c.add_host()?;
    let mut command = c.mount_command(ro, "reader");
    command.args(["-o", "ro"]);
    c.command(&mut command)?.ok("mounting read-only")?;
    let p = |name: &str| c.path(ro, name);
    let io = |r: std::io::Result<()>| r.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let now = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 1 };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
    let flags = rustix::fs::AtFlags::empty();
    let table: Vec<(&str, std::result::Result<(), Errno>)> = vec![
        ("open for writing", io(fs::File::options().write(true).open(p("f")).map(drop))),
        ("open, new", io(fs::File::create_new(p("new")).map(drop))),
        ("truncate", io(fs::File::options().write(true).truncate(true).open(p("f")).map(drop))),
        ("mkdir", io(fs::create_dir(p("new")))),
        ("rmdir", io(fs::remove_dir(p("d")))),
        ("unlink", io(fs::remove_file(p("f")))),
        ("rename", io(fs::rename(p("f"), p("g")))),
        ("link", io(fs::hard_link(p("f"), p("g")))),
        ("symlink", io(std::os::unix::fs::symlink("f", p("new")))),
        ("mknod", rustix::fs::mknodat(CWD, p("new"), rustix::fs::FileType::Fifo, mode, 0)),
        ("chmod", rustix::fs::chmodat(CWD, p("f"), mode, flags)),
        ("chown", io(std::os::unix::fs::chown(p("f"), Some(1), Some(1)))),
        ("utimensat", rustix::fs::utimensat(CWD, p("f"), &times, flags)),
        ("setxattr", rustix::fs::setxattr(p("f"), "user.x", b"y", rustix::fs::XattrFlags::empty())),
    ];
    let wrong: Vec<_> = table.into_iter().filter(|(_, got)| *got != Err(Errno::ROFS)).collect();
    ensure!(wrong.is_empty(), "not refused with EROFS: {wrong:?}");
    ensure!(fs::read_to_string(p("f"))? == "x", "it reads");
    c.finish()
}

/// stress-ng's own names of the class, without those that cannot be asked here.
fn stressors() -> Result<Vec<String>> {
    let said = run("stress-ng", &["--class", "filesystem?"])?;
    let list = said.out.split("stressors:").nth(1).or_else(|| said.err.split("stressors:").nth(1)).context("no list of stressors")?;
    Ok(list.split_whitespace().map(str::to_owned).collect())
}

fn stress(dir: &Path) -> Result<Output> {
    fs::create_dir(dir)?;
    let seconds = std::env::var("LUNA_STRESS_SECONDS").unwrap_or_else(|_| "4".into());
    let left_out: Vec<_> = stressors()?.into_iter().filter(|s| excuse(Suite::StressNg, s).is_some()).collect();
    let (dir, out) = (dir.display().to_string(), left_out.join(","));
    run("stress-ng", &["--class", "filesystem", "--all", "1", "--timeout", &seconds, "--verify", "--temp-path", &dir, "--exclude", &out])
}

#[test]
fn stress_ng_on_two_hosts() -> Result {
    ensure!(have("stress-ng"), "stress-ng is not installed; tests/setup.sh test does it");
    let c = small("stress", 2)?;
    let dirs = [c.path(0, "a"), c.path(1, "b")];
    let outs = std::thread::scope(|scope| dirs.each_ref().map(|d| scope.spawn(|| stress(d))).map(std::thread::ScopedJoinHandle::join));
    for (n, out) in outs.into_iter().enumerate() {
        let out = out.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        let said = format!("{}{}", out.out, out.err);
        let bad: Vec<_> = said.lines().filter(|l| l.contains("fail:") || l.contains("error:") || l.contains("skipping stress")).collect();
        ensure!(
            out.code == 0 && bad.is_empty(),
            "host {n} ended with {}: {bad:#?}\n{}",
            out.code,
            said.lines().rev().take(5).collect::<String>()
        );
        println!("host {n}: {}", said.lines().find(|l| l.contains("dispatching")).unwrap_or_default());
    }
    c.finish()
}

/// The arguments that all runs of fio share.
fn fio(args: &[&str]) -> Result {
    let mut all = vec!["--minimal", "--ioengine=psync", "--verify=crc32c", "--verify_fatal=1", "--randseed=7", "--bs=4k", "--size=8m"];
    all.extend(args);
    tool("fio", &all).map(drop)
}

#[test]
fn fio_verifies_on_another_host() -> Result {
    let c = small("fio", 2)?;
    let name = |n: usize, file: &str| format!("--filename={}", c.path(n, file).display());
    // how it is written, how it is read elsewhere
    let table = [("--direct=1", "--direct=1"), ("--direct=1", "--direct=0"), ("--direct=0", "--direct=1"), ("--direct=0", "--direct=0")];
    for (n, (written, read)) in table.into_iter().enumerate() {
        let (file, (writer, reader)) = (format!("f{n}"), (n % 2, (n + 1) % 2));
        // the reader has old pages of it
        fs::write(c.path(writer, &file), vec![1; 8 << 20])?;
        ensure!(fs::read(c.path(reader, &file))?.len() == 8 << 20, "the first look");
        fio(&["--name=w", &name(writer, &file), "--rw=randwrite", "--do_verify=0", "--end_fsync=1", written])?;
        fio(&["--name=w", &name(reader, &file), "--rw=randwrite", "--verify_only", read]).with_context(|| format!("{written}, {read}"))?;
    }
    c.finish()
}

#[test]
fn fio_on_ranges_of_one_file() -> Result {
    let c = small("fiorange", 2)?;
    fs::File::create(c.path(0, "shared"))?.set_len(16 << 20)?;
    let outs = std::thread::scope(|scope| {
        let run = |n: usize| {
            let (file, offset) = (format!("--filename={}", c.path(n, "shared").display()), format!("--offset={}m", n * 8));
            move || fio(&["--name=r", &file, &offset, "--rw=randrw", "--direct=1", "--do_verify=1"])
        };
        let (one, two) = (run(0), run(1));
        [scope.spawn(one), scope.spawn(two)].map(|t| t.join().map_err(|_| anyhow::anyhow!("a thread panicked")))
    });
    for (n, out) in outs.into_iter().enumerate() {
        out?.with_context(|| format!("host {n}"))?;
    }
    c.finish()
}
