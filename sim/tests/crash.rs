//! The world of crashes: short workloads, every state that a crash may leave of them, and every rule taken away is noticed.
//!
//! More: `cargo run --release -p luna-sim -- --world crash --length 2 --hosts 2`.
#![allow(clippy::unwrap_used)] // a test may

use luna_sim::Broken;
use luna_sim::crash::{Counts, Effort, Setup, World};

fn short(length: usize, hosts: usize, sample: u64) -> Setup {
    Setup { effort: Effort::SHORT, sample, ..Setup::all(length, hosts) }
}

/// Explores all that a setup asks for; none may show anything.
fn hold(setup: Setup) -> Counts {
    let world = World::new(setup).unwrap();
    let (mut sum, mut explorer) = (Counts::default(), world.explorer());
    for n in world.chosen() {
        match explorer.explore(n) {
            None => {}
            Some(Ok(c)) => sum.add(&c),
            Some(Err(v)) => panic!("{v}"),
        }
    }
    println!("{sum:?}");
    sum
}

/// One workload: operations and syncs, and whether the sync is on the other host.
fn case(length: usize, hosts: usize, steps: &[(&str, &str, bool)]) {
    let world = World::new(Setup { effort: Effort::CASE, ..Setup::all(length, hosts) }).unwrap();
    let n = world.number(steps).expect("no such workload");
    let c = world.explorer().explore(n).expect("that cannot be done").unwrap_or_else(|v| panic!("{v}"));
    assert!(c.states.iter().sum::<u64>() > 10 && c.no_space == 0, "too little was tried: {c:?}");
}

/// What the first workload that notices says.
fn noticed(broken: Broken, setup: Setup) -> String {
    let world = World::new(Setup { broken: Some(broken), ..setup }).unwrap();
    let mut explorer = world.explorer();
    let found = world.chosen().into_iter().find_map(|n| explorer.explore(n)?.err());
    found.unwrap_or_else(|| panic!("{broken:?} was not noticed")).to_string()
}

#[test]
fn one_operation_on_one_host() {
    let c = hold(short(1, 1, 0));
    assert!(c.workloads > 200 && c.states.iter().all(|n| *n > 500) && c.replays_cut > 50, "too quiet: {c:?}");
}

#[test]
fn two_operations_on_one_host() {
    let c = hold(short(2, 1, 30));
    assert!(c.workloads > 8 && c.states.iter().all(|n| *n > 50), "too quiet: {c:?}");
}

#[test]
fn two_operations_on_two_hosts() {
    let c = hold(short(2, 2, 24));
    assert!(c.workloads > 3 && c.deaths > 50, "too quiet: {c:?}");
}

#[test]
fn two_operations_where_next_to_nothing_is_free() {
    let c = hold(Setup { full: true, ..short(2, 1, 24) });
    assert!(c.workloads > c.no_space + 5, "too quiet: {c:?}");
}

/// An fsync by a host that had written nothing sent no flush.
#[test]
fn an_fsync_covers_what_another_host_overwrote() {
    case(1, 2, &[("Write(\"foo\", 0, 4096)", "File", true)]);
}

/// A synchronous overwrite of blocks that an earlier write had allocated was forced, the way to them was not.
#[test]
fn a_synchronous_write_makes_the_way_to_its_bytes_durable() {
    case(2, 1, &[("Write(\"foo\", 40960, 4096)", "None", false), ("Dsync(\"foo\", 40960, 4096)", "None", false)]);
}

/// A record that was never answered was put home from the target's cache; then the target lost power, and the record with it.
#[test]
fn a_takeover_makes_the_log_durable_before_anything_goes_home() {
    case(2, 2, &[("Truncate(\"A/foo\", 4096)", "File", false), ("Write(\"foo\", 8192, 16384)", "None", false)]);
}

/// No bug: a truncation that is lost with its block's new bytes, which end where the truncated file did.
#[test]
fn bytes_may_run_ahead_of_a_truncation() {
    case(2, 1, &[("Truncate(\"foo\", 5000)", "None", false), ("Write(\"foo\", 5000, 3000)", "File", false)]);
}

#[test]
fn rules_taken_away_are_noticed() {
    let one = short(1, 1, 0);
    noticed(Broken::AnswersBeforeDurable, one);
    assert!(noticed(Broken::WritesHomeBeforeTheRecord, one).contains("fsck"));
    assert!(noticed(Broken::RecordsBeforeTheirData, one).contains(" shows "));
    assert!(noticed(Broken::LeavesTornBlocks, one).contains("checksum"));
    assert!(noticed(Broken::LeavesTheJournalDirty, one).contains("dirty"));
    assert!(noticed(Broken::SyncsInWordsOnly, one).contains("no legal set"));
}

#[test]
fn freed_blocks_that_are_handed_out_at_once_are_noticed() {
    let what = noticed(Broken::ReusesFreedBlocksAtOnce, Setup { full: true, ..short(2, 1, 600) });
    assert!(what.contains("bytes that it may not have"), "{what}");
}

#[test]
fn replays_that_look_at_no_version_are_noticed() {
    noticed(Broken::ReplaysWithoutVersions, short(2, 2, 200));
}

/// What was to be written was lost with the host that had made it: an operation that fails there never began (the judge counted it).
#[test]
fn an_operation_on_what_died_with_its_maker_never_began() {
    case(2, 2, &[("Creat(\"bar\")", "None", false), ("Write(\"bar\", 512, 1000)", "File", false)]);
}

/// An fsync of what came back with its remover's death covers that, and not all that its host ever did (the judge believed so).
#[test]
fn an_fsync_of_what_came_back_covers_only_that() {
    case(2, 2, &[("Truncate(\"foo\", 30000)", "Dir", true), ("Unlink(\"A/bar\")", "File", true)]);
}
