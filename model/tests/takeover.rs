//! Fence, replay and one lock: the protocol holds, every mutant is caught.

use luna_model::run::{self, Mutable};
use luna_model::takeover::{Fence, Skip, Takeover};

fn holds(what: &str, model: Takeover, at_least: usize) {
    let found = run::explore(&model, 1);
    println!("takeover, {what}: {found}");
    assert!(found.is_good() && found.states > at_least, "{found}");
}

#[test]
fn three_hosts() {
    holds("3 hosts", Takeover::small(), 90_000);
}

#[test]
fn two_blocks_and_new_incarnations() {
    let model = Takeover { hosts: 2, changes: 3, blocks: 2, joins: 2, ..Takeover::small() };
    holds("2 hosts, 2 blocks, 2 joins", model, 15_000);
}

#[test]
fn lease_fence() {
    holds("3 hosts, lease fence", Takeover { fence: Fence::Lease, ..Takeover::small() }, 250_000);
}

/// What replay could rest on where no lock table survives: whole reads, and one journal after the other.
#[test]
fn one_journal_after_the_other_needs_no_skip_list_if_reads_are_whole() {
    holds("serial replay", Takeover { skip: Skip::Nothing, torn_reads: false, serial: true, ..Takeover::small() }, 60_000);
}

#[test]
fn every_mutant_is_caught() {
    for row in Takeover::mutants() {
        let model = (row.model)();
        for property in row.breaks {
            let path = run::shortest(&model, property);
            println!("takeover, {}: {property} falls after {:?} steps", row.name, path.as_ref().map(Vec::len));
            assert!(path.is_some(), "{} survives: {property} holds without this rule", row.name);
        }
    }
}
