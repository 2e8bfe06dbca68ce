//! The lease fence: the wait is long enough and no longer than it must be, every mutant is caught.

use luna_cluster::Timing;
use luna_model::lease::{self, Lease};
use luna_model::run::{self, Mutable};

fn holds(what: &str, model: Lease, at_least: usize) {
    let found = run::explore(&model, 1);
    println!("lease, {what}, W {}: {found}", model.wait());
    assert!(found.is_good() && found.states > at_least, "{found}");
}

#[test]
fn exact_clocks() {
    holds("no drift", Lease { drift: 0, ..Lease::small() }, 7000);
}

#[test]
fn drifting_clocks() {
    holds("drift of a quarter", Lease::small(), 170_000);
}

#[test]
fn the_formula_is_the_programs() {
    let plain = Timing::default();
    for (lease_ms, pause_ms, request_ms, drift_permille) in
        [(12_000, 2000, 5000, 10), (9000, 1, 777, 3), (120, 20, 50, 10), (5000, 0, 0, 250)]
    {
        let t = Timing { lease_ms, margin_ms: lease_ms / 3, pause_ms, request_ms, drift_permille, beat_ms: 2, ..plain };
        assert_eq!(t.wait_ms(), lease::wait(t.act_ms(), pause_ms, request_ms, drift_permille));
        let coarse = Timing { beat_ms: 400, ..t };
        assert!(coarse.wait_ms() >= t.wait_ms() && coarse.wait_ms() < t.wait_ms() + 200, "rounding only ever waits longer");
    }
}

#[test]
fn every_mutant_is_caught() {
    for row in Lease::mutants() {
        let model = (row.model)();
        for property in row.breaks {
            let path = run::shortest(&model, property);
            println!("lease, {}: {property} falls after {:?} steps", row.name, path.as_ref().map(Vec::len));
            assert!(path.is_some(), "{} survives: {property} holds without this rule", row.name);
        }
    }
}
