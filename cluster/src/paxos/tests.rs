//! Random schedules of several proposers over one register file, with delayed writes, crashes and restarts; at most one value
//! may be chosen. Two mutants (phase 1 left out; a restart that does not read its own register) must be caught.

use super::*;

/// A small generator, so that a seed is a schedule.
struct Rng(u64);

impl Rng {
    fn next(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    None,
    NoPhaseOne,
    ForgetOwn,
}

/// One process: its proposer and the one operation it has under way.
struct Process {
    p: Proposer,
    pending: Option<Step>,
}

fn value(n: u64) -> Decision {
    Decision { nonce: n, ..Decision::new_zeroed() }
}

/// Runs one schedule; answers all values that somebody saw chosen.
fn run(seed: u64, mutant: Mutant) -> Vec<u64> {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let n = 2 + rng.next(3) as usize;
    let mut disk: Vec<Option<Paxos>> = vec![None; n];
    let mut chosen = Vec::new();
    let mut next_value = 100;
    let mut ps: Vec<Process> = (0..n).map(|s| Process { p: Proposer::new(s as Slot, None), pending: Some(Step::Backoff) }).collect();
    for _ in 0..60 + rng.next(200) {
        let i = rng.next(n as u64) as usize;
        let p = &mut ps[i];
        if rng.next(12) == 0 {
            // crash: the write under way lands or not, before the new process starts (an old incarnation is fenced)
            if let (Some(Step::Write(px)), true) = (p.pending, rng.next(2) == 0) {
                disk[i] = Some(px);
            }
            let own = if mutant == Mutant::ForgetOwn { None } else { disk[i] };
            *p = Process { p: Proposer::new(i as Slot, own), pending: Some(Step::Backoff) };
            continue;
        }
        p.pending = Some(match p.pending {
            Some(Step::Write(px)) => {
                disk[i] = Some(px);
                p.p.written()
            }
            Some(Step::ReadAll) => {
                let all: Vec<_> = disk.iter().map(|d| Ok(*d)).collect();
                p.p.read(&all)
            }
            Some(Step::Chosen(v)) => {
                chosen.push(v.nonce);
                Step::Backoff
            }
            _ => {
                next_value += 1;
                let step = p.p.begin(1, value(next_value));
                match (mutant, step) {
                    (Mutant::NoPhaseOne, Step::Write(_)) => {
                        p.p.own.value = p.p.mine;
                        p.p.own.bal = p.p.own.mbal;
                        p.p.phase = Phase::Two;
                        Step::Write(p.p.own)
                    }
                    _ => step,
                }
            }
        });
    }
    chosen
}

fn split(mutant: Mutant, seeds: u64) -> u64 {
    (0..seeds).filter(|s| run(*s, mutant).windows(2).any(|w| w[0] != w[1])).count() as u64
}

#[test]
fn at_most_one_value_is_chosen() {
    assert_eq!(split(Mutant::None, 5000), 0);
    let decided = (0..5000).filter(|s| !run(*s, Mutant::None).is_empty()).count();
    assert!(decided > 2500, "only {decided} schedules chose anything: the test is empty");
}

#[test]
fn a_proposer_without_phase_one_is_caught() {
    assert!(split(Mutant::NoPhaseOne, 2000) > 0);
}

#[test]
fn a_restart_that_forgets_its_register_is_caught() {
    assert!(split(Mutant::ForgetOwn, 5000) > 0);
}

#[test]
fn a_later_instance_and_a_broken_register_stop_it() {
    let mut p = Proposer::new(0, Some(Paxos { instance: 5, mbal: 64, bal: 0, value: value(0) }));
    assert_eq!(p.begin(4, value(1)), Step::Behind);
    let Step::Write(own) = p.begin(5, value(1)) else { panic!("writes") };
    assert_eq!(own.mbal, 128);
    p.written();
    assert_eq!(p.clone().read(&[Ok(Some(own)), Err(())]), Step::Unreadable(1));
    assert_eq!(p.clone().read(&[Ok(None), Ok(None)]), Step::Unreadable(0));
    assert_eq!(p.read(&[Ok(Some(own)), Ok(Some(Paxos { instance: 6, ..own }))]), Step::Behind);
}
