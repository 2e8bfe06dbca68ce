//! `luna demo`: the whole story on one machine, told with the real binary.
//!
//! One LUN (a sparse file behind `luna serve`), three hosts (three `luna mount`), a dozen disks, and one machine that moves
//! from host to host while the LUN stays where it is and the other disks stay in use. The steps are a table
//! ([`steps::STEPS`]); this file plays it, with times, and sees to it that nothing is left behind ([`world::World`]).
//!
//! Invariant: the demo succeeds only if every step does; each step proves what its title says.

mod counter;
mod initramfs;
mod machine;
mod qmp;
mod steps;
mod stop;
mod traffic;
mod vm;
mod watch;
mod world;
pub mod writer;

use crate::cli::DemoArgs;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};
use steps::{STEPS, Story};

/// `luna demo`.
pub fn run(args: &DemoArgs) -> Result<()> {
    stop::install()?;
    let begin = Instant::now();
    let mut story = Story::new(args)?;
    let watch = watch::Watch::start(story.world.hosts.iter().map(|h| h.dir.clone()).collect());
    println!("Luna demo: {} hosts on this machine, in {}", args.hosts, story.world.dir.display());
    if let machine::Kind::Process { why, .. } = &story.kind {
        println!("No virtual machine ({why}): a plain writer process moves in its place.");
    }
    for (n, step) in STEPS.iter().enumerate() {
        stop::check()?;
        let start = Instant::now();
        watch.step();
        let told = (step.run)(&mut story).with_context(|| format!("step {} of {}, {}", n + 1, STEPS.len(), step.title))?;
        println!("{:>2}/{}  {:<62}{:>8.2} s", n + 1, STEPS.len(), step.title, start.elapsed().as_secs_f64());
        for line in told.lines() {
            println!("       {line}");
        }
    }
    if args.keep {
        println!("Kept, as asked. To end it: {}", story.world.how_to_end());
        story.world.leave();
    }
    drop(story);
    println!("All of it worked, in {:.1} s.", begin.elapsed().as_secs_f64());
    Ok(())
}

/// A bar on stderr, seen on a terminal only.
fn bar(what: &'static str, len: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("       {msg} {bar:30} {pos}/{len}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style).with_message(what)
}

/// A spinner on stderr while `work` runs, seen on a terminal only.
fn spin<T>(what: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let style = ProgressStyle::with_template("       {spinner} {msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    let spinner = ProgressBar::new_spinner().with_style(style).with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let result = work();
    spinner.finish_and_clear();
    result
}
