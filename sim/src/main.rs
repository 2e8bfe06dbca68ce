//! `luna-sim`: runs seeds and says what they were. The seed comes first and last, so that a run that hangs or dies names it.

mod explore;

use clap::Parser;
use luna_sim::{Broken, Report, Setup, Stats, run};

/// Simulates clusters of Luna hosts with faults, one seed after the other.
#[derive(Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed; random when not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Hosts in each run, at most 8; 0: the seed says. With --scale: numbers of hosts up to 64, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(0..=64))]
    hosts: Vec<u8>,
    /// With --scale: nobody dies.
    #[arg(long)]
    nobody_dies: bool,
    /// The timing of the product, ten hours a seed, a fault every six minutes; locks only.
    #[arg(long)]
    calm: bool,
    /// Measure how things grow with the number of hosts, and print tables.
    #[arg(long)]
    scale: bool,
    /// Simulated milliseconds of faults in each run; 0: as usual (40 s for locks, 8 s for files).
    #[arg(long, default_value_t = 0)]
    faults_ms: u64,
    /// A rule to take away (see `Broken`), to see it noticed: seeds that notice are counted.
    #[arg(long)]
    broken: Option<String>,
    /// Files: hosts freeze the metadata now and then, and the check looks at the LUN meanwhile
    #[arg(long)]
    freezes: bool,
    /// Print everything as it happens.
    #[arg(long)]
    talk: bool,
    /// What is run: only locks, or the production file system too.
    #[arg(long, value_enum, default_value_t = Which::Both)]
    world: Which,
    #[command(flatten)]
    crash: explore::Crash,
}

/// Worlds.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    Locks,
    Fs,
    Crash,
    Both,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.scale {
        return scale(&args);
    }
    if args.world == Which::Crash {
        let hosts = args.hosts.first().copied().unwrap_or(1);
        return explore::run(&args.crash, usize::from(hosts), args.seed.unwrap_or(1), broken(&args)?);
    }
    let first = args.seed.unwrap_or_else(|| fastrand::u64(0..1 << 32));
    println!("seeds {first}..{}", first + args.seeds);
    for (files, name) in [(false, "locks"), (true, "fs")] {
        let wanted = args.world == Which::Both || (args.world == Which::Fs) == files;
        if wanted && !(files && args.calm) {
            world(&args, first, files, name)?;
        }
    }
    println!("all well: seeds {first}..{}", first + args.seeds);
    Ok(())
}

/// The rule to take away.
fn broken(args: &Args) -> anyhow::Result<Option<Broken>> {
    let broken = args.broken.as_ref().and_then(|b| Broken::ALL.into_iter().find(|x| format!("{x:?}") == *b));
    anyhow::ensure!(broken.is_some() == args.broken.is_some(), "rules that can be taken away: {:?}", Broken::ALL);
    Ok(broken)
}

/// All seeds of one world.
fn world(args: &Args, first: u64, files: bool, name: &str) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    let hosts = args.hosts.first().copied().unwrap_or(0);
    let broken = broken(args)?;
    let mut noticed = 0;
    let mut sum = Report::default();
    for seed in first..first + args.seeds {
        let usual = match (args.calm, files) {
            (true, _) => Setup::calm(seed),
            (false, true) => Setup::files(seed),
            (false, false) => Setup::of(seed),
        };
        let faults_ms = if args.faults_ms == 0 { usual.faults_ms } else { args.faults_ms };
        match run(&Setup { freezes: args.freezes, hosts: usize::from(hosts), faults_ms, talk: args.talk, broken, ..usual }) {
            Ok(r) => add(&mut sum, &r),
            Err(v) if broken.is_some() && !args.talk => {
                noticed += 1;
                println!("{v}");
            }
            Err(v) => {
                eprintln!("{}", v.tail);
                println!(
                    "again with: luna-sim --world {name} --seeds 1 --seed {seed} --hosts {hosts} --faults-ms {faults_ms}{}",
                    if args.calm { " --calm" } else { "" }
                );
                return Err(v.into());
            }
        }
    }
    if broken.is_some() {
        println!("{name}: {noticed} of {} seeds notice", args.seeds);
    }
    println!(
        "{name}: {:.1} simulated hours, {} faults, {} evictions, {} messages, {} grants, {} writes, {} stale reads, longest wait {} ms",
        sum.simulated_ms as f64 / 3_600_000.0,
        sum.faults,
        sum.evictions,
        sum.messages,
        sum.grants,
        sum.writes,
        sum.stale_reads,
        sum.longest_wait_ms
    );
    if files {
        println!("{name}: {:?}", sum.files);
    }
    println!("{name}: {:.1} seeds a second, trace {:016x}", args.seeds as f64 / begun.elapsed().as_secs_f64(), sum.trace);
    Ok(())
}

fn scale(args: &Args) -> anyhow::Result<()> {
    let usual = vec![2, 8, 16, 32, 64];
    let hosts = if args.hosts.is_empty() { usual } else { args.hosts.iter().map(|n| usize::from(*n)).collect() };
    let cases = if args.nobody_dies { &[][..] } else { &luna_sim::scale::CASES };
    let all = luna_sim::scale::measure_all(args.seed.unwrap_or(1), &hosts, cases).inspect_err(|v| eprintln!("{}", v.tail))?;
    print!("{}", luna_sim::scale::tables(&all));
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
    sum.files = add_files(sum.files, r.files);
}

fn add_files(a: Stats, b: Stats) -> Stats {
    Stats {
        operations: a.operations + b.operations,
        lost: a.lost + b.lost,
        cells: a.cells + b.cells,
        crash_points: a.crash_points + b.crash_points,
        power_cuts: a.power_cuts + b.power_cuts,
        replays: a.replays + b.replays,
        looks: a.looks + b.looks,
        requests: a.requests + b.requests,
        late_writes: a.late_writes + b.late_writes,
    }
}
