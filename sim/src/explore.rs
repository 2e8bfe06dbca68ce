//! `luna-sim --world crash`: explores workloads on all processors, says how many states that were, and the first that may not be.
//!
//! Not here: anything that decides.

use anyhow::anyhow;
use luna_sim::Broken;
use luna_sim::crash::{Counts, Effort, Setup, Violation, World};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How often it says how far it is.
const TELL: Duration = Duration::from_mins(1);

/// What to explore.
#[derive(clap::Args)]
pub(crate) struct Crash {
    /// Crash: operations of a workload.
    #[arg(long, default_value_t = 2)]
    length: usize,
    /// Crash: of all workloads, so many; 0 is all.
    #[arg(long, default_value_t = 0)]
    sample: u64,
    /// Crash: next to nothing is free on the volume.
    #[arg(long)]
    full: bool,
    /// Crash: as little as in the tests is tried for each workload.
    #[arg(long)]
    short: bool,
    /// Crash: only this workload.
    #[arg(long)]
    workload: Option<u64>,
    /// Crash: go on after a violation, and print so many.
    #[arg(long, default_value_t = 1)]
    violations: usize,
}

/// Runs it.
pub(crate) fn run(args: &Crash, hosts: usize, seed: u64, broken: Option<Broken>) -> anyhow::Result<()> {
    let begun = Instant::now();
    let effort = if args.short { Effort::SHORT } else { Effort::FULL };
    let (hosts, full) = (hosts.clamp(1, 2), args.full);
    let setup = Setup { full, sample: args.sample, seed, effort, broken, ..Setup::all(args.length, hosts) };
    let world = World::new(setup).map_err(|e| anyhow!(e))?;
    let chosen = args.workload.map_or_else(|| world.chosen(), |n| vec![n]);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let told = Mutex::new(Instant::now());
    let (sum, found) = (Mutex::new(Counts::default()), Mutex::new(Vec::<Violation>::new()));
    // panics of the production code are violations, and told as such
    std::panic::set_hook(Box::new(|_| ()));
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            s.spawn(|| {
                let mut explorer = world.explorer();
                while let Some(n) = chosen.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| !stop.load(Ordering::Relaxed)) {
                    match explorer.explore(*n) {
                        None => {}
                        Some(Ok(c)) => {
                            lock(&sum).add(&c);
                            let mut told = lock(&told);
                            if told.elapsed() > TELL {
                                *told = Instant::now();
                                let c = lock(&sum);
                                eprintln!("{} of {} numbers: {}", next.load(Ordering::Relaxed), chosen.len(), states(&c));
                            }
                        }
                        Some(Err(v)) => {
                            let mut found = lock(&found);
                            println!("{v}{}", if args.workload.is_some() { format!("\n{}", v.tape) } else { String::new() });
                            found.push(v);
                            stop.fetch_or(found.len() >= args.violations, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let (c, found) = (*lock(&sum), lock(&found).len());
    let all: u64 = c.states.iter().sum();
    println!(
        "{} workloads of {} on {hosts} hosts{} ({} without space), {} events, {} deaths of one host",
        c.workloads,
        args.length,
        if full { ", full volume" } else { "" },
        c.no_space,
        c.events,
        c.deaths
    );
    println!("{}", states(&c));
    println!("{} distinct, {} different after replay, {} replays cut and done again", c.distinct, c.recovered, c.replays_cut);
    println!(
        "{found} violations; {:.1} s, {:.0} states a second",
        begun.elapsed().as_secs_f64(),
        all as f64 / begun.elapsed().as_secs_f64()
    );
    // a rule taken away is to be noticed
    match (found, broken) {
        (0, Some(rule)) => Err(anyhow!("{rule:?} was not noticed")),
        (1.., None) => std::process::exit(1),
        _ => Ok(()),
    }
}

fn states(c: &Counts) -> String {
    let [prefix, subset, torn, inflight] = c.states;
    format!("{} crash states: {prefix} prefixes, {subset} subsets, {torn} torn, {inflight} in flight", c.states.iter().sum::<u64>())
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
