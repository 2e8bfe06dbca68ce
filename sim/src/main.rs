//! `luna-sim`: runs seeds and says what they were. The seed comes first and last, so that a run that hangs or dies names it.

use clap::Parser;
use luna_sim::{Report, Setup, run};

/// Simulates clusters of Luna hosts with faults, one seed after the other.
#[derive(Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed; random when not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Hosts in each run; 0: the seed says.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=8))]
    hosts: u8,
    /// Simulated milliseconds of faults in each run.
    #[arg(long, default_value_t = 40_000)]
    faults_ms: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let first = args.seed.unwrap_or_else(|| fastrand::u64(0..1 << 32));
    println!("seeds {first}..{}", first + args.seeds);
    let mut sum = Report::default();
    for seed in first..first + args.seeds {
        let setup = Setup { hosts: usize::from(args.hosts), faults_ms: args.faults_ms, ..Setup::of(seed) };
        match run(&setup) {
            Ok(r) => add(&mut sum, &r),
            Err(v) => {
                eprintln!("{}", v.tail);
                println!("again with: luna-sim --seeds 1 --seed {seed} --hosts {} --faults-ms {}", args.hosts, args.faults_ms);
                return Err(v.into());
            }
        }
    }
    println!(
        "{:.1} simulated hours, {} faults, {} evictions, {} messages, {} grants, {} writes, {} stale reads, longest wait {} ms",
        sum.simulated_ms as f64 / 3_600_000.0,
        sum.faults,
        sum.evictions,
        sum.messages,
        sum.grants,
        sum.writes,
        sum.stale_reads,
        sum.longest_wait_ms
    );
    println!("trace {:016x}; all well: seeds {first}..{}", sum.trace, first + args.seeds);
    Ok(())
}

fn add(sum: &mut Report, r: &Report) {
    sum.trace = sum.trace.rotate_left(1) ^ r.trace;
    sum.simulated_ms += r.simulated_ms;
    sum.faults += r.faults;
    sum.messages += r.messages;
    sum.grants += r.grants;
    sum.evictions += r.evictions;
    sum.writes += r.writes;
    sum.stale_reads += r.stale_reads;
    sum.longest_wait_ms = sum.longest_wait_ms.max(r.longest_wait_ms);
}
