//! The tree with hashes of the test's choice: colliding, ascending, descending, random.

use super::*;
use crate::testkit::kit;
use crate::volume::Volume;
use std::collections::BTreeMap;

fn new_dir(v: &Volume) -> Ino {
    v.run(|tx| crate::op::mkdir(tx, tx.sb.root_ino, b"d", 0o755, &crate::op::Cred::default())).unwrap().ino
}

fn target(n: u64) -> Target {
    Target { ino: n + 1, generation: n, kind: 8 }
}

/// All nodes: keys ascend, bounds hold, levels fit, nothing is empty; returns the blocks of the tree.
fn check_tree(tx: &mut Tx<'_>, dir: Ino) -> Step<u64> {
    let i = directory(tx, dir)?;
    if !is_tree(&i) {
        assert_eq!((i.depth, u64::from(i.count)), (0, i.entries));
        return Ok(0);
    }
    let mut blocks = 0;
    tree::walk(tx, dir, &mut |_, _| blocks += 1)?;
    Ok(blocks)
}

fn run_model(hash_of: impl Fn(u64) -> u64, order: &[u64]) {
    let k = kit();
    let v = &k.vol;
    let d = new_dir(v);
    let mut model: BTreeMap<(u64, Vec<u8>), u64> = BTreeMap::new();
    let name = |n: u64| format!("{n}-{}", "x".repeat((n % 90) as usize)).into_bytes();
    let compare = |model: &BTreeMap<(u64, Vec<u8>), u64>| {
        let listed = v.run(|tx| list(tx, d, 0, usize::MAX)).unwrap();
        let got: Vec<_> = listed.into_iter().map(|l| ((l.hash, l.name), l.target.ino - 1)).collect();
        assert_eq!(got, model.clone().into_iter().collect::<Vec<_>>());
        let blocks = v.run(|tx| check_tree(tx, d)).unwrap();
        assert_eq!(v.run(|tx| directory(tx, d)).unwrap().blocks, blocks);
        // pages never part a group of one hash
        let (mut after, mut paged) = (0, 0);
        loop {
            let page = v.run(|tx| list(tx, d, after, 5)).unwrap();
            let Some(last) = page.last() else { break };
            after = last.hash;
            paged += page.len();
        }
        assert_eq!(paged, model.len());
    };
    for (done, n) in order.iter().enumerate() {
        v.run(|tx| insert_hashed(tx, d, hash_of(*n), &name(*n), &target(*n))).unwrap();
        assert_eq!(v.run(|tx| insert_hashed(tx, d, hash_of(*n), &name(*n), &target(*n))).unwrap_err().errno(), libc::EEXIST);
        model.insert((hash_of(*n), name(*n)), *n);
        if done % 400 == 0 {
            compare(&model);
        }
    }
    compare(&model);
    for (done, n) in order.iter().rev().step_by(2).chain(order.iter().rev().skip(1).step_by(2)).enumerate() {
        assert_eq!(v.run(|tx| find_hashed(tx, d, hash_of(*n), &name(*n))).unwrap(), Some(target(*n)));
        assert_eq!(v.run(|tx| remove_hashed(tx, d, hash_of(*n), &name(*n))).unwrap(), target(*n));
        model.remove(&(hash_of(*n), name(*n)));
        assert_eq!(v.run(|tx| remove_hashed(tx, d, hash_of(*n), &name(*n))).unwrap_err().errno(), libc::ENOENT);
        if done % 400 == 0 {
            compare(&model);
        }
    }
    compare(&model);
}

#[test]
fn hashes_in_any_order_match_a_map() {
    let up: Vec<u64> = (0..2500).collect();
    let down: Vec<u64> = up.iter().rev().copied().collect();
    let mut mixed = up.clone();
    fastrand::Rng::with_seed(9).shuffle(&mut mixed);
    run_model(|n| 1000 + n, &up);
    run_model(|n| 1000 + n, &down);
    run_model(|n| 1000 + n * 7919 % 2503, &mixed);
    run_model(|n| 1000 + n / 20, &mixed);
    run_model(|n| i64::MAX as u64 - n / 13, &up);
}

#[test]
fn one_hash_fills_a_leaf_and_no_more() {
    let k = kit();
    let d = new_dir(&k.vol);
    let name = |n: u64| format!("{n:0200}").into_bytes();
    let put = |hash, n| k.vol.run(|tx| insert_hashed(tx, d, hash, &name(n), &target(n))).map_err(|e| e.errno());
    for n in 0..60 {
        put(100 + n, n).unwrap();
    }
    let fits = (100..).take_while(|n| put(130, *n).is_ok()).count();
    assert_eq!(fits, 16, "17 records of 232 bytes fit a leaf, one was there");
    assert_eq!(put(130, 999), Err(libc::ENOSPC));
    put(131, 1000).unwrap();
    assert_eq!(k.vol.run(|tx| list(tx, d, 129, 1)).unwrap().len(), 17);
}
