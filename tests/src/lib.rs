//! Real processes, real mounts: the harness of Luna's tests on one machine.
//!
//! A [`Cluster`] is a LUN file behind a server (`luna serve`, `qemu-nbd` or `nbdkit`) and some mounted hosts, each a real
//! `luna mount`, all in a directory of its own below the system's temporary one. Tests run side by side: every name, socket
//! and mount point is unique. The binary under test is `$LUNA_BIN`, or the newest of `target/{debug,release}/luna`.
//!
//! Invariant: when a [`Cluster`] is dropped, by success, failure or panic, its mounts and processes are gone; the directory
//! (logs, LUN) stays when the test failed or when `LUNA_TEST_KEEP` is set, and its path is printed.
//! Not here: any test, and any timing that a loaded machine could break.

mod cluster;
mod proc;
mod server;

pub mod cases;
pub mod creds;
pub mod deviations;
pub mod exerciser;
pub mod io;
pub mod load;
pub mod matrix;
pub mod net;
pub mod posix;
pub mod proxy;
pub mod soak;

pub use cluster::{Cluster, Host, Rescue, Setup};
pub use proc::{Output, have, run, run_in, tool, wait_until};
pub use server::{Kind, Server};

use std::path::PathBuf;

/// The result of a test; an error says what was expected and what was found.
pub type Result<T = ()> = anyhow::Result<T>;

/// The binary under test.
pub fn luna_bin() -> PathBuf {
    if let Some(named) = std::env::var_os("LUNA_BIN") {
        return named.into();
    }
    let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target");
    let newest = ["debug", "release"]
        .map(|profile| target.join(profile).join("luna"))
        .into_iter()
        .filter_map(|p| Some((p.metadata().ok()?.modified().ok()?, p)))
        .max();
    newest.map_or_else(|| target.join("debug/luna"), |(_, p)| p)
}
