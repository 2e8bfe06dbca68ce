//! Every change on one host × every way of looking at it on another (`luna_tests::matrix`), and on one host, against a local file system.
//!
//! `make test` plays each pair across hosts one way round, and a quarter of them on one host. `LUNA_MATRIX=all` plays everything both ways;
//! `LUNA_MATRIX=WORDS` those pairs whose name has the words in it, a hundred times.

use anyhow::ensure;
use luna_tests::{
    Cluster, Result, Setup,
    deviations::{Suite, excuse},
    matrix::{CHANGES, LOOKS, play},
};
use std::path::Path;

/// One pair, as indices into the tables.
type Pair = (usize, usize);

fn name((c, l): Pair) -> String {
    format!("{} × {}", CHANGES[c].0, LOOKS[l].0)
}

fn all() -> impl Iterator<Item = Pair> {
    (0..CHANGES.len()).flat_map(|c| (0..LOOKS.len()).map(move |l| (c, l)))
}

/// What `LUNA_MATRIX` makes of the pairs that are usually played.
fn chosen(usual: impl Fn(Pair) -> bool) -> Vec<Pair> {
    match std::env::var("LUNA_MATRIX") {
        Err(_) => all().filter(|p| usual(*p)).collect(),
        Ok(words) if words == "all" => all().collect(),
        Ok(words) => {
            let these: Vec<Pair> = all().filter(|p| name(*p).contains(&words)).collect();
            these.repeat(100)
        }
    }
}

fn see(here: &Path, there: &Path, n: usize, (c, l): Pair) -> Result<String> {
    play(here, there, &format!("p{n}"), &CHANGES[c], &LOOKS[l]).map_err(|e| e.context(name((c, l))))
}

/// Plays pairs from `here` to `there` and locally; what differs and has no excuse.
fn differences(here: &Path, there: &Path, pairs: &[Pair]) -> Result<Vec<String>> {
    let dir = std::env::temp_dir().join(format!("lt-matrix-{}-{}", std::process::id(), fastrand::u64(..)));
    std::fs::create_dir_all(&dir)?;
    let (mut wrong, mut excused) = (Vec::new(), 0);
    for (n, pair) in pairs.iter().enumerate() {
        let (want, got) = (see(&dir, &dir, n, *pair)?, see(here, there, n, *pair)?);
        match excuse(Suite::Coherence, &name(*pair)) {
            _ if want == got => {}
            Some(_) => excused += 1,
            None => wrong.push(format!("{}:\n    local {want}\n    here  {got}", name(*pair))),
        }
    }
    println!("{} pairs, {excused} deviations that are known", pairs.len());
    std::fs::remove_dir_all(&dir)?;
    Ok(wrong)
}

fn none_differs(name: &str, ways: &[(usize, usize, Vec<Pair>)]) -> Result {
    let c = Cluster::with(name, Setup { hosts: 2, bytes: 4 << 30, ..Setup::default() })?;
    let mut wrong = Vec::new();
    for (here, there, pairs) in ways {
        wrong.extend(differences(&c.hosts[*here].dir, &c.hosts[*there].dir, pairs)?);
    }
    ensure!(wrong.is_empty(), "{} differ:\n  {}", wrong.len(), wrong.join("\n  "));
    c.finish()
}

#[test]
fn every_pair_across_hosts() -> Result {
    let even = |(c, l): Pair| (c + l) % 2 == 0;
    none_differs("cohab", &[(0, 1, chosen(even)), (1, 0, chosen(|p| !even(p)))])
}

#[test]
fn pairs_on_one_host() -> Result {
    none_differs("coh1", &[(0, 0, chosen(|(c, l)| (c + l) % 4 == 0))])
}

/// The comparison can fail: a look that goes elsewhere sees something else.
#[test]
fn a_stale_look_is_noticed() -> Result {
    let dir = std::env::temp_dir().join(format!("lt-stale-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let stale = ("stale", (|_: &Path| Ok(Box::new(|| Ok("as before".to_owned())) as luna_tests::matrix::Eye)) as fn(&Path) -> _);
    let seen = play(&dir, &dir, "x", &CHANGES[0], &stale)?;
    let truly = see(&dir, &dir, 0, (0, 0))?;
    std::fs::remove_dir_all(&dir)?;
    ensure!(seen == "as before" && truly != seen, "{seen} {truly}");
    Ok(())
}
