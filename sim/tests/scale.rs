//! Many hosts: nothing that concerns one host may take longer because there are many, in simulated time and in messages.
//!
//! The bounds are loose (the tables in `docs/scale.md` say what it is today); they catch what grows with the square of the
//! number of hosts or worse. Not here: exact numbers, real processors.
#![allow(clippy::unwrap_used)] // a test may

use luna_sim::scale::{Case, Measured, measure, tables};

fn measured(hosts: usize, cases: &[Case]) -> Measured {
    measure(1, hosts, cases).unwrap_or_else(|v| panic!("{}\n{v}", v.tail))
}

const ONE: Case = Case { half: false, silent: false, exact: true };
const HALF: Case = Case { half: true, silent: false, exact: true };

#[test]
fn sixteen_hosts_storm_in_and_one_dies() {
    let m = measured(16, &[ONE, Case { exact: false, ..ONE }]);
    assert!(m.storm.serve_ms < 3000, "{m:?}");
    let [exact, lease] = &m.takeovers[..] else { panic!("{m:?}") };
    assert!(exact.evict_ms < 2000 && exact.recovered_ms < 2500 && exact.thaw_ms < 2500, "{exact:?}");
    assert!((15_400..17_500).contains(&lease.recovered_ms), "{lease:?}");
    assert!(exact.unrelated_ms < 200 && lease.unrelated_ms < 200, "the death of one holds up what is not its business: {m:?}");
    assert!(exact.rejoin_ms < 2000, "{exact:?}");
}

#[test]
fn sixty_four_hosts_storm_in_and_idle_cheaply() {
    let m = measured(64, &[]);
    assert!(m.storm.serve_ms < 5000, "{m:?}");
    let host_seconds = 64 * m.idle.ms / 1000;
    assert!(m.idle.counts.messages() < 30 * host_seconds && m.idle.counts.reads < 8 * host_seconds, "{:?}", m.idle);
    let all_read = m.idle.counts.blocks / 256 / (m.idle.ms / 1000);
    assert!(all_read < 32, "64 idle hosts read {all_read} MiB a second");
}

/// 19 MB of markers for each survivor, once.
#[test]
fn half_of_thirty_two_die_and_come_back() {
    let m = measured(32, &[HALF]);
    let t = &m.takeovers[0];
    assert!(t.counts.bytes / 16 < 2 << 20, "{t:?}");
    assert!(t.recovered_ms < 6000 && t.rejoin_ms < 5000, "{t:?}");
}

#[test]
fn the_same_seed_gives_the_same_tables() {
    let twice = [measured(4, &[ONE]), measured(4, &[ONE])];
    assert_eq!(tables(&twice[..1]), tables(&twice[1..]));
}
