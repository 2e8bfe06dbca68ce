//! POSIX cases as tables of text: what is there, one call, what it answers, what is there then.
//!
//! A row is `"prepare; prepare | call | answer | look, look"`. Everything happens below a directory of the row's own. `{T}` stands for each type of file in turn,
//! `{N}` for each but a directory. Rows are played with all of it on one mount, and with preparation and looks on one and the call on another; and
//! on a local file system, which must agree: a row that is wrong is seen there.
//!
//! | word | does |
//! |---|---|
//! | `make TYPE P`, `mkdir P [MODE]`, `creat P [MODE]`, `symlink TARGET P`, `link P Q`, `unlink P`, `rmdir P` | names |
//! | `rename P Q`, `noreplace P Q`, `exchange P Q` | rename(2) and its flags |
//! | `chmod P MODE`, `chown P UID GID`, `lchown P UID GID`, `utimens P SEC`, `now P` | attributes; `-` leaves an owner |
//! | `write P BYTES`, `truncate P SIZE`, `ftruncate P SIZE`, `allocate P AT LEN`, `open P FLAGS`, `read P`, `list P`, `access P rwx`, `stat P` | data and looks |
//! | `as UID:GID[:GROUP] WORDS` | the same as somebody else |
//!
//! A look is `P=TYPE[ MODE[ UID:GID[ LINKS[ SIZE]]]]` (`*`: anything), `P!ERRNO` for its lstat, or `P c+`, `P c=`, `P m+`, `P m=`: whether the call changed ctime
//! or mtime. Not here: EFAULT (no program in Rust can pass such a pointer; pjdfstest does), chflags (not on Linux).

mod attributes;
mod call;
mod data;
mod names;

use crate::matrix::errno_name;
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Metadata},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
    thread::sleep,
    time::Duration,
};

/// Types of files, as `make` knows them.
const TYPES: [&str; 7] = ["dir", "file", "fifo", "socket", "char", "block", "symlink"];

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// The row with its types put in: its name in messages.
    pub name: String,
    prepare: Vec<String>,
    call: String,
    answer: String,
    looks: Vec<String>,
}

/// All cases, of every table; a type may make two rows one.
pub fn all() -> Vec<Case> {
    let (tables, mut seen) = ([names::ROWS, attributes::ROWS, data::ROWS], BTreeSet::new());
    let rows = tables.into_iter().flatten().flat_map(|row| expanded(row));
    rows.filter(|row| seen.insert(row.clone())).map(|row| parse(&row)).collect()
}

fn expanded(row: &str) -> Vec<String> {
    let with = |mark: &str, types: &[&str]| types.iter().map(|t| row.replace(mark, t)).collect();
    match (row.contains("{T}"), row.contains("{N}")) {
        (true, _) => with("{T}", &TYPES),
        (_, true) => with("{N}", &TYPES[1..]),
        _ => vec![row.to_owned()],
    }
}

fn parse(row: &str) -> Case {
    let mut parts = row.split('|').map(str::trim);
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let list = |text: String, by: char| text.split(by).map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect();
    let (prepare, call, answer, looks) = (next(), next(), next(), next());
    Case { name: row.to_owned(), prepare: list(prepare, ';'), call, answer, looks: list(looks, ',') }
}

impl Case {
    /// Plays it: the call below `here`, preparation and looks below `there`; both are the same directory. Says what is wrong.
    pub fn play(&self, here: &Path, there: &Path, name: &str) -> Result<Option<String>> {
        let (here, there) = (here.join(name), there.join(name));
        fs::create_dir(&there)?;
        rustix::fs::chmod(&there, rustix::fs::Mode::from_raw_mode(0o777))?;
        for words in &self.prepare {
            call::run(&there, words).with_context(|| format!("{}: preparing {words}", self.name))?;
        }
        let watched: Vec<(&str, &str)> = self.looks.iter().filter_map(|l| l.rsplit_once(' ').filter(|(_, w)| is_time(w))).collect();
        let mut before = BTreeMap::new();
        for (path, _) in &watched {
            before.insert(*path, lstat(&there, path).with_context(|| self.name.clone())?);
        }
        if !watched.is_empty() {
            // longer than a tick of the kernel's clock
            sleep(Duration::from_millis(11));
        }
        let got = call::run(&here, &self.call).map_or_else(|e| errno_name(&e), |()| "ok".into());
        let mut wrong = Vec::new();
        // EEXIST and ENOTEMPTY are the same to POSIX
        if !self.answer.split('/').any(|a| a == got) {
            wrong.push(format!("{} answered {got}", self.call));
        }
        for look in &self.looks {
            wrong.extend(see(&there, look, &before).with_context(|| format!("{}: {look}", self.name))?);
        }
        fs::remove_dir_all(&there)?;
        Ok((!wrong.is_empty()).then(|| wrong.join("; ")))
    }
}

fn is_time(word: &str) -> bool {
    matches!(word, "c+" | "c=" | "m+" | "m=")
}

fn lstat(dir: &Path, path: &str) -> std::io::Result<Metadata> {
    fs::symlink_metadata(dir.join(call::name(path)))
}

fn kind(m: &Metadata) -> &'static str {
    let t = m.file_type();
    match () {
        () if t.is_dir() => "dir",
        () if t.is_symlink() => "symlink",
        () if t.is_fifo() => "fifo",
        () if t.is_socket() => "socket",
        () if t.is_char_device() => "char",
        () if t.is_block_device() => "block",
        () => "file",
    }
}

/// What is wrong with a look.
fn see(dir: &Path, look: &str, before: &BTreeMap<&str, Metadata>) -> Result<Option<String>> {
    if let Some((path, word)) = look.rsplit_once(' ').filter(|(_, w)| is_time(w)) {
        let old = before.get(path).context("no look before")?;
        let now = lstat(dir, path)?;
        let of = |m: &Metadata| if word.starts_with('c') { (m.ctime(), m.ctime_nsec()) } else { (m.mtime(), m.mtime_nsec()) };
        let changed = of(old) != of(&now);
        return Ok((changed != word.ends_with('+')).then(|| format!("{look}: {:?}, then {:?}", of(old), of(&now))));
    }
    if let Some((path, errno)) = look.split_once('!') {
        let got = lstat(dir, path).map_or_else(|e| errno_name(&e), |m| kind(&m).into());
        return Ok((got != errno).then(|| format!("{path}: {got} instead of {errno}")));
    }
    let (path, want) = look.split_once('=').with_context(|| format!("no look: {look}"))?;
    let m = match lstat(dir, path) {
        Ok(m) => m,
        Err(e) => return Ok(Some(format!("{path}: {}", errno_name(&e)))),
    };
    let owner = format!("{}:{}", m.uid(), m.gid());
    let got = [kind(&m).to_owned(), format!("{:o}", m.mode() & 0o7777), owner, m.nlink().to_string(), m.len().to_string()];
    let wanted: Vec<&str> = want.split(' ').collect();
    ensure!(wanted.len() <= got.len(), "too many words");
    let same = wanted.iter().zip(&got).all(|(w, g)| *w == "*" || w == g);
    Ok((!same).then(|| format!("{path}: {} instead of {want}", got.join(" "))))
}

/// A number out of a row.
fn octal(text: &str) -> std::io::Result<u32> {
    u32::from_str_radix(text, 8).map_err(std::io::Error::other)
}

/// Every row has an answer that some call can give; checked once, so that a slip of the pen is no case that never fails.
pub fn check_tables() -> Result<()> {
    for c in all() {
        let known = |a: &str| a == "ok" || (a.starts_with('E') && a.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit()));
        if c.call.is_empty() || !c.answer.split('/').all(known) {
            bail!("no call or no answer: {}", c.name);
        }
    }
    Ok(())
}
