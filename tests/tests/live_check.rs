//! `luna fsck -n` on a volume that three hosts are changing: it finds what is wrong, and nothing else.

use anyhow::ensure;
use luna_tests::{Cluster, Result, Setup};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Makes, moves, links and removes names, in one directory for all and one for each, and writes into some, until told to stop.
fn churn(dir: &Path, host: usize, stop: &AtomicBool, steps: &AtomicU64) {
    for n in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let own = dir.join(format!("own{host}"));
        let (a, b) = (own.join(format!("a{}", n % 40)), dir.join(format!("shared/b{}", n % 17)));
        // what others do to the shared names may be in the way
        let _ = match n % 6 {
            0 => fs::write(&a, vec![n as u8; (n % 9) as usize * 1000]),
            1 => fs::rename(&a, &b),
            2 => fs::hard_link(&b, &a),
            3 => fs::create_dir(own.join(format!("d{}", n % 7))),
            4 => fs::remove_file(&b),
            _ => fs::remove_dir(own.join(format!("d{}", n % 7))).and_then(|()| fs::remove_file(&a)),
        };
        steps.fetch_add(1, Ordering::Relaxed);
    }
}

/// Checks `times` under load: the exit status and what was printed of each.
fn checks_under_load(c: &Cluster, times: usize) -> Result<Vec<(i32, String)>> {
    let (stop, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|s| {
        for (host, h) in c.hosts.iter().enumerate() {
            let (stop, steps) = (&stop, &steps);
            s.spawn(move || churn(&h.dir, host, stop, steps));
        }
        let look = |_| {
            let before = steps.load(Ordering::Relaxed);
            let out = c.luna(&["fsck", "-n", &c.lun()])?;
            println!("{} steps meanwhile: {}{}", steps.load(Ordering::Relaxed) - before, out.out.trim(), out.err.trim());
            Ok((out.code, out.out + &out.err))
        };
        let all = (0..times).map(look).collect();
        stop.store(true, Ordering::Relaxed);
        all
    })
}

#[test]
fn a_check_of_a_mounted_volume_finds_what_is_wrong_and_nothing_else() -> Result {
    let c = Cluster::with("live-check", Setup { bytes: 1 << 30, slots: 4, ..Setup::default() })?;
    fs::create_dir(c.path(0, "shared"))?;
    for (n, h) in c.hosts.iter().enumerate() {
        fs::create_dir(h.dir.join(format!("own{n}")))?;
    }
    for (code, text) in checks_under_load(&c, 6)? {
        ensure!(code == 0, "a sound volume: {code} {text}");
        ensure!(!text.contains("a moment later"), "the report stands: {text}");
    }
    for n in 0..3 {
        c.umount(n)?;
    }
    c.luna(&["wreck", &c.lun(), "U03", "--yes"])?.ok("wreck")?;
    for n in 0..3 {
        c.mount(n)?;
    }
    for (code, text) in checks_under_load(&c, 3)? {
        let wrong = |l: &&str| matches!(l.split(' ').nth(1), Some("error" | "minor"));
        let others: Vec<&str> = text.lines().filter(wrong).filter(|l| !l.starts_with("U03 ")).collect();
        ensure!(code == 4 && text.contains("U03 ") && others.is_empty(), "blocks that belong to nobody: {code} {text}");
    }
    for n in 0..3 {
        c.umount(n)?;
    }
    let out = c.luna(&["fsck", "-y", &c.lun()])?;
    ensure!(out.code == 1, "repaired afterwards: {} {}{}", out.code, out.out, out.err);
    c.finish()
}
