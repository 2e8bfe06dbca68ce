//! What is mounted here, from the kernel's own table.
//!
//! A hung mount must not hang the tool that looks at it, so nothing here touches a path below a mount point: the table is
//! read from `/proc/self/mountinfo` and paths are compared as text.

use anyhow::{Context, Result};
use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub dir: PathBuf,
    /// `fuse.luna`, `ext4` and so on.
    pub kind: String,
    /// What mount(8) shows as the device.
    pub source: String,
}

impl Mount {
    /// Whether it is one of ours: by its type, or by the socket its daemon listens on (a mount that was made without
    /// fusermount3 has the plain type `fuse`).
    pub fn is_luna(&self) -> bool {
        self.kind == "fuse.luna" || (self.kind == "fuse" && luna_node::control::socket_path(&self.dir).exists())
    }
}

/// The mount whose mount point `dir` is; the topmost one.
pub fn at(dir: &Path) -> Result<Option<Mount>> {
    let table = std::fs::read("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let want = absolute(dir)?;
    let found = parse(&table).into_iter().rev().find(|m| m.dir == want);
    if found.is_some() {
        return Ok(found);
    }
    // not a mount point as written: follow symbolic links of the parent, never of the last name
    let resolved = match (want.parent(), want.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().unwrap_or_else(|_| parent.into()).join(name),
        _ => return Ok(None),
    };
    Ok(parse(&table).into_iter().rev().find(|m| m.dir == resolved))
}

/// All mounts of ours.
pub fn ours() -> Result<Vec<Mount>> {
    let table = std::fs::read("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(parse(&table).into_iter().filter(Mount::is_luna).collect())
}

/// `dir` as an absolute path without `.` and `..`, by text alone.
pub fn absolute(dir: &Path) -> Result<PathBuf> {
    let start = std::path::absolute(dir).with_context(|| format!("{}: no such path", dir.display()))?;
    let mut out = PathBuf::from("/");
    for part in start.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    Ok(out)
}

fn parse(table: &[u8]) -> Vec<Mount> {
    let line = |l: &[u8]| {
        let mut fields = l.split(|b| *b == b' ');
        let dir = PathBuf::from(OsString::from_vec(unescape(fields.nth(4)?)));
        let mut tail = fields.skip_while(|f| *f != b"-").skip(1);
        let kind = String::from_utf8_lossy(&unescape(tail.next()?)).into_owned();
        let source = String::from_utf8_lossy(&unescape(tail.next()?)).into_owned();
        Some(Mount { dir, kind, source })
    };
    table.split(|b| *b == b'\n').filter_map(line).collect()
}

/// Undoes the kernel's `\040` for blanks and its kin.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut i = 0;
    while i < field.len() {
        let octal = field.get(i + 1..i + 4).filter(|d| field[i] == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        match octal {
            Some(d) => {
                out.push(d.iter().fold(0u8, |n, c| n.wrapping_mul(8).wrapping_add(c - b'0')));
                i += 4;
            }
            None => {
                out.push(field[i]);
                i += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_table() {
        let table = b"36 35 98:0 /m1 /mnt\\0402 rw,noatime shared:1 master:2 - fuse.luna luna rw\n\
                      37 35 98:0 / /a rw - ext4 /dev/vda rw\n";
        let all = parse(table);
        assert_eq!(all[0], Mount { dir: "/mnt 2".into(), kind: "fuse.luna".into(), source: "luna".into() });
        assert!(all[0].is_luna() && !all[1].is_luna());
        assert_eq!(all[1].dir, Path::new("/a"));
    }

    #[test]
    fn absolute_paths_are_text() {
        assert_eq!(absolute(Path::new("/a/./b/../c/")).expect("a path"), Path::new("/a/c"));
        assert_eq!(absolute(Path::new("/..")).expect("a path"), Path::new("/"));
    }
}
