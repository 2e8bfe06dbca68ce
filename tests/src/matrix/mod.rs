//! Every change by one host × every way of looking at it on another, generated from two tables.
//!
//! A pair is: a fresh ground made through one mount; an observer that has looked already through the other, so that whatever its host remembers
//! is remembered (`looks`); a change through the first mount (`changes`); and what the observer sees then, as text. The same pair is played on a
//! local file system with both mounts being one directory: what comes out there is what must come out.
//!
//! Invariant: one pair, one ground, one observation; a second look would hide that the first was stale. Not here: who compares.

mod changes;
mod looks;

pub use changes::CHANGES;
pub use looks::LOOKS;

use crate::{Result, io::Aligned};
use rustix::fs::{CWD, XattrFlags, setxattr};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, symlink},
    path::{Path, PathBuf},
};

/// Bytes of the file that everything is about: data, a hole, data.
pub const LEN: usize = 64 << 10;
/// Where its hole is.
pub const HOLE: (u64, u64) = (16 << 10, 16 << 10);

/// A change: its name, and what is called in the ground's directory.
pub type Change = (&'static str, fn(&Path) -> io::Result<()>);

/// A way of looking: its name, and what prepares it. The closure looks.
pub type Look = (&'static str, fn(&Path) -> io::Result<Eye>);

/// Looks, and says what it sees.
pub type Eye = Box<dyn FnMut() -> io::Result<String>>;

/// Makes the ground of a pair in `dir`: files `f` and `g`, the directory `sub`, the symbolic link `s`.
fn make(dir: &Path) -> Result {
    fs::create_dir(dir)?;
    fs::create_dir(dir.join("sub"))?;
    let f = File::create(dir.join("f"))?;
    f.write_all_at(Aligned::pattern(HOLE.0 as usize, 1).bytes(), 0)?;
    let after = HOLE.0 + HOLE.1;
    f.write_all_at(Aligned::pattern(LEN - after as usize, 2).bytes(), after)?;
    fs::write(dir.join("g"), "the other file")?;
    symlink("f", dir.join("s"))?;
    setxattr(dir.join("f"), "user.x", b"before", XattrFlags::empty())?;
    // a time that no change gives by chance
    let old = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
    let times = rustix::fs::Timestamps { last_access: old, last_modification: old };
    for name in ["f", "g", "sub"] {
        rustix::fs::utimensat(CWD, dir.join(name), &times, rustix::fs::AtFlags::empty())?;
    }
    Ok(())
}

/// Plays one pair: what the observer below `there` sees after the change below `here`. An error of a look is what it sees.
pub fn play(here: &Path, there: &Path, name: &str, change: &Change, look: &Look) -> Result<String> {
    let (mine, theirs): (PathBuf, PathBuf) = (here.join(name), there.join(name));
    make(&mine)?;
    let mut eye = look.1(&theirs).map_err(|e| anyhow::anyhow!("{} cannot be prepared: {e}", look.0))?;
    eye().map_err(|e| anyhow::anyhow!("{} sees nothing before: {e}", look.0))?;
    change.1(&mine).map_err(|e| anyhow::anyhow!("{} failed: {e}", change.0))?;
    let seen = eye().unwrap_or_else(|e| errno_name(&e));
    drop(eye);
    fs::remove_dir_all(&mine)?;
    Ok(seen)
}

/// The name of an error's number.
pub fn errno_name(e: &io::Error) -> String {
    e.raw_os_error().map_or_else(|| e.to_string(), |n| format!("{:?}", nix::errno::Errno::from_raw(n)))
}
