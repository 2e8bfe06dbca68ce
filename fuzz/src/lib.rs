//! Hostile bytes: everything that reads what others wrote, fed with what nobody in his right mind would write.
//!
//! The targets are plain functions of bytes ([`target::TARGETS`]). Two programs feed them: the test `fuzz/tests/short.rs`, which replays the
//! corpus and a number of seeded mutations on any stable compiler, and libFuzzer (`make fuzz`), which looks for inputs that reach
//! new code. Images are mutated by scripts ([`damage`]) over one realistic image ([`scene`]), under a disk ([`disk`]) and a machine
//! ([`machine`]) that turn every loop, hang and stray request into a panic.
//!
//! Invariant: a target neither reads a clock nor draws a random number that changes what it does (sockets excepted), so that a kept input
//! means the same tomorrow. Not here: anything the product links.
#![forbid(unsafe_code)]

pub mod damage;
pub mod disk;
pub mod host;
pub mod machine;
pub mod run;
pub mod scene;
pub mod target;
pub mod walk;
