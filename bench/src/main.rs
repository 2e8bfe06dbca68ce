//! `luna-bench`: one command that measures and prints; three hidden ones are the processes it starts.
//!
//! The server, the doors and the load on the bare LUN each run in a process of their own, as in real life: what they cost
//! each other is part of the figure. Invariant: a hidden command ends when it is killed or unmounted and leaves nothing.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use luna_bench::{check, door, fio::Job, raw, run, takeover};
use luna_lun::LunSpec;
use luna_lun::serve::{Listen, ServeOptions};

#[derive(Parser)]
#[command(version, about = "Speed of a Luna mount beside the bare LUN, a bare FUSE door and ext4")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures everything in one go and prints a table (needs root, fio, and ext4 tools for the comparison)
    Run(RunArgs),
    /// Kills hosts and measures how long the others wait (needs root; nbdkit and qemu-storage-daemon for their rungs)
    Takeover {
        /// Kills per rung; medians are taken over them
        #[arg(long, default_value_t = 11)]
        runs: usize,
        /// Which rungs of the fencing ladder
        #[arg(long, value_enum, value_delimiter = ',', default_value = "target,storage-daemon,lease")]
        rung: Vec<takeover::RungKind>,
    },
    /// Makes a large volume in a sparse file and measures how long its check takes
    Check {
        /// Where the file goes; it takes about 5 KiB for each small file
        #[arg(long, default_value = "/var/tmp")]
        dir: PathBuf,
        /// Size of the volume in GiB
        #[arg(long, default_value_t = 1024)]
        gib: u64,
        /// Disk files
        #[arg(long, default_value_t = 1000)]
        disks: u64,
        /// Small files
        #[arg(long, default_value_t = 1_000_000)]
        files: u64,
        /// Checks that are timed
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// The `luna` binary to measure [default: the one beside this program]
        #[arg(long, value_name = "FILE")]
        luna: Option<PathBuf>,
    },
    /// Serves FILE over NBD until killed
    #[command(hide = true)]
    Serve {
        /// The file to serve
        file: PathBuf,
        /// Its size if it has to be made
        #[arg(long)]
        create_bytes: Option<u64>,
        /// Listen on this Unix socket
        #[arg(long, conflicts_with = "listen", required_unless_present = "listen")]
        socket: Option<PathBuf>,
        /// Listen on this TCP address
        #[arg(long)]
        listen: Option<SocketAddr>,
    },
    /// Mounts a bare FUSE door on DIR until unmounted
    #[command(hide = true)]
    Door {
        /// Where to mount
        dir: PathBuf,
        /// The LUN behind the door; memory if not given
        #[arg(long)]
        lun: Option<String>,
        /// FUSE threads
        #[arg(long, default_value_t = 1)]
        threads: usize,
        /// NBD connections
        #[arg(long, default_value_t = 0)]
        connections: usize,
    },
    /// Loads the bare LUN and prints operations per second
    #[command(hide = true)]
    Raw {
        /// The LUN
        lun: String,
        /// The job's name, as in the table
        job: String,
        /// For how long
        #[arg(long, default_value_t = 2000)]
        millis: u64,
        /// NBD connections
        #[arg(long, default_value_t = 0)]
        connections: usize,
    },
}

#[derive(Args)]
struct RunArgs {
    /// About a minute instead of five; noisier
    #[arg(long)]
    quick: bool,
    /// Where the LUN's file and the mount points go; memory-backed by default, so that the medium is not what is measured
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    medium: PathBuf,
    /// Reach the LUN over TCP instead of a Unix socket
    #[arg(long)]
    tcp: bool,
    /// The server: ours, or nbdkit
    #[arg(long, value_enum, default_value_t = run::ServerKind::Luna)]
    server: run::ServerKind,
    /// The `luna` binary to measure [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    luna: Option<PathBuf>,
    /// Measure this mounted directory as "our mount" instead of starting one
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds; medians are taken over them
    #[arg(long)]
    rounds: Option<usize>,
    /// FUSE threads of the bare door
    #[arg(long, default_value_t = 1)]
    door_threads: usize,
    /// Data, metadata or both
    #[arg(long, value_enum, default_value_t = run::Part::All)]
    part: run::Part,
}

fn main() -> ExitCode {
    match command(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("luna-bench: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn parse_lun(text: &str) -> anyhow::Result<LunSpec> {
    text.parse::<LunSpec>().with_context(|| format!("{text} is not a LUN"))
}

fn command(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(args) => run::run(&run::Plan {
            rounds: args.rounds.unwrap_or(if args.quick { 3 } else { 9 }),
            // short turns, many of them: the subjects share whatever the machine is doing
            seconds: 1,
            files: if args.quick { 500 } else { 3000 },
            medium: args.medium,
            tcp: args.tcp,
            server: args.server,
            luna: args.luna,
            mount: args.mount,
            json: args.json,
            door_threads: args.door_threads,
            part: args.part,
        }),
        Command::Check { dir, gib, disks, files, runs, luna } => {
            check::run(&check::Shape { dir, bytes: gib << 30, disks, files, runs, luna })
        }
        Command::Takeover { runs, rung } => takeover::run(&rung, runs),
        Command::Serve { file, create_bytes, socket, listen } => {
            let listen = match (socket, listen) {
                (Some(path), _) => Listen::Unix(path),
                (None, Some(addr)) => Listen::Tcp(addr),
                (None, None) => anyhow::bail!("give --socket or --listen"),
            };
            let mut options = ServeOptions::new(file, listen);
            options.create_bytes = create_bytes;
            let server = luna_lun::serve::start(options)?;
            server.join();
            Ok(())
        }
        Command::Door { dir, lun, threads, connections } => {
            let back = match lun {
                Some(text) => door::Back::lun(&parse_lun(&text)?, connections)?,
                None => door::Back::memory(),
            };
            door::serve(&dir, back, threads)
        }
        Command::Raw { lun, job, millis, connections } => {
            let job: Job = job.parse()?;
            let rate = raw::load(&parse_lun(&lun)?, job, Duration::from_millis(millis), connections)?;
            println!("{rate:.1}");
            Ok(())
        }
    }
}
