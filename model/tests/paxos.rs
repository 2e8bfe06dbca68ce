//! One-disk Disk Paxos: the protocol holds, every mutant is caught.

use luna_model::paxos::{Mutant, Paxos};
use luna_model::run::{self, Mutable};

fn holds(what: &str, model: Paxos, at_least: usize) {
    let found = run::explore(&model, 1);
    println!("paxos, {what}: {found}");
    assert!(found.is_good() && found.states > at_least, "{found}");
}

#[test]
fn two_slots_and_two_records() {
    holds("2 slots, 2 records, 1 restart", Paxos::small(), 240_000);
}

#[test]
fn three_slots() {
    let model = Paxos { hosts: 3, rounds: 1, instances: 1, restarts: 1, mutant: Mutant::None };
    holds("3 slots, 1 record, 1 restart", model, 57_000);
}

#[test]
fn every_mutant_is_caught() {
    for row in Paxos::mutants() {
        let model = (row.model)();
        for property in row.breaks {
            let path = run::shortest(&model, property);
            println!("paxos, {}: {property} falls after {:?} steps", row.name, path.as_ref().map(Vec::len));
            assert!(path.is_some(), "{} survives: {property} holds without this rule", row.name);
        }
    }
}
