//! The soak by hand: `luna-soak --hours H [--seed S] [--check-minutes M] [--calm SECONDS]`, or `luna-soak --short`.
//!
//! A line for each fault and each minute, then the report as JSON, then one line with the verdict. Exit status 0 only when everything held.
//! `luna-soak worker KIND ID SEED` is what it starts itself.

use anyhow::{Result, bail};
use luna_tests::soak::{Options, soak, this_program, work};
use std::{process::ExitCode, time::Duration};

fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["worker", kind, id, seed] = words[..] {
        work(kind, id.parse()?, seed.parse()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = Options {
        time: None,
        seed: fastrand::u64(..1_000_000),
        program: this_program()?,
        check_every: Duration::from_secs(1800),
        calm: Duration::from_secs(20),
    };
    let mut said = false;
    let mut rest = &words[..];
    while let [name, tail @ ..] = rest {
        rest = match (*name, tail) {
            ("--short", _) => tail,
            ("--hours", [value, tail @ ..]) => {
                options.time = Some(Duration::try_from_secs_f64(value.parse::<f64>()? * 3600.0)?);
                tail
            }
            ("--seed", [value, tail @ ..]) => {
                options.seed = value.parse()?;
                tail
            }
            ("--check-minutes", [value, tail @ ..]) => {
                options.check_every = Duration::try_from_secs_f64(value.parse::<f64>()? * 60.0)?;
                tail
            }
            ("--calm", [value, tail @ ..]) => {
                options.calm = Duration::try_from_secs_f64(value.parse()?)?;
                tail
            }
            _ => bail!("--hours H | --short, --seed S, --check-minutes M, --calm SECONDS; not {name}"),
        };
        said |= matches!(*name, "--short" | "--hours");
    }
    if !said {
        bail!("--hours H or --short");
    }
    println!("seed {}", options.seed);
    let (report, why) = soak(&options)?;
    println!("{report:#}");
    println!("{}", why.as_ref().map_or_else(|| "soak: held".to_owned(), |w| format!("soak: FAILED: {w}")));
    Ok(if why.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
