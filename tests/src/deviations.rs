//! Where Luna is known not to do what the suites ask, or where a suite cannot be asked, each with its reason: the table behind "Conformance" in
//! `docs/semantics.md` (a test compares the two).
//!
//! Invariant: a case is skipped by nothing else. Not here: how a suite is run.

/// Where cases come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// pjdfstest, the Rust edition.
    Pjdfstest,
    /// Our POSIX cases, on one and on two hosts.
    Posix,
    /// Every change × every look.
    Coherence,
    /// stress-ng's class of file systems.
    StressNg,
    /// Locks: held × asked.
    Locks,
}

/// One case, or all whose names end or begin with it.
#[derive(Clone, Copy, Debug)]
pub struct Deviation {
    /// Its suite.
    pub suite: Suite,
    /// Its name; `*` at an end stands for anything.
    pub case: &'static str,
    /// Why.
    pub reason: &'static str,
}

impl Deviation {
    /// Whether `name` is meant.
    pub fn covers(&self, name: &str) -> bool {
        match (self.case.strip_prefix('*'), self.case.strip_suffix('*')) {
            (Some(end), _) => name.ends_with(end),
            (_, Some(begin)) => name.starts_with(begin),
            _ => name == self.case,
        }
    }
}

/// A row of the table.
const fn row(suite: Suite, case: &'static str, reason: &'static str) -> Deviation {
    Deviation { suite, case, reason }
}

/// All of them.
pub const ALL: &[Deviation] = &[
    row(
        Suite::Coherence,
        "overwrite O_DIRECT × fstat",
        "a host that has the file open while another overwrites it through O_DIRECT may show the time of that up to half a minute late",
    ),
    row(
        Suite::Pjdfstest,
        "*::erofs_named",
        "its remount does not quote the source, which has `?` and `=`; asked in `conformance.rs` instead",
    ),
    row(Suite::Pjdfstest, "*::erofs_new_file", "the same"),
    row(Suite::Pjdfstest, "link::link_count_max", "pathconf(3) knows no limit of links for FUSE, so the suite does not try"),
    row(Suite::StressNg, "bind-mount", "ends at once on every file system in a container: it needs a mount namespace of its own"),
    row(Suite::StressNg, "binderfs", "a file system of the kernel, not a test of one; not in every kernel"),
    row(
        Suite::StressNg,
        "fanotify",
        "marks every mount of the machine, also those of other tests whose daemons are stopped or dead, and waits for them",
    ),
    row(Suite::StressNg, "fiemap", "FUSE does not pass FS_IOC_FIEMAP on; SEEK_HOLE and SEEK_DATA tell the same"),
    row(Suite::StressNg, "getdent", "walks every mount of the machine, as fanotify; other stressors list directories of the mount"),
    row(Suite::StressNg, "io", "sync(2) waits for every mount of the machine, as fanotify; iomix and sync-file sync files of the mount"),
    row(Suite::StressNg, "verity", "FS_IOC_ENABLE_VERITY is not supported"),
    row(Suite::Locks, "flock beside fcntl: *", "both share one space: fuser does not tell which of the two was asked for"),
    row(
        Suite::Coherence,
        "zero range × SEEK_HOLE",
        "blocks that fallocate zeroed are told as a hole, on ext4 as data; lseek(2) leaves it open",
    ),
];

/// Those of one suite.
pub fn of(suite: Suite) -> Vec<Deviation> {
    ALL.iter().filter(|d| d.suite == suite).copied().collect()
}

/// Why this case may come out otherwise, if it may.
pub fn excuse(suite: Suite, name: &str) -> Option<&'static str> {
    of(suite).iter().find(|d| d.covers(name)).map(|d| d.reason)
}

impl Deviation {
    /// Its line in `docs/semantics.md`.
    pub fn line(&self) -> String {
        let suite = match self.suite {
            Suite::Pjdfstest => "pjdfstest",
            Suite::Posix => "POSIX",
            Suite::Coherence => "coherence",
            Suite::StressNg => "stress-ng",
            Suite::Locks => "locks",
        };
        format!("| {suite} | {} | {} |", self.case, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document lists what the code skips, and nothing else.
    #[test]
    fn the_document_and_the_table_agree() {
        let text = include_str!("../../docs/semantics.md");
        let list = text.split("| suite | case | reason |").nth(1).expect("the list in docs/semantics.md");
        let told: Vec<&str> = list.lines().filter(|l| l.starts_with("| ")).collect();
        let known: Vec<String> = ALL.iter().map(Deviation::line).collect();
        assert_eq!(told, known, "docs/semantics.md, Conformance");
    }

    #[test]
    fn a_star_stands_for_anything() {
        let covers = |case, name: &str| row(Suite::Posix, case, "").covers(name);
        assert!(covers("*::b", "a::b") && covers("a*", "a::b") && covers("a", "a"));
        assert!(!covers("*::b", "a::c") && !covers("a*", "b") && !covers("a", "ab"));
    }
}
