//! The house rules that a program can check: arrows between crates, sizes, essays, unwrap, unsafe, async, paths.
//!
//! Each rule is a table or a number at the top of its test. A file that breaks one is named with its line. The list of
//! exceptions is empty on purpose; it may only shrink.

use anyhow::{Context, ensure};
use luna_tests::Result;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Which crates a crate may name among its dependencies (development dependencies are not arrows).
const ARROWS: &[(&str, &[&str])] = &[
    ("format", &[]),
    ("lun", &["format"]),
    ("dlm", &["format"]),
    ("journal", &["lun", "format"]),
    ("cluster", &["format"]),
    ("fs", &["dlm", "journal", "lun", "format"]),
    ("node", &["cluster", "fs", "dlm", "journal", "lun", "format"]),
    ("tools", &["node", "fs", "journal", "lun", "format"]),
    ("sim", &["node", "cluster", "fs", "dlm", "journal", "lun", "format"]),
    ("tests", &["node", "fs", "journal", "lun", "format"]),
    ("bench", &["tests", "node", "fs", "dlm", "journal", "lun", "format"]),
    ("fuzz", &["node", "cluster", "fs", "dlm", "journal", "lun", "format"]),
    // beside the program: it must not borrow what it is to judge
    ("model", &[]),
];

/// Crates whose name in code may appear only below these paths.
const ROOMS: &[(&str, &[&str])] = &[
    ("fuser", &["fs/src/fuse", "bench/"]),
    ("raft", &["cluster/src", "sim/src"]),
    ("tokio", &["node/src", "tools/src"]),
    ("stateright", &["model/src"]),
    ("postcard", &["node/src", "dlm/src", "cluster/src", "sim/src"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// One source file.
struct Source {
    /// Path below the root, with `/`.
    path: String,
    /// Everything in it.
    text: String,
    /// Its lines up to the unit tests.
    code: Vec<String>,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.contains("/tests/")
            || self.path.ends_with("tests.rs")
            || self.path.contains("/examples/")
    }
}

fn sources() -> Result<Vec<Source>> {
    let root = root();
    let mut found = Vec::new();
    for (dir, _) in ARROWS {
        let mut todo = vec![root.join(dir)];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
                let path = entry?.path();
                if path.is_dir() && path.file_name().is_some_and(|n| n != "target" && n != "fuzz") {
                    todo.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let text = fs::read_to_string(&path)?;
                    let end = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
                    let code = text[..end].lines().map(str::to_owned).collect();
                    let path = path.strip_prefix(&root)?.display().to_string();
                    found.push(Source { path, text, code });
                }
            }
        }
    }
    ensure!(found.len() > 50, "only {} sources found: the search is broken", found.len());
    Ok(found)
}

fn none(rule: &str, found: Vec<String>) -> Result {
    ensure!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
    Ok(())
}

#[test]
fn arrows() -> Result {
    let mut found = Vec::new();
    for (dir, may) in ARROWS {
        let manifest = fs::read_to_string(root().join(dir).join("Cargo.toml"))?;
        let mut section = "";
        for line in manifest.lines() {
            if line.starts_with('[') {
                section = line;
            } else if section == "[dependencies]"
                && let Some(rest) = line.strip_prefix("luna-")
            {
                let name = rest.split(['.', ' ', '=']).next().unwrap_or(rest);
                if !may.contains(&name) {
                    found.push(format!("{dir} -> {name}"));
                }
            }
        }
    }
    none("arrows that house rules do not allow", found)
}

#[test]
fn rooms() -> Result {
    let mut found = Vec::new();
    for source in sources()?.iter().filter(|s| !s.is_test()) {
        for (name, places) in ROOMS {
            if places.iter().any(|p| source.path.starts_with(p)) {
                continue;
            }
            for (n, line) in source.code.iter().enumerate() {
                let code = line.split("//").next().unwrap_or("");
                if code.contains(&format!("{name}::")) || code.trim_start().starts_with(&format!("use {name}")) {
                    found.push(format!("{}:{}: {name}", source.path, n + 1));
                }
            }
        }
    }
    none("crates outside of their rooms", found)
}

#[test]
fn file_lengths() -> Result {
    let mut lengths: Vec<(usize, String)> = sources()?.into_iter().filter(|s| !s.is_test()).map(|s| (s.code.len(), s.path)).collect();
    lengths.sort();
    let at = |percent: usize| &lengths[lengths.len() * percent / 100];
    none("files over 800 lines without tests", lengths.iter().filter(|(n, _)| *n > 800).map(|(n, p)| format!("{p}: {n}")).collect())?;
    // the plan says 150 and 400; the middle may drift a little before somebody must act
    ensure!(at(50).0 <= 220, "half of the files are longer than {} lines ({})", at(50).0, at(50).1);
    ensure!(at(90).0 <= 450, "a tenth of the files is longer than {} lines ({})", at(90).0, at(90).1);
    Ok(())
}

#[test]
fn function_lengths() -> Result {
    let mut found = Vec::new();
    let mut lengths = Vec::new();
    for source in sources()?.iter().filter(|s| !s.is_test()) {
        let mut open: Option<(usize, usize, String)> = None;
        for (n, line) in source.code.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let words = line.trim_start();
            // rustfmt puts a function's closing brace under its first letter
            if open.is_none() && (words.starts_with("fn ") || words.contains(" fn ")) && !words.starts_with("//") && !words.ends_with(';') {
                open = Some((n, indent, words.to_owned()));
            }
            let one_line = open.as_ref().is_some_and(|(start, ..)| *start == n) && words.ends_with('}');
            let end = open.as_ref().is_some_and(|(start, at, _)| n > *start && indent == *at && words.starts_with('}'));
            if (one_line || end)
                && let Some((start, _, name)) = open.take()
            {
                let len = n - start + 1;
                lengths.push(len);
                if len > 70 {
                    found.push(format!("{}:{}: {len} lines: {}", source.path, start + 1, name.chars().take(60).collect::<String>()));
                }
            }
            // a declaration without a body, or a type with `fn` in it
            if open.as_ref().is_some_and(|(start, at, _)| n > *start && indent == *at && words.ends_with(';')) {
                open = None;
            }
        }
    }
    lengths.sort_unstable();
    let p90 = lengths.get(lengths.len() * 9 / 10).copied().unwrap_or(0);
    ensure!(lengths.len() > 300, "only {} functions found: the search is broken", lengths.len());
    ensure!(p90 <= 40, "a tenth of the functions is longer than {p90} lines");
    none("functions over 70 lines", found)
}

#[test]
fn every_file_opens_with_an_essay() -> Result {
    let bare = sources()?.into_iter().filter(|s| !s.text.starts_with("//! ")).map(|s| s.path).collect();
    none("files that do not open with what they are for", bare)
}

#[test]
fn no_unwrap_no_unsafe_no_async() -> Result {
    let mut found = Vec::new();
    for source in sources()?.iter().filter(|s| !s.is_test()) {
        let shell = ["node/", "tools/", "sim/", "bench/"].iter().any(|d| source.path.starts_with(d));
        for (n, line) in source.code.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let mut bad = |what: &str| found.push(format!("{}:{}: {what}", source.path, n + 1));
            if code.contains(".unwrap()") {
                bad("unwrap");
            }
            if (code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")) && !source.path.starts_with("lun/")
            {
                bad("unsafe");
            }
            if code.contains("async fn") && !shell {
                bad("async fn");
            }
            if code.contains("todo!(") || code.contains("unimplemented!(") {
                bad("a stub");
            }
        }
    }
    none("outside of where they belong", found)
}

#[test]
fn unsafe_says_why() -> Result {
    let mut found = Vec::new();
    for source in sources()? {
        for (n, line) in source.code.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let before = source.code[n.saturating_sub(4)..n].iter().any(|l| l.contains("SAFETY:"));
            if (code.contains("unsafe {") || code.contains("unsafe impl")) && !before && !source.is_test() {
                found.push(format!("{}:{}", source.path, n + 1));
            }
        }
    }
    none("unsafe without SAFETY", found)
}

#[test]
fn pure_crates_are_guarded_by_the_linter() -> Result {
    let mut found = Vec::new();
    for dir in ["dlm", "cluster"] {
        let path = root().join(dir).join("clippy.toml");
        let text = fs::read_to_string(&path).unwrap_or_default();
        for word in ["Instant", "SystemTime", "HashMap"] {
            if !text.contains(word) {
                found.push(format!("{dir}/clippy.toml does not mention {word}"));
            }
        }
    }
    none("purity is not enforced", found)
}

#[test]
fn no_machine_is_named() -> Result {
    // written in pieces, so that this file does not find itself
    let words = [format!("/{}/main", "work"), format!("/{}/", "root"), format!("/home{}", "/"), format!("{}.cargo/registry", "/")];
    let mut found = Vec::new();
    let root = root();
    let mut files: Vec<(String, String)> = sources()?.into_iter().map(|s| (s.path, s.text)).collect();
    for name in ["README.md", "Makefile", "Cargo.toml", "deny.toml", "tests/setup.sh"] {
        files.push((name.into(), fs::read_to_string(root.join(name)).unwrap_or_default()));
    }
    for entry in fs::read_dir(root.join("docs")).into_iter().flatten().flatten().filter(|e| e.path().is_file()) {
        files.push((entry.path().display().to_string(), fs::read_to_string(entry.path())?));
    }
    for (path, text) in files {
        for (n, line) in text.lines().enumerate() {
            if words.iter().any(|w| line.contains(w.as_str())) {
                found.push(format!("{path}:{}: {}", n + 1, line.trim()));
            }
        }
    }
    none("paths of somebody's machine", found)
}

#[test]
fn the_lock_file_stays_small() -> Result {
    let lock = fs::read_to_string(root().join("Cargo.lock"))?;
    let mut count = BTreeMap::new();
    for line in lock.lines() {
        if let Some(name) = line.strip_prefix("name = ") {
            *count.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    let packages: usize = count.values().sum();
    ensure!(packages <= 220, "{packages} packages in the lock file; about 200 are allowed");
    Ok(())
}
