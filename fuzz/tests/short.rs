//! The short run: every kept input, and a number of seeded mutations, of every target.
#![allow(clippy::unwrap_used)]

use luna_fs::check::{Code, Severity};
use luna_fuzz::damage::damage;
use luna_fuzz::host::Host;
use luna_fuzz::run;
use luna_fuzz::scene::{Area, Scene};
use luna_fuzz::target::{TARGETS, image};
use luna_fuzz::walk::{Walk, walk};
use std::sync::Arc;

/// Inputs beyond the usual number: `LUNA_FUZZ_RUNS=20` makes twenty times as many, from `LUNA_FUZZ_SEED`.
fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(otherwise)
}

fn short(name: &str) {
    run::watch_panics();
    let t = TARGETS.iter().find(|t| t.name == name).unwrap();
    let corpus = run::corpus(t);
    for (name, input) in &corpus {
        assert!(run::holds(t, input), "kept input '{name}' of target {} does not hold", t.name);
    }
    let mut rng = fastrand::Rng::with_seed(setting("LUNA_FUZZ_SEED", 1));
    for n in 0..u64::from(t.short) * setting("LUNA_FUZZ_RUNS", 1) {
        let input = run::mutate(&mut rng, &corpus);
        if !run::holds(t, &input) {
            let kept = std::env::temp_dir().join(format!("luna-fuzz-{}-{n}", t.name));
            std::fs::write(&kept, &input).unwrap();
            panic!("input {n} of target {} does not hold; it is in {}", t.name, kept.display());
        }
    }
}

#[test]
fn the_image_is_sound_and_whole() {
    let scene = Scene::get();
    let disk = Arc::new(scene.disk(damage(scene, Area::All, &[])));
    let (summary, all) = image::findings(&*disk).unwrap();
    let bad: Vec<_> = all.iter().filter(|f| matches!(f.severity, Severity::Error | Severity::Minor)).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(summary.inodes > 20 && summary.orphans >= 2, "{summary:?}");
    let host = Host::mount(&disk, 0).unwrap();
    let met = walk(&host, Walk { change: false });
    assert_eq!((met.errors, met.last), (0, None));
    walk(&host, Walk { change: true });
    host.unmount().unwrap();
    println!("traffic of an honest mount and walk: {:?} blocks read, written", disk.traffic());
    let (_, all) = image::findings(&*disk).unwrap();
    // the harness mounts without a record, so the log has not heard of that incarnation (J06)
    let bad: Vec<_> = all.iter().filter(|f| f.code != Code::J06 && matches!(f.severity, Severity::Error | Severity::Minor)).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn fsck() {
    short("fsck");
}

#[test]
fn repair() {
    short("repair");
}

#[test]
fn mount() {
    short("mount");
}

#[test]
fn superblock() {
    short("superblock");
}

#[test]
fn groups() {
    short("groups");
}

#[test]
fn inodes() {
    short("inodes");
}

#[test]
fn extents() {
    short("extents");
}

#[test]
fn dirs() {
    short("dirs");
}

#[test]
fn xattrs() {
    short("xattrs");
}

#[test]
fn replay() {
    short("replay");
}

#[test]
fn block() {
    short("block");
}

#[test]
fn join() {
    short("join");
}

#[test]
fn members() {
    short("members");
}

#[test]
fn locks() {
    short("locks");
}

#[test]
fn wire() {
    short("wire");
}

#[test]
fn handshake() {
    short("handshake");
}

#[test]
fn nbd_client() {
    short("nbd-client");
}

#[test]
fn nbd_server() {
    short("nbd-server");
}

#[test]
fn control() {
    short("control");
}

#[test]
fn the_corpus_stays_small_and_belongs_to_targets() {
    let (mut bytes, mut names) = (0, Vec::new());
    for t in TARGETS {
        bytes += run::corpus(t).iter().map(|(_, b)| b.len()).sum::<usize>();
        names.push(run::corpus_dir(t));
    }
    assert!(bytes < 2 << 20, "{bytes} bytes of corpus");
    for entry in std::fs::read_dir(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).into_iter().flatten().flatten() {
        assert!(names.contains(&entry.path()), "{} belongs to no target", entry.path().display());
    }
}

#[test]
fn the_host_that_hears_messages_is_a_member_among_two() {
    use luna_fuzz::target::cluster::Shell;
    let mut shell = Shell::alone();
    shell.run(60);
    assert_eq!(shell.members(), 0b1);
    shell.hear(None, luna_cluster::Msg::JoinRequest { host_id: [1; 16], name: "other".into(), nonce: 5 });
    shell.run(30);
    assert_eq!(shell.members(), 0b11);
}
