//! The world of files: seeds hold, a seed is a run bit for bit, and every rule taken away is noticed within a number of seeds.
//!
//! More seeds: `cargo run --release -p luna-sim -- --world fs --seeds 1000`, or `LUNA_SEEDS` for this test.
#![allow(clippy::unwrap_used)] // a test may

use luna_sim::{Broken, Report, Setup, run};

fn hold(setup: Setup) -> Report {
    run(&setup).unwrap_or_else(|v| panic!("{}\n{v}", v.tail))
}

/// Runs seeds from `first` on without a rule until one of `many` notices; what it says.
fn noticed(broken: Broken, first: u64, many: u64) -> String {
    let found = (first..first + many).find_map(|seed| run(&Setup { broken: Some(broken), ..Setup::files(seed) }).err());
    found.unwrap_or_else(|| panic!("{broken:?} was not noticed in {many} seeds")).to_string()
}

#[test]
fn random_lives() {
    let seeds = std::env::var("LUNA_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(150);
    let (mut operations, mut deaths, mut replays) = (0, 0, 0);
    for seed in 1..=seeds {
        let r = hold(Setup::files(seed));
        operations += r.files.operations;
        deaths += r.files.crash_points;
        replays += r.files.replays;
    }
    assert!(operations > 100 * seeds && deaths > seeds && replays > seeds, "too quiet: {operations} {deaths} {replays}");
}

/// What the check of a mounted volume relies on, with every fault there is.
#[test]
fn frozen_metadata_stands_still_and_is_consistent() {
    let seeds = std::env::var("LUNA_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(40);
    let looks: u64 = (1..=seeds).map(|seed| hold(Setup { freezes: true, ..Setup::files(seed) }).files.looks).sum();
    assert!(looks > 2 * seeds, "too quiet: {looks}");
    let in_words = |seed| run(&Setup { freezes: true, broken: Some(Broken::FreezesInWordsOnly), ..Setup::files(seed) }).err();
    assert!(
        (1..50).any(|seed| in_words(seed).is_some_and(|what| what.to_string().contains("frozen"))),
        "a freeze of nothing is not noticed"
    );
}

/// A host died with its record on the way, and a freeze was granted before it was recovered: the right to change metadata was held in a
/// mode that is dropped when its holder dies.
#[test]
fn seed_5138_with_freezes_holds() {
    hold(Setup { freezes: true, ..Setup::files(5138) });
}

#[test]
fn a_seed_is_a_run_bit_for_bit() {
    for seed in [2, 5, 14] {
        assert_eq!(hold(Setup::files(seed)), hold(Setup::files(seed)));
    }
    assert_ne!(hold(Setup::files(2)).trace, hold(Setup::files(3)).trace);
}

/// A removed directory's number whose block had become attributes gave EIO.
#[test]
fn seed_349_holds() {
    hold(Setup::files(349));
}

#[test]
fn locks_that_go_too_early_are_noticed() {
    assert!(noticed(Broken::ThawsBeforeRecovery, 1, 100).contains("locks"));
    noticed(Broken::GivesLocksBackDirty, 1, 100);
    assert!(noticed(Broken::RemembersWithoutALock, 3, 100).contains("names"));
}

#[test]
fn locks_that_do_not_come_are_noticed() {
    assert!(noticed(Broken::IgnoresBasts, 1, 100).contains("progress"));
    assert!(noticed(Broken::DropsEarlyLockMessages, 1, 100).contains("progress"));
    assert!(noticed(Broken::DeliversTwice, 1, 100).contains("locks"));
}

#[test]
fn hosts_that_write_when_they_may_not_are_noticed() {
    assert!(noticed(Broken::FenceDoesNothing, 1, 100).contains("I2"));
    assert!(noticed(Broken::DoesNotWaitForTheLease, 1, 100).contains("I2"));
    assert!(noticed(Broken::WritesThroughAShutGate, 51, 100).contains("I2"));
}

#[test]
fn promises_that_are_not_kept_are_noticed() {
    noticed(Broken::AnswersBeforeDurable, 1, 100);
    noticed(Broken::SyncsInWordsOnly, 1, 100);
}

#[test]
fn replays_that_go_wrong_are_noticed() {
    assert!(noticed(Broken::ReplaysWithoutVersions, 1, 100).contains("I6"));
    assert!(noticed(Broken::LeavesTheJournalDirty, 1, 100).contains("dirty"));
    noticed(Broken::LeavesTornBlocks, 201, 100);
}
