//! One host: the cores of membership and locking, the links to its peers, the file system and its mount, wired together.
//!
//! [`mount()`] is the door. Inside: [`router`] is the pure part, which output of a core goes where; [`host`] performs it with
//! threads and time; [`peers`], [`link`], [`conn`], [`wire`] and [`mail`] carry messages, [`door`], [`noise`] and [`refusal`] keep strangers out; [`shell`] does the cores' disk work
//! and replay, [`fence`] makes the dead harmless; [`control`] and [`status`] answer local questions. Invariant: a shell decides nothing that a core should
//! decide. Not here: argument parsing.
#![forbid(unsafe_code)]

pub mod conn;
pub mod control;
pub mod door;
pub mod error;
pub mod fence;
pub mod host;
pub mod link;
pub mod mail;
pub mod mount;
pub mod noise;
pub mod options;
pub mod peers;
pub mod qmp;
pub mod refusal;
pub mod router;
pub mod shell;
pub mod status;
pub mod wire;

pub use error::NodeError;
pub use mount::{MountedHost, mount};
pub use options::MountOptions;
