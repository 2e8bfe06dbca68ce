//! The targets, in one table: what is fed, what it is called, what it begins with.
//!
//! A target is a function of bytes that returns, whatever the bytes are. A panic, here or on a thread it started, is a bug of the product
//! or of the target. Rows are added here and nowhere else. Not here: how bytes are chosen (libFuzzer, or `run`).

pub mod block;
pub mod cluster;
pub mod image;
pub mod peers;
pub mod sockets;

use crate::damage::STEP;

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: the folder of its corpus, and what `make fuzz TARGET=` takes.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
    /// Inputs to begin with, besides the corpus.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Inputs in the short run.
    pub short: u32,
}

/// Scripts of one to three steps, of each sort.
fn scripts() -> Vec<Vec<u8>> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut one = |what: u8| {
        let mut s: Vec<u8> = (0..STEP * rng.usize(1..4)).map(|_| rng.u8(..)).collect();
        s[0] = what;
        s
    };
    (0..16).flat_map(|what| [one(what), one(what), one(what)]).collect()
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "fsck", run: image::fsck, seeds: scripts, short: 60 },
    Target { name: "repair", run: image::repair, seeds: scripts, short: 30 },
    Target { name: "mount", run: image::mount, seeds: scripts, short: 40 },
    Target { name: "superblock", run: image::superblock, seeds: scripts, short: 40 },
    Target { name: "groups", run: image::groups, seeds: scripts, short: 40 },
    Target { name: "inodes", run: image::inodes, seeds: scripts, short: 40 },
    Target { name: "extents", run: image::extents, seeds: scripts, short: 40 },
    Target { name: "dirs", run: image::dirs, seeds: scripts, short: 40 },
    Target { name: "xattrs", run: image::xattrs, seeds: scripts, short: 40 },
    Target { name: "replay", run: image::replay, seeds: scripts, short: 60 },
    Target { name: "block", run: block::block, seeds: block::seeds, short: 2000 },
    Target { name: "join", run: cluster::join, seeds: scripts, short: 60 },
    Target { name: "members", run: peers::members, seeds: peers::member_seeds, short: 60 },
    Target { name: "locks", run: peers::locks, seeds: peers::sequences, short: 2000 },
    Target { name: "wire", run: peers::wire, seeds: peers::frames, short: 5000 },
    Target { name: "handshake", run: peers::handshake, seeds: peers::handshake_seeds, short: 500 },
    Target { name: "nbd-client", run: sockets::nbd_client, seeds: sockets::servers, short: 30 },
    Target { name: "nbd-server", run: sockets::nbd_server, seeds: sockets::clients, short: 100 },
    Target { name: "control", run: sockets::control, seeds: sockets::lines, short: 100 },
];
