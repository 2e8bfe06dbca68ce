//! The protocol's three cores as models that a checker explores exhaustively at small sizes, beside the program and not part of it.
//!
//! [`paxos`]: one record, chosen through one register per slot. [`takeover`]: fence, replay, one lock over one or two blocks.
//! [`lease`]: the time-based fence. Each is a machine whose every interleaving is visited; each carries a list of mutants (a rule left
//! out), and for every mutant the invariant that must then fall. A model that lets a mutant live says nothing about the rule.
//!
//! Invariant: an action is enabled exactly when the protocol allows it, or the world may do it (a write lands late, a clock drifts, a
//! host is evicted for no reason). Not here: the program. `sim/` runs that; where the two differ, `docs/model.md` says so.

pub mod lease;
pub mod paxos;
pub mod run;
pub mod takeover;
