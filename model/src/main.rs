//! `luna-model`: explores a model at a size given on the command line, or runs the table of mutants.
//!
//! Without `--mutant` the protocol itself is explored, and an exit code of 1 says that a property fell or that a situation was never reached.
//! With `--mutant NAME` the counterexample is printed; `--table` prints all of them as rows of `docs/model.md`. Not here: models.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use luna_model::lease::Lease;
use luna_model::paxos::Paxos;
use luna_model::run::{self, Mutable};
use luna_model::takeover::{Fence, Takeover};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    Paxos,
    Takeover,
    Lease,
}

/// Explores the models of the cluster protocol.
#[derive(Debug, Parser)]
struct Options {
    /// Which model; all of them if it is left out
    #[arg(long)]
    model: Option<Which>,
    /// Slots or hosts (paxos and takeover)
    #[arg(long)]
    hosts: Option<u8>,
    /// The larger sizes: minutes and gigabytes
    #[arg(long)]
    large: bool,
    /// Leave this rule out and print the shortest counterexample
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,
    /// Print the table of mutants
    #[arg(long)]
    table: bool,
    /// Threads of the checker (a search for a counterexample has one)
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn main() -> anyhow::Result<ExitCode> {
    let o = Options::parse();
    let wants = |w: Which| o.model.is_none_or(|m| m == w);
    if o.table {
        println!("| model | mutant | rule left out | invariant | steps |\n|---|---|---|---|---|");
    }
    let mut is_good = true;
    if wants(Which::Paxos) {
        is_good &= examine("paxos", &o, &paxos(&o))?;
    }
    if wants(Which::Takeover) {
        is_good &= examine("takeover", &o, &takeover(&o))?;
    }
    if wants(Which::Lease) {
        is_good &= examine("lease", &o, &lease(&o))?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A model and what to call it.
type Named<M> = (String, M);

fn paxos(o: &Options) -> Vec<Named<Paxos>> {
    let small = Paxos::small();
    let named = |m: Paxos| {
        let Paxos { hosts, rounds, instances, restarts, .. } = m;
        (format!("slots {hosts}, ballots {rounds}, records {instances}, restarts {restarts}"), m)
    };
    let hosts = o.hosts.unwrap_or(if o.large { 3 } else { small.hosts });
    if !o.large {
        return vec![named(Paxos { hosts, ..small }), named(Paxos { hosts: 3, rounds: 1, instances: 1, ..small })];
    }
    vec![
        named(Paxos { hosts: 2, rounds: 3, restarts: 2, instances: 1, ..small }),
        named(Paxos { hosts: 2, rounds: 2, restarts: 2, ..small }),
        named(Paxos { hosts, rounds: 2, instances: 1, restarts: 1, ..small }),
    ]
}

fn takeover(o: &Options) -> Vec<Named<Takeover>> {
    let small = Takeover::small();
    let named = |m: Takeover| {
        let Takeover { hosts, changes, blocks, joins, fence, .. } = m;
        (format!("hosts {hosts}, changes {changes}, blocks {blocks}, joins {joins}, fence {fence:?}").to_lowercase(), m)
    };
    let lease = Takeover { fence: Fence::Lease, ..small };
    if !o.large {
        let hosts = o.hosts.unwrap_or(small.hosts);
        let two = Takeover { hosts: 2, changes: 3, joins: 2, blocks: 2, ..small };
        return vec![named(Takeover { hosts, ..small }), named(two), named(Takeover { hosts, ..lease })];
    }
    let hosts = o.hosts.unwrap_or(4);
    vec![
        named(Takeover { changes: 3, joins: 1, ..small }),
        named(Takeover { changes: 3, blocks: 2, ..small }),
        named(Takeover { joins: 1, ..lease }),
        named(Takeover { hosts, ..small }),
    ]
}

fn lease(o: &Options) -> Vec<Named<Lease>> {
    let small = Lease::small();
    let named = |m: Lease| {
        let Lease { act, pause, request, drift, .. } = m;
        (format!("L-M {act}, P {pause}, D {request}, 1/drift {drift}, W {}", m.wait()), m)
    };
    if o.large {
        return vec![
            named(Lease { act: 8, pause: 2, request: 4, ..small }),
            named(Lease { act: 10, pause: 2, request: 3, drift: 10, ..small }),
        ];
    }
    vec![named(Lease { drift: 0, ..small }), named(small)]
}

/// Does what was asked for with one model.
fn examine<M: Mutable>(name: &str, o: &Options, models: &[Named<M>]) -> anyhow::Result<bool> {
    if o.table || o.mutant.is_some() {
        return mutants::<M>(name, o);
    }
    let mut is_good = true;
    for (size, model) in models {
        let found = run::explore(model, o.threads);
        println!("{name}: {size}: {found}");
        is_good &= found.is_good();
    }
    Ok(is_good)
}

/// Runs one mutant, or all of them.
fn mutants<M: Mutable>(name: &str, o: &Options) -> anyhow::Result<bool> {
    let rows = M::mutants().iter().filter(|r| o.mutant.as_ref().is_none_or(|m| m == r.name));
    let (mut is_caught, mut count) = (true, 0);
    for row in rows {
        count += 1;
        for property in row.breaks {
            let started = Instant::now();
            let path = run::shortest(&(row.model)(), property);
            is_caught &= path.is_some();
            let steps = path.as_ref().map_or("SURVIVES".to_owned(), |p| p.len().to_string());
            println!("| {name} | `{}` | {} | {property} | {steps} |", row.name, row.what);
            if let (Some(path), false) = (path, o.table) {
                path.iter().enumerate().for_each(|(n, a)| println!("  {:2} {a:?}", n + 1));
                println!("  {:.1} s", started.elapsed().as_secs_f64());
            }
        }
    }
    let known: Vec<_> = M::mutants().iter().map(|r| r.name).collect();
    anyhow::ensure!(count > 0 || o.model.is_none(), "{name} has no such mutant; it has {}", known.join(", "));
    Ok(is_caught)
}
