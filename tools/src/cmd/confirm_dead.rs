//! `luna confirm-dead`: an operator's word, where no rung of the fencing ladder works.
//!
//! Invariant: nothing is said without `--yes`, and only about a host that was evicted and is not fenced. Not here: what follows from
//! it (the membership core).

use crate::{cli::ConfirmDeadArgs, control};
use anyhow::{Context, Result, ensure};

/// Runs the command.
pub fn run(args: &ConfirmDeadArgs) -> Result<()> {
    ensure!(args.yes, "if the host in slot {} still runs, this destroys data; see that it is off, then add --yes", args.slot);
    let answer = control::ask(&args.dir, &format!("confirm-dead {}", args.slot))?;
    let value: serde_json::Value = serde_json::from_str(&answer).with_context(|| format!("an answer that is none: {answer}"))?;
    println!("slot {} incarnation {} counts as fenced; its journal is replayed now", value["slot"], value["incarnation"]);
    Ok(())
}
