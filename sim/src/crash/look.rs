//! What is to be seen of a volume: every name, every attribute, every byte, read by the production code.
//!
//! Invariant: an error on the way is a finding; nothing is passed over. Not here: whether it may be so (`model`).

use luna_format::Ino;
use luna_fs::{Fs, FsError, op, xattr};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An object that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenFile {
    pub(super) dir: bool,
    pub(super) links: u32,
    pub(super) bytes: Option<Vec<u8>>,
    pub(super) xattr: Option<Vec<u8>>,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) names: BTreeMap<String, Ino>,
    pub(super) files: BTreeMap<Ino, SeenFile>,
}

impl Seen {
    /// In a line.
    pub(super) fn outline(&self) -> String {
        let one = |(name, ino): (&String, &Ino)| {
            let f = self.files.get(ino);
            let what = f.map_or(String::new(), |f| match &f.bytes {
                Some(b) => format!("{} bytes, {} links{}", b.len(), f.links, if f.xattr.is_some() { ", attribute" } else { "" }),
                None => format!("directory or link{}", if f.xattr.is_some() { ", attribute" } else { "" }),
            });
            format!("/{name} ({what})")
        };
        self.names.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// Names that are not of the workload.
const OWN: &str = "full";

/// Looks at everything.
pub(super) fn look(fs: &Arc<Fs>) -> Result<Seen, FsError> {
    let mut seen = Seen::default();
    walk(fs, fs.volume.sb.root_ino, String::new(), &mut seen)?;
    Ok(seen)
}

fn walk(fs: &Arc<Fs>, ino: Ino, path: String, seen: &mut Seen) -> Result<(), FsError> {
    let a = fs.run(|tx| op::getattr(tx, ino))?;
    seen.names.insert(path.clone(), ino);
    if seen.files.contains_key(&ino) {
        return Ok(());
    }
    let xattr = match fs.run(|tx| xattr::get(tx, ino, b"user.x")) {
        Ok(v) => Some(v),
        Err(FsError::NoAttribute) => None,
        Err(e) => return Err(e),
    };
    let bytes = if a.mode & op::S_IFMT == op::S_IFREG { Some(read(fs, ino, a.size)?) } else { None };
    if a.mode & op::S_IFMT == op::S_IFLNK {
        fs.run(|tx| op::readlink(tx, ino))?;
    }
    let dir = op::is_dir(a.mode);
    seen.files.insert(ino, SeenFile { dir, links: a.nlink, bytes, xattr });
    if dir {
        for e in fs.run(|tx| op::readdir(tx, ino, op::COOKIE_DOT_DOT, 1000))? {
            let name = String::from_utf8_lossy(&e.name).into_owned();
            let found = fs.run(|tx| op::lookup(tx, ino, &e.name))?;
            if found.ino != e.ino {
                return Err(FsError::Invalid("readdir and lookup differ"));
            }
            if !(path.is_empty() && name == OWN) {
                walk(fs, e.ino, if path.is_empty() { name } else { format!("{path}/{name}") }, seen)?;
            }
        }
    }
    Ok(())
}

fn read(fs: &Arc<Fs>, ino: Ino, size: u64) -> Result<Vec<u8>, FsError> {
    let file = fs.open_wait(ino, libc::O_RDONLY | libc::O_DIRECT)?;
    // more is asked for than there may be
    let got = fs.pread(&file, 0, (size as u32 + 8192).min(1 << 20), |_| ());
    fs.close_file(file);
    let got = got?;
    if got.len() as u64 == size { Ok(got) } else { Err(FsError::Invalid("a read does not end where the file does")) }
}
